/*
 * Polls of sockets that come, go and are numbered alike, on the real event loop.
 */
#include <criterion/criterion.h>
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/nat_polls.h"
#include "vmm/util/loop.h"

#define DEADLINE_NS 20000000000ull

static struct loop *loop;
static struct nat_polls polls;

static void set_up(void)
{
    signal(SIGPIPE, SIG_IGN);
    cr_assert_eq(loop_create(&loop, 16), 0);
    nat_polls_init(&polls, loop);
}

static bool idle(void *arg)
{
    return nat_polls_idle(arg);
}

static void tear_down(void)
{
    nat_polls_close_all(&polls);
    cr_assert_eq(loop_run_until(loop, idle, &polls, DEADLINE_NS), 0);
    nat_polls_fini(&polls);
    loop_destroy(loop);
}

TestSuite(nat_polls, .init = set_up, .fini = tear_down, .timeout = 60);

/* ours[0] is what is polled, ours[1] its other end. */
static void make_pair(int ours[2])
{
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ours), 0);
}

static bool fired(void *arg)
{
    return nat_polls_fired(arg);
}

static void wait_fired(void)
{
    cr_assert_eq(loop_run_until(loop, fired, &polls, DEADLINE_NS), 0, "nothing fired");
}

static bool mark_reached;

static void mark(struct loop_op *op, int result)
{
    (void)op;
    (void)result;
    mark_reached = true;
}

static bool reached(void *arg)
{
    (void)arg;
    return mark_reached;
}

/* Runs the loop until what happened so far has been told. */
static void settle(void)
{
    for (unsigned i = 0; i < 3; i++) {
        struct loop_op op = {.done = mark};
        int pair[2];

        make_pair(pair);
        mark_reached = false;
        loop_poll(loop, &op, pair[0], POLLOUT);
        cr_assert_eq(loop_run_until(loop, reached, NULL, DEADLINE_NS), 0);
        close(pair[0]);
        close(pair[1]);
    }
}

/* A new round, in which only this is wanted. */
static void want(int fd, short events)
{
    nat_polls_want_nothing(&polls);
    cr_assert_eq(nat_polls_want(&polls, fd, events), 0);
}

Test(nat_polls, input_is_told_when_it_is_there)
{
    int pair[2];

    make_pair(pair);
    want(pair[0], POLLIN);
    settle();
    cr_assert(!nat_polls_fired(&polls));
    cr_assert_eq(write(pair[1], "x", 1), 1);
    wait_fired();
    cr_assert_eq(nat_polls_events(&polls, pair[0]), POLLIN);
}

Test(nat_polls, events_told_are_told_again_only_when_wanted_again)
{
    int pair[2];

    make_pair(pair);
    cr_assert_eq(write(pair[1], "x", 1), 1);
    want(pair[0], POLLIN);
    wait_fired();
    nat_polls_clear(&polls);
    cr_assert_eq(nat_polls_events(&polls, pair[0]), 0);
    settle();
    cr_assert(!nat_polls_fired(&polls));
    want(pair[0], POLLIN);
    wait_fired();
    cr_assert_eq(nat_polls_events(&polls, pair[0]), POLLIN);
}

Test(nat_polls, output_is_told_beside_input)
{
    int pair[2];

    make_pair(pair);
    want(pair[0], POLLIN);
    settle();
    want(pair[0], POLLIN | POLLOUT);
    wait_fired();
    cr_assert_eq(nat_polls_events(&polls, pair[0]), POLLOUT);
    cr_assert_eq(write(pair[1], "x", 1), 1);
    settle();
    cr_assert_eq(nat_polls_events(&polls, pair[0]), POLLIN | POLLOUT);
}

Test(nat_polls, what_is_wanted_no_longer_is_not_told_and_not_lost)
{
    int pair[2];

    make_pair(pair);
    want(pair[0], POLLIN);
    settle();
    nat_polls_want_nothing(&polls);
    cr_assert_eq(write(pair[1], "x", 1), 1);
    settle();
    cr_assert(!nat_polls_fired(&polls));
    want(pair[0], POLLIN);
    wait_fired();
    cr_assert_eq(nat_polls_events(&polls, pair[0]), POLLIN);
}

Test(nat_polls, wanting_more_kinds_of_input_takes_effect)
{
    int pair[2];

    make_pair(pair);
    want(pair[0], POLLPRI);
    settle();
    cr_assert_eq(write(pair[1], "x", 1), 1);
    settle();
    cr_assert(!nat_polls_fired(&polls));
    want(pair[0], POLLPRI | POLLIN);
    wait_fired();
    /* The poll that waited for less is back: asked for anew, it tells. */
    nat_polls_clear(&polls);
    want(pair[0], POLLPRI | POLLIN);
    wait_fired();
    cr_assert_eq(nat_polls_events(&polls, pair[0]), POLLIN);
}

Test(nat_polls, the_end_of_the_other_side_is_told_beside_what_is_wanted)
{
    int pair[2];

    make_pair(pair);
    want(pair[0], POLLIN);
    close(pair[1]);
    wait_fired();
    cr_assert_eq(nat_polls_events(&polls, pair[0]), POLLIN | POLLHUP);
}

Test(nat_polls, a_closed_socket_is_let_go_although_it_was_polled)
{
    int pair[2];
    char byte;

    make_pair(pair);
    want(pair[0], POLLIN);
    settle();
    nat_polls_close(&polls, pair[0]);
    close(pair[0]);
    settle();
    cr_assert_eq(read(pair[1], &byte, 1), 0, "the file is still open");
    cr_assert(nat_polls_idle(&polls));
}

Test(nat_polls, a_socket_that_gets_the_number_of_a_closed_one_is_another)
{
    int old[2], new[2];

    make_pair(old);
    want(old[0], POLLIN);
    settle();
    /* The old one's event is on its way while the number changes hands. */
    cr_assert_eq(write(old[1], "x", 1), 1);
    nat_polls_close(&polls, old[0]);
    close(old[0]);
    make_pair(new);
    cr_assert_eq(new[0], old[0]);
    nat_polls_open(&polls, new[0]);
    want(new[0], POLLIN);
    settle();
    cr_assert(!nat_polls_fired(&polls));
    cr_assert_eq(nat_polls_events(&polls, new[0]), 0);
    cr_assert_eq(write(new[1], "x", 1), 1);
    wait_fired();
    cr_assert_eq(nat_polls_events(&polls, new[0]), POLLIN);
}

Test(nat_polls, events_of_a_socket_that_is_closed_before_they_are_told_are_gone)
{
    int pair[2];

    make_pair(pair);
    cr_assert_eq(write(pair[1], "x", 1), 1);
    want(pair[0], POLLIN);
    wait_fired();
    nat_polls_close(&polls, pair[0]);
    cr_assert(!nat_polls_fired(&polls));
    cr_assert_eq(nat_polls_events(&polls, pair[0]), 0);
}

Test(nat_polls, several_that_fired_are_all_told)
{
    int pairs[5][2];

    nat_polls_want_nothing(&polls);
    for (unsigned i = 0; i < 5; i++) {
        make_pair(pairs[i]);
        cr_assert_eq(write(pairs[i][1], "x", 1), 1);
        cr_assert_eq(nat_polls_want(&polls, pairs[i][0], POLLIN), 0);
    }
    settle();
    nat_polls_close(&polls, pairs[2][0]);
    for (unsigned i = 0; i < 5; i++)
        cr_assert_eq(nat_polls_events(&polls, pairs[i][0]), i == 2 ? 0 : POLLIN);
    nat_polls_clear(&polls);
    for (unsigned i = 0; i < 5; i++)
        cr_assert_eq(nat_polls_events(&polls, pairs[i][0]), 0);
}

Test(nat_polls, many_sockets_find_room_and_are_counted)
{
    int pairs[150][2];

    for (unsigned i = 0; i < 150; i++) {
        make_pair(pairs[i]);
        nat_polls_open(&polls, pairs[i][0]);
        nat_polls_open(&polls, pairs[i][0]);
    }
    cr_assert_eq(polls.open, 150);
    cr_assert_eq(write(pairs[149][1], "x", 1), 1);
    want(pairs[149][0], POLLIN);
    wait_fired();
    cr_assert_eq(nat_polls_events(&polls, pairs[149][0]), POLLIN);
    for (unsigned i = 0; i < 150; i++)
        nat_polls_close(&polls, pairs[i][0]);
    cr_assert_eq(polls.open, 0);
}

Test(nat_polls, unknown_sockets_have_no_events_and_close_without_harm)
{
    cr_assert_eq(nat_polls_events(&polls, -1), 0);
    cr_assert_eq(nat_polls_events(&polls, 12345), 0);
    nat_polls_open(&polls, -1);
    nat_polls_close(&polls, -1);
    nat_polls_close(&polls, 12345);
    cr_assert_eq(nat_polls_want(&polls, -1, POLLIN), -ENOMEM);
    cr_assert(nat_polls_idle(&polls));
}

/* A TCP connection over the loopback interface: pair[0] is what is polled. */
static void make_tcp_pair(int pair[2])
{
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    socklen_t size = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    cr_assert_eq(bind(listener, (struct sockaddr *)&address, size), 0);
    cr_assert_eq(listen(listener, 1), 0);
    cr_assert_eq(getsockname(listener, (struct sockaddr *)&address, &size), 0);
    pair[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_eq(connect(pair[1], (struct sockaddr *)&address, size), 0);
    pair[0] = accept(listener, NULL, NULL);
    close(listener);
}

Test(nat_polls, ordinary_data_is_not_told_to_be_urgent_and_urgent_data_is)
{
    int pair[2];

    make_tcp_pair(pair);
    want(pair[0], POLLIN | POLLPRI);
    settle();
    cr_assert_eq(send(pair[1], "x", 1, 0), 1);
    wait_fired();
    cr_assert_eq(nat_polls_events(&polls, pair[0]), POLLIN);
    nat_polls_clear(&polls);
    cr_assert_eq(send(pair[1], "y", 1, MSG_OOB), 1);
    want(pair[0], POLLIN | POLLPRI);
    wait_fired();
    cr_assert_eq(nat_polls_events(&polls, pair[0]), POLLIN | POLLPRI);
}

/*
 * A datagram with a wrong checksum wakes whoever waits for the socket, and is not there when it is
 * asked for; unless it is so short that the kernel checks it at once. Sent by a raw socket, since an
 * ordinary one sends no such thing.
 */
static void send_bad_datagram(uint16_t port)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct {
        uint16_t source, destination, length, checksum;
        char data[200];
    } datagram = {htons(9), htons(port), htons(8 + 200), htons(1), "bad"};
    int fd = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_UDP);

    if (fd < 0)
        cr_skip_test("a raw socket needs CAP_NET_RAW");
    cr_assert_eq(sendto(fd, &datagram, sizeof(datagram), 0, (struct sockaddr *)&to, sizeof(to)),
                 (ssize_t)sizeof(datagram));
    close(fd);
}

Test(nat_polls, a_damaged_datagram_is_not_told_and_a_sound_one_after_it_is)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    socklen_t size = sizeof(address);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    cr_assert_eq(bind(fd, (struct sockaddr *)&address, size), 0);
    cr_assert_eq(getsockname(fd, (struct sockaddr *)&address, &size), 0);
    want(fd, POLLIN);
    settle();
    send_bad_datagram(ntohs(address.sin_port));
    settle();
    cr_assert_eq(nat_polls_events(&polls, fd), 0);
    nat_polls_clear(&polls);
    want(fd, POLLIN);
    cr_assert_eq(sendto(fd, "good", 4, 0, (struct sockaddr *)&address, size), 4);
    wait_fired();
    cr_assert_eq(nat_polls_events(&polls, fd), POLLIN);
}
