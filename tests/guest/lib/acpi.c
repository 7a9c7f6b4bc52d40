/*
 * ACPI tables as the VMM wrote them: found, checked, walked.
 *
 * Interprets no AML. Lengths are taken from the tables, whose checksums the payload acpi verifies.
 * Thread: any, the tables do not change. Text: ACPI 6.5, 5.2.
 */
#include "acpi.h"

#include "boot.h"
#include "memory.h"

#define SCAN_BASE 0xE0000
#define SCAN_END  0x100000

const struct acpi_rsdp *acpi_rsdp(void)
{
    if (boot_get()->rsdp != 0)
        return (const void *)(uintptr_t)boot_get()->rsdp;
    for (uintptr_t at = SCAN_BASE; at < SCAN_END; at += 16) {
        if (memcmp((const void *)at, "RSD PTR ", 8) == 0)
            return (const void *)at;
    }
    return NULL;
}

bool acpi_sum_is_zero(const void *table, uint32_t length)
{
    const uint8_t *bytes = table;
    uint8_t sum = 0;

    for (uint32_t i = 0; i < length; i++)
        sum = (uint8_t)(sum + bytes[i]);
    return sum == 0;
}

static bool has_xsdt(const struct acpi_rsdp *rsdp)
{
    return rsdp->revision >= 2 && rsdp->xsdt != 0;
}

const struct acpi_header *acpi_root(void)
{
    const struct acpi_rsdp *rsdp = acpi_rsdp();

    if (rsdp == NULL)
        return NULL;
    return (const void *)(uintptr_t)(has_xsdt(rsdp) ? rsdp->xsdt : rsdp->rsdt);
}

uint32_t acpi_table_count(void)
{
    const struct acpi_header *root = acpi_root();

    if (root == NULL)
        return 0;
    return (root->length - (uint32_t)sizeof(*root)) / (has_xsdt(acpi_rsdp()) ? 8 : 4);
}

const struct acpi_header *acpi_table(uint32_t index)
{
    const char *entries = (const char *)acpi_root() + sizeof(struct acpi_header);
    uint64_t address = 0;

    if (has_xsdt(acpi_rsdp()))
        memcpy(&address, entries + 8 * index, 8);
    else
        memcpy(&address, entries + 4 * index, 4);
    return (const void *)(uintptr_t)address;
}

const struct acpi_header *acpi_find(const char *signature)
{
    for (uint32_t i = 0; i < acpi_table_count(); i++) {
        if (memcmp(acpi_table(i)->signature, signature, 4) == 0)
            return acpi_table(i);
    }
    return NULL;
}

const struct madt_entry *acpi_madt_next(const struct madt_entry *previous, uint8_t type)
{
    const struct acpi_header *madt = acpi_find("APIC");

    if (madt == NULL)
        return NULL;
    const char *end = (const char *)madt + madt->length;
    const char *at = (const char *)madt + MADT_ENTRIES_OFFSET;
    if (previous != NULL)
        at = (const char *)previous + previous->length;
    for (; at + sizeof(struct madt_entry) <= end; at += ((const struct madt_entry *)at)->length) {
        const struct madt_entry *entry = (const void *)at;
        if (entry->length < sizeof(*entry))
            return NULL;
        if (entry->type == type)
            return entry;
    }
    return NULL;
}

uint32_t acpi_processors(uint32_t *apic_ids, uint32_t max)
{
    const struct madt_entry *entry = NULL;
    uint32_t count = 0;

    while ((entry = acpi_madt_next(entry, MADT_LAPIC)) != NULL && count < max) {
        const struct madt_lapic *lapic = (const void *)entry;
        if ((lapic->flags & 1) != 0)
            apic_ids[count++] = lapic->apic_id;
    }
    entry = NULL;
    while ((entry = acpi_madt_next(entry, MADT_X2APIC)) != NULL && count < max) {
        const struct madt_x2apic *lapic = (const void *)entry;
        if ((lapic->flags & 1) != 0)
            apic_ids[count++] = lapic->apic_id;
    }
    return count;
}

uint64_t acpi_ecam_base(void)
{
    const struct acpi_header *mcfg = acpi_find("MCFG");
    uint64_t base = 0;

    if (mcfg != NULL && mcfg->length >= 44 + 16)
        memcpy(&base, (const char *)mcfg + 44, sizeof(base));
    return base;
}
