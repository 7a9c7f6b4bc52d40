/* Unit tests of the console on a socket: who comes and goes, what is kept, what is lost. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "devices/chardev.h"
#include "tests/unit/fake_env.h"

static struct fake_env fake;
static struct chardev *chardev;
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static char typed[1024];
static size_t n_typed;
static struct chardev_front front;

static void on_input(struct chardev_front *f, const uint8_t *bytes, size_t n)
{
    (void)f;
    memcpy(typed + n_typed, bytes, n);
    n_typed += n;
}

static void on_writable(struct chardev_front *f)
{
    (void)f;
}

static void create(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    signal(SIGPIPE, SIG_IGN);
    fake_env_init(&fake, MIB);
    /* An abstract address of the kernel's choice (unix(7), autobind). */
    cr_assert_eq(bind(fd, (struct sockaddr *)&address, sizeof(sa_family_t)), 0);
    cr_assert_eq(listen(fd, 8), 0);
    cr_assert_eq(getsockname(fd, (struct sockaddr *)&address, &(socklen_t){sizeof(address)}), 0);
    cr_assert_eq(chardev_socket_create(&chardev, fake.env.loop, fake.env.lock, fd), 0);
    front = (struct chardev_front){.writable = on_writable, .input = on_input};
    device_lock(&fake.env);
    chardev_attach(chardev, &front);
    device_unlock(&fake.env);
}

static void destroy(void)
{
    device_lock(&fake.env);
    chardev_attach(chardev, NULL);
    device_unlock(&fake.env);
    chardev_destroy(chardev);
    fake_env_fini(&fake);
}

TestSuite(chardev_socket, .init = create, .fini = destroy, .timeout = 60);

static int come(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    cr_assert_eq(connect(fd, (struct sockaddr *)&address, sizeof(sa_family_t) + 6), 0);
    return fd;
}

static void print(const void *bytes, size_t n)
{
    device_lock(&fake.env);
    cr_assert_eq(chardev_write(chardev, bytes, n), n);
    device_unlock(&fake.env);
}

static void accept_input(size_t n)
{
    device_lock(&fake.env);
    chardev_accept(chardev, n);
    device_unlock(&fake.env);
}

struct reading {
    int fd;
    char *to;
    size_t n, wanted;
    bool ended;
};

static bool has_read(void *arg)
{
    struct reading *r = arg;
    ssize_t got;

    while (r->n < r->wanted && (got = read(r->fd, r->to + r->n, r->wanted - r->n)) >= 0) {
        if (got == 0)
            r->ended = true;
        if (got == 0)
            return true;
        r->n += (size_t)got;
    }
    return r->n == r->wanted;
}

/* Reads that many bytes, or up to the end. */
static struct reading get(int fd, char *to, size_t wanted)
{
    struct reading r = {.fd = fd, .to = to, .wanted = wanted};

    cr_assert_eq(loop_run_until(fake.env.loop, has_read, &r, FAKE_DEADLINE_NS), 0);
    return r;
}

static void sees(int fd, const char *text)
{
    char got[256] = "";

    cr_assert_eq(get(fd, got, strlen(text)).n, strlen(text));
    cr_assert_str_eq(got, text);
}

static bool has_typed(void *arg)
{
    return n_typed == *(size_t *)arg;
}

static void guest_gets(const char *text)
{
    size_t n = strlen(text);

    cr_assert_eq(loop_run_until(fake.env.loop, has_typed, &n, FAKE_DEADLINE_NS), 0);
    cr_assert_eq(memcmp(typed, text, n), 0);
}

Test(chardev_socket, who_comes_sees_what_was_printed_before_and_what_follows)
{
    int fd;

    print("before ", 7);
    fd = come();
    sees(fd, "before ");
    print("after", 5);
    sees(fd, "after");
    close(fd);
}

Test(chardev_socket, two_see_the_same)
{
    int a = come(), b = come();

    print("hello", 5);
    sees(a, "hello");
    sees(b, "hello");
    close(a);
    close(b);
}

Test(chardev_socket, nobody_need_read_for_the_guest_to_print)
{
    static char bytes[CHARDEV_RING_BYTES];
    int fd = come();

    memset(bytes, 'x', sizeof(bytes));
    for (unsigned i = 0; i < 64; i++) {
        print(bytes, sizeof(bytes));
        fake_env_settle(&fake);
    }
    close(fd);
}

Test(chardev_socket, the_last_of_the_output_is_kept)
{
    static char bytes[CHARDEV_RING_BYTES], got[CHARDEV_RING_BYTES];
    int fd;

    memset(bytes, 'a', sizeof(bytes));
    print(bytes, sizeof(bytes));
    fake_env_settle(&fake);
    memset(bytes, 'b', 100);
    print(bytes, 100);
    fake_env_settle(&fake);
    fd = come();
    cr_assert_eq(get(fd, got, sizeof(got)).n, sizeof(got));
    cr_assert_eq(got[sizeof(got) - 101], 'a');
    for (size_t i = sizeof(got) - 100; i < sizeof(got); i++)
        cr_assert_eq(got[i], 'b');
    close(fd);
}

Test(chardev_socket, who_reads_too_slowly_is_told_that_something_is_missing)
{
    static char bytes[CHARDEV_RING_BYTES], got[64 * CHARDEV_RING_BYTES];
    int fd = come();
    struct reading r;

    sees(fd, "");
    for (unsigned i = 0; i < 64; i++) {
        memset(bytes, 'a' + (int)i % 26, sizeof(bytes));
        print(bytes, sizeof(bytes));
        fake_env_settle(&fake);
    }
    shutdown(fd, SHUT_WR);
    r = get(fd, got, sizeof(got));
    cr_assert(r.ended);
    cr_assert_lt(r.n, sizeof(got));
    cr_assert_not_null(memmem(got, r.n, "\r\n[some output is missing here]\r\n", 33));
    cr_assert_eq(got[r.n - 1], 'a' + 63 % 26);
    close(fd);
}

Test(chardev_socket, what_is_typed_waits_until_the_guest_takes_it)
{
    int fd = come();

    cr_assert_eq(write(fd, "abcdef", 6), 6);
    fake_env_settle(&fake);
    cr_assert_eq(n_typed, 0);
    accept_input(2);
    guest_gets("ab");
    accept_input(100);
    guest_gets("abcdef");
    cr_assert_eq(write(fd, "gh", 2), 2);
    guest_gets("abcdefgh");
    close(fd);
}

Test(chardev_socket, who_says_that_no_more_comes_gets_what_there_is_and_the_end)
{
    char got[16] = "";
    int fd = come();
    struct reading r;

    accept_input(10);
    print("all", 3);
    cr_assert_eq(write(fd, "x", 1), 1);
    shutdown(fd, SHUT_WR);
    r = get(fd, got, sizeof(got));
    cr_assert(r.ended);
    cr_assert_str_eq(got, "all");
    cr_assert_eq(n_typed, 1);
    close(fd);
}

Test(chardev_socket, places_become_free_when_people_leave)
{
    char got[1];
    int fds[8], late;

    for (unsigned i = 0; i < 8; i++)
        fds[i] = come();
    fake_env_settle(&fake);
    late = come();
    cr_assert(get(late, got, 1).ended, "the ninth finds no place");
    close(late);
    close(fds[3]);
    fake_env_settle(&fake);
    late = come();
    print("z", 1);
    sees(late, "z");
    close(late);
    for (unsigned i = 0; i < 8; i++)
        if (i != 3)
            close(fds[i]);
}

Test(chardev_socket, draining_waits_for_those_who_read)
{
    char got[6] = "";
    int fd = come();

    fake_env_settle(&fake);
    print("last", 4);
    cr_assert_eq(chardev_drain(chardev, FAKE_DEADLINE_NS), 0);
    cr_assert_eq(read(fd, got, sizeof(got)), 4);
    cr_assert_str_eq(got, "last");
    close(fd);
}

Test(chardev_socket, draining_waits_for_nobody_when_nobody_is_there)
{
    print("last", 4);
    cr_assert_eq(chardev_drain(chardev, FAKE_DEADLINE_NS), 0);
}
