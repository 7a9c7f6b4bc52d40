/*
 * A guest on the network of the host's own NIC: by a macvtap on it, or as a port of a Linux bridge.
 *
 * A macvtap passes only frames for its own address, which is the guest's; the host and the guest do
 * not see each other's frames, but by a switch outside that reflects them (mode vepa). A port of a
 * bridge has neither limit. Takes CAP_NET_ADMIN; for a bridge qemu-bridge-helper, where it is
 * installed and its owner allowed the bridge, does instead.
 */
#ifndef FERRY_NET_BRIDGED_H
#define FERRY_NET_BRIDGED_H

#include <stdint.h>

struct bridged;
struct loop;
struct net_port;

/* Pointers are borrowed during bridged_create(), but for name: as long as it lives. */
struct bridged_config {
    const char *name;      /* of the port, for messages: "net0" */
    const char *nic;       /* for a macvtap, or NULL */
    const char *bridge;    /* or NULL */
    uint32_t macvtap_mode; /* MACVLAN_MODE_ of linux/if_link.h */
    unsigned queues;
    const uint8_t *mac;    /* the guest's; NULL: there may be many */
};

/* Errors, logged: -ENODEV, -EINVAL (no bridge), -EBUSY, -EPERM, -ENOENT (made.h), -ENOMEM and others
 * of the host's. Loop's thread. */
int bridged_create(struct bridged **out, struct loop *loop, const struct bridged_config *config);
/* Takes the device away. Not from a callback of the loop. NULL is fine. */
void bridged_destroy(struct bridged *bridged);

struct net_port *bridged_port(struct bridged *bridged);
const struct tap *bridged_tap(const struct bridged *bridged);

#endif
