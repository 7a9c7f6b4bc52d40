/*
 * Commands: from a table of options to getopt_long(3), the one-line messages and the help page.
 *
 * Does not know what the options mean (the tables do). getopt_long and not argp, because argp
 * answers a mistake by two lines, sorts the help page its own way and wants each option's key,
 * parser and text in different places; here one table has all three.
 * Main thread; no locks.
 */
#include "vmm/cmd.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/util/log.h"

#define MAX_OPTIONS 30 /* their places stay below ' ', where letters begin */
#define HELP_COLUMN 26
#define HELP_VALUE 256 /* getopt_long's value for --help and -h */

/* What getopt_long wants, made of the table; all zero before. */
struct getopt_tables {
    struct option longs[MAX_OPTIONS + 2];
    char shorts[2 * MAX_OPTIONS + 4];
};

static void make_tables(const struct cmd_option *options, struct getopt_tables *tables)
{
    char *letter = tables->shorts;
    int n = 0;

    *letter++ = ':'; /* tells a missing value from an unknown option */
    for (; n < MAX_OPTIONS && options[n].key.name; n++) {
        tables->longs[n] = (struct option){
            .name = options[n].key.name,
            .has_arg = options[n].arg ? required_argument : no_argument,
            .val = n + 1, /* no letter: small numbers are the options' places, plus one */
        };
        if (options[n].letter) {
            *letter++ = options[n].letter;
            if (options[n].arg)
                *letter++ = ':';
        }
    }
    tables->longs[n] = (struct option){.name = "help", .val = HELP_VALUE};
    *letter = 'h';
}

static const struct cmd_option *find_option(const struct cmd_option *options, int value)
{
    if (value < ' ')
        return &options[value - 1];
    for (; options->key.name; options++) {
        if (options->letter == value)
            return options;
    }
    return NULL;
}

/* Says what was wrong with the word that getopt_long stumbled over; a long one's optopt is 0 when
 * it is unknown, and its place in the table when it was given a value that it does not take. */
static void log_unknown(const struct command *command, const char *word)
{
    size_t name = strcspn(word, "=");

    if (optopt >= ' ')
        log_error("unknown option '-%c': see 'ferry help %s'", optopt, command->name);
    else if (optopt != 0 && word[name] == '=')
        log_error("%.*s: '%s' is not valid: no value was expected", (int)name, word,
                  word + name + 1);
    else
        log_error("unknown or ambiguous option '%.*s': see 'ferry help %s'", (int)name, word,
                  command->name);
}

static int set_option(const struct cmd_option *option, void *object)
{
    const char *text = option->arg ? optarg : "on";
    char where[64];

    if (option->read)
        return option->read(object, text);
    snprintf(where, sizeof(where), "--%s", option->key.name);
    return option_set(where, &option->key, text, object);
}

static int set_operands(const struct command *command, int n, char **words, void *object)
{
    const struct cmd_operand *operand = command->operands;
    int at = 0;

    for (; operand && operand->name; operand++, at++) {
        if (at == n && operand->key.required)
            log_error("%s: %s was expected: see 'ferry help %s'", command->name, operand->name,
                      command->name);
        if (at == n)
            return operand->key.required ? -EINVAL : 0;
        if (option_set(operand->name, &operand->key, words[at], object) < 0)
            return -EINVAL;
    }
    if (at < n) {
        log_error("'%s' is %s: see 'ferry help %s'", words[at],
                  at > 0 ? "one word too many" : "not valid: an option was expected", command->name);
        return -EINVAL;
    }
    return 0;
}

enum cmd_parsed { CMD_PARSED, CMD_HELPED, CMD_WRONG };

static enum cmd_parsed parse(const struct command *command, int argc, char **argv, void *object)
{
    const struct cmd_option *option;
    struct getopt_tables tables = {0};
    int value;

    make_tables(command->options, &tables);
    opterr = 0;
    optind = 0; /* glibc: start anew */
    while ((value = getopt_long(argc, argv, tables.shorts, tables.longs, NULL)) != -1) {
        if (value == HELP_VALUE || value == 'h') {
            cmd_print_help(command);
            return CMD_HELPED;
        }
        if (value == '?') {
            log_unknown(command, argv[optind - 1]);
            return CMD_WRONG;
        }
        option = find_option(command->options, value == ':' ? optopt : value);
        if (value == ':') {
            log_error("--%s: a value was expected: %s", option->key.name, option->arg);
            return CMD_WRONG;
        }
        if (set_option(option, object) < 0)
            return CMD_WRONG;
        if (command->given)
            *(uint64_t *)(void *)((char *)object + *command->given) |=
                1ull << (option - command->options);
    }
    return set_operands(command, argc - optind, argv + optind, object) < 0 ? CMD_WRONG : CMD_PARSED;
}

static void free_text(const struct option_key *key, void *object)
{
    char **text = (char **)(void *)((char *)object + key->offset);

    if (key->parse != option_parse_string)
        return;
    free(*text);
    *text = NULL;
}

enum exit_status cmd_perform(const struct command *command, int argc, char **argv, void *object,
                             enum exit_status (*perform)(void *object))
{
    const struct cmd_operand *operand = command->operands;
    enum exit_status status = STATUS_USAGE;

    switch (parse(command, argc, argv, object)) {
    case CMD_HELPED:
        status = STATUS_OK;
        break;
    case CMD_WRONG:
        break;
    case CMD_PARSED:
        status = perform(object);
        break;
    }
    for (const struct cmd_option *option = command->options; option->key.name; option++)
        free_text(&option->key, object);
    for (; operand && operand->name; operand++)
        free_text(&operand->key, object);
    return status;
}

/* One option: the two names, then its help from HELP_COLUMN on, then the default. */
static void print_option(const struct cmd_option *option)
{
    const char *help = option->help, *end;
    char names[64], letter[8] = "    ";

    if (option->letter)
        snprintf(letter, sizeof(letter), "-%c, ", option->letter);
    snprintf(names, sizeof(names), "  %s--%s%s%s", letter, option->key.name, option->arg ? " " : "",
             option->arg ? option->arg : "");
    printf("%-*s", HELP_COLUMN, names);
    while ((end = strchr(help, '\n')) != NULL) {
        printf("%.*s\n%*s", (int)(end - help), help, HELP_COLUMN, "");
        help = end + 1;
    }
    printf("%s [%s]\n", help, option->fallback);
}

void cmd_print_help(const struct command *command)
{
    static const struct cmd_option help = {
        .letter = 'h', .fallback = "off", .help = "show this page", .key.name = "help"};

    printf("Usage: ferry %s %s\n%s\n\n", command->name, command->usage, command->summary);
    for (const struct cmd_option *option = command->options; option->key.name; option++)
        print_option(option);
    print_option(&help);
    if (command->notes)
        printf("\n%s\n", command->notes);
}
