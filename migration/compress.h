/*
 * Compression of what a migration sends, a batch at a time.
 *
 * Each batch stands for itself: none is needed to unpack another. A compressor is one thread's.
 */
#ifndef FERRY_MIGRATION_COMPRESS_H
#define FERRY_MIGRATION_COMPRESS_H

#include <stddef.h>
#include <stdint.h>

/* On the wire; frozen (docs/STREAM.md: transfer). */
enum compress_method {
    COMPRESS_NONE = 0,
    COMPRESS_ZSTD = 1,
    COMPRESS_LZ4 = 2,
    COMPRESS_METHODS, /* how many are known */
};

/* "zstd", "lz4", or "none". */
const char *compress_name(enum compress_method method);
/* -EINVAL: no such name. */
int compress_find(enum compress_method *method, const char *name);

struct compressor;

/* *out is NULL for COMPRESS_NONE. -EINVAL: no such method; -ENOMEM. */
int compressor_create(struct compressor **out, enum compress_method method);
void compressor_destroy(struct compressor *compressor);

/* Bytes at `to`, of which there is room for so many; 0: they do not fit there. */
size_t compressor_pack(struct compressor *compressor, const void *from, size_t length, void *to,
                       size_t room);
/* Makes exactly `wanted` bytes of them. `from` may be anybody's. -EBADMSG: it is not those. */
int compressor_unpack(struct compressor *compressor, const void *from, size_t length, void *to,
                      size_t wanted);

#endif
