/*
 * `ferry run`: reads the options of one guest, runs it, and says how it ended by the exit status.
 *
 * Does not build the machine (machine.c). Main thread; no locks.
 */
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>

#include "migration/tls.h"
#include "vmm/cmd.h"
#include "vmm/lab_switch.h"
#include "vmm/machine.h"
#include "vmm/process.h"
#include "vmm/process_net.h"
#include "vmm/util/log.h"

struct run_options {
    struct machine_config machine;
    unsigned verbose;
    struct cmd_switches switches;
    char *incoming;
    char *tls;      /* with --incoming */
    uint64_t given; /* a bit for each of the options */
};

static int read_memory(void *object, const char *text)
{
    return machine_config_add_memory(&((struct run_options *)object)->machine, text);
}

static int read_disk(void *object, const char *text)
{
    return machine_config_add_disk(&((struct run_options *)object)->machine, text);
}

static int read_net(void *object, const char *text)
{
    return machine_config_add_net(&((struct run_options *)object)->machine, text);
}

int cmd_add_switch(struct cmd_switches *switches, const char *text)
{
    struct option_list list = {0};
    int err;

    if (switches->n == CMD_MAX_SWITCHES) {
        log_error("--switch: '%s' is one too many: at most %u switches were expected", text,
                  CMD_MAX_SWITCHES);
        return -ENOSPC;
    }
    if (!switches->list)
        switches->list = calloc(CMD_MAX_SWITCHES, sizeof(*switches->list));
    if (!switches->list)
        return -ENOMEM;
    err = option_list_split(&list, "--switch", text);
    if (!err)
        err = switch_options_read(&switches->list[switches->n++], &list);
    option_list_fini(&list);
    return err;
}

int cmd_make_switches(const struct cmd_switches *switches, struct process *process)
{
    int err = 0;

    for (unsigned i = 0; !err && i < switches->n; i++)
        err = process_add_switch(process, &switches->list[i]);
    return err;
}

void cmd_free_switches(struct cmd_switches *switches)
{
    for (unsigned i = 0; i < switches->n; i++)
        switch_options_fini(&switches->list[i]);
    free(switches->list);
}

static int read_switch(void *object, const char *text)
{
    return cmd_add_switch(&((struct run_options *)object)->switches, text);
}

int cmd_count_up(const struct option_key *key, const char *text, void *field)
{
    (void)key;
    (void)text;
    ++*(unsigned *)field;
    return 0;
}

/* An empty command line is one, too. */
static int parse_append(const struct option_key *key, const char *text, void *field)
{
    char **append = field, *copy = strdup(text);

    (void)key;
    if (!copy)
        return -ENOMEM;
    free(*append);
    *append = copy;
    return 0;
}

static const struct option_choice console_kinds[] = {
    {"serial", CONSOLE_SERIAL}, {"virtio", CONSOLE_VIRTIO}, {"off", CONSOLE_OFF}, {0}};

static const struct option_choice decompress_modes[] = {
    {"auto", DECOMPRESS_AUTO}, {"host", DECOMPRESS_HOST}, {"guest", DECOMPRESS_GUEST}, {0}};

#define AT(field) offsetof(struct run_options, field)

static const struct cmd_option options[] = {
    {'k', "FILE", "must be given", "bzImage, ELF64 or Multiboot kernel",
     {.name = "kernel", .parse = option_parse_string, .offset = AT(machine.kernel),
      .expects = "the path of a kernel"}, NULL},
    {'i', "FILE", "none", "initial RAM disk",
     {.name = "initrd", .parse = option_parse_string, .offset = AT(machine.initrd),
      .expects = "the path of an initial RAM disk"}, NULL},
    {'a', "TEXT", "console=ttyS0, root=/dev/vda", "kernel's options",
     {.name = "append", .parse = parse_append, .offset = AT(machine.append)}, NULL},
    {'c', "N", "1", "CPUs",
     {.name = "cpus", .parse = option_parse_number, .offset = AT(machine.cpus), .min = 1,
      .max = MACHINE_MAX_CPUS}, NULL},
    {'m', "SIZE", "512M", "memory; more: hugepages=,prealloc=,dirty-ring=",
     {.name = "memory"}, read_memory},
    {'d', "PATH", "none",
     "disk; more: readonly=,direct=,serial=; repeat",
     {.name = "disk"}, read_disk},
    {'n', "MODE", "none",
     "network card: nat, hostonly, bridge,if=NIC|br=BRIDGE,\n"
     "tap,if=TAP, stream,path=S, switch=NAME, none; repeat;\n"
     "nat,forward=tcp|udp:[ADDR:]PORT-[ADDR:]PORT",
     {.name = "net"}, read_net},
    {'s', "NAME", "none", "switch; more: NAME,uplink=MODE; repeat",
     {.name = "switch"}, read_switch},
    {0, "KIND", "serial", "the guest's console: serial, virtio or off",
     {.name = "console", .parse = option_parse_choice, .offset = AT(machine.console),
      .choices = console_kinds}, NULL},
    {0, "TEXT", "ferry-PID", "name of the guest",
     {.name = "name", .parse = option_parse_string, .offset = AT(machine.name),
      .expects = "a name"}, NULL},
    {0, "WHO", "auto", "who unpacks a bzImage: auto, host or guest",
     {.name = "decompress", .parse = option_parse_choice, .offset = AT(machine.decompress),
      .choices = decompress_modes}, NULL},
    {0, NULL, "off", "end when the guest resets",
     {.name = "no-reboot", .parse = option_parse_bool, .offset = AT(machine.no_reboot)}, NULL},
    {0, "SECONDS", "30", "from the power button to a forced end",
     {.name = "grace", .parse = option_parse_number, .offset = AT(machine.grace_s), .max = 86400},
     NULL},
    {0, "ADDRESS", "none", "take a guest that migrates here: see receive",
     {.name = "incoming", .parse = option_parse_string, .offset = AT(incoming),
      .expects = "tcp:HOST:PORT, tls:HOST:PORT or unix:PATH"}, NULL},
    {0, "DIR", TLS_FOLDER, "with --incoming tls:, certificates",
     {.name = "tls", .parse = option_parse_string, .offset = AT(tls), .expects = "a folder"}, NULL},
    {'v', NULL, "off", "say more; twice for everything",
     {.name = "verbose", .parse = cmd_count_up, .offset = AT(verbose)}, NULL},
    {0},
};

/* ---- the same options in a lab's file ---- */

/* Those that a file does not have: a guest's name is its key, and messages are the process's. */
static bool is_of_file(const struct cmd_option *option)
{
    return option->key.offset < offsetof(struct run_options, verbose) &&
           option->read != read_switch && strcmp(option->key.name, "name") != 0;
}

const struct cmd_option *cmd_run_option(const char *name)
{
    for (const struct cmd_option *option = options; option->key.name; option++)
        if (strcmp(option->key.name, name) == 0)
            return is_of_file(option) ? option : NULL;
    return NULL;
}

bool cmd_run_option_repeats(const struct cmd_option *option)
{
    return option->read == read_disk || option->read == read_net;
}

/* The options' fields are found from the struct that has the machine's at its beginning. */
_Static_assert(offsetof(struct run_options, machine) == 0, "a machine_config will do");

int cmd_run_set(const struct cmd_option *option, const struct option_list *list,
                struct machine_config *config)
{
    if (option->read == read_memory)
        return machine_config_set_memory(config, list);
    if (option->read == read_disk)
        return machine_config_put_disk(config, list);
    if (option->read == read_net)
        return machine_config_put_net(config, list);
    return option_set(list->where, &option->key, list->items[0].value, config);
}

/* More than the host can have is a mistake; finding that out by running would end other programs. */
int cmd_check_memory(const char *where, const struct machine_config *config)
{
    struct sysinfo host;
    char asked[OPTION_SIZE_MAX];
    uint64_t has;

    if (sysinfo(&host) < 0)
        return 0;
    has = ((uint64_t)host.totalram + host.totalswap) * host.mem_unit;
    if (config->memory.size <= has)
        return 0;
    option_format_size(config->memory.size, asked, sizeof(asked));
    log_error("%s: '%s' is not valid: at most %llu MiB was expected, all that this host has", where,
              asked, (unsigned long long)(has / MIB));
    return -EINVAL;
}

enum exit_status cmd_status_of(const struct machine *machine)
{
    int signal_number;

    switch (machine_outcome(machine, &signal_number)) {
    case MACHINE_POWERED_OFF:
    case MACHINE_WAS_RESET:
    case MACHINE_SAVED:
    case MACHINE_MIGRATED:
    case MACHINE_QUIT: return STATUS_OK;
    case MACHINE_CRASHED: return STATUS_CRASHED;
    case MACHINE_KILLED: return signal_number ? STATUS_SIGNAL + (unsigned)signal_number : STATUS_OK;
    case MACHINE_FAILED: return STATUS_FAILED;
    }
    return STATUS_FAILED;
}

enum exit_status cmd_run_machine(struct process *process, struct machine *machine)
{
    enum exit_status status = STATUS_FAILED;

    if (process_run(process, NULL, NULL) == 0)
        status = cmd_status_of(machine);
    process_destroy(process);
    return status;
}

void cmd_set_verbosity(unsigned verbose)
{
    if (verbose > 0)
        log_set_level(verbose == 1 ? LOG_LEVEL_INFO : LOG_LEVEL_DEBUG);
}

static enum exit_status create_and_run(const struct run_options *wanted)
{
    struct process *process = NULL;
    struct machine *machine;
    int error = process_create(&process, wanted->machine.name);

    if (!error)
        error = cmd_make_switches(&wanted->switches, process);
    if (!error)
        error = machine_create(&machine, process, &wanted->machine);
    if (!error)
        return cmd_run_machine(process, machine);
    process_destroy(process);
    return error == -EOPNOTSUPP ? STATUS_HOST : STATUS_USAGE;
}

/* Those that mean something for a guest that is there already, and those that mean it for no other. */
static const char *const of_incoming[] = {"incoming", "tls", "name", "switch", "console",
                                          "grace", "no-reboot", "verbose", NULL};
static const char *const of_incoming_alone[] = {"tls", NULL};

static bool is_among(const char *const *names, const char *name)
{
    for (; *names; names++)
        if (strcmp(*names, name) == 0)
            return true;
    return false;
}

static bool was_given(const struct run_options *wanted, const char *name)
{
    for (size_t i = 0; options[i].key.name; i++)
        if (strcmp(options[i].key.name, name) == 0)
            return wanted->given >> i & 1;
    return false;
}

/* Whether the options that were given go together with --incoming being given, or not. */
static int check_given(const struct run_options *wanted)
{
    for (size_t i = 0; options[i].key.name; i++) {
        const char *name = options[i].key.name;

        if (!(wanted->given >> i & 1))
            continue;
        if (wanted->incoming && !is_among(of_incoming, name)) {
            log_error("--%s does not go together with --incoming: the guest comes with what it has, and "
                      "its source says what that is", name);
            return -EINVAL;
        }
        if (!wanted->incoming && is_among(of_incoming_alone, name)) {
            log_error("--%s is about a guest that comes: --incoming ADDRESS was expected", name);
            return -EINVAL;
        }
    }
    return 0;
}

static enum exit_status take_incoming(const struct run_options *wanted)
{
    const struct receive_options receive = {
        .address = wanted->incoming,
        .place = "--incoming",
        .name = wanted->machine.name,
        .tls = wanted->tls,
        .switches = wanted->switches,
        .console = wanted->machine.console,
        .has_console = was_given(wanted, "console"),
        .grace_s = wanted->machine.grace_s,
        .has_grace = was_given(wanted, "grace"),
        .no_reboot = wanted->machine.no_reboot,
    };

    return cmd_receive_guest(&receive);
}

static enum exit_status boot_or_receive(void *object)
{
    struct run_options *wanted = object;

    cmd_set_verbosity(wanted->verbose);
    if (check_given(wanted) < 0)
        return STATUS_USAGE;
    if (wanted->incoming)
        return take_incoming(wanted);
    if (machine_config_finish(&wanted->machine) < 0 ||
        cmd_check_memory("--memory", &wanted->machine) < 0)
        return STATUS_USAGE;
    return create_and_run(wanted);
}

static enum exit_status run(const struct command *command, int argc, char **argv)
{
    struct run_options wanted = {0};
    enum exit_status status;

    machine_config_init(&wanted.machine);
    status = cmd_perform(command, argc, argv, &wanted, boot_or_receive);
    machine_config_fini(&wanted.machine);
    cmd_free_switches(&wanted.switches);
    return status;
}

static const size_t given = AT(given);

const struct command cmd_run = {
    .name = "run",
    .usage = "-k FILE [OPTION]...",
    .summary = "Boot a guest on this terminal; Ctrl-a x ends it.",
    .options = options,
    .notes = "Exit status: 0 power off, 2 wrong option, 3 no KVM, 4 crash, 128+N signal N.",
    .given = &given,
    .run = run,
};
