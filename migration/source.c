/*
 * Pre-copy: the steps of the side that a guest leaves.
 *
 * What is said and heard, and whose the guest is. How memory goes is in source_rounds.c and
 * source_pages.c.
 *
 * Threads: see the header. `lock` guards `status` and `given_away`; a leaf.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "migration/follow.h"
#include "migration/source_internal.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define FIRST_RATE (200ull << 20) /* bytes a second, until one was measured */

/* ---- creation ---- */

int source_create(struct source **out, struct link *link, struct guest_memory *mem,
                  const struct source_ops *ops, void *opaque, const struct source_config *config)
{
    struct source *s = calloc(1, sizeof(*s));
    int err;

    if (!s) {
        link_destroy(link);
        return -ENOMEM;
    }
    s->link = link;
    s->mem = mem;
    s->ops = ops;
    s->opaque = opaque;
    s->config = *config;
    s->begun_ns = loop_now_ns();
    s->status.rate = FIRST_RATE;
    s->status.shared = config->share_memory && link_is_unix(link);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->lane_done, NULL);
    err = source_make_lanes(s);
    if (err) {
        source_destroy(s);
        return err;
    }
    *out = s;
    return 0;
}

void source_destroy(struct source *s)
{
    if (!s)
        return;
    source_stop_logging(s);
    source_free_bits(s);
    source_destroy_lanes(s);
    free(s->reason);
    free(s->traffic);
    link_destroy(s->link);
    pthread_cond_destroy(&s->lane_done);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

/* ---- what is told ---- */

static void set_phase(struct source *s, enum source_phase phase)
{
    pthread_mutex_lock(&s->lock);
    s->status.phase = phase;
    pthread_mutex_unlock(&s->lock);
}

void source_get_status(struct source *s, struct source_status *status)
{
    pthread_mutex_lock(&s->lock);
    *status = s->status;
    if (status->phase <= SOURCE_HANDING_OVER)
        status->elapsed_ns = loop_now_ns() - s->begun_ns;
    source_estimate_locked(s, status);
    pthread_mutex_unlock(&s->lock);
}

const char *source_reason(const struct source *s)
{
    return s->reason;
}

int source_cancel(struct source *s)
{
    int err = 0;

    pthread_mutex_lock(&s->lock);
    if (s->given_away)
        err = -EALREADY;
    else
        s->cancelled = true;
    if (!err)
        source_cancel_lanes_locked(s);
    pthread_mutex_unlock(&s->lock);
    return err;
}

/* A step ended with err: notes what that means for the guest, and passes it on. */
static int ended(struct source *s, int err)
{
    if (!err)
        return 0;
    source_stop_logging(s);
    pthread_mutex_lock(&s->lock);
    s->status.elapsed_ns = loop_now_ns() - s->begun_ns;
    s->status.phase = err == -EINPROGRESS ? SOURCE_IN_DOUBT : SOURCE_FAILED;
    if (s->cancelled && err != -EINPROGRESS)
        err = -ECANCELED;
    pthread_mutex_unlock(&s->lock);
    return err;
}

/* ---- what the destination says ---- */

static int heard_abort(struct source *s, char *why)
{
    log_error("the destination gave up: %s", why);
    free(s->reason);
    s->reason = why;
    return -EREMOTEIO;
}

/* What all that it says begins with. */
static int hear_header(struct source *s)
{
    int err = s->header_heard ? 0 : stream_read_header(link_reader(s->link));

    s->header_heard = !err;
    return err;
}

/* The next section from there, which must be of that kind; its payload is the caller's. */
static int expect(struct source *s, enum stream_kind kind, char **payload)
{
    struct stream_section section;
    void *bytes;
    int err = hear_header(s);

    if (!err)
        err = stream_read_section(link_reader(s->link), &section, &bytes);
    if (err)
        return err;
    if (section.kind == (uint32_t)kind) {
        *payload = bytes;
        return 0;
    }
    if (section.kind == STREAM_ABORT)
        return heard_abort(s, bytes);
    free(bytes);
    log_error("the destination sent section %u, and %u was expected", section.kind, kind);
    return -EBADMSG;
}

int source_look_for_abort(struct source *s)
{
    char *payload;
    int err;

    if (!link_readable(s->link))
        return 0;
    err = expect(s, STREAM_ABORT, &payload);
    return err ? err : heard_abort(s, payload);
}

int source_lost(struct source *s, int err)
{
    int why;

    if (err == -ECANCELED)
        return err;
    why = source_look_for_abort(s);
    if (why == -EREMOTEIO)
        return why;
    if (!why)
        log_error("the connection to the destination is lost: %s", strerror(-err));
    return err;
}

/* The connection broke before the destination said a word: it may not want this host. */
static int unheard(int err)
{
    return err == -EPIPE || err == -ECONNRESET ? -ENOTCONN : err;
}

int source_introduce(struct source *s, const struct snapshot *hello, char **report)
{
    int err = link_send_header(s->link);

    for (unsigned i = 0; !err && i < hello->n_sections; i++) {
        const struct snapshot_section *section = &hello->sections[i];

        err = link_send(s->link, (enum stream_kind)section->head.kind, section->head.id,
                        section->payload, section->head.length);
    }
    if (!err)
        err = source_announce_lanes(s);
    if (!err && s->status.shared)
        err = link_send_fd(s->link, STREAM_MEMFD, memory_fd(s->mem));
    if (!err)
        err = link_send(s->link, STREAM_END, "", "", 0);
    if (err)
        return ended(s, unheard(source_lost(s, err)));
    err = unheard(hear_header(s));
    if (!err)
        err = expect(s, STREAM_REPORT, report);
    return ended(s, err);
}

/* ---- memory ---- */

int source_copy(struct source *s)
{
    int err;

    set_phase(s, SOURCE_COPYING);
    if (s->status.shared)
        return 0;
    pthread_mutex_lock(&s->lock);
    s->status.remaining_bytes = memory_size(s->mem);
    pthread_mutex_unlock(&s->lock);
    err = source_open_lanes(s);
    if (!err)
        err = source_run_rounds(s);
    if (err == -ETIMEDOUT && s->config.give_up)
        link_abort(s->link, "the guest writes its memory faster than it can be sent");
    return ended(s, err);
}

/* ---- the end ---- */

void source_stopping(struct source *s)
{
    s->stopping_ns = loop_now_ns();
    s->stopped = true;
    set_phase(s, SOURCE_STOPPED);
}

static int send_rest(struct source *s, const struct snapshot *state, bool paused)
{
    const uint8_t word = paused;
    int64_t left;
    int err = link_send(s->link, STREAM_STOPPED, "", &word, sizeof(word));

    if (err)
        return source_lost(s, err);
    if (!s->status.shared) {
        left = source_collect(s);
        err = left < 0 ? (int)left : source_send_todo(s);
        if (!err)
            err = source_end_lanes(s);
    }
    for (unsigned i = 0; !err && i < state->n_sections; i++) {
        const struct snapshot_section *section = &state->sections[i];

        err = link_send(s->link, (enum stream_kind)section->head.kind, section->head.id,
                        section->payload, section->head.length);
        if (err)
            err = source_lost(s, err);
    }
    if (!err)
        err = link_send(s->link, STREAM_END, "", "", 0);
    return err;
}

int source_finish(struct source *s, const struct snapshot *state, bool paused)
{
    char *payload;
    int err = send_rest(s, state, paused);

    if (!err) {
        err = expect(s, STREAM_READY, &payload);
        /* The others have carried all. */
        link_unwatch(s->link);
        s->follows = !err && strcmp(payload, FOLLOW_READY) == 0;
        if (!err)
            free(payload);
        else if (err == -ECANCELED)
            link_abort(s->link, "the migration was cancelled");
    }
    return ended(s, err);
}

/* From here on a cancellation comes too late; or it came before. */
static int give_away(struct source *s)
{
    int err = 0;

    pthread_mutex_lock(&s->lock);
    if (s->cancelled)
        err = -ECANCELED;
    else
        s->given_away = true;
    pthread_mutex_unlock(&s->lock);
    return err;
}

/* The figures of STREAM_RUNNING's JSON; the second is not in that of the first version. */
static void read_running(struct source *s, const char *json)
{
    unsigned long long downtime = 0, since_go = 0;
    uint64_t now = loop_now_ns();
    int n = sscanf(json, "{\"downtime_ns\":%llu,\"since_go_ns\":%llu", &downtime, &since_go);

    pthread_mutex_lock(&s->lock);
    s->status.peer_downtime_ns = n >= 1 ? downtime : 0;
    if (n == 2 && since_go < now - s->status.go_ns)
        s->status.transit_ns = (now - s->status.go_ns - since_go) / 2;
    s->status.downtime_ns = now - s->stopping_ns;
    s->status.elapsed_ns = now - s->begun_ns;
    s->status.phase = SOURCE_COMPLETED;
    pthread_mutex_unlock(&s->lock);
}

/* What came late goes after the word that the guest may run there. Only what the destination says
 * counts: an error of sending is met again by whoever reads. */
static int hear_running(struct source *s, char **payload)
{
    if (s->follows && s->ops->take_frames)
        follow_send_until_word(s->link, s->ops, s->opaque);
    return expect(s, STREAM_RUNNING, payload);
}

static void note_go(struct source *s)
{
    pthread_mutex_lock(&s->lock);
    s->status.phase = SOURCE_HANDING_OVER;
    s->status.go_ns = loop_now_ns();
    pthread_mutex_unlock(&s->lock);
}

int source_hand_over(struct source *s)
{
    char *payload;
    uint64_t sent;
    int err = source_look_for_abort(s);

    if (err)
        return ended(s, err);
    err = give_away(s);
    if (err) {
        link_abort(s->link, "the migration was cancelled");
        return ended(s, err);
    }
    note_go(s);
    sent = link_sent(s->link);
    err = link_send(s->link, STREAM_GO, "", "", 0);
    if (err && link_sent(s->link) == sent)
        return ended(s, source_lost(s, err)); /* not a byte of it has left */
    if (!err)
        err = hear_running(s, &payload);
    /* Only its own word that it did not take the guest makes it sure that it does not run. */
    if (err)
        return ended(s, err == -EREMOTEIO ? err : -EINPROGRESS);
    read_running(s, payload);
    free(payload);
    return 0;
}

void source_follow(struct source *s)
{
    if (s->follows && s->ops->take_frames)
        s->traffic = follow_send_rest(s->link, s->ops, s->opaque);
}

const char *source_traffic(const struct source *s)
{
    return s->traffic;
}
