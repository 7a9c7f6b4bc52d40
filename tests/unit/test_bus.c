/* The bus: which region answers an access, and what answers when none does. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/bus.h"

struct chip {
    struct bus *bus;
    struct bus_region region;
    struct bus_region other; /* for a handler that changes the bus */
    uint64_t offset, value;
    unsigned size, reads, writes;
};

static uint64_t chip_read(void *opaque, uint64_t offset, unsigned size)
{
    struct chip *chip = opaque;

    chip->reads++;
    chip->offset = offset;
    chip->size = size;
    return 0x8877665544332211ull;
}

static void chip_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct chip *chip = opaque;

    chip->writes++;
    chip->offset = offset;
    chip->size = size;
    chip->value = value;
}

static const struct bus_ops chip_ops = {.read = chip_read, .write = chip_write};

static struct bus *bus;

static void make_bus(void)
{
    cr_assert_eq(bus_create(&bus, "test"), 0);
}

static void drop_bus(void)
{
    bus_destroy(bus);
}

TestSuite(bus, .init = make_bus, .fini = drop_bus);

static struct bus_region region_at(struct chip *chip, uint64_t base, uint64_t size)
{
    return (struct bus_region){
        .name = "chip", .base = base, .size = size, .ops = &chip_ops, .opaque = chip};
}

static int add(struct chip *chip, uint64_t base, uint64_t size)
{
    chip->region = region_at(chip, base, size);
    return bus_add(bus, &chip->region);
}

Test(bus, read_of_nothing_gives_all_ones_of_the_size)
{
    cr_assert_eq(bus_read(bus, 0x1000, 1), 0xFF);
    cr_assert_eq(bus_read(bus, 0x1000, 2), 0xFFFF);
    cr_assert_eq(bus_read(bus, 0x1000, 4), 0xFFFFFFFF);
    cr_assert_eq(bus_read(bus, 0x1000, 8), UINT64_MAX);
}

Test(bus, a_region_gets_offset_size_and_the_values_low_bits)
{
    struct chip chip = {0};

    cr_assert_eq(add(&chip, 0x1000, 0x10), 0);
    bus_write(bus, 0x100E, 2, 0xABCD1234);
    cr_assert_eq(chip.writes, 1);
    cr_assert_eq(chip.offset, 0xE);
    cr_assert_eq(chip.size, 2);
    cr_assert_eq(chip.value, 0x1234);
    cr_assert_eq(bus_read(bus, 0x1003, 1), 0x11);
    cr_assert_eq(chip.offset, 3);
    cr_assert_eq(bus_read(bus, 0x1008, 8), 0x8877665544332211ull);
}

Test(bus, an_access_across_a_regions_end_finds_nothing)
{
    struct chip chip = {0};

    cr_assert_eq(add(&chip, 0x1000, 0x10), 0);
    cr_assert_eq(bus_read(bus, 0x100D, 4), 0xFFFFFFFF);
    cr_assert_eq(bus_read(bus, 0xFFF, 2), 0xFFFF);
    cr_assert_eq(bus_read(bus, 0x1010, 1), 0xFF);
    bus_write(bus, 0x100F, 2, 0);
    cr_assert_eq(chip.reads + chip.writes, 0);
}

Test(bus, an_access_larger_than_the_region_finds_nothing)
{
    struct chip chip = {0};

    cr_assert_eq(add(&chip, 0x1000, 2), 0);
    cr_assert_eq(bus_read(bus, 0x1000, 8), UINT64_MAX);
    cr_assert_eq(chip.reads, 0);
}

Test(bus, an_access_of_odd_size_finds_nothing)
{
    struct chip chip = {0};

    cr_assert_eq(add(&chip, 0x1000, 0x100), 0);
    cr_assert_eq(bus_read(bus, 0x1000, 3), 0xFFFFFF);
    bus_write(bus, 0x1000, 0, 1);
    bus_write(bus, 0x1000, 16, 1);
    cr_assert_eq(chip.reads + chip.writes, 0);
}

Test(bus, overlapping_regions_are_refused)
{
    static const struct {
        uint64_t base, size;
    } overlaps[] = {
        {0x1000, 0x100}, {0x0FFF, 2}, {0x10FF, 1}, {0x1080, 8}, {0x0800, 0x1000}, {0x1000, 1},
    };
    struct chip first = {0}, second = {0};

    cr_assert_eq(add(&first, 0x1000, 0x100), 0);
    for (size_t i = 0; i < sizeof(overlaps) / sizeof(overlaps[0]); i++)
        cr_assert_eq(add(&second, overlaps[i].base, overlaps[i].size), -EEXIST, "case %zu", i);
}

Test(bus, neighbours_do_not_overlap)
{
    struct chip chips[3] = {0};

    cr_assert_eq(add(&chips[1], 0x1000, 0x100), 0);
    cr_assert_eq(add(&chips[0], 0x0F00, 0x100), 0);
    cr_assert_eq(add(&chips[2], 0x1100, 0x100), 0);
    bus_write(bus, 0x0FFF, 1, 0);
    bus_write(bus, 0x1000, 1, 0);
    bus_write(bus, 0x1100, 1, 0);
    for (int i = 0; i < 3; i++)
        cr_assert_eq(chips[i].writes, 1, "chip %d", i);
}

Test(bus, an_empty_or_wrapping_region_is_refused)
{
    struct chip chip = {0};

    cr_assert_eq(add(&chip, 0x1000, 0), -EINVAL);
    cr_assert_eq(add(&chip, 0, 0), -EINVAL);
    cr_assert_eq(add(&chip, UINT64_MAX, 2), -EINVAL);
    cr_assert_eq(add(&chip, 2, UINT64_MAX), -EINVAL);
}

Test(bus, a_region_may_end_with_the_address_space)
{
    struct chip chip = {0};

    cr_assert_eq(add(&chip, UINT64_MAX - 7, 8), 0);
    cr_assert_eq(bus_read(bus, UINT64_MAX, 1), 0x11);
    cr_assert_eq(chip.offset, 7);
    cr_assert_eq(bus_read(bus, UINT64_MAX, 2), 0xFFFF);
}

Test(bus, a_removed_region_no_longer_answers)
{
    struct chip chip = {0};

    cr_assert_eq(add(&chip, 0x1000, 4), 0);
    bus_remove(bus, &chip.region);
    cr_assert_eq(bus_read(bus, 0x1000, 4), 0xFFFFFFFF);
    cr_assert_eq(add(&chip, 0x1000, 4), 0, "its place is free again");
}

Test(bus, removing_a_region_that_is_not_there_changes_nothing)
{
    struct chip chip = {0}, absent = {0};

    cr_assert_eq(add(&chip, 0x1000, 4), 0);
    absent.region = region_at(&absent, 0x1000, 4);
    bus_remove(bus, &absent.region);
    bus_write(bus, 0x1000, 4, 0);
    cr_assert_eq(chip.writes, 1);
}

Test(bus, many_regions_added_in_any_order_are_all_found)
{
    enum { COUNT = 100 };
    struct chip *chips = calloc(COUNT, sizeof(*chips));

    /* 37 has no factor in common with 100, so each is visited once. */
    for (unsigned i = 0; i < COUNT; i++) {
        unsigned k = i * 37 % COUNT;

        cr_assert_eq(add(&chips[k], 0x10000ull * k, 0x100 + k), 0);
    }
    for (unsigned k = 0; k < COUNT; k++) {
        bus_write(bus, 0x10000ull * k + 0xFF + k, 1, 0);
        cr_assert_eq(chips[k].writes, 1, "region %u", k);
        cr_assert_eq(bus_read(bus, 0x10000ull * k + 0x100 + k, 1), 0xFF);
    }
    for (unsigned k = 0; k < COUNT; k += 2)
        bus_remove(bus, &chips[k].region);
    for (unsigned k = 0; k < COUNT; k++) {
        bus_write(bus, 0x10000ull * k, 1, 0);
        cr_assert_eq(chips[k].writes, 1 + k % 2, "region %u", k);
    }
    free(chips);
}

static void move_away(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct chip *chip = opaque;

    (void)offset;
    (void)size;
    chip->writes++;
    bus_remove(chip->bus, &chip->region);
    chip->region.base = value;
    cr_assert_eq(bus_add(chip->bus, &chip->region), 0);
    cr_assert_eq(bus_add(chip->bus, &chip->other), 0);
}

Test(bus, a_handler_may_move_its_own_region_and_add_others)
{
    static const struct bus_ops ops = {.read = chip_read, .write = move_away};
    struct chip chip = {.bus = bus};

    chip.region = (struct bus_region){
        .name = "moving", .base = 0x1000, .size = 16, .ops = &ops, .opaque = &chip};
    chip.other = region_at(&chip, 0x800, 16);
    cr_assert_eq(bus_add(bus, &chip.region), 0);
    bus_write(bus, 0x1000, 4, 0x4000);
    cr_assert_eq(bus_read(bus, 0x1000, 4), 0xFFFFFFFF);
    cr_assert_eq(bus_read(bus, 0x4000, 4), 0x44332211);
    cr_assert_eq(bus_read(bus, 0x800, 4), 0x44332211);
}
