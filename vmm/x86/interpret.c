/*
 * The interpreter's loop, and memory as its instructions reach it.
 *
 * Does not know what an instruction does (interpret_integer.c and its siblings). Code is compared with
 * what was decoded each time, so that code which changes is seen by the next instruction at the latest.
 * Translations are kept until the guest invalidates them, as processors keep them.
 *
 * The vCPU's thread; no locks. Loads and stores are single ones of their width where they are aligned, and
 * are made in the order of the program, which is x86's own order (SDM volume 3A §8.2). Texts: Intel SDM
 * volume 1 §3.7; volume 3A §4.10 (what may be kept), §8.1.3 (code that changes).
 */
#include <string.h>

#include "vmm/x86/interpret_internal.h"
#include "vmm/x86/tables.h"

/* Interrupts are off: so many times longer. */
#define PATIENCE 64
#define CACHE_LINE 64u

void x86_interpret_flush(struct x86_interpreter *in)
{
    in->flushes++;
}

bool x86_interpretable(const struct x86_interpreter *in)
{
    const struct kvm_sregs *s = &in->emu.sregs;

    return s->efer & X86_EFER_LMA && s->cs.l && s->ss.dpl == 0 && !(s->cr4 & X86_CR4_LA57) &&
           !(in->emu.regs.rflags & (X86_FLAG_TF | X86_FLAG_VM));
}

/* ---- memory ---- */

static const struct x86_way *find_way(struct x86_interpreter *in, struct x86_way *way,
                                      uint64_t linear, enum x86_access access)
{
    static const uint8_t nobody = 0;
    gpa_t gpa;

    if (x86_walk(&in->emu, linear, access, &gpa) != X86_EMU_DONE)
        return NULL;
    gpa &= ~(gpa_t)(X86_PAGE - 1);
    way->valid_for = 0;
    way->host = memory_at(in->emu.mem, gpa, X86_PAGE);
    if (!way->host)
        return NULL;
    way->gpa = gpa;
    way->page = linear & ~(uint64_t)(X86_PAGE - 1);
    way->mark = in->tables ? x86_tables_mark(in->tables, gpa) : &nobody;
    way->valid_for = in->flushes + 1;
    return way;
}

const struct x86_way *x86_way(struct x86_interpreter *in, uint64_t linear, unsigned n,
                              enum x86_access access)
{
    struct x86_way *way = &in->ways[access][linear / X86_PAGE % X86_INTERPRET_WAYS];

    if ((linear & (X86_PAGE - 1)) + n > X86_PAGE)
        return NULL;
    if (way->page == (linear & ~(uint64_t)(X86_PAGE - 1)) && way->valid_for == in->flushes + 1)
        return way;
    return find_way(in, way, linear, access);
}

/* A page of tables that KVM has shadows of: only entries that were not present may change unseen. */
static bool concerns_kvm(struct x86_interpreter *in, const struct x86_way *way, unsigned offset,
                         unsigned n)
{
    if (*way->mark == X86_TABLE_LEAVES) {
        const uint64_t *first = (const uint64_t *)(way->host + (offset & ~7u));
        const uint64_t *last = (const uint64_t *)(way->host + ((offset + n - 1) & ~7u));

        if (!(__atomic_load_n(first, __ATOMIC_RELAXED) & 1) &&
            !(__atomic_load_n(last, __ATOMIC_RELAXED) & 1))
            return false;
    }
    in->table_left = way->gpa;
    return true;
}

static int load_across(struct x86_interpreter *in, uint64_t linear, unsigned n, uint64_t *value)
{
    unsigned before = X86_PAGE - (linear & (X86_PAGE - 1));
    const struct x86_way *way;

    *value = 0;
    if (before >= n)
        return X86_LEFT;
    way = x86_way(in, linear, before, X86_READ);
    if (!way)
        return X86_LEFT;
    memcpy(value, way->host + X86_PAGE - before, before);
    way = x86_way(in, linear + before, n - before, X86_READ);
    if (!way)
        return X86_LEFT;
    memcpy((uint8_t *)value + before, way->host, n - before);
    return X86_EMU_DONE;
}

int x86_load(struct x86_interpreter *in, uint64_t linear, unsigned n, uint64_t *value)
{
    const struct x86_way *way = x86_way(in, linear, n, X86_READ);

    if (!way)
        return load_across(in, linear, n, value);
    *value = x86_get_at(way->host + (linear & (X86_PAGE - 1)), n);
    return X86_EMU_DONE;
}

static int store_across(struct x86_interpreter *in, uint64_t linear, unsigned n, uint64_t value)
{
    unsigned before = X86_PAGE - (linear & (X86_PAGE - 1));
    const struct x86_way *first, *second;

    if (before >= n)
        return X86_LEFT;
    first = x86_way(in, linear, before, X86_WRITE);
    second = first ? x86_way(in, linear + before, n - before, X86_WRITE) : NULL;
    if (!second || *first->mark || *second->mark)
        return X86_LEFT;
    memcpy(first->host + X86_PAGE - before, &value, before);
    memcpy(second->host, (uint8_t *)&value + before, n - before);
    memory_mark_dirty(in->emu.mem, first->gpa + X86_PAGE - before, before);
    memory_mark_dirty(in->emu.mem, second->gpa, n - before);
    return X86_EMU_DONE;
}

int x86_store(struct x86_interpreter *in, uint64_t linear, unsigned n, uint64_t value)
{
    const struct x86_way *way = x86_way(in, linear, n, X86_WRITE);
    unsigned offset = linear & (X86_PAGE - 1);

    if (!way)
        return store_across(in, linear, n, value);
    if (*way->mark && concerns_kvm(in, way, offset, n))
        return X86_LEFT;
    x86_put_at(way->host + offset, n, value);
    memory_mark_dirty(in->emu.mem, way->gpa + offset, n);
    return X86_EMU_DONE;
}

int x86_update(struct x86_interpreter *in, uint64_t linear, unsigned n, void **at, gpa_t *gpa)
{
    unsigned offset = linear & (X86_PAGE - 1);
    const struct x86_way *way;

    if (offset / CACHE_LINE != (offset + n - 1) / CACHE_LINE)
        return X86_LEFT; /* hosts may forbid a process locks on two lines */
    way = x86_way(in, linear, n, X86_WRITE);
    if (!way || (*way->mark && concerns_kvm(in, way, offset, n)))
        return X86_LEFT;
    *at = way->host + offset;
    *gpa = way->gpa + offset;
    return X86_EMU_DONE;
}

/* ---- operands ---- */

uint64_t x86_offset(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t offset = (uint64_t)insn->displacement;

    if (insn->rip_relative)
        offset += emu->regs.rip;
    if (insn->base >= 0)
        offset += *x86_reg(emu, (unsigned)insn->base);
    if (insn->index >= 0)
        offset += *x86_reg(emu, (unsigned)insn->index) * insn->scale;
    return insn->address_size == 4 ? (uint32_t)offset : offset;
}

uint64_t x86_linear(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t offset = x86_offset(emu, insn);

    if (insn->segment == X86_GS)
        return offset + emu->sregs.gs.base;
    return insn->segment == X86_FS ? offset + emu->sregs.fs.base : offset;
}

int x86_operand_load(struct x86_emu *emu, const struct x86_insn *insn, unsigned n, uint64_t *value)
{
    if (insn->memory)
        return x86_load(x86_interpreter_of(emu), x86_linear(emu, insn), n, value);
    *value = x86_gpr_read(emu, insn, insn->rm, n);
    return X86_EMU_DONE;
}

int x86_operand_store(struct x86_emu *emu, const struct x86_insn *insn, unsigned n, uint64_t value)
{
    if (insn->memory)
        return x86_store(x86_interpreter_of(emu), x86_linear(emu, insn), n, value);
    x86_gpr_write(emu, insn, insn->rm, n, value);
    return X86_EMU_DONE;
}

/* ---- instructions ---- */

/* Up to 16 bytes from RIP on; how many. What lies beyond the page is fetched where it can be. */
static unsigned fetch(struct x86_interpreter *in, uint64_t bytes[2])
{
    uint64_t rip = in->emu.regs.rip;
    unsigned here = X86_PAGE - (rip & (X86_PAGE - 1));
    const struct x86_way *way = x86_way(in, rip, 1, X86_FETCH);

    if (!way)
        return 0;
    if (here >= 16) {
        memcpy(bytes, way->host + X86_PAGE - here, 16);
        return 16;
    }
    bytes[0] = bytes[1] = 0;
    memcpy(bytes, way->host + X86_PAGE - here, here);
    way = x86_way(in, rip + here, 1, X86_FETCH);
    if (!way)
        return here;
    memcpy((uint8_t *)bytes + here, way->host, 16 - here);
    return 16;
}

static const struct x86_insn *decode(struct x86_cached *cached, const uint64_t bytes[2], unsigned n)
{
    uint8_t *mask = (uint8_t *)cached->mask;

    if (x86_decode_by(x86_interpreted, (const uint8_t *)bytes, n < 15 ? n : 15, X86_CODE64,
                      &cached->insn) != 0) {
        memset(cached, 0, sizeof(*cached));
        return NULL;
    }
    memset(mask, 0, 16);
    memset(mask, 0xFF, cached->insn.length);
    cached->bytes[0] = bytes[0] & cached->mask[0];
    cached->bytes[1] = bytes[1] & cached->mask[1];
    return &cached->insn;
}

static const struct x86_insn *next_insn(struct x86_interpreter *in)
{
    uint64_t rip = in->emu.regs.rip, bytes[2];
    struct x86_cached *cached = &in->cache[(rip ^ rip >> 11) % X86_INTERPRET_CACHE];
    unsigned n = fetch(in, bytes);

    if (n == 0)
        return NULL;
    if (cached->mask[0] && (bytes[0] & cached->mask[0]) == cached->bytes[0] &&
        (bytes[1] & cached->mask[1]) == cached->bytes[1] && cached->insn.length <= n)
        return &cached->insn;
    return decode(cached, bytes, n);
}

/* An STI before an instruction that is left is left as well: KVM then knows of its shadow. */
static enum x86_interpret_end leave(struct x86_interpreter *in, uint64_t rip, bool shadow)
{
    in->emu.regs.rip = rip;
    if (shadow) {
        in->emu.regs.rip = in->before_sti;
        in->emu.regs.rflags &= ~X86_FLAG_IF;
    }
    in->interruptible_next = false;
    return X86_INTERPRET_LEFT;
}

/* For interrupts; those that are off are waited for, but not for ever. */
static bool is_long_enough(const struct x86_interpreter *in, int left, int budget)
{
    return left <= 0 && (in->emu.regs.rflags & X86_FLAG_IF || left <= -PATIENCE * budget);
}

static bool is_stopped(const struct x86_interpreter *in)
{
    return in->stop && __atomic_load_n(in->stop, __ATOMIC_RELAXED);
}

/* Whether KVM, were it to step this one, would leave what is kept here behind the times: HLT, group 0F 01
 * (INVLPG, SWAPGS), moves to control registers, WRMSR. */
static bool is_for_here(const struct x86_insn *insn)
{
    if (insn->op->map != X86_MAP_0F)
        return insn->opcode == 0xF4;
    return insn->opcode == 0x01 || insn->opcode == 0x22 || insn->opcode == 0x30;
}

enum x86_interpret_end x86_interpret(struct x86_interpreter *in, int budget)
{
    struct x86_emu *emu = &in->emu;

    in->interruptible_next = in->user = in->halted = false;
    in->table_left = 0;
    for (int left = budget;; left--) {
        const struct x86_insn *insn = next_insn(in);
        bool shadow = in->interruptible_next;
        uint64_t rip = emu->regs.rip;

        if (!shadow && (is_stopped(in) || (is_long_enough(in, left, budget) &&
                                           !(insn && is_for_here(insn)))))
            return X86_INTERPRET_BUDGET;
        in->interruptible_next = false;
        if (!insn)
            return leave(in, rip, shadow);
        emu->regs.rip += insn->length;
        if (insn->op->execute(emu, insn) != X86_EMU_DONE)
            return leave(in, rip, shadow);
        emu->regs.rflags &= ~X86_FLAG_RF;
        if (in->user || in->halted)
            return in->user ? X86_INTERPRET_USER : X86_INTERPRET_HALTED;
    }
}
