/* ELF64 kernels: by the PVH note, or by the 64-bit boot protocol. */
#include <criterion/criterion.h>
#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "firmware/kernel.h"
#include "kernel_images.h"
#include "vmm/x86/platform.h"

static struct image image;
static struct elf_spec spec;
static struct boot_config config;
static struct boot_entry entry;
static uint8_t *notes;

static void set_up(void)
{
    spec = elf_spec();
    config = (struct boot_config){.cmdline = "console=ttyS0"};
}

TestSuite(elf, .init = set_up);
TestSuite(pvh, .init = set_up);

static void refuse(int expected, const char *message)
{
    image_elf(&image, &spec);
    image_open(&image, &config, expected, message);
}

static struct kernel_image *accept(void)
{
    image_elf(&image, &spec);
    return image_open(&image, &config, 0, "");
}

static void refuse_load(uint64_t size, int expected, const char *text)
{
    cr_assert_eq(kernel_load(accept(), image_memory(size), NULL, &entry), expected, "\"%s\"",
                 image_last_error());
    cr_assert(strstr(image_last_error(), text), "\"%s\"", image_last_error());
}

Test(elf, without_a_note_is_entered_by_the_64_bit_protocol)
{
    struct guest_memory *mem = image_memory(32 * MIB);
    struct kernel_image *kernel = accept();

    cr_assert_eq(kernel_format(kernel), KERNEL_ELF64);
    cr_assert_eq(kernel_load(kernel, mem, NULL, &entry), 0);
    cr_assert_eq(entry.mode, BOOT_LONG64);
    cr_assert_eq(entry.entry, 0x200010);
    cr_assert_neq(entry.page_tables, 0);
    cr_assert_eq(image_u32(mem, entry.info + 0x202), 0x53726448, "boot_params");
}

Test(elf, has_each_segment_loaded_and_the_rest_of_it_cleared)
{
    struct guest_memory *mem = image_memory(32 * MIB);

    spec.n_segments = 2;
    spec.segments[1] = (struct elf_spec_segment){.type = PT_LOAD, .vaddr = 0x300000,
                                                 .paddr = 0x300000, .file_size = 0,
                                                 .mem_size = 0x2000};
    cr_assert_eq(memory_fill(mem, 0x200000, 0xAA, 0x200000), 0);
    cr_assert_eq(kernel_load(accept(), mem, NULL, &entry), 0);
    for (unsigned i = 0; i < 500; i++)
        cr_assert_eq(image_u8(mem, 0x200000 + i), i < 300 ? (uint8_t)i : 0, "byte %u", i);
    cr_assert_eq(image_u8(mem, 0x200000 + 500), 0xAA);
    cr_assert_eq(image_u8(mem, 0x300000), 0);
    cr_assert_eq(image_u8(mem, 0x301FFF), 0);
    cr_assert_eq(image_u8(mem, 0x302000), 0xAA);
}

Test(elf, may_end_with_its_last_byte_where_memory_ends)
{
    struct guest_memory *mem = image_memory(32 * MIB);

    spec.segments[0].mem_size = 300;
    spec.segments[0].paddr = spec.segments[0].vaddr = 32 * MIB - 300;
    spec.entry = 32 * MIB - 300;
    cr_assert_eq(kernel_load(accept(), mem, NULL, &entry), 0, "%s", image_last_error());
    cr_assert_eq(image_u8(mem, 32 * MIB - 1), 299 & 0xFF);
}

Test(elf, has_a_large_cleared_part_cleared)
{
    struct guest_memory *mem = image_memory(32 * MIB);

    spec.segments[0].mem_size = 3 * MIB + 1;
    cr_assert_eq(memory_fill(mem, 0x200000, 0xAA, 4 * MIB), 0);
    cr_assert_eq(kernel_load(accept(), mem, NULL, &entry), 0);
    for (uint64_t i = 300; i < 3 * MIB + 1; i++)
        cr_assert_eq(image_u8(mem, 0x200000 + i), 0, "byte %llu", (unsigned long long)i);
    cr_assert_eq(image_u8(mem, 0x200000 + 3 * MIB + 1), 0xAA);
}

Test(elf, may_give_its_entry_as_a_virtual_address)
{
    struct guest_memory *mem = image_memory(32 * MIB);

    spec.segments[0].vaddr = 0xFFFFFFFF80200000;
    spec.entry = 0xFFFFFFFF80200010;
    cr_assert_eq(kernel_load(accept(), mem, NULL, &entry), 0);
    cr_assert_eq(entry.entry, 0x200010);
}

Test(elf, has_its_entry_taken_as_physical_where_it_is_both)
{
    struct guest_memory *mem = image_memory(32 * MIB);

    /* The first segment's virtual addresses are the second's physical ones. */
    spec.n_segments = 2;
    spec.segments[0].vaddr = 0x400000;
    spec.segments[1] = (struct elf_spec_segment){.type = PT_LOAD, .vaddr = 0, .paddr = 0x400000,
                                                 .file_size = 64, .mem_size = 64};
    spec.entry = 0x400010;
    for (unsigned i = 0; i < 2; i++) {
        struct elf_spec_segment first = spec.segments[0];

        cr_assert_eq(kernel_load(accept(), mem, NULL, &entry), 0);
        cr_assert_eq(entry.entry, 0x400010);
        spec.segments[0] = spec.segments[1];
        spec.segments[1] = first;
    }
}

Test(elf, that_is_position_independent_is_accepted)
{
    spec.type = ET_DYN;
    accept();
}

Test(elf, whose_entry_is_in_no_segment_is_refused)
{
    spec.entry = 0x300000;
    refuse(-ENOEXEC, "kernel %s: its entry 0x300000 is in none of its 1 segments");
}

Test(elf, for_another_machine_is_refused_by_its_name)
{
    spec.machine = EM_AARCH64;
    refuse(-ENOEXEC, "kernel %s: an ELF for arm64 (machine 183), and this machine is x86-64");
    spec.machine = 999;
    refuse(-ENOEXEC,
           "kernel %s: an ELF for another machine (machine 999), and this machine is x86-64");
}

Test(elf, that_is_big_endian_is_refused)
{
    spec.data = ELFDATA2MSB;
    refuse(-ENOEXEC, "kernel %s: a big-endian ELF, and this machine is x86-64");
}

Test(elf, for_32_bit_is_refused)
{
    spec.is_32 = true;
    spec.machine = EM_386;
    refuse(-ENOEXEC, "kernel %s: a 32-bit ELF without a Multiboot header; ELF kernels must be "
                     "64-bit");
}

Test(elf, that_is_an_object_file_is_refused)
{
    spec.type = ET_REL;
    refuse(-ENOEXEC, "kernel %s: an ELF that is not executable (type 1): an object file, or a "
                     "core");
}

Test(elf, that_is_a_program_is_refused)
{
    spec.n_segments = 2;
    spec.segments[1] = (struct elf_spec_segment){.type = PT_INTERP, .file_size = 1, .mem_size = 1};
    refuse(-ENOEXEC, "kernel %s: an ELF that asks for an interpreter: a program, not a kernel");
}

Test(elf, without_segments_is_refused)
{
    spec.n_segments = 0;
    image_elf(&image, &spec);
    image.length = 512;
    image_open(&image, &config, -ENOEXEC, "kernel %s: 0 ELF program headers of 56 bytes; 1 to 128 "
                                          "of at least 56 are expected");
}

Test(elf, of_an_unknown_class_is_refused)
{
    image_elf(&image, &spec);
    image.bytes[EI_CLASS] = 7;
    image_open(&image, &config, -ENOEXEC, "kernel %s: its ELF header is not valid");
}

Test(elf, that_ends_inside_its_headers_is_refused)
{
    image_elf(&image, &spec);
    image.length = 40;
    image_open(&image, &config, -ENODATA,
               "kernel %s: truncated: it has 40 bytes, and 64 are expected at byte 0");
    image.length = 100;
    image_open(&image, &config, -ENODATA,
               "kernel %s: truncated: it has 100 bytes, and 56 are expected at byte 64");
}

Test(elf, whose_program_headers_are_nowhere_is_refused)
{
    uint64_t phoff = UINT64_MAX - 8;

    image_elf(&image, &spec);
    memcpy(image.bytes + 32, &phoff, sizeof(phoff));
    image_open(&image, &config, -ENODATA, "kernel %s: truncated: it has 812 bytes, and 56 are "
                                          "expected at byte 18446744073709551607");
}

Test(elf, that_ends_inside_a_segment_is_refused)
{
    image_elf(&image, &spec);
    image.length -= 100;
    image_open(&image, &config, -ENODATA,
               "kernel %s: truncated: it has 712 bytes, and segment 0 is bytes 512 to 812");
}

Test(elf, with_more_in_the_file_than_in_memory_is_refused)
{
    spec.segments[0].mem_size = 299;
    refuse(-EINVAL, "kernel %s: segment 0 has 0x12c bytes in the file, but 0x12b in memory");
}

Test(elf, with_a_segment_that_wraps_is_refused)
{
    spec.segments[0].paddr = UINT64_MAX - 400;
    refuse(-EINVAL, "kernel %s: segment 0 at 0xfffffffffffffe6f of 0x1f4 bytes wraps");
}

Test(elf, below_1_mib_is_refused)
{
    spec.segments[0].paddr = 0xFF000;
    refuse(-EINVAL, "kernel %s: segment 0 is to be loaded at 0xff000; below 1 MiB there is no room "
                    "for kernels");
}

Test(elf, outside_memory_is_refused_when_loaded)
{
    spec.segments[0].mem_size = 64 * MIB;
    refuse_load(32 * MIB, -ENOMEM, "needs memory up to 66 MiB (0x200000-0x4200000), but the guest "
                                   "has 32 MiB; try a larger --memory");
}

Test(elf, in_the_hole_below_4_gib_is_refused_when_loaded)
{
    spec.segments[0].paddr = spec.segments[0].vaddr = 0xD0000000;
    spec.entry = 0xD0000000;
    refuse_load(5 * GIB, -ENOMEM, "needs memory up to 3329 MiB (0xd0000000-0xd00001f4), which is "
                                  "not memory in a guest of 5120 MiB");
}

Test(elf, on_top_of_the_firmwares_tables_is_refused_when_loaded)
{
    struct firmware_tables tables = {0xE0000, 0x200000, 0x1000};

    cr_assert_eq(kernel_load(accept(), image_memory(32 * MIB), &tables, &entry), -ENOMEM);
    cr_assert(strstr(image_last_error(), "memory at 0x200000-0x2001f4 that it needs has the "
                                         "firmware's tables (0x200000-0x201000)"));
}

/* ---- PVH ---- */

static void add_note(uint64_t at, unsigned size)
{
    spec.n_segments = 2;
    spec.segments[1] = elf_spec_pvh_note(&notes, at, size);
}

Test(pvh, note_is_found_and_its_entry_used)
{
    struct guest_memory *mem = image_memory(32 * MIB);
    struct kernel_image *kernel;

    for (unsigned size = 4; size <= 8; size += 4) {
        add_note(0x200020, size);
        kernel = accept();
        cr_assert_eq(kernel_format(kernel), KERNEL_ELF64_PVH);
        cr_assert_eq(kernel_load(kernel, mem, NULL, &entry), 0);
        cr_assert_eq(entry.mode, BOOT_PVH32);
        cr_assert_eq(entry.entry, 0x200020);
        cr_assert_eq(entry.page_tables, 0);
        cr_assert_eq(image_u64(mem, entry.gdt + BOOT_SELECTOR_CS), 0x00CF9B000000FFFF);
    }
}

Test(pvh, note_comes_before_a_multiboot_header)
{
    struct multiboot_spec multiboot = {.flags = 3};

    add_note(0x200020, 4);
    image_elf(&image, &spec);
    image_multiboot(&image, 256, &multiboot);
    cr_assert_eq(kernel_format(image_open(&image, &config, 0, "")), KERNEL_ELF64_PVH);
}

Test(pvh, entry_in_no_segment_is_refused)
{
    add_note(0x300000, 4);
    refuse(-ENOEXEC, "kernel %s: its entry 0x300000 is in none of its 1 segments");
}

Test(pvh, entry_above_4_gib_is_refused)
{
    spec.segments[0].paddr = 4 * GIB;
    add_note(4 * GIB + 16, 8);
    refuse(-ENOEXEC, "kernel %s: its 32-bit entry 0x100000010 is above 4 GiB");
}

Test(pvh, note_that_is_cut_off_is_none)
{
    add_note(0x200020, 4);
    spec.segments[1].file_size = 63;
    cr_assert_eq(kernel_format(accept()), KERNEL_ELF64);
}

Test(pvh, note_whose_lengths_wrap_is_none)
{
    add_note(0x200020, 4);
    memset(notes, 0xFF, 8); /* the first note's lengths */
    cr_assert_eq(kernel_format(accept()), KERNEL_ELF64);
}

Test(pvh, start_info_tells_all)
{
    struct guest_memory *mem = image_memory(32 * MIB);
    struct firmware_tables tables = {0xE0000, 0xE0000, 0x1000};
    struct image_file initrd;
    char line[14] = {0};
    gpa_t list;

    add_note(0x200020, 4);
    image_file_create(&initrd, "initrd", 6);
    config.initrd_path = initrd.path;
    cr_assert_eq(kernel_load(accept(), mem, &tables, &entry), 0);
    cr_assert_eq(image_u32(mem, entry.info), 0x336EC578);
    cr_assert_eq(image_u32(mem, entry.info + 4), 1, "version");
    cr_assert_eq(image_u32(mem, entry.info + 8), 0, "flags");
    cr_assert_eq(image_u32(mem, entry.info + 12), 1, "modules");
    list = image_u64(mem, entry.info + 16);
    cr_assert_eq(image_u64(mem, list), 32 * MIB - 4096);
    cr_assert_eq(image_u64(mem, list + 8), 6);
    image_get(mem, image_u64(mem, entry.info + 24), line, sizeof(line));
    cr_assert_str_eq(line, "console=ttyS0");
    cr_assert_eq(image_u64(mem, entry.info + 32), 0xE0000, "RSDP");
    list = image_u64(mem, entry.info + 40);
    cr_assert_eq(image_u32(mem, entry.info + 48), 4, "memory map entries");
    cr_assert_eq(image_u64(mem, list + 24), PLATFORM_EBDA_BASE);
    cr_assert_eq(image_u64(mem, list + 24 + 8), MIB - PLATFORM_EBDA_BASE, "the tables in it");
    cr_assert_eq(image_u32(mem, list + 24 + 16), 2);
    cr_assert_eq(image_u64(mem, list + 2 * 24), MIB);
    cr_assert_eq(image_u64(mem, list + 2 * 24 + 8), 31 * MIB);
    cr_assert_eq(image_u32(mem, list + 2 * 24 + 16), 1);
}

Test(pvh, start_info_without_initrd_has_no_modules)
{
    struct guest_memory *mem = image_memory(32 * MIB);

    add_note(0x200020, 4);
    cr_assert_eq(kernel_load(accept(), mem, NULL, &entry), 0);
    cr_assert_eq(image_u32(mem, entry.info + 12), 0);
    cr_assert_eq(image_u64(mem, entry.info + 16), 0);
    cr_assert_eq(image_u64(mem, entry.info + 32), 0, "RSDP");
}
