/*
 * Virtio over PCI as a driver meets it: the capabilities, the common configuration with its strict
 * widths, doorbells and kicks without one, interrupts, reset, and state. What no driver should do
 * is tried, too.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <linux/pci_regs.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "devices/virtio/virtio.h"
#include "tests/unit/fake_class.h"
#include "tests/unit/fake_driver.h"
#include "tests/unit/fake_env.h"
#include "tests/unit/fake_pci.h"
#include "tests/unit/xorshift.h"
#include "vmm/util/log.h"

#define SLOT 1
#define RING_AT 0x10000ull
#define RING_STEP 0x10000ull
#define DATA_AT 0x80000ull
#define MSG(queue) (0x40u + (queue)) /* the data of a queue's message */
#define MSG_CONFIG 0x60u

#define READY                                                                                      \
    (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK |          \
     VIRTIO_CONFIG_S_DRIVER_OK)

/* A device with its class, and where its registers are. */
struct unit {
    struct fake_class *fc;
    struct device *dev;
    unsigned slot;
    uint64_t common, isr, config, notify, table, pba;
};

static struct fake_env fake;
static struct pci_bus *bus;
static struct device *bridge;
static struct unit u;
static struct fake_queue queues[FAKE_CLASS_QUEUES];
static bool destroyed;

static void drop_line(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
}

/* Where a structure is, by its capability. */
static uint64_t find_structure(unsigned slot, uint8_t type, unsigned *cap, uint32_t *length)
{
    for (unsigned n = 0;; n++) {
        unsigned at = fake_find_cap(&fake, slot, PCI_CAP_ID_VNDR, n);

        cr_assert_neq(at, 0, "there is no structure %u", type);
        if (fake_config_read(&fake, slot, at + VIRTIO_PCI_CAP_CFG_TYPE, 1) != type)
            continue;
        *cap = at;
        *length = fake_config_read(&fake, slot, at + VIRTIO_PCI_CAP_LENGTH, 4);
        return fake_bar(&fake, slot, fake_config_read(&fake, slot, at + VIRTIO_PCI_CAP_BAR, 1)) +
               fake_config_read(&fake, slot, at + VIRTIO_PCI_CAP_OFFSET, 4);
    }
}

static void locate(struct unit *unit)
{
    unsigned cap = fake_find_cap(&fake, unit->slot, PCI_CAP_ID_MSIX, 0);
    uint64_t bar = fake_bar(&fake, unit->slot, 0);
    uint32_t length;

    unit->table = bar + fake_config_read(&fake, unit->slot, cap + PCI_MSIX_TABLE, 4);
    unit->pba = bar + fake_config_read(&fake, unit->slot, cap + PCI_MSIX_PBA, 4);
    unit->common = find_structure(unit->slot, VIRTIO_PCI_CAP_COMMON_CFG, &cap, &length);
    unit->isr = find_structure(unit->slot, VIRTIO_PCI_CAP_ISR_CFG, &cap, &length);
    unit->config = find_structure(unit->slot, VIRTIO_PCI_CAP_DEVICE_CFG, &cap, &length);
    unit->notify = find_structure(unit->slot, VIRTIO_PCI_CAP_NOTIFY_CFG, &cap, &length);
}

static struct unit create(const char *id, unsigned slot)
{
    struct unit unit = {.fc = fake_class_create(&fake.env, id), .slot = slot};

    device_lock(&fake.env);
    cr_assert_eq(virtio_pci_create(&unit.dev, &unit.fc->vdev, bus), 0);
    device_unlock(&fake.env);
    locate(&unit);
    return unit;
}

static void set_up(void)
{
    log_set_sink(drop_line);
    fake_env_init(&fake, 4 * MIB);
    bridge = fake_pci_create(&fake, &bus);
    u = create("fake0", SLOT);
    u.fc->destroyed = &destroyed;
    for (unsigned i = 0; i < FAKE_CLASS_QUEUES; i++)
        fake_queue_init(&queues[i], fake.env.mem, RING_AT + i * RING_STEP, 16);
}

static void tear_down(void)
{
    device_destroy(u.dev);
    device_destroy(bridge);
    fake_env_fini(&fake);
}

TestSuite(virtio_pci, .init = set_up, .fini = tear_down, .timeout = 60);

static uint32_t get(unsigned offset, unsigned size)
{
    return (uint32_t)fake_mmio_read(&fake, u.common + offset, size);
}

static void put(unsigned offset, unsigned size, uint32_t value)
{
    fake_mmio_write(&fake, u.common + offset, size, value);
}

static uint8_t status(void)
{
    return (uint8_t)get(VIRTIO_PCI_COMMON_STATUS, 1);
}

static void negotiate(uint64_t features)
{
    put(VIRTIO_PCI_COMMON_STATUS, 1, 1);
    put(VIRTIO_PCI_COMMON_STATUS, 1, 3);
    for (unsigned word = 0; word < 2; word++) {
        put(VIRTIO_PCI_COMMON_GFSELECT, 4, word);
        put(VIRTIO_PCI_COMMON_GF, 4, (uint32_t)(features >> (32 * word)));
    }
    put(VIRTIO_PCI_COMMON_STATUS, 1, 11);
}

static void describe_queue(unsigned index)
{
    const struct fake_queue *q = &queues[index];

    put(VIRTIO_PCI_COMMON_Q_SELECT, 2, index);
    put(VIRTIO_PCI_COMMON_Q_SIZE, 2, q->size);
    put(VIRTIO_PCI_COMMON_Q_DESCLO, 4, (uint32_t)q->desc);
    put(VIRTIO_PCI_COMMON_Q_DESCHI, 4, (uint32_t)(q->desc >> 32));
    put(VIRTIO_PCI_COMMON_Q_AVAILLO, 4, (uint32_t)q->avail);
    put(VIRTIO_PCI_COMMON_Q_AVAILHI, 4, (uint32_t)(q->avail >> 32));
    put(VIRTIO_PCI_COMMON_Q_USEDLO, 4, (uint32_t)q->used);
    put(VIRTIO_PCI_COMMON_Q_USEDHI, 4, (uint32_t)(q->used >> 32));
}

static void enable_queue(unsigned index)
{
    describe_queue(index);
    put(VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_Q_ENABLE, 2), 1);
}

/* Vector 0 for the configuration, 1 + i for queue i, all unmasked. */
static void enable_msix(void)
{
    unsigned cap = fake_find_cap(&fake, u.slot, PCI_CAP_ID_MSIX, 0);

    fake_config_write(&fake, u.slot, cap + PCI_MSIX_FLAGS, 2, PCI_MSIX_FLAGS_ENABLE);
    for (unsigned v = 0; v <= FAKE_CLASS_QUEUES; v++) {
        uint64_t entry = u.table + v * PCI_MSIX_ENTRY_SIZE;

        fake_mmio_write(&fake, entry, 4, 0xFEE00000);
        fake_mmio_write(&fake, entry + 8, 4, v == 0 ? MSG_CONFIG : MSG(v - 1));
        fake_mmio_write(&fake, entry + 12, 4, 0);
    }
    put(VIRTIO_PCI_COMMON_MSIX, 2, 0);
    for (unsigned i = 0; i < FAKE_CLASS_QUEUES; i++) {
        put(VIRTIO_PCI_COMMON_Q_SELECT, 2, i);
        put(VIRTIO_PCI_COMMON_Q_MSIX, 2, i + 1);
        cr_assert_eq(get(VIRTIO_PCI_COMMON_Q_MSIX, 2), i + 1);
    }
}

/* The whole way to a live device with n queues. */
static void start_with(uint64_t features, unsigned n)
{
    negotiate(1ull << VIRTIO_F_VERSION_1 | features);
    enable_msix();
    for (unsigned i = 0; i < n; i++)
        enable_queue(i);
    put(VIRTIO_PCI_COMMON_STATUS, 1, READY);
    cr_assert_eq(status(), READY);
}

static void start(unsigned n)
{
    start_with(1ull << FAKE_CLASS_FEATURE_A, n);
}

static void add_request(unsigned queue)
{
    const struct fake_piece pieces[] = {
        {.gpa = DATA_AT, .length = 8},
        {.gpa = DATA_AT + 0x100, .length = 8, .writable = true},
    };

    fake_queue_add(&queues[queue], pieces, 2);
}

static void notify(unsigned queue)
{
    fake_mmio_write(&fake, u.notify + 4ull * queue, 2, queue);
}

static bool queue_0_used(void *arg)
{
    return fake_queue_used_idx(&queues[0]) == *(uint16_t *)arg;
}

static void wait_used(uint16_t index)
{
    fake_env_wait(&fake, queue_0_used, &index);
}

/* ---- what the function shows ---- */

Test(virtio_pci, shows_the_ids_of_a_modern_device)
{
    cr_assert_eq(fake_config_read(&fake, SLOT, PCI_VENDOR_ID, 4),
                 (0x1040u + FAKE_CLASS_ID) << 16 | 0x1AF4);
    cr_assert_geq(fake_config_read(&fake, SLOT, PCI_REVISION_ID, 1), 1);
    cr_assert_geq(fake_config_read(&fake, SLOT, PCI_SUBSYSTEM_ID, 2), 0x40);
    cr_assert_eq(fake_config_read(&fake, SLOT, PCI_INTERRUPT_PIN, 1), 0);
}

Test(virtio_pci, has_all_structures_each_in_a_place_of_its_own)
{
    static const struct {
        uint8_t type;
        uint32_t length;
    } structures[] = {
        {VIRTIO_PCI_CAP_COMMON_CFG, 56},
        {VIRTIO_PCI_CAP_NOTIFY_CFG, 4 * FAKE_CLASS_QUEUES},
        {VIRTIO_PCI_CAP_ISR_CFG, 1},
        {VIRTIO_PCI_CAP_DEVICE_CFG, FAKE_CLASS_CONFIG},
    };
    uint64_t seen[4];

    for (int i = 0; i < 4; i++) {
        unsigned cap;
        uint32_t length;

        seen[i] = find_structure(SLOT, structures[i].type, &cap, &length);
        cr_assert_eq(length, structures[i].length);
        cr_assert_eq(fake_config_read(&fake, SLOT, cap + VIRTIO_PCI_CAP_LEN, 1),
                     structures[i].type == VIRTIO_PCI_CAP_NOTIFY_CFG ? 20 : 16);
        if (structures[i].type == VIRTIO_PCI_CAP_NOTIFY_CFG)
            cr_assert_eq(fake_config_read(&fake, SLOT, cap + VIRTIO_PCI_NOTIFY_CAP_MULT, 4), 4);
        for (int k = 0; k < i; k++)
            cr_assert_neq(seen[i] / 4096, seen[k] / 4096);
    }
}

Test(virtio_pci, costs_no_host_resources_before_a_driver_comes)
{
    cr_assert_eq(fake.msi_allocs, 0);
    cr_assert_eq(fake.n_bells, 0);
}

/* ---- the common configuration ---- */

Test(virtio_pci, offers_its_features_word_by_word)
{
    put(VIRTIO_PCI_COMMON_DFSELECT, 4, 0);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_DF, 4),
                 1u << FAKE_CLASS_FEATURE_A | 1u << VIRTIO_RING_F_INDIRECT_DESC |
                     1u << VIRTIO_RING_F_EVENT_IDX);
    put(VIRTIO_PCI_COMMON_DFSELECT, 4, 1);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_DF, 4),
                 1u << (FAKE_CLASS_FEATURE_B - 32) | 1u << (VIRTIO_F_VERSION_1 - 32) |
                     1u << (VIRTIO_F_RING_PACKED - 32));
    put(VIRTIO_PCI_COMMON_DFSELECT, 4, 2);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_DF, 4), 0);
    put(VIRTIO_PCI_COMMON_DFSELECT, 4, UINT32_MAX);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_DF, 4), 0);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_DFSELECT, 4), UINT32_MAX);
}

Test(virtio_pci, shows_what_the_driver_accepted)
{
    negotiate(1ull << VIRTIO_F_VERSION_1 | 1ull << FAKE_CLASS_FEATURE_A);
    cr_assert_eq(status(), 11);
    put(VIRTIO_PCI_COMMON_GFSELECT, 4, 0);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_GF, 4), 1u << FAKE_CLASS_FEATURE_A);
    put(VIRTIO_PCI_COMMON_GFSELECT, 4, 1);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_GF, 4), 1u << (VIRTIO_F_VERSION_1 - 32));
    put(VIRTIO_PCI_COMMON_GFSELECT, 4, 7);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_GF, 4), 0);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_GFSELECT, 4), 7);
}

Test(virtio_pci, refuses_features_without_version_1)
{
    negotiate(1ull << FAKE_CLASS_FEATURE_A);
    cr_assert_eq(status(), 3);
}

Test(virtio_pci, describes_its_queues)
{
    cr_assert_eq(get(VIRTIO_PCI_COMMON_NUMQ, 2), FAKE_CLASS_QUEUES);
    for (unsigned i = 0; i < FAKE_CLASS_QUEUES; i++) {
        put(VIRTIO_PCI_COMMON_Q_SELECT, 2, i);
        cr_assert_eq(get(VIRTIO_PCI_COMMON_Q_SELECT, 2), i);
        cr_assert_eq(get(VIRTIO_PCI_COMMON_Q_SIZE, 2), FAKE_CLASS_SIZE);
        cr_assert_eq(get(VIRTIO_PCI_COMMON_Q_NOFF, 2), i);
        cr_assert_eq(get(VIRTIO_PCI_COMMON_Q_ENABLE, 2), 0);
        cr_assert_eq(get(VIRTIO_PCI_COMMON_Q_MSIX, 2), VIRTIO_MSI_NO_VECTOR);
    }
}

Test(virtio_pci, queue_fields_read_back_as_written)
{
    static const unsigned fields[] = {
        VIRTIO_PCI_COMMON_Q_DESCLO, VIRTIO_PCI_COMMON_Q_DESCHI, VIRTIO_PCI_COMMON_Q_AVAILLO,
        VIRTIO_PCI_COMMON_Q_AVAILHI, VIRTIO_PCI_COMMON_Q_USEDLO, VIRTIO_PCI_COMMON_Q_USEDHI,
    };

    put(VIRTIO_PCI_COMMON_Q_SELECT, 2, 1);
    for (unsigned i = 0; i < 6; i++)
        put(fields[i], 4, 0x11111111 * (i + 1));
    put(VIRTIO_PCI_COMMON_Q_SIZE, 2, 32);
    put(VIRTIO_PCI_COMMON_Q_SELECT, 2, 0);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_Q_DESCLO, 4), 0, "each queue has its own");
    put(VIRTIO_PCI_COMMON_Q_SELECT, 2, 1);
    for (unsigned i = 0; i < 6; i++)
        cr_assert_eq(get(fields[i], 4), 0x11111111 * (i + 1));
    cr_assert_eq(get(VIRTIO_PCI_COMMON_Q_SIZE, 2), 32);
    cr_assert_eq(u.fc->vdev.queues[1].st.driver, 0x4444444433333333ull);
}

Test(virtio_pci, a_queue_that_is_not_there_reads_as_zero)
{
    static const uint16_t indexes[] = {FAKE_CLASS_QUEUES, VIRTIO_MAX_QUEUES, 0xFFFF};

    for (int i = 0; i < 3; i++) {
        put(VIRTIO_PCI_COMMON_Q_SELECT, 2, indexes[i]);
        for (unsigned offset = VIRTIO_PCI_COMMON_Q_SIZE; offset < 56; offset += 2) {
            unsigned size = offset < VIRTIO_PCI_COMMON_Q_DESCLO ? 2 : 4;

            if (offset % size != 0)
                continue;
            put(offset, size, 1);
            cr_assert_eq(get(offset, size), 0, "queue %u, offset %u", indexes[i], offset);
        }
    }
    cr_assert_eq(status(), 0);
}

Test(virtio_pci, accesses_of_another_width_than_the_fields_do_nothing)
{
    for (unsigned offset = 0; offset < 64; offset++) {
        for (unsigned size = 1; size <= 8; size *= 2) {
            static const uint8_t widths[56] = {
                [0] = 4, [4] = 4, [8] = 4, [12] = 4, [16] = 2, [18] = 2, [20] = 1, [21] = 1,
                [22] = 2, [24] = 2, [26] = 2, [28] = 2, [30] = 2, [32] = 4, [36] = 4, [40] = 4,
                [44] = 4, [48] = 4, [52] = 4,
            };
            uint64_t ones = size == 8 ? UINT64_MAX : (1ull << 8 * size) - 1;

            if (offset < 56 && widths[offset] == size)
                continue;
            fake_mmio_write(&fake, u.common + offset, size, 0x0F0F0F0F0F0F0F0F);
            cr_assert_eq(fake_mmio_read(&fake, u.common + offset, size), ones, "%u bytes at %u",
                         size, offset);
        }
    }
    for (unsigned offset = 0; offset < 16; offset += 4)
        if (offset != VIRTIO_PCI_COMMON_DF)
            cr_assert_eq(get(offset, 4), 0);
    cr_assert_eq(status(), 0);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_Q_SIZE, 2), FAKE_CLASS_SIZE);
}

Test(virtio_pci, read_only_fields_cannot_be_written)
{
    put(VIRTIO_PCI_COMMON_NUMQ, 2, 0xFFFF);
    put(VIRTIO_PCI_COMMON_CFGGENERATION, 1, 0xFF);
    put(VIRTIO_PCI_COMMON_Q_NOFF, 2, 0xFFFF);
    put(VIRTIO_PCI_COMMON_DF, 4, 0);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_NUMQ, 2), FAKE_CLASS_QUEUES);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_CFGGENERATION, 1), 0);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_Q_NOFF, 2), 0);
    cr_assert_neq(get(VIRTIO_PCI_COMMON_DF, 4), 0);
}

Test(virtio_pci, a_vector_out_of_range_reads_back_as_none)
{
    static const uint16_t bad[] = {FAKE_CLASS_QUEUES + 1, 64, 0x8000, 0xFFFE, 0xFFFF};

    for (int i = 0; i < 5; i++) {
        put(VIRTIO_PCI_COMMON_MSIX, 2, 1);
        put(VIRTIO_PCI_COMMON_MSIX, 2, bad[i]);
        cr_assert_eq(get(VIRTIO_PCI_COMMON_MSIX, 2), VIRTIO_MSI_NO_VECTOR);
        put(VIRTIO_PCI_COMMON_Q_MSIX, 2, FAKE_CLASS_QUEUES);
        cr_assert_eq(get(VIRTIO_PCI_COMMON_Q_MSIX, 2), FAKE_CLASS_QUEUES);
        put(VIRTIO_PCI_COMMON_Q_MSIX, 2, bad[i]);
        cr_assert_eq(get(VIRTIO_PCI_COMMON_Q_MSIX, 2), VIRTIO_MSI_NO_VECTOR);
    }
}

Test(virtio_pci, a_live_queue_cannot_be_described_anew)
{
    start(1);
    put(VIRTIO_PCI_COMMON_Q_SELECT, 2, 0);
    put(VIRTIO_PCI_COMMON_Q_SIZE, 2, 64);
    put(VIRTIO_PCI_COMMON_Q_DESCLO, 4, 0xFFFFFFF0);
    put(VIRTIO_PCI_COMMON_Q_USEDHI, 4, 0xFFFFFFFF);
    put(VIRTIO_PCI_COMMON_Q_ENABLE, 2, 0);
    put(VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_Q_SIZE, 2), 16);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_Q_DESCLO, 4), queues[0].desc);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_Q_USEDHI, 4), 0);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_Q_ENABLE, 2), 1);
    cr_assert_eq(status(), READY);
}

Test(virtio_pci, an_impossible_queue_needs_a_reset_and_interrupts)
{
    start(1);
    describe_queue(1);
    put(VIRTIO_PCI_COMMON_Q_DESCHI, 4, 0xFFFFFFFF);
    put(VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_Q_ENABLE, 2), 0);
    cr_assert_eq(status(), READY | VIRTIO_CONFIG_S_NEEDS_RESET);
    cr_assert_eq(fake_msi_take(&fake, MSG_CONFIG), 1);
}

/* ---- the device's configuration ---- */

Test(virtio_pci, the_devices_configuration_is_read_and_written_within_its_size)
{
    cr_assert_eq(fake_mmio_read(&fake, u.config, 4), 0x03020100);
    cr_assert_eq(fake_mmio_read(&fake, u.config + 4, 8), 0x0B0A090807060504ull);
    cr_assert_eq(fake_mmio_read(&fake, u.config + 11, 1), 0x0B);
    cr_assert_eq(fake_mmio_read(&fake, u.config + 11, 2), 0xFFFF, "past its end");
    cr_assert_eq(fake_mmio_read(&fake, u.config + 0xFF8, 8), UINT64_MAX);
    fake_mmio_write(&fake, u.config + 10, 2, 0xBEEF);
    cr_assert_eq(u.fc->config[10], 0xEF);
    cr_assert_eq(u.fc->config[11], 0xBE);
    fake_mmio_write(&fake, u.config + 10, 4, 0);
    cr_assert_eq(u.fc->config[10], 0xEF);
}

Test(virtio_pci, a_configuration_change_raises_its_generation)
{
    start(1);
    device_lock(&fake.env);
    virtio_config_changed(&u.fc->vdev);
    device_unlock(&fake.env);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_CFGGENERATION, 1), 1);
    cr_assert_eq(fake_msi_take(&fake, MSG_CONFIG), 1);
}

/* ---- kicks ---- */

Test(virtio_pci, each_live_queue_has_a_doorbell)
{
    start(2);
    cr_assert_eq(fake.n_bells, 2);
    for (unsigned i = 0; i < 2; i++) {
        const struct fake_bell *bell = fake_bell_at(&fake, u.notify + 4 * i);

        cr_assert_not_null(bell);
        cr_assert_eq(bell->size, 0, "any size");
    }
    cr_assert_null(fake_bell_at(&fake, u.notify + 8));
}

Test(virtio_pci, a_kick_by_doorbell_is_served_and_interrupts)
{
    uint64_t sent = 0x0123456789ABCDEF, got = 0;

    u.fc->echo = true;
    start(1);
    fake_env_settle(&fake);
    cr_assert_eq(memory_write(fake.env.mem, DATA_AT, &sent, 8), 0);
    add_request(0);
    notify(0);
    wait_used(1);
    cr_assert_eq(memory_read(fake.env.mem, DATA_AT + 0x100, &got, 8), 0);
    cr_assert_eq(got, sent);
    cr_assert_eq(fake_msi_take(&fake, MSG(0)), 1);
    cr_assert_eq(fake_msi_take(&fake, MSG(1)), 0);
}

Test(virtio_pci, a_kick_before_the_loop_watches_is_not_lost)
{
    u.fc->echo = true;
    start(1);
    add_request(0); /* the loop has not run since the doorbell was added */
    notify(0);
    wait_used(1);
}

Test(virtio_pci, without_doorbells_kicks_work_all_the_same)
{
    fake.bell_error = -ENOSPC;
    u.fc->echo = true;
    start(2);
    cr_assert_eq(fake.n_bells, 0);
    fake_env_settle(&fake);
    for (uint16_t i = 1; i <= 3; i++) {
        add_request(0);
        notify(0);
        wait_used(i);
    }
}

Test(virtio_pci, kicks_of_any_width_work_without_a_doorbell)
{
    fake.bell_error = -ENOSPC;
    start(2);
    fake_env_settle(&fake);
    u.fc->kicks[1] = 0;
    for (unsigned size = 1; size <= 8; size *= 2) {
        fake_mmio_write(&fake, u.notify + 4, size, 1);
        fake_env_settle(&fake);
    }
    cr_assert_eq(u.fc->kicks[1], 4);
}

Test(virtio_pci, kicks_beside_the_notify_addresses_do_nothing)
{
    start(3);
    fake_env_settle(&fake);
    memset(u.fc->kicks, 0, sizeof(u.fc->kicks));
    for (uint64_t at = u.notify; at < u.notify + 4096; at++)
        if (!fake_bell_at(&fake, at))
            fake_mmio_write(&fake, at, 1, 0);
    cr_assert_eq(fake_mmio_read(&fake, u.notify, 2), 0);
    fake_env_settle(&fake);
    for (int i = 0; i < FAKE_CLASS_QUEUES; i++)
        cr_assert_eq(u.fc->kicks[i], 0, "queue %d", i);
}

Test(virtio_pci, what_was_queued_before_driver_ok_is_found)
{
    u.fc->echo = true;
    negotiate(1ull << VIRTIO_F_VERSION_1);
    enable_queue(0);
    add_request(0);
    fake_set_command(&fake, SLOT, 0);
    fake_set_command(&fake, SLOT, PCI_COMMAND_MEMORY);
    cr_assert_eq(fake.n_bells, 0, "wherever the BAR goes meanwhile");
    notify(0);
    fake_env_settle(&fake);
    cr_assert_eq(fake_queue_used_idx(&queues[0]), 0, "virtio 1.2 §2.1.2: not before DRIVER_OK");
    put(VIRTIO_PCI_COMMON_STATUS, 1, READY);
    wait_used(1);
}

Test(virtio_pci, a_queue_enabled_after_driver_ok_works)
{
    u.fc->echo = true;
    start(0);
    cr_assert_eq(fake.n_bells, 0);
    add_request(0);
    enable_queue(0);
    cr_assert_eq(fake.n_bells, 1);
    wait_used(1);
}

Test(virtio_pci, doorbells_follow_the_bar)
{
    u.fc->echo = true;
    start(1);
    fake_config_write(&fake, SLOT, PCI_BASE_ADDRESS_0, 4, 0xD0000000);
    cr_assert_null(fake_bell_at(&fake, u.notify));
    cr_assert_not_null(fake_bell_at(&fake, 0xD0003000));
    cr_assert_eq(fake.n_bells, 1);
    locate(&u);
    add_request(0);
    notify(0);
    wait_used(1);
    fake_set_command(&fake, SLOT, 0);
    cr_assert_eq(fake.n_bells, 0);
    fake_set_command(&fake, SLOT, PCI_COMMAND_MEMORY);
    cr_assert_eq(fake.n_bells, 1);
}

Test(virtio_pci, a_doorbell_between_two_places_is_tried_again)
{
    fake.bell_error = -ENOSPC;
    start(1);
    fake.bell_error = 0;
    fake_config_write(&fake, SLOT, PCI_BASE_ADDRESS_0, 4, 0xD0000000);
    cr_assert_not_null(fake_bell_at(&fake, 0xD0003000));
}

Test(virtio_pci, a_bad_chain_breaks_the_device_and_it_keeps_silent)
{
    u.fc->echo = true;
    start(2);
    fake_env_settle(&fake);
    fake_msi_take(&fake, MSG_CONFIG);
    fake_desc_write(&queues[0], 0, UINT64_MAX, 16, 0, 0);
    cr_assert_eq(memory_fill(fake.env.mem, queues[0].avail + 2, 1, 1), 0);
    notify(0);
    fake_env_settle(&fake);
    cr_assert_eq(status(), READY | VIRTIO_CONFIG_S_NEEDS_RESET);
    cr_assert_eq(fake_msi_take(&fake, MSG_CONFIG), 1);
    u.fc->kicks[1] = 0;
    notify(1);
    fake_env_settle(&fake);
    cr_assert_eq(u.fc->kicks[1], 0);
}

/* ---- interrupts without MSI-X ---- */

Test(virtio_pci, without_msix_the_isr_status_tells_and_is_cleared_by_reading)
{
    u.fc->echo = true;
    negotiate(1ull << VIRTIO_F_VERSION_1);
    enable_queue(0);
    put(VIRTIO_PCI_COMMON_STATUS, 1, READY);
    add_request(0);
    notify(0);
    wait_used(1);
    cr_assert_eq(fake_mmio_read(&fake, u.isr, 1), 1);
    cr_assert_eq(fake_mmio_read(&fake, u.isr, 1), 0);
    device_lock(&fake.env);
    virtio_config_changed(&u.fc->vdev);
    device_unlock(&fake.env);
    cr_assert_eq(fake_mmio_read(&fake, u.isr, 1), 2);
    cr_assert_eq(fake_mmio_read(&fake, u.isr + 1, 1), 0xFF);
}

Test(virtio_pci, a_queue_without_a_vector_does_not_interrupt)
{
    u.fc->echo = true;
    start(1);
    put(VIRTIO_PCI_COMMON_Q_SELECT, 2, 0);
    put(VIRTIO_PCI_COMMON_Q_MSIX, 2, VIRTIO_MSI_NO_VECTOR);
    add_request(0);
    notify(0);
    wait_used(1);
    for (unsigned i = 0; i < FAKE_CLASS_QUEUES; i++)
        cr_assert_eq(fake_msi_take(&fake, MSG(i)), 0);
    cr_assert_eq(fake_mmio_read(&fake, u.isr, 1), 0);
}

/* ---- the PCI configuration access capability (§4.1.4.9) ---- */

static unsigned cfg_cap(void)
{
    unsigned cap;
    uint32_t length;

    find_structure(SLOT, VIRTIO_PCI_CAP_PCI_CFG, &cap, &length);
    return cap;
}

static void aim(unsigned cap, uint8_t bar, uint32_t offset, uint32_t length)
{
    fake_config_write(&fake, SLOT, cap + VIRTIO_PCI_CAP_BAR, 1, bar);
    fake_config_write(&fake, SLOT, cap + VIRTIO_PCI_CAP_OFFSET, 4, offset);
    fake_config_write(&fake, SLOT, cap + VIRTIO_PCI_CAP_LENGTH, 4, length);
}

Test(virtio_pci, registers_are_reached_through_configuration_space)
{
    unsigned cap = cfg_cap();

    fake_set_command(&fake, SLOT, 0); /* the BAR does not answer */
    aim(cap, 0, VIRTIO_PCI_COMMON_NUMQ, 2);
    cr_assert_eq(fake_config_read(&fake, SLOT, cap + 16, 4), FAKE_CLASS_QUEUES);
    cr_assert_eq(fake_config_read(&fake, SLOT, cap + 16, 2), FAKE_CLASS_QUEUES);
    aim(cap, 0, 0x2000, 4);
    cr_assert_eq(fake_config_read(&fake, SLOT, cap + 16, 4), 0x03020100);
    cr_assert_eq(fake_config_read(&fake, SLOT, cap + 17, 1), 0x01);
    aim(cap, 0, VIRTIO_PCI_COMMON_STATUS, 1);
    fake_config_write(&fake, SLOT, cap + 16, 4, 0xFFFFFF03);
    cr_assert_eq(fake_config_read(&fake, SLOT, cap + 16, 1), 3);
    aim(cap, 0, 0x4008, 4);
    fake_config_write(&fake, SLOT, cap + 16, 4, 0x1234);
    cr_assert_eq(fake_config_read(&fake, SLOT, cap + 16, 4), 0x1234, "the MSI-X table, too");
}

Test(virtio_pci, a_kick_through_configuration_space_is_served)
{
    unsigned cap = cfg_cap();

    u.fc->echo = true;
    start(1);
    fake_env_settle(&fake);
    add_request(0);
    aim(cap, 0, 0x3000, 2);
    fake_config_write(&fake, SLOT, cap + 16, 2, 0);
    wait_used(1);
}

Test(virtio_pci, impossible_windows_reach_nothing)
{
    static const struct {
        uint8_t bar;
        uint32_t offset, length;
    } windows[] = {
        {1, 0, 4}, {5, 0, 4}, {6, 0, 4}, {255, 0, 4}, {0, 0x8000, 4}, {0, 0xFFFFFFFC, 4},
        {0, 0, 0}, {0, 0, 3}, {0, 0, 8}, {0, 0, UINT32_MAX}, {0, 2, 4}, {0, 21, 2},
    };
    unsigned cap = cfg_cap();

    for (size_t i = 0; i < sizeof(windows) / sizeof(windows[0]); i++) {
        aim(cap, windows[i].bar, windows[i].offset, windows[i].length);
        fake_config_write(&fake, SLOT, cap + 16, 4, 0x01010101);
        cr_assert_eq(fake_config_read(&fake, SLOT, cap + 16, 4), 0xFFFFFFFF, "window %zu", i);
    }
    cr_assert_eq(status(), 0);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_DFSELECT, 4), 0);
}

/* ---- reset ---- */

Test(virtio_pci, the_drivers_reset_forgets_everything_but_the_function)
{
    start(2);
    put(VIRTIO_PCI_COMMON_DFSELECT, 4, 1);
    put(VIRTIO_PCI_COMMON_STATUS, 1, 0);
    cr_assert_eq(status(), 0);
    cr_assert_eq(fake.n_bells, 0);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_DFSELECT, 4), 0);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_MSIX, 2), VIRTIO_MSI_NO_VECTOR);
    put(VIRTIO_PCI_COMMON_Q_SELECT, 2, 0);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_Q_ENABLE, 2), 0);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_Q_SIZE, 2), FAKE_CLASS_SIZE);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_Q_DESCLO, 4), 0);
    cr_assert_eq(fake_mmio_read(&fake, u.table + 8, 4), MSG_CONFIG, "MSI-X is the function's");
}

Test(virtio_pci, a_kick_that_is_late_does_nothing_after_a_reset)
{
    start(1);
    fake_env_settle(&fake);
    u.fc->kicks[0] = 0;
    notify(0);
    put(VIRTIO_PCI_COMMON_STATUS, 1, 0);
    fake_env_settle(&fake);
    cr_assert_eq(u.fc->kicks[0], 0);
}

Test(virtio_pci, works_again_after_reset_as_often_as_one_likes)
{
    u.fc->echo = true;
    for (int round = 0; round < 20; round++) {
        start(2);
        add_request(0);
        notify(0);
        wait_used(1);
        put(VIRTIO_PCI_COMMON_STATUS, 1, 0);
        fake_queue_init(&queues[0], fake.env.mem, RING_AT, 16);
    }
    cr_assert_eq(fake.msi_allocs, 1 + FAKE_CLASS_QUEUES, "vectors are kept");
}

Test(virtio_pci, status_stays_nonzero_while_requests_are_in_flight)
{
    start(1);
    u.fc->busy = true;
    put(VIRTIO_PCI_COMMON_STATUS, 1, 0);
    cr_assert_neq(status(), 0);
    u.fc->busy = false;
    cr_assert_eq(status(), 0);
}

Test(virtio_pci, the_machines_reset_brings_back_the_power_on_state)
{
    start(2);
    fake_config_write(&fake, SLOT, PCI_BASE_ADDRESS_0, 4, 0xD0000000);
    device_lock(&fake.env);
    device_pause(u.dev);
    device_reset(u.dev);
    device_resume(u.dev);
    device_unlock(&fake.env);
    cr_assert_eq(fake_bar(&fake, SLOT, 0), FAKE_WINDOW);
    cr_assert_eq(fake.n_bells, 0);
    cr_assert_eq(fake.n_msis, 0);
    cr_assert_eq(status(), 0);
    locate(&u);
    u.fc->echo = true;
    fake_queue_init(&queues[0], fake.env.mem, RING_AT, 16);
    fake_queue_init(&queues[1], fake.env.mem, RING_AT + RING_STEP, 16);
    start(2);
    add_request(0);
    notify(0);
    wait_used(1);
}

/* ---- pause ---- */

Test(virtio_pci, kicks_while_paused_are_served_after_resume)
{
    u.fc->echo = true;
    start(1);
    fake_env_settle(&fake);
    device_lock(&fake.env);
    device_pause(u.dev);
    u.fc->busy = true;
    cr_assert(device_busy(u.dev));
    u.fc->busy = false;
    cr_assert_not(device_busy(u.dev));
    device_unlock(&fake.env);
    add_request(0);
    notify(0);
    fake_env_settle(&fake);
    cr_assert_eq(fake_queue_used_idx(&queues[0]), 0);
    device_lock(&fake.env);
    device_resume(u.dev);
    device_unlock(&fake.env);
    cr_assert_eq(fake_queue_used_idx(&queues[0]), 1);
    cr_assert_eq(fake_msi_take(&fake, MSG(0)), 1);
}

/* ---- destruction ---- */

Test(virtio_pci, destroying_a_live_device_gives_everything_back)
{
    struct unit other;

    start(2);
    notify(0);
    notify(1); /* on their way */
    device_destroy(u.dev);
    cr_assert(destroyed, "its class went with it");
    cr_assert_eq(fake.n_bells, 0);
    cr_assert_eq(fake.n_msis, 0);
    cr_assert_eq(fake_config_read(&fake, SLOT, PCI_VENDOR_ID, 4), 0xFFFFFFFF);
    other = create("fake1", SLOT);
    u = other;
}

Test(virtio_pci, a_device_that_finds_no_place_leaves_its_class_to_the_caller)
{
    struct fake_class *fc = fake_class_create(&fake.env, "late");
    struct device *bridge_2, *dev_2;
    struct pci_bus *small;
    bool gone = false;

    fc->destroyed = &gone;
    device_destroy(u.dev);
    device_destroy(bridge);
    bridge_2 = fake_pci_create_sized(&fake, &small, 16 * KIB);
    device_lock(&fake.env);
    cr_assert_eq(virtio_pci_create(&dev_2, &fc->vdev, small), -ENOSPC);
    device_unlock(&fake.env);
    cr_assert_not(gone);
    fake_class_drop(fc);
    device_destroy(bridge_2);
    bridge = fake_pci_create(&fake, &bus);
    u = create("fake0", SLOT);
}

/* ---- state ---- */

/* Pauses u, saves it; the buffer is the caller's. */
static void save(struct state_buffer *buffer)
{
    device_lock(&fake.env);
    device_pause(u.dev);
    device_unlock(&fake.env);
    fake_save(&fake, u.dev, buffer);
}

Test(virtio_pci, a_loaded_device_goes_on_where_the_saved_one_stood)
{
    struct state_buffer buffer;

    u.fc->echo = true;
    start(2);
    add_request(0);
    notify(0);
    wait_used(1);
    u.fc->kept = 77;
    put(VIRTIO_PCI_COMMON_DFSELECT, 4, 1);
    put(VIRTIO_PCI_COMMON_Q_SELECT, 2, 1);
    fake_config_write(&fake, SLOT, PCI_BASE_ADDRESS_0, 4, 0xD0000000);
    save(&buffer);

    device_destroy(u.dev); /* the other host's device takes its place */
    u = create("fake0", SLOT);
    u.fc->echo = true;
    device_lock(&fake.env);
    device_pause(u.dev);
    device_unlock(&fake.env);
    cr_assert_eq(fake_load(&fake, u.dev, &buffer), 0);
    state_buffer_fini(&buffer);
    locate(&u);
    cr_assert_eq(u.common, 0xD0000000);
    cr_assert_eq(u.fc->kept, 77);
    cr_assert_eq(fake.n_bells, 2);
    cr_assert_not_null(fake_bell_at(&fake, u.notify));
    cr_assert_eq(get(VIRTIO_PCI_COMMON_DFSELECT, 4), 1);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_Q_SELECT, 2), 1);
    cr_assert_eq(status(), READY);

    add_request(0);
    notify(0);
    fake_env_settle(&fake);
    cr_assert_eq(fake_queue_used_idx(&queues[0]), 1, "still paused");
    device_lock(&fake.env);
    device_resume(u.dev);
    device_unlock(&fake.env);
    cr_assert_eq(fake_queue_used_idx(&queues[0]), 2);
    cr_assert_eq(fake_msi_take(&fake, MSG(0)), 1);
    add_request(0);
    notify(0);
    wait_used(3);
}

Test(virtio_pci, an_untouched_device_saves_and_loads)
{
    struct state_buffer buffer;

    save(&buffer);
    cr_assert_eq(fake_load(&fake, u.dev, &buffer), 0);
    state_buffer_fini(&buffer);
    cr_assert_eq(status(), 0);
    cr_assert_eq(get(VIRTIO_PCI_COMMON_Q_SIZE, 2), FAKE_CLASS_SIZE);
}

/* The offset of a record's payload in a saved device. */
static size_t payload_of(const struct state_buffer *buffer, const char *name)
{
    size_t at = 0;

    while (at < buffer->length) {
        size_t n = buffer->data[at] | (size_t)buffer->data[at + 1] << 8;
        const uint8_t *len = &buffer->data[at + 2 + n + 2];
        size_t payload = at + 2 + n + 6;

        if (n == strlen(name) && memcmp(&buffer->data[at + 2], name, n) == 0)
            return payload;
        at = payload + (len[0] | (size_t)len[1] << 8 | (size_t)len[2] << 16);
    }
    cr_assert_fail("there is no record %s", name);
    return 0;
}

Test(virtio_pci, a_part_that_cannot_be_is_refused_and_changes_nothing)
{
    static const struct {
        const char *record;
        size_t at;
        uint8_t byte;
    } cases[] = {
        {"pci-function", 0, 0},      /* another vendor */
        {"virtio", 0, 0xFF},         /* status */
        {"virtio", 1 + 3, 0x01},     /* a feature not offered */
        {"virtio", 13, 4},           /* the configuration's vector: there are 4 */
        {"virtio", 15, 2},           /* queues */
        {"virtio", 16 + 3, 4},       /* queue 0's vector */
        {"virtio", 16 + 3 + 1, 0x40}, /* its high byte */
        {"fake-class", 3, 1},        /* the class's own check */
        {"virtio-pci", 10, 4},       /* ISR */
    };
    struct state_buffer buffer;
    uint8_t before;

    start(1);
    save(&buffer);
    put(VIRTIO_PCI_COMMON_STATUS, 1, 0);
    put(VIRTIO_PCI_COMMON_STATUS, 1, 1);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        size_t at = payload_of(&buffer, cases[i].record) + cases[i].at;

        before = buffer.data[at];
        buffer.data[at] = cases[i].byte;
        cr_assert_eq(fake_load(&fake, u.dev, &buffer), -EINVAL, "case %zu", i);
        cr_assert_eq(status(), 1, "case %zu", i);
        cr_assert_eq(fake.n_bells, 0, "case %zu", i);
        buffer.data[at] = before;
    }
    cr_assert_eq(fake_load(&fake, u.dev, &buffer), 0);
    state_buffer_fini(&buffer);
    cr_assert_eq(status(), READY);
    cr_assert_eq(fake.n_bells, 1);
}

Test(virtio_pci, a_record_cut_anywhere_is_refused)
{
    struct state_buffer buffer;
    size_t whole;

    start(1);
    save(&buffer);
    whole = buffer.length;
    /* Each length near the ends of the parts, and a sample of the others. */
    for (size_t length = 0; length < whole; length += length % 64 == 0 ? 1 : 7) {
        buffer.length = length;
        cr_assert_eq(fake_load(&fake, u.dev, &buffer), -ENODATA, "cut at %zu", length);
    }
    state_buffer_fini(&buffer);
    cr_assert_eq(status(), READY);
}

/* ---- a vCPU beside the loop ---- */

#define RACE_ROUNDS 60
#define RACE_REQUESTS 12

struct vcpu {
    pthread_t thread;
    uint64_t features;
    unsigned lost; /* requests not served before the deadline */
    atomic_bool ended;
    struct loop_call wake; /* the loop, when it ended */
};

static void wake_loop(struct loop_call *call)
{
    (void)call;
}

/* Kicks only when asked to, moves the BAR now and then, and waits for each request. */
static bool pass_request(unsigned i)
{
    uint64_t deadline = loop_now_ns() + FAKE_DEADLINE_NS;
    uint16_t old = queues[0].avail_idx;

    add_request(0);
    if (i % 3 == 0) {
        fake_config_write(&fake, SLOT, PCI_BASE_ADDRESS_0, 4, 0xD0000000 + (i % 2 << 20));
        locate(&u);
    }
    if (fake_queue_should_kick(&queues[0], old))
        notify(0);
    while (fake_queue_used_idx(&queues[0]) != (uint16_t)(old + 1)) {
        if (loop_now_ns() > deadline)
            return false;
        sched_yield();
    }
    return true;
}

static void *run_vcpu(void *arg)
{
    struct vcpu *vcpu = arg;

    for (int round = 0; round < RACE_ROUNDS && vcpu->lost == 0; round++) {
        struct fake_used used;

        fake_queue_init(&queues[0], fake.env.mem, RING_AT, 16);
        queues[0].event_idx = vcpu->features >> VIRTIO_RING_F_EVENT_IDX & 1;
        start_with(vcpu->features, 1);
        for (unsigned i = 0; i < RACE_REQUESTS; i++) {
            if (!pass_request(i))
                vcpu->lost++;
            (void)fake_queue_take(&queues[0], &used);
        }
        notify(0);
        put(VIRTIO_PCI_COMMON_STATUS, 1, 0);
    }
    atomic_store(&vcpu->ended, true);
    loop_call(fake.env.loop, &vcpu->wake);
    return NULL;
}

static bool has_ended(void *arg)
{
    return atomic_load(&((struct vcpu *)arg)->ended) &&
           !atomic_load(&((struct vcpu *)arg)->wake.queued);
}

static void race(uint64_t features)
{
    struct vcpu vcpu = {.features = features, .wake.run = wake_loop};

    u.fc->echo = true;
    cr_assert_eq(pthread_create(&vcpu.thread, NULL, run_vcpu, &vcpu), 0);
    fake_env_wait(&fake, has_ended, &vcpu);
    cr_assert_eq(pthread_join(vcpu.thread, NULL), 0);
    cr_assert_eq(vcpu.lost, 0);
}

Test(virtio_pci, no_kick_is_lost_while_a_vcpu_resets_and_moves_the_device)
{
    race(0);
}

Test(virtio_pci, no_kick_is_lost_with_the_event_index_either)
{
    race(1ull << VIRTIO_RING_F_EVENT_IDX);
}

Test(virtio_pci, no_kick_is_lost_without_doorbells_either)
{
    fake.bell_error = -ENOSPC;
    race(1ull << VIRTIO_RING_F_EVENT_IDX);
}

/* ---- a hostile driver ---- */

static uint64_t roll(uint64_t *rng, uint64_t n)
{
    return xorshift(rng) % n;
}

Test(virtio_pci, survives_rubbish_written_everywhere_and_works_after_a_reset)
{
    uint64_t rng = 0x9E3779B97F4A7C15ull;

    u.fc->echo = true;
    for (int i = 0; i < 20000; i++) {
        uint64_t bar = fake_bar(&fake, SLOT, 0);
        unsigned size = 1u << roll(&rng, 4);
        uint64_t value = roll(&rng, 3) ? roll(&rng, 8) : roll(&rng, UINT64_MAX);

        switch (roll(&rng, 8)) {
        case 0:
            fake_config_write(&fake, SLOT, (unsigned)roll(&rng, 256) & ~3u, 4, (uint32_t)value);
            break;
        case 1:
            fake_mmio_write(&fake, bar + 0x4000 + roll(&rng, 80), 4, value);
            break;
        case 2:
            fake_mmio_write(&fake, bar + 0x3000 + 4 * roll(&rng, 4), 2, value);
            break;
        case 3:
            negotiate(1ull << VIRTIO_F_VERSION_1);
            describe_queue((unsigned)roll(&rng, 3));
            put(VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
            break;
        case 4:
            put(VIRTIO_PCI_COMMON_STATUS, 1, (uint32_t)value);
            break;
        case 5:
            cr_assert_eq(memory_write(fake.env.mem, RING_AT + roll(&rng, 0x30000), &value, 2), 0);
            break;
        default:
            fake_mmio_write(&fake, bar + roll(&rng, 0x40), size, value);
            break;
        }
        if (i % 64 == 0)
            fake_env_settle(&fake);
    }
    device_lock(&fake.env);
    device_reset(u.dev);
    device_unlock(&fake.env);
    locate(&u);
    fake_queue_init(&queues[0], fake.env.mem, RING_AT, 16);
    start(1);
    add_request(0);
    notify(0);
    wait_used(1);
}
