/*
 * Bindings in a file: a line "MAC ADDRESS" for each, the last one of a station or address counts.
 *
 * Lines are added at the end while the server runs, by the loop's ring; at the start the file is read
 * and, when most of it is overtaken, written anew beside itself and renamed. Not synced: what a crash
 * of the host loses is learnt again. The file is locked (flock(2)) as long as it is open.
 *
 * Knows no messages. Loop's thread; no locks.
 */
#include "net/dhcp_store.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "net/dhcp_leases.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"
#include "vmm/util/options.h"

#define LINE_ROOM 40u
#define PENDING_ROOM (DHCP_POOL_MAX * LINE_ROOM)
/* What is behind that is not read: no file of Ferry's is so long. */
#define FILE_MAX (16u * PENDING_ROOM)

struct dhcp_store {
    const char *name;
    struct loop *loop;
    int fd;
    struct loop_op write;
    size_t writing, pending; /* bytes of `text` under way, and all of them */
    char text[PENDING_ROOM];
};

static int make_folder(const char *path)
{
    return mkdir(path, 0700) < 0 && errno != EEXIST ? -errno : 0;
}

int dhcp_store_path(const char *name, char *path, size_t size)
{
    const char *state = secure_getenv("XDG_STATE_HOME"), *home = secure_getenv("HOME");
    char folder[PATH_MAX];
    int err = 0;

    if (state && *state == '/')
        snprintf(folder, sizeof(folder), "%s", state);
    else if (geteuid() == 0)
        snprintf(folder, sizeof(folder), "/var/lib");
    else if (home && *home == '/')
        snprintf(folder, sizeof(folder), "%s/.local/state", home);
    else
        return -ENOENT;
    for (char *slash = strchr(folder + 1, '/'); slash && !err; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        err = make_folder(folder);
        *slash = '/';
    }
    if (!err)
        err = make_folder(folder);
    if (err || (size_t)snprintf(path, size, "%s/ferry", folder) >= size)
        return err ? err : -ENAMETOOLONG;
    err = make_folder(path);
    if (err || (size_t)snprintf(path, size, "%s/ferry/%s", folder, name) >= size)
        return err ? err : -ENAMETOOLONG;
    return 0;
}

static size_t write_line(char *to, const uint8_t mac[6], struct in_addr address)
{
    char text[INET_ADDRSTRLEN];

    inet_ntop(AF_INET, &address, text, sizeof(text));
    return (size_t)snprintf(to, LINE_ROOM, "%02x:%02x:%02x:%02x:%02x:%02x %s\n", mac[0], mac[1],
                            mac[2], mac[3], mac[4], mac[5], text);
}

/* ---- reading ---- */

static bool bind_line(char *line, struct dhcp_leases *leases, uint64_t until)
{
    char *space = strchr(line, ' ');
    struct in_addr address;
    struct option_mac mac;

    if (!space)
        return false;
    *space = '\0';
    return option_parse_mac(NULL, line, &mac) == 0 &&
           inet_pton(AF_INET, space + 1, &address) == 1 &&
           dhcp_leases_bind(leases, mac.bytes, address, until);
}

/* Returns how many lines there are, or -errno. */
static int read_file(int fd, struct dhcp_leases *leases, uint64_t until)
{
    int copy = dup(fd), lines = 0;
    FILE *file = copy < 0 ? NULL : fdopen(copy, "r");
    char line[256];
    size_t total = 0;

    if (!file) {
        if (copy >= 0)
            close(copy);
        return -errno;
    }
    while (total < FILE_MAX && fgets(line, sizeof(line), file)) {
        total += strlen(line);
        line[strcspn(line, "\n")] = '\0';
        (void)bind_line(line, leases, until);
        lines++;
    }
    fclose(file);
    return lines;
}

/* ---- writing it anew ---- */

struct rewriting {
    FILE *file;
    int lines;
};

static bool rewrite_line(void *arg, const uint8_t mac[6], struct in_addr address, uint64_t until)
{
    struct rewriting *rewriting = arg;
    char line[LINE_ROOM];

    (void)until;
    write_line(line, mac, address);
    rewriting->lines++;
    return !rewriting->file || fputs(line, rewriting->file) >= 0;
}

/* Replaces the file at path; the new one's descriptor, locked, or -errno. */
static int rewrite(const char *path, const struct dhcp_leases *leases)
{
    char beside[PATH_MAX];
    struct rewriting rewriting = {0};
    int fd, copy, err = 0;

    if ((size_t)snprintf(beside, sizeof(beside), "%s.new", path) >= sizeof(beside))
        return -ENAMETOOLONG;
    fd = open(beside, O_RDWR | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -errno;
    copy = dup(fd);
    rewriting.file = copy < 0 ? NULL : fdopen(copy, "w");
    if (!rewriting.file || flock(fd, LOCK_EX | LOCK_NB) < 0)
        err = -errno;
    else
        dhcp_leases_each(leases, rewrite_line, &rewriting);
    if (rewriting.file && fclose(rewriting.file) != 0 && !err)
        err = -errno;
    if (!err && rename(beside, path) < 0)
        err = -errno;
    if (!err)
        return fd;
    unlink(beside);
    close(fd);
    return err;
}

/* ---- life ---- */

static int open_locked(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    int err;

    if (fd < 0)
        return -errno;
    if (flock(fd, LOCK_EX | LOCK_NB) == 0)
        return fd;
    err = errno == EWOULDBLOCK ? -EBUSY : -errno;
    close(fd);
    return err;
}

/* Reads the file; replaces *fd when more than half of the lines are overtaken. */
static int load(int *fd, const char *path, struct dhcp_leases *leases, uint64_t until)
{
    struct rewriting live = {0};
    int lines = read_file(*fd, leases, until);
    int fresh;

    if (lines < 0)
        return lines;
    dhcp_leases_each(leases, rewrite_line, &live); /* without a file it only counts */
    if (lines <= 2 * live.lines + 16)
        return 0;
    fresh = rewrite(path, leases);
    if (fresh < 0)
        return fresh;
    close(*fd);
    *fd = fresh;
    return 0;
}

static void write_more(struct dhcp_store *store)
{
    if (store->write.pending || store->pending == 0)
        return;
    store->writing = store->pending;
    loop_write(store->loop, &store->write, store->fd, store->text, store->writing, LOOP_STREAM);
}

static void written(struct loop_op *op, int result)
{
    struct dhcp_store *store =
        (struct dhcp_store *)((char *)op - offsetof(struct dhcp_store, write));

    if (result < 0 && result != -ECANCELED)
        log_warn("%s: leases cannot be kept: %s", store->name, strerror(-result));
    store->pending -= store->writing;
    memmove(store->text, store->text + store->writing, store->pending);
    store->writing = 0;
    write_more(store);
}

int dhcp_store_open(struct dhcp_store **out, struct loop *loop, const char *name, const char *path,
                    struct dhcp_leases *leases, uint64_t until)
{
    struct dhcp_store *store = calloc(1, sizeof(*store));
    int fd = store ? open_locked(path) : -ENOMEM;
    int err = fd < 0 ? fd : load(&fd, path, leases, until);

    if (err) {
        log_error("%s: cannot keep leases in %s: %s", name, path,
                  err == -EBUSY ? "another ferry does" : strerror(-err));
        if (fd >= 0)
            close(fd);
        free(store);
        return err;
    }
    store->name = name;
    store->loop = loop;
    store->fd = fd;
    store->write.done = written;
    *out = store;
    return 0;
}

static bool is_written(void *arg)
{
    const struct dhcp_store *store = arg;

    return !store->write.pending;
}

void dhcp_store_close(struct dhcp_store *store)
{
    if (!store)
        return;
    (void)loop_run_until(store->loop, is_written, store, 0);
    close(store->fd);
    free(store);
}

void dhcp_store_add(struct dhcp_store *store, const uint8_t mac[6], struct in_addr address)
{
    if (PENDING_ROOM - store->pending < LINE_ROOM)
        return;
    store->pending += write_line(store->text + store->pending, mac, address);
    write_more(store);
}
