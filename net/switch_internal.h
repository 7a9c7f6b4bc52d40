/*
 * The switch's insides, shared by its files: switch.c (ports, settings), switch_rules.c,
 * switch_mirror.c, switch_path.c (the way of frames), switch_trace.c, switch_info.c.
 */
#ifndef FERRY_NET_SWITCH_INTERNAL_H
#define FERRY_NET_SWITCH_INTERNAL_H

#include "net/capture.h"
#include "net/classifier.h"
#include "net/flow_cache.h"
#include "net/mac_table.h"
#include "net/receive_filter.h"
#include "net/switch.h"
#include "net/token_bucket.h"

#define SWITCH_MACS_MAX (1 + NET_FILTER_TABLE) /* of a port */
_Static_assert(sizeof(((struct switch_port_info *)0)->macs) == SWITCH_MACS_MAX * 6, "all fit");

struct switch_port {
    struct net_port end;
    struct net_switch *sw;
    uint16_t number;              /* in sw->ports */
    enum switch_port_kind kind;
    bool dead;                    /* removed while a frame was on its way; to be freed after it */
    bool learns, floods, may_spoof, may_change_mac, may_be_promiscuous, isolated, hairpin;
    bool promiscuous;             /* it asks for all frames, and may */
    bool dirty;                   /* was sent something since the last flush; in sw->dirty */
    uint8_t slot;                 /* in the batch under way, see switch_path.c */
    uint32_t mirror_in, mirror_out; /* bits of sw->mirrors that may want its frames */
    uint64_t own_key;             /* mac_key() of its NIC's own address, when no other port has it */
    struct token_bucket in, out;
    struct switch_counters counters;
    struct vlan_port vlan;

    struct switch_port_config config;
    bool first_known;             /* the address that it had first, for may_change_mac */
    uint8_t first_mac[6];
    unsigned n_asked;             /* addresses of its filter, the NIC's own first */
    uint8_t asked[SWITCH_MACS_MAX][6];
    bool wants_all;               /* its filter asks for all unicast */
    unsigned n_macs;              /* registered */
    uint8_t macs[SWITCH_MACS_MAX][6];
    unsigned learnt;
    struct switch_address addresses[SWITCH_ADDRESSES_MAX]; /* used last first */
    unsigned n_addresses;
};

struct switch_rule {
    unsigned id;
    struct rule rule;
    uint64_t frames, bytes;
    int mirror, redirect; /* numbers of ports; -1: none, or not there */
};

struct switch_mirror {
    bool used;
    char name[NET_NAME_MAX], to_name[NET_NAME_MAX];
    struct switch_selection from;
    struct switch_port *to;     /* NULL: not there, or a capture */
    struct capture *capture;    /* owned; NULL: not one */
    uint16_t interfaces[SWITCH_PORTS_MAX]; /* of a capture, by port number */
    uint64_t frames, bytes, dropped;
};

struct batch;
#define SWITCH_DEPTH_MAX 3u /* answers to answers */

struct net_switch {
    struct loop *loop;
    char *name;
    uint64_t (*now_ns)(void);
    struct switch_port *ports[SWITCH_PORTS_MAX];
    unsigned ports_end;              /* no port has that number or a higher one */
    struct switch_port *only_flood;  /* the one that unknown addresses go to, if it is one */
    unsigned n_promiscuous;

    struct mac_table stations;       /* registered, without regard to VLANs; in order of coming */
    struct mac_table fdb;            /* learnt; the stamp is in seconds */
    unsigned fdb_max, fdb_age_s;
    uint32_t fdb_purged_s;

    struct switch_rule **rules;      /* in order of coming */
    unsigned n_rules, next_rule_id;
    struct classifier *classifier;   /* NULL: no rules */
    bool looks_inside;
    struct flow_cache *cache;        /* made with the first rule */
    unsigned flows_max;

    struct switch_mirror mirrors[SWITCH_MIRRORS_MAX];

    struct batch *batches;           /* SWITCH_DEPTH_MAX */
    unsigned depth;
    bool graves;                     /* there are dead ports */
    uint16_t dirty[SWITCH_PORTS_MAX];
    unsigned n_dirty;
};

static inline struct switch_port *switch_port_of(struct net_port *end)
{
    return (struct switch_port *)((char *)end - offsetof(struct switch_port, end));
}

static inline uint32_t switch_now_s(const struct net_switch *sw)
{
    return (uint32_t)(sw->now_ns() / 1000000000u);
}

/* ---- switch.c ---- */

/* Ports came, went or changed: works out anew what depends on that. 0, or -ENOMEM (logged): then
 * rules mean the ports as they were. */
int switch_ports_changed(struct net_switch *sw);
/* Frees dead ports; called when no frame is on its way. */
void switch_bury(struct net_switch *sw);
/* Something was plugged into the port, or out of it. */
void switch_port_plugged(struct switch_port *port);
/* What is plugged in says what it wants. */
void switch_port_filter(struct switch_port *port, const struct net_receive_filter *filter);

/* ---- switch_rules.c ---- */

/* Makes the classifier of the rules and ports that there are. 0 or -ENOMEM, -E2BIG, logged. */
int switch_rules_compile(struct net_switch *sw);
void switch_rules_fini(struct net_switch *sw);

/* ---- switch_mirror.c ---- */

void switch_mirrors_resolve(struct net_switch *sw);
void switch_mirrors_fini(struct net_switch *sw);

/* ---- switch_path.c ---- */

extern const struct net_port_ops switch_port_ops;
int switch_batches_create(struct net_switch *sw);

/* A frame's link layer, as far as the switch's decisions need it. */
struct packet_tag {
    bool tagged;      /* it came with a tag that is not payload */
    uint16_t tpid;    /* with which a tag is sent */
    uint16_t tci;     /* of the tag that it came with, or 0 */
    uint16_t priority; /* the bits of the TCI beside the VLAN: PCP and DEI */
};

/* What of a frame is looked at: enough for two tags, IPv6 with some extension headers and TCP. */
#define PATH_HEADER_MAX 128u

/* Not a drop. */
#define PATH_GO (-1)

/* Each of these decides one thing about a frame and changes nothing; -1 or an enum switch_drop. */

/* Addresses: of the frame's header, 12 bytes. */
int path_check_addresses(const uint8_t *header);
/* Reads the tag behind the addresses. `length`: bytes at hand. */
int path_read_tag(const struct switch_port *port, const uint8_t *header, size_t length,
                  struct packet_tag *tag);
/* Whether the port may send from that address in that VLAN. */
bool path_may_send_from(const struct switch_port *port, const uint8_t mac[6], unsigned vlan);
/* Whether a frame may go from one port to the other, both of its VLAN: PATH_GO or why not. */
int path_between(const struct switch_port *from, const struct switch_port *to);
/* The port that registered an address, in a VLAN; or NULL. */
struct switch_port *path_find_station(const struct net_switch *sw, const uint8_t mac[6],
                                      unsigned vlan);
/* The port that an address was learnt behind, or NULL; now_s: for its age. */
struct switch_port *path_find_learnt(const struct net_switch *sw, const uint8_t mac[6],
                                     unsigned vlan, uint32_t now_s);

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
struct path_form path_form(const struct switch_port *port, const struct packet_tag *tag,
                           unsigned vlan);

/* ---- switch_mirror.c, for the path ---- */

/* A mirror's share of a batch: frames of one port in one direction. */
void switch_mirror_frames(struct net_switch *sw, struct switch_mirror *mirror,
                          const struct switch_port *port, bool in, const struct net_frame *frames,
                          unsigned n);

#endif
