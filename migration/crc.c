/*
 * CRC-32 as zlib computes it, by carry-less multiplication where the processor has that.
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

/* length is a multiple of STRIDE, and at least that. What is left after the folding is 16 bytes with
 * the same remainder as all that was folded into them: the table does those. */
__attribute__((target("pclmul,sse4.1"))) static uint32_t crc_by_folding(uint32_t crc,
                                                                        const uint8_t *at,
                                                                        uint64_t length)
{
    const __m128i by_stride = _mm_set_epi64x(0x1c6e41596, 0x154442bd4);
    const __m128i by_lane = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);
    __m128i lanes[4];
    uint8_t rest[LANE];

    for (unsigned i = 0; i < 4; i++)
        lanes[i] = load(at + i * LANE);
    lanes[0] = _mm_xor_si128(lanes[0], _mm_cvtsi32_si128((int)~crc));
    for (at += STRIDE, length -= STRIDE; length > 0; at += STRIDE, length -= STRIDE)
        for (unsigned i = 0; i < 4; i++)
            lanes[i] = fold(lanes[i], by_stride, load(at + i * LANE));
    for (unsigned i = 1; i < 4; i++)
        lanes[i] = fold(lanes[i - 1], by_lane, lanes[i]);
    _mm_storeu_si128((__m128i *)rest, lanes[3]);
    /* ~0 is the register at zero, which zlib inverts on the way in. */
    return crc_by_table(~0u, rest, sizeof(rest));
}

uint32_t stream_crc(uint32_t crc, const void *data, uint64_t length)
{
    const uint8_t *at = data;
    uint64_t whole = length - length % STRIDE;

    if (whole == 0 || !__builtin_cpu_supports("pclmul") || !__builtin_cpu_supports("sse4.1"))
        return crc_by_table(crc, at, length);
    crc = crc_by_folding(crc, at, whole);
    return crc_by_table(crc, at + whole, length - whole);
}
#else
uint32_t stream_crc(uint32_t crc, const void *data, uint64_t length)
{
    return crc_by_table(crc, data, length);
}
#endif
