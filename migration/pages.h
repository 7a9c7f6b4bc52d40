/*
 * What a STREAM_PAGES section holds, for the two sides that write and read it (docs/STREAM.md).
 *
 * A head, then runs of pages that follow each other in the guest's memory, then the bytes of those
 * runs that are not zero, in the same order.
 */
#ifndef FERRY_MIGRATION_PAGES_H
#define FERRY_MIGRATION_PAGES_H

#include <stdint.h>

#include "migration/compress.h"

#define PAGES_SIZE 4096u
#define PAGES_BATCH 64u /* at most, in a section: with their bytes */
#define PAGES_RUNS 64u  /* at most, in a section */

/* On the wire; little-endian; frozen with version 1. */
struct wire_pages {
    uint32_t n_runs;
    uint32_t method; /* 0 in STREAM_PAGES */
} __attribute__((packed));
_Static_assert(sizeof(struct wire_pages) == 8, "docs/STREAM.md: pages");

/* In a STREAM_PACKED section the second word of the head says how the bytes are compressed: a number of
 * enum compress_method. All of them are one piece. */

#define PAGES_BATCH_BYTES (PAGES_BATCH * PAGES_SIZE)

#define PAGES_ZERO 1u /* the run is zero: no bytes of it follow */

struct wire_run {
    uint64_t gpa;
    uint32_t pages;
    uint32_t flags;
} __attribute__((packed));
_Static_assert(sizeof(struct wire_run) == 16, "docs/STREAM.md: pages");

/* ---- several connections ---- */

#define PAGES_MAX_STREAMS 16u
#define PAGES_TOKEN_BYTES 16u

/* STREAM_TRANSFER: how pages will come; only when it is not by one connection, uncompressed. */
struct wire_transfer {
    uint32_t streams; /* connections, the first one included */
    uint32_t method;  /* enum compress_method */
    uint8_t token[PAGES_TOKEN_BYTES]; /* that the further connections show */
} __attribute__((packed));
_Static_assert(sizeof(struct wire_transfer) == 24, "docs/STREAM.md: transfer");

/* STREAM_JOIN: the first section of a further connection. */
struct wire_join {
    uint32_t index; /* from 1 on */
    uint32_t reserved; /* 0 */
    uint8_t token[PAGES_TOKEN_BYTES];
} __attribute__((packed));
_Static_assert(sizeof(struct wire_join) == 24, "docs/STREAM.md: join");

#endif
