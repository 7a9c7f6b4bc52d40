/*
 * A guest's memory out of a file at first touch: the guest runs at once, whatever its size.
 *
 * The pages that the file has are missing at first; whoever touches one, a vCPU, a device or the
 * kernel on behalf of either, sleeps until a thread of this module has brought its block. In between
 * the thread brings the others, so that after a while the file is not needed any more. The file is
 * only read. Its descriptor is the module's own.
 */
#ifndef FERRY_MIGRATION_LAZY_H
#define FERRY_MIGRATION_LAZY_H

#include "migration/snapshot.h"

struct lazy;

/*
 * From a snapshot that was read, into memory that nobody has touched. `lost` is called on the thread
 * of the module when a block cannot be brought, because it is damaged, cut off or unreadable (which
 * was logged, with its place): whoever sleeps for it can only be ended with the process. If it
 * returns, nothing more is brought.
 *
 * -EOPNOTSUPP: this host does not let us; logged with what would. -ENOENT, not logged: the file has no
 * checksums of blocks. Others as of snapshot_read_memory(); -ENOMEM.
 */
int lazy_start(struct lazy **out, const struct snapshot *snapshot,
               const struct stream_reader *reader, struct guest_memory *mem,
               void (*lost)(void *opaque), void *opaque);

/* Waits until all of it is there. 0; the error of a block that was lost; -ECANCELED when cancel_fd
 * becomes readable before (-1: never). Any thread. */
int lazy_wait(const struct lazy *lazy, int cancel_fd);

/* What was not brought reads as zero from here on, and counts as there: for memory that is about to be
 * cleared. Nobody uses it meanwhile. NULL is fine. */
void lazy_stop(struct lazy *lazy);
/* The same, and frees it. NULL is fine. */
void lazy_destroy(struct lazy *lazy);

#endif
