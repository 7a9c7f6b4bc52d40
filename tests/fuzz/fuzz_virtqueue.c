/*
 * The virtqueue engine on any memory, beside a naive reading of the same ring. The input says what
 * was negotiated, where the three areas are, what the device does (pops, pushes, notifications) and
 * what the guest's memory holds; it may change that memory between two operations.
 *
 * What the engine takes must be what the naive reader finds, what that finds broken must be broken,
 * and taking writes nothing to the guest's memory but the wish for a kick.
 */
#include <errno.h>
#include <linux/virtio_ring.h>
#include <string.h>

#include "devices/virtio/virtqueue.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/machine.h"

#define MEMORY_SIZE 65536u
#define CAPACITY 64
#define MAX_SIZE 64

static struct guest_memory *mem;
static uint8_t *ram;
static struct virtqueue_chain chain;

/* What the naive reader makes of a chain. */
struct naive {
    bool broken;
    unsigned n_readable, n_writable, n_empty;
    struct vring_desc pieces[CAPACITY];
};

static void set_up(void)
{
    if (mem)
        return;
    FUZZ_CHECK(memory_create(&mem, &(struct memory_config){.size = MEMORY_SIZE}) == 0);
    FUZZ_CHECK(virtqueue_chain_init(&chain, CAPACITY) == 0);
    ram = memory_at(mem, 0, MEMORY_SIZE);
}

static bool in_ram(uint64_t gpa, uint64_t length)
{
    return gpa < MEMORY_SIZE && length <= MEMORY_SIZE - gpa;
}

static bool naive_piece(struct naive *out, const struct vring_desc *d)
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
    if (writable)
        out->n_writable++;
    else
        out->n_readable++;
    return true;
}

static bool naive_table(struct naive *out, uint64_t table, uint64_t entries, unsigned index,
                        bool may_nest)
{
    for (unsigned seen = 0; seen < entries; seen++) {
        struct vring_desc d;

        if (index >= entries)
            return false;
        memcpy(&d, ram + table + 16ull * index, 16);
        if (d.flags & VRING_DESC_F_INDIRECT)
            return may_nest && !(d.flags & VRING_DESC_F_NEXT) && d.len > 0 && d.len % 16 == 0 &&
                   in_ram(d.addr, d.len) && naive_table(out, d.addr, d.len / 16, 0, false);
        if (!naive_piece(out, &d))
            return false;
        if (!(d.flags & VRING_DESC_F_NEXT))
            return true;
        index = d.next;
    }
    return false; /* a loop */
}

/* -1: broken; 0: nothing waits; 1: *out. */
static int naive_pop(const struct virtqueue *vq, struct naive *out)
{
    const struct virtqueue_state *st = &vq->st;
    uint16_t waiting, head;

    memset(out, 0, sizeof(*out));
    memcpy(&waiting, ram + st->driver + 2, 2);
    waiting = (uint16_t)(waiting - st->last_avail);
    if (waiting == 0)
        return 0;
    memcpy(&head, ram + st->driver + 4 + 2u * (st->last_avail % st->size), 2);
    if (waiting > st->size || !naive_table(out, st->desc, st->size, head, vq->indirect))
        return -1;
    return 1;
}

static void check_chain(const struct naive *want)
{
    unsigned n = want->n_readable + want->n_writable;
    uint64_t readable = 0, writable = 0;

    FUZZ_CHECK(chain.n_readable == want->n_readable && chain.n_writable == want->n_writable);
    for (unsigned i = 0; i < n; i++) {
        FUZZ_CHECK(chain.gpa[i] == want->pieces[i].addr);
        FUZZ_CHECK(chain.iov[i].iov_len == want->pieces[i].len);
        FUZZ_CHECK(chain.iov[i].iov_base == ram + want->pieces[i].addr);
        *(i < want->n_readable ? &readable : &writable) += want->pieces[i].len;
    }
    FUZZ_CHECK(chain.readable_bytes == readable && chain.writable_bytes == writable);
}

/* That only the used ring's flags or its avail_event changed. */
static void check_unwritten(const struct virtqueue *vq, const uint8_t *before)
{
    uint64_t wish = vq->st.device + (vq->event_idx ? 4 + 8ull * vq->st.size : 0);

    FUZZ_CHECK(memcmp(ram, before, wish) == 0);
    FUZZ_CHECK(memcmp(ram + wish + 2, before + wish + 2, MEMORY_SIZE - wish - 2) == 0);
}

static void try_pop(struct virtqueue *vq)
{
    static uint8_t before[MEMORY_SIZE];
    struct naive want;
    bool was_broken = vq->broken;
    int expected = naive_pop(vq, &want);
    int got;

    /* An empty pop may write its wish over the index that it looks at: only the guest's loss. */
    memcpy(before, ram, MEMORY_SIZE);
    got = virtqueue_pop(vq, &chain);
    check_unwritten(vq, before);
    if (was_broken) {
        FUZZ_CHECK(got == -EINVAL);
    } else if (expected == 1) {
        FUZZ_CHECK(got == 1);
        check_chain(&want);
    } else if (expected == -1) {
        FUZZ_CHECK(got == -EINVAL && vq->broken);
    } else {
        FUZZ_CHECK(got <= 1);
    }
}

static void operate(struct virtqueue *vq, struct fuzz_input *in)
{
    uint8_t bytes[300];
    uint8_t op = fuzz_u8(in);

    switch (op % 10) {
    case 0:
    case 1:
        try_pop(vq);
        break;
    case 2:
        virtqueue_push(vq, &chain, fuzz_u16(in));
        break;
    case 3:
        virtqueue_push_head(vq, fuzz_u16(in), fuzz_u32(in));
        break;
    case 4:
        if (vq->st.last_avail != vq->st.used_idx)
            virtqueue_unpop(vq);
        break;
    case 5:
        (void)virtqueue_wants_interrupt(vq);
        break;
    case 6:
        virtqueue_disable_kicks(vq);
        break;
    case 7:
        (void)virtqueue_enable_kicks(vq);
        (void)virtqueue_pending(vq);
        break;
    case 8: { /* the guest writes */
        uint16_t at = fuzz_u16(in), value = fuzz_u16(in);

        memcpy(ram + (at & ~1u), &value, 2);
        break;
    }
    case 9:
        FUZZ_CHECK(virtqueue_read(&chain, fuzz_u8(in), bytes, sizeof(bytes)) <= sizeof(bytes));
        break;
    }
}

/* The areas as the input wants them, near enough to be possible often. */
static void describe(struct virtqueue *vq, struct fuzz_input *in)
{
    vq->st.size = (uint16_t)(1u << (fuzz_u8(in) % 8));
    vq->st.desc = (gpa_t)fuzz_u16(in) & ~15ull;
    vq->st.driver = (gpa_t)fuzz_u16(in) & ~1ull;
    vq->st.device = (gpa_t)fuzz_u16(in) & ~3ull;
    vq->st.last_avail = fuzz_u16(in);
    vq->st.used_idx = vq->st.last_avail;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {.data = data, .size = size};
    struct fuzz_input ops;
    struct virtqueue vq;
    uint8_t flags = fuzz_u8(&in);
    size_t ops_size;

    set_up();
    memset(ram, 0, MEMORY_SIZE);
    chain.n_readable = 0;
    chain.n_writable = 0;
    virtqueue_init(&vq, mem, MAX_SIZE);
    describe(&vq, &in);
    ops_size = fuzz_u8(&in);
    if (ops_size > in.size)
        ops_size = in.size;
    ops = (struct fuzz_input){.data = in.data, .size = ops_size};
    in.data += ops_size;
    in.size -= ops_size;
    /* The rest is memory, from the descriptor table on. */
    if (in.size > MEMORY_SIZE - vq.st.desc)
        in.size = MEMORY_SIZE - vq.st.desc;
    if (in.size > 0)
        memcpy(ram + vq.st.desc, in.data, in.size);
    if (virtqueue_enable(&vq, flags & 1, flags & 2) != 0) {
        FUZZ_CHECK(!vq.st.enabled);
        return 0;
    }
    while (ops.size > 0)
        operate(&vq, &ops);
    return 0;
}
