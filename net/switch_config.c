/*
 * The settings of a switch's port and of mirrors: their notation, and what fits together.
 *
 * Any thread; no state.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "net/switch.h"
#include "vmm/util/log.h"

const struct option_choice switch_settings[] = {
    {"on", SWITCH_ON},
    {"off", SWITCH_OFF},
    {NULL, 0},
};

/* ---- rates ---- */

static uint64_t rate_unit(char unit)
{
    switch (unit) {
    case 'K': case 'k': return 1000;
    case 'M': case 'm': return 1000000;
    case 'G': case 'g': return 1000000000;
    case 'T': case 't': return 1000000000000;
    default: return 0;
    }
}

/* Digits, then up to three decimals: in thousandths. Returns what follows, or NULL. */
static const char *read_thousandths(const char *text, uint64_t *out)
{
    uint64_t value = 0;
    unsigned decimals = 0;
    const char *start = text;

    for (; *text >= '0' && *text <= '9' && value <= SWITCH_RATE_MAX; text++)
        value = value * 10 + (uint64_t)(*text - '0');
    if (text == start || value > SWITCH_RATE_MAX)
        return NULL;
    if (*text == '.') {
        for (text++; decimals < 3 && *text >= '0' && *text <= '9'; text++, decimals++)
            value = value * 10 + (uint64_t)(*text - '0');
        if (decimals == 0)
            return NULL;
    }
    for (; decimals < 3; decimals++)
        value *= 10;
    *out = value;
    return text;
}

/* `off`: no limit, or the usual burst. */
static bool is_off(const char *text, uint64_t *field)
{
    bool off = strcmp(text, "off") == 0;

    if (off)
        *field = 0;
    return off;
}

int switch_parse_rate(const struct option_key *key, const char *text, void *field)
{
    uint64_t thousandths, unit = 1;
    const char *end = read_thousandths(text, &thousandths);

    (void)key;
    if (is_off(text, field))
        return 0;
    if (!end)
        return -EINVAL;
    if (*end) {
        unit = rate_unit(*end);
        if (!unit || end[1])
            return -EINVAL;
    }
    if (thousandths == 0 || thousandths > SWITCH_RATE_MAX * 1000 / unit)
        return -EINVAL;
    if (thousandths * unit < 1000)
        return -EINVAL;
    *(uint64_t *)field = thousandths * unit / 1000;
    return 0;
}

int switch_parse_burst(const struct option_key *key, const char *text, void *field)
{
    const struct option_key limits = {.name = key->name, .min = 1, .max = SWITCH_BURST_MAX};
    size_t length = strlen(text);
    unsigned bytes;
    int error;

    if (is_off(text, field))
        return 0;
    if (length == 0 || text[length - 1] < '0' || text[length - 1] > '9')
        return option_parse_size(&limits, text, field);
    error = option_parse_number(&limits, text, &bytes);
    if (error == 0)
        *(uint64_t *)field = bytes;
    return error;
}

/* ---- ports ---- */

struct settings {
    struct switch_port_config config;
};

static const struct option_key port_keys[] = {
    SWITCH_PORT_KEYS(struct settings, config),
    {0},
};

static const char *check_port(const struct switch_port_config *config)
{
    struct vlan_port vlan;
    const char *why;

    if (vlan_port_init(&vlan, &config->vlan, config->kind == SWITCH_PORT_UPLINK, &why) < 0)
        return why;
    if (config->learn == SWITCH_ON && config->spoof == SWITCH_OFF)
        return "learn=on takes frames from any address: spoof=off contradicts it";
    if (config->burst_in && !config->rate_in)
        return "burst-in= needs rate-in=";
    if (config->burst_out && !config->rate_out)
        return "burst-out= needs rate-out=";
    return NULL;
}

int switch_port_config_check(const char *where, const struct switch_port_config *config)
{
    const char *why = check_port(config);

    if (!net_name_valid(config->name)) {
        log_error("%s: '%s' is not a name of a port: up to %d letters, digits, '.', '_' and '-'",
                  where, config->name, NET_NAME_MAX - 1);
        return -EINVAL;
    }
    if (why) {
        bool named = strcmp(where, config->name) == 0;

        log_error("%s: %s%s%s", where, named ? "" : config->name, named ? "" : ": ", why);
        return -EINVAL;
    }
    return 0;
}

/* The first keys of the table are those of VLANs. */
#define VLAN_KEYS 5u

/* A limit that is lifted takes along the burst that it had. */
static void lift_bursts(const struct switch_port_config *before, struct switch_port_config *after)
{
    if (before->rate_in && !after->rate_in && after->burst_in == before->burst_in)
        after->burst_in = 0;
    if (before->rate_out && !after->rate_out && after->burst_out == before->burst_out)
        after->burst_out = 0;
}

int switch_port_config_update(const char *where, const char *text,
                              struct switch_port_config *config)
{
    struct settings blank = {0}, changed = {*config};
    uint64_t seen;
    int error = options_parse_list_seen(where, text, port_keys, &blank, &seen);

    if (error < 0)
        return error;
    if (seen & ((1ull << VLAN_KEYS) - 1))
        changed.config.vlan = (struct vlan_config){0};
    /* Known to parse: now over what there is. */
    error = options_parse_list_seen(where, text, port_keys, &changed, &seen);
    if (error == 0) {
        lift_bursts(config, &changed.config);
        error = switch_port_config_check(where, &changed.config);
    }
    if (error == 0)
        *config = changed.config;
    return error;
}

/* ---- ports, as a text ---- */

struct text {
    char *to;
    size_t size, used;
    bool full;
};

__attribute__((format(printf, 2, 3))) static void add(struct text *t, const char *format, ...)
{
    va_list arguments;
    int n;

    va_start(arguments, format);
    n = vsnprintf(t->to + t->used, t->size - t->used, format, arguments);
    va_end(arguments);
    if (n < 0 || (size_t)n >= t->size - t->used)
        t->full = true;
    else
        t->used += (size_t)n;
}

static void add_vlan(struct text *t, const struct vlan_config *vlan)
{
    if (vlan->vlan || (!vlan->trunk_given && !vlan->native && vlan->mode == VLAN_AUTO))
        add(t, ",vlan=%u", vlan->vlan);
    if (vlan->trunk_given) {
        char *trunk;

        add(t, ",trunk=");
        trunk = t->to + t->used;
        vlan_format_set(&vlan->trunk, trunk, t->size - t->used);
        t->used += strlen(trunk);
        t->full = t->full || t->size - t->used < sizeof("+1000-4094");
    }
    if (vlan->native)
        add(t, ",native=%u", vlan->native);
    if (vlan->mode != VLAN_AUTO)
        add(t, ",vlan-mode=%s", vlan_mode_name((enum vlan_mode)vlan->mode));
    if (vlan->priority_tags)
        add(t, ",priority-tags=on");
}

static void add_setting(struct text *t, const char *key, int setting)
{
    if (setting != SWITCH_AUTO)
        add(t, ",%s=%s", key, setting == SWITCH_ON ? "on" : "off");
}

static void add_amount(struct text *t, const char *key, uint64_t amount)
{
    if (amount)
        add(t, ",%s=%llu", key, (unsigned long long)amount);
}

int switch_port_config_format(const struct switch_port_config *config, char *to, size_t size)
{
    struct text t = {.to = to, .size = size};

    add(&t, "isolated=%s,hairpin=%s", config->isolated ? "on" : "off",
        config->hairpin ? "on" : "off");
    add_vlan(&t, &config->vlan);
    add_setting(&t, "learn", config->learn);
    add_setting(&t, "flood", config->flood);
    add_setting(&t, "spoof", config->spoof);
    add_setting(&t, "mac-change", config->mac_change);
    add_setting(&t, "promisc", config->promiscuous);
    add_amount(&t, "rate-in", config->rate_in);
    add_amount(&t, "rate-out", config->rate_out);
    add_amount(&t, "burst-in", config->burst_in);
    add_amount(&t, "burst-out", config->burst_out);
    return t.full ? -ENOSPC : 0;
}

/* ---- mirrors ---- */

/* Names joined by '+'. */
static int parse_sources(const struct option_key *key, const char *text, void *field)
{
    struct switch_selection *from = field;
    char copy[SWITCH_SOURCES_MAX * NET_NAME_MAX];
    char *rest = copy, *name;
    int error = 0;

    if (strlen(text) >= sizeof(copy))
        return -EINVAL;
    memcpy(copy, text, strlen(text) + 1);
    from->n_ports = 0;
    while (error == 0 && (name = strsep(&rest, "+")) != NULL) {
        if (from->n_ports == SWITCH_SOURCES_MAX)
            return -ENOSPC;
        error = net_parse_name(key, name, from->ports[from->n_ports++]);
    }
    return error;
}

static int parse_vlans(const struct option_key *key, const char *text, void *field)
{
    struct switch_selection *from = field;
    int error = vlan_parse_set(key, text, &from->vlans);

    if (error == 0)
        from->vlans_given = true;
    return error;
}

static const struct option_choice directions[] = {
    {"in", SWITCH_IN},
    {"out", SWITCH_OUT},
    {"both", SWITCH_BOTH},
    {NULL, 0},
};

#define MIRROR(member) .offset = offsetof(struct switch_mirror_config, member)

static const struct option_key mirror_keys[] = {
    {.name = "name", .parse = net_parse_name, MIRROR(name), .required = true,
     .expects = "a name of letters, digits, '.', '_' and '-'"},
    {.name = "from", .parse = parse_sources, MIRROR(from),
     .expects = "names of ports joined by '+'"},
    {.name = "direction", .parse = option_parse_choice, .choices = directions,
     MIRROR(from.direction)},
    {.name = "vlan", .parse = parse_vlans, MIRROR(from), .expects = "VLANs such as 10-20+30"},
    {.name = "to", .parse = net_parse_name, MIRROR(to), .required = true,
     .expects = "the name of a mirror port"},
    {0},
};

int switch_mirror_parse(const char *where, const char *text, struct switch_mirror_config *config)
{
    memset(config, 0, sizeof(*config));
    return options_parse_list(where, text, mirror_keys, config);
}
