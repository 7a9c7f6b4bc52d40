/*
 * Character streams: the ring and the credit with the memory back end; the standard input and
 * output back end on pipes, files and pseudo-terminals, against the real kernel.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <pty.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "devices/chardev.h"
#include "tests/unit/fake_env.h"
#include "vmm/terminal.h"

#define PASTE (1024 * 1024)

/* A front end that takes notes, and accepts `step` bytes again each time it has got them all. */
struct front {
    struct chardev_front front;
    struct chardev *chardev;
    size_t step;
    size_t allowed; /* of the current step, not yet used */
    uint8_t *got;   /* PASTE bytes */
    size_t n_got;
    unsigned writables, breaks, resizes, quits;
    bool overrun;
    size_t target; /* for wait_input() */
};

static struct fake_env fake;
static struct front front;
static struct chardev *chardev;

static void on_writable(struct chardev_front *f)
{
    ((struct front *)f)->writables++;
}

static void accept_step(struct front *f)
{
    f->allowed = f->step;
    chardev_accept(f->chardev, f->step);
}

static void on_input(struct chardev_front *f_, const uint8_t *bytes, size_t n)
{
    struct front *f = (struct front *)f_;

    if (n == 0 || n > f->allowed || f->n_got + n > PASTE) {
        f->overrun = true;
        return;
    }
    memcpy(f->got + f->n_got, bytes, n);
    f->n_got += n;
    f->allowed -= n;
    if (f->allowed == 0)
        accept_step(f);
}

static void on_break(struct chardev_front *f)
{
    ((struct front *)f)->breaks++;
}

static void on_resize(struct chardev_front *f)
{
    ((struct front *)f)->resizes++;
}

static void on_quit(void *arg)
{
    ((struct front *)arg)->quits++;
}

static void attach(size_t step)
{
    front.front = (struct chardev_front){on_writable, on_input, on_break, on_resize};
    front.chardev = chardev;
    front.step = step;
    front.got = malloc(PASTE);
    cr_assert(front.got);
    device_lock(&fake.env);
    chardev_attach(chardev, &front.front);
    if (step > 0)
        accept_step(&front);
    device_unlock(&fake.env);
}

static void detach(void)
{
    device_lock(&fake.env);
    chardev_attach(chardev, NULL);
    device_unlock(&fake.env);
    chardev_destroy(chardev);
    free(front.got);
    front = (struct front){0};
    chardev = NULL;
}

static void make_env(void)
{
    signal(SIGPIPE, SIG_IGN);
    fake_env_init(&fake, MIB);
}

static void drop_env(void)
{
    fake_env_fini(&fake);
}

TestSuite(chardev, .init = make_env, .fini = drop_env, .timeout = 60);

static size_t put(const void *bytes, size_t n)
{
    size_t taken;

    device_lock(&fake.env);
    taken = chardev_write(chardev, bytes, n);
    device_unlock(&fake.env);
    return taken;
}

/* Bytes whose order can be checked. */
static uint8_t pattern(size_t i)
{
    return (uint8_t)(i * 7 + (i >> 8) * 13 + (i >> 16));
}

static uint8_t *make_pattern(size_t n)
{
    uint8_t *bytes = malloc(n);

    cr_assert(bytes);
    for (size_t i = 0; i < n; i++)
        bytes[i] = pattern(i);
    return bytes;
}

static bool has_target(void *arg)
{
    struct front *f = arg;

    return f->n_got >= f->target || f->overrun;
}

static void wait_input(size_t n)
{
    front.target = n;
    fake_env_wait(&fake, has_target, &front);
    cr_assert_not(front.overrun);
}

/* ---- the ring ---- */

Test(chardev, a_full_ring_takes_less_and_says_when_half_of_it_is_free_again)
{
    uint8_t *bytes = make_pattern(CHARDEV_RING_BYTES + 10);
    uint8_t *out = malloc(CHARDEV_RING_BYTES);

    cr_assert_eq(chardev_memory_create(&chardev), 0);
    attach(0);
    cr_assert_eq(put(bytes, CHARDEV_RING_BYTES + 10), CHARDEV_RING_BYTES);
    cr_assert_eq(put(bytes, 1), 0);
    cr_assert_eq(chardev_memory_take(chardev, out, CHARDEV_RING_BYTES / 2 - 1),
                 CHARDEV_RING_BYTES / 2 - 1);
    cr_assert_eq(front.writables, 0);
    cr_assert_eq(chardev_memory_take(chardev, out, 1), 1);
    cr_assert_eq(front.writables, 1);
    cr_assert_eq(chardev_memory_take(chardev, out, 1), 1);
    cr_assert_eq(front.writables, 1);
    detach();
    free(bytes);
    free(out);
}

Test(chardev, asking_for_room_in_vain_is_answered_later_too)
{
    uint8_t *bytes = make_pattern(CHARDEV_RING_BYTES);
    uint8_t *out = malloc(CHARDEV_RING_BYTES);

    cr_assert_eq(chardev_memory_create(&chardev), 0);
    attach(0);
    cr_assert_eq(put(bytes, CHARDEV_RING_BYTES - 15), CHARDEV_RING_BYTES - 15);
    cr_assert(chardev_has_room(chardev, 15));
    cr_assert_not(chardev_has_room(chardev, 16));
    chardev_memory_take(chardev, out, CHARDEV_RING_BYTES);
    cr_assert_eq(front.writables, 1);
    detach();
    free(bytes);
    free(out);
}

Test(chardev, a_megabyte_goes_out_in_order_through_a_slow_back_end)
{
    uint8_t *bytes = make_pattern(PASTE);
    uint8_t out[1009];
    size_t in = 0, n_out = 0;

    cr_assert_eq(chardev_memory_create(&chardev), 0);
    attach(0);
    while (n_out < PASTE) {
        size_t n;

        in += put(bytes + in, PASTE - in < 5000 ? PASTE - in : 5000);
        n = chardev_memory_take(chardev, out, sizeof(out));
        cr_assert_gt(n, 0);
        cr_assert_eq(memcmp(out, bytes + n_out, n), 0);
        n_out += n;
    }
    cr_assert_eq(chardev_memory_take(chardev, out, sizeof(out)), 0);
    detach();
    free(bytes);
}

Test(chardev, input_never_exceeds_what_is_accepted)
{
    cr_assert_eq(chardev_memory_create(&chardev), 0);
    attach(0);
    cr_assert_eq(chardev_memory_feed(chardev, "abcdef", 6), 0);
    front.allowed = 4;
    chardev_accept(chardev, 4);
    cr_assert_eq(chardev_memory_feed(chardev, "abcdef", 6), 4);
    cr_assert_eq(front.n_got, 4);
    cr_assert_not(front.overrun);
    cr_assert_eq(memcmp(front.got, "abcd", 4), 0);
    detach();
}

Test(chardev, nothing_takes_all_output_and_has_no_size)
{
    uint8_t *bytes = make_pattern(CHARDEV_RING_BYTES);
    unsigned columns, rows;

    cr_assert_eq(chardev_null_create(&chardev), 0);
    attach(16);
    for (int i = 0; i < 3; i++)
        cr_assert_eq(put(bytes, CHARDEV_RING_BYTES), CHARDEV_RING_BYTES);
    cr_assert(chardev_has_room(chardev, CHARDEV_RING_BYTES / 2));
    cr_assert_eq(chardev_size(chardev, &columns, &rows), -ENOTTY);
    cr_assert_eq(chardev_drain(chardev, 0), 0);
    detach();
    free(bytes);
}

Test(chardev, a_resize_is_told_and_can_be_asked_for)
{
    unsigned columns, rows;

    cr_assert_eq(chardev_memory_create(&chardev), 0);
    attach(0);
    cr_assert_eq(chardev_size(chardev, &columns, &rows), -ENOTTY);
    chardev_memory_resize(chardev, 132, 50);
    cr_assert_eq(front.resizes, 1);
    cr_assert_eq(chardev_size(chardev, &columns, &rows), 0);
    cr_assert_eq(columns, 132);
    cr_assert_eq(rows, 50);
    detach();
}

/* ---- pipes and files ---- */

static void open_stdio(int in_fd, int out_fd, size_t step)
{
    struct chardev_stdio_config config = {
        .in_fd = in_fd, .out_fd = out_fd, .quit = on_quit, .arg = &front};

    cr_assert_eq(chardev_stdio_create(&chardev, fake.env.loop, &fake.lock, &config), 0);
    attach(step);
}

static void make_pipe(int ends[2])
{
    cr_assert_eq(pipe2(ends, O_CLOEXEC), 0);
}

struct writer {
    int fd;
    const uint8_t *bytes;
};

static void *write_in_pieces(void *arg)
{
    struct writer *writer = arg;
    size_t at = 0;

    while (at < PASTE) {
        size_t step = 1 + at % 8191;
        ssize_t n = write(writer->fd, writer->bytes + at, PASTE - at < step ? PASTE - at : step);

        if (n <= 0)
            break;
        at += (size_t)n;
    }
    return NULL;
}

Test(chardev, a_megabyte_comes_in_from_a_pipe_to_a_front_end_that_takes_sixteen_bytes)
{
    uint8_t *bytes = make_pattern(PASTE);
    struct writer writer = {.bytes = bytes};
    pthread_t thread;
    int ends[2];

    make_pipe(ends);
    writer.fd = ends[1];
    open_stdio(ends[0], -1, 16);
    cr_assert_eq(pthread_create(&thread, NULL, write_in_pieces, &writer), 0);
    wait_input(PASTE);
    cr_assert_eq(memcmp(front.got, bytes, PASTE), 0);
    pthread_join(thread, NULL);
    detach();
    close(ends[0]);
    close(ends[1]);
    free(bytes);
}

struct reader {
    int fd;
    uint8_t *bytes;
    size_t n;
};

static void *read_all(void *arg)
{
    struct reader *reader = arg;
    ssize_t n;

    while ((n = read(reader->fd, reader->bytes + reader->n, 999)) > 0)
        reader->n += (size_t)n;
    return NULL;
}

static bool has_been_writable(void *arg)
{
    return ((struct front *)arg)->writables > 0;
}

Test(chardev, a_megabyte_goes_out_to_a_pipe_whole)
{
    uint8_t *bytes = make_pattern(PASTE);
    struct reader reader = {.bytes = malloc(PASTE + 1000)};
    pthread_t thread;
    size_t at = 0;
    int ends[2];

    make_pipe(ends);
    reader.fd = ends[0];
    open_stdio(-1, ends[1], 0);
    cr_assert_eq(pthread_create(&thread, NULL, read_all, &reader), 0);
    while (at < PASTE) {
        front.writables = 0;
        at += put(bytes + at, PASTE - at);
        if (at < PASTE)
            fake_env_wait(&fake, has_been_writable, &front);
    }
    cr_assert_eq(chardev_drain(chardev, FAKE_DEADLINE_NS), 0);
    detach();
    close(ends[1]);
    pthread_join(thread, NULL);
    cr_assert_eq(reader.n, PASTE);
    cr_assert_eq(memcmp(reader.bytes, bytes, PASTE), 0);
    close(ends[0]);
    free(reader.bytes);
    free(bytes);
}

Test(chardev, bytes_written_one_by_one_arrive_in_order)
{
    char text[1000] = {0};
    int ends[2];

    make_pipe(ends);
    open_stdio(-1, ends[1], 0);
    for (int i = 0; i < 500; i++) {
        cr_assert_eq(put(&(char){(char)('a' + i % 26)}, 1), 1);
        if (i % 50 == 0)
            fake_env_settle(&fake);
    }
    cr_assert_eq(chardev_drain(chardev, FAKE_DEADLINE_NS), 0);
    cr_assert_eq(read(ends[0], text, sizeof(text)), 500);
    for (int i = 0; i < 500; i++)
        cr_assert_eq(text[i], 'a' + i % 26);
    detach();
    close(ends[0]);
    close(ends[1]);
}

struct pipe_waiter {
    int fd;
    int want;
};

static bool pipe_holds(void *arg)
{
    struct pipe_waiter *waiter = arg;
    int n = 0;

    return ioctl(waiter->fd, FIONREAD, &n) == 0 && n >= waiter->want;
}

Test(chardev, the_first_byte_leaves_without_waiting_for_more)
{
    char got[8];
    int ends[2];

    make_pipe(ends);
    open_stdio(-1, ends[1], 0);
    put("x", 1);
    fake_env_wait(&fake, pipe_holds, &(struct pipe_waiter){ends[0], 1});
    cr_assert_eq(read(ends[0], got, sizeof(got)), 1);
    cr_assert_eq(got[0], 'x');
    detach();
    close(ends[0]);
    close(ends[1]);
}

Test(chardev, what_follows_leaves_without_a_drain)
{
    char got[8];
    int ends[2];

    make_pipe(ends);
    open_stdio(-1, ends[1], 0);
    put("x", 1);
    fake_env_wait(&fake, pipe_holds, &(struct pipe_waiter){ends[0], 1});
    put("yz", 2);
    fake_env_wait(&fake, pipe_holds, &(struct pipe_waiter){ends[0], 3});
    cr_assert_eq(read(ends[0], got, sizeof(got)), 3);
    cr_assert_arr_eq(got, "xyz", 3);
    detach();
    close(ends[0]);
    close(ends[1]);
}

Test(chardev, a_drain_has_a_deadline_when_nobody_reads)
{
    uint8_t *bytes = make_pattern(CHARDEV_RING_BYTES);
    int ends[2];

    make_pipe(ends);
    cr_assert_geq(fcntl(ends[1], F_SETPIPE_SZ, 4096), 4096);
    open_stdio(-1, ends[1], 0);
    put(bytes, CHARDEV_RING_BYTES);
    cr_assert_eq(chardev_drain(chardev, 1000000), -ETIMEDOUT);
    detach();
    close(ends[0]);
    close(ends[1]);
    free(bytes);
}

Test(chardev, a_closed_pipe_swallows_the_output_and_the_device_goes_on)
{
    uint8_t *bytes = make_pattern(CHARDEV_RING_BYTES);
    int ends[2];

    make_pipe(ends);
    close(ends[0]);
    open_stdio(-1, ends[1], 0);
    put(bytes, CHARDEV_RING_BYTES);
    cr_assert_not(chardev_has_room(chardev, 16));
    cr_assert_eq(chardev_drain(chardev, FAKE_DEADLINE_NS), 0);
    cr_assert_eq(front.writables, 1);
    for (int i = 0; i < 3; i++)
        cr_assert_eq(put(bytes, CHARDEV_RING_BYTES), CHARDEV_RING_BYTES);
    detach();
    close(ends[1]);
    free(bytes);
}

Test(chardev, output_that_a_device_refuses_does_not_stop_what_comes_later)
{
    int fd = open("/dev/full", O_WRONLY | O_CLOEXEC);

    cr_assert_geq(fd, 0);
    open_stdio(-1, fd, 0);
    put("lost", 4);
    cr_assert_eq(chardev_drain(chardev, FAKE_DEADLINE_NS), 0);
    cr_assert_eq(put("more", 4), 4);
    cr_assert_eq(chardev_drain(chardev, FAKE_DEADLINE_NS), 0);
    detach();
    close(fd);
}

Test(chardev, a_regular_file_is_written_from_its_position_and_read_to_its_end)
{
    int in = memfd_create("in", MFD_CLOEXEC), out = memfd_create("out", MFD_CLOEXEC);
    char text[16] = {0};

    cr_assert_eq(write(in, "hello", 5), 5);
    cr_assert_eq(lseek(in, 1, SEEK_SET), 1);
    cr_assert_eq(write(out, "[", 1), 1);
    open_stdio(in, out, 16);
    put("guest", 5);
    cr_assert_eq(chardev_drain(chardev, FAKE_DEADLINE_NS), 0);
    wait_input(4);
    cr_assert_eq(memcmp(front.got, "ello", 4), 0);
    cr_assert_eq(pread(out, text, sizeof(text), 0), 6);
    cr_assert_str_eq(text, "[guest");
    detach();
    close(in);
    close(out);
}

Test(chardev, the_end_of_the_input_is_quiet_and_output_goes_on)
{
    int in[2], out[2];
    char text[8] = {0};

    make_pipe(in);
    make_pipe(out);
    cr_assert_eq(write(in[1], "last", 4), 4);
    close(in[1]);
    open_stdio(in[0], out[1], 16);
    wait_input(4);
    fake_env_settle(&fake);
    put("still", 5);
    cr_assert_eq(chardev_drain(chardev, FAKE_DEADLINE_NS), 0);
    cr_assert_eq(read(out[0], text, sizeof(text)), 5);
    cr_assert_eq(front.n_got, 4);
    cr_assert_eq(front.quits, 0);
    detach();
    close(in[0]);
    close(out[0]);
    close(out[1]);
}

Test(chardev, a_closed_input_descriptor_is_an_end_of_input)
{
    int ends[2], stale;

    make_pipe(ends);
    stale = dup(ends[0]);
    cr_assert_geq(stale, 0);
    close(stale);
    open_stdio(stale, ends[1], 16);
    fake_env_settle(&fake);
    cr_assert_eq(front.n_got, 0);
    detach();
    close(ends[0]);
    close(ends[1]);
}

Test(chardev, input_stays_in_the_pipe_until_the_front_end_accepts_some)
{
    int ends[2], n = 0;

    make_pipe(ends);
    open_stdio(ends[0], -1, 0);
    cr_assert_eq(write(ends[1], "early", 5), 5);
    device_lock(&fake.env);
    chardev_accept(chardev, 1); /* and none before the loop can act on it */
    chardev_accept(chardev, 0);
    device_unlock(&fake.env);
    fake_env_settle(&fake);
    cr_assert_eq(ioctl(ends[0], FIONREAD, &n), 0);
    cr_assert_eq(n, 5);
    front.step = 16;
    device_lock(&fake.env);
    accept_step(&front);
    device_unlock(&fake.env);
    wait_input(5);
    detach();
    close(ends[0]);
    close(ends[1]);
}

Test(chardev, non_blocking_descriptors_work_and_stay_as_they_are)
{
    uint8_t *bytes = make_pattern(CHARDEV_RING_BYTES);
    struct reader reader = {.bytes = malloc(CHARDEV_RING_BYTES + 1000)};
    pthread_t thread;
    int in[2], out[2];

    make_pipe(in);
    make_pipe(out);
    cr_assert_geq(fcntl(out[1], F_SETPIPE_SZ, 4096), 4096);
    cr_assert_eq(fcntl(in[0], F_SETFL, O_NONBLOCK), 0);
    cr_assert_eq(fcntl(out[1], F_SETFL, O_NONBLOCK), 0);
    reader.fd = out[0];
    open_stdio(in[0], out[1], 16);
    put(bytes, CHARDEV_RING_BYTES);
    fake_env_settle(&fake);
    cr_assert_eq(write(in[1], "abc", 3), 3);
    wait_input(3);
    cr_assert_eq(pthread_create(&thread, NULL, read_all, &reader), 0);
    cr_assert_eq(chardev_drain(chardev, FAKE_DEADLINE_NS), 0);
    detach();
    cr_assert(fcntl(in[0], F_GETFL) & O_NONBLOCK);
    cr_assert(fcntl(out[1], F_GETFL) & O_NONBLOCK);
    close(out[1]);
    pthread_join(thread, NULL);
    cr_assert_eq(reader.n, CHARDEV_RING_BYTES);
    cr_assert_eq(memcmp(reader.bytes, bytes, CHARDEV_RING_BYTES), 0);
    close(out[0]);
    close(in[0]);
    close(in[1]);
    free(reader.bytes);
    free(bytes);
}

Test(chardev, blocking_descriptors_are_not_made_non_blocking)
{
    int in[2], out[2];

    make_pipe(in);
    make_pipe(out);
    open_stdio(in[0], out[1], 16);
    put("x", 1);
    fake_env_wait(&fake, pipe_holds, &(struct pipe_waiter){out[0], 1});
    cr_assert_not(fcntl(in[0], F_GETFL) & O_NONBLOCK);
    cr_assert_not(fcntl(out[1], F_GETFL) & O_NONBLOCK);
    detach();
    close(in[0]);
    close(in[1]);
    close(out[0]);
    close(out[1]);
}

Test(chardev, ctrl_a_in_a_pipe_is_a_byte_like_others)
{
    int ends[2];

    make_pipe(ends);
    open_stdio(ends[0], -1, 16);
    cr_assert_eq(write(ends[1], "\001x\001\001", 4), 4);
    wait_input(4);
    cr_assert_eq(memcmp(front.got, "\001x\001\001", 4), 0);
    cr_assert_eq(front.quits, 0);
    detach();
    close(ends[0]);
    close(ends[1]);
}

/* ---- terminals ---- */

struct terminal_pair {
    int master, slave;
    struct termios before;
};

static void make_terminal(struct terminal_pair *pair)
{
    struct winsize size = {.ws_col = 100, .ws_row = 40};

    cr_assert_eq(openpty(&pair->master, &pair->slave, NULL, NULL, &size), 0);
    cr_assert_eq(tcgetattr(pair->slave, &pair->before), 0);
}

static void drop_terminal(struct terminal_pair *pair)
{
    close(pair->master);
    close(pair->slave);
}

static bool is_raw(int fd)
{
    struct termios now;

    cr_assert_eq(tcgetattr(fd, &now), 0);
    return !(now.c_lflag & (ICANON | ECHO | ISIG)) && !(now.c_iflag & (ICRNL | IXON)) &&
           !(now.c_oflag & OPOST);
}

static void assert_restored(const struct terminal_pair *pair)
{
    struct termios now;

    cr_assert_eq(tcgetattr(pair->slave, &now), 0);
    cr_assert_eq(now.c_iflag, pair->before.c_iflag);
    cr_assert_eq(now.c_oflag, pair->before.c_oflag);
    cr_assert_eq(now.c_cflag, pair->before.c_cflag);
    cr_assert_eq(now.c_lflag, pair->before.c_lflag);
    cr_assert_eq(memcmp(now.c_cc, pair->before.c_cc, sizeof(now.c_cc)), 0);
}

Test(chardev, a_terminal_is_raw_until_the_stream_is_destroyed)
{
    struct terminal_pair pair;

    make_terminal(&pair);
    cr_assert_not(is_raw(pair.slave));
    open_stdio(pair.slave, pair.slave, 16);
    cr_assert(is_raw(pair.slave));
    detach();
    assert_restored(&pair);
    drop_terminal(&pair);
}

Test(chardev, a_second_stream_on_a_terminal_is_refused)
{
    struct terminal_pair pair;
    struct chardev *second = NULL;

    make_terminal(&pair);
    open_stdio(pair.slave, -1, 0);
    cr_assert_eq(chardev_stdio_create(&second, fake.env.loop, &fake.lock,
                                      &(struct chardev_stdio_config){.in_fd = pair.slave,
                                                                     .out_fd = -1}),
                 -EBUSY);
    cr_assert_null(second);
    detach();
    drop_terminal(&pair);
}

static bool has_quit(void *arg)
{
    return ((struct front *)arg)->quits > 0;
}

Test(chardev, ctrl_a_x_ends_the_guest_also_when_it_does_not_listen)
{
    struct terminal_pair pair;

    make_terminal(&pair);
    open_stdio(pair.slave, pair.slave, 0);
    cr_assert_eq(write(pair.master, "typed", 5), 5);
    fake_env_settle(&fake);
    cr_assert_eq(write(pair.master, "\001x", 2), 2);
    fake_env_wait(&fake, has_quit, &front);
    cr_assert_eq(front.quits, 1);
    detach();
    drop_terminal(&pair);
}

Test(chardev, ctrl_a_ctrl_a_sends_one_and_other_bytes_go_as_typed)
{
    struct terminal_pair pair;
    const char expected[] = "a\001b\001cd\003\032\004";

    make_terminal(&pair);
    open_stdio(pair.slave, pair.slave, 16);
    cr_assert_eq(write(pair.master, "a\001\001b\001cd\003\032\004", 10), 10);
    wait_input(sizeof(expected) - 1);
    cr_assert_eq(front.n_got, sizeof(expected) - 1);
    cr_assert_eq(memcmp(front.got, expected, sizeof(expected) - 1), 0);
    cr_assert_eq(front.quits, 0);
    detach();
    drop_terminal(&pair);
}

Test(chardev, a_command_split_over_two_reads_is_one_command)
{
    struct terminal_pair pair;

    make_terminal(&pair);
    open_stdio(pair.slave, pair.slave, 16);
    cr_assert_eq(write(pair.master, "p\001", 2), 2);
    wait_input(1);
    fake_env_settle(&fake);
    cr_assert_eq(write(pair.master, "qr", 2), 2);
    wait_input(4);
    cr_assert_eq(memcmp(front.got, "p\001qr", 4), 0);
    detach();
    drop_terminal(&pair);
}

Test(chardev, what_a_front_end_did_not_take_is_kept_before_what_is_typed_later)
{
    struct terminal_pair pair;

    make_terminal(&pair);
    open_stdio(pair.slave, pair.slave, 3);
    front.step = 0;
    cr_assert_eq(write(pair.master, "typed", 5), 5);
    wait_input(3);
    fake_env_settle(&fake);
    cr_assert_eq(write(pair.master, " later", 6), 6);
    fake_env_settle(&fake);
    cr_assert_eq(front.n_got, 3);
    front.step = 16;
    device_lock(&fake.env);
    accept_step(&front);
    device_unlock(&fake.env);
    wait_input(11);
    cr_assert_eq(memcmp(front.got, "typed later", 11), 0);
    detach();
    drop_terminal(&pair);
}

Test(chardev, a_non_blocking_terminal_gets_all_output)
{
    struct terminal_pair pair;
    uint8_t *bytes = make_pattern(CHARDEV_RING_BYTES);
    struct reader reader = {.bytes = malloc(CHARDEV_RING_BYTES + 1000)};
    pthread_t thread;

    make_terminal(&pair);
    cr_assert_eq(fcntl(pair.slave, F_SETFL, O_RDWR | O_NONBLOCK), 0);
    open_stdio(pair.slave, pair.slave, 0);
    cr_assert_eq(put(bytes, CHARDEV_RING_BYTES), CHARDEV_RING_BYTES);
    fake_env_settle(&fake);
    reader.fd = pair.master;
    cr_assert_eq(pthread_create(&thread, NULL, read_all, &reader), 0);
    cr_assert_eq(chardev_drain(chardev, FAKE_DEADLINE_NS), 0);
    detach();
    close(pair.slave); /* which the reader sees as the end */
    pthread_join(thread, NULL);
    cr_assert_eq(reader.n, CHARDEV_RING_BYTES);
    cr_assert_eq(memcmp(reader.bytes, bytes, CHARDEV_RING_BYTES), 0);
    close(pair.master);
    free(reader.bytes);
    free(bytes);
}

static bool has_break(void *arg)
{
    return ((struct front *)arg)->breaks > 0;
}

Test(chardev, ctrl_a_b_sends_a_break)
{
    struct terminal_pair pair;

    make_terminal(&pair);
    open_stdio(pair.slave, pair.slave, 16);
    cr_assert_eq(write(pair.master, "\001b", 2), 2);
    fake_env_wait(&fake, has_break, &front);
    cr_assert_eq(front.n_got, 0);
    detach();
    drop_terminal(&pair);
}

Test(chardev, ctrl_a_h_explains_itself_on_the_terminal)
{
    struct terminal_pair pair;
    char text[1000] = {0};

    make_terminal(&pair);
    open_stdio(pair.slave, -1, 16);
    cr_assert_eq(write(pair.master, "\001h", 2), 2);
    while (poll(&(struct pollfd){.fd = pair.master, .events = POLLIN}, 1, 1) == 0)
        fake_env_settle(&fake);
    cr_assert_gt(read(pair.master, text, sizeof(text) - 1), 0);
    cr_assert(strstr(text, "Ctrl-a x"));
    cr_assert_eq(front.n_got, 0);
    detach();
    drop_terminal(&pair);
}

Test(chardev, a_megabyte_pasted_at_a_terminal_loses_nothing)
{
    struct terminal_pair pair;
    uint8_t *bytes = make_pattern(PASTE);
    struct writer writer = {.bytes = bytes};
    pthread_t thread;

    for (size_t i = 0; i < PASTE; i++)
        if (bytes[i] == '\001')
            bytes[i] = 'a';
    make_terminal(&pair);
    open_stdio(pair.slave, pair.slave, 16);
    writer.fd = pair.master;
    cr_assert_eq(pthread_create(&thread, NULL, write_in_pieces, &writer), 0);
    wait_input(PASTE);
    pthread_join(thread, NULL);
    cr_assert_eq(memcmp(front.got, bytes, PASTE), 0);
    detach();
    drop_terminal(&pair);
    free(bytes);
}

static bool has_resize(void *arg)
{
    return ((struct front *)arg)->resizes > 0;
}

Test(chardev, the_window_size_is_known_and_its_change_is_told)
{
    struct terminal_pair pair;
    unsigned columns = 0, rows = 0;

    make_terminal(&pair);
    open_stdio(pair.slave, pair.slave, 16);
    cr_assert_eq(chardev_size(chardev, &columns, &rows), 0);
    cr_assert_eq(columns, 100);
    cr_assert_eq(rows, 40);
    cr_assert_eq(ioctl(pair.master, TIOCSWINSZ, &(struct winsize){.ws_col = 80, .ws_row = 25}), 0);
    /* This terminal is not our controlling one, so the kernel does not send it. */
    raise(SIGWINCH);
    fake_env_wait(&fake, has_resize, &front);
    cr_assert_eq(chardev_size(chardev, &columns, &rows), 0);
    cr_assert_eq(columns, 80);
    cr_assert_eq(rows, 25);
    detach();
    drop_terminal(&pair);
}

Test(chardev, a_terminal_that_hangs_up_ends_input_and_swallows_output)
{
    struct terminal_pair pair;

    make_terminal(&pair);
    open_stdio(pair.slave, pair.slave, 16);
    close(pair.master);
    put("nobody", 6);
    cr_assert_eq(chardev_drain(chardev, FAKE_DEADLINE_NS), 0);
    fake_env_settle(&fake);
    cr_assert_eq(front.n_got, 0);
    detach();
    close(pair.slave);
}
