/*
 * KVM's dirty rings: each vCPU tells in a ring of its own which pages it wrote.
 *
 * What stands in the rings is gathered into a bitmap, so that the rest of the program sees what it
 * sees of the dirty log. Against the log: its cost follows what the guest writes, not how much memory
 * it has; a vCPU that writes faster than its ring is emptied stops until it is.
 */
#ifndef FERRY_DIRTY_RING_H
#define FERRY_DIRTY_RING_H

#include <stdint.h>

struct guest_memory;
struct dirty_rings;

/* Before any vCPU is created. entries: of each vCPU's ring, a power of two. mem is borrowed. -ENOTSUP:
 * this KVM has none, or not of that size; -ENOMEM; not logged. */
int dirty_rings_create(struct dirty_rings **out, int vm_fd, const struct guest_memory *mem,
                       unsigned entries);
void dirty_rings_destroy(struct dirty_rings *rings);
/* The ring of a vCPU that was just created. Of mmap(2), -ENOMEM. */
int dirty_rings_add(struct dirty_rings *rings, int vcpu_fd);

/* Empties all rings; the pages that were in them are protected again. Any thread. Of KVM, logged. */
int dirty_rings_reap(struct dirty_rings *rings);
/* Forgets what was gathered. */
void dirty_rings_forget(struct dirty_rings *rings);
/* Moves what was gathered of a region into a bitmap of a bit a page, whole words. After a reap. */
void dirty_rings_take(struct dirty_rings *rings, unsigned region, uint64_t *bitmap);

#endif
