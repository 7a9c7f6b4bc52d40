/*
 * What belongs to a port of a switch, and to a station of a DHCP server of ours, goes along with the
 * guest: settings, counters, addresses learnt behind it, its leases.
 *
 * Composition root. Main thread; ports and servers are touched on the thread whose loop they are on. What
 * comes from another process is checked. The guest's settings win over those that the destination
 * made its port with, as they are part of the guest; an address that somebody has at the destination
 * already, or leases, stays his. Rules, mirrors and uplinks are a switch's, and stay where they are.
 * Text: docs/STREAM.md, "network".
 */
#include "vmm/machine_ports.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "migration/snapshot.h"
#include "net/switch.h"
#include "net/uplink.h"
#include "vmm/machine_internal.h"
#include "vmm/process_net.h"
#include "vmm/util/log.h"
#include "vmm/util/loop_thread.h"

#define NS_PER_S 1000000000ull

/* One NIC's part of the work, on its thread. */
struct work {
    struct machine *m;
    unsigned index;
    json_t *json; /* borrowed: what is told, or was */
};

static struct machine_nic *nic_of(const struct work *w)
{
    return &w->m->nics[w->index];
}

static struct loop_thread *thread_of(const struct machine_nic *nic)
{
    return nic->net ? nic->net->thread : NULL;
}

static struct uplink *uplink_of(const struct machine_nic *nic)
{
    return nic->net ? nic->net->uplink : nic->uplink;
}

static json_t *mac_text(const uint8_t mac[6])
{
    return json_sprintf("%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4],
                        mac[5]);
}

static bool read_mac(const json_t *json, uint8_t mac[6])
{
    static const struct option_key key = {.name = "mac"};
    struct option_mac parsed;
    const char *text = json_string_value(json_object_get(json, "mac"));

    if (!text || option_parse_mac(&key, text, &parsed) < 0)
        return false;
    memcpy(mac, parsed.bytes, 6);
    return true;
}

static uint64_t read_number(const json_t *json, const char *key)
{
    json_int_t value = json_integer_value(json_object_get(json, key));

    return value > 0 ? (uint64_t)value : 0;
}

/* ---- the source ---- */

static json_t *tell_counters(const struct switch_port *port)
{
    struct switch_port_info info;
    json_t *dropped = json_object();

    switch_port_get_info(port, &info);
    for (unsigned i = 0; i < SWITCH_DROPS; i++)
        if (info.counters.dropped[i] > 0)
            json_object_set_new(dropped, switch_drop_name(i),
                                json_integer((json_int_t)info.counters.dropped[i]));
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:o}", "in_frames",
                     (json_int_t)info.counters.in_frames, "in_bytes",
                     (json_int_t)info.counters.in_bytes, "out_frames",
                     (json_int_t)info.counters.out_frames, "out_bytes",
                     (json_int_t)info.counters.out_bytes, "not_learnt",
                     (json_int_t)info.counters.not_learnt, "conflicts",
                     (json_int_t)info.counters.conflicts, "dropped", dropped);
}

static void tell_learnt(void *arg, const struct switch_fdb_entry *entry)
{
    const struct work *w = arg;

    if (entry->registered || entry->port != nic_of(w)->port)
        return;
    json_array_append_new(json_object_get(w->json, "learnt"),
                          json_pack("{s:o, s:i, s:i}", "mac", mac_text(entry->mac), "vlan",
                                    (int)entry->vlan, "age_s", (int)entry->age_s));
}

static void tell_port(const struct work *w)
{
    const struct switch_port *port = nic_of(w)->port;
    char settings[SWITCH_SETTINGS_MAX];

    if (switch_port_config_format(switch_port_settings(port), settings, sizeof(settings)) == 0)
        json_object_set_new(w->json, "settings", json_string(settings));
    json_object_set_new(w->json, "counters", tell_counters(port));
    json_object_set_new(w->json, "learnt", json_array());
    switch_fdb_walk(nic_of(w)->net->sw, tell_learnt, (void *)(uintptr_t)w);
}

static bool tell_lease(void *arg, const uint8_t mac[6], struct in_addr address, uint64_t until)
{
    const struct work *w = arg;
    uint64_t now = loop_now_ns() / NS_PER_S;
    char text[INET_ADDRSTRLEN] = "";

    if (memcmp(mac, w->m->config->nets[w->index].mac.bytes, 6) != 0)
        return true;
    inet_ntop(AF_INET, &address, text, sizeof(text));
    json_object_set_new(w->json, "lease",
                        json_pack("{s:o, s:s, s:I}", "mac", mac_text(mac), "address", text, "left_s",
                                  (json_int_t)(until > now ? until - now : 0)));
    return false;
}

static int tell(void *arg)
{
    const struct work *w = arg;
    const struct uplink *uplink = uplink_of(nic_of(w));
    const struct dhcp_leases *leases = uplink ? uplink_leases(uplink) : NULL;

    if (nic_of(w)->port)
        tell_port(w);
    if (leases)
        dhcp_leases_each(leases, tell_lease, arg);
    return 0;
}

void machine_ports_describe(struct machine *m, json_t *nics)
{
    for (unsigned i = 0; i < m->config->n_nets; i++) {
        struct work w = {.m = m, .index = i, .json = json_object_get(nics, m->nics[i].id)};

        if (w.json)
            (void)loop_thread_call(thread_of(&m->nics[i]), tell, &w);
    }
}

/* ---- the destination ---- */

static int take_settings(void *arg)
{
    const struct work *w = arg;
    const char *text = json_string_value(json_object_get(w->json, "settings"));
    struct switch_port *port = nic_of(w)->port;
    const struct switch_port_config *now = port ? switch_port_settings(port) : NULL;
    struct switch_port_config config = {0};
    int err;

    if (!port || !text)
        return 0;
    memcpy(config.name, now->name, sizeof(config.name));
    config.kind = now->kind;
    config.mac = now->mac;
    err = switch_port_config_update(nic_of(w)->id, text, &config);
    return err ? err : switch_port_configure(port, &config);
}

static void take_counters(struct switch_port *port, const json_t *json)
{
    const json_t *dropped = json_object_get(json, "dropped");
    struct switch_counters c = {
        .in_frames = read_number(json, "in_frames"),
        .in_bytes = read_number(json, "in_bytes"),
        .out_frames = read_number(json, "out_frames"),
        .out_bytes = read_number(json, "out_bytes"),
        .not_learnt = read_number(json, "not_learnt"),
        .conflicts = read_number(json, "conflicts"),
    };

    for (unsigned i = 0; i < SWITCH_DROPS; i++)
        c.dropped[i] = read_number(dropped, switch_drop_name(i));
    switch_port_add_counters(port, &c);
}

static void take_learnt(struct switch_port *port, const json_t *list)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *one = json_array_get(list, i);
        uint64_t vlan = read_number(one, "vlan"), age_s = read_number(one, "age_s");
        uint8_t mac[6];

        if (read_mac(one, mac) && vlan <= VLAN_MAX && age_s <= UINT32_MAX)
            (void)switch_port_add_learnt(port, mac, (unsigned)vlan, (unsigned)age_s);
    }
}

static void take_lease(const struct work *w, const json_t *lease)
{
    struct uplink *uplink = uplink_of(nic_of(w));
    const char *text = json_string_value(json_object_get(lease, "address"));
    struct in_addr address;
    uint8_t mac[6];

    if (!uplink || !uplink_leases(uplink) || !text || inet_pton(AF_INET, text, &address) != 1 ||
        !read_mac(lease, mac) || memcmp(mac, w->m->config->nets[w->index].mac.bytes, 6) != 0)
        return;
    if (!uplink_add_lease(uplink, mac, address, read_number(lease, "left_s")))
        log_warn("%s%s: the guest's address %s is not one that the DHCP server here can give it: it "
                 "gets another one when it asks", w->m->label, nic_of(w)->id, text);
}

static int take_rest(void *arg)
{
    const struct work *w = arg;

    if (nic_of(w)->port) {
        take_counters(nic_of(w)->port, json_object_get(w->json, "counters"));
        take_learnt(nic_of(w)->port, json_object_get(w->json, "learnt"));
    }
    take_lease(w, json_object_get(w->json, "lease"));
    return 0;
}

static int for_each_nic(struct machine *m, const struct snapshot *state, int (*work)(void *arg))
{
    const struct snapshot_section *section = snapshot_find(state, STREAM_NETWORK, NULL);
    json_t *json = section ? json_loads(section->payload, JSON_REJECT_DUPLICATES, NULL) : NULL;
    int err = 0;

    for (unsigned i = 0; !err && i < m->config->n_nets; i++) {
        struct work w = {.m = m, .index = i,
                         .json = json_object_get(json_object_get(json, "nics"), m->nics[i].id)};

        if (w.json)
            err = loop_thread_call(thread_of(&m->nics[i]), work, &w);
    }
    json_decref(json);
    return err;
}

int machine_ports_configure(struct machine *m, const struct snapshot *state)
{
    return for_each_nic(m, state, take_settings);
}

void machine_ports_take_over(struct machine *m, const struct snapshot *state)
{
    (void)for_each_nic(m, state, take_rest);
}
