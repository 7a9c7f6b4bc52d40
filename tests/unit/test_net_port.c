/*
 * Ports: plugging, sending with its counters, copying a frame out of its pieces.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "net/port.h"

/* An end that remembers what happened to it. */
struct end {
    struct net_port port;
    int result;               /* what deliver() answers */
    unsigned delivered, flushed, readied;
    uint8_t last[64];
};

static int end_deliver(struct net_port *port, const struct net_frame *frame)
{
    struct end *end = (struct end *)port;

    end->delivered++;
    net_frame_copy(frame, end->last);
    return end->result;
}

static void end_flush(struct net_port *port)
{
    ((struct end *)port)->flushed++;
}

static void end_ready(struct net_port *port)
{
    ((struct end *)port)->readied++;
}

static const struct net_port_ops end_ops = {
    .deliver = end_deliver,
    .flush = end_flush,
    .ready = end_ready,
};
static const struct net_port_ops plain_ops = {.deliver = end_deliver};

static struct end a, b;

static void plug(void)
{
    a = (struct end){.port = {.ops = &end_ops, .name = "a"}};
    b = (struct end){.port = {.ops = &end_ops, .name = "b"}};
    net_port_connect(&a.port, &b.port);
}

TestSuite(port, .init = plug, .timeout = 20);

static uint8_t bytes[20] = "abcdefghijklmnopqrst";
static const struct iovec whole = {bytes, sizeof(bytes)};
static const struct net_frame frame = {.iov = &whole, .iovcnt = 1, .length = sizeof(bytes)};

Test(port, what_one_end_sends_the_other_gets)
{
    cr_assert_eq(net_port_send(&a.port, &frame), 0);
    cr_assert_eq(b.delivered, 1);
    cr_assert_arr_eq(b.last, bytes, sizeof(bytes));
    cr_assert_eq(a.delivered, 0);
}

Test(port, a_frame_taken_is_counted_at_its_sender)
{
    net_port_send(&a.port, &frame);
    net_port_send(&a.port, &frame);
    cr_assert_eq(a.port.sent.frames, 2);
    cr_assert_eq(a.port.sent.bytes, 2 * sizeof(bytes));
    cr_assert_eq(a.port.sent.dropped, 0);
    cr_assert_eq(b.port.sent.frames, 0);
}

Test(port, a_malformed_frame_counts_as_dropped)
{
    b.result = -EINVAL;
    cr_assert_eq(net_port_send(&a.port, &frame), -EINVAL);
    cr_assert_eq(a.port.sent.frames, 0);
    cr_assert_eq(a.port.sent.dropped, 1);
}

Test(port, a_frame_refused_for_want_of_room_counts_only_when_its_sender_drops_it)
{
    b.result = -EAGAIN;
    cr_assert_eq(net_port_send(&a.port, &frame), -EAGAIN);
    cr_assert_eq(a.port.sent.frames, 0);
    cr_assert_eq(a.port.sent.dropped, 0);
    net_port_drop(&a.port);
    cr_assert_eq(a.port.sent.dropped, 1);
}

Test(port, an_unplugged_end_drops_and_counts)
{
    net_port_disconnect(&b.port);
    cr_assert_eq(net_port_send(&a.port, &frame), 0);
    cr_assert_eq(a.port.sent.dropped, 1);
    cr_assert_eq(a.port.sent.frames, 0);
    cr_assert_eq(b.delivered, 0);
}

Test(port, either_end_unplugs_both)
{
    net_port_disconnect(&a.port);
    cr_assert_null(a.port.peer);
    cr_assert_null(b.port.peer);
}

Test(port, who_is_unplugged_by_its_peer_may_send_what_it_held_back)
{
    net_port_disconnect(&a.port);
    cr_assert_eq(b.readied, 1);
    cr_assert_eq(a.readied, 0);
}

Test(port, unplugging_twice_does_no_harm)
{
    net_port_disconnect(&a.port);
    net_port_disconnect(&a.port);
    net_port_connect(&a.port, &b.port);
    cr_assert_eq(a.port.peer, &b.port);
}

Test(port, flush_and_ready_reach_the_peer)
{
    net_port_flush(&a.port);
    net_port_ready(&b.port);
    cr_assert_eq(b.flushed, 1);
    cr_assert_eq(b.readied, 0);
    cr_assert_eq(a.flushed, 0);
    cr_assert_eq(a.readied, 1);
}

Test(port, flush_and_ready_without_anyone_to_hear_them_do_nothing)
{
    b.port.ops = &plain_ops;
    net_port_flush(&a.port);
    net_port_ready(&a.port);
    net_port_disconnect(&a.port);
    net_port_flush(&a.port);
    net_port_ready(&a.port);
    cr_assert_eq(b.flushed + b.readied, 0);
}

Test(port, a_frame_is_copied_out_of_its_pieces_in_order)
{
    const struct iovec pieces[] = {{bytes, 3}, {bytes + 3, 0}, {bytes + 3, 17}};
    const struct net_frame split = {.iov = pieces, .iovcnt = 3, .length = sizeof(bytes)};
    uint8_t copy[sizeof(bytes) + 1] = {[sizeof(bytes)] = 0x5A};

    net_frame_copy(&split, copy);
    cr_assert_arr_eq(copy, bytes, sizeof(bytes));
    cr_assert_eq(copy[sizeof(bytes)], 0x5A);
}
