/*
 * The switch's decisions about a frame, one function each. They change nothing, so that the path
 * (switch_path.c) and the trace (switch_trace.c) share them; they are here to be inlined into the
 * path.
 *
 * Texts: IEEE 802.1Q-2018 §8.6 (forwarding), §8.8 (the FDB), §9 (tags).
 */
#ifndef FERRY_NET_SWITCH_DECIDE_H
#define FERRY_NET_SWITCH_DECIDE_H

#include "net/bytes.h"
#include "net/switch_internal.h"

/* What of a frame is looked at: enough for two tags, IPv6 with some extension headers and TCP. */
#define PATH_HEADER_MAX 128u

#define PATH_ADDRESSES 12u /* destination and source */
#define PATH_TAG 4u

/* Not a drop. */
#define PATH_GO (-1)

/* A frame's link layer, as far as the switch's decisions need it. */
struct packet_tag {
    uint16_t tpid;     /* with which a tag is sent */
    uint16_t tci;      /* of the tag that it came with, or 0 */
    uint16_t priority; /* the bits of the TCI beside the VLAN: PCP and DEI */
    bool tagged;       /* it came with a tag that is not payload */
    bool covers;       /* its payload begins with a tag, which without one before it says the VLAN */
};

/* Each result is PATH_GO or an enum switch_drop. `header`: of the frame, its addresses first. */

static inline int path_check_addresses(const uint8_t *header)
{
    static const uint8_t reserved[] = {0x01, 0x80, 0xC2, 0x00, 0x00};

    if (net_mac_is_group(header + 6))
        return SWITCH_DROP_MALFORMED;
    /* 802.1Q §8.6.3, table 8-1: 01-80-C2-00-00-00 to -0F go no further than the next bridge. */
    if (net_mac_is_group(header) && memcmp(header, reserved, sizeof(reserved)) == 0 &&
        header[5] <= 0x0F)
        return SWITCH_DROP_RESERVED;
    return PATH_GO;
}

static inline bool path_is_tag(uint16_t type)
{
    return type == VLAN_TPID_CUSTOMER || type == VLAN_TPID_SERVICE;
}

/* Reads the tag behind the addresses. `length`: bytes at hand. */
static inline int path_read_tag(const struct switch_port *port, const uint8_t *header,
                                size_t length, struct packet_tag *tag)
{
    uint16_t type = get16(header + PATH_ADDRESSES), tci;

    *tag = (struct packet_tag){
        .tpid = port->vlan.tunnel ? VLAN_TPID_SERVICE : VLAN_TPID_CUSTOMER,
    };
    if (!path_is_tag(type))
        return PATH_GO;
    if (length < PATH_ADDRESSES + PATH_TAG + 2)
        return SWITCH_DROP_MALFORMED;
    tci = get16(header + PATH_ADDRESSES + 2);
    tag->priority = tci & 0xF000;
    tag->tagged = !port->vlan.tunnel; /* there it is the customer's: payload */
    tag->covers = !tag->tagged || path_is_tag(get16(header + PATH_ADDRESSES + PATH_TAG));
    if (!tag->tagged)
        return PATH_GO;
    tag->tpid = type;
    tag->tci = tci;
    return PATH_GO;
}

/* The port that registered an address, in a VLAN; or NULL. */
static inline struct switch_port *path_find_station(const struct net_switch *sw,
                                                    const uint8_t mac[6], unsigned vlan)
{
    const struct mac_entry *entry = mac_table_find(&sw->stations, mac_key(mac, 0));

    while (entry && !vlan_carries(&sw->ports[entry->port]->vlan, vlan))
        entry = mac_table_next(&sw->stations, entry);
    return entry ? sw->ports[entry->port] : NULL;
}

/* The port that an address was learnt behind, or NULL; now_s: for its age. */
static inline struct switch_port *path_find_learnt(const struct net_switch *sw,
                                                   const uint8_t mac[6], unsigned vlan,
                                                   uint32_t now_s)
{
    const struct mac_entry *entry = mac_table_find(&sw->fdb, mac_key(mac, vlan));

    if (!entry || now_s - entry->stamp > sw->fdb_age_s)
        return NULL;
    return vlan_carries(&sw->ports[entry->port]->vlan, vlan) ? sw->ports[entry->port] : NULL;
}

/* Whether the port may send from that address in that VLAN. */
static inline bool path_may_send_from(const struct switch_port *port, const uint8_t mac[6],
                                      unsigned vlan)
{
    return port->may_spoof || mac_key(mac, 0) == port->own_key ||
           path_find_station(port->sw, mac, vlan) == port;
}

/* Whether a frame may go from one port to the other, both of its VLAN. */
static inline int path_between(const struct switch_port *from, const struct switch_port *to)
{
    if (from == to)
        return from->hairpin ? PATH_GO : SWITCH_DROP_NOWHERE;
    if (from->isolated && to->isolated)
        return SWITCH_DROP_ISOLATED;
    /* Not from one uplink to the other: without a spanning tree that would be a way in circles. */
    if (from->kind == SWITCH_PORT_UPLINK && to->kind == SWITCH_PORT_UPLINK)
        return SWITCH_DROP_NOWHERE;
    return PATH_GO;
}

enum path_set { PATH_GROUP, PATH_UNKNOWN, PATH_KNOWN };

/* Whether a port is among those that get a frame: one for a group, one for an address that is
 * unknown, or one that another port has. Says nothing of path_between(). */
static inline bool path_wants(const struct switch_port *port, enum path_set set, unsigned vlan)
{
    if (port->kind == SWITCH_PORT_MIRROR || !vlan_carries(&port->vlan, vlan))
        return false;
    return set == PATH_GROUP || port->promiscuous || (set == PATH_UNKNOWN && port->floods);
}

/* How a frame is sent by a port: with or without a tag. */
struct path_form {
    bool tagged;
    uint16_t tci;
};

static inline struct path_form path_form(const struct switch_port *port,
                                         const struct packet_tag *tag, unsigned vlan)
{
    if (port->kind == SWITCH_PORT_MIRROR)
        return (struct path_form){tag->tagged, tag->tci};
    /* Bare, a tag in the payload would be the frame's own to whoever takes tags: who may send into
     * this VLAN alone would reach any. */
    if (vlan != port->vlan.untagged_out || (tag->covers && port->vlan.accepts_tags))
        return (struct path_form){true, (uint16_t)(tag->priority | vlan)};
    if (port->vlan.priority_tags && tag->priority)
        return (struct path_form){true, tag->priority};
    return (struct path_form){false, 0};
}

#endif
