/*
 * The receive filter of a network card: a look at the destination address.
 *
 * Knows no queues and no commands; net.c fills it in. Thread and lock are its owner's.
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
    STATE_ARRAY(STATE_U8, struct net_filter, mac),
    STATE_ARRAY(STATE_BOOL, struct net_filter, modes),
    STATE_SUB(struct net_filter, unicast, &table_desc),
    STATE_SUB(struct net_filter, multicast, &table_desc),
};
const struct state_desc net_filter_state_desc =
    STATE_DESC("net-filter", 1, struct net_filter, filter_fields);

void net_filter_reset(struct net_filter *filter, const uint8_t mac[6])
{
    /* §5.1.6.5.2.1: "The device MUST have an empty MAC filtering table on reset." */
    memset(filter, 0, sizeof(*filter));
    memcpy(filter->mac, mac, 6);
}

int net_filter_check(const struct net_filter *filter)
{
    return net_mac_is_group(filter->mac) ? -EINVAL : 0;
}

static bool in_table(const struct net_filter_table *table, const uint8_t mac[6])
{
    if (table->entries > NET_FILTER_TABLE)
        return true; /* §5.1.6.5.2 lets it: "silently switch to allmulti or promiscuous mode" */
    for (uint32_t i = 0; i < table->entries; i++) {
        if (memcmp(table->macs + i * 6, mac, 6) == 0)
            return true;
    }
    return false;
}

/* In this order the exceptions that §5.1.6.5.1.1 makes come out right: promiscuous mode before all,
 * each "no" before its "all", and broadcast apart from multicast. */
bool net_filter_wants(const struct net_filter *filter, const uint8_t to[6])
{
    static const uint8_t broadcast[6] = {0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};
    const bool *modes = filter->modes;

    if (modes[NET_FILTER_PROMISC])
        return true;
    if (memcmp(to, broadcast, 6) == 0)
        return !modes[NET_FILTER_NOBCAST];
    if (net_mac_is_group(to))
        return !modes[NET_FILTER_NOMULTI] &&
               (modes[NET_FILTER_ALLMULTI] || in_table(&filter->multicast, to));
    return !modes[NET_FILTER_NOUNI] &&
           (modes[NET_FILTER_ALLUNI] || memcmp(to, filter->mac, 6) == 0 ||
            in_table(&filter->unicast, to));
}
