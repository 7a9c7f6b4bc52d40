/*
 * Local APIC, as xAPIC by MMIO or as x2APIC by MSRs, and I/O APIC.
 *
 * The xAPIC registers are reached from CPL 3; each x2APIC access is a call to CPL 0.
 */
#ifndef GUEST_APIC_H
#define GUEST_APIC_H

#include <stdbool.h>
#include <stdint.h>

#define MSR_APIC_BASE    0x1B
#define MSR_TSC_DEADLINE 0x6E0

/* xAPIC offsets; x2APIC MSRs are 0x800 + offset / 16 (Intel SDM volume 3, 10.12.1.2). */
#define LAPIC_ID         0x020
#define LAPIC_VERSION    0x030
#define LAPIC_TPR        0x080
#define LAPIC_EOI        0x0B0
#define LAPIC_SVR        0x0F0
#define LAPIC_ISR        0x100
#define LAPIC_IRR        0x200
#define LAPIC_ICR_LOW    0x300
#define LAPIC_ICR_HIGH   0x310
#define LAPIC_LVT_TIMER  0x320
#define LAPIC_LVT_LINT0  0x350
#define LAPIC_TIMER_INIT 0x380
#define LAPIC_TIMER_NOW  0x390
#define LAPIC_TIMER_DIV  0x3E0

#define LVT_MASKED       (1u << 16)
#define LVT_PERIODIC     (1u << 17)
#define LVT_TSC_DEADLINE (2u << 17)

#define ICR_INIT         0x500
#define ICR_STARTUP      0x600
#define ICR_ASSERT       0x4000
#define ICR_ALL_BUT_SELF 0xC0000

#define SPURIOUS_VECTOR  0xFF

/* Enables this processor's local APIC in the mode it is in, timer masked. */
void lapic_init(void);
/* Switches this processor to x2APIC; false when CPUID does not offer it. */
bool lapic_enter_x2apic(void);
bool lapic_is_x2apic(void);

uint32_t lapic_id(void);
uint32_t lapic_read(uint32_t offset);
void lapic_write(uint32_t offset, uint32_t value);
/* An interprocessor interrupt; waits until the APIC has taken it. */
void lapic_send(uint32_t apic_id, uint32_t icr_low);
/* For trap_dispatch(), at CPL 0. */
void lapic_eoi_cpl0(void);

/* MSI address and data (Intel SDM volume 3, 10.11): fixed delivery, edge, one processor. */
uint64_t msi_address(uint32_t apic_id);
uint32_t msi_data(uint32_t vector);

#define IOAPIC_MASKED     (1u << 16)
#define IOAPIC_LEVEL      (1u << 15)
#define IOAPIC_ACTIVE_LOW (1u << 13)

uint32_t ioapic_read(uint32_t index);
void ioapic_write(uint32_t index, uint32_t value);
uint32_t ioapic_inputs(void);
/* Input gsi to vector on apic_id, flags of IOAPIC_*. */
void ioapic_route(uint32_t gsi, uint32_t vector, uint32_t apic_id, uint32_t flags);

#endif
