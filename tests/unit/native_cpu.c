/* See the header. */
#include "tests/unit/native_cpu.h"

#include <string.h>

/* What the assembly below knows by offset. */
_Static_assert(offsetof(struct native_cpu, rflags) == 128, "where the assembly looks for it");
_Static_assert(offsetof(struct native_cpu, xstate) == 136, "where the assembly looks for it");
_Static_assert(offsetof(struct kvm_regs, r15) == 15 * 8, "kvm_regs' order");

void native_cpu_enter(struct native_cpu *state, const void *code);
extern char native_cpu_return[];

/* Loads all but RSP, jumps to the code, which jumps back to native_cpu_return. */
__asm__(".pushsection .text\n"
        ".globl native_cpu_enter, native_cpu_return\n"
        "native_cpu_enter:\n"
        "  push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
        "  mov %rdi, native_state(%rip); mov %rsi, native_code(%rip)\n"
        "  mov 136(%rdi), %rcx; jrcxz 1f\n"
        "  mov $7, %eax; xor %edx, %edx; xrstor64 (%rcx)\n"
        "1: push 128(%rdi); popfq\n"
        "  mov 0(%rdi), %rax; mov 8(%rdi), %rbx; mov 16(%rdi), %rcx; mov 24(%rdi), %rdx\n"
        "  mov 32(%rdi), %rsi; mov 56(%rdi), %rbp\n"
        "  mov 64(%rdi), %r8; mov 72(%rdi), %r9; mov 80(%rdi), %r10; mov 88(%rdi), %r11\n"
        "  mov 96(%rdi), %r12; mov 104(%rdi), %r13; mov 112(%rdi), %r14; mov 120(%rdi), %r15\n"
        "  mov 40(%rdi), %rdi\n"
        "  jmp *native_code(%rip)\n"
        "native_cpu_return:\n"
        "  mov %rdi, native_rdi(%rip); mov native_state(%rip), %rdi\n"
        "  mov %rax, 0(%rdi); mov %rbx, 8(%rdi); mov %rcx, 16(%rdi); mov %rdx, 24(%rdi)\n"
        "  mov %rsi, 32(%rdi); mov %rbp, 56(%rdi)\n"
        "  mov %r8, 64(%rdi); mov %r9, 72(%rdi); mov %r10, 80(%rdi); mov %r11, 88(%rdi)\n"
        "  mov %r12, 96(%rdi); mov %r13, 104(%rdi); mov %r14, 112(%rdi); mov %r15, 120(%rdi)\n"
        "  pushfq; pop 128(%rdi)\n"
        "  mov native_rdi(%rip), %rax; mov %rax, 40(%rdi)\n"
        "  cld\n"
        "  mov 136(%rdi), %rcx; jrcxz 2f\n"
        "  mov $7, %eax; xor %edx, %edx; xsave64 (%rcx); fninit\n"
        "2: pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
        "  ret\n"
        ".popsection\n"
        ".pushsection .bss\n"
        "native_state: .skip 8\n"
        "native_code: .skip 8\n"
        "native_rdi: .skip 8\n"
        ".popsection\n");

void native_cpu_run(struct native_cpu *state, struct emulated_cpu *cpu, const void *bytes, size_t n)
{
    static const uint8_t jump[] = {0xFF, 0x25, 0, 0, 0, 0}; /* to what stands behind it */
    const char *back = native_cpu_return;
    uint8_t *code = cpu->memory + CPU_CODE;

    memcpy(code, bytes, n);
    memcpy(code + n, jump, sizeof(jump));
    memcpy(code + n + sizeof(jump), &back, sizeof(back));
    native_cpu_enter(state, code);
}
