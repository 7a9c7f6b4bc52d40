/*
 * What the files of the side that a guest leaves share: source.c (the steps), source_rounds.c (how
 * often memory is gone through), source_pages.c (which pages are sent, and how).
 */
#ifndef FERRY_MIGRATION_SOURCE_INTERNAL_H
#define FERRY_MIGRATION_SOURCE_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "migration/pages.h"
#include "migration/source.h"

#define SOURCE_NS_PER_S 1000000000ull
#define SOURCE_WORD_BITS 64u
#define SOURCE_BATCH_BYTES (PAGES_BATCH * PAGES_SIZE)

/* One region's pages, a bit each. */
struct region_bits {
    uint64_t *todo;  /* owns: to be sent */
    uint64_t *fresh; /* owns: for what the log says */
    uint64_t *there; /* owns: the destination's page is not zero */
    uint64_t pages, words;
    uint64_t data_until; /* page: none of the memfd's holes is before it, in this round */
};

/* The section that is being filled. */
struct batch {
    struct wire_pages head;
    struct wire_run runs[PAGES_RUNS];
    unsigned n_runs, n_pages;
    uint8_t *bytes; /* owns: SOURCE_BATCH_BYTES */
};

struct source {
    struct link *link; /* owns */
    struct guest_memory *mem;
    const struct source_ops *ops;
    void *opaque;
    struct source_config config;
    struct region_bits regions[MEMORY_MAX_REGIONS];
    unsigned n_regions;
    struct batch batch;
    bool logging;
    bool stopped;   /* no limit to the rate any more */
    uint64_t begun_ns, stopping_ns;
    uint64_t zero_pages; /* as in status, which follows it */
    uint64_t budget_from_ns, budget_bytes; /* for the limit to the rate */
    char *reason;   /* owns */
    pthread_mutex_t lock;
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

#endif
