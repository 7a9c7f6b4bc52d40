/*
 * A KVM virtual machine: /dev/kvm, the VM's descriptor, its memory slots.
 *
 * Does not run vCPUs (vcpu.c) and does not route interrupts (kvm_intc.c). Owned by the event loop's
 * thread. Text: the kernel's Documentation/virt/kvm/api.rst.
 */
#include "vmm/vm.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "vmm/arch.h"
#include "vmm/dirty_ring.h"
#include "vmm/kvm_intc.h"
#include "vmm/memory.h"
#include "vmm/util/log.h"

#define KVM_DEVICE "/dev/kvm"

struct vm {
    int kvm_fd; /* owns */
    int fd;     /* owns */
    unsigned max_vcpus;
    struct guest_memory *mem; /* borrowed */
    bool manual_clear;      /* pages are protected again by KVM_CLEAR_DIRTY_LOG alone */
    struct arch_vm *arch;   /* owns */
    struct x86_tables *tables; /* owns; NULL: no kernel code is interpreted */
    struct kvm_intc *kintc; /* owns */
    struct dirty_rings *rings; /* owns; NULL: KVM's log is used */
};

static void explain_open_failure(int err)
{
    if (err == ENOENT || err == ENXIO || err == ENODEV)
        log_error("cannot run guests: " KVM_DEVICE " is not there (%s); load the kvm_intel or "
                  "kvm_amd module, or switch virtualisation on in the firmware; `ferry doctor` "
                  "tells more", strerror(err));
    else if (err == EACCES || err == EPERM)
        log_error("cannot run guests: no right to open " KVM_DEVICE " (%s); join the group that "
                  "owns it (often kvm): usermod -aG kvm USER, then log in again", strerror(err));
    else
        log_error("cannot run guests: " KVM_DEVICE ": %s", strerror(err));
}

int kvm_open(void)
{
    int version, fd = open(KVM_DEVICE, O_RDWR | O_CLOEXEC);

    if (fd < 0) {
        int err = errno;
        explain_open_failure(err);
        return -err;
    }
    version = ioctl(fd, KVM_GET_API_VERSION, 0);
    if (version != KVM_API_VERSION) {
        log_error("cannot run guests: " KVM_DEVICE " speaks API version %d, expected %d", version,
                  KVM_API_VERSION);
        close(fd);
        return -ENOTSUP;
    }
    return fd;
}

int kvm_capability(int fd, int capability)
{
    int r = ioctl(fd, KVM_CHECK_EXTENSION, capability);

    return r < 0 ? 0 : r;
}

static int check_capabilities(int kvm_fd)
{
    for (const struct arch_cap *c = arch_caps; c->name; c++) {
        if (c->loss || kvm_capability(kvm_fd, c->capability) > 0)
            continue;
        log_error("cannot run guests: the host's KVM lacks %s (%s); a newer kernel has it", c->use,
                  c->name);
        return -ENOTSUP;
    }
    return 0;
}

/* Also for slots that are there already, to change their flags. */
static int set_slots(struct vm *vm, uint32_t flags)
{
    const struct memory_region *regions;
    unsigned n = memory_regions(vm->mem, &regions);

    for (unsigned i = 0; i < n; i++) {
        struct kvm_userspace_memory_region slot = {
            .slot = i,
            .flags = flags,
            .guest_phys_addr = regions[i].base,
            .memory_size = regions[i].size,
            .userspace_addr = (uintptr_t)regions[i].host,
        };
        if (ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &slot) < 0) {
            int err = -errno;
            log_error("memory: KVM refuses %llu MiB at %#llx: %s",
                      (unsigned long long)(slot.memory_size / MIB),
                      (unsigned long long)slot.guest_phys_addr, strerror(-err));
            return err;
        }
    }
    return 0;
}

static int create_vm_fd(struct vm *vm)
{
    /* A signal that is pending may interrupt the creation: try again, as api.rst §4.2 allows. */
    do
        vm->fd = ioctl(vm->kvm_fd, KVM_CREATE_VM, 0);
    while (vm->fd < 0 && errno == EINTR);
    if (vm->fd < 0) {
        int err = -errno;
        log_error("cannot run guests: KVM_CREATE_VM: %s", strerror(-err));
        return err;
    }
    (void)fcntl(vm->fd, F_SETFD, FD_CLOEXEC);
    return 0;
}

unsigned kvm_max_vcpus(int kvm_fd)
{
    int n = kvm_capability(kvm_fd, KVM_CAP_MAX_VCPUS);

    if (n <= 0)
        n = kvm_capability(kvm_fd, KVM_CAP_NR_VCPUS);
    return n > 0 ? (unsigned)n : 4; /* api.rst: 4 when neither is known */
}

int vm_create(struct vm **out, struct guest_memory *mem, bool assist)
{
    struct vm *vm = calloc(1, sizeof(*vm));
    int err;

    if (!vm)
        return -ENOMEM;
    vm->fd = -1;
    vm->kvm_fd = err = kvm_open();
    if (err < 0)
        goto fail;
    err = check_capabilities(vm->kvm_fd);
    if (err)
        goto fail;
    err = create_vm_fd(vm);
    /* Before all else: with an interrupt controller there, KVM takes some 10 ms for it (it waits for
     * readers of its tables, of which there are none yet). */
    if (!err && assist)
        err = arch_vm_assist(&vm->tables, vm->kvm_fd, vm->fd, mem);
    if (err)
        goto fail;
    vm->max_vcpus = kvm_max_vcpus(vm->kvm_fd);
    vm->mem = mem;
    err = set_slots(vm, 0);
    if (err)
        goto fail;
    err = arch_vm_create(&vm->arch, vm->kvm_fd, vm->fd);
    if (err)
        goto fail;
    err = kvm_intc_create(&vm->kintc, vm->fd,
                          (unsigned)kvm_capability(vm->kvm_fd, KVM_CAP_IRQ_ROUTING));
    if (err)
        goto fail;
    *out = vm;
    return 0;
fail:
    vm_destroy(vm);
    return err;
}

void vm_destroy(struct vm *vm)
{
    if (!vm)
        return;
    dirty_rings_destroy(vm->rings);
    kvm_intc_destroy(vm->kintc);
    arch_vm_destroy(vm->arch);
    arch_vm_assist_end(vm->tables);
    if (vm->fd >= 0)
        close(vm->fd);
    if (vm->kvm_fd >= 0)
        close(vm->kvm_fd);
    free(vm);
}

int vm_fd(const struct vm *vm)
{
    return vm->fd;
}

int vm_kvm_fd(const struct vm *vm)
{
    return vm->kvm_fd;
}

struct x86_tables *vm_tables(const struct vm *vm)
{
    return vm->tables;
}

unsigned vm_max_vcpus(const struct vm *vm)
{
    return vm->max_vcpus;
}

struct intc *vm_intc(struct vm *vm)
{
    return kvm_intc_lines(vm->kintc);
}

struct doorbells *vm_doorbells(struct vm *vm)
{
    return kvm_intc_doorbells(vm->kintc);
}

int vm_reset(struct vm *vm)
{
    return arch_vm_reset(vm->arch, vm->fd);
}

/* ---- the log of dirty pages ---- */

int vm_use_dirty_rings(struct vm *vm, unsigned entries)
{
    return dirty_rings_create(&vm->rings, vm->fd, vm->mem, entries);
}

int vm_add_dirty_ring(struct vm *vm, int vcpu_fd)
{
    return vm->rings ? dirty_rings_add(vm->rings, vcpu_fd) : 0;
}

int vm_reap_dirty_rings(struct vm *vm)
{
    return vm->rings ? dirty_rings_reap(vm->rings) : 0;
}

/* What the rings say protects its pages again at once, so that nothing is left to be cleared. */
static int start_rings(struct vm *vm)
{
    int err = dirty_rings_reap(vm->rings); /* of a former time */

    vm->manual_clear = false;
    dirty_rings_forget(vm->rings);
    return err ? err : set_slots(vm, KVM_MEM_LOG_DIRTY_PAGES);
}

int vm_dirty_start(struct vm *vm)
{
    struct kvm_enable_cap manual = {
        .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
        .args = {(uint64_t)kvm_capability(vm->fd, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) &
                 (KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET)},
    };

    if (vm->rings)
        return start_rings(vm);
    /* api.rst §7.18: without it, reading the log clears it, and protects all pages at once. */
    vm->manual_clear = manual.args[0] != 0 && ioctl(vm->fd, KVM_ENABLE_CAP, &manual) == 0;
    return set_slots(vm, KVM_MEM_LOG_DIRTY_PAGES);
}

void vm_dirty_stop(struct vm *vm)
{
    (void)set_slots(vm, 0);
}

int vm_dirty_get(struct vm *vm, unsigned region, uint64_t *bitmap)
{
    struct kvm_dirty_log log = {.slot = region, .dirty_bitmap = bitmap};
    int err;

    if (vm->rings) {
        err = dirty_rings_reap(vm->rings);
        if (!err)
            dirty_rings_take(vm->rings, region, bitmap);
        return err;
    }
    if (ioctl(vm->fd, KVM_GET_DIRTY_LOG, &log) == 0)
        return 0;
    err = -errno;
    log_error("memory: KVM does not say what the guest wrote: %s", strerror(-err));
    return err;
}

int vm_dirty_clear(struct vm *vm, unsigned region, uint64_t first, uint64_t pages,
                   const uint64_t *bits)
{
    struct kvm_clear_dirty_log log = {
        .slot = region,
        .num_pages = (uint32_t)pages,
        .first_page = first,
        .dirty_bitmap = (void *)(uintptr_t)bits,
    };
    int err;

    if (!vm->manual_clear || ioctl(vm->fd, KVM_CLEAR_DIRTY_LOG, &log) == 0)
        return 0;
    err = -errno;
    log_error("memory: KVM does not begin its log anew: %s", strerror(-err));
    return err;
}

int vm_save(struct vm *vm, struct state_buffer *out)
{
    return arch_vm_save(vm->fd, out);
}

int vm_load(struct vm *vm, struct state_reader *in)
{
    return arch_vm_load(vm->fd, in);
}
