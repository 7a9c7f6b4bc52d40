/*
 * A guest in a file: its state in sections, its memory behind them as a sparse image.
 *
 * Knows guest memory and bytes, no devices: what the machine is and what its devices hold comes and
 * goes as sections that the machine fills and reads (vmm/machine_save.c). Blocking; one thread at a
 * time per object, not the event loop's while a guest runs.
 */
#ifndef FERRY_MIGRATION_SNAPSHOT_H
#define FERRY_MIGRATION_SNAPSHOT_H

#include <stdint.h>

#include "migration/stream.h"
#include "vmm/memory.h"
#include "vmm/util/state.h"

struct snapshot_section {
    struct stream_section head;
    void *payload; /* owns */
};

/* The sections of a guest in the order in which they were added or read. Zero-initialised: none. */
struct snapshot {
    struct snapshot_section *sections; /* owns */
    unsigned n_sections;
};
void snapshot_fini(struct snapshot *snapshot);

/* Adds a copy. 0, -ENOMEM, -EINVAL (the id is too long). */
int snapshot_add(struct snapshot *snapshot, enum stream_kind kind, const char *id,
                 const void *payload, uint64_t length);
/* The section of that kind and id, or NULL. id NULL: the first of the kind. */
const struct snapshot_section *snapshot_find(const struct snapshot *snapshot,
                                             enum stream_kind kind, const char *id);

/* What was written, for the person. */
struct snapshot_summary {
    uint64_t pages;   /* 4 KiB each, that were written */
    uint64_t skipped; /* zero, or never touched */
};

/*
 * Writes sections and memory to `path`: first into a temporary file beside it, which takes its name
 * only when all is on the disk. The guest must not run, and no device may write its memory. On error,
 * logged, path is as it was.
 */
int snapshot_write(const struct snapshot *snapshot, const struct guest_memory *mem,
                   const char *path, struct snapshot_summary *summary);

/* Reads and verifies the sections of a file that is open for reading. Errors of stream.h, logged. */
int snapshot_read(struct snapshot *snapshot, const struct stream_reader *reader);

/* Fills guest memory, which must read as zero, from the file behind a snapshot that was read.
 * -EINVAL: another layout; -EBADMSG: damaged; -ENODATA: truncated; logged. */
int snapshot_read_memory(const struct snapshot *snapshot, const struct stream_reader *reader,
                         struct guest_memory *mem);

#endif
