/*
 * The traits of the host's KVM: measured once a boot, then remembered in the user's run-time folder.
 *
 * Does not measure (vmm/x86/probe.c) and does not act upon the answer. What is remembered belongs to
 * one boot and one /dev/kvm: its key holds the kernel's boot id and the device node's time of
 * change, which is new when another KVM module makes the node anew. Any thread; no locks: a file is
 * written under a name of its own and then renamed.
 */
#include "vmm/probe.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm/util/rundir.h"

#define CACHE_NAME "kvm"
#define CACHE_FORMAT "ferry-kvm-traits-2"
#define CACHE_MAX 256
#define KEY_MAX 96

/* Ours, and nobody else can write it. */
static bool trusted(const struct stat *st, mode_t type)
{
    return (st->st_mode & S_IFMT) == type && st->st_uid == geteuid() &&
           (st->st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

static int open_directory(const char *path)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

    if (fd < 0)
        return -errno;
    if (fstat(fd, &st) == 0 && trusted(&st, S_IFDIR))
        return fd;
    close(fd);
    return -EPERM;
}

/* Reads a small file whole, as a string. */
static int read_text(int dir_fd, const char *name, char *text, size_t size)
{
    struct stat st;
    ssize_t got;
    int error = 0, fd = openat(dir_fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0)
        return -errno;
    if (fstat(fd, &st) < 0 || !trusted(&st, S_IFREG)) {
        error = -EPERM;
        goto close;
    }
    got = read(fd, text, size - 1);
    if (got < 0)
        error = -errno;
    else
        text[got] = '\0';
close:
    close(fd);
    return error;
}

int kvm_traits_load(const char *directory, const char *key, struct kvm_traits *out)
{
    char text[CACHE_MAX], format[32], found[KEY_MAX + 1];
    int emulates, half, end = 0, error, dir_fd = open_directory(directory);
    uint32_t ps, rejected;

    if (dir_fd < 0)
        return dir_fd;
    error = read_text(dir_fd, CACHE_NAME, text, sizeof(text));
    close(dir_fd);
    if (error < 0)
        return error;
    if (sscanf(text, "%31s %96s %d %" SCNu32 " %d %" SCNu32 " end%n", format, found, &emulates, &ps,
               &half, &rejected, &end) != 6 ||
        end == 0 || strcmp(format, CACHE_FORMAT) != 0 || (emulates != 0 && emulates != 1) ||
        (half != 0 && half != 1) || rejected > KVM_PROBE_INSTRUCTIONS)
        return -EINVAL;
    if (strcmp(found, key) != 0)
        return -ENOENT;
    *out = (struct kvm_traits){.emulates_kernel = emulates == 1, .instruction_ps = ps,
                               .half_syscall = half == 1, .rejected = rejected};
    return 0;
}

int kvm_traits_store(const char *directory, const char *key, const struct kvm_traits *traits)
{
    char text[CACHE_MAX], temporary[32];
    int fd, len, error = 0, dir_fd = open_directory(directory);

    if (dir_fd < 0)
        return dir_fd;
    snprintf(temporary, sizeof(temporary), CACHE_NAME ".%d", (int)getpid());
    len = snprintf(text, sizeof(text), CACHE_FORMAT " %s %d %" PRIu32 " %d %" PRIu32 " end\n", key,
                   traits->emulates_kernel, traits->instruction_ps, traits->half_syscall,
                   traits->rejected);
    (void)unlinkat(dir_fd, temporary, 0); /* of a process that had our number and died here */
    fd = openat(dir_fd, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) {
        error = -errno;
        goto close_directory;
    }
    if (write(fd, text, (size_t)len) != len)
        error = -EIO;
    close(fd);
    if (error == 0 && renameat(dir_fd, temporary, dir_fd, CACHE_NAME) < 0)
        error = -errno;
    if (error < 0)
        (void)unlinkat(dir_fd, temporary, 0);
close_directory:
    close(dir_fd);
    return error;
}

static int cache_key(int kvm_fd, char *key, size_t size)
{
    char boot_id[48] = "";
    struct stat st;
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");

    if (!file)
        return -errno;
    if (fscanf(file, "%47s", boot_id) != 1)
        boot_id[0] = '\0';
    fclose(file);
    if (boot_id[0] == '\0' || fstat(kvm_fd, &st) < 0)
        return -EIO;
    snprintf(key, size, "%s/%" PRIx64 ".%" PRIx64, boot_id, (uint64_t)st.st_ctim.tv_sec,
             (uint64_t)st.st_ctim.tv_nsec);
    return 0;
}

int kvm_probe(int kvm_fd, struct kvm_traits *out)
{
    char directory[PATH_MAX], key[KEY_MAX + 1];
    bool cached = rundir_path(directory, sizeof(directory)) == 0 &&
                  cache_key(kvm_fd, key, sizeof(key)) == 0;
    int error;

    if (cached && kvm_traits_load(directory, key, out) == 0)
        return 0;
    error = kvm_probe_measure(kvm_fd, out);
    if (error == 0 && cached)
        (void)kvm_traits_store(directory, key, out); /* next time it is measured again */
    return error;
}
