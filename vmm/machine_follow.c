/*
 * The network follows a guest that moves: frames that reach a NIC of its source after it stopped are
 * kept, sent after it when it is the destination's, and delivered there in their order.
 *
 * Composition root. The loop's thread of a NIC puts and delivers, the main thread begins and ends, a
 * thread of machine_work() carries records between queue and link; the queue has its own lock. Not
 * done: a frame to a group is kept only until the guest is given away, since from then on it reaches the
 * destination by itself; so it arrives once at most.
 * Texts: docs/STREAM.md, "The network".
 */
#include <errno.h>
#include <jansson.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "devices/virtio/net.h"
#include "migration/snapshot.h"
#include "net/frame_queue.h"
#include "net/offload.h"
#include "net/switch.h"
#include "net/uplink.h"
#include "vmm/machine_follow.h"
#include "vmm/machine_internal.h"
#include "vmm/process_net.h"
#include "vmm/util/log.h"
#include "vmm/util/loop_thread.h"

#define NS_PER_MS 1000000ull
/* Of a NIC: more than a TCP window of a long fat network, or a second's frames of a busy one. */
#define QUEUE_BYTES (8u << 20)
#define AGAIN_NS NS_PER_MS             /* between two attempts to deliver to a full receive queue */
#define GIVE_UP_NS (10000 * NS_PER_MS) /* for a driver that takes nothing */
#define HOLD_NS (50 * NS_PER_MS)       /* that frames here wait for those from the source */
#define IDLE_NS (1000 * NS_PER_MS)     /* without a frame: no gap is looked for */

/* One for each NIC, from when a guest stops, or begins to arrive, to the machine's end. */
struct nic_follow {
    struct machine *m;
    unsigned index;
    struct frame_queue *queue;  /* owned: from the source, or for the destination */
    struct frame_queue *held;   /* owned: the destination: came here directly meanwhile */
    bool holding;
    atomic_bool released;       /* what is held may follow */
    atomic_bool given_away;     /* the source: what is to a group is not kept any more */
    struct frame_queue_counters before; /* the source: as they were when the guest left */
    uint64_t last_ns;           /* ... when the guest's last frame passed; 0: never */
    struct loop_call wake;      /* the destination: records came */
    struct loop_timer again;
    struct loop_timer hold_over;
    uint64_t stuck_ns;          /* since when nothing is taken; 0: it is */
    atomic_uint bad;            /* records whose metadata contradict each other */
    bool awaited;               /* the destination: its first frame is of interest */
};

static struct loop_thread *thread_of(const struct machine_nic *nic)
{
    return nic->net ? nic->net->thread : NULL;
}

/* The end of the wire that is not the card's. */
static struct net_port *end_of(const struct machine_nic *nic)
{
    return nic->port ? switch_port_end(nic->port) : nic->uplink ? uplink_port(nic->uplink) : NULL;
}

static struct machine_nic *nic_of(const struct nic_follow *f)
{
    return &f->m->nics[f->index];
}

/* ---- keeping; the NIC's thread, under the device lock ---- */

static bool is_to_group(const struct net_frame *frame)
{
    unsigned i = 0;

    while (i < frame->iovcnt && frame->iov[i].iov_len == 0)
        i++;
    return i < frame->iovcnt && (*(const uint8_t *)frame->iov[i].iov_base & 1);
}

static void keep(void *opaque, const struct net_frame *frame)
{
    struct nic_follow *f = opaque;

    if (atomic_load_explicit(&f->given_away, memory_order_relaxed) && is_to_group(frame))
        return;
    frame_queue_put(f->queue, frame);
}

/* What comes to a destination before the guest is the source's, too. */
static void discard(void *opaque, const struct net_frame *frame)
{
    (void)opaque;
    (void)frame;
}

/* What comes to it while older ones are on their way from the source. */
static void hold(void *opaque, const struct net_frame *frame)
{
    frame_queue_put(((struct nic_follow *)opaque)->held, frame);
}

static void divert(struct nic_follow *f, bool always,
                   void (*take)(void *opaque, const struct net_frame *frame))
{
    struct machine_nic *nic = nic_of(f);

    device_lock(&nic->env);
    virtio_net_divert(nic->vdev, always, take, f);
    device_unlock(&nic->env);
}

/* ---- delivering; the NIC's thread ---- */

/* Sends the card what is queued, until it has no room. False: something is left. */
static bool empty(struct nic_follow *f, struct frame_queue *queue, bool *sent)
{
    struct net_port *end = end_of(nic_of(f));
    uint8_t headers[NET_HEADERS_MAX];
    struct net_frame frame;
    struct iovec piece;
    size_t copied;

    while (frame_queue_front(queue, &frame, &piece)) {
        if (!end || net_offload_check(&frame, headers, &copied) < 0)
            atomic_fetch_add_explicit(&f->bad, 1, memory_order_relaxed);
        else if (net_port_send(end, &frame, 1) == 0)
            return false;
        frame_queue_pop(queue);
        *sent = true;
    }
    return true;
}

static void give_up(struct nic_follow *f)
{
    frame_queue_drop(f->queue);
    frame_queue_drop(f->held);
    f->stuck_ns = 0;
    f->holding = false;
}

/* First what the source sent; then, if no more of that is to come, what was held; then all that comes
 * goes its own way again. */
static void deliver(struct nic_follow *f)
{
    bool sent = false, done;

    divert(f, false, NULL);
    done = empty(f, f->queue, &sent);
    if (done && f->holding && atomic_load_explicit(&f->released, memory_order_acquire)) {
        done = empty(f, f->held, &sent);
        f->holding = !done;
    }
    if (sent && end_of(nic_of(f)))
        net_port_flush(end_of(nic_of(f)));
    if (done)
        f->stuck_ns = 0;
    else if (sent || !f->stuck_ns)
        f->stuck_ns = loop_now_ns();
    else if (loop_now_ns() - f->stuck_ns > GIVE_UP_NS)
        give_up(f);
    if (f->stuck_ns)
        loop_timer_set(nic_of(f)->env.loop, &f->again, loop_now_ns() + AGAIN_NS);
    if (f->holding)
        divert(f, true, hold);
}

static void on_wake(struct loop_call *call)
{
    deliver((struct nic_follow *)((char *)call - offsetof(struct nic_follow, wake)));
}

static void on_again(struct loop_timer *timer)
{
    deliver((struct nic_follow *)((char *)timer - offsetof(struct nic_follow, again)));
}

static void on_hold_over(struct loop_timer *timer)
{
    struct nic_follow *f =
        (struct nic_follow *)((char *)timer - offsetof(struct nic_follow, hold_over));

    atomic_store_explicit(&f->released, true, memory_order_release);
    deliver(f);
}

/* ---- life ---- */

static int make(struct machine *m, unsigned index)
{
    struct machine_nic *nic = &m->nics[index];
    struct nic_follow *f = nic->follow ? nic->follow : calloc(1, sizeof(*f));
    int err;

    if (!f)
        return -ENOMEM;
    nic->follow = f;
    f->m = m;
    f->index = index;
    f->wake.run = on_wake;
    f->again.expired = on_again;
    f->hold_over.expired = on_hold_over;
    atomic_store_explicit(&f->given_away, false, memory_order_relaxed);
    err = f->queue ? 0 : frame_queue_create(&f->queue, QUEUE_BYTES);
    if (!err)
        frame_queue_get_counters(f->queue, &f->before);
    if (!err && !f->held)
        err = frame_queue_create(&f->held, QUEUE_BYTES);
    return err;
}

static int unmake(void *arg)
{
    struct machine_nic *nic = arg;

    loop_call_cancel(nic->env.loop, &nic->follow->wake);
    loop_timer_cancel(&nic->follow->again);
    loop_timer_cancel(&nic->follow->hold_over);
    frame_queue_destroy(nic->follow->queue);
    frame_queue_destroy(nic->follow->held);
    free(nic->follow);
    nic->follow = NULL;
    return 0;
}

void machine_follow_destroy(struct machine *m)
{
    for (unsigned i = 0; i < m->config->n_nets; i++)
        if (m->nics[i].follow)
            (void)loop_thread_call(thread_of(&m->nics[i]), unmake, &m->nics[i]);
}

/* ---- what becomes of a NIC's frames ---- */

struct turn {
    struct nic_follow *f;
    void (*take)(void *opaque, const struct net_frame *frame);
    bool watch;
};

static int turn(void *arg)
{
    const struct turn *t = arg;
    struct machine_nic *nic = nic_of(t->f);
    struct virtio_net_traffic traffic;

    device_lock(&nic->env);
    virtio_net_divert(nic->vdev, false, t->take, t->f);
    if (t->watch)
        virtio_net_watch(nic->vdev);
    virtio_net_get_traffic(nic->vdev, &traffic);
    t->f->last_ns = traffic.last_ns;
    device_unlock(&nic->env);
    return 0;
}

static void turn_all(struct machine *m, void (*take)(void *opaque, const struct net_frame *frame),
                     bool watch)
{
    for (unsigned i = 0; i < m->config->n_nets; i++) {
        struct turn t = {.f = m->nics[i].follow, .take = take, .watch = watch};

        if (t.f)
            (void)loop_thread_call(thread_of(&m->nics[i]), turn, &t);
    }
}

static void deliver_all(struct machine *m)
{
    for (unsigned i = 0; i < m->config->n_nets; i++)
        if (m->nics[i].follow)
            loop_call(m->nics[i].env.loop, &m->nics[i].follow->wake);
}

/* ---- the source ---- */

void machine_follow_keep(struct machine *m)
{
    for (unsigned i = 0; i < m->config->n_nets; i++)
        if (make(m, i) < 0)
            log_warn("%s%s: out of memory: frames that come late will be lost", m->label,
                     m->nics[i].id);
    turn_all(m, keep, false);
}

void machine_follow_ask(struct machine *m)
{
    turn_all(m, keep, false);
}

void machine_follow_back(struct machine *m)
{
    turn_all(m, NULL, false);
    deliver_all(m);
}

size_t machine_follow_take(struct machine *m, char id[STREAM_ID_MAX], void *to, size_t size)
{
    for (unsigned i = 0; i < m->config->n_nets; i++) {
        struct nic_follow *f = m->nics[i].follow;
        size_t n;

        if (!f || !f->queue)
            continue;
        atomic_store_explicit(&f->given_away, true, memory_order_relaxed);
        n = frame_queue_take_records(f->queue, to, size);
        if (n == 0)
            continue;
        memset(id, 0, STREAM_ID_MAX);
        memcpy(id, m->nics[i].id, strlen(m->nics[i].id));
        return n;
    }
    return 0;
}

/* Each NIC's loop comes round once, and so looks at what is there for it. */
struct fence {
    struct loop_call call;
    sem_t passed;
};

static void on_fence(struct loop_call *call)
{
    (void)sem_post(&((struct fence *)((char *)call - offsetof(struct fence, call)))->passed);
}

void machine_follow_settle(struct machine *m)
{
    const struct timespec moment = {.tv_nsec = NS_PER_MS / 2};

    for (unsigned i = 0; i < m->config->n_nets; i++) {
        struct fence fence = {.call.run = on_fence};

        (void)sem_init(&fence.passed, 0, 0);
        loop_call(m->nics[i].env.loop, &fence.call);
        while (sem_wait(&fence.passed) < 0)
            ;
        (void)sem_destroy(&fence.passed);
    }
    nanosleep(&moment, NULL);
}

static int unplug(void *arg)
{
    struct net_port *end = end_of(arg);

    if (end)
        net_port_disconnect(end);
    return 0;
}

void machine_follow_unplug(struct machine *m)
{
    for (unsigned i = 0; i < m->config->n_nets; i++)
        (void)loop_thread_call(thread_of(&m->nics[i]), unplug, &m->nics[i]);
}

void machine_follow_describe(struct machine *m, json_t *nics)
{
    for (unsigned i = 0; i < m->config->n_nets; i++) {
        const struct nic_follow *f = m->nics[i].follow;
        uint64_t now = loop_now_ns();
        json_t *nic = json_object();

        json_object_set_new(nic, "follows", json_boolean(f && f->queue));
        json_object_set_new(nic, "busy",
                            json_boolean(f && f->last_ns && now - f->last_ns < IDLE_NS));
        json_object_set_new(nics, m->nics[i].id, nic);
    }
}

/* The source's frames up to its last, the way to the destination, the destination's to its first. */
static void add_gap(json_t *json, const struct nic_follow *f, const struct source_status *status,
                    const json_t *there)
{
    json_int_t first = json_integer_value(json_object_get(there, "first_ns"));

    if (!f->last_ns || !json_is_integer(json_object_get(there, "first_ns")) || first < 0 ||
        status->go_ns < f->last_ns)
        return;
    json_object_set_new(json, "gap_ms",
                        json_real((double)(status->go_ns - f->last_ns + status->transit_ns +
                                           (uint64_t)first) / NS_PER_MS));
}

json_t *machine_follow_tell(const struct machine *m, const struct source_status *status,
                            const char *traffic)
{
    json_t *there = traffic ? json_loads(traffic, JSON_REJECT_DUPLICATES, NULL) : NULL;
    json_t *list = json_array();

    for (unsigned i = 0; i < m->config->n_nets; i++) {
        const struct nic_follow *f = m->nics[i].follow;
        const json_t *told = json_object_get(there, m->nics[i].id);
        struct frame_queue_counters counters = {0}, before = {0};
        json_t *json;

        if (f && f->queue) {
            frame_queue_get_counters(f->queue, &counters);
            before = f->before;
        }
        json = json_pack("{s:s, s:I, s:I}", "id", m->nics[i].id, "forwarded_frames",
                         (json_int_t)(counters.frames - before.frames), "lost_frames",
                         (json_int_t)(counters.dropped - before.dropped) +
                             json_integer_value(json_object_get(told, "lost")));
        if (f && told)
            add_gap(json, f, status, told);
        json_array_append_new(list, json);
    }
    json_decref(there);
    return list;
}

/* ---- the destination ---- */

void machine_follow_hush(struct machine *m)
{
    for (unsigned i = 0; i < m->config->n_nets; i++)
        if (make(m, i) < 0)
            log_warn("%s%s: out of memory: frames that come late will be lost", m->label,
                     m->nics[i].id);
    turn_all(m, discard, false);
}

/* What the source says of its NICs; NULL: nothing, or nonsense. */
static json_t *read_network(const struct snapshot *state)
{
    const struct snapshot_section *section = snapshot_find(state, STREAM_NETWORK, NULL);

    return section ? json_loads(section->payload, JSON_REJECT_DUPLICATES, NULL) : NULL;
}

static int begin_to_hold(void *arg)
{
    struct nic_follow *f = arg;

    if (!f->queue || !f->held)
        return 0;
    f->holding = true;
    divert(f, true, hold);
    loop_timer_set(nic_of(f)->env.loop, &f->hold_over, loop_now_ns() + HOLD_NS);
    return 0;
}

void machine_follow_release(struct machine *m)
{
    for (unsigned i = 0; i < m->config->n_nets; i++) {
        struct nic_follow *f = m->nics[i].follow;

        if (!f)
            continue;
        atomic_store_explicit(&f->released, true, memory_order_release);
        loop_call(m->nics[i].env.loop, &f->wake);
    }
}

bool machine_follow_open(struct machine *m, const struct snapshot *state)
{
    json_t *json = read_network(state), *nics = json_object_get(json, "nics");
    bool any = false;

    turn_all(m, NULL, true);
    for (unsigned i = 0; i < m->config->n_nets; i++) {
        const json_t *nic = json_object_get(nics, m->nics[i].id);

        if (!m->nics[i].follow || !json_is_true(json_object_get(nic, "follows")))
            continue;
        m->nics[i].follow->awaited = json_is_true(json_object_get(nic, "busy"));
        (void)loop_thread_call(thread_of(&m->nics[i]), begin_to_hold, m->nics[i].follow);
        any = true;
    }
    json_decref(json);
    return any;
}

void machine_follow_put(struct machine *m, const char *id, const void *records, size_t size)
{
    for (unsigned i = 0; i < m->config->n_nets; i++) {
        struct nic_follow *f = m->nics[i].follow;

        if (strcmp(m->nics[i].id, id) != 0 || !f || !f->queue)
            continue;
        if (frame_queue_put_records(f->queue, records, size) < 0)
            log_warn("%s%s: frames that came late are damaged", m->label, id);
        loop_call(m->nics[i].env.loop, &f->wake);
        return;
    }
}

/* Frames that came from the source, or here, and reached nobody. */
static uint64_t count_lost(const struct nic_follow *f)
{
    struct frame_queue_counters counters;
    uint64_t lost = atomic_load_explicit(&f->bad, memory_order_relaxed);

    if (f->queue) {
        frame_queue_get_counters(f->queue, &counters);
        lost += counters.dropped;
    }
    if (f->held) {
        frame_queue_get_counters(f->held, &counters);
        lost += counters.dropped;
    }
    return lost;
}

char *machine_follow_traffic(struct machine *m, uint64_t go_ns, bool late)
{
    json_t *json = json_object();
    char *text = NULL;
    bool known = true;

    for (unsigned i = 0; i < m->config->n_nets; i++) {
        const struct nic_follow *f = m->nics[i].follow;
        struct virtio_net_traffic traffic;
        json_t *nic = json_object();

        device_lock(&m->nics[i].env);
        virtio_net_get_traffic(m->nics[i].vdev, &traffic);
        device_unlock(&m->nics[i].env);
        if (traffic.first_ns > go_ns)
            json_object_set_new(nic, "first_ns",
                                json_integer((json_int_t)(traffic.first_ns - go_ns)));
        else if (f && f->awaited)
            known = false;
        json_object_set_new(nic, "lost", json_integer(f ? (json_int_t)count_lost(f) : 0));
        json_object_set_new(json, m->nics[i].id, nic);
    }
    if (known || late)
        text = json_dumps(json, JSON_COMPACT);
    json_decref(json);
    return text;
}
