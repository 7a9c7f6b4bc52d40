/*
 * Uplinks: from a configuration to the kind that it asks for.
 *
 * Does nothing with frames; the kinds do, each in files of its own. Loop's thread; no locks.
 */
#include "net/uplink.h"

#include <errno.h>
#include <stdlib.h>

#include "net/nat.h"
#include "vmm/util/log.h"

struct uplink {
    void *instance; /* owns; of the kind's own type */
    struct net_port *port;
    void (*destroy)(void *instance);
};

static void destroy_nat(void *instance)
{
    nat_destroy(instance);
}

static int create_nat(struct uplink *uplink, struct loop *loop, const char *name,
                      const struct uplink_config *config)
{
    struct nat_config nat_config;
    struct nat *nat;
    int err;

    nat_config_init(&nat_config);
    nat_config.name = name;
    if (config->network.s_addr != INADDR_ANY) {
        nat_config.network = config->network;
        nat_config.prefix = config->prefix;
    }
    nat_config.dns = config->dns;
    nat_config.ipv6 = config->ipv6;
    nat_config.restricted = config->restricted;
    if (config->mtu)
        nat_config.mtu = config->mtu;
    nat_config.forwards = config->forwards;
    nat_config.n_forwards = config->n_forwards;
    err = nat_create(&nat, loop, &nat_config);
    if (err)
        return err;
    *uplink = (struct uplink){.instance = nat, .port = nat_port(nat), .destroy = destroy_nat};
    return 0;
}

int uplink_create(struct uplink **out, struct loop *loop, const char *name,
                  const struct uplink_config *config, const uint8_t mac[6])
{
    struct uplink *uplink = calloc(1, sizeof(*uplink));
    int err = -EINVAL;

    (void)mac;
    if (!uplink) {
        log_error("%s: out of memory", name);
        return -ENOMEM;
    }
    switch (config->kind) {
    case UPLINK_NAT:
        err = create_nat(uplink, loop, name, config);
        break;
    }
    if (err) {
        free(uplink);
        return err;
    }
    *out = uplink;
    return 0;
}

void uplink_destroy(struct uplink *uplink)
{
    if (!uplink)
        return;
    uplink->destroy(uplink->instance);
    free(uplink);
}

struct net_port *uplink_port(struct uplink *uplink)
{
    return uplink->port;
}
