/*
 * The stream in which a guest is written down: a header, then sections, each with its kind, length
 * and checksum. docs/STREAM.md describes it byte by byte.
 *
 * All numbers are little-endian. Every length and checksum is verified before what it covers is
 * used; nothing here trusts what it reads. Any thread; one at a time per writer or reader.
 */
#ifndef FERRY_MIGRATION_STREAM_H
#define FERRY_MIGRATION_STREAM_H

#include <stddef.h>
#include <stdint.h>

#define STREAM_MAGIC "FERRYVM\n"
#define STREAM_VERSION 1u          /* of what is written */
#define STREAM_COMPATIBLE_SINCE 1u /* the oldest reader that understands what is written */
#define STREAM_ID_MAX 32
#define STREAM_SECTION_MAX (256u << 20) /* bytes of a payload: a bitmap for 8 TiB */

enum stream_kind {
    STREAM_CONFIG = 1, /* what the machine is built from: JSON */
    STREAM_DEVICE = 2, /* a device's records; the id is the device's */
    STREAM_VM = 3,     /* interrupt controllers and clock: records */
    STREAM_VCPU = 4,   /* a vCPU's records; the id is its number */
    STREAM_MEMORY = 5, /* a region of RAM: where its pages lie in the file */
    STREAM_END = 6,    /* the last one, empty */
    STREAM_SUMS = 7,   /* checksums of a region's blocks; optional; in files only */
    /* Between two processes only (migration/source.h, target.h). */
    STREAM_HELLO = 16,     /* what the source has: JSON */
    STREAM_PROCESSOR = 17, /* what the guest uses of its processor: records */
    STREAM_MEMFD = 18,     /* memory itself, as a descriptor that comes along */
    STREAM_REPORT = 19,    /* what does not fit at the destination: JSON */
    STREAM_PAGES = 20,     /* pages of memory */
    STREAM_STOPPED = 21,   /* the guest stands still, what follows is the rest */
    STREAM_READY = 22,     /* the destination has all of the guest */
    STREAM_GO = 23,        /* the right to run it */
    STREAM_RUNNING = 24,   /* it runs: JSON */
    STREAM_ABORT = 25,     /* whoever sends it gives up: the reason as text */
    STREAM_ADDRESSES = 26, /* that a NIC was seen to use; the id is the NIC's */
    STREAM_TRANSFER = 32,  /* how pages will come: over how many connections, compressed how */
    STREAM_JOIN = 33,      /* a further connection belongs to this migration */
    STREAM_PACKED = 34,    /* pages of memory, compressed */
    STREAM_FRAMES = 40,  /* that came for a NIC after the guest stopped; id "", empty: all so far */
    STREAM_TRAFFIC = 41, /* when NICs had their first frames: JSON */
    STREAM_NETWORK = 42, /* of NICs and their ports at the source: JSON; may be passed over */
};

/* A reader that does not know the kind may pass over the section. */
#define STREAM_OPTIONAL 1u

struct stream_section {
    uint32_t kind; /* enum stream_kind, or one that a later version has */
    uint32_t flags;
    char id[STREAM_ID_MAX]; /* NUL-terminated */
    uint64_t length;        /* bytes of the payload */
};

#define STREAM_HEADER_BYTES 24
#define STREAM_HEAD_BYTES 56 /* of a section, before its payload */

/* Header and section heads as bytes. -EINVAL: the id is too long. */
void stream_pack_header(uint8_t bytes[STREAM_HEADER_BYTES]);
int stream_pack_head(uint8_t bytes[STREAM_HEAD_BYTES], enum stream_kind kind, const char *id,
                     uint64_t length, uint32_t payload_crc);

/* ---- writing: to a descriptor, from where it stands; 0 or a negative errno of write(2) ---- */

int stream_write_header(int fd);
int stream_write_section(int fd, enum stream_kind kind, const char *id, const void *payload,
                         uint64_t length);

/* ---- reading ---- */

struct stream_reader {
    int fd;           /* borrowed */
    const char *name; /* for messages; borrowed */
    /* Reads exactly so many bytes, or logs and gives a negative errno. NULL: by read(2) from fd. */
    int (*fill)(const struct stream_reader *reader, void *data, uint64_t length);
};

/* 0, or, logged: -EBADMSG (not a stream, a checksum does not match), -EOPNOTSUPP (a version that is
 * not understood), -ENODATA (the file ends too early), of read(2). */
int stream_read_header(const struct stream_reader *reader);

/*
 * The next section; *payload is owned by the caller, never NULL, and has a NUL byte behind its end.
 * Errors as above; -EMSGSIZE: longer than STREAM_SECTION_MAX; -ENOMEM.
 */
int stream_read_section(const struct stream_reader *reader, struct stream_section *section,
                        void **payload);

/* The two halves of it: the head, with the payload's checksum, then its payload. */
int stream_read_head(const struct stream_reader *reader, struct stream_section *section,
                     uint32_t *payload_crc);
int stream_read_payload(const struct stream_reader *reader, const struct stream_section *section,
                        uint32_t payload_crc, void **payload);

/* CRC-32 as zlib and IEEE 802.3 have it, over one more piece. Begin with 0. */
uint32_t stream_crc(uint32_t crc, const void *data, uint64_t length);
/* The same by a way and those behind it, for what it leaves or the processor has not. For tests. */
enum stream_crc_way { STREAM_CRC_WIDE, STREAM_CRC_FOLDING, STREAM_CRC_TABLE };
uint32_t stream_crc_from(enum stream_crc_way way, uint32_t crc, const void *data, uint64_t length);

#endif
