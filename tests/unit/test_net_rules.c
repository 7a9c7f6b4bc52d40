/*
 * Rules: their notation; the classifier and the flow caches, held against a model that tries each
 * rule in turn.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "net/classifier.h"
#include "net/flow_cache.h"
#include "net/rule.h"
#include "tests/rule_model.h"
#include "vmm/util/log.h"

static char said[400];

static void keep(enum log_level level, const char *line)
{
    (void)level;
    snprintf(said, sizeof(said), "%s", line);
}

static void set_up(void)
{
    log_set_sink(keep);
}

TestSuite(net_rules, .init = set_up, .timeout = 60);

static struct rule parsed(const char *text)
{
    struct rule rule;

    cr_assert_eq(rule_parse("rule", text, &rule), 0, "%s: %s", text, said);
    return rule;
}

/* ---- the notation ---- */

Test(net_rules, a_rule_is_written_as_it_was_read)
{
    static const char *const texts[] = {
        "100,action=allow",
        "0,action=deny",
        "65535,in=web0,vlan=4094,type=0x88cc,action=deny",
        "100,src-mac=02:00:00:00:00:01,dst-mac=01:00:00:00:00:00/01:00:00:00:00:00,action=allow",
        "100,type=ip,src=10.0.0.0/8,proto=tcp,sport=1024-65535,dport=80,flags=+syn-ack,action=deny",
        "100,type=ip,dst=192.168.1.1/32,action=allow",
        "100,src=2001:db8::/32,dst=::/0,proto=udp,dport=53,action=allow",
        "100,type=arp,src=10.0.0.1/32,action=deny",
        "100,proto=icmp6,icmp-type=134,action=deny",
        "100,fragment=later,action=deny",
        "100,proto=47,action=mirror:ids0",
        "100,action=mirror:ids0+vlan:20+redirect:fw0",
    };
    char text[RULE_TEXT_MAX];

    for (unsigned i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct rule rule = parsed(texts[i]);

        rule_format(&rule, text, sizeof(text));
        cr_assert_str_eq(text, texts[i]);
    }
}

Test(net_rules, bits_behind_a_prefix_or_mask_do_not_count)
{
    struct rule a =
        parsed("1,src=10.1.2.3/8,dst-mac=02:03:00:00:00:00/ff:00:00:00:00:00,action=deny");
    struct rule b =
        parsed("1,src=10.0.0.0/8,dst-mac=02:00:00:00:00:00/ff:00:00:00:00:00,action=deny");

    cr_assert_eq(memcmp(&a, &b, sizeof(a)), 0);
}

Test(net_rules, what_makes_no_sense_is_refused)
{
    static const char *const wrong[] = {
        "", "100", "action=maybe", "65536,action=deny", "in=a b,action=deny",
        "vlan=4095,action=deny",
        "type=ipx,action=deny", "type=0x10000,action=deny", "src=10.0.0.0/33,action=deny",
        "src=10.0.0,action=deny", "src=::1/129,action=deny", "src=10.0.0.1,dst=::1,action=deny",
        "type=ip6,src=10.0.0.1,action=deny", "type=ip,src=::1,action=deny",
        "type=arp,proto=tcp,action=deny", "dport=80,action=deny", "proto=icmp,dport=80,action=deny",
        "proto=tcp,dport=80-79,action=deny", "proto=tcp,dport=65536,action=deny",
        "proto=udp,flags=+syn,action=deny", "proto=tcp,flags=syn,action=deny",
        "proto=tcp,flags=+syn-syn,action=deny", "proto=tcp,flags=,action=deny",
        "proto=tcp,icmp-type=8,action=deny", "proto=256,action=deny", "fragment=yes,action=deny",
        "src-mac=02:00:00:00:00,action=deny", "action=mirror:", "action=vlan:4095",
        "action=redirect:a+redirect:b", "action=deny+vlan:1", "action=vlan:1+vlan:2",
        "proto=tcp,dport=80,fragment=later,action=deny",
        "action=allow,action=deny", "nonsense=1,action=deny",
    };
    struct rule rule;

    for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        cr_assert_eq(rule_parse("rule", wrong[i], &rule), -EINVAL, "%s", wrong[i]);
}

Test(net_rules, a_refusal_says_what_was_expected)
{
    struct rule rule;

    cr_assert_eq(rule_parse("lab.yaml:12", "proto=tcp,dport=http,action=deny", &rule), -EINVAL);
    cr_assert_str_eq(said, "lab.yaml:12: dport='http' is not valid: a port, or a range such as "
                           "8000-8080 was expected");
}

/* ---- the classifier ---- */

static const char *const port_names[] = {"p0", "p1", "p2"};

static int resolve(const void *arg, const char *name)
{
    (void)arg;
    for (int i = 0; i < 3; i++) {
        if (strcmp(port_names[i], name) == 0)
            return i;
    }
    return -1;
}

static struct classifier *classify(const struct rule *const *rules, unsigned n)
{
    struct classifier *classifier;

    cr_assert_eq(classifier_create(&classifier, rules, n, resolve, NULL), 0);
    return classifier;
}

Test(net_rules, the_higher_priority_counts_and_then_the_first)
{
    struct rule low = parsed("10,action=deny"), high = parsed("20,type=ip,action=allow"),
                same = parsed("20,vlan=5,action=deny");
    const struct rule *rules[] = {&low, &same, &high};
    struct classifier *classifier = classify(rules, 3);
    struct flow_key key = {.ethertype = 0x0800, .vlan = 5}, looked_at = {0};

    cr_assert_eq(classifier_find(classifier, &key, &looked_at), 1);
    key.vlan = 6;
    cr_assert_eq(classifier_find(classifier, &key, &looked_at), 2);
    key.ethertype = 0x0806;
    cr_assert_eq(classifier_find(classifier, &key, &looked_at), 0);
    classifier_destroy(classifier);
}

Test(net_rules, what_was_not_looked_at_makes_no_difference)
{
    struct rule mac = parsed("10,src-mac=02:00:00:00:00:01,proto=tcp,dport=22,action=deny");
    const struct rule *rules[] = {&mac};
    struct classifier *classifier = classify(rules, 1);
    struct flow_key key = {.ethertype = 0x0800, .proto = 6, .dst_port = 22}, looked_at = {0};

    /* Another address: the port was not looked at. */
    key.src_mac[5] = 2;
    cr_assert_eq(classifier_find(classifier, &key, &looked_at), CLASSIFIER_NONE);
    cr_assert_eq(looked_at.dst_port, 0);
    key.src_mac[0] = 2;
    key.src_mac[5] = 1;
    cr_assert_eq(classifier_find(classifier, &key, &looked_at), 0);
    cr_assert_eq(looked_at.dst_port, 0xFFFF);
    classifier_destroy(classifier);
}

Test(net_rules, a_rule_for_a_port_that_is_not_there_matches_nothing)
{
    struct rule absent = parsed("10,in=nobody,action=deny");
    const struct rule *rules[] = {&absent};
    struct classifier *classifier = classify(rules, 1);
    struct flow_key key = {0}, looked_at = {0};

    cr_assert_eq(classifier_find(classifier, &key, &looked_at), CLASSIFIER_NONE);
    classifier_destroy(classifier);
}

Test(net_rules, any_range_of_ports_matches_what_is_in_it)
{
    static const uint16_t edges[] = {0, 1, 2, 79, 80, 81, 1023, 1024, 1025,
                                     32767, 32768, 65534, 65535};
    unsigned n = sizeof(edges) / sizeof(edges[0]);

    for (unsigned a = 0; a < n; a++) {
        for (unsigned b = a; b < n; b++) {
            struct rule rule = {
                .proto = {true, 6}, .dport = {true, edges[a], edges[b]},
            };
            const struct rule *rules[] = {&rule};
            struct classifier *classifier = classify(rules, 1);

            for (unsigned i = 0; i < n; i++) {
                struct flow_key key = {.ethertype = 0x86DD, .proto = 6, .dst_port = edges[i]};
                struct flow_key looked_at = {0};
                uint32_t wanted = i >= a && i <= b ? 0 : CLASSIFIER_NONE;

                cr_assert_eq(classifier_find(classifier, &key, &looked_at), wanted);
            }
            classifier_destroy(classifier);
        }
    }
}

Test(net_rules, too_many_entries_are_refused)
{
    static struct rule rule;
    static const struct rule *rules[1000];
    struct classifier *classifier;

    rule = parsed("proto=tcp,sport=1-65534,dport=1-65534,action=deny");
    for (unsigned i = 0; i < 1000; i++)
        rules[i] = &rule;
    cr_assert_eq(classifier_create(&classifier, rules, 1000, resolve, NULL), -E2BIG);
}

/* ---- against the model ---- */

static uint64_t random_state;

static unsigned pick(unsigned n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(random_state >> 33) % n;
}

/* Values come from few, so that rules and flows meet. */
static uint16_t pick_port(void)
{
    static const uint16_t ports[] = {0, 22, 80, 443, 1024, 8080, 65535};

    return ports[pick(7)];
}

static void pick_address(struct rule_address *address)
{
    unsigned family = pick(3);

    if (family == 0)
        return;
    address->family = family == 1 ? 4 : 6;
    address->prefix = (uint8_t)(pick(2) ? 8 * (1 + pick(4)) : pick(33));
    for (unsigned i = 0; i < address->prefix / 8u; i++)
        address->bytes[i] = (uint8_t)(i == 0 ? 10 : pick(2));
}

static struct rule pick_rule(void)
{
    static const uint32_t types[] = {0x0800, 0x86DD, 0x0806, 0x88CC};
    static const uint32_t protos[] = {6, 17, 1};
    struct rule rule = {.priority = pick(5), .fragment = pick(6) ? 0 : (int)pick(4)};

    if (pick(4) == 0)
        snprintf(rule.in, sizeof(rule.in), "p%u", pick(4));
    if (pick(4) == 0)
        rule.vlan = (struct rule_number){true, pick(3)};
    if (pick(3) == 0)
        rule.src_mac = (struct rule_mac){{2, 0, 0, 0, 0, (uint8_t)pick(3)},
                                         {255, 255, 255, 255, 255, 255}};
    if (pick(4) == 0)
        rule.dst_mac = (struct rule_mac){{(uint8_t)pick(2)}, {1}};
    if (pick(2))
        pick_address(&rule.src);
    if (!rule.src.family && pick(2))
        pick_address(&rule.dst);
    if (!rule.src.family && !rule.dst.family && pick(3) == 0)
        rule.type = (struct rule_number){true, types[pick(4)]};
    if (rule.type.given && rule.type.value != 0x0800 && rule.type.value != 0x86DD) {
        rule.fragment = RULE_ANY_FRAGMENT;
        return rule;
    }
    if (pick(2))
        rule.proto = (struct rule_number){true, protos[pick(3)]};
    if (rule.proto.value == 1 && pick(2))
        rule.icmp_type = (struct rule_number){true, pick(3)};
    if (rule.proto.value <= 1)
        return rule;
    if (pick(2)) {
        uint16_t a = pick_port(), b = pick_port();

        rule.dport = (struct rule_range){true, a < b ? a : b, a < b ? b : a};
    }
    if (pick(4) == 0)
        rule.sport = (struct rule_range){true, pick_port(), 65535};
    if (rule.proto.value == 6 && pick(4) == 0)
        rule.flags = (struct rule_flags){(uint8_t)(2 * pick(2)), 2};
    return rule;
}

/* Of few kinds: many rules look at the same bits. */
static struct rule pick_simple_rule(void)
{
    struct rule rule = {.priority = pick(100)};

    if (pick(2))
        rule.src_mac = (struct rule_mac){{2, 0, 0, 0, 0, (uint8_t)pick(3)},
                                         {255, 255, 255, 255, 255, 255}};
    else
        rule.vlan = (struct rule_number){true, pick(3)};
    return rule;
}

static struct flow_key pick_flow(void)
{
    static const uint16_t types[] = {0x0800, 0x0800, 0x86DD, 0x86DD, 0x0806, 0x88CC};
    static const uint8_t protos[] = {6, 6, 17, 1, 0};
    struct flow_key key = {
        .in_port = (uint16_t)pick(3),
        .vlan = (uint16_t)pick(3),
        .ethertype = types[pick(6)],
        .dst_mac = {(uint8_t)pick(2)},
        .src_mac = {2, 0, 0, 0, 0, (uint8_t)pick(3)},
    };
    unsigned length = key.ethertype == 0x86DD ? 16 : 4;

    if (key.ethertype == 0x88CC)
        return key;
    for (unsigned i = 0; i < length; i++) {
        key.src[i] = (uint8_t)(i == 0 ? 10 : pick(2));
        key.dst[i] = (uint8_t)(i == 0 ? 10 : pick(2));
    }
    if (key.ethertype == 0x0806)
        return key;
    key.proto = protos[pick(5)];
    key.fragment = (uint8_t)(pick(4) ? FLOW_WHOLE : pick(3));
    if (key.fragment == FLOW_LATER_FRAGMENT || key.proto == 0)
        return key;
    key.src_port = key.proto == 1 ? (uint16_t)pick(3) : pick_port();
    key.dst_port = key.proto == 1 ? 0 : pick_port();
    key.tcp_flags = key.proto == 6 ? (uint8_t)pick(32) : 0;
    return key;
}

#define RULES 40

Test(net_rules, classifier_and_caches_answer_as_the_model_does)
{
    static struct rule rules[RULES];
    const struct rule *list[RULES];
    struct flow_cache *cache;
    struct flow_cache_info info;

    random_state = 1;
    /* A small cache, so that entries are replaced. */
    cr_assert_eq(flow_cache_create(&cache, 64), 0);
    for (unsigned round = 0; round < 60; round++) {
        unsigned n = 1 + pick(RULES);
        struct classifier *classifier;

        for (unsigned i = 0; i < n; i++) {
            rules[i] = round % 4 ? pick_rule() : pick_simple_rule();
            list[i] = &rules[i];
        }
        classifier = classify(list, n);
        flow_cache_use(cache, classifier);
        for (unsigned k = 0; k < 2000; k++) {
            struct flow_key key = pick_flow(), looked_at = {0}, other;
            uint32_t wanted = model_find(list, n, &key, port_names[key.in_port]);

            cr_assert_eq(classifier_find(classifier, &key, &looked_at), wanted);
            cr_assert_eq(flow_cache_find(cache, &key), wanted);
            /* Any flow alike in what was looked at has the same answer. */
            other = pick_flow();
            for (unsigned w = 0; w < FLOW_WORDS; w++)
                other.words[w] = (other.words[w] & ~looked_at.words[w]) |
                                 (key.words[w] & looked_at.words[w]);
            if (other.in_port < 3 && other.fragment <= FLOW_LATER_FRAGMENT)
                cr_assert_eq(model_find(list, n, &other, port_names[other.in_port]), wanted);
        }
        flow_cache_use(cache, classifier); /* before it goes */
        classifier_destroy(classifier);
    }
    flow_cache_get_info(cache, &info);
    cr_assert_gt(info.exact_hits, 0);
    cr_assert_gt(info.megaflow_hits, 0);
    cr_assert_gt(info.replaced, 0);
    flow_cache_destroy(cache);
}

Test(net_rules, a_scan_stays_within_the_cache)
{
    struct rule deny = parsed("10,src=10.0.0.1,action=deny"), allow = parsed("1,action=allow");
    const struct rule *list[] = {&deny, &allow};
    struct classifier *classifier = classify(list, 2);
    struct flow_cache_info info;
    struct flow_cache *cache;

    cr_assert_eq(flow_cache_create(&cache, 1024), 0);
    flow_cache_use(cache, classifier);
    for (unsigned i = 0; i < 100000; i++) {
        struct flow_key key = {.ethertype = 0x0800};

        memcpy(key.src, &i, 4);
        cr_assert_eq(flow_cache_find(cache, &key), 1);
    }
    flow_cache_get_info(cache, &info);
    cr_assert_eq(info.flows_max, 1024);
    cr_assert_leq(info.flows, 1024);
    cr_assert_leq(info.masks, FLOW_CACHE_MASKS);
    flow_cache_destroy(cache);
    classifier_destroy(classifier);
}

Test(net_rules, flows_that_differ_in_what_no_rule_looks_at_share_a_megaflow)
{
    struct rule deny = parsed("10,type=ip,proto=tcp,dport=22,action=deny");
    const struct rule *list[] = {&deny};
    struct classifier *classifier = classify(list, 1);
    struct flow_cache_info info;
    struct flow_cache *cache;

    cr_assert_eq(flow_cache_create(&cache, 1024), 0);
    flow_cache_use(cache, classifier);
    for (unsigned i = 0; i < 1000; i++) {
        struct flow_key key = {.ethertype = 0x86DD, .proto = 6, .dst_port = (uint16_t)i};

        memcpy(key.src, &i, 4);
        cr_assert_eq(flow_cache_find(cache, &key), CLASSIFIER_NONE);
    }
    flow_cache_get_info(cache, &info);
    cr_assert_eq(info.misses, 1); /* the ethertype decided */
    cr_assert_eq(info.flows, 1);
    flow_cache_destroy(cache);
    classifier_destroy(classifier);
}

Test(net_rules, another_classifier_makes_all_that_was_remembered_void)
{
    struct rule deny = parsed("10,action=deny"), allow = parsed("20,action=allow");
    const struct rule *list[] = {&deny, &allow};
    struct classifier *one = classify(list, 1), *two = classify(list, 2);
    struct flow_key key = {.vlan = 7};
    struct flow_cache *cache;

    cr_assert_eq(flow_cache_create(&cache, 64), 0);
    flow_cache_use(cache, one);
    cr_assert_eq(flow_cache_find(cache, &key), 0);
    cr_assert_eq(flow_cache_find(cache, &key), 0);
    flow_cache_use(cache, two);
    cr_assert_eq(flow_cache_find(cache, &key), 1);
    flow_cache_destroy(cache);
    classifier_destroy(one);
    classifier_destroy(two);
}
