/*
 * User-mode NAT: a guest made of frames on one side, real sockets of the host on the other, the
 * real event loop between. Everything stays on the loopback interface.
 */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/nat.h"
#include "tests/unit/packets.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define DEADLINE_NS 20000000000ull
#define MAX_FRAMES 4096

#define ROUTER 0x0A000202u
#define DNS 0x0A000203u
#define GUEST 0x0A00020Fu

static const uint8_t guest_mac[6] = {0x02, 0, 0, 0, 0, 0x42};
/* libslirp's own: 52:55 and the IPv4 address. */
static const uint8_t router_mac[6] = {0x52, 0x55, 10, 0, 2, 2};

/* ---- the guest's end of the wire ---- */

struct guest {
    struct net_port port;
    struct packet frames[MAX_FRAMES]; /* that came and were not looked at yet */
    unsigned first, end;
    bool full;                        /* refuse what comes */
    unsigned flushed;
};

static struct guest *guest;
static struct loop *loop;
static struct nat_config config;
static struct nat *nat;
static char logged[1024];

static unsigned guest_deliver(struct net_port *port, const struct net_frame *frames, unsigned n)
{
    struct guest *g = (struct guest *)port;

    if (g->full)
        return 0;
    for (unsigned i = 0; i < n; i++) {
        cr_assert_lt(g->end, MAX_FRAMES);
        cr_assert_leq(frames[i].length, PACKET_MAX);
        net_frame_copy(&frames[i], g->frames[g->end].bytes);
        g->frames[g->end++].length = frames[i].length;
    }
    return n;
}

static void guest_flush(struct net_port *port)
{
    ((struct guest *)port)->flushed++;
}

static const struct net_port_ops guest_ops = {.deliver = guest_deliver, .flush = guest_flush};

static void remember_line(enum log_level level, const char *line)
{
    (void)level;
    snprintf(logged, sizeof(logged), "%s", line);
}

static void set_up(void)
{
    signal(SIGPIPE, SIG_IGN);
    log_set_sink(remember_line);
    cr_assert_eq(loop_create(&loop, 64), 0);
    guest = calloc(1, sizeof(*guest));
    guest->port = (struct net_port){.ops = &guest_ops, .name = "guest"};
    nat_config_init(&config);
    config.name = "net0";
}

static void tear_down(void)
{
    nat_destroy(nat);
    loop_destroy(loop);
    free(guest);
}

TestSuite(nat, .init = set_up, .fini = tear_down, .timeout = 60);

static void start(void)
{
    cr_assert_eq(nat_create(&nat, loop, &config), 0, "%s", logged);
    net_port_connect(&guest->port, nat_port(nat));
}

static bool reached;

static void reach(struct loop_call *call)
{
    (void)call;
    reached = true;
}

static bool is_reached(void *arg)
{
    (void)arg;
    return reached;
}

/* Runs the loop for two batches: what was asked of it is on its way in the kernel then. */
static void settle(void)
{
    struct loop_call call = {.run = reach};

    for (unsigned i = 0; i < 2; i++) {
        reached = false;
        loop_call(loop, &call);
        cr_assert_eq(loop_run_until(loop, is_reached, NULL, DEADLINE_NS), 0);
    }
}

static void send_bytes(const void *bytes, size_t length)
{
    const struct iovec iov = {(void *)bytes, length};
    const struct net_frame frame = {.iov = &iov, .iovcnt = 1, .length = length};

    cr_assert_eq(net_port_send(&guest->port, &frame, 1), 1);
    net_port_flush(&guest->port);
}

static void guest_sends(const struct packet *p)
{
    send_bytes(p->bytes, p->length);
}

/* The next frame for which test() holds, running the loop until it is there; others are dropped. */
struct search {
    bool (*test)(const struct packet *p, const void *arg);
    const void *arg;
};

static bool search_frames(void *arg)
{
    const struct search *search = arg;

    while (guest->first < guest->end) {
        if (search->test(&guest->frames[guest->first], search->arg))
            return true;
        guest->first++;
    }
    return false;
}

static const struct packet *wait_frame(bool (*test)(const struct packet *p, const void *arg),
                                       const void *arg)
{
    struct search search = {test, arg};

    cr_assert_eq(loop_run_until(loop, search_frames, &search, DEADLINE_NS), 0,
                 "the frame never came");
    return &guest->frames[guest->first++];
}

static bool is_protocol(const struct packet *p, const void *arg)
{
    return ip_protocol(p) == *(const uint8_t *)arg;
}

static bool is_ethertype(const struct packet *p, const void *arg)
{
    return ethertype(p) == *(const uint16_t *)arg;
}

static const uint8_t icmp = 1, tcp = 6, udp = 17;
static const uint16_t arp = 0x0806, ipv6 = 0x86DD;

/* Makes itself known, so that what comes from outside is not held back by the router's ARP. */
static void introduce(void)
{
    struct packet p;

    make_arp_request(&p, guest_mac, GUEST, ROUTER);
    guest_sends(&p);
    wait_frame(is_ethertype, &arp);
    settle();
}

static struct endpoints to_router(uint16_t src_port, uint16_t dst_port)
{
    struct endpoints e = {.src = GUEST, .dst = ROUTER, .src_port = src_port, .dst_port = dst_port};

    memcpy(e.src_mac, guest_mac, 6);
    memcpy(e.dst_mac, router_mac, 6);
    return e;
}

/* ---- sockets of the host ---- */

static struct sockaddr_in loopback(uint16_t port)
{
    return (struct sockaddr_in){
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
        .sin_port = htons(port),
    };
}

/* A socket on a free port of the loopback interface; *port gets its number. */
static int host_socket(int type, uint16_t *port)
{
    struct sockaddr_in address = loopback(0);
    socklen_t size = sizeof(address);
    int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);

    cr_assert_geq(fd, 0);
    cr_assert_eq(bind(fd, (struct sockaddr *)&address, size), 0);
    cr_assert_eq(getsockname(fd, (struct sockaddr *)&address, &size), 0);
    *port = ntohs(address.sin_port);
    return fd;
}

static int host_listener(uint16_t *port)
{
    int fd = host_socket(SOCK_STREAM, port);

    cr_assert_eq(listen(fd, 16), 0);
    return fd;
}

/* A port that was free a moment ago. */
static uint16_t free_port(int type)
{
    uint16_t port;

    close(host_socket(type, &port));
    return port;
}

static bool is_readable(void *arg)
{
    struct pollfd pollfd = {.fd = *(int *)arg, .events = POLLIN};

    return poll(&pollfd, 1, 0) == 1;
}

static void wait_readable(int fd)
{
    /* The loop sleeps on its own sockets only, so it is woken by its own timer to look at this. */
    while (loop_run_until(loop, is_readable, &fd, 10000000) == -ETIMEDOUT)
        continue;
}

static size_t host_receives(int fd, char *buffer, size_t size)
{
    ssize_t n;

    wait_readable(fd);
    n = recv(fd, buffer, size, 0);
    cr_assert_geq(n, 0);
    return (size_t)n;
}

/* ---- a TCP connection of the guest's ---- */

struct connection {
    struct endpoints e;
    uint32_t seq, ack;
};

static void tcp_send(struct connection *c, uint8_t flags, const void *data, size_t length)
{
    struct packet p;

    make_tcp(&p, &c->e, flags, c->seq, c->ack, data, length);
    c->seq += (uint32_t)length + (flags & (TCP_SYN | TCP_FIN) ? 1 : 0);
    guest_sends(&p);
}

static bool is_segment(const struct packet *p, const void *arg)
{
    const struct connection *c = arg;

    return ip_protocol(p) == tcp && get16(p->bytes + AT_L4 + 2) == c->e.src_port;
}

/* The next segment that carries one of the flags or, with none asked for, data; acknowledged. */
static const struct packet *tcp_receive(struct connection *c, uint8_t flags)
{
    for (;;) {
        const struct packet *p = wait_frame(is_segment, c);
        uint8_t got = p->bytes[AT_L4 + 13];
        size_t length;

        tcp_data(p, &length);
        cr_assert(!(got & TCP_RST) || flags & TCP_RST, "the connection was reset");
        if (flags ? !(got & flags) : length == 0)
            continue;
        c->ack = get32(p->bytes + AT_L4 + 4) + (uint32_t)length +
                 (got & (TCP_SYN | TCP_FIN) ? 1 : 0);
        if (!(got & TCP_RST))
            tcp_send(c, TCP_ACK, NULL, 0);
        return p;
    }
}

static struct connection tcp_connect_from(uint16_t own_port, uint16_t port)
{
    struct connection c = {.e = to_router(own_port, port), .seq = 1000};

    tcp_send(&c, TCP_SYN, NULL, 0);
    tcp_receive(&c, TCP_SYN);
    settle();
    return c;
}

static struct connection tcp_connect(uint16_t port)
{
    return tcp_connect_from(40000, port);
}

/* ---- services of the network ---- */

Test(nat, the_router_answers_arp)
{
    const struct packet *p;
    struct packet request;

    start();
    make_arp_request(&request, guest_mac, GUEST, ROUTER);
    guest_sends(&request);
    p = wait_frame(is_ethertype, &arp);
    cr_assert_eq(get16(p->bytes + ETH_BYTES + 6), 2, "a reply was expected");
    cr_assert_arr_eq(p->bytes, guest_mac, 6);
    cr_assert_eq(get32(p->bytes + ETH_BYTES + 14), ROUTER);
    cr_assert_arr_eq(p->bytes + ETH_BYTES + 8, router_mac, 6);
}

static const struct packet *dhcp(uint8_t last_of_mac, uint8_t type, uint32_t requested)
{
    uint8_t mac[6];
    struct packet p;

    memcpy(mac, guest_mac, 6);
    mac[5] = last_of_mac;
    make_dhcp(&p, mac, type, requested);
    guest_sends(&p);
    return wait_frame(is_protocol, &udp);
}

static uint32_t dhcp_address(const struct packet *p)
{
    return get32(p->bytes + AT_L4 + UDP_BYTES + 16);
}

static uint32_t option32(const struct packet *p, uint8_t code)
{
    size_t length;
    const uint8_t *option = dhcp_option(p, code, &length);

    cr_assert(option && length >= 4, "option %u is missing", code);
    return get32(option);
}

static void assert_text_option(const struct packet *p, uint8_t code, const char *text)
{
    size_t length;
    const uint8_t *option = dhcp_option(p, code, &length);

    cr_assert_not_null(option);
    cr_assert_eq(length, strlen(text));
    cr_assert_arr_eq(option, text, length);
}

Test(nat, dhcp_gives_the_first_guest_address_with_router_and_dns)
{
    const struct packet *p;

    start();
    p = dhcp(1, 1, 0);
    cr_assert_eq(dhcp_address(p), GUEST);
    cr_assert_eq(option32(p, 1), 0xFFFFFF00u); /* netmask */
    cr_assert_eq(option32(p, 3), ROUTER);
    cr_assert_eq(option32(p, 6), DNS);
    p = dhcp(1, 3, GUEST);
    cr_assert_eq(dhcp_address(p), GUEST);
}

Test(nat, dhcp_gives_each_station_an_address_of_its_own)
{
    start();
    cr_assert_eq(dhcp_address(dhcp(1, 1, 0)), GUEST);
    cr_assert_eq(dhcp_address(dhcp(2, 1, 0)), GUEST + 1);
    cr_assert_eq(dhcp_address(dhcp(1, 1, 0)), GUEST);
}

Test(nat, dhcp_passes_on_host_and_domain_names)
{
    const struct packet *p;

    config.hostname = "lab0";
    config.domain = "example.org";
    start();
    p = dhcp(1, 1, 0);
    assert_text_option(p, 12, "lab0");
    assert_text_option(p, 15, "example.org");
}

Test(nat, another_subnet_moves_all_addresses)
{
    const struct packet *p;

    cr_assert_eq(nat_subnet_parse("192.168.76.32/27", &config.network, &config.prefix), 0);
    start();
    p = dhcp(1, 1, 0);
    cr_assert_eq(dhcp_address(p), 0xC0A84C2Fu);
    cr_assert_eq(option32(p, 1), 0xFFFFFFE0u);
    cr_assert_eq(option32(p, 3), 0xC0A84C22u);
    cr_assert_eq(option32(p, 6), 0xC0A84C23u);
}

Test(nat, dhcp_names_the_dns_server_that_was_asked_for)
{
    config.dns.s_addr = htonl(0xC6336407);
    start();
    cr_assert_eq(option32(dhcp(1, 1, 0), 6), 0xC6336407u);
}

Test(nat, the_router_answers_pings)
{
    struct endpoints e = to_router(0, 0);
    const struct packet *p;
    struct packet ping;

    start();
    introduce();
    make_ping(&ping, &e, 0x77, "ferry", 5);
    guest_sends(&ping);
    p = wait_frame(is_protocol, &icmp);
    cr_assert_eq(p->bytes[AT_L4], 0, "an echo reply was expected");
    cr_assert_eq(get16(p->bytes + AT_L4 + 4), 0x77);
    cr_assert_arr_eq(p->bytes + AT_L4 + 8, "ferry", 5);
}

/* An ICMPv6 router solicitation from fe80::42 to ff02::2 (RFC 4861 §4.1). */
static void make_solicitation(struct packet *p)
{
    static const uint8_t header[] = {
        0x33, 0x33, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 0x42, 0x86, 0xDD,
        0x60, 0, 0, 0, 0, 8, 58, 255,
        0xFE, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x42,
        0xFF, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2,
        133, 0,
    };

    memset(p, 0, sizeof(*p));
    memcpy(p->bytes, header, sizeof(header));
    put16(p->bytes + 56, internet_checksum(p->bytes + 22, 40, 58 + 8));
    p->length = 62;
}

Test(nat, the_router_announces_its_ipv6_prefix)
{
    static const uint8_t prefix[8] = {0xFE, 0xC0};
    const struct packet *p;
    struct packet solicitation;

    start();
    make_solicitation(&solicitation);
    /* Unsolicited ones may have been sent before: what comes now is the answer. */
    guest->first = guest->end;
    guest_sends(&solicitation);
    p = wait_frame(is_ethertype, &ipv6);
    cr_assert_eq(p->bytes[54], 134, "a router advertisement was expected");
    cr_assert_not_null(memmem(p->bytes + 54, p->length - 54, prefix, sizeof(prefix)));
}

Test(nat, without_ipv6_there_is_no_ipv6)
{
    struct packet solicitation;

    config.ipv6 = false;
    start();
    make_solicitation(&solicitation);
    guest_sends(&solicitation);
    introduce();
    for (unsigned i = 0; i < guest->end; i++)
        cr_assert_neq(ethertype(&guest->frames[i]), ipv6);
}

/* ---- out ---- */

Test(nat, a_datagram_to_the_router_reaches_the_host_and_the_answer_the_guest)
{
    struct sockaddr_in from;
    socklen_t size = sizeof(from);
    uint16_t port;
    int fd = host_socket(SOCK_DGRAM, &port);
    struct endpoints e = to_router(5000, port);
    const struct packet *p;
    struct packet question;
    char buffer[64];
    size_t length;

    start();
    introduce();
    make_udp(&question, &e, "question", 8);
    guest_sends(&question);
    wait_readable(fd);
    cr_assert_eq(recvfrom(fd, buffer, sizeof(buffer), 0, (struct sockaddr *)&from, &size), 8);
    cr_assert_arr_eq(buffer, "question", 8);
    cr_assert_eq(sendto(fd, "answer", 6, 0, (struct sockaddr *)&from, size), 6);
    p = wait_frame(is_protocol, &udp);
    cr_assert_eq(get32(p->bytes + AT_IP + 12), ROUTER);
    cr_assert_eq(get16(p->bytes + AT_L4), port);
    cr_assert_eq(get16(p->bytes + AT_L4 + 2), 5000);
    cr_assert_arr_eq(udp_data(p, &length), "answer", 6);
    cr_assert_eq(length, 6);
    close(fd);
}

Test(nat, a_connection_to_the_host_carries_data_both_ways)
{
    uint16_t port;
    int listener = host_listener(&port), fd;
    struct connection c;
    const struct packet *p;
    char buffer[64];
    size_t length;

    start();
    introduce();
    c = tcp_connect(port);
    wait_readable(listener);
    fd = accept(listener, NULL, NULL);
    tcp_send(&c, TCP_ACK | TCP_PSH, "GET /", 5);
    cr_assert_eq(host_receives(fd, buffer, sizeof(buffer)), 5);
    cr_assert_arr_eq(buffer, "GET /", 5);
    cr_assert_eq(send(fd, "200 OK", 6, 0), 6);
    p = tcp_receive(&c, 0);
    cr_assert_arr_eq(tcp_data(p, &length), "200 OK", 6);
    cr_assert_eq(length, 6);
    close(fd);
    close(listener);
}

/* A guest that accepts large segments, and takes a stream in. */
#define BULK 40000u
#define LARGE 30000u

static struct {
    struct connection c;
    uint8_t data[BULK];
    uint32_t first; /* sequence number of the stream's first byte */
    unsigned large; /* segments that were more than one */
    bool unacknowledged;
} bulk;

static unsigned bulk_deliver(struct net_port *port, const struct net_frame *frames, unsigned n)
{
    static uint8_t bytes[NET_FRAME_MAX];

    (void)port;
    for (unsigned i = 0; i < n; i++) {
        size_t payload, at;

        net_frame_copy(&frames[i], bytes);
        if (bytes[AT_IP + 9] != tcp)
            continue;
        cr_assert_eq(get16(bytes + AT_IP + 6) & 0x3FFF, 0, "TCP has no fragments");
        payload = frames[i].length - AT_L4 - TCP_BYTES;
        at = get32(bytes + AT_L4 + 4) - bulk.first;
        cr_assert_eq(at, bulk.c.ack - bulk.first, "a segment is missing");
        cr_assert_leq(at + payload, BULK);
        memcpy(bulk.data + at, bytes + AT_L4 + TCP_BYTES, payload);
        bulk.c.ack += (uint32_t)payload;
        bulk.unacknowledged = true;
        bulk.large += frames[i].gso_type == NET_GSO_TCP4;
        if (frames[i].gso_type)
            cr_assert(frames[i].needs_csum && payload > frames[i].gso_size);
    }
    return n;
}

/* Acknowledges, outside of deliver(); whether all is there. */
static bool bulk_is_there(void *arg)
{
    (void)arg;
    if (bulk.unacknowledged) {
        bulk.unacknowledged = false;
        tcp_send(&bulk.c, TCP_ACK, NULL, 0);
    }
    return bulk.c.ack - bulk.first == BULK;
}

Test(nat, a_guest_that_accepts_large_segments_gets_a_stream_in_such)
{
    static const struct net_port_ops bulk_ops = {.deliver = bulk_deliver};
    static uint8_t data[BULK];
    uint16_t port;
    int listener = host_listener(&port), fd;

    for (size_t i = 0; i < BULK; i++)
        data[i] = (uint8_t)(i * 7 + (i >> 8));
    start();
    introduce();
    bulk.c = tcp_connect(port);
    bulk.first = bulk.c.ack;
    wait_readable(listener);
    fd = accept(listener, NULL, NULL);
    guest->port.ops = &bulk_ops;
    atomic_store(&guest->port.accepts, NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4);
    cr_assert_eq(send(fd, data, BULK, 0), BULK);
    cr_assert_eq(loop_run_until(loop, bulk_is_there, NULL, DEADLINE_NS), 0);
    cr_assert_arr_eq(bulk.data, data, BULK);
    cr_assert_gt(bulk.large, 0);
    close(fd);
    close(listener);
}

Test(nat, a_large_segment_of_the_guests_reaches_the_host_whole)
{
    static uint8_t data[LARGE], got[LARGE];
    struct iovec pieces[2] = {{.iov_len = AT_L4 + TCP_BYTES}, {data, LARGE}};
    struct net_frame large = {
        .iov = pieces, .iovcnt = 2, .length = AT_L4 + TCP_BYTES + LARGE, .needs_csum = true,
        .csum_start = AT_L4, .csum_offset = 16, .gso_type = NET_GSO_TCP4, .gso_size = 1460,
    };
    uint16_t port;
    int listener = host_listener(&port), fd;
    struct connection c;
    struct packet head;
    uint32_t pseudo;
    size_t n = 0;

    for (size_t i = 0; i < LARGE; i++)
        data[i] = (uint8_t)(i * 7 + (i >> 8));
    start();
    introduce();
    c = tcp_connect(port);
    wait_readable(listener);
    fd = accept(listener, NULL, NULL);
    make_tcp(&head, &c.e, TCP_ACK | TCP_PSH, c.seq, c.ack, NULL, 0);
    put16(head.bytes + AT_IP + 2, IPV4_BYTES + TCP_BYTES + LARGE);
    put16(head.bytes + AT_IP + 10, 0);
    put16(head.bytes + AT_IP + 10, internet_checksum(head.bytes + AT_IP, IPV4_BYTES, 0));
    pseudo = (uint16_t)~internet_checksum(head.bytes + AT_IP + 12, 8, tcp + TCP_BYTES + LARGE);
    put16(head.bytes + AT_L4 + 16, (uint16_t)pseudo);
    pieces[0].iov_base = head.bytes;
    cr_assert_eq(net_port_send(&guest->port, &large, 1), 1);
    net_port_flush(&guest->port);
    while (n < LARGE)
        n += host_receives(fd, (char *)got + n, LARGE - n);
    cr_assert_arr_eq(got, data, LARGE);
    cr_assert_eq(nat_port(nat)->sent.dropped, 0);
    close(fd);
    close(listener);
}

Test(nat, a_datagram_from_the_host_that_is_longer_than_the_link_takes_comes_in_fragments)
{
    static uint8_t data[4000];
    struct sockaddr_in from;
    socklen_t size = sizeof(from);
    uint16_t port;
    int fd = host_socket(SOCK_DGRAM, &port);
    struct endpoints e = to_router(5000, port);
    struct packet question;
    char buffer[64];
    size_t got = 0;

    start();
    introduce();
    make_udp(&question, &e, "question", 8);
    guest_sends(&question);
    wait_readable(fd);
    cr_assert_eq(recvfrom(fd, buffer, sizeof(buffer), 0, (struct sockaddr *)&from, &size), 8);
    cr_assert_eq(sendto(fd, data, sizeof(data), 0, (struct sockaddr *)&from, size),
                 sizeof(data));
    while (got < UDP_BYTES + sizeof(data)) {
        const struct packet *p = wait_frame(is_protocol, &udp);

        cr_assert_leq(p->length, ETH_BYTES + 1500);
        cr_assert_eq((get16(p->bytes + AT_IP + 6) & 0x1FFF) * 8u, got);
        got += p->length - AT_L4;
    }
    close(fd);
}

Test(nat, the_end_of_a_connection_is_passed_on_both_ways)
{
    uint16_t port;
    int listener = host_listener(&port), fd;
    struct connection c;
    char byte;

    start();
    introduce();
    c = tcp_connect(port);
    wait_readable(listener);
    fd = accept(listener, NULL, NULL);
    tcp_send(&c, TCP_FIN | TCP_ACK, NULL, 0);
    cr_assert_eq(host_receives(fd, &byte, 1), 0, "the end of the stream was expected");
    close(fd);
    tcp_receive(&c, TCP_FIN);
    close(listener);
}

Test(nat, a_reset_by_the_guest_closes_the_host_side_although_its_socket_is_being_polled)
{
    uint16_t port;
    int listener = host_listener(&port), fd;
    struct connection c;
    char byte;

    start();
    introduce();
    c = tcp_connect(port);
    wait_readable(listener);
    fd = accept(listener, NULL, NULL);
    tcp_send(&c, TCP_RST | TCP_ACK, NULL, 0);
    cr_assert_leq(host_receives(fd, &byte, 1), 0);
    close(fd);
    close(listener);
}

Test(nat, a_refused_connection_is_reset)
{
    struct connection c = {.e = to_router(40000, free_port(SOCK_STREAM)), .seq = 1000};

    start();
    introduce();
    tcp_send(&c, TCP_SYN, NULL, 0);
    tcp_receive(&c, TCP_RST);
}

/* More than any socket's buffers hold, so that both sides wait for the other again and again. */
#define STREAM_BYTES (4u << 20)
#define SEGMENT 1400u

static uint8_t stream_byte(uint32_t at)
{
    return (uint8_t)(at * 2654435761u >> 24);
}

/* Sends what the socket takes, of a stream that goes on from *sent; closes it behind the last. */
static void host_streams(int *fd, uint32_t *sent)
{
    uint8_t block[4096];
    ssize_t n = 1;

    while (*sent < STREAM_BYTES && n > 0) {
        size_t length = STREAM_BYTES - *sent;

        if (length > sizeof(block))
            length = sizeof(block);
        for (uint32_t i = 0; i < length; i++)
            block[i] = stream_byte(*sent + i);
        n = send(*fd, block, length, 0);
        *sent += n > 0 ? (uint32_t)n : 0;
    }
    if (*sent == STREAM_BYTES && *fd >= 0) {
        close(*fd);
        *fd = -1;
    }
}

Test(nat, megabytes_from_the_host_arrive_whole_and_in_order_and_then_the_end)
{
    uint16_t port;
    int listener = host_listener(&port), fd;
    uint32_t sent = 0, got = 0;
    const struct packet *p;
    struct connection c;

    start();
    introduce();
    c = tcp_connect(port);
    wait_readable(listener);
    fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    do {
        const uint8_t *data;
        size_t length;

        host_streams(&fd, &sent);
        if (guest->first == guest->end)
            guest->first = guest->end = 0;
        p = wait_frame(is_segment, &c);
        data = tcp_data(p, &length);
        cr_assert_eq(get16(p->bytes + AT_IP + 6) & 0x3FFF, 0, "TCP has no fragments");
        cr_assert_eq(get32(p->bytes + AT_L4 + 4), c.ack, "a segment is missing");
        cr_assert_eq(p->bytes[AT_L4 + 13] & TCP_RST, 0);
        for (size_t i = 0; i < length; i++)
            cr_assert_eq(data[i], stream_byte(got + (uint32_t)i));
        got += (uint32_t)length;
        c.ack += (uint32_t)length;
        tcp_send(&c, TCP_ACK, NULL, 0);
    } while (!(p->bytes[AT_L4 + 13] & TCP_FIN));
    cr_assert_eq(got, STREAM_BYTES);
    close(listener);
}

Test(nat, a_host_that_does_not_read_gets_the_rest_once_it_does)
{
    uint8_t block[SEGMENT], buffer[65536];
    uint32_t sent = 0, got = 0;
    uint16_t port;
    int listener = host_listener(&port), fd, size = 4096;
    struct connection c;

    cr_assert_eq(setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size)), 0);
    start();
    introduce();
    c = tcp_connect(port);
    wait_readable(listener);
    fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    /* As much as the router's window takes, which is more than the host's socket takes. */
    while (sent + SEGMENT <= 64000) {
        for (uint32_t i = 0; i < SEGMENT; i++)
            block[i] = stream_byte(sent + i);
        tcp_send(&c, TCP_ACK, block, SEGMENT);
        sent += SEGMENT;
    }
    while (got < sent) {
        size_t n = host_receives(fd, (char *)buffer, sizeof(buffer));

        cr_assert_gt(n, 0);
        for (size_t i = 0; i < n; i++)
            cr_assert_eq(buffer[i], stream_byte(got + (uint32_t)i));
        got += (uint32_t)n;
    }
    close(fd);
    close(listener);
}

Test(nat, a_restricted_guest_does_not_reach_the_host)
{
    uint16_t port;
    int fd = host_socket(SOCK_DGRAM, &port);
    struct endpoints e = to_router(5000, port);
    struct packet p;
    char byte;

    config.restricted = true;
    start();
    introduce();
    make_udp(&p, &e, "x", 1);
    guest_sends(&p); /* the library sends, or does not, within the call */
    cr_assert_eq(recv(fd, &byte, 1, MSG_DONTWAIT), -1);
    cr_assert_eq(errno, EAGAIN);
    close(fd);
}

/* ---- in ---- */

static struct net_forward forward_of(const char *format, unsigned port)
{
    struct net_forward forward;
    char text[NET_FORWARD_TEXT_MAX];

    snprintf(text, sizeof(text), format, port);
    cr_assert_eq(net_forward_parse(&forward, text), 0);
    return forward;
}

static int host_connects(uint16_t port)
{
    struct sockaddr_in address = loopback(port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    cr_assert_eq(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

static bool is_syn(const struct packet *p, const void *arg)
{
    (void)arg;
    return ip_protocol(p) == tcp && p->bytes[AT_L4 + 13] == TCP_SYN;
}

/* Takes the next connection that comes in, as a server on the guest's port would. */
static struct connection guest_accepts(uint16_t port)
{
    const struct packet *p = wait_frame(is_syn, NULL);
    struct connection c = {
        .e = to_router(port, get16(p->bytes + AT_L4)),
        .seq = 7000,
        .ack = get32(p->bytes + AT_L4 + 4) + 1,
    };

    cr_assert_eq(get32(p->bytes + AT_IP + 16), GUEST);
    cr_assert_eq(get16(p->bytes + AT_L4 + 2), port);
    c.e.dst = get32(p->bytes + AT_IP + 12);
    tcp_send(&c, TCP_SYN | TCP_ACK, NULL, 0);
    return c;
}

Test(nat, a_forwarded_connection_reaches_the_guest_and_carries_data_both_ways)
{
    uint16_t port = free_port(SOCK_STREAM);
    struct net_forward forward = forward_of("tcp:127.0.0.1:%u-:22", port);
    struct connection c;
    char buffer[64];
    size_t length;
    int fd;

    config.forwards = &forward;
    config.n_forwards = 1;
    start();
    introduce();
    fd = host_connects(port);
    c = guest_accepts(22);
    tcp_send(&c, TCP_ACK | TCP_PSH, "SSH-2.0", 7);
    cr_assert_eq(host_receives(fd, buffer, sizeof(buffer)), 7);
    cr_assert_arr_eq(buffer, "SSH-2.0", 7);
    cr_assert_eq(send(fd, "hello", 5, 0), 5);
    cr_assert_arr_eq(tcp_data(tcp_receive(&c, 0), &length), "hello", 5);
    close(fd);
    tcp_receive(&c, TCP_FIN);
}

Test(nat, a_restricted_guest_is_still_reached_by_forwards)
{
    uint16_t port = free_port(SOCK_STREAM);
    struct net_forward forward = forward_of("tcp:%u-22", port);
    int fd;

    config.restricted = true;
    config.forwards = &forward;
    config.n_forwards = 1;
    start();
    introduce();
    fd = host_connects(port);
    guest_accepts(22);
    close(fd);
}

Test(nat, many_connections_may_wait_at_a_forward)
{
    uint16_t port = free_port(SOCK_STREAM);
    struct net_forward forward = forward_of("tcp:%u-22", port);
    int fds[32];

    config.forwards = &forward;
    config.n_forwards = 1;
    start();
    introduce();
    /* Nobody accepts meanwhile: the loop does not run. */
    for (unsigned i = 0; i < 32; i++)
        fds[i] = host_connects(port);
    for (unsigned i = 0; i < 32; i++)
        guest_accepts(22);
    for (unsigned i = 0; i < 32; i++)
        close(fds[i]);
}

Test(nat, a_forwarded_datagram_reaches_the_guest_and_its_answer_the_sender)
{
    uint16_t port = free_port(SOCK_DGRAM), own;
    struct net_forward forward = forward_of("udp:%u-10.0.2.15:53", port);
    struct sockaddr_in address = loopback(port);
    int fd = host_socket(SOCK_DGRAM, &own);
    const struct packet *p;
    struct packet answer;
    struct endpoints e;
    char buffer[64];
    size_t length;

    config.forwards = &forward;
    config.n_forwards = 1;
    start();
    introduce();
    cr_assert_eq(sendto(fd, "who?", 4, 0, (struct sockaddr *)&address, sizeof(address)), 4);
    p = wait_frame(is_protocol, &udp);
    cr_assert_eq(get32(p->bytes + AT_IP + 16), GUEST);
    cr_assert_eq(get16(p->bytes + AT_L4 + 2), 53);
    cr_assert_arr_eq(udp_data(p, &length), "who?", 4);
    e = to_router(53, get16(p->bytes + AT_L4));
    e.dst = get32(p->bytes + AT_IP + 12);
    make_udp(&answer, &e, "me", 2);
    guest_sends(&answer);
    cr_assert_eq(host_receives(fd, buffer, sizeof(buffer)), 2);
    close(fd);
}

static void assert_busy(int type, const char *format, const char *line)
{
    uint16_t port;
    int fd = type == SOCK_STREAM ? host_listener(&port) : host_socket(type, &port);
    struct net_forward forward = forward_of(format, port);
    char expected[256];

    config.forwards = &forward;
    config.n_forwards = 1;
    cr_assert_eq(nat_create(&nat, loop, &config), -EADDRINUSE);
    snprintf(expected, sizeof(expected), line, port);
    cr_assert_str_eq(logged, expected);
    close(fd);
}

Test(nat, a_tcp_port_in_use_is_named_and_refused)
{
    assert_busy(SOCK_STREAM, "tcp:127.0.0.1:%u-:22",
                "net0: cannot forward TCP port 127.0.0.1:%u: it is in use by another program; "
                "choose another port");
}

Test(nat, a_udp_port_in_use_is_named_and_refused)
{
    assert_busy(SOCK_DGRAM, "udp:127.0.0.1:%u-:53",
                "net0: cannot forward UDP port 127.0.0.1:%u: it is in use by another program; "
                "choose another port");
}

Test(nat, a_forward_from_an_address_that_is_not_the_hosts_is_refused)
{
    struct net_forward forward = forward_of("tcp:192.0.2.1:%u-:22", 2222);

    config.forwards = &forward;
    config.n_forwards = 1;
    cr_assert_eq(nat_create(&nat, loop, &config), -EADDRNOTAVAIL);
    cr_assert_str_eq(logged, "net0: cannot forward TCP port 192.0.2.1:2222: this host does not "
                             "have that address");
}

Test(nat, a_forward_to_an_address_outside_the_network_is_refused)
{
    struct net_forward forward = forward_of("tcp:%u-10.0.3.15:22", 2222);

    config.forwards = &forward;
    config.n_forwards = 1;
    cr_assert_eq(nat_create(&nat, loop, &config), -EINVAL);
    cr_assert_str_eq(logged, "net0: forward tcp:127.0.0.1:2222-10.0.3.15:22: the guest's address "
                             "is outside the network 10.0.2.0/24");
}

Test(nat, after_a_failed_start_the_ports_taken_so_far_are_free_again)
{
    uint16_t port = free_port(SOCK_STREAM), busy;
    int fd = host_listener(&busy);
    struct net_forward forwards[] = {forward_of("tcp:%u-22", port), forward_of("tcp:%u-80", busy)};

    config.forwards = forwards;
    config.n_forwards = 2;
    cr_assert_eq(nat_create(&nat, loop, &config), -EADDRINUSE);
    close(fd);
    start();
}

/* ---- bounds ---- */

Test(nat, an_unreasonable_mtu_or_subnet_is_refused)
{
    config.mtu = NAT_MIN_MTU - 1;
    cr_assert_eq(nat_create(&nat, loop, &config), -EINVAL);
    config.mtu = NAT_MAX_MTU + 1;
    cr_assert_eq(nat_create(&nat, loop, &config), -EINVAL);
    config.mtu = 1500;
    config.prefix = 28;
    cr_assert_eq(nat_create(&nat, loop, &config), -EINVAL);
    config.prefix = 16; /* 10.0.2.0 has host bits then */
    cr_assert_eq(nat_create(&nat, loop, &config), -EINVAL);
}

Test(nat, frames_out_of_bounds_are_refused_and_counted)
{
    static uint8_t bytes[14 + 4 + 1500 + 1];
    struct nat_counters counters;

    start();
    send_bytes(bytes, 13);
    send_bytes(bytes, sizeof(bytes));
    nat_get_counters(nat, &counters);
    cr_assert_eq(counters.malformed, 2);
}

Test(nat, a_frame_of_the_largest_size_is_answered)
{
    static uint8_t data[1500 - IPV4_BYTES - 8];
    struct endpoints e = to_router(0, 0);
    const struct packet *p;
    struct packet ping;

    start();
    introduce();
    make_ping(&ping, &e, 1, data, sizeof(data));
    cr_assert_eq(ping.length, 1514);
    guest_sends(&ping);
    p = wait_frame(is_protocol, &icmp);
    cr_assert_eq(p->length, 1514);
}

Test(nat, work_that_was_not_offered_is_refused)
{
    struct packet p;
    struct iovec iov = {p.bytes, 0};
    struct net_frame frame = {.iov = &iov, .iovcnt = 1, .needs_csum = true};
    struct nat_counters counters;

    start();
    make_arp_request(&p, guest_mac, GUEST, ROUTER);
    frame.length = iov.iov_len = p.length;
    cr_assert_eq(nat_port(nat)->ops->deliver(nat_port(nat), &frame, 1), 1);
    frame.needs_csum = false;
    frame.gso_type = 1;
    cr_assert_eq(nat_port(nat)->ops->deliver(nat_port(nat), &frame, 1), 1);
    nat_get_counters(nat, &counters);
    cr_assert_eq(counters.malformed, 2);
    cr_assert_eq(guest->end, 0);
}

Test(nat, other_protocols_are_ignored_and_counted)
{
    struct nat_counters counters;
    struct packet p;

    start();
    make_arp_request(&p, guest_mac, GUEST, ROUTER);
    put16(p.bytes + 12, 0x88CC);
    guest_sends(&p);
    nat_get_counters(nat, &counters);
    cr_assert_eq(counters.ignored, 1);
    cr_assert_eq(counters.malformed, 0);
}

Test(nat, a_guest_cannot_open_sockets_without_end)
{
    struct rlimit limit = {400, 400};
    uint16_t port;
    int fd = host_socket(SOCK_DGRAM, &port);
    struct nat_counters counters;
    struct packet p;

    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    start();
    introduce();
    for (unsigned i = 0; i < 300; i++) {
        struct endpoints e = to_router((uint16_t)(10000 + i), port);

        make_udp(&p, &e, "x", 1);
        guest_sends(&p);
    }
    nat_get_counters(nat, &counters);
    cr_assert_eq(counters.refused, 200);
    /* What needs no socket goes on. */
    introduce();
    close(fd);
}

/* The host's side has ended its direction; the guest does likewise, and hears that it was heard. */
static void guest_ends_second(struct connection *c)
{
    tcp_receive(c, TCP_FIN);
    tcp_send(c, TCP_FIN | TCP_ACK, NULL, 0);
    tcp_receive(c, TCP_ACK);
}

Test(nat, connections_that_both_sides_ended_take_no_sockets)
{
    struct rlimit limit = {200, 200}; /* 50 sockets */
    uint16_t port;
    int listener = host_listener(&port);
    struct nat_counters counters;

    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    start();
    introduce();
    for (unsigned i = 0; i < 60; i++) {
        struct connection c = tcp_connect_from((uint16_t)(41000 + i), port);

        wait_readable(listener);
        close(accept(listener, NULL, NULL));
        guest_ends_second(&c);
    }
    nat_get_counters(nat, &counters);
    cr_assert_eq(counters.refused, 0);
    close(listener);
}

/* The second, for the lowest one is that of the caller's socket, which is closed. */
static int second_free_descriptor(void)
{
    int first = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), second = dup(first);

    close(second);
    close(first);
    return second;
}

Test(nat, forwarded_connections_that_both_sides_ended_take_no_sockets)
{
    uint16_t port = free_port(SOCK_STREAM);
    struct net_forward forward = forward_of("tcp:127.0.0.1:%u-:22", port);
    int before;

    config.forwards = &forward;
    config.n_forwards = 1;
    start();
    introduce();
    before = second_free_descriptor();
    for (unsigned i = 0; i < 4; i++) {
        int fd = host_connects(port);
        struct connection c = guest_accepts(22);

        close(fd);
        guest_ends_second(&c);
        cr_assert_eq(second_free_descriptor(), before);
    }
}

#define HOST_TAKES_MAX (32u << 20)

/* The window that the router told last. */
static unsigned last_window(void)
{
    static unsigned window = 65535;

    if (guest->end > 0)
        window = get16(guest->frames[guest->end - 1].bytes + AT_L4 + 14);
    return window;
}

Test(nat, what_the_host_has_not_taken_when_both_sides_ended_still_reaches_it)
{
    uint8_t block[SEGMENT], buffer[65536];
    uint32_t sent = 0, got = 0;
    uint16_t port;
    int listener = host_listener(&port), fd, size = 4096;
    struct connection c;
    size_t n;

    cr_assert_eq(setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size)), 0);
    start();
    introduce();
    c = tcp_connect(port);
    wait_readable(listener);
    fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    cr_assert_eq(shutdown(fd, SHUT_WR), 0);
    tcp_receive(&c, TCP_FIN);
    do { /* until the host's socket takes no more, and the library little */
        for (uint32_t i = 0; i < SEGMENT; i++)
            block[i] = stream_byte(sent + i);
        guest->first = guest->end = 0;
        tcp_send(&c, TCP_ACK, block, SEGMENT);
        sent += SEGMENT;
        cr_assert_lt(sent, HOST_TAKES_MAX, "the host's socket takes all");
        settle();
    } while (last_window() >= 2 * SEGMENT);
    tcp_send(&c, TCP_FIN | TCP_ACK, NULL, 0);
    tcp_receive(&c, TCP_ACK);
    while ((n = host_receives(fd, (char *)buffer, sizeof(buffer))) > 0) {
        for (size_t i = 0; i < n; i++)
            cr_assert_eq(buffer[i], stream_byte(got + (uint32_t)i));
        got += (uint32_t)n;
    }
    cr_assert_eq(got, sent);
    close(fd);
    close(listener);
}

Test(nat, callers_wait_while_there_are_too_many_sockets)
{
    struct rlimit limit = {400, 400};
    uint16_t port = free_port(SOCK_STREAM), other;
    struct net_forward forward = forward_of("tcp:%u-22", port);
    int fd = host_socket(SOCK_DGRAM, &other), caller;
    struct packet p;

    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    config.forwards = &forward;
    config.n_forwards = 1;
    start();
    introduce();
    for (unsigned i = 0; i < 100; i++) {
        struct endpoints e = to_router((uint16_t)(10000 + i), other);

        make_udp(&p, &e, "x", 1);
        guest_sends(&p);
    }
    settle();
    caller = host_connects(port);
    settle();
    for (unsigned i = guest->first; i < guest->end; i++)
        cr_assert(!is_syn(&guest->frames[i], NULL));
    close(caller);
    close(fd);
}

Test(nat, what_a_full_guest_refuses_comes_in_order_when_it_has_room)
{
    struct packet p;

    start();
    introduce();
    guest->full = true;
    for (uint16_t i = 0; i < 20; i++) {
        struct endpoints e = to_router(0, 0);

        make_ping(&p, &e, i, "x", 1);
        guest_sends(&p);
    }
    guest->full = false;
    guest->flushed = 0;
    net_port_ready(&guest->port);
    for (uint16_t i = 0; i < 20; i++) {
        const struct packet *reply = wait_frame(is_protocol, &icmp);

        cr_assert_eq(get16(reply->bytes + AT_L4 + 4), i);
    }
    cr_assert_eq(guest->flushed, 1);
    cr_assert_eq(nat_port(nat)->sent.dropped, 0);
}

Test(nat, a_new_frame_does_not_overtake_those_held_back)
{
    struct endpoints e = to_router(0, 0);
    struct packet p;

    start();
    introduce();
    guest->full = true;
    make_ping(&p, &e, 1, "x", 1);
    guest_sends(&p);
    guest->full = false;
    make_ping(&p, &e, 2, "x", 1);
    guest_sends(&p);
    cr_assert_eq(guest->first, guest->end);
    net_port_ready(&guest->port);
    cr_assert_eq(get16(wait_frame(is_protocol, &icmp)->bytes + AT_L4 + 4), 1);
    cr_assert_eq(get16(wait_frame(is_protocol, &icmp)->bytes + AT_L4 + 4), 2);
}

Test(nat, a_guest_that_stays_full_loses_frames_and_they_are_counted)
{
    static const uint8_t data[1000];
    struct endpoints e = to_router(0, 0);
    uint64_t sent, dropped;
    struct packet p;

    start();
    introduce();
    sent = nat_port(nat)->sent.frames;
    guest->full = true;
    make_ping(&p, &e, 1, data, sizeof(data));
    for (unsigned i = 0; i < 1000; i++)
        guest_sends(&p);
    dropped = nat_port(nat)->sent.dropped;
    cr_assert_gt(dropped, 0);
    guest->full = false;
    net_port_ready(&guest->port);
    cr_assert_eq(nat_port(nat)->sent.frames - sent + dropped, 1000);
}

Test(nat, answers_are_flushed_once_the_guests_run_of_frames_ends)
{
    struct endpoints e = to_router(0, 0);
    struct iovec iov;
    struct net_frame frame = {.iov = &iov, .iovcnt = 1};
    struct packet p;

    start();
    introduce();
    guest->flushed = 0;
    make_ping(&p, &e, 1, "x", 1);
    iov = (struct iovec){p.bytes, p.length};
    frame.length = p.length;
    for (unsigned i = 0; i < 5; i++)
        net_port_send(&guest->port, &frame, 1);
    cr_assert_eq(guest->flushed, 0);
    net_port_flush(&guest->port);
    cr_assert_eq(guest->flushed, 1);
    net_port_flush(&guest->port);
    cr_assert_eq(guest->flushed, 1);
}

/* ---- rest ---- */

/* Counts how often the loop was about to sleep, which is once more than it woke. */
struct sleeps {
    struct loop_hook hook;
    unsigned count;
};

static void count_sleep(struct loop_hook *hook)
{
    ((struct sleeps *)hook)->count++;
}

static bool never(void *arg)
{
    (void)arg;
    return false;
}

/* How often the loop wakes within a time in which the library would tick several times. */
static unsigned wakes_within(uint64_t ns)
{
    struct sleeps sleeps = {.hook.prepare = count_sleep};

    loop_hook_add(loop, &sleeps.hook);
    cr_assert_eq(loop_run_until(loop, never, NULL, ns), -ETIMEDOUT);
    loop_hook_remove(loop, &sleeps.hook);
    return sleeps.count - 1;
}

Test(nat, without_connections_the_loop_sleeps)
{
    start();
    introduce();
    cr_assert_eq(wakes_within(1600000000), 0);
}

Test(nat, with_forwards_alone_the_loop_sleeps_after_a_tick_or_two)
{
    uint16_t port = free_port(SOCK_STREAM);
    struct net_forward forward = forward_of("tcp:%u-22", port);

    config.forwards = &forward;
    config.n_forwards = 1;
    start();
    introduce();
    cr_assert_leq(wakes_within(1600000000), 2);
    cr_assert_eq(wakes_within(1600000000), 0);
}

Test(nat, with_a_connection_open_the_library_gets_its_ticks)
{
    uint16_t port;
    int listener = host_listener(&port);

    start();
    introduce();
    tcp_connect(port);
    cr_assert_geq(wakes_within(2800000000), 4);
    close(listener);
}

Test(nat, destruction_closes_what_is_open)
{
    uint16_t port;
    int listener = host_listener(&port), fd;
    char byte;

    start();
    introduce();
    tcp_connect(port);
    wait_readable(listener);
    fd = accept(listener, NULL, NULL);
    nat_destroy(nat);
    nat = NULL;
    cr_assert_null(guest->port.peer);
    cr_assert_leq(recv(fd, &byte, 1, 0), 0);
    close(fd);
    close(listener);
}

Test(nat, two_in_one_process_do_not_mix)
{
    struct nat *other;
    uint16_t port = free_port(SOCK_STREAM);
    struct net_forward forward = forward_of("tcp:%u-22", port);

    start();
    introduce();
    config.forwards = &forward;
    config.n_forwards = 1;
    config.name = "net1";
    cr_assert_eq(nat_create(&other, loop, &config), 0);
    nat_destroy(nat);
    net_port_connect(&guest->port, nat_port(other));
    nat = other;
    introduce();
    host_connects(port);
    guest_accepts(22);
}

Test(nat, nothing_to_destroy_is_fine)
{
    nat_destroy(NULL);
}

/* ---- the notation of a subnet ---- */

Test(nat, a_subnet_is_an_address_and_a_prefix)
{
    struct in_addr network;
    unsigned prefix;

    cr_assert_eq(nat_subnet_parse("172.16.0.0/12", &network, &prefix), 0);
    cr_assert_eq(network.s_addr, htonl(0xAC100000));
    cr_assert_eq(prefix, 12);
}

Test(nat, mistakes_in_a_subnet_are_refused)
{
    static const char *const wrong[] = {
        "", "/", "10.0.2.0", "10.0.2.0/", "/24", "10.0.2.0/7", "10.0.2.0/28", "10.0.2.0/024",
        "10.0.2.0/2x", "10.0.0.0/2/", "64.0.0.0/4", "10.0.2.0/-1", "10.0.2.1/24", "10.0.2/24", "10.0.2.0/24/24",
        "255.255.255.255.0/24",
        "255.255.255.255.255.255.255.255.255.255.255.255.255.255.255.255.255.255.255.255.255/24", "fec0::/64",
    };
    struct in_addr network = {.s_addr = 77};
    unsigned prefix = 77;

    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        cr_assert_eq(nat_subnet_parse(wrong[i], &network, &prefix), -EINVAL, "'%s'", wrong[i]);
    cr_assert_eq(network.s_addr, 77);
    cr_assert_eq(prefix, 77);
}
