/* Moving an unpacked Linux kernel to another virtual address by the lists behind its ELF file. */
#include <criterion/criterion.h>
#include <elf.h>
#include <string.h>

#include "firmware/x86/x86_internal.h"

#define LINKED_AT (16 * MIB)
#define SEGMENT_OFFSET 0x200u
#define SEGMENT_SIZE 0x100u
#define FILE_END (SEGMENT_OFFSET + SEGMENT_SIZE + 2 * sizeof(Elf64_Shdr))
#define STEP (2 * MIB)

/* The low half of the address of byte `offset` of the segment, as the lists have it. */
#define PLACE(offset) (0x80000000u + (uint32_t)LINKED_AT + (offset))

static uint8_t file[4096];
static struct kernel_plan plan;
static struct kaslr_kernel kernel;
static uint64_t distance;

static void set_up(void)
{
    Elf64_Ehdr header = {
        .e_shoff = SEGMENT_OFFSET + SEGMENT_SIZE, .e_shnum = 2, .e_shentsize = sizeof(Elf64_Shdr)};

    memset(file, 0, sizeof(file));
    memcpy(file, &header, sizeof(header));
    plan = (struct kernel_plan){.n_segments = 1};
    plan.segments[0] = (struct kernel_segment){
        .at = LINKED_AT,
        .offset = SEGMENT_OFFSET,
        .file_size = SEGMENT_SIZE,
        .mem_size = 2 * SEGMENT_SIZE,
    };
    kernel = (struct kaslr_kernel){
        .bytes = file,
        .size = FILE_END,
        .plan = &plan,
        .base = LINKED_AT,
        .room = 32 * MIB,
        .alignment = STEP,
    };
}

TestSuite(kaslr, .init = set_up);

static void append(const uint32_t *words, unsigned n)
{
    memcpy(file + FILE_END, words, n * sizeof(*words));
    kernel.size = FILE_END + n * sizeof(*words);
}

#define APPEND(...)                                                                                \
    append((const uint32_t[]){__VA_ARGS__},                                                        \
           sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))

static void put(unsigned offset, uint64_t value, size_t size)
{
    memcpy(file + SEGMENT_OFFSET + offset, &value, size);
}

static uint64_t get(unsigned offset, size_t size)
{
    uint64_t value = 0;

    memcpy(&value, file + SEGMENT_OFFSET + offset, size);
    return value;
}

static void refuse(void)
{
    uint8_t before[sizeof(file)];

    memcpy(before, file, sizeof(file));
    cr_assert_not(kaslr_apply(&kernel, 3, &distance));
    cr_assert_arr_eq(file, before, sizeof(file));
}

Test(kaslr, adapts_the_places_of_all_three_lists)
{
    put(0x10, 0xFFFFFFFF81000040, 8);
    put(0x18, 0xFFFFFFFF81000048, 8);
    put(0x20, 0x7F000000, 4);
    put(0x24, 0x81000050, 4);
    put(0x28, 0x81000060, 4);
    APPEND(0, PLACE(0x10), 0, PLACE(0x20), 0, PLACE(0x24));
    cr_assert(kaslr_apply(&kernel, 3, &distance));
    cr_assert_eq(distance, 3 * STEP);
    cr_assert_eq(get(0x10, 8), 0xFFFFFFFF81600040);
    cr_assert_eq(get(0x18, 8), 0xFFFFFFFF81000048, "it is in no list");
    cr_assert_eq(get(0x20, 4), 0x7EA00000);
    cr_assert_eq(get(0x24, 4), 0x81600050);
    cr_assert_eq(get(0x28, 4), 0x81000060, "nor is this");
}

Test(kaslr, knows_kernels_that_have_no_places_to_subtract_from)
{
    put(0x10, 0xFFFFFFFF81000040, 8);
    put(0x24, 0x81000050, 4);
    APPEND(0, PLACE(0x10), 0, PLACE(0x24));
    cr_assert(kaslr_apply(&kernel, 1, &distance));
    cr_assert_eq(get(0x10, 8), 0xFFFFFFFF81200040);
    cr_assert_eq(get(0x24, 4), 0x81200050);
}

Test(kaslr, keeps_the_kernel_inside_its_gigabyte)
{
    uint64_t steps = (1 * GIB - LINKED_AT - kernel.room) / STEP;

    APPEND(0, PLACE(0x10), 0, 0, PLACE(0x20));
    cr_assert(kaslr_apply(&kernel, steps, &distance));
    cr_assert_eq(distance, steps * STEP);
    cr_assert(kaslr_apply(&kernel, steps + 1, &distance));
    cr_assert_eq(distance, 0);
    cr_assert(kaslr_apply(&kernel, UINT64_MAX, &distance));
    cr_assert_leq(LINKED_AT + distance + kernel.room, 1 * GIB);
}

Test(kaslr, leaves_a_kernel_without_lists)
{
    refuse();
}

Test(kaslr, leaves_a_kernel_whose_lists_are_not_whole_words)
{
    APPEND(0, PLACE(0x10), 0, 0, PLACE(0x20));
    kernel.size--;
    refuse();
}

Test(kaslr, leaves_a_kernel_with_too_few_or_too_many_lists)
{
    APPEND(0, PLACE(0x10));
    refuse();
    APPEND(0, PLACE(0x10), 0, 0, 0, PLACE(0x20));
    refuse();
    APPEND(PLACE(0x10), 0, 0, PLACE(0x20));
    refuse();
}

Test(kaslr, touches_nothing_when_one_place_is_outside_the_kernel)
{
    APPEND(0, PLACE(0x10), 0, 0, PLACE(SEGMENT_SIZE - 3));
    refuse();
    APPEND(0, PLACE(SEGMENT_SIZE - 7), 0, 0, PLACE(0x20));
    refuse();
    APPEND(0, PLACE(0x10), 0, 0, 0x80000000u + (uint32_t)LINKED_AT - 1);
    refuse();
    APPEND(0, PLACE(0x10), 0, 0, 0x7FFFFFFF);
    refuse();
    APPEND(0, PLACE(0x10), 0, 0, PLACE(SEGMENT_SIZE - 4));
    cr_assert(kaslr_apply(&kernel, 1, &distance), "the last place that is inside");
}

Test(kaslr, leaves_a_kernel_that_has_no_room_to_move_or_says_so)
{
    APPEND(0, PLACE(0x10), 0, 0, PLACE(0x20));
    kernel.room = 1 * GIB - LINKED_AT - STEP + 1;
    refuse();
    kernel.room = UINT64_MAX;
    refuse();
    kernel.room = 32 * MIB;
    kernel.alignment = 0;
    refuse();
    kernel.alignment = 3 * MIB;
    refuse();
    kernel.alignment = MIB;
    refuse();
}

Test(kaslr, is_bounded_by_a_file_whose_headers_lie)
{
    Elf64_Ehdr header = {.e_shoff = UINT64_MAX, .e_shnum = UINT16_MAX, .e_shentsize = UINT16_MAX};

    APPEND(0, PLACE(0x10), 0, 0, PLACE(0x20));
    memcpy(file, &header, sizeof(header));
    refuse();
    header.e_shoff = 0;
    memcpy(file, &header, sizeof(header));
    refuse();
}

Test(kaslr, is_not_wanted_with_the_word_nokaslr)
{
    cr_assert(kaslr_is_wanted(""));
    cr_assert(kaslr_is_wanted("console=ttyS0 nokaslrs xnokaslr a=nokaslr"));
    cr_assert_not(kaslr_is_wanted("nokaslr"));
    cr_assert_not(kaslr_is_wanted("quiet nokaslr"));
    cr_assert_not(kaslr_is_wanted("xnokaslr nokaslr quiet"));
}
