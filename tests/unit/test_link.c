/*
 * A connection whose peer does what it should not: it stops reading, or sends descriptors that nobody asked for.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "migration/link.h"
#include "vmm/util/log.h"

#define LONG (4u << 20) /* more than a socket holds */

static void quiet(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
}

static void begin(void)
{
    log_set_sink(quiet);
}

TestSuite(link, .init = begin, .timeout = 60);

static struct link *make_link(int *peer)
{
    struct link *link;
    int pair[2];

    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    cr_assert_eq(link_create(&link, pair[0], "a test"), 0);
    *peer = pair[1];
    return link;
}

/* ---- a message that left in part ---- */

static void *send_long(void *arg)
{
    uint8_t *bytes = calloc(1, LONG);
    int err = link_send(arg, STREAM_DEVICE, "com1", bytes, LONG);

    free(bytes);
    return (void *)(intptr_t)err;
}

/* Reads to the end; how many bytes came. */
static size_t read_all(int fd, uint8_t *last, size_t n_last)
{
    static uint8_t bytes[LONG + 4096];
    size_t length = 0;
    ssize_t n;

    while ((n = read(fd, bytes + length, sizeof(bytes) - length)) > 0)
        length += (size_t)n;
    cr_assert_gt(length, n_last);
    memcpy(last, bytes + length - n_last, n_last);
    return length;
}

Test(link, says_nothing_more_when_a_message_left_in_part)
{
    static const char why[] = "why it ends";
    uint8_t last[sizeof(why) - 1];
    pthread_t thread;
    void *err;
    int peer;
    struct link *link = make_link(&peer);
    struct pollfd some = {.fd = peer, .events = POLLIN};

    cr_assert_eq(pthread_create(&thread, NULL, send_long, link), 0);
    cr_assert_eq(poll(&some, 1, -1), 1);
    link_cancel(link);
    pthread_join(thread, &err);
    cr_expect_eq((int)(intptr_t)err, -ECANCELED);
    link_rearm(link);
    cr_expect_eq(link_send(link, STREAM_END, "", "", 0), -EPIPE);
    link_abort(link, why);
    link_destroy(link);
    cr_expect_lt(read_all(peer, last, sizeof(last)), LONG);
    cr_expect_neq(memcmp(last, why, sizeof(last)), 0, "the peer would take it for a part of the message");
    close(peer);
}

Test(link, says_why_it_ends_when_nothing_of_a_message_left)
{
    static const char why[] = "why it ends";
    uint8_t last[sizeof(why) - 1];
    int peer;
    struct link *link = make_link(&peer);

    cr_assert_eq(link_send(link, STREAM_END, "", "", 0), 0);
    cr_assert_eq(shutdown(peer, SHUT_WR), 0);
    link_abort(link, why);
    link_destroy(link);
    (void)read_all(peer, last, sizeof(last));
    cr_expect_eq(memcmp(last, why, sizeof(last)), 0);
    close(peer);
}

/* ---- descriptors ---- */

static void send_byte_with(int peer, const int fds[2])
{
    struct iovec piece = {"x", 1};
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control = {0};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);

    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(2 * sizeof(int));
    memcpy(CMSG_DATA(rights), fds, 2 * sizeof(int));
    cr_assert_eq(sendmsg(peer, &message, 0), 1);
}

Test(link, closes_all_descriptors_that_nobody_asked_for)
{
    int peer, ends[2];
    struct link *link = make_link(&peer);
    const struct stream_reader *reader = link_reader(link);
    char byte;

    cr_assert_eq(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    send_byte_with(peer, (const int[2]){ends[1], ends[1]});
    close(ends[1]);
    cr_assert_eq(reader->fill(reader, &byte, 1), 0);
    cr_expect_eq(read(ends[0], &byte, 1), -1, "the link has it");
    link_destroy(link);
    cr_expect_eq(read(ends[0], &byte, 1), 0, "nobody has it any more");
    close(ends[0]);
    close(peer);
}
