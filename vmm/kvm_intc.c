/*
 * KVM's interrupt routing table, irqfds and ioeventfds.
 *
 * The routing table is one array: the arch's line routes first, a slot per MSI after them. KVM takes
 * it whole (KVM_SET_GSI_ROUTING), so every message that changes costs one ioctl; a vector that has
 * no message yet is left out of it. Does not know what the vectors are for.
 *
 * Thread: whoever holds the device lock. Raising an MSI needs none: it is a write to an eventfd.
 * Text: the kernel's Documentation/virt/kvm/api.rst §4.52 KVM_SET_GSI_ROUTING, §4.59 KVM_IOEVENTFD,
 * §4.75 KVM_IRQFD.
 */
#include "vmm/kvm_intc.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "vmm/arch.h"
#include "vmm/util/log.h"

#define GROW_BY 32

struct msi_route {
    bool used;    /* allocated */
    bool present; /* has a message that KVM accepted */
    uint64_t address;
    uint32_t data;
};

struct kvm_intc {
    struct intc intc;
    struct doorbells doorbells;
    int vm_fd; /* borrowed */
    unsigned max_routes;
    unsigned n_lines;
    unsigned n_msi; /* length of msi[] */
    struct kvm_irq_routing_entry lines[ARCH_MAX_LINES];
    struct msi_route *msi;          /* owns; index is GSI - n_lines */
    struct kvm_irq_routing *table;  /* owns; room for n_lines + n_msi entries */
};

static struct kvm_intc *from_intc(struct intc *intc)
{
    return (struct kvm_intc *)((char *)intc - offsetof(struct kvm_intc, intc));
}

static struct kvm_intc *from_doorbells(struct doorbells *bells)
{
    return (struct kvm_intc *)((char *)bells - offsetof(struct kvm_intc, doorbells));
}

void intc_msi_raise(const struct intc_msi *msi)
{
    uint64_t one = 1;
    ssize_t n;

    if (msi->fd < 0)
        return;
    /* Fails only when the counter is full, and then the interrupt is pending already. */
    n = write(msi->fd, &one, sizeof(one));
    (void)n;
}

static void set_line(struct intc *intc, uint32_t gsi, bool level)
{
    struct kvm_intc *ki = from_intc(intc);
    struct kvm_irq_level irq = {.irq = gsi, .level = level};

    if (ioctl(ki->vm_fd, KVM_IRQ_LINE, &irq) < 0)
        log_error("interrupt line %u: KVM_IRQ_LINE: %s", gsi, strerror(errno));
}

static int install_routes(struct kvm_intc *ki)
{
    unsigned n = ki->n_lines;

    memcpy(ki->table->entries, ki->lines, n * sizeof(ki->lines[0]));
    for (unsigned i = 0; i < ki->n_msi; i++) {
        const struct msi_route *m = &ki->msi[i];

        if (!m->present)
            continue;
        ki->table->entries[n++] = (struct kvm_irq_routing_entry){
            .gsi = ki->n_lines + i,
            .type = KVM_IRQ_ROUTING_MSI,
            .u.msi = {
                .address_lo = (uint32_t)m->address,
                .address_hi = (uint32_t)(m->address >> 32),
                .data = m->data,
            },
        };
    }
    ki->table->nr = n;
    ki->table->flags = 0;
    return ioctl(ki->vm_fd, KVM_SET_GSI_ROUTING, ki->table) < 0 ? -errno : 0;
}

static int grow(struct kvm_intc *ki)
{
    unsigned n = ki->n_msi + GROW_BY;
    struct msi_route *msi;
    struct kvm_irq_routing *table;

    if (ki->n_lines + n > ki->max_routes)
        n = ki->max_routes - ki->n_lines;
    if (n <= ki->n_msi) {
        log_error("interrupts: the host's KVM has no more than %u routes; use fewer devices",
                  ki->max_routes);
        return -ENOSPC;
    }
    msi = realloc(ki->msi, n * sizeof(*msi));
    if (!msi)
        return -ENOMEM;
    memset(msi + ki->n_msi, 0, (n - ki->n_msi) * sizeof(*msi));
    ki->msi = msi;
    table = realloc(ki->table, sizeof(*table) + (ki->n_lines + n) * sizeof(table->entries[0]));
    if (!table)
        return -ENOMEM;
    ki->table = table;
    ki->n_msi = n;
    return 0;
}

static int take_gsi(struct kvm_intc *ki, uint32_t *gsi)
{
    int err;

    for (;;) {
        for (unsigned i = 0; i < ki->n_msi; i++) {
            if (ki->msi[i].used)
                continue;
            ki->msi[i] = (struct msi_route){.used = true};
            *gsi = ki->n_lines + i;
            return 0;
        }
        err = grow(ki);
        if (err)
            return err;
    }
}

static int irqfd(struct kvm_intc *ki, const struct intc_msi *msi, uint32_t flags)
{
    struct kvm_irqfd request = {.fd = (uint32_t)msi->fd, .gsi = msi->gsi, .flags = flags};

    return ioctl(ki->vm_fd, KVM_IRQFD, &request) < 0 ? -errno : 0;
}

static int msi_alloc(struct intc *intc, struct intc_msi *msi)
{
    struct kvm_intc *ki = from_intc(intc);
    int err;

    msi->fd = -1;
    err = take_gsi(ki, &msi->gsi);
    if (err)
        return err;
    msi->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (msi->fd < 0) {
        err = -errno;
        log_error("interrupts: eventfd: %s; raise the limit of open files (ulimit -n)",
                  strerror(-err));
        goto free_gsi;
    }
    err = irqfd(ki, msi, 0);
    if (err) {
        log_error("interrupts: KVM_IRQFD: %s", strerror(-err));
        goto close_fd;
    }
    return 0;
close_fd:
    close(msi->fd);
    msi->fd = -1;
free_gsi:
    ki->msi[msi->gsi - ki->n_lines].used = false;
    return err;
}

static int msi_update(struct intc *intc, struct intc_msi *msi, uint64_t address, uint32_t data)
{
    struct kvm_intc *ki = from_intc(intc);
    struct msi_route *m = &ki->msi[msi->gsi - ki->n_lines];
    struct msi_route old = *m;

    if (m->present && m->address == address && m->data == data)
        return 0;
    m->present = true;
    m->address = address;
    m->data = data;
    if (install_routes(ki) == 0)
        return 0;
    /* The guest's message is one that KVM takes for none: silence it, keep all others. */
    *m = old;
    m->present = false;
    (void)install_routes(ki);
    return -EINVAL;
}

static void msi_free(struct intc *intc, struct intc_msi *msi)
{
    struct kvm_intc *ki = from_intc(intc);
    struct msi_route *m;

    if (msi->fd < 0)
        return;
    (void)irqfd(ki, msi, KVM_IRQFD_FLAG_DEASSIGN);
    close(msi->fd);
    msi->fd = -1;
    m = &ki->msi[msi->gsi - ki->n_lines];
    /* The stale route is harmless: nothing writes its irqfd. It goes with the next install. */
    *m = (struct msi_route){0};
}

static const struct intc_ops kvm_intc_ops = {
    .line = set_line,
    .msi_alloc = msi_alloc,
    .msi_update = msi_update,
    .msi_free = msi_free,
};

static int doorbell(struct kvm_intc *ki, gpa_t gpa, unsigned size, int fd, uint32_t flags)
{
    struct kvm_ioeventfd request = {.addr = gpa, .len = size, .fd = fd, .flags = flags};

    return ioctl(ki->vm_fd, KVM_IOEVENTFD, &request) < 0 ? -errno : 0;
}

static int doorbell_add(struct doorbells *bells, gpa_t gpa, unsigned size, int fd)
{
    return doorbell(from_doorbells(bells), gpa, size, fd, 0);
}

static void doorbell_remove(struct doorbells *bells, gpa_t gpa, unsigned size, int fd)
{
    (void)doorbell(from_doorbells(bells), gpa, size, fd, KVM_IOEVENTFD_FLAG_DEASSIGN);
}

static const struct doorbell_ops kvm_doorbell_ops = {
    .add = doorbell_add,
    .remove = doorbell_remove,
};

int kvm_intc_create(struct kvm_intc **out, int vm_fd, unsigned max_routes)
{
    struct kvm_intc *ki = calloc(1, sizeof(*ki));

    if (!ki)
        return -ENOMEM;
    ki->intc.ops = &kvm_intc_ops;
    ki->doorbells.ops = &kvm_doorbell_ops;
    ki->vm_fd = vm_fd;
    ki->max_routes = max_routes;
    ki->n_lines = arch_irq_routes(ki->lines, ARCH_MAX_LINES);
    *out = ki;
    return 0;
}

void kvm_intc_destroy(struct kvm_intc *kintc)
{
    if (!kintc)
        return;
    free(kintc->msi);
    free(kintc->table);
    free(kintc);
}

struct intc *kvm_intc_lines(struct kvm_intc *kintc)
{
    return &kintc->intc;
}

struct doorbells *kvm_intc_doorbells(struct kvm_intc *kintc)
{
    return &kintc->doorbells;
}
