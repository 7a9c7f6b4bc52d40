/*
 * The interpreter on any code, registers and page tables, with tables that KVM has shadows of: nothing may
 * crash, run without end, or leave an instruction half done, and no entry that such a shadow may hold
 * is changed but in its accessed and dirty bits.
 *
 * The input: registers (a byte each chooses a value worth trying), then entries, and the code.
 */
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"
#include "vmm/x86/interpret.h"
#include "vmm/x86/tables.h"

#define SIZE (2 * MIB)
#define TABLES 0x100000u
#define LEAVES (TABLES + 0x4000)
#define CODE 0x1000u
#define LINEAR 0x40000000ull /* the memory by large pages */
#define SMALL 0x80000000ull  /* by small ones, whose entries are the input's */
#define ENTRIES 16u
#define TURNS 200u
#define PRESENT 1ull
#define ACCESSED_DIRTY 0x60ull

static struct guest_memory *mem;

static void put(unsigned at, uint64_t value)
{
    (void)memory_write(mem, at, &value, sizeof(value));
}

static uint64_t entry_at(unsigned i)
{
    uint64_t value = 0;

    (void)memory_read(mem, LEAVES + 8 * i, &value, sizeof(value));
    return value;
}

static void make_memory(const uint8_t *data)
{
    const struct memory_config config = {.size = SIZE};

    if (!mem && memory_create(&mem, &config) < 0)
        abort();
    (void)memory_fill(mem, 0, 0, SIZE);
    put(TABLES, (TABLES + 0x1000) | 7);
    put(TABLES + 0x1000 + 8, (TABLES + 0x2000) | 7);
    put(TABLES + 0x1000 + 16, (TABLES + 0x3000) | 7);
    put(TABLES + 0x2000, 0x83);
    put(TABLES + 0x3000, LEAVES | 7);
    for (unsigned i = 0; i < ENTRIES; i++)
        put(LEAVES + 8 * i, (uint64_t)data[i] | (uint64_t)(data[i] >> 4) << 12);
    for (unsigned at = 0x2000; at < 0x4000; at += 8) /* IDT, GDT */
        put(at, 0x00AFFB000000FFFFull ^ data[at / 8 % ENTRIES] * 0x0100010000000000ull);
}

static uint64_t value_of(uint8_t byte)
{
    static const uint64_t values[] = {
        0, 1, 7, 16, 63, LINEAR + CODE, LINEAR + 0x10000, LINEAR + SIZE - 8, SMALL, SMALL + 0xFFC,
        SMALL + 0x2FF8, UINT64_MAX, 1ull << 47, LINEAR + LEAVES, LINEAR + TABLES, UINT32_MAX,
    };

    return values[byte & 15] + (byte >> 4);
}

static void set_registers(struct x86_emu *emu, const uint8_t *data)
{
    struct kvm_sregs *s = &emu->sregs;

    for (unsigned i = 0; i < 16; i++)
        memcpy((char *)&emu->regs + 8 * i, &(uint64_t){value_of(data[i])}, 8);
    emu->regs.rip = LINEAR + CODE;
    emu->regs.rflags = 2 | (data[16] & 1 ? X86_FLAG_IF : 0) | (data[16] & 2 ? X86_FLAG_DF : 0);
    s->cr0 = X86_CR0_PG | X86_CR0_PE | (data[16] & 4 ? X86_CR0_WP : 0);
    s->cr3 = TABLES;
    s->cr4 = X86_CR4_PAE | (data[16] & 8 ? X86_CR4_SMAP : 0);
    s->efer = X86_EFER_LMA | (data[16] & 16 ? X86_EFER_NXE : 0) | 1;
    s->cs.l = 1;
    s->cs.selector = 0x10;
    s->ss.selector = 0x18;
    s->gdt.base = LINEAR + 0x3000;
    s->gdt.limit = 0xFF;
    s->idt.base = LINEAR + 0x2000;
    s->idt.limit = 0xFFF;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct x86_interpreter *in;
    uint64_t before[ENTRIES];
    struct kvm_regs regs;
    enum x86_interpret_end end;
    unsigned turns = 0;

    if (size < 18 + ENTRIES || size > 600)
        return 0;
    if (!in && !(in = malloc(sizeof(*in))))
        abort();
    memset(in, 0, sizeof(*in));
    make_memory(data + 17);
    in->emu.mem = mem;
    set_registers(&in->emu, data);
    (void)memory_write(mem, CODE, data + 17 + ENTRIES, size - 17 - ENTRIES);
    if (x86_tables_create(&in->tables, mem, -1, 1) < 0)
        abort();
    (void)x86_tables_enter(in->tables, 0, TABLES);
    for (unsigned i = 0; i < ENTRIES; i++)
        before[i] = entry_at(i);
    do { /* the last end tells of one instruction: none of what is left has been done */
        regs = in->emu.regs;
        end = x86_interpret(in, 1);
    } while (end == X86_INTERPRET_BUDGET && ++turns < TURNS && x86_interpretable(in));
    if (end == X86_INTERPRET_LEFT && turns > 0 && !(regs.rflags & X86_FLAG_IF))
        FUZZ_CHECK(x86_interpret(in, 1) == X86_INTERPRET_LEFT);
    if (in->emu.sregs.cr3 == TABLES) /* with other tables other pages' bits are set */
        for (unsigned i = 0; i < ENTRIES; i++)
            FUZZ_CHECK(!(before[i] & PRESENT) || !((before[i] ^ entry_at(i)) & ~ACCESSED_DIRTY));
    x86_tables_destroy(in->tables);
    return 0;
}
