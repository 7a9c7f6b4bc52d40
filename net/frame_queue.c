/*
 * The queue is a ring of records, none of which is cut at its end: what does not fit there begins at
 * the front again, and `wrap` says where the part behind ends.
 *
 * Does not deliver anything, nor look at metadata. Threads and lock: see the header.
 */
#include "net/frame_queue.h"

#include <endian.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct frame_queue {
    pthread_mutex_t lock; /* guards all below */
    size_t size;
    size_t start, end; /* of what waits; equal: nothing */
    size_t wrap;       /* end < start: the records from start end there */
    struct frame_queue_counters counters;
    uint8_t bytes[];
};

int frame_queue_create(struct frame_queue **out, size_t bytes)
{
    struct frame_queue *q = malloc(sizeof(*q) + bytes);

    if (!q)
        return -ENOMEM;
    memset(q, 0, sizeof(*q)); /* the room itself is touched when it is used */
    pthread_mutex_init(&q->lock, NULL);
    q->size = bytes;
    *out = q;
    return 0;
}

void frame_queue_destroy(struct frame_queue *q)
{
    if (!q)
        return;
    pthread_mutex_destroy(&q->lock);
    free(q);
}

/* Room for so many bytes in one piece, or NULL. An end that reached start would mean: empty. */
static uint8_t *reserve_locked(struct frame_queue *q, size_t size)
{
    if (q->start == q->end)
        q->start = q->end = 0;
    if (q->end >= q->start) {
        if (size <= q->size - q->end)
            return q->bytes + q->end;
        if (size >= q->start)
            return NULL;
        q->wrap = q->end;
        q->end = 0;
        return q->bytes;
    }
    return size < q->start - q->end ? q->bytes + q->end : NULL;
}

static uint8_t *add_locked(struct frame_queue *q, size_t size)
{
    uint8_t *to = reserve_locked(q, size);

    if (!to) {
        q->counters.dropped++;
        return NULL;
    }
    q->end += size;
    q->counters.frames++;
    q->counters.bytes += size;
    return to;
}

void frame_queue_put(struct frame_queue *q, const struct net_frame *frame)
{
    const struct frame_record record = {
        .length = htole32((uint32_t)frame->length),
        .flags = (frame->needs_csum ? FRAME_NEEDS_CSUM : 0) |
                 (frame->csum_valid ? FRAME_CSUM_VALID : 0),
        .gso_type = frame->gso_type,
        .gso_size = htole16(frame->gso_size),
        .hdr_len = htole16(frame->hdr_len),
        .csum_start = htole16(frame->csum_start),
        .csum_offset = htole16(frame->csum_offset),
    };
    uint8_t *to;

    pthread_mutex_lock(&q->lock);
    to = add_locked(q, sizeof(record) + frame->length);
    if (to) {
        memcpy(to, &record, sizeof(record));
        net_frame_copy(frame, to + sizeof(record));
    }
    pthread_mutex_unlock(&q->lock);
}

/* Bytes of the record at `at`, of which `left` are there; 0: it is none. */
static size_t record_bytes(const uint8_t *at, size_t left)
{
    struct frame_record record;
    size_t length;

    if (left < sizeof(record))
        return 0;
    memcpy(&record, at, sizeof(record));
    length = le32toh(record.length);
    if (length < NET_FRAME_MIN || length > NET_FRAME_MAX || length > left - sizeof(record))
        return 0;
    return sizeof(record) + length;
}

int frame_queue_put_records(struct frame_queue *q, const void *records, size_t size)
{
    const uint8_t *at = records;
    size_t left = size, n = 0;

    pthread_mutex_lock(&q->lock);
    for (; left > 0; at += n, left -= n) {
        uint8_t *to;

        n = record_bytes(at, left);
        if (n == 0)
            break;
        to = add_locked(q, n);
        if (to)
            memcpy(to, at, n);
    }
    pthread_mutex_unlock(&q->lock);
    return left > 0 ? -EBADMSG : 0;
}

/* The record that waits longest, or NULL. */
static uint8_t *front_locked(struct frame_queue *q, size_t *size)
{
    if (q->start == q->end)
        return NULL;
    if (q->end < q->start && q->start == q->wrap) {
        q->start = 0;
        if (q->end == 0)
            return NULL;
    }
    *size = record_bytes(q->bytes + q->start, q->size - q->start);
    return q->bytes + q->start;
}

size_t frame_queue_take_records(struct frame_queue *q, void *to, size_t size)
{
    size_t taken = 0, n;
    const uint8_t *from;

    pthread_mutex_lock(&q->lock);
    while ((from = front_locked(q, &n)) && n <= size - taken) {
        memcpy((uint8_t *)to + taken, from, n);
        taken += n;
        q->start += n;
    }
    pthread_mutex_unlock(&q->lock);
    return taken;
}

bool frame_queue_front(struct frame_queue *q, struct net_frame *frame, struct iovec *piece)
{
    struct frame_record record;
    uint8_t *at;
    size_t n;

    pthread_mutex_lock(&q->lock);
    at = front_locked(q, &n);
    pthread_mutex_unlock(&q->lock);
    if (!at)
        return false;
    memcpy(&record, at, sizeof(record));
    *piece = (struct iovec){at + sizeof(record), n - sizeof(record)};
    *frame = (struct net_frame){
        .iov = piece,
        .iovcnt = 1,
        .length = piece->iov_len,
        .needs_csum = record.flags & FRAME_NEEDS_CSUM,
        .csum_valid = record.flags & FRAME_CSUM_VALID,
        .gso_type = record.gso_type,
        .gso_size = le16toh(record.gso_size),
        .hdr_len = le16toh(record.hdr_len),
        .csum_start = le16toh(record.csum_start),
        .csum_offset = le16toh(record.csum_offset),
    };
    return true;
}

void frame_queue_pop(struct frame_queue *q)
{
    size_t n;

    pthread_mutex_lock(&q->lock);
    if (front_locked(q, &n))
        q->start += n;
    pthread_mutex_unlock(&q->lock);
}

void frame_queue_drop(struct frame_queue *q)
{
    size_t n;

    pthread_mutex_lock(&q->lock);
    while (front_locked(q, &n)) {
        q->start += n;
        q->counters.dropped++;
    }
    pthread_mutex_unlock(&q->lock);
}

void frame_queue_get_counters(struct frame_queue *q, struct frame_queue_counters *counters)
{
    pthread_mutex_lock(&q->lock);
    *counters = q->counters;
    pthread_mutex_unlock(&q->lock);
}
