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
    uint64_t pages;   /* 4 KiB each, that are in the file */
    uint64_t skipped; /* zero, or never touched */
    uint64_t written; /* times that one was written: more than pages, if the guest ran meanwhile */
};

/* Bytes that the sections take in a file. */
uint64_t snapshot_bytes(const struct snapshot *snapshot);

/*
 * Writes sections and memory to `path`: first into a temporary file beside it, which takes its name
 * only when all is on the disk. The guest must not run, and no device may write its memory. On error,
 * logged, path is as it was.
 */
int snapshot_write(const struct snapshot *snapshot, const struct guest_memory *mem,
                   const char *path, struct snapshot_summary *summary);

/*
 * The same in steps, so that memory can be written while the guest runs, and again what it changed.
 * One thread at a time. The file has no name before the last step, if the file system can do that,
 * else a temporary one. Errors of open(2), pwrite(2) and so on; -EEXIST: at the path is something that is
 * no saved guest and no empty file, and stays.
 */
struct snapshot_writer;
/* state_bytes: what snapshot_bytes() will at most be in the end. mem is borrowed. Errors are logged. */
int snapshot_writer_create(struct snapshot_writer **out, const char *path,
                           const struct guest_memory *mem, uint64_t state_bytes);
/* Leaves nothing behind of what was not finished. NULL is fine. */
void snapshot_writer_destroy(struct snapshot_writer *writer);
/* Takes pages as they are now: of [first, first + pages) of a region, those whose bits are set in
 * `bits`, in which bit 0 is the region's first page; NULL: all. Not logged. */
int snapshot_writer_put(struct snapshot_writer *writer, unsigned region, uint64_t first,
                        uint64_t pages, const uint64_t *bits);
/* Times that a page was written so far. */
uint64_t snapshot_writer_written(const struct snapshot_writer *writer);
/* Brings what was written to the disk, so that the last step has less to. Not logged. */
int snapshot_writer_sync(struct snapshot_writer *writer);
/* The sections; then the file is on the disk and has its name. -EFBIG: they take more than
 * state_bytes. Logged. */
int snapshot_writer_finish(struct snapshot_writer *writer, const struct snapshot *snapshot,
                           struct snapshot_summary *summary);

/* Reads and verifies the sections of a file that is open for reading. Errors of stream.h, logged. */
int snapshot_read(struct snapshot *snapshot, const struct stream_reader *reader);

/* Fills guest memory, which must read as zero, from the file behind a snapshot that was read.
 * -EINVAL: another layout; -EBADMSG: damaged; -ENODATA: truncated; logged. */
int snapshot_read_memory(const struct snapshot *snapshot, const struct stream_reader *reader,
                         struct guest_memory *mem);

/* Bytes of memory that have a checksum of their own in the file. */
#define SNAPSHOT_BLOCK 65536ull

/* Where the pages of a region lie in the file; pointers are borrowed from the snapshot. */
struct snapshot_image {
    uint64_t offset;       /* in the file, of the region's first page */
    const uint8_t *bitmap; /* a bit for each page: it is in the file */
    uint64_t bitmap_bytes;
    const uint8_t *sums;   /* 4 bytes each, little-endian: the CRC of a block's pages in the file */
    uint64_t blocks;
};
/* Of a snapshot that was read. Errors as of snapshot_read_memory(); -ENOENT, not logged: the file has no
 * checksums of blocks, being of an earlier ferry. */
int snapshot_find_image(const struct snapshot *snapshot, const struct stream_reader *reader,
                        const struct memory_region *region, unsigned index,
                        struct snapshot_image *image);

#endif
