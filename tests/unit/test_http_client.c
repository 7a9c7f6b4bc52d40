/*
 * The client of HTTP, at a socket whose other end has its answer there already, or is closed.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "vmm/http_client.h"

static struct http_answer answer;
static char request[1024]; /* that was made */

/* Asks a server that says `said`, and then no more if it is `closed`; what was asked goes to `request`. */
static int ask(const char *said, bool closed, int timeout_ms)
{
    int ends[2], err;
    ssize_t n;

    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    cr_assert_eq(write(ends[1], said, strlen(said)), (ssize_t)strlen(said));
    if (closed)
        cr_assert_eq(shutdown(ends[1], SHUT_WR), 0);
    err = http_ask(ends[0], "PUT", "/api/v1/vm.resize?guest=a", "{\"x\":1}", timeout_ms, &answer);
    n = read(ends[1], request, sizeof(request) - 1);
    cr_assert_geq(n, 0);
    request[n] = '\0';
    close(ends[0]);
    close(ends[1]);
    return err;
}

static void tear_down(void)
{
    http_answer_fini(&answer);
}

TestSuite(http_client, .fini = tear_down, .timeout = 30);

Test(http_client, asks_with_a_length_and_for_one_answer)
{
    cr_assert_eq(ask("HTTP/1.1 204 No Content\r\n\r\n", false, -1), 0);
    cr_expect_str_eq(request, "PUT /api/v1/vm.resize?guest=a HTTP/1.1\r\nHost: ferry\r\n"
                              "Connection: close\r\nContent-Type: application/json\r\n"
                              "Content-Length: 7\r\n\r\n{\"x\":1}");
    cr_expect_eq(answer.status, 204);
    cr_expect_eq(answer.length, 0);
}

Test(http_client, takes_as_much_as_the_length_says_and_waits_for_no_end)
{
    cr_assert_eq(ask("HTTP/1.1 404 Not Found\r\nDate: x\r\ncontent-LENGTH:  5\r\n\r\nhello there",
                     false, -1), 0);
    cr_expect_eq(answer.status, 404);
    cr_expect_str_eq(answer.bytes, "hello");
    cr_expect_eq(answer.length, 5);
}

Test(http_client, takes_all_to_the_end_where_no_length_is_said)
{
    cr_assert_eq(ask("HTTP/1.0 200 OK\r\n\r\nall of it", true, -1), 0);
    cr_expect_str_eq(answer.bytes, "all of it");
}

Test(http_client, passes_over_an_answer_that_says_that_one_will_come)
{
    cr_assert_eq(ask("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false,
                     -1), 0);
    cr_expect_eq(answer.status, 200);
    cr_expect_str_eq(answer.bytes, "ok");
}

Test(http_client, takes_an_answer_that_is_larger_than_a_socket_holds)
{
    const size_t size = 1u << 20;
    char *said = malloc(size + 64);
    int ends[2];

    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    if (fork() == 0) {
        size_t at = 0, length = (size_t)sprintf(said, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", size);

        memset(said + length, 'x', size);
        for (ssize_t n = 1; n > 0 && at < length + size; at += (size_t)n)
            n = write(ends[1], said + at, length + size - at);
        _exit(0);
    }
    close(ends[1]);
    cr_assert_eq(http_ask(ends[0], "GET", "/", NULL, -1, &answer), 0);
    cr_expect_eq(answer.length, size);
    cr_expect_eq(strspn(answer.bytes, "x"), size);
    close(ends[0]);
    free(said);
}

Test(http_client, says_so_when_the_answer_ends_too_early)
{
    cr_expect_eq(ask("", true, -1), -ECONNRESET);
    cr_expect_eq(ask("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", true, -1), -ECONNRESET);
    cr_expect_eq(ask("HTTP/1.1 200 OK\r\nContent-Le", true, -1), -EBADMSG);
}

Test(http_client, refuses_what_is_no_answer)
{
    cr_expect_eq(ask("SSH-2.0-OpenSSH\r\n\r\n", true, -1), -EBADMSG);
    cr_expect_eq(ask("HTTP/1.1 abc\r\n\r\n", true, -1), -EBADMSG);
    cr_expect_eq(ask("HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", true, -1), -EBADMSG);
    cr_expect_eq(ask("HTTP/1.1 200 OK\r\nContent-Length: 5x\r\n\r\nhello", true, -1), -EBADMSG);
    cr_expect_eq(ask("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", true, -1), -EBADMSG);
    cr_expect_eq(ask("HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", true, -1), -EMSGSIZE);
}

Test(http_client, waits_no_longer_than_it_may)
{
    cr_expect_eq(ask("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", false, 1), -ETIMEDOUT);
}
