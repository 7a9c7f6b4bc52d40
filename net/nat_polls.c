/*
 * Polls for the sockets of a user-mode NAT.
 *
 * A socket has two one-shot polls, for input and for output, so that a change of what is wanted
 * rarely cancels anything: what is wanted and not under way is started, what is under way and no
 * longer wanted is left to fire and is then not heeded. A one-shot poll looks at the socket's state
 * when it starts, so an event that was not heeded shows again when it is wanted again.
 *
 * A poll holds its file open: close(2) alone ends neither the connection nor the poll. So closing
 * cancels, and a socket's struct stays until both polls came back; the number may belong to
 * another socket by then, which has a struct of its own.
 *
 * Event loop's thread; no locks. Allocates when there are more sockets than there ever were, not
 * when they are used. Texts: poll(2), udp(7), io_uring_prep_poll_add(3).
 */
#include "net/nat_polls.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "net/nat_ends.h"
#include "vmm/util/loop.h"

#define INITIAL_FDS 64u
#define EVENTS_IN (POLLIN | POLLPRI)

struct nat_socket {
    struct loop_op in, out;
    short in_events;         /* what the pending poll `in` waits for */
    struct nat_polls *polls; /* borrowed */
    int fd;
    bool datagrams;
    bool open;
    bool fired;              /* is in polls->fired */
    unsigned round;          /* `wanted` holds when this is polls->round */
    short wanted;
    short events;            /* came, and were not yet told */
    struct nat_socket *next_fired;
    struct nat_socket *next_free;
    struct nat_flow flow;    /* its owner's business */
};

void nat_polls_init(struct nat_polls *polls, struct loop *loop)
{
    *polls = (struct nat_polls){.loop = loop};
}

void nat_polls_fini(struct nat_polls *polls)
{
    assert(nat_polls_idle(polls));
    while (polls->free) {
        struct nat_socket *next = polls->free->next_free;

        free(polls->free);
        polls->free = next;
    }
    free(polls->by_fd);
    *polls = (struct nat_polls){0};
}

bool nat_polls_idle(const struct nat_polls *polls)
{
    return polls->open == 0 && polls->closing == 0;
}

/* ---- what came ---- */

static short wanted(const struct nat_socket *sock)
{
    return sock->round == sock->polls->round ? sock->wanted : 0;
}

static void add_fired(struct nat_socket *sock)
{
    if (sock->fired)
        return;
    sock->fired = true;
    sock->next_fired = sock->polls->fired;
    sock->polls->fired = sock;
}

static void remove_fired(struct nat_socket *sock)
{
    struct nat_socket **at = &sock->polls->fired;

    if (!sock->fired)
        return;
    while (*at != sock)
        at = &(*at)->next_fired;
    *at = sock->next_fired;
    sock->fired = false;
}

static void set_free(struct nat_socket *sock)
{
    sock->next_free = sock->polls->free;
    sock->polls->free = sock;
}

/*
 * The ring may tell what woke it, and not what is there: POLLIN and POLLPRI for any data that comes,
 * so that ordinary data would be passed on as urgent; and a datagram as soon as it arrives, with a
 * wrong checksum, too, behind which a blocking read would wait. Both are believed when poll(2) shows
 * them.
 */
static short confirm(const struct nat_socket *sock)
{
    struct pollfd pollfd = {.fd = sock->fd, .events = wanted(sock)};

    return poll(&pollfd, 1, 0) == 1 ? pollfd.revents : 0;
}

static void finish(struct nat_socket *sock, int result)
{
    short events = 0;

    if (!sock->open) {
        if (!sock->in.pending && !sock->out.pending) {
            sock->polls->closing--;
            set_free(sock);
        }
        return;
    }
    if (!wanted(sock))
        return;
    /* An error is the ring's, not the socket's: it has the socket asked for anew, and no more. */
    if (result > 0)
        events = sock->datagrams || (result & POLLPRI) ? confirm(sock) : (short)result;
    sock->events |= events & (wanted(sock) | POLLERR | POLLHUP);
    add_fired(sock);
}

static void in_done(struct loop_op *op, int result)
{
    finish((struct nat_socket *)((char *)op - offsetof(struct nat_socket, in)), result);
}

static void out_done(struct loop_op *op, int result)
{
    finish((struct nat_socket *)((char *)op - offsetof(struct nat_socket, out)), result);
}

bool nat_polls_fired(const struct nat_polls *polls)
{
    return polls->fired != NULL;
}

void nat_polls_clear(struct nat_polls *polls)
{
    for (struct nat_socket *sock = polls->fired; sock; sock = sock->next_fired) {
        sock->fired = false;
        sock->events = 0;
    }
    polls->fired = NULL;
}

/* ---- sockets ---- */

static struct nat_socket *find(const struct nat_polls *polls, int fd)
{
    return fd >= 0 && (unsigned)fd < polls->n_fds ? polls->by_fd[fd] : NULL;
}

short nat_polls_events(const struct nat_polls *polls, int fd)
{
    const struct nat_socket *sock = find(polls, fd);

    return sock ? sock->events : 0;
}

struct nat_flow *nat_polls_flow(const struct nat_polls *polls, int fd)
{
    struct nat_socket *sock = find(polls, fd);

    return sock ? &sock->flow : NULL;
}

static int grow(struct nat_polls *polls, int fd)
{
    unsigned n = polls->n_fds ? polls->n_fds : INITIAL_FDS;
    struct nat_socket **by_fd;

    while (n <= (unsigned)fd)
        n *= 2;
    if (n == polls->n_fds)
        return 0;
    by_fd = reallocarray(polls->by_fd, n, sizeof(struct nat_socket *));
    if (!by_fd)
        return -ENOMEM;
    memset(by_fd + polls->n_fds, 0, (n - polls->n_fds) * sizeof(struct nat_socket *));
    polls->by_fd = by_fd;
    polls->n_fds = n;
    return 0;
}

static bool has_datagrams(int fd)
{
    int type;
    socklen_t size = sizeof(type);

    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type != SOCK_STREAM;
}

static struct nat_socket *add(struct nat_polls *polls, int fd)
{
    struct nat_socket *sock;

    if (grow(polls, fd) < 0)
        return NULL;
    sock = polls->free;
    if (sock)
        polls->free = sock->next_free;
    else
        sock = malloc(sizeof(*sock));
    if (!sock)
        return NULL;
    *sock = (struct nat_socket){
        .in.done = in_done,
        .out.done = out_done,
        .polls = polls,
        .fd = fd,
        .datagrams = has_datagrams(fd),
        .open = true,
    };
    polls->by_fd[fd] = sock;
    polls->open++;
    return sock;
}

void nat_polls_open(struct nat_polls *polls, int fd)
{
    if (fd >= 0 && !find(polls, fd))
        (void)add(polls, fd);
}

void nat_polls_close(struct nat_polls *polls, int fd)
{
    struct nat_socket *sock = find(polls, fd);

    if (!sock)
        return;
    polls->by_fd[fd] = NULL;
    polls->open--;
    sock->open = false;
    remove_fired(sock);
    if (!sock->in.pending && !sock->out.pending) {
        set_free(sock);
        return;
    }
    polls->closing++;
    loop_cancel(polls->loop, &sock->in);
    loop_cancel(polls->loop, &sock->out);
}

void nat_polls_close_all(struct nat_polls *polls)
{
    for (unsigned fd = 0; fd < polls->n_fds; fd++)
        nat_polls_close(polls, (int)fd);
}

/* ---- what is wanted ---- */

void nat_polls_want_nothing(struct nat_polls *polls)
{
    polls->round++;
}

int nat_polls_want(struct nat_polls *polls, int fd, short events)
{
    struct nat_socket *sock = find(polls, fd);
    short in = events & EVENTS_IN;

    if (!sock && fd >= 0)
        sock = add(polls, fd);
    if (!sock)
        return -ENOMEM;
    sock->wanted = events;
    sock->round = polls->round;
    if (in && !sock->in.pending) {
        sock->in_events = in;
        loop_poll(polls->loop, &sock->in, fd, (unsigned)in);
    } else if (in & ~sock->in_events) {
        loop_cancel(polls->loop, &sock->in); /* finish() has it asked for anew */
    }
    if ((events & POLLOUT) && !sock->out.pending)
        loop_poll(polls->loop, &sock->out, fd, POLLOUT);
    return 0;
}
