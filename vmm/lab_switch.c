/*
 * The options of a switch: its own, those of its uplink, and those of the port between the two, in
 * one table.
 *
 * Builds nothing (process_net.c does), and asks the host for nothing but a file of rules. Any thread; no
 * state.
 */
#include "vmm/lab_switch.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "net/uplink_options.h"
#include "vmm/util/log.h"

#define POLL_MAX_NS 100000000u

/* struct switch_options: the mode, and that there is one. */
static int parse_uplink(const struct option_key *key, const char *text, void *field)
{
    struct switch_options *options = field;
    int err = option_parse_choice(key, text, &options->uplink.kind);

    if (!err)
        options->has_uplink = true;
    return err;
}

/* uint64_t, nanoseconds: digits and one of us and ms; or 0. */
static int parse_poll(const struct option_key *key, const char *text, void *field)
{
    size_t digits = strspn(text, "0123456789");
    const char *unit = text + digits;
    uint64_t value = 0, factor = strcmp(unit, "ms") == 0 ? 1000000 : 1000;

    (void)key;
    if (digits == 0 || digits > 6)
        return -EINVAL;
    for (size_t i = 0; i < digits; i++)
        value = value * 10 + (uint64_t)(text[i] - '0');
    if (strcmp(unit, "us") != 0 && strcmp(unit, "ms") != 0 && !(*unit == '\0' && value == 0))
        return -EINVAL;
    if (value * factor > POLL_MAX_NS)
        return -EINVAL;
    *(uint64_t *)field = value * factor;
    return 0;
}

static const struct option_key keys[] = {
    {.name = "name", .parse = net_parse_name, .offset = offsetof(struct switch_options, name),
     .expects = "a switch's name, of at most 31 letters, digits, '.', '_' or '-',", .required = true},
    {.name = "uplink", .parse = parse_uplink, .choices = uplink_kinds,
     .expects = "a mode of --net, such as nat,"},
    {.name = "fdb-max", .parse = option_parse_number, .min = 1, .max = 1u << 20,
     .offset = offsetof(struct switch_options, fdb_max)},
    {.name = "fdb-age", .parse = option_parse_number, .min = 1, .max = 1000000,
     .offset = offsetof(struct switch_options, fdb_age_s)},
    {.name = "poll", .parse = parse_poll, .offset = offsetof(struct switch_options, poll_ns),
     .expects = "a time such as 50us or 1ms, up to 100ms,"},
    {.name = "rules", .parse = option_parse_string,
     .offset = offsetof(struct switch_options, rules_file), .expects = "a file's path"},
    UPLINK_KEYS(struct switch_options, uplink),
    UPLINK_LINK_KEYS(struct switch_options, uplink),
    SWITCH_PORT_KEYS(struct switch_options, uplink_port),
    {0},
};
_Static_assert(sizeof(keys) / sizeof(keys[0]) <= 64, "a bit for each key");

/* Which of the keys are a switch's without an uplink. */
#define N_OWN_KEYS 6

static int check_keys(const struct option_list *list, const struct switch_options *options,
                      uint64_t seen)
{
    for (unsigned i = N_OWN_KEYS; keys[i].name; i++) {
        if (!(seen & 1ull << i))
            continue;
        if (!options->has_uplink) {
            log_error("%s: %s= does not go without uplink=", list->where, keys[i].name);
            return -EINVAL;
        }
        if (!uplink_key_applies(&options->uplink, keys[i].name)) {
            log_error("%s: %s= does not go together with uplink=%s", list->where, keys[i].name,
                      uplink_mode_name(&options->uplink));
            return -EINVAL;
        }
    }
    if (!options->has_uplink)
        return 0;
    return uplink_config_check(list->where, &options->uplink);
}

static int read_rules_line(struct switch_options *options, unsigned number, char *line)
{
    char where[512];

    line[strcspn(line, "\n")] = '\0';
    line += strspn(line, " \t");
    if (*line == '\0' || *line == '#')
        return 0;
    snprintf(where, sizeof(where), "%s:%u", options->rules_file, number);
    return switch_options_add_rule(options, where, line);
}

static int read_rules(struct switch_options *options, const struct option_list *list)
{
    FILE *file = fopen(options->rules_file, "re");
    char *line = NULL;
    size_t size = 0;
    int err = file ? 0 : -errno;

    for (unsigned number = 1; !err && getline(&line, &size, file) >= 0; number++)
        err = read_rules_line(options, number, line);
    if (file && !err && ferror(file))
        err = -EIO;
    if (err && err != -EINVAL && err != -ENOMEM)
        log_error("%s: rules=%s: %s", list->where, options->rules_file, strerror(-err));
    free(line);
    if (file)
        fclose(file);
    return err;
}

int switch_options_read(struct switch_options *options, const struct option_list *list)
{
    uint64_t seen;
    int err;

    *options = (struct switch_options){
        .uplink_port = {.name = SWITCH_UPLINK_PORT, .kind = SWITCH_PORT_UPLINK}};
    uplink_config_init(&options->uplink);
    options->text = strdup(list->text);
    if (!options->text)
        return -ENOMEM;
    err = option_list_read(list, keys, options, &seen);
    if (!err)
        err = check_keys(list, options, seen);
    if (!err && options->has_uplink)
        err = switch_port_config_check(list->where, &options->uplink_port);
    if (!err && options->rules_file)
        err = read_rules(options, list);
    return err;
}

int switch_options_add_rule(struct switch_options *options, const char *where, const char *text)
{
    struct rule *rules = realloc(options->rules, (options->n_rules + 1) * sizeof(*rules));
    int err;

    if (!rules) {
        log_error("%s: out of memory", where);
        return -ENOMEM;
    }
    options->rules = rules;
    err = rule_parse(where, text, &rules[options->n_rules]);
    if (!err)
        options->n_rules++;
    return err;
}

int switch_options_add_mirror(struct switch_options *options, const char *where, const char *text)
{
    struct switch_mirror_config *mirrors =
        realloc(options->mirrors, (options->n_mirrors + 1) * sizeof(*mirrors));
    int err;

    if (!mirrors) {
        log_error("%s: out of memory", where);
        return -ENOMEM;
    }
    options->mirrors = mirrors;
    err = switch_mirror_parse(where, text, &mirrors[options->n_mirrors]);
    if (!err)
        options->n_mirrors++;
    return err;
}

void switch_options_fini(struct switch_options *options)
{
    uplink_config_fini(&options->uplink);
    free(options->text);
    free(options->rules_file);
    free(options->rules);
    free(options->mirrors);
    *options = (struct switch_options){0};
}
