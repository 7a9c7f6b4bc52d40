/*
 * A fuzz target is one file, tests/fuzz/fuzz_NAME.c, that defines this function; its corpus is
 * tests/fuzz/corpus/NAME/. It returns 0 and never fails but by a crash: a wrong outcome is trapped
 * with FUZZ_CHECK(), memory errors by the sanitizers.
 */
#ifndef FERRY_TESTS_FUZZ_H
#define FERRY_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FUZZ_CHECK(condition)                                                                      \
    do {                                                                                           \
        if (!(condition))                                                                          \
            __builtin_trap();                                                                      \
    } while (0)

#endif
