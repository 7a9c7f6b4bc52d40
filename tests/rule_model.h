/*
 * A model of rules: each is tried, one after the other, against a flow's fields. For tests and fuzz
 * targets, which hold the classifier and its caches against it. Knows nothing of masks.
 */
#ifndef FERRY_TESTS_RULE_MODEL_H
#define FERRY_TESTS_RULE_MODEL_H

#include <stdbool.h>
#include <string.h>

#include "net/flow.h"
#include "net/rule.h"

static inline bool model_address(const struct rule_address *address, const uint8_t bytes[16])
{
    for (unsigned bit = 0; bit < address->prefix; bit++) {
        uint8_t mask = (uint8_t)(0x80 >> bit % 8);

        if ((address->bytes[bit / 8] & mask) != (bytes[bit / 8] & mask))
            return false;
    }
    return true;
}

static inline bool model_mac(const struct rule_mac *match, const uint8_t mac[6])
{
    for (unsigned i = 0; i < 6; i++) {
        if ((mac[i] & match->mask[i]) != match->value[i])
            return false;
    }
    return true;
}

static inline bool model_range(const struct rule_range *range, uint16_t port)
{
    return !range->given || (port >= range->first && port <= range->last);
}

static inline bool model_type(const struct rule *rule, uint16_t type)
{
    unsigned family = rule->src.family | rule->dst.family;

    if (rule->type.given)
        return type == rule->type.value;
    if (family)
        return type == (family == 4 ? 0x0800 : 0x86DD);
    if (rule->proto.given || rule->fragment)
        return type == 0x0800 || type == 0x86DD;
    return true;
}

static inline bool model_matches(const struct rule *rule, const struct flow_key *key,
                                 const char *in)
{
    bool ports = rule->sport.given || rule->dport.given || rule->icmp_type.given ||
                 rule->flags.mask;

    return (!rule->in[0] || strcmp(rule->in, in) == 0) &&
           (!rule->vlan.given || rule->vlan.value == key->vlan) &&
           model_type(rule, key->ethertype) && model_mac(&rule->src_mac, key->src_mac) &&
           model_mac(&rule->dst_mac, key->dst_mac) && model_address(&rule->src, key->src) &&
           model_address(&rule->dst, key->dst) &&
           (!rule->proto.given || rule->proto.value == key->proto) &&
           model_range(&rule->sport, key->src_port) && model_range(&rule->dport, key->dst_port) &&
           (!rule->icmp_type.given || rule->icmp_type.value == key->src_port) &&
           (key->tcp_flags & rule->flags.mask) == rule->flags.value &&
           !(ports && key->fragment == FLOW_LATER_FRAGMENT) &&
           (!rule->fragment || rule->fragment - RULE_WHOLE == key->fragment);
}

/* The index of the rule that counts, or UINT32_MAX. */
static inline uint32_t model_find(const struct rule *const *rules, unsigned n,
                                  const struct flow_key *key, const char *in)
{
    uint32_t best = UINT32_MAX;

    for (unsigned i = 0; i < n; i++) {
        if (model_matches(rules[i], key, in) &&
            (best == UINT32_MAX || rules[i]->priority > rules[best]->priority))
            best = i;
    }
    return best;
}

#endif
