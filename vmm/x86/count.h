/*
 * How many instructions of a vCPU KVM has emulated: what KVM itself counts as insn_emulation.
 *
 * Text: the kernel's Documentation/virt/kvm/api.rst §4.131 KVM_GET_STATS_FD (Linux 5.14).
 */
#ifndef FERRY_X86_COUNT_H
#define FERRY_X86_COUNT_H

#include <stdint.h>

/* Where the count stands. For one thread at a time. */
struct x86_count {
    int fd;      /* owns; -1: none */
    uint64_t at; /* bytes into fd */
};
#define X86_COUNT_NONE {.fd = -1}

/* vcpu_fd is borrowed for the call. 0, or a negative errno, not logged, and *count is none: -ENOTTY
 * or -ENOENT where KVM does not tell. */
int x86_count_open(struct x86_count *count, int vcpu_fd);
/* UINT64_MAX when it cannot be read. */
uint64_t x86_count_read(const struct x86_count *count);
void x86_count_close(struct x86_count *count);

#endif
