/* Announcements: the frames byte by byte, and the schedule. */
#include <criterion/criterion.h>
#include <string.h>

#include "net/announce.h"
#include "net/port.h"
#include "vmm/util/loop.h"

#define FRAMES 64

static const uint8_t mac[6] = {2, 0, 0, 0, 0, 7};
static const struct switch_address v4 = {
    .mac = {2, 0, 0, 0, 0, 7}, .family = 4, .bytes = {10, 0, 2, 15}};
static const struct switch_address tagged = {
    .mac = {2, 0, 0, 0, 0, 7}, .vlan = 20, .family = 4, .bytes = {10, 1, 2, 3}};
static const struct switch_address v6 = {
    .mac = {2, 0, 0, 0, 0, 7}, .family = 6, .bytes = {0xFE, 0x80, [8] = 2, [15] = 9}};

Test(announce, asks_by_rarp_for_the_card_itself)
{
    static const uint8_t expected[60] = {
        0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 2, 0, 0, 0, 0, 7, 0x80, 0x35,
        0, 1, 8, 0, 6, 4, 0, 3, 2, 0, 0, 0, 0, 7, 0, 0, 0, 0, 2, 0, 0, 0, 0, 7, 0, 0, 0, 0};
    uint8_t frame[ANNOUNCE_FRAME_MAX];

    cr_assert_eq(announce_rarp(frame, mac, 0), sizeof(expected));
    cr_expect_arr_eq(frame, expected, sizeof(expected));
}

Test(announce, tells_an_ipv4_address_by_arp)
{
    static const uint8_t expected[60] = {
        0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 2, 0, 0, 0, 0, 7, 0x08, 0x06,
        0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 7, 10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 15};
    uint8_t frame[ANNOUNCE_FRAME_MAX];

    cr_assert_eq(announce_address(frame, &v4), sizeof(expected));
    cr_expect_arr_eq(frame, expected, sizeof(expected));
}

Test(announce, stays_in_the_vlan_of_the_address)
{
    static const uint8_t expected[] = {2, 0, 0, 0, 0, 7, 0x81, 0, 0, 20, 0x08, 0x06, 0, 1};
    uint8_t frame[ANNOUNCE_FRAME_MAX];

    cr_assert_eq(announce_address(frame, &tagged), 64);
    cr_expect_arr_eq(frame + 6, expected, sizeof(expected));
}

/* The one's complement sum of a message with its checksum is all ones (RFC 1071). */
Test(announce, advertises_an_ipv6_address)
{
    uint8_t frame[ANNOUNCE_FRAME_MAX];
    uint32_t sum = 58 + 32;

    cr_assert_eq(announce_address(frame, &v6), 14 + 40 + 32);
    cr_expect_eq(frame[5], 1);
    cr_expect_eq(frame[12] << 8 | frame[13], 0x86DD);
    cr_expect_eq(frame[14 + 7], 255, "hop limit");
    cr_expect_eq(frame[54], 136);
    cr_expect_eq(frame[58], 0x20, "override");
    cr_expect_arr_eq(frame + 62, v6.bytes, 16);
    cr_expect_arr_eq(frame + 80, mac, 6);
    for (unsigned i = 22; i < 86; i += 2)
        sum += (uint32_t)(frame[i] << 8 | frame[i + 1]);
    sum = (sum & 0xFFFF) + (sum >> 16);
    cr_expect_eq((sum & 0xFFFF) + (sum >> 16), 0xFFFF);
}

/* A peer that counts. */
struct peer {
    struct net_port port;
    unsigned frames, runs;
};

static unsigned deliver(struct net_port *port, const struct net_frame *frames, unsigned n)
{
    (void)frames;
    ((struct peer *)port)->frames += n;
    return n;
}

static void flush(struct net_port *port)
{
    ((struct peer *)port)->runs++;
}

static const struct net_port_ops ops = {.deliver = deliver, .flush = flush};

static bool all_told(void *arg)
{
    return ((struct peer *)arg)->runs == ANNOUNCE_TIMES;
}

static void count(void *opaque)
{
    (*(unsigned *)opaque)++;
}

Test(announce, tells_all_and_asks_the_guest_five_times)
{
    const struct switch_address addresses[] = {v4, tagged, v6};
    struct peer card = {.port.ops = &ops}, peer = {.port.ops = &ops};
    struct announcer *a;
    struct loop *loop;
    unsigned asked = 0;
    uint64_t begun;

    cr_assert_eq(loop_create(&loop, 8), 0);
    net_port_connect(&card.port, &peer.port);
    begun = loop_now_ns();
    cr_assert_eq(announcer_create(&a, loop, &card.port, mac, addresses, 3, count, &asked), 0);
    cr_expect_eq(peer.runs, 1, "at once");
    cr_expect_eq(peer.frames, 5, "RARP without a tag and with one, and the addresses");
    cr_assert_eq(loop_run_until(loop, all_told, &peer, 0), 0);
    cr_expect_eq(peer.frames, 25);
    cr_expect_eq(asked, ANNOUNCE_TIMES);
    cr_expect_geq(loop_now_ns() - begun, announce_delay(ANNOUNCE_TIMES - 1));
    announcer_destroy(a);
    loop_destroy(loop);
}
