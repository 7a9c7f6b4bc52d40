/*
 * Completes instructions that the host's KVM leaves to user space: decodes one, checks it as the
 * processor would, and carries it out on a copy of the vCPU's registers and on guest memory.
 *
 * Knows nothing of KVM's descriptors (assist.c does), so tests and the fuzz target use the real
 * thing. Everything here is the vCPU's thread's; one struct x86_emu for each.
 */
#ifndef FERRY_X86_EMULATE_H
#define FERRY_X86_EMULATE_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/memory.h"
#include "vmm/x86/insn.h"

#define X86_VECTOR_DB 1
#define X86_VECTOR_BP 3
#define X86_VECTOR_UD 6
#define X86_VECTOR_NM 7
#define X86_VECTOR_NP 11
#define X86_VECTOR_SS 12
#define X86_VECTOR_GP 13
#define X86_VECTOR_PF 14
#define X86_VECTOR_MF 16
#define X86_VECTOR_AC 17

/* Page-fault error code (SDM volume 3A §4.7). */
#define X86_PF_PRESENT (1u << 0)
#define X86_PF_WRITE (1u << 1)
#define X86_PF_USER (1u << 2)
#define X86_PF_RESERVED (1u << 3)
#define X86_PF_FETCH (1u << 4)
#define X86_PF_KEY (1u << 5)

#define X86_CR0_PE (1ull << 0)
#define X86_CR0_MP (1ull << 1)
#define X86_CR0_EM (1ull << 2)
#define X86_CR0_TS (1ull << 3)
#define X86_CR0_WP (1ull << 16)
#define X86_CR0_AM (1ull << 18)
#define X86_CR0_PG (1ull << 31)
#define X86_CR4_PSE (1ull << 4)
#define X86_CR4_PAE (1ull << 5)
#define X86_CR4_PGE (1ull << 7)
#define X86_CR4_OSFXSR (1ull << 9)
#define X86_CR4_LA57 (1ull << 12)
#define X86_CR4_PCIDE (1ull << 17)
#define X86_CR4_OSXSAVE (1ull << 18)
#define X86_CR4_SMEP (1ull << 20)
#define X86_CR4_SMAP (1ull << 21)
#define X86_CR4_PKE (1ull << 22)
#define X86_EFER_LMA (1ull << 10)
#define X86_EFER_NXE (1ull << 11)
#define X86_FLAG_CF (1ull << 0)
#define X86_FLAG_PF (1ull << 2)
#define X86_FLAG_AF (1ull << 4)
#define X86_FLAG_ZF (1ull << 6)
#define X86_FLAG_SF (1ull << 7)
#define X86_FLAG_TF (1ull << 8)
#define X86_FLAG_IF (1ull << 9)
#define X86_FLAG_DF (1ull << 10)
#define X86_FLAG_OF (1ull << 11)
#define X86_FLAG_NT (1ull << 14)
#define X86_FLAG_RF (1ull << 16)
#define X86_FLAG_VM (1ull << 17)
#define X86_FLAG_AC (1ull << 18)

enum x86_emu_result {
    X86_EMU_DONE,    /* carried out; registers and memory are as after it */
    X86_EMU_FAULT,   /* it faults: emu->fault; registers and memory are as before it */
    X86_EMU_UNKNOWN, /* not one that is known here; nothing was changed */
};

struct x86_fault {
    uint8_t vector;
    bool has_error;
    uint32_t error;
    uint64_t address; /* CR2, for X86_VECTOR_PF */
};

/* The extended state, as KVM_GET_XSAVE and KVM_SET_XSAVE have it: the standard form of XSAVE. */
#define X86_XSTATE_BYTES 4096
struct x86_xstate {
    _Alignas(64) uint8_t bytes[X86_XSTATE_BYTES];
};

struct x86_emu;

/* What an instruction may ask of the vCPU, beyond registers. 0 or a negative errno, by which the
 * instruction counts as unknown. */
struct x86_emu_ops {
    /* Fills emu->xstate and emu->xcr0. */
    int (*load_xstate)(struct x86_emu *emu);
    int (*read_msr)(struct x86_emu *emu, uint32_t index, uint64_t *value);
};

struct x86_emu {
    struct guest_memory *mem; /* borrowed */
    const struct x86_emu_ops *ops;
    void *opaque; /* for ops */

    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct x86_xstate xstate; /* valid when xstate_loaded */
    uint64_t xcr0;            /* likewise */

    bool xstate_loaded, xstate_changed;
    bool sregs_changed; /* cs, ss: by an interrupt */
    bool flush_tlb;     /* the instruction invalidates translations */

    struct x86_insn insn; /* decoded last; its length is 0 when none was */
    uint8_t bytes[X86_INSN_MAX]; /* of it */
    unsigned n_bytes;            /* that could be read */
    struct x86_fault fault;
};

/*
 * The instruction at RIP. emu->regs and emu->sregs hold the vCPU's; xstate_* and *_changed are false
 * on entry. On X86_EMU_DONE, regs, and what *_changed say, are to be written back.
 */
enum x86_emu_result x86_emulate(struct x86_emu *emu);

/* The privilege level (SDM volume 3A §5.5: the DPL of SS). */
unsigned x86_emu_cpl(const struct x86_emu *emu);

/* ---- linear memory; each returns X86_EMU_DONE, or X86_EMU_FAULT with emu->fault filled, or
 * X86_EMU_UNKNOWN where there is no RAM ---- */

enum x86_access {
    X86_READ = 0,
    X86_WRITE = 1,
    X86_FETCH = 2,
    X86_SYSTEM = 4, /* flag: a supervisor's access whatever the CPL: descriptor tables */
    X86_AS_USER = 8, /* flag: a user's access whatever the CPL */
};

/* The physical address of one byte. Sets accessed and dirty bits. */
enum x86_emu_result x86_walk(struct x86_emu *emu, uint64_t linear, unsigned access, gpa_t *gpa);

/* Across pages as well; nothing is written unless all can be. */
enum x86_emu_result x86_emu_read(struct x86_emu *emu, uint64_t linear, void *to, size_t n,
                                 unsigned access);
enum x86_emu_result x86_emu_write(struct x86_emu *emu, uint64_t linear, const void *from, size_t n,
                                  unsigned access);
/* n bytes within a page, for an atomic operation in place. *gpa for memory_mark_dirty(). */
enum x86_emu_result x86_emu_map(struct x86_emu *emu, uint64_t linear, size_t n, void **at,
                                gpa_t *gpa);

#endif
