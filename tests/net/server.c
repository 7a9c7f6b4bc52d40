/*
 * server: what the payload tcp talks to. Each connection begins with a request of 16 bytes (magic,
 * operation, amount), and goes on with a pattern that tells its place:
 *   1 sink: takes in all until its end, answers with the number of bytes and that of wrong ones;
 *   2 source: sends so many bytes and ends; 3: sends for so many milliseconds;
 *   4 echo: sends back what comes; 5 one: answers with the lowest byte of the amount, and ends.
 * With 0x100 in the operation the sink compares what comes with the pattern.
 *
 * A process for each connection but those of one byte, so that none waits for another. Prints its
 * port as soon as it listens. Is no part of Ferry. Texts: tests/guest/tcp/.
 *
 * Usage: server [PORT]    (0, the default: any)
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAGIC  0x50435446u
#define VERIFY 0x100u
#define PERIOD 65521u /* of the pattern */
#define PIECE  (256u * 1024)
#define BACKLOG 128

enum operation { SINK = 1, SOURCE, SOURCE_FOR, ECHO, ONE };

struct request {
    uint32_t magic;
    uint32_t operation;
    uint64_t amount;
};

static uint8_t pattern[PERIOD + PIECE];

static _Noreturn void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void make_pattern(void)
{
    uint32_t x = 1;

    for (size_t i = 0; i < PERIOD; i++) {
        x = x * 1664525 + 1013904223;
        pattern[i] = (uint8_t)(x >> 24);
    }
    for (size_t i = PERIOD; i < sizeof(pattern); i++)
        pattern[i] = pattern[i - PERIOD];
}

static uint64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static bool send_all(int fd, const void *bytes, size_t length)
{
    while (length > 0) {
        ssize_t n = write(fd, bytes, length);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        bytes = (const uint8_t *)bytes + n;
        length -= (size_t)n;
    }
    return true;
}

static uint64_t count_wrong(const uint8_t *bytes, size_t length, uint64_t at)
{
    const uint8_t *want = pattern + at % PERIOD;
    uint64_t wrong = 0;

    if (memcmp(bytes, want, length) == 0)
        return 0;
    for (size_t i = 0; i < length; i++)
        wrong += bytes[i] != want[i];
    return wrong;
}

static void take_in(int fd, bool verify)
{
    static uint8_t piece[PIECE];
    uint64_t answer[2] = {0, 0};
    ssize_t n;

    while ((n = read(fd, piece, sizeof(piece))) > 0 || (n < 0 && errno == EINTR)) {
        if (n < 0)
            continue;
        if (verify)
            answer[1] += count_wrong(piece, (size_t)n, answer[0]);
        answer[0] += (uint64_t)n;
    }
    (void)send_all(fd, answer, sizeof(answer));
}

static void give(int fd, uint64_t bytes)
{
    for (uint64_t at = 0; at < bytes;) {
        size_t n = bytes - at < PIECE ? (size_t)(bytes - at) : PIECE;

        if (!send_all(fd, pattern + at % PERIOD, n))
            return;
        at += n;
    }
}

static void give_for(int fd, uint64_t ms)
{
    uint64_t end = now_ms() + ms;

    for (uint64_t at = 0; now_ms() < end; at += PIECE) {
        if (!send_all(fd, pattern + at % PERIOD, PIECE))
            return;
    }
}

static void give_back(int fd)
{
    uint8_t piece[4096];
    ssize_t n;

    while ((n = read(fd, piece, sizeof(piece))) > 0 && send_all(fd, piece, (size_t)n))
        ;
}

static void serve(int fd, const struct request *request)
{
    switch (request->operation & ~VERIFY) {
    case SINK:
        take_in(fd, request->operation & VERIFY);
        break;
    case SOURCE:
        give(fd, request->amount);
        break;
    case SOURCE_FOR:
        give_for(fd, request->amount);
        break;
    case ECHO:
        give_back(fd);
        break;
    }
}

static void take_request(int listener, int fd)
{
    static const int on = 1;
    struct request request;
    ssize_t n = recv(fd, &request, sizeof(request), MSG_WAITALL);

    if (n != sizeof(request) || request.magic != MAGIC)
        return;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    if ((request.operation & ~VERIFY) == ONE) {
        uint8_t answer = (uint8_t)request.amount;

        (void)send_all(fd, &answer, 1);
        return;
    }
    if (fork() != 0)
        return;
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(listener);
    serve(fd, &request);
    exit(0);
}

int main(int argc, char **argv)
{
    static const int on = 1, off = 0;
    struct sockaddr_in6 at = {.sin6_family = AF_INET6, .sin6_addr = in6addr_any};
    socklen_t length = sizeof(at);
    int listener = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0), fd;

    signal(SIGPIPE, SIG_IGN);
    signal(SIGCHLD, SIG_IGN);
    make_pattern();
    at.sin6_port = htons(argc > 1 ? (uint16_t)atoi(argv[1]) : 0);
    if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
        setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)) < 0 ||
        bind(listener, (struct sockaddr *)&at, sizeof(at)) < 0 || listen(listener, BACKLOG) < 0 ||
        getsockname(listener, (struct sockaddr *)&at, &length) < 0)
        fail("server");
    printf("%u\n", ntohs(at.sin6_port));
    fflush(stdout);
    while ((fd = accept(listener, NULL, NULL)) >= 0 || errno == EINTR || errno == ECONNABORTED) {
        if (fd < 0)
            continue;
        take_request(listener, fd);
        close(fd);
    }
    fail("accept");
}
