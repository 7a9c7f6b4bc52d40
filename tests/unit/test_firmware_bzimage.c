/* bzImage kernels: by the 64-bit protocol, unpacked by the guest or by the host. */
#include <criterion/criterion.h>
#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

#include "firmware/kernel.h"
#include "kernel_images.h"

static struct image image;
static struct bzimage_spec spec;
static struct boot_config config;
static struct boot_entry entry;

static void set_up(void)
{
    spec = bzimage_spec();
    config = (struct boot_config){.cmdline = "console=ttyS0"};
}

TestSuite(bzimage, .init = set_up);
TestSuite(bzimage_host, .init = set_up);

static void refuse(int expected, const char *message)
{
    image_bzimage(&image, &spec);
    image_open(&image, &config, expected, message);
}

static struct kernel_image *accept(void)
{
    image_bzimage(&image, &spec);
    return image_open(&image, &config, 0, "");
}

static void refuse_load(struct kernel_image *kernel, uint64_t size, int expected, const char *text)
{
    cr_assert_eq(kernel_load(kernel, image_memory(size), NULL, &entry), expected, "\"%s\"",
                 image_last_error());
    cr_assert(strstr(image_last_error(), text), "\"%s\"", image_last_error());
}

Test(bzimage, is_loaded_where_it_prefers_and_entered_at_0x200)
{
    struct guest_memory *mem = image_memory(32 * MIB);
    struct kernel_image *kernel = accept();

    cr_assert_eq(kernel_format(kernel), KERNEL_BZIMAGE);
    cr_assert_eq(kernel_load(kernel, mem, NULL, &entry), 0);
    cr_assert_eq(entry.mode, BOOT_LONG64);
    cr_assert_eq(entry.entry, 0x1000200);
    cr_assert_arr_eq(memory_at(mem, 0x1000000, 4096), image.bytes + 1024, 4096);
}

Test(bzimage, gets_boot_params_with_its_own_setup_header)
{
    struct guest_memory *mem = image_memory(32 * MIB);

    cr_assert_eq(kernel_load(accept(), mem, NULL, &entry), 0);
    cr_assert_eq(image_u32(mem, entry.info + 0x202), 0x53726448);
    cr_assert_eq(image_u16(mem, entry.info + 0x206), 0x020F);
    cr_assert_eq(image_u8(mem, entry.info + 0x1EF), 0, "the sentinel");
    cr_assert_eq(image_u8(mem, entry.info + 0x210), 0xFF, "the loader's type");
    cr_assert_eq(image_u64(mem, entry.info + 0x258), 0x1000000);
    cr_assert_eq(image_u32(mem, entry.info + 0x21C), 0, "no initrd");
}

Test(bzimage, with_0_setup_sectors_has_4)
{
    struct guest_memory *mem = image_memory(32 * MIB);

    spec.setup_sects = 0;
    cr_assert_eq(kernel_load(accept(), mem, NULL, &entry), 0);
    cr_assert_arr_eq(memory_at(mem, 0x1000000, 4096), image.bytes + 5 * 512, 4096);
}

Test(bzimage, may_be_followed_by_a_signature)
{
    struct guest_memory *mem = image_memory(32 * MIB);

    image_bzimage(&image, &spec);
    memset(image.bytes + image.length, 0x55, 1472);
    image.length += 1472;
    cr_assert_eq(kernel_load(image_open(&image, &config, 0, ""), mem, NULL, &entry), 0);
    cr_assert_eq(image_u8(mem, 0x1001000), 0);
}

Test(bzimage, whose_last_paragraph_is_not_whole_is_accepted)
{
    image_bzimage(&image, &spec);
    image.length -= 15;
    image_open(&image, &config, 0, "");
}

Test(bzimage, that_is_truncated_is_refused)
{
    image_bzimage(&image, &spec);
    image.length -= 16;
    image_open(&image, &config, -ENODATA,
               "kernel %s: truncated: 5104 bytes, and its header says 5120");
    image.length = 900;
    image_open(&image, &config, -ENODATA,
               "kernel %s: truncated: 900 bytes, and its header says 5120");
    image.length = 0x210;
    image_open(&image, &config, -ENODATA,
               "kernel %s: truncated: 528 bytes do not hold a bzImage's header");
}

Test(bzimage, for_32_bit_is_refused)
{
    spec.xloadflags = 0;
    refuse(-ENOEXEC, "kernel %s: a 32-bit kernel; this machine boots 64-bit ones");
}

Test(bzimage, of_an_old_protocol_is_refused)
{
    spec.version = 0x020A;
    refuse(-ENOEXEC, "kernel %s: its boot protocol is 2.10, and 2.12 (Linux 3.8, 64-bit) is the "
                     "first that can be booted");
}

Test(bzimage, with_a_short_header_is_refused)
{
    spec.header_end = 0x50;
    refuse(-EINVAL, "kernel %s: its setup header is not valid (end 0x252, loadflags 0x1, "
                    "pref_address 0x1000000, init_size 0x200000)");
}

Test(bzimage, that_is_not_loaded_high_is_refused)
{
    spec.loadflags = 0;
    refuse(-EINVAL, "kernel %s: its setup header is not valid (end 0x26c, loadflags 0, "
                    "pref_address 0x1000000, init_size 0x200000)");
}

Test(bzimage, that_prefers_an_impossible_address_is_refused)
{
    spec.pref_address = 0x90000;
    refuse(-EINVAL, "kernel %s: its setup header is not valid (end 0x26c, loadflags 0x1, "
                    "pref_address 0x90000, init_size 0x200000)");
    spec.pref_address = UINT64_MAX - 0x100;
    refuse(-EINVAL, "kernel %s: its setup header is not valid (end 0x26c, loadflags 0x1, "
                    "pref_address 0xfffffffffffffeff, init_size 0x200000)");
}

Test(bzimage, without_room_for_its_entry_is_refused)
{
    spec.body_size = 512;
    refuse(-EINVAL, "kernel %s: its setup header is not valid (syssize 32)");
}

Test(bzimage, with_too_long_a_command_line_is_refused)
{
    char line[2049];

    memset(line, 'x', 2048);
    line[2048] = 0;
    config.cmdline = line;
    refuse(-E2BIG, "kernel %s: takes a command line of 2047 bytes, and this one has 2048");
    line[2047] = 0;
    accept();
}

Test(bzimage, that_needs_more_memory_than_there_is_is_refused)
{
    spec.init_size = 0x3378000;
    refuse_load(accept(), 32 * MIB, -ENOMEM, "needs memory up to 68 MiB (0x1000000-0x4378000), but "
                                             "the guest has 32 MiB; try a larger --memory");
    cr_assert_eq(kernel_load(accept(), image_memory(68 * MIB), NULL, &entry), 0);
}

Test(bzimage, keeps_its_initrd_below_the_limit_and_off_its_workspace)
{
    struct guest_memory *mem = image_memory(64 * MIB);
    struct image_file initrd;

    image_file_create(&initrd, "initrd", 6);
    config.initrd_path = initrd.path;
    spec.initrd_addr_max = 0x1FFFFFF;
    cr_assert_eq(kernel_load(accept(), mem, NULL, &entry), 0);
    cr_assert_eq(image_u32(mem, entry.info + 0x218), 0x1FFF000);
    spec.initrd_addr_max = 0x11FFFFF; /* the last byte of init_size */
    cr_assert_eq(kernel_load(accept(), mem, NULL, &entry), 0);
    cr_assert_eq(image_u32(mem, entry.info + 0x218), 0xFFF000);
}

Test(bzimage, may_have_its_initrd_above_4_gib_where_it_says_so)
{
    struct guest_memory *mem = image_memory(4 * GIB);
    struct image_file initrd;

    image_file_create(&initrd, "x", 1);
    cr_assert_eq(ftruncate(initrd.fd, 18 * (off_t)MIB), 0);
    config.initrd_path = initrd.path;
    spec.initrd_addr_max = 0x10FFFFF;
    cr_assert_eq(kernel_load(accept(), mem, NULL, &entry), 0);
    cr_assert_eq(image_u32(mem, entry.info + 0x218), 5 * GIB - 18 * MIB - 4 * GIB);
    cr_assert_eq(image_u32(mem, entry.info + 0x0C0), 1);
    spec.xloadflags = 1;
    cr_assert_eq(kernel_load(accept(), mem, NULL, &entry), -ENOMEM);
}

/* ---- the host unpacks ---- */

static uint8_t payload[IMAGE_MAX];

/* The ELF without its last `cut` bytes, packed, with its size behind. */
static void use_cut_payload(const struct elf_spec *elf, size_t cut)
{
    static struct image inner;
    uint32_t size;
    size_t length;

    image_elf(&inner, elf);
    inner.length -= cut;
    size = (uint32_t)inner.length;
    length = ZSTD_compress(payload, sizeof(payload), inner.bytes, inner.length, 3);
    cr_assert(!ZSTD_isError(length));
    memcpy(payload + length, &size, sizeof(size));
    spec.payload = payload;
    spec.payload_length = (uint32_t)length + 4;
    config.decompress = DECOMPRESS_HOST;
}

static void use_elf_payload(const struct elf_spec *elf)
{
    use_cut_payload(elf, 0);
}

static struct elf_spec vmlinux_spec(void)
{
    struct elf_spec elf = elf_spec();

    elf.entry = 0x1000010;
    elf.segments[0].paddr = 0x1000000;
    elf.segments[0].vaddr = 0xFFFFFFFF81000000;
    return elf;
}

Test(bzimage_host, loads_the_elf_inside_at_its_own_addresses)
{
    struct guest_memory *mem = image_memory(32 * MIB);
    struct elf_spec elf = vmlinux_spec();

    use_elf_payload(&elf);
    cr_assert_eq(memory_fill(mem, 0x1000000, 0xAA, 4096), 0);
    cr_assert_eq(kernel_load(accept(), mem, NULL, &entry), 0);
    cr_assert_eq(entry.mode, BOOT_LONG64);
    cr_assert_eq(entry.entry, 0x1000010);
    for (unsigned i = 0; i < 500; i++)
        cr_assert_eq(image_u8(mem, 0x1000000 + i), i < 300 ? (uint8_t)i : 0, "byte %u", i);
    cr_assert_eq(image_u8(mem, 0x1000000 + 500), 0xAA);
    cr_assert_eq(image_u16(mem, entry.info + 0x206), 0x020F, "the setup header is the bzImage's");
}

Test(bzimage_host, is_what_auto_means)
{
    struct guest_memory *mem = image_memory(32 * MIB);
    struct elf_spec elf = vmlinux_spec();

    use_elf_payload(&elf);
    config.decompress = DECOMPRESS_AUTO;
    cr_assert_eq(kernel_load(accept(), mem, NULL, &entry), 0);
    cr_assert_eq(entry.entry, 0x1000010);
    config.decompress = DECOMPRESS_GUEST;
    cr_assert_eq(kernel_load(accept(), mem, NULL, &entry), 0);
    cr_assert_eq(entry.entry, 0x1000200);
}

Test(bzimage_host, refuses_a_compression_it_does_not_know)
{
    spec.payload = "BZh91AY&\x01\x02\x03\x04";
    spec.payload_length = 12;
    config.decompress = DECOMPRESS_HOST;
    refuse(-ENOTSUP, "kernel %s: its payload's compression (bzip2) is none of gzip, xz, lz4, zstd; "
                     "try --decompress guest");
}

Test(bzimage_host, by_default_leaves_an_unknown_compression_to_the_guest)
{
    struct guest_memory *mem = image_memory(32 * MIB);

    spec.payload = "BZh91AY&\x01\x02\x03\x04";
    spec.payload_length = 12;
    cr_assert_eq(kernel_load(accept(), mem, NULL, &entry), 0);
    cr_assert_eq(entry.entry, 0x1000200);
}

Test(bzimage_host, refuses_a_payload_outside_the_kernel)
{
    config.decompress = DECOMPRESS_HOST;
    spec.payload_offset = 4090;
    spec.payload_length = 12;
    refuse(-EINVAL, "kernel %s: its setup header is not valid (payload at 0xffa of 0xc bytes in "
                    "0x1000)");
    spec.payload_offset = UINT32_MAX;
    refuse(-EINVAL, "kernel %s: its setup header is not valid (payload at 0xffffffff of 0xc bytes "
                    "in 0x1000)");
    spec.payload_offset = 0;
    spec.payload_length = 11;
    refuse(-EINVAL, "kernel %s: its setup header is not valid (payload at 0 of 0xb bytes in "
                    "0x1000)");
}

Test(bzimage_host, refuses_a_payload_that_states_no_size)
{
    config.decompress = DECOMPRESS_HOST;
    spec.payload = "\x28\xB5\x2F\xFD\0\0\0\0\0\0\0\0";
    spec.payload_length = 12;
    refuse(-EINVAL, "kernel %s: its payload states a size of 0");
}

Test(bzimage_host, refuses_a_payload_larger_than_memory)
{
    struct elf_spec elf = vmlinux_spec();
    uint32_t size = 33 * MIB;

    use_elf_payload(&elf);
    memcpy(payload + spec.payload_length - 4, &size, sizeof(size));
    refuse_load(accept(), 32 * MIB, -ENOMEM,
                "unpacks to 33 MiB, and the guest has 32 MiB; try a larger --memory");
}

Test(bzimage_host, refuses_a_corrupt_payload)
{
    struct elf_spec elf = vmlinux_spec();

    use_elf_payload(&elf);
    payload[7] |= 6; /* RFC 8878 §3.1.1: after 4 + 1 + 2 bytes the block, of a reserved type */
    refuse_load(accept(), 32 * MIB, -EBADMSG, "its zstd payload is corrupt");
}

Test(bzimage_host, refuses_a_payload_that_ends_early)
{
    struct elf_spec elf = vmlinux_spec();
    uint32_t size;

    use_elf_payload(&elf);
    memcpy(&size, payload + spec.payload_length - 4, sizeof(size));
    spec.payload_length -= 40;
    memcpy(payload + spec.payload_length - 4, &size, sizeof(size));
    refuse_load(accept(), 32 * MIB, -ENODATA,
                "truncated: its zstd payload ends before the 812 bytes that it states");
}

Test(bzimage_host, refuses_a_payload_longer_than_it_states)
{
    struct elf_spec elf = vmlinux_spec();
    uint32_t size = 811;

    use_elf_payload(&elf);
    memcpy(payload + spec.payload_length - 4, &size, sizeof(size));
    refuse_load(accept(), 32 * MIB, -EOVERFLOW,
                "its zstd payload has more than the 811 bytes that it states");
}

Test(bzimage_host, refuses_an_elf_inside_that_is_for_32_bit)
{
    struct elf_spec elf = vmlinux_spec();

    elf.is_32 = true;
    elf.machine = EM_386;
    use_elf_payload(&elf);
    refuse_load(accept(), 32 * MIB, -ENOEXEC, "a 32-bit ELF");
}

Test(bzimage_host, refuses_an_elf_inside_that_does_not_fit_memory)
{
    struct elf_spec elf = vmlinux_spec();

    elf.segments[0].mem_size = 17 * MIB;
    use_elf_payload(&elf);
    refuse_load(accept(), 32 * MIB, -ENOMEM, "needs memory up to 33 MiB (0x1000000-0x2100000), but "
                                             "the guest has 32 MiB; try a larger --memory");
}

Test(bzimage_host, refuses_an_elf_inside_whose_segment_is_cut_off)
{
    struct elf_spec elf = vmlinux_spec();

    use_cut_payload(&elf, 10);
    refuse_load(accept(), 32 * MIB, -ENODATA,
                "truncated: it has 802 bytes when unpacked, and segment 0 is bytes 512 to 812");
}
