/*
 * What belongs to the ports of a guest that moves. Part of the composition root; main thread.
 */
#ifndef FERRY_MACHINE_PORTS_H
#define FERRY_MACHINE_PORTS_H

#include <jansson.h>

struct machine;
struct snapshot;

/* The source: adds to the object of each NIC, by its id, what goes along. */
void machine_ports_describe(struct machine *m, json_t *nics);

/* The destination, while the guest is the source's: the ports get the guest's settings. Errors, logged:
 * -EINVAL (no settings), -ENOMEM. */
int machine_ports_configure(struct machine *m, const struct snapshot *state);
/* When it is ours: counters, learnt addresses, leases. What does not fit here is left out. */
void machine_ports_take_over(struct machine *m, const struct snapshot *state);

#endif
