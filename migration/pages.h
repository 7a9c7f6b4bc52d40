/*
 * What a STREAM_PAGES section holds, for the two sides that write and read it (docs/STREAM.md).
 *
 * A head, then runs of pages that follow each other in the guest's memory, then the bytes of those
 * runs that are not zero, in the same order.
 */
#ifndef FERRY_MIGRATION_PAGES_H
#define FERRY_MIGRATION_PAGES_H

#include <stdint.h>

#define PAGES_SIZE 4096u
#define PAGES_BATCH 64u /* at most, in a section: with their bytes */
#define PAGES_RUNS 64u  /* at most, in a section */

/* On the wire; little-endian; frozen with version 1. */
struct wire_pages {
    uint32_t n_runs;
    uint32_t reserved; /* 0 */
} __attribute__((packed));
_Static_assert(sizeof(struct wire_pages) == 8, "docs/STREAM.md: pages");

#define PAGES_ZERO 1u /* the run is zero: no bytes of it follow */

struct wire_run {
    uint64_t gpa;
    uint32_t pages;
    uint32_t flags;
} __attribute__((packed));
_Static_assert(sizeof(struct wire_run) == 16, "docs/STREAM.md: pages");

#endif
