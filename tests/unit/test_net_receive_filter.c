/*
 * Receive filters: which destination addresses and VLANs are wanted.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "net/receive_filter.h"

static const uint8_t own[6] = {2, 0, 0, 0, 0, 1}, other[6] = {2, 0, 0, 0, 0, 2};
static const uint8_t group[6] = {0x33, 0x33, 0, 0, 0, 1};
static const uint8_t broadcast[6] = {0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};
static struct net_receive_filter filter;

static void set_up(void)
{
    memset(&filter, 0, sizeof(filter));
    memcpy(filter.mac, own, 6);
}

TestSuite(receive_filter, .init = set_up, .timeout = 20);

static void assert_wants(bool wants_own, bool wants_other, bool wants_group, bool wants_broadcast)
{
    cr_assert_eq(net_receive_filter_wants(&filter, own), wants_own);
    cr_assert_eq(net_receive_filter_wants(&filter, other), wants_other);
    cr_assert_eq(net_receive_filter_wants(&filter, group), wants_group);
    cr_assert_eq(net_receive_filter_wants(&filter, broadcast), wants_broadcast);
}

Test(receive_filter, by_itself_it_wants_its_address_and_broadcasts)
{
    assert_wants(true, false, false, true);
}

Test(receive_filter, each_mode_lets_its_kind_through_or_keeps_it_out)
{
    filter.alluni = true;
    assert_wants(true, true, false, true);
    filter.nouni = true;
    assert_wants(false, false, false, true);
    filter.allmulti = true;
    assert_wants(false, false, true, true);
    filter.nobcast = true;
    assert_wants(false, false, true, false);
    filter.nomulti = true;
    assert_wants(false, false, false, false);
    filter.promiscuous = true;
    assert_wants(true, true, true, true);
}

Test(receive_filter, an_address_in_its_table_is_wanted)
{
    filter.unicast.entries = 1;
    memcpy(filter.unicast.macs, other, 6);
    assert_wants(true, true, false, true);
    filter.multicast.entries = 2;
    memcpy(filter.multicast.macs + 6, group, 6);
    assert_wants(true, true, true, true);
}

Test(receive_filter, a_table_that_was_too_long_to_be_kept_wants_all_of_its_kind)
{
    filter.unicast.entries = NET_FILTER_TABLE + 1;
    assert_wants(true, true, false, true);
    filter.unicast.entries = 0;
    filter.multicast.entries = UINT32_MAX;
    assert_wants(true, false, true, true);
}

Test(receive_filter, vlans_are_those_of_the_table_or_all)
{
    uint64_t vlans[NET_VLANS / 64] = {0};

    cr_assert(net_receive_filter_wants_vlan(&filter, 0));
    cr_assert(net_receive_filter_wants_vlan(&filter, 4095));
    filter.vlans = vlans;
    vlans[0] = 1u << 5;
    vlans[63] = 1ull << 63;
    cr_assert(net_receive_filter_wants_vlan(&filter, 5));
    cr_assert(!net_receive_filter_wants_vlan(&filter, 6));
    cr_assert(net_receive_filter_wants_vlan(&filter, 4095));
    cr_assert(!net_receive_filter_wants_vlan(&filter, 4094));
}

Test(receive_filter, addresses_of_groups_are_told_from_those_of_stations)
{
    cr_assert(net_mac_is_group(group));
    cr_assert(net_mac_is_group(broadcast));
    cr_assert(!net_mac_is_group(own));
}
