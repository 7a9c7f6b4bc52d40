/*
 * What a process answers about its switches: paths of Ferry's own, /api/v1/net and /api/v1/net.*.
 *
 * The body or the query names the switch ({"switch": "lab0"}, ?switch=lab0), unless there is one. Each
 * request is carried out on the switch's thread, for which the main thread waits; none takes long but
 * the end of a capture, which is answered when its file is written. What the switch has to say against
 * a request is the answer. Main thread, but for what loop_thread_call() runs.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "net/uplink.h"
#include "vmm/control.h"
#include "vmm/process_internal.h"
#include "vmm/process_net.h"
#include "vmm/process_net_control.h"
#include "vmm/util/log.h"
#include "vmm/util/loop_thread.h"

#define FRAME_TEXT_MAX (2 * NET_FRAME_MAX)

/* ---- carrying out ---- */

typedef int (*switch_handler)(struct process_switch *ps, const json_t *body, json_t **reply);

struct request {
    struct process_switch *ps;
    const json_t *body;
    json_t **reply;
    switch_handler handle;
    char error[600];
};

static int carry_out(void *arg)
{
    struct request *r = arg;
    int err;

    log_divert_errors(r->error, sizeof(r->error));
    err = r->handle(r->ps, r->body, r->reply);
    log_divert_errors(NULL, 0);
    return err;
}

static int on_switch(void *object, const json_t *body, json_t **reply, switch_handler handle)
{
    struct process_switch *ps = object;
    struct request r = {.ps = ps, .body = body, .reply = reply, .handle = handle};
    int err = loop_thread_call(ps->thread, carry_out, &r);

    if (err && err != -EINPROGRESS && !*reply && r.error[0])
        *reply = json_string(r.error);
    /* Whatever was wrong was so with the request. */
    return err && err != -EINPROGRESS && err != -EALREADY && err != -ENOMEM ? -EINVAL : err;
}

/* A text of the body, or NULL with a reply that asks for it. */
static const char *text_of(const json_t *body, const char *key, json_t **reply)
{
    const char *text = json_string_value(json_object_get(body, key));

    if (!text)
        *reply = json_sprintf("%s: a text was expected", key);
    return text;
}

static struct switch_port *port_of(struct process_switch *ps, const json_t *body, json_t **reply)
{
    const char *name = text_of(body, "port", reply);
    struct switch_port *port = name ? switch_port_find(ps->sw, name) : NULL;

    if (name && !port)
        *reply = json_sprintf("no port named '%s' is in the switch '%s'", name, ps->name);
    return port;
}

/* ---- telling ---- */

static json_t *mac_text(const uint8_t mac[6])
{
    return json_sprintf("%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4],
                        mac[5]);
}

static json_t *describe_vlan(const struct vlan_port *vlan)
{
    char carries[256];
    json_t *json;

    vlan_format_set(&vlan->carries, carries, sizeof(carries));
    json = json_pack("{s:s, s:s}", "mode", vlan_mode_name(vlan->mode), "carries", carries);
    if (vlan->untagged_in != VLAN_NONE)
        json_object_set_new(json, "untagged", json_integer(vlan->untagged_in));
    return json;
}

static json_t *describe_counters(const struct switch_counters *c)
{
    json_t *dropped = json_object();

    for (unsigned i = 0; i < SWITCH_DROPS; i++)
        if (c->dropped[i] > 0)
            json_object_set_new(dropped, switch_drop_name(i), json_integer((json_int_t)c->dropped[i]));
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:o}", "in_frames", (json_int_t)c->in_frames,
                     "in_bytes", (json_int_t)c->in_bytes, "out_frames", (json_int_t)c->out_frames,
                     "out_bytes", (json_int_t)c->out_bytes, "not_learnt",
                     (json_int_t)c->not_learnt, "conflicts", (json_int_t)c->conflicts, "dropped",
                     dropped);
}

static json_t *describe_port(const struct switch_port *port)
{
    static const char *const kinds[] = {
        [SWITCH_PORT_GUEST] = "guest",
        [SWITCH_PORT_UPLINK] = "uplink",
        [SWITCH_PORT_MIRROR] = "mirror",
    };
    struct switch_port_info info;
    json_t *macs = json_array();

    switch_port_get_info(port, &info);
    for (unsigned i = 0; i < info.n_macs; i++)
        json_array_append_new(macs, mac_text(info.macs[i]));
    return json_pack("{s:s, s:s, s:b, s:b, s:i, s:o, s:o, s:o}", "name", info.config->name, "kind",
                     kinds[info.kind], "plugged", info.plugged, "promiscuous", info.promiscuous,
                     "learnt", (int)info.learnt, "vlan", describe_vlan(info.vlan), "macs", macs,
                     "counters", describe_counters(&info.counters));
}

static json_t *describe_ports(const struct net_switch *sw)
{
    json_t *ports = json_array();

    for (struct switch_port *port = switch_port_next(sw, NULL); port;
         port = switch_port_next(sw, port))
        json_array_append_new(ports, describe_port(port));
    return ports;
}

static void add_address(void *arg, const struct switch_fdb_entry *entry)
{
    json_array_append_new(arg, json_pack("{s:o, s:i, s:s, s:b, s:i}", "mac", mac_text(entry->mac),
                                         "vlan", (int)entry->vlan, "port",
                                         switch_port_settings(entry->port)->name, "registered",
                                         entry->registered, "age_s", (int)entry->age_s));
}

static void add_rule(void *arg, const struct switch_rule_info *info)
{
    char text[RULE_TEXT_MAX];

    rule_format(info->rule, text, sizeof(text));
    json_array_append_new(arg, json_pack("{s:i, s:s, s:I, s:I}", "id", (int)info->id, "rule", text,
                                         "frames", (json_int_t)info->frames, "bytes",
                                         (json_int_t)info->bytes));
}

static void add_mirror(void *arg, const struct switch_mirror_info *info)
{
    json_array_append_new(
        arg, json_pack("{s:s, s:s?, s:b, s:I, s:I, s:I, s:s?}", "name", info->name, "to", info->to,
                       "capture", !info->to, "frames", (json_int_t)info->frames, "bytes",
                       (json_int_t)info->bytes, "dropped", (json_int_t)info->dropped, "error",
                       info->error ? strerror(-info->error) : NULL));
}

static json_t *describe_caches(const struct net_switch *sw)
{
    struct switch_cache_info c;

    switch_get_cache_info(sw, &c);
    return json_pack("{s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:I, s:I, s:I, s:I}", "rules",
                     (int)c.rules, "tuples", (int)c.tuples, "entries", (int)c.classifier_entries,
                     "flows", (int)c.flows, "flows_max", (int)c.flows_max, "masks", (int)c.masks,
                     "learnt", (int)c.fdb_learnt, "learnt_max", (int)c.fdb_max, "registered",
                     (int)c.fdb_registered, "exact_hits", (json_int_t)c.exact_hits,
                     "megaflow_hits", (json_int_t)c.megaflow_hits, "misses", (json_int_t)c.misses,
                     "replaced", (json_int_t)c.replaced);
}

static bool add_lease(void *arg, const uint8_t mac[6], struct in_addr address, uint64_t until)
{
    uint64_t now = loop_now_ns() / 1000000000u;
    char text[INET_ADDRSTRLEN] = "?";

    inet_ntop(AF_INET, &address, text, sizeof(text));
    json_array_append_new(arg, json_pack("{s:o, s:s, s:I}", "mac", mac_text(mac), "address", text,
                                         "left_s", (json_int_t)(until > now ? until - now : 0)));
    return true;
}

/* NULL: no DHCP server of ours is on the uplink. */
static json_t *describe_leases(const struct process_switch *ps)
{
    const struct dhcp_leases *leases = ps->uplink ? uplink_leases(ps->uplink) : NULL;
    json_t *json = leases ? json_array() : NULL;

    if (leases)
        dhcp_leases_each(leases, add_lease, json);
    return json;
}

static void add_drop(void *arg, const char *reason, uint64_t frames)
{
    json_object_set_new(arg, reason, json_integer((json_int_t)frames));
}

/* NULL without an uplink. */
static json_t *describe_uplink_drops(const struct process_switch *ps)
{
    json_t *json = ps->uplink ? json_object() : NULL;

    if (json)
        uplink_each_drop(ps->uplink, add_drop, json);
    return json;
}

static int info_on_switch(struct process_switch *ps, const json_t *body, json_t **reply)
{
    json_t *fdb = json_array(), *rules = json_array(), *mirrors = json_array();

    (void)body;
    switch_fdb_walk(ps->sw, add_address, fdb);
    switch_rules_walk(ps->sw, add_rule, rules);
    switch_mirrors_walk(ps->sw, add_mirror, mirrors);
    *reply = json_pack("{s:s, s:s, s:s?, s:o*, s:o, s:o, s:o, s:o, s:o, s:o*}", "name", ps->name,
                       "process", ps->process->name, "uplink", ps->uplink ? ps->mode : NULL,
                       "uplink_dropped", describe_uplink_drops(ps), "ports",
                       describe_ports(ps->sw), "fdb", fdb, "rules", rules, "mirrors", mirrors,
                       "caches", describe_caches(ps->sw), "leases", describe_leases(ps));
    return *reply ? 0 : -ENOMEM;
}

static int info(void *object, const json_t *body, json_t **reply)
{
    return on_switch(object, body, reply, info_on_switch);
}

static int count_ports(void *arg)
{
    const struct process_switch *ps = arg;
    int n = 0;

    for (struct switch_port *port = switch_port_next(ps->sw, NULL); port;
         port = switch_port_next(ps->sw, port))
        n++;
    return n;
}

static int list_switches(void *object, const json_t *body, json_t **reply)
{
    const struct process *p = object;

    (void)body;
    *reply = json_array();
    for (struct process_switch *ps = p->switches; ps; ps = ps->next)
        json_array_append_new(*reply,
                              json_pack("{s:s, s:s, s:s?, s:i}", "name", ps->name, "process",
                                        p->name, "uplink", ps->uplink ? ps->mode : NULL, "ports",
                                        loop_thread_call(ps->thread, count_ports, ps)));
    return *reply ? 0 : -ENOMEM;
}

/* ---- changing ---- */

/* {"port": "web0", "settings": "vlan=10"} */
static int set_on_switch(struct process_switch *ps, const json_t *body, json_t **reply)
{
    struct switch_port *port = port_of(ps, body, reply);
    const char *text = port ? text_of(body, "settings", reply) : NULL;
    struct switch_port_config config;
    int err;

    if (!text)
        return -EINVAL;
    config = *switch_port_settings(port);
    err = switch_port_config_update(config.name, text, &config);
    return err ? err : switch_port_configure(port, &config);
}

static int set_port(void *object, const json_t *body, json_t **reply)
{
    return on_switch(object, body, reply, set_on_switch);
}

/* {"mirror": "NAME,from=web0,to=ids0"} */
static int mirror_on_switch(struct process_switch *ps, const json_t *body, json_t **reply)
{
    const char *text = text_of(body, "mirror", reply);
    struct switch_mirror_config config;
    int err = text ? switch_mirror_parse("mirror", text, &config) : -EINVAL;
    const struct switch_port *to = err ? NULL : switch_port_find(ps->sw, config.to);
    struct switch_port_info info;

    if (to) {
        switch_port_get_info(to, &info);
        if (info.kind != SWITCH_PORT_MIRROR) {
            *reply = json_sprintf("the port '%s' was not made with monitor=on", config.to);
            return -EINVAL;
        }
    }
    return err ? err : switch_mirror_add(ps->sw, &config);
}

static int add_mirror_route(void *object, const json_t *body, json_t **reply)
{
    return on_switch(object, body, reply, mirror_on_switch);
}

/* {"name": "NAME"} */
static int unmirror_on_switch(struct process_switch *ps, const json_t *body, json_t **reply)
{
    const char *name = text_of(body, "name", reply);
    int err = name ? switch_mirror_remove(ps->sw, name) : -EINVAL;

    if (err == -ENOENT)
        *reply = json_sprintf("no mirror named '%s' is in the switch '%s'", name, ps->name);
    return err;
}

static int remove_mirror(void *object, const json_t *body, json_t **reply)
{
    return on_switch(object, body, reply, unmirror_on_switch);
}

/* {"rule": "100,in=web0,action=deny"}; answers {"id": N} */
static int rule_on_switch(struct process_switch *ps, const json_t *body, json_t **reply)
{
    const char *text = text_of(body, "rule", reply);
    struct rule rule;
    unsigned id;
    int err = text ? rule_parse("rule", text, &rule) : -EINVAL;

    if (!err)
        err = switch_rule_add(ps->sw, &rule, &id);
    if (!err)
        *reply = json_pack("{s:i}", "id", (int)id);
    return err;
}

static int add_rule_route(void *object, const json_t *body, json_t **reply)
{
    return on_switch(object, body, reply, rule_on_switch);
}

/* {"id": N} */
static int unrule_on_switch(struct process_switch *ps, const json_t *body, json_t **reply)
{
    const json_t *id = json_object_get(body, "id");
    json_int_t number = json_integer_value(id);
    int err = json_is_integer(id) && number >= 0 && number <= UINT32_MAX ? 0 : -EINVAL;

    if (err)
        *reply = json_string("id: a number was expected");
    else
        err = switch_rule_remove(ps->sw, (unsigned)number);
    if (err == -ENOENT)
        *reply = json_sprintf("no rule with the number %lld is in the switch '%s'",
                              (long long)number, ps->name);
    return err;
}

static int remove_rule(void *object, const json_t *body, json_t **reply)
{
    return on_switch(object, body, reply, unrule_on_switch);
}

/* ---- captures ---- */

/* Never waits: a pipe that nobody reads is an error. Others' links are not followed. */
static int open_capture(const char *path, json_t **reply)
{
    int fd = *path == '/' ? open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NONBLOCK | O_NOFOLLOW |
                                     O_CLOEXEC, 0600)
                          : (errno = EINVAL, -1);

    if (fd < 0)
        *reply = json_sprintf("%s: %s", path,
                              *path == '/' ? strerror(errno) : "an absolute path was expected");
    return fd;
}

static bool fill_capture(struct switch_capture_config *config, const char *name, const char *port)
{
    if (!net_name_valid(name))
        return false;
    snprintf(config->name, sizeof(config->name), "%s", name);
    if (!port)
        return true; /* of all ports */
    snprintf(config->from.ports[0], sizeof(config->from.ports[0]), "%s", port);
    config->from.n_ports = 1;
    return true;
}

/* {"name": "NAME", "path": "/file.pcapng", "port": "web0", "snap_length": 128}; the last two may be
 * left out. */
static int capture_on_switch(struct process_switch *ps, const json_t *body, json_t **reply)
{
    const char *name = text_of(body, "name", reply);
    const char *path = name ? text_of(body, "path", reply) : NULL;
    const json_t *snap = json_object_get(body, "snap_length");
    struct switch_capture_config config = {0};
    int err;

    if (!path)
        return -EINVAL;
    if (json_object_get(body, "port") && !port_of(ps, body, reply))
        return -EINVAL;
    if (snap && (!json_is_integer(snap) || json_integer_value(snap) < 0 ||
                 json_integer_value(snap) > NET_FRAME_MAX)) {
        *reply = json_string("snap_length: a number of bytes was expected");
        return -EINVAL;
    }
    config.snap_length = (unsigned)json_integer_value(snap);
    if (!fill_capture(&config, name, json_string_value(json_object_get(body, "port")))) {
        *reply = json_string("name: at most 31 letters, digits, '.', '_' and '-' were expected");
        return -EINVAL;
    }
    config.fd = open_capture(path, reply);
    if (config.fd < 0)
        return -EINVAL;
    err = switch_capture_start(ps->sw, &config);
    if (err)
        close(config.fd);
    return err;
}

static int start_capture(void *object, const json_t *body, json_t **reply)
{
    return on_switch(object, body, reply, capture_on_switch);
}

/* From the switch's thread to the main one: the answer to whoever waits. */
struct stopping {
    struct loop_call call;
    struct process_switch *ps;
    int error;
};

static void answer_stopped(struct loop_call *call)
{
    struct stopping *s = (struct stopping *)((char *)call - offsetof(struct stopping, call));

    control_answer(s->ps->process->control, s->ps, s->error, NULL);
    free(s);
}

static void capture_stopped(void *arg, int error)
{
    struct stopping *s = arg;

    s->error = error;
    loop_call(s->ps->process->loop, &s->call);
}

/* {"name": "NAME"}; answers when the file is written. */
static int stop_on_switch(struct process_switch *ps, const json_t *body, json_t **reply)
{
    const char *name = text_of(body, "name", reply);
    struct stopping *s = name ? calloc(1, sizeof(*s)) : NULL;
    int err;

    if (!s)
        return name ? -ENOMEM : -EINVAL;
    *s = (struct stopping){.call.run = answer_stopped, .ps = ps};
    err = switch_capture_stop(ps->sw, name, capture_stopped, s);
    if (!err)
        return -EINPROGRESS;
    free(s);
    if (err == -ENOENT)
        *reply = json_sprintf("no capture named '%s' is in the switch '%s'", name, ps->name);
    return err;
}

static int stop_capture(void *object, const json_t *body, json_t **reply)
{
    struct process_switch *ps = object;

    if (control_busy(ps->process->control, ps)) {
        *reply = json_string("another capture is being ended");
        return -EALREADY;
    }
    return on_switch(object, body, reply, stop_on_switch);
}

/* ---- tracing ---- */

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Hexadecimal bytes, between which blanks and colons may stand. A buffer that the caller frees. */
static uint8_t *read_frame(const char *text, size_t *length)
{
    uint8_t *frame = malloc(strlen(text) / 2 + 1);

    *length = 0;
    while (frame && *text) {
        int high = hex_digit(text[0]), low = high < 0 ? -1 : hex_digit(text[1]);

        if (*text == ' ' || *text == ':') {
            text++;
            continue;
        }
        if (low < 0) {
            free(frame);
            return NULL;
        }
        frame[(*length)++] = (uint8_t)(high << 4 | low);
        text += 2;
    }
    return frame;
}

static void add_line(void *arg, const char *text)
{
    json_array_append_new(arg, json_string(text));
}

/* {"port": "web0", "frame": "ffffffffffff0200..."}; answers {"lines": [...]} */
static int trace_on_switch(struct process_switch *ps, const json_t *body, json_t **reply)
{
    struct switch_port *port = port_of(ps, body, reply);
    const char *text = port ? text_of(body, "frame", reply) : NULL;
    json_t *lines;
    uint8_t *frame;
    size_t length;
    int err = -EINVAL;

    if (!text)
        return -EINVAL;
    frame = strlen(text) <= FRAME_TEXT_MAX ? read_frame(text, &length) : NULL;
    lines = json_array();
    if (frame)
        err = switch_trace(port, frame, length, add_line, lines);
    free(frame);
    if (!err)
        *reply = json_pack("{s:O}", "lines", lines);
    else
        *reply = json_sprintf("frame: %u to %u bytes in hexadecimal were expected",
                              (unsigned)NET_FRAME_MIN, (unsigned)NET_FRAME_MAX);
    json_decref(lines);
    return err;
}

static int trace(void *object, const json_t *body, json_t **reply)
{
    return on_switch(object, body, reply, trace_on_switch);
}

/* ---- routes ---- */

const struct control_route process_net_list_routes[] = {
    {"GET", "/api/v1/net", list_switches},
    {0},
};

const struct control_route process_net_routes[] = {
    {"GET", "/api/v1/net.info", info},
    {"PUT", "/api/v1/net.set", set_port},
    {"PUT", "/api/v1/net.mirror", add_mirror_route},
    {"PUT", "/api/v1/net.unmirror", remove_mirror},
    {"PUT", "/api/v1/net.rule", add_rule_route},
    {"PUT", "/api/v1/net.unrule", remove_rule},
    {"PUT", "/api/v1/net.capture", start_capture},
    {"PUT", "/api/v1/net.capture-stop", stop_capture},
    {"PUT", "/api/v1/net.trace", trace},
    {0},
};

int process_net_pick(void *opaque, const json_t *body, void **object, json_t **reply)
{
    const char *name = json_string_value(json_object_get(body, "switch"));
    const struct process *p = opaque;

    if (name || (p->switches && !p->switches->next))
        *object = process_find_switch(p, name);
    else
        *object = process_find_switch(p, p->name);
    if (*object)
        return 0;
    if (name)
        *reply = json_sprintf("no switch named '%s' is in this process", name);
    else if (p->switches)
        *reply = json_string("this process has several switches: say which by ?switch=NAME");
    else
        *reply = json_string("no switch is in this process");
    return name || !p->switches ? -ENOENT : -EINVAL;
}
