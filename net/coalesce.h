/*
 * Coalescing: puts the TCP segments of one flow that come one after the other into one large segment,
 * for a receiver that accepts such (NET_OFFLOAD_TSO4, _TSO6). What net/offload.h cuts, backwards.
 *
 * Takes only what can be cut into the same segments again: headers without options, alike but for
 * what counts on. Holds one large segment at a time. No thread, no locks: its owner's.
 */
#ifndef FERRY_NET_COALESCE_H
#define FERRY_NET_COALESCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "net/port.h"

/* All but what init() gets is internal. */
struct net_coalescer {
    uint8_t *bytes;     /* owns */
    size_t length;      /* 0: empty */
    unsigned segments;
    unsigned l4;        /* where TCP begins */
    unsigned gso_size;  /* payload of each segment but the last */
    uint32_t next;      /* the sequence number that goes on */
    bool closed;        /* nothing goes on */
    struct iovec piece;
};

/* 0 or -ENOMEM. */
int net_coalescer_init(struct net_coalescer *c);
void net_coalescer_fini(struct net_coalescer *c);

/*
 * Copies a frame, to begin or to go on. false: it is not of the kind, the peer that accepts `accepts`
 * (NET_OFFLOAD_ bits) would have no use for it, or it does not go on what is there.
 */
bool net_coalescer_add(struct net_coalescer *c, uint32_t accepts, const uint8_t *bytes,
                       size_t length);
/* What is there, as one frame, valid until the next call; nothing goes on behind it. false: empty. */
bool net_coalescer_frame(struct net_coalescer *c, struct net_frame *frame);
void net_coalescer_clear(struct net_coalescer *c);

#endif
