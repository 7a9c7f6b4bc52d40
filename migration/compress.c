/*
 * Compression by libzstd at its fastest ordinary level, or by liblz4: both are linked for kernels'
 * sake already (firmware/).
 *
 * The libraries' decoders check every access against the bounds they are given; what they make must
 * be of the length that was expected to the byte. No state but the compressor's; one thread's at a
 * time. Texts: RFC 8878 (Zstandard), LZ4's block format.
 */
#include "migration/compress.h"

#include <errno.h>
#include <limits.h>
#include <lz4.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#define ZSTD_LEVEL 1
#define LZ4_ACCELERATION 1

struct compressor {
    enum compress_method method;
    ZSTD_CCtx *packing;   /* owns */
    ZSTD_DCtx *unpacking; /* owns */
};

static const char *const names[COMPRESS_METHODS] = {
    [COMPRESS_NONE] = "none", [COMPRESS_ZSTD] = "zstd", [COMPRESS_LZ4] = "lz4"};

const char *compress_name(enum compress_method method)
{
    return names[method];
}

int compress_find(enum compress_method *method, const char *name)
{
    for (unsigned i = 0; i < COMPRESS_METHODS; i++) {
        if (strcmp(names[i], name) != 0)
            continue;
        *method = (enum compress_method)i;
        return 0;
    }
    return -EINVAL;
}

int compressor_create(struct compressor **out, enum compress_method method)
{
    struct compressor *c;

    *out = NULL;
    if (method == COMPRESS_NONE)
        return 0;
    if (method >= COMPRESS_METHODS)
        return -EINVAL;
    c = calloc(1, sizeof(*c));
    if (!c)
        return -ENOMEM;
    c->method = method;
    *out = c;
    return 0;
}

void compressor_destroy(struct compressor *c)
{
    if (!c)
        return;
    ZSTD_freeCCtx(c->packing);
    ZSTD_freeDCtx(c->unpacking);
    free(c);
}

static size_t pack_zstd(struct compressor *c, const void *from, size_t length, void *to,
                        size_t room)
{
    size_t n;

    if (!c->packing)
        c->packing = ZSTD_createCCtx();
    if (!c->packing)
        return 0;
    n = ZSTD_compressCCtx(c->packing, to, room, from, length, ZSTD_LEVEL);
    return ZSTD_isError(n) ? 0 : n;
}

size_t compressor_pack(struct compressor *c, const void *from, size_t length, void *to, size_t room)
{
    int n;

    if (length > INT_MAX || room > INT_MAX)
        return 0;
    if (c->method == COMPRESS_ZSTD)
        return pack_zstd(c, from, length, to, room);
    n = LZ4_compress_fast(from, to, (int)length, (int)room, LZ4_ACCELERATION);
    return n > 0 ? (size_t)n : 0;
}

static int unpack_zstd(struct compressor *c, const void *from, size_t length, void *to,
                       size_t wanted)
{
    size_t n;

    if (!c->unpacking)
        c->unpacking = ZSTD_createDCtx();
    if (!c->unpacking)
        return -ENOMEM;
    n = ZSTD_decompressDCtx(c->unpacking, to, wanted, from, length);
    return !ZSTD_isError(n) && n == wanted ? 0 : -EBADMSG;
}

int compressor_unpack(struct compressor *c, const void *from, size_t length, void *to,
                      size_t wanted)
{
    if (length > INT_MAX || wanted > INT_MAX)
        return -EBADMSG;
    if (c->method == COMPRESS_ZSTD)
        return unpack_zstd(c, from, length, to, wanted);
    return LZ4_decompress_safe(from, to, (int)length, (int)wanted) == (int)wanted ? 0 : -EBADMSG;
}
