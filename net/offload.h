/*
 * Offloads in software: what a sender left to its receiver, done for one that cannot: completing a
 * checksum, cutting a large TCP segment or a train of UDP datagrams into frames. And the check of
 * metadata that come from where nobody is to be trusted.
 *
 * Metadata are those of struct net_frame, with the meaning of virtio 1.2 §5.1.6.2. Frames may lie in
 * memory that changes meanwhile: headers are copied before they are looked at, and only the copy is
 * used; payload that changes under a checksum makes the checksum wrong, and nothing else.
 *
 * No state, no allocation; any thread.
 */
#ifndef FERRY_NET_OFFLOAD_H
#define FERRY_NET_OFFLOAD_H

#include <stddef.h>
#include <stdint.h>

#include "net/port.h"

/* Headers that can be dealt with: Ethernet, tags, IP with its extensions, TCP with its options. */
#define NET_HEADERS_MAX 256u
/* Frames that one may be cut into. */
#define NET_MAX_SEGMENTS 2048u

/*
 * Checks the metadata of a frame that came from outside against its length and, when it is to be
 * cut, its headers. Those are then in `headers`, and *length says how many bytes of them: what
 * goes on must begin with this copy. *length is 0 when nothing was copied. Sets hdr_len right.
 * 0, or -EINVAL: contradictory, unknown or beyond the limits above; drop it.
 */
int net_offload_check(struct net_frame *frame, uint8_t headers[NET_HEADERS_MAX], size_t *length);

/* What a receiver must accept to take the frame as it is: NET_OFFLOAD_ bits; UINT32_MAX: nobody. */
uint32_t net_offload_needs(const struct net_frame *frame);

/*
 * What net_port_send() does when a frame needs more than the peer accepts; counts as it does. A frame
 * that was cut counts as one. When only a part of one finds room, it counts as taken and the rest as
 * one that was dropped.
 */
unsigned net_offload_send(struct net_port *port, const struct net_frame *frames, unsigned n);

/* The Internet checksum's sum (RFC 1071) of the frame's bytes [from, to), folded, not complemented,
 * as a number to be stored in the machine's byte order. */
uint16_t net_offload_sum(const struct net_frame *frame, size_t from, size_t to);

#endif
