/*
 * libyaml's functions, loaded when a lab's file is read.
 *
 * libyaml and not libcyaml, which stands on it: libcyaml checks a schema while it loads, but what it
 * loaded no longer knows its lines, so that values could not be checked by the parsers of the command
 * line with messages that name the line. Not linked: `ferry run` does not pay for it.
 */
#ifndef FERRY_YAML_API_H
#define FERRY_YAML_API_H

#include <yaml.h>

#define YAML_SONAME "libyaml-0.so.2"

struct yaml_api {
    __typeof__(&yaml_parser_initialize) initialize;
    __typeof__(&yaml_parser_set_input_string) set_input;
    __typeof__(&yaml_parser_load) load;
    __typeof__(&yaml_parser_delete) delete;
    __typeof__(&yaml_document_get_node) get_node;
    __typeof__(&yaml_document_get_root_node) get_root;
    __typeof__(&yaml_document_delete) delete_document;
};

/* 0, or -ENOEXEC, logged with what to install. */
int yaml_api_load(struct yaml_api *api);

#endif
