/* Memory out of a file at first touch: what is read, when, and what is done about damage. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "migration/lazy.h"
#include "vmm/util/log.h"

#define PAGE 4096
#define SIZE (8 * MIB)
#define HIGH (16 * MIB)

static struct guest_memory *mem, *into;
static char folder[] = "/tmp/ferry-lazy-XXXXXX";
static char path[64];
static struct snapshot snapshot;
static struct stream_reader reader = {.name = "guest"};
static struct lazy *lazy;
static atomic_uint times_lost;

static void quiet(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
}

static void lost(void *opaque)
{
    cr_assert_eq(opaque, &times_lost);
    atomic_fetch_add(&times_lost, 1);
}

static struct guest_memory *new_memory(void)
{
    const struct memory_config config = {.size = SIZE, .hole_base = 4 * MIB, .hole_end = HIGH};
    struct guest_memory *made;

    cr_assert_eq(memory_create(&made, &config), 0);
    return made;
}

/* Two pages of the first block, a page of a later one, and the last of high memory. */
static void begin(void)
{
    struct snapshot written = {0};
    struct snapshot_summary summary;

    log_set_sink(quiet);
    cr_assert_not_null(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/guest", folder);
    mem = new_memory();
    into = new_memory();
    cr_assert_eq(memory_fill(mem, PAGE, 0x11, 2 * PAGE), 0);
    cr_assert_eq(memory_fill(mem, 700 * PAGE, 0x22, PAGE), 0);
    cr_assert_eq(memory_fill(mem, HIGH + 4 * MIB - PAGE, 0x33, PAGE), 0);
    cr_assert_eq(snapshot_write(&written, mem, path, &summary), 0);
    snapshot_fini(&written);
}

static void end(void)
{
    lazy_destroy(lazy);
    snapshot_fini(&snapshot);
    memory_destroy(mem);
    memory_destroy(into);
    close(reader.fd);
    unlink(path);
    rmdir(folder);
}

TestSuite(lazy, .init = begin, .fini = end);

static void patch(off_t at)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    uint8_t byte;

    cr_assert_eq(pread(fd, &byte, 1, at), 1);
    byte ^= 0x10;
    cr_assert_eq(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

/* The file ends with the image of high memory, and before that is that of low memory. */
static off_t place_of(gpa_t gpa)
{
    struct stat st;

    cr_assert_eq(stat(path, &st), 0);
    return gpa < HIGH ? st.st_size - (off_t)SIZE + (off_t)gpa
                      : st.st_size - 4 * (off_t)MIB + (off_t)(gpa - HIGH);
}

static int start(void)
{
    reader.fd = open(path, O_RDONLY | O_CLOEXEC);
    cr_assert_eq(snapshot_read(&snapshot, &reader), 0);
    return lazy_start(&lazy, &snapshot, &reader, into, lost, &times_lost);
}

static void skip_if_refused(int err)
{
    if (err == -EOPNOTSUPP)
        cr_skip_test("this host does not let us handle page faults");
    cr_assert_eq(err, 0);
}

static uint8_t first_byte(gpa_t gpa)
{
    return *(volatile uint8_t *)memory_at(into, gpa, 1);
}

Test(lazy, gives_what_the_file_has_where_it_is_touched)
{
    skip_if_refused(start());
    cr_expect_eq(first_byte(HIGH + 4 * MIB - PAGE), 0x33);
    cr_expect_eq(first_byte(0), 0, "a neighbour that is not in the file");
    cr_expect_eq(first_byte(2 * PAGE), 0x11);
    cr_expect_eq(first_byte(700 * PAGE), 0x22);
    cr_expect_eq(first_byte(600 * PAGE), 0, "far from all that is");
}

Test(lazy, keeps_what_was_written_meanwhile)
{
    skip_if_refused(start());
    *(volatile uint8_t *)memory_at(into, 700 * PAGE, 1) = 0x77;
    *(volatile uint8_t *)memory_at(into, 701 * PAGE, 1) = 0x78;
    cr_assert_eq(lazy_wait(lazy, -1), 0);
    cr_expect_eq(first_byte(700 * PAGE), 0x77);
    cr_expect_eq(first_byte(701 * PAGE), 0x78);
}

/* Read by lseek(2), which touches nothing: what is a hole in the one is a hole in the other. */
Test(lazy, brings_all_unasked_and_nothing_that_is_zero)
{
    struct stat st;

    skip_if_refused(start());
    cr_assert_eq(lazy_wait(lazy, -1), 0);
    cr_assert_eq(fstat(memory_fd(into), &st), 0);
    cr_expect_eq(st.st_blocks * 512, 4 * PAGE);
    cr_expect_eq(memcmp(memory_at(mem, 0, 4 * MIB), memory_at(into, 0, 4 * MIB), 4 * MIB), 0);
    cr_expect_eq(memcmp(memory_at(mem, HIGH, 4 * MIB), memory_at(into, HIGH, 4 * MIB), 4 * MIB), 0);
}

Test(lazy, goes_on_when_the_file_has_lost_its_name)
{
    skip_if_refused(start());
    cr_assert_eq(unlink(path), 0);
    cr_assert_eq(lazy_wait(lazy, -1), 0);
    cr_expect_eq(first_byte(700 * PAGE), 0x22);
}

Test(lazy, leaves_the_file_as_it_was)
{
    struct stat before, after;

    cr_assert_eq(stat(path, &before), 0);
    skip_if_refused(start());
    memset(memory_at(into, 0, 4 * MIB), 0x55, 4 * MIB);
    cr_assert_eq(lazy_wait(lazy, -1), 0);
    cr_assert_eq(stat(path, &after), 0);
    cr_expect_eq(before.st_mtim.tv_sec, after.st_mtim.tv_sec);
    cr_expect_eq(before.st_mtim.tv_nsec, after.st_mtim.tv_nsec);
    cr_expect_eq(before.st_blocks, after.st_blocks);
}

/* The block that is damaged is found by itself, and whoever runs the guest is told, once. */
Test(lazy, tells_of_a_block_that_is_damaged)
{
    patch(place_of(700 * PAGE) + 9);
    skip_if_refused(start());
    cr_expect_eq(first_byte(PAGE), 0x11, "another block is good");
    cr_expect_eq(lazy_wait(lazy, -1), -EBADMSG);
    lazy_destroy(lazy);
    lazy = NULL;
    cr_expect_eq(atomic_load(&times_lost), 1);
}

Test(lazy, tells_of_a_file_that_is_cut_off)
{
    skip_if_refused(start());
    cr_assert_eq(truncate(path, place_of(600 * PAGE)), 0);
    cr_expect_eq(lazy_wait(lazy, -1), -ENODATA);
}

Test(lazy, has_zeros_for_what_did_not_come_before_it_was_stopped)
{
    skip_if_refused(start());
    cr_expect_eq(first_byte(PAGE), 0x11);
    lazy_stop(lazy);
    cr_expect_eq(lazy_wait(lazy, -1), 0);
    cr_expect_eq(first_byte(600 * PAGE), 0);
}

/* As an earlier ferry wrote them: without the sections of checksums. */
Test(lazy, does_not_begin_without_checksums_of_blocks)
{
    reader.fd = open(path, O_RDONLY | O_CLOEXEC);
    cr_assert_eq(snapshot_read(&snapshot, &reader), 0);
    for (unsigned i = 0; i < snapshot.n_sections; i++)
        if (snapshot.sections[i].head.kind == STREAM_SUMS)
            snapshot.sections[i].head.kind = STREAM_VCPU;
    cr_expect_eq(lazy_start(&lazy, &snapshot, &reader, into, lost, &times_lost), -ENOENT);
}

Test(lazy, does_not_begin_with_checksums_of_another_length)
{
    reader.fd = open(path, O_RDONLY | O_CLOEXEC);
    cr_assert_eq(snapshot_read(&snapshot, &reader), 0);
    for (unsigned i = 0; i < snapshot.n_sections; i++)
        if (snapshot.sections[i].head.kind == STREAM_SUMS)
            snapshot.sections[i].head.length -= 4;
    cr_expect_eq(lazy_start(&lazy, &snapshot, &reader, into, lost, &times_lost), -EBADMSG);
}
