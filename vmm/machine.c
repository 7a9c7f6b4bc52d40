/*
 * The machine: built in one order, taken down in the reverse, and in between run by the event loop.
 *
 * Composition root: it sees every module; none sees it. Does not parse options (machine_config.c),
 * has no loop, signals or control socket of its own (process.c) and decides no exit statuses
 * (cmd_run.c). All on the main thread, which is the event loop's, except
 * raise_event() and vcpu_failed(), which any thread calls; they touch only what event_lock guards.
 */
#include "vmm/machine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "devices/chardev.h"
#include "devices/power.h"
#include "devices/virtio/blk.h"
#include "devices/virtio/console.h"
#include "devices/virtio/rng.h"
#include "devices/virtio/virtio.h"
#include "migration/lazy.h"
#include "vmm/arch.h"
#include "vmm/bus.h"
#include "vmm/control.h"
#include "vmm/machine_follow.h"
#include "vmm/machine_internal.h"
#include "vmm/probe.h"
#include "vmm/process.h"
#include "vmm/util/log.h"
#include "vmm/util/loop_thread.h"
#include "vmm/vcpu.h"
#include "vmm/vm.h"

#define NS_PER_S 1000000000ull
/* What the guest printed last has this long to leave, should nobody read it. */
#define DRAIN_NS (2 * NS_PER_S)

/* ---- the end of the guest ---- */

static struct machine *from_events(struct machine_events *events)
{
    return (struct machine *)((char *)events - offsetof(struct machine, events));
}

/* Any thread. The first event since the last was taken wins. */
static void raise_event(struct machine_events *events, enum machine_event event, const char *cause)
{
    struct machine *m = from_events(events);

    pthread_mutex_lock(&m->event_lock);
    if (!m->event_raised) {
        m->event_raised = true;
        m->event = event;
        snprintf(m->event_cause, sizeof(m->event_cause), "%s", cause);
    }
    pthread_mutex_unlock(&m->event_lock);
    loop_stop(m->loop);
}

static void vcpu_failed(void *opaque, enum vcpu_failure failure, const char *detail)
{
    struct machine *m = opaque;

    switch (failure) {
    case VCPU_TRIPLE_FAULT:
    case VCPU_ERROR:
        raise_event(&m->events, MACHINE_PANIC, detail);
        break;
    case VCPU_SHUTDOWN:
        raise_event(&m->events, MACHINE_POWER_OFF, detail);
        break;
    case VCPU_RESET:
        raise_event(&m->events, MACHINE_RESET, detail);
        break;
    }
}

static void end(struct machine *m, enum machine_outcome outcome)
{
    if (!m->ended) {
        m->ended = true;
        m->outcome = outcome;
    }
    loop_stop(m->loop);
}

void machine_end_saved(struct machine *m)
{
    end(m, MACHINE_SAVED);
}

void machine_end_migrated(struct machine *m)
{
    end(m, MACHINE_MIGRATED);
}

void machine_quit(struct machine *m)
{
    end(m, MACHINE_QUIT);
}

void machine_restart(struct machine *m, const char *cause)
{
    raise_event(&m->events, MACHINE_RESET, cause);
}

void machine_press_power_button(struct machine *m)
{
    device_lock(&m->env);
    power_button_press(m->power);
    device_unlock(&m->env);
}

static void grace_over(struct loop_timer *timer)
{
    struct machine *m = (struct machine *)((char *)timer - offsetof(struct machine, grace));

    log_warn("%sthe guest did not power off within %u s of the power button; ending it",
             m->label, m->config->grace_s);
    end(m, MACHINE_KILLED);
}

void machine_ask_to_end(struct machine *m, int signal_number)
{
    m->signal_number = signal_number;
    if (m->ended)
        return;
    if (m->arrival && !m->arrived) { /* nobody there to press a button for */
        end(m, MACHINE_KILLED);
        return;
    }
    machine_press_power_button(m);
    loop_timer_set(m->loop, &m->grace, loop_now_ns() + m->config->grace_s * NS_PER_S);
}

void machine_kill(struct machine *m)
{
    end(m, MACHINE_KILLED);
}

/* ---- building ---- */

static int destroy_device(void *dev)
{
    device_destroy(dev);
    return 0;
}

int machine_add_device_on(struct machine *m, struct device *dev, struct loop_thread *thread)
{
    if (m->n_devices == MACHINE_MAX_DEVICES) {
        log_error("more than %u devices", MACHINE_MAX_DEVICES);
        loop_thread_call(thread, destroy_device, dev);
        return -ENOSPC;
    }
    m->device_threads[m->n_devices] = thread;
    m->devices[m->n_devices++] = dev;
    return 0;
}

int machine_add_device(struct machine *m, struct device *dev)
{
    return machine_add_device_on(m, dev, NULL);
}

static int build_memory(struct machine *m)
{
    struct memory_config config = {
        .size = m->config->memory.size,
        .hugepage = m->config->memory.hugepages,
        .prealloc = m->config->memory.prealloc,
    };

    machine_arch_memory(&config);
    if (m->incoming_fd >= 0) {
        int fd = m->incoming_fd;

        m->incoming_fd = -1;
        m->shared_memory = true;
        return memory_adopt(&m->mem, &config, fd);
    }
    return memory_create(&m->mem, &config);
}

/* Where there is no KVM to ask, vm_create() says so later. */
static bool kvm_emulates_kernels(void)
{
    struct kvm_traits traits = {0};
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

    if (fd < 0)
        return false;
    if (kvm_probe(fd, &traits) < 0)
        traits.emulates_kernel = false;
    close(fd);
    return traits.emulates_kernel;
}

static int build_kernel(struct machine *m)
{
    struct boot_config config = {
        .kernel_path = m->config->kernel,
        .initrd_path = m->config->initrd,
        .cmdline = m->config->append,
        .decompress = m->config->decompress,
        .linux_options = m->assist ? arch_assist_options : NULL,
    };

    return kernel_open(&m->kernel, &config);
}

/* A host without usable KVM is one thing, a VM that is too large for it another. */
static int build_vm(struct machine *m)
{
    int err = vm_create(&m->vm, m->mem, m->assist);

    if (!err && m->config->memory.dirty_ring &&
        vm_use_dirty_rings(m->vm, m->config->memory.dirty_ring) < 0)
        log_warn("memory: this host's KVM has no dirty rings of %u entries: its log is used",
                 m->config->memory.dirty_ring);
    return err && err != -ENOMEM ? -EOPNOTSUPP : err;
}

static int build_busses(struct machine *m)
{
    int err = bus_create(&m->pio, "port I/O");

    if (!err)
        err = bus_create(&m->mmio, "MMIO");
    m->env = (struct device_env){
        .mem = m->mem,
        .pio = m->pio,
        .mmio = m->mmio,
        .intc = vm_intc(m->vm),
        .doorbells = vm_doorbells(m->vm),
        .loop = m->loop,
        .events = &m->events,
        .lock = &m->lock,
    };
    return err;
}

/* Puts a class on the PCI bus and takes the device over; on error the class is destroyed. */
static int add_virtio(struct machine *m, struct virtio_device *vdev)
{
    struct device *dev;
    int err;

    device_lock(&m->env);
    err = virtio_pci_create(&dev, vdev, m->pci);
    device_unlock(&m->env);
    if (err) {
        vdev->class->destroy(vdev);
        return err;
    }
    return machine_add_device(m, dev);
}

/* The properties of queues that a disk is not to offer, as feature bits. */
static uint64_t withheld_of(const struct disk_options *disk)
{
    return (disk->event_idx ? 0 : 1ull << VIRTIO_RING_F_EVENT_IDX) |
           (disk->indirect ? 0 : 1ull << VIRTIO_RING_F_INDIRECT_DESC) |
           (disk->packed ? 0 : 1ull << VIRTIO_F_RING_PACKED);
}

static int build_disks(struct machine *m)
{
    for (unsigned i = 0; i < m->config->n_disks; i++) {
        const struct disk_options *options = &m->config->disks[i];
        const struct virtio_blk_config config = {
            .path = options->path,
            .readonly = options->readonly,
            .direct = options->direct,
            .serial = options->serial,
            .unlocked = m->incoming,
        };
        struct virtio_device *vdev;
        char id[32];
        int err;

        snprintf(id, sizeof(id), "disk%u", i);
        err = virtio_blk_create(&vdev, &m->env, id, &config);
        if (err)
            return err;
        vdev->withheld = withheld_of(options);
        err = add_virtio(m, vdev);
        if (err)
            return err;
        m->disks[m->n_disks++] = vdev;
    }
    return 0;
}

static int build_rng(struct machine *m)
{
    struct virtio_device *vdev;
    int err = virtio_rng_create(&vdev, &m->env, "rng0");

    return err ? err : add_virtio(m, vdev);
}

static int build_virtio_console(struct machine *m)
{
    struct virtio_device *vdev;
    int err;

    if (!m->virtio_console)
        return 0;
    err = virtio_console_create(&vdev, &m->env, "console0", m->virtio_console);
    return err ? err : add_virtio(m, vdev);
}

static int build_vcpus(struct machine *m)
{
    const struct vcpus_config config = {
        .vm = m->vm,
        .count = m->config->cpus,
        .assist = m->assist ? m->mem : NULL,
        .pio = m->pio,
        .mmio = m->mmio,
        .lock = &m->lock,
        .failed = vcpu_failed,
        .opaque = m,
    };

    return vcpus_create(&m->vcpus, &config);
}

/* What can be wrong with files and options comes before what costs time. */
static int (*const build_steps[])(struct machine *) = {
    build_kernel, build_memory, build_vm, build_busses, machine_build_console,
    machine_arch_devices, build_disks, machine_build_nets, build_rng, build_virtio_console, build_vcpus,
    machine_arch_load,
};

/* The same machine, but what it holds comes from a file. */
static int (*const restore_steps[])(struct machine *) = {
    build_memory, build_vm,  build_busses, machine_build_console, machine_arch_devices,
    build_disks,  machine_build_nets, build_rng, build_virtio_console, build_vcpus, machine_load,
};

static void for_each_device(struct machine *m, void (*action)(struct device *dev));

static int pause_devices(struct machine *m)
{
    for_each_device(m, device_pause);
    machine_follow_hush(m);
    m->paused = true;
    return 0;
}

/* What it holds comes later, from another process. */
static int (*const incoming_steps[])(struct machine *) = {
    build_memory, build_vm,           build_busses, machine_build_console, machine_arch_devices,
    build_disks,  machine_build_nets, build_rng,    build_virtio_console,  build_vcpus,
    pause_devices,
};

static int build(struct machine *m, int (*const steps[])(struct machine *), size_t n)
{
    int err = process_add_guest(m->process, m);

    m->assist = kvm_emulates_kernels();
    for (size_t i = 0; !err && i < n; i++)
        err = steps[i](m);
    if (err)
        machine_destroy(m);
    return err;
}

static struct machine *new_machine(struct process *process, const struct machine_config *config)
{
    struct machine *m = calloc(1, sizeof(*m));

    if (!m)
        return NULL;
    m->config = config;
    m->incoming_fd = -1;
    m->process = process;
    m->loop = process_loop(process);
    m->grace.expired = grace_over;
    m->events.raise = raise_event;
    if (config->lab)
        snprintf(m->label, sizeof(m->label), "%s: ", config->name);
    pthread_mutex_init(&m->lock, NULL);
    pthread_mutex_init(&m->event_lock, NULL);
    return m;
}

int machine_create(struct machine **out, struct process *process,
                   const struct machine_config *config)
{
    struct machine *m = new_machine(process, config);
    int err = m ? build(m, build_steps, sizeof(build_steps) / sizeof(build_steps[0])) : -ENOMEM;

    if (!err)
        *out = m;
    return err;
}

int machine_restore(struct machine **out, struct process *process,
                    const struct machine_config *config, const struct snapshot *snapshot,
                    const struct stream_reader *reader, bool lazily,
                    bool fresh_macs)
{
    struct machine *m = new_machine(process, config);
    int err;

    if (!m)
        return -ENOMEM;
    m->snapshot = snapshot;
    m->restore_from = reader;
    m->restore_lazily = lazily;
    m->fresh_macs = fresh_macs;
    err = build(m, restore_steps, sizeof(restore_steps) / sizeof(restore_steps[0]));
    if (err)
        return err;
    m->snapshot = NULL;
    m->restore_from = NULL;
    *out = m;
    return 0;
}

int machine_create_incoming(struct machine **out, struct process *process,
                            const struct machine_config *config, int memory_fd)
{
    struct machine *m = new_machine(process, config);
    int err;

    if (!m) {
        if (memory_fd >= 0)
            close(memory_fd);
        return -ENOMEM;
    }
    m->incoming = true;
    m->incoming_fd = memory_fd;
    err = build(m, incoming_steps, sizeof(incoming_steps) / sizeof(incoming_steps[0]));
    if (!err)
        *out = m;
    return err;
}

/* ---- running ---- */

struct device_work {
    struct machine *m;
    unsigned index;
    int (*work)(struct device *dev, void *arg);
    void *arg;
};

static int do_device_work(void *arg)
{
    const struct device_work *w = arg;
    int result;

    device_lock(&w->m->env);
    result = w->work(w->m->devices[w->index], w->arg);
    device_unlock(&w->m->env);
    return result;
}

int machine_on_device(struct machine *m, unsigned index,
                      int (*work)(struct device *dev, void *arg), void *arg)
{
    struct device_work w = {.m = m, .index = index, .work = work, .arg = arg};

    return loop_thread_call(m->device_threads[index], do_device_work, &w);
}

static int act(struct device *dev, void *arg)
{
    void (*const *action)(struct device *dev) = arg;

    (*action)(dev);
    return 0;
}

static void for_each_device(struct machine *m, void (*action)(struct device *dev))
{
    for (unsigned i = 0; i < m->n_devices; i++)
        machine_on_device(m, i, act, &action);
}

static bool is_idle(void *arg)
{
    const struct device_work *w = arg;
    bool busy;

    device_lock(&w->m->env);
    busy = device_busy(w->m->devices[w->index]);
    device_unlock(&w->m->env);
    return !busy;
}

/* On the thread of a device. */
static int await_idle(void *arg)
{
    const struct device_work *w = arg;

    return loop_run_until(loop_thread_loop(w->m->device_threads[w->index]), is_idle, arg, 0);
}

/* The devices on the process's loop. */
static bool all_idle(void *arg)
{
    struct machine *m = arg;
    bool idle = true;

    for (unsigned i = 0; idle && i < m->n_devices; i++) {
        struct device_work w = {.m = m, .index = i};

        idle = m->device_threads[i] || is_idle(&w);
    }
    return idle;
}

int machine_wait(struct machine *m, bool (*ready)(void *arg), void *arg)
{
    bool in_service = m->in_service;
    int err;

    m->in_service = true;
    err = process_wait(m->process, ready, arg, 0);
    m->in_service = in_service;
    return err;
}

/* vCPUs parked; afterwards no request is in flight, and none begins. */
static int quiesce_devices(struct machine *m)
{
    for_each_device(m, device_pause);
    for (unsigned i = 0; i < m->n_devices; i++) {
        struct device_work w = {.m = m, .index = i};
        int err = m->device_threads[i] ? loop_thread_call(m->device_threads[i], await_idle, &w) : 0;

        if (err)
            return err;
    }
    return machine_wait(m, all_idle, m);
}

int machine_quiesce(struct machine *m)
{
    vcpus_park(m->vcpus);
    return quiesce_devices(m);
}

int machine_pause(struct machine *m)
{
    if (m->paused || m->saving)
        return -EALREADY;
    vcpus_park(m->vcpus);
    for_each_device(m, device_pause);
    m->paused = true;
    return 0;
}

int machine_resume(struct machine *m)
{
    if (!m->paused || m->saving || m->in_doubt)
        return -EALREADY;
    for_each_device(m, device_resume);
    vcpus_resume(m->vcpus);
    m->paused = false;
    return 0;
}

/* One that is paused begins anew when it is resumed. */
static int restart(struct machine *m)
{
    const bool paused = m->paused;
    int err;

    err = machine_quiesce(m);
    if (!err && !m->kernel)
        err = build_kernel(m); /* a restored guest's first reset */
    if (err)
        return err;
    lazy_stop(m->lazy);
    for_each_device(m, device_reset);
    for_each_device(m, device_resume);
    m->paused = false;
    err = memory_clear(m->mem);
    if (!err)
        err = vm_reset(m->vm);
    if (!err)
        err = vcpus_reset(m->vcpus);
    if (!err)
        err = machine_arch_load(m);
    if (err)
        return err;
    if (paused)
        return machine_pause(m);
    vcpus_resume(m->vcpus);
    return 0;
}

bool machine_event_pending(struct machine *m)
{
    bool pending;

    pthread_mutex_lock(&m->event_lock);
    pending = m->event_raised;
    pthread_mutex_unlock(&m->event_lock);
    return pending;
}

/* Takes the event that was raised, if any, and acts on it. */
static int handle_event(struct machine *m)
{
    enum machine_event event;
    char cause[sizeof(m->event_cause)];
    bool raised;

    pthread_mutex_lock(&m->event_lock);
    raised = m->event_raised;
    event = m->event;
    memcpy(cause, m->event_cause, sizeof(cause));
    m->event_raised = false;
    pthread_mutex_unlock(&m->event_lock);
    if (!raised)
        return 0;
    switch (event) {
    case MACHINE_POWER_OFF:
        log_info("%spower off: %s", m->label, cause);
        end(m, MACHINE_POWERED_OFF);
        return 0;
    case MACHINE_PANIC:
        log_error("%sthe guest crashed: %s", m->label, cause);
        end(m, MACHINE_CRASHED);
        return 0;
    case MACHINE_RESET:
        log_info("%sreset: %s", m->label, cause);
        if (!m->config->no_reboot)
            return restart(m);
        end(m, MACHINE_WAS_RESET);
        return 0;
    }
    return -EINVAL;
}

void machine_start(struct machine *m)
{
    if (!m->paused && !m->arrived)
        vcpus_resume(m->vcpus);
}

void machine_serve(struct machine *m)
{
    int err = 0;

    if (!m->ended)
        err = handle_event(m);
    if (!err && !m->ended && m->save_path)
        err = machine_save(m);
    if (!err)
        machine_migrate_serve(m);
    if (!err && !m->ended)
        err = handle_event(m); /* one that came while it was not saved, or did not go, after all */
    if (err)
        end(m, MACHINE_FAILED);
}

void machine_halt(struct machine *m)
{
    loop_timer_cancel(&m->grace);
    vcpus_park(m->vcpus);
}

const char *machine_name(const struct machine *m)
{
    return m->config->name;
}

const char *machine_outcome_text(enum machine_outcome outcome)
{
    switch (outcome) {
    case MACHINE_POWERED_OFF: return "powered off";
    case MACHINE_WAS_RESET: return "reset";
    case MACHINE_CRASHED: return "crashed";
    case MACHINE_QUIT: return "ended";
    case MACHINE_SAVED: return "saved";
    case MACHINE_MIGRATED: return "migrated";
    case MACHINE_KILLED: return "killed, having stayed up after its power button was pressed";
    case MACHINE_FAILED: return "failed by the host";
    }
    return "";
}

enum machine_outcome machine_outcome(const struct machine *m, int *signal_number)
{
    if (signal_number)
        *signal_number = m->signal_number;
    return m->outcome;
}

/* ---- taking down ---- */

void machine_destroy(struct machine *m)
{
    if (!m)
        return;
    process_remove_guest(m->process, m);
    machine_migrate_destroy(m);
    machine_stop_announcing(m);
    machine_follow_destroy(m);
    control_answer(process_control(m->process), m, -ECANCELED, NULL); /* whoever waits still */
    loop_timer_cancel(&m->grace);
    vcpus_destroy(m->vcpus);
    if (m->n_devices > 0)
        (void)quiesce_devices(m);
    (void)chardev_drain(m->virtio_console, DRAIN_NS);
    (void)chardev_drain(m->serial, DRAIN_NS);
    while (m->n_devices > 0) {
        m->n_devices--;
        loop_thread_call(m->device_threads[m->n_devices], destroy_device, m->devices[m->n_devices]);
    }
    machine_remove_nets(m);
    machine_remove_console(m);
    bus_destroy(m->mmio);
    bus_destroy(m->pio);
    vm_destroy(m->vm);
    kernel_close(m->kernel);
    lazy_destroy(m->lazy);
    memory_destroy(m->mem);
    if (m->incoming_fd >= 0)
        close(m->incoming_fd);
    free(m->save_path);
    pthread_mutex_destroy(&m->event_lock);
    pthread_mutex_destroy(&m->lock);
    free(m);
}
