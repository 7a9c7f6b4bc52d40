/*
 * What of a guest's frames is let through to the user-mode network.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "net/nat_guard.h"
#include "tests/unit/packets.h"

TestSuite(nat_guard, .timeout = 20);

static const struct endpoints ends = {
    .src_mac = {2}, .dst_mac = {2, 1}, .src = 0x0A00020F, .dst = 0x0A000202,
    .src_port = 1000, .dst_port = 80,
};

static struct nat_frame_kind kind;

static enum nat_verdict check(const struct packet *p)
{
    return nat_guard_check(p->bytes, p->length, &kind);
}

static struct packet udp_frame(void)
{
    struct packet p;

    make_udp(&p, &ends, "12345678", 8);
    return p;
}

/* An IPv6 frame of `payload` bytes of the given protocol. */
static struct packet ipv6_frame(uint8_t protocol, uint16_t payload)
{
    struct packet p = {.length = ETH_BYTES + 40u + payload};

    put16(p.bytes + 12, 0x86DD);
    p.bytes[ETH_BYTES] = 0x60;
    put16(p.bytes + ETH_BYTES + 4, payload);
    p.bytes[ETH_BYTES + 6] = protocol;
    return p;
}

Test(nat_guard, arp_passes_when_whole)
{
    struct packet p;

    make_arp_request(&p, ends.src_mac, ends.src, ends.dst);
    cr_assert_eq(check(&p), NAT_PASS);
    cr_assert(!kind.opens_flow && !kind.fragment);
    p.length--;
    cr_assert_eq(check(&p), NAT_MALFORMED);
}

Test(nat_guard, ipv4_passes_when_its_lengths_agree)
{
    struct packet p = udp_frame();

    cr_assert_eq(check(&p), NAT_PASS);
    p.length--;
    cr_assert_eq(check(&p), NAT_MALFORMED, "longer than its frame");
    p = udp_frame();
    put16(p.bytes + AT_IP + 2, 19);
    cr_assert_eq(check(&p), NAT_MALFORMED, "shorter than its header");
    p = udp_frame();
    p.bytes[AT_IP] = 0x44;
    cr_assert_eq(check(&p), NAT_MALFORMED, "a header shorter than any");
    p = udp_frame();
    p.bytes[AT_IP] = 0x4F;
    cr_assert_eq(check(&p), NAT_MALFORMED, "a header longer than the datagram");
    p = udp_frame();
    p.bytes[AT_IP] = 0x65;
    cr_assert_eq(check(&p), NAT_MALFORMED, "another version");
    p = udp_frame();
    p.length = ETH_BYTES + IPV4_BYTES - 1;
    cr_assert_eq(check(&p), NAT_MALFORMED, "no whole header");
}

Test(nat_guard, ipv6_passes_when_its_lengths_agree)
{
    struct packet p = ipv6_frame(17, 20);

    cr_assert_eq(check(&p), NAT_PASS);
    p.length--;
    cr_assert_eq(check(&p), NAT_MALFORMED, "longer than its frame");
    p = ipv6_frame(17, 0);
    cr_assert_eq(check(&p), NAT_PASS);
    p.length--;
    cr_assert_eq(check(&p), NAT_MALFORMED, "no whole header");
    p = ipv6_frame(17, 20);
    p.bytes[ETH_BYTES] = 0x40;
    cr_assert_eq(check(&p), NAT_MALFORMED, "another version");
}

Test(nat_guard, what_pads_a_frame_is_cut_off)
{
    struct packet p = udp_frame();
    size_t whole = p.length;

    p.length += 10;
    cr_assert_eq(check(&p), NAT_PASS);
    cr_assert_eq(kind.length, whole);
    p = ipv6_frame(17, 20);
    p.length += 10;
    cr_assert_eq(check(&p), NAT_PASS);
    cr_assert_eq(kind.length, ETH_BYTES + 40 + 20);
    make_arp_request(&p, ends.src_mac, ends.src, ends.dst);
    p.length = 60;
    cr_assert_eq(check(&p), NAT_PASS);
    cr_assert_eq(kind.length, ETH_BYTES + 28);
}

Test(nat_guard, other_protocols_are_ignored)
{
    struct packet p = {.length = 60};

    put16(p.bytes + 12, 0x88F8); /* NC-SI, which the library would parse */
    cr_assert_eq(check(&p), NAT_IGNORE);
    put16(p.bytes + 12, 0x8100);
    cr_assert_eq(check(&p), NAT_IGNORE);
    put16(p.bytes + 12, 46);
    cr_assert_eq(check(&p), NAT_IGNORE);
}

Test(nat_guard, a_frame_without_a_whole_header_is_malformed)
{
    struct packet p = {.length = ETH_BYTES - 1};

    cr_assert_eq(check(&p), NAT_MALFORMED);
}

static bool tcp_opens(uint8_t flags)
{
    struct packet p;

    make_tcp(&p, &ends, flags, 1, 1, NULL, 0);
    cr_assert_eq(check(&p), NAT_PASS);
    return kind.opens_flow;
}

Test(nat_guard, only_the_first_segment_of_a_connection_opens_a_flow)
{
    cr_assert(tcp_opens(TCP_SYN));
    cr_assert(tcp_opens(TCP_SYN | TCP_PSH));
    cr_assert(!tcp_opens(TCP_SYN | TCP_ACK));
    cr_assert(!tcp_opens(TCP_ACK));
    cr_assert(!tcp_opens(TCP_FIN | TCP_ACK));
    cr_assert(!tcp_opens(TCP_RST));
}

Test(nat_guard, a_segment_without_a_whole_header_opens_nothing_and_is_not_read_beyond)
{
    struct packet p;

    make_tcp(&p, &ends, TCP_SYN, 1, 1, NULL, 0);
    p.length--;
    put16(p.bytes + AT_IP + 2, IPV4_BYTES + TCP_BYTES - 1);
    cr_assert_eq(check(&p), NAT_PASS);
    cr_assert(!kind.opens_flow);
}

Test(nat_guard, a_datagram_and_an_echo_request_may_open_a_flow)
{
    struct packet p = udp_frame();

    check(&p);
    cr_assert(kind.opens_flow);
    make_ping(&p, &ends, 1, "x", 1);
    check(&p);
    cr_assert(kind.opens_flow);
    p.bytes[AT_L4] = 0; /* an echo reply */
    check(&p);
    cr_assert(!kind.opens_flow);
    p.bytes[AT_IP + 9] = 132; /* SCTP */
    check(&p);
    cr_assert(!kind.opens_flow);
}

Test(nat_guard, flows_over_ipv6_are_seen_likewise)
{
    struct packet p = ipv6_frame(6, 20);

    p.bytes[ETH_BYTES + 40 + 13] = TCP_SYN;
    check(&p);
    cr_assert(kind.opens_flow);
    p.bytes[ETH_BYTES + 40 + 13] = TCP_ACK;
    check(&p);
    cr_assert(!kind.opens_flow);
    p = ipv6_frame(17, 20);
    check(&p);
    cr_assert(kind.opens_flow);
    p = ipv6_frame(58, 8);
    p.bytes[ETH_BYTES + 40] = 128;
    check(&p);
    cr_assert(kind.opens_flow);
    p.bytes[ETH_BYTES + 40] = 135; /* neighbour solicitation */
    check(&p);
    cr_assert(!kind.opens_flow);
}

Test(nat_guard, any_part_of_a_datagram_is_kept_and_may_open_a_flow)
{
    struct packet p;

    make_tcp(&p, &ends, TCP_ACK, 1, 1, NULL, 0);
    put16(p.bytes + AT_IP + 6, 0x2000); /* more follow */
    check(&p);
    cr_assert(kind.fragment && kind.opens_flow);
    put16(p.bytes + AT_IP + 6, 0x0001); /* the last */
    check(&p);
    cr_assert(kind.fragment && kind.opens_flow);
    put16(p.bytes + AT_IP + 6, 0x4000); /* not to be fragmented */
    check(&p);
    cr_assert(!kind.fragment && !kind.opens_flow);
}
