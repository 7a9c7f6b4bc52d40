/*
 * Multiboot 1 kernels: the header found and checked, a load plan from its addresses or from the ELF
 * around it, and the information structure.
 *
 * Gives no video mode, drive table, APM table or symbols. The header is copied once from the file's
 * head, then validated. No state.
 *
 * Text: Multiboot Specification 0.6.96.
 */
#include <elf.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "firmware/x86/x86_internal.h"
#include "vmm/util/log.h"

#define MULTIBOOT_HEADER_MAGIC 0x1BADB002u
#define MULTIBOOT_SEARCH 8192 /* §3.1: the header is wholly in the first 8192 bytes, 4-aligned */

/* §3.1.2, header flags. 0 (page-aligned modules) and 1 (memory information) are always given. */
#define MULTIBOOT_PAGE_ALIGN 0x00000001u
#define MULTIBOOT_MEMORY_INFO 0x00000002u
#define MULTIBOOT_VIDEO_MODE 0x00000004u
#define MULTIBOOT_MANDATORY 0x0000FFFFu
#define MULTIBOOT_ADDRESSES 0x00010000u

/* §3.3, information flags. */
#define MULTIBOOT_INFO_MEMORY 0x001u
#define MULTIBOOT_INFO_CMDLINE 0x004u
#define MULTIBOOT_INFO_MODULES 0x008u
#define MULTIBOOT_INFO_MMAP 0x040u
#define MULTIBOOT_INFO_LOADER_NAME 0x200u

struct multiboot_header {
    uint32_t magic;
    uint32_t flags;
    uint32_t checksum;
    uint32_t header_addr;
    uint32_t load_addr;
    uint32_t load_end_addr;
    uint32_t bss_end_addr;
    uint32_t entry_addr;
};

/* What must be there: the address fields only count with their flag. */
#define MULTIBOOT_HEADER_MIN offsetof(struct multiboot_header, header_addr)

struct multiboot_info {
    uint32_t flags;
    uint32_t mem_lower; /* KiB */
    uint32_t mem_upper; /* KiB */
    uint32_t boot_device;
    uint32_t cmdline;
    uint32_t mods_count;
    uint32_t mods_addr;
    uint32_t syms[4];
    uint32_t mmap_length;
    uint32_t mmap_addr;
    uint32_t drives_length;
    uint32_t drives_addr;
    uint32_t config_table;
    uint32_t boot_loader_name;
    uint32_t apm_table;
};

struct multiboot_module {
    uint32_t mod_start;
    uint32_t mod_end; /* exclusive */
    uint32_t string;
    uint32_t reserved;
};

struct multiboot_mmap {
    uint32_t size; /* of what follows it */
    uint64_t addr;
    uint64_t length;
    uint32_t type;
} __attribute__((packed));

_Static_assert(offsetof(struct multiboot_info, mmap_length) == 44, "Multiboot §3.3");
_Static_assert(offsetof(struct multiboot_info, boot_loader_name) == 64, "Multiboot §3.3");
_Static_assert(sizeof(struct multiboot_module) == 16, "Multiboot §3.3");
_Static_assert(sizeof(struct multiboot_mmap) == 24, "Multiboot §3.3");

/* At BOOT_LISTS_BASE. */
struct multiboot_lists {
    struct multiboot_module module;
    struct multiboot_mmap mmap[MEMMAP_MAX];
    char loader_name[8];
};

_Static_assert(sizeof(struct multiboot_lists) <= BOOT_LISTS_END - BOOT_LISTS_BASE, "they fit");

static struct multiboot_header get_header(const struct kernel_image *image, uint32_t offset)
{
    struct multiboot_header header = {0};
    uint32_t length = sizeof(header);

    if (length > image->head_length - offset)
        length = image->head_length - offset;
    memcpy(&header, image->head + offset, length);
    return header;
}

bool multiboot_detect(const struct kernel_image *image, uint32_t *header_offset)
{
    for (uint32_t at = 0; at + MULTIBOOT_HEADER_MIN <= image->head_length; at += 4) {
        struct multiboot_header header = get_header(image, at);

        /* §3.1.2: magic, flags and checksum add up to 0. */
        if (header.magic == MULTIBOOT_HEADER_MAGIC &&
            header.magic + header.flags + header.checksum == 0) {
            *header_offset = at;
            return true;
        }
    }
    return false;
}

static int check_flags(const struct kernel_image *image, uint32_t flags)
{
    uint32_t known = MULTIBOOT_PAGE_ALIGN | MULTIBOOT_MEMORY_INFO | MULTIBOOT_VIDEO_MODE;

    if (flags & MULTIBOOT_MANDATORY & ~known) {
        log_error("kernel %s: its Multiboot header asks for what is not known (flags %#x)",
                  image->kernel.path, flags);
        return -ENOEXEC;
    }
    /* §3.1.2 has the loader fail here. Kernels that ask for a mode commonly do without one. */
    if (flags & MULTIBOOT_VIDEO_MODE)
        log_warn("kernel %s: asks for a video mode, and this machine has no display",
                 image->kernel.path);
    return 0;
}

/* §3.1.3, "The address fields of Multiboot header". */
static int plan_addresses(struct kernel_image *image, const struct multiboot_header *header,
                          uint32_t header_offset, const struct kernel_source *source)
{
    uint32_t before = header->header_addr - header->load_addr; /* of the header, to be loaded */
    uint64_t rest = source->size - header_offset;
    uint64_t file_size = header->load_end_addr ? header->load_end_addr - header->load_addr
                                               : before + rest;
    uint64_t mem_size = header->bss_end_addr ? header->bss_end_addr - header->load_addr : file_size;

    if (header->load_addr < BOOT_KERNEL_MIN || header->header_addr < header->load_addr ||
        before > header_offset ||
        (header->load_end_addr && header->load_end_addr < header->header_addr) ||
        (header->bss_end_addr && header->bss_end_addr < header->load_addr + file_size)) {
        log_error("kernel %s: its Multiboot addresses contradict themselves or lie below 1 MiB "
                  "(header %#x at byte %u, load %#x-%#x, bss to %#x)", image->kernel.path,
                  header->header_addr, header_offset, header->load_addr, header->load_end_addr,
                  header->bss_end_addr);
        return -EINVAL;
    }
    image->plan = (struct kernel_plan){.entry = header->entry_addr, .n_segments = 1};
    image->plan.segments[0] = (struct kernel_segment){
        .at = header->load_addr,
        .offset = header_offset - before,
        .file_size = file_size,
        .mem_size = mem_size,
    };
    return kernel_plan_check(&image->plan, source);
}

int multiboot_probe(struct kernel_image *image, uint32_t header_offset)
{
    struct multiboot_header header = get_header(image, header_offset);
    struct kernel_source source = {.file = &image->kernel, .size = image->kernel.size};
    struct elf_facts facts;
    int err = check_flags(image, header.flags);

    if (err)
        return err;
    if (header.flags & MULTIBOOT_ADDRESSES) {
        if (header_offset + sizeof(header) > image->kernel.size) {
            log_error("kernel %s: truncated inside its Multiboot header", image->kernel.path);
            return -ENODATA;
        }
        err = plan_addresses(image, &header, header_offset, &source);
    } else if (image->head_length >= SELFMAG && memcmp(image->head, ELFMAG, SELFMAG) == 0) {
        err = elf_parse(&source, &image->plan, &facts);
    } else {
        log_error("kernel %s: a Multiboot header without addresses, in a file that is no ELF",
                  image->kernel.path);
        err = -ENOEXEC;
    }
    if (err)
        return err;
    image->plan.format = KERNEL_MULTIBOOT;
    return elf_check_entry(&source, &image->plan);
}

static void fill_lists(struct multiboot_lists *lists, const struct boot_facts *facts)
{
    memcpy(lists->loader_name, "ferry", sizeof("ferry"));
    lists->module.mod_start = (uint32_t)facts->initrd;
    lists->module.mod_end = (uint32_t)(facts->initrd + facts->initrd_size);
    for (unsigned i = 0; i < facts->memmap.n; i++)
        lists->mmap[i] = (struct multiboot_mmap){
            .size = sizeof(struct multiboot_mmap) - sizeof(uint32_t),
            .addr = facts->memmap.entry[i].base,
            .length = facts->memmap.entry[i].size,
            .type = facts->memmap.entry[i].type,
        };
}

int multiboot_info_write(struct guest_memory *mem, const struct boot_facts *facts)
{
    struct multiboot_lists lists = {0};
    struct multiboot_info info = {
        .flags = MULTIBOOT_INFO_MEMORY | MULTIBOOT_INFO_CMDLINE | MULTIBOOT_INFO_MMAP |
                 MULTIBOOT_INFO_LOADER_NAME,
        .mem_lower = PLATFORM_EBDA_BASE / KIB,
        .mem_upper = (uint32_t)((facts->low_ram_end - MIB) / KIB),
        .cmdline = (uint32_t)facts->cmdline,
        .mmap_length = facts->memmap.n * (uint32_t)sizeof(struct multiboot_mmap),
        .mmap_addr = BOOT_LISTS_BASE + offsetof(struct multiboot_lists, mmap),
        .boot_loader_name = BOOT_LISTS_BASE + offsetof(struct multiboot_lists, loader_name),
    };
    int err;

    fill_lists(&lists, facts);
    if (facts->initrd) {
        info.flags |= MULTIBOOT_INFO_MODULES;
        info.mods_count = 1;
        info.mods_addr = BOOT_LISTS_BASE + offsetof(struct multiboot_lists, module);
    }
    err = memory_write(mem, BOOT_LISTS_BASE, &lists, sizeof(lists));
    return err ? err : memory_write(mem, BOOT_INFO_BASE, &info, sizeof(info));
}
