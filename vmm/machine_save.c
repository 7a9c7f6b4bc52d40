/*
 * A machine's state, taken apart into the sections of a snapshot and put together again.
 *
 * Composition root. On the event loop's thread; the file itself is written by a thread of its own, so
 * that the loop goes on answering while the guest stands still. "No VM is ever lost": the guest ends
 * only when the whole file is on the disk under its name, and runs on after any failure before.
 */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "devices/virtio/blk.h"
#include "devices/vmgenid.h"
#include "migration/lazy.h"
#include "migration/live_save.h"
#include "migration/snapshot.h"
#include "vmm/machine_internal.h"
#include "vmm/machine_json.h"
#include "vmm/process.h"
#include "vmm/process_net.h"
#include "vmm/terminal.h"
#include "vmm/util/log.h"
#include "vmm/vcpu.h"
#include "vmm/vm.h"

#define NS_PER_MS 1000000ull

/* ---- saving ---- */

/* The switches that its cards are in, as they were asked for: each once. */
static json_t *describe_switches(const struct machine *m)
{
    json_t *switches = json_array();

    for (unsigned i = 0; i < m->config->n_nets; i++) {
        const struct process_switch *ps = m->nics[i].net;
        bool again = false;

        for (unsigned before = 0; before < i; before++)
            again = again || m->nics[before].net == ps;
        if (ps && ps->text && !again)
            json_array_append_new(switches, json_string(ps->text));
    }
    return switches;
}

/* What the machine is built from, and beside it the switches, which are the process's. */
static char *describe_all(const struct machine *m)
{
    char *text = machine_config_to_json(m->config);
    json_t *json = text ? json_loads(text, 0, NULL) : NULL;

    free(text);
    text = NULL;
    if (json && json_object_set_new(json, "switches", describe_switches(m)) == 0)
        text = json_dumps(json, JSON_INDENT(1));
    json_decref(json);
    return text;
}

static int add_config(struct machine *m, struct snapshot *snapshot)
{
    char *text = describe_all(m);
    int err = text ? snapshot_add(snapshot, STREAM_CONFIG, "", text, strlen(text)) : -ENOMEM;

    free(text);
    return err;
}

/* Adds what was gathered as a section, and empties the buffer. */
static int add_buffer(struct snapshot *snapshot, enum stream_kind kind, const char *id, int err,
                      struct state_buffer *buffer)
{
    if (!err)
        err = snapshot_add(snapshot, kind, id, buffer->data, buffer->length);
    buffer->length = 0;
    return err;
}

static int add_devices(struct machine *m, struct snapshot *snapshot)
{
    struct state_buffer buffer = {0};
    int err = 0;

    device_lock(&m->env);
    for (unsigned i = 0; !err && i < m->n_devices; i++)
        err = add_buffer(snapshot, STREAM_DEVICE, m->devices[i]->id,
                         device_save(m->devices[i], &buffer), &buffer);
    device_unlock(&m->env);
    state_buffer_fini(&buffer);
    return err;
}

static int add_cpus(struct machine *m, struct snapshot *snapshot)
{
    struct state_buffer buffer = {0};
    int err = add_buffer(snapshot, STREAM_VM, "", vm_save(m->vm, &buffer), &buffer);

    for (unsigned i = 0; !err && i < vcpus_count(m->vcpus); i++) {
        char id[STREAM_ID_MAX];

        snprintf(id, sizeof(id), "%u", i);
        err = add_buffer(snapshot, STREAM_VCPU, id, vcpu_save(vcpus_get(m->vcpus, i), &buffer),
                         &buffer);
    }
    state_buffer_fini(&buffer);
    return err;
}

int machine_gather(struct machine *m, struct snapshot *snapshot)
{
    int err = add_devices(m, snapshot);

    return err ? err : add_cpus(m, snapshot);
}

int machine_work(struct machine *m, int (*work)(void *arg), void (*cancel)(void *arg), void *arg)
{
    return process_work(m->process, &m->ended, work, cancel, arg);
}

/* ---- into a file ---- */

#define LIVE_DOWNTIME_NS (100 * NS_PER_MS)
#define LOOK_NS (100 * NS_PER_MS) /* between two looks whether to go on */

struct writing {
    struct machine *m;
    int cancel_fd;            /* owns: an eventfd */
    struct loop_timer look;
    bool cancelled;
    bool was_paused;
    struct live_save *live;   /* owns; NULL: the guest is stopped first */
    struct snapshot snapshot;
    struct snapshot_summary summary;
    uint64_t stopped_ns;
};

static void cancel_writing(void *arg)
{
    struct writing *w = arg;

    w->cancelled = true;
    (void)eventfd_write(w->cancel_fd, 1);
}

/* A guest that runs may ask for its end or a reset, and who asked for the file may be gone. */
static void look_whether_to_go_on(struct loop_timer *timer)
{
    struct writing *w = (struct writing *)((char *)timer - offsetof(struct writing, look));

    if (machine_event_pending(w->m) || control_abandoned(process_control(w->m->process), w->m))
        cancel_writing(w);
    else
        loop_timer_set(w->m->loop, timer, loop_now_ns() + LOOK_NS);
}

/* While the guest runs: what comes from a file itself is to be there first. */
static int write_live(void *arg)
{
    struct writing *w = arg;
    const struct live_save_config config = {.path = w->m->save_path,
                                            .downtime_ns = LIVE_DOWNTIME_NS,
                                            .cancel_fd = w->cancel_fd};
    int err = machine_await_memory(w->m, w->cancel_fd);

    if (err || !w->m->save_live)
        return err;
    err = live_save_create(&w->live, w->m->mem, &machine_source_ops, w->m, &config);
    if (!err)
        err = live_save_copy(w->live);
    /* What is on the disk already need not be brought there while the guest stands still. */
    for (unsigned i = 0; !err && i < w->m->n_disks; i++)
        virtio_blk_sync(w->m->disks[i]);
    return err;
}

static int write_rest(void *arg)
{
    struct writing *w = arg;

    if (w->live)
        return live_save_finish(w->live, &w->snapshot, &w->summary);
    return snapshot_write(&w->snapshot, w->m->mem, w->m->save_path, &w->summary);
}

static int write_stopped(struct writing *w)
{
    struct machine *m = w->m;
    int err;

    w->stopped_ns = loop_now_ns();
    err = machine_quiesce(m);
    if (!err && (w->cancelled || machine_event_pending(m)))
        err = -ECANCELED; /* a guest that ends or resets is no guest to be saved */
    if (!err)
        err = add_config(m, &w->snapshot);
    if (!err)
        err = machine_gather(m, &w->snapshot);
    if (!err)
        err = machine_work(m, write_rest, w->live ? cancel_writing : NULL, w);
    w->stopped_ns = loop_now_ns() - w->stopped_ns;
    m->paused = true;
    if (err && !w->was_paused) {
        m->saving = false;
        (void)machine_resume(m);
    }
    return err;
}

static json_t *describe_writing(const struct writing *w, int err)
{
    json_t *reply;

    if (err == -ECANCELED)
        return json_string("the save was cancelled, or the guest is about to end: it goes on here");
    if (err)
        return json_sprintf("cannot save the guest to %s: %s; it goes on here", w->m->save_path,
                            err == -EEXIST ? "that is there already, and is no saved guest"
                                           : strerror(-err));
    reply = json_pack("{s:I, s:I}", "pages", (json_int_t)w->summary.pages, "skipped",
                      (json_int_t)w->summary.skipped);
    if (reply && w->live) {
        json_object_set_new(reply, "written", json_integer((json_int_t)w->summary.written));
        json_object_set_new(reply, "rounds", json_integer(live_save_rounds(w->live)));
        json_object_set_new(reply, "downtime_ms",
                            json_real((double)w->stopped_ns / (double)NS_PER_MS));
    }
    return reply;
}

int machine_save(struct machine *m)
{
    struct writing w = {.m = m, .was_paused = m->paused,
                        .look.expired = look_whether_to_go_on,
                        .cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    int err = w.cancel_fd < 0 ? -errno : 0;

    m->saving = true;
    if (!err && (m->save_live || m->lazy)) {
        loop_timer_set(m->loop, &w.look, loop_now_ns() + LOOK_NS);
        err = machine_work(m, write_live, cancel_writing, &w);
        loop_timer_cancel(&w.look);
    }
    if (!err)
        err = write_stopped(&w);
    m->saving = false;
    control_answer(process_control(m->process), m, err, describe_writing(&w, err));
    live_save_destroy(w.live);
    snapshot_fini(&w.snapshot);
    free(m->save_path);
    m->save_path = NULL;
    if (w.cancel_fd >= 0)
        close(w.cancel_fd);
    if (!err)
        machine_end_saved(m);
    return 0;
}

/* ---- restoring ---- */

static int missing(const struct machine *m, const char *what, const char *id)
{
    log_error("%s: %s '%s' is missing: the file is of another machine", m->restore_from->name, what,
              id);
    return -EBADMSG;
}

static int load_device(struct device *dev, void *arg)
{
    device_pause(dev);
    return device_load(dev, arg);
}

static int resume_device(struct device *dev, void *arg)
{
    (void)arg;
    device_resume(dev);
    return 0;
}

static int leave_device(struct device *dev, void *arg)
{
    (void)arg;
    device_pause(dev);
    device_absent(dev);
    return 0;
}

/* Each section is of a device here, and each device here has a section, or can do without. */
static int check_devices(struct machine *m)
{
    unsigned found = 0, wanted = 0;

    for (unsigned i = 0; i < m->snapshot->n_sections; i++)
        found += m->snapshot->sections[i].head.kind == STREAM_DEVICE;
    for (unsigned i = 0; i < m->n_devices; i++)
        wanted += !device_may_be_absent(m->devices[i]) ||
                  snapshot_find(m->snapshot, STREAM_DEVICE, m->devices[i]->id);
    if (found == wanted)
        return 0;
    log_error("%s: it holds %u devices, and this machine has %u", m->restore_from->name, found,
              wanted);
    return -EBADMSG;
}

static int load_devices(struct machine *m)
{
    int err = check_devices(m);

    for (unsigned i = 0; !err && i < m->n_devices; i++) {
        const struct snapshot_section *s =
            snapshot_find(m->snapshot, STREAM_DEVICE, m->devices[i]->id);
        struct state_reader in = {0};

        if (!s && device_may_be_absent(m->devices[i])) {
            err = machine_on_device(m, i, leave_device, NULL);
            continue;
        }
        if (!s) {
            err = missing(m, "device", m->devices[i]->id);
            break;
        }
        in = (struct state_reader){.data = s->payload, .length = s->head.length};
        err = machine_on_device(m, i, load_device, &in);
    }
    return err;
}

/* Devices look at their queues again. */
static int resume_devices(struct machine *m)
{
    int err = 0;

    for (unsigned i = 0; !err && i < m->n_devices; i++)
        err = machine_on_device(m, i, resume_device, NULL);
    return err;
}

static int load_cpus(struct machine *m)
{
    const struct snapshot_section *s = snapshot_find(m->snapshot, STREAM_VM, NULL);
    struct state_reader in;
    int err;

    if (!s)
        return missing(m, "section", "VM");
    in = (struct state_reader){.data = s->payload, .length = s->head.length};
    err = vm_load(m->vm, &in);
    for (unsigned i = 0; !err && i < vcpus_count(m->vcpus); i++) {
        char id[STREAM_ID_MAX];

        snprintf(id, sizeof(id), "%u", i);
        s = snapshot_find(m->snapshot, STREAM_VCPU, id);
        if (!s)
            return missing(m, "vCPU", id);
        in = (struct state_reader){.data = s->payload, .length = s->head.length};
        err = vcpu_load(vcpus_get(m->vcpus, i), &in);
    }
    return err;
}

int machine_load_state(struct machine *m)
{
    int err = load_devices(m);

    return err ? err : load_cpus(m);
}

/* A page that cannot be had is one that a vCPU, a device or this process sleeps for, and the kernel wakes
 * nobody but to give it: only the end of the process ends that. What is on the disks is as after a
 * power cut. */
static void memory_lost(void *opaque)
{
    (void)opaque;
    terminal_restore();
    _exit(EXIT_FAILURE);
}

static int load_memory(struct machine *m)
{
    const struct memory_options *memory = &m->config->memory;
    int err;

    if (m->restore_lazily && (memory->hugepages || memory->prealloc)) {
        log_warn("%s: memory of hugepages= or prealloc= is read as a whole", m->restore_from->name);
        m->restore_lazily = false;
    }
    if (m->restore_lazily) {
        err = lazy_start(&m->lazy, m->snapshot, m->restore_from, m->mem, memory_lost, m);
        if (err != -ENOENT)
            return err;
        log_warn("%s: an earlier ferry wrote it, without checksums of parts: memory is read as a "
                 "whole", m->restore_from->name);
    }
    return snapshot_read_memory(m->snapshot, m->restore_from, m->mem);
}

int machine_await_memory(const struct machine *m, int cancel_fd)
{
    return m->lazy ? lazy_wait(m->lazy, cancel_fd) : 0;
}

/* Devices go on last, when the interrupts that they raise find the controllers as they were. They look
 * at every queue: a notification may have been on its way. */
int machine_load(struct machine *m)
{
    int err = load_memory(m);

    if (!err)
        err = machine_load_state(m);
    if (!err)
        err = resume_devices(m);
    if (err)
        return err;
    if (m->fresh_macs)
        machine_nets_take_own_macs(m);
    device_lock(&m->env);
    err = vmgenid_renew(m->genid); /* another may have gone on, or will, from the same file */
    device_unlock(&m->env);
    return err;
}
