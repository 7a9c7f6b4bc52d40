/*
 * The flow caches before a classifier: first exact matches (of all bits that any rule looks at),
 * then megaflows (of the bits that an answer was seen to depend on).
 *
 * Loop thread; no locks. Memory is bounded and taken at creation; it becomes resident as it fills.
 */
#ifndef FERRY_NET_FLOW_CACHE_H
#define FERRY_NET_FLOW_CACHE_H

#include "net/classifier.h"
#include "net/flow.h"

struct flow_cache;

#define FLOW_CACHE_EXACT 8192u         /* exact matches kept */
#define FLOW_CACHE_WAYS 2u
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

/* ---- the same in steps, for a batch: probes for all flows, then an answer for each ---- */

struct flow_cache_probe {
    struct flow_key masked;
    uint64_t hash;
};

/*
 * Most frames are TCP or UDP over IPv4 without tags, options and fragments. Their fields always
 * stand at the same places of the first 48 bytes, so that these bytes, masked, are as good a key as
 * one made by flow_read(). With the port and the VLAN behind them, and a mark that no made key has.
 */
#define FLOW_RAW_BYTES 48u
#define FLOW_RAW_MARK (1ull << 63)

struct flow_cache_exact {
    struct flow_key key;
    uint32_t tag, generation;
    uint32_t answer, unused;
};

/* What is asked for each frame; embedded at the head of struct flow_cache. */
struct flow_cache_front {
    struct flow_key bits;   /* of the exact cache: all that the classifier looks at */
    struct flow_key raw_tcp, raw_udp; /* the same bits of the first bytes of frames, see above */
    struct flow_seed seed;
    struct flow_cache_exact *exact;
    uint32_t generation;    /* of entries that count; never 0 */
    uint64_t exact_hits;
};

static inline struct flow_cache_exact *flow_cache_set(const struct flow_cache_front *front,
                                                      uint64_t hash)
{
    return &front->exact[(hash & (FLOW_CACHE_EXACT / FLOW_CACHE_WAYS - 1)) * FLOW_CACHE_WAYS];
}

static inline void flow_cache_prefetch(const struct flow_cache_front *front,
                                       const struct flow_cache_probe *probe)
{
    const struct flow_cache_exact *set = flow_cache_set(front, probe->hash);

    __builtin_prefetch(set);
    __builtin_prefetch(&set->tag);
}

static inline void flow_cache_probe(const struct flow_cache *cache, const struct flow_key *key,
                                    struct flow_cache_probe *probe)
{
    const struct flow_cache_front *front = (const struct flow_cache_front *)cache;

    flow_mask(&probe->masked, key, &front->bits);
    probe->hash = flow_hash(&probe->masked, &front->seed);
    flow_cache_prefetch(front, probe);
}

/* The mask for a frame that begins so, or NULL when it is not of the common kind. */
static inline const struct flow_key *flow_cache_raw_mask(const struct flow_cache *cache,
                                                         const uint8_t *frame, size_t length)
{
    const struct flow_cache_front *front = (const struct flow_cache_front *)cache;
    uint32_t type;
    uint16_t fragment;

    if (length < FLOW_RAW_BYTES)
        return NULL;
    memcpy(&type, frame + 12, 4);
    memcpy(&fragment, frame + 20, 2);
    /* IPv4 with 5 words of header; neither "more fragments" nor an offset. */
    if ((type & 0xFFFFFF) != 0x450008 || fragment & 0xFF3F)
        return NULL;
    return frame[23] == 6 ? &front->raw_tcp : frame[23] == 17 ? &front->raw_udp : NULL;
}

/*
 * A probe of a frame's first FLOW_RAW_BYTES and of where it came in. *link: what of the hash its first 16
 * bytes, the port and the VLAN make, known from another frame that has the same, or 0.
 */
static inline void flow_cache_probe_raw(const struct flow_cache *cache,
                                        const struct flow_key *mask, const uint8_t *frame,
                                        uint16_t in_port, uint16_t vlan,
                                        struct flow_cache_probe *probe, uint64_t *link)
{
    const struct flow_cache_front *front = (const struct flow_cache_front *)cache;
    const uint64_t *seed = front->seed.words, *words = probe->masked.words;
    flow_pair bytes[FLOW_RAW_BYTES / 16];
    uint64_t hash;

    memcpy(bytes, frame, sizeof(bytes));
    probe->masked.pairs[0] = bytes[0] & mask->pairs[0];
    probe->masked.pairs[1] = bytes[1] & mask->pairs[1];
    probe->masked.pairs[2] = bytes[2] & mask->pairs[2];
    probe->masked.pairs[3] = (flow_pair){in_port | (uint64_t)vlan << 16, FLOW_RAW_MARK} &
                             mask->pairs[3];
    if (!*link)
        *link = seed[FLOW_WORDS] + flow_fold(words[0] ^ seed[0], words[1] ^ seed[1]) +
                flow_fold(words[6] ^ seed[6], words[7] ^ seed[7]);
    hash = *link + flow_fold(words[2] ^ seed[2], words[3] ^ seed[3]) +
           flow_fold(words[4] ^ seed[4], words[5] ^ seed[5]);
    probe->hash = flow_fold(hash, seed[FLOW_WORDS + 1]);
    flow_cache_prefetch(front, probe);
}

/* The exact match, or NULL. */
static inline const struct flow_cache_exact *flow_cache_match(const struct flow_cache *cache,
                                                              const struct flow_cache_probe *probe)
{
    const struct flow_cache_front *front = (const struct flow_cache_front *)cache;
    const struct flow_cache_exact *entry = flow_cache_set(front, probe->hash);

    for (unsigned i = 0; i < FLOW_CACHE_WAYS; i++, entry++) {
        if (entry->tag == (uint32_t)(probe->hash >> 32) &&
            entry->generation == front->generation && flow_equal(&entry->key, &probe->masked))
            return entry;
    }
    return NULL;
}

/* The answer for a probe without an exact match; key: what it was made of. */
uint32_t flow_cache_find_further(struct flow_cache *cache, const struct flow_key *key,
                                 const struct flow_cache_probe *probe);

/* Counts one that had an exact match. */
static inline void flow_cache_hit(struct flow_cache *cache)
{
    ((struct flow_cache_front *)cache)->exact_hits++;
}

/* ---- looking in ---- */

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
