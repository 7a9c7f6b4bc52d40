/*
 * Mirrors and captures: which ports' frames they want, and handing the frames over.
 *
 * Chooses frames by VLAN no further than to keep the selection; the path does that for each frame
 * (switch_path.c), and only at ports whose bit for the mirror is set. Loop thread; no locks.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "net/switch_internal.h"
#include "vmm/util/log.h"

static bool names(const struct switch_selection *from, const struct switch_port *port)
{
    if (from->n_ports == 0)
        return port->kind != SWITCH_PORT_MIRROR;
    for (unsigned i = 0; i < from->n_ports; i++) {
        if (strcmp(from->ports[i], port->config.name) == 0)
            return true;
    }
    return false;
}

static int direction_of(const struct switch_selection *from)
{
    if (from->direction)
        return from->direction;
    return from->n_ports ? SWITCH_BOTH : SWITCH_IN;
}

/* Has the port's frames go to the mirror, if they are selected. */
static void attach(struct switch_port *port, struct switch_mirror *mirror, unsigned number)
{
    int direction = direction_of(&mirror->from);

    if (port->dead || port == mirror->to || !names(&mirror->from, port) ||
        !(mirror->to || mirror->capture))
        return;
    if (direction & SWITCH_IN)
        port->mirror_in |= 1u << number;
    if (direction & SWITCH_OUT)
        port->mirror_out |= 1u << number;
    if (mirror->capture)
        mirror->interfaces[port->number] = capture_interface(mirror->capture, port->config.name);
}

void switch_mirrors_resolve(struct net_switch *sw)
{
    for (unsigned p = 0; p < sw->ports_end; p++) {
        if (sw->ports[p])
            sw->ports[p]->mirror_in = sw->ports[p]->mirror_out = 0;
    }
    for (unsigned m = 0; m < SWITCH_MIRRORS_MAX; m++) {
        struct switch_mirror *mirror = &sw->mirrors[m];

        if (!mirror->used)
            continue;
        mirror->to = mirror->capture ? NULL : switch_port_find(sw, mirror->to_name);
        if (mirror->to && mirror->to->kind != SWITCH_PORT_MIRROR)
            mirror->to = NULL;
        for (unsigned p = 0; p < sw->ports_end; p++) {
            if (sw->ports[p])
                attach(sw->ports[p], mirror, m);
        }
    }
}

static struct switch_mirror *find(struct net_switch *sw, const char *name)
{
    for (unsigned m = 0; m < SWITCH_MIRRORS_MAX; m++) {
        if (sw->mirrors[m].used && strcmp(sw->mirrors[m].name, name) == 0)
            return &sw->mirrors[m];
    }
    return NULL;
}

/* A free place for a mirror of that name, zeroed but for name and selection. */
static int make(struct net_switch *sw, const char *name, const struct switch_selection *from,
                struct switch_mirror **out)
{
    struct switch_mirror *mirror = sw->mirrors;

    if (find(sw, name)) {
        log_error("%s: there is a mirror or capture %s already", sw->name, name);
        return -EEXIST;
    }
    while (mirror < sw->mirrors + SWITCH_MIRRORS_MAX && mirror->used)
        mirror++;
    if (mirror == sw->mirrors + SWITCH_MIRRORS_MAX) {
        log_error("%s: no more than %u mirrors and captures", sw->name, SWITCH_MIRRORS_MAX);
        return -ENOSPC;
    }
    memset(mirror, 0, sizeof(*mirror));
    memcpy(mirror->name, name, NET_NAME_MAX);
    mirror->from = *from;
    *out = mirror;
    return 0;
}

int switch_mirror_add(struct net_switch *sw, const struct switch_mirror_config *config)
{
    struct switch_mirror *mirror;
    int error = make(sw, config->name, &config->from, &mirror);

    if (error < 0)
        return error;
    memcpy(mirror->to_name, config->to, NET_NAME_MAX);
    mirror->used = true;
    switch_mirrors_resolve(sw);
    return 0;
}

int switch_mirror_remove(struct net_switch *sw, const char *name)
{
    struct switch_mirror *mirror = find(sw, name);

    if (!mirror || mirror->capture)
        return -ENOENT;
    mirror->used = false;
    switch_mirrors_resolve(sw);
    return 0;
}

int switch_capture_start(struct net_switch *sw, const struct switch_capture_config *config)
{
    struct switch_mirror *mirror;
    int error = make(sw, config->name, &config->from, &mirror);

    if (error < 0)
        return error;
    error = capture_create(&mirror->capture, sw->loop, config->fd, config->snap_length);
    if (error < 0) {
        log_error("%s: out of memory", sw->name);
        return error;
    }
    mirror->used = true;
    switch_mirrors_resolve(sw);
    return 0;
}

int switch_capture_stop(struct net_switch *sw, const char *name,
                        void (*stopped)(void *arg, int error), void *arg)
{
    struct switch_mirror *mirror = find(sw, name);
    struct capture *capture;

    if (!mirror || !mirror->capture)
        return -ENOENT;
    capture = mirror->capture;
    mirror->used = false;
    mirror->capture = NULL;
    switch_mirrors_resolve(sw);
    capture_finish(capture, stopped, arg);
    return 0;
}

void switch_mirrors_fini(struct net_switch *sw)
{
    for (unsigned m = 0; m < SWITCH_MIRRORS_MAX; m++) {
        capture_destroy(sw->mirrors[m].capture);
        sw->mirrors[m] = (struct switch_mirror){0};
    }
    switch_mirrors_resolve(sw);
}

static unsigned send_to_port(struct net_switch *sw, struct switch_port *to,
                             const struct net_frame *frames, unsigned n)
{
    unsigned taken;

    if (!to->end.peer) {
        to->counters.dropped[SWITCH_DROP_UNPLUGGED] += n;
        return 0;
    }
    if (!to->dirty) {
        to->dirty = true;
        sw->dirty[sw->n_dirty++] = to->number;
    }
    taken = net_port_send(&to->end, frames, n);
    to->counters.dropped[SWITCH_DROP_FULL] += n - taken;
    return taken;
}

void switch_mirror_frames(struct net_switch *sw, struct switch_mirror *mirror,
                          const struct switch_port *port, bool in, const struct net_frame *frames,
                          unsigned n)
{
    unsigned taken;

    for (unsigned i = 0; i < n; i++)
        mirror->bytes += frames[i].length;
    mirror->frames += n;
    if (mirror->capture)
        taken = capture_frames(mirror->capture, mirror->interfaces[port->number], in, frames, n);
    else if (mirror->to)
        taken = send_to_port(sw, mirror->to, frames, n);
    else /* its port was removed by a frame that is on its way */
        taken = 0;
    mirror->dropped += n - taken;
}
