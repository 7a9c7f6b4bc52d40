/*
 * The interpreter's moves, stack, branches and strings.
 *
 * The vCPU's thread. Texts: Intel SDM volume 1 §7.3 (moves, strings), §6.4 (calls); volume 2, each
 * instruction's page.
 */
#include <string.h>

#include "vmm/x86/interpret_internal.h"

#define RSP 4u

/* 88 to 8B. */
int x86_in_mov(struct x86_emu *emu, const struct x86_insn *insn)
{
    unsigned n = x86_width(insn);
    uint64_t value;
    int result;

    if (!(insn->opcode & 2))
        return x86_operand_store(emu, insn, n, x86_gpr_read(emu, insn, insn->reg, n));
    result = x86_operand_load(emu, insn, n, &value);
    if (result == X86_EMU_DONE)
        x86_gpr_write(emu, insn, insn->reg, n, value);
    return result;
}

int x86_in_mov_imm(struct x86_emu *emu, const struct x86_insn *insn)
{
    return x86_operand_store(emu, insn, x86_width(insn), insn->immediate);
}

/* B0 to BF. */
int x86_in_mov_wide(struct x86_emu *emu, const struct x86_insn *insn)
{
    x86_gpr_write(emu, insn, insn->rm, x86_width(insn), insn->immediate);
    return X86_EMU_DONE;
}

int x86_in_movnti(struct x86_emu *emu, const struct x86_insn *insn)
{
    return x86_operand_store(emu, insn, insn->size, x86_gpr_read(emu, insn, insn->reg, insn->size));
}

int x86_in_lea(struct x86_emu *emu, const struct x86_insn *insn)
{
    x86_gpr_write(emu, insn, insn->reg, insn->size, x86_offset(emu, insn));
    return X86_EMU_DONE;
}

/* MOVZX (B6, B7), MOVSX (BE, BF), MOVSXD (63): `detail` is the bytes of what is read. */
int x86_in_movx(struct x86_emu *emu, const struct x86_insn *insn)
{
    unsigned n = insn->op->detail;
    uint64_t value;
    int result = x86_operand_load(emu, insn, n, &value);

    if (result != X86_EMU_DONE)
        return result;
    if ((insn->opcode & 0xFE) != 0xB6)
        value = (uint64_t)((int64_t)(value << (64 - 8 * n)) >> (64 - 8 * n));
    x86_gpr_write(emu, insn, insn->reg, insn->size, value);
    return X86_EMU_DONE;
}

int x86_in_from_segment(struct x86_emu *emu, const struct x86_insn *insn)
{
    const struct kvm_segment *const all[6] = {&emu->sregs.es, &emu->sregs.cs, &emu->sregs.ss,
                                              &emu->sregs.ds, &emu->sregs.fs, &emu->sregs.gs};
    unsigned index = insn->reg & 7;

    if (index > X86_GS)
        return X86_LEFT;
    return x86_operand_store(emu, insn, insn->memory ? 2 : insn->size, all[index]->selector);
}

int x86_in_nop(struct x86_emu *emu, const struct x86_insn *insn)
{
    (void)emu;
    (void)insn;
    return X86_EMU_DONE;
}

/* Orders this process's stores and loads as the guest wants its own. */
int x86_in_fence(struct x86_emu *emu, const struct x86_insn *insn)
{
    (void)emu;
    (void)insn;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return X86_EMU_DONE;
}

/* 91 to 97; 90 with REX.B. */
int x86_in_xchg_rax(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t rax = *x86_reg(emu, 0), other = *x86_reg(emu, insn->rm);

    if (insn->rm == 0) /* 90: NOP */
        return X86_EMU_DONE;
    x86_gpr_write(emu, insn, 0, insn->size, other);
    x86_gpr_write(emu, insn, insn->rm, insn->size, rax);
    return X86_EMU_DONE;
}

/* ---- stack; of 8 bytes ---- */

static int push(struct x86_emu *emu, const struct x86_insn *insn, uint64_t value)
{
    if (insn->stack_size != 8 ||
        x86_store(x86_interpreter_of(emu), *x86_reg(emu, RSP) - 8, 8, value) != X86_EMU_DONE)
        return X86_LEFT;
    *x86_reg(emu, RSP) -= 8;
    return X86_EMU_DONE;
}

static int pop(struct x86_emu *emu, const struct x86_insn *insn, uint64_t *value)
{
    if (insn->stack_size != 8 ||
        x86_load(x86_interpreter_of(emu), *x86_reg(emu, RSP), 8, value) != X86_EMU_DONE)
        return X86_LEFT;
    *x86_reg(emu, RSP) += 8;
    return X86_EMU_DONE;
}

int x86_in_push(struct x86_emu *emu, const struct x86_insn *insn)
{
    return push(emu, insn, *x86_reg(emu, insn->rm));
}

int x86_in_push_imm(struct x86_emu *emu, const struct x86_insn *insn)
{
    return push(emu, insn, insn->immediate);
}

int x86_in_push_rm(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t value;
    int result = x86_operand_load(emu, insn, 8, &value);

    return result == X86_EMU_DONE ? push(emu, insn, value) : result;
}

int x86_in_pop(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t value;
    int result = pop(emu, insn, &value);

    if (result == X86_EMU_DONE)
        *x86_reg(emu, insn->rm) = value;
    return result;
}

/* 8F: an address by RSP is that after the pop (SDM volume 2B, POP). */
int x86_in_pop_rm(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t value, rsp = *x86_reg(emu, RSP);

    if (pop(emu, insn, &value) != X86_EMU_DONE)
        return X86_LEFT;
    if (x86_operand_store(emu, insn, 8, value) == X86_EMU_DONE)
        return X86_EMU_DONE;
    *x86_reg(emu, RSP) = rsp;
    return X86_LEFT;
}

int x86_in_leave(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t *rsp = x86_reg(emu, RSP), *rbp = x86_reg(emu, 5), value;

    if (insn->stack_size != 8 ||
        x86_load(x86_interpreter_of(emu), *rbp, 8, &value) != X86_EMU_DONE)
        return X86_LEFT;
    *rsp = *rbp + 8;
    *rbp = value;
    return X86_EMU_DONE;
}

/* ---- branches; a target that is not canonical faults where it stands, at the fetch ---- */

static int go(struct x86_emu *emu, const struct x86_insn *insn, uint64_t rip)
{
    if (insn->stack_size != 8 || !x86_canonical(emu, rip))
        return X86_LEFT;
    emu->regs.rip = rip;
    return X86_EMU_DONE;
}

int x86_in_jmp(struct x86_emu *emu, const struct x86_insn *insn)
{
    return go(emu, insn, emu->regs.rip + insn->immediate);
}

int x86_in_jcc(struct x86_emu *emu, const struct x86_insn *insn)
{
    if (insn->stack_size != 8)
        return X86_LEFT;
    return x86_condition(emu->regs.rflags, insn->opcode) ? x86_in_jmp(emu, insn) : X86_EMU_DONE;
}

int x86_in_jrcxz(struct x86_emu *emu, const struct x86_insn *insn)
{
    if (insn->address_size != 8)
        return X86_LEFT;
    return *x86_reg(emu, 1) == 0 ? x86_in_jmp(emu, insn) : X86_EMU_DONE;
}

static int call(struct x86_emu *emu, const struct x86_insn *insn, uint64_t to)
{
    if (!x86_canonical(emu, to) || push(emu, insn, emu->regs.rip) != X86_EMU_DONE)
        return X86_LEFT;
    emu->regs.rip = to;
    return X86_EMU_DONE;
}

int x86_in_call(struct x86_emu *emu, const struct x86_insn *insn)
{
    return call(emu, insn, emu->regs.rip + insn->immediate);
}

int x86_in_jmp_rm(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t to;
    int result = x86_operand_load(emu, insn, 8, &to);

    return result == X86_EMU_DONE ? go(emu, insn, to) : result;
}

int x86_in_call_rm(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t to;
    int result = x86_operand_load(emu, insn, 8, &to);

    return result == X86_EMU_DONE ? call(emu, insn, to) : result;
}

/* C2, C3. */
int x86_in_ret(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t to;

    if (insn->stack_size != 8 ||
        x86_load(x86_interpreter_of(emu), *x86_reg(emu, RSP), 8, &to) != X86_EMU_DONE ||
        !x86_canonical(emu, to))
        return X86_LEFT;
    *x86_reg(emu, RSP) += 8 + (insn->opcode == 0xC2 ? insn->immediate & 0xFFFF : 0);
    emu->regs.rip = to;
    return X86_EMU_DONE;
}

/* ---- flags that instructions set by themselves ---- */

int x86_in_flags(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t *flags = (uint64_t *)&emu->regs.rflags;

    switch (insn->opcode) {
    case 0xF5: *flags ^= X86_FLAG_CF; break;
    case 0xF8: *flags &= ~X86_FLAG_CF; break;
    case 0xF9: *flags |= X86_FLAG_CF; break;
    case 0xFC: *flags &= ~X86_FLAG_DF; break;
    case 0xFD: *flags |= X86_FLAG_DF; break;
    }
    return X86_EMU_DONE;
}

/* ---- strings ---- */

enum { STRING_MOVS, STRING_CMPS, STRING_STOS, STRING_LODS, STRING_SCAS };

struct string {
    unsigned kind, n; /* n: bytes of an element */
    uint64_t from, to; /* linear */
    int64_t step;
};

/* CMPS and SCAS: the flags of what they subtract. */
static void compare(struct x86_emu *emu, unsigned n, uint64_t a, uint64_t b)
{
    uint64_t flags;

    /* SUB on the top n bytes gives all flags but AF and PF, which are of the low ones. */
    a = n == 8 ? a : a & ((1ull << (8 * n)) - 1);
    b = n == 8 ? b : b & ((1ull << (8 * n)) - 1);
    flags = a < b ? X86_FLAG_CF : 0;
    if (a == b)
        flags |= X86_FLAG_ZF;
    if ((a - b) >> (8 * n - 1) & 1)
        flags |= X86_FLAG_SF;
    if (((a ^ b) & (a ^ (a - b))) >> (8 * n - 1) & 1)
        flags |= X86_FLAG_OF;
    if ((a ^ b ^ (a - b)) & 0x10)
        flags |= X86_FLAG_AF;
    if (!(__builtin_popcountll((a - b) & 0xFF) & 1))
        flags |= X86_FLAG_PF;
    x86_set_flags(emu, flags);
}

/* One element; registers move on but for RCX. */
static int one_element(struct x86_emu *emu, const struct x86_insn *insn, const struct string *s)
{
    struct x86_interpreter *in = x86_interpreter_of(emu);
    uint64_t a = *x86_reg(emu, 0), b = 0;

    if (s->kind != STRING_STOS && s->kind != STRING_SCAS &&
        x86_load(in, s->from, s->n, &a) != X86_EMU_DONE)
        return X86_LEFT;
    if ((s->kind == STRING_CMPS || s->kind == STRING_SCAS) &&
        x86_load(in, s->to, s->n, &b) != X86_EMU_DONE)
        return X86_LEFT;
    if ((s->kind == STRING_MOVS || s->kind == STRING_STOS) &&
        x86_store(in, s->to, s->n, a) != X86_EMU_DONE)
        return X86_LEFT;
    if (s->kind == STRING_CMPS || s->kind == STRING_SCAS)
        compare(emu, s->n, a, b);
    if (s->kind == STRING_LODS)
        x86_gpr_write(emu, insn, 0, s->n, a);
    if (s->kind != STRING_STOS && s->kind != STRING_SCAS)
        emu->regs.rsi += (uint64_t)s->step;
    if (s->kind != STRING_LODS)
        emu->regs.rdi += (uint64_t)s->step;
    return X86_EMU_DONE;
}

/* As STOS has it: the pattern of its elements. */
static void fill(uint8_t *to, uint64_t value, unsigned n, size_t bytes)
{
    if (n == 1 || value == 0) {
        memset(to, (int)(value & 0xFF), bytes);
        return;
    }
    for (size_t at = 0; at < bytes; at += n)
        memcpy(to + at, &value, n);
}

/* Forward, within one page at each end. How many elements; 0: one by one. */
static uint64_t many_elements(struct x86_emu *emu, const struct string *s, uint64_t count)
{
    struct x86_interpreter *in = x86_interpreter_of(emu);
    uint64_t bytes = X86_PAGE - (s->to & (X86_PAGE - 1)), value = *x86_reg(emu, 0);
    const struct x86_way *to, *from = NULL;
    uint8_t *at;

    if (s->step < 0 || (s->kind != STRING_MOVS && s->kind != STRING_STOS))
        return 0;
    if (s->kind == STRING_MOVS && bytes > X86_PAGE - (s->from & (X86_PAGE - 1)))
        bytes = X86_PAGE - (s->from & (X86_PAGE - 1));
    if (bytes / s->n < count)
        count = bytes / s->n;
    bytes = count * s->n;
    to = count > 1 ? x86_way(in, s->to, 1, X86_WRITE) : NULL;
    if (!to || *to->mark)
        return 0;
    at = to->host + (s->to & (X86_PAGE - 1));
    if (s->kind == STRING_MOVS) {
        const uint8_t *source;

        from = x86_way(in, s->from, 1, X86_READ);
        source = from ? from->host + (s->from & (X86_PAGE - 1)) : NULL;
        if (!from || (source < at + bytes && at < source + bytes)) /* they overlap */
            return 0;
        memcpy(at, source, bytes);
    } else {
        if (s->n < 8)
            value &= (1ull << (8 * s->n)) - 1;
        fill(at, value, s->n, bytes);
    }
    memory_mark_dirty(emu->mem, to->gpa + (s->to & (X86_PAGE - 1)), bytes);
    emu->regs.rdi += bytes;
    if (s->kind == STRING_MOVS)
        emu->regs.rsi += bytes;
    return count;
}

static uint64_t source_base(const struct x86_emu *emu, const struct x86_insn *insn)
{
    if (insn->segment == X86_GS)
        return emu->sregs.gs.base;
    return insn->segment == X86_FS ? emu->sregs.fs.base : 0;
}

static struct string string_of(const struct x86_emu *emu, const struct x86_insn *insn)
{
    static const uint8_t kinds[6] = {STRING_MOVS, STRING_CMPS, 0 /* TEST */, STRING_STOS,
                                     STRING_LODS, STRING_SCAS};
    unsigned n = x86_width(insn);

    return (struct string){
        .kind = kinds[(insn->opcode - 0xA4) / 2],
        .n = n,
        .from = emu->regs.rsi + source_base(emu, insn),
        .to = emu->regs.rdi,
        .step = emu->regs.rflags & X86_FLAG_DF ? -(int64_t)n : (int64_t)n,
    };
}

/* With a prefix, a run of elements, and then the instruction again until RCX is 0 (SDM volume 2B, REP):
 * as interrupts between its elements find it. */
int x86_in_string(struct x86_emu *emu, const struct x86_insn *insn)
{
    struct string s = string_of(emu, insn);
    uint64_t done;
    bool found;

    if (insn->address_size != 8)
        return X86_LEFT;
    if (insn->pp != X86_PP_F3 && insn->pp != X86_PP_F2)
        return one_element(emu, insn, &s);
    if (emu->regs.rcx == 0)
        return X86_EMU_DONE;
    done = many_elements(emu, &s, emu->regs.rcx);
    if (done == 0) {
        if (one_element(emu, insn, &s) != X86_EMU_DONE)
            return X86_LEFT;
        done = 1;
    }
    emu->regs.rcx -= done;
    found = (s.kind == STRING_CMPS || s.kind == STRING_SCAS) &&
            !(emu->regs.rflags & X86_FLAG_ZF) == (insn->pp == X86_PP_F3);
    if (emu->regs.rcx != 0 && !found)
        emu->regs.rip -= insn->length;
    return X86_EMU_DONE;
}
