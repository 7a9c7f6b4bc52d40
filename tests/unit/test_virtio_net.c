/*
 * virtio-net between a driver of the test's and a peer of the test's.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>

#include "devices/virtio/net.h"
#include "devices/virtio/net_filter.h"
#include "tests/unit/fake_driver.h"
#include "tests/unit/fake_env.h"
#include "vmm/util/log.h"

enum { RX, TX, CTRL, N_QUEUES };

#define BIT(n) (1ull << (n))
#define HEADER 12u
#define QUEUE_BASE 0x10000u
#define QUEUE_SIZE 16
#define DATA 0x100000u /* where tests put their buffers */
#define MEMORY (8 * MIB)
#define FILTER_BITS                                                                                \
    (BIT(VIRTIO_NET_F_CTRL_VQ) | BIT(VIRTIO_NET_F_CTRL_RX) | BIT(VIRTIO_NET_F_CTRL_RX_EXTRA) |     \
     BIT(VIRTIO_NET_F_CTRL_MAC_ADDR))

static const uint8_t card_mac[6] = {0x02, 1, 2, 3, 4, 5};
static const uint8_t other_mac[6] = {0x02, 9, 9, 9, 9, 9};
static const uint8_t broadcast[6] = {0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};
static const uint8_t group_mac[6] = {0x33, 0x33, 0, 0, 0, 1};
static const uint8_t no_mac[6] = {0};

/* ---- the peer ---- */

struct peer {
    struct net_port port;
    bool full;               /* takes nothing */
    unsigned room;           /* if not 0: takes so many more, then is full */
    unsigned calls, delivered, flushed, readied;
    struct net_receive_filter filter; /* that it was told last */
    uint8_t last[NET_FRAME_MAX];
    size_t last_length;
    void (*during)(void);    /* what else happens while it has a frame */
};

static struct fake_env fake;
static struct fake_transport transport;
static struct fake_queue queues[N_QUEUES];
static struct virtio_device *vdev;
static struct net_port *card;
static struct peer peer;

static unsigned peer_deliver(struct net_port *port, const struct net_frame *frames, unsigned n)
{
    struct peer *p = (struct peer *)port;
    unsigned taken = 0;

    p->calls++;
    while (taken < n && !p->full) {
        p->delivered++;
        net_frame_copy(&frames[taken], p->last);
        p->last_length = frames[taken++].length;
        if (p->room > 0 && --p->room == 0)
            p->full = true;
    }
    if (p->during)
        p->during();
    return taken;
}

static void peer_flush(struct net_port *port)
{
    ((struct peer *)port)->flushed++;
}

static void peer_ready(struct net_port *port)
{
    ((struct peer *)port)->readied++;
}

static void peer_filter_changed(struct net_port *port, const struct net_receive_filter *filter)
{
    ((struct peer *)port)->filter = *filter;
}

static const struct net_port_ops peer_ops = {
    .deliver = peer_deliver,
    .flush = peer_flush,
    .ready = peer_ready,
    .filter_changed = peer_filter_changed,
};

static void drop_line(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
}

static void create(uint16_t mtu)
{
    struct virtio_net_options options = {.mtu = mtu};

    memcpy(options.mac, card_mac, 6);
    cr_assert_eq(virtio_net_create(&vdev, &fake.env, "net0", &options, &card), 0);
    fake_transport_attach(&transport, vdev);
    net_port_connect(card, &peer.port);
}

static void set_up(void)
{
    log_set_sink(drop_line);
    fake_env_init(&fake, MEMORY);
    memset(&peer, 0, sizeof(peer));
    peer.port = (struct net_port){.ops = &peer_ops, .name = "peer"};
    vdev = NULL;
}

static void destroy(void)
{
    if (vdev)
        vdev->class->destroy(vdev);
    vdev = NULL;
}

static void tear_down(void)
{
    destroy();
    fake_env_fini(&fake);
}

TestSuite(virtio_net, .init = set_up, .fini = tear_down, .timeout = 60);

static void start_driver(uint64_t features)
{
    gpa_t base = QUEUE_BASE;

    for (unsigned i = 0; i < N_QUEUES; i++) {
        fake_queue_init(&queues[i], fake.env.mem, base, QUEUE_SIZE);
        base = queues[i].end;
    }
    fake_driver_start(vdev, features, queues, N_QUEUES);
}

static void start(uint64_t features)
{
    create(0);
    start_driver(features);
}

/* ---- frames ---- */

static uint8_t bytes[NET_FRAME_MAX];

/* A frame of `length` bytes to the address `to`, with contents that tell positions apart.
 * Whether it was taken. */
static bool send_to_card(const uint8_t to[6], size_t length)
{
    struct iovec iov[3];
    struct net_frame frame = {.iov = iov, .iovcnt = 3, .length = length};

    for (size_t i = 0; i < length; i++)
        bytes[i] = (uint8_t)(i * 31 >> (i & 1 ? 8 : 0));
    memcpy(bytes, to, 6);
    /* In pieces, as a switch would pass on another guest's. */
    iov[0] = (struct iovec){bytes, 5};
    iov[1] = (struct iovec){bytes + 5, 0};
    iov[2] = (struct iovec){bytes + 5, length - 5};
    return net_port_send(&peer.port, &frame, 1) == 1;
}

static void assert_memory(gpa_t gpa, const void *expected, size_t length)
{
    const uint8_t *at = memory_at(fake.env.mem, gpa, length);

    cr_assert_not_null(at);
    cr_assert_eq(memcmp(at, expected, length), 0, "memory at %#llx is not as expected",
                 (unsigned long long)gpa);
}

static void assert_header(gpa_t gpa, uint8_t num_buffers)
{
    const uint8_t header[HEADER] = {[10] = num_buffers};

    assert_memory(gpa, header, HEADER);
}

static void add_buffer(gpa_t gpa, uint32_t length)
{
    struct fake_piece piece = {.gpa = gpa, .length = length, .writable = true};

    fake_queue_add(&queues[RX], &piece, 1);
}

static void assert_used(unsigned queue, uint32_t length)
{
    struct fake_used used;

    cr_assert(fake_queue_take(&queues[queue], &used), "no buffer was returned");
    cr_assert_eq(used.length, length);
}

static bool is_broken(void)
{
    return vdev->status & VIRTIO_CONFIG_S_NEEDS_RESET;
}

static struct virtio_net_counters counters(void)
{
    struct virtio_net_counters c;

    virtio_net_get_counters(vdev, &c);
    return c;
}

/* ---- features and configuration ---- */

Test(virtio_net, it_offers_what_it_does)
{
    create(0);
    cr_assert_eq(vdev->class->features(vdev),
                 FILTER_BITS | BIT(VIRTIO_NET_F_MAC) | BIT(VIRTIO_NET_F_STATUS) |
                     BIT(VIRTIO_NET_F_MRG_RXBUF));
}

Test(virtio_net, it_offers_an_mtu_when_it_has_one)
{
    uint8_t config[12];

    create(9000);
    cr_assert(vdev->class->features(vdev) & BIT(VIRTIO_NET_F_MTU));
    vdev->class->config_read(vdev, 0, config, sizeof(config));
    cr_assert_eq(config[10] | config[11] << 8, 9000);
}

Test(virtio_net, the_configuration_shows_address_and_link)
{
    uint8_t config[12], status;

    create(0);
    vdev->class->config_read(vdev, 0, config, sizeof(config));
    cr_assert_arr_eq(config, card_mac, 6);
    cr_assert_eq(config[6], VIRTIO_NET_S_LINK_UP);
    vdev->class->config_read(vdev, 6, &status, 1);
    cr_assert_eq(status, VIRTIO_NET_S_LINK_UP);
}

static void set_link(bool up)
{
    device_lock(&fake.env);
    virtio_net_set_link(vdev, up);
    device_unlock(&fake.env);
}

Test(virtio_net, a_link_that_changes_is_told)
{
    uint8_t status;

    start(BIT(VIRTIO_NET_F_STATUS));
    set_link(true);
    cr_assert_eq(transport.config_interrupts, 0);
    set_link(false);
    cr_assert_eq(transport.config_interrupts, 1);
    vdev->class->config_read(vdev, 6, &status, 1);
    cr_assert_eq(status, 0);
}

Test(virtio_net, a_link_that_is_down_carries_nothing)
{
    struct fake_piece piece = {.gpa = DATA, .length = HEADER + 60};

    start(0);
    add_buffer(DATA + 0x1000, 2000);
    set_link(false);
    cr_assert(send_to_card(card_mac, 60));
    cr_assert_eq(fake_queue_used_idx(&queues[RX]), 0);
    fake_queue_add(&queues[TX], &piece, 1);
    fake_driver_kick(vdev, TX);
    assert_used(TX, 0);
    cr_assert_eq(peer.delivered, 0);
}

Test(virtio_net, an_address_of_a_group_is_refused)
{
    struct virtio_net_options options = {.mac = {0x03}};

    cr_assert_eq(virtio_net_create(&vdev, &fake.env, "net0", &options, &card), -EINVAL);
}

Test(virtio_net, an_unreasonable_mtu_is_refused)
{
    struct virtio_net_options options = {.mtu = VIRTIO_NET_MIN_MTU - 1};

    cr_assert_eq(virtio_net_create(&vdev, &fake.env, "net0", &options, &card), -EINVAL);
    options.mtu = VIRTIO_NET_MAX_MTU + 1;
    cr_assert_eq(virtio_net_create(&vdev, &fake.env, "net0", &options, &card), -EINVAL);
}

/* ---- receiving ---- */

Test(virtio_net, a_frame_lands_behind_a_header_of_zeros_with_one_buffer)
{
    start(0);
    memory_fill(fake.env.mem, DATA, 0xEE, 2000);
    add_buffer(DATA, 2000);
    cr_assert(send_to_card(card_mac, 1000));
    assert_used(RX, HEADER + 1000);
    assert_header(DATA, 1);
    assert_memory(DATA + HEADER, bytes, 1000);
    assert_memory(DATA + HEADER + 1000, "\xEE", 1);
}

Test(virtio_net, a_buffer_may_be_in_pieces_cut_anywhere)
{
    const struct fake_piece pieces[] = {
        {DATA, 1, true}, {DATA + 0x1000, 10, true}, {DATA + 0x2000, 4, true},
        {DATA + 0x3000, 100, true}, {DATA + 0x4000, 1000, true},
    };
    const uint8_t zeros[10] = {0}, low = 1, high = 0;

    start(0);
    memory_fill(fake.env.mem, DATA, 0xEE, 0x5000);
    fake_queue_add(&queues[RX], pieces, 5);
    cr_assert(send_to_card(card_mac, 200));
    assert_used(RX, HEADER + 200);
    assert_memory(DATA, zeros, 1);
    assert_memory(DATA + 0x1000, zeros, 9);
    assert_memory(DATA + 0x1009, &low, 1);  /* num_buffers, */
    assert_memory(DATA + 0x2000, &high, 1); /* ... cut in two */
    assert_memory(DATA + 0x2001, bytes, 3);
    assert_memory(DATA + 0x3000, bytes + 3, 100);
    assert_memory(DATA + 0x4000, bytes + 103, 97);
    assert_memory(DATA + 0x4000 + 97, "\xEE", 1);
}

Test(virtio_net, a_long_frame_is_spread_over_buffers_that_merge)
{
    start(BIT(VIRTIO_NET_F_MRG_RXBUF));
    add_buffer(DATA, 500);
    add_buffer(DATA + 0x1000, 600);
    add_buffer(DATA + 0x2000, 700);
    add_buffer(DATA + 0x3000, 700);
    cr_assert(send_to_card(card_mac, 1500));
    assert_used(RX, 500);
    assert_used(RX, 600);
    assert_used(RX, 1500 - 488 - 600);
    assert_header(DATA, 3);
    assert_memory(DATA + HEADER, bytes, 488);
    assert_memory(DATA + 0x1000, bytes + 488, 600);
    assert_memory(DATA + 0x2000, bytes + 1088, 412);
    cr_assert_eq(fake_queue_used_idx(&queues[RX]), 3);
}

Test(virtio_net, the_longest_frame_fits_into_buffers_that_merge)
{
    start(BIT(VIRTIO_NET_F_MRG_RXBUF));
    for (unsigned i = 0; i < QUEUE_SIZE; i++)
        add_buffer(DATA + i * 0x2000, 0x1100);
    cr_assert(send_to_card(card_mac, NET_FRAME_MAX));
    cr_assert_eq(fake_queue_used_idx(&queues[RX]), (HEADER + NET_FRAME_MAX + 0x10FF) / 0x1100);
}

Test(virtio_net, without_enough_buffers_a_frame_is_refused_and_none_is_used)
{
    start(BIT(VIRTIO_NET_F_MRG_RXBUF));
    add_buffer(DATA, 500);
    add_buffer(DATA + 0x1000, 500);
    cr_assert(!send_to_card(card_mac, 1500));
    cr_assert_eq(fake_queue_used_idx(&queues[RX]), 0);
    cr_assert(send_to_card(card_mac, 900));
    assert_used(RX, 500);
    assert_used(RX, HEADER + 900 - 500);
}

static void kick_after_adding(gpa_t gpa, bool expected)
{
    uint16_t old = queues[RX].avail_idx;

    add_buffer(gpa, 2000);
    cr_assert_eq(fake_queue_should_kick(&queues[RX], old), expected);
    if (expected)
        fake_driver_kick(vdev, RX);
}

static void assert_kicks_are_wanted_when_starved(uint64_t features)
{
    start(features);
    add_buffer(DATA, 2000);
    add_buffer(DATA + 0x1000, 2000);
    cr_assert(send_to_card(card_mac, 100));
    kick_after_adding(DATA + 0x2000, false);
    cr_assert(send_to_card(card_mac, 100));
    cr_assert(send_to_card(card_mac, 100));
    cr_assert_eq(peer.readied, 0);
    cr_assert(!send_to_card(card_mac, 100));
    kick_after_adding(DATA + 0x3000, true);
    cr_assert_eq(peer.readied, 1);
    cr_assert(send_to_card(card_mac, 100));
    kick_after_adding(DATA + 0x4000, false);
}

Test(virtio_net, the_driver_kicks_for_new_buffers_only_when_a_frame_waits)
{
    assert_kicks_are_wanted_when_starved(0);
}

Test(virtio_net, the_driver_kicks_for_new_buffers_only_when_a_frame_waits_with_event_index)
{
    assert_kicks_are_wanted_when_starved(BIT(VIRTIO_RING_F_EVENT_IDX));
}

Test(virtio_net, one_buffer_more_is_kicked_for_when_a_long_frame_waits)
{
    uint16_t old;

    start(BIT(VIRTIO_NET_F_MRG_RXBUF) | BIT(VIRTIO_RING_F_EVENT_IDX));
    add_buffer(DATA, 1000);
    cr_assert(!send_to_card(card_mac, 1500));
    old = queues[RX].avail_idx;
    add_buffer(DATA + 0x1000, 1000);
    cr_assert(fake_queue_should_kick(&queues[RX], old));
}

Test(virtio_net, a_kick_that_nobody_waits_for_reaches_nobody)
{
    start(0);
    add_buffer(DATA, 2000);
    fake_driver_kick(vdev, RX);
    cr_assert_eq(peer.readied, 0);
}

Test(virtio_net, a_buffer_too_short_for_a_frame_stays_for_a_shorter_one)
{
    start(0);
    add_buffer(DATA, 1000);
    cr_assert(send_to_card(card_mac, 1000));
    cr_assert_eq(counters().too_long, 1);
    cr_assert_eq(fake_queue_used_idx(&queues[RX]), 0);
    cr_assert(send_to_card(card_mac, 1000 - HEADER));
    assert_used(RX, 1000);
}

Test(virtio_net, a_frame_that_no_ring_full_of_buffers_can_hold_is_dropped)
{
    start(BIT(VIRTIO_NET_F_MRG_RXBUF));
    for (unsigned i = 0; i < QUEUE_SIZE; i++)
        add_buffer(DATA + i * 0x1000, 20);
    cr_assert(send_to_card(card_mac, 1500));
    cr_assert_eq(counters().too_long, 1);
    cr_assert_eq(fake_queue_used_idx(&queues[RX]), 0);
    cr_assert(!is_broken());
}

Test(virtio_net, a_buffer_without_room_for_a_header_breaks_the_device)
{
    start(BIT(VIRTIO_NET_F_MRG_RXBUF));
    add_buffer(DATA, HEADER - 1);
    cr_assert(send_to_card(card_mac, 60));
    cr_assert(is_broken());
}

Test(virtio_net, a_receive_buffer_that_cannot_be_written_breaks_the_device)
{
    struct fake_piece piece = {.gpa = DATA, .length = 2000};

    start(BIT(VIRTIO_NET_F_MRG_RXBUF));
    fake_queue_add(&queues[RX], &piece, 1);
    cr_assert(send_to_card(card_mac, 60));
    cr_assert(is_broken());
}

Test(virtio_net, a_receive_buffer_outside_memory_breaks_the_device)
{
    start(BIT(VIRTIO_NET_F_MRG_RXBUF));
    add_buffer(MEMORY - 100, 2000);
    cr_assert(send_to_card(card_mac, 60));
    cr_assert(is_broken());
    cr_assert_eq(counters().not_ready, 1);
}

Test(virtio_net, without_a_driver_frames_are_dropped_and_counted)
{
    create(0);
    cr_assert(send_to_card(card_mac, 60));
    cr_assert_eq(counters().not_ready, 1);
}

Test(virtio_net, a_broken_card_receives_nothing)
{
    struct fake_piece piece = {.gpa = MEMORY, .length = 100};

    start(0);
    add_buffer(DATA, 2000);
    fake_queue_add(&queues[TX], &piece, 1);
    fake_driver_kick(vdev, TX);
    cr_assert(send_to_card(card_mac, 60));
    cr_assert_eq(counters().not_ready, 1);
    cr_assert_eq(fake_queue_used_idx(&queues[RX]), 0);
}

Test(virtio_net, a_paused_card_refuses_frames_and_asks_for_them_when_it_goes_on)
{
    start(0);
    add_buffer(DATA, 2000);
    device_lock(&fake.env);
    virtio_pause(vdev);
    device_unlock(&fake.env);
    cr_assert(!send_to_card(card_mac, 60));
    device_lock(&fake.env);
    virtio_resume(vdev);
    device_unlock(&fake.env);
    cr_assert_eq(peer.readied, 1);
    cr_assert(send_to_card(card_mac, 60));
}

Test(virtio_net, a_frame_that_waited_over_a_reset_is_asked_for_when_the_new_driver_sends)
{
    struct fake_piece piece = {.gpa = DATA + 0x1000, .length = HEADER + 60};

    start(0);
    cr_assert(!send_to_card(card_mac, 60));
    fake_driver_reset(vdev);
    start_driver(0);
    add_buffer(DATA, 2000);
    fake_queue_add(&queues[TX], &piece, 1);
    fake_driver_kick(vdev, TX);
    cr_assert_eq(peer.readied, 1);
}

Test(virtio_net, a_run_of_frames_makes_one_interrupt_at_its_end)
{
    start(0);
    for (unsigned i = 0; i < 3; i++) {
        add_buffer(DATA + i * 0x1000, 2000);
        send_to_card(card_mac, 60);
    }
    cr_assert_eq(transport.queue_interrupts[RX], 0);
    net_port_flush(&peer.port);
    cr_assert_eq(transport.queue_interrupts[RX], 1);
    net_port_flush(&peer.port);
    cr_assert_eq(transport.queue_interrupts[RX], 1);
}

Test(virtio_net, a_driver_out_of_buffers_is_interrupted_at_once)
{
    start(0);
    add_buffer(DATA, 2000);
    send_to_card(card_mac, 60);
    cr_assert(!send_to_card(card_mac, 60));
    cr_assert_eq(transport.queue_interrupts[RX], 1);
}

Test(virtio_net, every_page_written_is_marked_dirty)
{
    /* The header across two pages, with num_buffers alone in the second. */
    const struct fake_piece pieces[] = {{DATA + 0x3FF6, 12, true}, {DATA + 0x6FFF, 100, true}};
    const uint64_t first = DATA / 4096, expected = BIT(3) | BIT(4) | BIT(6) | BIT(7) | BIT(9);
    uint64_t dirty[MEMORY / 4096 / 64] = {0};

    start(BIT(VIRTIO_NET_F_MRG_RXBUF));
    fake_queue_add(&queues[RX], pieces, 2);
    add_buffer(DATA + 0x9000, 8000);
    cr_assert_eq(memory_dirty_start(fake.env.mem), 0);
    cr_assert(send_to_card(card_mac, 1000));
    memory_dirty_harvest(fake.env.mem, 0, dirty);
    memory_dirty_stop(fake.env.mem);
    for (uint64_t i = 0; i < 16; i++)
        cr_assert_eq(dirty[(first + i) / 64] >> (first + i) % 64 & 1, expected >> i & 1,
                     "page %llu", (unsigned long long)i);
    cr_assert(dirty[queues[RX].used / 4096 / 64] >> queues[RX].used / 4096 % 64 & 1);
}

Test(virtio_net, frames_longer_than_the_mtu_are_not_passed_on)
{
    create(1280);
    start_driver(BIT(VIRTIO_NET_F_MTU));
    add_buffer(DATA, 4000);
    cr_assert(send_to_card(card_mac, 1280 + 14 + 4 + 1));
    cr_assert_eq(counters().too_long, 1);
    cr_assert(send_to_card(card_mac, 1280 + 14));
    assert_used(RX, HEADER + 1280 + 14);
}

Test(virtio_net, work_that_was_not_agreed_on_is_refused)
{
    struct iovec iov = {bytes, 60};
    struct net_frame frame = {.iov = &iov, .iovcnt = 1, .length = 60, .needs_csum = true};

    start(0);
    add_buffer(DATA, 2000);
    cr_assert_eq(net_port_send(&peer.port, &frame, 1), 1);
    cr_assert_eq(counters().malformed, 1);
    frame.needs_csum = false;
    frame.gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
    cr_assert_eq(net_port_send(&peer.port, &frame, 1), 1);
    cr_assert_eq(counters().malformed, 2);
    cr_assert_eq(fake_queue_used_idx(&queues[RX]), 0);
}

/* ---- transmitting ---- */

/* Queues a frame whose last byte is `tag`; its header holds rubbish that nothing may heed. */
static void add_frame(gpa_t gpa, uint32_t length, uint8_t tag)
{
    struct fake_piece piece = {.gpa = gpa, .length = HEADER + length};

    memory_fill(fake.env.mem, gpa, 0xA5, HEADER + length);
    memory_write(fake.env.mem, gpa + HEADER + length - 1, &tag, 1);
    fake_queue_add(&queues[TX], &piece, 1);
}

static uint8_t last_tag(void)
{
    return peer.last[peer.last_length - 1];
}

Test(virtio_net, a_frame_goes_out_without_its_header_and_its_buffer_comes_back)
{
    start(0);
    add_frame(DATA, 1514, 7);
    fake_driver_kick(vdev, TX);
    cr_assert_eq(peer.delivered, 1);
    cr_assert_eq(peer.last_length, 1514);
    cr_assert_eq(last_tag(), 7);
    assert_used(TX, 0);
    cr_assert_eq(card->sent.frames, 1);
}

Test(virtio_net, a_frame_may_be_in_pieces_cut_anywhere)
{
    const struct fake_piece pieces[] = {
        {DATA, 5, false}, {DATA + 0x1000, 8, false}, {DATA + 0x2000, 40, false},
        {DATA + 0x3000, 19, false},
    };

    start(0);
    for (uint8_t i = 0; i < 60; i++)
        bytes[i] = i;
    memory_write(fake.env.mem, DATA + 0x1007, bytes, 1);
    memory_write(fake.env.mem, DATA + 0x2000, bytes + 1, 40);
    memory_write(fake.env.mem, DATA + 0x3000, bytes + 41, 19);
    fake_queue_add(&queues[TX], pieces, 4);
    fake_driver_kick(vdev, TX);
    cr_assert_eq(peer.last_length, 60);
    cr_assert_arr_eq(peer.last, bytes, 60);
}

Test(virtio_net, a_run_of_frames_makes_one_interrupt_and_one_flush)
{
    start(0);
    for (uint8_t i = 0; i < 5; i++)
        add_frame(DATA + i * 0x1000, 100, i);
    fake_driver_kick(vdev, TX);
    cr_assert_eq(peer.delivered, 5);
    cr_assert_eq(peer.flushed, 1);
    cr_assert_eq(transport.queue_interrupts[TX], 1);
}

Test(virtio_net, buffers_that_are_no_frames_come_back_and_are_counted)
{
    struct fake_piece piece = {.gpa = DATA, .length = HEADER + NET_FRAME_MIN - 1};

    start(0);
    fake_queue_add(&queues[TX], &piece, 1);
    piece.length = 3;
    fake_queue_add(&queues[TX], &piece, 1);
    piece.length = HEADER + NET_FRAME_MAX + 1;
    fake_queue_add(&queues[TX], &piece, 1);
    piece.length = 2000;
    piece.writable = true;
    fake_queue_add(&queues[TX], &piece, 1);
    fake_driver_kick(vdev, TX);
    cr_assert_eq(peer.delivered, 0);
    cr_assert_eq(counters().malformed, 4);
    for (unsigned i = 0; i < 4; i++)
        assert_used(TX, 0);
    cr_assert(!is_broken());
}

Test(virtio_net, the_shortest_and_the_longest_frame_go_out)
{
    start(0);
    add_frame(DATA, NET_FRAME_MIN, 1);
    fake_driver_kick(vdev, TX);
    cr_assert_eq(peer.last_length, NET_FRAME_MIN);
    add_frame(DATA, NET_FRAME_MAX, 2);
    fake_driver_kick(vdev, TX);
    cr_assert_eq(peer.last_length, NET_FRAME_MAX);
}

Test(virtio_net, a_corrupt_transmit_queue_breaks_the_device)
{
    struct fake_piece piece = {.gpa = MEMORY, .length = 100};

    start(0);
    fake_queue_add(&queues[TX], &piece, 1);
    fake_driver_kick(vdev, TX);
    cr_assert(is_broken());
    cr_assert_eq(peer.delivered, 0);
}

Test(virtio_net, a_refused_frame_waits_for_the_peer_and_goes_first)
{
    uint16_t old;

    start(0);
    peer.room = 1;
    for (uint8_t i = 0; i < 3; i++)
        add_frame(DATA + i * 0x1000, 100, i);
    fake_driver_kick(vdev, TX);
    cr_assert_eq(peer.delivered, 1);
    cr_assert_eq(fake_queue_used_idx(&queues[TX]), 1);
    /* Meanwhile kicks are of no use, and none does anything. */
    old = queues[TX].avail_idx;
    add_frame(DATA + 0x3000, 100, 3);
    cr_assert(!fake_queue_should_kick(&queues[TX], old));
    fake_driver_kick(vdev, TX);
    cr_assert_eq(peer.calls, 1);
    peer.full = false;
    peer.room = 1;
    net_port_ready(&peer.port);
    cr_assert_eq(last_tag(), 1);
    peer.full = false;
    net_port_ready(&peer.port);
    cr_assert_eq(peer.delivered, 4);
    cr_assert_eq(last_tag(), 3);
    cr_assert_eq(fake_queue_used_idx(&queues[TX]), 4);
}

Test(virtio_net, what_waits_in_the_queue_goes_out_in_one_batch_without_what_is_no_frame)
{
    struct fake_piece none = {.gpa = DATA, .length = 3};

    start(0);
    peer.room = 2;
    add_frame(DATA, 100, 0);
    fake_queue_add(&queues[TX], &none, 1);
    add_frame(DATA + 0x1000, 100, 1);
    fake_queue_add(&queues[TX], &none, 1);
    add_frame(DATA + 0x2000, 100, 2);
    fake_driver_kick(vdev, TX);
    cr_assert_eq(peer.calls, 1);
    cr_assert_eq(last_tag(), 1);
    /* All up to the refused one came back. */
    cr_assert_eq(fake_queue_used_idx(&queues[TX]), 4);
    cr_assert_eq(counters().malformed, 2);
}

Test(virtio_net, chains_of_many_pieces_are_sent_in_as_many_batches_as_they_need)
{
    static struct fake_queue many[N_QUEUES];
    struct fake_piece pieces[256];

    /* Nine chains of 256 pieces are more than there is room for at a time. */
    create(0);
    for (unsigned i = 0; i < N_QUEUES; i++)
        fake_queue_init(&many[i], fake.env.mem, QUEUE_BASE + i * 0x4000, i == TX ? 256 : 16);
    fake_driver_start(vdev, BIT(VIRTIO_RING_F_INDIRECT_DESC), many, N_QUEUES);
    for (unsigned i = 0; i < 256; i++)
        pieces[i] = (struct fake_piece){DATA + i * 4, 4, false};
    for (unsigned i = 0; i < 9; i++)
        fake_queue_add_indirect(&many[TX], pieces, 256, DATA + 0x10000 + i * 0x1000);
    fake_driver_kick(vdev, TX);
    cr_assert_eq(peer.delivered, 9);
    cr_assert_eq(peer.last_length, 256 * 4 - HEADER);
    cr_assert_eq(fake_queue_used_idx(&many[TX]), 9);
    cr_assert_eq(peer.calls, 2);
}

Test(virtio_net, an_unplugged_card_sends_into_nothing)
{
    start(0);
    net_port_disconnect(card);
    add_frame(DATA, 100, 1);
    fake_driver_kick(vdev, TX);
    assert_used(TX, 0);
    cr_assert_eq(card->sent.dropped, 1);
}

Test(virtio_net, a_card_whose_peer_goes_away_lets_go_of_what_was_refused)
{
    start(0);
    peer.full = true;
    add_frame(DATA, 100, 1);
    fake_driver_kick(vdev, TX);
    net_port_disconnect(&peer.port);
    assert_used(TX, 0);
}

static void try_lock(void)
{
    cr_assert_eq(pthread_mutex_trylock(fake.env.lock), 0, "the device lock is held");
    pthread_mutex_unlock(fake.env.lock);
}

Test(virtio_net, the_device_lock_is_not_held_while_the_peer_has_a_frame)
{
    start(0);
    peer.during = try_lock;
    add_frame(DATA, 100, 1);
    fake_driver_kick(vdev, TX);
    cr_assert_eq(peer.delivered, 1);
}

static void reset_meanwhile(void)
{
    fake_driver_reset(vdev);
    device_lock(&fake.env);
    cr_assert_neq(virtio_get_status(vdev), 0, "the reset is complete while a frame is in use");
    device_unlock(&fake.env);
}

Test(virtio_net, a_reset_while_the_peer_has_a_frame_is_complete_only_afterwards)
{
    start(0);
    peer.during = reset_meanwhile;
    add_frame(DATA, 100, 1);
    add_frame(DATA + 0x1000, 100, 2);
    fake_driver_kick(vdev, TX);
    cr_assert_eq(virtio_get_status(vdev), 0);
    cr_assert_eq(peer.calls, 1);
    cr_assert_eq(fake_queue_used_idx(&queues[TX]), 0);
}

static void restart_meanwhile(void)
{
    peer.during = NULL;
    fake_driver_reset(vdev);
    device_lock(&fake.env);
    vdev->status = 0;
    device_unlock(&fake.env);
    start_driver(0);
}

Test(virtio_net, a_buffer_of_before_a_reset_is_not_returned_to_the_driver_after_it)
{
    start(0);
    peer.during = restart_meanwhile;
    peer.full = true;
    add_frame(DATA, 100, 1);
    fake_driver_kick(vdev, TX);
    cr_assert_eq(fake_queue_used_idx(&queues[TX]), 0);
    cr_assert_eq(vdev->queues[TX].st.last_avail, 0);
    peer.full = false;
    add_frame(DATA, 100, 2);
    fake_driver_kick(vdev, TX);
    cr_assert_eq(last_tag(), 2);
    assert_used(TX, 0);
}

static void answer(void)
{
    peer.during = NULL;
    cr_assert(send_to_card(card_mac, 60));
}

Test(virtio_net, a_peer_may_answer_at_once)
{
    start(0);
    add_buffer(DATA + 0x8000, 2000);
    peer.during = answer;
    add_frame(DATA, 100, 1);
    fake_driver_kick(vdev, TX);
    assert_used(RX, HEADER + 60);
    assert_used(TX, 0);
}

static void send_another(void)
{
    struct fake_used used;

    /* The buffers of the frames before this one are back. */
    while (fake_queue_take(&queues[TX], &used))
        continue;
    add_frame(DATA + 0x1000, 100, (uint8_t)peer.delivered);
}

static bool has_sent_much(void *arg)
{
    (void)arg;
    return peer.delivered > 2000;
}

Test(virtio_net, a_driver_that_never_stops_sending_lets_the_loop_have_its_turns)
{
    unsigned before;

    start(BIT(VIRTIO_RING_F_EVENT_IDX));
    peer.during = send_another;
    add_frame(DATA, 100, 0);
    fake_driver_kick(vdev, TX);
    before = peer.delivered;
    cr_assert_lt(before, 1000);
    fake_env_wait(&fake, has_sent_much, NULL);
    peer.during = NULL;
}

Test(virtio_net, a_paused_card_sends_nothing_and_goes_on_where_it_stopped)
{
    start(0);
    device_lock(&fake.env);
    virtio_pause(vdev);
    device_unlock(&fake.env);
    add_frame(DATA, 100, 1);
    fake_driver_kick(vdev, TX);
    cr_assert_eq(peer.delivered, 0);
    cr_assert(!virtio_busy(vdev));
    device_lock(&fake.env);
    virtio_resume(vdev);
    device_unlock(&fake.env);
    cr_assert_eq(peer.delivered, 1);
}

/* ---- commands ---- */

#define COMMAND (DATA + 0x80000)
#define ACK (DATA + 0x90000)

/* Carries a command out; its answer. */
static uint8_t command(uint8_t class, uint8_t cmd, const void *data, uint32_t length)
{
    const uint8_t head[2] = {class, cmd}, nothing = 0xEE;
    const struct fake_piece pieces[] = {
        {COMMAND, 2, false}, {COMMAND + 0x100, length, false}, {ACK, 1, true},
    };
    const struct fake_piece bare[] = {pieces[0], pieces[2]};
    uint8_t ack;

    memory_write(fake.env.mem, COMMAND, head, 2);
    memory_write(fake.env.mem, ACK, &nothing, 1);
    if (length) {
        memory_write(fake.env.mem, COMMAND + 0x100, data, length);
        fake_queue_add(&queues[CTRL], pieces, 3);
    } else {
        fake_queue_add(&queues[CTRL], bare, 2);
    }
    fake_driver_kick(vdev, CTRL);
    assert_used(CTRL, 1);
    memory_read(fake.env.mem, ACK, &ack, 1);
    return ack;
}

static uint8_t set_mode(uint8_t mode, uint8_t on)
{
    return command(VIRTIO_NET_CTRL_RX, mode, &on, 1);
}

/* Whether a frame to that address reaches the driver. */
static bool hears(const uint8_t to[6])
{
    struct fake_used used;

    add_buffer(DATA, 2000);
    cr_assert(send_to_card(to, 60));
    if (fake_queue_take(&queues[RX], &used))
        return true;
    /* The buffer is still there; it is used up for the next question. */
    cr_assert_eq(command(VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, "\1", 1), VIRTIO_NET_OK);
    send_to_card(to, 60);
    cr_assert(fake_queue_take(&queues[RX], &used));
    cr_assert_eq(command(VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, "\0", 1), VIRTIO_NET_OK);
    return false;
}

Test(virtio_net, a_driver_that_cannot_set_a_filter_hears_everything)
{
    struct fake_used used;

    start(0);
    add_buffer(DATA, 2000);
    send_to_card(other_mac, 60);
    cr_assert(fake_queue_take(&queues[RX], &used));
}

Test(virtio_net, at_first_a_filter_lets_the_own_address_and_broadcasts_through)
{
    start(FILTER_BITS);
    cr_assert(hears(card_mac));
    cr_assert(hears(broadcast));
    cr_assert(!hears(other_mac));
    cr_assert(!hears(group_mac));
    cr_assert(!hears(no_mac));
    cr_assert_eq(counters().filtered, 3);
}

Test(virtio_net, promiscuous_mode_lets_everything_through_whatever_else_is_set)
{
    start(FILTER_BITS);
    for (uint8_t mode = VIRTIO_NET_CTRL_RX_NOMULTI; mode <= VIRTIO_NET_CTRL_RX_NOBCAST; mode++)
        cr_assert_eq(set_mode(mode, 1), VIRTIO_NET_OK);
    cr_assert_eq(set_mode(VIRTIO_NET_CTRL_RX_PROMISC, 1), VIRTIO_NET_OK);
    cr_assert(hears(card_mac));
    cr_assert(hears(broadcast));
    cr_assert(hears(other_mac));
    cr_assert(hears(group_mac));
    cr_assert_eq(set_mode(VIRTIO_NET_CTRL_RX_PROMISC, 0), VIRTIO_NET_OK);
    cr_assert(!hears(other_mac));
}

Test(virtio_net, all_multicast_lets_groups_through)
{
    start(FILTER_BITS);
    cr_assert_eq(set_mode(VIRTIO_NET_CTRL_RX_ALLMULTI, 1), VIRTIO_NET_OK);
    cr_assert(hears(group_mac));
    cr_assert(!hears(other_mac));
}

Test(virtio_net, no_multicast_overrules_all_multicast_but_not_broadcasts)
{
    start(FILTER_BITS);
    set_mode(VIRTIO_NET_CTRL_RX_ALLMULTI, 1);
    cr_assert_eq(set_mode(VIRTIO_NET_CTRL_RX_NOMULTI, 1), VIRTIO_NET_OK);
    cr_assert(!hears(group_mac));
    cr_assert(hears(broadcast));
}

Test(virtio_net, no_broadcast_overrules_all_multicast)
{
    start(FILTER_BITS);
    set_mode(VIRTIO_NET_CTRL_RX_ALLMULTI, 1);
    cr_assert_eq(set_mode(VIRTIO_NET_CTRL_RX_NOBCAST, 1), VIRTIO_NET_OK);
    cr_assert(!hears(broadcast));
    cr_assert(hears(group_mac));
}

Test(virtio_net, all_unicast_lets_other_stations_through)
{
    start(FILTER_BITS);
    cr_assert_eq(set_mode(VIRTIO_NET_CTRL_RX_ALLUNI, 1), VIRTIO_NET_OK);
    cr_assert(hears(other_mac));
    cr_assert(!hears(group_mac));
}

Test(virtio_net, no_unicast_overrules_all_unicast)
{
    start(FILTER_BITS);
    set_mode(VIRTIO_NET_CTRL_RX_ALLUNI, 1);
    cr_assert_eq(set_mode(VIRTIO_NET_CTRL_RX_NOUNI, 1), VIRTIO_NET_OK);
    cr_assert(!hears(card_mac));
    cr_assert(hears(broadcast));
}

/* Two tables of n_unicast and n_multicast addresses: 02:00:00:00:nn:nn and 33:33:00:00:nn:nn. */
static uint32_t make_tables(uint8_t *to, uint32_t n_unicast, uint32_t n_multicast)
{
    const uint32_t n[2] = {n_unicast, n_multicast};
    uint8_t *at = to;

    for (unsigned t = 0; t < 2; t++) {
        memcpy(at, &n[t], 4);
        at += 4;
        for (uint32_t i = 0; i < n[t]; i++, at += 6) {
            const uint8_t mac[6] = {t ? 0x33 : 0x02, t ? 0x33 : 0, 0, 0, (uint8_t)(i >> 8),
                                    (uint8_t)i};
            memcpy(at, mac, 6);
        }
    }
    return (uint32_t)(at - to);
}

static uint8_t tables[8192];

static uint8_t set_tables(uint32_t n_unicast, uint32_t n_multicast)
{
    uint32_t length = make_tables(tables, n_unicast, n_multicast);

    return command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, tables, length);
}

Test(virtio_net, addresses_in_the_tables_are_let_through)
{
    static const uint8_t in[6] = {0x02, 0, 0, 0, 0, 9}, out[6] = {0x02, 0, 0, 0, 0, 10};
    static const uint8_t group_out[6] = {0x33, 0x33, 0, 0, 0, 5};

    start(FILTER_BITS);
    cr_assert_eq(set_tables(10, 5), VIRTIO_NET_OK);
    cr_assert(hears(in));
    cr_assert(!hears(out));
    cr_assert(hears(group_mac));
    cr_assert(!hears(group_out));
    cr_assert(hears(card_mac));
    cr_assert_eq(set_tables(0, 0), VIRTIO_NET_OK);
    cr_assert(!hears(in));
    cr_assert(!hears(group_mac));
}

Test(virtio_net, a_table_too_long_to_be_kept_lets_all_of_its_kind_through)
{
    start(FILTER_BITS);
    cr_assert_eq(set_tables(NET_FILTER_TABLE, 0), VIRTIO_NET_OK);
    cr_assert(!hears(other_mac));
    cr_assert_eq(set_tables(NET_FILTER_TABLE + 1, 0), VIRTIO_NET_OK);
    cr_assert(hears(other_mac));
    cr_assert(!hears(group_mac));
    cr_assert_eq(set_tables(0, 500), VIRTIO_NET_OK);
    cr_assert(!hears(other_mac));
    cr_assert(hears(group_mac));
}

Test(virtio_net, tables_longer_than_their_command_are_refused_and_change_nothing)
{
    const uint32_t huge[2] = {0x2AAAAAAB, 0}; /* six times that wraps to 2 */
    uint32_t length;

    start(FILTER_BITS);
    cr_assert_eq(set_tables(0, 2), VIRTIO_NET_OK);
    cr_assert_eq(command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, huge, 8),
                 VIRTIO_NET_ERR);
    length = make_tables(tables, 3, 3);
    cr_assert_eq(command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, tables, length - 1),
                 VIRTIO_NET_ERR);
    cr_assert_eq(command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, tables, 24),
                 VIRTIO_NET_ERR);
    cr_assert(hears(group_mac));
    cr_assert(!hears(other_mac));
}

Test(virtio_net, a_new_address_counts_for_filter_and_configuration_until_the_reset)
{
    uint8_t config[6];

    start(FILTER_BITS);
    cr_assert_eq(command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, other_mac, 6),
                 VIRTIO_NET_OK);
    vdev->class->config_read(vdev, 0, config, 6);
    cr_assert_arr_eq(config, other_mac, 6);
    cr_assert(hears(other_mac));
    cr_assert(!hears(card_mac));
    fake_driver_reset(vdev);
    vdev->class->config_read(vdev, 0, config, 6);
    cr_assert_arr_eq(config, card_mac, 6);
}

Test(virtio_net, a_reset_empties_the_filter)
{
    start(FILTER_BITS);
    set_tables(0, 5);
    set_mode(VIRTIO_NET_CTRL_RX_ALLUNI, 1);
    fake_driver_reset(vdev);
    start_driver(FILTER_BITS);
    cr_assert(!hears(group_mac));
    cr_assert(!hears(other_mac));
}

Test(virtio_net, an_address_that_is_a_groups_or_too_short_is_refused)
{
    start(FILTER_BITS);
    cr_assert_eq(command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, group_mac, 6),
                 VIRTIO_NET_ERR);
    cr_assert_eq(command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, other_mac, 5),
                 VIRTIO_NET_ERR);
    cr_assert(hears(card_mac));
}

Test(virtio_net, commands_that_do_not_exist_are_refused)
{
    start(FILTER_BITS);
    cr_assert_eq(set_mode(6, 1), VIRTIO_NET_ERR);
    cr_assert_eq(command(VIRTIO_NET_CTRL_MAC, 2, "\0", 1), VIRTIO_NET_ERR);
    cr_assert_eq(command(VIRTIO_NET_CTRL_VLAN, 0, "\1\0", 2), VIRTIO_NET_ERR);
    cr_assert_eq(command(0xFF, 0xFF, "\1", 1), VIRTIO_NET_ERR);
    cr_assert_eq(command(VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, NULL, 0),
                 VIRTIO_NET_ERR);
    cr_assert(!is_broken());
}

Test(virtio_net, commands_of_features_that_were_not_agreed_on_are_refused)
{
    start(BIT(VIRTIO_NET_F_CTRL_VQ));
    cr_assert_eq(set_mode(VIRTIO_NET_CTRL_RX_PROMISC, 1), VIRTIO_NET_ERR);
    cr_assert_eq(set_mode(VIRTIO_NET_CTRL_RX_ALLUNI, 1), VIRTIO_NET_ERR);
    cr_assert_eq(set_tables(0, 0), VIRTIO_NET_ERR);
    cr_assert_eq(command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, other_mac, 6),
                 VIRTIO_NET_ERR);
}

Test(virtio_net, a_command_of_one_byte_is_refused)
{
    const struct fake_piece pieces[] = {{COMMAND, 1, false}, {ACK, 1, true}};
    uint8_t ack;

    start(FILTER_BITS);
    fake_queue_add(&queues[CTRL], pieces, 2);
    fake_driver_kick(vdev, CTRL);
    assert_used(CTRL, 1);
    memory_read(fake.env.mem, ACK, &ack, 1);
    cr_assert_eq(ack, VIRTIO_NET_ERR);
}

Test(virtio_net, a_command_without_room_for_its_answer_breaks_the_device)
{
    const struct fake_piece piece = {COMMAND, 3, false};

    start(FILTER_BITS);
    fake_queue_add(&queues[CTRL], &piece, 1);
    fake_driver_kick(vdev, CTRL);
    cr_assert(is_broken());
}

Test(virtio_net, a_control_queue_that_was_not_agreed_on_does_not_exist)
{
    const struct fake_piece pieces[] = {{COMMAND, 3, false}, {ACK, 1, true}};

    start(0);
    fake_queue_add(&queues[CTRL], pieces, 2);
    fake_driver_kick(vdev, CTRL);
    cr_assert_eq(fake_queue_used_idx(&queues[CTRL]), 0);
}

/* ---- what the peer is told ---- */

Test(virtio_net, the_peer_is_told_the_address_when_it_is_plugged_in)
{
    create(0);
    cr_assert_arr_eq(peer.filter.mac, card_mac, 6);
}

Test(virtio_net, a_driver_that_cannot_set_a_filter_is_told_of_as_wanting_everything)
{
    start(0);
    fake_env_settle(&fake);
    cr_assert(peer.filter.promiscuous);
    cr_assert(peer.filter.allmulti);
    fake_driver_reset(vdev);
    start_driver(FILTER_BITS);
    fake_env_settle(&fake);
    cr_assert(!peer.filter.promiscuous);
    cr_assert(!peer.filter.allmulti);
}

Test(virtio_net, the_peer_is_told_what_the_driver_sets)
{
    start(FILTER_BITS);
    set_tables(2, 5);
    set_mode(VIRTIO_NET_CTRL_RX_NOBCAST, 1);
    command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, other_mac, 6);
    fake_env_settle(&fake);
    cr_assert_arr_eq(peer.filter.mac, other_mac, 6);
    cr_assert(peer.filter.nobcast);
    cr_assert_eq(peer.filter.unicast.entries, 2);
    cr_assert_eq(peer.filter.multicast.entries, 5);
    fake_driver_reset(vdev);
    fake_env_settle(&fake);
    cr_assert_arr_eq(peer.filter.mac, card_mac, 6);
    cr_assert_eq(peer.filter.multicast.entries, 0);
}

/* ---- state ---- */

static void save(struct state_buffer *out)
{
    struct net_receive_filter filter;
    struct state_part part;

    cr_assert(vdev->class->state(vdev, &part));
    part.get(part.object, &filter);
    cr_assert_eq(state_save(part.desc, &filter, out), 0);
}

Test(virtio_net, the_filter_survives_being_saved_and_loaded)
{
    static const uint8_t in_table[6] = {0x02, 0, 0, 0, 0, 1};
    struct state_buffer buffer = {0};
    struct state_reader reader;
    struct state_part part;
    struct net_receive_filter filter;

    start(FILTER_BITS);
    set_tables(2, 500);
    set_mode(VIRTIO_NET_CTRL_RX_NOBCAST, 1);
    command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, other_mac, 6);
    save(&buffer);
    destroy();

    start(FILTER_BITS);
    reader = (struct state_reader){.data = buffer.data, .length = buffer.length};
    cr_assert(vdev->class->state(vdev, &part));
    cr_assert_eq(state_load(part.desc, &filter, &reader), 0);
    cr_assert_eq(part.check(part.object, &filter), 0);
    part.set(part.object, &filter);
    cr_assert(hears(other_mac));
    cr_assert(hears(in_table));
    cr_assert(hears(group_mac));
    cr_assert(!hears(card_mac));
    cr_assert(!hears(broadcast));
    state_buffer_fini(&buffer);
}

Test(virtio_net, a_saved_address_that_is_a_groups_is_refused)
{
    struct net_receive_filter filter;
    struct state_part part;

    create(0);
    cr_assert(vdev->class->state(vdev, &part));
    net_filter_reset(&filter, group_mac);
    cr_assert_eq(part.check(part.object, &filter), -EINVAL);
}

Test(virtio_net, a_card_destroyed_with_work_left_does_no_more_of_it)
{
    start(BIT(VIRTIO_RING_F_EVENT_IDX));
    peer.during = send_another;
    add_frame(DATA, 100, 0);
    fake_driver_kick(vdev, TX);
    vdev->class->destroy(vdev);
    vdev = NULL;
    peer.delivered = 0;
    fake_env_settle(&fake);
    cr_assert_eq(peer.delivered, 0);
    cr_assert_null(peer.port.peer);
}
