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

#include "net/forward.h"

#define UPLINK_MAX_FORWARDS 32

struct loop;
struct net_port;
struct uplink;

enum uplink_kind { UPLINK_NAT };

/* Strings are owned by the struct. */
struct uplink_config {
    enum uplink_kind kind;
    struct in_addr network; /* subnet=; INADDR_ANY: none was given */
    unsigned prefix;
    struct in_addr dns;     /* INADDR_ANY: none was given */
    bool ipv6;
    bool restricted;
    unsigned mtu;           /* of the card, bytes of IP; 0: 1500 */
    struct net_forward forwards[UPLINK_MAX_FORWARDS];
    unsigned n_forwards;
};

/* Sets the defaults: user-mode NAT. Nothing is owned yet. */
void uplink_config_init(struct uplink_config *config);
void uplink_config_fini(struct uplink_config *config);

/* "nat", as a person writes it. */
const char *uplink_mode_name(const struct uplink_config *config);

/*
 * Whether the key of that name means something in the mode that the configuration has. Any thread.
 */
bool uplink_key_applies(const struct uplink_config *config, const char *key);

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

/* The end that a NIC or a switch is plugged into. Owned by the uplink. */
struct net_port *uplink_port(struct uplink *uplink);

#endif
