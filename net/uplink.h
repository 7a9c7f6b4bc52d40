/*
 * Uplinks: what joins a guest's NIC, or a switch, to the world outside the process. Which kind it
 * is makes the network mode that people know: NAT, host-only, bridged and so on.
 *
 * The configuration is plain data, filled in by tables of options (uplink_options.h); what needs
 * the host is asked when an uplink is created.
 */
#ifndef FERRY_NET_UPLINK_H
#define FERRY_NET_UPLINK_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#include "net/dhcp_leases.h"
#include "net/forward.h"

#define UPLINK_MAX_FORWARDS 32
#define UPLINK_MIN_MTU 1280u
#define UPLINK_MAX_MTU 65520u
#define UPLINK_MAX_QUEUES 16u

struct loop;
struct net_port;
struct uplink;

enum uplink_kind {
    UPLINK_NAT,      /* the host's networks, by translation */
    UPLINK_HOSTONLY, /* the host, and nothing else */
    UPLINK_BRIDGE,   /* a host's NIC by a macvtap, or a port of its bridge */
    UPLINK_TAP,      /* a tap that somebody else made */
    UPLINK_STREAM,   /* another process, by a stream socket */
};

/* Who translates. */
enum uplink_via { UPLINK_VIA_SLIRP, UPLINK_VIA_PASST, UPLINK_VIA_KERNEL };

/* Values as in linux/if_link.h. */
enum uplink_macvtap { UPLINK_PRIVATE = 1, UPLINK_VEPA = 2, UPLINK_PLAIN = 4, UPLINK_PASSTHRU = 8 };

/* Strings are owned by the struct; NULL: not given, as is INADDR_ANY for addresses, 0 for numbers. */
struct uplink_config {
    enum uplink_kind kind;
    enum uplink_via via;
    char *link;    /* if=: what it is depends on the kind */
    char *bridge;  /* br= */
    enum uplink_macvtap macvtap;
    char *path;    /* of a stream's unix socket */
    char *address; /* HOST:PORT of a stream by TCP */
    bool server;
    unsigned reconnect; /* seconds */
    unsigned queues; /* of a tap */
    struct in_addr network; /* subnet= */
    unsigned prefix;
    struct in_addr dns, router;
    char *domain;
    unsigned mtu; /* bytes of IP; 0: 1500, and DHCP does not tell it */
    bool dhcp;
    struct dhcp_fixed fixed[DHCP_MAX_FIXED];
    unsigned n_fixed;
    char *lease_file;
    bool ipv6;
    bool restricted;
    struct net_forward forwards[UPLINK_MAX_FORWARDS];
    unsigned n_forwards;
    bool forwards_later; /* no option: their ports are taken by uplink_claim_forwards() */
};

/* Sets the defaults: user-mode NAT. Nothing is owned yet. */
void uplink_config_init(struct uplink_config *config);
void uplink_config_fini(struct uplink_config *config);

/* "nat" or "nat,via=passt": the mode, as a person writes it. */
const char *uplink_mode_name(const struct uplink_config *config);

/*
 * Whether the key of that name means something in the mode that the configuration has. Any thread.
 */
bool uplink_key_applies(const struct uplink_config *config, const char *key);

/* The MTU that a card with this uplink to itself tells its guest when nobody said another; 0: none. */
unsigned uplink_default_mtu(const struct uplink_config *config);
/*
 * Checks what only the whole can tell: keys that are missing or exclude each other. `where` names
 * the place for messages ("--net"). 0 or -EINVAL, logged.
 */
int uplink_config_check(const char *where, const struct uplink_config *config);

/*
 * name: of the uplink, for messages ("net0"); borrowed as long as it lives. mac: the station that
 * will be plugged into it, or NULL when there may be many. Errors, each logged by one line: those of
 * the kind. Loop's thread, from here to the end.
 */
int uplink_create(struct uplink **out, struct loop *loop, const char *name,
                  const struct uplink_config *config, const uint8_t mac[6]);
/* Unplugs and takes away what was made on the host. Not from a callback of the loop. NULL is fine. */
void uplink_destroy(struct uplink *uplink);

/* Whether the ports of the forwards can be taken later, and let go again: so can another process of this
 * host have them after this one. */
bool uplink_hands_forwards_over(const struct uplink_config *config);
/* As nat_claim_forwards() and nat_release_forwards() of net/nat.h; of another kind: nothing. */
void uplink_claim_forwards(struct uplink *uplink);
void uplink_release_forwards(struct uplink *uplink);

/* What Ferry's own DHCP server on the uplink has bound to whom; NULL: there is no such server. */
const struct dhcp_leases *uplink_leases(const struct uplink *uplink);
/* Calls tell() for each reason for which frames did not get through, with how many those were, more
 * than none: "full" and so on, as the manual page of `ferry net` explains them. */
void uplink_each_drop(const struct uplink *uplink,
                      void (*tell)(void *arg, const char *reason, uint64_t frames), void *arg);
/* Binds an address to a station for so many seconds more, as a server elsewhere has done. False: it has
 * no server, gives no such address, or has given it to another station. */
bool uplink_add_lease(struct uplink *uplink, const uint8_t mac[6], struct in_addr address,
                      uint64_t left_s);
/* The end that a NIC or a switch is plugged into. Owned by the uplink. */
struct net_port *uplink_port(struct uplink *uplink);

#endif
