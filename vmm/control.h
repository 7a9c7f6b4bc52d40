/*
 * The control socket: HTTP with JSON on a unix socket of the process, for `ferry ps` and its kin
 * and for any HTTP client.
 *
 * Knows nothing of machines: it serves tables of routes. The socket is NAME.sock in the run-time
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
     * body: what the client sent, a JSON object, and beside it, as strings, what stands in the query
     * of the address (?guest=web); NULL when there is neither; borrowed. 0: the
     * answer is *reply (owned by the caller, status 200) or, left NULL, nothing (204). -EINVAL: the
     * body is wrong (400); -EALREADY: the guest is in that state already (409);
     * -EINPROGRESS: the answer comes later, by control_answer(); others: 500. For an error *reply may
     * be a JSON string that says why. NULL in a table of what is absent.
     */
    int (*handle)(void *object, const json_t *body, json_t **reply);
};

/* Routes that are about the same kind of object. */
struct control_table {
    const struct control_route *routes; /* NULL ends the list of tables */
    /*
     * The object that a request is about. 0; -ENOENT (there is no such thing, 404) or -EINVAL (it is
     * not said which, 400), with *reply a JSON string that says so. NULL: all are about `opaque`.
     */
    int (*pick)(void *opaque, const json_t *body, void **object, json_t **reply);
    const char *absent; /* why there is nothing of the kind here: what every route answers (501); or NULL */
};

/* Names are what sockets and messages go by: letters, digits, '.', '_', '-', not '.' or '-' first. */
#define CONTROL_NAME_MAX 64
int control_check_name(const char *name);

/*
 * name and tables are borrowed for the control's life. 0 and *out; 0 and *out NULL when there is no
 * run-time folder to put a socket into (told by log_info). Errors, logged: -EADDRINUSE (a process of
 * that name runs), of the calls for sockets.
 */
int control_create(struct control **out, struct loop *loop, const char *name,
                   const struct control_table *tables, void *opaque);
/* The answer to the request about that object whose handler gave -EINPROGRESS: error and reply are as
 * a handler's; reply is taken over. One request waits for each object; nothing happens when its client
 * is gone. */
void control_answer(struct control *control, const void *object, int error, json_t *reply);
/* Whether a request about the object waits for control_answer(). */
bool control_busy(const struct control *control, const void *object);
/* Whether its client has hung up: nobody would hear the answer. False when none waits. */
bool control_abandoned(const struct control *control, const void *object);

/* Whether a process of that name listens. */
bool control_listens(const char *name);

/*
 * Takes another name as soon as no process has it: the one whose guest came here may still be about to
 * end. name is borrowed for the control's life. control NULL is fine.
 */
void control_claim(struct control *control, const char *name);

/* Removes the socket of that name if the process that made it was killed. Blocks while others take
 * names. */
void control_sweep(const char *name);

/* Removes the socket, so that its name is free; who is connected stays so. NULL is fine. */
void control_hide(struct control *control);
/* Lets answers leave, removes the socket, ends connections; runs the loop to end what is in flight.
 * NULL is fine. */
void control_destroy(struct control *control);

#endif
