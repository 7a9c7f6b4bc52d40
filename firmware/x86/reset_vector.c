/*
 * What stands where a PC's firmware begins: code that resets the machine.
 *
 * No firmware runs here, but guests may jump to where it would begin, in real mode, to reboot. Linux
 * does on a machine of reduced hardware that was not started by EFI: it prefers EFI's reset to
 * ACPI's there, and falls back to the PC's (arch/x86/kernel/reboot.c: BOOT_EFI, then BOOT_BIOS). So
 * there is code that writes the ACPI reset register. Reentrant; no locks.
 *
 * Texts: Intel SDM Vol. 3 §9.1.4 (first instruction), ACPI 6.4 §4.8.3.6 (reset register).
 */
#include "firmware/x86/reset_vector.h"

#include <stdint.h>

#include "vmm/x86/platform.h"

int reset_vector_write(struct guest_memory *mem)
{
    static const uint8_t code[] = {
        0xBA, PLATFORM_RESET_PORT & 0xFF, PLATFORM_RESET_PORT >> 8, /* mov $port, %dx */
        0xB0, PLATFORM_RESET_VALUE,                                 /* mov $value, %al */
        0xEE,                                                       /* out %al, (%dx) */
        0xF4,                                                       /* 1: hlt */
        0xEB, 0xFD,                                                 /* jmp 1b */
    };

    _Static_assert(sizeof(code) <= PLATFORM_TABLES_END - PLATFORM_RESET_VECTOR, "room for it");
    return memory_write(mem, PLATFORM_RESET_VECTOR, code, sizeof(code));
}
