/*
 * The driver's side of virtio for tests: a split virtqueue laid out in guest memory, and a device
 * class brought up without a transport.
 *
 * It follows the rules of a driver (virtio 1.2 §2.7, §3.1); a test that wants to break them writes
 * to memory itself, for which the areas' addresses are open.
 */
#ifndef FERRY_TESTS_FAKE_DRIVER_H
#define FERRY_TESTS_FAKE_DRIVER_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/virtio/virtio.h"
#include "tests/unit/fake_env.h"

struct fake_queue {
    struct guest_memory *mem;
    uint16_t size;
    gpa_t desc, avail, used; /* the three areas */
    gpa_t end;               /* first address behind them, aligned to 4 KiB */
    bool event_idx;
    uint16_t avail_idx;      /* next entry that the driver will publish */
    uint16_t used_seen;      /* next used entry that it will look at */
    uint16_t n_free;
    uint16_t free_head;      /* descriptors not in use, chained by their `next` */
};

struct fake_piece {
    gpa_t gpa;
    uint32_t length;
    bool writable;
};

struct fake_used {
    uint32_t id;
    uint32_t length;
};

/* Lays an empty queue out from `base` (aligned to 4 KiB); size is a power of two. */
void fake_queue_init(struct fake_queue *q, struct guest_memory *mem, gpa_t base, uint16_t size);

/* Adds a chain and publishes it; returns its head. Asserts that descriptors are free. */
uint16_t fake_queue_add(struct fake_queue *q, const struct fake_piece *pieces, unsigned n);
/* The same through an indirect table written at `table`. */
uint16_t fake_queue_add_indirect(struct fake_queue *q, const struct fake_piece *pieces, unsigned n,
                                 gpa_t table);
/* Whether the device asked for a kick for what was published since avail_idx was `old`. */
bool fake_queue_should_kick(const struct fake_queue *q, uint16_t old);

/* Takes the next used entry, frees its chain; false when there is none. */
bool fake_queue_take(struct fake_queue *q, struct fake_used *used);
uint16_t fake_queue_used_idx(const struct fake_queue *q);
/* Asks for an interrupt at the used entry `at` (event index only). */
void fake_queue_set_used_event(struct fake_queue *q, uint16_t at);

void fake_desc_write(struct fake_queue *q, uint16_t index, gpa_t gpa, uint32_t length,
                     uint16_t flags, uint16_t next);

/* ---- a device class without a transport ---- */

struct fake_transport {
    unsigned queue_interrupts[VIRTIO_MAX_QUEUES];
    unsigned config_interrupts;
};

void fake_transport_attach(struct fake_transport *t, struct virtio_device *vdev);

/*
 * Brings vdev up as a driver does, to DRIVER_OK: negotiates `features` with VERSION_1 added, and
 * enables queues[0 .. n_queues), each of the size that the device offers or less. Takes the lock.
 */
void fake_driver_start(struct virtio_device *vdev, uint64_t features, struct fake_queue *queues,
                       unsigned n_queues);
/* A kick of queue `index`, on this thread as the loop's. Takes the lock. */
void fake_driver_kick(struct virtio_device *vdev, unsigned index);
void fake_driver_reset(struct virtio_device *vdev);

#endif
