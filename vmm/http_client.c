/*
 * A client of HTTP/1.1 for control sockets.
 *
 * A library does not pay: libcurl and the thirty that it brings take 13 ms of the processor to be
 * loaded, ten times what a command does beside. Asks for the connection to be closed; knows an answer's
 * length from its head or by the end of the connection, and no other encodings of it. What comes is
 * bounded and checked: another program may listen there. No state; any thread.
 * Texts: RFC 9110 §8.6, §15; RFC 9112 §2, §4, §6.
 */
#include "vmm/http_client.h"

#include <ctype.h>
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>

#define HEAD_MAX (16u * 1024)
#define LENGTH_UNKNOWN SIZE_MAX

struct exchange {
    int fd;
    bool bounded;
    struct timespec until; /* CLOCK_MONOTONIC; if bounded */
    char *bytes;           /* owns: what came that is not used yet, and room for a NUL */
    size_t length, room;
    bool ended; /* nothing more comes */
};

/* ---- time ---- */

static int left_ms(const struct exchange *x)
{
    struct timespec now;
    long long ms;

    if (!x->bounded)
        return -1;
    clock_gettime(CLOCK_MONOTONIC, &now);
    ms = (x->until.tv_sec - now.tv_sec) * 1000ll + (x->until.tv_nsec - now.tv_nsec) / 1000000;
    return ms > 0 ? (int)ms : 0;
}

static int await(const struct exchange *x, short events)
{
    struct pollfd fd = {.fd = x->fd, .events = events};
    int n;

    do
        n = poll(&fd, 1, left_ms(x));
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n == 0 ? -ETIMEDOUT : 0;
}

/* ---- the request ---- */

static int send_all(const struct exchange *x, const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t n = send(x->fd, bytes, length, MSG_NOSIGNAL | MSG_DONTWAIT);
        int err = 0;

        if (n < 0 && errno == EAGAIN)
            err = await(x, POLLOUT);
        else if (n < 0 && errno != EINTR)
            err = -errno;
        if (err)
            return err;
        if (n > 0) {
            bytes += n;
            length -= (size_t)n;
        }
    }
    return 0;
}

static int send_request(const struct exchange *x, const char *method, const char *target,
                        const char *body)
{
    char *text;
    int err, length;

    /* The host is a formality: the socket says who is asked. */
    length = asprintf(&text,
                      "%s %s HTTP/1.1\r\nHost: ferry\r\nConnection: close\r\n"
                      "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                      method, target, body ? strlen(body) : 0, body ? body : "");
    if (length < 0)
        return -ENOMEM;
    err = send_all(x, text, (size_t)length);
    free(text);
    return err;
}

/* ---- the answer ---- */

static int grow(struct exchange *x)
{
    size_t room = x->room ? x->room * 2 : 4096;
    char *bytes;

    if (x->room > HTTP_ANSWER_MAX + HEAD_MAX)
        return -EMSGSIZE;
    bytes = realloc(x->bytes, room + 1);
    if (!bytes)
        return -ENOMEM;
    x->bytes = bytes;
    x->room = room;
    return 0;
}

/* Takes in more of what comes. */
static int receive(struct exchange *x)
{
    ssize_t n;
    int err = !x->bytes || x->length == x->room ? grow(x) : 0;

    while (!err) {
        n = recv(x->fd, x->bytes + x->length, x->room - x->length, MSG_DONTWAIT);
        if (n >= 0)
            break;
        if (errno == EAGAIN)
            err = await(x, POLLIN);
        else if (errno != EINTR)
            err = -errno;
    }
    if (err)
        return err;
    x->ended = n == 0;
    x->length += (size_t)n;
    x->bytes[x->length] = '\0';
    return 0;
}

/* RFC 9112 §4: "HTTP/1.1 200 OK". */
static int read_status(const char *head)
{
    int status;

    if (strncmp(head, "HTTP/1.", 7) != 0 || !isdigit((unsigned char)head[7]) ||
        sscanf(head + 8, " %3d", &status) != 1 || status < 100)
        return -EBADMSG;
    return status;
}

/* The value of a field, behind spaces; NULL: the head, which is a text, has no such field. */
static const char *find_field(const char *head, const char *name)
{
    size_t length = strlen(name);

    for (const char *line = head; (line = strstr(line, "\r\n")) != NULL;) {
        line += 2;
        if (strncasecmp(line, name, length) == 0 && line[length] == ':')
            return line + length + 1 + strspn(line + length + 1, " \t");
    }
    return NULL;
}

/* RFC 9112 §6.3: of an answer with that head. */
static int read_length(const char *head, int status, size_t *length)
{
    const char *value = find_field(head, "Content-Length");
    char *end;
    unsigned long long n;

    *length = LENGTH_UNKNOWN;
    if (find_field(head, "Transfer-Encoding"))
        return -EBADMSG;
    if (status < 200 || status == 204 || status == 304) {
        *length = 0;
        return 0;
    }
    if (!value)
        return 0;
    errno = 0;
    n = strtoull(value, &end, 10);
    if (!isdigit((unsigned char)*value) || errno || *end != '\r')
        return -EBADMSG;
    *length = n <= HTTP_ANSWER_MAX ? (size_t)n : LENGTH_UNKNOWN;
    return n <= HTTP_ANSWER_MAX ? 0 : -EMSGSIZE;
}

/* Takes a head off the front: status line and fields, to the empty line. */
static int take_head(struct exchange *x, int *status, size_t *length)
{
    char *end;
    int err = 0;

    while (!x->bytes || !(end = memmem(x->bytes, x->length, "\r\n\r\n", 4))) {
        if (x->ended)
            return x->length > 0 ? -EBADMSG : -ECONNRESET;
        if (x->length > HEAD_MAX)
            return -EBADMSG;
        err = receive(x);
        if (err)
            return err;
    }
    end[2] = '\0'; /* each line keeps its own end */
    *status = read_status(x->bytes);
    err = *status < 0 ? *status : read_length(x->bytes, *status, length);
    x->length -= (size_t)(end + 4 - x->bytes);
    memmove(x->bytes, end + 4, x->length + 1);
    return err;
}

static int take_body(struct exchange *x, size_t length)
{
    while (x->length < length && !x->ended) {
        int err = receive(x);

        if (err)
            return err;
    }
    if (length != LENGTH_UNKNOWN && x->length < length)
        return -ECONNRESET;
    if (x->length > length)
        x->length = length;
    if (x->length > HTTP_ANSWER_MAX)
        return -EMSGSIZE;
    x->bytes[x->length] = '\0';
    return 0;
}

int http_ask(int fd, const char *method, const char *target, const char *body, int timeout_ms,
             struct http_answer *answer)
{
    struct exchange x = {.fd = fd, .bounded = timeout_ms >= 0};
    size_t length = 0;
    int status = 0, err;

    *answer = (struct http_answer){0};
    clock_gettime(CLOCK_MONOTONIC, &x.until);
    x.until.tv_sec += timeout_ms / 1000;
    x.until.tv_nsec += timeout_ms % 1000 * 1000000l;
    err = send_request(&x, method, target, body);
    do { /* RFC 9110 §15.2: an answer to come may be announced */
        if (!err)
            err = take_head(&x, &status, &length);
    } while (!err && status < 200);
    if (!err)
        err = take_body(&x, length);
    if (err) {
        free(x.bytes);
        return err;
    }
    *answer = (struct http_answer){status, x.bytes, x.length};
    return 0;
}

void http_answer_fini(struct http_answer *answer)
{
    free(answer->bytes);
    *answer = (struct http_answer){0};
}
