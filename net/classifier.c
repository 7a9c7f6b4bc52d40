/*
 * The classifier: tuple-space search (Srinivasan, Suri, Varghese, 1999), as Open vSwitch does it.
 *
 * Rules that look at the same bits make a tuple, which is a hash table; a search asks one table
 * after the other, those with the more important rules first, and ends when no better rule can
 * come. Within a tuple it goes in stages: when nothing matches the link layer's fields, or those
 * and the addresses, what is behind them is not looked at. That keeps down the bits that the answer
 * depends on, and with them the number of entries in the megaflow cache. Ranges of ports become
 * prefixes.
 *
 * Caches nothing (net/flow_cache.c does). Any thread may search; no locks, nothing changes.
 */
#include "net/classifier.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define TYPE_IPV4 0x0800
#define TYPE_IPV6 0x86DD

struct entry {
    struct flow_key key;
    uint32_t rank; /* place in the order of importance; 0 goes first */
    bool used;
};

/* Hashes of the first words of all keys of a tuple. */
struct stage {
    uint64_t *hashes; /* open addressing; 0: free. NULL: the stage is not asked */
    uint32_t mask;
};

struct tuple {
    struct flow_key mask;
    struct stage stages[FLOW_STAGES - 1];
    struct entry *entries; /* open addressing */
    uint32_t entries_mask;
    uint32_t count;        /* entries to be put in, then those that are */
    uint32_t best;         /* the lowest rank in it */
};

struct classifier {
    struct tuple *tuples;  /* in order of `best` */
    unsigned n_tuples;
    unsigned n_rules, n_entries;
    uint32_t *index_of;    /* rank to place in the list */
    struct flow_key bits;
    struct flow_seed seed;
};

/* ---- searching ---- */

static bool stage_has(const struct stage *stage, uint64_t hash)
{
    uint32_t slot = (uint32_t)hash & stage->mask;

    for (; stage->hashes[slot] != 0; slot = (slot + 1) & stage->mask) {
        if (stage->hashes[slot] == hash)
            return true;
    }
    return false;
}

/* A hash that is not 0. */
static uint64_t stage_hash(const struct classifier *classifier, const struct flow_key *masked,
                           unsigned stage)
{
    return flow_hash_words(masked, flow_stage_end[stage], &classifier->seed) | 1ull << 63;
}

static const struct entry *tuple_find(const struct classifier *classifier,
                                      const struct tuple *tuple, const struct flow_key *masked)
{
    uint32_t slot = (uint32_t)flow_hash(masked, &classifier->seed) & tuple->entries_mask;

    for (; tuple->entries[slot].used; slot = (slot + 1) & tuple->entries_mask) {
        if (flow_equal(&tuple->entries[slot].key, masked))
            return &tuple->entries[slot];
    }
    return NULL;
}

/* The rank of the entry that matches, or CLASSIFIER_NONE. */
static uint32_t ask_tuple(const struct classifier *classifier, const struct tuple *tuple,
                          const struct flow_key *key, struct flow_key *looked_at)
{
    const struct entry *entry;
    struct flow_key masked;

    flow_mask(&masked, key, &tuple->mask);
    for (unsigned s = 0; s < FLOW_STAGES - 1; s++) {
        const struct stage *stage = &tuple->stages[s];

        if (!stage->hashes || stage_has(stage, stage_hash(classifier, &masked, s)))
            continue;
        for (unsigned i = 0; i < flow_stage_end[s]; i++)
            looked_at->words[i] |= tuple->mask.words[i];
        return CLASSIFIER_NONE;
    }
    flow_add_mask(looked_at, &tuple->mask);
    entry = tuple_find(classifier, tuple, &masked);
    return entry ? entry->rank : CLASSIFIER_NONE;
}

uint32_t classifier_find(const struct classifier *classifier, const struct flow_key *key,
                         struct flow_key *looked_at)
{
    uint32_t best = CLASSIFIER_NONE;

    for (unsigned i = 0; i < classifier->n_tuples; i++) {
        uint32_t rank;

        if (classifier->tuples[i].best > best)
            break;
        rank = ask_tuple(classifier, &classifier->tuples[i], key, looked_at);
        if (rank < best)
            best = rank;
    }
    return best == CLASSIFIER_NONE ? CLASSIFIER_NONE : classifier->index_of[best];
}

const struct flow_key *classifier_bits(const struct classifier *classifier)
{
    return &classifier->bits;
}

bool classifier_looks_inside(const struct classifier *classifier)
{
    const struct flow_key *bits = &classifier->bits;
    uint64_t inside = bits->proto | bits->fragment;

    for (unsigned i = flow_stage_end[0]; i < FLOW_WORDS; i++)
        inside |= bits->words[i];
    return inside != 0;
}

void classifier_get_size(const struct classifier *classifier, struct classifier_size *size)
{
    *size = (struct classifier_size){
        .rules = classifier->n_rules,
        .entries = classifier->n_entries,
        .tuples = classifier->n_tuples,
    };
}

/* ---- from rules to pairs of key and mask ---- */

struct pattern {
    struct flow_key key, mask;
};

/* What is being built: all entries, each with the number of its tuple. */
struct builder {
    struct classifier *classifier;
    struct draft {
        struct flow_key key;
        uint32_t tuple, rank;
    } *drafts;
    uint32_t n_drafts, room;
    uint32_t *tuple_index; /* open addressing, by mask: number of the tuple + 1 */
    uint32_t tuple_index_mask;
    unsigned tuples_room;
};

struct prefix {
    uint16_t value, mask;
};
/* 2 * 16 - 2 prefixes are enough for any range of 16 bits. */
#define PREFIXES_MAX 30

/* Cuts a range into prefixes; returns how many. */
static unsigned split_range(const struct rule_range *range, struct prefix *out)
{
    uint32_t first = range->first, last = range->last;
    unsigned n = 0;

    if (!range->given) {
        out[0] = (struct prefix){0, 0};
        return 1;
    }
    while (first <= last) {
        uint32_t size = first ? first & -first : 0x10000;

        while (size > last - first + 1)
            size /= 2;
        out[n++] = (struct prefix){(uint16_t)first, (uint16_t) ~(size - 1)};
        first += size;
    }
    return n;
}

static void set_address(uint8_t *key, uint8_t *mask, const struct rule_address *address)
{
    memcpy(key, address->bytes, 16);
    for (unsigned bit = 0; bit < address->prefix; bit++)
        mask[bit / 8] |= (uint8_t)(0x80 >> bit % 8);
}

static bool needs_ports(const struct rule *rule)
{
    return rule->sport.given || rule->dport.given || rule->flags.mask || rule->icmp_type.given;
}

static void set_fragment(struct pattern *pattern, const struct rule *rule)
{
    if (rule->fragment != RULE_ANY_FRAGMENT) {
        pattern->key.fragment = (uint8_t)(rule->fragment - RULE_WHOLE + FLOW_WHOLE);
        pattern->mask.fragment = 0xFF;
    } else if (needs_ports(rule)) {
        /* Later fragments have none: zeros there mean nothing. */
        pattern->mask.fragment = FLOW_LATER_FRAGMENT;
    }
}

/* All but the type and the ports, which may take several patterns. */
static void set_pattern(struct pattern *pattern, const struct rule *rule, int in_port)
{
    struct flow_key *key = &pattern->key, *mask = &pattern->mask;

    memset(pattern, 0, sizeof(*pattern));
    if (rule->in[0]) {
        key->in_port = (uint16_t)in_port;
        mask->in_port = 0xFFFF;
    }
    if (rule->vlan.given) {
        key->vlan = (uint16_t)rule->vlan.value;
        mask->vlan = 0xFFFF;
    }
    if (rule->proto.given) {
        key->proto = (uint8_t)rule->proto.value;
        mask->proto = 0xFF;
    }
    if (rule->icmp_type.given) {
        key->src_port = (uint16_t)rule->icmp_type.value;
        mask->src_port = 0xFFFF;
    }
    memcpy(key->src_mac, rule->src_mac.value, 6);
    memcpy(mask->src_mac, rule->src_mac.mask, 6);
    memcpy(key->dst_mac, rule->dst_mac.value, 6);
    memcpy(mask->dst_mac, rule->dst_mac.mask, 6);
    set_address(key->src, mask->src, &rule->src);
    set_address(key->dst, mask->dst, &rule->dst);
    key->tcp_flags = rule->flags.value;
    mask->tcp_flags = rule->flags.mask;
    set_fragment(pattern, rule);
}

/* The ethertypes that a rule is for: none given and IP's fields used means IP of either kind. */
static unsigned find_types(const struct rule *rule, uint16_t types[2])
{
    uint8_t family = rule->src.family ? rule->src.family : rule->dst.family;

    types[0] = (uint16_t)rule->type.value;
    if (rule->type.given)
        return 1;
    types[0] = family == 6 ? TYPE_IPV6 : TYPE_IPV4;
    types[1] = TYPE_IPV6;
    if (family)
        return 1;
    return rule->proto.given || rule->fragment ? 2 : 0;
}

/* ---- building ---- */

static int more_tuples(struct builder *builder)
{
    struct classifier *classifier = builder->classifier;
    unsigned room = builder->tuples_room ? builder->tuples_room * 2 : 16;
    struct tuple *tuples = reallocarray(classifier->tuples, room, sizeof(*tuples));
    uint32_t *index;

    if (!tuples)
        return -ENOMEM;
    classifier->tuples = tuples;
    index = calloc(room * 2, sizeof(*index));
    if (!index)
        return -ENOMEM;
    free(builder->tuple_index);
    builder->tuple_index = index;
    builder->tuple_index_mask = room * 2 - 1;
    builder->tuples_room = room;
    for (unsigned i = 0; i < classifier->n_tuples; i++) {
        uint32_t slot = (uint32_t)flow_hash(&tuples[i].mask, &classifier->seed);

        while (index[slot & builder->tuple_index_mask])
            slot++;
        index[slot & builder->tuple_index_mask] = i + 1;
    }
    return 0;
}

/* The number of the tuple with that mask, which is made if need be; or -ENOMEM. */
static int64_t find_tuple(struct builder *builder, const struct flow_key *mask, uint32_t rank)
{
    struct classifier *classifier = builder->classifier;
    uint32_t slot, number;

    if (classifier->n_tuples == builder->tuples_room && more_tuples(builder) < 0)
        return -ENOMEM;
    slot = (uint32_t)flow_hash(mask, &classifier->seed);
    for (;; slot++) {
        number = builder->tuple_index[slot & builder->tuple_index_mask];
        if (!number)
            break;
        if (flow_equal(&classifier->tuples[number - 1].mask, mask))
            return number - 1;
    }
    number = classifier->n_tuples++;
    classifier->tuples[number] = (struct tuple){.mask = *mask, .best = rank};
    builder->tuple_index[slot & builder->tuple_index_mask] = number + 1;
    flow_add_mask(&classifier->bits, mask);
    return number;
}

static int add_draft(struct builder *builder, const struct pattern *pattern, uint32_t rank)
{
    int64_t tuple = find_tuple(builder, &pattern->mask, rank);
    struct draft *draft;

    if (tuple < 0)
        return (int)tuple;
    if (builder->n_drafts == CLASSIFIER_ENTRIES_MAX)
        return -E2BIG;
    if (builder->n_drafts == builder->room) {
        uint32_t room = builder->room ? builder->room * 2 : 64;
        struct draft *drafts = reallocarray(builder->drafts, room, sizeof(*drafts));

        if (!drafts)
            return -ENOMEM;
        builder->drafts = drafts;
        builder->room = room;
    }
    draft = &builder->drafts[builder->n_drafts++];
    flow_mask(&draft->key, &pattern->key, &pattern->mask);
    draft->tuple = (uint32_t)tuple;
    draft->rank = rank;
    builder->classifier->tuples[tuple].count++;
    return 0;
}

/* All pairs of prefixes of the two ports. */
static int add_ports(struct builder *builder, struct pattern *pattern, const struct rule *rule,
                     uint32_t rank)
{
    struct prefix src[PREFIXES_MAX], dst[PREFIXES_MAX];
    unsigned n_src = split_range(&rule->sport, src), n_dst = split_range(&rule->dport, dst);
    int error = 0;

    if (!rule->sport.given && !rule->dport.given)
        return add_draft(builder, pattern, rank);
    for (unsigned i = 0; i < n_src * n_dst && error == 0; i++) {
        pattern->key.src_port = src[i / n_dst].value;
        pattern->mask.src_port = src[i / n_dst].mask;
        pattern->key.dst_port = dst[i % n_dst].value;
        pattern->mask.dst_port = dst[i % n_dst].mask;
        error = add_draft(builder, pattern, rank);
    }
    return error;
}

static int add_rule(struct builder *builder, const struct rule *rule, int in_port, uint32_t rank)
{
    struct pattern pattern;
    uint16_t types[2];
    unsigned n = find_types(rule, types);
    int error = 0;

    if ((rule->in[0] && in_port < 0) || (rule->fragment == RULE_LATER && needs_ports(rule)))
        return 0; /* it matches nothing */
    set_pattern(&pattern, rule, in_port);
    if (n == 0)
        return add_ports(builder, &pattern, rule, rank);
    pattern.mask.ethertype = 0xFFFF;
    for (unsigned i = 0; i < n && error == 0; i++) {
        pattern.key.ethertype = types[i];
        error = add_ports(builder, &pattern, rule, rank);
    }
    return error;
}

static uint32_t slots_for(uint32_t count)
{
    uint32_t slots = 4;

    while (slots < count * 2)
        slots *= 2;
    return slots;
}

/* A stage is asked when the tuple has bits on both sides of its end. */
static int make_stage(struct tuple *tuple, unsigned stage)
{
    uint64_t before = 0, behind = 0;

    for (unsigned i = 0; i < FLOW_WORDS; i++) {
        if (i < flow_stage_end[stage])
            before |= tuple->mask.words[i];
        else
            behind |= tuple->mask.words[i];
    }
    if (!before || !behind)
        return 0;
    tuple->stages[stage].mask = slots_for(tuple->count) - 1;
    tuple->stages[stage].hashes = calloc(slots_for(tuple->count), sizeof(uint64_t));
    return tuple->stages[stage].hashes ? 0 : -ENOMEM;
}

static int make_tables(struct classifier *classifier)
{
    for (unsigned i = 0; i < classifier->n_tuples; i++) {
        struct tuple *tuple = &classifier->tuples[i];
        uint32_t slots = slots_for(tuple->count);

        tuple->entries_mask = slots - 1;
        tuple->entries = calloc(slots, sizeof(*tuple->entries));
        if (!tuple->entries)
            return -ENOMEM;
        for (unsigned s = 0; s < FLOW_STAGES - 1; s++) {
            if (make_stage(tuple, s) < 0)
                return -ENOMEM;
        }
        tuple->count = 0;
    }
    return 0;
}

static void stage_add(struct stage *stage, uint64_t hash)
{
    uint32_t slot = (uint32_t)hash & stage->mask;

    while (stage->hashes[slot] != 0 && stage->hashes[slot] != hash)
        slot = (slot + 1) & stage->mask;
    stage->hashes[slot] = hash;
}

/* Drafts come in order of rank: of two with the same key the first is the one that counts. */
static void put_in(struct classifier *classifier, const struct draft *draft)
{
    struct tuple *tuple = &classifier->tuples[draft->tuple];
    uint32_t slot = (uint32_t)flow_hash(&draft->key, &classifier->seed);

    for (; tuple->entries[slot & tuple->entries_mask].used; slot++) {
        if (flow_equal(&tuple->entries[slot & tuple->entries_mask].key, &draft->key))
            return;
    }
    tuple->entries[slot & tuple->entries_mask] =
        (struct entry){.key = draft->key, .rank = draft->rank, .used = true};
    tuple->count++;
    classifier->n_entries++;
    for (unsigned s = 0; s < FLOW_STAGES - 1; s++) {
        if (tuple->stages[s].hashes)
            stage_add(&tuple->stages[s], stage_hash(classifier, &draft->key, s));
    }
}

struct ranked {
    unsigned priority, index;
};

static int by_importance(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;

    if (x->priority != y->priority)
        return x->priority > y->priority ? -1 : 1;
    return x->index < y->index ? -1 : 1;
}

static int rank_rules(struct classifier *classifier, const struct rule *const *rules, unsigned n)
{
    struct ranked *ranked = calloc(n ? n : 1, sizeof(*ranked));

    classifier->index_of = calloc(n ? n : 1, sizeof(*classifier->index_of));
    if (!ranked || !classifier->index_of) {
        free(ranked);
        return -ENOMEM;
    }
    for (unsigned i = 0; i < n; i++)
        ranked[i] = (struct ranked){rules[i]->priority, i};
    qsort(ranked, n, sizeof(*ranked), by_importance);
    for (unsigned i = 0; i < n; i++)
        classifier->index_of[i] = ranked[i].index;
    free(ranked);
    return 0;
}

static int build(struct builder *builder, const struct rule *const *rules, unsigned n,
                 classifier_resolve resolve, const void *arg)
{
    struct classifier *classifier = builder->classifier;
    int error = rank_rules(classifier, rules, n);

    /* Tuples come into being in order of their first rule, which is that of their best. */
    for (uint32_t rank = 0; rank < n && error == 0; rank++) {
        const struct rule *rule = rules[classifier->index_of[rank]];

        error = add_rule(builder, rule, rule->in[0] ? resolve(arg, rule->in) : -1, rank);
    }
    if (error == 0)
        error = make_tables(classifier);
    if (error < 0)
        return error;
    for (uint32_t i = 0; i < builder->n_drafts; i++)
        put_in(classifier, &builder->drafts[i]);
    return 0;
}

int classifier_create(struct classifier **out, const struct rule *const *rules, unsigned n,
                      classifier_resolve resolve, const void *arg)
{
    struct builder builder = {0};
    int error;

    if (n > CLASSIFIER_RULES_MAX)
        return -E2BIG;
    builder.classifier = calloc(1, sizeof(*builder.classifier));
    if (!builder.classifier)
        return -ENOMEM;
    builder.classifier->n_rules = n;
    flow_seed_init(&builder.classifier->seed);
    error = build(&builder, rules, n, resolve, arg);
    free(builder.drafts);
    free(builder.tuple_index);
    if (error < 0)
        classifier_destroy(builder.classifier);
    else
        *out = builder.classifier;
    return error;
}

void classifier_destroy(struct classifier *classifier)
{
    if (!classifier)
        return;
    for (unsigned i = 0; i < classifier->n_tuples; i++) {
        free(classifier->tuples[i].entries);
        for (unsigned s = 0; s < FLOW_STAGES - 1; s++)
            free(classifier->tuples[i].stages[s].hashes);
    }
    free(classifier->tuples);
    free(classifier->index_of);
    free(classifier);
}
