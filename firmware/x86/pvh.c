/*
 * hvm_start_info, by which a PVH kernel is told of its machine.
 *
 * Does not look for the entry note (elf.c does). Built in locals, then copied; no state.
 *
 * Texts: Xen, docs/misc/pvh.pandoc; xen/include/public/arch-x86/hvm/start_info.h, version 1.
 */
#include <stddef.h>
#include <string.h>

#include "firmware/x86/x86_internal.h"

#define PVH_MAGIC 0x336EC578u /* "xEn3", its top bit set */
#define PVH_VERSION 1         /* the first that has a memory map */

struct pvh_start_info {
    uint32_t magic;
    uint32_t version;
    uint32_t flags;
    uint32_t nr_modules;
    uint64_t modlist_paddr;
    uint64_t cmdline_paddr;
    uint64_t rsdp_paddr;
    uint64_t memmap_paddr;
    uint32_t memmap_entries;
    uint32_t reserved;
};

struct pvh_module {
    uint64_t paddr;
    uint64_t size;
    uint64_t cmdline_paddr;
    uint64_t reserved;
};

struct pvh_memmap_entry {
    uint64_t addr;
    uint64_t size;
    uint32_t type;
    uint32_t reserved;
};

_Static_assert(sizeof(struct pvh_start_info) == 56, "start_info.h");
_Static_assert(offsetof(struct pvh_start_info, memmap_paddr) == 40, "start_info.h");
_Static_assert(sizeof(struct pvh_module) == 32, "start_info.h");
_Static_assert(sizeof(struct pvh_memmap_entry) == 24, "start_info.h");

/* At BOOT_LISTS_BASE. */
struct pvh_lists {
    struct pvh_module module;
    struct pvh_memmap_entry memmap[MEMMAP_MAX];
};

_Static_assert(sizeof(struct pvh_lists) <= BOOT_LISTS_END - BOOT_LISTS_BASE, "they fit");

int pvh_info_write(struct guest_memory *mem, const struct boot_facts *facts)
{
    struct pvh_lists lists = {0};
    struct pvh_start_info info = {
        .magic = PVH_MAGIC,
        .version = PVH_VERSION,
        .cmdline_paddr = facts->cmdline,
        .rsdp_paddr = facts->rsdp,
        .memmap_paddr = BOOT_LISTS_BASE + offsetof(struct pvh_lists, memmap),
        .memmap_entries = facts->memmap.n,
    };
    int err;

    if (facts->initrd) {
        info.nr_modules = 1;
        info.modlist_paddr = BOOT_LISTS_BASE + offsetof(struct pvh_lists, module);
        lists.module.paddr = facts->initrd;
        lists.module.size = facts->initrd_size;
    }
    for (unsigned i = 0; i < facts->memmap.n; i++)
        lists.memmap[i] = (struct pvh_memmap_entry){
            .addr = facts->memmap.entry[i].base,
            .size = facts->memmap.entry[i].size,
            .type = facts->memmap.entry[i].type,
        };
    err = memory_write(mem, BOOT_LISTS_BASE, &lists, sizeof(lists));
    return err ? err : memory_write(mem, BOOT_INFO_BASE, &info, sizeof(info));
}
