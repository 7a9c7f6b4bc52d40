/*
 * virtio-rng driven as a guest's driver does. getrandom(2) is this file's own: it gives a byte that
 * can be told from what the guest had, and gives less, or fails, when a test says so.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "devices/virtio/rng.h"
#include "tests/unit/fake_driver.h"
#include "tests/unit/fake_env.h"
#include "vmm/util/log.h"

#define QUEUE_BASE 0x10000u
#define DATA 0x100000u
#define MEMORY (4 * MIB)
#define REQUEST_MAX 4096u

static struct fake_env fake;
static struct fake_transport transport;
static struct fake_queue queue;
static struct virtio_device *vdev;
static unsigned calls, fail_calls;
static size_t most_at_once; /* what a call gives; 0: all */

ssize_t getrandom(void *buf, size_t length, unsigned flags)
{
    cr_assert_eq(flags, GRND_NONBLOCK);
    calls++;
    if (fail_calls > 0) {
        fail_calls--;
        errno = EAGAIN;
        return -1;
    }
    if (most_at_once && length > most_at_once)
        length = most_at_once;
    memset(buf, 0xC3, length);
    return (ssize_t)length;
}

static void start(void)
{
    fake_queue_init(&queue, fake.env.mem, QUEUE_BASE, 64);
    fake_driver_start(vdev, 1ull << VIRTIO_RING_F_EVENT_IDX, &queue, 1);
}

static void drop_line(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
}

static void set_up(void)
{
    log_set_sink(drop_line);
    fake_env_init(&fake, MEMORY);
    cr_assert_eq(virtio_rng_create(&vdev, &fake.env, "rng0"), 0);
    fake_transport_attach(&transport, vdev);
    start();
}

static void tear_down(void)
{
    if (vdev)
        vdev->class->destroy(vdev);
    fake_env_fini(&fake);
}

TestSuite(rng, .init = set_up, .fini = tear_down, .timeout = 60);

static bool has_used(void *arg)
{
    (void)arg;
    return fake_queue_used_idx(&queue) != queue.used_seen;
}

static uint32_t wait_used(void)
{
    struct fake_used used;

    fake_env_wait(&fake, has_used, NULL);
    cr_assert(fake_queue_take(&queue, &used));
    return used.length;
}

static bool guest_has(gpa_t gpa, uint8_t byte, uint64_t length)
{
    const uint8_t *at = memory_at(fake.env.mem, gpa, length);

    for (uint64_t i = 0; i < length; i++)
        if (at[i] != byte)
            return false;
    return true;
}

Test(rng, a_buffer_is_filled_and_nothing_beside_it)
{
    struct fake_piece pieces[] = {{DATA, 10, true}, {DATA + 0x1000, 22, true}};

    fake_queue_add(&queue, pieces, 2);
    fake_driver_kick(vdev, 0);
    cr_assert_eq(wait_used(), 32);
    cr_assert(guest_has(DATA, 0xC3, 10));
    cr_assert(guest_has(DATA + 10, 0, 100));
    cr_assert(guest_has(DATA + 0x1000, 0xC3, 22));
    cr_assert(guest_has(DATA + 0x1000 + 22, 0, 100));
    cr_assert_eq(transport.queue_interrupts[0], 1);
}

Test(rng, a_large_buffer_is_filled_in_part)
{
    struct fake_piece piece = {DATA, 1 << 20, true};

    fake_queue_add(&queue, &piece, 1);
    fake_driver_kick(vdev, 0);
    cr_assert_eq(wait_used(), REQUEST_MAX);
    cr_assert(guest_has(DATA, 0xC3, REQUEST_MAX));
    cr_assert(guest_has(DATA + REQUEST_MAX, 0, (1 << 20) - REQUEST_MAX));
}

Test(rng, fewer_bytes_from_the_host_are_an_answer)
{
    struct fake_piece piece = {DATA, 1000, true};

    most_at_once = 256;
    fake_queue_add(&queue, &piece, 1);
    fake_driver_kick(vdev, 0);
    cr_assert_eq(wait_used(), 256);
    cr_assert(guest_has(DATA + 256, 0, 744));
}

Test(rng, a_buffer_that_cannot_be_written_comes_back_empty)
{
    struct fake_piece piece = {DATA, 100, false};

    fake_queue_add(&queue, &piece, 1);
    fake_driver_kick(vdev, 0);
    cr_assert_eq(wait_used(), 0);
    cr_assert(guest_has(DATA, 0, 100));
}

Test(rng, many_requests_take_turns_with_the_loop_and_all_are_served)
{
    struct fake_piece piece = {DATA, 16, true};

    for (unsigned i = 0; i < 64; i++)
        fake_queue_add(&queue, &piece, 1);
    fake_driver_kick(vdev, 0);
    cr_assert_lt(fake_queue_used_idx(&queue), 64);
    for (unsigned i = 0; i < 64; i++)
        cr_assert_eq(wait_used(), 16);
}

Test(rng, a_host_without_random_numbers_yet_is_asked_again)
{
    struct fake_piece piece = {DATA, 16, true};

    fail_calls = 1;
    fake_queue_add(&queue, &piece, 1);
    fake_driver_kick(vdev, 0);
    cr_assert_eq(calls, 1);
    cr_assert_not(has_used(NULL));
    cr_assert_eq(wait_used(), 16);
    cr_assert(guest_has(DATA, 0xC3, 16));
}

Test(rng, what_it_writes_is_marked_dirty)
{
    uint64_t bitmap[MEMORY / 4096 / 64] = {0};
    struct fake_piece piece = {DATA + 0xFF8, 16, true};
    const unsigned page = DATA / 4096;

    fake_queue_add(&queue, &piece, 1);
    cr_assert_eq(memory_dirty_start(fake.env.mem), 0);
    fake_driver_kick(vdev, 0);
    cr_assert_eq(wait_used(), 16);
    memory_dirty_harvest(fake.env.mem, 0, bitmap);
    cr_assert_eq(bitmap[page / 64], 3ull << page % 64);
}

Test(rng, a_buffer_outside_memory_breaks_the_device_until_its_reset)
{
    struct fake_piece good = {DATA, 16, true}, bad = {MEMORY, 16, true};

    fake_queue_add(&queue, &good, 1);
    fake_queue_add(&queue, &bad, 1);
    fake_driver_kick(vdev, 0);
    cr_assert(virtio_get_status(vdev) & VIRTIO_CONFIG_S_NEEDS_RESET);
    cr_assert_eq(wait_used(), 16); /* what came before it is not lost */
    fake_driver_reset(vdev);
    start();
    fake_queue_add(&queue, &good, 1);
    fake_driver_kick(vdev, 0);
    cr_assert_eq(wait_used(), 16);
}

Test(rng, a_reset_between_two_turns_ends_them)
{
    struct fake_piece piece = {DATA, 16, true};
    uint16_t served;

    for (unsigned i = 0; i < 64; i++)
        fake_queue_add(&queue, &piece, 1);
    fake_driver_kick(vdev, 0);
    served = fake_queue_used_idx(&queue);
    fake_driver_reset(vdev);
    fake_env_settle(&fake);
    cr_assert_eq(fake_queue_used_idx(&queue), served);
}

Test(rng, a_pause_holds_requests_back_until_resumed)
{
    struct fake_piece piece = {DATA, 16, true};

    device_lock(&fake.env);
    virtio_pause(vdev);
    device_unlock(&fake.env);
    fake_queue_add(&queue, &piece, 1);
    fake_driver_kick(vdev, 0);
    fake_env_settle(&fake);
    cr_assert_not(has_used(NULL));
    device_lock(&fake.env);
    virtio_resume(vdev);
    device_unlock(&fake.env);
    cr_assert_eq(wait_used(), 16);
}

Test(rng, it_keeps_no_state_of_its_own)
{
    struct state_part parts[2];

    cr_assert_eq(virtio_state_parts(vdev, parts), 1);
}

Test(rng, it_can_be_destroyed_between_two_turns)
{
    struct fake_piece piece = {DATA, 16, true};

    for (unsigned i = 0; i < 64; i++)
        fake_queue_add(&queue, &piece, 1);
    fake_driver_kick(vdev, 0);
    vdev->class->destroy(vdev);
    vdev = NULL;
    cr_assert_lt(fake_queue_used_idx(&queue), 64);
}
