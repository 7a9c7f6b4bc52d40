/*
 * The network follows: frames that reach the source when the guest has left it are sent after it, from
 * the moment at which the right to run is given away until the destination has seen it at work.
 *
 * What both sides of a migration share of that; see source.h and target.h. Blocking, for the thread of
 * a step. Nothing here can make a guest be lost, so nothing here fails: what cannot be sent is dropped.
 */
#ifndef FERRY_MIGRATION_FOLLOW_H
#define FERRY_MIGRATION_FOLLOW_H

#include "migration/link.h"
#include "migration/source.h"
#include "migration/target.h"

/* STREAM_READY's payload of a destination that takes frames; the first version's is empty. */
#define FOLLOW_READY "{\"frames\":true}"

/* ---- the source; ops->take_frames is set ---- */

/* Sends what came so far, and a mark; then what comes, until something can be read. */
void follow_send_until_word(struct link *link, const struct source_ops *ops, void *opaque);
/* Sends what had come, and a mark, then what comes until the destination tells of its traffic: that
 * text, owned by the caller, or NULL; then the end. */
char *follow_send_rest(struct link *link, const struct source_ops *ops, void *opaque);

/* ---- the destination ---- */

void follow_take_until_mark(struct link *link, const struct target_follow_ops *ops, void *opaque);
/* Takes what comes until the source's end, and tells of the traffic when that is known. */
void follow_take_rest(struct link *link, const struct target_follow_ops *ops, void *opaque);

#endif
