/*
 * The switch: its ports, how they come, go and change, and the addresses that their NICs register.
 *
 * Forwards nothing itself (switch_path.c). A port that is removed while a frame is on its way
 * stays, carrying no VLAN, until that is over. Loop thread; no locks.
 */
#include "net/switch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "net/switch_internal.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define ALL_OFFLOADS                                                                               \
    (NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6 | NET_OFFLOAD_TSO_ECN |                \
     NET_OFFLOAD_USO4 | NET_OFFLOAD_USO6)

/* ---- registered addresses ---- */

/* Whether another port that shares a VLAN has the address already. */
static bool is_taken(const struct net_switch *sw, const struct switch_port *port, uint64_t key)
{
    const struct mac_entry *entry = mac_table_find(&sw->stations, key);

    for (; entry; entry = mac_table_next(&sw->stations, entry)) {
        const struct vlan_set *other = &sw->ports[entry->port]->vlan.carries;

        for (unsigned i = 0; i < 64; i++) {
            if (other->words[i] & port->vlan.carries.words[i])
                return true;
        }
    }
    return false;
}

static void unregister_all(struct switch_port *port)
{
    struct mac_table *stations = &port->sw->stations;

    for (unsigned i = 0; i < port->n_macs; i++) {
        struct mac_entry *entry = mac_table_find(stations, mac_key(port->macs[i], 0));

        while (entry && entry->port != port->number)
            entry = mac_table_next(stations, entry);
        if (entry)
            mac_table_remove(stations, entry);
    }
    port->n_macs = 0;
    port->own_key = 0;
}

static bool has_registered(const struct switch_port *port, const uint8_t mac[6])
{
    for (unsigned i = 0; i < port->n_macs; i++) {
        if (memcmp(port->macs[i], mac, 6) == 0)
            return true;
    }
    return false;
}

static void register_mac(struct switch_port *port, const uint8_t mac[6])
{
    static const uint8_t none[6];
    struct net_switch *sw = port->sw;
    uint64_t key = mac_key(mac, 0);

    if (net_mac_is_group(mac) || memcmp(mac, none, 6) == 0 || port->n_macs == SWITCH_MACS_MAX ||
        has_registered(port, mac))
        return;
    if (sw->stations.used == mac_table_room(&sw->stations) &&
        mac_table_grow(&sw->stations, sw->stations.used * 2) < 0) {
        log_warn("%s: no memory for an address of %s", sw->name, port->config.name);
        return;
    }
    if (is_taken(sw, port, key))
        port->counters.conflicts++;
    else if (port->n_macs == 0)
        port->own_key = key;
    mac_table_add(&sw->stations, key, port->number, 0);
    memcpy(port->macs[port->n_macs++], mac, 6);
}

static void set_promiscuous(struct switch_port *port)
{
    bool promiscuous = port->wants_all && port->may_be_promiscuous && !port->dead;

    if (promiscuous != port->promiscuous)
        port->sw->n_promiscuous += promiscuous ? 1 : -1u;
    port->promiscuous = promiscuous;
}

/* Registers what the port asked for, as far as it may. */
static void register_asked(struct switch_port *port)
{
    unregister_all(port);
    if (port->kind != SWITCH_PORT_GUEST || !port->end.peer)
        return;
    if (!port->may_change_mac && port->first_known) {
        register_mac(port, port->first_mac);
        return;
    }
    for (unsigned i = 0; i < port->n_asked; i++)
        register_mac(port, port->asked[i]);
    if (port->n_asked == 0 && port->config.mac.given)
        register_mac(port, port->config.mac.bytes);
}

void switch_port_filter(struct switch_port *port, const struct net_receive_filter *filter)
{
    unsigned n = filter->unicast.entries;

    if (!port->first_known) {
        memcpy(port->first_mac, filter->mac, 6);
        port->first_known = true;
    }
    port->wants_all = filter->promiscuous || filter->alluni || n > NET_FILTER_TABLE;
    n = n > NET_FILTER_TABLE ? NET_FILTER_TABLE : n;
    memcpy(port->asked[0], filter->mac, 6);
    memcpy(port->asked[1], filter->unicast.macs, (size_t)n * 6);
    port->n_asked = 1 + n;
    register_asked(port);
    set_promiscuous(port);
}

/* The address that its NIC has before it says anything. */
static void set_first(struct switch_port *port)
{
    port->first_known = port->config.mac.given;
    memcpy(port->first_mac, port->config.mac.bytes, 6);
}

static bool is_behind(const struct mac_entry *entry, const void *arg)
{
    return entry->port == ((const struct switch_port *)arg)->number;
}

static void forget_learnt(struct switch_port *port)
{
    if (port->learnt)
        mac_table_purge(&port->sw->fdb, is_behind, port);
    port->learnt = 0;
}

void switch_port_plugged(struct switch_port *port)
{
    if (port->end.peer) { /* and may have said already what it wants */
        register_asked(port);
        return;
    }
    unregister_all(port);
    forget_learnt(port);
    port->n_asked = 0;
    port->wants_all = false;
    set_promiscuous(port);
    port->n_addresses = 0;
    set_first(port);
}

/* ---- settings ---- */

static bool is_on(int setting, bool otherwise)
{
    return setting == SWITCH_AUTO ? otherwise : setting == SWITCH_ON;
}

/* The config was checked. */
static void apply(struct switch_port *port, const struct switch_port_config *config)
{
    bool uplink = config->kind == SWITCH_PORT_UPLINK;
    uint64_t now_ns = port->sw->now_ns();
    const char *why;

    port->config = *config;
    port->kind = (enum switch_port_kind)config->kind;
    port->learns = is_on(config->learn, uplink);
    port->floods = is_on(config->flood, uplink);
    port->may_spoof = is_on(config->spoof, uplink || port->learns);
    port->may_change_mac = is_on(config->mac_change, true);
    port->may_be_promiscuous = is_on(config->promiscuous, false);
    port->isolated = config->isolated;
    port->hairpin = config->hairpin;
    if (vlan_port_init(&port->vlan, &config->vlan, uplink, &why) < 0)
        vlan_port_close(&port->vlan);
    token_bucket_init(&port->in, config->rate_in, config->burst_in, now_ns);
    token_bucket_init(&port->out, config->rate_out, config->burst_out, now_ns);
}

int switch_port_configure(struct switch_port *port, const struct switch_port_config *config)
{
    int error = switch_port_config_check(port->config.name, config);

    if (error < 0)
        return error;
    if (strcmp(config->name, port->config.name) != 0 || config->kind != (int)port->kind) {
        log_error("%s: name and kind of a port cannot be changed", port->config.name);
        return -EINVAL;
    }
    apply(port, config);
    set_promiscuous(port);
    if (!port->learns)
        forget_learnt(port);
    register_asked(port); /* who has which address depends on VLANs, too */
    return switch_ports_changed(port->sw);
}

/* ---- ports ---- */

static void find_only_flood(struct net_switch *sw)
{
    unsigned n = 0;

    sw->only_flood = NULL;
    for (unsigned i = 0; i < sw->ports_end; i++) {
        struct switch_port *port = sw->ports[i];

        if (port && !port->dead && port->floods && port->kind != SWITCH_PORT_MIRROR) {
            sw->only_flood = port;
            n++;
        }
    }
    if (n != 1)
        sw->only_flood = NULL;
}

int switch_ports_changed(struct net_switch *sw)
{
    find_only_flood(sw);
    switch_mirrors_resolve(sw);
    return switch_rules_compile(sw);
}

static int find_number(const struct net_switch *sw)
{
    for (unsigned i = 0; i < SWITCH_PORTS_MAX; i++) {
        if (!sw->ports[i])
            return (int)i;
    }
    return -ENOSPC;
}

/* Takes the port out of the switch's table, and frees it. */
static void free_port(struct switch_port *port)
{
    struct net_switch *sw = port->sw;

    for (unsigned i = 0; i < sw->n_dirty; i++) {
        if (sw->dirty[i] == port->number)
            sw->dirty[i--] = sw->dirty[--sw->n_dirty];
    }
    sw->ports[port->number] = NULL;
    while (sw->ports_end > 0 && !sw->ports[sw->ports_end - 1])
        sw->ports_end--;
    free(port);
}

int switch_port_add(struct net_switch *sw, const struct switch_port_config *config,
                    struct switch_port **out)
{
    int error = switch_port_config_check(sw->name, config), number = find_number(sw);
    struct switch_port *port;

    if (error < 0)
        return error;
    if (switch_port_find(sw, config->name)) {
        log_error("%s: there is a port %s already", sw->name, config->name);
        return -EEXIST;
    }
    if (number < 0) {
        log_error("%s: no more than %u ports", sw->name, SWITCH_PORTS_MAX);
        return number;
    }
    port = calloc(1, sizeof(*port));
    if (!port) {
        log_error("%s: out of memory", sw->name);
        return -ENOMEM;
    }
    port->sw = sw;
    port->number = (uint16_t)number;
    apply(port, config);
    set_first(port);
    port->end.ops = &switch_port_ops;
    port->end.name = port->config.name;
    atomic_store_explicit(&port->end.accepts, ALL_OFFLOADS, memory_order_relaxed);
    sw->ports[number] = port;
    if (sw->ports_end <= (unsigned)number)
        sw->ports_end = (unsigned)number + 1;
    error = switch_ports_changed(sw);
    if (error < 0) {
        free_port(port);
        switch_ports_changed(sw);
        return error;
    }
    *out = port;
    return 0;
}

void switch_port_remove(struct switch_port *port)
{
    struct net_switch *sw = port->sw;

    if (port->dead)
        return;
    net_port_disconnect(&port->end);
    switch_port_plugged(port);
    port->dead = true;
    port->config.name[0] = '\0'; /* the name is free again */
    vlan_port_close(&port->vlan);
    for (unsigned i = 0; i < sw->n_rules; i++) {
        if (sw->rules[i]->mirror == port->number)
            sw->rules[i]->mirror = -1;
        if (sw->rules[i]->redirect == port->number)
            sw->rules[i]->redirect = -1;
    }
    /* Without memory for that, rules go on as they were: nothing comes from this number. */
    switch_ports_changed(sw);
    if (sw->depth > 0)
        sw->graves = true;
    else
        free_port(port);
}

void switch_bury(struct net_switch *sw)
{
    sw->graves = false;
    for (unsigned i = 0; i < SWITCH_PORTS_MAX; i++) {
        if (sw->ports[i] && sw->ports[i]->dead)
            free_port(sw->ports[i]);
    }
}

struct net_port *switch_port_end(struct switch_port *port)
{
    return &port->end;
}

struct switch_port *switch_port_find(const struct net_switch *sw, const char *name)
{
    for (unsigned i = 0; i < sw->ports_end; i++) {
        if (sw->ports[i] && !sw->ports[i]->dead && strcmp(sw->ports[i]->config.name, name) == 0)
            return sw->ports[i];
    }
    return NULL;
}

struct switch_port *switch_port_next(const struct net_switch *sw, const struct switch_port *port)
{
    for (unsigned i = port ? port->number + 1u : 0; i < sw->ports_end; i++) {
        if (sw->ports[i] && !sw->ports[i]->dead)
            return sw->ports[i];
    }
    return NULL;
}

void switch_port_add_counters(struct switch_port *port, const struct switch_counters *counters)
{
    struct switch_counters *c = &port->counters;

    c->in_frames += counters->in_frames;
    c->in_bytes += counters->in_bytes;
    port->end.sent.frames += counters->out_frames;
    port->end.sent.bytes += counters->out_bytes;
    for (unsigned i = 0; i < SWITCH_DROPS; i++)
        c->dropped[i] += counters->dropped[i];
    c->not_learnt += counters->not_learnt;
    c->conflicts += counters->conflicts;
}

const struct switch_port_config *switch_port_settings(const struct switch_port *port)
{
    return &port->config;
}

/* ---- the switch ---- */

static unsigned or_default(unsigned value, unsigned otherwise)
{
    return value ? value : otherwise;
}

int switch_create(struct net_switch **out, struct loop *loop, const struct switch_config *config)
{
    struct net_switch *sw = calloc(1, sizeof(*sw));

    if (!sw)
        goto no_memory;
    sw->loop = loop;
    sw->now_ns = config->now_ns ? config->now_ns : loop_now_ns;
    sw->fdb_max = or_default(config->fdb_max, SWITCH_FDB_DEFAULT);
    sw->fdb_age_s = or_default(config->fdb_age_s, SWITCH_AGE_DEFAULT);
    sw->flows_max = or_default(config->flows_max, SWITCH_FLOWS_DEFAULT);
    sw->name = strdup(config->name);
    if (!sw->name || mac_table_init(&sw->stations, 64) < 0 ||
        mac_table_init(&sw->fdb, sw->fdb_max) < 0 || switch_batches_create(sw) < 0)
        goto no_memory;
    *out = sw;
    return 0;

no_memory:
    log_error("%s: out of memory", config->name);
    switch_destroy(sw);
    return -ENOMEM;
}

void switch_destroy(struct net_switch *sw)
{
    if (!sw)
        return;
    switch_mirrors_fini(sw);
    switch_rules_fini(sw);
    for (unsigned i = 0; i < SWITCH_PORTS_MAX; i++) {
        if (sw->ports[i])
            switch_port_remove(sw->ports[i]);
    }
    mac_table_fini(&sw->stations);
    mac_table_fini(&sw->fdb);
    free(sw->batches);
    free(sw->name);
    free(sw);
}

const char *switch_name(const struct net_switch *sw)
{
    return sw->name;
}
