/*
 * Help for a vCPU on a KVM that emulates kernel code: completes what KVM rejects, by emulate.h, and
 * has SYSCALL repaired, by syscall.h, and timer interrupts spaced, by tick.h.
 *
 * Does not decide whether help is needed (probe.c), nor know any instruction. The vCPU's thread, or
 * the loop's while the vCPU is parked; no locks.
 *
 * Texts: the kernel's Documentation/virt/kvm/api.rst: §5 KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_DEBUG,
 * KVM_EXIT_X86_WRMSR; §4.32 KVM_SET_VCPU_EVENTS; §4.126 KVM_X86_SET_MSR_FILTER; §7.28
 * KVM_CAP_EXIT_ON_EMULATION_FAILURE. Intel SDM volume 3B §17.3.1.4 (single-step).
 */
#include "vmm/x86/assist.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vmm/arch.h"
#include "vmm/util/log.h"
#include "vmm/x86/emulate.h"
#include "vmm/x86/syscall.h"
#include "vmm/x86/tick.h"

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

struct x86_assist {
    int fd; /* borrowed */
    struct x86_syscall syscall;
    struct x86_tick tick;
    struct x86_emu emu;
};

static int fail(const char *what)
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
        return fail("KVM_CAP_X86_USER_SPACE_MSR");
    if (ioctl(vm_fd, KVM_X86_SET_MSR_FILTER, &filter) < 0)
        return fail("KVM_X86_SET_MSR_FILTER");
    return 0;
}

int x86_assist_prepare(int kvm_fd, int vm_fd)
{
    struct kvm_enable_cap exits = {.cap = KVM_CAP_EXIT_ON_EMULATION_FAILURE, .args = {1}};

    /* Without it, KVM exits for kernel code only, and with a #UD raised, which is then withdrawn. */
    if (ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_EXIT_ON_EMULATION_FAILURE) > 0 &&
        ioctl(vm_fd, KVM_ENABLE_CAP, &exits) < 0)
        return fail("KVM_CAP_EXIT_ON_EMULATION_FAILURE");
    return watch_msrs(kvm_fd, vm_fd);
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

int x86_assist_create(struct x86_assist **out, int vcpu_fd, struct guest_memory *mem)
{
    struct x86_assist *assist = aligned_alloc(_Alignof(struct x86_assist), sizeof(*assist));

    if (!assist)
        return -ENOMEM;
    memset(assist, 0, sizeof(*assist));
    assist->fd = vcpu_fd;
    assist->emu.mem = mem;
    assist->emu.ops = &emu_ops;
    assist->emu.opaque = assist;
    *out = assist;
    return 0;
}

void x86_assist_destroy(struct x86_assist *assist)
{
    free(assist);
}

/* ---- registers in, registers out ---- */

static int load(struct x86_assist *assist)
{
    struct x86_emu *emu = &assist->emu;

    emu->xstate_loaded = emu->xstate_changed = emu->sregs_changed = emu->flush_tlb = false;
    if (ioctl(assist->fd, KVM_GET_REGS, &emu->regs) < 0 ||
        ioctl(assist->fd, KVM_GET_SREGS, &emu->sregs) < 0)
        return fail("cannot read its registers");
    return 0;
}

/* KVM drops all translations of a vCPU whose CR4.PGE changes. */
static int flush_tlb(struct x86_assist *assist)
{
    struct kvm_sregs sregs = assist->emu.sregs;

    sregs.cr4 ^= X86_CR4_PGE;
    if (ioctl(assist->fd, KVM_SET_SREGS, &sregs) < 0 ||
        ioctl(assist->fd, KVM_SET_SREGS, &assist->emu.sregs) < 0)
        return fail("cannot drop its translations");
    return 0;
}

static int inject(struct x86_assist *assist, const struct x86_fault *fault)
{
    struct kvm_vcpu_events events;

    if (fault->vector == X86_VECTOR_PF) {
        assist->emu.sregs.cr2 = fault->address;
        if (ioctl(assist->fd, KVM_SET_SREGS, &assist->emu.sregs) < 0)
            return fail("cannot set CR2");
    }
    if (ioctl(assist->fd, KVM_GET_VCPU_EVENTS, &events) < 0)
        return fail("cannot read its events");
    events.exception.injected = 1;
    events.exception.pending = 0;
    events.exception.nr = fault->vector;
    events.exception.has_error_code = fault->has_error;
    events.exception.error_code = fault->error;
    events.exception_has_payload = 0;
    if (ioctl(assist->fd, KVM_SET_VCPU_EVENTS, &events) < 0)
        return fail("cannot raise an exception");
    return 0;
}

/* The guest's own single-stepping: the trap comes after the instruction. */
static int trap_step(struct x86_assist *assist)
{
    const struct x86_fault trap = {.vector = X86_VECTOR_DB};
    struct kvm_debugregs debug;

    if (ioctl(assist->fd, KVM_GET_DEBUGREGS, &debug) < 0)
        return fail("cannot read its debug registers");
    debug.dr6 |= DR6_BS;
    if (ioctl(assist->fd, KVM_SET_DEBUGREGS, &debug) < 0)
        return fail("cannot set its debug registers");
    return inject(assist, &trap);
}

static int store(struct x86_assist *assist, bool stepped)
{
    struct x86_emu *emu = &assist->emu;
    int err = 0;

    if (ioctl(assist->fd, KVM_SET_REGS, &emu->regs) < 0 ||
        (emu->sregs_changed && ioctl(assist->fd, KVM_SET_SREGS, &emu->sregs) < 0))
        return fail("cannot write its registers");
    if (emu->xstate_changed && ioctl(assist->fd, KVM_SET_XSAVE, emu->xstate.bytes) < 0)
        return fail("cannot write its extended state");
    if (emu->flush_tlb)
        err = flush_tlb(assist);
    return !err && stepped ? trap_step(assist) : err;
}

/* Carries out the instruction at RIP. */
static int complete(struct x86_assist *assist)
{
    struct x86_emu *emu = &assist->emu;
    bool stepped = emu->regs.rflags & X86_FLAG_TF;
    const struct x86_fault undefined = {.vector = X86_VECTOR_UD};

    switch (x86_emulate(emu)) {
    case X86_EMU_DONE:
        return store(assist, stepped);
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

    if (ioctl(assist->fd, KVM_GET_VCPU_EVENTS, &events) < 0)
        return fail("cannot read its events");
    if (!(events.exception.injected || events.exception.pending) ||
        events.exception.nr != X86_VECTOR_UD)
        return 0;
    events.exception.injected = events.exception.pending = 0;
    if (ioctl(assist->fd, KVM_SET_VCPU_EVENTS, &events) < 0)
        return fail("cannot withdraw an exception");
    return 0;
}

static int handle_rejected(struct x86_assist *assist)
{
    int err = withdraw_undefined(assist);

    if (!err)
        err = load(assist);
    if (!err)
        err = x86_syscall_follow(&assist->syscall, assist->fd, &assist->emu);
    return err ? err : complete(assist);
}

static int handle_msr(struct x86_assist *assist, struct kvm_run *run)
{
    int err;

    if (run->msr.index == X86_MSR_TSC_DEADLINE)
        return x86_tick_msr_exit(&assist->tick, assist->fd, run);
    err = load(assist);
    return err ? err : x86_syscall_msr_exit(&assist->syscall, assist->fd, &assist->emu, run);
}

int x86_assist_refresh(struct x86_assist *assist)
{
    int err = load(assist), khz = ioctl(assist->fd, KVM_GET_TSC_KHZ, 0);

    x86_tick_init(&assist->tick, khz > 0 ? (uint32_t)khz : 0);
    return err ? err : x86_syscall_refresh(&assist->syscall, assist->fd, &assist->emu);
}

/* The breakpoint on the guest's page-fault handler; see syscall.c. */
static int handle_debug(struct x86_assist *assist)
{
    int err = load(assist), found;

    if (err)
        return err;
    found = x86_syscall_debug_exit(&assist->syscall, assist->fd, &assist->emu);
    if (found == X86_SYSCALL_ENTERED)
        return store(assist, false);
    if (found != X86_SYSCALL_OTHER)
        return found < 0 ? found : 0;
    /* A fault of the guest's own: its handler's first instruction is carried out here, since the
     * breakpoint stands on it. */
    err = complete(assist);
    return err == -ENOTSUP ? x86_syscall_step(&assist->syscall, assist->fd) : err;
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
