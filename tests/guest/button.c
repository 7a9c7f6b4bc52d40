/*
 * button: waits for the ACPI power button and powers off when it is pressed.
 *
 * The button is the Generic Event Device's interrupt, an edge on the I/O APIC input that the DSDT
 * names; this payload reads no AML and knows the platform's number (gsi=N: another). Halts
 * meanwhile, so it costs no processor. `presses=N` waits for the Nth.
 * Text: ACPI 6.5, 5.6.9 (GED), 4.8.2.2.1 (power button).
 */
#include <stddef.h>

#include "apic.h"
#include "boot.h"
#include "cpu.h"
#include "print.h"
#include "verdict.h"

#define BUTTON_GSI    5
#define BUTTON_VECTOR 0x65

static volatile uint64_t pressed; /* not yet told of; taken back to 0 by main() */

/* At CPL 0. */
static void press(uint32_t vector)
{
    (void)vector;
    pressed++;
}

int main(const struct boot_info *info)
{
    uint64_t presses = arg_number("presses", 1);

    (void)info;
    irq_set_handler(BUTTON_VECTOR, press);
    ioapic_route((uint32_t)arg_number("gsi", BUTTON_GSI), BUTTON_VECTOR, cpu_this()->apic_id, 0);
    print("waiting for the power button\n");
    for (uint64_t seen = 0; seen < presses; seen++) {
        while (pressed == 0)
            irq_halt(&pressed);
        __atomic_fetch_sub(&pressed, 1, __ATOMIC_RELAXED);
        print("pressed\n");
    }
    ok("button");
    return 0;
}
