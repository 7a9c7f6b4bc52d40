/* What the files of devices/pci share: the bus, a function, its MSI-X vectors. */
#ifndef FERRY_PCI_INTERNAL_H
#define FERRY_PCI_INTERNAL_H

#include <linux/pci_regs.h>
#include <stdbool.h>
#include <stdint.h>

#include "devices/pci/pci.h"

#define CONFIG_STORED 256 /* bytes kept; the extended space reads as 0: no capabilities there */
#define MAX_OWN_CAPS 8
#define MSIX_ENTRY_WORDS 4
#define MSIX_PENDING_WORDS ((PCI_MSIX_MAX + 63) / 64)

struct bar {
    struct pci_function *fn; /* borrowed: the one that holds it */
    struct pci_bar config;
    uint32_t home;           /* where Ferry placed it */
    struct bus_region region;
    bool mapped;             /* the region is on the bus */
    bool granted;            /* while mappings are worked out: shall be mapped, at `wanted` */
    uint64_t wanted;
};

struct msix_vector {
    uint32_t words[MSIX_ENTRY_WORDS]; /* as the guest sees them: address, data, control */
    struct intc_msi msi;
    bool pending;
    bool changed; /* the message, since the host last had it */
    bool failed;  /* the host gave no vector: not asked again before a reset */
};

struct own_cap {
    uint8_t offset, length;
};

struct pci_function {
    struct pci_bus *bus; /* borrowed */
    char name[32];
    unsigned slot;
    struct pci_function_config config;
    struct bar bars[PCI_BARS];
    uint8_t space[CONFIG_STORED];
    uint8_t initial[CONFIG_STORED];  /* what a reset restores */
    uint8_t writable[CONFIG_STORED]; /* bit mask */
    uint8_t last_cap;                /* offset of the list's last capability, or 0 */
    unsigned free_at;                /* where the next one goes */
    struct own_cap own_caps[MAX_OWN_CAPS];
    unsigned n_own_caps;
    uint8_t msix_cap; /* offset, or 0 */
    bool msix_on, msix_masked;
    struct msix_vector vectors[PCI_MSIX_MAX];
};

struct pci_bus {
    struct device dev; /* the host bridge */
    const struct device_env *env;
    struct pci_bus_config config;
    struct pci_function *slots[PCI_SLOTS]; /* borrowed, but for slot 0: owns */
    uint64_t next_bar;                     /* where the next BAR is placed */
    uint32_t config_address;               /* mechanism #1 */
    struct bus_region ecam_region;
    struct bus_region port_region;
    bool ecam_added, port_added;
};

struct pci_function_saved {
    uint8_t space[CONFIG_STORED];
    uint32_t msix_table[PCI_MSIX_MAX * MSIX_ENTRY_WORDS];
    uint64_t msix_pending[MSIX_PENDING_WORDS];
};

/* offset + size lies within one aligned 32-bit word. */
uint32_t function_config_read(struct pci_function *fn, unsigned offset, unsigned size);
void function_config_write(struct pci_function *fn, unsigned offset, unsigned size,
                           uint32_t value);

/* Works out which BARs answer, and puts them on the bus. */
void bus_remap(struct pci_bus *bus);

/* MSI-X. Table and PBA are addressed from their own beginnings. */
void msix_init(struct pci_function *fn);
void msix_fini(struct pci_function *fn);
void msix_reset(struct pci_function *fn);
/* The capability's control register was written. */
void msix_control_changed(struct pci_function *fn);
uint64_t msix_table_read(struct pci_function *fn, uint32_t offset, unsigned size);
void msix_table_write(struct pci_function *fn, uint32_t offset, unsigned size, uint64_t value);
uint64_t msix_pba_read(struct pci_function *fn, uint32_t offset, unsigned size);
void msix_save(const struct pci_function *fn, struct pci_function_saved *to);
int msix_check(const struct pci_function *fn, const struct pci_function_saved *from);
/* After the configuration space was set. */
void msix_load(struct pci_function *fn, const struct pci_function_saved *from);

/* The value's low bits, as an access of `size` bytes has them. */
static inline uint64_t access_mask(unsigned size)
{
    return size >= 8 ? UINT64_MAX : (1ull << (8 * size)) - 1;
}

#endif
