/*
 * Raw mode and the ways out of it. Each test has a pseudo-terminal and a child process that has it
 * as its controlling terminal, in a session of its own; the parent looks at the modes.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "vmm/terminal.h"

static int master, slave;
static struct termios before;
static int to_parent[2], to_child[2];

static void make_terminal(void)
{
    cr_assert_eq(openpty(&master, &slave, NULL, NULL, NULL), 0);
    cr_assert_eq(tcgetattr(slave, &before), 0);
    cr_assert_eq(pipe2(to_parent, O_CLOEXEC), 0);
    cr_assert_eq(pipe2(to_child, O_CLOEXEC), 0);
}

static void drop_terminal(void)
{
    close(master);
    close(slave);
}

TestSuite(terminal, .init = make_terminal, .fini = drop_terminal, .timeout = 60);

static bool is_raw(void)
{
    struct termios now;

    cr_assert_eq(tcgetattr(slave, &now), 0);
    return !(now.c_lflag & (ICANON | ECHO | ISIG)) && !(now.c_iflag & (ICRNL | IXON)) &&
           !(now.c_oflag & OPOST);
}

static bool is_as_before(void)
{
    struct termios now;

    cr_assert_eq(tcgetattr(slave, &now), 0);
    return now.c_iflag == before.c_iflag && now.c_oflag == before.c_oflag &&
           now.c_cflag == before.c_cflag && now.c_lflag == before.c_lflag &&
           memcmp(now.c_cc, before.c_cc, sizeof(now.c_cc)) == 0;
}

/* ---- the child's side: any flaw is an exit status of its own ---- */

enum { CHILD_OK = 0, CHILD_SETUP = 80, CHILD_OPEN, CHILD_WRONG, CHILD_PIPE };

static void say(char what)
{
    if (write(to_parent[1], &what, 1) != 1)
        _exit(CHILD_PIPE);
}

static void hear(void)
{
    char what;

    if (read(to_child[0], &what, 1) != 1)
        _exit(CHILD_PIPE);
}

/* Leads a session on the terminal. Every signal that ends a process can do so, and no core is
 * left. */
static void lead_session(void)
{
    struct rlimit none = {0, 0};

    for (int i = 1; i < NSIG; i++)
        signal(i, SIG_DFL);
    if (setrlimit(RLIMIT_CORE, &none) < 0 || setsid() < 0 || ioctl(slave, TIOCSCTTY, 0) < 0)
        _exit(CHILD_SETUP);
}

static void open_or_die(void)
{
    if (terminal_open(slave) != 0)
        _exit(CHILD_OPEN);
}

/* ---- the parent's side ---- */

static pid_t start(void (*child)(void))
{
    pid_t pid = fork();

    cr_assert_geq(pid, 0);
    if (pid == 0) {
        lead_session();
        child();
        _exit(CHILD_OK);
    }
    close(to_parent[1]);
    to_parent[1] = -1;
    return pid;
}

static void expect(char what)
{
    char heard = 0;

    cr_assert_eq(read(to_parent[0], &heard, 1), 1);
    cr_assert_eq(heard, what);
}

static void go_on(void)
{
    cr_assert_eq(write(to_child[1], "g", 1), 1);
}

static int end_of(pid_t pid)
{
    int status = 0;

    cr_assert_eq(waitpid(pid, &status, 0), pid);
    return status;
}

static void expect_exit(pid_t pid, int code)
{
    int status = end_of(pid);

    cr_assert(WIFEXITED(status), "status %#x", status);
    cr_assert_eq(WEXITSTATUS(status), code);
}

static void child_waits(void)
{
    open_or_die();
    say('o');
    for (;;)
        pause();
}

/* ---- ways out ---- */

static void child_closes(void)
{
    open_or_die();
    say('o');
    hear();
    terminal_close();
}

Test(terminal, closing_restores)
{
    pid_t pid = start(child_closes);

    expect('o');
    cr_assert(is_raw());
    go_on();
    expect_exit(pid, CHILD_OK);
    cr_assert(is_as_before());
}

static void child_exits(void)
{
    open_or_die();
    say('o');
    hear();
    exit(7);
}

Test(terminal, exit_restores)
{
    pid_t pid = start(child_exits);

    expect('o');
    cr_assert(is_raw());
    go_on();
    expect_exit(pid, 7);
    cr_assert(is_as_before());
}

static void child_aborts(void)
{
    open_or_die();
    say('o');
    hear();
    abort();
}

Test(terminal, abort_restores_and_stays_an_abort)
{
    pid_t pid = start(child_aborts);
    int status;

    expect('o');
    cr_assert(is_raw());
    go_on();
    status = end_of(pid);
    cr_assert(WIFSIGNALED(status));
    cr_assert_eq(WTERMSIG(status), SIGABRT);
    cr_assert(is_as_before());
}

static void child_faults(void)
{
    volatile int *nowhere = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    open_or_die();
    say('o');
    hear();
    *nowhere = 1;
}

Test(terminal, a_fault_restores_and_stays_a_fault)
{
    pid_t pid = start(child_faults);
    int status;

    expect('o');
    cr_assert(is_raw());
    go_on();
    status = end_of(pid);
    cr_assert(WIFSIGNALED(status));
    cr_assert_eq(WTERMSIG(status), SIGSEGV);
    cr_assert(is_as_before());
}

static void end_by(int signal_number)
{
    pid_t pid = start(child_waits);
    int status;

    expect('o');
    cr_assert(is_raw());
    cr_assert_eq(kill(pid, signal_number), 0);
    status = end_of(pid);
    cr_assert(WIFSIGNALED(status), "status %#x", status);
    cr_assert_eq(WTERMSIG(status), signal_number);
    cr_assert(is_as_before());
}

Test(terminal, sigterm_restores_and_ends)
{
    end_by(SIGTERM);
}

Test(terminal, sighup_restores_and_ends)
{
    end_by(SIGHUP);
}

Test(terminal, sigint_restores_and_ends)
{
    end_by(SIGINT);
}

Test(terminal, sigquit_restores_and_ends)
{
    end_by(SIGQUIT);
}

Test(terminal, sigusr1_restores_and_ends)
{
    end_by(SIGUSR1);
}

/* ---- signals that belong to others ---- */

static void note_signal(int signal_number)
{
    (void)signal_number;
    say('s');
}

static void child_with_handler(void)
{
    struct sigaction action = {.sa_handler = note_signal};

    sigaction(SIGTERM, &action, NULL);
    signal(SIGHUP, SIG_IGN);
    open_or_die();
    say('o');
    hear();
    terminal_close();
    if (sigaction(SIGTERM, NULL, &action) < 0 || action.sa_handler != note_signal)
        _exit(CHILD_WRONG);
    if (sigaction(SIGHUP, NULL, &action) < 0 || action.sa_handler != SIG_IGN)
        _exit(CHILD_WRONG);
    if (sigaction(SIGINT, NULL, &action) < 0 || action.sa_handler != SIG_DFL)
        _exit(CHILD_WRONG);
}

Test(terminal, signals_that_are_handled_or_ignored_stay_so)
{
    pid_t pid = start(child_with_handler);

    expect('o');
    cr_assert_eq(kill(pid, SIGHUP), 0);
    cr_assert(is_raw());
    go_on();
    expect_exit(pid, CHILD_OK);
    cr_assert(is_as_before());
}

static void child_handles_later(void)
{
    struct sigaction action = {.sa_handler = note_signal, .sa_flags = SA_RESTART};

    open_or_die();
    sigaction(SIGTERM, &action, NULL);
    say('o');
    hear();
    terminal_close();
    if (sigaction(SIGTERM, NULL, &action) < 0 || action.sa_handler != note_signal)
        _exit(CHILD_WRONG);
}

Test(terminal, a_handler_installed_later_takes_over)
{
    pid_t pid = start(child_handles_later);

    expect('o');
    cr_assert_eq(kill(pid, SIGTERM), 0);
    expect('s');
    cr_assert(is_raw());
    go_on();
    expect_exit(pid, CHILD_OK);
    cr_assert(is_as_before());
}

/* ---- stopping and the background ---- */

/* In a group of its own below the session's leader, as a shell makes one for a job: a group without
 * a shell above it would not be stopped by the kernel at all. */
static void in_job(void (*job)(void), bool foreground)
{
    pid_t pid = fork();
    int status;

    if (pid < 0)
        _exit(CHILD_SETUP);
    if (pid == 0) {
        setpgid(0, 0);
        hear();
        job();
        _exit(CHILD_OK);
    }
    setpgid(pid, pid);
    signal(SIGTTOU, SIG_IGN);
    if (foreground && tcsetpgrp(slave, pid) < 0)
        _exit(CHILD_SETUP);
    if (write(to_child[1], "g", 1) != 1)
        _exit(CHILD_PIPE);
    while (waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status)) {
        say('S');
        hear();
        if (kill(pid, SIGCONT) < 0)
            _exit(CHILD_SETUP);
    }
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : CHILD_WRONG);
}

static int event_count(void)
{
    uint64_t count = 0;
    struct pollfd poll_fd = {.fd = terminal_event_fd(), .events = POLLIN};

    return poll(&poll_fd, 1, -1) == 1 && read(poll_fd.fd, &count, sizeof(count)) > 0 ? (int)count
                                                                                     : -1;
}

static void job_stops_once(void)
{
    open_or_die();
    say('o');
    raise(SIGTSTP);
    if (event_count() < 1)
        _exit(CHILD_WRONG);
    say('c');
    hear();
    terminal_close();
}

static void child_with_job_that_stops(void)
{
    in_job(job_stops_once, true);
}

Test(terminal, stopping_restores_and_continuing_enters_raw_mode_again)
{
    pid_t pid = start(child_with_job_that_stops);

    expect('o');
    expect('S');
    cr_assert(is_as_before());
    go_on();
    expect('c');
    cr_assert(is_raw());
    go_on();
    expect_exit(pid, CHILD_OK);
    cr_assert(is_as_before());
}

static void child_orphaned(void)
{
    open_or_die();
    raise(SIGTSTP);
    say('c');
    hear();
}

Test(terminal, a_group_that_nobody_could_continue_is_not_stopped_and_stays_raw)
{
    pid_t pid = start(child_orphaned);

    expect('c');
    cr_assert(is_raw());
    go_on();
    expect_exit(pid, CHILD_OK);
}

static void job_in_background(void)
{
    open_or_die();
    if (terminal_claim())
        _exit(CHILD_WRONG);
    say('o');
    hear();
    if (tcsetpgrp(slave, getpgrp()) < 0 || !terminal_claim())
        _exit(CHILD_WRONG);
    say('f');
    hear();
    terminal_close();
}

static void child_with_background_job(void)
{
    in_job(job_in_background, false);
}

Test(terminal, the_background_leaves_the_terminal_alone_until_it_is_the_foreground)
{
    pid_t pid = start(child_with_background_job);

    expect('o');
    cr_assert(is_as_before());
    go_on();
    expect('f');
    cr_assert(is_raw());
    go_on();
    expect_exit(pid, CHILD_OK);
    cr_assert(is_as_before());
}

static void job_goes_to_background(void)
{
    open_or_die();
    if (tcsetpgrp(slave, getppid()) < 0)
        _exit(CHILD_SETUP);
    say('o');
    hear();
    terminal_close();
}

static void child_with_demoted_job(void)
{
    in_job(job_goes_to_background, true);
}

Test(terminal, closing_in_the_background_does_not_touch_what_the_shell_set)
{
    pid_t pid = start(child_with_demoted_job);
    struct termios shells = before;

    expect('o');
    shells.c_lflag &= ~(tcflag_t)ECHO; /* as a line editor has it */
    cr_assert_eq(tcsetattr(slave, TCSANOW, &shells), 0);
    go_on();
    expect_exit(pid, CHILD_OK);
    cr_assert_eq(tcgetattr(slave, &before), 0);
    cr_assert_eq(before.c_lflag, shells.c_lflag);
}

/* ---- the rest ---- */

Test(terminal, a_pipe_is_no_terminal)
{
    unsigned columns, rows;

    cr_assert_eq(terminal_open(to_child[0]), -ENOTTY);
    cr_assert_eq(terminal_event_fd(), -1);
    cr_assert_eq(terminal_size(to_child[0], &columns, &rows), -ENOTTY);
    cr_assert_not(terminal_claim());
}

Test(terminal, only_one_is_open_at_a_time)
{
    cr_assert_eq(terminal_open(slave), 0);
    cr_assert_eq(terminal_open(slave), -EBUSY);
    terminal_close();
    cr_assert_eq(terminal_open(slave), 0);
    terminal_close();
}

Test(terminal, a_terminal_without_a_size_says_so)
{
    unsigned columns, rows;

    cr_assert_eq(terminal_size(slave, &columns, &rows), -ENOTTY);
}
