/*
 * What the files of the help for a vCPU share. For vmm/x86/assist*.c only. The vCPU's thread, or the
 * loop's while the vCPU is parked.
 */
#ifndef FERRY_X86_ASSIST_INTERNAL_H
#define FERRY_X86_ASSIST_INTERNAL_H

#include "vmm/x86/assist.h"
#include "vmm/x86/count.h"
#include "vmm/x86/interpret.h"
#include "vmm/x86/syscall.h"
#include "vmm/x86/tick.h"

/* How KVM is told to stop (KVM_SET_GUEST_DEBUG). */
enum x86_assist_mode {
    X86_ASSIST_BREAK, /* at the handlers in `breakpoints` */
    X86_ASSIST_STEP,  /* after each instruction */
};

#define X86_ASSIST_HANDLERS 3 /* that are watched besides that of page faults */

struct x86_assist {
    int fd; /* borrowed */
    unsigned index;
    struct kvm_run *run; /* borrowed; registers are exchanged by it (KVM_CAP_SYNC_REGS) */
    struct x86_syscall syscall;
    struct x86_tick tick;
    struct x86_interpreter *in; /* owns */
    struct x86_tables *tables;  /* borrowed; NULL: kernel code is not interpreted here */

    enum x86_assist_mode mode;
    uint64_t steps_from; /* linear RIP that KVM had when it was told to step */
    uint64_t kvm_rip;    /* linear RIP that KVM has now */
    uint64_t breakpoints[1 + X86_ASSIST_HANDLERS]; /* as KVM has them */
    uint64_t handlers[X86_ASSIST_HANDLERS];        /* of interrupts that were met */
    unsigned n_handlers;                           /* ever met; the next goes to its remainder */
    unsigned early_steps; /* of code before 64-bit mode, since the last reset */
    bool enter_first; /* the state in `run` is none yet */
    bool completing;  /* an exit whose instruction KVM completes: nor is it then */
    bool halted, waiting; /* for an interrupt; for an INIT or a SIPI: as x86_assist_enter() has found it */
    uint64_t left_at; /* RIP of the instruction that KVM is to step; 0: none */
    bool left_with_interrupts;
    uint64_t kernel_gs; /* as KVM has it, in->has_kernel_gs */
    struct x86_count count; /* of what KVM emulates */
    uint64_t emulated;  /* before KVM was entered to run user code; ran_user */
    bool ran_user;
    bool stepped_unseen; /* one that the interpreter was not asked for */
    bool unwatched;     /* KVM has run kernel code meanwhile */
    bool debug_written; /* the guest may have, of its debug registers */
    bool debugged;      /* the guest uses them: KVM runs all kernel code */
    bool left;          /* it has, for this vCPU's sake or another's */
    bool stepping;      /* what is entered now has TF set */
    bool step_over;     /* a breakpoint, where nothing is interpreted */
};

/* emu's registers from KVM and back. store: regs, and what emu says of the rest; `stepped`: the
 * guest's own single-step trap is due. 0 or a negative errno, logged. */
int x86_assist_load(struct x86_assist *assist);
int x86_assist_store(struct x86_assist *assist, bool stepped);
uint64_t x86_assist_linear_rip(const struct x86_emu *emu, uint64_t rip); /* as KVM reckons it */
/* For KVM_RUN: exceptions, interrupts and the shadow; what comes from other CPUs meanwhile stays. */
void x86_assist_give_events(struct x86_assist *assist, const struct kvm_vcpu_events *events);
int x86_assist_fail(const char *what); /* logs errno, and returns it negated */

#endif
