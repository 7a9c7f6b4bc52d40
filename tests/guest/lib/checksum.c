/*
 * The sum that cksum(1) prints: CRC-32 with the polynomial 0x04C11DB7, most significant bit first,
 * over the data and then the length's bytes, lowest first, complemented.
 *
 * The table is built at the first use. Thread: one processor.
 * Text: POSIX.1-2017, cksum.
 */
#include "checksum.h"

static uint32_t table[256];

static void build_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i << 24;
        for (unsigned bit = 0; bit < 8; bit++)
            value = value << 1 ^ ((value >> 31) != 0 ? 0x04C11DB7 : 0);
        table[i] = value;
    }
}

static uint32_t step(uint32_t crc, uint8_t byte)
{
    return crc << 8 ^ table[crc >> 24 ^ byte];
}

void checksum_update(struct checksum *sum, const void *data, uint64_t length)
{
    const uint8_t *bytes = data;

    if (table[1] == 0)
        build_table();
    for (uint64_t i = 0; i < length; i++)
        sum->crc = step(sum->crc, bytes[i]);
    sum->length += length;
}

uint32_t checksum_final(const struct checksum *sum)
{
    uint32_t crc = sum->crc;

    if (table[1] == 0)
        build_table();
    for (uint64_t length = sum->length; length != 0; length >>= 8)
        crc = step(crc, (uint8_t)length);
    return ~crc;
}
