/*
 * The machine as a person asked for it: defaults, the lists behind --memory, --disk and --net, and
 * the checks that need the whole.
 *
 * Opens no file and asks the host nothing; the machine's parts do, when they are built. Main thread;
 * no locks. Texts: virtio 1.2 §5.2.6 (a disk's serial), Linux admin-guide/kernel-parameters.
 */
#include "vmm/machine_config.h"

#include <ctype.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "net/uplink_options.h"
#include "vmm/control.h"
#include "vmm/util/log.h"

#define DISK_SERIAL_MAX 20 /* virtio 1.2 §5.2.6 */
#define PAGE 4096u

void machine_config_init(struct machine_config *config)
{
    *config = (struct machine_config){
        .cpus = 1,
        .memory = {.size = 512 * MIB},
        .decompress = DECOMPRESS_AUTO,
        .console = CONSOLE_SERIAL,
        .grace_s = 30,
    };
}

void machine_config_fini(struct machine_config *config)
{
    for (unsigned i = 0; i < config->n_disks; i++) {
        free(config->disks[i].path);
        free(config->disks[i].serial);
    }
    for (unsigned i = 0; i < config->n_nets; i++) {
        free(config->nets[i].text);
        uplink_config_fini(&config->nets[i].uplink);
    }
    free(config->name);
    free(config->lab);
    free(config->kernel);
    free(config->initrd);
    free(config->append);
    *config = (struct machine_config){0};
}

/* ---- --memory ---- */

static int parse_hugepages(const struct option_key *key, const char *text, void *field)
{
    uint64_t size;
    int error = option_parse_size(key, text, &size);

    if (error < 0 || (size != 2 * MIB && size != GIB))
        return -EINVAL;
    *(uint64_t *)field = size;
    return 0;
}

static int parse_dirty_ring(const struct option_key *key, const char *text, void *field)
{
    const struct option_key limits = {.name = key->name, .min = 1024, .max = 65536};
    unsigned entries;

    if (option_parse_number(&limits, text, &entries) < 0 || (entries & (entries - 1)) != 0)
        return -EINVAL;
    *(unsigned *)field = entries;
    return 0;
}

static const struct option_key memory_keys[] = {
    {.name = "size",
     .parse = option_parse_size,
     .offset = offsetof(struct memory_options, size),
     .min = MACHINE_MIN_MEMORY,
     .required = true},
    {.name = "hugepages",
     .parse = parse_hugepages,
     .offset = offsetof(struct memory_options, hugepages),
     .expects = "2M or 1G"},
    {.name = "prealloc",
     .parse = option_parse_bool,
     .offset = offsetof(struct memory_options, prealloc)},
    {.name = "dirty-ring",
     .parse = parse_dirty_ring,
     .offset = offsetof(struct memory_options, dirty_ring),
     .expects = "a power of two from 1024 to 65536"},
    {0},
};

int machine_config_set_memory(struct machine_config *config, const struct option_list *list)
{
    char size[OPTION_SIZE_MAX], page_size[OPTION_SIZE_MAX];
    struct memory_options memory = {0};
    uint64_t page, seen;
    int error = option_list_read(list, memory_keys, &memory, &seen);

    if (error < 0)
        return error;
    page = memory.hugepages ? memory.hugepages : PAGE;
    if (memory.size % page != 0) {
        option_format_size(memory.size, size, sizeof(size));
        option_format_size(page, page_size, sizeof(page_size));
        log_error("%s: '%s' is not valid: a multiple of the page size, %s, was expected",
                  list->where, size, page_size);
        return -EINVAL;
    }
    config->memory = memory;
    return 0;
}

/* ---- --disk ---- */

static int parse_serial(const struct option_key *key, const char *text, void *field)
{
    if (strlen(text) > DISK_SERIAL_MAX)
        return -EINVAL;
    for (const char *c = text; *c; c++) {
        if (!isgraph((unsigned char)*c))
            return -EINVAL;
    }
    return option_parse_string(key, text, field);
}

static const struct option_key disk_keys[] = {
    {.name = "path",
     .parse = option_parse_string,
     .offset = offsetof(struct disk_options, path),
     .expects = "the path of a raw image or of a block device",
     .required = true},
    {.name = "readonly",
     .parse = option_parse_bool,
     .offset = offsetof(struct disk_options, readonly)},
    {.name = "direct",
     .parse = option_parse_bool,
     .offset = offsetof(struct disk_options, direct)},
    {.name = "serial",
     .parse = parse_serial,
     .offset = offsetof(struct disk_options, serial),
     .expects = "1 to 20 printable characters without a space"},
    {.name = "event_idx",
     .parse = option_parse_bool,
     .offset = offsetof(struct disk_options, event_idx)},
    {.name = "indirect",
     .parse = option_parse_bool,
     .offset = offsetof(struct disk_options, indirect)},
    {.name = "packed",
     .parse = option_parse_bool,
     .offset = offsetof(struct disk_options, packed)},
    {0},
};

int machine_config_put_disk(struct machine_config *config, const struct option_list *list)
{
    struct disk_options *disk;
    uint64_t seen;

    if (config->n_disks == MACHINE_MAX_DISKS) {
        log_error("%s: '%s' is one too many: at most %u disks were expected", list->where,
                  list->text, MACHINE_MAX_DISKS);
        return -ENOSPC;
    }
    disk = &config->disks[config->n_disks++];
    disk->event_idx = disk->indirect = disk->packed = true;
    return option_list_read(list, disk_keys, disk, &seen);
}

/* ---- --net ---- */

static const struct option_key net_keys[] = {
    {.name = "kind",
     .parse = option_parse_choice,
     .offset = offsetof(struct net_options, uplink.kind),
     .choices = uplink_kinds,
     .expects = UPLINK_KINDS_TEXT " or none"},
    {.name = "mac",
     .parse = option_parse_mac,
     .offset = offsetof(struct net_options, mac)},
    {.name = "switch",
     .parse = net_parse_name,
     .offset = offsetof(struct net_options, switch_name),
     .expects = "a switch's name, of at most 31 letters, digits, '.', '_' or '-',"},
    {.name = "port",
     .parse = net_parse_name,
     .offset = offsetof(struct net_options, port.name),
     .expects = "a port's name, of at most 31 letters, digits, '.', '_' or '-',"},
    {.name = "monitor",
     .parse = option_parse_bool,
     .offset = offsetof(struct net_options, monitor)},
    SWITCH_PORT_KEYS(struct net_options, port),
    UPLINK_KEYS(struct net_options, uplink),
    NET_CARD_KEYS(struct net_options, card),
    {0},
};

_Static_assert(sizeof(net_keys) / sizeof(net_keys[0]) <= 64, "a bit for each key");

/* Those that go with switch= only, and those that go with anything. */
static const struct option_key switch_keys[] = {
    {.name = "port"}, {.name = "monitor"}, SWITCH_PORT_KEYS(struct net_options, port), {0}};
static const struct option_key card_keys[] = {
    {.name = "mac"}, {.name = "switch"}, NET_CARD_KEYS(struct net_options, card), {0}};

static bool is_among(const struct option_key *keys, const char *name)
{
    for (; keys->name; keys++)
        if (strcmp(keys->name, name) == 0)
            return true;
    return false;
}

static bool key_applies(const struct net_options *net, const char *name)
{
    if (is_among(card_keys, name))
        return true;
    if (net->switch_name[0])
        return is_among(switch_keys, name);
    return !is_among(switch_keys, name) && uplink_key_applies(&net->uplink, name);
}

/* The port's name may be made up later, see finish_port(). */
static int check_port(const char *where, struct switch_port_config port)
{
    if (!port.name[0])
        strcpy(port.name, "port");
    return switch_port_config_check(where, &port);
}

/* Whether each key that came goes with the mode. */
static int check_net_keys(const struct option_list *list, const struct net_options *net,
                          uint64_t seen)
{
    bool has_mode = seen & 1; /* keys[0] */

    if (!has_mode && !net->switch_name[0]) {
        log_error("%s: '%s' lacks a mode, such as nat, or switch=", list->where, list->text);
        return -EINVAL;
    }
    for (unsigned i = 0; net_keys[i].name; i++) {
        if (!(seen & 1ull << i) || key_applies(net, net_keys[i].name))
            continue;
        log_error("%s: %s= does not go together with %s", list->where, net_keys[i].name,
                  net->switch_name[0] ? "switch=" : uplink_mode_name(&net->uplink));
        return -EINVAL;
    }
    if (net->switch_name[0])
        return check_port(list->where, net->port);
    return uplink_config_check(list->where, &net->uplink);
}

int machine_config_put_net(struct machine_config *config, const struct option_list *list)
{
    bool none = list->n_items == 1 && strcmp(list->text, "none") == 0;
    struct net_options *net;
    uint64_t seen;
    int error;

    if ((none && config->n_nets > 0) || config->no_net) {
        log_error("%s: 'none' does not go together with another network card", list->where);
        return -EINVAL;
    }
    if (none) {
        config->no_net = true;
        return 0;
    }
    if (config->n_nets == MACHINE_MAX_NETS) {
        log_error("%s: '%s' is one too many: at most %u network cards were expected", list->where,
                  list->text, MACHINE_MAX_NETS);
        return -ENOSPC;
    }
    net = &config->nets[config->n_nets++];
    uplink_config_init(&net->uplink);
    net_card_init(&net->card);
    net->text = strdup(list->text);
    if (!net->text)
        return -ENOMEM;
    error = option_list_read(list, net_keys, net, &seen);
    if (!net->card.mtu)
        net->card.mtu = uplink_default_mtu(&net->uplink);
    net->uplink.mtu = net->card.mtu;
    net->uplink.queues = net->card.queues < UPLINK_MAX_QUEUES ? net->card.queues : UPLINK_MAX_QUEUES;
    return error < 0 ? error : check_net_keys(list, net, seen);
}

/* ---- from one text ---- */

static int add_text(struct machine_config *config, const char *where, const char *text,
                    int (*add)(struct machine_config *config, const struct option_list *list))
{
    struct option_list list = {0};
    int error = option_list_split(&list, where, text);

    if (!error)
        error = add(config, &list);
    option_list_fini(&list);
    return error;
}

int machine_config_add_memory(struct machine_config *config, const char *text)
{
    return add_text(config, "--memory", text, machine_config_set_memory);
}

int machine_config_add_disk(struct machine_config *config, const char *text)
{
    return add_text(config, "--disk", text, machine_config_put_disk);
}

int machine_config_add_net(struct machine_config *config, const char *text)
{
    return add_text(config, "--net", text, machine_config_put_net);
}

/* ---- the whole ---- */

/* The command line when --append was not given: what makes the kernel talk and find its root. */
static char *default_append(const struct machine_config *config)
{
    static const char *const consoles[] = {
        [CONSOLE_SERIAL] = "console=ttyS0",
        [CONSOLE_VIRTIO] = "console=hvc0",
        [CONSOLE_OFF] = "",
    };
    const char *root = "";
    char *append;

    if (config->n_disks > 0 && !config->initrd)
        root = config->disks[0].readonly ? " root=/dev/vda ro" : " root=/dev/vda rw";
    if (asprintf(&append, "%s%s", consoles[config->console], root) < 0)
        return NULL;
    return append;
}

/* FNV-1a, 64 bits. */
static uint64_t hash_text(uint64_t hash, const char *text)
{
    for (const char *c = text; *c; c++)
        hash = (hash ^ (uint8_t)*c) * 0x100000001B3u;
    return hash;
}

/*
 * A station's address of our own making: locally administered (IEEE 802 §8.4), the same for the
 * same names and place, so that a guest with a name finds its NIC unchanged at its next start.
 */
static struct option_mac default_mac(const struct machine_config *config, unsigned index)
{
    struct option_mac mac = {.bytes = {0x02}, .given = true};
    uint64_t hash = hash_text(0xCBF29CE484222325u, config->name);

    if (config->lab)
        hash = hash_text(hash_text(hash, "/"), config->lab);
    hash = (hash ^ index) * 0x100000001B3u;
    for (unsigned i = 1; i < 6; i++)
        mac.bytes[i] = (uint8_t)(hash >> 8 * i);
    return mac;
}

/* Whether one of the NICs before this one has its address. */
static bool mac_taken(const struct machine_config *config, unsigned index)
{
    for (unsigned i = 0; i < index; i++) {
        if (memcmp(config->nets[i].mac.bytes, config->nets[index].mac.bytes, 6) == 0)
            return true;
    }
    return false;
}

/* The port's name is the guest's with the NIC's number behind it. */
static int finish_port(struct machine_config *config, unsigned index, const char *where)
{
    struct net_options *net = &config->nets[index];
    char name[CONTROL_NAME_MAX + 16];

    net->port.kind = net->monitor ? SWITCH_PORT_MIRROR : SWITCH_PORT_GUEST;
    net->port.mac = net->mac;
    if (net->port.name[0])
        return 0;
    snprintf(name, sizeof(name), "%s%u", config->name, index);
    if (!net_name_valid(name)) {
        log_error("%s: a network card's port needs a name, port=, because '%s' is too long for one",
                  where, name);
        return -EINVAL;
    }
    memcpy(net->port.name, name, strlen(name) + 1);
    return 0;
}

static int finish_nets(struct machine_config *config, const char *where)
{
    for (unsigned i = 0; i < config->n_nets; i++) {
        struct net_options *net = &config->nets[i];

        if (!net->mac.given)
            net->mac = default_mac(config, i);
        if (net->switch_name[0] && finish_port(config, i, where) < 0)
            return -EINVAL;
        if (mac_taken(config, i)) {
            log_error("%s: two network cards have the same mac=", where);
            return -EINVAL;
        }
    }
    return 0;
}

int machine_config_draw_macs(struct machine_config *config)
{
    for (unsigned i = 0; i < config->n_nets; i++) {
        struct option_mac *mac = &config->nets[i].mac;

        if (getrandom(mac->bytes + 1, sizeof(mac->bytes) - 1, 0) < 0)
            return -errno;
        mac->bytes[0] = 0x02; /* locally administered, one station's */
        config->nets[i].port.mac = *mac;
    }
    return 0;
}

int machine_config_finish(struct machine_config *config)
{
    return machine_config_finish_at(config, "--net");
}

int machine_config_finish_at(struct machine_config *config, const char *where)
{
    if (!config->kernel) {
        log_error("--kernel is missing: say which kernel to boot, as in --kernel vmlinuz");
        return -EINVAL;
    }
    if (!config->name && asprintf(&config->name, "ferry-%d", (int)getpid()) < 0) {
        config->name = NULL;
        goto no_memory;
    }
    if (control_check_name(config->name) < 0) {
        log_error("--name: '%s' is not valid: at most %d letters, digits, '.', '_' or '-' were "
                  "expected, '.' and '-' not first", config->name, CONTROL_NAME_MAX);
        return -EINVAL;
    }
    if (!config->append) {
        config->append = default_append(config);
        if (!config->append)
            goto no_memory;
    }
    return finish_nets(config, where);

no_memory:
    log_error("out of memory");
    return -ENOMEM;
}
