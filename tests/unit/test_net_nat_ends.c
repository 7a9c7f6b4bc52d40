/*
 * When a connection between guest and library is over: told from the frames of both.
 */
#include <criterion/criterion.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/nat_ends.h"
#include "tests/unit/packets.h"

#define GUEST_PORT 40000
#define TCP6_HEADERS (ETH_BYTES + 40 + TCP_BYTES)

static struct nat_ends ends;
static struct nat_flow flow;

static void set_up(void)
{
    ends = (struct nat_ends){0};
    flow = (struct nat_flow){0};
}

TestSuite(nat_ends, .init = set_up);

static const struct endpoints from_guest = {
    .src_mac = {2, 0, 0, 0, 0, 1}, .dst_mac = {2, 0, 0, 0, 0, 2},
    .src = 0x0A00020F, .dst = 0x0A000202, .src_port = GUEST_PORT, .dst_port = 80,
};

static void see_of(const struct endpoints *e, bool guest, uint8_t flags, uint32_t seq, uint32_t ack,
                   size_t bytes)
{
    static const uint8_t data[64];
    struct endpoints back = {.src = e->dst, .dst = e->src, .src_port = e->dst_port,
                             .dst_port = e->src_port};
    struct packet p;

    make_tcp(&p, guest ? e : &back, flags, seq, ack, data, bytes);
    nat_ends_see(&ends, p.bytes, p.length, guest);
}

static void guest_sends(uint8_t flags, uint32_t seq, uint32_t ack, size_t bytes)
{
    see_of(&from_guest, true, flags, seq, ack, bytes);
}

static void library_sends(uint8_t flags, uint32_t seq, uint32_t ack, size_t bytes)
{
    see_of(&from_guest, false, flags, seq, ack, bytes);
}

static bool open_by(const struct endpoints *e, struct nat_flow *which, uint8_t flags, bool guest)
{
    struct packet p;

    make_tcp(&p, e, flags, 99, 0, NULL, 0);
    return nat_ends_open(&ends, which, 7, p.bytes, p.length, guest);
}

static void open_flow(void)
{
    cr_assert(open_by(&from_guest, &flow, TCP_SYN, true));
}

/* The library ends at 500, the guest at 200. */
static void close_both(void)
{
    library_sends(TCP_FIN | TCP_ACK, 489, 190, 10);
    guest_sends(TCP_ACK, 190, 500, 0);
    guest_sends(TCP_FIN | TCP_ACK, 190, 500, 9);
    library_sends(TCP_ACK, 500, 200, 0);
}

Test(nat_ends, a_connection_that_both_ended_is_over_once)
{
    open_flow();
    close_both();
    cr_assert_eq(nat_ends_next(&ends), &flow);
    cr_assert_null(nat_ends_next(&ends));
    library_sends(TCP_ACK, 500, 200, 0);
    cr_assert_null(nat_ends_next(&ends));
}

Test(nat_ends, it_is_not_over_before_the_library_has_the_guests_end)
{
    open_flow();
    library_sends(TCP_FIN | TCP_ACK, 499, 190, 0);
    guest_sends(TCP_FIN | TCP_ACK, 190, 500, 9);
    library_sends(TCP_ACK, 500, 199, 0); /* the data, and not the FIN */
    cr_assert_null(nat_ends_next(&ends));
    library_sends(TCP_ACK, 500, 200, 0);
    cr_assert_eq(nat_ends_next(&ends), &flow);
}

Test(nat_ends, it_is_not_over_before_the_guest_has_the_librarys_end)
{
    open_flow();
    library_sends(TCP_FIN | TCP_ACK, 489, 190, 10);
    guest_sends(TCP_FIN | TCP_ACK, 190, 499, 9);
    library_sends(TCP_ACK, 500, 200, 0);
    cr_assert_null(nat_ends_next(&ends));
    guest_sends(TCP_ACK, 200, 500, 0);
    cr_assert_null(nat_ends_next(&ends), "the library has not said that it heard");
}

Test(nat_ends, a_half_that_goes_on_keeps_it)
{
    open_flow();
    library_sends(TCP_FIN | TCP_ACK, 499, 190, 0);
    guest_sends(TCP_ACK, 190, 500, 64);
    library_sends(TCP_ACK, 500, 254, 0);
    cr_assert_null(nat_ends_next(&ends));
}

Test(nat_ends, one_that_the_guest_ended_first_is_none_of_its_concern)
{
    open_flow();
    guest_sends(TCP_FIN | TCP_ACK, 199, 400, 0);
    library_sends(TCP_ACK, 400, 200, 0);
    library_sends(TCP_FIN | TCP_ACK, 400, 200, 0);
    guest_sends(TCP_ACK, 200, 401, 0);
    cr_assert_null(nat_ends_next(&ends));
}

Test(nat_ends, sequence_numbers_may_wrap)
{
    open_flow();
    library_sends(TCP_FIN | TCP_ACK, 0xFFFFFFF0, 190, 15); /* ends at 0 */
    guest_sends(TCP_FIN | TCP_ACK, 0xFFFFFFFF, 0, 0);      /* ends at 0, too */
    library_sends(TCP_ACK, 0, 0xFFFFFFFF, 0);
    cr_assert_null(nat_ends_next(&ends));
    library_sends(TCP_ACK, 0, 0, 0);
    cr_assert_eq(nat_ends_next(&ends), &flow);
}

Test(nat_ends, connections_are_told_apart_by_all_of_addresses_and_ports)
{
    struct endpoints others[4] = {from_guest, from_guest, from_guest, from_guest};
    struct nat_flow flows[4] = {0};

    others[0].src++;
    others[1].dst++;
    others[2].src_port = GUEST_PORT + NAT_ENDS_BUCKETS;
    others[3].dst_port++;
    open_flow();
    for (unsigned i = 0; i < 4; i++)
        cr_assert(open_by(&others[i], &flows[i], TCP_SYN, true));
    close_both();
    cr_assert_eq(nat_ends_next(&ends), &flow);
    cr_assert_null(nat_ends_next(&ends));
}

Test(nat_ends, one_that_came_from_outside_is_known_too)
{
    struct endpoints from_outside = {.src = from_guest.dst, .dst = from_guest.src, .src_port = 80,
                                     .dst_port = GUEST_PORT};

    cr_assert(open_by(&from_outside, &flow, TCP_SYN, false));
    close_both();
    cr_assert_eq(nat_ends_next(&ends), &flow);
}

Test(nat_ends, only_a_syn_opens_one)
{
    cr_assert_not(open_by(&from_guest, &flow, TCP_ACK, true));
    cr_assert_not(open_by(&from_guest, &flow, TCP_SYN | TCP_ACK, true));
    open_flow();
    cr_assert_not(open_by(&from_guest, &flow, TCP_SYN, true), "it is open already");
}

Test(nat_ends, a_forgotten_one_is_neither_over_nor_looked_for)
{
    open_flow();
    close_both();
    nat_ends_forget(&ends, &flow);
    cr_assert_null(nat_ends_next(&ends));
    cr_assert_eq(ends.ending, 0);
    close_both();
    cr_assert_null(nat_ends_next(&ends));
    nat_ends_forget(&ends, &flow);
}

Test(nat_ends, frames_cut_short_tell_nothing)
{
    struct packet p;

    open_flow();
    make_tcp(&p, &from_guest, TCP_FIN | TCP_ACK, 1, 1, NULL, 0);
    for (size_t length = 0; length < p.length; length++)
        nat_ends_see(&ends, p.bytes, length, true);
    p.bytes[AT_L4 + 12] = 4 << 4;
    nat_ends_see(&ends, p.bytes, p.length, true);
    p.bytes[AT_L4 + 12] = 6 << 4;
    nat_ends_see(&ends, p.bytes, p.length, true);
    cr_assert_not(flow.guest_ended);
    p.bytes[AT_L4 + 12] = 5 << 4;
    nat_ends_see(&ends, p.bytes, p.length, true);
    cr_assert(flow.guest_ended);
}

Test(nat_ends, the_reset_is_the_guests_and_whole)
{
    uint8_t frame[NAT_RESET_MAX];
    struct packet p;

    open_flow();
    close_both();
    make_tcp(&p, &from_guest, TCP_RST, 200, 0, NULL, 0);
    cr_assert_eq(nat_ends_reset(&flow, frame), p.length);
    p.bytes[AT_L4 + 14] = p.bytes[AT_L4 + 15] = 0; /* no window */
    put16(p.bytes + AT_L4 + 16, 0);
    cr_assert_arr_eq(frame + AT_L4, p.bytes + AT_L4, 16);
    cr_assert_arr_eq(frame, p.bytes, ETH_BYTES);
    cr_assert_arr_eq(frame + AT_IP + 12, p.bytes + AT_IP + 12, 8);
    cr_assert_eq(internet_checksum(frame + AT_IP, IPV4_BYTES, 0), 0);
    cr_assert_eq(internet_checksum(frame + AT_IP + 12, 8 + TCP_BYTES, 6 + TCP_BYTES), 0);
}

/* A segment of IPv6 between the guest's ...01 and the peer's ...02. */
static size_t make_tcp6(uint8_t frame[TCP6_HEADERS], bool guest, uint8_t flags, uint32_t seq,
                        uint32_t ack)
{
    uint8_t *ip = frame + ETH_BYTES, *tcp = ip + 40;

    memset(frame, 0, TCP6_HEADERS);
    put16(frame + 12, 0x86DD);
    ip[0] = 0x60;
    put16(ip + 4, TCP_BYTES);
    ip[6] = 6;
    ip[8] = ip[24] = 0xFE;
    ip[23] = guest ? 1 : 2;
    ip[39] = guest ? 2 : 1;
    put16(tcp, guest ? GUEST_PORT : 80);
    put16(tcp + 2, guest ? 80 : GUEST_PORT);
    put32(tcp + 4, seq);
    put32(tcp + 8, ack);
    tcp[12] = 5 << 4;
    tcp[13] = flags;
    return TCP6_HEADERS;
}

Test(nat_ends, ipv6_is_as_ipv4)
{
    uint8_t frame[NAT_RESET_MAX];
    size_t length = make_tcp6(frame, true, TCP_SYN, 1, 0);

    cr_assert(nat_ends_open(&ends, &flow, 7, frame, length, true));
    nat_ends_see(&ends, frame, make_tcp6(frame, false, TCP_FIN | TCP_ACK, 9, 2), false);
    nat_ends_see(&ends, frame, make_tcp6(frame, true, TCP_FIN | TCP_ACK, 2, 10), true);
    nat_ends_see(&ends, frame, make_tcp6(frame, false, TCP_ACK, 10, 3), false);
    cr_assert_eq(nat_ends_next(&ends), &flow);
    cr_assert_eq(nat_ends_reset(&flow, frame), TCP6_HEADERS);
    cr_assert_eq(get16(frame + 12), 0x86DD);
    cr_assert_eq(get16(frame + ETH_BYTES + 4), TCP_BYTES);
    cr_assert_eq(frame[ETH_BYTES + 23], 1);
    cr_assert_eq(get32(frame + ETH_BYTES + 44), 3);
    cr_assert_eq(frame[ETH_BYTES + 53], TCP_RST);
    cr_assert_eq(internet_checksum(frame + ETH_BYTES + 8, 32 + TCP_BYTES, 6 + TCP_BYTES), 0);
}

Test(nat_ends, what_is_no_socket_of_tcp_is_not_drained)
{
    flow.fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    cr_assert_not(nat_ends_is_drained(&flow));
    close(flow.fd);
}
