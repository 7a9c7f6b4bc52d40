/*
 * The connections that pages come by: one, or several with a thread each.
 *
 * The first is the one that the guest was announced on. Further ones come to the same door and show
 * the token that was announced; whoever has not got it is hung up on. A lane that fails ends the
 * others and the wait on the first. Threads: as said; `lock` guards the list of lanes, because a
 * cancellation may come from any thread.
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "migration/target_internal.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define NS_PER_MS 1000000ull
/* For one who connects to say who it is; others wait meanwhile. */
#define JOIN_PATIENCE_MS 3000

int target_take_transfer(struct target *t, const struct stream_section *section, uint32_t crc)
{
    struct wire_transfer *transfer;
    void *payload;
    int err;

    if (section->length != sizeof(*transfer) || t->streams > 0)
        return target_damaged(t, "what it says of its connections makes no sense");
    err = stream_read_payload(link_reader(t->link), section, crc, &payload);
    if (err)
        return err;
    transfer = payload;
    t->streams = le32toh(transfer->streams);
    t->method = (enum compress_method)le32toh(transfer->method);
    memcpy(t->token, transfer->token, sizeof(t->token));
    free(payload);
    if (t->streams >= 1 && t->streams <= PAGES_MAX_STREAMS && t->method < COMPRESS_METHODS)
        return 0;
    log_error("%s: wants to send by %u connections, compressed by method %u: this ferry takes %u, "
              "and knows methods below %u", link_reader(t->link)->name, t->streams,
              (unsigned)t->method, PAGES_MAX_STREAMS, COMPRESS_METHODS);
    t->streams = 1;
    t->method = COMPRESS_NONE;
    return -EOPNOTSUPP;
}

static int init_lane(struct target *t, struct target_lane *lane, struct link *link,
                     struct guest_memory *mem)
{
    *lane = (struct target_lane){.target = t, .link = link, .mem = mem};
    lane->bytes = malloc(PAGES_BATCH_BYTES);
    if (t->method != COMPRESS_NONE)
        lane->unpacked = malloc(PAGES_BATCH_BYTES);
    if (!lane->bytes || (t->method != COMPRESS_NONE && !lane->unpacked))
        return -ENOMEM;
    return compressor_create(&lane->compressor, t->method);
}

static void fini_lane(struct target_lane *lane)
{
    free(lane->bytes);
    free(lane->unpacked);
    compressor_destroy(lane->compressor);
    if (lane->link != lane->target->link)
        link_destroy(lane->link);
}

void target_destroy_lanes(struct target *t)
{
    for (unsigned i = 0; i < t->n_lanes; i++)
        fini_lane(&t->lanes[i]);
    t->n_lanes = 0;
}

/* ---- who comes ---- */

/* Takes the link over. */
static int add_lane(struct target *t, struct link *link, struct guest_memory *mem)
{
    struct target_lane *lane = &t->lanes[t->n_lanes];
    int err = init_lane(t, lane, link, mem);

    if (err) {
        fini_lane(lane);
        return err;
    }
    pthread_mutex_lock(&t->lock);
    t->n_lanes++;
    if (t->cancelled)
        link_cancel(link);
    pthread_mutex_unlock(&t->lock);
    return 0;
}

/* Whether the link is the next of this migration's. */
static bool is_ours(struct target *t, struct link *link)
{
    struct stream_section section;
    struct wire_join join;
    uint32_t crc;
    void *payload;

    /* The length first: nobody makes us read more than that. */
    if (stream_read_header(link_reader(link)) < 0 ||
        stream_read_head(link_reader(link), &section, &crc) < 0 || section.kind != STREAM_JOIN ||
        section.length != sizeof(join) ||
        stream_read_payload(link_reader(link), &section, crc, &payload) < 0)
        return false;
    memcpy(&join, payload, sizeof(join));
    free(payload);
    return le32toh(join.index) == t->n_lanes &&
           memcmp(join.token, t->token, sizeof(join.token)) == 0;
}

static int take_next(struct target *t, struct guest_memory *mem, uint64_t deadline_ns)
{
    struct link *link;
    int err = link_accept_beside(&link, t->link, t->door_fd, t->terms, deadline_ns);

    if (err)
        return err;
    link_set_patience(link, JOIN_PATIENCE_MS);
    if (!is_ours(t, link)) {
        log_warn("a connection that is not of the guest's that arrives was hung up on");
        link_destroy(link);
        return 0;
    }
    /* It may have nothing to carry for long; that the source lives is seen by the first one. */
    link_set_patience(link, 0);
    return add_lane(t, link, mem);
}

/* ---- working ---- */

static int read_lane(struct target_lane *lane)
{
    const struct stream_reader *reader = link_reader(lane->link);

    for (;;) {
        struct stream_section section;
        uint32_t crc;
        int err = stream_read_head(reader, &section, &crc);

        if (!err && section.kind == STREAM_END && section.length == 0)
            return 0;
        if (!err && section.kind != STREAM_PAGES && section.kind != STREAM_PACKED)
            err = target_damaged(lane->target, "a connection for pages carries something else");
        if (!err)
            err = target_take_pages(lane, &section, crc);
        if (err)
            return err;
    }
}

static void *lane_main(void *arg)
{
    struct target_lane *lane = arg;
    struct target *t = lane->target;

    lane->err = read_lane(lane);
    if (lane->err) {
        atomic_store(&t->lane_failed, true); /* before the wait that it explains ends */
        link_cancel(t->link);
    }
    return NULL;
}

int target_begin_lanes(struct target *t, struct guest_memory *mem)
{
    uint64_t deadline_ns = loop_now_ns() + LINK_PATIENCE_MS * NS_PER_MS;
    int err = add_lane(t, t->link, mem);

    while (!err && t->n_lanes < t->streams)
        err = take_next(t, mem, deadline_ns);
    for (unsigned i = 1; !err && i < t->n_lanes; i++) {
        err = -pthread_create(&t->lanes[i].thread, NULL, lane_main, &t->lanes[i]);
        t->lanes[i].begun = !err;
    }
    return err;
}

int target_end_lanes(struct target *t, int err)
{
    bool user_cancelled;

    for (unsigned i = 1; err && i < t->n_lanes; i++)
        link_cancel(t->lanes[i].link);
    for (unsigned i = 1; i < t->n_lanes; i++) {
        struct target_lane *lane = &t->lanes[i];

        if (!lane->begun)
            continue;
        pthread_join(lane->thread, NULL);
        lane->begun = false;
        /* The first lane was ended for this one's sake; or this one for another's. */
        if (lane->err && lane->err != -ECANCELED && (!err || err == -ECANCELED))
            err = lane->err;
    }
    if (!atomic_load(&t->lane_failed))
        return err;
    pthread_mutex_lock(&t->lock);
    user_cancelled = t->cancelled;
    if (!user_cancelled)
        link_rearm(t->link); /* it is to carry why */
    pthread_mutex_unlock(&t->lock);
    return user_cancelled || !err ? -ECANCELED : err;
}
