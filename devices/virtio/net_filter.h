/*
 * The receive filter of a network card (virtio 1.2 §5.1.6.5.1, §5.1.6.5.2): which destination
 * addresses the guest wants. Plain state, which migrates; no locks of its own.
 */
#ifndef FERRY_VIRTIO_NET_FILTER_H
#define FERRY_VIRTIO_NET_FILTER_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/util/state.h"

/* Addresses of a kind in the table. With more, all of that kind are let through. */
#define NET_FILTER_TABLE 64u

/* The modes, numbered as the commands of class VIRTIO_NET_CTRL_RX. */
enum net_filter_mode {
    NET_FILTER_PROMISC,
    NET_FILTER_ALLMULTI,
    NET_FILTER_ALLUNI,
    NET_FILTER_NOMULTI,
    NET_FILTER_NOUNI,
    NET_FILTER_NOBCAST,
    NET_FILTER_MODES,
};

struct net_filter_table {
    uint32_t entries; /* as the driver said; beyond NET_FILTER_TABLE they are not kept */
    uint8_t macs[NET_FILTER_TABLE * 6];
};

struct net_filter {
    uint8_t mac[6]; /* the card's own */
    bool modes[NET_FILTER_MODES];
    struct net_filter_table unicast, multicast;
};
extern const struct state_desc net_filter_state_desc;

/* As after power-on: own address and broadcast, nothing else. */
void net_filter_reset(struct net_filter *filter, const uint8_t mac[6]);
/* Whether a state that was read is one: 0 or -EINVAL, not logged. */
int net_filter_check(const struct net_filter *filter);

/* Whether a frame to the address `to` is wanted. */
bool net_filter_wants(const struct net_filter *filter, const uint8_t to[6]);

/* Of a group, broadcast included (IEEE 802 §8.2.2). */
static inline bool net_mac_is_group(const uint8_t mac[6])
{
    return mac[0] & 1;
}

#endif
