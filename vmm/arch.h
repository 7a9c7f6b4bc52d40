/*
 * What differs by architecture, behind one header; vmm/x86/ implements it for x86-64.
 *
 * Functions return 0 or a negative errno, logged.
 */
#ifndef FERRY_ARCH_H
#define FERRY_ARCH_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/util/state.h"

struct arch_vm;
struct arch_vcpu;
struct guest_memory;
struct vcpu;

/* A capability of KVM that the VMM uses. */
struct arch_cap {
    int capability;
    const char *name; /* "KVM_CAP_IRQCHIP" */
    const char *use;  /* what it gives a guest */
    const char *loss; /* what happens without it; NULL: guests cannot run */
};
/* Ends with a NULL name. */
extern const struct arch_cap arch_caps[];

/* Interrupt controllers and whatever else must exist before the first vCPU. Keeps what
 * arch_vm_reset() needs. *out is owned by the caller. */
int arch_vm_create(struct arch_vm **out, int kvm_fd, int vm_fd);
void arch_vm_destroy(struct arch_vm *avm);
int arch_vm_reset(struct arch_vm *avm, int vm_fd);
/* The routes of the interrupt lines, before any MSI: at most `max` entries; returns how many. */
unsigned arch_irq_routes(struct kvm_irq_routing_entry *entries, unsigned max);
/* The first GSI free for MSI routes. */
#define ARCH_MAX_LINES 64

/* What a vCPU is at power-on: CPUID and the like for vCPU `index` of `count`; remembers the state in
 * which KVM made it. With `assist`, what this host's KVM leaves undone of kernel code is completed here;
 * NULL on one that leaves nothing. *out is owned by the caller. */
struct arch_assist {
    struct guest_memory *mem; /* these are borrowed */
    struct x86_tables *tables;
    struct kvm_run *run;
};
int arch_vcpu_create(struct arch_vcpu **out, int kvm_fd, int vcpu_fd, unsigned index,
                     unsigned count, const struct arch_assist *assist);
void arch_vcpu_destroy(struct arch_vcpu *acpu);
/* Back to power-on state. On the vCPU's own thread or while it is parked. */
int arch_vcpu_reset(struct arch_vcpu *acpu);

/* Append and read all of a vCPU's or a VM's state as records (vmm/util/state.h), parked. A load that
 * fails leaves it unfit to run. -EINVAL: this host cannot run it. */
int arch_vcpu_save(struct arch_vcpu *acpu, struct state_buffer *out);
int arch_vcpu_load(struct arch_vcpu *acpu, struct state_reader *in);
/* What the guest uses of its processor, as records. Parked. */
int arch_vcpu_describe(struct arch_vcpu *acpu, struct state_buffer *out);
/* Of such records, those of a guest of another host and those of a new vCPU of this one: as text, what
 * this host lacks; empty when nothing. -ENODATA or another (logged): no such records. */
int arch_processor_compare(int kvm_fd, struct state_reader *there, struct state_reader *here,
                           char *missing, size_t size);
int arch_vm_save(int vm_fd, struct state_buffer *out);
int arch_vm_load(int vm_fd, struct state_reader *in);

/* For a VM whose vCPUs are to be created with `assist`: before it has anything else. *out, which may be
 * NULL, is owned by the caller. */
int arch_vm_assist(struct x86_tables **out, int kvm_fd, int vm_fd, struct guest_memory *mem);
void arch_vm_assist_end(struct x86_tables *tables);
/* What such a VM's Linux is told: to keep from what is slow or fails there. */
extern const char arch_assist_options[];

/* Emulates one exit that is the architecture's own (KVM_EXIT_IO on x86). 0 when done, -ENOSYS when
 * it knows none such, -ENOTSUP when it cannot complete an instruction, another negative errno of
 * KVM's, logged. vCPU thread, device lock not held. */
int arch_vcpu_exit(struct arch_vcpu *acpu, struct vcpu *vcpu, struct kvm_run *run);
/* Before each KVM_RUN, and before the vCPU is parked, where KVM_RUN follows with immediate_exit set. The
 * vCPU's thread. 0 or a negative errno, logged. */
int arch_vcpu_enter(struct arch_vcpu *acpu);
int arch_vcpu_park(struct arch_vcpu *acpu);
/* The vCPU was parked and is about to run on: the time it lost is no lock-up of the guest's. Parked. */
void arch_vcpu_resuming(int vcpu_fd);
/* The instruction pointer, for messages about a crash; 0 when it cannot be had. */
uint64_t arch_vcpu_ip(int vcpu_fd);

#endif
