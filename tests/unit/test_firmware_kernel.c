/* Files that are no kernel, and what all formats share: initrd, command line, memory map, GDT. */
#include <criterion/criterion.h>
#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "firmware/kernel.h"
#include "kernel_images.h"

static struct image image;
static const struct boot_config plain = {.cmdline = "console=ttyS0"};

static void open_path(const char *kernel, const char *initrd, int expected, const char *message)
{
    struct boot_config config = {.kernel_path = kernel, .initrd_path = initrd};
    struct kernel_image *opened;

    image_capture_log();
    cr_assert_eq(kernel_open(&opened, &config), expected, "\"%s\"", image_last_error());
    cr_assert_str_eq(image_last_error(), message);
}

static void set_bytes(const void *bytes, size_t length)
{
    memcpy(image.bytes, bytes, length);
    image.length = length;
}

static struct kernel_image *open_elf(const char *initrd_path)
{
    struct elf_spec spec = elf_spec();
    struct boot_config config = {.cmdline = "quiet", .initrd_path = initrd_path};

    image_elf(&image, &spec);
    return image_open(&image, &config, 0, "");
}

Test(kernel, that_is_missing_is_named)
{
    open_path("/nowhere/vmlinuz", NULL, -ENOENT,
              "kernel /nowhere/vmlinuz: cannot open: No such file or directory");
}

Test(kernel, that_is_a_folder_is_refused)
{
    open_path("/", NULL, -EINVAL, "kernel /: not a regular file");
}

Test(kernel, that_is_a_fifo_is_refused_and_not_waited_for)
{
    char path[] = "/tmp/ferry-test-XXXXXX", fifo[64], message[128];

    cr_assert(mkdtemp(path));
    snprintf(fifo, sizeof(fifo), "%s/fifo", path);
    snprintf(message, sizeof(message), "kernel %s: not a regular file", fifo);
    cr_assert_eq(mkfifo(fifo, 0600), 0);
    open_path(fifo, NULL, -EINVAL, message);
    unlink(fifo);
    rmdir(path);
}

Test(kernel, that_is_empty_is_refused)
{
    image.length = 0;
    image_open(&image, &plain, -ENODATA, "kernel %s: the file is empty");
}

Test(kernel, that_is_text_is_called_text)
{
    set_bytes("#!/bin/sh\necho not a kernel\n", 28);
    image_open(&image, &plain, -ENOEXEC, "kernel %s: not a kernel but a text file");
}

Test(kernel, of_random_bytes_is_refused)
{
    set_bytes("\x01\x02\x03\x04\x05", 5);
    image_open(&image, &plain, -ENOEXEC,
               "kernel %s: not a kernel: neither bzImage nor ELF nor Multiboot");
}

Test(kernel, that_is_compressed_as_a_whole_is_named)
{
    set_bytes("\x1F\x8B\x08\x00\x00\x00\x00\x00\x00\x03", 10);
    image_open(&image, &plain, -ENOEXEC,
               "kernel %s: not a kernel but a file compressed with gzip; decompress it first");
}

Test(kernel, for_arm64_is_named)
{
    memset(&image, 0, sizeof(image));
    memcpy(image.bytes, "MZ", 2);
    memcpy(image.bytes + 56, "ARM\x64", 4);
    image.length = 4096;
    image_open(&image, &plain, -ENOEXEC,
               "kernel %s: a kernel for arm64, and this machine is x86-64");
}

Test(initrd, that_is_missing_is_named)
{
    struct image_file file;

    image_file_create(&file, "x", 1);
    open_path(file.path, "/nowhere/initrd", -ENOENT,
              "initrd /nowhere/initrd: cannot open: No such file or directory");
}

Test(initrd, that_is_empty_is_refused)
{
    struct image_file kernel, initrd;
    char message[128];

    image_file_create(&kernel, "x", 1);
    image_file_create(&initrd, "", 0);
    snprintf(message, sizeof(message), "initrd %s: the file is empty", initrd.path);
    open_path(kernel.path, initrd.path, -ENODATA, message);
}

Test(initrd, larger_than_memory_is_refused)
{
    struct guest_memory *mem = image_memory(32 * MIB);
    struct image_file initrd;
    struct kernel_image *kernel;
    struct boot_entry entry;
    char message[256];

    image_file_create(&initrd, "x", 1);
    cr_assert_eq(ftruncate(initrd.fd, 31 * (off_t)MIB), 0);
    kernel = open_elf(initrd.path);
    cr_assert_eq(kernel_load(kernel, mem, NULL, &entry), -ENOMEM);
    snprintf(message, sizeof(message), "initrd %s: its 31 MiB do not fit beside the kernel in the "
             "guest's 32 MiB of memory; try a larger --memory", initrd.path);
    cr_assert_str_eq(image_last_error(), message);
}

Test(initrd, that_shrank_since_is_told)
{
    struct guest_memory *mem = image_memory(32 * MIB);
    struct image_file initrd;
    struct kernel_image *kernel;
    struct boot_entry entry;
    char message[256];

    image_file_create(&initrd, "0123456789", 10);
    kernel = open_elf(initrd.path);
    cr_assert_eq(ftruncate(initrd.fd, 4), 0);
    cr_assert_eq(kernel_load(kernel, mem, NULL, &entry), -ENODATA);
    snprintf(message, sizeof(message), "initrd %s: truncated: it ends at byte 4, and 6 more are "
             "expected", initrd.path);
    cr_assert_str_eq(image_last_error(), message);
}

/* Of a plain ELF: boot_params at entry.info. */
static gpa_t initrd_at(struct guest_memory *mem, const struct boot_entry *entry)
{
    return image_u32(mem, entry->info + 0x218) |
           (uint64_t)image_u32(mem, entry->info + 0x0C0) << 32;
}

Test(initrd, goes_to_the_top_of_memory_on_a_page)
{
    struct guest_memory *mem = image_memory(32 * MIB);
    struct image_file initrd;
    struct boot_entry entry;
    char back[5001] = {0}, bytes[5000];

    memset(bytes, 'i', sizeof(bytes));
    image_file_create(&initrd, bytes, sizeof(bytes));
    cr_assert_eq(kernel_load(open_elf(initrd.path), mem, NULL, &entry), 0);
    cr_assert_eq(initrd_at(mem, &entry), 32 * MIB - 8192);
    cr_assert_eq(image_u32(mem, entry.info + 0x21C), sizeof(bytes));
    image_get(mem, 32 * MIB - 8192, back, sizeof(bytes));
    cr_assert_arr_eq(back, bytes, sizeof(bytes));
}

Test(initrd, keeps_off_the_firmwares_tables)
{
    struct guest_memory *mem = image_memory(32 * MIB);
    struct firmware_tables tables = {0xE0000, 32 * MIB - 0x10000, 0x10000};
    struct image_file initrd;
    struct boot_entry entry;

    image_file_create(&initrd, "initrd", 6);
    cr_assert_eq(kernel_load(open_elf(initrd.path), mem, &tables, &entry), 0);
    cr_assert_eq(initrd_at(mem, &entry), 32 * MIB - 0x11000);
}

Test(initrd, goes_below_a_kernel_that_is_at_the_top)
{
    struct guest_memory *mem = image_memory(32 * MIB);
    struct elf_spec spec = elf_spec();
    struct image_file initrd;
    struct boot_config config = {.cmdline = ""};
    struct boot_entry entry;

    image_file_create(&initrd, "initrd", 6);
    config.initrd_path = initrd.path;
    spec.segments[0].paddr = spec.segments[0].vaddr = 32 * MIB - 500;
    spec.entry = 32 * MIB - 400;
    image_elf(&image, &spec);
    cr_assert_eq(kernel_load(image_open(&image, &config, 0, ""), mem, NULL, &entry), 0);
    cr_assert_eq(initrd_at(mem, &entry), 32 * MIB - 8192);
}

Test(cmdline, is_copied_with_its_end)
{
    struct guest_memory *mem = image_memory(32 * MIB);
    struct boot_entry entry;
    char back[6] = "xxxxx";

    cr_assert_eq(memory_fill(mem, 0x10000, 0xFF, 256), 0);
    cr_assert_eq(kernel_load(open_elf(NULL), mem, NULL, &entry), 0);
    image_get(mem, image_u32(mem, entry.info + 0x228), back, 6);
    cr_assert_str_eq(back, "quiet");
}

/* The line that a Linux gets, whose own is this, and the options for it "a b=1 c.d=2 e". */
static void expect_joined(const char *own, const char *expected)
{
    struct elf_spec spec = elf_spec();
    struct boot_config config = {.cmdline = own, .linux_options = "a b=1 c.d=2 e"};
    struct guest_memory *mem = image_memory(32 * MIB);
    struct boot_entry entry;
    char back[64];

    image_elf(&image, &spec);
    memcpy(image.bytes + image.length, "Linux version 6", 15);
    image.length += 15;
    cr_assert_eq(kernel_load(image_open(&image, &config, 0, ""), mem, NULL, &entry), 0);
    image_get(mem, image_u32(mem, entry.info + 0x228), back, sizeof(back));
    cr_assert_str_eq(back, expected);
}

Test(cmdline, of_a_linux_comes_after_the_options_for_it)
{
    expect_joined("", "a b=1 c.d=2 e");
    expect_joined("x", "a b=1 c.d=2 e x");
}

Test(cmdline, replaces_options_of_the_same_name)
{
    expect_joined("b=2", "a c.d=2 e b=2");
    expect_joined("e  c.d=", "a b=1 e  c.d=");
    expect_joined("a b= c.d=1 e", "a b= c.d=1 e");
    expect_joined("a= b c.d ee bb=1", "a b=1 c.d=2 e a= b c.d ee bb=1");
}

Test(cmdline, longer_than_its_place_is_refused)
{
    struct elf_spec spec = elf_spec();
    char *line = malloc(65537);
    struct boot_config config = {.cmdline = line};

    memset(line, 'x', 65536);
    line[65536] = 0;
    image_elf(&image, &spec);
    image_open(&image, &config, -E2BIG,
               "kernel %s: the command line has 65536 bytes, and 65535 is the most");
    line[65535] = 0;
    image_open(&image, &config, 0, "");
    free(line);
}

struct e820 {
    uint64_t base;
    uint64_t size;
    uint32_t type;
} __attribute__((packed));

static void check_map(struct guest_memory *mem, const struct firmware_tables *tables,
                      const struct e820 *expected, size_t n)
{
    struct boot_entry entry;

    cr_assert_eq(kernel_load(open_elf(NULL), mem, tables, &entry), 0);
    cr_assert_eq(image_u8(mem, entry.info + 0x1E8), n);
    for (size_t i = 0; i < n; i++) {
        struct e820 e;

        image_get(mem, entry.info + 0x2D0 + i * sizeof(e), &e, sizeof(e));
        cr_assert(e.base == expected[i].base && e.size == expected[i].size &&
                  e.type == expected[i].type, "entry %zu: %#llx + %#llx, %u", i,
                  (unsigned long long)e.base, (unsigned long long)e.size, e.type);
    }
    cr_assert_eq(image_u64(mem, entry.info + 0x70), tables->root);
}

Test(memory_map, of_a_small_guest_has_the_tables_reserved_below_1_mib)
{
    static const struct e820 expected[] = {
        {0, 0x9FC00, 1}, {0x9FC00, 0x60400, 2}, {0x100000, 31 * MIB, 1}, {0xE0000000, 0x20000000, 2},
    };
    struct firmware_tables tables = {0xE0000, 0xE0000, 0x3000};

    check_map(image_memory(32 * MIB), &tables, expected, 4);
}

Test(memory_map, of_a_large_guest_goes_on_above_4_gib)
{
    static const struct e820 expected[] = {
        {0, 0x9FC00, 1}, {0x9FC00, 0x60400, 2}, {0x100000, 0xBFF00000 - 0x40000, 1},
        {0xBFFC0000, 0x40000, 3}, {0xE0000000, 0x20000000, 2}, {0x100000000, 2 * GIB, 1},
    };
    struct firmware_tables tables = {0xE0000, 0xBFFC0000, 0x40000};

    check_map(image_memory(5 * GIB), &tables, expected, 6);
}

Test(entry, has_a_gdt_with_the_selectors_of_the_protocols)
{
    struct guest_memory *mem = image_memory(32 * MIB);
    struct boot_entry entry;

    cr_assert_eq(kernel_load(open_elf(NULL), mem, NULL, &entry), 0);
    cr_assert_geq(entry.gdt_limit, BOOT_SELECTOR_TSS + 15);
    cr_assert_eq(image_u64(mem, entry.gdt), 0);
    cr_assert_eq(image_u64(mem, entry.gdt + BOOT_SELECTOR_CS), 0x00AF9B000000FFFF);
    cr_assert_eq(image_u64(mem, entry.gdt + BOOT_SELECTOR_DS), 0x00CF93000000FFFF);
    cr_assert_eq(image_u64(mem, entry.gdt + BOOT_SELECTOR_TSS), 0x00008B0000000067);
}

/* What the tables translate an address to, as the processor would (SDM vol. 3, §4.5). */
static uint64_t translate(struct guest_memory *mem, const struct boot_entry *entry, uint64_t at)
{
    uint64_t table = entry->page_tables;

    for (int shift = 39; shift > 21; shift -= 9) {
        uint64_t e = image_u64(mem, table + (at >> shift & 511) * 8);

        if ((e & 0x83) != 3)
            return UINT64_MAX;
        table = e & 0xFFFFFFFFFF000;
    }
    table = image_u64(mem, table + (at >> 21 & 511) * 8);
    if ((table & 0x83) != 0x83)
        return UINT64_MAX;
    return (table & 0xFFFFFFFE00000) | (at & (2 * MIB - 1));
}

Test(entry, has_page_tables_that_map_4_gib_one_to_one)
{
    static const uint64_t probes[] = {0, 0x1000, 0x200010, 0x3FFFFFFF, 0x40000000, 0xFEC00010,
                                      0xFFFFFFFF};
    struct guest_memory *mem = image_memory(32 * MIB);
    struct boot_entry entry;

    cr_assert_eq(kernel_load(open_elf(NULL), mem, NULL, &entry), 0);
    cr_assert_eq(entry.mode, BOOT_LONG64);
    for (size_t i = 0; i < sizeof(probes) / sizeof(probes[0]); i++)
        cr_assert_eq(translate(mem, &entry, probes[i]), probes[i]);
    cr_assert_eq(translate(mem, &entry, 4 * GIB), UINT64_MAX);
}

Test(entry, has_page_tables_that_reach_a_kernel_above_4_gib)
{
    struct guest_memory *mem = image_memory(5 * GIB);
    struct elf_spec spec = elf_spec();
    struct boot_entry entry;

    spec.entry = spec.segments[0].paddr = spec.segments[0].vaddr = 5 * GIB + 0x1000;
    image_elf(&image, &spec);
    cr_assert_eq(kernel_load(image_open(&image, &plain, 0, ""), mem, NULL, &entry), 0);
    cr_assert_eq(translate(mem, &entry, 5 * GIB + 0x1010), 5 * GIB + 0x1010);
    cr_assert_eq(translate(mem, &entry, 6 * GIB), UINT64_MAX);
}

Test(load, again_after_the_memory_was_overwritten_gives_the_same)
{
    struct guest_memory *mem = image_memory(32 * MIB);
    struct image_file initrd;
    struct kernel_image *kernel;
    struct boot_entry entry, again;
    uint8_t *first = malloc(32 * MIB);

    image_file_create(&initrd, "initrd", 6);
    kernel = open_elf(initrd.path);
    cr_assert_eq(kernel_load(kernel, mem, NULL, &entry), 0);
    image_get(mem, 0, first, 32 * MIB);
    cr_assert_eq(memory_fill(mem, 0, 0xAA, 32 * MIB), 0);
    cr_assert_eq(kernel_load(kernel, mem, NULL, &again), 0);
    cr_assert_eq(memcmp(&entry, &again, sizeof(entry)), 0);
    /* All of the kernel's segment, the zeroes at its end too. */
    cr_assert_arr_eq(memory_at(mem, 0x200000, 500), first + 0x200000, 500);
    cr_assert_arr_eq(memory_at(mem, entry.info, 4096), first + entry.info, 4096);
    cr_assert_arr_eq(memory_at(mem, 32 * MIB - 4096, 6), "initrd", 6);
    free(first);
}

Test(load, marks_what_it_wrote_as_dirty)
{
    struct guest_memory *mem = image_memory(32 * MIB);
    struct elf_spec spec = elf_spec();
    uint64_t bitmap[32 * MIB / 4096 / 64] = {0};
    struct boot_entry entry;

    /* A page of bytes of the file, one that is cleared, one beside. */
    spec.segments[0].file_size = 4096;
    spec.segments[0].mem_size = 8192;
    image_elf(&image, &spec);
    cr_assert_eq(memory_dirty_start(mem), 0);
    cr_assert_eq(kernel_load(image_open(&image, &plain, 0, ""), mem, NULL, &entry), 0);
    memory_dirty_harvest(mem, 0, bitmap);
    cr_assert_eq(bitmap[0x200000 >> 18] & 7, 3);
    cr_assert_eq(bitmap[0] >> (entry.info >> 12) & 1, 1);
    cr_assert_eq(bitmap[0] >> (entry.gdt >> 12) & 1, 1);
}

Test(load, into_less_than_1_mib_is_refused)
{
    struct boot_entry entry;

    cr_assert_eq(kernel_load(open_elf(NULL), image_memory(MIB), NULL, &entry), -ENOMEM);
    cr_assert(strstr(image_last_error(), "the guest has no memory above 1 MiB"));
}
