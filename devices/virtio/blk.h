/*
 * virtio-blk (virtio 1.2 §5.2): a disk on a raw image file or a block device of the host.
 */
#ifndef FERRY_VIRTIO_BLK_H
#define FERRY_VIRTIO_BLK_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/virtio/virtio.h"

#define VIRTIO_BLK_QUEUE_SIZE 256
#define VIRTIO_BLK_MAX_QUEUES 16
#define VIRTIO_BLK_ID_BYTES 20 /* §5.2.6: of the serial, not NUL-terminated when full */

/* Borrowed during the call. */
struct virtio_blk_config {
    const char *path;
    bool readonly;
    bool direct;         /* O_DIRECT: past the host's page cache */
    const char *serial;  /* NULL: the id; cut at VIRTIO_BLK_ID_BYTES */
    uint16_t queue_size; /* a power of two, or 0: VIRTIO_BLK_QUEUE_SIZE */
    unsigned n_queues;   /* 1..VIRTIO_BLK_MAX_QUEUES, or 0: 1 */
    bool unlocked;       /* the image is another process's until virtio_blk_lock() */
};

/*
 * Opens and locks the image. *out is owned by the caller until a transport takes it, and then is
 * destroyed by that; before that by (*out)->class->destroy(*out), which runs the loop to get back
 * what is in flight. Before the guest runs, on the loop's thread. Errors of blk_image_open()
 * (logged), -EINVAL (queues), -ENOMEM.
 */
int virtio_blk_create(struct virtio_device **out, const struct device_env *env, const char *id,
                      const struct virtio_blk_config *config);

/*
 * The image's lock, which moves with the guest: with locked false what the guest wrote is on the disk
 * first, and the lock then free; the device is paused and idle. -EBUSY (another process took it),
 * of fdatasync(2); logged.
 */
int virtio_blk_lock(struct virtio_device *vdev, bool locked);
/* Writes out what the page cache holds of the image; may take long. Any thread. */
void virtio_blk_sync(struct virtio_device *vdev);
uint64_t virtio_blk_bytes(const struct virtio_device *vdev);

/* Since the device was made: requests that were carried out, and bytes between image and guest. */
struct virtio_blk_counters {
    uint64_t read_ops, write_ops, read_bytes, write_bytes;
};
/* With the device lock held. */
void virtio_blk_get_counters(const struct virtio_device *vdev, struct virtio_blk_counters *counters);

#endif
