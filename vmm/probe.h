/*
 * What kind of KVM this host has: whether it runs a guest's kernel code on the processor or
 * emulates it instruction by instruction.
 *
 * It is measured, by a throw-away guest: a module's name tells nothing about the next one. Any
 * thread; a measurement takes a millisecond, most of it KVM's making of a VM.
 */
#ifndef FERRY_PROBE_H
#define FERRY_PROBE_H

#include <stdbool.h>
#include <stdint.h>

#define KVM_PROBE_INSTRUCTIONS 8u

struct kvm_traits {
    bool emulates_kernel;    /* kernel code runs in KVM's emulator */
    uint32_t instruction_ps; /* picoseconds a kernel instruction takes */
    /* Where kernel code is emulated; elsewhere false and 0, and not tried. */
    bool half_syscall; /* SYSCALL from user code does not raise the privilege */
    uint32_t rejected; /* of KVM_PROBE_INSTRUCTIONS, those that KVM leaves to user space */
};

/*
 * The traits, from the cache of this boot when there is one that can be trusted, else measured and
 * then cached. kvm_fd: /dev/kvm, borrowed. 0, or a negative errno of KVM's; not logged.
 */
int kvm_probe(int kvm_fd, struct kvm_traits *out);

/*
 * The measurement alone. Implemented by the architecture.
 */
int kvm_probe_measure(int kvm_fd, struct kvm_traits *out);

/*
 * What the processor says of itself, for the doctor: the name of its support for virtualisation
 * ("VT-x"), NULL when it shows none; and whether it is a virtual machine's. Implemented by the
 * architecture.
 */
const char *cpu_virtualization(void);
bool cpu_is_virtual(void);

/*
 * The cache: one small text file, DIRECTORY/kvm, that holds `key` and the traits. It is believed
 * only when directory and file belong to the process's user and nobody else can write them.
 * directory must exist. load: 0; -ENOENT: none, or of another key; -EPERM: not to be believed;
 * -EINVAL: garbled; others of open(2). store replaces the file at once or not at all.
 */
int kvm_traits_load(const char *directory, const char *key, struct kvm_traits *out);
int kvm_traits_store(const char *directory, const char *key, const struct kvm_traits *traits);

#endif
