/*
 * The flow caches: a search that ended is remembered twice. The exact cache holds the flows of the
 * moment, found by one hash and one comparison. The megaflow cache holds one entry for all flows
 * that look alike in the bits that the classifier looked at; as entries differ in which bits those
 * are, it is asked once for each such mask, the one with the most hits first.
 *
 * Both are of fixed size and replace what has not been hit lately within the same few slots, so a
 * port scan costs neither memory nor a growing search. When it has many masks, further flows are
 * kept by all bits that any rule looks at, which is always right. Entries are of a generation;
 * another classifier makes another generation, and all older entries void without touching them.
 *
 * Holds answers, not frames' ways: addresses are looked up for each frame (net/switch_path.c).
 * Loop thread; no locks.
 */
#include "net/flow_cache.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BUCKET 4u
/* Lookups beyond the exact cache between two looks at the order of masks. */
#define SORT_EVERY 1024u

/* What of a bucket is read before an entry is. */
struct bucket {
    uint32_t tag[BUCKET];
    uint32_t generation[BUCKET];
};

struct megaflow {
    struct flow_key key;
    uint32_t answer;
    uint16_t mask;
    uint8_t hit; /* since it was last passed over */
    uint8_t unused;
};

struct mask {
    struct flow_key bits;
    uint64_t hits;
};

struct flow_cache {
    struct flow_cache_front front; /* first, see flow_cache_probe() */
    const struct classifier *classifier;
    struct bucket *buckets;
    struct megaflow *flows; /* BUCKET of them for each bucket */
    uint32_t bucket_mask;
    unsigned n_masks;
    uint8_t order[FLOW_CACHE_MASKS]; /* of masks, most hits first */
    struct mask masks[FLOW_CACHE_MASKS];
    unsigned until_sort;
    struct flow_cache_info info;
};

/* ---- megaflows ---- */

static uint64_t megaflow_hash(const struct flow_cache *cache, const struct flow_key *masked,
                              unsigned mask)
{
    return flow_fold(flow_hash(masked, &cache->front.seed) + mask, cache->front.seed.words[0] | 1);
}

static struct megaflow *megaflow_find(const struct flow_cache *cache,
                                      const struct flow_key *masked, unsigned mask)
{
    uint64_t hash = megaflow_hash(cache, masked, mask);
    uint32_t tag = (uint32_t)(hash >> 32), number = (uint32_t)hash & cache->bucket_mask;
    const struct bucket *bucket = &cache->buckets[number];

    for (unsigned i = 0; i < BUCKET; i++) {
        struct megaflow *flow = &cache->flows[(size_t)number * BUCKET + i];

        if (bucket->tag[i] == tag && bucket->generation[i] == cache->front.generation &&
            flow->mask == mask && flow_equal(&flow->key, masked))
            return flow;
    }
    return NULL;
}

/* The place for a new one: a free one, else one that was not hit, else any, by turns. */
static unsigned choose_place(struct flow_cache *cache, uint32_t number, uint64_t hash)
{
    const struct bucket *bucket = &cache->buckets[number];
    struct megaflow *flows = &cache->flows[(size_t)number * BUCKET];
    unsigned first = hash >> 62 & (BUCKET - 1);

    for (unsigned i = 0; i < BUCKET; i++) {
        if (bucket->generation[i] != cache->front.generation) {
            cache->info.flows++;
            return i;
        }
    }
    cache->info.replaced++;
    for (unsigned i = 0; i < BUCKET; i++) {
        unsigned place = (first + i) % BUCKET;

        if (!flows[place].hit)
            return place;
        flows[place].hit = 0;
    }
    return first;
}

static void megaflow_add(struct flow_cache *cache, const struct flow_key *key, unsigned mask,
                         uint32_t answer)
{
    struct flow_key masked;
    uint64_t hash;
    uint32_t number;
    unsigned place;

    flow_mask(&masked, key, &cache->masks[mask].bits);
    hash = megaflow_hash(cache, &masked, mask);
    number = (uint32_t)hash & cache->bucket_mask;
    place = choose_place(cache, number, hash);
    cache->buckets[number].tag[place] = (uint32_t)(hash >> 32);
    cache->buckets[number].generation[place] = cache->front.generation;
    cache->flows[(size_t)number * BUCKET + place] =
        (struct megaflow){.key = masked, .answer = answer, .mask = (uint16_t)mask};
}

/* The number of the mask with those bits. When there are too many it is the first, which has
 * all. */
static unsigned find_mask(struct flow_cache *cache, const struct flow_key *bits)
{
    for (unsigned i = 0; i < cache->n_masks; i++) {
        if (flow_equal(&cache->masks[i].bits, bits))
            return i;
    }
    if (cache->n_masks == FLOW_CACHE_MASKS)
        return 0;
    cache->masks[cache->n_masks] = (struct mask){.bits = *bits};
    cache->order[cache->n_masks] = (uint8_t)cache->n_masks;
    return cache->n_masks++;
}

/* One pass of bubbling: what is hit more comes to the front, in time. */
static void sort_masks(struct flow_cache *cache)
{
    cache->until_sort = SORT_EVERY;
    for (unsigned i = 0; i < cache->n_masks; i++)
        cache->masks[i].hits /= 2;
    for (unsigned i = 1; i < cache->n_masks; i++) {
        uint8_t before = cache->order[i - 1], here = cache->order[i];

        if (cache->masks[here].hits > cache->masks[before].hits) {
            cache->order[i - 1] = here;
            cache->order[i] = before;
        }
    }
}

static struct megaflow *find_in_masks(const struct flow_cache *cache, const struct flow_key *key,
                                      unsigned *mask)
{
    for (unsigned i = 0; i < cache->n_masks; i++) {
        struct megaflow *flow;
        struct flow_key masked;

        *mask = cache->order[i];
        flow_mask(&masked, key, &cache->masks[*mask].bits);
        flow = megaflow_find(cache, &masked, *mask);
        if (flow)
            return flow;
    }
    return NULL;
}

/* ---- all together ---- */

/* The newest stands first; the older of two goes. */
static void exact_add(struct flow_cache *cache, const struct flow_cache_probe *probe,
                      uint32_t answer)
{
    struct flow_cache_exact *set = flow_cache_set(&cache->front, probe->hash);

    set[1] = set[0];
    set[0] = (struct flow_cache_exact){
        .key = probe->masked,
        .tag = (uint32_t)(probe->hash >> 32),
        .generation = cache->front.generation,
        .answer = answer,
    };
}

static uint32_t find_or_classify(struct flow_cache *cache, const struct flow_key *key)
{
    struct flow_key looked_at = {0};
    struct megaflow *flow;
    unsigned mask;
    uint32_t answer;

    if (--cache->until_sort == 0)
        sort_masks(cache);
    flow = find_in_masks(cache, key, &mask);
    if (flow) {
        flow->hit = 1;
        cache->masks[mask].hits++;
        cache->info.megaflow_hits++;
        return flow->answer;
    }
    cache->info.misses++;
    answer = classifier_find(cache->classifier, key, &looked_at);
    megaflow_add(cache, key, find_mask(cache, &looked_at), answer);
    return answer;
}

uint32_t flow_cache_find_further(struct flow_cache *cache, const struct flow_key *key,
                                 const struct flow_cache_probe *probe)
{
    uint32_t answer = find_or_classify(cache, key);

    exact_add(cache, probe, answer);
    return answer;
}

uint32_t flow_cache_find(struct flow_cache *cache, const struct flow_key *key)
{
    const struct flow_cache_exact *entry;
    struct flow_cache_probe probe;

    flow_cache_probe(cache, key, &probe);
    entry = flow_cache_match(cache, &probe);
    if (!entry)
        return flow_cache_find_further(cache, key, &probe);
    flow_cache_hits(cache, 1);
    return entry->answer;
}

uint32_t flow_cache_peek(const struct flow_cache *cache, const struct flow_key *key,
                         enum flow_cache_level *level)
{
    struct flow_key looked_at = {0};
    const struct flow_cache_exact *entry;
    struct flow_cache_probe probe;
    const struct megaflow *flow;
    unsigned mask;

    flow_cache_probe(cache, key, &probe);
    entry = flow_cache_match(cache, &probe);
    if (entry) {
        *level = FLOW_CACHE_EXACT_HIT;
        return entry->answer;
    }
    flow = find_in_masks(cache, key, &mask);
    if (flow) {
        *level = FLOW_CACHE_MEGAFLOW_HIT;
        return flow->answer;
    }
    *level = FLOW_CACHE_MISS;
    return classifier_find(cache->classifier, key, &looked_at);
}

/* Where the fields of the common kind stand in a frame. What makes it that kind is always looked
 * at. */
static void make_raw_mask(struct flow_key *raw, const struct flow_key *bits, bool tcp)
{
    uint8_t *at = (uint8_t *)raw->words;

    memset(raw, 0, sizeof(*raw));
    memcpy(at, bits->dst_mac, 6);
    memcpy(at + 6, bits->src_mac, 6);
    memset(at + 12, 0xFF, 3); /* ethertype, version and length */
    at[20] = 0x3F;            /* fragments */
    at[21] = 0xFF;
    at[23] = 0xFF;            /* protocol */
    memcpy(at + 26, bits->src, 4);
    memcpy(at + 30, bits->dst, 4);
    at[34] = (uint8_t)(bits->src_port >> 8);
    at[35] = (uint8_t)bits->src_port;
    at[36] = (uint8_t)(bits->dst_port >> 8);
    at[37] = (uint8_t)bits->dst_port;
    at[47] = tcp ? bits->tcp_flags : 0;
    raw->words[6] = bits->in_port | (uint64_t)bits->vlan << 16;
    raw->words[7] = FLOW_RAW_MARK;
}

void flow_cache_use(struct flow_cache *cache, const struct classifier *classifier)
{
    cache->classifier = classifier;
    cache->front.bits = *classifier_bits(classifier);
    make_raw_mask(&cache->front.raw_tcp, &cache->front.bits, true);
    make_raw_mask(&cache->front.raw_udp, &cache->front.bits, false);
    cache->info.flows = 0;
    cache->until_sort = SORT_EVERY;
    cache->masks[0] = (struct mask){.bits = cache->front.bits};
    cache->order[0] = 0;
    cache->n_masks = 1;
    if (++cache->front.generation != 0)
        return;
    /* Once in 2^32 changes: what is older than that must not come to life again. */
    memset(cache->front.exact, 0, FLOW_CACHE_EXACT * sizeof(*cache->front.exact));
    memset(cache->buckets, 0, (cache->bucket_mask + (size_t)1) * sizeof(*cache->buckets));
    cache->front.generation = 1;
}

void flow_cache_get_info(const struct flow_cache *cache, struct flow_cache_info *info)
{
    *info = cache->info;
    info->exact_hits = cache->front.exact_hits;
    info->masks = cache->n_masks;
    info->flows_max = (cache->bucket_mask + 1) * BUCKET;
}

int flow_cache_create(struct flow_cache **out, unsigned flows)
{
    struct flow_cache *cache = calloc(1, sizeof(*cache));
    uint32_t buckets = 16;

    if (!cache)
        return -ENOMEM;
    while (buckets * BUCKET < flows && buckets * BUCKET < FLOW_CACHE_FLOWS_MAX)
        buckets *= 2;
    cache->bucket_mask = buckets - 1;
    cache->front.exact = calloc(FLOW_CACHE_EXACT, sizeof(*cache->front.exact));
    cache->buckets = calloc(buckets, sizeof(*cache->buckets));
    cache->flows = calloc((size_t)buckets * BUCKET, sizeof(*cache->flows));
    if (!cache->front.exact || !cache->buckets || !cache->flows) {
        flow_cache_destroy(cache);
        return -ENOMEM;
    }
    flow_seed_init(&cache->front.seed);
    *out = cache;
    return 0;
}

void flow_cache_destroy(struct flow_cache *cache)
{
    if (!cache)
        return;
    free(cache->front.exact);
    free(cache->buckets);
    free(cache->flows);
    free(cache);
}
