/*
 * Ports: plugging, sending with its counters, copying a frame out of its pieces.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "net/port.h"
#include "net/receive_filter.h"

/* An end that remembers what happened to it. */
struct end {
    struct net_port port;
    unsigned room;            /* frames that it takes */
    unsigned delivered, flushed, readied, told, plugged;
    uint8_t last[64];
};

static unsigned end_deliver(struct net_port *port, const struct net_frame *frames, unsigned n)
{
    struct end *end = (struct end *)port;
    unsigned taken = n < end->room ? n : end->room;

    end->delivered += taken;
    end->room -= taken;
    if (taken > 0)
        net_frame_copy(&frames[taken - 1], end->last);
    return taken;
}

static void end_flush(struct net_port *port)
{
    ((struct end *)port)->flushed++;
}

static void end_ready(struct net_port *port)
{
    ((struct end *)port)->readied++;
}

static void end_filter_changed(struct net_port *port, const struct net_receive_filter *filter)
{
    ((struct end *)port)->told += filter->mac[5];
}

static void end_plugged(struct net_port *port)
{
    ((struct end *)port)->plugged++;
    cr_assert_not_null(port->peer->peer);
}

static const struct net_port_ops end_ops = {
    .deliver = end_deliver,
    .flush = end_flush,
    .ready = end_ready,
    .filter_changed = end_filter_changed,
    .plugged = end_plugged,
};
static const struct net_port_ops plain_ops = {.deliver = end_deliver};

static struct end a, b;

static void plug(void)
{
    a = (struct end){.port = {.ops = &end_ops, .name = "a"}, .room = 100};
    b = (struct end){.port = {.ops = &end_ops, .name = "b"}, .room = 100};
    net_port_connect(&a.port, &b.port);
}

TestSuite(port, .init = plug, .timeout = 20);

static uint8_t bytes[20] = "abcdefghijklmnopqrst";
static const struct iovec whole = {bytes, sizeof(bytes)};
static const struct net_frame frame = {.iov = &whole, .iovcnt = 1, .length = sizeof(bytes)};

Test(port, what_one_end_sends_the_other_gets)
{
    cr_assert_eq(net_port_send(&a.port, &frame, 1), 1);
    cr_assert_eq(b.delivered, 1);
    cr_assert_arr_eq(b.last, bytes, sizeof(bytes));
    cr_assert_eq(a.delivered, 0);
}

Test(port, frames_taken_are_counted_at_their_sender)
{
    const struct net_frame two[2] = {frame, frame};

    net_port_send(&a.port, &frame, 1);
    cr_assert_eq(net_port_send(&a.port, two, 2), 2);
    cr_assert_eq(a.port.sent.frames, 3);
    cr_assert_eq(a.port.sent.bytes, 3 * sizeof(bytes));
    cr_assert_eq(a.port.sent.dropped, 0);
    cr_assert_eq(b.port.sent.frames, 0);
}

Test(port, frames_refused_for_want_of_room_count_only_when_their_sender_drops_them)
{
    const struct net_frame three[3] = {frame, frame, frame};

    b.room = 1;
    cr_assert_eq(net_port_send(&a.port, three, 3), 1);
    cr_assert_eq(a.port.sent.frames, 1);
    cr_assert_eq(a.port.sent.bytes, sizeof(bytes));
    cr_assert_eq(a.port.sent.dropped, 0);
    net_port_drop(&a.port, 2);
    cr_assert_eq(a.port.sent.dropped, 2);
}

Test(port, an_unplugged_end_drops_and_counts)
{
    const struct net_frame two[2] = {frame, frame};

    net_port_disconnect(&b.port);
    cr_assert_eq(net_port_send(&a.port, two, 2), 2);
    cr_assert_eq(a.port.sent.dropped, 2);
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

Test(port, both_ends_hear_that_they_are_plugged_in)
{
    cr_assert_eq(a.plugged, 1);
    cr_assert_eq(b.plugged, 1);
}

Test(port, the_peer_is_told_what_an_end_wants_to_receive)
{
    const struct net_receive_filter filter = {.mac = {2, 0, 0, 0, 0, 7}};

    net_port_tell_filter(&a.port, &filter);
    cr_assert_eq(b.told, 7);
    cr_assert_eq(a.told, 0);
    net_port_disconnect(&a.port);
    net_port_tell_filter(&a.port, &filter);
    cr_assert_eq(b.told, 7);
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
