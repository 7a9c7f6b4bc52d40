/*
 * The virtqueue engine: set-up, every way a chain can be wrong, what is returned, notifications by
 * flags and by event index across the wrap of the 16-bit indexes.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>

#include "devices/virtio/virtqueue.h"
#include "tests/unit/fake_driver.h"
#include "tests/unit/xorshift.h"
#include "vmm/memory.h"

#define SIZE 16
#define RING_AT 0x10000ull
#define TABLE_AT 0x20000ull /* an indirect table */
#define DATA_AT 0x40000ull
#define RAM_BYTES (4 * MIB)
#define CAPACITY 32

static struct guest_memory *mem;
static struct virtqueue vq;
static struct virtqueue_chain chain;
static struct fake_queue drv;

static void enable(bool event_idx, bool indirect)
{
    virtqueue_reset(&vq);
    vq.st.size = SIZE;
    vq.st.desc = drv.desc;
    vq.st.driver = drv.avail;
    vq.st.device = drv.used;
    drv.event_idx = event_idx;
    cr_assert_eq(virtqueue_enable(&vq, event_idx, indirect), 0);
}

/* RAM at 0 and, behind a hole, at 16 MiB. */
static void set_up(void)
{
    struct memory_config config = {
        .size = RAM_BYTES, .hole_base = 2 * MIB, .hole_end = 16 * MIB};

    cr_assert_eq(memory_create(&mem, &config), 0);
    cr_assert_eq(virtqueue_chain_init(&chain, CAPACITY), 0);
    virtqueue_init(&vq, mem, 256);
    fake_queue_init(&drv, mem, RING_AT, SIZE);
    enable(true, true);
}

static void tear_down(void)
{
    virtqueue_chain_fini(&chain);
    memory_destroy(mem);
}

TestSuite(virtqueue, .init = set_up, .fini = tear_down);

static void put_u16(gpa_t gpa, uint16_t value)
{
    cr_assert_eq(memory_write(mem, gpa, &value, sizeof(value)), 0);
}

static uint16_t add_one(void)
{
    const struct fake_piece piece = {.gpa = DATA_AT, .length = 64, .writable = true};

    return fake_queue_add(&drv, &piece, 1);
}

/* Publishes a head without a look at what it names. */
static void publish(uint16_t head)
{
    put_u16(drv.avail + 4 + 2 * (drv.avail_idx % SIZE), head);
    put_u16(drv.avail + 2, ++drv.avail_idx);
}

/* Both sides' indexes as if `at` requests had gone round. */
static void start_at(uint16_t at)
{
    drv.avail_idx = at;
    drv.used_seen = at;
    put_u16(drv.avail + 2, at);
    put_u16(drv.used + 2, at);
    vq.st.last_avail = at;
    vq.st.used_idx = at;
    vq.st.signalled_used = at;
}

/* ---- enabling ---- */

Test(virtqueue, is_off_after_reset_and_offers_its_largest_size)
{
    virtqueue_reset(&vq);
    cr_assert_not(vq.st.enabled);
    cr_assert_eq(vq.st.size, 256);
    cr_assert_eq(vq.st.msix_vector, VIRTIO_MSI_NO_VECTOR);
    add_one();
    cr_assert_eq(virtqueue_pop(&vq, &chain), 0);
    cr_assert_not(virtqueue_pending(&vq));
}

static void assert_refused(const char *what)
{
    vq.st.enabled = false;
    cr_assert_eq(virtqueue_enable(&vq, true, true), -EINVAL, "%s", what);
    cr_assert_not(vq.st.enabled, "%s", what);
    cr_assert_eq(virtqueue_pop(&vq, &chain), 0, "%s", what);
}

Test(virtqueue, a_size_that_is_no_power_of_two_or_too_large_is_refused)
{
    static const uint16_t sizes[] = {0, 3, 15, 17, 255, 257, 512, 0x8000, 0xFFFF};

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        vq.st.size = sizes[i];
        assert_refused("size");
    }
}

Test(virtqueue, a_queue_of_one_entry_works)
{
    fake_queue_init(&drv, mem, RING_AT, 1);
    virtqueue_reset(&vq);
    vq.st = (struct virtqueue_state){
        .size = 1, .desc = drv.desc, .driver = drv.avail, .device = drv.used};
    cr_assert_eq(virtqueue_enable(&vq, false, false), 0);
    for (int i = 0; i < 3; i++) {
        struct fake_used used;

        add_one();
        cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
        cr_assert_eq(virtqueue_pop(&vq, &chain), 0);
        virtqueue_push(&vq, &chain, 5);
        cr_assert(fake_queue_take(&drv, &used));
        cr_assert_eq(used.length, 5);
    }
}

Test(virtqueue, areas_that_are_not_aligned_are_refused)
{
    vq.st.desc = drv.desc + 8;
    assert_refused("descriptor table");
    vq.st.desc = drv.desc;
    vq.st.driver = drv.avail + 1;
    assert_refused("available ring");
    vq.st.driver = drv.avail;
    vq.st.device = drv.used + 2;
    assert_refused("used ring");
}

Test(virtqueue, each_area_must_be_ram_to_its_last_byte)
{
    /* Of 16 entries: 256, 4 + 32 + 2, and 4 + 128 + 2 bytes. */
    static const struct {
        uint64_t bytes;
        unsigned align;
    } areas[] = {{256, 16}, {38, 2}, {134, 4}};
    uint64_t *fields[] = {&vq.st.desc, &vq.st.driver, &vq.st.device};
    const uint64_t ends[] = {2 * MIB, 18 * MIB};

    for (int area = 0; area < 3; area++) {
        uint64_t good = *fields[area];

        for (int e = 0; e < 2; e++) {
            uint64_t last = (ends[e] - areas[area].bytes) & ~(uint64_t)(areas[area].align - 1);

            *fields[area] = last;
            vq.st.enabled = false;
            cr_assert_eq(virtqueue_enable(&vq, true, true), 0, "area %d", area);
            *fields[area] = last + areas[area].align;
            assert_refused("past the end");
        }
        *fields[area] = UINT64_MAX & ~15ull;
        assert_refused("wraps");
        *fields[area] = 8 * MIB;
        assert_refused("in the hole");
        *fields[area] = good;
    }
}

Test(virtqueue, a_state_with_more_in_flight_than_the_ring_holds_is_refused)
{
    struct virtqueue_state st = vq.st;

    st.last_avail = 10;
    st.used_idx = (uint16_t)(10 - SIZE);
    cr_assert_eq(virtqueue_check(&vq, &st, false), 0);
    st.used_idx--;
    cr_assert_eq(virtqueue_check(&vq, &st, false), -EINVAL);
    st.used_idx = 11;
    cr_assert_eq(virtqueue_check(&vq, &st, false), -EINVAL);
}

/* ---- taking ---- */

Test(virtqueue, a_chain_comes_with_its_pieces_in_order)
{
    const struct fake_piece pieces[] = {
        {.gpa = DATA_AT, .length = 16},
        {.gpa = DATA_AT + 0x1001, .length = 3},
        {.gpa = 17 * MIB, .length = 512, .writable = true},
        {.gpa = DATA_AT + 0x2000, .length = 1, .writable = true},
    };
    uint16_t head = fake_queue_add(&drv, pieces, 4);

    cr_assert(virtqueue_pending(&vq));
    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    cr_assert_eq(chain.head, head);
    cr_assert_eq(chain.n_readable, 2);
    cr_assert_eq(chain.n_writable, 2);
    cr_assert_eq(chain.readable_bytes, 19);
    cr_assert_eq(chain.writable_bytes, 513);
    for (int i = 0; i < 4; i++) {
        cr_assert_eq(chain.gpa[i], pieces[i].gpa);
        cr_assert_eq(chain.iov[i].iov_len, pieces[i].length);
        cr_assert_eq(chain.iov[i].iov_base, memory_at(mem, pieces[i].gpa, pieces[i].length));
    }
    cr_assert_eq(virtqueue_pop(&vq, &chain), 0);
    cr_assert_not(virtqueue_pending(&vq));
}

static void assert_broken(void)
{
    uint16_t used = vq.st.used_idx;

    cr_assert_eq(virtqueue_pop(&vq, &chain), -EINVAL);
    cr_assert(vq.broken);
    cr_assert_eq(virtqueue_pop(&vq, &chain), -EINVAL, "it stays broken");
    cr_assert_not(virtqueue_pending(&vq), "and silent");
    cr_assert_not(virtqueue_enable_kicks(&vq));
    cr_assert_eq(vq.st.used_idx, used);
}

Test(virtqueue, a_broken_queue_works_again_after_reset)
{
    publish(SIZE);
    assert_broken();
    fake_queue_init(&drv, mem, RING_AT, SIZE);
    enable(true, true);
    add_one();
    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
}

Test(virtqueue, a_broken_queue_stays_so_when_the_ring_is_mended)
{
    publish(SIZE);
    assert_broken();
    put_u16(drv.avail + 4, 0);
    fake_desc_write(&drv, 0, DATA_AT, 8, 0, 0);
    cr_assert_eq(virtqueue_pop(&vq, &chain), -EINVAL);
}

Test(virtqueue, a_head_outside_the_table_breaks_it)
{
    publish(SIZE);
    assert_broken();
}

Test(virtqueue, an_index_further_ahead_than_the_ring_breaks_it)
{
    put_u16(drv.avail + 2, SIZE + 1);
    assert_broken();
}

Test(virtqueue, an_index_that_goes_back_breaks_it)
{
    add_one();
    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    put_u16(drv.avail + 2, 0);
    assert_broken();
}

Test(virtqueue, a_full_ring_is_taken_whole)
{
    for (int i = 0; i < SIZE; i++)
        add_one();
    for (int i = 0; i < SIZE; i++)
        cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    cr_assert_eq(virtqueue_pop(&vq, &chain), 0);
}

Test(virtqueue, a_next_outside_the_table_breaks_it)
{
    fake_desc_write(&drv, 0, DATA_AT, 8, VRING_DESC_F_NEXT, SIZE);
    publish(0);
    assert_broken();
}

Test(virtqueue, a_chain_that_loops_breaks_it)
{
    fake_desc_write(&drv, 0, DATA_AT, 8, VRING_DESC_F_NEXT, 1);
    fake_desc_write(&drv, 1, DATA_AT, 8, VRING_DESC_F_NEXT, 0);
    publish(0);
    assert_broken();
}

Test(virtqueue, a_descriptor_that_names_itself_breaks_it)
{
    fake_desc_write(&drv, 3, DATA_AT, 0, VRING_DESC_F_NEXT, 3);
    publish(3);
    assert_broken();
}

Test(virtqueue, a_readable_piece_behind_a_writable_one_breaks_it)
{
    fake_desc_write(&drv, 0, DATA_AT, 8, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 1);
    fake_desc_write(&drv, 1, DATA_AT, 8, 0, 0);
    publish(0);
    assert_broken();
}

static void assert_piece_breaks(gpa_t gpa, uint32_t length)
{
    fake_queue_init(&drv, mem, RING_AT, SIZE);
    enable(true, true);
    fake_desc_write(&drv, 0, gpa, length, VRING_DESC_F_WRITE, 0);
    publish(0);
    assert_broken();
}

Test(virtqueue, a_piece_that_is_not_ram_breaks_it)
{
    assert_piece_breaks(8 * MIB, 1);              /* in the hole */
    assert_piece_breaks(2 * MIB - 1, 2);          /* into it */
    assert_piece_breaks(16 * MIB - 1, 2);         /* out of it */
    assert_piece_breaks(18 * MIB - 4, 5);         /* past the end */
    assert_piece_breaks(UINT64_MAX, 1);
    assert_piece_breaks(UINT64_MAX - 15, 32);     /* wraps into RAM */
    assert_piece_breaks(0, UINT32_MAX);           /* over all there is */
    assert_piece_breaks(1ull << 63, 4096);
}

Test(virtqueue, pieces_without_bytes_are_left_out)
{
    const struct fake_piece pieces[] = {
        {.gpa = 8 * MIB, .length = 0},
        {.gpa = DATA_AT, .length = 4},
        {.gpa = 0, .length = 0, .writable = true},
        {.gpa = DATA_AT, .length = 7, .writable = true},
    };

    fake_queue_add(&drv, pieces, 4);
    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    cr_assert_eq(chain.n_readable, 1);
    cr_assert_eq(chain.n_writable, 1);
    cr_assert_eq(chain.iov[1].iov_len, 7);
}

Test(virtqueue, a_chain_longer_than_the_owners_room_breaks_it)
{
    struct fake_piece pieces[CAPACITY + 1];

    for (int i = 0; i <= CAPACITY; i++)
        pieces[i] = (struct fake_piece){.gpa = DATA_AT + 16u * i, .length = 16};
    fake_queue_add_indirect(&drv, pieces, CAPACITY, TABLE_AT);
    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    cr_assert_eq(chain.n_readable, CAPACITY);
    fake_queue_add_indirect(&drv, pieces, CAPACITY + 1, TABLE_AT);
    assert_broken();
}

Test(virtqueue, a_chain_of_more_than_4_gib_breaks_it)
{
    struct memory_config config = {.size = 2 * GIB};
    struct fake_piece pieces[3];

    memory_destroy(mem);
    cr_assert_eq(memory_create(&mem, &config), 0);
    virtqueue_init(&vq, mem, SIZE);
    fake_queue_init(&drv, mem, RING_AT, SIZE);
    enable(true, true);
    for (int i = 0; i < 3; i++)
        pieces[i] = (struct fake_piece){.gpa = 0, .length = 1u << 31, .writable = true};
    fake_queue_add(&drv, pieces, 2);
    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    cr_assert_eq(chain.writable_bytes, 4 * GIB);
    pieces[2].length = 1;
    fake_queue_add(&drv, pieces, 3);
    assert_broken();
}

/* ---- indirect tables ---- */

Test(virtqueue, an_indirect_chain_comes_like_a_direct_one)
{
    const struct fake_piece pieces[] = {
        {.gpa = DATA_AT, .length = 16},
        {.gpa = DATA_AT + 64, .length = 32, .writable = true},
    };
    uint16_t head = fake_queue_add_indirect(&drv, pieces, 2, TABLE_AT);

    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    cr_assert_eq(chain.head, head);
    cr_assert_eq(chain.n_readable, 1);
    cr_assert_eq(chain.n_writable, 1);
    cr_assert_eq(chain.gpa[1], DATA_AT + 64);
}

Test(virtqueue, an_indirect_table_may_be_larger_than_the_queue_and_stand_anywhere)
{
    struct fake_piece pieces[CAPACITY];

    for (int i = 0; i < CAPACITY; i++)
        pieces[i] = (struct fake_piece){.gpa = DATA_AT + 16u * i, .length = 16};
    fake_queue_add_indirect(&drv, pieces, CAPACITY, TABLE_AT + 3);
    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    cr_assert_eq(chain.n_readable, CAPACITY);
    cr_assert_eq(chain.gpa[CAPACITY - 1], DATA_AT + 16 * (CAPACITY - 1));
}

static void put_table(unsigned index, gpa_t gpa, uint32_t length, uint16_t flags, uint16_t next)
{
    struct vring_desc d = {.addr = gpa, .len = length, .flags = flags, .next = next};

    cr_assert_eq(memory_write(mem, TABLE_AT + index * sizeof(d), &d, sizeof(d)), 0);
}

Test(virtqueue, direct_pieces_may_precede_an_indirect_table)
{
    fake_desc_write(&drv, 0, DATA_AT, 8, VRING_DESC_F_NEXT, 1);
    /* virtio 1.2 §2.7.5.3.2: the WRITE flag of the table's descriptor is ignored */
    fake_desc_write(&drv, 1, TABLE_AT, 32, VRING_DESC_F_INDIRECT | VRING_DESC_F_WRITE, 0);
    put_table(0, DATA_AT + 8, 8, VRING_DESC_F_NEXT, 1);
    put_table(1, DATA_AT + 16, 8, VRING_DESC_F_WRITE, 0);
    publish(0);
    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    cr_assert_eq(chain.n_readable, 2);
    cr_assert_eq(chain.n_writable, 1);
}

static void assert_table_breaks(gpa_t gpa, uint32_t length, uint16_t flags)
{
    fake_queue_init(&drv, mem, RING_AT, SIZE);
    enable(true, true);
    fake_desc_write(&drv, 0, gpa, length, (uint16_t)(flags | VRING_DESC_F_INDIRECT), 1);
    publish(0);
    assert_broken();
}

Test(virtqueue, an_indirect_table_of_impossible_place_or_length_breaks_it)
{
    put_table(0, DATA_AT, 8, 0, 0);
    assert_table_breaks(TABLE_AT, 0, 0);
    assert_table_breaks(TABLE_AT, 8, 0);
    assert_table_breaks(TABLE_AT, 17, 0);
    assert_table_breaks(8 * MIB, 16, 0);
    assert_table_breaks(2 * MIB - 16, 32, 0);
    assert_table_breaks(UINT64_MAX - 15, 16, 0);
    assert_table_breaks(0, UINT32_MAX & ~15u, 0);
    assert_table_breaks(TABLE_AT, 16, VRING_DESC_F_NEXT);
}

Test(virtqueue, an_indirect_table_within_one_breaks_it)
{
    put_table(0, TABLE_AT, 16, VRING_DESC_F_INDIRECT, 0);
    assert_table_breaks(TABLE_AT, 16, 0);
}

Test(virtqueue, an_indirect_table_that_loops_or_leaves_itself_breaks_it)
{
    put_table(0, DATA_AT, 0, VRING_DESC_F_NEXT, 1);
    put_table(1, DATA_AT, 0, VRING_DESC_F_NEXT, 0);
    assert_table_breaks(TABLE_AT, 32, 0);
    put_table(1, DATA_AT, 0, VRING_DESC_F_NEXT, 2);
    put_table(2, DATA_AT, 8, 0, 0);
    assert_table_breaks(TABLE_AT, 32, 0);
}

Test(virtqueue, an_endless_table_of_empty_pieces_breaks_it)
{
    for (unsigned i = 0; i <= VIRTQUEUE_MAX_PIECES; i++)
        put_table(i, DATA_AT, 0, VRING_DESC_F_NEXT, (uint16_t)(i + 1));
    assert_table_breaks(TABLE_AT, 16 * (VIRTQUEUE_MAX_PIECES + 2), 0);
}

/* A table of `empty` pieces without bytes, and one with some. */
static void publish_empty(unsigned empty)
{
    for (unsigned i = 0; i < empty; i++)
        put_table(i, DATA_AT, 0, VRING_DESC_F_NEXT, (uint16_t)(i + 1));
    put_table(empty, DATA_AT, 8, 0, 0);
    fake_desc_write(&drv, 0, TABLE_AT, 16 * (empty + 1), VRING_DESC_F_INDIRECT, 0);
    publish(0);
}

Test(virtqueue, more_pieces_without_bytes_than_anybody_needs_break_it)
{
    publish_empty(VIRTQUEUE_MAX_EMPTY);
    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    cr_assert_eq(chain.readable_bytes, 8);
    publish_empty(VIRTQUEUE_MAX_EMPTY + 1);
    assert_broken();
}

Test(virtqueue, an_indirect_table_that_was_not_negotiated_breaks_it)
{
    enable(true, false);
    put_table(0, DATA_AT, 8, 0, 0);
    fake_desc_write(&drv, 0, TABLE_AT, 16, VRING_DESC_F_INDIRECT, 0);
    publish(0);
    assert_broken();
}

/* ---- putting back ---- */

Test(virtqueue, what_is_put_back_comes_again_in_the_same_order)
{
    uint16_t first = add_one();
    uint16_t second = add_one();

    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    virtqueue_unpop(&vq);
    virtqueue_unpop(&vq);
    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    cr_assert_eq(chain.head, first);
    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    cr_assert_eq(chain.head, second);
}

Test(virtqueue, after_putting_back_the_next_request_still_raises_a_kick)
{
    add_one();
    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    cr_assert_eq(virtqueue_pop(&vq, &chain), 0, "looks for a second and finds none");
    virtqueue_unpop(&vq);
    add_one();
    cr_assert(fake_queue_should_kick(&drv, 1));
}

/* ---- returning ---- */

Test(virtqueue, requests_may_be_returned_in_any_order)
{
    struct virtqueue_chain second;
    struct fake_used used;
    uint16_t a = add_one();
    uint16_t b = add_one();

    cr_assert_eq(virtqueue_chain_init(&second, 4), 0);
    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    cr_assert_eq(virtqueue_pop(&vq, &second), 1);
    virtqueue_push(&vq, &second, 64);
    virtqueue_push(&vq, &chain, 3);
    cr_assert(fake_queue_take(&drv, &used));
    cr_assert_eq(used.id, b);
    cr_assert_eq(used.length, 64);
    cr_assert(fake_queue_take(&drv, &used));
    cr_assert_eq(used.id, a);
    cr_assert_eq(used.length, 3);
    cr_assert_not(fake_queue_take(&drv, &used));
    virtqueue_chain_fini(&second);
}

Test(virtqueue, filled_entries_are_seen_only_when_published)
{
    struct fake_used used;
    uint16_t heads[3];

    start_at(65534); /* the entries and the index wrap */
    for (int i = 0; i < 3; i++)
        heads[i] = add_one();
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
        virtqueue_fill(&vq, chain.head, 100u + i, i);
    }
    cr_assert_not(fake_queue_take(&drv, &used));
    virtqueue_flush(&vq, 3);
    for (int i = 0; i < 3; i++) {
        cr_assert(fake_queue_take(&drv, &used));
        cr_assert_eq(used.id, heads[i]);
        cr_assert_eq(used.length, 100 + i);
    }
    cr_assert_eq(fake_queue_used_idx(&drv), 1);
}

Test(virtqueue, nothing_is_returned_to_a_queue_that_was_reset)
{
    gpa_t used = drv.used;
    uint64_t before = 0x5555555555555555ull, after;

    add_one();
    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    virtqueue_reset(&vq);
    cr_assert_eq(memory_write(mem, used, &before, sizeof(before)), 0);
    virtqueue_push(&vq, &chain, 64);
    virtqueue_push_head(&vq, chain.head, 64);
    virtqueue_fill(&vq, chain.head, 64, 0);
    virtqueue_flush(&vq, 1);
    virtqueue_unpop(&vq);
    virtqueue_disable_kicks(&vq);
    cr_assert_not(virtqueue_enable_kicks(&vq));
    cr_assert_not(virtqueue_wants_interrupt(&vq));
    cr_assert_eq(memory_read(mem, used, &after, sizeof(after)), 0);
    cr_assert_eq(after, before);
    cr_assert_eq(vq.st.last_avail, 0);
}

/* Whether the page of gpa is marked; clears all marks. */
static void harvest(uint64_t bitmap[8])
{
    memset(bitmap, 0, 8 * sizeof(bitmap[0]));
    memory_dirty_harvest(mem, 0, bitmap);
}

static bool is_dirty(const uint64_t bitmap[8], gpa_t gpa)
{
    return bitmap[gpa >> 18] >> (gpa >> 12 & 63) & 1;
}

Test(virtqueue, what_a_push_writes_is_marked_dirty_and_nothing_else)
{
    const struct fake_piece pieces[] = {
        {.gpa = DATA_AT, .length = 4096},
        {.gpa = DATA_AT + 0x10000, .length = 4096, .writable = true},
        {.gpa = DATA_AT + 0x20000, .length = 8192, .writable = true},
    };
    uint64_t bitmap[8];

    fake_queue_add(&drv, pieces, 3);
    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    cr_assert_eq(memory_dirty_start(mem), 0);
    virtqueue_push(&vq, &chain, 4096 + 1);
    harvest(bitmap);
    memory_dirty_stop(mem);
    cr_assert_not(is_dirty(bitmap, DATA_AT));
    cr_assert(is_dirty(bitmap, DATA_AT + 0x10000));
    cr_assert(is_dirty(bitmap, DATA_AT + 0x20000));
    cr_assert_not(is_dirty(bitmap, DATA_AT + 0x21000));
    cr_assert(is_dirty(bitmap, drv.used));
    cr_assert_not(is_dirty(bitmap, drv.avail));
    cr_assert_not(is_dirty(bitmap, drv.desc));
}

Test(virtqueue, asking_for_a_kick_marks_the_used_ring_dirty)
{
    uint64_t bitmap[8];

    cr_assert_eq(memory_dirty_start(mem), 0);
    cr_assert_eq(virtqueue_pop(&vq, &chain), 0);
    harvest(bitmap);
    memory_dirty_stop(mem);
    cr_assert(is_dirty(bitmap, drv.used));
}

/* ---- interrupts ---- */

static void pass_one(void)
{
    struct fake_used used;

    add_one();
    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    virtqueue_push(&vq, &chain, 0);
    cr_assert(fake_queue_take(&drv, &used));
}

Test(virtqueue, without_event_index_the_drivers_flag_decides)
{
    enable(false, false);
    pass_one();
    cr_assert(virtqueue_wants_interrupt(&vq));
    put_u16(drv.avail, VRING_AVAIL_F_NO_INTERRUPT);
    pass_one();
    cr_assert_not(virtqueue_wants_interrupt(&vq));
    put_u16(drv.avail, 0);
    pass_one();
    cr_assert(virtqueue_wants_interrupt(&vq));
}

Test(virtqueue, no_interrupt_when_nothing_was_returned_since_the_last)
{
    cr_assert_not(virtqueue_wants_interrupt(&vq));
    pass_one();
    cr_assert(virtqueue_wants_interrupt(&vq));
    cr_assert_not(virtqueue_wants_interrupt(&vq));
}

Test(virtqueue, no_interrupt_without_event_index_either_when_nothing_was_returned)
{
    enable(false, false);
    cr_assert_not(virtqueue_wants_interrupt(&vq));
    pass_one();
    cr_assert(virtqueue_wants_interrupt(&vq));
    cr_assert_not(virtqueue_wants_interrupt(&vq));
}

Test(virtqueue, with_event_index_the_interrupt_comes_when_the_entry_is_passed)
{
    fake_queue_set_used_event(&drv, 3);
    for (int returned = 0; returned < 6; returned++) {
        pass_one(); /* entry `returned` */
        cr_assert_eq(virtqueue_wants_interrupt(&vq), returned == 3, "entry %d", returned);
    }
}

Test(virtqueue, the_event_index_works_across_the_wrap)
{
    start_at(65530);
    fake_queue_set_used_event(&drv, 65535);
    for (uint32_t entry = 65530; entry < 65540; entry++) {
        pass_one();
        cr_assert_eq(virtqueue_wants_interrupt(&vq), entry == 65535, "entry %u", entry);
    }
    fake_queue_set_used_event(&drv, 6);
    for (int i = 0; i < 3; i++)
        pass_one(); /* entries 4, 5, 6 in a batch */
    cr_assert(virtqueue_wants_interrupt(&vq));
}

Test(virtqueue, after_65536_entries_without_a_question_the_driver_is_interrupted)
{
    pass_one();
    cr_assert(virtqueue_wants_interrupt(&vq));
    /* As far as 16-bit numbers tell, nothing happened. */
    for (int i = 0; i < 65536; i++)
        pass_one();
    fake_queue_set_used_event(&drv, 30000);
    cr_assert(virtqueue_wants_interrupt(&vq));
    pass_one();
    cr_assert_not(virtqueue_wants_interrupt(&vq), "from there on the event index counts again");
}

/* ---- kicks ---- */

Test(virtqueue, who_pops_until_nothing_is_left_gets_the_next_kick)
{
    uint16_t old = drv.avail_idx;

    for (int round = 0; round < 3; round++) {
        add_one();
        cr_assert(fake_queue_should_kick(&drv, old), "round %d", round);
        old = drv.avail_idx;
        add_one();
        cr_assert_not(fake_queue_should_kick(&drv, old), "one kick is enough");
        while (virtqueue_pop(&vq, &chain) == 1)
            virtqueue_push(&vq, &chain, 0);
        old = drv.avail_idx;
    }
}

Test(virtqueue, the_request_for_a_kick_works_across_the_wrap)
{
    start_at(65535);
    cr_assert_eq(virtqueue_pop(&vq, &chain), 0);
    add_one();
    cr_assert(fake_queue_should_kick(&drv, 65535));
    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    cr_assert_eq(virtqueue_pop(&vq, &chain), 0);
    add_one();
    cr_assert(fake_queue_should_kick(&drv, 0));
}

Test(virtqueue, kicks_can_be_switched_off_and_on_with_the_event_index)
{
    virtqueue_disable_kicks(&vq);
    add_one();
    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    cr_assert_eq(virtqueue_pop(&vq, &chain), 0);
    add_one();
    cr_assert_not(fake_queue_should_kick(&drv, 1));
    cr_assert(virtqueue_enable_kicks(&vq), "one came meanwhile");
    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    cr_assert_not(virtqueue_enable_kicks(&vq));
    add_one();
    cr_assert(fake_queue_should_kick(&drv, 2));
}

Test(virtqueue, kicks_can_be_switched_off_and_on_without_the_event_index)
{
    enable(false, false);
    cr_assert(fake_queue_should_kick(&drv, 0));
    virtqueue_disable_kicks(&vq);
    cr_assert_not(fake_queue_should_kick(&drv, 0));
    cr_assert_eq(virtqueue_pop(&vq, &chain), 0);
    cr_assert_not(fake_queue_should_kick(&drv, 0), "a pop does not ask for kicks again");
    add_one();
    cr_assert(virtqueue_enable_kicks(&vq));
    cr_assert(fake_queue_should_kick(&drv, 1));
    virtqueue_disable_kicks(&vq);
    cr_assert_not(fake_queue_should_kick(&drv, 1));
    cr_assert(virtqueue_enable_kicks(&vq));
    cr_assert(fake_queue_should_kick(&drv, 1), "the second time, too");
}

Test(virtqueue, kicks_that_were_asked_for_already_can_be_muted)
{
    struct fake_used used;

    for (unsigned start = 65534; start < 65539; start++) {
        start_at((uint16_t)start);
        cr_assert_eq(virtqueue_pop(&vq, &chain), 0);
        virtqueue_mute_kicks(&vq);
        for (int i = 0; i < 3; i++) {
            uint16_t old = drv.avail_idx;

            add_one();
            cr_assert_not(fake_queue_should_kick(&drv, old), "from %u, entry %d", start, i);
            cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
            virtqueue_push(&vq, &chain, 0);
            cr_assert(fake_queue_take(&drv, &used));
            cr_assert_eq(virtqueue_pop(&vq, &chain), 0);
        }
        cr_assert_not(virtqueue_enable_kicks(&vq));
        add_one();
        cr_assert(fake_queue_should_kick(&drv, (uint16_t)(drv.avail_idx - 1)), "from %u", start);
        cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
        virtqueue_push(&vq, &chain, 0);
        cr_assert(fake_queue_take(&drv, &used));
    }
}

Test(virtqueue, muting_a_second_time_writes_nothing)
{
    gpa_t event = drv.used + 4 + (gpa_t)vq.st.size * 8;
    const uint16_t own = 0x1234;
    uint16_t value;

    cr_assert_eq(virtqueue_pop(&vq, &chain), 0);
    virtqueue_mute_kicks(&vq);
    memory_read(mem, event, &value, 2);
    cr_assert_eq(value, 0xFFFF);
    memory_write(mem, event, &own, 2);
    virtqueue_mute_kicks(&vq);
    memory_read(mem, event, &value, 2);
    cr_assert_eq(value, own);
}

Test(virtqueue, kicks_can_be_muted_without_the_event_index)
{
    enable(false, false);
    cr_assert(fake_queue_should_kick(&drv, 0));
    virtqueue_mute_kicks(&vq);
    add_one();
    cr_assert_not(fake_queue_should_kick(&drv, 0));
    cr_assert(virtqueue_enable_kicks(&vq), "one came meanwhile");
    cr_assert(fake_queue_should_kick(&drv, 0));
}

Test(virtqueue, a_flag_left_by_an_earlier_owner_of_the_ring_is_cleared)
{
    enable(false, false);
    put_u16(drv.used, VRING_USED_F_NO_NOTIFY);
    cr_assert_eq(virtqueue_pop(&vq, &chain), 0);
    cr_assert(fake_queue_should_kick(&drv, 0));
}

/* ---- copies ---- */

Test(virtqueue, copies_go_across_pieces_from_any_offset)
{
    const struct fake_piece pieces[] = {
        {.gpa = DATA_AT, .length = 3},
        {.gpa = DATA_AT + 100, .length = 5},
        {.gpa = DATA_AT + 200, .length = 4, .writable = true},
        {.gpa = DATA_AT + 300, .length = 4, .writable = true},
    };
    char got[16] = {0};

    cr_assert_eq(memory_write(mem, DATA_AT, "abc", 3), 0);
    cr_assert_eq(memory_write(mem, DATA_AT + 100, "defgh", 5), 0);
    fake_queue_add(&drv, pieces, 4);
    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    cr_assert_eq(virtqueue_read(&chain, 0, got, sizeof(got)), 8);
    cr_assert_arr_eq(got, "abcdefgh", 8);
    cr_assert_eq(virtqueue_read(&chain, 2, got, 3), 3);
    cr_assert_arr_eq(got, "cde", 3);
    cr_assert_eq(virtqueue_read(&chain, 8, got, 1), 0);
    cr_assert_eq(virtqueue_read(&chain, UINT64_MAX, got, 1), 0);
    cr_assert_eq(virtqueue_write(&chain, 3, "XYZ", 3), 3);
    cr_assert_eq(memory_read(mem, DATA_AT + 203, got, 1), 0);
    cr_assert_eq(memory_read(mem, DATA_AT + 300, got + 1, 2), 0);
    cr_assert_arr_eq(got, "XYZ", 3);
    cr_assert_eq(virtqueue_write(&chain, 6, "12345", 5), 2);
    cr_assert_eq(memory_read(mem, DATA_AT + 302, got, 3), 0);
    cr_assert_arr_eq(got, "12\0", 3);
}

/* ---- state ---- */

Test(virtqueue, goes_on_in_the_middle_of_the_ring_after_save_and_load)
{
    struct state_buffer buffer = {0};
    struct state_reader in;
    struct virtqueue other;
    struct fake_used used;

    start_at(65533);
    for (int i = 0; i < 4; i++)
        pass_one();
    cr_assert(virtqueue_wants_interrupt(&vq));
    fake_queue_set_used_event(&drv, 2);
    cr_assert_eq(state_save(&virtqueue_state_desc, &vq.st, &buffer), 0);

    virtqueue_init(&other, mem, 256);
    in = (struct state_reader){.data = buffer.data, .length = buffer.length};
    cr_assert_eq(state_load(&virtqueue_state_desc, &other.st, &in), 0);
    state_buffer_fini(&buffer);
    cr_assert_eq(virtqueue_check(&other, &other.st, false), 0);
    cr_assert_eq(virtqueue_enable(&other, true, true), 0);
    vq = other;
    add_one();
    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    virtqueue_push(&vq, &chain, 9);
    cr_assert(fake_queue_take(&drv, &used));
    cr_assert_eq(used.length, 9);
    cr_assert_not(virtqueue_wants_interrupt(&vq), "entry 1");
    pass_one();
    cr_assert(virtqueue_wants_interrupt(&vq), "entry 2");
}

Test(virtqueue, every_field_of_the_state_is_saved)
{
    const struct virtqueue_state from = {
        .size = 0x1234, .enabled = true, .msix_vector = 0x2345, .desc = 0x1111222233334444ull,
        .driver = 0x5555666677778888ull, .device = 0x9999AAAABBBBCCCCull, .last_avail = 0x3456,
        .used_idx = 0x4567, .signalled_used = 0x5678, .signalled_valid = true};
    struct state_buffer buffer = {0};
    struct state_reader in;
    struct virtqueue_state to;

    cr_assert_eq(state_save(&virtqueue_state_desc, &from, &buffer), 0);
    in = (struct state_reader){.data = buffer.data, .length = buffer.length};
    cr_assert_eq(state_load(&virtqueue_state_desc, &to, &in), 0);
    state_buffer_fini(&buffer);
    cr_assert_eq(to.size, from.size);
    cr_assert_eq(to.enabled, from.enabled);
    cr_assert_eq(to.msix_vector, from.msix_vector);
    cr_assert_eq(to.desc, from.desc);
    cr_assert_eq(to.driver, from.driver);
    cr_assert_eq(to.device, from.device);
    cr_assert_eq(to.last_avail, from.last_avail);
    cr_assert_eq(to.used_idx, from.used_idx);
    cr_assert_eq(to.signalled_used, from.signalled_used);
    cr_assert_eq(to.signalled_valid, from.signalled_valid);
}

/* ---- random operations beside a naive model ---- */

#define MAX_PIECES 4
#define TABLES_AT 0x30000ull /* one indirect table a head, 256 bytes each */

struct model_request {
    uint16_t head;
    unsigned n;
    struct fake_piece pieces[MAX_PIECES];
};

struct model {
    uint64_t rng;
    bool event_idx, indirect;
    struct model_request added[SIZE]; /* published and not popped, oldest first */
    unsigned n_added;
    struct model_request popped[SIZE]; /* popped and not pushed */
    unsigned n_popped;
    struct fake_used pushed[SIZE]; /* pushed and not taken, oldest first */
    unsigned n_pushed;
    uint32_t pushed_ever, asked_at; /* used entries, counted without a wrap */
    uint32_t added_ever, look_from; /* ... available ones; the first that the device waits for */
    bool waits;                     /* the device popped until nothing was left */
    uint16_t index_base;            /* both indexes at the start */
    uint16_t used_event;
};

static uint64_t roll(struct model *m, uint64_t n)
{
    return xorshift(&m->rng) % n;
}

static void model_add(struct model *m)
{
    bool through_table = m->indirect && roll(m, 2) == 0;
    struct model_request r = {.n = 1 + (unsigned)roll(m, MAX_PIECES)};
    unsigned n_readable = (unsigned)roll(m, r.n + 1);
    uint16_t old = drv.avail_idx;

    if (drv.n_free < (through_table ? 1 : r.n))
        return;
    for (unsigned i = 0; i < r.n; i++)
        r.pieces[i] = (struct fake_piece){.gpa = DATA_AT + roll(m, 65536),
                                          .length = 1 + (uint32_t)roll(m, 5000),
                                          .writable = i >= n_readable};
    if (through_table)
        r.head = fake_queue_add_indirect(&drv, r.pieces, r.n, TABLES_AT + 256ull * drv.free_head);
    else
        r.head = fake_queue_add(&drv, r.pieces, r.n);
    m->added[m->n_added++] = r;
    m->added_ever++;
    /* Whoever waits for entry N is kicked when N is published, and only then. */
    if (m->event_idx && m->waits)
        cr_assert_eq(fake_queue_should_kick(&drv, old), m->added_ever == m->look_from + 1);
    if (!m->event_idx)
        cr_assert(fake_queue_should_kick(&drv, old));
}

static void assert_popped(const struct model_request *want)
{
    cr_assert_eq(chain.head, want->head);
    cr_assert_eq(chain.n_readable + chain.n_writable, want->n);
    for (unsigned i = 0; i < want->n; i++) {
        cr_assert_eq(chain.gpa[i], want->pieces[i].gpa);
        cr_assert_eq(chain.iov[i].iov_len, want->pieces[i].length);
        cr_assert_eq(i >= chain.n_readable, want->pieces[i].writable);
    }
}

static void model_pop(struct model *m)
{
    int got = virtqueue_pop(&vq, &chain);

    cr_assert_eq(got, m->n_added > 0);
    m->waits = m->waits || got == 0;
    if (got == 0) {
        m->look_from = m->added_ever;
        return;
    }
    assert_popped(&m->added[0]);
    if (roll(m, 8) == 0) {
        virtqueue_unpop(&vq);
        return;
    }
    m->popped[m->n_popped++] = m->added[0];
    memmove(&m->added[0], &m->added[1], --m->n_added * sizeof(m->added[0]));
}

static void model_push(struct model *m)
{
    unsigned i;
    uint32_t written;

    if (m->n_popped == 0)
        return;
    i = (unsigned)roll(m, m->n_popped);
    written = (uint32_t)roll(m, 10000);
    virtqueue_push_head(&vq, m->popped[i].head, written);
    m->pushed[m->n_pushed++] = (struct fake_used){.id = m->popped[i].head, .length = written};
    m->popped[i] = m->popped[--m->n_popped];
    m->pushed_ever++;
}

static void model_take(struct model *m)
{
    struct fake_used used = {0};
    bool got = fake_queue_take(&drv, &used);

    cr_assert_eq(got, m->n_pushed > 0);
    if (!got)
        return;
    cr_assert_eq(used.id, m->pushed[0].id);
    cr_assert_eq(used.length, m->pushed[0].length);
    memmove(&m->pushed[0], &m->pushed[1], --m->n_pushed * sizeof(m->pushed[0]));
}

static void model_ask(struct model *m)
{
    bool want = !m->event_idx && m->asked_at < m->pushed_ever;

    for (uint32_t e = m->asked_at; e < m->pushed_ever; e++)
        want = want || (uint16_t)(m->index_base + e) == m->used_event;
    cr_assert_eq(virtqueue_wants_interrupt(&vq), want);
    m->asked_at = m->pushed_ever;
}

static void model_aim(struct model *m)
{
    m->used_event = (uint16_t)(m->index_base + m->pushed_ever + roll(m, 4));
    fake_queue_set_used_event(&drv, m->used_event);
}

static void compare(uint64_t seed, bool event_idx, bool indirect)
{
    struct model m = {.rng = seed, .event_idx = event_idx, .indirect = indirect};

    fake_queue_init(&drv, mem, RING_AT, SIZE);
    enable(event_idx, indirect);
    m.index_base = (uint16_t)(65000 + roll(&m, 536));
    start_at(m.index_base);
    for (int i = 0; i < 6000; i++) {
        static void (*const ops[])(struct model *) = {
            model_add, model_add, model_pop, model_pop, model_push, model_push,
            model_take, model_take, model_ask, model_aim,
        };

        ops[roll(&m, sizeof(ops) / sizeof(ops[0]))](&m);
    }
    cr_assert_gt(m.pushed_ever, 600, "the indexes went past the wrap");
}

Test(virtqueue, agrees_with_a_naive_model_on_random_operations)
{
    for (uint64_t seed = 1; seed <= 12; seed++)
        compare(seed * 0x9E3779B97F4A7C15ull, seed & 1, seed & 2);
}
