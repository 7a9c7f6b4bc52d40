/*
 * What a machine answers on its control socket: the paths and names of the Cloud Hypervisor API
 * (/api/v1), as far as Ferry has what they name.
 *
 * Composition root. The event loop's thread; no handler blocks longer than parking the vCPUs takes.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "devices/chardev.h"
#include "devices/virtio/blk.h"
#include "devices/virtio/net.h"
#include "vmm/control.h"
#include "vmm/control_body.h"
#include "vmm/machine_internal.h"
#include "vmm/process.h"

static json_t *describe_disks(const struct machine_config *config)
{
    json_t *disks = json_array();

    for (unsigned i = 0; i < config->n_disks; i++)
        json_array_append_new(disks, json_pack("{s:s, s:b, s:b}", "path", config->disks[i].path,
                                               "readonly", config->disks[i].readonly, "direct",
                                               config->disks[i].direct));
    return disks;
}

static json_t *describe_nets(const struct machine_config *config)
{
    json_t *nets = json_array();

    for (unsigned i = 0; i < config->n_nets; i++) {
        const struct net_options *net = &config->nets[i];
        const uint8_t *mac = net->mac.bytes;
        bool switched = net->switch_name[0] != '\0';

        json_array_append_new(
            nets, json_pack("{s:s, s:s*, s:s*, s:o}", "mode",
                            switched ? "switch" : uplink_mode_name(&net->uplink), "switch",
                            switched ? net->switch_name : NULL, "port",
                            switched ? net->port.name : NULL, "mac",
                            json_sprintf("%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2],
                                         mac[3], mac[4], mac[5])));
    }
    return nets;
}

/* Of the two consoles that a guest may have, the one that is connected. */
static json_t *describe_console(const struct machine *m, enum console_kind kind)
{
    if (m->config->console != kind)
        return json_pack("{s:s}", "mode", kind == CONSOLE_SERIAL ? "Null" : "Off");
    if (!m->config->console_socket)
        return json_pack("{s:s}", "mode", "Tty");
    return json_pack("{s:s, s:s}", "mode", "Socket", "socket", m->console_path);
}

static const char *state_of(const struct machine *m)
{
    if (m->ended)
        return "Shutdown";
    if (m->in_doubt)
        return "InDoubt";
    if (m->arrival)
        return "Receiving";
    if (m->saving)
        return m->save_path ? "Saving" : "Migrating";
    return m->paused ? "Paused" : "Running";
}

json_t *machine_describe(const struct machine *m)
{
    const struct machine_config *c = m->config;

    return json_pack(
        "{s:s, s:i, s:s, s:I, s:{s:{s:i, s:i}, s:{s:I}, s:{s:s, s:s?, s:s}, s:o, s:o, s:o, s:o}}",
        "name", c->name, "pid", (int)getpid(), "state", state_of(m), "memory_actual_size",
        (json_int_t)c->memory.size, "config", "cpus", "boot_vcpus", (int)c->cpus, "max_vcpus",
        (int)c->cpus, "memory", "size", (json_int_t)c->memory.size, "payload", "kernel", c->kernel,
        "initramfs", c->initrd, "cmdline", c->append, "disks", describe_disks(c), "net",
        describe_nets(c), "serial", describe_console(m, CONSOLE_SERIAL), "console",
        describe_console(m, CONSOLE_VIRTIO));
}

static int info(void *opaque, const json_t *body, json_t **reply)
{
    (void)body;
    *reply = machine_describe(opaque);
    return *reply ? 0 : -ENOMEM;
}

static void describe_disk_counters(const struct machine *m, json_t *all)
{
    char id[16];

    for (unsigned i = 0; i < m->n_disks; i++) {
        struct virtio_blk_counters c;

        virtio_blk_get_counters(m->disks[i], &c);
        snprintf(id, sizeof(id), "disk%u", i);
        json_object_set_new(all, id, json_pack("{s:I, s:I, s:I, s:I}", "read_ops",
                                               (json_int_t)c.read_ops, "read_bytes",
                                               (json_int_t)c.read_bytes, "write_ops",
                                               (json_int_t)c.write_ops, "write_bytes",
                                               (json_int_t)c.write_bytes));
    }
}

static void describe_nic_counters(const struct machine *m, json_t *all)
{
    for (unsigned i = 0; i < m->config->n_nets; i++) {
        struct virtio_net_counters c;

        if (!m->nics[i].card)
            continue;
        virtio_net_get_counters(m->nics[i].card, &c);
        json_object_set_new(
            all, m->nics[i].id,
            json_pack("{s:I, s:I, s:I, s:I}", "rx_frames", (json_int_t)c.rx_frames, "rx_bytes",
                      (json_int_t)c.rx_bytes, "tx_frames", (json_int_t)c.tx_frames, "tx_bytes",
                      (json_int_t)c.tx_bytes));
    }
}

/* What devices counted, by their names. */
static int count(void *opaque, const json_t *body, json_t **reply)
{
    struct machine *m = opaque;

    (void)body;
    *reply = json_object();
    pthread_mutex_lock(&m->lock);
    describe_disk_counters(m, *reply);
    describe_nic_counters(m, *reply);
    pthread_mutex_unlock(&m->lock);
    return *reply ? 0 : -ENOMEM;
}

static int pause_vm(void *opaque, const json_t *body, json_t **reply)
{
    struct machine *m = opaque;
    int err = machine_pause(m);

    (void)body;
    if (err == -EALREADY)
        *reply = json_string(m->saving ? "the guest is being saved or migrated"
                                       : "the guest is paused already");
    return err;
}

/* Takes {"force": true} for a guest that may run elsewhere. */
static int resume_vm(void *opaque, const json_t *body, json_t **reply)
{
    struct machine *m = opaque;
    bool force = json_is_true(json_object_get(body, "force"));
    int err = force ? machine_resume_by_force(m) : machine_resume(m);

    if (err == -EALREADY && m->in_doubt)
        *reply = json_string("the guest may run elsewhere; if it does not and will not, force it");
    else if (err == -EALREADY)
        *reply = json_string(m->saving ? "the guest is being saved or migrated"
                                       : "the guest is not paused");
    else if (err == -EBUSY)
        *reply = json_string("another process has a disk of the guest: it runs there");
    return err;
}

static int press_power_button(void *opaque, const json_t *body, json_t **reply)
{
    const struct machine *m = opaque;

    (void)body;
    if (m->paused) {
        *reply = json_string("the guest is paused and would not notice; resume it first");
        return -EALREADY;
    }
    machine_press_power_button(opaque);
    return 0;
}

/* Ferry's own: what Ctrl-a b at a console does. */
static int send_break(void *opaque, const json_t *body, json_t **reply)
{
    struct machine *m = opaque;
    struct chardev *console = m->virtio_console ? m->virtio_console : m->serial;
    int err;

    (void)body;
    pthread_mutex_lock(&m->lock);
    err = chardev_break(console);
    pthread_mutex_unlock(&m->lock);
    if (!err)
        return 0;
    *reply = json_string("its console is no serial port, and knows no break");
    return -EALREADY;
}

static int reboot_vm(void *opaque, const json_t *body, json_t **reply)
{
    const struct machine *m = opaque;

    (void)body;
    if (m->saving || m->in_doubt) {
        *reply = json_string("the guest is being saved or migrated");
        return -EALREADY;
    }
    if (m->config->no_reboot) {
        *reply = json_string("the guest was started with --no-reboot");
        return -EALREADY;
    }
    machine_restart(opaque, "asked for by the control socket");
    return 0;
}

struct snapshot_body {
    const char *url;
    int live;
};

static const struct control_key snapshot_keys[] = {
    {"destination_url", CONTROL_TEXT, offsetof(struct snapshot_body, url), 0, 0},
    {"live", CONTROL_FLAG, offsetof(struct snapshot_body, live), 0, 0},
    {0},
};

/* Takes {"destination_url": "file:///PATH", "live": true}; answers when all is on the disk, or nothing is. */
static int snapshot_vm(void *opaque, const json_t *body, json_t **reply)
{
    static const char scheme[] = "file://";
    struct machine *m = opaque;
    struct snapshot_body asked = {0};

    if (control_read_body(body, snapshot_keys, &asked, reply) < 0)
        return -EINVAL;
    if (!asked.url || strncmp(asked.url, scheme, strlen(scheme)) != 0 ||
        asked.url[strlen(scheme)] != '/') {
        *reply = json_string("destination_url: file:///PATH was expected");
        return -EINVAL;
    }
    if (m->save_path || m->in_doubt || machine_is_moving(m) ||
        control_busy(process_control(m->process), m)) {
        *reply = json_string("the guest is being saved or migrated already");
        return -EALREADY;
    }
    m->save_live = asked.live;
    m->save_path = strdup(asked.url + strlen(scheme));
    if (!m->save_path)
        return -ENOMEM;
    loop_stop(m->loop); /* process_run() goes on with it, outside of any callback */
    return -EINPROGRESS;
}

/* The answer leaves before the loop notices the end. A guest that has ended is nowhere kept, so there is
 * no more to vm.delete. */
static int shut_down(void *opaque, const json_t *body, json_t **reply)
{
    (void)body;
    (void)reply;
    machine_quit(opaque);
    return 0;
}

const struct control_route machine_routes[] = {
    {"GET", "/api/v1/vm.info", info},
    {"GET", "/api/v1/vm.counters", count},
    {"PUT", "/api/v1/vm.delete", shut_down},
    {"PUT", "/api/v1/vm.pause", pause_vm},
    {"PUT", "/api/v1/vm.resume", resume_vm},
    {"PUT", "/api/v1/vm.power-button", press_power_button},
    {"PUT", "/api/v1/vm.reboot", reboot_vm},
    {"PUT", "/api/v1/vm.send-break", send_break},
    {"PUT", "/api/v1/vm.snapshot", snapshot_vm},
    {"PUT", "/api/v1/vm.shutdown", shut_down},
    {0},
};
