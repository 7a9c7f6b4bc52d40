/*
 * The PCI bus under any sequence of configuration accesses, by ECAM and by mechanism #1, and of
 * accesses to BARs, which move under them.
 *
 * Throughout, BARs that answer lie in the window and do not overlap, each answers where it says,
 * and a function's identity does not change. Its state can be saved and loaded at any time.
 */
#include <linux/pci_regs.h>
#include <stddef.h>
#include <string.h>

#include "devices/pci/pci.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/machine.h"

#define TOYS 3
#define MAX_ROUND_TRIPS 2 /* an input: each takes as long as hundreds of accesses */

struct toy {
    struct device dev;
    struct pci_function *fn;
    struct {
        struct toy *toy;
        uint64_t at; /* 0: does not answer */
        uint64_t size;
    } bars[2];
    unsigned own_cap;
};

static struct fuzz_machine m;
static struct toy toys[TOYS];
static unsigned round_trips; /* of this input */

static uint64_t toy_read(void *opaque, uint64_t offset, unsigned size)
{
    (void)opaque;
    return offset + size;
}

static void toy_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct toy *toy = *(struct toy **)opaque; /* a BAR begins with it */

    (void)offset;
    (void)size;
    pci_msix_raise(toy->fn, (unsigned)value);
}

static const struct bus_ops toy_ops = {.read = toy_read, .write = toy_write};

static void mapped(void *opaque, uint64_t gpa, bool is_mapped)
{
    uint64_t *at = (uint64_t *)((struct toy **)opaque + 1);

    FUZZ_CHECK(is_mapped ? *at == 0 : *at == gpa);
    *at = is_mapped ? gpa : 0;
}

static uint32_t cap_read(void *opaque, unsigned offset, unsigned size, uint32_t value)
{
    (void)opaque;
    FUZZ_CHECK(offset + size <= 256);
    return value;
}

static void cap_write(void *opaque, unsigned offset, unsigned size, uint32_t value)
{
    (void)opaque;
    (void)value;
    FUZZ_CHECK(offset + size <= 256);
}

static unsigned toy_state(struct device *dev, struct state_part *parts)
{
    pci_function_state(((struct toy *)dev)->fn, parts);
    return 1;
}

static void toy_reset(struct device *dev)
{
    pci_function_reset(((struct toy *)dev)->fn);
}

static const struct device_ops toy_device_ops = {
    .type = "toy", .state = toy_state, .reset = toy_reset};

static void make_toy(struct toy *toy, unsigned n_msix)
{
    static const uint8_t body[18] = {20, 1}, writable[18] = {0, 0, 0xFF, 0, 0xFF, 0xFF, 0x0F};
    struct pci_function_config config = {
        .name = "toy",
        .vendor_id = 0x1AF4,
        .device_id = 0x1040,
        .class_code = 0x00FF00,
        .n_msix = n_msix,
        .msix_table_offset = 0x4000,
        .msix_pba_offset = 0x5000,
        .cap_read = cap_read,
        .cap_write = cap_write,
        .opaque = toy,
    };

    toy->dev = (struct device){.ops = &toy_device_ops, .id = "toy"};
    for (int i = 0; i < 2; i++) {
        toy->bars[i].toy = toy;
        toy->bars[i].size = i == 0 ? 0x8000 : 0x1000;
        config.bars[i] = (struct pci_bar){.size = toy->bars[i].size, .ops = &toy_ops,
                                          .opaque = &toy->bars[i], .mapped = mapped};
    }
    FUZZ_CHECK(pci_function_create(&toy->fn, m.pci, &config) == 0);
    toy->own_cap = (unsigned)pci_function_add_cap(toy->fn, 9, body, sizeof(body), writable);
}

static void check_toy(const struct toy *toy)
{
    unsigned slot = pci_function_slot(toy->fn);

    FUZZ_CHECK(fuzz_config_read(&m, slot, PCI_VENDOR_ID, 4) == 0x10401AF4);
    FUZZ_CHECK(fuzz_config_read(&m, slot, PCI_CLASS_REVISION, 4) == 0x00FF0000);
    FUZZ_CHECK(fuzz_config_read(&m, slot, toy->own_cap + 2, 2) == 0x0114);
}

static void check_bars(void)
{
    uint64_t end = 0;

    /* All pairs: none begins inside of another. */
    for (int i = 0; i < 2 * TOYS; i++) {
        uint64_t at = toys[i / 2].bars[i % 2].at;

        if (at == 0)
            continue;
        end = at + toys[i / 2].bars[i % 2].size;
        FUZZ_CHECK(at >= FUZZ_WINDOW && end <= FUZZ_WINDOW + FUZZ_WINDOW_SIZE);
        FUZZ_CHECK(fuzz_mmio_read(&m, at + 0xFF8, 8) == 0x1000);
        for (int k = 0; k < 2 * TOYS; k++) {
            uint64_t other = toys[k / 2].bars[k % 2].at;

            FUZZ_CHECK(i == k || other == 0 || other < at || other >= end);
        }
    }
}

static void operate(struct fuzz_input *in)
{
    uint8_t op = fuzz_u8(in);
    unsigned slot = op >> 4 & 3;
    unsigned size = 1u << (op >> 6);
    uint16_t offset;
    uint32_t value;

    switch (op & 7) {
    case 0: /* the whole window of the function, with absent functions */
        fuzz_mmio_read(&m, FUZZ_ECAM + (slot << 15) + fuzz_u16(in), size);
        break;
    case 1:
        offset = fuzz_u16(in);
        fuzz_mmio_write(&m, FUZZ_ECAM + (slot << 15) + offset, size, fuzz_u32(in));
        break;
    case 2: /* a BAR's register, near its neighbours */
        value = fuzz_u8(in);
        fuzz_config_write(&m, slot, PCI_BASE_ADDRESS_0 + (value & 4), 4,
                          (uint32_t)FUZZ_WINDOW + (value >> 3 << 12));
        break;
    case 3:
        fuzz_config_write(&m, slot, PCI_COMMAND, 2, fuzz_u8(in));
        break;
    case 4: /* mechanism #1 */
        device_lock(&m.env);
        offset = fuzz_u16(in);
        bus_write(m.env.pio, 0xCF8 + (offset & 7), size, fuzz_u32(in) | (offset & 0x8000u) << 16);
        (void)bus_read(m.env.pio, 0xCF8 + (offset >> 3 & 7), size);
        device_unlock(&m.env);
        break;
    case 5: /* a BAR: the MSI-X table and what is around it */
        offset = fuzz_u16(in);
        fuzz_mmio_write(&m, toys[slot % TOYS].bars[0].at + (offset & 0x7FFF), size, fuzz_u32(in));
        break;
    case 6:
        offset = fuzz_u16(in);
        fuzz_mmio_read(&m, toys[slot % TOYS].bars[0].at + (offset & 0x7FFF), size);
        break;
    case 7:
        if (++round_trips > MAX_ROUND_TRIPS)
            break;
        offset = fuzz_u16(in);
        fuzz_round_trip(&m, slot == 0 ? m.bridge : &toys[slot - 1].dev, size > 1, offset,
                        fuzz_u8(in));
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {.data = data, .size = size};

    if (!m.bridge) {
        fuzz_machine_init(&m, 0x10000);
        make_toy(&toys[0], 65);
        make_toy(&toys[1], 2);
        make_toy(&toys[2], 0);
    }
    m.msi_limit = fuzz_u8(&in);
    round_trips = 0;
    for (unsigned ops = 0; in.size > 0 && ops < 1000; ops++) {
        operate(&in);
        check_bars();
    }
    for (int i = 0; i < TOYS; i++) {
        check_toy(&toys[i]);
        fuzz_reset(&m, &toys[i].dev);
    }
    fuzz_reset(&m, m.bridge);
    check_bars();
    FUZZ_CHECK(m.n_msis == 0);
    for (int i = 0; i < TOYS; i++)
        FUZZ_CHECK(toys[i].bars[0].at != 0 && toys[i].bars[1].at != 0);
    return 0;
}
