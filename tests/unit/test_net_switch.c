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
#include "tests/unit/packets.h"
#include "tests/unit/switch_rig.h"

TestSuite(net_switch, .init = rig_init, .fini = rig_fini, .timeout = 20);

/* ---- who gets a frame ---- */

Test(net_switch, a_frame_goes_to_the_guest_that_has_the_address_and_to_nobody_else)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    rig_add_guest(2, NULL);
    rig_add_uplink(3, NULL);
    rig_send_to(0, rig_mac(1));
    cr_assert_eq(rig_fakes[1].n, 1);
    cr_assert_eq(rig_fakes[0].n + rig_fakes[2].n + rig_fakes[3].n, 0);
    cr_assert_eq(rig_fakes[1].frames[0].meta.length, RIG_LENGTH);
    cr_assert_arr_eq(rig_fakes[1].frames[0].bytes, rig_mac(1), 6);
    cr_assert_eq(rig_fakes[1].frames[0].bytes[14], 0x5A);
}

Test(net_switch, what_was_sent_to_is_flushed_when_the_sender_ends_its_run)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    rig_add_guest(2, NULL);
    rig_send_to(0, rig_mac(1));
    cr_assert_eq(rig_fakes[1].flushes, 1);
    cr_assert_eq(rig_fakes[2].flushes, 0);
}

Test(net_switch, a_broadcast_reaches_all_but_its_sender)
{
    for (unsigned i = 0; i < RIG_PORTS; i++)
        rig_add_guest(i, NULL);
    rig_send_to(5, rig_broadcast);
    for (unsigned i = 0; i < RIG_PORTS; i++)
        cr_assert_eq(rig_fakes[i].n, i != 5, "port %u", i);
}

Test(net_switch, an_unknown_address_goes_to_the_uplink_and_nowhere_else)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    rig_add_guest(2, "learn=on");
    rig_add_uplink(3, NULL);
    rig_send_to(0, rig_mac(99));
    cr_assert_eq(rig_fakes[3].n, 1);
    cr_assert_eq(rig_fakes[1].n + rig_fakes[2].n, 0);
}

Test(net_switch, an_unknown_address_without_an_uplink_is_dropped_and_counted)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    rig_send_to(0, rig_mac(99));
    cr_assert_eq(rig_fakes[1].n, 0);
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_UNKNOWN), 1);
}

Test(net_switch, an_unknown_address_from_the_uplink_is_dropped_and_counted)
{
    rig_add_guest(0, NULL);
    rig_add_uplink(1, NULL);
    rig_send_to(1, rig_mac(99));
    cr_assert_eq(rig_fakes[0].n, 0);
    cr_assert_eq(rig_dropped(1, SWITCH_DROP_UNKNOWN), 1);
}

Test(net_switch, a_port_that_bridges_may_ask_for_unknown_addresses)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, "learn=on,flood=on");
    rig_add_uplink(2, NULL);
    rig_send_to(0, rig_mac(99));
    cr_assert_eq(rig_fakes[1].n, 1);
    cr_assert_eq(rig_fakes[2].n, 1);
}

Test(net_switch, a_frame_to_its_own_port_goes_nowhere)
{
    rig_add_guest(0, NULL);
    rig_send_to(0, rig_mac(0));
    cr_assert_eq(rig_fakes[0].n, 0);
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_NOWHERE), 1);
}

Test(net_switch, a_broadcast_alone_goes_nowhere)
{
    rig_add_guest(0, NULL);
    rig_send_to(0, rig_broadcast);
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_NOWHERE), 1);
}

Test(net_switch, nothing_goes_from_one_uplink_to_another)
{
    rig_add_uplink(0, NULL);
    rig_add_uplink(1, NULL);
    rig_add_guest(2, NULL);
    rig_send_to(0, rig_broadcast);
    rig_send_to(0, rig_mac(99));
    cr_assert_eq(rig_fakes[1].n, 0);
    cr_assert_eq(rig_fakes[2].n, 1);
}

Test(net_switch, what_bridges_keep_is_not_forwarded)
{
    static const uint8_t stp[] = {0x01, 0x80, 0xC2, 0, 0, 0};
    static const uint8_t lldp[] = {0x01, 0x80, 0xC2, 0, 0, 0x0E};
    static const uint8_t mvrp[] = {0x01, 0x80, 0xC2, 0, 0, 0x21};

    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    rig_send_to(0, stp);
    rig_send_to(0, lldp);
    cr_assert_eq(rig_fakes[1].n, 0);
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_RESERVED), 2);
    rig_send_to(0, mvrp);
    cr_assert_eq(rig_fakes[1].n, 1);
}

Test(net_switch, a_batch_is_split_among_its_receivers_in_order)
{
    uint8_t bytes[NET_BATCH][RIG_LENGTH] = {0};
    struct iovec pieces[NET_BATCH];
    struct net_frame frames[NET_BATCH];

    for (unsigned i = 0; i < 4; i++)
        rig_add_guest(i, NULL);
    for (unsigned i = 0; i < NET_BATCH; i++) {
        memcpy(bytes[i], rig_mac(1 + i % 3), 6);
        memcpy(bytes[i] + 6, rig_mac(0), 6);
        bytes[i][20] = (uint8_t)i;
        pieces[i] = (struct iovec){bytes[i], RIG_LENGTH};
        frames[i] = (struct net_frame){.iov = &pieces[i], .iovcnt = 1, .length = RIG_LENGTH};
    }
    cr_assert_eq(net_port_send(&rig_fakes[0].port, frames, NET_BATCH), NET_BATCH);
    for (unsigned p = 1; p < 4; p++) {
        cr_assert_eq(rig_fakes[p].n, (NET_BATCH - p) / 3 + 1);
        for (unsigned i = 0; i < rig_fakes[p].n; i++)
            cr_assert_eq(rig_fakes[p].frames[i].bytes[20], 3 * i + p - 1);
    }
}

Test(net_switch, a_frame_in_many_pieces_arrives_whole)
{
    uint8_t bytes[1500], got[1500];
    struct iovec pieces[1500];
    struct net_frame frame = {.iov = pieces, .length = sizeof(bytes)};

    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    for (unsigned i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 7);
    memcpy(bytes, rig_mac(1), 6);
    memcpy(bytes + 6, rig_mac(0), 6);
    put16(bytes + 12, 0x88B5);
    for (size_t at = 0, size = 0; at < sizeof(bytes); at += size) {
        size = at < 20 ? at % 3 : 1 + at % 200;
        size = size < sizeof(bytes) - at ? size : sizeof(bytes) - at;
        pieces[frame.iovcnt++] = (struct iovec){bytes + at, size};
        if (size == 0)
            pieces[frame.iovcnt++] = (struct iovec){bytes + at, size = 1};
    }
    net_port_send(&rig_fakes[0].port, &frame, 1);
    cr_assert_eq(rig_fakes[1].n, 1);
    memcpy(got, rig_fakes[1].frames[0].bytes, sizeof(got));
    cr_assert_arr_eq(got, bytes, sizeof(bytes));
    cr_assert_eq(rig_fakes[1].frames[0].meta.length, sizeof(bytes));
}

static uint8_t guest_memory[RIG_LENGTH];

static void change_source(struct fake_port *port)
{
    (void)port;
    memcpy(guest_memory + 6, rig_mac(66), 6);
}

Test(net_switch, a_receiver_gets_the_header_that_was_judged_though_the_sender_changes_it)
{
    for (unsigned i = 0; i < 3; i++)
        rig_add_guest(i, NULL);
    memcpy(guest_memory, rig_broadcast, 6);
    memcpy(guest_memory + 6, rig_mac(0), 6);
    rig_fakes[1].on_deliver = change_source;
    fake_port_send(&rig_fakes[0], guest_memory, sizeof(guest_memory));
    cr_assert_arr_eq(guest_memory + 6, rig_mac(66), 6);
    cr_assert_eq(rig_fakes[2].n, 1);
    cr_assert_arr_eq(rig_fakes[2].frames[0].bytes + 6, rig_mac(0), 6);
}

Test(net_switch, frames_that_are_too_short_or_too_long_are_malformed)
{
    static uint8_t bytes[NET_FRAME_MAX + 1];

    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    memcpy(bytes, rig_mac(1), 6);
    memcpy(bytes + 6, rig_mac(0), 6);
    fake_port_send(&rig_fakes[0], bytes, 13);
    fake_port_send(&rig_fakes[0], bytes, NET_FRAME_MAX + 1);
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_MALFORMED), 2);
    fake_port_send(&rig_fakes[0], bytes, 14);
    fake_port_send(&rig_fakes[0], bytes, NET_FRAME_MAX);
    cr_assert_eq(rig_fakes[1].n, 2);
    cr_assert_eq(rig_fakes[1].frames[1].meta.length, NET_FRAME_MAX);
}

Test(net_switch, a_frame_from_a_group_address_is_malformed)
{
    rig_add_uplink(0, NULL);
    rig_add_guest(1, NULL);
    rig_send_raw(0, rig_broadcast, rig_mac(1));
    cr_assert_eq(rig_fakes[1].n, 0);
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_MALFORMED), 1);
}

/* ---- counters, full ports, ports that answer ---- */

Test(net_switch, frames_and_bytes_are_counted_on_both_sides)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    rig_send_to(0, rig_mac(1));
    rig_send_to(0, rig_mac(99));
    cr_assert_eq(rig_info(0).counters.in_frames, 2);
    cr_assert_eq(rig_info(0).counters.in_bytes, 2 * RIG_LENGTH);
    cr_assert_eq(rig_info(1).counters.out_frames, 1);
    cr_assert_eq(rig_info(1).counters.out_bytes, RIG_LENGTH);
}

Test(net_switch, a_full_port_drops_and_counts_and_the_others_get_theirs)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    rig_add_guest(2, NULL);
    rig_fakes[1].room = 1;
    for (unsigned i = 0; i < 10; i++) {
        rig_send_to(0, rig_mac(1));
        rig_send_to(0, rig_mac(2));
        rig_send_to(0, rig_broadcast);
    }
    cr_assert_eq(rig_fakes[1].n, 1);
    cr_assert_eq(rig_dropped(1, SWITCH_DROP_FULL), 19);
    cr_assert_eq(rig_fakes[2].n, 20);
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_FULL) + rig_dropped(2, SWITCH_DROP_FULL), 0);
}

Test(net_switch, a_port_with_nothing_plugged_in_drops_and_counts)
{
    rig_add_guest(0, NULL);
    rig_add_uplink(1, NULL);
    net_port_disconnect(&rig_fakes[1].port);
    rig_send_to(0, rig_mac(99));
    cr_assert_eq(rig_dropped(1, SWITCH_DROP_UNPLUGGED), 1);
}

static void answer(struct fake_port *port)
{
    uint8_t bytes[RIG_LENGTH] = {0};

    memcpy(bytes, rig_mac(0), 6);
    memcpy(bytes + 6, rig_mac(98), 6);
    port->on_deliver = NULL;
    fake_port_send(port, bytes, sizeof(bytes));
}

Test(net_switch, an_uplink_may_answer_while_it_is_sent_to)
{
    rig_add_guest(0, NULL);
    rig_add_uplink(1, NULL);
    rig_fakes[1].on_deliver = answer;
    rig_send_to(0, rig_mac(99));
    cr_assert_eq(rig_fakes[1].n, 1);
    cr_assert_eq(rig_fakes[0].n, 1);
    cr_assert_eq(rig_fakes[0].flushes, 1);
}

static void answer_again(struct fake_port *port)
{
    uint8_t bytes[RIG_LENGTH] = {0};
    unsigned self = (unsigned)(port - rig_fakes);

    memcpy(bytes, rig_mac(1 - self), 6);
    memcpy(bytes + 6, rig_mac(self), 6);
    fake_port_send(port, bytes, sizeof(bytes));
}

Test(net_switch, answers_to_answers_without_end_are_cut_off)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    rig_fakes[0].on_deliver = rig_fakes[1].on_deliver = answer_again;
    rig_send_to(0, rig_mac(1));
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_NESTED) + rig_dropped(1, SWITCH_DROP_NESTED), 1);
    cr_assert_lt(rig_fakes[0].n + rig_fakes[1].n, 10);
}

/* ---- addresses: registered, learnt ---- */

Test(net_switch, an_address_that_the_guest_changes_moves_with_it)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    fake_port_say_mac(&rig_fakes[1], rig_mac(77));
    rig_send_to(0, rig_mac(77));
    rig_send_to(0, rig_mac(1));
    cr_assert_eq(rig_fakes[1].n, 1);
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_UNKNOWN), 1);
}

Test(net_switch, further_addresses_of_a_filter_are_registered)
{
    struct net_receive_filter filter = {.unicast.entries = 2};

    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    memcpy(filter.mac, rig_mac(1), 6);
    memcpy(filter.unicast.macs, rig_mac(50), 6);
    memcpy(filter.unicast.macs + 6, rig_mac(51), 6);
    net_port_tell_filter(&rig_fakes[1].port, &filter);
    rig_send_to(0, rig_mac(50));
    rig_send_to(0, rig_mac(51));
    rig_send_raw(1, rig_mac(51), rig_mac(0));
    cr_assert_eq(rig_fakes[1].n, 2);
    cr_assert_eq(rig_fakes[0].n, 1);
    cr_assert_eq(rig_info(1).n_macs, 3);
}

Test(net_switch, who_had_an_address_first_keeps_it)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    rig_add_guest(2, NULL);
    fake_port_say_mac(&rig_fakes[2], rig_mac(1));
    rig_send_to(0, rig_mac(1));
    cr_assert_eq(rig_fakes[1].n, 1);
    cr_assert_eq(rig_fakes[2].n, 0);
    cr_assert_eq(rig_info(2).counters.conflicts, 1);
    /* Nor may the second send from it. */
    rig_send_raw(2, rig_mac(1), rig_mac(0));
    cr_assert_eq(rig_fakes[0].n, 0);
    cr_assert_eq(rig_dropped(2, SWITCH_DROP_SPOOFED), 1);
    /* Until the first gives it up. */
    fake_port_say_mac(&rig_fakes[1], rig_mac(40));
    rig_send_raw(2, rig_mac(1), rig_mac(0));
    rig_send_to(0, rig_mac(1));
    cr_assert_eq(rig_fakes[0].n, 1);
    cr_assert_eq(rig_fakes[2].n, 1);
}

Test(net_switch, the_same_address_may_be_in_two_vlans)
{
    rig_add_guest(0, "vlan=10");
    rig_add_guest(1, "vlan=10");
    rig_add_guest(2, "vlan=20");
    rig_add_guest(3, "vlan=20");
    fake_port_say_mac(&rig_fakes[1], rig_mac(9));
    fake_port_say_mac(&rig_fakes[2], rig_mac(9));
    rig_send_to(0, rig_mac(9));
    cr_assert_eq(rig_fakes[1].n, 1);
    rig_send_to(3, rig_mac(9));
    cr_assert_eq(rig_fakes[2].n, 1);
    cr_assert_eq(rig_info(2).counters.conflicts, 0);
}

Test(net_switch, an_unplugged_port_has_no_address_any_more)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    net_port_disconnect(&rig_fakes[1].port);
    rig_send_to(0, rig_mac(1));
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_UNKNOWN), 1);
    cr_assert_eq(rig_info(1).n_macs, 0);
}

Test(net_switch, an_address_of_the_settings_counts_until_the_nic_speaks)
{
    struct switch_port_config config = {.name = "p1", .mac.given = true};

    rig_add_guest(0, NULL);
    memcpy(config.mac.bytes, rig_mac(60), 6);
    cr_assert_eq(switch_port_add(rig_switch, &config, &rig_ports[1]), 0);
    fake_port_init(&rig_fakes[1], "fake");
    net_port_connect(switch_port_end(rig_ports[1]), &rig_fakes[1].port);
    rig_send_to(0, rig_mac(60));
    cr_assert_eq(rig_fakes[1].n, 1);
    fake_port_say_mac(&rig_fakes[1], rig_mac(61));
    rig_send_to(0, rig_mac(60));
    rig_send_to(0, rig_mac(61));
    cr_assert_eq(rig_fakes[1].n, 2);
}

Test(net_switch, addresses_behind_an_uplink_are_learnt_and_move)
{
    rig_add_guest(0, NULL);
    rig_add_uplink(1, NULL);
    rig_add_guest(2, "learn=on");
    rig_send_raw(1, rig_mac(90), rig_mac(0));
    rig_send_to(0, rig_mac(90));
    cr_assert_eq(rig_fakes[1].n, 1);
    rig_send_raw(2, rig_mac(90), rig_mac(0));
    fake_port_clear(&rig_fakes[1]);
    rig_send_to(0, rig_mac(90));
    cr_assert_eq(rig_fakes[1].n, 0);
    cr_assert_eq(rig_fakes[2].n, 1);
    cr_assert_eq(rig_info(1).learnt, 0);
    cr_assert_eq(rig_info(2).learnt, 1);
}

Test(net_switch, what_was_learnt_is_forgotten_with_time)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, "learn=on");
    rig_send_raw(1, rig_mac(90), rig_mac(0));
    rig_now += SWITCH_AGE_DEFAULT * RIG_SECOND;
    rig_send_to(0, rig_mac(90));
    cr_assert_eq(rig_fakes[1].n, 1);
    rig_now += RIG_SECOND;
    rig_send_to(0, rig_mac(90));
    cr_assert_eq(rig_fakes[1].n, 1);
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_UNKNOWN), 1);
}

Test(net_switch, who_is_heard_of_again_is_not_forgotten)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, "learn=on");
    for (unsigned i = 0; i < 3; i++) {
        rig_send_raw(1, rig_mac(90), rig_mac(0));
        rig_now += (SWITCH_AGE_DEFAULT - 1) * RIG_SECOND;
        rig_send_to(0, rig_mac(90));
    }
    cr_assert_eq(rig_fakes[1].n, 3);
}

Test(net_switch, what_was_learnt_in_one_vlan_is_unknown_in_another)
{
    rig_add_guest(0, "vlan=10");
    rig_add_guest(1, "vlan=20");
    rig_add_guest(2, "trunk=10-20,native=10,learn=on");
    rig_send_raw(2, rig_mac(90), rig_mac(0)); /* in VLAN 10 */
    rig_send_to(0, rig_mac(90));
    rig_send_to(1, rig_mac(90));
    cr_assert_eq(rig_fakes[2].n, 1);
    cr_assert_eq(rig_dropped(1, SWITCH_DROP_UNKNOWN), 1);
}

Test(net_switch, nothing_is_learnt_of_a_frame_that_is_not_admitted)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, "trunk=10-20,learn=on");
    rig_send_raw(1, rig_mac(90), rig_mac(0));
    cr_assert_eq(rig_info(1).learnt, 0);
    cr_assert_eq(rig_dropped(1, SWITCH_DROP_VLAN), 1);
}

Test(net_switch, a_registered_address_is_not_learnt_elsewhere)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    rig_add_uplink(2, NULL);
    rig_send_raw(2, rig_mac(1), rig_mac(0));
    cr_assert_eq(rig_info(2).learnt, 0);
    rig_send_to(0, rig_mac(1));
    cr_assert_eq(rig_fakes[1].n, 1);
}

Test(net_switch, a_full_table_learns_no_more_until_it_forgets)
{
    struct switch_cache_info info;

    rig_add_uplink(0, NULL);
    rig_add_guest(1, NULL);
    for (unsigned i = 0; i < 20; i++)
        rig_send_raw(0, rig_mac(100 + i), rig_mac(1));
    switch_get_cache_info(rig_switch, &info);
    cr_assert_eq(info.fdb_learnt, 16);
    cr_assert_eq(rig_info(0).counters.not_learnt, 4);
    rig_now += (SWITCH_AGE_DEFAULT + 1) * RIG_SECOND;
    rig_send_raw(0, rig_mac(200), rig_mac(1));
    switch_get_cache_info(rig_switch, &info);
    cr_assert_eq(info.fdb_learnt, 1);
}

Test(net_switch, a_guest_that_bridges_fills_a_quarter_of_the_table_at_most)
{
    rig_add_guest(0, "learn=on");
    rig_add_guest(1, NULL);
    for (unsigned i = 0; i < 20; i++)
        rig_send_raw(0, rig_mac(100 + i), rig_mac(1));
    cr_assert_eq(rig_info(0).learnt, 4);
    cr_assert_eq(rig_info(0).counters.not_learnt, 16);
    cr_assert_eq(rig_fakes[1].n, 20);
}

/* ---- policies ---- */

Test(net_switch, a_guest_may_not_send_from_another_address)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    rig_send_raw(0, rig_mac(66), rig_mac(1));
    cr_assert_eq(rig_fakes[1].n, 0);
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_SPOOFED), 1);
}

Test(net_switch, a_guest_that_may_spoof_may)
{
    rig_add_guest(0, "spoof=on");
    rig_add_guest(1, NULL);
    rig_send_raw(0, rig_mac(66), rig_mac(1));
    cr_assert_eq(rig_fakes[1].n, 1);
}

Test(net_switch, a_guest_whose_address_is_fixed_cannot_change_it)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, "mac-change=off");
    fake_port_say_mac(&rig_fakes[1], rig_mac(66));
    rig_send_to(0, rig_mac(66));
    cr_assert_eq(rig_fakes[1].n, 0);
    rig_send_to(0, rig_mac(1));
    cr_assert_eq(rig_fakes[1].n, 1);
    rig_send_raw(1, rig_mac(66), rig_mac(0));
    cr_assert_eq(rig_dropped(1, SWITCH_DROP_SPOOFED), 1);
}

static void ask_for_all(unsigned i)
{
    struct net_receive_filter filter = {.promiscuous = true};

    memcpy(filter.mac, rig_mac(i), 6);
    net_port_tell_filter(&rig_fakes[i].port, &filter);
}

Test(net_switch, a_guest_that_asks_for_all_frames_gets_its_own)
{
    for (unsigned i = 0; i < 3; i++)
        rig_add_guest(i, NULL);
    ask_for_all(2);
    rig_send_to(0, rig_mac(1));
    cr_assert_eq(rig_fakes[2].n, 0);
    cr_assert_not(rig_info(2).promiscuous);
}

Test(net_switch, a_guest_that_may_see_all_frames_of_its_vlan_does)
{
    rig_add_guest(0, "vlan=10");
    rig_add_guest(1, "vlan=10");
    rig_add_guest(2, "vlan=10,promisc=on");
    rig_add_guest(3, "vlan=20,promisc=on");
    ask_for_all(2);
    ask_for_all(3);
    rig_send_to(0, rig_mac(1));
    rig_send_to(0, rig_mac(99));
    cr_assert_eq(rig_fakes[1].n, 1);
    cr_assert_eq(rig_fakes[2].n, 2);
    cr_assert_eq(rig_fakes[3].n, 0);
    net_port_disconnect(&rig_fakes[2].port);
    rig_send_to(0, rig_mac(1));
    cr_assert_eq(rig_fakes[1].n, 2);
    cr_assert_eq(rig_fakes[2].n, 2);
}

Test(net_switch, isolated_ports_reach_others_but_not_each_other)
{
    rig_add_guest(0, "isolated=on");
    rig_add_guest(1, "isolated=on");
    rig_add_guest(2, NULL);
    rig_add_uplink(3, NULL);
    rig_send_to(0, rig_mac(1));
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_ISOLATED), 1);
    rig_send_to(0, rig_mac(2));
    rig_send_to(2, rig_mac(1));
    rig_send_to(0, rig_broadcast);
    cr_assert_eq(rig_fakes[1].n, 1);
    cr_assert_eq(rig_fakes[2].n, 2);
    cr_assert_eq(rig_fakes[3].n, 1);
}

Test(net_switch, a_broadcast_among_isolated_ports_only_is_counted_so)
{
    rig_add_guest(0, "isolated=on");
    rig_add_guest(1, "isolated=on");
    rig_send_to(0, rig_broadcast);
    cr_assert_eq(rig_fakes[1].n, 0);
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_ISOLATED), 1);
}

Test(net_switch, reflective_relay_sends_back_where_it_came_from)
{
    rig_add_uplink(0, "hairpin=on");
    rig_add_guest(1, NULL);
    rig_send_raw(0, rig_mac(90), rig_mac(1)); /* learnt */
    fake_port_clear(&rig_fakes[0]);
    rig_send_raw(0, rig_mac(91), rig_mac(90));
    cr_assert_eq(rig_fakes[0].n, 1);
    rig_send_raw(0, rig_mac(91), rig_broadcast);
    cr_assert_eq(rig_fakes[0].n, 2);
    cr_assert_eq(rig_fakes[1].n, 2);
}

Test(net_switch, a_rate_is_kept_on_the_way_in)
{
    rig_add_guest(0, "rate-in=8K,burst-in=120"); /* 1000 bytes a second */
    rig_add_guest(1, NULL);
    for (unsigned i = 0; i < 10; i++)
        rig_send_to(0, rig_mac(1));
    cr_assert_eq(rig_fakes[1].n, 2);
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_RATE_IN), 8);
    for (unsigned i = 0; i < 100; i++) {
        rig_now += RIG_SECOND / 100;
        rig_send_to(0, rig_mac(1));
    }
    cr_assert_eq(rig_fakes[1].n, 2 + 1000 / RIG_LENGTH + 1);
}

Test(net_switch, a_rate_is_kept_on_the_way_out)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, "rate-out=8K,burst-out=120");
    for (unsigned i = 0; i < 10; i++)
        rig_send_to(0, rig_mac(1));
    cr_assert_eq(rig_fakes[1].n, 2);
    cr_assert_eq(rig_dropped(1, SWITCH_DROP_RATE_OUT), 8);
    rig_now += 3600 * RIG_SECOND; /* a full bucket is not more than full */
    for (unsigned i = 0; i < 10; i++)
        rig_send_to(0, rig_mac(1));
    cr_assert_eq(rig_fakes[1].n, 4);
}

/* ---- ports come, change and go ---- */

Test(net_switch, a_name_is_given_once)
{
    struct switch_port_config config = {.name = "p0"};
    struct switch_port *port;

    rig_add_guest(0, NULL);
    cr_assert_eq(switch_port_add(rig_switch, &config, &port), -EEXIST);
    memcpy(config.name, "no name", 8);
    cr_assert_eq(switch_port_add(rig_switch, &config, &port), -EINVAL);
}

Test(net_switch, there_are_no_more_than_so_many_ports)
{
    struct switch_port_config config = {0};
    struct switch_port *port;

    for (unsigned i = 0; i < SWITCH_PORTS_MAX; i++) {
        snprintf(config.name, sizeof(config.name), "p%u", i);
        cr_assert_eq(switch_port_add(rig_switch, &config, &port), 0);
    }
    memcpy(config.name, "more", 5);
    cr_assert_eq(switch_port_add(rig_switch, &config, &port), -ENOSPC);
    switch_port_remove(switch_port_find(rig_switch, "p7"));
    cr_assert_eq(switch_port_add(rig_switch, &config, &port), 0);
    cr_assert_null(switch_port_find(rig_switch, "p7"));
}

Test(net_switch, a_removed_port_is_unplugged_and_its_addresses_forgotten)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    rig_add_uplink(2, NULL);
    rig_send_raw(2, rig_mac(90), rig_mac(0));
    switch_port_remove(rig_ports[2]);
    switch_port_remove(rig_ports[1]);
    cr_assert_null(rig_fakes[1].port.peer);
    rig_send_to(0, rig_mac(1));
    rig_send_to(0, rig_mac(90));
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_UNKNOWN), 2);
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
        rig_add_guest(i, NULL);
    rig_fakes[1].on_deliver = remove_on_deliver;
    rig_fakes[1].arg = rig_ports[1];
    rig_send_to(0, rig_broadcast);
    cr_assert_eq(rig_fakes[1].n, 1);
    cr_assert_eq(rig_fakes[2].n + rig_fakes[3].n, 2);
    rig_send_to(0, rig_broadcast);
    cr_assert_eq(rig_fakes[1].n, 1);
    cr_assert_eq(rig_fakes[2].n + rig_fakes[3].n, 4);
}

Test(net_switch, a_port_may_be_removed_before_its_turn_and_another_come)
{
    struct switch_port_config config = {.name = "new"};

    for (unsigned i = 0; i < 4; i++)
        rig_add_guest(i, NULL);
    rig_fakes[1].on_deliver = remove_on_deliver;
    rig_fakes[1].arg = rig_ports[3];
    rig_send_to(0, rig_broadcast);
    cr_assert_eq(rig_fakes[3].n, 0);
    cr_assert_eq(rig_fakes[2].n, 1);
    cr_assert_eq(switch_port_add(rig_switch, &config, &rig_ports[4]), 0);
}

Test(net_switch, the_sender_may_be_removed_while_its_frame_is_delivered)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    rig_add_guest(2, NULL);
    rig_fakes[1].on_deliver = remove_on_deliver;
    rig_fakes[1].arg = rig_ports[0];
    rig_send_to(0, rig_broadcast);
    cr_assert_eq(rig_fakes[2].n, 1);
    cr_assert_null(rig_fakes[0].port.peer);
}

Test(net_switch, settings_change_at_run_time)
{
    struct switch_port_config config;

    rig_add_guest(0, "vlan=10");
    rig_add_guest(1, "vlan=20");
    rig_send_to(0, rig_mac(1));
    cr_assert_eq(rig_fakes[1].n, 0);
    config = *switch_port_settings(rig_ports[1]);
    cr_assert_eq(switch_port_config_update("set", "vlan=10,promisc=on", &config), 0);
    cr_assert_eq(switch_port_configure(rig_ports[1], &config), 0);
    rig_send_to(0, rig_mac(1));
    cr_assert_eq(rig_fakes[1].n, 1);
    cr_assert_eq(switch_port_settings(rig_ports[1])->promiscuous, SWITCH_ON);
    memcpy(config.name, "other", 6);
    cr_assert_eq(switch_port_configure(rig_ports[1], &config), -EINVAL);
}

Test(net_switch, a_policy_counts_at_once_for_addresses_that_are_there)
{
    struct switch_port_config config;

    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    fake_port_say_mac(&rig_fakes[1], rig_mac(66));
    config = *switch_port_settings(rig_ports[1]);
    cr_assert_eq(switch_port_config_update("set", "mac-change=off", &config), 0);
    cr_assert_eq(switch_port_configure(rig_ports[1], &config), 0);
    rig_send_to(0, rig_mac(66));
    cr_assert_eq(rig_fakes[1].n, 0);
    cr_assert_eq(switch_port_config_update("set", "mac-change=on", &config), 0);
    cr_assert_eq(switch_port_configure(rig_ports[1], &config), 0);
    rig_send_to(0, rig_mac(66));
    cr_assert_eq(rig_fakes[1].n, 1);
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

Test(net_switch, a_limit_that_is_lifted_takes_its_burst_along)
{
    struct switch_port_config config = {.name = "g0"};

    cr_assert_eq(switch_port_config_update("set", "rate-in=1M,burst-in=2K,rate-out=3M,burst-out=4K",
                                           &config), 0);
    cr_assert_eq(switch_port_config_update("set", "burst-out=off", &config), 0);
    cr_assert_eq(config.burst_out, 0);
    cr_assert_eq(config.rate_out, 3000000);
    cr_assert_eq(switch_port_config_update("set", "rate-in=off", &config), 0);
    cr_assert_eq(config.rate_in, 0);
    cr_assert_eq(config.burst_in, 0);
    cr_assert_eq(config.rate_out, 3000000);
    cr_assert_eq(switch_port_config_update("set", "rate-out=off,burst-out=4K", &config), -EINVAL);
    cr_assert_eq(config.rate_out, 3000000);
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

    for (unsigned i = 0; i < RIG_PORTS; i++)
        rig_add_guest(i, NULL);
    for (unsigned round = 0; round < 300; round++) {
        unsigned i = 2 + round % (RIG_PORTS - 2);

        switch_port_remove(rig_ports[i]);
        for (unsigned k = 0; k < 8; k++, sent++) {
            rig_send_to(0, rig_mac(1));
            rig_send_to(1, rig_broadcast);
            rig_send_to(0, rig_mac(i));
        }
        rig_add_guest(i, round & 1 ? "isolated=on" : "promisc=on");
    }
    cr_assert_eq(rig_fakes[1].n, sent);
    cr_assert_eq(rig_fakes[0].n, sent);
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_UNKNOWN), sent);
}
