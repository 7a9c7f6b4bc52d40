/*
 * Gathers KVM's dirty rings into bitmaps.
 *
 * Does not decide when that is worth doing: the migration asks at the end of a round, a vCPU whose ring
 * is full when it leaves KVM_RUN. `lock` guards all but what is constant after the last vCPU was
 * created; a leaf, never held across KVM_RUN. KVM writes the rings, and reads what is given back.
 * Text: the kernel's Documentation/virt/kvm/api.rst §8.29 KVM_CAP_DIRTY_LOG_RING, §4.138
 * KVM_RESET_DIRTY_RINGS.
 */
#include "vmm/dirty_ring.h"

#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm/memory.h"
#include "vmm/util/log.h"
#include "vmm/vm.h"

#define PAGE_SHIFT 12
#define WORD_BITS 64u
#define SLOT_MASK 0xFFFFu /* above it stands the address space: there is one */

struct ring {
    struct kvm_dirty_gfn *gfns; /* owns the mapping */
    uint32_t next;              /* counts on; its place is modulo the size */
};

struct dirty_rings {
    int vm_fd; /* borrowed */
    uint32_t entries;
    pthread_mutex_t lock;
    struct ring *rings; /* owns */
    unsigned n_rings;
    uint64_t *bits[MEMORY_MAX_REGIONS]; /* owns */
    uint64_t pages[MEMORY_MAX_REGIONS];
};

/* The one with acquire and release is the later name of the same, where order matters. */
static int enable(int vm_fd, unsigned entries)
{
    static const int names[] = {KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING};
    const uint64_t bytes = entries * sizeof(struct kvm_dirty_gfn);

    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct kvm_enable_cap cap = {.cap = (uint32_t)names[i], .args = {bytes}};

        if ((uint64_t)kvm_capability(vm_fd, names[i]) >= bytes &&
            ioctl(vm_fd, KVM_ENABLE_CAP, &cap) == 0)
            return 0;
    }
    return -ENOTSUP;
}

static int make_bits(struct dirty_rings *r, const struct guest_memory *mem)
{
    const struct memory_region *regions;
    unsigned n = memory_regions(mem, &regions);

    for (unsigned i = 0; i < n; i++) {
        r->pages[i] = regions[i].size >> PAGE_SHIFT;
        r->bits[i] = calloc((r->pages[i] + WORD_BITS - 1) / WORD_BITS, sizeof(uint64_t));
        if (!r->bits[i])
            return -ENOMEM;
    }
    return 0;
}

int dirty_rings_create(struct dirty_rings **out, int vm_fd, const struct guest_memory *mem,
                       unsigned entries)
{
    struct dirty_rings *r = calloc(1, sizeof(*r));
    int err;

    if (!r)
        return -ENOMEM;
    pthread_mutex_init(&r->lock, NULL);
    r->vm_fd = vm_fd;
    r->entries = entries;
    err = make_bits(r, mem);
    if (!err)
        err = enable(vm_fd, entries);
    if (err) {
        dirty_rings_destroy(r);
        return err;
    }
    *out = r;
    return 0;
}

void dirty_rings_destroy(struct dirty_rings *r)
{
    if (!r)
        return;
    for (unsigned i = 0; i < r->n_rings; i++)
        munmap(r->rings[i].gfns, r->entries * sizeof(struct kvm_dirty_gfn));
    for (unsigned i = 0; i < MEMORY_MAX_REGIONS; i++)
        free(r->bits[i]);
    free(r->rings);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

int dirty_rings_add(struct dirty_rings *r, int vcpu_fd)
{
    struct ring *rings = realloc(r->rings, (r->n_rings + 1) * sizeof(*rings));
    void *gfns;

    if (!rings)
        return -ENOMEM;
    r->rings = rings;
    gfns = mmap(NULL, r->entries * sizeof(struct kvm_dirty_gfn), PROT_READ | PROT_WRITE, MAP_SHARED,
                vcpu_fd, (off_t)sysconf(_SC_PAGESIZE) * KVM_DIRTY_LOG_PAGE_OFFSET);
    if (gfns == MAP_FAILED)
        return -errno;
    r->rings[r->n_rings++] = (struct ring){.gfns = gfns};
    return 0;
}

static void mark(struct dirty_rings *r, uint32_t slot, uint64_t page)
{
    if (slot < MEMORY_MAX_REGIONS && page < r->pages[slot])
        r->bits[slot][page / WORD_BITS] |= 1ull << page % WORD_BITS;
}

/* How many entries there were. */
static unsigned empty_locked(struct dirty_rings *r, struct ring *ring)
{
    unsigned n = 0;

    for (; n < r->entries; n++) {
        struct kvm_dirty_gfn *gfn = &ring->gfns[ring->next % r->entries];

        /* Acquire: with the flag, KVM's writes of slot and offset are seen. */
        if (!(__atomic_load_n(&gfn->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY))
            break;
        mark(r, gfn->slot & SLOT_MASK, gfn->offset);
        /* Release: KVM may fill the entry anew after it sees this, and we have read it. */
        __atomic_store_n(&gfn->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
        ring->next++;
    }
    return n;
}

int dirty_rings_reap(struct dirty_rings *r)
{
    unsigned n = 0;
    int err = 0;

    pthread_mutex_lock(&r->lock);
    for (unsigned i = 0; i < r->n_rings; i++)
        n += empty_locked(r, &r->rings[i]);
    if (n > 0 && ioctl(r->vm_fd, KVM_RESET_DIRTY_RINGS, 0) < 0)
        err = -errno;
    pthread_mutex_unlock(&r->lock);
    if (err)
        log_error("memory: KVM does not empty its rings of written pages: %s", strerror(-err));
    return err;
}

void dirty_rings_forget(struct dirty_rings *r)
{
    pthread_mutex_lock(&r->lock);
    for (unsigned i = 0; i < MEMORY_MAX_REGIONS; i++)
        if (r->bits[i])
            memset(r->bits[i], 0, (r->pages[i] + WORD_BITS - 1) / WORD_BITS * sizeof(uint64_t));
    pthread_mutex_unlock(&r->lock);
}

void dirty_rings_take(struct dirty_rings *r, unsigned region, uint64_t *bitmap)
{
    const uint64_t bytes = (r->pages[region] + WORD_BITS - 1) / WORD_BITS * sizeof(uint64_t);

    pthread_mutex_lock(&r->lock);
    memcpy(bitmap, r->bits[region], bytes);
    memset(r->bits[region], 0, bytes);
    pthread_mutex_unlock(&r->lock);
}
