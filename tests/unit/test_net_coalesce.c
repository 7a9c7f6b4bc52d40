/*
 * Coalescing TCP segments: what goes together, what does not, and that cutting the result again
 * (net/offload.h, by sending it to a peer that accepts nothing) gives the segments it was made of.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "net/coalesce.h"
#include "net/offload.h"

#define ACCEPTS (NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6)
#define MSS 1400u
#define MAX_FRAMES 64

struct segment {
    uint8_t bytes[1600];
    size_t length;
};

static struct net_coalescer c;
static struct segment in[MAX_FRAMES], out[MAX_FRAMES];
static unsigned n_out;
static struct net_frame frame;

static unsigned peer_deliver(struct net_port *port, const struct net_frame *frames, unsigned n)
{
    (void)port;
    for (unsigned i = 0; i < n; i++) {
        cr_assert_lt(n_out, MAX_FRAMES);
        net_frame_copy(&frames[i], out[n_out].bytes);
        out[n_out++].length = frames[i].length;
    }
    return n;
}

static const struct net_port_ops ops = {.deliver = peer_deliver};

static void set_up(void)
{
    cr_assert_eq(net_coalescer_init(&c), 0);
    n_out = 0;
}

static void tear_down(void)
{
    net_coalescer_fini(&c);
}

TestSuite(coalesce, .init = set_up, .fini = tear_down, .timeout = 20);

static void put16(uint8_t *at, unsigned value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static unsigned sum_of(unsigned sum, const uint8_t *at, size_t length)
{
    for (size_t i = 0; i < length; i++)
        sum += i % 2 ? at[i] : (unsigned)at[i] << 8;
    while (sum >> 16)
        sum = (sum & 0xFFFF) + (sum >> 16);
    return sum;
}

static void finish(struct segment *s, bool v6)
{
    uint8_t *b = s->bytes, *tcp = b + (v6 ? 54 : 34);
    size_t length = s->length - (size_t)(tcp - b);
    const uint8_t rest[4] = {0, 6, (uint8_t)(length >> 8), (uint8_t)length};

    if (!v6) {
        put16(b + 24, 0);
        put16(b + 24, sum_of(0, b + 14, 20) ^ 0xFFFF);
    }
    put16(tcp + 16, 0);
    put16(tcp + 16, sum_of(sum_of(sum_of(0, v6 ? b + 22 : b + 26, v6 ? 32 : 8), rest, 4), tcp,
                           length) ^ 0xFFFF);
}

/* Segment number `index` of a stream cut at MSS, all its checksums right. */
static struct segment *make(struct segment *s, bool v6, unsigned index, size_t payload,
                            uint8_t flags)
{
    uint8_t *b = s->bytes, *tcp = b + (v6 ? 54 : 34);
    uint32_t seq = 0xFFFFF000u + index * MSS;

    memset(b, 0, 100);
    memset(b, 2, 12);
    put16(b + 12, v6 ? 0x86DD : 0x0800);
    s->length = (size_t)(tcp - b) + 20 + payload;
    if (v6) {
        b[14] = 0x60;
        put16(b + 18, (unsigned)(20 + payload));
        b[20] = 6;
        b[21] = 64;
        memset(b + 22, 0x33, 32);
    } else {
        b[14] = 0x45;
        put16(b + 16, (unsigned)(40 + payload));
        put16(b + 18, 77 + index);
        b[22] = 64;
        b[23] = 6;
        memset(b + 26, 0x44, 8);
    }
    put16(tcp, 80);
    put16(tcp + 2, 40000);
    put16(tcp + 4, seq >> 16);
    put16(tcp + 6, seq & 0xFFFF);
    put16(tcp + 10, 5);
    tcp[12] = 0x50;
    tcp[13] = flags;
    put16(tcp + 14, 8192);
    for (size_t i = 0; i < payload; i++)
        tcp[20 + i] = (uint8_t)(index * 31 + i * 7);
    finish(s, v6);
    return s;
}

static bool add(const struct segment *s)
{
    return net_coalescer_add(&c, ACCEPTS, s->bytes, s->length);
}

static void assert_cut_gives_the_same(bool v6)
{
    struct net_port sender = {.ops = &ops, .name = "a"}, peer = {.ops = &ops, .name = "b"};

    for (unsigned i = 0; i < 10; i++)
        cr_assert(add(make(&in[i], v6, i, i < 9 ? MSS : 100, i < 9 ? 0x10 : 0x18)), "%u", i);
    cr_assert(net_coalescer_frame(&c, &frame));
    cr_assert_eq(frame.gso_type, v6 ? NET_GSO_TCP6 : NET_GSO_TCP4);
    cr_assert_eq(frame.gso_size, MSS);
    cr_assert_eq(frame.length, in[0].length + 8 * MSS + 100);
    net_port_connect(&sender, &peer);
    cr_assert_eq(net_port_send(&sender, &frame, 1), 1);
    cr_assert_eq(sender.sent.dropped, 0);
    cr_assert_eq(n_out, 10);
    for (unsigned i = 0; i < 10; i++) {
        cr_assert_eq(out[i].length, in[i].length);
        cr_assert_arr_eq(out[i].bytes, in[i].bytes, in[i].length, "segment %u", i);
    }
}

Test(coalesce, what_was_put_together_is_cut_into_the_same_segments_over_ipv4)
{
    assert_cut_gives_the_same(false);
}

Test(coalesce, what_was_put_together_is_cut_into_the_same_segments_over_ipv6)
{
    assert_cut_gives_the_same(true);
}

Test(coalesce, a_segment_alone_stays_as_it_came)
{
    cr_assert(add(make(&in[0], false, 0, 500, 0x18)));
    cr_assert(net_coalescer_frame(&c, &frame));
    cr_assert_eq(frame.gso_type, 0);
    cr_assert(!frame.needs_csum);
    cr_assert_eq(frame.length, in[0].length);
    cr_assert_arr_eq(frame.iov[0].iov_base, in[0].bytes, in[0].length);
}

Test(coalesce, nothing_gives_no_frame)
{
    cr_assert(!net_coalescer_frame(&c, &frame));
    cr_assert(add(make(&in[0], false, 0, 500, 0x10)));
    net_coalescer_clear(&c);
    cr_assert(!net_coalescer_frame(&c, &frame));
}

Test(coalesce, a_receiver_without_use_for_it_gets_none)
{
    make(&in[0], false, 0, MSS, 0x10);
    cr_assert(!net_coalescer_add(&c, 0, in[0].bytes, in[0].length));
    cr_assert(!net_coalescer_add(&c, NET_OFFLOAD_TSO4, in[0].bytes, in[0].length));
    cr_assert(!net_coalescer_add(&c, NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO6, in[0].bytes,
                                 in[0].length));
    make(&in[0], true, 0, MSS, 0x10);
    cr_assert(!net_coalescer_add(&c, NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4, in[0].bytes,
                                 in[0].length));
}

static void assert_begins_nothing(struct segment *s)
{
    cr_assert(!add(s));
    cr_assert(!net_coalescer_frame(&c, &frame));
}

Test(coalesce, only_plain_data_begins)
{
    assert_begins_nothing(make(&in[0], false, 0, 0, 0x10));    /* no data */
    assert_begins_nothing(make(&in[0], false, 0, MSS, 0x11));  /* FIN */
    assert_begins_nothing(make(&in[0], false, 0, MSS, 0x12));  /* SYN */
    assert_begins_nothing(make(&in[0], false, 0, MSS, 0x14));  /* RST */
    assert_begins_nothing(make(&in[0], false, 0, MSS, 0x30));  /* URG */
    assert_begins_nothing(make(&in[0], false, 0, MSS, 0x90));  /* CWR */
    make(&in[0], false, 0, MSS, 0x10)->bytes[34 + 12] = 0x60;  /* options */
    assert_begins_nothing(&in[0]);
    make(&in[0], false, 0, MSS, 0x10)->bytes[20] = 0x20;       /* a fragment */
    assert_begins_nothing(&in[0]);
    make(&in[0], false, 0, MSS, 0x10)->bytes[23] = 17;         /* UDP */
    assert_begins_nothing(&in[0]);
    make(&in[0], false, 0, MSS, 0x10)->length++;               /* padded */
    assert_begins_nothing(&in[0]);
    make(&in[0], true, 0, MSS, 0x10)->length--;                /* cut short */
    assert_begins_nothing(&in[0]);
    in[0].length = 40;
    assert_begins_nothing(&in[0]);
}

/* After one segment, a second whose byte `at` differs does not go on. */
static void assert_does_not_go_on(unsigned at)
{
    net_coalescer_clear(&c);
    cr_assert(add(make(&in[0], false, 0, MSS, 0x10)));
    make(&in[1], false, 1, MSS, 0x10)->bytes[at] ^= 1;
    cr_assert(!add(&in[1]), "byte %u", at);
    in[1].bytes[at] ^= 1;
    cr_assert(add(&in[1]), "byte %u", at);
}

Test(coalesce, another_flow_or_place_or_acknowledgement_does_not_go_on)
{
    static const unsigned places[] = {
        0, 6, 15, 22, 26, 30,                    /* stations, service, TTL, addresses */
        34, 36, 34 + 4, 34 + 8, 34 + 14, 34 + 18, /* ports, sequence, acknowledgement, window, urgent */
    };

    for (unsigned i = 0; i < sizeof(places) / sizeof(places[0]); i++)
        assert_does_not_go_on(places[i]);
}

Test(coalesce, a_shorter_segment_or_a_push_is_the_last)
{
    cr_assert(add(make(&in[0], false, 0, MSS, 0x10)));
    cr_assert(add(make(&in[1], false, 1, MSS, 0x18)));
    cr_assert(!add(make(&in[2], false, 2, MSS, 0x10)));
    net_coalescer_clear(&c);
    cr_assert(add(make(&in[0], false, 0, MSS, 0x10)));
    cr_assert(!add(make(&in[1], false, 1, MSS + 1, 0x10)));
    cr_assert(add(make(&in[1], false, 1, 10, 0x10)));
    cr_assert(!add(make(&in[2], false, 2, 10, 0x10)));
}

Test(coalesce, a_frame_that_was_given_out_does_not_grow)
{
    cr_assert(add(make(&in[0], false, 0, MSS, 0x10)));
    cr_assert(net_coalescer_frame(&c, &frame));
    cr_assert(!add(make(&in[1], false, 1, MSS, 0x10)));
    cr_assert(net_coalescer_frame(&c, &frame));
    cr_assert_eq(frame.length, in[0].length);
}

Test(coalesce, no_more_goes_together_than_a_packet_can_be_long)
{
    unsigned n = 0;

    while (add(make(&in[0], false, n, MSS, 0x10)))
        n++;
    cr_assert_eq(n, (65535 - 40) / MSS);
    cr_assert(net_coalescer_frame(&c, &frame));
    cr_assert_leq(frame.length, 65535 + 14);
}
