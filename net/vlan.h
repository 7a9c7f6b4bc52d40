/*
 * VLANs of a port (IEEE 802.1Q): into which one a frame is sorted that comes in, and with which tag
 * it goes out. The modes are the five of Open vSwitch; docs/SWITCH.md has them as a table.
 *
 * VLAN 0 is what frames without a tag are in where nothing else was said. Any thread; no state.
 */
#ifndef FERRY_NET_VLAN_H
#define FERRY_NET_VLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/util/options.h"

#define VLAN_MAX 4094u /* 4095 is reserved (802.1Q §9.6, table 9-2) */

#define VLAN_TPID_CUSTOMER 0x8100 /* 802.1Q §9.5, table 9-1 */
#define VLAN_TPID_SERVICE 0x88A8

enum vlan_mode {
    VLAN_AUTO,            /* by what else is set, see vlan_port_init() */
    VLAN_ACCESS,
    VLAN_TRUNK,
    VLAN_NATIVE_TAGGED,
    VLAN_NATIVE_UNTAGGED,
    VLAN_TUNNEL,          /* dot1q-tunnel: the frame, a tag of its own included, is payload */
};

/* A set of VLANs. */
struct vlan_set {
    uint64_t words[64];
};

static inline bool vlan_set_has(const struct vlan_set *set, unsigned vlan)
{
    return set->words[vlan / 64] >> vlan % 64 & 1;
}

static inline void vlan_set_add(struct vlan_set *set, unsigned vlan)
{
    set->words[vlan / 64] |= 1ull << vlan % 64;
}

/* As a person writes it: the keys vlan-mode, vlan, trunk, native, priority-tags. */
struct vlan_config {
    int mode;               /* enum vlan_mode */
    unsigned vlan;          /* of access and tunnel */
    unsigned native;        /* of the native modes; 0: none */
    bool priority_tags;     /* send a tag of VLAN 0 for a priority that would be lost otherwise */
    bool trunk_given;       /* else all VLANs */
    struct vlan_set trunk;
};

/* "10-20+30", "10-20,30" or "all" into a struct vlan_set; an option_parser. */
int vlan_parse_set(const struct option_key *key, const char *text, void *field);
/* Likewise into a struct vlan_config's trunk. */
int vlan_parse_trunk(const struct option_key *key, const char *text, void *field);
/* Writes a set as vlan_parse_set() reads it, as far as there is room. */
void vlan_format_set(const struct vlan_set *set, char *to, size_t size);

extern const struct option_choice vlan_modes[];

/* What the data path asks. */
struct vlan_port {
    enum vlan_mode mode;
    uint16_t untagged_in;   /* VLAN of frames that come without a VLAN's tag */
    uint16_t untagged_out;  /* the VLAN that is sent without a tag; VLAN_NONE: each has one */
    uint16_t only;          /* the one VLAN that it carries; VLAN_NONE: those in `carries` */
    bool accepts_tags;
    bool tunnel;
    bool priority_tags;
    struct vlan_set carries;
};
#define VLAN_NONE 0xFFFF

static inline bool vlan_carries(const struct vlan_port *port, unsigned vlan)
{
    return port->only == VLAN_NONE ? vlan_set_has(&port->carries, vlan) : vlan == port->only;
}

/* Has it carry nothing any more. */
void vlan_port_close(struct vlan_port *port);

/* Works out a config; 0, or -EINVAL and in *why what does not fit together. `uplink`: without any
 * setting it is a trunk of all VLANs, else an access port of VLAN 0. */
int vlan_port_init(struct vlan_port *port, const struct vlan_config *config, bool uplink,
                   const char **why);
const char *vlan_mode_name(enum vlan_mode mode);

#define VLAN_REFUSED (-1)

/* The VLAN of a frame that came with a tag of `vid` (0 for none or a priority tag), or
 * VLAN_REFUSED. Not for tunnels' tags, which are payload. */
static inline int vlan_admit(const struct vlan_port *port, unsigned vid)
{
    if (vid == 0)
        vid = port->untagged_in;
    else if (!port->accepts_tags)
        return VLAN_REFUSED;
    return vid <= VLAN_MAX && vlan_carries(port, vid) ? (int)vid : VLAN_REFUSED;
}

#endif
