/*
 * What a network card makes of a frame's headers to choose a receive queue: the flow that it belongs
 * to, and its hash by Toeplitz (virtio 1.2 §5.1.6.4.3).
 *
 * Plain values; no thread, no locks.
 */
#ifndef FERRY_VIRTIO_NET_RSS_H
#define FERRY_VIRTIO_NET_RSS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NET_RSS_KEY 40u      /* bytes at most; §5.1.4.1: at least 40 */
#define NET_RSS_TABLE 128u   /* entries at most; §5.1.4.1: at least 128 */
/* VIRTIO_NET_RSS_HASH_TYPE_ bits that there are: addresses, TCP and UDP, for IPv4, IPv6, and IPv6 with
 * extension headers. */
#define NET_RSS_TYPES 0x1FFu

/* Headers that are looked at: who puts more before the ports has only its addresses hashed. */
#define NET_FLOW_BYTES 160u

#define NET_FLOW_FIELDS 36u  /* two IPv6 addresses and two ports */

struct net_flow {
    uint8_t fields[NET_FLOW_FIELDS]; /* source, destination, their ports: as in the packet */
    uint8_t addresses;    /* bytes of both: 8 or 32; 0: this is not IP */
    uint8_t protocol;     /* IPPROTO_TCP or IPPROTO_UDP when there are ports, else 0 */
    bool extended;        /* IPv6 with extension headers; then, and only then: */
    uint8_t mobile[32];   /* the addresses, but a mobile node's own for those that it is reached by */
};

/* Of a frame that begins with these bytes, a copy of its first NET_FLOW_BYTES or all of it. */
void net_flow_find(struct net_flow *flow, const uint8_t *bytes, size_t length);
/* The same for both directions of a flow. Not for what is to withstand an attacker. */
uint32_t net_flow_symmetric(const struct net_flow *flow);

/* A key, prepared: for each half byte of input and each value, what it adds to the hash. */
struct net_hasher {
    uint32_t parts[NET_FLOW_FIELDS * 2][16];
};
void net_hasher_init(struct net_hasher *hasher, const uint8_t *key, size_t length);
/* Among the hash types `types` takes the one that fits best; *report is a VIRTIO_NET_HASH_REPORT_
 * value, NONE (and the hash 0) when none fits. */
uint32_t net_hasher_hash(const struct net_hasher *hasher, uint32_t types,
                         const struct net_flow *flow, uint16_t *report);

#endif
