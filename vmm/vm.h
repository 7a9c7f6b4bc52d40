/*
 * A KVM virtual machine: its descriptor, memory slots, interrupt routes and doorbells.
 *
 * Threads: created and destroyed on the event loop's thread. The intc and doorbells it offers are
 * called under the device lock (see vmm/intc.h, vmm/device.h).
 */
#ifndef FERRY_VM_H
#define FERRY_VM_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/util/state.h"

struct guest_memory;
struct intc;
struct doorbells;

struct vm;

/*
 * Opens /dev/kvm and checks the API version. A descriptor owned by the caller, or, logged with what
 * to try: -ENOENT (no KVM), -EACCES (no right), -ENOTSUP (another API), of open(2).
 */
int kvm_open(void);

/* KVM_CHECK_EXTENSION on a descriptor of kvm_open() or of a VM; 0 when absent. */
int kvm_capability(int fd, int capability);

/* How many vCPUs a guest can have. */
unsigned kvm_max_vcpus(int kvm_fd);

/*
 * A VM with interrupt controller and the memory registered; no vCPUs. mem is borrowed for the VM's
 * life. With `assist`, its vCPUs may be created with help where KVM leaves things undone. Logged errors:
 * those of kvm_open(), -ENOTSUP (a capability is missing, named), of KVM.
 */
int vm_create(struct vm **out, struct guest_memory *mem, bool assist);
/*
 * Has the vCPUs tell which pages they write by rings of so many entries each (a power of two), instead
 * of KVM's dirty log. Before any vCPU is created. -ENOTSUP: this KVM has none of that size; not logged.
 */
int vm_use_dirty_rings(struct vm *vm, unsigned entries);
/* A vCPU was created; its ring is full, and it may go on when this is done. Without rings: nothing. */
int vm_add_dirty_ring(struct vm *vm, int vcpu_fd);
int vm_reap_dirty_rings(struct vm *vm);
/* After every vCPU was destroyed and every MSI freed. */
void vm_destroy(struct vm *vm);

int vm_fd(const struct vm *vm);     /* borrowed */
int vm_kvm_fd(const struct vm *vm); /* borrowed: of /dev/kvm */
unsigned vm_max_vcpus(const struct vm *vm);
/* Borrowed: what the vCPUs share that interpret kernel code (vmm/x86/tables.h); NULL: none does. */
struct x86_tables;
struct x86_tables *vm_tables(const struct vm *vm);
struct intc *vm_intc(struct vm *vm);
struct doorbells *vm_doorbells(struct vm *vm);

/* Interrupt controllers and clock, as records; vCPUs are parked. See vmm/arch.h. */
int vm_save(struct vm *vm, struct state_buffer *out);
int vm_load(struct vm *vm, struct state_reader *in);

/*
 * KVM's log of the pages that the guest writes; for migration. Any one thread at a time; clear by several,
 * of other pages each. Regions are
 * those of memory_regions(). Bitmaps have a bit for each page of 4096 bytes and are whole words.
 * start: logging begins; every page may count as written at first. clear: of [first, first + pages),
 * those whose bits are set in `bits`, whose bit 0 is first; first is a multiple of 64, and pages too
 * but at the region's end. 0 or a negative errno of KVM, logged.
 */
int vm_dirty_start(struct vm *vm);
void vm_dirty_stop(struct vm *vm);
int vm_dirty_get(struct vm *vm, unsigned region, uint64_t *bitmap);
int vm_dirty_clear(struct vm *vm, unsigned region, uint64_t first, uint64_t pages,
                   const uint64_t *bits);

/* The interrupt controllers back to the state in which they were created. vCPUs are parked. */
int vm_reset(struct vm *vm);

#endif
