/*
 * Loads libyaml by dlopen(3); calls none of its functions. Main thread.
 */
#include "vmm/yaml_api.h"

#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>

#include "vmm/util/log.h"

static const struct {
    const char *name;
    size_t offset; /* in struct yaml_api */
} symbols[] = {
    {"yaml_parser_initialize", offsetof(struct yaml_api, initialize)},
    {"yaml_parser_set_input_string", offsetof(struct yaml_api, set_input)},
    {"yaml_parser_load", offsetof(struct yaml_api, load)},
    {"yaml_parser_delete", offsetof(struct yaml_api, delete)},
    {"yaml_document_get_node", offsetof(struct yaml_api, get_node)},
    {"yaml_document_get_root_node", offsetof(struct yaml_api, get_root)},
    {"yaml_document_delete", offsetof(struct yaml_api, delete_document)},
};

int yaml_api_load(struct yaml_api *api)
{
    /* Never closed: a second call finds it loaded. */
    void *library = dlopen(YAML_SONAME, RTLD_NOW | RTLD_LOCAL);

    if (!library) {
        log_error("a lab's file takes libyaml, which cannot be loaded (%s); on Debian: "
                  "apt-get install libyaml-0-2", dlerror());
        return -ENOEXEC;
    }
    for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
        void *symbol = dlsym(library, symbols[i].name);

        if (!symbol) {
            log_error("%s has no %s()", YAML_SONAME, symbols[i].name);
            return -ENOEXEC;
        }
        /* dlsym(3): POSIX says that the pointer converts to a function's. */
        *(void **)((char *)api + symbols[i].offset) = symbol;
    }
    return 0;
}
