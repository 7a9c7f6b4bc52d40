/*
 * Who runs what: the interpreter kernel code, for as long as it can; KVM single instructions that are left
 * to it, with whatever interrupt is due; the processor user code, from where breakpoints at the
 * handlers of page faults and of the interrupts met so far lead back to here.
 *
 * A switch between steps and breakpoints costs as much as an exit (20 us), so it is made when it must.
 * Kernel code that KVM ran all the same (an interrupt of user code whose handler is not watched) may have
 * changed page tables unseen: KVM's count of emulated instructions tells, and its shadows are dropped.
 *
 * A guest that debugs itself by TF enters user code with a breakpoint at its handler of #DB as well. One
 * that has breakpoints in its debug registers has KVM run all kernel code, on all vCPUs, until they are
 * disabled again: only KVM's emulator finds them there.
 *
 * The vCPU's thread, or the loop's while the vCPU is parked; no locks. Texts: the kernel's
 * Documentation/virt/kvm/api.rst: §4.87 KVM_SET_GUEST_DEBUG, §4.38 KVM_SET_MP_STATE, §5
 * (kvm_valid_regs, kvm_dirty_regs); devices/vcpu.rst §5 (KVM_VCPU_TSC_CTRL).
 * Intel SDM volume 3A §6.14 (gates), volume 3B §17.2 (debug registers).
 */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <x86intrin.h>

#include "vmm/util/log.h"
#include "vmm/x86/assist_internal.h"
#include "vmm/x86/tables.h"

/* With interrupts enabled, until KVM is asked for them: some 200 us. */
#define BUDGET 6000
#define EARLY_STEPS 400u
#define ALL_REGS (KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS)

#define MSR_TSC 0x10u
#define MSR_TSC_ADJUST 0x3Bu
#define MSR_KERNEL_GS_BASE 0xC0000102u
#define DR7_FIXED 0x400ull
#define DR7_ENABLED 0xFFull
#define GATES_FROM 32u /* what comes before are exceptions */
#define GATES 256u
#define NOWHERE (1ull << 63) /* not canonical: no code is there */
#define HLT 0xF4u

#ifndef KVM_VCPU_TSC_CTRL
#define KVM_VCPU_TSC_CTRL 0
#define KVM_VCPU_TSC_OFFSET 0
#endif

/* ---- how KVM is to stop ---- */

/* Nobody interprets this VM's kernel now. */
static bool left_to_kvm(const struct x86_assist *assist)
{
    return !assist->tables || assist->debugged || !x86_tables_usable(assist->tables);
}

/* The breakpoints: besides page faults, what ends the user code that is entered. Where KVM runs the kernel,
 * they would only hold it up. */
static void choose_handlers(struct x86_assist *assist, uint64_t handlers[1 + X86_ASSIST_HANDLERS])
{
    handlers[0] = assist->syscall.handler;
    if (left_to_kvm(assist))
        return;
    memcpy(&handlers[1], assist->handlers, sizeof(assist->handlers));
    if (assist->stepping)
        handlers[X86_ASSIST_HANDLERS] = x86_gate_target(&assist->in->emu, X86_VECTOR_DB);
}

static int set_debug(const struct x86_assist *assist, const struct kvm_guest_debug *debug)
{
    return ioctl(assist->fd, KVM_SET_GUEST_DEBUG, debug) < 0 ? x86_assist_fail("KVM_SET_GUEST_DEBUG")
                                                            : 0;
}

/* Has KVM believe that it steps from elsewhere. It drops a pending exception with the registers. */
static int step_from_nowhere(struct x86_assist *assist, const struct kvm_guest_debug *debug)
{
    struct kvm_vcpu_events events = assist->run->s.regs.events;
    struct kvm_regs regs = assist->in->emu.regs;
    int err;

    if (assist->completing && ioctl(assist->fd, KVM_GET_VCPU_EVENTS, &events) < 0)
        return x86_assist_fail("cannot read its events");
    regs.rip = NOWHERE;
    if (ioctl(assist->fd, KVM_SET_REGS, &regs) < 0)
        return x86_assist_fail("cannot write its registers");
    err = set_debug(assist, debug);
    if (err)
        return err;
    assist->steps_from = x86_assist_linear_rip(&assist->in->emu, NOWHERE);
    assist->run->s.regs.regs = assist->in->emu.regs;
    assist->run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
    x86_assist_give_events(assist, &events);
    return 0;
}

/*
 * What is stepped, KVM emulates, and it ends a step without TF. But it sets TF in the guest's flags where
 * they stand at the RIP that it had when it was told to step, and an interrupt that comes first takes them
 * to the guest's stack: IRET would then lead to a #DB. So no step is entered at that RIP, but by one that
 * waits for INIT or SIPI.
 */
static int set_steps(struct x86_assist *assist)
{
    const struct kvm_guest_debug debug = {.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP};
    uint64_t rip = x86_assist_linear_rip(&assist->in->emu, assist->in->emu.regs.rip);
    bool stepping = assist->mode == X86_ASSIST_STEP;
    int err;

    if (stepping && (rip != assist->steps_from || assist->waiting))
        return 0;
    if (!stepping && (rip != assist->kvm_rip || assist->waiting || !assist->tables)) {
        err = set_debug(assist, &debug);
        assist->steps_from = assist->kvm_rip;
    } else {
        err = step_from_nowhere(assist, &debug);
    }
    if (!err)
        assist->mode = X86_ASSIST_STEP;
    return err;
}

static int set_breakpoints(struct x86_assist *assist)
{
    struct kvm_guest_debug debug = {.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP,
                                    .arch.debugreg[7] = DR7_FIXED};
    uint64_t wanted[1 + X86_ASSIST_HANDLERS] = {0};
    int err;

    choose_handlers(assist, wanted);
    if (assist->mode == X86_ASSIST_BREAK && memcmp(wanted, assist->breakpoints, sizeof(wanted)) == 0)
        return 0;
    for (unsigned i = 0; i < 1 + X86_ASSIST_HANDLERS; i++) {
        debug.arch.debugreg[i] = wanted[i];
        if (wanted[i]) /* global enable; on execution */
            debug.arch.debugreg[7] |= 2ull << (2 * i);
    }
    err = set_debug(assist, &debug);
    if (err)
        return err;
    memcpy(assist->breakpoints, wanted, sizeof(wanted));
    assist->mode = X86_ASSIST_BREAK;
    return 0;
}

static int set_mode(struct x86_assist *assist, enum x86_assist_mode mode)
{
    return mode == X86_ASSIST_STEP ? set_steps(assist) : set_breakpoints(assist);
}

static bool at_breakpoint(const struct x86_assist *assist)
{
    uint64_t rip = assist->in->emu.regs.rip;

    for (unsigned i = 0; i < 1 + X86_ASSIST_HANDLERS; i++)
        if (rip != 0 && (rip == assist->breakpoints[i] || rip == assist->syscall.handler))
            return true;
    return false;
}

/* ---- interrupts that were met ---- */

/* The gate of an interrupt whose handler begins at, or a few bytes before, this address. */
static uint64_t find_gate(struct x86_emu *emu, uint64_t rip)
{
    uint64_t gate[2];

    for (unsigned i = GATES_FROM; i < GATES && i * 16 + 15 <= emu->sregs.idt.limit; i++) {
        uint64_t handler;

        if (x86_emu_read(emu, emu->sregs.idt.base + i * 16, gate, sizeof(gate),
                         X86_READ | X86_SYSTEM) != X86_EMU_DONE)
            return 0;
        handler = (gate[0] & 0xFFFF) | (gate[0] >> 32 & 0xFFFF0000) | gate[1] << 32;
        if (handler <= rip && rip - handler <= X86_INSN_MAX)
            return handler;
    }
    return 0;
}

/* KVM was to carry out one instruction, and an interrupt came before it. */
static void meet_interrupt(struct x86_assist *assist)
{
    struct x86_emu *emu = &assist->in->emu;
    uint64_t handler;

    if (!assist->left_with_interrupts || emu->regs.rflags & X86_FLAG_IF ||
        emu->regs.rip - assist->left_at <= X86_INSN_MAX)
        return;
    handler = find_gate(emu, emu->regs.rip);
    for (unsigned i = 0; i < X86_ASSIST_HANDLERS; i++)
        if (handler == 0 || handler == assist->handlers[i])
            return;
    assist->handlers[assist->n_handlers++ % X86_ASSIST_HANDLERS] = handler;
}

/* ---- what the interpreter needs to know ---- */

static void learn_tsc(struct x86_assist *assist)
{
    uint64_t offset = 0, now;
    struct kvm_device_attr attr = {.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET,
                                   .addr = (uintptr_t)&offset};
    int khz = ioctl(assist->fd, KVM_GET_TSC_KHZ, 0);

    assist->in->has_tsc = false;
    if (khz <= 0 || ioctl(assist->fd, KVM_GET_DEVICE_ATTR, &attr) < 0 ||
        x86_msr_read(assist->fd, MSR_TSC, &now) < 0)
        return;
    /* Within 100 ms, or KVM scales it. */
    assist->in->tsc_offset = (int64_t)offset;
    assist->in->has_tsc = __rdtsc() + offset - now < (uint64_t)khz * 100;
}

static void learn_kernel_gs(struct x86_assist *assist)
{
    if (x86_msr_read(assist->fd, MSR_KERNEL_GS_BASE, &assist->kernel_gs) < 0)
        return;
    assist->in->kernel_gs = assist->kernel_gs;
    assist->in->has_kernel_gs = true;
    learn_tsc(assist);
}

static int tell_kernel_gs(struct x86_assist *assist)
{
    if (!assist->in->has_kernel_gs || assist->in->kernel_gs == assist->kernel_gs)
        return 0;
    if (x86_msr_write(assist->fd, MSR_KERNEL_GS_BASE, assist->in->kernel_gs) < 0)
        return -EIO;
    assist->kernel_gs = assist->in->kernel_gs;
    return 0;
}

/* KVM has carried out instructions that were not looked at. */
static void forget(struct x86_assist *assist)
{
    x86_interpret_flush(assist->in);
    assist->in->has_kernel_gs = false;
    assist->debug_written = true;
}

/* An interrupt or a fault came before the step, which then was the handler's first instruction. */
static bool stepped_elsewhere(const struct x86_assist *assist)
{
    return assist->mode == X86_ASSIST_STEP && assist->run->exit_reason == KVM_EXIT_DEBUG &&
           assist->in->emu.regs.rip - assist->left_at > X86_INSN_MAX;
}

/* Whether what lies before RIP ends as one of the system's instructions may: of two or three bytes from
 * 0F on. */
static bool is_behind_system(struct x86_emu *emu)
{
    uint8_t last[3];

    return x86_emu_read(emu, emu->regs.rip - sizeof(last), last, sizeof(last),
                        X86_READ | X86_SYSTEM) != X86_EMU_DONE ||
           last[0] == 0x0F || last[1] == 0x0F;
}

/* The registers are as KVM has left them. */
static void take_over(struct x86_assist *assist)
{
    struct x86_interpreter *in = assist->in;
    const struct kvm_sregs before = in->emu.sregs, *now = &assist->run->s.regs.sregs;

    (void)x86_assist_load(assist);
    in->sregs_changed = false;
    if (assist->mode == X86_ASSIST_BREAK || before.cr0 != now->cr0 || before.cr3 != now->cr3 ||
        before.cr4 != now->cr4 || before.efer != now->efer)
        x86_interpret_flush(in);
    if (assist->stepped_unseen || (stepped_elsewhere(assist) && is_behind_system(&in->emu)))
        forget(assist);
    if (assist->ran_user && x86_count_read(&assist->count) != assist->emulated) {
        assist->unwatched = true;
        forget(assist);
    }
    assist->ran_user = assist->stepped_unseen = false;
    meet_interrupt(assist);
    assist->left_with_interrupts = false;
    if (in->table_left)
        x86_tables_written(assist->tables, in->table_left);
    in->table_left = 0;
}

static void check_debug_registers(struct x86_assist *assist)
{
    struct kvm_debugregs debug;
    bool debugged;

    if (!assist->debug_written && !assist->debugged) /* while it is, KVM alone sees what it writes */
        return;
    assist->debug_written = false;
    debugged = ioctl(assist->fd, KVM_GET_DEBUGREGS, &debug) < 0 || debug.dr7 & DR7_ENABLED;
    if (debugged != assist->debugged)
        x86_tables_leave(assist->tables, debugged);
    assist->debugged = debugged;
}

/* Where KVM has run kernel code for a while, nothing is as it was. */
static void return_from_kvm(struct x86_assist *assist)
{
    bool left = left_to_kvm(assist);

    if (assist->left && !left) {
        assist->unwatched = true;
        assist->in->has_kernel_gs = false;
        x86_interpret_flush(assist->in);
    }
    assist->left = left;
}

/* Nothing is on its way into the guest, nor is its kernel left to KVM. */
static bool may_interpret(const struct x86_assist *assist)
{
    const struct kvm_vcpu_events *e = &assist->run->s.regs.events;

    return !left_to_kvm(assist) && x86_interpretable(assist->in) && !e->exception.injected &&
           !e->exception.pending && !e->interrupt.injected && !e->nmi.injected &&
           !e->nmi.pending && !e->nmi.masked && !e->smi.smm;
}

/* ---- what the interpreter leaves ---- */

static int halt(struct x86_assist *assist)
{
    struct kvm_mp_state state = {.mp_state = KVM_MP_STATE_HALTED};

    if (ioctl(assist->fd, KVM_SET_MP_STATE, &state) < 0)
        return x86_assist_fail("cannot halt it");
    assist->run->exit_reason = KVM_EXIT_INTR;
    return 0;
}

/* KVM was told to step whatever was there. */
static bool may_have_stepped_halt(struct x86_assist *assist)
{
    struct x86_emu *emu = &assist->in->emu; /* its control registers: HLT has not changed them */
    uint64_t behind = x86_assist_linear_rip(emu, assist->run->s.regs.regs.rip);
    uint8_t last;

    return assist->run->exit_reason == KVM_EXIT_DEBUG && assist->mode == X86_ASSIST_STEP &&
           x86_emu_read(emu, behind - 1, &last, 1, X86_READ | X86_SYSTEM) == X86_EMU_DONE &&
           last == HLT;
}

/* An interrupted KVM_RUN may leave it halted, too: by halt(), by an HLT that KVM has carried out, or as it came
 * from another host. */
static bool may_be_halted(struct x86_assist *assist)
{
    return assist->run->exit_reason == KVM_EXIT_INTR ||
           assist->run->exit_reason == KVM_EXIT_DIRTY_RING_FULL || may_have_stepped_halt(assist);
}

/*
 * Takes the state from KVM itself: the run structure has none yet, or the question what the vCPU does has
 * let in an INIT or a SIPI, which KVM takes at that moment. Registers that KVM has still to take stay as
 * they are.
 */
static int look_anew(struct x86_assist *assist)
{
    struct kvm_sync_regs *to = &assist->run->s.regs;
    struct kvm_mp_state state;

    if (ioctl(assist->fd, KVM_GET_MP_STATE, &state) < 0)
        return x86_assist_fail("cannot ask what it does");
    if (!assist->run->kvm_dirty_regs && (ioctl(assist->fd, KVM_GET_REGS, &to->regs) < 0 ||
                                         ioctl(assist->fd, KVM_GET_SREGS, &to->sregs) < 0 ||
                                         ioctl(assist->fd, KVM_GET_VCPU_EVENTS, &to->events) < 0))
        return x86_assist_fail("cannot read its state");
    assist->enter_first = false;
    assist->run->exit_reason = KVM_EXIT_INTR; /* until KVM says otherwise */
    assist->halted = state.mp_state == KVM_MP_STATE_HALTED;
    assist->waiting = !assist->halted && state.mp_state != KVM_MP_STATE_RUNNABLE;
    return 0;
}

/* MOV to one of them, whose one prefix is REX as a rule. */
static bool writes_debug_register(const struct x86_emu *emu)
{
    unsigned at = emu->n_bytes > 0 && (emu->bytes[0] & 0xF0) == 0x40;

    return at + 1 < emu->n_bytes && emu->bytes[at] == 0x0F && emu->bytes[at + 1] == 0x23;
}

/* By the means for what KVM rejects, or by a call to KVM that is cheaper than a step. True: done. */
static bool complete_left(struct x86_assist *assist)
{
    struct x86_interpreter *in = assist->in;
    struct x86_emu *emu = &in->emu;
    uint64_t value = (uint32_t)emu->regs.rax | emu->regs.rdx << 32;

    emu->xstate_loaded = emu->xstate_changed = emu->sregs_changed = emu->flush_tlb = false;
    if (x86_emulate(emu) == X86_EMU_DONE) {
        in->sregs_changed |= emu->sregs_changed;
        if (emu->flush_tlb)
            x86_interpret_flush(in);
        return !emu->xstate_changed ||
               ioctl(assist->fd, KVM_SET_XSAVE, emu->xstate.bytes) == 0;
    }
    if (writes_debug_register(emu))
        assist->debug_written = true;
    if (emu->n_bytes < 2 || emu->bytes[0] != 0x0F || emu->bytes[1] != 0x30)
        return false;
    if ((uint32_t)emu->regs.rcx == X86_MSR_TSC_DEADLINE && in->has_tsc &&
        x86_tick_set(&assist->tick, assist->fd, value, __rdtsc() + (uint64_t)in->tsc_offset) == 0) {
        emu->regs.rip += 2;
        return true;
    }
    if ((uint32_t)emu->regs.rcx == MSR_TSC || (uint32_t)emu->regs.rcx == MSR_TSC_ADJUST)
        in->has_kernel_gs = in->has_tsc = false; /* both are learnt anew */
    return false;
}

/* Interprets until KVM is needed. */
static enum x86_interpret_end interpret(struct x86_assist *assist)
{
    enum x86_interpret_end end;

    if (!assist->in->has_kernel_gs)
        learn_kernel_gs(assist);
    if (assist->unwatched) {
        assist->unwatched = false;
        x86_tables_unwatched(assist->tables);
    }
    do
        end = x86_interpret(assist->in, BUDGET);
    while (end == X86_INTERPRET_LEFT && !assist->in->table_left && complete_left(assist) &&
           !assist->run->immediate_exit && x86_interpretable(assist->in));
    return end;
}

/* ---- to KVM ---- */

static int enter_user(struct x86_assist *assist)
{
    int err = tell_kernel_gs(assist);

    x86_syscall_follow(&assist->syscall, &assist->in->emu);
    if (assist->in->emu.sregs.efer & X86_EFER_LMA)
        x86_tables_enter(assist->tables, assist->index, assist->in->emu.sregs.cr3);
    assist->emulated = x86_count_read(&assist->count);
    assist->ran_user = true;
    return err ? err : set_mode(assist, X86_ASSIST_BREAK);
}

static int enter_step(struct x86_assist *assist)
{
    const struct kvm_regs *regs = &assist->in->emu.regs;
    int err = tell_kernel_gs(assist);

    assist->left_at = regs->rip;
    assist->left_with_interrupts = regs->rflags & X86_FLAG_IF;
    return err ? err : set_mode(assist, X86_ASSIST_STEP);
}

static void give_back(struct x86_assist *assist)
{
    assist->run->s.regs.regs = assist->in->emu.regs;
    assist->run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
    if (assist->in->sregs_changed) {
        assist->run->s.regs.sregs = assist->in->emu.sregs;
        assist->run->kvm_dirty_regs |= KVM_SYNC_X86_SREGS;
    }
    assist->in->sregs_changed = false;
}

/* An exit whose instruction KVM completes when it is entered next. */
static bool incomplete(const struct kvm_run *run)
{
    return run->exit_reason == KVM_EXIT_MMIO || run->exit_reason == KVM_EXIT_IO ||
           run->exit_reason == KVM_EXIT_HYPERCALL;
}

/* An STI that KVM has carried out delays interrupts by one instruction, which is carried out here. */
static void end_shadow(struct x86_assist *assist, uint64_t rip)
{
    struct kvm_vcpu_events *events = &assist->run->s.regs.events;

    if (!events->interrupt.shadow || assist->in->emu.regs.rip == rip)
        return;
    events->interrupt.shadow = 0;
    x86_assist_give_events(assist, events);
}

/*
 * Code that may be interpreted, if not now; a breakpoint's own instruction, whoever runs the rest; and the
 * first that a kernel executes, which soon enters 64-bit mode. Never with TF set: KVM's steps hide it.
 */
static bool wants_steps(struct x86_assist *assist)
{
    struct x86_interpreter *in = assist->in;

    if (in->emu.regs.rflags & X86_FLAG_TF || x86_emu_cpl(&in->emu) != 0)
        return false;
    if (left_to_kvm(assist) || at_breakpoint(assist))
        return at_breakpoint(assist);
    if (x86_interpretable(in))
        return true;
    return !(in->emu.sregs.efer & X86_EFER_LMA && in->emu.sregs.cs.l) &&
           assist->early_steps++ < EARLY_STEPS;
}

/* Whether the instruction that was left leads to user mode (IRET, SYSRET, SYSEXIT): a step would go on
 * there. A far RET is a kernel's within itself, when it starts. */
static bool returns(const struct x86_emu *emu)
{
    unsigned at = 0;

    while (at + 2 < emu->n_bytes && ((emu->bytes[at] & 0xF0) == 0x40 || emu->bytes[at] == 0x66))
        at++;
    if (at + 1 >= emu->n_bytes)
        return false;
    if (emu->bytes[at] == 0x0F)
        return emu->bytes[at + 1] == 0x07 || emu->bytes[at + 1] == 0x35;
    return emu->bytes[at] == 0xCF;
}

/* Whether that instruction sets TF: by SYSRET's R11, or IRET's frame. */
static bool returns_to_steps(struct x86_emu *emu)
{
    uint64_t flags;

    if (emu->bytes[emu->n_bytes > 2 && emu->bytes[0] != 0x0F] == 0x0F)
        flags = emu->regs.r11;
    else if (x86_emu_read(emu, emu->regs.rsp + 16, &flags, sizeof(flags), X86_READ) != X86_EMU_DONE)
        return false;
    return flags & X86_FLAG_TF;
}

/* The interpreter has come to this end. */
static int enter_from(struct x86_assist *assist, enum x86_interpret_end end)
{
    struct x86_interpreter *in = assist->in;
    int err;

    if (end == X86_INTERPRET_HALTED) {
        err = halt(assist);
        return err ? err : enter_step(assist);
    }
    if (end == X86_INTERPRET_LEFT && !in->table_left && returns(&in->emu)) {
        assist->stepping = returns_to_steps(&in->emu);
        return enter_user(assist);
    }
    return wants_steps(assist) ? enter_step(assist) : enter_user(assist);
}

static int enter_interpreted(struct x86_assist *assist)
{
    struct x86_interpreter *in = assist->in;
    enum x86_interpret_end end;
    uint64_t rip;

    take_over(assist);
    check_debug_registers(assist);
    return_from_kvm(assist);
    assist->stepping = in->emu.regs.rflags & X86_FLAG_TF;
    rip = in->emu.regs.rip;
    if (!may_interpret(assist)) {
        assist->stepped_unseen = wants_steps(assist);
        return assist->stepped_unseen ? enter_step(assist) : enter_user(assist);
    }
    end = interpret(assist);
    end_shadow(assist, rip);
    give_back(assist);
    return enter_from(assist, end);
}

/* An instruction that KVM completes, with registers that are not in the run structure. */
static int enter_completing(struct x86_assist *assist)
{
    int err = x86_assist_load(assist);
    bool steps = wants_steps(assist);

    assist->left |= !steps;
    if (!err)
        err = set_mode(assist, steps ? X86_ASSIST_STEP : X86_ASSIST_BREAK);
    assist->completing = false;
    return err;
}

static int enter_waiting(struct x86_assist *assist)
{
    int err = x86_assist_load(assist);
    bool steps = assist->waiting || wants_steps(assist);

    assist->stepped_unseen = steps;
    assist->left |= !steps;
    return err ? err : set_mode(assist, steps ? X86_ASSIST_STEP : X86_ASSIST_BREAK);
}

int x86_assist_enter(struct x86_assist *assist)
{
    if (!assist->tables) {
        enum x86_assist_mode mode = assist->step_over ? X86_ASSIST_STEP : X86_ASSIST_BREAK;

        assist->step_over = false;
        return set_mode(assist, mode);
    }
    assist->run->kvm_valid_regs = ALL_REGS;
    assist->halted = assist->waiting = false;
    if (assist->completing)
        return enter_completing(assist);
    if (assist->enter_first || may_be_halted(assist)) {
        int err = look_anew(assist);

        if (err)
            return err;
    }
    if (assist->halted || assist->waiting) /* until what comes, which KVM knows first */
        return enter_waiting(assist);
    if (incomplete(assist->run)) {
        if (assist->run->kvm_dirty_regs == 0 && x86_assist_load(assist) == 0 &&
            wants_steps(assist))
            return set_mode(assist, X86_ASSIST_STEP);
        return 0;
    }
    return enter_interpreted(assist);
}

int x86_assist_park(struct x86_assist *assist)
{
    return assist->tables ? tell_kernel_gs(assist) : 0;
}
