/*
 * Rules in the switch: what their actions do to frames, that caches follow changes of rules and
 * ports, and that the path and the trace agree with the model.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "net/flow.h"
#include "tests/rule_model.h"
#include "tests/unit/packets.h"
#include "tests/unit/switch_rig.h"

TestSuite(net_switch_rules, .init = rig_init, .fini = rig_fini, .timeout = 60);

#define A 0x0A000001u /* 10.0.0.1 */
#define B 0x0A000002u

static struct packet made;

static void make_flow(unsigned from, unsigned to, uint32_t src, uint16_t dst_port)
{
    struct endpoints e = {.src = src, .dst = B, .src_port = 1234, .dst_port = dst_port};

    memcpy(e.src_mac, rig_mac(from), 6);
    memcpy(e.dst_mac, rig_mac(to), 6);
    make_tcp(&made, &e, TCP_SYN, 1, 0, "x", 1);
}

static void send_flow(unsigned from, unsigned to, uint32_t src, uint16_t dst_port)
{
    make_flow(from, to, src, dst_port);
    fake_port_send(&rig_fakes[from], made.bytes, made.length);
}

static struct switch_cache_info caches(void)
{
    struct switch_cache_info info;

    switch_get_cache_info(rig_switch, &info);
    return info;
}

Test(net_switch_rules, what_is_denied_does_not_arrive)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    rig_rules((const char *[]){"proto=tcp,dport=22,action=deny", NULL});
    send_flow(0, 1, A, 22);
    cr_assert_eq(rig_fakes[1].n, 0);
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_DENIED), 1);
    send_flow(0, 1, A, 23);
    cr_assert_eq(rig_fakes[1].n, 1);
}

Test(net_switch_rules, the_caches_remember_and_give_the_same_answer)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    rig_rules((const char *[]){"9,src=10.0.0.1,action=deny", "1,action=allow", NULL});
    for (unsigned i = 0; i < 5; i++) {
        send_flow(0, 1, A, 80);
        send_flow(0, 1, B, 80);
        send_flow(0, 1, B, (uint16_t)(81 + i));
    }
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_DENIED), 5);
    cr_assert_eq(rig_fakes[1].n, 10);
    cr_assert_eq(caches().misses, 2); /* two senders; the ports are not looked at */
    cr_assert_eq(caches().exact_hits, 13);
}

Test(net_switch_rules, a_changed_list_counts_from_the_next_frame_on)
{
    unsigned id;
    struct rule deny;

    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    send_flow(0, 1, A, 80);
    cr_assert_eq(rule_parse("rule", "src=10.0.0.1,action=deny", &deny), 0);
    cr_assert_eq(switch_rule_add(rig_switch, &deny, &id), 0);
    send_flow(0, 1, A, 80);
    send_flow(0, 1, A, 80);
    cr_assert_eq(rig_fakes[1].n, 1);
    cr_assert_eq(switch_rule_remove(rig_switch, id), 0);
    send_flow(0, 1, A, 80);
    cr_assert_eq(rig_fakes[1].n, 2);
    cr_assert_eq(switch_rule_remove(rig_switch, id), -ENOENT);
}

Test(net_switch_rules, a_rule_may_name_a_port_that_comes_later)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    rig_rules((const char *[]){"in=p2,action=deny", NULL});
    rig_add_guest(2, NULL);
    send_flow(2, 1, A, 80);
    send_flow(0, 1, A, 80);
    cr_assert_eq(rig_fakes[1].n, 1);
    cr_assert_eq(rig_dropped(2, SWITCH_DROP_DENIED), 1);
}

Test(net_switch_rules, a_port_that_takes_the_number_of_another_does_not_inherit_its_rules)
{
    struct switch_port_config config = {.name = "new", .spoof = SWITCH_ON};

    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    rig_rules((const char *[]){"in=p0,action=deny", NULL});
    send_flow(0, 1, A, 80);
    switch_port_remove(rig_ports[0]);
    cr_assert_eq(switch_port_add(rig_switch, &config, &rig_ports[0]), 0);
    net_port_connect(switch_port_end(rig_ports[0]), &rig_fakes[0].port);
    send_flow(0, 1, A, 80);
    cr_assert_eq(rig_fakes[1].n, 1);
}

Test(net_switch_rules, a_redirected_frame_goes_there_and_nowhere_else)
{
    for (unsigned i = 0; i < 3; i++)
        rig_add_guest(i, NULL);
    rig_rules((const char *[]){"proto=tcp,dport=80,action=redirect:p2", NULL});
    send_flow(0, 1, A, 80);
    cr_assert_eq(rig_fakes[1].n, 0);
    cr_assert_eq(rig_fakes[2].n, 1);
    send_flow(2, 1, A, 80); /* back to where it came from: nowhere */
    cr_assert_eq(rig_dropped(2, SWITCH_DROP_NOWHERE), 1);
    switch_port_remove(rig_ports[2]);
    send_flow(0, 1, A, 80);
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_NO_PORT), 1);
}

Test(net_switch_rules, a_redirect_keeps_to_vlans)
{
    rig_add_guest(0, "vlan=10");
    rig_add_guest(1, "vlan=10");
    rig_add_guest(2, "vlan=20");
    rig_rules((const char *[]){"action=redirect:p2", NULL});
    send_flow(0, 1, A, 80);
    cr_assert_eq(rig_fakes[2].n, 0);
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_VLAN), 1);
    rig_rules((const char *[]){"action=vlan:20+redirect:p2", NULL});
    send_flow(0, 1, A, 80);
    cr_assert_eq(rig_fakes[2].n, 1);
}

Test(net_switch_rules, a_redirect_goes_between_isolated_ports)
{
    rig_add_guest(0, "isolated=on");
    rig_add_guest(1, "isolated=on");
    rig_add_guest(2, NULL);
    rig_rules((const char *[]){"proto=tcp,dport=80,action=redirect:p1", NULL});
    send_flow(0, 2, A, 80);
    cr_assert_eq(rig_fakes[1].n, 1);
}

Test(net_switch_rules, a_rule_moves_frames_into_another_vlan)
{
    rig_add_guest(0, "vlan=10");
    rig_add_guest(1, "vlan=20");
    rig_add_guest(2, "trunk=20");
    rig_rules((const char *[]){"in=p0,vlan=10,action=vlan:20", NULL});
    send_flow(0, 1, A, 80);
    cr_assert_eq(rig_fakes[1].n, 1);
    rig_send_to(0, rig_broadcast);
    cr_assert_eq(rig_fakes[1].n, 2);
    cr_assert_eq(get32(rig_fakes[2].frames[0].bytes + 12), 0x81000014);
}

Test(net_switch_rules, a_rule_copies_to_a_mirror_port)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    rig_add(2, SWITCH_PORT_MIRROR, NULL);
    rig_add_guest(3, NULL);
    rig_rules((const char *[]){"9,proto=tcp,dport=80,action=mirror:p2",
                               "8,proto=tcp,dport=81,action=mirror:p3", NULL});
    send_flow(0, 1, A, 80);
    send_flow(0, 1, A, 81); /* p3 is no mirror port: no copy */
    cr_assert_eq(rig_fakes[1].n, 2);
    cr_assert_eq(rig_fakes[2].n, 1);
    cr_assert_eq(rig_fakes[2].flushes, 1);
    cr_assert_eq(rig_fakes[3].n, 0);
}

Test(net_switch_rules, frames_that_cannot_be_read_are_dropped_only_if_rules_look_inside)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    make_flow(0, 1, A, 80);
    made.bytes[14] = 0x42; /* a header of 8 bytes */
    rig_rules((const char *[]){"src-mac=02:00:00:00:00:99,action=deny", NULL});
    fake_port_send(&rig_fakes[0], made.bytes, made.length);
    cr_assert_eq(rig_fakes[1].n, 1);
    rig_rules((const char *[]){"proto=udp,action=deny", NULL});
    fake_port_send(&rig_fakes[0], made.bytes, made.length);
    cr_assert_eq(rig_fakes[1].n, 1);
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_MALFORMED), 1);
}

Test(net_switch_rules, headers_too_deep_to_read_are_not_let_through)
{
    uint8_t bytes[300] = {0};

    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    rig_rules((const char *[]){"proto=tcp,dport=22,action=deny", NULL});
    memcpy(bytes, rig_mac(1), 6);
    memcpy(bytes + 6, rig_mac(0), 6);
    put16(bytes + 12, 0x86DD);
    bytes[14] = 0x60;
    bytes[20] = 60;      /* destination options ... */
    bytes[54] = 6;       /* ... then TCP ... */
    bytes[55] = 20;      /* ... 168 bytes later */
    fake_port_send(&rig_fakes[0], bytes, sizeof(bytes));
    cr_assert_eq(rig_fakes[1].n, 0);
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_UNREADABLE), 1);
}

Test(net_switch_rules, a_fragment_that_would_overwrite_ports_is_malformed)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    rig_rules((const char *[]){"proto=tcp,dport=22,action=deny", NULL});
    make_flow(0, 1, A, 80);
    put16(made.bytes + AT_IP + 6, 1);
    fake_port_send(&rig_fakes[0], made.bytes, made.length);
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_MALFORMED), 1);
    put16(made.bytes + AT_IP + 6, 2);
    fake_port_send(&rig_fakes[0], made.bytes, made.length);
    cr_assert_eq(rig_fakes[1].n, 1);
}

Test(net_switch_rules, tcp_flags_of_a_cached_flow_are_looked_at)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    rig_rules((const char *[]){"proto=tcp,flags=+syn-ack,action=deny", NULL});
    for (unsigned i = 0; i < 3; i++) {
        make_flow(0, 1, A, 80);
        fake_port_send(&rig_fakes[0], made.bytes, made.length);
        made.bytes[AT_L4 + 13] = TCP_ACK;
        fake_port_send(&rig_fakes[0], made.bytes, made.length);
    }
    cr_assert_eq(rig_fakes[1].n, 3);
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_DENIED), 3);
}

static void first_rule(void *arg, const struct switch_rule_info *info)
{
    struct switch_rule_info *first = arg;

    if (!first->id)
        *first = *info;
}

Test(net_switch_rules, a_rule_counts_what_it_decided_about)
{
    struct switch_rule_info first = {0};

    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    rig_rules((const char *[]){"proto=tcp,dport=80,action=allow", NULL});
    for (unsigned i = 0; i < 3; i++)
        send_flow(0, 1, A, 80);
    send_flow(0, 1, A, 81);
    switch_rules_walk(rig_switch, first_rule, &first);
    cr_assert_eq(first.frames, 3);
    cr_assert_eq(first.bytes, 3 * made.length);
}

/* ---- the path against the model ---- */

static uint64_t random_state = 7;

static unsigned pick(unsigned n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(random_state >> 33) % n;
}

/* A frame of one of many kinds, of the common one and not. Returns its length. */
static size_t pick_frame(uint8_t *bytes)
{
    struct endpoints e = {.src = A + pick(3), .dst = B + pick(2), .src_port = (uint16_t)pick(3),
                          .dst_port = (uint16_t)(79 + pick(4))};
    struct packet packet;
    size_t tag = pick(3) ? 0 : 4;

    memcpy(e.src_mac, rig_mac(0), 6);
    memcpy(e.dst_mac, rig_mac(1), 6);
    if (pick(2))
        make_tcp(&packet, &e, (uint8_t)pick(32), 1, 1, "12345678", pick(9));
    else
        make_udp(&packet, &e, "12345678", pick(9));
    if (pick(4) == 0)
        packet.bytes[AT_IP + 9] = (uint8_t)(pick(2) ? 1 : 132);
    if (pick(6) == 0)
        put16(packet.bytes + AT_IP + 6, (uint16_t)(pick(2) ? 0x2000 : 0x4000));
    if (pick(6) == 0)
        put16(packet.bytes + AT_IP + 6, (uint16_t)(2 + pick(3)));
    memcpy(bytes, packet.bytes, 12);
    put32(bytes + 12, 0x81000000);
    memcpy(bytes + 12 + tag, packet.bytes + 12, packet.length - 12);
    return packet.length + tag;
}

static const char *const some_rules[] = {
    "9,src=10.0.0.1,proto=tcp,dport=80,action=deny",
    "9,src=10.0.0.2,proto=udp,sport=1,action=deny",
    "8,proto=tcp,flags=+syn-ack,dport=79-80,action=deny",
    "7,fragment=first,action=deny",
    "7,fragment=later,dst=10.0.0.3,action=deny",
    "6,proto=icmp,icmp-type=0,action=deny",
    "5,proto=sctp,dport=81,action=deny",
    "4,proto=udp,dport=82,src-mac=02:00:00:00:00:00,action=deny",
    NULL,
};

static void remember(void *arg, const char *line)
{
    *(bool *)arg |= strstr(line, "dropped") != NULL;
}

Test(net_switch_rules, what_arrives_is_what_the_model_allows_and_the_trace_says_so)
{
    struct rule rules[16];
    const struct rule *list[16];
    unsigned n = 0, allowed = 0;

    rig_add_guest(0, "trunk=0");
    rig_add_guest(1, "trunk=0");
    rig_rules(some_rules);
    for (; some_rules[n]; n++) {
        cr_assert_eq(rule_parse("rule", some_rules[n], &rules[n]), 0);
        list[n] = &rules[n];
    }
    for (unsigned i = 0; i < 20000; i++) {
        uint8_t bytes[200];
        size_t length = pick_frame(bytes), skip = get16(bytes + 12) == 0x8100 ? 16 : 12;
        bool arrived, traced = false;
        struct flow_key key;
        unsigned before = rig_fakes[1].n;

        cr_assert_eq(switch_trace(rig_ports[0], bytes, length, remember, &traced), 0);
        fake_port_send(&rig_fakes[0], bytes, length);
        arrived = rig_fakes[1].n > before;
        allowed += arrived;
        cr_assert_eq(flow_read(&key, 0, 0, bytes, bytes + skip, length - skip, length - skip),
                     FLOW_OK);
        cr_assert_eq(arrived, model_find(list, n, &key, "p0") == UINT32_MAX);
        cr_assert_eq(traced, !arrived);
    }
    cr_assert(allowed > 1000 && allowed < 19000);
    cr_assert_gt(caches().exact_hits, 1000);
}

/* ---- the trace ---- */

struct lines {
    char text[2000];
};

static void gather(void *arg, const char *line)
{
    struct lines *lines = arg;

    strcat(lines->text, line);
    strcat(lines->text, "\n");
}

static void expect_trace(const char *wanted)
{
    static struct lines lines;

    lines.text[0] = '\0';
    cr_assert_eq(switch_trace(rig_ports[0], made.bytes, made.length, gather, &lines), 0);
    cr_assert_str_eq(lines.text, wanted);
}

Test(net_switch_rules, a_trace_tells_the_way_step_by_step)
{
    rig_add_guest(0, "vlan=10");
    rig_add_guest(1, "trunk=10");
    rig_rules((const char *[]){"9,proto=tcp,dport=22,action=deny", "1,action=allow", NULL});
    make_flow(0, 1, A, 80);
    expect_trace("in by p0: 55 bytes from 02:00:00:00:00:00 to 02:00:00:00:00:01\n"
                 "access port: VLAN 10, priority 0\n"
                 "source: an address of the port\n"
                 "rules: 2 '1,action=allow' (by the classifier)\n"
                 "destination: registered by p1\n"
                 "out by p1: with tag 0x8100 of VLAN 10, priority 0\n");
    make_flow(0, 1, A, 22);
    expect_trace("in by p0: 55 bytes from 02:00:00:00:00:00 to 02:00:00:00:00:01\n"
                 "access port: VLAN 10, priority 0\n"
                 "source: an address of the port\n"
                 "rules: 1 '9,proto=tcp,dport=22,action=deny' (by the classifier)\n"
                 "dropped (denied): the rule denies it\n");
}

Test(net_switch_rules, a_trace_changes_nothing)
{
    static struct lines lines;

    rig_add_guest(0, "learn=on,rate-in=8K,burst-in=1");
    rig_add_guest(1, NULL);
    rig_rules((const char *[]){"1,action=allow", NULL});
    make_flow(99, 1, A, 80);
    for (unsigned i = 0; i < 3; i++) {
        lines.text[0] = '\0';
        switch_trace(rig_ports[0], made.bytes, made.length, gather, &lines);
    }
    cr_assert_eq(rig_fakes[1].n, 0);
    cr_assert_eq(rig_info(0).learnt, 0);
    cr_assert_eq(rig_info(0).counters.in_frames, 0);
    cr_assert_eq(caches().misses, 0);
    fake_port_send(&rig_fakes[0], made.bytes, made.length);
    cr_assert_eq(rig_fakes[1].n, 1);
    cr_assert_eq(switch_trace(rig_ports[0], made.bytes, 13, gather, &lines), -EINVAL);
}

Test(net_switch_rules, a_trace_of_an_unknown_address_names_the_uplink)
{
    rig_add_guest(0, NULL);
    rig_add_uplink(1, NULL);
    make_flow(0, 50, A, 80);
    expect_trace("in by p0: 55 bytes from 02:00:00:00:00:00 to 02:00:00:00:00:32\n"
                 "access port: VLAN 0, priority 0\n"
                 "source: an address of the port\n"
                 "rules: there are none\n"
                 "destination: unknown in VLAN 0\n"
                 "out by p1: without a tag\n");
}

/* ---- batches ---- */

#define KINDS 10
#define PEERS 5 /* p4 is a mirror port */

static struct {
    uint8_t bytes[200];
    size_t length, cut; /* cut: bytes of the first piece */
    bool needs_csum;
    uint16_t csum_start;
} batch[NET_BATCH];

/* A frame of one of a few kinds; those of a kind are alike but for their last bytes. */
static void make_kind(unsigned i, unsigned kind, unsigned number)
{
    static const uint8_t tag[4] = {0x81, 0, 0, 7};

    make_flow(0, kind == 1 ? 2 : kind == 2 ? 3 : 1, A, (uint16_t)(kind == 3 ? 22 : kind == 4 ? 81 : 80));
    memset(&batch[i], 0, sizeof(batch[i]));
    if (kind == 5) {
        memmove(made.bytes + 16, made.bytes + 12, made.length - 12);
        memcpy(made.bytes + 12, tag, sizeof(tag));
        made.length += sizeof(tag);
    }
    if (kind == 6)
        memcpy(made.bytes + 6, rig_mac(9), 6);
    if (kind == 7)
        made.bytes[13] = 6;
    if (kind == 5 || kind == 8) /* the second: in one in which p3 is not */
        memcpy(made.bytes, rig_mac(3), 6);
    memcpy(batch[i].bytes, made.bytes, made.length);
    batch[i].length = made.length + (kind == 9 ? 120 : 0);
    batch[i].bytes[batch[i].length - 1] = (uint8_t)number;
    batch[i].cut = number % 5 == 0 ? 10 + number % 40 : batch[i].length;
    batch[i].needs_csum = number % 7 == 0;
    batch[i].csum_start = number % 14 == 0 ? 34 : 5;
}

static void send_batch(unsigned first, unsigned n)
{
    struct iovec pieces[NET_BATCH][2];
    struct net_frame frames[NET_BATCH];

    for (unsigned i = 0; i < n; i++) {
        uint8_t *bytes = batch[first + i].bytes;
        size_t length = batch[first + i].length, cut = batch[first + i].cut;

        pieces[i][0] = (struct iovec){bytes, cut};
        pieces[i][1] = (struct iovec){bytes + cut, length - cut};
        frames[i] = (struct net_frame){
            .iov = pieces[i],
            .iovcnt = cut < length ? 2 : 1,
            .length = length,
            .needs_csum = batch[first + i].needs_csum,
            .csum_start = batch[first + i].csum_start,
        };
    }
    cr_assert_eq(net_port_send(&rig_fakes[0].port, frames, n), n);
    net_port_flush(&rig_fakes[0].port);
}

static void make_switch(void)
{
    rig_add_guest(0, "trunk=0+7");
    rig_add_guest(1, NULL);
    rig_add_guest(2, NULL);
    rig_add_guest(3, "vlan=7");
    rig_add(4, SWITCH_PORT_MIRROR, NULL);
    rig_rules((const char *[]){"9,proto=tcp,dport=22,action=deny",
                               "8,proto=tcp,dport=81,action=mirror:p4", NULL});
}

/* Sends the batch in parts of `size`, through a switch that is made for it. Keeps what arrived. */
static void pass(unsigned size, struct fake_port *got, uint64_t *dropped)
{
    rig_fini();
    rig_init();
    make_switch();
    for (unsigned i = 0; i < NET_BATCH; i += size)
        send_batch(i, NET_BATCH - i < size ? NET_BATCH - i : size);
    for (unsigned p = 0; p < PEERS; p++)
        got[p] = rig_fakes[p];
    *dropped = rig_dropped_all();
}

static void compare(const struct fake_port *one, const struct fake_port *many, unsigned round)
{
    for (unsigned p = 0; p < PEERS; p++) {
        cr_assert_eq(one[p].n, many[p].n, "round %u: p%u got %u frames, not %u", round, p,
                     many[p].n, one[p].n);
        for (unsigned i = 0; i < one[p].n; i++) {
            const struct fake_frame *a = &one[p].frames[i], *b = &many[p].frames[i];

            cr_assert_eq(a->meta.length, b->meta.length);
            cr_assert_eq(a->meta.needs_csum, b->meta.needs_csum);
            cr_assert_eq(a->meta.csum_start, b->meta.csum_start);
            cr_assert_arr_eq(a->bytes, b->bytes, a->meta.length, "round %u: p%u, frame %u", round,
                             p, i);
        }
    }
}

/* What is known of a frame from another one of its batch must not make a difference. */
Test(net_switch_rules, a_batch_arrives_as_its_frames_do_one_by_one)
{
    static struct fake_port one[PEERS], many[PEERS];
    uint64_t dropped_one, dropped_many, arrived = 0;
    uint32_t random = 1;

    for (unsigned round = 0; round < 60; round++) {
        unsigned kinds = 1 + round % KINDS;

        for (unsigned i = 0; i < NET_BATCH; i++) {
            random = random * 1664525 + 1013904223;
            make_kind(i, (random >> 16) % kinds * (round % 3 + 1) % KINDS, i + round);
        }
        pass(1, one, &dropped_one);
        pass(NET_BATCH, many, &dropped_many);
        compare(one, many, round);
        cr_assert_eq(dropped_one, dropped_many);
        pass(7, many, &dropped_many);
        compare(one, many, round);
        for (unsigned p = 0; p < PEERS; p++)
            arrived += one[p].n;
    }
    cr_assert_gt(arrived, 60 * NET_BATCH / 4);
}
