/*
 * The packed ring (virtio 1.2 §2.8): one ring in which the driver writes descriptors and the device
 * writes over them what it used.
 *
 * Owned by whoever holds the device lock; the guest's vCPUs are on the other side and may write
 * anything at any time. What virtqueue.c says of copies and checks holds here, too. Besides:
 *
 * - Nothing that was read from the ring is read there again: how many descriptors a chain has and
 *   what id it bears are kept here, in a table, whose index is the chain's `head`. An id may be any
 *   number, even that of another chain in flight: that is the driver's loss.
 * - More descriptors than the ring has are never in flight: the driver that offers them has broken
 *   the queue.
 * - What is filled ahead (VIRTIO_NET_F_MRG_RXBUF) is written only by the flush, for the entries it
 *   would write over may be taken back.
 * - The fences are these. Taking: a descriptor's flags are loaded with acquire order, before the rest
 *   of it and of its chain (§2.8.21.1). Returning: of a batch the first entry's flags are stored
 *   last, with release order (§2.8.14). The two notification decisions stand behind full fences, as
 *   in the split ring: our used entries before the driver's event structure, and ours before the
 *   next descriptor's flags.
 *
 * Positions in the state have the wrap counter in bit 15, inverted, so that a ring begins at 0.
 */
#include <errno.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>

#include "devices/virtio/virtqueue_internal.h"

/* §2.8.1: bits of the flags that say for whom a descriptor is. */
#define FLAG_AVAIL (1u << 7)
#define FLAG_USED (1u << 15)

#define FLAGS_AT 14u /* of a descriptor: addr, len, id, flags */
#define EVENT_BYTES 4u /* §2.8.10: offset and wrap counter, flags */
#define EVENT_OFFSET 0u
#define EVENT_FLAGS 2u
#define EVENT_ENABLE 0u
#define EVENT_DISABLE 1u
#define EVENT_DESC 2u
#define EVENT_MASK 3u

#define INVERTED_WRAP 0x8000u

_Static_assert(VIRTQUEUE_MAX_SIZE < INVERTED_WRAP, "positions have 15 bits");

struct packed_ring {
    unsigned in_flight;      /* descriptors that were taken and not returned */
    unsigned unasked;        /* descriptors returned since the driver was last asked */
    unsigned n_free;
    uint16_t free[VIRTQUEUE_MAX_SIZE];  /* heads that name no chain: a stack */
    struct {
        uint16_t id;
        uint16_t count;      /* of descriptors; 0: free */
    } chains[VIRTQUEUE_MAX_SIZE];       /* by head */
    uint16_t ends[VIRTQUEUE_MAX_SIZE];  /* by a chain's last entry: its head */
    struct {
        uint16_t head;
        uint32_t written;
    } filled[VIRTQUEUE_MAX_SIZE];
    unsigned n_filled;
};

/* ---- positions ---- */

static unsigned offset_of(uint16_t position)
{
    return position & (INVERTED_WRAP - 1);
}

static bool wrap_of(uint16_t position)
{
    return !(position & INVERTED_WRAP);
}

static uint16_t advance(const struct virtqueue *vq, uint16_t position, unsigned by)
{
    unsigned offset = offset_of(position) + by;

    if (offset < vq->st.size)
        return (uint16_t)(offset | (position & INVERTED_WRAP));
    return (uint16_t)((offset - vq->st.size) | (~position & INVERTED_WRAP));
}

static uint16_t retreat(const struct virtqueue *vq, uint16_t position, unsigned by)
{
    if (by <= offset_of(position))
        return (uint16_t)(position - by);
    return (uint16_t)((offset_of(position) + vq->st.size - by) | (~position & INVERTED_WRAP));
}

/* As the event structures have it: the wrap counter is not inverted. */
static uint16_t to_event(uint16_t position)
{
    return position ^ INVERTED_WRAP;
}

/* ---- set-up ---- */

int packed_check(const struct virtqueue *vq, const struct virtqueue_state *st)
{
    uint16_t size = st->size;

    /* §2.8.10.1: any size, not powers of two alone. */
    if (size == 0 || size > vq->max_size)
        return -EINVAL;
    /* §2.8: alignments. */
    if (st->desc % 16 != 0 || st->driver % 4 != 0 || st->device % 4 != 0)
        return -EINVAL;
    if (!memory_at(vq->mem, st->desc, (uint64_t)size * DESC_BYTES) ||
        !memory_at(vq->mem, st->driver, EVENT_BYTES) ||
        !memory_at(vq->mem, st->device, EVENT_BYTES))
        return -EINVAL;
    /* Nothing is in flight while a state is saved, and so nothing that would have to be known. */
    if (offset_of(st->last_avail) >= size || st->last_avail != st->used_idx ||
        offset_of(st->signalled_used) >= size)
        return -EINVAL;
    return 0;
}

int packed_enable(struct virtqueue *vq)
{
    struct virtqueue_state *st = &vq->st;
    struct packed_ring *ring = malloc(sizeof(*ring));

    if (!ring)
        return -ENOMEM;
    ring->in_flight = 0;
    ring->unasked = 0;
    ring->n_filled = 0;
    ring->n_free = st->size;
    for (uint16_t i = 0; i < st->size; i++) {
        ring->free[i] = i;
        ring->chains[i].count = 0;
    }
    free(vq->packed_ring);
    vq->packed_ring = ring;
    vq->desc_table = memory_at(vq->mem, st->desc, (uint64_t)st->size * DESC_BYTES);
    vq->avail_ring = memory_at(vq->mem, st->driver, EVENT_BYTES);
    vq->used_ring = memory_at(vq->mem, st->device, EVENT_BYTES);
    return 0;
}

void packed_reset(struct virtqueue *vq)
{
    free(vq->packed_ring);
    vq->packed_ring = NULL;
    vq->packed = false;
}

/* ---- taking requests ---- */

/* Whether a descriptor with these flags is the driver's offer at that position (§2.8.1). */
static bool is_available(uint16_t flags, uint16_t position)
{
    bool avail = flags & FLAG_AVAIL, used = flags & FLAG_USED;

    return avail == wrap_of(position) && used != wrap_of(position);
}

static const uint8_t *entry_at(const struct virtqueue *vq, unsigned offset)
{
    return (const uint8_t *)vq->desc_table + (size_t)offset * DESC_BYTES;
}

bool packed_pending(const struct virtqueue *vq)
{
    uint16_t at = vq->st.last_avail;

    return is_available(virtqueue_load_acquire(entry_at(vq, offset_of(at)), FLAGS_AT), at);
}

/* Copies a descriptor once; behind the barrier the compiler cannot read its fields again. */
static struct piece read_entry(const void *from)
{
    struct vring_packed_desc copy;

    memcpy(&copy, from, sizeof(copy));
    __asm__ volatile("" : "+m"(copy));
    return (struct piece){
        .gpa = le64toh(copy.addr),
        .length = le32toh(copy.len),
        .flags = le16toh(copy.flags),
        .next = le16toh(copy.id),
    };
}

/* §2.8.7: the table's descriptors all belong to the chain, in their order, and WRITE is the only
 * flag that counts there. */
static int add_indirect(struct virtqueue *vq, struct virtqueue_chain *chain, const struct piece *p)
{
    const uint8_t *table;
    unsigned n;

    if (!vq->indirect || p->length == 0 || p->length % DESC_BYTES != 0)
        return -EINVAL;
    table = memory_at(vq->mem, p->gpa, p->length);
    n = p->length / DESC_BYTES;
    if (!table || n > VIRTQUEUE_MAX_PIECES)
        return -EINVAL;
    for (unsigned i = 0; i < n; i++) {
        struct piece inner = read_entry(table + (size_t)i * DESC_BYTES);
        int err = virtqueue_add_piece(vq, chain, &inner);

        if (err)
            return err;
    }
    return 0;
}

/* Walks the chain that begins at last_avail: how many descriptors it has, or -EINVAL. */
static int walk_chain(struct virtqueue *vq, struct virtqueue_chain *chain, uint16_t *id)
{
    unsigned room = vq->st.size - vq->packed_ring->in_flight;
    unsigned offset = offset_of(vq->st.last_avail);

    for (unsigned n = 1; n <= room; n++) {
        struct piece p = read_entry(entry_at(vq, offset));
        int err;

        if (p.flags & VRING_DESC_F_INDIRECT) {
            /* §2.8.7.1: a table stands alone. */
            err = n > 1 || (p.flags & VRING_DESC_F_NEXT) ? -EINVAL : add_indirect(vq, chain, &p);
        } else {
            err = virtqueue_add_piece(vq, chain, &p);
        }
        if (err)
            return err;
        *id = p.next; /* §2.8.6: that of the last one counts */
        if (!(p.flags & VRING_DESC_F_NEXT))
            return (int)n;
        offset = offset + 1 < vq->st.size ? offset + 1 : 0;
    }
    return -EINVAL;
}

int packed_pop(struct virtqueue *vq, struct virtqueue_chain *chain)
{
    struct packed_ring *ring = vq->packed_ring;
    uint16_t id = 0;
    int n;

    /* Empty: looked at twice when kicks are wanted, see virtqueue_pop(). */
    if (!packed_pending(vq) && !(vq->kicks_wanted && packed_enable_kicks(vq)))
        return 0;
    virtqueue_chain_clear(chain);
    n = walk_chain(vq, chain, &id);
    if (n < 0)
        return n;
    chain->head = ring->free[--ring->n_free];
    ring->chains[chain->head].id = id;
    ring->chains[chain->head].count = (uint16_t)n;
    ring->ends[offset_of(advance(vq, vq->st.last_avail, (unsigned)n - 1))] = chain->head;
    ring->in_flight += (unsigned)n;
    vq->st.last_avail = advance(vq, vq->st.last_avail, (unsigned)n);
    return 1;
}

/* Gives a chain's head and descriptors free; how many those were. */
static unsigned release(struct packed_ring *ring, uint16_t head)
{
    unsigned count = ring->chains[head].count;

    ring->chains[head].count = 0;
    ring->free[ring->n_free++] = head;
    ring->in_flight -= count;
    return count;
}

void packed_unpop(struct virtqueue *vq)
{
    uint16_t end = retreat(vq, vq->st.last_avail, 1);
    unsigned count = release(vq->packed_ring, vq->packed_ring->ends[offset_of(end)]);

    vq->st.last_avail = retreat(vq, vq->st.last_avail, count);
}

/* ---- returning requests ---- */

void packed_fill(struct virtqueue *vq, uint16_t head, uint32_t written, uint16_t ahead)
{
    struct packed_ring *ring = vq->packed_ring;

    if (ahead >= vq->st.size || head >= vq->st.size)
        return;
    ring->filled[ahead].head = head;
    ring->filled[ahead].written = written;
    ring->n_filled = ahead + 1u;
}

/* Writes a used entry (§2.8.9), but for its flags. */
static void write_used(struct virtqueue *vq, uint16_t at, uint16_t id, uint32_t written)
{
    size_t offset = (size_t)offset_of(at) * DESC_BYTES;
    struct vring_packed_desc entry = {.len = htole32(written), .id = htole16(id)};

    memcpy((uint8_t *)vq->desc_table + offset + offsetof(struct vring_packed_desc, len),
           &entry.len, sizeof(entry.len) + sizeof(entry.id));
    memory_mark_dirty(vq->mem, vq->st.desc + offset, DESC_BYTES);
}

static void write_used_flags(struct virtqueue *vq, uint16_t at, bool wrote, int order)
{
    uint16_t *field = (uint16_t *)((uint8_t *)vq->desc_table +
                                   (size_t)offset_of(at) * DESC_BYTES + FLAGS_AT);
    uint16_t flags = (uint16_t)((wrap_of(at) ? FLAG_AVAIL | FLAG_USED : 0) |
                                (wrote ? VRING_DESC_F_WRITE : 0));

    if (order == __ATOMIC_RELEASE)
        __atomic_store_n(field, htole16(flags), __ATOMIC_RELEASE);
    else
        __atomic_store_n(field, htole16(flags), __ATOMIC_RELAXED);
}

void packed_flush(struct virtqueue *vq, uint16_t count)
{
    struct packed_ring *ring = vq->packed_ring;
    uint16_t first = vq->st.used_idx, at = first;
    bool any = false, first_wrote = false;

    if (count > ring->n_filled)
        count = (uint16_t)ring->n_filled;
    for (unsigned i = 0; i < count; i++) {
        uint16_t head = ring->filled[i].head;
        bool wrote = ring->filled[i].written > 0;
        unsigned descriptors;

        if (ring->chains[head].count == 0)
            continue; /* not in flight: there is nothing to return */
        write_used(vq, at, ring->chains[head].id, ring->filled[i].written);
        if (any)
            write_used_flags(vq, at, wrote, __ATOMIC_RELAXED);
        else
            first_wrote = wrote;
        any = true;
        descriptors = release(ring, head);
        ring->unasked += descriptors;
        at = advance(vq, at, descriptors);
    }
    ring->n_filled = 0;
    if (!any)
        return;
    vq->st.used_idx = at;
    /* Once round, a position says nothing any more about what came before. */
    if (ring->unasked >= vq->st.size)
        vq->st.signalled_valid = false;
    write_used_flags(vq, first, first_wrote, __ATOMIC_RELEASE);
}

/* ---- notifications ---- */

/* A position as a number that is below the present one's when it comes before it in the ring. */
static int relative(const struct virtqueue *vq, unsigned offset, bool wrap)
{
    return wrap == wrap_of(vq->st.used_idx) ? (int)offset : (int)offset - (int)vq->st.size;
}

bool packed_wants_interrupt(struct virtqueue *vq)
{
    uint16_t before = vq->st.signalled_used, now = vq->st.used_idx, flags, event;
    bool valid = vq->st.signalled_valid;
    int at;

    if (valid && now == before)
        return false;
    vq->st.signalled_used = now;
    vq->st.signalled_valid = true;
    vq->packed_ring->unasked = 0;
    /* Our used entries are stored before the driver's wish is loaded. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    flags = virtqueue_load_acquire(vq->avail_ring, EVENT_FLAGS) & EVENT_MASK;
    if (flags != EVENT_DESC || !vq->event_idx)
        return flags != EVENT_DISABLE;
    /* §2.8.10: when the entry at that place was written. */
    event = virtqueue_load(vq->avail_ring, EVENT_OFFSET);
    at = relative(vq, event & (INVERTED_WRAP - 1), event & INVERTED_WRAP);
    return !valid || (at >= relative(vq, offset_of(before), wrap_of(before)) &&
                      at < (int)offset_of(now));
}

static void store_event(struct virtqueue *vq, unsigned offset, uint16_t value)
{
    __atomic_store_n((uint16_t *)((uint8_t *)vq->used_ring + offset), htole16(value),
                     __ATOMIC_RELEASE);
    memory_mark_dirty(vq->mem, vq->st.device + offset, sizeof(value));
}

void packed_disable_kicks(struct virtqueue *vq)
{
    vq->kicks_wanted = false;
    vq->avail_event_valid = false;
    store_event(vq, EVENT_FLAGS, EVENT_DISABLE);
}

bool packed_enable_kicks(struct virtqueue *vq)
{
    uint16_t at = vq->st.last_avail;
    bool stale = !vq->avail_event_valid || (vq->event_idx && vq->avail_event != at);

    if (stale && vq->event_idx)
        store_event(vq, EVENT_OFFSET, to_event(at));
    if (!vq->avail_event_valid)
        store_event(vq, EVENT_FLAGS, vq->event_idx ? EVENT_DESC : EVENT_ENABLE);
    vq->avail_event = at;
    vq->avail_event_valid = true;
    vq->kicks_wanted = true;
    /* Our wish is stored before the next descriptor's flags are loaded: the driver stores those and
     * then looks at our wish. */
    if (stale)
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return packed_pending(vq);
}
