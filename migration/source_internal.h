/*
 * What the files of the side that a guest leaves share: source.c (the steps), source_rounds.c (how
 * often memory is gone through), source_pages.c (which pages are sent, and how).
 */
#ifndef FERRY_MIGRATION_SOURCE_INTERNAL_H
#define FERRY_MIGRATION_SOURCE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "migration/pages.h"
#include "migration/source.h"

#define SOURCE_NS_PER_S 1000000000ull
#define SOURCE_WORD_BITS 64u
#define SOURCE_CHUNK 1024u /* pages that are cleared at once in the log */

/* One region's pages, a bit each. */
struct region_bits {
    uint64_t *todo;  /* owns: to be sent */
    uint64_t *fresh; /* owns: for what the log says */
    uint64_t *there; /* owns: the destination's page is not zero */
    uint16_t *left;  /* owns: bits of todo, by chunks; in all memory they are looked for by these. Of a
                      * chunk that was untouched up to now: no more than that there are some */
    bool *untouched; /* owns: chunks that the file has nothing of, and the log was not begun for */
    uint64_t pages, words, chunks;
};

/* The section that is being filled. */
struct batch {
    struct wire_pages head;
    struct wire_run runs[PAGES_RUNS];
    unsigned n_runs, n_pages;
    uint8_t *bytes;  /* owns: PAGES_BATCH_BYTES */
    uint8_t *packed; /* owns: as many; NULL: nothing is compressed */
};

/* One connection that carries pages, and the thread's work that fills it. */
struct lane {
    struct source *source;
    unsigned index;
    struct link *link; /* the source's, for the first; owns the others */
    struct batch batch;
    struct compressor *compressor; /* owns; NULL: none */
    /* Pages, in this round: none of the memfd's holes is before it; the first that a look for chunks
     * that are untouched came upon. */
    uint64_t data_until[MEMORY_MAX_REGIONS], data_from[MEMORY_MAX_REGIONS];
    uint64_t zero_pages; /* not counted in status yet */
    int err;             /* its thread's; read after that was joined */
};

struct source {
    struct link *link; /* owns */
    bool header_heard; /* from there */
    struct guest_memory *mem;
    const struct source_ops *ops;
    void *opaque;
    struct source_config config;
    struct region_bits regions[MEMORY_MAX_REGIONS];
    unsigned n_regions;
    struct lane lanes[PAGES_MAX_STREAMS];
    unsigned n_lanes; /* written under `lock` */
    uint8_t token[PAGES_TOKEN_BYTES];
    atomic_bool lane_failed; /* the others need not go on */
    unsigned working;        /* lanes' threads that are not done; guarded by `lock` */
    pthread_cond_t lane_done;
    bool logging;
    bool stopped;   /* no limit to the rate any more */
    uint64_t begun_ns, stopping_ns;
    char *reason;   /* owns */
    char *traffic; /* owns: what the destination said of it */
    bool follows;  /* the destination takes frames that came late */
    pthread_mutex_t lock;
    uint64_t budget_from_ns, budget_bytes; /* for the limit to the rate */
    uint64_t round_from_ns, round_pages;   /* when a round began, and status.pages then; 0: none did */
    struct source_status status;
    bool given_away, cancelled;
};

/* ---- source.c ---- */

/* It says nothing while pages come but that it gives up, or it hangs up. -EREMOTEIO: it gave up. */
int source_look_for_abort(struct source *s);
/* Sending failed with err: perhaps it said why before it hung up. What to go on with. */
int source_lost(struct source *s, int err);

/* ---- source_rounds.c ---- */

/* Rounds while the guest runs, as source_copy() has it, with the log of its writes begun. */
int source_run_rounds(struct source *s);
void source_stop_logging(struct source *s);
/* In the midst of a round: the rate of its own pages, and what follows from that. Under `lock`. */
void source_estimate_locked(const struct source *s, struct source_status *status);

/* ---- source_pages.c ---- */

/* Room for the bits of each region, all of whose pages are to be sent. -ENOMEM. */
int source_mark_all(struct source *s);
void source_free_bits(struct source *s);
/* Adds to what is to be sent what was written since it was cleared, by the guest and by us. How many
 * pages that makes, or an error. */
int64_t source_collect(struct source *s);
/* Sends what is to be sent. The log is cleared first, and only then a page is read: also to see that
 * it was never touched. */
int source_send_todo(struct source *s);

/* ---- source_lanes.c ---- */

/* The first lane, and what is to be known of all of them before the hello. -ENOMEM. */
int source_make_lanes(struct source *s);
/* Says in the hello how pages will come, unless that is the plain way. */
int source_announce_lanes(struct source *s);
/* The further connections. */
int source_open_lanes(struct source *s);
/* Runs `work` for each lane at a time, the first one's on this thread; the first error. */
int source_run_lanes(struct source *s, int (*work)(struct lane *lane));
/* Says on the further connections that no more pages come. */
int source_end_lanes(struct source *s);
void source_cancel_lanes_locked(struct source *s);
void source_destroy_lanes(struct source *s);
/* Waits until due_ns, in sight of the destination. */
int source_wait_until(struct lane *lane, uint64_t due_ns);

#endif
