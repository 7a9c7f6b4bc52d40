/*
 * Large segments at the NAT: what SYNs say, metadata of what is too long, fragments.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "net/nat_segments.h"
#include "tests/unit/packets.h"

#define MTU 1500u
#define LINK_MSS 1460u
#define LARGE_MSS 16060u /* eleven of them */
#define ACCEPTS (NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4)
#define TCP6_BYTES 60    /* headers of IPv6 and TCP */

static uint8_t frame[70000];
static size_t length;

/* A TCP segment of IPv4 with so many bytes of options and of data, and a right checksum. */
static void make_segment(uint8_t flags, const void *options, size_t option_bytes, size_t data_bytes)
{
    const struct endpoints e = {.src = 0x0A00020F, .dst = 0x0A000202, .src_port = 40000,
                                .dst_port = 80};
    size_t tcp_length = TCP_BYTES + option_bytes + data_bytes;
    uint8_t *tcp = frame + AT_L4, pseudo[12];
    struct packet p;

    make_tcp(&p, &e, flags, 1000, 2000, NULL, 0);
    memcpy(frame, p.bytes, p.length);
    if (option_bytes > 0)
        memcpy(tcp + TCP_BYTES, options, option_bytes);
    for (size_t i = 0; i < data_bytes; i++)
        tcp[TCP_BYTES + option_bytes + i] = (uint8_t)(i * 31 + (i >> 8));
    tcp[12] = (uint8_t)((TCP_BYTES + option_bytes) / 4 << 4);
    put16(frame + AT_IP + 2, (uint16_t)(IPV4_BYTES + tcp_length));
    put16(frame + AT_IP + 10, 0);
    put16(frame + AT_IP + 10, internet_checksum(frame + AT_IP, IPV4_BYTES, 0));
    memcpy(pseudo, frame + AT_IP + 12, 8);
    pseudo[8] = 0;
    pseudo[9] = 6;
    put16(pseudo + 10, (uint16_t)tcp_length);
    put16(tcp + 16, 0);
    put16(tcp + 16, internet_checksum(tcp, tcp_length,
                                      (uint16_t)~internet_checksum(pseudo, sizeof(pseudo), 0)));
    length = AT_L4 + tcp_length;
}

static bool checksum_is_right(const uint8_t *bytes, size_t bytes_length)
{
    uint8_t pseudo[12] = {[9] = 6};

    memcpy(pseudo, bytes + AT_IP + 12, 8);
    put16(pseudo + 10, (uint16_t)(bytes_length - AT_L4));
    return internet_checksum(bytes + AT_L4, bytes_length - AT_L4,
                             (uint16_t)~internet_checksum(pseudo, sizeof(pseudo), 0)) == 0;
}

static void make_syn(uint16_t mss)
{
    uint8_t options[] = {1, 1, 2, 4, 0, 0, 3, 3};

    options[4] = (uint8_t)(mss >> 8);
    options[5] = (uint8_t)mss;
    make_segment(TCP_SYN, options, sizeof(options), 0);
    cr_assert(checksum_is_right(frame, length));
}

static uint16_t told_mss(const uint8_t *bytes)
{
    return get16(bytes + AT_L4 + TCP_BYTES + 4);
}

Test(nat_segments, the_library_is_told_of_a_link_for_several_segments_in_a_window)
{
    cr_assert_eq(nat_segments_library_mtu(1500), LARGE_MSS + 40);
    cr_assert_eq(nat_segments_library_mtu(9000), 9000);
    cr_assert_eq(nat_segments_library_mtu(20000), 20000);
}

Test(nat_segments, two_segments_of_the_library_fit_into_any_window)
{
    for (unsigned mtu = 1280; mtu <= 65520; mtu++)
        cr_assert_leq(2 * (nat_segments_library_mtu(mtu) - 40), 65535, "with %u", mtu);
}

Test(nat_segments, a_guest_that_accepts_large_segments_is_believed_to_have_room_for_them)
{
    make_syn(LINK_MSS);
    nat_segments_raise_mss(frame, length, MTU, ACCEPTS, false);
    cr_assert_eq(told_mss(frame), LARGE_MSS);
    cr_assert(checksum_is_right(frame, length));
}

Test(nat_segments, an_option_at_an_odd_place_is_changed_with_a_right_checksum)
{
    static const uint8_t options[] = {1, 2, 4, LINK_MSS >> 8, LINK_MSS & 255, 1, 1, 1};

    make_segment(TCP_SYN, options, sizeof(options), 0);
    nat_segments_raise_mss(frame, length, MTU, ACCEPTS, false);
    cr_assert_eq(get16(frame + AT_L4 + TCP_BYTES + 3), LARGE_MSS);
    cr_assert(checksum_is_right(frame, length));
}

Test(nat_segments, a_checksum_that_is_to_be_completed_stays_as_it_is)
{
    uint16_t before;

    make_syn(LINK_MSS);
    before = get16(frame + AT_L4 + 16);
    nat_segments_raise_mss(frame, length, MTU, ACCEPTS, true);
    cr_assert_eq(told_mss(frame), LARGE_MSS);
    cr_assert_eq(get16(frame + AT_L4 + 16), before);
}

Test(nat_segments, who_takes_less_than_the_link_or_no_large_segments_is_left_alone)
{
    make_syn(LINK_MSS - 1);
    nat_segments_raise_mss(frame, length, MTU, ACCEPTS, false);
    cr_assert_eq(told_mss(frame), LINK_MSS - 1);
    make_syn(LINK_MSS);
    nat_segments_raise_mss(frame, length, MTU, NET_OFFLOAD_CSUM, false);
    cr_assert_eq(told_mss(frame), LINK_MSS);
    nat_segments_raise_mss(frame, length, MTU, NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO6, false);
    cr_assert_eq(told_mss(frame), LINK_MSS);
}

Test(nat_segments, only_a_syn_is_changed)
{
    static const uint8_t options[] = {1, 1, 2, 4, LINK_MSS >> 8, LINK_MSS & 255, 1, 1};
    struct nat_segment out;

    make_segment(TCP_ACK, options, sizeof(options), 0);
    nat_segments_raise_mss(frame, length, MTU, ACCEPTS, false);
    cr_assert_eq(told_mss(frame), LINK_MSS);
    cr_assert_not(nat_segments_lower_mss(frame, length, MTU, &out));
}

Test(nat_segments, options_that_are_cut_or_have_no_length_end_the_look)
{
    static const uint8_t cut[] = {1, 1, 1, 1, 1, 1, 2, 4}, none[] = {5, 0, 2, 4, 5, 180, 1, 1};

    make_segment(TCP_SYN, cut, sizeof(cut), 0);
    nat_segments_raise_mss(frame, length, MTU, ACCEPTS, false);
    cr_assert(checksum_is_right(frame, length));
    cr_assert_arr_eq(frame + AT_L4 + TCP_BYTES, cut, sizeof(cut));
    make_segment(TCP_SYN, none, sizeof(none), 0);
    nat_segments_raise_mss(frame, length, MTU, ACCEPTS, false);
    cr_assert_arr_eq(frame + AT_L4 + TCP_BYTES, none, sizeof(none));
}

Test(nat_segments, the_guest_is_told_what_its_link_takes)
{
    struct nat_segment out;
    uint8_t copy[NAT_HEADERS_MAX];

    make_syn(LARGE_MSS);
    cr_assert(nat_segments_lower_mss(frame, length, MTU, &out));
    cr_assert_eq(out.frame.length, length);
    net_frame_copy(&out.frame, copy);
    cr_assert_eq(told_mss(copy), LINK_MSS);
    cr_assert(checksum_is_right(copy, length));
    make_syn(1000);
    cr_assert(nat_segments_lower_mss(frame, length, MTU, &out));
    net_frame_copy(&out.frame, copy);
    cr_assert_eq(told_mss(copy), 1000);
}

Test(nat_segments, what_is_too_long_becomes_a_large_segment_that_can_be_completed_again)
{
    static uint8_t copy[70000];
    static const uint8_t stamps[12] = {1, 1, 8, 10};
    struct nat_segment out;

    for (size_t options = 0; options <= sizeof(stamps); options += sizeof(stamps)) {
        make_segment(TCP_ACK, stamps, options, 16060);
        cr_assert(nat_segments_large(frame, length, MTU, &out));
        cr_assert_eq(out.frame.gso_type, NET_GSO_TCP4);
        cr_assert_eq(out.frame.gso_size, LINK_MSS - options);
        cr_assert_eq(out.frame.hdr_len, AT_L4 + TCP_BYTES + options);
        cr_assert_eq(out.frame.csum_start, AT_L4);
        cr_assert_eq(out.frame.csum_offset, 16);
        cr_assert_eq(out.frame.length, length);
        net_frame_copy(&out.frame, copy);
        cr_assert(nat_segments_complete(copy, length, &out.frame));
        cr_assert_arr_eq(copy, frame, length);
    }
}

Test(nat_segments, for_who_accepts_none_it_is_cut_into_segments_that_are_right_by_themselves)
{
    static uint8_t again[20000];
    uint8_t bytes[AT_IP + MTU];
    struct nat_segment out;
    size_t at = 0, end = 0;

    make_segment(TCP_ACK | TCP_PSH | TCP_FIN, NULL, 0, 16061);
    while (nat_segments_cut(frame, length, MTU, &at, &out)) {
        size_t data = out.frame.length - AT_L4 - TCP_BYTES;
        bool last = end + data == 16061;

        cr_assert_leq(out.frame.length, sizeof(bytes));
        net_frame_copy(&out.frame, bytes);
        cr_assert_eq(get16(bytes + AT_IP + 2), out.frame.length - AT_IP);
        cr_assert_eq(internet_checksum(bytes + AT_IP, IPV4_BYTES, 0), 0);
        cr_assert(checksum_is_right(bytes, out.frame.length));
        cr_assert_eq(get32(bytes + AT_L4 + 4), 1000 + end);
        cr_assert_eq(bytes[AT_L4 + 13], last ? TCP_ACK | TCP_PSH | TCP_FIN : TCP_ACK);
        memcpy(again + end, bytes + AT_L4 + TCP_BYTES, data);
        end += data;
    }
    cr_assert_eq(end, 16061);
    cr_assert_arr_eq(again, frame + AT_L4 + TCP_BYTES, end);
}

Test(nat_segments, so_does_one_of_ipv6)
{
    static uint8_t copy[70000];
    uint8_t *ip = frame + AT_IP, pseudo[40] = {[39] = 6};
    struct nat_segment out;
    size_t data = 5000;

    memset(frame, 0, AT_IP + 40 + TCP_BYTES);
    put16(frame + 12, 0x86DD);
    ip[0] = 0x60;
    put16(ip + 4, (uint16_t)(TCP_BYTES + data));
    ip[6] = 6;
    for (unsigned i = 0; i < 32; i++)
        ip[8 + i] = (uint8_t)(i * 7);
    ip[40 + 12] = TCP_BYTES / 4 << 4;
    ip[40 + 13] = TCP_ACK;
    length = AT_IP + 40 + TCP_BYTES + data;
    memcpy(pseudo, ip + 8, 32);
    put16(pseudo + 34, (uint16_t)(TCP_BYTES + data));
    put16(ip + 40 + 16, internet_checksum(ip + 40, TCP_BYTES + data,
                                          (uint16_t)~internet_checksum(pseudo, 40, 0)));
    cr_assert(nat_segments_large(frame, length, MTU, &out));
    cr_assert_eq(out.frame.gso_type, NET_GSO_TCP6);
    cr_assert_eq(out.frame.gso_size, MTU - TCP6_BYTES);
    net_frame_copy(&out.frame, copy);
    cr_assert(nat_segments_complete(copy, length, &out.frame));
    cr_assert_arr_eq(copy, frame, length);
}

Test(nat_segments, metadata_that_contradict_the_frame_are_refused)
{
    struct net_frame of = {.gso_type = NET_GSO_TCP4};

    make_segment(TCP_ACK, NULL, 0, 100);
    cr_assert_not(nat_segments_complete(frame, length, &of), "to be cut, with a whole checksum");
    of = (struct net_frame){.needs_csum = true, .csum_start = 13, .csum_offset = 16};
    cr_assert_not(nat_segments_complete(frame, length, &of), "in the Ethernet header");
    of = (struct net_frame){.needs_csum = true, .csum_start = AT_L4};
    of.csum_offset = (uint16_t)(length - AT_L4 - 1);
    cr_assert_not(nat_segments_complete(frame, length, &of), "beyond the end");
    of = (struct net_frame){.needs_csum = true, .csum_start = 65535, .csum_offset = 65535};
    cr_assert_not(nat_segments_complete(frame, length, &of), "far beyond it");
    of = (struct net_frame){0};
    cr_assert(nat_segments_complete(frame, length, &of));
}

/* A datagram of so many bytes behind IP's header, which has nothing in it that is looked at. */
static void make_datagram(size_t payload)
{
    memset(frame, 0, AT_L4);
    put16(frame + 12, 0x0800);
    frame[AT_IP] = 0x45;
    put16(frame + AT_IP + 2, (uint16_t)(IPV4_BYTES + payload));
    put16(frame + AT_IP + 4, 0x1234);
    frame[AT_IP + 9] = 17;
    for (size_t i = 0; i < payload; i++)
        frame[AT_L4 + i] = (uint8_t)(i * 13 + (i >> 8));
    length = AT_L4 + payload;
}

Test(nat_segments, a_datagram_that_is_too_long_becomes_fragments_that_make_it_again)
{
    static uint8_t again[70000];
    uint8_t bytes[AT_IP + MTU];
    struct nat_segment out;
    size_t at = 0, end = 0;
    bool more = true;

    make_datagram(20000);
    /* 1475 bytes have room for 184 times 8. */
    while (nat_segments_fragment(frame, length, MTU - 5, &at, &out)) {
        size_t offset, payload;

        cr_assert(more, "none follows the last");
        cr_assert_leq(out.frame.length, sizeof(bytes));
        net_frame_copy(&out.frame, bytes);
        cr_assert_eq(internet_checksum(bytes + AT_IP, IPV4_BYTES, 0), 0);
        cr_assert_eq(get16(bytes + AT_IP + 4), 0x1234);
        offset = (get16(bytes + AT_IP + 6) & 0x1FFF) * 8u;
        more = get16(bytes + AT_IP + 6) & 0x2000;
        payload = get16(bytes + AT_IP + 2) - IPV4_BYTES;
        cr_assert_eq(payload, out.frame.length - AT_L4);
        cr_assert_eq(offset, end);
        memcpy(again + offset, bytes + AT_L4, payload);
        end = offset + payload;
    }
    cr_assert_not(more);
    cr_assert_eq(end, 20000);
    cr_assert_arr_eq(again, frame + AT_L4, 20000);
}

Test(nat_segments, what_is_no_datagram_of_ipv4_has_no_fragments)
{
    struct nat_segment out;
    size_t at = 0;

    make_datagram(3000);
    put16(frame + 12, 0x86DD);
    cr_assert_not(nat_segments_fragment(frame, length, MTU, &at, &out));
    make_datagram(3000);
    put16(frame + AT_IP + 6, 0x2000);
    cr_assert_not(nat_segments_fragment(frame, length, MTU, &at, &out));
    make_datagram(3000);
    put16(frame + AT_IP + 2, 4000);
    cr_assert_not(nat_segments_fragment(frame, length, MTU, &at, &out));
    cr_assert_eq(at, 0);
    cr_assert_not(nat_segments_large(frame, length, MTU, &out));
}
