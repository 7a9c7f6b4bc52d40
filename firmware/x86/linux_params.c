/*
 * boot_params, the page by which the x86 Linux boot protocol tells the kernel of its machine.
 *
 * Does not load anything. Built in a local page, then copied to guest memory; no state.
 *
 * Texts: Linux, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol", and zero-page.rst.
 */
#include <string.h>

#include "firmware/x86/linux_abi.h"
#include "firmware/x86/x86_internal.h"

/* "the setup header ... should be loaded into boot_params": from the file, up to where it ends. */
static void copy_setup_header(struct linux_boot_params *params, const uint8_t *head)
{
    uint32_t end = LINUX_SETUP_END_BASE + head[LINUX_SETUP_END_BYTE];
    uint32_t most = offsetof(struct linux_boot_params, e820_table);

    if (end > most)
        end = most;
    memcpy((uint8_t *)params + LINUX_SETUP_OFFSET, head + LINUX_SETUP_OFFSET,
           end - LINUX_SETUP_OFFSET);
}

/* An ELF has no setup header: the least that makes Linux take the rest of the page for valid. */
static void make_setup_header(struct linux_setup_header *hdr)
{
    hdr->boot_flag = LINUX_BOOT_FLAG;
    hdr->header = LINUX_HEADER_MAGIC;
    hdr->version = LINUX_PROTOCOL_64;
    hdr->loadflags = LINUX_LOADED_HIGH;
    hdr->kernel_alignment = 0x1000000;
}

int linux_params_write(struct guest_memory *mem, const struct boot_facts *facts,
                       const uint8_t *head)
{
    struct linux_boot_params params = {0};

    if (head)
        copy_setup_header(&params, head);
    else
        make_setup_header(&params.hdr);
    params.hdr.type_of_loader = LINUX_LOADER_UNDEFINED;
    if (facts->moved)
        params.hdr.loadflags |= LINUX_KASLR_FLAG;
    params.hdr.vid_mode = LINUX_VIDEO_MODE_NORMAL;
    params.hdr.cmd_line_ptr = (uint32_t)facts->cmdline;
    params.ext_cmd_line_ptr = (uint32_t)(facts->cmdline >> 32);
    params.hdr.ramdisk_image = (uint32_t)facts->initrd;
    params.ext_ramdisk_image = (uint32_t)(facts->initrd >> 32);
    params.hdr.ramdisk_size = (uint32_t)facts->initrd_size;
    params.ext_ramdisk_size = (uint32_t)(facts->initrd_size >> 32);
    params.acpi_rsdp_addr = facts->rsdp;
    params.e820_entries = (uint8_t)facts->memmap.n;
    for (unsigned i = 0; i < facts->memmap.n; i++)
        params.e820_table[i] = (struct linux_e820_entry){
            .addr = facts->memmap.entry[i].base,
            .size = facts->memmap.entry[i].size,
            .type = facts->memmap.entry[i].type,
        };
    return memory_write(mem, BOOT_INFO_BASE, &params, sizeof(params));
}
