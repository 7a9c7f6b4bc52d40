/*
 * A tap as a port: frames between a device of the host's kernel and whatever is plugged in here.
 *
 * Frames from the guest are written straight out of its memory; those for it are read into buffers
 * of the tap's and copied once, by the receiver. Offload metadata crosses in both directions: the
 * kernel leaves undone what the peer accepts. All on the loop's thread, without the device lock.
 */
#ifndef FERRY_NET_TAP_H
#define FERRY_NET_TAP_H

#include <stdbool.h>
#include <stdint.h>

#include "net/port.h"
#include "net/tap_device.h"

struct loop;
struct tap;

/* What an owner of a tap may have to say; each may be NULL. */
struct tap_hooks {
    /* A frame for the host. True: it was for the owner, who dealt with it. May answer by
     * net_port_send() on tap_port(). */
    bool (*intercept)(void *arg, const struct net_frame *frame);
    void (*filter_changed)(void *arg, const struct net_receive_filter *filter);
    void *arg;
};

/* Frames that did not reach the host's kernel. */
struct tap_counters {
    uint64_t refused;   /* by the kernel: it is down, or a header contradicts its frame */
    uint64_t full;      /* the device's queue was */
    uint64_t malformed; /* too short, too long, in too many pieces */
    uint64_t direct;    /* frames that were read straight into the memory of the peer */
};

/* Takes the device over when it succeeds. name, hooks->arg: borrowed for the tap's life. -ENOMEM and
 * errors of io_uring_setup(2), logged. */
int tap_create(struct tap **out, struct loop *loop, const char *name,
               const struct tap_device *device, const struct tap_hooks *hooks);
/* Unplugs and closes the device. Not from a callback of the loop. NULL is fine. */
void tap_destroy(struct tap *tap);

struct net_port *tap_port(struct tap *tap);
const struct tap_device *tap_device(const struct tap *tap);
void tap_get_counters(const struct tap *tap, struct tap_counters *counters);

#endif
