/*
 * `ferry pause`, `resume`, `reboot`, `stop`: one request to the control socket of a guest.
 *
 * Main thread; no locks.
 */
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "vmm/client.h"
#include "vmm/cmd.h"

struct control_options {
    const struct command *command; /* borrowed */
    char *name;
    bool force;
};

static const struct cmd_operand operands[] = {
    {"NAME",
     {.name = "name", .parse = option_parse_string, .expects = "the name of a guest",
      .offset = offsetof(struct control_options, name), .required = true}},
    {0},
};

static const struct cmd_option no_options[] = {{0}};

static const struct cmd_option stop_options[] = {
    {'f', NULL, "off", "end the guest at once, without asking it",
     {.name = "force", .parse = option_parse_bool,
      .offset = offsetof(struct control_options, force)}, NULL},
    {0},
};

static const struct cmd_option resume_options[] = {
    {'f', NULL, "off", "although it may run in another process, after a\nmigration that was cut off",
     {.name = "force", .parse = option_parse_bool,
      .offset = offsetof(struct control_options, force)}, NULL},
    {0},
};

static const char *path_of(const struct control_options *wanted)
{
    const struct command *command = wanted->command;

    if (command == &cmd_pause)
        return "/api/v1/vm.pause";
    if (command == &cmd_resume)
        return "/api/v1/vm.resume";
    if (command == &cmd_reboot)
        return "/api/v1/vm.reboot";
    return wanted->force ? "/api/v1/vm.shutdown" : "/api/v1/vm.power-button";
}

static enum exit_status ask(void *object)
{
    const struct control_options *wanted = object;
    struct client_request request = {
        .name = wanted->name, .method = "PUT", .path = path_of(wanted)};
    json_t *body = NULL;
    int err;

    if (wanted->command == &cmd_resume && wanted->force)
        request.body = body = json_pack("{s:b}", "force", 1);
    err = client_ask(&request, NULL);
    json_decref(body);
    switch (err) {
    case 0: return STATUS_OK;
    case -ENOENT:
    case -EINVAL: return STATUS_USAGE;
    default: return STATUS_FAILED;
    }
}

static enum exit_status run(const struct command *command, int argc, char **argv)
{
    struct control_options wanted = {.command = command};

    return cmd_perform(command, argc, argv, &wanted, ask);
}

#define CONTROL_COMMAND(name_, summary_, options_, usage_)                                         \
    const struct command cmd_##name_ = {                                                           \
        .name = #name_,                                                                            \
        .usage = usage_,                                                                           \
        .summary = summary_,                                                                       \
        .options = options_,                                                                       \
        .operands = operands,                                                                      \
        .run = run,                                                                                \
    }

CONTROL_COMMAND(pause, "Stop a guest's CPUs until it is resumed.", no_options, "NAME");
CONTROL_COMMAND(resume, "Let a paused guest run on.", resume_options, "[-f] NAME");
CONTROL_COMMAND(reboot, "Reset a guest, as its reset button would.", no_options, "NAME");
CONTROL_COMMAND(stop, "Press a guest's power button, or end it.", stop_options, "[-f] NAME");
