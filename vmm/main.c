/*
 * The program's entry: finds the command and runs it.
 *
 * Does not read any command's options; cmd.c does. Main thread. The only place that decides what
 * the process ends with.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "vmm/cmd.h"
#include "vmm/util/log.h"

static const struct command *const commands[] = {&cmd_run,   &cmd_up,     &cmd_down,   &cmd_net,    &cmd_ps,
                                                 &cmd_console, &cmd_pause, &cmd_resume, &cmd_reboot,
                                                 &cmd_stop,  &cmd_save,   &cmd_restore,
                                                 &cmd_migrate, &cmd_receive, &cmd_doctor};
#define N_COMMANDS (sizeof(commands) / sizeof(commands[0]))

static void print_help(FILE *to)
{
    fputs("Usage: ferry COMMAND [OPTION]...\n"
          "Ferry runs Linux and other guests on KVM.\n\n",
          to);
    for (size_t i = 0; i < N_COMMANDS; i++)
        fprintf(to, "  ferry %-16s%s\n", commands[i]->name, commands[i]->summary);
    fputs("  ferry help [COMMAND]  Show this page, or a command's options.\n"
          "  ferry --version       Show the version.\n\n"
          "'man ferry' tells more.\n",
          to);
}

static const struct command *find_command(const char *name)
{
    for (size_t i = 0; i < N_COMMANDS; i++) {
        if (strcmp(commands[i]->name, name) == 0)
            return commands[i];
    }
    return NULL;
}

static enum exit_status help(int argc, char **argv)
{
    const struct command *command = argc > 0 ? find_command(argv[0]) : NULL;

    if (argc > 1 || (argc == 1 && !command)) {
        log_error("help: '%s' is not valid: the name of one command was expected",
                  argv[argc > 1 ? 1 : 0]);
        return STATUS_USAGE;
    }
    if (command)
        cmd_print_help(command);
    else
        print_help(stdout);
    return STATUS_OK;
}

static enum exit_status dispatch(int argc, char **argv)
{
    const struct command *command;
    const char *word;

    if (argc < 2) {
        print_help(stderr);
        return STATUS_USAGE;
    }
    word = argv[1];
    if (strcmp(word, "--version") == 0 || strcmp(word, "-V") == 0) {
        puts("ferry " FERRY_VERSION);
        return STATUS_OK;
    }
    if (strcmp(word, "help") == 0 || strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0)
        return help(argc - 2, argv + 2);
    command = find_command(word);
    if (!command) {
        log_error("unknown command '%s': see 'ferry help'", word);
        return STATUS_USAGE;
    }
    return command->run(command, argc - 1, argv + 1);
}

/* A standard stream that is closed would be whatever is opened first, a disk even, and be written to.
 * So it is what is at its end to a reader, and an error to a writer. */
static void occupy_closed_streams(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF)
            (void)open("/dev/null", O_RDONLY); /* takes the lowest number: this one */
}

int main(int argc, char **argv)
{
    enum exit_status status;

    occupy_closed_streams();
    status = dispatch(argc, argv);
    if (fflush(stdout) != 0 && status == STATUS_OK) {
        log_error("standard output cannot be written: %m");
        status = STATUS_FAILED;
    }
    return (int)status;
}
