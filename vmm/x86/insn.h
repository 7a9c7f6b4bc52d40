/*
 * The decoder: bytes in, one instruction described out. Pure; any thread.
 *
 * It knows the instructions of one table (insn_table.c), which are those that KVM's emulators leave
 * out and operating systems execute. Text: Intel SDM volume 2, chapter 2 and appendix A.
 */
#ifndef FERRY_X86_INSN_H
#define FERRY_X86_INSN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define X86_INSN_MAX 15 /* bytes; SDM volume 2A §2.3.11 */

enum x86_code_size { X86_CODE16, X86_CODE32, X86_CODE64 };

enum x86_map { X86_MAP_ONE, X86_MAP_0F, X86_MAP_0F38, X86_MAP_0F3A };

/* The prefix that chooses among instructions of one opcode. */
enum x86_pp { X86_PP_NONE, X86_PP_66, X86_PP_F3, X86_PP_F2, X86_PP_ANY };

enum x86_segment { X86_ES, X86_CS, X86_SS, X86_DS, X86_FS, X86_GS };

struct x86_insn;
struct x86_emu;

/* One row of the table. */
struct x86_op {
    const char *name;
    /* X86_EMU_*, as an int: emulate.h includes this header. */
    int (*execute)(struct x86_emu *emu, const struct x86_insn *insn);
    uint8_t map, opcode, pp;
    uint8_t form;    /* X86_FORM_* */
    uint8_t reg;     /* ModRM.reg that it takes, or X86_ANY */
    uint8_t rm;      /* ModRM.rm that it takes (register form), or X86_ANY */
    uint8_t imm;     /* bytes of immediate; X86_IMM_Z: 2 or 4 by operand size, X86_IMM_V: or 8 */
    uint16_t detail; /* for execute: sizes and the like */
};
#define X86_ANY 0xFF
#define X86_IMM_Z 0xFE
#define X86_IMM_V 0xFD /* 2, 4 or 8 */

#define X86_FORM_MODRM (1u << 0)
#define X86_FORM_MEM (1u << 1)   /* only with a memory operand */
#define X86_FORM_REG (1u << 2)   /* only with a register operand */
#define X86_FORM_VEX (1u << 3)   /* the VEX encoding; without it the legacy one */
#define X86_FORM_LOW3 (1u << 4)  /* the opcode's low three bits name a register */
#define X86_FORM_LOCK (1u << 5)  /* may be locked, with a memory operand */
#define X86_FORM_W0 (1u << 6)    /* only with W clear */
#define X86_FORM_W1 (1u << 7)    /* only with W set */

struct x86_insn {
    const struct x86_op *op;
    uint8_t length; /* bytes */
    uint8_t size;   /* of an integer operand, in bytes: 2, 4 or 8 */
    uint8_t address_size; /* 2, 4 or 8 */
    uint8_t stack_size;   /* of PUSH and POP */
    bool lock, vex, rex, w, l; /* l: 256-bit vectors */
    uint8_t pp;
    uint8_t vvvv; /* VEX's second source */
    uint8_t opcode;

    bool memory;    /* a memory operand, else rm names a register */
    uint8_t reg, rm; /* with their REX or VEX bits */
    /* The memory operand. */
    int8_t base, index; /* general registers; -1: none */
    uint8_t scale;      /* 1, 2, 4 or 8 */
    bool rip_relative;
    uint8_t segment; /* enum x86_segment */
    int64_t displacement;

    uint64_t immediate; /* sign-extended */
};

/*
 * 0; -EAGAIN when the n bytes end within the instruction; -ENOSYS when the table has none such;
 * -E2BIG when it would be longer than an instruction may be; -EINVAL when it is one of the table's
 * with a LOCK it may not have. *out is defined only for 0.
 */
int x86_decode(const uint8_t *bytes, size_t n, enum x86_code_size code, struct x86_insn *out);
/* The same by another table. */
int x86_decode_by(const struct x86_op *ops, const uint8_t *bytes, size_t n,
                  enum x86_code_size code, struct x86_insn *out);

/* The rows, most particular first among those of one opcode; ends with a NULL name. */
extern const struct x86_op x86_ops[];

#endif
