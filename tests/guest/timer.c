/*
 * timer: the clocks and interrupt sources of the machine: LAPIC timer in its three modes, HLT,
 * kvmclock, and an I/O APIC line, raised by the UART.
 *
 * Asserts order (nothing fires early, clocks do not run backwards, what is masked is silent), not
 * durations. `x2apic` uses the x2APIC.
 * Texts: Intel SDM volume 3, 10.5.4 (timer), 10.5.4.1 (TSC deadline); 82093AA, 3.2.4;
 * PC16550D, 8.6 (IIR), 8.7 (IER); Linux Documentation/virt/kvm/x86/msr.rst.
 */
#include <stddef.h>

#include "apic.h"
#include "boot.h"
#include "cpu.h"
#include "io.h"
#include "print.h"
#include "timing.h"
#include "verdict.h"

#define ONESHOT_VECTOR  0x60
#define PERIODIC_VECTOR 0x61
#define DEADLINE_VECTOR 0x62
#define UART_VECTOR     0x63

#define LIMIT           (5 * SECOND)
#define QUIET           (50 * MILLISECOND)
#define PERIODIC_ROUNDS 20
#define DIVIDE_BY_1     0xB
#define CPUID_1_TSC_DEADLINE (1u << 24)

#define UART_GSI        4
#define UART_IER        (COM1 + 1)
#define UART_IIR        (COM1 + 2)
#define UART_MCR        (COM1 + 4)
#define UART_LSR        (COM1 + 5)
#define IER_THRE        0x02
#define MCR_OUT2        0x08
#define LSR_THRE        0x20

#define MSR_KVM_WALL_CLOCK_NEW 0x4B564D00

static volatile uint64_t fired_at;

/* At CPL 0. */
static void note_time(uint32_t vector)
{
    (void)vector;
    fired_at = rdtsc();
}

static bool wait_count(uint32_t vector, uint32_t count)
{
    struct deadline deadline = deadline_in(LIMIT);

    while (irq_count(vector) < count) {
        if (deadline_over(&deadline))
            return false;
        cpu_pause();
    }
    return true;
}

/* True when no interrupt with this vector comes for a while. */
static bool stays_quiet(uint32_t vector)
{
    uint32_t before = irq_count(vector);

    delay_ns(QUIET);
    return irq_count(vector) == before;
}

static void check_oneshot(void)
{
    lapic_write(LAPIC_TIMER_DIV, DIVIDE_BY_1);
    lapic_write(LAPIC_LVT_TIMER, ONESHOT_VECTOR);
    lapic_write(LAPIC_TIMER_INIT, 1000000);
    uint32_t first = lapic_read(LAPIC_TIMER_NOW);
    check(first <= 1000000, "oneshot-counts-down", "the count is %u", first);
    if (!check(wait_count(ONESHOT_VECTOR, 1), "oneshot", "no interrupt"))
        return;
    check(stays_quiet(ONESHOT_VECTOR) && irq_count(ONESHOT_VECTOR) == 1, "oneshot-once",
          "%u interrupts", irq_count(ONESHOT_VECTOR));
    lapic_write(LAPIC_LVT_TIMER, LVT_MASKED | ONESHOT_VECTOR);
    lapic_write(LAPIC_TIMER_INIT, 100000);
    check(stays_quiet(ONESHOT_VECTOR), "oneshot-masked", "an interrupt came through the mask");
}

static void check_periodic(void)
{
    lapic_write(LAPIC_LVT_TIMER, LVT_PERIODIC | PERIODIC_VECTOR);
    uint64_t begin = now_ns();
    lapic_write(LAPIC_TIMER_INIT, 2000000);
    if (!check(wait_count(PERIODIC_VECTOR, PERIODIC_ROUNDS), "periodic", "%u of %u interrupts",
               irq_count(PERIODIC_VECTOR), PERIODIC_ROUNDS))
        return;
    cost("periodic-2ms-interval", (now_ns() - begin) / PERIODIC_ROUNDS);
    lapic_write(LAPIC_TIMER_INIT, 0);
    delay_ns(QUIET);
    check(stays_quiet(PERIODIC_VECTOR), "periodic-stops", "it runs on with a count of 0");
    lapic_write(LAPIC_LVT_TIMER, LVT_MASKED);
}

static void check_deadline(void)
{
    uint64_t value;

    if ((cpuid(1, 0).ecx & CPUID_1_TSC_DEADLINE) == 0) {
        skipped("deadline", "CPUID does not offer the TSC deadline");
        return;
    }
    irq_set_handler(DEADLINE_VECTOR, note_time);
    lapic_write(LAPIC_LVT_TIMER, LVT_TSC_DEADLINE | DEADLINE_VECTOR);
    store_load_barrier(); /* 10.5.4.1: the mode change comes before the MSR write */
    uint64_t when = rdtsc() + ns_to_cycles(2 * MILLISECOND);
    msr_write(MSR_TSC_DEADLINE, when);
    if (!check(wait_count(DEADLINE_VECTOR, 1), "deadline", "no interrupt"))
        return;
    check(fired_at >= when, "deadline-not-early", "%lu cycles early", when - fired_at);
    if (fired_at >= when)
        cost("deadline-lateness", cycles_to_ns(fired_at - when));
    check(msr_read_safe(MSR_TSC_DEADLINE, &value) && value == 0, "deadline-disarms",
          "the MSR holds %lx after it fired", value);
    msr_write(MSR_TSC_DEADLINE, rdtsc() - 1);
    check(wait_count(DEADLINE_VECTOR, 2), "deadline-past", "one in the past does not fire");
    msr_write(MSR_TSC_DEADLINE, rdtsc() + ns_to_cycles(20 * MILLISECOND));
    msr_write(MSR_TSC_DEADLINE, 0);
    check(stays_quiet(DEADLINE_VECTOR), "deadline-cancelled", "0 does not disarm it");
}

/*
 * HLT at CPL 0 until the timer comes. Interrupts are off until HLT turns them on, so that a timer
 * that is quicker than the way there still ends it.
 */
static void check_halt(void)
{
    uint32_t before = irq_count(ONESHOT_VECTOR);

    irq_disable();
    lapic_write(LAPIC_LVT_TIMER, ONESHOT_VECTOR);
    lapic_write(LAPIC_TIMER_INIT, 5000000);
    uint64_t begin = rdtsc();
    irq_halt(NULL);
    uint64_t end = rdtsc();
    irq_enable();
    check(irq_count(ONESHOT_VECTOR) == before + 1, "halt", "%u interrupts ended it",
          irq_count(ONESHOT_VECTOR) - before);
    cost("halt-5ms", cycles_to_ns(end - begin));
}

static struct kvmclock clock __attribute__((aligned(64)));

static void check_wall_clock(void)
{
    static struct {
        uint32_t version;
        uint32_t seconds;
        uint32_t nanoseconds;
    } wall __attribute__((aligned(4)));

    msr_write(MSR_KVM_WALL_CLOCK_NEW, (uintptr_t)&wall);
    /* A host clock that stands before 2020 is not set. */
    check(wall.seconds > 1577836800 && wall.nanoseconds < SECOND && (wall.version & 1) == 0,
          "kvm-wall-clock", "version %u, %u s, %u ns", wall.version, wall.seconds,
          wall.nanoseconds);
}

static void check_kvmclock(void)
{
    if (!kvm_feature(KVM_FEATURE_CLOCKSOURCE2)) {
        skipped("kvmclock", "the KVM leaves do not offer it");
        return;
    }
    msr_write(MSR_KVM_SYSTEM_TIME_NEW, (uintptr_t)&clock | 1);
    if (!check(clock.tsc_to_system_mul != 0 && (clock.version & 1) == 0, "kvmclock",
               "version %u, multiplier %u", clock.version, clock.tsc_to_system_mul))
        return;
    uint64_t last = kvmclock_read(&clock);
    uint64_t backwards = 0;
    for (unsigned i = 0; i < 100000; i++) {
        uint64_t time = kvmclock_read(&clock);
        backwards += time < last;
        last = time;
    }
    check(backwards == 0, "kvmclock-monotonic", "%lu of 100000 reads went backwards", backwards);
    uint64_t begin_clock = kvmclock_read(&clock);
    uint64_t begin_tsc = rdtsc();
    delay_ns(20 * MILLISECOND);
    uint64_t by_clock = kvmclock_read(&clock) - begin_clock;
    uint64_t by_tsc = cycles_to_ns(rdtsc() - begin_tsc);
    uint64_t apart = by_clock > by_tsc ? by_clock - by_tsc : by_tsc - by_clock;
    check(apart < by_tsc / 20, "kvmclock-rate", "%lu ns by it, %lu ns by the TSC", by_clock,
          by_tsc);
    check_wall_clock();
    msr_write(MSR_KVM_SYSTEM_TIME_NEW, 0);
}

static void check_ioapic(void)
{
    uint32_t inputs = ioapic_inputs();

    check(inputs == 24, "ioapic-inputs", "%u", inputs);
    ioapic_route(UART_GSI, UART_VECTOR, cpu_this()->apic_id, 0);
    out8(UART_MCR, MCR_OUT2);
    while ((in8(UART_LSR) & LSR_THRE) == 0)
        cpu_pause();
    /* An empty transmitter raises the line as soon as its interrupt is enabled. */
    out8(UART_IER, IER_THRE);
    bool came = wait_count(UART_VECTOR, 1);
    uint8_t iir = in8(UART_IIR);
    out8(COM1, '\n');
    bool again = came && wait_count(UART_VECTOR, 2);
    out8(UART_IER, 0);
    in8(UART_IIR);
    check(came, "ioapic-uart", "IRQ 4 does not come");
    check((iir & 0x0F) == 0x02, "uart-iir", "IIR is %02x, want THRE", iir);
    check(again, "ioapic-uart-again", "a byte sent does not raise IRQ 4 again");
    ioapic_route(UART_GSI, UART_VECTOR, cpu_this()->apic_id, IOAPIC_MASKED);
    out8(UART_IER, IER_THRE);
    bool quiet = stays_quiet(UART_VECTOR);
    out8(UART_IER, 0);
    in8(UART_IIR);
    out8(UART_MCR, 0);
    check(quiet, "ioapic-masked", "IRQ 4 came through the mask");
}

int main(const struct boot_info *info)
{
    (void)info;
    if (arg_present("x2apic"))
        check(lapic_is_x2apic(), "x2apic", "CPUID does not offer it");
    irq_enable();
    check_oneshot();
    check_periodic();
    check_halt();
    check_deadline();
    lapic_write(LAPIC_LVT_TIMER, LVT_MASKED);
    check_kvmclock();
    check_ioapic();
    irq_disable();
    return 0;
}
