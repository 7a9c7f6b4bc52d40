/*
 * Coalescing TCP segments.
 *
 * Knows nothing of ports and sends nothing; checks no checksum, for its frames come from this
 * process. Thread and lock are its owner's; nothing is allocated after init().
 *
 * Texts: RFC 791 §3.1, RFC 8200 §3, RFC 9293 §3.1; virtio 1.2 §5.1.6.4 for the metadata.
 */
#include "net/coalesce.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "net/bytes.h"
#include "net/offload.h"

#define ETHER_HEADER 14u
#define ETHER_TYPE 12u
#define TYPE_IPV4 0x0800u
#define TYPE_IPV6 0x86DDu
#define PROTOCOL_TCP 6u
#define TCP_HEADER 20u
#define TCP_CHECKSUM 16u
#define TCP_PSH 0x08u
#define TCP_ACK 0x10u
/* Of IP, as its length fields have it; the longest frame without a tag. */
#define MAX_FRAME (65535u + ETHER_HEADER)

int net_coalescer_init(struct net_coalescer *c)
{
    /* Large enough to be pages of its own, which take no memory until they are used. */
    *c = (struct net_coalescer){.bytes = malloc(MAX_FRAME)};
    return c->bytes ? 0 : -ENOMEM;
}

void net_coalescer_fini(struct net_coalescer *c)
{
    free(c->bytes);
    c->bytes = NULL;
}

/* Where TCP begins in a frame of the right kind; 0 in others. */
static unsigned find_tcp(uint32_t accepts, const uint8_t *b, size_t length)
{
    unsigned type = length >= ETHER_HEADER + 20 + TCP_HEADER ? get16(b + ETHER_TYPE) : 0;
    const uint8_t *ip = b + ETHER_HEADER;

    if (type == TYPE_IPV4 && (accepts & NET_OFFLOAD_TSO4) && ip[0] == 0x45 &&
        ip[9] == PROTOCOL_TCP && !(get16(ip + 6) & 0x3FFF) &&
        get16(ip + 2) == length - ETHER_HEADER)
        return ETHER_HEADER + 20;
    if (type == TYPE_IPV6 && (accepts & NET_OFFLOAD_TSO6) &&
        length >= ETHER_HEADER + 40 + TCP_HEADER && ip[6] == PROTOCOL_TCP &&
        get16(ip + 4) == length - ETHER_HEADER - 40)
        return ETHER_HEADER + 40;
    return 0;
}

/* Data, acknowledging, without options. */
static bool is_plain_data(const uint8_t *tcp, size_t length)
{
    return length > TCP_HEADER && tcp[12] == TCP_HEADER / 4 << 4 &&
           (tcp[13] & ~TCP_PSH) == TCP_ACK;
}

static void begin(struct net_coalescer *c, const uint8_t *bytes, size_t length, unsigned l4)
{
    memcpy(c->bytes, bytes, length);
    c->length = length;
    c->segments = 1;
    c->l4 = l4;
    c->gso_size = (unsigned)(length - l4 - TCP_HEADER);
    c->next = get32(bytes + l4 + 4) + c->gso_size;
    c->closed = bytes[l4 + 13] & TCP_PSH;
}

/* All of IP's header but for length, identification and checksum. */
static bool same_ip(const uint8_t *a, const uint8_t *b, unsigned l4)
{
    if (l4 == ETHER_HEADER + 20)
        return memcmp(a, b, ETHER_HEADER + 2) == 0 && memcmp(a + 20, b + 20, 4) == 0 &&
               memcmp(a + 26, b + 26, 8) == 0;
    return memcmp(a, b, ETHER_HEADER + 4) == 0 && memcmp(a + 20, b + 20, 34) == 0;
}

/* Ports, acknowledgement, window and urgent pointer. */
static bool same_tcp(const uint8_t *a, const uint8_t *b)
{
    return memcmp(a, b, 4) == 0 && memcmp(a + 8, b + 8, 5) == 0 && memcmp(a + 14, b + 14, 2) == 0 &&
           memcmp(a + 18, b + 18, 2) == 0;
}

static bool goes_on(const struct net_coalescer *c, const uint8_t *bytes, size_t payload,
                    unsigned l4)
{
    return !c->closed && l4 == c->l4 && payload <= c->gso_size &&
           c->length + payload <= MAX_FRAME && get32(bytes + l4 + 4) == c->next &&
           same_ip(c->bytes, bytes, l4) && same_tcp(c->bytes + l4, bytes + l4);
}

bool net_coalescer_add(struct net_coalescer *c, uint32_t accepts, const uint8_t *bytes,
                       size_t length)
{
    unsigned l4 = accepts & NET_OFFLOAD_CSUM ? find_tcp(accepts, bytes, length) : 0;
    size_t payload;

    if (!l4 || length > MAX_FRAME || !is_plain_data(bytes + l4, length - l4))
        return false;
    payload = length - l4 - TCP_HEADER;
    if (c->length == 0) {
        begin(c, bytes, length, l4);
        return true;
    }
    if (!goes_on(c, bytes, payload, l4))
        return false;
    memcpy(c->bytes + c->length, bytes + l4 + TCP_HEADER, payload);
    c->length += payload;
    c->next += (uint32_t)payload;
    c->segments++;
    /* The last one may be shorter, and PSH is the last one's. */
    c->bytes[l4 + 13] |= bytes[l4 + 13] & TCP_PSH;
    c->closed = payload < c->gso_size || (bytes[l4 + 13] & TCP_PSH);
    return true;
}

/* The sum of the bytes from `from` to `to`, as a number to be stored in the machine's order. */
static uint16_t sum(struct net_coalescer *c, size_t from, size_t to)
{
    const struct net_frame frame = {.iov = &c->piece, .iovcnt = 1, .length = c->length};

    return net_offload_sum(&frame, from, to);
}

/* Sets lengths and checksums for the whole; TCP's is left to be completed. */
static void write_headers(struct net_coalescer *c)
{
    bool v4 = c->l4 == ETHER_HEADER + 20;
    uint8_t *ip = c->bytes + ETHER_HEADER;
    unsigned l4_length = (unsigned)(c->length - c->l4);
    uint32_t pseudo;
    uint16_t ip_sum;

    if (v4) {
        put16(ip + 2, (unsigned)(c->length - ETHER_HEADER));
        put16(ip + 10, 0);
        ip_sum = (uint16_t)~sum(c, ETHER_HEADER, c->l4);
        memcpy(ip + 10, &ip_sum, sizeof(ip_sum));
        ip_sum = sum(c, ETHER_HEADER + 12, c->l4);
    } else {
        put16(ip + 4, l4_length);
        ip_sum = sum(c, ETHER_HEADER + 8, c->l4);
    }
    /* The addresses, the protocol and the length (RFC 9293 §3.1). */
    pseudo = get16((const uint8_t *)&ip_sum) + PROTOCOL_TCP + l4_length;
    pseudo = (pseudo & 0xFFFF) + (pseudo >> 16);
    put16(c->bytes + c->l4 + TCP_CHECKSUM, (pseudo & 0xFFFF) + (pseudo >> 16));
}

bool net_coalescer_frame(struct net_coalescer *c, struct net_frame *frame)
{
    if (c->length == 0)
        return false;
    c->closed = true;
    c->piece = (struct iovec){c->bytes, c->length};
    *frame = (struct net_frame){.iov = &c->piece, .iovcnt = 1, .length = c->length};
    if (c->segments == 1)
        return true; /* as it came */
    write_headers(c);
    frame->needs_csum = true;
    frame->csum_start = (uint16_t)c->l4;
    frame->csum_offset = TCP_CHECKSUM;
    frame->gso_type = c->l4 == ETHER_HEADER + 20 ? NET_GSO_TCP4 : NET_GSO_TCP6;
    frame->gso_size = (uint16_t)c->gso_size;
    frame->hdr_len = (uint16_t)(c->l4 + TCP_HEADER);
    return true;
}

void net_coalescer_clear(struct net_coalescer *c)
{
    c->length = 0;
}
