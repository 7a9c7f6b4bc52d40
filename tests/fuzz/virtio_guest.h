/*
 * A hostile guest for the fuzz targets of virtio device classes: guest memory, an event loop, a
 * device class without a transport, and an interpreter that takes the input's bytes for what the
 * guest does: lays out chains, scribbles over memory and rings, kicks, reads and writes the
 * configuration space, resets, is paused, saved and loaded again from damaged bytes.
 *
 * One thread. What goes wrong traps by FUZZ_CHECK().
 */
#ifndef FERRY_TESTS_FUZZ_VIRTIO_GUEST_H
#define FERRY_TESTS_FUZZ_VIRTIO_GUEST_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "devices/virtio/virtio.h"
#include "tests/fuzz/fuzz.h"

/* Reads the input; what is beyond its end reads as 0. */
struct fuzz_input {
    const uint8_t *data;
    size_t left;
};
uint64_t fuzz_take(struct fuzz_input *in, unsigned bytes);

#define FUZZ_MEMORY (256u * 1024)
#define FUZZ_QUEUES 5
#define FUZZ_QUEUE_BYTES 0x4000u
#define FUZZ_DATA 0x14000u /* behind the queues; to the end of memory */
#define FUZZ_QUEUE_MAX 64u

struct fuzz_guest {
    struct device_env env;
    pthread_mutex_t lock;
    struct virtio_device *vdev; /* the one under test */
    unsigned queue_size;
    uint16_t published[FUZZ_QUEUES];  /* the available index of each queue */
    uint16_t next_desc[FUZZ_QUEUES];  /* where the next chain is written */
    unsigned queue_interrupts, config_interrupts;
    unsigned marks; /* internal */
    /* What a class has beside: one more thing the world may do to it. May be NULL. */
    void (*outside)(struct fuzz_guest *guest, struct fuzz_input *in);
};

struct fuzz_piece {
    gpa_t gpa;
    uint32_t length;
    bool writable;
};

/* Makes memory and loop, for all inputs to come. */
void fuzz_guest_init(struct fuzz_guest *guest);
/* Takes a fresh device, empties memory. */
void fuzz_guest_attach(struct fuzz_guest *guest, struct virtio_device *vdev);
/* Resets, then brings the device up with these of its features and queues of this size. */
void fuzz_guest_start(struct fuzz_guest *guest, uint64_t features, unsigned queue_size);
/* Writes a chain into queue `index` and publishes it; its head. */
uint16_t fuzz_guest_add(struct fuzz_guest *guest, unsigned index, const struct fuzz_piece *pieces,
                        unsigned n);
void fuzz_guest_kick(struct fuzz_guest *guest, unsigned index);
/* Runs the loop until nothing is left to do. */
void fuzz_guest_settle(struct fuzz_guest *guest);
/* Does whatever the input says, to its end. */
void fuzz_guest_run(struct fuzz_guest *guest, struct fuzz_input *in);
/* Destroys the device. */
void fuzz_guest_detach(struct fuzz_guest *guest);

uint16_t fuzz_guest_used(struct fuzz_guest *guest, unsigned index);
/* A pointer into guest memory; traps when it is none. */
void *fuzz_guest_at(struct fuzz_guest *guest, gpa_t gpa, uint64_t length);

#endif
