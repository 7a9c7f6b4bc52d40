/* Who has the name of a unix socket: told without a word to whoever listens there. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "vmm/util/unix_probe.h"

static char folder[] = "/tmp/ferry-probe-XXXXXX";
static struct sockaddr_un address = {.sun_family = AF_UNIX};

static void set_up(void)
{
    cr_assert_not_null(mkdtemp(folder));
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/socket", folder);
}

static void tear_down(void)
{
    (void)unlink(address.sun_path);
    cr_assert_eq(rmdir(folder), 0);
}

TestSuite(unix_probe, .init = set_up, .fini = tear_down, .timeout = 30);

static int listen_there(int type)
{
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    cr_assert_eq(bind(fd, (const struct sockaddr *)&address, sizeof(address)), 0);
    if (type == SOCK_STREAM)
        cr_assert_eq(listen(fd, 0), 0);
    return fd;
}

Test(unix_probe, tells_who_is_there_who_was_and_nobody)
{
    int fd;

    cr_expect_eq(unix_probe(&address), -ENOENT);
    fd = listen_there(SOCK_STREAM);
    cr_expect_eq(unix_probe(&address), -EPROTOTYPE);
    close(fd);
    cr_expect_eq(unix_probe(&address), -ECONNREFUSED);
}

Test(unix_probe, is_no_visitor)
{
    int fd = listen_there(SOCK_STREAM);

    cr_expect_eq(unix_probe(&address), -EPROTOTYPE);
    cr_expect_eq(accept(fd, NULL, NULL), -1);
    cr_expect_eq(errno, EAGAIN);
    close(fd);
}

Test(unix_probe, does_not_wait_for_one_who_does_not_take_its_visitors)
{
    int fd = listen_there(SOCK_STREAM), visitors[16];
    unsigned n = 0;

    do
        visitors[n] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    while (connect(visitors[n++], (const struct sockaddr *)&address, sizeof(address)) == 0 && n < 16);
    cr_assert_eq(errno, EAGAIN, "the queue is full");
    cr_expect_eq(unix_probe(&address), -EPROTOTYPE);
    while (n > 0)
        close(visitors[--n]);
    close(fd);
}

Test(unix_probe, knows_a_socket_of_its_own_kind)
{
    int fd = listen_there(SOCK_DGRAM);

    cr_expect_eq(unix_probe(&address), -EPROTOTYPE);
    close(fd);
}
