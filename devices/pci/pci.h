/*
 * The PCI Express root bus: ECAM and mechanism #1 configuration access, functions, BARs, MSI-X.
 *
 * One bus, bus 0, without bridges. BARs are placed by Ferry before the guest starts and may be
 * moved by it; a BAR answers while memory decoding is on and it lies in the window mmio32 (so never
 * over RAM or the platform's chips). Of two that overlap only the one in the lower slot answers.
 * Every function is called with the device lock held.
 * Texts: PCI Local Bus 3.0 §6, PCI Express Base 5.0 §7.
 */
#ifndef FERRY_PCI_H
#define FERRY_PCI_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/bus.h"
#include "vmm/device.h"
#include "vmm/intc.h"
#include "vmm/util/log.h"

#define PCI_SLOTS 32
#define PCI_CONFIG_BYTES 4096 /* of extended configuration space (ECAM) */
#define PCI_BARS 6
#define PCI_MSIX_MAX 65

struct pci_bus;
struct pci_function;

struct pci_window {
    uint64_t base, size;
};

struct pci_bus_config {
    struct pci_window ecam;   /* 1 MiB: bus 0 */
    struct pci_window mmio32; /* where BARs are placed */
    uint16_t config_port;     /* mechanism #1: 0xCF8; 0: none (no port I/O on this machine) */
};

/* The host bridge (slot 0) with its bus; *out is owned by the caller as a device. */
int pci_bus_create(struct device **out, struct pci_bus **bus, const struct device_env *env,
                   const struct pci_bus_config *config);

struct pci_bar {
    uint64_t size; /* 0: no such BAR; else a power of two >= 4 KiB, 32-bit memory */
    const struct bus_ops *ops;
    void *opaque;
    /* The BAR began to answer at gpa, or ceased to (mapped false): for doorbells. May be NULL. */
    void (*mapped)(void *opaque, uint64_t gpa, bool mapped);
};

struct pci_function_config {
    const char *name; /* copied */
    uint16_t vendor_id, device_id, subsystem_vendor_id, subsystem_id;
    uint8_t revision;
    uint32_t class_code; /* 24 bits */
    struct pci_bar bars[PCI_BARS];
    unsigned n_msix; /* vectors: 0 for no capability */
    uint8_t msix_bar;
    uint32_t msix_table_offset, msix_pba_offset; /* in that BAR; pci.c answers them itself */
    /* Called when a capability of the function's own (below) is touched. May be NULL. */
    uint32_t (*cap_read)(void *opaque, unsigned offset_in_config, unsigned size, uint32_t value);
    void (*cap_write)(void *opaque, unsigned offset_in_config, unsigned size, uint32_t value);
    void *opaque;
};

/* Takes the next free slot, places the BARs, lets them answer. -ENOSPC (slots, window), -ENOMEM;
 * logged. `mapped` may run before this returns. */
int pci_function_create(struct pci_function **out, struct pci_bus *bus,
                        const struct pci_function_config *config);
void pci_function_destroy(struct pci_function *fn);
void pci_function_reset(struct pci_function *fn);
/* Adds a vendor-specific capability (id 9) with `body` after its two-byte header; returns its
 * offset in configuration space, or -ENOSPC (logged). Before the guest runs. The bits of `writable`
 * (a mask as long as the body, may be NULL) can be written by the guest. */
int pci_function_add_cap(struct pci_function *fn, uint8_t id, const void *body, unsigned length,
                         const void *writable);
/* What the guest would read or write at an offset of a BAR, whether the BAR answers or not; all
 * ones and nothing, when the access does not lie in it. size: 1, 2, 4 or 8. */
uint64_t pci_function_bar_read(struct pci_function *fn, unsigned bar, uint64_t offset,
                               unsigned size);
void pci_function_bar_write(struct pci_function *fn, unsigned bar, uint64_t offset, unsigned size,
                            uint64_t value);
/* The 32-bit register at an aligned offset below 256, as it is stored: without cap_read. */
uint32_t pci_function_config(const struct pci_function *fn, unsigned offset);
unsigned pci_function_slot(const struct pci_function *fn);

/* Raises vector `index` unless masked (then it is pending), or MSI-X is off (then nothing). */
void pci_msix_raise(struct pci_function *fn, unsigned index);
bool pci_msix_enabled(const struct pci_function *fn);

/* Configuration space header, BARs, MSI-X table: one part for state. */
void pci_function_state(struct pci_function *fn, struct state_part *part);

#endif
