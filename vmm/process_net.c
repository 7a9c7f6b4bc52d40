/*
 * The switches of a process: making them on threads of their own, and taking them down.
 *
 * Forwards nothing (net/switch*.c). Main thread; what touches a switch runs on its thread by
 * loop_thread_call(), for which the main thread waits: none of it takes long.
 */
#include "vmm/process_net.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/process_internal.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"
#include "vmm/util/loop_thread.h"

#define LOOP_ENTRIES 256

struct switch_work {
    struct process_switch *ps;
    const struct switch_options *options;
};

/* ---- on the switch's thread ---- */

static int plug_uplink(struct process_switch *ps, const struct switch_options *options)
{
    struct switch_port *port;
    int err = switch_port_add(ps->sw, &options->uplink_port, &port);

    if (!err)
        err = uplink_create(&ps->uplink, loop_thread_loop(ps->thread), ps->name, &options->uplink,
                            NULL);
    snprintf(ps->mode, sizeof(ps->mode), "%s", uplink_mode_name(&options->uplink));
    if (!err)
        net_port_connect(switch_port_end(port), uplink_port(ps->uplink));
    return err;
}

static int make_switch(void *arg)
{
    const struct switch_work *work = arg;
    const struct switch_options *options = work->options;
    struct process_switch *ps = work->ps;
    const struct switch_config config = {
        .name = ps->name, .fdb_max = options->fdb_max, .fdb_age_s = options->fdb_age_s};
    int err = switch_create(&ps->sw, loop_thread_loop(ps->thread), &config);

    loop_set_polling(loop_thread_loop(ps->thread), options->poll_ns);
    if (!err && options->has_uplink)
        err = plug_uplink(ps, options);
    if (!err && options->n_rules > 0)
        err = switch_rules_set(ps->sw, options->rules, options->n_rules);
    for (unsigned i = 0; !err && i < options->n_mirrors; i++)
        err = switch_mirror_add(ps->sw, &options->mirrors[i]);
    return err;
}

static int unmake_switch(void *arg)
{
    struct process_switch *ps = arg;

    uplink_destroy(ps->uplink);
    switch_destroy(ps->sw);
    return 0;
}

/* ---- on the main thread ---- */

void process_switch_destroy(struct process_switch *ps)
{
    if (!ps)
        return;
    if (ps->thread)
        loop_thread_call(ps->thread, unmake_switch, ps);
    loop_thread_destroy(ps->thread);
    free(ps->text);
    free(ps);
}

struct process_switch *process_find_switch(const struct process *p, const char *name)
{
    struct process_switch *ps = p->switches;

    while (ps && name && strcmp(ps->name, name) != 0)
        ps = ps->next;
    return ps;
}

void process_remove_switch(struct process *p, const char *name)
{
    struct process_switch **at = &p->switches, *ps;

    while (*at && strcmp((*at)->name, name) != 0)
        at = &(*at)->next;
    ps = *at;
    if (!ps)
        return;
    *at = ps->next;
    process_switch_destroy(ps);
}

int process_add_switch(struct process *p, const struct switch_options *options)
{
    struct switch_work work = {.ps = calloc(1, sizeof(*work.ps)), .options = options};
    struct process_switch **last = &p->switches;
    int err;

    if (!work.ps)
        return -ENOMEM;
    work.ps->process = p;
    snprintf(work.ps->name, sizeof(work.ps->name), "%s", options->name);
    work.ps->text = options->text ? strdup(options->text) : NULL;
    if (options->text && !work.ps->text) {
        err = -ENOMEM;
    } else if (process_find_switch(p, options->name)) {
        log_error("--switch: there are two named '%s'", options->name);
        err = -EEXIST;
    } else {
        err = loop_thread_create(&work.ps->thread, options->name, LOOP_ENTRIES);
    }
    if (!err)
        err = loop_thread_call(work.ps->thread, make_switch, &work);
    if (err) {
        process_switch_destroy(work.ps);
        return err;
    }
    while (*last)
        last = &(*last)->next;
    *last = work.ps;
    return 0;
}
