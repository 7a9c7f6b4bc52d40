/*
 * net: a driver of virtio-net with just enough of ARP, IPv4, DHCP, ICMP and UDP to take a lease and
 * talk to the gateway.
 *
 * Parameters: `nic=N` (the Nth, from 0), `nics=N` (how many there must be), `mac=ADDRESS` (which
 * it must have), `udp=PORT` (a UDP echo answers at the gateway's address and this port),
 * `tcp=PORT` (there a server sends `bytes=N` to who connects, and ends),
 * `pings=N`, `address=A` with `gateway=A` (in place of a lease; numbers, the first octet highest).
 * Everything is done several times: plain rings, indirect descriptors and event index,
 * mergeable receive buffers smaller than a frame, packed rings, interrupts.
 * Knows no fragments, no options in IPv4, no IPv6.
 * Texts: virtio 1.2, 5.1; RFC 826 (ARP), 791 (IPv4), 792 (ICMP), 768 (UDP), 2131 and 2132 (DHCP).
 */
#include <stddef.h>

#include "apic.h"
#include "boot.h"
#include "cpu.h"
#include "io.h"
#include "memory.h"
#include "packet.h"
#include "pci.h"
#include "print.h"
#include "timing.h"
#include "verdict.h"
#include "virtio.h"

#define LIMIT        (5 * SECOND)
#define RETRIES      5
#define RX_BUFFERS   32
#define RX_SIZE      2048
#define SMALL_SIZE   128
#define FRAME_MAX    1514
#define RX_VECTOR    0x72

#define DHCP_SERVER  67
#define DHCP_CLIENT  68
#define DHCP_COOKIE  0x63825363
#define DHCP_DISCOVER 1
#define DHCP_OFFER   2
#define DHCP_REQUEST 3
#define DHCP_ACK     5
#define OPTION_MASK    1
#define OPTION_ROUTER  3
#define OPTION_DNS     6
#define OPTION_ADDRESS 50
#define OPTION_LEASE   51
#define OPTION_TYPE    53
#define OPTION_SERVER  54
#define OPTION_WANTED  55
#define OPTION_END     255
#define LOCAL_PORT     40000

struct dhcp {
    uint8_t operation, hardware, hardware_length, hops;
    uint32_t transaction;
    uint16_t seconds, flags;
    uint32_t client, yours, server, relay;
    uint8_t client_mac[16];
    uint8_t server_name[64];
    uint8_t file[128];
    uint32_t cookie;
    uint8_t options[60];
} __attribute__((packed));
_Static_assert(sizeof(struct dhcp) == 300, "RFC 2131, 2: 240 bytes and options");

/* What the lease says; addresses as on the wire. */
struct lease {
    uint32_t address, mask, router, dns, server;
    uint32_t seconds;
};

static struct virtio_device nic;
static struct virtqueue receive, transmit;
static uint8_t mac[6];
static uint8_t gateway_mac[6];
static struct lease lease;
static uint8_t *rx_memory;
static uint32_t rx_size;
static uint8_t *tx_frame;
static uint8_t frame[0x10000 + 64]; /* the last one received */
static const uint8_t broadcast[6] = { 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF };

static uint32_t sum_bytes(const void *data, uint32_t length, uint32_t sum)
{
    const uint8_t *bytes = data;

    for (uint32_t i = 0; i < length; i++)
        sum += (i & 1) == 0 ? (uint32_t)bytes[i] << 8 : bytes[i];
    return sum;
}

/* RFC 1071, in network order. */
static uint16_t fold(uint32_t sum)
{
    while (sum >> 16 != 0)
        sum = (sum & 0xFFFF) + (sum >> 16);
    return swap16((uint16_t)~sum);
}

/* ---- the device ---- */

static void give_buffer(unsigned index)
{
    struct buffer buffer = { rx_memory + index * RX_SIZE, rx_size, true };

    virtqueue_add(&receive, &buffer, 1, (void *)(uintptr_t)(index + 1));
}

static bool start(uint64_t features, bool interrupts)
{
    uint16_t entry = interrupts ? 1 : VIRTIO_NO_VECTOR;

    if (!virtio_negotiate(&nic, features))
        return false;
    if (interrupts) {
        pci_msix_enable(&nic.pci, true, false);
        pci_msix_route(&nic.pci, 1, cpu_this()->apic_id, RX_VECTOR);
    }
    if (!virtio_queue_setup(&nic, &receive, 0, 0, entry) ||
        !virtio_queue_setup(&nic, &transmit, 1, 0, VIRTIO_NO_VECTOR))
        return false;
    virtio_driver_ok(&nic);
    for (unsigned i = 0; i < RX_BUFFERS; i++)
        give_buffer(i);
    virtqueue_want_interrupt(&receive, interrupts);
    virtqueue_kick(&receive);
    for (unsigned i = 0; i < 6; i++)
        mac[i] = mmio_read8(nic.config + i);
    return true;
}

/* Sends the frame of length bytes that stands in tx_frame behind a header. */
static bool send_frame(uint32_t length)
{
    struct buffer buffer = { tx_frame, (uint32_t)sizeof(struct net_header) + length, false };

    memset(tx_frame, 0, sizeof(struct net_header));
    return virtqueue_request(&transmit, &buffer, 1, LIMIT) >= 0;
}

/* Copies one used buffer behind what frame holds already; the bytes copied. */
static uint32_t take_piece(void *cookie, uint32_t length, uint32_t at)
{
    unsigned index = (unsigned)(uintptr_t)cookie - 1;

    if (index >= RX_BUFFERS || length > rx_size) {
        not_ok("receive", "buffer %u came back with %u bytes of %u", index, length, rx_size);
        return 0;
    }
    if (at + length <= sizeof(frame))
        memcpy(frame + at, rx_memory + index * RX_SIZE, length);
    give_buffer(index);
    return length;
}

/* The next frame into `frame` (behind its header); its length, or 0 when the deadline comes. */
static uint32_t next_frame(const struct deadline *deadline)
{
    uint32_t length, total = 0;
    uint16_t buffers = 1;
    void *cookie;

    for (uint16_t i = 0; i < buffers; i++) {
        while (!virtqueue_take(&receive, &cookie, &length)) {
            if (deadline_over(deadline))
                return 0;
            cpu_pause();
        }
        total += take_piece(cookie, length, total);
        if (i == 0)
            buffers = ((const struct net_header *)frame)->buffers;
    }
    virtqueue_kick(&receive);
    virtqueue_want_interrupt(&receive, true);
    return total > sizeof(struct net_header) ? total - (uint32_t)sizeof(struct net_header) : 0;
}

/* ---- the protocols ---- */

static struct ether *put_ether(const uint8_t *to, uint16_t type)
{
    struct ether *ether = (struct ether *)(tx_frame + sizeof(struct net_header));

    memcpy(ether->to, to, 6);
    memcpy(ether->from, mac, 6);
    ether->type = swap16(type);
    return ether;
}

static struct ip *put_ip(struct ether *ether, uint8_t protocol, uint32_t to, uint32_t payload)
{
    struct ip *ip = (struct ip *)(ether + 1);

    *ip = (struct ip){ .version_length = 0x45, .ttl = 64, .protocol = protocol, .to = to };
    ip->from = lease.address;
    ip->length = swap16((uint16_t)(sizeof(*ip) + payload));
    ip->checksum = fold(sum_bytes(ip, sizeof(*ip), 0));
    return ip;
}

static bool send_udp(const uint8_t *to_mac, uint32_t to, uint16_t from_port, uint16_t to_port,
                     const void *data, uint32_t length)
{
    struct ether *ether = put_ether(to_mac, ETHER_IPV4);
    struct ip *ip = put_ip(ether, IP_UDP, to, (uint32_t)sizeof(struct udp) + length);
    struct udp *udp = (struct udp *)(ip + 1);

    *udp = (struct udp){ .from = swap16(from_port), .to = swap16(to_port) };
    udp->length = swap16((uint16_t)(sizeof(*udp) + length));
    memcpy(udp + 1, data, length);
    uint32_t sum = sum_bytes(&ip->from, 8, IP_UDP + sizeof(*udp) + length);
    udp->checksum = fold(sum_bytes(udp, (uint32_t)sizeof(*udp) + length, sum));
    return send_frame((uint32_t)(sizeof(*ether) + sizeof(*ip) + sizeof(*udp)) + length);
}

static const struct ether *received(void)
{
    return (const struct ether *)(frame + sizeof(struct net_header));
}

/* Of an IPv4 packet in `frame` with this protocol: its header; else NULL. */
static const struct ip *received_ip(uint32_t length, uint8_t protocol)
{
    const struct ip *ip = (const struct ip *)(received() + 1);

    if (length < sizeof(struct ether) + sizeof(*ip) || received()->type != swap16(ETHER_IPV4) ||
        ip->version_length != 0x45 || ip->protocol != protocol)
        return NULL;
    if (fold(sum_bytes(ip, sizeof(*ip), 0)) != 0 ||
        swap16(ip->length) > length - sizeof(struct ether)) {
        not_ok("ip", "a packet with a wrong checksum or length came");
        return NULL;
    }
    return ip;
}

/* Waits for UDP to local port; its data and *length, or NULL in the end. */
static const void *receive_udp(uint16_t port, uint32_t *length)
{
    struct deadline deadline = deadline_in(LIMIT);

    for (;;) {
        uint32_t got = next_frame(&deadline);
        if (got == 0)
            return NULL;
        const struct ip *ip = received_ip(got, IP_UDP);
        const struct udp *udp = (const struct udp *)(ip + 1);
        if (ip == NULL || udp->to != swap16(port) || swap16(udp->length) < sizeof(*udp))
            continue;
        *length = swap16(udp->length) - (uint32_t)sizeof(*udp);
        return udp + 1;
    }
}

static uint8_t *put_option(uint8_t *at, uint8_t code, uint8_t length, const void *value)
{
    *at++ = code;
    *at++ = length;
    memcpy(at, value, length);
    return at + length;
}

static bool send_dhcp(uint8_t type, const struct lease *offer)
{
    static const uint8_t wanted[] = { OPTION_MASK, OPTION_ROUTER, OPTION_DNS, OPTION_LEASE };
    struct dhcp message = { .operation = 1, .hardware = 1, .hardware_length = 6 };
    uint8_t *at = message.options;

    message.transaction = 0x46455252;
    message.flags = swap16(0x8000); /* answer by broadcast: there is no address yet */
    message.cookie = swap32(DHCP_COOKIE);
    memcpy(message.client_mac, mac, 6);
    at = put_option(at, OPTION_TYPE, 1, &type);
    if (offer != NULL) {
        at = put_option(at, OPTION_ADDRESS, 4, &offer->address);
        at = put_option(at, OPTION_SERVER, 4, &offer->server);
    }
    at = put_option(at, OPTION_WANTED, sizeof(wanted), wanted);
    *at = OPTION_END;
    return send_udp(broadcast, 0xFFFFFFFF, DHCP_CLIENT, DHCP_SERVER, &message, sizeof(message));
}

static void take_option(struct lease *from, uint8_t *type, const uint8_t *option)
{
    const uint8_t *value = option + 2;

    if (option[0] == OPTION_TYPE)
        *type = value[0];
    if (option[1] < 4)
        return;
    if (option[0] == OPTION_MASK)
        memcpy(&from->mask, value, 4);
    else if (option[0] == OPTION_ROUTER)
        memcpy(&from->router, value, 4);
    else if (option[0] == OPTION_DNS)
        memcpy(&from->dns, value, 4);
    else if (option[0] == OPTION_SERVER)
        memcpy(&from->server, value, 4);
    else if (option[0] == OPTION_LEASE)
        memcpy(&from->seconds, value, 4);
}

/* One message there and its answer of type want back. */
static bool ask_dhcp(uint8_t send, const struct lease *offer, uint8_t want, struct lease *answer)
{
    uint32_t length;
    uint8_t type = 0;

    if (!send_dhcp(send, offer))
        return false;
    const struct dhcp *message = receive_udp(DHCP_CLIENT, &length);
    if (message == NULL || length < 240 || message->cookie != swap32(DHCP_COOKIE) ||
        memcmp(message->client_mac, mac, 6) != 0)
        return false;
    *answer = (struct lease){ .address = message->yours };
    const uint8_t *at = message->options;
    const uint8_t *end = (const uint8_t *)message + length;
    while (at + 1 < end && *at != OPTION_END) {
        if (*at == 0) {
            at++;
            continue;
        }
        if (at + 2 + at[1] > end)
            break;
        take_option(answer, &type, at);
        at += 2 + at[1];
    }
    return type == want;
}

static void print_address(const char *name, uint32_t address)
{
    print(" %s %u.%u.%u.%u", name, address & 0xFF, address >> 8 & 0xFF, address >> 16 & 0xFF,
          address >> 24);
}

static bool take_lease(void)
{
    struct lease offer, granted;

    lease = (struct lease){ 0 };
    if (arg_present("address")) {
        lease.address = swap32((uint32_t)arg_number("address", 0));
        lease.router = swap32((uint32_t)arg_number("gateway", 0));
        return true;
    }
    for (unsigned try = 0; try < RETRIES; try++) {
        if (!ask_dhcp(DHCP_DISCOVER, NULL, DHCP_OFFER, &offer) ||
            !ask_dhcp(DHCP_REQUEST, &offer, DHCP_ACK, &granted))
            continue;
        lease = granted;
        print("lease");
        print_address("address", lease.address);
        print_address("mask", lease.mask);
        print_address("router", lease.router);
        print_address("dns", lease.dns);
        print(" seconds %u\n", swap32(lease.seconds));
        return lease.address != 0 && lease.router != 0;
    }
    return false;
}

/* Asks all who has the gateway's address. */
static bool send_arp(void)
{
    struct ether *ether = put_ether(broadcast, ETHER_ARP);
    struct arp *arp = (struct arp *)(ether + 1);

    *arp = (struct arp){ swap16(1), swap16(ETHER_IPV4), 6, 4, swap16(1), { 0 },
                         lease.address, { 0 }, lease.router };
    memcpy(arp->sender_mac, mac, 6);
    return send_frame(sizeof(*ether) + sizeof(*arp));
}

static bool resolve_gateway(void)
{
    for (unsigned try = 0; try < RETRIES; try++) {
        struct deadline deadline = deadline_in(LIMIT);
        uint32_t length;

        if (!send_arp())
            return false;
        while ((length = next_frame(&deadline)) != 0) {
            const struct arp *reply = (const struct arp *)(received() + 1);
            if (length < sizeof(struct ether) + sizeof(*reply) ||
                received()->type != swap16(ETHER_ARP) || reply->operation != swap16(2) ||
                reply->sender_ip != lease.router)
                continue;
            memcpy(gateway_mac, reply->sender_mac, 6);
            return true;
        }
    }
    return false;
}

/* Whether an interrupt comes. Who polls may be so fast that none is due; so this waits for the answer
 * to a question without looking at the queue. */
static bool is_interrupted(void)
{
    for (unsigned try = 0; try < RETRIES && irq_count(RX_VECTOR) == 0; try++) {
        struct deadline deadline = deadline_in(LIMIT);

        if (!send_arp())
            return false;
        while (irq_count(RX_VECTOR) == 0 && !deadline_over(&deadline))
            cpu_pause();
    }
    return irq_count(RX_VECTOR) > 0;
}

static bool ping(uint16_t sequence, uint32_t size)
{
    struct ether *ether = put_ether(gateway_mac, ETHER_IPV4);
    struct ip *ip = put_ip(ether, IP_ICMP, lease.router, (uint32_t)sizeof(struct icmp) + size);
    struct icmp *icmp = (struct icmp *)(ip + 1);
    struct deadline deadline = deadline_in(LIMIT);
    uint32_t length;

    *icmp = (struct icmp){ .type = 8, .id = swap16(0x4645), .sequence = swap16(sequence) };
    for (uint32_t i = 0; i < size; i++)
        ((uint8_t *)(icmp + 1))[i] = (uint8_t)(i + sequence);
    icmp->checksum = fold(sum_bytes(icmp, (uint32_t)sizeof(*icmp) + size, 0));
    if (!send_frame((uint32_t)(sizeof(*ether) + sizeof(*ip) + sizeof(*icmp)) + size))
        return false;
    while ((length = next_frame(&deadline)) != 0) {
        const struct ip *reply_ip = received_ip(length, IP_ICMP);
        const struct icmp *reply = (const struct icmp *)(reply_ip + 1);
        if (reply_ip == NULL || reply->type != 0 || reply->sequence != swap16(sequence))
            continue;
        if (swap16(reply_ip->length) != sizeof(*ip) + sizeof(*reply) + size)
            return false;
        return memcmp(reply + 1, icmp + 1, size) == 0;
    }
    return false;
}

static void check_pings(void)
{
    static const uint32_t sizes[] = { 0, 1, 56, 1000, 1472 };
    uint64_t rounds = arg_number("pings", 50);

    for (unsigned i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        if (!ping((uint16_t)i, sizes[i])) {
            not_ok("ping", "no right answer with %u bytes", sizes[i]);
            return;
        }
    }
    ok("ping");
    uint64_t begin = now_ns();
    for (uint64_t i = 0; i < rounds; i++) {
        if (!ping((uint16_t)(100 + i), 56)) {
            not_ok("ping-many", "number %lu has no answer", i);
            return;
        }
    }
    ok("ping-many");
    if (rounds > 0)
        cost("net-ping", (now_ns() - begin) / rounds);
}

/* Datagrams of several sizes to a server on the host, by the gateway's address, and back. */
static void check_udp(uint16_t port)
{
    static const uint32_t sizes[] = { 1, 100, 1472 };
    static uint8_t data[1472];

    for (unsigned i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        uint32_t length;
        for (uint32_t at = 0; at < sizes[i]; at++)
            data[at] = (uint8_t)(at * 31 + i);
        if (!send_udp(gateway_mac, lease.router, LOCAL_PORT, port, data, sizes[i])) {
            not_ok("udp", "%u bytes cannot be sent", sizes[i]);
            return;
        }
        const void *back = receive_udp(LOCAL_PORT, &length);
        if (back == NULL || length != sizes[i] || memcmp(back, data, length) != 0) {
            not_ok("udp", "%u bytes do not come back from port %u", sizes[i], port);
            return;
        }
    }
    ok("udp");
}

/* ---- a stream of bytes from the host ---- */

static bool send_tcp(uint16_t port, uint8_t flags, uint32_t sequence, uint32_t acknowledged)
{
    struct ether *ether = put_ether(gateway_mac, ETHER_IPV4);
    struct ip *ip = put_ip(ether, IP_TCP, lease.router, sizeof(struct tcp));
    struct tcp *tcp = (struct tcp *)(ip + 1);

    *tcp = (struct tcp){ .from = swap16(LOCAL_PORT), .to = swap16(port), .offset = 0x50,
                         .flags = flags, .window = swap16(48000) };
    tcp->sequence = swap32(sequence);
    tcp->acknowledged = swap32(acknowledged);
    tcp->checksum = fold(sum_bytes(tcp, sizeof(*tcp),
                                   sum_bytes(&ip->from, 8, IP_TCP + sizeof(*tcp))));
    return send_frame((uint32_t)(sizeof(*ether) + sizeof(*ip) + sizeof(*tcp)));
}

/* The next segment of the connection and how many bytes it carries; NULL in the end. */
static const struct tcp *receive_tcp(uint16_t port, uint32_t *length)
{
    struct deadline deadline = deadline_in(LIMIT);
    uint32_t got;

    while ((got = next_frame(&deadline)) != 0) {
        const struct ip *ip = received_ip(got, IP_TCP);
        const struct tcp *tcp = (const struct tcp *)(ip + 1);
        if (ip == NULL || tcp->from != swap16(port) || tcp->to != swap16(LOCAL_PORT))
            continue;
        *length = swap16(ip->length) - (uint32_t)sizeof(*ip) - (tcp->offset >> 4) * 4u;
        return tcp;
    }
    return NULL;
}

/* Takes in what a server sends until it ends: bytes that tell their place. False when anything is
 * missing. */
static bool take_stream(uint16_t port, uint32_t sequence, uint32_t first, uint32_t *taken,
                        unsigned *large)
{
    uint32_t length;
    const struct tcp *tcp;

    while ((tcp = receive_tcp(port, &length)) != NULL && (tcp->flags & TCP_RST) == 0) {
        const uint8_t *data = (const uint8_t *)tcp + (tcp->offset >> 4) * 4u;
        bool next = swap32(tcp->sequence) == first + *taken;
        *large += next && ((const struct net_header *)frame)->gso_type != 0;
        for (uint32_t i = 0; next && i < length; i++, ++*taken) {
            if (data[i] != (uint8_t)(*taken * 7 + (*taken >> 8)))
                return false;
        }
        bool end = next && (tcp->flags & TCP_FIN) != 0;
        if ((length != 0 || end) && !send_tcp(port, TCP_ACK, sequence, first + *taken + end))
            return false;
        if (end)
            return true;
    }
    return false;
}

static void check_tcp(uint16_t port, uint64_t bytes)
{
    static uint32_t sequence;
    uint32_t length, taken = 0;
    unsigned large = 0;

    sequence += 1000000;
    const struct tcp *tcp = send_tcp(port, TCP_SYN, sequence, 0) ? receive_tcp(port, &length) : NULL;
    if (tcp == NULL || tcp->flags != (TCP_SYN | TCP_ACK)) {
        not_ok("tcp-connect", "port %u does not answer", port);
        return;
    }
    uint32_t first = swap32(tcp->sequence) + 1;
    uint64_t begin = now_ns();
    send_tcp(port, TCP_ACK, ++sequence, first);
    bool good = take_stream(port, sequence, first, &taken, &large);
    check(good && taken == bytes, "tcp", "%u bytes of %lu came", taken, bytes);
    send_tcp(port, TCP_RST | TCP_ACK, sequence, first + taken + 1);
    if (taken > 0)
        cost("net-tcp-mib", (now_ns() - begin) / (taken / 1048576 + 1));
    check(((nic.features & F_GUEST_TSO4) != 0) == (large > 0), "tcp-large", "%u large segments",
          large);
}

static void check_mac(void)
{
    char wanted[18], text[18];

    for (unsigned i = 0; i < 6; i++) {
        text[i * 3] = "0123456789abcdef"[mac[i] >> 4];
        text[i * 3 + 1] = "0123456789abcdef"[mac[i] & 15];
        text[i * 3 + 2] = i < 5 ? ':' : '\0';
    }
    print("mac %s\n", text);
    check((nic.features & F_MAC) != 0 && (mac[0] & 1) == 0, "mac-unicast", "%s", text);
    if (arg_text("mac", wanted, sizeof(wanted)))
        check(text_equal(text, wanted), "mac", "%s, want %s", text, wanted);
}

static void check_with(const char *name, uint64_t features, uint32_t size, bool interrupts)
{
    print("note: %s\n", name);
    rx_size = size;
    if (!check(start(F_MAC | F_STATUS | features, interrupts), name, "the device does not start"))
        return;
    check_mac();
    if (!check(take_lease(), "dhcp", "no lease") ||
        !check(resolve_gateway(), "arp", "the gateway does not answer"))
        return;
    check_pings();
    if (arg_present("udp"))
        check_udp((uint16_t)arg_number("udp", 0));
    if (arg_present("tcp"))
        check_tcp((uint16_t)arg_number("tcp", 0), arg_number("bytes", 0));
}

static void check_count(void)
{
    static struct virtio_device other;
    unsigned count = 0;

    while (virtio_open(&other, VIRTIO_NET, count))
        count++;
    if (arg_present("nics"))
        check(count == arg_number("nics", 0), "nics", "%u NICs, want %lu", count,
              arg_number("nics", 0));
}

int main(const struct boot_info *info)
{
    (void)info;
    pci_init();
    check_count();
    rx_memory = memory_alloc(RX_BUFFERS * RX_SIZE);
    tx_frame = memory_alloc(PAGE_SIZE);
    if (!check(virtio_open(&nic, VIRTIO_NET, (unsigned)arg_number("nic", 0)), "open",
               "no such virtio-net"))
        return 0;
    check_with("plain", 0, RX_SIZE, false);
    check_with("indirect-event-index", VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX, RX_SIZE,
               false);
    if ((virtio_offered(&nic) & F_MRG_RXBUF) != 0)
        check_with("mergeable", F_MRG_RXBUF | VIRTIO_F_EVENT_IDX, SMALL_SIZE, false);
    check_with("large", F_MRG_RXBUF | F_GUEST_CSUM | F_GUEST_TSO4 | VIRTIO_F_EVENT_IDX, RX_SIZE,
               false);
    if ((virtio_offered(&nic) & VIRTIO_F_RING_PACKED) != 0) {
        check_with("packed", VIRTIO_F_RING_PACKED, RX_SIZE, false);
        check_with("packed-mergeable",
                   VIRTIO_F_RING_PACKED | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX | F_MRG_RXBUF,
                   SMALL_SIZE, false);
    }
    irq_enable();
    check_with("packed-interrupts", VIRTIO_F_RING_PACKED | VIRTIO_F_EVENT_IDX, RX_SIZE, true);
    check_with("interrupts", VIRTIO_F_EVENT_IDX, RX_SIZE, true);
    check(is_interrupted(), "msix-interrupt", "none came");
    irq_disable();
    check(virtio_reset(&nic), "reset", "the status does not return to 0");
    return 0;
}
