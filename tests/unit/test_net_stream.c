/*
 * Stream ports: two of them with a socket between, or one and a peer that writes bytes by hand.
 */
#include <criterion/criterion.h>
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "net/port.h"
#include "net/stream_port.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define DEADLINE 20000000000ull
#define KEPT 4096

/* What is plugged into a stream port: remembers what came. */
struct end {
    struct net_port port;
    unsigned frames, refusals, readied;
    size_t lengths[KEPT];
    uint8_t firsts[KEPT]; /* the first byte of each */
    bool refuses;
    unsigned wanted; /* for await() */
};

static struct loop *loop;
static struct stream_port *one, *two;
static struct end a, b;
static char folder[64], path[80], last_line[1024];

static void remember(enum log_level level, const char *line)
{
    (void)level;
    snprintf(last_line, sizeof(last_line), "%s", line);
}

static unsigned deliver(struct net_port *port, const struct net_frame *frames, unsigned n)
{
    struct end *end = (struct end *)port;

    if (end->refuses) {
        end->refusals++;
        return 0;
    }
    for (unsigned i = 0; i < n && end->frames < KEPT; i++) {
        end->lengths[end->frames] = frames[i].length;
        end->firsts[end->frames++] = *(const uint8_t *)frames[i].iov[0].iov_base;
    }
    return n;
}

static void ready(struct net_port *port)
{
    ((struct end *)port)->readied++;
}

static const struct net_port_ops ops = {.deliver = deliver, .ready = ready};

static void set_up(void)
{
    log_set_sink(remember);
    strcpy(folder, "/tmp/ferry-test-XXXXXX");
    cr_assert_not_null(mkdtemp(folder));
    setenv("XDG_RUNTIME_DIR", folder, 1);
    snprintf(path, sizeof(path), "%s/socket", folder);
    cr_assert_eq(loop_create(&loop, 16), 0);
    a = (struct end){.port = {.ops = &ops, .name = "a"}};
    b = (struct end){.port = {.ops = &ops, .name = "b"}};
}

static void tear_down(void)
{
    char command[200];

    stream_port_destroy(one);
    stream_port_destroy(two);
    loop_destroy(loop);
    snprintf(command, sizeof(command), "rm -rf %s", folder);
    cr_assert_eq(system(command), 0);
}

TestSuite(stream, .init = set_up, .fini = tear_down, .timeout = 60);

static void create(struct stream_port **out, struct end *end, struct stream_config config)
{
    config.name = "net0";
    config.reconnect = 1;
    if (config.path || config.address)
        config.fd = -1;
    cr_assert_eq(stream_port_create(out, loop, &config), 0);
    net_port_connect(&end->port, stream_port(*out));
}

static bool both_connected(void *arg)
{
    (void)arg;
    return stream_port_connected(one) && stream_port_connected(two);
}

static bool has_frames(void *arg)
{
    const struct end *end = arg;

    return end->frames >= end->wanted;
}

static void await(struct end *end, unsigned wanted)
{
    end->wanted = wanted;
    cr_assert_eq(loop_run_until(loop, has_frames, end, DEADLINE), 0);
}

static unsigned send_frames(struct end *end, unsigned n, size_t length, uint8_t first)
{
    static uint8_t bytes[NET_FRAME_MAX];
    struct iovec iov[NET_BATCH];
    struct net_frame frames[NET_BATCH];

    bytes[0] = first;
    for (unsigned i = 0; i < n; i++) {
        iov[i] = (struct iovec){bytes, length};
        frames[i] = (struct net_frame){.iov = &iov[i], .iovcnt = 1, .length = length};
    }
    return net_port_send(&end->port, frames, n);
}

static void join(void)
{
    create(&one, &a, (struct stream_config){.path = path, .server = true});
    create(&two, &b, (struct stream_config){.path = path});
    cr_assert_eq(loop_run_until(loop, both_connected, NULL, DEADLINE), 0);
}

/* One port, and a socket in the hand of the test. */
static int join_by_hand(void)
{
    int ends[2];

    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    create(&one, &a, (struct stream_config){.fd = ends[0]});
    return ends[1];
}

Test(stream, frames_cross_in_both_directions)
{
    join();
    cr_assert_eq(send_frames(&a, 3, 60, 0xA1), 3);
    cr_assert_eq(send_frames(&b, 2, 1514, 0xB1), 2);
    await(&b, 3);
    await(&a, 2);
    cr_assert_eq(b.lengths[2], 60);
    cr_assert_eq(b.firsts[0], 0xA1);
    cr_assert_eq(a.lengths[1], 1514);
    cr_assert_eq(a.firsts[1], 0xB1);
}

Test(stream, the_longest_frame_crosses)
{
    join();
    cr_assert_eq(send_frames(&a, 1, NET_FRAME_MAX, 7), 1);
    await(&b, 1);
    cr_assert_eq(b.lengths[0], NET_FRAME_MAX);
}

Test(stream, frames_cross_by_tcp)
{
    char address[32];

    snprintf(address, sizeof(address), "127.0.0.1:%d", 20000 + (int)getpid() % 12000);
    create(&one, &a, (struct stream_config){.address = address, .server = true});
    create(&two, &b, (struct stream_config){.address = address});
    cr_assert_eq(loop_run_until(loop, both_connected, NULL, DEADLINE), 0);
    cr_assert_eq(send_frames(&b, 1, 60, 1), 1);
    await(&a, 1);
}

Test(stream, the_framing_is_a_length_of_four_bytes_before_each_frame)
{
    int peer = join_by_hand();
    uint8_t got[64 + 4], frame[4 + 20] = {0, 0, 0, 20, 0x5A};

    cr_assert_eq(send_frames(&a, 1, 64, 0x77), 1);
    cr_assert_eq(recv(peer, got, sizeof(got), MSG_WAITALL), sizeof(got));
    cr_assert_arr_eq(got, ((uint8_t[]){0, 0, 0, 64, 0x77}), 5);
    cr_assert_eq(send(peer, frame, sizeof(frame), 0), sizeof(frame));
    await(&a, 1);
    cr_assert_eq(a.lengths[0], 20);
    cr_assert_eq(a.firsts[0], 0x5A);
    close(peer);
}

Test(stream, a_frame_that_comes_byte_by_byte_is_whole)
{
    int peer = join_by_hand();
    const uint8_t bytes[4 + 14] = {0, 0, 0, 14, 0x11};

    for (size_t i = 0; i < sizeof(bytes); i++) {
        cr_assert_eq(a.frames, 0);
        cr_assert_eq(send(peer, bytes + i, 1, 0), 1);
        (void)loop_run_until(loop, has_frames, &(struct end){.wanted = 1}, 1);
    }
    await(&a, 1);
    cr_assert_eq(a.lengths[0], 14);
    close(peer);
}

static bool one_is_gone(void *arg)
{
    (void)arg;
    return !stream_port_connected(one);
}

Test(stream, a_length_that_no_frame_has_ends_the_connection)
{
    int peer = join_by_hand();
    const uint32_t length = htonl(NET_FRAME_MAX + 1);
    struct stream_counters counters;

    cr_assert_eq(send(peer, &length, sizeof(length), 0), sizeof(length));
    cr_assert_eq(loop_run_until(loop, one_is_gone, NULL, DEADLINE), 0);
    stream_port_get_counters(one, &counters);
    cr_assert_eq(counters.malformed, 1);
    cr_assert_str_eq(last_line, "net0: the peer is gone: it sent a length that no frame has");
    close(peer);
}

Test(stream, a_frame_that_is_too_short_is_dropped_and_counted)
{
    int peer = join_by_hand();
    const uint8_t bytes[4 + 13 + 4 + 14] = {[3] = 13, [20] = 14, [21] = 0x22};
    struct stream_counters counters;

    cr_assert_eq(send(peer, bytes, sizeof(bytes), 0), sizeof(bytes));
    await(&a, 1);
    cr_assert_eq(a.firsts[0], 0x22);
    stream_port_get_counters(one, &counters);
    cr_assert_eq(counters.malformed, 1);
    close(peer);
}

Test(stream, frames_for_nobody_are_dropped_and_counted)
{
    struct stream_counters counters;

    create(&one, &a, (struct stream_config){.path = path, .server = true});
    cr_assert_eq(send_frames(&a, 5, 60, 0), 5);
    stream_port_get_counters(one, &counters);
    cr_assert_eq(counters.unconnected, 5);
}

static bool is_readied(void *arg)
{
    return ((const struct end *)arg)->readied > 0;
}

/* Fills the socket, reads it empty, and counts what is in it: no frame is lost, cut or twice there. */
Test(stream, a_peer_that_does_not_read_holds_frames_back_whole)
{
    int peer = join_by_hand();
    static uint8_t got[4 + 9000];
    unsigned taken = 0, n;

    while ((n = send_frames(&a, 8, 9000, (uint8_t)taken)) == 8)
        taken += n;
    taken += n;
    cr_assert_gt(taken, 0);
    cr_assert_eq(send_frames(&a, 1, 60, 0), 0, "still no room");
    for (unsigned i = 0; i < taken; i++) {
        size_t at = 0;

        while (at < sizeof(got)) {
            ssize_t size = recv(peer, got + at, sizeof(got) - at, MSG_DONTWAIT);

            if (size > 0)
                at += (size_t)size;
            else /* the rest of the frame in which the socket stopped is sent by the loop */
                (void)loop_run_until(loop, has_frames, &(struct end){.wanted = 1}, 1000000);
        }
        cr_assert_arr_eq(got, ((uint8_t[]){0, 0, 0x23, 0x28}), 4);
    }
    cr_assert_eq(loop_run_until(loop, is_readied, &a, DEADLINE), 0);
    cr_assert_eq(send_frames(&a, 1, 60, 0), 1);
    close(peer);
}

/* passt takes what there is, and forgets a length of which it sees but half. */
Test(stream, a_unix_socket_that_is_full_holds_short_frames_whole)
{
    enum { LENGTH = 1514, RECORD = 4 + LENGTH };
    int peer = join_by_hand();
    uint8_t got[RECORD];
    unsigned taken = 0, whole = 0;

    while (send_frames(&a, NET_BATCH, LENGTH, 0) == NET_BATCH)
        taken += NET_BATCH;
    cr_assert_gt(taken, NET_BATCH);
    /* None of what the port keeps comes now: the loop does not run. */
    for (;;) {
        ssize_t size = recv(peer, got, sizeof(got), MSG_DONTWAIT);

        if (size < 0)
            break;
        cr_assert_eq(size, RECORD, "%zd bytes behind %u frames", size, whole);
        whole++;
    }
    cr_assert_eq(errno, EAGAIN);
    cr_assert_lt(whole, taken, "the socket was full");
    close(peer);
}

Test(stream, short_frames_are_not_refused_behind_one_in_which_the_socket_stopped)
{
    unsigned sent = 0, taken;

    join();
    do {
        taken = send_frames(&a, NET_BATCH, 1500, 0);
        sent += taken;
        cr_assert(taken == NET_BATCH || taken == 0, "a batch was taken in part");
        cr_assert_lt(sent, KEPT);
    } while (taken > 0);
    await(&b, sent);
    cr_assert_eq(b.lengths[sent - 1], 1500);
}

static bool is_refused(void *arg)
{
    return ((const struct end *)arg)->refusals > 0;
}

Test(stream, a_receiver_without_room_gets_its_frames_later)
{
    int peer = join_by_hand();
    const uint8_t bytes[4 + 14] = {[3] = 14, [4] = 0x33};

    a.refuses = true;
    cr_assert_eq(send(peer, bytes, sizeof(bytes), 0), sizeof(bytes));
    cr_assert_eq(loop_run_until(loop, is_refused, &a, DEADLINE), 0);
    a.refuses = false;
    net_port_ready(&a.port);
    cr_assert_eq(a.frames, 1);
    cr_assert_eq(a.firsts[0], 0x33);
    close(peer);
}

/* Nothing is read while the receiver has no room, so nothing tells that the peer is gone. */
Test(stream, what_waits_for_a_peer_that_went_is_given_up_while_the_receiver_has_no_room)
{
    static const uint8_t record[4 + 60] = {0, 0, 0, 60};
    struct stream_counters counters;
    int fd = join_by_hand();

    a.refuses = true;
    cr_assert_eq(write(fd, record, sizeof(record)), sizeof(record));
    cr_assert_eq(loop_run_until(loop, is_refused, &a, DEADLINE), 0);
    while (send_frames(&a, NET_BATCH, 1500, 0) == NET_BATCH)
        ;
    close(fd);
    cr_assert_eq(loop_run_until(loop, is_readied, &a, DEADLINE), 0);
    cr_assert_eq(send_frames(&a, 1, 60, 0), 1, "it is still held back");
    stream_port_get_counters(one, &counters);
    cr_assert_geq(counters.unconnected, 2);
}

Test(stream, a_peer_that_went_is_connected_to_again)
{
    join();
    stream_port_destroy(one);
    one = NULL;
    a.port.peer = NULL;
    create(&one, &a, (struct stream_config){.path = path, .server = true});
    cr_assert_eq(loop_run_until(loop, both_connected, NULL, DEADLINE), 0);
    cr_assert_eq(send_frames(&b, 1, 60, 9), 1);
    await(&a, 1);
}

Test(stream, a_server_takes_the_next_peer)
{
    join();
    stream_port_destroy(two);
    two = NULL;
    b.port.peer = NULL;
    cr_assert_eq(loop_run_until(loop, one_is_gone, NULL, DEADLINE), 0);
    create(&two, &b, (struct stream_config){.path = path});
    cr_assert_eq(loop_run_until(loop, both_connected, NULL, DEADLINE), 0);
    cr_assert_eq(send_frames(&a, 1, 60, 9), 1);
    await(&b, 1);
}

Test(stream, the_name_is_gone_with_the_server)
{
    create(&one, &a, (struct stream_config){.path = path, .server = true});
    cr_assert_eq(access(path, F_OK), 0);
    stream_port_destroy(one);
    one = NULL;
    cr_assert_eq(access(path, F_OK), -1);
}

Test(stream, a_name_that_is_taken_is_refused_and_stays)
{
    const struct stream_config config = {
        .name = "net0", .path = path, .fd = -1, .server = true, .reconnect = 1};
    char expected[200];

    create(&two, &b, (struct stream_config){.path = path, .server = true});
    cr_assert_eq(stream_port_create(&one, loop, &config), -EADDRINUSE);
    snprintf(expected, sizeof(expected),
             "net0: %s is there already: another program listens there, or left it", path);
    cr_assert_str_eq(last_line, expected);
    cr_assert_eq(access(path, F_OK), 0);
}
