/* The driver's side of virtio for tests; see the header. Owned by the test's thread. */
#include "tests/unit/fake_driver.h"

#include <criterion/criterion.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <stddef.h>

#define PAGE 4096ull

/* The rings' fields are shared with the device, which may be at work on another thread. */
static uint16_t *field(const struct fake_queue *q, gpa_t gpa)
{
    uint16_t *at = memory_at(q->mem, gpa, sizeof(*at));

    cr_assert_not_null(at);
    return at;
}

static uint16_t get_u16(const struct fake_queue *q, gpa_t gpa)
{
    return __atomic_load_n(field(q, gpa), __ATOMIC_ACQUIRE);
}

static void put_u16(struct fake_queue *q, gpa_t gpa, uint16_t value)
{
    __atomic_store_n(field(q, gpa), value, __ATOMIC_RELEASE);
}

static gpa_t page_up(gpa_t gpa)
{
    return (gpa + PAGE - 1) & ~(PAGE - 1);
}

void fake_desc_write(struct fake_queue *q, uint16_t index, gpa_t gpa, uint32_t length,
                     uint16_t flags, uint16_t next)
{
    struct vring_desc d = {.addr = gpa, .len = length, .flags = flags, .next = next};

    cr_assert_eq(memory_write(q->mem, q->desc + index * sizeof(d), &d, sizeof(d)), 0);
}

void fake_queue_init(struct fake_queue *q, struct guest_memory *mem, gpa_t base, uint16_t size)
{
    *q = (struct fake_queue){.mem = mem, .size = size, .n_free = size};
    q->desc = base;
    q->avail = page_up(q->desc + size * sizeof(struct vring_desc));
    q->used = page_up(q->avail + 6 + 2ull * size);
    q->end = page_up(q->used + 6 + 8ull * size);
    cr_assert_eq(memory_fill(mem, base, 0, q->end - base), 0);
    for (uint16_t i = 0; i < size; i++)
        fake_desc_write(q, i, 0, 0, 0, (uint16_t)(i + 1));
}

static uint16_t desc_next(const struct fake_queue *q, uint16_t index)
{
    return get_u16(q, q->desc + index * sizeof(struct vring_desc) +
                          offsetof(struct vring_desc, next));
}

static uint16_t desc_flags(const struct fake_queue *q, uint16_t index)
{
    return get_u16(q, q->desc + index * sizeof(struct vring_desc) +
                          offsetof(struct vring_desc, flags));
}

static void publish(struct fake_queue *q, uint16_t head)
{
    put_u16(q, q->avail + 4 + 2ull * (q->avail_idx & (q->size - 1u)), head);
    q->avail_idx++;
    put_u16(q, q->avail + offsetof(struct vring_avail, idx), q->avail_idx);
}

static uint16_t piece_flags(const struct fake_piece *p, bool last)
{
    return (uint16_t)((p->writable ? VRING_DESC_F_WRITE : 0) | (last ? 0 : VRING_DESC_F_NEXT));
}

uint16_t fake_queue_add(struct fake_queue *q, const struct fake_piece *pieces, unsigned n)
{
    uint16_t head = q->free_head;

    cr_assert(n > 0 && n <= q->n_free, "the test adds more than the queue holds");
    for (unsigned i = 0; i < n; i++) {
        uint16_t index = q->free_head;
        uint16_t next = desc_next(q, index);

        fake_desc_write(q, index, pieces[i].gpa, pieces[i].length,
                        piece_flags(&pieces[i], i + 1 == n), next);
        q->free_head = next;
    }
    q->n_free = (uint16_t)(q->n_free - n);
    publish(q, head);
    return head;
}

uint16_t fake_queue_add_indirect(struct fake_queue *q, const struct fake_piece *pieces, unsigned n,
                                 gpa_t table)
{
    uint16_t head = q->free_head;

    cr_assert(n > 0 && q->n_free > 0);
    for (unsigned i = 0; i < n; i++) {
        struct vring_desc d = {
            .addr = pieces[i].gpa,
            .len = pieces[i].length,
            .flags = piece_flags(&pieces[i], i + 1 == n),
            .next = (uint16_t)(i + 1),
        };

        cr_assert_eq(memory_write(q->mem, table + i * sizeof(d), &d, sizeof(d)), 0);
    }
    q->free_head = desc_next(q, head);
    q->n_free--;
    fake_desc_write(q, head, table, (uint32_t)(n * sizeof(struct vring_desc)),
                    VRING_DESC_F_INDIRECT, q->free_head);
    publish(q, head);
    return head;
}

bool fake_queue_should_kick(const struct fake_queue *q, uint16_t old)
{
    /* virtio 1.2 §2.7.13.4.1: the index is out before the device's wish is looked at. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (q->event_idx)
        return vring_need_event(get_u16(q, q->used + 4 + 8ull * q->size), q->avail_idx, old);
    return !(get_u16(q, q->used) & VRING_USED_F_NO_NOTIFY);
}

uint16_t fake_queue_used_idx(const struct fake_queue *q)
{
    return get_u16(q, q->used + offsetof(struct vring_used, idx));
}

bool fake_queue_take(struct fake_queue *q, struct fake_used *used)
{
    gpa_t entry = q->used + 4 + 8ull * (q->used_seen & (q->size - 1u));
    uint16_t last;

    if (fake_queue_used_idx(q) == q->used_seen)
        return false;
    cr_assert_eq(memory_read(q->mem, entry, used, sizeof(*used)), 0);
    cr_assert_lt(used->id, q->size);
    q->used_seen++;
    last = (uint16_t)used->id;
    q->n_free++;
    while (desc_flags(q, last) & VRING_DESC_F_NEXT) {
        last = desc_next(q, last);
        q->n_free++;
    }
    fake_desc_write(q, last, 0, 0, 0, q->free_head);
    q->free_head = (uint16_t)used->id;
    return true;
}

void fake_queue_set_used_event(struct fake_queue *q, uint16_t at)
{
    put_u16(q, q->avail + 4 + 2ull * q->size, at);
}

/* ---- a device class without a transport ---- */

static void count_queue(void *transport, unsigned index)
{
    ((struct fake_transport *)transport)->queue_interrupts[index]++;
}

static void count_config(void *transport)
{
    ((struct fake_transport *)transport)->config_interrupts++;
}

static const struct virtio_transport_ops transport_ops = {
    .queue_interrupt = count_queue,
    .config_interrupt = count_config,
};

void fake_transport_attach(struct fake_transport *t, struct virtio_device *vdev)
{
    *t = (struct fake_transport){0};
    virtio_attach(vdev, &transport_ops, t);
}

void fake_driver_start(struct virtio_device *vdev, uint64_t features, struct fake_queue *queues,
                       unsigned n_queues)
{
    uint8_t status = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;

    features |= 1ull << VIRTIO_F_VERSION_1;
    device_lock(vdev->env);
    virtio_set_status(vdev, status);
    virtio_set_driver_features(vdev, 0, (uint32_t)features);
    virtio_set_driver_features(vdev, 1, (uint32_t)(features >> 32));
    status |= VIRTIO_CONFIG_S_FEATURES_OK;
    virtio_set_status(vdev, status);
    cr_assert_eq(virtio_get_status(vdev), status, "the device refused the features");
    for (unsigned i = 0; i < n_queues; i++) {
        struct virtqueue_state *st = &vdev->queues[i].st;

        queues[i].event_idx = features >> VIRTIO_RING_F_EVENT_IDX & 1;
        st->size = queues[i].size;
        st->desc = queues[i].desc;
        st->driver = queues[i].avail;
        st->device = queues[i].used;
        virtio_queue_enable(vdev, i);
        cr_assert(st->enabled, "the device refused queue %u", i);
    }
    status |= VIRTIO_CONFIG_S_DRIVER_OK;
    virtio_set_status(vdev, status);
    cr_assert_eq(virtio_get_status(vdev), status);
    device_unlock(vdev->env);
}

void fake_driver_kick(struct virtio_device *vdev, unsigned index)
{
    device_lock(vdev->env);
    virtio_queue_kicked(vdev, index);
    device_unlock(vdev->env);
}

void fake_driver_reset(struct virtio_device *vdev)
{
    device_lock(vdev->env);
    virtio_set_status(vdev, 0);
    device_unlock(vdev->env);
}
