/*
 * A guest's NICs: each plugged into an uplink of its own, or into a switch of the process.
 *
 * A NIC with an uplink of its own is on the process's loop, as all devices are: that is `ferry run
 * --net nat`, which needs no other thread. A NIC in a switch is on the loop of the switch's thread:
 * its queues, doorbells and timers are handled there, and it is made and unmade there.
 * Composition root. Main thread, but for what loop_thread_call() runs.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "devices/virtio/net.h"
#include "devices/virtio/virtio.h"
#include "net/switch.h"
#include "net/uplink.h"
#include "vmm/machine_internal.h"
#include "vmm/process.h"
#include "vmm/process_net.h"
#include "vmm/util/loop_thread.h"

/* ---- one NIC, on the thread that it is to be on ---- */

struct nic_work {
    struct machine *m;
    unsigned index;
    struct device *dev; /* what was made */
};

/* The NIC's end of the wire in *port; it is not plugged in yet. */
static int make_nic(struct nic_work *work, struct virtio_device **vdev, struct net_port **port)
{
    const struct net_options *net = &work->m->config->nets[work->index];
    struct machine_nic *nic = &work->m->nics[work->index];
    struct virtio_net_options options = {0};
    int err;

    net_card_apply(&net->card, &options);
    memcpy(options.mac, net->mac.bytes, sizeof(options.mac));
    err = virtio_net_create(vdev, &nic->env, nic->id, &options, port);
    nic->vdev = err ? NULL : *vdev;
    return err;
}

static int plug_into_uplink(struct nic_work *work, struct net_port *port)
{
    const struct net_options *net = &work->m->config->nets[work->index];
    struct machine_nic *nic = &work->m->nics[work->index];
    struct uplink_config config = net->uplink; /* its strings are borrowed */
    int err;

    /* On this same host the source has the ports until it gives the guest away. */
    config.forwards_later = work->m->incoming;
    err = uplink_create(&nic->uplink, nic->env.loop, nic->id, &config, net->mac.bytes);
    if (!err)
        net_port_connect(port, uplink_port(nic->uplink));
    return err;
}

static int plug_into_switch(struct nic_work *work, struct net_port *port)
{
    const struct net_options *net = &work->m->config->nets[work->index];
    struct machine_nic *nic = &work->m->nics[work->index];
    int err = switch_port_add(nic->net->sw, &net->port, &nic->port);

    if (!err)
        net_port_connect(port, switch_port_end(nic->port));
    return err;
}

static int build_nic(void *arg)
{
    struct nic_work *work = arg;
    struct machine *m = work->m;
    struct virtio_device *vdev;
    struct net_port *port;
    int err = make_nic(work, &vdev, &port);

    if (err)
        return err;
    err = m->nics[work->index].net ? plug_into_switch(work, port) : plug_into_uplink(work, port);
    if (!err) {
        device_lock(&m->env);
        err = virtio_pci_create(&work->dev, vdev, m->pci);
        device_unlock(&m->env);
    }
    if (err)
        vdev->class->destroy(vdev);
    else
        m->nics[work->index].card = vdev;
    return err;
}

static int unplug_nic(void *arg)
{
    struct machine_nic *nic = arg;

    uplink_destroy(nic->uplink);
    if (nic->port)
        switch_port_remove(nic->port);
    nic->uplink = NULL;
    nic->port = NULL;
    return 0;
}

/* ---- all ---- */

static struct loop_thread *thread_of(const struct machine_nic *nic)
{
    return nic->net ? nic->net->thread : NULL;
}

/* The switch that a NIC names. One that nobody described is made, with nothing else in it. */
static int find_switch(struct machine *m, const struct net_options *net, struct process_switch **ps)
{
    struct switch_options options = {0};
    int err;

    *ps = process_find_switch(m->process, net->switch_name);
    if (*ps)
        return 0;
    snprintf(options.name, sizeof(options.name), "%s", net->switch_name);
    err = process_add_switch(m->process, &options);
    if (!err)
        *ps = process_find_switch(m->process, net->switch_name);
    return err;
}

static int build_net(struct machine *m, unsigned index)
{
    const struct net_options *net = &m->config->nets[index];
    struct nic_work work = {.m = m, .index = index};
    struct machine_nic *nic = &m->nics[index];
    int err = net->switch_name[0] ? find_switch(m, net, &nic->net) : 0;

    if (err)
        return err;
    snprintf(nic->id, sizeof(nic->id), "net%u", index);
    nic->env = m->env;
    if (nic->net)
        nic->env.loop = loop_thread_loop(nic->net->thread);
    err = loop_thread_call(thread_of(nic), build_nic, &work);
    return err ? err : machine_add_device_on(m, work.dev, thread_of(nic));
}

int machine_build_nets(struct machine *m)
{
    int err = 0;

    for (unsigned i = 0; !err && i < m->config->n_nets; i++)
        err = build_net(m, i);
    return err;
}

static int take_own_mac(void *arg)
{
    struct machine_nic *nic = arg;

    device_lock(&nic->env);
    virtio_net_take_own_mac(nic->card);
    device_unlock(&nic->env);
    return 0;
}

void machine_nets_take_own_macs(struct machine *m)
{
    for (unsigned i = 0; i < m->config->n_nets; i++)
        loop_thread_call(thread_of(&m->nics[i]), take_own_mac, &m->nics[i]);
}

static int claim_forwards(void *arg)
{
    uplink_claim_forwards(((struct machine_nic *)arg)->uplink);
    return 0;
}

static int release_forwards(void *arg)
{
    uplink_release_forwards(((struct machine_nic *)arg)->uplink);
    return 0;
}

void machine_nets_hold_ports(struct machine *m, bool hold)
{
    for (unsigned i = 0; i < m->config->n_nets; i++)
        if (m->nics[i].uplink)
            loop_thread_call(thread_of(&m->nics[i]), hold ? claim_forwards : release_forwards,
                             &m->nics[i]);
}

void machine_remove_nets(struct machine *m)
{
    for (unsigned i = 0; i < m->config->n_nets; i++)
        loop_thread_call(thread_of(&m->nics[i]), unplug_nic, &m->nics[i]);
}
