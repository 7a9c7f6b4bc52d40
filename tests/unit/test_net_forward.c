/*
 * The notation of a port forward, read and written.
 */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "net/forward.h"

TestSuite(forward, .timeout = 20);

static struct net_forward parse(const char *text)
{
    struct net_forward forward;

    cr_assert_eq(net_forward_parse(&forward, text), 0, "%s", text);
    return forward;
}

static struct in_addr address(const char *text)
{
    struct in_addr in;

    cr_assert_eq(inet_pton(AF_INET, text, &in), 1);
    return in;
}

Test(forward, all_four_parts_are_read)
{
    struct net_forward forward = parse("udp:192.0.2.7:5353-10.0.2.20:53");

    cr_assert(forward.udp);
    cr_assert_eq(forward.host_addr.s_addr, address("192.0.2.7").s_addr);
    cr_assert_eq(forward.host_port, 5353);
    cr_assert_eq(forward.guest_addr.s_addr, address("10.0.2.20").s_addr);
    cr_assert_eq(forward.guest_port, 53);
}

Test(forward, without_a_host_address_only_this_host_may_connect)
{
    cr_assert_eq(parse("tcp:2222-22").host_addr.s_addr, htonl(INADDR_LOOPBACK));
    cr_assert_eq(parse("tcp::2222-:22").host_addr.s_addr, htonl(INADDR_LOOPBACK));
}

Test(forward, all_addresses_of_the_host_can_be_asked_for)
{
    cr_assert_eq(parse("tcp:0.0.0.0:2222-:22").host_addr.s_addr, htonl(INADDR_ANY));
}

Test(forward, without_a_guest_address_it_stays_open)
{
    cr_assert_eq(parse("tcp:2222-22").guest_addr.s_addr, htonl(INADDR_ANY));
    cr_assert_eq(parse("tcp:127.0.0.1:2222-:22").guest_addr.s_addr, htonl(INADDR_ANY));
}

Test(forward, the_ends_of_the_range_of_ports_are_valid)
{
    struct net_forward forward = parse("tcp:1-65535");

    cr_assert_eq(forward.host_port, 1);
    cr_assert_eq(forward.guest_port, 65535);
}

Test(forward, mistakes_are_refused_and_leave_the_result_alone)
{
    static const char *const wrong[] = {
        "", "tcp", "tcp:", "tcp:-", "tcp:22", "tcp:22-", "tcp:-22", "tcp:22-0", "tcp:0-22",
        "tcp:22-65536", "tcp:65536-22", "tcp:22-99999", "tcp:22-4294967318", "tcp:+22-22",
        "tcp: 22-22", "tcp:22-22 ", "tcp:22-0x16", "tcp:22--22", "tcp:22-22-22", "sctp:22-22",
        "TCP:22-22", "22-22", ":22-22", "tcp:localhost:22-22", "tcp:127.0.0.1-22",
        "tcp:127.0.0:22-22", "tcp:127.0.0.1.1:22-22", "tcp:127.0.0.256:22-22",
        "tcp:127.0.0.1:22:22-22", "tcp:[::1]:22-22", "tcp:::1:22-22", "tcp:22-10.0.2.15",
        "tcp:22-10.0.2.15:", "tcp:1111.111.111.111111111111111111:22-22", "udp:22-ab:22",
    };
    struct net_forward forward, untouched;

    memset(&untouched, 0x5A, sizeof(untouched));
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        memset(&forward, 0x5A, sizeof(forward));
        cr_assert_eq(net_forward_parse(&forward, wrong[i]), -EINVAL, "'%s'", wrong[i]);
        cr_assert_eq(memcmp(&forward, &untouched, sizeof(forward)), 0, "'%s'", wrong[i]);
    }
}

Test(forward, what_is_written_reads_back_the_same)
{
    static const char *const texts[] = {
        "tcp:127.0.0.1:2222-:22",
        "udp:0.0.0.0:53-10.0.2.15:5353",
        "tcp:255.255.255.255:65535-255.255.255.255:65535",
    };
    char text[NET_FORWARD_TEXT_MAX];

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct net_forward forward = parse(texts[i]);

        net_forward_format(&forward, text, sizeof(text));
        cr_assert_str_eq(text, texts[i]);
    }
}
