/*
 * Help for a vCPU on a KVM that emulates a guest's kernel code and leaves some of it undone: the
 * exits for instructions that it rejects, its way of entering SYSCALL, and its slowness.
 *
 * Exists only where the probe has found such a KVM (vmm/probe.h); elsewhere no vCPU has one, and
 * nothing of it runs. Calls are the vCPU thread's, or the loop's while the vCPU is parked.
 */
#ifndef FERRY_X86_ASSIST_H
#define FERRY_X86_ASSIST_H

#include <linux/kvm.h>
#include <stddef.h>

struct guest_memory;
struct x86_assist;
struct x86_tables;

/* Has KVM tell of what needs help. Once, before the VM's first vCPU. *out, for its vCPUs, is owned by the
 * caller, and NULL where kernel code cannot be interpreted. 0 or a negative errno, logged. */
int x86_assist_prepare(struct x86_tables **out, int kvm_fd, int vm_fd, struct guest_memory *mem);

/* What a vCPU's help needs; all borrowed. */
struct x86_assist_config {
    int vcpu_fd;
    unsigned index;
    struct guest_memory *mem;
    struct x86_tables *tables; /* of x86_assist_prepare() */
    struct kvm_run *run;
};
/* *out is owned by the caller. 0 or -ENOMEM. */
int x86_assist_create(struct x86_assist **out, const struct x86_assist_config *config);
void x86_assist_destroy(struct x86_assist *assist);
/* Has KVM run the guest's kernel code for good. Before x86_assist_refresh(); for all vCPUs of a VM. */
void x86_assist_leave_to_kvm(struct x86_assist *assist);

/* After the vCPU's state was set from elsewhere: reset, restore. 0 or a negative errno, logged. */
int x86_assist_refresh(struct x86_assist *assist);

/* Before KVM_RUN: interprets kernel code for as long as that can be done, and has KVM stop where it must.
 * Returns soon after run->immediate_exit is set. 0 or a negative errno, logged. */
int x86_assist_enter(struct x86_assist *assist);
/* Before the vCPU's state is read from KVM; KVM_RUN follows. 0 or a negative errno, logged. */
int x86_assist_park(struct x86_assist *assist);

/*
 * One exit. 0 when the vCPU can run on; -ENOSYS for an exit of another kind; -ENOTSUP when the
 * instruction cannot be completed; a negative errno of KVM's.
 */
int x86_assist_exit(struct x86_assist *assist, struct kvm_run *run);

#endif
