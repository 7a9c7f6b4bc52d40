/*
 * YAML as lab files have it: mappings, lists and scalars, each with the line on which it stands.
 *
 * A document is untrusted. A walk follows a schema of bounded depth, so that aliases, which may make
 * the document's graph a loop, do no harm. One thread at a time.
 */
#ifndef FERRY_LAB_YAML_H
#define FERRY_LAB_YAML_H

#include <stdbool.h>
#include <stddef.h>

#include "vmm/yaml_api.h"

#define LAB_FILE_MAX (1u << 20)
#define LAB_WHERE_MAX 512

struct lab_file {
    struct yaml_api api;
    const char *name; /* for messages; borrowed */
    bool loaded;
    yaml_document_t document;
};

/* One place in the file; a plain value. */
struct lab_node {
    struct lab_file *file;
    yaml_node_t *node;
    char path[LAB_WHERE_MAX / 2]; /* "guests.web.cpus"; "" at the top */
};

/*
 * Reads one document. name is borrowed for the file's life. 0 and *root; errors, logged by one line
 * that begins with name and line: -EINVAL (no YAML, nothing in it, more than LAB_FILE_MAX bytes),
 * -ENOMEM, of open(2) and read(2), of yaml_api_load(). lab_file_close() is fine after any of them.
 */
int lab_file_open(struct lab_file *file, const char *name, struct lab_node *root);
int lab_file_parse(struct lab_file *file, const char *name, const void *bytes, size_t n,
                   struct lab_node *root);
void lab_file_close(struct lab_file *file);

/* "lab.yaml:12: guests.web.cpus" into to, of LAB_WHERE_MAX bytes; returns to. */
const char *lab_where(const struct lab_node *node, char *to);

/* The text of a scalar, owned by the file; NULL, logged, when the node is none or has a NUL in it. */
const char *lab_scalar(const struct lab_node *node);
/* Whether it is a scalar without a value ("guests:" and nothing behind). */
bool lab_is_empty(const struct lab_node *node);
/* Whether it is a scalar that was written without quotation marks. */
bool lab_is_plain(const struct lab_node *node);

/*
 * Calls each with every key and its value, in order; the first error that it returns ends the walk and
 * is returned. -EINVAL, logged: the node is no mapping, or a key is no scalar or comes twice.
 */
int lab_walk_map(const struct lab_node *map,
                 int (*each)(void *arg, const char *key, const struct lab_node *value), void *arg);
/* Likewise with every item of a list. What is no list is taken for a list of itself; nothing, for an
 * empty one. */
int lab_walk_list(const struct lab_node *list, int (*each)(void *arg, const struct lab_node *item),
                  void *arg);
bool lab_is_map(const struct lab_node *node);

#endif
