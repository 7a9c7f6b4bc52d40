/*
 * The network follows a guest that moves to another process. Part of the composition root; main
 * thread, but for what says otherwise. vCPUs may run or not.
 */
#ifndef FERRY_MACHINE_FOLLOW_H
#define FERRY_MACHINE_FOLLOW_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "migration/source.h"

struct machine;
struct snapshot;

/* ---- the source ---- */

/* Frames that come while the devices are paused are kept from now on. Then the second asks those who
 * hold frames back. */
void machine_follow_keep(struct machine *m);
void machine_follow_ask(struct machine *m);
/* The guest stays after all, and goes on: it gets what was kept. */
void machine_follow_back(struct machine *m);
/* Records of frames for a NIC, whose id is filled in; 0: none now. For struct source_ops, on the
 * thread of a step: the guest was given away. */
size_t machine_follow_take(struct machine *m, char id[STREAM_ID_MAX], void *to, size_t size);
/* Returns when frames that have come by now were kept, or after a moment; on the thread of a step. */
void machine_follow_settle(struct machine *m);
/* The guest is elsewhere: its addresses are not here any more. */
void machine_follow_unplug(struct machine *m);
/* Adds what the destination is to know of each NIC, an object by its id. Devices paused. */
void machine_follow_describe(struct machine *m, json_t *nics);
/* For the person: a list, an object for each NIC. traffic: what the destination said, or NULL. */
json_t *machine_follow_tell(const struct machine *m, const struct source_status *status,
                            const char *traffic);

/* ---- the destination ---- */

/* Frames that come are the source's affair until machine_follow_open(). */
void machine_follow_hush(struct machine *m);
/* The guest is ours. Whether the source sends frames after it: then those that come here wait for
 * machine_follow_release(), for a moment, so that all arrive in their order. */
bool machine_follow_open(struct machine *m, const struct snapshot *state);
/* Any thread: records that came for the NIC of that id, unchecked; they are delivered soon. */
void machine_follow_put(struct machine *m, const char *id, const void *records, size_t size);
/* Any thread. */
void machine_follow_release(struct machine *m);
/* Any thread: when NICs had their first frames, and how many that came late were lost; a text owned by
 * the caller. NULL: one whose guest was busy has not had any. go_ns: when the guest became ours. */
char *machine_follow_traffic(struct machine *m, uint64_t go_ns, bool late);

/* Before the NICs are destroyed. */
void machine_follow_destroy(struct machine *m);

#endif
