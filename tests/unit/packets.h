/*
 * Frames for tests: built with right lengths and checksums, looked into when they come back.
 */
#ifndef FERRY_TEST_PACKETS_H
#define FERRY_TEST_PACKETS_H

#include <stddef.h>
#include <stdint.h>

#define ETH_BYTES 14
#define IPV4_BYTES 20
#define UDP_BYTES 8
#define TCP_BYTES 20
#define PACKET_MAX 1600

/* Offsets in an IPv4 frame without options. */
#define AT_IP ETH_BYTES
#define AT_L4 (ETH_BYTES + IPV4_BYTES)

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_PSH 0x08
#define TCP_ACK 0x10

struct packet {
    uint8_t bytes[PACKET_MAX];
    size_t length;
};

/* IPv4 addresses and ports in host byte order. */
struct endpoints {
    uint8_t src_mac[6], dst_mac[6];
    uint32_t src, dst;
    uint16_t src_port, dst_port;
};

uint16_t get16(const uint8_t *at);
uint32_t get32(const uint8_t *at);
void put16(uint8_t *at, uint16_t value);
void put32(uint8_t *at, uint32_t value);

/* The Internet checksum (RFC 1071) of bytes, added to a sum so far. */
uint16_t internet_checksum(const void *bytes, size_t length, uint32_t sum);

void make_arp_request(struct packet *p, const uint8_t mac[6], uint32_t sender, uint32_t target);
void make_udp(struct packet *p, const struct endpoints *e, const void *data, size_t length);
void make_tcp(struct packet *p, const struct endpoints *e, uint8_t flags, uint32_t seq,
              uint32_t ack, const void *data, size_t length);
void make_ping(struct packet *p, const struct endpoints *e, uint16_t id, const void *data,
               size_t length);
/* type: 1 DISCOVER, 3 REQUEST. */
void make_dhcp(struct packet *p, const uint8_t mac[6], uint8_t type, uint32_t requested);

/* Ethertype of a frame; protocol of an IPv4 frame, or 0. */
uint16_t ethertype(const struct packet *p);
uint8_t ip_protocol(const struct packet *p);
/* The payload of a UDP or TCP frame and its length. */
const uint8_t *udp_data(const struct packet *p, size_t *length);
const uint8_t *tcp_data(const struct packet *p, size_t *length);
/* A DHCP option of a frame that is a DHCP message; NULL when it is not there. */
const uint8_t *dhcp_option(const struct packet *p, uint8_t code, size_t *length);

#endif
