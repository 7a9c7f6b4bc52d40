/*
 * Runs qemu-bridge-helper and takes the descriptor that it passes.
 *
 * Its protocol is QEMU's: --use-vnet --br=BRIDGE --fd=SOCKET; one message with the descriptor comes
 * on the socket, or the program ends with a status other than 0. Does not look at what the tap is.
 * No state; the caller's thread waits.
 *
 * Text: QEMU's documentation of -netdev bridge; unix(7), SCM_RIGHTS; posix_spawn(3).
 */
#include "net/bridge_helper.h"

#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vmm/util/log.h"

#define HELPER_FD 3

static const char *find_helper(void)
{
    static const char *const places[] = {
        "/usr/lib/qemu/qemu-bridge-helper",
        "/usr/libexec/qemu-bridge-helper",
        "/usr/local/libexec/qemu-bridge-helper",
    };

    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        if (access(places[i], X_OK) == 0)
            return places[i];
    }
    return NULL;
}

/* Starts it with `end` as its descriptor HELPER_FD. */
static int start(const char *helper, const char *bridge, int end, pid_t *pid)
{
    char bridge_option[40], fd_option[16];
    char *const argv[] = {(char *)helper, "--use-vnet", fd_option, bridge_option, NULL};
    posix_spawn_file_actions_t actions;
    int err;

    snprintf(bridge_option, sizeof(bridge_option), "--br=%s", bridge);
    snprintf(fd_option, sizeof(fd_option), "--fd=%d", HELPER_FD);
    err = posix_spawn_file_actions_init(&actions);
    if (err)
        return -err;
    err = posix_spawn_file_actions_adddup2(&actions, end, HELPER_FD);
    if (!err)
        err = posix_spawn(pid, helper, &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    return -err;
}

/* The descriptor that comes, or -EPERM when the other end closes without one. */
static int receive_fd(int socket_fd)
{
    char byte;
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = {&byte, 1};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    const struct cmsghdr *got;
    ssize_t length;
    int fd;

    do {
        length = recvmsg(socket_fd, &message, MSG_CMSG_CLOEXEC);
    } while (length < 0 && errno == EINTR);
    if (length <= 0)
        return length < 0 ? -errno : -EPERM;
    got = CMSG_FIRSTHDR(&message);
    if (!got || got->cmsg_level != SOL_SOCKET || got->cmsg_type != SCM_RIGHTS ||
        got->cmsg_len != CMSG_LEN(sizeof(fd)))
        return -EPERM;
    memcpy(&fd, CMSG_DATA(got), sizeof(fd));
    return fd;
}

int bridge_helper_open(const char *who, const char *bridge)
{
    const char *helper = find_helper();
    int ends[2] = {-1, -1}, fd, status = 0;
    pid_t pid = -1;

    if (!helper)
        return -ENOENT;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
        return -errno;
    fd = start(helper, bridge, ends[1], &pid);
    close(ends[1]);
    if (fd == 0) {
        fd = receive_fd(ends[0]);
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
            ;
    }
    close(ends[0]);
    if (fd < 0)
        log_error("%s: no right to add a port to %s: it takes the capability CAP_NET_ADMIN, as root "
                  "has it; or, for %s, a line 'allow %s' in /etc/qemu/bridge.conf and the set-uid "
                  "bit", who, bridge, helper, bridge);
    return fd;
}
