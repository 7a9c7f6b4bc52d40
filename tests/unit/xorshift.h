/* Numbers that look random, the same in each run: xorshift64 of Marsaglia, "Xorshift RNGs" (2003). */
#ifndef FERRY_TESTS_XORSHIFT_H
#define FERRY_TESTS_XORSHIFT_H

#include <stdint.h>

#define XORSHIFT_SEED 0x9E3779B97F4A7C15ull /* any number but 0 will do */

static inline uint64_t xorshift(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

#endif
