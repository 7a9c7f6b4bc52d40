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

/* Of `kind`; a table may have more. NULL ends it. */
extern const struct option_choice uplink_kinds[];

/* Each key but `kind`, for a struct that has a struct uplink_config as its member. */
#define UPLINK_KEYS(struct_, member)                                                               \
    {.name = "forward", .parse = uplink_parse_forward, .offset = offsetof(struct_, member),        \
     .expects = NET_FORWARD_EXPECTS, .repeatable = true},                                          \
    {.name = "subnet", .parse = uplink_parse_subnet, .offset = offsetof(struct_, member),          \
     .expects = "a network such as 192.168.76.0/24, of 8 to 27 bits,"},                            \
    {.name = "dns", .parse = uplink_parse_address, .offset = offsetof(struct_, member.dns),        \
     .expects = "an IPv4 address"},                                                                \
    {.name = "ipv6", .parse = option_parse_bool, .offset = offsetof(struct_, member.ipv6)},        \
    {.name = "restricted", .parse = option_parse_bool,                                             \
     .offset = offsetof(struct_, member.restricted)}

#endif
