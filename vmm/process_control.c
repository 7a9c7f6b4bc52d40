/*
 * What a process answers on its control socket: the paths of the Cloud Hypervisor API that are about
 * the process (vmm.*), and which guest a path about one (vm.*) means.
 *
 * Composition root. The event loop's thread; no handler blocks.
 */
#include "vmm/process_control.h"

#include <errno.h>
#include <unistd.h>

#include "vmm/control.h"
#include "vmm/machine_internal.h"
#include "vmm/process.h"
#include "vmm/process_internal.h"
#include "vmm/process_net_control.h"

static int ping(void *opaque, const json_t *body, json_t **reply)
{
    (void)opaque;
    (void)body;
    *reply = json_pack("{s:s, s:s, s:i, s:[]}", "build_version", "ferry " FERRY_VERSION, "version",
                       FERRY_VERSION, "pid", (int)getpid(), "features");
    return *reply ? 0 : -ENOMEM;
}

static json_t *describe_past(const struct process *process)
{
    json_t *past = json_array();
    const char *name, *how;

    for (unsigned i = 0; process_past_guest(process, i, &name, &how); i++)
        json_array_append_new(past, json_pack("{s:s, s:i, s:s, s:s}", "name", name, "pid",
                                              (int)getpid(), "state", "Shutdown", "reason", how));
    return past;
}

/* Each as vm.info tells of it, and those that have ended. */
static int list_guests(void *opaque, const json_t *body, json_t **reply)
{
    const struct process *process = opaque;
    json_t *guests = json_array(), *past = describe_past(process), *guest;
    size_t i;

    (void)body;
    for (unsigned g = 0; g < process_guests(process); g++)
        json_array_append_new(guests, machine_describe(process_guest(process, g)));
    json_array_extend(guests, past);
    json_decref(past);
    json_array_foreach(guests, i, guest)
        json_object_set_new(guest, "process", json_string(process_name(process)));
    *reply = guests;
    return guests ? 0 : -ENOMEM;
}

/* As a signal would. The answer comes when all guests have ended. */
static int press_power_buttons(void *opaque, const json_t *body, json_t **reply)
{
    struct process *process = opaque;

    (void)body;
    if (control_busy(process_control(process), process)) {
        *reply = json_string("the guests have been asked to power off already");
        return -EALREADY;
    }
    process_ask_to_end(process, 0);
    return -EINPROGRESS;
}

/* The answer comes at the end of the process, but for a second one. */
static int shut_down(void *opaque, const json_t *body, json_t **reply)
{
    struct process *process = opaque;

    (void)body;
    (void)reply;
    for (unsigned i = 0; i < process_guests(process); i++)
        machine_quit(process_guest(process, i));
    if (process_guests(process) == 0)
        process_ask_to_end(process, 0);
    return control_busy(process_control(process), process) ? 0 : -EINPROGRESS;
}

/* To whoever waits for the loop to stop: what takes long is done outside of any callback. */
static int hand_over(const json_t *body, json_t **to, struct loop *loop)
{
    *to = body ? json_deep_copy(body) : json_object();
    if (!*to)
        return -ENOMEM;
    loop_stop(loop);
    return -EINPROGRESS;
}

/* Takes {"receiver_url": "tcp:HOST:PORT", ...}: see cmd_receive_order.c. Answers when the guest runs here. */
static int receive_migration(void *opaque, const json_t *body, json_t **reply)
{
    struct process_order *order = opaque;

    if (!order->taken || order->body) {
        *reply = json_string("this process does not wait to be told where a guest comes: 'ferry receive' "
                             "without an address does");
        return -EALREADY;
    }
    return hand_over(body, &order->body, order->loop);
}

static int pick_order(void *opaque, const json_t *body, void **object, json_t **reply)
{
    struct process *process = opaque;

    (void)body;
    (void)reply;
    *object = &process->order;
    return 0;
}

static const struct control_route order_routes[] = {
    {"PUT", "/api/v1/vm.receive-migration", receive_migration},
    {0},
};

/* Takes {"file": PATH}, or nothing: see cmd_up.c. Answers when what is new in the lab's file runs. */
static int take_more(void *opaque, const json_t *body, json_t **reply)
{
    struct process_more *more = opaque;

    if (!more->take) {
        *reply = json_string("this process runs no lab: 'ferry up' does");
        return -EALREADY;
    }
    if (more->body) {
        *reply = json_string("the lab is being added to already");
        return -EALREADY;
    }
    return hand_over(body, &more->body, more->loop);
}

static int pick_more(void *opaque, const json_t *body, void **object, json_t **reply)
{
    struct process *process = opaque;

    (void)body;
    (void)reply;
    *object = &process->more;
    return 0;
}

static const struct control_route more_routes[] = {
    {"PUT", "/api/v1/lab.up", take_more},
    {0},
};

static const struct control_route process_routes[] = {
    {"GET", "/api/v1/vmm.ping", ping},
    {"GET", "/api/v1/vmm.guests", list_guests},
    {"PUT", "/api/v1/vmm.power-button", press_power_buttons},
    {"PUT", "/api/v1/vmm.shutdown", shut_down},
    {0},
};

/* ---- what clients of Cloud Hypervisor may ask for, and Ferry has not ---- */

static const struct control_route making_routes[] = {
    {"PUT", "/api/v1/vm.create", NULL},
    {"PUT", "/api/v1/vm.boot", NULL},
    {"PUT", "/api/v1/vm.restore", NULL},
    {0},
};

static const struct control_route changing_routes[] = {
    {"PUT", "/api/v1/vm.resize", NULL},
    {"PUT", "/api/v1/vm.resize-disk", NULL},
    {"PUT", "/api/v1/vm.resize-zone", NULL},
    {"PUT", "/api/v1/vm.add-device", NULL},
    {"PUT", "/api/v1/vm.remove-device", NULL},
    {"PUT", "/api/v1/vm.add-disk", NULL},
    {"PUT", "/api/v1/vm.add-fs", NULL},
    {"PUT", "/api/v1/vm.add-generic-vhost-user", NULL},
    {"PUT", "/api/v1/vm.add-net", NULL},
    {"PUT", "/api/v1/vm.add-pmem", NULL},
    {"PUT", "/api/v1/vm.add-user-device", NULL},
    {"PUT", "/api/v1/vm.add-vdpa", NULL},
    {"PUT", "/api/v1/vm.add-vsock", NULL},
    {"GET", "/api/v1/vm.balloon-stats", NULL},
    {0},
};

static const struct control_route coredump_routes[] = {{"PUT", "/api/v1/vm.coredump", NULL}, {0}};
static const struct control_route nmi_routes[] = {{"PUT", "/api/v1/vm.nmi", NULL}, {0}};

/* ---- which guest is meant ---- */

/* ?guest=NAME; where there is one guest, or one that is named as the process, it need not be said. */
static int pick_guest(void *opaque, const json_t *body, void **object, json_t **reply)
{
    const char *name = json_string_value(json_object_get(body, "guest"));
    struct process *process = opaque;
    const struct machine *first = process_guest(process, 0);

    if (name)
        *object = process_find_guest(process, name);
    else if (process_guests(process) <= 1)
        *object = process_guest(process, 0);
    else
        *object = process_find_guest(process, process_name(process));
    if (*object)
        return 0;
    if (name)
        *reply = json_sprintf("no guest named '%s' is in this process", name);
    else if (process_guests(process) == 0)
        *reply = json_string("no guest runs in this process");
    else
        *reply = json_sprintf("several guests run in this process: say which, as in %s/%s",
                              process_name(process), first->config->name);
    return name || process_guests(process) == 0 ? -ENOENT : -EINVAL;
}

const struct control_table process_tables[] = {
    {.routes = process_routes},
    {.routes = order_routes, .pick = pick_order},
    {.routes = more_routes, .pick = pick_more},
    {.routes = machine_routes, .pick = pick_guest},
    {.routes = machine_migrate_routes, .pick = pick_guest},
    {.routes = process_net_list_routes},
    {.routes = process_net_routes, .pick = process_net_pick},
    {.routes = making_routes,
     .absent = "guests are made by 'ferry run', 'ferry up' and 'ferry restore'"},
    {.routes = changing_routes,
     .absent = "a guest keeps the CPUs, the memory and the devices that it was started with"},
    {.routes = coredump_routes,
     .absent = "there are no core dumps; vm.snapshot writes a guest to a file"},
    {.routes = nmi_routes,
     .absent = "there are no NMIs from outside; vm.send-break leads to Linux's SysRq keys"},
    {0},
};
