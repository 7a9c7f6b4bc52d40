/*
 * The x86 Linux boot protocol's structures: the setup header in a bzImage and boot_params, the
 * "zero page". Only what is read or written here has a name.
 *
 * Texts: Linux, Documentation/arch/x86/boot.rst (protocol 2.15) and zero-page.rst.
 */
#ifndef FERRY_FIRMWARE_X86_LINUX_ABI_H
#define FERRY_FIRMWARE_X86_LINUX_ABI_H

#include <stddef.h>
#include <stdint.h>

#define LINUX_SETUP_OFFSET 0x1F1     /* of the header, in the file and in boot_params */
#define LINUX_SETUP_END_BYTE 0x201   /* the header ends at 0x202 plus the byte here */
#define LINUX_SETUP_END_BASE 0x202
#define LINUX_BOOT_FLAG 0xAA55
#define LINUX_HEADER_MAGIC 0x53726448u /* "HdrS" */
#define LINUX_PROTOCOL_64 0x020C       /* the first version with xloadflags */
#define LINUX_LOADER_UNDEFINED 0xFF
#define LINUX_LOADED_HIGH 0x01         /* loadflags */
#define LINUX_KASLR_FLAG 0x02          /* loadflags, between who unpacks the kernel and the kernel */
#define LINUX_XLF_KERNEL_64 0x0001     /* xloadflags */
#define LINUX_XLF_CAN_BE_LOADED_ABOVE_4G 0x0002
#define LINUX_ENTRY_64 0x200           /* from the load address */
#define LINUX_SECTOR 512
#define LINUX_VIDEO_MODE_NORMAL 0xFFFF
#define LINUX_E820_MAX 128

struct linux_setup_header {
    uint8_t setup_sects;
    uint16_t root_flags;
    uint32_t syssize; /* of 16 bytes */
    uint16_t ram_size;
    uint16_t vid_mode;
    uint16_t root_dev;
    uint16_t boot_flag;
    uint16_t jump;
    uint32_t header;
    uint16_t version;
    uint32_t realmode_switch;
    uint16_t start_sys_seg;
    uint16_t kernel_version;
    uint8_t type_of_loader;
    uint8_t loadflags;
    uint16_t setup_move_size;
    uint32_t code32_start;
    uint32_t ramdisk_image;
    uint32_t ramdisk_size;
    uint32_t bootsect_kludge;
    uint16_t heap_end_ptr;
    uint8_t ext_loader_ver;
    uint8_t ext_loader_type;
    uint32_t cmd_line_ptr;
    uint32_t initrd_addr_max;
    uint32_t kernel_alignment;
    uint8_t relocatable_kernel;
    uint8_t min_alignment;
    uint16_t xloadflags;
    uint32_t cmdline_size;
    uint32_t hardware_subarch;
    uint64_t hardware_subarch_data;
    uint32_t payload_offset;
    uint32_t payload_length;
    uint64_t setup_data;
    uint64_t pref_address;
    uint32_t init_size;
    uint32_t handover_offset;
    uint32_t kernel_info_offset;
} __attribute__((packed));

_Static_assert(offsetof(struct linux_setup_header, header) == 0x202 - 0x1F1, "boot.rst");
_Static_assert(offsetof(struct linux_setup_header, initrd_addr_max) == 0x22C - 0x1F1, "boot.rst");
_Static_assert(offsetof(struct linux_setup_header, payload_offset) == 0x248 - 0x1F1, "boot.rst");
_Static_assert(offsetof(struct linux_setup_header, init_size) == 0x260 - 0x1F1, "boot.rst");
_Static_assert(sizeof(struct linux_setup_header) == 0x26C - 0x1F1, "boot.rst");

/* What a kernel of protocol 2.12 has at least: all up to handover_offset. */
#define LINUX_SETUP_END_MIN                                                                        \
    (LINUX_SETUP_OFFSET + offsetof(struct linux_setup_header, handover_offset))

struct linux_e820_entry {
    uint64_t addr;
    uint64_t size;
    uint32_t type;
} __attribute__((packed));

struct linux_boot_params {
    uint8_t screen_info[0x70];
    uint64_t acpi_rsdp_addr;
    uint8_t unused0[0x0C0 - 0x078];
    uint32_t ext_ramdisk_image;
    uint32_t ext_ramdisk_size;
    uint32_t ext_cmd_line_ptr;
    uint8_t unused1[0x1E8 - 0x0CC];
    uint8_t e820_entries;
    uint8_t unused2[0x1EF - 0x1E9];
    uint8_t sentinel; /* 0: the loader has cleared all it did not set */
    uint8_t unused3;
    struct linux_setup_header hdr;
    uint8_t unused4[0x2D0 - 0x26C];
    struct linux_e820_entry e820_table[LINUX_E820_MAX];
    uint8_t unused5[0x1000 - 0xCD0];
} __attribute__((packed));

_Static_assert(offsetof(struct linux_boot_params, acpi_rsdp_addr) == 0x070, "zero-page.rst");
_Static_assert(offsetof(struct linux_boot_params, ext_ramdisk_image) == 0x0C0, "zero-page.rst");
_Static_assert(offsetof(struct linux_boot_params, e820_entries) == 0x1E8, "zero-page.rst");
_Static_assert(offsetof(struct linux_boot_params, hdr) == LINUX_SETUP_OFFSET, "zero-page.rst");
_Static_assert(offsetof(struct linux_boot_params, e820_table) == 0x2D0, "zero-page.rst");
_Static_assert(sizeof(struct linux_boot_params) == 4096, "zero-page.rst");

#endif
