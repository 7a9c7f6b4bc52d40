/*
 * Looking into the switch: what there is, and what was counted. Changes nothing.
 *
 * Loop thread; no locks.
 */
#include <string.h>

#include "net/switch_internal.h"

const char *switch_drop_name(enum switch_drop drop)
{
    static const char *const names[SWITCH_DROPS] = {
        [SWITCH_DROP_MALFORMED] = "malformed",
        [SWITCH_DROP_RATE_IN] = "rate-in",
        [SWITCH_DROP_RESERVED] = "reserved",
        [SWITCH_DROP_VLAN] = "vlan",
        [SWITCH_DROP_SPOOFED] = "spoofed",
        [SWITCH_DROP_DENIED] = "denied",
        [SWITCH_DROP_UNREADABLE] = "unreadable",
        [SWITCH_DROP_UNKNOWN] = "unknown",
        [SWITCH_DROP_NOWHERE] = "nowhere",
        [SWITCH_DROP_ISOLATED] = "isolated",
        [SWITCH_DROP_NO_PORT] = "no-port",
        [SWITCH_DROP_NESTED] = "nested",
        [SWITCH_DROP_MIRROR] = "mirror",
        [SWITCH_DROP_FULL] = "full",
        [SWITCH_DROP_RATE_OUT] = "rate-out",
        [SWITCH_DROP_TOO_LONG] = "too-long",
        [SWITCH_DROP_UNPLUGGED] = "unplugged",
    };

    return drop < SWITCH_DROPS ? names[drop] : "?";
}

void switch_port_get_info(const struct switch_port *port, struct switch_port_info *info)
{
    *info = (struct switch_port_info){
        .config = &port->config,
        .kind = port->kind,
        .plugged = port->end.peer != NULL,
        .vlan = &port->vlan,
        .counters = port->counters,
        .n_macs = port->n_macs,
        .learnt = port->learnt,
        .promiscuous = port->promiscuous,
    };
    info->counters.out_frames = port->end.sent.frames;
    info->counters.out_bytes = port->end.sent.bytes;
    memcpy(info->macs, port->macs, sizeof(info->macs));
}

unsigned switch_port_addresses(const struct switch_port *port, struct switch_address *to,
                               unsigned max)
{
    unsigned n = port->n_addresses < max ? port->n_addresses : max;

    memcpy(to, port->addresses, n * sizeof(*to));
    return n;
}

static void walk_table(const struct net_switch *sw, const struct mac_table *table, bool registered,
                       void (*entry)(void *arg, const struct switch_fdb_entry *entry), void *arg)
{
    uint32_t now_s = switch_now_s(sw);

    for (uint32_t i = 0; i <= table->mask; i++) {
        const struct mac_entry *from = &table->entries[i];
        struct switch_fdb_entry out = {.registered = registered};

        if (!from->key || (!registered && now_s - from->stamp > sw->fdb_age_s))
            continue;
        mac_of_key(from->key, out.mac, &out.vlan);
        out.age_s = registered ? 0 : now_s - from->stamp;
        out.port = sw->ports[from->port];
        entry(arg, &out);
    }
}

void switch_fdb_walk(const struct net_switch *sw,
                     void (*entry)(void *arg, const struct switch_fdb_entry *entry), void *arg)
{
    walk_table(sw, &sw->stations, true, entry, arg);
    walk_table(sw, &sw->fdb, false, entry, arg);
}

void switch_rules_walk(const struct net_switch *sw,
                       void (*entry)(void *arg, const struct switch_rule_info *info), void *arg)
{
    for (unsigned i = 0; i < sw->n_rules; i++) {
        const struct switch_rule *rule = sw->rules[i];
        struct switch_rule_info info = {rule->id, &rule->rule, rule->frames, rule->bytes};

        entry(arg, &info);
    }
}

void switch_mirrors_walk(const struct net_switch *sw,
                         void (*entry)(void *arg, const struct switch_mirror_info *info),
                         void *arg)
{
    for (unsigned m = 0; m < SWITCH_MIRRORS_MAX; m++) {
        const struct switch_mirror *mirror = &sw->mirrors[m];
        struct switch_mirror_info info = {
            .name = mirror->name,
            .to = mirror->capture ? NULL : mirror->to_name,
            .from = &mirror->from,
            .frames = mirror->frames,
            .bytes = mirror->bytes,
            .dropped = mirror->dropped,
            .error = mirror->capture ? capture_error(mirror->capture) : 0,
        };

        if (mirror->used)
            entry(arg, &info);
    }
}

void switch_get_cache_info(const struct net_switch *sw, struct switch_cache_info *info)
{
    struct flow_cache_info cache = {0};
    struct classifier_size size = {0};

    if (sw->classifier)
        classifier_get_size(sw->classifier, &size);
    if (sw->cache)
        flow_cache_get_info(sw->cache, &cache);
    *info = (struct switch_cache_info){
        .fdb_learnt = sw->fdb.used,
        .fdb_max = sw->fdb_max,
        .fdb_registered = sw->stations.used,
        .rules = sw->n_rules,
        .classifier_entries = size.entries,
        .tuples = size.tuples,
        .exact_hits = cache.exact_hits,
        .megaflow_hits = cache.megaflow_hits,
        .misses = cache.misses,
        .replaced = cache.replaced,
        .flows = cache.flows,
        .flows_max = cache.flows_max,
        .masks = cache.masks,
    };
    for (unsigned i = 0; i < sw->ports_end; i++)
        info->ports += sw->ports[i] && !sw->ports[i]->dead;
}
