/*
 * Any bytes as records of frames that came late: what a queue gives out must be what a naive reader
 * finds before the first record that is none, and each frame that passes the check of its metadata is
 * one that a switch may be given. The first byte chooses how the queue is emptied meanwhile.
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "net/frame_queue.h"
#include "net/offload.h"
#include "tests/fuzz/fuzz.h"

#define INPUT_MAX 200000u

/* The next record of a naive reader, or NULL. */
static const uint8_t *next_record(const uint8_t **at, const uint8_t *end, uint32_t *length)
{
    const uint8_t *record = *at;

    if ((size_t)(end - record) < sizeof(struct frame_record))
        return NULL;
    memcpy(length, record, 4);
    *length = le32toh(*length);
    if (*length < NET_FRAME_MIN || *length > NET_FRAME_MAX ||
        *length > (size_t)(end - record) - sizeof(struct frame_record))
        return NULL;
    *at = record + sizeof(struct frame_record) + *length;
    return record;
}

static void check_frame(const struct net_frame *frame, const uint8_t *record, uint32_t length)
{
    uint8_t headers[NET_HEADERS_MAX];
    struct net_frame copy = *frame;
    size_t copied;

    FUZZ_CHECK(frame->length == length && frame->iovcnt == 1);
    FUZZ_CHECK(memcmp(frame->iov[0].iov_base, record + sizeof(struct frame_record), length) == 0);
    if (net_offload_check(&copy, headers, &copied) == 0)
        FUZZ_CHECK(copied <= sizeof(headers) && copied <= length);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t moved[INPUT_MAX + FRAME_RECORD_MAX];
    struct frame_queue *queue, *second;
    const uint8_t *at = data + 1, *record;
    struct net_frame frame;
    struct iovec piece;
    uint32_t length;
    size_t n;
    int err;

    if (size < 1 || size > INPUT_MAX)
        return 0;
    FUZZ_CHECK(frame_queue_create(&queue, INPUT_MAX + FRAME_RECORD_MAX) == 0);
    FUZZ_CHECK(frame_queue_create(&second, INPUT_MAX + FRAME_RECORD_MAX) == 0);
    err = frame_queue_put_records(queue, data + 1, size - 1);
    n = frame_queue_take_records(queue, moved, data[0] * 256u);
    FUZZ_CHECK(frame_queue_put_records(second, moved, n) == 0);
    n = frame_queue_take_records(queue, moved, sizeof(moved));
    FUZZ_CHECK(frame_queue_put_records(second, moved, n) == 0);
    while ((record = next_record(&at, data + size, &length))) {
        FUZZ_CHECK(frame_queue_front(second, &frame, &piece));
        check_frame(&frame, record, length);
        frame_queue_pop(second);
    }
    FUZZ_CHECK(!frame_queue_front(second, &frame, &piece));
    FUZZ_CHECK((err == 0) == (at == data + size));
    frame_queue_destroy(queue);
    frame_queue_destroy(second);
    return 0;
}
