/*
 * Raw disk images and block devices: opening, locking, size, alignment.
 *
 * Does not transfer data (blk.c does, through the event loop) and knows no image formats. Control
 * path only: its calls block. Owned by the thread that creates the disk; no locks but the image's.
 *
 * Texts: open(2), fcntl(2) (open file description locks), statx(2) (STATX_DIOALIGN), proc(5).
 */
#include "devices/virtio/blk_image.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm/util/log.h"

#define MAX_BLOCK 4096u          /* the largest logical block that guests take: a page */
#define MAX_PHYSICAL_BLOCK 65536u

/* Of one opening. */
struct opening {
    struct blk_image *image;
    const char *who;
    const struct blk_image_config *config;
    struct stat st;
};

/* ---- who else has it ---- */

/* Whether the descriptor `fd` (a name in /proc/PID/fd) holds a lock. */
static bool holds_lock(const char *pid, const char *fd)
{
    char path[64], line[160];
    bool held = false;
    FILE *info;

    if (snprintf(path, sizeof(path), "/proc/%s/fdinfo/%s", pid, fd) >= (int)sizeof(path))
        return false;
    info = fopen(path, "re");
    if (!info)
        return false;
    while (!held && fgets(line, sizeof(line), info))
        held = strncmp(line, "lock:", 5) == 0;
    fclose(info);
    return held;
}

static bool process_holds(const char *pid, const struct stat *file)
{
    char path[64];
    struct dirent *entry;
    bool held = false;
    DIR *fds;

    if (snprintf(path, sizeof(path), "/proc/%s/fd", pid) >= (int)sizeof(path))
        return false;
    fds = opendir(path);
    if (!fds)
        return false; /* another user's process, or gone */
    while (!held && (entry = readdir(fds))) {
        struct stat st;

        if (isdigit((unsigned char)entry->d_name[0]) &&
            fstatat(dirfd(fds), entry->d_name, &st, 0) == 0 && st.st_dev == file->st_dev &&
            st.st_ino == file->st_ino)
            held = holds_lock(pid, entry->d_name);
    }
    closedir(fds);
    return held;
}

/* F_OFD_GETLK gives no process for a lock of its own kind, so /proc is asked. 0: not found. */
static pid_t lock_holder(const struct stat *file)
{
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    pid_t holder = 0;

    if (!proc)
        return 0;
    while (!holder && (entry = readdir(proc)))
        if (isdigit((unsigned char)entry->d_name[0]) && process_holds(entry->d_name, file))
            holder = (pid_t)atol(entry->d_name);
    closedir(proc);
    return holder;
}

static int report_user(const struct opening *o)
{
    const char *path = o->config->path;
    pid_t holder = lock_holder(&o->st);

    if (holder == getpid())
        log_error("%s: %s is given to this guest twice", o->who, path);
    else if (holder > 0)
        log_error("%s: %s is in use by another process (pid %ld)", o->who, path, (long)holder);
    else
        log_error("%s: %s is in use by another process", o->who, path);
    return -EBUSY;
}

static int lock_image(const struct opening *o)
{
    struct flock lock = {
        .l_type = o->config->readonly ? F_RDLCK : F_WRLCK,
        .l_whence = SEEK_SET, /* from 0 with length 0: all of it, however long it grows */
    };
    int err;

    if (fcntl(o->image->fd, F_OFD_SETLK, &lock) == 0)
        return 0;
    err = -errno;
    if (err == -EAGAIN || err == -EACCES)
        return report_user(o);
    log_error("%s: %s cannot be locked: %s", o->who, o->config->path, strerror(-err));
    return err;
}

/* ---- opening ---- */

static int check_kind(const struct opening *o)
{
    if (S_ISREG(o->st.st_mode) || S_ISBLK(o->st.st_mode))
        return 0;
    if (S_ISDIR(o->st.st_mode)) {
        log_error("%s: %s is a directory, not a disk image", o->who, o->config->path);
        return -EISDIR;
    }
    log_error("%s: %s is neither a file nor a block device", o->who, o->config->path);
    return -ENOTBLK;
}

static int report_open(const struct opening *o, int err)
{
    const char *path = o->config->path;

    if (err == -EINVAL && o->config->direct) {
        log_error("%s: the file system of %s has no direct I/O; leave direct=on away", o->who,
                  path);
        return -EOPNOTSUPP;
    }
    if (err == -EBUSY)
        log_error("%s: %s is in use by the host: mounted, perhaps, or part of another device",
                  o->who, path);
    else if ((err == -EACCES || err == -EPERM || err == -EROFS) && !o->config->readonly)
        log_error("%s: cannot open %s for writing: %s; to use it unchanged add readonly=on", o->who,
                  path, strerror(-err));
    else
        log_error("%s: cannot open %s: %s", o->who, path, strerror(-err));
    return err;
}

static int open_file(struct opening *o)
{
    int flags = O_CLOEXEC | (o->config->readonly ? O_RDONLY : O_RDWR);
    int err;

    /* Looked at before: opening a FIFO or a tape would have effects, or wait. */
    if (stat(o->config->path, &o->st) < 0)
        return report_open(o, -errno);
    err = check_kind(o);
    if (err)
        return err;
    if (o->config->direct)
        flags |= O_DIRECT;
    /* On a block device this asks that no file system of the host has it. */
    if (S_ISBLK(o->st.st_mode) && !o->config->readonly)
        flags |= O_EXCL;
    o->image->fd = open(o->config->path, flags);
    if (o->image->fd < 0 || fstat(o->image->fd, &o->st) < 0)
        return report_open(o, -errno);
    return check_kind(o); /* it may have been exchanged */
}

/* ---- measuring ---- */

static bool is_power_of_two(uint32_t n)
{
    return n != 0 && (n & (n - 1)) == 0;
}

/* Reads the first `length` bytes, up to MAX_BLOCK, into a buffer that suits O_DIRECT, and copies
 * up to n_head of them. 0, or -errno. */
static int read_head(int fd, size_t length, char *head, size_t n_head)
{
    void *buf = aligned_alloc(MAX_BLOCK, MAX_BLOCK);
    int err;

    if (!buf)
        return -ENOMEM;
    memset(buf, 0, MAX_BLOCK);
    err = pread(fd, buf, length, 0) < 0 ? -errno : 0;
    if (head)
        memcpy(head, buf, n_head);
    free(buf);
    return err;
}

/* What the file system says it asks of O_DIRECT; where it says nothing it is tried. */
static int measure_direct(const struct opening *o)
{
    struct blk_image *image = o->image;
    struct statx stx;
    int err;

    if (statx(image->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 &&
        (stx.stx_mask & STATX_DIOALIGN)) {
        image->memory_align = stx.stx_dio_mem_align;
        image->block_size = stx.stx_dio_offset_align;
    } else {
        image->block_size = BLK_SECTOR;
        err = read_head(image->fd, image->block_size, NULL, 0);
        if (err == -EINVAL)
            image->block_size = MAX_BLOCK;
        image->memory_align = image->block_size;
        if (err == -EINVAL)
            err = read_head(image->fd, image->block_size, NULL, 0);
        if (err)
            return report_open(o, err);
    }
    if (!is_power_of_two(image->memory_align) || !is_power_of_two(image->block_size) ||
        image->memory_align > MAX_BLOCK || image->block_size > MAX_BLOCK) /* 0: cannot, too */
        return report_open(o, -EINVAL);
    if (image->block_size < BLK_SECTOR)
        image->block_size = BLK_SECTOR;
    return 0;
}

static void measure_device(struct blk_image *image)
{
    unsigned value;

    if (ioctl(image->fd, BLKPBSZGET, &value) == 0)
        image->physical_block = value;
    if (ioctl(image->fd, BLKIOOPT, &value) == 0)
        image->optimal_io = value;
    image->can_discard = true;
}

static void measure_file(struct blk_image *image, const struct stat *st)
{
    image->physical_block = st->st_blksize > 0 ? (uint32_t)st->st_blksize : BLK_SECTOR;
    /* Beyond the end there is nothing to lose, and the answer is the same. */
    image->can_discard = fallocate(image->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                   st->st_size, MAX_BLOCK) == 0;
}

static int measure_size(const struct opening *o)
{
    struct blk_image *image = o->image;

    image->size = (uint64_t)o->st.st_size;
    if (S_ISBLK(o->st.st_mode) && ioctl(image->fd, BLKGETSIZE64, &image->size) < 0)
        return report_open(o, -errno);
    if (image->size == 0) {
        log_error("%s: %s is empty: a disk image is as large as the disk, for one: "
                  "truncate -s 8G %s", o->who, o->config->path, o->config->path);
        return -EINVAL;
    }
    if (image->size % image->block_size == 0)
        return 0;
    log_error("%s: the size of %s, %llu bytes, is not a multiple of %u%s", o->who, o->config->path,
              (unsigned long long)image->size, image->block_size,
              image->block_size > BLK_SECTOR ? ", the block of its direct I/O; leave direct=on away"
                                             : ", so it is not a raw disk image, or cut short");
    return -EINVAL;
}

/* Says so when the image looks like a format with structure. It is the guest's disk all the same:
 * a guest may write what it likes into its first sector. */
static void warn_of_format(const struct opening *o)
{
    static const struct {
        const char *magic, *name;
    } formats[] = {{"QFI\xfb", "qcow2"}, {"KDMV", "VMDK"}, {"vhdxfile", "VHDX"}};
    char head[8];

    if (read_head(o->image->fd, o->image->block_size, head, sizeof(head)) != 0)
        return;
    for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++)
        if (memcmp(head, formats[i].magic, strlen(formats[i].magic)) == 0)
            log_warn("%s: %s looks like a %s image, but is used as a raw one; `qemu-img convert "
                     "-O raw` makes one of it", o->who, o->config->path, formats[i].name);
}

static int measure(const struct opening *o)
{
    struct blk_image *image = o->image;
    int err;

    if (o->config->direct) {
        err = measure_direct(o);
        if (err)
            return err;
    }
    if (S_ISBLK(o->st.st_mode))
        measure_device(image);
    else
        measure_file(image, &o->st);
    if (!is_power_of_two(image->physical_block) || image->physical_block > MAX_PHYSICAL_BLOCK ||
        image->physical_block < image->block_size)
        image->physical_block = image->block_size;
    return measure_size(o);
}

int blk_image_open(struct blk_image *image, const char *who, const struct blk_image_config *config)
{
    struct opening o = {.image = image, .who = who, .config = config};
    int err;

    *image = (struct blk_image){
        .fd = -1,
        .block_size = BLK_SECTOR,
        .physical_block = BLK_SECTOR,
        .memory_align = 1,
    };
    err = open_file(&o);
    if (!err && !config->unlocked)
        err = lock_image(&o);
    if (!err)
        err = measure(&o);
    if (err)
        blk_image_close(image);
    else
        warn_of_format(&o);
    return err;
}

int blk_image_lock(struct blk_image *image, const char *who, const char *path, bool readonly)
{
    const struct blk_image_config config = {.path = path, .readonly = readonly};
    struct opening o = {.image = image, .who = who, .config = &config};

    return fstat(image->fd, &o.st) < 0 ? -errno : lock_image(&o);
}

void blk_image_unlock(struct blk_image *image)
{
    struct flock lock = {.l_type = F_UNLCK, .l_whence = SEEK_SET};

    (void)fcntl(image->fd, F_OFD_SETLK, &lock);
}

void blk_image_close(struct blk_image *image)
{
    if (image->fd < 0)
        return;
    /* Not left to close(2): the kernel may hold the file a moment longer, for an operation whose
     * completion has come already, and the next to open it would find it locked. */
    blk_image_unlock(image);
    close(image->fd);
    image->fd = -1;
}
