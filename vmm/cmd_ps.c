/*
 * `ferry ps`: the guests that run, each process asked by its control socket.
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
#include "vmm/control.h"

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
        .name = name, .method = "GET", .path = "/api/v1/vmm.guests", .quiet = true};
    json_t *guests = arg, *some = NULL;

    if (client_ask(&request, &some) != 0)
        control_sweep(name);
    else if (json_is_array(some))
        json_array_extend(guests, some);
    json_decref(some);
}

/* A guest in a process of its own has that process's name. */
static void print_name(const char *process, const char *guest)
{
    char name[2 * CONTROL_NAME_MAX + 2];

    snprintf(name, sizeof(name), "%s%s%s", strcmp(process, guest) == 0 ? "" : process,
             strcmp(process, guest) == 0 ? "" : "/", guest);
    printf("%-24s", name);
}

static void print_past_guest(const json_t *guest)
{
    const char *name = "?", *process = "?", *reason = "?";
    json_int_t pid = 0;

    json_unpack((json_t *)guest, "{s:s, s:s, s:I, s:s}", "name", &name, "process", &process, "pid",
                &pid, "reason", &reason);
    print_name(process, name);
    printf(" %8lld  Shutdown (%s)\n", (long long)pid, reason);
}

static void print_guest(const json_t *guest)
{
    const char *name = "?", *process = "?", *state = "?";
    json_int_t pid = 0, cpus = 0, memory = 0;
    char size[OPTION_SIZE_MAX];

    json_unpack((json_t *)guest, "{s:s, s:s, s:s, s:I, s:{s:{s:I}, s:{s:I}}}", "name", &name,
                "process", &process, "state", &state, "pid", &pid, "config", "cpus", "boot_vcpus",
                &cpus, "memory", "size", &memory);
    option_format_size((uint64_t)memory, size, sizeof(size));
    print_name(process, name);
    printf(" %8lld  %-8s %4lld  %7s\n", (long long)pid, state, (long long)cpus, size);
}

static enum exit_status list(void *object)
{
    const struct ps_options *wanted = object;
    json_t *guests, *guest;
    size_t i;

    guests = json_array();
    if (client_names(ask, guests) < 0) {
        json_decref(guests);
        return STATUS_FAILED;
    }
    if (wanted->json) {
        json_dumpf(guests, stdout, JSON_INDENT(2));
        putchar('\n');
    } else {
        printf("%-24s %8s  %-8s %4s  %7s\n", "NAME", "PID", "STATE", "CPUS", "MEMORY");
        json_array_foreach(guests, i, guest) {
            if (json_object_get(guest, "reason"))
                print_past_guest(guest);
            else
                print_guest(guest);
        }
    }
    json_decref(guests);
    return STATUS_OK;
}

static enum exit_status run(const struct command *command, int argc, char **argv)
{
    struct ps_options wanted = {0};

    return cmd_perform(command, argc, argv, &wanted, list);
}

const struct command cmd_ps = {
    .name = "ps",
    .usage = "[OPTION]...",
    .summary = "List the guests that run.",
    .options = options,
    .run = run,
};
