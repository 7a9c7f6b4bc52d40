/*
 * Options: what a person writes, turned into fields of a struct by a table.
 *
 * A table of struct option_key says, for each key, which parser reads its value and where in a
 * struct the result goes. One table serves one list such as "disk.img,readonly=on" or the options
 * of one command; the same parsers serve both.
 *
 * Every mistake is logged once, by one line: where it stands ("--disk"), the value, what was
 * expected. The text may come from anywhere: nothing here trusts it. Any thread; no state.
 */
#ifndef FERRY_UTIL_OPTIONS_H
#define FERRY_UTIL_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct option_key;

/*
 * Reads `text` into *field (of the type that the parser's comment names). 0; -EINVAL: not what
 * key->expects says; -ENOMEM; -ENOSPC: a repeatable key came too often. Logs nothing, and leaves
 * *field as it was on error.
 */
typedef int (*option_parser)(const struct option_key *key, const char *text, void *field);

struct option_choice {
    const char *name; /* NULL ends the list */
    int value;
};

struct option_key {
    const char *name;
    option_parser parse;
    size_t offset; /* of the field in the struct */
    /* Completes "... was expected". NULL: for a number, a size or a choice, made of the below. */
    const char *expects;
    uint64_t min, max; /* numbers and sizes; max 0: no limit. In bytes for sizes */
    const struct option_choice *choices;
    bool repeatable; /* else a second one is an error */
    bool required;   /* in a list */
};

/* ---- parsers; the field's type stands before the colon ---- */

/* char *: any text but the empty one. Owned by the struct; a former value is freed. */
int option_parse_string(const struct option_key *key, const char *text, void *field);
/* bool: on or off. */
int option_parse_bool(const struct option_key *key, const char *text, void *field);
/* unsigned: decimal digits, within key->min and key->max. */
int option_parse_number(const struct option_key *key, const char *text, void *field);
/* uint64_t, bytes: digits and one of K, M, G, T (powers of 1024), within key->min and key->max. */
int option_parse_size(const struct option_key *key, const char *text, void *field);
/* int-sized enum: one of key->choices. */
int option_parse_choice(const struct option_key *key, const char *text, void *field);
/* struct option_mac: six pairs of hexadecimal digits with colons; not a group address, not zero. */
int option_parse_mac(const struct option_key *key, const char *text, void *field);

struct option_mac {
    uint8_t bytes[6];
    bool given;
};

/*
 * Reads one value. `where` names the place for messages ("--cpus"). 0, -EINVAL, -ENOMEM, -ENOSPC;
 * logged.
 */
int option_set(const char *where, const struct option_key *key, const char *text, void *object);

/*
 * Reads a list "VALUE,KEY=VALUE,...". The first item may leave out its key, which is then keys[0];
 * an item is taken to have a key when letters, digits, '-' and '_' stand before its first '='. Two
 * commas stand for one comma of a value. The table ends with a NULL name, has at most 64 keys.
 * *seen is set to a bit for each key that came, 1 << 0 for keys[0].
 * Errors, logged: -EINVAL (unknown, repeated, missing key; value that does not parse), -ENOMEM,
 * -ENOSPC. On error `object` holds what was read so far, and is still its owner's to free.
 */
int options_parse_list(const char *where, const char *text, const struct option_key *keys,
                       void *object);
int options_parse_list_seen(const char *where, const char *text, const struct option_key *keys,
                            void *object, uint64_t *seen);

/*
 * A list as it is before any table is asked: from one text, or item by item from a file, in which
 * each has a place of its own for messages.
 */
struct option_item {
    char *where; /* the three: owned */
    char *name;  /* NULL: the first key's */
    char *value;
};
struct option_list {
    char *where; /* owned: of the whole */
    char *text;  /* owned: all of it as one text */
    struct option_item *items;
    size_t n_items;
};
/* -ENOMEM, logged by the second and third; then, too, the list is to be ended by the last. */
int option_list_init(struct option_list *list, const char *where);
int option_list_split(struct option_list *list, const char *where, const char *text);
int option_list_add(struct option_list *list, const char *where, const char *name,
                    const char *value);
void option_list_fini(struct option_list *list);
/* As options_parse_list_seen(). */
int option_list_read(const struct option_list *list, const struct option_key *keys, void *object,
                     uint64_t *seen);

/* "512M", "1536K", "12 bytes": the largest unit that loses nothing. */
#define OPTION_SIZE_MAX 32
void option_format_size(uint64_t bytes, char *to, size_t size);

#endif
