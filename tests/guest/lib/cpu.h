/*
 * Privilege levels, traps, interrupts, MSRs and CPUID of one processor.
 *
 * C code runs at CPL 3 (start.S tells why). What needs CPL 0 goes through cpl0_call(), which costs
 * about 25 us where KVM emulates CPL 0. Interrupt handlers run at CPL 0 on the trap stack of the
 * processor they hit, with interrupts off: keep them to a few instructions.
 */
#ifndef GUEST_CPU_H
#define GUEST_CPU_H

#include <stdbool.h>
#include <stdint.h>

#include "layout.h"

/* What the stubs of start.S leave on the trap stack. */
struct trap_frame {
    uint64_t rax, rcx, rdx, rsi, rdi, r8, r9, r10, r11;
    uint64_t vector;
    uint64_t error;
    uint64_t rip, cs, rflags, rsp, ss;
};

/* One a processor, found by GS. Fields but index and apic_id belong to that processor's traps. */
struct cpu {
    struct cpu *self;
    uint32_t index;
    uint32_t apic_id;
    uint64_t resume;   /* where to go on after a fault, or 0: a fault ends the payload */
    uint32_t faulted;  /* vector + 1 of the last fault that was resumed, or 0 */
    uint32_t reserved;
    void (*volatile work)(void *argument); /* what smp_run() asked for; NULL once done */
    void *volatile argument;
    uint64_t padding;
};
_Static_assert(sizeof(struct cpu) <= CPU_AREA_SIZE, "start.S steps by CPU_AREA_SIZE");

struct cpuid_result {
    uint32_t eax, ebx, ecx, edx;
};

extern struct cpu *cpu_at(uint32_t index);

static inline struct cpu *cpu_this(void)
{
    struct cpu *cpu;
    __asm__ volatile("movq %%gs:0, %0" : "=r"(cpu));
    return cpu;
}

/*
 * Runs function(argument, return_frame) at CPL 0 with interrupts off; function may ignore the
 * second argument, the RIP, CS, RFLAGS, RSP, SS it will return to. Not valid when already at
 * CPL 0 for functions that use return_frame.
 */
uint64_t cpl0_call(uint64_t (*function)(void *argument, uint64_t *return_frame), void *argument);

/* The IDT; once, before anything that may fault. */
void trap_init(void);

/* Called by start.S at CPL 0. */
void trap_dispatch(struct trap_frame *frame);

/* Interrupts of this processor. All may be called at CPL 3 only. */
void irq_enable(void);
void irq_disable(void);
/* Enables interrupts and halts until one came; leaves them as they were. Not when *unless != 0. */
void irq_halt(const volatile uint64_t *unless);

/*
 * Interrupts with no handler are counted and acknowledged. A handler is called after the count and
 * before the EOI, at CPL 0. NULL takes it away.
 */
typedef void irq_handler(uint32_t vector);
void irq_set_handler(uint32_t vector, irq_handler *handler);
uint32_t irq_count(uint32_t vector);
void irq_count_reset(uint32_t vector);

uint64_t msr_read(uint32_t msr);
void msr_write(uint32_t msr, uint64_t value);
/* False when the processor refuses by #GP. */
bool msr_read_safe(uint32_t msr, uint64_t *value);
bool msr_write_safe(uint32_t msr, uint64_t value);

/*
 * CPUID executed at CPL 0. Under kvm-pvm that is what the VMM has set, while at CPL 3 the
 * instruction gives the host's own values (cpuid_native).
 */
struct cpuid_result cpuid(uint32_t leaf, uint32_t subleaf);
struct cpuid_result cpuid_native(uint32_t leaf, uint32_t subleaf);

/* True where CPL 0 runs a hundred times slower than CPL 3, that is, emulated. */
bool cpu_kernel_emulated(void);

#endif
