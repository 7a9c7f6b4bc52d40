/*
 * A character stream on two descriptors: a terminal, pipes, files.
 *
 * All I/O is the event loop's, by io_uring; descriptors are not made non-blocking, because that
 * would reach whoever else has them open. Reads follow a poll, so that none hangs on a terminal.
 *
 * Output: the first byte leaves at once; what follows within LINGER_NS of a write leaves together,
 * because a guest that prints byte by byte would else cost a wake-up and a system call each.
 *
 * Input is read when the front end accepts some, and may be read ahead by a buffer. A terminal is
 * read also when the guest does not listen, because Ctrl-a x must work with a guest that hangs. In
 * the background a terminal is not read at all, and looked at BACKGROUND_NS later again: no signal
 * says that a running job was brought to the foreground.
 *
 * Threads: `output` and `input_wanted` come from any; everything else is the loop's thread. Fields
 * are guarded by the device lock.
 */
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "devices/chardev_internal.h"
#include "vmm/terminal.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define LINGER_NS 1000000ull
#define BACKGROUND_NS 250000000ull
/* How long destroying waits for the kernel to give up what it was asked for. */
#define CANCEL_NS 5000000000ull

#define INPUT_BYTES 4096
#define ESCAPE 0x01 /* Ctrl-a */

static const char help_text[] =
    "\r\n"
    "Ctrl-a x       end the guest\r\n"
    "Ctrl-a b       send a break\r\n"
    "Ctrl-a Ctrl-a  send one Ctrl-a\r\n"
    "Ctrl-a h       this help\r\n";

enum output_state {
    OUTPUT_IDLE,    /* the ring was empty when last looked at */
    OUTPUT_CALLED,  /* wake_call is under way */
    OUTPUT_LINGER,  /* a write has just ended; linger_timer runs */
    OUTPUT_WRITING, /* out_op: a write */
    OUTPUT_POLLING, /* out_op: waits for a descriptor that is non-blocking */
    OUTPUT_CLOSED,  /* nobody takes it any more */
};

enum input_state {
    INPUT_IDLE,       /* nothing asked for */
    INPUT_POLLING,    /* in_op: waits for input */
    INPUT_READING,    /* in_op: a read */
    INPUT_BACKGROUND, /* there is input, but not for us; background_timer runs */
    INPUT_ENDED,
};

struct stdio_chardev {
    struct chardev base; /* first */
    struct loop *loop;
    pthread_mutex_t *lock;
    struct chardev_stdio_config config;
    bool is_terminal; /* the input */
    bool closing;
    bool quit; /* config.quit() is due when the lock is released */
    struct loop_call wake_call;
    struct log_rate log_rate;

    enum output_state output;
    struct loop_op out_op;
    struct loop_timer linger_timer;
    struct iovec iov[2]; /* of the write */

    enum input_state input;
    struct loop_op in_op;
    struct loop_timer background_timer;
    struct loop_event terminal_event;
    struct loop_op help_op;
    bool escape; /* the last byte was an ESCAPE, and is held back */
    size_t start, end; /* of what waits in the buffer; a read that runs puts its bytes behind */
    /* One more than is read: an ESCAPE held back may have to come before. */
    uint8_t buffer[1 + INPUT_BYTES];
};

#define CONTAINER(ptr, member)                                                                     \
    ((struct stdio_chardev *)((char *)(ptr) - offsetof(struct stdio_chardev, member)))

static void lock(struct stdio_chardev *io)
{
    pthread_mutex_lock(io->lock);
}

/* Every callback of the loop ends here: what must run without the lock does. */
static void unlock(struct stdio_chardev *io)
{
    bool quit = io->quit;

    io->quit = false;
    pthread_mutex_unlock(io->lock);
    if (quit && io->config.quit)
        io->config.quit(io->config.arg);
}

/* ---- output ---- */

static void start_output(struct stdio_chardev *io)
{
    unsigned pieces = chardev_ring_peek(&io->base, io->iov);

    if (pieces == 0) {
        io->output = OUTPUT_IDLE;
        return;
    }
    io->output = OUTPUT_WRITING;
    loop_writev(io->loop, &io->out_op, io->config.out_fd, io->iov, pieces, LOOP_STREAM);
}

/* Starts a write unless one runs, whatever was waited for. */
static void flush_output(struct stdio_chardev *io)
{
    switch (io->output) {
    case OUTPUT_IDLE:
    case OUTPUT_CALLED:
    case OUTPUT_LINGER:
        loop_timer_cancel(&io->linger_timer);
        start_output(io);
        return;
    case OUTPUT_WRITING:
    case OUTPUT_POLLING:
    case OUTPUT_CLOSED:
        return;
    }
}

static void close_output(struct stdio_chardev *io)
{
    io->output = OUTPUT_CLOSED;
    chardev_output_gone(&io->base);
}

/* The reader has gone: nobody will ever see more. Anything else may pass (a full disk): only what
 * was to be written now is lost. */
static void output_failed(struct stdio_chardev *io, int err)
{
    if (err == -EPIPE || err == -EIO || err == -EBADF) {
        close_output(io);
        return;
    }
    log_guest(&io->log_rate, "console: output is lost: %s", strerror(-err));
    io->output = OUTPUT_IDLE;
    chardev_ring_consume(&io->base, io->iov[0].iov_len);
    start_output(io);
}

static void output_written(struct stdio_chardev *io, size_t n)
{
    bool all = n == io->iov[0].iov_len + io->iov[1].iov_len;

    /* Before the ring is consumed, which may fill it anew: see OUTPUT_IDLE in stdio_output(). */
    io->output = OUTPUT_LINGER;
    chardev_ring_consume(&io->base, n);
    if (!all || io->base.used >= CHARDEV_RING_BYTES / 2)
        start_output(io);
    else
        loop_timer_set(io->loop, &io->linger_timer, loop_now_ns() + LINGER_NS);
}

static void out_done(struct loop_op *op, int result)
{
    struct stdio_chardev *io = CONTAINER(op, out_op);

    lock(io);
    if (io->closing) {
        close_output(io);
    } else if (io->output == OUTPUT_POLLING || result == -EINTR || result == -ECANCELED) {
        start_output(io);
    } else if (result == -EAGAIN) {
        io->output = OUTPUT_POLLING;
        loop_poll(io->loop, op, io->config.out_fd, POLLOUT);
    } else if (result < 0) {
        output_failed(io, result);
    } else {
        output_written(io, (size_t)result);
    }
    unlock(io);
}

static void linger_over(struct loop_timer *timer)
{
    struct stdio_chardev *io = CONTAINER(timer, linger_timer);

    lock(io);
    flush_output(io);
    unlock(io);
}

static void stdio_output(struct chardev *chardev)
{
    struct stdio_chardev *io = (struct stdio_chardev *)chardev;

    if (io->output == OUTPUT_IDLE) {
        io->output = OUTPUT_CALLED;
        loop_call(io->loop, &io->wake_call);
    } else if (io->output == OUTPUT_LINGER && chardev->used >= CHARDEV_RING_BYTES / 2) {
        loop_call(io->loop, &io->wake_call);
    }
}

/* ---- input ---- */

static void start_help(struct stdio_chardev *io)
{
    if (!io->help_op.pending)
        loop_write(io->loop, &io->help_op, io->config.in_fd, help_text, sizeof(help_text) - 1,
                   LOOP_STREAM);
}

static void help_done(struct loop_op *op, int result)
{
    (void)op;
    (void)result; /* who sees no help may try again */
}

/* The byte after an ESCAPE; returns how many bytes it means for the guest, put at `to`. */
static size_t command(struct stdio_chardev *io, uint8_t byte, uint8_t *to)
{
    switch (byte) {
    case 'x':
        io->quit = true;
        return 0;
    case 'b':
        chardev_deliver_break(&io->base);
        return 0;
    case 'h':
    case '?':
        start_help(io);
        return 0;
    case ESCAPE:
        to[0] = ESCAPE;
        return 1;
    default:
        to[0] = ESCAPE;
        to[1] = byte;
        return 2;
    }
}

/*
 * Takes n bytes that were read to buffer[end + 1], and puts what is for the guest at buffer[end]:
 * in place, because a byte becomes two only after its ESCAPE became none.
 */
static void filter(struct stdio_chardev *io, size_t n)
{
    size_t first = io->end + 1;
    size_t to = io->end;

    for (size_t from = first; from < first + n; from++) {
        uint8_t byte = io->buffer[from];

        if (!io->is_terminal) {
            io->buffer[to++] = byte;
            continue;
        }

        if (io->escape) {
            io->escape = false;
            to += command(io, byte, io->buffer + to);
        } else if (byte == ESCAPE) {
            io->escape = true;
        } else {
            io->buffer[to++] = byte;
        }
    }
    io->end = to;
}

static void deliver(struct stdio_chardev *io)
{
    io->start += chardev_deliver(&io->base, io->buffer + io->start, io->end - io->start);
}

/* Whether to ask for input: at a terminal as long as there is room, else when the guest is out of
 * it. A guest that hangs and was sent a buffer full is ended by a signal, not by Ctrl-a x. */
static bool wants_input(const struct stdio_chardev *io)
{
    size_t waiting = io->end - io->start;

    if (io->closing)
        return false;
    return io->is_terminal ? waiting < INPUT_BYTES : waiting == 0 && io->base.credit > 0;
}

/* Gives the front end what there is, and asks for more. */
static void serve_input(struct stdio_chardev *io)
{
    deliver(io);
    if (io->input != INPUT_IDLE || !wants_input(io))
        return;
    io->input = INPUT_POLLING;
    loop_poll(io->loop, &io->in_op, io->config.in_fd, POLLIN);
}

/* True when the terminal is not ours to read; then it is looked at again later. */
static bool in_background(struct stdio_chardev *io)
{
    if (!io->is_terminal || terminal_claim())
        return false;
    loop_timer_set(io->loop, &io->background_timer, loop_now_ns() + BACKGROUND_NS);
    return true;
}

static void start_read(struct stdio_chardev *io)
{
    if (in_background(io)) {
        io->input = INPUT_BACKGROUND;
        return;
    }
    io->input = INPUT_READING;
    memmove(io->buffer, io->buffer + io->start, io->end - io->start);
    io->end -= io->start;
    io->start = 0;
    loop_read(io->loop, &io->in_op, io->config.in_fd, io->buffer + io->end + 1,
              INPUT_BYTES - io->end, LOOP_STREAM);
}

static void input_read(struct stdio_chardev *io, int result)
{
    io->input = INPUT_IDLE;
    if (result > 0) {
        filter(io, (size_t)result);
    } else if (result == -EIO && in_background(io)) {
        io->input = INPUT_BACKGROUND; /* put there between the look and the read */
        return;
    } else if (result != -EAGAIN && result != -EINTR && result != -ECANCELED) {
        io->input = INPUT_ENDED;
        return;
    }
    serve_input(io);
}

static void in_done(struct loop_op *op, int result)
{
    struct stdio_chardev *io = CONTAINER(op, in_op);

    lock(io);
    if (io->closing)
        io->input = INPUT_ENDED;
    else if (io->input == INPUT_READING)
        input_read(io, result);
    else if (result >= 0)
        start_read(io);
    else
        input_read(io, result);
    unlock(io);
}

/* In the background, also while a poll waits: the first thing typed after coming to the foreground
 * must find the terminal in raw mode. */
static void background_over(struct loop_timer *timer)
{
    struct stdio_chardev *io = CONTAINER(timer, background_timer);

    lock(io);
    if (!io->closing && !in_background(io) && io->input == INPUT_BACKGROUND) {
        io->input = INPUT_IDLE;
        serve_input(io);
    }
    unlock(io);
}

/* The size changed, or the process was stopped and continued, maybe in the background. */
static void terminal_changed(struct loop_event *event)
{
    struct stdio_chardev *io = CONTAINER(event, terminal_event);

    lock(io);
    (void)in_background(io);
    chardev_deliver_resize(&io->base);
    unlock(io);
}

static void stdio_input_wanted(struct chardev *chardev)
{
    struct stdio_chardev *io = (struct stdio_chardev *)chardev;

    if (io->input == INPUT_IDLE || io->start < io->end)
        loop_call(io->loop, &io->wake_call);
}

/* ---- the rest ---- */

static void wake(struct loop_call *call)
{
    struct stdio_chardev *io = CONTAINER(call, wake_call);

    lock(io);
    if (!io->closing) {
        flush_output(io);
        serve_input(io);
    }
    unlock(io);
}

static int stdio_size(struct chardev *chardev, unsigned *columns, unsigned *rows)
{
    struct stdio_chardev *io = (struct stdio_chardev *)chardev;

    if (io->is_terminal)
        return terminal_size(io->config.in_fd, columns, rows);
    return io->config.out_fd >= 0 ? terminal_size(io->config.out_fd, columns, rows) : -ENOTTY;
}

static bool is_drained(void *arg)
{
    struct stdio_chardev *io = arg;
    bool drained;

    lock(io);
    drained = io->base.used == 0 && io->output != OUTPUT_WRITING && io->output != OUTPUT_POLLING;
    unlock(io);
    return drained;
}

static int stdio_drain(struct chardev *chardev, uint64_t deadline_ns)
{
    struct stdio_chardev *io = (struct stdio_chardev *)chardev;

    lock(io);
    flush_output(io);
    unlock(io);
    return loop_run_until(io->loop, is_drained, io, deadline_ns);
}

static bool is_quiet(void *arg)
{
    struct stdio_chardev *io = arg;

    return !io->out_op.pending && !io->in_op.pending && !io->help_op.pending &&
           loop_event_idle(&io->terminal_event) && !atomic_load(&io->wake_call.queued);
}

static void stdio_destroy(struct chardev *chardev)
{
    struct stdio_chardev *io = (struct stdio_chardev *)chardev;

    lock(io);
    io->closing = true;
    unlock(io);
    loop_timer_cancel(&io->linger_timer);
    loop_timer_cancel(&io->background_timer);
    loop_event_remove(&io->terminal_event);
    loop_cancel(io->loop, &io->out_op);
    loop_cancel(io->loop, &io->in_op);
    loop_cancel(io->loop, &io->help_op);
    if (loop_run_until(io->loop, is_quiet, io, CANCEL_NS) < 0) {
        log_warn("console: its input or output cannot be cancelled");
        return; /* the kernel may still use the buffers */
    }
    if (io->is_terminal)
        terminal_close();
    free(io);
}

static const struct chardev_backend stdio_backend = {
    .output = stdio_output,
    .input_wanted = stdio_input_wanted,
    .size = stdio_size,
    .drain = stdio_drain,
    .destroy = stdio_destroy,
};

static int take_terminal(struct stdio_chardev *io)
{
    int err = terminal_open(io->config.in_fd);

    if (err) {
        log_error("console: the terminal cannot be set up: %s", strerror(-err));
        return err;
    }
    io->is_terminal = true;
    io->terminal_event.fired = terminal_changed;
    loop_event_add(io->loop, &io->terminal_event, terminal_event_fd());
    (void)in_background(io);
    return 0;
}

static void init_operations(struct stdio_chardev *io)
{
    io->wake_call.run = wake;
    io->out_op.done = out_done;
    io->linger_timer.expired = linger_over;
    io->in_op.done = in_done;
    io->background_timer.expired = background_over;
    io->help_op.done = help_done;
}

int chardev_stdio_create(struct chardev **out, struct loop *loop, pthread_mutex_t *lock_,
                         const struct chardev_stdio_config *config)
{
    struct stdio_chardev *io = calloc(1, sizeof(*io));
    int err;

    if (!io)
        return -ENOMEM;
    io->base.backend = &stdio_backend;
    io->loop = loop;
    io->lock = lock_;
    io->config = *config;
    init_operations(io);
    if (config->in_fd >= 0 && isatty(config->in_fd)) {
        err = take_terminal(io);
        if (err) {
            free(io);
            return err;
        }
    }
    if (config->in_fd < 0)
        io->input = INPUT_ENDED;
    if (config->out_fd < 0)
        close_output(io);
    if (io->is_terminal)
        serve_input(io);
    *out = &io->base;
    return 0;
}
