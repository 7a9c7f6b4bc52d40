/*
 * The steps of the side where a guest arrives.
 *
 * What is heard and said, and the sections that are kept; pages are target_pages.c's. Threads: see the
 * header; the figures of the status are atomics.
 */
#include "migration/target.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "migration/follow.h"
#include "migration/target_internal.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

/* Of sections but pages, so that a peer cannot take all memory of the host. */
#define MAX_SECTIONS 8192u
#define MAX_SECTION_BYTES (64u << 20)
#define MAX_TOTAL_BYTES (256u << 20)

int target_create(struct target **out, struct link *link)
{
    struct target *t = calloc(1, sizeof(*t));

    if (!t) {
        link_destroy(link);
        return -ENOMEM;
    }
    t->link = link;
    t->door_fd = -1;
    pthread_mutex_init(&t->lock, NULL);
    *out = t;
    return 0;
}

void target_destroy(struct target *t)
{
    if (!t)
        return;
    target_destroy_lanes(t);
    link_destroy(t->link);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

void target_set_door(struct target *t, int listen_fd, struct link_terms *terms)
{
    t->door_fd = listen_fd;
    t->terms = terms;
}

void target_cancel(struct target *t)
{
    pthread_mutex_lock(&t->lock);
    t->cancelled = true;
    for (unsigned i = 0; i < t->n_lanes; i++)
        link_cancel(t->lanes[i].link);
    pthread_mutex_unlock(&t->lock);
    link_cancel(t->link);
}

void target_get_status(const struct target *t, struct target_status *status)
{
    status->received_bytes = atomic_load_explicit(&t->received_bytes, memory_order_relaxed);
    status->paused = atomic_load_explicit(&t->paused, memory_order_relaxed);
    status->stopped_ns = atomic_load_explicit(&t->stopped_ns, memory_order_relaxed);
    status->go_ns = atomic_load_explicit(&t->go_ns, memory_order_relaxed);
}

int target_damaged(struct target *t, const char *what)
{
    log_error("%s: %s", link_reader(t->link)->name, what);
    return -EBADMSG;
}

/* ---- sections that are kept ---- */

/* What came so far of one kind of snapshot. */
struct intake {
    struct snapshot *snapshot;
    uint64_t bytes;
};

static int keep(struct target *t, struct intake *in, const struct stream_section *section,
                uint32_t crc)
{
    void *payload;
    int err;

    in->bytes += section->length;
    if (section->length > MAX_SECTION_BYTES || in->bytes > MAX_TOTAL_BYTES ||
        in->snapshot->n_sections >= MAX_SECTIONS)
        return target_damaged(t, "more state came than any guest has");
    err = stream_read_payload(link_reader(t->link), section, crc, &payload);
    if (err)
        return err;
    err = snapshot_add(in->snapshot, (enum stream_kind)section->kind, section->id, payload,
                       section->length);
    free(payload);
    return err;
}

/* A section that this side does not know: passed over, if that is allowed. */
static int pass_over(struct target *t, const struct stream_section *section, uint32_t crc)
{
    void *payload;
    int err;

    if (!(section->flags & STREAM_OPTIONAL)) {
        log_error("%s: section %u '%s' is not known to this ferry, and the guest needs it",
                  link_reader(t->link)->name, section->kind, section->id);
        return -EOPNOTSUPP;
    }
    if (section->length > MAX_SECTION_BYTES)
        return target_damaged(t, "more came than is expected");
    err = stream_read_payload(link_reader(t->link), section, crc, &payload);
    if (!err)
        free(payload);
    return err;
}

static int heard_abort(struct target *t, const struct stream_section *section, uint32_t crc)
{
    void *why;
    int err;

    if (section->length > LINK_TEXT_MAX)
        return target_damaged(t, "a reason that is too long");
    err = stream_read_payload(link_reader(t->link), section, crc, &why);
    if (err)
        return err;
    log_warn("the source keeps its guest: %s", (const char *)why);
    free(why);
    return -ECANCELED;
}

/* ---- hello ---- */

static int take_hello(struct target *t, struct intake *in, const struct stream_section *section,
                      uint32_t crc, int *memory_fd)
{
    switch ((enum stream_kind)section->kind) {
    case STREAM_HELLO:
    case STREAM_CONFIG:
    case STREAM_PROCESSOR:
        return keep(t, in, section, crc);
    case STREAM_MEMFD:
        if (*memory_fd >= 0 || section->length != 0)
            return target_damaged(t, "memory came twice");
        *memory_fd = link_take_fd(t->link);
        return *memory_fd < 0 ? target_damaged(t, "the guest's memory did not come along") : 0;
    case STREAM_TRANSFER:
        return target_take_transfer(t, section, crc);
    case STREAM_ABORT:
        return heard_abort(t, section, crc);
    case STREAM_JOIN:
    case STREAM_PACKED:
    case STREAM_DEVICE:
    case STREAM_VM:
    case STREAM_VCPU:
    case STREAM_MEMORY:
    case STREAM_SUMS:
    case STREAM_ADDRESSES:
    case STREAM_END:
    case STREAM_REPORT:
    case STREAM_PAGES:
    case STREAM_STOPPED:
    case STREAM_READY:
    case STREAM_GO:
    case STREAM_RUNNING:
    case STREAM_FRAMES:
    case STREAM_TRAFFIC:
    case STREAM_NETWORK:
        return target_damaged(t, "a section came too early");
    }
    return pass_over(t, section, crc);
}

int target_hello(struct target *t, struct snapshot *hello, int *memory_fd)
{
    struct intake in = {.snapshot = hello};
    int err = stream_read_header(link_reader(t->link));

    *memory_fd = -1;
    while (!err) {
        struct stream_section section;
        uint32_t crc;

        err = stream_read_head(link_reader(t->link), &section, &crc);
        if (!err && section.kind == STREAM_END && section.length == 0)
            return 0;
        if (!err)
            err = take_hello(t, &in, &section, crc, memory_fd);
    }
    if (*memory_fd >= 0)
        close(*memory_fd);
    *memory_fd = -1;
    return err;
}

int target_report(struct target *t, const char *json)
{
    int err = link_send_header(t->link);

    t->header_sent = true;
    return err ? err : link_send(t->link, STREAM_REPORT, "", json, strlen(json));
}

/* ---- memory and state ---- */

static int take_stopped(struct target *t, const struct stream_section *section, uint32_t crc)
{
    void *word;
    int err;

    if (section->length != 1)
        return target_damaged(t, "a word of another length");
    err = stream_read_payload(link_reader(t->link), section, crc, &word);
    if (err)
        return err;
    atomic_store_explicit(&t->paused, *(const uint8_t *)word != 0, memory_order_relaxed);
    atomic_store_explicit(&t->stopped_ns, loop_now_ns(), memory_order_relaxed);
    free(word);
    return 0;
}

static int take_state(struct target *t, struct intake *in, const struct stream_section *section, uint32_t crc)
{
    switch ((enum stream_kind)section->kind) {
    case STREAM_PAGES:
    case STREAM_PACKED:
        return target_take_pages(&t->lanes[0], section, crc);
    case STREAM_STOPPED:
        return take_stopped(t, section, crc);
    case STREAM_DEVICE:
    case STREAM_VM:
    case STREAM_VCPU:
    case STREAM_ADDRESSES:
    case STREAM_NETWORK:
        return keep(t, in, section, crc);
    case STREAM_ABORT:
        return heard_abort(t, section, crc);
    case STREAM_CONFIG:
    case STREAM_MEMORY:
    case STREAM_SUMS:
    case STREAM_END:
    case STREAM_TRANSFER:
    case STREAM_JOIN:
    case STREAM_HELLO:
    case STREAM_PROCESSOR:
    case STREAM_MEMFD:
    case STREAM_REPORT:
    case STREAM_READY:
    case STREAM_GO:
    case STREAM_RUNNING:
    case STREAM_FRAMES:
    case STREAM_TRAFFIC:
        return target_damaged(t, "a section came at the wrong time");
    }
    return pass_over(t, section, crc);
}

static int read_rest(struct target *t, struct snapshot *state)
{
    struct intake in = {.snapshot = state};
    int err = 0;

    while (!err) {
        struct stream_section section;
        uint32_t crc;

        err = stream_read_head(link_reader(t->link), &section, &crc);
        if (!err && section.kind == STREAM_END && section.length == 0)
            return atomic_load(&t->stopped_ns) ? 0 : target_damaged(t, "the guest was not stopped");
        if (!err)
            err = take_state(t, &in, &section, crc);
    }
    return err;
}

int target_receive(struct target *t, struct guest_memory *mem, struct snapshot *state)
{
    int err = target_begin_lanes(t, mem);

    if (!err)
        err = read_rest(t, state);
    return target_end_lanes(t, err);
}

/* ---- the hand-over ---- */

int target_ready(struct target *t)
{
    struct stream_section section;
    uint32_t crc;
    int err = link_send(t->link, STREAM_READY, "", FOLLOW_READY, strlen(FOLLOW_READY));

    if (err) {
        log_error("the connection to the source is lost: %s", strerror(-err));
        return -ECANCELED; /* without this word the source gives nothing away */
    }
    err = stream_read_head(link_reader(t->link), &section, &crc);
    if (err)
        return err == -ECANCELED ? -ECONNRESET : err;
    if (section.kind == STREAM_GO && section.length == 0) {
        atomic_store_explicit(&t->go_ns, loop_now_ns(), memory_order_relaxed);
        return 0;
    }
    if (section.kind == STREAM_ABORT)
        return heard_abort(t, &section, crc);
    return target_damaged(t, "another word than that the guest may run");
}

void target_catch_up(struct target *t, const struct target_follow_ops *ops, void *opaque)
{
    follow_take_until_mark(t->link, ops, opaque);
}

void target_follow(struct target *t, const struct target_follow_ops *ops, void *opaque)
{
    follow_take_rest(t->link, ops, opaque);
}

int target_running(struct target *t, const char *json)
{
    return link_send(t->link, STREAM_RUNNING, "", json, strlen(json));
}

bool target_has_answered(const struct target *t)
{
    return t->header_sent;
}

void target_refuse(struct target *t, const char *why)
{
    if (!t->header_sent && link_send_header(t->link) < 0)
        return;
    t->header_sent = true;
    link_abort(t->link, why);
}
