/*
 * Time by the TSC, which is taken to be constant and the same on every processor.
 *
 * Its frequency comes from, in this order: tsc-khz=N on the command line, CPUID 0x40000010, CPUID
 * 0x15, the kvmclock. With none of them one cycle counts as one nanosecond, and a line says so.
 */
#ifndef GUEST_TIMING_H
#define GUEST_TIMING_H

#include <stdbool.h>
#include <stdint.h>

#define MILLISECOND 1000000ul
#define SECOND      1000000000ul

/* The page that KVM keeps for the guest; Linux Documentation/virt/kvm/x86/msr.rst. */
struct kvmclock {
    uint32_t version;
    uint32_t padding;
    uint64_t tsc_timestamp;
    uint64_t system_time;
    uint32_t tsc_to_system_mul;
    int8_t tsc_shift;
    uint8_t flags;
    uint8_t reserved[2];
};
_Static_assert(sizeof(struct kvmclock) == 32, "pvclock_vcpu_time_info");

#define MSR_KVM_SYSTEM_TIME_NEW 0x4B564D01
#define KVM_FEATURE_CLOCKSOURCE2 3

void timing_init(void);

uint64_t tsc_khz(void);
uint64_t cycles_to_ns(uint64_t cycles);
uint64_t ns_to_cycles(uint64_t nanoseconds);
/* Nanoseconds since the TSC was zero. */
uint64_t now_ns(void);
void delay_ns(uint64_t nanoseconds);

/* True when CPUID offers KVM's paravirtual feature with this bit. */
bool kvm_feature(uint32_t bit);
/* Nanoseconds by the kvmclock page that clock holds, read as its protocol asks. */
uint64_t kvmclock_read(const volatile struct kvmclock *clock);

/* Turns true when limit has gone by; for loops that wait. */
struct deadline {
    uint64_t end;
};
struct deadline deadline_in(uint64_t nanoseconds);
bool deadline_over(const struct deadline *deadline);

#endif
