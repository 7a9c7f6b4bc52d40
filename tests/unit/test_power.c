/* Power off, reset by each of its ways, the power button; on the ports of the x86 machine. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "devices/power.h"
#include "tests/unit/fake_env.h"
#include "vmm/x86/platform.h"

#define FAST_RESET_PORT 0x92

static struct fake_env fake;
static struct device *power;

static const struct power_config config = {
    .id = "power",
    .sleep_control_port = PLATFORM_SLEEP_CONTROL_PORT,
    .sleep_status_port = PLATFORM_SLEEP_STATUS_PORT,
    .s5_type = PLATFORM_SLEEP_TYPE_S5,
    .reset_port = PLATFORM_RESET_PORT,
    .reset_value = PLATFORM_RESET_VALUE,
    .i8042_command_port = PLATFORM_I8042_COMMAND_PORT,
    .fast_reset_port = FAST_RESET_PORT,
    .button_gsi = PLATFORM_GED_GSI,
};

static void make_power(void)
{
    fake_env_init(&fake, MIB);
    cr_assert_eq(power_create(&power, &fake.env, &config), 0);
}

static void drop_power(void)
{
    device_destroy(power);
    fake_env_fini(&fake);
}

TestSuite(power, .init = make_power, .fini = drop_power, .timeout = 60);

static void expect_one(enum machine_event event)
{
    cr_assert_eq(fake.n_events, 1);
    cr_assert_eq(fake.first_event, event);
}

Test(power, sleeping_with_the_type_of_s5_powers_off)
{
    fake_pio_write(&fake, PLATFORM_SLEEP_STATUS_PORT, 1, 0x80); /* as ACPICA does before */
    fake_pio_write(&fake, PLATFORM_SLEEP_CONTROL_PORT, 1, 5 << 2 | 0x20);
    expect_one(MACHINE_POWER_OFF);
}

Test(power, a_type_without_the_enable_bit_does_nothing)
{
    fake_pio_write(&fake, PLATFORM_SLEEP_CONTROL_PORT, 1, 5 << 2);
    cr_assert_eq(fake.n_events, 0);
}

Test(power, other_sleep_types_do_nothing)
{
    for (unsigned type = 0; type < 8; type++)
        if (type != 5)
            fake_pio_write(&fake, PLATFORM_SLEEP_CONTROL_PORT, 1, type << 2 | 0x20);
    cr_assert_eq(fake.n_events, 0);
}

Test(power, sleep_registers_read_as_awake_and_never_woken)
{
    fake_pio_write(&fake, PLATFORM_SLEEP_CONTROL_PORT, 1, 3 << 2);
    cr_assert_eq(fake_pio_read(&fake, PLATFORM_SLEEP_CONTROL_PORT, 1), 0x00);
    cr_assert_eq(fake_pio_read(&fake, PLATFORM_SLEEP_STATUS_PORT, 1), 0x00);
}

Test(power, the_reset_register_resets_by_its_value_alone)
{
    fake_pio_write(&fake, PLATFORM_RESET_PORT, 1, 0x00);
    fake_pio_write(&fake, PLATFORM_RESET_PORT, 1, 0x02);
    cr_assert_eq(fake.n_events, 0);
    fake_pio_write(&fake, PLATFORM_RESET_PORT, 1, PLATFORM_RESET_VALUE);
    expect_one(MACHINE_RESET);
}

Test(power, the_keyboard_controllers_pulse_resets)
{
    fake_pio_write(&fake, PLATFORM_I8042_COMMAND_PORT, 1, 0xFE);
    expect_one(MACHINE_RESET);
}

Test(power, other_keyboard_controller_commands_do_nothing)
{
    for (unsigned command = 0; command < 0xFE; command++)
        fake_pio_write(&fake, PLATFORM_I8042_COMMAND_PORT, 1, command);
    cr_assert_eq(fake.n_events, 0);
}

Test(power, the_keyboard_controllers_status_is_that_of_none)
{
    cr_assert_eq(fake_pio_read(&fake, PLATFORM_I8042_COMMAND_PORT, 1), 0xFF);
}

Test(power, port_92_resets_when_its_bit_rises)
{
    cr_assert_eq(fake_pio_read(&fake, FAST_RESET_PORT, 1), 0x02);
    fake_pio_write(&fake, FAST_RESET_PORT, 1, 0x02);
    cr_assert_eq(fake.n_events, 0);
    fake_pio_write(&fake, FAST_RESET_PORT, 1, 0x03);
    expect_one(MACHINE_RESET);
    fake_pio_write(&fake, FAST_RESET_PORT, 1, 0x03);
    cr_assert_eq(fake.n_events, 1);
    cr_assert_eq(fake_pio_read(&fake, FAST_RESET_PORT, 1), 0x03);
}

Test(power, each_press_of_the_button_is_an_edge)
{
    for (unsigned i = 1; i <= 3; i++) {
        device_lock(&fake.env);
        power_button_press(power);
        device_unlock(&fake.env);
        cr_assert_eq(fake.lines[PLATFORM_GED_GSI].rises, i);
        cr_assert_not(fake.lines[PLATFORM_GED_GSI].level);
    }
    cr_assert_eq(fake.n_events, 0);
}

Test(power, state_comes_back)
{
    struct state_buffer saved = {0};

    fake_pio_write(&fake, FAST_RESET_PORT, 1, 0x01);
    fake_save(&fake, power, &saved);
    device_lock(&fake.env);
    device_reset(power);
    device_unlock(&fake.env);
    cr_assert_eq(fake_pio_read(&fake, FAST_RESET_PORT, 1), 0x02);
    cr_assert_eq(fake_load(&fake, power, &saved), 0);
    cr_assert_eq(fake_pio_read(&fake, FAST_RESET_PORT, 1), 0x03);
    saved.data[saved.length - 1] = 0x10;
    cr_assert_eq(fake_load(&fake, power, &saved), -EINVAL);
    cr_assert_eq(fake_pio_read(&fake, FAST_RESET_PORT, 1), 0x03);
    state_buffer_fini(&saved);
}

Test(power, ports_that_a_machine_lacks_are_left_alone)
{
    struct power_config small = config;

    device_destroy(power);
    small.i8042_command_port = 0;
    small.fast_reset_port = 0;
    cr_assert_eq(power_create(&power, &fake.env, &small), 0);
    fake_pio_write(&fake, PLATFORM_I8042_COMMAND_PORT, 1, 0xFE);
    fake_pio_write(&fake, 0, 1, 0xFE);
    cr_assert_eq(fake.n_events, 0);
    cr_assert_eq(fake_pio_read(&fake, FAST_RESET_PORT, 1), 0xFF);
}

Test(power, a_port_that_is_taken_is_refused_and_the_others_are_given_back)
{
    struct power_config other = config;
    struct device *second = NULL;

    other.sleep_control_port = 0x700;
    other.sleep_status_port = 0x701;
    cr_assert_eq(power_create(&second, &fake.env, &other), -EEXIST);
    cr_assert_null(second);
    cr_assert_eq(fake_pio_read(&fake, 0x700, 1), 0xFF);
}
