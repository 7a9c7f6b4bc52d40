/*
 * Connections that are over: told from FINs and what acknowledges them, found again by a hash of
 * addresses and ports.
 *
 * Looks at plain headers only, as the library does: no tags, no fragments, no extensions of IPv6, no
 * options of IPv4. Knows no more of a connection than its two ends; where nothing ends, a frame costs
 * a look at its flags. No length is trusted. Event loop's thread; no locks; allocates nothing.
 *
 * Texts: RFC 9293 §3.1 (header), §3.3.2 (states), §3.6 (closing), §3.10.7.4 (a reset in TIME-WAIT);
 * RFC 791 §3.1, RFC 8200 §3 and §8.1 (pseudo header); tcp(7), TCP_INFO.
 */
#include "net/nat_ends.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

#include "net/bytes.h"
#include "net/offload.h"
#include "net/port.h"

#define ETHER_TYPE 12u
#define TYPE_IPV4 0x0800u
#define TYPE_IPV6 0x86DDu
#define IPV4_HEADER 20u
#define IPV6_HEADER 40u
#define TCP_HEADER 20u
#define TCP_SEQUENCE 4u
#define TCP_ACKNOWLEDGED 8u
#define TCP_OFFSET 12u
#define TCP_FLAGS 13u
#define TCP_CHECKSUM 16u
#define FLAG_FIN 0x01u
#define FLAG_SYN 0x02u
#define FLAG_RST 0x04u
#define FLAG_ACK 0x10u
#define RESET_TTL 64u
#define ADDRESS_ROOM 16u /* for each of two in a key */

/* A frame's TCP segment. */
struct segment {
    bool ipv6;
    const uint8_t *addresses; /* the source's, then the destination's */
    const uint8_t *tcp;
    uint32_t sequence, acknowledged, end; /* end: behind its data and FIN */
    uint8_t flags;
};

/* Where IP's payload begins, and how long it is; 0: there is no TCP in a frame like this. */
static unsigned find_tcp(const uint8_t *frame, size_t length, unsigned *l4_length)
{
    const uint8_t *ip = frame + NAT_FLOW_ETHER;
    unsigned type = length >= NAT_FLOW_ETHER + 40 ? get16(frame + ETHER_TYPE) : 0, l4 = 0;

    if (type == TYPE_IPV4 && ip[0] == 0x45 && ip[9] == IPPROTO_TCP && !(get16(ip + 6) & 0x3FFF) &&
        get16(ip + 2) >= IPV4_HEADER) {
        l4 = NAT_FLOW_ETHER + IPV4_HEADER;
        *l4_length = get16(ip + 2) - IPV4_HEADER;
    } else if (type == TYPE_IPV6 && ip[6] == IPPROTO_TCP) {
        l4 = NAT_FLOW_ETHER + IPV6_HEADER;
        *l4_length = get16(ip + 4);
    }
    return l4 && *l4_length >= TCP_HEADER && *l4_length <= length - l4 ? l4 : 0;
}

static bool parse(const uint8_t *frame, size_t length, struct segment *out)
{
    unsigned l4_length, l4 = find_tcp(frame, length, &l4_length);
    unsigned header = l4 ? (frame[l4 + TCP_OFFSET] >> 4) * 4u : 0;

    if (header < TCP_HEADER || header > l4_length)
        return false;
    *out = (struct segment){
        .ipv6 = l4 == NAT_FLOW_ETHER + IPV6_HEADER,
        .tcp = frame + l4,
        .sequence = get32(frame + l4 + TCP_SEQUENCE),
        .acknowledged = get32(frame + l4 + TCP_ACKNOWLEDGED),
        .flags = frame[l4 + TCP_FLAGS],
    };
    out->addresses = out->tcp - (out->ipv6 ? 32 : 8);
    out->end = out->sequence + (l4_length - header) + (out->flags & FLAG_FIN ? 1 : 0);
    return true;
}

/* The guest's address and port come first, whoever sent the segment. */
static void make_key(const struct segment *s, bool from_guest, uint8_t key[NAT_FLOW_KEY])
{
    unsigned size = s->ipv6 ? 16 : 4, guest = from_guest ? 0 : 1;

    memset(key, 0, NAT_FLOW_KEY);
    memcpy(key, s->addresses + guest * size, size);
    memcpy(key + ADDRESS_ROOM, s->addresses + !guest * size, size);
    memcpy(key + 2 * ADDRESS_ROOM, s->tcp + guest * 2, 2);
    memcpy(key + 2 * ADDRESS_ROOM + 2, s->tcp + !guest * 2, 2);
}

/* A guest's ports follow each other. */
static struct nat_flow **bucket(struct nat_ends *ends, const uint8_t key[NAT_FLOW_KEY])
{
    return &ends->buckets[get16(key + 2 * ADDRESS_ROOM) % NAT_ENDS_BUCKETS];
}

static struct nat_flow *find(struct nat_ends *ends, const struct segment *s, bool from_guest)
{
    uint8_t key[NAT_FLOW_KEY];
    struct nat_flow *flow;

    make_key(s, from_guest, key);
    for (flow = *bucket(ends, key); flow; flow = flow->next) {
        if (flow->ipv6 == s->ipv6 && memcmp(flow->key, key, NAT_FLOW_KEY) == 0)
            return flow;
    }
    return NULL;
}

bool nat_ends_open(struct nat_ends *ends, struct nat_flow *flow, int fd, const uint8_t *frame,
                   size_t length, bool from_guest)
{
    struct nat_flow **first;
    struct segment s;

    if (flow->known || !parse(frame, length, &s) || (s.flags & (FLAG_SYN | FLAG_ACK)) != FLAG_SYN)
        return false;
    *flow = (struct nat_flow){.fd = fd, .known = true, .ipv6 = s.ipv6};
    make_key(&s, from_guest, flow->key);
    memcpy(flow->ether, frame, NAT_FLOW_ETHER);
    if (!from_guest) {
        memcpy(flow->ether, frame + 6, 6);
        memcpy(flow->ether + 6, frame, 6);
    }
    first = bucket(ends, flow->key);
    flow->next = *first;
    *first = flow;
    return true;
}

static bool is_ending(const struct nat_flow *flow)
{
    return flow->library_ended || flow->guest_ended;
}

void nat_ends_forget(struct nat_ends *ends, struct nat_flow *flow)
{
    struct nat_flow **at;

    if (!flow->known)
        return;
    for (at = bucket(ends, flow->key); *at != flow; at = &(*at)->next)
        ;
    *at = flow->next;
    for (at = &ends->over; *at && *at != flow; at = &(*at)->next_over)
        ;
    if (*at)
        *at = flow->next_over;
    if (is_ending(flow))
        ends->ending--;
    *flow = (struct nat_flow){0};
}

static bool reaches(uint32_t number, uint32_t end)
{
    return (int32_t)(number - end) >= 0;
}

static void see_guest(struct nat_flow *flow, const struct segment *s)
{
    if (s->flags & FLAG_FIN) {
        flow->guest_ended = true;
        flow->guest_end = s->end;
    }
    if ((s->flags & FLAG_ACK) && flow->library_ended && reaches(s->acknowledged, flow->library_end))
        flow->acknowledged = true;
}

/* The library is in TIME-WAIT when it acknowledges the guest's FIN and its own was acknowledged. */
static void see_library(struct nat_ends *ends, struct nat_flow *flow, const struct segment *s)
{
    if (s->flags & FLAG_FIN) {
        flow->library_ended = true;
        flow->library_end = s->end;
    }
    if (!(s->flags & FLAG_ACK) || !flow->acknowledged || !flow->guest_ended || flow->over ||
        !reaches(s->acknowledged, flow->guest_end))
        return;
    flow->over = true;
    flow->next_over = ends->over;
    ends->over = flow;
}

void nat_ends_see(struct nat_ends *ends, const uint8_t *frame, size_t length, bool from_guest)
{
    struct nat_flow *flow;
    struct segment s;
    bool ending;

    if (!parse(frame, length, &s) || (s.flags & (FLAG_SYN | FLAG_RST)) ||
        (ends->ending == 0 && !(s.flags & FLAG_FIN)))
        return;
    flow = find(ends, &s, from_guest);
    if (!flow)
        return;
    ending = is_ending(flow);
    if (from_guest)
        see_guest(flow, &s);
    else
        see_library(ends, flow, &s);
    if (!ending && is_ending(flow))
        ends->ending++;
}

struct nat_flow *nat_ends_next(struct nat_ends *ends)
{
    struct nat_flow *flow = ends->over;

    if (flow) {
        ends->over = flow->next_over;
        flow->next_over = NULL;
    }
    return flow;
}

/* shutdown(2) is what the library does when the last byte of the guest's is with the host. */
bool nat_ends_is_drained(const struct nat_flow *flow)
{
    struct tcp_info info;
    socklen_t size = sizeof(info);

    if (getsockopt(flow->fd, IPPROTO_TCP, TCP_INFO, &info, &size) < 0)
        return false;
    switch (info.tcpi_state) {
    case TCP_FIN_WAIT1:
    case TCP_FIN_WAIT2:
    case TCP_CLOSING:
    case TCP_TIME_WAIT:
    case TCP_LAST_ACK:
    case TCP_CLOSE:
        return true;
    default:
        return false;
    }
}

/* Writes IP's header; the sum of TCP's pseudo header begins with the returned number. */
static unsigned put_ip(const struct nat_flow *flow, uint8_t *ip)
{
    const struct iovec whole = {ip, IPV4_HEADER};
    const struct net_frame header = {.iov = &whole, .iovcnt = 1, .length = IPV4_HEADER};
    uint16_t sum;

    if (flow->ipv6) {
        ip[0] = 0x60;
        put16(ip + 4, TCP_HEADER);
        ip[6] = IPPROTO_TCP;
        ip[7] = RESET_TTL;
        memcpy(ip + 8, flow->key, 2 * ADDRESS_ROOM);
        return IPV6_HEADER;
    }
    ip[0] = 0x45;
    put16(ip + 2, IPV4_HEADER + TCP_HEADER);
    ip[8] = RESET_TTL;
    ip[9] = IPPROTO_TCP;
    memcpy(ip + 12, flow->key, 4);
    memcpy(ip + 16, flow->key + ADDRESS_ROOM, 4);
    sum = (uint16_t)~net_offload_sum(&header, 0, IPV4_HEADER);
    memcpy(ip + 10, &sum, sizeof(sum));
    return IPV4_HEADER;
}

size_t nat_ends_reset(const struct nat_flow *flow, uint8_t frame[NAT_RESET_MAX])
{
    uint8_t *ip = frame + NAT_FLOW_ETHER, *tcp;
    struct iovec whole = {frame, 0};
    struct net_frame bytes = {.iov = &whole, .iovcnt = 1};
    unsigned l4, sum;
    uint16_t stored;

    memset(frame, 0, NAT_RESET_MAX);
    memcpy(frame, flow->ether, NAT_FLOW_ETHER);
    l4 = NAT_FLOW_ETHER + put_ip(flow, ip);
    tcp = frame + l4;
    memcpy(tcp, flow->key + 2 * ADDRESS_ROOM, 4);
    put32(tcp + TCP_SEQUENCE, flow->guest_end);
    tcp[TCP_OFFSET] = TCP_HEADER / 4 << 4;
    tcp[TCP_FLAGS] = FLAG_RST;
    whole.iov_len = bytes.length = l4 + TCP_HEADER;
    /* The addresses stand right before the ports; protocol and length are the rest of what counts
     * (RFC 9293 §3.1). */
    stored = net_offload_sum(&bytes, l4 - (flow->ipv6 ? 32 : 8), bytes.length);
    sum = get16((const uint8_t *)&stored) + IPPROTO_TCP + TCP_HEADER;
    sum = (sum & 0xFFFF) + (sum >> 16);
    put16(tcp + TCP_CHECKSUM, ~sum & 0xFFFF);
    return bytes.length;
}
