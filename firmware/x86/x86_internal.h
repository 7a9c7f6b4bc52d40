/*
 * What the x86 loaders share: the places of boot data in low memory, the memory map, one function a
 * format. Not for users of kernel.h.
 *
 * Kernels load at 1 MiB and above, boot data below the EBDA, so the two never meet.
 */
#ifndef FERRY_FIRMWARE_X86_INTERNAL_H
#define FERRY_FIRMWARE_X86_INTERNAL_H

#include <stdint.h>

#include "firmware/kernel_internal.h"
#include "firmware/tables.h"
#include "vmm/memory.h"
#include "vmm/x86/platform.h"

/* The first pages stay free: real-mode vectors, BIOS data area, and a null pointer's page. */
#define BOOT_INFO_BASE 0x1000ull  /* boot_params, hvm_start_info or Multiboot information */
#define BOOT_LISTS_BASE 0x2000ull /* what the information points to */
#define BOOT_LISTS_END 0x3000ull
#define BOOT_GDT_BASE 0x3000ull
#define BOOT_CMDLINE_BASE 0x10000ull
#define BOOT_CMDLINE_MAX 0xFFFFull /* bytes without the final NUL */
#define BOOT_PML4_BASE 0x20000ull
#define BOOT_PDPT_BASE 0x21000ull
#define BOOT_PD_BASE 0x22000ull /* one page a GiB */
#define BOOT_PD_END 0x9F000ull
#define BOOT_MAPPED_MAX (((BOOT_PD_END - BOOT_PD_BASE) >> 12) * GIB)
#define BOOT_MAPPED_MIN (4 * GIB)

#define BOOT_KERNEL_MIN 0x100000ull

_Static_assert(BOOT_CMDLINE_BASE + BOOT_CMDLINE_MAX < BOOT_PML4_BASE, "the command line fits");
_Static_assert(BOOT_PD_END <= PLATFORM_EBDA_BASE, "boot data end below the EBDA");

/* The types of INT 15h E820h (ACPI 6.4 §15.1), which PVH and Multiboot use too. */
enum memmap_type { MEMMAP_RAM = 1, MEMMAP_RESERVED = 2, MEMMAP_ACPI = 3 };

struct memmap_entry {
    gpa_t base;
    uint64_t size;
    enum memmap_type type;
};

#define MEMMAP_MAX 16

struct memmap {
    unsigned n;
    struct memmap_entry entry[MEMMAP_MAX]; /* by rising address, without overlap */
};

/* What a format's information structure is made from. */
struct boot_facts {
    struct memmap memmap;
    gpa_t cmdline;
    uint64_t cmdline_length; /* without the NUL */
    gpa_t initrd;            /* 0: none */
    uint64_t initrd_size;
    gpa_t rsdp;              /* 0: none */
    uint64_t low_ram_end;    /* of the RAM that begins at 0 */
    bool moved;              /* the kernel runs at a virtual address drawn by lot */
};

/* ---- memmap.c ---- */
void memmap_build(const struct guest_memory *mem, const struct firmware_tables *tables,
                  struct memmap *out);

/* ---- elf.c ---- */
struct elf_facts {
    bool is_64;
    bool has_pvh_entry;
    gpa_t pvh_entry;
    uint16_t machine;
};
/* Reads headers and notes; fills the plan's segments and entry (not its format). Logged. */
int elf_parse(const struct kernel_source *source, struct kernel_plan *plan,
              struct elf_facts *facts);
/* -ENOEXEC, logged, unless it is a 64-bit one. */
int elf_check_64(const struct kernel_source *source, const struct elf_facts *facts);
/* -ENOEXEC, logged, unless the plan's entry is in a segment. */
int elf_check_entry(const struct kernel_source *source, const struct kernel_plan *plan);

/* ---- bzimage.c ---- */
bool bzimage_detect(const struct kernel_image *image);
int bzimage_probe(struct kernel_image *image);
uint64_t bzimage_cmdline_max(const struct kernel_image *image);
/* The highest address, exclusive, that the initrd's last byte may have below 4 GiB; and whether it
 * may lie above. */
uint64_t bzimage_initrd_end(const struct kernel_image *image, bool *above_4g);

/* Where the kernel is linked to be, the memory it takes there, and by which step it may be moved; all
 * in bytes, as the file says. */
struct kaslr_kernel;
void bzimage_placement(const struct kernel_image *image, struct kaslr_kernel *out);

/* ---- kaslr.c ---- */
/* A Linux kernel unpacked into memory of ours, with a checked plan of its ELF. */
struct kaslr_kernel {
    uint8_t *bytes;
    uint64_t size;
    const struct kernel_plan *plan;
    uint64_t base;
    uint64_t room;
    uint64_t alignment;
};
/* Whether the command line lacks the word nokaslr. */
bool kaslr_is_wanted(const char *cmdline);
/* Moves the kernel up by *distance bytes of virtual addresses, chosen by `random`. False, and nothing
 * is changed, when it cannot be moved: it was built without the lists that takes. */
bool kaslr_apply(const struct kaslr_kernel *kernel, uint64_t random, uint64_t *distance);

/* ---- linux_params.c ---- */
/* head: the bzImage's beginning, for its setup header; NULL: a kernel without one. */
int linux_params_write(struct guest_memory *mem, const struct boot_facts *facts,
                       const uint8_t *head);

/* ---- pvh.c ---- */
int pvh_info_write(struct guest_memory *mem, const struct boot_facts *facts);

/* ---- multiboot.c ---- */
bool multiboot_detect(const struct kernel_image *image, uint32_t *header_offset);
int multiboot_probe(struct kernel_image *image, uint32_t header_offset);
int multiboot_info_write(struct guest_memory *mem, const struct boot_facts *facts);

#endif
