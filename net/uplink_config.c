/*
 * The configuration of an uplink: defaults, the parsers of its options, what goes with what.
 *
 * Asks the host nothing; uplink_create() does. Any thread; no state.
 */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "net/dhcp.h"
#include "net/nat.h"
#include "net/uplink.h"
#include "net/uplink_options.h"
#include "vmm/util/log.h"

const struct option_choice uplink_kinds[] = {
    {"nat", UPLINK_NAT}, {"hostonly", UPLINK_HOSTONLY}, {"bridge", UPLINK_BRIDGE},
    {"tap", UPLINK_TAP}, {"stream", UPLINK_STREAM},     {0},
};

const struct option_choice uplink_vias[] = {
    {"slirp", UPLINK_VIA_SLIRP}, {"passt", UPLINK_VIA_PASST}, {"kernel", UPLINK_VIA_KERNEL}, {0}};

const struct option_choice uplink_macvtaps[] = {{"bridge", UPLINK_PLAIN},
                                                {"vepa", UPLINK_VEPA},
                                                {"private", UPLINK_PRIVATE},
                                                {"passthru", UPLINK_PASSTHRU},
                                                {0}};

/* The modes, as bits: which of them a key goes with. */
enum {
    MODE_SLIRP = 1u << 0,
    MODE_PASST = 1u << 1,
    MODE_KERNEL = 1u << 2,
    MODE_HOSTONLY = 1u << 3,
    MODE_MACVTAP = 1u << 4,
    MODE_BRIDGE = 1u << 5,
    MODE_TAP = 1u << 6,
    MODE_STREAM = 1u << 7,
};
#define MODE_NAT (MODE_SLIRP | MODE_PASST | MODE_KERNEL)
#define MODE_ADAPTER (MODE_KERNEL | MODE_HOSTONLY)
#define MODE_NETWORK (MODE_SLIRP | MODE_PASST | MODE_ADAPTER) /* that has one of its own */
#define MODE_DEVICE (MODE_ADAPTER | MODE_MACVTAP | MODE_BRIDGE | MODE_TAP)

static unsigned mode_of(const struct uplink_config *config)
{
    switch (config->kind) {
    case UPLINK_NAT: return MODE_SLIRP << config->via;
    case UPLINK_HOSTONLY: return MODE_HOSTONLY;
    case UPLINK_BRIDGE: return config->bridge ? MODE_BRIDGE : MODE_MACVTAP;
    case UPLINK_TAP: return MODE_TAP;
    case UPLINK_STREAM: return MODE_STREAM;
    }
    return 0;
}

const char *uplink_mode_name(const struct uplink_config *config)
{
    switch (mode_of(config)) {
    case MODE_SLIRP: return "nat";
    case MODE_PASST: return "nat,via=passt";
    case MODE_KERNEL: return "nat,via=kernel";
    case MODE_HOSTONLY: return "hostonly";
    case MODE_MACVTAP: return "bridge,if=";
    case MODE_BRIDGE: return "bridge,br=";
    case MODE_TAP: return "tap";
    }
    return "stream";
}

void uplink_config_init(struct uplink_config *config)
{
    *config = (struct uplink_config){
        .kind = UPLINK_NAT, .macvtap = UPLINK_PLAIN, .reconnect = 1, .dhcp = true, .ipv6 = true};
}

void uplink_config_fini(struct uplink_config *config)
{
    free(config->link);
    free(config->bridge);
    free(config->path);
    free(config->address);
    free(config->domain);
    free(config->lease_file);
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

int uplink_parse_link(const struct option_key *key, const char *text, void *field)
{
    /* What the kernel takes for a name (dev_valid_name()). */
    if (strlen(text) >= IFNAMSIZ || strcmp(text, ".") == 0 || strcmp(text, "..") == 0)
        return -EINVAL;
    for (const char *c = text; *c; c++) {
        if (!isgraph((unsigned char)*c) || *c == '/' || *c == ':' || *c == '%')
            return -EINVAL;
    }
    return option_parse_string(key, text, field);
}

int uplink_parse_lease(const struct option_key *key, const char *text, void *field)
{
    struct uplink_config *config = field;
    struct dhcp_fixed fixed;
    int error = dhcp_fixed_parse(&fixed, text);

    (void)key;
    if (error < 0)
        return error;
    if (config->n_fixed == DHCP_MAX_FIXED)
        return -ENOSPC;
    config->fixed[config->n_fixed++] = fixed;
    return 0;
}

int uplink_parse_domain(const struct option_key *key, const char *text, void *field)
{
    if (strlen(text) > DHCP_DOMAIN_MAX)
        return -EINVAL;
    for (const char *c = text; *c; c++) {
        if (!isalnum((unsigned char)*c) && !strchr("-._", *c))
            return -EINVAL;
    }
    return option_parse_string(key, text, field);
}

int uplink_parse_endpoint(const struct option_key *key, const char *text, void *field)
{
    const char *colon = strrchr(text, ':');
    unsigned long port = 0;

    if (!colon || colon == text || colon[1] == '\0' || strlen(colon + 1) > 5)
        return -EINVAL;
    for (const char *c = colon + 1; *c; c++) {
        if (!isdigit((unsigned char)*c))
            return -EINVAL;
        port = port * 10 + (unsigned long)(*c - '0');
    }
    /* An IPv6 address has colons of its own, and brackets around it. */
    if (port < 1 || port > 65535 || (memchr(text, ':', (size_t)(colon - text)) && *text != '['))
        return -EINVAL;
    return option_parse_string(key, text, field);
}

int uplink_parse_path(const struct option_key *key, const char *text, void *field)
{
    if (strlen(text) >= sizeof(((struct sockaddr_un *)0)->sun_path) || strchr(text, '\n'))
        return -EINVAL;
    return option_parse_string(key, text, field);
}

/* ---- the whole ---- */

static const struct {
    const char *key;
    unsigned modes;
} uses[] = {
    {"via", MODE_NAT},
    {"if", MODE_DEVICE & ~MODE_BRIDGE},
    {"br", MODE_BRIDGE},
    {"mode", MODE_MACVTAP},
    {"path", MODE_STREAM},
    {"address", MODE_STREAM},
    {"server", MODE_STREAM},
    {"reconnect", MODE_STREAM},
    {"forward", MODE_NAT},
    {"subnet", MODE_NETWORK},
    {"dns", MODE_NETWORK},
    {"router", MODE_ADAPTER},
    {"domain", MODE_SLIRP | MODE_ADAPTER},
    {"dhcp", MODE_ADAPTER},
    {"lease", MODE_ADAPTER},
    {"leases", MODE_ADAPTER},
    {"mtu", MODE_NETWORK},
    {"queues", MODE_DEVICE},
    {"ipv6", MODE_SLIRP | MODE_PASST},
    {"restricted", MODE_SLIRP},
};

bool uplink_key_applies(const struct uplink_config *config, const char *key)
{
    for (size_t i = 0; i < sizeof(uses) / sizeof(uses[0]); i++) {
        if (strcmp(uses[i].key, key) == 0)
            return uses[i].modes & mode_of(config);
    }
    return true; /* a key of the table's owner */
}

/* What a mode cannot do without. */
static const char *missing_key(const struct uplink_config *config)
{
    switch (mode_of(config)) {
    case MODE_MACVTAP: return config->link ? NULL : "if=NIC or br=BRIDGE";
    case MODE_TAP: return config->link ? NULL : "if=TAP";
    case MODE_STREAM: return config->path || config->address ? NULL : "path= or address=";
    }
    return NULL;
}

static int check_fixed(const char *where, const struct uplink_config *config)
{
    for (unsigned i = 0; i < config->n_fixed; i++) {
        for (unsigned j = 0; j < i; j++) {
            if (memcmp(config->fixed[i].mac, config->fixed[j].mac, 6) == 0 ||
                config->fixed[i].address.s_addr == config->fixed[j].address.s_addr) {
                log_error("%s: two of lease= have the same station or address", where);
                return -EINVAL;
            }
        }
    }
    if (config->n_fixed > 0 && config->network.s_addr == INADDR_ANY) {
        log_error("%s: lease= takes subnet=, for its address to be in", where);
        return -EINVAL;
    }
    return 0;
}

static int check_forwards(const char *where, const struct uplink_config *config)
{
    const struct net_forward *all = config->forwards;
    char text[NET_FORWARD_TEXT_MAX];

    for (unsigned i = 0; i < config->n_forwards; i++) {
        for (unsigned j = 0; j < i; j++) {
            if (all[i].udp == all[j].udp && all[i].host_port == all[j].host_port &&
                all[i].host_addr.s_addr == all[j].host_addr.s_addr) {
                net_forward_format(&all[i], text, sizeof(text));
                log_error("%s: two of forward= have the port of %s", where, text);
                return -EINVAL;
            }
        }
    }
    return 0;
}

/* passt tells it by DHCP, but not every client asks, and of segments for an Ethernet's MTU it takes a
 * fraction of what it takes of long ones. */
unsigned uplink_default_mtu(const struct uplink_config *config)
{
    return config->kind == UPLINK_NAT && config->via == UPLINK_VIA_PASST ? UPLINK_MAX_MTU : 0;
}

int uplink_config_check(const char *where, const struct uplink_config *config)
{
    const char *missing = missing_key(config);

    if (missing) {
        log_error("%s: %.*s lacks %s", where, (int)strcspn(uplink_mode_name(config), ","),
                  uplink_mode_name(config), missing);
        return -EINVAL;
    }
    if (config->path && config->address) {
        log_error("%s: path= and address= exclude each other", where);
        return -EINVAL;
    }
    if (check_forwards(where, config) < 0)
        return -EINVAL;
    return check_fixed(where, config);
}
