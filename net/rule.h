/*
 * Rules of a switch's access list, as a person writes them: what a frame must be like, and what is
 * done with it. docs/SWITCH.md has the notation.
 *
 * Plain values; any thread.
 */
#ifndef FERRY_NET_RULE_H
#define FERRY_NET_RULE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/util/options.h"

/* Names of ports: letters, digits, '.', '_' and '-', ended by NUL. */
#define NET_NAME_MAX 32
bool net_name_valid(const char *name);
/* An option_parser into a char[NET_NAME_MAX]. */
int net_parse_name(const struct option_key *key, const char *text, void *field);

#define RULE_PRIORITY_MAX 65535u
#define RULE_PRIORITY_DEFAULT 100u

struct rule_number {
    bool given;
    uint32_t value;
};

struct rule_range {
    bool given;
    uint16_t first, last;
};

struct rule_mac {
    uint8_t value[6], mask[6]; /* mask of zeros: any */
};

struct rule_address {
    uint8_t family;    /* 4, 6, or 0: any */
    uint8_t prefix;
    uint8_t bytes[16]; /* zero behind the prefix */
};

struct rule_flags {
    uint8_t value, mask;
};

enum rule_fragment { RULE_ANY_FRAGMENT, RULE_WHOLE, RULE_FIRST, RULE_LATER };

/* Without deny and redirect: the frame goes on its way. */
struct rule_action {
    bool deny;
    bool set_vlan;
    uint16_t vlan;
    char mirror[NET_NAME_MAX];   /* a copy goes to that port; "": none */
    char redirect[NET_NAME_MAX]; /* it goes there instead of where its address says; "": does not */
};

struct rule {
    unsigned priority;           /* of two that match the higher one counts, then the first */
    char in[NET_NAME_MAX];       /* "": any */
    struct rule_number vlan, type, proto, icmp_type;
    struct rule_mac src_mac, dst_mac;
    struct rule_address src, dst;
    struct rule_range sport, dport;
    struct rule_flags flags;
    int fragment;                /* enum rule_fragment */
    struct rule_action action;
};

/*
 * Reads "PRIORITY,in=web0,type=ip,src=10.0.0.0/8,proto=tcp,dport=80-443,action=deny". `where` names
 * the place for messages. 0, -EINVAL or -ENOMEM, logged; *rule is whole or undefined.
 */
int rule_parse(const char *where, const char *text, struct rule *rule);

/* Writes what rule_parse() reads to the same rule. */
#define RULE_TEXT_MAX 512
void rule_format(const struct rule *rule, char *to, size_t size);

#endif
