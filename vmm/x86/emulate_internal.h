/*
 * What the files of the emulation share: operands, faults, and the functions that the table of
 * instructions names. For vmm/x86/emulate*.c and insn_table.c only. The vCPU's thread.
 */
#ifndef FERRY_X86_EMULATE_INTERNAL_H
#define FERRY_X86_EMULATE_INTERNAL_H

#include "vmm/x86/emulate.h"

/* Each returns X86_EMU_FAULT, with emu->fault filled. */
enum x86_emu_result x86_raise(struct x86_emu *emu, uint8_t vector);
enum x86_emu_result x86_raise_code(struct x86_emu *emu, uint8_t vector, uint32_t error);

bool x86_long_mode(const struct x86_emu *emu); /* 64-bit code */
bool x86_canonical(const struct x86_emu *emu, uint64_t linear);

/* General register 0 (RAX) to 15, in the numbering of instructions. */
uint64_t *x86_gpr(struct x86_emu *emu, unsigned index);
/* Of 1 (with AH to BH where no REX stands), 2, 4 or 8 bytes; a write of 4 clears the upper half. */
uint64_t x86_gpr_read(struct x86_emu *emu, const struct x86_insn *insn, unsigned index,
                      unsigned size);
void x86_gpr_write(struct x86_emu *emu, const struct x86_insn *insn, unsigned index, unsigned size,
                   uint64_t value);
/* Sets the arithmetic flags (CF PF AF ZF SF OF) to `flags`, of which the others are 0. */
void x86_set_flags(struct x86_emu *emu, uint64_t flags);

/* The linear address of n bytes of the memory operand, checked against segment and canonical form. */
enum x86_emu_result x86_operand(struct x86_emu *emu, const struct x86_insn *insn, size_t n,
                                bool write, uint64_t *linear);
/* The operand, register or memory, of `size` bytes up to 8. */
enum x86_emu_result x86_rm_read(struct x86_emu *emu, const struct x86_insn *insn, unsigned size,
                                uint64_t *value);
enum x86_emu_result x86_rm_write(struct x86_emu *emu, const struct x86_insn *insn, unsigned size,
                                 uint64_t value);
/* The memory operand, n bytes. align: of its address, or #GP; 1: any. */
enum x86_emu_result x86_memory_read(struct x86_emu *emu, const struct x86_insn *insn, void *to,
                                    size_t n, unsigned align);
enum x86_emu_result x86_memory_write(struct x86_emu *emu, const struct x86_insn *insn,
                                     const void *from, size_t n, unsigned align);

/* Whether an instruction of this kind may run now (#UD, #NM), with emu->xstate loaded. */
enum x86_unit { X86_UNIT_X87, X86_UNIT_SSE, X86_UNIT_AVX, X86_UNIT_XSAVE };
enum x86_emu_result x86_use(struct x86_emu *emu, enum x86_unit unit);

/* Says that components of the extended state were written (XSTATE_BV's bits). */
#define X86_XSTATE_X87 1u
#define X86_XSTATE_SSE 2u
#define X86_XSTATE_AVX 4u
void x86_xstate_touched(struct x86_emu *emu, uint64_t components);
#define X86_XSTATE_MXCSR 24u /* offsets in the legacy region; SDM volume 1, table 10-2 */
#define X86_XSTATE_FCW 0u
#define X86_XSTATE_FSW 2u
#define X86_XSTATE_FTW 4u
#define X86_XSTATE_ST 32u
#define X86_XSTATE_XMM 160u
#define X86_XSTATE_BV 512u /* the header */
#define X86_XCOMP_BV 520u
#define X86_XSTATE_EXTENDED 576u

/* ---- what the table names ---- */
typedef int x86_execute(struct x86_emu *emu, const struct x86_insn *insn);

/* emulate_integer.c */
x86_execute x86_do_popcnt, x86_do_lzcnt, x86_do_tzcnt, x86_do_crc32, x86_do_movbe_load,
    x86_do_movbe_store, x86_do_cmpxchg16b, x86_do_adx, x86_do_andn, x86_do_bmi_shift,
    x86_do_rorx, x86_do_mulx, x86_do_bls, x86_do_bextr, x86_do_bzhi, x86_do_nop,
    x86_do_direction, x86_do_push;
/* emulate_system.c */
x86_execute x86_do_int3, x86_do_int1, x86_do_int, x86_do_ac, x86_do_xgetbv, x86_do_rdtscp,
    x86_do_rdpid, x86_do_invpcid, x86_do_fsgsbase, x86_do_lar_lsl, x86_do_verr_verw,
    x86_do_monitor, x86_do_mwait, x86_do_cache_line, x86_do_undefined;
/* emulate_fpu.c */
x86_execute x86_do_fwait, x86_do_fnclex, x86_do_fninit, x86_do_emms, x86_do_fnstsw_ax,
    x86_do_fnstsw, x86_do_fnstcw, x86_do_fldcw, x86_do_fild, x86_do_ldmxcsr, x86_do_stmxcsr,
    x86_do_fxsave, x86_do_fxrstor, x86_do_xsave, x86_do_xsavec, x86_do_xrstor, x86_do_xrstors;

/* emulate_vector.c */
x86_execute x86_do_vector, x86_do_vector_load, x86_do_vector_store, x86_do_vector_from_general,
    x86_do_vector_to_general, x86_do_vector_mask, x86_do_vector_zero, x86_do_vector_extract,
    x86_do_vector_insert, x86_do_vector_shift, x86_do_vector_shift_by;

/* ---- `detail` of rows ---- */
#define X86_DETAIL_SIZE 0xFFu     /* bytes of the operand, or of a vector's elements */
#define X86_DETAIL_ALIGNED 0x100u /* a move's memory operand must be */
#define X86_DETAIL_OPERATION 8    /* from this bit on: one of */
enum x86_vector_operation {
    X86_VECTOR_ADD,
    X86_VECTOR_SUB,
    X86_VECTOR_AND,
    X86_VECTOR_ANDN,
    X86_VECTOR_OR,
    X86_VECTOR_XOR,
    X86_VECTOR_EQUAL,
    X86_VECTOR_GREATER,
    X86_VECTOR_MULTIPLY,      /* the low half of the product */
    X86_VECTOR_MULTIPLY_HALF, /* of the low halves, wholly */
    X86_VECTOR_SHIFT_LEFT,
    X86_VECTOR_SHIFT_RIGHT,
    X86_VECTOR_SHIFT_ARITHMETIC,
    X86_VECTOR_UNPACK_LOW,
    X86_VECTOR_UNPACK_HIGH,
    X86_VECTOR_PACK_SIGNED,
    X86_VECTOR_PACK_UNSIGNED,
    X86_VECTOR_SHUFFLE8, /* this and what follows: by one byte of immediate, or bytes of a vector */
    X86_VECTOR_SHUFFLE32,
    X86_VECTOR_SHUFFLE_LOW16,
    X86_VECTOR_SHUFFLE_HIGH16,
    X86_VECTOR_SHUFFLE_PS,
    X86_VECTOR_ALIGN,
};

#endif
