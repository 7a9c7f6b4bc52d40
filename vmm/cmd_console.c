/*
 * `ferry console`: this terminal, joined to the console of a guest that runs without one.
 *
 * Copies bytes between the terminal and the guest's console socket (devices/chardev_socket.c), the
 * path of which the guest's control socket tells. Main thread; no locks, and no event loop: poll(2).
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <jansson.h>
#include <limits.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "vmm/client.h"
#include "vmm/cmd.h"
#include "vmm/terminal.h"
#include "vmm/util/log.h"
#include "vmm/util/rundir.h"

#define ESCAPE 0x01 /* Ctrl-a */
#define CHUNK 4096

struct console_options {
    char *name;
    bool dump;
};

static const struct cmd_operand operands[] = {
    {"GUEST",
     {.name = "guest", .parse = option_parse_string, .expects = "the name of a guest",
      .offset = offsetof(struct console_options, name), .required = true}},
    {0},
};

static const struct cmd_option options[] = {
    {0, NULL, "off", "print the output that is kept, and leave",
     {.name = "dump", .parse = option_parse_bool,
      .offset = offsetof(struct console_options, dump)}, NULL},
    {0},
};

/* ---- finding the socket ---- */

static const char *socket_in(const json_t *config, const char *device)
{
    const json_t *console = json_object_get(config, device);

    return json_string_value(json_object_get(console, "socket"));
}

static int connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd, err;

    if (strlen(path) >= sizeof(address.sun_path))
        return -ENAMETOOLONG;
    strcpy(address.sun_path, path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0)
        return fd;
    err = -errno;
    if (fd >= 0)
        close(fd);
    return err;
}

/* What a guest that has ended showed last: a file, or -ENOENT. */
static int open_last(const char *name)
{
    char folder[PATH_MAX], path[PATH_MAX + 300], pattern[300];
    const char *slash = strchr(name, '/');
    struct dirent *entry;
    int fd = -ENOENT;
    DIR *dir;

    if (strpbrk(name, "*?[\\") || rundir_path(folder, sizeof(folder)) < 0 || !(dir = opendir(folder)))
        return -ENOENT;
    snprintf(pattern, sizeof(pattern), "%.*s:%s.last", slash ? (int)(slash - name) : 1,
             slash ? name : "*", slash ? slash + 1 : name);
    while (fd < 0 && (entry = readdir(dir)) != NULL) {
        if (fnmatch(pattern, entry->d_name, 0) != 0)
            continue;
        snprintf(path, sizeof(path), "%s/%s", folder, entry->d_name);
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    }
    closedir(dir);
    return fd < 0 ? -ENOENT : fd;
}

/* A descriptor to read from, and unless `dump` to write to; or a negative errno; logged. */
static int find_console(const char *name, bool dump)
{
    struct client_request request = {
        .name = name, .method = "GET", .path = "/api/v1/vm.info", .quiet = dump};
    json_t *info = NULL, *config;
    const char *path;
    int fd = client_ask(&request, &info);

    if (fd == -ENOENT && dump) {
        fd = open_last(name);
        if (fd >= 0)
            return fd;
    }
    if (fd && dump) {
        request.quiet = false;
        fd = client_ask(&request, &info);
    }

    if (fd)
        return fd;
    config = json_object_get(info, "config");
    path = socket_in(config, "serial");
    if (!path)
        path = socket_in(config, "console");
    if (path) {
        fd = connect_to(path);
        if (fd < 0)
            log_error("%s: its console's socket %s: %s", name, path, strerror(-fd));
    } else {
        log_error("%s: its console is where it was started, or it has none", name);
        fd = -EINVAL;
    }
    json_decref(info);
    return fd;
}

/* ---- copying ---- */

enum verdict { GO_ON, DETACHED, INPUT_ENDED, GUEST_ENDED, BROKEN };

static int write_all(int fd, const uint8_t *bytes, size_t n)
{
    while (n > 0) {
        ssize_t done = write(fd, bytes, n);

        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -errno;
        bytes += done;
        n -= (size_t)done;
    }
    return 0;
}

/* The console's socket carries bytes only: a break goes by the control socket. */
static void send_break(const char *guest)
{
    const struct client_request request = {
        .name = guest, .method = "PUT", .path = "/api/v1/vm.send-break"};

    (void)client_ask(&request, NULL); /* it logs what went wrong */
}

static const char help[] = "\r\n"
                           "Ctrl-a x       leave; the guest runs on\r\n"
                           "Ctrl-a b       send a break\r\n"
                           "Ctrl-a h       this help\r\n"
                           "Ctrl-a Ctrl-a  send one Ctrl-a\r\n";

/* Of the key after a Ctrl-a: true when it was a command. */
static bool command(const char *guest, uint8_t key, enum verdict *verdict)
{
    switch (key) {
    case 'x':
    case 'd':
        *verdict = DETACHED;
        return true;
    case 'b':
        send_break(guest);
        return true;
    case 'h':
    case '?':
        if (write_all(STDOUT_FILENO, (const uint8_t *)help, sizeof(help) - 1) < 0)
            *verdict = BROKEN;
        return true;
    }
    return false;
}

static enum verdict show(int socket_fd)
{
    uint8_t bytes[CHUNK];
    ssize_t n = read(socket_fd, bytes, sizeof(bytes));

    if (n < 0)
        return errno == EINTR ? GO_ON : GUEST_ENDED; /* ECONNRESET: it ended with a crash */
    if (n == 0)
        return GUEST_ENDED;
    return write_all(STDOUT_FILENO, bytes, (size_t)n) < 0 ? BROKEN : GO_ON;
}

/* At a terminal, Ctrl-a begins a command, or stays as typed; guest: its name, NULL at no terminal. */
static enum verdict type(int socket_fd, const char *guest, bool *escape)
{
    uint8_t bytes[CHUNK], to[2 * CHUNK];
    ssize_t n = read(STDIN_FILENO, bytes, sizeof(bytes));
    enum verdict verdict = GO_ON;
    size_t length = 0;

    if (n < 0)
        return errno == EINTR || errno == EAGAIN ? GO_ON : INPUT_ENDED;
    if (n == 0)
        return INPUT_ENDED;
    for (ssize_t i = 0; i < n; i++) {
        bool after = *escape;

        *escape = guest && !after && bytes[i] == ESCAPE;
        if (*escape || (after && command(guest, bytes[i], &verdict)))
            continue;
        if (after && bytes[i] != ESCAPE)
            to[length++] = ESCAPE;
        to[length++] = bytes[i];
    }
    return write_all(socket_fd, to, length) < 0 ? GUEST_ENDED : verdict;
}

static enum verdict copy(int socket_fd, const char *guest, bool reads)
{
    struct pollfd fds[] = {{.fd = socket_fd, .events = POLLIN},
                           {.fd = reads ? STDIN_FILENO : -1, .events = POLLIN}};
    enum verdict verdict = GO_ON;
    bool escape = false;

    while (verdict == GO_ON) {
        if (poll(fds, 2, -1) < 0) {
            if (errno != EINTR)
                return BROKEN;
            continue;
        }
        if (fds[0].revents)
            verdict = show(socket_fd);
        if (verdict == GO_ON && fds[1].revents)
            verdict = type(socket_fd, guest, &escape);
        if (verdict == INPUT_ENDED) {
            fds[1].fd = -1;
            verdict = GO_ON;
        }
    }
    return verdict;
}

static enum exit_status attach(void *object)
{
    const struct console_options *wanted = object;
    int fd = find_console(wanted->name, wanted->dump);
    enum verdict verdict;
    bool terminal;

    if (fd == -ENOENT || fd == -EINVAL)
        return STATUS_USAGE;
    if (fd < 0)
        return STATUS_FAILED;
    if (wanted->dump)
        (void)shutdown(fd, SHUT_WR); /* then the other side ends when it has sent what it has */
    terminal = !wanted->dump && isatty(STDIN_FILENO) && terminal_open(STDIN_FILENO) == 0;
    if (terminal)
        fprintf(stderr, "[%s: Ctrl-a x leaves, Ctrl-a h helps]\r\n", wanted->name);
    verdict = copy(fd, terminal ? wanted->name : NULL, !wanted->dump);
    close(fd);
    if (terminal) {
        terminal_close();
        fprintf(stderr, "\n[%s: %s]\n", wanted->name,
                verdict == DETACHED ? "left; it runs on" : "it has ended");
    }
    return verdict == BROKEN ? STATUS_FAILED : STATUS_OK;
}

static enum exit_status run(const struct command *command, int argc, char **argv)
{
    struct console_options wanted = {0};

    return cmd_perform(command, argc, argv, &wanted, attach);
}

const struct command cmd_console = {
    .name = "console",
    .usage = "[OPTION]... GUEST",
    .summary = "Attach to a guest's console; Ctrl-a x leaves.",
    .options = options,
    .operands = operands,
    .notes = "For guests that 'ferry up' started. What the console showed last is shown first.",
    .run = run,
};
