/*
 * The PCI bus: configuration accesses by both mechanisms, BARs that are sized, moved and laid over
 * each other, MSI-X, reset and state.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <linux/pci_regs.h>
#include <string.h>

#include "devices/pci/pci.h"
#include "tests/unit/fake_env.h"
#include "tests/unit/fake_pci.h"
#include "vmm/util/log.h"

#define TABLE_AT 0x4000
#define PBA_AT 0x5000
#define VECTORS 65

struct toy {
    struct device dev; /* for its state */
    struct pci_function *fn;
    uint64_t offset, value;
    uint64_t at; /* where BAR 0 answers; 0: nowhere */
    unsigned slot;
    unsigned reads, writes;
    unsigned maps, unmaps;
    unsigned cap_offset, cap_reads, cap_writes;
};

static struct fake_env fake;
static struct pci_bus *bus;
static struct device *bridge;
static struct toy a, b;

static uint64_t toy_read(void *opaque, uint64_t offset, unsigned size)
{
    struct toy *toy = opaque;

    (void)size;
    toy->reads++;
    toy->offset = offset;
    return 0x1122334455667788ull;
}

static void toy_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct toy *toy = opaque;

    (void)size;
    toy->writes++;
    toy->offset = offset;
    toy->value = value;
}

static const struct bus_ops toy_ops = {.read = toy_read, .write = toy_write};

static void toy_mapped(void *opaque, uint64_t gpa, bool mapped)
{
    struct toy *toy = opaque;

    if (mapped) {
        cr_assert_eq(toy->at, 0, "mapped twice");
        toy->maps++;
        toy->at = gpa;
    } else {
        cr_assert_eq(toy->at, gpa, "ceased where it did not answer");
        toy->unmaps++;
        toy->at = 0;
    }
}

static uint32_t toy_cap_read(void *opaque, unsigned offset, unsigned size, uint32_t value)
{
    struct toy *toy = opaque;

    (void)size;
    toy->cap_reads++;
    return offset == toy->cap_offset + 4 ? 0xC0DEC0DE : value;
}

static void toy_cap_write(void *opaque, unsigned offset, unsigned size, uint32_t value)
{
    struct toy *toy = opaque;

    (void)offset;
    (void)size;
    (void)value;
    toy->cap_writes++;
}

static int try_create(struct toy *toy, uint64_t bar_bytes, unsigned n_msix)
{
    struct pci_function_config config = {
        .name = "toy",
        .vendor_id = 0x1AF4,
        .device_id = 0x1055,
        .subsystem_vendor_id = 0x1AF4,
        .subsystem_id = 0x55,
        .revision = 1,
        .class_code = 0x00FF00,
        .bars[0] = {.size = bar_bytes, .ops = &toy_ops, .opaque = toy, .mapped = toy_mapped},
        .n_msix = n_msix,
        .msix_table_offset = TABLE_AT,
        .msix_pba_offset = PBA_AT,
        .cap_read = toy_cap_read,
        .cap_write = toy_cap_write,
        .opaque = toy,
    };
    int err;

    device_lock(&fake.env);
    err = pci_function_create(&toy->fn, bus, &config);
    if (!err)
        toy->slot = pci_function_slot(toy->fn);
    device_unlock(&fake.env);
    return err;
}

static void drop(struct toy *toy)
{
    device_lock(&fake.env);
    pci_function_destroy(toy->fn);
    device_unlock(&fake.env);
}

static void drop_line(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
}

static void set_up(void)
{
    log_set_sink(drop_line);
    fake_env_init(&fake, 4 * MIB);
    bridge = fake_pci_create(&fake, &bus);
    cr_assert_eq(try_create(&a, 32 * KIB, VECTORS), 0);
    cr_assert_eq(try_create(&b, 32 * KIB, 2), 0);
}

static void tear_down(void)
{
    drop(&b);
    drop(&a);
    device_destroy(bridge);
    fake_env_fini(&fake);
}

TestSuite(pci, .init = set_up, .fini = tear_down, .timeout = 60);

static uint32_t get(unsigned slot, unsigned offset, unsigned size)
{
    return fake_config_read(&fake, slot, offset, size);
}

static void put(unsigned slot, unsigned offset, unsigned size, uint32_t value)
{
    fake_config_write(&fake, slot, offset, size, value);
}

/* ---- configuration accesses ---- */

Test(pci, the_host_bridge_is_in_slot_0)
{
    cr_assert_eq(get(0, PCI_VENDOR_ID, 4), 0x00081B36);
    cr_assert_eq(get(0, PCI_CLASS_REVISION, 4) >> 8, 0x060000);
    cr_assert_eq(get(0, PCI_HEADER_TYPE, 1), 0);
}

Test(pci, functions_take_the_next_slots_and_show_their_ids)
{
    cr_assert_eq(a.slot, 1);
    cr_assert_eq(b.slot, 2);
    cr_assert_eq(get(1, PCI_VENDOR_ID, 2), 0x1AF4);
    cr_assert_eq(get(1, PCI_DEVICE_ID, 2), 0x1055);
    cr_assert_eq(get(1, PCI_CLASS_REVISION, 4), 0x00FF0001);
    cr_assert_eq(get(1, PCI_SUBSYSTEM_VENDOR_ID, 4), 0x00551AF4);
    cr_assert_eq(get(1, PCI_INTERRUPT_PIN, 1), 0, "there is no INTx");
}

Test(pci, absent_functions_read_as_all_ones)
{
    cr_assert_eq(get(3, PCI_VENDOR_ID, 4), 0xFFFFFFFF);
    cr_assert_eq(get(31, PCI_VENDOR_ID, 2), 0xFFFF);
    for (unsigned function = 1; function < 8; function++)
        cr_assert_eq(fake_mmio_read(&fake, FAKE_ECAM + (1 << 15) + (function << 12), 4),
                     0xFFFFFFFF);
    put(3, PCI_COMMAND, 2, 0xFFFF);
}

Test(pci, a_function_that_is_destroyed_leaves_its_slot)
{
    drop(&a);
    cr_assert_eq(get(1, PCI_VENDOR_ID, 4), 0xFFFFFFFF);
    a = (struct toy){0};
    cr_assert_eq(try_create(&a, 32 * KIB, 1), 0);
    cr_assert_eq(a.slot, 1);
}

Test(pci, bytes_and_words_are_read_out_of_registers)
{
    cr_assert_eq(get(1, PCI_VENDOR_ID, 1), 0xF4);
    cr_assert_eq(get(1, PCI_VENDOR_ID + 1, 1), 0x1A);
    cr_assert_eq(get(1, PCI_VENDOR_ID + 1, 2), 0x55 << 8 | 0x1A);
    cr_assert_eq(get(1, PCI_CLASS_REVISION + 3, 1), 0x00);
    cr_assert_eq(get(1, PCI_CLASS_REVISION + 2, 1), 0xFF);
    cr_assert_eq(fake_mmio_read(&fake, FAKE_ECAM + (1 << 15), 8) & 0xFFFFFFFF, 0x10551AF4);
    cr_assert_eq(fake_mmio_read(&fake, FAKE_ECAM + (1 << 15) + 8, 8) & 0xFFFFFFFF, 0x00FF0001);
}

Test(pci, an_access_across_registers_finds_nothing)
{
    cr_assert_eq(get(1, PCI_VENDOR_ID + 3, 2), 0xFFFF);
    cr_assert_eq(get(1, PCI_VENDOR_ID + 2, 4), 0xFFFFFFFF);
    cr_assert_eq(fake_mmio_read(&fake, FAKE_ECAM + (1 << 15) + 4, 8), UINT64_MAX);
    put(1, PCI_COMMAND - 1, 2, 0);
    cr_assert(get(1, PCI_COMMAND, 2) & PCI_COMMAND_MEMORY);
}

Test(pci, extended_space_is_there_and_empty)
{
    cr_assert_eq(get(1, 0x100, 4), 0);
    put(1, 0x100, 4, 0xFFFFFFFF);
    cr_assert_eq(get(1, 0x100, 4), 0);
    cr_assert_eq(get(1, 0xFFC, 4), 0);
}

Test(pci, identity_cannot_be_written)
{
    for (unsigned offset = 0; offset < PCI_CONFIG_BYTES; offset += 4)
        if (offset != PCI_COMMAND) /* keeps the BAR */
            put(1, offset, 4, 0xFFFFFFFF);
    cr_assert_eq(get(1, PCI_VENDOR_ID, 4), 0x10551AF4);
    cr_assert_eq(get(1, PCI_CLASS_REVISION, 4), 0x00FF0001);
    cr_assert_eq(get(1, PCI_SUBSYSTEM_VENDOR_ID, 4), 0x00551AF4);
    cr_assert_eq(get(1, PCI_STATUS, 2), PCI_STATUS_CAP_LIST);
    cr_assert_eq(get(1, PCI_INTERRUPT_LINE, 1), 0xFF, "software's own note");
    cr_assert_eq(get(1, PCI_BASE_ADDRESS_1, 4), 0, "no such BAR");
    cr_assert_eq(get(1, PCI_ROM_ADDRESS, 4), 0);
}

static uint32_t cf8_read(uint32_t address, unsigned port, unsigned size)
{
    fake_pio_write(&fake, 0xCF8, 4, address);
    return fake_pio_read(&fake, (uint16_t)port, size);
}

Test(pci, mechanism_1_reaches_the_same_registers)
{
    cr_assert_eq(cf8_read(0x80000000 | 1 << 11, 0xCFC, 4), 0x10551AF4);
    cr_assert_eq(cf8_read(0x80000000 | 1 << 11, 0xCFE, 2), 0x1055);
    cr_assert_eq(cf8_read(0x80000000 | 1 << 11, 0xCFF, 1), 0x10);
    cr_assert_eq(cf8_read(0x80000000 | 1 << 11 | PCI_CLASS_REVISION, 0xCFC, 4), 0x00FF0001);
    fake_pio_write(&fake, 0xCF8, 4, 0x80000000 | 1 << 11 | PCI_INTERRUPT_LINE);
    fake_pio_write(&fake, 0xCFC, 1, 0x77);
    cr_assert_eq(get(1, PCI_INTERRUPT_LINE, 1), 0x77);
}

Test(pci, mechanism_1_finds_nothing_elsewhere)
{
    cr_assert_eq(cf8_read(1 << 11, 0xCFC, 4), 0xFFFFFFFF, "not enabled");
    cr_assert_eq(cf8_read(0x80000000 | 1 << 16 | 1 << 11, 0xCFC, 4), 0xFFFFFFFF, "bus 1");
    cr_assert_eq(cf8_read(0x80000000 | 1 << 11 | 1 << 8, 0xCFC, 4), 0xFFFFFFFF, "function 1");
    cr_assert_eq(cf8_read(0x80000000 | 9 << 11, 0xCFC, 4), 0xFFFFFFFF, "slot 9");
    cr_assert_eq(cf8_read(0x80000000 | 1 << 11, 0xCFD, 4), 0xFFFFFFFF, "across registers");
    fake_pio_write(&fake, 0xCFD, 4, 0);
}

Test(pci, only_a_32_bit_access_reaches_config_address)
{
    fake_pio_write(&fake, 0xCF8, 4, 0xFFFFFFFF);
    cr_assert_eq(fake_pio_read(&fake, 0xCF8, 4), 0x80FFFFFC, "the rest is reserved");
    fake_pio_write(&fake, 0xCF8, 1, 0x10);
    fake_pio_write(&fake, 0xCF9, 1, 0x06);
    fake_pio_write(&fake, 0xCF8, 2, 0x10);
    cr_assert_eq(fake_pio_read(&fake, 0xCF8, 4), 0x80FFFFFC);
    cr_assert_eq(fake_pio_read(&fake, 0xCF9, 1), 0xFF);
}

Test(pci, a_machine_without_port_io_has_no_mechanism_1)
{
    struct pci_bus_config config = {
        .ecam = {.base = 0xE8000000, .size = 0x100000},
        .mmio32 = {.base = 0xD0000000, .size = 0x100000},
    };
    struct pci_bus *other;
    struct device *dev;

    device_lock(&fake.env);
    cr_assert_eq(pci_bus_create(&dev, &other, &fake.env, &config), 0);
    device_unlock(&fake.env);
    cr_assert_eq(fake_pio_read(&fake, 0, 4), 0xFFFFFFFF);
    device_destroy(dev);
}

Test(pci, a_bus_whose_windows_are_taken_is_refused)
{
    struct pci_bus_config config = {
        .ecam = {.base = 0xE8000000, .size = 0x100000},
        .mmio32 = {.base = 0xD0000000, .size = 0x100000},
        .config_port = FAKE_CONFIG_PORT,
    };
    struct pci_bus *other;
    struct device *dev;

    device_lock(&fake.env);
    cr_assert_eq(pci_bus_create(&dev, &other, &fake.env, &config), -EEXIST);
    device_unlock(&fake.env);
    cr_assert_eq(fake_mmio_read(&fake, 0xE8000000, 4), 0xFFFFFFFF, "what was added is gone");
}

/* ---- capabilities ---- */

Test(pci, has_a_pcie_capability_of_an_integrated_endpoint)
{
    unsigned cap = fake_find_cap(&fake, 1, PCI_CAP_ID_EXP, 0);

    cr_assert_neq(cap, 0);
    cr_assert_eq(get(1, cap + PCI_EXP_FLAGS, 2), 2 | PCI_EXP_TYPE_RC_END << 4);
    cr_assert_eq(get(1, cap + PCI_EXP_DEVCAP, 4), PCI_EXP_DEVCAP_RBER);
    cr_assert_eq(fake_find_cap(&fake, 0, PCI_CAP_ID_EXP, 0), 0, "the host bridge has none");
}

Test(pci, own_capabilities_are_linked_and_hooked)
{
    const uint8_t body[6] = {8, 1, 2, 3, 4, 5};
    const uint8_t writable[6] = {0, 0, 0xFF, 0x0F, 0, 0};
    int at, second;

    device_lock(&fake.env);
    at = pci_function_add_cap(a.fn, 9, body, sizeof(body), writable);
    second = pci_function_add_cap(a.fn, 9, body, sizeof(body), NULL);
    device_unlock(&fake.env);
    cr_assert_gt(at, 0);
    a.cap_offset = (unsigned)at;
    cr_assert_eq(fake_find_cap(&fake, 1, 9, 0), (unsigned)at);
    cr_assert_eq(fake_find_cap(&fake, 1, 9, 1), (unsigned)second);
    cr_assert_eq(get(1, a.cap_offset + 2, 1), 8);
    a.cap_reads = 0;
    cr_assert_eq(get(1, a.cap_offset + 4, 4), 0xC0DEC0DE, "the hook's value");
    cr_assert_eq(get(1, PCI_VENDOR_ID, 4), 0x10551AF4);
    cr_assert_eq(a.cap_reads, 1);
    put(1, a.cap_offset + 4, 4, 0xFFFFFFFF);
    cr_assert_eq(a.cap_writes, 1);
    device_lock(&fake.env);
    cr_assert_eq(pci_function_config(a.fn, a.cap_offset + 4), 0x05040FFF, "what is writable");
    device_unlock(&fake.env);
    put(1, PCI_INTERRUPT_LINE, 1, 0);
    cr_assert_eq(a.cap_writes, 1, "other registers have no hook");
}

Test(pci, capabilities_that_do_not_fit_are_refused)
{
    uint8_t body[60] = {0};
    int at;

    device_lock(&fake.env);
    do
        at = pci_function_add_cap(a.fn, 9, body, sizeof(body), NULL);
    while (at > 0);
    device_unlock(&fake.env);
    cr_assert_eq(at, -ENOSPC);
    cr_assert_neq(fake_find_cap(&fake, 1, 9, 0), 0);
    cr_assert_eq(fake_find_cap(&fake, 1, 9, 1), 0, "behind 60 and 12 bytes there is room for one");
    cr_assert_eq(get(1, PCI_VENDOR_ID, 4), 0x10551AF4);
}

/* ---- BARs ---- */

Test(pci, bars_are_placed_in_the_window_and_answer_from_the_start)
{
    cr_assert_eq(fake_bar(&fake, 1, 0), FAKE_WINDOW);
    cr_assert_eq(fake_bar(&fake, 2, 0), FAKE_WINDOW + 32 * KIB);
    cr_assert_eq(a.at, FAKE_WINDOW);
    cr_assert_eq(fake_mmio_read(&fake, FAKE_WINDOW + 0x10, 4), 0x55667788);
    cr_assert_eq(a.offset, 0x10);
    fake_mmio_write(&fake, b.at + 0x7FF8, 8, 42);
    cr_assert_eq(b.value, 42);
}

Test(pci, a_bar_is_aligned_to_its_size)
{
    struct toy large = {0};

    cr_assert_eq(try_create(&large, MIB, 0), 0);
    cr_assert_eq(large.at, FAKE_WINDOW + MIB);
    drop(&large);
}

Test(pci, all_ones_written_to_a_bar_tell_its_size)
{
    fake_set_command(&fake, 1, 0);
    put(1, PCI_BASE_ADDRESS_0, 4, 0xFFFFFFFF);
    cr_assert_eq(get(1, PCI_BASE_ADDRESS_0, 4), 0xFFFF8000);
    put(1, PCI_BASE_ADDRESS_0, 4, (uint32_t)FAKE_WINDOW);
    fake_set_command(&fake, 1, PCI_COMMAND_MEMORY);
    cr_assert_eq(a.at, FAKE_WINDOW);
}

Test(pci, memory_decoding_switches_a_bar_off_and_on)
{
    fake_set_command(&fake, 1, PCI_COMMAND_MASTER);
    cr_assert_eq(a.at, 0);
    cr_assert_eq(fake_mmio_read(&fake, FAKE_WINDOW, 4), 0xFFFFFFFF);
    cr_assert_eq(a.reads, 0);
    cr_assert_neq(b.at, 0, "the other's is as it was");
    cr_assert_eq(b.unmaps, 0);
    fake_set_command(&fake, 1, PCI_COMMAND_MASTER | PCI_COMMAND_MEMORY);
    cr_assert_eq(a.at, FAKE_WINDOW);
}

Test(pci, a_bar_moves_where_it_is_written)
{
    put(1, PCI_BASE_ADDRESS_0, 4, 0xD0000000);
    cr_assert_eq(a.at, 0xD0000000);
    cr_assert_eq(fake_mmio_read(&fake, FAKE_WINDOW, 4), 0xFFFFFFFF);
    cr_assert_eq(fake_mmio_read(&fake, 0xD0007FFC, 4), 0x55667788);
}

Test(pci, a_bar_written_by_bytes_moves)
{
    put(1, PCI_BASE_ADDRESS_0 + 3, 1, 0xD1);
    cr_assert_eq(a.at, 0xD1000000);
}

Test(pci, a_write_that_changes_nothing_maps_nothing_anew)
{
    put(1, PCI_BASE_ADDRESS_0, 4, (uint32_t)FAKE_WINDOW);
    cr_assert_eq(a.maps, 1);
    cr_assert_eq(a.unmaps, 0);
}

Test(pci, a_bar_outside_of_the_window_does_not_answer)
{
    /* RAM, below and above the window, the ECAM, the interrupt controllers, the end. */
    static const uint32_t bases[] = {0, 0x100000, 0xBFFF8000, 0xE0000000, 0xFEC00000, 0xFEE00000,
                                     0xFFFF8000};

    for (size_t i = 0; i < sizeof(bases) / sizeof(bases[0]); i++) {
        put(1, PCI_BASE_ADDRESS_0, 4, bases[i]);
        cr_assert_eq(a.at, 0, "at %#x", bases[i]);
    }
    cr_assert_eq(get(1, PCI_VENDOR_ID, 4), 0x10551AF4, "the ECAM still answers");
    put(1, PCI_BASE_ADDRESS_0, 4, 0xDFFF8000);
    cr_assert_eq(a.at, 0xDFFF8000, "the window's last");
}

Test(pci, of_overlapping_bars_only_the_lower_slot_answers)
{
    uint64_t home = b.at;

    put(2, PCI_BASE_ADDRESS_0, 4, (uint32_t)FAKE_WINDOW);
    cr_assert_eq(a.at, FAKE_WINDOW);
    cr_assert_eq(b.at, 0);
    put(2, PCI_BASE_ADDRESS_0, 4, (uint32_t)home);
    cr_assert_eq(b.at, home);
    put(1, PCI_BASE_ADDRESS_0, 4, (uint32_t)home);
    cr_assert_eq(a.at, home);
    cr_assert_eq(b.at, 0, "it gives way");
    fake_set_command(&fake, 1, 0);
    cr_assert_eq(b.at, home, "and answers again when the other is silent");
}

Test(pci, bars_can_change_places)
{
    uint64_t home_a = a.at, home_b = b.at;

    put(1, PCI_BASE_ADDRESS_0, 4, (uint32_t)home_b);
    put(2, PCI_BASE_ADDRESS_0, 4, (uint32_t)home_a);
    cr_assert_eq(a.at, home_b);
    cr_assert_eq(b.at, home_a);
}

Test(pci, a_chip_in_the_window_wins_over_a_bar)
{
    struct toy chip = {0};
    struct bus_region region = {
        .name = "chip", .base = 0xD0000000, .size = 16, .ops = &toy_ops, .opaque = &chip};

    device_lock(&fake.env);
    cr_assert_eq(bus_add(fake.env.mmio, &region), 0);
    device_unlock(&fake.env);
    put(1, PCI_BASE_ADDRESS_0, 4, 0xD0000000);
    cr_assert_eq(a.at, 0);
    fake_mmio_write(&fake, 0xD0000000, 4, 1);
    cr_assert_eq(chip.writes, 1);
    device_lock(&fake.env);
    bus_remove(fake.env.mmio, &region);
    device_unlock(&fake.env);
}

Test(pci, a_bar_is_reached_by_name_while_it_does_not_answer)
{
    fake_set_command(&fake, 1, 0);
    device_lock(&fake.env);
    cr_assert_eq(pci_function_bar_read(a.fn, 0, 8, 2), 0x7788);
    pci_function_bar_write(a.fn, 0, 0x7FFF, 1, 0x155);
    cr_assert_eq(a.value, 0x55);
    cr_assert_eq(pci_function_bar_read(a.fn, 0, 0x7FFE, 4), 0xFFFFFFFF, "past its end");
    cr_assert_eq(pci_function_bar_read(a.fn, 1, 0, 4), 0xFFFFFFFF, "no such BAR");
    cr_assert_eq(pci_function_bar_read(a.fn, 255, 0, 4), 0xFFFFFFFF, "nor such number");
    pci_function_bar_write(a.fn, 0, UINT64_MAX, 4, 0);
    device_unlock(&fake.env);
    cr_assert_eq(a.reads + a.writes, 2);
}

Test(pci, a_full_window_is_told)
{
    struct device *dev;
    struct pci_bus *small;
    struct toy toys[3] = {0};

    drop(&b);
    drop(&a);
    device_destroy(bridge);
    dev = fake_pci_create_sized(&fake, &small, 64 * KIB);
    bus = small;
    cr_assert_eq(try_create(&toys[0], 32 * KIB, 0), 0);
    cr_assert_eq(try_create(&toys[1], 32 * KIB, 0), 0);
    cr_assert_eq(try_create(&toys[2], 4 * KIB, 0), -ENOSPC);
    drop(&toys[1]);
    drop(&toys[0]);
    device_destroy(dev);
    bridge = fake_pci_create(&fake, &bus);
    cr_assert_eq(try_create(&a, 32 * KIB, VECTORS), 0);
    cr_assert_eq(try_create(&b, 32 * KIB, 2), 0);
}

Test(pci, a_full_bus_is_told)
{
    struct toy toys[PCI_SLOTS] = {0};

    for (unsigned slot = 3; slot < PCI_SLOTS; slot++) {
        cr_assert_eq(try_create(&toys[slot], 4 * KIB, 0), 0);
        cr_assert_eq(toys[slot].slot, slot);
    }
    cr_assert_eq(try_create(&toys[0], 4 * KIB, 0), -ENOSPC);
    for (unsigned slot = 3; slot < PCI_SLOTS; slot++)
        drop(&toys[slot]);
}

/* ---- MSI-X ---- */

static unsigned msix_cap(void)
{
    return fake_find_cap(&fake, 1, PCI_CAP_ID_MSIX, 0);
}

static void msix_control(uint16_t value)
{
    put(1, msix_cap() + PCI_MSIX_FLAGS, 2, value);
}

static void program(unsigned vector, uint64_t address, uint32_t data, uint32_t control)
{
    uint64_t entry = a.at + TABLE_AT + vector * PCI_MSIX_ENTRY_SIZE;

    fake_mmio_write(&fake, entry + PCI_MSIX_ENTRY_LOWER_ADDR, 4, (uint32_t)address);
    fake_mmio_write(&fake, entry + PCI_MSIX_ENTRY_UPPER_ADDR, 4, (uint32_t)(address >> 32));
    fake_mmio_write(&fake, entry + PCI_MSIX_ENTRY_DATA, 4, data);
    fake_mmio_write(&fake, entry + PCI_MSIX_ENTRY_VECTOR_CTRL, 4, control);
}

static void mask(unsigned vector, bool masked)
{
    fake_mmio_write(&fake, a.at + TABLE_AT + vector * PCI_MSIX_ENTRY_SIZE +
                               PCI_MSIX_ENTRY_VECTOR_CTRL, 4, masked);
}

static void raise_vector(unsigned vector)
{
    device_lock(&fake.env);
    pci_msix_raise(a.fn, vector);
    device_unlock(&fake.env);
}

static uint64_t pending(unsigned word)
{
    return fake_mmio_read(&fake, a.at + PBA_AT + 8 * word, 8);
}

Test(pci, the_msix_capability_names_table_and_pba)
{
    unsigned cap = msix_cap();

    cr_assert_neq(cap, 0);
    cr_assert_eq(get(1, cap + PCI_MSIX_FLAGS, 2), VECTORS - 1);
    cr_assert_eq(get(1, cap + PCI_MSIX_TABLE, 4), TABLE_AT);
    cr_assert_eq(get(1, cap + PCI_MSIX_PBA, 4), PBA_AT);
    msix_control(0xFFFF);
    cr_assert_eq(get(1, cap + PCI_MSIX_FLAGS, 2), 0xC000 | (VECTORS - 1));
    cr_assert_eq(fake_find_cap(&fake, 0, PCI_CAP_ID_MSIX, 0), 0);
}

Test(pci, the_host_gives_no_vector_before_an_entry_can_deliver)
{
    program(0, 0xFEE00000, 0x41, 0);
    cr_assert_eq(fake.msi_allocs, 0, "MSI-X is off");
    msix_control(PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
    cr_assert_eq(fake.msi_allocs, 0, "all are masked");
    msix_control(PCI_MSIX_FLAGS_ENABLE);
    cr_assert_eq(fake.msi_allocs, 1, "the others are masked one by one");
    program(7, 0xFEE00000, 0x48, 0);
    cr_assert_eq(fake.msi_allocs, 2);
}

Test(pci, a_vector_is_delivered_with_its_message)
{
    msix_control(PCI_MSIX_FLAGS_ENABLE);
    program(VECTORS - 1, 0x1FEE01000, 0x51, 0);
    raise_vector(VECTORS - 1);
    cr_assert_eq(fake_msi_take(&fake, 0x51), 1);
    cr_assert_eq(fake.msis[0].address, 0x1FEE01000);
    cr_assert_eq(pending(1), 0);
}

Test(pci, the_message_is_handed_over_when_the_entry_is_unmasked)
{
    msix_control(PCI_MSIX_FLAGS_ENABLE);
    program(0, 0xFEE00000, 0x41, 0);
    cr_assert_eq(fake.msis[0].updates, 1);
    mask(0, true);
    program(0, 0xFEE02000, 0x42, 1);
    cr_assert_eq(fake.msis[0].updates, 1);
    mask(0, false);
    cr_assert_eq(fake.msis[0].updates, 2);
    cr_assert_eq(fake.msis[0].address, 0xFEE02000);
    cr_assert_eq(fake.msis[0].data, 0x42);
    mask(0, true);
    mask(0, false);
    cr_assert_eq(fake.msis[0].updates, 2, "the message is the same");
}

Test(pci, a_message_changed_while_it_is_live_counts_at_once)
{
    msix_control(PCI_MSIX_FLAGS_ENABLE);
    program(0, 0xFEE00000, 0x41, 0);
    fake_mmio_write(&fake, a.at + TABLE_AT + PCI_MSIX_ENTRY_DATA, 4, 0x99);
    raise_vector(0);
    cr_assert_eq(fake_msi_take(&fake, 0x99), 1);
}

Test(pci, a_masked_vector_is_pending_until_it_is_unmasked)
{
    msix_control(PCI_MSIX_FLAGS_ENABLE);
    program(3, 0xFEE00000, 0x44, 1);
    raise_vector(3);
    raise_vector(3);
    cr_assert_eq(pending(0), 1 << 3);
    cr_assert_eq(fake_mmio_read(&fake, a.at + PBA_AT, 4), 1 << 3);
    cr_assert_eq(fake_mmio_read(&fake, a.at + PBA_AT + 4, 4), 0);
    mask(3, false);
    cr_assert_eq(fake_msi_take(&fake, 0x44), 1, "once");
    cr_assert_eq(pending(0), 0);
}

Test(pci, the_function_mask_holds_all_vectors_back)
{
    msix_control(PCI_MSIX_FLAGS_ENABLE);
    program(0, 0xFEE00000, 0x41, 0);
    program(64, 0xFEE00000, 0x42, 0);
    msix_control(PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
    raise_vector(0);
    raise_vector(64);
    cr_assert_eq(fake_msi_take(&fake, 0x41) + fake_msi_take(&fake, 0x42), 0);
    cr_assert_eq(pending(0), 1);
    cr_assert_eq(pending(1), 1);
    msix_control(PCI_MSIX_FLAGS_ENABLE);
    cr_assert_eq(fake_msi_take(&fake, 0x41), 1);
    cr_assert_eq(fake_msi_take(&fake, 0x42), 1);
}

Test(pci, with_msix_off_nothing_is_delivered_or_remembered)
{
    program(0, 0xFEE00000, 0x41, 0);
    raise_vector(0);
    msix_control(PCI_MSIX_FLAGS_ENABLE);
    cr_assert_eq(fake_msi_take(&fake, 0x41), 0);
    mask(0, true);
    raise_vector(0);
    msix_control(0);
    cr_assert_eq(pending(0), 0);
    device_lock(&fake.env);
    cr_assert_not(pci_msix_enabled(a.fn));
    device_unlock(&fake.env);
}

Test(pci, a_vector_that_the_function_does_not_have_is_ignored)
{
    msix_control(PCI_MSIX_FLAGS_ENABLE);
    raise_vector(VECTORS);
    raise_vector(UINT32_MAX);
    cr_assert_eq(pending(0) | pending(1), 0);
}

Test(pci, a_host_without_vectors_is_asked_once)
{
    fake.msi_alloc_error = -ENOSPC;
    msix_control(PCI_MSIX_FLAGS_ENABLE);
    program(0, 0xFEE00000, 0x41, 0);
    for (int i = 0; i < 10; i++) {
        mask(0, true);
        mask(0, false);
    }
    cr_assert_eq(fake.msi_allocs, 1);
    raise_vector(0);
    fake.msi_alloc_error = 0;
    device_lock(&fake.env);
    pci_function_reset(a.fn);
    device_unlock(&fake.env);
    msix_control(PCI_MSIX_FLAGS_ENABLE);
    program(0, 0xFEE00000, 0x41, 0);
    cr_assert_eq(fake.msi_allocs, 2, "a reset gives it another chance");
}

Test(pci, a_message_that_the_host_refuses_silences_its_vector_alone)
{
    msix_control(PCI_MSIX_FLAGS_ENABLE);
    program(0, 0xFEE00000, 0x41, 0);
    fake.msi_update_error = -EINVAL;
    program(1, 0xDEADBEEF000, 0xFFFFFFFF, 0);
    fake.msi_update_error = 0;
    raise_vector(1);
    raise_vector(0);
    cr_assert_eq(fake_msi_take(&fake, 0x41), 1);
    cr_assert_eq(fake_msi_take(&fake, 0xFFFFFFFF), 0);
}

Test(pci, table_accesses_of_odd_size_or_place_do_nothing)
{
    uint64_t table = a.at + TABLE_AT;

    program(0, 0xFEE00000, 0x41, 1);
    fake_mmio_write(&fake, table, 1, 0xFF);
    fake_mmio_write(&fake, table, 2, 0xFFFF);
    fake_mmio_write(&fake, table + 2, 4, 0xFFFFFFFF);
    fake_mmio_write(&fake, table + 4, 8, UINT64_MAX);
    cr_assert_eq(fake_mmio_read(&fake, table, 4), 0xFEE00000);
    cr_assert_eq(fake_mmio_read(&fake, table + 8, 4), 0x41);
    cr_assert_eq(fake_mmio_read(&fake, table + 1, 1), 0xFF);
    cr_assert_eq(fake_mmio_read(&fake, table + 2, 4), 0xFFFFFFFF);
    cr_assert_eq(a.reads + a.writes, 0, "the device sees none of it");
}

Test(pci, table_accesses_of_8_bytes_work)
{
    uint64_t table = a.at + TABLE_AT;

    msix_control(PCI_MSIX_FLAGS_ENABLE);
    fake_mmio_write(&fake, table + 16, 8, 0x1FEE00000ull);
    fake_mmio_write(&fake, table + 24, 8, 0x42);
    cr_assert_eq(fake_mmio_read(&fake, table + 16, 8), 0x1FEE00000ull);
    raise_vector(1);
    cr_assert_eq(fake_msi_take(&fake, 0x42), 1);
}

Test(pci, table_and_pba_end_where_they_should)
{
    fake_mmio_write(&fake, a.at + TABLE_AT + VECTORS * 16, 4, 1);
    cr_assert_eq(a.writes, 1, "behind the table the device answers");
    fake_mmio_write(&fake, a.at + PBA_AT, 8, UINT64_MAX);
    fake_mmio_write(&fake, a.at + PBA_AT + 8, 8, UINT64_MAX);
    cr_assert_eq(a.writes, 1, "the PBA is read-only");
    cr_assert_eq(pending(0) | pending(1), 0);
    fake_mmio_write(&fake, a.at + PBA_AT + 16, 8, 1);
    cr_assert_eq(a.writes, 2);
}

Test(pci, reserved_bits_of_an_entry_stay_zero)
{
    program(0, UINT64_MAX, 0xFFFFFFFF, 0xFFFFFFFF);
    cr_assert_eq(fake_mmio_read(&fake, a.at + TABLE_AT, 8), 0xFFFFFFFFFFFFFFFCull);
    cr_assert_eq(fake_mmio_read(&fake, a.at + TABLE_AT + 8, 8), 0x1FFFFFFFFull);
}

/* ---- reset ---- */

Test(pci, reset_restores_the_power_on_state_and_frees_vectors)
{
    put(1, PCI_BASE_ADDRESS_0, 4, 0xD0000000);
    put(1, PCI_INTERRUPT_LINE, 1, 9);
    msix_control(PCI_MSIX_FLAGS_ENABLE);
    program(0, 0xFEE00000, 0x41, 0);
    mask(1, true);
    raise_vector(1);
    device_lock(&fake.env);
    pci_function_reset(a.fn);
    device_unlock(&fake.env);
    cr_assert_eq(fake.n_msis, 0);
    cr_assert_eq(a.at, FAKE_WINDOW);
    cr_assert_eq(get(1, PCI_INTERRUPT_LINE, 1), 0);
    cr_assert_eq(get(1, msix_cap() + PCI_MSIX_FLAGS, 2), VECTORS - 1);
    cr_assert_eq(fake_mmio_read(&fake, a.at + TABLE_AT, 8), 0);
    cr_assert_eq(fake_mmio_read(&fake, a.at + TABLE_AT + 12, 4), 1);
    cr_assert_eq(pending(0), 0);
}

Test(pci, the_bridges_reset_clears_config_address)
{
    fake_pio_write(&fake, 0xCF8, 4, 0x80000800);
    device_lock(&fake.env);
    device_reset(bridge);
    device_unlock(&fake.env);
    cr_assert_eq(fake_pio_read(&fake, 0xCF8, 4), 0);
}

/* ---- state ---- */

static unsigned toy_state(struct device *dev, struct state_part *parts)
{
    pci_function_state(((struct toy *)dev)->fn, parts);
    return 1;
}

static const struct device_ops toy_device_ops = {.type = "toy", .state = toy_state};

static void save(struct toy *toy, struct state_buffer *out)
{
    toy->dev = (struct device){.ops = &toy_device_ops, .id = "toy"};
    fake_save(&fake, &toy->dev, out);
}

static int load(struct toy *toy, const struct state_buffer *from)
{
    toy->dev = (struct device){.ops = &toy_device_ops, .id = "toy"};
    return fake_load(&fake, &toy->dev, from);
}

static void reset(struct toy *toy)
{
    device_lock(&fake.env);
    pci_function_reset(toy->fn);
    device_unlock(&fake.env);
}

Test(pci, a_function_goes_on_where_the_saved_one_stood)
{
    struct state_buffer buffer;

    put(1, PCI_BASE_ADDRESS_0, 4, 0xD0000000);
    put(1, PCI_INTERRUPT_LINE, 1, 9);
    msix_control(PCI_MSIX_FLAGS_ENABLE);
    program(5, 0xFEE00000, 0x41, 0);
    program(64, 0xFEE00000, 0x42, 1);
    raise_vector(64);
    save(&a, &buffer);
    reset(&a);
    cr_assert_eq(load(&a, &buffer), 0);
    state_buffer_fini(&buffer);
    cr_assert_eq(a.at, 0xD0000000);
    cr_assert_eq(get(1, PCI_INTERRUPT_LINE, 1), 9);
    cr_assert_eq(fake.n_msis, 1);
    raise_vector(5);
    cr_assert_eq(fake_msi_take(&fake, 0x41), 1);
    cr_assert_eq(pending(1), 1);
    mask(64, false);
    cr_assert_eq(fake_msi_take(&fake, 0x42), 1);
}

Test(pci, a_vector_pending_and_unmasked_is_delivered_by_the_load)
{
    struct state_buffer buffer;

    msix_control(PCI_MSIX_FLAGS_ENABLE);
    program(0, 0xFEE00000, 0x41, 1);
    raise_vector(0);
    save(&a, &buffer);
    reset(&a);
    /* Vector control stands behind head, configuration space and three words. */
    buffer.data[2 + 12 + 2 + 4 + 256 + 12] = 0;
    cr_assert_eq(load(&a, &buffer), 0);
    state_buffer_fini(&buffer);
    cr_assert_eq(fake_msi_take(&fake, 0x41), 1);
}

/* Loads a saved with one byte of the payload changed by `bits`. */
static int load_spoiled(size_t at, uint8_t bits)
{
    struct state_buffer buffer;
    int err;

    save(&a, &buffer);
    buffer.data[2 + 12 + 2 + 4 + at] ^= bits; /* head: lengths, "pci-function", version */
    err = load(&a, &buffer);
    state_buffer_fini(&buffer);
    return err;
}

Test(pci, the_state_of_another_function_is_refused_whatever_differs)
{
    for (size_t at = 0; at < 256; at++) {
        uint8_t identity[] = {1, 0x10, 0x80};

        for (size_t i = 0; i < sizeof(identity); i++) {
            uint32_t before = get(1, (unsigned)at & ~3u, 4);
            int err = load_spoiled(at, identity[i]);
            uint32_t after = get(1, (unsigned)at & ~3u, 4);

            if (err)
                cr_assert_eq(err, -EINVAL);
            cr_assert_eq(before == after, err != 0, "byte %zu", at);
            reset(&a);
        }
    }
    cr_assert_eq(load_spoiled(PCI_VENDOR_ID, 1), -EINVAL);
    cr_assert_eq(load_spoiled(PCI_CAPABILITY_LIST, 4), -EINVAL);
    cr_assert_eq(load_spoiled(PCI_INTERRUPT_LINE, 1), 0);
}

Test(pci, an_impossible_msix_state_is_refused)
{
    size_t table = 256;
    size_t words = table + PCI_MSIX_MAX * 16;

    cr_assert_eq(load_spoiled(table, 1), -EINVAL, "the address is not aligned");
    cr_assert_eq(load_spoiled(table + 12, 2), -EINVAL, "a control bit that does not exist");
    cr_assert_eq(load_spoiled(table + 15, 0x80), -EINVAL, "another one");
    cr_assert_eq(load_spoiled(words + 8, 2), -EINVAL, "vector 65 is pending");
    cr_assert_eq(load_spoiled(words + 15, 0x80), -EINVAL, "vector 127, too");
    cr_assert_eq(load_spoiled(words + 8, 1), 0, "vector 64 may be");
}

Test(pci, msix_entries_that_the_function_does_not_have_must_be_empty)
{
    struct state_buffer buffer;

    save(&b, &buffer);
    buffer.data[2 + 12 + 2 + 4 + 256 + 2 * 16 + 8] = 1; /* entry 2, data */
    cr_assert_eq(load(&b, &buffer), -EINVAL);
    state_buffer_fini(&buffer);
}

Test(pci, the_bridge_saves_config_address)
{
    struct state_buffer buffer;

    fake_pio_write(&fake, 0xCF8, 4, 0x80000808);
    fake_save(&fake, bridge, &buffer);
    fake_pio_write(&fake, 0xCF8, 4, 0);
    cr_assert_eq(fake_load(&fake, bridge, &buffer), 0);
    cr_assert_eq(fake_pio_read(&fake, 0xCFC, 4), 0x00FF0001);
    buffer.data[2 + 7 + 2 + 4] = 1; /* a reserved bit */
    fake_pio_write(&fake, 0xCF8, 4, 0);
    cr_assert_eq(fake_load(&fake, bridge, &buffer), -EINVAL);
    cr_assert_eq(fake_pio_read(&fake, 0xCF8, 4), 0);
    state_buffer_fini(&buffer);
}
