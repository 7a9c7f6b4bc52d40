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

static inline void flow_cache_prefetch(const struct flow_cache_front *front, uint64_t hash)
{
    const struct flow_cache_exact *set = flow_cache_set(front, hash);

    __builtin_prefetch(set);
    __builtin_prefetch(&set->tag);
}

static inline void flow_cache_probe(const struct flow_cache *cache, const struct flow_key *key,
                                    struct flow_cache_probe *probe)
{
    const struct flow_cache_front *front = (const struct flow_cache_front *)cache;

    flow_mask(&probe->masked, key, &front->bits);
    probe->hash = flow_hash(&probe->masked, &front->seed);
    flow_cache_prefetch(front, probe->hash);
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

/* A probe of a frame's first FLOW_RAW_BYTES and of where it came in. */
static inline void flow_cache_probe_raw(const struct flow_cache *cache,
                                        const struct flow_key *mask, const uint8_t *frame,
                                        uint16_t in_port, uint16_t vlan,
                                        struct flow_cache_probe *probe)
{
    const struct flow_cache_front *front = (const struct flow_cache_front *)cache;
    flow_pair bytes[FLOW_RAW_BYTES / 16];

    memcpy(bytes, frame, sizeof(bytes));
    probe->masked.pairs[0] = bytes[0] & mask->pairs[0];
    probe->masked.pairs[1] = bytes[1] & mask->pairs[1];
    probe->masked.pairs[2] = bytes[2] & mask->pairs[2];
    probe->masked.pairs[3] = (flow_pair){in_port | (uint64_t)vlan << 16, FLOW_RAW_MARK} &
                             mask->pairs[3];
    probe->hash = flow_hash(&probe->masked, &front->seed);
    flow_cache_prefetch(front, probe->hash);
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

/* ---- the same for frames of the common kind, alike in their first 16 bytes, port and VLAN ---- */

struct flow_cache_likeness {
    flow_pair first, last;  /* of the masked key: what they have in common */
    uint64_t hash;          /* what those make of the hash */
};

struct flow_cache_like {
    flow_pair middle[2];   /* of the masked key: what differs */
    uint64_t hash;
    uint32_t first, bytes; /* the user's: which frames it is about */
};
_Static_assert(sizeof(struct flow_cache_like) == 48, "of a batch, they fit into few cache lines");

/* What all that are like this frame, of at least 16 bytes, have in common. */
static inline void flow_cache_liken(const struct flow_cache *cache, const uint8_t *frame,
                                    uint16_t in_port, uint16_t vlan,
                                    struct flow_cache_likeness *common)
{
    const struct flow_cache_front *front = (const struct flow_cache_front *)cache;
    const uint64_t *seed = front->seed.words;

    /* The two masks differ in the TCP flags only, which are further back. */
    memcpy(&common->first, frame, 16);
    common->first &= front->raw_tcp.pairs[0];
    common->last = (flow_pair){in_port | (uint64_t)vlan << 16, FLOW_RAW_MARK} &
                   front->raw_tcp.pairs[3];
    common->hash = seed[FLOW_WORDS] +
                   flow_fold(common->first[0] ^ seed[0], common->first[1] ^ seed[1]) +
                   flow_fold(common->last[0] ^ seed[6], common->last[1] ^ seed[7]);
}

/* The masked key's middle for one of them, FLOW_RAW_BYTES at least; false: it is not of the common
 * kind. Frames with the same one are the same flow. */
static inline bool flow_cache_read_like(const struct flow_cache *cache, const uint8_t *frame,
                                        flow_pair middle[2])
{
    const struct flow_cache_front *front = (const struct flow_cache_front *)cache;
    const flow_pair *mask = front->raw_tcp.pairs;
    uint32_t kind; /* fragment, time to live, protocol */

    memcpy(&kind, frame + 20, 4);
    kind &= 0xFF00FF3F;
    if (kind == 17u << 24)
        mask = front->raw_udp.pairs;
    else if (kind != 6u << 24)
        return false;
    memcpy(middle, frame + 16, 2 * sizeof(*middle));
    middle[0] &= mask[1];
    middle[1] &= mask[2];
    return true;
}

static inline bool flow_cache_is_alike(const flow_pair a[2], const flow_pair b[2])
{
    return flow_is_zero((a[0] ^ b[0]) | (a[1] ^ b[1]));
}

/* The probe for such a middle. */
static inline void flow_cache_probe_like(const struct flow_cache *cache,
                                         const struct flow_cache_likeness *common,
                                         const flow_pair middle[2], struct flow_cache_like *like)
{
    const struct flow_cache_front *front = (const struct flow_cache_front *)cache;
    const uint64_t *seed = front->seed.words;
    uint64_t hash;

    like->middle[0] = middle[0];
    like->middle[1] = middle[1];
    hash = common->hash + flow_fold(middle[0][0] ^ seed[2], middle[0][1] ^ seed[3]) +
           flow_fold(middle[1][0] ^ seed[4], middle[1][1] ^ seed[5]);
    like->hash = flow_fold(hash, seed[FLOW_WORDS + 1]);
    flow_cache_prefetch(front, like->hash);
}

/* The exact match, or NULL. */
static inline const struct flow_cache_exact *flow_cache_match_like(
    const struct flow_cache *cache, const struct flow_cache_likeness *common,
    const struct flow_cache_like *like)
{
    const struct flow_cache_front *front = (const struct flow_cache_front *)cache;
    const struct flow_cache_exact *entry = flow_cache_set(front, like->hash);

    for (unsigned i = 0; i < FLOW_CACHE_WAYS; i++, entry++) {
        const flow_pair *pairs = entry->key.pairs;
        flow_pair difference;

        if (entry->tag != (uint32_t)(like->hash >> 32) || entry->generation != front->generation)
            continue;
        difference = (pairs[0] ^ common->first) | (pairs[1] ^ like->middle[0]) |
                     (pairs[2] ^ like->middle[1]) | (pairs[3] ^ common->last);
        if (flow_is_zero(difference))
            return entry;
    }
    return NULL;
}

/* The same as a probe of its own. */
static inline void flow_cache_probe_of(const struct flow_cache_likeness *common,
                                       const struct flow_cache_like *like,
                                       struct flow_cache_probe *probe)
{
    probe->masked.pairs[0] = common->first;
    probe->masked.pairs[1] = like->middle[0];
    probe->masked.pairs[2] = like->middle[1];
    probe->masked.pairs[3] = common->last;
    probe->hash = like->hash;
}

/* The answer for a probe without an exact match; key: what it was made of. */
uint32_t flow_cache_find_further(struct flow_cache *cache, const struct flow_key *key,
                                 const struct flow_cache_probe *probe);

/* Counts n that had an exact match. */
static inline void flow_cache_hits(struct flow_cache *cache, unsigned n)
{
    ((struct flow_cache_front *)cache)->exact_hits += n;
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
