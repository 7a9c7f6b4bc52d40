/*
 * Flows: the fields that are read out of headers of every kind, and what cannot be read.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "net/flow.h"
#include "tests/unit/packets.h"

static uint8_t frame[256];
static size_t length;
static struct flow_key key;

static void start(uint16_t type)
{
    memset(frame, 0, sizeof(frame));
    memcpy(frame, (uint8_t[12]){2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}, 12);
    put16(frame + 12, type);
    length = 14;
}

static enum flow_result read_at_hand(size_t at_hand)
{
    memset(&key, 0xEE, sizeof(key));
    return flow_read(&key, 3, 10, frame, frame + 12, at_hand - 12, length - 12);
}

static enum flow_result read_whole(void)
{
    return read_at_hand(length);
}

static void add(const void *bytes, size_t n)
{
    memcpy(frame + length, bytes, n);
    length += n;
}

static void add_ipv4(uint8_t proto, uint16_t fragment)
{
    uint8_t ip[20] = {0x45, [8] = 64, [9] = proto, [12] = 10, [15] = 1, [16] = 10, [19] = 2};

    put16(ip + 6, fragment);
    add(ip, sizeof(ip));
}

static void add_ipv6(uint8_t next)
{
    uint8_t ip[40] = {0x60, [6] = next, [7] = 64, [8] = 0xFE, [9] = 0x80, [23] = 1, [24] = 0x20,
                      [39] = 2};

    add(ip, sizeof(ip));
}

static void add_tcp(uint16_t src, uint16_t dst, uint8_t flags)
{
    uint8_t tcp[20] = {[12] = 0x50, [13] = flags};

    put16(tcp, src);
    put16(tcp + 2, dst);
    add(tcp, sizeof(tcp));
}

static void expect_tcp(void)
{
    cr_assert_eq(read_whole(), FLOW_OK);
    cr_assert_eq(key.proto, 6);
    cr_assert_eq(key.src_port, 1000);
    cr_assert_eq(key.dst_port, 22);
    cr_assert_eq(key.tcp_flags, 0x12);
}

Test(net_flow, ipv4_and_tcp_are_read)
{
    start(0x0800);
    add_ipv4(6, 0);
    add_tcp(1000, 22, 0x12);
    expect_tcp();
    cr_assert_eq(key.in_port, 3);
    cr_assert_eq(key.vlan, 10);
    cr_assert_eq(key.ethertype, 0x0800);
    cr_assert_eq(key.fragment, FLOW_WHOLE);
    cr_assert_arr_eq(key.dst_mac, frame, 6);
    cr_assert_arr_eq(key.src_mac, frame + 6, 6);
    cr_assert_arr_eq(key.src, ((uint8_t[16]){10, 0, 0, 1}), 16);
    cr_assert_arr_eq(key.dst, ((uint8_t[16]){10, 0, 0, 2}), 16);
    cr_assert_eq(key.zero1[0] | key.zero1[1] | key.zero2[0] | key.zero3[0] | key.zero3[2], 0);
}

Test(net_flow, options_of_ipv4_are_passed_over)
{
    static const uint8_t options[8];

    start(0x0800);
    add_ipv4(6, 0);
    frame[14] = 0x47;
    add(options, sizeof(options));
    add_tcp(1000, 22, 0x12);
    expect_tcp();
}

Test(net_flow, one_tag_is_looked_behind_and_no_more)
{
    start(0x8100);
    add((uint8_t[4]){0, 5, 0x08, 0x00}, 4);
    add_ipv4(6, 0);
    add_tcp(1000, 22, 0x12);
    expect_tcp();
    cr_assert_eq(key.ethertype, 0x0800);
    start(0x88A8);
    add((uint8_t[4]){0, 5, 0x81, 0x00}, 4);
    cr_assert_eq(read_whole(), FLOW_OK);
    cr_assert_eq(key.ethertype, 0x8100);
}

Test(net_flow, fragments_are_told_apart)
{
    start(0x0800);
    add_ipv4(6, 0x2000);
    add_tcp(1000, 22, 0x12);
    expect_tcp();
    cr_assert_eq(key.fragment, FLOW_FIRST_FRAGMENT);
    put16(frame + 20, 0x0002);
    cr_assert_eq(read_whole(), FLOW_OK);
    cr_assert_eq(key.fragment, FLOW_LATER_FRAGMENT);
    cr_assert_eq(key.src_port | key.dst_port | key.tcp_flags, 0);
    put16(frame + 20, 0x4000); /* "do not fragment" is none */
    expect_tcp();
    cr_assert_eq(key.fragment, FLOW_WHOLE);
}

Test(net_flow, a_fragment_that_overwrites_tcp_flags_is_malformed)
{
    start(0x0800);
    add_ipv4(6, 1);
    add_tcp(0, 0, 0);
    cr_assert_eq(read_whole(), FLOW_MALFORMED);
    frame[23] = 17; /* UDP has no flags */
    cr_assert_eq(read_whole(), FLOW_OK);
}

Test(net_flow, extension_headers_of_ipv6_are_passed_over)
{
    static const uint8_t hop_by_hop[16] = {43, 1}, routing[8] = {60, 0}, options[8] = {51, 0};
    static const uint8_t authentication[24] = {6, 4};

    start(0x86DD);
    add_ipv6(0);
    add(hop_by_hop, 16);
    add(routing, 8);
    add(options, 8);
    add(authentication, 24);
    add_tcp(1000, 22, 0x12);
    expect_tcp();
    cr_assert_arr_eq(key.src, frame + 22, 16);
    cr_assert_arr_eq(key.dst, frame + 38, 16);
}

Test(net_flow, fragments_of_ipv6_are_told_apart)
{
    static const uint8_t first[8] = {6, 0, 0, 1}, later[8] = {6, 0, 0, 0x10}, sole[8] = {6};

    start(0x86DD);
    add_ipv6(44);
    add(first, 8);
    add_tcp(1000, 22, 0x12);
    expect_tcp();
    cr_assert_eq(key.fragment, FLOW_FIRST_FRAGMENT);
    memcpy(frame + 54, sole, 8); /* RFC 6946: neither more nor an offset */
    expect_tcp();
    cr_assert_eq(key.fragment, FLOW_WHOLE);
    memcpy(frame + 54, later, 8);
    cr_assert_eq(read_whole(), FLOW_OK);
    cr_assert_eq(key.fragment, FLOW_LATER_FRAGMENT);
    cr_assert_eq(key.proto, 6);
    cr_assert_eq(key.dst_port, 0);
}

Test(net_flow, extension_headers_without_end_are_too_deep)
{
    static const uint8_t options[8] = {60, 0};

    start(0x86DD);
    add_ipv6(60);
    for (unsigned i = 0; i < 12; i++)
        add(options, 8);
    cr_assert_eq(read_whole(), FLOW_TOO_DEEP);
}

Test(net_flow, icmp_types_stand_where_ports_do)
{
    start(0x86DD);
    add_ipv6(58);
    add((uint8_t[2]){134, 3}, 2);
    cr_assert_eq(read_whole(), FLOW_OK);
    cr_assert_eq(key.src_port, 134);
    cr_assert_eq(key.dst_port, 3);
}

Test(net_flow, arp_has_its_sender_and_target)
{
    static const uint8_t arp[28] = {0, 1, 8, 0, 6, 4, 0, 1, [14] = 10, [17] = 1, [24] = 10,
                                    [27] = 9};

    start(0x0806);
    add(arp, sizeof(arp));
    cr_assert_eq(read_whole(), FLOW_OK);
    cr_assert_arr_eq(key.src, arp + 14, 4);
    cr_assert_arr_eq(key.dst, arp + 24, 4);
    frame[16] = 9; /* of another protocol */
    cr_assert_eq(read_whole(), FLOW_OK);
    cr_assert_eq(key.src[0], 0);
}

Test(net_flow, what_is_cut_is_malformed_and_what_is_not_at_hand_too_deep)
{
    static const size_t ends[] = {15, 33, 35, 47};

    start(0x0800);
    add_ipv4(6, 0);
    add_tcp(1000, 22, 0x12);
    for (unsigned i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
        size_t whole = length;

        cr_assert_eq(read_at_hand(ends[i]), FLOW_TOO_DEEP, "%zu bytes", ends[i]);
        length = ends[i];
        cr_assert_eq(read_whole(), FLOW_MALFORMED, "%zu bytes", ends[i]);
        length = whole;
    }
    cr_assert_eq(read_at_hand(48), FLOW_OK);
}

Test(net_flow, headers_that_contradict_themselves_are_malformed)
{
    start(0x0800);
    add_ipv4(6, 0);
    add_tcp(1000, 22, 0x12);
    frame[14] = 0x65;
    cr_assert_eq(read_whole(), FLOW_MALFORMED);
    frame[14] = 0x44;
    cr_assert_eq(read_whole(), FLOW_MALFORMED);
    frame[14] = 0x4F; /* longer than the frame */
    cr_assert_eq(read_whole(), FLOW_MALFORMED);
    start(0x86DD);
    add_ipv6(6);
    add_tcp(1000, 22, 0x12);
    frame[14] = 0x45;
    cr_assert_eq(read_whole(), FLOW_MALFORMED);
}

Test(net_flow, the_hash_of_a_stage_looks_at_its_words_only)
{
    struct flow_seed seed;
    struct flow_key a = {.ethertype = 1}, b = {.ethertype = 1, .dst_port = 7};

    flow_seed_init(&seed);
    for (unsigned s = 0; s < FLOW_STAGES - 1; s++)
        cr_assert_eq(flow_hash_words(&a, flow_stage_end[s], &seed),
                     flow_hash_words(&b, flow_stage_end[s], &seed));
    cr_assert_neq(flow_hash(&a, &seed), flow_hash(&b, &seed));
    cr_assert_eq(flow_hash(&a, &seed), flow_hash_words(&a, FLOW_WORDS, &seed));
}
