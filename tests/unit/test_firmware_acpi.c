/* ACPI tables: where they are, their checksums, what they say, and iasl's opinion of them. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "firmware/aml.h"
#include "firmware/x86/acpi.h"
#include "kernel_images.h"
#include "vmm/x86/platform.h"

static struct firmware_tables tables;

static struct acpi_config full(unsigned n_cpus)
{
    return (struct acpi_config){
        .n_cpus = n_cpus,
        .has_processors = true,
        .has_uart = true,
        .has_pvpanic = true,
        .has_power_button = true,
        .has_genid = true,
        .has_pci = true,
        .mmio64_base = 0x8000000000,
        .mmio64_size = 0x1000000000,
    };
}

static struct guest_memory *build(const struct acpi_config *config)
{
    struct guest_memory *mem = image_memory(64 * MIB);

    image_capture_log();
    cr_assert_eq(acpi_build(mem, config, &tables), 0, "%s", image_last_error());
    return mem;
}

static uint8_t sum(struct guest_memory *mem, gpa_t at, uint32_t length)
{
    const uint8_t *bytes = memory_at(mem, at, length);
    uint8_t total = 0;

    cr_assert(bytes, "no memory at %#llx", (unsigned long long)at);
    while (length--)
        total = (uint8_t)(total + *bytes++);
    return total;
}

/* A table by its signature: its place, after its checksum was found right; 0: there is none. */
static gpa_t find(struct guest_memory *mem, const char *signature)
{
    gpa_t xsdt = image_u64(mem, tables.root + 24), found = 0;
    uint32_t n = (image_u32(mem, xsdt + 4) - 36) / 8;
    char name[5] = {0};

    cr_assert_eq(sum(mem, xsdt, image_u32(mem, xsdt + 4)), 0);
    for (uint32_t i = 0; i < n; i++) {
        gpa_t table = image_u64(mem, xsdt + 36 + i * 8);

        image_get(mem, table, name, 4);
        cr_assert_eq(sum(mem, table, image_u32(mem, table + 4)), 0, "%s", name);
        cr_assert(table >= tables.base &&
                  table + image_u32(mem, table + 4) <= tables.base + tables.size, "%s", name);
        if (strcmp(name, signature) == 0)
            found = table;
    }
    return found;
}

static gpa_t find_dsdt(struct guest_memory *mem)
{
    return image_u64(mem, find(mem, "FACP") + 140);
}

/* True when the DSDT's bytes have the text somewhere. */
static bool dsdt_has(struct guest_memory *mem, const char *text)
{
    gpa_t dsdt = find_dsdt(mem);
    uint32_t length = image_u32(mem, dsdt + 4);

    return memmem(memory_at(mem, dsdt, length), length, text, strlen(text)) != NULL;
}

Test(acpi, rsdp_is_where_a_guest_searches_for_it)
{
    struct acpi_config config = full(2);
    struct guest_memory *mem = build(&config);
    char signature[9] = {0};

    cr_assert_eq(tables.root, 0xE0000);
    image_get(mem, tables.root, signature, 8);
    cr_assert_str_eq(signature, "RSD PTR ");
    cr_assert_eq(image_u8(mem, tables.root + 15), 2, "revision");
    cr_assert_eq(sum(mem, tables.root, 20), 0);
    cr_assert_eq(sum(mem, tables.root, 36), 0);
}

Test(acpi, tables_lie_in_whole_pages_below_1_mib)
{
    struct acpi_config config = full(1);

    build(&config);
    cr_assert_eq(tables.base, 0xE0000);
    cr_assert_eq(tables.size, 0x1000);
}

Test(acpi, fadt_is_hardware_reduced)
{
    struct acpi_config config = full(1);
    struct guest_memory *mem = build(&config);
    gpa_t fadt = find(mem, "FACP");
    uint32_t flags = image_u32(mem, fadt + 112);

    cr_assert_eq(image_u32(mem, fadt + 4), 276);
    cr_assert_eq(image_u8(mem, fadt + 8), 6, "revision");
    cr_assert_eq(flags & 1u << 20, 1u << 20, "HW_REDUCED_ACPI");
    cr_assert_eq(flags & 1u << 10, 1u << 10, "RESET_REG_SUP");
    cr_assert_eq(flags & 1u << 4, 1u << 4, "the power button is a control method");
    cr_assert_eq(image_u16(mem, fadt + 109), 0x24, "no 8042, no VGA, no CMOS RTC, but MSI");
    cr_assert_eq(image_u64(mem, fadt + 116 + 4), 0x602);
    cr_assert_eq(image_u8(mem, fadt + 128), 1, "the reset value");
    cr_assert_eq(image_u8(mem, fadt + 244), 1, "in I/O space");
    cr_assert_eq(image_u64(mem, fadt + 244 + 4), 0x600);
    cr_assert_eq(image_u64(mem, fadt + 256 + 4), 0x601);
    cr_assert_eq(image_u32(mem, fadt + 40), image_u64(mem, fadt + 140), "both DSDTs");
    cr_assert_eq(image_u64(mem, fadt + 132), 0, "no FACS");
}

Test(acpi, dsdt_has_64_bit_integers)
{
    struct acpi_config config = full(1);
    struct guest_memory *mem = build(&config);
    gpa_t dsdt = find_dsdt(mem);

    cr_assert_eq(sum(mem, dsdt, image_u32(mem, dsdt + 4)), 0);
    cr_assert_eq(image_u8(mem, dsdt + 8), 2, "revision");
}

/* What the MADT says of processors, as counts and a check of each pair. */
static void check_madt(struct guest_memory *mem, const uint32_t *ids, unsigned n)
{
    gpa_t madt = find(mem, "APIC"), end = madt + image_u32(mem, madt + 4);
    unsigned seen = 0, ioapics = 0;

    cr_assert_eq(image_u32(mem, madt + 36), 0xFEE00000);
    for (gpa_t at = madt + 44; at < end; at += image_u8(mem, at + 1)) {
        uint8_t type = image_u8(mem, at);

        cr_assert_geq(image_u8(mem, at + 1), 6);
        if (type == 0) {
            cr_assert_eq(image_u8(mem, at + 2), seen);
            cr_assert_eq(image_u8(mem, at + 3), ids[seen]);
            cr_assert_eq(image_u32(mem, at + 4), 1);
            cr_assert_lt(ids[seen++], 255);
        } else if (type == 9) {
            cr_assert_eq(image_u32(mem, at + 12), seen);
            cr_assert_eq(image_u32(mem, at + 4), ids[seen]);
            cr_assert_eq(image_u32(mem, at + 8), 1);
            cr_assert_geq(ids[seen++], 255);
        } else if (type == 1) {
            ioapics++;
            cr_assert_eq(image_u32(mem, at + 4), 0xFEC00000);
            cr_assert_eq(image_u32(mem, at + 8), 0);
        }
    }
    cr_assert_eq(seen, n);
    cr_assert_eq(ioapics, 1);
}

Test(acpi, madt_has_each_processor_and_the_ioapic)
{
    static const uint32_t ids[] = {0, 1, 2, 3};
    struct acpi_config config = full(4);

    check_madt(build(&config), ids, 4);
}

Test(acpi, madt_has_the_apic_ids_given_by_x2apic_from_255_on)
{
    static const uint32_t ids[] = {0, 2, 4, 254, 255, 256, 70000};
    struct acpi_config config = full(7);

    config.apic_ids = ids;
    check_madt(build(&config), ids, 7);
}

Test(acpi, mcfg_has_bus_0_alone)
{
    struct acpi_config config = full(1);
    struct guest_memory *mem = build(&config);
    gpa_t mcfg = find(mem, "MCFG");

    cr_assert_eq(image_u32(mem, mcfg + 4), 60);
    cr_assert_eq(image_u64(mem, mcfg + 44), 0xE0000000);
    cr_assert_eq(image_u32(mem, mcfg + 52), 0, "segment 0, bus 0 to 0");
}

Test(acpi, describes_only_the_devices_there_are)
{
    struct acpi_config none = {.n_cpus = 1}, all = full(1);
    struct guest_memory *mem = build(&none);

    cr_assert_not(dsdt_has(mem, "PCI0"));
    cr_assert_not(dsdt_has(mem, "COM1"));
    cr_assert_not(dsdt_has(mem, "QEMU0001"));
    cr_assert_not(dsdt_has(mem, "ACPI0013"));
    cr_assert_not(dsdt_has(mem, "ACPI0007"));
    cr_assert_eq(find(mem, "MCFG"), 0);
    mem = build(&all);
    cr_assert(dsdt_has(mem, "PCI0"));
    cr_assert(dsdt_has(mem, "COM1"));
    cr_assert(dsdt_has(mem, "QEMU0001"));
    cr_assert(dsdt_has(mem, "ACPI0007"));
    cr_assert(dsdt_has(mem, "ACPI0013"));
    cr_assert_neq(find(mem, "MCFG"), 0);
}

Test(acpi, for_thousands_of_processors_goes_to_the_top_of_low_memory)
{
    struct acpi_config config = full(4096);
    struct guest_memory *mem = build(&config);

    cr_assert_eq(tables.root, 0xE0000, "the RSDP stays where it is searched for");
    cr_assert_eq(tables.base + tables.size, 64 * MIB);
    cr_assert_neq(find(mem, "APIC"), 0);
    cr_assert(dsdt_has(mem, "CFFF"));
}

Test(acpi, for_too_many_processors_is_refused)
{
    struct acpi_config config = full(4097);
    struct guest_memory *mem = image_memory(64 * MIB);

    image_capture_log();
    cr_assert_eq(acpi_build(mem, &config, &tables), -EINVAL);
    cr_assert_str_eq(image_last_error(), "ACPI: tables for 4097 CPUs; 1 to 4096 can be described");
    config.n_cpus = 0;
    cr_assert_eq(acpi_build(mem, &config, &tables), -EINVAL);
}

Test(acpi, without_room_is_refused)
{
    struct acpi_config config = full(4096);
    struct guest_memory *mem = image_memory(MIB);

    image_capture_log();
    cr_assert_eq(acpi_build(mem, &config, &tables), -ENOMEM);
    cr_assert_str_eq(image_last_error(), "ACPI: no room for the tables of 4096 CPUs in the guest's "
                                         "1 MiB: Cannot allocate memory");
}

Test(acpi, is_the_same_each_time)
{
    struct acpi_config config = full(3);
    struct guest_memory *first = build(&config), *second = build(&config);

    cr_assert_arr_eq(memory_at(first, tables.base, tables.size),
                     memory_at(second, tables.base, tables.size), tables.size);
}

/* ---- iasl takes each table apart and puts it together again, without a complaint ---- */

static void run(const char *command)
{
    cr_assert_eq(system(command), 0, "%s", command);
}

static void check_by_iasl(struct guest_memory *mem, gpa_t table, const char *folder)
{
    uint32_t length = image_u32(mem, table + 4);
    char name[5] = {0}, command[512];
    FILE *file;

    image_get(mem, table, name, 4);
    snprintf(command, sizeof(command), "%s/%s.aml", folder, name);
    file = fopen(command, "we");
    cr_assert(file);
    cr_assert_eq(fwrite(memory_at(mem, table, length), 1, length, file), length);
    cr_assert_eq(fclose(file), 0);
    /* -oa: without optimizing, so that the bytes can be compared; -va: all but the summary, and
     * warnings of the disassembly are errors here. The header's end has the compiler's name. */
    snprintf(command, sizeof(command),
             "cd %s && iasl -d %s.aml >d.log 2>&1 && ! grep -qiE 'error|warning|remark' d.log && "
             "iasl -oa -p again %s.dsl >c.log 2>&1 && "
             "grep -q '0 Errors, 0 Warnings, 0 Remarks' c.log && "
             "cmp -s -i 36 again.aml %s.aml || { cat d.log c.log >&2; exit 1; }",
             folder, name, name, name);
    run(command);
}

static bool has_iasl(void)
{
    return system("command -v iasl >/dev/null") == 0;
}

static void check_all_by_iasl(const struct acpi_config *config)
{
    static const char *const names[] = {"FACP", "APIC", "MCFG"};
    struct guest_memory *mem = build(config);
    char folder[] = "/tmp/ferry-acpi-XXXXXX", command[64];

    if (!has_iasl())
        cr_skip_test("iasl (package acpica-tools) is not here");
    cr_assert(mkdtemp(folder));
    check_by_iasl(mem, find_dsdt(mem), folder);
    for (unsigned i = 0; i < 3; i++)
        if (find(mem, names[i]))
            check_by_iasl(mem, find(mem, names[i]), folder);
    snprintf(command, sizeof(command), "rm -r %s", folder);
    run(command);
}

Test(acpi_iasl, takes_the_full_machine)
{
    struct acpi_config config = full(2);

    check_all_by_iasl(&config);
}

Test(acpi_iasl, takes_a_machine_without_devices)
{
    struct acpi_config config = {.n_cpus = 1};

    check_all_by_iasl(&config);
}

Test(acpi_iasl, takes_a_machine_with_300_processors)
{
    struct acpi_config config = full(300);

    config.mmio64_size = 0;
    check_all_by_iasl(&config);
}

/* ---- the AML writer ---- */

static void check_aml(struct aml *aml, const void *bytes, size_t length)
{
    cr_assert_eq(aml_finish(aml), 0);
    cr_assert_eq(aml->length, length);
    cr_assert_arr_eq(aml->data, bytes, length);
    aml_fini(aml);
}

Test(aml, integers_take_the_fewest_bytes)
{
    struct aml aml;

    aml_init(&aml);
    aml_integer(&aml, 0);
    aml_integer(&aml, 1);
    aml_integer(&aml, 0xFF);
    aml_integer(&aml, 0x100);
    aml_integer(&aml, 0x10000);
    aml_integer(&aml, 0x100000000);
    check_aml(&aml, "\x00\x01\x0A\xFF\x0B\x00\x01\x0C\x00\x00\x01\x00"
                    "\x0E\x00\x00\x00\x00\x01\x00\x00\x00", 21);
}

Test(aml, paths_have_the_prefix_of_their_length)
{
    struct aml aml;

    aml_init(&aml);
    aml_path(&aml, "\\_SB_.PCI0");
    aml_path(&aml, "AAAA.BBBB.CCCC");
    check_aml(&aml, "\\\x2E_SB_PCI0\x2F\x03"
                    "AAAABBBBCCCC", 24);
}

Test(aml, ids_are_compressed_as_eisaid_has_it)
{
    struct aml aml;

    aml_init(&aml);
    aml_eisaid(&aml, "PNP0A03");
    check_aml(&aml, "\x0C\x41\xD0\x0A\x03", 5);
}

Test(aml, package_lengths_grow_with_the_content)
{
    static const size_t contents[] = {62, 63, 4093, 4094};
    static const uint8_t heads[][4] = {{0x3F}, {0x41, 0x04}, {0x4F, 0xFF}, {0x81, 0x00, 0x01}};
    static const size_t lengths[] = {1, 2, 2, 3};

    for (unsigned i = 0; i < 4; i++) {
        struct aml aml;

        aml_init(&aml);
        aml_if(&aml);
        for (size_t n = 0; n < contents[i]; n++)
            aml_op(&aml, AML_ONE);
        aml_end(&aml);
        cr_assert_eq(aml_finish(&aml), 0);
        cr_assert_eq(aml.length, 1 + lengths[i] + contents[i]);
        cr_assert_arr_eq(aml.data + 1, heads[i], lengths[i], "content %zu", contents[i]);
        aml_fini(&aml);
    }
}

Test(aml, left_open_is_an_error)
{
    struct aml aml;

    aml_init(&aml);
    aml_scope(&aml, "\\_SB_");
    cr_assert_eq(aml_finish(&aml), -EINVAL);
    aml_fini(&aml);
}

Test(aml, closed_too_often_is_an_error)
{
    struct aml aml;

    aml_init(&aml);
    aml_end(&aml);
    cr_assert_eq(aml_finish(&aml), -EINVAL);
    aml_fini(&aml);
}

Test(aml, nested_too_deep_is_an_error)
{
    struct aml aml;

    aml_init(&aml);
    for (unsigned i = 0; i <= AML_MAX_DEPTH; i++)
        aml_if(&aml);
    for (unsigned i = 0; i <= AML_MAX_DEPTH; i++)
        aml_end(&aml);
    cr_assert_eq(aml_finish(&aml), -EINVAL);
    aml_fini(&aml);
}

/* ---- the writer against iasl: the same ASL must give the same bytes ---- */

static const char reference_asl[] =
    "DefinitionBlock (\"\", \"DSDT\", 2, \"FERRY \", \"FERRYVM \", 1) {\n"
    "  Scope (\\_SB) {\n"
    "    Device (DEV0) {\n"
    "      Name (_HID, EisaId (\"PNP0A08\"))\n"
    "      Name (_CID, \"ACPI0013\")\n"
    "      Name (_CRS, ResourceTemplate () {\n"
    "        IO (Decode16, 0x3F8, 0x3F8, 1, 8)\n"
    "        IRQNoFlags () {4}\n"
    "        Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) {5}\n"
    "        Memory32Fixed (ReadWrite, 0xE0000000, 0x100000)\n"
    "        WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode,\n"
    "          0, 0, 7, 0, 8)\n"
    "        WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,\n"
    "          0, 0xD00, 0xFFFF, 0, 0xF300)\n"
    "        DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable,\n"
    "          ReadWrite, 0, 0xC0000000, 0xDFFFFFFF, 0, 0x20000000)\n"
    "        QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable,\n"
    "          ReadWrite, 0, 0x8000000000, 0x8FFFFFFFFF, 0, 0x1000000000)\n"
    "      })\n"
    "      Method (MTH0, 4, Serialized) {\n"
    "        CreateDWordField (Arg3, 8, CDW3)\n"
    "        If (LEqual (Arg0, ToUUID (\"33DB4D5B-1FF7-401C-9657-7441C03DD766\"))) {\n"
    "          And (CDW3, 0x1C, Local0)\n"
    "          If (LNot (LEqual (Local0, CDW3))) { Or (CDW3, 0x10, CDW3) }\n"
    "          Store (Local0, CDW3)\n"
    "        } Else { Notify (\\_SB.DEV0, 0x80) }\n"
    "        Return (Arg3)\n"
    "      }\n"
    "    }\n"
    "  }\n"
    "  Name (\\_S5, Package (4) {5, Zero, One, 0x12345678})\n"
    "}\n";

static void write_reference_method(struct aml *aml)
{
    aml_method(aml, "MTH0", 4, true);
    aml_create_dword_field(aml, AML_ARG3, 8, "CDW3");
    aml_if(aml);
    aml_op(aml, AML_LEQUAL);
    aml_op(aml, AML_ARG0);
    aml_uuid(aml, "33DB4D5B-1FF7-401C-9657-7441C03DD766");
    aml_op(aml, AML_AND);
    aml_path(aml, "CDW3");
    aml_integer(aml, 0x1C);
    aml_op(aml, AML_LOCAL0);
    aml_if(aml);
    aml_op(aml, AML_LNOT);
    aml_op(aml, AML_LEQUAL);
    aml_op(aml, AML_LOCAL0);
    aml_path(aml, "CDW3");
    aml_op(aml, AML_OR);
    aml_path(aml, "CDW3");
    aml_integer(aml, 0x10);
    aml_path(aml, "CDW3");
    aml_end(aml);
    aml_op(aml, AML_STORE);
    aml_op(aml, AML_LOCAL0);
    aml_path(aml, "CDW3");
    aml_end(aml);
    aml_else(aml);
    aml_op(aml, AML_NOTIFY);
    aml_path(aml, "\\_SB_.DEV0");
    aml_integer(aml, 0x80);
    aml_end(aml);
    aml_op(aml, AML_RETURN);
    aml_op(aml, AML_ARG3);
    aml_end(aml);
}

static void write_reference(struct aml *aml)
{
    struct aml_resources res = {0};

    aml_res_io(&res, 0x3F8, 8);
    aml_res_irq(&res, 4);
    aml_res_interrupt(&res, 5);
    aml_res_memory32_fixed(&res, 0xE0000000, 0x100000);
    aml_res_bus_window(&res, 0, 7);
    aml_res_io_window(&res, 0xD00, 0xF300);
    aml_res_memory32_window(&res, 0xC0000000, 0x20000000);
    aml_res_memory64_window(&res, 0x8000000000, 0x1000000000);
    aml_init(aml);
    aml_scope(aml, "\\_SB_");
    aml_device(aml, "DEV0");
    aml_name(aml, "_HID");
    aml_eisaid(aml, "PNP0A08");
    aml_name(aml, "_CID");
    aml_string(aml, "ACPI0013");
    aml_name(aml, "_CRS");
    aml_resources(aml, &res);
    write_reference_method(aml);
    aml_end(aml);
    aml_end(aml);
    aml_name(aml, "\\_S5_");
    aml_package(aml, 4);
    aml_integer(aml, 5);
    aml_integer(aml, 0);
    aml_integer(aml, 1);
    aml_integer(aml, 0x12345678);
    aml_end(aml);
}

Test(acpi_iasl, compiles_what_the_writer_writes_to_the_same_bytes)
{
    char folder[] = "/tmp/ferry-acpi-XXXXXX", text[256];
    struct aml aml;
    uint8_t *compiled = calloc(1, 4096);
    size_t length;
    FILE *file;

    if (!has_iasl())
        cr_skip_test("iasl (package acpica-tools) is not here");
    cr_assert(mkdtemp(folder));
    snprintf(text, sizeof(text), "%s/a.asl", folder);
    file = fopen(text, "we");
    cr_assert(file && fputs(reference_asl, file) >= 0 && fclose(file) == 0);
    snprintf(text, sizeof(text),
             "cd %s && { iasl -oa -p a a.asl >log 2>&1 || { cat log; false; }; }", folder);
    run(text);
    snprintf(text, sizeof(text), "%s/a.aml", folder);
    file = fopen(text, "re");
    cr_assert(file);
    length = fread(compiled, 1, 4096, file);
    fclose(file);
    write_reference(&aml);
    cr_assert_gt(length, 36);
    check_aml(&aml, compiled + 36, length - 36);
    free(compiled);
    snprintf(text, sizeof(text), "rm -r %s", folder);
    run(text);
}
