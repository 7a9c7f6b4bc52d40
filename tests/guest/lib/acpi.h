/*
 * ACPI tables as the VMM wrote them: found, checked, walked.
 */
#ifndef GUEST_ACPI_H
#define GUEST_ACPI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct acpi_header {
    char signature[4];
    uint32_t length;
    uint8_t revision;
    uint8_t checksum;
    char oem_id[6];
    char oem_table_id[8];
    uint32_t oem_revision;
    char creator_id[4];
    uint32_t creator_revision;
} __attribute__((packed));
_Static_assert(sizeof(struct acpi_header) == 36, "ACPI 6.5, 5.2.6");

struct acpi_rsdp {
    char signature[8];
    uint8_t checksum;
    char oem_id[6];
    uint8_t revision;
    uint32_t rsdt;
    uint32_t length;
    uint64_t xsdt;
    uint8_t extended_checksum;
    uint8_t reserved[3];
} __attribute__((packed));
_Static_assert(sizeof(struct acpi_rsdp) == 36, "ACPI 6.5, 5.2.5.3");

/* MADT entries (5.2.12), by type. */
#define MADT_LAPIC  0
#define MADT_IOAPIC 1
#define MADT_X2APIC 9
#define MADT_ENTRIES_OFFSET 44

struct madt_entry {
    uint8_t type;
    uint8_t length;
} __attribute__((packed));

struct madt_lapic {
    struct madt_entry entry;
    uint8_t processor_uid;
    uint8_t apic_id;
    uint32_t flags; /* 1: enabled */
} __attribute__((packed));

struct madt_x2apic {
    struct madt_entry entry;
    uint16_t reserved;
    uint32_t apic_id;
    uint32_t flags;
    uint32_t processor_uid;
} __attribute__((packed));

struct madt_ioapic {
    struct madt_entry entry;
    uint8_t ioapic_id;
    uint8_t reserved;
    uint32_t address;
    uint32_t gsi_base;
} __attribute__((packed));

/* From the start info, else by its signature from 0xE0000 on; NULL when there is none. */
const struct acpi_rsdp *acpi_rsdp(void);
bool acpi_sum_is_zero(const void *table, uint32_t length);

/* The number of tables that the XSDT (or the RSDT without one) names, and each of them. */
uint32_t acpi_table_count(void);
const struct acpi_header *acpi_table(uint32_t index);
/* The root table itself; NULL without an RSDP. */
const struct acpi_header *acpi_root(void);
/* The first table with this signature, or NULL. */
const struct acpi_header *acpi_find(const char *signature);

/* Entry after previous (NULL: the first) of the MADT with this type, or NULL. */
const struct madt_entry *acpi_madt_next(const struct madt_entry *previous, uint8_t type);

/* APIC ids of the enabled processors; returns how many, at most max. */
uint32_t acpi_processors(uint32_t *apic_ids, uint32_t max);

/* Base of the configuration space of bus 0 by the MCFG, or 0. */
uint64_t acpi_ecam_base(void);

#endif
