/*
 * What the files of the interpreter share: memory by way of kept translations, and the functions that
 * its table names. For vmm/x86/interpret*.c only. The vCPU's thread.
 */
#ifndef FERRY_X86_INTERPRET_INTERNAL_H
#define FERRY_X86_INTERPRET_INTERNAL_H

#include "vmm/x86/emulate_internal.h"
#include "vmm/x86/interpret.h"

#define X86_PAGE 4096u
#define X86_ARITHMETIC                                                                             \
    (X86_FLAG_CF | X86_FLAG_PF | X86_FLAG_AF | X86_FLAG_ZF | X86_FLAG_SF | X86_FLAG_OF)

/* Left to KVM: nothing has been changed. */
#define X86_LEFT X86_EMU_UNKNOWN

static inline struct x86_interpreter *x86_interpreter_of(struct x86_emu *emu)
{
    return (struct x86_interpreter *)emu; /* its first member */
}

/* Register by its number in instructions; kvm_regs has another order. */
static inline uint64_t *x86_reg(struct x86_emu *emu, unsigned index)
{
    static const uint8_t places[16] = {0, 2, 3, 1, 6, 7, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15};

    return (uint64_t *)&emu->regs + places[index & 15];
}

/* The bytes of the operand: `detail` of its row, or as prefixes say. */
static inline unsigned x86_width(const struct x86_insn *insn)
{
    return insn->op->detail & X86_DETAIL_SIZE ? 1 : insn->size;
}

/* Numbers wherever they stand in guest memory. */
typedef uint16_t __attribute__((aligned(1), may_alias)) x86_u16;
typedef uint32_t __attribute__((aligned(1), may_alias)) x86_u32;
typedef uint64_t __attribute__((aligned(1), may_alias)) x86_u64;

/* One access of 1, 2, 4 or 8 bytes. */
static inline uint64_t x86_get_at(const void *at, unsigned n)
{
    switch (n) {
    case 1: return *(const volatile uint8_t *)at;
    case 2: return *(const volatile x86_u16 *)at;
    case 4: return *(const volatile x86_u32 *)at;
    default: return *(const volatile x86_u64 *)at;
    }
}

static inline void x86_put_at(void *at, unsigned n, uint64_t value)
{
    switch (n) {
    case 1: *(volatile uint8_t *)at = (uint8_t)value; break;
    case 2: *(volatile x86_u16 *)at = (uint16_t)value; break;
    case 4: *(volatile x86_u32 *)at = (uint32_t)value; break;
    default: *(volatile x86_u64 *)at = value; break;
    }
}

/* Where n bytes at linear are, within a page; NULL: elsewhere than in RAM, denied, or across pages.
 * The way stays valid until the next look-up. */
const struct x86_way *x86_way(struct x86_interpreter *in, uint64_t linear, unsigned n,
                              enum x86_access access);
/* Up to 8 bytes, across pages as well. X86_EMU_DONE or X86_LEFT. */
int x86_load(struct x86_interpreter *in, uint64_t linear, unsigned n, uint64_t *value);
int x86_store(struct x86_interpreter *in, uint64_t linear, unsigned n, uint64_t value);
/* For an instruction that reads and writes in place, within a cache line. */
int x86_update(struct x86_interpreter *in, uint64_t linear, unsigned n, void **at, gpa_t *gpa);

uint64_t x86_offset(struct x86_emu *emu, const struct x86_insn *insn); /* within its segment */
uint64_t x86_linear(struct x86_emu *emu, const struct x86_insn *insn);
int x86_operand_load(struct x86_emu *emu, const struct x86_insn *insn, unsigned n, uint64_t *value);
int x86_operand_store(struct x86_emu *emu, const struct x86_insn *insn, unsigned n, uint64_t value);

bool x86_condition(uint64_t rflags, unsigned code);

extern const struct x86_op x86_interpreted[];

/* interpret_integer.c */
x86_execute x86_in_alu, x86_in_group1, x86_in_test, x86_in_group3, x86_in_incdec, x86_in_shift,
    x86_in_double_shift, x86_in_imul, x86_in_bit, x86_in_scan, x86_in_xadd, x86_in_cmpxchg,
    x86_in_cmpxchg8b, x86_in_xchg, x86_in_bswap, x86_in_setcc, x86_in_cmov, x86_in_extend;
/* interpret_move.c */
x86_execute x86_in_mov, x86_in_mov_imm, x86_in_mov_wide, x86_in_lea, x86_in_movx, x86_in_movnti,
    x86_in_push, x86_in_push_imm, x86_in_push_rm, x86_in_pop, x86_in_pop_rm, x86_in_leave, x86_in_xchg_rax,
    x86_in_jcc, x86_in_jmp, x86_in_jrcxz, x86_in_call, x86_in_jmp_rm, x86_in_call_rm, x86_in_ret,
    x86_in_string, x86_in_flags, x86_in_nop, x86_in_fence, x86_in_from_segment;
/* interpret_system.c */
x86_execute x86_in_pushf, x86_in_popf, x86_in_cli, x86_in_sti, x86_in_ac, x86_in_swapgs,
    x86_in_from_cr, x86_in_to_cr, x86_in_invlpg, x86_in_rdtsc, x86_in_wrmsr, x86_in_rdmsr,
    x86_in_iret, x86_in_sysret, x86_in_hlt;

#endif
