/*
 * ACPI tables for x86: RSDP, XSDT, FADT (hardware-reduced), MADT, MCFG and the DSDT.
 *
 * Addresses, ports and lines come from vmm/x86/platform.h. Deterministic: the same configuration
 * gives the same bytes.
 */
#ifndef FERRY_FIRMWARE_X86_ACPI_H
#define FERRY_FIRMWARE_X86_ACPI_H

#include <stdbool.h>
#include <stdint.h>

#include "firmware/tables.h"
#include "vmm/memory.h"

#define ACPI_MAX_CPUS 4096

struct acpi_config {
    unsigned n_cpus;          /* 1 .. ACPI_MAX_CPUS; CPU i has the processor UID i */
    const uint32_t *apic_ids; /* n_cpus of them, borrowed for the call; NULL: CPU i has id i */
    bool has_processors;      /* as devices, too, which only drivers for their idle states look for */
    bool has_uart;            /* 16550A at COM1 */
    bool has_pvpanic;
    bool has_power_button;    /* needs the event line PLATFORM_GED_GSI */
    bool has_genid;           /* at PLATFORM_GENID_BASE; needs the event line PLATFORM_GENID_GSI */
    bool has_pci;             /* root bus and ECAM */
    uint64_t mmio64_base;     /* 64-bit PCI memory window; size 0: none */
    uint64_t mmio64_size;
};

/*
 * Writes the tables: at PLATFORM_TABLES_BASE, or at the top of the RAM below 4 GiB when they do not
 * fit there (many CPUs). *out says where, for the memory map. Call before each kernel_load().
 * Errors, logged: -EINVAL (n_cpus), -ENOMEM (no room in guest memory, or in the host's).
 */
int acpi_build(struct guest_memory *mem, const struct acpi_config *config,
               struct firmware_tables *out);

#endif
