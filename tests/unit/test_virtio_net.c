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
#include "devices/virtio/net_internal.h"
#include "devices/virtio/net_state.h"
#include "net/offload.h"
#include "tests/unit/fake_driver.h"
#include "tests/unit/fake_env.h"
#include "vmm/util/log.h"

enum { RX, TX, CTRL, N_QUEUES };

#define BIT(n) (1ull << (n))
/* Younger than some headers of the kernel's. */
#define F_GUEST_USO4 54
#define F_GUEST_USO6 55
#define F_HOST_USO 56
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
    struct net_frame last_frame; /* its metadata: the pieces are gone */
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
        p->last_frame = frames[taken];
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

static void create_by(const struct virtio_net_options *how)
{
    struct virtio_net_options options = *how;

    memcpy(options.mac, card_mac, 6);
    cr_assert_eq(virtio_net_create(&vdev, &fake.env, "net0", &options, &card), 0);
    fake_transport_attach(&transport, vdev);
    net_port_connect(card, &peer.port);
}

static void create(uint16_t mtu)
{
    create_by(&(struct virtio_net_options){.mtu = mtu});
}

static void create_pairs(unsigned pairs)
{
    create_by(&(struct virtio_net_options){.pairs = pairs});
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

#define OFFLOAD_BITS                                                                               \
    (BIT(VIRTIO_NET_F_CSUM) | BIT(VIRTIO_NET_F_HOST_TSO4) | BIT(VIRTIO_NET_F_HOST_TSO6) |          \
     BIT(VIRTIO_NET_F_HOST_ECN) | BIT(F_HOST_USO))
#define GUEST_OFFLOAD_BITS                                                                         \
    (BIT(VIRTIO_NET_F_GUEST_CSUM) | BIT(VIRTIO_NET_F_GUEST_TSO4) | BIT(VIRTIO_NET_F_GUEST_TSO6) |  \
     BIT(VIRTIO_NET_F_GUEST_ECN) | BIT(F_GUEST_USO4) | BIT(F_GUEST_USO6))
#define MQ_BITS                                                                                    \
    (BIT(VIRTIO_NET_F_MQ) | BIT(VIRTIO_NET_F_RSS) | BIT(VIRTIO_NET_F_HASH_REPORT))

Test(virtio_net, it_offers_what_it_does)
{
    const uint64_t bits = FILTER_BITS | OFFLOAD_BITS | GUEST_OFFLOAD_BITS | BIT(VIRTIO_NET_F_MAC) |
                          BIT(VIRTIO_NET_F_STATUS) | BIT(VIRTIO_NET_F_MRG_RXBUF) |
                          BIT(VIRTIO_NET_F_CTRL_VLAN) | BIT(VIRTIO_NET_F_GUEST_ANNOUNCE) |
                          BIT(VIRTIO_NET_F_SPEED_DUPLEX) | BIT(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS);

    create(0);
    cr_assert_eq(vdev->class->features(vdev), bits);
    vdev->class->destroy(vdev);
    create_pairs(2);
    cr_assert_eq(vdev->class->features(vdev), bits | MQ_BITS);
}

Test(virtio_net, a_feature_that_is_withheld_is_not_offered)
{
    struct virtio_net_options options = {
        .withheld = BIT(VIRTIO_NET_F_CSUM) | BIT(VIRTIO_RING_F_EVENT_IDX),
    };

    cr_assert_eq(virtio_net_create(&vdev, &fake.env, "net0", &options, &card), 0);
    fake_transport_attach(&transport, vdev);
    cr_assert_eq(virtio_offered(vdev) & (options.withheld | BIT(VIRTIO_NET_F_GUEST_CSUM)),
                 BIT(VIRTIO_NET_F_GUEST_CSUM));
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

Test(virtio_net, a_receive_buffer_with_something_to_read_breaks_the_device)
{
    const struct fake_piece pieces[] = {
        {.gpa = DATA, .length = 1},
        {.gpa = DATA, .length = 2000, .writable = true},
    };

    start(BIT(VIRTIO_NET_F_MRG_RXBUF));
    fake_queue_add(&queues[RX], pieces, 2);
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
    cr_assert_eq(net_port_accepts(card), 0);
    /* Sent before the driver switched the offload off, say. */
    cr_assert_eq(card->ops->deliver(card, &frame, 1), 1);
    cr_assert_eq(counters().malformed, 1);
    frame.needs_csum = false;
    frame.gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
    cr_assert_eq(card->ops->deliver(card, &frame, 1), 1);
    cr_assert_eq(counters().malformed, 2);
    cr_assert_eq(fake_queue_used_idx(&queues[RX]), 0);
}

/* ---- receiving into buffers that were lent ---- */

static struct net_loan loan;

static bool borrow(void)
{
    return net_port_borrow(&peer.port, &loan);
}

/* Puts a frame for the card into what was lent, and gives it back. */
static struct net_frame return_frame(size_t length)
{
    struct net_frame frame = {.length = length};
    size_t at = 0;

    for (size_t i = 0; i < length; i++)
        bytes[i] = (uint8_t)(i * 31 >> (i & 1 ? 8 : 0));
    memcpy(bytes, card_mac, 6);
    for (unsigned i = 0; i < loan.n && at < length; i++) {
        size_t run = loan.iov[i].iov_len < length - at ? loan.iov[i].iov_len : length - at;

        memcpy(loan.iov[i].iov_base, bytes + at, run);
        at += run;
    }
    cr_assert_eq(at, length);
    net_port_return(&peer.port, &frame);
    return frame;
}

#define LENT_SIZE 6000u
#define LENT_BUFFERS 14

static void add_lent_buffers(unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        add_buffer(DATA + i * 0x2000, LENT_SIZE);
}

static void start_lending(void)
{
    start(BIT(VIRTIO_NET_F_MRG_RXBUF));
    add_lent_buffers(LENT_BUFFERS);
}

Test(virtio_net, a_frame_put_into_lent_buffers_arrives_and_those_not_needed_stay)
{
    start_lending();
    cr_assert(borrow());
    cr_assert_eq(loan.iov[0].iov_base, memory_at(fake.env.mem, DATA + HEADER, 1));
    cr_assert_eq(loan.iov[0].iov_len, LENT_SIZE - HEADER);
    return_frame(LENT_SIZE + 1000);
    assert_header(DATA, 2);
    assert_memory(DATA + HEADER, bytes, LENT_SIZE - HEADER);
    assert_memory(DATA + 0x2000, bytes + LENT_SIZE - HEADER, 1000 + HEADER);
    assert_used(RX, LENT_SIZE);
    assert_used(RX, 1000 + HEADER);
    cr_assert_eq(fake_queue_used_idx(&queues[RX]), 2);
    cr_assert_eq(peer.port.sent.frames, 1);
    cr_assert_eq(peer.port.sent.bytes, LENT_SIZE + 1000);
    cr_assert(send_to_card(card_mac, 100), "the third buffer is the next");
    assert_memory(DATA + 0x4000 + HEADER, bytes, 100);
    assert_used(RX, 100 + HEADER);
}

Test(virtio_net, the_longest_frame_fits_into_what_was_lent)
{
    size_t room = 0;

    start_lending();
    cr_assert(borrow());
    for (unsigned i = 0; i < loan.n; i++)
        room += loan.iov[i].iov_len;
    cr_assert_geq(room, NET_FRAME_MAX);
    return_frame(NET_FRAME_MAX);
    cr_assert_eq(fake_queue_used_idx(&queues[RX]), 11);
    assert_header(DATA, 11);
}

Test(virtio_net, a_loan_that_comes_back_empty_changes_nothing)
{
    start_lending();
    for (unsigned i = 0; i < 3; i++) {
        cr_assert(borrow());
        net_port_return(&peer.port, NULL);
    }
    cr_assert_eq(fake_queue_used_idx(&queues[RX]), 0);
    cr_assert_eq(peer.port.sent.frames, 0);
    cr_assert(send_to_card(card_mac, 100));
    assert_memory(DATA + HEADER, bytes, 100);
}

Test(virtio_net, without_buffers_for_the_longest_frame_nothing_is_lent)
{
    start(BIT(VIRTIO_NET_F_MRG_RXBUF));
    add_lent_buffers(10);
    cr_assert_not(borrow());
    cr_assert(send_to_card(card_mac, 100));
    assert_memory(DATA + HEADER, bytes, 100);
}

Test(virtio_net, without_merging_or_a_driver_nothing_is_lent)
{
    start(0);
    add_lent_buffers(LENT_BUFFERS);
    cr_assert_not(borrow());
    fake_driver_reset(vdev);
    cr_assert_not(borrow());
}

Test(virtio_net, a_buffer_without_room_for_a_header_is_not_lent_and_breaks_the_device_later)
{
    start(BIT(VIRTIO_NET_F_MRG_RXBUF));
    add_buffer(DATA + 0x40000, HEADER - 1);
    add_lent_buffers(12);
    cr_assert_not(borrow());
    cr_assert_not(is_broken());
    (void)send_to_card(card_mac, 100);
    cr_assert(is_broken());
}

Test(virtio_net, a_corrupt_queue_lends_nothing_and_breaks_the_device)
{
    start_lending();
    memory_write(fake.env.mem, queues[RX].avail + 2, &(uint16_t){0x4000}, 2);
    cr_assert_not(borrow());
    cr_assert(is_broken());
}

Test(virtio_net, what_the_driver_does_not_want_is_taken_back_with_its_buffers)
{
    static const uint8_t other[6] = {2, 9, 9, 9, 9, 9};
    struct net_frame frame = {.length = 200};

    start(BIT(VIRTIO_NET_F_MRG_RXBUF) | BIT(VIRTIO_NET_F_CTRL_VQ) | BIT(VIRTIO_NET_F_CTRL_RX));
    add_lent_buffers(LENT_BUFFERS);
    cr_assert(borrow());
    memcpy(loan.iov[0].iov_base, other, 6);
    net_port_return(&peer.port, &frame);
    cr_assert_eq(counters().filtered, 1);
    cr_assert(borrow());
    frame.needs_csum = true;
    frame.csum_start = 14;
    net_port_return(&peer.port, &frame);
    cr_assert_eq(counters().malformed, 1);
    cr_assert_eq(fake_queue_used_idx(&queues[RX]), 0);
    cr_assert(send_to_card(card_mac, 100));
    assert_memory(DATA + HEADER, bytes, 100);
}

Test(virtio_net, a_reset_while_buffers_are_lent_is_complete_only_when_they_are_back)
{
    start_lending();
    cr_assert(borrow());
    cr_assert(virtio_busy(vdev));
    fake_driver_reset(vdev);
    cr_assert_neq(virtio_get_status(vdev), 0);
    return_frame(5000);
    cr_assert_eq(virtio_get_status(vdev), 0);
    cr_assert_not(virtio_busy(vdev));
    cr_assert_eq(counters().not_ready, 1);
    start_driver(BIT(VIRTIO_NET_F_MRG_RXBUF));
    cr_assert_eq(fake_queue_used_idx(&queues[RX]), 0);
    add_lent_buffers(LENT_BUFFERS);
    cr_assert(borrow());
    return_frame(100);
    cr_assert_eq(fake_queue_used_idx(&queues[RX]), 1);
}

Test(virtio_net, what_was_put_into_lent_buffers_is_marked_dirty_and_nothing_else)
{
    const uint64_t first = DATA / 4096, expected = BIT(0) | BIT(1) | BIT(2);
    uint64_t dirty[MEMORY / 4096 / 64] = {0};

    start_lending();
    cr_assert(borrow());
    cr_assert_eq(memory_dirty_start(fake.env.mem), 0);
    return_frame(LENT_SIZE + 1000);
    memory_dirty_harvest(fake.env.mem, 0, dirty);
    memory_dirty_stop(fake.env.mem);
    for (uint64_t i = 0; i < 32; i++)
        cr_assert_eq(dirty[(first + i) / 64] >> (first + i) % 64 & 1, expected >> i & 1,
                     "page %llu", (unsigned long long)i);
    cr_assert(dirty[queues[RX].used / 4096 / 64] >> queues[RX].used / 4096 % 64 & 1);
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

Test(virtio_net, frames_that_reach_the_driver_or_come_from_it_are_counted_and_no_others)
{
    start_lending();
    cr_assert(borrow());
    return_frame(LENT_SIZE + 1000);
    cr_assert(send_to_card(card_mac, 100));
    cr_assert(send_to_card(card_mac, NET_FRAME_MIN - 1));
    add_frame(DATA + 0x20000, 300, 1);
    add_frame(DATA + 0x21000, NET_FRAME_MIN - 1, 2);
    add_frame(DATA + 0x22000, 1514, 3);
    fake_driver_kick(vdev, TX);
    cr_assert_eq(counters().rx_frames, 2);
    cr_assert_eq(counters().rx_bytes, LENT_SIZE + 1100);
    cr_assert_eq(counters().tx_frames, 2);
    cr_assert_eq(counters().tx_bytes, 1814);
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

    /* Of chains of 256 pieces there is room for four at a time. */
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
    cr_assert_eq(peer.calls, 3);
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

/* ---- transmitting without kicks ---- */

#define HOUR_NS 3600000000000ull

static bool three_are_delivered(void *arg)
{
    (void)arg;
    return peer.delivered == 3;
}

static uint16_t avail_idx(void)
{
    return queues[TX].avail_idx;
}

/* Has the loop poll, by a first frame with its kick; `fd` stands for the doorbell. */
static void start_polling(uint64_t features, uint64_t ns)
{
    start(features);
    loop_set_polling(fake.env.loop, ns);
    add_frame(DATA, 100, 1);
    fake_driver_kick(vdev, TX);
    cr_assert_eq(peer.delivered, 1);
    fake_env_settle(&fake); /* its marker is work that has the loop poll */
}

static void check_polling(uint64_t features)
{
    uint16_t old;

    start_polling(features, HOUR_NS);
    for (uint8_t i = 2; i <= 3; i++) {
        old = avail_idx();
        add_frame(DATA + 0x1000u * i, 100, i);
        cr_assert_not(fake_queue_should_kick(&queues[TX], old), "frame %u", i);
        fake_env_settle(&fake);
        cr_assert_eq(peer.delivered, i);
        cr_assert_eq(last_tag(), i);
        assert_used(TX, 0);
    }
}

Test(virtio_net, a_card_that_is_polled_sends_without_kicks)
{
    check_polling(0);
}

Test(virtio_net, a_card_that_is_polled_sends_without_kicks_with_event_index)
{
    check_polling(BIT(VIRTIO_RING_F_EVENT_IDX));
}

static void check_end_of_polling(uint64_t features)
{
    uint16_t old;

    start_polling(features, 1);
    cr_assert_eq(loop_run_until(fake.env.loop, three_are_delivered, NULL, 1000000), -ETIMEDOUT);
    old = avail_idx();
    add_frame(DATA, 100, 2);
    cr_assert(fake_queue_should_kick(&queues[TX], old));
}

Test(virtio_net, when_polling_ends_kicks_are_wanted_again)
{
    check_end_of_polling(0);
}

Test(virtio_net, when_polling_ends_kicks_are_wanted_again_with_event_index)
{
    check_end_of_polling(BIT(VIRTIO_RING_F_EVENT_IDX));
}

/* The driver publishes a frame when it has seen that no kick is wanted, and the device asks for kicks
 * only then. */
Test(virtio_net, a_frame_that_comes_as_polling_ends_goes_out)
{
    struct loop_poller *poller;

    start_polling(BIT(VIRTIO_RING_F_EVENT_IDX), HOUR_NS);
    add_frame(DATA, 100, 2);
    poller = &net_of(vdev)->poller;
    cr_assert(poller->polled(poller, false), "there was work");
    cr_assert_eq(peer.delivered, 2);
    cr_assert_not(poller->poll(poller), "there is none any more");
}

Test(virtio_net, what_a_peer_refuses_does_not_keep_the_loop_polling)
{
    struct loop_poller *poller;

    start_polling(0, HOUR_NS);
    poller = &net_of(vdev)->poller;
    peer.full = true;
    add_frame(DATA, 100, 2);
    cr_assert(poller->poll(poller), "it was tried");
    cr_assert_not(poller->poll(poller));
    cr_assert_not(poller->polled(poller, false));
    peer.full = false;
    net_port_ready(&peer.port);
    cr_assert_eq(peer.delivered, 2);
    cr_assert_eq(last_tag(), 2);
}

Test(virtio_net, a_card_that_is_paused_or_reset_is_polled_for_nothing)
{
    struct loop_poller *poller;

    start_polling(0, HOUR_NS);
    poller = &net_of(vdev)->poller;
    device_lock(&fake.env);
    virtio_pause(vdev);
    device_unlock(&fake.env);
    add_frame(DATA, 100, 2);
    cr_assert_not(poller->poll(poller));
    cr_assert_not(poller->polled(poller, false));
    device_lock(&fake.env);
    virtio_resume(vdev);
    device_unlock(&fake.env);
    cr_assert_eq(peer.delivered, 2);
    cr_assert(fake_queue_should_kick(&queues[TX], avail_idx() - 1));
    cr_assert_not(poller->polled(poller, true));
    fake_driver_reset(vdev);
    add_frame(DATA, 100, 3);
    cr_assert_not(poller->poll(poller));
    cr_assert_eq(peer.delivered, 2);
}

Test(virtio_net, a_driver_that_starts_while_the_card_is_polled_is_heard)
{
    start_polling(BIT(VIRTIO_RING_F_EVENT_IDX), HOUR_NS);
    fake_driver_reset(vdev);
    start_driver(BIT(VIRTIO_RING_F_EVENT_IDX));
    for (uint8_t i = 2; i <= 3; i++) {
        add_frame(DATA, 100, i);
        fake_env_settle(&fake);
        cr_assert_eq(peer.delivered, i);
    }
}

Test(virtio_net, a_corrupt_queue_breaks_a_card_that_is_polled_once)
{
    struct loop_poller *poller;

    start_polling(0, HOUR_NS);
    poller = &net_of(vdev)->poller;
    memory_write(fake.env.mem, queues[TX].avail + 2, &(uint16_t){0x4000}, 2);
    (void)poller->poll(poller);
    cr_assert(is_broken());
    cr_assert_not(poller->poll(poller));
    cr_assert_not(poller->polled(poller, false));
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

/* ---- offloads ---- */

#define PAYLOAD_AT (14 + 20 + 20)

/* A TCP segment over IPv4 behind a driver's header that leaves all to the card. */
static size_t make_segment(uint8_t *to, size_t payload, uint16_t gso_size)
{
    struct virtio_net_hdr_v1 header = {
        .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
        .gso_type = gso_size ? VIRTIO_NET_HDR_GSO_TCPV4 : 0,
        .gso_size = gso_size,
        .csum_start = 34,
        .csum_offset = 16,
    };
    uint8_t *frame = to + HEADER;

    memset(to, 0, HEADER + PAYLOAD_AT);
    memcpy(to, &header, HEADER);
    memcpy(frame, other_mac, 6);
    frame[12] = 0x08;
    frame[14] = 0x45;
    frame[23] = 6;
    frame[46] = 0x50;
    for (size_t i = 0; i < payload; i++)
        frame[PAYLOAD_AT + i] = (uint8_t)(i * 13 + (i >> 8));
    return HEADER + PAYLOAD_AT + payload;
}

static uint8_t segment[HEADER + NET_FRAME_MAX];

static void send_segment(size_t payload, uint16_t gso_size)
{
    struct fake_piece piece = {DATA, (uint32_t)make_segment(segment, payload, gso_size), false};

    memory_write(fake.env.mem, DATA, segment, piece.length);
    fake_queue_add(&queues[TX], &piece, 1);
    fake_driver_kick(vdev, TX);
}

Test(virtio_net, a_large_segment_goes_whole_to_a_peer_that_accepts_it)
{
    start(OFFLOAD_BITS);
    peer.port.accepts = NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4;
    send_segment(60000, 1448);
    cr_assert_eq(peer.delivered, 1);
    cr_assert_eq(peer.last_length, PAYLOAD_AT + 60000);
    cr_assert_arr_eq(peer.last, segment + HEADER, PAYLOAD_AT + 60000);
    cr_assert(peer.last_frame.needs_csum);
    cr_assert_eq(peer.last_frame.csum_start, 34);
    cr_assert_eq(peer.last_frame.csum_offset, 16);
    cr_assert_eq(peer.last_frame.gso_type, NET_GSO_TCP4);
    cr_assert_eq(peer.last_frame.gso_size, 1448);
    cr_assert_eq(peer.last_frame.hdr_len, PAYLOAD_AT);
    assert_used(TX, 0);
}

Test(virtio_net, a_large_segment_is_cut_for_a_peer_that_does_not)
{
    start(OFFLOAD_BITS);
    send_segment(3000, 1000);
    cr_assert_eq(peer.delivered, 3);
    cr_assert_eq(peer.last_length, PAYLOAD_AT + 1000);
    cr_assert(!peer.last_frame.needs_csum);
    assert_used(TX, 0);
}

static bool has_sent_12_times_2000(void *arg)
{
    (void)arg;
    return peer.delivered == 12 * 2000;
}

/* Who sends them has made one buffer, and who cuts them has 2000 frames to make of each. */
Test(virtio_net, frames_that_are_cut_very_small_let_the_loop_have_its_turns)
{
    struct fake_piece piece = {DATA, (uint32_t)make_segment(segment, 64000, 32), false};

    start(OFFLOAD_BITS);
    memory_write(fake.env.mem, DATA, segment, piece.length);
    for (unsigned i = 0; i < 12; i++)
        fake_queue_add(&queues[TX], &piece, 1);
    fake_driver_kick(vdev, TX);
    cr_assert_leq(peer.delivered, 7 * 2000);
    fake_env_wait(&fake, has_sent_12_times_2000, NULL);
}

Test(virtio_net, the_headers_of_a_large_segment_are_copied_wherever_it_is_cut)
{
    /* The header and the first bytes in one piece, so that no piece is free for the copy. */
    static const uint32_t cuts[] = {HEADER + 1, HEADER + 14, HEADER + 53, HEADER + 54, HEADER + 55};

    start(OFFLOAD_BITS);
    peer.port.accepts = NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4;
    for (unsigned i = 0; i < 5; i++) {
        uint32_t length = (uint32_t)make_segment(segment, 2000, 1000);
        struct fake_piece pieces[] = {
            {DATA, cuts[i], false}, {DATA + cuts[i], 3, false},
            {DATA + cuts[i] + 3, length - cuts[i] - 3, false},
        };

        memory_write(fake.env.mem, DATA, segment, length);
        fake_queue_add(&queues[TX], pieces, 3);
        fake_driver_kick(vdev, TX);
        cr_assert_eq(peer.delivered, i + 1);
        cr_assert_eq(peer.last_length, length - HEADER);
        cr_assert_arr_eq(peer.last, segment + HEADER, length - HEADER, "cut %u", i);
        assert_used(TX, 0);
    }
}

static void change_the_version(void)
{
    peer.during = NULL;
    memory_fill(fake.env.mem, DATA + HEADER + 14, 0xFF, 20);
}

static unsigned peer_deliver_late(struct net_port *port, const struct net_frame *frames, unsigned n)
{
    change_the_version();
    return peer_deliver(port, frames, n);
}

Test(virtio_net, headers_that_the_guest_changes_after_they_were_checked_go_unchanged)
{
    static const struct net_port_ops late = {.deliver = peer_deliver_late};

    start(OFFLOAD_BITS);
    peer.port.accepts = NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4;
    peer.port.ops = &late;
    send_segment(2000, 1000);
    cr_assert_arr_eq(peer.last, segment + HEADER, PAYLOAD_AT);
}

Test(virtio_net, a_checksum_left_to_the_card_is_passed_on_or_completed)
{
    start(OFFLOAD_BITS);
    peer.port.accepts = NET_OFFLOAD_CSUM;
    send_segment(100, 0);
    cr_assert(peer.last_frame.needs_csum);
    cr_assert_eq(peer.last_frame.csum_start, 34);
    peer.port.accepts = 0;
    send_segment(100, 0);
    cr_assert(!peer.last_frame.needs_csum);
    cr_assert_neq(peer.last[50] | peer.last[51], 0);
}

static void assert_not_sent(const struct virtio_net_hdr_v1 *header, size_t payload)
{
    struct fake_piece piece = {DATA, (uint32_t)make_segment(segment, payload, 1000), false};
    uint64_t before = counters().malformed;

    memcpy(segment, header, HEADER);
    memory_write(fake.env.mem, DATA, segment, piece.length);
    fake_queue_add(&queues[TX], &piece, 1);
    fake_driver_kick(vdev, TX);
    cr_assert_eq(peer.delivered, 0);
    cr_assert_eq(counters().malformed, before + 1);
    assert_used(TX, 0);
}

Test(virtio_net, metadata_that_contradict_the_frame_are_not_sent)
{
    const struct virtio_net_hdr_v1 good = {
        .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
        .gso_size = 1000, .csum_start = 34, .csum_offset = 16,
    };
    struct virtio_net_hdr_v1 header = good;

    start(OFFLOAD_BITS);
    peer.port.accepts = 63;
    header.flags = 0;
    assert_not_sent(&header, 3000);
    header = good;
    header.gso_size = 0;
    assert_not_sent(&header, 3000);
    header = good;
    header.gso_type = VIRTIO_NET_HDR_GSO_TCPV6;
    assert_not_sent(&header, 3000);
    header.gso_type = VIRTIO_NET_HDR_GSO_UDP;
    assert_not_sent(&header, 3000);
    header = (struct virtio_net_hdr_v1){
        .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 0xFFF0, .csum_offset = 0xFFF0,
    };
    assert_not_sent(&header, 3000);
    cr_assert(!is_broken());
}

Test(virtio_net, work_the_driver_did_not_agree_to_leave_to_the_card_is_not_done)
{
    const struct virtio_net_hdr_v1 header = {
        .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
        .gso_size = 1000, .csum_start = 34, .csum_offset = 16,
    };

    start(BIT(VIRTIO_NET_F_CSUM) | BIT(VIRTIO_NET_F_HOST_TSO6));
    assert_not_sent(&header, 3000);
}

Test(virtio_net, offloads_presume_the_checksum)
{
    start(GUEST_OFFLOAD_BITS & ~BIT(VIRTIO_NET_F_GUEST_CSUM));
    cr_assert_eq(net_port_accepts(card), 0);
    fake_driver_reset(vdev);
    /* Without CSUM the header has no meaning: the frame goes as it is. */
    start_driver(OFFLOAD_BITS & ~BIT(VIRTIO_NET_F_CSUM));
    peer.port.accepts = 63;
    send_segment(1000, 100);
    cr_assert_eq(peer.delivered, 1);
    cr_assert_eq(peer.last_frame.gso_type, 0);
    cr_assert(!peer.last_frame.needs_csum);
}

Test(virtio_net, the_peer_is_told_what_the_driver_accepts)
{
    start(GUEST_OFFLOAD_BITS);
    cr_assert_eq(net_port_accepts(card), 63);
    fake_driver_reset(vdev);
    cr_assert_eq(net_port_accepts(card), 0);
    start_driver(BIT(VIRTIO_NET_F_GUEST_CSUM) | BIT(VIRTIO_NET_F_GUEST_TSO6));
    cr_assert_eq(net_port_accepts(card), NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO6);
}

/* Sends the frame of make_segment() to the card's address; whether it was taken. */
static bool receive_segment(size_t payload, uint16_t gso_size)
{
    struct iovec iov = {segment + HEADER, make_segment(segment, payload, gso_size) - HEADER};
    struct net_frame frame = {
        .iov = &iov, .iovcnt = 1, .length = iov.iov_len, .needs_csum = true, .csum_start = 34,
        .csum_offset = 16, .gso_type = gso_size ? NET_GSO_TCP4 : 0, .gso_size = gso_size,
        .hdr_len = PAYLOAD_AT,
    };

    memcpy(segment + HEADER, card_mac, 6);
    return net_port_send(&peer.port, &frame, 1) == 1;
}

Test(virtio_net, a_driver_that_accepts_large_segments_gets_them_whole)
{
    struct virtio_net_hdr_v1 header;

    start(GUEST_OFFLOAD_BITS | BIT(VIRTIO_NET_F_MRG_RXBUF));
    for (unsigned i = 0; i < 10; i++)
        add_buffer(DATA + i * 0x1000, 0x1000);
    cr_assert(receive_segment(30000, 1448));
    cr_assert_eq(fake_queue_used_idx(&queues[RX]), 8);
    memory_read(fake.env.mem, DATA, &header, HEADER);
    cr_assert_eq(header.flags, VIRTIO_NET_HDR_F_NEEDS_CSUM);
    cr_assert_eq(header.gso_type, VIRTIO_NET_HDR_GSO_TCPV4);
    cr_assert_eq(header.gso_size, 1448);
    cr_assert_eq(header.hdr_len, PAYLOAD_AT);
    cr_assert_eq(header.csum_start, 34);
    cr_assert_eq(header.csum_offset, 16);
    cr_assert_eq(header.num_buffers, 8);
    assert_memory(DATA + HEADER, segment + HEADER, 0x1000 - HEADER);
}

Test(virtio_net, a_driver_that_does_not_gets_frames_with_all_done)
{
    start(0);
    for (unsigned i = 0; i < 4; i++)
        add_buffer(DATA + i * 0x1000, 0x1000);
    cr_assert(receive_segment(3000, 1000));
    cr_assert_eq(fake_queue_used_idx(&queues[RX]), 3);
    assert_header(DATA, 1);
    assert_header(DATA + 0x2000, 1);
    assert_used(RX, HEADER + PAYLOAD_AT + 1000);
}

Test(virtio_net, a_checksum_that_was_checked_is_told_to_who_can_hear_it)
{
    struct iovec iov = {bytes, 60};
    struct net_frame frame = {.iov = &iov, .iovcnt = 1, .length = 60, .csum_valid = true};
    uint8_t flags;

    start(GUEST_OFFLOAD_BITS);
    add_buffer(DATA, 2000);
    cr_assert_eq(net_port_send(&peer.port, &frame, 1), 1);
    memory_read(fake.env.mem, DATA, &flags, 1);
    cr_assert_eq(flags, VIRTIO_NET_HDR_F_DATA_VALID);
    fake_driver_reset(vdev);
    start_driver(0);
    add_buffer(DATA, 2000);
    cr_assert_eq(net_port_send(&peer.port, &frame, 1), 1);
    memory_read(fake.env.mem, DATA, &flags, 1);
    cr_assert_eq(flags, 0);
}

Test(virtio_net, large_segments_are_not_measured_by_the_mtu)
{
    create(1500);
    start_driver(GUEST_OFFLOAD_BITS | BIT(VIRTIO_NET_F_MTU));
    add_buffer(DATA, 0x10000);
    cr_assert(receive_segment(30000, 1400));
    assert_used(RX, HEADER + PAYLOAD_AT + 30000);
}

static uint8_t set_offloads(uint64_t offloads)
{
    return command(VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, &offloads, 8);
}

Test(virtio_net, the_driver_switches_offloads_off_and_on)
{
    start(GUEST_OFFLOAD_BITS | BIT(VIRTIO_NET_F_CTRL_VQ) | BIT(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS));
    cr_assert_eq(set_offloads(BIT(VIRTIO_NET_F_GUEST_CSUM)), VIRTIO_NET_OK);
    cr_assert_eq(net_port_accepts(card), NET_OFFLOAD_CSUM);
    cr_assert_eq(set_offloads(0), VIRTIO_NET_OK);
    cr_assert_eq(net_port_accepts(card), 0);
    cr_assert_eq(set_offloads(GUEST_OFFLOAD_BITS), VIRTIO_NET_OK);
    cr_assert_eq(net_port_accepts(card), 63);
}

Test(virtio_net, offloads_that_were_not_agreed_on_cannot_be_switched_on)
{
    start(BIT(VIRTIO_NET_F_GUEST_CSUM) | BIT(VIRTIO_NET_F_CTRL_VQ) |
          BIT(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS));
    cr_assert_eq(set_offloads(GUEST_OFFLOAD_BITS), VIRTIO_NET_ERR);
    cr_assert_eq(set_offloads(BIT(VIRTIO_NET_F_GUEST_CSUM) | BIT(VIRTIO_NET_F_CSUM)),
                 VIRTIO_NET_ERR);
    cr_assert_eq(net_port_accepts(card), NET_OFFLOAD_CSUM);
    fake_driver_reset(vdev);
    start_driver(BIT(VIRTIO_NET_F_GUEST_CSUM) | BIT(VIRTIO_NET_F_CTRL_VQ));
    cr_assert_eq(set_offloads(0), VIRTIO_NET_ERR);
}

/* ---- VLANs ---- */

#define VLAN_BITS (FILTER_BITS | BIT(VIRTIO_NET_F_CTRL_VLAN))

static uint8_t set_vlan(uint8_t cmd, uint16_t vid)
{
    return command(VIRTIO_NET_CTRL_VLAN, cmd, &vid, 2);
}

/* Whether a frame with that tag (0: priority alone) reaches the driver. */
static bool hears_vlan(uint16_t vid)
{
    struct iovec iov = {bytes, 60};
    const struct net_frame frame = {.iov = &iov, .iovcnt = 1, .length = 60};
    uint16_t before = fake_queue_used_idx(&queues[RX]);

    memset(bytes, 0, 60);
    memcpy(bytes, card_mac, 6);
    bytes[12] = 0x81;
    bytes[14] = (uint8_t)(0xA0 | vid >> 8);
    bytes[15] = (uint8_t)vid;
    cr_assert_eq(net_port_send(&peer.port, &frame, 1), 1);
    return fake_queue_used_idx(&queues[RX]) != before;
}

Test(virtio_net, the_vlan_table_starts_empty_and_is_the_drivers)
{
    start(VLAN_BITS);
    for (unsigned i = 0; i < 8; i++)
        add_buffer(DATA + i * 0x1000, 2000);
    cr_assert(!hears_vlan(5));
    cr_assert(hears_vlan(0));
    cr_assert_eq(set_vlan(VIRTIO_NET_CTRL_VLAN_ADD, 5), VIRTIO_NET_OK);
    cr_assert_eq(set_vlan(VIRTIO_NET_CTRL_VLAN_ADD, 4095), VIRTIO_NET_OK);
    cr_assert(hears_vlan(5));
    cr_assert(hears_vlan(4095));
    cr_assert(!hears_vlan(6));
    cr_assert_eq(set_vlan(VIRTIO_NET_CTRL_VLAN_DEL, 5), VIRTIO_NET_OK);
    cr_assert(!hears_vlan(5));
    cr_assert_eq(counters().filtered, 3);
}

Test(virtio_net, without_the_feature_all_vlans_are_heard)
{
    start(FILTER_BITS);
    add_buffer(DATA, 2000);
    cr_assert(hears_vlan(5));
    cr_assert_eq(set_vlan(VIRTIO_NET_CTRL_VLAN_ADD, 5), VIRTIO_NET_ERR);
}

Test(virtio_net, a_vlan_that_does_not_exist_is_refused)
{
    start(VLAN_BITS);
    cr_assert_eq(set_vlan(VIRTIO_NET_CTRL_VLAN_ADD, 4096), VIRTIO_NET_ERR);
    cr_assert_eq(set_vlan(2, 5), VIRTIO_NET_ERR);
    cr_assert_eq(command(VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD, "\5", 1),
                 VIRTIO_NET_ERR);
}

/* ---- announcing ---- */

static uint8_t status_byte(void)
{
    uint8_t status;

    vdev->class->config_read(vdev, 6, &status, 1);
    return status;
}

static void announce(void)
{
    device_lock(&fake.env);
    virtio_net_announce(vdev);
    device_unlock(&fake.env);
}

Test(virtio_net, a_driver_is_asked_to_announce_itself_until_it_says_that_it_did)
{
    start(BIT(VIRTIO_NET_F_STATUS) | BIT(VIRTIO_NET_F_CTRL_VQ) | BIT(VIRTIO_NET_F_GUEST_ANNOUNCE));
    announce();
    cr_assert_eq(transport.config_interrupts, 1);
    cr_assert_eq(status_byte(), VIRTIO_NET_S_LINK_UP | VIRTIO_NET_S_ANNOUNCE);
    cr_assert_eq(command(VIRTIO_NET_CTRL_ANNOUNCE, 1, NULL, 0), VIRTIO_NET_ERR);
    cr_assert_eq(command(VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, NULL, 0),
                 VIRTIO_NET_OK);
    cr_assert_eq(status_byte(), VIRTIO_NET_S_LINK_UP);
}

Test(virtio_net, a_driver_that_cannot_announce_itself_is_not_asked)
{
    start(BIT(VIRTIO_NET_F_STATUS) | BIT(VIRTIO_NET_F_CTRL_VQ));
    announce();
    cr_assert_eq(transport.config_interrupts, 0);
    cr_assert_eq(status_byte(), VIRTIO_NET_S_LINK_UP);
    cr_assert_eq(command(VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, NULL, 0),
                 VIRTIO_NET_ERR);
}

/* ---- its own address ---- */

Test(virtio_net, a_card_that_takes_its_own_address_has_it_everywhere_and_says_so)
{
    uint8_t config[6];

    start(FILTER_BITS);
    cr_assert_eq(command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, other_mac, 6),
                 VIRTIO_NET_OK); /* as a state does that was saved by another card */
    device_lock(&fake.env);
    virtio_net_take_own_mac(vdev);
    device_unlock(&fake.env);
    vdev->class->config_read(vdev, 0, config, 6);
    cr_expect_arr_eq(config, card_mac, 6);
    cr_expect(hears(card_mac));
    cr_expect_not(hears(other_mac));
    cr_expect_eq(transport.config_interrupts, 1);
}

/* ---- several queues ---- */

#define PAIRS 3u
#define MANY (PAIRS * 2 + 1)

static struct fake_queue many[MANY];

static void start_pairs(uint64_t features)
{
    gpa_t base = QUEUE_BASE;

    create_pairs(PAIRS);
    for (unsigned i = 0; i < MANY; i++) {
        fake_queue_init(&many[i], fake.env.mem, base, QUEUE_SIZE);
        base = many[i].end;
    }
    fake_driver_start(vdev, features, many, MANY);
    /* Commands go by the last queue. */
    queues[CTRL] = many[MANY - 1];
}

/* A command where the control queue is the last of many. */
static uint8_t command_many(uint8_t class, uint8_t cmd, const void *data, uint32_t length)
{
    const uint8_t head[2] = {class, cmd};
    const struct fake_piece pieces[] = {
        {COMMAND, 2, false}, {COMMAND + 0x100, length, false}, {ACK, 1, true},
    };
    struct fake_used used;
    uint8_t ack;

    memory_write(fake.env.mem, COMMAND, head, 2);
    memory_write(fake.env.mem, COMMAND + 0x100, data, length);
    fake_queue_add(&many[MANY - 1], pieces, 3);
    fake_driver_kick(vdev, MANY - 1);
    cr_assert(fake_queue_take(&many[MANY - 1], &used));
    memory_read(fake.env.mem, ACK, &ack, 1);
    return ack;
}

static uint8_t set_pairs(uint16_t pairs)
{
    return command_many(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &pairs, 2);
}

/* A frame of a flow told by its port, from the card's view coming in or going out. */
static void make_flow(uint8_t *frame, uint8_t port, bool out)
{
    memset(frame, 0, 60);
    memcpy(frame, card_mac, 6);
    frame[12] = 0x08;
    frame[14] = 0x45;
    frame[23] = 17;
    frame[out ? 29 : 33] = 1;
    frame[out ? 33 : 29] = 2;
    frame[out ? 35 : 37] = port;
    frame[out ? 37 : 35] = 99;
}

/* Receives a frame of the flow; the pair that got it. */
static unsigned receive_flow(uint8_t port)
{
    struct iovec iov = {bytes, 60};
    const struct net_frame frame = {.iov = &iov, .iovcnt = 1, .length = 60};
    unsigned pair = PAIRS;

    make_flow(bytes, port, false);
    for (unsigned i = 0; i < PAIRS; i++) {
        struct fake_piece piece = {DATA + 0x4000 + i * 0x1000, 2000, true};

        if (many[i * 2].n_free == QUEUE_SIZE)
            fake_queue_add(&many[i * 2], &piece, 1);
    }
    cr_assert_eq(net_port_send(&peer.port, &frame, 1), 1);
    for (unsigned i = 0; i < PAIRS; i++) {
        struct fake_used used;

        if (!fake_queue_take(&many[i * 2], &used))
            continue;
        cr_assert_eq(pair, PAIRS, "two queues got the frame");
        pair = i;
    }
    cr_assert_lt(pair, PAIRS, "no queue got the frame");
    return pair;
}

static void send_flow(uint8_t port, unsigned pair)
{
    uint8_t frame[HEADER + 60] = {0};
    struct fake_piece piece = {DATA, sizeof(frame), false};
    struct fake_used used;

    make_flow(frame + HEADER, port, true);
    memory_write(fake.env.mem, DATA, frame, sizeof(frame));
    fake_queue_add(&many[pair * 2 + 1], &piece, 1);
    fake_driver_kick(vdev, pair * 2 + 1);
    cr_assert(fake_queue_take(&many[pair * 2 + 1], &used));
}

#define MQ_ONLY (BIT(VIRTIO_NET_F_CTRL_VQ) | BIT(VIRTIO_NET_F_MQ))
#define RSS_ONLY (BIT(VIRTIO_NET_F_CTRL_VQ) | BIT(VIRTIO_NET_F_RSS))

Test(virtio_net, the_configuration_shows_the_limits_of_queues_and_hashes)
{
    uint8_t config[24];

    create_pairs(PAIRS);
    vdev->class->config_read(vdev, 0, config, sizeof(config));
    cr_assert_eq(config[8], PAIRS);
    cr_assert_eq(config[12] | config[13] << 8, VIRTIO_NET_SPEED);
    cr_assert_eq(config[16], 1); /* full duplex */
    cr_assert_geq(config[17], 40);
    cr_assert_geq(config[18] | config[19] << 8, 128);
    cr_assert_eq(config[20], 0xFF);
    cr_assert_eq(config[21], 0x01);
}

Test(virtio_net, too_many_queues_are_refused)
{
    struct virtio_net_options options = {.pairs = VIRTIO_NET_MAX_PAIRS + 1};

    cr_assert_eq(virtio_net_create(&vdev, &fake.env, "net0", &options, &card), -EINVAL);
}

Test(virtio_net, at_first_all_comes_by_the_first_pair)
{
    start_pairs(MQ_ONLY);
    for (uint8_t port = 0; port < 20; port++)
        cr_assert_eq(receive_flow(port), 0);
}

Test(virtio_net, a_flow_is_received_by_the_pair_that_sends_it)
{
    start_pairs(MQ_ONLY);
    cr_assert_eq(set_pairs(PAIRS), VIRTIO_NET_OK);
    for (unsigned pair = 0; pair < PAIRS; pair++) {
        send_flow(7, pair);
        cr_assert_eq(receive_flow(7), pair);
    }
    cr_assert_eq(set_pairs(1), VIRTIO_NET_OK);
    cr_assert_eq(receive_flow(7), 0);
}

Test(virtio_net, flows_that_were_not_seen_are_spread)
{
    unsigned seen = 0;

    start_pairs(MQ_ONLY);
    set_pairs(PAIRS);
    for (uint8_t port = 0; port < 40; port++)
        seen |= 1u << receive_flow(port);
    cr_assert_eq(seen, (1u << PAIRS) - 1);
    set_pairs(2);
    for (uint8_t port = 0; port < 40; port++)
        cr_assert_lt(receive_flow(port), 2);
}

static void kick_the_second_pair(void)
{
    struct fake_piece piece = {DATA + 0x1000, HEADER + 70, false};

    peer.during = NULL;
    fake_queue_add(&many[3], &piece, 1);
    fake_driver_kick(vdev, 3);
}

Test(virtio_net, a_pair_kicked_while_the_peer_has_frames_of_another_is_served)
{
    struct fake_piece piece = {DATA, HEADER + 60, false};

    start_pairs(MQ_ONLY);
    set_pairs(PAIRS);
    peer.during = kick_the_second_pair;
    fake_queue_add(&many[1], &piece, 1);
    fake_driver_kick(vdev, 1);
    fake_env_settle(&fake);
    cr_assert_eq(peer.delivered, 2);
    cr_assert_eq(peer.last_length, 70);
    cr_assert_eq(fake_queue_used_idx(&many[3]), 1);
}

Test(virtio_net, all_pairs_wait_for_a_peer_without_room_and_go_on_together)
{
    struct fake_piece piece = {DATA, HEADER + 60, false};

    start_pairs(MQ_ONLY);
    set_pairs(PAIRS);
    peer.full = true;
    for (unsigned i = 0; i < PAIRS; i++) {
        fake_queue_add(&many[i * 2 + 1], &piece, 1);
        fake_driver_kick(vdev, i * 2 + 1);
    }
    cr_assert_eq(peer.calls, 1);
    peer.full = false;
    net_port_ready(&peer.port);
    cr_assert_eq(peer.delivered, PAIRS);
}

Test(virtio_net, each_pair_that_received_is_interrupted)
{
    start_pairs(MQ_ONLY);
    set_pairs(PAIRS);
    send_flow(7, 1);
    send_flow(8, 2);
    receive_flow(7);
    receive_flow(8);
    net_port_flush(&peer.port);
    cr_assert_eq(transport.queue_interrupts[0], 0);
    cr_assert_eq(transport.queue_interrupts[2], 1);
    cr_assert_eq(transport.queue_interrupts[4], 1);
}

Test(virtio_net, an_impossible_number_of_pairs_is_refused)
{
    start_pairs(MQ_ONLY);
    cr_assert_eq(set_pairs(0), VIRTIO_NET_ERR);
    cr_assert_eq(set_pairs(PAIRS + 1), VIRTIO_NET_ERR);
    cr_assert_eq(set_pairs(0xFFFF), VIRTIO_NET_ERR);
    fake_driver_reset(vdev);
}

Test(virtio_net, without_multiqueue_the_control_queue_is_the_third)
{
    create_pairs(PAIRS);
    start_driver(FILTER_BITS);
    cr_assert_eq(command(VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, "\1", 1), VIRTIO_NET_OK);
}

/* struct virtio_net_rss_config with a table of `n` entries, and its length. */
static uint32_t make_rss(uint8_t *to, uint16_t n, const uint16_t *table, uint16_t unclassified,
                         uint16_t senders)
{
    uint8_t *at = to;

    memcpy(at, &(uint32_t){0x3F}, 4);
    memcpy(at + 4, &(uint16_t){(uint16_t)(n - 1)}, 2);
    memcpy(at + 6, &unclassified, 2);
    memcpy(at + 8, table, n * 2u);
    at += 8 + n * 2u;
    memcpy(at, &senders, 2);
    at[2] = 40;
    for (unsigned i = 0; i < 40; i++)
        at[3 + i] = (uint8_t)(i * 37 + 5);
    return (uint32_t)(at + 43 - to);
}

static uint8_t set_rss(const uint8_t *config, uint32_t length)
{
    return command_many(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_RSS_CONFIG, config, length);
}

Test(virtio_net, the_table_says_which_pair_receives)
{
    static const uint16_t spread[4] = {2, 1, 2, 1}, one[1] = {1};
    uint8_t config[64];
    unsigned seen = 0;

    start_pairs(RSS_ONLY);
    cr_assert_eq(set_rss(config, make_rss(config, 4, spread, 0, PAIRS)), VIRTIO_NET_OK);
    for (uint8_t port = 0; port < 40; port++) {
        unsigned pair = receive_flow(port);

        cr_assert_eq(receive_flow(port), pair);
        seen |= 1u << pair;
    }
    cr_assert_eq(seen, 1u << 1 | 1u << 2);
    cr_assert_eq(set_rss(config, make_rss(config, 1, one, 0, 1)), VIRTIO_NET_OK);
    cr_assert_eq(receive_flow(1), 1);
}

Test(virtio_net, what_has_no_hash_goes_to_the_queue_for_that)
{
    static const uint16_t table[2] = {1, 1};
    struct fake_piece piece = {DATA + 0x8000, 2000, true};
    struct fake_used used;
    uint8_t config[64];

    start_pairs(RSS_ONLY);
    cr_assert_eq(set_rss(config, make_rss(config, 2, table, 2, 1)), VIRTIO_NET_OK);
    fake_queue_add(&many[4], &piece, 1);
    cr_assert(send_to_card(card_mac, 60));
    cr_assert(fake_queue_take(&many[4], &used));
}

Test(virtio_net, an_rss_configuration_that_is_wrong_changes_nothing)
{
    static const uint16_t good[2] = {1, 1}, out[2] = {1, PAIRS}, three[3] = {0, 0, 0};
    static const uint16_t long_table[256] = {0};
    static uint8_t config[700];
    uint32_t length;

    start_pairs(RSS_ONLY);
    length = make_rss(config, 2, good, 0, 1);
    cr_assert_eq(set_rss(config, length), VIRTIO_NET_OK);
    cr_assert_eq(set_rss(config, make_rss(config, 2, out, 0, 1)), VIRTIO_NET_ERR);
    cr_assert_eq(set_rss(config, make_rss(config, 2, good, PAIRS, 1)), VIRTIO_NET_ERR);
    cr_assert_eq(set_rss(config, make_rss(config, 2, good, 0, 0)), VIRTIO_NET_ERR);
    cr_assert_eq(set_rss(config, make_rss(config, 2, good, 0, PAIRS + 1)), VIRTIO_NET_ERR);
    cr_assert_eq(set_rss(config, make_rss(config, 3, three, 0, 1)), VIRTIO_NET_ERR);
    cr_assert_eq(set_rss(config, make_rss(config, 256, long_table, 0, 1)), VIRTIO_NET_ERR);
    length = make_rss(config, 2, good, 0, 1);
    cr_assert_eq(set_rss(config, length - 1), VIRTIO_NET_ERR);
    config[1] = 0x02; /* a type that is not supported */
    cr_assert_eq(set_rss(config, length), VIRTIO_NET_ERR);
    length = make_rss(config, 2, good, 0, 1);
    config[14] = 41; /* a key too long */
    cr_assert_eq(set_rss(config, length), VIRTIO_NET_ERR);
    cr_assert_eq(receive_flow(3), 1);
}

Test(virtio_net, the_hash_of_a_frame_is_reported)
{
    static const struct {
        uint32_t types;
        uint16_t reserved[4];
        uint8_t key_length;
        uint8_t key[40];
    } __attribute__((packed)) config = {
        .types = VIRTIO_NET_RSS_HASH_TYPE_UDPv4, .key_length = 40, .key = {1, 2, 3, 4, 5, 6, 7},
    };
    struct virtio_net_hdr_v1_hash header;
    struct net_hasher hasher;
    struct net_flow flow;
    uint16_t report;

    start_pairs(MQ_ONLY | BIT(VIRTIO_NET_F_HASH_REPORT));
    receive_flow(1);
    memory_read(fake.env.mem, DATA + 0x4000, &header, sizeof(header));
    cr_assert_eq(header.hash_report, VIRTIO_NET_HASH_REPORT_NONE);
    cr_assert_eq(command_many(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_HASH_CONFIG, &config,
                              sizeof(config)), VIRTIO_NET_OK);
    receive_flow(1);
    memory_read(fake.env.mem, DATA + 0x4000, &header, sizeof(header));
    cr_assert_eq(header.hash_report, VIRTIO_NET_HASH_REPORT_UDPv4);
    net_hasher_init(&hasher, config.key, sizeof(config.key));
    net_flow_find(&flow, bytes, 60);
    cr_assert_eq(header.hash_value, net_hasher_hash(&hasher, config.types, &flow, &report));
    cr_assert_neq(header.hash_value, 0);
    cr_assert_eq(header.hdr.num_buffers, 1);
    assert_memory(DATA + 0x4000 + 20, bytes, 60);
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
    struct net_state filter;
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
    struct net_state filter;

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

Test(virtio_net, queues_offloads_vlans_and_table_survive_being_saved_and_loaded)
{
    static const uint16_t table[4] = {2, 1, 2, 1};
    const uint64_t features = VLAN_BITS | GUEST_OFFLOAD_BITS | BIT(VIRTIO_NET_F_MQ) |
                              BIT(VIRTIO_NET_F_RSS) | BIT(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS);
    const uint64_t csum = BIT(VIRTIO_NET_F_GUEST_CSUM);
    struct state_part part;
    struct net_state state;
    uint8_t config[64];
    unsigned pairs[20];

    start_pairs(features);
    cr_assert_eq(set_rss(config, make_rss(config, 4, table, 0, PAIRS)), VIRTIO_NET_OK);
    cr_assert_eq(command_many(VIRTIO_NET_CTRL_VLAN, 0, "\5\0", 2), VIRTIO_NET_OK);
    cr_assert_eq(command_many(VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, &csum, 8), VIRTIO_NET_OK);
    for (uint8_t port = 0; port < 20; port++)
        pairs[port] = receive_flow(port);
    cr_assert(vdev->class->state(vdev, &part));
    part.get(part.object, &state);
    destroy();

    start_pairs(features);
    cr_assert(vdev->class->state(vdev, &part));
    cr_assert_eq(part.check(part.object, &state), 0);
    part.set(part.object, &state);
    for (uint8_t port = 0; port < 20; port++)
        cr_assert_eq(receive_flow(port), pairs[port]);
    cr_assert_eq(net_port_accepts(card), NET_OFFLOAD_CSUM);
    fake_env_settle(&fake);
    cr_assert_not_null(peer.filter.vlans);
}

/* A record as version 1 wrote it: the filter alone. */
Test(virtio_net, a_state_of_before_there_were_offloads_loads)
{
    struct state_buffer buffer = {0};
    struct state_reader reader;
    struct state_part part;
    struct net_state state;
    const uint32_t v1_bytes = 6 + 6 + 2 * (4 + NET_FILTER_TABLE * 6);

    start(FILTER_BITS);
    set_tables(2, 3);
    save(&buffer);
    /* Name and its length, version, length of the fields. */
    buffer.data[12] = 1;
    memcpy(buffer.data + 14, &v1_bytes, 4);
    buffer.length = 18 + v1_bytes;
    reader = (struct state_reader){.data = buffer.data, .length = buffer.length};
    cr_assert(vdev->class->state(vdev, &part));
    cr_assert_eq(state_load(part.desc, &state, &reader), 0);
    cr_assert_eq(part.check(part.object, &state), 0);
    part.set(part.object, &state);
    cr_assert_eq(net_port_accepts(card), 0);
    cr_assert(hears(group_mac));
    state_buffer_fini(&buffer);
}

Test(virtio_net, a_guest_that_goes_on_from_a_saved_state_announces_itself)
{
    struct state_part part;
    struct net_state state;

    start(BIT(VIRTIO_NET_F_STATUS) | BIT(VIRTIO_NET_F_CTRL_VQ) | BIT(VIRTIO_NET_F_GUEST_ANNOUNCE));
    cr_assert(vdev->class->state(vdev, &part));
    part.get(part.object, &state);
    device_lock(&fake.env);
    virtio_pause(vdev);
    virtio_resume(vdev);
    device_unlock(&fake.env);
    cr_assert_eq(status_byte(), VIRTIO_NET_S_LINK_UP);
    device_lock(&fake.env);
    virtio_pause(vdev);
    part.set(part.object, &state);
    virtio_resume(vdev);
    device_unlock(&fake.env);
    cr_assert_eq(status_byte(), VIRTIO_NET_S_LINK_UP | VIRTIO_NET_S_ANNOUNCE);
    cr_assert_eq(transport.config_interrupts, 1);
}

Test(virtio_net, a_saved_table_that_names_no_queue_is_refused)
{
    struct state_part part;
    struct net_state state;

    create_pairs(PAIRS);
    cr_assert(vdev->class->state(vdev, &part));
    part.get(part.object, &state);
    cr_assert_eq(part.check(part.object, &state), 0);
    state.table[0] = PAIRS;
    cr_assert_eq(part.check(part.object, &state), -EINVAL);
    state.table[0] = 0;
    state.table_mask = 2;
    cr_assert_eq(part.check(part.object, &state), -EINVAL);
    state.table_mask = 0;
    state.pairs = PAIRS + 1;
    cr_assert_eq(part.check(part.object, &state), -EINVAL);
    state.pairs = 1;
    state.key_length = 41;
    cr_assert_eq(part.check(part.object, &state), -EINVAL);
    state.key_length = 0;
    state.guest_offloads = 1;
    cr_assert_eq(part.check(part.object, &state), -EINVAL);
}

Test(virtio_net, a_saved_address_that_is_a_groups_is_refused)
{
    struct net_state filter;
    struct state_part part;

    create(0);
    cr_assert(vdev->class->state(vdev, &part));
    net_state_reset(&filter, group_mac);
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

/* ---- on the move ---- */

static unsigned diverted;

static void take_away(void *opaque, const struct net_frame *frame)
{
    cr_assert_eq(opaque, &diverted);
    cr_assert_eq(frame->length, 100);
    diverted++;
}

static void divert(bool always, bool on)
{
    device_lock(&fake.env);
    virtio_net_divert(vdev, always, on ? take_away : NULL, &diverted);
    device_unlock(&fake.env);
}

Test(virtio_net, a_paused_card_gives_frames_to_who_takes_them_in_its_place)
{
    start(FILTER_BITS);
    diverted = 0;
    add_buffer(DATA, 2000);
    virtio_pause(vdev);
    cr_assert_not(send_to_card(card_mac, 100)); /* is held back, and asked for: */
    divert(false, true);
    cr_assert_eq(peer.readied, 1);
    cr_assert(send_to_card(card_mac, 100));
    cr_assert_eq(diverted, 1);
    device_lock(&fake.env);
    virtio_resume(vdev);
    device_unlock(&fake.env);
    cr_assert(send_to_card(card_mac, 100));
    cr_assert_eq(diverted, 1);
    assert_used(RX, HEADER + 100);
}

Test(virtio_net, only_frames_that_the_driver_wants_are_diverted)
{
    start(FILTER_BITS);
    diverted = 0;
    divert(false, true);
    virtio_pause(vdev);
    cr_assert(send_to_card(other_mac, 100));
    cr_assert_eq(diverted, 0);
    cr_assert_eq(counters().filtered, 1);
}

Test(virtio_net, a_running_card_gives_frames_away_while_that_is_wanted)
{
    struct virtio_net_traffic traffic;

    start(0);
    diverted = 0;
    add_buffer(DATA, 2000);
    divert(true, true);
    cr_assert(send_to_card(card_mac, 100));
    cr_assert_eq(diverted, 1);
    virtio_net_get_traffic(vdev, &traffic);
    cr_assert_eq(traffic.first_ns, 0);
    divert(false, false);
    cr_assert(send_to_card(card_mac, 100));
    assert_used(RX, HEADER + 100);
    virtio_net_get_traffic(vdev, &traffic);
    cr_assert_neq(traffic.first_ns, 0);
    cr_assert_eq(diverted, 1);
}

Test(virtio_net, the_first_frame_is_the_first_since_one_looks)
{
    struct virtio_net_traffic before, after;

    start(0);
    add_buffer(DATA, 2000);
    cr_assert(send_to_card(card_mac, 100));
    virtio_net_get_traffic(vdev, &before);
    virtio_net_watch(vdev);
    virtio_net_get_traffic(vdev, &after);
    cr_assert_eq(after.first_ns, 0);
    cr_assert_eq(after.last_ns, before.last_ns);
    add_frame(DATA, 100, 0);
    fake_driver_kick(vdev, TX);
    virtio_net_get_traffic(vdev, &after);
    cr_assert_geq(after.first_ns, before.last_ns);
}
