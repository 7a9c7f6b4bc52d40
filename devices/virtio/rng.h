/*
 * virtio-rng (virtio 1.2 §5.4): the host kernel's random numbers for the guest.
 */
#ifndef FERRY_VIRTIO_RNG_H
#define FERRY_VIRTIO_RNG_H

#include "devices/virtio/virtio.h"

/* *out is owned by the caller until a transport takes it; see virtio_blk_create(). 0 or -ENOMEM. */
int virtio_rng_create(struct virtio_device **out, const struct device_env *env, const char *id);

#endif
