/*
 * One request of HTTP/1.1, and its answer, on a connection that is there: what the commands that talk to
 * a control socket need of it, and no more.
 */
#ifndef FERRY_HTTP_CLIENT_H
#define FERRY_HTTP_CLIENT_H

#include <stddef.h>

#define HTTP_ANSWER_MAX (4u * 1024 * 1024)

struct http_answer {
    int status;
    char *bytes; /* owns; ended by a NUL beside */
    size_t length;
};

/*
 * fd: of a stream socket, borrowed; is of no use for a second request. target: path and query. body: JSON,
 * or NULL. timeout_ms: for all of it; -1: as long as it takes. -ETIMEDOUT; -ECONNRESET: it ended too
 * early; -EBADMSG: that is not HTTP, or of a kind that this does not read; -EMSGSIZE; -ENOMEM; others of
 * send(2) and recv(2). Not logged. Blocks; any thread.
 */
int http_ask(int fd, const char *method, const char *target, const char *body, int timeout_ms,
             struct http_answer *answer);
void http_answer_fini(struct http_answer *answer);

#endif
