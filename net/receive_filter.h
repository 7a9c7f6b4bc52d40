/*
 * What a port wants to receive: its address, further ones, modes, VLANs. A NIC tells its peer
 * (net_port_tell_filter()), so that a switch need not learn about it.
 *
 * A plain value; no thread, no locks.
 */
#ifndef FERRY_NET_RECEIVE_FILTER_H
#define FERRY_NET_RECEIVE_FILTER_H

#include <stdbool.h>
#include <stdint.h>

/* Addresses of a kind that are kept. */
#define NET_FILTER_TABLE 64u
#define NET_VLANS 4096u

struct net_filter_table {
    uint32_t entries; /* as was said; beyond NET_FILTER_TABLE none is kept, and all of the kind
                       * are wanted */
    uint8_t macs[NET_FILTER_TABLE * 6];
};

/* The modes are those of virtio 1.2 §5.1.6.5.1: promiscuous goes before all, each "no" before its
 * "all", and broadcast is apart from multicast. */
struct net_receive_filter {
    uint8_t mac[6]; /* the NIC's own */
    bool promiscuous, allmulti, alluni, nomulti, nouni, nobcast;
    struct net_filter_table unicast, multicast;
    const uint64_t *vlans; /* NET_VLANS bits: the tags wanted; frames without one always are. NULL: all.
                            * Borrowed, see who passes the filter */
};

/* Whether a frame to that address is wanted, and one with that VLAN id. */
bool net_receive_filter_wants(const struct net_receive_filter *filter, const uint8_t to[6]);
bool net_receive_filter_wants_vlan(const struct net_receive_filter *filter, unsigned vid);

/* Of a group, broadcast included (IEEE 802 §8.2.2). */
static inline bool net_mac_is_group(const uint8_t mac[6])
{
    return mac[0] & 1;
}

#endif
