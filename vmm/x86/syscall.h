/*
 * SYSCALL from 64-bit user code, on a KVM that enters it only by half: RIP, RCX and R11 are set, but
 * the privilege and the segments stay the user's, so that the kernel's first instruction cannot be
 * fetched, and the guest gets a page fault.
 *
 * That fault is met at its handler by a breakpoint that the guest does not see, and is turned into
 * the entry that it should have been. For vmm/x86/assist.c. The vCPU's thread, or the loop's while
 * the vCPU is parked.
 */
#ifndef FERRY_X86_SYSCALL_H
#define FERRY_X86_SYSCALL_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

struct x86_emu;

struct x86_syscall {
    uint64_t star, lstar, sfmask;
    uint64_t handler; /* of page faults, where the breakpoint is to be; 0: there is none yet */
};

/* One MSR of a vCPU. 0, or -EIO when KVM does not have it, or does not take the value. */
int x86_msr_read(int vcpu_fd, uint32_t index, uint64_t *value);
int x86_msr_write(int vcpu_fd, uint32_t index, uint64_t value);

/* STAR, LSTAR and SFMASK, whose writes are to exit; CSTAR, in between, is let through. */
#define X86_SYSCALL_MSRS 0xC0000081u
#define X86_SYSCALL_N_MSRS 4u
#define X86_SYSCALL_ALLOWED 0x4u /* a bit for each from X86_SYSCALL_MSRS on */

/* The MSRs as they are now, and the handler; emu's registers are loaded. 0 or a
 * negative errno, logged. */
int x86_syscall_refresh(struct x86_syscall *s, int vcpu_fd, struct x86_emu *emu);

/* KVM_EXIT_X86_WRMSR. 0; -ENOSYS for another MSR; a negative errno of KVM's, logged. */
int x86_syscall_msr_exit(struct x86_syscall *s, int vcpu_fd, struct x86_emu *emu,
                         struct kvm_run *run);

/*
 * Whether the registers in emu are those of a page fault's handler, entered for such a SYSCALL; then
 * emu->regs and emu->sregs are changed to those of its entry. Pure.
 */
bool x86_syscall_repair(const struct x86_syscall *s, struct x86_emu *emu);

/* Where the guest's gate for an exception leads; 0 when there is none yet. emu's registers are loaded. */
uint64_t x86_gate_target(struct x86_emu *emu, unsigned vector);

/* Finds the guest's page-fault handler, should it have moved. emu's registers are loaded. */
void x86_syscall_follow(struct x86_syscall *s, struct x86_emu *emu);

#endif
