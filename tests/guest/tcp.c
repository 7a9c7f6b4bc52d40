/*
 * tcp: a guest that moves streams by TCP, at the speed that card and network allow, and measures
 * it. It talks to tests/net/server.c, and polls: it takes a processor wholly.
 *
 * Where: `address=A.B.C.D` (its own; no DHCP), `gateway=A.B.C.D` (none: all are neighbours),
 * `to=A.B.C.D` (default: the gateway), `port=N` (of the server).
 * What it does, each if it is named, in this order, `rounds=N` times:
 *   `rtt=MS`          bytes there and back, one by one, for so long: cost tcp-rtt, a round trip
 *   `connections=MS`  connections, each with a request, an answer and an end: cost tcp-connection
 *   `send=MS`, `receive=MS`            a stream for so long: cost tcp-send-mib, tcp-receive-mib,
 *   `send-bytes=N`, `receive-bytes=N`  ... or so long: nanoseconds for each MiB
 * A line `begin NAME` is printed before each.
 * With `gaps`: costs tcp-send-gap and tcp-receive-gap, the longest time in which nothing arrived,
 * such as that of a migration; and notes of how often something was sent again.
 * With `verify`: all that is received is compared, and the server does likewise.
 * How: `plain` (no offloads), `mtu=N` (when the card tells none), `window=BYTES` (what may be on
 * its way to here), `buffer=BYTES` (of a mergeable receive buffer; even), `limit=SECONDS` (so long
 * without any progress is a failure: longer than what a migration may stop it).
 */
#include "tcp/tcp.h"

#include <stddef.h>

#include "boot.h"
#include "io.h"
#include "memory.h"
#include "pci.h"
#include "print.h"
#include "timing.h"
#include "verdict.h"
#include "virtio.h"

#define FEATURES                                                                                   \
    (F_CSUM | F_GUEST_CSUM | F_MTU | F_GUEST_TSO4 | F_HOST_TSO4 | F_MRG_RXBUF | F_STATUS |         \
     VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX)
#define WITHOUT_OFFLOADS (F_MTU | F_STATUS)
#define WINDOW (1u << 20)
#define GRACE  (100 * MILLISECOND)
#define PIECE  (8u << 20) /* of a stream by time: what is queued ahead */

/* As in tests/net/server.c. */
#define REQUEST_MAGIC 0x50435446u
enum operation { OP_SINK = 1, OP_SOURCE, OP_SOURCE_FOR, OP_ECHO, OP_ONE, OP_VERIFY = 0x100 };

struct request {
    uint32_t magic;
    uint32_t operation;
    uint64_t amount;
};
_Static_assert(sizeof(struct request) == REQUEST_SIZE, "the server's");

static struct connection connection;
static uint32_t to;
static uint16_t port;
static uint8_t mac[6];
static uint64_t limit_ns;

static void open_for(uint32_t operation, uint64_t amount)
{
    struct request request = { REQUEST_MAGIC, operation, amount };

    if (arg_present("verify"))
        request.operation |= OP_VERIFY;
    connection_open(&connection, to, mac, port, &request);
    connection.verify =
        arg_present("verify") && (operation == OP_SOURCE || operation == OP_SOURCE_FOR);
    connection.progress_ns = now_ns();
}

/* Polls once. False, and said, when the connection is lost or nothing comes any more. */
static bool step(const char *name)
{
    if (!connection_poll(&connection)) {
        not_ok(name, connection.refused ? "port %u refuses" : "port %u reset the connection", port);
        return false;
    }
    if (now_ns() - connection.progress_ns < limit_ns)
        return true;
    not_ok(name, "no progress: %lu bytes acknowledged, %lu received",
           connection_acknowledged(&connection), connection_received(&connection));
    connection_abort(&connection);
    return false;
}

static bool finish(const char *name)
{
    connection_end(&connection);
    while (!connection_done(&connection)) {
        if (!step(name))
            return false;
    }
    return true;
}

static void tell_gap(const char *cost_name)
{
    if (!arg_present("gaps"))
        return;
    cost(cost_name, connection.longest_gap_ns);
    print("note: retransmissions %lu\n", connection.retransmitted);
}

static void check_rtt(uint64_t ms)
{
    uint64_t rounds = 0;

    open_for(OP_ECHO, 0);
    while (connection.acknowledged < 1 + REQUEST_SIZE) {
        if (!step("tcp-rtt"))
            return;
    }
    uint64_t begin = now_ns();
    for (; now_ns() - begin < ms * MILLISECOND; rounds++) {
        connection_queue(&connection, 1);
        while (connection_received(&connection) <= rounds) {
            if (!step("tcp-rtt"))
                return;
        }
    }
    uint64_t end = now_ns();
    if (!finish("tcp-rtt"))
        return;
    ok("tcp-rtt");
    cost("tcp-rtt", (end - begin) / rounds);
}

static void check_connections(uint64_t ms)
{
    uint64_t rounds = 0, begin = now_ns();

    for (; now_ns() - begin < ms * MILLISECOND; rounds++) {
        open_for(OP_ONE, rounds);
        while (!connection.peer_ended) {
            if (!step("tcp-connection"))
                return;
        }
        if (!finish("tcp-connection"))
            return;
        if (connection_received(&connection) != 1 || connection.reply[0] != (uint8_t)rounds) {
            not_ok("tcp-connection", "a wrong answer at connection %lu", rounds);
            return;
        }
    }
    ok("tcp-connection");
    cost("tcp-connection", (now_ns() - begin) / rounds);
}

static uint64_t number_at(const uint8_t *bytes)
{
    uint64_t number;

    memcpy(&number, bytes, sizeof(number));
    return number;
}

static void tell_rate(const char *name, uint64_t bytes, uint64_t time_ns)
{
    if (bytes >= MIB)
        cost(name, time_ns * 1024 / (bytes / 1024));
}

/* passt of Debian 12 keeps the server's FIN to itself when ours came first, and is at a loss when it
 * is reset then: such a connection is left as it is. */
static void leave(void)
{
    struct deadline deadline = deadline_in(GRACE);

    while (!connection_done(&connection) && !deadline_over(&deadline))
        (void)connection_poll(&connection);
    connection.state = CLOSED;
}

/* The server tells in the end how many bytes came, and how many were wrong. Our FIN waits until all
 * is acknowledged: that passt takes it for the end though data before it are missing. */
static void check_send(uint64_t ms, uint64_t bytes)
{
    uint64_t begin = now_ns(), queued = bytes;

    open_for(OP_SINK, 0);
    connection_queue(&connection, bytes);
    while (ms != 0 && now_ns() - begin < ms * MILLISECOND) {
        if (queued - connection_acknowledged(&connection) < PIECE) {
            connection_queue(&connection, PIECE);
            queued += PIECE;
        }
        if (!step("tcp-send"))
            return;
    }
    if (ms != 0) { /* what was not sent yet is not wanted */
        connection.queued = connection.highest;
        queued = connection.queued - 1 - REQUEST_SIZE;
    }
    while (connection_received(&connection) < REQUEST_SIZE) {
        if (!connection.ending && connection.acknowledged == connection.queued)
            connection_end(&connection);
        if (!step("tcp-send"))
            return;
    }
    uint64_t end = now_ns(), came = number_at(connection.reply);
    uint64_t wrong = number_at(connection.reply + 8);
    leave();
    if (!check(came == queued && wrong == 0, "tcp-send", "%lu of %lu bytes came, %lu wrong", came,
               queued, wrong))
        return;
    tell_rate("tcp-send-mib", queued, end - begin);
    tell_gap("tcp-send-gap");
}

static void check_receive(uint64_t ms, uint64_t bytes)
{
    uint64_t begin = now_ns();

    open_for(ms != 0 ? OP_SOURCE_FOR : OP_SOURCE, ms != 0 ? ms : bytes);
    while (!connection.peer_ended) {
        if (!step("tcp-receive"))
            return;
    }
    uint64_t end = now_ns(), came = connection_received(&connection);
    if (!finish("tcp-receive"))
        return;
    if (!check((ms != 0 ? came > 0 : came == bytes) && connection.wrong == 0, "tcp-receive",
               "%lu bytes came, %lu of them wrong", came, connection.wrong))
        return;
    tell_rate("tcp-receive-mib", came, end - begin);
    tell_gap("tcp-receive-gap");
}

static void do_all(void)
{
    uint64_t ms;

    if ((ms = arg_number("rtt", 0)) != 0) {
        print("begin rtt\n");
        check_rtt(ms);
    }
    if ((ms = arg_number("connections", 0)) != 0) {
        print("begin connections\n");
        check_connections(ms);
    }
    if (arg_present("send") || arg_present("send-bytes")) {
        print("begin send\n");
        check_send(arg_number("send", 0), arg_number("send-bytes", 0));
    }
    if (arg_present("receive") || arg_present("receive-bytes")) {
        print("begin receive\n");
        check_receive(arg_number("receive", 0), arg_number("receive-bytes", 0));
    }
}

int main(const struct boot_info *info)
{
    uint32_t gateway = ip_argument("gateway", 0);
    uint64_t rounds = arg_number("rounds", 1);

    (void)info;
    pci_init();
    if (!check(nic_start(arg_present("plain") ? WITHOUT_OFFLOADS : FEATURES,
                         (uint32_t)arg_number("buffer", PAGE_SIZE)),
               "start", "the card does not start"))
        return 0;
    to = ip_argument("to", gateway);
    port = (uint16_t)arg_number("port", 5001);
    limit_ns = arg_number("limit", 30) * SECOND;
    connection_start((uint32_t)arg_number("window", WINDOW),
                     nic_mtu((uint32_t)arg_number("mtu", 1500)));
    ip_start(ip_argument("address", 0), gateway);
    if (!check(ip_resolve(to, mac), "arp", "nobody answers"))
        return 0;
    print("note: checksums %s, large segments out %s, in %s\n",
          nic_has(F_CSUM) ? "left out" : "made", nic_has(F_HOST_TSO4) ? "yes" : "no",
          nic_has(F_GUEST_TSO4) ? "yes" : "no");
    for (uint64_t round = 0; round < rounds; round++)
        do_all();
    return 0;
}
