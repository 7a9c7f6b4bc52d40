/*
 * Which pages of a guest are page tables that KVM may have shadows of.
 *
 * Where KVM runs user code by shadow page tables, it makes them of the guest's, and learns of changes
 * because it emulates the guest's writes to those. The interpreter's writes it does not see: so they
 * are left to KVM where an entry that KVM may have taken over would change. An entry that was not present is
 * in no shadow; all others of marked pages are written by KVM's own emulation.
 *
 * One for a VM, shared by its vCPUs' threads.
 */
#ifndef FERRY_X86_TABLES_H
#define FERRY_X86_TABLES_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/memory.h"

struct x86_tables;

/* What a mark says, a bit for each level at which the page is used. */
#define X86_TABLE_LEAVES 1u /* entries of 4 KiB pages only, at level 1 */

/* mem is borrowed. vm_fd: of the VM whose shadows are dropped at times; -1: of none, for tests. -ENOMEM. */
int x86_tables_create(struct x86_tables **out, struct guest_memory *mem, int vm_fd,
                      unsigned n_vcpus);
void x86_tables_destroy(struct x86_tables *t);

/* Where the mark of a page of RAM is; valid for the life of t. */
const uint8_t *x86_tables_mark(const struct x86_tables *t, gpa_t gpa);

/*
 * Before a vCPU goes on in user mode: marks all tables that user accesses by this CR3 can use, of four
 * levels. False: there are too many, and nobody may interpret this VM's kernel from now on.
 */
bool x86_tables_enter(struct x86_tables *t, unsigned vcpu, uint64_t cr3);

/* KVM has run kernel code, which may have changed tables that KVM then used: before a vCPU of this VM is
 * interpreted again. Drops all shadows. */
void x86_tables_unwatched(struct x86_tables *t);

/* After KVM has written to a marked page: new tables may hang on it. As x86_tables_enter(). */
bool x86_tables_written(struct x86_tables *t, gpa_t page);

/*
 * KVM is to run all kernel code of one vCPU, or (false) no longer. Meanwhile it makes shadows of tables that
 * are not marked, so nobody interprets this VM's kernel; then all shadows are dropped. Once for each change.
 */
void x86_tables_leave(struct x86_tables *t, bool left);

/* Whether the VM's kernel may be interpreted now. */
bool x86_tables_usable(const struct x86_tables *t);

#endif
