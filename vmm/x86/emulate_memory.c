/*
 * Linear memory as a guest's instruction sees it: page tables walked, permissions checked, accessed
 * and dirty bits set.
 *
 * Reaches RAM only: an operand in a device's registers is nothing for here. Keeps no translations:
 * each walk reads the tables anew. Entries are read once, and changed only if they still are what
 * was read. A change of the tables by an instruction completed here is seen by the guest's KVM when
 * the guest next invalidates the translation, as processors have it.
 *
 * The vCPU's thread; no locks. Text: Intel SDM volume 3A, §4.3 to 4.8 (paging), §4.6 (access
 * rights), §4.7 (page-fault error codes).
 */
#include <string.h>

#include "vmm/x86/emulate_internal.h"

#define PAGE 4096u
#define PTE_P (1ull << 0)
#define PTE_W (1ull << 1)
#define PTE_U (1ull << 2)
#define PTE_A (1ull << 5)
#define PTE_D (1ull << 6)
#define PTE_PS (1ull << 7)
#define PTE_NX (1ull << 63)
#define PTE_ADDRESS 0x000FFFFFFFFFF000ull
#define MAX_LEVELS 5
/* A page table that changes under every attempt is not waited for. */
#define MAX_ATTEMPTS 64

/* A kind of page table. */
struct format {
    unsigned levels, entry_bytes, index_bits;
};

struct walk {
    struct format format;
    uint64_t linear;
    unsigned access;
    bool user, wide; /* the access is a user's; entries have 64 bits */
    /* What the tables say. */
    uint64_t *entries[MAX_LEVELS]; /* of level 1 (the page's) and up; NULL: never changed here */
    uint64_t values[MAX_LEVELS];
    gpa_t gpas[MAX_LEVELS];
    unsigned leaf; /* its level, from 0 */
    bool writable, user_page, no_execute;
    gpa_t page; /* of the leaf */
};

static struct format format_of(const struct kvm_sregs *s)
{
    if (s->efer & X86_EFER_LMA)
        return (struct format){s->cr4 & X86_CR4_LA57 ? 5 : 4, 8, 9};
    return s->cr4 & X86_CR4_PAE ? (struct format){3, 8, 9} : (struct format){2, 4, 10};
}

static enum x86_emu_result page_fault(struct x86_emu *emu, const struct walk *w, uint32_t why)
{
    const struct kvm_sregs *s = &emu->sregs;
    uint32_t error = why;

    if (w->access & X86_WRITE)
        error |= X86_PF_WRITE;
    if (w->user)
        error |= X86_PF_USER;
    /* §4.7: I/D is reported where one of the two makes a difference. */
    if (w->access & X86_FETCH &&
        (s->cr4 & X86_CR4_SMEP || (s->cr4 & X86_CR4_PAE && s->efer & X86_EFER_NXE)))
        error |= X86_PF_FETCH;
    emu->fault = (struct x86_fault){
        .vector = X86_VECTOR_PF, .has_error = true, .error = error, .address = w->linear};
    return X86_EMU_FAULT;
}

/* Bits that must be 0 in an entry of this level (0 is the lowest). */
static uint64_t reserved_bits(const struct x86_emu *emu, const struct walk *w, unsigned level,
                              uint64_t entry)
{
    uint64_t reserved = 0;

    if (!w->wide)
        return 0;
    if (!(emu->sregs.efer & X86_EFER_NXE))
        reserved |= PTE_NX;
    if (level >= 3)
        reserved |= PTE_PS;
    else if (level > 0 && entry & PTE_PS) /* bit 12 is PAT */
        reserved |= ((1ull << (12 + 9 * level)) - 1) & ~0x1FFFull;
    return reserved;
}

static uint64_t load_entry(const struct walk *w, void *at)
{
    return w->wide ? __atomic_load_n((uint64_t *)at, __ATOMIC_ACQUIRE)
                   : __atomic_load_n((uint32_t *)at, __ATOMIC_ACQUIRE);
}

/* Reads the entry of one level and lowers the rights by what it says. */
static enum x86_emu_result read_entry(struct x86_emu *emu, struct walk *w, unsigned level,
                                      gpa_t table)
{
    unsigned shift = 12 + level * w->format.index_bits;
    uint64_t index = w->linear >> shift & ((1u << w->format.index_bits) - 1);
    bool pae_top = w->format.levels == 3 && level == 2;
    uint64_t entry;
    void *at;

    if (pae_top)
        index &= 3;
    w->gpas[level] = table + index * w->format.entry_bytes;
    at = memory_at(emu->mem, w->gpas[level], w->format.entry_bytes);
    if (!at)
        return X86_EMU_UNKNOWN;
    entry = load_entry(w, at);
    w->values[level] = entry;
    w->entries[level] = pae_top ? NULL : at;
    if (!(entry & PTE_P))
        return page_fault(emu, w, 0);
    if (pae_top) /* §4.4.1: the four have no rights */
        return X86_EMU_DONE;
    if (entry & reserved_bits(emu, w, level, entry))
        return page_fault(emu, w, X86_PF_PRESENT | X86_PF_RESERVED);
    w->writable &= !!(entry & PTE_W);
    w->user_page &= !!(entry & PTE_U);
    w->no_execute |= w->wide && entry & PTE_NX;
    return X86_EMU_DONE;
}

static bool is_leaf(const struct x86_emu *emu, const struct walk *w, unsigned level)
{
    if (level == 0)
        return true;
    if (!(w->values[level] & PTE_PS))
        return false;
    if (!w->wide)
        return emu->sregs.cr4 & X86_CR4_PSE;
    return level == 1 || (level == 2 && w->format.levels >= 4);
}

static gpa_t leaf_page(const struct walk *w, unsigned level)
{
    uint64_t entry = w->values[level], offset;
    gpa_t base = w->wide ? entry & PTE_ADDRESS : entry & 0xFFFFF000u;

    if (level == 0)
        return base;
    offset = (1ull << (12 + level * w->format.index_bits)) - 1;
    if (!w->wide) /* §4.3: bits 39:32 of a 4 MiB page are in 20:13 */
        base = (entry & 0xFFC00000u) | (entry >> 13 & 0xFF) << 32;
    return (base & ~offset) | (w->linear & offset & ~0xFFFull);
}

/* §4.6.1. */
static bool allowed(const struct x86_emu *emu, const struct walk *w)
{
    const struct kvm_sregs *s = &emu->sregs;

    if (w->access & X86_FETCH) {
        if (w->no_execute)
            return false;
        return w->user ? w->user_page : !(w->user_page && s->cr4 & X86_CR4_SMEP);
    }
    if (w->user)
        return w->user_page && (w->writable || !(w->access & X86_WRITE));
    if (w->user_page && s->cr4 & X86_CR4_SMAP &&
        (w->access & X86_SYSTEM || !(emu->regs.rflags & X86_FLAG_AC)))
        return false;
    return w->writable || !(w->access & X86_WRITE) || !(s->cr0 & X86_CR0_WP);
}

/* §4.8. False when a table has changed since it was read. */
static bool set_bits(struct x86_emu *emu, struct walk *w)
{
    for (unsigned level = w->format.levels; level-- > w->leaf;) {
        uint64_t old = w->values[level], new = old | PTE_A;
        uint32_t old32 = (uint32_t)old;
        bool same;

        if (level == w->leaf && w->access & X86_WRITE)
            new |= PTE_D;
        if (!w->entries[level] || new == old)
            continue;
        if (w->wide)
            same = __atomic_compare_exchange_n(w->entries[level], &old, new, false,
                                               __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
        else
            same = __atomic_compare_exchange_n((uint32_t *)w->entries[level], &old32,
                                               (uint32_t)new, false, __ATOMIC_ACQ_REL,
                                               __ATOMIC_RELAXED);
        if (!same)
            return false;
        memory_mark_dirty(emu->mem, w->gpas[level], w->format.entry_bytes);
    }
    return true;
}

static enum x86_emu_result walk_tables(struct x86_emu *emu, struct walk *w)
{
    gpa_t table = emu->sregs.cr3 & (w->format.levels == 3 ? 0xFFFFFFE0u
                                    : w->wide             ? PTE_ADDRESS
                                                          : 0xFFFFF000u);
    unsigned level = w->format.levels;

    w->writable = w->user_page = true;
    w->no_execute = false;
    do {
        enum x86_emu_result result = read_entry(emu, w, --level, table);

        if (result != X86_EMU_DONE)
            return result;
        table = w->values[level] & (w->wide ? PTE_ADDRESS : 0xFFFFF000u);
    } while (!is_leaf(emu, w, level));
    w->leaf = level;
    w->page = leaf_page(w, level);
    return allowed(emu, w) ? X86_EMU_DONE : page_fault(emu, w, X86_PF_PRESENT);
}

enum x86_emu_result x86_walk(struct x86_emu *emu, uint64_t linear, unsigned access, gpa_t *gpa)
{
    struct walk w = {.linear = linear, .access = access};

    if (!(emu->sregs.cr0 & X86_CR0_PG)) {
        *gpa = (uint32_t)linear;
        return X86_EMU_DONE;
    }
    if (emu->sregs.efer & X86_EFER_LMA && !x86_canonical(emu, linear))
        return x86_raise_code(emu, X86_VECTOR_GP, 0);
    w.user = access & X86_AS_USER || (x86_emu_cpl(emu) == 3 && !(access & X86_SYSTEM));
    w.format = format_of(&emu->sregs);
    w.wide = w.format.entry_bytes == 8;
    if (w.format.levels < 4)
        w.linear = (uint32_t)linear;
    for (unsigned i = 0; i < MAX_ATTEMPTS; i++) {
        enum x86_emu_result result = walk_tables(emu, &w);

        if (result != X86_EMU_DONE)
            return result;
        if (set_bits(emu, &w)) {
            *gpa = w.page | (linear & (PAGE - 1));
            return X86_EMU_DONE;
        }
    }
    return X86_EMU_UNKNOWN;
}

/* ---- ranges ---- */

#define MAX_PAGES (X86_XSTATE_BYTES / PAGE + 1)

struct range {
    unsigned n;
    struct {
        gpa_t gpa;
        size_t n;
    } parts[MAX_PAGES];
};

static enum x86_emu_result translate(struct x86_emu *emu, uint64_t linear, size_t n,
                                     unsigned access, struct range *range)
{
    range->n = 0;
    while (n > 0) {
        size_t here = PAGE - (linear & (PAGE - 1));
        enum x86_emu_result result;
        gpa_t gpa;

        if (here > n)
            here = n;
        if (range->n == MAX_PAGES)
            return X86_EMU_UNKNOWN;
        result = x86_walk(emu, linear, access, &gpa);
        if (result != X86_EMU_DONE)
            return result;
        if (!memory_at(emu->mem, gpa, here))
            return X86_EMU_UNKNOWN;
        range->parts[range->n].gpa = gpa;
        range->parts[range->n++].n = here;
        linear += here;
        n -= here;
    }
    return X86_EMU_DONE;
}

enum x86_emu_result x86_emu_read(struct x86_emu *emu, uint64_t linear, void *to, size_t n,
                                 unsigned access)
{
    struct range range;
    enum x86_emu_result result = translate(emu, linear, n, access, &range);
    uint8_t *at = to;

    for (unsigned i = 0; result == X86_EMU_DONE && i < range.n; i++) {
        if (memory_read(emu->mem, range.parts[i].gpa, at, range.parts[i].n) < 0)
            return X86_EMU_UNKNOWN;
        at += range.parts[i].n;
    }
    return result;
}

enum x86_emu_result x86_emu_write(struct x86_emu *emu, uint64_t linear, const void *from, size_t n,
                                  unsigned access)
{
    struct range range;
    enum x86_emu_result result = translate(emu, linear, n, access | X86_WRITE, &range);
    const uint8_t *at = from;

    for (unsigned i = 0; result == X86_EMU_DONE && i < range.n; i++) {
        if (memory_write(emu->mem, range.parts[i].gpa, at, range.parts[i].n) < 0)
            return X86_EMU_UNKNOWN;
        at += range.parts[i].n;
    }
    return result;
}

enum x86_emu_result x86_emu_map(struct x86_emu *emu, uint64_t linear, size_t n, void **at,
                                gpa_t *gpa)
{
    enum x86_emu_result result;

    if ((linear & (PAGE - 1)) + n > PAGE)
        return X86_EMU_UNKNOWN;
    result = x86_walk(emu, linear, X86_WRITE, gpa);
    if (result != X86_EMU_DONE)
        return result;
    *at = memory_at(emu->mem, *gpa, n);
    return *at ? X86_EMU_DONE : X86_EMU_UNKNOWN;
}
