/*
 * The file behind guest memory: a tmpfs of its own, made here and seen by nobody, or a memfd.
 *
 * To mount takes CAP_SYS_ADMIN. Who lacks it gets it in a user namespace: a child, which shares
 * this process's memory and descriptors, enters one, makes the file and ends; the descriptor stays.
 * Where the host allows no such namespace the file is a memfd, and all else is the same.
 *
 * Does not map. Any thread; no state, no lock. Texts: fsopen(2), user_namespaces(7), Linux
 * Documentation/filesystems/tmpfs.rst (huge), memfd_create(2).
 */
#include "vmm/memory_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHILD_STACK 16384

/* A file of a tmpfs that is mounted nowhere. */
static int open_on_tmpfs(struct memory_file *file)
{
    int fs = fsopen("tmpfs", FSOPEN_CLOEXEC);
    int err = 0;

    if (fs < 0)
        return -errno;
    /* size: not half of the host's memory, which is the default. */
    if (fsconfig(fs, FSCONFIG_SET_STRING, "huge", "advise", 0) == 0 &&
        fsconfig(fs, FSCONFIG_SET_STRING, "size", "0", 0) == 0 &&
        fsconfig(fs, FSCONFIG_SET_STRING, "mode", "0700", 0) == 0 &&
        fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0)
        file->mount = fsmount(fs, FSMOUNT_CLOEXEC, 0);
    if (file->mount >= 0)
        file->fd = openat(file->mount, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (file->fd < 0)
        err = -errno;
    close(fs);
    if (err)
        memory_file_close(file);
    return err;
}

/* ---- without the right to mount ---- */

struct request {
    uid_t uid; /* the caller's: as what its files are to appear */
    gid_t gid;
    struct memory_file *file; /* the answer */
    int err;
};

static int write_text(const char *path, const char *text)
{
    size_t length = strlen(text);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    int err = 0;

    if (fd < 0)
        return -errno;
    if (write(fd, text, length) != (ssize_t)length)
        err = -errno;
    close(fd);
    return err;
}

/* A new namespace knows nobody, and nobody can own no file: its user is who makes it. */
static int map_user(const struct request *request)
{
    char map[64];
    int err;

    snprintf(map, sizeof(map), "%u %u 1\n", request->uid, request->uid);
    err = write_text("/proc/self/uid_map", map);
    if (!err)
        err = write_text("/proc/self/setgroups", "deny");
    snprintf(map, sizeof(map), "%u %u 1\n", request->gid, request->gid);
    return err ? err : write_text("/proc/self/gid_map", map);
}

static int child(void *arg)
{
    struct request *request = arg;

    request->err = map_user(request);
    if (!request->err)
        request->err = open_on_tmpfs(request->file);
    return 0;
}

static int open_in_namespace(struct memory_file *file)
{
    _Alignas(16) char stack[CHILD_STACK];
    struct request request = {.uid = geteuid(), .gid = getegid(), .file = file, .err = -EPERM};
    sigset_t all, before;
    pid_t pid;

    /* A handler would run in the child too, on this process's memory. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    /* CLONE_VFORK: this thread waits for the child's end. Without a signal at its end it is nobody's
     * surprise but this waitpid()'s (__WCLONE). */
    pid = clone(child, stack + sizeof(stack),
                CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_NEWUSER | CLONE_NEWNS, &request);
    if (pid > 0)
        (void)waitpid(pid, NULL, __WCLONE);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return pid < 0 ? -errno : request.err;
}

/* ---- */

static int open_memfd(struct memory_file *file, uint64_t hugepage)
{
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;

    if (hugepage) {
        flags |= MFD_HUGETLB;
        flags |= (unsigned)__builtin_ctzll(hugepage) << MFD_HUGE_SHIFT;
    }
    file->fd = memfd_create("ferry-ram", flags);
    return file->fd < 0 ? -errno : 0;
}

int memory_file_open(struct memory_file *out, uint64_t size, uint64_t hugepage)
{
    int err = -EINVAL;

    *out = (struct memory_file)MEMORY_FILE_NONE;
    if (!hugepage)
        err = open_on_tmpfs(out);
    if (err == -EPERM)
        err = open_in_namespace(out);
    if (err)
        err = open_memfd(out, hugepage);
    if (err)
        return err;
    if (ftruncate(out->fd, (off_t)size) < 0) {
        err = -errno;
        memory_file_close(out);
        return err;
    }
    /* Whoever it is handed to need not fear that it shrinks under the mapping. A memfd only. */
    (void)fcntl(out->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW);
    return 0;
}

void memory_file_close(struct memory_file *file)
{
    if (file->fd >= 0)
        close(file->fd);
    if (file->mount >= 0)
        close(file->mount);
    *file = (struct memory_file)MEMORY_FILE_NONE;
}

bool memory_file_is_sound(int fd, uint64_t size)
{
    int seals = fcntl(fd, F_GET_SEALS); /* fails on what is no memory of the kernel's */
    struct stat st;

    if (seals < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size != (off_t)size)
        return false;
    /* A tmpfs' files cannot be sealed, and say so. */
    return (seals & F_SEAL_SHRINK) || (seals == F_SEAL_SEAL && st.st_uid == geteuid());
}

bool memory_file_lends_huge_pages(void)
{
    const size_t page = 2u << 20;
    struct stat st = {0};
    struct memory_file file;
    uint8_t *at;

    if (memory_file_open(&file, 2 * page, 0) < 0)
        return false;
    at = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_SHARED, file.fd, 0);
    if (at != MAP_FAILED) {
        (void)madvise(at, 2 * page, MADV_HUGEPAGE);
        /* Whatever the mapping's alignment, this byte has a whole huge page of the file around it. */
        *(volatile uint8_t *)(at + page) = 1;
        (void)fstat(file.fd, &st);
        munmap(at, 2 * page);
    }
    memory_file_close(&file);
    return st.st_blocks * 512 >= (off_t)page;
}
