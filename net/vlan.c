/*
 * VLANs of a port: the notation of sets and modes, and what a mode means.
 *
 * Does not touch frames; the switch does (net/switch_path.c). Any thread; no state.
 *
 * Texts: IEEE 802.1Q-2018 §6.9 (classification, priority), §9; the modes after
 * ovs-vswitchd.conf.db(5).
 */
#include "net/vlan.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct option_choice vlan_modes[] = {
    {"access", VLAN_ACCESS},
    {"trunk", VLAN_TRUNK},
    {"native-tagged", VLAN_NATIVE_TAGGED},
    {"native-untagged", VLAN_NATIVE_UNTAGGED},
    {"dot1q-tunnel", VLAN_TUNNEL},
    {NULL, 0},
};

const char *vlan_mode_name(enum vlan_mode mode)
{
    for (const struct option_choice *choice = vlan_modes; choice->name; choice++) {
        if (choice->value == (int)mode)
            return choice->name;
    }
    return "auto";
}

static const char *parse_vlan(const char *text, unsigned *out)
{
    unsigned vlan = 0;
    const char *c = text;

    for (; *c >= '0' && *c <= '9' && vlan <= VLAN_MAX; c++)
        vlan = vlan * 10 + (unsigned)(*c - '0');
    if (c == text || vlan > VLAN_MAX)
        return NULL;
    *out = vlan;
    return c;
}

int vlan_parse_set(const struct option_key *key, const char *text, void *field)
{
    struct vlan_set set = {0};
    const char *c = text;

    (void)key;
    if (strcmp(text, "all") == 0) {
        c = "0-4094";
    }
    for (;;) {
        unsigned first, last;

        c = parse_vlan(c, &first);
        if (!c)
            return -EINVAL;
        last = first;
        if (*c == '-')
            c = parse_vlan(c + 1, &last);
        if (!c || last < first)
            return -EINVAL;
        while (first <= last)
            vlan_set_add(&set, first++);
        if (*c == '\0')
            break;
        if (*c != '+' && *c != ',')
            return -EINVAL;
        c++;
    }
    memcpy(field, &set, sizeof(set));
    return 0;
}

int vlan_parse_trunk(const struct option_key *key, const char *text, void *field)
{
    struct vlan_config *config = field;
    int error = vlan_parse_set(key, text, &config->trunk);

    if (error == 0)
        config->trunk_given = true;
    return error;
}

void vlan_format_set(const struct vlan_set *set, char *to, size_t size)
{
    size_t used = 0;

    to[0] = '\0';
    for (unsigned first = 0; first <= VLAN_MAX; first++) {
        unsigned last = first;
        int n;

        if (!vlan_set_has(set, first))
            continue;
        while (last < VLAN_MAX && vlan_set_has(set, last + 1))
            last++;
        if (last == first)
            n = snprintf(to + used, size - used, "%s%u", used ? "+" : "", first);
        else
            n = snprintf(to + used, size - used, "%s%u-%u", used ? "+" : "", first, last);
        if (n < 0 || (size_t)n >= size - used)
            return;
        used += (size_t)n;
        first = last;
    }
}

/* The mode, when none was named, and what its settings must be. */
static enum vlan_mode find_mode(const struct vlan_config *config, bool uplink)
{
    if (config->mode != VLAN_AUTO)
        return (enum vlan_mode)config->mode;
    if (config->native)
        return VLAN_NATIVE_UNTAGGED;
    if (config->trunk_given)
        return VLAN_TRUNK;
    return uplink && !config->vlan ? VLAN_TRUNK : VLAN_ACCESS;
}

/* What stands in the way of a mode, or NULL. */
static const char *check(const struct vlan_config *config, enum vlan_mode mode)
{
    bool one = mode == VLAN_ACCESS || mode == VLAN_TUNNEL;
    bool native = mode == VLAN_NATIVE_TAGGED || mode == VLAN_NATIVE_UNTAGGED;

    if (one && config->native)
        return "native= is not for ports of one VLAN";
    if (one && config->trunk_given)
        return "trunk= is not for ports of one VLAN";
    if (!one && config->vlan)
        return "vlan= is for access ports and tunnels; a trunk has trunk= and native=";
    if (mode == VLAN_TUNNEL && !config->vlan)
        return "a dot1q-tunnel needs vlan=";
    if (mode == VLAN_TRUNK && config->native)
        return "native= is for the modes native-tagged and native-untagged";
    if (native && !config->native)
        return "a native mode needs native=";
    return NULL;
}

int vlan_port_init(struct vlan_port *port, const struct vlan_config *config, bool uplink,
                   const char **why)
{
    enum vlan_mode mode = find_mode(config, uplink);
    bool one = mode == VLAN_ACCESS || mode == VLAN_TUNNEL;

    *why = check(config, mode);
    if (*why)
        return -EINVAL;
    *port = (struct vlan_port){
        .mode = mode,
        .untagged_in = (uint16_t)(one ? config->vlan : config->native),
        .untagged_out = (uint16_t)(one ? config->vlan : config->native),
        .only = one ? (uint16_t)config->vlan : VLAN_NONE,
        .accepts_tags = !one,
        .tunnel = mode == VLAN_TUNNEL,
        .priority_tags = config->priority_tags,
    };
    if (mode == VLAN_NATIVE_TAGGED)
        port->untagged_out = VLAN_NONE;
    if (one)
        vlan_set_add(&port->carries, config->vlan);
    else if (config->trunk_given)
        port->carries = config->trunk;
    else
        memset(&port->carries, 0xFF, sizeof(port->carries));
    if (config->native) {
        /* VLAN 0 has no form of its own there: without a tag it would be the native one. */
        port->carries.words[0] &= ~1ull;
        vlan_set_add(&port->carries, config->native);
    }
    return 0;
}

void vlan_port_close(struct vlan_port *port)
{
    port->only = VLAN_NONE;
    port->carries = (struct vlan_set){0};
}
