/*
 * ACPI tables for x86, hardware-reduced: no PM timer, no SCI, no fixed events, no FACS.
 *
 * Power-off and reset are the sleep control and reset registers; the power button comes as an event
 * of the generic event device. Interrupts of PCI functions are message-signalled, so there is no
 * _PRT. Tables are built in a buffer and copied to guest memory; no state, no lock; the thread that
 * starts and resets the machine.
 *
 * Texts: ACPI 6.3 (§4.1 hardware-reduced, §5.2 tables, §5.6.9 event device, §6.2.11 _OSC, §7.4.2
 * \_Sx); PCI Firmware 3.2 §4.1 (MCFG, the reservation of the ECAM), §4.5 (_OSC).
 */
#include "firmware/x86/acpi.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "firmware/aml.h"
#include "vmm/util/log.h"
#include "vmm/x86/platform.h"

#define TABLE_ALIGN 64
#define PAGE_SIZE 4096ull

struct acpi_rsdp {
    char signature[8];
    uint8_t checksum; /* of the first 20 bytes, which are revision 0's */
    char oem_id[6];
    uint8_t revision;
    uint32_t rsdt;
    uint32_t length;
    uint64_t xsdt;
    uint8_t extended_checksum;
    uint8_t reserved[3];
} __attribute__((packed));

#define RSDP_V1_LENGTH 20

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

/* Generic Address Structure, §5.2.3.2. */
struct acpi_address {
    uint8_t space;
    uint8_t bit_width;
    uint8_t bit_offset;
    uint8_t access_size;
    uint64_t address;
} __attribute__((packed));

#define ACPI_SPACE_IO 1
#define ACPI_ACCESS_BYTE 1

/* §5.2.9. What hardware-reduced machines leave 0 has no name here. */
struct acpi_fadt {
    struct acpi_header header;
    uint32_t facs;
    uint32_t dsdt;
    uint8_t unused0[109 - 44];
    uint16_t boot_arch;
    uint8_t unused1;
    uint32_t flags;
    struct acpi_address reset;
    uint8_t reset_value;
    uint16_t arm_boot_arch;
    uint8_t minor_version;
    uint64_t x_facs;
    uint64_t x_dsdt;
    uint8_t unused2[244 - 148];
    struct acpi_address sleep_control;
    struct acpi_address sleep_status;
    char hypervisor_id[8];
} __attribute__((packed));

#define FADT_BOOT_VGA_NOT_PRESENT (1u << 2)
#define FADT_BOOT_CMOS_RTC_NOT_PRESENT (1u << 5)
#define FADT_WBINVD (1u << 0)
#define FADT_PWR_BUTTON (1u << 4) /* is a control method device, or there is none */
#define FADT_SLP_BUTTON (1u << 5)
#define FADT_RESET_REG_SUP (1u << 10)
#define FADT_HW_REDUCED_ACPI (1u << 20)

struct acpi_madt {
    struct acpi_header header;
    uint32_t lapic_address;
    uint32_t flags; /* PCAT_COMPAT clear: the 8259 pair is not for the guest to use */
} __attribute__((packed));

struct madt_lapic {
    uint8_t type;
    uint8_t length;
    uint8_t uid;
    uint8_t apic_id;
    uint32_t flags;
} __attribute__((packed));

struct madt_ioapic {
    uint8_t type;
    uint8_t length;
    uint8_t id;
    uint8_t reserved;
    uint32_t address;
    uint32_t gsi_base;
} __attribute__((packed));

struct madt_lapic_nmi {
    uint8_t type;
    uint8_t length;
    uint8_t uid;
    uint16_t flags;
    uint8_t lint;
} __attribute__((packed));

struct madt_x2apic {
    uint8_t type;
    uint8_t length;
    uint16_t reserved;
    uint32_t apic_id;
    uint32_t flags;
    uint32_t uid;
} __attribute__((packed));

struct madt_x2apic_nmi {
    uint8_t type;
    uint8_t length;
    uint16_t flags;
    uint32_t uid;
    uint8_t lint;
    uint8_t reserved[3];
} __attribute__((packed));

enum { MADT_LAPIC = 0, MADT_IOAPIC = 1, MADT_LAPIC_NMI = 4, MADT_X2APIC = 9, MADT_X2APIC_NMI = 10 };

#define MADT_ENABLED 1u
#define MADT_X2APIC_FROM 255u /* ids below have LAPIC entries, §5.2.12.12 */

struct acpi_mcfg {
    struct acpi_header header;
    uint64_t reserved0;
    uint64_t base;
    uint16_t segment;
    uint8_t first_bus;
    uint8_t last_bus;
    uint32_t reserved1;
} __attribute__((packed));

_Static_assert(sizeof(struct acpi_rsdp) == 36, "ACPI 6.3 §5.2.5.3");
_Static_assert(sizeof(struct acpi_header) == 36, "ACPI 6.3 §5.2.6");
_Static_assert(sizeof(struct acpi_address) == 12, "ACPI 6.3 §5.2.3.2");
_Static_assert(offsetof(struct acpi_fadt, flags) == 112, "ACPI 6.3 §5.2.9");
_Static_assert(offsetof(struct acpi_fadt, x_dsdt) == 140, "ACPI 6.3 §5.2.9");
_Static_assert(offsetof(struct acpi_fadt, sleep_control) == 244, "ACPI 6.3 §5.2.9");
_Static_assert(sizeof(struct acpi_fadt) == 276, "ACPI 6.3 §5.2.9");
_Static_assert(sizeof(struct madt_lapic) == 8, "ACPI 6.3 §5.2.12.2");
_Static_assert(sizeof(struct madt_ioapic) == 12, "ACPI 6.3 §5.2.12.3");
_Static_assert(sizeof(struct madt_lapic_nmi) == 6, "ACPI 6.3 §5.2.12.7");
_Static_assert(sizeof(struct madt_x2apic) == 16, "ACPI 6.3 §5.2.12.12");
_Static_assert(sizeof(struct madt_x2apic_nmi) == 12, "ACPI 6.3 §5.2.12.13");
_Static_assert(sizeof(struct acpi_mcfg) == 60, "PCI Firmware 3.2 §4.1.2");

/* The tables one after another, as they will lie at `at` in guest memory. */
struct builder {
    uint8_t *bytes; /* owned */
    size_t length;
    size_t capacity;
    gpa_t at;
};

static uint8_t checksum(const void *bytes, size_t length)
{
    const uint8_t *b = bytes;
    uint8_t sum = 0;

    while (length--)
        sum = (uint8_t)(sum + *b++);
    return (uint8_t)-sum;
}

static struct acpi_header make_header(const char *signature, uint8_t revision)
{
    struct acpi_header header = {.revision = revision, .oem_revision = 1, .creator_revision = 1};

    memcpy(header.signature, signature, sizeof(header.signature));
    memcpy(header.oem_id, "FERRY ", sizeof(header.oem_id));
    memcpy(header.oem_table_id, "FERRYVM ", sizeof(header.oem_table_id));
    memcpy(header.creator_id, "FRRY", sizeof(header.creator_id));
    return header;
}

/* Opens a table with its fixed part; append() goes on; close_table() sums up. */
static size_t open_table(struct builder *b, const void *fixed, size_t length)
{
    size_t start = (b->length + TABLE_ALIGN - 1) & ~(size_t)(TABLE_ALIGN - 1);

    assert(start + length <= b->capacity);
    memcpy(b->bytes + start, fixed, length);
    b->length = start + length;
    return start;
}

static void append(struct builder *b, const void *bytes, size_t length)
{
    assert(length <= b->capacity - b->length);
    memcpy(b->bytes + b->length, bytes, length);
    b->length += length;
}

static gpa_t close_table(struct builder *b, size_t start)
{
    struct acpi_header *header = (struct acpi_header *)(b->bytes + start);

    header->length = (uint32_t)(b->length - start);
    header->checksum = 0;
    header->checksum = checksum(header, header->length);
    return b->at + start;
}

/* ---- DSDT ---- */

static void add_hid(struct aml *aml, const char *eisaid, const char *text, uint64_t uid)
{
    aml_name(aml, "_HID");
    if (eisaid)
        aml_eisaid(aml, eisaid);
    else
        aml_string(aml, text);
    aml_name(aml, "_UID");
    aml_integer(aml, uid);
}

static void add_crs(struct aml *aml, const struct aml_resources *res)
{
    aml_name(aml, "_CRS");
    aml_resources(aml, res);
}

/* What no driver claims: the registers named in the FADT, and the ECAM, which PCI Firmware 3.2
 * §4.1.2 wants reserved by a motherboard resource. */
static void add_motherboard(struct aml *aml, const struct acpi_config *config)
{
    struct aml_resources res = {0};

    _Static_assert(PLATFORM_SLEEP_STATUS_PORT == PLATFORM_SLEEP_CONTROL_PORT + 1 &&
                   PLATFORM_RESET_PORT == PLATFORM_SLEEP_CONTROL_PORT + 2, "one range of ports");

    aml_res_io(&res, PLATFORM_SLEEP_CONTROL_PORT, 3);
    if (config->has_pci)
        aml_res_memory32_fixed(&res, PLATFORM_ECAM_BASE, PLATFORM_ECAM_SIZE);
    aml_device(aml, "MBRD");
    add_hid(aml, "PNP0C02", NULL, 0);
    add_crs(aml, &res);
    aml_end(aml);
}

#define OSC_UUID "33DB4D5B-1FF7-401C-9657-7441C03DD766"
/* §6.2.11.3: PME, AER and the PCI Express capability are the guest's; hot-plug is not there. */
#define OSC_GRANTED 0x1C
#define OSC_UNRECOGNIZED_UUID 0x04
#define OSC_UNRECOGNIZED_REVISION 0x08
#define OSC_MASKED 0x10

static void osc_fail(struct aml *aml, uint64_t bit)
{
    aml_op(aml, AML_OR);
    aml_path(aml, "CDW1");
    aml_integer(aml, bit);
    aml_path(aml, "CDW1");
}

/* §6.2.11.4: the guest's wishes masked by what is granted; what was denied is said in the first
 * double word. */
static void add_osc(struct aml *aml)
{
    aml_method(aml, "_OSC", 4, true);
    aml_create_dword_field(aml, AML_ARG3, 0, "CDW1");
    aml_if(aml);
    aml_op(aml, AML_LEQUAL);
    aml_op(aml, AML_ARG0);
    aml_uuid(aml, OSC_UUID);
    aml_create_dword_field(aml, AML_ARG3, 8, "CDW3");
    aml_op(aml, AML_AND);
    aml_path(aml, "CDW3");
    aml_integer(aml, OSC_GRANTED);
    aml_op(aml, AML_LOCAL0);
    aml_if(aml);
    aml_op(aml, AML_LNOT);
    aml_op(aml, AML_LEQUAL);
    aml_op(aml, AML_LOCAL0);
    aml_path(aml, "CDW3");
    osc_fail(aml, OSC_MASKED);
    aml_end(aml);
    aml_if(aml);
    aml_op(aml, AML_LNOT);
    aml_op(aml, AML_LEQUAL);
    aml_op(aml, AML_ARG1);
    aml_op(aml, AML_ONE);
    osc_fail(aml, OSC_UNRECOGNIZED_REVISION);
    aml_end(aml);
    aml_op(aml, AML_STORE);
    aml_op(aml, AML_LOCAL0);
    aml_path(aml, "CDW3");
    aml_end(aml);
    aml_else(aml);
    osc_fail(aml, OSC_UNRECOGNIZED_UUID);
    aml_end(aml);
    aml_op(aml, AML_RETURN);
    aml_op(aml, AML_ARG3);
    aml_end(aml);
}

static void add_pci(struct aml *aml, const struct acpi_config *config)
{
    struct aml_resources res = {0};

    aml_res_bus_window(&res, 0, PLATFORM_ECAM_LAST_BUS);
    /* All ports but the configuration mechanism's own. */
    aml_res_io(&res, PLATFORM_PCI_CONFIG_ADDRESS_PORT, 8);
    aml_res_io_window(&res, 0, PLATFORM_PCI_CONFIG_ADDRESS_PORT);
    aml_res_io_window(&res, PLATFORM_PCI_CONFIG_ADDRESS_PORT + 8,
                      0x10000 - (PLATFORM_PCI_CONFIG_ADDRESS_PORT + 8));
    aml_res_memory32_window(&res, PLATFORM_MMIO32_BASE, PLATFORM_MMIO32_SIZE);
    if (config->mmio64_size > 0)
        aml_res_memory64_window(&res, config->mmio64_base, config->mmio64_size);

    aml_device(aml, "PCI0");
    add_hid(aml, "PNP0A08", NULL, 0);
    aml_name(aml, "_CID");
    aml_eisaid(aml, "PNP0A03");
    aml_name(aml, "_SEG");
    aml_integer(aml, 0);
    aml_name(aml, "_BBN");
    aml_integer(aml, 0);
    add_crs(aml, &res);
    add_osc(aml);
    aml_end(aml);
}

static void add_uart(struct aml *aml)
{
    struct aml_resources res = {0};

    aml_res_io(&res, PLATFORM_COM1_PORT, PLATFORM_COM1_PORTS);
    aml_res_irq(&res, PLATFORM_COM1_GSI);
    aml_device(aml, "COM1");
    add_hid(aml, "PNP0501", NULL, 1);
    add_crs(aml, &res);
    aml_end(aml);
}

static void add_pvpanic(struct aml *aml)
{
    struct aml_resources res = {0};

    aml_res_io(&res, PLATFORM_PVPANIC_PORT, 1);
    aml_device(aml, "PEVT");
    add_hid(aml, NULL, "QEMU0001", 0);
    add_crs(aml, &res);
    aml_end(aml);
}

#define NOTIFY_BUTTON_PRESSED 0x80 /* §5.6.6, table 5-171 */
#define NOTIFY_GENID_CHANGED 0x80  /* "Virtual Machine Generation ID" */

static void add_power_button(struct aml *aml)
{
    aml_device(aml, "PWRB");
    add_hid(aml, "PNP0C0C", NULL, 0);
    aml_end(aml);
}

/* "Virtual Machine Generation ID", 2012: found by its _CID; ADDR has the place, low half first. The
 * second _CID is Hyper-V's, of the length that ACPI allows, by which Linux finds it. */
static void add_genid(struct aml *aml)
{
    aml_device(aml, "VGEN");
    add_hid(aml, NULL, "FRRY0001", 0);
    aml_name(aml, "_CID");
    aml_package(aml, 2);
    aml_string(aml, "VM_Gen_Counter");
    aml_string(aml, "VMGENCTR");
    aml_end(aml);
    aml_name(aml, "_DDN");
    aml_string(aml, "VM_Gen_Counter");
    aml_name(aml, "ADDR");
    aml_package(aml, 2);
    aml_integer(aml, PLATFORM_GENID_BASE & 0xFFFFFFFFu);
    aml_integer(aml, PLATFORM_GENID_BASE >> 32);
    aml_end(aml);
    aml_end(aml);
}

static void add_event(struct aml *aml, unsigned gsi, const char *device, uint64_t event)
{
    aml_if(aml);
    aml_op(aml, AML_LEQUAL);
    aml_op(aml, AML_ARG0);
    aml_integer(aml, gsi);
    aml_op(aml, AML_NOTIFY);
    aml_path(aml, device);
    aml_integer(aml, event);
    aml_end(aml);
}

/* §5.6.9: each of its interrupts is an event, whose number _EVT is called with. */
static void add_events(struct aml *aml, const struct acpi_config *config)
{
    struct aml_resources res = {0};

    if (config->has_power_button)
        aml_res_interrupt(&res, PLATFORM_GED_GSI);
    if (config->has_genid)
        aml_res_interrupt(&res, PLATFORM_GENID_GSI);
    aml_device(aml, "GED_");
    add_hid(aml, NULL, "ACPI0013", 0);
    add_crs(aml, &res);
    aml_method(aml, "_EVT", 1, true);
    if (config->has_power_button)
        add_event(aml, PLATFORM_GED_GSI, "\\_SB_.PWRB", NOTIFY_BUTTON_PRESSED);
    if (config->has_genid)
        add_event(aml, PLATFORM_GENID_GSI, "\\_SB_.VGEN", NOTIFY_GENID_CHANGED);
    aml_end(aml);
    aml_end(aml);
}

/* §8.4: processors are devices; _UID ties each to its entry in the MADT. */
static void add_processors(struct aml *aml, unsigned n)
{
    char name[16];

    for (unsigned i = 0; i < n; i++) {
        snprintf(name, sizeof(name), "C%03X", i);
        aml_device(aml, name);
        add_hid(aml, NULL, "ACPI0007", i);
        aml_end(aml);
    }
}

static int build_dsdt(struct aml *aml, const struct acpi_config *config)
{
    aml_init(aml);
    aml_scope(aml, "\\_SB_");
    add_motherboard(aml, config);
    if (config->has_pci)
        add_pci(aml, config);
    if (config->has_uart)
        add_uart(aml);
    if (config->has_pvpanic)
        add_pvpanic(aml);
    if (config->has_power_button)
        add_power_button(aml);
    if (config->has_genid)
        add_genid(aml);
    if (config->has_power_button || config->has_genid)
        add_events(aml, config);
    if (config->has_processors)
        add_processors(aml, config->n_cpus);
    aml_end(aml);
    aml_name(aml, "\\_S5_");
    aml_package(aml, 4);
    aml_integer(aml, PLATFORM_SLEEP_TYPE_S5);
    for (unsigned i = 1; i < 4; i++)
        aml_integer(aml, 0);
    aml_end(aml);
    return aml_finish(aml);
}

/* ---- the fixed tables ---- */

static gpa_t add_dsdt(struct builder *b, const struct aml *aml)
{
    struct acpi_header header = make_header("DSDT", 2); /* from 2 on, integers have 64 bits */
    size_t start = open_table(b, &header, sizeof(header));

    append(b, aml->data, aml->length);
    return close_table(b, start);
}

static struct acpi_address io_byte(uint16_t port)
{
    return (struct acpi_address){ACPI_SPACE_IO, 8, 0, ACPI_ACCESS_BYTE, port};
}

static gpa_t add_fadt(struct builder *b, gpa_t dsdt)
{
    struct acpi_fadt fadt = {
        .header = make_header("FACP", 6),
        .dsdt = (uint32_t)dsdt,
        .boot_arch = FADT_BOOT_VGA_NOT_PRESENT | FADT_BOOT_CMOS_RTC_NOT_PRESENT,
        .flags = FADT_WBINVD | FADT_PWR_BUTTON | FADT_SLP_BUTTON | FADT_RESET_REG_SUP |
                 FADT_HW_REDUCED_ACPI,
        .reset = io_byte(PLATFORM_RESET_PORT),
        .reset_value = PLATFORM_RESET_VALUE,
        .minor_version = 3,
        .x_dsdt = dsdt,
        .sleep_control = io_byte(PLATFORM_SLEEP_CONTROL_PORT),
        .sleep_status = io_byte(PLATFORM_SLEEP_STATUS_PORT),
        .hypervisor_id = "FERRY",
    };
    size_t start = open_table(b, &fadt, sizeof(fadt));

    return close_table(b, start);
}

static void append_cpu(struct builder *b, uint32_t uid, uint32_t id)
{
    struct madt_lapic lapic = {MADT_LAPIC, sizeof(lapic), (uint8_t)uid, (uint8_t)id, MADT_ENABLED};
    struct madt_x2apic x2apic = {MADT_X2APIC, sizeof(x2apic), 0, id, MADT_ENABLED, uid};

    if (id < MADT_X2APIC_FROM && uid < MADT_X2APIC_FROM)
        append(b, &lapic, sizeof(lapic));
    else
        append(b, &x2apic, sizeof(x2apic));
}

static gpa_t add_madt(struct builder *b, const struct acpi_config *config)
{
    struct acpi_madt madt = {
        .header = make_header("APIC", 5),
        .lapic_address = PLATFORM_LAPIC_BASE,
    };
    struct madt_ioapic ioapic = {
        .type = MADT_IOAPIC, .length = sizeof(ioapic), .address = PLATFORM_IOAPIC_BASE};
    /* LINT1 of every processor, as on PCs. ISA interrupts are their GSIs, so no overrides. */
    struct madt_lapic_nmi nmi = {MADT_LAPIC_NMI, sizeof(nmi), 0xFF, 0, 1};
    struct madt_x2apic_nmi x2_nmi = {MADT_X2APIC_NMI, sizeof(x2_nmi), 0, UINT32_MAX, 1, {0}};
    size_t start = open_table(b, &madt, sizeof(madt));
    bool has_x2apic = false;

    for (unsigned i = 0; i < config->n_cpus; i++) {
        uint32_t id = config->apic_ids ? config->apic_ids[i] : i;

        append_cpu(b, i, id);
        has_x2apic |= id >= MADT_X2APIC_FROM;
    }
    append(b, &ioapic, sizeof(ioapic));
    append(b, &nmi, sizeof(nmi));
    if (has_x2apic)
        append(b, &x2_nmi, sizeof(x2_nmi));
    return close_table(b, start);
}

static gpa_t add_mcfg(struct builder *b)
{
    struct acpi_mcfg mcfg = {
        .header = make_header("MCFG", 1),
        .base = PLATFORM_ECAM_BASE,
        .last_bus = PLATFORM_ECAM_LAST_BUS,
    };
    size_t start = open_table(b, &mcfg, sizeof(mcfg));

    return close_table(b, start);
}

static gpa_t add_xsdt(struct builder *b, const gpa_t *tables, unsigned n)
{
    struct acpi_header header = make_header("XSDT", 1);
    size_t start = open_table(b, &header, sizeof(header));

    append(b, tables, n * sizeof(*tables));
    return close_table(b, start);
}

static struct acpi_rsdp make_rsdp(gpa_t xsdt)
{
    struct acpi_rsdp rsdp = {.revision = 2, .length = sizeof(rsdp), .xsdt = xsdt};

    memcpy(rsdp.signature, "RSD PTR ", sizeof(rsdp.signature));
    memcpy(rsdp.oem_id, "FERRY ", sizeof(rsdp.oem_id));
    rsdp.checksum = checksum(&rsdp, RSDP_V1_LENGTH);
    rsdp.extended_checksum = checksum(&rsdp, sizeof(rsdp));
    return rsdp;
}

/* All tables take no more than this. */
static size_t capacity_for(const struct acpi_config *config, const struct aml *dsdt)
{
    size_t madt = sizeof(struct acpi_madt) + config->n_cpus * sizeof(struct madt_x2apic) +
                  sizeof(struct madt_ioapic) + sizeof(struct madt_lapic_nmi) +
                  sizeof(struct madt_x2apic_nmi);
    size_t sum = sizeof(struct acpi_header) + dsdt->length + sizeof(struct acpi_fadt) + madt +
                 sizeof(struct acpi_mcfg) + sizeof(struct acpi_header) + 3 * sizeof(gpa_t);

    return sum + 5 * TABLE_ALIGN;
}

/* The RSDP is always where a guest may search for it; the others follow it where they fit, and are
 * else at the top of the RAM below 4 GiB. Sets b->at and *out. */
static int choose_place(const struct guest_memory *mem, struct builder *b,
                        struct firmware_tables *out)
{
    uint64_t rsdp_room = TABLE_ALIGN;
    uint64_t size = (b->capacity + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1);
    const struct memory_region *regions;

    out->root = PLATFORM_TABLES_BASE;
    if (rsdp_room + b->capacity <= PLATFORM_RESET_VECTOR - PLATFORM_TABLES_BASE) {
        b->at = PLATFORM_TABLES_BASE + rsdp_room;
        out->base = PLATFORM_TABLES_BASE;
        out->size = (rsdp_room + b->capacity + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1);
        return 0;
    }
    memory_regions(mem, &regions);
    if (regions[0].size < MIB + size)
        return -ENOMEM;
    b->at = (regions[0].size - size) & ~(PAGE_SIZE - 1);
    out->base = b->at;
    out->size = size;
    return 0;
}

static int write_tables(struct guest_memory *mem, struct builder *b,
                        const struct acpi_config *config, const struct aml *dsdt)
{
    struct acpi_rsdp rsdp;
    gpa_t tables[3];
    unsigned n = 0;
    int err;

    tables[n++] = add_fadt(b, add_dsdt(b, dsdt));
    tables[n++] = add_madt(b, config);
    if (config->has_pci)
        tables[n++] = add_mcfg(b);
    rsdp = make_rsdp(add_xsdt(b, tables, n));
    err = memory_write(mem, PLATFORM_TABLES_BASE, &rsdp, sizeof(rsdp));
    return err ? err : memory_write(mem, b->at, b->bytes, b->length);
}

int acpi_build(struct guest_memory *mem, const struct acpi_config *config,
               struct firmware_tables *out)
{
    struct builder b = {0};
    struct aml dsdt;
    int err;

    if (config->n_cpus == 0 || config->n_cpus > ACPI_MAX_CPUS) {
        log_error("ACPI: tables for %u CPUs; 1 to %u can be described", config->n_cpus,
                  ACPI_MAX_CPUS);
        return -EINVAL;
    }
    err = build_dsdt(&dsdt, config);
    if (!err) {
        b.capacity = capacity_for(config, &dsdt);
        b.bytes = calloc(1, b.capacity);
        err = b.bytes ? choose_place(mem, &b, out) : -ENOMEM;
    }
    if (!err)
        err = write_tables(mem, &b, config, &dsdt);
    if (err)
        log_error("ACPI: no room for the tables of %u CPUs in the guest's %llu MiB: %s",
                  config->n_cpus, (unsigned long long)(memory_size(mem) / MIB), strerror(-err));
    free(b.bytes);
    aml_fini(&dsdt);
    return err;
}
