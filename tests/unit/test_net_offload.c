/*
 * Offloads in software: what a peer gets that accepts less than the sender asks for. The exhaustive
 * comparison is a fuzz target's; here are the cases by name.
 */
#include <criterion/criterion.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "net/offload.h"

#define MAX_FRAMES 3000
#define V4 0x0800
#define V6 0x86DD
#define TCP 6
#define UDP 17

/* ---- a peer that keeps what it gets ---- */

struct kept {
    uint8_t bytes[NET_FRAME_MAX];
    size_t length;
    struct net_frame meta;
};

static struct kept *kept;
static unsigned n_kept, room, calls;
static struct net_port sender, peer;

static unsigned peer_deliver(struct net_port *port, const struct net_frame *frames, unsigned n)
{
    unsigned taken = 0;

    (void)port;
    calls++;
    for (; taken < n && room > 0; taken++, room--) {
        cr_assert_lt(n_kept, MAX_FRAMES);
        net_frame_copy(&frames[taken], kept[n_kept].bytes);
        kept[n_kept].meta = frames[taken];
        kept[n_kept++].length = frames[taken].length;
    }
    return taken;
}

static const struct net_port_ops ops = {.deliver = peer_deliver};

static void set_up(void)
{
    /* Untouched pages cost nothing. */
    kept = calloc(MAX_FRAMES, sizeof(*kept));
    n_kept = calls = 0;
    room = MAX_FRAMES;
    sender = (struct net_port){.ops = &ops, .name = "sender"};
    peer = (struct net_port){.ops = &ops, .name = "peer"};
    net_port_connect(&sender, &peer);
}

static void tear_down(void)
{
    free(kept);
}

TestSuite(offload, .init = set_up, .fini = tear_down, .timeout = 60);

/* ---- frames ---- */

static uint8_t bytes[NET_FRAME_MAX];
static struct iovec whole = {bytes, 0};
static unsigned l3, l4;

static unsigned get16(const uint8_t *at)
{
    return (unsigned)(at[0] << 8 | at[1]);
}

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

/* Of the pseudo header (RFC 9293 §3.1, RFC 8200 §8.1). */
static unsigned pseudo(const uint8_t *b, unsigned type, unsigned protocol, size_t length)
{
    unsigned sum = type == V4 ? sum_of(0, b + l3 + 12, 8) : sum_of(0, b + l3 + 8, 32);

    return sum_of(sum, (const uint8_t[]){0, (uint8_t)protocol, (uint8_t)(length >> 8),
                                         (uint8_t)length}, 4);
}

/* A frame of `payload` bytes behind headers, as a driver that leaves all work to the card makes it. */
static struct net_frame make(unsigned type, unsigned protocol, size_t payload, uint16_t gso_size)
{
    unsigned l4_bytes = protocol == TCP ? 32 : 8;
    struct net_frame frame = {.iov = &whole, .iovcnt = 1, .needs_csum = true};

    memset(bytes, 0x22, 12);
    l3 = 14;
    l4 = l3 + (type == V4 ? 20 : 40);
    put16(bytes + 12, type);
    memset(bytes + l3, 0x17, l4 - l3 + l4_bytes);
    bytes[l3] = type == V4 ? 0x45 : 0x60;
    bytes[l3 + (type == V4 ? 9 : 6)] = (uint8_t)protocol;
    put16(bytes + l3 + 6, type == V4 ? 0x4000 : protocol << 8 | 64);
    if (protocol == TCP) {
        bytes[l4 + 12] = 0x80;
        bytes[l4 + 13] = 0x99; /* CWR, ACK, PSH, FIN */
    }
    for (size_t i = 0; i < payload; i++)
        bytes[l4 + l4_bytes + i] = (uint8_t)(i * 7 + (i >> 8));
    whole.iov_len = frame.length = l4 + l4_bytes + payload;
    frame.csum_start = (uint16_t)l4;
    frame.csum_offset = protocol == TCP ? 16 : 6;
    frame.gso_size = gso_size;
    if (gso_size)
        frame.gso_type = protocol == UDP ? NET_GSO_UDP : type == V4 ? NET_GSO_TCP4 : NET_GSO_TCP6;
    put16(bytes + l4 + frame.csum_offset, pseudo(bytes, type, protocol, frame.length - l4));
    return frame;
}

static void assert_sound(const struct kept *k, unsigned type, unsigned protocol)
{
    unsigned sum = pseudo(k->bytes, type, protocol, k->length - l4);

    /* The checksum is in what is summed without the pseudo header's. */
    cr_assert_eq(sum_of(sum, k->bytes + l4, k->length - l4), 0xFFFF);
    cr_assert(!k->meta.needs_csum);
    cr_assert_eq(k->meta.gso_type, 0);
    if (type == V6) {
        cr_assert_eq(get16(k->bytes + l3 + 4), k->length - l3 - 40);
        return;
    }
    cr_assert_eq(get16(k->bytes + l3 + 2), k->length - l3);
    cr_assert_eq(sum_of(0, k->bytes + l3, 20), 0xFFFF);
}

/* ---- what needs nothing done ---- */

Test(offload, a_peer_that_accepts_a_large_segment_gets_it_whole)
{
    struct net_frame frame = make(V4, TCP, 60000, 1448);

    peer.accepts = NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4;
    cr_assert_eq(net_port_send(&sender, &frame, 1), 1);
    cr_assert_eq(n_kept, 1);
    cr_assert_eq(kept[0].meta.gso_size, 1448);
    cr_assert_eq(kept[0].meta.gso_type, NET_GSO_TCP4);
}

Test(offload, each_kind_needs_what_is_its_own)
{
    struct net_frame frame = make(V4, TCP, 3000, 1000);

    cr_assert_eq(net_offload_needs(&frame), NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4);
    frame.gso_type |= NET_GSO_ECN;
    cr_assert_eq(net_offload_needs(&frame),
                 NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO_ECN);
    frame = make(V6, TCP, 3000, 1000);
    cr_assert_eq(net_offload_needs(&frame), NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO6);
    frame = make(V4, UDP, 3000, 1000);
    cr_assert_eq(net_offload_needs(&frame), NET_OFFLOAD_CSUM | NET_OFFLOAD_USO4);
    frame = make(V6, UDP, 3000, 1000);
    cr_assert_eq(net_offload_needs(&frame), NET_OFFLOAD_CSUM | NET_OFFLOAD_USO6);
    frame.gso_type = 3; /* fragments of a datagram: nobody takes them */
    cr_assert_eq(net_offload_needs(&frame), UINT32_MAX);
}

/* ---- checksums ---- */

Test(offload, a_checksum_left_out_is_completed)
{
    static const unsigned types[] = {V4, V6}, protocols[] = {TCP, UDP};

    for (unsigned i = 0; i < 4; i++) {
        struct net_frame frame = make(types[i / 2], protocols[i % 2], 777, 0);

        if (types[i / 2] == V4) { /* the IP header's own is the driver's */
            put16(bytes + l3 + 2, (unsigned)(frame.length - l3));
            put16(bytes + l3 + 10, 0);
            put16(bytes + l3 + 10, sum_of(0, bytes + l3, 20) ^ 0xFFFF);
        } else {
            put16(bytes + l3 + 4, (unsigned)(frame.length - l3 - 40));
        }
        cr_assert_eq(net_port_send(&sender, &frame, 1), 1);
        assert_sound(&kept[n_kept - 1], types[i / 2], protocols[i % 2]);
        cr_assert_eq(kept[n_kept - 1].length, frame.length);
    }
}

Test(offload, a_checksum_of_zero_is_written_as_its_other_form)
{
    struct net_frame frame = make(V4, UDP, 2, 0);
    unsigned sum;

    /* What makes the sum all ones, so that its complement would read as: none. */
    put16(bytes + l4 + 8, 0);
    sum = sum_of(0, bytes + l4, 10);
    put16(bytes + l4 + 8, 0xFFFF - sum);
    cr_assert_eq(net_port_send(&sender, &frame, 1), 1);
    cr_assert_eq(get16(kept[0].bytes + l4 + 6), 0xFFFF);
}

Test(offload, a_sum_does_not_mind_where_pieces_begin)
{
    struct iovec iov[4];
    struct net_frame frame = {.iov = iov, .iovcnt = 4, .length = 1000};
    unsigned expected;

    for (unsigned i = 0; i < 1000; i++)
        bytes[i] = (uint8_t)(i * i >> 3);
    expected = sum_of(0, bytes + 33, 940);
    for (size_t first = 0; first < 70; first++) {
        iov[0] = (struct iovec){bytes, first};
        iov[1] = (struct iovec){bytes + first, 31};
        iov[2] = (struct iovec){bytes + first + 31, 0};
        iov[3] = (struct iovec){bytes + first + 31, 1000 - first - 31};
        cr_assert_eq(htobe16(net_offload_sum(&frame, 33, 973)), expected, "cut at %zu", first);
    }
}

Test(offload, a_sum_is_right_whatever_the_length)
{
    const struct iovec iov = {bytes, 600};
    const struct net_frame frame = {.iov = &iov, .iovcnt = 1, .length = 600};

    memset(bytes, 0xFF, 600); /* with as many carries as can be */
    for (unsigned i = 0; i < 600; i += 3)
        bytes[i] = (uint8_t)(i * i >> 3);
    for (size_t to = 5; to <= 600; to++)
        cr_assert_eq(htobe16(net_offload_sum(&frame, 5, to)), sum_of(0, bytes + 5, to - 5),
                     "to %zu", to);
}

Test(offload, a_checksum_outside_the_frame_is_dropped_and_counted)
{
    struct net_frame frame = make(V4, UDP, 10, 0);

    frame.csum_start = (uint16_t)(frame.length - 7);
    cr_assert_eq(net_port_send(&sender, &frame, 1), 1);
    frame.csum_start = 0xFFFF;
    frame.csum_offset = 0xFFFF;
    cr_assert_eq(net_port_send(&sender, &frame, 1), 1);
    frame.csum_start = 13;
    frame.csum_offset = 0;
    cr_assert_eq(net_port_send(&sender, &frame, 1), 1);
    cr_assert_eq(n_kept, 0);
    cr_assert_eq(sender.sent.dropped, 3);
    cr_assert_eq(sender.sent.frames, 0);
}

/* ---- segmentation ---- */

static void assert_cut(unsigned type, unsigned protocol)
{
    struct net_frame frame = make(type, protocol, 5000, 1400);
    unsigned end = l4 + (protocol == TCP ? 32 : 8);
    unsigned id = get16(bytes + l3 + 4);
    size_t at = 0;

    cr_assert_eq(net_port_send(&sender, &frame, 1), 1);
    cr_assert_eq(n_kept, 4);
    for (unsigned i = 0; i < 4; i++) {
        const struct kept *k = &kept[i];

        assert_sound(k, type, protocol);
        cr_assert_eq(k->length - end, i < 3 ? 1400 : 800);
        cr_assert_arr_eq(k->bytes + end, bytes + end + at, k->length - end);
        at += k->length - end;
        if (type == V4)
            cr_assert_eq(get16(k->bytes + l3 + 4), id + i);
        if (protocol == UDP)
            cr_assert_eq(get16(k->bytes + l4 + 4), k->length - l4);
    }
    cr_assert_eq(sender.sent.frames, 1);
    cr_assert_eq(sender.sent.bytes, frame.length);
}

Test(offload, a_tcp_segment_over_ipv4_is_cut)
{
    assert_cut(V4, TCP);
    for (unsigned i = 0; i < 4; i++)
        cr_assert_eq(get16(kept[i].bytes + l4 + 6) - get16(bytes + l4 + 6), i * 1400);
}

Test(offload, a_tcp_segment_over_ipv6_is_cut)
{
    assert_cut(V6, TCP);
}

Test(offload, datagrams_over_ipv4_are_cut_apart)
{
    assert_cut(V4, UDP);
}

Test(offload, datagrams_over_ipv6_are_cut_apart)
{
    assert_cut(V6, UDP);
}

Test(offload, flags_go_to_the_first_or_to_the_last_segment)
{
    struct net_frame frame = make(V4, TCP, 3000, 1000);

    cr_assert_eq(net_port_send(&sender, &frame, 1), 1);
    cr_assert_eq(kept[0].bytes[l4 + 13], 0x90); /* CWR, ACK */
    cr_assert_eq(kept[1].bytes[l4 + 13], 0x10);
    cr_assert_eq(kept[2].bytes[l4 + 13], 0x19); /* ACK, PSH, FIN */
}

Test(offload, a_peer_that_completes_checksums_itself_gets_segments_to_be_completed)
{
    struct net_frame frame = make(V6, TCP, 3000, 1000);

    peer.accepts = NET_OFFLOAD_CSUM;
    cr_assert_eq(net_port_send(&sender, &frame, 1), 1);
    cr_assert_eq(n_kept, 3);
    for (unsigned i = 0; i < 3; i++) {
        const struct kept *k = &kept[i];

        cr_assert(k->meta.needs_csum);
        cr_assert_eq(k->meta.csum_start, l4);
        cr_assert_eq(k->meta.csum_offset, 16);
        cr_assert_eq(k->meta.gso_type, 0);
        cr_assert_eq(get16(k->bytes + l4 + 16), pseudo(k->bytes, V6, TCP, k->length - l4));
    }
}

/* Puts `length` bytes of extension headers of one type into the frame of make(V6). */
static void insert_extension(struct net_frame *frame, uint8_t type, unsigned length)
{
    memmove(bytes + l3 + 40 + length, bytes + l3 + 40, frame->length - l3 - 40);
    memset(bytes + l3 + 40, 0, length);
    bytes[l3 + 40] = bytes[l3 + 6];
    bytes[l3 + 41] = (uint8_t)(length / 8 - 1);
    bytes[l3 + 6] = type;
    frame->length += length;
    whole.iov_len = frame->length;
    frame->csum_start = (uint16_t)(frame->csum_start + length);
    l4 += length;
}

Test(offload, extension_headers_go_with_each_segment)
{
    struct net_frame frame = make(V6, TCP, 3000, 1000);

    insert_extension(&frame, 60, 24);
    insert_extension(&frame, 0, 8);
    cr_assert_eq(net_port_send(&sender, &frame, 1), 1);
    cr_assert_eq(n_kept, 3);
    for (unsigned i = 0; i < 3; i++) {
        assert_sound(&kept[i], V6, TCP);
        cr_assert_arr_eq(kept[i].bytes + l3 + 40, bytes + l3 + 40, 32);
    }
}

Test(offload, the_pseudo_header_of_a_routing_header_is_the_drivers)
{
    static const uint8_t final[16] = {0xFD, 9, 8, 7};
    struct net_frame frame = make(V6, TCP, 3000, 1000);
    uint8_t first_hop[16];

    memcpy(first_hop, bytes + l3 + 24, 16);
    memcpy(bytes + l3 + 24, final, 16);
    put16(bytes + l4 + 16, pseudo(bytes, V6, TCP, frame.length - l4));
    memcpy(bytes + l3 + 24, first_hop, 16);
    insert_extension(&frame, 43, 24);
    cr_assert_eq(net_port_send(&sender, &frame, 1), 1);
    cr_assert_eq(n_kept, 3);
    for (unsigned i = 0; i < 3; i++) {
        memcpy(kept[i].bytes + l3 + 24, final, 16); /* as where it arrives */
        assert_sound(&kept[i], V6, TCP);
    }
}

Test(offload, tags_go_with_each_segment)
{
    struct net_frame frame = make(V4, TCP, 3000, 1000);

    memmove(bytes + 20, bytes + 12, frame.length - 12);
    memcpy(bytes + 12, "\x88\xA8\x00\x05\x81\x00\x00\x07", 8);
    whole.iov_len = frame.length += 8;
    frame.csum_start = (uint16_t)(frame.csum_start + 8);
    l3 += 8;
    l4 += 8;
    cr_assert_eq(net_port_send(&sender, &frame, 1), 1);
    cr_assert_eq(n_kept, 3);
    for (unsigned i = 0; i < 3; i++) {
        assert_sound(&kept[i], V4, TCP);
        cr_assert_arr_eq(kept[i].bytes + 12, bytes + 12, 8);
    }
}

static void assert_malformed(const struct net_frame *frame)
{
    uint64_t dropped = sender.sent.dropped;
    struct net_frame copy = *frame;
    uint8_t headers[NET_HEADERS_MAX];
    size_t length;

    cr_assert_eq(net_offload_check(&copy, headers, &length), -EINVAL);
    cr_assert_eq(net_port_send(&sender, frame, 1), 1);
    cr_assert_eq(n_kept, 0);
    cr_assert_eq(sender.sent.dropped, dropped + 1);
}

Test(offload, metadata_that_contradict_the_headers_are_dropped)
{
    const struct net_frame good = make(V4, TCP, 3000, 1000);
    struct net_frame frame = good;

    frame.csum_start++;
    assert_malformed(&frame);
    frame = good;
    frame.csum_offset = 6;
    assert_malformed(&frame);
    frame = good;
    frame.gso_size = 0;
    assert_malformed(&frame);
    frame = good;
    frame.needs_csum = false;
    assert_malformed(&frame);
    frame = good;
    frame.gso_type = NET_GSO_TCP6;
    assert_malformed(&frame);
    frame.gso_type = NET_GSO_UDP;
    assert_malformed(&frame);
    frame.gso_type = NET_GSO_ECN;
    assert_malformed(&frame);
    frame.gso_type = 3;
    assert_malformed(&frame);
    frame = good;
    frame.gso_size = 1; /* 3000 frames are too many */
    assert_malformed(&frame);
}

static void damage(struct net_frame *frame, unsigned at, uint8_t byte)
{
    uint8_t was = bytes[at];

    bytes[at] = byte;
    assert_malformed(frame);
    bytes[at] = was;
}

Test(offload, headers_that_contradict_themselves_are_dropped)
{
    struct net_frame frame = make(V4, TCP, 3000, 1000);

    damage(&frame, l3, 0x44);       /* a header of 16 bytes */
    damage(&frame, l3, 0x65);       /* another version */
    damage(&frame, l3 + 6, 0x20);   /* more fragments follow */
    damage(&frame, l3 + 7, 1);      /* a later fragment */
    damage(&frame, l3 + 9, 1);      /* another protocol */
    damage(&frame, l4 + 12, 0x40);  /* TCP headers of 16 bytes */
    frame = make(V6, TCP, 3000, 1000);
    damage(&frame, l3 + 6, 44);     /* a fragment header */
    damage(&frame, l3 + 6, 51);     /* an authentication header */
    insert_extension(&frame, 60, 8);
    damage(&frame, l3 + 41, 255);   /* an extension beyond what is looked at */
    cr_assert_eq(net_port_send(&sender, &frame, 1), 1);
    cr_assert_eq(n_kept, 3);
}

Test(offload, the_check_gives_a_copy_of_the_headers_and_their_length)
{
    struct net_frame frame = make(V6, UDP, 3000, 1000);
    uint8_t headers[NET_HEADERS_MAX];
    size_t length;

    frame.hdr_len = 7;
    cr_assert_eq(net_offload_check(&frame, headers, &length), 0);
    cr_assert_eq(length, l4 + 8);
    cr_assert_eq(frame.hdr_len, l4 + 8);
    cr_assert_arr_eq(headers, bytes, length);
}

/* ---- batches and room ---- */

Test(offload, frames_keep_their_order_among_those_that_are_cut)
{
    struct net_frame cut = make(V4, TCP, 3000, 1000);
    struct iovec small = {bytes, 100};
    const struct net_frame frames[3] = {
        {.iov = &small, .iovcnt = 1, .length = 100}, cut, {.iov = &small, .iovcnt = 1, .length = 100},
    };

    cr_assert_eq(net_port_send(&sender, frames, 3), 3);
    cr_assert_eq(n_kept, 5);
    cr_assert_eq(kept[0].length, 100);
    cr_assert_eq(kept[1].length, l4 + 32 + 1000);
    cr_assert_eq(kept[4].length, 100);
    cr_assert_eq(calls, 1);
    cr_assert_eq(sender.sent.frames, 3);
}

Test(offload, more_segments_than_a_batch_holds_go_in_several)
{
    struct net_frame frame = make(V4, TCP, 60000, 100);

    cr_assert_eq(net_port_send(&sender, &frame, 1), 1);
    cr_assert_eq(n_kept, 600);
    cr_assert_eq(calls, (600 + NET_BATCH - 1) / NET_BATCH);
    assert_sound(&kept[599], V4, TCP);
}

Test(offload, the_segments_of_a_frame_go_in_one_batch)
{
    const struct net_frame frame = make(V4, TCP, 40000, 1000);
    const struct net_frame frames[2] = {frame, frame};

    room = 40;
    cr_assert_eq(net_port_send(&sender, frames, 2), 1, "the second is refused whole");
    cr_assert_eq(n_kept, 40);
    cr_assert_eq(sender.sent.dropped, 0);
    cr_assert_eq(calls, 2);
}

Test(offload, long_frames_go_by_few_before_more_are_summed)
{
    struct net_frame frame = make(V4, TCP, 60000, 0), frames[8];

    for (unsigned i = 0; i < 8; i++)
        frames[i] = frame;
    cr_assert_eq(net_port_send(&sender, frames, 8), 8);
    cr_assert_eq(calls, 3);
    cr_assert(!kept[7].meta.needs_csum);
}

Test(offload, a_frame_of_which_nothing_found_room_is_refused)
{
    const struct net_frame frame = make(V4, TCP, 3000, 1000);
    const struct net_frame frames[2] = {frame, frame};

    room = 3;
    cr_assert_eq(net_port_send(&sender, frames, 2), 1);
    cr_assert_eq(sender.sent.frames, 1);
    cr_assert_eq(sender.sent.dropped, 0);
}

Test(offload, a_frame_of_which_a_part_found_room_counts_as_taken_and_as_dropped)
{
    const struct net_frame frame = make(V4, TCP, 3000, 1000);
    const struct net_frame frames[3] = {frame, frame, frame};

    room = 4;
    cr_assert_eq(net_port_send(&sender, frames, 3), 2);
    cr_assert_eq(n_kept, 4);
    cr_assert_eq(sender.sent.frames, 2);
    cr_assert_eq(sender.sent.dropped, 1);
}

Test(offload, a_frame_in_a_thousand_pieces_is_cut)
{
    struct net_frame frame = make(V4, TCP, 4000, 1000);
    static struct iovec pieces[1024];

    for (unsigned i = 0; i < 1024; i++)
        pieces[i] = (struct iovec){bytes + i * 3, i < 1023 ? 3 : frame.length - 1023 * 3};
    frame.iov = pieces;
    frame.iovcnt = 1024;
    cr_assert_eq(net_port_send(&sender, &frame, 1), 1);
    cr_assert_eq(n_kept, 4);
    for (unsigned i = 0; i < 4; i++)
        assert_sound(&kept[i], V4, TCP);
}
