/*
 * The virtual switch: many ports, each the end of a wire into which a NIC, an uplink or a listener
 * is plugged. docs/SWITCH.md says how a frame travels.
 *
 * What a NIC wants is registered by its receive filter, so nothing is learnt about a guest, and no
 * guest sees another's frames. A full port drops and counts; it never holds up another. Nothing is
 * allocated on the way of a frame.
 *
 * Threads: all on the loop's thread. Nothing of a switch may be destroyed from within a callback of
 * a port's peer, but for switch_port_remove(), which may be called from anywhere on that thread.
 */
#ifndef FERRY_NET_SWITCH_H
#define FERRY_NET_SWITCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "net/port.h"
#include "net/rule.h"
#include "net/vlan.h"
#include "vmm/util/options.h"

struct loop;
struct net_switch;
struct switch_port;
struct switch_mirror;
struct switch_capture;

/* ---- the switch ---- */

struct switch_config {
    const char *name;          /* for messages; copied */
    unsigned fdb_max;          /* addresses learnt at most; 0: SWITCH_FDB_DEFAULT */
    unsigned fdb_age_s;        /* forgotten when not heard of for so long; 0: SWITCH_AGE_DEFAULT */
    unsigned flows_max;        /* megaflows kept; 0: SWITCH_FLOWS_DEFAULT. Memory only with rules */
    uint64_t (*now_ns)(void);  /* the clock; NULL: loop_now_ns() */
};
#define SWITCH_FDB_DEFAULT 8192u
#define SWITCH_AGE_DEFAULT 300u /* 802.1Q §8.8.3, table 8-6 */
#define SWITCH_FLOWS_DEFAULT 65536u

#define SWITCH_PORTS_MAX 256u
#define SWITCH_MIRRORS_MAX 32u /* captures included */

/* 0 or -ENOMEM, logged. */
int switch_create(struct net_switch **out, struct loop *loop, const struct switch_config *config);
/* Ports are unplugged and removed, captures end without what the loop has not written yet. NULL is
 * fine. */
void switch_destroy(struct net_switch *sw);
const char *switch_name(const struct net_switch *sw);

/* ---- ports ---- */

enum switch_port_kind {
    SWITCH_PORT_GUEST,  /* a NIC, which says by its filter what it wants */
    SWITCH_PORT_UPLINK, /* the world outside: addresses behind it are learnt */
    SWITCH_PORT_MIRROR, /* gets copies only; what it sends is dropped */
};

/* A setting that has a default by the kind of the port. */
enum switch_setting { SWITCH_AUTO, SWITCH_OFF, SWITCH_ON };

struct switch_port_config {
    char name[NET_NAME_MAX];   /* one of its kind in the switch; see net_name_valid() */
    int kind;                  /* enum switch_port_kind */
    struct option_mac mac;     /* the NIC's at first; if not given, what its first filter says */
    struct vlan_config vlan;
    int learn;                 /* learn addresses behind it: on for uplinks. Implies spoof */
    int flood;                 /* send unknown addresses' frames there: on for uplinks */
    int spoof;                 /* take frames from addresses that are not its own: on for uplinks */
    int mac_change;            /* let its filter register other addresses than its first: on */
    int promiscuous;           /* let it see all frames of its VLANs if it asks for that: off */
    bool isolated;             /* exchanges no frames with other isolated ports */
    bool hairpin;              /* reflective relay (802.1Q §8.6.1): send back where it came from */
    uint64_t rate_in, rate_out;   /* bit/s, from and to what is plugged in; 0: no limit */
    uint64_t burst_in, burst_out; /* bytes at once beyond the rate; 0: as much as a tenth of a
                                   * second has, 64 KiB at least */
};

/*
 * The settings (all but name, kind and mac) as rows for tables of vmm/util/options.h, for a struct
 * that has a struct switch_port_config as its member.
 */
#define SWITCH_PORT_KEYS(struct_, member)                                                          \
    {.name = "vlan", .parse = option_parse_number, .max = VLAN_MAX,                                \
     .offset = offsetof(struct_, member.vlan.vlan)},                                               \
    {.name = "trunk", .parse = vlan_parse_trunk, .offset = offsetof(struct_, member.vlan),         \
     .expects = "VLANs such as 10-20+30, or all,"},                                                \
    {.name = "native", .parse = option_parse_number, .min = 1, .max = VLAN_MAX,                    \
     .offset = offsetof(struct_, member.vlan.native)},                                             \
    {.name = "vlan-mode", .parse = option_parse_choice, .choices = vlan_modes,                     \
     .offset = offsetof(struct_, member.vlan.mode)},                                               \
    {.name = "priority-tags", .parse = option_parse_bool,                                          \
     .offset = offsetof(struct_, member.vlan.priority_tags)},                                      \
    {.name = "learn", .parse = option_parse_choice, .choices = switch_settings,                    \
     .offset = offsetof(struct_, member.learn)},                                                   \
    {.name = "flood", .parse = option_parse_choice, .choices = switch_settings,                    \
     .offset = offsetof(struct_, member.flood)},                                                   \
    {.name = "spoof", .parse = option_parse_choice, .choices = switch_settings,                    \
     .offset = offsetof(struct_, member.spoof)},                                                   \
    {.name = "mac-change", .parse = option_parse_choice, .choices = switch_settings,               \
     .offset = offsetof(struct_, member.mac_change)},                                              \
    {.name = "promisc", .parse = option_parse_choice, .choices = switch_settings,                  \
     .offset = offsetof(struct_, member.promiscuous)},                                             \
    {.name = "isolated", .parse = option_parse_bool,                                               \
     .offset = offsetof(struct_, member.isolated)},                                                \
    {.name = "hairpin", .parse = option_parse_bool,                                                \
     .offset = offsetof(struct_, member.hairpin)},                                                 \
    {.name = "rate-in", .parse = switch_parse_rate, .expects = SWITCH_RATE_EXPECTS,                \
     .offset = offsetof(struct_, member.rate_in)},                                                 \
    {.name = "rate-out", .parse = switch_parse_rate, .expects = SWITCH_RATE_EXPECTS,               \
     .offset = offsetof(struct_, member.rate_out)},                                                \
    {.name = "burst-in", .parse = switch_parse_burst, .expects = SWITCH_BURST_EXPECTS,             \
     .offset = offsetof(struct_, member.burst_in)},                                                \
    {.name = "burst-out", .parse = switch_parse_burst, .expects = SWITCH_BURST_EXPECTS,            \
     .offset = offsetof(struct_, member.burst_out)}

#define SWITCH_RATE_MAX 1000000000000ull
#define SWITCH_BURST_MAX (1ull << 30)
#define SWITCH_RATE_EXPECTS "bits a second such as 100M or 2.5G, up to 1T, or off"
/* uint64_t: bit/s with one of K, M, G, T (powers of 1000), and up to three decimals. */
int switch_parse_rate(const struct option_key *key, const char *text, void *field);
#define SWITCH_BURST_EXPECTS "bytes such as 1500 or 64K, up to 1G, or off"
/* uint64_t: bytes, with one of K, M, G (powers of 1024) or without. */
int switch_parse_burst(const struct option_key *key, const char *text, void *field);
extern const struct option_choice switch_settings[]; /* on, off */

/* Whether the settings fit together. 0, or -EINVAL, logged with `where` before it. */
int switch_port_config_check(const char *where, const struct switch_port_config *config);
/*
 * Reads "KEY=VALUE,..." of SWITCH_PORT_KEYS over the config, as `ferry net NAME set` has it: other
 * settings stay, but naming one of the VLAN keys undoes all of those first. -EINVAL or -ENOMEM,
 * logged; *config is then as it was.
 */
int switch_port_config_update(const char *where, const char *text,
                              struct switch_port_config *config);

/* Writes the settings as that reads them into a blank config of the same name and kind. -ENOSPC: there is
 * no room; SWITCH_SETTINGS_MAX is enough. */
#define SWITCH_SETTINGS_MAX 20480u
int switch_port_config_format(const struct switch_port_config *config, char *to, size_t size);

/*
 * Errors, logged: -EEXIST: the name is taken; -ENOSPC: SWITCH_PORTS_MAX; -EINVAL: settings or name;
 * -ENOMEM. The switch owns the port.
 */
int switch_port_add(struct net_switch *sw, const struct switch_port_config *config,
                    struct switch_port **out);
/* Unplugs the port. Its rules stay, and mean a port of that name that comes later. */
void switch_port_remove(struct switch_port *port);
/* The end to plug a NIC or an uplink into, by net_port_connect(). */
struct net_port *switch_port_end(struct switch_port *port);
/* NULL: there is none of that name. */
struct switch_port *switch_port_find(const struct net_switch *sw, const char *name);
/* Other settings for a port that is there; name and kind must be the same. -EINVAL, -ENOMEM,
 * logged. */
int switch_port_configure(struct switch_port *port, const struct switch_port_config *config);
const struct switch_port_config *switch_port_settings(const struct switch_port *port);

/* ---- rules ---- */

/* Replaces all rules. Errors, logged, after which the old ones stand: -ENOMEM, -E2BIG. */
int switch_rules_set(struct net_switch *sw, const struct rule *rules, unsigned n);
/* Adds one behind the others; *id names it for switch_rule_remove(). Likewise. */
int switch_rule_add(struct net_switch *sw, const struct rule *rule, unsigned *id);
/* -ENOENT: there is none with that id; -ENOMEM. */
int switch_rule_remove(struct net_switch *sw, unsigned id);

/* ---- mirrors and captures ---- */

enum switch_direction {
    SWITCH_IN = 1,   /* what ports send into the switch, as they send it */
    SWITCH_OUT = 2,  /* what ports are sent, as they are sent it */
    SWITCH_BOTH = 3,
};

#define SWITCH_SOURCES_MAX 32

/* Which frames. A mirror gets a frame once, at the first place where it is asked for. */
struct switch_selection {
    char ports[SWITCH_SOURCES_MAX][NET_NAME_MAX];
    unsigned n_ports;      /* 0: all, but for mirror ports */
    int direction;         /* enum switch_direction; 0: both, but `in` when all ports are meant */
    bool vlans_given;      /* else of all VLANs */
    struct vlan_set vlans; /* into which frames were sorted; in: one that none admits has no VLAN */
};

struct switch_mirror_config {
    char name[NET_NAME_MAX];
    char to[NET_NAME_MAX];  /* a port of kind mirror, there or to come */
    struct switch_selection from;
};

/* Reads "NAME,from=web0+web1,direction=in,vlan=10-20,to=ids0". -EINVAL, -ENOMEM, logged. */
int switch_mirror_parse(const char *where, const char *text, struct switch_mirror_config *config);
/* Errors, logged: -EEXIST, -ENOSPC, -ENOMEM. */
int switch_mirror_add(struct net_switch *sw, const struct switch_mirror_config *config);
/* -ENOENT. */
int switch_mirror_remove(struct net_switch *sw, const char *name);

struct switch_capture_config {
    char name[NET_NAME_MAX];
    int fd;                 /* a file or pipe to write pcapng to, at its position. Stays the
                             * caller's on error, else it is the capture's */
    unsigned snap_length;   /* bytes of a frame that are kept; 0: all */
    struct switch_selection from;
};

/* Errors as switch_mirror_add(), and those of the first write come later, in the counters. */
int switch_capture_start(struct net_switch *sw, const struct switch_capture_config *config);
/* Writes what is there, then closes the file; `stopped` (may be NULL) is called on the loop with
 * the first error of writing, or 0. Until then the loop must run, but not the switch be there.
 * -ENOENT. */
int switch_capture_stop(struct net_switch *sw, const char *name,
                        void (*stopped)(void *arg, int error), void *arg);

/* ---- looking in ---- */

enum switch_drop {
    /* at the port where the frame came in */
    SWITCH_DROP_MALFORMED,    /* too short or long, from a group address, headers that contradict */
    SWITCH_DROP_RATE_IN,
    SWITCH_DROP_RESERVED,     /* to a group address that bridges keep (802.1Q §8.6.3) */
    SWITCH_DROP_VLAN,         /* a tag, or the lack of one, that the port does not take */
    SWITCH_DROP_SPOOFED,      /* from an address that is not the port's */
    SWITCH_DROP_DENIED,       /* by a rule */
    SWITCH_DROP_UNREADABLE,   /* rules look into it, and its headers go deeper than they can */
    SWITCH_DROP_UNKNOWN,      /* nobody has the address, and there is no uplink */
    SWITCH_DROP_NOWHERE,      /* to where it came from, or to no port of its VLAN */
    SWITCH_DROP_ISOLATED,
    SWITCH_DROP_NO_PORT,      /* redirected to a port that is not there */
    SWITCH_DROP_NESTED,       /* answers to answers, too many deep */
    SWITCH_DROP_MIRROR,       /* sent by a mirror port */
    /* at the port where it was to go out */
    SWITCH_DROP_FULL,         /* the port took no more */
    SWITCH_DROP_RATE_OUT,
    SWITCH_DROP_TOO_LONG,     /* with its tag */
    SWITCH_DROP_UNPLUGGED,
    SWITCH_DROPS,
};
/* "spoofed": for tables and JSON. */
const char *switch_drop_name(enum switch_drop drop);

struct switch_counters {
    uint64_t in_frames, in_bytes;   /* from what is plugged in, dropped ones included */
    uint64_t out_frames, out_bytes; /* taken by what is plugged in */
    uint64_t dropped[SWITCH_DROPS];
    uint64_t not_learnt;            /* addresses for which the table had no room */
    uint64_t conflicts;             /* addresses that another port had registered before */
};

#define SWITCH_ADDRESSES_MAX 32u
struct switch_port_info {
    const struct switch_port_config *config;
    enum switch_port_kind kind;
    bool plugged;
    const struct vlan_port *vlan;
    struct switch_counters counters;
    unsigned n_macs;                /* registered */
    uint8_t macs[1 + 64][6];        /* its NIC's own first */
    unsigned learnt;                /* addresses behind it */
    bool promiscuous;               /* it sees all frames of its VLANs */
};
void switch_port_get_info(const struct switch_port *port, struct switch_port_info *info);
/* The port after `port`, or the first for NULL; NULL at the end. In order of their numbers. */
struct switch_port *switch_port_next(const struct net_switch *sw, const struct switch_port *port);

struct switch_fdb_entry {
    uint8_t mac[6];
    bool registered;        /* else learnt; then in the VLAN, for age_s seconds not heard of */
    unsigned vlan, age_s;
    const struct switch_port *port;
};
void switch_fdb_walk(const struct net_switch *sw,
                     void (*entry)(void *arg, const struct switch_fdb_entry *entry), void *arg);

struct switch_rule_info {
    unsigned id;
    const struct rule *rule;
    uint64_t frames, bytes; /* that it decided about */
};
void switch_rules_walk(const struct net_switch *sw,
                       void (*entry)(void *arg, const struct switch_rule_info *info), void *arg);

struct switch_mirror_info {
    const char *name;
    const char *to;          /* NULL: a capture */
    const struct switch_selection *from;
    uint64_t frames, bytes, dropped;
    int error;               /* a capture's first error of writing, or 0 */
};
void switch_mirrors_walk(const struct net_switch *sw,
                         void (*entry)(void *arg, const struct switch_mirror_info *info),
                         void *arg);

struct switch_cache_info {
    unsigned ports;
    unsigned fdb_learnt, fdb_max, fdb_registered;
    unsigned rules, classifier_entries, tuples;
    uint64_t exact_hits, megaflow_hits, misses, replaced;
    unsigned flows, flows_max, masks;
};
void switch_get_cache_info(const struct net_switch *sw, struct switch_cache_info *info);

/*
 * How a frame that came in at the port would travel, and why: tells it line by line. Nothing is
 * sent, learnt or counted. 0, or -EINVAL when it is no frame at all by its length.
 */
int switch_trace(const struct switch_port *port, const void *frame, size_t length,
                 void (*line)(void *arg, const char *text), void *arg);

/* ---- a port that goes on in another switch ---- */

/* What it counted there, added to what it has counted here. */
void switch_port_add_counters(struct switch_port *port, const struct switch_counters *counters);
/* An address that was learnt behind it there, and not heard of for age_s; as if it were learnt here,
 * if the port learns, there is room, and nobody has the address. Whether it was. */
bool switch_port_add_learnt(struct switch_port *port, const uint8_t mac[6], unsigned vlan,
                            unsigned age_s);

/* ---- addresses that a guest was seen to use, so that it can be announced elsewhere ---- */

struct switch_address {
    uint8_t mac[6];
    uint16_t vlan;      /* as the guest's frames have it: 0 without a tag */
    uint8_t family;     /* 4 or 6 */
    uint8_t bytes[16];  /* IPv4 in the first four */
};
/* Copies up to `max` of them, those used last first; returns how many. */
unsigned switch_port_addresses(const struct switch_port *port, struct switch_address *to,
                               unsigned max);

#endif
