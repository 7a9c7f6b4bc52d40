/* The driver's side of a packed virtqueue; see the header. Owned by the test's thread. */
#include "tests/unit/fake_packed.h"

#include <criterion/criterion.h>
#include <linux/virtio_ring.h>
#include <stddef.h>

#define FLAG_AVAIL (1u << 7)
#define FLAG_USED (1u << 15)

static uint16_t *field(const struct fake_packed *q, gpa_t gpa)
{
    uint16_t *at = memory_at(q->mem, gpa, sizeof(*at));

    cr_assert_not_null(at);
    return at;
}

void fake_packed_init(struct fake_packed *q, struct guest_memory *mem, gpa_t base, uint16_t size)
{
    cr_assert_leq(size, FAKE_PACKED_MAX);
    *q = (struct fake_packed){
        .mem = mem, .size = size, .n_free = size, .ring = base,
        .driver = base + 16ull * size, .device = base + 16ull * size + 4,
        .next_wrap = true, .used_wrap = true, .n_ids = size,
    };
    cr_assert_eq(memory_fill(mem, base, 0, 16ull * size + 8), 0);
    for (uint16_t i = 0; i < size; i++)
        q->ids[i] = i;
}

uint16_t fake_packed_avail(bool wrap)
{
    return wrap ? FLAG_AVAIL : FLAG_USED;
}

void fake_packed_write(struct fake_packed *q, uint16_t at, gpa_t gpa, uint32_t length, uint16_t id,
                       uint16_t flags)
{
    const struct vring_packed_desc desc = {.addr = gpa, .len = length, .id = id};
    gpa_t place = q->ring + 16ull * at;

    cr_assert_eq(memory_write(q->mem, place, &desc, 14), 0);
    __atomic_store_n(field(q, place + 14), flags, __ATOMIC_RELEASE);
}

static void step(const struct fake_packed *q, uint16_t *at, bool *wrap, unsigned by)
{
    *at = (uint16_t)(*at + by);
    if (*at >= q->size) {
        *at = (uint16_t)(*at - q->size);
        *wrap = !*wrap;
    }
}

static uint16_t take_id(struct fake_packed *q, unsigned n)
{
    uint16_t id;

    cr_assert(n > 0 && n <= q->n_free && q->n_ids > 0, "the test adds more than the queue holds");
    id = q->ids[--q->n_ids];
    q->counts[id] = (uint16_t)n;
    q->n_free = (uint16_t)(q->n_free - n);
    return id;
}

uint16_t fake_packed_add(struct fake_packed *q, const struct fake_piece *pieces, unsigned n)
{
    uint16_t id = take_id(q, n), places[FAKE_PACKED_MAX], flags[FAKE_PACKED_MAX];

    for (unsigned i = 0; i < n; i++) {
        places[i] = q->next;
        flags[i] = (uint16_t)(fake_packed_avail(q->next_wrap) |
                              (pieces[i].writable ? VRING_DESC_F_WRITE : 0) |
                              (i + 1 < n ? VRING_DESC_F_NEXT : 0));
        step(q, &q->next, &q->next_wrap, 1);
    }
    /* The first last: it makes the chain available (§2.8.21). */
    for (unsigned i = n; i-- > 0;)
        fake_packed_write(q, places[i], pieces[i].gpa, pieces[i].length, id, flags[i]);
    return id;
}

uint16_t fake_packed_add_indirect(struct fake_packed *q, const struct fake_piece *pieces,
                                  unsigned n, gpa_t table)
{
    uint16_t id = take_id(q, 1);

    for (unsigned i = 0; i < n; i++) {
        const struct vring_packed_desc desc = {
            .addr = pieces[i].gpa, .len = pieces[i].length, .id = 0xFFFF,
            .flags = pieces[i].writable ? VRING_DESC_F_WRITE : 0,
        };

        cr_assert_eq(memory_write(q->mem, table + i * sizeof(desc), &desc, sizeof(desc)), 0);
    }
    fake_packed_write(q, q->next, table, n * 16, id,
                      (uint16_t)(fake_packed_avail(q->next_wrap) | VRING_DESC_F_INDIRECT));
    step(q, &q->next, &q->next_wrap, 1);
    return id;
}

bool fake_packed_take(struct fake_packed *q, struct fake_used *used)
{
    gpa_t place = q->ring + 16ull * q->used;
    uint16_t flags = __atomic_load_n(field(q, place + 14), __ATOMIC_ACQUIRE);
    struct vring_packed_desc desc;

    if (!!(flags & FLAG_USED) != q->used_wrap || !!(flags & FLAG_AVAIL) != q->used_wrap)
        return false;
    cr_assert_eq(memory_read(q->mem, place, &desc, sizeof(desc)), 0);
    cr_assert_lt(desc.id, q->size);
    cr_assert_gt(q->counts[desc.id], 0, "id %u is not in flight", desc.id);
    *used = (struct fake_used){.id = desc.id, .length = desc.len};
    step(q, &q->used, &q->used_wrap, q->counts[desc.id]);
    q->n_free = (uint16_t)(q->n_free + q->counts[desc.id]);
    q->counts[desc.id] = 0;
    q->ids[q->n_ids++] = desc.id;
    return true;
}

bool fake_packed_should_kick(const struct fake_packed *q, uint16_t old, bool old_wrap)
{
    uint16_t event, flags;
    int at, from;

    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    flags = __atomic_load_n(field(q, q->device + 2), __ATOMIC_ACQUIRE) & 3;
    if (flags != 2)
        return flags == 0;
    event = __atomic_load_n(field(q, q->device), __ATOMIC_ACQUIRE);
    at = (event & 0x7FFF) - (!!(event & 0x8000) == q->next_wrap ? 0 : q->size);
    from = old - (old_wrap == q->next_wrap ? 0 : q->size);
    return at >= from && at < q->next;
}

void fake_packed_set_event(struct fake_packed *q, uint16_t flags, uint16_t at, bool wrap)
{
    *field(q, q->driver) = (uint16_t)(at | (wrap ? 0x8000 : 0));
    __atomic_store_n(field(q, q->driver + 2), flags, __ATOMIC_RELEASE);
}
