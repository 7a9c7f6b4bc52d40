/*
 * The stream: header and sections, written and read by blocking calls.
 *
 * Does not know what is in a section. Wire structs are packed by hand into little-endian bytes, apart
 * from the structs of the program. No state; any thread.
 */
#include "migration/stream.h"

#include <endian.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vmm/util/log.h"

/* On the wire; frozen with version 1. */
struct wire_header {
    char magic[8];
    uint32_t version;
    uint32_t compatible_since;
    uint32_t reserved; /* 0 */
    uint32_t crc;      /* of what stands before */
} __attribute__((packed));
_Static_assert(sizeof(struct wire_header) == STREAM_HEADER_BYTES, "docs/STREAM.md: header");

struct wire_section {
    uint32_t kind;
    uint32_t flags;
    char id[STREAM_ID_MAX];
    uint64_t length;
    uint32_t payload_crc;
    uint32_t crc; /* of what stands before */
} __attribute__((packed));
_Static_assert(sizeof(struct wire_section) == STREAM_HEAD_BYTES, "docs/STREAM.md: section");

static int write_all(int fd, const void *data, uint64_t length)
{
    const uint8_t *at = data;

    while (length > 0) {
        ssize_t n = write(fd, at, length > INT_MAX ? INT_MAX : length);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        at += n;
        length -= (uint64_t)n;
    }
    return 0;
}

void stream_pack_header(uint8_t bytes[STREAM_HEADER_BYTES])
{
    struct wire_header wire = {
        .version = htole32(STREAM_VERSION),
        .compatible_since = htole32(STREAM_COMPATIBLE_SINCE),
    };

    memcpy(wire.magic, STREAM_MAGIC, sizeof(wire.magic));
    wire.crc = htole32(stream_crc(0, &wire, offsetof(struct wire_header, crc)));
    memcpy(bytes, &wire, sizeof(wire));
}

int stream_pack_head(uint8_t bytes[STREAM_HEAD_BYTES], enum stream_kind kind, const char *id,
                     uint64_t length, uint32_t payload_crc)
{
    struct wire_section wire = {
        .kind = htole32(kind),
        .flags = htole32(kind == STREAM_SUMS || kind == STREAM_NETWORK ? STREAM_OPTIONAL : 0),
        .length = htole64(length),
        .payload_crc = htole32(payload_crc),
    };

    if (strlen(id) >= sizeof(wire.id))
        return -EINVAL;
    memcpy(wire.id, id, strlen(id));
    wire.crc = htole32(stream_crc(0, &wire, offsetof(struct wire_section, crc)));
    memcpy(bytes, &wire, sizeof(wire));
    return 0;
}

int stream_write_header(int fd)
{
    uint8_t header[STREAM_HEADER_BYTES];

    stream_pack_header(header);
    return write_all(fd, header, sizeof(header));
}

int stream_write_section(int fd, enum stream_kind kind, const char *id, const void *payload,
                         uint64_t length)
{
    uint8_t head[STREAM_HEAD_BYTES];
    int err = stream_pack_head(head, kind, id, length, stream_crc(0, payload, length));

    if (!err)
        err = write_all(fd, head, sizeof(head));
    return err ? err : write_all(fd, payload, length);
}

static int read_all(const struct stream_reader *reader, void *data, uint64_t length)
{
    uint8_t *at = data;

    if (reader->fill)
        return reader->fill(reader, data, length);
    while (length > 0) {
        ssize_t n = read(reader->fd, at, length > INT_MAX ? INT_MAX : length);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            int err = -errno;
            log_error("%s: %s", reader->name, strerror(-err));
            return err;
        }
        if (n == 0) {
            log_error("%s: it ends in the middle of a section: the file is truncated",
                      reader->name);
            return -ENODATA;
        }
        at += n;
        length -= (uint64_t)n;
    }
    return 0;
}

int stream_read_header(const struct stream_reader *reader)
{
    struct wire_header wire;
    int err = read_all(reader, &wire, sizeof(wire));

    if (err)
        return err;
    if (memcmp(wire.magic, STREAM_MAGIC, sizeof(wire.magic)) != 0) {
        log_error("%s: not a guest saved by ferry", reader->name);
        return -EBADMSG;
    }
    if (le32toh(wire.crc) != stream_crc(0, &wire, offsetof(struct wire_header, crc))) {
        log_error("%s: its header is damaged", reader->name);
        return -EBADMSG;
    }
    if (le32toh(wire.compatible_since) > STREAM_VERSION) {
        log_error("%s: written by a later ferry: version %u of the format is needed, and this ferry "
                  "has %u", reader->name, le32toh(wire.compatible_since), STREAM_VERSION);
        return -EOPNOTSUPP;
    }
    return 0;
}

static int check_section(const struct stream_reader *reader, const struct wire_section *wire,
                         struct stream_section *section)
{
    if (le32toh(wire->crc) != stream_crc(0, wire, offsetof(struct wire_section, crc)) ||
        !memchr(wire->id, '\0', sizeof(wire->id))) {
        log_error("%s: a section's header is damaged", reader->name);
        return -EBADMSG;
    }
    section->kind = le32toh(wire->kind);
    section->flags = le32toh(wire->flags);
    section->length = le64toh(wire->length);
    memcpy(section->id, wire->id, sizeof(section->id));
    if (section->length <= STREAM_SECTION_MAX)
        return 0;
    log_error("%s: section %u '%s' says it has %llu bytes, and at most %u are expected",
              reader->name, section->kind, section->id, (unsigned long long)section->length,
              STREAM_SECTION_MAX);
    return -EMSGSIZE;
}

int stream_read_head(const struct stream_reader *reader, struct stream_section *section,
                     uint32_t *payload_crc)
{
    struct wire_section wire;
    int err = read_all(reader, &wire, sizeof(wire));

    if (!err)
        err = check_section(reader, &wire, section);
    if (!err)
        *payload_crc = le32toh(wire.payload_crc);
    return err;
}

int stream_read_payload(const struct stream_reader *reader, const struct stream_section *section,
                        uint32_t payload_crc, void **payload)
{
    uint8_t *bytes = malloc(section->length + 1);
    int err;

    if (!bytes)
        return -ENOMEM;
    bytes[section->length] = '\0';
    err = read_all(reader, bytes, section->length);
    if (!err && payload_crc != stream_crc(0, bytes, section->length)) {
        log_error("%s: section %u '%s' is damaged: its checksum does not match", reader->name,
                  section->kind, section->id);
        err = -EBADMSG;
    }
    if (err) {
        free(bytes);
        return err;
    }
    *payload = bytes;
    return 0;
}

int stream_read_section(const struct stream_reader *reader, struct stream_section *section,
                        void **payload)
{
    uint32_t crc = 0;
    int err = stream_read_head(reader, section, &crc);

    return err ? err : stream_read_payload(reader, section, crc, payload);
}
