/*
 * Uplinks: from a configuration to the kind that it asks for.
 *
 * Does nothing with frames; the kinds do, each in files of its own. Loop's thread; no locks.
 */
#include "net/uplink.h"

#include <errno.h>
#include <stdlib.h>

#include "net/adapter.h"
#include "net/bridged.h"
#include "net/made.h"
#include "net/nat.h"
#include "net/passt.h"
#include "net/stream_port.h"
#include "net/tap.h"
#include "vmm/util/log.h"

struct drop {
    const char *reason;
    uint64_t frames;
};
#define MAX_DROPS 4u

struct uplink {
    void *instance; /* owns; of the kind's own type */
    struct net_port *port;
    void (*destroy)(void *instance);
    unsigned (*drops)(const void *instance, struct drop drops[MAX_DROPS]);
};

/* What is handed to each kind. */
struct request {
    struct loop *loop;
    const char *name;
    const struct uplink_config *config;
    const uint8_t *mac; /* or NULL */
};

/* ---- what did not get through ---- */

static unsigned slirp_drops(const void *instance, struct drop drops[MAX_DROPS])
{
    struct nat_counters c;

    nat_get_counters(instance, &c);
    drops[0] = (struct drop){"ignored", c.ignored};
    drops[1] = (struct drop){"malformed", c.malformed};
    drops[2] = (struct drop){"refused", c.refused};
    return 3;
}

static unsigned of_tap(const struct tap *tap, struct drop drops[MAX_DROPS])
{
    struct tap_counters c;

    tap_get_counters(tap, &c);
    drops[0] = (struct drop){"full", c.full};
    drops[1] = (struct drop){"refused", c.refused};
    drops[2] = (struct drop){"malformed", c.malformed};
    return 3;
}

static unsigned tap_drops(const void *instance, struct drop drops[MAX_DROPS])
{
    return of_tap(instance, drops);
}

static unsigned adapter_drops(const void *instance, struct drop drops[MAX_DROPS])
{
    return of_tap(adapter_tap(instance), drops);
}

static unsigned bridged_drops(const void *instance, struct drop drops[MAX_DROPS])
{
    return of_tap(bridged_tap(instance), drops);
}

static unsigned of_stream(const struct stream_port *stream, struct drop drops[MAX_DROPS])
{
    struct stream_counters c;

    stream_port_get_counters(stream, &c);
    drops[0] = (struct drop){"unconnected", c.unconnected};
    drops[1] = (struct drop){"malformed", c.malformed};
    return 2;
}

static unsigned stream_drops(const void *instance, struct drop drops[MAX_DROPS])
{
    return of_stream(instance, drops);
}

static unsigned passt_drops(const void *instance, struct drop drops[MAX_DROPS])
{
    return of_stream(passt_stream(instance), drops);
}

void uplink_each_drop(const struct uplink *uplink,
                      void (*tell)(void *arg, const char *reason, uint64_t frames), void *arg)
{
    struct drop drops[MAX_DROPS];
    unsigned n = uplink->drops(uplink->instance, drops);

    /* Frames from the world outside that whoever is plugged in had no room for. */
    drops[n++] = (struct drop){"no-room", uplink->port->sent.dropped};
    for (unsigned i = 0; i < n; i++) {
        if (drops[i].frames > 0)
            tell(arg, drops[i].reason, drops[i].frames);
    }
}

/* ---- the kinds ---- */

static void destroy_slirp(void *instance)
{
    nat_destroy(instance);
}

static int create_slirp(struct uplink *uplink, const struct request *r)
{
    struct nat_config config;
    struct nat *nat;
    int err;

    nat_config_init(&config);
    config.name = r->name;
    if (r->config->network.s_addr != INADDR_ANY) {
        config.network = r->config->network;
        config.prefix = r->config->prefix;
    }
    config.dns = r->config->dns;
    config.domain = r->config->domain;
    config.ipv6 = r->config->ipv6;
    config.restricted = r->config->restricted;
    if (r->config->mtu)
        config.mtu = r->config->mtu;
    config.forwards = r->config->forwards;
    config.n_forwards = r->config->n_forwards;
    config.forwards_later = r->config->forwards_later;
    err = nat_create(&nat, r->loop, &config);
    if (!err)
        *uplink = (struct uplink){nat, nat_port(nat), destroy_slirp, slirp_drops};
    return err;
}

static void destroy_adapter(void *instance)
{
    adapter_destroy(instance);
}

/* Host-only, and NAT by the kernel. */
static int create_adapter(struct uplink *uplink, const struct request *r)
{
    const struct uplink_config *c = r->config;
    const bool nat = c->kind == UPLINK_NAT;
    const struct adapter_config config = {
        .name = r->name,
        .link = nat ? NULL : c->link,
        .nat = nat,
        .out = nat ? c->link : NULL,
        .network = c->network,
        .prefix = c->prefix,
        .mac = r->mac,
        .dhcp = c->dhcp,
        .router = c->router,
        .dns = c->dns,
        .domain = c->domain,
        .mtu = c->mtu,
        .queues = c->queues,
        .fixed = c->fixed,
        .n_fixed = c->n_fixed,
        .lease_file = c->lease_file,
        .forwards = c->forwards,
        .n_forwards = c->n_forwards,
    };
    struct adapter *adapter;
    int err = adapter_create(&adapter, r->loop, &config);

    if (!err)
        *uplink = (struct uplink){adapter, adapter_port(adapter), destroy_adapter, adapter_drops};
    return err;
}

static void destroy_tap(void *instance)
{
    tap_destroy(instance);
}

static int create_tap(struct uplink *uplink, const struct request *r)
{
    struct tap_device device;
    struct tap *tap;
    int err = tap_device_attach(&device, r->name, r->config->link,
                                r->config->queues ? r->config->queues : 1);

    if (err)
        return err;
    err = tap_create(&tap, r->loop, r->name, &device, NULL);
    if (err) {
        tap_device_close(&device);
        return err;
    }
    *uplink = (struct uplink){tap, tap_port(tap), destroy_tap, tap_drops};
    return 0;
}

static void destroy_bridged(void *instance)
{
    bridged_destroy(instance);
}

static int create_bridged(struct uplink *uplink, const struct request *r)
{
    const struct bridged_config config = {
        .name = r->name,
        .nic = r->config->link,
        .bridge = r->config->bridge,
        .macvtap_mode = r->config->macvtap,
        .queues = r->config->queues ? r->config->queues : 1,
        .mac = r->mac,
    };
    struct bridged *bridged;
    int err = bridged_create(&bridged, r->loop, &config);

    if (!err)
        *uplink = (struct uplink){bridged, bridged_port(bridged), destroy_bridged, bridged_drops};
    return err;
}

static void destroy_stream(void *instance)
{
    stream_port_destroy(instance);
}

static int create_stream(struct uplink *uplink, const struct request *r)
{
    const struct stream_config config = {
        .name = r->name,
        .path = r->config->path,
        .address = r->config->address,
        .server = r->config->server,
        .reconnect = r->config->reconnect,
        .fd = -1,
    };
    struct stream_port *stream;
    int err = stream_port_create(&stream, r->loop, &config);

    if (!err)
        *uplink = (struct uplink){stream, stream_port(stream), destroy_stream, stream_drops};
    return err;
}

static void destroy_passt(void *instance)
{
    passt_destroy(instance);
}

static int create_passt(struct uplink *uplink, const struct request *r)
{
    const struct passt_config config = {
        .name = r->name,
        .network = r->config->network,
        .prefix = r->config->prefix,
        .dns = r->config->dns,
        .ipv6 = r->config->ipv6,
        .mtu = r->config->mtu,
        .forwards = r->config->forwards,
        .n_forwards = r->config->n_forwards,
    };
    struct passt *passt;
    int err = passt_create(&passt, r->loop, &config);

    if (!err)
        *uplink = (struct uplink){passt, passt_port(passt), destroy_passt, passt_drops};
    return err;
}

static int create(struct uplink *uplink, const struct request *r)
{
    switch (r->config->kind) {
    case UPLINK_NAT:
        switch (r->config->via) {
        case UPLINK_VIA_SLIRP: return create_slirp(uplink, r);
        case UPLINK_VIA_PASST: return create_passt(uplink, r);
        case UPLINK_VIA_KERNEL: return create_adapter(uplink, r);
        }
        break;
    case UPLINK_HOSTONLY: return create_adapter(uplink, r);
    case UPLINK_BRIDGE: return create_bridged(uplink, r);
    case UPLINK_TAP: return create_tap(uplink, r);
    case UPLINK_STREAM: return create_stream(uplink, r);
    }
    return -EINVAL;
}

int uplink_create(struct uplink **out, struct loop *loop, const char *name,
                  const struct uplink_config *config, const uint8_t mac[6])
{
    const struct request request = {loop, name, config, mac};
    struct uplink *uplink = calloc(1, sizeof(*uplink));
    int err;

    if (!uplink) {
        log_error("%s: out of memory", name);
        return -ENOMEM;
    }
    /* What a ferry that was killed has left may be in the way of this one. */
    made_sweep();
    err = create(uplink, &request);
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

bool uplink_hands_forwards_over(const struct uplink_config *config)
{
    return config->kind == UPLINK_NAT && config->via == UPLINK_VIA_SLIRP;
}

void uplink_claim_forwards(struct uplink *uplink)
{
    if (uplink->destroy == destroy_slirp)
        nat_claim_forwards(uplink->instance);
}

void uplink_release_forwards(struct uplink *uplink)
{
    if (uplink->destroy == destroy_slirp)
        nat_release_forwards(uplink->instance);
}

const struct dhcp_leases *uplink_leases(const struct uplink *uplink)
{
    return uplink->destroy == destroy_adapter ? adapter_leases(uplink->instance) : NULL;
}

bool uplink_add_lease(struct uplink *uplink, const uint8_t mac[6], struct in_addr address,
                      uint64_t left_s)
{
    return uplink_leases(uplink) && adapter_add_lease(uplink->instance, mac, address, left_s);
}

struct net_port *uplink_port(struct uplink *uplink)
{
    return uplink->port;
}
