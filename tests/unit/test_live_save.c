/* Saving while a guest runs: rounds by a log that is the test's own. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "migration/live_save.h"
#include "vmm/util/log.h"

#define PAGE 4096
#define SIZE (8 * MIB)
#define PAGES (SIZE / PAGE)

static struct guest_memory *mem;
static char folder[] = "/tmp/ferry-live-XXXXXX";
static char path[64];
static uint64_t log_bits[PAGES / 64];
static unsigned times_got, restless_pages;
static bool logging;

static void quiet(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
}

static int log_start(void *opaque)
{
    (void)opaque;
    logging = true;
    memset(log_bits, 0xFF, sizeof(log_bits));
    return 0;
}

static void log_stop(void *opaque)
{
    (void)opaque;
    logging = false;
}

static void guest_writes(uint64_t page, uint8_t byte)
{
    memset(memory_at(mem, page * PAGE, PAGE), byte, PAGE);
    log_bits[page / 64] |= 1ull << page % 64;
}

/* The guest writes between the rounds. */
static int log_get(void *opaque, unsigned region, uint64_t *bitmap)
{
    (void)opaque;
    cr_assert_eq(region, 0);
    times_got++;
    for (unsigned i = 0; i < restless_pages; i++)
        guest_writes(i, (uint8_t)(times_got + 1));
    memcpy(bitmap, log_bits, sizeof(log_bits));
    return 0;
}

static int log_clear(void *opaque, unsigned region, uint64_t first, uint64_t pages,
                     const uint64_t *bits)
{
    (void)opaque;
    cr_assert_eq(region, 0);
    cr_assert_eq(first % 64, 0);
    for (uint64_t w = 0; w < pages / 64; w++)
        log_bits[first / 64 + w] &= ~bits[w];
    return 0;
}

static const struct source_ops ops = {
    .log_start = log_start, .log_stop = log_stop, .log_get = log_get, .log_clear = log_clear};

static void begin(void)
{
    const struct memory_config config = {.size = SIZE};

    log_set_sink(quiet);
    cr_assert_not_null(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/guest", folder);
    cr_assert_eq(memory_create(&mem, &config), 0);
    cr_assert_eq(memory_fill(mem, 0, 0x01, 600 * PAGE), 0);
}

static void end(void)
{
    memory_destroy(mem);
    unlink(path);
    cr_expect_eq(rmdir(folder), 0, "something else was left");
}

TestSuite(live_save, .init = begin, .fini = end);

static struct live_save *create(uint64_t downtime_ns, int cancel_fd)
{
    const struct live_save_config config = {
        .path = path, .downtime_ns = downtime_ns, .cancel_fd = cancel_fd};
    struct live_save *save;

    cr_assert_eq(live_save_create(&save, mem, &ops, NULL, &config), 0);
    return save;
}

static int finish(struct live_save *save)
{
    const struct snapshot state = {0};
    struct snapshot_summary summary;

    return live_save_finish(save, &state, &summary);
}

static void expect_file_is_memory(void)
{
    const struct memory_config config = {.size = SIZE};
    struct stream_reader reader = {.fd = open(path, O_RDONLY | O_CLOEXEC), .name = "guest"};
    struct snapshot snapshot = {0};
    struct guest_memory *into;

    cr_assert_eq(memory_create(&into, &config), 0);
    cr_assert_eq(snapshot_read(&snapshot, &reader), 0);
    cr_assert_eq(snapshot_read_memory(&snapshot, &reader, into), 0);
    cr_expect_eq(memcmp(memory_at(mem, 0, SIZE), memory_at(into, 0, SIZE), SIZE), 0);
    snapshot_fini(&snapshot);
    memory_destroy(into);
    close(reader.fd);
}

Test(live_save, has_what_was_written_between_the_rounds_and_after_the_last)
{
    struct live_save *save = create(UINT64_MAX, -1);

    restless_pages = 20;
    cr_assert_eq(live_save_copy(save), 0);
    cr_expect_eq(live_save_rounds(save), 1);
    cr_expect(logging, "the guest runs on");
    guest_writes(1000, 0x55);
    memory_fill(mem, 1010 * PAGE, 0x66, PAGE); /* of our own */
    guest_writes(300, 0);
    cr_assert_eq(finish(save), 0);
    cr_expect(!logging);
    live_save_destroy(save);
    expect_file_is_memory();
}

/* What is left can be got below no downtime at all, but it does not get less either. */
Test(live_save, stops_a_guest_that_writes_as_much_each_round)
{
    struct live_save *save = create(0, -1);

    restless_pages = 50;
    cr_assert_eq(live_save_copy(save), 0);
    cr_expect_eq(live_save_rounds(save), 3);
    cr_assert_eq(finish(save), 0);
    live_save_destroy(save);
    expect_file_is_memory();
}

Test(live_save, of_an_idle_guest_takes_one_round)
{
    struct live_save *save = create(0, -1);

    cr_assert_eq(live_save_copy(save), 0);
    cr_expect_eq(live_save_rounds(save), 1);
    cr_assert_eq(finish(save), 0);
    live_save_destroy(save);
    expect_file_is_memory();
}

Test(live_save, that_is_cancelled_leaves_nothing_and_no_log)
{
    int cancel_fd = eventfd(1, EFD_CLOEXEC);
    struct live_save *save = create(0, cancel_fd);

    cr_expect_eq(live_save_copy(save), -ECANCELED);
    cr_expect(!logging);
    live_save_destroy(save);
    cr_expect_eq(access(path, F_OK), -1);
    close(cancel_fd);
}

Test(live_save, that_is_cancelled_at_its_last_step_has_no_name)
{
    int cancel_fd = eventfd(0, EFD_CLOEXEC);
    struct live_save *save = create(UINT64_MAX, cancel_fd);

    cr_assert_eq(live_save_copy(save), 0);
    cr_assert_eq(eventfd_write(cancel_fd, 1), 0);
    cr_expect_eq(finish(save), -ECANCELED);
    live_save_destroy(save);
    cr_expect_eq(access(path, F_OK), -1);
    close(cancel_fd);
}

Test(live_save, keeps_the_former_file_until_it_is_whole)
{
    struct live_save *save = create(UINT64_MAX, -1);
    int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);

    cr_assert_eq(write(fd, "old", 3), 3);
    close(fd);
    cr_assert_eq(live_save_copy(save), 0);
    live_save_destroy(save);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    cr_expect_eq(lseek(fd, 0, SEEK_END), 3);
    close(fd);
}
