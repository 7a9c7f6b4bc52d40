/*
 * The interpreter's arithmetic: each operation is the host processor's own, so that its flags, also
 * those that are undefined, are what this processor makes of them.
 *
 * The vCPU's thread. Texts: Intel SDM volume 2, each instruction's page; volume 3A §8.1.2 (LOCK).
 */
#include "vmm/x86/interpret_internal.h"

/* CF before, by BT; the flags after, by LAHF (SF ZF AF PF CF) and SETO. */
#define FLAGS_BEFORE "bt $0, %k[before]\n\t"
#define FLAGS_AFTER "\n\tlahf\n\tseto %%al"

static uint64_t collect(uint16_t ax)
{
    return (uint64_t)(ax >> 8 & 0xD5) | (uint64_t)(ax & 1) << 11;
}

typedef uint64_t binary(uint64_t a, uint64_t b, uint64_t *flags);

#define OPERATION(name, text, type, bits, mod, where_b)                                            \
    static uint64_t name##bits(uint64_t a, uint64_t b, uint64_t *flags)                            \
    {                                                                                              \
        type x = (type)a;                                                                          \
        uint16_t ax;                                                                               \
                                                                                                   \
        __asm__(FLAGS_BEFORE text ", %" mod "[x]" FLAGS_AFTER                                      \
                : [ax] "=&a"(ax), [x] "+r"(x)                                                      \
                : [b] where_b((type)b), [before] "r"((uint32_t)*flags)                             \
                : "cc");                                                                           \
        *flags = collect(ax);                                                                      \
        return x;                                                                                  \
    }
#define BINARY_OF(name, text, type, bits, mod)                                                     \
    OPERATION(name, text " %" mod "[b]", type, bits, mod, "r")
#define BINARY(name, text)                                                                         \
    BINARY_OF(name, text, uint8_t, 8, "b")                                                         \
    BINARY_OF(name, text, uint16_t, 16, "w")                                                       \
    BINARY_OF(name, text, uint32_t, 32, "k")                                                       \
    BINARY_OF(name, text, uint64_t, 64, "q")

/* The count in CL, which is never 0 here. */
#define SHIFT(name, text)                                                                          \
    OPERATION(name, text " %b[b]", uint8_t, 8, "b", "c")                                           \
    OPERATION(name, text " %b[b]", uint16_t, 16, "w", "c")                                         \
    OPERATION(name, text " %b[b]", uint32_t, 32, "k", "c")                                         \
    OPERATION(name, text " %b[b]", uint64_t, 64, "q", "c")

BINARY(do_add, "add")
BINARY(do_or, "or")
BINARY(do_adc, "adc")
BINARY(do_sbb, "sbb")
BINARY(do_and, "and")
BINARY(do_sub, "sub")
BINARY(do_xor, "xor")
SHIFT(do_rol, "rol")
SHIFT(do_ror, "ror")
SHIFT(do_rcl, "rcl")
SHIFT(do_rcr, "rcr")
SHIFT(do_shl, "shl")
SHIFT(do_shr, "shr")
SHIFT(do_sar, "sar")
BINARY_OF(do_imul, "imul", uint16_t, 16, "w")
BINARY_OF(do_imul, "imul", uint32_t, 32, "k")
BINARY_OF(do_imul, "imul", uint64_t, 64, "q")

#define BY_WIDTH(name) {name##8, name##16, name##32, name##64}
enum { ALU_ADD, ALU_OR, ALU_ADC, ALU_SBB, ALU_AND, ALU_SUB, ALU_XOR, ALU_CMP };
static binary *const alu[8][4] = {
    BY_WIDTH(do_add), BY_WIDTH(do_or), BY_WIDTH(do_adc), BY_WIDTH(do_sbb),
    BY_WIDTH(do_and), BY_WIDTH(do_sub), BY_WIDTH(do_xor), BY_WIDTH(do_sub),
};
static binary *const shifts[8][4] = {
    BY_WIDTH(do_rol), BY_WIDTH(do_ror), BY_WIDTH(do_rcl), BY_WIDTH(do_rcr),
    BY_WIDTH(do_shl), BY_WIDTH(do_shr), BY_WIDTH(do_shl), BY_WIDTH(do_sar),
};

static unsigned log_of(unsigned width)
{
    return (unsigned)__builtin_ctz(width);
}

/* One exchange if memory still is *expected, else *expected is what it is. Locked. */
static bool exchange_if(void *at, unsigned n, uint64_t *expected, uint64_t wanted)
{
    bool same;

    switch (n) {
    case 1:
        __asm__ volatile("lock cmpxchgb %b3, %1" : "=@ccz"(same), "+m"(*(uint8_t *)at),
                         "+a"(*(uint8_t *)expected) : "q"(wanted) : "memory");
        break;
    case 2:
        __asm__ volatile("lock cmpxchgw %w3, %1" : "=@ccz"(same), "+m"(*(x86_u16 *)at),
                         "+a"(*(uint16_t *)expected) : "r"(wanted) : "memory");
        break;
    case 4:
        __asm__ volatile("lock cmpxchgl %k3, %1" : "=@ccz"(same), "+m"(*(x86_u32 *)at),
                         "+a"(*(uint32_t *)expected) : "r"(wanted) : "memory");
        break;
    default:
        __asm__ volatile("lock cmpxchgq %q3, %1" : "=@ccz"(same), "+m"(*(x86_u64 *)at),
                         "+a"(*expected) : "r"(wanted) : "memory");
        break;
    }
    return same;
}

/* The operand, read, changed by `change`, written: in a register, in memory, in memory at once. */
static int modify(struct x86_emu *emu, const struct x86_insn *insn, unsigned n, binary *change,
                  uint64_t by, uint64_t *flags)
{
    struct x86_interpreter *in = x86_interpreter_of(emu);
    uint64_t old, new, after;
    void *at;
    gpa_t gpa;

    if (!insn->memory) {
        x86_gpr_write(emu, insn, insn->rm, n,
                      change(x86_gpr_read(emu, insn, insn->rm, n), by, flags));
        return X86_EMU_DONE;
    }
    if (x86_update(in, x86_linear(emu, insn), n, &at, &gpa) != X86_EMU_DONE)
        return X86_LEFT;
    old = x86_get_at(at, n);
    do {
        after = *flags;
        new = change(old, by, &after);
    } while (insn->lock && !exchange_if(at, n, &old, new));
    if (!insn->lock)
        x86_put_at(at, n, new);
    *flags = after;
    memory_mark_dirty(emu->mem, gpa, n);
    return X86_EMU_DONE;
}

/* 00 to 3D: the operation in bits 5:3, the operands' form in 2:0. */
int x86_in_alu(struct x86_emu *emu, const struct x86_insn *insn)
{
    unsigned n = x86_width(insn), op = insn->opcode >> 3 & 7, form = insn->opcode & 7;
    binary *change = alu[op][log_of(n)];
    uint64_t flags = emu->regs.rflags, value;
    int result = X86_EMU_DONE;

    if (form >= 4) {
        value = change(*x86_reg(emu, 0), insn->immediate, &flags);
        if (op != ALU_CMP)
            x86_gpr_write(emu, insn, 0, n, value);
    } else if (form >= 2 || op == ALU_CMP) {
        uint64_t reg = x86_gpr_read(emu, insn, insn->reg, n);

        result = x86_operand_load(emu, insn, n, &value);
        if (result != X86_EMU_DONE)
            return result;
        value = form >= 2 ? change(reg, value, &flags) : change(value, reg, &flags);
        if (op != ALU_CMP)
            x86_gpr_write(emu, insn, insn->reg, n, value);
    } else {
        result = modify(emu, insn, n, change, x86_gpr_read(emu, insn, insn->reg, n), &flags);
    }
    if (result == X86_EMU_DONE)
        x86_set_flags(emu, flags);
    return result;
}

int x86_in_group1(struct x86_emu *emu, const struct x86_insn *insn)
{
    unsigned n = x86_width(insn), op = insn->reg & 7;
    uint64_t flags = emu->regs.rflags, value;
    int result;

    if (op == ALU_CMP) {
        result = x86_operand_load(emu, insn, n, &value);
        if (result == X86_EMU_DONE)
            alu[op][log_of(n)](value, insn->immediate, &flags);
    } else {
        result = modify(emu, insn, n, alu[op][log_of(n)], insn->immediate, &flags);
    }
    if (result == X86_EMU_DONE)
        x86_set_flags(emu, flags);
    return result;
}

/* With a register, or an immediate (A8, A9 and F6, F7). */
int x86_in_test(struct x86_emu *emu, const struct x86_insn *insn)
{
    unsigned n = x86_width(insn);
    uint64_t flags = 0, value, with = insn->immediate;
    int result = X86_EMU_DONE;

    if (insn->opcode == 0xA8 || insn->opcode == 0xA9)
        value = *x86_reg(emu, 0);
    else
        result = x86_operand_load(emu, insn, n, &value);
    if (result != X86_EMU_DONE)
        return result;
    if (insn->opcode < 0xA0)
        with = x86_gpr_read(emu, insn, insn->reg, n);
    alu[ALU_AND][log_of(n)](value, with, &flags);
    x86_set_flags(emu, flags);
    return X86_EMU_DONE;
}

static uint64_t do_not(uint64_t a, uint64_t b, uint64_t *flags)
{
    (void)b;
    (void)flags;
    return ~a;
}

#define WIDE_OF(text, type, mod, low, high)                                                        \
    do {                                                                                           \
        type a = (type)low, d = (type)high;                                                        \
        uint8_t carry, overflow;                                                                   \
                                                                                                   \
        __asm__(text " %" mod "[by]\n\tsetc %[c]\n\tseto %[o]"                                     \
                : "+a"(a), "+d"(d), [c] "=&r"(carry), [o] "=&r"(overflow)                          \
                : [by] "r"((type)by)                                                               \
                : "cc");                                                                           \
        low = a, high = d;                                                                         \
        *flags = carry | (uint64_t)overflow << 11;                                                 \
    } while (0)

/* MUL and IMUL of two to eight bytes: high:low is the product. The flags that are undefined are left. */
static void multiply(unsigned n, bool is_signed, uint64_t *low, uint64_t *high, uint64_t by,
                     uint64_t *flags)
{
    uint64_t l = *low, h = 0;

    if (n == 2 && is_signed)
        WIDE_OF("imul", uint16_t, "w", l, h);
    else if (n == 2)
        WIDE_OF("mul", uint16_t, "w", l, h);
    else if (n == 4 && is_signed)
        WIDE_OF("imul", uint32_t, "k", l, h);
    else if (n == 4)
        WIDE_OF("mul", uint32_t, "k", l, h);
    else if (is_signed)
        WIDE_OF("imul", uint64_t, "q", l, h);
    else
        WIDE_OF("mul", uint64_t, "q", l, h);
    *low = l;
    *high = h;
}

static int multiply_rax(struct x86_emu *emu, const struct x86_insn *insn, unsigned n, uint64_t by)
{
    bool is_signed = (insn->reg & 7) == 5;
    uint64_t low = *x86_reg(emu, 0), high = 0, flags = 0;

    if (n == 1) {
        uint64_t product = is_signed ? (uint64_t)((int8_t)low * (int8_t)by)
                                     : (uint64_t)((uint8_t)low * (uint8_t)by);
        bool wide = is_signed ? (int16_t)product != (int8_t)product : (product & 0xFF00) != 0;

        x86_gpr_write(emu, insn, 0, 2, product);
        flags = wide ? X86_FLAG_CF | X86_FLAG_OF : 0;
    } else {
        multiply(n, is_signed, &low, &high, by, &flags);
        x86_gpr_write(emu, insn, 0, n, low);
        x86_gpr_write(emu, insn, 2, n, high);
    }
    emu->regs.rflags = (emu->regs.rflags & ~(X86_FLAG_CF | X86_FLAG_OF)) | flags;
    return X86_EMU_DONE;
}

static int64_t extended(uint64_t value, unsigned n)
{
    return (int64_t)(value << (64 - 8 * n)) >> (64 - 8 * n);
}

/* The quotient must fit, or it is #DE, which is KVM's to raise. */
static int divide_unsigned(struct x86_emu *emu, const struct x86_insn *insn, unsigned n, uint64_t by)
{
    uint64_t mask = n == 8 ? UINT64_MAX : (1ull << (8 * n)) - 1;
    unsigned __int128 dividend;

    if (by == 0)
        return X86_LEFT;
    dividend = n == 1 ? *x86_reg(emu, 0) & 0xFFFF
                      : (unsigned __int128)(*x86_reg(emu, 2) & mask) << (8 * n) |
                            (*x86_reg(emu, 0) & mask);
    if (dividend / by > mask)
        return X86_LEFT;
    if (n == 1) {
        x86_gpr_write(emu, insn, 0, 2, (uint64_t)(dividend % by) << 8 | (uint64_t)(dividend / by));
        return X86_EMU_DONE;
    }
    x86_gpr_write(emu, insn, 0, n, (uint64_t)(dividend / by));
    x86_gpr_write(emu, insn, 2, n, (uint64_t)(dividend % by));
    return X86_EMU_DONE;
}

/* Only those whose dividend is a sign-extended one of n bytes, as compilers have them. */
static int divide_signed(struct x86_emu *emu, const struct x86_insn *insn, unsigned n, uint64_t by)
{
    int64_t divisor = extended(by, n), low;

    if (n == 1)
        return X86_LEFT;
    low = extended(*x86_reg(emu, 0), n);
    if (divisor == 0 || extended(*x86_reg(emu, 2), n) != (low < 0 ? -1 : 0) ||
        (divisor == -1 && low == extended(1ull << (8 * n - 1), n)))
        return X86_LEFT;
    x86_gpr_write(emu, insn, 0, n, (uint64_t)(low / divisor));
    x86_gpr_write(emu, insn, 2, n, (uint64_t)(low % divisor));
    return X86_EMU_DONE;
}

/* F6, F7 from /2 on: NOT, NEG, MUL, IMUL, DIV, IDIV. Flags after a division are undefined: kept. */
int x86_in_group3(struct x86_emu *emu, const struct x86_insn *insn)
{
    unsigned n = x86_width(insn), op = insn->reg & 7;
    uint64_t flags = emu->regs.rflags, value;
    int result;

    if (op == 2)
        return modify(emu, insn, n, do_not, 0, &flags);
    if (op == 3) { /* 0 - x, which SUB has the wrong way round */
        if (insn->lock)
            return X86_LEFT;
        result = x86_operand_load(emu, insn, n, &value);
        if (result == X86_EMU_DONE)
            result = x86_operand_store(emu, insn, n, alu[ALU_SUB][log_of(n)](0, value, &flags));
        if (result == X86_EMU_DONE)
            x86_set_flags(emu, flags);
        return result;
    }
    result = x86_operand_load(emu, insn, n, &value);
    if (result != X86_EMU_DONE)
        return result;
    if (op <= 5)
        return multiply_rax(emu, insn, n, value);
    return op == 6 ? divide_unsigned(emu, insn, n, value) : divide_signed(emu, insn, n, value);
}

/* INC, DEC: ADD and SUB of 1, but CF stays. */
int x86_in_incdec(struct x86_emu *emu, const struct x86_insn *insn)
{
    unsigned n = x86_width(insn);
    uint64_t flags = emu->regs.rflags, carry = flags & X86_FLAG_CF;
    int result = modify(emu, insn, n, alu[insn->reg & 7 ? ALU_SUB : ALU_ADD][log_of(n)], 1, &flags);

    if (result == X86_EMU_DONE)
        x86_set_flags(emu, (flags & ~X86_FLAG_CF) | carry);
    return result;
}

static uint64_t unchanged(uint64_t a, uint64_t b, uint64_t *flags)
{
    (void)b;
    (void)flags;
    return a;
}

/* C0, C1 by an immediate; D0, D1 by 1; D2, D3 by CL. */
int x86_in_shift(struct x86_emu *emu, const struct x86_insn *insn)
{
    unsigned n = x86_width(insn), op = insn->reg & 7;
    uint64_t count = insn->opcode >= 0xD2   ? *x86_reg(emu, 1)
                     : insn->opcode >= 0xD0 ? 1
                                            : insn->immediate;
    uint64_t flags = emu->regs.rflags, kept = 0;
    int result;

    count &= n == 8 ? 63 : 31;
    if (count == 0) /* a register's upper half is cleared all the same */
        return modify(emu, insn, n, unchanged, 0, &flags);
    if (op < 4) /* the rotations change CF and OF only */
        kept = flags & (X86_FLAG_SF | X86_FLAG_ZF | X86_FLAG_AF | X86_FLAG_PF);
    result = modify(emu, insn, n, shifts[op][log_of(n)], count, &flags);
    if (result != X86_EMU_DONE)
        return result;
    if (op < 4)
        flags = (flags & (X86_FLAG_CF | X86_FLAG_OF)) | kept;
    x86_set_flags(emu, flags);
    return X86_EMU_DONE;
}

#define DOUBLE_OF(text, type, mod)                                                                 \
    do {                                                                                           \
        type x = (type)value;                                                                      \
                                                                                                   \
        __asm__(text " %%cl, %" mod "[from], %" mod "[x]" FLAGS_AFTER                              \
                : [ax] "=&a"(ax), [x] "+r"(x)                                                      \
                : [from] "r"((type)from), "c"((uint32_t)count)                                     \
                : "cc");                                                                           \
        value = x;                                                                                 \
    } while (0)

/* SHLD (A4, A5) and SHRD (AC, AD), of 4 and 8 bytes. */
int x86_in_double_shift(struct x86_emu *emu, const struct x86_insn *insn)
{
    unsigned n = insn->size;
    uint64_t count = insn->opcode & 1 ? *x86_reg(emu, 1) : insn->immediate;
    uint64_t from = x86_gpr_read(emu, insn, insn->reg, n), value;
    uint16_t ax = 0;
    int result;

    count &= n == 8 ? 63 : 31;
    if (n == 2)
        return X86_LEFT;
    result = x86_operand_load(emu, insn, n, &value);
    if (result != X86_EMU_DONE)
        return result;
    if (count != 0 && n == 4 && insn->opcode < 0xA8)
        DOUBLE_OF("shld", uint32_t, "k");
    else if (count != 0 && n == 4)
        DOUBLE_OF("shrd", uint32_t, "k");
    else if (count != 0 && insn->opcode < 0xA8)
        DOUBLE_OF("shld", uint64_t, "q");
    else if (count != 0)
        DOUBLE_OF("shrd", uint64_t, "q");
    result = x86_operand_store(emu, insn, n, value);
    if (result == X86_EMU_DONE && count != 0)
        x86_set_flags(emu, collect(ax));
    return result;
}

/* 0F AF, 69, 6B. */
int x86_in_imul(struct x86_emu *emu, const struct x86_insn *insn)
{
    static binary *const by_width[4] = {NULL, do_imul16, do_imul32, do_imul64};
    unsigned n = insn->size;
    uint64_t flags = emu->regs.rflags, value, by;
    int result = x86_operand_load(emu, insn, n, &value);

    if (result != X86_EMU_DONE)
        return result;
    by = insn->opcode == 0xAF ? x86_gpr_read(emu, insn, insn->reg, n) : insn->immediate;
    x86_gpr_write(emu, insn, insn->reg, n, by_width[log_of(n)](by, value, &flags));
    x86_set_flags(emu, flags);
    return X86_EMU_DONE;
}

static uint64_t bit_set(uint64_t a, uint64_t b, uint64_t *flags)
{
    (void)flags;
    return a | b;
}

static uint64_t bit_clear(uint64_t a, uint64_t b, uint64_t *flags)
{
    (void)flags;
    return a & ~b;
}

static uint64_t bit_invert(uint64_t a, uint64_t b, uint64_t *flags)
{
    (void)flags;
    return a ^ b;
}

/* The four by what changes. */
static binary *const bits[4] = {unchanged, bit_set, bit_clear, bit_invert};

/* In memory. A bit's number in a register reaches beyond the operand (SDM volume 2, BT). */
static int bit_in_memory(struct x86_emu *emu, const struct x86_insn *insn, unsigned op,
                         uint64_t number)
{
    struct x86_interpreter *in = x86_interpreter_of(emu);
    unsigned n = insn->size;
    uint64_t linear = x86_linear(emu, insn), old, bit, flags = 0;
    void *at;
    gpa_t gpa;

    if (insn->opcode != 0xBA)
        linear += (uint64_t)((extended(number, n) >> (log_of(n) + 3)) * (int64_t)n);
    bit = 1ull << (number & (8 * n - 1));
    if (op == 0) {
        if (x86_load(in, linear, n, &old) != X86_EMU_DONE)
            return X86_LEFT;
    } else {
        if (x86_update(in, linear, n, &at, &gpa) != X86_EMU_DONE)
            return X86_LEFT;
        old = x86_get_at(at, n);
        if (insn->lock)
            while (!exchange_if(at, n, &old, bits[op](old, bit, &flags)))
                ;
        else
            x86_put_at(at, n, bits[op](old, bit, &flags));
        memory_mark_dirty(emu->mem, gpa, n);
    }
    emu->regs.rflags = (emu->regs.rflags & ~X86_FLAG_CF) | !!(old & bit);
    return X86_EMU_DONE;
}

/* BT, BTS, BTR, BTC: by a register, and 0F BA /4 to /7 by an immediate. The other flags stay. */
int x86_in_bit(struct x86_emu *emu, const struct x86_insn *insn)
{
    unsigned n = insn->size;
    unsigned op = (insn->opcode == 0xBA ? insn->reg : insn->opcode >> 3) & 3;
    uint64_t number = insn->opcode == 0xBA ? insn->immediate : *x86_reg(emu, insn->reg);
    uint64_t bit = 1ull << (number & (8 * n - 1)), old, flags = 0;

    if (insn->memory)
        return bit_in_memory(emu, insn, op, number);
    old = x86_gpr_read(emu, insn, insn->rm, n);
    if (op != 0)
        x86_gpr_write(emu, insn, insn->rm, n, bits[op](old, bit, &flags));
    emu->regs.rflags = (emu->regs.rflags & ~X86_FLAG_CF) | !!(old & bit);
    return X86_EMU_DONE;
}

/* BSF, BSR: of 0, the destination stays as it is, all of it. */
int x86_in_scan(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t value, flags = emu->regs.rflags & ~X86_FLAG_ZF;
    int result = x86_operand_load(emu, insn, insn->size, &value);

    if (result != X86_EMU_DONE)
        return result;
    if (value == 0)
        flags |= X86_FLAG_ZF;
    else
        x86_gpr_write(emu, insn, insn->reg, insn->size,
                      insn->opcode == 0xBC ? (uint64_t)__builtin_ctzll(value)
                                           : 63 - (uint64_t)__builtin_clzll(value));
    x86_set_flags(emu, flags);
    return X86_EMU_DONE;
}

int x86_in_xadd(struct x86_emu *emu, const struct x86_insn *insn)
{
    unsigned n = x86_width(insn);
    uint64_t flags = emu->regs.rflags, by = x86_gpr_read(emu, insn, insn->reg, n), old, new;
    void *at;
    gpa_t gpa;

    if (!insn->memory)
        return X86_LEFT;
    if (x86_update(x86_interpreter_of(emu), x86_linear(emu, insn), n, &at, &gpa) != X86_EMU_DONE)
        return X86_LEFT;
    old = x86_get_at(at, n);
    do {
        new = alu[ALU_ADD][log_of(n)](old, by, &flags);
    } while (insn->lock && !exchange_if(at, n, &old, new));
    if (!insn->lock)
        x86_put_at(at, n, new);
    memory_mark_dirty(emu->mem, gpa, n);
    x86_gpr_write(emu, insn, insn->reg, n, old);
    x86_set_flags(emu, flags);
    return X86_EMU_DONE;
}

int x86_in_cmpxchg(struct x86_emu *emu, const struct x86_insn *insn)
{
    unsigned n = x86_width(insn);
    uint64_t rax = x86_gpr_read(emu, insn, 0, n), with = x86_gpr_read(emu, insn, insn->reg, n);
    uint64_t old = rax, flags = 0;
    void *at;
    gpa_t gpa;

    if (!insn->memory) {
        old = x86_gpr_read(emu, insn, insn->rm, n);
        if (old == rax) /* else a register of 4 bytes keeps its upper half, too */
            x86_gpr_write(emu, insn, insn->rm, n, with);
    } else {
        if (x86_update(x86_interpreter_of(emu), x86_linear(emu, insn), n, &at, &gpa) !=
            X86_EMU_DONE)
            return X86_LEFT;
        if (exchange_if(at, n, &old, with))
            memory_mark_dirty(emu->mem, gpa, n);
    }
    alu[ALU_CMP][log_of(n)](rax, old, &flags);
    if (old != rax)
        x86_gpr_write(emu, insn, 0, n, old);
    x86_set_flags(emu, flags);
    return X86_EMU_DONE;
}

int x86_in_cmpxchg8b(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t wanted = (uint32_t)*x86_reg(emu, 3) | *x86_reg(emu, 1) << 32;
    uint64_t old = (uint32_t)*x86_reg(emu, 0) | *x86_reg(emu, 2) << 32;
    void *at;
    gpa_t gpa;

    if (x86_update(x86_interpreter_of(emu), x86_linear(emu, insn), 8, &at, &gpa) != X86_EMU_DONE)
        return X86_LEFT;
    if (exchange_if(at, 8, &old, wanted)) {
        memory_mark_dirty(emu->mem, gpa, 8);
        emu->regs.rflags |= X86_FLAG_ZF;
        return X86_EMU_DONE;
    }
    emu->regs.rflags &= ~X86_FLAG_ZF;
    *x86_reg(emu, 0) = (uint32_t)old;
    *x86_reg(emu, 2) = old >> 32;
    return X86_EMU_DONE;
}

/* With memory it is always locked. */
int x86_in_xchg(struct x86_emu *emu, const struct x86_insn *insn)
{
    unsigned n = x86_width(insn);
    uint64_t reg = x86_gpr_read(emu, insn, insn->reg, n), old;
    void *at;
    gpa_t gpa;

    if (!insn->memory) {
        old = x86_gpr_read(emu, insn, insn->rm, n);
        x86_gpr_write(emu, insn, insn->rm, n, reg);
        x86_gpr_write(emu, insn, insn->reg, n, old);
        return X86_EMU_DONE;
    }
    if (x86_update(x86_interpreter_of(emu), x86_linear(emu, insn), n, &at, &gpa) != X86_EMU_DONE)
        return X86_LEFT;
    old = x86_get_at(at, n);
    while (!exchange_if(at, n, &old, reg))
        ;
    memory_mark_dirty(emu->mem, gpa, n);
    x86_gpr_write(emu, insn, insn->reg, n, old);
    return X86_EMU_DONE;
}

int x86_in_bswap(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t value = *x86_reg(emu, insn->rm);

    if (insn->size == 2)
        return X86_LEFT;
    *x86_reg(emu, insn->rm) =
        insn->size == 8 ? __builtin_bswap64(value) : __builtin_bswap32((uint32_t)value);
    return X86_EMU_DONE;
}

/* ---- conditions ---- */

bool x86_condition(uint64_t rflags, unsigned code)
{
    bool sign_differs = !(rflags & X86_FLAG_SF) != !(rflags & X86_FLAG_OF), holds = false;

    switch (code >> 1 & 7) {
    case 0: holds = rflags & X86_FLAG_OF; break;
    case 1: holds = rflags & X86_FLAG_CF; break;
    case 2: holds = rflags & X86_FLAG_ZF; break;
    case 3: holds = rflags & (X86_FLAG_CF | X86_FLAG_ZF); break;
    case 4: holds = rflags & X86_FLAG_SF; break;
    case 5: holds = rflags & X86_FLAG_PF; break;
    case 6: holds = sign_differs; break;
    case 7: holds = rflags & X86_FLAG_ZF || sign_differs; break;
    }
    return holds != (code & 1);
}

int x86_in_setcc(struct x86_emu *emu, const struct x86_insn *insn)
{
    return x86_operand_store(emu, insn, 1, x86_condition(emu->regs.rflags, insn->opcode));
}

/* The operand is read whether it is wanted or not; four bytes clear the upper half either way. */
int x86_in_cmov(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t value;
    int result = x86_operand_load(emu, insn, insn->size, &value);

    if (result != X86_EMU_DONE)
        return result;
    if (!x86_condition(emu->regs.rflags, insn->opcode))
        value = *x86_reg(emu, insn->reg);
    x86_gpr_write(emu, insn, insn->reg, insn->size, value);
    return X86_EMU_DONE;
}

/* 98: CBW, CWDE, CDQE. 99: CWD, CDQ, CQO. */
int x86_in_extend(struct x86_emu *emu, const struct x86_insn *insn)
{
    unsigned n = insn->size;

    if (insn->opcode == 0x98)
        x86_gpr_write(emu, insn, 0, n, (uint64_t)extended(*x86_reg(emu, 0), n / 2));
    else
        x86_gpr_write(emu, insn, 2, n, extended(*x86_reg(emu, 0), n) < 0 ? UINT64_MAX : 0);
    return X86_EMU_DONE;
}
