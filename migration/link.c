/*
 * The connection: non-blocking sockets, waited for together with an eventfd that cancels.
 *
 * Does not know what is sent (source.c, target.c). A message is written as a whole by one sendmsg()
 * where the socket takes it. What a peer sends is read by exactly the lengths that are expected;
 * a descriptor that nobody asked for is closed. Threads: see the header; no locks.
 * Texts: unix(7) (SCM_RIGHTS), tcp(7), getaddrinfo(3).
 */
#include "migration/link.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define NS_PER_MS 1000000ull
/* How long a peer that is told of the end may take to hang up. */
#define FAREWELL_NS (1000 * NS_PER_MS)
#define KEEPALIVE_IDLE_S 5
#define KEEPALIVE_INTERVAL_S 5
#define KEEPALIVE_COUNT 4

struct link {
    struct stream_reader reader; /* its name is `name` */
    int fd;                      /* owns */
    int cancel_fd;               /* owns: an eventfd, readable for good once cancelled */
    int received_fd;             /* owns; -1: none */
    bool is_unix;
    uint64_t sent; /* bytes */
    char name[LINK_TEXT_MAX];
};

/* ---- addresses ---- */

static bool copy_text(char *to, size_t size, const char *from, size_t length)
{
    if (length >= size)
        return false;
    memcpy(to, from, length);
    to[length] = '\0';
    return true;
}

static bool is_port(const char *text)
{
    return *text && strlen(text) <= 5 && strspn(text, "0123456789") == strlen(text) &&
           atoi(text) <= 65535;
}

static int parse_tcp(struct link_address *address, const char *text)
{
    const char *colon = strrchr(text, ':');
    size_t length = colon ? (size_t)(colon - text) : 0;

    if (!colon || !is_port(colon + 1))
        return -EINVAL;
    if (length >= 2 && text[0] == '[' && colon[-1] == ']') {
        text++;
        length -= 2;
    } else if (memchr(text, ':', length)) {
        return -EINVAL; /* an IPv6 address stands in brackets */
    }
    if (!copy_text(address->host, sizeof(address->host), text, length) ||
        !copy_text(address->port, sizeof(address->port), colon + 1, strlen(colon + 1)))
        return -EINVAL;
    return 0;
}

int link_parse(struct link_address *address, const char *text)
{
    *address = (struct link_address){0};
    if (strncmp(text, "tcp:", 4) == 0)
        return parse_tcp(address, text + 4);
    if (strncmp(text, "unix:", 5) != 0 || text[5] == '\0')
        return -EINVAL;
    address->is_unix = true;
    return copy_text(address->path, sizeof(address->path), text + 5, strlen(text + 5)) ? 0
                                                                                        : -EINVAL;
}

static void name_address(const struct link_address *address, char *to, size_t size)
{
    bool is_v6 = strchr(address->host, ':') != NULL;

    if (address->is_unix)
        snprintf(to, size, "unix:%s", address->path);
    else
        snprintf(to, size, "tcp:%s%s%s:%s", is_v6 ? "[" : "", address->host, is_v6 ? "]" : "",
                 address->port);
}

static int report(const struct link_address *address, const char *what, int err)
{
    char name[LINK_TEXT_MAX + 32];

    name_address(address, name, sizeof(name));
    log_error("%s: cannot %s: %s", name, what, strerror(-err));
    return err;
}

static struct sockaddr_un unix_address(const struct link_address *address)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};

    snprintf(un.sun_path, sizeof(un.sun_path), "%s", address->path);
    return un;
}

/* The host's addresses, to be freed by freeaddrinfo(). */
static int look_up(const struct link_address *address, bool passive, struct addrinfo **out)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                                   .ai_flags = passive ? AI_PASSIVE : 0};
    const char *host = address->host[0] ? address->host : NULL;
    int status = getaddrinfo(host, address->port, &hints, out);

    if (status == 0)
        return 0;
    log_error("tcp:%s:%s: %s", address->host, address->port, gai_strerror(status));
    return -EADDRNOTAVAIL;
}

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
    if (link->received_fd >= 0)
        close(link->received_fd);
    if (link->cancel_fd >= 0)
        close(link->cancel_fd);
    close(link->fd);
    free(link);
}

static int bind_unix(const struct link_address *address, int fd)
{
    const struct sockaddr_un un = unix_address(address);
    int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool taken = probe >= 0 && connect(probe, (const struct sockaddr *)&un, sizeof(un)) == 0;

    /* Only what is a socket, and one whose process has ended, is removed. */
    if (!taken && errno == ECONNREFUSED)
        (void)unlink(un.sun_path);
    if (probe >= 0)
        close(probe);
    if (bind(fd, (const struct sockaddr *)&un, sizeof(un)) < 0)
        return -errno;
    return 0;
}

static int listen_unix(const struct link_address *address, int *out)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    mode_t mask;
    int err;

    if (fd < 0)
        return -errno;
    mask = umask(0177); /* whoever connects hands a guest over: the person alone may */
    err = bind_unix(address, fd);
    umask(mask);
    if (!err && listen(fd, 1) < 0)
        err = -errno;
    if (err)
        close(fd);
    else
        *out = fd;
    return err;
}

static int listen_at(const struct addrinfo *at, int *out)
{
    const int on = 1;
    int fd = socket(at->ai_family, at->ai_socktype | SOCK_CLOEXEC, at->ai_protocol);
    int err;

    if (fd < 0)
        return -errno;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, at->ai_addr, at->ai_addrlen) == 0 && listen(fd, 1) == 0) {
        *out = fd;
        return 0;
    }
    err = -errno;
    close(fd);
    return err;
}

int link_listen(const struct link_address *address, int *fd)
{
    struct addrinfo *found;
    int err;

    if (address->is_unix) {
        err = listen_unix(address, fd);
        return err ? report(address, "listen", err) : 0;
    }
    err = look_up(address, true, &found);
    if (err)
        return err;
    err = -EADDRNOTAVAIL;
    for (const struct addrinfo *at = found; err && at; at = at->ai_next)
        err = listen_at(at, fd);
    freeaddrinfo(found);
    return err ? report(address, "listen", err) : 0;
}

void link_unlisten(const struct link_address *address, int fd)
{
    if (fd < 0)
        return;
    if (address->is_unix)
        (void)unlink(address->path);
    close(fd);
}

unsigned link_port(int fd)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } address = {0};
    socklen_t length = sizeof(address);

    if (getsockname(fd, &address.any, &length) < 0)
        return 0;
    if (address.any.sa_family == AF_INET)
        return ntohs(address.v4.sin_port);
    return address.any.sa_family == AF_INET6 ? ntohs(address.v6.sin6_port) : 0;
}

/* ---- who may come ---- */

/* The 16 bytes of an IPv6 address, or an IPv4 one as IPv6 writes it (RFC 4291 §2.5.5.2). */
static bool host_bytes(const struct sockaddr *address, uint8_t bytes[16])
{
    static const uint8_t mapped[12] = {[10] = 0xFF, [11] = 0xFF};

    if (address->sa_family == AF_INET6) {
        memcpy(bytes, &((const struct sockaddr_in6 *)address)->sin6_addr, 16);
        return true;
    }
    if (address->sa_family != AF_INET)
        return false;
    memcpy(bytes, mapped, sizeof(mapped));
    memcpy(bytes + 12, &((const struct sockaddr_in *)address)->sin_addr, 4);
    return true;
}

static bool is_from(int fd, const char *from)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    union {
        struct sockaddr any;
        struct sockaddr_storage room;
    } peer = {0};
    socklen_t length = sizeof(peer);
    struct addrinfo *found;
    uint8_t its[16], wanted[16];
    bool same = false;

    if (getpeername(fd, &peer.any, &length) < 0 || !host_bytes(&peer.any, its) ||
        getaddrinfo(from, NULL, &hints, &found) != 0)
        return false;
    for (const struct addrinfo *at = found; !same && at; at = at->ai_next)
        same = host_bytes(at->ai_addr, wanted) && memcmp(its, wanted, sizeof(its)) == 0;
    freeaddrinfo(found);
    return same;
}

/* A connection of somebody who may come. */
static int accept_from(int listen_fd, const char *from)
{
    for (;;) {
        int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);

        if (fd < 0 && errno != EINTR && errno != ECONNABORTED)
            return -1;
        if (fd < 0)
            continue;
        if (!from || is_from(fd, from))
            return fd;
        log_warn("somebody who is not %s wanted to hand over a guest", from);
        close(fd);
    }
}

int link_accept(struct link **out, int listen_fd, const char *from)
{
    int fd = accept_from(listen_fd, from);

    if (fd < 0) {
        int err = -errno;
        log_error("cannot accept a guest: %s", strerror(-err));
        return err;
    }
    return link_create(out, fd, "the source");
}

/* Connects within the link's patience, by a socket that does not block. */
static int connect_socket(int fd, const struct sockaddr *address, socklen_t length, int cancel_fd)
{
    struct pollfd wait[2] = {{.fd = fd, .events = POLLOUT}, {.fd = cancel_fd, .events = POLLIN}};
    socklen_t size = sizeof(int);
    int err = 0;

    if (connect(fd, address, length) == 0)
        return 0;
    if (errno != EINPROGRESS)
        return -errno;
    while (poll(wait, 2, LINK_PATIENCE_MS) < 0)
        if (errno != EINTR)
            return -errno;
    if (wait[1].revents)
        return -ECANCELED;
    if (!wait[0].revents)
        return -ETIMEDOUT;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &size) < 0 ? -errno : -err;
}

static int connect_to(const struct sockaddr *address, socklen_t length, int cancel_fd, int *out)
{
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int err = fd < 0 ? -errno : connect_socket(fd, address, length, cancel_fd);

    if (err && fd >= 0)
        close(fd);
    *out = fd;
    return err;
}

int link_connect(struct link **out, const struct link_address *address, int cancel_fd)
{
    char name[LINK_TEXT_MAX + 32];
    struct addrinfo *found;
    int fd, err;

    name_address(address, name, sizeof(name));
    if (address->is_unix) {
        const struct sockaddr_un un = unix_address(address);

        err = connect_to((const struct sockaddr *)&un, sizeof(un), cancel_fd, &fd);
    } else {
        err = look_up(address, false, &found);
        if (err)
            return err;
        err = -EADDRNOTAVAIL;
        for (const struct addrinfo *at = found; err && err != -ECANCELED && at; at = at->ai_next)
            err = connect_to(at->ai_addr, at->ai_addrlen, cancel_fd, &fd);
        freeaddrinfo(found);
    }
    return err ? report(address, "connect", err) : link_create(out, fd, name);
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

/* For the socket to be ready for `events`, at most until deadline_ns. */
static int wait_ready(struct link *link, short events, uint64_t deadline_ns)
{
    struct pollfd fds[2] = {{.fd = link->cancel_fd, .events = POLLIN},
                            {.fd = link->fd, .events = events}};

    for (;;) {
        uint64_t now = loop_now_ns();
        uint64_t left = now < deadline_ns ? deadline_ns - now : 0;
        const struct timespec limit = {.tv_sec = (time_t)(left / 1000000000ull),
                                       .tv_nsec = (long)(left % 1000000000ull)};
        int n = ppoll(fds, events ? 2 : 1, &limit, NULL);

        if (n < 0 && errno != EINTR)
            return -errno;
        if (n <= 0 && left == 0)
            return -ETIMEDOUT;
        if (n > 0 && fds[0].revents)
            return -ECANCELED;
        if (n > 0)
            return 0;
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

bool link_readable(struct link *link)
{
    struct pollfd look = {.fd = link->fd, .events = POLLIN};

    return poll(&look, 1, 0) > 0;
}

/* ---- sending ---- */

static void advance(struct msghdr *message, size_t sent)
{
    while (message->msg_iovlen > 0 && sent >= message->msg_iov->iov_len) {
        sent -= message->msg_iov->iov_len;
        message->msg_iov++;
        message->msg_iovlen--;
    }
    if (sent > 0) {
        message->msg_iov->iov_base = (char *)message->msg_iov->iov_base + sent;
        message->msg_iov->iov_len -= sent;
    }
}

/* Sends all that the message names; its iovec is used up. */
static int send_all(struct link *link, struct msghdr *message)
{
    uint64_t deadline = patience_from_now();
    int err = 0;

    advance(message, 0);
    while (!err && message->msg_iovlen > 0) {
        ssize_t n = sendmsg(link->fd, message, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n > 0) {
            link->sent += (uint64_t)n;
            advance(message, (size_t)n);
            message->msg_control = NULL; /* what came along has been sent */
            message->msg_controllen = 0;
            deadline = patience_from_now();
        } else if (n < 0 && errno == EAGAIN) {
            err = wait_ready(link, POLLOUT, deadline);
        } else if (n < 0 && errno != EINTR) {
            err = -errno;
        }
    }
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
void link_abort(struct link *link, const char *why)
{
    uint64_t deadline = loop_now_ns() + FAREWELL_NS;
    char drop[4096];
    ssize_t n = 1;

    if (link_send(link, STREAM_ABORT, "", why, strlen(why)) < 0)
        return;
    (void)shutdown(link->fd, SHUT_WR);
    while (n != 0 && wait_ready(link, POLLIN, deadline) == 0) {
        n = recv(link->fd, drop, sizeof(drop), MSG_DONTWAIT);
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            break;
    }
}

/* ---- receiving ---- */

static void keep_fd(struct link *link, struct msghdr *message)
{
    struct cmsghdr *head = CMSG_FIRSTHDR(message);

    for (; head; head = CMSG_NXTHDR(message, head)) {
        int fd;

        if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS ||
            head->cmsg_len < CMSG_LEN(sizeof(int)))
            continue;
        memcpy(&fd, CMSG_DATA(head), sizeof(fd)); /* there was room for one */
        if (link->received_fd >= 0)
            close(link->received_fd);
        link->received_fd = fd;
    }
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
    ssize_t n = recvmsg(link->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    if (n > 0)
        keep_fd(link, &message);
    return n < 0 ? -errno : n;
}

static int lost(const struct link *link, int err)
{
    if (err == -ECANCELED)
        return err;
    log_error("%s: %s", link->name,
              err == -ETIMEDOUT ? "it does not answer" : "the connection is lost");
    return err == -ETIMEDOUT ? err : -ECONNRESET;
}

static int fill(const struct stream_reader *reader, void *data, uint64_t length)
{
    struct link *link = (struct link *)(uintptr_t)reader;
    uint64_t deadline = patience_from_now();
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
            deadline = patience_from_now();
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
