/*
 * The switch: who gets a frame and who does not, what is dropped and how it is counted, ports that
 * come and go.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "net/receive_filter.h"
#include "net/switch.h"
#include "tests/unit/fake_port.h"
#include "tests/unit/packets.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define PORTS 24
#define SECOND 1000000000ull

static struct loop *loop;
static struct net_switch *sw;
static struct fake_port *fakes; /* plugged into ports[] */
static struct switch_port *ports[PORTS];
static uint64_t now;

static uint64_t fake_now(void)
{
    return now;
}

static void quiet(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
}

static void set_up(void)
{
    const struct switch_config config = {.name = "lab0", .fdb_max = 16, .now_ns = fake_now};

    now = 1000 * SECOND;
    log_set_sink(quiet);
    cr_assert_eq(loop_create(&loop, 8), 0);
    cr_assert_eq(switch_create(&sw, loop, &config), 0);
    fakes = calloc(PORTS, sizeof(*fakes));
}

static void tear_down(void)
{
    switch_destroy(sw);
    loop_destroy(loop);
    free(fakes);
}

TestSuite(net_switch, .init = set_up, .fini = tear_down, .timeout = 20);

/* ---- helpers ---- */

static const uint8_t *mac_of(unsigned i)
{
    static uint8_t macs[256][6];

    memcpy(macs[i], (uint8_t[6]){0x02, 0, 0, 0, 0, (uint8_t)i}, 6);
    return macs[i];
}

static const uint8_t broadcast[6] = {0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};

/* Adds port `i` with settings as a person writes them, plugs the fake in. */
static void add(unsigned i, int kind, const char *settings)
{
    struct switch_port_config config = {.kind = kind};

    snprintf(config.name, sizeof(config.name), "p%u", i);
    if (settings)
        cr_assert_eq(switch_port_config_update("test", settings, &config), 0);
    cr_assert_eq(switch_port_add(sw, &config, &ports[i]), 0);
    fake_port_init(&fakes[i], "fake");
    net_port_connect(switch_port_end(ports[i]), &fakes[i].port);
}

/* A guest's port whose NIC has the address mac_of(i). */
static void add_guest(unsigned i, const char *settings)
{
    add(i, SWITCH_PORT_GUEST, settings);
    fake_port_say_mac(&fakes[i], mac_of(i));
}

static void add_uplink(unsigned i, const char *settings)
{
    add(i, SWITCH_PORT_UPLINK, settings);
}

#define LENGTH 60

/* Sends, by port `from`, a frame between two addresses, of a type that nobody knows. */
static void send_raw(unsigned from, const uint8_t src[6], const uint8_t dst[6])
{
    uint8_t bytes[LENGTH] = {0};

    memcpy(bytes, dst, 6);
    memcpy(bytes + 6, src, 6);
    put16(bytes + 12, 0x88B5);
    bytes[14] = 0x5A;
    fake_port_send(&fakes[from], bytes, sizeof(bytes));
}

static void send_to(unsigned from, const uint8_t dst[6])
{
    send_raw(from, mac_of(from), dst);
}

static uint64_t dropped(unsigned port, enum switch_drop why)
{
    struct switch_port_info info;

    switch_port_get_info(ports[port], &info);
    return info.counters.dropped[why];
}

static struct switch_port_info info_of(unsigned port)
{
    struct switch_port_info info;

    switch_port_get_info(ports[port], &info);
    return info;
}

/* ---- who gets a frame ---- */

Test(net_switch, a_frame_goes_to_the_guest_that_has_the_address_and_to_nobody_else)
{
    add_guest(0, NULL);
    add_guest(1, NULL);
    add_guest(2, NULL);
    add_uplink(3, NULL);
    send_to(0, mac_of(1));
    cr_assert_eq(fakes[1].n, 1);
    cr_assert_eq(fakes[0].n + fakes[2].n + fakes[3].n, 0);
    cr_assert_eq(fakes[1].frames[0].meta.length, LENGTH);
    cr_assert_arr_eq(fakes[1].frames[0].bytes, mac_of(1), 6);
    cr_assert_eq(fakes[1].frames[0].bytes[14], 0x5A);
}

Test(net_switch, what_was_sent_to_is_flushed_when_the_sender_ends_its_run)
{
    add_guest(0, NULL);
    add_guest(1, NULL);
    add_guest(2, NULL);
    send_to(0, mac_of(1));
    cr_assert_eq(fakes[1].flushes, 1);
    cr_assert_eq(fakes[2].flushes, 0);
}

Test(net_switch, a_broadcast_reaches_all_but_its_sender)
{
    for (unsigned i = 0; i < PORTS; i++)
        add_guest(i, NULL);
    send_to(5, broadcast);
    for (unsigned i = 0; i < PORTS; i++)
        cr_assert_eq(fakes[i].n, i != 5, "port %u", i);
}

Test(net_switch, an_unknown_address_goes_to_the_uplink_and_nowhere_else)
{
    add_guest(0, NULL);
    add_guest(1, NULL);
    add_guest(2, "learn=on");
    add_uplink(3, NULL);
    send_to(0, mac_of(99));
    cr_assert_eq(fakes[3].n, 1);
    cr_assert_eq(fakes[1].n + fakes[2].n, 0);
}

Test(net_switch, an_unknown_address_without_an_uplink_is_dropped_and_counted)
{
    add_guest(0, NULL);
    add_guest(1, NULL);
    send_to(0, mac_of(99));
    cr_assert_eq(fakes[1].n, 0);
    cr_assert_eq(dropped(0, SWITCH_DROP_UNKNOWN), 1);
}

Test(net_switch, an_unknown_address_from_the_uplink_is_dropped_and_counted)
{
    add_guest(0, NULL);
    add_uplink(1, NULL);
    send_to(1, mac_of(99));
    cr_assert_eq(fakes[0].n, 0);
    cr_assert_eq(dropped(1, SWITCH_DROP_UNKNOWN), 1);
}

Test(net_switch, a_port_that_bridges_may_ask_for_unknown_addresses)
{
    add_guest(0, NULL);
    add_guest(1, "learn=on,flood=on");
    add_uplink(2, NULL);
    send_to(0, mac_of(99));
    cr_assert_eq(fakes[1].n, 1);
    cr_assert_eq(fakes[2].n, 1);
}

Test(net_switch, a_frame_to_its_own_port_goes_nowhere)
{
    add_guest(0, NULL);
    send_to(0, mac_of(0));
    cr_assert_eq(fakes[0].n, 0);
    cr_assert_eq(dropped(0, SWITCH_DROP_NOWHERE), 1);
}

Test(net_switch, a_broadcast_alone_goes_nowhere)
{
    add_guest(0, NULL);
    send_to(0, broadcast);
    cr_assert_eq(dropped(0, SWITCH_DROP_NOWHERE), 1);
}

Test(net_switch, nothing_goes_from_one_uplink_to_another)
{
    add_uplink(0, NULL);
    add_uplink(1, NULL);
    add_guest(2, NULL);
    send_to(0, broadcast);
    send_to(0, mac_of(99));
    cr_assert_eq(fakes[1].n, 0);
    cr_assert_eq(fakes[2].n, 1);
}

Test(net_switch, what_bridges_keep_is_not_forwarded)
{
    static const uint8_t stp[] = {0x01, 0x80, 0xC2, 0, 0, 0}, lldp[] = {0x01, 0x80, 0xC2, 0, 0, 0x0E};
    static const uint8_t mvrp[] = {0x01, 0x80, 0xC2, 0, 0, 0x21};

    add_guest(0, NULL);
    add_guest(1, NULL);
    send_to(0, stp);
    send_to(0, lldp);
    cr_assert_eq(fakes[1].n, 0);
    cr_assert_eq(dropped(0, SWITCH_DROP_RESERVED), 2);
    send_to(0, mvrp);
    cr_assert_eq(fakes[1].n, 1);
}

Test(net_switch, a_batch_is_split_among_its_receivers_in_order)
{
    uint8_t bytes[NET_BATCH][LENGTH] = {0};
    struct iovec pieces[NET_BATCH];
    struct net_frame frames[NET_BATCH];

    for (unsigned i = 0; i < 4; i++)
        add_guest(i, NULL);
    for (unsigned i = 0; i < NET_BATCH; i++) {
        memcpy(bytes[i], mac_of(1 + i % 3), 6);
        memcpy(bytes[i] + 6, mac_of(0), 6);
        bytes[i][20] = (uint8_t)i;
        pieces[i] = (struct iovec){bytes[i], LENGTH};
        frames[i] = (struct net_frame){.iov = &pieces[i], .iovcnt = 1, .length = LENGTH};
    }
    cr_assert_eq(net_port_send(&fakes[0].port, frames, NET_BATCH), NET_BATCH);
    for (unsigned p = 1; p < 4; p++) {
        cr_assert_eq(fakes[p].n, (NET_BATCH - p) / 3 + 1);
        for (unsigned i = 0; i < fakes[p].n; i++)
            cr_assert_eq(fakes[p].frames[i].bytes[20], 3 * i + p - 1);
    }
}

Test(net_switch, a_frame_in_many_pieces_arrives_whole)
{
    uint8_t bytes[1500], got[1500];
    struct iovec pieces[1500];
    struct net_frame frame = {.iov = pieces, .length = sizeof(bytes)};

    add_guest(0, NULL);
    add_guest(1, NULL);
    for (unsigned i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 7);
    memcpy(bytes, mac_of(1), 6);
    memcpy(bytes + 6, mac_of(0), 6);
    put16(bytes + 12, 0x88B5);
    for (size_t at = 0, size = 0; at < sizeof(bytes); at += size) {
        size = at < 20 ? at % 3 : 1 + at % 200;
        size = size < sizeof(bytes) - at ? size : sizeof(bytes) - at;
        pieces[frame.iovcnt++] = (struct iovec){bytes + at, size};
        if (size == 0)
            pieces[frame.iovcnt++] = (struct iovec){bytes + at, size = 1};
    }
    net_port_send(&fakes[0].port, &frame, 1);
    cr_assert_eq(fakes[1].n, 1);
    memcpy(got, fakes[1].frames[0].bytes, sizeof(got));
    cr_assert_arr_eq(got, bytes, sizeof(bytes));
    cr_assert_eq(fakes[1].frames[0].meta.length, sizeof(bytes));
}

Test(net_switch, a_receiver_gets_the_header_that_was_judged_though_the_sender_changes_it)
{
    uint8_t bytes[LENGTH] = {0};

    /* The receiver copies while the sender writes: here, in its own hand. */
    add_guest(0, NULL);
    add_guest(1, NULL);
    memcpy(bytes, mac_of(1), 6);
    memcpy(bytes + 6, mac_of(0), 6);
    fake_port_send(&fakes[0], bytes, sizeof(bytes));
    cr_assert_eq(fakes[1].n, 1);
    cr_assert_neq(fakes[1].frames[0].meta.iov, NULL);
    cr_assert_arr_eq(fakes[1].frames[0].bytes, bytes, sizeof(bytes));
}

Test(net_switch, frames_that_are_too_short_or_too_long_are_malformed)
{
    static uint8_t bytes[NET_FRAME_MAX + 1];

    add_guest(0, NULL);
    add_guest(1, NULL);
    memcpy(bytes, mac_of(1), 6);
    memcpy(bytes + 6, mac_of(0), 6);
    fake_port_send(&fakes[0], bytes, 13);
    fake_port_send(&fakes[0], bytes, NET_FRAME_MAX + 1);
    cr_assert_eq(dropped(0, SWITCH_DROP_MALFORMED), 2);
    fake_port_send(&fakes[0], bytes, 14);
    fake_port_send(&fakes[0], bytes, NET_FRAME_MAX);
    cr_assert_eq(fakes[1].n, 2);
    cr_assert_eq(fakes[1].frames[1].meta.length, NET_FRAME_MAX);
}

Test(net_switch, a_frame_from_a_group_address_is_malformed)
{
    add_uplink(0, NULL);
    add_guest(1, NULL);
    send_raw(0, broadcast, mac_of(1));
    cr_assert_eq(fakes[1].n, 0);
    cr_assert_eq(dropped(0, SWITCH_DROP_MALFORMED), 1);
}

/* ---- counters, full ports, ports that answer ---- */

Test(net_switch, frames_and_bytes_are_counted_on_both_sides)
{
    add_guest(0, NULL);
    add_guest(1, NULL);
    send_to(0, mac_of(1));
    send_to(0, mac_of(99));
    cr_assert_eq(info_of(0).counters.in_frames, 2);
    cr_assert_eq(info_of(0).counters.in_bytes, 2 * LENGTH);
    cr_assert_eq(info_of(1).counters.out_frames, 1);
    cr_assert_eq(info_of(1).counters.out_bytes, LENGTH);
}

Test(net_switch, a_full_port_drops_and_counts_and_the_others_get_theirs)
{
    add_guest(0, NULL);
    add_guest(1, NULL);
    add_guest(2, NULL);
    fakes[1].room = 1;
    for (unsigned i = 0; i < 10; i++) {
        send_to(0, mac_of(1));
        send_to(0, mac_of(2));
        send_to(0, broadcast);
    }
    cr_assert_eq(fakes[1].n, 1);
    cr_assert_eq(dropped(1, SWITCH_DROP_FULL), 19);
    cr_assert_eq(fakes[2].n, 20);
    cr_assert_eq(dropped(0, SWITCH_DROP_FULL) + dropped(2, SWITCH_DROP_FULL), 0);
}

Test(net_switch, a_port_with_nothing_plugged_in_drops_and_counts)
{
    add_guest(0, NULL);
    add_uplink(1, NULL);
    net_port_disconnect(&fakes[1].port);
    send_to(0, mac_of(99));
    cr_assert_eq(dropped(1, SWITCH_DROP_UNPLUGGED), 1);
}

static void answer(struct fake_port *port)
{
    uint8_t bytes[LENGTH] = {0};

    memcpy(bytes, mac_of(0), 6);
    memcpy(bytes + 6, mac_of(98), 6);
    port->on_deliver = NULL;
    fake_port_send(port, bytes, sizeof(bytes));
}

Test(net_switch, an_uplink_may_answer_while_it_is_sent_to)
{
    add_guest(0, NULL);
    add_uplink(1, NULL);
    fakes[1].on_deliver = answer;
    send_to(0, mac_of(99));
    cr_assert_eq(fakes[1].n, 1);
    cr_assert_eq(fakes[0].n, 1);
    cr_assert_eq(fakes[0].flushes, 1);
}

static void answer_again(struct fake_port *port)
{
    uint8_t bytes[LENGTH] = {0};
    unsigned self = (unsigned)(port - fakes);

    memcpy(bytes, mac_of(1 - self), 6);
    memcpy(bytes + 6, mac_of(self), 6);
    fake_port_send(port, bytes, sizeof(bytes));
}

Test(net_switch, answers_to_answers_without_end_are_cut_off)
{
    add_guest(0, NULL);
    add_guest(1, NULL);
    fakes[0].on_deliver = fakes[1].on_deliver = answer_again;
    send_to(0, mac_of(1));
    cr_assert_eq(dropped(0, SWITCH_DROP_NESTED) + dropped(1, SWITCH_DROP_NESTED), 1);
    cr_assert_lt(fakes[0].n + fakes[1].n, 10);
}

/* ---- addresses: registered, learnt ---- */

Test(net_switch, an_address_that_the_guest_changes_moves_with_it)
{
    add_guest(0, NULL);
    add_guest(1, NULL);
    fake_port_say_mac(&fakes[1], mac_of(77));
    send_to(0, mac_of(77));
    send_to(0, mac_of(1));
    cr_assert_eq(fakes[1].n, 1);
    cr_assert_eq(dropped(0, SWITCH_DROP_UNKNOWN), 1);
}

Test(net_switch, further_addresses_of_a_filter_are_registered)
{
    struct net_receive_filter filter = {.unicast.entries = 2};

    add_guest(0, NULL);
    add_guest(1, NULL);
    memcpy(filter.mac, mac_of(1), 6);
    memcpy(filter.unicast.macs, mac_of(50), 6);
    memcpy(filter.unicast.macs + 6, mac_of(51), 6);
    net_port_tell_filter(&fakes[1].port, &filter);
    send_to(0, mac_of(50));
    send_to(0, mac_of(51));
    send_raw(1, mac_of(51), mac_of(0));
    cr_assert_eq(fakes[1].n, 2);
    cr_assert_eq(fakes[0].n, 1);
    cr_assert_eq(info_of(1).n_macs, 3);
}

Test(net_switch, who_had_an_address_first_keeps_it)
{
    add_guest(0, NULL);
    add_guest(1, NULL);
    add_guest(2, NULL);
    fake_port_say_mac(&fakes[2], mac_of(1));
    send_to(0, mac_of(1));
    cr_assert_eq(fakes[1].n, 1);
    cr_assert_eq(fakes[2].n, 0);
    cr_assert_eq(info_of(2).counters.conflicts, 1);
    /* Nor may the second send from it. */
    send_raw(2, mac_of(1), mac_of(0));
    cr_assert_eq(fakes[0].n, 0);
    cr_assert_eq(dropped(2, SWITCH_DROP_SPOOFED), 1);
    /* Until the first gives it up. */
    fake_port_say_mac(&fakes[1], mac_of(40));
    send_raw(2, mac_of(1), mac_of(0));
    send_to(0, mac_of(1));
    cr_assert_eq(fakes[0].n, 1);
    cr_assert_eq(fakes[2].n, 1);
}

Test(net_switch, the_same_address_may_be_in_two_vlans)
{
    add_guest(0, "vlan=10");
    add_guest(1, "vlan=10");
    add_guest(2, "vlan=20");
    add_guest(3, "vlan=20");
    fake_port_say_mac(&fakes[1], mac_of(9));
    fake_port_say_mac(&fakes[2], mac_of(9));
    send_to(0, mac_of(9));
    cr_assert_eq(fakes[1].n, 1);
    send_to(3, mac_of(9));
    cr_assert_eq(fakes[2].n, 1);
    cr_assert_eq(info_of(2).counters.conflicts, 0);
}

Test(net_switch, an_unplugged_port_has_no_address_any_more)
{
    add_guest(0, NULL);
    add_guest(1, NULL);
    net_port_disconnect(&fakes[1].port);
    send_to(0, mac_of(1));
    cr_assert_eq(dropped(0, SWITCH_DROP_UNKNOWN), 1);
    cr_assert_eq(info_of(1).n_macs, 0);
}

Test(net_switch, an_address_of_the_settings_counts_until_the_nic_speaks)
{
    struct switch_port_config config = {.name = "p1", .mac.given = true};

    add_guest(0, NULL);
    memcpy(config.mac.bytes, mac_of(60), 6);
    cr_assert_eq(switch_port_add(sw, &config, &ports[1]), 0);
    fake_port_init(&fakes[1], "fake");
    net_port_connect(switch_port_end(ports[1]), &fakes[1].port);
    send_to(0, mac_of(60));
    cr_assert_eq(fakes[1].n, 1);
    fake_port_say_mac(&fakes[1], mac_of(61));
    send_to(0, mac_of(60));
    send_to(0, mac_of(61));
    cr_assert_eq(fakes[1].n, 2);
}

Test(net_switch, addresses_behind_an_uplink_are_learnt_and_move)
{
    add_guest(0, NULL);
    add_uplink(1, NULL);
    add_guest(2, "learn=on");
    send_raw(1, mac_of(90), mac_of(0));
    send_to(0, mac_of(90));
    cr_assert_eq(fakes[1].n, 1);
    send_raw(2, mac_of(90), mac_of(0));
    fake_port_clear(&fakes[1]);
    send_to(0, mac_of(90));
    cr_assert_eq(fakes[1].n, 0);
    cr_assert_eq(fakes[2].n, 1);
    cr_assert_eq(info_of(1).learnt, 0);
    cr_assert_eq(info_of(2).learnt, 1);
}

Test(net_switch, what_was_learnt_is_forgotten_with_time)
{
    add_guest(0, NULL);
    add_guest(1, "learn=on");
    send_raw(1, mac_of(90), mac_of(0));
    now += SWITCH_AGE_DEFAULT * SECOND;
    send_to(0, mac_of(90));
    cr_assert_eq(fakes[1].n, 1);
    now += SECOND;
    send_to(0, mac_of(90));
    cr_assert_eq(fakes[1].n, 1);
    cr_assert_eq(dropped(0, SWITCH_DROP_UNKNOWN), 1);
}

Test(net_switch, what_was_learnt_in_one_vlan_is_unknown_in_another)
{
    add_guest(0, "vlan=10");
    add_guest(1, "vlan=20");
    add_guest(2, "trunk=10-20,learn=on");
    fakes[2].n = 0;
    send_raw(2, mac_of(90), mac_of(91)); /* no tag: not admitted, not learnt */
    cr_assert_eq(info_of(2).learnt, 0);
    cr_assert_eq(dropped(2, SWITCH_DROP_VLAN), 1);
}

Test(net_switch, a_registered_address_is_not_learnt_elsewhere)
{
    add_guest(0, NULL);
    add_guest(1, NULL);
    add_uplink(2, NULL);
    send_raw(2, mac_of(1), mac_of(0));
    cr_assert_eq(info_of(2).learnt, 0);
    send_to(0, mac_of(1));
    cr_assert_eq(fakes[1].n, 1);
}

Test(net_switch, a_full_table_learns_no_more_until_it_forgets)
{
    struct switch_cache_info info;

    add_uplink(0, NULL);
    add_guest(1, NULL);
    for (unsigned i = 0; i < 20; i++)
        send_raw(0, mac_of(100 + i), mac_of(1));
    switch_get_cache_info(sw, &info);
    cr_assert_eq(info.fdb_learnt, 16);
    cr_assert_eq(info_of(0).counters.not_learnt, 4);
    now += (SWITCH_AGE_DEFAULT + 1) * SECOND;
    send_raw(0, mac_of(200), mac_of(1));
    switch_get_cache_info(sw, &info);
    cr_assert_eq(info.fdb_learnt, 1);
}

Test(net_switch, a_guest_that_bridges_fills_a_quarter_of_the_table_at_most)
{
    add_guest(0, "learn=on");
    add_guest(1, NULL);
    for (unsigned i = 0; i < 20; i++)
        send_raw(0, mac_of(100 + i), mac_of(1));
    cr_assert_eq(info_of(0).learnt, 4);
    cr_assert_eq(info_of(0).counters.not_learnt, 16);
    cr_assert_eq(fakes[1].n, 20);
}

/* ---- policies ---- */

Test(net_switch, a_guest_may_not_send_from_another_address)
{
    add_guest(0, NULL);
    add_guest(1, NULL);
    send_raw(0, mac_of(66), mac_of(1));
    cr_assert_eq(fakes[1].n, 0);
    cr_assert_eq(dropped(0, SWITCH_DROP_SPOOFED), 1);
}

Test(net_switch, a_guest_that_may_spoof_may)
{
    add_guest(0, "spoof=on");
    add_guest(1, NULL);
    send_raw(0, mac_of(66), mac_of(1));
    cr_assert_eq(fakes[1].n, 1);
}

Test(net_switch, a_guest_whose_address_is_fixed_cannot_change_it)
{
    add_guest(0, NULL);
    add_guest(1, "mac-change=off");
    fake_port_say_mac(&fakes[1], mac_of(66));
    send_to(0, mac_of(66));
    cr_assert_eq(fakes[1].n, 0);
    send_to(0, mac_of(1));
    cr_assert_eq(fakes[1].n, 1);
    send_raw(1, mac_of(66), mac_of(0));
    cr_assert_eq(dropped(1, SWITCH_DROP_SPOOFED), 1);
}

static void ask_for_all(unsigned i)
{
    struct net_receive_filter filter = {.promiscuous = true};

    memcpy(filter.mac, mac_of(i), 6);
    net_port_tell_filter(&fakes[i].port, &filter);
}

Test(net_switch, a_guest_that_asks_for_all_frames_gets_its_own)
{
    for (unsigned i = 0; i < 3; i++)
        add_guest(i, NULL);
    ask_for_all(2);
    send_to(0, mac_of(1));
    cr_assert_eq(fakes[2].n, 0);
    cr_assert_not(info_of(2).promiscuous);
}

Test(net_switch, a_guest_that_may_see_all_frames_of_its_vlan_does)
{
    add_guest(0, "vlan=10");
    add_guest(1, "vlan=10");
    add_guest(2, "vlan=10,promisc=on");
    add_guest(3, "vlan=20,promisc=on");
    ask_for_all(2);
    ask_for_all(3);
    send_to(0, mac_of(1));
    send_to(0, mac_of(99));
    cr_assert_eq(fakes[1].n, 1);
    cr_assert_eq(fakes[2].n, 2);
    cr_assert_eq(fakes[3].n, 0);
    net_port_disconnect(&fakes[2].port);
    send_to(0, mac_of(1));
    cr_assert_eq(fakes[1].n, 2);
    cr_assert_eq(fakes[2].n, 2);
}

Test(net_switch, isolated_ports_reach_others_but_not_each_other)
{
    add_guest(0, "isolated=on");
    add_guest(1, "isolated=on");
    add_guest(2, NULL);
    add_uplink(3, NULL);
    send_to(0, mac_of(1));
    cr_assert_eq(dropped(0, SWITCH_DROP_ISOLATED), 1);
    send_to(0, mac_of(2));
    send_to(2, mac_of(1));
    send_to(0, broadcast);
    cr_assert_eq(fakes[1].n, 1);
    cr_assert_eq(fakes[2].n, 2);
    cr_assert_eq(fakes[3].n, 1);
}

Test(net_switch, a_broadcast_among_isolated_ports_only_is_counted_so)
{
    add_guest(0, "isolated=on");
    add_guest(1, "isolated=on");
    send_to(0, broadcast);
    cr_assert_eq(fakes[1].n, 0);
    cr_assert_eq(dropped(0, SWITCH_DROP_ISOLATED), 1);
}

Test(net_switch, reflective_relay_sends_back_where_it_came_from)
{
    add_uplink(0, "hairpin=on");
    add_guest(1, NULL);
    send_raw(0, mac_of(90), mac_of(1)); /* learnt */
    fake_port_clear(&fakes[0]);
    send_raw(0, mac_of(91), mac_of(90));
    cr_assert_eq(fakes[0].n, 1);
    send_raw(0, mac_of(91), broadcast);
    cr_assert_eq(fakes[0].n, 2);
    cr_assert_eq(fakes[1].n, 2);
}

Test(net_switch, a_rate_is_kept_on_the_way_in)
{
    add_guest(0, "rate-in=8K,burst-in=120"); /* 1000 bytes a second */
    add_guest(1, NULL);
    for (unsigned i = 0; i < 10; i++)
        send_to(0, mac_of(1));
    cr_assert_eq(fakes[1].n, 2);
    cr_assert_eq(dropped(0, SWITCH_DROP_RATE_IN), 8);
    for (unsigned i = 0; i < 100; i++) {
        now += SECOND / 100;
        send_to(0, mac_of(1));
    }
    cr_assert_eq(fakes[1].n, 2 + 1000 / LENGTH + 1);
}

Test(net_switch, a_rate_is_kept_on_the_way_out)
{
    add_guest(0, NULL);
    add_guest(1, "rate-out=8K,burst-out=120");
    for (unsigned i = 0; i < 10; i++)
        send_to(0, mac_of(1));
    cr_assert_eq(fakes[1].n, 2);
    cr_assert_eq(dropped(1, SWITCH_DROP_RATE_OUT), 8);
    now += 3600 * SECOND; /* a full bucket is not more than full */
    for (unsigned i = 0; i < 10; i++)
        send_to(0, mac_of(1));
    cr_assert_eq(fakes[1].n, 4);
}

/* ---- ports come, change and go ---- */

Test(net_switch, a_name_is_given_once)
{
    struct switch_port_config config = {.name = "p0"};
    struct switch_port *port;

    add_guest(0, NULL);
    cr_assert_eq(switch_port_add(sw, &config, &port), -EEXIST);
    memcpy(config.name, "no name", 8);
    cr_assert_eq(switch_port_add(sw, &config, &port), -EINVAL);
}

Test(net_switch, there_are_no_more_than_so_many_ports)
{
    struct switch_port_config config = {0};
    struct switch_port *port;

    for (unsigned i = 0; i < SWITCH_PORTS_MAX; i++) {
        snprintf(config.name, sizeof(config.name), "p%u", i);
        cr_assert_eq(switch_port_add(sw, &config, &port), 0);
    }
    memcpy(config.name, "more", 5);
    cr_assert_eq(switch_port_add(sw, &config, &port), -ENOSPC);
    switch_port_remove(switch_port_find(sw, "p7"));
    cr_assert_eq(switch_port_add(sw, &config, &port), 0);
    cr_assert_null(switch_port_find(sw, "p7"));
}

Test(net_switch, a_removed_port_is_unplugged_and_its_addresses_forgotten)
{
    add_guest(0, NULL);
    add_guest(1, NULL);
    add_uplink(2, NULL);
    send_raw(2, mac_of(90), mac_of(0));
    switch_port_remove(ports[2]);
    switch_port_remove(ports[1]);
    cr_assert_null(fakes[1].port.peer);
    send_to(0, mac_of(1));
    send_to(0, mac_of(90));
    cr_assert_eq(dropped(0, SWITCH_DROP_UNKNOWN), 2);
}

static void remove_on_deliver(struct fake_port *port)
{
    struct switch_port *victim = port->arg;

    if (victim)
        switch_port_remove(victim);
    port->arg = NULL;
}

Test(net_switch, a_port_may_be_removed_while_it_is_sent_to)
{
    for (unsigned i = 0; i < 4; i++)
        add_guest(i, NULL);
    fakes[1].on_deliver = remove_on_deliver;
    fakes[1].arg = ports[1];
    send_to(0, broadcast);
    cr_assert_eq(fakes[1].n, 1);
    cr_assert_eq(fakes[2].n + fakes[3].n, 2);
    send_to(0, broadcast);
    cr_assert_eq(fakes[1].n, 1);
    cr_assert_eq(fakes[2].n + fakes[3].n, 4);
}

Test(net_switch, a_port_may_be_removed_before_its_turn_and_another_come)
{
    struct switch_port_config config = {.name = "new"};

    for (unsigned i = 0; i < 4; i++)
        add_guest(i, NULL);
    fakes[1].on_deliver = remove_on_deliver;
    fakes[1].arg = ports[3];
    send_to(0, broadcast);
    cr_assert_eq(fakes[3].n, 0);
    cr_assert_eq(fakes[2].n, 1);
    cr_assert_eq(switch_port_add(sw, &config, &ports[4]), 0);
}

Test(net_switch, the_sender_may_be_removed_while_its_frame_is_delivered)
{
    add_guest(0, NULL);
    add_guest(1, NULL);
    add_guest(2, NULL);
    fakes[1].on_deliver = remove_on_deliver;
    fakes[1].arg = ports[0];
    send_to(0, broadcast);
    cr_assert_eq(fakes[2].n, 1);
    cr_assert_null(fakes[0].port.peer);
}

Test(net_switch, settings_change_at_run_time)
{
    struct switch_port_config config;

    add_guest(0, "vlan=10");
    add_guest(1, "vlan=20");
    send_to(0, mac_of(1));
    cr_assert_eq(fakes[1].n, 0);
    config = *switch_port_settings(ports[1]);
    cr_assert_eq(switch_port_config_update("set", "vlan=10,promisc=on", &config), 0);
    cr_assert_eq(switch_port_configure(ports[1], &config), 0);
    send_to(0, mac_of(1));
    cr_assert_eq(fakes[1].n, 1);
    cr_assert_eq(switch_port_settings(ports[1])->promiscuous, SWITCH_ON);
    memcpy(config.name, "other", 6);
    cr_assert_eq(switch_port_configure(ports[1], &config), -EINVAL);
}

Test(net_switch, one_vlan_key_replaces_all_vlan_settings)
{
    struct switch_port_config config = {.name = "p"};

    cr_assert_eq(switch_port_config_update("set", "trunk=10-20,native=1,isolated=on", &config), 0);
    cr_assert_eq(switch_port_config_update("set", "vlan=30", &config), 0);
    cr_assert_eq(config.vlan.vlan, 30);
    cr_assert_eq(config.vlan.native, 0);
    cr_assert_not(config.vlan.trunk_given);
    cr_assert(config.isolated);
    cr_assert_eq(switch_port_config_update("set", "isolated=off", &config), 0);
    cr_assert_eq(config.vlan.vlan, 30);
}

Test(net_switch, settings_that_do_not_fit_together_are_refused)
{
    static const char *const wrong[] = {
        "vlan=10,trunk=20", "vlan=10,native=2", "vlan-mode=dot1q-tunnel", "vlan=4095",
        "vlan-mode=native-tagged", "native=0", "trunk=20-10", "trunk=", "learn=on,spoof=off",
        "burst-in=1M", "rate-in=0", "rate-out=2T", "rate-in=1.", "hairpin=maybe", "nonsense=1",
    };
    struct switch_port_config config = {.name = "p"}, before = config;

    for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        cr_assert_eq(switch_port_config_update("set", wrong[i], &config), -EINVAL, "%s", wrong[i]);
        cr_assert_eq(memcmp(&config, &before, sizeof(config)), 0, "%s", wrong[i]);
    }
}

Test(net_switch, rates_are_in_bits_and_have_decimals)
{
    struct switch_port_config config = {.name = "p"};

    cr_assert_eq(switch_port_config_update("set", "rate-in=2.5G,rate-out=100", &config), 0);
    cr_assert_eq(config.rate_in, 2500000000u);
    cr_assert_eq(config.rate_out, 100);
}

Test(net_switch, ports_attached_and_detached_under_load_lose_nobody_elses_frames)
{
    unsigned sent = 0;

    for (unsigned i = 0; i < PORTS; i++)
        add_guest(i, NULL);
    for (unsigned round = 0; round < 300; round++) {
        unsigned i = 2 + round % (PORTS - 2);

        switch_port_remove(ports[i]);
        for (unsigned k = 0; k < 8; k++, sent++) {
            send_to(0, mac_of(1));
            send_to(1, broadcast);
            send_to(0, mac_of(i));
        }
        add_guest(i, round & 1 ? "isolated=on" : "promisc=on");
    }
    cr_assert_eq(fakes[1].n, sent);
    cr_assert_eq(fakes[0].n, sent);
    cr_assert_eq(dropped(0, SWITCH_DROP_UNKNOWN), sent);
}
