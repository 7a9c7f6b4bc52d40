/*
 * What a payload found out, in lines that the runner reads, and the ways to end a machine.
 *
 * Thread: the processor that runs main(), or one that hit a fault nobody expected.
 * Text: ACPI 6.5, 4.8.3.7 (sleep control and status registers), 4.8.3.6 (reset register).
 */
#include "verdict.h"

#include <stddef.h>

#include "boot.h"
#include "cpu.h"
#include "io.h"
#include "print.h"

#define SLEEP_CONTROL  0x600
#define SLEEP_TYPE_S5  5
#define SLEEP_ENABLE   0x20
#define RESET_REGISTER 0x602
#define RESET_VALUE    1

static unsigned passed_count;
static unsigned failed_count;
static unsigned skipped_count;

static void line(const char *word, const char *name, const char *format, va_list list)
{
    print("%s %s: ", word, name);
    print_list(format, list);
    print("\n");
}

void ok(const char *name)
{
    passed_count++;
    print("ok %s\n", name);
}

void not_ok(const char *name, const char *format, ...)
{
    va_list list;

    failed_count++;
    va_start(list, format);
    line("not ok", name, format, list);
    va_end(list);
}

void skipped(const char *name, const char *format, ...)
{
    va_list list;

    skipped_count++;
    va_start(list, format);
    line("skipped", name, format, list);
    va_end(list);
}

bool check(bool condition, const char *name, const char *format, ...)
{
    va_list list;

    if (condition) {
        ok(name);
        return true;
    }
    failed_count++;
    va_start(list, format);
    line("not ok", name, format, list);
    va_end(list);
    return false;
}

void cost(const char *name, uint64_t nanoseconds)
{
    print("cost %s %lu\n", name, nanoseconds);
}

void verdict(void)
{
    print("verdict: %u passed, %u failed, %u skipped\n", passed_count, failed_count,
          skipped_count);
    power_off();
}

void power_off(void)
{
    uint64_t port = arg_number("exit-port", 0);

    if (port != 0)
        out32((uint16_t)port, 0); /* another VMM's way out, named on the command line */
    out8(SLEEP_CONTROL, SLEEP_ENABLE | SLEEP_TYPE_S5 << 2);
    for (;;)
        out8(RESET_REGISTER, RESET_VALUE);
}

static uint64_t triple_fault_cpl0(void *argument, uint64_t *return_frame)
{
    static const struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) empty;

    (void)argument;
    (void)return_frame;
    __asm__ volatile("lidt %0\n\tmovq %%rax, (%1)"
                     : : "m"(empty), "r"(0xFFFF800000000000ull) : "memory");
    return 0;
}

void triple_fault(void)
{
    for (;;)
        cpl0_call(triple_fault_cpl0, NULL);
}
