/*
 * The state of a network card that its driver set, as it stands after reset, and as it is saved.
 *
 * Decides nothing about frames and knows no commands; net_ctrl.c fills it in. Thread and lock are its
 * owner's.
 *
 * Texts: virtio 1.2 §5.1.6.5 (control virtqueue).
 */
#include "devices/virtio/net_state.h"

#include <string.h>

static const struct state_field table_fields[] = {
    STATE_FIELD(STATE_U32, struct net_filter_table, entries),
    STATE_ARRAY(STATE_U8, struct net_filter_table, macs),
};
static const struct state_desc table_desc =
    STATE_DESC("net-filter-table", 1, struct net_filter_table, table_fields);

static const struct state_field state_fields[] = {
    STATE_ARRAY(STATE_U8, struct net_state, filter.mac),
    STATE_FIELD(STATE_BOOL, struct net_state, filter.promiscuous),
    STATE_FIELD(STATE_BOOL, struct net_state, filter.allmulti),
    STATE_FIELD(STATE_BOOL, struct net_state, filter.alluni),
    STATE_FIELD(STATE_BOOL, struct net_state, filter.nomulti),
    STATE_FIELD(STATE_BOOL, struct net_state, filter.nouni),
    STATE_FIELD(STATE_BOOL, struct net_state, filter.nobcast),
    STATE_SUB(struct net_state, filter.unicast, &table_desc),
    STATE_SUB(struct net_state, filter.multicast, &table_desc),
    STATE_ARRAY_SINCE(STATE_U64, struct net_state, vlans, 2),
    STATE_FIELD_SINCE(STATE_U16, struct net_state, pairs, 2),
    STATE_FIELD_SINCE(STATE_BOOL, struct net_state, announce, 2),
    STATE_FIELD_SINCE(STATE_BOOL, struct net_state, rss, 2),
    STATE_FIELD_SINCE(STATE_U64, struct net_state, guest_offloads, 2),
    STATE_FIELD_SINCE(STATE_U32, struct net_state, hash_types, 2),
    STATE_FIELD_SINCE(STATE_U16, struct net_state, table_mask, 2),
    STATE_FIELD_SINCE(STATE_U16, struct net_state, unclassified, 2),
    STATE_ARRAY_SINCE(STATE_U16, struct net_state, table, 2),
    STATE_FIELD_SINCE(STATE_U8, struct net_state, key_length, 2),
    STATE_ARRAY_SINCE(STATE_U8, struct net_state, key, 2),
};
const struct state_desc net_state_desc =
    STATE_DESC("net-filter", 2, struct net_state, state_fields);

void net_state_reset(struct net_state *state, const uint8_t mac[6])
{
    /* §5.1.6.5.2.1: "The device MUST have an empty MAC filtering table on reset." */
    memset(state, 0, sizeof(*state));
    memcpy(state->filter.mac, mac, 6);
    state->pairs = 1;
}

static bool table_fits(const struct net_state *state, unsigned max_pairs)
{
    /* A power of two, less one. */
    if (state->table_mask >= NET_RSS_TABLE || (state->table_mask & (state->table_mask + 1)) != 0)
        return false;
    for (unsigned i = 0; i <= state->table_mask; i++) {
        if (state->table[i] >= max_pairs)
            return false;
    }
    return state->unclassified < max_pairs;
}

const char *net_state_check(const struct net_state *state, unsigned max_pairs)
{
    if (net_mac_is_group(state->filter.mac))
        return "the card's address is a group's";
    if (state->pairs > max_pairs)
        return "more queues are in use than there are";
    if (!table_fits(state, max_pairs))
        return "the table of receive queues names one that there is not";
    if (state->key_length > NET_RSS_KEY || (state->hash_types & ~NET_RSS_TYPES))
        return "the hash has an impossible key or type";
    return NULL;
}
