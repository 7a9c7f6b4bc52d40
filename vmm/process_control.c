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

static int ping(void *opaque, const json_t *body, json_t **reply)
{
    (void)opaque;
    (void)body;
    *reply = json_pack("{s:s, s:s, s:i, s:[]}", "build_version", "ferry " FERRY_VERSION, "version",
                       FERRY_VERSION, "pid", (int)getpid(), "features");
    return *reply ? 0 : -ENOMEM;
}

/* The answer leaves before the loop notices the end. */
static int shut_down(void *opaque, const json_t *body, json_t **reply)
{
    struct process *process = opaque;

    (void)body;
    (void)reply;
    for (unsigned i = 0; i < process_guests(process); i++)
        machine_quit(process_guest(process, i));
    return 0;
}

static const struct control_route process_routes[] = {
    {"GET", "/api/v1/vmm.ping", ping},
    {"PUT", "/api/v1/vmm.shutdown", shut_down},
    {0},
};

/* ?guest=NAME; where there is one guest, it need not be said. */
static int pick_guest(void *opaque, const json_t *body, void **object, json_t **reply)
{
    const char *name = json_string_value(json_object_get(body, "guest"));
    struct process *process = opaque;

    if (name)
        *object = process_find_guest(process, name);
    else if (process_guests(process) <= 1)
        *object = process_guest(process, 0);
    else
        *object = NULL;
    if (*object)
        return 0;
    if (name)
        *reply = json_sprintf("no guest named '%s' is in this process", name);
    else if (process_guests(process) == 0)
        *reply = json_string("no guest runs in this process");
    else
        *reply = json_string("several guests run in this process: say which by ?guest=NAME");
    return name || process_guests(process) == 0 ? -ENOENT : -EINVAL;
}

const struct control_table process_tables[] = {
    {process_routes, NULL},
    {machine_routes, pick_guest},
    {0},
};
