/*
 * The body of a request, by a table of its keys: what is unknown or of another kind is refused.
 *
 * Pure; any thread.
 */
#ifndef FERRY_CONTROL_BODY_H
#define FERRY_CONTROL_BODY_H

#include <jansson.h>
#include <stddef.h>

enum control_kind {
    CONTROL_TEXT,   /* const char *, borrowed from the body */
    CONTROL_NUMBER, /* uint64_t, from min to max */
    CONTROL_FLAG,   /* int, 0 or 1 */
};

struct control_key {
    const char *name; /* NULL ends a table */
    enum control_kind kind;
    size_t offset; /* of the field */
    json_int_t min, max;
};

/*
 * Fills the fields of `out` whose keys the body has, and leaves the others as they are. body NULL: it has
 * none. "guest", by which the query says which guest is meant, is passed over. 0; -EINVAL, with *reply a
 * JSON string that says what is wrong.
 */
int control_read_body(const json_t *body, const struct control_key *keys, void *out, json_t **reply);

#endif
