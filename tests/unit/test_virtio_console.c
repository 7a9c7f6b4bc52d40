/*
 * virtio-console driven as a guest's driver does, on a character stream in memory.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>

#include "devices/chardev.h"
#include "devices/virtio/console.h"
#include "tests/unit/fake_driver.h"
#include "tests/unit/fake_env.h"
#include "vmm/util/log.h"

enum { RX, TX };
enum { F_SIZE = 0, F_EMERG_WRITE = 2 };

#define QUEUE_BASE 0x10000u
#define DATA 0x100000u
#define MEMORY (4 * MIB)

static struct fake_env fake;
static struct fake_transport transport;
static struct fake_queue queue[2];
static struct virtio_device *vdev;
static struct chardev *chardev;

static void create(void)
{
    cr_assert_eq(virtio_console_create(&vdev, &fake.env, "console0", chardev), 0);
    fake_transport_attach(&transport, vdev);
}

static void start(void)
{
    fake_queue_init(&queue[RX], fake.env.mem, QUEUE_BASE, 128);
    fake_queue_init(&queue[TX], fake.env.mem, queue[RX].end, 128);
    fake_driver_start(vdev, 1ull << F_SIZE | 1ull << VIRTIO_RING_F_EVENT_IDX, queue, 2);
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
    cr_assert_eq(chardev_memory_create(&chardev), 0);
    create();
    start();
}

static void tear_down(void)
{
    if (vdev)
        vdev->class->destroy(vdev);
    chardev_destroy(chardev);
    fake_env_fini(&fake);
}

TestSuite(console, .init = set_up, .fini = tear_down, .timeout = 60);

static void put(gpa_t gpa, const void *bytes, uint64_t length)
{
    cr_assert_eq(memory_write(fake.env.mem, gpa, bytes, length), 0);
}

static size_t take_output(void *to, size_t n)
{
    size_t took;

    device_lock(&fake.env);
    took = chardev_memory_take(chardev, to, n);
    device_unlock(&fake.env);
    return took;
}

static size_t feed(const char *text)
{
    size_t took;

    device_lock(&fake.env);
    took = chardev_memory_feed(chardev, text, strlen(text));
    device_unlock(&fake.env);
    return took;
}

static void add(unsigned index, gpa_t gpa, uint32_t length, bool writable)
{
    struct fake_piece piece = {gpa, length, writable};

    fake_queue_add(&queue[index], &piece, 1);
}

static uint32_t used_length(unsigned index)
{
    struct fake_used used;

    cr_assert(fake_queue_take(&queue[index], &used), "the buffer was not returned");
    return used.length;
}

/* ---- guest to host ---- */

Test(console, what_the_guest_writes_comes_out_in_order)
{
    struct fake_piece pieces[] = {{DATA, 3, false}, {DATA + 0x1000, 4, false}};
    char out[16];

    put(DATA, "abc", 3);
    put(DATA + 0x1000, "defg", 4);
    put(DATA + 0x2000, "hi", 2);
    fake_queue_add(&queue[TX], pieces, 2);
    add(TX, DATA + 0x2000, 2, false);
    fake_driver_kick(vdev, TX);
    cr_assert_eq(take_output(out, sizeof(out)), 9);
    cr_assert_arr_eq(out, "abcdefghi", 9);
    cr_assert_eq(used_length(TX), 0);
    cr_assert_eq(used_length(TX), 0);
    cr_assert_eq(transport.queue_interrupts[TX], 1);
}

Test(console, a_slow_terminal_makes_the_guest_wait_and_loses_nothing)
{
    enum { EACH = 50000, N = 4 };
    static uint8_t bytes[EACH * N], out[EACH * N + 1];
    size_t have = 0, got;

    for (unsigned i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 7 + i / 251);
    put(DATA, bytes, sizeof(bytes));
    for (unsigned i = 0; i < N; i++)
        add(TX, DATA + i * EACH, EACH, false);
    fake_driver_kick(vdev, TX);
    cr_assert_eq(fake_queue_used_idx(&queue[TX]), 1); /* the second does not fit any more */
    while ((got = take_output(out + have, 10000)) > 0)
        have += got;
    cr_assert_eq(have, sizeof(bytes));
    cr_assert_arr_eq(out, bytes, sizeof(bytes));
    for (unsigned i = 0; i < N; i++)
        cr_assert_eq(used_length(TX), 0);
}

Test(console, more_buffers_than_a_turn_serves_all_come_out)
{
    char out[512];
    uint16_t idx = 500;

    put(DATA, "x", 1);
    /* The same buffer in every entry of the ring, and an index that ran ahead twice and more. */
    add(TX, DATA, 1, false);
    for (unsigned i = 1; i < 128; i++)
        put(queue[TX].avail + 4 + 2 * i, &(uint16_t){0}, 2);
    for (uint16_t to = 100; to <= idx; to += 100) {
        put(queue[TX].avail + 2, &to, 2);
        fake_driver_kick(vdev, TX);
        fake_env_settle(&fake);
        cr_assert_eq(take_output(out, sizeof(out)), 100);
    }
}

Test(console, a_buffer_of_the_guest_that_is_not_memory_breaks_the_device)
{
    add(TX, MEMORY - 1, 2, false);
    fake_driver_kick(vdev, TX);
    cr_assert(virtio_get_status(vdev) & VIRTIO_CONFIG_S_NEEDS_RESET);
    add(RX, DATA, 64, true);
    fake_driver_kick(vdev, RX);
    cr_assert_eq(feed("lost"), 0);
    fake_driver_reset(vdev);
    start();
    add(RX, DATA, 64, true);
    fake_driver_kick(vdev, RX);
    cr_assert_eq(feed("heard"), 5);
}

/* ---- host to guest ---- */

Test(console, input_waits_until_the_guest_has_a_buffer)
{
    cr_assert_eq(feed("abc"), 0);
    add(RX, DATA, 64, true);
    fake_driver_kick(vdev, RX);
    cr_assert_eq(feed("abc"), 3);
    cr_assert_eq(used_length(RX), 3);
    cr_assert_arr_eq(memory_at(fake.env.mem, DATA, 3), "abc", 3);
    cr_assert_eq(transport.queue_interrupts[RX], 1);
    cr_assert_eq(feed("d"), 0);
}

Test(console, input_longer_than_a_buffer_goes_on_in_the_next)
{
    struct fake_piece pieces[] = {{DATA + 0x1000, 1, true}, {DATA + 0x2000, 2, true}};

    add(RX, DATA, 4, true);
    fake_queue_add(&queue[RX], pieces, 2);
    fake_driver_kick(vdev, RX);
    cr_assert_eq(feed("0123456789"), 7);
    cr_assert_eq(used_length(RX), 4);
    cr_assert_eq(used_length(RX), 3);
    cr_assert_arr_eq(memory_at(fake.env.mem, DATA, 4), "0123", 4);
    cr_assert_arr_eq(memory_at(fake.env.mem, DATA + 0x1000, 1), "4", 1);
    cr_assert_arr_eq(memory_at(fake.env.mem, DATA + 0x2000, 2), "56", 2);
}

Test(console, a_receive_buffer_without_room_comes_back_empty)
{
    add(RX, DATA, 8, false);
    add(RX, DATA + 0x1000, 8, true);
    fake_driver_kick(vdev, RX);
    cr_assert_eq(used_length(RX), 0);
    cr_assert_eq(feed("ok"), 2);
    cr_assert_eq(used_length(RX), 2);
    cr_assert_arr_eq(memory_at(fake.env.mem, DATA + 0x1000, 2), "ok", 2);
}

Test(console, a_buffer_that_shrinks_under_the_input_loses_what_no_longer_fits)
{
    struct fake_used used;

    add(RX, DATA, 64, true);
    fake_driver_kick(vdev, RX);
    fake_desc_write(&queue[RX], 0, DATA, 2, VRING_DESC_F_WRITE, 0);
    cr_assert_eq(feed("abcdef"), 6);
    cr_assert(fake_queue_take(&queue[RX], &used));
    cr_assert_eq(used.length, 2);
    cr_assert(virtio_device_live(vdev));
}

Test(console, a_reset_stops_input)
{
    add(RX, DATA, 64, true);
    fake_driver_kick(vdev, RX);
    fake_driver_reset(vdev);
    cr_assert_eq(feed("abc"), 0);
    cr_assert_eq(fake_queue_used_idx(&queue[RX]), 0);
}

Test(console, what_it_receives_is_marked_dirty)
{
    uint64_t bitmap[MEMORY / 4096 / 64] = {0};
    const unsigned page = DATA / 4096;

    add(RX, DATA, 64, true);
    fake_driver_kick(vdev, RX);
    cr_assert_eq(memory_dirty_start(fake.env.mem), 0);
    cr_assert_eq(feed("abc"), 3);
    memory_dirty_harvest(fake.env.mem, 0, bitmap);
    cr_assert_eq(bitmap[page / 64], 1ull << page % 64);
}

/* ---- configuration space ---- */

static uint32_t config(size_t offset)
{
    uint32_t value;

    vdev->class->config_read(vdev, offset, &value, sizeof(value));
    return value;
}

Test(console, the_terminals_size_is_told_and_its_change_announced)
{
    cr_assert_eq(config(0), 0);
    cr_assert_eq(transport.config_interrupts, 0);
    device_lock(&fake.env);
    chardev_memory_resize(chardev, 132, 43);
    device_unlock(&fake.env);
    cr_assert_eq(config(0), 43u << 16 | 132);
    cr_assert_eq(config(4), 1);
    cr_assert_eq(transport.config_interrupts, 1);
}

Test(console, an_emergency_byte_comes_out_even_after_a_reset)
{
    uint32_t byte = '!';
    char out[4];

    fake_driver_reset(vdev);
    vdev->class->config_write(vdev, 8, &byte, sizeof(byte));
    vdev->class->config_write(vdev, 8, &byte, 1);
    vdev->class->config_write(vdev, 0, &byte, sizeof(byte)); /* the size is not the driver's */
    vdev->class->config_write(vdev, 4, &byte, sizeof(byte));
    cr_assert_eq(take_output(out, sizeof(out)), 2);
    cr_assert_arr_eq(out, "!!", 2);
    cr_assert_eq(config(0), 0);
}

/* ---- pause and state ---- */

static void pause_device(void)
{
    device_lock(&fake.env);
    virtio_pause(vdev);
    cr_assert_not(virtio_busy(vdev));
    device_unlock(&fake.env);
}

static void resume_device(void)
{
    device_lock(&fake.env);
    virtio_resume(vdev);
    device_unlock(&fake.env);
}

Test(console, a_paused_device_neither_sends_nor_receives_until_resumed)
{
    char out[4];

    add(RX, DATA, 64, true);
    fake_driver_kick(vdev, RX);
    pause_device();
    put(DATA + 0x1000, "x", 1);
    add(TX, DATA + 0x1000, 1, false);
    fake_driver_kick(vdev, TX);
    fake_driver_kick(vdev, RX);
    cr_assert_eq(feed("abc"), 0);
    cr_assert_eq(take_output(out, sizeof(out)), 0);
    resume_device();
    cr_assert_eq(feed("abc"), 3);
    cr_assert_eq(take_output(out, sizeof(out)), 1);
}

static int copy_state(struct virtio_device *from, struct virtio_device *to)
{
    struct state_part a[2], b[2];
    void *state[2];
    int err = 0;

    cr_assert_eq(virtio_state_parts(from, a), 2);
    cr_assert_eq(virtio_state_parts(to, b), 2);
    for (unsigned i = 0; i < 2; i++) {
        struct state_buffer buffer = {0};
        struct state_reader in;

        state[i] = calloc(1, a[i].desc->size);
        a[i].get(a[i].object, state[i]);
        cr_assert_eq(state_save(a[i].desc, state[i], &buffer), 0);
        in = (struct state_reader){.data = buffer.data, .length = buffer.length};
        cr_assert_eq(state_load(b[i].desc, state[i], &in), 0);
        state_buffer_fini(&buffer);
        err = err ? err : b[i].check(b[i].object, state[i]);
    }
    for (unsigned i = 0; i < 2; i++) {
        if (!err)
            b[i].set(b[i].object, state[i]);
        free(state[i]);
    }
    return err;
}

Test(console, a_half_sent_buffer_is_finished_by_who_takes_over)
{
    enum { N = CHARDEV_RING_BYTES + 1000 };
    static uint8_t bytes[N], out[N];
    struct virtio_device *old = vdev;
    struct chardev *old_chardev = chardev;

    for (unsigned i = 0; i < N; i++)
        bytes[i] = (uint8_t)(i * 13);
    put(DATA, bytes, N);
    add(TX, DATA, N, false);
    fake_driver_kick(vdev, TX);
    pause_device();
    cr_assert_eq(take_output(out, N), CHARDEV_RING_BYTES);
    cr_assert_eq(chardev_memory_create(&chardev), 0);
    create();
    pause_device();
    cr_assert_eq(copy_state(old, vdev), 0);
    old->class->destroy(old);
    chardev_destroy(old_chardev);
    resume_device();
    cr_assert_eq(take_output(out + CHARDEV_RING_BYTES, N), 1000);
    cr_assert_arr_eq(out, bytes, N);
    cr_assert_eq(used_length(TX), 0);
    cr_assert_eq(transport.config_interrupts, 0);
}

Test(console, a_guest_that_comes_to_a_terminal_of_another_size_is_told)
{
    struct virtio_device *old = vdev;
    struct chardev *old_chardev = chardev;

    pause_device();
    cr_assert_eq(chardev_memory_create(&chardev), 0);
    chardev_memory_resize(chardev, 80, 24);
    create();
    pause_device();
    cr_assert_eq(copy_state(old, vdev), 0);
    old->class->destroy(old);
    chardev_destroy(old_chardev);
    cr_assert_eq(transport.config_interrupts, 0);
    resume_device();
    cr_assert_eq(transport.config_interrupts, 1);
    cr_assert_eq(config(0), 24u << 16 | 80);
}
