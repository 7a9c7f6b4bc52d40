/*
 * `ferry receive`: waits for a guest of another ferry, compares, and goes on with it.
 *
 * Main thread. What comes before the machine exists blocks: nothing else runs here yet.
 */
#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "migration/target.h"
#include "vmm/cmd.h"
#include "vmm/machine.h"
#include "vmm/machine_compat.h"
#include "vmm/machine_json.h"
#include "vmm/machine_receive.h"
#include "vmm/process.h"
#include "vmm/util/log.h"

struct receive_options {
    char *address;
    char *name;
    char *from;
    char *tls;
    bool once;
    unsigned verbose;
    struct cmd_switches switches;
};

static int read_switch(void *object, const char *text)
{
    return cmd_add_switch(&((struct receive_options *)object)->switches, text);
}

#define AT(field) offsetof(struct receive_options, field)

static const struct cmd_operand operands[] = {
    {"ADDRESS",
     {.name = "address", .parse = option_parse_string, .offset = AT(address), .required = true,
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

/* One attempt of one source. */
struct visit {
    const struct receive_options *wanted;
    const struct state_buffer *processor; /* borrowed: this host's */
    struct target *target;
    struct snapshot hello;
    int memory_fd;
    struct machine_config config;
    char process_name[32]; /* until the guest's own name is free */
    struct process *process;
    struct machine *machine;
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

/* Builds the machine as far as that goes, and answers what stands against it. 0: nothing. */
static int compare(struct visit *v)
{
    bool shared = v->memory_fd >= 0, check = machine_asks_to_check(&v->hello);
    json_t *report = json_array();
    char *text;
    int err = machine_compare_host(&v->config, v->process, v->processor, &v->hello, shared,
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

static int take_in(struct visit *v)
{
    int err = target_hello(v->target, &v->hello, &v->memory_fd);

    if (!err)
        err = read_config(v);
    if (err)
        return err;
    snprintf(v->process_name, sizeof(v->process_name), "incoming-%ld", (long)getpid());
    err = process_create(&v->process, v->process_name);
    if (!err)
        err = cmd_make_switches(&v->wanted->switches, v->process);
    if (!err)
        err = compare(v);
    return err ? err : machine_arrive(v->machine, v->target);
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

/* Where guests may come. */
struct door {
    struct link_address address;
    int fd; /* owns; -1: closed, a guest has come */
    struct link_terms terms;
    struct tls_identity *identity; /* owns; NULL: not by TLS */
    struct state_buffer processor; /* owns: what a vCPU is here */
};

static void close_door(struct door *door)
{
    link_unlisten(&door->address, door->fd);
    door->fd = -1;
    state_buffer_fini(&door->processor);
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
    if (err == -EOPNOTSUPP)
        target_refuse(v.target, "what it needs is not known here; the log there says what");
    snapshot_fini(&v.hello);
    target_destroy(v.target);
    if (v.memory_fd >= 0)
        close(v.memory_fd);
    if (!err) {
        close_door(door);
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

static enum exit_status wait_for_guest(const struct receive_options *wanted)
{
    enum exit_status status = STATUS_FAILED;
    struct door door = {.fd = -1, .terms = {.from = wanted->from, .cancel_fd = -1}};
    struct link *link;

    if (link_parse(&door.address, wanted->address) < 0) {
        log_error("ADDRESS: '%s' is not valid: tcp:HOST:PORT, tls:HOST:PORT or unix:PATH was "
                  "expected",
                  wanted->address);
        return STATUS_USAGE;
    }
    if (wanted->from && door.address.is_unix) {
        log_error("--from does not go together with unix:PATH: who may open the socket may come");
        return STATUS_USAGE;
    }
    if (door.address.is_tls &&
        tls_identity_create(&door.identity, wanted->tls, true, NULL) < 0)
        return STATUS_USAGE;
    door.terms.identity = door.identity;
    /* Without it any guest is refused, and told so. */
    (void)machine_describe_processor(&door.processor);
    if (link_listen(&door.address, &door.fd) < 0) {
        state_buffer_fini(&door.processor);
        tls_identity_destroy(door.identity);
        return STATUS_USAGE;
    }
    tell_address(&door);
    while (link_accept(&link, door.fd, &door.terms) == 0)
        if (serve(wanted, &door, link, &status))
            break;
    close_door(&door);
    tls_identity_destroy(door.identity);
    return status;
}

enum exit_status cmd_receive_guest(char *address, char *name, const struct cmd_switches *switches)
{
    const struct receive_options wanted = {
        .address = address, .name = name, .switches = *switches};

    return wait_for_guest(&wanted);
}

static enum exit_status receive(const struct command *command, int argc, char **argv)
{
    enum exit_status status = STATUS_USAGE;
    struct receive_options wanted = {0};

    switch (cmd_parse(command, argc, argv, &wanted)) {
    case CMD_HELPED:
        status = STATUS_OK;
        break;
    case CMD_WRONG:
        break;
    case CMD_PARSED:
        cmd_set_verbosity(wanted.verbose);
        status = wait_for_guest(&wanted);
        break;
    }
    free(wanted.address);
    free(wanted.name);
    free(wanted.from);
    free(wanted.tls);
    cmd_free_switches(&wanted.switches);
    return status;
}

const struct command cmd_receive = {
    .name = "receive",
    .usage = "[OPTION]... ADDRESS",
    .summary = "Wait for a guest that migrates here, and go on with it.",
    .options = options,
    .operands = operands,
    .notes = "ADDRESS: tcp:HOST:PORT or tls:HOST:PORT (HOST may be empty: any), or unix:PATH.\n"
             "Exit status: as of 'ferry run'.",
    .run = receive,
};
