/*
 * Large segments between a guest and libslirp. The library knows no offloads, but takes and makes
 * large TCP segments if it believes that the link has room for them. So it is told of a link with a
 * larger MTU, the guest of the real one: the maximum segment size in the SYNs that they send each
 * other is rewritten, and what is too long for the guest's link is marked as a large segment, to be
 * cut by who cannot take it whole. Datagrams are made fragments.
 *
 * No state; any thread.
 */
#ifndef FERRY_NET_NAT_SEGMENTS_H
#define FERRY_NET_NAT_SEGMENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "net/port.h"

#define NAT_HEADERS_MAX 134u /* Ethernet, IP and TCP, both with all options that there can be */


/* A frame with headers of its own. */
struct nat_segment {
    struct net_frame frame;
    struct iovec pieces[2];
    uint8_t headers[NAT_HEADERS_MAX];
};

/* The MTU that the library is told of, for a link of mtu. */
unsigned nat_segments_library_mtu(unsigned mtu);

/*
 * Of a frame from the guest: has the library believe, if it is a SYN of TCP from who takes all that
 * the link carries and accepts large segments (`accepts`: NET_OFFLOAD_ bits), that they may be so.
 * `partial`: its checksum is to be completed.
 */
void nat_segments_raise_mss(uint8_t *frame, size_t length, unsigned mtu, uint32_t accepts,
                            bool partial);

/* Completes the checksum of a frame from the guest by its metadata, those of `of`, whose lengths
 * hold for these bytes. false: they contradict each other. */
bool nat_segments_complete(uint8_t *frame, size_t length, const struct net_frame *of);

/* Of a SYN of TCP from the library: as *out, with the link's maximum segment size. false: none. */
bool nat_segments_lower_mss(const uint8_t *frame, size_t length, unsigned mtu,
                            struct nat_segment *out);

/* Of a frame from the library that is too long for the link, if it is of TCP: as one large segment.
 * `frame` is borrowed by *out. false: it is none. */
bool nat_segments_large(const uint8_t *frame, size_t length, unsigned mtu, struct nat_segment *out);

/* Likewise, for who accepts no large ones: as the next segment, from *at of its data on, which is 0
 * at first. false: there is no other, or it is none of TCP. */
bool nat_segments_cut(const uint8_t *frame, size_t length, unsigned mtu, size_t *at,
                      struct nat_segment *out);

/* Of one of IPv4: its next fragment, from *at on, which is 0 at first. false: there is no other, or
 * it must not or cannot have fragments. */
bool nat_segments_fragment(const uint8_t *frame, size_t length, unsigned mtu, size_t *at,
                           struct nat_segment *out);

#endif
