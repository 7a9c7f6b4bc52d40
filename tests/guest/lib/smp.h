/*
 * Starting application processors and giving them work.
 */
#ifndef GUEST_SMP_H
#define GUEST_SMP_H

#include <stdbool.h>
#include <stdint.h>

#include "cpu.h"

/* Wakes a processor that waits for work; it has no handler. */
#define SMP_WAKE_VECTOR 0xF0

/*
 * Starts the processor of apic_id by INIT and STARTUP and waits for it. Returns its index, or 0
 * when it has not come within limit_ns.
 */
uint32_t smp_start(uint32_t apic_id, uint64_t limit_ns);

/* Processors that run, the first included. */
uint32_t smp_count(void);

/* Runs work(argument) at CPL 3 on processor index, which must be idle; smp_wait() waits for it. */
void smp_run(uint32_t index, void (*work)(void *argument), void *argument);
bool smp_wait(uint32_t index, uint64_t limit_ns);

/* From cpu_start() on an application processor. */
_Noreturn void smp_enter(struct cpu *cpu);

#endif
