/*
 * The trace: tells in words how a frame would travel, by the same decisions as the path.
 *
 * Sends, learns and counts nothing, and takes no tokens. Loop thread; no locks.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "net/switch_decide.h"
#include "net/switch_internal.h"

#define ADDRESSES PATH_ADDRESSES
#define TAG PATH_TAG
#define LINE_MAX_ (RULE_TEXT_MAX + 160)

struct trace {
    const struct net_switch *sw;
    const struct switch_port *from;
    const uint8_t *frame;
    size_t length;
    struct packet_tag tag;
    unsigned vlan;
    void (*line)(void *arg, const char *text);
    void *arg;
};

__attribute__((format(printf, 2, 3)))
static void tell(const struct trace *trace, const char *format, ...)
{
    char text[LINE_MAX_];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    trace->line(trace->arg, text);
}

static void tell_drop(const struct trace *trace, enum switch_drop why)
{
    static const char *const reasons[SWITCH_DROPS] = {
        [SWITCH_DROP_MALFORMED] = "it is malformed",
        [SWITCH_DROP_RESERVED] = "bridges keep frames to such group addresses (802.1Q, table 8-1)",
        [SWITCH_DROP_VLAN] = "the port takes no frames of that VLAN, or none with such a tag",
        [SWITCH_DROP_SPOOFED] = "its source is not an address of the port, and spoof=off",
        [SWITCH_DROP_DENIED] = "the rule denies it",
        [SWITCH_DROP_UNREADABLE] = "rules look into it, and its headers go too deep",
        [SWITCH_DROP_UNKNOWN] = "nobody has that address, and no other port takes unknown ones",
        [SWITCH_DROP_NOWHERE] = "it would have to go back, or from one uplink to another",
        [SWITCH_DROP_ISOLATED] = "both ports are isolated",
        [SWITCH_DROP_NO_PORT] = "there is no port of that name",
        [SWITCH_DROP_MIRROR] = "mirror ports send nothing",
        [SWITCH_DROP_TOO_LONG] = "with its tag it is too long",
        [SWITCH_DROP_UNPLUGGED] = "nothing is plugged in",
    };

    tell(trace, "dropped (%s): %s", switch_drop_name(why), reasons[why] ? reasons[why] : "");
}

static void tell_addresses(const struct trace *trace)
{
    const uint8_t *d = trace->frame, *s = trace->frame + 6;

    tell(trace, "in by %s: %zu bytes from %02x:%02x:%02x:%02x:%02x:%02x to "
         "%02x:%02x:%02x:%02x:%02x:%02x", trace->from->config.name, trace->length,
         s[0], s[1], s[2], s[3], s[4], s[5], d[0], d[1], d[2], d[3], d[4], d[5]);
}

/* What comes before the rules; -1 or why it is dropped. */
static int trace_entry(struct trace *trace)
{
    const struct switch_port *from = trace->from;
    int result, vlan;

    if (from->kind == SWITCH_PORT_MIRROR)
        return SWITCH_DROP_MIRROR;
    result = path_read_tag(from, trace->frame, trace->length, &trace->tag);
    if (result != PATH_GO)
        return result;
    result = path_check_addresses(trace->frame);
    if (result != PATH_GO)
        return result;
    vlan = vlan_admit(&from->vlan, trace->tag.tci & 0xFFF);
    if (vlan == VLAN_REFUSED) {
        tell(trace, "%s port: %s", vlan_mode_name(from->vlan.mode),
             trace->tag.tagged ? "its tag is not admitted"
                               : "frames without a tag are not admitted");
        return SWITCH_DROP_VLAN;
    }
    trace->vlan = (unsigned)vlan;
    tell(trace, "%s port: VLAN %d, priority %u", vlan_mode_name(from->vlan.mode), vlan,
         trace->tag.priority >> 13);
    if (!path_may_send_from(from, trace->frame + 6, trace->vlan))
        return SWITCH_DROP_SPOOFED;
    tell(trace, "source: %s", from->may_spoof ? "any may be used" : "an address of the port");
    return PATH_GO;
}

/* The number of the port that rules redirect to, -1: none, -2: dropped, which was told. */
static int trace_rules(struct trace *trace)
{
    static const char *const levels[] = {
        [FLOW_CACHE_EXACT_HIT] = "exact match in the cache",
        [FLOW_CACHE_MEGAFLOW_HIT] = "megaflow in the cache",
        [FLOW_CACHE_MISS] = "by the classifier",
    };
    size_t skip = ADDRESSES + (trace->tag.tagged ? TAG : 0);
    size_t at_hand = trace->length < PATH_HEADER_MAX ? trace->length : PATH_HEADER_MAX;
    const struct net_switch *sw = trace->sw;
    struct flow_key key;
    enum flow_cache_level level;
    enum flow_result read;
    const struct switch_rule *rule;
    char text[RULE_TEXT_MAX];
    uint32_t index;

    if (!sw->classifier) {
        tell(trace, "rules: there are none");
        return -1;
    }
    read = flow_read(&key, trace->from->number, (uint16_t)trace->vlan, trace->frame,
                     trace->frame + skip, at_hand - skip, trace->length - skip);
    if (read != FLOW_OK && sw->looks_inside) {
        tell_drop(trace, read == FLOW_TOO_DEEP ? SWITCH_DROP_UNREADABLE : SWITCH_DROP_MALFORMED);
        return -2;
    }
    index = flow_cache_peek(sw->cache, &key, &level);
    if (index == CLASSIFIER_NONE) {
        tell(trace, "rules: none matches (%s)", levels[level]);
        return -1;
    }
    rule = sw->rules[index];
    rule_format(&rule->rule, text, sizeof(text));
    tell(trace, "rules: %u '%s' (%s)", rule->id, text, levels[level]);
    if (rule->rule.action.deny) {
        tell_drop(trace, SWITCH_DROP_DENIED);
        return -2;
    }
    if (rule->rule.action.set_vlan)
        trace->vlan = rule->rule.action.vlan;
    if (rule->mirror >= 0)
        tell(trace, "copy to %s: the rule says so", rule->rule.action.mirror);
    if (!rule->rule.action.redirect[0])
        return -1;
    if (rule->redirect < 0)
        tell_drop(trace, SWITCH_DROP_NO_PORT);
    return rule->redirect >= 0 ? rule->redirect : -2;
}

static void tell_out(const struct trace *trace, const struct switch_port *to)
{
    struct path_form form = path_form(to, &trace->tag, trace->vlan);

    if (!to->end.peer)
        tell(trace, "out by %s: dropped (unplugged)", to->config.name);
    else if (form.tagged)
        tell(trace, "out by %s: with tag 0x%04x of VLAN %u, priority %u", to->config.name,
             trace->tag.tpid, form.tci & 0xFFF, form.tci >> 13);
    else
        tell(trace, "out by %s: without a tag", to->config.name);
}

/* To one port, which has the address or was named by a rule. */
static void trace_one(const struct trace *trace, const struct switch_port *to, bool redirected)
{
    int drop = path_between(trace->from, to);

    if (redirected && drop == SWITCH_DROP_ISOLATED)
        drop = PATH_GO;
    if (drop == PATH_GO && redirected && to->kind != SWITCH_PORT_MIRROR &&
        !vlan_carries(&to->vlan, trace->vlan))
        drop = SWITCH_DROP_VLAN;
    if (drop != PATH_GO)
        tell_drop(trace, (enum switch_drop)drop);
    else
        tell_out(trace, to);
}

/* To all ports that want it, but for `but`, which was told of. */
static void trace_set(const struct trace *trace, enum path_set set, const struct switch_port *but)
{
    const struct switch_port *to = NULL;
    bool isolated = false, any = but != NULL;

    while ((to = switch_port_next(trace->sw, to)) != NULL) {
        int between = path_between(trace->from, to);

        if (to == but || !path_wants(to, set, trace->vlan))
            continue;
        isolated |= between == SWITCH_DROP_ISOLATED;
        if (between != PATH_GO)
            continue;
        any = true;
        tell_out(trace, to);
    }
    if (!any)
        tell_drop(trace, set == PATH_UNKNOWN ? SWITCH_DROP_UNKNOWN
                         : isolated          ? SWITCH_DROP_ISOLATED
                                             : SWITCH_DROP_NOWHERE);
}

static void trace_receivers(const struct trace *trace)
{
    const struct net_switch *sw = trace->sw;
    const struct switch_port *to;
    const char *how = "registered by";

    if (net_mac_is_group(trace->frame)) {
        tell(trace, "to a group: all ports of VLAN %u", trace->vlan);
        trace_set(trace, PATH_GROUP, NULL);
        return;
    }
    to = path_find_station(sw, trace->frame, trace->vlan);
    if (!to) {
        how = "learnt behind";
        to = path_find_learnt(sw, trace->frame, trace->vlan, switch_now_s(sw));
    }
    if (!to) {
        tell(trace, "destination: unknown in VLAN %u", trace->vlan);
        trace_set(trace, PATH_UNKNOWN, NULL);
        return;
    }
    tell(trace, "destination: %s %s", how, to->config.name);
    trace_one(trace, to, false);
    if (path_between(trace->from, to) == PATH_GO && sw->n_promiscuous)
        trace_set(trace, PATH_KNOWN, to);
}

static void tell_mirrors(const struct trace *trace)
{
    for (uint32_t left = trace->from->mirror_in; left; left &= left - 1) {
        const struct switch_mirror *mirror = &trace->sw->mirrors[__builtin_ctz(left)];

        if (!mirror->from.vlans_given || vlan_set_has(&mirror->from.vlans, trace->vlan))
            tell(trace, "copy to %s: %s %s", mirror->capture ? "a file" : mirror->to_name,
                 mirror->capture ? "capture" : "mirror", mirror->name);
    }
}

int switch_trace(const struct switch_port *port, const void *frame, size_t length,
                 void (*line)(void *arg, const char *text), void *arg)
{
    struct trace trace = {port->sw, port, frame, length, {0}, 0, line, arg};
    int result;

    if (length < NET_FRAME_MIN || length > NET_FRAME_MAX)
        return -EINVAL;
    tell_addresses(&trace);
    result = trace_entry(&trace);
    if (result != PATH_GO) {
        tell_drop(&trace, (enum switch_drop)result);
        return 0;
    }
    result = trace_rules(&trace);
    tell_mirrors(&trace);
    if (result >= 0) {
        tell(&trace, "redirected to %s", port->sw->ports[result]->config.name);
        trace_one(&trace, port->sw->ports[result], true);
    } else if (result == -1) {
        trace_receivers(&trace);
    }
    return 0;
}
