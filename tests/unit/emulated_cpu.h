/*
 * A vCPU's registers and 2 MiB of guest memory for tests of the emulation, without KVM. The guest
 * memory is mapped into the test's own address space where the guest's page tables have it, so that
 * one instruction can run on both.
 */
#ifndef FERRY_TESTS_EMULATED_CPU_H
#define FERRY_TESTS_EMULATED_CPU_H

#include "vmm/x86/emulate.h"

#define CPU_BASE 0x40000000ull  /* linear; the guest's memory, as a user's pages */
#define CPU_KERNEL 0x80000000ull /* linear; the same memory, as a supervisor's pages */
#define CPU_CODE 0x1000u        /* offsets into it */
#define CPU_IDT 0x2000u
#define CPU_GDT 0x3000u
#define CPU_TSS 0x4000u
#define CPU_DATA 0x10000u
#define CPU_TABLES 0x100000u /* PML4, PDPT, PD, and a PT for CPU_SMALL */
#define CPU_SMALL 0xC0000000ull /* linear; 4 KiB pages, entry N of the PT for page N of memory */
#define CPU_SIZE 0x200000u

/* A fresh one: 64-bit mode, CPL 0, paging on; xstate and MSRs are these. */
struct emulated_cpu {
    struct x86_emu emu;
    struct x86_xstate xstate;
    uint64_t xcr0, tsc, tsc_aux, xss;
    uint8_t *memory; /* at CPU_BASE */
};
void emulated_cpu_init(struct emulated_cpu *cpu);
void emulated_cpu_fini(struct emulated_cpu *cpu);

/* The entry of CPU_SMALL's page table for page n. */
uint64_t *emulated_cpu_pte(struct emulated_cpu *cpu, unsigned n);

/* Puts the bytes at CPU_CODE, RIP on them in the supervisor's pages, and emulates. */
enum x86_emu_result emulated_cpu_run(struct emulated_cpu *cpu, const void *bytes, size_t n);

#endif
