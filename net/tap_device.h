/*
 * Opening tap and macvtap devices: descriptors that Ethernet frames are read from and written to.
 */
#ifndef FERRY_NET_TAP_DEVICE_H
#define FERRY_NET_TAP_DEVICE_H

#include <net/if.h>
#include <stdbool.h>
#include <stdint.h>

#define TAP_MAX_QUEUES 16

/* Open queues of one device; each owned. */
struct tap_device {
    int fds[TAP_MAX_QUEUES];
    unsigned n_queues;
    char name[IFNAMSIZ];
};

/* Each logs its errors by one line that begins with `who` and says what to do about it. The device
 * is in non-blocking mode and has headers before its frames (IFF_VNET_HDR). */

/* A tap that exists already. -ENODEV: it does not; -EBUSY, -EPERM, -EINVAL (no tap, or with another
 * number of queues). */
int tap_device_attach(struct tap_device *device, const char *who, const char *name,
                      unsigned queues);

/* A new tap, which ends with its last descriptor. name: NULL for one of Ferry's, "ferry0" and so on,
 * free of collision. -EEXIST: there is something of that name; -EPERM. */
int tap_device_make(struct tap_device *device, const char *who, const char *name, unsigned queues);

/* The same with a name of Ferry's, but nothing is logged. */
int tap_device_try(struct tap_device *device, unsigned queues);

/* A macvtap that was just made: the device node of the link `index`, which has that address.
 * -ENODEV: there is no node; -EACCES. */
int tap_device_open_macvtap(struct tap_device *device, const char *who, unsigned index,
                            const uint8_t mac[6], unsigned queues);

/* Takes over a descriptor that another program opened. -EINVAL: it is no tap, or without headers. */
int tap_device_adopt(struct tap_device *device, const char *who, int fd);

void tap_device_close(struct tap_device *device);

/* What the kernel may leave undone in frames that are read from it: NET_OFFLOAD_ bits. Returns those
 * that it took; it takes some only together. */
uint32_t tap_device_set_offloads(const struct tap_device *device, uint32_t offloads);
/* What it can take with frames that are written to it. */
uint32_t tap_device_offloads(const struct tap_device *device);

#endif
