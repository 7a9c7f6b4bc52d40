/*
 * `ferry net`: what the switches of running processes hold and count, and changes to them.
 *
 * Rules and mirrors are checked here by the parsers that the switch has, so that a mistake is told as
 * other options' mistakes are; the process that has the switch checks them again. Main thread.
 */
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "net/rule.h"
#include "net/switch.h"
#include "vmm/client.h"
#include "vmm/cmd.h"
#include "vmm/util/log.h"

struct net_command {
    char *name;
    char *verb;
    char *first;
    char *second;
    bool json;
};

static const struct cmd_operand operands[] = {
    {"NAME",
     {.name = "name", .parse = option_parse_string, .offset = offsetof(struct net_command, name),
      .expects = "the name of a switch"}},
    {"VERB",
     {.name = "verb", .parse = option_parse_string, .offset = offsetof(struct net_command, verb)}},
    {"ARGUMENT",
     {.name = "first", .parse = option_parse_string, .offset = offsetof(struct net_command, first)}},
    {"ARGUMENT",
     {.name = "second", .parse = option_parse_string,
      .offset = offsetof(struct net_command, second)}},
    {0},
};

static const struct cmd_option options[] = {
    {0, NULL, "off", "print JSON",
     {.name = "json", .parse = option_parse_bool, .offset = offsetof(struct net_command, json)},
     NULL},
    {0},
};

static enum exit_status status_of(int err)
{
    if (err == -ENOENT || err == -EINVAL)
        return STATUS_USAGE;
    return err ? STATUS_FAILED : STATUS_OK;
}

static void print_json(const json_t *json)
{
    json_dumpf(json, stdout, JSON_INDENT(2));
    putchar('\n');
}

/* ---- all switches ---- */

static void ask(void *arg, const char *process)
{
    const struct client_request request = {
        .name = process, .method = "GET", .path = "/api/v1/net", .quiet = true};
    json_t *switches = arg, *some;

    if (client_ask(&request, &some) == 0 && json_is_array(some))
        json_array_extend(switches, some);
    json_decref(some);
}

static enum exit_status list(const struct net_command *wanted)
{
    json_t *switches = json_array(), *sw;
    size_t i;

    if (client_names(ask, switches) < 0) {
        json_decref(switches);
        return STATUS_FAILED;
    }
    if (wanted->json)
        print_json(switches);
    else
        printf("%-24s %-24s %-12s %5s\n", "NAME", "PROCESS", "UPLINK", "PORTS");
    json_array_foreach(switches, i, sw) {
        const char *name = "?", *process = "?", *uplink;
        int ports = 0;

        json_unpack(sw, "{s:s, s:s, s:i}", "name", &name, "process", &process, "ports", &ports);
        uplink = json_string_value(json_object_get(sw, "uplink"));
        if (!wanted->json)
            printf("%-24s %-24s %-12s %5d\n", name, process, uplink ? uplink : "-", ports);
    }
    json_decref(switches);
    return STATUS_OK;
}

/* ---- one switch ---- */

static json_int_t sum_drops(const json_t *counters)
{
    const char *reason;
    json_int_t sum = 0;
    json_t *count;

    json_object_foreach(json_object_get(counters, "dropped"), reason, count)
        sum += json_integer_value(count);
    return sum;
}

static void print_port(const json_t *port)
{
    const char *name = "?", *kind = "?", *mode = "?", *carries = "?", *mac = "-", *reason;
    json_int_t in = 0, out = 0;
    json_t *counters = NULL, *macs = NULL, *count;
    char vlan[80];

    json_unpack((json_t *)port, "{s:s, s:s, s:{s:s, s:s}, s:o, s:o}", "name", &name, "kind", &kind,
                "vlan", "mode", &mode, "carries", &carries, "counters", &counters, "macs", &macs);
    json_unpack(counters, "{s:I, s:I}", "in_frames", &in, "out_frames", &out);
    if (json_array_size(macs) > 0)
        mac = json_string_value(json_array_get(macs, 0));
    snprintf(vlan, sizeof(vlan), "%s %s", mode, carries);
    printf("%-16s %-7s %-20s %-17s %12lld %12lld %10lld\n", name, kind, vlan, mac, (long long)in,
           (long long)out, (long long)sum_drops(counters));
    json_object_foreach(json_object_get(counters, "dropped"), reason, count)
        printf("%-16s   dropped: %s %lld\n", "", reason, (long long)json_integer_value(count));
}

static void print_ports(const json_t *info)
{
    json_t *port;
    size_t i;

    printf("%-16s %-7s %-20s %-17s %12s %12s %10s\n", "PORT", "KIND", "VLAN", "ADDRESS", "IN", "OUT",
           "DROPPED");
    json_array_foreach(json_object_get(info, "ports"), i, port)
        print_port(port);
}

/* What got to the uplink, or came from outside, and no further. */
static void print_uplink_drops(const json_t *info)
{
    const json_t *dropped = json_object_get(info, "uplink_dropped");
    const char *uplink = json_string_value(json_object_get(info, "uplink")), *reason;
    json_t *count;

    if (json_object_size(dropped) > 0)
        printf("\n%-16s %12s\n", "UPLINK", "DROPPED");
    json_object_foreach((json_t *)dropped, reason, count)
        printf("%-16s %12lld  %s\n", uplink, (long long)json_integer_value(count), reason);
}

static void print_fdb(const json_t *info)
{
    json_t *fdb = json_object_get(info, "fdb"), *entry;
    size_t i;

    if (json_array_size(fdb) > 0)
        printf("\n%-17s %5s %-16s %s\n", "ADDRESS", "VLAN", "PORT", "AGE");
    json_array_foreach(fdb, i, entry) {
        const char *mac = "?", *port = "?";
        int vlan = 0, age = 0, registered = 0;

        json_unpack(entry, "{s:s, s:i, s:s, s:b, s:i}", "mac", &mac, "vlan", &vlan, "port", &port,
                    "registered", &registered, "age_s", &age);
        if (registered)
            printf("%-17s %5s %-16s registered\n", mac, "-", port);
        else
            printf("%-17s %5d %-16s %d s\n", mac, vlan, port, age);
    }
}

static void print_rules(const json_t *info)
{
    json_t *rules = json_object_get(info, "rules"), *rule;
    size_t i;

    if (json_array_size(rules) > 0)
        printf("\n%-5s %12s  %s\n", "RULE", "FRAMES", "");
    json_array_foreach(rules, i, rule) {
        const char *text = "?";
        json_int_t frames = 0;
        int id = 0;

        json_unpack(rule, "{s:i, s:s, s:I}", "id", &id, "rule", &text, "frames", &frames);
        printf("%-5d %12lld  %s\n", id, (long long)frames, text);
    }
}

static void print_mirrors(const json_t *info)
{
    json_t *mirrors = json_object_get(info, "mirrors"), *mirror;
    size_t i;

    if (json_array_size(mirrors) > 0)
        printf("\n%-16s %-16s %12s %10s\n", "MIRROR", "TO", "FRAMES", "DROPPED");
    json_array_foreach(mirrors, i, mirror) {
        const char *name = "?", *to = json_string_value(json_object_get(mirror, "to"));
        const char *error = json_string_value(json_object_get(mirror, "error"));
        json_int_t frames = 0, dropped = 0;

        json_unpack(mirror, "{s:s, s:I, s:I}", "name", &name, "frames", &frames, "dropped", &dropped);
        printf("%-16s %-16s %12lld %10lld%s%s\n", name, to ? to : "(a file)", (long long)frames,
               (long long)dropped, error ? "  " : "", error ? error : "");
    }
}

static void print_leases(const json_t *info)
{
    json_t *leases = json_object_get(info, "leases"), *lease;
    size_t i;

    if (json_array_size(leases) > 0)
        printf("\n%-17s %-16s %s\n", "LEASE", "ADDRESS", "FOR");
    json_array_foreach(leases, i, lease) {
        const char *mac = "?", *address = "?";
        json_int_t left = 0;

        json_unpack(lease, "{s:s, s:s, s:I}", "mac", &mac, "address", &address, "left_s", &left);
        printf("%-17s %-16s %lld s\n", mac, address, (long long)left);
    }
}

static void print_caches(const json_t *info)
{
    json_int_t exact = 0, flow = 0, misses = 0;
    int flows = 0, max = 0, masks = 0, rules = 0;

    json_unpack(json_object_get(info, "caches"), "{s:I, s:I, s:I, s:i, s:i, s:i, s:i}", "exact_hits",
                &exact, "megaflow_hits", &flow, "misses", &misses, "flows", &flows, "flows_max",
                &max, "masks", &masks, "rules", &rules);
    if (rules > 0)
        printf("\ncaches: %d of %d flows by %d masks; hits: %lld exact, %lld by flow; %lld misses\n",
               flows, max, masks, (long long)exact, (long long)flow, (long long)misses);
}

static enum exit_status show(const struct net_command *wanted)
{
    const struct client_request request = {
        .name = wanted->name, .method = "GET", .path = "/api/v1/net.info"};
    json_t *info = NULL;
    int err = client_ask(&request, &info);

    if (!err && wanted->json) {
        print_json(info);
    } else if (!err) {
        print_ports(info);
        print_uplink_drops(info);
        print_fdb(info);
        print_rules(info);
        print_mirrors(info);
        print_leases(info);
        print_caches(info);
    }
    json_decref(info);
    return status_of(err);
}

/* ---- changes ---- */

/* Takes body over. */
static enum exit_status put(const struct net_command *wanted, const char *path, json_t *body)
{
    struct client_request request = {
        .name = wanted->name, .method = "PUT", .path = path, .body = body, .patient = true};
    int err = client_ask(&request, NULL);

    json_decref(body);
    return status_of(err);
}

/* What fits together depends on what the port has: the switch says. */
static enum exit_status set(const struct net_command *wanted)
{
    return put(wanted, "/api/v1/net.set",
               json_pack("{s:s, s:s}", "port", wanted->first, "settings", wanted->second));
}

static enum exit_status mirror(const struct net_command *wanted)
{
    struct switch_mirror_config config;

    if (switch_mirror_parse("mirror", wanted->first, &config) < 0)
        return STATUS_USAGE;
    return put(wanted, "/api/v1/net.mirror", json_pack("{s:s}", "mirror", wanted->first));
}

static enum exit_status unmirror(const struct net_command *wanted)
{
    return put(wanted, "/api/v1/net.unmirror", json_pack("{s:s}", "name", wanted->first));
}

static enum exit_status add_rule(const struct net_command *wanted)
{
    struct client_request request = {
        .name = wanted->name, .method = "PUT", .path = "/api/v1/net.rule"};
    json_t *body, *reply = NULL;
    struct rule rule;
    int err;

    if (rule_parse("rule", wanted->first, &rule) < 0)
        return STATUS_USAGE;
    body = json_pack("{s:s}", "rule", wanted->first);
    request.body = body;
    err = client_ask(&request, &reply);
    if (!err)
        printf("%lld\n", (long long)json_integer_value(json_object_get(reply, "id")));
    json_decref(reply);
    json_decref(body);
    return status_of(err);
}

static enum exit_status remove_rule(const struct net_command *wanted)
{
    static const struct option_key key = {
        .name = "id", .parse = option_parse_number, .expects = "the number of a rule"};
    unsigned id;

    if (option_set("unrule", &key, wanted->first, &id) < 0)
        return STATUS_USAGE;
    return put(wanted, "/api/v1/net.unrule", json_pack("{s:i}", "id", (int)id));
}

/* ---- captures ---- */

static json_t *absolute_path(const char *path)
{
    char *folder = *path == '/' ? NULL : getcwd(NULL, 0);
    json_t *json = json_sprintf("%s%s%s", folder ? folder : "", folder ? "/" : "", path);

    free(folder);
    return json;
}

/* Until a signal ends it; what is captured meanwhile is written by the other process. */
static enum exit_status capture(const struct net_command *wanted)
{
    char name[NET_NAME_MAX];
    enum exit_status status;
    sigset_t signals;
    int number;

    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGHUP);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    snprintf(name, sizeof(name), "capture-%d", (int)getpid());
    status = put(wanted, "/api/v1/net.capture",
                 json_pack("{s:s, s:s, s:o}", "name", name, "port", wanted->first, "path",
                           absolute_path(wanted->second)));
    if (status != STATUS_OK)
        return status;
    printf("capturing; Ctrl-C ends it\n");
    fflush(stdout);
    (void)sigwait(&signals, &number);
    return put(wanted, "/api/v1/net.capture-stop", json_pack("{s:s}", "name", name));
}

static enum exit_status stop(const struct net_command *wanted)
{
    return put(wanted, "/api/v1/net.capture-stop", json_pack("{s:s}", "name", wanted->first));
}

static enum exit_status trace(const struct net_command *wanted)
{
    struct client_request request = {
        .name = wanted->name, .method = "PUT", .path = "/api/v1/net.trace"};
    json_t *body = json_pack("{s:s, s:s}", "port", wanted->first, "frame", wanted->second);
    json_t *reply = NULL, *line;
    size_t i;
    int err;

    request.body = body;
    err = client_ask(&request, &reply);
    if (!err && wanted->json)
        print_json(reply);
    else
        json_array_foreach(json_object_get(reply, "lines"), i, line)
            puts(json_string_value(line));
    json_decref(reply);
    json_decref(body);
    return status_of(err);
}

/* ---- the command ---- */

static const struct verb {
    const char *name;
    unsigned arguments;
    const char *usage;
    enum exit_status (*run)(const struct net_command *wanted);
} verbs[] = {
    {"set", 2, "PORT KEY=VALUE[,KEY=VALUE...]", set},
    {"rule", 1, "RULE", add_rule},
    {"unrule", 1, "NUMBER", remove_rule},
    {"mirror", 1, "MIRROR,from=PORTS,to=PORT", mirror},
    {"unmirror", 1, "MIRROR", unmirror},
    {"capture", 2, "PORT FILE", capture},
    {"stop", 1, "CAPTURE", stop},
    {"trace", 2, "PORT FRAME", trace},
};

static enum exit_status run_verb(const struct net_command *wanted)
{
    unsigned given = !!wanted->first + !!wanted->second;

    for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++) {
        if (strcmp(verbs[i].name, wanted->verb) != 0)
            continue;
        if (given == verbs[i].arguments)
            return verbs[i].run(wanted);
        log_error("net: %s: %s was expected", verbs[i].name, verbs[i].usage);
        return STATUS_USAGE;
    }
    log_error("net: '%s' is not valid: set, rule, unrule, mirror, unmirror, capture, stop or trace was "
              "expected", wanted->verb);
    return STATUS_USAGE;
}

static enum exit_status look_or_change(void *object)
{
    const struct net_command *wanted = object;

    return wanted->verb ? run_verb(wanted) : wanted->name ? show(wanted) : list(wanted);
}

static enum exit_status run(const struct command *command, int argc, char **argv)
{
    struct net_command wanted = {0};

    return cmd_perform(command, argc, argv, &wanted, look_or_change);
}

const struct command cmd_net = {
    .name = "net",
    .usage = "[--json] [SWITCH [VERB ARGUMENT...]]",
    .summary = "Show switches, or change one.",
    .options = options,
    .operands = operands,
    .notes = "Verbs: set PORT KEY=VALUE[,...]; rule RULE; unrule NUMBER;\n"
             "mirror NAME,from=PORT[+PORT...],to=PORT; unmirror NAME;\n"
             "capture PORT FILE.pcapng; stop CAPTURE; trace PORT FRAME-IN-HEX.\n"
             "'man ferry-net' tells more.",
    .run = run,
};
