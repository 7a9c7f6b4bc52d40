/*
 * Local APIC, as xAPIC by MMIO or as x2APIC by MSRs, and I/O APIC.
 *
 * Knows one I/O APIC, at the address where the platform has it.
 * Thread: local APIC functions act on the calling processor; the I/O APIC's on the first only.
 * Texts: Intel SDM volume 3, 10 (APIC), 10.12 (x2APIC); 82093AA data sheet, 3.
 */
#include "apic.h"

#include <stddef.h>

#include "boot.h"
#include "cpu.h"
#include "io.h"

#define LAPIC_BASE   0xFEE00000ull
#define IOAPIC_BASE  0xFEC00000ull
#define IOAPIC_INDEX 0x00
#define IOAPIC_DATA  0x10
#define IOAPIC_VERSION 1
#define IOAPIC_TABLE 0x10

#define X2APIC_MSR       0x800
#define X2APIC_ICR       0x830
#define CPUID_1_X2APIC   (1u << 21)
#define APIC_BASE_EXTD   (1u << 10)
#define APIC_BASE_ENABLE (1u << 11)
#define SVR_ENABLE       0x100
#define ICR_PENDING      0x1000

/* One mode for all processors: each enters it before it uses its APIC. */
static bool x2apic;

static uint32_t x2apic_msr(uint32_t offset)
{
    return X2APIC_MSR + (offset >> 4);
}

uint32_t lapic_read(uint32_t offset)
{
    if (x2apic)
        return (uint32_t)msr_read(x2apic_msr(offset));
    return mmio_read32(LAPIC_BASE + offset);
}

void lapic_write(uint32_t offset, uint32_t value)
{
    if (x2apic)
        msr_write(x2apic_msr(offset), value);
    else
        mmio_write32(LAPIC_BASE + offset, value);
}

void lapic_eoi_cpl0(void)
{
    if (x2apic)
        __asm__ volatile("wrmsr" : : "c"(X2APIC_MSR + (LAPIC_EOI >> 4)), "a"(0), "d"(0));
    else
        mmio_write32(LAPIC_BASE + LAPIC_EOI, 0);
}

uint32_t lapic_id(void)
{
    uint32_t id = lapic_read(LAPIC_ID);

    return x2apic ? id : id >> 24;
}

void lapic_init(void)
{
    if (x2apic || arg_present("x2apic"))
        lapic_enter_x2apic();
    lapic_write(LAPIC_TPR, 0);
    lapic_write(LAPIC_LVT_TIMER, LVT_MASKED);
    lapic_write(LAPIC_LVT_LINT0, LVT_MASKED); /* a firmware may have left the 8259 behind it */
    lapic_write(LAPIC_SVR, SVR_ENABLE | SPURIOUS_VECTOR);
}

bool lapic_enter_x2apic(void)
{
    if ((cpuid(1, 0).ecx & CPUID_1_X2APIC) == 0)
        return false;
    msr_write(MSR_APIC_BASE, msr_read(MSR_APIC_BASE) | APIC_BASE_ENABLE | APIC_BASE_EXTD);
    x2apic = true;
    return true;
}

bool lapic_is_x2apic(void)
{
    return x2apic;
}

void lapic_send(uint32_t apic_id, uint32_t icr_low)
{
    if (x2apic) {
        msr_write(X2APIC_ICR, (uint64_t)apic_id << 32 | icr_low);
        return;
    }
    mmio_write32(LAPIC_BASE + LAPIC_ICR_HIGH, apic_id << 24);
    mmio_write32(LAPIC_BASE + LAPIC_ICR_LOW, icr_low);
    while ((mmio_read32(LAPIC_BASE + LAPIC_ICR_LOW) & ICR_PENDING) != 0)
        cpu_pause();
}

uint64_t msi_address(uint32_t apic_id)
{
    return 0xFEE00000ull | (uint64_t)(apic_id & 0xFF) << 12;
}

uint32_t msi_data(uint32_t vector)
{
    return vector & 0xFF;
}

uint32_t ioapic_read(uint32_t index)
{
    mmio_write32(IOAPIC_BASE + IOAPIC_INDEX, index);
    return mmio_read32(IOAPIC_BASE + IOAPIC_DATA);
}

void ioapic_write(uint32_t index, uint32_t value)
{
    mmio_write32(IOAPIC_BASE + IOAPIC_INDEX, index);
    mmio_write32(IOAPIC_BASE + IOAPIC_DATA, value);
}

uint32_t ioapic_inputs(void)
{
    return (ioapic_read(IOAPIC_VERSION) >> 16 & 0xFF) + 1;
}

void ioapic_route(uint32_t gsi, uint32_t vector, uint32_t apic_id, uint32_t flags)
{
    ioapic_write(IOAPIC_TABLE + 2 * gsi, IOAPIC_MASKED);
    ioapic_write(IOAPIC_TABLE + 2 * gsi + 1, apic_id << 24);
    ioapic_write(IOAPIC_TABLE + 2 * gsi, (vector & 0xFF) | flags);
}
