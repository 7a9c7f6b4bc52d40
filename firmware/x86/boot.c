/*
 * The x86 side of kernel loading: which format a file has, and the machine state to enter it with.
 *
 * Loads by the plan (load.c), then writes the command line, a GDT, page tables where the protocol
 * wants them, and the protocol's information structure. Does not touch vCPUs: the caller sets
 * registers from struct boot_entry. The thread that starts and resets the machine; no lock.
 *
 * Texts: Linux, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"; Xen, docs/misc/pvh.pandoc;
 * Multiboot 0.6.96 §3.2; Intel SDM vol. 3 §3.4.5 (descriptors), §4.5 (paging).
 */
#include <elf.h>
#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "firmware/x86/x86_internal.h"
#include "vmm/util/log.h"

/* SDM vol. 3, figure 3-8: flat, present, accessed. */
#define GDT_CODE32 0x00CF9B000000FFFFull
#define GDT_CODE64 0x00AF9B000000FFFFull
#define GDT_DATA 0x00CF93000000FFFFull
#define GDT_TSS 0x00008B0000000067ull /* busy, base 0, limit 0x67; its second half is 0 */
#define GDT_ENTRIES 6

/* SDM vol. 3, tables 4-15 to 4-18. */
#define PAGE_PRESENT_WRITABLE 0x3ull
#define PAGE_LARGE 0x80ull
#define PAGE_LARGE_SIZE (2 * MIB)
#define PAGE_ENTRIES 512

#define ARM64_MAGIC_OFFSET 56 /* Linux, Documentation/arch/arm64/booting.rst */

static bool is_elf(const struct kernel_image *image)
{
    return image->head_length >= EI_NIDENT && memcmp(image->head, ELFMAG, SELFMAG) == 0;
}

static int probe_elf(struct kernel_image *image)
{
    struct kernel_source source = {.file = &image->kernel, .size = image->kernel.size};
    struct kernel_plan *plan = &image->plan;
    struct elf_facts facts;
    uint32_t multiboot;
    bool has_multiboot = multiboot_detect(image, &multiboot);
    int err;

    /* A Multiboot header may give addresses of its own and overrule the ELF's, unless PVH does. */
    err = has_multiboot && image->head[EI_CLASS] == ELFCLASS32
              ? 0 : elf_parse(&source, plan, &facts);
    if (err)
        return err;
    if (has_multiboot && (image->head[EI_CLASS] == ELFCLASS32 || !facts.has_pvh_entry))
        return multiboot_probe(image, multiboot);
    err = elf_check_64(&source, &facts);
    if (err)
        return err;
    plan->format = facts.has_pvh_entry ? KERNEL_ELF64_PVH : KERNEL_ELF64;
    if (facts.has_pvh_entry)
        plan->entry = facts.pvh_entry;
    return elf_check_entry(&source, plan);
}

/* What the formats without a limit of their own have in common. */
static int check_limits(const struct kernel_image *image)
{
    uint64_t length = strlen(image->cmdline);

    if (image->plan.format != KERNEL_ELF64 && image->plan.entry > UINT32_MAX) {
        log_error("kernel %s: its 32-bit entry %#llx is above 4 GiB", image->kernel.path,
                  (unsigned long long)image->plan.entry);
        return -ENOEXEC;
    }
    if (length <= BOOT_CMDLINE_MAX)
        return 0;
    log_error("kernel %s: the command line has %llu bytes, and %llu is the most",
              image->kernel.path, (unsigned long long)length,
              (unsigned long long)BOOT_CMDLINE_MAX);
    return -E2BIG;
}

int kernel_arch_probe(struct kernel_image *image)
{
    uint32_t multiboot;
    int err;

    if (bzimage_detect(image))
        return bzimage_probe(image);
    if (is_elf(image))
        err = probe_elf(image);
    else if (multiboot_detect(image, &multiboot))
        err = multiboot_probe(image, multiboot);
    else if (image->head_length >= ARM64_MAGIC_OFFSET + 4 &&
             memcmp(image->head + ARM64_MAGIC_OFFSET, "ARM\x64", 4) == 0) {
        log_error("kernel %s: a kernel for arm64, and this machine is x86-64", image->kernel.path);
        err = -ENOEXEC;
    } else
        err = 1;
    return err ? err : check_limits(image);
}

static enum boot_mode mode_of(enum kernel_format format)
{
    switch (format) {
    case KERNEL_ELF64_PVH:
        return BOOT_PVH32;
    case KERNEL_MULTIBOOT:
        return BOOT_MULTIBOOT32;
    case KERNEL_BZIMAGE:
    case KERNEL_ELF64:
        break;
    }
    return BOOT_LONG64;
}

/* As the kernel does to itself where it unpacks itself. Without random numbers it stays. */
static bool move_kernel(const struct kernel_image *image, const struct kernel_plan *plan,
                        uint8_t *unpacked)
{
    struct kaslr_kernel kernel = {
        .bytes = unpacked,
        .size = image->payload.unpacked,
        .plan = plan,
    };
    uint64_t random, distance;

    bzimage_placement(image, &kernel);
    return kaslr_is_wanted(image->cmdline) &&
           getrandom(&random, sizeof(random), 0) == (ssize_t)sizeof(random) &&
           kaslr_apply(&kernel, random, &distance);
}

/* The host unpacks the payload and the ELF inside is loaded at the physical address it was linked
 * for; startup_64 is its entry (arch/x86/kernel/head_64.S). */
static int load_unpacked(const struct kernel_image *image, struct guest_memory *mem,
                         struct kernel_ranges *used, struct kernel_plan *plan, bool *moved)
{
    struct kernel_source source = {.file = &image->kernel, .size = image->payload.unpacked};
    struct elf_facts facts;
    uint8_t *unpacked;
    int err;

    if (image->payload.unpacked > memory_size(mem)) {
        log_error("kernel %s: unpacks to %llu MiB, and the guest has %llu MiB; try a larger "
                  "--memory", image->kernel.path, (unsigned long long)(source.size / MIB),
                  (unsigned long long)(memory_size(mem) / MIB));
        return -ENOMEM;
    }
    err = kernel_unpack(image, &unpacked);
    if (err)
        return err;
    source.bytes = unpacked;
    err = elf_parse(&source, plan, &facts);
    if (!err)
        err = elf_check_64(&source, &facts);
    if (!err)
        err = elf_check_entry(&source, plan);
    if (!err) {
        *moved = move_kernel(image, plan, unpacked);
        err = kernel_plan_load(plan, &source, mem, used);
    }
    kernel_unpacked_free(image, unpacked);
    return err;
}

static int load_initrd(const struct kernel_image *image, struct guest_memory *mem,
                       const struct kernel_ranges *used, struct boot_facts *facts)
{
    struct kernel_window windows[MEMORY_MAX_REGIONS] = {
        {.start = BOOT_KERNEL_MIN, .end = facts->low_ram_end},
    };
    const struct memory_region *regions;
    unsigned n = memory_regions(mem, &regions);
    bool above_4g = false;
    int err;

    if (image->plan.format == KERNEL_BZIMAGE) {
        uint64_t end = bzimage_initrd_end(image, &above_4g);

        if (windows[0].end > end)
            windows[0].end = end;
    }
    for (unsigned i = 1; i < n && above_4g; i++)
        windows[i] = (struct kernel_window){regions[i].base, regions[i].base + regions[i].size};
    err = kernel_initrd_load(image, mem, used, windows, n, &facts->initrd);
    if (!err && facts->initrd)
        facts->initrd_size = image->initrd.size;
    return err;
}

static int write_gdt(struct guest_memory *mem, struct boot_entry *out)
{
    uint64_t gdt[GDT_ENTRIES] = {0};

    gdt[BOOT_SELECTOR_CS / 8] = out->mode == BOOT_LONG64 ? GDT_CODE64 : GDT_CODE32;
    gdt[BOOT_SELECTOR_DS / 8] = GDT_DATA;
    gdt[BOOT_SELECTOR_TSS / 8] = GDT_TSS;
    out->gdt = BOOT_GDT_BASE;
    out->gdt_limit = sizeof(gdt) - 1;
    return memory_write(mem, BOOT_GDT_BASE, gdt, sizeof(gdt));
}

static int write_page(struct guest_memory *mem, gpa_t at, uint64_t first, uint64_t step, unsigned n)
{
    uint64_t entries[PAGE_ENTRIES] = {0};

    for (unsigned i = 0; i < n; i++)
        entries[i] = first + i * step;
    return memory_write(mem, at, entries, sizeof(entries));
}

/* Maps 0 .. end one to one, at least 4 GiB, by pages of 2 MiB, which every 64-bit CPU has. */
static int write_page_tables(const struct kernel_image *image, struct guest_memory *mem, gpa_t end,
                             struct boot_entry *out)
{
    unsigned n_pd;
    int err;

    if (end > BOOT_MAPPED_MAX) {
        log_error("kernel %s: needs memory up to %#llx, and %llu GiB are the most that is mapped "
                  "at its entry", image->kernel.path, (unsigned long long)end,
                  (unsigned long long)(BOOT_MAPPED_MAX / GIB));
        return -EINVAL;
    }
    if (end < BOOT_MAPPED_MIN)
        end = BOOT_MAPPED_MIN;
    n_pd = (unsigned)((end + GIB - 1) / GIB);
    err = write_page(mem, BOOT_PML4_BASE, BOOT_PDPT_BASE | PAGE_PRESENT_WRITABLE, 0, 1);
    if (!err)
        err = write_page(mem, BOOT_PDPT_BASE, BOOT_PD_BASE | PAGE_PRESENT_WRITABLE, 4096, n_pd);
    for (unsigned i = 0; i < n_pd && !err; i++)
        err = write_page(mem, BOOT_PD_BASE + i * 4096ull,
                         i * GIB | PAGE_PRESENT_WRITABLE | PAGE_LARGE, PAGE_LARGE_SIZE,
                         PAGE_ENTRIES);
    out->page_tables = BOOT_PML4_BASE;
    return err;
}

static int write_info(const struct kernel_image *image, struct guest_memory *mem,
                      const struct boot_facts *facts)
{
    switch (image->plan.format) {
    case KERNEL_BZIMAGE:
        return linux_params_write(mem, facts, image->head);
    case KERNEL_ELF64:
        return linux_params_write(mem, facts, NULL);
    case KERNEL_ELF64_PVH:
        return pvh_info_write(mem, facts);
    case KERNEL_MULTIBOOT:
        return multiboot_info_write(mem, facts);
    }
    return -EINVAL;
}

static gpa_t highest_end(const struct kernel_ranges *ranges)
{
    gpa_t end = 0;

    for (unsigned i = 0; i < ranges->n; i++)
        if (ranges->range[i].end > end)
            end = ranges->range[i].end;
    return end;
}

/* All but the kernel itself. */
static int write_boot_data(const struct kernel_image *image, struct guest_memory *mem,
                           const struct firmware_tables *tables, const struct kernel_ranges *used,
                           bool moved, struct boot_entry *out)
{
    struct boot_facts facts = {
        .cmdline = BOOT_CMDLINE_BASE,
        .cmdline_length = strlen(image->cmdline),
        .rsdp = tables->root,
        .moved = moved,
    };
    const struct memory_region *regions;
    int err;

    memory_regions(mem, &regions);
    facts.low_ram_end = regions[0].size;
    memmap_build(mem, tables, &facts.memmap);
    err = load_initrd(image, mem, used, &facts);
    if (!err)
        err = memory_write(mem, BOOT_CMDLINE_BASE, image->cmdline, facts.cmdline_length + 1);
    if (!err)
        err = write_gdt(mem, out);
    if (!err && out->mode == BOOT_LONG64)
        err = write_page_tables(image, mem, highest_end(used), out);
    if (!err)
        err = write_info(image, mem, &facts);
    return err;
}

int kernel_arch_load(const struct kernel_image *image, struct guest_memory *mem,
                     const struct firmware_tables *tables, struct boot_entry *out)
{
    struct kernel_source source = {.file = &image->kernel, .size = image->kernel.size};
    struct kernel_ranges used = {0};
    struct kernel_plan unpacked;
    const struct kernel_plan *plan = &image->plan;
    const struct memory_region *regions;
    bool moved = false;
    int err;

    memory_regions(mem, &regions);
    if (regions[0].base != 0 || regions[0].size <= BOOT_KERNEL_MIN) {
        log_error("kernel %s: the guest has no memory above 1 MiB", image->kernel.path);
        return -ENOMEM;
    }
    kernel_ranges_add(&used, tables->base, tables->base + tables->size);
    if (image->host_decompress) {
        plan = &unpacked;
        err = load_unpacked(image, mem, &used, &unpacked, &moved);
    } else {
        err = kernel_plan_load(plan, &source, mem, &used);
    }
    if (err)
        return err;
    *out = (struct boot_entry){
        .mode = mode_of(image->plan.format),
        .entry = plan->entry,
        .info = BOOT_INFO_BASE,
    };
    return write_boot_data(image, mem, tables, &used, moved, out);
}
