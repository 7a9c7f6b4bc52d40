/*
 * The marks of page tables; see the header for what they are for.
 *
 * A page is marked when it can be reached as a user's table, and stays so when it is freed and used for
 * something else: writes there are then right, but slow. After many of them KVM is made to drop all its
 * shadows, by a memory slot that moves, and only those that vCPUs use now stay marked.
 *
 * `lock` guards changes of marks, and all other fields but `usable` and `left`; the interpreters read
 * marks without it. An
 * interpreter that has just missed one is as a processor whose write was just before the walk: KVM reads
 * the guest's table after the mark was set, and that takes it longer than the write takes to become visible.
 * Texts: Intel SDM volume 3A §4.5 (tables), §4.6 (a user's access needs U/S in all); the kernel's
 * Documentation/virt/kvm/x86/mmu.rst, and api.rst §4.35 KVM_SET_USER_MEMORY_REGION.
 */
#include "vmm/x86/tables.h"

#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "vmm/util/log.h"

#define PAGE 4096u
#define ENTRIES 512u
#define PTE_P 1ull
#define PTE_U 4ull
#define PTE_PS (1ull << 7)
#define PTE_ADDRESS 0x000FFFFFFFFFF000ull
#define LEVELS 4u
/* In one go; as many as map 16 GiB in small pages. */
#define MAX_TABLES 8192u
/* Writes that were left to KVM, some 20 us each, until its shadows are dropped, which takes 1.5 ms. */
#define WRITES_BETWEEN 200u
/* The slot that moves: a page that reads as zero, between the local APIC and the firmware's place. */
#define SLOT 64u
#define SLOT_AT 0xFEFC0000ull

struct x86_tables {
    struct guest_memory *mem; /* borrowed */
    int vm_fd;                /* borrowed */
    uint8_t *marks;           /* owns; a byte a page */
    uint8_t *into;            /* what a scan marks: `marks`, or those of a fresh start */
    uint64_t n_marks;
    pthread_mutex_t lock;
    unsigned n_vcpus;
    uint64_t *roots; /* owns; each vCPU's CR3 when it entered user mode last */
    unsigned writes; /* since the shadows were dropped */
    unsigned scanned; /* tables, in this go */
    void *zero;      /* owns: the slot's page */
    bool moved;
    atomic_bool usable;
    atomic_uint left; /* vCPUs whose kernel code KVM runs for now */
};

/* A slot that is moved takes all shadows with it; one that is made takes none. */
static int move_slot(struct x86_tables *t)
{
    struct kvm_userspace_memory_region slot = {
        .slot = SLOT,
        .flags = KVM_MEM_READONLY,
        .memory_size = PAGE,
        .userspace_addr = (uintptr_t)t->zero,
        .guest_phys_addr = SLOT_AT + (t->moved ? PAGE : 0),
    };

    if (ioctl(t->vm_fd, KVM_SET_USER_MEMORY_REGION, &slot) < 0)
        return -errno;
    t->moved = !t->moved;
    return 0;
}

int x86_tables_create(struct x86_tables **out, struct guest_memory *mem, int vm_fd,
                      unsigned n_vcpus)
{
    struct x86_tables *t = calloc(1, sizeof(*t));
    const struct memory_region *regions = NULL, *last;
    unsigned n_regions = memory_regions(mem, &regions);
    int err = 0;

    if (!t)
        return -ENOMEM;
    last = &regions[n_regions - 1];
    t->mem = mem;
    t->vm_fd = vm_fd;
    t->n_vcpus = n_vcpus;
    t->n_marks = (last->base + last->size) / PAGE;
    t->into = t->marks = calloc(t->n_marks, 1);
    t->roots = calloc(n_vcpus, sizeof(*t->roots));
    t->zero = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_mutex_init(&t->lock, NULL);
    atomic_init(&t->usable, true);
    atomic_init(&t->left, 0);
    if (!t->marks || !t->roots || t->zero == MAP_FAILED)
        err = -ENOMEM;
    else if (vm_fd >= 0)
        err = move_slot(t); /* which makes it */
    if (err) {
        x86_tables_destroy(t);
        return err;
    }
    *out = t;
    return 0;
}

void x86_tables_destroy(struct x86_tables *t)
{
    if (!t)
        return;
    if (t->zero != MAP_FAILED)
        munmap(t->zero, PAGE);
    pthread_mutex_destroy(&t->lock);
    free(t->roots);
    free(t->marks);
    free(t);
}

const uint8_t *x86_tables_mark(const struct x86_tables *t, gpa_t gpa)
{
    return &t->marks[gpa / PAGE];
}

static bool not_too_many(const struct x86_tables *t)
{
    return atomic_load_explicit(&t->usable, memory_order_relaxed);
}

bool x86_tables_usable(const struct x86_tables *t)
{
    return not_too_many(t) && atomic_load(&t->left) == 0;
}

static void set_mark(struct x86_tables *t, gpa_t page, uint8_t mark)
{
    /* Sequentially: before KVM, entered later by this thread, reads the table. */
    __atomic_store_n(&t->into[page / PAGE], mark, __ATOMIC_SEQ_CST);
}

/* ---- walks of all that a user can use; recursion ends at level 1 ---- */

static void scan_locked(struct x86_tables *t, gpa_t page, unsigned level);

static void mark_locked(struct x86_tables *t, gpa_t page, unsigned level)
{
    uint8_t bit = (uint8_t)(1u << (level - 1)), mark;

    if (!memory_at(t->mem, page, PAGE))
        return;
    mark = t->into[page / PAGE];
    if (!(mark & bit))
        set_mark(t, page, mark | bit);
    if (level > 1 && !(mark & bit))
        scan_locked(t, page, level);
}

static void scan_locked(struct x86_tables *t, gpa_t page, unsigned level)
{
    const uint64_t *entries = memory_at(t->mem, page, PAGE);

    if (t->scanned++ >= MAX_TABLES) {
        atomic_store_explicit(&t->usable, false, memory_order_relaxed);
        return;
    }
    for (unsigned i = 0; i < ENTRIES && not_too_many(t); i++) {
        uint64_t entry = __atomic_load_n(&entries[i], __ATOMIC_RELAXED);

        if (entry & PTE_P && entry & PTE_U && (level == LEVELS || !(entry & PTE_PS)))
            mark_locked(t, entry & PTE_ADDRESS, level - 1);
    }
}

static void scan_root_locked(struct x86_tables *t, uint64_t cr3)
{
    t->scanned = 0;
    mark_locked(t, cr3 & PTE_ADDRESS, LEVELS);
}

/* ---- dropping shadows ---- */

/*
 * From here on KVM makes shadows anew: of tables that vCPUs in user mode use, and of those they are to
 * enter with. So the others lose their marks, and no other does for a moment.
 */
static void drop_locked(struct x86_tables *t)
{
    t->writes = 0;
    t->into = calloc(t->n_marks, 1);
    if (t->into && t->vm_fd >= 0 && move_slot(t) == 0) {
        for (unsigned i = 0; i < t->n_vcpus; i++)
            if (t->roots[i])
                scan_root_locked(t, t->roots[i]);
        for (uint64_t i = 0; i < t->n_marks; i++)
            if (t->marks[i] & ~t->into[i])
                __atomic_fetch_and(&t->marks[i], t->into[i], __ATOMIC_RELAXED);
    }
    free(t->into);
    t->into = t->marks;
}

bool x86_tables_enter(struct x86_tables *t, unsigned vcpu, uint64_t cr3)
{
    gpa_t root = cr3 & PTE_ADDRESS;

    if (!memory_at(t->mem, root, PAGE))
        return not_too_many(t);
    pthread_mutex_lock(&t->lock);
    t->roots[vcpu] = root;
    if (!(t->marks[root / PAGE] & 1u << (LEVELS - 1)))
        scan_root_locked(t, cr3);
    pthread_mutex_unlock(&t->lock);
    return not_too_many(t);
}

void x86_tables_unwatched(struct x86_tables *t)
{
    pthread_mutex_lock(&t->lock);
    drop_locked(t);
    pthread_mutex_unlock(&t->lock);
}

void x86_tables_leave(struct x86_tables *t, bool left)
{
    if (left) {
        atomic_fetch_add(&t->left, 1);
        return;
    }
    x86_tables_unwatched(t);
    atomic_fetch_sub(&t->left, 1);
}

bool x86_tables_written(struct x86_tables *t, gpa_t page)
{
    uint8_t mark;

    pthread_mutex_lock(&t->lock);
    mark = t->marks[page / PAGE];
    t->scanned = 0;
    for (unsigned level = LEVELS; level > 1; level--)
        if (mark & 1u << (level - 1))
            scan_locked(t, page, level);
    if (++t->writes >= WRITES_BETWEEN)
        drop_locked(t);
    pthread_mutex_unlock(&t->lock);
    return not_too_many(t);
}
