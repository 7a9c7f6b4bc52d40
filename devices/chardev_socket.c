/*
 * A character stream on a unix socket that people come to and go from.
 *
 * Nobody need be there: output is kept in a backlog of the last BACKLOG_BYTES, which whoever
 * connects gets first, and the guest never waits for a reader. Who reads too slowly loses what the
 * backlog lost, and is told. Each connection types as if it were alone; a connection that says it
 * types nothing more (shutdown(2)) gets what there is, and is closed.
 *
 * Does not know terminals nor escape characters: `ferry console` does. The listening socket is the
 * creator's to make and to take away.
 *
 * Threads: `output` and `input_wanted` come from any; everything else is the loop's thread. Fields
 * are guarded by the device lock.
 */
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "devices/chardev_internal.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define BACKLOG_BYTES CHARDEV_RING_BYTES
#define MAX_CLIENTS 8u
#define CHUNK_BYTES 4096u
#define INPUT_BYTES 256u
/* How long destroying waits for the kernel to give up what it was asked for. */
#define CANCEL_NS 5000000000ull

static const char lost_text[] = "\r\n[some output is missing here]\r\n";

struct socket_chardev;

struct client {
    struct socket_chardev *owner; /* NULL: the slot is free */
    int fd;                       /* owns */
    struct loop_op in_op, out_op;
    bool ended_input;             /* it types nothing more */
    bool broken;                  /* it is gone */
    uint64_t at;                  /* of the stream: the next byte to send */
    size_t out_start, out_end;    /* of what is being sent */
    uint8_t out[CHUNK_BYTES];
    size_t in_start, in_end;      /* of what it typed and the guest has not taken */
    uint8_t in[INPUT_BYTES];
};

struct socket_chardev {
    struct chardev base; /* first */
    struct loop *loop;
    pthread_mutex_t *lock;
    int listen_fd;       /* owns */
    struct loop_op accept_op;
    struct loop_call wake_call;
    bool closing;
    uint64_t total;      /* bytes of the stream so far; the last ones are in the backlog */
    struct client *clients[MAX_CLIENTS]; /* owns */
    uint8_t backlog[BACKLOG_BYTES];
};

static void lock(struct socket_chardev *s)
{
    pthread_mutex_lock(s->lock);
}

static void unlock(struct socket_chardev *s)
{
    pthread_mutex_unlock(s->lock);
}

/* ---- the backlog ---- */

static uint64_t oldest(const struct socket_chardev *s)
{
    return s->total < BACKLOG_BYTES ? 0 : s->total - BACKLOG_BYTES;
}

static void keep(struct socket_chardev *s, const uint8_t *bytes, size_t n)
{
    size_t at = (size_t)(s->total % BACKLOG_BYTES);
    size_t first = BACKLOG_BYTES - at < n ? BACKLOG_BYTES - at : n;

    memcpy(s->backlog + at, bytes, first);
    memcpy(s->backlog, bytes + first, n - first);
    s->total += n;
}

/* Takes all that the guest wrote; it has room again. */
static void take_output(struct socket_chardev *s)
{
    struct iovec iov[2];
    unsigned pieces = chardev_ring_peek(&s->base, iov);
    size_t n = 0;

    for (unsigned i = 0; i < pieces; i++) {
        keep(s, iov[i].iov_base, iov[i].iov_len);
        n += iov[i].iov_len;
    }
    if (n > 0)
        chardev_ring_consume(&s->base, n);
}

/* ---- a connection ---- */

/* The next of the stream into the client's buffer. */
static void fetch(struct socket_chardev *s, struct client *c)
{
    size_t at, n;

    c->out_start = 0;
    c->out_end = 0;
    if (c->at < oldest(s)) {
        memcpy(c->out, lost_text, sizeof(lost_text) - 1);
        c->out_end = sizeof(lost_text) - 1;
        c->at = oldest(s);
    }
    at = (size_t)(c->at % BACKLOG_BYTES);
    n = (size_t)(s->total - c->at);
    if (n > sizeof(c->out) - c->out_end)
        n = sizeof(c->out) - c->out_end;
    if (n > BACKLOG_BYTES - at)
        n = BACKLOG_BYTES - at;
    memcpy(c->out + c->out_end, s->backlog + at, n);
    c->out_end += n;
    c->at += n;
}

static void serve_output(struct socket_chardev *s, struct client *c)
{
    if (c->out_op.pending || c->broken || s->closing)
        return;
    if (c->out_start == c->out_end)
        fetch(s, c);
    if (c->out_start < c->out_end)
        loop_write(s->loop, &c->out_op, c->fd, c->out + c->out_start, c->out_end - c->out_start,
                   LOOP_STREAM);
}

/* Gives the guest what was typed, and asks for more when it took all. */
static void serve_input(struct socket_chardev *s, struct client *c)
{
    c->in_start += chardev_deliver(&s->base, c->in + c->in_start, c->in_end - c->in_start);
    if (c->in_start < c->in_end || c->in_op.pending || c->ended_input || c->broken || s->closing)
        return;
    c->in_start = c->in_end = 0;
    loop_read(s->loop, &c->in_op, c->fd, c->in, sizeof(c->in), LOOP_STREAM);
}

/* Whether nothing is left to be done for it. */
static bool is_finished(const struct client *c)
{
    bool served = c->ended_input && c->in_start == c->in_end && c->out_start == c->out_end &&
                  c->at == c->owner->total;

    return (c->broken || served) && !c->in_op.pending && !c->out_op.pending;
}

static void close_client(struct client *c)
{
    close(c->fd);
    free(c);
}

/* Serves all, and lets go of those that are done with. */
static void serve_clients(struct socket_chardev *s)
{
    for (unsigned i = 0; i < MAX_CLIENTS; i++) {
        struct client *c = s->clients[i];

        if (!c)
            continue;
        if (!c->broken) {
            serve_input(s, c);
            serve_output(s, c);
        }
        if (!is_finished(c))
            continue;
        s->clients[i] = NULL;
        close_client(c);
    }
}

static void client_broke(struct client *c)
{
    c->broken = true;
    loop_cancel(c->owner->loop, &c->in_op);
    loop_cancel(c->owner->loop, &c->out_op);
}

static void in_done(struct loop_op *op, int result)
{
    struct client *c = (struct client *)((char *)op - offsetof(struct client, in_op));
    struct socket_chardev *s = c->owner;

    lock(s);
    if (result > 0)
        c->in_end = (size_t)result;
    else if (result == 0)
        c->ended_input = true;
    else if (result != -EINTR && result != -EAGAIN)
        client_broke(c);
    serve_clients(s);
    unlock(s);
}

static void out_done(struct loop_op *op, int result)
{
    struct client *c = (struct client *)((char *)op - offsetof(struct client, out_op));
    struct socket_chardev *s = c->owner;

    lock(s);
    if (result > 0)
        c->out_start += (size_t)result;
    else if (result != -EINTR && result != -EAGAIN)
        client_broke(c);
    serve_clients(s);
    unlock(s);
}

/* ---- coming ---- */

static void add_client(struct socket_chardev *s, int fd)
{
    struct client *c = NULL;
    unsigned i = 0;

    while (i < MAX_CLIENTS && s->clients[i])
        i++;
    if (i < MAX_CLIENTS)
        c = calloc(1, sizeof(*c));
    if (!c) {
        close(fd); /* one too many: who comes sees the end at once */
        return;
    }
    c->owner = s;
    c->fd = fd;
    c->in_op.done = in_done;
    c->out_op.done = out_done;
    c->at = oldest(s);
    s->clients[i] = c;
}

static void client_waits(struct loop_op *op, int result)
{
    struct socket_chardev *s =
        (struct socket_chardev *)((char *)op - offsetof(struct socket_chardev, accept_op));
    int fd;

    lock(s);
    if (result >= 0 && !s->closing) {
        while ((fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC)) >= 0)
            add_client(s, fd);
        serve_clients(s);
        loop_poll(s->loop, &s->accept_op, s->listen_fd, POLLIN);
    }
    unlock(s);
}

/* ---- the back end ---- */

static void wake(struct loop_call *call)
{
    struct socket_chardev *s =
        (struct socket_chardev *)((char *)call - offsetof(struct socket_chardev, wake_call));

    lock(s);
    if (!s->closing) {
        take_output(s);
        serve_clients(s);
    }
    unlock(s);
}

static void call_loop(struct chardev *chardev)
{
    struct socket_chardev *s = (struct socket_chardev *)chardev;

    loop_call(s->loop, &s->wake_call);
}

static bool is_drained(void *arg)
{
    struct socket_chardev *s = arg;
    bool drained;

    lock(s);
    drained = s->base.used == 0;
    for (unsigned i = 0; drained && i < MAX_CLIENTS; i++) {
        const struct client *c = s->clients[i];

        drained = !c || c->broken || (c->at == s->total && c->out_start == c->out_end);
    }
    unlock(s);
    return drained;
}

static int socket_drain(struct chardev *chardev, uint64_t deadline_ns)
{
    struct socket_chardev *s = (struct socket_chardev *)chardev;

    call_loop(chardev);
    return loop_run_until(s->loop, is_drained, s, deadline_ns);
}

static bool is_quiet(void *arg)
{
    struct socket_chardev *s = arg;
    bool quiet = !s->accept_op.pending && !atomic_load(&s->wake_call.queued);

    for (unsigned i = 0; quiet && i < MAX_CLIENTS; i++)
        quiet = !s->clients[i] ||
                (!s->clients[i]->in_op.pending && !s->clients[i]->out_op.pending);
    return quiet;
}

static void socket_destroy(struct chardev *chardev)
{
    struct socket_chardev *s = (struct socket_chardev *)chardev;

    lock(s);
    s->closing = true;
    for (unsigned i = 0; i < MAX_CLIENTS; i++)
        if (s->clients[i])
            client_broke(s->clients[i]);
    unlock(s);
    loop_cancel(s->loop, &s->accept_op);
    if (loop_run_until(s->loop, is_quiet, s, CANCEL_NS) < 0) {
        log_warn("console: its input or output cannot be cancelled");
        return; /* the kernel may still use the buffers */
    }
    for (unsigned i = 0; i < MAX_CLIENTS; i++)
        if (s->clients[i])
            close_client(s->clients[i]);
    close(s->listen_fd);
    free(s);
}

static const struct chardev_backend socket_backend = {
    .output = call_loop,
    .input_wanted = call_loop,
    .drain = socket_drain,
    .destroy = socket_destroy,
};

size_t chardev_socket_last(struct chardev *chardev, uint8_t bytes[CHARDEV_RING_BYTES])
{
    struct socket_chardev *s = (struct socket_chardev *)chardev;
    size_t n;

    lock(s);
    n = (size_t)(s->total - oldest(s));
    for (size_t i = 0; i < n; i++)
        bytes[i] = s->backlog[(oldest(s) + i) % BACKLOG_BYTES];
    unlock(s);
    return n;
}

int chardev_socket_create(struct chardev **out, struct loop *loop, pthread_mutex_t *lock_,
                          int listen_fd)
{
    struct socket_chardev *s = calloc(1, sizeof(*s));

    if (!s)
        return -ENOMEM;
    s->base.backend = &socket_backend;
    s->loop = loop;
    s->lock = lock_;
    s->listen_fd = listen_fd;
    s->accept_op.done = client_waits;
    s->wake_call.run = wake;
    loop_poll(loop, &s->accept_op, listen_fd, POLLIN);
    *out = &s->base;
    return 0;
}
