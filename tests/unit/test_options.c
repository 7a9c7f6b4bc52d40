/*
 * Options: the parsers of single values, lists of keys, and the one line that each mistake gets.
 *
 * No files, no KVM. One thread a test.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/util/log.h"
#include "vmm/util/options.h"

static char last_line[1024];
static unsigned lines;

static void remember(enum log_level level, const char *line)
{
    (void)level;
    lines++;
    snprintf(last_line, sizeof(last_line), "%s", line);
}

static void set_up(void)
{
    log_set_sink(remember);
}

TestSuite(options, .init = set_up);

enum colour { RED, GREEN };
static const struct option_choice colours[] = {{"red", RED}, {"green", GREEN}, {0}};

struct thing {
    char *path;
    bool big;
    unsigned count;
    uint64_t size;
    enum colour colour;
    struct option_mac mac;
    unsigned visits;
};

/* Accepts two visits. */
static int parse_visit(const struct option_key *key, const char *text, void *field)
{
    unsigned *visits = field;

    (void)key;
    (void)text;
    if (*visits == 2)
        return -ENOSPC;
    ++*visits;
    return 0;
}

static const struct option_key keys[] = {
    {.name = "path",
     .parse = option_parse_string,
     .offset = offsetof(struct thing, path),
     .expects = "a path",
     .required = true},
    {.name = "big", .parse = option_parse_bool, .offset = offsetof(struct thing, big)},
    {.name = "count",
     .parse = option_parse_number,
     .offset = offsetof(struct thing, count),
     .min = 1,
     .max = 8},
    {.name = "size",
     .parse = option_parse_size,
     .offset = offsetof(struct thing, size),
     .min = 1 << 20},
    {.name = "colour",
     .parse = option_parse_choice,
     .offset = offsetof(struct thing, colour),
     .choices = colours},
    {.name = "mac", .parse = option_parse_mac, .offset = offsetof(struct thing, mac)},
    {.name = "visit",
     .parse = parse_visit,
     .offset = offsetof(struct thing, visits),
     .repeatable = true},
    {0},
};

/* Parses `text`, wants the error, and the line that says so (NULL: none). */
static void expect(const char *text, int error, const char *line, struct thing *thing)
{
    *thing = (struct thing){0};
    lines = 0;
    cr_assert_eq(options_parse_list("--thing", text, keys, thing), error, "%s", text);
    cr_assert_eq(lines, line ? 1 : 0, "%s: %u lines", text, lines);
    if (line)
        cr_assert_str_eq(last_line, line);
}

static void expect_refusal(const char *text, const char *line)
{
    struct thing thing;

    expect(text, -EINVAL, line, &thing);
    free(thing.path);
}

Test(options, a_list_sets_each_key_it_names)
{
    struct thing thing;

    expect("a.img,big=on,count=8,size=3M,colour=green,mac=52:54:00:AB:cd:0f", 0, NULL, &thing);
    cr_assert_str_eq(thing.path, "a.img");
    cr_assert(thing.big);
    cr_assert_eq(thing.count, 8);
    cr_assert_eq(thing.size, 3 << 20);
    cr_assert_eq(thing.colour, GREEN);
    cr_assert(thing.mac.given);
    cr_assert_arr_eq(thing.mac.bytes, ((uint8_t[]){0x52, 0x54, 0, 0xAB, 0xCD, 0x0F}), 6);
    free(thing.path);
}

Test(options, the_first_key_may_be_named_and_stand_anywhere)
{
    struct thing thing;

    expect("count=2,path=b", 0, NULL, &thing);
    cr_assert_str_eq(thing.path, "b");
    cr_assert_eq(thing.count, 2);
    free(thing.path);
}

Test(options, a_first_value_with_an_equals_sign_behind_a_slash_is_no_key)
{
    struct thing thing;

    expect("./a=b", 0, NULL, &thing);
    cr_assert_str_eq(thing.path, "./a=b");
    free(thing.path);
}

Test(options, two_commas_are_one_comma_of_the_value)
{
    struct thing thing;

    expect("a,,b,,,count=3", 0, NULL, &thing);
    cr_assert_str_eq(thing.path, "a,b,");
    cr_assert_eq(thing.count, 3);
    free(thing.path);
}

Test(options, an_unknown_key_is_answered_by_the_known_ones)
{
    expect_refusal("a,sise=2M", "--thing: unknown key 'sise': one of path, big, count, size, "
                                "colour, mac, visit was expected");
}

Test(options, a_key_given_twice_is_refused)
{
    expect_refusal("a,count=1,count=2", "--thing: count was given twice");
    expect_refusal("a,path=b", "--thing: path was given twice");
}

Test(options, a_missing_required_key_is_named)
{
    expect_refusal("count=1", "--thing: 'count=1' lacks path=");
}

Test(options, a_value_without_key_is_refused_after_the_first)
{
    expect_refusal("a,big", "--thing: 'big' is not valid: KEY=VALUE was expected");
    expect_refusal("a,", "--thing: '' is not valid: KEY=VALUE was expected");
}

Test(options, an_empty_list_lacks_its_first_value)
{
    expect_refusal("", "--thing: '' is not valid: a path was expected");
}

Test(options, a_wrong_value_is_answered_by_what_was_expected)
{
    expect_refusal("a,big=yes", "--thing: big='yes' is not valid: on or off was expected");
    expect_refusal("a,count=9",
                   "--thing: count='9' is not valid: a number from 1 to 8 was expected");
    expect_refusal("a,colour=blue", "--thing: colour='blue' is not valid: red or green was expected");
    expect_refusal("a,size=1K", "--thing: size='1K' is not valid: a size such as 512M or 2G, at "
                                "least 1M, was expected");
    expect_refusal("a,mac=1", "--thing: mac='1' is not valid: a station's address such as "
                              "52:54:00:12:34:56 was expected");
}

Test(options, a_repeatable_key_that_comes_too_often_is_one_too_many)
{
    struct thing thing;

    expect("a,visit=x,visit=y,visit=z", -ENOSPC, "--thing: visit='z' is one too many", &thing);
    cr_assert_eq(thing.visits, 2);
    free(thing.path);
}

static int number(const char *text, unsigned *out)
{
    static const struct option_key key = {.min = 0, .max = 100};

    return option_parse_number(&key, text, out);
}

Test(options, a_number_is_digits_and_nothing_else)
{
    unsigned value = 7;

    cr_assert_eq(number("", &value), -EINVAL);
    cr_assert_eq(number("-1", &value), -EINVAL);
    cr_assert_eq(number("+1", &value), -EINVAL);
    cr_assert_eq(number(" 1", &value), -EINVAL);
    cr_assert_eq(number("0x1", &value), -EINVAL);
    cr_assert_eq(number("1.5", &value), -EINVAL);
    cr_assert_eq(number("1 ", &value), -EINVAL);
    cr_assert_eq(value, 7, "a refused text changed the field");
    cr_assert_eq(number("100", &value), 0);
    cr_assert_eq(value, 100);
}

Test(options, a_number_that_would_wrap_is_refused)
{
    static const struct option_key unlimited = {0};
    unsigned value = 7;

    cr_assert_eq(option_parse_number(&unlimited, "4294967296", &value), -EINVAL);
    cr_assert_eq(option_parse_number(&unlimited, "18446744073709551617", &value), -EINVAL);
    cr_assert_eq(option_parse_number(&unlimited, "36893488147419103240", &value), -EINVAL);
    cr_assert_eq(option_parse_number(&unlimited, "4294967295", &value), 0);
    cr_assert_eq(value, UINT32_MAX);
}

static int size(const char *text, uint64_t *out)
{
    static const struct option_key key = {0};

    return option_parse_size(&key, text, out);
}

Test(options, a_size_is_digits_and_one_unit)
{
    uint64_t value = 7;

    cr_assert_eq(size("512", &value), -EINVAL);
    cr_assert_eq(size("M", &value), -EINVAL);
    cr_assert_eq(size("1MB", &value), -EINVAL);
    cr_assert_eq(size("1E", &value), -EINVAL);
    cr_assert_eq(size("1.5G", &value), -EINVAL);
    cr_assert_eq(size("-1G", &value), -EINVAL);
    cr_assert_eq(value, 7, "a refused text changed the field");
    cr_assert_eq(size("3k", &value), 0);
    cr_assert_eq(value, 3072);
    cr_assert_eq(size("2T", &value), 0);
    cr_assert_eq(value, 2ull << 40);
}

Test(options, a_size_that_would_wrap_is_refused)
{
    uint64_t value = 7;

    cr_assert_eq(size("16777216T", &value), -EINVAL);
    cr_assert_eq(size("99999999999999999999K", &value), -EINVAL);
    cr_assert_eq(size("16777215T", &value), 0);
    cr_assert_eq(value, 16777215ull << 40);
}

static int mac(const char *text, struct option_mac *out)
{
    static const struct option_key key = {0};

    return option_parse_mac(&key, text, out);
}

Test(options, an_address_is_a_stations_own)
{
    struct option_mac out = {0};

    cr_assert_eq(mac("01:00:5e:00:00:01", &out), -EINVAL, "a group address");
    cr_assert_eq(mac("ff:ff:ff:ff:ff:ff", &out), -EINVAL, "broadcast");
    cr_assert_eq(mac("00:00:00:00:00:00", &out), -EINVAL, "zero");
    cr_assert_eq(mac("52-54-00-12-34-56", &out), -EINVAL, "dashes");
    cr_assert_eq(mac("52:54:00:12:34:5", &out), -EINVAL, "short");
    cr_assert_eq(mac("52:54:00:12:34:567", &out), -EINVAL, "long");
    cr_assert_eq(mac("52:54:00:12:34:5g", &out), -EINVAL, "no hexadecimal digit");
    cr_assert_not(out.given);
    cr_assert_eq(mac("00:00:00:00:00:01", &out), 0);
    cr_assert(out.given);
}

Test(options, a_string_replaces_the_one_before)
{
    char *text = strdup("old");

    cr_assert_eq(option_parse_string(&keys[0], "new", &text), 0);
    cr_assert_str_eq(text, "new");
    free(text);
}

Test(options, a_size_is_written_in_the_largest_unit_that_loses_nothing)
{
    char text[OPTION_SIZE_MAX];

    option_format_size(512ull << 20, text, sizeof(text));
    cr_assert_str_eq(text, "512M");
    option_format_size(1536, text, sizeof(text));
    cr_assert_str_eq(text, "1536 bytes");
    option_format_size(5ull << 50, text, sizeof(text));
    cr_assert_str_eq(text, "5120T");
    option_format_size(0, text, sizeof(text));
    cr_assert_str_eq(text, "0 bytes");
}

/* ---- lists item by item ---- */

Test(options, a_list_made_of_items_reads_like_its_text)
{
    struct option_list list;
    struct thing thing = {0}, same = {0};
    uint64_t seen, same_seen;

    cr_assert_eq(option_list_init(&list, "file:1"), 0);
    cr_assert_eq(option_list_add(&list, "file:1", NULL, "a,b"), 0);
    cr_assert_eq(option_list_add(&list, "file:2", "count", "7"), 0);
    cr_assert_str_eq(list.text, "a,,b,count=7");
    cr_assert_eq(option_list_read(&list, keys, &thing, &seen), 0);
    cr_assert_eq(options_parse_list_seen("--thing", list.text, keys, &same, &same_seen), 0);
    cr_assert_eq(seen, same_seen);
    cr_assert_eq(thing.count, same.count);
    cr_assert_str_eq(thing.path, same.path);
    option_list_fini(&list);
    free(thing.path);
    free(same.path);
}

Test(options, an_item_is_refused_by_the_place_where_it_stands)
{
    struct option_list list;
    struct thing thing = {0};
    uint64_t seen;

    cr_assert_eq(option_list_init(&list, "file:1"), 0);
    cr_assert_eq(option_list_add(&list, "file:2", "count", "many"), 0);
    cr_assert_eq(option_list_read(&list, keys, &thing, &seen), -EINVAL);
    cr_assert_str_eq(last_line, "file:2: count='many' is not valid: a number from 1 to 8 was expected");
    option_list_fini(&list);
}
