/*
 * What a machine is built from, to JSON and back. Lists stand in it as on the command line, so that
 * one parser checks both. Composition root; no state.
 */
#include "vmm/machine_json.h"

#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/util/log.h"

/* An absolute path, or the one that was given where the file is gone. */
static json_t *absolute(const char *path)
{
    char *real = path ? realpath(path, NULL) : NULL;
    json_t *json = real || path ? json_string(real ? real : path) : json_null();

    free(real);
    return json;
}

/* A path in a list: its commas are doubled. */
static size_t escape_commas(const char *path, char *to, size_t size)
{
    size_t n = 0;

    for (; *path && n + 2 < size; path++) {
        if (*path == ',')
            to[n++] = ',';
        to[n++] = *path;
    }
    to[n] = '\0';
    return *path ? 0 : n;
}

static json_t *disk_text(const struct disk_options *disk)
{
    char escaped[2 * PATH_MAX], *real = realpath(disk->path, NULL);
    json_t *json = NULL;

    if (escape_commas(real ? real : disk->path, escaped, sizeof(escaped)) > 0)
        json = json_sprintf("path=%s,readonly=%s,direct=%s%s%s%s%s%s", escaped,
                            disk->readonly ? "on" : "off", disk->direct ? "on" : "off",
                            disk->serial ? ",serial=" : "", disk->serial ? disk->serial : "",
                            disk->event_idx ? "" : ",event_idx=off",
                            disk->indirect ? "" : ",indirect=off",
                            disk->packed ? "" : ",packed=off");
    free(real);
    return json;
}

static json_t *net_json(const struct net_options *net)
{
    const uint8_t *mac = net->mac.bytes;

    return json_pack("{s:s, s:o}", "options", net->text, "mac",
                     json_sprintf("%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3],
                                  mac[4], mac[5]));
}

static json_t *memory_text(const struct memory_options *memory)
{
    char ring[32] = "";

    if (memory->dirty_ring)
        snprintf(ring, sizeof(ring), ",dirty-ring=%u", memory->dirty_ring);
    return json_sprintf("%lluK%s%s%s", (unsigned long long)(memory->size / KIB),
                        memory->hugepages == 2 * MIB ? ",hugepages=2M"
                        : memory->hugepages          ? ",hugepages=1G"
                                                     : "",
                        memory->prealloc ? ",prealloc=on" : "", ring);
}

char *machine_config_to_json(const struct machine_config *config)
{
    json_t *disks = json_array(), *nets = json_array(), *json;
    char *text = NULL;

    for (unsigned i = 0; i < config->n_disks; i++)
        json_array_append_new(disks, disk_text(&config->disks[i]));
    for (unsigned i = 0; i < config->n_nets; i++)
        json_array_append_new(nets, net_json(&config->nets[i]));
    json = json_pack("{s:s, s:i, s:o, s:o, s:o, s:s, s:i, s:i, s:b, s:i, s:o, s:o}", "name",
                     config->name, "cpus", (int)config->cpus, "memory",
                     memory_text(&config->memory), "kernel", absolute(config->kernel), "initrd",
                     absolute(config->initrd), "append", config->append, "decompress",
                     (int)config->decompress, "console", (int)config->console, "no_reboot",
                     config->no_reboot, "grace", (int)config->grace_s, "disks", disks, "nets",
                     nets);
    if (json)
        text = json_dumps(json, JSON_INDENT(1));
    json_decref(json);
    return text;
}

static int add_disks(struct machine_config *config, const json_t *disks)
{
    const json_t *disk;
    size_t i;

    json_array_foreach(disks, i, disk) {
        const char *text = json_string_value(disk);
        int err = text ? machine_config_add_disk(config, text) : -EINVAL;

        if (err)
            return err;
    }
    return 0;
}

static int add_nets(struct machine_config *config, const json_t *nets)
{
    static const struct option_key mac_key = {.name = "mac", .parse = option_parse_mac};
    json_t *net;
    size_t i;

    json_array_foreach(nets, i, net) {
        const char *text, *mac;
        int err = json_unpack(net, "{s:s, s:s}", "options", &text, "mac", &mac) < 0
                      ? -EINVAL
                      : machine_config_add_net(config, text);

        if (!err)
            err = option_set("--net", &mac_key, mac, &config->nets[config->n_nets - 1].mac);
        if (err)
            return err;
    }
    return 0;
}

static int copy(char **to, const char *from)
{
    *to = from ? strdup(from) : NULL;
    return from && !*to ? -ENOMEM : 0;
}

static int fill(struct machine_config *config, json_t *json, const char *name)
{
    const char *saved_name, *memory, *kernel, *append;
    int cpus, decompress, console, no_reboot, grace, err;
    json_t *initrd, *disks, *nets;

    if (json_unpack(json, "{s:s, s:i, s:s, s:s, s:o, s:s, s:i, s:i, s:b, s:i, s:o, s:o}", "name",
                    &saved_name, "cpus", &cpus, "memory", &memory, "kernel", &kernel, "initrd",
                    &initrd, "append", &append, "decompress", &decompress, "console", &console,
                    "no_reboot", &no_reboot, "grace", &grace, "disks", &disks, "nets", &nets) < 0)
        return -EINVAL;
    if (cpus < 1 || cpus > MACHINE_MAX_CPUS || decompress < DECOMPRESS_AUTO ||
        decompress > DECOMPRESS_GUEST || console < CONSOLE_SERIAL || console > CONSOLE_OFF ||
        grace < 0 || !json_is_array(disks) || !json_is_array(nets))
        return -EINVAL;
    config->cpus = (unsigned)cpus;
    config->decompress = (enum decompress_mode)decompress;
    config->console = (enum console_kind)console;
    config->no_reboot = no_reboot;
    config->grace_s = (unsigned)grace;
    err = copy(&config->name, name ? name : saved_name);
    if (!err)
        err = copy(&config->kernel, kernel);
    if (!err)
        err = copy(&config->initrd, json_string_value(initrd));
    if (!err)
        err = copy(&config->append, append);
    if (!err)
        err = machine_config_add_memory(config, memory);
    if (!err)
        err = add_disks(config, disks);
    return err ? err : add_nets(config, nets);
}

int machine_config_from_json(struct machine_config *config, const char *text, const char *name,
                             const char *where)
{
    json_t *json = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    int err = json ? fill(config, json, name) : -EINVAL;

    json_decref(json);
    if (err)
        log_error("%s: its description of the machine is not valid: %s", where, strerror(-err));
    return err ? err : machine_config_finish(config);
}
