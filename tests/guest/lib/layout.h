/*
 * Selectors, sizes and offsets that the assembler and the C parts of the payload runtime share.
 */
#ifndef GUEST_LAYOUT_H
#define GUEST_LAYOUT_H

#define CODE32_SELECTOR 0x08
#define CODE64_SELECTOR 0x10
#define DATA_SELECTOR   0x18
#define USER_DATA_SELECTOR 0x23 /* 0x20, RPL 3 */
#define USER_CODE_SELECTOR 0x2B /* 0x28, RPL 3 */
#define TSS_SELECTOR    0x30    /* of processor 0; 16 bytes a processor */

#define MAX_CPUS        64
#define USER_STACK_SIZE 16384
#define TRAP_STACK_SIZE 8192
#define TSS_SIZE        104
#define CPU_AREA_SIZE   64      /* struct cpu */

/* The trampoline of application processors: a page of low memory, SIPI vector 0x08. */
#define TRAMPOLINE      0x8000

#define MSR_EFER        0xC0000080
#define MSR_GS_BASE     0xC0000101

#define VECTORS         256

#endif
