/*
 * The emulation where a processor cannot be asked by a test: what kernels alone may execute, faults
 * with their codes, page tables, the entry into an interrupt's handler, the repair of SYSCALL.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "tests/unit/emulated_cpu.h"
#include "vmm/x86/syscall.h"

static struct emulated_cpu cpu;
static struct kvm_regs *const regs = &cpu.emu.regs;
static struct kvm_sregs *const sregs = &cpu.emu.sregs;

static void set_up(void)
{
    emulated_cpu_init(&cpu);
}

static void tear_down(void)
{
    emulated_cpu_fini(&cpu);
}

TestSuite(emulate, .init = set_up, .fini = tear_down);

#define RUN(...)                                                                                   \
    emulated_cpu_run(&cpu, (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

/* popcnt rax, [rdi], which reads 8 bytes */
#define POPCNT_RDI 0xF3, 0x48, 0x0F, 0xB8, 0x07
/* lock cmpxchg16b [rdi], which writes 16 */
#define CMPXCHG16B_RDI 0xF0, 0x48, 0x0F, 0xC7, 0x0F

static void assert_fault(unsigned vector, uint32_t error)
{
    cr_assert_eq(cpu.emu.fault.vector, vector, "vector %u", cpu.emu.fault.vector);
    cr_assert_eq(cpu.emu.fault.error, error, "error code %#x", cpu.emu.fault.error);
}

static void assert_page_fault(uint64_t address, uint32_t error)
{
    assert_fault(X86_VECTOR_PF, error);
    cr_assert(cpu.emu.fault.has_error);
    cr_assert_eq(cpu.emu.fault.address, address, "CR2 %#lx", cpu.emu.fault.address);
}

static void be_user(void)
{
    sregs->cs.selector = 0x33;
    sregs->ss.selector = 0x2B;
    sregs->cs.dpl = sregs->ss.dpl = 3;
    regs->rsp = CPU_BASE + 0x40000;
}

/* ---- decoding ---- */

static int decode(const char *bytes, size_t n, struct x86_insn *insn)
{
    return x86_decode((const uint8_t *)bytes, n, X86_CODE64, insn);
}

Test(emulate, an_instruction_that_is_cut_off_wants_more_bytes)
{
    const char bytes[] = "\xF3\x4F\x0F\xB8\x84\xC8\x78\x56\x34\x12";
    struct x86_insn insn;

    for (size_t n = 0; n < 10; n++)
        cr_assert_eq(decode(bytes, n, &insn), -EAGAIN);
    cr_assert_eq(decode(bytes, 10, &insn), 0);
    cr_assert_eq(insn.length, 10);
    cr_assert_eq(insn.base, 8);
    cr_assert_eq(insn.index, 9);
    cr_assert_eq(insn.scale, 8);
    cr_assert_eq(insn.displacement, 0x12345678);
}

Test(emulate, an_instruction_of_sixteen_bytes_is_too_long)
{
    struct x86_insn insn;

    cr_assert_eq(decode("\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\xF3\x0F\xB8", 16, &insn),
                 -E2BIG);
}

Test(emulate, a_lock_stands_only_where_it_may)
{
    struct x86_insn insn;

    cr_assert_eq(decode("\xF0\x0F\x01\xCA", 4, &insn), -EINVAL);
    cr_assert_eq(decode("\xF0\x48\x0F\xC7\x0F", 5, &insn), 0);
}

Test(emulate, what_is_not_in_the_table_is_not_decoded)
{
    struct x86_insn insn;

    cr_assert_eq(decode("\x0F\x04", 2, &insn), -ENOSYS);
    cr_assert_eq(decode("\x0F\xC7\x0F", 3, &insn), -ENOSYS); /* cmpxchg8b */
}

Test(emulate, a_rex_before_a_prefix_counts_for_nothing)
{
    struct x86_insn insn;

    cr_assert_eq(decode("\x48\xF3\x0F\xB8\xC1", 5, &insn), 0);
    cr_assert_eq(insn.size, 4);
}

Test(emulate, rip_relative_operands_count_from_the_next_instruction)
{
    const uint64_t value = 0x1F;

    memcpy(cpu.memory + CPU_CODE + 0x109, &value, 8);
    cr_assert_eq(RUN(0xF3, 0x48, 0x0F, 0xB8, 0x05, 0x00, 0x01, 0x00, 0x00), X86_EMU_DONE);
    cr_assert_eq(regs->rax, 5);
}

Test(emulate, operands_are_relative_to_fs_and_gs)
{
    const uint64_t value = 0xFF;

    memcpy(cpu.memory + CPU_DATA + 0x40, &value, 8);
    sregs->gs.base = CPU_KERNEL + CPU_DATA;
    regs->rdi = 0x40;
    cr_assert_eq(RUN(0x65, POPCNT_RDI), X86_EMU_DONE);
    cr_assert_eq(regs->rax, 8);
}

Test(emulate, an_address_of_32_bits_wraps)
{
    const uint64_t value = 7;

    memcpy(cpu.memory + CPU_DATA, &value, 8);
    regs->rdi = 0xFFFFFFFF00000000 | (CPU_BASE + CPU_DATA);
    cr_assert_eq(RUN(0x67, POPCNT_RDI), X86_EMU_DONE);
    cr_assert_eq(regs->rax, 3);
}

/* ---- page tables ---- */

Test(emulate, an_absent_page_is_a_fault_at_its_address)
{
    *emulated_cpu_pte(&cpu, 17) = 0;
    regs->rdi = CPU_SMALL + 0x11008;
    cr_assert_eq(RUN(POPCNT_RDI), X86_EMU_FAULT);
    assert_page_fault(CPU_SMALL + 0x11008, 0);
    cr_assert_eq(regs->rip, CPU_KERNEL + CPU_CODE);
}

Test(emulate, the_second_page_of_an_operand_faults_at_its_beginning)
{
    *emulated_cpu_pte(&cpu, 17) = 0;
    regs->rdi = CPU_SMALL + 0x10FFC;
    cr_assert_eq(RUN(POPCNT_RDI), X86_EMU_FAULT);
    assert_page_fault(CPU_SMALL + 0x11000, 0);
}

Test(emulate, an_operand_across_two_pages_is_read_from_both)
{
    uint64_t *first = emulated_cpu_pte(&cpu, 16), *second = emulated_cpu_pte(&cpu, 17);

    *first = 0x50000 | 7;
    *second = 0x30000 | 7;
    memset(cpu.memory + 0x50FFC, 0xFF, 4);
    memset(cpu.memory + 0x30000, 0x01, 4);
    regs->rdi = CPU_SMALL + 0x10FFC;
    cr_assert_eq(RUN(POPCNT_RDI), X86_EMU_DONE);
    cr_assert_eq(regs->rax, 36);
}

Test(emulate, nothing_is_written_when_the_second_page_cannot_be)
{
    *emulated_cpu_pte(&cpu, 17) = 0x11000 | 5; /* read only */
    memset(cpu.memory + 0x10FF0, 0xAA, 16);
    regs->rdi = CPU_SMALL + 0x10FFC;
    regs->rcx = 0;
    cr_assert_eq(RUN(0x48, 0x0F, 0x38, 0xF1, 0x0F), X86_EMU_FAULT); /* movbe [rdi], rcx */
    assert_page_fault(CPU_SMALL + 0x11000, X86_PF_PRESENT | X86_PF_WRITE);
    cr_assert_eq(cpu.memory[0x10FFC], 0xAA);
}

Test(emulate, an_exchange_that_fails_still_needs_the_right_to_write)
{
    *emulated_cpu_pte(&cpu, 16) = 0x10000 | 5;
    regs->rdi = CPU_SMALL + 0x10000;
    cr_assert_eq(RUN(CMPXCHG16B_RDI), X86_EMU_FAULT);
    assert_page_fault(CPU_SMALL + 0x10000, X86_PF_PRESENT | X86_PF_WRITE);
}

Test(emulate, without_wp_a_kernel_writes_to_read_only_pages)
{
    *emulated_cpu_pte(&cpu, 16) = 0x10000 | 5;
    sregs->cr0 &= ~X86_CR0_WP;
    regs->rdi = CPU_SMALL + 0x10000;
    cr_assert_eq(RUN(CMPXCHG16B_RDI), X86_EMU_DONE);
}

Test(emulate, an_exchange_that_is_not_aligned_is_a_protection_fault)
{
    regs->rdi = CPU_BASE + CPU_DATA + 8;
    cr_assert_eq(RUN(CMPXCHG16B_RDI), X86_EMU_FAULT);
    assert_fault(X86_VECTOR_GP, 0);
}

Test(emulate, a_user_does_not_reach_the_kernels_pages)
{
    be_user();
    regs->rdi = CPU_KERNEL + CPU_DATA;
    cr_assert_eq(RUN(POPCNT_RDI), X86_EMU_FAULT);
    assert_page_fault(CPU_KERNEL + CPU_DATA, X86_PF_PRESENT | X86_PF_USER);
}

Test(emulate, smap_keeps_a_kernel_from_users_pages_but_with_ac)
{
    sregs->cr4 |= X86_CR4_SMAP;
    regs->rdi = CPU_BASE + CPU_DATA;
    cr_assert_eq(RUN(POPCNT_RDI), X86_EMU_FAULT);
    assert_page_fault(CPU_BASE + CPU_DATA, X86_PF_PRESENT);
    cr_assert_eq(RUN(0x0F, 0x01, 0xCB), X86_EMU_DONE); /* stac */
    cr_assert_eq(RUN(POPCNT_RDI), X86_EMU_DONE);
    cr_assert_eq(RUN(0x0F, 0x01, 0xCA), X86_EMU_DONE); /* clac */
    cr_assert_eq(RUN(POPCNT_RDI), X86_EMU_FAULT);
}

Test(emulate, code_is_not_fetched_from_pages_that_forbid_it)
{
    *emulated_cpu_pte(&cpu, 1) |= 1ull << 63;
    regs->rip = CPU_SMALL + CPU_CODE;
    cr_assert_eq(x86_emulate(&cpu.emu), X86_EMU_FAULT);
    assert_page_fault(CPU_SMALL + CPU_CODE, X86_PF_PRESENT | X86_PF_FETCH);
}

Test(emulate, an_instruction_across_two_pages_faults_where_it_goes_on)
{
    memcpy(cpu.memory + 0x10FFD, "\xF3\x48\x0F", 3);
    *emulated_cpu_pte(&cpu, 17) = 0;
    regs->rip = CPU_SMALL + 0x10FFD;
    cr_assert_eq(x86_emulate(&cpu.emu), X86_EMU_FAULT);
    assert_page_fault(CPU_SMALL + 0x11000, X86_PF_FETCH);
}

Test(emulate, reserved_bits_of_an_entry_are_a_fault_of_their_own)
{
    sregs->efer &= ~X86_EFER_NXE;
    *emulated_cpu_pte(&cpu, 16) |= 1ull << 63;
    regs->rdi = CPU_SMALL + 0x10000;
    cr_assert_eq(RUN(POPCNT_RDI), X86_EMU_FAULT);
    assert_page_fault(CPU_SMALL + 0x10000, X86_PF_PRESENT | X86_PF_RESERVED);
}

Test(emulate, accessed_and_dirty_are_set_as_needed)
{
    uint64_t *pte = emulated_cpu_pte(&cpu, 16);

    regs->rdi = CPU_SMALL + 0x10000;
    cr_assert_eq(RUN(POPCNT_RDI), X86_EMU_DONE);
    cr_assert_eq(*pte & 0x60, 0x20);
    cr_assert_eq(RUN(CMPXCHG16B_RDI), X86_EMU_DONE);
    cr_assert_eq(*pte & 0x60, 0x60);
}

Test(emulate, an_address_that_is_not_canonical_is_a_protection_fault)
{
    regs->rdi = 0x0000800000000000;
    cr_assert_eq(RUN(POPCNT_RDI), X86_EMU_FAULT);
    assert_fault(X86_VECTOR_GP, 0);
    cr_assert_eq(RUN(0xF3, 0x48, 0x0F, 0xB8, 0x44, 0x3C, 0x00), X86_EMU_FAULT); /* [rsp+rdi] */
    assert_fault(X86_VECTOR_SS, 0);
}

Test(emulate, where_there_is_no_ram_the_instruction_is_left_alone)
{
    *emulated_cpu_pte(&cpu, 16) = 0xE0000000 | 7;
    regs->rdi = CPU_SMALL + 0x10000;
    cr_assert_eq(RUN(POPCNT_RDI), X86_EMU_UNKNOWN);
    cr_assert_eq(regs->rip, CPU_KERNEL + CPU_CODE);
}

Test(emulate, tables_of_32_bits_are_walked)
{
    const uint32_t pde = 0x00000087; /* 4 MiB at 0, a user's */

    memset(cpu.memory + CPU_TABLES, 0, 4096);
    memcpy(cpu.memory + CPU_TABLES, &pde, 4);
    sregs->efer = 0;
    sregs->cr4 = X86_CR4_PSE;
    sregs->cs.l = 0;
    sregs->cs.db = 1;
    memcpy(cpu.memory + CPU_CODE, "\xF3\x0F\xB8\x07", 4); /* popcnt eax, [edi] */
    memset(cpu.memory + CPU_DATA, 0x11, 4);
    regs->rip = CPU_CODE;
    regs->rdi = CPU_DATA;
    cr_assert_eq(x86_emulate(&cpu.emu), X86_EMU_DONE);
    cr_assert_eq(regs->rax, 8);
    cr_assert_eq(cpu.memory[CPU_TABLES] & 0x20, 0x20);
}

Test(emulate, a_limit_of_a_segment_is_kept)
{
    sregs->efer = 0;
    sregs->cr0 &= ~X86_CR0_PG;
    sregs->cs.l = 0;
    sregs->cs.db = 1;
    sregs->ds.limit = CPU_DATA + 2;
    memcpy(cpu.memory + CPU_CODE, "\xF3\x0F\xB8\x07", 4);
    regs->rip = CPU_CODE;
    regs->rdi = CPU_DATA;
    cr_assert_eq(x86_emulate(&cpu.emu), X86_EMU_FAULT);
    assert_fault(X86_VECTOR_GP, 0);
}

/* ---- what kernels alone execute ---- */

Test(emulate, a_user_may_neither_clac_nor_invpcid_nor_xrstors)
{
    be_user();
    cr_assert_eq(RUN(0x0F, 0x01, 0xCA), X86_EMU_FAULT);
    assert_fault(X86_VECTOR_UD, 0);
    regs->rdi = CPU_BASE + CPU_DATA;
    cr_assert_eq(RUN(0x66, 0x0F, 0x38, 0x82, 0x07), X86_EMU_FAULT);
    assert_fault(X86_VECTOR_GP, 0);
    cr_assert_eq(RUN(0x48, 0x0F, 0xC7, 0x1F), X86_EMU_FAULT);
    assert_fault(X86_VECTOR_GP, 0);
}

Test(emulate, invpcid_asks_for_all_translations_to_go)
{
    memset(cpu.memory + CPU_DATA, 0, 16);
    regs->rdi = CPU_BASE + CPU_DATA;
    regs->rax = 2;
    cr_assert_eq(RUN(0x66, 0x0F, 0x38, 0x82, 0x07), X86_EMU_DONE);
    cr_assert(cpu.emu.flush_tlb);
    regs->rax = 4;
    cr_assert_eq(RUN(0x66, 0x0F, 0x38, 0x82, 0x07), X86_EMU_FAULT);
    assert_fault(X86_VECTOR_GP, 0);
}

Test(emulate, rdtscp_and_rdpid_give_the_guests_values)
{
    cpu.tsc = 0x123456789AB;
    cpu.tsc_aux = 0x1007;
    cr_assert_eq(RUN(0x0F, 0x01, 0xF9), X86_EMU_DONE);
    cr_assert_eq(regs->rax, 0x456789AB);
    cr_assert_eq(regs->rdx, 0x123);
    cr_assert_eq(regs->rcx, 0x1007);
    cr_assert_eq(RUN(0xF3, 0x0F, 0xC7, 0xFB), X86_EMU_DONE);
    cr_assert_eq(regs->rbx, 0x1007);
}

Test(emulate, segment_bases_need_leave_and_a_canonical_address)
{
    regs->rcx = 0x1234;
    cr_assert_eq(RUN(0xF3, 0x48, 0x0F, 0xAE, 0xD9), X86_EMU_FAULT); /* wrgsbase rcx */
    assert_fault(X86_VECTOR_UD, 0);
    sregs->cr4 |= 1 << 16;
    cr_assert_eq(RUN(0xF3, 0x48, 0x0F, 0xAE, 0xD9), X86_EMU_DONE);
    cr_assert_eq(sregs->gs.base, 0x1234);
    cr_assert(cpu.emu.sregs_changed);
    regs->rcx = 1ull << 47;
    cr_assert_eq(RUN(0xF3, 0x48, 0x0F, 0xAE, 0xD9), X86_EMU_FAULT);
    assert_fault(X86_VECTOR_GP, 0);
}

Test(emulate, lsl_and_lar_look_into_the_descriptor_table)
{
    regs->rcx = 0x3B;
    cr_assert_eq(RUN(0x0F, 0x03, 0xC1), X86_EMU_DONE);
    cr_assert_eq(regs->rax, 0x1234);
    cr_assert(regs->rflags & X86_FLAG_ZF);
    cr_assert_eq(RUN(0x0F, 0x02, 0xC1), X86_EMU_DONE);
    cr_assert_eq(regs->rax, 0xF500);
    regs->rcx = 0x100; /* beyond the table */
    cr_assert_eq(RUN(0x0F, 0x03, 0xC1), X86_EMU_DONE);
    cr_assert_not(regs->rflags & X86_FLAG_ZF);
    cr_assert_eq(regs->rax, 0xF500);
}

Test(emulate, verw_tells_what_may_be_written)
{
    regs->rcx = 0x18;
    cr_assert_eq(RUN(0x0F, 0x00, 0xE9), X86_EMU_DONE);
    cr_assert(regs->rflags & X86_FLAG_ZF);
    regs->rcx = 0x10; /* code */
    cr_assert_eq(RUN(0x0F, 0x00, 0xE9), X86_EMU_DONE);
    cr_assert_not(regs->rflags & X86_FLAG_ZF);
}

Test(emulate, a_task_switch_has_fpu_instructions_trap)
{
    sregs->cr0 |= X86_CR0_TS;
    regs->rdi = CPU_BASE + CPU_DATA;
    cr_assert_eq(RUN(0x0F, 0xAE, 0x1F), X86_EMU_FAULT); /* stmxcsr */
    assert_fault(X86_VECTOR_NM, 0);
    cr_assert_eq(RUN(0x9B), X86_EMU_DONE); /* fwait: only with MP */
    sregs->cr0 |= X86_CR0_MP;
    cr_assert_eq(RUN(0x9B), X86_EMU_FAULT);
    assert_fault(X86_VECTOR_NM, 0);
}

Test(emulate, mxcsr_takes_no_reserved_bits)
{
    uint32_t mxcsr = 0x1F80;

    memcpy(cpu.memory + CPU_DATA, &mxcsr, 4);
    regs->rdi = CPU_BASE + CPU_DATA;
    cr_assert_eq(RUN(0x0F, 0xAE, 0x17), X86_EMU_DONE);
    cr_assert(cpu.emu.xstate_changed);
    mxcsr = 0x10000;
    memcpy(cpu.memory + CPU_DATA, &mxcsr, 4);
    cr_assert_eq(RUN(0x0F, 0xAE, 0x17), X86_EMU_FAULT);
    assert_fault(X86_VECTOR_GP, 0);
}

/* ---- vectors ---- */

Test(emulate, operands_of_sse_are_aligned_but_for_unaligned_moves)
{
    regs->rdi = CPU_BASE + CPU_DATA + 8;
    cr_assert_eq(RUN(0x66, 0x0F, 0xEF, 0x0F), X86_EMU_FAULT); /* pxor xmm1, [rdi] */
    assert_fault(X86_VECTOR_GP, 0);
    cr_assert_eq(RUN(0x66, 0x0F, 0x6F, 0x0F), X86_EMU_FAULT); /* movdqa xmm1, [rdi] */
    cr_assert_eq(RUN(0x66, 0x0F, 0x7F, 0x0F), X86_EMU_FAULT); /* movdqa [rdi], xmm1 */
    cr_assert_eq(RUN(0xF3, 0x0F, 0x6F, 0x0F), X86_EMU_DONE);  /* movdqu xmm1, [rdi] */
    cr_assert_eq(RUN(0xC5, 0xF1, 0xEF, 0x0F), X86_EMU_DONE);  /* vpxor xmm1, xmm1, [rdi] */
}

Test(emulate, an_aligned_move_of_avx_is_aligned_to_its_size)
{
    regs->rdi = CPU_BASE + CPU_DATA + 16;
    cr_assert_eq(RUN(0xC5, 0xF9, 0x6F, 0x0F), X86_EMU_DONE);  /* vmovdqa xmm1, [rdi] */
    cr_assert_eq(RUN(0xC5, 0xFD, 0x6F, 0x0F), X86_EMU_FAULT); /* vmovdqa ymm1, [rdi] */
    assert_fault(X86_VECTOR_GP, 0);
}

Test(emulate, a_task_switch_and_a_disabled_unit_have_vectors_trap)
{
    sregs->cr0 |= X86_CR0_TS;
    cr_assert_eq(RUN(0x66, 0x0F, 0xEF, 0xC9), X86_EMU_FAULT); /* pxor xmm1, xmm1 */
    assert_fault(X86_VECTOR_NM, 0);
    sregs->cr0 = (sregs->cr0 & ~X86_CR0_TS) | X86_CR0_EM;
    cr_assert_eq(RUN(0x66, 0x0F, 0xEF, 0xC9), X86_EMU_FAULT);
    assert_fault(X86_VECTOR_UD, 0);
    sregs->cr0 &= ~X86_CR0_EM;
    cpu.xcr0 = 3;
    cr_assert_eq(RUN(0xC5, 0xF1, 0xEF, 0xC9), X86_EMU_FAULT); /* vpxor xmm1, xmm1, xmm1 */
    assert_fault(X86_VECTOR_UD, 0);
}

Test(emulate, a_third_operand_where_there_is_none_is_undefined)
{
    cr_assert_eq(RUN(0xC5, 0xF9, 0x70, 0xCA, 0x00), X86_EMU_DONE);  /* vpshufd xmm1, xmm2, 0 */
    cr_assert_eq(RUN(0xC5, 0xE9, 0x70, 0xCA, 0x00), X86_EMU_FAULT); /* with vvvv for xmm2 */
    assert_fault(X86_VECTOR_UD, 0);
    cr_assert_eq(RUN(0xC4, 0xE3, 0x79, 0x39, 0xC8, 0x01), X86_EMU_FAULT); /* vextracti128, L clear */
    assert_fault(X86_VECTOR_UD, 0);
}

Test(emulate, a_users_page_that_is_absent_faults_in_a_vector_move)
{
    *emulated_cpu_pte(&cpu, 17) = 0;
    regs->rdi = CPU_SMALL + 17 * 4096 - 8;
    cr_assert_eq(RUN(0xF3, 0x0F, 0x7F, 0x0F), X86_EMU_FAULT); /* movdqu [rdi], xmm1 */
    assert_page_fault(CPU_SMALL + 17 * 4096, X86_PF_WRITE);
}

/* ---- xsaves and xrstors ---- */

Test(emulate, xrstors_takes_back_what_xsaves_wrote)
{
    const uint64_t bv = 7;

    memset(cpu.xstate.bytes + 160, 0x5A, 256);
    memset(cpu.xstate.bytes + 576, 0xA5, 256);
    memcpy(cpu.xstate.bytes + 24, &(uint32_t){0x1F80}, 4);
    memcpy(cpu.xstate.bytes + 512, &bv, 8);
    memset(cpu.memory + CPU_DATA, 0, 1024);
    regs->rdi = CPU_BASE + CPU_DATA;
    regs->rax = regs->rdx = UINT32_MAX;
    cr_assert_eq(RUN(0x48, 0x0F, 0xC7, 0x2F), X86_EMU_DONE);
    cr_assert_eq(*(uint64_t *)(cpu.memory + CPU_DATA + 520), 1ull << 63 | 7);
    memset(cpu.xstate.bytes + 160, 0, 256);
    memset(cpu.xstate.bytes + 576, 0, 256);
    cr_assert_eq(RUN(0x48, 0x0F, 0xC7, 0x1F), X86_EMU_DONE);
    cr_assert_eq(cpu.emu.xstate.bytes[160], 0x5A);
    cr_assert_eq(cpu.emu.xstate.bytes[576 + 255], 0xA5);
}

Test(emulate, xrstors_refuses_the_standard_form_and_unknown_components)
{
    uint64_t *header = (uint64_t *)(cpu.memory + CPU_DATA + 512);

    memset(cpu.memory + CPU_DATA, 0, 1024);
    regs->rdi = CPU_BASE + CPU_DATA;
    regs->rax = 7;
    cr_assert_eq(RUN(0x48, 0x0F, 0xC7, 0x1F), X86_EMU_FAULT);
    assert_fault(X86_VECTOR_GP, 0);
    header[1] = 1ull << 63 | 1ull << 9;
    cr_assert_eq(RUN(0x48, 0x0F, 0xC7, 0x1F), X86_EMU_FAULT);
    assert_fault(X86_VECTOR_GP, 0);
    header[1] = 1ull << 63 | 3;
    header[3] = 1; /* reserved */
    cr_assert_eq(RUN(0x48, 0x0F, 0xC7, 0x1F), X86_EMU_FAULT);
    assert_fault(X86_VECTOR_GP, 0);
}

Test(emulate, an_xsave_area_is_aligned_to_64_bytes)
{
    regs->rdi = CPU_BASE + CPU_DATA + 16;
    cr_assert_eq(RUN(0x48, 0x0F, 0xAE, 0x27), X86_EMU_FAULT);
    assert_fault(X86_VECTOR_GP, 0);
}

Test(emulate, with_supervisor_components_xsaves_is_not_known)
{
    cpu.xss = 1 << 11;
    regs->rdi = CPU_BASE + CPU_DATA;
    cr_assert_eq(RUN(0x48, 0x0F, 0xC7, 0x2F), X86_EMU_UNKNOWN);
}

/* ---- interrupts ---- */

static void set_gate(unsigned vector, uint64_t offset, unsigned dpl, unsigned ist, unsigned type)
{
    uint64_t *gate = (uint64_t *)(cpu.memory + CPU_IDT) + 2 * vector;

    gate[0] = (offset & 0xFFFF) | 0x10 << 16 | (uint64_t)ist << 32 |
              (uint64_t)(0x80 | dpl << 5 | type) << 40 | (offset >> 16 & 0xFFFF) << 48;
    gate[1] = offset >> 32;
}

Test(emulate, int3_pushes_a_frame_and_enters_its_gate)
{
    const uint64_t *frame = (const uint64_t *)(cpu.memory + 0x30000 - 40);

    set_gate(3, 0xFFFFFFFF81234567, 3, 0, 0xE);
    regs->rflags = 0x302;
    cr_assert_eq(RUN(0xCC), X86_EMU_DONE);
    cr_assert_eq(regs->rip, 0xFFFFFFFF81234567);
    cr_assert_eq(regs->rsp, CPU_KERNEL + 0x30000 - 40);
    cr_assert_eq(regs->rflags, 2); /* IF and TF are off */
    cr_assert_eq(frame[0], CPU_KERNEL + CPU_CODE + 1);
    cr_assert_eq(frame[1], 0x10);
    cr_assert_eq(frame[2], 0x302);
    cr_assert_eq(frame[3], CPU_KERNEL + 0x30000);
    cr_assert_eq(frame[4], 0x18);
}

Test(emulate, an_interrupt_from_a_user_goes_to_the_kernels_stack)
{
    const uint64_t *frame = (const uint64_t *)(cpu.memory + 0x20000 - 40);

    set_gate(0x80, 0xFFFFFFFF81000000, 3, 0, 0xF);
    be_user();
    regs->rflags = 0x202;
    cr_assert_eq(RUN(0xCD, 0x80), X86_EMU_DONE);
    cr_assert_eq(x86_emu_cpl(&cpu.emu), 0);
    cr_assert_eq(sregs->cs.selector, 0x10);
    cr_assert_eq(sregs->ss.selector, 0);
    cr_assert_eq(regs->rsp, CPU_KERNEL + 0x20000 - 40);
    cr_assert_eq(regs->rflags, 0x202); /* a trap gate leaves IF */
    cr_assert_eq(frame[1], 0x33);
    cr_assert_eq(frame[3], CPU_BASE + 0x40000);
    cr_assert_eq(frame[4], 0x2B);
}

Test(emulate, a_gate_may_name_its_stack)
{
    set_gate(3, 0xFFFFFFFF81000000, 0, 1, 0xE);
    cr_assert_eq(RUN(0xCC), X86_EMU_DONE);
    cr_assert_eq(regs->rsp, CPU_KERNEL + 0x28000 - 40);
}

Test(emulate, a_user_enters_no_gate_of_the_kernels)
{
    set_gate(0x20, 0xFFFFFFFF81000000, 0, 0, 0xE);
    be_user();
    cr_assert_eq(RUN(0xCD, 0x20), X86_EMU_FAULT);
    assert_fault(X86_VECTOR_GP, 0x20 * 8 + 2);
}

Test(emulate, a_gate_beyond_the_table_or_absent_is_a_fault)
{
    sregs->idt.limit = 0x2FF;
    cr_assert_eq(RUN(0xCD, 0x30), X86_EMU_FAULT);
    assert_fault(X86_VECTOR_GP, 0x30 * 8 + 2);
    set_gate(0x20, 0xFFFFFFFF81000000, 0, 0, 0xE);
    cpu.memory[CPU_IDT + 0x20 * 16 + 5] &= 0x7F;
    cr_assert_eq(RUN(0xCD, 0x20), X86_EMU_FAULT);
    assert_fault(X86_VECTOR_NP, 0x20 * 8 + 2);
}

/* ---- SYSCALL ---- */

#define LSTAR (CPU_KERNEL + 0x6000)

struct frame {
    uint64_t error, rip, cs, rflags, rsp, ss;
};

/* The vCPU as KVM leaves it after a SYSCALL at CPU_CODE: in the page fault's handler. */
static struct x86_syscall after_syscall(void)
{
    const struct frame frame = {.error = 0x15, .rip = LSTAR, .cs = 0x33, .rflags = 0x10002,
                                .rsp = CPU_BASE + 0x40000, .ss = 0x2B};

    memcpy(cpu.memory + CPU_CODE, "\x0F\x05", 2);
    regs->rcx = CPU_BASE + CPU_CODE + 2;
    regs->r11 = 0x43046; /* the host's own, or forged: AC, ZF and PF, and an IOPL of 3 */
    regs->rip = CPU_KERNEL + 0x7000;
    regs->rsp = CPU_KERNEL + 0x20000 - sizeof(frame);
    regs->rflags = 2;
    sregs->cr2 = LSTAR;
    memcpy(cpu.memory + 0x20000 - sizeof(frame), &frame, sizeof(frame));
    return (struct x86_syscall){
        .star = 0x0023001000000000, .lstar = LSTAR, .sfmask = 0x47700};
}

static struct frame *frame_of_fault(void)
{
    return (struct frame *)(cpu.memory + 0x20000 - sizeof(struct frame));
}

Test(emulate, a_half_done_syscall_becomes_an_entry)
{
    struct x86_syscall s = after_syscall();

    cr_assert(x86_syscall_repair(&s, &cpu.emu));
    cr_assert_eq(regs->rip, LSTAR);
    cr_assert_eq(regs->rsp, CPU_BASE + 0x40000);
    cr_assert_eq(regs->rcx, CPU_BASE + CPU_CODE + 2);
    cr_assert_eq(regs->r11, 0x40246); /* with interrupts on; IOPL is no user's to say */
    cr_assert_eq(regs->rflags, 0x46);
    cr_assert_eq(sregs->cs.selector, 0x10);
    cr_assert_eq(sregs->ss.selector, 0x18);
    cr_assert_eq(sregs->cs.l, 1);
    cr_assert_eq(x86_emu_cpl(&cpu.emu), 0);
}

Test(emulate, flags_that_a_syscall_leaves_to_the_kernel_are_as_they_were)
{
    struct x86_syscall s = after_syscall();

    s.sfmask = X86_FLAG_TF;
    frame_of_fault()->rflags = 0x12002;
    cr_assert(x86_syscall_repair(&s, &cpu.emu));
    cr_assert_eq(regs->r11, 0x42046, "IF and IOPL as in the frame");
    cr_assert_eq(regs->rflags, 0x42046);
}

Test(emulate, a_jump_to_the_entry_is_no_syscall)
{
    struct x86_syscall s = after_syscall();

    regs->rcx = CPU_BASE + CPU_DATA; /* no SYSCALL stands before it */
    cr_assert_not(x86_syscall_repair(&s, &cpu.emu));
    regs->rcx = CPU_KERNEL + CPU_CODE + 2; /* one does, but not in the user's pages */
    cr_assert_not(x86_syscall_repair(&s, &cpu.emu));
}

Test(emulate, page_faults_of_the_guests_own_are_no_syscall)
{
    struct x86_syscall s = after_syscall();

    sregs->cr2 = LSTAR + 8;
    cr_assert_not(x86_syscall_repair(&s, &cpu.emu));
    s = after_syscall();
    frame_of_fault()->rip = CPU_BASE + CPU_CODE;
    cr_assert_not(x86_syscall_repair(&s, &cpu.emu));
    s = after_syscall();
    frame_of_fault()->cs = 0x10;
    cr_assert_not(x86_syscall_repair(&s, &cpu.emu));
    s = after_syscall();
    frame_of_fault()->error = 0x17; /* a write */
    cr_assert_not(x86_syscall_repair(&s, &cpu.emu));
}

Test(emulate, before_lstar_is_written_there_is_no_syscall)
{
    struct x86_syscall s = after_syscall();

    s.lstar = 0;
    cr_assert_not(x86_syscall_repair(&s, &cpu.emu));
}
