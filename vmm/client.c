/*
 * The client of the control socket: HTTP by libcurl, JSON by jansson.
 *
 * libcurl is loaded when a command asks something, and not linked: with the thirty libraries it
 * brings, it would slow the start of every guest. Main thread of a command that runs no guest.
 */
#include "vmm/client.h"

#include <curl/curl.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vmm/control.h"
#include "vmm/util/log.h"
#include "vmm/util/rundir.h"

#define TIMEOUT_S 10L
#define ANSWER_MAX (4u * 1024 * 1024)
#define SUFFIX ".sock"

struct curl_api {
    __typeof__(&curl_easy_init) init;
    CURLcode (*setopt)(CURL *handle, CURLoption option, ...);
    __typeof__(&curl_easy_perform) perform;
    CURLcode (*getinfo)(CURL *handle, CURLINFO info, ...);
    __typeof__(&curl_easy_cleanup) cleanup;
    __typeof__(&curl_easy_strerror) strerror;
};

static int load_curl(struct curl_api *api)
{
    static const char *const names[] = {CURL_SONAME, CURL_OTHER_SONAME};
    const struct {
        const char *name;
        void *function;
    } symbols[] = {
        {"curl_easy_init", &api->init},       {"curl_easy_setopt", &api->setopt},
        {"curl_easy_perform", &api->perform}, {"curl_easy_getinfo", &api->getinfo},
        {"curl_easy_cleanup", &api->cleanup}, {"curl_easy_strerror", &api->strerror},
    };
    void *library = NULL;

    for (size_t i = 0; !library && i < sizeof(names) / sizeof(names[0]); i++)
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        log_error("asking a running guest needs libcurl, which cannot be loaded (%s); on Debian: "
                  "apt-get install libcurl3-gnutls", dlerror());
        return -ENOEXEC;
    }
    for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
        void *symbol = dlsym(library, symbols[i].name);

        if (!symbol) {
            log_error("libcurl has no %s()", symbols[i].name);
            return -ENOEXEC;
        }
        memcpy(symbols[i].function, &symbol, sizeof(symbol));
    }
    return 0;
}

struct answer {
    char *bytes; /* owns */
    size_t length;
};

static size_t receive(const char *data, size_t size, size_t n, void *opaque)
{
    struct answer *answer = opaque;
    size_t length = size * n;
    char *grown;

    if (length > ANSWER_MAX - answer->length)
        return 0; /* libcurl then fails with CURLE_WRITE_ERROR */
    grown = realloc(answer->bytes, answer->length + length + 1);
    if (!grown)
        return 0;
    answer->bytes = grown;
    memcpy(answer->bytes + answer->length, data, length);
    answer->length += length;
    return length;
}

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

static CURLcode perform(const struct curl_api *api, CURL *curl, const char *path,
                        const struct target *target, const struct client_request *request,
                        const char *body, struct answer *answer)
{
    char url[512];

    /* The host is a formality: the socket says who is asked. Names need no escaping. */
    snprintf(url, sizeof(url), "http://ferry%s%s%s%s%s", request->path,
             target->object[0] ? "?" : "", target->object[0] ? family_of(request)->key : "",
             target->object[0] ? "=" : "", target->object);
    api->setopt(curl, CURLOPT_URL, url);
    api->setopt(curl, CURLOPT_UNIX_SOCKET_PATH, path);
    api->setopt(curl, CURLOPT_CUSTOMREQUEST, request->method);
    if (!request->patient)
        api->setopt(curl, CURLOPT_TIMEOUT, TIMEOUT_S);
    api->setopt(curl, CURLOPT_NOSIGNAL, 1L);
    api->setopt(curl, CURLOPT_PROXY, "");
    api->setopt(curl, CURLOPT_WRITEFUNCTION, receive);
    api->setopt(curl, CURLOPT_WRITEDATA, answer);
    if (body)
        api->setopt(curl, CURLOPT_POSTFIELDS, body);
    return api->perform(curl);
}

static int read_answer(const struct client_request *request, long status,
                       const struct answer *answer, json_t **reply)
{
    json_t *json = NULL;

    if (answer->length > 0)
        json = json_loadb(answer->bytes, answer->length, JSON_DECODE_ANY, NULL);
    if (status == 404 && family_of(request)) {
        json_decref(json);
        return -ENOENT; /* told by client_ask() */
    }
    if (status / 100 != 2) {
        if (!request->quiet)
            log_error("%s: %s", request->name,
                      json_is_string(json) ? json_string_value(json) : "refused");
        json_decref(json);
        return status == 400 ? -EINVAL : -EREMOTEIO;
    }
    if (answer->length > 0 && !json) {
        if (!request->quiet)
            log_error("%s: the answer to %s is no JSON", request->name, request->path);
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
static int ask_target(const struct curl_api *api, const struct target *target,
                      const struct client_request *request, json_t **reply)
{
    char path[PATH_MAX + 80], *body = NULL;
    struct answer answer = {0};
    long status = 0;
    CURLcode code;
    CURL *curl;
    int err = socket_path(target->process, path, sizeof(path));

    if (err)
        return err;
    curl = api->init();
    if (!curl)
        return -ENOMEM;
    if (request->body)
        body = json_dumps(request->body, JSON_COMPACT);
    code = perform(api, curl, path, target, request, body, &answer);
    if (code == CURLE_OK) {
        api->getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
        err = read_answer(request, status, &answer, reply);
    } else if (code == CURLE_COULDNT_CONNECT) {
        err = -ENOENT;
    } else {
        if (!request->quiet)
            log_error("%s: %s", request->name, api->strerror(code));
        err = -EIO;
    }
    api->cleanup(curl);
    free(body);
    free(answer.bytes);
    return err;
}

/* ---- which process has it ---- */

struct search {
    const struct curl_api *api;
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
    if (ask_target(search->api, &target, &list, &objects) < 0)
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

static int find_object(const struct curl_api *api, const struct client_request *request,
                       const struct family *family, struct target *target)
{
    struct search search = {.api = api, .family = family, .name = request->name};
    const char *noun = family->noun;
    int err = client_names(look_into, &search);

    if (err)
        return err;
    if (search.n_found == 1)
        *target = search.found;
    if (search.n_found > 1 && !request->quiet)
        log_error("several %s%s are named '%s': say PROCESS/%s; see 'ferry %s'", noun,
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
    struct curl_api api;
    int err;

    if (reply)
        *reply = NULL;
    err = read_name(request->name, &target);
    if (!err) {
        err = load_curl(&api);
        if (err)
            return err;
        err = ask_target(&api, &target, request, reply);
        if (err == -ENOENT && !target.object[0] && family) {
            err = find_object(&api, request, family, &target);
            if (!err)
                err = ask_target(&api, &target, request, reply);
        }
    }
    if (err == -ENOENT && !request->quiet && family && family->noun[0] == 's')
        log_error("there is no switch named '%s'; see 'ferry net'", request->name);
    else if (err == -ENOENT && !request->quiet)
        log_error("no %s named '%s' runs; see 'ferry ps'", family ? family->noun : "process",
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
