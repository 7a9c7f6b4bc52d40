/*
 * The virtqueue engine: takes requests from a ring and returns them. Here is the split ring (virtio
 * 1.2 §2.7) and what both layouts share; the packed one is in virtqueue_packed.c.
 *
 * Does not know devices, interrupts or transports, and does not log: what is wrong is told by
 * -EINVAL. Owned by whoever holds the device lock; the other side of the ring is the guest's
 * vCPUs, which run meanwhile and may write anything at any time. So:
 *
 * - every field of the guest's is read once into a local, which alone is checked and used;
 * - the three ring areas are translated once, when the queue is enabled: guest memory does not
 *   move (vmm/memory.h), and the size that they were checked for is a copy of ours;
 * - the fences are these. Taking: the available index is loaded with acquire order, before the
 *   ring entry and the descriptors it published (§2.7.6). Returning: the used index is stored with
 *   release order, after the used entries and the data (§2.7.8.2). Both notification decisions are
 *   a store followed by a load of what the other side stores then loads, so a full fence stands
 *   between (§2.7.7.2, §2.7.10): our used index before the driver's used_event, and our avail_event
 *   or flags before the driver's available index.
 *
 * Not offered, so not here: VIRTIO_F_IN_ORDER, VIRTIO_F_RING_RESET.
 */
#include "devices/virtio/virtqueue.h"

#include <errno.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>

#include "devices/virtio/virtqueue_internal.h"

/* §2.7: what precedes the entries of the two rings, and their sizes. */
#define RING_HEAD 4  /* flags, idx */
#define RING_TAIL 2  /* used_event or avail_event, behind the entries */
#define AVAIL_ENTRY_BYTES 2
#define USED_ENTRY_BYTES 8
#define RING_FLAGS 0
#define RING_IDX 2

_Static_assert(sizeof(struct vring_desc) == DESC_BYTES, "virtio 1.2 §2.7.5");
_Static_assert(sizeof(struct vring_used_elem) == USED_ENTRY_BYTES, "virtio 1.2 §2.7.8");

static const struct state_field queue_fields[] = {
    STATE_FIELD(STATE_U16, struct virtqueue_state, size),
    STATE_FIELD(STATE_BOOL, struct virtqueue_state, enabled),
    STATE_FIELD(STATE_U16, struct virtqueue_state, msix_vector),
    STATE_FIELD(STATE_U64, struct virtqueue_state, desc),
    STATE_FIELD(STATE_U64, struct virtqueue_state, driver),
    STATE_FIELD(STATE_U64, struct virtqueue_state, device),
    STATE_FIELD(STATE_U16, struct virtqueue_state, last_avail),
    STATE_FIELD(STATE_U16, struct virtqueue_state, used_idx),
    STATE_FIELD(STATE_U16, struct virtqueue_state, signalled_used),
    STATE_FIELD(STATE_BOOL, struct virtqueue_state, signalled_valid),
};
const struct state_desc virtqueue_state_desc =
    STATE_DESC("virtqueue", 1, struct virtqueue_state, queue_fields);

/* ---- chains ---- */

int virtqueue_chain_init(struct virtqueue_chain *chain, unsigned capacity)
{
    *chain = (struct virtqueue_chain){.capacity = capacity};
    chain->iov = calloc(capacity, sizeof(*chain->iov));
    chain->gpa = calloc(capacity, sizeof(*chain->gpa));
    if (chain->iov && chain->gpa)
        return 0;
    virtqueue_chain_fini(chain);
    return -ENOMEM;
}

void virtqueue_chain_fini(struct virtqueue_chain *chain)
{
    free(chain->iov);
    free(chain->gpa);
    *chain = (struct virtqueue_chain){0};
}

/* ---- set-up ---- */

void virtqueue_init(struct virtqueue *vq, struct guest_memory *mem, uint16_t max_size)
{
    *vq = (struct virtqueue){.max_size = max_size, .mem = mem};
    virtqueue_reset(vq);
}

void virtqueue_reset(struct virtqueue *vq)
{
    vq->st = (struct virtqueue_state){
        .size = vq->max_size, /* §4.1.4.3: on reset, the maximum the device supports */
        .msix_vector = VIRTIO_MSI_NO_VECTOR,
        .signalled_valid = true,
    };
    vq->event_idx = false;
    vq->indirect = false;
    vq->broken = false;
    vq->kicks_wanted = false;
    vq->avail_event_valid = false;
    vq->desc_table = NULL;
    vq->avail_ring = NULL;
    vq->used_ring = NULL;
    packed_reset(vq);
}

void virtqueue_fini(struct virtqueue *vq)
{
    packed_reset(vq);
}

static uint64_t avail_bytes(uint16_t size)
{
    return RING_HEAD + (uint64_t)size * AVAIL_ENTRY_BYTES + RING_TAIL;
}

static uint64_t used_bytes(uint16_t size)
{
    return RING_HEAD + (uint64_t)size * USED_ENTRY_BYTES + RING_TAIL;
}

static int split_check(const struct virtqueue *vq, const struct virtqueue_state *st)
{
    uint16_t size = st->size;

    if (size == 0 || size > vq->max_size || (size & (size - 1)) != 0)
        return -EINVAL;
    /* §2.7: the alignments that the driver must keep. */
    if (st->desc % 16 != 0 || st->driver % 2 != 0 || st->device % 4 != 0)
        return -EINVAL;
    if (!memory_at(vq->mem, st->desc, (uint64_t)size * DESC_BYTES) ||
        !memory_at(vq->mem, st->driver, avail_bytes(size)) ||
        !memory_at(vq->mem, st->device, used_bytes(size)))
        return -EINVAL;
    /* More taken than returned is what is in flight: never more than the ring holds. */
    if ((uint16_t)(st->last_avail - st->used_idx) > size)
        return -EINVAL;
    return 0;
}

int virtqueue_check(const struct virtqueue *vq, const struct virtqueue_state *st, bool packed)
{
    return packed ? packed_check(vq, st) : split_check(vq, st);
}

static void split_enable(struct virtqueue *vq)
{
    struct virtqueue_state *st = &vq->st;

    vq->desc_table = memory_at(vq->mem, st->desc, (uint64_t)st->size * DESC_BYTES);
    vq->avail_ring = memory_at(vq->mem, st->driver, avail_bytes(st->size));
    vq->used_ring = memory_at(vq->mem, st->device, used_bytes(st->size));
}

static int enable(struct virtqueue *vq, bool event_idx, bool indirect, bool packed)
{
    int err = virtqueue_check(vq, &vq->st, packed);

    if (!err && packed)
        err = packed_enable(vq);
    vq->st.enabled = !err;
    if (err)
        return err;
    if (!packed)
        split_enable(vq);
    vq->packed = packed;
    vq->event_idx = event_idx;
    vq->indirect = indirect;
    vq->broken = false;
    vq->kicks_wanted = true;
    vq->avail_event_valid = false;
    return 0;
}

int virtqueue_enable(struct virtqueue *vq, bool event_idx, bool indirect)
{
    return enable(vq, event_idx, indirect, false);
}

int virtqueue_enable_packed(struct virtqueue *vq, bool event_idx, bool indirect)
{
    return enable(vq, event_idx, indirect, true);
}

/* ---- the rings' fields: 16-bit, aligned, shared with the guest ---- */

/* Writes a field of the used ring and marks it dirty. */
static void store_used_u16(struct virtqueue *vq, size_t offset, uint16_t value, int order)
{
    uint16_t *field = (uint16_t *)((uint8_t *)vq->used_ring + offset);

    if (order == __ATOMIC_RELEASE)
        __atomic_store_n(field, htole16(value), __ATOMIC_RELEASE);
    else
        __atomic_store_n(field, htole16(value), __ATOMIC_RELAXED);
    memory_mark_dirty(vq->mem, vq->st.device + offset, sizeof(value));
}

/* §2.7.10: behind the entries of the used ring. */
static size_t avail_event_offset(const struct virtqueue *vq)
{
    return RING_HEAD + (size_t)vq->st.size * USED_ENTRY_BYTES;
}

static size_t used_event_offset(const struct virtqueue *vq)
{
    return RING_HEAD + (size_t)vq->st.size * AVAIL_ENTRY_BYTES;
}

/* ---- taking requests ---- */

/* Copies a descriptor once: behind the barrier the compiler knows nothing of where it came from,
 * so it cannot read a field from the guest's memory a second time. An indirect table may stand at
 * any address, so this is a copy and not four aligned loads. */
static struct piece read_descriptor(const void *table, unsigned index)
{
    struct vring_desc copy;

    memcpy(&copy, (const uint8_t *)table + (size_t)index * DESC_BYTES, sizeof(copy));
    __asm__ volatile("" : "+m"(copy));
    return (struct piece){
        .gpa = le64toh(copy.addr),
        .length = le32toh(copy.len),
        .flags = le16toh(copy.flags),
        .next = le16toh(copy.next),
    };
}

/* A chain being walked: first in the queue's own table, then perhaps in an indirect one. */
struct walk {
    const void *table;
    unsigned entries; /* of the table */
    unsigned visited; /* descriptors of this table: more than there are make a loop */
    unsigned index;
    bool in_indirect;
};

int virtqueue_add_piece(struct virtqueue *vq, struct virtqueue_chain *chain,
                        const struct piece *p)
{
    bool writable = p->flags & VRING_DESC_F_WRITE;
    unsigned n = chain->n_readable + chain->n_writable;
    void *host;

    /* §2.7.4.2: device-writable after device-readable. */
    if (!writable && chain->n_writable > 0)
        return -EINVAL;
    if (p->length == 0)
        return ++chain->n_empty > VIRTQUEUE_MAX_EMPTY ? -EINVAL : 0; /* no text forbids it */
    if (n >= chain->capacity || n >= VIRTQUEUE_MAX_PIECES)
        return -EINVAL;
    host = memory_at(vq->mem, p->gpa, p->length);
    if (!host)
        return -EINVAL;
    chain->iov[n] = (struct iovec){.iov_base = host, .iov_len = p->length};
    chain->gpa[n] = p->gpa;
    if (writable) {
        chain->n_writable++;
        chain->writable_bytes += p->length;
    } else {
        chain->n_readable++;
        chain->readable_bytes += p->length;
    }
    /* §2.7.5.2: a chain is at most 2^32 bytes long. */
    return chain->readable_bytes + chain->writable_bytes > (1ull << 32) ? -EINVAL : 0;
}

/* §2.7.5.3: goes on in the table that the descriptor names. */
static int enter_indirect(struct virtqueue *vq, struct walk *walk, const struct piece *p)
{
    /* §2.7.5.3.1: only when negotiated, never nested, never with NEXT, and whole descriptors.
     * §2.7.5.3.2: the WRITE flag of this descriptor is ignored. */
    if (!vq->indirect || walk->in_indirect || (p->flags & VRING_DESC_F_NEXT))
        return -EINVAL;
    if (p->length == 0 || p->length % DESC_BYTES != 0)
        return -EINVAL;
    *walk = (struct walk){
        .table = memory_at(vq->mem, p->gpa, p->length),
        .entries = p->length / DESC_BYTES,
        .in_indirect = true,
    };
    return walk->table ? 0 : -EINVAL;
}

static int walk_chain(struct virtqueue *vq, struct virtqueue_chain *chain)
{
    struct walk walk = {
        .table = vq->desc_table,
        .entries = vq->st.size,
        .index = chain->head,
    };

    for (;;) {
        struct piece p;
        int err;

        if (walk.index >= walk.entries || walk.visited >= walk.entries)
            return -EINVAL;
        p = read_descriptor(walk.table, walk.index);
        walk.visited++;
        if (p.flags & VRING_DESC_F_INDIRECT) {
            err = enter_indirect(vq, &walk, &p);
            if (err)
                return err;
            continue;
        }
        err = virtqueue_add_piece(vq, chain, &p);
        if (err || !(p.flags & VRING_DESC_F_NEXT))
            return err;
        walk.index = p.next;
    }
}

/*
 * How many requests wait, or -EINVAL when the index is ahead by more than the ring holds. An empty
 * ring is looked at twice when notifications are wanted: the driver is told from where on it shall
 * notify, and what it published before it could see that is found by the second look.
 */
static int count_waiting(struct virtqueue *vq)
{
    uint16_t waiting = virtqueue_load_acquire(vq->avail_ring, RING_IDX) - vq->st.last_avail;

    if (waiting == 0 && vq->kicks_wanted && virtqueue_enable_kicks(vq))
        waiting = virtqueue_load_acquire(vq->avail_ring, RING_IDX) - vq->st.last_avail;
    return waiting > vq->st.size ? -EINVAL : waiting;
}

static int pop_checked(struct virtqueue *vq, struct virtqueue_chain *chain)
{
    unsigned slot = vq->st.last_avail & (vq->st.size - 1u);
    int waiting = count_waiting(vq);
    int err;

    if (waiting <= 0)
        return waiting;
    virtqueue_chain_clear(chain);
    chain->head = virtqueue_load(vq->avail_ring, RING_HEAD + slot * AVAIL_ENTRY_BYTES);
    err = walk_chain(vq, chain); /* a head outside the table fails there */
    if (err)
        return err;
    vq->st.last_avail++;
    return 1;
}

int virtqueue_pop(struct virtqueue *vq, struct virtqueue_chain *chain)
{
    int got;

    if (!vq->st.enabled)
        return 0;
    if (vq->broken)
        return -EINVAL;
    got = vq->packed ? packed_pop(vq, chain) : pop_checked(vq, chain);
    if (got < 0)
        vq->broken = true;
    return got;
}

void virtqueue_unpop(struct virtqueue *vq)
{
    if (!vq->st.enabled)
        return;
    if (vq->packed)
        packed_unpop(vq);
    else
        vq->st.last_avail--;
}

bool virtqueue_pending(struct virtqueue *vq)
{
    if (!vq->st.enabled || vq->broken)
        return false;
    if (vq->packed)
        return packed_pending(vq);
    return virtqueue_load_acquire(vq->avail_ring, RING_IDX) != vq->st.last_avail;
}

/* ---- returning requests ---- */

void virtqueue_fill(struct virtqueue *vq, uint16_t head, uint32_t written, uint16_t ahead)
{
    unsigned slot;
    size_t offset;
    struct vring_used_elem element = {.id = htole32(head), .len = htole32(written)};

    if (!vq->st.enabled)
        return; /* the driver reset the queue while the request was in flight */
    if (vq->packed) {
        packed_fill(vq, head, written, ahead);
        return;
    }
    slot = (uint16_t)(vq->st.used_idx + ahead) & (vq->st.size - 1u);
    offset = RING_HEAD + (size_t)slot * USED_ENTRY_BYTES;
    memcpy((uint8_t *)vq->used_ring + offset, &element, sizeof(element));
    memory_mark_dirty(vq->mem, vq->st.device + offset, sizeof(element));
}

void virtqueue_flush(struct virtqueue *vq, uint16_t count)
{
    uint16_t unasked;

    if (!vq->st.enabled)
        return;
    if (vq->packed) {
        packed_flush(vq, count);
        return;
    }
    /* When more were returned than 16 bits count since the driver was last asked, the difference
     * says nothing any more and the driver gets its interrupt. */
    unasked = vq->st.used_idx - vq->st.signalled_used;
    if ((uint32_t)unasked + count > UINT16_MAX)
        vq->st.signalled_valid = false;
    vq->st.used_idx += count;
    store_used_u16(vq, RING_IDX, vq->st.used_idx, __ATOMIC_RELEASE);
}

void virtqueue_push_head(struct virtqueue *vq, uint16_t head, uint32_t written)
{
    virtqueue_fill(vq, head, written, 0);
    virtqueue_flush(vq, 1);
}

void virtqueue_push(struct virtqueue *vq, const struct virtqueue_chain *chain, uint32_t written)
{
    uint64_t left = written;

    for (unsigned i = 0; i < chain->n_writable && left > 0; i++) {
        unsigned n = chain->n_readable + i;
        uint64_t length = chain->iov[n].iov_len < left ? chain->iov[n].iov_len : left;

        memory_mark_dirty(vq->mem, chain->gpa[n], length);
        left -= length;
    }
    virtqueue_push_head(vq, chain->head, written);
}

/* ---- notifications ---- */

bool virtqueue_wants_interrupt(struct virtqueue *vq)
{
    uint16_t now = vq->st.used_idx;
    uint16_t before = vq->st.signalled_used;
    bool valid = vq->st.signalled_valid;

    if (vq->st.enabled && vq->packed)
        return packed_wants_interrupt(vq);
    if (!vq->st.enabled || (valid && now == before))
        return false;
    vq->st.signalled_used = now;
    vq->st.signalled_valid = true;
    /* Our used index is stored before the driver's wish is loaded: the driver stores its wish and
     * then looks at the index once more. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!vq->event_idx)
        return !(virtqueue_load(vq->avail_ring, RING_FLAGS) & VRING_AVAIL_F_NO_INTERRUPT);
    return !valid || vring_need_event(virtqueue_load(vq->avail_ring, used_event_offset(vq)), now, before);
}

void virtqueue_disable_kicks(struct virtqueue *vq)
{
    if (!vq->st.enabled || !vq->kicks_wanted)
        return;
    if (vq->packed) {
        packed_disable_kicks(vq);
        return;
    }
    vq->kicks_wanted = false;
    /* With the event index there is nothing to write: avail_event stays behind (§2.7.10.2). */
    if (!vq->event_idx)
        store_used_u16(vq, RING_FLAGS, VRING_USED_F_NO_NOTIFY, __ATOMIC_RELAXED);
}

void virtqueue_mute_kicks(struct virtqueue *vq)
{
    virtqueue_disable_kicks(vq);
    if (!vq->st.enabled || vq->packed || !vq->event_idx || !vq->avail_event_valid ||
        vq->avail_event != vq->st.last_avail)
        return;
    /* §2.7.10.1: the driver notifies when it passes the entry; this one it has passed. */
    vq->avail_event = vq->st.last_avail - 1;
    store_used_u16(vq, avail_event_offset(vq), vq->avail_event, __ATOMIC_RELAXED);
}

bool virtqueue_enable_kicks(struct virtqueue *vq)
{
    bool stored = false;

    if (!vq->st.enabled || vq->broken)
        return false;
    if (vq->packed)
        return packed_enable_kicks(vq);
    if (vq->event_idx) {
        if (!vq->avail_event_valid || vq->avail_event != vq->st.last_avail) {
            store_used_u16(vq, avail_event_offset(vq), vq->st.last_avail, __ATOMIC_RELAXED);
            stored = true;
        }
        vq->avail_event = vq->st.last_avail;
        vq->avail_event_valid = true;
    } else if (!vq->kicks_wanted || !vq->avail_event_valid) {
        store_used_u16(vq, RING_FLAGS, 0, __ATOMIC_RELAXED);
        vq->avail_event_valid = true;
        stored = true;
    }
    vq->kicks_wanted = true;
    /* Our wish is stored before the driver's index is loaded: the driver stores its index and then
     * looks at our wish. Without a store just now, the fence stood behind the last one. */
    if (stored)
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return virtqueue_pending(vq);
}

/* ---- copies ---- */

static uint64_t copy_pieces(const struct iovec *iov, unsigned n, uint64_t offset, uint8_t *buf,
                            uint64_t length, bool to_guest)
{
    uint64_t done = 0;

    for (unsigned i = 0; i < n && done < length; i++) {
        uint64_t room;
        uint8_t *at;

        if (offset >= iov[i].iov_len) {
            offset -= iov[i].iov_len;
            continue;
        }
        at = (uint8_t *)iov[i].iov_base + offset;
        room = iov[i].iov_len - offset;
        if (room > length - done)
            room = length - done;
        if (to_guest)
            memcpy(at, buf + done, room);
        else
            memcpy(buf + done, at, room);
        done += room;
        offset = 0;
    }
    return done;
}

uint64_t virtqueue_read(const struct virtqueue_chain *chain, uint64_t offset, void *to,
                        uint64_t length)
{
    return copy_pieces(chain->iov, chain->n_readable, offset, to, length, false);
}

uint64_t virtqueue_write(const struct virtqueue_chain *chain, uint64_t offset, const void *from,
                         uint64_t length)
{
    /* The buffer is only read from in this direction. */
    return copy_pieces(chain->iov + chain->n_readable, chain->n_writable, offset,
                       (uint8_t *)(uintptr_t)from, length, true);
}
