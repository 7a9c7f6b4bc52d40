/*
 * What character devices share among themselves: the ring, the credit, the operations of a back
 * end. Everything with the device lock held. Not for front ends.
 */
#ifndef FERRY_CHARDEV_INTERNAL_H
#define FERRY_CHARDEV_INTERNAL_H

#include <sys/uio.h>

#include "devices/chardev.h"

struct chardev_backend {
    /* The ring holds bytes more than before. Any thread. NULL: nothing to be done. */
    void (*output)(struct chardev *chardev);
    /* The front end accepts input, having accepted none. Any thread. May be NULL. */
    void (*input_wanted)(struct chardev *chardev);
    int (*size)(struct chardev *chardev, unsigned *columns, unsigned *rows); /* NULL: no terminal */
    int (*drain)(struct chardev *chardev, uint64_t deadline_ns);             /* NULL: is empty */
    void (*destroy)(struct chardev *chardev);
};

/* The head of every back end's struct. */
struct chardev {
    const struct chardev_backend *backend;
    struct chardev_front *front; /* borrowed; may be NULL */
    size_t credit;               /* input bytes that the front end accepts */
    bool refused;                /* `writable` is owed */
    bool delivering;             /* inside the front end's `input` */
    bool gone;                   /* output is dropped */
    size_t start, used;          /* of the ring */
    uint8_t ring[CHARDEV_RING_BYTES];
};

/* The bytes that wait, in at most two pieces; they stay in place until consumed. Returns how many
 * pieces. */
unsigned chardev_ring_peek(struct chardev *chardev, struct iovec iov[2]);
/* The first n bytes have left. Loop's thread: may call `writable`. */
void chardev_ring_consume(struct chardev *chardev, size_t n);
/* Nobody takes output any more. Loop's thread. */
void chardev_output_gone(struct chardev *chardev);

/* Gives input to the front end as far as it accepts it; returns how much. Loop's thread. */
size_t chardev_deliver(struct chardev *chardev, const uint8_t *bytes, size_t n);
void chardev_deliver_break(struct chardev *chardev);
void chardev_deliver_resize(struct chardev *chardev);

#endif
