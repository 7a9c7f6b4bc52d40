/*
 * Starting application processors and giving them work.
 *
 * One at a time, so that a processor's index tells which one it is. An idle processor halts at
 * CPL 0 and is woken by an interrupt. Does not stop processors again.
 * Thread: smp_start(), smp_run() and smp_wait() on the first processor. struct cpu's work is
 * handed over by plain stores, which x86 keeps in order: argument before work, result before NULL.
 * Texts: Intel SDM volume 3, 8.4.4 (INIT-SIPI-SIPI); MultiProcessor Specification 1.4, B.4.
 */
#include "smp.h"

#include <stddef.h>

#include "apic.h"
#include "io.h"
#include "memory.h"
#include "timing.h"

extern const char trampoline[], trampoline_end[];
extern volatile uint32_t cpus_started;

static volatile uint32_t cpus_ready = 1;

#define STARTUP_VECTOR (TRAMPOLINE >> 12)

static bool wait_ready(uint32_t count, uint64_t limit_ns)
{
    struct deadline deadline = deadline_in(limit_ns);

    while (cpus_ready < count) {
        if (deadline_over(&deadline))
            return false;
        cpu_pause();
    }
    return true;
}

uint32_t smp_start(uint32_t apic_id, uint64_t limit_ns)
{
    uint32_t count = cpus_ready + 1;

    memcpy((void *)TRAMPOLINE, trampoline, (size_t)(trampoline_end - trampoline));
    lapic_send(apic_id, ICR_INIT | ICR_ASSERT);
    delay_ns(10 * MILLISECOND / 1000);
    lapic_send(apic_id, ICR_STARTUP | ICR_ASSERT | STARTUP_VECTOR);
    /* The second STARTUP is for a processor that missed the first. */
    if (!wait_ready(count, limit_ns / 2)) {
        lapic_send(apic_id, ICR_STARTUP | ICR_ASSERT | STARTUP_VECTOR);
        if (!wait_ready(count, limit_ns / 2))
            return 0;
    }
    return cpus_started - 1;
}

uint32_t smp_count(void)
{
    return cpus_ready;
}

void smp_run(uint32_t index, void (*work)(void *argument), void *argument)
{
    struct cpu *cpu = cpu_at(index);

    cpu->argument = argument;
    compiler_barrier();
    cpu->work = work;
    lapic_send(cpu->apic_id, ICR_ASSERT | SMP_WAKE_VECTOR);
}

bool smp_wait(uint32_t index, uint64_t limit_ns)
{
    struct deadline deadline = deadline_in(limit_ns);

    while (cpu_at(index)->work != NULL) {
        if (deadline_over(&deadline))
            return false;
        cpu_pause();
    }
    return true;
}

void smp_enter(struct cpu *cpu)
{
    lapic_init();
    cpu->apic_id = lapic_id();
    irq_enable();
    __atomic_fetch_add(&cpus_ready, 1, __ATOMIC_SEQ_CST);
    for (;;) {
        irq_halt((const volatile uint64_t *)(uintptr_t)&cpu->work);
        if (cpu->work == NULL)
            continue;
        cpu->work(cpu->argument);
        compiler_barrier();
        cpu->work = NULL;
    }
}
