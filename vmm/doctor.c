/*
 * The doctor's examination: KVM and its capabilities, io_uring, tun, memory, userfaultfd.
 *
 * Changes nothing on the host. Each check adds one finding in plain words and the same fact in JSON.
 * Does not print (cmd_doctor.c). Main thread; no locks.
 * Texts: KVM's api.rst §4.1, §4.4; the kernel's admin-guide/sysctl/kernel.rst (io_uring_disabled),
 * admin-guide/mm/hugetlbpage.rst, admin-guide/mm/userfaultfd.rst.
 */
#include "vmm/doctor.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "migration/tls_api.h"
#include "net/slirp_api.h"
#include "vmm/arch.h"
#include "vmm/http_api.h"
#include "vmm/memory.h"
#include "vmm/memory_file.h"
#include "vmm/probe.h"
#include "vmm/util/log.h"
#include "vmm/vm.h"
#include "vmm/yaml_api.h"

#define IO_URING_SWITCH "/proc/sys/kernel/io_uring_disabled"

static void add(struct diagnosis *diagnosis, enum verdict verdict, const char *name,
                const char *advice, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

static void add(struct diagnosis *diagnosis, enum verdict verdict, const char *name,
                const char *advice, const char *format, ...)
{
    struct finding *finding;
    va_list args;

    if (verdict == VERDICT_MISSING)
        diagnosis->can_run = false;
    if (diagnosis->n_findings == DOCTOR_MAX_FINDINGS)
        return;
    finding = &diagnosis->findings[diagnosis->n_findings++];
    finding->verdict = verdict;
    finding->advice = advice;
    snprintf(finding->name, sizeof(finding->name), "%s", name);
    va_start(args, format);
    vsnprintf(finding->text, sizeof(finding->text), format, args);
    va_end(args);
}

/* The number a small file begins with, or `missing`. */
static long read_number(const char *path, long missing)
{
    long number = missing;
    FILE *file = fopen(path, "re");

    if (!file)
        return missing;
    if (fscanf(file, "%ld", &number) != 1)
        number = missing;
    fclose(file);
    return number;
}

/* ---- KVM ---- */

static void find_no_kvm(struct diagnosis *diagnosis, json_t *kvm, int error)
{
    bool forbidden = error == EACCES || error == EPERM;
    const char *advice = "load the module kvm_intel or kvm_amd, or switch virtualisation on in the "
                         "firmware; in a virtual machine, switch nested virtualisation on below it";

    if (forbidden)
        advice = "join the group that owns /dev/kvm: usermod -aG kvm USER, then log in again";
    json_object_set_new(kvm, "device", json_string(forbidden ? "forbidden" : "missing"));
    add(diagnosis, VERDICT_MISSING, "/dev/kvm", advice, "cannot be opened: %s", strerror(error));
}

static void check_version(struct diagnosis *diagnosis, json_t *kvm, int fd)
{
    int version = ioctl(fd, KVM_GET_API_VERSION, 0);

    json_object_set_new(kvm, "device", json_string("ok"));
    json_object_set_new(kvm, "api_version", json_integer(version));
    if (version == KVM_API_VERSION)
        add(diagnosis, VERDICT_OK, "/dev/kvm", NULL, "opens; API version %d", version);
    else
        add(diagnosis, VERDICT_MISSING, "/dev/kvm", "use a kernel from 2.6.22 on",
            "API version %d; %d is needed", version, KVM_API_VERSION);
}

static void check_capabilities(struct diagnosis *diagnosis, json_t *kvm, int fd)
{
    json_t *list = json_array();

    for (const struct arch_cap *cap = arch_caps; cap->name; cap++) {
        bool present = kvm_capability(fd, cap->capability) > 0;

        json_array_append_new(list, json_pack("{s:s, s:s, s:b, s:b}", "name", cap->name, "use",
                                              cap->use, "present", present, "required",
                                              cap->loss == NULL));
        if (present)
            add(diagnosis, VERDICT_OK, cap->name, NULL, "%s", cap->use);
        else
            add(diagnosis, cap->loss ? VERDICT_NOTE : VERDICT_MISSING, cap->name,
                "a newer kernel may have it", "%s: missing; %s", cap->use,
                cap->loss ? cap->loss : "guests cannot run");
    }
    json_object_set_new(kvm, "capabilities", list);
}

static void check_cpus(struct diagnosis *diagnosis, json_t *kvm, int fd)
{
    unsigned max = kvm_max_vcpus(fd);

    json_object_set_new(kvm, "max_vcpus", json_integer(max));
    add(diagnosis, VERDICT_OK, "CPUs of a guest", NULL, "at most %u; this host has %ld", max,
        sysconf(_SC_NPROCESSORS_ONLN));
}

static void check_kernel_code(struct diagnosis *diagnosis, json_t *kvm, int fd)
{
    struct kvm_traits traits;
    int error = kvm_probe_measure(fd, &traits);
    double ns;

    if (error < 0) {
        json_object_set_new(kvm, "kernel_code", json_null());
        add(diagnosis, VERDICT_NOTE, "kernel code", NULL,
            "not known: the guest that measures it did not run: %s", strerror(-error));
        return;
    }
    ns = traits.instruction_ps / 1000.0;
    json_object_set_new(kvm, "kernel_code",
                        json_string(traits.emulates_kernel ? "emulated" : "native"));
    json_object_set_new(kvm, "kernel_instruction_ns", json_real(ns));
    json_object_set_new(kvm, "half_syscall", json_boolean(traits.half_syscall));
    if (traits.emulates_kernel)
        add(diagnosis, VERDICT_NOTE, "kernel code",
            "small kernels and little memory help; on a host with VT-x or SVM Linux boots at once",
            "emulated by KVM, %.0f ns an instruction: ferry interprets most of it, faster, and completes "
            "the instructions that KVM rejects (%u of %u tried)%s", ns, traits.rejected,
            KVM_PROBE_INSTRUCTIONS, traits.half_syscall ? " and SYSCALL" : "");
    else
        add(diagnosis, VERDICT_OK, "kernel code", NULL,
            "runs on the processor, %.1f ns an instruction", ns);
}

static void check_kvm(struct diagnosis *diagnosis)
{
    const char *virtualization = cpu_virtualization();
    json_t *kvm = json_object();
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

    json_object_set_new(diagnosis->json, "kvm", kvm);
    json_object_set_new(kvm, "processor",
                        virtualization ? json_string(virtualization) : json_null());
    json_object_set_new(kvm, "in_virtual_machine", json_boolean(cpu_is_virtual()));
    if (fd < 0) {
        find_no_kvm(diagnosis, kvm, errno);
    } else {
        check_version(diagnosis, kvm, fd);
        check_capabilities(diagnosis, kvm, fd);
        check_cpus(diagnosis, kvm, fd);
        check_kernel_code(diagnosis, kvm, fd);
        close(fd);
    }
    add(diagnosis, virtualization || fd >= 0 ? VERDICT_OK : VERDICT_NOTE, "processor", NULL,
        "%s%s", virtualization ? virtualization : "shows neither VT-x nor SVM",
        cpu_is_virtual() ? ", in a virtual machine" : "");
}

/* ---- the rest of the host ---- */

static void check_io_uring(struct diagnosis *diagnosis, json_t *host)
{
    long disabled = read_number(IO_URING_SWITCH, 0);
    struct io_uring ring;
    int error = io_uring_queue_init(4, &ring, 0);

    json_object_set_new(host, "io_uring", json_boolean(error == 0));
    json_object_set_new(host, "io_uring_disabled", json_integer(disabled));
    if (error == 0) {
        io_uring_queue_exit(&ring);
        add(diagnosis, VERDICT_OK, "io_uring", NULL, "works");
    } else if (disabled > 0) {
        add(diagnosis, VERDICT_MISSING, "io_uring", "sysctl kernel.io_uring_disabled=0",
            "switched off: kernel.io_uring_disabled is %ld", disabled);
    } else {
        add(diagnosis, VERDICT_MISSING, "io_uring",
            "a kernel from 5.11 on; in a container, a seccomp profile that allows it", "%s",
            strerror(-error));
    }
}

static void check_tun(struct diagnosis *diagnosis, json_t *host)
{
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);

    json_object_set_new(host, "tun", json_boolean(fd >= 0));
    if (fd >= 0) {
        add(diagnosis, VERDICT_OK, "/dev/net/tun", NULL, "opens; --net nat does without it");
        close(fd);
    } else {
        add(diagnosis, VERDICT_NOTE, "/dev/net/tun", "modprobe tun, and the right to open it",
            "cannot be opened: %s; --net nat does without it", strerror(errno));
    }
}

static void check_hugepages(struct diagnosis *diagnosis, json_t *host)
{
    static const struct {
        const char *name, *size;
        unsigned kib;
    } pages[] = {{"huge pages of 2M", "2M", 2048}, {"huge pages of 1G", "1G", 1048576}};
    json_t *list = json_array();

    for (unsigned i = 0; i < 2; i++) {
        char path[96];
        long free_pages;

        snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-%ukB/free_hugepages",
                 pages[i].kib);
        free_pages = read_number(path, 0);
        json_array_append_new(list, json_pack("{s:s, s:I}", "size", pages[i].size, "free",
                                              (json_int_t)free_pages));
        if (free_pages > 0)
            add(diagnosis, VERDICT_OK, pages[i].name, NULL,
                "%ld free, for --memory SIZE,hugepages=%s", free_pages, pages[i].size);
        else if (i == 0)
            add(diagnosis, VERDICT_NOTE, pages[i].name,
                "sysctl vm.nr_hugepages=N reserves N of them", "none free; hugepages=2M fails");
    }
    json_object_set_new(host, "hugepages", list);
}

static void check_shared_thp(struct diagnosis *diagnosis, json_t *host)
{
    bool lent = memory_file_lends_huge_pages();

    json_object_set_new(host, "shared_thp", json_boolean(lent));
    if (lent)
        add(diagnosis, VERDICT_OK, "transparent huge pages", NULL, "lent to guest memory");
    else
        add(diagnosis, VERDICT_NOTE, "transparent huge pages",
            "sysctl kernel.unprivileged_userns_clone=1, or as root 'echo advise "
            ">/sys/kernel/mm/transparent_hugepage/shmem_enabled'",
            "not lent to guest memory; with them a guest boots faster");
}

static void check_userfaultfd(struct diagnosis *diagnosis, json_t *host)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

    if (fd < 0) {
        int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

        fd = device >= 0 ? ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC) : -1;
        if (device >= 0)
            close(device);
    }
    json_object_set_new(host, "userfaultfd", json_boolean(fd >= 0));
    if (fd >= 0) {
        add(diagnosis, VERDICT_OK, "userfaultfd", NULL, "works; 'ferry restore --lazy' uses it");
        close(fd);
    } else {
        add(diagnosis, VERDICT_NOTE, "userfaultfd",
            "sysctl vm.unprivileged_userfaultfd=1, or the right to open /dev/userfaultfd",
            "not to be had; only 'ferry restore --lazy' needs it");
    }
}

/* Libraries that are loaded when something asks for what they do. */
static const struct {
    const char *name, *soname, *use, *advice;
} libraries[] = {
    {"libslirp", SLIRP_SONAME, "--net nat", "on Debian: apt-get install libslirp0"},
    {"libmicrohttpd", HTTP_SONAME, "the control socket",
     "on Debian: apt-get install libmicrohttpd12"},
    {"libgnutls", TLS_SONAME, "migration by tls:", "on Debian: apt-get install libgnutls30"},
    {"libyaml", YAML_SONAME, "ferry up", "on Debian: apt-get install libyaml-0-2"},
};

static void check_libraries(struct diagnosis *diagnosis, json_t *host)
{
    json_t *list = json_object();

    for (size_t i = 0; i < sizeof(libraries) / sizeof(libraries[0]); i++) {
        void *library = dlopen(libraries[i].soname, RTLD_LAZY | RTLD_LOCAL);

        json_object_set_new(list, libraries[i].name, json_boolean(library != NULL));
        if (library)
            add(diagnosis, VERDICT_OK, libraries[i].name, NULL, "is there, for %s",
                libraries[i].use);
        else
            add(diagnosis, VERDICT_NOTE, libraries[i].name, libraries[i].advice,
                "cannot be loaded; it is needed for %s", libraries[i].use);
    }
    json_object_set_new(host, "libraries", list);
}

/* A field of /proc/meminfo, in bytes. */
static uint64_t meminfo(const char *name)
{
    FILE *file = fopen("/proc/meminfo", "re");
    uint64_t kib = 0;
    char line[128];

    while (file && fgets(line, sizeof(line), file)) {
        size_t length = strlen(name);

        if (strncmp(line, name, length) == 0 && line[length] == ':')
            kib = strtoull(line + length + 1, NULL, 10);
    }
    if (file)
        fclose(file);
    return kib * KIB;
}

static void check_memory(struct diagnosis *diagnosis, json_t *host)
{
    uint64_t total = meminfo("MemTotal"), available = meminfo("MemAvailable");

    json_object_set_new(host, "memory_total", json_integer((json_int_t)total));
    json_object_set_new(host, "memory_available", json_integer((json_int_t)available));
    add(diagnosis, VERDICT_OK, "memory", NULL, "%llu MiB available of %llu MiB",
        available / MIB, total / MIB);
}

int diagnosis_make(struct diagnosis *diagnosis)
{
    json_t *host;

    *diagnosis = (struct diagnosis){.can_run = true, .json = json_object()};
    host = json_object();
    if (!diagnosis->json || !host) {
        log_error("doctor: out of memory");
        json_decref(host);
        diagnosis_fini(diagnosis);
        return -ENOMEM;
    }
    json_object_set_new(diagnosis->json, "ferry", json_string(FERRY_VERSION));
    check_kvm(diagnosis);
    json_object_set_new(diagnosis->json, "host", host);
    check_io_uring(diagnosis, host);
    check_memory(diagnosis, host);
    check_hugepages(diagnosis, host);
    check_shared_thp(diagnosis, host);
    check_tun(diagnosis, host);
    check_userfaultfd(diagnosis, host);
    check_libraries(diagnosis, host);
    json_object_set_new(diagnosis->json, "can_run_guests", json_boolean(diagnosis->can_run));
    return 0;
}

void diagnosis_fini(struct diagnosis *diagnosis)
{
    json_decref(diagnosis->json);
    diagnosis->json = NULL;
}
