/*
 * Carries out a guest's kernel code in this process, where the host's KVM emulates it: an instruction
 * takes some tens of nanoseconds here, and hundreds there.
 *
 * 64-bit code at CPL 0 on RAM, the instructions of one table (interpret_table.c). Whatever else is
 * met is left as it stands: devices, faults, system registers. Those are KVM's, one instruction at a
 * time, and so are interrupts. Knows nothing of KVM's descriptors (assist.c does), so tests and the
 * fuzz target use the real thing. Everything here is the vCPU's thread's.
 */
#ifndef FERRY_X86_INTERPRET_H
#define FERRY_X86_INTERPRET_H

#include "vmm/x86/emulate.h"

struct x86_tables;

#define X86_INTERPRET_WAYS 512u
#define X86_INTERPRET_CACHE 2048u

/* One translation that was looked up. */
struct x86_way {
    uint64_t page; /* linear */
    uint64_t valid_for; /* `flushes` of the interpreter when it was filled in, and 1; 0: it is empty */
    uint8_t *host;
    gpa_t gpa;
    const uint8_t *mark; /* of x86_tables; not 0: writes there concern KVM */
};

/* An instruction that was decoded. It is valid for these bytes wherever they stand, so that code which
 * is changed needs no watching. */
struct x86_cached {
    uint64_t bytes[2], mask[2];
    struct x86_insn insn;
};

struct x86_interpreter {
    struct x86_emu emu; /* the first: what instructions get */
    struct x86_tables *tables; /* borrowed; NULL: nobody minds writes to page tables */
    const uint8_t *stop;       /* borrowed; not 0: to return soon */
    uint64_t star;             /* the MSR, for SYSRET */
    uint64_t kernel_gs;        /* the MSR; as is here, not as KVM has it */
    int64_t tsc_offset;        /* to this process's TSC; has_tsc */
    bool has_kernel_gs, has_tsc;

    bool sregs_changed; /* since the caller cleared it */
    bool interruptible_next; /* the instruction before was an STI (SDM volume 2B, STI) */
    bool user, halted; /* the last instruction entered user mode, halted */
    uint64_t before_sti; /* RIP of it */
    uint64_t flushes;
    gpa_t table_left; /* the page of tables for which the last write was left; 0: none */
    struct x86_way ways[3][X86_INTERPRET_WAYS]; /* by X86_READ, X86_WRITE, X86_FETCH */
    struct x86_cached cache[X86_INTERPRET_CACHE];
};

enum x86_interpret_end {
    X86_INTERPRET_BUDGET, /* enough for now: KVM is to look for interrupts */
    X86_INTERPRET_LEFT,   /* the instruction at RIP is not for here */
    X86_INTERPRET_USER,   /* RIP is user code's */
    X86_INTERPRET_HALTED, /* by HLT, which is done: until an interrupt */
};

/* Whether the registers in emu are of code that can be carried out here. */
bool x86_interpretable(const struct x86_interpreter *in);

/*
 * From RIP on. emu->regs and emu->sregs hold the vCPU's, and are x86_interpretable(). About
 * `budget` instructions with interrupts enabled, and some more while they are not.
 */
enum x86_interpret_end x86_interpret(struct x86_interpreter *in, int budget);

/* Forgets translations: control registers or tables are not as they were. */
void x86_interpret_flush(struct x86_interpreter *in);

#endif
