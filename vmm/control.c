/*
 * The control socket: listens by io_uring, and hands connections to libmicrohttpd.
 *
 * Parses no HTTP (libmicrohttpd) and no JSON (jansson), and knows no machine. The library is loaded
 * with the first client; until then an idle process has one pending poll. It runs in its external
 * epoll mode: its epoll descriptor is polled by the loop, its time-outs are a timer of the loop.
 * The event loop's thread; no locks but a file lock while a name is taken.
 * Texts: RFC 9110 §15 (status codes), unix(7).
 */
#include "vmm/control.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "vmm/http_api.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"
#include "vmm/util/rundir.h"
#include "vmm/util/unix_probe.h"

#define BACKLOG 8
#define MAX_CLIENTS 16u
#define CLIENT_TIMEOUT_S 10u
#define CLIENT_MEMORY (32u * 1024)
#define BODY_MAX (64u * 1024)
#define NS_PER_MS 1000000ull
/* Clients have this long to read their answers when the process ends. */
#define FAREWELL_NS (2000 * NS_PER_MS)
#define CLAIM_NS (20 * NS_PER_MS) /* between two looks whether a name is free */

struct request;

struct control {
    struct loop *loop;                  /* borrowed */
    const struct control_table *tables; /* borrowed */
    void *opaque;
    int listen_fd;                      /* owns */
    struct sockaddr_un address;         /* its path; empty when not bound */
    struct loop_op accept_op, epoll_op;
    struct loop_timer timeout, claim_timer;
    const char *claimed;                /* borrowed: the name to be taken, or NULL */
    struct http_api api;
    struct MHD_Daemon *daemon;          /* owns; NULL before the first client */
    int epoll_fd;                       /* the daemon's */
    struct request *waiting;            /* a list, borrowed: their answers come later */
};

/* One request while its body arrives. */
struct request {
    struct MHD_Connection *connection; /* borrowed */
    const void *object;                /* what a request that waits is about */
    struct request *next;              /* of those that wait */
    bool answered;                     /* by control_answer(), with the two below */
    int error;
    json_t *reply;                     /* owns */
    size_t length;
    bool too_long;
    char body[BODY_MAX];
};

int control_check_name(const char *name)
{
    size_t n = strlen(name);

    if (n == 0 || n > CONTROL_NAME_MAX || name[0] == '.' || name[0] == '-')
        return -EINVAL;
    for (size_t i = 0; i < n; i++)
        if (!strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-", name[i]))
            return -EINVAL;
    return 0;
}

/* ---- answers ---- */

static enum MHD_Result answer(struct control *c, struct MHD_Connection *connection, unsigned status,
                              const json_t *json)
{
    char *text = json ? json_dumps(json, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    struct MHD_Response *response =
        c->api.create_response(text ? strlen(text) : 0, text, MHD_RESPMEM_MUST_FREE);
    enum MHD_Result result;

    if (!response) {
        free(text);
        return MHD_NO;
    }
    if (text)
        c->api.add_header(response, "Content-Type", "application/json");
    result = c->api.queue_response(connection, status, response);
    c->api.destroy_response(response);
    return result;
}

static enum MHD_Result answer_error(struct control *c, struct MHD_Connection *connection,
                                    unsigned status, const char *text)
{
    json_t *json = json_string(text);
    enum MHD_Result result = answer(c, connection, status, json);

    json_decref(json);
    return result;
}

static unsigned status_of(int error, const json_t *reply)
{
    switch (error) {
    case 0: return reply ? MHD_HTTP_OK : MHD_HTTP_NO_CONTENT;
    case -EINVAL: return MHD_HTTP_BAD_REQUEST;
    case -EALREADY: return MHD_HTTP_CONFLICT;
    default: return MHD_HTTP_INTERNAL_SERVER_ERROR;
    }
}

/* Takes reply over. */
static enum MHD_Result answer_result(struct control *c, struct MHD_Connection *connection, int err,
                                     json_t *reply)
{
    enum MHD_Result result;

    if (err && !reply)
        reply = json_string(strerror(-err));
    result = answer(c, connection, status_of(err, reply), reply);
    json_decref(reply);
    return result;
}

/* An argument of the query, into the object that the handler gets; what the body says goes first. */
static enum MHD_Result take_argument(void *opaque, enum MHD_ValueKind kind, const char *key,
                                     const char *value)
{
    json_t **body = opaque;

    (void)kind;
    if (!*body)
        *body = json_object();
    if (*body && value && !json_object_get(*body, key))
        (void)json_object_set_new(*body, key, json_string(value)); /* no UTF-8: left out */
    return MHD_YES;
}

/* The body, with the query's arguments beside it. 0; -EINVAL when it is no JSON object. */
static int read_body(struct control *c, const struct request *request,
                     struct MHD_Connection *connection, json_t **body)
{
    json_error_t error;

    *body = NULL;
    if (request->length > 0) {
        *body = json_loadb(request->body, request->length, JSON_REJECT_DUPLICATES, &error);
        if (!json_is_object(*body)) {
            json_decref(*body);
            return -EINVAL;
        }
    }
    c->api.get_values(connection, MHD_GET_ARGUMENT_KIND, take_argument, body);
    return 0;
}

/* Sets a request aside until control_answer(). */
static void wait_for_answer(struct control *c, struct MHD_Connection *connection,
                            const void *object, struct request *request)
{
    request->connection = connection;
    request->object = object;
    request->next = c->waiting;
    c->waiting = request;
    c->api.suspend(connection);
}

static enum MHD_Result serve(struct control *c, struct MHD_Connection *connection,
                             const struct control_table *table, const struct control_route *route,
                             struct request *request)
{
    json_t *body, *reply = NULL;
    void *object = c->opaque;
    int err = 0;

    if (table->absent)
        return answer_error(c, connection, MHD_HTTP_NOT_IMPLEMENTED, table->absent);
    if (request->too_long)
        return answer_error(c, connection, MHD_HTTP_CONTENT_TOO_LARGE, "the body is too long");
    if (read_body(c, request, connection, &body) < 0)
        return answer_error(c, connection, MHD_HTTP_BAD_REQUEST, "the body is no JSON object");
    if (table->pick)
        err = table->pick(c->opaque, body, &object, &reply);
    if (err) {
        enum MHD_Result result =
            answer(c, connection, err == -ENOENT ? MHD_HTTP_NOT_FOUND : MHD_HTTP_BAD_REQUEST, reply);

        json_decref(body);
        json_decref(reply);
        return result;
    }
    err = route->handle(object, body, &reply);
    json_decref(body);
    if (err == -EINPROGRESS) {
        wait_for_answer(c, connection, object, request);
        return MHD_YES;
    }
    return answer_result(c, connection, err, reply);
}

static const struct control_route *find_route(const struct control_route *routes,
                                              const char *method, const char *path,
                                              bool *path_known)
{
    for (const struct control_route *r = routes; r->method; r++) {
        if (strcmp(r->path, path) != 0)
            continue;
        *path_known = true;
        if (strcmp(r->method, method) == 0)
            return r;
    }
    return NULL;
}

static enum MHD_Result route_request(struct control *c, struct MHD_Connection *connection,
                                     const char *method, const char *path,
                                     struct request *request)
{
    bool path_known = false;

    for (const struct control_table *t = c->tables; t->routes; t++) {
        const struct control_route *r = find_route(t->routes, method, path, &path_known);

        if (r)
            return serve(c, connection, t, r, request);
    }
    if (path_known)
        return answer_error(c, connection, MHD_HTTP_METHOD_NOT_ALLOWED, "another method is needed");
    return answer_error(c, connection, MHD_HTTP_NOT_FOUND, "no such path");
}

/* libmicrohttpd's access handler: once for the header, for each piece of the body, and at the end. */
static enum MHD_Result on_request(void *opaque, struct MHD_Connection *connection, const char *path,
                                  const char *method, const char *version, const char *data,
                                  size_t *data_size, void **request_of)
{
    struct request *request = *request_of;

    (void)version;
    if (!request) {
        *request_of = calloc(1, sizeof(*request));
        return *request_of ? MHD_YES : MHD_NO;
    }
    if (request->answered) {
        json_t *reply = request->reply;

        request->reply = NULL;
        return answer_result(opaque, connection, request->error, reply);
    }
    if (*data_size == 0)
        return route_request(opaque, connection, method, path, request);
    if (*data_size > sizeof(request->body) - request->length) {
        request->too_long = true;
    } else {
        memcpy(request->body + request->length, data, *data_size);
        request->length += *data_size;
    }
    *data_size = 0;
    return MHD_YES;
}

/* Takes it out of those that wait, if it does. */
static void stop_waiting(struct control *c, struct request *request)
{
    struct request **at = &c->waiting;

    while (*at && *at != request)
        at = &(*at)->next;
    if (*at)
        *at = request->next;
}

static void on_completed(void *opaque, struct MHD_Connection *connection, void **request_of,
                         enum MHD_RequestTerminationCode code)
{
    struct control *c = opaque;
    struct request *request = *request_of;

    (void)connection;
    (void)code;
    if (!request)
        return;
    stop_waiting(c, request);
    json_decref(request->reply);
    free(request);
    *request_of = NULL;
}

/* ---- the library in our loop ---- */

static void run_daemon(struct control *c)
{
    MHD_UNSIGNED_LONG_LONG ms;

    c->api.run(c->daemon);
    if (!c->epoll_op.pending)
        loop_poll(c->loop, &c->epoll_op, c->epoll_fd, POLLIN);
    if (c->api.get_timeout(c->daemon, &ms) == MHD_YES)
        loop_timer_set(c->loop, &c->timeout, loop_now_ns() + ms * NS_PER_MS);
    else
        loop_timer_cancel(&c->timeout);
}

/* Takes reply over. */
static void answer_later(struct control *c, struct request *request, int error, json_t *reply)
{
    stop_waiting(c, request);
    request->answered = true;
    request->error = error;
    request->reply = reply;
    c->api.resume(request->connection);
    run_daemon(c);
}

static struct request *find_waiting(const struct control *c, const void *object)
{
    struct request *request = c ? c->waiting : NULL;

    while (request && request->object != object)
        request = request->next;
    return request;
}

void control_answer(struct control *control, const void *object, int error, json_t *reply)
{
    struct request *request = find_waiting(control, object);

    if (request)
        answer_later(control, request, error, reply);
    else
        json_decref(reply);
}

bool control_busy(const struct control *control, const void *object)
{
    return find_waiting(control, object) != NULL;
}

bool control_abandoned(const struct control *control, const void *object)
{
    struct request *request = find_waiting(control, object);
    const union MHD_ConnectionInfo *info =
        request ? control->api.get_connection_info(request->connection,
                                                   MHD_CONNECTION_INFO_CONNECTION_FD)
                : NULL;
    struct pollfd fd = {.fd = info ? info->connect_fd : -1, .events = POLLRDHUP};

    return poll(&fd, 1, 0) > 0 && (fd.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

static void epoll_ready(struct loop_op *op, int result)
{
    struct control *c = (struct control *)((char *)op - offsetof(struct control, epoll_op));

    if (result >= 0 && c->daemon)
        run_daemon(c);
}

static void timed_out(struct loop_timer *timer)
{
    run_daemon((struct control *)((char *)timer - offsetof(struct control, timeout)));
}

static int start_daemon(struct control *c)
{
    const union MHD_DaemonInfo *info;
    int err = http_api_load(&c->api);

    if (err)
        return err;
    c->daemon = c->api.start_daemon(
        MHD_USE_EPOLL | MHD_USE_NO_LISTEN_SOCKET | MHD_ALLOW_SUSPEND_RESUME, 0, NULL, NULL, on_request, c,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, c,
        MHD_OPTION_CONNECTION_LIMIT, MAX_CLIENTS,
        MHD_OPTION_CONNECTION_TIMEOUT, CLIENT_TIMEOUT_S,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CLIENT_MEMORY,
        MHD_OPTION_END);
    if (!c->daemon) {
        log_error("the control socket: libmicrohttpd does not start");
        return -EIO;
    }
    info = c->api.get_daemon_info(c->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    c->epoll_fd = info ? info->epoll_fd : -1;
    return c->epoll_fd < 0 ? -EIO : 0;
}

static void client_waits(struct loop_op *op, int result)
{
    struct control *c = (struct control *)((char *)op - offsetof(struct control, accept_op));
    int fd;

    if (result < 0)
        return;
    while ((fd = accept4(c->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0) {
        if (!c->daemon && start_daemon(c) < 0) {
            close(fd);
            return; /* told once; nobody is listened to any more */
        }
        /* It takes over fd, also when it refuses. Its address is for policies we have not set. */
        (void)c->api.add_connection(c->daemon, fd, (const struct sockaddr *)&c->address,
                                    sizeof(c->address));
        run_daemon(c);
    }
    loop_poll(c->loop, &c->accept_op, c->listen_fd, POLLIN);
}

/* ---- the socket ---- */

/* Whether somebody listens at the address. */
static bool in_use(const struct sockaddr_un *address)
{
    return unix_probe(address) == -EPROTOTYPE;
}

/* Under the folder's lock, so that of two who take a name at once one is told. */
static int bind_name(struct control *c, const char *name)
{
    int err = 0;

    if (in_use(&c->address)) {
        log_error("--name: '%s' is taken: a guest of that name runs; see 'ferry ps'", name);
        return -EADDRINUSE;
    }
    (void)unlink(c->address.sun_path); /* left by a process that was killed */
    if (bind(c->listen_fd, (const struct sockaddr *)&c->address, sizeof(c->address)) < 0 ||
        chmod(c->address.sun_path, 0600) < 0 || listen(c->listen_fd, BACKLOG) < 0) {
        err = -errno;
        log_error("the control socket %s: %s", c->address.sun_path, strerror(-err));
        c->address.sun_path[0] = '\0';
    }
    return err;
}

static int take_name(struct control *c, const char *folder, const char *name)
{
    char lock_path[PATH_MAX + 8];
    int err, len, lock_fd;

    len = snprintf(c->address.sun_path, sizeof(c->address.sun_path), "%s/%s.sock", folder, name);
    if (len < 0 || (size_t)len >= sizeof(c->address.sun_path)) {
        log_error("the control socket %s/%s.sock: the path is longer than the %zu bytes that a "
                  "socket's may have; choose a shorter --name", folder, name,
                  sizeof(c->address.sun_path) - 1);
        c->address.sun_path[0] = '\0';
        return -ENAMETOOLONG;
    }
    snprintf(lock_path, sizeof(lock_path), "%s/.lock", folder);
    lock_fd = open(lock_path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (lock_fd < 0 || flock(lock_fd, LOCK_EX) < 0) {
        err = -errno;
        log_error("the control socket's lock %s: %s", lock_path, strerror(-err));
    } else {
        err = bind_name(c, name);
    }
    if (err)
        c->address.sun_path[0] = '\0';
    if (lock_fd >= 0)
        close(lock_fd);
    return err;
}

/* ---- names of processes that were killed ---- */

/* Whether it is certain that nobody listens. Who binds a name listens before the lock is free. */
static bool is_dead(const struct sockaddr_un *address)
{
    return unix_probe(address) == -ECONNREFUSED;
}

/* The address of the socket of that name; false: it cannot have one. */
static bool find_address(const char *name, struct sockaddr_un *address, char folder[PATH_MAX])
{
    int len;

    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (control_check_name(name) < 0 || rundir_path(folder, PATH_MAX) < 0)
        return false;
    len = snprintf(address->sun_path, sizeof(address->sun_path), "%s/%s.sock", folder, name);
    return len > 0 && (size_t)len < sizeof(address->sun_path);
}

bool control_listens(const char *name)
{
    struct sockaddr_un address;
    char folder[PATH_MAX];

    return find_address(name, &address, folder) && in_use(&address);
}

void control_sweep(const char *name)
{
    char folder[PATH_MAX], lock_path[PATH_MAX + 8];
    struct sockaddr_un address;
    int lock_fd;

    if (!find_address(name, &address, folder))
        return;
    snprintf(lock_path, sizeof(lock_path), "%s/.lock", folder);
    lock_fd = open(lock_path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (lock_fd < 0)
        return;
    if (flock(lock_fd, LOCK_EX) == 0 && is_dead(&address))
        (void)unlink(address.sun_path);
    close(lock_fd);
}

/* ---- another name ---- */

/* Under the folder's lock: renames the socket if nobody listens by that name. */
static int take_claimed(struct control *c)
{
    struct sockaddr_un wanted = {.sun_family = AF_UNIX};
    char folder[PATH_MAX], lock_path[PATH_MAX + 8];
    int lock_fd, len, err = rundir_path(folder, sizeof(folder));

    if (err)
        return err;
    len = snprintf(wanted.sun_path, sizeof(wanted.sun_path), "%s/%s.sock", folder, c->claimed);
    if (len < 0 || (size_t)len >= sizeof(wanted.sun_path))
        return -ENAMETOOLONG;
    snprintf(lock_path, sizeof(lock_path), "%s/.lock", folder);
    lock_fd = open(lock_path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (lock_fd < 0)
        return -errno;
    if (flock(lock_fd, LOCK_EX) < 0)
        err = -errno;
    else if (in_use(&wanted))
        err = -EADDRINUSE;
    else if (rename(c->address.sun_path, wanted.sun_path) < 0)
        err = -errno;
    if (!err)
        c->address = wanted;
    close(lock_fd);
    return err;
}

static void try_claim(struct loop_timer *timer)
{
    struct control *c = (struct control *)((char *)timer - offsetof(struct control, claim_timer));
    int err = take_claimed(c);

    if (err == -EADDRINUSE)
        loop_timer_set(c->loop, timer, loop_now_ns() + CLAIM_NS);
    else if (err)
        log_warn("the control socket keeps the name %s: %s", c->address.sun_path, strerror(-err));
}

static bool has_name(const struct control *c, const char *name)
{
    const char *slash = strrchr(c->address.sun_path, '/');
    size_t length = strlen(name);

    return slash && strncmp(slash + 1, name, length) == 0 &&
           strcmp(slash + 1 + length, ".sock") == 0;
}

void control_claim(struct control *control, const char *name)
{
    if (!control || has_name(control, name))
        return;
    control->claimed = name;
    control->claim_timer.expired = try_claim;
    try_claim(&control->claim_timer);
}

int control_create(struct control **out, struct loop *loop, const char *name,
                   const struct control_table *tables, void *opaque)
{
    char folder[PATH_MAX];
    struct control *c;
    int err = rundir_path(folder, sizeof(folder));

    *out = NULL;
    if (err) {
        log_info("no control socket: no folder for it (XDG_RUNTIME_DIR): %s", strerror(-err));
        return 0;
    }
    c = calloc(1, sizeof(*c));
    if (!c)
        return -ENOMEM;
    c->loop = loop;
    c->tables = tables;
    c->opaque = opaque;
    c->epoll_fd = -1;
    c->address.sun_family = AF_UNIX;
    c->accept_op.done = client_waits;
    c->epoll_op.done = epoll_ready;
    c->timeout.expired = timed_out;
    c->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->listen_fd < 0) {
        err = -errno;
        log_error("the control socket: %s", strerror(-err));
        goto destroy;
    }
    err = take_name(c, folder, name);
    if (err)
        goto destroy;
    loop_poll(loop, &c->accept_op, c->listen_fd, POLLIN);
    *out = c;
    return 0;
destroy:
    control_destroy(c);
    return err;
}

static bool idle(void *arg)
{
    const struct control *c = arg;

    return !c->accept_op.pending && !c->epoll_op.pending;
}

static bool clients_gone(void *arg)
{
    struct control *c = arg;
    const union MHD_DaemonInfo *info =
        c->api.get_daemon_info(c->daemon, MHD_DAEMON_INFO_CURRENT_CONNECTIONS);

    return !info || info->num_connections == 0;
}

void control_hide(struct control *control)
{
    if (!control || !control->address.sun_path[0])
        return;
    (void)unlink(control->address.sun_path);
    control->address.sun_path[0] = '\0';
}

void control_destroy(struct control *control)
{
    if (!control)
        return;
    while (control->waiting)
        answer_later(control, control->waiting, -ECANCELED, NULL);
    if (control->daemon)
        (void)loop_run_until(control->loop, clients_gone, control, FAREWELL_NS);
    control_hide(control);
    loop_timer_cancel(&control->timeout);
    loop_timer_cancel(&control->claim_timer);
    loop_cancel(control->loop, &control->accept_op);
    loop_cancel(control->loop, &control->epoll_op);
    if (control->daemon) {
        control->api.stop_daemon(control->daemon);
        control->daemon = NULL;
    }
    (void)loop_run_until(control->loop, idle, control, 0);
    if (control->listen_fd >= 0)
        close(control->listen_fd);
    free(control);
}
