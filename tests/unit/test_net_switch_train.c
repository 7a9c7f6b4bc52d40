/*
 * Trains: what frames that come together in a batch do is what each does alone. Random batches go
 * through the switch twice, as a whole and frame by frame, in two pieces each, which is never a
 * train.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/packets.h"
#include "tests/unit/switch_rig.h"

TestSuite(net_switch_train, .init = rig_init, .fini = rig_fini, .timeout = 60);

#define GUEST 0
#define OTHER 1
#define THIRD 2
#define UPLINK 3
#define MIRROR 4
#define PORTS 5
#define BATCHES 100

static const char *const lists[][6] = {
    {NULL},
    {"9,proto=tcp,dport=22,action=deny", "1,action=allow", NULL},
    {"9,src=10.0.0.2,action=deny", "8,proto=udp,dport=53,action=mirror:p4",
     "7,proto=tcp,dport=25,action=redirect:p2", "6,proto=udp,dport=69,action=vlan:7",
     "5,proto=tcp,flags=+syn,action=allow", NULL},
};

static struct packet frames[NET_BATCH];
static uint32_t state = 1;

static unsigned pick(unsigned n)
{
    state = state * 1664525u + 1013904223u;
    return (state >> 8) % n;
}

/* Makes it look like IPv6, of ICMPv6 or UDP; a neighbour solicitation tells an address. */
static void make_ipv6(struct packet *packet)
{
    put16(packet->bytes + 12, 0x86DD);
    packet->bytes[14] = 0x60;
    packet->bytes[20] = pick(3) ? 17 : 58;
    packet->bytes[21] = 255;
    packet->bytes[54] = 135;
    packet->bytes[55] = 0;
}

/* A frame like the one before, or one that differs from it in something. */
static void make(struct packet *packet, struct endpoints *e, unsigned from)
{
    static const uint16_t ports[] = {80, 22, 25, 53, 69};
    static const uint8_t flags[] = {TCP_ACK, TCP_SYN};
    static char text[1400];
    unsigned number = state;

    memset(text, 1 + (int)pick(255), sizeof(text));
    memcpy(text, &number, sizeof(number)); /* no two are the same */
    if (pick(3) == 0)
        e->dst_port = ports[pick(5)];
    if (pick(4) == 0)
        e->src = 0x0A000001u + pick(3);
    if (pick(8) == 0)
        memcpy(e->dst_mac, pick(6) ? rig_mac(1 + pick(3)) : rig_broadcast, 6);
    if (pick(16) == 0) /* an address that is not its own, or is learnt */
        memcpy(e->src_mac, rig_mac(pick(3) ? from : 9 + pick(2)), 6);
    if (e->dst_port == 53 || e->dst_port == 69)
        make_udp(packet, e, text, pick(4) ? 20 : sizeof(text));
    else
        make_tcp(packet, e, flags[pick(2)], state, 0, text, pick(4) ? pick(80) : sizeof(text));
    switch (pick(24)) {
    case 0: put16(packet->bytes + 12, 0x0806); break;             /* as if it were ARP */
    case 1: make_ipv6(packet); break;
    case 2: put16(packet->bytes + 12, 0x8100); break;
    case 3: packet->bytes[20] |= 0x20; break;                     /* a fragment */
    case 4: packet->bytes[14] = 0x46; break;                      /* with options */
    case 5: packet->length = pick(60); break;
    case 6: packet->bytes[23] = 47; break;                        /* neither TCP nor UDP */
    default: break;
    }
}

#define RULES 8u /* in a list, at most */

struct outcome {
    struct fake_port got[PORTS];
    struct switch_counters counters[PORTS];
    unsigned n_rules;
    uint64_t ruled[RULES][2]; /* frames and bytes that counted for each rule */
};

static void count_ruled(void *arg, const struct switch_rule_info *info)
{
    struct outcome *to = arg;

    cr_assert_lt(to->n_rules, RULES);
    to->ruled[to->n_rules][0] = info->frames;
    to->ruled[to->n_rules++][1] = info->bytes;
}

static void clear(void)
{
    for (unsigned p = 0; p < PORTS; p++) {
        fake_port_clear(&rig_fakes[p]);
        memset(rig_fakes[p].frames, 0, sizeof(rig_fakes[p].frames));
    }
}

/* What came of what was sent since `before`, or all of it. */
static void note(struct outcome *to, const struct outcome *before)
{
    for (unsigned p = 0; p < PORTS; p++) {
        uint64_t *counter = (uint64_t *)&to->counters[p];

        to->got[p] = rig_fakes[p];
        to->counters[p] = rig_info(p).counters;
        for (size_t i = 0; before && i < sizeof(to->counters[p]) / sizeof(*counter); i++)
            counter[i] -= ((const uint64_t *)&before->counters[p])[i];
    }
    to->n_rules = 0;
    switch_rules_walk(rig_switch, count_ruled, to);
    for (unsigned i = 0; before && i < to->n_rules; i++) {
        to->ruled[i][0] -= before->ruled[i][0];
        to->ruled[i][1] -= before->ruled[i][1];
    }
}

static void send_whole(unsigned from, const struct iovec *pieces, unsigned n)
{
    struct net_frame sent[NET_BATCH];

    for (unsigned i = 0; i < n; i++)
        sent[i] = (struct net_frame){.iov = &pieces[i], .iovcnt = 1, .length = pieces[i].iov_len};
    cr_assert_eq(net_port_send(&rig_fakes[from].port, sent, n), n);
}

static void send_singly(unsigned from, const struct iovec *pieces, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        size_t cut = pieces[i].iov_len / 2;
        const struct iovec halves[] = {
            {pieces[i].iov_base, cut},
            {(uint8_t *)pieces[i].iov_base + cut, pieces[i].iov_len - cut},
        };
        const struct net_frame frame = {.iov = halves, .iovcnt = 2, .length = pieces[i].iov_len};

        cr_assert_eq(net_port_send(&rig_fakes[from].port, &frame, 1), 1);
    }
}

static bool is_group(const struct fake_frame *frame)
{
    return frame->bytes[0] & 1;
}

static int by_bytes(const void *x, const void *y)
{
    const struct fake_frame *const *a = x, *const *b = y;

    return memcmp((*a)->bytes, (*b)->bytes, PACKET_MAX);
}

/* What goes to many is sent after the rest of its batch: then those in any order. */
static unsigned in_order(struct fake_port *port, const struct fake_frame **list)
{
    unsigned n = 0, singles;

    for (unsigned i = 0; i < port->n; i++)
        if (!is_group(&port->frames[i]))
            list[n++] = &port->frames[i];
    singles = n;
    for (unsigned i = 0; i < port->n; i++) {
        struct fake_frame *frame = &port->frames[i];

        if (!is_group(frame))
            continue;
        memset(frame->bytes + frame->meta.length, 0, FAKE_KEPT - frame->meta.length);
        list[n++] = frame;
    }
    qsort(list + singles, n - singles, sizeof(*list), by_bytes);
    return n;
}

static void compare_frames(unsigned p, struct fake_port *whole, struct fake_port *singly)
{
    const struct fake_frame *a[FAKE_FRAMES], *b[FAKE_FRAMES];
    unsigned n = in_order(whole, a);

    cr_assert_eq(n, in_order(singly, b), "port %u got %u frames, not %u", p, n, singly->n);
    for (unsigned i = 0; i < n; i++) {
        cr_assert_eq(a[i]->meta.length, b[i]->meta.length);
        cr_assert_eq(memcmp(a[i]->bytes, b[i]->bytes, a[i]->meta.length), 0, "port %u, frame %u", p,
                     i);
    }
}

static void compare(struct outcome *whole, struct outcome *singly)
{
    for (unsigned p = 0; p < PORTS; p++) {
        const struct switch_counters *a = &whole->counters[p], *b = &singly->counters[p];

        compare_frames(p, &whole->got[p], &singly->got[p]);
        cr_assert_eq(a->in_frames, b->in_frames);
        cr_assert_eq(a->in_bytes, b->in_bytes);
        cr_assert_eq(a->out_frames, b->out_frames);
        cr_assert_eq(a->out_bytes, b->out_bytes);
        for (unsigned why = 0; why < SWITCH_DROPS; why++)
            cr_assert_eq(a->dropped[why], b->dropped[why], "port %u, reason %u", p, why);
    }
    cr_assert_eq(whole->n_rules, singly->n_rules);
    for (unsigned i = 0; i < whole->n_rules; i++) {
        cr_assert_eq(whole->ruled[i][0], singly->ruled[i][0], "frames of rule %u", i);
        cr_assert_eq(whole->ruled[i][1], singly->ruled[i][1], "bytes of rule %u", i);
    }
}

static void try_batch(unsigned from, struct outcome *outcomes)
{
    struct endpoints e = {.src = 0x0A000001u, .dst = 0x0A000009u, .src_port = 99, .dst_port = 80};
    struct iovec pieces[NET_BATCH];
    unsigned n = 1 + pick(NET_BATCH);

    memcpy(e.src_mac, rig_mac(from), 6);
    memcpy(e.dst_mac, rig_mac(OTHER), 6);
    for (unsigned i = 0; i < n; i++) {
        make(&frames[i], &e, from);
        pieces[i] = (struct iovec){frames[i].bytes, frames[i].length};
    }
    note(&outcomes[0], NULL);
    clear();
    send_singly(from, pieces, n);
    note(&outcomes[1], &outcomes[0]);
    note(&outcomes[0], NULL);
    clear();
    send_whole(from, pieces, n);
    note(&outcomes[2], &outcomes[0]);
    compare(&outcomes[2], &outcomes[1]);
    clear();
}

static void try_batches(unsigned from)
{
    struct outcome *outcomes = calloc(3, sizeof(*outcomes));

    cr_assert_not_null(outcomes);
    rig_add_guest(GUEST, NULL);
    rig_add_guest(OTHER, NULL);
    rig_add_guest(THIRD, "trunk=0+7");
    rig_add_uplink(UPLINK, NULL);
    rig_add(MIRROR, SWITCH_PORT_MIRROR, NULL);
    for (unsigned list = 0; list < sizeof(lists) / sizeof(lists[0]); list++) {
        rig_rules(lists[list]);
        for (unsigned i = 0; i < BATCHES; i++)
            try_batch(from, outcomes);
    }
    free(outcomes);
}

Test(net_switch_train, a_guests_frames_do_in_a_batch_what_each_does_alone)
{
    try_batches(GUEST);
}

Test(net_switch_train, an_uplinks_frames_do_in_a_batch_what_each_does_alone)
{
    try_batches(UPLINK);
}

/* 64 TCP frames from the port to OTHER; every tenth to TCP port 22. */
static void send_train(unsigned from)
{
    struct endpoints e = {.src = 0x0A000001u, .dst = 0x0A000009u, .src_port = 99};
    struct iovec pieces[NET_BATCH];

    memcpy(e.src_mac, rig_mac(from), 6);
    memcpy(e.dst_mac, rig_mac(OTHER), 6);
    for (unsigned i = 0; i < NET_BATCH; i++) {
        e.dst_port = i % 10 == 9 ? 22 : 80;
        make_tcp(&frames[i], &e, TCP_ACK, i, 0, "x", 1);
        pieces[i] = (struct iovec){frames[i].bytes, frames[i].length};
    }
    send_whole(from, pieces, NET_BATCH);
}

static void note_rule(void *arg, const struct switch_rule_info *info)
{
    struct switch_rule_info **to = arg;

    *(*to)++ = *info;
}

Test(net_switch_train, each_frame_of_a_train_counts_for_its_rule_and_in_the_caches)
{
    struct switch_rule_info rules[2], *end = rules;
    struct switch_cache_info caches;

    rig_add_guest(GUEST, NULL);
    rig_add_guest(OTHER, NULL);
    rig_rules(lists[1]);
    send_train(GUEST);
    cr_assert_eq(rig_fakes[OTHER].n, 58);
    cr_assert_eq(rig_dropped(GUEST, SWITCH_DROP_DENIED), 6);
    switch_rules_walk(rig_switch, note_rule, &end);
    cr_assert_eq(rules[0].frames, 6);
    cr_assert_eq(rules[0].bytes, 6 * frames[0].length);
    cr_assert_eq(rules[1].frames, 58);
    switch_get_cache_info(rig_switch, &caches);
    cr_assert_eq(caches.misses, 2);
    cr_assert_eq(caches.exact_hits, 62);
}

Test(net_switch_train, an_uplink_learns_from_a_train_but_not_from_one_that_is_denied)
{
    rig_add_uplink(UPLINK, NULL);
    rig_add_guest(OTHER, NULL);
    rig_rules((const char *[]){"action=deny", NULL});
    send_train(UPLINK);
    cr_assert_eq(rig_info(UPLINK).learnt, 0);
    rig_rules((const char *[]){"action=allow", NULL});
    send_train(UPLINK);
    cr_assert_eq(rig_info(UPLINK).learnt, 1);
}

Test(net_switch_train, a_neighbour_solicitation_amid_a_train_tells_its_address)
{
    struct endpoints e = {.src_port = 9, .dst_port = 9};
    struct iovec pieces[3];
    struct switch_address address;

    rig_add_guest(GUEST, NULL);
    rig_add_guest(OTHER, NULL);
    memcpy(e.src_mac, rig_mac(GUEST), 6);
    memcpy(e.dst_mac, rig_mac(OTHER), 6);
    for (unsigned i = 0; i < 3; i++) {
        char text[60] = {0};

        make_udp(&frames[i], &e, text, sizeof(text));
        make_ipv6(&frames[i]);
        memset(frames[i].bytes + 22, 0x20 + (int)i, 16); /* from that address */
        frames[i].bytes[20] = i == 1 ? 58 : 17;
        pieces[i] = (struct iovec){frames[i].bytes, frames[i].length};
    }
    send_whole(GUEST, pieces, 3);
    cr_assert_eq(rig_fakes[OTHER].n, 3);
    cr_assert_eq(switch_port_addresses(rig_ports[GUEST], &address, 1), 1);
    cr_assert_eq(address.bytes[0], 0x21);
}

Test(net_switch_train, a_full_port_refuses_the_end_of_a_train)
{
    rig_add_guest(GUEST, NULL);
    rig_add_guest(OTHER, NULL);
    rig_fakes[OTHER].room = 40;
    send_train(GUEST);
    cr_assert_eq(rig_fakes[OTHER].n, 40);
    cr_assert_eq(rig_dropped(OTHER, SWITCH_DROP_FULL), 24);
}

/* Takes frames whose first 48 bytes are not the sender's memory. */
static unsigned take_copies(struct net_port *port, const struct net_frame *got, unsigned n)
{
    struct fake_port *fake = (struct fake_port *)port;

    for (unsigned i = 0; i < n; i++) {
        const uint8_t *at = got[i].iov[0].iov_base;

        if (got[i].iov[0].iov_len >= 48 &&
            (at < (const uint8_t *)frames || at >= (const uint8_t *)(frames + NET_BATCH)))
            fake->n++;
    }
    return n;
}

Test(net_switch_train, the_headers_that_go_on_are_those_that_were_looked_at)
{
    static const struct net_port_ops spy = {.deliver = take_copies};

    rig_add_guest(GUEST, NULL);
    rig_add_guest(OTHER, NULL);
    rig_fakes[OTHER].port.ops = &spy;
    send_train(GUEST);
    cr_assert_eq(rig_fakes[OTHER].n, NET_BATCH);
}
