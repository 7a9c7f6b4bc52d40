/*
 * virtio-net: a guest's network card (virtio 1.2 §5.1), one end of a wire.
 *
 * Pairs of receive and transmit queues, and a control queue. Checksums and segmentation are passed
 * on with the frame in both directions, to whoever accepts that.
 *
 * Threads: as struct virtio_class says. The port's callbacks run on the event loop's thread
 * without the device lock, and take it; what the card sends to its peer, it sends without the lock.
 */
#ifndef FERRY_VIRTIO_NET_H
#define FERRY_VIRTIO_NET_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/virtio/virtio.h"
#include "net/port.h"

#define VIRTIO_NET_MIN_MTU 1280u /* §5.1.4.1: SHOULD be at least that */
#define VIRTIO_NET_MAX_MTU 65520u

#define VIRTIO_NET_MAX_PAIRS 16u
#define VIRTIO_NET_SPEED 10000u  /* Mbit/s, unless told otherwise: for drivers that ask */

struct virtio_net_options {
    uint8_t mac[6];    /* a station's, not a group's */
    uint16_t mtu;      /* told to the driver: VIRTIO_NET_MIN_MTU..VIRTIO_NET_MAX_MTU; 0: not told */
    uint32_t speed;    /* Mbit/s; 0: VIRTIO_NET_SPEED */
    unsigned pairs;    /* of queues, up to VIRTIO_NET_MAX_PAIRS; 0: one */
    uint64_t withheld; /* features that are not offered, as bits: the card's or the ring's */
};

struct virtio_net_counters {
    /* What the driver was given, and what was taken from it. */
    uint64_t rx_frames, rx_bytes, tx_frames, tx_bytes;
    /* Frames that were dropped: of the guest's, or on their way to it. */
    uint64_t not_ready; /* no driver was there, or the link was down */
    uint64_t filtered;  /* the driver's filter did not want them */
    uint64_t too_long;  /* for the MTU, or for the driver's buffers */
    uint64_t malformed; /* no frames, or asking for what was not agreed on */
};

/*
 * *out goes to a transport, which owns it from then on. *port is the card's end of the wire, owned
 * by it; NULL is unplugged. env and its parts are borrowed. -EINVAL (options; logged), -ENOMEM.
 */
int virtio_net_create(struct virtio_device **out, const struct device_env *env, const char *id,
                      const struct virtio_net_options *options, struct net_port **port);

/* The cable, as the driver sees it (§5.1.4: status). Up from the start. With the device lock held;
 * loop thread. */
void virtio_net_set_link(struct virtio_device *vdev, bool up);

/* Asks the driver to make itself known on the wire (§5.1.6.5.4), if it can. So does the card itself
 * when it goes on from a saved state. With the device lock held; loop thread. */
void virtio_net_announce(struct virtio_device *vdev);
/* After its state was loaded: the card has the address that it was created with all the same, and its
 * configuration changed. The driver may go on with the one that it knows until it looks. */
void virtio_net_take_own_mac(struct virtio_device *vdev);

/*
 * While the card is paused, or always, frames that come and that its driver wants go to `take`, which
 * copies them; without it (NULL) they are the driver's, or refused while paused. A peer that was
 * refused before is asked again. With the device lock held, which `take` runs under, too, and which
 * is let go meanwhile; loop thread.
 */
void virtio_net_divert(struct virtio_device *vdev, bool always,
                       void (*take)(void *opaque, const struct net_frame *frame), void *opaque);

/* When frames passed between guest and wire, either way: loop_now_ns(), 0: never. */
struct virtio_net_traffic {
    uint64_t first_ns; /* since virtio_net_watch() */
    uint64_t last_ns;
};
/* With the device lock held; loop thread. */
void virtio_net_watch(struct virtio_device *vdev);
void virtio_net_get_traffic(const struct virtio_device *vdev, struct virtio_net_traffic *traffic);

/* Loop thread. */
void virtio_net_get_counters(const struct virtio_device *vdev,
                             struct virtio_net_counters *counters);

#endif
