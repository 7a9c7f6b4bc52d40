/* See the header. */
#include "tests/unit/emulated_cpu.h"

#include <criterion/criterion.h>
#include <string.h>
#include <sys/mman.h>

#define PTE_SUPERVISOR 0x3u
#define PTE_USER 0x7u
#define PTE_LARGE 0x80u

static int load_xstate(struct x86_emu *emu)
{
    const struct emulated_cpu *cpu = emu->opaque;

    emu->xstate = cpu->xstate;
    emu->xcr0 = cpu->xcr0;
    return 0;
}

static int read_msr(struct x86_emu *emu, uint32_t index, uint64_t *value)
{
    const struct emulated_cpu *cpu = emu->opaque;

    *value = index == 0x10 ? cpu->tsc : index == 0xDA0 ? cpu->xss : cpu->tsc_aux;
    return 0;
}

static const struct x86_emu_ops ops = {load_xstate, read_msr};

static void put(struct emulated_cpu *cpu, unsigned at, uint64_t value)
{
    memcpy(cpu->memory + at, &value, sizeof(value));
}

static void make_tables(struct emulated_cpu *cpu)
{
    const unsigned pml4 = CPU_TABLES, pdpt = CPU_TABLES + 0x1000, pd = CPU_TABLES + 0x2000;
    const unsigned pd_kernel = CPU_TABLES + 0x3000, pd_small = CPU_TABLES + 0x4000;
    const unsigned pt = CPU_TABLES + 0x5000;

    put(cpu, pml4, pdpt | PTE_USER);
    put(cpu, pdpt + 8, pd | PTE_USER);         /* 1 GiB */
    put(cpu, pdpt + 16, pd_kernel | PTE_USER); /* 2 GiB */
    put(cpu, pdpt + 24, pd_small | PTE_USER);  /* 3 GiB */
    put(cpu, pd, PTE_LARGE | PTE_USER);
    put(cpu, pd_kernel, PTE_LARGE | PTE_SUPERVISOR);
    put(cpu, pd_small, pt | PTE_USER);
    for (unsigned i = 0; i < 512; i++)
        put(cpu, pt + 8 * i, i << 12 | PTE_USER);
}

static struct kvm_segment flat(uint16_t selector, uint8_t type)
{
    return (struct kvm_segment){.limit = UINT32_MAX, .selector = selector, .type = type,
                                .present = 1, .s = 1, .g = 1, .l = type == 11, .db = type != 11};
}

void emulated_cpu_init(struct emulated_cpu *cpu)
{
    const struct memory_config config = {.size = CPU_SIZE};
    struct kvm_sregs *s = &cpu->emu.sregs;

    memset(cpu, 0, sizeof(*cpu));
    cr_assert_eq(memory_create(&cpu->emu.mem, &config), 0);
    cpu->memory = mmap((void *)CPU_BASE, CPU_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC,
                       MAP_SHARED | MAP_FIXED_NOREPLACE, memory_fd(cpu->emu.mem), 0);
    cr_assert_eq((uintptr_t)cpu->memory, CPU_BASE);
    make_tables(cpu);
    cpu->emu.ops = &ops;
    cpu->emu.opaque = cpu;
    cpu->xcr0 = 7;
    s->cr0 = X86_CR0_PG | X86_CR0_WP | X86_CR0_PE;
    s->cr3 = CPU_TABLES;
    s->cr4 = X86_CR4_PAE | X86_CR4_OSFXSR | X86_CR4_OSXSAVE;
    s->efer = X86_EFER_LMA | X86_EFER_NXE | 1;
    s->cs = flat(0x10, 11);
    s->ss = s->ds = s->es = s->fs = s->gs = flat(0x18, 3);
    s->gdt.base = CPU_KERNEL + CPU_GDT;
    s->gdt.limit = 0x4F;
    s->idt.base = CPU_KERNEL + CPU_IDT;
    s->idt.limit = 0xFFF;
    s->tr = (struct kvm_segment){.base = CPU_KERNEL + CPU_TSS, .limit = 0x67, .selector = 0x40};
    put(cpu, CPU_GDT + 0x10, 0x00AF9B000000FFFF);
    put(cpu, CPU_GDT + 0x18, 0x00CF93000000FFFF);
    put(cpu, CPU_GDT + 0x28, 0x00CFF3000000FFFF);
    put(cpu, CPU_GDT + 0x30, 0x00AFFB000000FFFF);
    put(cpu, CPU_GDT + 0x38, 0x0000F50000001234); /* present, DPL 3, data, expand-down, limit 0x1234 */
    put(cpu, CPU_TSS + 4, CPU_KERNEL + 0x20000);
    put(cpu, CPU_TSS + 36, CPU_KERNEL + 0x28000);
    cpu->emu.regs.rsp = CPU_KERNEL + 0x30000;
    cpu->emu.regs.rflags = 2;
}

void emulated_cpu_fini(struct emulated_cpu *cpu)
{
    munmap(cpu->memory, CPU_SIZE);
    memory_destroy(cpu->emu.mem);
}

uint64_t *emulated_cpu_pte(struct emulated_cpu *cpu, unsigned n)
{
    return (uint64_t *)(cpu->memory + CPU_TABLES + 0x5000) + n;
}

enum x86_emu_result emulated_cpu_run(struct emulated_cpu *cpu, const void *bytes, size_t n)
{
    struct x86_emu *emu = &cpu->emu;

    memset(cpu->memory + CPU_CODE, 0xCC, 32);
    memcpy(cpu->memory + CPU_CODE, bytes, n);
    emu->regs.rip = (x86_emu_cpl(emu) == 3 ? CPU_BASE : CPU_KERNEL) + CPU_CODE;
    emu->xstate_loaded = emu->xstate_changed = emu->sregs_changed = emu->flush_tlb = false;
    return x86_emulate(emu);
}
