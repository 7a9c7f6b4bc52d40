/*
 * What a driver set in a network card, beside its queues: what migrates.
 *
 * Thread and lock are its owner's.
 */
#ifndef FERRY_VIRTIO_NET_STATE_H
#define FERRY_VIRTIO_NET_STATE_H

#include "devices/virtio/net_rss.h"
#include "net/receive_filter.h"
#include "vmm/util/state.h"

struct net_state {
    struct net_receive_filter filter;   /* but for its pointer to the VLANs: */
    uint64_t vlans[NET_VLANS / 64];     /* the table of §5.1.6.5.3 */
    uint16_t pairs;                     /* in use; 0, from older states: one */
    bool announce;                      /* VIRTIO_NET_S_ANNOUNCE */
    bool rss;                           /* the table below steers, not the flows sent */
    uint64_t guest_offloads;            /* VIRTIO_NET_F_GUEST_ bits that are switched on */
    uint32_t hash_types;
    uint16_t table_mask;                /* entries of the table, less one */
    uint16_t unclassified;              /* receive queue, counted from 0, of what has no hash */
    uint16_t table[NET_RSS_TABLE];      /* receive queues, counted from 0 */
    uint8_t key_length;
    uint8_t key[NET_RSS_KEY];
};
/* Its record is named "net-filter", for at first that was all. */
extern const struct state_desc net_state_desc;

/* As after reset: own address and broadcast, nothing else; no VLANs; one pair; no offloads. */
void net_state_reset(struct net_state *state, const uint8_t mac[6]);
/* NULL, or what is wrong with a state that was read, for a card of so many pairs. */
const char *net_state_check(const struct net_state *state, unsigned max_pairs);

#endif
