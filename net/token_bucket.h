/*
 * A token bucket: so many bits a second on average, and so many bytes at once beyond that.
 *
 * A frame passes while there is anything in the bucket, and may leave it in debt: so one that is
 * longer than the bucket passes, too, and the average holds. Loop thread; no locks.
 */
#ifndef FERRY_NET_TOKEN_BUCKET_H
#define FERRY_NET_TOKEN_BUCKET_H

#include <stdbool.h>
#include <stdint.h>

struct token_bucket {
    uint64_t rate;   /* bytes a second; 0: no limit */
    int64_t size;    /* in 10^-9 bytes, as is `level` */
    int64_t level;
    uint64_t filled_ns;
};

/* Starts full. burst: bytes, at most 2^30; 0: a tenth of a second's, 64 KiB at least. */
static inline void token_bucket_init(struct token_bucket *bucket, uint64_t bits_per_s,
                                     uint64_t burst, uint64_t now_ns)
{
    uint64_t rate = bits_per_s / 8;

    if (bits_per_s && !rate)
        rate = 1;
    if (!burst)
        burst = rate / 10 > 65536 ? rate / 10 : 65536;
    if (burst > 1u << 30)
        burst = 1u << 30;
    *bucket = (struct token_bucket){
        .rate = rate,
        .size = (int64_t)(burst * 1000000000u),
        .level = (int64_t)(burst * 1000000000u),
        .filled_ns = now_ns,
    };
}

static inline void token_bucket_fill(struct token_bucket *bucket, uint64_t now_ns)
{
    uint64_t elapsed = now_ns - bucket->filled_ns;
    uint64_t room = (uint64_t)(bucket->size - bucket->level);

    bucket->filled_ns = now_ns;
    if (elapsed > room / bucket->rate)
        bucket->level = bucket->size;
    else
        bucket->level += (int64_t)(elapsed * bucket->rate);
}

/* Whether a frame of that length passes. To be filled before, once for a batch. */
static inline bool token_bucket_take(struct token_bucket *bucket, uint64_t length)
{
    if (bucket->level <= 0)
        return false;
    bucket->level -= (int64_t)(length * 1000000000u);
    return true;
}

#endif
