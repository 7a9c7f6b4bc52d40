/* Multiboot 1 kernels: by the header's addresses or the ELF around it. */
#include <criterion/criterion.h>
#include <elf.h>
#include <errno.h>
#include <string.h>

#include "firmware/kernel.h"
#include "kernel_images.h"

static struct image image;
static struct multiboot_spec spec;
static struct boot_config config;
static struct boot_entry entry;

/* A flat file of 600 bytes with its header at 64, loaded whole at 2 MiB. */
static void set_up(void)
{
    spec = (struct multiboot_spec){
        .flags = 0x10003,
        .header_addr = 0x200040,
        .load_addr = 0x200000,
        .load_end_addr = 0x200200,
        .bss_end_addr = 0x200300,
        .entry_addr = 0x200080,
    };
    config = (struct boot_config){.cmdline = "a=b"};
}

TestSuite(multiboot, .init = set_up);

static void make_flat(void)
{
    memset(&image, 0, sizeof(image));
    image.length = 600;
    for (unsigned i = 0; i < image.length; i++)
        image.bytes[i] = (uint8_t)(i * 5 + 1);
    image_multiboot(&image, 64, &spec);
}

static struct kernel_image *accept(void)
{
    make_flat();
    return image_open(&image, &config, 0, "");
}

static void refuse(int expected, const char *message)
{
    make_flat();
    image_open(&image, &config, expected, message);
}

Test(multiboot, kernel_is_loaded_by_the_headers_addresses)
{
    struct guest_memory *mem = image_memory(32 * MIB);
    struct kernel_image *kernel = accept();

    cr_assert_eq(kernel_format(kernel), KERNEL_MULTIBOOT);
    cr_assert_eq(memory_fill(mem, 0x200000, 0xAA, 0x1000), 0);
    cr_assert_eq(kernel_load(kernel, mem, NULL, &entry), 0);
    cr_assert_eq(entry.mode, BOOT_MULTIBOOT32);
    cr_assert_eq(entry.entry, 0x200080);
    cr_assert_arr_eq(memory_at(mem, 0x200000, 512), image.bytes, 512);
    for (unsigned i = 512; i < 768; i++)
        cr_assert_eq(image_u8(mem, 0x200000 + i), 0, "byte %u", i);
    cr_assert_eq(image_u8(mem, 0x200300), 0xAA);
}

Test(multiboot, addresses_may_begin_at_the_header)
{
    struct guest_memory *mem = image_memory(32 * MIB);

    spec.load_addr = spec.header_addr;
    cr_assert_eq(kernel_load(accept(), mem, NULL, &entry), 0);
    cr_assert_arr_eq(memory_at(mem, 0x200040, 448), image.bytes + 64, 448);
}

Test(multiboot, without_an_end_address_is_loaded_to_the_files_end)
{
    struct guest_memory *mem = image_memory(32 * MIB);

    spec.load_end_addr = spec.bss_end_addr = 0;
    cr_assert_eq(memory_fill(mem, 0x200000, 0xAA, 0x1000), 0);
    cr_assert_eq(kernel_load(accept(), mem, NULL, &entry), 0);
    cr_assert_arr_eq(memory_at(mem, 0x200000, 600), image.bytes, 600);
    cr_assert_eq(image_u8(mem, 0x200000 + 600), 0xAA);
}

Test(multiboot, header_is_found_at_the_end_of_the_first_8_kib_and_no_later)
{
    memset(&image, 1, sizeof(image));
    image.length = 16384;
    spec.load_addr = spec.header_addr;
    spec.load_end_addr = spec.bss_end_addr = 0;
    image_multiboot(&image, 8192 - 32, &spec);
    image_open(&image, &config, 0, "");
    memset(image.bytes, 1, 8192);
    image_multiboot(&image, 8192, &spec);
    image_open(&image, &config, -ENOEXEC,
               "kernel %s: not a kernel: neither bzImage nor ELF nor Multiboot");
}

Test(multiboot, header_with_a_wrong_checksum_is_none)
{
    make_flat();
    image.bytes[64 + 8] ^= 1;
    image_open(&image, &config, -ENOEXEC,
               "kernel %s: not a kernel: neither bzImage nor ELF nor Multiboot");
}

Test(multiboot, elf32_is_loaded_by_its_segments)
{
    struct guest_memory *mem = image_memory(32 * MIB);
    struct elf_spec elf = elf_spec();

    elf.is_32 = true;
    elf.machine = EM_386;
    image_elf(&image, &elf);
    spec.flags = 3;
    image_multiboot(&image, 256, &spec);
    cr_assert_eq(kernel_load(image_open(&image, &config, 0, ""), mem, NULL, &entry), 0);
    cr_assert_eq(entry.mode, BOOT_MULTIBOOT32);
    cr_assert_eq(entry.entry, 0x200010);
    cr_assert_eq(image_u8(mem, 0x200000 + 299), 299 & 0xFF);
}

Test(multiboot, elf64_is_entered_in_32_bit_mode_too)
{
    struct guest_memory *mem = image_memory(32 * MIB);
    struct elf_spec elf = elf_spec();

    image_elf(&image, &elf);
    spec.flags = 3;
    image_multiboot(&image, 256, &spec);
    cr_assert_eq(kernel_load(image_open(&image, &config, 0, ""), mem, NULL, &entry), 0);
    cr_assert_eq(entry.mode, BOOT_MULTIBOOT32);
}

Test(multiboot, flags_that_are_not_known_are_refused)
{
    spec.flags |= 8;
    refuse(-ENOEXEC,
           "kernel %s: its Multiboot header asks for what is not known (flags 0x1000b)");
}

Test(multiboot, wish_for_a_video_mode_does_not_stop_it)
{
    spec.flags |= 4;
    accept();
}

Test(multiboot, without_addresses_needs_an_elf)
{
    spec.flags = 3;
    refuse(-ENOEXEC, "kernel %s: a Multiboot header without addresses, in a file that is no ELF");
}

Test(multiboot, that_ends_inside_its_header_is_refused)
{
    make_flat();
    image.length = 80;
    image_open(&image, &config, -ENODATA, "kernel %s: truncated inside its Multiboot header");
}

Test(multiboot, that_ends_before_its_load_end_is_refused)
{
    spec.load_end_addr = 0x200300;
    refuse(-ENODATA, "kernel %s: truncated: it has 600 bytes, and segment 0 is bytes 0 to 768");
}

Test(multiboot, addresses_that_contradict_themselves_are_refused)
{
    static const struct multiboot_spec wrong[] = {
        {0x10003, 0x200040, 0x200044, 0x200200, 0x200300, 0x200080}, /* load after the header */
        {0x10003, 0x10, 0xFFFFFFE0, 0, 0, 0xFFFFFFE8},               /* the same, and it wraps */
        {0x10003, 0x200040, 0x1FFF00, 0x200200, 0x200300, 0x200080}, /* before the file begins */
        {0x10003, 0x200040, 0x200000, 0x200020, 0x200300, 0x200080}, /* end before the header */
        {0x10003, 0x200040, 0x200000, 0x200200, 0x200100, 0x200080}, /* bss ends inside the data */
        {0x10003, 0x90040, 0x90000, 0x90200, 0x90300, 0x90080},      /* below 1 MiB */
    };
    struct kernel_image *kernel;
    struct image_file file;

    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        spec = wrong[i];
        make_flat();
        image_capture_log();
        image_file_create(&file, image.bytes, image.length);
        config.kernel_path = file.path;
        cr_assert_eq(kernel_open(&kernel, &config), -EINVAL, "case %zu", i);
        cr_assert(strstr(image_last_error(), "its Multiboot addresses contradict themselves"),
                  "case %zu: %s", i, image_last_error());
    }
}

Test(multiboot, entry_outside_what_is_loaded_is_refused)
{
    spec.entry_addr = 0x200300;
    refuse(-ENOEXEC, "kernel %s: its entry 0x200300 is in none of its 1 segments");
}

Test(multiboot, information_tells_all)
{
    struct guest_memory *mem = image_memory(32 * MIB);
    struct image_file initrd;
    char text[6] = {0};
    gpa_t list;

    image_file_create(&initrd, "initrd", 6);
    config.initrd_path = initrd.path;
    cr_assert_eq(kernel_load(accept(), mem, NULL, &entry), 0);
    cr_assert_eq(image_u32(mem, entry.info), 0x24D, "flags");
    cr_assert_eq(image_u32(mem, entry.info + 4), 639, "KiB below");
    cr_assert_eq(image_u32(mem, entry.info + 8), 31 * 1024, "KiB above 1 MiB");
    image_get(mem, image_u32(mem, entry.info + 16), text, 4);
    cr_assert_str_eq(text, "a=b");
    cr_assert_eq(image_u32(mem, entry.info + 20), 1, "modules");
    list = image_u32(mem, entry.info + 24);
    cr_assert_eq(image_u32(mem, list), 32 * MIB - 4096);
    cr_assert_eq(image_u32(mem, list + 4), 32 * MIB - 4096 + 6);
    image_get(mem, image_u32(mem, entry.info + 64), text, 6);
    cr_assert_str_eq(text, "ferry");
    cr_assert_eq(image_u32(mem, entry.info + 44), 4 * 24, "length of the map");
    list = image_u32(mem, entry.info + 48);
    cr_assert_eq(image_u32(mem, list + 24 + 20), 2, "reserved up to 1 MiB");
    cr_assert_eq(image_u32(mem, list + 2 * 24), 20, "size of an entry, without itself");
    cr_assert_eq(image_u64(mem, list + 2 * 24 + 4), MIB);
    cr_assert_eq(image_u64(mem, list + 2 * 24 + 12), 31 * MIB);
    cr_assert_eq(image_u32(mem, list + 2 * 24 + 20), 1);
}

Test(multiboot, information_without_initrd_has_no_modules)
{
    struct guest_memory *mem = image_memory(32 * MIB);

    cr_assert_eq(kernel_load(accept(), mem, NULL, &entry), 0);
    cr_assert_eq(image_u32(mem, entry.info), 0x245, "flags");
}
