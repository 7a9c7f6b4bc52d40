/*
 * x86 parts of the VMM that see each other: CPUID, vCPU state, and the entry into a kernel. For
 * vmm/x86/ and the composition root.
 */
#ifndef FERRY_X86_H
#define FERRY_X86_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/util/state.h"

struct x86_cpuid {
    struct kvm_cpuid2 head; /* head.nent of: */
    struct kvm_cpuid_entry2 entries[256];
};

/* What the guest sees of its processor. */
struct x86_topology {
    unsigned index; /* of the vCPU, which is also its APIC id */
    unsigned count; /* cores in the one package; a thread each */
    uint32_t tsc_khz; /* 0: unknown */
    bool tsc_deadline;
    bool emulated; /* kernel code is, by KVM or by Ferry */
};

/*
 * What KVM supports, with what every VMM must fill in by itself: APIC ids and topology (leaves 1, 4,
 * 0xB, 0x1F, 0x80000008, 0x8000001D, 0x8000001E), the hypervisor bit, TSC frequency (0x40000010).
 * 0, or a negative errno of KVM_GET_SUPPORTED_CPUID, logged.
 */
int x86_cpuid_supported(int kvm_fd, struct x86_cpuid *cpuid);
/* -E2BIG when KVM fills so many entries that the leaves added have no room; logged. */
int x86_cpuid_set_topology(struct x86_cpuid *cpuid, const struct x86_topology *topology);

/*
 * A guest that is told of the hypercalls which `emulated` hides, by an older Ferry, keeps them: adds to `here`
 * those that this host's KVM has. x86_cpuid_flushes(): the guest leaves it to KVM to drop translations.
 */
int x86_cpuid_add_hidden(int kvm_fd, struct x86_cpuid *here);
bool x86_cpuid_flushes(struct x86_cpuid *saved);

extern const struct state_desc x86_cpuid_desc;

/*
 * Writes, as text, the features of `saved` that `here` lacks; empty when there are none. -EINVAL: a
 * table that is none, logged.
 */
#define X86_CPUID_MISSING_MAX 512
int x86_cpuid_compare(const struct x86_cpuid *saved, const struct x86_cpuid *here, char *missing,
                      size_t size);
/* Whether a guest that was shown `saved` can run where a new vCPU shows `here`. -EINVAL, logged. */
int x86_cpuid_check(const struct x86_cpuid *saved, const struct x86_cpuid *here);

/* How the first vCPU begins. Flat segments; interrupts off. */
enum x86_mode { X86_PROTECTED32, X86_LONG64 };
struct x86_entry {
    enum x86_mode mode;
    uint64_t rip, rax, rbx, rsi;
    uint64_t cr3; /* X86_LONG64 */
    uint64_t gdt;
    uint16_t gdt_limit;
    uint16_t cs, ds, tss; /* selectors */
};
/* After creation or reset, before the vCPU runs. 0 or a negative errno, logged. */
int x86_vcpu_enter_at(int vcpu_fd, const struct x86_entry *entry);

#endif
