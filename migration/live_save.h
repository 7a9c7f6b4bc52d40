/*
 * A guest into a file while it runs: its memory in rounds, as a migration sends it, then, with the guest
 * stopped, the rest and its state. The file is the one that snapshot.h describes.
 *
 *   create -> copy -> (the machine stops the guest) -> finish
 *
 * Each step blocks, on any one thread. Until finish() has returned 0 the file has no name, and the guest is
 * to run on whatever went wrong.
 */
#ifndef FERRY_MIGRATION_LIVE_SAVE_H
#define FERRY_MIGRATION_LIVE_SAVE_H

#include "migration/snapshot.h"
#include "migration/source.h"

struct live_save;

struct live_save_config {
    const char *path;
    uint64_t downtime_ns; /* that the guest should stand still at most */
    int cancel_fd;        /* borrowed: readable: the step under way ends with -ECANCELED; or -1 */
};

/* mem, ops (but for the brake) and opaque are borrowed. Errors of snapshot_writer_create(), logged. */
int live_save_create(struct live_save **out, struct guest_memory *mem, const struct source_ops *ops,
                     void *opaque, const struct live_save_config *config);
/* Leaves nothing behind of what was not finished. NULL is fine. */
void live_save_destroy(struct live_save *save);

/* Writes memory while the guest runs, until the rest fits the downtime, or until going on would not make
 * it less. 0: stop the guest. Errors of pwrite(2) and fdatasync(2), logged; -ECANCELED. */
int live_save_copy(struct live_save *save);
/* The guest stands still. 0: all of it is in the file, which is on the disk and has its name. Errors as
 * above. */
int live_save_finish(struct live_save *save, const struct snapshot *state,
                     struct snapshot_summary *summary);
/* Of those that were copied. */
unsigned live_save_rounds(const struct live_save *save);

#endif
