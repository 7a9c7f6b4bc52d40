/*
 * Privilege levels, traps, interrupts, MSRs and CPUID of one processor.
 *
 * Does not know the interrupt controllers but for the EOI (apic.c). The functions named *_cpl0 run
 * at CPL 0, emulated by some hosts: they hold plain moves, arithmetic and the one instruction they
 * exist for.
 * Thread: any processor; the counters are written by whichever takes the interrupt, with a locked
 * increment. The handler table is set before the interrupt it is for.
 * Texts: Intel SDM volume 3, 6 (interrupts and exceptions); AMD APM volume 2, 8.
 */
#include "cpu.h"

#include <stddef.h>

#include "apic.h"
#include "io.h"
#include "print.h"
#include "verdict.h"

#define RFLAGS_IF     0x200
#define FIRST_IRQ     32
#define GATE_INTERRUPT 0x8E /* present, DPL 0, 64-bit interrupt gate */

extern char trap_stubs[];
extern uint64_t idt[VECTORS][2];
extern struct cpu cpu_areas[MAX_CPUS];

static irq_handler *irq_handlers[VECTORS];
static volatile uint32_t irq_counts[VECTORS];

struct cpu *cpu_at(uint32_t index)
{
    return (struct cpu *)((uintptr_t)cpu_areas + (uintptr_t)index * CPU_AREA_SIZE);
}

void trap_init(void)
{
    for (uint64_t vector = 0; vector < VECTORS; vector++) {
        uint64_t stub = (uintptr_t)trap_stubs + vector * 16;
        idt[vector][0] = (stub & 0xFFFF) | (uint64_t)CODE64_SELECTOR << 16 |
                         (uint64_t)GATE_INTERRUPT << 40 | (stub >> 16 & 0xFFFF) << 48;
        idt[vector][1] = stub >> 32;
    }
}

static void trap_unexpected(const struct trap_frame *frame)
{
    uint64_t cr2;
    __asm__ volatile("movq %%cr2, %0" : "=r"(cr2));
    not_ok("trap", "vector %lu error %lx rip %lx cs %lx rsp %lx cr2 %lx", frame->vector,
           frame->error, frame->rip, frame->cs, frame->rsp, cr2);
    verdict();
}

void trap_dispatch(struct trap_frame *frame)
{
    uint32_t vector = (uint32_t)frame->vector;
    struct cpu *cpu = cpu_this();

    if (vector < FIRST_IRQ && cpu->resume != 0) {
        cpu->faulted = vector + 1;
        frame->rip = cpu->resume;
        cpu->resume = 0;
        return;
    }
    if (vector < FIRST_IRQ)
        trap_unexpected(frame);
    __atomic_fetch_add(&irq_counts[vector], 1, __ATOMIC_RELAXED);
    if (irq_handlers[vector] != NULL)
        irq_handlers[vector](vector);
    lapic_eoi_cpl0();
}

void irq_set_handler(uint32_t vector, irq_handler *handler)
{
    irq_handlers[vector] = handler;
}

uint32_t irq_count(uint32_t vector)
{
    return irq_counts[vector];
}

void irq_count_reset(uint32_t vector)
{
    irq_counts[vector] = 0;
}

static uint64_t irq_enable_cpl0(void *argument, uint64_t *return_frame)
{
    (void)argument;
    return_frame[2] |= RFLAGS_IF;
    return 0;
}

static uint64_t irq_disable_cpl0(void *argument, uint64_t *return_frame)
{
    (void)argument;
    return_frame[2] &= ~(uint64_t)RFLAGS_IF;
    return 0;
}

static uint64_t irq_halt_cpl0(void *argument, uint64_t *return_frame)
{
    const volatile uint64_t *unless = argument;

    (void)return_frame;
    if (unless == NULL || *unless == 0)
        __asm__ volatile("sti; hlt; cli" : : : "memory");
    return 0;
}

void irq_enable(void)
{
    cpl0_call(irq_enable_cpl0, NULL);
}

void irq_disable(void)
{
    cpl0_call(irq_disable_cpl0, NULL);
}

void irq_halt(const volatile uint64_t *unless)
{
    cpl0_call(irq_halt_cpl0, (void *)(uintptr_t)unless);
}

struct msr_access {
    uint64_t value;
    uint32_t msr;
    bool write;
};

/* Returns 0, or the vector + 1 of the fault. */
static uint64_t msr_access_cpl0(void *argument, uint64_t *return_frame)
{
    struct msr_access *access = argument;
    struct cpu *cpu = cpu_this();
    uint32_t low = (uint32_t)access->value;
    uint32_t high = (uint32_t)(access->value >> 32);

    (void)return_frame;
    cpu->faulted = 0;
    if (access->write)
        __asm__ volatile("movq $1f, %c3(%2)\n\twrmsr\n1:"
                         : : "a"(low), "d"(high), "r"(cpu), "i"(offsetof(struct cpu, resume)),
                           "c"(access->msr) : "memory");
    else
        __asm__ volatile("movq $1f, %c3(%2)\n\trdmsr\n1:"
                         : "=&a"(low), "=&d"(high)
                         : "r"(cpu), "i"(offsetof(struct cpu, resume)), "c"(access->msr)
                         : "memory");
    cpu->resume = 0;
    access->value = (uint64_t)high << 32 | low;
    return cpu->faulted;
}

bool msr_read_safe(uint32_t msr, uint64_t *value)
{
    struct msr_access access = { .msr = msr };

    if (cpl0_call(msr_access_cpl0, &access) != 0)
        return false;
    *value = access.value;
    return true;
}

bool msr_write_safe(uint32_t msr, uint64_t value)
{
    struct msr_access access = { .msr = msr, .value = value, .write = true };

    return cpl0_call(msr_access_cpl0, &access) == 0;
}

uint64_t msr_read(uint32_t msr)
{
    uint64_t value = 0;

    if (!msr_read_safe(msr, &value)) {
        not_ok("msr", "RDMSR of %x refused", msr);
        verdict();
    }
    return value;
}

void msr_write(uint32_t msr, uint64_t value)
{
    if (!msr_write_safe(msr, value)) {
        not_ok("msr", "WRMSR of %x with %lx refused", msr, value);
        verdict();
    }
}

struct cpuid_result cpuid_native(uint32_t leaf, uint32_t subleaf)
{
    struct cpuid_result result;

    __asm__ volatile("cpuid"
                     : "=a"(result.eax), "=b"(result.ebx), "=c"(result.ecx), "=d"(result.edx)
                     : "a"(leaf), "c"(subleaf));
    return result;
}

static uint64_t cpuid_cpl0(void *argument, uint64_t *return_frame)
{
    struct cpuid_result *result = argument;

    (void)return_frame;
    *result = cpuid_native(result->eax, result->ecx);
    return 0;
}

struct cpuid_result cpuid(uint32_t leaf, uint32_t subleaf)
{
    struct cpuid_result result = { .eax = leaf, .ecx = subleaf };

    cpl0_call(cpuid_cpl0, &result);
    return result;
}

#define SPEED_LOOPS 2000

static uint64_t speed_loop(void *argument, uint64_t *return_frame)
{
    uint64_t begin = rdtsc();

    (void)argument;
    (void)return_frame;
    for (uint32_t i = 0; i < SPEED_LOOPS; i++)
        compiler_barrier();
    return rdtsc() - begin;
}

bool cpu_kernel_emulated(void)
{
    uint64_t user = speed_loop(NULL, NULL);
    uint64_t again = speed_loop(NULL, NULL);
    uint64_t kernel = cpl0_call(speed_loop, NULL);

    if (again < user)
        user = again;
    return kernel / 100 > user;
}
