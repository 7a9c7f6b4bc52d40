/*
 * Every instruction of the emulation's table beside the processor that runs this test: the same
 * bytes on the same registers and memory must leave the same. Instructions that only a kernel may
 * execute are in test_emulate.c.
 */
#include <cpuid.h>
#include <criterion/criterion.h>
#include <string.h>

#include "tests/unit/emulated_cpu.h"
#include "tests/unit/native_cpu.h"
#include "tests/unit/xorshift.h"

#define ROUNDS 64
#define DATA_BYTES 1024
#define ARITHMETIC 0x8D5ull /* OF SF ZF AF PF CF */
#define XSAVE_BYTES 1024

static struct emulated_cpu cpu;
static uint64_t seed;

static void fill_random(void *to, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ((uint8_t *)to)[i] = (uint8_t)xorshift(&seed);
}

static void set_up(void)
{
    unsigned a, b, c, d;

    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_AVX))
        cr_skip_test("this processor has no AVX, whose state these tests compare");
    emulated_cpu_init(&cpu);
    seed = XORSHIFT_SEED;
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
    r->rflags = 2 | (xorshift(&seed) & ARITHMETIC);
    fill_random(cpu.memory + CPU_DATA, DATA_BYTES);
    if (round % 3 == 0) /* a comparison that holds */
        memcpy((void *)r->rdi, &(uint64_t[]){r->rax, r->rdx}, 16);
    if (round % 5 == 0)
        memset((void *)r->rdi, 0, 8);
    memset(x, 0, sizeof(cpu.xstate.bytes));
    fill_random(x + 160, 256);
    fill_random(x + 576, 256);
    if (round % 4 == 2) { /* counts of shifts, and elements that saturate */
        memcpy(x + 160 + 10 * 16, &(uint64_t){xorshift(&seed) & 63}, 8);
        memcpy((void *)r->rdi, &(uint64_t){xorshift(&seed) & 31}, 8);
    }
    memcpy(x, &fcw, 2);
    memcpy(x + 24, &mxcsr, 4);
    memcpy(x + 512, &bv, 8);
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
    struct native_cpu state;
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
    native_cpu_run(&native.state, &cpu, bytes, n);
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
    SAME("bzhi rax, rdx, rcx", 0x8C1, 0xC4, 0xE2, 0xF0, 0xF5, 0xC2);
    SAME("bzhi eax, [rdi], esi", 0x8C1, 0xC4, 0xE2, 0x48, 0xF5, 0x07);
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

static void skip_without_avx2(void)
{
    if (!__builtin_cpu_supports("avx2"))
        cr_skip_test("this processor has no AVX2");
}

Test(emulate_native, vector_moves_are_the_processors)
{
    skip_without_avx2();
    SAME("movups xmm1, xmm10", ARITHMETIC, 0x41, 0x0F, 0x10, 0xCA);
    SAME("movups xmm9, [rdi]", ARITHMETIC, 0x44, 0x0F, 0x10, 0x0F);
    SAME("vmovups xmm1, xmm10", ARITHMETIC, 0xC4, 0xC1, 0x78, 0x10, 0xCA);
    SAME("vmovups ymm9, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x7C, 0x10, 0x0F);
    SAME("movups xmm1, xmm10", ARITHMETIC, 0x41, 0x0F, 0x11, 0xCA);
    SAME("movups xmm9, [rdi]", ARITHMETIC, 0x44, 0x0F, 0x11, 0x0F);
    SAME("vmovups xmm1, xmm10", ARITHMETIC, 0xC4, 0xC1, 0x78, 0x11, 0xCA);
    SAME("vmovups ymm9, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x7C, 0x11, 0x0F);
    SAME("movupd xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x10, 0xCA);
    SAME("movupd xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x10, 0x0F);
    SAME("vmovupd xmm1, xmm10", ARITHMETIC, 0xC4, 0xC1, 0x79, 0x10, 0xCA);
    SAME("vmovupd ymm9, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x7D, 0x10, 0x0F);
    SAME("movaps xmm1, xmm10", ARITHMETIC, 0x41, 0x0F, 0x28, 0xCA);
    SAME("movaps xmm9, [rdi]", ARITHMETIC, 0x44, 0x0F, 0x28, 0x0F);
    SAME("vmovaps xmm1, xmm10", ARITHMETIC, 0xC4, 0xC1, 0x78, 0x28, 0xCA);
    SAME("vmovaps ymm1, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x7C, 0x28, 0xCA);
    SAME("vmovaps ymm9, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x7C, 0x28, 0x0F);
    SAME("movaps xmm1, xmm10", ARITHMETIC, 0x41, 0x0F, 0x29, 0xCA);
    SAME("movaps xmm9, [rdi]", ARITHMETIC, 0x44, 0x0F, 0x29, 0x0F);
    SAME("vmovaps xmm1, xmm10", ARITHMETIC, 0xC4, 0xC1, 0x78, 0x29, 0xCA);
    SAME("vmovaps ymm9, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x7C, 0x29, 0x0F);
    SAME("movapd xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x29, 0xCA);
    SAME("movapd xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x29, 0x0F);
    SAME("vmovapd xmm1, xmm10", ARITHMETIC, 0xC4, 0xC1, 0x79, 0x29, 0xCA);
    SAME("vmovapd ymm9, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x7D, 0x29, 0x0F);
    SAME("movdqa xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x6F, 0xCA);
    SAME("movdqa xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x6F, 0x0F);
    SAME("vmovdqa xmm1, xmm10", ARITHMETIC, 0xC4, 0xC1, 0x79, 0x6F, 0xCA);
    SAME("vmovdqa ymm1, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x7D, 0x6F, 0xCA);
    SAME("vmovdqa ymm9, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x7D, 0x6F, 0x0F);
    SAME("movdqa xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x7F, 0xCA);
    SAME("movdqa xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x7F, 0x0F);
    SAME("vmovdqa xmm1, xmm10", ARITHMETIC, 0xC4, 0xC1, 0x79, 0x7F, 0xCA);
    SAME("vmovdqa ymm1, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x7D, 0x7F, 0xCA);
    SAME("vmovdqa ymm9, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x7D, 0x7F, 0x0F);
    SAME("movdqu xmm1, xmm10", ARITHMETIC, 0xF3, 0x41, 0x0F, 0x6F, 0xCA);
    SAME("movdqu xmm9, [rdi]", ARITHMETIC, 0xF3, 0x44, 0x0F, 0x6F, 0x0F);
    SAME("vmovdqu xmm1, xmm10", ARITHMETIC, 0xC4, 0xC1, 0x7A, 0x6F, 0xCA);
    SAME("vmovdqu ymm1, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x7E, 0x6F, 0xCA);
    SAME("vmovdqu ymm9, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x7E, 0x6F, 0x0F);
    SAME("movdqu xmm1, xmm10", ARITHMETIC, 0xF3, 0x41, 0x0F, 0x7F, 0xCA);
    SAME("movdqu xmm9, [rdi]", ARITHMETIC, 0xF3, 0x44, 0x0F, 0x7F, 0x0F);
    SAME("vmovdqu xmm1, xmm10", ARITHMETIC, 0xC4, 0xC1, 0x7A, 0x7F, 0xCA);
    SAME("vmovdqu ymm1, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x7E, 0x7F, 0xCA);
    SAME("vmovdqu ymm9, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x7E, 0x7F, 0x0F);
    SAME("movntps xmm9, [rdi]", ARITHMETIC, 0x44, 0x0F, 0x2B, 0x0F);
    SAME("movntpd xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x2B, 0x0F);
    SAME("movntdq xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0xE7, 0x0F);
    SAME("vmovntdq ymm9, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x7D, 0xE7, 0x0F);
    SAME("movntdqa xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x38, 0x2A, 0x0F);
    SAME("lddqu xmm9, [rdi]", ARITHMETIC, 0xF2, 0x44, 0x0F, 0xF0, 0x0F);
    SAME("vlddqu ymm9, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x7F, 0xF0, 0x0F);
    SAME("movq xmm1, xmm10", ARITHMETIC, 0xF3, 0x41, 0x0F, 0x7E, 0xCA);
    SAME("movq xmm9, [rdi]", ARITHMETIC, 0xF3, 0x44, 0x0F, 0x7E, 0x0F);
    SAME("movq xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0xD6, 0xCA);
    SAME("movq xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0xD6, 0x0F);
    SAME("vmovq xmm1, xmm10", ARITHMETIC, 0xC4, 0xC1, 0x7A, 0x7E, 0xCA);
    SAME("vmovq xmm9, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x7A, 0x7E, 0x0F);
    SAME("vmovq xmm1, xmm10", ARITHMETIC, 0xC4, 0xC1, 0x79, 0xD6, 0xCA);
    SAME("vmovq xmm9, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x79, 0xD6, 0x0F);
    SAME("movups xmm1, [rdi+1]", ARITHMETIC, 0x0F, 0x10, 0x4F, 0x01);
    SAME("vmovdqa ymm1, [rdi+32]", ARITHMETIC, 0xC5, 0xFD, 0x6F, 0x4F, 0x20);
}

Test(emulate_native, vectors_and_general_registers_exchange_as_the_processors)
{
    skip_without_avx2();
    SAME("movd xmm1, ecx", ARITHMETIC, 0x66, 0x0F, 0x6E, 0xC9);
    SAME("movq xmm9, rbx", ARITHMETIC, 0x66, 0x4C, 0x0F, 0x6E, 0xCB);
    SAME("movd xmm1, [rdi]", ARITHMETIC, 0x66, 0x0F, 0x6E, 0x0F);
    SAME("vmovq xmm1, rcx", ARITHMETIC, 0xC4, 0xE1, 0xF9, 0x6E, 0xC9);
    SAME("movd ecx, xmm1", ARITHMETIC, 0x66, 0x0F, 0x7E, 0xC9);
    SAME("movq rbx, xmm9", ARITHMETIC, 0x66, 0x4C, 0x0F, 0x7E, 0xCB);
    SAME("movq [rdi], xmm1", ARITHMETIC, 0x66, 0x48, 0x0F, 0x7E, 0x0F);
    SAME("vmovd [rdi], xmm1", ARITHMETIC, 0xC5, 0xF9, 0x7E, 0x0F);
    SAME("pmovmskb r8d, xmm9", ARITHMETIC, 0x66, 0x45, 0x0F, 0xD7, 0xC1);
    SAME("vpmovmskb eax, ymm3", ARITHMETIC, 0xC5, 0xFD, 0xD7, 0xC3);
    SAME("vzeroupper", ARITHMETIC, 0xC5, 0xF8, 0x77);
    SAME("vzeroall", ARITHMETIC, 0xC5, 0xFC, 0x77);
    SAME("vextractf128 ymm1, ymm10, imm", ARITHMETIC, 0xC4, 0xC3, 0x7D, 0x19, 0xCA, 0x01);
    SAME("vextractf128 ymm9, [rdi], imm", ARITHMETIC, 0xC4, 0x63, 0x7D, 0x19, 0x0F, 0x00);
    SAME("vextracti128 ymm1, ymm10, imm", ARITHMETIC, 0xC4, 0xC3, 0x7D, 0x39, 0xCA, 0x01);
    SAME("vextracti128 ymm9, [rdi], imm", ARITHMETIC, 0xC4, 0x63, 0x7D, 0x39, 0x0F, 0x01);
    SAME("vextracti128 ymm9, [rdi], imm", ARITHMETIC, 0xC4, 0x63, 0x7D, 0x39, 0x0F, 0x00);
    SAME("vinsertf128 ymm1, ymm3, ymm10, imm", ARITHMETIC, 0xC4, 0xC3, 0x65, 0x18, 0xCA, 0x00);
    SAME("vinsertf128 ymm9, ymm3, [rdi], imm", ARITHMETIC, 0xC4, 0x63, 0x65, 0x18, 0x0F, 0x00);
    SAME("vinserti128 ymm1, ymm3, ymm10, imm", ARITHMETIC, 0xC4, 0xC3, 0x65, 0x38, 0xCA, 0x01);
    SAME("vinserti128 ymm9, ymm3, [rdi], imm", ARITHMETIC, 0xC4, 0x63, 0x65, 0x38, 0x0F, 0x01);
}

Test(emulate_native, logic_of_vectors_is_the_processors)
{
    skip_without_avx2();
    SAME("andps xmm1, xmm10", ARITHMETIC, 0x41, 0x0F, 0x54, 0xCA);
    SAME("andps xmm9, [rdi]", ARITHMETIC, 0x44, 0x0F, 0x54, 0x0F);
    SAME("vandps ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x64, 0x54, 0xCA);
    SAME("vandps ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x64, 0x54, 0x0F);
    SAME("andpd xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x54, 0xCA);
    SAME("andpd xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x54, 0x0F);
    SAME("vandpd ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0x54, 0xCA);
    SAME("vandpd ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0x54, 0x0F);
    SAME("andnps xmm1, xmm10", ARITHMETIC, 0x41, 0x0F, 0x55, 0xCA);
    SAME("andnps xmm9, [rdi]", ARITHMETIC, 0x44, 0x0F, 0x55, 0x0F);
    SAME("vandnps ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x64, 0x55, 0xCA);
    SAME("vandnps ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x64, 0x55, 0x0F);
    SAME("andnpd xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x55, 0xCA);
    SAME("andnpd xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x55, 0x0F);
    SAME("vandnpd ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0x55, 0xCA);
    SAME("vandnpd ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0x55, 0x0F);
    SAME("orps xmm1, xmm10", ARITHMETIC, 0x41, 0x0F, 0x56, 0xCA);
    SAME("orps xmm9, [rdi]", ARITHMETIC, 0x44, 0x0F, 0x56, 0x0F);
    SAME("vorps ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x64, 0x56, 0xCA);
    SAME("vorps ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x64, 0x56, 0x0F);
    SAME("orpd xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x56, 0xCA);
    SAME("orpd xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x56, 0x0F);
    SAME("vorpd ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0x56, 0xCA);
    SAME("vorpd ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0x56, 0x0F);
    SAME("xorps xmm1, xmm10", ARITHMETIC, 0x41, 0x0F, 0x57, 0xCA);
    SAME("xorps xmm9, [rdi]", ARITHMETIC, 0x44, 0x0F, 0x57, 0x0F);
    SAME("vxorps ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x64, 0x57, 0xCA);
    SAME("vxorps ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x64, 0x57, 0x0F);
    SAME("xorpd xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x57, 0xCA);
    SAME("xorpd xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x57, 0x0F);
    SAME("vxorpd ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0x57, 0xCA);
    SAME("vxorpd ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0x57, 0x0F);
    SAME("pand xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0xDB, 0xCA);
    SAME("pand xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0xDB, 0x0F);
    SAME("vpand ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0xDB, 0xCA);
    SAME("vpand ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0xDB, 0x0F);
    SAME("pandn xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0xDF, 0xCA);
    SAME("pandn xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0xDF, 0x0F);
    SAME("vpandn ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0xDF, 0xCA);
    SAME("vpandn ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0xDF, 0x0F);
    SAME("por xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0xEB, 0xCA);
    SAME("por xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0xEB, 0x0F);
    SAME("vpor ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0xEB, 0xCA);
    SAME("vpor ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0xEB, 0x0F);
    SAME("pxor xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0xEF, 0xCA);
    SAME("pxor xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0xEF, 0x0F);
    SAME("vpxor ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0xEF, 0xCA);
    SAME("vpxor ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0xEF, 0x0F);
}

Test(emulate_native, packed_integers_are_the_processors)
{
    skip_without_avx2();
    SAME("paddb xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0xFC, 0xCA);
    SAME("paddb xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0xFC, 0x0F);
    SAME("vpaddb ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0xFC, 0xCA);
    SAME("vpaddb ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0xFC, 0x0F);
    SAME("paddw xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0xFD, 0xCA);
    SAME("paddw xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0xFD, 0x0F);
    SAME("vpaddw ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0xFD, 0xCA);
    SAME("vpaddw ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0xFD, 0x0F);
    SAME("paddd xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0xFE, 0xCA);
    SAME("paddd xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0xFE, 0x0F);
    SAME("vpaddd ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0xFE, 0xCA);
    SAME("vpaddd ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0xFE, 0x0F);
    SAME("paddq xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0xD4, 0xCA);
    SAME("paddq xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0xD4, 0x0F);
    SAME("vpaddq ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0xD4, 0xCA);
    SAME("vpaddq ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0xD4, 0x0F);
    SAME("psubb xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0xF8, 0xCA);
    SAME("psubb xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0xF8, 0x0F);
    SAME("vpsubb ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0xF8, 0xCA);
    SAME("vpsubb ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0xF8, 0x0F);
    SAME("psubw xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0xF9, 0xCA);
    SAME("psubw xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0xF9, 0x0F);
    SAME("vpsubw ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0xF9, 0xCA);
    SAME("vpsubw ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0xF9, 0x0F);
    SAME("psubd xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0xFA, 0xCA);
    SAME("psubd xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0xFA, 0x0F);
    SAME("vpsubd ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0xFA, 0xCA);
    SAME("vpsubd ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0xFA, 0x0F);
    SAME("psubq xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0xFB, 0xCA);
    SAME("psubq xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0xFB, 0x0F);
    SAME("vpsubq ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0xFB, 0xCA);
    SAME("vpsubq ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0xFB, 0x0F);
    SAME("pcmpeqb xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x74, 0xCA);
    SAME("pcmpeqb xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x74, 0x0F);
    SAME("vpcmpeqb ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0x74, 0xCA);
    SAME("vpcmpeqb ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0x74, 0x0F);
    SAME("pcmpeqw xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x75, 0xCA);
    SAME("pcmpeqw xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x75, 0x0F);
    SAME("vpcmpeqw ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0x75, 0xCA);
    SAME("vpcmpeqw ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0x75, 0x0F);
    SAME("pcmpeqd xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x76, 0xCA);
    SAME("pcmpeqd xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x76, 0x0F);
    SAME("vpcmpeqd ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0x76, 0xCA);
    SAME("vpcmpeqd ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0x76, 0x0F);
    SAME("pcmpgtb xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x64, 0xCA);
    SAME("pcmpgtb xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x64, 0x0F);
    SAME("vpcmpgtb ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0x64, 0xCA);
    SAME("vpcmpgtb ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0x64, 0x0F);
    SAME("pcmpgtw xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x65, 0xCA);
    SAME("pcmpgtw xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x65, 0x0F);
    SAME("vpcmpgtw ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0x65, 0xCA);
    SAME("vpcmpgtw ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0x65, 0x0F);
    SAME("pcmpgtd xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x66, 0xCA);
    SAME("pcmpgtd xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x66, 0x0F);
    SAME("vpcmpgtd ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0x66, 0xCA);
    SAME("vpcmpgtd ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0x66, 0x0F);
    SAME("pmullw xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0xD5, 0xCA);
    SAME("pmullw xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0xD5, 0x0F);
    SAME("vpmullw ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0xD5, 0xCA);
    SAME("vpmullw ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0xD5, 0x0F);
    SAME("pmuludq xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0xF4, 0xCA);
    SAME("pmuludq xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0xF4, 0x0F);
    SAME("vpmuludq ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0xF4, 0xCA);
    SAME("vpmuludq ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0xF4, 0x0F);
    SAME("punpcklbw xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x60, 0xCA);
    SAME("punpcklbw xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x60, 0x0F);
    SAME("vpunpcklbw ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0x60, 0xCA);
    SAME("vpunpcklbw ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0x60, 0x0F);
    SAME("punpcklwd xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x61, 0xCA);
    SAME("punpcklwd xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x61, 0x0F);
    SAME("vpunpcklwd ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0x61, 0xCA);
    SAME("vpunpcklwd ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0x61, 0x0F);
    SAME("punpckldq xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x62, 0xCA);
    SAME("punpckldq xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x62, 0x0F);
    SAME("vpunpckldq ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0x62, 0xCA);
    SAME("vpunpckldq ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0x62, 0x0F);
    SAME("punpcklqdq xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x6C, 0xCA);
    SAME("punpcklqdq xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x6C, 0x0F);
    SAME("vpunpcklqdq ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0x6C, 0xCA);
    SAME("vpunpcklqdq ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0x6C, 0x0F);
    SAME("punpckhbw xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x68, 0xCA);
    SAME("punpckhbw xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x68, 0x0F);
    SAME("vpunpckhbw ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0x68, 0xCA);
    SAME("vpunpckhbw ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0x68, 0x0F);
    SAME("punpckhwd xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x69, 0xCA);
    SAME("punpckhwd xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x69, 0x0F);
    SAME("vpunpckhwd ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0x69, 0xCA);
    SAME("vpunpckhwd ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0x69, 0x0F);
    SAME("punpckhdq xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x6A, 0xCA);
    SAME("punpckhdq xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x6A, 0x0F);
    SAME("vpunpckhdq ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0x6A, 0xCA);
    SAME("vpunpckhdq ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0x6A, 0x0F);
    SAME("punpckhqdq xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x6D, 0xCA);
    SAME("punpckhqdq xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x6D, 0x0F);
    SAME("vpunpckhqdq ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0x6D, 0xCA);
    SAME("vpunpckhqdq ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0x6D, 0x0F);
    SAME("packsswb xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x63, 0xCA);
    SAME("packsswb xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x63, 0x0F);
    SAME("vpacksswb ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0x63, 0xCA);
    SAME("vpacksswb ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0x63, 0x0F);
    SAME("packuswb xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x67, 0xCA);
    SAME("packuswb xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x67, 0x0F);
    SAME("vpackuswb ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0x67, 0xCA);
    SAME("vpackuswb ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0x67, 0x0F);
    SAME("packssdw xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x6B, 0xCA);
    SAME("packssdw xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x6B, 0x0F);
    SAME("vpackssdw ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC1, 0x65, 0x6B, 0xCA);
    SAME("vpackssdw ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0x6B, 0x0F);
}

Test(emulate_native, shuffles_are_the_processors)
{
    skip_without_avx2();
    SAME("pshufb xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0x38, 0x00, 0xCA);
    SAME("pshufb xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0x38, 0x00, 0x0F);
    SAME("vpshufb ymm1, ymm3, ymm10", ARITHMETIC, 0xC4, 0xC2, 0x65, 0x00, 0xCA);
    SAME("vpshufb ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x62, 0x65, 0x00, 0x0F);
    SAME("pshufd xmm1, xmm10, imm", ARITHMETIC, 0x66, 0x41, 0x0F, 0x70, 0xCA, 0xB1);
    SAME("pshufd xmm9, [rdi], imm", ARITHMETIC, 0x66, 0x44, 0x0F, 0x70, 0x0F, 0xB1);
    SAME("vpshufd ymm1, ymm10, imm", ARITHMETIC, 0xC4, 0xC1, 0x7D, 0x70, 0xCA, 0xB1);
    SAME("vpshufd ymm9, [rdi], imm", ARITHMETIC, 0xC4, 0x61, 0x7D, 0x70, 0x0F, 0xB1);
    SAME("pshuflw xmm1, xmm10, imm", ARITHMETIC, 0xF2, 0x41, 0x0F, 0x70, 0xCA, 0x1B);
    SAME("pshuflw xmm9, [rdi], imm", ARITHMETIC, 0xF2, 0x44, 0x0F, 0x70, 0x0F, 0x1B);
    SAME("vpshuflw ymm1, ymm10, imm", ARITHMETIC, 0xC4, 0xC1, 0x7F, 0x70, 0xCA, 0x1B);
    SAME("vpshuflw ymm9, [rdi], imm", ARITHMETIC, 0xC4, 0x61, 0x7F, 0x70, 0x0F, 0x1B);
    SAME("pshufhw xmm1, xmm10, imm", ARITHMETIC, 0xF3, 0x41, 0x0F, 0x70, 0xCA, 0x4E);
    SAME("pshufhw xmm9, [rdi], imm", ARITHMETIC, 0xF3, 0x44, 0x0F, 0x70, 0x0F, 0x4E);
    SAME("vpshufhw ymm1, ymm10, imm", ARITHMETIC, 0xC4, 0xC1, 0x7E, 0x70, 0xCA, 0x4E);
    SAME("vpshufhw ymm9, [rdi], imm", ARITHMETIC, 0xC4, 0x61, 0x7E, 0x70, 0x0F, 0x4E);
    SAME("shufps xmm1, xmm10, imm", ARITHMETIC, 0x41, 0x0F, 0xC6, 0xCA, 0xD8);
    SAME("shufps xmm9, [rdi], imm", ARITHMETIC, 0x44, 0x0F, 0xC6, 0x0F, 0xD8);
    SAME("vshufps ymm1, ymm3, ymm10, imm", ARITHMETIC, 0xC4, 0xC1, 0x64, 0xC6, 0xCA, 0xD8);
    SAME("vshufps ymm9, ymm3, [rdi], imm", ARITHMETIC, 0xC4, 0x61, 0x64, 0xC6, 0x0F, 0xD8);
    SAME("palignr xmm1, xmm10, imm", ARITHMETIC, 0x66, 0x41, 0x0F, 0x3A, 0x0F, 0xCA, 0x05);
    SAME("palignr xmm9, [rdi], imm", ARITHMETIC, 0x66, 0x44, 0x0F, 0x3A, 0x0F, 0x0F, 0x05);
    SAME("vpalignr ymm1, ymm3, ymm10, imm", ARITHMETIC, 0xC4, 0xC3, 0x65, 0x0F, 0xCA, 0x05);
    SAME("vpalignr ymm9, ymm3, [rdi], imm", ARITHMETIC, 0xC4, 0x63, 0x65, 0x0F, 0x0F, 0x05);
    SAME("palignr xmm1, xmm10, imm", ARITHMETIC, 0x66, 0x41, 0x0F, 0x3A, 0x0F, 0xCA, 0x15);
    SAME("palignr xmm9, [rdi], imm", ARITHMETIC, 0x66, 0x44, 0x0F, 0x3A, 0x0F, 0x0F, 0x15);
    SAME("vpalignr ymm1, ymm3, ymm10, imm", ARITHMETIC, 0xC4, 0xC3, 0x65, 0x0F, 0xCA, 0x15);
    SAME("vpalignr ymm9, ymm3, [rdi], imm", ARITHMETIC, 0xC4, 0x63, 0x65, 0x0F, 0x0F, 0x15);
}

Test(emulate_native, packed_shifts_are_the_processors)
{
    skip_without_avx2();
    SAME("psrlw xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0xD1, 0xCA);
    SAME("psrlw xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0xD1, 0x0F);
    SAME("vpsrlw ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0xD1, 0x0F);
    SAME("psrld xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0xD2, 0xCA);
    SAME("psrld xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0xD2, 0x0F);
    SAME("vpsrld ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0xD2, 0x0F);
    SAME("psrlq xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0xD3, 0xCA);
    SAME("psrlq xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0xD3, 0x0F);
    SAME("vpsrlq ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0xD3, 0x0F);
    SAME("psraw xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0xE1, 0xCA);
    SAME("psraw xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0xE1, 0x0F);
    SAME("vpsraw ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0xE1, 0x0F);
    SAME("psrad xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0xE2, 0xCA);
    SAME("psrad xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0xE2, 0x0F);
    SAME("vpsrad ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0xE2, 0x0F);
    SAME("psllw xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0xF1, 0xCA);
    SAME("psllw xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0xF1, 0x0F);
    SAME("vpsllw ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0xF1, 0x0F);
    SAME("pslld xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0xF2, 0xCA);
    SAME("pslld xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0xF2, 0x0F);
    SAME("vpslld ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0xF2, 0x0F);
    SAME("psllq xmm1, xmm10", ARITHMETIC, 0x66, 0x41, 0x0F, 0xF3, 0xCA);
    SAME("psllq xmm9, [rdi]", ARITHMETIC, 0x66, 0x44, 0x0F, 0xF3, 0x0F);
    SAME("vpsllq ymm9, ymm3, [rdi]", ARITHMETIC, 0xC4, 0x61, 0x65, 0xF3, 0x0F);
    SAME("psrlw xmm1, 3", ARITHMETIC, 0x66, 0x0F, 0x71, 0xD1, 0x03);
    SAME("vpsrlw ymm5, ymm1, 3", ARITHMETIC, 0xC5, 0xD5, 0x71, 0xD1, 0x03);
    SAME("psraw xmm1, 15", ARITHMETIC, 0x66, 0x0F, 0x71, 0xE1, 0x0F);
    SAME("vpsraw ymm5, ymm1, 15", ARITHMETIC, 0xC5, 0xD5, 0x71, 0xE1, 0x0F);
    SAME("psllw xmm1, 16", ARITHMETIC, 0x66, 0x0F, 0x71, 0xF1, 0x10);
    SAME("vpsllw ymm5, ymm1, 16", ARITHMETIC, 0xC5, 0xD5, 0x71, 0xF1, 0x10);
    SAME("psrld xmm1, 20", ARITHMETIC, 0x66, 0x0F, 0x72, 0xD1, 0x14);
    SAME("vpsrld ymm5, ymm1, 20", ARITHMETIC, 0xC5, 0xD5, 0x72, 0xD1, 0x14);
    SAME("psrad xmm1, 33", ARITHMETIC, 0x66, 0x0F, 0x72, 0xE1, 0x21);
    SAME("vpsrad ymm5, ymm1, 33", ARITHMETIC, 0xC5, 0xD5, 0x72, 0xE1, 0x21);
    SAME("pslld xmm1, 12", ARITHMETIC, 0x66, 0x0F, 0x72, 0xF1, 0x0C);
    SAME("vpslld ymm5, ymm1, 12", ARITHMETIC, 0xC5, 0xD5, 0x72, 0xF1, 0x0C);
    SAME("psrlq xmm1, 63", ARITHMETIC, 0x66, 0x0F, 0x73, 0xD1, 0x3F);
    SAME("vpsrlq ymm5, ymm1, 63", ARITHMETIC, 0xC5, 0xD5, 0x73, 0xD1, 0x3F);
    SAME("psrldq xmm1, 5", ARITHMETIC, 0x66, 0x0F, 0x73, 0xD9, 0x05);
    SAME("vpsrldq ymm5, ymm1, 5", ARITHMETIC, 0xC5, 0xD5, 0x73, 0xD9, 0x05);
    SAME("psllq xmm1, 1", ARITHMETIC, 0x66, 0x0F, 0x73, 0xF1, 0x01);
    SAME("vpsllq ymm5, ymm1, 1", ARITHMETIC, 0xC5, 0xD5, 0x73, 0xF1, 0x01);
    SAME("pslldq xmm1, 17", ARITHMETIC, 0x66, 0x0F, 0x73, 0xF9, 0x11);
    SAME("vpslldq ymm5, ymm1, 17", ARITHMETIC, 0xC5, 0xD5, 0x73, 0xF9, 0x11);
    SAME("pslldq xmm1, 4", ARITHMETIC, 0x66, 0x0F, 0x73, 0xF9, 0x04);
    SAME("vpslldq ymm5, ymm1, 4", ARITHMETIC, 0xC5, 0xD5, 0x73, 0xF9, 0x04);
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
        struct native_cpu state = {0};
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
        native_cpu_run(&state, &cpu, forms[form].bytes, 4);
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
    struct native_cpu state = {.rflags = 2, .xstate = xstate};

    prepare(round);
    memset(cpu.memory + CPU_DATA + 512, 0, 64);
    memcpy(cpu.memory + CPU_DATA + 24, &mxcsr, 4);
    memcpy(state.gprs, &cpu.emu.regs, sizeof(state.gprs));
    state.gprs[0] = saved;
    state.gprs[3] = 0;
    state.gprs[5] = CPU_BASE + CPU_DATA;
    memcpy(xstate, cpu.xstate.bytes, sizeof(xstate));
    native_cpu_run(&state, &cpu, forms[round & 1], 4);
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
        native_cpu_run(&native.state, &cpu, xrstor, sizeof(xrstor));
        take_outcome(&native, NULL);
        cr_assert_eq(emulated_cpu_run(&cpu, xrstor, sizeof(xrstor)), X86_EMU_DONE);
        memcpy(emulated.state.gprs, &emu->regs, sizeof(emulated.state.gprs));
        emulated.state.rflags = emu->regs.rflags;
        take_outcome(&emulated, emu->xstate.bytes);
        compare("xrstor64", &native, &emulated, ARITHMETIC);
    }
}
