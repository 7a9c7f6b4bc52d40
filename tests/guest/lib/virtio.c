/*
 * A driver of virtio 1.x devices on PCI: modern transport, split and packed rings, MSI-X or polling.
 *
 * No legacy, no shared memory regions, no administration queue. It keeps the rules
 * of a driver; the payload hostile writes to rings and registers itself to break them.
 * Thread: one processor a device. Ordering: x86 keeps stores in order, so a compiler barrier lies
 * between the descriptor and the avail index, and between the used index and its entry; the one
 * real fence stands between the avail index and the look at what the device wants (2.7.13.4.1).
 * Text: virtio 1.2, 2.1, 2.7, 2.8, 3.1, 4.1.
 */
#include "virtio.h"

#include <stddef.h>

#include "io.h"
#include "memory.h"
#include "timing.h"

#define CAP_COMMON 1
#define CAP_NOTIFY 2
#define CAP_ISR    3
#define CAP_DEVICE 4

#define TABLE_ENTRIES 16
#define RESET_LIMIT   (2 * SECOND)

static void open_capability(struct virtio_device *device, uint16_t cap)
{
    uint8_t slot = device->pci.slot;
    uint8_t type = (uint8_t)pci_read(slot, cap + 3, 1);
    uint8_t bar = (uint8_t)pci_read(slot, cap + 4, 1);
    uint32_t offset = pci_read(slot, cap + 8, 4);
    uint32_t length = pci_read(slot, cap + 12, 4);

    if (bar > 5 || device->pci.bar[bar] == 0)
        return; /* 4.1.4.1: capabilities with a reserved bar are ignored */
    uint64_t at = device->pci.bar[bar] + offset;
    if (type == CAP_COMMON && device->common == 0) {
        device->common = at;
    } else if (type == CAP_ISR && device->isr == 0) {
        device->isr = at;
    } else if (type == CAP_DEVICE && device->config == 0) {
        device->config = at;
        device->config_length = length;
    } else if (type == CAP_NOTIFY && device->notify == 0) {
        device->notify = at;
        device->notify_length = length;
        device->notify_multiplier = pci_read(slot, cap + 16, 4);
    }
}

bool virtio_open(struct virtio_device *device, uint16_t type, unsigned nth)
{
    uint16_t cap = 0;

    *device = (struct virtio_device){ .type = type };
    if (!pci_find(&device->pci, VIRTIO_VENDOR, VIRTIO_DEVICE_BASE + type, nth))
        return false;
    while ((cap = pci_capability(device->pci.slot, PCI_CAP_VENDOR, cap)) != 0)
        open_capability(device, cap);
    return device->common != 0 && device->notify != 0 && device->isr != 0;
}

uint8_t virtio_status(const struct virtio_device *device)
{
    return mmio_read8(device->common + COMMON_STATUS);
}

void virtio_set_status(const struct virtio_device *device, uint8_t status)
{
    mmio_write8(device->common + COMMON_STATUS, status);
}

bool virtio_reset(const struct virtio_device *device)
{
    struct deadline deadline = deadline_in(RESET_LIMIT);

    virtio_set_status(device, 0);
    while (virtio_status(device) != 0) {
        if (deadline_over(&deadline))
            return false;
        cpu_pause();
    }
    return true;
}

uint64_t virtio_offered(const struct virtio_device *device)
{
    mmio_write32(device->common + COMMON_DEVICE_FEATURE_SELECT, 0);
    uint64_t features = mmio_read32(device->common + COMMON_DEVICE_FEATURE);
    mmio_write32(device->common + COMMON_DEVICE_FEATURE_SELECT, 1);
    return features | (uint64_t)mmio_read32(device->common + COMMON_DEVICE_FEATURE) << 32;
}

bool virtio_negotiate(struct virtio_device *device, uint64_t wanted)
{
    if (!virtio_reset(device))
        return false;
    virtio_set_status(device, VIRTIO_ACKNOWLEDGE);
    virtio_set_status(device, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER);
    device->features = virtio_offered(device) & (wanted | VIRTIO_F_VERSION_1);
    mmio_write32(device->common + COMMON_DRIVER_FEATURE_SELECT, 0);
    mmio_write32(device->common + COMMON_DRIVER_FEATURE, (uint32_t)device->features);
    mmio_write32(device->common + COMMON_DRIVER_FEATURE_SELECT, 1);
    mmio_write32(device->common + COMMON_DRIVER_FEATURE, (uint32_t)(device->features >> 32));
    virtio_set_status(device, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK);
    return (virtio_status(device) & VIRTIO_FEATURES_OK) != 0;
}

void virtio_driver_ok(struct virtio_device *device)
{
    virtio_set_status(device, virtio_status(device) | VIRTIO_DRIVER_OK);
}

uint16_t virtio_queue_max(const struct virtio_device *device, uint16_t index)
{
    mmio_write16(device->common + COMMON_QUEUE_SELECT, index);
    return mmio_read16(device->common + COMMON_QUEUE_SIZE);
}

/* Rings in one piece, sizes by 2.7, each aligned to a page. */
static void queue_place(struct virtqueue *queue)
{
    if (queue->desc == NULL) {
        queue->desc = memory_alloc(sizeof(struct vring_desc) * VIRTQUEUE_MAX_SIZE);
        queue->avail = memory_alloc(6 + 2 * VIRTQUEUE_MAX_SIZE);
        queue->used = memory_alloc(6 + 8 * VIRTQUEUE_MAX_SIZE);
        queue->table =
            memory_alloc(sizeof(struct vring_desc) * TABLE_ENTRIES * VIRTQUEUE_MAX_SIZE);
    }
    memset((void *)(uintptr_t)queue->desc, 0, sizeof(struct vring_desc) * queue->size);
    memset((void *)(uintptr_t)queue->avail, 0, 6 + 2u * queue->size);
    memset((void *)(uintptr_t)queue->used, 0, 6 + 8u * queue->size);
    for (uint16_t i = 0; i < queue->size; i++)
        queue->desc[i].next = i + 1;
    queue->free_head = 0;
    queue->free_count = queue->size;
    queue->used_seen = 0;
    queue->avail_kicked = 0;
    queue->next = queue->taken = queue->kicked = 0;
    queue->next_wrap = queue->taken_wrap = queue->kicked_wrap = true;
    queue->free_ids = queue->size;
    for (uint16_t i = 0; i < queue->size; i++)
        queue->ids[i] = i;
    if (queue->packed)
        memset((void *)(uintptr_t)queue->desc, 0, sizeof(struct vring_desc) * queue->size);
}

static void write_address(uint64_t at, const volatile void *address)
{
    mmio_write32(at, (uint32_t)(uintptr_t)address);
    mmio_write32(at + 4, (uint32_t)((uintptr_t)address >> 32));
}

bool virtio_queue_setup(struct virtio_device *device, struct virtqueue *queue, uint16_t index,
                        uint16_t size, uint16_t entry)
{
    uint64_t common = device->common;
    uint16_t max = virtio_queue_max(device, index);

    if (max == 0)
        return false;
    if (size == 0)
        size = max < VIRTQUEUE_MAX_SIZE ? max : VIRTQUEUE_MAX_SIZE;
    queue->device = device;
    queue->index = index;
    queue->size = size;
    queue->event_index = (device->features & VIRTIO_F_EVENT_IDX) != 0;
    queue->indirect = (device->features & VIRTIO_F_INDIRECT_DESC) != 0;
    queue->packed = (device->features & VIRTIO_F_RING_PACKED) != 0;
    queue_place(queue);
    mmio_write16(common + COMMON_QUEUE_SIZE, size);
    mmio_write16(common + COMMON_QUEUE_VECTOR, entry);
    if (mmio_read16(common + COMMON_QUEUE_VECTOR) != entry)
        return false; /* 4.1.5.1.2.1: NO_VECTOR reads back when the device has no room */
    write_address(common + COMMON_QUEUE_DESC, queue->desc);
    write_address(common + COMMON_QUEUE_DRIVER, queue->avail);
    write_address(common + COMMON_QUEUE_DEVICE, queue->used);
    uint16_t offset = mmio_read16(common + COMMON_QUEUE_NOTIFY_OFF);
    queue->notify = device->notify + (uint64_t)offset * device->notify_multiplier;
    mmio_write16(common + COMMON_QUEUE_ENABLE, 1);
    return mmio_read16(common + COMMON_QUEUE_ENABLE) == 1;
}

static void fill_desc(volatile struct vring_desc *desc, const struct buffer *buffer, bool more,
                      uint16_t next)
{
    desc->address = (uintptr_t)buffer->data;
    desc->length = buffer->length;
    desc->flags = (buffer->device_writes ? DESC_WRITE : 0) | (more ? DESC_NEXT : 0);
    if (more)
        desc->next = next;
}

/* The chain as descriptors of the ring itself; returns what is the first free one afterwards. */
static uint16_t fill_direct(struct virtqueue *queue, const struct buffer *buffers, unsigned count)
{
    uint16_t at = queue->free_head;

    for (unsigned i = 0; i < count; i++) {
        uint16_t next = queue->desc[at].next;
        fill_desc(&queue->desc[at], &buffers[i], i + 1 < count, next);
        at = next;
    }
    queue->free_count = (uint16_t)(queue->free_count - count);
    return at;
}

static uint16_t fill_indirect(struct virtqueue *queue, const struct buffer *buffers,
                              unsigned count)
{
    uint16_t head = queue->free_head;
    uint16_t next = queue->desc[head].next;
    struct vring_desc *table = queue->table + (size_t)head * TABLE_ENTRIES;

    for (uint16_t i = 0; i < count; i++)
        fill_desc(&table[i], &buffers[i], i + 1u < count, i + 1);
    queue->desc[head].address = (uintptr_t)table;
    queue->desc[head].length = (uint32_t)(count * sizeof(*table));
    queue->desc[head].flags = DESC_INDIRECT;
    queue->free_count--;
    return next;
}

void virtqueue_notify(const struct virtqueue *queue)
{
    mmio_write16(queue->notify, queue->index);
}

/* ---- packed rings ---- */

#define PACKED_AVAIL (1u << 7)
#define PACKED_USED  (1u << 15)
#define EVENT_DISABLE 1
#define EVENT_DESC    2

static volatile struct vring_packed_desc *packed_ring(const struct virtqueue *queue)
{
    return (volatile struct vring_packed_desc *)queue->desc;
}

static void packed_step(const struct virtqueue *queue, uint16_t *at, bool *wrap, unsigned by)
{
    *at = (uint16_t)(*at + by);
    if (*at >= queue->size) {
        *at = (uint16_t)(*at - queue->size);
        *wrap = !*wrap;
    }
}

/* The buffers as a table, and the one descriptor that names it. */
static struct buffer packed_table(struct virtqueue *queue, const struct buffer *buffers,
                                  unsigned count, uint16_t id)
{
    struct vring_packed_desc *table =
        (struct vring_packed_desc *)(queue->table + (size_t)id * TABLE_ENTRIES);

    for (unsigned i = 0; i < count; i++) {
        table[i] = (struct vring_packed_desc){
            .address = (uintptr_t)buffers[i].data, .length = buffers[i].length,
            .flags = buffers[i].device_writes ? DESC_WRITE : 0,
        };
    }
    return (struct buffer){ table, (uint32_t)(count * sizeof(*table)), false };
}

/* Writes descriptors from queue->next on, the first one's flags last (2.8.21). */
static void packed_offer(struct virtqueue *queue, const struct buffer *buffers, unsigned count,
                         uint16_t id, uint16_t more_flags)
{
    volatile struct vring_packed_desc *ring = packed_ring(queue);
    uint16_t first = queue->next, first_flags = 0;

    for (unsigned i = 0; i < count; i++) {
        uint16_t flags = (uint16_t)((queue->next_wrap ? PACKED_AVAIL : PACKED_USED) | more_flags |
                                    (buffers[i].device_writes ? DESC_WRITE : 0) |
                                    (i + 1 < count ? DESC_NEXT : 0));
        ring[queue->next].address = (uintptr_t)buffers[i].data;
        ring[queue->next].length = buffers[i].length;
        ring[queue->next].id = id;
        if (i == 0)
            first_flags = flags;
        else
            ring[queue->next].flags = flags;
        packed_step(queue, &queue->next, &queue->next_wrap, 1);
    }
    compiler_barrier();
    ring[first].flags = first_flags;
}

static bool packed_add(struct virtqueue *queue, const struct buffer *buffers, unsigned count,
                       void *cookie)
{
    bool indirect = queue->indirect && count > 1 && count <= TABLE_ENTRIES;

    if (count == 0 || queue->free_count < (indirect ? 1 : count))
        return false;
    uint16_t id = queue->ids[--queue->free_ids];
    queue->cookie[id] = cookie;
    if (indirect) {
        struct buffer table = packed_table(queue, buffers, count, id);
        packed_offer(queue, &table, 1, id, DESC_INDIRECT);
        count = 1;
    } else {
        packed_offer(queue, buffers, count, id, 0);
    }
    queue->counts[id] = (uint16_t)count;
    queue->free_count = (uint16_t)(queue->free_count - count);
    return true;
}

static bool packed_kick(struct virtqueue *queue)
{
    const volatile struct vring_packed_event *event =
        (const volatile struct vring_packed_event *)queue->used;

    store_load_barrier();
    bool wanted = event->flags == 0;
    if (event->flags == EVENT_DESC) {
        int at = (event->at & 0x7FFF) -
                 ((event->at >> 15 != 0) == queue->next_wrap ? 0 : queue->size);
        int from = queue->kicked - (queue->kicked_wrap == queue->next_wrap ? 0 : queue->size);
        wanted = at >= from && at < queue->next;
    }
    queue->kicked = queue->next;
    queue->kicked_wrap = queue->next_wrap;
    if (wanted)
        virtqueue_notify(queue);
    return wanted;
}

static bool packed_take(struct virtqueue *queue, void **cookie, uint32_t *length)
{
    const volatile struct vring_packed_desc *entry = &packed_ring(queue)[queue->taken];
    uint16_t flags = entry->flags;

    if (((flags & PACKED_USED) != 0) != queue->taken_wrap ||
        ((flags & PACKED_AVAIL) != 0) != queue->taken_wrap)
        return false;
    compiler_barrier();
    uint16_t id = entry->id;
    if (length != NULL)
        *length = entry->length;
    *cookie = NULL;
    if (id >= queue->size || queue->counts[id] == 0)
        return true;
    *cookie = queue->cookie[id];
    queue->ids[queue->free_ids++] = id;
    queue->free_count = (uint16_t)(queue->free_count + queue->counts[id]);
    packed_step(queue, &queue->taken, &queue->taken_wrap, queue->counts[id]);
    queue->counts[id] = 0;
    return true;
}

static void packed_want_interrupt(struct virtqueue *queue, bool want)
{
    volatile struct vring_packed_event *event = (volatile struct vring_packed_event *)queue->avail;

    event->at = (uint16_t)(queue->taken | (queue->taken_wrap ? 0x8000 : 0));
    compiler_barrier();
    event->flags = want ? (queue->event_index ? EVENT_DESC : 0) : EVENT_DISABLE;
    store_load_barrier();
}

/* ---- both ---- */

bool virtqueue_add(struct virtqueue *queue, const struct buffer *buffers, unsigned count,
                   void *cookie)
{
    if (queue->packed)
        return packed_add(queue, buffers, count, cookie);
    bool indirect = queue->indirect && count > 1 && count <= TABLE_ENTRIES;
    uint16_t head = queue->free_head;

    if (count == 0 || queue->free_count < (indirect ? 1 : count))
        return false;
    queue->free_head = indirect ? fill_indirect(queue, buffers, count)
                                : fill_direct(queue, buffers, count);
    queue->cookie[head] = cookie;
    uint16_t index = queue->avail->index;
    queue->avail->ring[index % queue->size] = head;
    compiler_barrier();
    queue->avail->index = index + 1;
    return true;
}

/* 2.7.10.1: did the index pass event since old? */
static bool passed_event(uint16_t event, uint16_t now, uint16_t old)
{
    return (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

bool virtqueue_kick(struct virtqueue *queue)
{
    if (queue->packed)
        return packed_kick(queue);
    uint16_t now = queue->avail->index;
    uint16_t old = queue->avail_kicked;
    bool wanted;

    store_load_barrier();
    if (queue->event_index) {
        const volatile uint16_t *avail_event =
            (const volatile uint16_t *)&queue->used->ring[queue->size];
        wanted = passed_event(*avail_event, now, old);
    } else {
        wanted = (queue->used->flags & USED_NO_NOTIFY) == 0;
    }
    queue->avail_kicked = now;
    if (wanted)
        virtqueue_notify(queue);
    return wanted;
}

static void free_chain(struct virtqueue *queue, uint16_t head)
{
    uint16_t tail = head;
    uint16_t count = 1;

    while ((queue->desc[tail].flags & DESC_NEXT) != 0 && count < queue->size) {
        tail = queue->desc[tail].next;
        count++;
    }
    queue->desc[tail].next = queue->free_head;
    queue->free_head = head;
    queue->free_count = (uint16_t)(queue->free_count + count);
}

bool virtqueue_take(struct virtqueue *queue, void **cookie, uint32_t *length)
{
    if (queue->packed)
        return packed_take(queue, cookie, length);
    if (queue->used->index == queue->used_seen)
        return false;
    compiler_barrier();
    const volatile struct vring_used_entry *entry =
        &queue->used->ring[queue->used_seen % queue->size];
    uint32_t id = entry->id;
    if (length != NULL)
        *length = entry->length;
    queue->used_seen++;
    if (id >= queue->size) {
        *cookie = NULL;
        return true;
    }
    *cookie = queue->cookie[id];
    free_chain(queue, (uint16_t)id);
    return true;
}

bool virtqueue_wait(struct virtqueue *queue, void **cookie, uint32_t *length, uint64_t limit_ns)
{
    struct deadline deadline = deadline_in(limit_ns);

    while (!virtqueue_take(queue, cookie, length)) {
        if (deadline_over(&deadline))
            return false;
        cpu_pause();
    }
    return true;
}

int64_t virtqueue_request(struct virtqueue *queue, const struct buffer *buffers, unsigned count,
                          uint64_t limit_ns)
{
    void *cookie;
    uint32_t length;

    if (!virtqueue_add(queue, buffers, count, NULL))
        return -1;
    virtqueue_kick(queue);
    if (!virtqueue_wait(queue, &cookie, &length, limit_ns))
        return -1;
    return length;
}

void virtqueue_want_interrupt(struct virtqueue *queue, bool want)
{
    if (queue->packed) {
        packed_want_interrupt(queue, want);
        return;
    }
    volatile uint16_t *used_event = &queue->avail->ring[queue->size];

    if (queue->event_index)
        *used_event = want ? queue->used_seen : (uint16_t)(queue->used_seen - 1);
    else
        queue->avail->flags = want ? 0 : AVAIL_NO_INTERRUPT;
    store_load_barrier();
}
