/*
 * A machine's state, taken apart into the sections of a snapshot and put together again.
 *
 * Composition root. On the event loop's thread; the file itself is written by a thread of its own, so
 * that the loop goes on answering while the guest stands still. "No VM is ever lost": the guest ends
 * only when the whole file is on the disk under its name, and runs on after any failure before.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "migration/snapshot.h"
#include "vmm/machine_internal.h"
#include "vmm/machine_json.h"
#include "vmm/util/log.h"
#include "vmm/vcpu.h"
#include "vmm/vm.h"

/* ---- saving ---- */

static int add_config(struct machine *m, struct snapshot *snapshot)
{
    char *text = machine_config_to_json(m->config);
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

/* The writing thread's; the loop's thread reads the results after `finished`. */
struct writing {
    struct machine *m;
    struct snapshot snapshot;
    struct snapshot_summary summary;
    int err;
    struct loop_call finished_call; /* wakes the loop */
    atomic_bool finished;           /* release after the results, acquire before they are read */
};

static void woken(struct loop_call *call)
{
    (void)call; /* loop_run_until() looks at `finished` */
}

static void *write_main(void *arg)
{
    struct writing *w = arg;

    w->err = snapshot_write(&w->snapshot, w->m->mem, w->m->save_path, &w->summary);
    atomic_store_explicit(&w->finished, true, memory_order_release);
    loop_call(w->m->loop, &w->finished_call);
    return NULL;
}

static bool is_finished(void *arg)
{
    return atomic_load_explicit(&((struct writing *)arg)->finished, memory_order_acquire);
}

static int write_snapshot(struct writing *w)
{
    pthread_t thread;
    int err;

    w->finished_call.run = woken;
    err = pthread_create(&thread, NULL, write_main, w);
    if (err) {
        log_error("cannot save: no thread: %s", strerror(err));
        return -err;
    }
    err = machine_wait(w->m, is_finished, w);
    pthread_join(thread, NULL);
    return err ? err : w->err;
}

int machine_save(struct machine *m)
{
    struct writing w = {.m = m};
    bool was_paused = m->paused;
    json_t *reply = NULL;
    int err;

    m->saving = true;
    err = machine_quiesce(m);
    if (!err)
        err = add_config(m, &w.snapshot);
    if (!err)
        err = add_devices(m, &w.snapshot);
    if (!err)
        err = add_cpus(m, &w.snapshot);
    if (!err)
        err = write_snapshot(&w);
    m->saving = false;
    if (!err)
        reply = json_pack("{s:I, s:I}", "pages", (json_int_t)w.summary.pages, "skipped",
                          (json_int_t)w.summary.skipped);
    snapshot_fini(&w.snapshot);
    free(m->save_path);
    m->save_path = NULL;
    m->paused = true;
    if (err && !was_paused)
        (void)machine_resume(m);
    else if (!err)
        machine_end_saved(m);
    control_answer(m->control, m, err, reply);
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

static int load_devices(struct machine *m)
{
    unsigned found = 0;
    int err = 0;

    for (unsigned i = 0; i < m->snapshot->n_sections; i++)
        found += m->snapshot->sections[i].head.kind == STREAM_DEVICE;
    if (found != m->n_devices) {
        log_error("%s: it holds %u devices, and this machine has %u", m->restore_from->name, found,
                  m->n_devices);
        return -EBADMSG;
    }
    for (unsigned i = 0; !err && i < m->n_devices; i++) {
        const struct snapshot_section *s =
            snapshot_find(m->snapshot, STREAM_DEVICE, m->devices[i]->id);
        struct state_reader in = {0};

        if (!s) {
            err = missing(m, "device", m->devices[i]->id);
            break;
        }
        in = (struct state_reader){.data = s->payload, .length = s->head.length};
        err = machine_on_device(m, i, load_device, &in);
    }
    /* Resuming looks at every queue: a notification may have been on its way. */
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

int machine_load(struct machine *m)
{
    int err = snapshot_read_memory(m->snapshot, m->restore_from, m->mem);

    if (!err)
        err = load_devices(m);
    return err ? err : load_cpus(m);
}
