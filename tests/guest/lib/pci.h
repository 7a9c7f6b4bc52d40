/*
 * PCI functions of bus 0: configuration space, BARs, capabilities, MSI-X.
 */
#ifndef GUEST_PCI_H
#define GUEST_PCI_H

#include <stdbool.h>
#include <stdint.h>

#define PCI_VENDOR_ID   0x00
#define PCI_DEVICE_ID   0x02
#define PCI_COMMAND     0x04
#define PCI_STATUS      0x06
#define PCI_REVISION    0x08
#define PCI_CLASS       0x09
#define PCI_HEADER_TYPE 0x0E
#define PCI_BAR0        0x10
#define PCI_SUBSYSTEM   0x2C
#define PCI_CAP_POINTER 0x34

#define PCI_COMMAND_IO     0x1
#define PCI_COMMAND_MEMORY 0x2
#define PCI_COMMAND_MASTER 0x4
#define PCI_COMMAND_INTX_OFF 0x400
#define PCI_STATUS_CAPS    0x10

#define PCI_CAP_VENDOR  0x09
#define PCI_CAP_EXPRESS 0x10
#define PCI_CAP_MSIX    0x11

#define PCI_SLOTS 32

/* How configuration space is reached: mechanism #1 or the memory-mapped window (ECAM). */
enum pci_access { PCI_ACCESS_PORTS, PCI_ACCESS_ECAM };

struct pci_device {
    uint8_t slot;
    uint16_t vendor;
    uint16_t device;
    uint64_t bar[6];   /* base addresses, 0 when absent */
    uint16_t msix_cap; /* offset of the capability, or 0 */
    uint16_t msix_entries;
    uint64_t msix_table;
    uint64_t msix_pba;
};

/* Takes ECAM when the MCFG has it (ecam=ADDRESS overrides), else the ports. */
void pci_init(void);
uint64_t pci_ecam_base(void);

/* size is 1, 2 or 4; offset need not be aligned for ECAM, and must be for the ports. */
uint32_t pci_read_by(enum pci_access access, uint8_t slot, uint16_t offset, unsigned size);
void pci_write_by(enum pci_access access, uint8_t slot, uint16_t offset, unsigned size,
                  uint32_t value);
/* By the access that pci_init() chose. */
uint32_t pci_read(uint8_t slot, uint16_t offset, unsigned size);
void pci_write(uint8_t slot, uint16_t offset, unsigned size, uint32_t value);

/*
 * Fills device from the function 0 in slot; false when there is none. BARs that nobody assigned
 * are assigned from the 32-bit window. Turns memory decoding and bus mastering on.
 */
bool pci_open(struct pci_device *device, uint8_t slot);
/* The nth function, from 0, with this vendor and device id. */
bool pci_find(struct pci_device *device, uint16_t vendor, uint16_t id, unsigned nth);

/* Offset of the capability with this id behind offset previous (0: from the first), or 0. */
uint16_t pci_capability(uint8_t slot, uint8_t id, uint16_t previous);

/* Size in bytes that BAR index decodes, found as the text says, with decoding off meanwhile. */
uint64_t pci_bar_size(uint8_t slot, unsigned index);

void pci_msix_enable(const struct pci_device *device, bool enable, bool mask_all);
/* Table entry to vector on apic_id, unmasked. */
void pci_msix_route(const struct pci_device *device, unsigned entry, uint32_t apic_id,
                    uint32_t vector);
void pci_msix_mask(const struct pci_device *device, unsigned entry, bool masked);

#endif
