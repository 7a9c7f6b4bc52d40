/*
 * Help for a vCPU on a KVM that emulates a guest's kernel code and leaves some of it undone: the
 * exits for instructions that it rejects, and its way of entering SYSCALL.
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

/* Has KVM tell of what needs help. Once, before the VM's first vCPU. 0 or a negative errno, logged. */
int x86_assist_prepare(int kvm_fd, int vm_fd);

/* vcpu_fd and mem are borrowed. *out is owned by the caller. 0 or -ENOMEM. */
int x86_assist_create(struct x86_assist **out, int vcpu_fd, struct guest_memory *mem);
void x86_assist_destroy(struct x86_assist *assist);

/* After the vCPU's state was set from elsewhere: reset, restore. 0 or a negative errno, logged. */
int x86_assist_refresh(struct x86_assist *assist);

/*
 * One exit. 0 when the vCPU can run on; -ENOSYS for an exit of another kind; -ENOTSUP when the
 * instruction cannot be completed; a negative errno of KVM's.
 */
int x86_assist_exit(struct x86_assist *assist, struct kvm_run *run);

#endif
