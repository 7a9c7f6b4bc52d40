/*
 * The sum that cksum(1) prints, so that a runner can compare a stream with what the guest saw.
 */
#ifndef GUEST_CHECKSUM_H
#define GUEST_CHECKSUM_H

#include <stdint.h>

/* Zero-initialised is empty. */
struct checksum {
    uint32_t crc;
    uint64_t length;
};

void checksum_update(struct checksum *sum, const void *data, uint64_t length);
uint32_t checksum_final(const struct checksum *sum);

#endif
