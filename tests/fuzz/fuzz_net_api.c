/*
 * Any JSON object as the body of a request about a switch: it is carried out, or refused with a reason,
 * and the switch can be told of afterwards.
 *
 * The first byte says which request; what follows is the body. Captures go to /dev/null, whatever path
 * the body has.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"
#include "vmm/process_internal.h"
#include "vmm/process_net.h"
#include "vmm/process_net_control.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define BODY_MAX 4096
#define DEADLINE_NS 5000000000ull

static struct process process = {.name = "fuzz"};

static void ignore(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
}

static void add_port(struct process_switch *ps, const char *name, int kind)
{
    struct switch_port_config config = {.kind = kind, .mac = {.bytes = {2, 0, 0, 0, 0, 1}, .given = true}};
    struct switch_port *port;

    memcpy(config.name, name, strlen(name));
    config.mac.bytes[5] = (uint8_t)name[0];
    FUZZ_CHECK(switch_port_add(ps->sw, &config, &port) == 0);
}

static unsigned count_routes(void)
{
    unsigned n = 0;

    while (process_net_routes[n].method)
        n++;
    return n;
}

/* Carries a request out, as the control socket does. */
static void carry_out(struct process_switch *ps, const struct control_route *route, json_t *body)
{
    json_t *reply = NULL;
    int err = route->handle(ps, body, &reply);

    FUZZ_CHECK(err == 0 || err == -EINVAL || err == -ENOMEM || err == -EINPROGRESS || err == -EALREADY);
    FUZZ_CHECK(err != -EINVAL || json_is_string(reply));
    json_decref(reply);
}

/* Ends of captures come by a call; they are waited for. */
static bool woken;
static void wake(struct loop_call *call)
{
    (void)call;
    woken = true;
}
static bool is_woken(void *arg)
{
    (void)arg;
    return woken;
}

static void settle(void)
{
    struct loop_call call = {.run = wake};

    for (unsigned i = 0; i < 3; i++) {
        woken = false;
        loop_call(process.loop, &call);
        FUZZ_CHECK(loop_run_until(process.loop, is_woken, NULL, DEADLINE_NS) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct process_switch ps = {.process = &process, .name = "lab0"};
    const struct switch_config config = {.name = "lab0"};
    json_t *body;

    if (size < 1 || size > BODY_MAX)
        return 0;
    log_set_sink(ignore);
    if (!process.loop)
        FUZZ_CHECK(loop_create(&process.loop, 16) == 0);
    body = json_loadb((const char *)data + 1, size - 1, JSON_REJECT_DUPLICATES, NULL);
    if (!json_is_object(body)) {
        json_decref(body);
        return 0;
    }
    if (json_object_get(body, "path"))
        json_object_set_new(body, "path", json_string("/dev/null"));
    FUZZ_CHECK(switch_create(&ps.sw, process.loop, &config) == 0);
    add_port(&ps, "a0", SWITCH_PORT_GUEST);
    add_port(&ps, "b0", SWITCH_PORT_UPLINK);
    add_port(&ps, "ids", SWITCH_PORT_MIRROR);
    carry_out(&ps, &process_net_routes[data[0] % count_routes()], body);
    carry_out(&ps, &process_net_routes[(data[0] + 1u) % count_routes()], body);
    carry_out(&ps, &process_net_routes[0], NULL); /* net.info */
    settle();
    switch_destroy(ps.sw);
    json_decref(body);
    return 0;
}
