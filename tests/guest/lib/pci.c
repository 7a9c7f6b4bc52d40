/*
 * PCI functions of bus 0: configuration space, BARs, capabilities, MSI-X.
 *
 * Looks at function 0 of each slot only and at no bridge: the machines it drives have one flat
 * bus. Thread: the first processor.
 * Texts: PCI Local Bus 3.0, 3.2.2.3.2 (mechanism #1), 6.1, 6.2.5, 6.7, 6.8.2 (MSI-X); PCI Express
 * Base 4.0, 7.2.2 (ECAM).
 */
#include "pci.h"

#include <stddef.h>

#include "acpi.h"
#include "apic.h"
#include "boot.h"
#include "io.h"
#include "memory.h"

#define CONFIG_ADDRESS 0xCF8
#define CONFIG_DATA    0xCFC
#define CONFIG_ENABLE  (1u << 31)

#define BAR_IO         0x1
#define BAR_TYPE_64    0x4
#define BAR_TYPE_MASK  0x6

#define WINDOW_BASE 0xC0000000u

#define MSIX_CONTROL    2
#define MSIX_TABLE      4
#define MSIX_PBA        8
#define MSIX_ENABLE     0x8000
#define MSIX_MASK_ALL   0x4000
#define MSIX_SIZE_MASK  0x7FF
#define MSIX_ENTRY_SIZE 16

static uint64_t ecam;
static enum pci_access best_access;
static uint32_t window_next = WINDOW_BASE;

void pci_init(void)
{
    ecam = arg_number("ecam", acpi_ecam_base());
    best_access = ecam != 0 ? PCI_ACCESS_ECAM : PCI_ACCESS_PORTS;
    if (ecam >= 4 * GIB)
        memory_map(ecam, MIB);
}

uint64_t pci_ecam_base(void)
{
    return ecam;
}

static uint64_t ecam_address(uint8_t slot, uint16_t offset)
{
    return ecam + ((uint64_t)slot << 15) + offset;
}

static void select_register(uint8_t slot, uint16_t offset)
{
    out32(CONFIG_ADDRESS, CONFIG_ENABLE | (uint32_t)slot << 11 | (offset & 0xFCu));
}

uint32_t pci_read_by(enum pci_access access, uint8_t slot, uint16_t offset, unsigned size)
{
    if (access == PCI_ACCESS_ECAM) {
        uint64_t at = ecam_address(slot, offset);
        return size == 1 ? mmio_read8(at) : size == 2 ? mmio_read16(at) : mmio_read32(at);
    }
    uint16_t port = (uint16_t)(CONFIG_DATA + (offset & 3));
    select_register(slot, offset);
    return size == 1 ? in8(port) : size == 2 ? in16(port) : in32(port);
}

void pci_write_by(enum pci_access access, uint8_t slot, uint16_t offset, unsigned size,
                  uint32_t value)
{
    uint64_t at = ecam_address(slot, offset);
    uint16_t port = (uint16_t)(CONFIG_DATA + (offset & 3));
    bool by_ecam = access == PCI_ACCESS_ECAM;

    if (!by_ecam)
        select_register(slot, offset);
    if (size == 1 && by_ecam)
        mmio_write8(at, (uint8_t)value);
    else if (size == 1)
        out8(port, (uint8_t)value);
    else if (size == 2 && by_ecam)
        mmio_write16(at, (uint16_t)value);
    else if (size == 2)
        out16(port, (uint16_t)value);
    else if (by_ecam)
        mmio_write32(at, value);
    else
        out32(port, value);
}

uint32_t pci_read(uint8_t slot, uint16_t offset, unsigned size)
{
    return pci_read_by(best_access, slot, offset, size);
}

void pci_write(uint8_t slot, uint16_t offset, unsigned size, uint32_t value)
{
    pci_write_by(best_access, slot, offset, size, value);
}

uint16_t pci_capability(uint8_t slot, uint8_t id, uint16_t previous)
{
    uint16_t at;

    if ((pci_read(slot, PCI_STATUS, 2) & PCI_STATUS_CAPS) == 0)
        return 0;
    at = (uint16_t)pci_read(slot, previous == 0 ? PCI_CAP_POINTER : previous + 1, 1) & 0xFC;
    /* 48 capabilities of 4 bytes fill the space behind the header: more is a loop. */
    for (unsigned i = 0; i < 48 && at >= 0x40; i++) {
        if (pci_read(slot, at, 1) == id)
            return at;
        at = (uint16_t)pci_read(slot, at + 1, 1) & 0xFC;
    }
    return 0;
}

uint64_t pci_bar_size(uint8_t slot, unsigned index)
{
    uint16_t at = (uint16_t)(PCI_BAR0 + 4 * index);
    uint32_t command = pci_read(slot, PCI_COMMAND, 2);
    uint32_t low = pci_read(slot, at, 4);
    uint64_t mask = ~0xFull;

    pci_write(slot, PCI_COMMAND, 2, command & ~(PCI_COMMAND_IO | PCI_COMMAND_MEMORY));
    pci_write(slot, at, 4, 0xFFFFFFFF);
    uint64_t answer = pci_read(slot, at, 4);
    pci_write(slot, at, 4, low);
    if ((low & BAR_IO) != 0) {
        mask = ~0x3ull;
        answer |= 0xFFFFFFFFFFFF0000ull;
    } else if ((low & BAR_TYPE_MASK) == BAR_TYPE_64) {
        uint32_t high = pci_read(slot, at + 4, 4);
        pci_write(slot, at + 4, 4, 0xFFFFFFFF);
        answer |= (uint64_t)pci_read(slot, at + 4, 4) << 32;
        pci_write(slot, at + 4, 4, high);
    } else {
        answer |= 0xFFFFFFFF00000000ull;
    }
    pci_write(slot, PCI_COMMAND, 2, command);
    return (answer & mask & 0xFFFFFFFF) == 0 && answer >> 32 == 0xFFFFFFFF ? 0
                                                                          : ~(answer & mask) + 1;
}

/* Reads memory BAR index, after giving it an address if nobody did; the next index to look at. */
static unsigned open_bar(struct pci_device *device, unsigned index)
{
    uint16_t at = (uint16_t)(PCI_BAR0 + 4 * index);
    uint32_t low = pci_read(device->slot, at, 4);
    bool wide = (low & (BAR_IO | BAR_TYPE_MASK)) == BAR_TYPE_64;
    uint64_t base = low & ~0xFull;

    if ((low & BAR_IO) != 0)
        return index + 1;
    if (wide)
        base |= (uint64_t)pci_read(device->slot, at + 4, 4) << 32;
    uint64_t size = pci_bar_size(device->slot, index);
    if (size == 0)
        return index + 1;
    if (base == 0 && size <= 16 * MIB) {
        window_next = (uint32_t)((window_next + size - 1) & ~(size - 1));
        base = window_next;
        window_next += (uint32_t)size;
        pci_write(device->slot, at, 4, (uint32_t)base);
    }
    if (base >= 4 * GIB)
        memory_map(base, size);
    device->bar[index] = base;
    return index + (wide ? 2 : 1);
}

static void open_msix(struct pci_device *device)
{
    uint16_t cap = pci_capability(device->slot, PCI_CAP_MSIX, 0);

    if (cap == 0)
        return;
    uint32_t table = pci_read(device->slot, cap + MSIX_TABLE, 4);
    uint32_t pba = pci_read(device->slot, cap + MSIX_PBA, 4);
    if ((table & 7) > 5 || (pba & 7) > 5)
        return;
    device->msix_cap = cap;
    device->msix_entries =
        (uint16_t)((pci_read(device->slot, cap + MSIX_CONTROL, 2) & MSIX_SIZE_MASK) + 1);
    device->msix_table = device->bar[table & 7] + (table & ~7u);
    device->msix_pba = device->bar[pba & 7] + (pba & ~7u);
}

bool pci_open(struct pci_device *device, uint8_t slot)
{
    uint32_t id = pci_read(slot, PCI_VENDOR_ID, 4);

    *device = (struct pci_device){ .slot = slot };
    if ((id & 0xFFFF) == 0xFFFF)
        return false;
    device->vendor = (uint16_t)id;
    device->device = (uint16_t)(id >> 16);
    if ((pci_read(slot, PCI_HEADER_TYPE, 1) & 0x7F) != 0)
        return true;
    for (unsigned index = 0; index < 6;)
        index = open_bar(device, index);
    uint32_t command = pci_read(slot, PCI_COMMAND, 2);
    pci_write(slot, PCI_COMMAND, 2, command | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    open_msix(device);
    return true;
}

bool pci_find(struct pci_device *device, uint16_t vendor, uint16_t id, unsigned nth)
{
    for (uint8_t slot = 0; slot < PCI_SLOTS; slot++) {
        if (pci_read(slot, PCI_VENDOR_ID, 4) != ((uint32_t)id << 16 | vendor))
            continue;
        if (nth-- == 0)
            return pci_open(device, slot);
    }
    return false;
}

void pci_msix_enable(const struct pci_device *device, bool enable, bool mask_all)
{
    uint16_t at = device->msix_cap + MSIX_CONTROL;
    uint32_t control = pci_read(device->slot, at, 2) & ~(uint32_t)(MSIX_ENABLE | MSIX_MASK_ALL);

    control |= (enable ? MSIX_ENABLE : 0) | (mask_all ? MSIX_MASK_ALL : 0);
    pci_write(device->slot, at, 2, control);
}

void pci_msix_route(const struct pci_device *device, unsigned entry, uint32_t apic_id,
                    uint32_t vector)
{
    uint64_t at = device->msix_table + entry * MSIX_ENTRY_SIZE;
    uint64_t address = msi_address(apic_id);

    mmio_write32(at + 12, 1);
    mmio_write32(at, (uint32_t)address);
    mmio_write32(at + 4, (uint32_t)(address >> 32));
    mmio_write32(at + 8, msi_data(vector));
    mmio_write32(at + 12, 0);
}

void pci_msix_mask(const struct pci_device *device, unsigned entry, bool masked)
{
    mmio_write32(device->msix_table + entry * MSIX_ENTRY_SIZE + 12, masked ? 1 : 0);
}
