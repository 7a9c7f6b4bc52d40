/* The code where firmware would begin. */
#include <criterion/criterion.h>
#include <string.h>

#include "firmware/x86/acpi.h"
#include "firmware/x86/reset_vector.h"
#include "kernel_images.h"
#include "vmm/x86/platform.h"

#define ROOM 16

Test(firmware_reset_vector, writes_the_reset_value_to_the_reset_register_in_real_mode)
{
    struct guest_memory *mem = image_memory(64 * MIB);
    uint8_t code[ROOM];

    cr_assert_eq(reset_vector_write(mem), 0);
    image_get(mem, 0xFFFF0, code, sizeof(code));
    cr_assert_eq(code[0], 0xBA, "no mov to %%dx");
    cr_assert_eq(code[1] | code[2] << 8, PLATFORM_RESET_PORT);
    cr_assert_eq(code[3], 0xB0, "no mov to %%al");
    cr_assert_eq(code[4], PLATFORM_RESET_VALUE);
    cr_assert_eq(code[5], 0xEE, "no out");
}

/* Whether the tables of some numbers of CPUs were low, and of some high. */
static void build_tables(bool has_processors, bool *low, bool *high)
{
    struct guest_memory *mem = image_memory(64 * MIB);
    uint8_t before[ROOM], after[ROOM];
    struct acpi_config config = {
        .has_processors = has_processors, .has_uart = true, .has_pvpanic = true, .has_pci = true};
    struct firmware_tables tables;

    *low = *high = false;
    cr_assert_eq(reset_vector_write(mem), 0);
    image_get(mem, PLATFORM_RESET_VECTOR, before, ROOM);
    for (config.n_cpus = 1; config.n_cpus <= ACPI_MAX_CPUS; config.n_cpus += 15) {
        cr_assert_eq(acpi_build(mem, &config, &tables), 0);
        *(tables.base == PLATFORM_TABLES_BASE ? low : high) = true;
        image_get(mem, PLATFORM_RESET_VECTOR, after, ROOM);
        cr_assert_arr_eq(before, after, ROOM, "overwritten with %u CPUs", config.n_cpus);
    }
}

Test(firmware_reset_vector, is_left_alone_by_the_tables_of_any_number_of_cpus)
{
    bool low, high;

    build_tables(true, &low, &high);
    cr_assert(low && high, "the tables should have been tried in both places");
}

/* All that there can be are low then, and reach the nearest to it. */
Test(firmware_reset_vector, is_left_alone_by_tables_without_processor_devices)
{
    bool low, high;

    build_tables(false, &low, &high);
    cr_assert(low && !high, "the tables should have been in the low place only");
}
