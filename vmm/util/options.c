/*
 * Options: values and key=value lists, read by tables.
 *
 * Does not know any option of Ferry's, and does not read the command line (vmm/cmd.c) or files.
 * No thread of its own, no locks, no state: any thread may parse.
 */
#include "vmm/util/options.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/util/log.h"

#define LIST_MAX_KEYS 64

/* ---- single values ---- */

int option_parse_string(const struct option_key *key, const char *text, void *field)
{
    char **to = field;
    char *copy;

    (void)key;
    if (*text == '\0')
        return -EINVAL;
    copy = strdup(text);
    if (!copy)
        return -ENOMEM;
    free(*to);
    *to = copy;
    return 0;
}

int option_parse_bool(const struct option_key *key, const char *text, void *field)
{
    bool on = strcmp(text, "on") == 0;

    (void)key;
    if (!on && strcmp(text, "off") != 0)
        return -EINVAL;
    *(bool *)field = on;
    return 0;
}

/* Decimal digits only: no sign, no space, no other base. *end is set behind the last digit. */
static int parse_digits(const char *text, uint64_t *out, const char **end)
{
    uint64_t value = 0;

    if (!isdigit((unsigned char)*text))
        return -EINVAL;
    for (; isdigit((unsigned char)*text); text++) {
        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(*text - '0'), &value))
            return -EINVAL;
    }
    *out = value;
    *end = text;
    return 0;
}

static bool in_limits(const struct option_key *key, uint64_t value)
{
    return value >= key->min && (key->max == 0 || value <= key->max);
}

int option_parse_number(const struct option_key *key, const char *text, void *field)
{
    const char *end;
    uint64_t value;

    if (parse_digits(text, &value, &end) < 0 || *end != '\0' || value > UINT32_MAX ||
        !in_limits(key, value))
        return -EINVAL;
    *(unsigned *)field = (unsigned)value;
    return 0;
}

static int unit_shift(char unit)
{
    switch (unit) {
    case 'K': case 'k': return 10;
    case 'M': case 'm': return 20;
    case 'G': case 'g': return 30;
    case 'T': case 't': return 40;
    }
    return -EINVAL;
}

int option_parse_size(const struct option_key *key, const char *text, void *field)
{
    const char *end;
    uint64_t value;
    int shift;

    if (parse_digits(text, &value, &end) < 0)
        return -EINVAL;
    shift = unit_shift(*end);
    if (shift < 0 || end[1] != '\0' || value > UINT64_MAX >> shift)
        return -EINVAL;
    value <<= shift;
    if (!in_limits(key, value))
        return -EINVAL;
    *(uint64_t *)field = value;
    return 0;
}

int option_parse_choice(const struct option_key *key, const char *text, void *field)
{
    for (const struct option_choice *choice = key->choices; choice->name; choice++) {
        if (strcmp(choice->name, text) == 0) {
            *(int *)field = choice->value;
            return 0;
        }
    }
    return -EINVAL;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)tolower((unsigned char)c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -EINVAL;
}

int option_parse_mac(const struct option_key *key, const char *text, void *field)
{
    struct option_mac mac = {.given = true};
    uint8_t any = 0;

    (void)key;
    if (strlen(text) != 17)
        return -EINVAL;
    for (unsigned i = 0; i < 6; i++) {
        int high = hex_digit(text[3 * i]), low = hex_digit(text[3 * i + 1]);

        if (high < 0 || low < 0 || text[3 * i + 2] != (i < 5 ? ':' : '\0'))
            return -EINVAL;
        mac.bytes[i] = (uint8_t)(high << 4 | low);
        any |= mac.bytes[i];
    }
    if (mac.bytes[0] & 1 || any == 0) /* a station's address has the group bit clear */
        return -EINVAL;
    *(struct option_mac *)field = mac;
    return 0;
}

void option_format_size(uint64_t bytes, char *to, size_t size)
{
    static const char units[] = "KMGT";
    unsigned n = 0;

    while (n < 4 && bytes != 0 && bytes % 1024 == 0) {
        bytes /= 1024;
        n++;
    }
    if (n == 0)
        snprintf(to, size, "%" PRIu64 " bytes", bytes);
    else
        snprintf(to, size, "%" PRIu64 "%c", bytes, units[n - 1]);
}

/* ---- messages ---- */

static void expects_size(const struct option_key *key, char *to, size_t size)
{
    char min[OPTION_SIZE_MAX], max[OPTION_SIZE_MAX];

    option_format_size(key->min, min, sizeof(min));
    option_format_size(key->max, max, sizeof(max));
    if (key->max > 0)
        snprintf(to, size, "a size from %s to %s", min, max);
    else if (key->min > 0)
        snprintf(to, size, "a size such as 512M or 2G, at least %s,", min);
    else
        snprintf(to, size, "a size such as 512M or 2G");
}

static void expects_choice(const struct option_key *key, char *to, size_t size)
{
    size_t used = 0;

    to[0] = '\0';
    for (const struct option_choice *choice = key->choices; choice->name; choice++) {
        const char *between = used == 0 ? "" : choice[1].name ? ", " : " or ";
        int n = snprintf(to + used, size - used, "%s%s", between, choice->name);

        if (n < 0 || (size_t)n >= size - used)
            return;
        used += (size_t)n;
    }
}

/* Writes what key's value must be: key->expects, or made of its limits or choices. */
static void tell_expected(const struct option_key *key, char *to, size_t size)
{
    if (key->expects)
        snprintf(to, size, "%s", key->expects);
    else if (key->parse == option_parse_number && key->max > 0)
        snprintf(to, size, "a number from %" PRIu64 " to %" PRIu64, key->min, key->max);
    else if (key->parse == option_parse_number)
        snprintf(to, size, "a number, at least %" PRIu64 ",", key->min);
    else if (key->parse == option_parse_size)
        expects_size(key, to, size);
    else if (key->parse == option_parse_choice)
        expects_choice(key, to, size);
    else if (key->parse == option_parse_bool)
        snprintf(to, size, "on or off");
    else if (key->parse == option_parse_mac)
        snprintf(to, size, "a station's address such as 52:54:00:12:34:56");
    else
        snprintf(to, size, "a value");
}

/* Logs why `text` was refused. `name` is NULL for a value that stands alone. */
static int refuse(const char *where, const char *name, const char *text,
                  const struct option_key *key, int error)
{
    const char *equals = name ? "=" : "";
    char expects[160];

    name = name ? name : "";
    tell_expected(key, expects, sizeof(expects));
    if (error == -ENOMEM)
        log_error("%s: out of memory", where);
    else if (error == -ENOSPC)
        log_error("%s: %s%s'%s' is one too many", where, name, equals, text);
    else
        log_error("%s: %s%s'%s' is not valid: %s was expected", where, name, equals, text, expects);
    return error;
}

int option_set(const char *where, const struct option_key *key, const char *text, void *object)
{
    int error = key->parse(key, text, (char *)object + key->offset);

    return error < 0 ? refuse(where, NULL, text, key, error) : 0;
}

/* ---- lists ---- */

/*
 * Cuts the first item off *rest and undoes its doubled commas, in place. NULL when none is left;
 * *rest is NULL after the last.
 */
static char *next_item(char **rest)
{
    char *item = *rest, *to = *rest;

    if (!item)
        return NULL;
    for (char *from = item;; from++) {
        if (*from == '\0') {
            *rest = NULL;
            break;
        }
        if (from[0] == ',' && from[1] != ',') {
            *rest = from + 1;
            break;
        }
        if (*from == ',')
            from++;
        *to++ = *from;
    }
    *to = '\0';
    return item;
}

/* The '=' that ends the item's key, or NULL when the item is a value alone. */
static char *find_equals(char *item)
{
    char *c = item;

    while (isalnum((unsigned char)*c) || *c == '-' || *c == '_')
        c++;
    return *c == '=' && c > item ? c : NULL;
}

static const struct option_key *find_key(const struct option_key *keys, const char *name)
{
    for (const struct option_key *key = keys; key->name; key++) {
        if (strcmp(key->name, name) == 0)
            return key;
    }
    return NULL;
}

static void log_unknown(const char *where, const char *name, const struct option_key *keys)
{
    char known[400];
    size_t used = 0;

    known[0] = '\0';
    /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): the callers' tables are never NULL */
    for (const struct option_key *key = keys; key->name && used < sizeof(known); key++) {
        int n = snprintf(known + used, sizeof(known) - used, "%s%s", used ? ", " : "", key->name);

        used += n > 0 ? (size_t)n : 0;
    }
    log_error("%s: unknown key '%s': one of %s was expected", where, name, known);
}

/* One item of a list. `seen` has a bit for each key that came. */
static int read_item(const struct option_item *item, const struct option_key *keys, uint64_t *seen,
                     void *object)
{
    const struct option_key *key = item->name ? find_key(keys, item->name) : keys;
    uint64_t bit;
    int error;

    if (!key) {
        log_unknown(item->where, item->name, keys);
        return -EINVAL;
    }
    bit = 1ull << (key - keys);
    if (*seen & bit && !key->repeatable) {
        log_error("%s: %s was given twice", item->where, key->name);
        return -EINVAL;
    }
    *seen |= bit;
    error = key->parse(key, item->value, (char *)object + key->offset);
    return error < 0 ? refuse(item->where, item->name, item->value, key, error) : 0;
}

int option_list_read(const struct option_list *list, const struct option_key *keys, void *object,
                     uint64_t *seen)
{
    int error = 0;

    *seen = 0;
    for (size_t i = 0; error == 0 && i < list->n_items; i++) {
        const struct option_item *item = &list->items[i];

        if (!item->name && i > 0) {
            log_error("%s: '%s' is not valid: KEY=VALUE was expected", item->where, item->value);
            return -EINVAL;
        }
        error = read_item(item, keys, seen, object);
    }
    for (unsigned i = 0; error == 0 && i < LIST_MAX_KEYS && keys[i].name; i++) {
        if (keys[i].required && !(*seen & 1ull << i)) {
            log_error("%s: '%s' lacks %s=", list->where, list->text, keys[i].name);
            error = -EINVAL;
        }
    }
    return error;
}

/* ---- making lists ---- */

/* Appends an item to the list's text, its commas doubled. -ENOMEM. */
static int append_text(struct option_list *list, const char *name, const char *value)
{
    size_t old = strlen(list->text);
    size_t more = 2 + (name ? strlen(name) + 1 : 0) + 2 * strlen(value);
    char *text = realloc(list->text, old + more), *to;

    if (!text)
        return -ENOMEM;
    list->text = text;
    to = text + old;
    if (list->n_items > 0)
        *to++ = ',';
    if (name)
        to += sprintf(to, "%s=", name);
    for (; *value; value++) {
        if (*value == ',')
            *to++ = ',';
        *to++ = *value;
    }
    *to = '\0';
    return 0;
}

int option_list_add(struct option_list *list, const char *where, const char *name,
                    const char *value)
{
    struct option_item item = {.where = strdup(where), .name = name ? strdup(name) : NULL,
                               .value = strdup(value)};
    struct option_item *items = realloc(list->items, (list->n_items + 1) * sizeof(*items));

    if (items)
        list->items = items;
    if (!items || !item.where || (name && !item.name) || !item.value ||
        append_text(list, name, value) < 0) {
        free(item.where);
        free(item.name);
        free(item.value);
        log_error("%s: out of memory", where);
        return -ENOMEM;
    }
    list->items[list->n_items++] = item;
    return 0;
}

int option_list_split(struct option_list *list, const char *where, const char *text)
{
    char *copy = strdup(text), *rest = copy, *item;
    int error = copy && option_list_init(list, where) == 0 ? 0 : -ENOMEM;

    if (error)
        log_error("%s: out of memory", where);
    while (error == 0 && (item = next_item(&rest)) != NULL) {
        char *equals = find_equals(item);

        if (equals)
            *equals = '\0';
        error = option_list_add(list, where, equals ? item : NULL, equals ? equals + 1 : item);
    }
    free(copy);
    return error;
}

int option_list_init(struct option_list *list, const char *where)
{
    *list = (struct option_list){.where = strdup(where), .text = strdup("")};
    return list->where && list->text ? 0 : -ENOMEM;
}

void option_list_fini(struct option_list *list)
{
    for (size_t i = 0; i < list->n_items; i++) {
        free(list->items[i].where);
        free(list->items[i].name);
        free(list->items[i].value);
    }
    free(list->items);
    free(list->where);
    free(list->text);
    *list = (struct option_list){0};
}

int options_parse_list(const char *where, const char *text, const struct option_key *keys,
                       void *object)
{
    uint64_t seen;

    return options_parse_list_seen(where, text, keys, object, &seen);
}

int options_parse_list_seen(const char *where, const char *text, const struct option_key *keys,
                            void *object, uint64_t *seen)
{
    struct option_list list = {0};
    int error = option_list_split(&list, where, text);

    if (!error)
        error = option_list_read(&list, keys, object, seen);
    option_list_fini(&list);
    return error;
}
