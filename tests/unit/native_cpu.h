/* The processor that runs the test, as the peer of an emulated one: one instruction on given registers. */
#ifndef FERRY_TESTS_NATIVE_CPU_H
#define FERRY_TESTS_NATIVE_CPU_H

#include <stddef.h>
#include <stdint.h>

#include "tests/unit/emulated_cpu.h"

struct native_cpu {
    uint64_t gprs[16]; /* in kvm_regs' order; RSP is not loaded */
    uint64_t rflags;
    void *xstate; /* borrowed: x87, SSE and AVX state as XSAVE has it, 64-byte aligned; NULL: left alone */
};

/* Runs the bytes at CPU_CODE of cpu's memory, in the user's pages; *state is what they leave. */
void native_cpu_run(struct native_cpu *state, struct emulated_cpu *cpu, const void *bytes, size_t n);

#endif
