/*
 * Checksums and segmentation beside a naive model: frames that the input builds well and then
 * perhaps damages, in pieces cut anyhow, are sent to a peer that accepts what the input says and
 * has room for so many. The peer must get what the model makes of the frames laid out flat, frame
 * for frame; an undamaged frame's checksums must be right by their definition.
 */
#include <stdbool.h>
#include <string.h>

#include "net/offload.h"
#include "tests/fuzz/fuzz.h"

#define MAX_SOURCES 3u
#define MAX_PIECES 12u
#define MAX_OUT 6200u
#define ARENA (8u << 20)

struct source {
    uint8_t bytes[NET_FRAME_MAX];
    struct net_frame frame;
    struct iovec iov[MAX_PIECES];
    bool sound; /* undamaged */
};

/* A frame that arrived, or should. */
struct out {
    const uint8_t *bytes;
    size_t length;
    bool needs_csum;
    uint16_t csum_start, csum_offset;
    uint8_t gso_type;
    unsigned source;
    bool begins;
};

struct outs {
    struct out list[MAX_OUT];
    unsigned n;
    size_t used;
    uint8_t arena[ARENA];
};

static struct source sources[MAX_SOURCES];
static struct outs expected, got;
static unsigned room;
static const uint8_t *input;
static size_t input_left;

static unsigned take(unsigned bytes)
{
    unsigned value = 0;

    while (bytes-- > 0) {
        value = value << 8 | (input_left ? *input : 0);
        input += input_left > 0;
        input_left -= input_left > 0;
    }
    return value;
}

static uint8_t *add_out(struct outs *outs, const struct out *out)
{
    uint8_t *at = outs->arena + outs->used;

    FUZZ_CHECK(outs->n < MAX_OUT && outs->used + out->length <= ARENA);
    outs->list[outs->n] = *out;
    outs->list[outs->n++].bytes = at;
    outs->used += out->length;
    memcpy(at, out->bytes, out->length);
    return at;
}

/* ---- the peer ---- */

static unsigned peer_deliver(struct net_port *port, const struct net_frame *frames, unsigned n)
{
    static uint8_t flat[NET_FRAME_MAX];
    unsigned taken = n < room ? n : room;

    (void)port;
    FUZZ_CHECK(n > 0 && n <= NET_BATCH);
    for (unsigned i = 0; i < n; i++) {
        size_t sum = 0;

        for (unsigned k = 0; k < frames[i].iovcnt; k++)
            sum += frames[i].iov[k].iov_len;
        FUZZ_CHECK(sum == frames[i].length && sum <= NET_FRAME_MAX);
    }
    for (unsigned i = 0; i < taken; i++) {
        net_frame_copy(&frames[i], flat);
        add_out(&got, &(struct out){
            .bytes = flat, .length = frames[i].length, .needs_csum = frames[i].needs_csum,
            .csum_start = frames[i].csum_start, .csum_offset = frames[i].csum_offset,
            .gso_type = frames[i].gso_type,
        });
    }
    room -= taken;
    return taken;
}

static const struct net_port_ops peer_ops = {.deliver = peer_deliver};

/* ---- the model: frames are flat, sums are of big-endian words, one after the other ---- */

static unsigned get16(const uint8_t *at)
{
    return at[0] * 256u + at[1];
}

static void put16(uint8_t *at, unsigned value)
{
    at[0] = (uint8_t)(value / 256);
    at[1] = (uint8_t)value;
}

static unsigned naive_sum(unsigned sum, const uint8_t *at, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        sum += i % 2 ? at[i] : at[i] * 256u;
        if (sum > 0xFFFF)
            sum -= 0xFFFF;
    }
    return sum;
}

static void naive_finish(uint8_t *bytes, size_t length, unsigned start, unsigned offset)
{
    unsigned sum = naive_sum(0, bytes + start, length - start) ^ 0xFFFF;

    put16(bytes + start + offset, sum ? sum : 0xFFFF);
}

struct headers {
    bool v6, udp;
    unsigned l3, l4, end;
};

static bool naive_headers(const uint8_t *b, size_t length, struct headers *h)
{
    unsigned type, protocol, tags = 0;

    memset(h, 0, sizeof(*h));
    if (length > NET_HEADERS_MAX)
        length = NET_HEADERS_MAX;
    h->l3 = 14;
    while (tags < 2 && h->l3 + 4 <= length &&
           (get16(b + h->l3 - 2) == 0x8100 || get16(b + h->l3 - 2) == 0x88A8)) {
        h->l3 += 4;
        tags++;
    }
    type = get16(b + h->l3 - 2);
    if (type == 0x0800) {
        if (h->l3 + 20 > length || b[h->l3] / 16 != 4 || b[h->l3] % 16 < 5 ||
            get16(b + h->l3 + 6) % 0x4000 != 0)
            return false;
        h->l4 = h->l3 + b[h->l3] % 16 * 4;
        protocol = b[h->l3 + 9];
    } else if (type == 0x86DD) {
        if (h->l3 + 40 > length || b[h->l3] / 16 != 6)
            return false;
        h->v6 = true;
        protocol = b[h->l3 + 6];
        for (h->l4 = h->l3 + 40; protocol == 0 || protocol == 43 || protocol == 60;) {
            if (h->l4 + 8 > length)
                return false;
            protocol = b[h->l4];
            h->l4 += 8 + b[h->l4 + 1] * 8u;
        }
    } else {
        return false;
    }
    h->udp = protocol == 17;
    if (protocol == 6 && (h->l4 + 20 > length || b[h->l4 + 12] / 16 < 5))
        return false;
    if (protocol != 6 && protocol != 17)
        return false;
    h->end = h->l4 + (h->udp ? 8 : b[h->l4 + 12] / 16 * 4u);
    return h->end <= length;
}

static uint32_t kinds_wanted(const struct source *s)
{
    unsigned at = 12, type = get16(s->bytes + 12);
    uint32_t needs = s->frame.needs_csum ? NET_OFFLOAD_CSUM : 0;

    for (unsigned tags = 0; tags < 2 && (type == 0x8100 || type == 0x88A8); tags++) {
        at += 4;
        type = at + 2 <= s->frame.length ? get16(s->bytes + at) : 0;
    }
    switch (s->frame.gso_type) {
    case 0:
        return needs;
    case NET_GSO_TCP4:
        return needs | NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4;
    case NET_GSO_TCP4 | NET_GSO_ECN:
        return needs | NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO_ECN;
    case NET_GSO_TCP6:
        return needs | NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO6;
    case NET_GSO_TCP6 | NET_GSO_ECN:
        return needs | NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO6 | NET_OFFLOAD_TSO_ECN;
    case NET_GSO_UDP:
        return needs | NET_OFFLOAD_CSUM | (type == 0x86DD ? NET_OFFLOAD_USO6 : NET_OFFLOAD_USO4);
    default:
        return UINT32_MAX;
    }
}

static bool is_cuttable(const struct source *s, const struct headers *h)
{
    const struct net_frame *f = &s->frame;
    unsigned base = f->gso_type & ~NET_GSO_ECN;

    if (h->udp ? f->gso_type != NET_GSO_UDP : base != (h->v6 ? NET_GSO_TCP6 : NET_GSO_TCP4))
        return false;
    return f->needs_csum && f->csum_start == h->l4 && f->csum_offset == (h->udp ? 6 : 16) &&
           f->gso_size > 0 &&
           (f->length - h->end + f->gso_size - 1) / f->gso_size <= NET_MAX_SEGMENTS;
}

/* The true sum of the pseudo header, but for the length. Without routing headers. */
static unsigned pseudo_sum(const uint8_t *b, const struct headers *h)
{
    unsigned sum = h->v6 ? naive_sum(0, b + h->l3 + 8, 32) : naive_sum(0, b + h->l3 + 12, 8);
    const uint8_t protocol[2] = {0, h->udp ? 17 : 6};

    return naive_sum(sum, protocol, 2);
}

static void model_segment(unsigned index, const struct source *s, const struct headers *h,
                          size_t at, size_t payload, bool partial, unsigned number)
{
    static uint8_t flat[NET_FRAME_MAX];
    size_t length = h->end + payload, l4_length = length - h->l4;
    const uint8_t full[2] = {(uint8_t)((s->frame.length - h->l4) >> 8 ^ 0xFF),
                             (uint8_t)((s->frame.length - h->l4) ^ 0xFF)};
    const uint8_t own[2] = {(uint8_t)(l4_length >> 8), (uint8_t)l4_length};
    unsigned field = s->frame.csum_start + s->frame.csum_offset;
    uint32_t seq;
    unsigned sum;

    memcpy(flat, s->bytes, h->end);
    memcpy(flat + h->end, s->bytes + at, payload);
    if (h->v6) {
        put16(flat + h->l3 + 4, (unsigned)(length - h->l3 - 40));
    } else {
        put16(flat + h->l3 + 2, (unsigned)(length - h->l3));
        put16(flat + h->l3 + 4, get16(s->bytes + h->l3 + 4) + number);
        put16(flat + h->l3 + 10, 0);
        put16(flat + h->l3 + 10, naive_sum(0, flat + h->l3, h->l4 - h->l3) ^ 0xFFFF);
    }
    if (h->udp) {
        put16(flat + h->l4 + 4, (unsigned)l4_length);
    } else {
        seq = get16(flat + h->l4 + 4) * 65536u + get16(flat + h->l4 + 6) +
              number * s->frame.gso_size;
        put16(flat + h->l4 + 4, seq >> 16);
        put16(flat + h->l4 + 6, seq);
        if (at + payload < s->frame.length)
            flat[h->l4 + 13] &= 0xF6;
        if (number > 0)
            flat[h->l4 + 13] &= 0x7F;
    }
    sum = naive_sum(naive_sum(naive_sum(0, s->bytes + field, 2), full, 2), own, 2);
    put16(flat + field, sum);
    if (s->sound)
        FUZZ_CHECK(sum % 0xFFFF == naive_sum(pseudo_sum(flat, h), own, 2) % 0xFFFF);
    if (!partial)
        naive_finish(flat, length, h->l4, s->frame.csum_offset);
    add_out(&expected, &(struct out){
        .bytes = flat, .length = length, .needs_csum = partial,
        .csum_start = partial ? s->frame.csum_start : 0,
        .csum_offset = partial ? s->frame.csum_offset : 0, .source = index, .begins = number == 0,
    });
}

/* false: malformed, and nothing comes of it. */
static bool model(unsigned index, uint32_t accepts)
{
    const struct source *s = &sources[index];
    const struct net_frame *f = &s->frame;
    size_t field = f->csum_start + (size_t)f->csum_offset;
    struct headers h;
    uint8_t *copy;

    if ((kinds_wanted(s) & ~accepts) == 0) {
        add_out(&expected, &(struct out){s->bytes, f->length, f->needs_csum, f->csum_start,
                                         f->csum_offset, f->gso_type, index, true});
        return true;
    }
    if (!f->gso_type) {
        if (f->csum_start < 14 || field + 2 > f->length || field + 2 > NET_HEADERS_MAX)
            return false;
        copy = add_out(&expected, &(struct out){.bytes = s->bytes, .length = f->length,
                                                .source = index, .begins = true});
        naive_finish(copy, f->length, f->csum_start, f->csum_offset);
        return true;
    }
    if (!naive_headers(s->bytes, f->length, &h) || !is_cuttable(s, &h))
        return false;
    for (size_t at = h.end, number = 0; number == 0 || at < f->length; number++) {
        size_t payload = f->length - at < f->gso_size ? f->length - at : f->gso_size;

        model_segment(index, s, &h, at, payload, accepts & NET_OFFLOAD_CSUM, (unsigned)number);
        at += payload;
    }
    return true;
}

/* ---- building frames ---- */

static unsigned put_ip(uint8_t *b, unsigned l3, bool v6, bool udp, unsigned extra)
{
    unsigned l4;

    if (!v6) {
        b[l3] = (uint8_t)(0x45 + extra % 4);
        b[l3 + 9] = udp ? 17 : 6;
        return l3 + 20 + extra % 4 * 4;
    }
    b[l3] = 0x60;
    b[l3 + 6] = udp ? 17 : 6;
    l4 = l3 + 40;
    for (unsigned i = 0; i < extra % 4; i++) {
        static const uint8_t types[] = {0, 60, 43};

        b[l4] = b[l3 + 6];
        b[l4 + 1] = (uint8_t)(extra >> 4 & 3);
        b[l3 + 6] = types[extra >> 2 & 1];
        l4 += 8 + b[l4 + 1] * 8u;
        /* What stands first was put last: the chain is told from its end. */
        memmove(b + l3 + 40 + 8 + (extra >> 4 & 3) * 8u, b + l3 + 40,
                l4 - (l3 + 40) - 8 - (extra >> 4 & 3) * 8u);
        b[l3 + 40] = i ? types[extra >> 2 & 1] : (udp ? 17 : 6);
        b[l3 + 40 + 1] = (uint8_t)(extra >> 4 & 3);
    }
    return l4;
}

static void build(struct source *s)
{
    unsigned kind = take(1), extra = take(1), l3 = 14;
    bool v6 = kind & 1, udp = kind & 2;
    size_t payload = take(2) % 9000;
    uint8_t *b = s->bytes;
    struct net_frame *f = &s->frame;
    struct headers h;

    memset(b, 0, 512);
    for (unsigned i = 0; i < (kind >> 2 & 3) % 3; i++, l3 += 4)
        put16(b + l3 - 2, 0x8100);
    put16(b + l3 - 2, v6 ? 0x86DD : 0x0800);
    memset(b + l3, (int)take(1), 40);
    put16(b + l3 + 6, 0);
    h = (struct headers){.v6 = v6, .udp = udp, .l3 = l3};
    h.l4 = put_ip(b, l3, v6, udp, extra);
    h.end = h.l4 + 8;
    if (!udp) {
        b[h.l4 + 12] = (uint8_t)(0x50 + (kind >> 4 & 3) * 16);
        b[h.l4 + 13] = (uint8_t)take(1);
        h.end = h.l4 + 20 + (kind >> 4 & 3) * 4u;
    }
    for (size_t i = 0; i < payload; i++)
        b[h.end + i] = (uint8_t)(i * kind + (i >> 8) * extra);
    *f = (struct net_frame){
        .length = h.end + payload,
        .needs_csum = true,
        .csum_start = (uint16_t)h.l4,
        .csum_offset = udp ? 6 : 16,
        .gso_type = udp ? NET_GSO_UDP : v6 ? NET_GSO_TCP6 : NET_GSO_TCP4,
        .gso_size = (uint16_t)(40 + take(1) * 12),
    };
    put16(b + h.l4 + f->csum_offset, naive_sum(pseudo_sum(b, &h), (const uint8_t[2]){
        (uint8_t)((f->length - h.l4) >> 8), (uint8_t)(f->length - h.l4)}, 2));
    s->sound = true;
    if (kind >> 6 == 1) {
        f->gso_type = 0;
        f->gso_size = 0;
    } else if (kind >> 6 == 2 && !udp) {
        f->gso_type |= NET_GSO_ECN;
    }
}

static void damage(struct source *s, unsigned how)
{
    struct net_frame *f = &s->frame;

    if (how & 3)
        s->sound = false;
    if (how & 1)
        s->bytes[take(1) % f->length] = (uint8_t)take(1);
    if (how & 2) {
        switch (take(1) % 6) {
        case 0: f->csum_start = (uint16_t)take(2); break;
        case 1: f->csum_offset = (uint16_t)take(2); break;
        case 2: f->gso_type = (uint8_t)take(1); break;
        case 3: f->gso_size = (uint16_t)(take(1) * 8); break;
        case 4: f->length = 14 + take(1) % (f->length - 13); break;
        case 5: f->needs_csum = false; break;
        }
    }
}

static void cut(struct source *s)
{
    size_t left = s->frame.length;
    uint8_t *at = s->bytes;
    unsigned n = 0;

    while (left > 0 || n == 0) {
        size_t piece = n + 1 < MAX_PIECES ? take(1) * 9u : left;

        if (piece > left || input_left == 0)
            piece = left;
        s->iov[n++] = (struct iovec){at, piece};
        at += piece;
        left -= piece;
    }
    s->frame.iov = s->iov;
    s->frame.iovcnt = n;
}

/* ---- the comparison ---- */

static void compare(unsigned result, unsigned n_sources, unsigned had, uint32_t accepts,
                    const bool *fine)
{
    unsigned end = expected.n < had ? expected.n : had, settled = n_sources;
    struct net_frame checked;
    uint8_t headers[NET_HEADERS_MAX];
    size_t length;

    FUZZ_CHECK(got.n == end);
    for (unsigned i = 0; i < end; i++) {
        const struct out *a = &expected.list[i], *b = &got.list[i];

        FUZZ_CHECK(a->length == b->length && a->needs_csum == b->needs_csum);
        FUZZ_CHECK(a->csum_start == b->csum_start && a->csum_offset == b->csum_offset);
        FUZZ_CHECK(a->gso_type == b->gso_type && memcmp(a->bytes, b->bytes, a->length) == 0);
    }
    if (end < expected.n)
        settled = expected.list[end].source + !expected.list[end].begins;
    FUZZ_CHECK(result == settled);
    /* The check lets through what could be cut. */
    for (unsigned i = 0; i < n_sources; i++) {
        checked = sources[i].frame;
        if (net_offload_check(&checked, headers, &length) == 0 && checked.gso_type) {
            FUZZ_CHECK(memcmp(headers, sources[i].bytes, length) == 0);
            FUZZ_CHECK(checked.hdr_len == length && length <= checked.length);
        } else if (checked.gso_type && (kinds_wanted(&sources[i]) & ~accepts)) {
            FUZZ_CHECK(!fine[i]);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct net_port port = {.ops = &peer_ops, .name = "a"}, peer = {.ops = &peer_ops, .name = "b"};
    struct net_frame frames[MAX_SOURCES];
    bool fine[MAX_SOURCES];
    unsigned n, had, result, malformed = 0;

    input = data;
    input_left = size;
    peer.accepts = take(1) & 63;
    n = 1 + take(1) % MAX_SOURCES;
    had = room = take(1) & 1 ? take(1) : MAX_OUT;
    net_port_connect(&port, &peer);
    expected.n = got.n = 0;
    expected.used = got.used = 0;
    for (unsigned i = 0; i < n; i++) {
        build(&sources[i]);
        damage(&sources[i], take(1));
        cut(&sources[i]);
        frames[i] = sources[i].frame;
        fine[i] = model(i, peer.accepts);
    }
    result = net_port_send(&port, frames, n);
    compare(result, n, had, peer.accepts, fine);
    for (unsigned i = 0; i < result; i++)
        malformed += !fine[i];
    FUZZ_CHECK(port.sent.frames == result - malformed);
    /* A frame that was begun and not ended counts as both. */
    FUZZ_CHECK(port.sent.dropped - malformed <= 1);
    return 0;
}
