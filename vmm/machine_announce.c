/*
 * The addresses of a guest's NICs go along with it, and are announced where it arrives.
 *
 * Composition root. Main thread; what a NIC is plugged into is touched on the thread whose loop it is
 * on. Addresses come from another process: they are checked, and never more than a switch keeps.
 */
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "devices/virtio/net.h"
#include "migration/snapshot.h"
#include "net/announce.h"
#include "net/port.h"
#include "net/uplink.h"
#include "vmm/machine_follow.h"
#include "vmm/machine_internal.h"
#include "vmm/machine_ports.h"
#include "vmm/process_net.h"
#include "vmm/util/loop_thread.h"

/* On the wire, one after the other; frozen with version 1. docs/STREAM.md: addresses. */
#define WIRE_BYTES 25u /* mac 6, vlan 2, family 1, address 16 */

static struct loop_thread *thread_of(const struct machine_nic *nic)
{
    return nic->net ? nic->net->thread : NULL;
}

/* ---- the source ---- */

struct listing {
    struct machine_nic *nic;
    struct switch_address addresses[SWITCH_ADDRESSES_MAX];
    unsigned n;
};

static int list_addresses(void *arg)
{
    struct listing *listing = arg;

    listing->n = switch_port_addresses(listing->nic->port, listing->addresses,
                                       SWITCH_ADDRESSES_MAX);
    return 0;
}

static int add_nic(struct machine_nic *nic, struct snapshot *state)
{
    uint8_t bytes[SWITCH_ADDRESSES_MAX * WIRE_BYTES], *at = bytes;
    struct listing listing = {.nic = nic};

    if (!nic->port)
        return 0;
    (void)loop_thread_call(thread_of(nic), list_addresses, &listing);
    for (unsigned i = 0; i < listing.n; i++, at += WIRE_BYTES) {
        const struct switch_address *address = &listing.addresses[i];

        memcpy(at, address->mac, 6);
        at[6] = (uint8_t)address->vlan;
        at[7] = (uint8_t)(address->vlan >> 8);
        at[8] = address->family;
        memcpy(at + 9, address->bytes, 16);
    }
    return snapshot_add(state, STREAM_ADDRESSES, nic->id, bytes, (uint64_t)(at - bytes));
}

/* What a destination that does not know it passes over. */
static int add_json(struct machine *m, struct snapshot *state)
{
    json_t *nics = json_object(), *json = json_pack("{s:o}", "nics", nics);
    char *text;
    int err;

    machine_follow_describe(m, nics);
    machine_ports_describe(m, nics);
    text = json_dumps(json, JSON_COMPACT);
    err = text ? snapshot_add(state, STREAM_NETWORK, "", text, strlen(text)) : -ENOMEM;
    free(text);
    json_decref(json);
    return err;
}

int machine_add_network(struct machine *m, struct snapshot *state)
{
    int err = m->config->n_nets > 0 ? add_json(m, state) : 0;

    for (unsigned i = 0; !err && i < m->config->n_nets; i++)
        err = add_nic(&m->nics[i], state);
    return err;
}

/* ---- the destination ---- */

static void read_addresses(struct listing *listing, const struct snapshot_section *section)
{
    const uint8_t *at = section->payload;

    for (uint64_t left = section->head.length;
         left >= WIRE_BYTES && listing->n < SWITCH_ADDRESSES_MAX;
         left -= WIRE_BYTES, at += WIRE_BYTES) {
        struct switch_address *address = &listing->addresses[listing->n];

        *address = (struct switch_address){.vlan = (uint16_t)((at[6] | at[7] << 8) & 0xFFF),
                                           .family = at[8]};
        memcpy(address->mac, at, 6);
        memcpy(address->bytes, at + 9, 16);
        if ((at[8] == 4 || at[8] == 6) && !(at[0] & 1))
            listing->n++;
    }
}

struct announcing {
    struct machine *m;
    unsigned index;
    struct listing listing;
};

/* What the guest sends by itself may be lost as well, so it is asked each time. */
static void ask_guest(void *opaque)
{
    struct machine_nic *nic = opaque;

    device_lock(&nic->env);
    virtio_net_announce(nic->card);
    device_unlock(&nic->env);
}

/* The wire's other end is the card's; what is sent from there comes as the guest's own. */
static int start_announcer(void *arg)
{
    struct announcing *a = arg;
    struct machine_nic *nic = &a->m->nics[a->index];
    struct net_port *end = nic->port     ? switch_port_end(nic->port)
                           : nic->uplink ? uplink_port(nic->uplink)
                                         : NULL;

    if (!end || !end->peer || nic->announcer)
        return 0;
    return announcer_create(&nic->announcer, nic->env.loop, end->peer,
                            a->m->config->nets[a->index].mac.bytes, a->listing.addresses,
                            a->listing.n, ask_guest, nic);
}

static int stop_announcer(void *arg)
{
    struct machine_nic *nic = arg;

    announcer_destroy(nic->announcer);
    nic->announcer = NULL;
    return 0;
}

void machine_stop_announcing(struct machine *m)
{
    for (unsigned i = 0; i < m->config->n_nets; i++)
        if (m->nics[i].announcer)
            (void)loop_thread_call(thread_of(&m->nics[i]), stop_announcer, &m->nics[i]);
}

void machine_announce(struct machine *m, const struct snapshot *state)
{
    for (unsigned i = 0; i < m->config->n_nets; i++) {
        struct announcing a = {.m = m, .index = i};
        const struct snapshot_section *section =
            snapshot_find(state, STREAM_ADDRESSES, m->nics[i].id);

        if (section)
            read_addresses(&a.listing, section);
        (void)loop_thread_call(thread_of(&m->nics[i]), start_announcer, &a);
    }
}
