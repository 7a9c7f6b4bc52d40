/*
 * What the loopback carries: a child writes, the parent reads, in pieces as a migration's. Prints
 * MiB a second.
 *
 * Usage: loopback MIB [work]
 *
 * work: with what a migration does besides: the child copies each piece from memory and takes its
 * checksum, the parent takes it again and puts the piece into a guest's memory that was never touched.
 */
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "migration/stream.h"
#include "vmm/memory.h"

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

static struct guest_memory *new_memory(uint64_t bytes)
{
    const struct memory_config config = {.size = bytes};
    struct guest_memory *mem;

    if (memory_create(&mem, &config) < 0)
        exit(1);
    return mem;
}

static volatile uint32_t checksum; /* so that taking it is not left out */

static void send_all(int fd, uint64_t bytes, const struct guest_memory *from)
{
    static char piece[PIECE];

    memset(piece, 0x55, sizeof(piece));
    for (uint64_t at = 0; at < bytes;) {
        uint64_t length = bytes - at < sizeof(piece) ? bytes - at : sizeof(piece);

        if (from) {
            memcpy(piece, memory_at(from, at, length), length);
            checksum = stream_crc(0, piece, length);
        }
        for (uint64_t done = 0; done < length;) {
            ssize_t n = write(fd, piece + done, length - done);

            if (n <= 0)
                fail("write");
            done += (uint64_t)n;
        }
        at += length;
    }
    close(fd);
}

static int connect_to(const struct sockaddr_in *to)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    if (fd < 0 || connect(fd, (const struct sockaddr *)to, sizeof(*to)) < 0)
        fail("connect");
    return fd;
}

/* A whole piece at most, less at the end. */
static uint64_t read_piece(int fd, char *piece)
{
    uint64_t got = 0;
    ssize_t n;

    while (got < PIECE && (n = read(fd, piece + got, PIECE - got)) > 0)
        got += (uint64_t)n;
    return got;
}

static void receive_all(int fd, uint64_t bytes, struct guest_memory *to)
{
    static char piece[PIECE];
    uint64_t at = 0, n;

    while ((n = read_piece(fd, piece)) > 0) {
        if (to) {
            checksum = stream_crc(0, piece, n);
            if (memory_write_pages(to, at, piece, n) < 0)
                fail("memory");
        }
        at += n;
    }
    if (at != bytes)
        fail("read");
}

int main(int argc, char **argv)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(at);
    uint64_t mib = argc > 1 ? strtoull(argv[1], NULL, 10) : 1024;
    const bool work = argc > 2;
    struct guest_memory *from = work ? new_memory(mib << 20) : NULL;
    struct guest_memory *to = work ? new_memory(mib << 20) : NULL;
    int listen_fd = socket(AF_INET, SOCK_STREAM, 0), fd, ready[2];
    double begun;
    char byte;

    if (from)
        (void)memory_fill(from, 0, 0x55, mib << 20);
    if (listen_fd < 0 || bind(listen_fd, (struct sockaddr *)&at, sizeof(at)) < 0 ||
        listen(listen_fd, 1) < 0 || getsockname(listen_fd, (struct sockaddr *)&at, &length) < 0 ||
        pipe(ready) < 0)
        fail("listen");
    if (fork() == 0) {
        fd = connect_to(&at);
        if (read(ready[0], &byte, 1) != 1)
            fail("pipe");
        send_all(fd, mib << 20, from);
        _exit(0);
    }
    fd = accept(listen_fd, NULL, NULL);
    if (fd < 0 || write(ready[1], "", 1) != 1)
        fail("accept");
    begun = now();
    receive_all(fd, mib << 20, to);
    printf("%.0f\n", (double)mib / (now() - begun));
    wait(NULL);
    memory_destroy(from);
    memory_destroy(to);
    return 0;
}
