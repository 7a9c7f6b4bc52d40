/*
 * Offloads in software: the check of their metadata, checksums, segmentation.
 *
 * Does not reassemble anything, and knows no receiver but by what it accepts. Frames go out in
 * batches that are put together on the stack: each has its headers in a buffer of its own, while its
 * payload stays where the sender has it. No state and no locks; the thread is the sender's.
 *
 * Texts: virtio 1.2 §5.1.6.2 (packet transmission); RFC 1071 (Internet checksum), RFC 791 §3.1,
 * RFC 8200 §4 (IPv6 extension headers), RFC 9293 §3.1, RFC 3168 §6.1.2 (CWR), RFC 768; IEEE 802.1Q.
 */
#include "net/offload.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "net/bytes.h"

#define ETHER_TYPE 12u
#define TYPE_IPV4 0x0800u
#define TYPE_IPV6 0x86DDu
#define TYPE_VLAN 0x8100u
#define TYPE_SERVICE_VLAN 0x88A8u
#define MAX_TAGS 2u

#define PROTOCOL_TCP 6u
#define PROTOCOL_UDP 17u
#define TCP_CHECKSUM 16u
#define UDP_CHECKSUM 6u
#define TCP_FIN 0x01u
#define TCP_PSH 0x08u
#define TCP_CWR 0x80u

/* The longest frame from a guest has 1024 pieces; the batch's own, and the cuts, come on top. */
#define BATCH_PIECES (1024 + 3 * NET_BATCH)
/* A batch of so many bytes goes: what is summed is still near when it is sent, and a peer that has no
 * room has not had everything summed for nothing. */
#define BATCH_BYTES (128u * 1024)

/* As much as the registers of AVX2 take. */
typedef uint64_t lanes __attribute__((vector_size(32)));

/* Where the headers of a frame that is to be cut are. */
struct layout {
    bool ipv6, udp;
    unsigned l3, l4, end;
};

/* ---- checksums: sums are of 16-bit words in the machine's byte order (RFC 1071 §2 (B)) ---- */

static uint16_t fold(uint64_t sum)
{
    sum = (sum & 0xFFFFFFFF) + (sum >> 32);
    sum = (sum & 0xFFFFFFFF) + (sum >> 32);
    sum = (sum & 0xFFFF) + (sum >> 16);
    sum = (sum & 0xFFFF) + (sum >> 16);
    return (uint16_t)sum;
}

/* Of less than 4 GiB: no carry is lost. */
static inline __attribute__((always_inline)) uint64_t sum_by_lanes(const uint8_t *at, size_t length)
{
    uint64_t even = 0, odd = 0;
    lanes evens = {0}, odds = {0};

    for (; length >= sizeof(lanes); at += sizeof(lanes), length -= sizeof(lanes)) {
        lanes words;

        memcpy(&words, at, sizeof(words));
        evens += words & UINT32_MAX;
        odds += words >> 32;
    }
    for (unsigned i = 0; i < sizeof(lanes) / sizeof(uint64_t); i++) {
        even += evens[i];
        odd += odds[i];
    }
    return even + odd;
}

#ifdef __x86_64__
/* Five times as fast as what every processor has. */
static __attribute__((target("avx2"))) uint64_t sum_wide(const uint8_t *at, size_t length)
{
    return sum_by_lanes(at, length);
}

static bool has_wide(void)
{
    return __builtin_cpu_supports("avx2");
}
#else
static uint64_t sum_wide(const uint8_t *at, size_t length)
{
    return sum_by_lanes(at, length);
}

static bool has_wide(void)
{
    return true;
}
#endif

static uint64_t sum_bytes(const uint8_t *at, size_t length)
{
    uint64_t even = 0, odd = 0;

    if (length >= 4 * sizeof(lanes) && has_wide()) {
        even = sum_wide(at, length);
        at += length & ~(sizeof(lanes) - 1);
        length &= sizeof(lanes) - 1;
    }
    for (; length >= 8; at += 8, length -= 8) {
        uint32_t words[2];

        memcpy(words, at, 8);
        even += words[0];
        odd += words[1];
    }
    if (length > 0) {
        uint32_t words[2] = {0, 0};

        memcpy(words, at, length);
        even += words[0];
        odd += words[1];
    }
    return even + odd;
}

uint16_t net_offload_sum(const struct net_frame *frame, size_t from, size_t to)
{
    size_t at = 0;
    uint64_t sum = 0;

    for (unsigned i = 0; i < frame->iovcnt && at < to; i++) {
        size_t length = frame->iov[i].iov_len;
        size_t start = from > at ? from - at : 0;
        size_t end = to - at < length ? to - at : length;

        if (start < end) {
            uint16_t part =
                fold(sum_bytes((const uint8_t *)frame->iov[i].iov_base + start, end - start));

            /* §2 (B): what begins at an odd place counts with its bytes swapped. */
            sum += (at + start - from) % 2 ? __builtin_bswap16(part) : part;
        }
        at += length;
    }
    return fold(sum);
}

/* Completes the checksum over a frame from byte `from` on, whose field, in there, holds the sum to
 * begin with. 0 is written as its other form, for UDP reads 0 as no checksum (RFC 768). */
static void finish_checksum(const struct net_frame *frame, size_t from, uint8_t *field)
{
    uint16_t sum = (uint16_t)~net_offload_sum(frame, from, frame->length);

    if (sum == 0)
        sum = 0xFFFF;
    memcpy(field, &sum, sizeof(sum));
}

/* ---- headers ---- */

static size_t copy_start(const struct net_frame *frame, uint8_t *to, size_t length)
{
    size_t done = 0;

    for (unsigned i = 0; i < frame->iovcnt && done < length; i++) {
        size_t run = frame->iov[i].iov_len;

        if (run > length - done)
            run = length - done;
        memcpy(to + done, frame->iov[i].iov_base, run);
        done += run;
    }
    return done;
}

/* The type behind Ethernet and tags; *l3: where what it names begins. */
static unsigned find_type(const uint8_t *h, size_t length, unsigned *l3)
{
    unsigned at = ETHER_TYPE;

    for (unsigned tags = 0; at + 2 <= length; tags++, at += 4) {
        unsigned type = get16(h + at);

        *l3 = at + 2;
        if ((type != TYPE_VLAN && type != TYPE_SERVICE_VLAN) || tags == MAX_TAGS)
            return type;
    }
    return 0;
}

/* Steps over extension headers: the protocol behind them, which is at *at, or -EINVAL. Not over
 * those that speak of this one packet as a whole: fragment and authentication headers. */
static int skip_extensions(const uint8_t *h, size_t length, unsigned next, unsigned *at)
{
    enum { HOP_BY_HOP = 0, ROUTING = 43, DESTINATION = 60 };

    while (next == HOP_BY_HOP || next == ROUTING || next == DESTINATION) {
        if (*at + 8 > length)
            return -EINVAL;
        next = h[*at];
        *at += (h[*at + 1] + 1u) * 8;
    }
    return (int)next;
}

static int find_ip(const uint8_t *h, size_t length, struct layout *out)
{
    unsigned type = find_type(h, length, &out->l3);
    unsigned l3 = out->l3;

    if (type == TYPE_IPV4) {
        if (l3 + 20 > length || h[l3] >> 4 != 4 || (h[l3] & 15) < 5)
            return -EINVAL;
        if (get16(h + l3 + 6) & 0x3FFF)
            return -EINVAL; /* a fragment */
        out->l4 = l3 + (h[l3] & 15) * 4u;
        return h[l3 + 9];
    }
    if (type != TYPE_IPV6 || l3 + 40 > length || h[l3] >> 4 != 6)
        return -EINVAL;
    out->ipv6 = true;
    out->l4 = l3 + 40;
    return skip_extensions(h, length, h[l3 + 6], &out->l4);
}

static int find_headers(const uint8_t *h, size_t length, struct layout *out)
{
    int protocol;

    *out = (struct layout){0};
    protocol = find_ip(h, length, out);
    if (protocol == PROTOCOL_TCP && out->l4 + 20 <= length && h[out->l4 + 12] >> 4 >= 5) {
        out->end = out->l4 + (h[out->l4 + 12] >> 4) * 4u;
    } else if (protocol == PROTOCOL_UDP) {
        out->udp = true;
        out->end = out->l4 + 8;
    } else {
        return -EINVAL;
    }
    return out->end <= length ? 0 : -EINVAL;
}

/* ---- what a frame needs ---- */

/* Reads the type only: whoever changes it meanwhile is served by the wrong path, but served. */
static bool is_ipv6(const struct net_frame *frame)
{
    uint8_t start[ETHER_TYPE + 2 + 4 * MAX_TAGS];
    unsigned l3;

    return find_type(start, copy_start(frame, start, sizeof(start)), &l3) == TYPE_IPV6;
}

uint32_t net_offload_needs(const struct net_frame *frame)
{
    switch (frame->gso_type) {
    case NET_GSO_NONE:
        return frame->needs_csum ? NET_OFFLOAD_CSUM : 0;
    case NET_GSO_TCP4:
        return NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4;
    case NET_GSO_TCP4 | NET_GSO_ECN:
        return NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO_ECN;
    case NET_GSO_TCP6:
        return NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO6;
    case NET_GSO_TCP6 | NET_GSO_ECN:
        return NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO6 | NET_OFFLOAD_TSO_ECN;
    case NET_GSO_UDP:
        return NET_OFFLOAD_CSUM | (is_ipv6(frame) ? NET_OFFLOAD_USO6 : NET_OFFLOAD_USO4);
    default: /* among them the old kind that makes fragments of datagrams */
        return UINT32_MAX;
    }
}

/* ---- the check ---- */

static bool type_fits(uint8_t gso_type, const struct layout *layout)
{
    switch (gso_type) {
    case NET_GSO_TCP4:
    case NET_GSO_TCP4 | NET_GSO_ECN:
        return !layout->udp && !layout->ipv6;
    case NET_GSO_TCP6:
    case NET_GSO_TCP6 | NET_GSO_ECN:
        return !layout->udp && layout->ipv6;
    case NET_GSO_UDP:
        return layout->udp;
    default:
        return false;
    }
}

/* Copies the headers of a frame that is to be cut, and checks it as a whole. */
static int look_at_headers(const struct net_frame *frame, uint8_t headers[NET_HEADERS_MAX],
                           struct layout *layout)
{
    size_t length = copy_start(frame, headers, NET_HEADERS_MAX);
    size_t payload;

    if (find_headers(headers, length, layout) != 0 || !type_fits(frame->gso_type, layout))
        return -EINVAL;
    /* virtio 1.2 §5.1.6.2.1: segmentation goes with the checksum, which is the transport's. */
    if (!frame->needs_csum || frame->csum_start != layout->l4 ||
        frame->csum_offset != (layout->udp ? UDP_CHECKSUM : TCP_CHECKSUM))
        return -EINVAL;
    payload = frame->length - layout->end;
    if (frame->gso_size == 0 || payload > (size_t)frame->gso_size * NET_MAX_SEGMENTS)
        return -EINVAL;
    return 0;
}

static bool checksum_is_inside(const struct net_frame *frame)
{
    return frame->csum_start >= NET_FRAME_MIN &&
           frame->csum_start + (size_t)frame->csum_offset + 2 <= frame->length;
}

int net_offload_check(struct net_frame *frame, uint8_t headers[NET_HEADERS_MAX], size_t *length)
{
    struct layout layout;

    *length = 0;
    if (frame->needs_csum && !checksum_is_inside(frame))
        return -EINVAL;
    if (!frame->gso_type) {
        frame->gso_size = 0;
        frame->hdr_len = 0;
        return 0;
    }
    if (look_at_headers(frame, headers, &layout) != 0)
        return -EINVAL;
    frame->hdr_len = (uint16_t)layout.end;
    *length = layout.end;
    return 0;
}

/* ---- a batch on its way to a peer that accepts less ---- */

struct batch {
    struct net_port *port;
    uint32_t accepts;
    bool stuck;           /* the peer is full */
    unsigned settled;     /* sources that are done with, once stuck */
    unsigned n, n_pieces;
    size_t bytes;         /* of the frames */
    struct net_frame frames[NET_BATCH];
    struct {
        unsigned source;
        bool begins_it;
    } of[NET_BATCH];
    struct iovec pieces[BATCH_PIECES];
    uint8_t headers[NET_BATCH][NET_HEADERS_MAX];
};

/* Delivers what is in the batch. */
static void flush(struct batch *b)
{
    struct net_port *peer = b->port->peer;
    unsigned taken = b->n;

    /* Unplugged by what it was sent before: into nothing. */
    if (b->n > 0 && peer)
        taken = peer->ops->deliver(peer, b->frames, b->n);
    if (taken < b->n) {
        b->stuck = true;
        b->settled = b->of[taken].source;
        if (!b->of[taken].begins_it) {
            b->settled++;
            b->port->sent.dropped++; /* its rest */
        }
    }
    b->n = 0;
    b->n_pieces = 0;
    b->bytes = 0;
}

static void add(struct batch *b, unsigned source, bool begins_it, const struct net_frame *frame)
{
    b->of[b->n].source = source;
    b->of[b->n].begins_it = begins_it;
    b->frames[b->n++] = *frame;
    b->bytes += frame->length;
}

/* Room for a frame of so many bytes of headers and of a source's pieces, if there is any. */
static bool make_room(struct batch *b, const struct net_frame *source)
{
    if (b->n == NET_BATCH || b->n_pieces + 1 + source->iovcnt > BATCH_PIECES)
        flush(b);
    return 1 + source->iovcnt <= BATCH_PIECES;
}

/* Where a source's payload is read on. */
struct cursor {
    const struct iovec *iov;
    size_t offset;
};

static void skip(struct cursor *cursor, size_t length)
{
    while (length > 0) {
        size_t run = cursor->iov->iov_len - cursor->offset;

        if (length < run) {
            cursor->offset += length;
            return;
        }
        length -= run;
        cursor->iov++;
        cursor->offset = 0;
    }
}

/* A frame of the batch's next headers, `head` bytes of them, and `length` bytes of payload. */
static void begin_frame(struct batch *b, struct net_frame *frame, size_t head,
                        struct cursor *cursor, size_t length)
{
    struct iovec *pieces = &b->pieces[b->n_pieces];
    unsigned n = 0;

    pieces[n++] = (struct iovec){b->headers[b->n], head};
    *frame = (struct net_frame){.iov = pieces, .length = head + length};
    while (length > 0) {
        size_t run = cursor->iov->iov_len - cursor->offset;

        if (run > length)
            run = length;
        if (run > 0)
            pieces[n++] = (struct iovec){(uint8_t *)cursor->iov->iov_base + cursor->offset, run};
        skip(cursor, run);
        if (run == 0) {
            cursor->iov++;
            cursor->offset = 0;
        }
        length -= run;
    }
    frame->iovcnt = n;
    b->n_pieces += n;
}

/* ---- checksums alone ---- */

/* false: malformed. */
static bool add_with_checksum(struct batch *b, unsigned source, const struct net_frame *from)
{
    size_t field = from->csum_start + (size_t)from->csum_offset;
    struct cursor cursor = {.iov = from->iov};
    struct net_frame frame;

    if (!checksum_is_inside(from) || field + 2 > NET_HEADERS_MAX || !make_room(b, from))
        return false;
    if (b->stuck)
        return true;
    copy_start(from, b->headers[b->n], field + 2);
    skip(&cursor, field + 2);
    begin_frame(b, &frame, field + 2, &cursor, from->length - (field + 2));
    finish_checksum(&frame, from->csum_start, b->headers[b->n] + field);
    add(b, source, true, &frame);
    return true;
}

/* ---- segmentation ---- */

struct segmenting {
    const struct net_frame *from;
    struct layout layout;
    uint8_t headers[NET_HEADERS_MAX]; /* as they came */
    uint16_t pseudo_sum;              /* of the pseudo header, but for the length in it */
};

/* §5.1.6.2: the field holds the sum of the pseudo header, its length included. That is as good as
 * computing it, and right with routing headers, too. */
static void take_pseudo_sum(struct segmenting *s)
{
    const uint8_t *field = s->headers + s->from->csum_start + s->from->csum_offset;
    uint16_t length = (uint16_t)(s->from->length - s->layout.l4);
    uint64_t sum = get16(field);

    s->pseudo_sum = fold(sum + (uint16_t)~length);
}

static void write_ip(const struct segmenting *s, uint8_t *h, unsigned index, size_t length)
{
    unsigned l3 = s->layout.l3;
    uint16_t sum;

    if (s->layout.ipv6) {
        put16(h + l3 + 4, (unsigned)(length - l3 - 40));
        return;
    }
    put16(h + l3 + 2, (unsigned)(length - l3));
    put16(h + l3 + 4, get16(s->headers + l3 + 4) + index);
    put16(h + l3 + 10, 0);
    sum = (uint16_t)~fold(sum_bytes(h + l3, s->layout.l4 - l3));
    memcpy(h + l3 + 10, &sum, sizeof(sum));
}

static void write_tcp(const struct segmenting *s, uint8_t *h, unsigned index, bool last)
{
    uint8_t *tcp = h + s->layout.l4;

    put32(tcp + 4, get32(s->headers + s->layout.l4 + 4) + index * s->from->gso_size);
    if (!last)
        tcp[13] &= (uint8_t)~(TCP_FIN | TCP_PSH);
    if (index > 0)
        tcp[13] &= (uint8_t)~TCP_CWR; /* RFC 3168 §6.1.2: on the first one */
}

/* Adds the segment that begins at the cursor. */
static void add_segment(struct batch *b, unsigned source, const struct segmenting *s,
                        unsigned index, struct cursor *cursor, size_t payload, bool last)
{
    const struct layout *l = &s->layout;
    uint8_t *h = b->headers[b->n];
    uint8_t *field = h + s->from->csum_start + s->from->csum_offset;
    struct net_frame frame;

    memcpy(h, s->headers, l->end);
    begin_frame(b, &frame, l->end, cursor, payload);
    write_ip(s, h, index, frame.length);
    if (l->udp)
        put16(h + l->l4 + 4, (unsigned)(frame.length - l->l4));
    else
        write_tcp(s, h, index, last);
    put16(field, fold((uint64_t)s->pseudo_sum + (uint16_t)(frame.length - l->l4)));
    if (b->accepts & NET_OFFLOAD_CSUM) {
        frame.needs_csum = true;
        frame.csum_start = s->from->csum_start;
        frame.csum_offset = s->from->csum_offset;
    } else {
        finish_checksum(&frame, l->l4, field);
    }
    add(b, source, index == 0, &frame);
}

/* false: malformed. */
static bool add_segments(struct batch *b, unsigned source, const struct net_frame *from)
{
    struct segmenting s = {.from = from};
    struct cursor cursor = {.iov = from->iov};
    size_t left;

    if (look_at_headers(from, s.headers, &s.layout) != 0)
        return false;
    take_pseudo_sum(&s);
    skip(&cursor, s.layout.end);
    left = from->length - s.layout.end;
    /* All of it in one batch if that can be: a peer that takes the begin has the rest before it. */
    if (b->n + left / from->gso_size >= NET_BATCH)
        flush(b);
    /* One without payload is a frame, too. */
    for (unsigned index = 0; index == 0 || left > 0; index++) {
        size_t payload = left < from->gso_size ? left : from->gso_size;

        if (!make_room(b, from))
            return false;
        if (b->stuck)
            return true;
        left -= payload;
        add_segment(b, source, &s, index, &cursor, payload, left == 0);
    }
    return true;
}

/* ---- sending ---- */

/* false: malformed. */
static bool add_source(struct batch *b, unsigned source, const struct net_frame *frame)
{
    if (b->bytes >= BATCH_BYTES)
        flush(b);
    if (b->stuck)
        return true;
    if ((net_offload_needs(frame) & ~b->accepts) == 0) {
        if (b->n == NET_BATCH)
            flush(b);
        if (!b->stuck)
            add(b, source, true, frame);
        return true;
    }
    return frame->gso_type ? add_segments(b, source, frame) : add_with_checksum(b, source, frame);
}

unsigned net_offload_send(struct net_port *port, const struct net_frame *frames, unsigned n)
{
    bool malformed[NET_BATCH] = {false};
    struct batch b;

    /* Not the arrays, which are written before they are read. */
    b.port = port;
    b.accepts = net_port_accepts(port->peer);
    b.stuck = false;
    b.settled = n;
    b.n = 0;
    b.n_pieces = 0;
    b.bytes = 0;
    for (unsigned i = 0; i < n && !b.stuck; i++)
        malformed[i] = !add_source(&b, i, &frames[i]);
    if (!b.stuck)
        flush(&b);
    for (unsigned i = 0; i < b.settled; i++) {
        if (malformed[i]) {
            port->sent.dropped++;
            continue;
        }
        port->sent.frames++;
        port->sent.bytes += frames[i].length;
    }
    return b.settled;
}
