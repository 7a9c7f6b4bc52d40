/*
 * hello: says so at the first instruction it can, then powers off.
 *
 * The line comes from start.S, in 32-bit mode right at the PVH entry: the time from the VMM's exec
 * to it is the time to first output. What follows shows that the way to C works too.
 * `status=panic` writes the panic port instead of powering off, `status=reset` the reset register,
 * `status=i8042` asks the keyboard controller for a reset, `status=triple` faults three times, and
 * `status=spin` runs on until somebody ends the machine.
 */
#include "boot.h"
#include "cpu.h"
#include "io.h"
#include "memory.h"
#include "print.h"
#include "verdict.h"

#define PANIC_PORT     0x505
#define PANIC_PANICKED 0x01
#define RESET_REGISTER 0x602
#define I8042_COMMAND  0x64
#define I8042_RESET    0xFE

/* start.S finds it by this name. */
extern const char early_text[];
const char early_text[] = "hello from the guest\n";

static void end_as_asked(const char *status)
{
    if (text_equal(status, "panic"))
        out8(PANIC_PORT, PANIC_PANICKED);
    else if (text_equal(status, "reset"))
        out8(RESET_REGISTER, 1);
    else if (text_equal(status, "i8042"))
        out8(I8042_COMMAND, I8042_RESET);
    else if (text_equal(status, "triple"))
        triple_fault();
    for (;;)
        cpu_pause();
}

int main(const struct boot_info *info)
{
    char status[16];

    if (info->cmdline[0] != '\0')
        print("cmdline: %s\n", info->cmdline);
    if (arg_text("status", status, sizeof(status)))
        end_as_asked(status);
    check(info->version >= 1, "start-info", "version %u has no memory map", info->version);
    return 0;
}
