/*
 * Flows and their hashes: the vectors that Microsoft gives for verifying RSS, and what is no flow.
 */
#include <criterion/criterion.h>
#include <linux/virtio_net.h>
#include <netinet/in.h>
#include <string.h>

#include "devices/virtio/net_rss.h"

static const uint8_t key[40] = {
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3,
    0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3,
    0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
};

static struct net_hasher hasher;
static struct net_flow flow;
static uint16_t report;

static void set_up(void)
{
    net_hasher_init(&hasher, key, sizeof(key));
}

TestSuite(net_rss, .init = set_up, .timeout = 20);

static uint8_t frame[200];

/* 66.9.149.187:2794 to 161.142.100.80:1766, or the other direction. */
static size_t make_ipv4(uint8_t protocol, bool back)
{
    static const uint8_t source[4] = {66, 9, 149, 187}, destination[4] = {161, 142, 100, 80};
    static const uint8_t ports[2][2] = {{0x0A, 0xEA}, {0x06, 0xE6}};

    memset(frame, 0, sizeof(frame));
    frame[12] = 0x08;
    frame[14] = 0x45;
    frame[23] = protocol;
    memcpy(frame + (back ? 30 : 26), source, 4);
    memcpy(frame + (back ? 26 : 30), destination, 4);
    memcpy(frame + 34, ports[back], 2);
    memcpy(frame + 36, ports[!back], 2);
    return 60;
}

/* 3ffe:2501:200:1fff::7:2794 to 3ffe:2501:200:3::1:1766, with `extension` bytes of options. */
static size_t make_ipv6(uint8_t protocol, size_t extension)
{
    static const uint8_t source[16] = {0x3f, 0xfe, 0x25, 1, 2, 0, 0x1f, 0xff, [15] = 7};
    static const uint8_t destination[16] = {0x3f, 0xfe, 0x25, 1, 2, 0, 0, 3, [15] = 1};
    static const uint8_t ports[4] = {0x0A, 0xEA, 0x06, 0xE6};

    memset(frame, 0, sizeof(frame));
    frame[12] = 0x86;
    frame[13] = 0xDD;
    frame[14] = 0x60;
    frame[20] = extension ? IPPROTO_DSTOPTS : protocol;
    memcpy(frame + 22, source, 16);
    memcpy(frame + 38, destination, 16);
    if (extension) {
        frame[54] = protocol;
        frame[55] = (uint8_t)(extension / 8 - 1);
    }
    memcpy(frame + 54 + extension, ports, sizeof(ports));
    return 54 + extension + 20;
}

static uint32_t hash_of(size_t length, uint32_t types)
{
    net_flow_find(&flow, frame, length);
    return net_hasher_hash(&hasher, types, &flow, &report);
}

Test(net_rss, ipv4_hashes_are_those_of_the_vectors)
{
    cr_assert_eq(hash_of(make_ipv4(IPPROTO_TCP, false), NET_RSS_TYPES), 0x51ccc178);
    cr_assert_eq(report, VIRTIO_NET_HASH_REPORT_TCPv4);
    cr_assert_eq(hash_of(make_ipv4(IPPROTO_TCP, false), VIRTIO_NET_RSS_HASH_TYPE_IPv4),
                 0x323e8fc2);
    cr_assert_eq(report, VIRTIO_NET_HASH_REPORT_IPv4);
    cr_assert_eq(hash_of(make_ipv4(IPPROTO_UDP, false), NET_RSS_TYPES), 0x51ccc178);
    cr_assert_eq(report, VIRTIO_NET_HASH_REPORT_UDPv4);
    cr_assert_eq(hash_of(make_ipv4(IPPROTO_ICMP, false), NET_RSS_TYPES), 0x323e8fc2);
    cr_assert_eq(report, VIRTIO_NET_HASH_REPORT_IPv4);
}

Test(net_rss, ipv6_hashes_are_those_of_the_vectors)
{
    cr_assert_eq(hash_of(make_ipv6(IPPROTO_TCP, 0), NET_RSS_TYPES), 0x40207d3d);
    cr_assert_eq(report, VIRTIO_NET_HASH_REPORT_TCPv6);
    cr_assert_eq(hash_of(make_ipv6(IPPROTO_UDP, 0), VIRTIO_NET_RSS_HASH_TYPE_IPv6), 0x2cc18cd5);
    cr_assert_eq(report, VIRTIO_NET_HASH_REPORT_IPv6);
}

#define PLAIN_TYPES 0x3Fu /* those that there are without regard to extension headers */

Test(net_rss, extension_headers_are_skipped_when_no_type_is_for_them)
{
    cr_assert_eq(hash_of(make_ipv6(IPPROTO_TCP, 16), PLAIN_TYPES), 0x40207d3d);
    cr_assert_eq(report, VIRTIO_NET_HASH_REPORT_TCPv6);
    cr_assert_eq(hash_of(make_ipv6(IPPROTO_TCP, 16),
                         PLAIN_TYPES | VIRTIO_NET_RSS_HASH_TYPE_UDP_EX), 0x40207d3d);
    cr_assert_eq(report, VIRTIO_NET_HASH_REPORT_TCPv6);
}

Test(net_rss, packets_with_extension_headers_have_types_of_their_own)
{
    cr_assert_eq(hash_of(make_ipv6(IPPROTO_TCP, 16), NET_RSS_TYPES), 0x40207d3d);
    cr_assert_eq(report, VIRTIO_NET_HASH_REPORT_TCPv6_EX);
    cr_assert_eq(hash_of(make_ipv6(IPPROTO_UDP, 16), NET_RSS_TYPES), 0x40207d3d);
    cr_assert_eq(report, VIRTIO_NET_HASH_REPORT_UDPv6_EX);
    cr_assert_eq(hash_of(make_ipv6(IPPROTO_ICMPV6, 16), NET_RSS_TYPES), 0x2cc18cd5);
    cr_assert_eq(report, VIRTIO_NET_HASH_REPORT_IPv6_EX);
    cr_assert_eq(hash_of(make_ipv6(IPPROTO_TCP, 0), NET_RSS_TYPES), 0x40207d3d);
    cr_assert_eq(report, VIRTIO_NET_HASH_REPORT_TCPv6);
    cr_assert_eq(hash_of(make_ipv6(IPPROTO_TCP, 0), VIRTIO_NET_RSS_HASH_TYPE_TCP_EX), 0);
    cr_assert_eq(report, VIRTIO_NET_HASH_REPORT_NONE);
}

Test(net_rss, addresses_with_extension_headers_go_before_ports_without)
{
    cr_assert_eq(hash_of(make_ipv6(IPPROTO_TCP, 16),
                         VIRTIO_NET_RSS_HASH_TYPE_IP_EX | VIRTIO_NET_RSS_HASH_TYPE_TCPv6),
                 0x2cc18cd5);
    cr_assert_eq(report, VIRTIO_NET_HASH_REPORT_IPv6_EX);
}

/* Moves the source into a home address option behind `padding` bytes, and puts a care-of address into
 * its place. The extension has 24 bytes. */
static size_t make_home_option(unsigned padding, uint8_t length)
{
    size_t whole = make_ipv6(IPPROTO_TCP, 24);
    uint8_t *option = frame + 56 + padding;

    option[0] = 0xC9;
    option[1] = length;
    memcpy(option + 2, frame + 22, 16);
    memset(frame + 22, 0x77, 16);
    return whole;
}

Test(net_rss, a_mobile_nodes_home_address_counts_for_its_source)
{
    static const struct {
        unsigned padding;
        uint8_t bytes[4];
    } paddings[] = {{0, {0}}, {1, {0}}, {2, {1, 0}}, {4, {1, 2}}};

    for (unsigned i = 0; i < 4; i++) {
        size_t length = make_home_option(paddings[i].padding, 16);

        memcpy(frame + 56, paddings[i].bytes, paddings[i].padding);
        cr_assert_eq(hash_of(length, NET_RSS_TYPES), 0x40207d3d, "padding %u", i);
        cr_assert_eq(hash_of(length, VIRTIO_NET_RSS_HASH_TYPE_IP_EX), 0x2cc18cd5);
        cr_assert_neq(hash_of(length, PLAIN_TYPES), 0x40207d3d);
    }
}

Test(net_rss, a_home_address_that_is_not_whole_does_not_count)
{
    uint32_t care_of;

    make_home_option(0, 16);
    frame[56] = 1; /* padding, in place of the option */
    care_of = hash_of(98, NET_RSS_TYPES);
    cr_assert_neq(care_of, 0x40207d3d);
    make_home_option(0, 15);
    cr_assert_eq(hash_of(98, NET_RSS_TYPES), care_of);
    make_home_option(5, 16);
    frame[78] = 0x0A; /* of the port, behind the extension */
    cr_assert_eq(hash_of(98, NET_RSS_TYPES), care_of);
}

Test(net_rss, a_routing_header_to_a_mobile_node_has_its_address)
{
    size_t length = make_ipv6(IPPROTO_TCP, 24);

    frame[20] = IPPROTO_ROUTING;
    frame[56] = 2;
    frame[57] = 1;
    memcpy(frame + 62, frame + 38, 16);
    memset(frame + 38, 0x77, 16);
    cr_assert_eq(hash_of(length, NET_RSS_TYPES), 0x40207d3d);
    cr_assert_eq(report, VIRTIO_NET_HASH_REPORT_TCPv6_EX);
    frame[56] = 4; /* of segments: another matter */
    cr_assert_neq(hash_of(length, NET_RSS_TYPES), 0x40207d3d);
}

Test(net_rss, what_is_cut_in_an_extension_header_is_hashed_by_its_addresses)
{
    make_home_option(0, 16);
    memcpy(frame + 22, frame + 58, 16);
    memset(frame + 58, 0x77, 16); /* its end is not at hand */
    cr_assert_eq(hash_of(77, NET_RSS_TYPES), 0x2cc18cd5);
    cr_assert_eq(report, VIRTIO_NET_HASH_REPORT_IPv6_EX);
    cr_assert_eq(hash_of(60, NET_RSS_TYPES), 0x2cc18cd5);
    cr_assert_eq(hash_of(54, NET_RSS_TYPES), 0x2cc18cd5);
}

Test(net_rss, a_fragment_of_ipv6_is_hashed_by_its_addresses)
{
    make_ipv6(IPPROTO_TCP, 8);
    frame[20] = IPPROTO_FRAGMENT;
    cr_assert_eq(hash_of(100, NET_RSS_TYPES), 0x2cc18cd5);
    cr_assert_eq(report, VIRTIO_NET_HASH_REPORT_IPv6_EX);
    cr_assert_eq(hash_of(100, PLAIN_TYPES), 0x2cc18cd5);
    cr_assert_eq(report, VIRTIO_NET_HASH_REPORT_IPv6);
}

Test(net_rss, a_fragment_is_hashed_by_its_addresses)
{
    size_t length = make_ipv4(IPPROTO_UDP, false);

    frame[20] = 0x20; /* more fragments follow */
    cr_assert_eq(hash_of(length, NET_RSS_TYPES), 0x323e8fc2);
    cr_assert_eq(report, VIRTIO_NET_HASH_REPORT_IPv4);
}

Test(net_rss, a_type_that_is_not_enabled_is_not_hashed)
{
    cr_assert_eq(hash_of(make_ipv4(IPPROTO_TCP, false), VIRTIO_NET_RSS_HASH_TYPE_UDPv4), 0);
    cr_assert_eq(report, VIRTIO_NET_HASH_REPORT_NONE);
    cr_assert_eq(hash_of(make_ipv6(IPPROTO_TCP, 0), VIRTIO_NET_RSS_HASH_TYPE_TCPv4), 0);
    cr_assert_eq(report, VIRTIO_NET_HASH_REPORT_NONE);
}

Test(net_rss, what_is_not_ip_has_no_hash)
{
    size_t length = make_ipv4(IPPROTO_TCP, false);

    frame[13] = 6; /* ARP */
    cr_assert_eq(hash_of(length, NET_RSS_TYPES), 0);
    cr_assert_eq(report, VIRTIO_NET_HASH_REPORT_NONE);
    make_ipv4(IPPROTO_TCP, false);
    frame[14] = 0x65;
    cr_assert_eq(hash_of(length, NET_RSS_TYPES), 0);
    make_ipv4(IPPROTO_TCP, false);
    cr_assert_eq(hash_of(33, NET_RSS_TYPES), 0);
    cr_assert_eq(hash_of(35, NET_RSS_TYPES), 0x323e8fc2);
}

Test(net_rss, a_tag_is_stepped_over)
{
    static const uint8_t tag[4] = {0x81, 0, 0, 5};
    size_t length = make_ipv4(IPPROTO_TCP, false);

    memmove(frame + 16, frame + 12, length - 12);
    memcpy(frame + 12, tag, sizeof(tag));
    cr_assert_eq(hash_of(length + 4, NET_RSS_TYPES), 0x51ccc178);
}

Test(net_rss, both_directions_of_a_flow_are_the_same_flow)
{
    uint32_t there, other;

    hash_of(make_ipv4(IPPROTO_TCP, false), 0);
    there = net_flow_symmetric(&flow);
    hash_of(make_ipv4(IPPROTO_TCP, true), 0);
    cr_assert_eq(net_flow_symmetric(&flow), there);
    frame[35] ^= 1;
    hash_of(60, 0);
    other = net_flow_symmetric(&flow);
    cr_assert_neq(other, there);
}
