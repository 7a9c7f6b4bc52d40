/*
 * Instructions on general registers and flags: bit counts, CRC, byte swaps, the 16-byte compare and
 * exchange, ADX, BMI; and the few with which handlers begin.
 *
 * Undefined flags are left as the processors of AMD and Intel agree, or cleared. The vCPU's thread.
 * Texts: Intel SDM volume 2, each instruction's page; volume 3A §8.1.2.2 (LOCK).
 */
#include "vmm/x86/emulate_internal.h"

#define HIGHEST(size) (1ull << (8 * (size) - 1))

int x86_do_popcnt(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t value;
    enum x86_emu_result result = x86_rm_read(emu, insn, insn->size, &value);

    if (result != X86_EMU_DONE)
        return result;
    x86_gpr_write(emu, insn, insn->reg, insn->size, (uint64_t)__builtin_popcountll(value));
    x86_set_flags(emu, value ? 0 : X86_FLAG_ZF);
    return X86_EMU_DONE;
}

static int count_zeros(struct x86_emu *emu, const struct x86_insn *insn, bool leading)
{
    unsigned bits = 8u * insn->size, count;
    uint64_t value, flags = emu->regs.rflags & ~(X86_FLAG_CF | X86_FLAG_ZF);
    enum x86_emu_result result = x86_rm_read(emu, insn, insn->size, &value);

    if (result != X86_EMU_DONE)
        return result;
    if (value == 0)
        count = bits;
    else if (leading)
        count = (unsigned)__builtin_clzll(value) - (64 - bits);
    else
        count = (unsigned)__builtin_ctzll(value);
    x86_gpr_write(emu, insn, insn->reg, insn->size, count);
    if (value == 0)
        flags |= X86_FLAG_CF;
    if (count == 0)
        flags |= X86_FLAG_ZF;
    x86_set_flags(emu, flags);
    return X86_EMU_DONE;
}

int x86_do_lzcnt(struct x86_emu *emu, const struct x86_insn *insn)
{
    return count_zeros(emu, insn, true);
}

int x86_do_tzcnt(struct x86_emu *emu, const struct x86_insn *insn)
{
    return count_zeros(emu, insn, false);
}

/* Polynomial 0x11EDC6F41, bits reflected. F0 takes a byte, F1 a word to a quadword. */
int x86_do_crc32(struct x86_emu *emu, const struct x86_insn *insn)
{
    unsigned size = insn->opcode == 0xF0 ? 1 : insn->size;
    uint32_t crc = (uint32_t)*x86_gpr(emu, insn->reg);
    uint64_t value;
    enum x86_emu_result result = x86_rm_read(emu, insn, size, &value);

    if (result != X86_EMU_DONE)
        return result;
    for (unsigned i = 0; i < 8 * size; i++) {
        bool out = (crc ^ value) & 1;

        crc = crc >> 1 ^ (out ? 0x82F63B78u : 0);
        value >>= 1;
    }
    *x86_gpr(emu, insn->reg) = crc;
    return X86_EMU_DONE;
}

static uint64_t swap_bytes(uint64_t value, unsigned size)
{
    return __builtin_bswap64(value) >> (64 - 8 * size);
}

int x86_do_movbe_load(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t value;
    enum x86_emu_result result = x86_rm_read(emu, insn, insn->size, &value);

    if (result == X86_EMU_DONE)
        x86_gpr_write(emu, insn, insn->reg, insn->size, swap_bytes(value, insn->size));
    return result;
}

int x86_do_movbe_store(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t value = x86_gpr_read(emu, insn, insn->reg, insn->size);

    return x86_rm_write(emu, insn, insn->size, swap_bytes(value, insn->size));
}

/* By the host's own instruction on guest memory: atomic among all vCPUs, and always as with LOCK. */
static bool compare_exchange(void *at, uint64_t expected[2], const uint64_t wanted[2])
{
    bool same;

    __asm__ volatile("lock cmpxchg16b %1"
                     : "=@ccz"(same), "+m"(*(unsigned __int128 *)at), "+a"(expected[0]),
                       "+d"(expected[1])
                     : "b"(wanted[0]), "c"(wanted[1])
                     : "memory");
    return same;
}

int x86_do_cmpxchg16b(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t expected[2] = {emu->regs.rax, emu->regs.rdx};
    const uint64_t wanted[2] = {emu->regs.rbx, emu->regs.rcx};
    uint64_t linear;
    gpa_t gpa;
    void *at;
    enum x86_emu_result result = x86_operand(emu, insn, 16, true, &linear);

    if (result == X86_EMU_DONE && linear & 15)
        result = x86_raise_code(emu, X86_VECTOR_GP, 0);
    if (result == X86_EMU_DONE)
        result = x86_emu_map(emu, linear, 16, &at, &gpa);
    if (result != X86_EMU_DONE)
        return result;
    if (compare_exchange(at, expected, wanted)) {
        memory_mark_dirty(emu->mem, gpa, 16);
        emu->regs.rflags |= X86_FLAG_ZF;
        return X86_EMU_DONE;
    }
    emu->regs.rax = expected[0];
    emu->regs.rdx = expected[1];
    emu->regs.rflags &= ~X86_FLAG_ZF;
    return X86_EMU_DONE;
}

/* ADCX carries by CF, ADOX by OF; no other flag takes part. */
int x86_do_adx(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t flag = insn->pp == X86_PP_66 ? X86_FLAG_CF : X86_FLAG_OF;
    uint64_t carry = emu->regs.rflags & flag ? 1 : 0, value;
    unsigned size = insn->w ? 8 : 4;
    uint64_t sum, own = x86_gpr_read(emu, insn, insn->reg, size);
    enum x86_emu_result result = x86_rm_read(emu, insn, size, &value);
    bool over;

    if (result != X86_EMU_DONE)
        return result;
    if (size == 8) {
        over = __builtin_add_overflow(own, value, &sum);
        over |= __builtin_add_overflow(sum, carry, &sum);
    } else {
        sum = own + value + carry;
        over = sum >> 32;
    }
    x86_gpr_write(emu, insn, insn->reg, size, sum);
    emu->regs.rflags = (emu->regs.rflags & ~flag) | (over ? flag : 0);
    return X86_EMU_DONE;
}

/* ---- BMI1 and BMI2: 4 or 8 bytes, by VEX.W ---- */

static uint64_t sign_zero(uint64_t value, unsigned size)
{
    return (value ? 0 : X86_FLAG_ZF) | (value & HIGHEST(size) ? X86_FLAG_SF : 0);
}

int x86_do_andn(struct x86_emu *emu, const struct x86_insn *insn)
{
    unsigned size = insn->w ? 8 : 4;
    uint64_t value;
    enum x86_emu_result result = x86_rm_read(emu, insn, size, &value);

    if (result != X86_EMU_DONE)
        return result;
    value &= ~x86_gpr_read(emu, insn, insn->vvvv, size);
    x86_gpr_write(emu, insn, insn->reg, size, value);
    x86_set_flags(emu, sign_zero(value, size));
    return X86_EMU_DONE;
}

/* SHLX, SHRX, SARX: no flags. */
int x86_do_bmi_shift(struct x86_emu *emu, const struct x86_insn *insn)
{
    unsigned size = insn->w ? 8 : 4;
    uint64_t value;
    enum x86_emu_result result = x86_rm_read(emu, insn, size, &value);
    unsigned count = x86_gpr_read(emu, insn, insn->vvvv, size) & (8 * size - 1);

    if (result != X86_EMU_DONE)
        return result;
    if (insn->pp == X86_PP_66)
        value <<= count;
    else if (insn->pp == X86_PP_F2)
        value >>= count;
    else
        value = (uint64_t)((size == 8 ? (int64_t)value : (int32_t)value) >> count);
    x86_gpr_write(emu, insn, insn->reg, size, value);
    return X86_EMU_DONE;
}

int x86_do_rorx(struct x86_emu *emu, const struct x86_insn *insn)
{
    unsigned size = insn->w ? 8 : 4, bits = 8 * size;
    unsigned count = insn->immediate & (bits - 1);
    uint64_t value;
    enum x86_emu_result result = x86_rm_read(emu, insn, size, &value);

    if (result != X86_EMU_DONE)
        return result;
    if (count)
        value = value >> count | value << (bits - count);
    x86_gpr_write(emu, insn, insn->reg, size, value);
    return X86_EMU_DONE;
}

int x86_do_mulx(struct x86_emu *emu, const struct x86_insn *insn)
{
    unsigned size = insn->w ? 8 : 4;
    uint64_t value;
    enum x86_emu_result result = x86_rm_read(emu, insn, size, &value);
    unsigned __int128 product = (unsigned __int128)x86_gpr_read(emu, insn, 2, size) * value;

    if (result != X86_EMU_DONE)
        return result;
    /* The high half is written last: it stays where both name one register. */
    x86_gpr_write(emu, insn, insn->vvvv, size, (uint64_t)product);
    x86_gpr_write(emu, insn, insn->reg, size, (uint64_t)(product >> (8 * size)));
    return X86_EMU_DONE;
}

/* BLSR, BLSMSK, BLSI, by ModRM.reg; the destination is vvvv. */
int x86_do_bls(struct x86_emu *emu, const struct x86_insn *insn)
{
    unsigned size = insn->w ? 8 : 4;
    uint64_t mask = size == 8 ? UINT64_MAX : UINT32_MAX, value, out, flags;
    enum x86_emu_result result = x86_rm_read(emu, insn, size, &value);

    if (result != X86_EMU_DONE)
        return result;
    switch (insn->reg & 7) {
    case 1:
        out = value & (value - 1);
        break;
    case 2:
        out = value ^ (value - 1);
        break;
    default:
        out = value & -value;
        break;
    }
    out &= mask;
    flags = (insn->reg & 7) == 2 ? sign_zero(out, size) & X86_FLAG_SF : sign_zero(out, size);
    if ((insn->reg & 7) == 3 ? value != 0 : value == 0)
        flags |= X86_FLAG_CF;
    x86_gpr_write(emu, insn, insn->vvvv, size, out);
    x86_set_flags(emu, flags);
    return X86_EMU_DONE;
}

int x86_do_bextr(struct x86_emu *emu, const struct x86_insn *insn)
{
    unsigned size = insn->w ? 8 : 4, bits = 8 * size;
    uint64_t control = x86_gpr_read(emu, insn, insn->vvvv, size), value;
    unsigned start = control & 0xFF, length = control >> 8 & 0xFF;
    enum x86_emu_result result = x86_rm_read(emu, insn, size, &value);

    if (result != X86_EMU_DONE)
        return result;
    value = start < bits ? value >> start : 0;
    if (length < bits)
        value &= (1ull << length) - 1;
    x86_gpr_write(emu, insn, insn->reg, size, value);
    x86_set_flags(emu, value ? 0 : X86_FLAG_ZF);
    return X86_EMU_DONE;
}

/* BZHI: zero from a bit on; CF when there is none such. */
int x86_do_bzhi(struct x86_emu *emu, const struct x86_insn *insn)
{
    unsigned size = insn->w ? 8 : 4, bits = 8 * size;
    uint64_t index = x86_gpr_read(emu, insn, insn->vvvv, size) & 0xFF, value, flags;
    enum x86_emu_result result = x86_rm_read(emu, insn, size, &value);

    if (result != X86_EMU_DONE)
        return result;
    if (index < bits)
        value &= (1ull << index) - 1;
    flags = (value ? 0 : X86_FLAG_ZF) | (value >> (bits - 1) ? X86_FLAG_SF : 0);
    x86_gpr_write(emu, insn, insn->reg, size, value);
    x86_set_flags(emu, flags | (index < bits ? 0 : X86_FLAG_CF));
    return X86_EMU_DONE;
}

/* ---- what a handler may begin with ---- */

int x86_do_nop(struct x86_emu *emu, const struct x86_insn *insn)
{
    (void)emu;
    (void)insn;
    return X86_EMU_DONE;
}

/* CLD, STD */
int x86_do_direction(struct x86_emu *emu, const struct x86_insn *insn)
{
    if (insn->opcode == 0xFD)
        emu->regs.rflags |= X86_FLAG_DF;
    else
        emu->regs.rflags &= ~X86_FLAG_DF;
    return X86_EMU_DONE;
}

/* PUSH of a register, in 64-bit mode: elsewhere KVM does not leave it out. */
int x86_do_push(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t value = x86_gpr_read(emu, insn, insn->rm, insn->stack_size);
    uint64_t to = emu->regs.rsp - insn->stack_size;
    enum x86_emu_result result;

    if (!x86_long_mode(emu))
        return X86_EMU_UNKNOWN;
    result = x86_emu_write(emu, to, &value, insn->stack_size, X86_WRITE);
    if (result == X86_EMU_DONE)
        emu->regs.rsp = to;
    return result;
}
