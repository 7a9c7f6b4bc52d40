/*
 * Announcements: RARP, gratuitous ARP, unsolicited neighbour advertisements, on a schedule; the guest is asked
 * for its own each time.
 *
 * Does not know who saw the addresses (the switch) nor that a guest migrated (the machine). The
 * schedule is QEMU's: at once, then after growing pauses. The loop's thread of the wire; no locks.
 * Texts: RFC 903 (RARP), RFC 826 and RFC 5227 §3 (ARP announcements), RFC 4861 §4.4 and §7.2.6
 * (neighbour advertisements), RFC 4443 §2.3 (their checksum), IEEE 802.1Q §9.6 (tags).
 */
#include "net/announce.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "net/port.h"
#include "vmm/util/loop.h"

#define NS_PER_MS 1000000ull
#define FRAME_BYTES 60 /* the shortest on a wire, without FCS */

#define TYPE_ARP 0x0806
#define TYPE_RARP 0x8035
#define TYPE_VLAN 0x8100
#define TYPE_IPV4 0x0800
#define TYPE_IPV6 0x86DD
#define ARP_REQUEST 1
#define RARP_REQUEST 3
#define ICMPV6 58
#define NEIGHBOUR_ADVERTISEMENT 136
#define OVERRIDE 0x20 /* in the first of its flags' four bytes */
#define TARGET_LINK_ADDRESS 2

struct announcer {
    struct loop *loop;
    struct net_port *port;
    struct loop_timer timer;
    uint64_t begun_ns;
    unsigned number; /* of the announcement that is due next */
    void (*ask)(void *opaque);
    void *opaque;
    uint8_t mac[6];
    unsigned n;
    struct switch_address addresses[]; /* n */
};

uint64_t announce_delay(unsigned number)
{
    static const uint64_t ms[ANNOUNCE_TIMES] = {0, 50, 200, 450, 800};

    return ms[number] * NS_PER_MS;
}

/* ---- frames ---- */

static uint8_t *put_16(uint8_t *to, unsigned value)
{
    to[0] = (uint8_t)(value >> 8);
    to[1] = (uint8_t)value;
    return to + 2;
}

static uint8_t *put(uint8_t *to, const void *from, size_t length)
{
    memcpy(to, from, length);
    return to + length;
}

static uint8_t *put_header(uint8_t *to, const uint8_t destination[6], const uint8_t source[6],
                           uint16_t vlan, unsigned type)
{
    to = put(put(to, destination, 6), source, 6);
    if (vlan)
        to = put_16(put_16(to, TYPE_VLAN), vlan);
    return put_16(to, type);
}

static const uint8_t everybody[6] = {0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};
static const uint8_t nobody[6];

/* ARP and RARP share their layout (RFC 826, "Packet format"). */
static size_t make_arp(uint8_t *frame, unsigned type, unsigned operation,
                       const struct switch_address *about, const uint8_t target[6])
{
    uint8_t *at;

    memset(frame, 0, FRAME_BYTES + 4);
    at = put_header(frame, everybody, about->mac, about->vlan, type);
    at = put_16(put_16(at, 1 /* Ethernet */), TYPE_IPV4);
    at = put(at, (const uint8_t[]){6, 4}, 2);
    at = put_16(at, operation);
    at = put(put(at, about->mac, 6), about->bytes, 4);
    (void)put(put(at, target, 6), about->bytes, 4);
    return about->vlan ? FRAME_BYTES + 4 : FRAME_BYTES;
}

size_t announce_rarp(uint8_t frame[ANNOUNCE_FRAME_MAX], const uint8_t mac[6], uint16_t vlan)
{
    struct switch_address about = {.vlan = vlan}; /* its IP address is what RARP asks for: 0 */

    memcpy(about.mac, mac, sizeof(about.mac));
    return make_arp(frame, TYPE_RARP, RARP_REQUEST, &about, mac);
}

/* RFC 1071 over the pseudo-header (RFC 8200 §8.1) and the message. */
static unsigned checksum(const uint8_t *ip, const uint8_t *message, size_t length)
{
    uint32_t sum = ICMPV6 + (uint32_t)length;

    for (size_t i = 8; i < 40; i += 2) /* both addresses */
        sum += (uint32_t)(ip[i] << 8 | ip[i + 1]);
    for (size_t i = 0; i < length; i += 2)
        sum += (uint32_t)(message[i] << 8 | message[i + 1]);
    while (sum >> 16)
        sum = (sum & 0xFFFF) + (sum >> 16);
    return ~sum & 0xFFFF;
}

static size_t make_advertisement(uint8_t *frame, const struct switch_address *about)
{
    static const uint8_t all_nodes_mac[6] = {0x33, 0x33, 0, 0, 0, 1};
    static const uint8_t all_nodes[16] = {0xFF, 0x02, [15] = 1};
    const uint8_t length = 32; /* of the message: 24 and an option of 8 */
    uint8_t *ip = put_header(frame, all_nodes_mac, about->mac, about->vlan, TYPE_IPV6), *message, *at;

    /* RFC 8200 §3; hop limit 255, RFC 4861 §7.1.2. */
    at = put(ip, (const uint8_t[]){0x60, 0, 0, 0, 0, length, ICMPV6, 255}, 8);
    message = put(put(at, about->bytes, 16), all_nodes, 16);
    at = put(message, (const uint8_t[]){NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0}, 8);
    at = put(at, about->bytes, 16);
    at = put(at, (const uint8_t[]){TARGET_LINK_ADDRESS, 1}, 2);
    at = put(at, about->mac, 6);
    (void)put_16(message + 2, checksum(ip, message, length));
    return (size_t)(at - frame);
}

size_t announce_address(uint8_t frame[ANNOUNCE_FRAME_MAX], const struct switch_address *address)
{
    if (address->family == 6)
        return make_advertisement(frame, address);
    return make_arp(frame, TYPE_ARP, ARP_REQUEST, address, nobody);
}

/* ---- sending ---- */

static void send_frame(struct announcer *a, uint8_t *bytes, size_t length)
{
    const struct iovec piece = {bytes, length};
    const struct net_frame frame = {.iov = &piece, .iovcnt = 1, .length = length};

    if (net_port_send(a->port, &frame, 1) == 0)
        net_port_drop(a->port, 1);
}

/* Whether an address before it has its MAC in its VLAN. */
static bool was_told(const struct announcer *a, unsigned index)
{
    const struct switch_address *it = &a->addresses[index];

    if (it->vlan == 0 && memcmp(it->mac, a->mac, 6) == 0)
        return true;
    for (unsigned i = 0; i < index; i++)
        if (a->addresses[i].vlan == it->vlan && memcmp(a->addresses[i].mac, it->mac, 6) == 0)
            return true;
    return false;
}

static void announce(struct announcer *a)
{
    uint8_t frame[ANNOUNCE_FRAME_MAX];

    send_frame(a, frame, announce_rarp(frame, a->mac, 0));
    for (unsigned i = 0; i < a->n; i++) {
        if (!was_told(a, i))
            send_frame(a, frame, announce_rarp(frame, a->addresses[i].mac, a->addresses[i].vlan));
        send_frame(a, frame, announce_address(frame, &a->addresses[i]));
    }
    net_port_flush(a->port);
}

static void announce_next(struct announcer *a)
{
    announce(a);
    a->ask(a->opaque);
    if (++a->number < ANNOUNCE_TIMES)
        loop_timer_set(a->loop, &a->timer, a->begun_ns + announce_delay(a->number));
}

static void expired(struct loop_timer *timer)
{
    announce_next((struct announcer *)((char *)timer - offsetof(struct announcer, timer)));
}

int announcer_create(struct announcer **out, struct loop *loop, struct net_port *port,
                     const uint8_t mac[6], const struct switch_address *addresses, unsigned n,
                     void (*ask)(void *opaque), void *opaque)
{
    struct announcer *a = calloc(1, sizeof(*a) + n * sizeof(a->addresses[0]));

    if (!a)
        return -ENOMEM;
    a->loop = loop;
    a->port = port;
    a->timer.expired = expired;
    a->begun_ns = loop_now_ns();
    memcpy(a->mac, mac, sizeof(a->mac));
    a->ask = ask;
    a->opaque = opaque;
    a->n = n;
    if (n > 0)
        memcpy(a->addresses, addresses, n * sizeof(*addresses));
    announce_next(a);
    *out = a;
    return 0;
}

void announcer_destroy(struct announcer *a)
{
    if (!a)
        return;
    loop_timer_cancel(&a->timer);
    free(a);
}
