/*
 * The side where a guest arrives: reads what it is, its memory, its state, the right to run it.
 *
 * Knows guest memory and a link, no KVM and no devices. The steps are called in their order, each
 * blocking, on any one thread at a time; target_cancel() by any. What the source sends is checked
 * before it is used, for it may be damaged or anybody's.
 *
 *   hello -> report -> receive -> (the machine loads the state) -> ready -> (it takes its disks) ->
 *   catch_up -> running -> follow
 *
 * Until ready() gave 0 the guest must not run here.
 */
#ifndef FERRY_MIGRATION_TARGET_H
#define FERRY_MIGRATION_TARGET_H

#include <stdbool.h>
#include <stdint.h>

#include "migration/link.h"
#include "migration/snapshot.h"
#include "vmm/memory.h"

struct target;

/* link is taken over, also on error. -ENOMEM. */
int target_create(struct target **out, struct link *link);
void target_destroy(struct target *target);
/* Where the source's further connections come, and from whom, as with link_accept(); both borrowed
 * until target_receive() ended. Without it there can be none. */
void target_set_door(struct target *target, int listen_fd, struct link_terms *terms);
void target_cancel(struct target *target);

/* -EOPNOTSUPP: the guest is to come in a way that this ferry does not know.
 * Reads what the guest is. hello is filled; *memory_fd is its memory itself, owned by the caller, or
 * -1: pages will come. Errors of stream.h and -ECONNRESET, -ETIMEDOUT; logged. */
int target_hello(struct target *target, struct snapshot *hello, int *memory_fd);

/* Answers by a JSON text. Errors of the link. */
int target_report(struct target *target, const char *json);

/* Reads pages into memory, which reads as zero before (NULL: none may come), and then the state.
 * -ECANCELED: the source gave up. Others as above; -EINVAL: pages that are not the guest's. */
int target_receive(struct target *target, struct guest_memory *mem, struct snapshot *state);

/*
 * Says that all of the guest is here and good, and waits for the right to run it. 0: it is ours.
 * -ECANCELED: the source keeps it. Others: nobody here can know whose it is.
 */
int target_ready(struct target *target);

/* What becomes of frames that reached the source when the guest was not there any more. */
struct target_follow_ops {
    /* For the NIC of that id; records that nobody has looked at yet. */
    void (*frames)(void *opaque, const char *nic, const void *records, size_t size);
    /* The source has sent all that came before the guest was announced here. */
    void (*settled)(void *opaque);
    /* When NICs had their first frames, as a JSON text, owned by the caller; NULL: not all had any.
     * late: there will be no other time to ask. */
    char *(*traffic)(void *opaque, bool late);
};

/* After ready() gave 0: takes what had come until then. Errors do not matter to the guest. */
void target_catch_up(struct target *target, const struct target_follow_ops *ops, void *opaque);
/* After running(): takes what comes still, until the source says that it was all, at most for
 * TARGET_FOLLOW_MS or so. */
#define TARGET_FOLLOW_MS 300
void target_follow(struct target *target, const struct target_follow_ops *ops, void *opaque);

/* Says that it runs, with a JSON text. */
int target_running(struct target *target, const char *json);

/* Whether it said a word already. */
bool target_has_answered(const struct target *target);
/* Says why this side gives up; not after target_running(). */
void target_refuse(struct target *target, const char *why);

struct target_status {
    uint64_t received_bytes; /* of pages */
    bool paused;             /* the guest was paused, and stays so */
    uint64_t stopped_ns;     /* loop_now_ns() when it heard that the guest stands still; 0: not yet */
    uint64_t go_ns;          /* ... and that it is ours; 0: not yet */
};
/* Any thread. */
void target_get_status(const struct target *target, struct target_status *status);

#endif
