/*
 * The configuration of an uplink: defaults, the parsers of its options, what goes with what.
 *
 * Asks the host nothing; uplink_create() does. Any thread; no state.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#include "net/nat.h"
#include "net/uplink.h"
#include "net/uplink_options.h"
#include "vmm/util/log.h"

const struct option_choice uplink_kinds[] = {{"nat", UPLINK_NAT}, {0}};

/* The modes, as bits: which of them a key goes with. */
enum { MODE_NAT = 1u << 0 };

static unsigned mode_of(const struct uplink_config *config)
{
    switch (config->kind) {
    case UPLINK_NAT: return MODE_NAT;
    }
    return 0;
}

const char *uplink_mode_name(const struct uplink_config *config)
{
    switch (config->kind) {
    case UPLINK_NAT: return "nat";
    }
    return "";
}

void uplink_config_init(struct uplink_config *config)
{
    *config = (struct uplink_config){.kind = UPLINK_NAT, .ipv6 = true};
}

void uplink_config_fini(struct uplink_config *config)
{
    *config = (struct uplink_config){0};
}

/* ---- values ---- */

int uplink_parse_forward(const struct option_key *key, const char *text, void *field)
{
    struct uplink_config *config = field;
    struct net_forward forward;
    int error = net_forward_parse(&forward, text);

    (void)key;
    if (error < 0)
        return error;
    if (config->n_forwards == UPLINK_MAX_FORWARDS)
        return -ENOSPC;
    config->forwards[config->n_forwards++] = forward;
    return 0;
}

int uplink_parse_subnet(const struct option_key *key, const char *text, void *field)
{
    struct uplink_config *config = field;

    (void)key;
    return nat_subnet_parse(text, &config->network, &config->prefix);
}

int uplink_parse_address(const struct option_key *key, const char *text, void *field)
{
    struct in_addr address;

    (void)key;
    if (inet_pton(AF_INET, text, &address) != 1 || address.s_addr == INADDR_ANY)
        return -EINVAL;
    *(struct in_addr *)field = address;
    return 0;
}

/* ---- the whole ---- */

static const struct {
    const char *key;
    unsigned modes;
} uses[] = {
    {"forward", MODE_NAT}, {"subnet", MODE_NAT},     {"dns", MODE_NAT},
    {"ipv6", MODE_NAT},    {"restricted", MODE_NAT},
};

bool uplink_key_applies(const struct uplink_config *config, const char *key)
{
    for (size_t i = 0; i < sizeof(uses) / sizeof(uses[0]); i++) {
        if (strcmp(uses[i].key, key) == 0)
            return uses[i].modes & mode_of(config);
    }
    return true; /* a key of the table's owner */
}

int uplink_config_check(const char *where, const struct uplink_config *config)
{
    (void)where;
    (void)config;
    return 0;
}
