/* Devices as the machine sees them: optional operations, and state that is loaded whole or not. */
#include <criterion/criterion.h>
#include <errno.h>

#include "vmm/device.h"
#include "vmm/util/log.h"

struct value {
    uint32_t n;
};

static const struct state_field value_fields[] = {STATE_FIELD(STATE_U32, struct value, n)};
static const struct state_desc first_desc = STATE_DESC("first", 1, struct value, value_fields);
static const struct state_desc second_desc = STATE_DESC("second", 1, struct value, value_fields);

/* Two parts, each a number; numbers over 1000 are not accepted. */
struct toy {
    struct device dev;
    struct value first, second;
    unsigned resets, pauses, resumes, destroys;
    bool busy;
};

static void toy_reset(struct device *dev)
{
    ((struct toy *)dev)->resets++;
}

static void toy_pause(struct device *dev)
{
    ((struct toy *)dev)->pauses++;
}

static bool toy_busy(const struct device *dev)
{
    return ((const struct toy *)dev)->busy;
}

static void toy_resume(struct device *dev)
{
    ((struct toy *)dev)->resumes++;
}

static void toy_destroy(struct device *dev)
{
    ((struct toy *)dev)->destroys++;
}

static void get(void *object, void *state)
{
    *(struct value *)state = *(struct value *)object;
}

static int check(void *object, const void *state)
{
    (void)object;
    return ((const struct value *)state)->n > 1000 ? -EINVAL : 0;
}

static void set(void *object, const void *state)
{
    *(struct value *)object = *(const struct value *)state;
}

static unsigned toy_state(struct device *dev, struct state_part *parts)
{
    struct toy *toy = (struct toy *)dev;

    parts[0] = (struct state_part){
        .desc = &first_desc, .object = &toy->first, .get = get, .check = check, .set = set};
    parts[1] = (struct state_part){
        .desc = &second_desc, .object = &toy->second, .get = get, .check = check, .set = set};
    return 2;
}

static const struct device_ops toy_ops = {
    .type = "toy",
    .reset = toy_reset,
    .pause = toy_pause,
    .busy = toy_busy,
    .resume = toy_resume,
    .state = toy_state,
    .destroy = toy_destroy,
};

/* As little as a device may have. */
static const struct device_ops plain_ops = {
    .type = "plain",
    .reset = toy_reset,
    .destroy = toy_destroy,
};

static void drop_line(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
}

static void be_quiet(void)
{
    log_set_sink(drop_line);
}

TestSuite(device, .init = be_quiet);

Test(device, operations_reach_the_device)
{
    struct toy toy = {.dev = {.ops = &toy_ops, .id = "toy0"}, .busy = true};

    device_reset(&toy.dev);
    device_pause(&toy.dev);
    cr_assert(device_busy(&toy.dev));
    toy.busy = false;
    cr_assert_not(device_busy(&toy.dev));
    device_resume(&toy.dev);
    device_destroy(&toy.dev);
    cr_assert_eq(toy.resets + toy.pauses + toy.resumes + toy.destroys, 4);
}

Test(device, a_device_without_pause_is_never_busy)
{
    struct toy toy = {.dev = {.ops = &plain_ops, .id = "plain0"}, .busy = true};

    device_pause(&toy.dev);
    cr_assert_not(device_busy(&toy.dev));
    device_resume(&toy.dev);
}

Test(device, a_device_without_state_saves_and_loads_nothing)
{
    struct toy toy = {.dev = {.ops = &plain_ops, .id = "plain0"}};
    struct state_buffer buffer = {0};
    struct state_reader in = {0};

    cr_assert_eq(device_save(&toy.dev, &buffer), 0);
    cr_assert_eq(buffer.length, 0);
    cr_assert_eq(device_load(&toy.dev, &in), 0);
}

/* Saves a toy of the two numbers, loads it into a toy of 1 and 2. */
static int transfer(uint32_t first, uint32_t second, struct toy *to, size_t cut)
{
    struct toy from = {.dev = {.ops = &toy_ops, .id = "toy0"}, .first = {first},
                       .second = {second}};
    struct state_buffer buffer = {0};
    struct state_reader in;
    int err;

    *to = (struct toy){.dev = {.ops = &toy_ops, .id = "toy1"}, .first = {1}, .second = {2}};
    cr_assert_eq(device_save(&from.dev, &buffer), 0);
    in = (struct state_reader){.data = buffer.data, .length = buffer.length - cut};
    err = device_load(&to->dev, &in);
    cr_assert_eq(in.at, err ? 0 : buffer.length);
    state_buffer_fini(&buffer);
    return err;
}

Test(device, all_parts_are_loaded)
{
    struct toy toy;

    cr_assert_eq(transfer(10, 20, &toy, 0), 0);
    cr_assert_eq(toy.first.n, 10);
    cr_assert_eq(toy.second.n, 20);
}

Test(device, a_part_that_is_refused_leaves_every_part_as_it_was)
{
    struct toy toy;

    cr_assert_eq(transfer(10, 2000, &toy, 0), -EINVAL);
    cr_assert_eq(toy.first.n, 1);
    cr_assert_eq(toy.second.n, 2);
    cr_assert_eq(transfer(2000, 20, &toy, 0), -EINVAL);
    cr_assert_eq(toy.first.n, 1);
    cr_assert_eq(toy.second.n, 2);
}

Test(device, a_record_that_ends_early_leaves_every_part_as_it_was)
{
    struct toy toy;

    cr_assert_eq(transfer(10, 20, &toy, 1), -ENODATA);
    cr_assert_eq(toy.first.n, 1);
    cr_assert_eq(toy.second.n, 2);
}
