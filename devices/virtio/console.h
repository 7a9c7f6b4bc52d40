/*
 * virtio-console (virtio 1.2 §5.3): one port, its bytes to and from a character stream.
 */
#ifndef FERRY_VIRTIO_CONSOLE_H
#define FERRY_VIRTIO_CONSOLE_H

#include "devices/virtio/virtio.h"

struct chardev;

/* chardev is borrowed for the device's life, and becomes attached to it. *out as with
 * virtio_blk_create(). 0 or -ENOMEM. */
int virtio_console_create(struct virtio_device **out, const struct device_env *env, const char *id,
                          struct chardev *chardev);

#endif
