/*
 * The control socket: HTTP with JSON on a unix socket of the process, for `ferry ps` and its kin
 * and for any HTTP client.
 *
 * Knows nothing of machines: it serves a table of routes. The socket is NAME.sock in the run-time
 * folder (vmm/util/rundir.h), mode 0600. All on the event loop's thread; handlers must not block
 * nor run the loop.
 */
#ifndef FERRY_CONTROL_H
#define FERRY_CONTROL_H

#include <jansson.h>
#include <stdbool.h>

struct control;
struct loop;

struct control_route {
    const char *method; /* "GET", "PUT"; NULL ends the table */
    const char *path;   /* "/api/v1/vmm.ping" */
    /*
     * body: what the client sent, a JSON object, or NULL when it sent nothing; borrowed. 0: the
     * answer is *reply (owned by the caller, status 200) or, left NULL, nothing (204). -EINVAL: the
     * body is wrong (400); -EALREADY: the guest is in that state already (409); -EINPROGRESS: the
     * answer comes later, by control_answer(); others: 500. For an error *reply may be a JSON string
     * that says why.
     */
    int (*handle)(void *opaque, const json_t *body, json_t **reply);
};

/* Names are what sockets and messages go by: letters, digits, '.', '_', '-', not '.' or '-' first. */
#define CONTROL_NAME_MAX 64
int control_check_name(const char *name);

/*
 * name and routes are borrowed for the control's life. 0 and *out; 0 and *out NULL when there is no
 * run-time folder to put a socket into (told by log_info). Errors, logged: -EADDRINUSE (a process of
 * that name runs), of the calls for sockets.
 */
int control_create(struct control **out, struct loop *loop, const char *name,
                   const struct control_route *routes, void *opaque);
/* The answer to the request whose handler gave -EINPROGRESS: error and reply are as a handler's; reply
 * is taken over. One request waits at a time; nothing happens when its client is gone. */
void control_answer(struct control *control, int error, json_t *reply);
/* Whether a request waits for control_answer(). */
bool control_busy(const struct control *control);

/* Lets answers leave, removes the socket, ends connections; runs the loop to end what is in flight. NULL is fine. */
void control_destroy(struct control *control);

#endif
