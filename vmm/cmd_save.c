/*
 * `ferry save` and `ferry restore`: a guest into a file, and out of it.
 *
 * Main thread; no locks. Saving is done by the process that runs the guest; this one asks it to.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "migration/snapshot.h"
#include "vmm/client.h"
#include "vmm/cmd.h"
#include "vmm/lab_switch.h"
#include "vmm/machine.h"
#include "vmm/machine_json.h"
#include "vmm/process.h"
#include "vmm/util/log.h"

/* ---- save ---- */

struct save_options {
    char *name;
    char *file;
    bool live;
    bool json;
};

static const struct cmd_operand save_operands[] = {
    {"NAME",
     {.name = "name", .parse = option_parse_string, .expects = "the name of a guest",
      .offset = offsetof(struct save_options, name), .required = true}},
    {"FILE",
     {.name = "file", .parse = option_parse_string, .expects = "the path of a file to write",
      .offset = offsetof(struct save_options, file), .required = true}},
    {0},
};

static const struct cmd_option save_options[] = {
    {0, NULL, "off", "write while it runs; stop it for the rest alone",
     {.name = "live", .parse = option_parse_bool, .offset = offsetof(struct save_options, live)},
     NULL},
    {0, NULL, "off", "print a summary as JSON",
     {.name = "json", .parse = option_parse_bool, .offset = offsetof(struct save_options, json)},
     NULL},
    {0},
};

/* The other process has another working directory. */
static json_t *destination(const char *file, bool live)
{
    char *folder = *file == '/' ? NULL : getcwd(NULL, 0);
    json_t *body = json_pack("{s:b, s:o}", "live", live, "destination_url",
                             json_sprintf("file://%s%s%s", folder ? folder : "", folder ? "/" : "",
                                          file));

    free(folder);
    return body;
}

static enum exit_status ask_to_save(void *object)
{
    const struct save_options *wanted = object;
    struct client_request request = {
        .name = wanted->name, .method = "PUT", .path = "/api/v1/vm.snapshot", .patient = true};
    json_t *body = destination(wanted->file, wanted->live), *summary = NULL;
    int err;

    request.body = body;
    err = client_ask(&request, &summary);
    if (!err && wanted->json && summary) {
        json_dumpf(summary, stdout, JSON_INDENT(2));
        putchar('\n');
    }
    json_decref(summary);
    json_decref(body);
    if (err == -ENOENT || err == -EINVAL)
        return STATUS_USAGE;
    return err ? STATUS_FAILED : STATUS_OK;
}

static enum exit_status save(const struct command *command, int argc, char **argv)
{
    struct save_options wanted = {0};

    return cmd_perform(command, argc, argv, &wanted, ask_to_save);
}

const struct command cmd_save = {
    .name = "save",
    .usage = "[OPTION]... NAME FILE",
    .summary = "Write a guest to a file and end it.",
    .options = save_options,
    .operands = save_operands,
    .notes = "The guest runs on if it cannot be saved. Its disks are not part of the file:\n"
             "leave them as they are until it is restored.",
    .run = save,
};

/* ---- restore ---- */

struct restore_options {
    char *file;
    char *name;
    bool lazy;
    bool fresh_macs;
    unsigned verbose;
    struct cmd_switches switches;
};

static int read_switch(void *object, const char *text)
{
    return cmd_add_switch(&((struct restore_options *)object)->switches, text);
}

static const struct cmd_operand restore_operands[] = {
    {"FILE",
     {.name = "file", .parse = option_parse_string, .expects = "the path of a saved guest",
      .offset = offsetof(struct restore_options, file), .required = true}},
    {0},
};

static const struct cmd_option restore_options[] = {
    {0, "TEXT", "as saved", "name of the guest",
     {.name = "name", .parse = option_parse_string,
      .offset = offsetof(struct restore_options, name), .expects = "a name"}, NULL},
    {0, NULL, "off", "give its network cards new addresses",
     {.name = "fresh-macs", .parse = option_parse_bool,
      .offset = offsetof(struct restore_options, fresh_macs)}, NULL},
    {0, NULL, "off", "run at once: read memory when it is touched",
     {.name = "lazy", .parse = option_parse_bool, .offset = offsetof(struct restore_options, lazy)},
     NULL},
    {'s', "NAME", "as saved", "switch for its cards; more: NAME,uplink=MODE;\nrepeat",
     {.name = "switch"}, read_switch},
    {'v', NULL, "off", "say more; twice for everything",
     {.name = "verbose", .parse = cmd_count_up,
      .offset = offsetof(struct restore_options, verbose)}, NULL},
    {0},
};

static int make_config(struct machine_config *config, const struct snapshot *snapshot,
                       const struct restore_options *wanted)
{
    const struct snapshot_section *section = snapshot_find(snapshot, STREAM_CONFIG, NULL);

    if (section)
        return machine_config_from_json(config, section->payload, wanted->name, wanted->file);
    log_error("%s: it does not say what machine it is of", wanted->file);
    return -EBADMSG;
}

/* The file's switches are made beside those that were asked for, which replace what has their names. */
static int add_saved_switches(const struct snapshot *snapshot, struct cmd_switches *switches)
{
    const struct snapshot_section *section = snapshot_find(snapshot, STREAM_CONFIG, NULL);
    json_t *json = section ? json_loads(section->payload, 0, NULL) : NULL;
    json_t *one;
    size_t i;
    int err = 0;

    json_array_foreach(json_object_get(json, "switches"), i, one) {
        const char *text = json_string_value(one);
        bool named_before = false;
        unsigned last = switches->n;

        err = text ? cmd_add_switch(switches, text) : -EINVAL;
        if (err)
            break;
        for (unsigned s = 0; s < last; s++)
            named_before |= strcmp(switches->list[s].name, switches->list[last].name) == 0;
        if (named_before)
            switch_options_fini(&switches->list[--switches->n]);
    }
    json_decref(json);
    return err;
}

/* Builds the machine from the file, which is not needed any more afterwards, unless it is lazy. */
static int restore_machine(struct process **process, struct machine **machine,
                           struct machine_config *config, struct restore_options *wanted)
{
    struct stream_reader reader = {.fd = open(wanted->file, O_RDONLY | O_CLOEXEC),
                                   .name = wanted->file};
    struct snapshot snapshot = {0};
    int err;

    if (reader.fd < 0) {
        err = -errno;
        log_error("cannot open the saved guest %s: %s", wanted->file, strerror(-err));
        return err;
    }
    err = snapshot_read(&snapshot, &reader);
    if (!err)
        err = make_config(config, &snapshot, wanted);
    if (!err && wanted->fresh_macs)
        err = machine_config_draw_macs(config);
    if (!err)
        err = add_saved_switches(&snapshot, &wanted->switches);
    if (!err)
        err = process_create(process, config->name);
    if (!err)
        err = cmd_make_switches(&wanted->switches, *process);
    if (!err)
        err = machine_restore(machine, *process, config, &snapshot, &reader, wanted->lazy,
                              wanted->fresh_macs);
    snapshot_fini(&snapshot);
    close(reader.fd);
    return err;
}

static enum exit_status restore_and_run(void *object)
{
    struct restore_options *wanted = object;
    enum exit_status status;
    struct machine_config config;
    struct process *process = NULL;
    struct machine *machine = NULL;
    int err;

    cmd_set_verbosity(wanted->verbose);
    machine_config_init(&config);
    err = restore_machine(&process, &machine, &config, wanted);
    if (!err) {
        status = cmd_run_machine(process, machine);
    } else {
        process_destroy(process);
        status = err == -EOPNOTSUPP ? STATUS_HOST : STATUS_USAGE;
    }
    machine_config_fini(&config);
    return status;
}

static enum exit_status restore(const struct command *command, int argc, char **argv)
{
    struct restore_options wanted = {0};
    enum exit_status status = cmd_perform(command, argc, argv, &wanted, restore_and_run);

    cmd_free_switches(&wanted.switches);
    return status;
}

const struct command cmd_restore = {
    .name = "restore",
    .usage = "[OPTION]... FILE",
    .summary = "Go on with a guest that was saved.",
    .options = restore_options,
    .operands = restore_operands,
    .notes = "Exit status: as of 'ferry run'.",
    .run = restore,
};
