/*
 * Entry of a payload guest, gates between its privilege levels, and its trap stubs.
 *
 * The PVH entry (Xen docs/misc/pvh, "x86/HVM direct boot ABI") arrives in 32-bit protected mode
 * with paging off and EBX at the start info. From there: long mode with prebuilt page tables that
 * map the first 4 GiB one to one for user and supervisor alike, a TSS and an IDT, and IRETQ to
 * CPL 3, where all C code runs. Application processors come the same way from real mode by the
 * trampoline, which smp.c copies to TRAMPOLINE.
 *
 * Why CPL 3: a KVM without hardware help (kvm-pvm) runs 64-bit code at CPL 3 natively and emulates
 * everything else at about 2 MIPS. What was found there, and what this file stands on:
 *  - IRETQ to CPL 3 works, as do LTR, LGDT, LIDT, moves to control registers, WRMSR and RDMSR,
 *    HLT at CPL 0, and MMIO to the local APIC from CPL 3;
 *  - IOPL does not survive the way to CPL 3 (the processor itself runs with IOPL 0 there), so that
 *    `cli` and `sti` fault, and ports open only by the I/O permission bitmap of the TSS;
 *  - RFLAGS.IF of the frame that IRETQ takes does hold at CPL 3, though PUSHF shows it always set:
 *    interrupts are switched by changing that frame at CPL 0;
 *  - `syscall` and `int n` at CPL 3 do not work, but an exception is delivered through the IDT as
 *    on hardware: `ud2` at a known address is therefore the call gate to CPL 0 (cpl0_call);
 *  - CPUID at CPL 0 gives what the VMM has set, at CPL 3 the host's own values;
 *  - the CPL-0 emulator refuses cmpxchg16b, xsave, clac, int3, int n, fwait, ldmxcsr, popcnt and
 *    SSE. None of these may stand in this file nor in C that runs at CPL 0; the build compiles
 *    all C with -mgeneral-regs-only for the baseline x86-64, which has none.
 *
 * Not done here: no NX, no SSE, no guard pages; a payload that overruns a stack breaks itself.
 * Thread: each processor on its own stack; the only shared write is the counter of processors.
 */
#include "layout.h"

#define CR0_VALUE  0x80010033 /* PG, WP, NE, ET, MP, PE */
#define CR4_VALUE  0x20       /* PAE */
#define EFER_LME   0x100
#define RFLAGS_USER 0x2       /* interrupts off, IOPL 0: ports are opened by the bitmap */
#define COM1       0x3F8
#define IO_BITMAP_SIZE 8192

    /* XEN_ELFNOTE_PHYS32_ENTRY */
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad entry32

    .section .text.start, "ax", @progbits
    .code32
    .globl entry32
    .type entry32, @function
entry32:
    cld
    movl %ebx, boot_start_info
    movl $early_text, %esi
    testl %esi, %esi
    jz 2f
    movl $COM1, %edx
1:  lodsb
    testb %al, %al
    jz 2f
    outb %al, %dx
    jmp 1b
2:  xorl %edi, %edi
    jmp enter_long_mode

    /* Every processor: EDI is its index. */
    .globl enter_long_mode
enter_long_mode:
    movl $page_map_4, %eax
    movl %eax, %cr3
    movl $CR4_VALUE, %eax
    movl %eax, %cr4
    movl $MSR_EFER, %ecx
    rdmsr
    orl $EFER_LME, %eax
    wrmsr
    lgdt gdt_pointer
    movl $CR0_VALUE, %eax
    movl %eax, %cr0
    ljmp $CODE64_SELECTOR, $entry64

    .code64
entry64:
    movl $DATA_SELECTOR, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs

    /* The trap stack's top goes to RSP0 of this processor's TSS. */
    leal 1(%rdi), %eax
    imull $TRAP_STACK_SIZE, %eax, %eax
    leaq trap_stacks(%rax), %rsp
    imull $TSS_SIZE, %edi, %ebx
    addl $tss_area, %ebx
    movq %rsp, 4(%rbx)
    movl $io_bitmap, %eax
    subl %ebx, %eax
    movw %ax, 102(%rbx)
    addl $IO_BITMAP_SIZE, %eax

    /* Its descriptor: base in EBX, which is below 4 GiB; the limit takes the bitmap in. */
    movl %edi, %ecx
    shll $4, %ecx
    leaq gdt + TSS_SELECTOR(%rcx), %rdx
    movw %ax, (%rdx)
    movw %bx, 2(%rdx)
    shrl $16, %ebx
    movb %bl, 4(%rdx)
    movb $0x89, 5(%rdx)
    movb $0, 6(%rdx)
    movb %bh, 7(%rdx)
    movq $0, 8(%rdx)
    addl $TSS_SELECTOR, %ecx
    ltr %cx
    lidt idt_pointer

    /* GS finds this processor's struct cpu at both levels. */
    movl %edi, %eax
    imull $CPU_AREA_SIZE, %eax, %eax
    addl $cpu_areas, %eax
    xorl %edx, %edx
    movl $MSR_GS_BASE, %ecx
    wrmsr

    leal 1(%rdi), %eax
    imull $USER_STACK_SIZE, %eax, %eax
    leaq user_stacks(%rax), %rax
    pushq $USER_DATA_SELECTOR
    pushq %rax
    pushq $RFLAGS_USER
    pushq $USER_CODE_SELECTOR
    pushq $entry_user
    iretq

entry_user:
    xorl %ebp, %ebp
    call cpu_start
    ud2

/*
 * uint64_t cpl0_call(uint64_t (*function)(void *), void *argument): runs function at CPL 0 with
 * interrupts off, on the trap stack, and returns what it returns. At CPL 0 it is a plain call.
 */
    .text
    .globl cpl0_call
    .type cpl0_call, @function
cpl0_call:
    movq %rdi, %rax
    movq %rsi, %rdi
    movl %cs, %edx
    testb $3, %dl
    jnz cpl0_gate
    jmp *%rax
cpl0_gate:
    ud2
    ret

    .balign 16
invalid_opcode:
    cmpq $cpl0_gate, (%rsp)
    jne invalid_opcode_other
    addq $2, (%rsp)
    movq %rsp, %rsi
    subq $8, %rsp
    call *%rax
    addq $8, %rsp
    iretq
invalid_opcode_other:
    pushq $0
    pushq $6
    jmp trap_common

/*
 * One stub a vector, 16 bytes apart. The frame they leave is struct trap_frame (cpu.h); registers
 * that a C function preserves are not in it, which keeps the emulated part short.
 */
    .balign 16
    .globl trap_stubs
trap_stubs:
    .set number, 0
    .rept VECTORS
    .balign 16
    .if number == 6
    jmp invalid_opcode
    .else
    .if !(number == 8 || (number >= 10 && number <= 14) || number == 17 || number == 21)
    pushq $0
    .endif
    pushq $number
    jmp trap_common
    .endif
    .set number, number + 1
    .endr

    .balign 16
trap_common:
    pushq %r11
    pushq %r10
    pushq %r9
    pushq %r8
    pushq %rdi
    pushq %rsi
    pushq %rdx
    pushq %rcx
    pushq %rax
    movq %rsp, %rdi
    cld
    call trap_dispatch
    popq %rax
    popq %rcx
    popq %rdx
    popq %rsi
    popq %rdi
    popq %r8
    popq %r9
    popq %r10
    popq %r11
    addq $16, %rsp
    iretq

/*
 * The trampoline, copied to TRAMPOLINE: real mode with CS = TRAMPOLINE >> 4. Takes the next index
 * and joins the way of the first processor. A processor past MAX_CPUS stops here.
 */
    .section .rodata
    .globl trampoline, trampoline_end
    .balign 16
    .code16
trampoline:
    cli
    movw $(TRAMPOLINE >> 4), %ax
    movw %ax, %ds
    lgdtl trampoline_gdt - trampoline
    movl $0x11, %eax
    movl %eax, %cr0
    ljmpl $CODE32_SELECTOR, $trampoline32
    .balign 8
trampoline_gdt:
    .word gdt_end - gdt - 1
    .long gdt
trampoline_end:

    .text
    .code32
trampoline32:
    movl $DATA_SELECTOR, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $1, %edi
    lock xaddl %edi, cpus_started
    cmpl $MAX_CPUS, %edi
    jb enter_long_mode
1:  hlt
    jmp 1b

    .data
    .balign 16
    .globl gdt
gdt:
    .quad 0
    .quad 0x00CF9B000000FFFF /* 32-bit code */
    .quad 0x00AF9B000000FFFF /* 64-bit code */
    .quad 0x00CF93000000FFFF /* data */
    .quad 0x00CFF3000000FFFF /* user data */
    .quad 0x00AFFB000000FFFF /* user 64-bit code */
    .fill MAX_CPUS * 2, 8, 0 /* TSS descriptors */
gdt_end:
    .balign 8
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
    .balign 8
idt_pointer:
    .word VECTORS * 16 - 1
    .quad idt

    .globl cpus_started
    .balign 4
cpus_started:
    .long 1

/*
 * Page tables: 2-MiB pages, present, writable, user, accessed, dirty; uncached from 3 GiB on.
 * memory.c adds the directories above 4 GiB, running natively.
 */
    .balign 4096
    .globl page_map_4, page_pointers
page_map_4:
    .quad page_pointers + 0x27
    .fill 511, 8, 0
page_pointers:
    .quad page_directories + 0x27
    .quad page_directories + 0x1027
    .quad page_directories + 0x2027
    .quad page_directories + 0x3027
    .fill 508, 8, 0
page_directories:
    .set number, 0
    .rept 2048
    .if number < 1536
    .quad (number << 21) + 0xE7
    .else
    .quad (number << 21) + 0xFF
    .endif
    .set number, number + 1
    .endr

    .bss
    .balign 4096
    .globl idt, cpu_areas, boot_start_info
idt:
    .skip VECTORS * 16
trap_stacks:
    .skip MAX_CPUS * TRAP_STACK_SIZE
user_stacks:
    .skip MAX_CPUS * USER_STACK_SIZE
    .balign 64
cpu_areas:
    .skip MAX_CPUS * CPU_AREA_SIZE
tss_area:
    .skip MAX_CPUS * TSS_SIZE
io_bitmap: /* of every processor: all ports open */
    .skip IO_BITMAP_SIZE
    .skip 1 /* read together with the last byte, Intel SDM volume 1, 19.5.2 */
    .balign 8
boot_start_info:
    .skip 8

    .weak early_text
    .section .note.GNU-stack, "", @progbits
