/*
 * Loads GnuTLS by dlopen(3); calls none of its functions. Any thread; no state.
 *
 * Why not by linking: the library comes with p11-kit, libidn2, libunistring, libtasn1, nettle, hogweed,
 * gmp and libffi. Measured on the build machine: 1.7 ms and 2.9 MiB of resident memory, of which a
 * guest's start may take 10 ms and 5 MiB in all.
 */
#include "migration/tls_api.h"

#include <dlfcn.h>
#include <errno.h>

#include "vmm/util/log.h"

/* dlsym(3) returns a pointer to data; POSIX says that it converts to a function's. */
static int find(void *library, const char *name, void *function)
{
    void *symbol = dlsym(library, name);

    if (!symbol) {
        log_error("%s has no %s(): version 3.6.3 or newer is needed", TLS_SONAME, name);
        return -ENOEXEC;
    }
    *(void **)function = symbol;
    return 0;
}

int tls_api_load(struct tls_api *api)
{
    void *library = dlopen(TLS_SONAME, RTLD_NOW | RTLD_LOCAL);
    void (**free_text)(void *);
    int err = 0;

    if (!library) {
        log_error("tls: needs GnuTLS, which cannot be loaded (%s); on Debian: apt-get install "
                  "libgnutls30", dlerror());
        return -ENOENT;
    }
#define TLS_API_FIND(name)                                                                         \
    if (!err)                                                                                      \
        err = find(library, #name, &api->name);
    TLS_API(TLS_API_FIND)
#undef TLS_API_FIND
    /* A variable, which holds the function. */
    if (!err)
        err = find(library, "gnutls_free", &free_text);
    if (!err)
        api->free_text = *free_text;
    return err;
}
