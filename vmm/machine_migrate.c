/*
 * A guest leaves: a migration as the machine sees it, and what the control socket says of it.
 *
 * Composition root. A thread of its own connects, compares and copies memory while the guest runs; it
 * touches of the machine only its memory, KVM's dirty log and the brake on the vCPUs. All else is the
 * loop's thread's: it stops the guest, gathers its state, gives the disks away and decides, by what
 * the last step said, whose the guest is. `lock` guards `source` and `cancelled`, which both threads
 * use; a leaf.
 */
#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "devices/virtio/blk.h"
#include "migration/source.h"
#include "vmm/machine_follow.h"
#include "vmm/machine_internal.h"
#include "vmm/machine_migrate_request.h"
#include "vmm/machine_receive.h"
#include "vmm/process.h"
#include "vmm/util/log.h"
#include "vmm/vcpu.h"
#include "vmm/vm.h"

#define NS_PER_MS 1000000ull
#define ERROR_MAX 800

enum stage {
    STAGE_ASKED,   /* by the control socket */
    STAGE_COPYING, /* the thread is at it */
    STAGE_OVER,
};

struct migration {
    struct machine *m;
    enum stage stage;
    char *url; /* owns */
    struct link_address address;
    char *tls_folder;              /* owns; NULL: the usual one */
    struct tls_identity *identity; /* owns; NULL: not by TLS */
    struct link_terms terms;
    struct source_config config;
    bool check; /* no more than the comparison */
    struct snapshot hello;
    int cancel_fd; /* owns: an eventfd; ends an attempt to connect */
    pthread_mutex_t lock;
    struct source *source; /* owns; NULL before there is a connection, and afterwards */
    bool cancelled;
    pthread_t thread;
    struct loop_call copied_call;
    bool copied; /* the loop's thread's: the thread has ended, with err */
    int err;
    json_t *mismatches; /* owns: what the destination said; NULL: nothing yet */
    struct source_status last; /* once it is over */
    json_t *nics; /* owns: then, what became of their frames; NULL: it did not go */
    char error[ERROR_MAX];
    /* The steps with the guest stopped. */
    struct snapshot state;
    bool was_paused;
};

/* ---- what the source uses of the machine; its thread's ---- */

static int log_start(void *opaque)
{
    return vm_dirty_start(((struct machine *)opaque)->vm);
}

static void log_stop(void *opaque)
{
    vm_dirty_stop(((struct machine *)opaque)->vm);
}

static int log_get(void *opaque, unsigned region, uint64_t *bitmap)
{
    return vm_dirty_get(((struct machine *)opaque)->vm, region, bitmap);
}

static int log_clear(void *opaque, unsigned region, uint64_t first, uint64_t pages,
                     const uint64_t *bits)
{
    return vm_dirty_clear(((struct machine *)opaque)->vm, region, first, pages, bits);
}

static void throttle(void *opaque, unsigned percent)
{
    (void)vcpus_throttle(((struct machine *)opaque)->vcpus, percent);
}

static size_t take_frames(void *opaque, char id[STREAM_ID_MAX], void *to, size_t size)
{
    return machine_follow_take(opaque, id, to, size);
}

static void settle_frames(void *opaque)
{
    machine_follow_settle(opaque);
}

static int connect_further(void *opaque, struct link **out)
{
    const struct migration *g = ((struct machine *)opaque)->migration;
    struct link_terms terms = g->terms;

    return link_connect(out, &g->address, &terms);
}

const struct source_ops machine_source_ops = {
    .log_start = log_start,
    .log_stop = log_stop,
    .log_get = log_get,
    .log_clear = log_clear,
    .throttle = throttle,
    .connect = connect_further,
    .take_frames = take_frames,
    .settle_frames = settle_frames,
};

/* ---- the thread ---- */

static int connect_source(struct migration *g)
{
    struct source *source;
    struct link *link;
    int err = 0;

    g->terms.cancel_fd = g->cancel_fd;
    if (g->address.is_tls)
        err = tls_identity_create(&g->identity, g->tls_folder, false, g->terms.reason);
    g->terms.identity = g->identity;
    if (!err)
        err = link_connect(&link, &g->address, &g->terms);
    if (!err)
        err = source_create(&source, link, g->m->mem, &machine_source_ops, g->m, &g->config);
    if (err)
        return err;
    pthread_mutex_lock(&g->lock);
    g->source = source;
    if (g->cancelled)
        (void)source_cancel(source);
    pthread_mutex_unlock(&g->lock);
    return 0;
}

/* -EREMOTEIO: the destination names what does not fit. */
static int compare(struct migration *g)
{
    char *report;
    int err = source_introduce(g->source, &g->hello, &report);

    if (err)
        return err;
    g->mismatches = json_loads(report, JSON_REJECT_DUPLICATES, NULL);
    free(report);
    if (!json_is_array(g->mismatches)) {
        log_error("the destination's answer makes no sense");
        return -EBADMSG;
    }
    return json_array_size(g->mismatches) > 0 ? -EREMOTEIO : 0;
}

static int copy(struct migration *g)
{
    int err = connect_source(g);

    if (!err)
        err = compare(g);
    if (!err && !g->check)
        err = machine_await_memory(g->m, g->cancel_fd);
    if (!err && !g->check)
        err = source_copy(g->source);
    /* What is on the disk already need not be brought there while the guest stands still. */
    for (unsigned i = 0; !err && !g->check && i < g->m->n_disks; i++)
        virtio_blk_sync(g->m->disks[i]);
    return err;
}

static void *copy_main(void *arg)
{
    struct migration *g = arg;

    g->err = copy(g);
    loop_call(g->m->loop, &g->copied_call);
    return NULL;
}

static void copied(struct loop_call *call)
{
    struct migration *g = (struct migration *)((char *)call - offsetof(struct migration,
                                                                       copied_call));

    g->copied = true;
    loop_stop(g->m->loop); /* machine_migrate_serve() goes on */
}

/* ---- what is told ---- */

static const char *phase_name(const struct migration *g, enum source_phase phase)
{
    if (g->stage == STAGE_OVER && g->err == -ECANCELED)
        return "cancelled";
    if (g->stage == STAGE_OVER && json_array_size(g->mismatches) > 0)
        return "refused";
    switch (phase) {
    case SOURCE_CONNECTING: return "connecting";
    case SOURCE_COPYING: return "copying";
    case SOURCE_STOPPED: return "stopped";
    case SOURCE_HANDING_OVER: return "handing-over";
    case SOURCE_COMPLETED: return "completed";
    case SOURCE_CHECKED: return "checked";
    case SOURCE_FAILED: return "failed";
    case SOURCE_IN_DOUBT: return "in-doubt";
    }
    return "unknown";
}

static json_t *describe(struct migration *g)
{
    struct source_status s = g->last;
    json_t *json;

    pthread_mutex_lock(&g->lock);
    if (g->source)
        source_get_status(g->source, &s);
    pthread_mutex_unlock(&g->lock);
    json = json_pack(
        "{s:s, s:s, s:f, s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:b}", "status",
        phase_name(g, s.phase), "destination_url", g->url, "elapsed_ms",
        (double)s.elapsed_ns / NS_PER_MS, "rounds", (int)s.rounds, "throttle", (int)s.throttle,
        "sent_bytes", (json_int_t)s.sent_bytes, "pages", (json_int_t)s.pages, "zero_pages",
        (json_int_t)s.zero_pages, "remaining_bytes", (json_int_t)s.remaining_bytes, "rate",
        (json_int_t)s.rate, "dirty_rate", (json_int_t)s.dirty_rate, "expected_downtime_ms",
        (double)s.estimate_ns / NS_PER_MS, "memory_handed_over", s.shared);
    if (json)
        json_object_set_new(json, "streams", json_integer(g->config.streams));
    if (json)
        json_object_set_new(json, "compression",
                            json_string(compress_name(g->config.compress)));
    if (json && s.phase == SOURCE_COMPLETED)
        json_object_set_new(json, "downtime_ms", json_real((double)s.downtime_ns / NS_PER_MS));
    if (json && s.phase == SOURCE_COMPLETED && s.peer_downtime_ns > 0)
        json_object_set_new(json, "destination_downtime_ms",
                            json_real((double)s.peer_downtime_ns / NS_PER_MS));
    if (json && g->nics)
        json_object_set(json, "nics", g->nics);
    if (json && g->stage == STAGE_OVER && g->mismatches)
        json_object_set(json, "mismatches", g->mismatches);
    if (json && g->error[0])
        json_object_set_new(json, "error", json_string(g->error));
    return json;
}

static void explain(struct migration *g)
{
    const char *reason = g->source ? source_reason(g->source) : NULL;

    if (g->err == -EINPROGRESS)
        snprintf(g->error, sizeof(g->error),
                 "the connection was lost at the moment of the hand-over: the guest stands still here, "
                 "and may run at %s: look there by 'ferry ps'. Running there: end this one by 'ferry stop "
                 "-f %s'. InDoubt there, too: end it there by 'ferry stop -f', then let it run on here by "
                 "'ferry resume --force %s'. Not there, and not to come: 'ferry resume --force %s'", g->url,
                 g->m->config->name, g->m->config->name, g->m->config->name);
    else if (g->m->in_doubt)
        snprintf(g->error, sizeof(g->error),
                 "the destination gave up: %s; another process has a disk of the guest, which stands still here: "
                 "when that has ended, 'ferry resume --force %s'", reason ? reason : strerror(-g->err),
                 g->m->config->name);
    else if (g->err == -ECANCELED)
        snprintf(g->error, sizeof(g->error), "cancelled; the guest runs on here");
    else if (g->err == -ERESTART)
        snprintf(g->error, sizeof(g->error), "the guest is about to end or to reset; it goes on here");
    else if (g->err == -ETIMEDOUT && g->config.give_up)
        snprintf(g->error, sizeof(g->error),
                 "the guest writes its memory faster than it can be sent; it runs on here");
    else if (reason)
        snprintf(g->error, sizeof(g->error), "the destination gave up: %s; the guest runs on here",
                 reason);
    else if (g->terms.reason[0])
        snprintf(g->error, sizeof(g->error), "%s: %s; the guest runs on here", g->url,
                 g->terms.reason);
    else if (g->err == -EKEYREJECTED)
        snprintf(g->error, sizeof(g->error),
                 "%s: the destination does not take this side's certificate; its log says why; the "
                 "guest runs on here", g->url);
    else if (g->err == -EPROTO)
        snprintf(g->error, sizeof(g->error),
                 "%s: the destination speaks TLS: tls:HOST:PORT; the guest runs on here", g->url);
    else if (g->err == -ENOTCONN)
        snprintf(g->error, sizeof(g->error),
                 "%s: the destination hung up before it said a word: it may take guests from another host "
                 "only ('ferry receive --from'); the guest runs on here", g->url);
    else
        snprintf(g->error, sizeof(g->error), "%s: %s; the guest runs on here", g->url,
                 strerror(-g->err));
}

/* Notes the end and answers whoever asked. A comparison, too, is an answer. */
static void finish(struct migration *g, int err)
{
    bool compared = json_array_size(g->mismatches) > 0 || (g->check && !err);
    struct source *source;

    g->err = err;
    g->stage = STAGE_OVER;
    if (g->source)
        source_get_status(g->source, &g->last);
    if (err)
        g->last.phase = g->m->in_doubt ? SOURCE_IN_DOUBT : SOURCE_FAILED;
    if (g->last.phase == SOURCE_COMPLETED)
        g->nics = machine_follow_tell(g->m, &g->last, source_traffic(g->source));
    if (g->check && !err)
        g->last.phase = SOURCE_CHECKED;
    if (err && !compared)
        explain(g);
    pthread_mutex_lock(&g->lock);
    source = g->source;
    g->source = NULL;
    pthread_mutex_unlock(&g->lock);
    source_destroy(source);
    snapshot_fini(&g->hello);
    snapshot_fini(&g->state);
    if (!err || compared)
        control_answer(process_control(g->m->process), g->m, 0, describe(g));
    else
        control_answer(process_control(g->m->process), g->m, err == -EINPROGRESS ? -EIO : err,
                       json_string(g->error));
}

/* ---- the steps ---- */

static int begin(struct migration *g)
{
    struct machine *m = g->m;
    int err;

    if (!m->paused)
        vcpus_park(m->vcpus); /* for a moment: what the processor shows is read from one */
    err = machine_introduce(m, g->check, &g->hello);
    if (!m->paused)
        vcpus_resume(m->vcpus);
    if (!err)
        err = -pthread_create(&g->thread, NULL, copy_main, g);
    if (!err)
        g->stage = STAGE_COPYING;
    return err;
}

static int send_rest(void *arg)
{
    struct migration *g = arg;

    return source_finish(g->source, &g->state, g->was_paused);
}

static int give(void *arg)
{
    struct migration *g = arg;
    int err = source_hand_over(g->source);

    if (!err && g->m->config->n_nets > 0)
        source_follow(g->source);
    return err;
}

static void cancel_source(void *arg)
{
    (void)source_cancel(((struct migration *)arg)->source);
}

int machine_lock_disks(struct machine *m, bool locked)
{
    int err = 0;
    unsigned i;

    for (i = 0; !err && i < m->n_disks; i++)
        err = virtio_blk_lock(m->disks[i], locked);
    if (!err)
        return 0;
    while (--i > 0) /* the last one failed */
        (void)virtio_blk_lock(m->disks[i - 1], !locked);
    return err;
}

static int stop_and_send(struct migration *g)
{
    struct machine *m = g->m;
    int err;

    source_stopping(g->source);
    machine_follow_keep(m);
    err = machine_quiesce(m);
    machine_follow_ask(m);
    if (!err && machine_event_pending(m))
        err = -ERESTART; /* a guest that ends or resets: nothing would tell the destination */
    if (!err)
        err = machine_gather(m, &g->state);
    if (!err)
        err = machine_add_network(m, &g->state);
    return err ? err : machine_work(m, send_rest, cancel_source, g);
}

/* The guest is ours again, as it stood; in doubt, if another process took a disk of it meanwhile. */
static void take_back(struct migration *g, bool disks_free)
{
    struct machine *m = g->m;

    m->paused = true;
    m->in_doubt = disks_free && machine_lock_disks(m, true) < 0;
    if (disks_free && !m->in_doubt)
        machine_nets_hold_ports(m, true);
    if (!g->was_paused)
        (void)machine_resume(m);
    machine_follow_back(m);
}

static void hand_over(struct migration *g)
{
    struct machine *m = g->m;
    bool disks_free = false;
    int err;

    g->was_paused = m->paused;
    m->saving = true;
    err = stop_and_send(g);
    if (!err)
        err = machine_lock_disks(m, false);
    if (!err) {
        disks_free = true;
        machine_nets_hold_ports(m, false);
        err = machine_work(m, give, cancel_source, g);
    }
    m->saving = false;
    if (!err)
        machine_follow_unplug(m);
    if (err == -EINPROGRESS) {
        m->paused = true;
        m->in_doubt = true;
        machine_follow_back(m);
        log_error("%s: the connection was lost at the moment of the hand-over: see 'ferry migrate "
                  "--status %s'", m->config->name, m->config->name);
    } else if (err) {
        take_back(g, disks_free);
    }
    finish(g, err);
    if (!err)
        machine_end_migrated(m);
}

void machine_migrate_serve(struct machine *m)
{
    struct migration *g = m->migration;
    int err;

    if (!g || g->stage == STAGE_OVER || m->ended)
        return;
    if (g->stage == STAGE_ASKED) {
        err = begin(g);
        if (err)
            finish(g, err);
        return;
    }
    if (!g->copied)
        return;
    g->copied = false;
    pthread_join(g->thread, NULL);
    if (g->err || g->check)
        finish(g, g->err);
    else
        hand_over(g);
}

/* Any time before the right to run was given away. */
static int cancel(struct migration *g)
{
    int err = 0;

    pthread_mutex_lock(&g->lock);
    if (g->source)
        err = source_cancel(g->source);
    if (!err) {
        g->cancelled = true;
        (void)eventfd_write(g->cancel_fd, 1);
    }
    pthread_mutex_unlock(&g->lock);
    return err;
}

static bool is_copied(void *arg)
{
    return ((struct migration *)arg)->copied;
}

static void destroy(struct migration *g)
{
    if (!g)
        return;
    if (g->stage == STAGE_COPYING) {
        (void)cancel(g);
        (void)machine_wait(g->m, is_copied, g);
        pthread_join(g->thread, NULL);
    }
    source_destroy(g->source);
    snapshot_fini(&g->hello);
    snapshot_fini(&g->state);
    json_decref(g->mismatches);
    json_decref(g->nics);
    if (g->cancel_fd >= 0)
        close(g->cancel_fd);
    pthread_mutex_destroy(&g->lock);
    tls_identity_destroy(g->identity);
    free(g->tls_folder);
    free(g->url);
    free(g);
}

void machine_migrate_destroy(struct machine *m)
{
    destroy(m->migration);
    m->migration = NULL;
}

/* Whoever asks how the last migration ended is not to be sent looking any more. */
static void note_told(struct migration *g)
{
    if (!g || g->last.phase != SOURCE_IN_DOUBT)
        return;
    g->last.phase = SOURCE_FAILED;
    snprintf(g->error, sizeof(g->error), "the hand-over to %s failed at its last moment; the guest was told "
             "to run on here", g->url);
}

int machine_resume_by_force(struct machine *m)
{
    int err;

    if (!m->paused || m->saving)
        return -EALREADY;
    if (m->in_doubt) {
        err = machine_lock_disks(m, true);
        if (err)
            return err;
        m->in_doubt = false;
        m->incoming = false;
        note_told(m->migration);
        machine_nets_hold_ports(m, true);
    }
    return machine_resume(m);
}

/* ---- the control socket ---- */

static int new_migration(struct migration **out, struct machine *m,
                         const struct migrate_request *request)
{
    struct migration *g = calloc(1, sizeof(*g));

    if (!g)
        return -ENOMEM;
    pthread_mutex_init(&g->lock, NULL);
    g->m = m;
    g->copied_call.run = copied;
    g->check = request->check;
    g->config = request->config;
    g->address = request->address;
    g->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    g->url = strdup(request->url);
    if (request->tls_folder)
        g->tls_folder = strdup(request->tls_folder);
    if (g->cancel_fd < 0 || !g->url || (request->tls_folder && !g->tls_folder)) {
        destroy(g);
        return -ENOMEM;
    }
    *out = g;
    return 0;
}

bool machine_is_moving(const struct machine *m)
{
    return m->arrival || (m->migration && m->migration->stage != STAGE_OVER);
}

/* Takes what machine_migrate_request.c lists; answers at the end. */
static int send_migration(void *opaque, const json_t *body, json_t **reply)
{
    struct machine *m = opaque;
    struct migrate_request request;
    struct migration *g;
    int err = migrate_request_read(&request, body, reply);

    if (err)
        return err;
    if (m->save_path || machine_is_moving(m) || control_busy(process_control(m->process), m)) {
        *reply = json_string("the guest is being saved or migrated already");
        return -EALREADY;
    }
    if (m->in_doubt) {
        *reply = json_string("the guest may run elsewhere; see 'ferry migrate --status'");
        return -EALREADY;
    }
    err = new_migration(&g, m, &request);
    if (err)
        return err;
    destroy(m->migration);
    m->migration = g;
    loop_stop(m->loop); /* machine_migrate_serve() goes on with it, outside of any callback */
    return -EINPROGRESS;
}

static int cancel_migration(void *opaque, const json_t *body, json_t **reply)
{
    struct machine *m = opaque;
    int err;

    (void)body;
    if (!m->migration || !machine_is_moving(m)) {
        *reply = json_string("the guest is not being migrated");
        return -EALREADY;
    }
    err = cancel(m->migration);
    if (err)
        *reply = json_string("it is too late: the guest was handed over");
    return err;
}

static int tell_migration(void *opaque, const json_t *body, json_t **reply)
{
    struct machine *m = opaque;

    (void)body;
    if (m->migration)
        *reply = describe(m->migration);
    else
        *reply = machine_describe_arrival(m);
    return *reply ? 0 : -ENOMEM;
}

const struct control_route machine_migrate_routes[] = {
    {"PUT", "/api/v1/vm.send-migration", send_migration},
    {"PUT", "/api/v1/vm.migration-cancel", cancel_migration},
    {"GET", "/api/v1/vm.migration", tell_migration},
    {0},
};
