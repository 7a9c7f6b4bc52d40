/*
 * The virtqueue engine on a packed ring: taking and returning round the ring, every way a chain can
 * be wrong, notifications, state; and a device class above it.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <linux/virtio_ring.h>
#include <string.h>

#include "devices/virtio/net.h"
#include "devices/virtio/virtqueue.h"
#include "tests/unit/fake_env.h"
#include "tests/unit/fake_packed.h"
#include "vmm/util/log.h"

#define SIZE 11 /* no power of two, as is allowed */
#define RING_AT 0x10000ull
#define TABLE_AT 0x20000ull
#define DATA_AT 0x40000ull
#define RAM_BYTES (4 * MIB)

#define ENABLE 0
#define DISABLE 1
#define DESC 2

static struct guest_memory *mem;
static struct virtqueue vq;
static struct virtqueue_chain chain;
static struct fake_packed drv;

static void enable(bool event_idx)
{
    virtqueue_reset(&vq);
    vq.st.size = SIZE;
    vq.st.desc = drv.ring;
    vq.st.driver = drv.driver;
    vq.st.device = drv.device;
    cr_assert_eq(virtqueue_enable_packed(&vq, event_idx, true), 0);
}

static void set_up(void)
{
    struct memory_config config = {.size = RAM_BYTES};

    cr_assert_eq(memory_create(&mem, &config), 0);
    cr_assert_eq(virtqueue_chain_init(&chain, 32), 0);
    virtqueue_init(&vq, mem, 256);
    fake_packed_init(&drv, mem, RING_AT, SIZE);
    enable(true);
}

static void tear_down(void)
{
    virtqueue_fini(&vq);
    virtqueue_chain_fini(&chain);
    memory_destroy(mem);
}

TestSuite(packed, .init = set_up, .fini = tear_down, .timeout = 60);

static uint16_t add(unsigned n)
{
    struct fake_piece pieces[SIZE];

    for (unsigned i = 0; i < n; i++)
        pieces[i] = (struct fake_piece){DATA_AT + i * 0x100, 16 + i, i + 1 == n};
    return fake_packed_add(&drv, pieces, n);
}

static void assert_returned(uint16_t id, uint32_t length)
{
    struct fake_used used;

    cr_assert(fake_packed_take(&drv, &used), "nothing was returned");
    cr_assert_eq(used.id, id);
    cr_assert_eq(used.length, length);
}

/* ---- set-up ---- */

static void assert_refused(void)
{
    vq.st.enabled = false;
    cr_assert_eq(virtqueue_enable_packed(&vq, true, true), -EINVAL);
    cr_assert_not(vq.st.enabled);
    cr_assert_eq(virtqueue_pop(&vq, &chain), 0);
}

Test(packed, a_size_of_none_or_too_many_is_refused)
{
    vq.st.size = 0;
    assert_refused();
    vq.st.size = 257;
    assert_refused();
}

Test(packed, areas_that_are_askew_or_outside_memory_are_refused)
{
    vq.st.desc = RING_AT + 8;
    assert_refused();
    vq.st.desc = RAM_BYTES - 16;
    assert_refused();
    vq.st.desc = RING_AT;
    vq.st.driver = drv.driver + 2;
    assert_refused();
    vq.st.driver = RAM_BYTES;
    assert_refused();
    vq.st.driver = drv.driver;
    vq.st.device = drv.device + 1;
    assert_refused();
    vq.st.device = UINT64_MAX - 3;
    assert_refused();
}

/* ---- taking and returning ---- */

Test(packed, an_empty_ring_gives_nothing)
{
    cr_assert_eq(virtqueue_pop(&vq, &chain), 0);
    cr_assert(!virtqueue_pending(&vq));
}

Test(packed, a_chain_is_taken_with_its_pieces_and_returned_by_its_id)
{
    uint16_t id = add(3);

    cr_assert(virtqueue_pending(&vq));
    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    cr_assert_eq(chain.n_readable, 2);
    cr_assert_eq(chain.n_writable, 1);
    cr_assert_eq(chain.readable_bytes, 33);
    cr_assert_eq(chain.gpa[1], DATA_AT + 0x100);
    cr_assert_eq(chain.iov[2].iov_len, 18);
    cr_assert_eq(virtqueue_pop(&vq, &chain), 0);
    virtqueue_push(&vq, &chain, 7);
    assert_returned(id, 7);
}

Test(packed, requests_go_round_the_ring_many_times)
{
    for (unsigned i = 0; i < 1000; i++) {
        uint16_t id = add(1 + i % 4);

        cr_assert_eq(virtqueue_pop(&vq, &chain), 1, "round %u", i);
        virtqueue_push(&vq, &chain, i);
        assert_returned(id, i);
    }
}

Test(packed, a_full_ring_is_taken_and_returned_in_any_order)
{
    for (unsigned round = 0; round < 50; round++) {
        uint16_t ids[5], heads[5];
        static const unsigned order[5] = {3, 0, 4, 2, 1};

        for (unsigned i = 0; i < 5; i++)
            ids[i] = add(i == 0 ? 3 : 2); /* all of the ring's eleven */
        for (unsigned i = 0; i < 5; i++) {
            cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
            heads[i] = chain.head;
        }
        cr_assert_eq(virtqueue_pop(&vq, &chain), 0);
        for (unsigned i = 0; i < 5; i++)
            virtqueue_push_head(&vq, heads[order[i]], order[i]);
        for (unsigned i = 0; i < 5; i++)
            assert_returned(ids[order[i]], order[i]);
    }
}

Test(packed, new_requests_in_the_place_of_returned_ones_do_not_mix_with_those_in_flight)
{
    uint16_t first = add(2), slow;

    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    slow = chain.head;
    for (unsigned i = 0; i < 100; i++) {
        uint16_t id = add(1 + i % 3);

        cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
        cr_assert_neq(chain.head, slow);
        virtqueue_push_head(&vq, chain.head, i);
        assert_returned(id, i);
    }
    virtqueue_push_head(&vq, slow, 99);
    assert_returned(first, 99);
}

Test(packed, what_was_put_back_comes_again)
{
    uint16_t ids[3];

    for (unsigned round = 0; round < 20; round++) {
        for (unsigned i = 0; i < 3; i++)
            ids[i] = add(3);
        for (unsigned i = 0; i < 3; i++)
            cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
        virtqueue_unpop(&vq);
        virtqueue_unpop(&vq);
        virtqueue_push_head(&vq, 0, 5); /* not in flight: nothing happens */
        for (unsigned i = 1; i < 3; i++)
            cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
        for (unsigned i = 0; i < 3; i++)
            virtqueue_unpop(&vq);
        for (unsigned i = 0; i < 3; i++) {
            cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
            virtqueue_push(&vq, &chain, i);
            assert_returned(ids[i], i);
        }
    }
}

Test(packed, what_is_filled_ahead_is_seen_only_after_the_flush)
{
    struct fake_used used;
    uint16_t ids[3];

    for (unsigned i = 0; i < 3; i++)
        ids[i] = add(2);
    for (uint16_t i = 0; i < 3; i++) {
        cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
        virtqueue_fill(&vq, chain.head, i, i);
        cr_assert(!fake_packed_take(&drv, &used));
    }
    virtqueue_flush(&vq, 3);
    for (unsigned i = 0; i < 3; i++)
        assert_returned(ids[i], i);
}

Test(packed, what_is_filled_and_put_back_leaves_the_ring_as_it_was)
{
    uint16_t ids[3];

    for (unsigned i = 0; i < 3; i++)
        ids[i] = add(2);
    for (uint16_t i = 0; i < 3; i++) {
        cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
        virtqueue_fill(&vq, chain.head, 100, i);
    }
    for (unsigned i = 0; i < 3; i++)
        virtqueue_unpop(&vq);
    for (unsigned i = 0; i < 3; i++) {
        cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
        cr_assert_eq(chain.readable_bytes, 16);
        virtqueue_push(&vq, &chain, i);
        assert_returned(ids[i], i);
    }
}

Test(packed, an_indirect_table_is_one_descriptor)
{
    const struct fake_piece pieces[3] = {
        {DATA_AT, 10, false}, {DATA_AT + 0x100, 20, true}, {DATA_AT + 0x200, 30, true},
    };

    for (unsigned i = 0; i < 30; i++) {
        uint16_t id = fake_packed_add_indirect(&drv, pieces, 3, TABLE_AT);

        cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
        cr_assert_eq(chain.n_readable, 1);
        cr_assert_eq(chain.n_writable, 2);
        cr_assert_eq(chain.writable_bytes, 50);
        virtqueue_push(&vq, &chain, i);
        assert_returned(id, i);
    }
}

Test(packed, used_entries_and_data_are_marked_dirty)
{
    uint64_t dirty[RAM_BYTES / 4096 / 64] = {0};

    add(1);
    cr_assert_eq(memory_dirty_start(mem), 0);
    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    virtqueue_push(&vq, &chain, 10);
    memory_dirty_harvest(mem, 0, dirty);
    memory_dirty_stop(mem);
    cr_assert(dirty[RING_AT / 4096 / 64] >> RING_AT / 4096 % 64 & 1);
    cr_assert(dirty[DATA_AT / 4096 / 64] >> DATA_AT / 4096 % 64 & 1);
}

/* ---- hostile drivers ---- */

static void assert_broken(void)
{
    cr_assert_eq(virtqueue_pop(&vq, &chain), -EINVAL);
    cr_assert(vq.broken);
    cr_assert_eq(virtqueue_pop(&vq, &chain), -EINVAL);
}

static void offer(uint16_t at, gpa_t gpa, uint32_t length, uint16_t flags)
{
    fake_packed_write(&drv, at, gpa, length, 0, (uint16_t)(flags | fake_packed_avail(true)));
}

Test(packed, a_chain_without_end_is_broken)
{
    for (uint16_t i = SIZE; i-- > 0;)
        offer(i, DATA_AT, 16, VRING_DESC_F_NEXT);
    assert_broken();
}

Test(packed, a_piece_outside_memory_is_broken)
{
    offer(0, RAM_BYTES - 8, 16, 0);
    assert_broken();
}

Test(packed, a_readable_piece_behind_a_writable_one_is_broken)
{
    offer(1, DATA_AT, 16, 0);
    offer(0, DATA_AT, 16, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT);
    assert_broken();
}

Test(packed, a_table_among_other_descriptors_is_broken)
{
    offer(1, TABLE_AT, 16, VRING_DESC_F_INDIRECT);
    offer(0, DATA_AT, 16, VRING_DESC_F_NEXT);
    assert_broken();
}

Test(packed, a_table_that_goes_on_is_broken)
{
    offer(0, TABLE_AT, 16, VRING_DESC_F_INDIRECT | VRING_DESC_F_NEXT);
    assert_broken();
}

Test(packed, a_table_of_odd_length_outside_memory_or_too_long_is_broken)
{
    static const struct {
        gpa_t at;
        uint32_t length;
    } wrong[] = {
        {TABLE_AT, 0}, {TABLE_AT, 17}, {RAM_BYTES - 16, 32}, {TABLE_AT, 16 * 1025},
    };

    for (unsigned i = 0; i < 4; i++) {
        enable(true);
        offer(0, wrong[i].at, wrong[i].length, VRING_DESC_F_INDIRECT);
        assert_broken();
    }
}

Test(packed, a_table_that_was_not_agreed_on_is_broken)
{
    vq.st.enabled = false;
    cr_assert_eq(virtqueue_enable_packed(&vq, true, false), 0);
    offer(0, TABLE_AT, 16, VRING_DESC_F_INDIRECT);
    assert_broken();
}

Test(packed, more_than_the_ring_holds_in_flight_is_broken)
{
    for (unsigned i = 0; i < SIZE; i++)
        add(1);
    for (unsigned i = 0; i < SIZE; i++)
        cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    /* As of the next round, though nothing was returned. */
    fake_packed_write(&drv, 0, DATA_AT, 16, 0, fake_packed_avail(false));
    assert_broken();
}

Test(packed, the_same_id_twice_harms_the_driver_alone)
{
    struct fake_piece piece = {DATA_AT, 16, false};
    uint16_t heads[2], id = fake_packed_add(&drv, &piece, 1);

    fake_packed_write(&drv, 1, DATA_AT, 16, id, fake_packed_avail(true));
    for (unsigned i = 0; i < 2; i++) {
        cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
        heads[i] = chain.head;
    }
    cr_assert_neq(heads[0], heads[1]);
    virtqueue_push_head(&vq, heads[0], 1);
    virtqueue_push_head(&vq, heads[1], 2);
    virtqueue_push_head(&vq, heads[1], 3);
    assert_returned(id, 1);
}

/* ---- notifications ---- */

static void return_one(void)
{
    struct fake_used used;

    add(1);
    cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
    virtqueue_push(&vq, &chain, 0);
    cr_assert(fake_packed_take(&drv, &used));
}

Test(packed, the_driver_switches_interrupts_on_and_off)
{
    return_one();
    cr_assert(virtqueue_wants_interrupt(&vq));
    cr_assert(!virtqueue_wants_interrupt(&vq));
    fake_packed_set_event(&drv, DISABLE, 0, false);
    return_one();
    cr_assert(!virtqueue_wants_interrupt(&vq));
    fake_packed_set_event(&drv, ENABLE, 0, false);
    return_one();
    cr_assert(virtqueue_wants_interrupt(&vq));
}

Test(packed, an_interrupt_comes_when_the_place_it_was_asked_for_is_used)
{
    for (unsigned round = 0; round < 200; round++) {
        uint16_t at = drv.used;
        bool wrap = drv.used_wrap;

        /* Two entries ahead. */
        at = (uint16_t)(at + 2);
        if (at >= SIZE) {
            at = (uint16_t)(at - SIZE);
            wrap = !wrap;
        }
        fake_packed_set_event(&drv, DESC, at, wrap);
        return_one();
        cr_assert(!virtqueue_wants_interrupt(&vq), "round %u", round);
        return_one();
        cr_assert(!virtqueue_wants_interrupt(&vq), "round %u", round);
        return_one();
        cr_assert(virtqueue_wants_interrupt(&vq), "round %u", round);
        return_one();
        cr_assert(!virtqueue_wants_interrupt(&vq), "round %u", round);
    }
}

Test(packed, an_interrupt_comes_when_the_ring_went_round_unasked)
{
    fake_packed_set_event(&drv, DESC, SIZE - 1, false);
    for (unsigned i = 0; i < SIZE; i++)
        return_one();
    cr_assert(virtqueue_wants_interrupt(&vq));
}

static bool kick_after_add(void)
{
    uint16_t old = drv.next;
    bool wrap = drv.next_wrap;

    add(2);
    return fake_packed_should_kick(&drv, old, wrap);
}

static void assert_kicks(bool event_idx)
{
    enable(event_idx);
    cr_assert(kick_after_add(), "kicks are wanted from the start");
    for (unsigned round = 0; round < 60; round++) {
        struct fake_used used;

        cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
        virtqueue_push(&vq, &chain, 0);
        cr_assert(fake_packed_take(&drv, &used));
        virtqueue_disable_kicks(&vq);
        cr_assert(!kick_after_add(), "round %u", round);
        cr_assert(virtqueue_enable_kicks(&vq), "what came meanwhile is not told");
        cr_assert_eq(virtqueue_pop(&vq, &chain), 1);
        virtqueue_push(&vq, &chain, 0);
        cr_assert(fake_packed_take(&drv, &used));
        cr_assert_eq(virtqueue_pop(&vq, &chain), 0);
        cr_assert(kick_after_add(), "round %u", round);
    }
}

Test(packed, kicks_are_wanted_when_asked_for_with_event_index)
{
    assert_kicks(true);
}

Test(packed, kicks_are_wanted_when_asked_for_without_event_index)
{
    assert_kicks(false);
}

/* ---- state ---- */

Test(packed, a_queue_goes_on_from_its_state)
{
    for (unsigned i = 0; i < 40; i++) {
        struct virtqueue_state saved;

        return_one();
        saved = vq.st;
        cr_assert_eq(virtqueue_check(&vq, &saved, true), 0);
        virtqueue_reset(&vq);
        vq.st = saved;
        cr_assert_eq(virtqueue_enable_packed(&vq, true, true), 0);
    }
}

Test(packed, a_state_with_requests_in_flight_or_outside_the_ring_is_refused)
{
    struct virtqueue_state st = vq.st;

    st.last_avail = 1;
    cr_assert_eq(virtqueue_check(&vq, &st, true), -EINVAL);
    st.last_avail = st.used_idx = SIZE;
    cr_assert_eq(virtqueue_check(&vq, &st, true), -EINVAL);
    st.last_avail = st.used_idx = 0x8000 | (SIZE - 1);
    cr_assert_eq(virtqueue_check(&vq, &st, true), 0);
    st.signalled_used = SIZE;
    cr_assert_eq(virtqueue_check(&vq, &st, true), -EINVAL);
}

/* ---- a class on packed rings ---- */

static struct fake_env fake;
static struct fake_transport transport;
static struct net_port *card;
static struct net_port peer;
static unsigned delivered;
static size_t last_length;

static unsigned peer_deliver(struct net_port *port, const struct net_frame *frames, unsigned n)
{
    (void)port;
    delivered += n;
    last_length = frames[n - 1].length;
    return n;
}

static const struct net_port_ops peer_ops = {.deliver = peer_deliver};

static struct virtio_device *start_card(struct fake_packed queues[3])
{
    const struct virtio_net_options options = {.mac = {2, 0, 0, 0, 0, 1}};
    struct virtio_device *vdev;

    fake_env_init(&fake, RAM_BYTES);
    cr_assert_eq(virtio_net_create(&vdev, &fake.env, "net0", &options, &card), 0);
    fake_transport_attach(&transport, vdev);
    peer = (struct net_port){.ops = &peer_ops, .name = "peer"};
    net_port_connect(card, &peer);
    fake_driver_start(vdev, 1ull << VIRTIO_F_RING_PACKED | 1ull << VIRTIO_NET_F_MRG_RXBUF, NULL, 0);
    device_lock(&fake.env);
    for (unsigned i = 0; i < 3; i++) {
        struct virtqueue_state *st = &vdev->queues[i].st;

        fake_packed_init(&queues[i], fake.env.mem, RING_AT + i * 0x1000, 16);
        st->size = 16;
        st->desc = queues[i].ring;
        st->driver = queues[i].driver;
        st->device = queues[i].device;
        virtio_queue_enable(vdev, i);
        cr_assert(st->enabled);
    }
    device_unlock(&fake.env);
    return vdev;
}

Test(packed, a_card_sends_and_receives)
{
    static uint8_t bytes[1000] = {2, 0, 0, 0, 0, 1};
    struct iovec iov = {bytes, sizeof(bytes)};
    const struct net_frame frame = {.iov = &iov, .iovcnt = 1, .length = sizeof(bytes)};
    struct fake_packed queues[3];
    struct virtio_device *vdev = start_card(queues);

    for (unsigned round = 0; round < 40; round++) {
        struct fake_piece out = {DATA_AT, 12 + 60 + round, false};
        struct fake_used used;

        for (unsigned i = 0; i < 3; i++) {
            struct fake_piece in = {DATA_AT + 0x1000 + i * 0x1000, 400, true};

            fake_packed_add(&queues[0], &in, 1);
        }
        cr_assert_eq(net_port_send(&peer, &frame, 1), 1);
        for (unsigned i = 0; i < 3; i++) {
            cr_assert(fake_packed_take(&queues[0], &used), "round %u", round);
            cr_assert_eq(used.length, i < 2 ? 400 : 212);
        }
        fake_packed_add(&queues[1], &out, 1);
        fake_driver_kick(vdev, 1);
        cr_assert(fake_packed_take(&queues[1], &used));
        cr_assert_eq(last_length, 60 + round);
    }
    cr_assert_eq(delivered, 40);
    cr_assert_gt(transport.queue_interrupts[1], 0);
    vdev->class->destroy(vdev);
    fake_env_fini(&fake);
}
