/*
 * Batches of reads and writes: by the ring, and without it for descriptors that know no RWF_NOWAIT.
 *
 * An inotify(7) descriptor stands for the latter: nothing here needs a tap. Before the batch gave up
 * the ring for them, a read of an empty one never ended, so each test has a deadline.
 */
#include "net/io_batch.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <unistd.h>

#define READS 4
#define ROOM  512

static struct io_batch *batch;
static char buffers[READS][ROOM];
static struct iovec iov[READS];
static char folder[] = "/tmp/io-batch.XXXXXX";

static void setup(void)
{
    cr_assert_eq(io_batch_create(&batch, READS), 0);
    for (unsigned i = 0; i < READS; i++)
        iov[i] = (struct iovec){buffers[i], ROOM};
}

static void teardown(void)
{
    io_batch_destroy(batch);
}

TestSuite(io_batch, .init = setup, .fini = teardown, .timeout = 60);

static void read_all(int fd, int *results)
{
    for (unsigned i = 0; i < READS; i++)
        io_batch_read(batch, fd, &iov[i], 1);
    io_batch_run(batch, results);
}

static void expect_empty(int fd)
{
    int results[READS];

    read_all(fd, results);
    for (unsigned i = 0; i < READS; i++)
        cr_expect_eq(results[i], -EAGAIN, "%u: %d", i, results[i]);
}

/* A descriptor that tells of files made in a folder of its own. */
static int watch_create(void)
{
    int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);

    cr_assert_geq(fd, 0);
    cr_assert_not_null(mkdtemp(folder));
    cr_assert_geq(inotify_add_watch(fd, folder, IN_CREATE), 0);
    return fd;
}

static void watch_destroy(int fd)
{
    close(fd);
    cr_expect_eq(rmdir(folder), 0);
}

static void make_a_file(void)
{
    char path[64];
    int fd;

    snprintf(path, sizeof(path), "%s/file", folder);
    fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    cr_assert_geq(fd, 0);
    close(fd);
    cr_expect_eq(unlink(path), 0);
}

Test(io_batch, messages_are_written_and_read_in_order_and_then_there_are_no_more)
{
    static const char *const words[] = {"one", "two", "three"};
    int fds[2], results[READS];

    cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    for (unsigned i = 0; i < 3; i++) {
        iov[i] = (struct iovec){(char *)words[i], strlen(words[i])};
        io_batch_write(batch, fds[0], &iov[i], 1);
    }
    io_batch_run(batch, results);
    for (unsigned i = 0; i < 3; i++) {
        cr_expect_eq(results[i], (int)strlen(words[i]));
        iov[i] = (struct iovec){buffers[i], ROOM};
    }
    read_all(fds[1], results);
    for (unsigned i = 0; i < 3; i++) {
        cr_expect_eq(results[i], (int)strlen(words[i]));
        cr_expect_eq(memcmp(buffers[i], words[i], strlen(words[i])), 0);
    }
    cr_expect_eq(results[3], -EAGAIN);
    close(fds[0]);
    close(fds[1]);
}

Test(io_batch, reads_of_an_empty_descriptor_without_nowait_end_at_once_every_time)
{
    int fd = watch_create();

    expect_empty(fd);
    expect_empty(fd);
    watch_destroy(fd);
}

Test(io_batch, what_a_descriptor_without_nowait_has_is_read_once)
{
    int fd = watch_create(), results[READS];

    for (int turn = 0; turn < 2; turn++) {
        make_a_file();
        read_all(fd, results);
        cr_expect_gt(results[0], (int)sizeof(struct inotify_event));
        cr_expect_str_eq(((struct inotify_event *)(void *)buffers[0])->name, "file");
        for (unsigned i = 1; i < READS; i++)
            cr_expect_eq(results[i], -EAGAIN, "%u: %d", i, results[i]);
    }
    watch_destroy(fd);
}

Test(io_batch, an_empty_descriptor_does_not_keep_another_from_being_read)
{
    int fd = watch_create(), other = inotify_init1(IN_NONBLOCK | IN_CLOEXEC), results[READS];

    cr_assert_geq(other, 0);
    expect_empty(other);
    make_a_file();
    io_batch_read(batch, other, &iov[0], 1);
    io_batch_read(batch, fd, &iov[1], 1);
    io_batch_read(batch, other, &iov[2], 1);
    io_batch_run(batch, results);
    cr_expect_eq(results[0], -EAGAIN);
    cr_expect_gt(results[1], (int)sizeof(struct inotify_event));
    cr_expect_eq(results[2], -EAGAIN);
    close(other);
    watch_destroy(fd);
}
