/*
 * What a lab's file asks for: switches and guests in one process, as plain data. The keys of a guest
 * are the options of `ferry run`, by the same names and read by the same parsers.
 */
#ifndef FERRY_LAB_CONFIG_H
#define FERRY_LAB_CONFIG_H

#include <stddef.h>

#include "vmm/lab_switch.h"
#include "vmm/machine_config.h"
#include "vmm/process.h"

#define LAB_MAX_SWITCHES 32

/* Strings and arrays are owned by the struct. */
struct lab_config {
    char *name; /* of the process */
    struct switch_options *switches;
    unsigned n_switches;
    struct machine_config *guests;
    char **places; /* of the guests, for messages: "lab.yaml:12: guests.web" */
    unsigned n_guests;
};

/*
 * Reads a file, or one that is in memory and has that name. Errors, logged by one line that names file,
 * line and key: -EINVAL, -ENOMEM, those of lab_file_open(). On error there is nothing to free. Rules
 * and mirrors with ports that no guest here has are warned of: such may come, and are mostly misspelt.
 */
int lab_config_read(struct lab_config *config, const char *path);
int lab_config_parse(struct lab_config *config, const char *name, const void *bytes, size_t n);
void lab_config_fini(struct lab_config *config);

#endif
