/*
 * Asks a running ferry by its control socket (vmm/control.h): one request, one answer.
 */
#ifndef FERRY_CLIENT_H
#define FERRY_CLIENT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

/*
 * name: of a process, or for paths about a guest (/api/v1/vm.*) or a switch (/api/v1/net.*) of that,
 * in whatever process it is, or PROCESS/NAME. method and path as in the table of routes; body NULL:
 * none. *reply (may be NULL) is then the answer's JSON or NULL, owned by the caller. Blocks, a few
 * seconds at most. Errors: -ENOENT (nothing of that name runs), -EINVAL (several have that name, or
 * what is asked makes no sense there), -EREMOTEIO (it refused), -EIO (no sense in the answer), others
 * of the connection as -EIO; logged, unless `quiet`.
 */
struct client_request {
    const char *name;
    const char *method;
    const char *path;
    const json_t *body;
    bool quiet;
    bool patient; /* the answer may take as long as it takes */
    char **why;   /* may be NULL; else gets what would be logged, owned by the caller; NULL: nothing */
};
int client_ask(const struct client_request *request, json_t **reply);

/* Calls `each` with the name of every control socket there is, in order of name. 0 or a negative
 * errno, logged; when there is no run-time folder, there are none. */
int client_names(void (*each)(void *arg, const char *name), void *arg);

#endif
