/*
 * The spacing of timer interrupts where KVM emulates kernel code: deadlines in, deadlines out. Times
 * are in ticks of a TSC of 1 MHz, so that 1000 of them are a millisecond.
 */
#include <criterion/criterion.h>

#include "vmm/x86/tick.h"

#define MS 1000u

static struct x86_tick tick;

static void set_up(void)
{
    x86_tick_init(&tick, 1000);
}

TestSuite(tick, .init = set_up);

Test(tick, the_first_deadline_is_as_wanted)
{
    cr_expect_eq(x86_tick_space(&tick, 100 * MS + 1, 100 * MS), 100 * MS + 1);
}

Test(tick, a_deadline_after_an_interrupt_leaves_eleven_times_what_that_took)
{
    x86_tick_space(&tick, 104 * MS, 100 * MS);
    cr_expect_eq(x86_tick_space(&tick, 108 * MS, 106 * MS), 128 * MS);
}

Test(tick, a_deadline_that_is_late_enough_is_as_wanted)
{
    x86_tick_space(&tick, 104 * MS, 100 * MS);
    cr_expect_eq(x86_tick_space(&tick, 144 * MS, 106 * MS), 144 * MS);
}

Test(tick, the_rest_has_an_end)
{
    x86_tick_space(&tick, 104 * MS, 100 * MS);
    cr_expect_eq(x86_tick_space(&tick, 505 * MS, 504 * MS), 564 * MS);
}

Test(tick, a_rest_holds_for_whatever_is_wanted_during_it)
{
    x86_tick_space(&tick, 104 * MS, 100 * MS);
    x86_tick_space(&tick, 108 * MS, 106 * MS);
    cr_expect_eq(x86_tick_space(&tick, 107 * MS, 106 * MS + 1), 128 * MS);
    cr_expect_eq(x86_tick_space(&tick, 0, 106 * MS + 2), 0, "no deadline at all is none");
    cr_expect_eq(x86_tick_space(&tick, 107 * MS, 106 * MS + 3), 128 * MS);
}

Test(tick, a_deadline_that_is_moved_before_it_was_due_needs_no_rest)
{
    x86_tick_space(&tick, 200 * MS, 100 * MS);
    cr_expect_eq(x86_tick_space(&tick, 102 * MS, 101 * MS), 102 * MS);
}

Test(tick, a_guest_that_slept_without_a_deadline_is_not_kept_waiting)
{
    x86_tick_space(&tick, 104 * MS, 100 * MS);
    cr_expect_eq(x86_tick_space(&tick, 5001 * MS, 5000 * MS), 5001 * MS);
}

Test(tick, a_guest_that_stopped_its_timer_needs_no_rest)
{
    x86_tick_space(&tick, 104 * MS, 100 * MS);
    x86_tick_space(&tick, 0, 101 * MS);
    cr_expect_eq(x86_tick_space(&tick, 201 * MS, 200 * MS), 201 * MS);
}

Test(tick, a_tsc_that_was_set_back_needs_no_rest)
{
    x86_tick_space(&tick, 104 * MS, 100 * MS);
    cr_expect_eq(x86_tick_space(&tick, 2 * MS, 1 * MS), 2 * MS);
}

Test(tick, without_a_known_frequency_no_deadline_is_moved)
{
    x86_tick_init(&tick, 0);
    x86_tick_space(&tick, 104 * MS, 100 * MS);
    cr_expect_eq(x86_tick_space(&tick, 107 * MS, 106 * MS), 107 * MS);
}
