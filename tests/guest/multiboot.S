/*
 * Multiboot 1 header and entry of the 32-bit guest multiboot.c.
 *
 * Machine state at entry by Multiboot 0.6.96, 3.2: EAX the magic, EBX the information structure,
 * protected mode, paging off, no stack.
 */
#define MAGIC 0x1BADB002
#define FLAGS 0x3 /* modules on page boundaries, memory fields wanted */

    .section .text
    .balign 4
    .long MAGIC
    .long FLAGS
    .long -(MAGIC + FLAGS)

    .globl multiboot_entry
    .type multiboot_entry, @function
multiboot_entry:
    cld
    movl $stack_top, %esp
    pushl $0
    pushl $0
    pushl %ebx
    pushl %eax
    call multiboot_main
1:  hlt
    jmp 1b

    .bss
    .balign 16
    .skip 8192
stack_top:
    .section .note.GNU-stack, "", @progbits
