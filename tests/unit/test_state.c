/* State descriptions: what is written, that it is read back, and each way a record can be wrong. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "vmm/util/log.h"
#include "vmm/util/state.h"

struct inner {
    uint16_t a;
    bool b;
};

struct sample {
    uint8_t byte;
    uint64_t quad; /* behind padding, which is not written */
    uint16_t words[3];
    bool flag;
    struct inner one;
    struct inner many[2];
    uint32_t added;
};

static const struct state_field inner_fields[] = {
    STATE_FIELD(STATE_U16, struct inner, a),
    STATE_FIELD(STATE_BOOL, struct inner, b),
};
static const struct state_desc inner_desc = STATE_DESC("inner", 1, struct inner, inner_fields);

static const struct state_field sample_fields[] = {
    STATE_FIELD(STATE_U8, struct sample, byte),
    STATE_FIELD(STATE_U64, struct sample, quad),
    STATE_ARRAY(STATE_U16, struct sample, words),
    STATE_FIELD(STATE_BOOL, struct sample, flag),
    STATE_SUB(struct sample, one, &inner_desc),
    STATE_SUB_ARRAY(struct sample, many, &inner_desc),
    STATE_FIELD_SINCE(STATE_U32, struct sample, added, 3),
};
static const struct state_desc sample_desc = {
    .name = "sample",
    .version = 3,
    .oldest = 2,
    .size = sizeof(struct sample),
    .n_fields = sizeof(sample_fields) / sizeof(sample_fields[0]),
    .fields = sample_fields,
};

#define PAYLOAD_BYTES (1 + 8 + 6 + 1 + 3 + 6 + 4)
#define NAME_BYTES 6
#define HEAD_BYTES (2 + NAME_BYTES + 2 + 4)
#define VERSION_AT (2 + NAME_BYTES)
#define LENGTH_AT (VERSION_AT + 2)

static const struct sample original = {
    .byte = 0x12,
    .quad = 0x1122334455667788ull,
    .words = {0x0102, 0x0304, 0x0506},
    .flag = true,
    .one = {.a = 0xAABB, .b = false},
    .many = {{.a = 1, .b = true}, {.a = 2, .b = true}},
    .added = 0xCAFEF00D,
};

static struct state_buffer buffer;

static void drop_line(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
}

static void save_sample(void)
{
    log_set_sink(drop_line);
    cr_assert_eq(state_save(&sample_desc, &original, &buffer), 0);
}

static void drop_buffer(void)
{
    state_buffer_fini(&buffer);
}

TestSuite(state, .init = save_sample, .fini = drop_buffer);

/* What loading the buffer gives; asserts that a failure leaves the reader where it was. */
static int load(struct sample *to)
{
    struct state_reader in = {.data = buffer.data, .length = buffer.length};
    int err = state_load(&sample_desc, to, &in);

    cr_assert_eq(in.at, err ? 0 : buffer.length);
    return err;
}

static void assert_same(const struct sample *got)
{
    cr_assert_eq(got->byte, original.byte);
    cr_assert_eq(got->quad, original.quad);
    cr_assert_arr_eq(got->words, original.words, sizeof(original.words));
    cr_assert_eq(got->flag, original.flag);
    cr_assert_eq(got->one.a, original.one.a);
    cr_assert_eq(got->one.b, original.one.b);
    for (int i = 0; i < 2; i++) {
        cr_assert_eq(got->many[i].a, original.many[i].a);
        cr_assert_eq(got->many[i].b, original.many[i].b);
    }
}

Test(state, what_is_saved_is_loaded)
{
    struct sample got;

    memset(&got, 0xEE, sizeof(got));
    cr_assert_eq(load(&got), 0);
    assert_same(&got);
    cr_assert_eq(got.added, original.added);
}

Test(state, the_encoding_is_little_endian_and_without_padding)
{
    static const uint8_t head[] = {6, 0, 's', 'a', 'm', 'p', 'l', 'e', 3, 0, PAYLOAD_BYTES, 0, 0, 0,
                                   0x12, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
                                   0x02, 0x01, 0x04, 0x03, 0x06, 0x05, 1, 0xBB, 0xAA, 0,
                                   1, 0, 1, 2, 0, 1, 0x0D, 0xF0, 0xFE, 0xCA};

    cr_assert_eq(buffer.length, sizeof(head));
    cr_assert_arr_eq(buffer.data, head, sizeof(head));
}

Test(state, records_follow_each_other)
{
    struct state_reader in;
    struct sample got;

    cr_assert_eq(state_save(&sample_desc, &original, &buffer), 0);
    in = (struct state_reader){.data = buffer.data, .length = buffer.length};
    cr_assert_eq(state_load(&sample_desc, &got, &in), 0);
    cr_assert_eq(in.at, buffer.length / 2);
    cr_assert_eq(state_load(&sample_desc, &got, &in), 0);
    cr_assert_eq(in.at, buffer.length);
    cr_assert_eq(state_load(&sample_desc, &got, &in), -ENODATA);
    cr_assert_eq(in.at, buffer.length);
}

Test(state, an_older_record_leaves_later_fields_zero)
{
    struct sample got;

    memset(&got, 0xEE, sizeof(got));
    buffer.data[VERSION_AT] = 2;
    buffer.data[LENGTH_AT] = PAYLOAD_BYTES - 4;
    buffer.length -= 4;
    cr_assert_eq(load(&got), 0);
    assert_same(&got);
    cr_assert_eq(got.added, 0);
}

Test(state, a_record_that_ends_too_early_is_refused_wherever_it_ends)
{
    size_t whole = buffer.length;
    struct sample got;

    for (buffer.length = 0; buffer.length < whole; buffer.length++)
        cr_assert_eq(load(&got), -ENODATA, "cut at %zu", buffer.length);
}

Test(state, another_name_is_refused)
{
    struct sample got;

    buffer.data[2] = 'S';
    cr_assert_eq(load(&got), -EBADMSG);
}

Test(state, a_name_of_another_length_is_refused)
{
    struct sample got;

    buffer.data[0] = 5;
    cr_assert_eq(load(&got), -EBADMSG);
}

Test(state, a_version_too_old_or_too_new_is_refused)
{
    struct sample got;

    buffer.data[VERSION_AT] = 1;
    cr_assert_eq(load(&got), -EOPNOTSUPP);
    buffer.data[VERSION_AT] = 4;
    cr_assert_eq(load(&got), -EOPNOTSUPP);
    buffer.data[VERSION_AT] = 0;
    cr_assert_eq(load(&got), -EOPNOTSUPP);
}

Test(state, a_payload_that_does_not_fit_the_version_is_refused)
{
    struct sample got;

    buffer.data[LENGTH_AT] = PAYLOAD_BYTES - 1;
    cr_assert_eq(load(&got), -EBADMSG);
    buffer.data[LENGTH_AT] = PAYLOAD_BYTES;
    buffer.data[VERSION_AT] = 2;
    cr_assert_eq(load(&got), -EBADMSG);
}

Test(state, a_huge_payload_length_is_not_believed)
{
    struct sample got;

    memset(&buffer.data[LENGTH_AT], 0xFF, 4);
    cr_assert_eq(load(&got), -ENODATA);
}

Test(state, a_bool_that_is_none_is_refused_in_a_struct_too)
{
    struct sample got;

    buffer.data[HEAD_BYTES + 15] = 2; /* flag */
    cr_assert_eq(load(&got), -EBADMSG);
    buffer.data[HEAD_BYTES + 15] = 1;
    buffer.data[HEAD_BYTES + 24] = 0x80; /* many[1].b */
    cr_assert_eq(load(&got), -EBADMSG);
}

Test(state, a_buffer_grows_as_records_are_added)
{
    size_t one = buffer.length;
    struct sample got;
    struct state_reader in;

    for (int i = 1; i < 500; i++)
        cr_assert_eq(state_save(&sample_desc, &original, &buffer), 0);
    cr_assert_eq(buffer.length, 500 * one);
    in = (struct state_reader){.data = buffer.data, .length = buffer.length, .at = 499 * one};
    cr_assert_eq(state_load(&sample_desc, &got, &in), 0);
    assert_same(&got);
}
