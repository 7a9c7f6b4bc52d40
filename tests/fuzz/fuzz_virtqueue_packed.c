/*
 * The packed ring on any memory, beside a naive reading of the same ring. The input says what was
 * negotiated, how large the ring is, what the device does (pops, puts back, returns in any order,
 * notifications) and what the guest's memory holds; it may change that memory between two operations.
 *
 * What the engine takes must be what the naive reader finds, what that finds broken must be broken;
 * what is returned stands where it must, with the id that was read; and nothing else is written but
 * the wish for a kick.
 */
#include <errno.h>
#include <linux/virtio_ring.h>
#include <string.h>

#include "devices/virtio/virtqueue.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/machine.h"

#define MEMORY_SIZE 32768u
#define CAPACITY 64
#define MAX_SIZE 40u
#define RING_AT 0x1000u
#define DRIVER_AT 0x0800u
#define DEVICE_AT 0x0810u

static struct guest_memory *mem;
static uint8_t *ram;
static uint8_t before[MEMORY_SIZE];
static struct virtqueue_chain chain;

/* The device's side as the model has it: places count on without end. */
static struct {
    uint64_t avail, used;
    struct {
        uint16_t head, id;
        unsigned count;
    } flying[MAX_SIZE]; /* in the order of their taking */
    unsigned n_flying, descriptors;
    bool last_is_flying; /* the one taken last */
} model;

struct naive {
    unsigned n_readable, n_writable, n_empty, count;
    uint16_t id;
    struct vring_packed_desc pieces[CAPACITY];
};

static bool wrap_of(const struct virtqueue *vq, uint64_t place)
{
    return place / vq->st.size % 2 == 0;
}

static bool in_ram(uint64_t gpa, uint64_t length)
{
    return gpa < MEMORY_SIZE && length <= MEMORY_SIZE - gpa;
}

static bool naive_piece(struct naive *out, const struct vring_packed_desc *d)
{
    bool writable = d->flags & VRING_DESC_F_WRITE;
    unsigned n = out->n_readable + out->n_writable;

    if (!writable && out->n_writable > 0)
        return false;
    if (d->len == 0)
        return ++out->n_empty <= VIRTQUEUE_MAX_EMPTY;
    if (n == CAPACITY || !in_ram(d->addr, d->len))
        return false;
    out->pieces[n] = *d;
    *(writable ? &out->n_writable : &out->n_readable) += 1;
    return true;
}

static bool naive_table(struct naive *out, const struct vring_packed_desc *d)
{
    if (d->len == 0 || d->len % 16 || !in_ram(d->addr, d->len) || d->len / 16 > 1024)
        return false;
    for (uint32_t i = 0; i < d->len / 16; i++) {
        struct vring_packed_desc inner;

        memcpy(&inner, ram + d->addr + 16ull * i, 16);
        if (!naive_piece(out, &inner))
            return false;
    }
    return true;
}

/* -1: broken; 0: nothing waits; 1: *out. */
static int naive_pop(const struct virtqueue *vq, struct naive *out)
{
    unsigned size = vq->st.size;

    memset(out, 0, sizeof(*out));
    for (;;) {
        uint64_t place = model.avail + out->count;
        struct vring_packed_desc d;

        memcpy(&d, ram + RING_AT + 16 * (place % size), 16);
        if (out->count == 0 && (!!(d.flags & 0x80) != wrap_of(vq, place) ||
                                !!(d.flags & 0x8000) == wrap_of(vq, place)))
            return 0;
        if (++out->count > size - model.descriptors)
            return -1;
        if (d.flags & VRING_DESC_F_INDIRECT) {
            if (!vq->indirect || out->count > 1 || (d.flags & VRING_DESC_F_NEXT) ||
                !naive_table(out, &d))
                return -1;
        } else if (!naive_piece(out, &d)) {
            return -1;
        }
        out->id = d.id;
        if (!(d.flags & VRING_DESC_F_NEXT))
            return 1;
    }
}

static void check_chain(const struct naive *want)
{
    FUZZ_CHECK(chain.n_readable == want->n_readable && chain.n_writable == want->n_writable);
    for (unsigned i = 0; i < want->n_readable + want->n_writable; i++) {
        FUZZ_CHECK(chain.gpa[i] == want->pieces[i].addr);
        FUZZ_CHECK(chain.iov[i].iov_len == want->pieces[i].len);
        FUZZ_CHECK(chain.iov[i].iov_base == ram + want->pieces[i].addr);
    }
    for (unsigned i = 0; i < model.n_flying; i++)
        FUZZ_CHECK(model.flying[i].head != chain.head);
}

/* Nothing changed but our event structure and so many bytes of the ring from a descriptor on. */
static void check_unwritten(void)
{
    memcpy(before + DEVICE_AT, ram + DEVICE_AT, 4);
    FUZZ_CHECK(memcmp(ram, before, MEMORY_SIZE) == 0);
}

static void try_pop(struct virtqueue *vq)
{
    bool was_broken = vq->broken;
    struct naive want;
    int expected = naive_pop(vq, &want), got;

    memcpy(before, ram, MEMORY_SIZE);
    got = virtqueue_pop(vq, &chain);
    check_unwritten();
    FUZZ_CHECK(got == (was_broken || expected < 0 ? -EINVAL : expected));
    FUZZ_CHECK(vq->broken == (got < 0));
    if (got <= 0)
        return;
    check_chain(&want);
    model.flying[model.n_flying].head = chain.head;
    model.flying[model.n_flying].id = want.id;
    model.flying[model.n_flying++].count = want.count;
    model.descriptors += want.count;
    model.avail += want.count;
    model.last_is_flying = true;
}

static void unpop(struct virtqueue *vq)
{
    if (!model.last_is_flying)
        return;
    model.n_flying--;
    model.avail -= model.flying[model.n_flying].count;
    model.descriptors -= model.flying[model.n_flying].count;
    /* The one before it may have been returned: then there is no last one to put back. */
    model.last_is_flying = false;
    virtqueue_unpop(vq);
}

/* What the model says that the flush writes for chain `i`; at which place the next one goes. */
static void expect_used(const struct virtqueue *vq, unsigned i, uint32_t written)
{
    uint8_t *at = before + RING_AT + 16 * (model.used % vq->st.size);
    uint16_t flags = (uint16_t)((wrap_of(vq, model.used) ? 0x8080 : 0) |
                                (written ? VRING_DESC_F_WRITE : 0));

    memcpy(at + 8, &written, 4);
    memcpy(at + 12, &model.flying[i].id, 2);
    memcpy(at + 14, &flags, 2);
    model.used += model.flying[i].count;
    model.descriptors -= model.flying[i].count;
    if (i + 1 == model.n_flying)
        model.last_is_flying = false;
    memmove(&model.flying[i], &model.flying[i + 1],
            (model.n_flying - i - 1) * sizeof(model.flying[0]));
    model.n_flying--;
}

/* Returns up to three chains at once, in any order. */
static void give_back(struct virtqueue *vq, struct fuzz_input *in)
{
    unsigned n = fuzz_u8(in) % 4;
    uint16_t count = 0;

    memcpy(before, ram, MEMORY_SIZE);
    while (count < n && model.n_flying > 0) {
        unsigned i = fuzz_u8(in) % model.n_flying;
        uint32_t written = fuzz_u16(in);

        virtqueue_fill(vq, model.flying[i].head, written, count++);
        expect_used(vq, i, written);
    }
    if (count > 0)
        virtqueue_flush(vq, count);
    check_unwritten();
    FUZZ_CHECK(vq->st.used_idx % 0x8000 == model.used % vq->st.size);
}

static void operate(struct virtqueue *vq, struct fuzz_input *in)
{
    uint8_t op = fuzz_u8(in);

    switch (op % 8) {
    case 0:
    case 1:
        try_pop(vq);
        break;
    case 2:
        give_back(vq, in);
        break;
    case 3:
        unpop(vq);
        break;
    case 4:
        (void)virtqueue_wants_interrupt(vq);
        break;
    case 5:
        virtqueue_disable_kicks(vq);
        break;
    case 6: {
        struct naive none;
        bool waits = virtqueue_enable_kicks(vq);

        FUZZ_CHECK(waits == (!vq->broken && naive_pop(vq, &none) != 0));
        FUZZ_CHECK(waits == virtqueue_pending(vq));
        break;
    }
    case 7: { /* the guest writes */
        uint16_t at = fuzz_u16(in), value = fuzz_u16(in);

        memcpy(ram + (at % MEMORY_SIZE & ~1u), &value, 2);
        break;
    }
    }
}

/* A proper driver's next descriptor, now and then. */
static void fill_ring(const struct virtqueue *vq, struct fuzz_input *in)
{
    unsigned n = fuzz_u8(in);

    for (unsigned i = 0; i < n; i++) {
        uint8_t how = fuzz_u8(in);
        struct vring_packed_desc d = {
            .addr = 0x4000 + how * 16ull, .len = how & 0x3F, .id = i,
            .flags = (uint16_t)((how & 7 & (i % 3 ? 7 : 3)) |
                                (wrap_of(vq, i) ? 0x80 : 0x8000)),
        };

        memcpy(ram + RING_AT + 16 * (i % vq->st.size), &d, 16);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {.data = data, .size = size};
    struct virtqueue vq;
    uint8_t flags = fuzz_u8(&in);

    if (!mem) {
        FUZZ_CHECK(memory_create(&mem, &(struct memory_config){.size = MEMORY_SIZE}) == 0);
        FUZZ_CHECK(virtqueue_chain_init(&chain, CAPACITY) == 0);
        ram = memory_at(mem, 0, MEMORY_SIZE);
    }
    memset(ram, 0, MEMORY_SIZE);
    memset(&model, 0, sizeof(model));
    virtqueue_init(&vq, mem, 64);
    vq.st.size = (uint16_t)(1 + fuzz_u8(&in) % MAX_SIZE);
    vq.st.desc = RING_AT;
    vq.st.driver = DRIVER_AT;
    vq.st.device = DEVICE_AT;
    FUZZ_CHECK(virtqueue_enable_packed(&vq, flags & 1, flags & 2) == 0);
    while (in.size > 0) {
        if (flags & 4)
            fill_ring(&vq, &in);
        for (unsigned i = 0; i < 24 && in.size > 0; i++)
            operate(&vq, &in);
    }
    virtqueue_fini(&vq);
    return 0;
}
