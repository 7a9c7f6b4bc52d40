/*
 * The kernel loaders on any bytes: each is taken for a kernel file, opened and loaded with an
 * initrd and ACPI tables into 4 MiB of guest memory, once with the guest to decompress and once
 * with the host. Where that succeeds, what the guest is handed must be in its memory, and neither
 * the tables nor the initrd may have been overwritten. Decompressors are also run on the bytes
 * directly.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "firmware/decompress.h"
#include "firmware/kernel.h"
#include "firmware/x86/acpi.h"
#include "tests/fuzz/fuzz.h"
#include "vmm/util/log.h"

#define MEMORY_SIZE (4 * MIB)
#define INITRD_SIZE 5000
#define UNPACKED_MAX 65536

static struct guest_memory *mem;
static struct firmware_tables tables;
static uint8_t *tables_copy;
static uint8_t initrd[INITRD_SIZE];
static char kernel_path[64], initrd_path[64];
static int kernel_fd;

static void drop_line(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
}

static int make_file(const char *name, char *path, size_t length)
{
    int fd = memfd_create(name, MFD_CLOEXEC);

    FUZZ_CHECK(fd >= 0);
    snprintf(path, length, "/proc/self/fd/%d", fd);
    return fd;
}

static void set_up(void)
{
    struct memory_config config = {.size = MEMORY_SIZE};
    struct acpi_config acpi = {.n_cpus = 4, .has_uart = true, .has_pci = true};
    int initrd_fd;

    if (mem)
        return;
    log_set_sink(drop_line);
    FUZZ_CHECK(memory_create(&mem, &config) == 0);
    FUZZ_CHECK(acpi_build(mem, &acpi, &tables) == 0);
    tables_copy = malloc(tables.size);
    FUZZ_CHECK(tables_copy && memory_read(mem, tables.base, tables_copy, tables.size) == 0);
    kernel_fd = make_file("kernel", kernel_path, sizeof(kernel_path));
    initrd_fd = make_file("initrd", initrd_path, sizeof(initrd_path));
    for (unsigned i = 0; i < sizeof(initrd); i++)
        initrd[i] = (uint8_t)(i * 7 + 1);
    FUZZ_CHECK(write(initrd_fd, initrd, sizeof(initrd)) == (ssize_t)sizeof(initrd));
}

/* Where the information structure says that the initrd is. */
static gpa_t find_initrd(const struct boot_entry *entry)
{
    uint32_t at32[2] = {0}, count = 0, list = 0;
    uint64_t at = 0;

    switch (entry->mode) {
    case BOOT_LONG64: /* boot_params: ramdisk_image, ext_ramdisk_image */
        FUZZ_CHECK(memory_read(mem, entry->info + 0x218, &at32[0], 4) == 0);
        FUZZ_CHECK(memory_read(mem, entry->info + 0xC0, &at32[1], 4) == 0);
        return at32[0] | (uint64_t)at32[1] << 32;
    case BOOT_PVH32: /* nr_modules, modlist_paddr */
        FUZZ_CHECK(memory_read(mem, entry->info + 12, &count, 4) == 0 && count == 1);
        FUZZ_CHECK(memory_read(mem, entry->info + 16, &at, 8) == 0);
        FUZZ_CHECK(memory_read(mem, at, &at, 8) == 0);
        return at;
    case BOOT_MULTIBOOT32: /* mods_count, mods_addr */
        FUZZ_CHECK(memory_read(mem, entry->info + 20, &count, 4) == 0 && count == 1);
        FUZZ_CHECK(memory_read(mem, entry->info + 24, &list, 4) == 0);
        FUZZ_CHECK(memory_read(mem, list, &at32[0], 4) == 0);
        return at32[0];
    }
    return 0;
}

static void check_loaded(const struct boot_entry *entry)
{
    const uint8_t *at;

    FUZZ_CHECK(memory_at(mem, entry->entry, 1));
    FUZZ_CHECK(memory_at(mem, entry->info, 4096));
    FUZZ_CHECK(memory_at(mem, entry->gdt, entry->gdt_limit + 1u));
    FUZZ_CHECK((entry->page_tables != 0) == (entry->mode == BOOT_LONG64));
    at = memory_at(mem, find_initrd(entry), sizeof(initrd));
    FUZZ_CHECK(at && memcmp(at, initrd, sizeof(initrd)) == 0);
    at = memory_at(mem, tables.base, tables.size);
    FUZZ_CHECK(memcmp(at, tables_copy, tables.size) == 0);
}

static void load(enum decompress_mode mode)
{
    struct boot_config config = {
        .kernel_path = kernel_path,
        .initrd_path = initrd_path,
        .cmdline = "console=ttyS0",
        .decompress = mode,
    };
    struct kernel_image *image;
    struct boot_entry entry;

    if (kernel_open(&image, &config) < 0)
        return;
    if (kernel_load(image, mem, &tables, &entry) == 0)
        check_loaded(&entry);
    kernel_close(image);
}

static void unpack(const uint8_t *data, size_t size)
{
    enum compression compression = compression_detect(data, size);
    uint8_t *out;

    if (compression == COMPRESSION_UNKNOWN)
        return;
    /* Exactly as long as asked for, so that a byte too many is seen. */
    for (size_t length = 1; length <= UNPACKED_MAX; length *= 16) {
        out = malloc(length);
        FUZZ_CHECK(out);
        decompress(compression, data, size, out, length);
        free(out);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    set_up();
    FUZZ_CHECK(ftruncate(kernel_fd, 0) == 0);
    FUZZ_CHECK(pwrite(kernel_fd, data, size, 0) == (ssize_t)size);
    load(DECOMPRESS_GUEST);
    load(DECOMPRESS_HOST);
    unpack(data, size);
    return 0;
}
