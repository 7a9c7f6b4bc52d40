/*
 * What a person asks of a switch: `ferry run --switch`, or the section of a lab's file. Plain data.
 */
#ifndef FERRY_LAB_SWITCH_H
#define FERRY_LAB_SWITCH_H

#include <stdbool.h>
#include <stdint.h>

#include "net/rule.h"
#include "net/switch.h"
#include "net/uplink.h"
#include "vmm/util/options.h"

/* The port of a switch that its uplink is plugged into. */
#define SWITCH_UPLINK_PORT "uplink"

/* Strings and arrays are owned by the struct. */
struct switch_options {
    char name[NET_NAME_MAX];
    char *text; /* as it was given, but for rules and mirrors; NULL: by nobody */
    unsigned fdb_max, fdb_age_s; /* 0: the switch's defaults */
    uint64_t poll_ns;            /* how long its thread looks for frames before it sleeps */
    bool has_uplink;
    struct uplink_config uplink;
    struct switch_port_config uplink_port;
    char *rules_file; /* that the first of the rules were read from; NULL: none */
    struct rule *rules;
    unsigned n_rules;
    struct switch_mirror_config *mirrors;
    unsigned n_mirrors;
};

/*
 * Reads "NAME,uplink=MODE,KEY=VALUE,...", of the uplink's keys and of its port's, and the file that
 * rules= names: a rule a line; empty lines and those that begin with '#' say nothing. Errors, logged by
 * the places in the list or the file: -EINVAL, -ENOMEM, -ENOSPC, those of reading. The struct is to be
 * ended also after an error.
 */
int switch_options_read(struct switch_options *options, const struct option_list *list);
/* Adds a rule, or a mirror, in the notation of net/rule.h and net/switch.h. -EINVAL, -ENOMEM, logged. */
int switch_options_add_rule(struct switch_options *options, const char *where, const char *text);
int switch_options_add_mirror(struct switch_options *options, const char *where, const char *text);
void switch_options_fini(struct switch_options *options);

#endif
