/*
 * A port on a stream socket: connecting, listening, framing.
 *
 * To the peer: a batch is one sendmsg(2), out of the sender's memory; on a unix socket a message holds
 * one long frame, or short ones that stay together. What of a frame the socket does not take is copied
 * and sent when it can be, and short frames of the same batch with it; others are refused until then,
 * so that the sender holds them back.
 *
 * From the peer: the ring reads into one buffer; the frames in it are delivered from there. While the
 * receiver has no room nothing is read, and the peer's own socket fills.
 *
 * A peer that breaks the framing is disconnected; a peer that goes is waited for, or connected to
 * again. Trusts no length. Loop's thread; no locks.
 *
 * Texts: QEMU's documentation of -netdev stream; passt(1), --socket; unix(7), tcp(7).
 */
#include "net/stream_port.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "net/made.h"
#include "net/port.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define NS_PER_S 1000000000ull
#define SERVER_REST_NS (NS_PER_S / 100)
#define PREFIX 4u /* bytes of length before each frame */
#define RECORD_MAX (PREFIX + NET_FRAME_MAX)
#define IN_ROOM (4u * RECORD_MAX)
/* For the frame in which the socket stopped, and what of short ones comes with it: those that a large
 * segment was cut into are sent or refused together. */
#define OUT_ROOM (2u * RECORD_MAX)
/* What a unix socket hands over at once, or not at all (some 48 KiB: unix_stream_sendmsg()). That of a
 * longer message comes in pieces, which a reader may meet one by one: passt takes a frame's rest by a
 * single read, and forgets a length of which it sees but half. It then takes for lengths what is none,
 * and nothing arrives until the socket happens to be empty. */
#define WHOLE (32u << 10)
#define PIECES 1024u /* UIO_MAXIOV */
/* Of a local socket; as much as the kernel gives by itself is little for long frames. Those of TCP
 * grow as they have to, unless they are told, and whoever hands over a socket has seen to it. */
#define LOCAL_BUFFER (1 << 20)

struct stream_port {
    struct net_port port;
    struct loop *loop;
    union {
        struct sockaddr any;
        struct sockaddr_un local;
        struct sockaddr_storage storage;
    } address;
    socklen_t address_size;
    bool server, adopted;
    bool complained; /* nobody listens, and it was said */
    unsigned reconnect;
    int listener, fd; /* own; -1: none. fd: connected, or connecting */
    bool connected, closing;
    size_t message;  /* bytes that may go at once, of more than one frame */
    bool due;        /* a peer is to be sought as soon as the last one's operations are over */
    struct made made; /* the unix socket that is listened at */

    struct loop_op accepting; /* poll of the listener */
    struct loop_op joining;   /* poll of fd, while it connects */
    struct loop_op reading;
    struct loop_op draining;  /* poll of fd, for room */
    struct loop_timer again;

    size_t in_used, in_at;    /* bytes in `in`; where the first that was not delivered begins */
    bool blocked;             /* a frame for the peer was refused */
    size_t out_used, out_at;  /* bytes in `out`; where the first that was not sent is */
    struct stream_counters counters;
    struct log_rate log_rate;
    struct iovec pieces[PIECES];
    uint32_t prefixes[NET_BATCH];
    uint8_t in[IN_ROOM];
    uint8_t out[OUT_ROOM];
};

static struct stream_port *stream_of(struct net_port *port)
{
    return (struct stream_port *)((char *)port - offsetof(struct stream_port, port));
}

#define STREAM_OF_OP(op, field)                                                                    \
    ((struct stream_port *)((char *)(op) - offsetof(struct stream_port, field)))

static void disconnect(struct stream_port *s, const char *why);
static void seek_peer(struct stream_port *s);

/* ---- from the peer ---- */

static void read_more(struct stream_port *s)
{
    if (s->connected && !s->reading.pending && s->in_used < IN_ROOM)
        loop_read(s->loop, &s->reading, s->fd, s->in + s->in_used, IN_ROOM - s->in_used,
                  LOOP_STREAM);
}

static size_t length_at(const struct stream_port *s, size_t at)
{
    uint32_t length;

    memcpy(&length, s->in + at, sizeof(length));
    return ntohl(length);
}

/* Finds the frames that are whole, from `at` on: at most NET_BATCH. *end: where the next record
 * begins; ends[i]: where that after the i-th does. -EBADMSG: a length is none. */
static int find_frames(struct stream_port *s, struct iovec *iov, struct net_frame *frames,
                       size_t *ends, size_t *end)
{
    size_t at = s->in_at;
    int n = 0;

    while (n < NET_BATCH && s->in_used - at >= PREFIX) {
        size_t length = length_at(s, at);

        if (length > NET_FRAME_MAX) {
            *end = at;
            return n > 0 ? n : -EBADMSG; /* after those before it */
        }
        if (s->in_used - at - PREFIX < length)
            break;
        if (length < NET_FRAME_MIN) {
            s->counters.malformed++;
        } else {
            iov[n] = (struct iovec){s->in + at + PREFIX, length};
            frames[n] = (struct net_frame){.iov = &iov[n], .iovcnt = 1, .length = length};
            ends[n++] = at + PREFIX + length;
        }
        at += PREFIX + length;
    }
    *end = at;
    return n;
}

/* Delivers what is there. False: the receiver has no room, or the peer is gone. */
static bool deliver_all(struct stream_port *s)
{
    struct net_frame frames[NET_BATCH];
    struct iovec iov[NET_BATCH];
    size_t ends[NET_BATCH], end;
    unsigned taken;
    int n;

    do {
        n = find_frames(s, iov, frames, ends, &end);
        if (n < 0) {
            s->counters.malformed++;
            disconnect(s, "it sent a length that no frame has");
            return false;
        }
        taken = n > 0 ? net_port_send(&s->port, frames, (unsigned)n) : 0;
        if (taken < (unsigned)n) {
            s->in_at = taken > 0 ? ends[taken - 1] : s->in_at;
            return false;
        }
        s->in_at = end;
    } while (n > 0);
    memmove(s->in, s->in + s->in_at, s->in_used - s->in_at);
    s->in_used -= s->in_at;
    s->in_at = 0;
    return true;
}

static void pump(struct stream_port *s)
{
    bool all = deliver_all(s);

    net_port_flush(&s->port);
    if (all)
        read_more(s);
}

static void on_read(struct loop_op *op, int result)
{
    struct stream_port *s = STREAM_OF_OP(op, reading);

    if (s->closing)
        return;
    if (!s->connected) {
        if (s->due)
            seek_peer(s);
        return;
    }
    if (result == -EINTR || result == -EAGAIN) {
        read_more(s);
        return;
    }
    if (result <= 0) {
        disconnect(s, result < 0 ? strerror(-result) : "it closed the connection");
        return;
    }
    s->in_used += (size_t)result;
    pump(s);
}

static void port_ready(struct net_port *port)
{
    struct stream_port *s = stream_of(port);

    if (s->connected && !s->reading.pending && !s->closing)
        pump(s);
}

/* ---- to the peer ---- */

static void wait_for_room(struct stream_port *s)
{
    s->blocked = true;
    if (!s->draining.pending)
        loop_poll(s->loop, &s->draining, s->fd, POLLOUT);
}

static bool is_plain(const struct net_frame *frame)
{
    return frame->length >= NET_FRAME_MIN && frame->length <= NET_FRAME_MAX &&
           !frame->needs_csum && !frame->gso_type && frame->iovcnt < PIECES;
}

static size_t record_of(const struct net_frame *frame)
{
    return PREFIX + frame->length;
}

static void keep(struct stream_port *s, const struct net_frame *frame)
{
    const uint32_t prefix = htonl((uint32_t)frame->length);

    memcpy(s->out + s->out_used, &prefix, sizeof(prefix));
    net_frame_copy(frame, s->out + s->out_used + PREFIX);
    s->out_used += record_of(frame);
}

/* The socket took `sent` bytes of a message of n frames: keeps that in which it stopped, whose first
 * bytes are sent. Returns how many frames are dealt with. */
static unsigned keep_rest(struct stream_port *s, const struct net_frame *frames, unsigned n,
                          size_t sent)
{
    unsigned i = 0;

    while (i < n && sent >= record_of(&frames[i]))
        sent -= record_of(&frames[i++]);
    if (i == n || sent == 0)
        return i;
    keep(s, &frames[i]);
    s->out_at = sent;
    return i + 1;
}

/* Keeps those of n frames that are short, as long as there is room. Returns how many. */
static unsigned keep_short(struct stream_port *s, const struct net_frame *frames, unsigned n)
{
    unsigned i = 0;

    while (i < n && is_plain(&frames[i]) && record_of(&frames[i]) <= WHOLE &&
           s->out_used + record_of(&frames[i]) <= OUT_ROOM)
        keep(s, &frames[i++]);
    return i;
}

/* As many frames as go in one message, one at least; their pieces in *used, their bytes in *bytes. */
static unsigned gather(struct stream_port *s, const struct net_frame *frames, unsigned n,
                       unsigned *used, size_t *bytes)
{
    unsigned i;

    *used = 0;
    *bytes = 0;
    for (i = 0; i < n && is_plain(&frames[i]) && *used + 1 + frames[i].iovcnt <= PIECES; i++) {
        if (i > 0 && *bytes + record_of(&frames[i]) > s->message)
            break;
        s->prefixes[i] = htonl((uint32_t)frames[i].length);
        s->pieces[(*used)++] = (struct iovec){&s->prefixes[i], PREFIX};
        memcpy(&s->pieces[*used], frames[i].iov, frames[i].iovcnt * sizeof(frames[i].iov[0]));
        *used += frames[i].iovcnt;
        *bytes += record_of(&frames[i]);
    }
    return i;
}

/* Sends one message. Returns how many frames are dealt with; *full: the socket took less. */
static unsigned send_some(struct stream_port *s, const struct net_frame *frames, unsigned n,
                          bool *full)
{
    struct msghdr message = {.msg_iov = s->pieces};
    size_t bytes;
    unsigned used, fit = gather(s, frames, n, &used, &bytes);
    ssize_t sent;

    message.msg_iovlen = used;
    sent = sendmsg(s->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN && errno != EINTR) {
        /* Reading tells that the peer is gone, too, and does what is to be done then. */
        s->counters.unconnected += fit;
        return fit;
    }
    if (sent > 0 && (size_t)sent == bytes)
        return fit;
    *full = true;
    wait_for_room(s);
    return sent > 0 ? keep_rest(s, frames, fit, (size_t)sent) : 0;
}

static unsigned port_deliver(struct net_port *port, const struct net_frame *frames, unsigned n)
{
    struct stream_port *s = stream_of(port);
    unsigned done = 0;
    bool full = false;

    if (!s->connected) {
        s->counters.unconnected += n;
        return n;
    }
    if (s->out_used > s->out_at) {
        wait_for_room(s);
        return 0;
    }
    while (done < n && !full) {
        if (is_plain(&frames[done])) {
            done += send_some(s, frames + done, n - done, &full);
        } else {
            s->counters.malformed++;
            done++;
        }
    }
    return full && done > 0 ? done + keep_short(s, frames + done, n - done) : done;
}

static size_t record_at(const struct stream_port *s, size_t at)
{
    uint32_t length;

    memcpy(&length, s->out + at, sizeof(length));
    return PREFIX + ntohl(length);
}

/* Where the message ends that the next byte to be sent is in: its record's rest, or whole records. */
static size_t message_end(const struct stream_port *s)
{
    size_t begin = 0, end;

    while (begin + record_at(s, begin) <= s->out_at)
        begin += record_at(s, begin);
    end = begin + record_at(s, begin);
    while (begin == s->out_at && end < s->out_used &&
           end + record_at(s, end) - begin <= s->message)
        end += record_at(s, end);
    return end;
}

/* Sends what is kept. False: there is still some. */
static bool drain(struct stream_port *s)
{
    while (s->out_at < s->out_used) {
        ssize_t sent = send(s->fd, s->out + s->out_at, message_end(s) - s->out_at,
                            MSG_DONTWAIT | MSG_NOSIGNAL);

        if (sent < 0 && (errno == EAGAIN || errno == EINTR || errno == ENOBUFS || errno == ENOMEM))
            return false;
        if (sent < 0) { /* given up; that the peer is gone is told by the next read, whenever that is */
            s->counters.unconnected++;
            break;
        }
        s->out_at += (size_t)sent;
    }
    s->out_at = s->out_used = 0;
    return true;
}

static void on_room(struct loop_op *op, int result)
{
    struct stream_port *s = STREAM_OF_OP(op, draining);

    (void)result;
    if (s->closing)
        return;
    if (!s->connected) {
        if (s->due)
            seek_peer(s);
        return;
    }
    if (!drain(s)) {
        wait_for_room(s);
        return;
    }
    s->blocked = false;
    net_port_ready(&s->port);
}

static const struct net_port_ops port_ops = {.deliver = port_deliver, .ready = port_ready};

/* ---- peers that come and go ---- */

static void set_connected(struct stream_port *s)
{
    const int on = 1, room = LOCAL_BUFFER;

    /* The ring reads when there is something, and does not fail because there is not. */
    (void)fcntl(s->fd, F_SETFL, fcntl(s->fd, F_GETFL) & ~O_NONBLOCK);
    s->connected = true;
    s->complained = false;
    s->in_used = s->in_at = s->out_used = s->out_at = 0;
    s->message = s->address.any.sa_family == AF_UNIX ? WHOLE : SIZE_MAX;
    if (s->address.any.sa_family != AF_UNIX)
        (void)setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    else if (!s->adopted)
        (void)setsockopt(s->fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
    log_info("%s: a peer is connected", s->port.name);
    read_more(s);
}

/* A server has only to see to it that a peer that is broken off each time keeps nobody busy. */
static void try_again(struct stream_port *s)
{
    loop_timer_set(s->loop, &s->again,
                   loop_now_ns() + (s->server ? SERVER_REST_NS : s->reconnect * NS_PER_S));
}

static void connect_failed(struct stream_port *s, int err)
{
    bool is_unix = s->address.any.sa_family == AF_UNIX;

    if (s->fd >= 0)
        close(s->fd);
    s->fd = -1;
    if (!s->complained)
        log_warn("%s: cannot connect%s%s: %s; trying again every %u s", s->port.name,
                 is_unix ? " to " : "", is_unix ? s->address.local.sun_path : "", strerror(-err),
                 s->reconnect);
    s->complained = true;
    try_again(s);
}

static void on_joined(struct loop_op *op, int result)
{
    struct stream_port *s = STREAM_OF_OP(op, joining);
    socklen_t size = sizeof(result);
    int err = 0;

    if (s->closing || result == -ECANCELED)
        return;
    if (getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &err, &size) < 0)
        err = errno;
    if (err)
        connect_failed(s, -err);
    else
        set_connected(s);
}

static void join(struct stream_port *s)
{
    s->fd = socket(s->address.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s->fd < 0)
        connect_failed(s, -errno);
    else if (connect(s->fd, &s->address.any, s->address_size) == 0)
        set_connected(s);
    else if (errno == EINPROGRESS)
        loop_poll(s->loop, &s->joining, s->fd, POLLOUT);
    else
        connect_failed(s, -errno);
}

static void on_again(struct loop_timer *timer)
{
    seek_peer((struct stream_port *)((char *)timer - offsetof(struct stream_port, again)));
}

static void on_peer(struct loop_op *op, int result)
{
    struct stream_port *s = STREAM_OF_OP(op, accepting);

    if (s->closing || result == -ECANCELED)
        return;
    s->fd = accept4(s->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (s->fd < 0)
        try_again(s);
    else
        set_connected(s);
}

/* Connects, or waits for who does; not before the last connection's operations are over. */
static void seek_peer(struct stream_port *s)
{
    s->due = true;
    if (s->fd >= 0 || s->adopted || s->closing || s->reading.pending || s->draining.pending ||
        s->accepting.pending)
        return;
    s->due = false;
    if (s->server)
        loop_poll(s->loop, &s->accepting, s->listener, POLLIN);
    else
        join(s);
}

static void disconnect(struct stream_port *s, const char *why)
{
    bool waiting = s->blocked;

    log_guest(&s->log_rate, "%s: the peer is gone: %s", s->port.name, why);
    s->connected = s->blocked = false;
    loop_cancel(s->loop, &s->reading);
    loop_cancel(s->loop, &s->draining);
    (void)shutdown(s->fd, SHUT_RDWR);
    close(s->fd);
    s->fd = -1;
    if (waiting)
        net_port_ready(&s->port);
    if (!s->adopted)
        try_again(s);
}

/* ---- addresses ---- */

static int resolve(struct stream_port *s, const char *text)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                                   .ai_flags = s->server ? AI_PASSIVE : 0};
    const char *colon = strrchr(text, ':');
    struct addrinfo *found;
    char host[NI_MAXHOST];
    size_t length = (size_t)(colon - text);
    int err;

    if (*text == '[' && length > 2 && colon[-1] == ']') {
        text++;
        length -= 2;
    }
    snprintf(host, sizeof(host), "%.*s", (int)length, text);
    err = getaddrinfo(host, colon + 1, &hints, &found);
    if (err) {
        log_error("%s: the host '%s' is unknown: %s", s->port.name, host, gai_strerror(err));
        return -EHOSTUNREACH;
    }
    memcpy(&s->address, found->ai_addr, found->ai_addrlen);
    s->address_size = found->ai_addrlen;
    freeaddrinfo(found);
    return 0;
}

static int use_path(struct stream_port *s, const char *path)
{
    s->address.local.sun_family = AF_UNIX;
    snprintf(s->address.local.sun_path, sizeof(s->address.local.sun_path), "%s", path);
    s->address_size = sizeof(s->address.local);
    return 0;
}

/* Notes the path, absolute, before a socket is bound there. */
static int note_path(struct stream_port *s, const char *path)
{
    char folder[PATH_MAX], whole[PATH_MAX + sizeof(s->address.local.sun_path) + 1];

    if (access(path, F_OK) == 0) {
        log_error("%s: %s is there already: another program listens there, or left it", s->port.name,
                  path);
        return -EADDRINUSE;
    }
    if (*path == '/' || !getcwd(folder, sizeof(folder)))
        snprintf(whole, sizeof(whole), "%s", path);
    else
        snprintf(whole, sizeof(whole), "%s/%s", folder, path);
    return made_socket(&s->made, whole);
}

static int start_listening(struct stream_port *s, const struct stream_config *config)
{
    const char *where = config->path ? config->path : config->address;
    const int on = 1;
    int err = config->path ? note_path(s, config->path) : 0;

    if (err)
        return err;
    s->listener = socket(s->address.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s->listener >= 0 && !config->path)
        (void)setsockopt(s->listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (s->listener >= 0 && bind(s->listener, &s->address.any, s->address_size) == 0 &&
        listen(s->listener, 4) == 0) {
        if (config->path)
            made_socket_bound(&s->made, config->path);
        return 0;
    }
    err = -errno;
    log_error("%s: cannot listen at %s: %s", s->port.name, where, strerror(-err));
    return err;
}

/* ---- life ---- */

static int start(struct stream_port *s, const struct stream_config *config)
{
    int err = 0;

    if (config->fd >= 0) {
        s->adopted = true;
        s->address.any.sa_family = AF_UNIX;
        s->fd = config->fd;
        set_connected(s);
        return 0;
    }
    err = config->path ? use_path(s, config->path) : resolve(s, config->address);
    if (!err && s->server)
        err = start_listening(s, config);
    if (!err)
        seek_peer(s);
    return err;
}

int stream_port_create(struct stream_port **out, struct loop *loop,
                       const struct stream_config *config)
{
    struct stream_port *s = calloc(1, sizeof(*s));
    int err;

    if (!s) {
        log_error("%s: out of memory", config->name);
        return -ENOMEM;
    }
    s->port = (struct net_port){.ops = &port_ops, .name = config->name};
    s->loop = loop;
    s->server = config->server;
    s->reconnect = config->reconnect;
    s->listener = s->fd = -1;
    s->made = (struct made)MADE_NONE;
    s->accepting.done = on_peer;
    s->joining.done = on_joined;
    s->reading.done = on_read;
    s->draining.done = on_room;
    s->again.expired = on_again;
    err = start(s, config);
    if (err) {
        stream_port_destroy(s);
        return err;
    }
    *out = s;
    return 0;
}

static bool is_idle(void *arg)
{
    const struct stream_port *s = arg;

    return !s->accepting.pending && !s->joining.pending && !s->reading.pending &&
           !s->draining.pending;
}

void stream_port_destroy(struct stream_port *s)
{
    if (!s)
        return;
    s->closing = true;
    net_port_disconnect(&s->port);
    loop_timer_cancel(&s->again);
    loop_cancel(s->loop, &s->accepting);
    loop_cancel(s->loop, &s->joining);
    loop_cancel(s->loop, &s->reading);
    loop_cancel(s->loop, &s->draining);
    (void)loop_run_until(s->loop, is_idle, s, 0);
    if (s->fd >= 0)
        close(s->fd);
    if (s->listener >= 0)
        close(s->listener);
    made_undo(&s->made);
    free(s);
}

struct net_port *stream_port(struct stream_port *stream)
{
    return &stream->port;
}

bool stream_port_connected(const struct stream_port *stream)
{
    return stream->connected;
}

void stream_port_get_counters(const struct stream_port *stream, struct stream_counters *counters)
{
    *counters = stream->counters;
}
