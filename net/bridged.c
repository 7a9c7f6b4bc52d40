/*
 * Bridged modes: making a macvtap or a tap on a bridge, and taking it away.
 *
 * A tap ends with its descriptor. A macvtap does not: it is noted (made.h) before it is made, and
 * removed at the end, or by the next ferry. Frames are tap.c's.
 *
 * When a guest changes its NIC's address, the macvtap follows, or it would pass none of its frames;
 * but not in mode passthru, where it has the host NIC's own address and passes all.
 *
 * Loop's thread; no locks. Texts: linux/if_link.h, IFLA_MACVLAN_MODE; ip-link(8), macvtap.
 */
#include "net/bridged.h"

#include <errno.h>
#include <linux/if_link.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "net/bridge_helper.h"
#include "net/made.h"
#include "net/receive_filter.h"
#include "net/rtnl.h"
#include "net/tap.h"
#include "vmm/util/log.h"

/* A bridge takes the lowest of its ports' addresses for its own unless it was given one: a tap's
 * shall be none. */
#define HIGH_MAC_BYTE 0xFE
#define NAME_TRIES 1000u

struct bridged {
    const char *name; /* borrowed */
    unsigned index;   /* of the macvtap; 0: a tap */
    bool passthru;    /* it has all frames of the NIC, and its address */
    uint8_t mac[6];   /* of the macvtap */
    struct made made; /* the macvtap */
    struct tap *tap;
    struct log_rate log_rate;
};

static void make_mac(const uint8_t *wanted, uint8_t mac[6])
{
    if (wanted) {
        memcpy(mac, wanted, 6);
        return;
    }
    if (getrandom(mac, 6, 0) != 6)
        memset(mac, 0, 6);
    mac[0] = 0x02; /* local, of a station */
}

/* ---- macvtap ---- */

static int log_macvtap(const struct bridged *b, const char *nic, const struct netlink *nl, int err)
{
    if (err == -EPERM)
        log_error("%s: no right to make a macvtap on %s: it takes the capability CAP_NET_ADMIN; run "
                  "ferry as root, or use --net nat, which takes none", b->name, nic);
    else if (err == -EBUSY)
        log_error("%s: %s is a bridge's port, or in use by another macvtap of mode passthru or "
                  "macvlan", b->name, nic);
    else if (err == -EOPNOTSUPP)
        log_error("%s: the kernel has no macvtap (modprobe macvtap)", b->name);
    else
        log_error("%s: cannot make a macvtap on %s: %s%s%s", b->name, nic, strerror(-err),
                  nl->reason[0] ? ": " : "", nl->reason);
    return err;
}

/* Makes one under the first free name of Ferry's, with its record before it. Logs errors. */
static int make_macvtap(struct bridged *b, struct netlink *nl, const char *nic, unsigned lower,
                        uint32_t mode)
{
    char name[IFNAMSIZ];
    int err = -EEXIST;

    for (unsigned i = 0; i < NAME_TRIES && err == -EEXIST; i++) {
        snprintf(name, sizeof(name), "ferry%u", i);
        if (if_nametoindex(name) != 0)
            continue;
        err = made_macvtap(&b->made, name, b->mac);
        if (err)
            return err;
        err = rtnl_macvtap_create(nl, lower, name, b->mac, mode);
        if (err)
            made_forget(&b->made);
    }
    if (err)
        return log_macvtap(b, nic, nl, err);
    b->index = if_nametoindex(name);
    return 0;
}

static int open_macvtap(struct bridged *b, struct netlink *nl, const struct bridged_config *config,
                        struct tap_device *device)
{
    struct rtnl_change change = {.up = true, .no_addresses = true, .alias = b->made.tag};
    struct rtnl_link nic;
    int err = rtnl_link_find(nl, config->nic, &nic);

    if (err == -ENODEV)
        log_error("%s: there is no interface %s ('ip -br link' lists them)", b->name, config->nic);
    if (err)
        return err;
    if (!nic.up)
        log_warn("%s: %s is down ('ip link set %s up')", b->name, config->nic, config->nic);
    b->passthru = config->macvtap_mode == MACVLAN_MODE_PASSTHRU;
    make_mac(b->passthru ? nic.mac : config->mac, b->mac);
    err = make_macvtap(b, nl, config->nic, nic.index, config->macvtap_mode);
    if (err)
        return err;
    err = rtnl_link_change(nl, b->index, &change);
    if (err)
        return log_macvtap(b, config->nic, nl, err);
    return tap_device_open_macvtap(device, b->name, b->index, b->mac, config->queues);
}

static void filter_changed(void *arg, const struct net_receive_filter *filter)
{
    struct rtnl_change change = {.mac = filter->mac};
    struct bridged *b = arg;
    struct netlink nl;
    int err;

    if (b->index == 0 || b->passthru || memcmp(filter->mac, b->mac, 6) == 0)
        return;
    err = netlink_open(&nl, NETLINK_ROUTE);
    if (!err) {
        err = rtnl_link_change(&nl, b->index, &change);
        netlink_close(&nl);
    }
    if (err)
        log_guest(&b->log_rate, "%s: the macvtap cannot take the guest's new address: %s", b->name,
                  strerror(-err));
    else
        memcpy(b->mac, filter->mac, 6);
}

/* ---- bridge ---- */

static int check_bridge(const struct bridged *b, struct netlink *nl, const char *name,
                        struct rtnl_link *bridge)
{
    int err = rtnl_link_find(nl, name, bridge);

    if (err == -ENODEV) {
        log_error("%s: there is no bridge %s ('ip link add %s type bridge' makes one)", b->name,
                  name, name);
        return err;
    }
    if (!err && strcmp(bridge->kind, "bridge") != 0) {
        log_error("%s: %s is no bridge; for a guest on a NIC's network, say if=%s", b->name, name,
                  name);
        return -EINVAL;
    }
    return err;
}

static int open_by_helper(struct bridged *b, const struct bridged_config *config,
                          struct tap_device *device)
{
    int fd = bridge_helper_open(b->name, config->bridge);
    int err;

    if (fd == -ENOENT)
        log_error("%s: no right to add a port to %s: it takes the capability CAP_NET_ADMIN, as root "
                  "has it; or install qemu-bridge-helper (qemu-system-common), which does it for "
                  "others", b->name, config->bridge);
    if (fd < 0)
        return fd;
    err = tap_device_adopt(device, b->name, fd);
    if (err)
        close(fd);
    return err;
}

static int open_bridge(struct bridged *b, struct netlink *nl, const struct bridged_config *config,
                       struct tap_device *device)
{
    struct rtnl_change change = {.up = true, .no_addresses = true};
    struct rtnl_link bridge;
    uint8_t mac[6];
    int err = check_bridge(b, nl, config->bridge, &bridge);

    if (err)
        return err;
    err = tap_device_try(device, config->queues);
    if (err == -EPERM || err == -EACCES)
        return open_by_helper(b, config, device);
    /* Again, for what it has to say. */
    if (err)
        err = tap_device_make(device, b->name, NULL, config->queues);
    if (err)
        return err;
    make_mac(config->mac, mac);
    mac[0] = HIGH_MAC_BYTE;
    change.mac = mac;
    change.mtu = bridge.mtu;
    change.master = bridge.index;
    err = rtnl_link_change(nl, if_nametoindex(device->name), &change);
    if (err) {
        log_error("%s: cannot make %s a port of %s: %s%s%s", b->name, device->name, config->bridge,
                  strerror(-err), nl->reason[0] ? ": " : "", nl->reason);
        tap_device_close(device);
        return err;
    }
    made_tap(&b->made, device->name, mac);
    return 0;
}

/* ---- life ---- */

static int open_device(struct bridged *b, const struct bridged_config *config,
                       struct tap_device *device)
{
    struct netlink nl;
    int err = netlink_open(&nl, NETLINK_ROUTE);

    if (err) {
        log_error("%s: no netlink socket: %s", b->name, strerror(-err));
        return err;
    }
    err = config->bridge ? open_bridge(b, &nl, config, device)
                         : open_macvtap(b, &nl, config, device);
    netlink_close(&nl);
    return err;
}

int bridged_create(struct bridged **out, struct loop *loop, const struct bridged_config *config)
{
    struct bridged *b = calloc(1, sizeof(*b));
    struct tap_hooks hooks = {.filter_changed = filter_changed, .arg = b};
    struct tap_device device;
    int err;

    if (!b) {
        log_error("%s: out of memory", config->name);
        return -ENOMEM;
    }
    b->name = config->name;
    b->made = (struct made)MADE_NONE;
    err = open_device(b, config, &device);
    if (err)
        goto undo;
    err = tap_create(&b->tap, loop, config->name, &device, &hooks);
    if (err) {
        tap_device_close(&device);
        goto undo;
    }
    *out = b;
    return 0;

undo:
    bridged_destroy(b);
    return err;
}

void bridged_destroy(struct bridged *b)
{
    if (!b)
        return;
    tap_destroy(b->tap);
    made_undo(&b->made);
    free(b);
}

struct net_port *bridged_port(struct bridged *bridged)
{
    return tap_port(bridged->tap);
}

const struct tap *bridged_tap(const struct bridged *bridged)
{
    return bridged->tap;
}
