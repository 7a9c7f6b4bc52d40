/*
 * A guest arrives: memory and state from the other process, then the right to run it.
 *
 * Composition root. The loop's thread; what waits for the source is on a thread of its own
 * (machine_work()), so that the loop goes on answering. The state is loaded while the guest is still
 * the source's: an error then is told to it, and nothing is lost.
 */
#include "vmm/machine_receive.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "migration/target.h"
#include "vmm/machine_follow.h"
#include "vmm/machine_internal.h"
#include "vmm/machine_ports.h"
#include "vmm/process.h"
#include "vmm/util/log.h"

#define NS_PER_MS 1000000ull

struct arrival {
    struct machine *m;
    struct target *target;
    struct snapshot state;
    bool shared; /* memory is here already */
    const char *why; /* for the refusal */
    uint64_t go_ns;  /* when the guest became ours */
};

static int receive(void *arg)
{
    struct arrival *a = arg;

    return target_receive(a->target, a->shared ? NULL : a->m->mem, &a->state);
}

static int wait_for_right(void *arg)
{
    return target_ready(((struct arrival *)arg)->target);
}

static void put_frames(void *opaque, const char *nic, const void *records, size_t size)
{
    machine_follow_put(((struct arrival *)opaque)->m, nic, records, size);
}

static void release(void *opaque)
{
    machine_follow_release(((struct arrival *)opaque)->m);
}

static char *tell_traffic(void *opaque, bool late)
{
    struct arrival *a = opaque;

    return machine_follow_traffic(a->m, a->go_ns, late);
}

static const struct target_follow_ops follow_ops = {put_frames, release, tell_traffic};

static int catch_up(void *arg)
{
    target_catch_up(((struct arrival *)arg)->target, &follow_ops, arg);
    return 0;
}

static int follow(void *arg)
{
    target_follow(((struct arrival *)arg)->target, &follow_ops, arg);
    return 0;
}

static int refuse(void *arg)
{
    const struct arrival *a = arg;

    target_refuse(a->target, a->why);
    return 0;
}

static void cancel(void *arg)
{
    target_cancel(((struct arrival *)arg)->target);
}

static int load(struct arrival *a)
{
    const struct stream_reader reader = {.fd = -1, .name = "the source"};
    int err;

    a->m->snapshot = &a->state;
    a->m->restore_from = &reader;
    err = machine_load_state(a->m);
    a->m->snapshot = NULL;
    a->m->restore_from = NULL;
    return err;
}

static int give_up(struct arrival *a, const char *why, int err)
{
    a->why = why;
    (void)machine_work(a->m, refuse, NULL, a);
    return err;
}

/* The guest runs from here on; the source is told afterwards, so that it does not wait for that. */
static int go_on(struct arrival *a)
{
    struct target_status status;
    uint64_t stopped_for_ns;
    char text[96];
    bool follows;
    int err = machine_lock_disks(a->m, true);

    if (err)
        return give_up(a, "a disk of the guest was taken by another process", err);
    target_get_status(a->target, &status);
    a->m->incoming = false;
    a->m->saving = false;
    a->m->arrived = true;
    a->go_ns = status.go_ns;
    machine_ports_take_over(a->m, &a->state);
    follows = machine_follow_open(a->m, &a->state);
    if (!status.paused)
        (void)machine_resume(a->m);
    stopped_for_ns = loop_now_ns() - status.stopped_ns;
    machine_nets_hold_ports(a->m, true);
    /* What came while the guest stood still goes before what is sent here once it is announced; and
     * that is on its way when the source hears that the guest runs. */
    if (follows)
        (void)machine_work(a->m, catch_up, cancel, a);
    machine_announce(a->m, &a->state);
    snprintf(text, sizeof(text), "{\"downtime_ns\":%llu,\"since_go_ns\":%llu}",
             (unsigned long long)stopped_for_ns,
             (unsigned long long)(loop_now_ns() - status.go_ns));
    process_claim_name(a->m->process, a->m->config->name);
    if (target_running(a->target, text) < 0)
        log_warn("%s runs here, but its source may not have heard of it: 'ferry stop -f' ends what "
                 "waits there", a->m->config->name);
    else if (follows)
        (void)machine_work(a->m, follow, cancel, a);
    machine_follow_release(a->m);
    return 0;
}

static int take(struct arrival *a)
{
    int err = machine_work(a->m, receive, cancel, a);

    if (err == -ECANCELED || err == -ECONNRESET)
        return err;
    if (err)
        return give_up(a, "what came was damaged", err);
    err = load(a);
    if (!err)
        err = machine_ports_configure(a->m, &a->state);
    if (err)
        return give_up(a, "the guest's state does not fit; the log there says why", err);
    err = machine_work(a->m, wait_for_right, cancel, a);
    if (!err)
        return go_on(a);
    if (err == -ECANCELED)
        return err;
    a->m->in_doubt = true;
    log_error("%s: the source was lost at the moment of the hand-over: see 'ferry migrate --status %s'",
              a->m->config->name, process_name(a->m->process));
    return 0;
}

int machine_arrive(struct machine *m, struct target *target)
{
    struct arrival a = {.m = m, .target = target, .shared = m->shared_memory};
    int err;

    m->arrival = target;
    m->saving = true; /* nobody pauses or resumes it meanwhile */
    err = take(&a);
    m->saving = false;
    m->arrival = NULL;
    snapshot_fini(&a.state);
    if (!err && m->ended)
        log_warn("%s was ended when it had just arrived", m->config->name);
    return err;
}

static json_t *describe_doubt(const struct machine *m)
{
    const char *name = process_name(m->process);

    return json_sprintf("the connection was lost at the moment of the hand-over: the guest stands still "
                        "here, and may run at its source: look there by 'ferry ps'. Running there: end "
                        "this one by 'ferry stop -f %s'. InDoubt there, too: end it on one side by 'ferry "
                        "stop -f', then let it run on at the other by 'ferry resume --force'. Not there, "
                        "and not to come: 'ferry resume --force %s'", name, name);
}

json_t *machine_describe_arrival(const struct machine *m)
{
    struct target_status status = {0};
    json_t *json;

    if (m->arrival)
        target_get_status(m->arrival, &status);
    json = json_pack("{s:s}", "status",
                     m->arrival ? "receiving" : m->in_doubt ? "in-doubt" : "none");
    if (json && m->arrival)
        json_object_set_new(json, "received_bytes", json_integer((json_int_t)status.received_bytes));
    if (json && m->in_doubt)
        json_object_set_new(json, "error",
                            describe_doubt(m));
    return json;
}
