/*
 * Saving and restoring state through one symmetric description.
 *
 * A plain struct of live registers is described once, as a table of fields; the table both writes
 * it out and reads it back. The encoding is little-endian, field after field, without padding, and
 * independent of the struct's layout; what it looks like on the wire changes only when the table
 * does, and then its version rises. Reading goes into a temporary struct, which its owner
 * validates before anything live is touched.
 *
 * Encoded record: u16 name length, name, u16 version, u32 payload length, payload.
 */
#ifndef FERRY_UTIL_STATE_H
#define FERRY_UTIL_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum state_type {
    STATE_U8,
    STATE_U16,
    STATE_U32,
    STATE_U64,
    STATE_BOOL,   /* one byte, 0 or 1; anything else is refused */
    STATE_STRUCT, /* sub describes it */
};

struct state_desc;

struct state_field {
    const char *name;             /* for messages */
    enum state_type type;
    uint32_t offset;              /* in the struct */
    uint32_t count;               /* elements: 1, or an array's length */
    uint32_t stride;              /* bytes from one element to the next */
    const struct state_desc *sub; /* STATE_STRUCT only */
    /* First version of the record that has the field; older records leave it 0. In a sub's fields
     * the version meant is that of the record which holds it. */
    uint16_t since;
};

struct state_desc {
    const char *name;   /* of the record: unique in the stream together with the device's id */
    uint16_t version;   /* of what is written */
    uint16_t oldest;    /* the oldest version that can be read */
    uint32_t size;      /* of the struct */
    uint32_t n_fields;
    const struct state_field *fields;
};

#define STATE_FIELD_SINCE(type_, s, f, version_)                                                   \
    {.name = #f, .type = (type_), .offset = offsetof(s, f), .count = 1,                            \
     .stride = sizeof(((s *)0)->f), .since = (version_)}
#define STATE_FIELD(type_, s, f) STATE_FIELD_SINCE(type_, s, f, 1)
/* An array member, of fixed length. */
#define STATE_ARRAY_SINCE(type_, s, f, version_)                                                   \
    {.name = #f, .type = (type_), .offset = offsetof(s, f),                                        \
     .count = sizeof(((s *)0)->f) / sizeof(((s *)0)->f[0]),                                        \
     .stride = sizeof(((s *)0)->f[0]), .since = (version_)}
#define STATE_ARRAY(type_, s, f) STATE_ARRAY_SINCE(type_, s, f, 1)
#define STATE_SUB(s, f, desc_)                                                                     \
    {.name = #f, .type = STATE_STRUCT, .offset = offsetof(s, f), .count = 1,                       \
     .stride = sizeof(((s *)0)->f), .sub = (desc_), .since = 1}
#define STATE_SUB_ARRAY(s, f, desc_)                                                               \
    {.name = #f, .type = STATE_STRUCT, .offset = offsetof(s, f),                                   \
     .count = sizeof(((s *)0)->f) / sizeof(((s *)0)->f[0]),                                        \
     .stride = sizeof(((s *)0)->f[0]), .sub = (desc_), .since = 1}

#define STATE_DESC(name_, version_, struct_, fields_)                                              \
    {.name = (name_), .version = (version_), .oldest = 1, .size = sizeof(struct_),                 \
     .n_fields = sizeof(fields_) / sizeof((fields_)[0]), .fields = (fields_)}

/* A growing byte buffer, owned by its user. Zero-initialised is empty. */
struct state_buffer {
    uint8_t *data;
    size_t length;
    size_t capacity;
};
void state_buffer_fini(struct state_buffer *buffer);

/* A cursor over bytes borrowed from the caller. */
struct state_reader {
    const uint8_t *data;
    size_t length;
    size_t at;
};

/* Appends one record. 0 or -ENOMEM. */
int state_save(const struct state_desc *desc, const void *from, struct state_buffer *out);

/*
 * Reads one record into `to`, which is zeroed first. 0; -ENODATA (the bytes end too early),
 * -EBADMSG (another record's name, a length that does not fit, a bool that is none),
 * -EOPNOTSUPP (a version outside oldest..version). Logged; `to` is then unspecified, *in unmoved.
 */
int state_load(const struct state_desc *desc, void *to, struct state_reader *in);

#endif
