/* What vm.send-migration asks for. Part of the composition root. */
#ifndef FERRY_MACHINE_MIGRATE_REQUEST_H
#define FERRY_MACHINE_MIGRATE_REQUEST_H

#include <jansson.h>
#include <stdbool.h>

#include "migration/link.h"
#include "migration/source.h"

struct migrate_request {
    const char *url; /* borrowed from the body, as is the next */
    const char *tls_folder; /* NULL: the usual one */
    struct link_address address;
    struct source_config config;
    bool check; /* no more than the comparison */
};

/* 0; -EINVAL, with *reply a JSON string that says what is wrong. Any thread. */
int migrate_request_read(struct migrate_request *request, const json_t *body, json_t **reply);

#endif
