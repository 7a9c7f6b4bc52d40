/*
 * Starting passt with one end of a socket pair, whose other end is a stream port.
 *
 * Does not read what passt says: it goes to standard error. When this process ends, however it does,
 * the socket closes and passt ends. Loop's thread; no locks.
 *
 * Text: passt(1).
 */
#include "net/passt.h"

#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "net/stream_port.h"
#include "vmm/util/log.h"

#define PROGRAM "passt"
#define SOCKET_FD 3
#define GUEST_NUMBER 15u  /* in the network, as with libslirp */
#define ROUTER_NUMBER 2u
#define MAX_WORDS 160u
#define WORD_MAX 64u
/* More than a guest's TCP window is: passt drops what its socket has no room for, and a stream waits
 * two seconds for it to notice. It sets this itself, but not for a socket that it is handed. */
#define PASST_BUFFER (8 << 20)
/* Towards passt: two large segments or four, so that it takes and acknowledges one while the next is
 * made. It takes all that there is before it acknowledges any: of what fits into a MiB, a guest's whole
 * window, after which nobody has anything to do, sometimes until the guest sends it again. */
#define OWN_BUFFER (128 << 10)

struct passt {
    pid_t pid;
    struct stream_port *stream; /* owns */
};

/* The command line as it grows. */
struct words {
    char text[MAX_WORDS][WORD_MAX];
    char *argv[MAX_WORDS + 1];
    unsigned n;
};

static void __attribute__((format(printf, 2, 3))) add(struct words *words, const char *format, ...)
{
    va_list args;

    if (words->n == MAX_WORDS)
        return;
    va_start(args, format);
    vsnprintf(words->text[words->n], WORD_MAX, format, args);
    va_end(args);
    words->argv[words->n] = words->text[words->n];
    words->n++;
}

static void add_address(struct words *words, const char *option, struct in_addr address)
{
    char text[INET_ADDRSTRLEN];

    inet_ntop(AF_INET, &address, text, sizeof(text));
    add(words, "%s", option);
    add(words, "%s", text);
}

static struct in_addr host_of(const struct passt_config *config, unsigned host)
{
    return (struct in_addr){htonl(ntohl(config->network.s_addr) | host)};
}

/* HOSTADDR/HOSTPORT:PORT; the guest is passt's only one, and its address needs no telling. */
static void add_forward(struct words *words, const struct net_forward *forward)
{
    char host[INET_ADDRSTRLEN];

    inet_ntop(AF_INET, &forward->host_addr, host, sizeof(host));
    add(words, "%s", forward->udp ? "-u" : "-t");
    add(words, "%s/%u:%u", host, forward->host_port, forward->guest_port);
}

static void compose(struct words *words, const struct passt_config *config)
{
    add(words, "%s", PROGRAM);
    add(words, "--foreground");
    add(words, "--quiet");
    add(words, "--one-off");
    add(words, "--fd");
    add(words, "%d", SOCKET_FD);
    if (!config->ipv6)
        add(words, "--ipv4-only");
    if (config->network.s_addr != INADDR_ANY) {
        add_address(words, "--address", host_of(config, GUEST_NUMBER));
        add(words, "--netmask");
        add(words, "%u", config->prefix);
        add_address(words, "--gateway", host_of(config, ROUTER_NUMBER));
    }
    if (config->dns.s_addr != INADDR_ANY)
        add_address(words, "--dns", config->dns);
    if (config->mtu) {
        add(words, "--mtu");
        add(words, "%u", config->mtu);
    }
    for (unsigned i = 0; i < config->n_forwards; i++)
        add_forward(words, &config->forwards[i]);
    words->argv[words->n] = NULL;
}

static int check_forwards(const struct passt_config *config)
{
    for (unsigned i = 0; i < config->n_forwards; i++) {
        const struct in_addr guest = config->forwards[i].guest_addr;

        if (guest.s_addr == INADDR_ANY || (config->network.s_addr != INADDR_ANY &&
                                           guest.s_addr == host_of(config, GUEST_NUMBER).s_addr))
            continue;
        log_error("%s: passt has one guest: a forward to another address than its own cannot be",
                  config->name);
        return -EINVAL;
    }
    return 0;
}

/* Signals are as a program expects them, whatever this process did to its own. */
static int set_signals(posix_spawnattr_t *attributes)
{
    sigset_t none, usual;

    sigemptyset(&none);
    sigemptyset(&usual);
    sigaddset(&usual, SIGPIPE);
    posix_spawnattr_setsigmask(attributes, &none);
    posix_spawnattr_setsigdefault(attributes, &usual);
    /* A group of its own: Ctrl-C at the terminal is the guest's. */
    return posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
                                                    POSIX_SPAWN_SETPGROUP);
}

static int spawn(pid_t *pid, int end, char **argv)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    int err = posix_spawn_file_actions_init(&actions);

    if (err)
        return -err;
    err = posix_spawnattr_init(&attributes);
    if (err)
        goto actions_fini;
    err = set_signals(&attributes);
    if (!err)
        err = posix_spawn_file_actions_adddup2(&actions, end, SOCKET_FD);
    if (!err)
        err = posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", 0, 0);
    if (!err)
        err = posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);
    if (!err)
        err = posix_spawnp(pid, PROGRAM, &actions, &attributes, argv, environ);
    posix_spawnattr_destroy(&attributes);
actions_fini:
    posix_spawn_file_actions_destroy(&actions);
    return -err;
}

static int start(struct passt *passt, const struct passt_config *config, int end)
{
    struct words *words = calloc(1, sizeof(*words));
    int err;

    if (!words)
        return -ENOMEM;
    compose(words, config);
    err = spawn(&passt->pid, end, words->argv);
    free(words);
    if (err == -ENOENT)
        log_error("%s: passt is not installed; on Debian: apt-get install passt", config->name);
    else if (err)
        log_error("%s: cannot start passt: %s", config->name, strerror(-err));
    return err;
}

/* As much as the host allows, which is all with CAP_NET_ADMIN. */
static void make_room(int end, int room)
{
    if (setsockopt(end, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room)) < 0)
        (void)setsockopt(end, SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
}

int passt_create(struct passt **out, struct loop *loop, const struct passt_config *config)
{
    struct stream_config stream = {.name = config->name, .fd = -1};
    struct passt *passt;
    int ends[2], err = check_forwards(config);

    if (err)
        return err;
    passt = calloc(1, sizeof(*passt));
    if (!passt || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0) {
        err = passt ? -errno : -ENOMEM;
        log_error("%s: cannot start passt: %s", config->name, strerror(-err));
        free(passt);
        return err;
    }
    make_room(ends[0], OWN_BUFFER);
    make_room(ends[1], PASST_BUFFER);
    err = start(passt, config, ends[1]);
    close(ends[1]);
    stream.fd = ends[0];
    if (!err)
        err = stream_port_create(&passt->stream, loop, &stream);
    if (err) {
        close(ends[0]);
        passt_destroy(passt);
        return err;
    }
    *out = passt;
    return 0;
}

void passt_destroy(struct passt *passt)
{
    if (!passt)
        return;
    stream_port_destroy(passt->stream);
    if (passt->pid > 0) {
        (void)kill(passt->pid, SIGTERM);
        while (waitpid(passt->pid, NULL, 0) < 0 && errno == EINTR)
            ;
    }
    free(passt);
}

struct net_port *passt_port(struct passt *passt)
{
    return stream_port(passt->stream);
}

const struct stream_port *passt_stream(const struct passt *passt)
{
    return passt->stream;
}
