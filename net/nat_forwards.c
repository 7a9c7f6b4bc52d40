/*
 * The forwards of a user-mode NAT, by libslirp.
 *
 * The library makes and owns their sockets: one cannot be handed to another process with what waits at
 * it, only closed here and opened there. A connection that comes between, some milliseconds, is
 * refused. Event loop's thread; no locks. Texts: libslirp.h of libslirp 4.7; socket(7) (SO_REUSEADDR).
 */
#include "net/nat_forwards.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>

#include "vmm/util/log.h"

#define NS_PER_MS 1000000ull
#define BACKLOG 128 /* connections that wait for accept(2); the library asks for 1 */
/* Whoever lets go of a port does so within a round of its loop; another program, if ever. */
#define RETRY_FAST_NS (1 * NS_PER_MS)
#define FAST_NS (50 * NS_PER_MS)
#define RETRY_NS (100 * NS_PER_MS)
#define TELL_NS (1000 * NS_PER_MS)
#define GIVE_UP_NS (10000 * NS_PER_MS)

static int failed(const struct nat_forwards *f, const struct net_forward *forward, int err)
{
    const char *protocol = forward->udp ? "UDP" : "TCP";
    char host[INET_ADDRSTRLEN];

    inet_ntop(AF_INET, &forward->host_addr, host, sizeof(host));
    if (err == -EADDRINUSE)
        log_error("%s: cannot forward %s port %s:%u: it is in use by another program; choose "
                  "another port", f->name, protocol, host, forward->host_port);
    else if (err == -EADDRNOTAVAIL)
        log_error("%s: cannot forward %s port %s:%u: this host does not have that address", f->name,
                  protocol, host, forward->host_port);
    else if (err == -EACCES)
        log_error("%s: cannot forward %s port %s:%u: ports below 1024 need CAP_NET_BIND_SERVICE; "
                  "choose a higher one", f->name, protocol, host, forward->host_port);
    else
        log_error("%s: cannot forward %s port %s:%u: %s", f->name, protocol, host,
                  forward->host_port, strerror(-err));
    return err;
}

/* Finds the listening sockets, which the library does not tell; and has more than one connection wait
 * at each. */
static int note_listener(int fd, int events, void *opaque)
{
    struct nat_forwards *f = opaque;
    int listening;
    socklen_t size = sizeof(listening);

    (void)events;
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) < 0 || !listening ||
        f->n_listeners == NAT_MAX_FORWARDS)
        return -1;
    f->listeners[f->n_listeners++] = fd;
    (void)listen(fd, BACKLOG);
    return -1;
}

static void note_listeners(struct nat_forwards *f)
{
    uint32_t timeout_ms = UINT32_MAX;

    f->n_listeners = 0;
    f->api->slirp_pollfds_fill(f->slirp, &timeout_ms, note_listener, f);
    f->changed(f);
}

static int bind_one(struct nat_forwards *f, unsigned index)
{
    const struct net_forward *forward = &f->each[index].forward;

    errno = 0;
    if (f->api->slirp_add_hostfwd(f->slirp, forward->udp, forward->host_addr, forward->host_port,
                                  forward->guest_addr, forward->guest_port) < 0)
        return errno ? -errno : -EINVAL;
    f->each[index].bound = true;
    f->n_bound++;
    return 0;
}

int nat_forwards_bind(struct nat_forwards *f)
{
    int err = 0;

    for (unsigned i = 0; !err && i < f->n; i++) {
        err = bind_one(f, i);
        if (err)
            return failed(f, &f->each[i].forward, err);
    }
    note_listeners(f);
    return 0;
}

/* True: it is to be tried again. */
static bool try_one(struct nat_forwards *f, unsigned index, uint64_t for_ns)
{
    const struct net_forward *forward = &f->each[index].forward;
    char text[NET_FORWARD_TEXT_MAX];
    int err = bind_one(f, index);

    net_forward_format(forward, text, sizeof(text));
    if (!err && f->told)
        log_info("%s: forward %s works now", f->name, text);
    if (!err)
        return false;
    if (err == -EADDRINUSE && for_ns < GIVE_UP_NS) {
        if (for_ns >= TELL_NS && !f->told)
            log_warn("%s: forward %s does not work yet: the port is in use", f->name, text);
        f->told = f->told || for_ns >= TELL_NS;
        return true;
    }
    (void)failed(f, forward, err);
    return false;
}

static void claim(struct nat_forwards *f)
{
    uint64_t now_ns = loop_now_ns(), for_ns = now_ns - f->since_ns;
    unsigned before = f->n_bound;
    bool again = false;

    for (unsigned i = 0; i < f->n; i++)
        if (!f->each[i].bound && try_one(f, i, for_ns))
            again = true;
    if (f->n_bound > before)
        note_listeners(f);
    if (again)
        loop_timer_set(f->loop, &f->retry, now_ns + (for_ns < FAST_NS ? RETRY_FAST_NS : RETRY_NS));
}

static void on_retry(struct loop_timer *timer)
{
    claim((struct nat_forwards *)((char *)timer - offsetof(struct nat_forwards, retry)));
}

void nat_forwards_claim(struct nat_forwards *f)
{
    loop_timer_cancel(&f->retry);
    f->since_ns = loop_now_ns();
    f->told = false;
    claim(f);
}

void nat_forwards_release(struct nat_forwards *f)
{
    loop_timer_cancel(&f->retry);
    /* The loop's polls hold the files open when the library has closed them. A socket that does not
     * listen any more is in nobody's way, since all have SO_REUSEADDR. */
    for (unsigned i = 0; i < f->n_listeners; i++)
        (void)shutdown(f->listeners[i], SHUT_RDWR);
    for (unsigned i = 0; i < f->n; i++) {
        const struct net_forward *forward = &f->each[i].forward;

        if (f->each[i].bound)
            (void)f->api->slirp_remove_hostfwd(f->slirp, forward->udp, forward->host_addr,
                                               forward->host_port);
        f->each[i].bound = false;
    }
    f->n_bound = f->n_listeners = 0;
    f->changed(f);
}

void nat_forwards_init(struct nat_forwards *f, const struct net_forward *each, unsigned n)
{
    f->retry.expired = on_retry;
    f->n = n;
    for (unsigned i = 0; i < n; i++)
        f->each[i].forward = each[i];
}

void nat_forwards_fini(struct nat_forwards *f)
{
    loop_timer_cancel(&f->retry);
}

bool nat_forwards_listen_at(const struct nat_forwards *f, int fd)
{
    for (unsigned i = 0; i < f->n_listeners; i++)
        if (f->listeners[i] == fd)
            return true;
    return false;
}
