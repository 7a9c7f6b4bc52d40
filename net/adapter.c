/*
 * Host-only networks and NAT by the host's kernel: the tap, what is set up around it, and DHCP on it.
 *
 * The order matters: the filter is there before the link is up, so that nothing passes it; and the
 * tap is the last to go, with which address and routes go. DHCP messages are taken out of the frames
 * on their way to the host (tap_hooks), so that neither a firewall nor a server there sees them.
 *
 * Loop's thread; no locks. Texts: Linux Documentation/networking/ip-sysctl.rst (forwarding,
 * route_localnet, per interface).
 */
#include "net/adapter.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "net/dhcp.h"
#include "net/dhcp_store.h"
#include "net/made.h"
#include "net/netlink.h"
#include "net/nft.h"
#include "net/resolver.h"
#include "net/rtnl.h"
#include "net/tap.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

/* Networks to choose from when none is asked for: this one and the following. */
#define FIRST_NETWORK 0xC0A8A000u /* 192.168.160.0 */
#define N_NETWORKS 64u
#define CHOSEN_PREFIX 24u
#define HOST_NUMBER 1u
#define LEASE_SECONDS 3600u
#define NS_PER_S 1000000000ull
#define DEFAULT_MTU 1500u

struct adapter {
    const char *name; /* borrowed */
    struct loop *loop;
    struct in_addr network, address;
    unsigned prefix;
    char domain[DHCP_DOMAIN_MAX + 1];

    /* In the order of making; each owned. */
    struct netlink filter;
    struct dhcp_leases *leases;
    struct dhcp_store *store;
    struct tap *tap;
    struct made link;
    struct made forwarding[RTNL_MAX_UPLINKS];
    unsigned n_forwarding;

    bool has_dhcp;
    struct dhcp_server dhcp;
    uint8_t request[DHCP_REQUEST_MAX];
    uint8_t answer[DHCP_FRAME_MAX];
};

/* ---- DHCP ---- */

static uint64_t now_seconds(void)
{
    return loop_now_ns() / NS_PER_S;
}

static void on_bound(struct dhcp_server *server, const uint8_t mac[6], struct in_addr address)
{
    struct adapter *a = (struct adapter *)((char *)server - offsetof(struct adapter, dhcp));
    char text[INET_ADDRSTRLEN];

    inet_ntop(AF_INET, &address, text, sizeof(text));
    log_debug("%s: %s is given out", a->name, text);
    if (a->store)
        dhcp_store_add(a->store, mac, address);
}

/* Copies what there is of a frame, up to `room` bytes. */
static size_t copy_start(const struct net_frame *frame, uint8_t *to, size_t room)
{
    size_t copied = 0;

    for (unsigned i = 0; i < frame->iovcnt && copied < room; i++) {
        size_t run = frame->iov[i].iov_len;

        run = run < room - copied ? run : room - copied;
        memcpy(to + copied, frame->iov[i].iov_base, run);
        copied += run;
    }
    return copied;
}

static bool intercept(void *arg, const struct net_frame *frame)
{
    struct adapter *a = arg;
    struct net_port *port;
    struct iovec whole;
    struct net_frame reply;
    uint8_t head[80];
    size_t length;

    if (!a->has_dhcp || frame->length > sizeof(a->request) ||
        !dhcp_is_request(head, copy_start(frame, head, sizeof(head))))
        return false;
    length = dhcp_answer(&a->dhcp, a->request, copy_start(frame, a->request, sizeof(a->request)),
                         now_seconds(), a->answer);
    if (length == 0)
        return true;
    port = tap_port(a->tap);
    whole = (struct iovec){a->answer, length};
    reply = (struct net_frame){.iov = &whole, .iovcnt = 1, .length = length};
    /* Refused, the client asks again. */
    if (net_port_send(port, &reply, 1) == 0)
        net_port_drop(port, 1);
    net_port_flush(port);
    return true;
}

static int open_store(struct adapter *a, const struct adapter_config *config)
{
    char name[64], path[PATH_MAX], network[INET_ADDRSTRLEN];
    int err;

    if (config->lease_file) {
        snprintf(path, sizeof(path), "%s", config->lease_file);
    } else {
        inet_ntop(AF_INET, &a->network, network, sizeof(network));
        snprintf(name, sizeof(name), "leases-%s-%u", network, a->prefix);
        err = dhcp_store_path(name, path, sizeof(path));
        if (err) {
            log_warn("%s: there is no place to keep leases in (%s): they end with this process",
                     a->name, strerror(-err));
            return 0;
        }
    }
    return dhcp_store_open(&a->store, a->loop, a->name, path, a->leases,
                           now_seconds() + LEASE_SECONDS);
}

static void describe_network(struct adapter *a, const struct adapter_config *config)
{
    struct dhcp_config *dhcp = &a->dhcp.config;

    *dhcp = (struct dhcp_config){
        .name = a->name,
        .address = a->address,
        .prefix = a->prefix,
        .router = config->router,
        .mtu = (uint16_t)config->mtu,
        .lease = LEASE_SECONDS,
    };
    if (config->nat && dhcp->router.s_addr == INADDR_ANY)
        dhcp->router = a->address;
    if (config->dns.s_addr != INADDR_ANY)
        dhcp->dns[dhcp->n_dns++] = config->dns;
    else if (config->nat)
        dhcp->n_dns = resolver_servers(dhcp->dns, DHCP_MAX_DNS);
    if (config->domain) {
        snprintf(a->domain, sizeof(a->domain), "%s", config->domain);
        dhcp->domain = a->domain;
    }
}

static int set_up_dhcp(struct adapter *a, const struct adapter_config *config)
{
    int err = dhcp_leases_create(&a->leases, a->network, a->prefix, a->address, config->fixed,
                                 config->n_fixed);

    if (err == -EINVAL)
        log_error("%s: a fixed lease's address is none of a station in the network", a->name);
    if (err)
        return err;
    err = open_store(a, config);
    if (err)
        return err;
    describe_network(a, config);
    a->dhcp.leases = a->leases;
    a->dhcp.bound = on_bound;
    a->has_dhcp = config->dhcp;
    return 0;
}

/* ---- the network ---- */

static void set_network(struct adapter *a, struct in_addr network, unsigned prefix)
{
    a->network = network;
    a->prefix = prefix;
    a->address.s_addr = htonl(ntohl(network.s_addr) | HOST_NUMBER);
}

static int choose_network(struct adapter *a, struct netlink *nl)
{
    int used = 1;

    for (unsigned i = 0; used > 0 && i < N_NETWORKS; i++) {
        set_network(a, (struct in_addr){htonl(FIRST_NETWORK + (i << (32 - CHOSEN_PREFIX)))},
                    CHOSEN_PREFIX);
        used = rtnl_network_used(nl, a->network, a->prefix);
    }
    if (used > 0)
        log_error("%s: every network from 192.168.160.0/24 on is in use on this host; choose one "
                  "by subnet=", a->name);
    return used > 0 ? -EADDRINUSE : used;
}

static int find_network(struct adapter *a, struct netlink *nl, const struct adapter_config *config)
{
    char text[INET_ADDRSTRLEN];
    int used;

    if (config->network.s_addr == INADDR_ANY)
        return choose_network(a, nl);
    set_network(a, config->network, config->prefix);
    used = rtnl_network_used(nl, a->network, a->prefix);
    if (used > 0) {
        inet_ntop(AF_INET, &a->network, text, sizeof(text));
        log_error("%s: the network %s/%u overlaps one that this host has already; choose another "
                  "by subnet=", a->name, text, a->prefix);
    }
    return used > 0 ? -EADDRINUSE : used;
}

/* A setting of the link itself, which ends with it. */
static int set_link(const char *link, const char *setting)
{
    char path[120];
    int fd, err;

    snprintf(path, sizeof(path), "/proc/sys/net/ipv4/conf/%s/%s", link, setting);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    err = write(fd, "1\n", 2) == 2 ? 0 : -errno;
    close(fd);
    return err;
}

/* ---- NAT ---- */

/* Has a host link forward what comes for guests; its name goes to *guarded when it did not before. */
static int forward_at(struct adapter *a, const char *link, char guarded[IFNAMSIZ],
                      unsigned *n_guarded)
{
    struct made *made = &a->forwarding[a->n_forwarding];
    bool changed = false;
    int err;

    *made = (struct made)MADE_NONE;
    err = made_forwarding(made, link, &changed);
    if (err)
        return err;
    if (made->fd >= 0)
        a->n_forwarding++;
    if (changed) {
        snprintf(guarded, IFNAMSIZ, "%s", link);
        ++*n_guarded;
    }
    return 0;
}

static int forward_out(struct adapter *a, struct netlink *nl, const struct adapter_config *config,
                       char (*guarded)[IFNAMSIZ], unsigned *n_guarded)
{
    unsigned links[RTNL_MAX_UPLINKS];
    int n = 1, err = 0;

    if (config->out) {
        links[0] = if_nametoindex(config->out);
        if (links[0] == 0) {
            log_error("%s: there is no interface %s ('ip -br link' lists them)", a->name, config->out);
            return -ENODEV;
        }
    } else {
        n = rtnl_routed_links(nl, links, RTNL_MAX_UPLINKS);
    }
    for (int i = 0; i < n && !err; i++) {
        char name[IFNAMSIZ];

        if (if_indextoname(links[i], name) && strcmp(name, "lo") != 0)
            err = forward_at(a, name, guarded[*n_guarded], n_guarded);
    }
    return n < 0 ? n : err;
}

/* Who gets the forwards that name no guest: the only station, or the first that DHCP serves. */
static struct in_addr first_guest(struct adapter *a, const struct adapter_config *config)
{
    uint64_t now = now_seconds();

    if (config->mac)
        return dhcp_leases_offer(a->leases, config->mac, (struct in_addr){INADDR_ANY}, now,
                                 now + LEASE_SECONDS);
    return (struct in_addr){htonl(ntohl(a->network.s_addr) + DHCP_FIRST_HOST)};
}

static int set_up_nat(struct adapter *a, struct netlink *nl, const struct adapter_config *config,
                      const char *link)
{
    char guarded[RTNL_MAX_UPLINKS][IFNAMSIZ];
    struct nft_nat nat = {
        .link = link,
        .network = a->network,
        .prefix = a->prefix,
        .guest = first_guest(a, config),
        .forwards = config->forwards,
        .n_forwards = config->n_forwards,
        .guarded = guarded,
    };
    int err = forward_out(a, nl, config, guarded, &nat.n_guarded);

    if (!err)
        err = nft_masquerade(&a->filter, a->name, &nat);
    if (err)
        return err;
    err = set_link(link, "forwarding");
    if (!err && config->n_forwards > 0)
        err = set_link(link, "route_localnet");
    if (err)
        log_error("%s: cannot have the host forward what %s brings: %s", a->name, link,
                  strerror(-err));
    return err;
}

/* ---- life ---- */

static int set_up_link(struct adapter *a, struct netlink *nl, const struct adapter_config *config,
                       const char *link)
{
    struct rtnl_change change = {.up = true, .mtu = config->mtu ? config->mtu : DEFAULT_MTU};
    unsigned index = if_nametoindex(link);
    struct rtnl_link now;
    int err = config->nat ? set_up_nat(a, nl, config, link)
                          : nft_isolate(&a->filter, a->name, link);

    if (err)
        return err;
    err = rtnl_address_add(nl, index, a->address, a->prefix);
    if (!err)
        err = rtnl_link_change(nl, index, &change);
    if (!err)
        err = rtnl_link_get(nl, index, &now);
    if (err) {
        log_error("%s: cannot set up %s: %s", a->name, link, strerror(-err));
        return err;
    }
    memcpy(a->dhcp.config.mac, now.mac, sizeof(now.mac));
    made_tap(&a->link, link, now.mac);
    return 0;
}

static int set_up_tap(struct adapter *a, struct netlink *nl, const struct adapter_config *config)
{
    const struct tap_hooks hooks = {.intercept = intercept, .arg = a};
    struct tap_device device;
    int err = tap_device_make(&device, a->name, config->link, config->queues ? config->queues : 1);

    if (err)
        return err;
    err = set_up_dhcp(a, config);
    if (!err)
        err = set_up_link(a, nl, config, device.name);
    if (!err)
        err = tap_create(&a->tap, a->loop, a->name, &device, &hooks);
    if (err)
        tap_device_close(&device);
    return err;
}

static int set_up(struct adapter *a, const struct adapter_config *config)
{
    char address[INET_ADDRSTRLEN];
    struct netlink nl;
    int err = netlink_open(&nl, NETLINK_ROUTE);

    if (err) {
        log_error("%s: no netlink socket: %s", a->name, strerror(-err));
        return err;
    }
    err = find_network(a, &nl, config);
    if (!err)
        err = set_up_tap(a, &nl, config);
    netlink_close(&nl);
    if (err)
        return err;
    inet_ntop(AF_INET, &a->address, address, sizeof(address));
    log_info("%s: %s on this host is %s/%u", a->name, tap_device(a->tap)->name, address, a->prefix);
    return 0;
}

int adapter_create(struct adapter **out, struct loop *loop, const struct adapter_config *config)
{
    struct adapter *a = calloc(1, sizeof(*a));
    int err;

    if (!a) {
        log_error("%s: out of memory", config->name);
        return -ENOMEM;
    }
    a->name = config->name;
    a->loop = loop;
    a->filter.fd = -1;
    a->link = (struct made)MADE_NONE;
    err = set_up(a, config);
    if (err) {
        adapter_destroy(a);
        return err;
    }
    *out = a;
    return 0;
}

void adapter_destroy(struct adapter *a)
{
    if (!a)
        return;
    tap_destroy(a->tap);
    made_undo(&a->link);
    while (a->n_forwarding > 0)
        made_undo(&a->forwarding[--a->n_forwarding]);
    netlink_close(&a->filter);
    dhcp_store_close(a->store);
    dhcp_leases_destroy(a->leases);
    free(a);
}

const struct dhcp_leases *adapter_leases(const struct adapter *a)
{
    return a->leases;
}

struct net_port *adapter_port(struct adapter *adapter)
{
    return tap_port(adapter->tap);
}

const struct tap *adapter_tap(const struct adapter *adapter)
{
    return adapter->tap;
}

struct claim {
    const uint8_t *mac;
    struct in_addr address;
    uint64_t now;
    bool taken;
};

static bool look_for_claim(void *arg, const uint8_t mac[6], struct in_addr address, uint64_t until)
{
    struct claim *claim = arg;

    claim->taken = address.s_addr == claim->address.s_addr && until > claim->now &&
                   memcmp(mac, claim->mac, 6) != 0;
    return !claim->taken;
}

bool adapter_add_lease(struct adapter *a, const uint8_t mac[6], struct in_addr address,
                       uint64_t left_s)
{
    struct claim claim = {.mac = mac, .address = address, .now = now_seconds()};

    left_s = left_s > LEASE_SECONDS ? LEASE_SECONDS : left_s;
    if (!a->leases)
        return false;
    dhcp_leases_each(a->leases, look_for_claim, &claim);
    if (claim.taken)
        return false;
    if (dhcp_leases_find(a->leases, mac).s_addr == address.s_addr)
        dhcp_leases_extend(a->leases, mac, claim.now + left_s);
    else if (!dhcp_leases_bind(a->leases, mac, address, claim.now + left_s))
        return false;
    if (a->store)
        dhcp_store_add(a->store, mac, address);
    return true;
}
