/*
 * virtio-blk driven as a guest's driver does: a virtqueue in guest memory, a real image file, the
 * real event loop.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "devices/virtio/blk.h"
#include "tests/unit/fake_driver.h"
#include "tests/unit/fake_env.h"
#include "vmm/util/log.h"

#define SECTOR 512u
#define IMAGE_SECTORS 4096u /* 2 MiB */

/* virtio 1.2 §5.2.3, §5.2.6 */
enum { F_SEG_MAX = 2, F_RO = 5, F_FLUSH = 9, F_WCE = 11, F_MQ = 12, F_DISCARD = 13, F_ZEROES = 14 };
enum { T_IN, T_OUT, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_ZEROES = 13 };
enum { S_OK, S_IOERR, S_UNSUPP, S_UNTOUCHED = 0xEE };

/* Guest memory: the queues from 0, then where requests have their parts. */
#define QUEUE_BASE 0x10000u
#define HEADERS 0x80000u
#define STATUSES 0x90000u
#define DATA 0x100000u
#define MEMORY (8 * MIB)

static struct fake_env fake;
static struct fake_transport transport;
static struct fake_queue queue[2];
static struct virtio_device *vdev;
static char path[] = "/tmp/ferry-test-XXXXXX";
static int file = -1;
static char last_line[512];
static unsigned lines;

static void note_line(enum log_level level, const char *line)
{
    (void)level;
    lines++;
    snprintf(last_line, sizeof(last_line), "%s", line);
}

/* Sector n of the fresh image holds bytes of n + 1. */
static void make_image(void)
{
    file = mkostemp(path, O_CLOEXEC);
    cr_assert_geq(file, 0);
    for (unsigned i = 0; i < IMAGE_SECTORS; i++) {
        uint8_t sector[SECTOR];

        memset(sector, (int)(i + 1), sizeof(sector));
        cr_assert_eq(pwrite(file, sector, sizeof(sector), (off_t)i * SECTOR), (ssize_t)SECTOR);
    }
}

static void set_up(void)
{
    log_set_sink(note_line);
    fake_env_init(&fake, MEMORY);
    make_image();
}

static void tear_down(void)
{
    if (vdev)
        vdev->class->destroy(vdev);
    fake_env_fini(&fake);
    close(file);
    unlink(path);
}

TestSuite(blk, .init = set_up, .fini = tear_down, .timeout = 60);

static void create(const struct virtio_blk_config *config)
{
    struct virtio_blk_config c = *config;

    if (!c.path)
        c.path = path;
    cr_assert_eq(virtio_blk_create(&vdev, &fake.env, "disk0", &c), 0, "%s", last_line);
    fake_transport_attach(&transport, vdev);
}

static void start(uint64_t features)
{
    gpa_t base = QUEUE_BASE;

    for (unsigned i = 0; i < vdev->n_queues; i++) {
        fake_queue_init(&queue[i], fake.env.mem, base, vdev->queues[i].max_size);
        base = queue[i].end;
    }
    fake_driver_start(vdev, features, queue, vdev->n_queues);
}

#define ALL_FEATURES                                                                               \
    (1ull << F_SEG_MAX | 1ull << F_FLUSH | 1ull << F_WCE | 1ull << F_DISCARD | 1ull << F_ZEROES |  \
     1ull << VIRTIO_RING_F_INDIRECT_DESC)

static void bring_up(void)
{
    create(&(struct virtio_blk_config){0});
    start(ALL_FEATURES);
}

/* ---- requests ---- */

static void put_header(unsigned n, uint32_t type, uint64_t sector)
{
    struct {
        uint32_t type, reserved;
        uint64_t sector;
    } header = {type, 0, sector};
    uint8_t untouched = S_UNTOUCHED;

    cr_assert_eq(memory_write(fake.env.mem, HEADERS + 16 * n, &header, sizeof(header)), 0);
    cr_assert_eq(memory_write(fake.env.mem, STATUSES + n, &untouched, 1), 0);
}

static uint8_t status_of(unsigned n)
{
    uint8_t status;

    cr_assert_eq(memory_read(fake.env.mem, STATUSES + n, &status, 1), 0);
    return status;
}

/* Adds request n to queue 0: header, one piece of data (none when length is 0), status. */
static void add(unsigned n, uint32_t type, uint64_t sector, gpa_t data, uint32_t length)
{
    bool in = type == T_IN || type == T_GET_ID;
    struct fake_piece pieces[] = {
        {HEADERS + 16 * n, 16, false}, {data, length, in}, {STATUSES + n, 1, true}};

    put_header(n, type, sector);
    if (length == 0)
        pieces[1] = pieces[2];
    fake_queue_add(&queue[0], pieces, length ? 3 : 2);
}

static bool has_used(void *arg)
{
    return fake_queue_used_idx(&queue[0]) != *(uint16_t *)arg;
}

/* Waits for the next used entry of queue 0. */
static struct fake_used wait_used(void)
{
    struct fake_used used;

    fake_env_wait(&fake, has_used, &queue[0].used_seen);
    cr_assert(fake_queue_take(&queue[0], &used));
    return used;
}

/* One request alone; returns its status. */
static uint8_t request(uint32_t type, uint64_t sector, gpa_t data, uint32_t length)
{
    add(0, type, sector, data, length);
    fake_driver_kick(vdev, 0);
    (void)wait_used();
    return status_of(0);
}

/* A chain of the test's own making, whose header and status are request 0's. */
static uint8_t request_pieces(const struct fake_piece *pieces, unsigned n, struct fake_used *used)
{
    struct fake_used got;

    fake_queue_add_indirect(&queue[0], pieces, n, DATA - 0x8000);
    fake_driver_kick(vdev, 0);
    got = wait_used();
    if (used)
        *used = got;
    return status_of(0);
}

static bool guest_has(gpa_t gpa, uint8_t byte, uint64_t length)
{
    const uint8_t *at = memory_at(fake.env.mem, gpa, length);

    for (uint64_t i = 0; i < length; i++)
        if (at[i] != byte)
            return false;
    return true;
}

static bool image_has(uint64_t sector, uint8_t byte, uint64_t sectors)
{
    for (uint64_t s = sector; s < sector + sectors; s++) {
        uint8_t buf[SECTOR];

        cr_assert_eq(pread(file, buf, SECTOR, (off_t)(s * SECTOR)), (ssize_t)SECTOR);
        for (unsigned i = 0; i < SECTOR; i++)
            if (buf[i] != byte)
                return false;
    }
    return true;
}

static void fill_guest(gpa_t gpa, uint8_t byte, uint64_t length)
{
    cr_assert_eq(memory_fill(fake.env.mem, gpa, byte, length), 0);
}

Test(blk, a_read_brings_the_sectors_asked_for)
{
    struct fake_used used;

    bring_up();
    add(0, T_IN, 7, DATA, 2 * SECTOR);
    fake_driver_kick(vdev, 0);
    used = wait_used();
    cr_assert_eq(status_of(0), S_OK);
    cr_assert_eq(used.length, 2 * SECTOR + 1);
    cr_assert(guest_has(DATA, 8, SECTOR));
    cr_assert(guest_has(DATA + SECTOR, 9, SECTOR));
    cr_assert(guest_has(DATA + 2 * SECTOR, 0, SECTOR));
}

Test(blk, a_write_reaches_the_image_and_nothing_beside_it)
{
    struct fake_used used;

    bring_up();
    fill_guest(DATA, 0xA5, 3 * SECTOR);
    add(0, T_OUT, 100, DATA, 3 * SECTOR);
    fake_driver_kick(vdev, 0);
    used = wait_used();
    cr_assert_eq(status_of(0), S_OK);
    cr_assert_eq(used.length, 1);
    cr_assert(image_has(100, 0xA5, 3));
    cr_assert(image_has(99, 100, 1));
    cr_assert(image_has(103, 104, 1));
}

Test(blk, requests_that_were_carried_out_are_counted_and_no_others)
{
    struct virtio_blk_counters counters;

    bring_up();
    cr_assert_eq(request(T_IN, 7, DATA, 2 * SECTOR), S_OK);
    cr_assert_eq(request(T_OUT, 100, DATA, 3 * SECTOR), S_OK);
    cr_assert_eq(request(T_IN, IMAGE_SECTORS, DATA, SECTOR), S_IOERR);
    cr_assert_eq(request(T_OUT, IMAGE_SECTORS, DATA, SECTOR), S_IOERR);
    virtio_blk_get_counters(vdev, &counters);
    cr_assert_eq(counters.read_ops, 1);
    cr_assert_eq(counters.read_bytes, 2 * SECTOR);
    cr_assert_eq(counters.write_ops, 1);
    cr_assert_eq(counters.write_bytes, 3 * SECTOR);
}

Test(blk, the_last_sector_is_within_reach_and_the_next_is_not)
{
    bring_up();
    cr_assert_eq(request(T_IN, IMAGE_SECTORS - 1, DATA, SECTOR), S_OK);
    cr_assert_eq(request(T_IN, IMAGE_SECTORS - 1, DATA, 2 * SECTOR), S_IOERR);
    cr_assert_eq(request(T_OUT, IMAGE_SECTORS, DATA, SECTOR), S_IOERR);
    cr_assert_eq(request(T_IN, UINT64_MAX, DATA, SECTOR), S_IOERR);
    cr_assert_eq(request(T_OUT, UINT64_MAX / SECTOR + 1, DATA, SECTOR), S_IOERR);
    cr_assert_eq(lseek(file, 0, SEEK_END), (off_t)IMAGE_SECTORS * SECTOR);
}

Test(blk, a_length_that_is_no_multiple_of_a_sector_is_refused)
{
    bring_up();
    cr_assert_eq(request(T_IN, 0, DATA, SECTOR - 1), S_IOERR);
    cr_assert_eq(request(T_OUT, 0, DATA, SECTOR + 1), S_IOERR);
    cr_assert(image_has(0, 1, 1));
    cr_assert(guest_has(DATA, 0, SECTOR));
}

Test(blk, a_transfer_of_nothing_succeeds)
{
    bring_up();
    cr_assert_eq(request(T_IN, 0, DATA, 0), S_OK);
    cr_assert_eq(request(T_OUT, 0, DATA, 0), S_OK);
}

Test(blk, an_unknown_type_is_unsupported)
{
    bring_up();
    cr_assert_eq(request(99, 0, DATA, SECTOR), S_UNSUPP);
    cr_assert_eq(request(2, 0, DATA, SECTOR), S_UNSUPP);
}

Test(blk, the_header_may_lie_in_pieces_and_the_status_behind_the_data)
{
    struct fake_piece pieces[] = {{HEADERS, 1, false},
                                  {HEADERS + 1, 10, false},
                                  {HEADERS + 11, 5, false},
                                  {DATA, 100, true},
                                  {DATA + 0x1000, SECTOR - 100 + 1, true}};

    bring_up();
    put_header(0, T_IN, 4);
    request_pieces(pieces, 5, NULL);
    cr_assert(guest_has(DATA, 5, 100));
    cr_assert(guest_has(DATA + 0x1000, 5, SECTOR - 100));
    cr_assert(guest_has(DATA + 0x1000 + SECTOR - 100, S_OK, 1));
}

Test(blk, the_data_of_a_write_may_lie_right_behind_the_header)
{
    struct fake_piece pieces[] = {{HEADERS, 16 + SECTOR, false}, {STATUSES, 1, true}};

    bring_up();
    put_header(0, T_OUT, 9);
    fill_guest(HEADERS + 16, 0x77, SECTOR);
    cr_assert_eq(request_pieces(pieces, 2, NULL), S_OK);
    cr_assert(image_has(9, 0x77, 1));
}

Test(blk, a_short_header_is_an_error_of_that_request_alone)
{
    struct fake_piece pieces[] = {{HEADERS, 15, false}, {STATUSES, 1, true}};

    bring_up();
    put_header(0, T_FLUSH, 0);
    cr_assert_eq(request_pieces(pieces, 2, NULL), S_IOERR);
    cr_assert_eq(request(T_IN, 0, DATA, SECTOR), S_OK);
}

Test(blk, pieces_that_adjoin_count_as_one)
{
    enum { N = 256 };
    struct fake_piece pieces[N + 2] = {{HEADERS, 16, false}};

    bring_up();
    put_header(0, T_IN, 0);
    for (unsigned i = 0; i < N; i++)
        pieces[i + 1] = (struct fake_piece){DATA + i * SECTOR, SECTOR, true};
    pieces[N + 1] = (struct fake_piece){STATUSES, 1, true};
    cr_assert_eq(request_pieces(pieces, N + 2, NULL), S_OK);
    for (unsigned i = 0; i < N; i++)
        cr_assert(guest_has(DATA + i * SECTOR, (uint8_t)(i + 1), SECTOR));
}

static uint8_t request_scattered(unsigned n)
{
    struct fake_piece pieces[200] = {{HEADERS, 16, false}};

    put_header(0, T_IN, 0);
    for (unsigned i = 0; i < n; i++)
        pieces[i + 1] = (struct fake_piece){DATA + i * 0x1000, SECTOR, true};
    pieces[n + 1] = (struct fake_piece){STATUSES, 1, true};
    return request_pieces(pieces, n + 2, NULL);
}

static uint32_t config_u32(size_t offset)
{
    uint32_t value;

    vdev->class->config_read(vdev, offset, &value, sizeof(value));
    return value;
}

Test(blk, as_many_scattered_pieces_as_it_says_are_taken_and_one_more_is_refused)
{
    uint32_t seg_max;

    bring_up();
    seg_max = config_u32(12);
    cr_assert_lt(seg_max, 198);
    cr_assert_eq(request_scattered(seg_max), S_OK);
    cr_assert(guest_has(DATA + (seg_max - 1) * 0x1000, (uint8_t)seg_max, SECTOR));
    cr_assert_eq(request_scattered(seg_max + 1), S_IOERR);
}

Test(blk, a_read_only_disk_reads_and_refuses_to_write)
{
    struct {
        uint64_t sector;
        uint32_t sectors, flags;
    } range = {1, 1, 0};

    create(&(struct virtio_blk_config){.readonly = true});
    cr_assert(virtio_offered(vdev) >> F_RO & 1);
    cr_assert_not(virtio_offered(vdev) >> F_DISCARD & 1);
    cr_assert_not(virtio_offered(vdev) >> F_ZEROES & 1);
    start(1ull << F_RO | 1ull << F_FLUSH);
    cr_assert_eq(request(T_IN, 3, DATA, SECTOR), S_OK);
    cr_assert(guest_has(DATA, 4, SECTOR));
    fill_guest(DATA, 0xA5, SECTOR);
    lines = 0;
    cr_assert_eq(request(T_OUT, 3, DATA, SECTOR), S_IOERR);
    cr_assert_eq(lines, 0); /* refused, not tried */
    cr_assert_eq(memory_write(fake.env.mem, DATA, &range, sizeof(range)), 0);
    cr_assert_eq(request(T_ZEROES, 0, DATA, sizeof(range)), S_UNSUPP);
    cr_assert_eq(request(T_DISCARD, 0, DATA, sizeof(range)), S_UNSUPP);
    cr_assert_eq(request(T_FLUSH, 0, DATA, 0), S_OK);
    cr_assert(image_has(1, 2, 1));
    cr_assert(image_has(3, 4, 1));
}

Test(blk, its_name_is_the_serial_or_else_the_id)
{
    bring_up();
    fill_guest(DATA, 0xFF, 32);
    cr_assert_eq(request(T_GET_ID, 0, DATA, 20), S_OK);
    cr_assert_str_eq(memory_at(fake.env.mem, DATA, 20), "disk0");
    cr_assert(guest_has(DATA + 5, 0, 15));
    cr_assert(guest_has(DATA + 20, 0xFF, 1));
}

Test(blk, a_name_longer_than_its_field_or_buffer_is_cut)
{
    struct fake_used used;

    create(&(struct virtio_blk_config){.serial = "0123456789abcdefghijKLM"});
    start(0);
    fill_guest(DATA, 0xFF, 32);
    cr_assert_eq(request(T_GET_ID, 0, DATA, 24), S_OK);
    cr_assert_arr_eq(memory_at(fake.env.mem, DATA, 20), "0123456789abcdefghij", 20);
    cr_assert(guest_has(DATA + 20, 0xFF, 4));
    fill_guest(DATA, 0xFF, 32);
    add(0, T_GET_ID, 0, DATA, 3);
    fake_driver_kick(vdev, 0);
    used = wait_used();
    cr_assert_eq(status_of(0), S_OK);
    cr_assert_eq(used.length, 4);
    cr_assert_arr_eq(memory_at(fake.env.mem, DATA, 3), "012", 3);
    cr_assert(guest_has(DATA + 3, 0xFF, 1));
}

/* ---- discard and write zeroes ---- */

struct range {
    uint64_t sector;
    uint32_t sectors, flags;
};

static uint8_t request_ranges(uint32_t type, const struct range *ranges, unsigned n)
{
    cr_assert_eq(memory_write(fake.env.mem, DATA, ranges, n * sizeof(*ranges)), 0);
    return request(type, 0, DATA, (uint32_t)(n * sizeof(*ranges)));
}

static blkcnt_t host_blocks(void)
{
    struct stat st;

    cr_assert_eq(fstat(file, &st), 0);
    return st.st_blocks;
}

Test(blk, a_discarded_range_is_given_back_to_the_host)
{
    struct range range = {1024, 2048, 0};
    blkcnt_t before;

    bring_up();
    cr_assert_eq(fsync(file), 0);
    before = host_blocks();
    cr_assert_eq(request_ranges(T_DISCARD, &range, 1), S_OK);
    cr_assert_leq(host_blocks(), before - 1024);
    cr_assert(image_has(1023, 0, 1)); /* 1024 is 0 in eight bits */
    cr_assert(image_has(1022, 0xFF, 1));
    cr_assert(image_has(3072, 1, 1));
    cr_assert_eq(lseek(file, 0, SEEK_END), (off_t)IMAGE_SECTORS * SECTOR);
}

Test(blk, zeroes_are_written_over_each_range_with_and_without_holes)
{
    struct range ranges[] = {{10, 3, 0}, {20, 0, 0}, {64, 64, 1}};

    bring_up();
    cr_assert_eq(request_ranges(T_ZEROES, ranges, 3), S_OK);
    cr_assert(image_has(9, 10, 1));
    cr_assert(image_has(10, 0, 3));
    cr_assert(image_has(13, 14, 1));
    cr_assert(image_has(20, 21, 1));
    cr_assert(image_has(63, 64, 1));
    cr_assert(image_has(64, 0, 64));
    cr_assert(image_has(128, 129, 1));
}

Test(blk, zeroes_are_written_as_data_where_the_file_system_has_no_way_to_make_them)
{
    struct range range = {11, 3001, 0}; /* more than one operation's worth, at odd bounds */
    char name[64];

    /* tmpfs has no FALLOC_FL_ZERO_RANGE. */
    close(file);
    file = memfd_create("image", MFD_CLOEXEC);
    snprintf(name, sizeof(name), "/proc/self/fd/%d", file);
    cr_assert_eq(ftruncate(file, (off_t)IMAGE_SECTORS * SECTOR), 0);
    for (unsigned i = 0; i < IMAGE_SECTORS; i++) {
        uint8_t sector[SECTOR];

        memset(sector, 0x5A, sizeof(sector));
        cr_assert_eq(pwrite(file, sector, SECTOR, (off_t)i * SECTOR), (ssize_t)SECTOR);
    }
    cr_assert_lt(fallocate(file, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 0, SECTOR), 0);
    create(&(struct virtio_blk_config){.path = name});
    start(ALL_FEATURES);
    cr_assert_eq(request_ranges(T_ZEROES, &range, 1), S_OK);
    cr_assert(image_has(0, 0x5A, 11));
    cr_assert(image_has(11, 0, 3001));
    cr_assert(image_has(3012, 0x5A, IMAGE_SECTORS - 3012));
}

Test(blk, ranges_out_of_bounds_or_too_many_are_refused_before_anything_is_changed)
{
    struct range beyond[] = {{0, 8, 0}, {IMAGE_SECTORS - 1, 2, 0}};
    struct range wraps[] = {{0, 8, 0}, {UINT64_MAX, 2, 0}};
    struct range large = {0, UINT32_MAX, 0};
    struct range many[17] = {{0, 8, 0}};

    bring_up();
    cr_assert_eq(config_u32(40), 16);
    cr_assert_eq(config_u32(52), 16);
    cr_assert_eq(request_ranges(T_ZEROES, beyond, 2), S_IOERR);
    cr_assert_eq(request_ranges(T_DISCARD, wraps, 2), S_IOERR);
    cr_assert_eq(request_ranges(T_ZEROES, &large, 1), S_IOERR);
    cr_assert_eq(request_ranges(T_ZEROES, many, 17), S_IOERR);
    cr_assert_eq(request(T_ZEROES, 0, DATA, 15), S_IOERR);
    cr_assert_eq(request(T_ZEROES, 0, DATA, 17), S_IOERR);
    cr_assert_eq(request(T_DISCARD, 0, DATA, 0), S_IOERR);
    cr_assert(image_has(0, 1, 1));
}

Test(blk, a_range_larger_than_it_says_it_takes_is_refused_on_a_disk_of_any_size)
{
    struct range range = {0, 0, 0};

    cr_assert_eq(ftruncate(file, (off_t)(4 * GIB)), 0);
    bring_up();
    range.sectors = config_u32(36);
    cr_assert_eq(config_u32(48), range.sectors);
    cr_assert_eq(request_ranges(T_DISCARD, &range, 1), S_OK);
    range.sectors++;
    cr_assert_eq(request_ranges(T_DISCARD, &range, 1), S_IOERR);
    cr_assert_eq(request_ranges(T_ZEROES, &range, 1), S_IOERR);
}

Test(blk, flags_that_are_not_defined_are_unsupported)
{
    struct range unmap = {0, 8, 1}, reserved = {0, 8, 2}, both[] = {{0, 8, 0}, {8, 8, 0x80000000}};

    bring_up();
    cr_assert_eq(request_ranges(T_DISCARD, &unmap, 1), S_UNSUPP);
    cr_assert_eq(request_ranges(T_DISCARD, &reserved, 1), S_UNSUPP);
    cr_assert_eq(request_ranges(T_ZEROES, &reserved, 1), S_UNSUPP);
    cr_assert_eq(request_ranges(T_ZEROES, both, 2), S_UNSUPP);
    cr_assert(image_has(0, 1, 1));
}

Test(blk, ranges_without_their_feature_are_unsupported)
{
    struct range range = {0, 8, 0};

    create(&(struct virtio_blk_config){0});
    start(1ull << F_FLUSH);
    cr_assert_eq(request_ranges(T_DISCARD, &range, 1), S_UNSUPP);
    cr_assert_eq(request_ranges(T_ZEROES, &range, 1), S_UNSUPP);
    cr_assert(image_has(0, 1, 1));
}

/* ---- the cache ---- */

/* Whether the file has data that has no place on the disk yet. */
static bool has_unwritten_data(void)
{
    struct {
        struct fiemap map;
        struct fiemap_extent extents[64];
    } m = {.map = {.fm_length = FIEMAP_MAX_OFFSET, .fm_extent_count = 64}};

    if (ioctl(file, FS_IOC_FIEMAP, &m) < 0)
        cr_skip_test("the file system tells nothing of its extents");
    for (unsigned i = 0; i < m.map.fm_mapped_extents; i++)
        if (m.map.fm_extents[i].fe_flags & FIEMAP_EXTENT_DELALLOC)
            return true;
    return false;
}

/* Starts with a hole where the first write goes; a write-back write must be seen as delayed. */
static void bring_up_sparse(uint64_t features, uint8_t writeback)
{
    cr_assert_eq(ftruncate(file, 0), 0);
    cr_assert_eq(ftruncate(file, (off_t)IMAGE_SECTORS * SECTOR), 0);
    cr_assert_eq(pwrite(file, "x", 1, 0), 1);
    if (!has_unwritten_data())
        cr_skip_test("the file system does not delay its allocations");
    cr_assert_eq(fdatasync(file), 0);
    cr_assert_not(has_unwritten_data());
    create(&(struct virtio_blk_config){0});
    start(features);
    if (features >> F_WCE & 1)
        vdev->class->config_write(vdev, 32, &writeback, 1);
}

Test(blk, with_a_write_back_cache_data_is_stable_after_a_flush)
{
    bring_up_sparse(ALL_FEATURES, 1);
    cr_assert_eq(request(T_OUT, 64, DATA, SECTOR), S_OK);
    cr_assert(has_unwritten_data());
    cr_assert_eq(request(T_FLUSH, 0, DATA, 0), S_OK);
    cr_assert_not(has_unwritten_data());
}

Test(blk, with_a_write_through_cache_data_is_stable_when_the_write_is_done)
{
    bring_up_sparse(ALL_FEATURES, 0);
    cr_assert_eq(request(T_OUT, 64, DATA, SECTOR), S_OK);
    cr_assert_not(has_unwritten_data());
}

Test(blk, a_driver_that_cannot_flush_gets_a_write_through_cache)
{
    bring_up_sparse(0, 1);
    cr_assert_eq(request(T_OUT, 64, DATA, SECTOR), S_OK);
    cr_assert_not(has_unwritten_data());
}

Test(blk, the_cache_mode_is_write_back_until_set_and_after_a_reset)
{
    uint8_t off = 0, mode;

    create(&(struct virtio_blk_config){0});
    vdev->class->config_write(vdev, 32, &off, 1); /* not agreed on yet: no effect */
    start(ALL_FEATURES);
    vdev->class->config_read(vdev, 32, &mode, 1);
    cr_assert_eq(mode, 1);
    vdev->class->config_write(vdev, 32, &off, 1);
    vdev->class->config_read(vdev, 32, &mode, 1);
    cr_assert_eq(mode, 0);
    fake_driver_reset(vdev);
    vdev->class->config_read(vdev, 32, &mode, 1);
    cr_assert_eq(mode, 1);
    start(1ull << F_WCE); /* without FLUSH */
    vdev->class->config_read(vdev, 32, &mode, 1);
    cr_assert_eq(mode, 0);
}

/* ---- many requests ---- */

static bool all_used(void *arg)
{
    return fake_queue_used_idx(&queue[0]) == *(uint16_t *)arg;
}

Test(blk, requests_of_one_batch_all_finish_and_interrupt_once)
{
    enum { N = 32 };
    uint16_t want = N;
    struct fake_used used;

    create(&(struct virtio_blk_config){0});
    start(ALL_FEATURES | 1ull << VIRTIO_RING_F_EVENT_IDX);
    for (unsigned i = 0; i < N; i++)
        add(i, T_FLUSH + 90, i, 0, 0); /* refused at once, so they finish together */
    fake_driver_kick(vdev, 0);
    fake_env_wait(&fake, all_used, &want);
    fake_env_settle(&fake);
    cr_assert_eq(transport.queue_interrupts[0], 1);
    while (fake_queue_take(&queue[0], &used))
        continue;
    fake_queue_set_used_event(&queue[0], queue[0].used_seen);
    for (unsigned i = 0; i < N; i++)
        add(i, T_IN, i, DATA + i * SECTOR, SECTOR);
    fake_driver_kick(vdev, 0);
    want = 2 * N;
    fake_env_wait(&fake, all_used, &want);
    fake_env_settle(&fake);
    cr_assert_eq(transport.queue_interrupts[0], 2);
    for (unsigned i = 0; i < N; i++) {
        cr_assert_eq(status_of(i), S_OK);
        cr_assert(guest_has(DATA + i * SECTOR, (uint8_t)(i + 1), SECTOR));
    }
}

Test(blk, more_requests_than_slots_wait_for_their_turn)
{
    enum { N = 256 };
    static const struct fake_piece pieces[] = {
        {HEADERS, 16, false}, {DATA, SECTOR, true}, {STATUSES, 1, true}};
    uint16_t want = N;

    create(&(struct virtio_blk_config){.n_queues = 2});
    start(1ull << VIRTIO_RING_F_INDIRECT_DESC | 1ull << F_MQ);
    cr_assert_eq(config_u32(34) & 0xFFFF, 2);
    put_header(0, T_IN, 0);
    for (unsigned i = 0; i < N; i++)
        for (unsigned q = 0; q < 2; q++)
            fake_queue_add_indirect(&queue[q], pieces, 3, DATA - 0x8000);
    fake_driver_kick(vdev, 0);
    fake_driver_kick(vdev, 1);
    fake_env_wait(&fake, all_used, &want);
    fake_env_settle(&fake);
    cr_assert_eq(fake_queue_used_idx(&queue[1]), N);
    cr_assert(guest_has(DATA, 1, SECTOR));
}

Test(blk, one_buffer_made_available_again_and_again_is_answered_as_often)
{
    uint16_t want = 1000, head;

    bring_up();
    add(0, T_IN, 0, DATA, SECTOR);
    cr_assert_eq(memory_read(fake.env.mem, queue[0].avail + 4, &head, 2), 0);
    /* All 256 entries name the same chain, and the index runs on as fast as it is allowed to. */
    for (unsigned i = 0; i < 256; i++)
        cr_assert_eq(memory_write(fake.env.mem, queue[0].avail + 4 + 2 * i, &head, 2), 0);
    for (uint16_t idx = 250; idx <= want; idx += 250) {
        cr_assert_eq(memory_write(fake.env.mem, queue[0].avail + 2, &idx, 2), 0);
        fake_driver_kick(vdev, 0);
        fake_env_wait(&fake, all_used, &idx);
    }
    cr_assert(virtio_device_live(vdev));
}

/* ---- chains that break the device ---- */

static bool is_broken(void)
{
    return virtio_get_status(vdev) & VIRTIO_CONFIG_S_NEEDS_RESET;
}

Test(blk, a_request_without_room_for_its_status_breaks_the_device)
{
    struct fake_piece pieces[] = {{HEADERS, 16, false}};

    bring_up();
    put_header(0, T_FLUSH, 0);
    fake_queue_add(&queue[0], pieces, 1);
    fake_driver_kick(vdev, 0);
    cr_assert(is_broken());
    cr_assert_eq(fake_queue_used_idx(&queue[0]), 0);
    cr_assert_eq(transport.config_interrupts, 1);
    cr_assert_not(vdev->class->busy(vdev));
}

Test(blk, a_descriptor_loop_breaks_the_device_and_a_reset_repairs_it)
{
    bring_up();
    add(0, T_IN, 0, DATA, SECTOR);
    fake_desc_write(&queue[0], 2, STATUSES, 1, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 0);
    fake_driver_kick(vdev, 0);
    cr_assert(is_broken());
    fake_driver_reset(vdev);
    cr_assert_eq(virtio_get_status(vdev), 0);
    start(ALL_FEATURES);
    cr_assert_eq(request(T_IN, 5, DATA, SECTOR), S_OK);
    cr_assert(guest_has(DATA, 6, SECTOR));
}

Test(blk, data_outside_memory_breaks_the_device)
{
    bring_up();
    add(0, T_IN, 0, MEMORY - SECTOR + 1, SECTOR);
    fake_driver_kick(vdev, 0);
    cr_assert(is_broken());
}

Test(blk, the_image_cut_short_under_a_guest_is_an_error_that_is_told)
{
    bring_up();
    cr_assert_eq(ftruncate(file, 2 * SECTOR), 0);
    lines = 0;
    cr_assert_eq(request(T_IN, 1, DATA, 2 * SECTOR), S_IOERR);
    cr_assert_eq(lines, 1);
    cr_assert_str_eq(last_line, "disk0: read at sector 2 failed: Input/output error");
}

/* ---- reset, pause, the end ---- */

static bool is_idle(void *arg)
{
    (void)arg;
    return !virtio_busy(vdev);
}

Test(blk, a_reset_with_requests_in_flight_lasts_until_they_are_back_and_drops_them)
{
    bring_up();
    for (unsigned i = 0; i < 8; i++)
        add(i, T_IN, i, DATA + i * SECTOR, SECTOR);
    fake_driver_kick(vdev, 0); /* started, but the loop has not run */
    fake_driver_reset(vdev);
    cr_assert_neq(virtio_get_status(vdev), 0);
    fake_env_wait(&fake, is_idle, NULL);
    cr_assert_eq(virtio_get_status(vdev), 0);
    for (unsigned i = 0; i < 8; i++)
        cr_assert_eq(status_of(i), S_UNTOUCHED);
    cr_assert_eq(fake_queue_used_idx(&queue[0]), 0);
    fake_env_settle(&fake);
    cr_assert_eq(transport.queue_interrupts[0], 0);
}

Test(blk, a_pause_lets_requests_finish_and_takes_no_new_ones_until_resumed)
{
    bring_up();
    add(0, T_IN, 0, DATA, SECTOR);
    fake_driver_kick(vdev, 0);
    device_lock(&fake.env);
    virtio_pause(vdev);
    device_unlock(&fake.env);
    cr_assert(virtio_busy(vdev));
    add(1, T_IN, 1, DATA + SECTOR, SECTOR);
    fake_driver_kick(vdev, 0);
    fake_env_wait(&fake, is_idle, NULL);
    cr_assert_eq(status_of(0), S_OK);
    cr_assert_eq(status_of(1), S_UNTOUCHED);
    cr_assert_eq(transport.queue_interrupts[0], 1); /* idle means that it was told, too */
    device_lock(&fake.env);
    virtio_resume(vdev);
    device_unlock(&fake.env);
    (void)wait_used();
    (void)wait_used();
    cr_assert_eq(status_of(1), S_OK);
}

Test(blk, it_can_be_destroyed_with_requests_in_flight)
{
    bring_up();
    for (unsigned i = 0; i < 32; i++)
        add(i, i % 2 ? T_IN : T_FLUSH, i, DATA + i * SECTOR, i % 2 ? SECTOR : 0);
    fake_driver_kick(vdev, 0);
    vdev->class->destroy(vdev);
    vdev = NULL;
    cr_assert_eq(fake_queue_used_idx(&queue[0]), 0);
}

Test(blk, what_a_read_writes_is_marked_dirty_and_nothing_else)
{
    uint64_t bitmap[MEMORY / 4096 / 64] = {0};
    const unsigned data = DATA / 4096, status = STATUSES / 4096;

    bring_up();
    cr_assert_eq(memory_dirty_start(fake.env.mem), 0);
    add(0, T_IN, 0, DATA + 0x800, 0x1000);
    memory_dirty_harvest(fake.env.mem, 0, bitmap); /* the test's own writes */
    memset(bitmap, 0, sizeof(bitmap));
    fake_driver_kick(vdev, 0);
    (void)wait_used();
    memory_dirty_harvest(fake.env.mem, 0, bitmap);
    cr_assert_eq(bitmap[data / 64], 3ull << data % 64);
    cr_assert_eq(bitmap[status / 64] & (1ull << status % 64), 1ull << status % 64);
}

/* ---- state ---- */

static int load(struct virtio_device *to, const struct state_buffer *from)
{
    struct state_reader in = {.data = from->data, .length = from->length};
    struct state_part parts[2];
    unsigned n = virtio_state_parts(to, parts);
    void *temp[2];
    int err = 0;

    cr_assert_eq(n, 2);
    for (unsigned i = 0; i < n; i++) {
        temp[i] = calloc(1, parts[i].desc->size);
        if (!err)
            err = state_load(parts[i].desc, temp[i], &in);
        if (!err)
            err = parts[i].check(parts[i].object, temp[i]);
    }
    for (unsigned i = 0; i < n; i++) {
        if (!err)
            parts[i].set(parts[i].object, temp[i]);
        free(temp[i]);
    }
    return err;
}

static void save(struct virtio_device *from, struct state_buffer *out)
{
    struct state_part parts[2];
    unsigned n = virtio_state_parts(from, parts);

    for (unsigned i = 0; i < n; i++) {
        void *state = calloc(1, parts[i].desc->size);

        parts[i].get(parts[i].object, state);
        cr_assert_eq(state_save(parts[i].desc, state, out), 0);
        free(state);
    }
}

Test(blk, a_disk_goes_on_where_its_saved_state_left_it)
{
    struct state_buffer buffer = {0};
    uint8_t off = 0, mode;

    bring_up();
    vdev->class->config_write(vdev, 32, &off, 1);
    cr_assert_eq(request(T_IN, 0, DATA, SECTOR), S_OK);
    add(1, T_IN, 9, DATA, SECTOR); /* not kicked yet: the state says how far the queue was read */
    save(vdev, &buffer);
    vdev->class->destroy(vdev);
    create(&(struct virtio_blk_config){0});
    cr_assert_eq(load(vdev, &buffer), 0);
    vdev->class->config_read(vdev, 32, &mode, 1);
    cr_assert_eq(mode, 0);
    fake_driver_kick(vdev, 0);
    (void)wait_used();
    cr_assert_eq(status_of(1), S_OK);
    cr_assert(guest_has(DATA, 10, SECTOR));
    state_buffer_fini(&buffer);
}

Test(blk, the_state_of_a_disk_of_another_size_is_refused)
{
    struct state_buffer buffer = {0};

    bring_up();
    save(vdev, &buffer);
    vdev->class->destroy(vdev);
    cr_assert_eq(ftruncate(file, (off_t)(IMAGE_SECTORS - 1) * SECTOR), 0);
    create(&(struct virtio_blk_config){0});
    cr_assert_eq(load(vdev, &buffer), -EINVAL);
    cr_assert_str_eq(last_line, "disk0: saved state: the size of the disk is another");
    cr_assert_eq(virtio_get_status(vdev), 0);
    state_buffer_fini(&buffer);
}

Test(blk, the_state_of_a_writable_disk_is_refused_by_a_read_only_one)
{
    struct state_buffer buffer = {0};

    create(&(struct virtio_blk_config){0});
    save(vdev, &buffer);
    vdev->class->destroy(vdev);
    create(&(struct virtio_blk_config){.readonly = true});
    cr_assert_eq(load(vdev, &buffer), -EINVAL);
    state_buffer_fini(&buffer);
}

/* ---- O_DIRECT ---- */

static void bring_up_direct(void)
{
    int err = virtio_blk_create(&vdev, &fake.env, "disk0",
                                &(struct virtio_blk_config){.path = path, .direct = true});

    if (err == -EOPNOTSUPP)
        cr_skip_test("the file system of /tmp has no direct I/O");
    cr_assert_eq(err, 0, "%s", last_line);
    fake_transport_attach(&transport, vdev);
    start(ALL_FEATURES);
}

Test(blk, direct_transfers_work_for_aligned_buffers)
{
    bring_up_direct();
    cr_assert_eq(request(T_IN, 8, DATA, 4096), S_OK);
    cr_assert(guest_has(DATA, 9, SECTOR));
    fill_guest(DATA, 0x3C, 8192);
    cr_assert_eq(request(T_OUT, 16, DATA, 8192), S_OK);
    cr_assert(image_has(16, 0x3C, 16));
    cr_assert(image_has(32, 33, 1));
}

Test(blk, direct_transfers_work_for_buffers_at_any_address_and_of_any_length)
{
    struct fake_piece in[] = {{HEADERS, 16, false},
                              {DATA + 1, 1000, true},
                              {DATA + 0x2003, 100000 - 1000, true},
                              {DATA + 0x40001, 131072 - 100000, true},
                              {STATUSES, 1, true}};

    bring_up_direct();
    put_header(0, T_IN, 8);
    cr_assert_eq(request_pieces(in, 5, NULL), S_OK);
    cr_assert(guest_has(DATA, 0, 1));
    cr_assert(guest_has(DATA + 1, 9, 512));
    cr_assert(guest_has(DATA + 513, 10, 488));
    cr_assert(guest_has(DATA + 1001, 0, 16));
    cr_assert(guest_has(DATA + 0x2003, 10, 24));
    cr_assert(guest_has(DATA + 0x40001 + 131072 - 100000 - 512, (uint8_t)(9 + 255), 512));
    for (unsigned i = 1; i < 4; i++)
        in[i].writable = false;
    put_header(0, T_OUT, 1024);
    cr_assert_eq(request_pieces(in, 5, NULL), S_OK);
    for (unsigned i = 0; i < 256; i++)
        cr_assert(image_has(1024 + i, (uint8_t)(9 + i), 1));
    cr_assert(image_has(1280, 1, 1));
}

Test(blk, more_misaligned_requests_than_bounce_buffers_take_turns)
{
    enum { N = 40 };
    uint16_t want = N;

    bring_up_direct();
    for (unsigned i = 0; i < N; i++)
        add(i, T_IN, 8 * i, DATA + 1 + i * 0x2000, 4096);
    fake_driver_kick(vdev, 0);
    fake_env_wait(&fake, all_used, &want);
    for (unsigned i = 0; i < N; i++) {
        cr_assert_eq(status_of(i), S_OK);
        cr_assert(guest_has(DATA + 1 + i * 0x2000, (uint8_t)(8 * i + 1), SECTOR));
    }
}

Test(blk, a_reset_forgets_requests_that_wait_for_a_bounce_buffer)
{
    enum { N = 40 };

    bring_up_direct();
    for (unsigned i = 0; i < N; i++)
        add(i, T_IN, 8 * i, DATA + 1 + i * 0x2000, 4096);
    fake_driver_kick(vdev, 0);
    fake_driver_reset(vdev);
    fake_env_wait(&fake, is_idle, NULL);
    for (unsigned i = 0; i < N; i++)
        cr_assert_eq(status_of(i), S_UNTOUCHED);
    start(ALL_FEATURES);
    cr_assert_eq(request(T_IN, 8, DATA + 1, 4096), S_OK);
    cr_assert(guest_has(DATA + 1, 9, SECTOR));
}

/* ---- images that cannot be used ---- */

static int try_create(const char *name, bool readonly)
{
    struct virtio_device *other = NULL;
    int err;

    lines = 0;
    err = virtio_blk_create(&other, &fake.env, "disk1",
                            &(struct virtio_blk_config){.path = name, .readonly = readonly});
    if (!err)
        other->class->destroy(other);
    return err;
}

Test(blk, a_missing_image_is_told)
{
    cr_assert_eq(try_create("/tmp/ferry-no-such-file", false), -ENOENT);
    cr_assert_eq(lines, 1);
    cr_assert_str_eq(last_line,
                     "disk1: cannot open /tmp/ferry-no-such-file: No such file or directory");
}

Test(blk, what_is_no_disk_is_told)
{
    char fifo[] = "/tmp/ferry-fifo-XXXXXX";

    cr_assert_eq(try_create("/tmp", false), -EISDIR);
    cr_assert_str_eq(last_line, "disk1: /tmp is a directory, not a disk image");
    cr_assert_eq(try_create("/dev/null", false), -ENOTBLK);
    cr_assert_str_eq(last_line, "disk1: /dev/null is neither a file nor a block device");
    close(mkstemp(fifo));
    unlink(fifo);
    cr_assert_eq(mkfifo(fifo, 0600), 0);
    cr_assert_eq(try_create(fifo, true), -ENOTBLK);
    unlink(fifo);
}

Test(blk, an_image_of_an_odd_size_or_none_is_told)
{
    cr_assert_eq(ftruncate(file, 1000), 0);
    cr_assert_eq(try_create(path, false), -EINVAL);
    cr_assert(strstr(last_line, "1000 bytes, is not a multiple of 512"), "%s", last_line);
    cr_assert_eq(ftruncate(file, 0), 0);
    cr_assert_eq(try_create(path, false), -EINVAL);
    cr_assert(strstr(last_line, "is empty"), "%s", last_line);
    cr_assert_eq(lines, 1);
}

Test(blk, a_disk_is_not_given_twice)
{
    char want[256];

    create(&(struct virtio_blk_config){0});
    cr_assert_eq(try_create(path, false), -EBUSY);
    snprintf(want, sizeof(want), "disk1: %s is given to this guest twice", path);
    cr_assert_str_eq(last_line, want);
    cr_assert_eq(try_create(path, true), -EBUSY);
}

Test(blk, a_disk_in_use_by_another_process_names_it)
{
    int ready[2], end[2], status;
    char want[256], byte;
    pid_t child;

    cr_assert_eq(pipe2(ready, O_CLOEXEC), 0);
    cr_assert_eq(pipe2(end, O_CLOEXEC), 0);
    child = fork();
    if (child == 0) {
        struct flock lock = {.l_type = F_WRLCK};
        int fd = open(path, O_RDWR);

        close(end[1]);
        _exit(fcntl(fd, F_OFD_SETLK, &lock) != 0 || write(ready[1], "x", 1) != 1 ||
              read(end[0], &byte, 1) != 0);
    }
    cr_assert_eq(read(ready[0], &byte, 1), 1);
    cr_assert_eq(try_create(path, false), -EBUSY);
    snprintf(want, sizeof(want), "disk1: %s is in use by another process (pid %ld)", path,
             (long)child);
    cr_assert_str_eq(last_line, want);
    close(end[1]);
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert_eq(status, 0);
    cr_assert_eq(try_create(path, false), 0);
}

Test(blk, readers_share_an_image)
{
    create(&(struct virtio_blk_config){.readonly = true});
    cr_assert_eq(try_create(path, true), 0);
    cr_assert_eq(try_create(path, false), -EBUSY);
}

Test(blk, an_image_of_another_format_is_used_raw_with_a_warning)
{
    cr_assert_eq(pwrite(file, "QFI\xfb", 4, 0), 4);
    cr_assert_eq(try_create(path, true), 0);
    cr_assert_eq(lines, 1);
    cr_assert(strstr(last_line, "looks like a qcow2 image"), "%s", last_line);
}

Test(blk, its_configuration_space_says_what_the_image_is)
{
    struct virtio_device *other = NULL;

    create(&(struct virtio_blk_config){0});
    cr_assert_eq(config_u32(0), IMAGE_SECTORS);
    cr_assert_eq(config_u32(4), 0);
    cr_assert_eq(config_u32(20), SECTOR);
    cr_assert_eq(config_u32(24) & 0xFF, 3);         /* 4096-byte blocks of the file system */
    cr_assert_eq(config_u32(24) >> 16, 8);
    cr_assert_eq(config_u32(44), 8);
    cr_assert_eq(vdev->class->config_size, 60);
    cr_assert_eq(virtio_blk_create(&other, &fake.env, "disk1",
                                   &(struct virtio_blk_config){.path = path, .queue_size = 24}),
                 -EINVAL);
}
