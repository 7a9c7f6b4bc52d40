/*
 * What is in a frame: the header of virtio-net, Ethernet, ARP, IPv4, ICMP, UDP and TCP. Fields of
 * more than a byte are in network order, but for virtio's.
 */
#ifndef GUEST_PACKET_H
#define GUEST_PACKET_H

#include <stdint.h>

/* Bits of virtio-net: virtio 1.2, 5.1.3. */
#define F_CSUM           (1ull << 0)
#define F_GUEST_CSUM     (1ull << 1)
#define F_GUEST_OFFLOADS (1ull << 2)
#define F_MTU            (1ull << 3)
#define F_MAC            (1ull << 5)
#define F_GUEST_TSO4     (1ull << 7)
#define F_GUEST_TSO6     (1ull << 8)
#define F_GUEST_ECN      (1ull << 9)
#define F_HOST_TSO4      (1ull << 11)
#define F_HOST_TSO6      (1ull << 12)
#define F_HOST_ECN       (1ull << 13)
#define F_MRG_RXBUF      (1ull << 15)
#define F_STATUS         (1ull << 16)
#define F_CTRL_VQ        (1ull << 17)
#define F_CTRL_RX        (1ull << 18)
#define F_ANNOUNCE       (1ull << 21)
#define F_MQ             (1ull << 22)
#define F_GUEST_USO4     (1ull << 54)
#define F_GUEST_USO6     (1ull << 55)
#define F_HOST_USO       (1ull << 56)
#define F_RSS            (1ull << 60)

struct net_header {
    uint8_t flags;
    uint8_t gso_type;
    uint16_t header_length;
    uint16_t gso_size;
    uint16_t checksum_start;
    uint16_t checksum_offset;
    uint16_t buffers;
};
_Static_assert(sizeof(struct net_header) == 12, "virtio 1.2, 5.1.6");

#define HEADER_NEEDS_CSUM 1
#define HEADER_DATA_VALID 2
#define GSO_TCP4 1
#define GSO_TCP6 4
#define GSO_UDP  5

struct ether {
    uint8_t to[6];
    uint8_t from[6];
    uint16_t type;
} __attribute__((packed));

struct arp {
    uint16_t hardware, protocol;
    uint8_t hardware_length, protocol_length;
    uint16_t operation;
    uint8_t sender_mac[6];
    uint32_t sender_ip;
    uint8_t target_mac[6];
    uint32_t target_ip;
} __attribute__((packed));
_Static_assert(sizeof(struct arp) == 28, "RFC 826");

struct ip {
    uint8_t version_length, service;
    uint16_t length, id, fragment;
    uint8_t ttl, protocol;
    uint16_t checksum;
    uint32_t from, to;
} __attribute__((packed));
_Static_assert(sizeof(struct ip) == 20, "RFC 791");

struct icmp {
    uint8_t type, code;
    uint16_t checksum, id, sequence;
} __attribute__((packed));

struct udp {
    uint16_t from, to, length, checksum;
} __attribute__((packed));

struct tcp {
    uint16_t from, to;
    uint32_t sequence, acknowledged;
    uint8_t offset, flags;
    uint16_t window, checksum, urgent;
} __attribute__((packed));
_Static_assert(sizeof(struct tcp) == 20, "RFC 9293, 3.1");

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_PSH 8
#define TCP_ACK 16

#define ETHER_IPV4 0x0800
#define ETHER_ARP  0x0806
#define IP_ICMP    1
#define IP_TCP     6
#define IP_UDP     17

static inline uint16_t swap16(uint16_t value)
{
    return __builtin_bswap16(value);
}

static inline uint32_t swap32(uint32_t value)
{
    return __builtin_bswap32(value);
}

#endif
