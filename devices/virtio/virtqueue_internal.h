/*
 * Between the two layouts of the virtqueue engine: virtqueue.c, which has the split ring and all
 * that callers see, and virtqueue_packed.c.
 */
#ifndef FERRY_VIRTQUEUE_INTERNAL_H
#define FERRY_VIRTQUEUE_INTERNAL_H

#include <endian.h>
#include <stddef.h>

#include "devices/virtio/virtqueue.h"

#define DESC_BYTES 16

/* One descriptor, in the host's byte order. */
struct piece {
    gpa_t gpa;
    uint32_t length;
    uint16_t flags;
    uint16_t next; /* in a packed ring: the buffer's id */
};

static inline void virtqueue_chain_clear(struct virtqueue_chain *chain)
{
    chain->n_readable = 0;
    chain->n_writable = 0;
    chain->n_empty = 0;
    chain->readable_bytes = 0;
    chain->writable_bytes = 0;
}

/* Checks a piece and puts it at the chain's end. 0 or -EINVAL. */
int virtqueue_add_piece(struct virtqueue *vq, struct virtqueue_chain *chain,
                        const struct piece *p);

/* Fields of 16 bits, aligned, shared with the guest. */
static inline uint16_t virtqueue_load(const void *base, size_t offset)
{
    return le16toh(__atomic_load_n((const uint16_t *)((const uint8_t *)base + offset),
                                   __ATOMIC_RELAXED));
}

static inline uint16_t virtqueue_load_acquire(const void *base, size_t offset)
{
    return le16toh(__atomic_load_n((const uint16_t *)((const uint8_t *)base + offset),
                                   __ATOMIC_ACQUIRE));
}

/* ---- virtqueue_packed.c: what the functions of virtqueue.h do for a packed ring ---- */

int packed_check(const struct virtqueue *vq, const struct virtqueue_state *st);
/* 0, or -ENOMEM. */
int packed_enable(struct virtqueue *vq);
void packed_reset(struct virtqueue *vq);
int packed_pop(struct virtqueue *vq, struct virtqueue_chain *chain);
void packed_unpop(struct virtqueue *vq);
bool packed_pending(const struct virtqueue *vq);
void packed_fill(struct virtqueue *vq, uint16_t head, uint32_t written, uint16_t ahead);
void packed_flush(struct virtqueue *vq, uint16_t count);
bool packed_wants_interrupt(struct virtqueue *vq);
void packed_disable_kicks(struct virtqueue *vq);
bool packed_enable_kicks(struct virtqueue *vq);

#endif
