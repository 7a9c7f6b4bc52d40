/*
 * The host's links and addresses, by rtnetlink. Each call is a system call or two and done when it
 * returns. Errors are negative errno of the kernel, not logged; nl->reason may have its words.
 */
#ifndef FERRY_NET_RTNL_H
#define FERRY_NET_RTNL_H

#include <net/if.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#include "net/netlink.h"

#define RTNL_ALIAS_MAX 64
#define RTNL_MAX_UPLINKS 32

struct rtnl_link {
    unsigned index;
    char name[IFNAMSIZ];
    char kind[16];               /* "bridge", "macvtap", ...; "" for none */
    char alias[RTNL_ALIAS_MAX];
    uint8_t mac[6];
    unsigned mtu;
    unsigned master;             /* index, or 0 */
    bool up;
};

/* -ENODEV: there is no such link. */
int rtnl_link_find(struct netlink *nl, const char *name, struct rtnl_link *link);
int rtnl_link_get(struct netlink *nl, unsigned index, struct rtnl_link *link);

/* What is to become of a link; what is 0 or NULL stays. */
struct rtnl_change {
    bool up;
    bool no_addresses;  /* IPv6 makes none of its own */
    const uint8_t *mac; /* 6 bytes */
    const char *alias;
    unsigned mtu;
    unsigned master;
};
int rtnl_link_change(struct netlink *nl, unsigned index, const struct rtnl_change *change);

/* mode: MACVLAN_MODE_ of linux/if_link.h. -EEXIST: the name is taken. */
int rtnl_macvtap_create(struct netlink *nl, unsigned lower, const char *name,
                        const uint8_t mac[6], uint32_t mode);
int rtnl_link_delete(struct netlink *nl, unsigned index);

/* Gives a link an IPv4 address in a network of prefix bits. */
int rtnl_address_add(struct netlink *nl, unsigned index, struct in_addr address, unsigned prefix);

/* Whether a network overlaps one that the host has an address or a route for, the default route
 * aside. 1, 0 or -errno. */
int rtnl_network_used(struct netlink *nl, struct in_addr network, unsigned prefix);

/* The links by which IPv4 routes of the main table lead to other stations, each once; at most `max`.
 * Returns how many, or -errno. */
int rtnl_routed_links(struct netlink *nl, unsigned *indices, unsigned max);

#endif
