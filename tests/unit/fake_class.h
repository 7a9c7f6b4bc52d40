/*
 * A virtio device class for tests of what lies beneath: it takes notes, and can return each request
 * with its readable bytes copied into its writable ones.
 */
#ifndef FERRY_TESTS_FAKE_CLASS_H
#define FERRY_TESTS_FAKE_CLASS_H

#include "devices/virtio/virtio.h"

#define FAKE_CLASS_ID 42          /* of no device in virtio 1.2 §5 */
#define FAKE_CLASS_QUEUES 3
#define FAKE_CLASS_SIZE 64        /* of each queue */
#define FAKE_CLASS_CONFIG 12      /* bytes */
#define FAKE_CLASS_FEATURE_A 0    /* bits */
#define FAKE_CLASS_FEATURE_B 33

struct fake_class {
    struct virtio_device vdev;
    uint64_t own_features;        /* A and B, unless a test changes it */
    uint8_t config[FAKE_CLASS_CONFIG]; /* at first 0, 1, 2, ... */
    bool echo;                    /* kicked: answer every request */
    bool busy;
    uint32_t kept;                /* the class's own state; at most 1000 */
    unsigned starts, kicks[FAKE_CLASS_QUEUES], resets, pauses, resumes;
    bool started_ok;              /* FEATURE_A was negotiated when start ran last */
    bool *destroyed;              /* set by destroy; may be NULL */
    struct virtqueue_chain chain;
};

/* Allocated; freed by its class's destroy, or by fake_class_drop() when no transport owns it. */
struct fake_class *fake_class_create(const struct device_env *env, const char *id);
void fake_class_drop(struct fake_class *fc);

#endif
