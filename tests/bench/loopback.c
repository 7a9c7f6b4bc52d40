/*
 * What the loopback carries: a child writes, the parent reads, in pieces as a migration's. Prints
 * MiB a second.
 *
 * Usage: loopback MIB
 */
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PIECE (256 * 1024)

static _Noreturn void fail(const char *what)
{
    perror(what);
    exit(1);
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void send_all(const struct sockaddr_in *to, uint64_t bytes)
{
    static char piece[PIECE];
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    if (fd < 0 || connect(fd, (const struct sockaddr *)to, sizeof(*to)) < 0)
        fail("connect");
    memset(piece, 0x55, sizeof(piece));
    while (bytes > 0) {
        ssize_t n = write(fd, piece, bytes < sizeof(piece) ? bytes : sizeof(piece));

        if (n <= 0)
            fail("write");
        bytes -= (uint64_t)n;
    }
    close(fd);
}

int main(int argc, char **argv)
{
    static char piece[PIECE];
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(at);
    uint64_t mib = argc > 1 ? strtoull(argv[1], NULL, 10) : 1024, got = 0;
    int listen_fd = socket(AF_INET, SOCK_STREAM, 0), fd;
    double begun;
    ssize_t n;

    if (listen_fd < 0 || bind(listen_fd, (struct sockaddr *)&at, sizeof(at)) < 0 ||
        listen(listen_fd, 1) < 0 || getsockname(listen_fd, (struct sockaddr *)&at, &length) < 0)
        fail("listen");
    if (fork() == 0) {
        send_all(&at, mib << 20);
        _exit(0);
    }
    fd = accept(listen_fd, NULL, NULL);
    if (fd < 0)
        fail("accept");
    begun = now();
    while ((n = read(fd, piece, sizeof(piece))) > 0)
        got += (uint64_t)n;
    if (got != mib << 20)
        fail("read");
    printf("%.0f\n", (double)mib / (now() - begun));
    wait(NULL);
    return 0;
}
