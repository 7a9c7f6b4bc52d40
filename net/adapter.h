/*
 * A network between the host and guests: a tap of Ferry's own with an address of the host's, DHCP,
 * and a packet filter that says what leaves it: nothing (host-only), or what is translated to the
 * host's addresses (kernel NAT). Takes CAP_NET_ADMIN.
 *
 * All of it vanishes with the process, however that ends, but for the setting that host links
 * forward packets, of which there is a record (made.h).
 */
#ifndef FERRY_NET_ADAPTER_H
#define FERRY_NET_ADAPTER_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#include "net/dhcp_leases.h"
#include "net/forward.h"

#define ADAPTER_MIN_MTU 576u
#define ADAPTER_MAX_MTU 65520u

struct adapter;
struct loop;
struct net_port;

/* Pointers are borrowed during adapter_create(), but for name: as long as the adapter lives. */
struct adapter_config {
    const char *name;       /* of the port, for messages: "net0" */
    const char *link;       /* of the interface on the host, or NULL: "ferry0" and so on */
    bool nat;               /* out by the host's addresses; else nothing is routed */
    const char *out;        /* the only host link that NAT goes by; NULL: all with routes */
    struct in_addr network; /* INADDR_ANY: one that the host has no use for */
    unsigned prefix;
    const uint8_t *mac;     /* of the only station, or NULL */
    bool dhcp;
    struct in_addr router;  /* that DHCP names; INADDR_ANY: with NAT the host, else none */
    struct in_addr dns;     /* likewise; with NAT those of the host */
    const char *domain;     /* or NULL */
    unsigned mtu;           /* 0: 1500 */
    unsigned queues;
    const struct dhcp_fixed *fixed;
    unsigned n_fixed;
    const char *lease_file; /* NULL: one named after the network, in the state directory */
    const struct net_forward *forwards;
    unsigned n_forwards;
};

/* Errors, logged: -EINVAL, -EADDRINUSE (the network), -EPERM, -EPROTONOSUPPORT, -ENOENT, -ENOMEM and
 * others of the host's. Loop's thread. */
int adapter_create(struct adapter **out, struct loop *loop, const struct adapter_config *config);
/* Not from a callback of the loop. NULL is fine. */
void adapter_destroy(struct adapter *adapter);

struct net_port *adapter_port(struct adapter *adapter);
const struct tap *adapter_tap(const struct adapter *adapter);
/* What its DHCP server has bound; NULL: it has none. */
const struct dhcp_leases *adapter_leases(const struct adapter *adapter);
/* Has it bind an address to a station for so many seconds more. False: it gives no such address, or has
 * given it to another one. */
bool adapter_add_lease(struct adapter *adapter, const uint8_t mac[6], struct in_addr address,
                       uint64_t left_s);

#endif
