/*
 * The client of the control socket: which socket, what is asked there, what the answer means.
 *
 * HTTP itself is http_client.c's, JSON jansson's. Main thread of a command that runs no guest, or one
 * beside it; no state.
 */
#include "vmm/client.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "vmm/control.h"
#include "vmm/http_client.h"
#include "vmm/util/log.h"
#include "vmm/util/rundir.h"

#define TIMEOUT_MS 10000
#define SUFFIX ".sock"

static int socket_path(const char *name, char *path, size_t size)
{
    char folder[PATH_MAX];
    int len, err = control_check_name(name);

    if (!err)
        err = rundir_path(folder, sizeof(folder));
    if (err)
        return -ENOENT;
    len = snprintf(path, size, "%s/%s" SUFFIX, folder, name);
    if (len < 0 || (size_t)len >= size)
        return -ENAMETOOLONG;
    return access(path, F_OK) < 0 ? -ENOENT : 0;
}

/* What requests may be about, beside a process: how it is said which, and who has it. */
struct family {
    const char *prefix; /* of paths */
    const char *key;    /* in the query */
    const char *list;   /* the path that lists a process's */
    const char *noun;
};

static const struct family families[] = {
    {"/api/v1/vm.", "guest", "/api/v1/vmm.guests", "guest"},
    {"/api/v1/net.", "switch", "/api/v1/net", "switch"},
};

/* NULL: the request is about the process. */
static const struct family *family_of(const struct client_request *request)
{
    for (size_t i = 0; i < sizeof(families) / sizeof(families[0]); i++)
        if (strncmp(request->path, families[i].prefix, strlen(families[i].prefix)) == 0)
            return &families[i];
    return NULL;
}

/* Who is asked: a process, and about which of its guests or switches; "": it has one, or the request is
 * about none. */
struct target {
    char process[CONTROL_NAME_MAX + 1];
    char object[CONTROL_NAME_MAX + 1];
};

/* The socket of that path; -ENOENT: nobody listens there. */
static int connect_to(const char *path)
{
    const struct timeval patience = {.tv_sec = TIMEOUT_MS / 1000};
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    int fd, err = 0;

    if (strlen(path) >= sizeof(at.sun_path))
        return -ENAMETOOLONG;
    strcpy(at.sun_path, path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    if (connect(fd, (const struct sockaddr *)&at, sizeof(at)) < 0)
        err = errno == ECONNREFUSED ? -ENOENT : -errno;
    if (!err)
        return fd;
    close(fd);
    return err;
}

/* One exchange with the process that listens there. */
static int exchange(const char *path, const struct target *target,
                    const struct client_request *request, struct http_answer *answer)
{
    char what[512]; /* names need no escaping */
    char *body = request->body ? json_dumps(request->body, JSON_COMPACT) : NULL;
    int fd = request->body && !body ? -ENOMEM : connect_to(path), err = fd;

    snprintf(what, sizeof(what), "%s%s%s%s%s", request->path, target->object[0] ? "?" : "",
             target->object[0] ? family_of(request)->key : "", target->object[0] ? "=" : "",
             target->object);
    if (fd >= 0) {
        err = http_ask(fd, request->method, what, body, request->patient ? -1 : TIMEOUT_MS, answer);
        close(fd);
    }
    free(body);
    return err;
}

/* What went wrong, to whoever is to be told. */
static void __attribute__((format(printf, 2, 3)))
complain(const struct client_request *request, const char *format, ...)
{
    char *text = NULL;
    va_list args;

    if (request->quiet)
        return;
    va_start(args, format);
    if (vasprintf(&text, format, args) < 0)
        text = NULL;
    va_end(args);
    if (request->why && !*request->why) {
        *request->why = text;
        return;
    }
    if (text)
        log_error("%s", text);
    free(text);
}

/* What is answered may begin with the name of what was asked about. */
static void refuse(const struct client_request *request, const json_t *json)
{
    const char *why = json_is_string(json) ? json_string_value(json) : "refused";
    size_t length = strlen(request->name);
    bool named = strncmp(why, request->name, length) == 0 && why[length] == ':';

    complain(request, "%s%s%s", named ? "" : request->name, named ? "" : ": ", why);
}

static int read_answer(const struct client_request *request, const struct http_answer *answer,
                       json_t **reply)
{
    const int status = answer->status;
    json_t *json = NULL;

    if (answer->length > 0)
        json = json_loadb(answer->bytes, answer->length, JSON_DECODE_ANY, NULL);
    if (status == 404 && family_of(request)) {
        json_decref(json);
        return -ENOENT; /* told by client_ask() */
    }
    if (status / 100 != 2) {
        refuse(request, json);
        json_decref(json);
        return status == 400 ? -EINVAL : -EREMOTEIO;
    }
    if (answer->length > 0 && !json) {
        complain(request, "%s: the answer to %s is no JSON", request->name, request->path);
        return -EIO;
    }
    if (reply)
        *reply = json;
    else
        json_decref(json);
    return 0;
}

/* One request to one process. The socket of one that was killed is still there, but nobody answers:
 * -ENOENT, which the caller logs. */
static int ask_target(const struct target *target, const struct client_request *request,
                      json_t **reply)
{
    char path[PATH_MAX + 80];
    struct http_answer answer = {0};
    int err = socket_path(target->process, path, sizeof(path));

    if (err)
        return err;
    err = exchange(path, target, request, &answer);
    if (!err) {
        err = read_answer(request, &answer, reply);
    } else if (err != -ENOENT) {
        complain(request, "%s: %s", request->name,
                 err == -EBADMSG ? "what listens at its socket is no ferry" : strerror(-err));
        err = -EIO;
    }
    http_answer_fini(&answer);
    return err;
}

/* ---- which process has it ---- */

struct search {
    const struct family *family;
    const char *name;
    struct target found;
    unsigned n_found;
};

static void look_into(void *arg, const char *process)
{
    struct search *search = arg;
    const struct client_request list = {
        .name = process, .method = "GET", .path = search->family->list, .quiet = true};
    struct target target = {0};
    json_t *objects = NULL, *object;
    size_t i;

    snprintf(target.process, sizeof(target.process), "%s", process);
    if (ask_target(&target, &list, &objects) < 0)
        return;
    json_array_foreach(objects, i, object) {
        const char *name = json_string_value(json_object_get(object, "name"));

        if (!name || strcmp(name, search->name) != 0)
            continue;
        snprintf(target.object, sizeof(target.object), "%s", name);
        search->found = target;
        search->n_found++;
    }
    json_decref(objects);
}

static int find_object(const struct client_request *request, const struct family *family,
                       struct target *target)
{
    struct search search = {.family = family, .name = request->name};
    const char *noun = family->noun;
    int err = client_names(look_into, &search);

    if (err)
        return err;
    if (search.n_found == 1)
        *target = search.found;
    if (search.n_found > 1)
        complain(request, "several %s%s are named '%s': say PROCESS/%s; see 'ferry %s'", noun,
                 noun[strlen(noun) - 1] == 'h' ? "es" : "s", request->name, request->name,
                 noun[0] == 'g' ? "ps" : "net");
    return search.n_found == 0 ? -ENOENT : search.n_found == 1 ? 0 : -EINVAL;
}

/* "NAME" or "PROCESS/OBJECT". */
static int read_name(const char *name, struct target *target)
{
    const char *slash = strchr(name, '/');
    int length = slash ? (int)(slash - name) : (int)strlen(name);

    *target = (struct target){0};
    if (length > CONTROL_NAME_MAX || (slash && control_check_name(slash + 1) < 0))
        return -ENOENT;
    snprintf(target->process, sizeof(target->process), "%.*s", length, name);
    if (slash)
        snprintf(target->object, sizeof(target->object), "%s", slash + 1);
    return 0;
}

int client_ask(const struct client_request *request, json_t **reply)
{
    const struct family *family = family_of(request);
    struct target target;
    int err;

    if (reply)
        *reply = NULL;
    err = read_name(request->name, &target);
    if (!err) {
        err = ask_target(&target, request, reply);
        if (err == -ENOENT && !target.object[0] && family) {
            err = find_object(request, family, &target);
            if (!err)
                err = ask_target(&target, request, reply);
        }
    }
    if (err == -ENOENT && family && family->noun[0] == 's')
        complain(request, "there is no switch named '%s'; see 'ferry net'", request->name);
    else if (err == -ENOENT)
        complain(request, "no %s named '%s' runs; see 'ferry ps'", family ? family->noun : "process",
                 request->name);
    return err;
}

/* ---- the sockets there are ---- */

static int is_socket(const struct dirent *entry)
{
    size_t n = strlen(entry->d_name), suffix = strlen(SUFFIX);

    return n > suffix && strcmp(entry->d_name + n - suffix, SUFFIX) == 0;
}

int client_names(void (*each)(void *arg, const char *name), void *arg)
{
    char folder[PATH_MAX];
    struct dirent **entries;
    int n;

    if (rundir_path(folder, sizeof(folder)) < 0)
        return 0;
    n = scandir(folder, &entries, is_socket, alphasort);
    if (n < 0) {
        n = -errno;
        log_error("%s: %s", folder, strerror(-n));
        return n;
    }
    for (int i = 0; i < n; i++) {
        entries[i]->d_name[strlen(entries[i]->d_name) - strlen(SUFFIX)] = '\0';
        if (control_check_name(entries[i]->d_name) == 0)
            each(arg, entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
    return 0;
}
