/*
 * Kernel loading: a kernel file, an initrd and a command line in; guest memory filled and the state
 * in which the first vCPU enters out. Knows nothing of KVM.
 *
 * Use: kernel_open() once, which finds out the format and checks all that can be checked without
 * memory; then, at start and again after each reset, the table builder (acpi_build()) and
 * kernel_load(). The files stay open in between, so a reboot loads the same files.
 *
 * Errors are logged once, here, by one line naming the file. One thread at a time per image.
 */
#ifndef FERRY_FIRMWARE_KERNEL_H
#define FERRY_FIRMWARE_KERNEL_H

#include <stdbool.h>
#include <stdint.h>

#include "firmware/tables.h"
#include "vmm/memory.h"

enum kernel_format { KERNEL_BZIMAGE, KERNEL_ELF64_PVH, KERNEL_ELF64, KERNEL_MULTIBOOT };

/* Who decompresses a bzImage. AUTO: the host, if it knows the compression: that is the quicker. */
enum decompress_mode { DECOMPRESS_AUTO, DECOMPRESS_HOST, DECOMPRESS_GUEST };

struct boot_config {
    const char *kernel_path;
    const char *initrd_path; /* or NULL */
    const char *cmdline;     /* or NULL, as "" */
    const char *linux_options; /* put before it if the kernel is a Linux, but for those whose names
                                * it has itself; or NULL */
    enum decompress_mode decompress;
};

/*
 * How the first vCPU enters. In each mode RFLAGS is 2 (interrupts off), A20 is on, and the segment
 * registers are flat, with the selectors below, which are those of the GDT at boot_entry.gdt.
 *
 * BOOT_LONG64      Linux's 64-bit protocol (boot.rst, "64-bit Boot Protocol"): long mode, CR0.PE
 *                  and PG, CR4.PAE, EFER.LME and LMA, CR3 = page_tables, CS 64-bit; RSI = info
 *                  (boot_params).
 * BOOT_PVH32       PVH (Xen, docs/misc/pvh.pandoc): 32-bit protected mode, paging off, CR0 = PE,
 *                  CR4 = 0; EBX = info (hvm_start_info).
 * BOOT_MULTIBOOT32 Multiboot 0.6.96 §3.2: as PVH32; EBX = info, EAX = BOOT_MULTIBOOT_MAGIC.
 */
enum boot_mode { BOOT_LONG64, BOOT_PVH32, BOOT_MULTIBOOT32 };

#define BOOT_SELECTOR_CS 0x10  /* boot.rst: __BOOT_CS */
#define BOOT_SELECTOR_DS 0x18  /* boot.rst: __BOOT_DS; for DS, ES, SS (FS, GS too) */
#define BOOT_SELECTOR_TSS 0x20 /* a busy 32/64-bit TSS, base 0, limit 0x67 */
#define BOOT_MULTIBOOT_MAGIC 0x2BADB002u

struct boot_entry {
    enum boot_mode mode;
    gpa_t entry;       /* RIP */
    gpa_t info;        /* see boot_mode */
    gpa_t page_tables; /* CR3: maps 0..4 GiB or more one to one; BOOT_LONG64 only, else 0 */
    gpa_t gdt;         /* GDTR base; valid in each mode */
    uint16_t gdt_limit;
};

struct kernel_image;

/*
 * Opens and checks. *out is owned by the caller. config and its strings are copied.
 * Errors, each logged: -ENOEXEC (not a kernel, or one that this machine cannot run), -ENODATA (a
 * file is empty or truncated), -E2BIG (the command line is longer than the kernel takes), -EINVAL
 * (headers that contradict themselves; not a regular file), -ENOTSUP (the host is to decompress,
 * and does not know the format), -ENOMEM, and those of open(2) and read(2).
 */
int kernel_open(struct kernel_image **out, const struct boot_config *config);
void kernel_close(struct kernel_image *image);

enum kernel_format kernel_format(const struct kernel_image *image);

/*
 * Fills guest memory with kernel, initrd, boot structures. tables says where the firmware's tables
 * are, NULL when there are none. Memory need not be clear, but what was in it stays.
 * Errors, each logged: -ENOMEM (kernel or initrd do not fit the guest's memory, or the host has
 * none left), -ENODATA (a file shrank, or the compressed kernel ends early), -EBADMSG (the
 * compressed kernel is corrupt), -EOVERFLOW (it is longer than it states), -EINVAL and -ENOEXEC as
 * above, of the kernel inside, and those of read(2).
 */
int kernel_load(const struct kernel_image *image, struct guest_memory *mem,
                const struct firmware_tables *tables, struct boot_entry *out);

#endif
