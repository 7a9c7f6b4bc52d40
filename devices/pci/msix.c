/*
 * MSI-X: the vector table, the pending bits, and the host's vectors behind them.
 *
 * Does not place the table (pci.h's user says where in a BAR it is) and does not deliver messages:
 * a host vector (vmm/intc.h) is taken when an entry is first unmasked while MSI-X is on, because
 * the host's routes are finite and a guest that uses no interrupts shall not pay for them; it is
 * kept until reset. Runs with the device lock held, which guards everything here.
 * Text: PCI Local Bus 3.0 §6.8.2 (as PCI Express Base 5.0 §7.7.2).
 */
#include <errno.h>

#include "devices/pci/pci_internal.h"

enum { WORD_ADDRESS_LOW, WORD_ADDRESS_HIGH, WORD_DATA, WORD_CONTROL };

#define ENTRY_BYTES (MSIX_ENTRY_WORDS * 4)

static const uint32_t word_writable[MSIX_ENTRY_WORDS] = {
    [WORD_ADDRESS_LOW] = 0xFFFFFFFC, /* §6.8.2.7: a dword address */
    [WORD_ADDRESS_HIGH] = 0xFFFFFFFF,
    [WORD_DATA] = 0xFFFFFFFF,
    [WORD_CONTROL] = PCI_MSIX_ENTRY_CTRL_MASKBIT,
};

static void reset_vector(struct msix_vector *v)
{
    *v = (struct msix_vector){
        .words[WORD_CONTROL] = PCI_MSIX_ENTRY_CTRL_MASKBIT, /* §6.8.2.9: 1 after reset */
        .msi.fd = -1,
        .changed = true,
    };
}

void msix_init(struct pci_function *fn)
{
    fn->msix_on = false;
    fn->msix_masked = false;
    for (unsigned i = 0; i < PCI_MSIX_MAX; i++)
        reset_vector(&fn->vectors[i]);
}

void msix_fini(struct pci_function *fn)
{
    struct intc *intc = fn->bus->env->intc;

    for (unsigned i = 0; i < fn->config.n_msix; i++)
        if (fn->vectors[i].msi.fd >= 0)
            intc->ops->msi_free(intc, &fn->vectors[i].msi);
}

void msix_reset(struct pci_function *fn)
{
    msix_fini(fn);
    msix_init(fn);
}

static bool is_active(const struct pci_function *fn, const struct msix_vector *v)
{
    return fn->msix_on && !fn->msix_masked &&
           !(v->words[WORD_CONTROL] & PCI_MSIX_ENTRY_CTRL_MASKBIT);
}

/* Brings the host's vector in line with an entry that may deliver now. */
static void sync_vector(struct pci_function *fn, struct msix_vector *v)
{
    struct intc *intc = fn->bus->env->intc;

    if (!is_active(fn, v) || v->failed)
        return;
    if (v->msi.fd < 0 && intc->ops->msi_alloc(intc, &v->msi) != 0) {
        v->msi.fd = -1;
        v->failed = true; /* told once, by the interrupt controller */
        return;
    }
    if (v->changed) {
        uint64_t address = (uint64_t)v->words[WORD_ADDRESS_HIGH] << 32 |
                           v->words[WORD_ADDRESS_LOW];

        /* A message that the host refuses is the guest's own loss: the vector is silent. */
        (void)intc->ops->msi_update(intc, &v->msi, address, v->words[WORD_DATA]);
        v->changed = false;
    }
    if (v->pending) {
        /* §6.8.2.10: sent when the mask falls, and no longer pending. */
        v->pending = false;
        intc_msi_raise(&v->msi);
    }
}

static void sync_all(struct pci_function *fn)
{
    for (unsigned i = 0; i < fn->config.n_msix; i++)
        sync_vector(fn, &fn->vectors[i]);
}

static void read_control(struct pci_function *fn)
{
    uint8_t high = fn->space[fn->msix_cap + PCI_MSIX_FLAGS + 1];

    fn->msix_on = high & (PCI_MSIX_FLAGS_ENABLE >> 8);
    fn->msix_masked = high & (PCI_MSIX_FLAGS_MASKALL >> 8);
}

void msix_control_changed(struct pci_function *fn)
{
    read_control(fn);
    for (unsigned i = 0; !fn->msix_on && i < fn->config.n_msix; i++)
        fn->vectors[i].pending = false; /* what nobody waits for any more */
    sync_all(fn);
}

bool pci_msix_enabled(const struct pci_function *fn)
{
    return fn->msix_on;
}

void pci_msix_raise(struct pci_function *fn, unsigned index)
{
    struct msix_vector *v;

    if (!fn->msix_on || index >= fn->config.n_msix)
        return;
    v = &fn->vectors[index];
    if (is_active(fn, v))
        intc_msi_raise(&v->msi);
    else
        v->pending = true;
}

/* ---- the guest's accesses: aligned words or double words, nothing else (§6.8.2) ---- */

static bool is_proper(uint32_t offset, unsigned size)
{
    return (size == 4 || size == 8) && offset % size == 0;
}

uint64_t msix_table_read(struct pci_function *fn, uint32_t offset, unsigned size)
{
    uint64_t value = 0;

    if (!is_proper(offset, size))
        return access_mask(size);
    for (unsigned at = 0; at < size; at += 4) {
        uint32_t where = offset + at;
        const struct msix_vector *v = &fn->vectors[where / ENTRY_BYTES];

        value |= (uint64_t)v->words[where % ENTRY_BYTES / 4] << (8 * at);
    }
    return value;
}

void msix_table_write(struct pci_function *fn, uint32_t offset, unsigned size, uint64_t value)
{
    struct msix_vector *v;

    if (!is_proper(offset, size))
        return;
    v = &fn->vectors[offset / ENTRY_BYTES]; /* one alone: 16 is a multiple of 8 */
    for (unsigned at = 0; at < size; at += 4) {
        unsigned word = (offset + at) % ENTRY_BYTES / 4;

        v->words[word] = (uint32_t)(value >> (8 * at)) & word_writable[word];
        if (word != WORD_CONTROL)
            v->changed = true;
    }
    sync_vector(fn, v);
}

static uint64_t pending_word(const struct pci_function *fn, unsigned word)
{
    uint64_t bits = 0;

    for (unsigned i = 0; i < 64 && word * 64 + i < fn->config.n_msix; i++)
        bits |= (uint64_t)fn->vectors[word * 64 + i].pending << i;
    return bits;
}

uint64_t msix_pba_read(struct pci_function *fn, uint32_t offset, unsigned size)
{
    if (!is_proper(offset, size))
        return access_mask(size);
    return pending_word(fn, offset / 8) >> (8 * (offset % 8)) & access_mask(size);
}

/* ---- state ---- */

void msix_save(const struct pci_function *fn, struct pci_function_saved *to)
{
    for (unsigned i = 0; i < fn->config.n_msix; i++)
        for (unsigned w = 0; w < MSIX_ENTRY_WORDS; w++)
            to->msix_table[i * MSIX_ENTRY_WORDS + w] = fn->vectors[i].words[w];
    for (unsigned w = 0; w < MSIX_PENDING_WORDS; w++)
        to->msix_pending[w] = pending_word(fn, w);
}

int msix_check(const struct pci_function *fn, const struct pci_function_saved *from)
{
    unsigned n = fn->config.n_msix;

    for (unsigned i = 0; i < PCI_MSIX_MAX * MSIX_ENTRY_WORDS; i++) {
        uint32_t possible = i / MSIX_ENTRY_WORDS < n ? word_writable[i % MSIX_ENTRY_WORDS] : 0;

        if (from->msix_table[i] & ~possible)
            return -EINVAL;
    }
    for (unsigned i = 0; i < MSIX_PENDING_WORDS * 64; i++)
        if (i >= n && (from->msix_pending[i / 64] >> (i % 64) & 1))
            return -EINVAL;
    return 0;
}

void msix_load(struct pci_function *fn, const struct pci_function_saved *from)
{
    msix_reset(fn);
    if (!fn->msix_cap)
        return;
    read_control(fn);
    for (unsigned i = 0; i < fn->config.n_msix; i++) {
        struct msix_vector *v = &fn->vectors[i];

        for (unsigned w = 0; w < MSIX_ENTRY_WORDS; w++)
            v->words[w] = from->msix_table[i * MSIX_ENTRY_WORDS + w];
        v->pending = from->msix_pending[i / 64] >> (i % 64) & 1;
    }
    sync_all(fn);
}
