/*
 * The body of a request, by a table of its keys.
 *
 * Does not know what the keys mean. A key that is mistyped, or that another version has, is refused: a
 * migration that goes on without what was asked for would be found out too late. Any thread; no locks.
 */
#include "vmm/control_body.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static const struct control_key *find(const struct control_key *keys, const char *name)
{
    for (; keys->name; keys++)
        if (strcmp(keys->name, name) == 0)
            return keys;
    return NULL;
}

static json_t *tell_unknown(const struct control_key *keys, const char *name)
{
    char known[400] = "";

    for (size_t at = 0; keys->name && at < sizeof(known); keys++)
        at += (size_t)snprintf(known + at, sizeof(known) - at, "%s%s", at ? ", " : "", keys->name);
    return json_sprintf("%.64s: no such key is known here; these are: %s", name, known);
}

static json_t *tell_expected(const struct control_key *key)
{
    switch (key->kind) {
    case CONTROL_TEXT: return json_sprintf("%s: a text was expected", key->name);
    case CONTROL_FLAG: return json_sprintf("%s: true or false was expected", key->name);
    case CONTROL_NUMBER: break;
    }
    return json_sprintf("%s: a number from %lld to %lld was expected", key->name,
                        (long long)key->min, (long long)key->max);
}

static int read_one(const struct control_key *key, const json_t *value, void *field)
{
    switch (key->kind) {
    case CONTROL_TEXT:
        if (!json_is_string(value))
            return -EINVAL;
        *(const char **)field = json_string_value(value);
        return 0;
    case CONTROL_FLAG:
        if (!json_is_boolean(value))
            return -EINVAL;
        *(int *)field = json_is_true(value);
        return 0;
    case CONTROL_NUMBER:
        if (!json_is_integer(value) || json_integer_value(value) < key->min ||
            json_integer_value(value) > key->max)
            return -EINVAL;
        *(uint64_t *)field = (uint64_t)json_integer_value(value);
        return 0;
    }
    return -EINVAL;
}

int control_read_body(const json_t *body, const struct control_key *keys, void *out, json_t **reply)
{
    const char *name;
    json_t *value;

    /* The macro wants a body that is not const, and does not write to it. */
    json_object_foreach((json_t *)(uintptr_t)body, name, value) {
        const struct control_key *key = find(keys, name);

        if (!key && strcmp(name, "guest") == 0)
            continue;
        if (!key) {
            *reply = tell_unknown(keys, name);
            return -EINVAL;
        }
        if (read_one(key, value, (char *)out + key->offset) < 0) {
            *reply = tell_expected(key);
            return -EINVAL;
        }
    }
    return 0;
}
