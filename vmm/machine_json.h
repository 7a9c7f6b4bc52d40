/*
 * What a machine is built from, as JSON: a part of a saved guest.
 */
#ifndef FERRY_MACHINE_JSON_H
#define FERRY_MACHINE_JSON_H

#include "vmm/machine_config.h"

/* A text owned by the caller; NULL without memory. Paths in it are absolute. */
char *machine_config_to_json(const struct machine_config *config);

/*
 * Fills a config that machine_config_init() made. name NULL: the name in the text. The options in it
 * are checked as those of the command line are; -EINVAL, -ENOMEM, logged. `where` names the text.
 */
int machine_config_from_json(struct machine_config *config, const char *text, const char *name,
                             const char *where);

#endif
