/*
 * The connections that pages go by: one, or several with a thread each.
 *
 * The first is the one on which all else is said; its work is done by the step's own thread, which
 * listens meanwhile whether the destination gives up. Which pages a lane carries is not decided here
 * (source_pages.c). Threads: as said; `lock` guards the list of lanes, because a cancellation may come
 * from any thread while they are made.
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "migration/source_internal.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

/* The destination wants to hear something within LINK_PATIENCE_MS. */
#define HEARTBEAT_NS (5 * SOURCE_NS_PER_S)
#define LOOK_NS (SOURCE_NS_PER_S / 20)

static int init_lane(struct source *s, struct lane *lane, unsigned index, struct link *link)
{
    *lane = (struct lane){.source = s, .index = index, .link = link};
    lane->batch.bytes = malloc(PAGES_BATCH_BYTES);
    if (s->config.compress != COMPRESS_NONE)
        lane->batch.packed = malloc(PAGES_BATCH_BYTES);
    if (!lane->batch.bytes || (s->config.compress != COMPRESS_NONE && !lane->batch.packed))
        return -ENOMEM;
    return compressor_create(&lane->compressor, s->config.compress);
}

static void fini_lane(struct lane *lane)
{
    free(lane->batch.bytes);
    free(lane->batch.packed);
    compressor_destroy(lane->compressor);
    if (lane->index > 0)
        link_destroy(lane->link);
}

int source_make_lanes(struct source *s)
{
    s->n_lanes = 1;
    return init_lane(s, &s->lanes[0], 0, s->link);
}

void source_destroy_lanes(struct source *s)
{
    for (unsigned i = 0; i < s->n_lanes; i++)
        fini_lane(&s->lanes[i]);
}

void source_cancel_lanes_locked(struct source *s)
{
    for (unsigned i = 0; i < s->n_lanes; i++)
        link_cancel(s->lanes[i].link);
}

int source_announce_lanes(struct source *s)
{
    struct wire_transfer transfer = {.streams = htole32(s->config.streams),
                                     .method = htole32(s->config.compress)};

    if (s->status.shared || (s->config.streams <= 1 && s->config.compress == COMPRESS_NONE))
        return 0;
    if (getrandom(s->token, sizeof(s->token), 0) != sizeof(s->token))
        return -EIO;
    memcpy(transfer.token, s->token, sizeof(transfer.token));
    return link_send(s->link, STREAM_TRANSFER, "", &transfer, sizeof(transfer));
}

_Static_assert(LINK_MAX_WATCHED >= PAGES_MAX_STREAMS - 1, "the first watches all others");

/* Takes the link over. */
static int add_lane(struct source *s, struct link *link)
{
    unsigned index = s->n_lanes;
    struct wire_join join = {.index = htole32(index)};
    int err = init_lane(s, &s->lanes[index], index, link);

    if (err) {
        fini_lane(&s->lanes[index]);
        return err;
    }
    pthread_mutex_lock(&s->lock);
    s->n_lanes++;
    if (s->cancelled)
        link_cancel(link);
    pthread_mutex_unlock(&s->lock);
    memcpy(join.token, s->token, sizeof(join.token));
    err = link_watch(s->link, link);
    if (!err)
        err = link_send_header(link);
    return err ? err : link_send(link, STREAM_JOIN, "", &join, sizeof(join));
}

int source_open_lanes(struct source *s)
{
    int err = 0;

    while (!err && s->n_lanes < s->config.streams) {
        struct link *link;

        err = s->ops->connect(s->opaque, &link);
        if (!err)
            err = add_lane(s, link);
    }
    return err;
}

/* ---- working ---- */

struct errand {
    struct lane *lane;
    int (*work)(struct lane *lane);
    pthread_t thread;
    bool begun;
};

static void *run_errand(void *arg)
{
    struct errand *e = arg;
    struct source *s = e->lane->source;
    int err = e->work(e->lane);

    if (err && err != -ECANCELED && err != -ECONNABORTED)
        log_error("a connection to the destination is lost: %s", strerror(-err));
    pthread_mutex_lock(&s->lock);
    e->lane->err = err;
    s->working--;
    if (err)
        atomic_store_explicit(&s->lane_failed, true, memory_order_relaxed);
    pthread_cond_signal(&s->lane_done);
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* No pages: a sign of life on the first connection, whose reader has not heard for long. */
static int send_heartbeat(struct source *s)
{
    static const struct wire_pages none = {0};

    return link_send(s->link, STREAM_PAGES, "", &none, sizeof(none));
}

int source_wait_until(struct lane *lane, uint64_t due_ns)
{
    struct source *s = lane->source;
    int err = 0;

    for (;;) {
        uint64_t now = loop_now_ns();
        uint64_t left = due_ns > now ? due_ns - now : 0;

        if (err || left == 0)
            return err;
        err = link_wait(lane->link, left < HEARTBEAT_NS ? left : HEARTBEAT_NS);
        if (!err && left > HEARTBEAT_NS && lane->index == 0)
            err = send_heartbeat(s);
    }
}

/* Waits a while for the other lanes. -EAGAIN: they are not done yet; -ECONNABORTED: one failed. */
static int await_some(struct source *s)
{
    struct timespec until;
    int err = 0;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += LOOK_NS;
    until.tv_sec += until.tv_nsec / (long)SOURCE_NS_PER_S;
    until.tv_nsec %= (long)SOURCE_NS_PER_S;
    pthread_mutex_lock(&s->lock);
    while (!err && s->working > 0 && !atomic_load_explicit(&s->lane_failed, memory_order_relaxed))
        err = -pthread_cond_clockwait(&s->lane_done, &s->lock, CLOCK_MONOTONIC, &until);
    err = s->working > 0 ? -EAGAIN : 0;
    pthread_mutex_unlock(&s->lock);
    return atomic_load_explicit(&s->lane_failed, memory_order_relaxed) ? -ECONNABORTED : err;
}

/* The first lane's work is done: the others' may take a while yet. */
static int await_others(struct source *s)
{
    uint64_t told = loop_now_ns();
    int err;

    while ((err = await_some(s)) == -EAGAIN) {
        err = source_look_for_abort(s);
        if (!err && loop_now_ns() - told > HEARTBEAT_NS) {
            err = send_heartbeat(s);
            told = loop_now_ns();
        }
        if (err)
            return err;
    }
    return err;
}

/* What the step ended with: what a lane says that gave up for another's sake is not the cause. */
static int settle(struct source *s, int err)
{
    int why;

    if (err != -ECONNABORTED)
        return err;
    for (unsigned i = 1; i < s->n_lanes; i++)
        if (s->lanes[i].err && s->lanes[i].err != -ECANCELED && s->lanes[i].err != -ECONNABORTED)
            err = s->lanes[i].err;
    why = source_look_for_abort(s); /* perhaps the destination hung up, and says why */
    return why == -EREMOTEIO ? why : err;
}

static int begin_errands(struct source *s, struct errand *errands, int (*work)(struct lane *))
{
    int err = 0;

    for (unsigned i = 1; !err && i < s->n_lanes; i++) {
        errands[i] = (struct errand){.lane = &s->lanes[i], .work = work};
        pthread_mutex_lock(&s->lock);
        err = -pthread_create(&errands[i].thread, NULL, run_errand, &errands[i]);
        s->working += !err;
        pthread_mutex_unlock(&s->lock);
        errands[i].begun = !err;
    }
    return err;
}

int source_run_lanes(struct source *s, int (*work)(struct lane *lane))
{
    struct errand errands[PAGES_MAX_STREAMS] = {0};
    int err = begin_errands(s, errands, work);

    if (!err)
        err = work(&s->lanes[0]);
    if (!err)
        err = await_others(s);
    if (err) {
        atomic_store_explicit(&s->lane_failed, true, memory_order_relaxed);
        for (unsigned i = 1; i < s->n_lanes; i++)
            link_cancel(s->lanes[i].link);
    }
    for (unsigned i = 1; i < s->n_lanes; i++)
        if (errands[i].begun)
            pthread_join(errands[i].thread, NULL);
    return settle(s, err);
}

int source_end_lanes(struct source *s)
{
    int err = 0;

    for (unsigned i = 1; !err && i < s->n_lanes; i++)
        err = link_send(s->lanes[i].link, STREAM_END, "", "", 0);
    return err;
}
