/*
 * Where a guest's console is: the terminal (or standard input and output), or a unix socket in the
 * run-time folder that `ferry console` attaches to.
 *
 * Composition root. Main thread, which is the event loop's.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "devices/chardev.h"
#include "vmm/machine_internal.h"
#include "vmm/process.h"
#include "vmm/util/log.h"
#include "vmm/util/rundir.h"

#define BACKLOG 8
#define CONSOLE_SOCKET ".console"
#define CONSOLE_LAST ".last"

static void quit_typed(void *arg)
{
    machine_quit(arg);
}

static int on_terminal(struct machine *m, struct chardev **out)
{
    const struct chardev_stdio_config stdio = {
        .in_fd = STDIN_FILENO,
        .out_fd = STDOUT_FILENO,
        .quit = quit_typed,
        .arg = m,
    };

    return chardev_stdio_create(out, m->loop, &m->lock, &stdio);
}

/* "PROCESS:GUEST.console"; a colon is in no name. */
static int make_path(struct machine *m, char *path, size_t size)
{
    char folder[PATH_MAX];
    int len, err = rundir_path(folder, sizeof(folder));

    if (err) {
        log_error("%s: no console: no folder for its socket: %s; set XDG_RUNTIME_DIR to one of yours",
                  m->config->name, strerror(-err));
        return err;
    }
    len = snprintf(path, size, "%s/%s:%s" CONSOLE_SOCKET, folder, process_name(m->process),
                   m->config->name);
    if (len > 0 && (size_t)len < size)
        return 0;
    log_error("%s: no console: the path of its socket in %s is too long; choose shorter names",
              m->config->name, folder);
    return -ENAMETOOLONG;
}

/* "PROCESS:GUEST.console" becomes "PROCESS:GUEST.last". */
static void last_path(const char *path, char *to, size_t size)
{
    snprintf(to, size, "%.*s" CONSOLE_LAST, (int)(strlen(path) - strlen(CONSOLE_SOCKET)), path);
}

/* What a process of that name left behind, having been killed, is taken away. */
static int listen_at(struct machine *m, const struct sockaddr_un *address)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    char last[sizeof(address->sun_path) + sizeof(CONSOLE_LAST)];
    int err;

    (void)unlink(address->sun_path);
    last_path(address->sun_path, last, sizeof(last));
    (void)unlink(last);
    if (fd >= 0 && bind(fd, (const struct sockaddr *)address, sizeof(*address)) == 0) {
        snprintf(m->console_path, sizeof(m->console_path), "%s", address->sun_path);
        if (chmod(address->sun_path, 0600) == 0 && listen(fd, BACKLOG) == 0)
            return fd;
    }
    err = -errno;
    log_error("%s: the console's socket %s: %s", m->config->name, address->sun_path,
              strerror(-err));
    if (fd >= 0)
        close(fd);
    return err;
}

static int on_socket(struct machine *m, struct chardev **out)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd, err = make_path(m, address.sun_path, sizeof(address.sun_path));

    if (err)
        return err;
    fd = listen_at(m, &address);
    if (fd < 0)
        return fd;
    err = chardev_socket_create(out, m->loop, &m->lock, fd);
    if (err)
        close(fd);
    return err;
}

static int connect_console(struct machine *m, struct chardev **out)
{
    return m->config->console_socket ? on_socket(m, out) : on_terminal(m, out);
}

int machine_build_console(struct machine *m)
{
    int err;

    switch (m->config->console) {
    case CONSOLE_SERIAL:
        return connect_console(m, &m->serial);
    case CONSOLE_VIRTIO:
        err = connect_console(m, &m->virtio_console);
        return err ? err : chardev_null_create(&m->serial);
    case CONSOLE_OFF:
        return chardev_null_create(&m->serial);
    }
    return -EINVAL;
}

/* What the console showed last stays in a file beside the socket's place, for `ferry console` to show
 * when the guest has ended. */
static void keep_last(struct machine *m)
{
    struct chardev *chardev = m->virtio_console ? m->virtio_console : m->serial;
    uint8_t *bytes = chardev ? malloc(CHARDEV_RING_BYTES) : NULL;
    char path[sizeof(m->console_path) + sizeof(CONSOLE_LAST)];
    int fd = -1;
    size_t n;

    last_path(m->console_path, path, sizeof(path));
    if (bytes)
        fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd >= 0) {
        n = chardev_socket_last(chardev, bytes);
        if (write(fd, bytes, n) != (ssize_t)n)
            log_info("%s: what its console showed last is not kept: %m", m->config->name);
        close(fd);
    }
    free(bytes);
}

void machine_remove_console(struct machine *m)
{
    if (m->console_path[0])
        keep_last(m);
    chardev_destroy(m->virtio_console);
    chardev_destroy(m->serial);
    if (m->console_path[0])
        (void)unlink(m->console_path);
}
