/*
 * SSE and AVX: moves, and the arithmetic on packed integers that kernels do with them (random numbers'
 * BLAKE2s, RAID's XOR and syndromes, checksums, ciphers).
 *
 * Floating point, MMX, AVX-512 and the instructions for AES, SHA and carry-less products are not here:
 * Linux uses the last three only where CPUID has them, which the options for it deny (assist.c). A row's
 * detail names the operation and the width of its elements; the table has the SSE and the VEX form of
 * each. The vCPU's thread. Texts: Intel SDM volume 1 §10.4, §11.4 (SSE, SSE2), §14.1 (VEX: the upper
 * half, three operands), volume 2 (each instruction's page; §2.4 on alignment).
 */
#include <assert.h>
#include <string.h>

#include "vmm/x86/emulate_internal.h"

#define LANE 16u /* bytes; AVX2 does in each half what SSE does in its whole */

struct vector {
    uint8_t bytes[2 * LANE];
};

/* ---- registers and operands ---- */

static uint8_t *low_half(struct x86_emu *emu, unsigned index)
{
    return emu->xstate.bytes + X86_XSTATE_XMM + (size_t)index * LANE;
}

static uint8_t *high_half(struct x86_emu *emu, unsigned index)
{
    return emu->xstate.bytes + X86_XSTATE_EXTENDED + (size_t)index * LANE;
}

static unsigned bytes_of(const struct x86_insn *insn)
{
    return insn->vex && insn->l ? 2 * LANE : LANE;
}

static struct vector read_register(struct x86_emu *emu, unsigned index)
{
    struct vector v;

    memcpy(v.bytes, low_half(emu, index), LANE);
    memcpy(v.bytes + LANE, high_half(emu, index), LANE);
    return v;
}

/* What VEX does not write of a register it clears; SSE leaves the upper half alone. */
static void write_register(struct x86_emu *emu, const struct x86_insn *insn, unsigned index,
                           struct vector *v)
{
    memcpy(low_half(emu, index), v->bytes, LANE);
    if (insn->vex) {
        if (!insn->l)
            memset(v->bytes + LANE, 0, LANE);
        memcpy(high_half(emu, index), v->bytes + LANE, LANE);
    }
    x86_xstate_touched(emu, X86_XSTATE_SSE | (insn->vex ? X86_XSTATE_AVX : 0));
}

/* `three`: VEX names a third operand; elsewhere it must name none. */
static enum x86_emu_result begin(struct x86_emu *emu, const struct x86_insn *insn, bool three)
{
    if (insn->vex && !three && insn->vvvv)
        return x86_raise(emu, X86_VECTOR_UD);
    return x86_use(emu, insn->vex ? X86_UNIT_AVX : X86_UNIT_SSE);
}

/* The register or memory operand, n bytes of it; the rest is 0. */
static enum x86_emu_result read_rm(struct x86_emu *emu, const struct x86_insn *insn,
                                   struct vector *v, unsigned n, bool aligned)
{
    memset(v, 0, sizeof(*v));
    if (insn->memory)
        return x86_memory_read(emu, insn, v->bytes, n, aligned ? n : 1);
    *v = read_register(emu, insn->rm);
    memset(v->bytes + n, 0, sizeof(v->bytes) - n);
    return X86_EMU_DONE;
}

/* ---- moves ---- */

static unsigned moved_bytes(const struct x86_insn *insn)
{
    unsigned size = insn->op->detail & X86_DETAIL_SIZE;

    return size ? size : bytes_of(insn);
}

int x86_do_vector_load(struct x86_emu *emu, const struct x86_insn *insn)
{
    enum x86_emu_result result = begin(emu, insn, false);
    struct vector v;

    if (result == X86_EMU_DONE)
        result = read_rm(emu, insn, &v, moved_bytes(insn), insn->op->detail & X86_DETAIL_ALIGNED);
    if (result == X86_EMU_DONE)
        write_register(emu, insn, insn->reg, &v);
    return result;
}

int x86_do_vector_store(struct x86_emu *emu, const struct x86_insn *insn)
{
    enum x86_emu_result result = begin(emu, insn, false);
    unsigned n = moved_bytes(insn);
    struct vector v;

    if (result != X86_EMU_DONE)
        return result;
    v = read_register(emu, insn->reg);
    if (insn->memory)
        return x86_memory_write(emu, insn, v.bytes, n,
                                insn->op->detail & X86_DETAIL_ALIGNED ? n : 1);
    memset(v.bytes + n, 0, sizeof(v.bytes) - n);
    write_register(emu, insn, insn->rm, &v);
    return X86_EMU_DONE;
}

/* MOVD and MOVQ between a general register, or memory, and the lowest element. */
int x86_do_vector_from_general(struct x86_emu *emu, const struct x86_insn *insn)
{
    enum x86_emu_result result = begin(emu, insn, false);
    struct vector v = {0};
    uint64_t value;

    if (result == X86_EMU_DONE)
        result = x86_rm_read(emu, insn, insn->w ? 8 : 4, &value);
    if (result != X86_EMU_DONE)
        return result;
    memcpy(v.bytes, &value, sizeof(value));
    write_register(emu, insn, insn->reg, &v);
    return X86_EMU_DONE;
}

int x86_do_vector_to_general(struct x86_emu *emu, const struct x86_insn *insn)
{
    enum x86_emu_result result = begin(emu, insn, false);
    uint64_t value;

    if (result != X86_EMU_DONE)
        return result;
    memcpy(&value, low_half(emu, insn->reg), sizeof(value));
    return x86_rm_write(emu, insn, insn->w ? 8 : 4, value);
}

/* PMOVMSKB */
int x86_do_vector_mask(struct x86_emu *emu, const struct x86_insn *insn)
{
    enum x86_emu_result result = begin(emu, insn, false);
    uint64_t mask = 0;
    struct vector v;

    if (result != X86_EMU_DONE)
        return result;
    v = read_register(emu, insn->rm);
    for (unsigned i = 0; i < bytes_of(insn); i++)
        mask |= (uint64_t)(v.bytes[i] >> 7) << i;
    x86_gpr_write(emu, insn, insn->reg, 4, mask);
    return X86_EMU_DONE;
}

/* VZEROUPPER, and VZEROALL with L set. */
int x86_do_vector_zero(struct x86_emu *emu, const struct x86_insn *insn)
{
    enum x86_emu_result result = begin(emu, insn, false);
    unsigned n = x86_long_mode(emu) ? 16 : 8;

    if (result != X86_EMU_DONE)
        return result;
    memset(high_half(emu, 0), 0, n * LANE);
    if (insn->l)
        memset(low_half(emu, 0), 0, n * LANE);
    x86_xstate_touched(emu, X86_XSTATE_SSE | X86_XSTATE_AVX);
    return X86_EMU_DONE;
}

/* VEXTRACTI128 and VEXTRACTF128, which exist with L set only. */
int x86_do_vector_extract(struct x86_emu *emu, const struct x86_insn *insn)
{
    enum x86_emu_result result = begin(emu, insn, false);
    struct vector v;

    if (!insn->l)
        return x86_raise(emu, X86_VECTOR_UD);
    if (result != X86_EMU_DONE)
        return result;
    v = read_register(emu, insn->reg);
    if (insn->immediate & 1)
        memcpy(v.bytes, v.bytes + LANE, LANE);
    if (insn->memory)
        return x86_memory_write(emu, insn, v.bytes, LANE, 1);
    memset(v.bytes + LANE, 0, LANE);
    write_register(emu, insn, insn->rm, &v);
    return X86_EMU_DONE;
}

/* VINSERTI128 and VINSERTF128 */
int x86_do_vector_insert(struct x86_emu *emu, const struct x86_insn *insn)
{
    enum x86_emu_result result = begin(emu, insn, true);
    struct vector v, half;

    if (!insn->l)
        return x86_raise(emu, X86_VECTOR_UD);
    if (result == X86_EMU_DONE)
        result = read_rm(emu, insn, &half, LANE, false);
    if (result != X86_EMU_DONE)
        return result;
    v = read_register(emu, insn->vvvv);
    memcpy(v.bytes + (insn->immediate & 1 ? LANE : 0), half.bytes, LANE);
    write_register(emu, insn, insn->reg, &v);
    return X86_EMU_DONE;
}

/* ---- elements ---- */

static uint64_t get(const uint8_t *lane, unsigned width, unsigned i)
{
    uint64_t value = 0;

    memcpy(&value, lane + (size_t)i * width, width);
    return value;
}

static void put(uint8_t *lane, unsigned width, unsigned i, uint64_t value)
{
    memcpy(lane + (size_t)i * width, &value, width);
}

static int64_t as_signed(uint64_t value, unsigned width)
{
    unsigned shift = 64 - 8 * width;

    return (int64_t)(value << shift) >> shift;
}

/* Elements of the same place, one of each operand. */
static uint64_t combine(unsigned operation, uint64_t a, uint64_t b, unsigned width)
{
    switch (operation) {
    case X86_VECTOR_ADD: return a + b;
    case X86_VECTOR_SUB: return a - b;
    case X86_VECTOR_AND: return a & b;
    case X86_VECTOR_ANDN: return ~a & b;
    case X86_VECTOR_OR: return a | b;
    case X86_VECTOR_XOR: return a ^ b;
    case X86_VECTOR_EQUAL: return a == b ? UINT64_MAX : 0;
    case X86_VECTOR_GREATER:
        return as_signed(a, width) > as_signed(b, width) ? UINT64_MAX : 0;
    case X86_VECTOR_MULTIPLY: return a * b;
    default: return (uint64_t)(uint32_t)a * (uint32_t)b; /* X86_VECTOR_MULTIPLY_HALF */
    }
}

static uint64_t shift(unsigned operation, uint64_t a, uint64_t count, unsigned width)
{
    unsigned bits = 8 * width;

    if (operation == X86_VECTOR_SHIFT_ARITHMETIC)
        return (uint64_t)(as_signed(a, width) >> (count < bits ? count : bits - 1));
    if (count >= bits)
        return 0;
    return operation == X86_VECTOR_SHIFT_LEFT ? a << count : a >> count;
}

/* The nearest that an element of `width` bytes can be. */
static uint64_t saturate(int64_t value, unsigned width, bool is_signed)
{
    int64_t most = (1ll << (8 * width - is_signed)) - 1;
    int64_t least = is_signed ? -most - 1 : 0;

    return (uint64_t)(value > most ? most : value < least ? least : value);
}

/* PACKSSWB and its kin: the elements of both, at half the width. */
static void pack(uint8_t *to, const uint8_t *a, const uint8_t *b, unsigned width, bool is_signed)
{
    unsigned n = LANE / width;

    assert(n > 0);
    for (unsigned i = 0; i < 2 * n; i++) {
        int64_t value = as_signed(get(i < n ? a : b, width, i % n), width);

        put(to, width / 2, i, saturate(value, width / 2, is_signed));
    }
}

/* PUNPCKL and PUNPCKH: by turns an element of a and one of b. */
static void unpack(uint8_t *to, const uint8_t *a, const uint8_t *b, unsigned width, bool high)
{
    unsigned n = LANE / width;

    for (unsigned i = 0; i < n; i++)
        put(to, width, i, get(i & 1 ? b : a, width, i / 2 + (high ? n / 2 : 0)));
}

/* Four elements of 4 or 2 bytes from a, or the upper two from b, as two bits each of `order` say. */
static void shuffle4(uint8_t *to, const uint8_t *a, const uint8_t *b, unsigned width, unsigned order)
{
    for (unsigned i = 0; i < 4; i++)
        put(to, width, i, get(i < 2 ? a : b, width, order >> (2 * i) & 3));
}

/* PSHUFB */
static void shuffle_bytes(uint8_t *to, const uint8_t *a, const uint8_t *b)
{
    for (unsigned i = 0; i < LANE; i++)
        to[i] = b[i] & 0x80 ? 0 : a[b[i] & 15];
}

/* PALIGNR: 16 bytes of a:b, from byte `from` on; 0 beyond. */
static void align(uint8_t *to, const uint8_t *a, const uint8_t *b, unsigned from)
{
    for (unsigned i = 0; i < LANE; i++) {
        unsigned at = i + from;

        to[i] = at < LANE ? b[at] : at < 2 * LANE ? a[at - LANE] : 0;
    }
}

/* PSRLDQ and PSLLDQ */
static void shift_bytes(uint8_t *to, const uint8_t *a, unsigned by, bool left)
{
    memset(to, 0, LANE);
    if (by >= LANE)
        return;
    if (left)
        memcpy(to + by, a, LANE - by);
    else
        memcpy(to, a + by, LANE - by);
}

/* ---- one lane of any operation ---- */

static void shuffle_lane(unsigned operation, uint8_t *to, const uint8_t *a, const uint8_t *b,
                         unsigned immediate)
{
    switch (operation) {
    case X86_VECTOR_SHUFFLE32:
        shuffle4(to, b, b, 4, immediate);
        break;
    case X86_VECTOR_SHUFFLE_LOW16:
        memcpy(to, b, LANE);
        shuffle4(to, b, b, 2, immediate);
        break;
    case X86_VECTOR_SHUFFLE_HIGH16:
        memcpy(to, b, LANE);
        shuffle4(to + LANE / 2, b + LANE / 2, b + LANE / 2, 2, immediate);
        break;
    case X86_VECTOR_SHUFFLE_PS:
        shuffle4(to, a, b, 4, immediate);
        break;
    case X86_VECTOR_ALIGN:
        align(to, a, b, immediate);
        break;
    default: /* X86_VECTOR_SHUFFLE8 */
        shuffle_bytes(to, a, b);
        break;
    }
}

static void do_lane(const struct x86_op *op, uint8_t *to, const uint8_t *a, const uint8_t *b,
                    unsigned immediate)
{
    unsigned operation = op->detail >> X86_DETAIL_OPERATION, width = op->detail & X86_DETAIL_SIZE;

    if (operation == X86_VECTOR_UNPACK_LOW || operation == X86_VECTOR_UNPACK_HIGH)
        unpack(to, a, b, width, operation == X86_VECTOR_UNPACK_HIGH);
    else if (operation == X86_VECTOR_PACK_SIGNED || operation == X86_VECTOR_PACK_UNSIGNED)
        pack(to, a, b, width, operation == X86_VECTOR_PACK_SIGNED);
    else if (operation >= X86_VECTOR_SHUFFLE8)
        shuffle_lane(operation, to, a, b, immediate);
    else
        for (unsigned i = 0; i < LANE / width; i++)
            put(to, width, i, combine(operation, get(a, width, i), get(b, width, i), width));
}

/* Two operands to one; those that are shuffled by an immediate alone have one in VEX's form, too. */
int x86_do_vector(struct x86_emu *emu, const struct x86_insn *insn)
{
    unsigned operation = insn->op->detail >> X86_DETAIL_OPERATION;
    bool one = operation >= X86_VECTOR_SHUFFLE32 && operation <= X86_VECTOR_SHUFFLE_HIGH16;
    enum x86_emu_result result = begin(emu, insn, !one);
    struct vector a, b, to = {0};

    if (result == X86_EMU_DONE)
        result = read_rm(emu, insn, &b, bytes_of(insn), !insn->vex);
    if (result != X86_EMU_DONE)
        return result;
    a = read_register(emu, insn->vex ? insn->vvvv : insn->reg);
    for (unsigned at = 0; at < bytes_of(insn); at += LANE)
        do_lane(insn->op, to.bytes + at, a.bytes + at, b.bytes + at,
                (unsigned)insn->immediate & 0xFF);
    write_register(emu, insn, insn->reg, &to);
    return X86_EMU_DONE;
}

static struct vector shift_all(const struct x86_insn *insn, const struct vector *a, uint64_t count)
{
    unsigned operation = insn->op->detail >> X86_DETAIL_OPERATION;
    unsigned width = insn->op->detail & X86_DETAIL_SIZE;
    unsigned by = count < LANE ? (unsigned)count : LANE;
    struct vector to = {0};

    for (unsigned at = 0; at < bytes_of(insn); at += LANE) {
        if (width == LANE) {
            shift_bytes(to.bytes + at, a->bytes + at, by, operation == X86_VECTOR_SHIFT_LEFT);
            continue;
        }
        for (unsigned i = 0; i < LANE / width; i++)
            put(to.bytes + at, width, i,
                shift(operation, get(a->bytes + at, width, i), count, width));
    }
    return to;
}

/* By the low 8 bytes of the second operand, 16 bytes of which are read whatever the size. */
int x86_do_vector_shift(struct x86_emu *emu, const struct x86_insn *insn)
{
    enum x86_emu_result result = begin(emu, insn, true);
    struct vector a, count, to;

    if (result == X86_EMU_DONE)
        result = read_rm(emu, insn, &count, LANE, !insn->vex);
    if (result != X86_EMU_DONE)
        return result;
    a = read_register(emu, insn->vex ? insn->vvvv : insn->reg);
    to = shift_all(insn, &a, get(count.bytes, 8, 0));
    write_register(emu, insn, insn->reg, &to);
    return X86_EMU_DONE;
}

/* In VEX's form, the first operand is the destination. */
int x86_do_vector_shift_by(struct x86_emu *emu, const struct x86_insn *insn)
{
    enum x86_emu_result result = begin(emu, insn, true);
    struct vector a, to;

    if (result != X86_EMU_DONE)
        return result;
    a = read_register(emu, insn->rm);
    to = shift_all(insn, &a, insn->immediate & 0xFF);
    write_register(emu, insn, insn->vex ? insn->vvvv : insn->rm, &to);
    return X86_EMU_DONE;
}
