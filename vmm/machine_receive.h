/*
 * A guest arrives from another process. Part of the composition root; main thread, which is the event
 * loop's.
 */
#ifndef FERRY_MACHINE_RECEIVE_H
#define FERRY_MACHINE_RECEIVE_H

#include <jansson.h>

struct machine;
struct target;

/*
 * Takes the guest's memory and state into a machine of machine_create_incoming(), and the right to run
 * it. Blocks as machine_work() does. 0: it runs here, or waits, paused, to be told whether it is
 * to (m->in_doubt); the process is then to be run. Else, logged: it is the source's, and this machine
 * is to be destroyed.
 */
int machine_arrive(struct machine *m, struct target *target);

/* What `ferry migrate --status` says of a guest that arrives or arrived; a new reference. */
json_t *machine_describe_arrival(const struct machine *m);

#endif
