/*
 * Attacks on the set-up of a queue and on the device's status: rings outside memory, unaligned,
 * over one another; sizes that are none; queues changed while live; states out of order.
 * Text: virtio 1.2, 2.1, 2.7, 3.1.1, 4.1.4.3.
 */
#include <stddef.h>

#include "hostile.h"
#include "io.h"
#include "memory.h"
#include "print.h"
#include "verdict.h"

static void write64(uint32_t offset, uint64_t value)
{
    uint64_t at = victim.device.common + offset;

    mmio_write32(at, (uint32_t)value);
    mmio_write32(at + 4, (uint32_t)(value >> 32));
}

static void write16(uint32_t offset, uint16_t value)
{
    mmio_write16(victim.device.common + offset, value);
}

/* A queue set up with these values, enabled, made live and kicked. */
static void raw_queue(uint16_t size, uint64_t desc, uint64_t avail, uint64_t used)
{
    write16(COMMON_QUEUE_SELECT, 0);
    write16(COMMON_QUEUE_SIZE, size);
    write64(COMMON_QUEUE_DESC, desc);
    write64(COMMON_QUEUE_DRIVER, avail);
    write64(COMMON_QUEUE_DEVICE, used);
    write16(COMMON_QUEUE_ENABLE, 1);
    virtio_driver_ok(&victim.device);
    virtqueue_notify(&victim.queue);
}

struct places {
    uint64_t desc, avail, used;
};

static struct places good_places(void)
{
    return (struct places){ (uintptr_t)victim.queue.desc, (uintptr_t)victim.queue.avail,
                            (uintptr_t)victim.queue.used };
}

static void attack_place(const char *name, uint64_t place, enum outcome expected)
{
    for (unsigned which = 0; which < 3; which++) {
        struct places at = good_places();
        if (!victim_prepare(VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX)) {
            not_ok(name, "the device does not negotiate");
            return;
        }
        if (which == 0)
            at.desc = place;
        else if (which == 1)
            at.avail = place;
        else
            at.used = place;
        raw_queue(256, at.desc, at.avail, at.used);
        attack_end(name, expected);
    }
}

static void attack_size(const char *name, uint16_t size, enum outcome expected)
{
    struct places at = good_places();

    if (!victim_prepare(0)) {
        not_ok(name, "the device does not negotiate");
        return;
    }
    raw_queue(size, at.desc, at.avail, at.used);
    attack_end(name, expected);
}

static void attack_places(void)
{
    struct places at = good_places();

    attack_place("ring-in-hole", 0xD0000000, MUST_BREAK);
    attack_place("ring-at-ram-end", ram_end - 16, MUST_BREAK);
    attack_place("ring-behind-ram", ram_end, MUST_BREAK);
    attack_place("ring-wraps", 0xFFFFFFFFFFFFFFF0, MUST_BREAK);
    attack_place("ring-top", 0x8000000000000000, MUST_BREAK);
    attack_place("ring-in-bar", victim.device.common, MUST_BREAK);
    attack_place("ring-in-ecam", pci_ecam_base(), MUST_BREAK);
    attack_place("ring-in-lapic", 0xFEE00000, MUST_BREAK);
    attack_place("ring-at-zero", 0, MAY_BREAK);
    if (victim_prepare(0))
        raw_queue(256, at.desc + 8, at.avail, at.used);
    attack_end("desc-unaligned", MUST_BREAK);
    if (victim_prepare(0))
        raw_queue(256, at.desc, at.avail + 1, at.used);
    attack_end("avail-unaligned", MUST_BREAK);
    if (victim_prepare(0))
        raw_queue(256, at.desc, at.avail, at.used + 2);
    attack_end("used-unaligned", MUST_BREAK);
    if (victim_prepare(0))
        raw_queue(256, at.desc, at.desc, at.desc);
    attack_end("rings-overlap", MAY_BREAK);
}

static void attack_live(void)
{
    struct places at = good_places();

    victim_start(0);
    write16(COMMON_QUEUE_ENABLE, 1);
    victim_put_request(0);
    victim_post(0);
    attack_end("enable-again", MAY_BREAK);
    victim_start(0);
    write16(COMMON_QUEUE_ENABLE, 0);
    victim_put_request(0);
    victim_post(0);
    attack_end("disable-live", MAY_BREAK);
    victim_start(0);
    for (uint16_t size = 1; size != 0; size = (uint16_t)(size << 1)) {
        write16(COMMON_QUEUE_SIZE, size);
        write16(COMMON_QUEUE_ENABLE, 1);
        victim_put_request(0);
        victim_post(0);
    }
    attack_end("resize-live", MAY_BREAK);
    victim_start(0);
    write64(COMMON_QUEUE_DESC, 0xD0000000);
    write64(COMMON_QUEUE_DRIVER, at.used);
    write64(COMMON_QUEUE_DEVICE, ~0ull);
    write16(COMMON_QUEUE_ENABLE, 1);
    victim_put_request(0);
    victim_post(0);
    attack_end("move-live", MAY_BREAK);
}

static void attack_absent_queue(void)
{
    static const uint16_t indices[] = { 1, 2, 63, 64, 65, 255, 256, 0x7FFF, 0xFFFF };

    victim_start(0);
    for (unsigned i = 0; i < sizeof(indices) / sizeof(*indices); i++) {
        write16(COMMON_QUEUE_SELECT, indices[i]);
        uint16_t size = mmio_read16(victim.device.common + COMMON_QUEUE_SIZE);
        if (size != 0 && indices[i] >= 64)
            not_ok("absent-queue-size", "queue %u has size %u", indices[i], size);
        write16(COMMON_QUEUE_SIZE, 256);
        write16(COMMON_QUEUE_VECTOR, 0);
        write64(COMMON_QUEUE_DESC, chance());
        write64(COMMON_QUEUE_DRIVER, chance());
        write64(COMMON_QUEUE_DEVICE, chance());
        if (size == 0)
            write16(COMMON_QUEUE_ENABLE, 1);
    }
    attack_end("absent-queue", MAY_BREAK);
}

void attack_rings(void)
{
    attack_places();
    attack_size("size-0", 0, MAY_BREAK);
    attack_size("size-1", 1, MAY_BREAK);
    attack_size("size-3", 3, MUST_BREAK);
    attack_size("size-255", 255, MUST_BREAK);
    attack_size("size-double", (uint16_t)(virtio_queue_max(&victim.device, 0) * 2), MAY_BREAK);
    attack_size("size-32768", 32768, MAY_BREAK);
    attack_size("size-65535", 65535, MUST_BREAK);
    attack_live();
    attack_absent_queue();
}

static void attack_features(void)
{
    uint64_t common = victim.device.common;

    virtio_reset(&victim.device);
    virtio_set_status(&victim.device, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER);
    for (uint32_t word = 0; word < 4; word++) {
        mmio_write32(common + COMMON_DRIVER_FEATURE_SELECT, word);
        mmio_write32(common + COMMON_DRIVER_FEATURE, 0xFFFFFFFF);
    }
    virtio_set_status(&victim.device, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK);
    check((virtio_status(&victim.device) & VIRTIO_FEATURES_OK) == 0, "features-all-refused",
          "features that are not offered were accepted");
    attack_end("features-all", MAY_BREAK);
    virtio_reset(&victim.device);
    virtio_set_status(&victim.device, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER);
    for (uint32_t word = 0; word < 2; word++) {
        mmio_write32(common + COMMON_DRIVER_FEATURE_SELECT, word);
        mmio_write32(common + COMMON_DRIVER_FEATURE, 0);
    }
    virtio_set_status(&victim.device, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK);
    check((virtio_status(&victim.device) & VIRTIO_FEATURES_OK) == 0, "legacy-refused",
          "a driver without VERSION_1 was accepted");
    attack_end("legacy", MAY_BREAK);
    victim_start(0);
    for (uint32_t select = 0; select < 64; select++) {
        uint32_t word = select < 32 ? 1u << select : (uint32_t)chance();
        mmio_write32(common + COMMON_DEVICE_FEATURE_SELECT, word);
        mmio_read32(common + COMMON_DEVICE_FEATURE);
        mmio_write32(common + COMMON_DRIVER_FEATURE_SELECT, word);
        mmio_write32(common + COMMON_DRIVER_FEATURE, (uint32_t)chance());
    }
    check(victim_works(), "features-live-works", "feature writes after DRIVER_OK stopped it");
    attack_end("features-live", MUST_WORK);
}

void attack_status(void)
{
    struct places at = good_places();

    attack_features();
    virtio_reset(&victim.device);
    raw_queue(256, at.desc, at.avail, at.used);
    attack_end("driver-ok-first", MAY_BREAK);
    virtio_reset(&victim.device);
    virtio_set_status(&victim.device, VIRTIO_DRIVER_OK);
    virtqueue_notify(&victim.queue);
    attack_end("driver-ok-alone", MAY_BREAK);
    victim_prepare(0);
    virtqueue_notify(&victim.queue);
    attack_end("kick-before-setup", MAY_BREAK);
    victim_prepare(0);
    virtio_queue_setup(&victim.device, &victim.queue, 0, 0, VIRTIO_NO_VECTOR);
    victim_put_request(0);
    victim_post(0);
    attack_end("kick-before-driver-ok", MAY_BREAK);
    victim_start(0);
    for (unsigned i = 0; i < 256; i++) {
        virtio_set_status(&victim.device, (uint8_t)i);
        virtqueue_notify(&victim.queue);
    }
    attack_end("status-all-values", MAY_BREAK);
    victim_start(0);
    virtio_set_status(&victim.device, 0xFF);
    victim_put_request(0);
    victim_post(0);
    attack_end("status-ff", MAY_BREAK);
}
