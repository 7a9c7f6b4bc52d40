/*
 * Every instruction of the emulation's table beside the processor that runs this test: the same
 * bytes on the same registers and memory must leave the same. Instructions that only a kernel may
 * execute are in test_emulate.c.
 */
#include <cpuid.h>
#include <criterion/criterion.h>
#include <string.h>

#include "tests/unit/emulated_cpu.h"

#define ROUNDS 64
#define DATA_BYTES 1024
#define ARITHMETIC 0x8D5ull /* OF SF ZF AF PF CF */
#define XSAVE_BYTES 1024

/* What the assembly below knows by offset. */
struct native {
    uint64_t gprs[16]; /* in kvm_regs' order */
    uint64_t rflags;
    void *xstate;
};
_Static_assert(offsetof(struct kvm_regs, r15) == 15 * 8, "struct native's order");

void native_run(struct native *state, const void *code);
extern char native_return[];

/* Loads all but RSP, jumps to the code, which jumps back to native_return. */
__asm__(".pushsection .text\n"
        ".globl native_run, native_return\n"
        "native_run:\n"
        "  push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
        "  mov %rdi, native_state(%rip); mov %rsi, native_code(%rip)\n"
        "  mov 136(%rdi), %rcx; mov $7, %eax; xor %edx, %edx; xrstor64 (%rcx)\n"
        "  push 128(%rdi); popfq\n"
        "  mov 0(%rdi), %rax; mov 8(%rdi), %rbx; mov 16(%rdi), %rcx; mov 24(%rdi), %rdx\n"
        "  mov 32(%rdi), %rsi; mov 56(%rdi), %rbp\n"
        "  mov 64(%rdi), %r8; mov 72(%rdi), %r9; mov 80(%rdi), %r10; mov 88(%rdi), %r11\n"
        "  mov 96(%rdi), %r12; mov 104(%rdi), %r13; mov 112(%rdi), %r14; mov 120(%rdi), %r15\n"
        "  mov 40(%rdi), %rdi\n"
        "  jmp *native_code(%rip)\n"
        "native_return:\n"
        "  mov %rdi, native_rdi(%rip); mov native_state(%rip), %rdi\n"
        "  mov %rax, 0(%rdi); mov %rbx, 8(%rdi); mov %rcx, 16(%rdi); mov %rdx, 24(%rdi)\n"
        "  mov %rsi, 32(%rdi); mov %rbp, 56(%rdi)\n"
        "  mov %r8, 64(%rdi); mov %r9, 72(%rdi); mov %r10, 80(%rdi); mov %r11, 88(%rdi)\n"
        "  mov %r12, 96(%rdi); mov %r13, 104(%rdi); mov %r14, 112(%rdi); mov %r15, 120(%rdi)\n"
        "  pushfq; pop 128(%rdi)\n"
        "  mov native_rdi(%rip), %rax; mov %rax, 40(%rdi)\n"
        "  mov 136(%rdi), %rcx; mov $7, %eax; xor %edx, %edx; xsave64 (%rcx)\n"
        "  cld; fninit\n"
        "  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
        "  ret\n"
        ".popsection\n"
        ".pushsection .bss\n"
        "native_state: .skip 8\n"
        "native_code: .skip 8\n"
        "native_rdi: .skip 8\n"
        ".popsection\n");

static struct emulated_cpu cpu;
static uint64_t seed;

static uint64_t next_random(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

static void fill_random(void *to, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ((uint8_t *)to)[i] = (uint8_t)next_random();
}

static void set_up(void)
{
    unsigned a, b, c, d;

    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_AVX))
        cr_skip_test("this processor has no AVX, whose state these tests compare");
    emulated_cpu_init(&cpu);
    seed = 0x9E3779B97F4A7C15;
}

static void tear_down(void)
{
    if (cpu.memory)
        emulated_cpu_fini(&cpu);
}

TestSuite(emulate_native, .init = set_up, .fini = tear_down);

/* Random registers, RDI at the data, the 64 bytes there now and then equal to registers. */
static void prepare(unsigned round)
{
    struct kvm_regs *r = &cpu.emu.regs;
    uint64_t rsp = r->rsp;
    uint8_t *x = cpu.xstate.bytes;
    const uint32_t mxcsr = 0x1F80;
    const uint16_t fcw = 0x027F; /* not the initial one: x87 counts as in use */
    const uint64_t bv = 7;

    fill_random(r, 16 * 8);
    r->rsp = rsp;
    r->rdi = CPU_BASE + CPU_DATA + (round & 1 ? 0 : 64);
    if (round % 4 == 1) /* small numbers, too */
        r->rcx &= 63, r->rsi &= 0xFF, r->rbx = 0;
    r->rflags = 2 | (next_random() & ARITHMETIC);
    fill_random(cpu.memory + CPU_DATA, DATA_BYTES);
    if (round % 3 == 0) /* a comparison that holds */
        memcpy((void *)r->rdi, &(uint64_t[]){r->rax, r->rdx}, 16);
    if (round % 5 == 0)
        memset((void *)r->rdi, 0, 8);
    memset(x, 0, sizeof(cpu.xstate.bytes));
    fill_random(x + 160, 256);
    fill_random(x + 576, 256);
    memcpy(x, &fcw, 2);
    memcpy(x + 24, &mxcsr, 4);
    memcpy(x + 512, &bv, 8);
}

/* The instruction, then a jump back, in the user's pages. */
static void run_native(const uint8_t *bytes, size_t n, struct native *state)
{
    static const uint8_t jump[] = {0xFF, 0x25, 0, 0, 0, 0}; /* to what stands behind it */
    const char *back = native_return;
    uint8_t *code = cpu.memory + CPU_CODE;

    memcpy(code, bytes, n);
    memcpy(code + n, jump, sizeof(jump));
    memcpy(code + n + sizeof(jump), &back, sizeof(back));
    native_run(state, code);
}

/* What differs by design: the pointers to the last x87 instruction, and software's bytes. */
static void clear_pointers(uint8_t *xstate)
{
    memset(xstate + 6, 0, 18);
    memset(xstate + 28, 0, 4);
    memset(xstate + 416, 0, 96);
    memset(xstate + 512, 0, 64);
}

struct outcome {
    struct native state;
    _Alignas(64) uint8_t xstate[XSAVE_BYTES];
    uint8_t data[DATA_BYTES];
};

static void compare(const char *name, const struct outcome *native, const struct outcome *emulated,
                    uint64_t flags)
{
    for (unsigned i = 0; i < 16; i++)
        cr_assert_eq(native->state.gprs[i], emulated->state.gprs[i],
                     "%s: register %u is %#lx, and not %#lx", name, i, emulated->state.gprs[i],
                     native->state.gprs[i]);
    cr_assert_eq(native->state.rflags & flags, emulated->state.rflags & flags,
                 "%s: flags are %#lx, and not %#lx", name, emulated->state.rflags & flags,
                 native->state.rflags & flags);
    for (unsigned i = 0; i < DATA_BYTES; i++)
        cr_assert_eq(native->data[i], emulated->data[i], "%s: byte %u in memory is %#x, and not %#x",
                     name, i, emulated->data[i], native->data[i]);
    for (unsigned i = 0; i < 832; i++)
        cr_assert_eq(native->xstate[i], emulated->xstate[i],
                     "%s: byte %u of the extended state is %#x, and not %#x", name, i,
                     emulated->xstate[i], native->xstate[i]);
}

static void take_outcome(struct outcome *o, const void *xstate)
{
    if (xstate)
        memcpy(o->xstate, xstate, XSAVE_BYTES);
    memcpy(o->data, cpu.memory + CPU_DATA, DATA_BYTES);
    clear_pointers(o->xstate);
}

/* One round: on the processor first, then emulated from the same beginning. */
static void round_of(const char *name, const uint8_t *bytes, size_t n, uint64_t flags, unsigned round)
{
    static struct outcome native, emulated;
    static uint8_t data[DATA_BYTES];
    struct x86_emu *emu = &cpu.emu;

    prepare(round);
    memcpy(data, cpu.memory + CPU_DATA, DATA_BYTES);
    memset(&native, 0, sizeof(native));
    memset(&emulated, 0, sizeof(emulated));
    memcpy(native.state.gprs, &emu->regs, sizeof(native.state.gprs));
    native.state.rflags = emu->regs.rflags;
    native.state.xstate = native.xstate;
    memcpy(native.xstate, cpu.xstate.bytes, XSAVE_BYTES);
    run_native(bytes, n, &native.state);
    take_outcome(&native, NULL);

    memcpy(cpu.memory + CPU_DATA, data, DATA_BYTES);
    cr_assert_eq(emulated_cpu_run(&cpu, bytes, n), X86_EMU_DONE, "%s is not carried out", name);
    cr_assert_eq(emu->insn.length, n, "%s: length %u", name, emu->insn.length);
    memcpy(emulated.state.gprs, &emu->regs, sizeof(emulated.state.gprs));
    emulated.state.rflags = emu->regs.rflags;
    take_outcome(&emulated, emu->xstate_changed ? emu->xstate.bytes : cpu.xstate.bytes);
    compare(name, &native, &emulated, flags);
}

static void same(const char *name, const uint8_t *bytes, size_t n, uint64_t flags)
{
    for (unsigned round = 0; round < ROUNDS; round++)
        round_of(name, bytes, n, flags, round);
}

#define SAME(name, flags, ...)                                                                     \
    do {                                                                                           \
        static const uint8_t bytes_[] = {__VA_ARGS__};                                             \
        same((name), bytes_, sizeof(bytes_), (flags));                                             \
    } while (0)

#define CF_ZF 0x41ull

Test(emulate_native, bit_counts_are_the_processors)
{
    SAME("popcnt rax, rcx", ARITHMETIC, 0xF3, 0x48, 0x0F, 0xB8, 0xC1);
    SAME("popcnt eax, [rdi]", ARITHMETIC, 0xF3, 0x0F, 0xB8, 0x07);
    SAME("popcnt ax, [rdi]", ARITHMETIC, 0x66, 0xF3, 0x0F, 0xB8, 0x07);
    SAME("popcnt r9, [rdi+rsi*2+8]", ARITHMETIC, 0xF3, 0x4C, 0x0F, 0xB8, 0x4F, 0x08);
    SAME("lzcnt rax, rbx", CF_ZF, 0xF3, 0x48, 0x0F, 0xBD, 0xC3);
    SAME("lzcnt ax, [rdi]", CF_ZF, 0x66, 0xF3, 0x0F, 0xBD, 0x07);
    SAME("tzcnt rax, [rdi]", CF_ZF, 0xF3, 0x48, 0x0F, 0xBC, 0x07);
    SAME("tzcnt eax, ebx", CF_ZF, 0xF3, 0x0F, 0xBC, 0xC3);
}

Test(emulate_native, crc32_and_movbe_are_the_processors)
{
    SAME("crc32 rax, rcx", ARITHMETIC, 0xF2, 0x48, 0x0F, 0x38, 0xF1, 0xC1);
    SAME("crc32 eax, [rdi]", ARITHMETIC, 0xF2, 0x0F, 0x38, 0xF1, 0x07);
    SAME("crc32 eax, word [rdi]", ARITHMETIC, 0x66, 0xF2, 0x0F, 0x38, 0xF1, 0x07);
    SAME("crc32 eax, byte [rdi]", ARITHMETIC, 0xF2, 0x0F, 0x38, 0xF0, 0x07);
    SAME("crc32 eax, ch", ARITHMETIC, 0xF2, 0x0F, 0x38, 0xF0, 0xC5);
    SAME("crc32 eax, bpl", ARITHMETIC, 0xF2, 0x40, 0x0F, 0x38, 0xF0, 0xC5);
    SAME("movbe rax, [rdi]", ARITHMETIC, 0x48, 0x0F, 0x38, 0xF0, 0x07);
    SAME("movbe [rdi], ecx", ARITHMETIC, 0x0F, 0x38, 0xF1, 0x0F);
    SAME("movbe ax, [rdi]", ARITHMETIC, 0x66, 0x0F, 0x38, 0xF0, 0x07);
}

Test(emulate_native, cmpxchg16b_is_the_processors)
{
    SAME("lock cmpxchg16b [rdi]", ARITHMETIC, 0xF0, 0x48, 0x0F, 0xC7, 0x0F);
    SAME("cmpxchg16b [rdi+16]", ARITHMETIC, 0x48, 0x0F, 0xC7, 0x4F, 0x10);
}

Test(emulate_native, carries_of_adx_are_the_processors)
{
    SAME("adcx rax, rcx", ARITHMETIC, 0x66, 0x48, 0x0F, 0x38, 0xF6, 0xC1);
    SAME("adcx eax, [rdi]", ARITHMETIC, 0x66, 0x0F, 0x38, 0xF6, 0x07);
    SAME("adox rax, [rdi]", ARITHMETIC, 0xF3, 0x48, 0x0F, 0x38, 0xF6, 0x07);
    SAME("adox eax, ecx", ARITHMETIC, 0xF3, 0x0F, 0x38, 0xF6, 0xC1);
}

Test(emulate_native, bmi_is_the_processors)
{
    const uint64_t logic = 0x8C1; /* AF and PF are undefined */

    if (!__builtin_cpu_supports("bmi2"))
        cr_skip_test("this processor has no BMI2");
    SAME("andn rax, rcx, rdx", logic, 0xC4, 0xE2, 0xF0, 0xF2, 0xC2);
    SAME("andn eax, ecx, [rdi]", logic, 0xC4, 0xE2, 0x70, 0xF2, 0x07);
    SAME("blsr rax, [rdi]", logic, 0xC4, 0xE2, 0xF8, 0xF3, 0x0F);
    SAME("blsmsk ecx, ebx", 0x8C1, 0xC4, 0xE2, 0x70, 0xF3, 0xD3);
    SAME("blsi rcx, rbx", logic, 0xC4, 0xE2, 0xF0, 0xF3, 0xDB);
    SAME("bextr rax, rdx, rcx", 0x841, 0xC4, 0xE2, 0xF0, 0xF7, 0xC2);
    SAME("bextr eax, [rdi], esi", 0x841, 0xC4, 0xE2, 0x48, 0xF7, 0x07);
    SAME("shlx rax, rdx, rcx", ARITHMETIC, 0xC4, 0xE2, 0xF1, 0xF7, 0xC2);
    SAME("sarx eax, [rdi], ecx", ARITHMETIC, 0xC4, 0xE2, 0x72, 0xF7, 0x07);
    SAME("shrx r8, r9, r10", ARITHMETIC, 0xC4, 0x42, 0xAB, 0xF7, 0xC1);
    SAME("mulx rax, rcx, rbx", ARITHMETIC, 0xC4, 0xE2, 0xF3, 0xF6, 0xC3);
    SAME("mulx eax, eax, [rdi]", ARITHMETIC, 0xC4, 0xE2, 0x7B, 0xF6, 0x07);
    SAME("rorx rax, rcx, 13", ARITHMETIC, 0xC4, 0xE3, 0xFB, 0xF0, 0xC1, 0x0D);
    SAME("rorx eax, [rdi], 32", ARITHMETIC, 0xC4, 0xE3, 0x7B, 0xF0, 0x07, 0x20);
}

Test(emulate_native, beginnings_of_handlers_are_the_processors)
{
    SAME("nop", ARITHMETIC, 0x90);
    SAME("nop [rax+rax+0]", ARITHMETIC, 0x0F, 0x1F, 0x44, 0x00, 0x00);
    SAME("nopw cs:[rax+rax+0]", ARITHMETIC, 0x66, 0x2E, 0x0F, 0x1F, 0x84, 0, 0, 0, 0, 0);
    SAME("pause", ARITHMETIC, 0xF3, 0x90);
    SAME("endbr64", ARITHMETIC, 0xF3, 0x0F, 0x1E, 0xFA);
    SAME("cld", ARITHMETIC | X86_FLAG_DF, 0xFC);
    SAME("std", ARITHMETIC | X86_FLAG_DF, 0xFD);
}

Test(emulate_native, the_x87_words_are_the_processors)
{
    SAME("fnstcw [rdi]", ARITHMETIC, 0xD9, 0x3F);
    SAME("fnstsw [rdi+6]", ARITHMETIC, 0xDD, 0x7F, 0x06);
    SAME("fnstsw ax", ARITHMETIC, 0xDF, 0xE0);
    SAME("fnclex", ARITHMETIC, 0xDB, 0xE2);
    SAME("fwait", ARITHMETIC, 0x9B);
    SAME("emms", ARITHMETIC, 0x0F, 0x77);
    SAME("fild dword [rdi]", ARITHMETIC, 0xDB, 0x07);
    SAME("fild word [rdi]", ARITHMETIC, 0xDF, 0x07);
    SAME("fild qword [rdi]", ARITHMETIC, 0xDF, 0x2F);
}

Test(emulate_native, fxsave_and_fxrstor_are_the_processors)
{
    SAME("stmxcsr [rdi]", ARITHMETIC, 0x0F, 0xAE, 0x1F);
    SAME("vstmxcsr [rdi]", ARITHMETIC, 0xC5, 0xF8, 0xAE, 0x1F);
}

/* Bytes of the areas that hold what software may put there are the guest's, and stay. */
Test(emulate_native, xsave_is_the_processors)
{
    static uint8_t data[DATA_BYTES], native_area[DATA_BYTES];
    static const uint8_t xsave[] = {0x48, 0x0F, 0xAE, 0x27};
    static const uint8_t xsavec[] = {0x48, 0x0F, 0xC7, 0x27};
    static const struct {
        const char *name;
        const uint8_t *bytes;
    } forms[] = {{"xsave64", xsave}, {"xsavec64", xsavec}};

    for (unsigned round = 0; round < 32; round++) {
        const unsigned form = round & 1;
        struct native state = {0};
        _Alignas(64) uint8_t xstate[XSAVE_BYTES];

        prepare(round);
        memset(cpu.memory + CPU_DATA + 512, 0, 64); /* a header */
        cpu.emu.regs.rdi = CPU_BASE + CPU_DATA;
        cpu.emu.regs.rax = round >> 2;
        cpu.emu.regs.rdx = 0;
        memcpy(data, cpu.memory + CPU_DATA, DATA_BYTES);
        memcpy(state.gprs, &cpu.emu.regs, sizeof(state.gprs));
        state.rflags = 2;
        memcpy(xstate, cpu.xstate.bytes, sizeof(xstate));
        state.xstate = xstate;
        run_native(forms[form].bytes, 4, &state);
        memcpy(native_area, cpu.memory + CPU_DATA, DATA_BYTES);

        memcpy(cpu.memory + CPU_DATA, data, DATA_BYTES);
        cr_assert_eq(emulated_cpu_run(&cpu, forms[form].bytes, 4), X86_EMU_DONE);
        for (unsigned i = 0; i < DATA_BYTES; i++)
            if (i < 28 || i >= 32) /* MXCSR_MASK is whatever KVM says, and it says nothing here */
                cr_assert_eq(cpu.memory[CPU_DATA + i], native_area[i],
                             "%s of components %#llx: byte %u is %#x, and not %#x", forms[form].name,
                             cpu.emu.regs.rax, i, cpu.memory[CPU_DATA + i], native_area[i]);
    }
}

/* Has the processor save the components in `saved` to the data, in either form. */
static void save_natively(unsigned round, unsigned saved)
{
    static const uint8_t forms[][4] = {{0x48, 0x0F, 0xAE, 0x27}, {0x48, 0x0F, 0xC7, 0x27}};
    const uint32_t mxcsr = 0x1FA0;
    _Alignas(64) uint8_t xstate[XSAVE_BYTES];
    struct native state = {.rflags = 2, .xstate = xstate};

    prepare(round);
    memset(cpu.memory + CPU_DATA + 512, 0, 64);
    memcpy(cpu.memory + CPU_DATA + 24, &mxcsr, 4);
    memcpy(state.gprs, &cpu.emu.regs, sizeof(state.gprs));
    state.gprs[0] = saved;
    state.gprs[3] = 0;
    state.gprs[5] = CPU_BASE + CPU_DATA;
    memcpy(xstate, cpu.xstate.bytes, sizeof(xstate));
    run_native(forms[round & 1], 4, &state);
}

/* What the processor saved, whichever form, is restored as the processor does it. */
Test(emulate_native, xrstor_is_the_processors)
{
    static const uint8_t xrstor[] = {0x48, 0x0F, 0xAE, 0x2F};

    for (unsigned round = 0; round < 128; round++) {
        static struct outcome native, emulated;
        struct x86_emu *emu = &cpu.emu;

        save_natively(round, round >> 1 & 7);
        fill_random(cpu.xstate.bytes + 160, 256); /* other registers, to restore over */
        emu->regs.rax = round >> 4 & 7;
        emu->regs.rdx = 0;
        emu->regs.rdi = CPU_BASE + CPU_DATA;
        memset(&native, 0, sizeof(native));
        memset(&emulated, 0, sizeof(emulated));
        memcpy(native.state.gprs, &emu->regs, sizeof(native.state.gprs));
        native.state.rflags = emu->regs.rflags;
        native.state.xstate = native.xstate;
        memcpy(native.xstate, cpu.xstate.bytes, XSAVE_BYTES);
        run_native(xrstor, sizeof(xrstor), &native.state);
        take_outcome(&native, NULL);
        cr_assert_eq(emulated_cpu_run(&cpu, xrstor, sizeof(xrstor)), X86_EMU_DONE);
        memcpy(emulated.state.gprs, &emu->regs, sizeof(emulated.state.gprs));
        emulated.state.rflags = emu->regs.rflags;
        take_outcome(&emulated, emu->xstate.bytes);
        compare("xrstor64", &native, &emulated, ARITHMETIC);
    }
}
