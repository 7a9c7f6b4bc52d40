/*
 * A port that goes on in another switch: its settings as a text, its counters, what was learnt.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "tests/unit/switch_rig.h"

TestSuite(net_switch_moved, .init = rig_init, .fini = rig_fini);

static const struct switch_port_config *settings(unsigned port)
{
    return switch_port_settings(rig_ports[port]);
}

/* Port `to` gets the settings of port `from`, as a text. */
static void carry(unsigned from, unsigned to)
{
    struct switch_port_config config = {.kind = settings(to)->kind, .mac = settings(to)->mac};
    char text[SWITCH_SETTINGS_MAX];

    memcpy(config.name, settings(to)->name, sizeof(config.name));
    cr_assert_eq(switch_port_config_format(settings(from), text, sizeof(text)), 0);
    cr_assert_eq(switch_port_config_update("test", text, &config), 0, "%s: %s", text, rig_said);
    cr_assert_eq(switch_port_configure(rig_ports[to], &config), 0);
}

static void assert_same(unsigned a, unsigned b)
{
    struct switch_port_config one = *settings(a), other = *settings(b);

    memcpy(other.name, one.name, sizeof(other.name));
    other.mac = one.mac;
    cr_assert_eq(memcmp(&one, &other, sizeof(one)), 0);
}

Test(net_switch_moved, all_settings_survive_as_a_text)
{
    static const char *const each[] = {
        "vlan=10",
        "trunk=all",
        "trunk=0+10-20+4094,native=7,vlan-mode=native-tagged,priority-tags=on",
        "native=9",
        "vlan=5,vlan-mode=dot1q-tunnel",
        "learn=on,flood=on,mac-change=off,promisc=on",
        "spoof=on,isolated=on,hairpin=on",
        "rate-in=1000000,rate-out=2.5G,burst-in=1500,burst-out=64K",
        "spoof=off,learn=off,flood=off,promisc=off,mac-change=on",
    };

    for (unsigned i = 0; i < sizeof(each) / sizeof(each[0]); i++) {
        rig_add_guest(2 * i, each[i]);
        rig_add_guest(2 * i + 1, NULL);
        carry(2 * i, 2 * i + 1);
        assert_same(2 * i, 2 * i + 1);
    }
}

Test(net_switch_moved, settings_of_the_destination_give_way_to_the_guests)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, "trunk=10-20,isolated=on,rate-in=1M,spoof=on");
    carry(0, 1);
    cr_assert_eq(settings(1)->vlan.trunk_given, false);
    cr_assert_eq(settings(1)->isolated, false);
    cr_assert_eq(settings(1)->rate_in, 0);
    cr_assert_eq(settings(1)->spoof, SWITCH_AUTO);
}

Test(net_switch_moved, a_text_that_finds_no_room_is_an_error)
{
    char text[30];

    rig_add_guest(0, "rate-in=1000000,rate-out=1000000");
    cr_assert_eq(switch_port_config_format(settings(0), text, sizeof(text)), -ENOSPC);
}

Test(net_switch_moved, counters_go_on_from_where_they_were)
{
    struct switch_counters before = {.in_frames = 10, .in_bytes = 100, .out_frames = 20,
                                     .out_bytes = 200, .not_learnt = 3, .conflicts = 4};

    before.dropped[SWITCH_DROP_SPOOFED] = 5;
    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    switch_port_add_counters(rig_ports[1], &before);
    rig_send_to(0, rig_mac(1));
    rig_send_to(1, rig_mac(0));
    cr_assert_eq(rig_info(1).counters.in_frames, 11);
    cr_assert_eq(rig_info(1).counters.in_bytes, 100 + RIG_LENGTH);
    cr_assert_eq(rig_info(1).counters.out_frames, 21);
    cr_assert_eq(rig_info(1).counters.out_bytes, 200 + RIG_LENGTH);
    cr_assert_eq(rig_info(1).counters.conflicts, 4);
    cr_assert_eq(rig_dropped(1, SWITCH_DROP_SPOOFED), 5);
}

Test(net_switch_moved, a_learnt_address_is_behind_the_port_at_once)
{
    static const uint8_t mac[6] = {2, 0, 0, 0, 9, 9};

    rig_now = 100 * RIG_SECOND;
    rig_add_guest(0, NULL);
    rig_add_guest(1, "learn=on");
    cr_assert(switch_port_add_learnt(rig_ports[1], mac, 0, 10));
    rig_send_to(0, mac);
    cr_assert_eq(rig_fakes[1].n, 1);
    cr_assert_eq(rig_info(1).learnt, 1);
}

Test(net_switch_moved, an_address_is_not_learnt_that_is_old_or_somebodys_or_where_none_are)
{
    static const uint8_t mac[6] = {2, 0, 0, 0, 9, 9}, group[6] = {3, 0, 0, 0, 9, 9};

    rig_now = 1000 * RIG_SECOND;
    rig_add_guest(0, NULL);
    rig_add_guest(1, "learn=on");
    cr_assert_not(switch_port_add_learnt(rig_ports[0], mac, 0, 0), "it learns nothing");
    cr_assert_not(switch_port_add_learnt(rig_ports[1], mac, 0, SWITCH_AGE_DEFAULT + 1), "old");
    cr_assert_not(switch_port_add_learnt(rig_ports[1], rig_mac(0), 0, 0), "port 0 has it");
    cr_assert_not(switch_port_add_learnt(rig_ports[1], group, 0, 0), "a group's");
    cr_assert_not(switch_port_add_learnt(rig_ports[1], mac, 5, 0), "a VLAN that it does not carry");
    cr_assert(switch_port_add_learnt(rig_ports[1], mac, 0, 0));
    cr_assert_not(switch_port_add_learnt(rig_ports[1], mac, 0, 0), "twice");
}
