/*
 * The VM Generation ID: 16 random bytes in the guest's memory, which become others when the guest
 * goes on from a file, so that it notices that another may have gone on from the same state.
 *
 * Functions are called under the device lock, vCPUs parked.
 */
#ifndef FERRY_DEVICES_VMGENID_H
#define FERRY_DEVICES_VMGENID_H

#include <stdint.h>

#include "vmm/device.h"

#define VMGENID_BYTES 16

struct vmgenid_config {
    const char *id;
    gpa_t place;  /* of the bytes; a multiple of 8, in memory that the guest keeps off */
    unsigned gsi; /* pulsed when they changed: an edge */
};

/* 0, -ENOMEM, of getrandom(2). */
int vmgenid_create(struct device **out, const struct device_env *env,
                   const struct vmgenid_config *config);

/* Puts the bytes in their place: memory was made, or cleared. -EFAULT: there is no such memory. */
int vmgenid_show(struct device *dev);

/* Takes new ones and tells the guest of it; its interrupt controllers are as it left them. Does nothing
 * for a guest that was saved without the device. As above. */
int vmgenid_renew(struct device *dev);

#endif
