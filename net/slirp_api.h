/*
 * libslirp, loaded when the first user-mode NAT is created and not before.
 *
 * Linked in the ordinary way it would bring GLib and PCRE2 into every run of the program, also one
 * without NAT; figures stand in slirp_api.c.
 */
#ifndef FERRY_NET_SLIRP_API_H
#define FERRY_NET_SLIRP_API_H

#include <libslirp.h>

#define SLIRP_SONAME "libslirp.so.0"

/* Each function of the library that Ferry calls. */
#define SLIRP_API(X)                                                                               \
    X(slirp_new)                                                                                   \
    X(slirp_cleanup)                                                                               \
    X(slirp_pollfds_fill)                                                                          \
    X(slirp_pollfds_poll)                                                                          \
    X(slirp_input)                                                                                 \
    X(slirp_handle_timer)                                                                          \
    X(slirp_add_hostfwd)                                                                           \
    X(slirp_remove_hostfwd)                                                                        \
    X(slirp_connection_info)

/* The same names without "slirp_" would read better, but a macro cannot cut them. */
struct slirp_api {
#define SLIRP_API_MEMBER(name) __typeof__(&name) name;
    SLIRP_API(SLIRP_API_MEMBER)
#undef SLIRP_API_MEMBER
    void (*free_text)(void *text); /* frees what slirp_connection_info() returned */
};

/*
 * Loads the library and finds the functions. It stays loaded. What it says beyond its callbacks
 * goes to the log, within a guest's budget, from now on. 0; -ENOENT when it is not installed,
 * -ENOEXEC when it lacks a function; logged. Event loop's thread.
 */
int slirp_api_load(struct slirp_api *api);

#endif
