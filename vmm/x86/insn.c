/*
 * The decoder of instructions: prefixes, opcode maps, ModRM, SIB, displacement, immediate.
 *
 * Does not know what an instruction does, nor any that the table has not: its length could not be
 * told. No state. Texts: Intel SDM volume 2A, §2.1 (prefixes, ModRM, SIB), §2.2 (64-bit mode), §2.3
 * (VEX).
 */
#include "vmm/x86/insn.h"

#include <errno.h>
#include <string.h>

struct cursor {
    const uint8_t *bytes;
    size_t n, at;
};

struct prefixes {
    bool opsize, addrsize, lock, vex;
    uint8_t rep; /* 0xF2, 0xF3 or 0 */
    uint8_t rex; /* 0x40 to 0x4F, or 0 */
    int segment; /* enum x86_segment, or -1 */
};

static int take(struct cursor *c, uint8_t *out)
{
    if (c->at >= X86_INSN_MAX)
        return -E2BIG;
    if (c->at >= c->n)
        return -EAGAIN;
    *out = c->bytes[c->at++];
    return 0;
}

/* A little-endian number of `size` bytes, sign-extended. */
static int take_signed(struct cursor *c, unsigned size, int64_t *out)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < size; i++) {
        uint8_t byte;
        int err = take(c, &byte);

        if (err)
            return err;
        value |= (uint64_t)byte << (8 * i);
    }
    if (size > 0 && size < 8) {
        unsigned shift = 64 - 8 * size;

        value = (uint64_t)((int64_t)(value << shift) >> shift);
    }
    *out = (int64_t)value;
    return 0;
}

/* 64-bit mode has but two segments that count (SDM volume 1 §3.3.4). */
static void override(struct prefixes *p, enum x86_code_size code, enum x86_segment segment)
{
    if (code != X86_CODE64 || segment == X86_FS || segment == X86_GS)
        p->segment = segment;
}

/* SDM volume 2A §2.1.1. False when the byte is none of the legacy prefixes. */
static bool legacy_prefix(uint8_t byte, enum x86_code_size code, struct prefixes *p)
{
    switch (byte) {
    case 0x26: override(p, code, X86_ES); break;
    case 0x2E: override(p, code, X86_CS); break;
    case 0x36: override(p, code, X86_SS); break;
    case 0x3E: override(p, code, X86_DS); break;
    case 0x64: override(p, code, X86_FS); break;
    case 0x65: override(p, code, X86_GS); break;
    case 0x66: p->opsize = true; break;
    case 0x67: p->addrsize = true; break;
    case 0xF0: p->lock = true; break;
    case 0xF2:
    case 0xF3: p->rep = byte; break;
    default: return false;
    }
    return true;
}

/* Leaves the first byte that is no prefix in *byte. A REX that no opcode follows counts for nothing
 * (§2.2.1). */
static int take_prefixes(struct cursor *c, enum x86_code_size code, struct prefixes *p,
                         uint8_t *byte)
{
    for (;;) {
        int err = take(c, byte);

        if (err)
            return err;
        if (code == X86_CODE64 && (*byte & 0xF0) == 0x40)
            p->rex = *byte;
        else if (legacy_prefix(*byte, code, p))
            p->rex = 0;
        else
            return 0;
    }
}

static enum x86_pp pp_of(const struct prefixes *p)
{
    if (p->rep)
        return p->rep == 0xF3 ? X86_PP_F3 : X86_PP_F2;
    return p->opsize ? X86_PP_66 : X86_PP_NONE;
}

/* §2.3.5: two or three bytes, whose R, X, B and vvvv are inverted. */
static int take_vex(struct cursor *c, uint8_t first, struct prefixes *p, struct x86_insn *in,
                    uint8_t *map)
{
    uint8_t a = 0, b = 0;
    int err = take(c, &a);

    if (err)
        return err;
    p->vex = true;
    p->rex = 0x40 | (a & 0x80 ? 0 : 4);
    if (first == 0xC5) {
        b = a & 0x7F;
        *map = X86_MAP_0F;
    } else {
        p->rex |= (uint8_t)((a & 0x40 ? 0 : 2) | (a & 0x20 ? 0 : 1));
        if ((a & 0x1F) < X86_MAP_0F || (a & 0x1F) > X86_MAP_0F3A)
            return -ENOSYS;
        *map = a & 0x1F;
        err = take(c, &b);
        if (err)
            return err;
        p->rex |= (uint8_t)(b & 0x80 ? 8 : 0);
    }
    in->vvvv = (uint8_t)(~b >> 3 & 0xF);
    in->l = b & 4;
    in->pp = b & 3;
    return 0;
}

static int take_opcode(struct cursor *c, enum x86_code_size code, struct prefixes *p,
                       struct x86_insn *in, uint8_t *map)
{
    uint8_t byte = 0;
    int err = take_prefixes(c, code, p, &byte);

    *map = X86_MAP_ONE;
    in->pp = (uint8_t)pp_of(p);
    if (err)
        return err;
    if ((byte == 0xC4 || byte == 0xC5) && code == X86_CODE64) {
        if (p->lock || p->rep || p->opsize || p->rex)
            return -ENOSYS; /* §2.3.2 to 2.3.4: #UD */
        err = take_vex(c, byte, p, in, map);
        return err ? err : take(c, &in->opcode);
    }
    if (byte == 0x0F) {
        *map = X86_MAP_0F;
        err = take(c, &byte);
        if (!err && (byte == 0x38 || byte == 0x3A)) {
            *map = byte == 0x38 ? X86_MAP_0F38 : X86_MAP_0F3A;
            err = take(c, &byte);
        }
    }
    in->opcode = byte;
    return err;
}

/* Table 2-2: 32- and 64-bit addressing. */
static int take_memory(struct cursor *c, uint8_t rex, enum x86_code_size code, uint8_t modrm,
                       struct x86_insn *in)
{
    unsigned mod = modrm >> 6, rm = modrm & 7, size = mod == 1 ? 1 : mod == 2 ? 4 : 0;

    in->base = (int8_t)(rm | (rex & 1 ? 8 : 0));
    if (rm == 4) {
        uint8_t sib = 0;
        int err = take(c, &sib);

        if (err)
            return err;
        in->scale = (uint8_t)(1u << (sib >> 6));
        in->index = (int8_t)((sib >> 3 & 7) | (rex & 2 ? 8 : 0));
        if (in->index == 4)
            in->index = -1;
        rm = sib & 7;
        in->base = (int8_t)(rm | (rex & 1 ? 8 : 0));
        if (rm == 5 && mod == 0) {
            in->base = -1;
            size = 4;
        }
    } else if (rm == 5 && mod == 0) {
        in->base = -1;
        in->rip_relative = code == X86_CODE64;
        size = 4;
    }
    if (in->base == 4 || in->base == 5) /* (E)SP, (E)BP */
        in->segment = X86_SS;
    return take_signed(c, size, &in->displacement);
}

/* Table 2-1: 16-bit addressing. */
static int take_memory16(struct cursor *c, uint8_t modrm, struct x86_insn *in)
{
    static const int8_t bases[] = {3, 3, 5, 5, 6, 7, 5, 3}; /* BX BX BP BP SI DI BP BX */
    static const int8_t indices[] = {6, 7, 6, 7, -1, -1, -1, -1};
    unsigned mod = modrm >> 6, rm = modrm & 7, size = mod == 1 ? 1 : mod == 2 ? 2 : 0;

    in->base = bases[rm];
    in->index = indices[rm];
    if (rm == 6 && mod == 0) {
        in->base = -1;
        size = 2;
    }
    if (in->base == 5)
        in->segment = X86_SS;
    return take_signed(c, size, &in->displacement);
}

static int take_modrm(struct cursor *c, const struct prefixes *p, enum x86_code_size code,
                      struct x86_insn *in)
{
    uint8_t modrm = 0;
    int err = take(c, &modrm);

    if (err)
        return err;
    in->reg = (uint8_t)((modrm >> 3 & 7) | (p->rex & 4 ? 8 : 0));
    in->memory = modrm >> 6 != 3;
    if (!in->memory)
        in->rm = (uint8_t)((modrm & 7) | (p->rex & 1 ? 8 : 0));
    else if (in->address_size == 2)
        err = take_memory16(c, modrm, in);
    else
        err = take_memory(c, p->rex, code, modrm, in);
    return err;
}

static bool fits(const struct x86_op *op, const struct x86_insn *in, uint8_t map)
{
    uint8_t opcode = op->form & X86_FORM_LOW3 ? in->opcode & 0xF8 : in->opcode;

    return op->map == map && op->opcode == opcode && (op->pp == X86_PP_ANY || op->pp == in->pp) &&
           in->vex == !!(op->form & X86_FORM_VEX);
}

/* Whether the bytes after the opcode, too, are what the row asks for. */
static bool fits_operands(const struct x86_op *op, const struct x86_insn *in)
{
    if ((op->form & X86_FORM_MEM && !in->memory) || (op->form & X86_FORM_REG && in->memory) ||
        (op->form & X86_FORM_W0 && in->w) || (op->form & X86_FORM_W1 && !in->w))
        return false;
    return (op->reg == X86_ANY || op->reg == (in->reg & 7)) &&
           (op->rm == X86_ANY || op->rm == (in->rm & 7));
}

static const struct x86_op *find(const struct x86_op *op, const struct x86_insn *in, uint8_t map)
{
    for (; op->name; op++)
        if (fits(op, in, map))
            return op;
    return NULL;
}

/* From the first that fits by its opcode: rows of one opcode all have a ModRM, or none has. */
static const struct x86_op *find_operands(const struct x86_op *op, const struct x86_insn *in,
                                          uint8_t map)
{
    for (; op->name; op++)
        if (fits(op, in, map) && fits_operands(op, in))
            return op;
    return NULL;
}

static void set_sizes(const struct prefixes *p, enum x86_code_size code, struct x86_insn *in)
{
    bool word = (code == X86_CODE16) != p->opsize;

    in->w = p->rex & 8;
    in->rex = p->rex && !p->vex;
    in->size = in->w ? 8 : word ? 2 : 4;
    in->stack_size = word ? 2 : code == X86_CODE64 ? 8 : 4;
    if (code == X86_CODE64)
        in->address_size = p->addrsize ? 4 : 8;
    else
        in->address_size = (code == X86_CODE16) != p->addrsize ? 2 : 4;
}

static unsigned immediate_bytes(const struct x86_insn *in)
{
    if (in->op->imm == X86_IMM_Z)
        return in->size == 2 ? 2 : 4;
    if (in->op->imm == X86_IMM_V)
        return in->size;
    return in->op->imm;
}

int x86_decode_by(const struct x86_op *ops, const uint8_t *bytes, size_t n,
                  enum x86_code_size code, struct x86_insn *out)
{
    struct cursor c = {.bytes = bytes, .n = n};
    struct prefixes p = {.segment = -1};
    struct x86_insn in = {.base = -1, .index = -1, .scale = 1, .segment = X86_DS};
    int64_t immediate = 0;
    uint8_t map;
    int err = take_opcode(&c, code, &p, &in, &map);

    if (err)
        return err;
    in.vex = p.vex;
    in.lock = p.lock;
    set_sizes(&p, code, &in);
    in.op = find(ops, &in, map);
    if (!in.op)
        return -ENOSYS;
    if (in.op->form & X86_FORM_MODRM) {
        err = take_modrm(&c, &p, code, &in);
        if (err)
            return err;
    } else if (in.op->form & X86_FORM_LOW3) {
        in.rm = (uint8_t)((in.opcode & 7) | (p.rex & 1 ? 8 : 0));
    }
    in.op = find_operands(in.op, &in, map);
    if (!in.op)
        return -ENOSYS;
    if (p.segment >= 0)
        in.segment = (uint8_t)p.segment;
    err = take_signed(&c, immediate_bytes(&in), &immediate);
    if (err)
        return err;
    if (in.lock && !(in.op->form & X86_FORM_LOCK && in.memory))
        return -EINVAL;
    in.immediate = (uint64_t)immediate;
    in.length = (uint8_t)c.at;
    *out = in;
    return 0;
}

int x86_decode(const uint8_t *bytes, size_t n, enum x86_code_size code, struct x86_insn *out)
{
    return x86_decode_by(x86_ops, bytes, n, code, out);
}
