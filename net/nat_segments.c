/*
 * Large segments between a guest and libslirp: the maximum segment size in SYNs, the metadata of
 * large segments, fragments.
 *
 * Looks at plain headers only: frames with tags or IPv6's extensions pass as they are. No length is
 * trusted, whoever sent the frame. No state, no locks; any thread.
 *
 * Texts: RFC 791 §3.1 and §3.2 (fragments), RFC 8200 §3, RFC 9293 §3.1 and §3.7.1 (maximum segment
 * size), RFC 1624 (a checksum when a word changes); virtio 1.2 §5.1.6.2 (metadata); what libslirp
 * 4.7 does with an MTU was read in its sources.
 */
#include "net/nat_segments.h"

#include <string.h>

#include "net/bytes.h"
#include "net/offload.h"

#define ETHER_HEADER 14u
#define ETHER_TYPE 12u
#define TYPE_IPV4 0x0800u
#define TYPE_IPV6 0x86DDu
#define PROTOCOL_TCP 6u
#define IPV4_HEADER 20u
#define TCP_HEADER 20u
#define TCP_FIN 0x01u
#define TCP_SYN 0x02u
#define TCP_PSH 0x08u
#define TCP_CHECKSUM 16u
#define OPTION_END 0u
#define OPTION_NOP 1u
#define OPTION_MSS 2u
#define DONT_FRAGMENT 0x4000u
#define MORE_FRAGMENTS 0x2000u
/* Several in a window of 64 KiB, for libslirp knows no larger ones: who receives one is busy with
 * it while the next is made. */
#define LARGE 16384u
/* It tells of a window that opened again by two whole segments; with more than half of 64 KiB each
 * it never would, and the guest wait for its own timer. */
#define LIBRARY_MTU_MAX (32767u + IPV4_HEADER + TCP_HEADER)

/* Where TCP is in a frame: its header, and what is behind. */
struct place {
    bool ipv6;
    unsigned l4, end;
};

static bool find_tcp(const uint8_t *b, size_t length, struct place *out)
{
    const uint8_t *ip = b + ETHER_HEADER;
    unsigned type = length >= ETHER_HEADER + 40 ? get16(b + ETHER_TYPE) : 0;

    *out = (struct place){.ipv6 = type == TYPE_IPV6};
    if (type == TYPE_IPV4 && ip[9] == PROTOCOL_TCP && !(get16(ip + 6) & 0x3FFF) &&
        (ip[0] & 15) >= 5)
        out->l4 = ETHER_HEADER + (ip[0] & 15u) * 4;
    else if (type == TYPE_IPV6 && ip[6] == PROTOCOL_TCP)
        out->l4 = ETHER_HEADER + 40;
    else
        return false;
    if (out->l4 + TCP_HEADER > length)
        return false;
    out->end = out->l4 + (b[out->l4 + 12] >> 4) * 4u;
    return out->end >= out->l4 + TCP_HEADER && out->end <= length;
}

static unsigned link_mss(const struct place *tcp, unsigned mtu)
{
    return mtu - (tcp->ipv6 ? 40 : 20) - TCP_HEADER;
}

/* The value of the option in a SYN; NULL without one. */
static uint8_t *find_mss(uint8_t *b, const struct place *tcp)
{
    unsigned at = tcp->l4 + TCP_HEADER;

    if (!(b[tcp->l4 + 13] & TCP_SYN))
        return NULL;
    while (at + 1 < tcp->end && b[at] != OPTION_END) {
        if (b[at] == OPTION_NOP) {
            at++;
            continue;
        }
        if (b[at + 1] < 2 || at + b[at + 1] > tcp->end)
            return NULL;
        if (b[at] == OPTION_MSS && b[at + 1] == 4)
            return b + at + 2;
        at += b[at + 1];
    }
    return NULL;
}

/* RFC 1624 §3, equation 3. A word that begins at an odd place counts with its bytes swapped. */
static void change_mss(uint8_t *b, const struct place *tcp, uint8_t *field, unsigned value,
                       bool partial)
{
    uint8_t *checksum = b + tcp->l4 + TCP_CHECKSUM;
    bool odd = (size_t)(field - b - tcp->l4) % 2 != 0;
    unsigned old = get16(field);
    uint32_t sum;

    put16(field, value);
    if (partial)
        return; /* it does not count yet */
    if (odd) {
        old = __builtin_bswap16((uint16_t)old);
        value = __builtin_bswap16((uint16_t)value);
    }
    sum = (~get16(checksum) & 0xFFFF) + (~old & 0xFFFF) + value;
    sum = (sum & 0xFFFF) + (sum >> 16);
    sum = (sum & 0xFFFF) + (sum >> 16);
    put16(checksum, ~sum & 0xFFFF);
}

/* The sum of TCP's pseudo header (RFC 9293 §3.1), as it stands where the checksum will be. */
static unsigned pseudo_sum(const uint8_t *headers, const struct place *tcp, size_t length)
{
    const struct iovec whole = {(void *)headers, tcp->l4};
    const struct net_frame bytes = {.iov = &whole, .iovcnt = 1, .length = tcp->l4};
    unsigned addresses = ETHER_HEADER + (tcp->ipv6 ? 8 : 12);
    uint16_t stored = net_offload_sum(&bytes, addresses, addresses + (tcp->ipv6 ? 32 : 8));
    unsigned sum = get16((const uint8_t *)&stored) + PROTOCOL_TCP + (unsigned)(length - tcp->l4);

    sum = (sum & 0xFFFF) + (sum >> 16);
    return (sum & 0xFFFF) + (sum >> 16);
}

unsigned nat_segments_library_mtu(unsigned mtu)
{
    unsigned link = mtu - IPV4_HEADER - TCP_HEADER;

    if (mtu > LIBRARY_MTU_MAX)
        return LIBRARY_MTU_MAX;
    return link < LARGE ? LARGE / link * link + IPV4_HEADER + TCP_HEADER : mtu;
}

void nat_segments_raise_mss(uint8_t *frame, size_t length, unsigned mtu, uint32_t accepts,
                            bool partial)
{
    struct place tcp;
    uint8_t *field;
    uint32_t wanted;

    if (!find_tcp(frame, length, &tcp))
        return;
    wanted = NET_OFFLOAD_CSUM | (tcp.ipv6 ? NET_OFFLOAD_TSO6 : NET_OFFLOAD_TSO4);
    field = find_mss(frame, &tcp);
    if (field && (accepts & wanted) == wanted && get16(field) >= link_mss(&tcp, mtu))
        change_mss(frame, &tcp, field, link_mss(&tcp, nat_segments_library_mtu(mtu)), partial);
}

bool nat_segments_lower_mss(const uint8_t *frame, size_t length, unsigned mtu,
                            struct nat_segment *out)
{
    struct place tcp;
    uint8_t *field;

    if (length > sizeof(out->headers))
        return false;
    memcpy(out->headers, frame, length);
    if (!find_tcp(out->headers, length, &tcp))
        return false;
    field = find_mss(out->headers, &tcp);
    if (!field)
        return false;
    if (get16(field) > link_mss(&tcp, mtu))
        change_mss(out->headers, &tcp, field, link_mss(&tcp, mtu), false);
    out->pieces[0] = (struct iovec){out->headers, length};
    out->frame = (struct net_frame){.iov = out->pieces, .iovcnt = 1, .length = length};
    return true;
}

bool nat_segments_complete(uint8_t *frame, size_t length, const struct net_frame *of)
{
    const struct iovec whole = {frame, length};
    const struct net_frame bytes = {.iov = &whole, .iovcnt = 1, .length = length};
    size_t field = of->csum_start + (size_t)of->csum_offset;
    uint16_t sum;

    if (!of->needs_csum)
        return !of->gso_type;
    if (of->csum_start < ETHER_HEADER || field + 2 > length)
        return false;
    sum = (uint16_t)~net_offload_sum(&bytes, of->csum_start, length);
    if (sum == 0)
        sum = 0xFFFF; /* RFC 768: 0 is no checksum */
    memcpy(frame + field, &sum, sizeof(sum));
    return true;
}

bool nat_segments_large(const uint8_t *frame, size_t length, unsigned mtu, struct nat_segment *out)
{
    struct place tcp;

    if (!find_tcp(frame, length, &tcp) || tcp.end > sizeof(out->headers) ||
        length - tcp.l4 > UINT16_MAX)
        return false;
    memcpy(out->headers, frame, tcp.end);
    put16(out->headers + tcp.l4 + TCP_CHECKSUM, pseudo_sum(out->headers, &tcp, length));
    out->pieces[0] = (struct iovec){out->headers, tcp.end};
    out->pieces[1] = (struct iovec){(void *)(frame + tcp.end), length - tcp.end};
    out->frame = (struct net_frame){
        .iov = out->pieces,
        .iovcnt = 2,
        .length = length,
        .needs_csum = true,
        .csum_start = (uint16_t)tcp.l4,
        .csum_offset = TCP_CHECKSUM,
        .gso_type = tcp.ipv6 ? NET_GSO_TCP6 : NET_GSO_TCP4,
        .gso_size = (uint16_t)(link_mss(&tcp, mtu) - (tcp.end - tcp.l4 - TCP_HEADER)),
        .hdr_len = (uint16_t)tcp.end,
    };
    return true;
}

/* The headers of a segment of so many bytes from the at-th on; `last`: FIN and PSH are its own. */
static void write_headers(uint8_t *h, const struct place *tcp, size_t at, unsigned run, bool last)
{
    const struct iovec whole = {h, tcp->end};
    const struct net_frame bytes = {.iov = &whole, .iovcnt = 1, .length = tcp->end};
    uint8_t *ip = h + ETHER_HEADER, *sequence = h + tcp->l4 + 4;
    uint32_t number = get32(sequence) + (uint32_t)at;
    uint16_t sum;

    put32(sequence, number);
    if (!last)
        h[tcp->l4 + 13] &= (uint8_t)~(TCP_FIN | TCP_PSH);
    if (tcp->ipv6) {
        put16(ip + 4, tcp->end - tcp->l4 + run);
        return;
    }
    put16(ip + 2, tcp->end - ETHER_HEADER + run);
    put16(ip + 10, 0);
    sum = (uint16_t)~net_offload_sum(&bytes, ETHER_HEADER, tcp->l4);
    memcpy(ip + 10, &sum, sizeof(sum));
}

bool nat_segments_cut(const uint8_t *frame, size_t length, unsigned mtu, size_t *at,
                      struct nat_segment *out)
{
    struct place tcp;
    size_t left;
    unsigned run;
    uint16_t sum;

    if (!find_tcp(frame, length, &tcp) || tcp.end > sizeof(out->headers) || *at >= length - tcp.end)
        return false;
    left = length - tcp.end - *at;
    run = link_mss(&tcp, mtu) - (tcp.end - tcp.l4 - TCP_HEADER);
    if (run > left)
        run = (unsigned)left;
    memcpy(out->headers, frame, tcp.end);
    write_headers(out->headers, &tcp, *at, run, run == left);
    out->pieces[0] = (struct iovec){out->headers, tcp.end};
    out->pieces[1] = (struct iovec){(void *)(frame + tcp.end + *at), run};
    out->frame = (struct net_frame){.iov = out->pieces, .iovcnt = 2, .length = tcp.end + run};
    put16(out->headers + tcp.l4 + TCP_CHECKSUM,
          pseudo_sum(out->headers, &tcp, out->frame.length));
    sum = (uint16_t)~net_offload_sum(&out->frame, tcp.l4, out->frame.length);
    memcpy(out->headers + tcp.l4 + TCP_CHECKSUM, &sum, sizeof(sum));
    *at += run;
    return true;
}

bool nat_segments_fragment(const uint8_t *frame, size_t length, unsigned mtu, size_t *at,
                           struct nat_segment *out)
{
    const uint8_t *ip = frame + ETHER_HEADER;
    unsigned head = (ip[0] & 15u) * 4, run, flags;
    struct iovec whole = {out->headers + ETHER_HEADER, head};
    const struct net_frame bytes = {.iov = &whole, .iovcnt = 1, .length = head};
    size_t payload;
    uint16_t sum;

    if (get16(frame + ETHER_TYPE) != TYPE_IPV4 || head < 20 || get16(ip + 2) < head ||
        get16(ip + 2) > length - ETHER_HEADER || (get16(ip + 6) & ~DONT_FRAGMENT) != 0)
        return false;
    payload = get16(ip + 2) - head;
    if (*at >= payload)
        return false;
    run = (mtu - head) & ~7u; /* §3.2: in units of 8 bytes */
    flags = MORE_FRAGMENTS;
    if (run >= payload - *at) {
        run = (unsigned)(payload - *at);
        flags = 0;
    }
    memcpy(out->headers, frame, ETHER_HEADER + head);
    put16(out->headers + ETHER_HEADER + 2, head + run);
    put16(out->headers + ETHER_HEADER + 6, flags | (unsigned)(*at / 8));
    put16(out->headers + ETHER_HEADER + 10, 0);
    sum = (uint16_t)~net_offload_sum(&bytes, 0, head);
    memcpy(out->headers + ETHER_HEADER + 10, &sum, sizeof(sum));
    out->pieces[0] = (struct iovec){out->headers, ETHER_HEADER + head};
    out->pieces[1] = (struct iovec){(void *)(ip + head + *at), run};
    out->frame = (struct net_frame){.iov = out->pieces, .iovcnt = 2,
                                    .length = ETHER_HEADER + head + run};
    *at += run;
    return true;
}
