/*
 * The DHCP server: what it answers to whom, by a client that was written apart from it.
 */
#include <criterion/criterion.h>
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#include "net/dhcp.h"
#include "tests/unit/dhcp_client.h"
#include "vmm/util/log.h"

enum { DISCOVER = 1, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM };

static struct dhcp_server server;
static struct dhcp_client client;
static struct dhcp_reply reply;
static uint64_t now;
static unsigned bound, logged;

static uint32_t ip(const char *text)
{
    return inet_addr(text);
}

static void on_bound(struct dhcp_server *s, const uint8_t mac[6], struct in_addr address)
{
    (void)s;
    (void)mac;
    (void)address;
    bound++;
}

static void count_log(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
    logged++;
}

static void make_leases(unsigned prefix, const struct dhcp_fixed *fixed, unsigned n_fixed)
{
    dhcp_leases_destroy(server.leases);
    server.config.prefix = prefix;
    cr_assert_eq(dhcp_leases_create(&server.leases, (struct in_addr){ip("10.1.2.0")}, prefix,
                                    server.config.address, fixed, n_fixed), 0);
}

static void set_up(void)
{
    log_set_sink(count_log);
    logged = 0;
    now = 1000;
    bound = 0;
    server = (struct dhcp_server){
        .config = {.name = "net0",
                   .address = {ip("10.1.2.1")},
                   .mac = {2, 0, 0, 0, 0, 1},
                   .lease = 3600},
        .bound = on_bound,
    };
    make_leases(24, NULL, 0);
    client = (struct dhcp_client){.mac = {2, 0, 0, 0, 1, 1}, .xid = 0x12345678};
}

static void tear_down(void)
{
    dhcp_leases_destroy(server.leases);
    server.leases = NULL;
}

TestSuite(dhcp, .init = set_up, .fini = tear_down, .timeout = 20);

/* Sends a message; whether there was an answer, which is then in `reply` and well formed. */
static bool ask(uint8_t type)
{
    uint8_t frame[DHCP_CLIENT_FRAME_MAX], answer[DHCP_FRAME_MAX];
    size_t length, got;

    client.type = type;
    length = dhcp_client_frame(&client, frame);
    cr_assert(dhcp_is_request(frame, length));
    got = dhcp_answer(&server, frame, length, now, answer);
    if (got == 0)
        return false;
    cr_assert_eq(dhcp_client_read(answer, got, &reply), 0);
    cr_assert_eq(reply.xid, client.xid);
    cr_assert_eq(reply.server, ip("10.1.2.1"));
    return true;
}

/* The whole way to a lease. */
static uint32_t take_lease(uint8_t number)
{
    client = (struct dhcp_client){.mac = {2, 0, 0, 0, 1, number}, .xid = number};
    cr_assert(ask(DISCOVER));
    client.address = reply.yiaddr;
    client.server = reply.server;
    cr_assert(ask(REQUEST));
    cr_assert_eq(reply.type, ACK);
    client.address = client.server = 0;
    return reply.yiaddr;
}

Test(dhcp, a_client_is_offered_the_first_address)
{
    cr_assert(ask(DISCOVER));
    cr_assert_eq(reply.type, OFFER);
    cr_assert_eq(reply.yiaddr, ip("10.1.2.16"));
    cr_assert_eq(reply.mask, 0xFFFFFF00);
    cr_assert_eq(reply.lease, 3600);
    cr_assert_eq(reply.t1, 1800);
    cr_assert_eq(reply.t2, 3150);
}

Test(dhcp, an_offer_that_is_taken_becomes_a_lease)
{
    cr_assert_eq(take_lease(1), ip("10.1.2.16"));
    cr_assert_eq(bound, 1);
}

Test(dhcp, a_lease_is_told_to_the_file_once)
{
    take_lease(1);
    take_lease(1);
    cr_assert_eq(bound, 1);
}

Test(dhcp, stations_get_addresses_of_their_own)
{
    cr_assert_eq(take_lease(1), ip("10.1.2.16"));
    cr_assert_eq(take_lease(2), ip("10.1.2.17"));
    cr_assert_eq(take_lease(1), ip("10.1.2.16"));
}

Test(dhcp, a_wish_is_granted_when_the_address_is_free)
{
    client.address = ip("10.1.2.77");
    cr_assert(ask(DISCOVER));
    cr_assert_eq(reply.yiaddr, ip("10.1.2.77"));
}

Test(dhcp, a_wish_for_a_taken_address_is_not_granted)
{
    uint32_t taken = take_lease(1);

    client = (struct dhcp_client){.mac = {2, 0, 0, 0, 1, 2}, .address = taken};
    cr_assert(ask(DISCOVER));
    cr_assert_eq(reply.yiaddr, ip("10.1.2.17"));
}

Test(dhcp, a_client_keeps_its_address_after_the_lease_ran_out)
{
    take_lease(1);
    now += 100000;
    take_lease(2);
    cr_assert_eq(take_lease(1), ip("10.1.2.16"));
}

Test(dhcp, the_oldest_lease_goes_when_no_address_is_left)
{
    make_leases(27, NULL, 0); /* 16 to 30 */
    for (uint8_t i = 1; i <= 15; i++) {
        take_lease(i);
        now += 10;
    }
    client = (struct dhcp_client){.mac = {2, 0, 0, 0, 1, 99}};
    cr_assert_not(ask(DISCOVER), "all leases run");
    now += 3600 - 145;
    cr_assert(ask(DISCOVER));
    cr_assert_eq(reply.yiaddr, ip("10.1.2.16"));
}

Test(dhcp, a_request_to_another_server_is_not_answered)
{
    client.server = ip("10.1.2.2");
    client.address = ip("10.1.2.16");
    cr_assert_not(ask(REQUEST));
}

Test(dhcp, a_request_for_another_address_than_was_offered_is_refused)
{
    cr_assert(ask(DISCOVER));
    client.server = reply.server;
    client.address = ip("10.1.2.99");
    cr_assert(ask(REQUEST));
    cr_assert_eq(reply.type, NAK);
    cr_assert_eq(reply.yiaddr, 0);
    cr_assert_eq(reply.ip_to, INADDR_BROADCAST);
}

Test(dhcp, a_client_that_starts_anew_gets_its_address_confirmed)
{
    client.address = take_lease(1);
    cr_assert(ask(REQUEST));
    cr_assert_eq(reply.type, ACK);
}

Test(dhcp, a_client_that_starts_anew_with_a_wrong_address_is_refused)
{
    take_lease(1);
    client.address = ip("192.168.1.5");
    cr_assert(ask(REQUEST));
    cr_assert_eq(reply.type, NAK);
}

Test(dhcp, an_unknown_client_that_starts_anew_is_not_answered)
{
    client.address = ip("10.1.2.16"); /* RFC 2131 §4.3.2: MUST remain silent */
    cr_assert_not(ask(REQUEST));
}

Test(dhcp, a_renewal_is_granted_and_answered_to_the_address)
{
    client.ciaddr = take_lease(1);
    now += 1800;
    cr_assert(ask(REQUEST));
    cr_assert_eq(reply.type, ACK);
    cr_assert_eq(reply.ip_to, client.ciaddr);
    cr_assert_arr_eq(reply.to, client.mac, 6);
}

Test(dhcp, a_renewal_is_granted_though_the_lease_was_lost)
{
    client.ciaddr = ip("10.1.2.40");
    cr_assert(ask(REQUEST));
    cr_assert_eq(reply.type, ACK);
    cr_assert_eq(reply.yiaddr, ip("10.1.2.40"));
}

Test(dhcp, a_renewal_of_somebody_elses_address_is_refused)
{
    uint32_t taken = take_lease(1);

    client = (struct dhcp_client){.mac = {2, 0, 0, 0, 1, 2}, .ciaddr = taken};
    cr_assert(ask(REQUEST));
    cr_assert_eq(reply.type, NAK);
}

Test(dhcp, a_renewal_extends_the_lease)
{
    make_leases(27, NULL, 0);
    client.ciaddr = take_lease(1);
    now += 3000;
    cr_assert(ask(REQUEST));
    now += 3000;
    for (uint8_t i = 2; i <= 15; i++)
        take_lease(i);
    client = (struct dhcp_client){.mac = {2, 0, 0, 0, 1, 99}};
    cr_assert_not(ask(DISCOVER), "the renewed lease still runs");
}

Test(dhcp, a_released_address_is_free_for_others_when_none_is_left)
{
    make_leases(27, NULL, 0);
    for (uint8_t i = 1; i <= 15; i++)
        take_lease(i);
    client.ciaddr = ip("10.1.2.30");
    cr_assert_not(ask(RELEASE));
    client = (struct dhcp_client){.mac = {2, 0, 0, 0, 1, 99}};
    cr_assert(ask(DISCOVER));
    cr_assert_eq(reply.yiaddr, ip("10.1.2.30"));
}

Test(dhcp, a_declined_address_is_not_offered_again)
{
    client.address = take_lease(1);
    cr_assert_not(ask(DECLINE));
    cr_assert_eq(take_lease(1), ip("10.1.2.17"));
}

Test(dhcp, a_declined_address_comes_back_in_time)
{
    client.address = take_lease(1);
    cr_assert_not(ask(DECLINE));
    now += 3600;
    cr_assert_eq(take_lease(2), ip("10.1.2.16"));
}

/* The length of the answer to a station's message from another's address. A switch lets nobody send from
 * an address that is not its own, so a frame's source can be believed. */
static size_t say_for_another(uint8_t type, uint8_t number)
{
    uint8_t frame[DHCP_CLIENT_FRAME_MAX], answer[DHCP_FRAME_MAX];
    size_t length;

    client = (struct dhcp_client){.mac = {2, 0, 0, 0, 1, number}, .type = type};
    length = dhcp_client_frame(&client, frame);
    frame[6 + 5] = 99;
    return dhcp_answer(&server, frame, length, now, answer);
}

Test(dhcp, nobody_declines_anothers_address)
{
    take_lease(1);
    cr_assert_eq(say_for_another(DECLINE, 1), 0);
    client.ciaddr = ip("10.1.2.16");
    cr_assert(ask(REQUEST));
    cr_assert_eq(reply.type, ACK);
}

Test(dhcp, nobody_releases_anothers_address)
{
    make_leases(27, NULL, 0);
    for (uint8_t i = 1; i <= 15; i++)
        take_lease(i);
    cr_assert_eq(say_for_another(RELEASE, 15), 0);
    client = (struct dhcp_client){.mac = {2, 0, 0, 0, 1, 99}};
    cr_assert_not(ask(DISCOVER), "the lease still runs");
}

Test(dhcp, nobody_takes_addresses_in_the_name_of_others)
{
    cr_assert_eq(say_for_another(DISCOVER, 1), 0);
}

Test(dhcp, a_station_that_declines_address_after_address_does_not_flood_the_log)
{
    for (unsigned i = 0; i < 200; i++) {
        client.address = take_lease(1);
        cr_assert_not(ask(DECLINE));
    }
    cr_assert_lt(logged, 100, "%u lines", logged);
}

Test(dhcp, a_client_with_an_address_may_ask_for_the_rest)
{
    client.ciaddr = ip("10.1.2.5");
    cr_assert(ask(INFORM));
    cr_assert_eq(reply.type, ACK);
    cr_assert_eq(reply.yiaddr, 0);
    cr_assert_eq(reply.lease, 0);
    cr_assert_eq(reply.mask, 0xFFFFFF00);
    cr_assert_eq(reply.ip_to, ip("10.1.2.5"));
}

Test(dhcp, a_fixed_lease_goes_to_its_station_only)
{
    const struct dhcp_fixed fixed = {{2, 0, 0, 0, 1, 9}, {ip("10.1.2.16")}};

    make_leases(24, &fixed, 1);
    cr_assert_eq(take_lease(1), ip("10.1.2.17"));
    cr_assert_eq(take_lease(9), ip("10.1.2.16"));
    cr_assert_eq(bound, 1, "what is fixed needs no file");
}

Test(dhcp, a_fixed_lease_outside_of_the_pool_is_given_out)
{
    const struct dhcp_fixed fixed = {{2, 0, 0, 0, 1, 9}, {ip("10.1.2.7")}};

    make_leases(24, &fixed, 1);
    cr_assert_eq(take_lease(9), ip("10.1.2.7"));
}

Test(dhcp, a_fixed_lease_outside_of_the_network_is_refused)
{
    static const char *const wrong[] = {"10.1.3.7", "10.1.2.0", "10.1.2.255", "10.1.2.1"};

    for (unsigned i = 0; i < 4; i++) {
        struct dhcp_fixed fixed = {{2, 0, 0, 0, 1, 9}, {ip(wrong[i])}};
        struct dhcp_leases *leases;

        cr_assert_eq(dhcp_leases_create(&leases, (struct in_addr){ip("10.1.2.0")}, 24,
                                        server.config.address, &fixed, 1), -EINVAL, "%s", wrong[i]);
    }
}

Test(dhcp, all_options_are_told)
{
    server.config.router.s_addr = ip("10.1.2.254");
    server.config.dns[0].s_addr = ip("9.9.9.9");
    server.config.dns[1].s_addr = ip("1.1.1.1");
    server.config.n_dns = 2;
    server.config.domain = "lab.test";
    server.config.mtu = 9000;
    cr_assert(ask(DISCOVER));
    cr_assert_eq(reply.router, ip("10.1.2.254"));
    cr_assert_eq(reply.n_dns, 2);
    cr_assert_eq(reply.dns[0], ip("9.9.9.9"));
    cr_assert_eq(reply.dns[1], ip("1.1.1.1"));
    cr_assert_str_eq(reply.domain, "lab.test");
    cr_assert_eq(reply.mtu, 9000);
    cr_assert_eq(reply.broadcast, 0x0A0102FF);
}

Test(dhcp, only_options_that_were_asked_for_are_told)
{
    static const uint8_t wanted[] = {6};

    server.config.router.s_addr = ip("10.1.2.254");
    server.config.dns[0].s_addr = ip("9.9.9.9");
    server.config.n_dns = 1;
    client.wanted = wanted;
    client.n_wanted = sizeof(wanted);
    cr_assert(ask(DISCOVER));
    cr_assert_eq(reply.router, 0);
    cr_assert_eq(reply.broadcast, 0);
    cr_assert_eq(reply.n_dns, 1);
    cr_assert_eq(reply.mask, 0xFFFFFF00);
}

Test(dhcp, the_longest_domain_fits)
{
    char domain[DHCP_DOMAIN_MAX + 1];

    memset(domain, 'd', DHCP_DOMAIN_MAX);
    domain[DHCP_DOMAIN_MAX] = '\0';
    server.config.domain = domain;
    server.config.router.s_addr = ip("10.1.2.254");
    server.config.n_dns = DHCP_MAX_DNS;
    server.config.mtu = 1500;
    cr_assert(ask(DISCOVER));
    cr_assert_str_eq(reply.domain, domain);
}

Test(dhcp, an_answer_goes_to_all_who_asks_for_that)
{
    client.flags = 0x8000;
    cr_assert(ask(DISCOVER));
    cr_assert_eq(reply.ip_to, INADDR_BROADCAST);
    cr_assert_eq(reply.to[0], 0xFF);
}

Test(dhcp, an_answer_else_goes_to_the_station_at_its_new_address)
{
    cr_assert(ask(DISCOVER));
    cr_assert_eq(reply.ip_to, reply.yiaddr);
    cr_assert_arr_eq(reply.to, client.mac, 6);
}

Test(dhcp, a_relayed_message_is_not_answered)
{
    client.giaddr = ip("10.9.9.9");
    cr_assert_not(ask(DISCOVER));
}

Test(dhcp, a_message_from_a_group_is_not_answered)
{
    client.mac[0] = 1;
    cr_assert_not(ask(DISCOVER));
}

Test(dhcp, a_message_cut_anywhere_is_not_answered_and_not_read_beyond)
{
    uint8_t frame[DHCP_CLIENT_FRAME_MAX], answer[DHCP_FRAME_MAX];
    size_t length;

    client.type = DISCOVER;
    length = dhcp_client_frame(&client, frame);
    for (size_t cut = 0; cut < length; cut++) {
        uint8_t *exact = malloc(cut ? cut : 1); /* for the address sanitizer */

        memcpy(exact, frame, cut);
        (void)dhcp_is_request(exact, cut);
        cr_assert_eq(dhcp_answer(&server, exact, cut, now, answer), 0, "cut to %zu", cut);
        free(exact);
    }
}

Test(dhcp, other_frames_are_no_requests)
{
    uint8_t frame[DHCP_CLIENT_FRAME_MAX];
    size_t length = dhcp_client_frame(&client, frame);

    frame[37] = 68;
    cr_assert_not(dhcp_is_request(frame, length));
    frame[37] = 67;
    frame[23] = 6;
    cr_assert_not(dhcp_is_request(frame, length));
    frame[23] = 17;
    frame[13] = 6;
    cr_assert_not(dhcp_is_request(frame, length));
}

Test(dhcp, options_in_the_fields_for_names_are_read)
{
    uint8_t frame[DHCP_CLIENT_FRAME_MAX], answer[DHCP_FRAME_MAX];
    const size_t options = 42 + 240, file = 42 + 108;
    size_t length, got;

    client.type = DISCOVER;
    length = dhcp_client_frame(&client, frame);
    /* RFC 2132 §9.3: option 52 of value 1 says that there are options in `file`; the type goes there. */
    memcpy(frame + options, (const uint8_t[]){52, 1, 1}, 3);
    memcpy(frame + file, (const uint8_t[]){53, 1, 1, 255}, 4);
    got = dhcp_answer(&server, frame, length, now, answer);
    cr_assert_eq(dhcp_client_read(answer, got, &reply), 0);
    cr_assert_eq(reply.type, OFFER);
}

/* ---- fixed leases as text ---- */

Test(dhcp, a_fixed_lease_is_read)
{
    struct dhcp_fixed fixed;

    cr_assert_eq(dhcp_fixed_parse(&fixed, "52:54:00:12:34:56-192.168.58.20"), 0);
    cr_assert_eq(fixed.mac[5], 0x56);
    cr_assert_eq(fixed.address.s_addr, ip("192.168.58.20"));
}

Test(dhcp, a_fixed_lease_that_is_none_is_refused)
{
    static const char *const wrong[] = {"", "52:54:00:12:34:56", "52:54:00:12:34:56-",
                                        "52:54:00:12:34:56=1.2.3.4", "01:54:00:12:34:56-1.2.3.4",
                                        "52:54:00:12:34:5-1.2.3.4", "52:54:00:12:34:56-1.2.3"};
    struct dhcp_fixed fixed;

    for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        cr_assert_eq(dhcp_fixed_parse(&fixed, wrong[i]), -EINVAL, "%s", wrong[i]);
}
