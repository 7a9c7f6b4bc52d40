/*
 * The interpreter's system instructions: those that concern no more than the vCPU's registers.
 *
 * What has effects beyond them (ports, most MSRs, most bits of control registers, HLT, descriptor
 * tables) is KVM's. The vCPU's thread. Texts: Intel SDM volume 2, each instruction's page; volume 3A §3.4.5
 * (descriptors), §6.14 (IRET in 64-bit mode), §4.10.4 (what invalidates translations).
 */
#include <cpuid.h>
#include <x86intrin.h>

#include "vmm/x86/interpret_internal.h"

#define MSR_FS_BASE 0xC0000100u
#define MSR_GS_BASE 0xC0000101u
#define MSR_KERNEL_GS_BASE 0xC0000102u
#define CR3_NO_FLUSH (1ull << 63)
#define CR3_RESERVED 0xFFF0000000000000ull /* that is left to KVM to judge, with NO_FLUSH taken off */
#define FLAGS_FIXED 2ull
/* What POPF and IRET may change at CPL 0 (VIF and VIP, and TF, are KVM's business). */
#define FLAGS_POPPED                                                                               \
    (X86_ARITHMETIC | X86_FLAG_IF | X86_FLAG_DF | X86_FLAG_NT | X86_FLAG_AC | 3ull << 12 | 1ull << 21)

#define DESCRIPTOR_PRESENT (1ull << 47)
#define DESCRIPTOR_S (1ull << 44)
#define DESCRIPTOR_L (1ull << 53)
#define DESCRIPTOR_DB (1ull << 54)
#define DESCRIPTOR_G (1ull << 55)
#define TYPE_CODE 8u
#define TYPE_CONFORMING 4u
#define TYPE_WRITABLE 2u
#define TYPE_ACCESSED 1u

int x86_in_pushf(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t value = emu->regs.rflags & ~(X86_FLAG_VM | X86_FLAG_RF);

    if (insn->stack_size != 8 ||
        x86_store(x86_interpreter_of(emu), emu->regs.rsp - 8, 8, value) != X86_EMU_DONE)
        return X86_LEFT;
    emu->regs.rsp -= 8;
    return X86_EMU_DONE;
}

/* SMAP goes by AC: what was translated under another one is not kept. */
static void set_flags(struct x86_emu *emu, uint64_t flags)
{
    if ((emu->regs.rflags ^ flags) & X86_FLAG_AC && emu->sregs.cr4 & X86_CR4_SMAP)
        x86_interpret_flush(x86_interpreter_of(emu));
    emu->regs.rflags = flags;
}

int x86_in_popf(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint64_t value;

    if (insn->stack_size != 8 ||
        x86_load(x86_interpreter_of(emu), emu->regs.rsp, 8, &value) != X86_EMU_DONE ||
        value & X86_FLAG_TF)
        return X86_LEFT;
    emu->regs.rsp += 8;
    set_flags(emu, (emu->regs.rflags & ~FLAGS_POPPED) | (value & FLAGS_POPPED) | FLAGS_FIXED);
    return X86_EMU_DONE;
}

int x86_in_cli(struct x86_emu *emu, const struct x86_insn *insn)
{
    (void)insn;
    emu->regs.rflags &= ~X86_FLAG_IF;
    return X86_EMU_DONE;
}

int x86_in_sti(struct x86_emu *emu, const struct x86_insn *insn)
{
    struct x86_interpreter *in = x86_interpreter_of(emu);

    if (!(emu->regs.rflags & X86_FLAG_IF)) {
        in->interruptible_next = true;
        in->before_sti = emu->regs.rip - insn->length;
    }
    emu->regs.rflags |= X86_FLAG_IF;
    return X86_EMU_DONE;
}

int x86_in_hlt(struct x86_emu *emu, const struct x86_insn *insn)
{
    (void)insn;
    x86_interpreter_of(emu)->halted = true;
    return X86_EMU_DONE;
}

/* CLAC, STAC. */
int x86_in_ac(struct x86_emu *emu, const struct x86_insn *insn)
{
    if (!(emu->sregs.cr4 & X86_CR4_SMAP)) /* whether the guest's processor has them is not known here */
        return X86_LEFT;
    set_flags(emu, insn->op->detail ? emu->regs.rflags | X86_FLAG_AC
                                    : emu->regs.rflags & ~X86_FLAG_AC);
    return X86_EMU_DONE;
}

int x86_in_swapgs(struct x86_emu *emu, const struct x86_insn *insn)
{
    struct x86_interpreter *in = x86_interpreter_of(emu);
    uint64_t gs = emu->sregs.gs.base;

    (void)insn;
    if (!in->has_kernel_gs)
        return X86_LEFT;
    emu->sregs.gs.base = in->kernel_gs;
    in->kernel_gs = gs;
    in->sregs_changed = true;
    return X86_EMU_DONE;
}

int x86_in_from_cr(struct x86_emu *emu, const struct x86_insn *insn)
{
    const struct kvm_sregs *s = &emu->sregs;
    uint64_t *to = x86_reg(emu, insn->rm);

    switch (insn->reg) {
    case 0: *to = s->cr0; break;
    case 2: *to = s->cr2; break;
    case 3: *to = s->cr3; break;
    case 4: *to = s->cr4; break;
    default: return X86_LEFT;
    }
    return X86_EMU_DONE;
}

/* CR2 and CR3; the others' bits have effects that are KVM's. */
int x86_in_to_cr(struct x86_emu *emu, const struct x86_insn *insn)
{
    struct x86_interpreter *in = x86_interpreter_of(emu);
    uint64_t value = *x86_reg(emu, insn->rm);

    if (insn->reg == 2) {
        emu->sregs.cr2 = value;
    } else if (insn->reg == 3) {
        if (emu->sregs.cr4 & X86_CR4_PCIDE)
            value &= ~CR3_NO_FLUSH;
        if (value & CR3_RESERVED || !memory_at(emu->mem, value & ~0xFFFull, X86_PAGE))
            return X86_LEFT;
        emu->sregs.cr3 = value;
        x86_interpret_flush(in);
    } else {
        return X86_LEFT;
    }
    in->sregs_changed = true;
    return X86_EMU_DONE;
}

/* KVM has heard of what the guest wrote to its tables when it was written (tables.h). */
int x86_in_invlpg(struct x86_emu *emu, const struct x86_insn *insn)
{
    (void)insn;
    x86_interpret_flush(x86_interpreter_of(emu));
    return X86_EMU_DONE;
}

int x86_in_rdtsc(struct x86_emu *emu, const struct x86_insn *insn)
{
    struct x86_interpreter *in = x86_interpreter_of(emu);
    uint64_t tsc;

    (void)insn;
    if (!in->has_tsc)
        return X86_LEFT;
    tsc = __rdtsc() + (uint64_t)in->tsc_offset;
    emu->regs.rax = (uint32_t)tsc;
    emu->regs.rdx = tsc >> 32;
    return X86_EMU_DONE;
}

int x86_in_wrmsr(struct x86_emu *emu, const struct x86_insn *insn)
{
    struct x86_interpreter *in = x86_interpreter_of(emu);
    uint64_t value = (uint32_t)emu->regs.rax | emu->regs.rdx << 32;

    (void)insn;
    if (!x86_canonical(emu, value))
        return X86_LEFT;
    switch ((uint32_t)emu->regs.rcx) {
    case MSR_FS_BASE: emu->sregs.fs.base = value; break;
    case MSR_GS_BASE: emu->sregs.gs.base = value; break;
    case MSR_KERNEL_GS_BASE:
        if (!in->has_kernel_gs)
            return X86_LEFT;
        in->kernel_gs = value;
        return X86_EMU_DONE;
    default: return X86_LEFT;
    }
    in->sregs_changed = true;
    return X86_EMU_DONE;
}

int x86_in_rdmsr(struct x86_emu *emu, const struct x86_insn *insn)
{
    struct x86_interpreter *in = x86_interpreter_of(emu);
    uint64_t value;

    (void)insn;
    switch ((uint32_t)emu->regs.rcx) {
    case MSR_FS_BASE: value = emu->sregs.fs.base; break;
    case MSR_GS_BASE: value = emu->sregs.gs.base; break;
    case MSR_KERNEL_GS_BASE:
        if (!in->has_kernel_gs)
            return X86_LEFT;
        value = in->kernel_gs;
        break;
    default: return X86_LEFT;
    }
    emu->regs.rax = (uint32_t)value;
    emu->regs.rdx = value >> 32;
    return X86_EMU_DONE;
}

/* ---- to user mode, and back within the kernel ---- */

static struct kvm_segment segment_from(uint16_t selector, uint64_t d)
{
    uint32_t limit = (uint32_t)((d & 0xFFFF) | (d >> 32 & 0xF0000));

    return (struct kvm_segment){
        .base = (d >> 16 & 0xFFFFFF) | (d >> 32 & 0xFF000000),
        .limit = d & DESCRIPTOR_G ? limit << 12 | 0xFFF : limit,
        .selector = selector,
        .type = d >> 40 & 0xF,
        .s = !!(d & DESCRIPTOR_S),
        .dpl = d >> 45 & 3,
        .present = !!(d & DESCRIPTOR_PRESENT),
        .avl = d >> 52 & 1,
        .l = !!(d & DESCRIPTOR_L),
        .db = !!(d & DESCRIPTOR_DB),
        .g = !!(d & DESCRIPTOR_G),
    };
}

/* One that is as it always is: in the GDT, present, accessed already. */
static bool read_segment(struct x86_emu *emu, uint16_t selector, struct kvm_segment *out)
{
    unsigned at = selector & ~7u;
    uint64_t descriptor;

    if (selector & 4 || at == 0 || at + 7u > emu->sregs.gdt.limit ||
        x86_load(x86_interpreter_of(emu), emu->sregs.gdt.base + at, 8, &descriptor) !=
            X86_EMU_DONE)
        return false;
    *out = segment_from(selector, descriptor);
    return out->present && out->s && out->type & TYPE_ACCESSED;
}

/* The other segments stay: they are null, or a user's. */
static bool may_keep(const struct kvm_segment *s)
{
    return (s->selector & ~3) == 0 || s->unusable || s->dpl == 3;
}

static bool may_keep_all(const struct kvm_sregs *s)
{
    return may_keep(&s->ds) && may_keep(&s->es) && may_keep(&s->fs) && may_keep(&s->gs);
}

/* 64-bit code and its stack, both at CPL 3. */
static bool user_segments(struct x86_emu *emu, uint16_t cs, uint16_t ss, struct kvm_segment out[2])
{
    if ((cs & 3) != 3 || (ss & 3) != 3 || !read_segment(emu, cs, &out[0]) ||
        !read_segment(emu, ss, &out[1]) || !may_keep_all(&emu->sregs))
        return false;
    return out[0].type & TYPE_CODE && !(out[0].type & TYPE_CONFORMING) && out[0].dpl == 3 &&
           out[0].l && !out[0].db && !(out[1].type & TYPE_CODE) && out[1].type & TYPE_WRITABLE &&
           out[1].dpl == 3;
}

/* SS of the kernel's own code: the same, another of its data segments, or null, which 64-bit code may
 * have (SDM volume 3A §5.4.1). */
static bool kernel_stack(struct x86_emu *emu, uint16_t selector, struct kvm_segment *out)
{
    if (selector == emu->sregs.ss.selector)
        return true;
    *out = (struct kvm_segment){.unusable = 1};
    if (selector == 0)
        return true;
    return (selector & 3) == 0 && read_segment(emu, selector, out) && out->dpl == 0 &&
           !(out->type & TYPE_CODE) && out->type & TYPE_WRITABLE;
}

static bool read_frame(struct x86_emu *emu, uint64_t frame[5])
{
    for (unsigned i = 0; i < 5; i++)
        if (x86_load(x86_interpreter_of(emu), emu->regs.rsp + 8 * i, 8, &frame[i]) != X86_EMU_DONE)
            return false;
    return true;
}

/* In the frame: RIP, CS, RFLAGS, RSP, SS. */
int x86_in_iret(struct x86_emu *emu, const struct x86_insn *insn)
{
    struct x86_interpreter *in = x86_interpreter_of(emu);
    struct kvm_segment user[2];
    uint64_t frame[5];

    if (insn->size != 8 || emu->regs.rflags & X86_FLAG_NT || !read_frame(emu, frame) ||
        frame[2] & (X86_FLAG_TF | X86_FLAG_VM | X86_FLAG_NT) ||
        !x86_canonical(emu, frame[0]) || frame[1] >> 16 || frame[4] >> 16)
        return X86_LEFT;
    if (frame[1] == emu->sregs.cs.selector && kernel_stack(emu, (uint16_t)frame[4], &user[1])) {
        if (frame[4] != emu->sregs.ss.selector) {
            emu->sregs.ss = user[1];
            in->sregs_changed = true;
        }
    } else if (user_segments(emu, (uint16_t)frame[1], (uint16_t)frame[4], user)) {
        emu->sregs.cs = user[0];
        emu->sregs.ss = user[1];
        in->sregs_changed = in->user = true;
    } else {
        return X86_LEFT;
    }
    emu->regs.rip = frame[0];
    set_flags(emu, (frame[2] & FLAGS_POPPED) | FLAGS_FIXED);
    emu->regs.rsp = frame[3];
    return X86_EMU_DONE;
}

static struct kvm_segment flat(uint16_t selector, bool code)
{
    return (struct kvm_segment){
        .limit = UINT32_MAX, .selector = selector, .type = code ? 11 : 3, .present = 1, .dpl = 3,
        .s = 1, .g = 1, .l = code, .db = !code};
}

/* To 64-bit code only. */
int x86_in_sysret(struct x86_emu *emu, const struct x86_insn *insn)
{
    struct x86_interpreter *in = x86_interpreter_of(emu);
    uint16_t selector = (uint16_t)(in->star >> 48);

    if (insn->size != 8 || !(emu->sregs.efer & 1) || !x86_canonical(emu, emu->regs.rcx) ||
        emu->regs.r11 & X86_FLAG_TF)
        return X86_LEFT;
    emu->sregs.cs = flat((uint16_t)(selector + 16) | 3, true);
    emu->sregs.ss = flat((uint16_t)(selector + 8) | 3, false);
    emu->regs.rip = emu->regs.rcx;
    set_flags(emu, (emu->regs.r11 & FLAGS_POPPED) | FLAGS_FIXED);
    in->sregs_changed = in->user = true;
    return X86_EMU_DONE;
}
