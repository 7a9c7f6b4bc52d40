/*
 * The options of an uplink, the same on the command line and in files: rows for tables of
 * vmm/util/options.h.
 */
#ifndef FERRY_NET_UPLINK_OPTIONS_H
#define FERRY_NET_UPLINK_OPTIONS_H

#include <stddef.h>

#include "net/forward.h"
#include "net/uplink.h"
#include "vmm/util/options.h"

/* struct uplink_config: adds one forward. */
int uplink_parse_forward(const struct option_key *key, const char *text, void *field);
/* struct uplink_config: sets the network and its prefix. */
int uplink_parse_subnet(const struct option_key *key, const char *text, void *field);
/* struct in_addr. */
int uplink_parse_address(const struct option_key *key, const char *text, void *field);

/* char *: an interface's name. */
int uplink_parse_link(const struct option_key *key, const char *text, void *field);
/* struct uplink_config: adds one fixed lease. */
int uplink_parse_lease(const struct option_key *key, const char *text, void *field);
/* char *: a domain's name. */
int uplink_parse_domain(const struct option_key *key, const char *text, void *field);
/* char *: HOST:PORT, or [HOST]:PORT. */
int uplink_parse_endpoint(const struct option_key *key, const char *text, void *field);
/* char *: a path that fits in a unix socket's address. */
int uplink_parse_path(const struct option_key *key, const char *text, void *field);

/* Of `kind`; a table may have more. NULL ends it. */
extern const struct option_choice uplink_kinds[];
extern const struct option_choice uplink_vias[];
extern const struct option_choice uplink_macvtaps[];

#define UPLINK_KINDS_TEXT "nat, hostonly, bridge, tap, stream"

#define UPLINK_FIELD(struct_, member, field) offsetof(struct_, member.field)

/* What a NIC has by its own options, for an uplink without one. */
#define UPLINK_LINK_KEYS(s, m)                                                                     \
    {.name = "mtu", .parse = option_parse_number, .offset = UPLINK_FIELD(s, m, mtu),               \
     .min = UPLINK_MIN_MTU, .max = UPLINK_MAX_MTU},                                                \
    {.name = "queues", .parse = option_parse_number, .offset = UPLINK_FIELD(s, m, queues),         \
     .min = 1, .max = UPLINK_MAX_QUEUES}

/* Each other key but `kind`, for a struct that has a struct uplink_config as its member. */
#define UPLINK_KEYS(s, m)                                                                          \
    {.name = "via", .parse = option_parse_choice, .offset = UPLINK_FIELD(s, m, via),               \
     .choices = uplink_vias},                                                                      \
    {.name = "if", .parse = uplink_parse_link, .offset = UPLINK_FIELD(s, m, link),                 \
     .expects = "an interface's name, of 1 to 15 characters,"},                                    \
    {.name = "br", .parse = uplink_parse_link, .offset = UPLINK_FIELD(s, m, bridge),               \
     .expects = "a bridge's name, of 1 to 15 characters,"},                                        \
    {.name = "mode", .parse = option_parse_choice, .offset = UPLINK_FIELD(s, m, macvtap),          \
     .choices = uplink_macvtaps},                                                                  \
    {.name = "path", .parse = uplink_parse_path, .offset = UPLINK_FIELD(s, m, path),               \
     .expects = "a socket's path, of 1 to 107 characters,"},                                       \
    {.name = "address", .parse = uplink_parse_endpoint, .offset = UPLINK_FIELD(s, m, address),     \
     .expects = "HOST:PORT"},                                                                      \
    {.name = "server", .parse = option_parse_bool, .offset = UPLINK_FIELD(s, m, server)},          \
    {.name = "reconnect", .parse = option_parse_number, .offset = UPLINK_FIELD(s, m, reconnect),   \
     .min = 1, .max = 3600},                                                                       \
    {.name = "forward", .parse = uplink_parse_forward, .offset = offsetof(s, m),                   \
     .expects = NET_FORWARD_EXPECTS, .repeatable = true},                                          \
    {.name = "subnet", .parse = uplink_parse_subnet, .offset = offsetof(s, m),                     \
     .expects = "a network such as 192.168.76.0/24, of 8 to 27 bits,"},                            \
    {.name = "dns", .parse = uplink_parse_address, .offset = UPLINK_FIELD(s, m, dns),              \
     .expects = "an IPv4 address"},                                                                \
    {.name = "router", .parse = uplink_parse_address, .offset = UPLINK_FIELD(s, m, router),        \
     .expects = "an IPv4 address"},                                                                \
    {.name = "domain", .parse = uplink_parse_domain, .offset = UPLINK_FIELD(s, m, domain),         \
     .expects = "a domain's name"},                                                                \
    {.name = "dhcp", .parse = option_parse_bool, .offset = UPLINK_FIELD(s, m, dhcp)},              \
    {.name = "lease", .parse = uplink_parse_lease, .offset = offsetof(s, m),                       \
     .expects = DHCP_FIXED_EXPECTS, .repeatable = true},                                           \
    {.name = "leases", .parse = option_parse_string, .offset = UPLINK_FIELD(s, m, lease_file),     \
     .expects = "the path of a file"},                                                             \
    {.name = "ipv6", .parse = option_parse_bool, .offset = UPLINK_FIELD(s, m, ipv6)},              \
    {.name = "restricted", .parse = option_parse_bool, .offset = UPLINK_FIELD(s, m, restricted)}

#endif
