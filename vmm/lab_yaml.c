/*
 * YAML as lab files have it, by libyaml: reading a document, walking it, naming places in it.
 *
 * Knows no schema (lab_config.c). Of a scalar's tag nothing is made: its text is what counts, as on
 * the command line. No state but the file's; one thread at a time. Text: YAML 1.1.
 */
#include "vmm/lab_yaml.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vmm/util/log.h"

#define MAX_KEYS 1000 /* of a mapping: that none comes twice takes its square in time */

/* ---- reading ---- */

static int refuse_document(const struct lab_file *file, const yaml_parser_t *parser)
{
    if (parser->error == YAML_MEMORY_ERROR) {
        log_error("%s: out of memory", file->name);
        return -ENOMEM;
    }
    log_error("%s:%zu: this is no YAML: %s%s%s", file->name, parser->problem_mark.line + 1,
              parser->problem ? parser->problem : "an error", parser->context ? " " : "",
              parser->context ? parser->context : "");
    return -EINVAL;
}

int lab_file_parse(struct lab_file *file, const char *name, const void *bytes, size_t n,
                   struct lab_node *root)
{
    yaml_parser_t parser;
    int err;

    *file = (struct lab_file){.name = name};
    err = yaml_api_load(&file->api);
    if (err)
        return err;
    if (!file->api.initialize(&parser)) {
        log_error("%s: out of memory", name);
        return -ENOMEM;
    }
    file->api.set_input(&parser, bytes, n);
    file->loaded = file->api.load(&parser, &file->document);
    if (!file->loaded)
        err = refuse_document(file, &parser);
    file->api.delete(&parser);
    if (err)
        return err;
    *root = (struct lab_node){.file = file, .node = file->api.get_root(&file->document)};
    if (root->node)
        return 0;
    log_error("%s: nothing is in it", name);
    return -EINVAL;
}

/* All of a file into a buffer of LAB_FILE_MAX + 1 bytes. Returns how many, or a negative errno. */
static ssize_t read_all(int fd, char *bytes)
{
    size_t n = 0;

    while (n <= LAB_FILE_MAX) {
        ssize_t got = read(fd, bytes + n, LAB_FILE_MAX + 1 - n);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            break;
        n += (size_t)got;
    }
    return (ssize_t)n;
}

int lab_file_open(struct lab_file *file, const char *name, struct lab_node *root)
{
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    char *bytes = NULL;
    ssize_t n = fd < 0 ? -errno : 0;

    *file = (struct lab_file){.name = name};
    if (fd >= 0) {
        bytes = malloc(LAB_FILE_MAX + 1);
        n = bytes ? read_all(fd, bytes) : -ENOMEM;
        close(fd);
    }
    if (n < 0) {
        log_error("cannot read %s: %s", name, strerror((int)-n));
    } else if (n > LAB_FILE_MAX) {
        log_error("%s: it is longer than a lab's file may be, %u bytes", name, LAB_FILE_MAX);
        n = -EINVAL;
    } else {
        n = lab_file_parse(file, name, bytes, (size_t)n, root);
    }
    free(bytes);
    return (int)n;
}

void lab_file_close(struct lab_file *file)
{
    if (file->loaded)
        file->api.delete_document(&file->document);
    file->loaded = false;
}

/* ---- places ---- */

const char *lab_where(const struct lab_node *node, char *to)
{
    snprintf(to, LAB_WHERE_MAX, "%s:%zu%s%s", node->file->name, node->node->start_mark.line + 1,
             node->path[0] ? ": " : "", node->path);
    return to;
}

static void refuse(const struct lab_node *node, const char *what)
{
    char where[LAB_WHERE_MAX];

    log_error("%s: %s", lab_where(node, where), what);
}

/* ---- values ---- */

bool lab_is_map(const struct lab_node *node)
{
    return node->node->type == YAML_MAPPING_NODE;
}

bool lab_is_plain(const struct lab_node *node)
{
    return node->node->type == YAML_SCALAR_NODE &&
           node->node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
}

bool lab_is_empty(const struct lab_node *node)
{
    return lab_is_plain(node) && node->node->data.scalar.length == 0;
}

const char *lab_scalar(const struct lab_node *node)
{
    const yaml_node_t *n = node->node;

    if (n->type != YAML_SCALAR_NODE) {
        refuse(node, n->type == YAML_SEQUENCE_NODE ? "one value was expected, not a list"
                                                   : "one value was expected, not a mapping");
        return NULL;
    }
    if (strlen((const char *)n->data.scalar.value) != n->data.scalar.length) {
        refuse(node, "a NUL byte is in it");
        return NULL;
    }
    return (const char *)n->data.scalar.value;
}

/* ---- walks ---- */

static struct lab_node child(const struct lab_node *parent, int index)
{
    struct lab_file *file = parent->file;

    return (struct lab_node){.file = file, .node = file->api.get_node(&file->document, index)};
}

static bool came_before(const struct lab_node *map, const yaml_node_pair_t *pair, const char *key)
{
    for (const yaml_node_pair_t *p = map->node->data.mapping.pairs.start; p < pair; p++) {
        struct lab_node other = child(map, p->key);

        if (other.node->type == YAML_SCALAR_NODE &&
            strcmp((const char *)other.node->data.scalar.value, key) == 0)
            return true;
    }
    return false;
}

int lab_walk_map(const struct lab_node *map,
                 int (*each)(void *arg, const char *key, const struct lab_node *value), void *arg)
{
    int err = 0;

    if (!lab_is_map(map)) {
        refuse(map, "a mapping was expected: KEY: VALUE, line by line");
        return -EINVAL;
    }
    if (map->node->data.mapping.pairs.top - map->node->data.mapping.pairs.start > MAX_KEYS) {
        refuse(map, "these are too many keys");
        return -EINVAL;
    }
    for (const yaml_node_pair_t *pair = map->node->data.mapping.pairs.start;
         !err && pair < map->node->data.mapping.pairs.top; pair++) {
        struct lab_node key = child(map, pair->key), value = child(map, pair->value);
        const char *name;

        snprintf(key.path, sizeof(key.path), "%s", map->path);
        name = lab_scalar(&key);
        if (!name)
            return -EINVAL;
        snprintf(value.path, sizeof(value.path), "%.150s%s%.100s", map->path,
                 map->path[0] ? "." : "", name);
        /* A value on the lines below its key is spoken of by the key's line. */
        if (value.node->type != YAML_SCALAR_NODE || lab_is_empty(&value))
            value.node->start_mark.line = key.node->start_mark.line;
        if (came_before(map, pair, name)) {
            value.node->start_mark.line = key.node->start_mark.line;
            refuse(&value, "the key was given twice");
            return -EINVAL;
        }
        err = each(arg, name, &value);
    }
    return err;
}

int lab_walk_list(const struct lab_node *list, int (*each)(void *arg, const struct lab_node *item),
                  void *arg)
{
    unsigned n = 0;
    int err = 0;

    if (lab_is_empty(list))
        return 0;
    if (list->node->type != YAML_SEQUENCE_NODE)
        return each(arg, list);
    for (const yaml_node_item_t *i = list->node->data.sequence.items.start;
         !err && i < list->node->data.sequence.items.top; i++) {
        struct lab_node item = child(list, *i);

        snprintf(item.path, sizeof(item.path), "%.230s[%u]", list->path, n++);
        err = each(arg, &item);
    }
    return err;
}
