/*
 * Instructions on the state of x87 and SSE as a whole: control and status words, FXSAVE, XSAVE and
 * their kin.
 *
 * Arithmetic is not here, except that FILD is, with which Linux clears the x87 pointers. The state
 * is KVM's image of it, the standard form of XSAVE; what the guest saves and restores is moved
 * between that and its own memory, in whichever form. Supervisor components are not known: with one
 * enabled in IA32_XSS, XSAVES and XRSTORS are not completed.
 *
 * The vCPU's thread. Texts: Intel SDM volume 1 §10.5 (FXSAVE), chapter 13 (XSAVE), §8.1 (x87);
 * volume 3A §2.5 (CR0.TS, EM, MP).
 */
#include <cpuid.h>
#include <string.h>

#include "vmm/x86/emulate_internal.h"

#define MSR_XSS 0xDA0u
#define FCW_INITIAL 0x037F
#define MXCSR_INITIAL 0x1F80u
#define MXCSR_MASK_AT 28u
#define MXCSR_MASK_DEFAULT 0xFFBFu
#define FSW_ES (1u << 7)
#define FSW_EXCEPTIONS 0x80FFu /* B, ES, SF and the six */
#define FSW_C1 (1u << 9)
#define FSW_TOP_SHIFT 11
#define COMPACT (1ull << 63)
#define HEADER_BYTES 64u
#define FXSAVE_USED 416u /* the rest of the 512 bytes is software's */

static uint16_t get16(const uint8_t *at)
{
    uint16_t value;

    memcpy(&value, at, sizeof(value));
    return value;
}

static uint32_t get32(const uint8_t *at)
{
    uint32_t value;

    memcpy(&value, at, sizeof(value));
    return value;
}

static uint64_t get64(const uint8_t *at)
{
    uint64_t value;

    memcpy(&value, at, sizeof(value));
    return value;
}

static void put16(uint8_t *at, uint16_t value)
{
    memcpy(at, &value, sizeof(value));
}

static void put32(uint8_t *at, uint32_t value)
{
    memcpy(at, &value, sizeof(value));
}

static void put64(uint8_t *at, uint64_t value)
{
    memcpy(at, &value, sizeof(value));
}

/* ---- whether it may run ---- */

enum x86_emu_result x86_use(struct x86_emu *emu, enum x86_unit unit)
{
    const struct kvm_sregs *s = &emu->sregs;

    if ((unit == X86_UNIT_SSE && (s->cr0 & X86_CR0_EM || !(s->cr4 & X86_CR4_OSFXSR))) ||
        ((unit == X86_UNIT_AVX || unit == X86_UNIT_XSAVE) && !(s->cr4 & X86_CR4_OSXSAVE)))
        return x86_raise(emu, X86_VECTOR_UD);
    if (s->cr0 & X86_CR0_TS || (unit == X86_UNIT_X87 && s->cr0 & X86_CR0_EM))
        return x86_raise(emu, X86_VECTOR_NM);
    if (!emu->xstate_loaded && emu->ops->load_xstate(emu) < 0)
        return X86_EMU_UNKNOWN;
    emu->xstate_loaded = true;
    if (unit == X86_UNIT_AVX && (emu->xcr0 & 6) != 6)
        return x86_raise(emu, X86_VECTOR_UD);
    return X86_EMU_DONE;
}

void x86_xstate_touched(struct x86_emu *emu, uint64_t components)
{
    uint8_t *at = emu->xstate.bytes + X86_XSTATE_BV;

    put64(at, get64(at) | components);
    emu->xstate_changed = true;
}

/* ---- x87 ---- */

/* A pending exception, that instructions which wait report first (§8.7). */
static enum x86_emu_result waiting_use(struct x86_emu *emu)
{
    enum x86_emu_result result = x86_use(emu, X86_UNIT_X87);

    if (result == X86_EMU_DONE && get16(emu->xstate.bytes + X86_XSTATE_FSW) & FSW_ES)
        return x86_raise(emu, X86_VECTOR_MF);
    return result;
}

int x86_do_fwait(struct x86_emu *emu, const struct x86_insn *insn)
{
    const uint64_t both = X86_CR0_MP | X86_CR0_TS;

    (void)insn;
    if ((emu->sregs.cr0 & both) == both)
        return x86_raise(emu, X86_VECTOR_NM);
    if (!emu->xstate_loaded && emu->ops->load_xstate(emu) < 0)
        return X86_EMU_UNKNOWN;
    emu->xstate_loaded = true;
    if (get16(emu->xstate.bytes + X86_XSTATE_FSW) & FSW_ES)
        return x86_raise(emu, X86_VECTOR_MF);
    return X86_EMU_DONE;
}

int x86_do_fnclex(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint8_t *fsw = emu->xstate.bytes + X86_XSTATE_FSW;
    enum x86_emu_result result = x86_use(emu, X86_UNIT_X87);

    (void)insn;
    if (result != X86_EMU_DONE)
        return result;
    put16(fsw, get16(fsw) & (uint16_t)~FSW_EXCEPTIONS);
    x86_xstate_touched(emu, X86_XSTATE_X87);
    return X86_EMU_DONE;
}

static void initial_x87(uint8_t *legacy)
{
    memset(legacy, 0, X86_XSTATE_MXCSR);
    put16(legacy + X86_XSTATE_FCW, FCW_INITIAL);
}

/* The registers keep their bits; the tags say empty. */
int x86_do_fninit(struct x86_emu *emu, const struct x86_insn *insn)
{
    enum x86_emu_result result = x86_use(emu, X86_UNIT_X87);

    (void)insn;
    if (result != X86_EMU_DONE)
        return result;
    initial_x87(emu->xstate.bytes);
    x86_xstate_touched(emu, X86_XSTATE_X87);
    return X86_EMU_DONE;
}

int x86_do_emms(struct x86_emu *emu, const struct x86_insn *insn)
{
    enum x86_emu_result result = waiting_use(emu);

    (void)insn;
    if (emu->sregs.cr0 & X86_CR0_EM)
        return x86_raise(emu, X86_VECTOR_UD);
    if (result != X86_EMU_DONE)
        return result;
    emu->xstate.bytes[X86_XSTATE_FTW] = 0;
    x86_xstate_touched(emu, X86_XSTATE_X87);
    return X86_EMU_DONE;
}

int x86_do_fnstsw_ax(struct x86_emu *emu, const struct x86_insn *insn)
{
    enum x86_emu_result result = x86_use(emu, X86_UNIT_X87);

    if (result == X86_EMU_DONE)
        x86_gpr_write(emu, insn, 0, 2, get16(emu->xstate.bytes + X86_XSTATE_FSW));
    return result;
}

static int store_word(struct x86_emu *emu, const struct x86_insn *insn, unsigned at)
{
    enum x86_emu_result result = x86_use(emu, X86_UNIT_X87);

    if (result != X86_EMU_DONE)
        return result;
    return x86_memory_write(emu, insn, emu->xstate.bytes + at, 2, 1);
}

int x86_do_fnstsw(struct x86_emu *emu, const struct x86_insn *insn)
{
    return store_word(emu, insn, X86_XSTATE_FSW);
}

int x86_do_fnstcw(struct x86_emu *emu, const struct x86_insn *insn)
{
    return store_word(emu, insn, X86_XSTATE_FCW);
}

/* ES and B follow from the exceptions that are no longer masked (§8.1.3.3). */
static void set_summary(uint8_t *legacy)
{
    uint16_t fsw = get16(legacy + X86_XSTATE_FSW), fcw = get16(legacy + X86_XSTATE_FCW);

    fsw &= (uint16_t)~0x8080u;
    if (fsw & ~fcw & 0x3F)
        fsw |= 0x8080;
    put16(legacy + X86_XSTATE_FSW, fsw);
}

int x86_do_fldcw(struct x86_emu *emu, const struct x86_insn *insn)
{
    enum x86_emu_result result = waiting_use(emu);
    uint16_t fcw;

    if (result == X86_EMU_DONE)
        result = x86_memory_read(emu, insn, &fcw, sizeof(fcw), 1);
    if (result != X86_EMU_DONE)
        return result;
    put16(emu->xstate.bytes + X86_XSTATE_FCW, (fcw & 0x1F3F) | 0x40);
    set_summary(emu->xstate.bytes);
    x86_xstate_touched(emu, X86_XSTATE_X87);
    return X86_EMU_DONE;
}

/* FILD of 2, 4 or 8 bytes: pushes an integer. */
int x86_do_fild(struct x86_emu *emu, const struct x86_insn *insn)
{
    unsigned size = insn->op->detail & X86_DETAIL_SIZE, top;
    enum x86_emu_result result = waiting_use(emu);
    uint8_t *legacy = emu->xstate.bytes;
    long double value;
    int64_t integer = 0;
    uint16_t fsw;

    if (result == X86_EMU_DONE)
        result = x86_memory_read(emu, insn, &integer, size, 1);
    if (result != X86_EMU_DONE)
        return result;
    fsw = get16(legacy + X86_XSTATE_FSW);
    top = ((fsw >> FSW_TOP_SHIFT) + 7) & 7;
    if (legacy[X86_XSTATE_FTW] >> top & 1)
        return X86_EMU_UNKNOWN; /* the stack overflows */
    integer = (int64_t)((uint64_t)integer << (64 - 8 * size)) >> (64 - 8 * size);
    value = (long double)integer;
    /* The registers stand in the order of the stack: pushing moves all by one. */
    memmove(legacy + X86_XSTATE_ST + 16, legacy + X86_XSTATE_ST, 16 * 7);
    memset(legacy + X86_XSTATE_ST, 0, 16);
    memcpy(legacy + X86_XSTATE_ST, &value, 10);
    legacy[X86_XSTATE_FTW] |= (uint8_t)(1u << top);
    put16(legacy + X86_XSTATE_FSW,
          (uint16_t)((fsw & ~(7u << FSW_TOP_SHIFT) & ~FSW_C1) | top << FSW_TOP_SHIFT));
    x86_xstate_touched(emu, X86_XSTATE_X87);
    return X86_EMU_DONE;
}

/* ---- MXCSR ---- */

static uint32_t mxcsr_mask(const struct x86_emu *emu)
{
    uint32_t mask = get32(emu->xstate.bytes + MXCSR_MASK_AT);

    return mask ? mask : MXCSR_MASK_DEFAULT;
}

int x86_do_ldmxcsr(struct x86_emu *emu, const struct x86_insn *insn)
{
    enum x86_emu_result result = x86_use(emu, insn->vex ? X86_UNIT_AVX : X86_UNIT_SSE);
    uint32_t mxcsr;

    if (result == X86_EMU_DONE)
        result = x86_memory_read(emu, insn, &mxcsr, sizeof(mxcsr), 1);
    if (result != X86_EMU_DONE)
        return result;
    if (mxcsr & ~mxcsr_mask(emu))
        return x86_raise_code(emu, X86_VECTOR_GP, 0);
    put32(emu->xstate.bytes + X86_XSTATE_MXCSR, mxcsr);
    x86_xstate_touched(emu, X86_XSTATE_SSE);
    return X86_EMU_DONE;
}

int x86_do_stmxcsr(struct x86_emu *emu, const struct x86_insn *insn)
{
    enum x86_emu_result result = x86_use(emu, insn->vex ? X86_UNIT_AVX : X86_UNIT_SSE);

    if (result != X86_EMU_DONE)
        return result;
    return x86_memory_write(emu, insn, emu->xstate.bytes + X86_XSTATE_MXCSR, 4, 1);
}

/* ---- the whole state ---- */

/* FIP and FDP are 64 bits wide with REX.W, else 32 and a selector, which is 0 (§10.5.1.1). */
static void narrow_pointers(uint8_t *legacy, const struct x86_insn *insn)
{
    if (insn->w)
        return;
    memset(legacy + 12, 0, 4);
    memset(legacy + 20, 0, 4);
}

static enum x86_emu_result fx_use(struct x86_emu *emu)
{
    if (emu->sregs.cr0 & (X86_CR0_EM | X86_CR0_TS))
        return x86_raise(emu, X86_VECTOR_NM);
    return x86_use(emu, X86_UNIT_X87);
}

int x86_do_fxsave(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint8_t area[FXSAVE_USED];
    enum x86_emu_result result = fx_use(emu);

    if (result != X86_EMU_DONE)
        return result;
    memcpy(area, emu->xstate.bytes, sizeof(area));
    put32(area + MXCSR_MASK_AT, mxcsr_mask(emu));
    narrow_pointers(area, insn);
    return x86_memory_write(emu, insn, area, sizeof(area), 16);
}

int x86_do_fxrstor(struct x86_emu *emu, const struct x86_insn *insn)
{
    uint8_t area[FXSAVE_USED];
    enum x86_emu_result result = fx_use(emu);

    if (result == X86_EMU_DONE)
        result = x86_memory_read(emu, insn, area, sizeof(area), 16);
    if (result != X86_EMU_DONE)
        return result;
    if (get32(area + X86_XSTATE_MXCSR) & ~mxcsr_mask(emu))
        return x86_raise_code(emu, X86_VECTOR_GP, 0);
    put32(area + MXCSR_MASK_AT, get32(emu->xstate.bytes + MXCSR_MASK_AT));
    narrow_pointers(area, insn);
    memcpy(emu->xstate.bytes, area, sizeof(area));
    x86_xstate_touched(emu, X86_XSTATE_X87 | X86_XSTATE_SSE);
    return X86_EMU_DONE;
}

/* Where components are (SDM volume 1 §13.4.2, §13.4.3): CPUID leaf 0xD. */
struct component {
    uint32_t size, offset; /* of the standard form */
    bool aligned;          /* to 64 bytes, in the compacted form */
};

static struct component component(unsigned index)
{
    uint32_t eax, ebx, ecx, edx;

    __cpuid_count(0xD, index, eax, ebx, ecx, edx);
    return (struct component){.size = eax, .offset = ebx, .aligned = ecx & 2};
}

struct xsave {
    uint64_t asked;  /* RFBM: what is moved */
    uint64_t in_use; /* what is not in its initial state */
    uint8_t area[X86_XSTATE_BYTES];
};

static enum x86_emu_result xsave_begin(struct x86_emu *emu, const struct x86_insn *insn,
                                       struct xsave *x, uint64_t *linear)
{
    enum x86_emu_result result = x86_use(emu, X86_UNIT_XSAVE);

    if (result == X86_EMU_DONE)
        result = x86_operand(emu, insn, X86_XSTATE_EXTENDED, false, linear);
    if (result != X86_EMU_DONE)
        return result;
    x->asked = emu->xcr0 & (emu->regs.rdx << 32 | (uint32_t)emu->regs.rax);
    x->in_use = get64(emu->xstate.bytes + X86_XSTATE_BV) & emu->xcr0;
    if (get32(emu->xstate.bytes + X86_XSTATE_MXCSR) != MXCSR_INITIAL)
        x->in_use |= X86_XSTATE_SSE;
    return *linear & 63 ? x86_raise_code(emu, X86_VECTOR_GP, 0) : X86_EMU_DONE;
}

/* The parts of the legacy region that x87 and SSE own; MXCSR's own rule is the caller's. */
static void copy_legacy(uint8_t *to, const uint8_t *from, uint64_t components)
{
    if (components & X86_XSTATE_X87) {
        memcpy(to, from, X86_XSTATE_MXCSR);
        memcpy(to + X86_XSTATE_ST, from + X86_XSTATE_ST, 128);
    }
    if (components & X86_XSTATE_SSE)
        memcpy(to + X86_XSTATE_XMM, from + X86_XSTATE_XMM, 256);
}

/* Fills the components from 2 on; returns where they end, or 0 if they are too large. */
static size_t fill_extended(struct x86_emu *emu, struct xsave *x, uint64_t components,
                            uint64_t format, bool compact)
{
    size_t end = X86_XSTATE_EXTENDED, at = X86_XSTATE_EXTENDED;

    for (unsigned i = 2; i < 63 && format >> i; i++) {
        struct component c;

        if (!(format >> i & 1))
            continue;
        c = component(i);
        if (compact && c.aligned)
            at = (at + 63) & ~(size_t)63;
        if (!compact)
            at = c.offset;
        if (c.offset + (size_t)c.size > X86_XSTATE_BYTES || at + c.size > X86_XSTATE_BYTES)
            return 0;
        if (components >> i & 1) {
            memcpy(x->area + at, emu->xstate.bytes + c.offset, c.size);
            end = at + c.size;
        }
        at += c.size;
    }
    return end;
}

/* XSAVE and XSAVEOPT: what is not asked for keeps what memory has. The latter may leave out what is
 * in its initial state, and may as well not. */
int x86_do_xsave(struct x86_emu *emu, const struct x86_insn *insn)
{
    struct xsave x;
    uint64_t linear, bv;
    size_t end;
    enum x86_emu_result result = xsave_begin(emu, insn, &x, &linear);

    if (result != X86_EMU_DONE)
        return result;
    end = fill_extended(emu, &x, x.asked, x.asked, false);
    if (end == 0)
        return X86_EMU_UNKNOWN;
    result = x86_emu_read(emu, linear, x.area, end, X86_WRITE);
    if (result != X86_EMU_DONE)
        return result;
    (void)fill_extended(emu, &x, x.asked, x.asked, false);
    copy_legacy(x.area, emu->xstate.bytes, x.asked);
    if (x.asked & X86_XSTATE_X87)
        narrow_pointers(x.area, insn);
    if (x.asked & (X86_XSTATE_SSE | X86_XSTATE_AVX)) {
        put32(x.area + X86_XSTATE_MXCSR, get32(emu->xstate.bytes + X86_XSTATE_MXCSR));
        put32(x.area + MXCSR_MASK_AT, mxcsr_mask(emu));
    }
    bv = get64(x.area + X86_XSTATE_BV);
    put64(x.area + X86_XSTATE_BV, (bv & ~x.asked) | (x.in_use & x.asked));
    return x86_emu_write(emu, linear, x.area, end, X86_WRITE);
}

static bool supervisor_state(struct x86_emu *emu)
{
    uint64_t xss = 0;

    return emu->ops->read_msr(emu, MSR_XSS, &xss) == 0 && xss != 0;
}

/* XSAVEC and XSAVES: the compacted form, of what is in use (§13.10, §13.11). */
int x86_do_xsavec(struct x86_emu *emu, const struct x86_insn *insn)
{
    bool supervisor = (insn->reg & 7) == 5;
    struct xsave x;
    uint64_t linear, saved;
    size_t end;
    enum x86_emu_result result;

    if (supervisor && x86_emu_cpl(emu) > 0)
        return x86_raise_code(emu, X86_VECTOR_GP, 0);
    result = xsave_begin(emu, insn, &x, &linear);
    if (result != X86_EMU_DONE)
        return result;
    if (supervisor && supervisor_state(emu))
        return X86_EMU_UNKNOWN;
    saved = x.asked & x.in_use;
    end = fill_extended(emu, &x, saved, x.asked, true);
    if (end == 0)
        return X86_EMU_UNKNOWN;
    result = x86_emu_read(emu, linear, x.area, end, X86_WRITE);
    if (result != X86_EMU_DONE)
        return result;
    (void)fill_extended(emu, &x, saved, x.asked, true);
    copy_legacy(x.area, emu->xstate.bytes, saved);
    if (saved & X86_XSTATE_X87)
        narrow_pointers(x.area, insn);
    if (saved & X86_XSTATE_SSE) {
        put32(x.area + X86_XSTATE_MXCSR, get32(emu->xstate.bytes + X86_XSTATE_MXCSR));
        put32(x.area + MXCSR_MASK_AT, mxcsr_mask(emu));
    }
    put64(x.area + X86_XSTATE_BV, saved);
    put64(x.area + X86_XCOMP_BV, x.asked | COMPACT);
    return x86_emu_write(emu, linear, x.area, end, X86_WRITE);
}

/* ---- restoring ---- */

static bool all_zero(const uint8_t *at, size_t n)
{
    uint8_t any = 0;

    for (size_t i = 0; i < n; i++)
        any |= at[i];
    return any == 0;
}

/* §13.8.1, §13.12: what the header may say. */
static bool header_good(const struct x86_emu *emu, const uint8_t *area, bool compact_only)
{
    uint64_t bv = get64(area + X86_XSTATE_BV), xcomp = get64(area + X86_XCOMP_BV);

    if (bv & ~emu->xcr0)
        return false;
    if (!(xcomp & COMPACT))
        return !compact_only && all_zero(area + X86_XCOMP_BV, 16);
    return !(xcomp & ~COMPACT & ~emu->xcr0) && !(bv & ~xcomp) &&
           all_zero(area + X86_XCOMP_BV + 8, HEADER_BYTES - 16);
}

/* Where component i stands in the guest's area; 0: nowhere. */
static size_t area_offset(uint64_t xcomp, unsigned wanted, const struct component *c)
{
    size_t at = X86_XSTATE_EXTENDED;

    if (!(xcomp & COMPACT))
        return c->offset;
    if (!(xcomp >> wanted & 1))
        return 0;
    for (unsigned i = 2; i <= wanted; i++) {
        struct component before;

        if (!(xcomp >> i & 1))
            continue;
        before = i == wanted ? *c : component(i);
        if (before.aligned)
            at = (at + 63) & ~(size_t)63;
        if (i < wanted)
            at += before.size;
    }
    return at;
}

static enum x86_emu_result restore_extended(struct x86_emu *emu, const struct xsave *x,
                                            uint64_t linear, uint8_t *image)
{
    uint64_t bv = get64(x->area + X86_XSTATE_BV), xcomp = get64(x->area + X86_XCOMP_BV);

    for (unsigned i = 2; i < 63 && x->asked >> i; i++) {
        struct component c;
        size_t at;
        enum x86_emu_result result;

        if (!(x->asked >> i & 1))
            continue;
        c = component(i);
        if (c.offset + (size_t)c.size > X86_XSTATE_BYTES)
            return X86_EMU_UNKNOWN;
        memset(image + c.offset, 0, c.size);
        at = area_offset(xcomp, i, &c);
        if (!(bv >> i & 1) || at == 0)
            continue;
        result = x86_emu_read(emu, linear + at, image + c.offset, c.size, X86_READ);
        if (result != X86_EMU_DONE)
            return result;
    }
    return X86_EMU_DONE;
}

/* §13.8.2, §13.12: MXCSR goes with SSE and AVX in the standard form, with SSE alone in the other. */
static bool restore_mxcsr(const struct x86_emu *emu, const struct xsave *x, uint8_t *image)
{
    uint64_t bv = get64(x->area + X86_XSTATE_BV);
    bool compact = get64(x->area + X86_XCOMP_BV) & COMPACT;
    uint32_t mxcsr = get32(x->area + X86_XSTATE_MXCSR);

    if (!(x->asked & (compact ? X86_XSTATE_SSE : X86_XSTATE_SSE | X86_XSTATE_AVX)))
        return true;
    if (compact && !(bv & X86_XSTATE_SSE))
        mxcsr = MXCSR_INITIAL;
    put32(image + X86_XSTATE_MXCSR, mxcsr);
    return !(mxcsr & ~mxcsr_mask(emu));
}

static int restore(struct x86_emu *emu, const struct x86_insn *insn, bool compact_only)
{
    struct x86_xstate image;
    struct xsave x;
    uint64_t linear, bv;
    enum x86_emu_result result = xsave_begin(emu, insn, &x, &linear);

    if (result == X86_EMU_DONE)
        result = x86_emu_read(emu, linear, x.area, X86_XSTATE_EXTENDED, X86_READ);
    if (result != X86_EMU_DONE)
        return result;
    image = emu->xstate;
    if (!header_good(emu, x.area, compact_only) || !restore_mxcsr(emu, &x, image.bytes))
        return x86_raise_code(emu, X86_VECTOR_GP, 0);
    result = restore_extended(emu, &x, linear, image.bytes);
    if (result != X86_EMU_DONE)
        return result;
    bv = get64(x.area + X86_XSTATE_BV) & x.asked;
    if (x.asked & X86_XSTATE_X87) {
        initial_x87(image.bytes);
        memset(image.bytes + X86_XSTATE_ST, 0, 128);
    }
    if (x.asked & X86_XSTATE_SSE)
        memset(image.bytes + X86_XSTATE_XMM, 0, 256);
    copy_legacy(image.bytes, x.area, bv);
    if (bv & X86_XSTATE_X87)
        narrow_pointers(image.bytes, insn);
    put64(image.bytes + X86_XSTATE_BV, (x.in_use & ~x.asked) | bv);
    emu->xstate = image;
    /* KVM takes MXCSR only with the component that has it. */
    x86_xstate_touched(emu, 0);
    if (get32(image.bytes + X86_XSTATE_MXCSR) != MXCSR_INITIAL)
        x86_xstate_touched(emu, X86_XSTATE_SSE);
    return X86_EMU_DONE;
}

int x86_do_xrstor(struct x86_emu *emu, const struct x86_insn *insn)
{
    return restore(emu, insn, false);
}

int x86_do_xrstors(struct x86_emu *emu, const struct x86_insn *insn)
{
    if (x86_emu_cpl(emu) > 0)
        return x86_raise_code(emu, X86_VECTOR_GP, 0);
    return supervisor_state(emu) ? X86_EMU_UNKNOWN : restore(emu, insn, true);
}
