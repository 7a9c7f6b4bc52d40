/*
 * Decompression of a kernel's payload by the formats' own libraries: zlib, liblzma, liblz4 and
 * libzstd.
 *
 * They are the reference decoders, in every distribution, and fuzzed for years by others. Does not
 * read files, know what is in the payload, or log. Stateless: any thread, no lock.
 *
 * Every decoder writes straight into the caller's buffer, so none needs a window of its own but
 * liblzma (its dictionary, whose size is bounded here).
 *
 * Texts: RFC 1952 (gzip), RFC 8878 (zstd), the .xz file format 1.1.0, LZ4 frame format 1.6.4,
 * "Legacy frame".
 */
#include "firmware/decompress.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#include <lz4.h>
#include <lzma.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

/* The kernel's build asks for a dictionary of 32 MiB at most (scripts/xz_wrap.sh); leave room. */
#define XZ_MEMORY_LIMIT (256ull << 20)

#define LZ4_LEGACY_MAGIC 0x184C2102u
#define LZ4_LEGACY_BLOCK (8u << 20) /* of decompressed data; all blocks but the last have it */

static const struct {
    enum compression compression;
    const char *name;
    uint8_t length;
    uint8_t magic[6];
} formats[] = {
    {COMPRESSION_GZIP, "gzip", 2, {0x1F, 0x8B}},
    {COMPRESSION_XZ, "xz", 6, {0xFD, '7', 'z', 'X', 'Z', 0x00}},
    {COMPRESSION_LZ4, "lz4", 4, {0x02, 0x21, 0x4C, 0x18}},
    {COMPRESSION_ZSTD, "zstd", 4, {0x28, 0xB5, 0x2F, 0xFD}},
    {COMPRESSION_BZIP2, "bzip2", 3, {'B', 'Z', 'h'}},
    {COMPRESSION_LZMA, "lzma", 3, {0x5D, 0x00, 0x00}},
    {COMPRESSION_LZO, "lzo", 4, {0x89, 'L', 'Z', 'O'}},
};

#define N_FORMATS (sizeof(formats) / sizeof(formats[0]))

enum compression compression_detect(const uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < N_FORMATS; i++)
        if (length >= formats[i].length && memcmp(bytes, formats[i].magic, formats[i].length) == 0)
            return formats[i].compression;
    return COMPRESSION_UNKNOWN;
}

const char *compression_name(enum compression compression)
{
    for (size_t i = 0; i < N_FORMATS; i++)
        if (formats[i].compression == compression)
            return formats[i].name;
    return "unknown";
}

/* zlib counts in unsigned int; both sides are far below that, or refused here. */
static int decompress_gzip(const uint8_t *in, size_t in_length, uint8_t *out, size_t out_length)
{
    z_stream z = {0};
    int result;

    if (in_length > UINT_MAX || out_length > UINT_MAX)
        return -EOVERFLOW;
    if (inflateInit2(&z, MAX_WBITS + 16) != Z_OK) /* + 16: a gzip header and trailer, no other */
        return -ENOMEM;
    z.next_in = (Bytef *)(uintptr_t)in; /* zlib's prototype is not const, zlib is */
    z.avail_in = (uInt)in_length;
    z.next_out = out;
    z.avail_out = (uInt)out_length;
    result = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    switch (result) {
    case Z_STREAM_END:
        return z.avail_out == 0 ? 0 : -ENODATA;
    case Z_OK:
    case Z_BUF_ERROR:
        return z.avail_in == 0 ? -ENODATA : -EOVERFLOW;
    case Z_MEM_ERROR:
        return -ENOMEM;
    default:
        return -EBADMSG;
    }
}

/* Runs until length bytes are there, or the stream ends or fails. */
static lzma_ret xz_run(lzma_stream *s, uint8_t *out, size_t length)
{
    lzma_ret result;

    s->next_out = out;
    s->avail_out = length;
    do
        result = lzma_code(s, LZMA_FINISH);
    while (result == LZMA_OK && s->avail_out > 0);
    return result;
}

static int decompress_xz(const uint8_t *in, size_t in_length, uint8_t *out, size_t out_length)
{
    lzma_stream s = LZMA_STREAM_INIT;
    lzma_ret result;
    size_t missing;
    uint8_t probe;

    /* Knows the x86 filter (BCJ) that the kernel's build puts before LZMA2. */
    if (lzma_stream_decoder(&s, XZ_MEMORY_LIMIT, 0) != LZMA_OK)
        return -ENOMEM;
    s.next_in = in;
    s.avail_in = in_length;
    result = xz_run(&s, out, out_length);
    missing = s.avail_out;
    if (result == LZMA_OK) { /* full: the index and footer may still follow, but no data */
        result = xz_run(&s, &probe, sizeof(probe));
        if (s.avail_out == 0)
            result = LZMA_OK;
    }
    lzma_end(&s);
    switch (result) {
    case LZMA_STREAM_END:
        return missing == 0 ? 0 : -ENODATA;
    case LZMA_OK:
        return -EOVERFLOW;
    case LZMA_BUF_ERROR:
        return -ENODATA;
    case LZMA_MEM_ERROR:
    case LZMA_MEMLIMIT_ERROR:
        return -ENOMEM;
    default:
        return -EBADMSG;
    }
}

static uint32_t get_le32(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/*
 * Legacy frame: the magic, then blocks, each with its compressed length before it. There is no end
 * mark; the data end where the expected length is reached. A second magic opens a further frame.
 */
static int decompress_lz4(const uint8_t *in, size_t in_length, uint8_t *out, size_t out_length)
{
    size_t at = 0, done = 0;

    while (done < out_length) {
        size_t room = out_length - done;
        uint32_t block;
        int got;

        if (in_length - at < sizeof(block))
            return -ENODATA;
        block = get_le32(in + at);
        at += sizeof(block);
        if (block == LZ4_LEGACY_MAGIC)
            continue;
        if (block > LZ4_COMPRESSBOUND(LZ4_LEGACY_BLOCK))
            return -EBADMSG;
        if (block > in_length - at)
            return -ENODATA;
        if (room > LZ4_LEGACY_BLOCK)
            room = LZ4_LEGACY_BLOCK;
        got = LZ4_decompress_safe((const char *)in + at, (char *)out + done, (int)block, (int)room);
        if (got <= 0)
            return -EBADMSG;
        at += block;
        done += (size_t)got;
    }
    return 0;
}

static int decompress_zstd(const uint8_t *in, size_t in_length, uint8_t *out, size_t out_length)
{
    size_t frame = ZSTD_findFrameCompressedSize(in, in_length);
    size_t got;

    if (ZSTD_isError(frame))
        return ZSTD_getErrorCode(frame) == ZSTD_error_srcSize_wrong ? -ENODATA : -EBADMSG;
    /* In one call there is no window to allocate, whatever size the frame asks for. */
    got = ZSTD_decompress(out, out_length, in, frame);
    if (ZSTD_isError(got)) {
        switch (ZSTD_getErrorCode(got)) {
        case ZSTD_error_dstSize_tooSmall:
            return -EOVERFLOW;
        case ZSTD_error_memory_allocation:
            return -ENOMEM;
        default:
            return -EBADMSG;
        }
    }
    return got == out_length ? 0 : -ENODATA;
}

int decompress(enum compression compression, const uint8_t *in, size_t in_length, uint8_t *out,
               size_t out_length)
{
    switch (compression) {
    case COMPRESSION_GZIP:
        return decompress_gzip(in, in_length, out, out_length);
    case COMPRESSION_XZ:
        return decompress_xz(in, in_length, out, out_length);
    case COMPRESSION_LZ4:
        return decompress_lz4(in, in_length, out, out_length);
    case COMPRESSION_ZSTD:
        return decompress_zstd(in, in_length, out, out_length);
    case COMPRESSION_BZIP2:
    case COMPRESSION_LZMA:
    case COMPRESSION_LZO:
    case COMPRESSION_UNKNOWN:
        break;
    }
    return -ENOTSUP;
}
