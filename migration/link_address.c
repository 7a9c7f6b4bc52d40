/*
 * Where links begin: addresses, listening sockets, who may come, connecting.
 *
 * Does not know what goes through a connection (link.c). No state; any thread.
 * Texts: getaddrinfo(3), unix(7).
 */
#include "migration/link_internal.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "vmm/util/log.h"
#include "vmm/util/unix_probe.h"

/* A source's further connections come at once. */
#define BACKLOG 32

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
    address->is_tls = strncmp(text, "tls:", 4) == 0;
    if (address->is_tls || strncmp(text, "tcp:", 4) == 0)
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
        snprintf(to, size, "%s:%s%s%s:%s", address->is_tls ? "tls" : "tcp", is_v6 ? "[" : "", address->host, is_v6 ? "]" : "",
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

/* The host's addresses, to be freed by freeaddrinfo(). A status of getaddrinfo(), logged. */
static int look_up(const struct link_address *address, bool passive, struct addrinfo **out)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                                   .ai_flags = passive ? AI_PASSIVE : 0};
    const char *host = address->host[0] ? address->host : NULL;
    int status = getaddrinfo(host, address->port, &hints, out);

    if (status != 0)
        log_error("%s:%s:%s: %s", address->is_tls ? "tls" : "tcp", address->host, address->port,
                  gai_strerror(status));
    return status;
}

/* ---- listening ---- */

static int bind_unix(const struct link_address *address, int fd)
{
    const struct sockaddr_un un = unix_address(address);

    /* Only what is a socket, and one whose process has ended, is removed. */
    if (unix_probe(&un) == -ECONNREFUSED)
        (void)unlink(un.sun_path);
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
    if (!err && listen(fd, BACKLOG) < 0)
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
    if (bind(fd, at->ai_addr, at->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0) {
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
    if (look_up(address, true, &found) != 0)
        return -EADDRNOTAVAIL;
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

/* Whether whoever connected may come; if not, that is over. */
static bool admit(int fd, const char *from)
{
    if (!from || is_from(fd, from))
        return true;
    log_warn("somebody who is not %s wanted to hand over a guest", from);
    close(fd);
    return false;
}

/* Until somebody connects. -ECANCELED: cancel_fd (-1: none) became readable before. */
static int await_peer(int listen_fd, int cancel_fd)
{
    struct pollfd wait[2] = {{.fd = listen_fd, .events = POLLIN},
                             {.fd = cancel_fd, .events = POLLIN}};

    while (poll(wait, 2, -1) < 0)
        if (errno != EINTR)
            return -errno;
    return wait[1].revents ? -ECANCELED : 0;
}

/* A connection of somebody who may come, or a negative errno. */
static int accept_from(int listen_fd, const struct link_terms *terms)
{
    for (;;) {
        int err = await_peer(listen_fd, terms->cancel_fd);
        int fd = err ? -1 : accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);

        if (err)
            return err;
        if (fd < 0 && errno != EINTR && errno != ECONNABORTED)
            return -errno;
        if (fd >= 0 && admit(fd, terms->from))
            return fd;
    }
}

/* The link of one who was admitted. -EAGAIN: it does not prove who it is, and was hung up on. */
static int take_in(struct link **out, int fd, struct link_terms *terms)
{
    struct link *link;
    int err = link_create(&link, fd, "the source");

    if (err)
        return err;
    if (terms->identity &&
        link_secure(link, terms->identity, terms->from, terms->cancel_fd, terms->reason) < 0) {
        log_warn("somebody who wanted to hand over a guest was hung up on: %s", terms->reason);
        link_destroy(link);
        return -EAGAIN;
    }
    *out = link;
    return 0;
}

int link_accept(struct link **out, int listen_fd, struct link_terms *terms)
{
    int err;

    do {
        int fd = accept_from(listen_fd, terms);

        if (fd == -ECANCELED)
            return fd;
        if (fd < 0) {
            log_error("cannot accept a guest: %s", strerror(-fd));
            return fd;
        }
        err = take_in(out, fd, terms);
    } while (err == -EAGAIN);
    return err;
}

/* Who connects is still there after it, and would be again and again; else accept(2) lost just the one. */
static bool is_short_of(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

int link_accept_beside(struct link **out, struct link *link, int listen_fd,
                       struct link_terms *terms, uint64_t deadline_ns)
{
    for (;;) {
        int fd = -1, err = listen_fd < 0 ? -ENOTCONN : link_await_beside(link, listen_fd, deadline_ns);

        if (!err)
            fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
        if (!err && fd < 0 && is_short_of(errno))
            err = -errno;
        if (err) {
            log_error("%s: its further connections do not come: %s", link_reader(link)->name,
                      strerror(-err));
            return err;
        }
        if (fd < 0 || !admit(fd, terms->from))
            continue;
        err = take_in(out, fd, terms);
        if (err != -EAGAIN)
            return err;
    }
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

/* The connection is there; who is at its end? */
static int greet(struct link **out, const struct link_address *address, struct link_terms *terms,
                 int fd, const char *name)
{
    struct link *link;
    int err = link_create(&link, fd, name);

    if (err)
        return err;
    if (address->is_tls)
        err = link_secure(link, terms->identity, address->host, terms->cancel_fd, terms->reason);
    if (!err) {
        *out = link;
        return 0;
    }
    if (terms->reason[0])
        log_error("%s: %s", name, terms->reason);
    link_destroy(link);
    return err;
}

int link_connect(struct link **out, const struct link_address *address, struct link_terms *terms)
{
    const int cancel_fd = terms->cancel_fd;
    char name[LINK_TEXT_MAX + 32];
    struct addrinfo *found;
    int fd, err;

    terms->reason[0] = '\0';
    name_address(address, name, sizeof(name));
    if (address->is_unix) {
        const struct sockaddr_un un = unix_address(address);

        err = connect_to((const struct sockaddr *)&un, sizeof(un), cancel_fd, &fd);
    } else {
        err = look_up(address, false, &found);
        if (err) {
            snprintf(terms->reason, sizeof(terms->reason), "%s", gai_strerror(err));
            return -EADDRNOTAVAIL;
        }
        err = -EADDRNOTAVAIL;
        for (const struct addrinfo *at = found; err && err != -ECANCELED && at; at = at->ai_next)
            err = connect_to(at->ai_addr, at->ai_addrlen, cancel_fd, &fd);
        freeaddrinfo(found);
    }
    return err ? report(address, "connect", err) : greet(out, address, terms, fd, name);
}
