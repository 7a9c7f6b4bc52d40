/*
 * TCP, as little as it takes to move streams at full speed and to survive losses: one connection at
 * a time, opened from here.
 *
 * Has window scaling, segmentation and checksums by the card if it offers them, slow start and
 * congestion avoidance, fast retransmission and a timer. What comes out of order is looked at and
 * counted as received, not kept: nobody reads it later. Knows no SACK, no time stamps, no urgent
 * data, no delayed acknowledgements (one goes out for each batch that came in), no TIME-WAIT: who
 * sends FIN again is answered by a reset.
 * Thread: the first processor. Texts: RFC 9293 (3.1, 3.4, 3.8), 7323 (2), 5681 (3), 6582 (3).
 */
#include "tcp.h"

#include <stddef.h>

#include "memory.h"
#include "timing.h"

#define OPTION_END   0
#define OPTION_NOP   1
#define OPTION_MSS   2
#define OPTION_SHIFT 3
#define DEFAULT_MSS  536u
#define OWN_SHIFT    7u
#define LARGEST      65483u /* bytes in a large segment: 64 KiB less headers */
#define BUDGET       64u    /* frames at a time, then what is owed goes out */
#define FIRST_TIMEOUT (200 * MILLISECOND)
#define LAST_TIMEOUT  (2 * SECOND)
#define FIRST_WINDOW  10u   /* RFC 6928: in segments */

static struct connection *current;
static uint32_t own_window, own_mtu;
static uint8_t pattern[PATTERN_PERIOD + LARGEST + 8];

void connection_start(uint32_t window, uint32_t mtu)
{
    uint32_t x = 1;

    own_window = window;
    own_mtu = mtu;
    for (uint32_t i = 0; i < PATTERN_PERIOD; i++) {
        x = x * 1664525 + 1013904223;
        pattern[i] = (uint8_t)(x >> 24);
    }
    for (uint32_t i = PATTERN_PERIOD; i < sizeof(pattern); i++)
        pattern[i] = pattern[i - PATTERN_PERIOD];
}

/* ---- sending ---- */

static uint64_t end_of(const struct connection *c)
{
    return c->queued + (c->ending ? 1 : 0);
}

/* The bytes at a position of what is sent, and how many of them stand together. */
static const uint8_t *bytes_at(const struct connection *c, uint64_t position, uint64_t *together)
{
    uint64_t at = position - 1;

    if (at < REQUEST_SIZE) {
        *together = REQUEST_SIZE - at;
        return c->request + at;
    }
    *together = LARGEST;
    return pattern + (at - REQUEST_SIZE) % PATTERN_PERIOD;
}

static uint32_t put_options(uint8_t *at)
{
    uint32_t mss = own_mtu - 40;

    at[0] = OPTION_MSS;
    at[1] = 4;
    at[2] = (uint8_t)(mss >> 8);
    at[3] = (uint8_t)mss;
    at[4] = OPTION_NOP;
    at[5] = OPTION_SHIFT;
    at[6] = 3;
    at[7] = OWN_SHIFT;
    return 8;
}

/* Asks the card for what it offers, and does the rest. */
static void put_checksum(struct net_header *offload, struct ip *ip, struct tcp *tcp, uint32_t head,
                         const uint8_t *bytes, uint32_t length, uint32_t mss)
{
    uint64_t sum = ip_pseudo_sum(ip->from, ip->to, head + length);

    tcp->checksum = 0;
    if (nic_has(F_CSUM)) {
        tcp->checksum = (uint16_t)~ip_fold(sum);
        *offload = (struct net_header){ .flags = HEADER_NEEDS_CSUM, .checksum_offset = 16 };
        offload->checksum_start = sizeof(struct ether) + sizeof(struct ip);
    } else {
        tcp->checksum = ip_fold(ip_sum(bytes, length, ip_sum(tcp, head, sum)));
    }
    if (length > mss) {
        offload->gso_type = GSO_TCP4;
        offload->gso_size = (uint16_t)mss;
        offload->header_length = (uint16_t)(sizeof(struct ether) + sizeof(struct ip) + head);
    }
}

/* What the peer may send, as the header has it: SYN's is not scaled, others are if both sides said
 * so (RFC 7323, 2.2). */
static uint16_t window_field(const struct connection *c, uint8_t flags)
{
    uint32_t window = flags & TCP_SYN || !c->scaled ? own_window : own_window >> OWN_SHIFT;

    return swap16((uint16_t)(window > 65535 ? 65535 : window));
}

/* A segment of what is at `position`. */
static void send_segment(struct connection *c, uint8_t flags, uint64_t position,
                         const uint8_t *bytes, uint32_t length)
{
    struct {
        struct ether ether;
        struct ip ip;
        struct tcp tcp;
        uint8_t options[8];
    } __attribute__((packed)) segment;
    struct net_header offload = { 0 };
    uint32_t head = sizeof(segment.tcp) + (flags & TCP_SYN ? put_options(segment.options) : 0);

    ip_put(&segment.ether, c->mac, c->address, head + length);
    segment.tcp = (struct tcp){ .offset = (uint8_t)(head / 4 << 4), .flags = flags };
    segment.tcp.from = swap16(c->local);
    segment.tcp.to = swap16(c->remote);
    segment.tcp.sequence = swap32(c->first_sent + (uint32_t)position);
    if (flags & TCP_ACK)
        segment.tcp.acknowledged = swap32(c->first_received + (uint32_t)c->received);
    segment.tcp.window = window_field(c, flags);
    put_checksum(&offload, &segment.ip, &segment.tcp, head, bytes, length, c->mss);
    nic_send(&offload, &segment, (uint32_t)(sizeof(segment) - 8 - sizeof(segment.tcp)) + head,
             bytes, length);
    c->owes = false;
}

static void arm(struct connection *c)
{
    c->timer_ns = now_ns() + c->timeout_ns;
}

/* Sends at most `most` bytes from a position on; the position behind them. */
static uint64_t send_from(struct connection *c, uint64_t position, uint64_t most)
{
    uint64_t together = 0, length = c->queued > position ? c->queued - position : 0;
    const uint8_t *bytes = NULL;
    uint8_t flags = TCP_ACK;

    if (length > 0)
        bytes = bytes_at(c, position, &together);
    if (length > together)
        length = together;
    if (length > most)
        length = most;
    if (position + length == c->queued) {
        flags |= TCP_PSH;
        if (c->ending)
            flags |= TCP_FIN;
    }
    send_segment(c, flags, position, bytes, (uint32_t)length);
    position += length + (flags & TCP_FIN ? 1 : 0);
    if (position > c->highest)
        c->highest = position;
    if (c->timer_ns == 0)
        arm(c);
    return position;
}

/* Half of the peer's window at most, so that one is on its way while the next is made. */
static uint64_t segment_limit(const struct connection *c)
{
    uint64_t limit = LARGEST;

    if (!nic_has(F_HOST_TSO4))
        return c->mss;
    if (limit > c->largest_window / 2)
        limit = c->largest_window / 2;
    return limit < c->mss ? c->mss : limit / c->mss * c->mss;
}

/* What windows and the sender's rule against silly ones allow (RFC 9293, 3.8.6.2.1). */
static void send_more(struct connection *c)
{
    uint64_t limit = segment_limit(c);

    while (c->state == OPEN && c->next < end_of(c)) {
        uint64_t window = c->window < c->congestion ? c->window : c->congestion;
        uint64_t flight = c->next - c->acknowledged;
        uint64_t room = window > flight ? window - flight : 0;
        uint64_t left = end_of(c) - c->next;
        if (room > limit)
            room = limit;
        if (room < left && flight > 0 && room < limit)
            return;
        if (room == 0)
            break;
        c->next = send_from(c, c->next, room);
    }
    /* A window of 0 is looked at by the timer. */
    if (c->timer_ns == 0 && c->state == OPEN && c->next < end_of(c))
        arm(c);
}

static void lost(struct connection *c, uint64_t congestion)
{
    uint64_t flight = c->highest - c->acknowledged;

    c->threshold = flight / 2 > 2 * c->mss ? flight / 2 : 2 * c->mss;
    c->congestion = congestion != 0 ? congestion : c->threshold;
    c->recover = c->highest;
    c->retransmitted++;
}

static void time_out(struct connection *c)
{
    if (c->timer_ns == 0 || now_ns() < c->timer_ns)
        return;
    c->timeout_ns = c->timeout_ns * 2 < LAST_TIMEOUT ? c->timeout_ns * 2 : LAST_TIMEOUT;
    arm(c);
    if (c->state == ASKED) {
        send_segment(c, TCP_SYN, 0, NULL, 0);
        return;
    }
    lost(c, 2ull * c->mss);
    c->next = c->acknowledged;
    if (c->window == 0) /* a probe (RFC 9293, 3.8.6.1) */
        (void)send_from(c, c->next, 1);
}

/* ---- receiving ---- */

static void progress(struct connection *c)
{
    uint64_t now = now_ns();

    if (c->progress_ns != 0 && now - c->progress_ns > c->longest_gap_ns)
        c->longest_gap_ns = now - c->progress_ns;
    c->progress_ns = now;
}

static void take_acknowledgement(struct connection *c, const struct tcp *tcp, bool pure)
{
    uint64_t window = (uint64_t)swap16(tcp->window) << c->shift;
    uint64_t at = c->acknowledged + (uint32_t)(swap32(tcp->acknowledged) - c->first_sent -
                                               (uint32_t)c->acknowledged);

    if (at > c->highest)
        return; /* an old one, or of what was never sent */
    if (at == c->acknowledged) {
        if (pure && window == c->window && c->next > at && ++c->duplicates == 3 &&
            at >= c->recover) {
            lost(c, 0);
            (void)send_from(c, at, c->mss);
        }
        c->window = window;
        return;
    }
    c->congestion += c->congestion < c->threshold
                         ? at - c->acknowledged
                         : (uint64_t)c->mss * (at - c->acknowledged) / c->congestion + 1;
    c->acknowledged = at;
    if (c->next < at)
        c->next = at;
    c->window = window;
    if (window > c->largest_window)
        c->largest_window = window;
    c->duplicates = 0;
    c->timeout_ns = FIRST_TIMEOUT;
    c->timer_ns = 0;
    progress(c);
    if (at < c->highest)
        arm(c);
    if (at < c->recover && c->next > at) /* RFC 6582, 3.2: the next hole */
        (void)send_from(c, at, c->mss);
}

/* Counts [from, to) as received, in order or not. */
static void take_range(struct connection *c, uint64_t from, uint64_t to)
{
    if (from > c->received) {
        c->owes = true;
        if (c->ranges < sizeof(c->range) / sizeof(*c->range)) {
            c->range[c->ranges].from = from;
            c->range[c->ranges++].to = to;
        }
        return;
    }
    if (to > c->received) {
        c->received = to;
        progress(c);
    }
    for (unsigned i = 0; i < c->ranges;) {
        if (c->range[i].from > c->received) {
            i++;
            continue;
        }
        if (c->range[i].to > c->received)
            c->received = c->range[i].to;
        c->range[i] = c->range[--c->ranges];
        i = 0;
    }
}

static void look_at(struct connection *c, uint64_t position, const uint8_t *bytes, uint32_t length)
{
    uint64_t at = position - 1;

    for (uint32_t i = 0; i < length && at + i < REQUEST_SIZE; i++)
        c->reply[at + i] = bytes[i];
    while (c->verify && length > 0) {
        const uint8_t *want = pattern + at % PATTERN_PERIOD;
        uint32_t n = length < LARGEST ? length : LARGEST;

        for (uint32_t i = 0; i < n; i++)
            c->wrong += bytes[i] != want[i];
        at += n;
        bytes += n;
        length -= n;
    }
}

/* The data behind `skip` bytes of the frame, `length` bytes of them. */
static void take_data(struct connection *c, const struct nic_frame *frame, uint32_t skip,
                      uint32_t length, uint64_t position)
{
    uint64_t at = position;

    for (unsigned i = 0; i < frame->pieces && length > 0; i++) {
        const struct nic_piece *piece = &frame->piece[i];
        uint32_t n = piece->length > skip ? piece->length - skip : 0;

        if (n > length)
            n = length;
        look_at(c, at, piece->bytes + skip, n);
        skip -= skip < piece->length ? skip : piece->length;
        at += n;
        length -= n;
    }
    take_range(c, position, at);
    c->owes = true;
}

static bool is_whole(const struct nic_frame *frame, const struct ip *ip, uint32_t length)
{
    uint32_t skip = sizeof(struct ether) + sizeof(*ip), left = length;
    uint64_t sum = ip_pseudo_sum(ip->from, ip->to, length);

    if (frame->header.flags & (HEADER_NEEDS_CSUM | HEADER_DATA_VALID))
        return true;
    for (unsigned i = 0; i < frame->pieces && left > 0; i++) {
        uint32_t n = frame->piece[i].length - skip;

        if (n > left)
            n = left;
        sum = ip_sum(frame->piece[i].bytes + skip, n, sum);
        left -= n;
        skip = 0;
    }
    return ip_fold(sum) == 0;
}

static void take_shift(struct connection *c, uint8_t shift)
{
    c->scaled = true;
    c->shift = shift < 14 ? shift : 14;
}

static void take_options(struct connection *c, const uint8_t *at, const uint8_t *end)
{
    uint32_t mss = DEFAULT_MSS;

    while (at < end && *at != OPTION_END) {
        if (*at == OPTION_NOP) {
            at++;
            continue;
        }
        if (at + 1 >= end || at[1] < 2 || at + at[1] > end)
            break;
        if (at[0] == OPTION_MSS && at[1] == 4)
            mss = (uint32_t)at[2] << 8 | at[3];
        else if (at[0] == OPTION_SHIFT && at[1] == 3)
            take_shift(c, at[2]);
        at += at[1];
    }
    c->mss = mss < own_mtu - 40 ? mss : own_mtu - 40;
}

static void take_answer(struct connection *c, const struct tcp *tcp)
{
    if ((tcp->flags & (TCP_SYN | TCP_ACK)) != (TCP_SYN | TCP_ACK) ||
        swap32(tcp->acknowledged) != c->first_sent + 1)
        return;
    take_options(c, (const uint8_t *)(tcp + 1), (const uint8_t *)tcp + (tcp->offset >> 4) * 4);
    c->first_received = swap32(tcp->sequence);
    c->received = 1;
    c->acknowledged = c->next = c->highest = 1;
    c->window = c->largest_window = swap16(tcp->window); /* not scaled (RFC 7323, 2.2) */
    c->congestion = (uint64_t)FIRST_WINDOW * c->mss;
    c->threshold = UINT64_MAX;
    c->timer_ns = 0;
    c->timeout_ns = FIRST_TIMEOUT;
    c->state = OPEN;
    /* By itself, as usual: passt ignores data that come with it. */
    send_segment(c, TCP_ACK, c->next, NULL, 0);
    progress(c);
}

/* Data and FIN of a segment of an open connection; `head` bytes of TCP's header are before it. */
static void take_segment(struct connection *c, const struct nic_frame *frame, const struct tcp *tcp,
                         uint32_t head, uint32_t length)
{
    int32_t ahead = (int32_t)(swap32(tcp->sequence) - c->first_received - (uint32_t)c->received);
    uint64_t at = c->received + (uint64_t)(int64_t)ahead;

    if (tcp->flags & TCP_SYN) { /* its answer again: ours was lost */
        c->owes = true;
        return;
    }
    if (tcp->flags & TCP_ACK)
        take_acknowledgement(c, tcp, length == 0 && (tcp->flags & TCP_FIN) == 0);
    if (length > 0)
        take_data(c, frame, sizeof(struct ether) + sizeof(struct ip) + head, length, at);
    if (tcp->flags & TCP_FIN) {
        c->fin_at = at + length;
        c->owes = true;
    }
    if (c->fin_at != 0 && c->received == c->fin_at) {
        c->received++;
        c->peer_ended = true;
    }
}

void connection_input(const struct nic_frame *frame)
{
    const struct ip *ip = (const struct ip *)(frame->piece[0].bytes + sizeof(struct ether));
    const struct tcp *tcp = (const struct tcp *)(ip + 1);
    struct connection *c = current;
    uint32_t length = swap16(ip->length) - (uint32_t)sizeof(*ip);
    uint32_t room = frame->piece[0].length - (uint32_t)(sizeof(struct ether) + sizeof(*ip));

    if (c == NULL || c->state == CLOSED || room < sizeof(*tcp) || length < sizeof(*tcp) ||
        ip->from != c->address || tcp->from != swap16(c->remote) || tcp->to != swap16(c->local) ||
        !is_whole(frame, ip, length))
        return;
    uint32_t head = (tcp->offset >> 4) * 4u;
    if (head < sizeof(*tcp) || head > length || head > room)
        return;
    if (tcp->flags & TCP_RST) {
        c->refused = c->state == ASKED;
        c->reset = true;
        c->state = CLOSED;
    } else if (c->state == ASKED) {
        take_answer(c, tcp);
    } else {
        take_segment(c, frame, tcp, head, length - head);
    }
}

/* ---- the life of one ---- */

void connection_open(struct connection *c, uint32_t address, const uint8_t *mac, uint16_t port,
                     const void *request)
{
    static uint16_t last = 40000;

    *c = (struct connection){ .state = ASKED, .address = address, .remote = port,
                              .queued = 1 + REQUEST_SIZE, .mss = DEFAULT_MSS };
    memcpy(c->mac, mac, 6);
    memcpy(c->request, request, REQUEST_SIZE);
    last = last < 65000 ? (uint16_t)(last + 1) : 40000;
    c->local = last;
    c->first_sent = (uint32_t)(now_ns() >> 6);
    c->timeout_ns = FIRST_TIMEOUT;
    c->highest = c->next = 1;
    current = c;
    send_segment(c, TCP_SYN, 0, NULL, 0);
    arm(c);
}

void connection_queue(struct connection *c, uint64_t bytes)
{
    c->queued += bytes;
}

void connection_end(struct connection *c)
{
    c->ending = true;
}

void connection_abort(struct connection *c)
{
    if (c->state == OPEN)
        send_segment(c, TCP_RST | TCP_ACK, c->next, NULL, 0);
    c->state = CLOSED;
    nic_flush();
}

uint64_t connection_received(const struct connection *c)
{
    return c->received == 0 ? 0 : c->received - 1 - (c->peer_ended ? 1 : 0);
}

uint64_t connection_acknowledged(const struct connection *c)
{
    uint64_t sent = c->acknowledged < c->queued ? c->acknowledged : c->queued;

    return sent > 1 + REQUEST_SIZE ? sent - 1 - REQUEST_SIZE : 0;
}

bool connection_done(const struct connection *c)
{
    return c->ending && c->peer_ended && c->acknowledged == end_of(c);
}

bool connection_poll(struct connection *c)
{
    (void)ip_poll(BUDGET);
    if (c->state != CLOSED) {
        time_out(c);
        send_more(c);
        if (c->owes && c->state == OPEN)
            send_segment(c, TCP_ACK, c->next, NULL, 0);
    }
    nic_flush();
    return c->state != CLOSED;
}
