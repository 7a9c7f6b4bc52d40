/*
 * vCPU threads: KVM_RUN, exits to the busses, parking.
 *
 * Does not know what is on the busses, nor how a vCPU is set up (arch.h). Each struct vcpu is its
 * thread's, except `parked` and `failed`, which vcpus.lock guards, and `kvm_run.immediate_exit`,
 * which the signal handler of that same thread sets. vcpus.lock is a leaf lock; it is never held
 * across KVM_RUN or a bus handler. vcpus.target is written under the lock and read without it.
 *
 * Why no stop is lost: the parking thread stores `target`, then signals. The vCPU clears
 * immediate_exit, then loads `target`, then enters KVM_RUN. If it loaded the old target, the signal
 * comes after the clearing, its handler sets immediate_exit, and KVM_RUN returns -EINTR at once.
 *
 * Text: the kernel's Documentation/virt/kvm/api.rst §4.10 KVM_RUN, §5 the kvm_run structure.
 */
#include "vmm/vcpu.h"

#include <errno.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "vmm/arch.h"
#include "vmm/bus.h"
#include "vmm/util/log.h"
#include "vmm/vm.h"

#define KICK_SIGNAL SIGUSR1
#define STACK_BYTES (256 * 1024)

enum target { TARGET_PARKED, TARGET_RUN, TARGET_END };

struct vcpu {
    struct vcpus *set; /* borrowed: owns this */
    unsigned index;
    int fd;                /* owns */
    struct kvm_run *run;   /* owns the mapping */
    size_t run_bytes;
    struct arch_vcpu *arch; /* owns */
    pthread_t thread;
    bool started;
    bool parked; /* by vcpus.lock */
    bool failed; /* by vcpus.lock: cannot run until reset */
    _Atomic uint64_t rest_ns; /* to rest before it goes on; taken by its thread */
};

struct vcpus {
    struct vcpus_config config;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* target, or a vCPU's parked */
    _Atomic int target;
    struct vcpu *vcpus; /* owns, config.count of them */
    /* The thread that slows the guest, while there is one; `throttle` and `changed` as above. */
    pthread_t throttler;
    bool throttling;
    unsigned throttle; /* percent; by lock */
};

#define NS_PER_S 1000000000ull
#define SLICE_NS 10000000ull /* that a throttled vCPU runs between two rests */

static _Thread_local struct kvm_run *volatile this_run; /* volatile: read by this thread's handler */

/* For pthread_cond_timedwait() on `changed`. */
static struct timespec time_from_now(uint64_t ns)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    ns += (uint64_t)now.tv_nsec;
    return (struct timespec){.tv_sec = now.tv_sec + (time_t)(ns / NS_PER_S),
                             .tv_nsec = (long)(ns % NS_PER_S)};
}

static void on_kick(int signal_number)
{
    struct kvm_run *run = this_run;

    (void)signal_number;
    if (run)
        __atomic_store_n(&run->immediate_exit, 1, __ATOMIC_RELAXED);
}

static int install_kick(void)
{
    struct sigaction action = {.sa_handler = on_kick};

    sigemptyset(&action.sa_mask);
    return sigaction(KICK_SIGNAL, &action, NULL) < 0 ? -errno : 0;
}

void vcpu_bus(struct vcpu *vcpu, enum vcpu_bus_kind kind, uint64_t address, void *data,
              unsigned size, bool write)
{
    const struct vcpus_config *c = &vcpu->set->config;
    struct bus *bus = kind == VCPU_BUS_PIO ? c->pio : c->mmio;
    uint64_t value = 0;

    if (write)
        memcpy(&value, data, size);
    pthread_mutex_lock(c->lock);
    if (write)
        bus_write(bus, address, size, value);
    else
        value = bus_read(bus, address, size);
    pthread_mutex_unlock(c->lock);
    if (!write)
        memcpy(data, &value, size);
}

/* After this the vCPU does not enter the guest again until a reset. */
static void fail(struct vcpu *vcpu, enum vcpu_failure failure, const char *detail)
{
    struct vcpus *set = vcpu->set;

    pthread_mutex_lock(&set->lock);
    vcpu->failed = true;
    pthread_mutex_unlock(&set->lock);
    set->config.failed(set->config.opaque, failure, detail);
}

static void fail_internal_error(struct vcpu *vcpu)
{
    const struct kvm_run *run = vcpu->run;
    char detail[200], bytes[64] = "unknown";
    unsigned long long ip = arch_vcpu_ip(vcpu->fd);

    if (run->internal.suberror != KVM_INTERNAL_ERROR_EMULATION) {
        snprintf(detail, sizeof(detail), "vCPU %u: KVM internal error %u at %#llx", vcpu->index,
                 run->internal.suberror, ip);
        fail(vcpu, VCPU_ERROR, detail);
        return;
    }
    if (run->emulation_failure.ndata >= 1 &&
        (run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)) {
        unsigned n = run->emulation_failure.insn_size;

        for (unsigned i = 0; i < n && i < 15; i++)
            snprintf(bytes + 3 * i, sizeof(bytes) - 3 * i, "%02x ",
                     run->emulation_failure.insn_bytes[i]);
    }
    snprintf(detail, sizeof(detail),
             "vCPU %u: the host's KVM cannot execute the instruction at %#llx (bytes %s)",
             vcpu->index, ip, bytes);
    fail(vcpu, VCPU_ERROR, detail);
}

static void handle_system_event(struct vcpu *vcpu)
{
    switch (vcpu->run->system_event.type) {
    case KVM_SYSTEM_EVENT_SHUTDOWN:
        fail(vcpu, VCPU_SHUTDOWN, "the guest asked KVM to power off");
        break;
    case KVM_SYSTEM_EVENT_RESET:
        fail(vcpu, VCPU_RESET, "the guest asked KVM for a reset");
        break;
    default:
        fail(vcpu, VCPU_TRIPLE_FAULT, "the guest reported a crash to KVM");
        break;
    }
}

static void handle_mmio(struct vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;

    vcpu_bus(vcpu, VCPU_BUS_MMIO, run->mmio.phys_addr, run->mmio.data, run->mmio.len,
             run->mmio.is_write);
}

static void handle_exit(struct vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    char detail[120];

    switch (run->exit_reason) {
    case KVM_EXIT_MMIO:
        handle_mmio(vcpu);
        return;
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
        return;
    case KVM_EXIT_DIRTY_RING_FULL:
        if (vm_reap_dirty_rings(vcpu->set->config.vm) < 0)
            fail(vcpu, VCPU_ERROR, "the ring of written pages stays full");
        return;
    case KVM_EXIT_SHUTDOWN:
        snprintf(detail, sizeof(detail), "vCPU %u: triple fault at %#llx", vcpu->index,
                 (unsigned long long)arch_vcpu_ip(vcpu->fd));
        fail(vcpu, VCPU_TRIPLE_FAULT, detail);
        return;
    case KVM_EXIT_SYSTEM_EVENT:
        handle_system_event(vcpu);
        return;
    case KVM_EXIT_FAIL_ENTRY:
        snprintf(detail, sizeof(detail), "vCPU %u: the processor refuses to enter the guest, "
                 "reason %#llx", vcpu->index,
                 (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
        fail(vcpu, VCPU_ERROR, detail);
        return;
    }
    if (arch_vcpu_exit(vcpu->arch, vcpu, run) == 0)
        return;
    if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR) {
        fail_internal_error(vcpu);
        return;
    }
    snprintf(detail, sizeof(detail), "vCPU %u: KVM exit %u is not known at %#llx", vcpu->index,
             run->exit_reason, (unsigned long long)arch_vcpu_ip(vcpu->fd));
    fail(vcpu, VCPU_ERROR, detail);
}

/* KVM_RUN once; false when the vCPU has failed. */
static bool enter(struct vcpu *vcpu)
{
    char detail[120];

    if (arch_vcpu_enter(vcpu->arch) < 0) {
        fail(vcpu, VCPU_ERROR, "the host's KVM does not take the vCPU's state");
        return false;
    }
    if (ioctl(vcpu->fd, KVM_RUN, 0) == 0) {
        handle_exit(vcpu);
        return !vcpu->failed; /* written by this thread alone while it runs */
    }
    if (errno == EINTR || errno == EAGAIN)
        return true;
    snprintf(detail, sizeof(detail), "vCPU %u: KVM_RUN: %s", vcpu->index, strerror(errno));
    fail(vcpu, VCPU_ERROR, detail);
    return false;
}

/* Completes the instruction whose exit was handled last, without running the next: api.rst §5,
 * "the corresponding operations are complete (and guest state is consistent) only after userspace
 * has re-entered the kernel". */
static void complete_exit(struct vcpu *vcpu)
{
    (void)arch_vcpu_park(vcpu->arch);
    for (;;) {
        __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_RELAXED);
        if (ioctl(vcpu->fd, KVM_RUN, 0) < 0)
            break; /* -EINTR: complete */
        handle_exit(vcpu);
        if (vcpu->failed)
            break;
    }
    __atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_RELAXED);
}

/* A rest that the throttling thread asked for; parking ends it. */
static void rest(struct vcpu *vcpu)
{
    struct vcpus *set = vcpu->set;
    uint64_t ns = atomic_exchange_explicit(&vcpu->rest_ns, 0, memory_order_relaxed);
    struct timespec until;

    if (ns == 0)
        return;
    until = time_from_now(ns);
    pthread_mutex_lock(&set->lock);
    while (atomic_load_explicit(&set->target, memory_order_relaxed) == TARGET_RUN &&
           pthread_cond_timedwait(&set->changed, &set->lock, &until) == 0)
        ;
    pthread_mutex_unlock(&set->lock);
}

static void run_until_stopped(struct vcpu *vcpu)
{
    do {
        if (atomic_load_explicit(&vcpu->rest_ns, memory_order_relaxed) != 0)
            rest(vcpu);
        __atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_RELAXED);
        /* Orders the clearing above before the load of the target for this thread's own signal
         * handler; see the head of the file. */
        atomic_signal_fence(memory_order_seq_cst);
        if (atomic_load_explicit(&vcpu->set->target, memory_order_acquire) != TARGET_RUN) {
            complete_exit(vcpu);
            return;
        }
    } while (enter(vcpu));
}

/* Parks until there is something to run; false at the end. */
static bool wait_to_run(struct vcpu *vcpu)
{
    struct vcpus *set = vcpu->set;
    int target;

    pthread_mutex_lock(&set->lock);
    vcpu->parked = true;
    pthread_cond_broadcast(&set->changed);
    for (;;) {
        target = atomic_load_explicit(&set->target, memory_order_relaxed);
        if (target == TARGET_END || (target == TARGET_RUN && !vcpu->failed))
            break;
        pthread_cond_wait(&set->changed, &set->lock);
    }
    vcpu->parked = false;
    pthread_mutex_unlock(&set->lock);
    return target == TARGET_RUN;
}

static void *vcpu_main(void *arg)
{
    struct vcpu *vcpu = arg;
    sigset_t kick;

    this_run = vcpu->run;
    sigemptyset(&kick);
    sigaddset(&kick, KICK_SIGNAL);
    pthread_sigmask(SIG_UNBLOCK, &kick, NULL);
    while (wait_to_run(vcpu))
        run_until_stopped(vcpu);
    this_run = NULL;
    return NULL;
}

/* The thread starts with every signal blocked: those meant for the process are the main thread's. */
static int start_thread(struct vcpu *vcpu)
{
    pthread_attr_t attr;
    sigset_t all, old;
    char name[16];
    int err;

    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    err = pthread_create(&vcpu->thread, &attr, vcpu_main, vcpu);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    if (err) {
        log_error("vCPU %u: cannot start a thread: %s", vcpu->index, strerror(err));
        return -err;
    }
    vcpu->started = true;
    snprintf(name, sizeof(name), "vcpu%u", vcpu->index);
    pthread_setname_np(vcpu->thread, name);
    return 0;
}

static int create_fd(struct vcpu *vcpu, struct vm *vm)
{
    int bytes, err;

    vcpu->fd = ioctl(vm_fd(vm), KVM_CREATE_VCPU, (unsigned long)vcpu->index);
    if (vcpu->fd < 0) {
        err = -errno;
        log_error("vCPU %u: KVM_CREATE_VCPU: %s", vcpu->index, strerror(-err));
        return err;
    }
    bytes = ioctl(vm_kvm_fd(vm), KVM_GET_VCPU_MMAP_SIZE, 0);
    if (bytes < (int)sizeof(struct kvm_run)) {
        log_error("vCPU %u: KVM_GET_VCPU_MMAP_SIZE gave %d", vcpu->index, bytes);
        return -ENOTSUP;
    }
    vcpu->run_bytes = (size_t)bytes;
    vcpu->run = mmap(NULL, vcpu->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
    if (vcpu->run == MAP_FAILED) {
        err = -errno;
        vcpu->run = NULL;
        log_error("vCPU %u: cannot map its run structure: %s", vcpu->index, strerror(-err));
        return err;
    }
    err = vm_add_dirty_ring(vm, vcpu->fd);
    if (err)
        log_error("vCPU %u: cannot map its ring of written pages: %s", vcpu->index, strerror(-err));
    return err;
}

static int create_vcpu(struct vcpus *set, unsigned index)
{
    struct vcpu *vcpu = &set->vcpus[index];
    struct vm *vm = set->config.vm;
    struct arch_assist assist;
    int err;

    vcpu->set = set;
    vcpu->index = index;
    err = create_fd(vcpu, vm);
    if (err)
        return err;
    assist = (struct arch_assist){.mem = set->config.assist, .tables = vm_tables(vm),
                                  .run = vcpu->run};
    err = arch_vcpu_create(&vcpu->arch, vm_kvm_fd(vm), vcpu->fd, index, set->config.count,
                           assist.mem ? &assist : NULL);
    if (err)
        return err;
    return start_thread(vcpu);
}

/* `changed` by the monotonic clock, which nobody sets. */
static void init_changed(struct vcpus *set)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&set->changed, &attr);
    pthread_condattr_destroy(&attr);
}

int vcpus_create(struct vcpus **out, const struct vcpus_config *config)
{
    struct vcpus *set;
    int err;

    if (config->count == 0 || config->count > vm_max_vcpus(config->vm)) {
        log_error("--cpus %u: expected 1 to %u, which is what this host's KVM allows",
                  config->count, vm_max_vcpus(config->vm));
        return -EINVAL;
    }
    err = install_kick();
    if (err)
        return err;
    set = calloc(1, sizeof(*set));
    if (!set)
        return -ENOMEM;
    set->config = *config;
    pthread_mutex_init(&set->lock, NULL);
    init_changed(set);
    set->vcpus = calloc(config->count, sizeof(*set->vcpus));
    err = set->vcpus ? 0 : -ENOMEM;
    for (unsigned i = 0; !err && i < config->count; i++)
        set->vcpus[i].fd = -1;
    for (unsigned i = 0; !err && i < config->count; i++)
        err = create_vcpu(set, i);
    if (err) {
        vcpus_destroy(set);
        return err;
    }
    *out = set;
    return 0;
}

static void set_target(struct vcpus *set, enum target target)
{
    pthread_mutex_lock(&set->lock);
    /* Release: what the caller did to the machine is seen by a vCPU that acquires the target. */
    atomic_store_explicit(&set->target, (int)target, memory_order_release);
    pthread_cond_broadcast(&set->changed);
    pthread_mutex_unlock(&set->lock);
}

void vcpus_resume(struct vcpus *vcpus)
{
    for (unsigned i = 0; i < vcpus->config.count; i++)
        arch_vcpu_resuming(vcpus->vcpus[i].fd);
    set_target(vcpus, TARGET_RUN);
}

void vcpus_park(struct vcpus *vcpus)
{
    set_target(vcpus, TARGET_PARKED);
    pthread_mutex_lock(&vcpus->lock);
    for (unsigned i = 0; i < vcpus->config.count; i++)
        if (vcpus->vcpus[i].started && !vcpus->vcpus[i].parked)
            pthread_kill(vcpus->vcpus[i].thread, KICK_SIGNAL);
    for (unsigned i = 0; i < vcpus->config.count; i++)
        while (vcpus->vcpus[i].started && !vcpus->vcpus[i].parked)
            pthread_cond_wait(&vcpus->changed, &vcpus->lock);
    pthread_mutex_unlock(&vcpus->lock);
}

/* ---- slowing the guest ---- */

/* By turns a slice in which the vCPUs run, and a rest that is as long as the percentage says. */
static void *throttler_main(void *arg)
{
    struct vcpus *set = arg;

    pthread_setname_np(pthread_self(), "throttle");
    pthread_mutex_lock(&set->lock);
    while (set->throttle > 0) {
        uint64_t rest_ns = SLICE_NS * set->throttle / (100 - set->throttle);
        struct timespec until = time_from_now(SLICE_NS + rest_ns);

        for (unsigned i = 0; i < set->config.count; i++) {
            struct vcpu *vcpu = &set->vcpus[i];

            if (vcpu->parked)
                continue;
            atomic_store_explicit(&vcpu->rest_ns, rest_ns, memory_order_relaxed);
            pthread_kill(vcpu->thread, KICK_SIGNAL);
        }
        while (set->throttle > 0 &&
               pthread_cond_timedwait(&set->changed, &set->lock, &until) == 0)
            ;
    }
    pthread_mutex_unlock(&set->lock);
    return NULL;
}

int vcpus_throttle(struct vcpus *set, unsigned percent)
{
    int err = 0;

    pthread_mutex_lock(&set->lock);
    set->throttle = percent < 99 ? percent : 99;
    pthread_cond_broadcast(&set->changed);
    pthread_mutex_unlock(&set->lock);
    if (percent > 0 && !set->throttling) {
        err = pthread_create(&set->throttler, NULL, throttler_main, set);
        if (err)
            log_error("cannot slow the guest: no thread: %s", strerror(err));
        set->throttling = !err;
    } else if (percent == 0 && set->throttling) {
        pthread_join(set->throttler, NULL);
        set->throttling = false;
    }
    return -err;
}

int vcpus_reset(struct vcpus *vcpus)
{
    for (unsigned i = 0; i < vcpus->config.count; i++) {
        int err = arch_vcpu_reset(vcpus->vcpus[i].arch);

        if (err)
            return err;
        pthread_mutex_lock(&vcpus->lock);
        vcpus->vcpus[i].failed = false;
        pthread_mutex_unlock(&vcpus->lock);
    }
    return 0;
}

static void destroy_vcpu(struct vcpu *vcpu)
{
    if (vcpu->started)
        pthread_join(vcpu->thread, NULL);
    arch_vcpu_destroy(vcpu->arch);
    if (vcpu->run)
        munmap(vcpu->run, vcpu->run_bytes);
    if (vcpu->fd >= 0)
        close(vcpu->fd);
}

void vcpus_destroy(struct vcpus *vcpus)
{
    if (!vcpus)
        return;
    (void)vcpus_throttle(vcpus, 0);
    if (vcpus->vcpus) {
        vcpus_park(vcpus);
        set_target(vcpus, TARGET_END);
        for (unsigned i = 0; i < vcpus->config.count; i++)
            destroy_vcpu(&vcpus->vcpus[i]);
    }
    free(vcpus->vcpus);
    pthread_cond_destroy(&vcpus->changed);
    pthread_mutex_destroy(&vcpus->lock);
    free(vcpus);
}

unsigned vcpus_count(const struct vcpus *vcpus)
{
    return vcpus->config.count;
}

struct vcpu *vcpus_get(struct vcpus *vcpus, unsigned index)
{
    return &vcpus->vcpus[index];
}

int vcpu_fd(const struct vcpu *vcpu)
{
    return vcpu->fd;
}

int vcpu_save(struct vcpu *vcpu, struct state_buffer *out)
{
    return arch_vcpu_save(vcpu->arch, out);
}

int vcpu_load(struct vcpu *vcpu, struct state_reader *in)
{
    return arch_vcpu_load(vcpu->arch, in);
}

int vcpu_describe(struct vcpu *vcpu, struct state_buffer *out)
{
    return arch_vcpu_describe(vcpu->arch, out);
}
