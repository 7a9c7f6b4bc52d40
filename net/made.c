/*
 * Records of what was made on the host; taking it away, also after others.
 *
 * The records are files $RUNDIR/made/PID-START-NUMBER, of a line or two:
 *
 *     macvtap NETNS NAME MAC
 *     tun NETNS NAME MAC
 *     socket PATH             and, behind it, file DEVICE INODE
 *     forwarding NETNS LINK
 *
 * NETNS is the inode of the network namespace; what is in another one than this process's is left
 * to a ferry there. Whether a record's process lives is told by its lock (flock(2)), which ends with
 * the process however that ends, and not by its number, which another may have by now.
 *
 * Does not make the things themselves, but for the setting. One lock, of the folder (a file beside
 * the records), is held while records are read or change; never for long. Any thread.
 */
#include "net/made.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "net/rtnl.h"
#include "vmm/util/log.h"
#include "vmm/util/rundir.h"

#define LINE_MAX_BYTES 512

/* ---- the folder ---- */

/* Opens it, and makes it if `make`; with its lock, which ends with *lock. -errno. */
static int open_folder(bool make, int *folder, int *lock)
{
    char run[200], path[220];
    int err = rundir_path(run, sizeof(run));

    if (err)
        return err;
    snprintf(path, sizeof(path), "%s/made", run);
    if (make && mkdir(path, 0700) < 0 && errno != EEXIST)
        return -errno;
    *folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (*folder < 0)
        return -errno;
    *lock = openat(*folder, ".lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (*lock < 0 || flock(*lock, LOCK_EX) < 0) {
        err = -errno;
        if (*lock >= 0)
            close(*lock);
        close(*folder);
        return err;
    }
    return 0;
}

static void close_folder(int folder, int lock)
{
    close(lock);
    close(folder);
}

static unsigned long long network_namespace(void)
{
    struct stat st;

    return stat("/proc/thread-self/ns/net", &st) < 0 ? 0 : (unsigned long long)st.st_ino;
}

/* When this process started, in the kernel's ticks: proc(5), field 22 of stat. */
static unsigned long long start_time(void)
{
    FILE *file = fopen("/proc/self/stat", "re");
    unsigned long long ticks = 0;
    char text[1024];
    char *at = NULL;

    if (!file)
        return 0;
    if (fgets(text, sizeof(text), file))
        at = strrchr(text, ')'); /* ends field 2, the name, which may have anything in it */
    for (unsigned field = 2; at && field < 22; field++)
        at = strchr(at + 1, ' ');
    if (at)
        ticks = strtoull(at, NULL, 10);
    fclose(file);
    return ticks;
}

/* ---- one record ---- */

/* Writes a record into the locked folder. */
static int write_record(struct made *made, int folder, const char *line)
{
    static atomic_uint number;
    ssize_t length = (ssize_t)strlen(line);
    int err;

    snprintf(made->tag, sizeof(made->tag), "%d-%llu-%u", (int)getpid(), start_time(),
             atomic_fetch_add(&number, 1));
    made->fd = openat(folder, made->tag, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (made->fd < 0)
        return -errno;
    if (flock(made->fd, LOCK_EX) == 0 && write(made->fd, line, (size_t)length) == length)
        return 0;
    err = errno ? -errno : -ENOSPC;
    unlinkat(folder, made->tag, 0);
    close(made->fd);
    made->fd = -1;
    return err;
}

static bool read_record(int fd, char line[LINE_MAX_BYTES])
{
    ssize_t got = pread(fd, line, LINE_MAX_BYTES - 1, 0);

    line[got > 0 ? got : 0] = '\0';
    return got > 0;
}

static int log_failure(const char *what, int err)
{
    if (err == -ENOENT)
        log_error("%s: there is no folder to note it in, for taking it away later: set "
                  "XDG_RUNTIME_DIR", what);
    else if (err)
        log_error("%s: cannot note it in the run directory: %s", what, strerror(-err));
    return err;
}

static int note(struct made *made, const char *line)
{
    int folder = -1, lock = -1;
    int err = open_folder(true, &folder, &lock);

    if (!err) {
        err = write_record(made, folder, line);
        close_folder(folder, lock);
    }
    return err;
}

/* ---- links ---- */

static int note_link(struct made *made, const char *kind, const char *name, const uint8_t mac[6])
{
    char line[LINE_MAX_BYTES];

    snprintf(line, sizeof(line), "%s %llu %s %02x:%02x:%02x:%02x:%02x:%02x\n", kind,
             network_namespace(), name, mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
    return note(made, line);
}

int made_macvtap(struct made *made, const char *name, const uint8_t mac[6])
{
    return log_failure(name, note_link(made, "macvtap", name, mac));
}

void made_tap(struct made *made, const char *name, const uint8_t mac[6])
{
    int err = note_link(made, "tun", name, mac);

    if (err)
        log_debug("%s: cannot note it in the run directory: %s", name, strerror(-err));
}

/* Whether the link is that which the record means: it bears the record's name, or, when its process
 * was killed before it could give it that, its address. */
static bool is_ours(const struct rtnl_link *link, const char *kind, const char *tag,
                    const uint8_t mac[6])
{
    return strcmp(link->kind, kind) == 0 &&
           (strcmp(link->alias, tag) == 0 ||
            (link->alias[0] == '\0' && memcmp(link->mac, mac, 6) == 0));
}

/* False when the record must stay. */
static bool undo_link(const char *tag, const char *line)
{
    unsigned long long namespace;
    struct rtnl_link link;
    struct netlink nl;
    char kind[8], name[IFNAMSIZ];
    uint8_t mac[6];
    int err;

    if (sscanf(line, "%7s %llu %15s %hhx:%hhx:%hhx:%hhx:%hhx:%hhx", kind, &namespace, name,
               &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5]) != 9)
        return true;
    if (namespace != network_namespace() || netlink_open(&nl, NETLINK_ROUTE) < 0)
        return false;
    err = rtnl_link_find(&nl, name, &link);
    if (!err && is_ours(&link, kind, tag, mac))
        err = rtnl_link_delete(&nl, link.index);
    netlink_close(&nl);
    if (err && err != -ENODEV) {
        log_warn("cannot remove %s: %s", name, strerror(-err));
        return false;
    }
    return true;
}

/* ---- sockets ---- */

int made_socket(struct made *made, const char *path)
{
    char line[LINE_MAX_BYTES];

    snprintf(line, sizeof(line), "socket %s\n", path);
    return log_failure(path, note(made, line));
}

void made_socket_bound(struct made *made, const char *path)
{
    char line[64];
    struct stat st;

    if (lstat(path, &st) < 0)
        return;
    snprintf(line, sizeof(line), "file %llu %llu\n", (unsigned long long)st.st_dev,
             (unsigned long long)st.st_ino);
    if (write(made->fd, line, strlen(line)) < 0)
        log_debug("%s: cannot note its number: %s", path, strerror(errno));
}

/* Whether the record tells the file's number, and it is this one's. A dead process's socket may still
 * be served for a moment, as its ring goes after it. */
static bool is_noted_file(const char *line, const struct stat *st)
{
    unsigned long long dev, ino;

    return sscanf(line, "file %llu %llu", &dev, &ino) == 2 && dev == st->st_dev &&
           ino == st->st_ino;
}

/* Whether somebody listens there. path: fits in an address. */
static bool is_served(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool served;

    if (fd < 0)
        return true;
    memcpy(address.sun_path, path, strlen(path) + 1);
    served = connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0 ||
             errno != ECONNREFUSED;
    close(fd);
    return served;
}

static void undo_socket(const char *line)
{
    const char *end = strchr(line, '\n');
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    struct stat st;
    int length;

    line += strlen("socket ");
    if (!end || (size_t)(end - line) >= sizeof(path))
        return;
    length = (int)(end - line);
    snprintf(path, sizeof(path), "%.*s", length, line);
    if (lstat(path, &st) == 0 && S_ISSOCK(st.st_mode) &&
        (is_noted_file(end + 1, &st) || !is_served(path)))
        unlink(path);
}

/* ---- forwarding ---- */

/* Text: Linux Documentation/networking/ip-sysctl.rst, conf/interface. */
static void forwarding_path(const char *link, char *path, size_t size)
{
    snprintf(path, size, "/proc/sys/net/ipv4/conf/%s/forwarding", link);
}

/* 0 or 1, or -errno. */
static int read_forwarding(const char *link)
{
    char path[100], value = 0;
    int fd, result;

    forwarding_path(link, path, sizeof(path));
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    result = read(fd, &value, 1) == 1 ? value != '0' : -EIO;
    close(fd);
    return result;
}

static int write_forwarding(const char *link, bool on)
{
    char path[100];
    int fd, err;

    forwarding_path(link, path, sizeof(path));
    fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    err = write(fd, on ? "1\n" : "0\n", 2) == 2 ? 0 : -errno;
    close(fd);
    return err;
}

/* Whether a record other than `but` says the same. */
static bool is_noted(int folder, const char *line, const char *but)
{
    int copy = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = copy < 0 ? NULL : fdopendir(copy);
    const struct dirent *entry;
    char other[LINE_MAX_BYTES];
    bool noted = false;

    while (dir && !noted && (entry = readdir(dir))) {
        int fd;

        if (entry->d_name[0] == '.' || strcmp(entry->d_name, but) == 0)
            continue;
        fd = openat(folder, entry->d_name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0)
            continue;
        noted = read_record(fd, other) && strcmp(line, other) == 0;
        close(fd);
    }
    if (dir)
        closedir(dir);
    return noted;
}

static int turn_on(struct made *made, int folder, const char *link, const char *line,
                   bool *changed)
{
    int now = read_forwarding(link);
    int err;

    if (now < 0)
        return now;
    *changed = now == 0 || is_noted(folder, line, "");
    if (!*changed)
        return 0;
    err = write_record(made, folder, line);
    if (err)
        return err;
    err = write_forwarding(link, true);
    if (err) {
        unlinkat(folder, made->tag, 0);
        close(made->fd);
        made->fd = -1;
    }
    return err;
}

int made_forwarding(struct made *made, const char *link, bool *changed)
{
    char line[LINE_MAX_BYTES];
    int folder = -1, lock = -1;
    int err = open_folder(true, &folder, &lock);

    if (err)
        return log_failure("forwarding", err);
    snprintf(line, sizeof(line), "forwarding %llu %s\n", network_namespace(), link);
    err = turn_on(made, folder, link, line, changed);
    close_folder(folder, lock);
    if (err)
        log_error("cannot have the host forward what arrives at %s: %s", link, strerror(-err));
    return err;
}

/* Off again, unless others need it or somebody turned it on for the whole host meanwhile. */
static bool undo_forwarding(int folder, const char *tag, const char *line)
{
    unsigned long long namespace;
    char link[IFNAMSIZ];

    if (sscanf(line, "forwarding %llu %15s", &namespace, link) != 2)
        return true;
    if (namespace != network_namespace())
        return false;
    if (!is_noted(folder, line, tag) && read_forwarding("all") == 0)
        (void)write_forwarding(link, false);
    return true;
}

/* ---- undoing ---- */

static bool undo(int folder, int fd, const char *tag)
{
    char line[LINE_MAX_BYTES];

    if (!read_record(fd, line))
        return true;
    if (strncmp(line, "macvtap ", 8) == 0 || strncmp(line, "tun ", 4) == 0)
        return undo_link(tag, line);
    if (strncmp(line, "forwarding ", 11) == 0)
        return undo_forwarding(folder, tag, line);
    if (strncmp(line, "socket ", 7) == 0)
        undo_socket(line);
    return true;
}

static void end_record(struct made *made, bool undone)
{
    int folder = -1, lock = -1;

    if (made->fd < 0)
        return;
    if (open_folder(false, &folder, &lock) == 0) {
        if (undone || undo(folder, made->fd, made->tag))
            unlinkat(folder, made->tag, 0);
        close_folder(folder, lock);
    }
    close(made->fd);
    made->fd = -1;
}

void made_forget(struct made *made)
{
    end_record(made, true);
}

void made_undo(struct made *made)
{
    end_record(made, false);
}

static void sweep_one(int folder, const char *tag)
{
    int fd = openat(folder, tag, O_RDWR | O_CLOEXEC | O_NOFOLLOW);

    if (fd < 0)
        return;
    if (flock(fd, LOCK_EX | LOCK_NB) == 0 && undo(folder, fd, tag)) {
        log_info("took away what process %.*s had left", (int)strcspn(tag, "-"), tag);
        unlinkat(folder, tag, 0);
    }
    close(fd);
}

void made_sweep(void)
{
    const struct dirent *entry;
    int folder = -1, lock = -1;
    DIR *dir;

    if (open_folder(false, &folder, &lock) < 0)
        return;
    dir = fdopendir(folder);
    while (dir && (entry = readdir(dir))) {
        if (entry->d_name[0] != '.')
            sweep_one(folder, entry->d_name);
    }
    close(lock);
    if (dir)
        closedir(dir);
    else
        close(folder);
}
