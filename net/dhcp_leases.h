/*
 * Which station has which address: the bindings of a DHCP server.
 *
 * An address is bound to a station's MAC and stays so after its lease ran out, until no other
 * address is left for somebody new; so a guest finds its address again. Times are seconds of any
 * clock that only goes on. No thread, no locks; one owner.
 */
#ifndef FERRY_NET_DHCP_LEASES_H
#define FERRY_NET_DHCP_LEASES_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Addresses that are given out, at most; a larger network's rest is not. */
#define DHCP_POOL_MAX 1024u
/* The first host of a network that is given out: those before it are the router's and for stations
 * that are set up by hand. */
#define DHCP_FIRST_HOST 16u
#define DHCP_MAX_FIXED 32u

struct dhcp_fixed {
    uint8_t mac[6];
    struct in_addr address;
};

#define DHCP_FIXED_EXPECTS "MAC-ADDRESS, as in 52:54:00:12:34:56-192.168.58.20,"
/* 0; -EINVAL with *fixed as it was. */
int dhcp_fixed_parse(struct dhcp_fixed *fixed, const char *text);

struct dhcp_leases;

/* fixed: copied. Each must be in the network, and neither its own address, nor the broadcast one, nor
 * `server`; else -EINVAL. -ENOMEM. */
int dhcp_leases_create(struct dhcp_leases **out, struct in_addr network, unsigned prefix,
                       struct in_addr server, const struct dhcp_fixed *fixed, unsigned n_fixed);
void dhcp_leases_destroy(struct dhcp_leases *leases);

/* The address bound to a station, whether its lease runs or not; INADDR_ANY: none. */
struct in_addr dhcp_leases_find(const struct dhcp_leases *leases, const uint8_t mac[6]);

/*
 * The address for a station: its own; else the one it wishes for, if that is free; else one that
 * nobody had; else the one whose lease ran out longest ago. Held for it until `until`. INADDR_ANY
 * when all are taken.
 */
struct in_addr dhcp_leases_offer(struct dhcp_leases *leases, const uint8_t mac[6],
                                 struct in_addr wish, uint64_t now, uint64_t until);

/* The station's lease runs until then; with its address as dhcp_leases_find() tells it. */
void dhcp_leases_extend(struct dhcp_leases *leases, const uint8_t mac[6], uint64_t until);
/* Whether the station's binding is news to the file: true once for each that is not fixed. */
bool dhcp_leases_is_new(struct dhcp_leases *leases, const uint8_t mac[6]);
/* Binds without asking, as at the reading of a file. False: the address is not given out, or is a
 * fixed one. What was bound to either before is not any more. */
bool dhcp_leases_bind(struct dhcp_leases *leases, const uint8_t mac[6], struct in_addr address,
                      uint64_t until);
/* The station found its address in use by somebody else: nobody gets it until then. */
void dhcp_leases_decline(struct dhcp_leases *leases, const uint8_t mac[6], uint64_t until);

/* Each binding that is not fixed, until `each` returns false. `until`: when its lease ends. */
void dhcp_leases_each(const struct dhcp_leases *leases,
                      bool (*each)(void *arg, const uint8_t mac[6], struct in_addr address,
                                   uint64_t until),
                      void *arg);

#endif
