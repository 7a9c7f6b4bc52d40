/*
 * The queue of frames for somebody who is not there yet: order, room, and records of another process.
 */
#include <criterion/criterion.h>
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "net/frame_queue.h"

#define ROOM FRAME_RECORD_MAX
#define RECORD sizeof(struct frame_record)

static struct frame_queue *queue;

static void begin(void)
{
    cr_assert_eq(frame_queue_create(&queue, ROOM), 0);
}

static void end(void)
{
    frame_queue_destroy(queue);
}

TestSuite(net_frame_queue, .init = begin, .fini = end);

static void put(uint8_t byte, size_t length)
{
    static uint8_t bytes[NET_FRAME_MAX];
    const struct iovec pieces[] = {{bytes, 10}, {bytes + 10, length - 10}};
    const struct net_frame frame = {.iov = pieces, .iovcnt = 2, .length = length};

    memset(bytes, byte, length);
    frame_queue_put(queue, &frame);
}

/* The first byte of the frame at the front, which is taken away; -1: there is none. */
static int take(size_t length)
{
    struct net_frame frame;
    struct iovec piece;
    int byte;

    if (!frame_queue_front(queue, &frame, &piece))
        return -1;
    cr_assert_eq(frame.length, length);
    byte = ((const uint8_t *)piece.iov_base)[length - 1];
    frame_queue_pop(queue);
    return byte;
}

static uint64_t dropped(void)
{
    struct frame_queue_counters counters;

    frame_queue_get_counters(queue, &counters);
    return counters.dropped;
}

Test(net_frame_queue, frames_come_out_in_their_order)
{
    for (unsigned i = 0; i < 10; i++)
        put((uint8_t)i, 60 + i);
    for (unsigned i = 0; i < 10; i++)
        cr_assert_eq(take(60 + i), (int)i);
    cr_assert_eq(take(0), -1);
}

Test(net_frame_queue, the_order_is_kept_for_ever_in_a_ring)
{
    unsigned in = 0, out = 0;

    for (unsigned round = 0; round < 2000; round++) {
        for (unsigned i = 0; i < 1 + round % 7; i++, in++)
            put((uint8_t)in, 1000 + in % 500);
        while (in - out > 5) {
            cr_assert_eq(take(1000 + out % 500), (int)(out & 0xFF));
            out++;
        }
    }
    cr_assert_eq(dropped(), 0);
}

Test(net_frame_queue, what_finds_no_room_is_dropped_and_counted_and_the_rest_stays)
{
    unsigned fit = (unsigned)(ROOM / (RECORD + 1000));

    for (unsigned i = 0; i < fit + 3; i++)
        put((uint8_t)i, 1000);
    cr_assert_eq(dropped(), 3);
    for (unsigned i = 0; i < fit; i++)
        cr_assert_eq(take(1000), (int)(i & 0xFF));
    cr_assert_eq(take(0), -1);
}

Test(net_frame_queue, the_longest_frame_fits_alone)
{
    put(7, NET_FRAME_MAX);
    put(8, 60);
    cr_assert_eq(dropped(), 1);
    cr_assert_eq(take(NET_FRAME_MAX), 7);
}

Test(net_frame_queue, metadata_survive_the_way_as_records)
{
    static const uint8_t bytes[100];
    const struct iovec piece = {(void *)(uintptr_t)bytes, sizeof(bytes)};
    const struct net_frame frame = {.iov = &piece, .iovcnt = 1, .length = 100, .needs_csum = true,
                                    .gso_type = NET_GSO_TCP4, .csum_start = 34, .csum_offset = 16,
                                    .gso_size = 1448, .hdr_len = 54};
    uint8_t records[RECORD + 100];
    struct net_frame got;
    struct iovec there;

    frame_queue_put(queue, &frame);
    cr_assert_eq(frame_queue_take_records(queue, records, sizeof(records)), sizeof(records));
    cr_assert_eq(frame_queue_put_records(queue, records, sizeof(records)), 0);
    cr_assert(frame_queue_front(queue, &got, &there));
    cr_assert(got.needs_csum && !got.csum_valid && got.gso_type == NET_GSO_TCP4);
    cr_assert(got.csum_start == 34 && got.csum_offset == 16 && got.gso_size == 1448);
    cr_assert_eq(got.hdr_len, 54);
}

Test(net_frame_queue, only_whole_records_are_taken)
{
    uint8_t records[200];

    put(1, 60);
    put(2, 60);
    put(3, 60);
    cr_assert_eq(frame_queue_take_records(queue, records, sizeof(records)), 2 * (RECORD + 60));
    cr_assert_eq(take(60), 3);
}

static int put_record(uint32_t length, size_t size)
{
    uint8_t bytes[200] = {0};
    const uint32_t wire = htole32(length);

    memcpy(bytes, &wire, sizeof(wire));
    return frame_queue_put_records(queue, bytes, size);
}

Test(net_frame_queue, records_that_are_no_whole_frames_are_refused)
{
    cr_assert_eq(put_record(60, RECORD + 59), -EBADMSG);
    cr_assert_eq(put_record(60, RECORD - 1), -EBADMSG);
    cr_assert_eq(put_record(NET_FRAME_MIN - 1, sizeof(uint8_t[200])), -EBADMSG);
    cr_assert_eq(put_record(NET_FRAME_MAX + 1, sizeof(uint8_t[200])), -EBADMSG);
    cr_assert_eq(put_record(UINT32_MAX, sizeof(uint8_t[200])), -EBADMSG);
    cr_assert_eq(take(0), -1);
}

Test(net_frame_queue, records_before_a_bad_one_are_kept)
{
    /* One good record, then one whose length is 0. */
    cr_assert_eq(put_record(60, RECORD + 60 + RECORD), -EBADMSG);
    cr_assert_eq(take(60), 0);
    cr_assert_eq(take(0), -1);
}

Test(net_frame_queue, what_is_given_up_counts_as_dropped)
{
    put(1, 60);
    put(2, 60);
    frame_queue_drop(queue);
    cr_assert_eq(dropped(), 2);
    cr_assert_eq(take(0), -1);
}
