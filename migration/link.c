/*
 * The connection: non-blocking sockets, waited for together with an eventfd that cancels.
 *
 * Does not know what is sent (source.c, target.c), nor who is at the other end (link_address.c). A
 * message is written as a whole by one sendmsg() where the socket takes it. What a peer sends is read
 * by exactly the lengths that are expected; a descriptor that nobody asked for is closed. Threads: see
 * the header; no locks. Texts: unix(7) (SCM_RIGHTS), tcp(7), RFC 8446 (TLS 1.3).
 */
#include "migration/link_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define NS_PER_MS 1000000ull
/* How long a peer that is told of the end may take to hang up. */
#define FAREWELL_NS (1000 * NS_PER_MS)
/* For a peer to prove who it is. */
#define HANDSHAKE_NS (10000 * NS_PER_MS)
#define KEEPALIVE_IDLE_S 5
#define KEEPALIVE_INTERVAL_S 5
#define KEEPALIVE_COUNT 4

struct link {
    struct stream_reader reader; /* its name is `name` */
    int fd;                      /* owns */
    int cancel_fd;               /* owns: an eventfd, readable for good once cancelled */
    int received_fd;             /* owns; -1: none */
    struct tls *tls;             /* owns; NULL: bytes go as they are */
    bool is_unix;
    bool heard;           /* something was received */
    unsigned patience_ms; /* for receiving */
    uint64_t sent; /* bytes */
    bool torn;     /* a message left in part: nothing that follows would be understood */
    const struct link *watched[LINK_MAX_WATCHED]; /* borrowed */
    unsigned n_watched;
    char name[LINK_TEXT_MAX];
};

/* ---- making one ---- */

static void set_tcp_options(int fd)
{
    const int on = 1, idle = KEEPALIVE_IDLE_S, interval = KEEPALIVE_INTERVAL_S;
    const int count = KEEPALIVE_COUNT, patience = LINK_PATIENCE_MS;

    /* A peer that vanished is noticed also while nothing is to be sent. */
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &patience, sizeof(patience));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

static int fill(const struct stream_reader *reader, void *data, uint64_t length);

int link_create(struct link **out, int fd, const char *name)
{
    struct link *link = calloc(1, sizeof(*link));
    int domain = 0;
    socklen_t length = sizeof(domain);

    if (!link) {
        close(fd);
        return -ENOMEM;
    }
    snprintf(link->name, sizeof(link->name), "%s", name);
    link->reader = (struct stream_reader){.fd = fd, .name = link->name, .fill = fill};
    link->fd = fd;
    link->received_fd = -1;
    link->patience_ms = LINK_PATIENCE_MS;
    (void)getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length);
    link->is_unix = domain == AF_UNIX;
    if (!link->is_unix)
        set_tcp_options(fd);
    (void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    link->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (link->cancel_fd < 0) {
        int err = -errno;
        link_destroy(link);
        return err;
    }
    *out = link;
    return 0;
}

void link_destroy(struct link *link)
{
    if (!link)
        return;
    tls_destroy(link->tls);
    if (link->received_fd >= 0)
        close(link->received_fd);
    if (link->cancel_fd >= 0)
        close(link->cancel_fd);
    close(link->fd);
    free(link);
}

bool link_is_unix(const struct link *link)
{
    return link->is_unix;
}

/* ---- waiting ---- */

void link_cancel(struct link *link)
{
    (void)eventfd_write(link->cancel_fd, 1);
}

void link_rearm(struct link *link)
{
    eventfd_t count;

    (void)eventfd_read(link->cancel_fd, &count);
}

void link_set_patience(struct link *link, unsigned ms)
{
    link->patience_ms = ms;
}

int link_watch(struct link *link, const struct link *other)
{
    if (link->n_watched == LINK_MAX_WATCHED)
        return -ENOSPC;
    link->watched[link->n_watched++] = other;
    return 0;
}

void link_unwatch(struct link *link)
{
    link->n_watched = 0;
}

static bool has_event(const struct pollfd *fds, nfds_t n)
{
    while (n > 0)
        if (fds[--n].revents)
            return true;
    return false;
}

/* For the socket to be ready for `events`, at most until deadline_ns. */
static int wait_ready(struct link *link, short events, uint64_t deadline_ns)
{
    struct pollfd fds[2 + LINK_MAX_WATCHED] = {{.fd = link->cancel_fd, .events = POLLIN},
                                               {.fd = events ? link->fd : -1, .events = events}};

    for (unsigned i = 0; i < link->n_watched; i++)
        fds[2 + i] = (struct pollfd){.fd = link->watched[i]->fd, .events = POLLRDHUP};

    for (;;) {
        uint64_t now = loop_now_ns();
        uint64_t left = now < deadline_ns ? deadline_ns - now : 0;
        const struct timespec limit = {.tv_sec = (time_t)(left / 1000000000ull),
                                       .tv_nsec = (long)(left % 1000000000ull)};
        int n = ppoll(fds, 2 + link->n_watched, &limit, NULL);

        if (n < 0 && errno != EINTR)
            return -errno;
        if (n <= 0 && left == 0)
            return -ETIMEDOUT;
        if (n > 0 && fds[0].revents)
            return -ECANCELED;
        /* What this one has to say goes before the end of the others. */
        if (n > 0 && !fds[1].revents && has_event(fds + 2, link->n_watched))
            return -ECONNRESET;
        if (n > 0)
            return 0;
    }
}

int link_await_beside(struct link *link, int fd, uint64_t deadline_ns)
{
    struct pollfd fds[3] = {{.fd = link->cancel_fd, .events = POLLIN},
                            {.fd = link->fd, .events = POLLRDHUP},
                            {.fd = fd, .events = POLLIN}};

    for (;;) {
        uint64_t now = loop_now_ns();
        int left = now < deadline_ns ? (int)((deadline_ns - now) / NS_PER_MS) + 1 : 0;
        int n = poll(fds, 3, left);

        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0 && fds[0].revents)
            return -ECANCELED;
        if (n > 0 && fds[1].revents)
            return -ECONNRESET;
        if (n > 0)
            return 0;
        if (left == 0)
            return -ETIMEDOUT;
    }
}

static uint64_t patience_from_now(void)
{
    return loop_now_ns() + LINK_PATIENCE_MS * NS_PER_MS;
}

int link_wait(struct link *link, uint64_t ns)
{
    int err = wait_ready(link, 0, loop_now_ns() + ns);

    return err == -ETIMEDOUT ? 0 : err;
}

int link_await(struct link *link, uint64_t ns)
{
    return wait_ready(link, POLLIN, loop_now_ns() + ns);
}

bool link_readable(struct link *link)
{
    struct pollfd look = {.fd = link->fd, .events = POLLIN};

    /* TLS has words of its own, which are nobody's news. */
    return link->tls ? tls_readable(link->tls) : poll(&look, 1, 0) > 0;
}

/* ---- sending ---- */

static void advance(struct msghdr *message, size_t sent)
{
    while (message->msg_iovlen > 0 && sent >= message->msg_iov->iov_len) {
        sent -= message->msg_iov->iov_len;
        message->msg_iov++;
        message->msg_iovlen--;
    }
    if (message->msg_iovlen > 0) {
        message->msg_iov->iov_base = (char *)message->msg_iov->iov_base + sent;
        message->msg_iov->iov_len -= sent;
    }
}

static ssize_t transmit(struct link *link, const struct msghdr *message)
{
    ssize_t n;

    if (link->tls) {
        link->sent++; /* what it does not take may have left in part all the same */
        return tls_send(link->tls, message->msg_iov->iov_base, message->msg_iov->iov_len);
    }
    n = sendmsg(link->fd, message, MSG_NOSIGNAL | MSG_DONTWAIT);
    return n < 0 ? -errno : n;
}

/* Sends all that the message names; its iovec is used up. */
static int send_all(struct link *link, struct msghdr *message)
{
    const uint64_t before = link->sent;
    uint64_t deadline = patience_from_now();
    int err = link->torn ? -EPIPE : 0;

    advance(message, 0);
    while (!err && message->msg_iovlen > 0) {
        ssize_t n = transmit(link, message);

        if (n > 0) {
            link->sent += (uint64_t)n;
            advance(message, (size_t)n);
            message->msg_control = NULL; /* what came along has been sent */
            message->msg_controllen = 0;
            deadline = patience_from_now();
        } else if (n == -EAGAIN) {
            err = wait_ready(link, POLLOUT, deadline);
        } else if (n < 0 && n != -EINTR) {
            err = (int)n;
        }
    }
    link->torn = link->torn || (err && link->sent != before);
    return err;
}

int link_send_header(struct link *link)
{
    uint8_t header[STREAM_HEADER_BYTES];
    struct iovec piece = {header, sizeof(header)};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};

    stream_pack_header(header);
    return send_all(link, &message);
}

int link_send_pieces(struct link *link, enum stream_kind kind, const struct iovec pieces[2],
                     uint32_t crc)
{
    uint8_t head[STREAM_HEAD_BYTES];
    struct iovec all[3] = {{head, sizeof(head)}, pieces[0], pieces[1]};
    struct msghdr message = {.msg_iov = all, .msg_iovlen = 3};

    (void)stream_pack_head(head, kind, "", pieces[0].iov_len + pieces[1].iov_len, crc);
    return send_all(link, &message);
}

int link_send(struct link *link, enum stream_kind kind, const char *id, const void *payload,
              uint64_t length)
{
    uint8_t head[STREAM_HEAD_BYTES];
    struct iovec all[2] = {{head, sizeof(head)}, {(void *)(uintptr_t)payload, length}};
    struct msghdr message = {.msg_iov = all, .msg_iovlen = 2};
    int err = stream_pack_head(head, kind, id, length, stream_crc(0, payload, length));

    return err ? err : send_all(link, &message);
}

int link_send_fd(struct link *link, enum stream_kind kind, int fd)
{
    uint8_t head[STREAM_HEAD_BYTES];
    struct iovec piece = {head, sizeof(head)};
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);

    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(rights), &fd, sizeof(int));
    (void)stream_pack_head(head, kind, "", 0, stream_crc(0, "", 0));
    return send_all(link, &message);
}

uint64_t link_sent(const struct link *link)
{
    return link->sent;
}

/* Data that the peer has still on its way would make the kernel reset the connection, and the
 * message just sent with it: so it is taken in. */
static void take_leave(struct link *link)
{
    uint64_t deadline = loop_now_ns() + FAREWELL_NS;
    char drop[4096];
    ssize_t n = 1;

    (void)shutdown(link->fd, SHUT_WR);
    while (n != 0 && wait_ready(link, POLLIN, deadline) == 0) {
        n = recv(link->fd, drop, sizeof(drop), MSG_DONTWAIT);
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            break;
    }
}

void link_abort(struct link *link, const char *why)
{
    link_unwatch(link); /* the peer is to hear it all the same */
    if (link_send(link, STREAM_ABORT, "", why, strlen(why)) == 0)
        take_leave(link);
}

/* ---- TLS ---- */

static int shake_hands(struct link *link, int cancel_fd)
{
    const uint64_t deadline = loop_now_ns() + HANDSHAKE_NS;
    int err;

    while ((err = tls_handshake(link->tls)) == -EAGAIN) {
        struct pollfd fds[3] = {{.fd = link->cancel_fd, .events = POLLIN},
                                {.fd = cancel_fd, .events = POLLIN},
                                {.fd = link->fd,
                                 .events = tls_wants_write(link->tls) ? POLLOUT : POLLIN}};
        uint64_t now = loop_now_ns();
        int n = now < deadline ? poll(fds, 3, (int)((deadline - now) / NS_PER_MS) + 1) : 0;

        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0 && (fds[0].revents || fds[1].revents))
            return -ECANCELED;
        if (n == 0 && loop_now_ns() >= deadline)
            return -ETIMEDOUT;
    }
    return err;
}

int link_secure(struct link *link, const struct tls_identity *identity, const char *host,
                int cancel_fd, char reason[TLS_REASON_MAX])
{
    int err = tls_create(&link->tls, identity, link->fd, host);

    reason[0] = '\0';
    if (!err)
        err = shake_hands(link, cancel_fd);
    if (!err || err == -ECANCELED)
        return err;
    snprintf(reason, TLS_REASON_MAX, "%s",
             link->tls && err != -ETIMEDOUT ? tls_reason(link->tls) : strerror(-err));
    if (link->tls && err != -ETIMEDOUT)
        take_leave(link); /* it may have been told why */
    return err;
}

/* ---- receiving ---- */

/* Of those that came along the last: with the room for one, padding included, there may be two. */
static void keep_fd(struct link *link, struct msghdr *message)
{
    struct cmsghdr *head = CMSG_FIRSTHDR(message);

    for (; head; head = CMSG_NXTHDR(message, head)) {
        if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t at = 0; CMSG_LEN(at + sizeof(int)) <= head->cmsg_len; at += sizeof(int)) {
            if (link->received_fd >= 0)
                close(link->received_fd);
            memcpy(&link->received_fd, CMSG_DATA(head) + at, sizeof(int));
        }
    }
}

/* RFC 8446 §5.1: the type of a record that TLS begins or ends with. A stream begins otherwise. */
static bool speaks_tls(const void *data)
{
    enum { ALERT = 21, HANDSHAKE = 22 };
    const uint8_t first = *(const uint8_t *)data;

    return first == ALERT || first == HANDSHAKE;
}

static ssize_t receive(struct link *link, void *data, size_t length)
{
    struct iovec piece = {data, length};
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    ssize_t n;

    if (link->tls)
        return tls_receive(link->tls, data, length);
    n = recvmsg(link->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n > 0 && !link->heard && !link->is_unix && speaks_tls(data))
        return -EPROTO;
    link->heard = link->heard || n > 0;
    if (n > 0)
        keep_fd(link, &message);
    return n < 0 ? -errno : n;
}

static int lost(const struct link *link, int err)
{
    if (err == -ECANCELED)
        return err;
    if (link->tls && err != -ETIMEDOUT && tls_reason(link->tls)[0])
        log_error("%s: %s", link->name, tls_reason(link->tls));
    else
        log_error("%s: %s", link->name,
                  err == -ETIMEDOUT ? "it does not answer"
                  : err == -EPROTO  ? "it speaks TLS, and this side does not: that is tls:HOST:PORT"
                                    : "the connection is lost");
    return err == -ETIMEDOUT || err == -EPROTO || err == -EKEYREJECTED ? err : -ECONNRESET;
}

static uint64_t receive_deadline(const struct link *link)
{
    return link->patience_ms ? loop_now_ns() + link->patience_ms * NS_PER_MS : UINT64_MAX;
}

static int fill(const struct stream_reader *reader, void *data, uint64_t length)
{
    struct link *link = (struct link *)(uintptr_t)reader;
    uint64_t deadline = receive_deadline(link);
    uint8_t *at = data;

    while (length > 0) {
        ssize_t n = receive(link, at, length > INT_MAX ? INT_MAX : length);
        int err = 0;

        if (n == -EAGAIN)
            err = wait_ready(link, POLLIN, deadline);
        else if (n == 0)
            err = -ECONNRESET;
        else if (n < 0 && n != -EINTR)
            err = (int)n;
        if (err)
            return lost(link, err);
        if (n > 0) {
            at += n;
            length -= (uint64_t)n;
            deadline = receive_deadline(link);
        }
    }
    return 0;
}

const struct stream_reader *link_reader(struct link *link)
{
    return &link->reader;
}

int link_take_fd(struct link *link)
{
    int fd = link->received_fd;

    link->received_fd = -1;
    return fd;
}
