/*
 * `ferry ps`: the guests that run, each asked by its control socket.
 *
 * A socket that nobody answers is of a process that was killed: it is passed over. Main thread.
 */
#include <errno.h>
#include <jansson.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "vmm/client.h"
#include "vmm/cmd.h"

struct ps_options {
    bool json;
};

static const struct cmd_option options[] = {
    {0, NULL, "off", "print JSON",
     {.name = "json", .parse = option_parse_bool, .offset = offsetof(struct ps_options, json)},
     NULL},
    {0},
};

static void ask(void *arg, const char *name)
{
    const struct client_request request = {
        .name = name, .method = "GET", .path = "/api/v1/vm.info", .quiet = true};
    json_t *guests = arg, *info;

    if (client_ask(&request, &info) == 0 && info)
        json_array_append_new(guests, info);
}

static void print_guest(const json_t *guest)
{
    const char *name = "?", *state = "?";
    json_int_t pid = 0, cpus = 0, memory = 0;
    char size[OPTION_SIZE_MAX];

    json_unpack((json_t *)guest, "{s:s, s:s, s:I, s:{s:{s:I}, s:{s:I}}}", "name", &name, "state",
                &state, "pid", &pid, "config", "cpus", "boot_vcpus", &cpus, "memory", "size",
                &memory);
    option_format_size((uint64_t)memory, size, sizeof(size));
    printf("%-24s %8lld  %-8s %4lld  %7s\n", name, (long long)pid, state, (long long)cpus, size);
}

static enum exit_status run(const struct command *command, int argc, char **argv)
{
    struct ps_options wanted = {0};
    json_t *guests, *guest;
    size_t i;

    switch (cmd_parse(command, argc, argv, &wanted)) {
    case CMD_HELPED: return STATUS_OK;
    case CMD_WRONG: return STATUS_USAGE;
    case CMD_PARSED: break;
    }
    guests = json_array();
    if (client_names(ask, guests) < 0) {
        json_decref(guests);
        return STATUS_FAILED;
    }
    if (wanted.json) {
        json_dumpf(guests, stdout, JSON_INDENT(2));
        putchar('\n');
    } else {
        printf("%-24s %8s  %-8s %4s  %7s\n", "NAME", "PID", "STATE", "CPUS", "MEMORY");
        json_array_foreach(guests, i, guest)
            print_guest(guest);
    }
    json_decref(guests);
    return STATUS_OK;
}

const struct command cmd_ps = {
    .name = "ps",
    .usage = "[OPTION]...",
    .summary = "List the guests that run.",
    .options = options,
    .run = run,
};
