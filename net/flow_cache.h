/*
 * The flow caches before a classifier: first exact matches (of all bits that any rule looks at), then
 * megaflows (of the bits that an answer was seen to depend on).
 *
 * Loop thread; no locks. Memory is bounded and taken at creation; it becomes resident as it fills.
 */
#ifndef FERRY_NET_FLOW_CACHE_H
#define FERRY_NET_FLOW_CACHE_H

#include "net/classifier.h"
#include "net/flow.h"

struct flow_cache;

#define FLOW_CACHE_EXACT 8192u         /* exact matches kept */
#define FLOW_CACHE_MASKS 32u           /* different sets of bits */
#define FLOW_CACHE_FLOWS_MAX (1u << 21)

/* flows: megaflows kept, rounded up to a power of two; 64..FLOW_CACHE_FLOWS_MAX. 0 or -ENOMEM. */
int flow_cache_create(struct flow_cache **out, unsigned flows);
void flow_cache_destroy(struct flow_cache *cache);

/* From now on answers are those of that classifier, which is borrowed until the next call; all that
 * is in the cache becomes void, at once. */
void flow_cache_use(struct flow_cache *cache, const struct classifier *classifier);

/* classifier_find(), remembered. */
uint32_t flow_cache_find(struct flow_cache *cache, const struct flow_key *key);

/* The same without remembering or counting anything; says where the answer came from. */
enum flow_cache_level { FLOW_CACHE_EXACT_HIT, FLOW_CACHE_MEGAFLOW_HIT, FLOW_CACHE_MISS };
uint32_t flow_cache_peek(const struct flow_cache *cache, const struct flow_key *key,
                         enum flow_cache_level *level);

struct flow_cache_info {
    uint64_t exact_hits, megaflow_hits, misses, replaced;
    unsigned flows, flows_max, masks;
};
void flow_cache_get_info(const struct flow_cache *cache, struct flow_cache_info *info);

#endif
