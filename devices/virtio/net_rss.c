/*
 * Flows of frames and their hashes.
 *
 * Chooses no queue and keeps no configuration: net.c and net_rx.c do. The bytes are a copy, for the
 * frame may lie in memory that changes. No state but what callers hold.
 *
 * Texts: virtio 1.2 §5.1.6.4.3 (hash calculation); the Toeplitz hash as of Microsoft's "RSS hashing
 * functions"; RFC 791 §3.1, RFC 8200 §4, RFC 6275 §6.3, §6.4 (addresses of mobile nodes); IEEE 802.1Q.
 */
#include "devices/virtio/net_rss.h"

#include <linux/virtio_net.h>
#include <netinet/in.h>
#include <string.h>

#define ETHER_TYPE 12u
#define TYPE_IPV4 0x0800u
#define TYPE_IPV6 0x86DDu
#define TYPE_VLAN 0x8100u
#define TYPE_SERVICE_VLAN 0x88A8u
#define MAX_TAGS 2u
#define OPTION_PAD1 0u    /* RFC 8200 §4.2 */
#define OPTION_HOME 0xC9u
#define ROUTING_HOME 2u

static unsigned get16(const uint8_t *at)
{
    return (unsigned)at[0] << 8 | at[1];
}

static void add_ports(struct net_flow *flow, const uint8_t *bytes, size_t length, size_t at,
                      unsigned protocol)
{
    if ((protocol != IPPROTO_TCP && protocol != IPPROTO_UDP) || at + 4 > length)
        return;
    memcpy(flow->fields + flow->addresses, bytes + at, 4);
    flow->protocol = (uint8_t)protocol;
}

static void find_ipv4(struct net_flow *flow, const uint8_t *bytes, size_t length, size_t at)
{
    if (at + 20 > length || bytes[at] >> 4 != 4 || (bytes[at] & 15) < 5)
        return;
    memcpy(flow->fields, bytes + at + 12, 8);
    flow->addresses = 8;
    /* Of a fragmented datagram the first fragment alone has ports: none counts. */
    if ((get16(bytes + at + 6) & 0x3FFF) == 0)
        add_ports(flow, bytes, length, at + (bytes[at] & 15) * 4u, bytes[at + 9]);
}

/* RFC 6275 §6.3: the option among those of a header's `n` bytes that says who sent it. */
static void find_home(struct net_flow *flow, const uint8_t *options, size_t n)
{
    size_t at = 2;

    while (at + 2 <= n) {
        size_t length = options[at] == OPTION_PAD1 ? 1 : 2u + options[at + 1];

        if (options[at] == OPTION_HOME && length == 18 && at + length <= n) {
            memcpy(flow->mobile, options + at + 2, 16);
            return;
        }
        at += length;
    }
}

/* An extension header of `n` bytes, all of them at hand. */
static void read_extension(struct net_flow *flow, unsigned type, const uint8_t *bytes, size_t n)
{
    if (type == IPPROTO_DSTOPTS)
        find_home(flow, bytes, n);
    else if (type == IPPROTO_ROUTING && bytes[2] == ROUTING_HOME && n == 24) /* RFC 6275 §6.4 */
        memcpy(flow->mobile + 16, bytes + 8, 16);
}

static bool is_extension(unsigned type)
{
    return type == IPPROTO_HOPOPTS || type == IPPROTO_ROUTING || type == IPPROTO_DSTOPTS ||
           type == IPPROTO_FRAGMENT || type == IPPROTO_AH;
}

/* Has no ports behind a fragment's or an authentication header: as with IPv4, none count. */
static void find_ipv6(struct net_flow *flow, const uint8_t *bytes, size_t length, size_t at)
{
    unsigned next;

    if (at + 40 > length || bytes[at] >> 4 != 6)
        return;
    memcpy(flow->fields, bytes + at + 8, 32);
    flow->addresses = 32;
    next = bytes[at + 6];
    at += 40;
    flow->extended = is_extension(next);
    if (flow->extended)
        memcpy(flow->mobile, flow->fields, 32);
    while (next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS) {
        size_t n;

        if (at + 8 > length)
            return;
        n = (bytes[at + 1] + 1u) * 8;
        if (at + n <= length)
            read_extension(flow, next, bytes + at, n);
        next = bytes[at];
        at += n;
    }
    add_ports(flow, bytes, length, at, next);
}

void net_flow_find(struct net_flow *flow, const uint8_t *bytes, size_t length)
{
    size_t at = ETHER_TYPE;

    memset(flow, 0, sizeof(*flow));
    for (unsigned tags = 0; at + 2 <= length; tags++, at += 4) {
        unsigned type = get16(bytes + at);

        if (type == TYPE_IPV4)
            find_ipv4(flow, bytes, length, at + 2);
        else if (type == TYPE_IPV6)
            find_ipv6(flow, bytes, length, at + 2);
        if ((type != TYPE_VLAN && type != TYPE_SERVICE_VLAN) || tags == MAX_TAGS)
            return;
    }
}

uint32_t net_flow_symmetric(const struct net_flow *flow)
{
    unsigned half = flow->addresses / 2;
    uint32_t sum = 0;

    for (unsigned i = 0; i < half; i += 4) {
        uint32_t source, destination;

        memcpy(&source, flow->fields + i, 4);
        memcpy(&destination, flow->fields + half + i, 4);
        sum = sum * 31 + (source ^ destination);
    }
    if (flow->protocol)
        sum ^= get16(flow->fields + flow->addresses) ^ get16(flow->fields + flow->addresses + 2);
    sum *= 0x9E3779B1u; /* the golden ratio: spreads neighbours */
    return sum ^ sum >> 16;
}

/* The key's 32 bits from bit `at` on; it goes on with zeros. */
static uint32_t window(const uint8_t *key, size_t length, unsigned at)
{
    uint64_t bits = 0;

    for (unsigned i = 0; i < 5; i++)
        bits = bits << 8 | (at / 8 + i < length ? key[at / 8 + i] : 0);
    return (uint32_t)(bits >> (8 - at % 8));
}

void net_hasher_init(struct net_hasher *hasher, const uint8_t *key, size_t length)
{
    for (unsigned i = 0; i < NET_FLOW_FIELDS * 2; i++) {
        for (unsigned value = 0; value < 16; value++) {
            uint32_t part = 0;

            for (unsigned bit = 0; bit < 4; bit++)
                part ^= value & 8 >> bit ? window(key, length, i * 4 + bit) : 0;
            hasher->parts[i][value] = part;
        }
    }
}

static uint32_t hash(const struct net_hasher *hasher, const uint8_t *bytes, unsigned n)
{
    uint32_t sum = 0;

    for (unsigned i = 0; i < n; i++)
        sum ^= hasher->parts[i * 2][bytes[i] >> 4] ^ hasher->parts[i * 2 + 1][bytes[i] & 15];
    return sum;
}

/* §5.1.6.4.4: a type is 1 << (report - 1); behind each report for addresses stand those for TCP and
 * UDP. The one for this flow among `types`, or NONE. */
static unsigned choose_report(uint32_t types, const struct net_flow *flow, unsigned base)
{
    unsigned with_ports = flow->protocol == IPPROTO_TCP ? base + 1 : base + 2;

    if (flow->protocol && (types & 1u << (with_ports - 1)))
        return with_ports;
    return types & 1u << (base - 1) ? base : VIRTIO_NET_HASH_REPORT_NONE;
}

/* §5.1.6.4.3.4: of packets with extension headers, for the types that there are for these. */
static uint32_t hash_extended(const struct net_hasher *hasher, const struct net_flow *flow,
                              bool ports)
{
    uint8_t fields[NET_FLOW_FIELDS];

    memcpy(fields, flow->mobile, 32);
    memcpy(fields + 32, flow->fields + 32, 4);
    return hash(hasher, fields, ports ? 36 : 32);
}

uint32_t net_hasher_hash(const struct net_hasher *hasher, uint32_t types,
                         const struct net_flow *flow, uint16_t *report)
{
    unsigned base = flow->addresses == 32 ? VIRTIO_NET_HASH_REPORT_IPv6
                                          : VIRTIO_NET_HASH_REPORT_IPv4;
    unsigned chosen = VIRTIO_NET_HASH_REPORT_NONE;

    if (flow->extended)
        chosen = choose_report(types, flow, VIRTIO_NET_HASH_REPORT_IPv6_EX);
    *report = (uint16_t)chosen;
    if (chosen != VIRTIO_NET_HASH_REPORT_NONE)
        return hash_extended(hasher, flow, chosen != VIRTIO_NET_HASH_REPORT_IPv6_EX);
    if (flow->addresses > 0)
        chosen = choose_report(types, flow, base);
    *report = (uint16_t)chosen;
    if (chosen == VIRTIO_NET_HASH_REPORT_NONE)
        return 0;
    return hash(hasher, flow->fields, flow->addresses + (chosen == base ? 0u : 4u));
}
