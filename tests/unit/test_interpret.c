/*
 * The interpreter of kernel code beside the processor that runs this test: the same bytes on the same
 * registers and memory must leave the same. Encodings are generated: each opcode with prefixes, register
 * and memory operands. What only a kernel may do is tried by itself.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/emulated_cpu.h"
#include "tests/unit/native_cpu.h"
#include "tests/unit/xorshift.h"
#include "vmm/x86/interpret.h"
#include "vmm/x86/tables.h"

#define DATA_BYTES 256u
#define ROUNDS 24u
#define ARITHMETIC 0x8D5ull /* OF SF ZF AF PF CF */
#define CF_OF 0x801ull
#define CF 1ull
#define ZF 0x40ull

static struct emulated_cpu cpu;
static struct x86_interpreter *in;
static uint64_t seed;

static void set_up(void)
{
    emulated_cpu_init(&cpu);
    in = calloc(1, sizeof(*in));
    cr_assert_not_null(in);
    in->emu.mem = cpu.emu.mem;
    in->emu.regs = cpu.emu.regs;
    in->emu.sregs = cpu.emu.sregs;
    seed = XORSHIFT_SEED;
}

static void tear_down(void)
{
    free(in);
    emulated_cpu_fini(&cpu);
}

TestSuite(interpret, .init = set_up, .fini = tear_down);

static void put_code(const void *bytes, size_t n)
{
    memset(cpu.memory + CPU_CODE, 0xF4, 64); /* HLT: the end */
    memcpy(cpu.memory + CPU_CODE, bytes, n);
    in->emu.regs.rip = CPU_KERNEL + CPU_CODE;
}

static enum x86_interpret_end run(const void *bytes, size_t n)
{
    put_code(bytes, n);
    return x86_interpret(in, 1000);
}

/* ---- beside the processor ---- */

/* RDI and RSI at data, RCX small now and then: it counts shifts and strings. */
static void prepare(struct native_cpu *m, uint64_t count_mask)
{
    for (unsigned i = 0; i < 16; i++)
        m->gprs[i] = xorshift(&seed) >> (xorshift(&seed) & 63);
    m->gprs[2] &= count_mask;                                  /* RCX */
    m->gprs[4] = CPU_BASE + CPU_DATA + (xorshift(&seed) & 7);    /* RSI */
    m->gprs[5] = CPU_BASE + CPU_DATA + 72 + (xorshift(&seed) & 7); /* RDI: so is what is before it */
    m->gprs[6] = CPU_BASE + CPU_DATA + DATA_BYTES; /* RSP: not the processor's, which keeps its own */
    m->rflags = 2 | (xorshift(&seed) & ARITHMETIC);
    for (unsigned i = 0; i < DATA_BYTES; i++)
        cpu.memory[CPU_DATA + i] = (uint8_t)(xorshift(&seed) >> (xorshift(&seed) & 7));
}

static const char *hex(const uint8_t *bytes, size_t n)
{
    static char text[64];

    for (size_t i = 0; i < n; i++)
        snprintf(text + 3 * i, sizeof(text) - 3 * i, "%02x ", bytes[i]);
    return text;
}

static void same_once(const uint8_t *bytes, size_t n, uint64_t flags, uint64_t count_mask)
{
    static uint8_t before[DATA_BYTES], native[DATA_BYTES];
    struct native_cpu m = {.xstate = NULL}, was;

    prepare(&m, count_mask);
    was = m;
    memcpy(before, cpu.memory + CPU_DATA, DATA_BYTES);
    native_cpu_run(&m, &cpu, bytes, n);
    memcpy(native, cpu.memory + CPU_DATA, DATA_BYTES);
    memcpy(cpu.memory + CPU_DATA, before, DATA_BYTES);
    memcpy(&in->emu.regs, was.gprs, sizeof(was.gprs));
    in->emu.regs.rflags = was.rflags;
    cr_assert_eq(run(bytes, n), X86_INTERPRET_HALTED, "%s is not carried out", hex(bytes, n));
    for (unsigned i = 0; i < 16; i++) {
        uint64_t got = ((uint64_t *)&in->emu.regs)[i];

        cr_assert(i == 6 || got == m.gprs[i], "%s: register %u is %#lx, and not %#lx",
                  hex(bytes, n), i, got, m.gprs[i]);
    }
    cr_assert_eq(in->emu.regs.rflags & flags, m.rflags & flags, "%s: flags are %#lx, and not %#lx",
                 hex(bytes, n), (uint64_t)in->emu.regs.rflags & flags, m.rflags & flags);
    cr_assert_arr_eq(cpu.memory + CPU_DATA, native, DATA_BYTES, "%s: memory differs",
                     hex(bytes, n));
}

static void same(const uint8_t *bytes, size_t n, uint64_t flags, uint64_t count_mask)
{
    for (unsigned round = 0; round < ROUNDS; round++)
        same_once(bytes, n, flags, count_mask);
}

#define SAME(flags, ...)                                                                           \
    do {                                                                                           \
        static const uint8_t bytes_[] = {__VA_ARGS__};                                             \
        same(bytes_, sizeof(bytes_), (flags), UINT64_MAX);                                         \
    } while (0)

/* Prefixes by which an operand is of 4, 2 and 8 bytes, and of 1 with new registers. */
static const uint8_t prefixes[][2] = {{0, 0}, {0x66, 1}, {0x48, 1}, {0x44, 1}};

/* ModRM: registers but RSP, and memory at RDI, with and without displacement. */
static void all_forms(const uint8_t *opcode, size_t n, int reg, unsigned immediate, bool lock,
                      uint64_t flags)
{
    static const uint8_t rms[] = {0xC0, 0xC1, 0xC2, 0xC5, 0x07, 0x47};

    for (unsigned p = 0; p < 4; p++)
        for (unsigned r = 0; r < sizeof(rms); r++) {
            bool memory = rms[r] < 0xC0;
            uint8_t bytes[16];
            size_t at = 0;

            if (lock && !memory)
                continue;
            if (lock)
                bytes[at++] = 0xF0;
            if (prefixes[p][1])
                bytes[at++] = prefixes[p][0];
            memcpy(bytes + at, opcode, n);
            at += n;
            bytes[at++] = (uint8_t)(rms[r] | (reg >= 0 ? reg : (int)(xorshift(&seed) % 4)) << 3);
            if (rms[r] == 0x47)
                bytes[at++] = 0x10;
            for (unsigned i = 0; i < (immediate == 4 && prefixes[p][0] == 0x66 ? 2 : immediate); i++)
                bytes[at++] = (uint8_t)xorshift(&seed);
            same(bytes, at, flags, UINT64_MAX);
        }
}

#define FORMS(reg, immediate, lock, flags, ...)                                                    \
    do {                                                                                           \
        static const uint8_t opcode_[] = {__VA_ARGS__};                                            \
        all_forms(opcode_, sizeof(opcode_), (reg), (immediate), (lock), (flags));                  \
    } while (0)

Test(interpret, arithmetic_is_the_processors)
{
    for (unsigned op = 0; op < 8; op++) {
        for (unsigned form = 0; form < 4; form++)
            all_forms(&(uint8_t){(uint8_t)(op << 3 | form)}, 1, -1, 0, false, ARITHMETIC);
        FORMS((int)op, 1, false, ARITHMETIC, 0x80);
        FORMS((int)op, 4, false, ARITHMETIC, 0x81);
        FORMS((int)op, 1, false, ARITHMETIC, 0x83);
        if (op < 7) {
            all_forms(&(uint8_t){(uint8_t)(op << 3 | 1)}, 1, -1, 0, true, ARITHMETIC);
            FORMS((int)op, 1, true, ARITHMETIC, 0x83);
        }
    }
    SAME(ARITHMETIC, 0x14, 0x85);
    SAME(ARITHMETIC, 0x48, 0x1D, 1, 2, 3, 0x84);
    for (int op = 0; op < 2; op++) {
        FORMS(op, 0, false, ARITHMETIC, 0xFE);
        FORMS(op, 0, true, ARITHMETIC, 0xFF);
    }
    FORMS(-1, 0, false, ARITHMETIC, 0x84);
    FORMS(-1, 0, false, ARITHMETIC, 0x85);
    FORMS(0, 1, false, ARITHMETIC, 0xF6);
    FORMS(0, 4, false, ARITHMETIC, 0xF7);
    for (int op = 2; op < 4; op++) {
        FORMS(op, 0, false, ARITHMETIC, 0xF6);
        FORMS(op, 0, false, ARITHMETIC, 0xF7);
    }
}

Test(interpret, products_and_quotients_are_the_processors)
{
    for (int op = 4; op < 6; op++) {
        FORMS(op, 0, false, CF_OF, 0xF6);
        FORMS(op, 0, false, CF_OF, 0xF7);
    }
    FORMS(-1, 0, false, CF_OF, 0x0F, 0xAF);
    FORMS(-1, 4, false, CF_OF, 0x69);
    FORMS(-1, 1, false, CF_OF, 0x6B);
    SAME(0, 0x31, 0xD2, 0x80, 0xCB, 1, 0xF7, 0xF3);             /* xor edx, edx; or bl, 1; div ebx */
    SAME(0, 0x31, 0xD2, 0x80, 0xCB, 1, 0x48, 0xF7, 0xF3);       /* div rbx */
    SAME(0, 0x30, 0xE4, 0x80, 0xCB, 1, 0xF6, 0xF3);             /* xor ah, ah; div bl */
    SAME(0, 0x80, 0xE3, 0x7F, 0x80, 0xCB, 2, 0x99, 0x0F, 0xB6, 0xDB, 0xF7, 0xFB); /* cdq; idiv ebx */
    SAME(0, 0x80, 0xCB, 2, 0x48, 0x0F, 0xBE, 0xDB, 0x48, 0x99, 0x48, 0x21, 0xC0, 0x48, 0x83, 0xFB, 0xFF,
         0x75, 1, 0x90, 0x48, 0xF7, 0xFB); /* movsx rbx, bl; cqo; idiv rbx */
}

Test(interpret, shifts_and_rotations_are_the_processors)
{
    for (int op = 0; op < 8; op++) {
        uint64_t flags = op < 4 ? CF : CF | 0xC4; /* OF of more than one place and AF are undefined */

        if (op == 6)
            continue;
        FORMS(op, 1, false, flags, 0xC0);
        FORMS(op, 1, false, flags, 0xC1);
        FORMS(op, 0, false, flags | 0x800, 0xD1);
        FORMS(op, 0, false, flags, 0xD2);
        FORMS(op, 0, false, flags, 0xD3);
    }
    SAME(0xC5, 0x0F, 0xA4, 0xC2, 0x07);
    SAME(0xC5, 0x48, 0x0F, 0xA5, 0x1F);
    SAME(0xC5, 0x0F, 0xAC, 0x1F, 0x11);
    SAME(0xC5, 0x48, 0x0F, 0xAD, 0xC2);
}

Test(interpret, bits_are_the_processors)
{
    for (int op = 4; op < 8; op++) {
        FORMS(op, 1, false, CF, 0x0F, 0xBA);
        if (op > 4)
            FORMS(op, 1, true, CF, 0x0F, 0xBA);
    }
    SAME(CF, 0x83, 0xE1, 0x7F, 0x0F, 0xAB, 0x0F);             /* and ecx, 127; bts [rdi], ecx */
    SAME(CF, 0x83, 0xE1, 0x7F, 0xF0, 0x48, 0x0F, 0xB3, 0x0F); /* lock btr [rdi], rcx */
    SAME(CF, 0x48, 0x83, 0xC9, 0xC0, 0x48, 0x0F, 0xBB, 0x0F); /* or rcx, -64; btc [rdi], rcx */
    FORMS(-1, 0, false, ZF, 0x0F, 0xBC);
    FORMS(-1, 0, false, ZF, 0x0F, 0xBD);
    SAME(ARITHMETIC, 0x0F, 0xC9);
    SAME(ARITHMETIC, 0x48, 0x0F, 0xCB);
}

Test(interpret, exchanges_are_the_processors)
{
    for (int lock = 0; lock < 2; lock++) {
        FORMS(-1, 0, lock, ARITHMETIC, 0x0F, 0xB0);
        FORMS(-1, 0, lock, ARITHMETIC, 0x0F, 0xB1);
        FORMS(1, 0, true, ARITHMETIC, 0x0F, 0xC1);
        FORMS(-1, 0, lock, ARITHMETIC, 0x87);
    }
    SAME(ARITHMETIC, 0x0F, 0xC7, 0x0F);             /* cmpxchg8b [rdi] */
    SAME(ARITHMETIC, 0x8B, 0x07, 0x8B, 0x57, 0x04, 0xF0, 0x0F, 0xC7, 0x0F); /* one that succeeds */
    SAME(ARITHMETIC, 0x48, 0x91);
    SAME(ARITHMETIC, 0x93);
}

Test(interpret, moves_are_the_processors)
{
    for (uint8_t opcode = 0x88; opcode < 0x8C; opcode++)
        all_forms(&opcode, 1, -1, 0, false, ARITHMETIC);
    FORMS(0, 1, false, ARITHMETIC, 0xC6);
    FORMS(0, 4, false, ARITHMETIC, 0xC7);
    for (uint8_t opcode = 0xB6; opcode < 0xC0; opcode++)
        if ((opcode & 7) >= 6)
            all_forms((uint8_t[]){0x0F, opcode}, 2, -1, 0, false, ARITHMETIC);
    FORMS(-1, 0, false, ARITHMETIC, 0x63);
    SAME(ARITHMETIC, 0xB4, 0x12);
    SAME(ARITHMETIC, 0x48, 0xB8, 1, 2, 3, 4, 5, 6, 7, 0x88);
    SAME(ARITHMETIC, 0x66, 0xBB, 0x34, 0x12);
    SAME(ARITHMETIC, 0x48, 0x8D, 0x4C, 0x73, 0x80); /* lea rcx, [rbx+rsi*2-128] */
    SAME(ARITHMETIC, 0x67, 0x8D, 0x04, 0x08);       /* lea eax, [eax+ecx] */
    SAME(ARITHMETIC, 0x98, 0x48, 0x99, 0x66, 0x98, 0x48, 0x98, 0x66, 0x99);
    for (uint8_t code = 0; code < 16; code++) {
        all_forms((uint8_t[]){0x0F, 0x40 | code}, 2, -1, 0, false, ARITHMETIC);
        all_forms((uint8_t[]){0x0F, 0x90 | code}, 2, 0, 0, false, ARITHMETIC);
        same((uint8_t[]){0x70 | code, 2, 0xFF, 0xC0}, 4, ARITHMETIC, UINT64_MAX); /* over inc eax */
        same((uint8_t[]){0x0F, 0x80 | code, 2, 0, 0, 0, 0xFF, 0xC0}, 8, ARITHMETIC, UINT64_MAX);
    }
    SAME(ARITHMETIC, 0xF5, 0xF8, 0xF9, 0xF5);
}

Test(interpret, strings_are_the_processors)
{
    for (uint8_t opcode = 0xA4; opcode < 0xB0; opcode++)
        for (unsigned prefix = 0; prefix < 3; prefix++) {
            const uint8_t rep = prefix == 1 ? 0xF3 : prefix == 2 ? 0xF2 : 0x90;

            if (opcode == 0xA8 || opcode == 0xA9)
                continue;
            same((uint8_t[]){rep, opcode}, 2, ARITHMETIC, 7);
            same((uint8_t[]){rep, 0x48, opcode}, 3, ARITHMETIC, 7);
            same((uint8_t[]){0xFD, rep, opcode, 0xFC}, 4, ARITHMETIC, 7);
        }
    /* from 1 byte on: the copy overlaps what is still to be copied */
    same((uint8_t[]){0x48, 0x8D, 0x7E, 1, 0xF3, 0xA4}, 6, ARITHMETIC, 31);
}

/* ---- what is KVM's ---- */

static void leaves(const void *bytes, size_t n)
{
    uint64_t rip = CPU_KERNEL + CPU_CODE;
    struct kvm_regs before;

    put_code(bytes, n);
    before = in->emu.regs;
    cr_expect_eq(x86_interpret(in, 1000), X86_INTERPRET_LEFT, "%s is carried out", hex(bytes, n));
    cr_expect_eq(in->emu.regs.rip, rip);
    cr_expect_eq(memcmp(&before, &in->emu.regs, sizeof(before)), 0, "%s: registers are changed",
                 hex(bytes, n));
}
#define LEAVES(...)                                                                                \
    do {                                                                                           \
        static const uint8_t bytes_[] = {__VA_ARGS__};                                             \
        leaves(bytes_, sizeof(bytes_));                                                            \
    } while (0)

Test(interpret, devices_faults_and_system_registers_are_left)
{
    in->emu.regs.rbx = 0x1234; /* not mapped */
    in->emu.regs.rcx = 0x10;
    LEAVES(0x8B, 0x03);             /* mov eax, [rbx] */
    LEAVES(0x01, 0x03);             /* add [rbx], eax */
    LEAVES(0xF7, 0xF6);             /* div esi, by 0 */
    LEAVES(0xEC);                   /* in al, dx */
    LEAVES(0x0F, 0x30);             /* wrmsr of the TSC */
    LEAVES(0x0F, 0x22, 0xC0);       /* mov cr0, rax */
    LEAVES(0x0F, 0xA2);             /* cpuid */
    LEAVES(0x0F, 0x0B);             /* ud2 */
    LEAVES(0xF0, 0x8B, 0x07);       /* lock mov */
    LEAVES(0x0F, 0x01, 0xF8);       /* swapgs, while KERNEL_GS_BASE is not known */
    LEAVES(0xFB, 0xEC);             /* sti, with what follows it */
}

Test(interpret, page_0_is_looked_up_like_any_other)
{
    in->emu.regs.rbx = 8;
    LEAVES(0x8B, 0x03);       /* mov eax, [rbx] */
    LEAVES(0x89, 0x03);       /* mov [rbx], eax */
    LEAVES(0xF0, 0xFF, 0x03); /* lock inc dword [rbx] */
}

Test(interpret, a_write_without_right_is_left_and_changes_nothing)
{
    *emulated_cpu_pte(&cpu, 16) &= ~2ull;
    in->emu.regs.rdi = CPU_SMALL + 0x10000;
    in->emu.regs.rcx = 4;
    LEAVES(0x89, 0x07);       /* mov [rdi], eax */
    LEAVES(0xF3, 0xAA);       /* rep stosb */
    LEAVES(0xF0, 0xFF, 0x07); /* lock inc dword [rdi] */
    LEAVES(0x8F, 0x07);       /* pop [rdi]: RSP as before */
}

Test(interpret, a_string_stops_where_the_next_page_is_absent)
{
    *emulated_cpu_pte(&cpu, 17) = 0;
    in->emu.regs.rdi = CPU_SMALL + 0x11000 - 3;
    in->emu.regs.rcx = 8;
    cr_expect_eq(run((uint8_t[]){0xF3, 0xAA}, 2), X86_INTERPRET_LEFT);
    cr_expect_eq(in->emu.regs.rcx, 5);
    cr_expect_eq(in->emu.regs.rdi, CPU_SMALL + 0x11000);
    cr_expect_eq(in->emu.regs.rip, CPU_KERNEL + CPU_CODE);
}

/* ---- a kernel's own ---- */

Test(interpret, code_that_changes_itself_is_seen_at_once)
{
    /* mov byte [rdi], 0x43 over the second byte of inc eax is inc ebx: FF C0, FF C3 */
    static const uint8_t code[] = {0xFF, 0xC0, 0xC6, 0x07, 0xC3, 0xFF, 0xC9, 0x75, 0xF7};

    in->emu.regs.rdi = CPU_KERNEL + CPU_CODE + 1;
    in->emu.regs.rax = in->emu.regs.rbx = 0;
    in->emu.regs.rcx = 5;
    cr_expect_eq(run(code, sizeof(code)), X86_INTERPRET_HALTED);
    cr_expect_eq(in->emu.regs.rax, 1);
    cr_expect_eq(in->emu.regs.rbx, 4);
}

Test(interpret, a_translation_is_kept_until_it_is_invalidated)
{
    /* mov eax, [rdi]; mov [rsi], rdx (the entry); mov ebx, [rdi]; invlpg [rdi]; mov ebp, [rdi] */
    static const uint8_t code[] = {0x8B, 0x07, 0x48, 0x89, 0x16, 0x0F, 0x01, 0x3F, 0x8B, 0x2F};

    memset(cpu.memory + 0x10000, 1, 4);
    memset(cpu.memory + 0x11000, 2, 4);
    in->emu.regs.rdi = CPU_SMALL + 0x10000;
    in->emu.regs.rsi = CPU_KERNEL + CPU_TABLES + 0x5000 + 16 * 8;
    in->emu.regs.rdx = 0x11007;
    cr_expect_eq(run(code, sizeof(code)), X86_INTERPRET_HALTED);
    cr_expect_eq((uint32_t)in->emu.regs.rax, 0x01010101);
    cr_expect_eq((uint32_t)in->emu.regs.rbp, 0x02020202);
}

Test(interpret, interrupts_are_looked_for_after_the_budget_unless_they_are_off)
{
    static const uint8_t loop[] = {0xFF, 0xC0, 0xEB, 0xFC};

    in->emu.regs.rax = 0;
    in->emu.regs.rflags = 2 | X86_FLAG_IF;
    cr_expect_eq(run(loop, sizeof(loop)), X86_INTERPRET_BUDGET);
    cr_expect_leq(in->emu.regs.rax, 600);
    in->emu.regs.rax = 0;
    in->emu.regs.rflags = 2;
    cr_expect_eq(run(loop, sizeof(loop)), X86_INTERPRET_BUDGET);
    cr_expect_gt(in->emu.regs.rax, 5000);
}

Test(interpret, a_stop_is_heeded)
{
    static const uint8_t loop[] = {0xEB, 0xFE}, stop = 1;

    in->stop = &stop;
    put_code(loop, sizeof(loop));
    cr_expect_eq(x86_interpret(in, 1 << 24), X86_INTERPRET_BUDGET);
}

Test(interpret, a_stop_is_heeded_between_instructions_that_turn_interrupts_on_and_off)
{
    static const uint8_t loop[] = {0xFA, 0xFB, 0xEB, 0xFC}; /* cli; sti; jmp */
    static const uint8_t stop = 1;

    in->stop = &stop;
    put_code(loop, sizeof(loop));
    cr_expect_eq(x86_interpret(in, 1 << 24), X86_INTERPRET_BUDGET);
}

/* KVM would step what comes next, and its CR2, translations and MSRs are kept here. */
Test(interpret, the_budget_ends_behind_what_must_not_be_left)
{
    static const uint8_t code[] = {0x90, 0x0F, 0x22, 0xD0, 0x0F, 0x01, 0x3F, 0x90}; /* mov cr2; invlpg */

    in->emu.regs.rdi = CPU_SMALL;
    in->emu.regs.rflags = 2 | X86_FLAG_IF;
    put_code(code, sizeof(code));
    for (int budget = 1; budget <= 3; budget++) {
        in->emu.regs.rip = CPU_KERNEL + CPU_CODE;
        cr_expect_eq(x86_interpret(in, budget), X86_INTERPRET_BUDGET);
        cr_expect_eq(in->emu.regs.rip, CPU_KERNEL + CPU_CODE + 7, "%d", budget);
    }
}

Test(interpret, changes_across_cache_lines_are_left)
{
    in->emu.regs.rdi = CPU_BASE + CPU_DATA + 61;
    in->emu.regs.rax = 1;
    LEAVES(0xF0, 0x01, 0x07); /* lock add [rdi], eax */
    LEAVES(0x87, 0x07);       /* xchg [rdi], eax */
}

Test(interpret, iret_and_sysret_enter_user_mode)
{
    const uint64_t frame[5] = {CPU_BASE + CPU_CODE, 0x33, 0x202, CPU_BASE + 0x9000, 0x2B};

    in->emu.sregs.ds.selector = in->emu.sregs.es.selector = 0;
    in->emu.sregs.fs.selector = in->emu.sregs.gs.selector = 0;
    in->emu.regs.rsp = CPU_KERNEL + 0x20000;
    memcpy(cpu.memory + 0x20000, frame, sizeof(frame));
    cr_expect_eq(run((uint8_t[]){0x48, 0xCF}, 2), X86_INTERPRET_USER);
    cr_expect_eq(in->emu.regs.rip, CPU_BASE + CPU_CODE);
    cr_expect_eq(in->emu.regs.rsp, CPU_BASE + 0x9000);
    cr_expect_eq(in->emu.regs.rflags, 0x202);
    cr_expect_eq(x86_emu_cpl(&in->emu), 3);
    cr_expect_eq(in->emu.sregs.cs.selector, 0x33);
    in->emu.sregs = cpu.emu.sregs;
    in->star = 0x0023ull << 48;
    in->emu.regs.rcx = CPU_BASE + 0x5000;
    in->emu.regs.r11 = 0x202;
    cr_expect_eq(run((uint8_t[]){0x48, 0x0F, 0x07}, 3), X86_INTERPRET_USER);
    cr_expect_eq(in->emu.regs.rip, CPU_BASE + 0x5000);
    cr_expect_eq(in->emu.sregs.ss.selector, 0x2B);
}

/* ---- tables that KVM has shadows of ---- */

Test(interpret, changes_of_entries_in_use_are_left_and_new_entries_are_written)
{
    uint64_t *entry = emulated_cpu_pte(&cpu, 20);

    cr_assert_eq(x86_tables_create(&in->tables, cpu.emu.mem, -1, 1), 0);
    cr_assert(x86_tables_enter(in->tables, 0, CPU_TABLES));
    cr_expect_eq(*x86_tables_mark(in->tables, CPU_TABLES), 8);
    cr_expect_eq(*x86_tables_mark(in->tables, CPU_TABLES + 0x5000), X86_TABLE_LEAVES);
    cr_expect_eq(*x86_tables_mark(in->tables, CPU_DATA), 0);
    in->emu.regs.rdi = CPU_KERNEL + CPU_TABLES + 0x5000 + 20 * 8;
    in->emu.regs.rax = 0;
    LEAVES(0x48, 0x89, 0x07);       /* mov [rdi], rax */
    LEAVES(0xF0, 0x48, 0x0F, 0xB1, 0x07); /* lock cmpxchg [rdi], rax */
    cr_expect_eq(in->table_left, CPU_TABLES + 0x5000);
    *entry = 0;
    in->emu.regs.rax = 0x14007;
    cr_expect_eq(run((uint8_t[]){0x48, 0x89, 0x07}, 3), X86_INTERPRET_HALTED);
    cr_expect_eq(*entry, 0x14007);
    in->emu.regs.rdi = CPU_KERNEL + CPU_TABLES;
    LEAVES(0x48, 0x89, 0x47, 0x20); /* an entry of level 4: new tables may hang on it */
    x86_tables_destroy(in->tables);
}

Test(interpret, tables_that_hang_on_a_new_entry_are_marked)
{
    struct x86_tables *t;
    const uint64_t table = 0x180000;

    cr_assert_eq(x86_tables_create(&t, cpu.emu.mem, -1, 1), 0);
    cr_assert(x86_tables_enter(t, 0, CPU_TABLES));
    cr_expect_eq(*x86_tables_mark(t, table), 0);
    memcpy(cpu.memory + CPU_TABLES + 0x4000 + 8, &(uint64_t){table | 7}, 8);
    cr_expect(x86_tables_written(t, CPU_TABLES + 0x4000));
    cr_expect_eq(*x86_tables_mark(t, table), X86_TABLE_LEAVES);
    x86_tables_destroy(t);
}

Test(interpret, nobody_interprets_while_kvm_runs_any_vcpus_kernel)
{
    struct x86_tables *t = NULL;

    cr_assert_eq(x86_tables_create(&t, cpu.emu.mem, -1, 2), 0);
    cr_expect(x86_tables_usable(t));
    x86_tables_leave(t, true);
    x86_tables_leave(t, true);
    cr_expect_not(x86_tables_usable(t));
    cr_expect(x86_tables_enter(t, 0, CPU_TABLES), "marking goes on");
    x86_tables_leave(t, false);
    cr_expect_not(x86_tables_usable(t), "one of two goes on");
    x86_tables_leave(t, false);
    cr_expect(x86_tables_usable(t));
    x86_tables_destroy(t);
}

/* One that leads to itself is scanned but once at each level. */
Test(interpret, tables_that_lead_to_themselves_are_scanned_to_an_end)
{
    struct x86_tables *t;

    for (unsigned i = 0; i < 512; i++)
        memcpy(cpu.memory + CPU_TABLES + 8 * i, &(uint64_t){CPU_TABLES | 7}, 8);
    cr_assert_eq(x86_tables_create(&t, cpu.emu.mem, -1, 1), 0);
    cr_expect(x86_tables_enter(t, 0, CPU_TABLES));
    cr_expect_eq(*x86_tables_mark(t, CPU_TABLES), 0xF);
    x86_tables_destroy(t);
}
