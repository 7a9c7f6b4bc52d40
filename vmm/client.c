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
        return err == -EINVAL ? err : -ENOENT;
    len = snprintf(path, size, "%s/%s" SUFFIX, folder, name);
    if (len < 0 || (size_t)len >= size)
        return -ENAMETOOLONG;
    return access(path, F_OK) < 0 ? -ENOENT : 0;
}

static CURLcode perform(const struct curl_api *api, CURL *curl, const char *path,
                        const struct client_request *request, const char *body,
                        struct answer *answer)
{
    char url[256];

    /* The host is a formality: the socket says who is asked. */
    snprintf(url, sizeof(url), "http://ferry%s", request->path);
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
    if (status / 100 != 2) {
        if (!request->quiet)
            log_error("%s: %s: %s", request->name, request->path,
                      json_is_string(json) ? json_string_value(json) : "refused");
        json_decref(json);
        return -EREMOTEIO;
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

/* The socket of a process that was killed is still there, but nobody answers. */
static int log_failure(const struct client_request *request, CURLcode code,
                       const struct curl_api *api)
{
    if (code == CURLE_COULDNT_CONNECT) {
        if (!request->quiet)
            log_error("no guest named '%s' runs; see 'ferry ps'", request->name);
        return -ENOENT;
    }
    if (!request->quiet)
        log_error("%s: %s", request->name, api->strerror(code));
    return -EIO;
}

int client_ask(const struct client_request *request, json_t **reply)
{
    char path[PATH_MAX + 80], *body = NULL;
    struct answer answer = {0};
    struct curl_api api;
    long status = 0;
    CURLcode code;
    CURL *curl;
    int err = socket_path(request->name, path, sizeof(path));

    if (reply)
        *reply = NULL;
    if (err) {
        if (!request->quiet)
            log_error("no guest named '%s' runs; see 'ferry ps'", request->name);
        return err;
    }
    err = load_curl(&api);
    if (err)
        return err;
    curl = api.init();
    if (!curl)
        return -ENOMEM;
    if (request->body)
        body = json_dumps(request->body, JSON_COMPACT);
    code = perform(&api, curl, path, request, body, &answer);
    if (code == CURLE_OK) {
        api.getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
        err = read_answer(request, status, &answer, reply);
    } else {
        err = log_failure(request, code, &api);
    }
    api.cleanup(curl);
    free(body);
    free(answer.bytes);
    return err;
}

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
