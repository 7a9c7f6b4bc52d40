/*
 * The controlling terminal: raw mode, and the way back from it.
 *
 * Does not read or write the terminal. A process has one, and signal handlers must find it, so its
 * state is at file scope. terminal_open() and terminal_close() are the main thread's; claim and
 * restore may run on any thread and in signal handlers, also at the same time: each sets the modes
 * to one of two constant values, and what a dying process sets last are the old ones (see `dying`).
 *
 * Texts: termios(3), tty_ioctl(4), signal-safety(7), credentials(7) on process groups.
 */
#include "vmm/terminal.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "vmm/util/log.h"

static struct {
    struct termios saved, raw; /* constant while `open` */
    int fd;
    int event_fd;         /* owns */
    _Atomic bool open;    /* released after the rest is set */
    _Atomic bool is_raw;
    _Atomic bool dying;   /* a signal is ending the process: no raw mode any more */
    bool logs_here;       /* constant while `open`: messages go to a terminal, too */
    bool at_exit;         /* terminal_restore() is registered */
} terminal = {.fd = -1, .event_fd = -1};

/* ---- modes ---- */

/* Our process group has the terminal, or nobody can say because it controls no session of ours. */
static bool in_foreground(void)
{
    pid_t group = tcgetpgrp(terminal.fd);

    return group < 0 || group == getpgrp();
}

static void enter_raw(void)
{
    if (atomic_load(&terminal.dying) || atomic_exchange(&terminal.is_raw, true))
        return;
    (void)tcsetattr(terminal.fd, TCSANOW, &terminal.raw);
    log_set_raw_terminal(terminal.logs_here);
    /* A handler that restored between the look at `dying` and the line above has the last word. */
    if (atomic_load(&terminal.dying))
        (void)tcsetattr(terminal.fd, TCSANOW, &terminal.saved);
}

bool terminal_claim(void)
{
    int saved_errno = errno;
    bool ours = atomic_load(&terminal.open) && in_foreground();

    if (ours)
        enter_raw();
    errno = saved_errno;
    return ours;
}

void terminal_restore(void)
{
    int saved_errno = errno;

    if (atomic_load(&terminal.open) && atomic_exchange(&terminal.is_raw, false)) {
        /* In the background the terminal is the shell's, which has set it to its liking. */
        if (in_foreground())
            (void)tcsetattr(terminal.fd, TCSANOW, &terminal.saved);
        log_set_raw_terminal(false);
    }
    errno = saved_errno;
}

/* ---- signals ---- */

/* Those that end a process; SIGKILL cannot be caught. */
static const int deadly[] = {
    SIGHUP,  SIGINT,  SIGQUIT,   SIGILL,  SIGTRAP, SIGABRT, SIGBUS,  SIGFPE,
    SIGUSR1, SIGSEGV, SIGUSR2,   SIGALRM, SIGTERM, SIGXCPU, SIGXFSZ, SIGVTALRM,
    SIGPROF, SIGIO,   SIGPWR,    SIGSYS,
};
#define N_DEADLY (sizeof(deadly) / sizeof(deadly[0]))

static void notify(void)
{
    int saved_errno = errno;
    uint64_t one = 1;

    (void)!write(terminal.event_fd, &one, sizeof(one)); /* full: a notice waits already */
    errno = saved_errno;
}

/* The default action is back (SA_RESETHAND) and not masked (SA_NODEFER). */
static void on_deadly(int signal_number)
{
    atomic_store(&terminal.dying, true);
    terminal_restore();
    raise(signal_number);
}

static void on_stop(int signal_number);

static int handle(int signal_number, void (*handler)(int), int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};

    sigemptyset(&action.sa_mask);
    return sigaction(signal_number, &action, NULL) < 0 ? -errno : 0;
}

/* Stops as if there were no handler; SIGCONT goes on at the line after raise(). */
static void on_stop(int signal_number)
{
    terminal_restore();
    (void)handle(signal_number, SIG_DFL, 0);
    raise(signal_number);
    (void)handle(signal_number, on_stop, SA_RESTART | SA_NODEFER);
    (void)terminal_claim(); /* the kernel does not stop a group that nobody could continue */
}

/* Whoever continued us may have put us into the background, or set the modes anew. */
static void on_continue(int signal_number)
{
    (void)signal_number;
    atomic_store(&terminal.is_raw, false);
    (void)terminal_claim();
    notify();
}

static void on_resize(int signal_number)
{
    (void)signal_number;
    notify();
}

/* A signal that somebody handles or ignores is left to him. */
static int handle_if_default(int signal_number, void (*handler)(int), int flags)
{
    struct sigaction now;

    if (sigaction(signal_number, NULL, &now) < 0)
        return -errno;
    if (now.sa_flags & SA_SIGINFO || now.sa_handler != SIG_DFL)
        return 0;
    return handle(signal_number, handler, flags);
}

static void default_if_ours(int signal_number, void (*handler)(int))
{
    struct sigaction now;

    if (sigaction(signal_number, NULL, &now) == 0 && !(now.sa_flags & SA_SIGINFO) &&
        now.sa_handler == handler)
        (void)handle(signal_number, SIG_DFL, 0);
}

static void release_signals(void)
{
    for (size_t i = 0; i < N_DEADLY; i++)
        default_if_ours(deadly[i], on_deadly);
    default_if_ours(SIGTSTP, on_stop);
    default_if_ours(SIGCONT, on_continue);
    default_if_ours(SIGWINCH, on_resize);
    default_if_ours(SIGTTOU, SIG_IGN);
    default_if_ours(SIGTTIN, SIG_IGN);
}

static int catch_signals(void)
{
    int err = 0;

    for (size_t i = 0; i < N_DEADLY && !err; i++)
        err = handle_if_default(deadly[i], on_deadly, SA_RESETHAND | SA_NODEFER | SA_ONSTACK);
    if (!err)
        err = handle_if_default(SIGTSTP, on_stop, SA_RESTART | SA_NODEFER);
    if (!err)
        err = handle_if_default(SIGCONT, on_continue, SA_RESTART);
    if (!err)
        err = handle_if_default(SIGWINCH, on_resize, SA_RESTART);
    /* Without these two a look at the terminal from the background would stop the guest. */
    if (!err)
        err = handle_if_default(SIGTTOU, SIG_IGN, 0);
    if (!err)
        err = handle_if_default(SIGTTIN, SIG_IGN, 0);
    if (err)
        release_signals();
    return err;
}

/* ---- opening ---- */

/* Bytes go through unchanged both ways, and the keys that raise signals are the guest's. */
static void make_raw(struct termios *modes)
{
    cfmakeraw(modes);
    modes->c_cc[VMIN] = 1;
    modes->c_cc[VTIME] = 0;
}

int terminal_open(int fd)
{
    int err;

    if (atomic_load(&terminal.open))
        return -EBUSY;
    if (tcgetattr(fd, &terminal.saved) < 0)
        return -errno;
    terminal.raw = terminal.saved;
    make_raw(&terminal.raw);
    terminal.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (terminal.event_fd < 0)
        return -errno;
    if (!terminal.at_exit && atexit(terminal_restore) == 0)
        terminal.at_exit = true;
    terminal.fd = fd;
    terminal.logs_here = isatty(STDERR_FILENO);
    err = catch_signals();
    if (err) {
        close(terminal.event_fd);
        terminal.event_fd = -1;
        return err;
    }
    atomic_store(&terminal.open, true);
    (void)terminal_claim();
    return 0;
}

void terminal_close(void)
{
    if (!atomic_load(&terminal.open))
        return;
    terminal_restore();
    release_signals();
    atomic_store(&terminal.open, false);
    close(terminal.event_fd);
    terminal.event_fd = -1;
    terminal.fd = -1;
}

int terminal_event_fd(void)
{
    return terminal.event_fd;
}

int terminal_size(int fd, unsigned *columns, unsigned *rows)
{
    struct winsize size;

    if (ioctl(fd, TIOCGWINSZ, &size) < 0 || size.ws_col == 0 || size.ws_row == 0)
        return -ENOTTY;
    *columns = size.ws_col;
    *rows = size.ws_row;
    return 0;
}
