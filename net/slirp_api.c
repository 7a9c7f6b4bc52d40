/*
 * Loads libslirp by dlopen(3).
 *
 * Why not by linking: measured on the build machine, libslirp with GLib and PCRE2 takes 0.4 ms of
 * an exec (0.65 ms without, 1.05 ms with it) and 1.1 MiB of resident memory, which a run without
 * NAT would pay as well. Loading it here costs a run with NAT the same 0.4 ms as linking would.
 *
 * Calls none of libslirp's functions. Owned by the event loop's thread; no locks. GLib has one log
 * handler for the process, so the budget of its messages stands at file scope.
 */
#include "net/slirp_api.h"

#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <stddef.h>

#include "vmm/util/log.h"

/* A connection's buffers are two of 140 KiB, which the library takes and gives back; at the heap's
 * end they would go to the kernel and come from it each time, for a fifth of what one costs. And they
 * are asked for as zeroes: what the heap took ahead is written, though it is zero already, which makes
 * all of it resident, for a third of what one costs. So nothing is taken ahead. */
#define HEAP_KEPT (2 << 20)

#define GLIB_LEVEL_INFO (1 << 6) /* GLogLevelFlags: this and above is no complaint */

/* GLib's g_log_set_default_handler(); a handler gets domain, level, message, user_data. */
typedef void (*glib_handler)(const char *domain, int level, const char *message, void *data);
typedef glib_handler (*glib_set_handler)(glib_handler handler, void *data);

static struct log_rate glib_rate;

/* What is said here is said of what the guest sent, or of what the host refused to it. */
static void log_from_glib(const char *domain, int level, const char *message, void *data)
{
    (void)data;
    if (level >= GLIB_LEVEL_INFO)
        log_debug("%s: %s", domain ? domain : "glib", message);
    else
        log_guest(&glib_rate, "%s: %s", domain ? domain : "glib", message);
}

/* dlsym(3) returns a pointer to data; POSIX says that it converts to a function's. */
static int find(void *library, const char *name, void *function)
{
    void *symbol = dlsym(library, name);

    if (!symbol) {
        log_error("%s has no %s(): version 4.7 or newer is needed", SLIRP_SONAME, name);
        return -ENOEXEC;
    }
    *(void **)function = symbol;
    return 0;
}

int slirp_api_load(struct slirp_api *api)
{
    /* Never closed: GLib cannot be unloaded. A second call finds it loaded. */
    void *library = dlopen(SLIRP_SONAME, RTLD_NOW | RTLD_LOCAL);
    glib_set_handler set_handler;
    int error = 0;

    if (!library) {
        log_error("user-mode NAT needs libslirp, which cannot be loaded (%s); on Debian: apt-get "
                  "install libslirp0", dlerror());
        return -ENOENT;
    }
#define SLIRP_API_FIND(name)                                                                       \
    if (!error)                                                                                    \
        error = find(library, #name, &api->name);
    SLIRP_API(SLIRP_API_FIND)
#undef SLIRP_API_FIND
    /* Of GLib, which the look-up reaches through libslirp's own dependencies. */
    if (!error)
        error = find(library, "g_free", &api->free_text);
    if (!error)
        error = find(library, "g_log_set_default_handler", &set_handler);
    if (error)
        return error;
    set_handler(log_from_glib, NULL);
    (void)mallopt(M_TRIM_THRESHOLD, HEAP_KEPT);
    (void)mallopt(M_TOP_PAD, 0);
    return 0;
}
