/*
 * Help for a vCPU on a KVM that emulates kernel code: completes what KVM rejects, by emulate.h, and
 * has SYSCALL repaired, by syscall.h, and timer interrupts spaced, by tick.h.
 *
 * Does not decide whether help is needed (probe.c), nor know any instruction, nor when KVM runs what
 * (assist_enter.c). The vCPU's thread, or
 * the loop's while the vCPU is parked; no locks.
 *
 * Texts: the kernel's Documentation/virt/kvm/api.rst: §5 KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_DEBUG,
 * KVM_EXIT_X86_WRMSR; §4.32 KVM_SET_VCPU_EVENTS; §4.126 KVM_X86_SET_MSR_FILTER; §7.28
 * KVM_CAP_EXIT_ON_EMULATION_FAILURE. Intel SDM volume 3B §17.3.1.4 (single-step).
 */
#include "vmm/x86/assist_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vmm/arch.h"
#include "vmm/util/log.h"
#include "vmm/vm.h"
#include "vmm/x86/tables.h"

#define DR6_BS (1ull << 14)

#ifndef KVM_CAP_EXIT_ON_EMULATION_FAILURE
#define KVM_CAP_EXIT_ON_EMULATION_FAILURE 204
#endif

/*
 * The features that are cleared are such as kernels use where KVM rejects the instruction, with an
 * exit to user space each time (from ssse3 on: in the loops of ciphers and checksums), or executes it
 * byte by byte (erms, fsrm). They stand as numbers, 32 times the word of Linux's cpufeatures.h plus
 * the bit: names are compared with all that there are, and kernels before 5.18 know none. Patching
 * locks out, protecting the kernel from itself, measuring timers, probing UARTs that are not there,
 * trying ciphers, clearing memory twice, and 2 MiB for a CPU's variables take seconds each, the files
 * of trace events and of the allocator's caches, and random numbers out of the processor's jitter,
 * minutes. What watches over slowness is off. New ones
 * are NAME=VALUE where they can be: a word that a kernel does not know would be an argument for its
 * init.
 */
const char arch_assist_options[] =
    "clearcpuid="
    "297,"  /* erms */
    "580,"  /* fsrm */
    "308,"  /* smap */
    "295,"  /* smep */
    "514,"  /* umip */
    "141,"  /* cx16 */
    "151,"  /* popcnt */
    "534,"  /* rdpid */
    "59,"   /* rdtscp */
    "298,"  /* invpcid */
    "137,"  /* ssse3 */
    "148,"  /* sse4_2 */
    "293,"  /* avx2 */
    "153,"  /* aes */
    "129,"  /* pclmulqdq */
    "317"   /* sha_ni */
    " nokaslr mitigations=off rodata=off noreplace-smp percpu_alloc=page "
    "init_on_alloc=0 cryptomgr.notests no_timer_check tsc=reliable watchdog_thresh=0 "
    "rcupdate.rcu_cpu_stall_suppress=1 8250.nr_uarts=1 "
    "initcall_blacklist=trace_eval_init,ftrace_check_for_weak_functions,tracer_init_tracefs,"
    "slab_sysfs_init,jent_mod_init";

int x86_assist_fail(const char *what)
{
    int err = -errno;

    log_error("vCPU: %s: %s", what, strerror(-err));
    return err;
}

/* The writes of MSRs that exit: the guest sets up SYSCALL, or its timer. */
static int watch_msrs(int kvm_fd, int vm_fd)
{
    uint8_t allowed = X86_SYSCALL_ALLOWED, none = 0;
    struct kvm_enable_cap exits = {.cap = KVM_CAP_X86_USER_SPACE_MSR,
                                   .args = {KVM_MSR_EXIT_REASON_FILTER}};
    struct kvm_msr_filter filter = {
        .flags = KVM_MSR_FILTER_DEFAULT_ALLOW,
        .ranges = {{.flags = KVM_MSR_FILTER_WRITE, .nmsrs = X86_SYSCALL_N_MSRS,
                    .base = X86_SYSCALL_MSRS, .bitmap = &allowed},
                   {.flags = KVM_MSR_FILTER_WRITE, .nmsrs = 1, .base = X86_MSR_TSC_DEADLINE,
                    .bitmap = &none}},
    };

    if (ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_X86_USER_SPACE_MSR) <= 0 ||
        ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_X86_MSR_FILTER) <= 0) {
        log_error("this host's KVM enters SYSCALL wrongly, and cannot tell when the guest sets it up");
        return -EOPNOTSUPP;
    }
    if (ioctl(vm_fd, KVM_ENABLE_CAP, &exits) < 0)
        return x86_assist_fail("KVM_CAP_X86_USER_SPACE_MSR");
    if (ioctl(vm_fd, KVM_X86_SET_MSR_FILTER, &filter) < 0)
        return x86_assist_fail("KVM_X86_SET_MSR_FILTER");
    return 0;
}

/* What interpreting needs of KVM: registers by its run structure, and counts of what it emulates. */
static bool can_interpret(int kvm_fd)
{
    const int needed = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS;

    return (kvm_capability(kvm_fd, KVM_CAP_SYNC_REGS) & needed) == needed &&
           kvm_capability(kvm_fd, KVM_CAP_BINARY_STATS_FD) > 0;
}

int x86_assist_prepare(struct x86_tables **out, int kvm_fd, int vm_fd, struct guest_memory *mem)
{
    struct kvm_enable_cap exits = {.cap = KVM_CAP_EXIT_ON_EMULATION_FAILURE, .args = {1}};
    int err;

    *out = NULL;
    /* Without it, KVM exits for kernel code only, and with a #UD raised, which is then withdrawn. */
    if (ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_EXIT_ON_EMULATION_FAILURE) > 0 &&
        ioctl(vm_fd, KVM_ENABLE_CAP, &exits) < 0)
        return x86_assist_fail("KVM_CAP_EXIT_ON_EMULATION_FAILURE");
    /* Before any memory is there: each makes KVM wait for readers of its tables, and the second one of
     * them, right after the first, waits for ticks: 13 to 18 ms. For memory it never does. */
    err = watch_msrs(kvm_fd, vm_fd);
    if (!err && can_interpret(kvm_fd) &&
        x86_tables_create(out, mem, vm_fd, kvm_max_vcpus(kvm_fd)) < 0)
        log_debug("kernel code is left to KVM: its shadows of page tables cannot be dropped");
    return err;
}

/* ---- what an instruction may ask for ---- */

static int load_xstate(struct x86_emu *emu)
{
    const struct x86_assist *assist = emu->opaque;
    struct kvm_xcrs xcrs;

    _Static_assert(sizeof(struct kvm_xsave) <= sizeof(emu->xstate), "KVM_GET_XSAVE's area");
    if (ioctl(assist->fd, KVM_GET_XSAVE, emu->xstate.bytes) < 0 ||
        ioctl(assist->fd, KVM_GET_XCRS, &xcrs) < 0)
        return -errno;
    emu->xcr0 = 1;
    for (unsigned i = 0; i < xcrs.nr_xcrs && i < KVM_MAX_XCRS; i++)
        if (xcrs.xcrs[i].xcr == 0)
            emu->xcr0 = xcrs.xcrs[i].value;
    return 0;
}

static int read_msr(struct x86_emu *emu, uint32_t index, uint64_t *value)
{
    const struct x86_assist *assist = emu->opaque;

    return x86_msr_read(assist->fd, index, value);
}

static const struct x86_emu_ops emu_ops = {load_xstate, read_msr};

int x86_assist_create(struct x86_assist **out, const struct x86_assist_config *config)
{
    struct x86_assist *assist = calloc(1, sizeof(*assist));

    if (!assist)
        return -ENOMEM;
    assist->count = (struct x86_count)X86_COUNT_NONE;
    assist->in = aligned_alloc(_Alignof(struct x86_interpreter), sizeof(*assist->in));
    if (!assist->in) {
        free(assist);
        return -ENOMEM;
    }
    memset(assist->in, 0, sizeof(*assist->in));
    assist->fd = config->vcpu_fd;
    assist->index = config->index;
    assist->run = config->run;
    assist->enter_first = true;
    assist->in->emu.mem = config->mem;
    assist->in->emu.ops = &emu_ops;
    assist->in->emu.opaque = assist;
    if (config->tables && x86_count_open(&assist->count, config->vcpu_fd) == 0)
        assist->tables = config->tables;
    assist->in->tables = assist->tables;
    assist->in->stop = &config->run->immediate_exit;
    *out = assist;
    return 0;
}

void x86_assist_destroy(struct x86_assist *assist)
{
    if (!assist)
        return;
    x86_count_close(&assist->count);
    free(assist->in);
    free(assist);
}

void x86_assist_leave_to_kvm(struct x86_assist *assist)
{
    assist->tables = assist->in->tables = NULL;
    assist->run->kvm_valid_regs = 0;
    assist->run->kvm_dirty_regs = 0;
}

/* ---- registers in, registers out ---- */

uint64_t x86_assist_linear_rip(const struct x86_emu *emu, uint64_t rip)
{
    return emu->sregs.efer & X86_EFER_LMA && emu->sregs.cs.l ? rip
                                                             : (uint32_t)(emu->sregs.cs.base + rip);
}

int x86_assist_load(struct x86_assist *assist)
{
    struct x86_emu *emu = &assist->in->emu;

    emu->xstate_loaded = emu->xstate_changed = emu->sregs_changed = emu->flush_tlb = false;
    if (assist->tables && !assist->enter_first && !assist->completing) {
        emu->regs = assist->run->s.regs.regs;
        emu->sregs = assist->run->s.regs.sregs;
    } else if (ioctl(assist->fd, KVM_GET_REGS, &emu->regs) < 0 ||
               ioctl(assist->fd, KVM_GET_SREGS, &emu->sregs) < 0) {
        return x86_assist_fail("cannot read its registers");
    }
    if (!(assist->run->kvm_dirty_regs & KVM_SYNC_X86_REGS))
        assist->kvm_rip = x86_assist_linear_rip(emu, emu->regs.rip);
    return 0;
}

static int store_sregs(struct x86_assist *assist)
{
    if (assist->tables) {
        assist->run->s.regs.sregs = assist->in->emu.sregs;
        assist->run->kvm_dirty_regs |= KVM_SYNC_X86_SREGS;
        return 0;
    }
    return ioctl(assist->fd, KVM_SET_SREGS, &assist->in->emu.sregs) < 0
               ? x86_assist_fail("cannot write its system registers")
               : 0;
}

static int store_regs(struct x86_assist *assist)
{
    if (assist->tables) {
        assist->run->s.regs.regs = assist->in->emu.regs;
        assist->run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
        return 0;
    }
    return ioctl(assist->fd, KVM_SET_REGS, &assist->in->emu.regs) < 0
               ? x86_assist_fail("cannot write its registers")
               : 0;
}

/* KVM drops all translations of a vCPU whose CR4.PGE changes. */
static int flush_tlb(struct x86_assist *assist)
{
    struct kvm_sregs sregs = assist->in->emu.sregs;

    x86_interpret_flush(assist->in);
    sregs.cr4 ^= X86_CR4_PGE;
    if (ioctl(assist->fd, KVM_SET_SREGS, &sregs) < 0 ||
        ioctl(assist->fd, KVM_SET_SREGS, &assist->in->emu.sregs) < 0)
        return x86_assist_fail("cannot drop its translations");
    return 0;
}

/* What the exit has told of them, or KVM. */
static int load_events(struct x86_assist *assist, struct kvm_vcpu_events *events)
{
    if (assist->tables) {
        *events = assist->run->s.regs.events;
        return 0;
    }
    return ioctl(assist->fd, KVM_GET_VCPU_EVENTS, events) < 0
               ? x86_assist_fail("cannot read its events")
               : 0;
}

/* Without the others' validity: an NMI or a SIPI may have come since they were read. */
void x86_assist_give_events(struct x86_assist *assist, const struct kvm_vcpu_events *events)
{
    struct kvm_vcpu_events *to = &assist->run->s.regs.events;

    *to = *events;
    to->flags &= KVM_VCPUEVENT_VALID_SHADOW;
    assist->run->kvm_dirty_regs |= KVM_SYNC_X86_EVENTS;
}

static int store_events(struct x86_assist *assist, const struct kvm_vcpu_events *events)
{
    if (assist->tables) {
        x86_assist_give_events(assist, events);
        return 0;
    }
    return ioctl(assist->fd, KVM_SET_VCPU_EVENTS, events) < 0
               ? x86_assist_fail("cannot set its events")
               : 0;
}

static int inject(struct x86_assist *assist, const struct x86_fault *fault)
{
    struct kvm_vcpu_events events;
    int err = 0;

    if (fault->vector == X86_VECTOR_PF) {
        assist->in->emu.sregs.cr2 = fault->address;
        err = store_sregs(assist);
    }
    if (!err)
        err = load_events(assist, &events);
    if (err)
        return err;
    events.exception.injected = 1;
    events.exception.pending = 0;
    events.exception.nr = fault->vector;
    events.exception.has_error_code = fault->has_error;
    events.exception.error_code = fault->error;
    events.exception_has_payload = 0;
    return store_events(assist, &events);
}

/* The guest's own single-stepping: the trap comes after the instruction. */
static int trap_step(struct x86_assist *assist)
{
    const struct x86_fault trap = {.vector = X86_VECTOR_DB};
    struct kvm_debugregs debug;

    if (ioctl(assist->fd, KVM_GET_DEBUGREGS, &debug) < 0)
        return x86_assist_fail("cannot read its debug registers");
    debug.dr6 |= DR6_BS;
    if (ioctl(assist->fd, KVM_SET_DEBUGREGS, &debug) < 0)
        return x86_assist_fail("cannot set its debug registers");
    return inject(assist, &trap);
}

int x86_assist_store(struct x86_assist *assist, bool stepped)
{
    struct x86_emu *emu = &assist->in->emu;
    int err = store_regs(assist);

    if (!err && emu->sregs_changed)
        err = store_sregs(assist);
    if (!err && emu->xstate_changed &&
        ioctl(assist->fd, KVM_SET_XSAVE, emu->xstate.bytes) < 0)
        err = x86_assist_fail("cannot write its extended state");
    if (!err && emu->flush_tlb)
        err = flush_tlb(assist);
    return !err && stepped ? trap_step(assist) : err;
}

/* Carries out the instruction at RIP. */
static int complete(struct x86_assist *assist)
{
    struct x86_emu *emu = &assist->in->emu;
    bool stepped = emu->regs.rflags & X86_FLAG_TF;
    const struct x86_fault undefined = {.vector = X86_VECTOR_UD};

    switch (x86_emulate(emu)) {
    case X86_EMU_DONE:
        return x86_assist_store(assist, stepped);
    case X86_EMU_FAULT:
        return inject(assist, &emu->fault);
    case X86_EMU_UNKNOWN:
        break;
    }
    /* A user's program does not end the guest: KVM, too, would have it fault. */
    return x86_emu_cpl(emu) == 3 ? inject(assist, &undefined) : -ENOTSUP;
}

/* The #UD that KVM raises along with the exit, where it cannot be had without. */
static int withdraw_undefined(struct x86_assist *assist)
{
    struct kvm_vcpu_events events;
    int err = load_events(assist, &events);

    if (err || !(events.exception.injected || events.exception.pending) ||
        events.exception.nr != X86_VECTOR_UD)
        return err;
    events.exception.injected = events.exception.pending = 0;
    return store_events(assist, &events);
}

static int handle_rejected(struct x86_assist *assist)
{
    int err = x86_assist_load(assist);

    if (!err)
        err = withdraw_undefined(assist);
    if (err)
        return err;
    x86_syscall_follow(&assist->syscall, &assist->in->emu);
    return complete(assist);
}

static int handle_msr(struct x86_assist *assist, struct kvm_run *run)
{
    int err;

    assist->completing = assist->tables != NULL;
    if (run->msr.index == X86_MSR_TSC_DEADLINE)
        return x86_tick_msr_exit(&assist->tick, assist->fd, run);
    err = x86_assist_load(assist);
    if (!err)
        err = x86_syscall_msr_exit(&assist->syscall, assist->fd, &assist->in->emu, run);
    assist->in->star = assist->syscall.star;
    return err;
}

int x86_assist_refresh(struct x86_assist *assist)
{
    int khz = ioctl(assist->fd, KVM_GET_TSC_KHZ, 0), err;

    assist->enter_first = true;
    assist->completing = false;
    assist->run->kvm_dirty_regs = 0;
    assist->early_steps = 0;
    assist->ran_user = assist->left_with_interrupts = false;
    assist->unwatched = assist->debug_written = true;
    assist->in->table_left = 0;
    assist->in->has_kernel_gs = false;
    x86_interpret_flush(assist->in);
    err = x86_assist_load(assist);
    x86_tick_init(&assist->tick, khz > 0 ? (uint32_t)khz : 0);
    if (!err)
        err = x86_syscall_refresh(&assist->syscall, assist->fd, &assist->in->emu);
    assist->in->star = assist->syscall.star;
    return err;
}

/* The breakpoint on the guest's page-fault handler; see syscall.c. A fault of the guest's own goes on
 * by x86_assist_enter(), and so do the steps and other breakpoints that it has asked for. */
static int handle_debug(struct x86_assist *assist)
{
    struct x86_emu *emu = &assist->in->emu;
    int err;

    if (assist->mode == X86_ASSIST_STEP)
        return 0;
    err = x86_assist_load(assist);
    if (!err && emu->regs.rip == assist->syscall.handler &&
        x86_syscall_repair(&assist->syscall, emu))
        return x86_assist_store(assist, false);
    if (err || assist->tables)
        return err;
    err = complete(assist); /* the handler's first instruction, since the breakpoint stands on it */
    assist->step_over = err == -ENOTSUP;
    return assist->step_over ? 0 : err;
}

int x86_assist_exit(struct x86_assist *assist, struct kvm_run *run)
{
    switch (run->exit_reason) {
    case KVM_EXIT_INTERNAL_ERROR:
        if (run->internal.suberror != KVM_INTERNAL_ERROR_EMULATION)
            return -ENOSYS;
        return handle_rejected(assist);
    case KVM_EXIT_DEBUG:
        return handle_debug(assist);
    case KVM_EXIT_X86_WRMSR:
        return handle_msr(assist, run);
    default:
        return -ENOSYS;
    }
}
