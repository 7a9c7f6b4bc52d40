/*
 * Receive filters: a look at the destination address, or at a VLAN id.
 *
 * Parses no frame and knows neither queues nor commands. A plain value; no thread, no locks.
 *
 * Texts: virtio 1.2 §5.1.6.5.1 (packet receive filtering), §5.1.6.5.2 (MAC address filtering),
 * §5.1.6.5.3 (VLAN filtering).
 */
#include "net/receive_filter.h"

#include <string.h>

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

/* In this order the exceptions that §5.1.6.5.1.1 makes come out right. */
bool net_receive_filter_wants(const struct net_receive_filter *filter, const uint8_t to[6])
{
    static const uint8_t broadcast[6] = {0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};

    if (filter->promiscuous)
        return true;
    if (memcmp(to, broadcast, 6) == 0)
        return !filter->nobcast;
    if (net_mac_is_group(to))
        return !filter->nomulti && (filter->allmulti || in_table(&filter->multicast, to));
    return !filter->nouni && (filter->alluni || memcmp(to, filter->mac, 6) == 0 ||
                              in_table(&filter->unicast, to));
}

bool net_receive_filter_wants_vlan(const struct net_receive_filter *filter, unsigned vid)
{
    return !filter->vlans || (filter->vlans[vid / 64] >> vid % 64 & 1);
}
