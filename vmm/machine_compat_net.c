/*
 * What two processes compare of a guest's network and clock before it moves: the switches and uplinks
 * that its cards find, the rules there that are about the guest, the ports of the host that lead into it,
 * the time of day.
 *
 * Composition root. Main thread, which asks a switch for its rules on the switch's; the destination's
 * switches are there, its machine is not. What the source says is checked like a file's content.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "net/forward.h"
#include "net/rule.h"
#include "net/switch.h"
#include "vmm/machine_compat.h"
#include "vmm/machine_internal.h"
#include "vmm/process_net.h"
#include "vmm/util/loop_thread.h"

/* That two hosts' clocks may differ, the way of the message included. */
#define CLOCK_LIMIT_S 60
#define NETWORK_NAME_MAX 80
#define RULES_TOLD 16u /* of those that are missing, each by itself */

static json_int_t wall_ms(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_REALTIME, &now);
    return (json_int_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Names the network namespace that this process is in: ports are taken once in each. */
static void name_network(char *name, size_t size)
{
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    char boot_id[48] = "";
    struct stat net;

    if (file && fscanf(file, "%47s", boot_id) != 1)
        boot_id[0] = '\0';
    if (file)
        fclose(file);
    name[0] = '\0';
    if (boot_id[0] && stat("/proc/self/ns/net", &net) == 0)
        snprintf(name, size, "%s/%ju", boot_id, (uintmax_t)net.st_ino);
}

/* ---- rules ---- */

/* A list is made of the rules of a switch that have to do with frames of a port. */
struct rules_of_port {
    const struct net_switch *sw;
    const char *port;
    json_t *texts;
};

/* Others are about ports that do not go along. */
static bool concerns(const struct rule *rule, const char *port)
{
    return !rule->in[0] || strcmp(rule->in, port) == 0 || strcmp(rule->in, SWITCH_UPLINK_PORT) == 0;
}

static void list_rule(void *arg, const struct switch_rule_info *info)
{
    const struct rules_of_port *list = arg;
    char text[RULE_TEXT_MAX];

    if (!concerns(info->rule, list->port))
        return;
    rule_format(info->rule, text, sizeof(text));
    json_array_append_new(list->texts, json_string(text));
}

static int list_rules(void *arg)
{
    switch_rules_walk(((struct rules_of_port *)arg)->sw, list_rule, arg);
    return 0;
}

/* ps: NULL: it is to be made, and has none. */
static json_t *rules_about(const struct process_switch *ps, const char *port)
{
    struct rules_of_port list = {.port = port, .texts = json_array()};

    if (ps) {
        list.sw = ps->sw;
        (void)loop_thread_call(ps->thread, list_rules, &list);
    }
    return list.texts;
}

/* ---- the source ---- */

void machine_introduce_network(const struct machine *m, json_t *hello)
{
    json_t *nics = json_object();
    char network[NETWORK_NAME_MAX];

    for (unsigned i = 0; i < m->config->n_nets; i++) {
        const struct process_switch *ps = m->nics[i].net;

        if (ps)
            json_object_set_new(nics, m->nics[i].id,
                                json_pack("{s:s, s:s*, s:s, s:o}", "switch", ps->name, "uplink",
                                          ps->uplink ? ps->mode : NULL, "port",
                                          m->config->nets[i].port.name, "rules",
                                          rules_about(ps, m->config->nets[i].port.name)));
    }
    json_object_set_new(hello, "nics", nics);
    json_object_set_new(hello, "wall_ms", json_integer(wall_ms()));
    name_network(network, sizeof(network));
    json_object_set_new(hello, "network", json_string(network));
}

/* ---- the destination ---- */

static void check_clock(json_t *report, const json_t *hello)
{
    const json_t *there = json_object_get(hello, "wall_ms");
    json_int_t ahead_s;

    if (!json_is_integer(there))
        return;
    ahead_s = (json_integer_value(there) - wall_ms()) / 1000;
    if (ahead_s > CLOCK_LIMIT_S || ahead_s < -CLOCK_LIMIT_S)
        machine_mismatch(report, "clock",
                         json_sprintf("the source's time of day is %lld s %s this host's",
                                      (long long)llabs(ahead_s), ahead_s > 0 ? "ahead of" : "behind"),
                         "set the clocks of both hosts, for example by chronyd");
}

static void check_switch(json_t *report, const char *id, const struct net_options *net,
                         const struct process *process, const json_t *there)
{
    const struct process_switch *ps = process_find_switch(process, net->switch_name);
    const char *uplink = json_string_value(json_object_get(there, "uplink"));

    if (uplink && (!ps || !ps->uplink))
        machine_mismatch(report, id,
                         json_sprintf("its switch '%s' has an uplink at the source (%s), and none here",
                                      net->switch_name, uplink),
                         "describe it to 'ferry receive': --switch NAME,uplink=MODE,...");
}

/* The rule as it is to be here, where the guest's port may have another name. False: it is none. */
static bool translate(const char *there, const char *port_there, const char *port, char *text, size_t size)
{
    struct rule rule;

    if (strlen(there) >= RULE_TEXT_MAX || rule_parse("the source's rule", there, &rule) < 0)
        return false;
    if (port_there && strcmp(rule.in, port_there) == 0)
        memcpy(rule.in, port, sizeof(rule.in));
    rule_format(&rule, text, size);
    return true;
}

/* The texts as keys: there may be tens of thousands on either side. */
static json_t *set_of(json_t *texts)
{
    json_t *set = json_object(), *text;
    size_t i;

    json_array_foreach(texts, i, text)
        json_object_set_new(set, json_string_value(text), json_true());
    json_decref(texts);
    return set;
}

/* What a rule there kept from the guest, or the guest from others, would pass here. More rules here are
 * this host's affair. */
static void check_rules(json_t *report, const char *id, const struct net_options *net,
                        const struct process *process, const json_t *there)
{
    const char *port = json_string_value(json_object_get(there, "port"));
    const json_t *rules = json_object_get(there, "rules");
    json_t *here = set_of(rules_about(process_find_switch(process, net->switch_name), net->port.name));
    unsigned missing = 0;
    char text[RULE_TEXT_MAX];

    for (size_t i = 0; i < json_array_size(rules) && missing <= RULES_TOLD; i++) {
        const char *rule = json_string_value(json_array_get(rules, i));
        bool known = rule && translate(rule, port, net->port.name, text, sizeof(text));

        if (known && json_object_get(here, text))
            continue;
        machine_mismatch(report, id,
                         missing++ == RULES_TOLD ? json_string("more rules are missing here")
                         : !known ? json_sprintf("its switch '%s' has a rule at the source that this ferry "
                                                 "cannot read", net->switch_name)
                                  : json_sprintf("its switch '%s' has a rule at the source that is not one "
                                                 "here: %s", net->switch_name, rule),
                         "give the rules to 'ferry receive': --switch NAME,rules=FILE; or take this one "
                         "away there, by 'ferry net NAME unrule'");
    }
    json_decref(here);
}

/* 0, or why nobody can listen there. */
static int try_port(const struct net_forward *forward)
{
    const struct sockaddr_in address = {.sin_family = AF_INET,
                                        .sin_port = htons(forward->host_port),
                                        .sin_addr = forward->host_addr};
    const int on = 1;
    int fd = socket(AF_INET, (forward->udp ? SOCK_DGRAM : SOCK_STREAM) | SOCK_CLOEXEC, 0), err = 0;

    if (fd < 0)
        return 0;
    if (!forward->udp)
        (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
        err = -errno;
    close(fd);
    return err;
}

/* Whether the source's sockets and ours are in one network namespace of one host. */
static bool shares_network(const json_t *hello)
{
    const char *there = json_string_value(json_object_get(hello, "network"));
    char here[NETWORK_NAME_MAX];

    name_network(here, sizeof(here));
    return there && here[0] && strcmp(there, here) == 0;
}

/* What the guest's own process has, it lets go when it gives the guest away. */
static void check_forwards(json_t *report, const char *id, const struct uplink_config *uplink,
                           bool shared)
{
    for (unsigned i = 0; i < uplink->n_forwards; i++) {
        int err = try_port(&uplink->forwards[i]);

        if (err && !(err == -EADDRINUSE && shared && uplink_hands_forwards_over(uplink)))
            machine_mismatch(report, id,
                             json_sprintf("port %u of this host, which leads to the guest: %s",
                                          uplink->forwards[i].host_port, strerror(-err)),
                             "free it; if it is the guest's own passt that has it, on this same "
                             "host, the guest cannot move within the host");
    }
}

void machine_compare_network(const struct machine_config *config, const struct process *process,
                             const json_t *hello, json_t *report)
{
    const json_t *nics = json_object_get(hello, "nics");

    check_clock(report, hello);
    for (unsigned i = 0; i < config->n_nets; i++) {
        const struct net_options *net = &config->nets[i];
        char id[16];

        snprintf(id, sizeof(id), "net%u", i);
        if (net->switch_name[0]) {
            check_switch(report, id, net, process, json_object_get(nics, id));
            check_rules(report, id, net, process, json_object_get(nics, id));
        } else {
            check_forwards(report, id, &net->uplink, shares_network(hello));
        }
    }
}
