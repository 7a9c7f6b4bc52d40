/*
 * One instruction, from RIP to its end: fetched, decoded, carried out; and the operands that all
 * instructions share.
 *
 * Does not do what an instruction is about (emulate_integer.c and its siblings), nor reach KVM. The
 * vCPU's thread; no locks. Texts: Intel SDM volume 1 §3.7 (operand addressing), §3.3.7 (canonical
 * addresses); volume 3A §5.3 (limits), §6.15 (faults).
 */
#include <errno.h>
#include <string.h>

#include "vmm/x86/emulate_internal.h"

#define PAGE 4096u
#define SEGMENT_CODE 8u
#define SEGMENT_EXPAND_DOWN 4u
#define SEGMENT_WRITABLE 2u
#define FLAGS_ARITHMETIC                                                                           \
    (X86_FLAG_CF | X86_FLAG_PF | X86_FLAG_AF | X86_FLAG_ZF | X86_FLAG_SF | X86_FLAG_OF)

enum x86_emu_result x86_raise(struct x86_emu *emu, uint8_t vector)
{
    emu->fault = (struct x86_fault){.vector = vector};
    return X86_EMU_FAULT;
}

enum x86_emu_result x86_raise_code(struct x86_emu *emu, uint8_t vector, uint32_t error)
{
    emu->fault = (struct x86_fault){.vector = vector, .has_error = true, .error = error};
    return X86_EMU_FAULT;
}

unsigned x86_emu_cpl(const struct x86_emu *emu)
{
    if (!(emu->sregs.cr0 & X86_CR0_PE))
        return 0;
    return emu->regs.rflags & X86_FLAG_VM ? 3 : emu->sregs.ss.dpl;
}

static enum x86_code_size code_size(const struct x86_emu *emu)
{
    if (!(emu->sregs.cr0 & X86_CR0_PE) || emu->regs.rflags & X86_FLAG_VM)
        return X86_CODE16;
    if (emu->sregs.efer & X86_EFER_LMA && emu->sregs.cs.l)
        return X86_CODE64;
    return emu->sregs.cs.db ? X86_CODE32 : X86_CODE16;
}

bool x86_long_mode(const struct x86_emu *emu)
{
    return code_size(emu) == X86_CODE64;
}

/* ---- registers ---- */

uint64_t *x86_gpr(struct x86_emu *emu, unsigned index)
{
    struct kvm_regs *r = &emu->regs;
    uint64_t *const gprs[16] = {
        (uint64_t *)&r->rax, (uint64_t *)&r->rcx, (uint64_t *)&r->rdx, (uint64_t *)&r->rbx,
        (uint64_t *)&r->rsp, (uint64_t *)&r->rbp, (uint64_t *)&r->rsi, (uint64_t *)&r->rdi,
        (uint64_t *)&r->r8,  (uint64_t *)&r->r9,  (uint64_t *)&r->r10, (uint64_t *)&r->r11,
        (uint64_t *)&r->r12, (uint64_t *)&r->r13, (uint64_t *)&r->r14, (uint64_t *)&r->r15,
    };

    return gprs[index & 15];
}

static uint64_t mask_of(unsigned size)
{
    return size >= 8 ? UINT64_MAX : (1ull << (8 * size)) - 1;
}

static bool is_high_byte(const struct x86_insn *insn, unsigned index, unsigned size)
{
    return size == 1 && !insn->rex && !insn->vex && index >= 4 && index < 8;
}

uint64_t x86_gpr_read(struct x86_emu *emu, const struct x86_insn *insn, unsigned index,
                      unsigned size)
{
    if (is_high_byte(insn, index, size))
        return *x86_gpr(emu, index - 4) >> 8 & 0xFF;
    return *x86_gpr(emu, index) & mask_of(size);
}

void x86_gpr_write(struct x86_emu *emu, const struct x86_insn *insn, unsigned index, unsigned size,
                   uint64_t value)
{
    uint64_t *gpr = x86_gpr(emu, index);

    if (is_high_byte(insn, index, size)) {
        gpr = x86_gpr(emu, index - 4);
        *gpr = (*gpr & ~0xFF00ull) | (value & 0xFF) << 8;
        return;
    }
    if (size >= 4)
        *gpr = value & mask_of(size);
    else
        *gpr = (*gpr & ~mask_of(size)) | (value & mask_of(size));
}

void x86_set_flags(struct x86_emu *emu, uint64_t flags)
{
    emu->regs.rflags = (emu->regs.rflags & ~FLAGS_ARITHMETIC) | (flags & FLAGS_ARITHMETIC);
}

/* ---- operands ---- */

static const struct kvm_segment *segment_of(const struct x86_emu *emu, unsigned segment)
{
    const struct kvm_sregs *s = &emu->sregs;

    switch (segment) {
    case X86_ES: return &s->es;
    case X86_CS: return &s->cs;
    case X86_SS: return &s->ss;
    case X86_FS: return &s->fs;
    case X86_GS: return &s->gs;
    default: return &s->ds;
    }
}

bool x86_canonical(const struct x86_emu *emu, uint64_t linear)
{
    unsigned shift = emu->sregs.cr4 & X86_CR4_LA57 ? 7 : 16;

    return (uint64_t)((int64_t)(linear << shift) >> shift) == linear;
}

/* SDM volume 3A §5.3, §5.5: outside 64-bit mode. */
static bool within_segment(const struct x86_emu *emu, const struct kvm_segment *s, uint64_t offset,
                           size_t n, bool write)
{
    uint64_t last = offset + n - 1;

    if (!(emu->sregs.cr0 & X86_CR0_PE))
        return last <= s->limit;
    if (s->unusable || !s->present)
        return false;
    if (write && (s->type & SEGMENT_CODE || !(s->type & SEGMENT_WRITABLE)))
        return false;
    if (!(s->type & SEGMENT_CODE) && s->type & SEGMENT_EXPAND_DOWN)
        return offset > s->limit && last <= (s->db ? UINT32_MAX : UINT16_MAX);
    return last <= s->limit;
}

static uint64_t offset_of(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t offset = (uint64_t)insn->displacement;

    if (insn->rip_relative)
        offset += emu->regs.rip;
    if (insn->base >= 0)
        offset += *x86_gpr(emu, (unsigned)insn->base);
    if (insn->index >= 0)
        offset += *x86_gpr(emu, (unsigned)insn->index) * insn->scale;
    return offset & mask_of(insn->address_size);
}

enum x86_emu_result x86_operand(struct x86_emu *emu, const struct x86_insn *insn, size_t n,
                                bool write, uint64_t *linear)
{
    const struct kvm_segment *segment = segment_of(emu, insn->segment);
    uint8_t vector = insn->segment == X86_SS ? X86_VECTOR_SS : X86_VECTOR_GP;
    uint64_t offset = offset_of(emu, insn);

    if (x86_long_mode(emu)) {
        if (insn->segment == X86_FS || insn->segment == X86_GS)
            offset += segment->base;
        *linear = offset;
        if (x86_canonical(emu, offset) && x86_canonical(emu, offset + n - 1))
            return X86_EMU_DONE;
        return x86_raise_code(emu, vector, 0);
    }
    *linear = (uint32_t)(segment->base + offset);
    if (within_segment(emu, segment, offset, n, write))
        return X86_EMU_DONE;
    return x86_raise_code(emu, vector, 0);
}

enum x86_emu_result x86_memory_read(struct x86_emu *emu, const struct x86_insn *insn, void *to,
                                    size_t n, unsigned align)
{
    uint64_t linear;
    enum x86_emu_result result = x86_operand(emu, insn, n, false, &linear);

    if (result != X86_EMU_DONE)
        return result;
    if (linear & (align - 1))
        return x86_raise_code(emu, X86_VECTOR_GP, 0);
    return x86_emu_read(emu, linear, to, n, X86_READ);
}

enum x86_emu_result x86_memory_write(struct x86_emu *emu, const struct x86_insn *insn,
                                     const void *from, size_t n, unsigned align)
{
    uint64_t linear;
    enum x86_emu_result result = x86_operand(emu, insn, n, true, &linear);

    if (result != X86_EMU_DONE)
        return result;
    if (linear & (align - 1))
        return x86_raise_code(emu, X86_VECTOR_GP, 0);
    return x86_emu_write(emu, linear, from, n, X86_WRITE);
}

enum x86_emu_result x86_rm_read(struct x86_emu *emu, const struct x86_insn *insn, unsigned size,
                                uint64_t *value)
{
    *value = 0;
    if (insn->memory)
        return x86_memory_read(emu, insn, value, size, 1);
    *value = x86_gpr_read(emu, insn, insn->rm, size);
    return X86_EMU_DONE;
}

enum x86_emu_result x86_rm_write(struct x86_emu *emu, const struct x86_insn *insn, unsigned size,
                                 uint64_t value)
{
    if (insn->memory)
        return x86_memory_write(emu, insn, &value, size, 1);
    x86_gpr_write(emu, insn, insn->rm, size, value);
    return X86_EMU_DONE;
}

/* ---- one instruction ---- */

/* Bytes from RIP on: those of its page first, and of the next only where the instruction goes on. */
static enum x86_emu_result fetch_more(struct x86_emu *emu)
{
    uint64_t linear = emu->regs.rip + emu->n_bytes;
    enum x86_emu_result result;
    size_t n;

    if (!x86_long_mode(emu))
        linear = (uint32_t)(emu->sregs.cs.base + linear);
    n = PAGE - (linear & (PAGE - 1));
    if (n > X86_INSN_MAX - emu->n_bytes)
        n = X86_INSN_MAX - emu->n_bytes;
    result = x86_emu_read(emu, linear, emu->bytes + emu->n_bytes, n, X86_FETCH);
    if (result == X86_EMU_DONE)
        emu->n_bytes += (unsigned)n;
    return result;
}

static enum x86_emu_result fetch(struct x86_emu *emu)
{
    emu->n_bytes = 0;
    emu->insn = (struct x86_insn){0};
    for (;;) {
        enum x86_emu_result result = fetch_more(emu);
        int err;

        if (result != X86_EMU_DONE)
            return result;
        err = x86_decode(emu->bytes, emu->n_bytes, code_size(emu), &emu->insn);
        if (err == 0)
            return X86_EMU_DONE;
        if (err == -EINVAL)
            return x86_raise(emu, X86_VECTOR_UD); /* LOCK where it may not stand */
        if (err == -E2BIG)
            return x86_raise_code(emu, X86_VECTOR_GP, 0);
        if (err != -EAGAIN || emu->n_bytes == X86_INSN_MAX)
            return X86_EMU_UNKNOWN;
    }
}

enum x86_emu_result x86_emulate(struct x86_emu *emu)
{
    const struct kvm_regs before = emu->regs;
    enum x86_emu_result result = fetch(emu);

    if (result != X86_EMU_DONE)
        return result;
    emu->regs.rip += emu->insn.length;
    if (!x86_long_mode(emu))
        emu->regs.rip = (uint32_t)emu->regs.rip;
    result = (enum x86_emu_result)emu->insn.op->execute(emu, &emu->insn);
    if (result == X86_EMU_DONE)
        emu->regs.rflags &= ~X86_FLAG_RF;
    else
        emu->regs = before;
    return result;
}
