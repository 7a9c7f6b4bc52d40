/* Guest memory: translation at every edge, copies, our own dirty bitmap. Needs no KVM. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm/memory.h"
#include "vmm/memory_file.h"

#define SMALL (8 * MIB)
#define HOLE_BASE (4 * MIB)
#define HOLE_END (16 * MIB)

static struct guest_memory *mem;

static void make(void)
{
    const struct memory_config config = {
        .size = SMALL, .hole_base = HOLE_BASE, .hole_end = HOLE_END};

    cr_assert_eq(memory_create(&mem, &config), 0);
}

static void unmake(void)
{
    memory_destroy(mem);
}

TestSuite(memory, .init = make, .fini = unmake);

Test(memory, lies_below_the_hole_and_goes_on_after_it)
{
    const struct memory_region *r;

    cr_assert_eq(memory_regions(mem, &r), 2);
    cr_assert_eq(r[0].base, 0);
    cr_assert_eq(r[0].size, HOLE_BASE);
    cr_assert_eq(r[1].base, HOLE_END);
    cr_assert_eq(r[1].size, SMALL - HOLE_BASE);
    cr_assert_eq(r[1].file_offset, HOLE_BASE);
}

Test(memory, translates_up_to_the_last_byte_of_a_region)
{
    cr_assert_not_null(memory_at(mem, HOLE_BASE - 1, 1));
    cr_assert_not_null(memory_at(mem, 0, HOLE_BASE));
    cr_assert_null(memory_at(mem, HOLE_BASE - 1, 2));
    cr_assert_null(memory_at(mem, HOLE_BASE, 1));
    cr_assert_null(memory_at(mem, HOLE_BASE, 0));
    cr_assert_null(memory_at(mem, HOLE_END - 1, 1));
    cr_assert_not_null(memory_at(mem, HOLE_END, SMALL - HOLE_BASE));
    cr_assert_null(memory_at(mem, HOLE_END, SMALL - HOLE_BASE + 1));
}

Test(memory, refuses_ranges_that_wrap)
{
    cr_assert_null(memory_at(mem, UINT64_MAX, 2));
    cr_assert_null(memory_at(mem, 4096, UINT64_MAX));
    cr_assert_null(memory_at(mem, 4096, UINT64_MAX - 4095));
    cr_assert_null(memory_at(mem, UINT64_MAX - 4095, 4096));
}

Test(memory, copies_nothing_when_a_part_is_no_ram)
{
    char pattern[16], back[16] = {0};

    memset(pattern, 0x5A, sizeof(pattern));
    cr_assert_eq(memory_write(mem, HOLE_BASE - 8, pattern, sizeof(pattern)), -EFAULT);
    cr_assert_eq(memory_read(mem, HOLE_BASE - 8, back, 8), 0);
    for (int i = 0; i < 8; i++)
        cr_expect_eq(back[i], 0);
    cr_assert_eq(memory_read(mem, HOLE_END - 1, back, 2), -EFAULT);
    cr_assert_eq(memory_fill(mem, HOLE_END - 1, 1, 2), -EFAULT);
}

Test(memory, gives_back_what_was_written)
{
    const char text[] = "across the water";
    char back[sizeof(text)];

    cr_assert_eq(memory_write(mem, HOLE_END + 4090, text, sizeof(text)), 0);
    cr_assert_eq(memory_read(mem, HOLE_END + 4090, back, sizeof(back)), 0);
    cr_assert_str_eq(back, text);
}

Test(memory, marks_each_page_a_write_touches_once_tracking_is_on)
{
    uint64_t low[HOLE_BASE / 4096 / 64] = {0};
    uint64_t high[(SMALL - HOLE_BASE) / 4096 / 64] = {0};
    char bytes[8192] = {0};

    cr_assert_eq(memory_write(mem, 0, bytes, 1), 0);
    cr_assert_eq(memory_dirty_start(mem), 0);
    cr_assert_eq(memory_write(mem, 4095, bytes, 2), 0);
    cr_assert_eq(memory_write(mem, 64 * 4096, bytes, 8192), 0);
    cr_assert_eq(memory_fill(mem, HOLE_END + 4096, 7, 1), 0);
    memory_dirty_harvest(mem, 0, low);
    memory_dirty_harvest(mem, 1, high);
    cr_expect_eq(low[0], 3);
    cr_expect_eq(low[1], 3);
    cr_expect_eq(high[0], 2);
    memset(low, 0, sizeof(low));
    memory_dirty_harvest(mem, 0, low);
    cr_expect_eq(low[0], 0, "a harvest clears");
    memory_dirty_stop(mem);
    cr_assert_eq(memory_write(mem, 0, bytes, 1), 0);
    memory_dirty_harvest(mem, 0, low);
    cr_expect_eq(low[0], 0, "nothing is marked after the stop");
}

Test(memory, reads_as_zero_after_clearing)
{
    uint8_t byte = 1;

    cr_assert_eq(memory_fill(mem, 0, 0xFF, 8192), 0);
    cr_assert_eq(memory_clear(mem), 0);
    cr_assert_eq(memory_read(mem, 4096, &byte, 1), 0);
    cr_assert_eq(byte, 0);
}

Test(memory, zeroes_a_range_and_nothing_beside_it)
{
    static const struct {
        gpa_t at;
        uint64_t length;
    } ranges[] = {{100, 50}, {4000, 200}, {4096, 100 * 4096}, {4000, 100 * 4096}, {8191, 300002},
                  {5000, 0}};
    static uint8_t bytes[512 * 1024];

    for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
        gpa_t at = ranges[i].at, end = at + ranges[i].length;

        cr_assert_eq(memory_fill(mem, 0, 0xFF, sizeof(bytes)), 0);
        cr_assert_eq(memory_zero(mem, at, ranges[i].length), 0);
        cr_assert_eq(memory_read(mem, 0, bytes, sizeof(bytes)), 0);
        for (size_t b = 0; b < sizeof(bytes); b++)
            cr_assert_eq(bytes[b], b >= at && b < end ? 0 : 0xFF, "range %zu, byte %zu", i, b);
    }
    cr_assert_eq(memory_zero(mem, UINT64_MAX - 10, 100), -EFAULT);
}

Test(memory_config, refuses_sizes_that_are_no_whole_pages)
{
    struct guest_memory *none = NULL;
    struct memory_config config = {.size = 0};

    cr_assert_eq(memory_create(&none, &config), -EINVAL);
    config.size = MIB + 1;
    cr_assert_eq(memory_create(&none, &config), -EINVAL);
    config = (struct memory_config){.size = 3 * MIB, .hugepage = 2 * MIB};
    cr_assert_eq(memory_create(&none, &config), -EINVAL);
    config = (struct memory_config){.size = MIB, .hole_base = 8192, .hole_end = 4096};
    cr_assert_eq(memory_create(&none, &config), -EINVAL);
    cr_assert_null(none);
}

Test(memory_config, has_one_region_when_all_fits_below_the_hole)
{
    struct memory_config config = {.size = 2 * MIB, .hole_base = 2 * MIB, .hole_end = 4 * MIB};
    const struct memory_region *r;

    cr_assert_eq(memory_create(&mem, &config), 0);
    cr_assert_eq(memory_regions(mem, &r), 1);
    cr_assert_eq(r[0].size, 2 * MIB);
    memory_destroy(mem);
}

/* ---- memory that another process hands over ---- */

Test(memory_config, adopts_the_memory_of_another_and_sees_its_bytes)
{
    const struct memory_config config = {.size = 2 * MIB};
    struct guest_memory *theirs, *ours;
    uint8_t byte;

    cr_assert_eq(memory_create(&theirs, &config), 0);
    cr_assert_eq(memory_adopt(&ours, &config, dup(memory_fd(theirs))), 0);
    cr_assert_eq(memory_fill(theirs, 4096, 0x5A, 1), 0);
    cr_assert_eq(memory_read(ours, 4096, &byte, 1), 0);
    cr_expect_eq(byte, 0x5A);
    memory_destroy(theirs);
    cr_expect_eq(memory_read(ours, 4096, &byte, 1), 0);
    cr_expect_eq(byte, 0x5A, "also when the other is gone");
    memory_destroy(ours);
}

Test(memory_config, adopts_nothing_that_can_shrink_or_has_another_size)
{
    const struct memory_config config = {.size = 2 * MIB}, larger = {.size = 4 * MIB};
    int loose = memfd_create("loose", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    struct guest_memory *theirs, *none = NULL;

    cr_assert_eq(ftruncate(loose, 2 * MIB), 0);
    cr_expect_eq(memory_adopt(&none, &config, loose), -EINVAL);
    cr_assert_eq(memory_create(&theirs, &config), 0);
    cr_expect_eq(memory_adopt(&none, &larger, dup(memory_fd(theirs))), -EINVAL);
    cr_expect_null(none);
    memory_destroy(theirs);
}

Test(memory_config, marks_all_of_it_when_it_is_cleared)
{
    const struct memory_config config = {.size = 2 * MIB};
    uint64_t bitmap[2 * MIB / 4096 / 64] = {0};

    cr_assert_eq(memory_create(&mem, &config), 0);
    cr_assert_eq(memory_dirty_start(mem), 0);
    cr_assert_eq(memory_clear(mem), 0);
    memory_dirty_harvest(mem, 0, bitmap);
    for (size_t i = 0; i < sizeof(bitmap) / sizeof(bitmap[0]); i++)
        cr_assert_eq(bitmap[i], UINT64_MAX);
    memory_destroy(mem);
}

/* ---- the file ---- */

Test(memory_file, is_all_holes_at_first)
{
    struct memory_file file;
    struct stat st;

    cr_assert_eq(memory_file_open(&file, 4 * MIB, 0), 0);
    cr_assert_eq(fstat(file.fd, &st), 0);
    cr_expect_eq(st.st_size, (off_t)(4 * MIB));
    cr_expect_eq(st.st_blocks, 0);
    cr_expect(memory_file_is_sound(file.fd, 4 * MIB));
    cr_expect_not(memory_file_is_sound(file.fd, 2 * MIB));
    memory_file_close(&file);
    cr_expect_eq(file.fd, -1);
}

Test(memory_file, of_a_user_without_rights_is_as_sound)
{
    struct memory_file file;

    if (geteuid() == 0) {
        cr_assert_eq(setresgid(65534, 65534, 65534), 0);
        cr_assert_eq(setresuid(65534, 65534, 65534), 0);
    }
    cr_assert_eq(memory_file_open(&file, 4 * MIB, 0), 0);
    cr_expect(memory_file_is_sound(file.fd, 4 * MIB));
    cr_expect_eq(pwrite(file.fd, "x", 1, 4 * MIB - 1), 1);
    memory_file_close(&file);
}

/* How many descriptors this process has: its parent may have left it some, of whatever number. */
static unsigned count_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    unsigned count = 0;

    cr_assert_not_null(dir);
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}

Test(memory_file, ends_its_mount_with_it)
{
    unsigned before = count_descriptors();
    struct memory_file file;

    cr_assert_eq(memory_file_open(&file, 4 * MIB, 0), 0);
    cr_expect_gt(count_descriptors(), before);
    memory_file_close(&file);
    for (unsigned i = 0; i < 8; i++) {
        cr_assert_eq(memory_file_open(&file, 4 * MIB, 0), 0);
        memory_file_close(&file);
    }
    cr_expect_eq(count_descriptors(), before, "no descriptor is left");
}

Test(memory_file, that_is_no_memory_or_can_shrink_is_not_sound)
{
    int memfd = memfd_create("loose", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    int pipes[2], file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

    cr_assert_eq(pipe2(pipes, O_CLOEXEC), 0);
    cr_expect_not(memory_file_is_sound(memfd, 0));
    cr_expect_not(memory_file_is_sound(pipes[0], 0));
    cr_expect_not(memory_file_is_sound(file, (uint64_t)lseek(file, 0, SEEK_END)));
    cr_expect_not(memory_file_is_sound(-1, 0));
}
