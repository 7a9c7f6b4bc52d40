/*
 * User-mode NAT: a private network for one guest, reached through sockets of this process. Needs
 * no privilege. libslirp does the protocols; this is its life in the event loop, and its port.
 *
 * The guest sees, with the default 10.0.2.0/24: 10.0.2.2, its router, which is also this host's
 * loopback interface; 10.0.2.3, a DNS server that passes questions on to the host's; a DHCP server
 * that gives out 10.0.2.15 and the following. With IPv6: fec0::/64 by router advertisement, router
 * fec0::2, DNS fec0::3. Pings of the router are answered; pings of others need the host's
 * permission (net.ipv4.ping_group_range).
 *
 * Everything on the event loop's thread, without the device lock.
 */
#ifndef FERRY_NET_NAT_H
#define FERRY_NET_NAT_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#include "net/forward.h"
#include "net/port.h"

#define NAT_MIN_PREFIX 8u
#define NAT_MAX_PREFIX 27u /* leaves room for the DHCP server's addresses, 15 to 30 */
#define NAT_MIN_MTU 1280u  /* IPv6 wants as much (RFC 8200 §5) */
#define NAT_MAX_MTU 65520u
#define NAT_MAX_FORWARDS 64u

struct loop;
struct nat;

/* Pointers are borrowed during nat_create(), but for name: as long as the NAT lives. */
struct nat_config {
    const char *name;       /* of the port, for messages: "net0" */
    struct in_addr network; /* its host bits are 0 */
    unsigned prefix;        /* NAT_MIN_PREFIX..NAT_MAX_PREFIX */
    struct in_addr dns;     /* the DNS server that DHCP names; INADDR_ANY: the one described above */
    const char *hostname;   /* that DHCP gives the guest, or NULL */
    const char *domain;     /* likewise */
    bool ipv6;
    bool restricted;        /* the guest reaches neither host nor network; forwards still work */
    unsigned mtu;           /* bytes of IP a frame, NAT_MIN_MTU..NAT_MAX_MTU; the NIC's the same */
    const struct net_forward *forwards;
    unsigned n_forwards;    /* at most NAT_MAX_FORWARDS */
    bool forwards_later;    /* nat_claim_forwards() binds their ports */
};

/* What came from the guest and was not for the network. */
struct nat_counters {
    uint64_t ignored;   /* other protocols than ARP, IPv4 and IPv6 */
    uint64_t malformed; /* too short, too long, lengths that contradict each other */
    uint64_t refused;   /* would have opened a connection beyond the limit */
};

/* Sets the defaults: 10.0.2.0/24, IPv6, an MTU of 1500, no forwards. */
void nat_config_init(struct nat_config *config);

/* "192.168.76.0/24": 0; -EINVAL, not logged, with the results as they were. Any thread. */
int nat_subnet_parse(const char *text, struct in_addr *network, unsigned *prefix);

/*
 * Errors, each logged by one line: -EINVAL (the config), -ENOENT and -ENOEXEC (libslirp, see
 * slirp_api.h), -EADDRINUSE, -EADDRNOTAVAIL, -EACCES and others of bind(2) for a forward's port,
 * -ENOMEM. Raises this process's soft limit of open files, since a connection takes one.
 */
int nat_create(struct nat **out, struct loop *loop, const struct nat_config *config);
/* Unplugs, closes all connections, and runs the loop until the kernel let go of them. Not from a
 * callback of the loop. NULL is fine. */
void nat_destroy(struct nat *nat);

/* For a guest that moves within a host. Binds the forwards' ports that are not bound, and tries again
 * for ten seconds where one is in use; what cannot be had is logged. The other lets all of them go: in a
 * moment another process can bind them; connections stay. */
void nat_claim_forwards(struct nat *nat);
void nat_release_forwards(struct nat *nat);

/* The end that a guest's NIC is plugged into. Owned by the NAT. */
struct net_port *nat_port(struct nat *nat);
void nat_get_counters(const struct nat *nat, struct nat_counters *counters);

#endif
