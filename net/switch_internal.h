/*
 * The switch's insides, shared by its files: switch.c (ports, settings), switch_rules.c,
 * switch_mirror.c, switch_path.c (the way of frames), switch_train.c (of those that are alike),
 * switch_trace.c, switch_info.c.
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
    /* What the path looks at for each frame comes first, to be in few cache lines. */
    struct net_port end;
    struct net_switch *sw;
    uint64_t own_key;             /* mac_key() of its NIC's own address, if no other port has it */
    uint16_t number;              /* in sw->ports */
    uint8_t slot;                 /* in the batch under way, see switch_path.c */
    bool dead;                    /* removed while a frame was on its way; to be freed after it */
    bool learns, floods, may_spoof, isolated, hairpin;
    bool promiscuous;             /* it asks for all frames, and may */
    bool dirty;                   /* was sent something since the last flush; in sw->dirty */
    enum switch_port_kind kind;
    uint32_t mirror_in, mirror_out; /* bits of sw->mirrors that may want its frames */
    struct switch_counters counters;
    struct token_bucket in, out;
    struct vlan_port vlan;

    struct switch_port_config config;
    bool may_change_mac, may_be_promiscuous;
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
    uint64_t frames, bytes;
    bool plain;           /* does nothing but allow */
    unsigned id;
    struct rule rule;
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

/* ---- switch_mirror.c, for the path ---- */

/* A mirror's share of a batch: frames of one port in one direction. */
void switch_mirror_frames(struct net_switch *sw, struct switch_mirror *mirror,
                          const struct switch_port *port, bool in, const struct net_frame *frames,
                          unsigned n);

#endif
