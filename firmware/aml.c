/*
 * A writer of AML, ACPI's byte code.
 *
 * Does not check that the result makes sense as ASL; the tests have iasl do that. State is the
 * caller's struct; no lock.
 *
 * Texts: ACPI 6.4 §20.2 "AML Grammar Definition", §6.4 "Resource Data Types for ACPI".
 */
#include "firmware/aml.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ACPI 6.4 §20.3, table 20.2. */
#define OP_NAME 0x08
#define OP_BYTE 0x0A
#define OP_WORD 0x0B
#define OP_DWORD 0x0C
#define OP_STRING 0x0D
#define OP_QWORD 0x0E
#define OP_SCOPE 0x10
#define OP_BUFFER 0x11
#define OP_PACKAGE 0x12
#define OP_METHOD 0x14
#define OP_DUAL_NAME 0x2E
#define OP_MULTI_NAME 0x2F
#define OP_EXT 0x5B
#define OP_EXT_DEVICE 0x82
#define OP_CREATE_DWORD_FIELD 0x8A
#define OP_IF 0xA0
#define OP_ELSE 0xA1

#define NAME_SEGMENT 4

void aml_init(struct aml *aml)
{
    *aml = (struct aml){0};
}

void aml_fini(struct aml *aml)
{
    free(aml->data);
    aml_init(aml);
}

int aml_finish(struct aml *aml)
{
    if (!aml->error && aml->depth > 0)
        aml->error = -EINVAL;
    return aml->error;
}

static bool reserve(struct aml *aml, size_t more)
{
    size_t capacity = aml->capacity ? aml->capacity : 4096;
    uint8_t *data;

    if (aml->error)
        return false;
    while (capacity - aml->length < more)
        capacity *= 2;
    if (capacity == aml->capacity)
        return true;
    data = realloc(aml->data, capacity);
    if (!data) {
        aml->error = -ENOMEM;
        return false;
    }
    aml->data = data;
    aml->capacity = capacity;
    return true;
}

static void put(struct aml *aml, const void *bytes, size_t length)
{
    if (!reserve(aml, length))
        return;
    memcpy(aml->data + aml->length, bytes, length);
    aml->length += length;
}

static void put_byte(struct aml *aml, uint8_t byte)
{
    put(aml, &byte, 1);
}

/* §20.2.4: the length counts its own bytes; two leading bits say how many follow the first. */
static unsigned encode_length(uint8_t *to, size_t content)
{
    size_t length;
    unsigned n = 1;

    if (content + 1 < 1u << 6) {
        to[0] = (uint8_t)(content + 1);
        return 1;
    }
    while (n < 3 && content + n + 1 >= 1ull << (4 + 8 * n))
        n++;
    length = content + n + 1;
    to[0] = (uint8_t)(n << 6 | (length & 0xF));
    for (unsigned i = 1; i <= n; i++)
        to[i] = (uint8_t)(length >> (8 * i - 4));
    return n + 1;
}

static void open_package(struct aml *aml)
{
    if (aml->depth == AML_MAX_DEPTH)
        aml->error = -EINVAL;
    if (!aml->error)
        aml->open[aml->depth++] = aml->length;
}

/* The length is only known now, and how many bytes it takes: the content moves up for it. */
void aml_end(struct aml *aml)
{
    uint8_t encoded[4];
    unsigned n;
    size_t start;

    if (!aml->error && aml->depth == 0)
        aml->error = -EINVAL;
    if (!reserve(aml, sizeof(encoded)))
        return;
    start = aml->open[--aml->depth];
    n = encode_length(encoded, aml->length - start);
    memmove(aml->data + start + n, aml->data + start, aml->length - start);
    memcpy(aml->data + start, encoded, n);
    aml->length += n;
}

/* §20.2.2, NameString. */
void aml_path(struct aml *aml, const char *path)
{
    size_t segments;

    if (*path == '\\')
        put_byte(aml, (uint8_t)*path++);
    segments = (strlen(path) + 1) / (NAME_SEGMENT + 1);
    assert(strlen(path) == segments * (NAME_SEGMENT + 1) - 1);
    if (segments == 2) {
        put_byte(aml, OP_DUAL_NAME);
    } else if (segments > 2) {
        put_byte(aml, OP_MULTI_NAME);
        put_byte(aml, (uint8_t)segments);
    }
    for (size_t i = 0; i < segments; i++)
        put(aml, path + i * (NAME_SEGMENT + 1), NAME_SEGMENT);
}

void aml_scope(struct aml *aml, const char *path)
{
    put_byte(aml, OP_SCOPE);
    open_package(aml);
    aml_path(aml, path);
}

void aml_device(struct aml *aml, const char *path)
{
    put_byte(aml, OP_EXT);
    put_byte(aml, OP_EXT_DEVICE);
    open_package(aml);
    aml_path(aml, path);
}

void aml_method(struct aml *aml, const char *path, unsigned n_args, bool serialized)
{
    assert(n_args <= 7);
    put_byte(aml, OP_METHOD);
    open_package(aml);
    aml_path(aml, path);
    put_byte(aml, (uint8_t)(n_args | (serialized ? 1u << 3 : 0)));
}

void aml_if(struct aml *aml)
{
    put_byte(aml, OP_IF);
    open_package(aml);
}

void aml_else(struct aml *aml)
{
    put_byte(aml, OP_ELSE);
    open_package(aml);
}

void aml_package(struct aml *aml, uint8_t n_elements)
{
    put_byte(aml, OP_PACKAGE);
    open_package(aml);
    put_byte(aml, n_elements);
}

void aml_name(struct aml *aml, const char *path)
{
    put_byte(aml, OP_NAME);
    aml_path(aml, path);
}

void aml_op(struct aml *aml, enum aml_op op)
{
    put_byte(aml, (uint8_t)op);
}

/* §20.2.3, in the fewest bytes. */
void aml_integer(struct aml *aml, uint64_t value)
{
    if (value <= 1) {
        put_byte(aml, value ? AML_ONE : AML_ZERO);
    } else if (value <= UINT8_MAX) {
        put_byte(aml, OP_BYTE);
        put(aml, &value, 1); /* little-endian, as is the host: see the assertion below */
    } else if (value <= UINT16_MAX) {
        put_byte(aml, OP_WORD);
        put(aml, &value, 2);
    } else if (value <= UINT32_MAX) {
        put_byte(aml, OP_DWORD);
        put(aml, &value, 4);
    } else {
        put_byte(aml, OP_QWORD);
        put(aml, &value, 8);
    }
}

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tables are written as they are");

void aml_string(struct aml *aml, const char *text)
{
    put_byte(aml, OP_STRING);
    put(aml, text, strlen(text) + 1);
}

static uint8_t hex_digit(char c)
{
    assert((c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'));
    return (uint8_t)(c <= '9' ? c - '0' : c - 'A' + 10);
}

/* §19.3.4: letters in 5 bits each, then the digits; big-endian in a double word. */
void aml_eisaid(struct aml *aml, const char *id)
{
    uint32_t value = 0;

    assert(strlen(id) == 7);
    for (unsigned i = 0; i < 3; i++)
        value = value << 5 | (uint32_t)(id[i] - 'A' + 1);
    for (unsigned i = 3; i < 7; i++)
        value = value << 4 | hex_digit(id[i]);
    value = __builtin_bswap32(value);
    put_byte(aml, OP_DWORD);
    put(aml, &value, sizeof(value));
}

void aml_uuid(struct aml *aml, const char *text)
{
    /* Where in the text byte i stands: the first three groups are little-endian. */
    static const uint8_t place[16] = {6, 4, 2, 0, 11, 9, 16, 14, 19, 21, 24, 26, 28, 30, 32, 34};
    uint8_t bytes[16];

    assert(strlen(text) == 36);
    for (unsigned i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(hex_digit(text[place[i]]) << 4 | hex_digit(text[place[i] + 1]));
    aml_buffer(aml, bytes, sizeof(bytes));
}

void aml_buffer(struct aml *aml, const void *bytes, size_t length)
{
    put_byte(aml, OP_BUFFER);
    open_package(aml);
    aml_integer(aml, length);
    put(aml, bytes, length);
    aml_end(aml);
}

void aml_create_dword_field(struct aml *aml, enum aml_op source, uint64_t byte_index,
                            const char *name)
{
    put_byte(aml, OP_CREATE_DWORD_FIELD);
    aml_op(aml, source);
    aml_integer(aml, byte_index);
    aml_path(aml, name);
}

static void res_put(struct aml_resources *res, const void *bytes, size_t length)
{
    assert(length <= sizeof(res->bytes) - res->length);
    memcpy(res->bytes + res->length, bytes, length);
    res->length += length;
}

/* §6.4.2.5: 16-bit decode, fixed place. */
void aml_res_io(struct aml_resources *res, uint16_t base, uint8_t size)
{
    const struct {
        uint8_t tag;
        uint8_t decode;
        uint16_t min;
        uint16_t max;
        uint8_t align;
        uint8_t length;
    } __attribute__((packed)) io = {0x47, 1, base, base, 1, size};

    res_put(res, &io, sizeof(io));
}

/* §6.4.2.1, the short form: edge triggered, active high, exclusive. */
void aml_res_irq(struct aml_resources *res, unsigned irq)
{
    const struct {
        uint8_t tag;
        uint16_t mask;
    } __attribute__((packed)) entry = {0x22, (uint16_t)(1u << irq)};

    assert(irq < 16);
    res_put(res, &entry, sizeof(entry));
}

/* §6.4.3.6: consumer, edge triggered, active high, exclusive. */
void aml_res_interrupt(struct aml_resources *res, uint32_t gsi)
{
    const struct {
        uint8_t tag;
        uint16_t length;
        uint8_t flags;
        uint8_t count;
        uint32_t gsi;
    } __attribute__((packed)) entry = {0x89, 6, 0x03, 1, gsi};

    res_put(res, &entry, sizeof(entry));
}

/* §6.4.3.4: read and write. */
void aml_res_memory32_fixed(struct aml_resources *res, uint32_t base, uint32_t size)
{
    const struct {
        uint8_t tag;
        uint16_t length;
        uint8_t info;
        uint32_t base;
        uint32_t size;
    } __attribute__((packed)) entry = {0x86, 9, 1, base, size};

    res_put(res, &entry, sizeof(entry));
}

/* §6.4.3.5: what the address space descriptors of all widths begin with. */
enum space { SPACE_MEMORY = 0, SPACE_IO = 1, SPACE_BUS = 2 };

#define WINDOW_GENERAL 0x0C /* minimum and maximum fixed, positive decode, producer */
#define WINDOW_MEMORY 0x01  /* read and write, not cacheable, as PCI hosts have it */
#define WINDOW_IO 0x03      /* the entire range */

#define DEFINE_WINDOW(name, tag_, type_)                                                           \
    static void name(struct aml_resources *res, enum space space, uint8_t specific, type_ min,     \
                     type_ max, type_ length)                                                      \
    {                                                                                              \
        const struct {                                                                             \
            uint8_t tag;                                                                           \
            uint16_t bytes;                                                                        \
            uint8_t space;                                                                         \
            uint8_t general;                                                                       \
            uint8_t specific;                                                                      \
            type_ granularity;                                                                     \
            type_ min;                                                                             \
            type_ max;                                                                             \
            type_ translation;                                                                     \
            type_ length;                                                                          \
        } __attribute__((packed)) window = {tag_, 3 + 5 * sizeof(type_), (uint8_t)space,           \
                                            WINDOW_GENERAL, specific, 0, min, max, 0, length};     \
                                                                                                   \
        res_put(res, &window, sizeof(window));                                                     \
    }

DEFINE_WINDOW(word_window, 0x88, uint16_t)
DEFINE_WINDOW(dword_window, 0x87, uint32_t)
DEFINE_WINDOW(qword_window, 0x8A, uint64_t)

void aml_res_bus_window(struct aml_resources *res, uint16_t first, uint16_t last)
{
    word_window(res, SPACE_BUS, 0, first, last, (uint16_t)(last - first + 1));
}

void aml_res_io_window(struct aml_resources *res, uint16_t base, uint32_t size)
{
    word_window(res, SPACE_IO, WINDOW_IO, base, (uint16_t)(base + size - 1), (uint16_t)size);
}

void aml_res_memory32_window(struct aml_resources *res, uint32_t base, uint32_t size)
{
    dword_window(res, SPACE_MEMORY, WINDOW_MEMORY, base, base + size - 1, size);
}

void aml_res_memory64_window(struct aml_resources *res, uint64_t base, uint64_t size)
{
    qword_window(res, SPACE_MEMORY, WINDOW_MEMORY, base, base + size - 1, size);
}

void aml_resources(struct aml *aml, const struct aml_resources *res)
{
    static const uint8_t end_tag[2] = {0x79, 0}; /* §6.4.2.9: checksum 0 counts as correct */
    uint8_t bytes[AML_RESOURCES_MAX + sizeof(end_tag)];

    memcpy(bytes, res->bytes, res->length);
    memcpy(bytes + res->length, end_tag, sizeof(end_tag));
    aml_buffer(aml, bytes, res->length + sizeof(end_tag));
}
