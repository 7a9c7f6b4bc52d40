/*
 * The virtio device between class and transport: status, features, queues, interrupts, pause and
 * state, with a class that takes notes and a transport that counts.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>

#include "devices/virtio/virtio.h"
#include "tests/unit/fake_class.h"
#include "tests/unit/fake_driver.h"
#include "tests/unit/fake_env.h"
#include "vmm/util/log.h"

#define RING_AT 0x10000ull
#define RING_STEP 0x10000ull
#define DATA_AT 0x80000ull

#define ACK VIRTIO_CONFIG_S_ACKNOWLEDGE
#define DRIVER VIRTIO_CONFIG_S_DRIVER
#define FEATURES VIRTIO_CONFIG_S_FEATURES_OK
#define READY VIRTIO_CONFIG_S_DRIVER_OK
#define BROKEN VIRTIO_CONFIG_S_NEEDS_RESET

static struct fake_env fake;
static struct fake_class *fc;
static struct virtio_device *vdev;
static struct fake_transport transport;
static struct fake_queue queues[FAKE_CLASS_QUEUES];
static unsigned lines; /* logged */

static void count_line(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
    lines++;
}

static void set_up(void)
{
    log_set_sink(count_line);
    fake_env_init(&fake, 4 * MIB);
    fc = fake_class_create(&fake.env, "fake0");
    vdev = &fc->vdev;
    fake_transport_attach(&transport, vdev);
    for (unsigned i = 0; i < FAKE_CLASS_QUEUES; i++)
        fake_queue_init(&queues[i], fake.env.mem, RING_AT + i * RING_STEP, 16);
}

static void tear_down(void)
{
    fake_class_drop(fc);
    fake_env_fini(&fake);
}

TestSuite(virtio, .init = set_up, .fini = tear_down, .timeout = 60);

static void set_features(uint64_t features)
{
    virtio_set_driver_features(vdev, 0, (uint32_t)features);
    virtio_set_driver_features(vdev, 1, (uint32_t)(features >> 32));
}

/* ---- status and features ---- */

Test(virtio, offers_the_classs_features_and_the_engines)
{
    cr_assert_eq(virtio_offered(vdev),
                 1ull << FAKE_CLASS_FEATURE_A | 1ull << FAKE_CLASS_FEATURE_B |
                     1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_EVENT_IDX |
                     1ull << VIRTIO_RING_F_INDIRECT_DESC | 1ull << VIRTIO_F_RING_PACKED);
}

Test(virtio, goes_through_the_status_bits_as_a_driver_sets_them)
{
    virtio_set_status(vdev, ACK);
    cr_assert_eq(virtio_get_status(vdev), ACK);
    virtio_set_status(vdev, ACK | DRIVER);
    set_features(1ull << VIRTIO_F_VERSION_1 | 1ull << FAKE_CLASS_FEATURE_A);
    virtio_set_status(vdev, ACK | DRIVER | FEATURES);
    cr_assert_eq(virtio_get_status(vdev), ACK | DRIVER | FEATURES);
    cr_assert_eq(fc->starts, 0);
    virtio_set_status(vdev, ACK | DRIVER | FEATURES | READY);
    cr_assert_eq(virtio_get_status(vdev), ACK | DRIVER | FEATURES | READY);
    cr_assert_eq(fc->starts, 1);
    cr_assert(fc->started_ok);
    cr_assert(virtio_has(vdev, FAKE_CLASS_FEATURE_A));
    cr_assert_not(virtio_has(vdev, FAKE_CLASS_FEATURE_B));
}

Test(virtio, refuses_a_feature_that_was_not_offered)
{
    set_features(1ull << VIRTIO_F_VERSION_1 | 1ull << 5);
    virtio_set_status(vdev, ACK | DRIVER | FEATURES);
    cr_assert_eq(virtio_get_status(vdev), ACK | DRIVER);
    cr_assert_eq(vdev->negotiated, 0);
    set_features(1ull << VIRTIO_F_VERSION_1);
    virtio_set_status(vdev, ACK | DRIVER | FEATURES);
    cr_assert_eq(virtio_get_status(vdev), ACK | DRIVER | FEATURES, "a second try may do");
}

Test(virtio, refuses_a_driver_without_version_1)
{
    set_features(1ull << FAKE_CLASS_FEATURE_A);
    virtio_set_status(vdev, ACK | DRIVER | FEATURES);
    cr_assert_eq(virtio_get_status(vdev), ACK | DRIVER);
}

Test(virtio, refuses_driver_ok_without_agreed_features)
{
    virtio_set_status(vdev, ACK | DRIVER | READY);
    cr_assert_eq(virtio_get_status(vdev), ACK | DRIVER);
    virtio_set_status(vdev, ACK | DRIVER | FEATURES | READY);
    cr_assert_eq(virtio_get_status(vdev), ACK | DRIVER, "no VERSION_1");
    cr_assert_eq(fc->starts, 0);
}

Test(virtio, features_are_final_once_agreed)
{
    set_features(1ull << VIRTIO_F_VERSION_1);
    virtio_set_status(vdev, FEATURES);
    set_features(1ull << VIRTIO_F_VERSION_1 | 1ull << FAKE_CLASS_FEATURE_B);
    cr_assert_eq(vdev->negotiated, 1ull << VIRTIO_F_VERSION_1);
    cr_assert_eq(vdev->driver_features, 1ull << VIRTIO_F_VERSION_1);
}

Test(virtio, features_beyond_64_bits_are_ignored)
{
    set_features(1ull << VIRTIO_F_VERSION_1);
    virtio_set_driver_features(vdev, 2, 0xFFFFFFFF);
    virtio_set_driver_features(vdev, UINT32_MAX, 0xFFFFFFFF);
    cr_assert_eq(vdev->driver_features, 1ull << VIRTIO_F_VERSION_1);
}

Test(virtio, status_bits_cannot_be_cleared_one_by_one)
{
    virtio_set_status(vdev, ACK | DRIVER);
    virtio_set_status(vdev, DRIVER);
    cr_assert_eq(virtio_get_status(vdev), ACK | DRIVER);
}

Test(virtio, the_driver_cannot_set_the_devices_own_or_unknown_bits)
{
    virtio_set_status(vdev, ACK | BROKEN | 0x30);
    cr_assert_eq(virtio_get_status(vdev), ACK);
}

Test(virtio, reset_forgets_the_driver)
{
    uint32_t generation = vdev->generation;

    fake_driver_start(vdev, 1ull << FAKE_CLASS_FEATURE_A, queues, 2);
    vdev->config_msix_vector = 1;
    virtio_set_status(vdev, 0);
    cr_assert_eq(virtio_get_status(vdev), 0);
    cr_assert_eq(vdev->negotiated, 0);
    cr_assert_eq(vdev->driver_features, 0);
    cr_assert_eq(vdev->config_msix_vector, VIRTIO_MSI_NO_VECTOR);
    cr_assert_eq(vdev->generation, generation + 1);
    cr_assert_not(vdev->queues[0].st.enabled);
    cr_assert_not(virtio_device_live(vdev));
    cr_assert_eq(fc->resets, 1);
}

Test(virtio, status_reads_nonzero_until_what_was_in_flight_is_finished)
{
    fake_driver_start(vdev, 0, queues, 1);
    fc->busy = true;
    virtio_set_status(vdev, 0);
    cr_assert_neq(virtio_get_status(vdev), 0);
    fc->busy = false;
    cr_assert_eq(virtio_get_status(vdev), 0);
}

/* ---- queues ---- */

Test(virtio, an_impossible_queue_breaks_the_device)
{
    set_features(1ull << VIRTIO_F_VERSION_1);
    virtio_set_status(vdev, FEATURES);
    vdev->queues[0].st.size = 3;
    virtio_queue_enable(vdev, 0);
    cr_assert_not(vdev->queues[0].st.enabled);
    cr_assert_eq(virtio_get_status(vdev), FEATURES | BROKEN);
    cr_assert_eq(lines, 1);
    cr_assert_eq(transport.config_interrupts, 0, "there is no driver to tell yet");
    virtio_set_status(vdev, FEATURES | READY);
    cr_assert_eq(transport.config_interrupts, 1, "now there is");
}

Test(virtio, a_queue_enabled_before_the_features_breaks_the_device)
{
    vdev->queues[0].st.size = 16;
    virtio_queue_enable(vdev, 0);
    cr_assert_not(vdev->queues[0].st.enabled);
    cr_assert(virtio_get_status(vdev) & BROKEN);
}

Test(virtio, enabling_a_queue_twice_changes_nothing)
{
    fake_driver_start(vdev, 0, queues, 1);
    vdev->queues[0].st.size = 3;
    virtio_queue_enable(vdev, 0);
    cr_assert_not(virtio_get_status(vdev) & BROKEN);
}

Test(virtio, kicks_reach_the_class_only_while_queue_and_device_are_live)
{
    virtio_queue_kicked(vdev, 0);
    cr_assert_eq(fc->kicks[0], 0, "nothing is set up");
    fake_driver_start(vdev, 0, queues, 2);
    virtio_queue_kicked(vdev, 0);
    virtio_queue_kicked(vdev, 2);
    virtio_queue_kicked(vdev, FAKE_CLASS_QUEUES);
    virtio_queue_kicked(vdev, UINT32_MAX);
    cr_assert_eq(fc->kicks[0], 1);
    cr_assert_eq(fc->kicks[2], 0, "not enabled");
    virtio_device_broken(vdev, "for the test");
    virtio_queue_kicked(vdev, 0);
    cr_assert_eq(fc->kicks[0], 1, "broken");
    virtio_set_status(vdev, 0);
    virtio_queue_kicked(vdev, 0);
    cr_assert_eq(fc->kicks[0], 1, "reset");
}

/* ---- interrupts ---- */

static void pass_one(unsigned queue)
{
    const struct fake_piece piece = {.gpa = DATA_AT, .length = 8, .writable = true};

    fc->echo = true;
    fake_queue_add(&queues[queue], &piece, 1);
    fake_driver_kick(vdev, queue);
}

Test(virtio, a_returned_request_interrupts_its_own_queue)
{
    fake_driver_start(vdev, 0, queues, 3);
    pass_one(1);
    cr_assert_eq(transport.queue_interrupts[1], 1);
    cr_assert_eq(transport.queue_interrupts[0] + transport.queue_interrupts[2], 0);
}

Test(virtio, a_configuration_change_interrupts_a_driver_that_is_ready)
{
    virtio_config_changed(vdev);
    cr_assert_eq(transport.config_interrupts, 0);
    cr_assert_eq(vdev->config_generation, 1);
    fake_driver_start(vdev, 0, queues, 1);
    virtio_config_changed(vdev);
    cr_assert_eq(transport.config_interrupts, 1);
    cr_assert_eq(vdev->config_generation, 2);
}

Test(virtio, a_broken_device_tells_once_and_ignores_its_queues)
{
    fake_driver_start(vdev, 0, queues, 1);
    virtio_device_broken(vdev, "for the test");
    virtio_device_broken(vdev, "for the test");
    cr_assert_eq(transport.config_interrupts, 1);
    cr_assert_eq(lines, 1);
    cr_assert_eq(virtio_get_status(vdev), ACK | DRIVER | FEATURES | READY | BROKEN);
    cr_assert_not(virtio_device_live(vdev));
}

Test(virtio, a_driver_that_breaks_its_device_again_and_again_fills_no_log)
{
    for (int i = 0; i < 1000; i++) {
        virtio_device_broken(vdev, "for the test");
        virtio_set_status(vdev, 0);
    }
    cr_assert_leq(lines, 3 * LOG_RATE_BURST);
}

Test(virtio, a_bad_chain_breaks_the_device_and_a_reset_heals_it)
{
    fake_driver_start(vdev, 0, queues, 1);
    fc->echo = true;
    fake_desc_write(&queues[0], 0, UINT64_MAX, 16, 0, 0);
    cr_assert_eq(memory_fill(fake.env.mem, queues[0].avail + 2, 1, 1), 0);
    fake_driver_kick(vdev, 0);
    cr_assert(virtio_get_status(vdev) & BROKEN);
    fake_driver_reset(vdev);
    fake_queue_init(&queues[0], fake.env.mem, RING_AT, 16);
    fake_driver_start(vdev, 0, queues, 1);
    pass_one(0);
    cr_assert_eq(fake_queue_used_idx(&queues[0]), 1);
}

/* ---- pause ---- */

Test(virtio, kicks_while_paused_are_made_good_by_resume)
{
    fake_driver_start(vdev, 0, queues, 2);
    virtio_pause(vdev);
    cr_assert_eq(fc->pauses, 1);
    pass_one(0);
    cr_assert_eq(fc->kicks[0], 0);
    cr_assert_eq(fake_queue_used_idx(&queues[0]), 0);
    virtio_resume(vdev);
    cr_assert_eq(fc->resumes, 1);
    cr_assert_eq(fc->kicks[0], 1);
    cr_assert_eq(fc->kicks[1], 1, "each queue is looked at");
    cr_assert_eq(fc->kicks[2], 0, "but for those that are off");
    cr_assert_eq(fake_queue_used_idx(&queues[0]), 1);
}

/* ---- state ---- */

/* Saves vdev's own part and loads it into another device, changed by `spoil` in between. */
static int transfer(struct virtio_device *to, void (*spoil)(struct virtio_state *state))
{
    struct state_part from_parts[2], to_parts[2];
    struct virtio_state *state = calloc(1, sizeof(*state));
    int err;

    cr_assert_eq(virtio_state_parts(vdev, from_parts), 2);
    cr_assert_eq(virtio_state_parts(to, to_parts), 2);
    cr_assert_str_eq(from_parts[0].desc->name, "virtio");
    from_parts[0].get(from_parts[0].object, state);
    if (spoil)
        spoil(state);
    err = to_parts[0].check(to_parts[0].object, state);
    if (!err)
        to_parts[0].set(to_parts[0].object, state);
    free(state);
    return err;
}

Test(virtio, another_device_goes_on_where_the_saved_one_stood)
{
    struct fake_class *other = fake_class_create(&fake.env, "fake1");
    struct fake_class *first = fc;

    fake_driver_start(vdev, 1ull << FAKE_CLASS_FEATURE_A, queues, 2);
    pass_one(1);
    virtio_config_changed(vdev);
    vdev->config_msix_vector = 2;
    vdev->queues[1].st.msix_vector = 1;
    cr_assert_eq(transfer(&other->vdev, NULL), 0);
    cr_assert_eq(virtio_get_status(&other->vdev), ACK | DRIVER | FEATURES | READY);
    cr_assert_eq(other->vdev.negotiated, vdev->negotiated);
    cr_assert_eq(other->vdev.config_generation, 1);
    cr_assert_eq(other->vdev.config_msix_vector, 2);
    cr_assert_eq(other->vdev.queues[1].st.msix_vector, 1);
    cr_assert(other->started_ok, "the class learns of the features");
    cr_assert_not(other->vdev.queues[2].st.enabled);
    fc = other;
    vdev = &other->vdev;
    fake_transport_attach(&transport, vdev);
    pass_one(1);
    cr_assert_eq(fake_queue_used_idx(&queues[1]), 2);
    cr_assert_eq(transport.queue_interrupts[1], 1);
    fake_class_drop(first);
}

static void spoil_unknown_bit(struct virtio_state *state)
{
    state->status |= 0x20;
}

static void spoil_ready_without_features(struct virtio_state *state)
{
    state->status &= (uint8_t)~FEATURES;
}

static void spoil_feature(struct virtio_state *state)
{
    state->driver_features |= 1ull << 7;
}

static void spoil_version(struct virtio_state *state)
{
    state->driver_features &= ~(1ull << VIRTIO_F_VERSION_1);
}

static void spoil_count(struct virtio_state *state)
{
    state->n_queues--;
}

static void spoil_size(struct virtio_state *state)
{
    state->queues[1].size = 2 * FAKE_CLASS_SIZE;
}

static void spoil_desc(struct virtio_state *state)
{
    state->queues[0].desc = 4 * MIB;
}

static void spoil_driver(struct virtio_state *state)
{
    state->queues[0].driver |= 1;
}

static void spoil_device(struct virtio_state *state)
{
    state->queues[0].device = UINT64_MAX - 3;
}

static void spoil_index(struct virtio_state *state)
{
    state->queues[0].last_avail = 17;
}

static void spoil_early_queue(struct virtio_state *state)
{
    state->status = ACK | DRIVER;
}

Test(virtio, a_state_that_is_ready_without_features_is_refused_without_queues_too)
{
    fake_driver_start(vdev, 0, queues, 0);
    cr_assert_eq(transfer(vdev, NULL), 0);
    cr_assert_eq(transfer(vdev, spoil_ready_without_features), -EINVAL);
}

Test(virtio, a_state_that_cannot_be_is_refused_and_changes_nothing)
{
    static const struct {
        const char *what;
        void (*spoil)(struct virtio_state *state);
    } cases[] = {
        {"unknown status bit", spoil_unknown_bit},
        {"DRIVER_OK without FEATURES_OK", spoil_ready_without_features},
        {"feature not offered", spoil_feature},
        {"no VERSION_1", spoil_version},
        {"number of queues", spoil_count},
        {"queue size", spoil_size},
        {"descriptor table", spoil_desc},
        {"driver area", spoil_driver},
        {"device area", spoil_device},
        {"too much in flight", spoil_index},
        {"queue enabled without features", spoil_early_queue},
    };
    struct fake_class *other = fake_class_create(&fake.env, "fake1");

    fake_driver_start(vdev, 0, queues, 2);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        cr_assert_eq(transfer(&other->vdev, cases[i].spoil), -EINVAL, "%s", cases[i].what);
        cr_assert_eq(virtio_get_status(&other->vdev), 0, "%s", cases[i].what);
        cr_assert_eq(other->resets, 0, "%s", cases[i].what);
    }
    fake_class_drop(other);
}
