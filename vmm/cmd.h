/*
 * Commands: `ferry run`, `ferry doctor`; their options, help pages and exit statuses.
 *
 * Each command is a struct command with a table of options, from which the parsing, the messages
 * and the help page are made. Part of the composition root. Main thread.
 */
#ifndef FERRY_CMD_H
#define FERRY_CMD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/machine_config.h"
#include "vmm/util/options.h"

/* What the process ends with. Documented in ferry(1) and in README.md; never renumbered. */
enum exit_status {
    STATUS_OK = 0,       /* the guest powered off; the command did what was asked */
    STATUS_FAILED = 1,   /* something went wrong inside Ferry or on the host */
    STATUS_USAGE = 2,    /* an option or a file is wrong */
    STATUS_HOST = 3,     /* this host cannot run guests */
    STATUS_CRASHED = 4,  /* the guest crashed: triple fault, panic device, error inside KVM */
    STATUS_SIGNAL = 128, /* plus the signal's number: the guest did not power off when told to */
};

struct cmd_option {
    char letter;           /* short form, or 0 */
    const char *arg;       /* what its value is called; NULL: a flag, read as if "on" was given */
    const char *fallback;  /* the default, for the help page */
    const char *help;      /* one line or more */
    struct option_key key; /* key.name is the long form */
    /* Reads the value, logging its own errors; NULL: key.parse does. */
    int (*read)(void *object, const char *text);
};

/* A word that is no option, by its place. */
struct cmd_operand {
    const char *name; /* in messages: "NAME" */
    struct option_key key; /* key.required: it must be given */
};

struct command {
    const char *name;
    const char *usage;                /* what follows the name in the usage line */
    const char *summary;              /* a sentence */
    const struct cmd_option *options; /* ends with a NULL key.name */
    const struct cmd_operand *operands; /* ends with a NULL name; or NULL: it takes none */
    const char *notes;                /* below the options; or NULL */
    const size_t *given;              /* where the object has a uint64_t: bit N: option N was given; or NULL */
    enum exit_status (*run)(const struct command *command, int argc, char **argv);
};

extern const struct command cmd_run;
extern const struct command cmd_doctor;
extern const struct command cmd_ps;
extern const struct command cmd_pause;
extern const struct command cmd_resume;
extern const struct command cmd_reboot;
extern const struct command cmd_stop;
extern const struct command cmd_console;
extern const struct command cmd_net;
extern const struct command cmd_up;
extern const struct command cmd_down;
extern const struct command cmd_save;
extern const struct command cmd_restore;
extern const struct command cmd_migrate;
extern const struct command cmd_receive;

/*
 * Reads the command's options into *object, and has `perform` do what they ask for, unless that was help,
 * which is given, or something is wrong, which is logged by one line. argv[0] is the command's name.
 * Afterwards the object has none of the texts any more that option_parse_string() put there.
 */
enum exit_status cmd_perform(const struct command *command, int argc, char **argv, void *object,
                             enum exit_status (*perform)(void *object));

void cmd_print_help(const struct command *command);

/* ---- for the commands that run a guest; in cmd_run.c ---- */

struct process;
struct switch_options;

/* What --switch asked for; each is owned. Zero-initialised: nothing. */
#define CMD_MAX_SWITCHES 16
struct cmd_switches {
    struct switch_options *list; /* owns */
    unsigned n;
};
/* Reads one --switch. -EINVAL, -ENOMEM, -ENOSPC; logged. */
int cmd_add_switch(struct cmd_switches *switches, const char *text);
/* Makes them in the process, before its guests. Errors of process_add_switch(). */
int cmd_make_switches(const struct cmd_switches *switches, struct process *process);
void cmd_free_switches(struct cmd_switches *switches);

/* What `ferry receive` is told, and `ferry run --incoming`. Strings are owned; NULL: not given. */
struct receive_options {
    char *address; /* NULL: the control socket will say */
    const char *place; /* where that was said; NULL: "ADDRESS" */
    char *name;    /* NULL: as it had */
    char *from;
    char *tls;
    bool once;
    unsigned verbose;
    struct cmd_switches switches;
    /* Instead of what the guest was started with; the second says whether. */
    enum console_kind console;
    bool has_console;
    unsigned grace_s;
    bool has_grace;
    bool no_reboot; /* true: that, whatever it had */
};
/* Waits for a guest that migrates here, and runs it. All is borrowed. */
enum exit_status cmd_receive_guest(const struct receive_options *wanted);

struct machine;
struct machine_config;
struct process;

/* A parser for a flag that may be repeated: unsigned, counted up. */
int cmd_count_up(const struct option_key *key, const char *text, void *field);
/* What -v means, given so many times. */
void cmd_set_verbosity(unsigned verbose);
/* The option of `ferry run` that a lab's file means by the same name, or NULL: it has none. */
const struct cmd_option *cmd_run_option(const char *name);
/* Whether the option takes a list, and may come more than once. */
bool cmd_run_option_repeats(const struct cmd_option *option);
/* Reads it from a list, which has one item without a name where the option takes one value. 0,
 * -EINVAL, -ENOMEM, -ENOSPC; logged by the places in the list. */
int cmd_run_set(const struct cmd_option *option, const struct option_list *list,
                struct machine_config *config);
/* Asks the host for what the whole must be had: memory. `where` is for messages. 0 or -EINVAL, logged. */
int cmd_check_memory(const char *where, const struct machine_config *config);
/* What a guest's end means as an exit status. */
enum exit_status cmd_status_of(const struct machine *machine);

/* Runs the process's only guest to its end, takes all down, and says how it ended. */
enum exit_status cmd_run_machine(struct process *process, struct machine *machine);

#endif
