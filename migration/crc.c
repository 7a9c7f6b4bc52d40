/*
 * CRC-32 as zlib computes it, by carry-less multiplication where the processor has that, and of two
 * lanes at a time where it has that, too (VPCLMULQDQ).
 *
 * Memory on its way to another host is read once for this, so it must not be what takes the time:
 * zlib's table method is slower than a fast link. No state but what the processor can do; any thread.
 * Text: V. Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction",
 * Intel 2009, the section on bit-reflected data; the folding constants are x^n mod P of its method.
 */
#include <limits.h>
#include <string.h>
#include <zlib.h>

#include "migration/stream.h"

static uint32_t crc_by_table(uint32_t crc, const uint8_t *at, uint64_t length)
{
    while (length > 0) {
        uInt n = length > INT_MAX ? INT_MAX : (uInt)length;

        crc = (uint32_t)crc32(crc, at, n);
        at += n;
        length -= n;
    }
    return crc;
}

#if defined(__x86_64__)
#include <immintrin.h>

#define LANE sizeof(__m128i)
#define STRIDE (4 * LANE)
#define WIDE_STRIDE (8 * LANE)

__attribute__((target("pclmul,sse4.1"))) static inline __m128i fold(__m128i lane, __m128i by,
                                                                    __m128i next)
{
    __m128i low = _mm_clmulepi64_si128(lane, by, 0x00);
    __m128i high = _mm_clmulepi64_si128(lane, by, 0x11);

    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

static inline __m128i load(const uint8_t *at)
{
    return _mm_loadu_si128((const __m128i *)at);
}

/* All lanes into one, whose 16 bytes have the same remainder as all that was folded into them: the
 * table does those. */
__attribute__((target("pclmul,sse4.1"))) static uint32_t crc_of_lanes(const __m128i *lanes,
                                                                      unsigned n)
{
    const __m128i by_lane = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);
    __m128i last = lanes[0];
    uint8_t rest[LANE];

    for (unsigned i = 1; i < n; i++)
        last = fold(last, by_lane, lanes[i]);
    _mm_storeu_si128((__m128i *)rest, last);
    /* ~0 is the register at zero, which zlib inverts on the way in. */
    return crc_by_table(~0u, rest, sizeof(rest));
}

/* length is a multiple of STRIDE, and at least that. */
__attribute__((target("pclmul,sse4.1"))) static uint32_t crc_by_folding(uint32_t crc,
                                                                        const uint8_t *at,
                                                                        uint64_t length)
{
    const __m128i by_stride = _mm_set_epi64x(0x1c6e41596, 0x154442bd4);
    __m128i lanes[4];

    for (unsigned i = 0; i < 4; i++)
        lanes[i] = load(at + i * LANE);
    lanes[0] = _mm_xor_si128(lanes[0], _mm_cvtsi32_si128((int)~crc));
    for (at += STRIDE, length -= STRIDE; length > 0; at += STRIDE, length -= STRIDE)
        for (unsigned i = 0; i < 4; i++)
            lanes[i] = fold(lanes[i], by_stride, load(at + i * LANE));
    return crc_of_lanes(lanes, 4);
}

/* The same, two lanes at a time. length is a multiple of WIDE_STRIDE, and at least that. */
__attribute__((target("vpclmulqdq,pclmul,avx2"))) static uint32_t crc_by_wide_folding(
    uint32_t crc, const uint8_t *at, uint64_t length)
{
    const __m256i by_stride = _mm256_set_epi64x(0x14a7fe880, 0x1e88ef372, 0x14a7fe880, 0x1e88ef372);
    __m256i pairs[4];
    __m128i lanes[8];

    for (unsigned i = 0; i < 4; i++)
        pairs[i] = _mm256_loadu_si256((const __m256i *)(at + i * 2 * LANE));
    pairs[0] = _mm256_xor_si256(pairs[0], _mm256_zextsi128_si256(_mm_cvtsi32_si128((int)~crc)));
    for (at += WIDE_STRIDE, length -= WIDE_STRIDE; length > 0;
         at += WIDE_STRIDE, length -= WIDE_STRIDE)
        for (unsigned i = 0; i < 4; i++) {
            __m256i low = _mm256_clmulepi64_epi128(pairs[i], by_stride, 0x00);
            __m256i high = _mm256_clmulepi64_epi128(pairs[i], by_stride, 0x11);
            __m256i next = _mm256_loadu_si256((const __m256i *)(at + i * 2 * LANE));

            pairs[i] = _mm256_xor_si256(_mm256_xor_si256(low, high), next);
        }
    for (unsigned i = 0; i < 4; i++) {
        lanes[2 * i] = _mm256_castsi256_si128(pairs[i]);
        lanes[2 * i + 1] = _mm256_extracti128_si256(pairs[i], 1);
    }
    return crc_of_lanes(lanes, 8);
}

/* What one way can do of it; how many bytes that was. */
static uint64_t crc_by_way(enum stream_crc_way way, uint32_t *crc, const uint8_t *at,
                           uint64_t length)
{
    const uint64_t stride = way == STREAM_CRC_WIDE ? WIDE_STRIDE : STRIDE;
    const uint64_t whole = length - length % stride;

    if (whole == 0)
        return 0;
    if (way == STREAM_CRC_WIDE && __builtin_cpu_supports("vpclmulqdq") &&
        __builtin_cpu_supports("avx2"))
        *crc = crc_by_wide_folding(*crc, at, whole);
    else if (way == STREAM_CRC_FOLDING && __builtin_cpu_supports("pclmul") &&
             __builtin_cpu_supports("sse4.1"))
        *crc = crc_by_folding(*crc, at, whole);
    else
        return 0;
    return whole;
}
#else
static uint64_t crc_by_way(enum stream_crc_way way, uint32_t *crc, const uint8_t *at,
                           uint64_t length)
{
    (void)way;
    (void)crc;
    (void)at;
    (void)length;
    return 0;
}
#endif

uint32_t stream_crc_from(enum stream_crc_way way, uint32_t crc, const void *data, uint64_t length)
{
    const uint8_t *at = data;

    for (; way < STREAM_CRC_TABLE; way++) {
        uint64_t done = crc_by_way(way, &crc, at, length);

        at += done;
        length -= done;
    }
    return crc_by_table(crc, at, length);
}

uint32_t stream_crc(uint32_t crc, const void *data, uint64_t length)
{
    return stream_crc_from(STREAM_CRC_WIDE, crc, data, length);
}
