/*
 * Decompression of a kernel's payload: gzip, xz, lz4 (the legacy frame), zstd. One call, memory to
 * memory, into a buffer of exactly the size that the payload states for itself. Any thread.
 */
#ifndef FERRY_FIRMWARE_DECOMPRESS_H
#define FERRY_FIRMWARE_DECOMPRESS_H

#include <stddef.h>
#include <stdint.h>

enum compression {
    COMPRESSION_GZIP,
    COMPRESSION_XZ,
    COMPRESSION_LZ4,
    COMPRESSION_ZSTD,
    /* Recognised, to be named in messages, but not decompressed here. */
    COMPRESSION_BZIP2,
    COMPRESSION_LZMA,
    COMPRESSION_LZO,
    COMPRESSION_UNKNOWN,
};

/* Bytes of a payload that compression_detect() wants to see. */
#define COMPRESSION_MAGIC_LENGTH 8

enum compression compression_detect(const uint8_t *bytes, size_t length);
const char *compression_name(enum compression compression);

/*
 * Decompresses the stream at the beginning of in; what follows the stream's end is ignored. 0 when
 * it gave exactly out_length bytes. -ENODATA: in, or the stream, ended before; -EOVERFLOW: there is
 * more than out_length; -EBADMSG: corrupt; -ENOTSUP: none of the first four; -ENOMEM. Does not log.
 */
int decompress(enum compression compression, const uint8_t *in, size_t in_length, uint8_t *out,
               size_t out_length);

#endif
