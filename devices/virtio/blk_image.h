/*
 * The host's side of a disk: a raw image file or a block device, opened, locked against a second
 * user, and measured. Knows nothing of virtio; reads and writes nothing but for one probe.
 *
 * Thread: the event loop's, or before the guest runs.
 */
#ifndef FERRY_BLK_IMAGE_H
#define FERRY_BLK_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#define BLK_SECTOR 512u

struct blk_image {
    int fd;                  /* owns; -1: closed */
    uint64_t size;           /* bytes; a multiple of block_size */
    uint32_t block_size;     /* bytes: the unit of transfers; 512, or what O_DIRECT asks for */
    uint32_t physical_block; /* bytes: what the host writes without reading; a power of two */
    uint32_t optimal_io;     /* bytes; 0: no preference */
    uint32_t memory_align;   /* of buffers, a power of two; 1 without O_DIRECT */
    bool can_discard;        /* the file can have holes, as far as one can tell */
};

struct blk_image_config {
    const char *path; /* borrowed during the call */
    bool readonly;
    bool direct;      /* O_DIRECT */
    bool unlocked;    /* do not lock: another process has it until blk_image_lock() */
};

/*
 * Opens and locks. The lock is an open file description lock (fcntl(2): F_OFD_SETLK), shared for
 * readonly and exclusive else, so it ends with the descriptor. Every error is logged, with `who`
 * (the disk's id) before it: of stat(2) and open(2); -EISDIR, -ENOTBLK (neither file nor block
 * device), -EBUSY (in use by another process, by another disk of this one, or mounted), -EINVAL
 * (a size that is no multiple of the block, or none), -EOPNOTSUPP (no O_DIRECT there).
 */
int blk_image_open(struct blk_image *image, const char *who, const struct blk_image_config *config);
/* Takes and gives back the lock, for an image that moves between processes. -EBUSY, logged. */
int blk_image_lock(struct blk_image *image, const char *who, const char *path, bool readonly);
void blk_image_unlock(struct blk_image *image);
void blk_image_close(struct blk_image *image);

#endif
