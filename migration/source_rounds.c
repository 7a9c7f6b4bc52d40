/*
 * Pre-copy: rounds through memory while the guest runs, and when they are enough.
 *
 * Measures how fast pages leave and how fast the guest writes others, slows a guest that is too fast,
 * and ends when what is left fits the downtime. Which pages those are is not its matter
 * (source_pages.c). Threads: that of the step (source.h). `lock` guards `status`; a leaf.
 */
#include <errno.h>

#include "migration/source_internal.h"
#include "vmm/util/loop.h"

#define MAX_ROUNDS 1000u
/* What stopping and resuming takes beside the memory, as far as one can tell before. */
#define FIXED_NS 3000000ull
#define RATE_MIN_BYTES (1ull << 20) /* a round of fewer bytes tells no rate ... */
#define RATE_MIN_NS 100000000ull    /* ... but in its midst one that takes so long does, to who looks on */
#define THROTTLE_FIRST 20u
#define THROTTLE_STEP 10u

void source_stop_logging(struct source *s)
{
    if (!s->logging)
        return;
    s->ops->throttle(s->opaque, 0);
    s->ops->log_stop(s->opaque);
    memory_dirty_stop(s->mem);
    s->logging = false;
}

static int start_logging(struct source *s)
{
    int err = source_mark_all(s);

    if (!err)
        err = memory_dirty_start(s->mem);
    if (err)
        return err;
    s->logging = true;
    return s->ops->log_start(s->opaque);
}

static double rate_of(uint64_t bytes, uint64_t ns)
{
    return (double)bytes * SOURCE_NS_PER_S / (double)(ns ? ns : 1);
}

static void estimate(struct source_status *status)
{
    if (status->rate == 0)
        status->rate = 1;
    status->estimate_ns = FIXED_NS + (uint64_t)((double)status->remaining_bytes * SOURCE_NS_PER_S /
                                                (double)status->rate);
}

void source_estimate_locked(const struct source *s, struct source_status *status)
{
    uint64_t bytes = (status->pages - s->round_pages) * PAGES_SIZE;
    uint64_t ns = loop_now_ns() - s->round_from_ns;

    if (s->round_from_ns == 0 || status->phase != SOURCE_COPYING)
        return;
    if (bytes >= RATE_MIN_BYTES || (bytes > 0 && ns >= RATE_MIN_NS))
        status->rate = (uint64_t)rate_of(bytes, ns);
    estimate(status);
}

/* The figures of the round, which left `pages`. */
static void measure(struct source *s, uint64_t pages)
{
    uint64_t ns = loop_now_ns() - s->round_from_ns;
    uint64_t bytes = (s->status.pages - s->round_pages) * PAGES_SIZE;

    pthread_mutex_lock(&s->lock);
    if (bytes >= RATE_MIN_BYTES)
        s->status.rate = (uint64_t)rate_of(bytes, ns);
    s->status.dirty_rate = (uint64_t)rate_of(pages * PAGES_SIZE, ns);
    s->status.remaining_bytes = pages * PAGES_SIZE;
    s->status.rounds++;
    estimate(&s->status);
    pthread_mutex_unlock(&s->lock);
}

/* A guest that leaves as much to do as before is slowed, a step a round. */
static void slow_down(struct source *s, uint64_t before, uint64_t after)
{
    unsigned percent = s->status.throttle;

    if (s->config.throttle_max == 0 || s->status.rounds < 2 || after * 10 < before * 7)
        return;
    percent = percent ? percent + THROTTLE_STEP : THROTTLE_FIRST;
    if (percent > s->config.throttle_max)
        percent = s->config.throttle_max;
    if (percent == s->status.throttle)
        return;
    pthread_mutex_lock(&s->lock);
    s->status.throttle = percent;
    pthread_mutex_unlock(&s->lock);
    s->ops->throttle(s->opaque, percent);
}

/* One round; the pages that are left after it, or an error. */
static int64_t run_round(struct source *s)
{
    int64_t left;
    int err;

    pthread_mutex_lock(&s->lock);
    s->round_from_ns = loop_now_ns();
    s->round_pages = s->status.pages;
    pthread_mutex_unlock(&s->lock);
    err = source_send_todo(s);
    if (err)
        return err;
    left = source_collect(s);
    if (left >= 0)
        measure(s, (uint64_t)left);
    return left;
}

int source_run_rounds(struct source *s)
{
    uint64_t before = memory_size(s->mem) / PAGES_SIZE;
    int err = start_logging(s);

    if (err)
        return err;
    s->budget_from_ns = loop_now_ns();
    for (;;) {
        int64_t left = run_round(s);

        if (left < 0)
            return (int)left;
        if (s->status.estimate_ns <= s->config.downtime_ns)
            return 0;
        if (loop_now_ns() - s->begun_ns >= s->config.timeout_ns || s->status.rounds >= MAX_ROUNDS)
            return s->config.give_up ? -ETIMEDOUT : 0;
        slow_down(s, before, (uint64_t)left);
        before = (uint64_t)left;
    }
}
