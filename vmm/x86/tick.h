/*
 * Rest between a vCPU's timer interrupts, on a KVM that emulates kernel code: there, handling one
 * takes milliseconds, and a guest that wants 250 a second would do nothing else.
 *
 * For vmm/x86/assist.c. The vCPU's thread, or the loop's while the vCPU is parked.
 */
#ifndef FERRY_X86_TICK_H
#define FERRY_X86_TICK_H

#include <linux/kvm.h>
#include <stdint.h>

#define X86_MSR_TSC_DEADLINE 0x6E0u

/* All in units of the guest's TSC. */
struct x86_tick {
    uint64_t longest;  /* rest; 0: none is made */
    uint64_t due;      /* the deadline that is set, or was last; 0: none */
    uint64_t earliest; /* that the next may be */
};

/* No deadline is set; khz: the guest's TSC, 0 where it is not known. */
void x86_tick_init(struct x86_tick *tick, uint32_t khz);

/*
 * The deadline to set at the TSC's value `now`, when the guest wants `wanted` (0: none). It is later
 * if the interrupt of the last was still being handled: by eleven times as long as that took. Pure.
 */
uint64_t x86_tick_space(struct x86_tick *tick, uint64_t wanted, uint64_t now);

/* Sets the deadline that a guest wants at `now`. 0, or -EIO. */
int x86_tick_set(struct x86_tick *tick, int vcpu_fd, uint64_t wanted, uint64_t now);

/* KVM_EXIT_X86_WRMSR for X86_MSR_TSC_DEADLINE. 0: a failure is the guest's #GP. */
int x86_tick_msr_exit(struct x86_tick *tick, int vcpu_fd, struct kvm_run *run);

#endif
