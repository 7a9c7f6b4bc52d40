/*
 * Loads libmicrohttpd by dlopen(3); calls none of its functions. The event loop's thread.
 */
#include "vmm/http_api.h"

#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>

#include "vmm/util/log.h"


static const struct {
    const char *name;
    size_t offset; /* in struct http_api */
} symbols[] = {
    {"MHD_start_daemon", offsetof(struct http_api, start_daemon)},
    {"MHD_stop_daemon", offsetof(struct http_api, stop_daemon)},
    {"MHD_add_connection", offsetof(struct http_api, add_connection)},
    {"MHD_run", offsetof(struct http_api, run)},
    {"MHD_get_timeout", offsetof(struct http_api, get_timeout)},
    {"MHD_get_daemon_info", offsetof(struct http_api, get_daemon_info)},
    {"MHD_get_connection_info", offsetof(struct http_api, get_connection_info)},
    {"MHD_create_response_from_buffer", offsetof(struct http_api, create_response)},
    {"MHD_add_response_header", offsetof(struct http_api, add_header)},
    {"MHD_queue_response", offsetof(struct http_api, queue_response)},
    {"MHD_destroy_response", offsetof(struct http_api, destroy_response)},
    {"MHD_get_connection_values", offsetof(struct http_api, get_values)},
    {"MHD_suspend_connection", offsetof(struct http_api, suspend)},
    {"MHD_resume_connection", offsetof(struct http_api, resume)},
};

int http_api_load(struct http_api *api)
{
    /* Never closed: a second call finds it loaded. */
    void *library = dlopen(HTTP_SONAME, RTLD_NOW | RTLD_LOCAL);

    if (!library) {
        log_error("the control socket needs libmicrohttpd, which cannot be loaded (%s); on Debian: "
                  "apt-get install libmicrohttpd12", dlerror());
        return -ENOENT;
    }
    for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
        void *symbol = dlsym(library, symbols[i].name);

        if (!symbol) {
            log_error("the control socket: %s has no %s()", HTTP_SONAME, symbols[i].name);
            return -ENOENT;
        }
        /* dlsym(3): POSIX says that the pointer converts to a function's. */
        *(void **)((char *)api + symbols[i].offset) = symbol;
    }
    return 0;
}
