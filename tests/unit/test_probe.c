/*
 * The cache of KVM's traits: what is believed and what is not. The measurement, where there is KVM.
 *
 * Files live in a folder of their own below the temporary one.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm/probe.h"

static char directory[64], file[80], other[80];

static void set_up(void)
{
    const struct kvm_traits traits = {
        .emulates_kernel = true, .instruction_ps = 500000, .half_syscall = true, .rejected = 7};

    strcpy(directory, "/tmp/ferry-test-probe.XXXXXX");
    cr_assert_not_null(mkdtemp(directory));
    snprintf(file, sizeof(file), "%s/kvm", directory);
    snprintf(other, sizeof(other), "%s/other", directory);
    cr_assert_eq(kvm_traits_store(directory, "boot/1", &traits), 0);
}

static void tear_down(void)
{
    unlink(file);
    unlink(other);
    rmdir(directory);
}

TestSuite(probe, .init = set_up, .fini = tear_down);

static void overwrite(const char *text)
{
    FILE *out = fopen(file, "w");

    cr_assert_not_null(out);
    fputs(text, out);
    fclose(out);
}

Test(probe, what_was_stored_is_loaded)
{
    struct kvm_traits traits = {0};

    cr_assert_eq(kvm_traits_load(directory, "boot/1", &traits), 0);
    cr_assert(traits.emulates_kernel);
    cr_assert_eq(traits.instruction_ps, 500000);
    cr_assert(traits.half_syscall);
    cr_assert_eq(traits.rejected, 7);
}

Test(probe, what_another_boot_stored_is_not_there)
{
    struct kvm_traits traits;

    cr_assert_eq(kvm_traits_load(directory, "boot/2", &traits), -ENOENT);
}

Test(probe, a_later_store_replaces_the_file)
{
    struct kvm_traits traits = {.instruction_ps = 1};

    cr_assert_eq(kvm_traits_store(directory, "boot/2", &traits), 0);
    cr_assert_eq(kvm_traits_load(directory, "boot/1", &traits), -ENOENT);
    cr_assert_eq(kvm_traits_load(directory, "boot/2", &traits), 0);
    cr_assert_not(traits.emulates_kernel);
}

Test(probe, a_file_that_others_can_write_is_not_believed)
{
    struct kvm_traits traits;

    cr_assert_eq(chmod(file, 0622), 0);
    cr_assert_eq(kvm_traits_load(directory, "boot/1", &traits), -EPERM);
}

Test(probe, a_folder_that_others_can_write_is_not_believed)
{
    struct kvm_traits traits = {0};

    cr_assert_eq(chmod(directory, 0777), 0);
    cr_assert_eq(kvm_traits_load(directory, "boot/1", &traits), -EPERM);
    cr_assert_eq(kvm_traits_store(directory, "boot/1", &traits), -EPERM);
}

Test(probe, a_file_of_another_user_is_not_believed)
{
    struct kvm_traits traits;

    if (geteuid() != 0)
        cr_skip("only root gives files away");
    cr_assert_eq(chown(file, 12345, 12345), 0);
    cr_assert_eq(kvm_traits_load(directory, "boot/1", &traits), -EPERM);
}

Test(probe, a_link_is_not_followed)
{
    struct kvm_traits traits;

    cr_assert_eq(rename(file, other), 0);
    cr_assert_eq(symlink("other", file), 0);
    cr_assert_eq(kvm_traits_load(directory, "boot/1", &traits), -ELOOP);
}

Test(probe, a_pipe_in_the_files_place_does_not_block)
{
    struct kvm_traits traits;

    cr_assert_eq(unlink(file), 0);
    cr_assert_eq(mkfifo(file, 0600), 0);
    cr_assert_eq(kvm_traits_load(directory, "boot/1", &traits), -EPERM);
}

Test(probe, a_garbled_file_is_refused)
{
    static const char *const texts[] = {
        "",
        "ferry-kvm-traits-2",
        "ferry-kvm-traits-2 boot/1 1 500000 1 8", /* cut short: the last figure may be, too */
        "ferry-kvm-traits-2 boot/1 2 500000 1 8 end\n",
        "ferry-kvm-traits-2 boot/1 1 500000 2 8 end\n",
        "ferry-kvm-traits-2 boot/1 1 500000 1 99 end\n",
        "ferry-kvm-traits-9 boot/1 1 500000 1 8 end\n",
        "ferry-kvm-traits-2 boot/1 yes 500000 1 8 end\n",
    };
    struct kvm_traits traits;

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        overwrite(texts[i]);
        cr_assert_eq(kvm_traits_load(directory, "boot/1", &traits), -EINVAL, "%s", texts[i]);
    }
}

Test(probe, an_overlong_file_is_refused)
{
    struct kvm_traits traits;
    char text[4096];

    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    overwrite(text);
    cr_assert_eq(kvm_traits_load(directory, "boot/1", &traits), -EINVAL);
}

Test(probe, a_missing_file_is_not_there)
{
    struct kvm_traits traits;

    cr_assert_eq(unlink(file), 0);
    cr_assert_eq(kvm_traits_load(directory, "boot/1", &traits), -ENOENT);
}

Test(probe, a_measurement_tells_the_same_twice)
{
    struct kvm_traits first, second;
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

    if (fd < 0)
        cr_skip("no /dev/kvm");
    cr_assert_eq(kvm_probe_measure(fd, &first), 0);
    cr_assert_eq(kvm_probe_measure(fd, &second), 0);
    cr_assert_eq(first.emulates_kernel, second.emulates_kernel);
    close(fd);
}
