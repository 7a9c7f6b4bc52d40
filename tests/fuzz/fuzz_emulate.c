/*
 * The decoder and the emulation on any bytes, registers and page tables: nothing may crash, an
 * instruction's length does not depend on what follows it, and one that is not carried out changes
 * no register.
 *
 * The input: what mode, then registers (a byte each chooses a value worth trying), then the code.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"
#include "vmm/x86/emulate.h"

#define SIZE (2 * MIB)
#define TABLES 0x100000u
#define CODE 0x1000u
#define LINEAR 0x40000000ull /* the memory by large pages */
#define SMALL 0x80000000ull  /* by small ones, whose entries are the input's */

static struct guest_memory *mem;

static int load_xstate(struct x86_emu *emu)
{
    memset(emu->xstate.bytes, 0, sizeof(emu->xstate.bytes));
    emu->xcr0 = 7;
    return 0;
}

static int read_msr(struct x86_emu *emu, uint32_t index, uint64_t *value)
{
    (void)emu;
    *value = index == 0xDA0 ? 0 : index;
    return 0;
}

static const struct x86_emu_ops ops = {load_xstate, read_msr};

static void put(unsigned at, uint64_t value)
{
    (void)memory_write(mem, at, &value, sizeof(value));
}

static void make_memory(const uint8_t *data, size_t size)
{
    const struct memory_config config = {.size = SIZE};

    if (!mem && memory_create(&mem, &config) < 0)
        abort();
    put(TABLES, (TABLES + 0x1000) | 7);
    put(TABLES + 0x1000 + 8, (TABLES + 0x2000) | 7);
    put(TABLES + 0x1000 + 16, (TABLES + 0x3000) | 7);
    put(TABLES + 0x2000, 0x87);
    put(TABLES + 0x3000, (TABLES + 0x4000) | 7);
    for (unsigned i = 0; i < 16; i++)
        put(TABLES + 0x4000 + 8 * i, size > i ? (uint64_t)data[i] | (uint64_t)data[i] << 12 : 0);
    for (unsigned at = 0x2000; at < 0x6000; at += 8) /* IDT, GDT, TSS */
        put(at, size > 0 ? 0x0000EE0000100000ull + data[at / 8 % size] * 0x0101010101010101ull : 0);
}

static uint64_t value_of(uint8_t byte)
{
    static const uint64_t values[] = {
        0, 1, 7, 16, 63, LINEAR, LINEAR + 0x10000, LINEAR + SIZE - 8, SMALL, SMALL + 0xFFC,
        SMALL + 0x2FF8, UINT64_MAX, 1ull << 47, 0xFFFF800000000000, 0x7FFFFFFFFFFF, UINT32_MAX,
    };

    return values[byte & 15] + (byte >> 4);
}

static void set_registers(struct x86_emu *emu, const uint8_t *data)
{
    struct kvm_sregs *s = &emu->sregs;
    unsigned cpl = data[0] & 4 ? 3 : 0;

    for (unsigned i = 0; i < 16; i++)
        memcpy((char *)&emu->regs + 8 * i, &(uint64_t){value_of(data[i + 1])}, 8);
    emu->regs.rip = LINEAR + CODE;
    emu->regs.rflags = 2 | (data[0] & 8 ? X86_FLAG_AC : 0);
    s->cr0 = X86_CR0_PG | X86_CR0_PE | X86_CR0_WP | (data[0] & 16 ? X86_CR0_TS : 0);
    s->cr3 = TABLES;
    s->cr4 = X86_CR4_PAE | X86_CR4_OSFXSR | X86_CR4_OSXSAVE | (data[0] & 32 ? X86_CR4_SMAP : 0);
    s->efer = X86_EFER_LMA | (data[0] & 64 ? X86_EFER_NXE : 0);
    s->cs.l = (data[0] & 3) != 1;
    s->cs.db = (data[0] & 3) == 1;
    s->cs.dpl = s->ss.dpl = (uint8_t)cpl;
    s->ds = s->es = s->fs = s->gs = s->ss = (struct kvm_segment){
        .limit = UINT32_MAX, .present = 1, .type = 3, .dpl = (uint8_t)cpl};
    s->gdt.base = LINEAR + 0x3000;
    s->gdt.limit = 0xFF;
    s->idt.base = LINEAR + 0x2000;
    s->idt.limit = 0xFFF;
    s->tr = (struct kvm_segment){.base = LINEAR + 0x4000, .limit = 0x67};
}

static void check_decoder(const uint8_t *code, size_t n)
{
    for (int size = X86_CODE16; size <= X86_CODE64; size++) {
        struct x86_insn insn, again;

        if (x86_decode(code, n, (enum x86_code_size)size, &insn) != 0)
            continue;
        FUZZ_CHECK(insn.length > 0 && insn.length <= n && insn.length <= X86_INSN_MAX);
        for (size_t cut = 0; cut < insn.length; cut++)
            FUZZ_CHECK(x86_decode(code, cut, (enum x86_code_size)size, &again) == -EAGAIN);
        FUZZ_CHECK(x86_decode(code, insn.length, (enum x86_code_size)size, &again) == 0);
        FUZZ_CHECK(again.op == insn.op && again.length == insn.length);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct x86_emu emu;
    struct kvm_regs before;
    size_t n;

    if (size < 18)
        return 0;
    n = size - 17 > X86_INSN_MAX ? X86_INSN_MAX : size - 17;
    check_decoder(data + 17, n);
    make_memory(data, size);
    memset(&emu, 0, sizeof(emu));
    emu.mem = mem;
    emu.ops = &ops;
    set_registers(&emu, data);
    (void)memory_write(mem, CODE, data + 17, n);
    before = emu.regs;
    switch (x86_emulate(&emu)) {
    case X86_EMU_DONE:
        FUZZ_CHECK(emu.insn.length > 0);
        break;
    case X86_EMU_FAULT:
        FUZZ_CHECK(emu.fault.vector < 32);
        FUZZ_CHECK(memcmp(&before, &emu.regs, sizeof(before)) == 0);
        break;
    case X86_EMU_UNKNOWN:
        FUZZ_CHECK(memcmp(&before, &emu.regs, sizeof(before)) == 0);
        break;
    }
    return 0;
}
