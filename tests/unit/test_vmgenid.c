/* The VM Generation ID: when it stays the same, and when it becomes another. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "devices/vmgenid.h"
#include "tests/unit/fake_env.h"

#define PLACE 0xDF000
#define GSI 6

static struct fake_env fake;
static struct device *genid;

static struct device *make(void)
{
    struct device *made;

    cr_assert_eq(vmgenid_create(&made, &fake.env,
                                &(struct vmgenid_config){.id = "genid", .place = PLACE, .gsi = GSI}),
                 0);
    return made;
}

static void begin(void)
{
    fake_env_init(&fake, MIB);
    genid = make();
    cr_assert_eq(vmgenid_show(genid), 0);
}

static void end(void)
{
    device_destroy(genid);
    fake_env_fini(&fake);
}

TestSuite(vmgenid, .init = begin, .fini = end, .timeout = 60);

static void look(uint8_t bytes[VMGENID_BYTES])
{
    cr_assert_eq(memory_read(fake.env.mem, PLACE, bytes, VMGENID_BYTES), 0);
}

static void renew(struct device *dev)
{
    device_lock(&fake.env);
    cr_assert_eq(vmgenid_renew(dev), 0);
    device_unlock(&fake.env);
}

Test(vmgenid, of_each_machine_is_its_own)
{
    struct device *other = make();
    uint8_t mine[VMGENID_BYTES], others[VMGENID_BYTES];

    look(mine);
    cr_assert_eq(vmgenid_show(other), 0);
    look(others);
    cr_expect_neq(memcmp(mine, others, VMGENID_BYTES), 0);
    device_destroy(other);
}

Test(vmgenid, renewed_is_another_and_the_guest_is_told_once)
{
    uint8_t before[VMGENID_BYTES], after[VMGENID_BYTES];

    look(before);
    renew(genid);
    look(after);
    cr_expect_neq(memcmp(before, after, VMGENID_BYTES), 0);
    cr_expect_eq(fake.lines[GSI].rises, 1);
    cr_expect_not(fake.lines[GSI].level);
}

Test(vmgenid, stays_the_same_over_a_reset)
{
    uint8_t before[VMGENID_BYTES], after[VMGENID_BYTES];

    look(before);
    device_reset(genid);
    cr_assert_eq(memory_clear(fake.env.mem), 0);
    cr_assert_eq(vmgenid_show(genid), 0);
    look(after);
    cr_expect_eq(memcmp(before, after, VMGENID_BYTES), 0);
    cr_expect_eq(fake.lines[GSI].rises, 0);
}

Test(vmgenid, goes_along_with_the_guest_and_is_loaded_silently)
{
    struct state_buffer buffer = {0};
    struct device *other = make();
    uint8_t before[VMGENID_BYTES], after[VMGENID_BYTES];

    look(before);
    fake_save(&fake, genid, &buffer);
    cr_assert_eq(fake_load(&fake, other, &buffer), 0);
    look(after);
    cr_expect_eq(memcmp(before, after, VMGENID_BYTES), 0, "loading writes no memory");
    cr_assert_eq(vmgenid_show(other), 0);
    look(after);
    cr_expect_eq(memcmp(before, after, VMGENID_BYTES), 0);
    cr_expect_eq(fake.lines[GSI].rises, 0);
    state_buffer_fini(&buffer);
    device_destroy(other);
}

/* An earlier ferry's guest has something else there, until it boots anew. */
Test(vmgenid, keeps_off_a_guest_that_does_not_know_it)
{
    uint8_t bytes[VMGENID_BYTES], zeros[VMGENID_BYTES] = {0};

    cr_assert_eq(memory_clear(fake.env.mem), 0);
    device_absent(genid);
    renew(genid);
    look(bytes);
    cr_expect_eq(memcmp(bytes, zeros, VMGENID_BYTES), 0);
    cr_expect_eq(fake.lines[GSI].rises, 0);
    device_reset(genid);
    renew(genid);
    cr_expect_eq(fake.lines[GSI].rises, 1);
}
