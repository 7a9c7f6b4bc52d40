/*
 * Looks at the headers of a guest's frame: Ethernet, then ARP, IPv4 or IPv6, then as much of the
 * transport's as tells whether a socket may come of it.
 *
 * Does not check checksums, nor what lies beyond the lengths: the library does. Tagged frames are
 * ignored, as libslirp knows no VLANs. A pure function; any thread.
 *
 * Texts: RFC 826 (ARP), RFC 791 §3.1 (IPv4), RFC 8200 §3 (IPv6), RFC 9293 §3.1 (TCP), RFC 792 and
 * RFC 4443 (ICMP echo).
 */
#include "net/nat_guard.h"

#include <netinet/if_ether.h>
#include <netinet/in.h>

#define ARP_LENGTH 28 /* of IPv4 over Ethernet */
#define IPV4_MIN 20
#define IPV6_HEADER 40
#define TCP_MIN 20
#define TCP_FLAGS_AT 13
#define TCP_SYN 0x02
#define TCP_ACK 0x10
#define ICMP_ECHO_REQUEST 8
#define ICMPV6_ECHO_REQUEST 128

static uint16_t be16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

/* The first bytes of a datagram's payload. */
static bool opens_flow(uint8_t protocol, const uint8_t *payload, size_t length)
{
    switch (protocol) {
    case IPPROTO_TCP:
        return length >= TCP_MIN &&
               (payload[TCP_FLAGS_AT] & (TCP_SYN | TCP_ACK)) == TCP_SYN;
    case IPPROTO_UDP:
        return true;
    case IPPROTO_ICMP:
        return length > 0 && payload[0] == ICMP_ECHO_REQUEST;
    case IPPROTO_ICMPV6:
        return length > 0 && payload[0] == ICMPV6_ECHO_REQUEST;
    default:
        return false;
    }
}

static enum nat_verdict check_ipv4(const uint8_t *ip, size_t length, struct nat_frame_kind *kind)
{
    size_t header, total;

    if (length < IPV4_MIN || ip[0] >> 4 != 4)
        return NAT_MALFORMED;
    header = (size_t)(ip[0] & 0xF) * 4;
    total = be16(ip + 2);
    if (header < IPV4_MIN || total < header || total > length)
        return NAT_MALFORMED;
    /* More Fragments, or a fragment offset. The last one to arrive completes the datagram, so any
     * of them may open a flow. */
    kind->length = ETH_HLEN + total;
    kind->fragment = (be16(ip + 6) & 0x3FFF) != 0;
    kind->opens_flow = kind->fragment || opens_flow(ip[9], ip + header, total - header);
    return NAT_PASS;
}

static enum nat_verdict check_ipv6(const uint8_t *ip, size_t length, struct nat_frame_kind *kind)
{
    size_t payload;

    if (length < IPV6_HEADER || ip[0] >> 4 != 6)
        return NAT_MALFORMED;
    payload = be16(ip + 4);
    if (payload > length - IPV6_HEADER)
        return NAT_MALFORMED;
    kind->length = ETH_HLEN + IPV6_HEADER + payload;
    /* libslirp takes no extension headers, so the next header is the transport's. */
    kind->opens_flow = opens_flow(ip[6], ip + IPV6_HEADER, payload);
    return NAT_PASS;
}

enum nat_verdict nat_guard_check(const uint8_t *frame, size_t length, struct nat_frame_kind *kind)
{
    const uint8_t *payload = frame + ETH_HLEN;

    *kind = (struct nat_frame_kind){0};
    if (length < ETH_HLEN)
        return NAT_MALFORMED;
    length -= ETH_HLEN;
    switch (be16(frame + 12)) {
    case ETHERTYPE_ARP:
        kind->length = ETH_HLEN + ARP_LENGTH;
        return length >= ARP_LENGTH ? NAT_PASS : NAT_MALFORMED;
    case ETHERTYPE_IP:
        return check_ipv4(payload, length, kind);
    case ETHERTYPE_IPV6:
        return check_ipv6(payload, length, kind);
    default:
        return NAT_IGNORE;
    }
}
