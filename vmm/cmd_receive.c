/*
 * `ferry receive`: waits for a guest of another ferry, compares, and goes on with it.
 *
 * Does not read what the control socket asks for (cmd_receive_order.c). Main thread. What comes before the
 * machine exists blocks: nothing else runs here yet.
 */
#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vmm/cmd_receive_internal.h"
#include "vmm/machine_compat.h"
#include "vmm/machine_json.h"
#include "vmm/machine_receive.h"
#include "vmm/util/log.h"

static int read_switch(void *object, const char *text)
{
    return cmd_add_switch(&((struct receive_options *)object)->switches, text);
}

#define AT(field) offsetof(struct receive_options, field)

static const struct cmd_operand operands[] = {
    {"ADDRESS",
     {.name = "address", .parse = option_parse_string, .offset = AT(address),
      .expects = "tcp:HOST:PORT, tls:HOST:PORT or unix:PATH"}},
    {0},
};

static const struct cmd_option options[] = {
    {0, "TEXT", "as it had", "name of the guest",
     {.name = "name", .parse = option_parse_string, .offset = AT(name), .expects = "a name"}, NULL},
    {'s', "NAME", "none", "switch for the guest's cards; more: NAME,uplink=MODE;\nrepeat",
     {.name = "switch"}, read_switch},
    {0, "HOST", "any", "take a guest of that host only (tcp:, tls:)",
     {.name = "from", .parse = option_parse_string, .offset = AT(from),
      .expects = "a host's name or address"}, NULL},
    {0, "DIR", TLS_FOLDER, "certificates for tls:, server-*.pem",
     {.name = "tls", .parse = option_parse_string, .offset = AT(tls), .expects = "a folder"}, NULL},
    {0, NULL, "off", "end when a guest does not come after all",
     {.name = "once", .parse = option_parse_bool, .offset = AT(once)}, NULL},
    {'v', NULL, "off", "say more; twice for everything",
     {.name = "verbose", .parse = cmd_count_up, .offset = AT(verbose)}, NULL},
    {0},
};

static int read_config(struct visit *v)
{
    const struct snapshot_section *section = snapshot_find(&v->hello, STREAM_CONFIG, NULL);

    if (section)
        return machine_config_from_json(&v->config, section->payload, v->wanted->name,
                                        "the source");
    log_error("the source does not say what machine its guest is of");
    return -EBADMSG;
}

static void add_failure(json_t *report)
{
    json_array_append_new(report,
                          json_pack("{s:s, s:s, s:s}", "what", "machine", "why",
                                    "it cannot be built here", "fix",
                                    "the message of 'ferry receive' there says what is missing"));
}

static void print_report(const json_t *report)
{
    const json_t *one;
    size_t i;

    json_array_foreach(report, i, one)
        log_warn("the guest does not fit: %s: %s", json_string_value(json_object_get(one, "what")),
                 json_string_value(json_object_get(one, "why")));
}

/* What was asked for here, instead of what the guest was started with. */
static void apply_wishes(struct visit *v, json_t *report)
{
    const struct receive_options *w = v->wanted;
    bool has = v->config.console == CONSOLE_VIRTIO;

    if (w->has_grace)
        v->config.grace_s = w->grace_s;
    if (w->no_reboot)
        v->config.no_reboot = true;
    if (!w->has_console)
        return;
    if (has == (w->console == CONSOLE_VIRTIO))
        v->config.console = w->console;
    else
        machine_mismatch(report, "console",
                         json_sprintf("the guest has %s virtio console, which --console %s here",
                                      has ? "a" : "no", has ? "leaves out" : "wants"),
                         has ? "leave --console out there, or say virtio"
                             : "leave --console out there, or say serial or off");
}

/* Builds the machine as far as that goes, and answers what stands against it. 0: nothing. */
static int compare(struct visit *v)
{
    bool shared = v->memory_fd >= 0, check = machine_asks_to_check(&v->hello);
    json_t *report = json_array();
    char *text;
    int err;

    apply_wishes(v, report);
    err = machine_compare_host(&v->config, v->process, v->processor, &v->hello, shared,
                               report);
    if (!err && json_array_size(report) == 0) {
        int fd = v->memory_fd;

        v->memory_fd = -1;
        if (machine_create_incoming(&v->machine, v->process, &v->config, fd) < 0)
            add_failure(report);
        else
            err = machine_compare_devices(v->machine, &v->hello, report);
    }
    text = err ? NULL : json_dumps(report, JSON_COMPACT);
    if (!err)
        err = text ? target_report(v->target, text) : -ENOMEM;
    if (!err && (check || json_array_size(report) > 0))
        err = check && json_array_size(report) == 0 ? -EALREADY : -EINVAL;
    print_report(report);
    free(text);
    json_decref(report);
    return err;
}

int receive_guest(struct visit *v)
{
    int err = read_config(v);

    if (!err && !v->process) {
        snprintf(v->process_name, sizeof(v->process_name), "incoming-%ld", (long)getpid());
        err = process_create(&v->process, v->process_name);
        if (!err)
            err = cmd_make_switches(&v->wanted->switches, v->process);
    }
    if (!err)
        err = compare(v);
    return err ? err : machine_arrive(v->machine, v->target);
}

void receive_end_visit(struct visit *v)
{
    snapshot_fini(&v->hello);
    target_destroy(v->target);
    if (v->memory_fd >= 0)
        close(v->memory_fd);
}

static int take_in(struct visit *v)
{
    int err = target_hello(v->target, &v->hello, &v->memory_fd);

    return err ? err : receive_guest(v);
}

/* The process held them back for its loop; whoever waits for the next source is to die of them. */
static void release_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
}

void receive_close(struct door *door)
{
    if (door->fd >= 0)
        link_unlisten(&door->address, door->fd);
    door->fd = -1;
    tls_identity_destroy(door->identity);
    door->identity = NULL;
    state_buffer_fini(&door->processor);
}

int receive_open(struct door *door, const char *address, const char *from, const char *tls,
                 char why[TLS_REASON_MAX])
{
    int err = 0;

    *door = (struct door){.fd = -1, .terms = {.from = from, .cancel_fd = -1}};
    why[0] = '\0';
    if (link_parse(&door->address, address) < 0) {
        snprintf(why, TLS_REASON_MAX, "'%s' is not valid: tcp:HOST:PORT, tls:HOST:PORT or unix:PATH "
                 "was expected", address);
        return -EINVAL;
    }
    if (tls && !door->address.is_tls) {
        snprintf(why, TLS_REASON_MAX, "certificates go with tls:HOST:PORT; by '%s' nothing would be "
                 "encrypted", address);
        return -EINVAL;
    }
    if (door->address.is_tls)
        err = tls_identity_create(&door->identity, tls, true, why);
    door->terms.identity = door->identity;
    /* Without it any guest is refused, and told so. */
    if (!err)
        (void)machine_describe_processor(&door->processor);
    if (!err)
        err = link_listen(&door->address, &door->fd);
    if (err)
        receive_close(door);
    return err == -EINVAL ? -EIO : err;
}

/* True: the guest came, and *status says how it ended. */
static bool serve(const struct receive_options *wanted, struct door *door, struct link *link,
                  enum exit_status *status)
{
    struct visit v = {.wanted = wanted, .processor = &door->processor, .memory_fd = -1};
    bool ended_by_signal = false;
    int err;

    machine_config_init(&v.config);
    err = target_create(&v.target, link);
    if (!err)
        target_set_door(v.target, door->fd, &door->terms);
    if (!err)
        err = take_in(&v);
    if (err && v.target && !target_has_answered(v.target))
        target_refuse(v.target, "it cannot be taken there; the log there says why");
    receive_end_visit(&v);
    if (!err) {
        receive_close(door);
        *status = cmd_run_machine(v.process, v.machine);
        machine_config_fini(&v.config);
        return true;
    }
    if (v.machine) {
        int number;

        (void)machine_outcome(v.machine, &number);
        ended_by_signal = number != 0;
        *status = STATUS_SIGNAL + (unsigned)number;
    }
    process_destroy(v.process);
    machine_config_fini(&v.config);
    release_signals();
    if (ended_by_signal)
        return true;
    *status = err == -EALREADY ? STATUS_OK : STATUS_FAILED;
    return wanted->once;
}

/* Says where, so that a port that the system chose is known. */
static void tell_address(const struct door *door)
{
    if (door->address.is_unix)
        log_info("waiting for a guest at %s", door->address.path);
    else
        log_info("waiting for a guest on port %u", link_port(door->fd));
}

enum exit_status cmd_receive_guest(const struct receive_options *wanted)
{
    enum exit_status status = STATUS_FAILED;
    char why[TLS_REASON_MAX];
    struct door door;
    struct link *link;
    int err;

    if (!wanted->address)
        return receive_by_order(wanted);
    if (wanted->from && strncmp(wanted->address, "unix:", 5) == 0) {
        log_error("--from does not go together with unix:PATH: who may open the socket may come");
        return STATUS_USAGE;
    }
    err = receive_open(&door, wanted->address, wanted->from, wanted->tls, why);
    if (err == -EINVAL)
        log_error("%s: %s", wanted->place ? wanted->place : "ADDRESS", why);
    if (err)
        return STATUS_USAGE;
    tell_address(&door);
    while (link_accept(&link, door.fd, &door.terms) == 0)
        if (serve(wanted, &door, link, &status))
            break;
    receive_close(&door);
    return status;
}

static enum exit_status receive(void *object)
{
    const struct receive_options *wanted = object;

    cmd_set_verbosity(wanted->verbose);
    return cmd_receive_guest(wanted);
}

static enum exit_status run(const struct command *command, int argc, char **argv)
{
    struct receive_options wanted = {0};
    enum exit_status status = cmd_perform(command, argc, argv, &wanted, receive);

    cmd_free_switches(&wanted.switches);
    return status;
}

const struct command cmd_receive = {
    .name = "receive",
    .usage = "[OPTION]... [ADDRESS]",
    .summary = "Wait for a guest that migrates here, and go on with it.",
    .options = options,
    .operands = operands,
    .notes = "ADDRESS: tcp:HOST:PORT or tls:HOST:PORT (HOST may be empty: any), or unix:PATH.\n"
             "Without it the control socket says where: PUT /api/v1/vm.receive-migration.\n"
             "Exit status: as of 'ferry run'.",
    .run = run,
};
