/* The panic device: what its port says and what each event does. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "devices/pvpanic.h"
#include "tests/unit/fake_env.h"
#include "vmm/util/log.h"

#define PORT 0x505

static struct fake_env fake;
static struct device *panic;
static unsigned lines_logged;

static void count_line(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
    lines_logged++;
}

static void make_panic(void)
{
    fake_env_init(&fake, MIB);
    log_set_sink(count_line);
    cr_assert_eq(pvpanic_create(&panic, &fake.env,
                                &(struct pvpanic_config){.id = "panic", .port = PORT}),
                 0);
}

static void drop_panic(void)
{
    device_destroy(panic);
    fake_env_fini(&fake);
}

TestSuite(pvpanic, .init = make_panic, .fini = drop_panic, .timeout = 60);

Test(pvpanic, a_read_says_which_events_are_understood)
{
    cr_assert_eq(fake_pio_read(&fake, PORT, 1), 0x07);
    cr_assert_eq(fake.n_events, 0);
}

Test(pvpanic, a_panic_ends_the_guest)
{
    fake_pio_write(&fake, PORT, 1, 0x01);
    cr_assert_eq(fake.n_events, 1);
    cr_assert_eq(fake.first_event, MACHINE_PANIC);
}

Test(pvpanic, a_crash_with_a_crash_kernel_loaded_is_told_and_the_guest_goes_on)
{
    fake_pio_write(&fake, PORT, 1, 0x02);
    cr_assert_eq(fake.n_events, 0);
    cr_assert_eq(lines_logged, 1);
}

Test(pvpanic, telling_of_crashes_for_ever_does_not_fill_the_log)
{
    for (int i = 0; i < 1000; i++)
        fake_pio_write(&fake, PORT, 1, 0x02);
    cr_assert_lt(lines_logged, 100);
}

Test(pvpanic, a_shutdown_powers_off)
{
    fake_pio_write(&fake, PORT, 1, 0x04);
    cr_assert_eq(fake.n_events, 1);
    cr_assert_eq(fake.first_event, MACHINE_POWER_OFF);
}

Test(pvpanic, a_panic_counts_more_than_what_is_said_with_it)
{
    fake_pio_write(&fake, PORT, 1, 0xFF);
    cr_assert_eq(fake.n_events, 1);
    cr_assert_eq(fake.first_event, MACHINE_PANIC);
}

Test(pvpanic, events_that_there_are_not_do_nothing)
{
    fake_pio_write(&fake, PORT, 1, 0xF8);
    cr_assert_eq(fake.n_events, 0);
    cr_assert_eq(lines_logged, 0);
}

Test(pvpanic, a_port_that_is_taken_is_refused)
{
    struct device *second = NULL;

    cr_assert_eq(pvpanic_create(&second, &fake.env,
                                &(struct pvpanic_config){.id = "other", .port = PORT}),
                 -EEXIST);
    cr_assert_null(second);
}
