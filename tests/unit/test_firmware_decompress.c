/* Decompression: round trips against what the same libraries compress, and each way to fail. */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <lz4.h>
#include <lz4hc.h>
#include <lzma.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "firmware/decompress.h"

#define PLAIN_LENGTH 300000u
#define PACKED_MAX (2u << 20)
#define LZ4_BLOCK (8u << 20)

struct packed {
    uint8_t bytes[PACKED_MAX];
    size_t length;
};

static uint8_t plain[PLAIN_LENGTH];
static struct packed packed;
static uint8_t out[PLAIN_LENGTH + 1];

/* Neither constant nor random: text-like, so that every format finds matches and literals. */
static void fill(uint8_t *bytes, size_t length)
{
    uint32_t x = 1;

    for (size_t i = 0; i < length; i++) {
        x = x * 1103515245 + 12345;
        bytes[i] = i % 7 < 4 ? (uint8_t)(i / 7) : (uint8_t)(x >> 24);
    }
}

static void pack_gzip(const uint8_t *bytes, size_t length)
{
    z_stream z = {0};

    cr_assert_eq(deflateInit2(&z, 9, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
    z.next_in = (Bytef *)(uintptr_t)bytes;
    z.avail_in = (uInt)length;
    z.next_out = packed.bytes;
    z.avail_out = sizeof(packed.bytes);
    cr_assert_eq(deflate(&z, Z_FINISH), Z_STREAM_END);
    packed.length = z.total_out;
    deflateEnd(&z);
}

/* As the kernel's build does: the x86 filter before LZMA2, and CRC32. */
static void pack_xz(const uint8_t *bytes, size_t length)
{
    lzma_options_lzma options;
    lzma_filter filters[] = {
        {LZMA_FILTER_X86, NULL}, {LZMA_FILTER_LZMA2, &options}, {LZMA_VLI_UNKNOWN, NULL}};

    cr_assert(!lzma_lzma_preset(&options, 6));
    packed.length = 0;
    cr_assert_eq(lzma_stream_buffer_encode(filters, LZMA_CHECK_CRC32, NULL, bytes, length,
                                           packed.bytes, &packed.length, sizeof(packed.bytes)),
                 LZMA_OK);
}

static void put_u32(uint32_t value)
{
    memcpy(packed.bytes + packed.length, &value, sizeof(value));
    packed.length += sizeof(value);
}

static void pack_lz4_block(const uint8_t *bytes, size_t length)
{
    int room = (int)(sizeof(packed.bytes) - packed.length - 4);
    int n = LZ4_compress_HC((const char *)bytes, (char *)packed.bytes + packed.length + 4,
                            (int)length, room, 9);

    cr_assert_gt(n, 0);
    put_u32((uint32_t)n);
    packed.length += (size_t)n;
}

static void pack_lz4(const uint8_t *bytes, size_t length)
{
    packed.length = 0;
    put_u32(0x184C2102);
    pack_lz4_block(bytes, length);
}

static void pack_zstd(const uint8_t *bytes, size_t length)
{
    packed.length = ZSTD_compress(packed.bytes, sizeof(packed.bytes), bytes, length, 19);
    cr_assert(!ZSTD_isError(packed.length));
}

static void pack(enum compression compression)
{
    fill(plain, sizeof(plain));
    switch (compression) {
    case COMPRESSION_GZIP:
        pack_gzip(plain, sizeof(plain));
        break;
    case COMPRESSION_XZ:
        pack_xz(plain, sizeof(plain));
        break;
    case COMPRESSION_LZ4:
        pack_lz4(plain, sizeof(plain));
        break;
    default:
        pack_zstd(plain, sizeof(plain));
        break;
    }
}

/* Parameters go to another process, in which nothing is where it was: numbers only. */
static enum compression formats[] = {COMPRESSION_GZIP, COMPRESSION_XZ, COMPRESSION_LZ4,
                                     COMPRESSION_ZSTD};

#define FOR_EACH_FORMAT(name)                                                                      \
    ParameterizedTestParameters(decompress, name)                                                  \
    {                                                                                              \
        return cr_make_param_array(enum compression, formats,                                      \
                                   sizeof(formats) / sizeof(formats[0]));                          \
    }                                                                                              \
    ParameterizedTest(enum compression *format, decompress, name)

static int unpack(enum compression compression, size_t length)
{
    memset(out, 0xEE, sizeof(out));
    return decompress(compression, packed.bytes, packed.length, out, length);
}

FOR_EACH_FORMAT(gives_back_what_was_packed)
{
    pack(*format);
    cr_assert_eq(compression_detect(packed.bytes, packed.length), *format);
    cr_assert_eq(unpack(*format, sizeof(plain)), 0);
    cr_assert_arr_eq(out, plain, sizeof(plain));
    cr_assert_eq(out[sizeof(plain)], 0xEE, "wrote past the end");
}

FOR_EACH_FORMAT(ignores_what_follows_the_stream)
{
    pack(*format);
    put_u32(sizeof(plain)); /* the kernel's build appends the size */
    cr_assert_eq(unpack(*format, sizeof(plain)), 0);
    cr_assert_arr_eq(out, plain, sizeof(plain));
}

FOR_EACH_FORMAT(tells_a_stream_that_ends_early)
{
    pack(*format);
    packed.length /= 2;
    cr_assert_eq(unpack(*format, sizeof(plain)), -ENODATA);
}

FOR_EACH_FORMAT(tells_an_output_shorter_than_expected)
{
    pack(*format);
    cr_assert_eq(unpack(*format, sizeof(plain) + 1), -ENODATA);
}

FOR_EACH_FORMAT(never_writes_more_than_expected)
{
    int err;

    pack(*format);
    err = unpack(*format, sizeof(plain) - 1);
    /* A legacy lz4 block that does not fit cannot be told from a corrupt one. */
    cr_assert_eq(err, *format == COMPRESSION_LZ4 ? -EBADMSG : -EOVERFLOW);
    cr_assert_eq(out[sizeof(plain) - 1], 0xEE, "wrote past the end");
}

Test(decompress, lz4_refuses_a_match_before_the_beginning)
{
    packed.length = 0;
    put_u32(0x184C2102);
    put_u32(8);
    memcpy(packed.bytes + packed.length, "\x10x\x99\x00\x30yyy", 8); /* 1 literal, then 153 back */
    packed.length += 8;
    cr_assert_eq(unpack(COMPRESSION_LZ4, 100), -EBADMSG);
}

Test(decompress, zstd_refuses_a_reserved_block_type)
{
    pack(COMPRESSION_ZSTD);
    /* RFC 8878 §3.1.1: magic, descriptor, then the size; a block's type is bits 1 and 2. */
    cr_assert_eq(packed.bytes[4] & 0xE0, 0xA0, "a single segment with 4 bytes of size");
    packed.bytes[9] |= 6;
    cr_assert_eq(unpack(COMPRESSION_ZSTD, sizeof(plain)), -EBADMSG);
}

Test(decompress, gzip_checks_the_trailers_checksum)
{
    fill(plain, sizeof(plain));
    pack_gzip(plain, sizeof(plain));
    packed.bytes[packed.length - 8] ^= 1;
    cr_assert_eq(unpack(COMPRESSION_GZIP, sizeof(plain)), -EBADMSG);
}

Test(decompress, xz_checks_the_blocks_checksum)
{
    static const uint8_t bytes[64] = "a block that is only literals, as it is short and all differ";
    size_t at = 0;

    pack_xz(bytes, sizeof(bytes));
    while (memcmp(packed.bytes + at, "literals", 8) != 0)
        at++;
    packed.bytes[at] ^= 1;
    cr_assert_eq(unpack(COMPRESSION_XZ, sizeof(bytes)), -EBADMSG);
}

Test(decompress, lz4_goes_on_over_blocks_and_frames)
{
    size_t length = 2 * (size_t)LZ4_BLOCK + 5000;
    uint8_t *in = calloc(1, length), *back = malloc(length);

    cr_assert(in && back);
    fill(in, 4000);
    fill(in + LZ4_BLOCK - 100, 200);
    packed.length = 0;
    put_u32(0x184C2102);
    pack_lz4_block(in, LZ4_BLOCK);
    pack_lz4_block(in + LZ4_BLOCK, LZ4_BLOCK);
    put_u32(0x184C2102);
    pack_lz4_block(in + 2 * (size_t)LZ4_BLOCK, 5000);
    cr_assert_eq(decompress(COMPRESSION_LZ4, packed.bytes, packed.length, back, length), 0);
    cr_assert_eq(memcmp(in, back, length), 0);
    free(in);
    free(back);
}

Test(decompress, lz4_refuses_a_block_of_more_than_8_mib)
{
    size_t length = (size_t)LZ4_BLOCK + 1;
    uint8_t *in = calloc(1, length), *back = malloc(length);

    cr_assert(in && back);
    packed.length = 0;
    put_u32(0x184C2102);
    pack_lz4_block(in, length);
    cr_assert_eq(decompress(COMPRESSION_LZ4, packed.bytes, packed.length, back, length), -EBADMSG);
    free(in);
    free(back);
}

Test(decompress, lz4_refuses_a_block_that_is_longer_than_any)
{
    packed.length = 0;
    put_u32(0x184C2102);
    put_u32(0x7FFFFFFF);
    cr_assert_eq(unpack(COMPRESSION_LZ4, 100), -EBADMSG);
}

Test(decompress, names_formats_it_does_not_decompress)
{
    static const struct {
        const char *bytes;
        const char *name;
    } known[] = {{"BZh91AY&", "bzip2"}, {"\x5D\0\0\x80\0\xFF\xFF\xFF", "lzma"},
                 {"\x89LZO\0\r\n\x1A", "lzo"}, {"\0\0\0\0\0\0\0\0", "unknown"}};

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        enum compression c = compression_detect((const uint8_t *)known[i].bytes, 8);

        cr_assert_str_eq(compression_name(c), known[i].name);
        packed.length = 8;
        cr_assert_eq(unpack(c, 8), -ENOTSUP);
    }
}

Test(decompress, detects_nothing_in_too_few_bytes)
{
    cr_assert_eq(compression_detect((const uint8_t *)"\x28\xB5\x2F", 3), COMPRESSION_UNKNOWN);
    cr_assert_eq(compression_detect(NULL, 0), COMPRESSION_UNKNOWN);
}
