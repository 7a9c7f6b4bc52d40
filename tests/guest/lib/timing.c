/*
 * Time by the TSC.
 *
 * Does not calibrate against another clock: there is none that a payload could trust more.
 * Thread: timing_init() on the first processor, the rest on any.
 * Texts: Intel SDM volume 2A, CPUID leaf 0x15; Linux Documentation/virt/kvm/x86/cpuid.rst and
 * msr.rst (kvmclock); VMware's leaf 0x40000010, which gives kHz in EAX.
 */
#include "timing.h"

#include "boot.h"
#include "cpu.h"
#include "io.h"
#include "memory.h"
#include "print.h"

#define HYPERVISOR_BIT  (1u << 31)
#define LEAF_HYPERVISOR 0x40000000
#define LEAF_FEATURES   0x40000001
#define LEAF_TIMING     0x40000010
#define LEAF_TSC        0x15
#define SCALE_SHIFT     32

static uint64_t frequency_khz;
static uint64_t ns_scale;    /* nanoseconds a cycle, times 2^SCALE_SHIFT */

static struct kvmclock probe_clock __attribute__((aligned(64)));

static uint32_t hypervisor_max_leaf(void)
{
    if ((cpuid(1, 0).ecx & HYPERVISOR_BIT) == 0)
        return 0;
    return cpuid(LEAF_HYPERVISOR, 0).eax;
}

bool kvm_feature(uint32_t bit)
{
    struct cpuid_result id = cpuid(LEAF_HYPERVISOR, 0);

    if ((cpuid(1, 0).ecx & HYPERVISOR_BIT) == 0)
        return false;
    if (id.ebx != 0x4B4D564B || id.ecx != 0x564B4D56 || id.edx != 0x4D) /* "KVMKVMKVM" */
        return false;
    return (cpuid(LEAF_FEATURES, 0).eax >> bit & 1) != 0;
}

static uint64_t khz_of_leaf_15(void)
{
    if (cpuid(0, 0).eax < LEAF_TSC)
        return 0;
    struct cpuid_result id = cpuid(LEAF_TSC, 0);
    if (id.eax == 0 || id.ebx == 0 || id.ecx == 0)
        return 0;
    return (uint64_t)id.ecx * id.ebx / id.eax / 1000;
}

/* The multiplier turns cycles, shifted, into 2^-32 ns: kHz = 10^6 * 2^32 / mul, shifted back. */
static uint64_t khz_of_kvmclock(void)
{
    if (!kvm_feature(KVM_FEATURE_CLOCKSOURCE2))
        return 0;
    msr_write(MSR_KVM_SYSTEM_TIME_NEW, (uintptr_t)&probe_clock | 1);
    uint32_t mul = probe_clock.tsc_to_system_mul;
    int8_t shift = probe_clock.tsc_shift;
    msr_write(MSR_KVM_SYSTEM_TIME_NEW, 0);
    if (mul == 0)
        return 0;
    uint64_t khz = (1000000ull << 32) / mul;
    return shift < 0 ? khz << -shift : khz >> shift;
}

static uint64_t find_khz(void)
{
    uint64_t khz = arg_number("tsc-khz", 0);

    if (khz == 0 && hypervisor_max_leaf() >= LEAF_TIMING)
        khz = cpuid(LEAF_TIMING, 0).eax;
    if (khz == 0)
        khz = khz_of_leaf_15();
    if (khz == 0)
        khz = khz_of_kvmclock();
    return khz;
}

void timing_init(void)
{
    frequency_khz = find_khz();
    if (frequency_khz == 0) {
        print("note: unknown TSC frequency, a cycle counts as a nanosecond\n");
        frequency_khz = 1000000;
    }
    ns_scale = (1000000ull << SCALE_SHIFT) / frequency_khz;
}

uint64_t tsc_khz(void)
{
    return frequency_khz;
}

uint64_t cycles_to_ns(uint64_t cycles)
{
    return (uint64_t)((unsigned __int128)cycles * ns_scale >> SCALE_SHIFT);
}

uint64_t ns_to_cycles(uint64_t nanoseconds)
{
    return nanoseconds / 1000000 * frequency_khz + nanoseconds % 1000000 * frequency_khz / 1000000;
}

uint64_t now_ns(void)
{
    return cycles_to_ns(rdtsc());
}

void delay_ns(uint64_t nanoseconds)
{
    struct deadline deadline = deadline_in(nanoseconds);

    while (!deadline_over(&deadline))
        cpu_pause();
}

uint64_t kvmclock_read(const volatile struct kvmclock *clock)
{
    uint32_t version;
    uint64_t time;

    do {
        version = clock->version;
        compiler_barrier();
        uint64_t cycles = rdtsc() - clock->tsc_timestamp;
        int8_t shift = clock->tsc_shift;
        cycles = shift < 0 ? cycles >> -shift : cycles << shift;
        time = clock->system_time +
               (uint64_t)((unsigned __int128)cycles * clock->tsc_to_system_mul >> 32);
        compiler_barrier();
    } while ((version & 1) != 0 || version != clock->version);
    return time;
}

struct deadline deadline_in(uint64_t nanoseconds)
{
    return (struct deadline){ .end = rdtsc() + ns_to_cycles(nanoseconds) };
}

bool deadline_over(const struct deadline *deadline)
{
    return rdtsc() >= deadline->end;
}
