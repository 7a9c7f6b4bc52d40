/*
 * Building and reading frames for tests. Knows only what its callers send; trusts what it reads
 * no further than the frame's length. RFC 826, 791, 768, 9293, 792, 2131, 1071.
 */
#include "tests/unit/packets.h"

#include <string.h>

uint16_t get16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

uint32_t get32(const uint8_t *at)
{
    return (uint32_t)get16(at) << 16 | get16(at + 2);
}

void put16(uint8_t *at, uint16_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

void put32(uint8_t *at, uint32_t value)
{
    put16(at, (uint16_t)(value >> 16));
    put16(at + 2, (uint16_t)value);
}

uint16_t internet_checksum(const void *bytes, size_t length, uint32_t sum)
{
    const uint8_t *at = bytes;

    for (; length > 1; at += 2, length -= 2)
        sum += get16(at);
    if (length)
        sum += (uint32_t)at[0] << 8;
    while (sum >> 16)
        sum = (sum & 0xFFFF) + (sum >> 16);
    return (uint16_t)~sum;
}

static void make_ethernet(struct packet *p, const uint8_t dst[6], const uint8_t src[6],
                          uint16_t type)
{
    memset(p, 0, sizeof(*p));
    memcpy(p->bytes, dst, 6);
    memcpy(p->bytes + 6, src, 6);
    put16(p->bytes + 12, type);
}

void make_arp_request(struct packet *p, const uint8_t mac[6], uint32_t sender, uint32_t target)
{
    static const uint8_t everyone[6] = {0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};
    uint8_t *arp = p->bytes + ETH_BYTES;

    make_ethernet(p, everyone, mac, 0x0806);
    put16(arp, 1);          /* Ethernet */
    put16(arp + 2, 0x0800); /* IPv4 */
    arp[4] = 6;
    arp[5] = 4;
    put16(arp + 6, 1);      /* request */
    memcpy(arp + 8, mac, 6);
    put32(arp + 14, sender);
    put32(arp + 24, target);
    p->length = ETH_BYTES + 28;
}

/* The payload stands in place already. */
static void make_ipv4(struct packet *p, const struct endpoints *e, uint8_t protocol, size_t payload)
{
    uint8_t *ip = p->bytes + AT_IP;

    ip[0] = 0x45;
    put16(ip + 2, (uint16_t)(IPV4_BYTES + payload));
    ip[8] = 64;
    ip[9] = protocol;
    put32(ip + 12, e->src);
    put32(ip + 16, e->dst);
    put16(ip + 10, internet_checksum(ip, IPV4_BYTES, 0));
    p->length = AT_L4 + payload;
}

static uint16_t l4_checksum(const struct packet *p, const struct endpoints *e, uint8_t protocol,
                            size_t length)
{
    uint32_t sum = (e->src >> 16) + (e->src & 0xFFFF) + (e->dst >> 16) + (e->dst & 0xFFFF);

    return internet_checksum(p->bytes + AT_L4, length, sum + protocol + (uint32_t)length);
}

void make_udp(struct packet *p, const struct endpoints *e, const void *data, size_t length)
{
    uint8_t *udp = p->bytes + AT_L4;

    make_ethernet(p, e->dst_mac, e->src_mac, 0x0800);
    put16(udp, e->src_port);
    put16(udp + 2, e->dst_port);
    put16(udp + 4, (uint16_t)(UDP_BYTES + length));
    memcpy(udp + UDP_BYTES, data, length);
    put16(udp + 6, l4_checksum(p, e, 17, UDP_BYTES + length));
    make_ipv4(p, e, 17, UDP_BYTES + length);
}

void make_tcp(struct packet *p, const struct endpoints *e, uint8_t flags, uint32_t seq,
              uint32_t ack, const void *data, size_t length)
{
    uint8_t *tcp = p->bytes + AT_L4;

    make_ethernet(p, e->dst_mac, e->src_mac, 0x0800);
    put16(tcp, e->src_port);
    put16(tcp + 2, e->dst_port);
    put32(tcp + 4, seq);
    put32(tcp + 8, ack);
    tcp[12] = TCP_BYTES / 4 << 4;
    tcp[13] = flags;
    put16(tcp + 14, 0xFFFF);
    if (length)
        memcpy(tcp + TCP_BYTES, data, length);
    put16(tcp + 16, l4_checksum(p, e, 6, TCP_BYTES + length));
    make_ipv4(p, e, 6, TCP_BYTES + length);
}

void make_ping(struct packet *p, const struct endpoints *e, uint16_t id, const void *data,
               size_t length)
{
    uint8_t *icmp = p->bytes + AT_L4;

    make_ethernet(p, e->dst_mac, e->src_mac, 0x0800);
    icmp[0] = 8; /* echo request */
    put16(icmp + 4, id);
    put16(icmp + 6, 1);
    memcpy(icmp + 8, data, length);
    put16(icmp + 2, internet_checksum(icmp, 8 + length, 0));
    make_ipv4(p, e, 1, 8 + length);
}

void make_dhcp(struct packet *p, const uint8_t mac[6], uint8_t type, uint32_t requested)
{
    struct endpoints e = {
        .dst_mac = {0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF},
        .dst = 0xFFFFFFFF,
        .src_port = 68,
        .dst_port = 67,
    };
    uint8_t message[300] = {1, 1, 6, 0}; /* BOOTREQUEST on Ethernet */
    uint8_t *option = message + 240;

    memcpy(e.src_mac, mac, 6);
    put32(message + 4, 0x12345678);      /* transaction */
    memcpy(message + 28, mac, 6);
    put32(message + 236, 0x63825363);    /* RFC 2131 §3 */
    *option++ = 53;
    *option++ = 1;
    *option++ = type;
    if (requested) {
        *option++ = 50;
        *option++ = 4;
        put32(option, requested);
        option += 4;
    }
    *option = 255;
    make_udp(p, &e, message, sizeof(message));
}

uint16_t ethertype(const struct packet *p)
{
    return get16(p->bytes + 12);
}

uint8_t ip_protocol(const struct packet *p)
{
    return ethertype(p) == 0x0800 && p->length >= AT_L4 ? p->bytes[AT_IP + 9] : 0;
}

const uint8_t *udp_data(const struct packet *p, size_t *length)
{
    *length = (size_t)get16(p->bytes + AT_L4 + 4) - UDP_BYTES;
    return p->bytes + AT_L4 + UDP_BYTES;
}

const uint8_t *tcp_data(const struct packet *p, size_t *length)
{
    size_t header = (size_t)(p->bytes[AT_L4 + 12] >> 4) * 4;

    *length = (size_t)get16(p->bytes + AT_IP + 2) - IPV4_BYTES - header;
    return p->bytes + AT_L4 + header;
}

const uint8_t *dhcp_option(const struct packet *p, uint8_t code, size_t *length)
{
    const uint8_t *at = p->bytes + AT_L4 + UDP_BYTES + 240, *end = p->bytes + p->length;

    while (at + 2 <= end && *at != 255) {
        if (*at == 0) {
            at++;
            continue;
        }
        if (*at == code) {
            *length = at[1];
            return at + 2;
        }
        at += 2 + at[1];
    }
    return NULL;
}
