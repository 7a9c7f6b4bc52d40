/*
 * acpi: checks the sum of every table that the RSDP leads to and prints their signatures.
 *
 * Follows RSDP, XSDT and, from the FADT, DSDT and FACS. Reads no AML.
 * Text: ACPI 6.5, 5.2.5 (RSDP), 5.2.8 (XSDT), 5.2.9 (FADT), 5.2.12 (MADT).
 */
#include "acpi.h"

#include "boot.h"
#include "memory.h"
#include "pci.h"
#include "print.h"
#include "verdict.h"

#define MAX_LISTED          256
#define FADT_DSDT           40
#define FADT_FLAGS          112
#define FADT_RESET_REGISTER 116
#define FADT_X_DSDT         140
#define FADT_SLEEP_CONTROL  244
#define FADT_HW_REDUCED     (1u << 20)

static void check_table(const struct acpi_header *table, const char *where)
{
    char name[16] = "table-";

    if (table == NULL || ((uintptr_t)table & 3) != 0) {
        not_ok("table", "%s: no table or not aligned", where);
        return;
    }
    memcpy(name + 6, table->signature, 4);
    print("table %c%c%c%c revision %u length %u\n", table->signature[0], table->signature[1],
          table->signature[2], table->signature[3], table->revision, table->length);
    check(table->length >= sizeof(*table) && acpi_sum_is_zero(table, table->length), name,
          "the sum of its %u bytes is not zero", table->length);
}

static bool check_rsdp(void)
{
    const struct acpi_rsdp *rsdp = acpi_rsdp();

    if (rsdp == NULL) {
        not_ok("rsdp", "none was given and none found");
        return false;
    }
    check(memcmp(rsdp->signature, "RSD PTR ", 8) == 0 && acpi_sum_is_zero(rsdp, 20), "rsdp",
          "signature or checksum wrong at %lx", (uint64_t)(uintptr_t)rsdp);
    if (rsdp->revision >= 2)
        check(acpi_sum_is_zero(rsdp, rsdp->length), "rsdp-extended", "checksum wrong");
    return true;
}

static void check_fadt(void)
{
    const char *fadt = (const char *)acpi_find("FACP");
    uint32_t flags, length;
    uint64_t dsdt = 0, sleep_control = 0;

    if (fadt == NULL) {
        not_ok("fadt", "missing");
        return;
    }
    memcpy(&length, fadt + 4, 4);
    memcpy(&dsdt, fadt + FADT_DSDT, 4);
    if (length >= FADT_X_DSDT + 8 && dsdt == 0)
        memcpy(&dsdt, fadt + FADT_X_DSDT, 8);
    check_table((const struct acpi_header *)(uintptr_t)dsdt, "DSDT");
    memcpy(&flags, fadt + FADT_FLAGS, 4);
    print("fadt flags %08x\n", flags);
    if ((flags & FADT_HW_REDUCED) == 0)
        return;
    if (length >= FADT_SLEEP_CONTROL + 24)
        memcpy(&sleep_control, fadt + FADT_SLEEP_CONTROL + 4, 8);
    check(sleep_control != 0, "fadt-sleep-control",
          "hardware-reduced without a sleep control register");
}

static void check_madt(void)
{
    uint32_t ids[MAX_LISTED];
    uint32_t count = acpi_processors(ids, MAX_LISTED);

    check(count >= 1, "madt-processors", "none is enabled");
    check(acpi_madt_next(NULL, MADT_IOAPIC) != NULL, "madt-ioapic", "none");
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t j = i + 1; j < count; j++) {
            if (ids[i] == ids[j]) {
                not_ok("madt-unique", "APIC id %u stands twice", ids[i]);
                return;
            }
        }
    }
    ok("madt-unique");
    print("processors %u\n", count);
}

int main(const struct boot_info *info)
{
    (void)info;
    if (!check_rsdp())
        return 0;
    check_table(acpi_root(), "root");
    for (uint32_t i = 0; i < acpi_table_count(); i++)
        check_table(acpi_table(i), "entry of the root table");
    check_fadt();
    check_madt();
    if (acpi_find("MCFG") != NULL) {
        pci_init();
        check(pci_read(0, PCI_VENDOR_ID, 2) != 0xFFFF, "mcfg-ecam",
              "no host bridge answers at %lx", acpi_ecam_base());
    }
    return 0;
}
