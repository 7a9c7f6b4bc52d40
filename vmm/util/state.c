/*
 * Saving and restoring state: one walk over a description writes a struct out, the same walk reads
 * it back.
 *
 * Does not validate meanings (the owner of the struct does) and adds no checksum (the stream that
 * carries the records does). Pure: no thread, no lock.
 */
#include "vmm/util/state.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/util/log.h"

#define FIRST_CAPACITY 256
/* A record's head: u16 name length, name, u16 version, u32 payload length. */
#define HEAD_FIXED_BYTES 8

static unsigned type_bytes(enum state_type type)
{
    switch (type) {
    case STATE_U8:
    case STATE_BOOL:
        return 1;
    case STATE_U16:
        return 2;
    case STATE_U32:
        return 4;
    case STATE_U64:
        return 8;
    case STATE_STRUCT:
        break;
    }
    return 0;
}

/* Encoded length of a struct as version `version` of its record had it. */
static size_t payload_bytes(const struct state_desc *desc, uint16_t version)
{
    size_t bytes = 0;

    for (uint32_t i = 0; i < desc->n_fields; i++) {
        const struct state_field *f = &desc->fields[i];
        size_t one;

        if (f->since > version)
            continue;
        one = f->type == STATE_STRUCT ? payload_bytes(f->sub, version) : type_bytes(f->type);
        bytes += one * f->count;
    }
    return bytes;
}

static void put_le(uint8_t *to, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        to[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get_le(const uint8_t *from, unsigned bytes)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < bytes; i++)
        value |= (uint64_t)from[i] << (8 * i);
    return value;
}

/* ---- the buffer ---- */

void state_buffer_fini(struct state_buffer *buffer)
{
    free(buffer->data);
    *buffer = (struct state_buffer){0};
}

static int reserve(struct state_buffer *buffer, size_t more)
{
    size_t capacity = buffer->capacity ? buffer->capacity : FIRST_CAPACITY;
    uint8_t *data;

    if (more <= buffer->capacity - buffer->length)
        return 0;
    while (capacity - buffer->length < more)
        capacity *= 2;
    data = realloc(buffer->data, capacity);
    if (!data)
        return -ENOMEM;
    buffer->data = data;
    buffer->capacity = capacity;
    return 0;
}

/* ---- writing ---- */

static uint64_t scalar_get(const uint8_t *from, enum state_type type)
{
    switch (type) {
    case STATE_U8:
        return *from;
    case STATE_BOOL:
        return *(const bool *)from;
    case STATE_U16:
        return *(const uint16_t *)from;
    case STATE_U32:
        return *(const uint32_t *)from;
    case STATE_U64:
        return *(const uint64_t *)from;
    case STATE_STRUCT:
        break;
    }
    return 0;
}

/* Both return where the next byte goes; the room was reserved. */
static uint8_t *put_struct(const struct state_desc *desc, const uint8_t *from, uint8_t *to);

static uint8_t *put_field(const struct state_field *f, const uint8_t *from, uint8_t *to)
{
    unsigned bytes = type_bytes(f->type);

    for (uint32_t k = 0; k < f->count; k++) {
        const uint8_t *element = from + f->offset + (size_t)k * f->stride;

        if (f->type == STATE_STRUCT)
            to = put_struct(f->sub, element, to);
        else
            put_le(to, scalar_get(element, f->type), bytes);
        to += bytes;
    }
    return to;
}

static uint8_t *put_struct(const struct state_desc *desc, const uint8_t *from, uint8_t *to)
{
    for (uint32_t i = 0; i < desc->n_fields; i++)
        to = put_field(&desc->fields[i], from, to);
    return to;
}

int state_save(const struct state_desc *desc, const void *from, struct state_buffer *out)
{
    size_t name_length = strlen(desc->name);
    size_t payload = payload_bytes(desc, desc->version);
    uint8_t *to;
    int err;

    assert(name_length <= UINT16_MAX && payload <= UINT32_MAX);
    err = reserve(out, HEAD_FIXED_BYTES + name_length + payload);
    if (err)
        return err;
    to = out->data + out->length;
    put_le(to, name_length, 2);
    memcpy(to + 2, desc->name, name_length);
    put_le(to + 2 + name_length, desc->version, 2);
    put_le(to + 4 + name_length, payload, 4);
    to = put_struct(desc, from, to + HEAD_FIXED_BYTES + name_length);
    out->length = (size_t)(to - out->data);
    return 0;
}

/* ---- reading ---- */

static int scalar_set(uint8_t *to, enum state_type type, uint64_t value)
{
    switch (type) {
    case STATE_U8:
        *to = (uint8_t)value;
        return 0;
    case STATE_BOOL:
        if (value > 1)
            return -EBADMSG;
        *(bool *)to = value;
        return 0;
    case STATE_U16:
        *(uint16_t *)to = (uint16_t)value;
        return 0;
    case STATE_U32:
        *(uint32_t *)to = (uint32_t)value;
        return 0;
    case STATE_U64:
        *(uint64_t *)to = value;
        return 0;
    case STATE_STRUCT:
        break;
    }
    return -EBADMSG;
}

/* Moves *from past what was read; the length was checked. */
static int get_struct(const struct state_desc *desc, uint8_t *to, const uint8_t **from,
                      uint16_t version);

static int get_field(const struct state_field *f, uint8_t *to, const uint8_t **from,
                     uint16_t version)
{
    for (uint32_t k = 0; k < f->count; k++) {
        uint8_t *element = to + f->offset + (size_t)k * f->stride;
        unsigned bytes = type_bytes(f->type);
        int err;

        if (f->type == STATE_STRUCT)
            err = get_struct(f->sub, element, from, version);
        else
            err = scalar_set(element, f->type, get_le(*from, bytes));
        if (err)
            return err;
        *from += bytes;
    }
    return 0;
}

static int get_struct(const struct state_desc *desc, uint8_t *to, const uint8_t **from,
                      uint16_t version)
{
    for (uint32_t i = 0; i < desc->n_fields; i++) {
        const struct state_field *f = &desc->fields[i];
        int err = f->since > version ? 0 : get_field(f, to, from, version);

        if (err) {
            log_error("state '%s': the field '%s' has an impossible value", desc->name, f->name);
            return err;
        }
    }
    return 0;
}

static int too_short(const struct state_desc *desc)
{
    log_error("state '%s': the data ends too early", desc->name);
    return -ENODATA;
}

/* Checks the head; gives version and payload. */
static int get_head(const struct state_desc *desc, const struct state_reader *in,
                    uint16_t *version, const uint8_t **payload, size_t *length)
{
    const uint8_t *at = in->data + in->at;
    size_t left = in->length - in->at;
    size_t name_length = strlen(desc->name);
    size_t head = HEAD_FIXED_BYTES + name_length;

    if (left < 2)
        return too_short(desc);
    if (get_le(at, 2) != name_length) {
        log_error("state '%s': another record stands in its place", desc->name);
        return -EBADMSG;
    }
    if (left < head)
        return too_short(desc);
    if (memcmp(at + 2, desc->name, name_length) != 0) {
        log_error("state '%s': another record stands in its place", desc->name);
        return -EBADMSG;
    }
    *version = (uint16_t)get_le(at + 2 + name_length, 2);
    *length = get_le(at + 4 + name_length, 4);
    *payload = at + head;
    return *length > left - head ? too_short(desc) : 0;
}

int state_load(const struct state_desc *desc, void *to, struct state_reader *in)
{
    const uint8_t *payload;
    uint16_t version;
    size_t length;
    int err;

    memset(to, 0, desc->size);
    err = get_head(desc, in, &version, &payload, &length);
    if (err)
        return err;
    if (version < desc->oldest || version > desc->version) {
        log_error("state '%s': version %u is not among %u to %u that this program reads",
                  desc->name, version, desc->oldest, desc->version);
        return -EOPNOTSUPP;
    }
    if (length != payload_bytes(desc, version)) {
        log_error("state '%s': %zu bytes do not make a record of version %u", desc->name, length,
                  version);
        return -EBADMSG;
    }
    err = get_struct(desc, to, &payload, version);
    if (err)
        return err;
    in->at = (size_t)(payload - in->data);
    return 0;
}
