/*
 * Instructions of operating systems: software interrupts, descriptors, segment bases, translations,
 * time; and those that only hint.
 *
 * Interrupts are entered in 64-bit mode only. A task switch, a call gate, virtual-8086 mode: none is
 * known here. The vCPU's thread. Texts: Intel SDM volume 3A §3.4.5 and §3.5 (descriptors), §6.11 to
 * 6.14 (the IDT in 64-bit mode), §7.7 (the 64-bit TSS); volume 2, each instruction's page.
 */
#include "vmm/x86/emulate_internal.h"

#define CR4_TSD (1ull << 2)
#define CR4_FSGSBASE (1ull << 16)
#define MSR_TSC 0x10u
#define MSR_TSC_AUX 0xC0000103u

#define GATE_INTERRUPT 0xEu
#define GATE_TRAP 0xFu
#define GATE_PRESENT (1u << 15)
#define TSS_RSP0 4u
#define TSS_IST1 36u

#define TYPE_CODE 8u
#define TYPE_CONFORMING 4u
#define TYPE_READABLE_WRITABLE 2u

struct descriptor {
    uint64_t raw;
    unsigned type, dpl;
    bool code_or_data, present, is_long, big, granular;
    uint32_t limit; /* in bytes - 1 */
};

static struct descriptor unpack_descriptor(uint64_t raw)
{
    struct descriptor d = {
        .raw = raw,
        .type = raw >> 40 & 0xF,
        .dpl = raw >> 45 & 3,
        .code_or_data = raw >> 44 & 1,
        .present = raw >> 47 & 1,
        .is_long = raw >> 53 & 1,
        .big = raw >> 54 & 1,
        .granular = raw >> 55 & 1,
        .limit = (uint32_t)((raw & 0xFFFF) | (raw >> 32 & 0xF0000)),
    };

    if (d.granular)
        d.limit = d.limit << 12 | 0xFFF;
    return d;
}

/* *found is false for a selector that is null or beyond its table. */
static enum x86_emu_result read_descriptor(struct x86_emu *emu, uint16_t selector, bool *found,
                                           struct descriptor *out)
{
    bool local = selector & 4;
    uint64_t base = local ? emu->sregs.ldt.base : emu->sregs.gdt.base, raw;
    uint32_t limit = local ? emu->sregs.ldt.limit : emu->sregs.gdt.limit;
    enum x86_emu_result result;

    *found = (selector & ~3u) != 0 && (selector | 7u) <= limit &&
             !(local && emu->sregs.ldt.unusable);
    if (!*found)
        return X86_EMU_DONE;
    result = x86_emu_read(emu, base + (selector & ~7u), &raw, sizeof(raw), X86_READ | X86_SYSTEM);
    if (result == X86_EMU_DONE)
        *out = unpack_descriptor(raw);
    return result;
}

/* ---- interrupts ---- */

struct gate {
    uint64_t offset;
    uint16_t selector;
    unsigned ist, type, dpl;
    bool present;
};

static enum x86_emu_result read_gate(struct x86_emu *emu, uint8_t vector, struct gate *gate)
{
    uint64_t raw[2];
    enum x86_emu_result result;

    if (vector * 16u + 15 > emu->sregs.idt.limit)
        return x86_raise_code(emu, X86_VECTOR_GP, vector * 8u + 2);
    result = x86_emu_read(emu, emu->sregs.idt.base + vector * 16u, raw, sizeof(raw),
                          X86_READ | X86_SYSTEM);
    *gate = (struct gate){
        .offset = (raw[0] & 0xFFFF) | (raw[0] >> 32 & 0xFFFF0000) | raw[1] << 32,
        .selector = (uint16_t)(raw[0] >> 16),
        .ist = raw[0] >> 32 & 7,
        .type = raw[0] >> 40 & 0x1F,
        .dpl = raw[0] >> 45 & 3,
        .present = raw[0] >> 32 & GATE_PRESENT,
    };
    return result;
}

/* §6.14.2: by IST, or by the TSS where the privilege changes, or the stack that is there. */
static enum x86_emu_result choose_stack(struct x86_emu *emu, const struct gate *gate, unsigned cpl,
                                        uint64_t *rsp)
{
    uint32_t at = gate->ist ? TSS_IST1 + 8 * (gate->ist - 1) : TSS_RSP0 + 8 * cpl;

    *rsp = emu->regs.rsp;
    if (!gate->ist && cpl == x86_emu_cpl(emu))
        return X86_EMU_DONE;
    if (at + 7 > emu->sregs.tr.limit)
        return x86_raise_code(emu, 10 /* #TS */, emu->sregs.tr.selector & ~3u);
    return x86_emu_read(emu, emu->sregs.tr.base + at, rsp, sizeof(*rsp), X86_READ | X86_SYSTEM);
}

static void set_code_segment(struct kvm_segment *cs, uint16_t selector, unsigned cpl,
                             const struct descriptor *d)
{
    *cs = (struct kvm_segment){
        .limit = d->limit,
        .selector = (uint16_t)((selector & ~3u) | cpl),
        .type = (uint8_t)(d->type | 1),
        .present = 1,
        .dpl = (uint8_t)cpl,
        .db = d->big,
        .s = 1,
        .l = d->is_long,
        .g = d->granular,
    };
}

static enum x86_emu_result enter_handler(struct x86_emu *emu, const struct gate *gate,
                                         const struct descriptor *code)
{
    unsigned old = x86_emu_cpl(emu), cpl = code->type & TYPE_CONFORMING ? old : code->dpl;
    struct kvm_sregs *s = &emu->sregs;
    uint64_t rsp, frame[5] = {emu->regs.rip, s->cs.selector, emu->regs.rflags, emu->regs.rsp,
                              s->ss.selector};
    enum x86_emu_result result = choose_stack(emu, gate, cpl, &rsp);

    if (result != X86_EMU_DONE)
        return result;
    rsp = (rsp & ~15ull) - sizeof(frame);
    result = x86_emu_write(emu, rsp, frame, sizeof(frame), cpl < 3 ? X86_SYSTEM : 0);
    if (result != X86_EMU_DONE)
        return result;
    set_code_segment(&s->cs, gate->selector, cpl, code);
    if (cpl != old)
        s->ss = (struct kvm_segment){.selector = (uint16_t)cpl, .dpl = (uint8_t)cpl, .type = 3,
                                     .present = 1, .s = 1, .db = 1, .g = 1, .limit = UINT32_MAX};
    emu->sregs_changed = true;
    emu->regs.rsp = rsp;
    emu->regs.rip = gate->offset;
    emu->regs.rflags &= ~(X86_FLAG_TF | X86_FLAG_NT | X86_FLAG_RF | X86_FLAG_VM);
    if ((gate->type & 0xF) == GATE_INTERRUPT)
        emu->regs.rflags &= ~X86_FLAG_IF;
    return X86_EMU_DONE;
}

/* Enters the handler of what INT n, INT3 or INT1 raise, in 64-bit mode, to return to regs.rip, having
 * checked its gate (SDM volume 3A §6.12.1.3, §6.14.1). */
static enum x86_emu_result interrupt(struct x86_emu *emu, uint8_t vector, bool check_dpl)
{
    struct descriptor code = {0};
    struct gate gate = {0};
    bool found;
    enum x86_emu_result result;

    if (!x86_long_mode(emu))
        return X86_EMU_UNKNOWN;
    result = read_gate(emu, vector, &gate);
    if (result != X86_EMU_DONE)
        return result;
    if ((gate.type != GATE_INTERRUPT && gate.type != GATE_TRAP) ||
        (check_dpl && gate.dpl < x86_emu_cpl(emu)))
        return x86_raise_code(emu, X86_VECTOR_GP, vector * 8u + 2);
    if (!gate.present)
        return x86_raise_code(emu, X86_VECTOR_NP, vector * 8u + 2);
    result = read_descriptor(emu, gate.selector, &found, &code);
    if (result != X86_EMU_DONE)
        return result;
    if (!found || !code.code_or_data || !(code.type & TYPE_CODE) || !code.is_long || code.big ||
        code.dpl > x86_emu_cpl(emu))
        return x86_raise_code(emu, X86_VECTOR_GP, found ? gate.selector & ~3u : 0);
    if (!code.present)
        return x86_raise_code(emu, X86_VECTOR_NP, gate.selector & ~3u);
    if (!x86_canonical(emu, gate.offset))
        return x86_raise_code(emu, X86_VECTOR_GP, 0);
    return enter_handler(emu, &gate, &code);
}

int x86_do_int3(struct x86_emu *emu, const struct x86_insn *insn)
{
    (void)insn;
    return interrupt(emu, X86_VECTOR_BP, true);
}

int x86_do_int1(struct x86_emu *emu, const struct x86_insn *insn)
{
    (void)insn;
    return interrupt(emu, X86_VECTOR_DB, false);
}

int x86_do_int(struct x86_emu *emu, const struct x86_insn *insn)
{
    return interrupt(emu, (uint8_t)insn->immediate, true);
}

int x86_do_undefined(struct x86_emu *emu, const struct x86_insn *insn)
{
    (void)insn;
    return x86_raise(emu, X86_VECTOR_UD);
}

/* ---- flags, bases, time ---- */

/* CLAC (0xCA), STAC (0xCB) */
int x86_do_ac(struct x86_emu *emu, const struct x86_insn *insn)
{
    if (x86_emu_cpl(emu) > 0)
        return x86_raise(emu, X86_VECTOR_UD);
    if (insn->rm & 1)
        emu->regs.rflags |= X86_FLAG_AC;
    else
        emu->regs.rflags &= ~X86_FLAG_AC;
    return X86_EMU_DONE;
}

static void set_edx_eax(struct x86_emu *emu, uint64_t value)
{
    emu->regs.rax = (uint32_t)value;
    emu->regs.rdx = value >> 32;
}

/* Index 1 asks which components are not in their initial state. */
int x86_do_xgetbv(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t in_use;

    (void)insn;
    if (!(emu->sregs.cr4 & X86_CR4_OSXSAVE))
        return x86_raise(emu, X86_VECTOR_UD);
    if ((uint32_t)emu->regs.rcx > 1)
        return x86_raise_code(emu, X86_VECTOR_GP, 0);
    if (!emu->xstate_loaded && emu->ops->load_xstate(emu) < 0)
        return X86_EMU_UNKNOWN;
    emu->xstate_loaded = true;
    __builtin_memcpy(&in_use, emu->xstate.bytes + X86_XSTATE_BV, sizeof(in_use));
    set_edx_eax(emu, (uint32_t)emu->regs.rcx == 0 ? emu->xcr0 : emu->xcr0 & in_use);
    return X86_EMU_DONE;
}

int x86_do_rdtscp(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t tsc, aux;

    (void)insn;
    if (emu->sregs.cr4 & CR4_TSD && x86_emu_cpl(emu) > 0)
        return x86_raise_code(emu, X86_VECTOR_GP, 0);
    if (emu->ops->read_msr(emu, MSR_TSC_AUX, &aux) < 0 ||
        emu->ops->read_msr(emu, MSR_TSC, &tsc) < 0)
        return X86_EMU_UNKNOWN;
    set_edx_eax(emu, tsc);
    emu->regs.rcx = (uint32_t)aux;
    return X86_EMU_DONE;
}

int x86_do_rdpid(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t aux;

    if (emu->ops->read_msr(emu, MSR_TSC_AUX, &aux) < 0)
        return X86_EMU_UNKNOWN;
    *x86_gpr(emu, insn->rm) = (uint32_t)aux;
    return X86_EMU_DONE;
}

/* RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE: ModRM.reg 0 to 3 */
int x86_do_fsgsbase(struct x86_emu *emu, const struct x86_insn *insn)
{
    struct kvm_segment *segment = insn->reg & 1 ? &emu->sregs.gs : &emu->sregs.fs;
    unsigned size = insn->w ? 8 : 4;
    uint64_t base;

    if (!x86_long_mode(emu) || !(emu->sregs.cr4 & CR4_FSGSBASE))
        return x86_raise(emu, X86_VECTOR_UD);
    if (!(insn->reg & 2)) {
        x86_gpr_write(emu, insn, insn->rm, size, segment->base);
        return X86_EMU_DONE;
    }
    base = x86_gpr_read(emu, insn, insn->rm, size);
    if (!x86_canonical(emu, base))
        return x86_raise_code(emu, X86_VECTOR_GP, 0);
    segment->base = base;
    emu->sregs_changed = true;
    return X86_EMU_DONE;
}

/* ---- descriptors ---- */

/* Types of system segments that LAR knows, and those of them that LSL knows, in 64-bit mode and
 * outside (SDM volume 2A, tables 3-53 and 3-60). */
static bool system_type_known(const struct x86_emu *emu, unsigned type, bool limit)
{
    uint32_t types = emu->sregs.efer & X86_EFER_LMA ? 0x0A04 : 0x0A0E; /* LDT, TSS */

    if (!limit)
        types |= emu->sregs.efer & X86_EFER_LMA ? 0x1000 : 0x1030; /* call and task gates */
    return types >> type & 1;
}

int x86_do_lar_lsl(struct x86_emu *emu, const struct x86_insn *insn)
{
    bool limit = insn->opcode == 0x03, found, visible;
    struct descriptor d = {0};
    uint64_t selector;
    enum x86_emu_result result = x86_rm_read(emu, insn, 2, &selector);

    if (!(emu->sregs.cr0 & X86_CR0_PE) || emu->regs.rflags & X86_FLAG_VM)
        return x86_raise(emu, X86_VECTOR_UD);
    if (result == X86_EMU_DONE)
        result = read_descriptor(emu, (uint16_t)selector, &found, &d);
    if (result != X86_EMU_DONE)
        return result;
    visible = found && (d.code_or_data || system_type_known(emu, d.type, limit));
    if (!(d.code_or_data && (d.type & (TYPE_CODE | TYPE_CONFORMING)) ==
                                (TYPE_CODE | TYPE_CONFORMING)))
        visible = visible && d.dpl >= x86_emu_cpl(emu) && d.dpl >= (selector & 3);
    emu->regs.rflags &= ~X86_FLAG_ZF;
    if (!visible)
        return X86_EMU_DONE;
    emu->regs.rflags |= X86_FLAG_ZF;
    x86_gpr_write(emu, insn, insn->reg, insn->size, limit ? d.limit : d.raw >> 32 & 0x00FFFF00);
    return X86_EMU_DONE;
}

/* VERR (ModRM.reg 4), VERW (5) */
int x86_do_verr_verw(struct x86_emu *emu, const struct x86_insn *insn)
{
    bool write = (insn->reg & 7) == 5, found, good, code;
    struct descriptor d = {0};
    uint64_t selector;
    enum x86_emu_result result = x86_rm_read(emu, insn, 2, &selector);

    if (!(emu->sregs.cr0 & X86_CR0_PE) || emu->regs.rflags & X86_FLAG_VM)
        return x86_raise(emu, X86_VECTOR_UD);
    if (result == X86_EMU_DONE)
        result = read_descriptor(emu, (uint16_t)selector, &found, &d);
    if (result != X86_EMU_DONE)
        return result;
    code = d.type & TYPE_CODE;
    good = found && d.code_or_data;
    if (!(code && d.type & TYPE_CONFORMING))
        good = good && d.dpl >= x86_emu_cpl(emu) && d.dpl >= (selector & 3);
    if (write)
        good = good && !code && d.type & TYPE_READABLE_WRITABLE;
    else
        good = good && (!code || d.type & TYPE_READABLE_WRITABLE);
    emu->regs.rflags = (emu->regs.rflags & ~X86_FLAG_ZF) | (good ? X86_FLAG_ZF : 0);
    return X86_EMU_DONE;
}

/* ---- translations, caches, hints ---- */

/* All translations go, which is more than is asked for. */
int x86_do_invpcid(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t type = x86_gpr_read(emu, insn, insn->reg, x86_long_mode(emu) ? 8 : 4), descriptor[2];
    enum x86_emu_result result;

    if (x86_emu_cpl(emu) > 0)
        return x86_raise_code(emu, X86_VECTOR_GP, 0);
    result = x86_memory_read(emu, insn, descriptor, sizeof(descriptor), 1);
    if (result != X86_EMU_DONE)
        return result;
    if (type > 3 || (type < 2 && descriptor[0] >> 12) ||
        (type < 2 && descriptor[0] && !(emu->sregs.cr4 & X86_CR4_PCIDE)) ||
        (type == 0 && !x86_canonical(emu, descriptor[1])))
        return x86_raise_code(emu, X86_VECTOR_GP, 0);
    emu->flush_tlb = true;
    return X86_EMU_DONE;
}

int x86_do_monitor(struct x86_emu *emu, const struct x86_insn *insn)
{
    (void)insn;
    if (x86_emu_cpl(emu) > 0)
        return x86_raise(emu, X86_VECTOR_UD);
    return emu->regs.rcx ? x86_raise_code(emu, X86_VECTOR_GP, 0) : X86_EMU_DONE;
}

/* May wake at once (SDM volume 2B, MWAIT: "other events"), as KVM has it too. */
int x86_do_mwait(struct x86_emu *emu, const struct x86_insn *insn)
{
    (void)insn;
    return x86_emu_cpl(emu) > 0 ? x86_raise(emu, X86_VECTOR_UD) : X86_EMU_DONE;
}

/* CLWB, CLFLUSHOPT: checked as a load of one byte. */
int x86_do_cache_line(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint8_t byte;

    return x86_memory_read(emu, insn, &byte, sizeof(byte), 1);
}
