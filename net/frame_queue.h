/*
 * Frames that wait for somebody who is not there yet: a bounded queue, whose form in memory is the
 * one in which they travel to another process (docs/STREAM.md: frames).
 *
 * Any thread puts, one at a time takes; a mutex inside, a leaf. Nothing is allocated but at creation;
 * what finds no room is dropped and counted.
 */
#ifndef FERRY_NET_FRAME_QUEUE_H
#define FERRY_NET_FRAME_QUEUE_H

#include <stddef.h>
#include <stdint.h>

#include "net/port.h"

/* A frame in that form; little-endian; frozen with its first release. Its bytes follow. */
struct frame_record {
    uint32_t length;     /* NET_FRAME_MIN..NET_FRAME_MAX */
    uint8_t flags;       /* FRAME_NEEDS_CSUM, FRAME_CSUM_VALID */
    uint8_t gso_type;    /* as in struct net_frame, as are those below */
    uint16_t gso_size;
    uint16_t hdr_len;
    uint16_t csum_start;
    uint16_t csum_offset;
    uint16_t reserved;   /* 0 */
} __attribute__((packed));
_Static_assert(sizeof(struct frame_record) == 16, "docs/STREAM.md: frames");

#define FRAME_NEEDS_CSUM 1u
#define FRAME_CSUM_VALID 2u
#define FRAME_RECORD_MAX (sizeof(struct frame_record) + NET_FRAME_MAX)

struct frame_queue;

struct frame_queue_counters {
    uint64_t frames, bytes; /* that were put, with what frames them */
    uint64_t dropped;       /* frames for which there was no room */
};

/* bytes: FRAME_RECORD_MAX at least. -ENOMEM. */
int frame_queue_create(struct frame_queue **out, size_t bytes);
/* NULL is fine. */
void frame_queue_destroy(struct frame_queue *queue);

/* Copies a frame whose length is one that a frame can have. */
void frame_queue_put(struct frame_queue *queue, const struct net_frame *frame);
/* Copies records of another process. -EBADMSG: they are not whole frames, one after the other; those
 * before the first bad one were put. Metadata are not looked at: whoever delivers them does that. */
int frame_queue_put_records(struct frame_queue *queue, const void *records, size_t size);

/* Moves as many whole records as fit to `to`; returns their bytes. */
size_t frame_queue_take_records(struct frame_queue *queue, void *to, size_t size);
/* The frame that was put first; its one piece of memory is in *piece and stays until
 * frame_queue_pop(). False: there is none. */
bool frame_queue_front(struct frame_queue *queue, struct net_frame *frame, struct iovec *piece);
void frame_queue_pop(struct frame_queue *queue);
/* Forgets all that waits, as dropped. */
void frame_queue_drop(struct frame_queue *queue);

void frame_queue_get_counters(struct frame_queue *queue, struct frame_queue_counters *counters);

#endif
