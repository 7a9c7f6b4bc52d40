/*
 * first-output: how long programs take from their start to a text on their standard output.
 *
 *     first-output [--rounds N] [--until TEXT] NAME COMMAND... [::: NAME COMMAND...]...
 *
 * Runs the commands in turn, all once a round, so that whatever else the machine does meets each of
 * them alike. The clock starts before fork(2) and stops when TEXT (default: any byte) was read from the pipe
 * that is the command's standard output; then the command is killed. Prints a line for each:
 * NAME, minimum, median, maximum in microseconds, separated by tabs.
 *
 * Does not interpret the figures (bench.sh does). One thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_CANDIDATES 8
#define MAX_ROUNDS 1000
#define DEADLINE_NS 300000000000ull
#define SEEN_MAX 65536

struct candidate {
    const char *name;
    char **command; /* ends with NULL */
    uint64_t took_ns[MAX_ROUNDS];
};

static struct candidate candidates[MAX_CANDIDATES];
static unsigned n_candidates, rounds = 10;
static const char *until = "";

static void die(const char *what)
{
    fprintf(stderr, "first-output: %s\n", what);
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The child's way from fork to exec. */
static void become(char **command, int out)
{
    int null = open("/dev/null", O_RDONLY);

    if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(out, STDOUT_FILENO) < 0)
        _exit(126);
    execvp(command[0], command);
    _exit(127);
}

/* Reads until the text was seen. False when the output ends or time runs out before. */
static bool wait_for_text(int fd, uint64_t deadline)
{
    static char seen[SEEN_MAX];
    size_t length = strlen(until), used = 0;

    for (;;) {
        struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
        uint64_t now = now_ns();
        ssize_t got;

        if (now >= deadline || poll(&poll_fd, 1, (int)((deadline - now) / 1000000) + 1) <= 0)
            return false;
        got = read(fd, seen + used, sizeof(seen) - used);
        if (got <= 0)
            return false;
        used += (size_t)got;
        if (memmem(seen, used, until, length))
            return true;
        if (used > sizeof(seen) / 2) { /* keep what the text may have begun in */
            memmove(seen, seen + used - length, length);
            used = length;
        }
    }
}

static uint64_t measure(const struct candidate *candidate)
{
    uint64_t begin, took;
    int out[2];
    pid_t child;
    bool seen;

    if (pipe2(out, O_CLOEXEC) < 0)
        die("no pipe");
    begin = now_ns();
    child = fork();
    if (child < 0)
        die("no process");
    if (child == 0)
        become(candidate->command, out[1]);
    close(out[1]);
    seen = wait_for_text(out[0], begin + DEADLINE_NS);
    took = now_ns() - begin;
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    close(out[0]);
    if (!seen) {
        fprintf(stderr, "first-output: %s ended without the text\n", candidate->name);
        exit(1);
    }
    return took;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static void report(struct candidate *candidate)
{
    uint64_t *took = candidate->took_ns;

    qsort(took, rounds, sizeof(*took), compare);
    printf("%s\t%llu\t%llu\t%llu\n", candidate->name, (unsigned long long)took[0] / 1000,
           (unsigned long long)took[rounds / 2] / 1000,
           (unsigned long long)took[rounds - 1] / 1000);
}

/* Cuts the arguments at ":::" into candidates. */
static void read_candidates(char **argv)
{
    while (*argv) {
        if (!argv[1] || n_candidates == MAX_CANDIDATES)
            die("a name and a command were expected, up to 8 times");
        candidates[n_candidates++] = (struct candidate){.name = argv[0], .command = argv + 1};
        while (*argv && strcmp(*argv, ":::") != 0)
            argv++;
        if (*argv)
            *argv++ = NULL;
    }
}

int main(int argc, char **argv)
{
    int i = 1;

    for (; i + 1 < argc && strncmp(argv[i], "--", 2) == 0; i += 2) {
        if (strcmp(argv[i], "--rounds") == 0)
            rounds = (unsigned)atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--until") == 0)
            until = argv[i + 1];
        else
            die("unknown option");
    }
    if (rounds < 1 || rounds > MAX_ROUNDS)
        die("1 to 1000 rounds were expected");
    read_candidates(argv + i);
    if (n_candidates == 0)
        die("no command was given");
    for (unsigned round = 0; round < rounds; round++) {
        for (unsigned c = 0; c < n_candidates; c++)
            candidates[c].took_ns[round] = measure(&candidates[c]);
    }
    for (unsigned c = 0; c < n_candidates; c++)
        report(&candidates[c]);
    return 0;
}
