/*
 * The side that a guest leaves: pre-copy, the rest of its memory and its state, the hand-over.
 *
 * Knows guest memory and a link, no KVM and no devices: the dirty log and the brake on the vCPUs are
 * operations of the machine, the state comes as sections. The steps are called in their order, each
 * blocking, each on any one thread; source_cancel() and source_get_status() on any at any time.
 *
 *   introduce -> [check only: the end] -> copy -> (the machine stops the guest) -> finish ->
 *   (the machine lets its disks go) -> hand_over -> follow
 *
 * At any error before hand_over() the guest belongs to this side. Of hand_over() itself the result
 * says whose it is.
 */
#ifndef FERRY_MIGRATION_SOURCE_H
#define FERRY_MIGRATION_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

#include "migration/compress.h"
#include "migration/link.h"
#include "migration/snapshot.h"
#include "vmm/memory.h"

/* What the machine does for the source, on the thread that calls a step; log_clear on those of its
 * connections, too, for pages of their own. */
struct source_ops {
    /* From now on the guest's writes are logged. The log may begin with every page in it: each is
     * cleared before it is sent for the first time. */
    int (*log_start)(void *opaque);
    void (*log_stop)(void *opaque);
    /* Fills a bit for each page of the region: written since it was cleared last. */
    int (*log_get)(void *opaque, unsigned region, uint64_t *bitmap);
    /* Clears the pages of [first, first + pages) whose bits are set in `bits`, whose bit 0 is first;
     * first is a multiple of 64, and so is pages, but at the region's end. */
    int (*log_clear)(void *opaque, unsigned region, uint64_t first, uint64_t pages,
                     const uint64_t *bits);
    /* Lets the vCPUs rest for so many of 100 parts of the time. 0: not at all. */
    void (*throttle)(void *opaque, unsigned percent);
    /* A further connection to the same destination, for config.streams > 1. */
    int (*connect)(void *opaque, struct link **out);
    /* Frames that came for a NIC since the guest was stopped, as whole records (docs/STREAM.md): fills
     * `to`, sets the NIC's id, returns the bytes. 0: there are none now. Not called before the right
     * to run was given away. NULL: there is no network. */
    size_t (*take_frames)(void *opaque, char id[STREAM_ID_MAX], void *to, size_t size);
    /* Returns when frames that have come by now can be taken, or after a moment. NULL with the one
     * above. */
    void (*settle_frames)(void *opaque);
};

struct source_config {
    uint64_t downtime_ns; /* that the guest may stand still */
    uint64_t timeout_ns;  /* after which it is stopped all the same, or given up */
    uint64_t bandwidth;   /* bytes a second while the guest runs; 0: no limit */
    unsigned throttle_max; /* percent; 0: the guest is never slowed */
    bool give_up;         /* at the timeout: do not stop it, but let it run on here */
    unsigned streams;     /* connections that pages go by, at most PAGES_MAX_STREAMS; 0 is 1 */
    enum compress_method compress; /* of pages */
    bool share_memory;    /* hand the memory itself over, by a unix link */
};

enum source_phase {
    SOURCE_CONNECTING, /* until the destination has answered */
    SOURCE_COPYING,
    SOURCE_STOPPED,    /* the guest stands still */
    SOURCE_HANDING_OVER,
    SOURCE_COMPLETED,  /* it runs at the destination */
    SOURCE_CHECKED,    /* it could; nothing else was asked */
    SOURCE_FAILED,     /* it runs on here */
    SOURCE_IN_DOUBT,   /* nobody here can know; it stands still */
};

struct source_status {
    enum source_phase phase;
    unsigned rounds;
    unsigned throttle;       /* percent, now */
    uint64_t elapsed_ns;
    uint64_t sent_bytes;     /* of pages, with what frames them */
    uint64_t pages;          /* sent, with repetitions */
    uint64_t zero_pages;     /* not sent, with repetitions */
    uint64_t remaining_bytes;
    uint64_t rate;           /* bytes of pages a second, in this round; before it tells, in the last */
    uint64_t dirty_rate;     /* bytes a second of the last round */
    uint64_t estimate_ns;    /* of the downtime, if it were stopped now */
    uint64_t downtime_ns;    /* from source_stopping() to the word that it runs */
    uint64_t peer_downtime_ns; /* as the destination measured it; 0: it did not say */
    bool shared;             /* memory was handed over, not copied */
    uint64_t go_ns;          /* loop_now_ns() when the right to run was given away; 0: not yet */
    uint64_t transit_ns;     /* that its word took, as half of a round trip; 0: not known */
};

struct source;

/* mem, ops and opaque are borrowed; link is taken over, also on error. -ENOMEM. */
int source_create(struct source **out, struct link *link, struct guest_memory *mem,
                  const struct source_ops *ops, void *opaque, const struct source_config *config);
void source_destroy(struct source *source);

/*
 * Sends what the guest is, and gets what the destination makes of it: *report, a text owned by the
 * caller. hello: sections, STREAM_HELLO first. 0, errors of the link, -EBADMSG, -ENOTCONN (it hung up
 * before it said a word), -EREMOTEIO (it gave up; logged with its reason).
 */
int source_introduce(struct source *source, const struct snapshot *hello, char **report);

/* Sends memory while the guest runs, until what is left fits the downtime or time is over. 0: stop
 * the guest; -ETIMEDOUT: it would not fit, and that was not wanted; others as above. */
int source_copy(struct source *source);

/* The downtime begins; call before the guest is stopped. */
void source_stopping(struct source *source);

/* The guest stands still, state is all of it but the memory. Sends the rest; returns 0 when the
 * destination has all of it and found it good. paused: it is not to run there either. */
int source_finish(struct source *source, const struct snapshot *state, bool paused);

/*
 * Gives the right to run away. 0: the guest runs there. -EINPROGRESS: nobody here can know.
 * Others: it does not run there, and will not.
 */
int source_hand_over(struct source *source);

/* After that gave 0: sends the guest what still comes for it here, until the destination has seen it
 * send or receive by itself, at most for SOURCE_FOLLOW_MS. Cannot fail: the guest is not ours. */
#define SOURCE_FOLLOW_MS 1000
void source_follow(struct source *source);
/* What the destination said of its NICs' first frames, a JSON text, or NULL; borrowed. */
const char *source_traffic(const struct source *source);

/* Ends the step that is under way with -ECANCELED. -EALREADY: the right to run was given away. */
int source_cancel(struct source *source);
void source_get_status(struct source *source, struct source_status *status);
/* What the destination said when it gave up, or NULL; borrowed. After a step ended. */
const char *source_reason(const struct source *source);

#endif
