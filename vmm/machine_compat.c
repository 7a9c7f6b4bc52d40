/*
 * What two processes compare before a guest moves between them: the processor, memory, devices, disks,
 * files. Everything that does not fit is told at once, each with what would fix it.
 *
 * Composition root. Main thread; the source's vCPUs are parked, the destination's machine need not
 * exist yet for most of it. What the source says is checked like a file's content.
 */
#include "vmm/machine_compat.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "devices/virtio/blk.h"
#include "migration/snapshot.h"
#include "vmm/arch.h"
#include "vmm/machine_internal.h"
#include "vmm/machine_json.h"
#include "vmm/util/log.h"
#include "vmm/vcpu.h"
#include "vmm/vm.h"

/* ---- the source: what is there ---- */

static int list_records(struct device *dev, void *arg)
{
    struct state_part parts[DEVICE_MAX_PARTS];
    unsigned n = dev->ops->state ? dev->ops->state(dev, parts) : 0;

    for (unsigned i = 0; i < n; i++)
        json_array_append_new(arg, json_pack("{s:s, s:i}", "name", parts[i].desc->name, "version",
                                             (int)parts[i].desc->version));
    return 0;
}

static json_t *list_devices(struct machine *m)
{
    json_t *devices = json_array();

    for (unsigned i = 0; i < m->n_devices; i++) {
        json_t *records = json_array();

        (void)machine_on_device(m, i, list_records, records);
        json_array_append_new(devices, json_pack("{s:s, s:s, s:o}", "id", m->devices[i]->id, "type",
                                                 m->devices[i]->ops->type, "records", records));
    }
    return devices;
}

static json_t *list_disks(struct machine *m)
{
    json_t *disks = json_array();

    for (unsigned i = 0; i < m->n_disks; i++)
        json_array_append_new(disks,
                              json_integer((json_int_t)virtio_blk_bytes(m->disks[i])));
    return disks;
}

static int add_text(struct snapshot *hello, enum stream_kind kind, char *text)
{
    int err = text ? snapshot_add(hello, kind, "", text, strlen(text)) : -ENOMEM;

    free(text);
    return err;
}

int machine_introduce(struct machine *m, bool check, struct snapshot *hello)
{
    json_t *json = json_pack("{s:s, s:b, s:o, s:o}", "ferry", FERRY_VERSION, "check", check,
                             "devices", list_devices(m), "disks", list_disks(m));
    struct state_buffer buffer = {0};
    int err;

    if (json)
        machine_introduce_network(m, json);
    err = json ? add_text(hello, STREAM_HELLO, json_dumps(json, JSON_COMPACT)) : -ENOMEM;

    json_decref(json);
    if (!err)
        err = add_text(hello, STREAM_CONFIG, machine_config_to_json(m->config));
    if (!err)
        err = vcpu_describe(vcpus_get(m->vcpus, 0), &buffer);
    if (!err)
        err = snapshot_add(hello, STREAM_PROCESSOR, "", buffer.data, buffer.length);
    state_buffer_fini(&buffer);
    return err;
}

/* ---- the destination: what does not fit ---- */

void machine_mismatch(json_t *report, const char *what, json_t *why, const char *fix)
{
    json_array_append_new(report,
                          json_pack("{s:s, s:o, s:s}", "what", what, "why", why, "fix", fix));
}

static void check_file(json_t *report, const char *what, const char *path)
{
    if (path && access(path, R_OK) < 0)
        machine_mismatch(report, what, json_sprintf("%s: %s", path, strerror(errno)),
                 "copy the file to the same path; the guest needs it when it restarts");
}

/* Whoever has the guest has its disk locked: a lock that is not seen here is on another disk. It also
 * keeps a source that is nobody's friend from having any file of this host opened as a disk. */
static bool locked_by_another(int fd)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

static int64_t bytes_of(int fd)
{
    return lseek(fd, 0, SEEK_END); /* of block devices, too */
}

static void check_disk(json_t *report, unsigned index, const struct disk_options *disk,
                       json_int_t bytes)
{
    char what[32];
    int fd = open(disk->path, (disk->readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC);

    snprintf(what, sizeof(what), "disk%u", index);
    if (fd < 0) {
        machine_mismatch(report, what, json_sprintf("%s: %s", disk->path, strerror(errno)),
                 "make the image available by the same path, on storage that both hosts share");
        return;
    }
    if (bytes_of(fd) != bytes)
        machine_mismatch(report, what,
                 json_sprintf("%s has %lld bytes here, and %lld at the source", disk->path,
                              (long long)bytes_of(fd), (long long)bytes),
                 "make the image available by the same path, on storage that both hosts share");
    else if (!locked_by_another(fd))
        machine_mismatch(report, what,
                 json_sprintf("%s is not the image that the guest uses: the source's lock is not "
                              "seen here", disk->path),
                 "use storage that both hosts share and that supports locks; images are not copied");
    close(fd);
}

static void check_disks(json_t *report, const struct machine_config *config, const json_t *hello)
{
    const json_t *bytes = json_object_get(hello, "disks");

    for (unsigned i = 0; i < config->n_disks; i++)
        check_disk(report, i, &config->disks[i], json_integer_value(json_array_get(bytes, i)));
}

static void check_host(json_t *report, const struct machine_config *config, bool shared)
{
    int kvm_fd = kvm_open();
    struct sysinfo host;

    if (kvm_fd < 0) {
        machine_mismatch(report, "kvm", json_string("guests cannot run on this host"),
                 "ferry doctor tells why");
        return;
    }
    if (config->cpus > kvm_max_vcpus(kvm_fd))
        machine_mismatch(report, "cpus",
                 json_sprintf("%u, and this host's KVM allows %u", config->cpus,
                              kvm_max_vcpus(kvm_fd)),
                 "choose a host whose KVM allows as many");
    close(kvm_fd);
    if (!shared && sysinfo(&host) == 0 &&
        config->memory.size > ((uint64_t)host.totalram + host.totalswap) * host.mem_unit)
        machine_mismatch(report, "memory",
                 json_sprintf("%llu MiB, more than this host has",
                              (unsigned long long)(config->memory.size / MIB)),
                 "choose a host with more memory");
}

/* By a VM for the question alone: what a vCPU shows, only a vCPU can tell. */
int machine_describe_processor(struct state_buffer *out)
{
    const struct memory_config memory = {.size = 2 * MIB};
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    struct vcpus_config config = {.count = 1, .lock = &lock};
    struct guest_memory *mem = NULL;
    struct vcpus *vcpus = NULL;
    struct vm *vm = NULL;
    int err = memory_create(&mem, &memory);

    if (!err)
        err = vm_create(&vm, mem, false);
    config.vm = vm;
    if (!err)
        err = vcpus_create(&vcpus, &config);
    if (!err)
        err = vcpu_describe(vcpus_get(vcpus, 0), out);
    vcpus_destroy(vcpus);
    vm_destroy(vm);
    memory_destroy(mem);
    return err;
}

static int compare_processor(const struct snapshot_section *section,
                             const struct state_buffer *processor, char *missing, size_t size)
{
    struct state_reader there = {.data = section->payload, .length = section->head.length};
    struct state_reader here = {.data = processor->data, .length = processor->length};
    int kvm_fd = kvm_open();
    int err = kvm_fd < 0 ? kvm_fd : arch_processor_compare(kvm_fd, &there, &here, missing, size);

    if (kvm_fd >= 0)
        close(kvm_fd);
    return err;
}

static void check_processor(json_t *report, const struct state_buffer *processor,
                            const struct snapshot *hello)
{
    const struct snapshot_section *section = snapshot_find(hello, STREAM_PROCESSOR, NULL);
    char missing[1024] = "";

    if (!section || compare_processor(section, processor, missing, sizeof(missing)) < 0)
        machine_mismatch(report, "processor", json_string("it cannot be compared; the log here says why"),
                 "use the same version of ferry on both hosts");
    else if (*missing)
        machine_mismatch(report, "processor",
                 json_sprintf("the guest uses what this host lacks: CPUID %s", missing),
                 "choose a host whose processor has it, or restart the guest here");
}

int machine_compare_host(const struct machine_config *config, const struct process *process,
                         const struct state_buffer *processor, const struct snapshot *hello,
                         bool shared, json_t *report)
{
    const struct snapshot_section *section = snapshot_find(hello, STREAM_HELLO, NULL);
    json_t *json = section ? json_loads(section->payload, JSON_REJECT_DUPLICATES, NULL) : NULL;

    if (!json_is_object(json)) {
        json_decref(json);
        return -EBADMSG;
    }
    check_host(report, config, shared);
    check_file(report, "kernel", config->kernel);
    check_file(report, "initrd", config->initrd);
    check_disks(report, config, json);
    check_processor(report, processor, hello);
    machine_compare_network(config, process, json, report);
    json_decref(json);
    return 0;
}

struct device_check {
    json_t *report;
    const json_t *there; /* what the source says of the device */
};

/* Each record that comes must be one that this device has, in a version that it reads. */
static int check_records(struct device *dev, void *arg)
{
    const struct device_check *check = arg;
    const json_t *records = json_object_get(check->there, "records");
    struct state_part parts[DEVICE_MAX_PARTS];
    unsigned n = dev->ops->state ? dev->ops->state(dev, parts) : 0;

    if (json_array_size(records) != n)
        machine_mismatch(check->report, dev->id, json_string("it has another state here"),
                 "use the same version of ferry on both hosts");
    for (unsigned i = 0; i < n && i < json_array_size(records); i++) {
        const json_t *record = json_array_get(records, i);
        const char *name = json_string_value(json_object_get(record, "name"));
        json_int_t version = json_integer_value(json_object_get(record, "version"));
        const struct state_desc *desc = parts[i].desc;

        if (name && strcmp(name, desc->name) == 0 && version >= desc->oldest &&
            version <= desc->version)
            continue;
        machine_mismatch(check->report, dev->id,
                 json_sprintf("its state '%s' is of version %lld, and versions %u to %u are known",
                              name ? name : "", (long long)version, desc->oldest, desc->version),
                 "use the same version of ferry on both hosts");
    }
    return 0;
}

static const json_t *find_device(const json_t *devices, const char *id, const char *type)
{
    for (size_t i = 0; i < json_array_size(devices); i++) {
        const json_t *device = json_array_get(devices, i);
        const char *its_id = json_string_value(json_object_get(device, "id"));
        const char *its_type = json_string_value(json_object_get(device, "type"));

        if (its_id && its_type && strcmp(its_id, id) == 0 && strcmp(its_type, type) == 0)
            return device;
    }
    return NULL;
}

int machine_compare_devices(struct machine *m, const struct snapshot *hello, json_t *report)
{
    const struct snapshot_section *section = snapshot_find(hello, STREAM_HELLO, NULL);
    json_t *json = section ? json_loads(section->payload, JSON_REJECT_DUPLICATES, NULL) : NULL;
    const json_t *devices = json_object_get(json, "devices");
    unsigned wanted = 0;

    for (unsigned i = 0; i < m->n_devices; i++)
        wanted += !device_may_be_absent(m->devices[i]) ||
                  find_device(devices, m->devices[i]->id, m->devices[i]->ops->type);
    if (json_array_size(devices) != wanted)
        machine_mismatch(report, "devices",
                 json_sprintf("the guest has %zu, and %u are made here", json_array_size(devices),
                              wanted),
                 "use the same version of ferry on both hosts");
    for (unsigned i = 0; i < m->n_devices; i++) {
        struct device_check check = {.report = report};
        const struct device *dev = m->devices[i];

        check.there = find_device(devices, dev->id, dev->ops->type);
        if (check.there)
            (void)machine_on_device(m, i, check_records, &check);
        else if (!device_may_be_absent(dev))
            machine_mismatch(report, dev->id, json_sprintf("the source has no %s of that name",
                                                   dev->ops->type),
                     "use the same version of ferry on both hosts");
    }
    json_decref(json);
    return 0;
}

bool machine_asks_to_check(const struct snapshot *hello)
{
    const struct snapshot_section *section = snapshot_find(hello, STREAM_HELLO, NULL);
    json_t *json = section ? json_loads(section->payload, JSON_REJECT_DUPLICATES, NULL) : NULL;
    bool check = json_is_true(json_object_get(json, "check"));

    json_decref(json);
    return check;
}
