/*
 * All of a vCPU's registers: read from KVM, written to KVM, and described for saving.
 *
 * For vmm/x86/. On the event loop's thread while the vCPU is parked.
 */
#ifndef FERRY_X86_VCPU_STATE_H
#define FERRY_X86_VCPU_STATE_H

#include <linux/kvm.h>
#include <stdint.h>

#include "vmm/util/state.h"

#define X86_MAX_MSRS 512

struct x86_vcpu_state {
    struct kvm_regs regs;
    struct kvm_fpu fpu;
    struct kvm_xsave xsave; /* zero where the processor has no XSAVE; so are the XCRs */
    struct kvm_xcrs xcrs;
    struct kvm_sregs sregs;
    struct kvm_debugregs debugregs;
    struct kvm_lapic_state lapic;
    struct kvm_mp_state mp_state;
    struct kvm_vcpu_events events;
    uint32_t tsc_khz;
    uint32_t n_msrs;
    struct kvm_msr_entry msrs[X86_MAX_MSRS];
};
/* The structs as the KVM API lays them out, which is frozen and little-endian on x86. */
extern const struct state_desc x86_vcpu_state_desc;

/* MSRs that a vCPU uses: whose value is not 0. */
struct x86_msrs {
    uint32_t n;
    struct kvm_msr_entry entries[X86_MAX_MSRS];
};
extern const struct state_desc x86_msrs_desc;
/* Errors of KVM's, logged; -ENOMEM. */
int x86_msrs_read(int kvm_fd, int vcpu_fd, struct x86_msrs *msrs);
/* Adds to `missing` the names of those of `there` that this host's KVM does not know. */
int x86_msrs_compare(int kvm_fd, const struct x86_msrs *there, char *missing, size_t size);

/* 0 or a negative errno of KVM's, logged. */
int x86_vcpu_state_read(int kvm_fd, int vcpu_fd, struct x86_vcpu_state *state);
/* KVM checks what is written: -EINVAL when it refuses; logged. */
int x86_vcpu_state_write(int kvm_fd, int vcpu_fd, const struct x86_vcpu_state *state);

#endif
