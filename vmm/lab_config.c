/*
 * A lab's file, checked against its schema and read into plain data.
 *
 * Parses no YAML (lab_yaml.c) and no value (the options' parsers do). Opens nothing but the file.
 * Composition root; one thread at a time; no state.
 */
#include "vmm/lab_config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/cmd.h"
#include "vmm/control.h"
#include "vmm/lab_yaml.h"
#include "vmm/util/log.h"

static int refuse(const struct lab_node *node, const char *what)
{
    char where[LAB_WHERE_MAX];

    log_error("%s: %s", lab_where(node, where), what);
    return -EINVAL;
}

static int no_memory(const struct lab_node *node)
{
    (void)refuse(node, "out of memory");
    return -ENOMEM;
}

/* ---- values, as the options' parsers want them ---- */

/* YAML has more words for on and off than the command line. */
static const char *as_option(const struct lab_node *node, const char *text)
{
    static const char *const words[][2] = {
        {"true", "on"}, {"yes", "on"}, {"false", "off"}, {"no", "off"}};

    for (size_t i = 0; lab_is_plain(node) && i < sizeof(words) / sizeof(words[0]); i++)
        if (strcmp(text, words[i][0]) == 0)
            return words[i][1];
    return text;
}

struct list_walk {
    struct option_list *list;
    const char *name; /* of the item whose values are walked */
};

static int add_value(void *arg, const struct lab_node *value)
{
    const struct list_walk *walk = arg;
    const char *text = lab_scalar(value);
    char where[LAB_WHERE_MAX];

    if (!text)
        return -EINVAL;
    return option_list_add(walk->list, lab_where(value, where), walk->name, as_option(value, text));
}

/* KEY: VALUE, or KEY: [VALUE, ...] for one that may come more than once. */
static int add_pair(void *arg, const char *key, const struct lab_node *value)
{
    struct list_walk walk = {.list = ((struct list_walk *)arg)->list, .name = key};

    return lab_walk_list(value, add_value, &walk);
}

/* Makes a list of a mapping, or of a text such as stands on the command line. */
static int make_list(const struct lab_node *node, struct option_list *list)
{
    struct list_walk walk = {.list = list};
    char where[LAB_WHERE_MAX];
    const char *text;

    lab_where(node, where);
    if (lab_is_map(node))
        return option_list_init(list, where) < 0 ? no_memory(node)
                                                 : lab_walk_map(node, add_pair, &walk);
    text = lab_scalar(node);
    return text ? option_list_split(list, where, text) : -EINVAL;
}

/* A list of one item, which is the whole text. */
static int make_single(const struct lab_node *node, struct option_list *list)
{
    struct list_walk walk = {.list = list};
    char where[LAB_WHERE_MAX];

    return option_list_init(list, lab_where(node, where)) < 0 ? no_memory(node)
                                                              : add_value(&walk, node);
}

/* ---- switches ---- */

struct switch_walk {
    struct switch_options *options;
    struct option_list *list;
};

/* A rule or a mirror: a text, or a mapping that becomes one. */
static int read_entry(const struct lab_node *node, struct switch_options *options,
                      int (*add)(struct switch_options *, const char *, const char *))
{
    struct option_list list = {0};
    int err = make_list(node, &list);

    if (!err)
        err = add(options, list.where, list.text);
    option_list_fini(&list);
    return err;
}

static int read_rule(void *arg, const struct lab_node *node)
{
    return read_entry(node, arg, switch_options_add_rule);
}

static int read_mirror(void *arg, const struct lab_node *node)
{
    return read_entry(node, arg, switch_options_add_mirror);
}

/* `uplink: nat,subnet=10.1.0.0/24` is the mode and keys of the switch's own. */
static int read_uplink(const struct lab_node *node, struct option_list *list)
{
    const char *text = lab_scalar(node);
    struct option_list items = {0};
    char where[LAB_WHERE_MAX];
    int err = text ? option_list_split(&items, lab_where(node, where), text) : -EINVAL;

    for (size_t i = 0; !err && i < items.n_items; i++) {
        const struct option_item *item = &items.items[i];

        err = option_list_add(list, where, item->name || i > 0 ? item->name : "uplink", item->value);
    }
    option_list_fini(&items);
    return err;
}

static int read_switch_key(void *arg, const char *key, const struct lab_node *value)
{
    struct switch_walk *walk = arg;
    struct list_walk pairs = {.list = walk->list};

    if (strcmp(key, "rules") == 0 || strcmp(key, "mirrors") == 0)
        return 0; /* read when the options have been */
    if (strcmp(key, "uplink") == 0)
        return read_uplink(value, walk->list);
    return add_pair(&pairs, key, value);
}

static int read_switch_lists(void *arg, const char *key, const struct lab_node *value)
{
    if (strcmp(key, "rules") == 0)
        return lab_walk_list(value, read_rule, arg);
    if (strcmp(key, "mirrors") == 0)
        return lab_walk_list(value, read_mirror, arg);
    return 0;
}

static int read_switch_options(const struct lab_node *node, const char *name,
                               struct switch_options *options)
{
    struct option_list list = {0};
    struct switch_walk walk = {.options = options, .list = &list};
    char where[LAB_WHERE_MAX];
    int err = option_list_init(&list, lab_where(node, where)) < 0 ? no_memory(node) : 0;

    if (!err)
        err = option_list_add(&list, where, "name", name);
    if (!err && !lab_is_empty(node))
        err = lab_walk_map(node, read_switch_key, &walk);
    if (!err)
        err = switch_options_read(options, &list);
    if (!err && !lab_is_empty(node))
        err = lab_walk_map(node, read_switch_lists, options);
    option_list_fini(&list);
    return err;
}

static int read_switch(void *arg, const char *name, const struct lab_node *value)
{
    struct lab_config *lab = arg;
    struct switch_options *switches;

    if (lab->n_switches == LAB_MAX_SWITCHES)
        return refuse(value, "this switch is one too many");
    switches = realloc(lab->switches, (lab->n_switches + 1) * sizeof(*switches));
    if (!switches)
        return no_memory(value);
    lab->switches = switches;
    switches[lab->n_switches] = (struct switch_options){0};
    return read_switch_options(value, name, &switches[lab->n_switches++]);
}

static int read_switches(struct lab_config *lab, const struct lab_node *node)
{
    return lab_is_empty(node) ? 0 : lab_walk_map(node, read_switch, lab);
}

static bool has_switch(const struct lab_config *lab, const char *name)
{
    for (unsigned i = 0; i < lab->n_switches; i++)
        if (strcmp(lab->switches[i].name, name) == 0)
            return true;
    return false;
}

/* ---- guests ---- */

struct guest_walk {
    const struct lab_config *lab;
    struct machine_config *config; /* the last of the lab's */
    const struct cmd_option *option;
};

/* What a NIC is plugged into must be described: a switch by a mistyped name would be an empty one. */
static int check_switch(const struct guest_walk *walk, const struct lab_node *node, unsigned n_before)
{
    const struct net_options *net = &walk->config->nets[n_before];
    char where[LAB_WHERE_MAX];

    if (walk->config->n_nets == n_before || !net->switch_name[0] ||
        has_switch(walk->lab, net->switch_name))
        return 0;
    log_error("%s: switch='%s' is not valid: a switch of this file was expected",
              lab_where(node, where), net->switch_name);
    return -EINVAL;
}

static int set_option(void *arg, const struct lab_node *node)
{
    const struct guest_walk *walk = arg;
    unsigned n_nets = walk->config->n_nets;
    struct option_list list = {0};
    /* Options that are read as lists have no parser of their own. */
    int err = walk->option->read ? make_list(node, &list) : make_single(node, &list);

    if (!err)
        err = cmd_run_set(walk->option, &list, walk->config);
    if (!err)
        err = check_switch(walk, node, n_nets);
    option_list_fini(&list);
    return err;
}

/* `disk` and `net` also go by their plurals. */
static const struct cmd_option *find_option(const char *key)
{
    if (strcmp(key, "disks") == 0)
        return cmd_run_option("disk");
    if (strcmp(key, "nets") == 0)
        return cmd_run_option("net");
    return cmd_run_option(key);
}

static int read_guest_key(void *arg, const char *key, const struct lab_node *value)
{
    const struct lab_config *lab = arg;
    struct guest_walk walk = {.lab = lab, .config = &lab->guests[lab->n_guests - 1],
                              .option = find_option(key)};

    if (!walk.option)
        return refuse(value, "unknown key: an option of 'ferry run' was expected, such as kernel, "
                             "initrd, append, cpus, memory, disks or nets");
    if (cmd_run_option_repeats(walk.option))
        return lab_walk_list(value, set_option, &walk);
    return set_option(&walk, value);
}

/* Whether a guest before the last has the address. */
static bool mac_taken(const struct lab_config *lab, const struct option_mac *mac)
{
    for (unsigned g = 0; g + 1 < lab->n_guests; g++)
        for (unsigned n = 0; n < lab->guests[g].n_nets; n++)
            if (memcmp(lab->guests[g].nets[n].mac.bytes, mac->bytes, sizeof(mac->bytes)) == 0)
                return true;
    return false;
}

/* The last one, whose keys have been read. */
static int check_guest(const struct lab_config *lab, const struct lab_node *node)
{
    struct machine_config *config = &lab->guests[lab->n_guests - 1];
    char where[LAB_WHERE_MAX];
    int err;

    if (!config->kernel)
        return refuse(node, "the key kernel is missing");
    if (cmd_check_memory(lab_where(node, where), config) < 0)
        return -EINVAL;
    err = machine_config_finish_at(config, where);
    for (unsigned i = 0; !err && i < config->n_nets; i++)
        if (mac_taken(lab, &config->nets[i].mac))
            err = refuse(node, "a network card has the mac= of another guest's");
    return err;
}

/* Room for one more guest, whose place is noted. */
static int add_guest(struct lab_config *lab, const struct lab_node *value)
{
    struct machine_config *guests = realloc(lab->guests, (lab->n_guests + 1) * sizeof(*guests));
    char **places, where[LAB_WHERE_MAX];

    if (!guests)
        return no_memory(value);
    lab->guests = guests;
    places = realloc(lab->places, (lab->n_guests + 1) * sizeof(*places));
    if (!places)
        return no_memory(value);
    lab->places = places;
    places[lab->n_guests] = strdup(lab_where(value, where));
    if (!places[lab->n_guests])
        return no_memory(value);
    machine_config_init(&guests[lab->n_guests++]);
    return 0;
}

static int read_guest(void *arg, const char *name, const struct lab_node *value)
{
    struct lab_config *lab = arg;
    struct machine_config *config;
    int err;

    if (control_check_name(name) < 0)
        return refuse(value, "a guest's name has letters, digits, '.', '_' or '-', '.' and '-' not "
                             "first, and at most 64 of them");
    if (lab->n_guests == PROCESS_MAX_GUESTS)
        return refuse(value, "this guest is one too many");
    err = add_guest(lab, value);
    if (err)
        return err;
    config = &lab->guests[lab->n_guests - 1];
    config->console_socket = true;
    config->lab = strdup(lab->name);
    config->name = strdup(name);
    if (!config->name || !config->lab)
        return no_memory(value);
    err = lab_walk_map(value, read_guest_key, lab);
    return err ? err : check_guest(lab, value);
}

static int read_guests(struct lab_config *lab, const struct lab_node *node)
{
    return lab_walk_map(node, read_guest, lab);
}

/* ---- names of ports, when all are known ---- */

struct port_walk {
    const struct lab_config *lab;
    const struct switch_options *options; /* of the switch */
    unsigned switches, rules, mirrors;    /* that were looked at */
};

static bool has_port(const struct port_walk *walk, const char *port)
{
    if (walk->options->has_uplink && strcmp(walk->options->uplink_port.name, port) == 0)
        return true;
    for (unsigned g = 0; g < walk->lab->n_guests; g++) {
        const struct machine_config *guest = &walk->lab->guests[g];

        for (unsigned n = 0; n < guest->n_nets; n++) {
            if (strcmp(guest->nets[n].switch_name, walk->options->name) == 0 &&
                strcmp(guest->nets[n].port.name, port) == 0)
                return true;
        }
    }
    return false;
}

static void check_port(const struct port_walk *walk, const struct lab_node *node, const char *port)
{
    char where[LAB_WHERE_MAX];

    if (port[0] && !has_port(walk, port))
        log_warn("%s: no guest of this file has a port '%s' in the switch '%s'",
                 lab_where(node, where), port, walk->options->name);
}

static int check_rule(void *arg, const struct lab_node *node)
{
    struct port_walk *walk = arg;
    const struct rule *rule = &walk->options->rules[walk->rules++];

    check_port(walk, node, rule->in);
    check_port(walk, node, rule->action.mirror);
    check_port(walk, node, rule->action.redirect);
    return 0;
}

static int check_mirror(void *arg, const struct lab_node *node)
{
    struct port_walk *walk = arg;

    check_port(walk, node, walk->options->mirrors[walk->mirrors++].to);
    return 0;
}

static int check_switch_key(void *arg, const char *key, const struct lab_node *value)
{
    if (strcmp(key, "rules") == 0)
        return lab_walk_list(value, check_rule, arg);
    if (strcmp(key, "mirrors") == 0)
        return lab_walk_list(value, check_mirror, arg);
    return 0;
}

static int check_switch_ports(void *arg, const char *name, const struct lab_node *value)
{
    struct port_walk *walk = arg;

    (void)name;
    walk->options = &walk->lab->switches[walk->switches++];
    walk->rules = walk->mirrors = 0;
    return lab_is_empty(value) ? 0 : lab_walk_map(value, check_switch_key, walk);
}

static int read_name(struct lab_config *lab, const struct lab_node *node)
{
    const char *name = lab_scalar(node);

    if (!name)
        return -EINVAL;
    if (control_check_name(name) < 0)
        return refuse(node, "a lab's name has letters, digits, '.', '_' or '-', '.' and '-' not "
                            "first, and at most 64 of them");
    free(lab->name);
    lab->name = strdup(name);
    return lab->name ? 0 : no_memory(node);
}

/* ---- the whole ---- */

/* In the order in which they are read, wherever they stand in the file. */
static const struct section {
    const char *name;
    int (*read)(struct lab_config *lab, const struct lab_node *node);
} sections[] = {{"name", read_name}, {"switches", read_switches}, {"guests", read_guests}};
#define SWITCHES 1 /* its place among them */
#define N_SECTIONS (sizeof(sections) / sizeof(sections[0]))

static int find_section(void *arg, const char *key, const struct lab_node *value)
{
    struct lab_node *found = arg;

    for (size_t i = 0; i < N_SECTIONS; i++) {
        if (strcmp(sections[i].name, key) != 0)
            continue;
        found[i] = *value;
        return 0;
    }
    return refuse(value, "unknown key: name, switches or guests was expected");
}

static int read_root(struct lab_config *lab, const struct lab_node *root)
{
    struct lab_node found[N_SECTIONS] = {0};
    struct port_walk ports = {.lab = lab};
    int err = lab_walk_map(root, find_section, found);

    for (size_t i = 0; !err && i < N_SECTIONS; i++)
        if (found[i].node)
            err = sections[i].read(lab, &found[i]);
    if (!err && lab->n_guests == 0)
        err = refuse(root, "there are no guests: the key guests was expected");
    if (!err && lab->n_switches > 0)
        err = lab_walk_map(&found[SWITCHES], check_switch_ports, &ports);
    return err;
}

/* "labs/two.yaml" is named "two" unless it says otherwise. */
static int default_name(struct lab_config *lab, const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *base = slash ? slash + 1 : path, *dot = strrchr(base, '.');
    size_t n = dot && dot > base ? (size_t)(dot - base) : strlen(base);

    lab->name = strndup(base, n);
    if (!lab->name) {
        log_error("out of memory");
        return -ENOMEM;
    }
    if (control_check_name(lab->name) < 0) {
        free(lab->name);
        lab->name = strdup("lab"); /* no name that a socket can have: as good as any */
    }
    return lab->name ? 0 : -ENOMEM;
}

static int finish(struct lab_config *lab, struct lab_file *file, const struct lab_node *root,
                  int err)
{
    if (!err)
        err = default_name(lab, file->name);
    if (!err)
        err = read_root(lab, root);
    lab_file_close(file);
    if (err)
        lab_config_fini(lab);
    return err;
}

int lab_config_parse(struct lab_config *lab, const char *name, const void *bytes, size_t n)
{
    struct lab_file file;
    struct lab_node root;
    int err = lab_file_parse(&file, name, bytes, n, &root);

    *lab = (struct lab_config){0};
    return finish(lab, &file, &root, err);
}

int lab_config_read(struct lab_config *lab, const char *path)
{
    struct lab_file file;
    struct lab_node root;
    int err = lab_file_open(&file, path, &root);

    *lab = (struct lab_config){0};
    return finish(lab, &file, &root, err);
}

void lab_config_fini(struct lab_config *lab)
{
    for (unsigned i = 0; i < lab->n_guests; i++) {
        machine_config_fini(&lab->guests[i]);
        free(lab->places[i]);
    }
    for (unsigned i = 0; i < lab->n_switches; i++)
        switch_options_fini(&lab->switches[i]);
    free(lab->guests);
    free(lab->places);
    free(lab->switches);
    free(lab->name);
    *lab = (struct lab_config){0};
}
