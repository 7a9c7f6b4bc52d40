/*
 * A driver of virtio 1.x devices on PCI: modern transport, split rings, MSI-X or polling.
 */
#ifndef GUEST_VIRTIO_H
#define GUEST_VIRTIO_H

#include <stdbool.h>
#include <stdint.h>

#include "pci.h"

#define VIRTIO_VENDOR      0x1AF4
#define VIRTIO_DEVICE_BASE 0x1040

#define VIRTIO_NET     1
#define VIRTIO_BLK     2
#define VIRTIO_CONSOLE 3
#define VIRTIO_RNG     4

/* Device status bits, virtio 1.2, 2.1 */
#define VIRTIO_ACKNOWLEDGE 1
#define VIRTIO_DRIVER      2
#define VIRTIO_DRIVER_OK   4
#define VIRTIO_FEATURES_OK 8
#define VIRTIO_NEEDS_RESET 64
#define VIRTIO_FAILED      128

/* Feature bits, 6 */
#define VIRTIO_F_INDIRECT_DESC (1ull << 28)
#define VIRTIO_F_EVENT_IDX     (1ull << 29)
#define VIRTIO_F_VERSION_1     (1ull << 32)
#define VIRTIO_F_RING_PACKED   (1ull << 34)

/* struct virtio_pci_common_cfg, 4.1.4.3 */
#define COMMON_DEVICE_FEATURE_SELECT 0x00
#define COMMON_DEVICE_FEATURE        0x04
#define COMMON_DRIVER_FEATURE_SELECT 0x08
#define COMMON_DRIVER_FEATURE        0x0C
#define COMMON_CONFIG_VECTOR         0x10
#define COMMON_NUM_QUEUES            0x12
#define COMMON_STATUS                0x14
#define COMMON_GENERATION            0x15
#define COMMON_QUEUE_SELECT          0x16
#define COMMON_QUEUE_SIZE            0x18
#define COMMON_QUEUE_VECTOR          0x1A
#define COMMON_QUEUE_ENABLE          0x1C
#define COMMON_QUEUE_NOTIFY_OFF      0x1E
#define COMMON_QUEUE_DESC            0x20
#define COMMON_QUEUE_DRIVER          0x28
#define COMMON_QUEUE_DEVICE          0x30
#define COMMON_SIZE                  0x38

#define VIRTIO_NO_VECTOR 0xFFFF

/* Split ring, 2.7 */
#define DESC_NEXT     1
#define DESC_WRITE    2
#define DESC_INDIRECT 4
#define AVAIL_NO_INTERRUPT 1
#define USED_NO_NOTIFY     1

struct vring_desc {
    uint64_t address;
    uint32_t length;
    uint16_t flags;
    uint16_t next;
};
_Static_assert(sizeof(struct vring_desc) == 16, "virtio 1.2, 2.7.5");

/* Of a packed ring (2.8.13). */
struct vring_packed_desc {
    uint64_t address;
    uint32_t length;
    uint16_t id;
    uint16_t flags;
};
_Static_assert(sizeof(struct vring_packed_desc) == 16, "virtio 1.2, 2.8.13");

/* What one side wants to be notified of (2.8.14). */
struct vring_packed_event {
    uint16_t at;
    uint16_t flags;
};

struct vring_avail {
    uint16_t flags;
    uint16_t index;
    uint16_t ring[]; /* behind it: used_event */
};

struct vring_used_entry {
    uint32_t id;
    uint32_t length;
};

struct vring_used {
    uint16_t flags;
    uint16_t index;
    struct vring_used_entry ring[]; /* behind it: avail_event */
};

#define VIRTQUEUE_MAX_SIZE 1024

struct virtio_device;

struct virtqueue {
    struct virtio_device *device; /* borrowed */
    uint16_t index;
    uint16_t size;
    volatile struct vring_desc *desc;
    volatile struct vring_avail *avail;
    volatile struct vring_used *used;
    uint64_t notify;          /* address of its doorbell */
    bool event_index;
    bool indirect;            /* chains of several buffers go through a table */
    struct vring_desc *table; /* indirect tables, TABLE_ENTRIES for each head */
    uint16_t free_head;
    uint16_t free_count;
    uint16_t used_seen;
    uint16_t avail_kicked;    /* avail index at the last look at whether to notify */
    void *cookie[VIRTQUEUE_MAX_SIZE];
    /* A packed ring (2.8) has its descriptors at desc, the two event structures at avail and used. */
    bool packed;
    uint16_t next, taken;     /* places: of the next descriptor to offer, of the next used one */
    bool next_wrap, taken_wrap;
    uint16_t kicked;          /* `next` at the last look at whether to notify, */
    bool kicked_wrap;         /* ... and the wrap counter */
    uint16_t ids[VIRTQUEUE_MAX_SIZE];    /* free ones, free_ids of them: a stack */
    uint16_t free_ids;
    uint16_t counts[VIRTQUEUE_MAX_SIZE]; /* descriptors, by id */
};

struct virtio_device {
    struct pci_device pci;
    uint16_t type;
    uint64_t common;
    uint64_t isr;
    uint64_t config;  /* 0 when the device has none */
    uint64_t notify;
    uint32_t config_length;
    uint32_t notify_length;
    uint32_t notify_multiplier;
    uint64_t features; /* negotiated */
};

struct buffer {
    const void *data;
    uint32_t length;
    bool device_writes;
};

/* Finds the nth device of a type and walks its capabilities; false when there is none. */
bool virtio_open(struct virtio_device *device, uint16_t type, unsigned nth);

/*
 * Resets, acknowledges, and accepts the offered features that are in wanted (VERSION_1 always).
 * False when the device takes FEATURES_OK away.
 */
bool virtio_negotiate(struct virtio_device *device, uint64_t wanted);
uint64_t virtio_offered(const struct virtio_device *device);
uint8_t virtio_status(const struct virtio_device *device);
void virtio_set_status(const struct virtio_device *device, uint8_t status);
/* Writes 0 and waits until it reads back. */
bool virtio_reset(const struct virtio_device *device);
void virtio_driver_ok(struct virtio_device *device);

/*
 * Sets up queue index with size entries (0: as many as it has, at most VIRTQUEUE_MAX_SIZE) and
 * enables it. entry is an MSI-X table entry or VIRTIO_NO_VECTOR. Memory is taken anew on the first
 * call for this struct and used again on the next.
 */
bool virtio_queue_setup(struct virtio_device *device, struct virtqueue *queue, uint16_t index,
                        uint16_t size, uint16_t entry);
/* Size that the device offers for queue index; 0: there is no such queue. */
uint16_t virtio_queue_max(const struct virtio_device *device, uint16_t index);

/* Puts a chain into the available ring; false when it does not fit. Not yet a notification. */
bool virtqueue_add(struct virtqueue *queue, const struct buffer *buffers, unsigned count,
                   void *cookie);
/* Notifies if the device wants to be; returns whether it did. */
bool virtqueue_kick(struct virtqueue *queue);
void virtqueue_notify(const struct virtqueue *queue);

/* Takes the next used chain; false when there is none. length may be NULL. */
bool virtqueue_take(struct virtqueue *queue, void **cookie, uint32_t *length);
/* Polls for it. */
bool virtqueue_wait(struct virtqueue *queue, void **cookie, uint32_t *length, uint64_t limit_ns);
/* add, kick, wait; the used length, or -1. */
int64_t virtqueue_request(struct virtqueue *queue, const struct buffer *buffers, unsigned count,
                          uint64_t limit_ns);
/* With event index: ask for an interrupt at the next used entry, or not. Else by the flag. */
void virtqueue_want_interrupt(struct virtqueue *queue, bool want);

#endif
