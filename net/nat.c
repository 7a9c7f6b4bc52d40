/*
 * User-mode NAT by libslirp: its callbacks, its timers, its sockets in the event loop; the port.
 *
 * Each time before the loop sleeps, prepare() lets the library work if a socket fired or a timer is
 * due, and asks it what to wait for if anything happened that may have changed that. While nothing
 * happens the loop's other work does not touch the library at all.
 *
 * Time: the library wants to be called twice a second while it has connections, and also while it
 * only listens for the forwards, when it has nothing to do. So that an idle process sleeps, the
 * tick stops in the second case. As the library's clock stands still between calls, it is set
 * right (by a call that looks at no socket) before a frame is handed in after a pause.
 *
 * Large segments pass both ways (nat_segments.c). Small ones that follow each other go to a guest
 * that accepts it as one large segment, at the latest when the library has done its work. Frames to
 * the guest that its NIC refuses wait in a bounded backlog; then they are dropped and counted, and
 * TCP sends them again. Frames from the guest are copied once before anybody looks at them, pass
 * nat_guard.c, and are copied again by the library.
 *
 * Connections that both sides have ended, and that the library would keep for ten seconds, are found
 * by their frames (nat_ends.c), and the library is sent a reset for each.
 *
 * Does not save the library's state: open connections do not survive a migration. Owned by the
 * event loop's thread; no locks, and never called with the device lock held.
 *
 * Texts: libslirp.h of libslirp 4.7.
 */
#include "net/nat.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/ethernet.h>
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "net/coalesce.h"
#include "net/nat_ends.h"
#include "net/nat_forwards.h"
#include "net/nat_guard.h"
#include "net/nat_polls.h"
#include "net/nat_segments.h"
#include "net/offload.h"
#include "net/slirp_api.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define NS_PER_MS 1000000ull
#define NS_PER_S 1000000000ull

/* SlirpConfig's layout as of libslirp 4.7; a newer library takes it as well. */
#define SLIRP_CONFIG_VERSION 4
/* What slirp_pollfds_fill() answers at most, however long one is ready to wait: then neither
 * connections nor fragments are there, and the call is of no use. */
#define LIBRARY_IDLE_MS 1000u
/* How long the library keeps an incomplete datagram: 60 of its ticks, and one to spare. */
#define FRAGMENT_LIFE_NS (31 * NS_PER_S)
/* How far the library's clock may be behind; its shortest timeout is 2 ms, those of sockets are
 * seconds. */
#define CLOCK_LAG_NS (100 * NS_PER_MS)

/* Sockets the guest may have open: this many, or that part of the limit of open files. */
#define MAX_SOCKETS 4096u
#define SOCKETS_SHARE 4u
#define WANTED_OPEN_FILES 65536u

/* Frames that wait for the guest to make room: so many bytes, what is lost at the ring's end
 * included. */
#define BACKLOG_BYTES (512u * 1024)
#define RECORD_ALIGN sizeof(size_t)
#define VLAN_TAG_LENGTH 4u

/* What the library takes whole: it measures IPv6 by the MTU, and knows no trains of datagrams. */
#define ACCEPTED (NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO_ECN)

#define DRAIN_DEADLINE_NS (10 * NS_PER_S)

/* Addresses, as the last byte of the network's: QEMU's choice, which guests and people know. */
#define ROUTER_HOST 2u
#define DNS_HOST 3u
#define DHCP_HOST 15u

struct nat_timer {
    struct loop_timer timer;
    struct nat *nat;      /* borrowed */
    void *cb_opaque;      /* the library's */
};

/* A ring of records: a frame's length as a size_t and its bytes, together, or a length of 0: the
 * next record is at the ring's begin. */
struct nat_backlog {
    uint8_t *bytes;       /* owns */
    size_t first, used;
    unsigned count;
};

struct nat {
    struct net_port port;
    struct loop *loop;    /* borrowed */
    struct loop_hook hook;
    struct slirp_api api;
    Slirp *slirp;         /* owns */
    struct nat_polls polls;
    struct loop_timer tick;
    uint64_t tick_at_ns;  /* 0: the tick rests */
    bool tick_due;
    struct nat_timer timers[SLIRP_TIMER_NUM];
    bool asked;           /* false: what the library wants to wait for may have changed */
    bool active;          /* something happened since the last tick */
    bool unflushed;       /* the guest's end was sent frames and not told that it was all */
    uint64_t worked_ns;   /* when the library's clock was last set */
    uint64_t fragments_until_ns; /* it may hold parts of datagrams until then */
    struct nat_forwards forwards;
    unsigned max_sockets;
    struct nat_ends ends;
    int new_socket;       /* the last that the call of the library brought; -1: none did */
    uint8_t *frame;       /* owns; the copy of what the guest sends, NET_FRAME_MAX bytes */
    unsigned mtu;
    struct net_coalescer coalescer; /* goes before the backlog */
    struct nat_backlog backlog;
    struct nat_counters counters;
    struct log_rate log_rate;
};

/* ---- frames to the guest ---- */

static size_t record_size(size_t length)
{
    return (sizeof(size_t) + length + RECORD_ALIGN - 1) / RECORD_ALIGN * RECORD_ALIGN;
}

/* The next record's bytes. */
static const uint8_t *backlog_first(struct nat_backlog *backlog, size_t *length)
{
    memcpy(length, backlog->bytes + backlog->first, sizeof(*length));
    if (*length == 0) {
        backlog->used -= BACKLOG_BYTES - backlog->first;
        backlog->first = 0;
        memcpy(length, backlog->bytes, sizeof(*length));
    }
    return backlog->bytes + backlog->first + sizeof(*length);
}

static void backlog_drop_first(struct nat_backlog *backlog, size_t length)
{
    backlog->first = (backlog->first + record_size(length)) % BACKLOG_BYTES;
    backlog->used -= record_size(length);
    backlog->count--;
}

/* Where a record of so many bytes may be put; NULL: there is no room. */
static uint8_t *backlog_room(struct nat_backlog *backlog, size_t size)
{
    size_t at = (backlog->first + backlog->used) % BACKLOG_BYTES;
    size_t wasted = BACKLOG_BYTES - at < size ? BACKLOG_BYTES - at : 0;
    static const size_t none;

    if (backlog->used + wasted + size > BACKLOG_BYTES)
        return NULL;
    if (wasted > 0) {
        memcpy(backlog->bytes + at, &none, sizeof(none));
        at = 0;
    }
    backlog->used += wasted + size;
    backlog->count++;
    return backlog->bytes + at;
}

static void hold_back(struct nat *nat, const struct net_frame *frame)
{
    uint8_t *room = backlog_room(&nat->backlog, record_size(frame->length));

    if (!room) {
        net_port_drop(&nat->port, 1);
        return;
    }
    memcpy(room, &frame->length, sizeof(frame->length));
    net_frame_copy(frame, room + sizeof(frame->length));
}

static uint32_t guest_accepts(const struct nat *nat)
{
    return nat->port.peer ? net_port_accepts(nat->port.peer) : 0;
}

/* Whether nothing is left in the coalescer: the guest's end took what was, if anything. */
static bool send_coalesced(struct nat *nat)
{
    struct net_frame frame;

    if (!net_coalescer_frame(&nat->coalescer, &frame))
        return true;
    nat->unflushed = true;
    if (net_port_send(&nat->port, &frame, 1) != 1)
        return false;
    net_coalescer_clear(&nat->coalescer);
    return true;
}

/* Whether the guest's end took it, behind all that was there before. */
static bool send_frame(struct nat *nat, const struct net_frame *frame)
{
    if (!send_coalesced(nat))
        return false;
    nat->unflushed = true;
    return net_port_send(&nat->port, frame, 1) == 1;
}

static bool is_too_long(const struct nat *nat, size_t length)
{
    return length > ETHER_HDR_LEN + nat->mtu;
}

/* What the library takes for one frame and the guest's link does not. */
static void send_long(struct nat *nat, const struct net_frame *frame)
{
    const uint8_t *bytes = frame->iov[0].iov_base;
    struct nat_segment part;
    bool large = nat_segments_large(bytes, frame->length, nat->mtu, &part);
    size_t at = 0;

    if (large && (net_offload_needs(&part.frame) & ~guest_accepts(nat)) == 0) {
        if (nat->backlog.count > 0 || !send_frame(nat, &part.frame))
            hold_back(nat, frame);
        return;
    }
    /* Cut here and not by the port, what the guest's ring has no room for can be held back. */
    while (large ? nat_segments_cut(bytes, frame->length, nat->mtu, &at, &part)
                 : nat_segments_fragment(bytes, frame->length, nat->mtu, &at, &part)) {
        if (nat->backlog.count > 0 || !send_frame(nat, &part.frame))
            hold_back(nat, &part.frame);
    }
    if (at == 0)
        net_port_drop(&nat->port, 1);
}

/* A SYN passes, and the library has or will have made a socket for it. */
static void note_opening(struct nat *nat, const uint8_t *frame, size_t length, bool from_guest)
{
    struct nat_flow *flow = nat_polls_flow(&nat->polls, nat->new_socket);

    if (flow && nat_ends_open(&nat->ends, flow, nat->new_socket, frame, length, from_guest))
        nat->new_socket = -1;
}

static ssize_t on_send_packet(const void *bytes, size_t length, void *opaque)
{
    const struct iovec whole = {(void *)bytes, length};
    struct net_frame frame = {.iov = &whole, .iovcnt = 1, .length = length};
    struct nat *nat = opaque;
    uint32_t accepts = guest_accepts(nat);
    struct nat_segment opening;

    if (length < NET_FRAME_MIN || length > NET_FRAME_MAX)
        return (ssize_t)length;
    nat->unflushed = true;
    if (nat->new_socket >= 0)
        note_opening(nat, bytes, length, false);
    nat_ends_see(&nat->ends, bytes, length, false);
    if (is_too_long(nat, length)) {
        send_long(nat, &frame);
        return (ssize_t)length;
    }
    if (nat_segments_lower_mss(bytes, length, nat->mtu, &opening))
        frame = opening.frame;
    if (nat->backlog.count > 0 ||
        (!net_coalescer_add(&nat->coalescer, accepts, bytes, length) &&
         !(send_coalesced(nat) && net_coalescer_add(&nat->coalescer, accepts, bytes, length)) &&
         !send_frame(nat, &frame)))
        hold_back(nat, &frame);
    return (ssize_t)length;
}

static void flush(struct nat *nat)
{
    if (!nat->unflushed)
        return;
    (void)send_coalesced(nat);
    nat->unflushed = false;
    net_port_flush(&nat->port);
}

/* Sends the first of those held back; false: there is still no room. */
static bool send_held_back(struct nat *nat)
{
    size_t length;
    const uint8_t *bytes = backlog_first(&nat->backlog, &length);
    const struct iovec whole = {(void *)bytes, length};
    struct net_frame frame = {.iov = &whole, .iovcnt = 1, .length = length};
    struct nat_segment part;

    if (is_too_long(nat, length) && nat_segments_large(bytes, length, nat->mtu, &part))
        frame = part.frame;
    if (!send_frame(nat, &frame))
        return false;
    backlog_drop_first(&nat->backlog, length);
    return true;
}

static void port_ready(struct net_port *port)
{
    struct nat *nat = (struct nat *)port;

    while (send_coalesced(nat) && nat->backlog.count > 0 && send_held_back(nat))
        ;
    flush(nat);
}

/* ---- sockets and time ---- */

static bool full(const struct nat *nat)
{
    return nat->polls.open >= nat->max_sockets;
}

/* The index that the library gets for a socket is the socket's number. */
static int on_add_poll(int fd, int events, void *opaque)
{
    struct nat *nat = opaque;
    short wanted = 0;

    /* Callers wait in the kernel's queue until there is room: accept(2) would fail, and the
     * library try again without end. */
    if (full(nat) && nat_forwards_listen_at(&nat->forwards, fd))
        return -1;
    if (events & SLIRP_POLL_IN)
        wanted |= POLLIN;
    if (events & SLIRP_POLL_OUT)
        wanted |= POLLOUT;
    if (events & SLIRP_POLL_PRI)
        wanted |= POLLPRI;
    return nat_polls_want(&nat->polls, fd, wanted) == 0 ? fd : -1;
}

static int on_get_events(int fd, void *opaque)
{
    const struct nat *nat = opaque;
    short events = nat_polls_events(&nat->polls, fd);
    int result = 0;

    if (events & POLLIN)
        result |= SLIRP_POLL_IN;
    if (events & POLLOUT)
        result |= SLIRP_POLL_OUT;
    if (events & POLLPRI)
        result |= SLIRP_POLL_PRI;
    if (events & POLLERR)
        result |= SLIRP_POLL_ERR;
    if (events & POLLHUP)
        result |= SLIRP_POLL_HUP;
    return result;
}

/* Has the library let go of connections that are over, not while it is at work. */
static void end_finished(struct nat *nat)
{
    uint8_t reset[NAT_RESET_MAX];
    struct nat_flow *flow;

    while ((flow = nat_ends_next(&nat->ends))) {
        if (!nat_ends_is_drained(flow))
            continue; /* it has ten seconds to send the rest */
        nat->asked = false;
        nat->api.slirp_input(nat->slirp, reset, (int)nat_ends_reset(flow, reset));
    }
}

/* Lets the library deal with the sockets' events and what is due. */
static void work(struct nat *nat)
{
    nat->new_socket = -1;
    nat->active |= nat_polls_fired(&nat->polls);
    nat->tick_due = false;
    nat->worked_ns = loop_now_ns();
    nat->asked = false;
    nat->api.slirp_pollfds_poll(nat->slirp, 0, on_get_events, nat);
    nat_polls_clear(&nat->polls);
    end_finished(nat);
}

/* Sets the library's clock right: the second argument has it look at no socket. */
static void set_clock(struct nat *nat)
{
    uint64_t now_ns = loop_now_ns();

    if (now_ns - nat->worked_ns < CLOCK_LAG_NS)
        return;
    nat->worked_ns = now_ns;
    nat->api.slirp_pollfds_poll(nat->slirp, 1, on_get_events, nat);
}

/*
 * Whether the library has no socket but the forwards' own. It does not say so, but describes each
 * socket by a line, after a heading. Should that ever change, the tick goes on, and that is all.
 */
static bool only_listens(struct nat *nat)
{
    char *text = nat->api.slirp_connection_info(nat->slirp);
    unsigned lines = 0;

    for (const char *at = text; (at = strchr(at, '\n')) != NULL; at++)
        lines++;
    nat->api.free_text(text);
    return lines == nat->forwards.n_bound + 1;
}

/* quiet: nothing happened between the last two ticks. */
static void schedule_tick(struct nat *nat, uint32_t timeout_ms, bool quiet)
{
    uint64_t now_ns = loop_now_ns();
    uint64_t at_ns = now_ns + timeout_ms * NS_PER_MS;

    if (timeout_ms >= LIBRARY_IDLE_MS ||
        (quiet && now_ns > nat->fragments_until_ns && only_listens(nat))) {
        loop_timer_cancel(&nat->tick);
        nat->tick_at_ns = 0;
        return;
    }
    /* One that is set already is never put off, or steady traffic would keep it from coming. */
    if (nat->tick_at_ns && nat->tick_at_ns <= at_ns)
        return;
    nat->tick_at_ns = at_ns;
    loop_timer_set(nat->loop, &nat->tick, at_ns);
}

static void on_tick(struct loop_timer *timer)
{
    struct nat *nat = (struct nat *)((char *)timer - offsetof(struct nat, tick));

    nat->tick_at_ns = 0;
    nat->tick_due = true;
}

static void prepare(struct loop_hook *hook)
{
    struct nat *nat = (struct nat *)((char *)hook - offsetof(struct nat, hook));
    bool ticked = nat->tick_due;
    uint32_t timeout_ms = UINT32_MAX;

    if (ticked || nat_polls_fired(&nat->polls))
        work(nat);
    if (!nat->asked) {
        nat->asked = true;
        nat_polls_want_nothing(&nat->polls);
        nat->api.slirp_pollfds_fill(nat->slirp, &timeout_ms, on_add_poll, nat);
        schedule_tick(nat, timeout_ms, ticked && !nat->active);
    }
    if (ticked)
        nat->active = false;
    flush(nat);
}

/* ---- frames from the guest ---- */

static void malformed(struct nat *nat, const char *what)
{
    nat->counters.malformed++;
    log_guest(&nat->log_rate, "%s: the guest sent a malformed frame: %s", nat->port.name, what);
}

/* Of the copy of a frame that passed: makes of it what the library takes. */
static bool prepare_frame(struct nat *nat, const struct net_frame *frame,
                          const struct nat_frame_kind *kind)
{
    nat_segments_raise_mss(nat->frame, kind->length, nat->mtu, guest_accepts(nat),
                           frame->needs_csum);
    if (nat_segments_complete(nat->frame, kind->length, frame))
        return true;
    malformed(nat, "its headers contradict what it asks for");
    return false;
}

/* Copies a frame and looks at it. Whether it is for the library. */
static bool accept_frame(struct nat *nat, const struct net_frame *frame,
                         struct nat_frame_kind *kind)
{
    size_t longest = ETHER_HDR_LEN + VLAN_TAG_LENGTH + nat->mtu;

    if (frame->length < NET_FRAME_MIN ||
        frame->length > (frame->gso_type ? NET_FRAME_MAX : longest)) {
        malformed(nat, "its length is out of bounds");
        return false;
    }
    net_frame_copy(frame, nat->frame);
    switch (nat_guard_check(nat->frame, frame->length, kind)) {
    case NAT_PASS:
        return prepare_frame(nat, frame, kind);
    case NAT_IGNORE:
        nat->counters.ignored++;
        return false;
    case NAT_MALFORMED:
        malformed(nat, "its headers contradict its length");
        return false;
    }
    return false;
}

static void take_frame(struct nat *nat, const struct net_frame *frame)
{
    struct nat_frame_kind kind;

    if (!accept_frame(nat, frame, &kind))
        return;
    if (kind.opens_flow && full(nat)) {
        nat->counters.refused++;
        log_guest(&nat->log_rate, "%s: the guest has %u connections open; further ones are refused",
                  nat->port.name, nat->polls.open);
        return;
    }
    set_clock(nat);
    if (kind.fragment)
        nat->fragments_until_ns = nat->worked_ns + CLOCK_LAG_NS + FRAGMENT_LIFE_NS;
    nat->active = true;
    nat->asked = false;
    nat->new_socket = -1;
    nat_ends_see(&nat->ends, nat->frame, kind.length, true);
    nat->api.slirp_input(nat->slirp, nat->frame, (int)kind.length);
    if (nat->new_socket >= 0)
        note_opening(nat, nat->frame, kind.length, true);
    end_finished(nat);
}

static unsigned port_deliver(struct net_port *port, const struct net_frame *frames, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        take_frame((struct nat *)port, &frames[i]);
    return n;
}

/* The guest's run of frames is over, and so is that of the answers. */
static void port_flush(struct net_port *port)
{
    flush((struct nat *)port);
}

static const struct net_port_ops port_ops = {
    .deliver = port_deliver,
    .flush = port_flush,
    .ready = port_ready,
};

/* ---- the library's other callbacks ---- */

static void on_guest_error(const char *message, void *opaque)
{
    struct nat *nat = opaque;

    log_guest(&nat->log_rate, "%s: %s", nat->port.name, message);
}

static int64_t on_clock(void *opaque)
{
    (void)opaque;
    return (int64_t)loop_now_ns();
}

static void on_timer(struct loop_timer *timer)
{
    struct nat_timer *t = (struct nat_timer *)timer;
    struct nat *nat = t->nat;

    nat->asked = false;
    nat->api.slirp_handle_timer(nat->slirp, (SlirpTimerId)(t - nat->timers), t->cb_opaque);
}

/* The library has one timer of each kind. */
static void *on_timer_new(SlirpTimerId id, void *cb_opaque, void *opaque)
{
    struct nat *nat = opaque;
    struct nat_timer *t;

    if ((unsigned)id >= SLIRP_TIMER_NUM)
        return NULL; /* of a newer library; it does without */
    t = &nat->timers[id];
    *t = (struct nat_timer){.timer.expired = on_timer, .nat = nat, .cb_opaque = cb_opaque};
    return t;
}

static void on_timer_free(void *timer, void *opaque)
{
    (void)opaque;
    loop_timer_cancel(&((struct nat_timer *)timer)->timer);
}

static void on_timer_mod(void *timer, int64_t expire_ms, void *opaque)
{
    struct nat *nat = opaque;

    loop_timer_set(nat->loop, &((struct nat_timer *)timer)->timer,
                   (uint64_t)expire_ms * NS_PER_MS);
}

static void on_register_fd(int fd, void *opaque)
{
    struct nat *nat = opaque;

    nat_polls_open(&nat->polls, fd);
    nat->new_socket = fd;
}

static void on_unregister_fd(int fd, void *opaque)
{
    struct nat *nat = opaque;
    struct nat_flow *flow = nat_polls_flow(&nat->polls, fd);

    if (flow)
        nat_ends_forget(&nat->ends, flow);
    if (nat->new_socket == fd)
        nat->new_socket = -1;
    nat_polls_close(&nat->polls, fd);
}

/* Only for what other threads do, and there are none. */
static void on_notify(void *opaque)
{
    struct nat *nat = opaque;

    nat->asked = false;
}

static const SlirpCb callbacks = {
    .send_packet = on_send_packet,
    .guest_error = on_guest_error,
    .clock_get_ns = on_clock,
    .timer_new_opaque = on_timer_new,
    .timer_free = on_timer_free,
    .timer_mod = on_timer_mod,
    .register_poll_fd = on_register_fd,
    .unregister_poll_fd = on_unregister_fd,
    .notify = on_notify,
};

/* ---- creation ---- */

static struct in_addr host_of(const struct nat_config *config, unsigned host)
{
    return (struct in_addr){htonl(ntohl(config->network.s_addr) | host)};
}

static bool in_network(const struct nat_config *config, struct in_addr address)
{
    return (ntohl(address.s_addr) ^ ntohl(config->network.s_addr)) >> (32 - config->prefix) == 0;
}

static int check_forward(const struct nat_config *config, const struct net_forward *forward)
{
    char text[NET_FORWARD_TEXT_MAX], network[INET_ADDRSTRLEN];

    if (forward->guest_addr.s_addr == htonl(INADDR_ANY) ||
        in_network(config, forward->guest_addr))
        return 0;
    net_forward_format(forward, text, sizeof(text));
    inet_ntop(AF_INET, &config->network, network, sizeof(network));
    log_error("%s: forward %s: the guest's address is outside the network %s/%u", config->name,
              text, network, config->prefix);
    return -EINVAL;
}

static int check_config(const struct nat_config *config)
{
    if (config->prefix < NAT_MIN_PREFIX || config->prefix > NAT_MAX_PREFIX ||
        (ntohl(config->network.s_addr) & (UINT32_MAX >> config->prefix)) != 0) {
        log_error("%s: the subnet must be a network's address and a prefix of %u to %u bits",
                  config->name, NAT_MIN_PREFIX, NAT_MAX_PREFIX);
        return -EINVAL;
    }
    if (config->mtu < NAT_MIN_MTU || config->mtu > NAT_MAX_MTU) {
        log_error("%s: an MTU of %u is outside %u to %u", config->name, config->mtu, NAT_MIN_MTU,
                  NAT_MAX_MTU);
        return -EINVAL;
    }
    if (config->n_forwards > NAT_MAX_FORWARDS) {
        log_error("%s: %u forwards are more than %u", config->name, config->n_forwards,
                  NAT_MAX_FORWARDS);
        return -EINVAL;
    }
    for (unsigned i = 0; i < config->n_forwards; i++) {
        int error = check_forward(config, &config->forwards[i]);

        if (error)
            return error;
    }
    return 0;
}

/* How many sockets the guest may have open, of what this process may have. */
static unsigned socket_limit(void)
{
    struct rlimit limit;
    rlim_t sockets;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return MAX_SOCKETS;
    if (limit.rlim_cur < WANTED_OPEN_FILES && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur =
            limit.rlim_max < WANTED_OPEN_FILES ? limit.rlim_max : WANTED_OPEN_FILES;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
        (void)getrlimit(RLIMIT_NOFILE, &limit);
    }
    sockets = limit.rlim_cur / SOCKETS_SHARE;
    return sockets < MAX_SOCKETS ? (unsigned)sockets : MAX_SOCKETS;
}

static int start_library(struct nat *nat, const struct nat_config *config)
{
    SlirpConfig slirp = {
        .version = SLIRP_CONFIG_VERSION,
        .restricted = config->restricted,
        .in_enabled = true,
        .vnetwork = config->network,
        .vnetmask.s_addr = htonl(UINT32_MAX << (32 - config->prefix)),
        .vhost = host_of(config, ROUTER_HOST),
        .vdhcp_start = host_of(config, DHCP_HOST),
        .vnameserver =
            config->dns.s_addr != htonl(INADDR_ANY) ? config->dns : host_of(config, DNS_HOST),
        .in6_enabled = config->ipv6,
        .vprefix_len = 64,
        .vhostname = config->hostname,
        .vdomainname = config->domain,
        .if_mtu = nat_segments_library_mtu(config->mtu),
        .if_mru = nat_segments_library_mtu(config->mtu),
    };
    int error = slirp_api_load(&nat->api);

    if (error)
        return error;
    inet_pton(AF_INET6, "fec0::", &slirp.vprefix_addr6);
    inet_pton(AF_INET6, "fec0::2", &slirp.vhost6);
    inet_pton(AF_INET6, "fec0::3", &slirp.vnameserver6);
    nat->slirp = nat->api.slirp_new(&slirp, &callbacks, nat);
    if (!nat->slirp) {
        log_error("%s: libslirp refused its configuration", nat->port.name);
        return -EINVAL;
    }
    return 0;
}

static void forwards_changed(struct nat_forwards *forwards)
{
    ((struct nat *)((char *)forwards - offsetof(struct nat, forwards)))->asked = false;
}

static int start_forwards(struct nat *nat, const struct nat_config *config)
{
    nat->forwards = (struct nat_forwards){.name = nat->port.name, .loop = nat->loop,
                                          .api = &nat->api, .slirp = nat->slirp,
                                          .changed = forwards_changed};
    nat_forwards_init(&nat->forwards, config->forwards, config->n_forwards);
    return config->forwards_later ? 0 : nat_forwards_bind(&nat->forwards);
}

static bool polls_idle(void *arg)
{
    return nat_polls_idle(arg);
}

/* Everything but the memory that the kernel may still use. */
static void stop(struct nat *nat)
{
    net_port_disconnect(&nat->port);
    nat_forwards_fini(&nat->forwards);
    if (nat->slirp)
        nat->api.slirp_cleanup(nat->slirp);
    nat->slirp = NULL;
    loop_timer_cancel(&nat->tick);
    for (unsigned i = 0; i < SLIRP_TIMER_NUM; i++)
        loop_timer_cancel(&nat->timers[i].timer);
    nat_polls_close_all(&nat->polls);
}

static void release(struct nat *nat)
{
    nat_polls_fini(&nat->polls);
    free(nat->backlog.bytes);
    net_coalescer_fini(&nat->coalescer);
    free(nat->frame);
    free(nat);
}

int nat_create(struct nat **out, struct loop *loop, const struct nat_config *config)
{
    struct nat *nat;
    int error = check_config(config);

    if (error)
        return error;
    nat = calloc(1, sizeof(*nat));
    if (!nat) {
        log_error("%s: out of memory", config->name);
        return -ENOMEM;
    }
    nat->port = (struct net_port){.ops = &port_ops, .name = config->name};
    atomic_init(&nat->port.accepts, ACCEPTED);
    nat->loop = loop;
    nat->tick.expired = on_tick;
    nat->max_sockets = socket_limit();
    nat->new_socket = -1;
    nat->mtu = config->mtu;
    nat_polls_init(&nat->polls, loop);
    error = net_coalescer_init(&nat->coalescer);
    /* Large enough to be pages of their own, which take no memory until they are used. */
    nat->backlog.bytes = malloc(BACKLOG_BYTES);
    nat->frame = malloc(NET_FRAME_MAX);
    if (error || !nat->backlog.bytes || !nat->frame) {
        log_error("%s: out of memory", config->name);
        error = -ENOMEM;
        goto undo;
    }
    error = start_library(nat, config);
    if (!error)
        error = start_forwards(nat, config);
    if (error)
        goto undo;
    nat->hook.prepare = prepare;
    loop_hook_add(loop, &nat->hook);
    *out = nat;
    return 0;

undo:
    /* No poll was started yet: nothing to wait for. */
    stop(nat);
    release(nat);
    return error;
}

void nat_destroy(struct nat *nat)
{
    if (!nat)
        return;
    loop_hook_remove(nat->loop, &nat->hook);
    stop(nat);
    if (loop_run_until(nat->loop, polls_idle, &nat->polls, DRAIN_DEADLINE_NS) < 0) {
        log_warn("%s: the kernel keeps polls of closed connections; their memory is left to it",
                 nat->port.name);
        return;
    }
    release(nat);
}

void nat_claim_forwards(struct nat *nat)
{
    nat_forwards_claim(&nat->forwards);
}

void nat_release_forwards(struct nat *nat)
{
    nat_forwards_release(&nat->forwards);
}

struct net_port *nat_port(struct nat *nat)
{
    return &nat->port;
}

void nat_get_counters(const struct nat *nat, struct nat_counters *counters)
{
    *counters = nat->counters;
}
