/* The stream and the snapshot file: round trips, and every kind of damage by its own error. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "migration/snapshot.h"
#include "vmm/util/log.h"

#define PAGE 4096
#define SIZE (8 * MIB)

static struct guest_memory *mem;
static char folder[] = "/tmp/ferry-snapshot-XXXXXX";
static char path[64];

static void quiet(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
}

static struct guest_memory *new_memory(uint64_t size)
{
    const struct memory_config config = {.size = size, .hole_base = 4 * MIB, .hole_end = 16 * MIB};
    struct guest_memory *made;

    cr_assert_eq(memory_create(&made, &config), 0);
    return made;
}

static void begin(void)
{
    log_set_sink(quiet);
    cr_assert_not_null(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/guest", folder);
    mem = new_memory(SIZE);
}

static void end(void)
{
    memory_destroy(mem);
    unlink(path);
    rmdir(folder);
}

TestSuite(snapshot, .init = begin, .fini = end);

/* Pages 1, 2 and 700 of low memory, and the last of high memory. */
static void write_guest(void)
{
    struct snapshot snapshot = {0};
    struct snapshot_summary summary;

    cr_assert_eq(memory_fill(mem, PAGE, 0x11, 2 * PAGE), 0);
    cr_assert_eq(memory_fill(mem, 700 * PAGE, 0x22, 1), 0);
    cr_assert_eq(memory_fill(mem, 16 * MIB + 4 * MIB - 1, 0x33, 1), 0);
    cr_assert_eq(memory_fill(mem, 100 * PAGE, 0, PAGE), 0, "touched, but zero");
    cr_assert_eq(snapshot_add(&snapshot, STREAM_CONFIG, "", "{}", 2), 0);
    cr_assert_eq(snapshot_add(&snapshot, STREAM_DEVICE, "com1", "state", 5), 0);
    cr_assert_eq(snapshot_write(&snapshot, mem, path, &summary), 0);
    cr_assert_eq(summary.pages, 4);
    cr_assert_eq(summary.skipped, SIZE / PAGE - 4);
    snapshot_fini(&snapshot);
}

/* Reads the file into a new memory; what the first failing step gave. */
static int read_guest(struct guest_memory *into)
{
    struct stream_reader reader = {.fd = open(path, O_RDONLY | O_CLOEXEC), .name = "guest"};
    struct snapshot snapshot = {0};
    int err;

    cr_assert_geq(reader.fd, 0);
    err = snapshot_read(&snapshot, &reader);
    if (!err)
        err = snapshot_read_memory(&snapshot, &reader, into);
    snapshot_fini(&snapshot);
    close(reader.fd);
    return err;
}

static int read_again(void)
{
    struct guest_memory *into = new_memory(SIZE);
    int err = read_guest(into);

    memory_destroy(into);
    return err;
}

static void patch(off_t at, uint8_t flip)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    uint8_t byte;

    cr_assert_eq(pread(fd, &byte, 1, at), 1);
    byte ^= flip;
    cr_assert_eq(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

Test(snapshot, gives_back_sections_and_memory)
{
    struct stream_reader reader = {.name = "guest"};
    struct snapshot snapshot = {0};
    const struct snapshot_section *device;
    struct guest_memory *into = new_memory(SIZE);

    write_guest();
    reader.fd = open(path, O_RDONLY | O_CLOEXEC);
    cr_assert_eq(snapshot_read(&snapshot, &reader), 0);
    device = snapshot_find(&snapshot, STREAM_DEVICE, "com1");
    cr_assert_not_null(device);
    cr_expect_eq(device->head.length, 5);
    cr_expect_str_eq(device->payload, "state");
    cr_expect_null(snapshot_find(&snapshot, STREAM_DEVICE, "com2"));
    cr_assert_eq(snapshot_read_memory(&snapshot, &reader, into), 0);
    cr_expect_eq(memcmp(memory_at(mem, 0, 4 * MIB), memory_at(into, 0, 4 * MIB), 4 * MIB), 0);
    cr_expect_eq(memcmp(memory_at(mem, 16 * MIB, 4 * MIB), memory_at(into, 16 * MIB, 4 * MIB),
                        4 * MIB), 0);
    snapshot_fini(&snapshot);
    memory_destroy(into);
    close(reader.fd);
}

Test(snapshot, is_sparse_and_for_its_owner_alone)
{
    struct stat st;

    write_guest();
    cr_assert_eq(stat(path, &st), 0);
    cr_expect_eq(st.st_mode & 0777, 0600);
    cr_expect_lt(st.st_blocks * 512, 256 * 1024, "8 MiB with four pages in them");
    cr_expect_gt(st.st_size, SIZE);
}

Test(snapshot, leaves_the_old_file_when_it_cannot_be_written)
{
    struct snapshot snapshot = {0};
    struct snapshot_summary summary;

    cr_assert_eq(snapshot_write(&snapshot, mem, "/nonexistent/guest", &summary), -ENOENT);
    cr_assert_eq(access("/nonexistent/guest", F_OK), -1);
}

Test(snapshot, notices_every_flipped_bit_of_its_sections)
{
    struct stat st;
    off_t end_of_sections;

    write_guest();
    cr_assert_eq(stat(path, &st), 0);
    end_of_sections = st.st_size - (off_t)SIZE - PAGE;
    for (off_t at = 0; at < end_of_sections; at += 7) {
        patch(at, (uint8_t)(1u << at % 8));
        cr_assert_lt(read_again(), 0, "bit %ld of byte %ld", (long)(at % 8), (long)at);
        patch(at, (uint8_t)(1u << at % 8));
    }
    cr_assert_eq(read_again(), 0);
}

Test(snapshot, notices_a_flipped_bit_of_memory)
{
    struct stat st;

    write_guest();
    cr_assert_eq(stat(path, &st), 0);
    patch(st.st_size - 1, 0x40);
    cr_assert_eq(read_again(), -EBADMSG);
}

Test(snapshot, refuses_a_file_that_is_cut_off_anywhere)
{
    struct stat st;

    write_guest();
    cr_assert_eq(stat(path, &st), 0);
    cr_assert_eq(truncate(path, st.st_size - 1), 0);
    cr_assert_eq(read_again(), -ENODATA);
    for (off_t length = 200; length > 0; length -= 9) {
        cr_assert_eq(truncate(path, length), 0);
        cr_assert_eq(read_again(), -ENODATA, "%ld bytes", (long)length);
    }
}

Test(snapshot, refuses_memory_of_another_size)
{
    struct guest_memory *other = new_memory(6 * MIB);

    write_guest();
    cr_assert_eq(read_guest(other), -EBADMSG);
    memory_destroy(other);
}

/* ---- written in steps ---- */

/* What was written twice is in the file as it was last; what became zero leaves a hole. */
Test(snapshot, written_in_steps_is_memory_as_it_was_last)
{
    struct guest_memory *into = new_memory(SIZE);
    struct snapshot snapshot = {0};
    struct snapshot_summary summary;
    struct snapshot_writer *w;
    uint64_t bits[4 * MIB / PAGE / 64] = {0};

    cr_assert_eq(memory_fill(mem, 5 * PAGE, 0x11, 40 * PAGE), 0);
    cr_assert_eq(memory_fill(mem, 16 * MIB, 0x22, 3 * PAGE), 0);
    cr_assert_eq(snapshot_add(&snapshot, STREAM_DEVICE, "com1", "state", 5), 0);
    cr_assert_eq(snapshot_writer_create(&w, path, mem, 4096), 0);
    cr_assert_eq(snapshot_writer_put(w, 0, 0, 4 * MIB / PAGE, NULL), 0);
    cr_assert_eq(snapshot_writer_put(w, 1, 0, 4 * MIB / PAGE, NULL), 0);
    cr_assert_eq(memory_fill(mem, 7 * PAGE, 0x33, PAGE), 0);
    cr_assert_eq(memory_fill(mem, 20 * PAGE, 0, 2 * PAGE), 0);
    cr_assert_eq(memory_fill(mem, 30 * PAGE, 0x44, PAGE), 0, "its bit is not set");
    bits[0] = 1ull << 7 | 1ull << 20 | 1ull << 21;
    cr_assert_eq(snapshot_writer_put(w, 0, 0, 64, bits), 0);
    cr_assert_eq(snapshot_writer_sync(w), 0);
    cr_assert_eq(access(path, F_OK), -1, "it has its name too early");
    cr_assert_eq(snapshot_writer_finish(w, &snapshot, &summary), 0);
    snapshot_writer_destroy(w);
    cr_expect_eq(summary.pages, 41);
    cr_expect_eq(summary.written, 44);
    cr_assert_eq(read_guest(into), 0);
    cr_assert_eq(memory_fill(mem, 30 * PAGE, 0x11, PAGE), 0);
    cr_expect_eq(memcmp(memory_at(mem, 0, 4 * MIB), memory_at(into, 0, 4 * MIB), 4 * MIB), 0);
    cr_expect_eq(memcmp(memory_at(mem, 16 * MIB, 4 * MIB), memory_at(into, 16 * MIB, 4 * MIB),
                        4 * MIB), 0);
    snapshot_fini(&snapshot);
    memory_destroy(into);
}

static unsigned files_in(const char *where)
{
    struct dirent *entry;
    unsigned n = 0;
    DIR *dir = opendir(where);

    cr_assert_not_null(dir);
    while ((entry = readdir(dir)))
        n += entry->d_name[0] != '.';
    closedir(dir);
    return n;
}

Test(snapshot, replaces_nothing_but_a_saved_guest_or_an_empty_file)
{
    struct snapshot snapshot = {0};
    struct snapshot_summary summary;
    struct stat st;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    cr_assert_eq(write(fd, "FERRY's disk", 12), 12);
    cr_expect_eq(snapshot_write(&snapshot, mem, path, &summary), -EEXIST);
    cr_assert_eq(stat(path, &st), 0);
    cr_expect_eq(st.st_size, 12);
    cr_assert_eq(ftruncate(fd, 0), 0);
    close(fd);
    cr_expect_eq(snapshot_write(&snapshot, mem, path, &summary), 0);
    cr_expect_eq(snapshot_write(&snapshot, mem, path, &summary), 0);
}

/* Its entry could not be brought to the disk: the guest would run on, and from the file as well. */
Test(snapshot, is_not_written_to_a_folder_that_cannot_be_read)
{
    const uid_t nobody = 65534;
    struct snapshot snapshot = {0};
    struct snapshot_summary summary;

    cr_assert_eq(chmod(folder, 0300), 0);
    if (geteuid() == 0) {
        cr_assert_eq(chown(folder, nobody, nobody), 0);
        cr_assert_eq(seteuid(nobody), 0);
        cr_assert_eq(prctl(PR_SET_DUMPABLE, 1), 0, "or /proc/self is not ours");
    }
    cr_expect_eq(snapshot_write(&snapshot, mem, path, &summary), -EACCES);
    (void)seteuid(getuid());
    cr_assert_eq(chmod(folder, 0700), 0);
    cr_expect_eq(files_in(folder), 0);
}

Test(snapshot, that_is_not_finished_leaves_nothing)
{
    struct snapshot_writer *w;

    cr_assert_eq(memory_fill(mem, PAGE, 0x11, PAGE), 0);
    cr_assert_eq(snapshot_writer_create(&w, path, mem, 4096), 0);
    cr_assert_eq(snapshot_writer_put(w, 0, 0, 64, NULL), 0);
    snapshot_writer_destroy(w);
    cr_expect_eq(files_in(folder), 0);
}

Test(snapshot, replaces_no_folder_and_no_fifo)
{
    struct snapshot_writer *w;

    cr_expect_eq(snapshot_writer_create(&w, folder, mem, 4096), -EISDIR);
    cr_assert_eq(mkfifo(path, 0600), 0);
    cr_expect_eq(snapshot_writer_create(&w, path, mem, 4096), -EEXIST);
}

Test(snapshot, with_more_state_than_was_said_is_not_written)
{
    static const uint8_t state[2 * PAGE];
    struct snapshot snapshot = {0};
    struct snapshot_summary summary;
    struct snapshot_writer *w;

    cr_assert_eq(snapshot_add(&snapshot, STREAM_DEVICE, "com1", state, sizeof(state)), 0);
    cr_assert_eq(snapshot_writer_create(&w, path, mem, 4096), 0);
    cr_assert_eq(snapshot_writer_finish(w, &snapshot, &summary), -EFBIG);
    snapshot_writer_destroy(w);
    snapshot_fini(&snapshot);
    cr_expect_eq(files_in(folder), 0);
}

/* ---- the stream alone ---- */

static int scratch(void)
{
    int fd = memfd_create("stream", MFD_CLOEXEC);

    cr_assert_geq(fd, 0);
    return fd;
}

static struct stream_reader rewound(int fd)
{
    cr_assert_eq(lseek(fd, 0, SEEK_SET), 0);
    return (struct stream_reader){.fd = fd, .name = "stream"};
}

TestSuite(stream, .init = begin, .fini = end);

Test(stream, refuses_what_a_later_version_alone_understands)
{
    int fd = scratch();
    uint32_t header[6], crc;
    struct stream_reader reader;

    cr_assert_eq(stream_write_header(fd), 0);
    cr_assert_eq(pread(fd, header, sizeof(header), 0), (ssize_t)sizeof(header));
    header[2] = 9; /* version */
    crc = stream_crc(0, header, 20);
    header[5] = crc;
    cr_assert_eq(pwrite(fd, header, sizeof(header), 0), (ssize_t)sizeof(header));
    reader = rewound(fd);
    cr_assert_eq(stream_read_header(&reader), 0, "compatible since version 1");
    header[3] = 9; /* compatible since */
    header[5] = stream_crc(0, header, 20);
    cr_assert_eq(pwrite(fd, header, sizeof(header), 0), (ssize_t)sizeof(header));
    reader = rewound(fd);
    cr_assert_eq(stream_read_header(&reader), -EOPNOTSUPP);
    close(fd);
}

Test(stream, refuses_what_is_no_stream)
{
    int fd = scratch();
    struct stream_reader reader;

    cr_assert_eq(write(fd, "#!/bin/sh\necho hello, world\n", 28), 28);
    reader = rewound(fd);
    cr_assert_eq(stream_read_header(&reader), -EBADMSG);
    close(fd);
}

/* A section header that is whole but for the length it claims. */
Test(stream, refuses_a_section_longer_than_any)
{
    int fd = scratch();
    uint8_t header[56];
    uint64_t length = (uint64_t)STREAM_SECTION_MAX + 1;
    struct stream_reader reader;
    struct stream_section section;
    uint32_t crc;
    void *payload = NULL;

    cr_assert_eq(stream_write_section(fd, STREAM_CONFIG, "", "", 0), 0);
    cr_assert_eq(pread(fd, header, sizeof(header), 0), (ssize_t)sizeof(header));
    memcpy(header + 40, &length, sizeof(length));
    crc = stream_crc(0, header, 52);
    memcpy(header + 52, &crc, sizeof(crc));
    cr_assert_eq(pwrite(fd, header, sizeof(header), 0), (ssize_t)sizeof(header));
    reader = rewound(fd);
    cr_assert_eq(stream_read_section(&reader, &section, &payload), -EMSGSIZE);
    cr_assert_null(payload);
    close(fd);
}

/* A kind of a later version: passed over when it is optional, else refused. */
static int read_with_unknown(uint32_t flags)
{
    int fd = scratch(), err;
    uint8_t header[56];
    uint32_t kind = 1000, crc;
    struct stream_reader reader;
    struct snapshot snapshot = {0};

    cr_assert_eq(stream_write_header(fd), 0);
    cr_assert_eq(stream_write_section(fd, STREAM_CONFIG, "new", "", 0), 0);
    cr_assert_eq(pread(fd, header, sizeof(header), 24), (ssize_t)sizeof(header));
    memcpy(header, &kind, sizeof(kind));
    memcpy(header + 4, &flags, sizeof(flags));
    crc = stream_crc(0, header, 52);
    memcpy(header + 52, &crc, sizeof(crc));
    cr_assert_eq(pwrite(fd, header, sizeof(header), 24), (ssize_t)sizeof(header));
    cr_assert_eq(stream_write_section(fd, STREAM_END, "", "", 0), 0);
    reader = rewound(fd);
    err = snapshot_read(&snapshot, &reader);
    snapshot_fini(&snapshot);
    close(fd);
    return err;
}

Test(stream, passes_over_an_unknown_optional_section_only)
{
    cr_assert_eq(read_with_unknown(STREAM_OPTIONAL), 0);
    cr_assert_eq(read_with_unknown(0), -EOPNOTSUPP);
}
