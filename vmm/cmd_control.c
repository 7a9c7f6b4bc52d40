/*
 * `ferry pause`, `resume`, `reboot`, `stop`: one request to the control socket of a guest.
 *
 * Main thread; no locks.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/client.h"
#include "vmm/cmd.h"

struct control_options {
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

static const char *path_of(const struct command *command, const struct control_options *wanted)
{
    if (command == &cmd_pause)
        return "/api/v1/vm.pause";
    if (command == &cmd_resume)
        return "/api/v1/vm.resume";
    if (command == &cmd_reboot)
        return "/api/v1/vm.reboot";
    return wanted->force ? "/api/v1/vm.shutdown" : "/api/v1/vm.power-button";
}

static enum exit_status run(const struct command *command, int argc, char **argv)
{
    struct control_options wanted = {0};
    struct client_request request = {.method = "PUT"};
    enum exit_status status = STATUS_USAGE;
    json_t *body = NULL;

    switch (cmd_parse(command, argc, argv, &wanted)) {
    case CMD_HELPED:
        status = STATUS_OK;
        break;
    case CMD_WRONG:
        break;
    case CMD_PARSED:
        request.name = wanted.name;
        if (command == &cmd_resume && wanted.force)
            request.body = body = json_pack("{s:b}", "force", 1);
        request.path = path_of(command, &wanted);
        switch (client_ask(&request, NULL)) {
        case 0: status = STATUS_OK; break;
        case -ENOENT:
        case -EINVAL: status = STATUS_USAGE; break;
        default: status = STATUS_FAILED; break;
        }
        break;
    }
    json_decref(body);
    free(wanted.name);
    return status;
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
