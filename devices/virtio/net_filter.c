/*
 * The receive filter of a network card as it stands after reset, and as it is saved.
 *
 * Decides nothing (net/receive_filter.c does) and knows no commands; net.c fills the filter in.
 * Thread and lock are its owner's.
 *
 * Texts: virtio 1.2 §5.1.6.5.1 (packet receive filtering), §5.1.6.5.2 (MAC address filtering).
 */
#include "devices/virtio/net_filter.h"

#include <errno.h>
#include <string.h>

static const struct state_field table_fields[] = {
    STATE_FIELD(STATE_U32, struct net_filter_table, entries),
    STATE_ARRAY(STATE_U8, struct net_filter_table, macs),
};
static const struct state_desc table_desc =
    STATE_DESC("net-filter-table", 1, struct net_filter_table, table_fields);

static const struct state_field filter_fields[] = {
    STATE_ARRAY(STATE_U8, struct net_receive_filter, mac),
    STATE_FIELD(STATE_BOOL, struct net_receive_filter, promiscuous),
    STATE_FIELD(STATE_BOOL, struct net_receive_filter, allmulti),
    STATE_FIELD(STATE_BOOL, struct net_receive_filter, alluni),
    STATE_FIELD(STATE_BOOL, struct net_receive_filter, nomulti),
    STATE_FIELD(STATE_BOOL, struct net_receive_filter, nouni),
    STATE_FIELD(STATE_BOOL, struct net_receive_filter, nobcast),
    STATE_SUB(struct net_receive_filter, unicast, &table_desc),
    STATE_SUB(struct net_receive_filter, multicast, &table_desc),
};
const struct state_desc net_filter_state_desc =
    STATE_DESC("net-filter", 1, struct net_receive_filter, filter_fields);

void net_filter_reset(struct net_receive_filter *filter, const uint8_t mac[6])
{
    /* §5.1.6.5.2.1: "The device MUST have an empty MAC filtering table on reset." */
    memset(filter, 0, sizeof(*filter));
    memcpy(filter->mac, mac, 6);
}

int net_filter_check(const struct net_receive_filter *filter)
{
    return net_mac_is_group(filter->mac) ? -EINVAL : 0;
}
