/*
 * Virtio over PCI, modern only (virtio 1.2 §4.1): one function, one BAR, MSI-X, doorbells.
 *
 * Knows no class and walks no ring. Not offered: INTx, legacy or transitional registers,
 * VIRTIO_F_NOTIFICATION_DATA, VIRTIO_F_RING_RESET. Everything is guarded by the device lock:
 * register accesses come from vCPU threads, kicks are handled on the event loop's thread.
 *
 * How a kick travels. The guest writes to a queue's notify address. With a doorbell there, KVM
 * writes the queue's eventfd, and the loop, which watches it, calls the class. Without (the host
 * refused it, or the write came through the PCI configuration access capability) the write exits,
 * sets the queue's bit in `kicks` and hands over by loop_call(). No kick is lost:
 *
 * - A queue's eventfd is made when it first gets a doorbell and lives as long as the device, and so
 *   does the loop's watch, which a vCPU thread cannot start itself and so asks for by loop_call().
 *   A kick before the watch stands is in the eventfd's counter, and fires when it does. Doorbells
 *   come and go (BAR moved, device reset) between the two without harm: a kick that is late finds
 *   the queue disabled and does nothing.
 * - What the driver put into a queue before DRIVER_OK, or before it enabled the queue, is found by
 *   a kick of our own then; what came while the device was paused, by virtio_resume().
 */
#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_pci.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "devices/pci/pci.h"
#include "devices/virtio/virtio.h"

#define VIRTIO_VENDOR_ID 0x1AF4        /* §4.1.2 */
#define VIRTIO_DEVICE_ID_BASE 0x1040   /* §4.1.2.1, and the type */
#define VIRTIO_SUBSYSTEM_ID_BASE 0x40  /* §4.1.2.1: 0x40 or higher when not transitional */
#define VIRTIO_REVISION 1              /* §4.1.2.1: 1 or higher when not transitional */

/* The BAR. Each structure has a page of its own. */
#define BAR_INDEX 0
#define BAR_BYTES (32 * KIB)
#define COMMON_AT 0x0000u
#define COMMON_BYTES 56u /* §4.1.4.3, up to queue_device */
#define ISR_AT 0x1000u
#define ISR_BYTES 1u
#define CONFIG_AT 0x2000u
#define NOTIFY_AT 0x3000u
#define NOTIFY_MULTIPLIER 4u
#define MSIX_TABLE_AT 0x4000u
#define MSIX_PBA_AT 0x5000u
#define PART_BYTES 0x1000u

#define ISR_QUEUE 1u  /* §4.1.4.5 */
#define ISR_CONFIG 2u

_Static_assert(VIRTIO_MAX_QUEUES + 1 <= PCI_MSIX_MAX, "a vector for each queue and one more");
_Static_assert(VIRTIO_MAX_QUEUES * NOTIFY_MULTIPLIER <= PART_BYTES, "room for all notify addresses");
_Static_assert(sizeof(struct virtio_pci_common_cfg) >= COMMON_BYTES, "virtio 1.2 §4.1.4.3");
_Static_assert(sizeof(struct virtio_pci_cap) == 16, "virtio 1.2 §4.1.4");
_Static_assert(sizeof(struct virtio_pci_cfg_cap) == 20, "virtio 1.2 §4.1.4.9");

struct queue_bell {
    struct loop_event event;
    struct virtio_pci *vp; /* borrowed: the one that holds it */
    int fd;                /* owns: eventfd; -1 until first needed */
    bool watched;          /* the loop watches fd; changed on its thread alone */
    bool installed;        /* the doorbell stands at gpa */
    gpa_t gpa;
};

/* What the driver selected and what it has not read yet; migrates. */
struct virtio_pci_regs {
    uint32_t device_feature_select;
    uint32_t driver_feature_select;
    uint16_t queue_select;
    uint8_t isr;
};

struct virtio_pci {
    struct device dev;
    const struct device_env *env;
    struct virtio_device *vdev; /* owns, once created */
    struct pci_function *fn;    /* owns */
    unsigned cfg_cap;           /* offset of the configuration access capability */
    bool mapped;                /* the BAR answers, at bar_gpa */
    gpa_t bar_gpa;
    struct virtio_pci_regs regs;
    struct queue_bell bells[VIRTIO_MAX_QUEUES];
    struct loop_call call;      /* handle_on_loop() */
    bool call_pending;
    bool closing;               /* being destroyed: what is on its way starts nothing any more */
    uint64_t kicks;             /* bit i: queue i was kicked by a write that exited */
    struct state_part inner;    /* the virtio device's own, behind ours that checks more */
};

static const struct state_field regs_fields[] = {
    STATE_FIELD(STATE_U32, struct virtio_pci_regs, device_feature_select),
    STATE_FIELD(STATE_U32, struct virtio_pci_regs, driver_feature_select),
    STATE_FIELD(STATE_U16, struct virtio_pci_regs, queue_select),
    STATE_FIELD(STATE_U8, struct virtio_pci_regs, isr),
};
static const struct state_desc regs_desc =
    STATE_DESC("virtio-pci", 1, struct virtio_pci_regs, regs_fields);

static struct virtio_pci *from_device(struct device *dev)
{
    return (struct virtio_pci *)((char *)dev - offsetof(struct virtio_pci, dev));
}

static unsigned n_vectors(const struct virtio_pci *vp)
{
    return vp->vdev->n_queues + 1;
}

/* ---- kicks and doorbells ---- */

static void call_loop(struct virtio_pci *vp)
{
    vp->call_pending = true;
    loop_call(vp->env->loop, &vp->call);
}

static void bell_rang(struct loop_event *event)
{
    struct queue_bell *bell =
        (struct queue_bell *)((char *)event - offsetof(struct queue_bell, event));
    struct virtio_pci *vp = bell->vp;

    device_lock(vp->env);
    virtio_queue_kicked(vp->vdev, (unsigned)(bell - vp->bells));
    device_unlock(vp->env);
}

/* On the loop's thread: starts watches, hands out the kicks that came by exits. */
static void handle_on_loop(struct loop_call *call)
{
    struct virtio_pci *vp =
        (struct virtio_pci *)((char *)call - offsetof(struct virtio_pci, call));
    uint64_t kicks;

    device_lock(vp->env);
    vp->call_pending = false;
    for (unsigned i = 0; i < vp->vdev->n_queues && !vp->closing; i++) {
        struct queue_bell *bell = &vp->bells[i];

        if (bell->fd < 0 || bell->watched)
            continue;
        loop_event_add(vp->env->loop, &bell->event, bell->fd);
        bell->watched = true;
    }
    kicks = vp->kicks;
    vp->kicks = 0;
    for (; kicks != 0 && !vp->closing; kicks &= kicks - 1)
        virtio_queue_kicked(vp->vdev, (unsigned)__builtin_ctzll(kicks));
    device_unlock(vp->env);
}

static void kick(struct virtio_pci *vp, unsigned index)
{
    vp->kicks |= 1ull << index;
    call_loop(vp);
}

static bool bell_wanted(const struct virtio_pci *vp, unsigned index)
{
    return vp->mapped && (vp->vdev->status & VIRTIO_CONFIG_S_DRIVER_OK) &&
           vp->vdev->queues[index].st.enabled;
}

static void install_bell(struct virtio_pci *vp, struct queue_bell *bell, gpa_t gpa)
{
    struct doorbells *bells = vp->env->doorbells;

    if (bell->fd < 0)
        bell->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (bell->fd < 0)
        return; /* no descriptors left: kicks exit, which is slower and works */
    if (!bell->watched)
        call_loop(vp);
    /* Any size: then KVM need not look at what is written. §4.1.5.2: it is the queue's index. */
    if (bells->ops->add(bells, gpa, 0, bell->fd) != 0)
        return;
    bell->installed = true;
    bell->gpa = gpa;
}

/* Brings the doorbells in line with BAR, status and queues. */
static void sync_bells(struct virtio_pci *vp)
{
    struct doorbells *bells = vp->env->doorbells;

    for (unsigned i = 0; i < vp->vdev->n_queues; i++) {
        struct queue_bell *bell = &vp->bells[i];
        gpa_t gpa = vp->bar_gpa + NOTIFY_AT + i * NOTIFY_MULTIPLIER;
        bool wanted = bell_wanted(vp, i);

        if (bell->installed && !(wanted && bell->gpa == gpa)) {
            bells->ops->remove(bells, bell->gpa, 0, bell->fd);
            bell->installed = false;
        }
        if (wanted && !bell->installed)
            install_bell(vp, bell, gpa);
    }
}

static void bar_mapped(void *opaque, uint64_t gpa, bool mapped)
{
    struct virtio_pci *vp = opaque;

    vp->mapped = mapped;
    vp->bar_gpa = gpa;
    sync_bells(vp);
}

/* ---- interrupts (§4.1.5.3, §4.1.5.4) ---- */

static void interrupt(struct virtio_pci *vp, uint16_t vector, uint8_t isr)
{
    /* §4.1.4.5.1: without MSI-X the ISR status tells. There is no INTx line to raise beside it, so
     * a driver without MSI-X has to poll. */
    if (!pci_msix_enabled(vp->fn))
        vp->regs.isr |= isr;
    else if (vector != VIRTIO_MSI_NO_VECTOR)
        pci_msix_raise(vp->fn, vector);
}

static void queue_interrupt(void *transport, unsigned index)
{
    struct virtio_pci *vp = transport;

    interrupt(vp, vp->vdev->queues[index].st.msix_vector, ISR_QUEUE);
}

static void config_interrupt(void *transport)
{
    struct virtio_pci *vp = transport;

    interrupt(vp, vp->vdev->config_msix_vector, ISR_CONFIG);
}

static const struct virtio_transport_ops transport_ops = {
    .queue_interrupt = queue_interrupt,
    .config_interrupt = config_interrupt,
};

/* ---- the common configuration (§4.1.4.3) ---- */

/* The width of the field that begins at an offset; 0 where none begins. §4.1.3.1: a driver accesses
 * each by its own width, the 64-bit ones as two 32-bit halves; anything else finds nothing. */
static const uint8_t common_width[COMMON_BYTES] = {
    [VIRTIO_PCI_COMMON_DFSELECT] = 4, [VIRTIO_PCI_COMMON_DF] = 4,
    [VIRTIO_PCI_COMMON_GFSELECT] = 4, [VIRTIO_PCI_COMMON_GF] = 4,
    [VIRTIO_PCI_COMMON_MSIX] = 2, [VIRTIO_PCI_COMMON_NUMQ] = 2,
    [VIRTIO_PCI_COMMON_STATUS] = 1, [VIRTIO_PCI_COMMON_CFGGENERATION] = 1,
    [VIRTIO_PCI_COMMON_Q_SELECT] = 2, [VIRTIO_PCI_COMMON_Q_SIZE] = 2,
    [VIRTIO_PCI_COMMON_Q_MSIX] = 2, [VIRTIO_PCI_COMMON_Q_ENABLE] = 2,
    [VIRTIO_PCI_COMMON_Q_NOFF] = 2,
    [VIRTIO_PCI_COMMON_Q_DESCLO] = 4, [VIRTIO_PCI_COMMON_Q_DESCHI] = 4,
    [VIRTIO_PCI_COMMON_Q_AVAILLO] = 4, [VIRTIO_PCI_COMMON_Q_AVAILHI] = 4,
    [VIRTIO_PCI_COMMON_Q_USEDLO] = 4, [VIRTIO_PCI_COMMON_Q_USEDHI] = 4,
};

static bool is_common_field(uint64_t offset, unsigned size)
{
    return offset < COMMON_BYTES && common_width[offset] == size;
}

static uint32_t feature_word(uint64_t features, uint32_t select)
{
    return select > 1 ? 0 : (uint32_t)(features >> (32 * select));
}

static struct virtqueue *selected(struct virtio_pci *vp)
{
    unsigned index = vp->regs.queue_select;

    return index < vp->vdev->n_queues ? &vp->vdev->queues[index] : NULL;
}

static uint32_t queue_field_read(struct virtio_pci *vp, unsigned offset)
{
    const struct virtqueue *vq = selected(vp);

    if (!vq)
        return 0; /* §4.1.4.3.1: queue_size 0 says that there is no such queue */
    switch (offset) {
    case VIRTIO_PCI_COMMON_Q_SIZE:
        return vq->st.size;
    case VIRTIO_PCI_COMMON_Q_MSIX:
        return vq->st.msix_vector;
    case VIRTIO_PCI_COMMON_Q_ENABLE:
        return vq->st.enabled;
    case VIRTIO_PCI_COMMON_Q_NOFF:
        return vp->regs.queue_select;
    case VIRTIO_PCI_COMMON_Q_DESCLO:
        return (uint32_t)vq->st.desc;
    case VIRTIO_PCI_COMMON_Q_DESCHI:
        return (uint32_t)(vq->st.desc >> 32);
    case VIRTIO_PCI_COMMON_Q_AVAILLO:
        return (uint32_t)vq->st.driver;
    case VIRTIO_PCI_COMMON_Q_AVAILHI:
        return (uint32_t)(vq->st.driver >> 32);
    case VIRTIO_PCI_COMMON_Q_USEDLO:
        return (uint32_t)vq->st.device;
    case VIRTIO_PCI_COMMON_Q_USEDHI:
        return (uint32_t)(vq->st.device >> 32);
    }
    return 0;
}

static uint32_t common_read(struct virtio_pci *vp, unsigned offset)
{
    struct virtio_device *vdev = vp->vdev;

    switch (offset) {
    case VIRTIO_PCI_COMMON_DFSELECT:
        return vp->regs.device_feature_select;
    case VIRTIO_PCI_COMMON_DF:
        return feature_word(virtio_offered(vdev), vp->regs.device_feature_select);
    case VIRTIO_PCI_COMMON_GFSELECT:
        return vp->regs.driver_feature_select;
    case VIRTIO_PCI_COMMON_GF:
        return feature_word(vdev->driver_features, vp->regs.driver_feature_select);
    case VIRTIO_PCI_COMMON_MSIX:
        return vdev->config_msix_vector;
    case VIRTIO_PCI_COMMON_NUMQ:
        return vdev->n_queues;
    case VIRTIO_PCI_COMMON_STATUS:
        return virtio_get_status(vdev);
    case VIRTIO_PCI_COMMON_CFGGENERATION:
        return vdev->config_generation & 0xFF;
    case VIRTIO_PCI_COMMON_Q_SELECT:
        return vp->regs.queue_select;
    }
    return queue_field_read(vp, offset);
}

static void set_low(uint64_t *field, uint32_t value)
{
    *field = (*field & 0xFFFFFFFF00000000ull) | value;
}

static void set_high(uint64_t *field, uint32_t value)
{
    *field = (*field & 0xFFFFFFFFull) | (uint64_t)value << 32;
}

/* §4.1.5.1.2.1: a vector that cannot be had reads back as NO_VECTOR. */
static uint16_t acceptable_vector(const struct virtio_pci *vp, uint32_t vector)
{
    return vector < n_vectors(vp) ? (uint16_t)vector : VIRTIO_MSI_NO_VECTOR;
}

static void queue_enable_write(struct virtio_pci *vp, uint32_t value)
{
    unsigned index = vp->regs.queue_select;
    struct virtio_device *vdev = vp->vdev;

    /* §4.1.4.3.2: the driver must not write 0; it does not disable. */
    if (value != 1 || vdev->queues[index].st.enabled)
        return;
    virtio_queue_enable(vdev, index);
    if (!vdev->queues[index].st.enabled || !(vdev->status & VIRTIO_CONFIG_S_DRIVER_OK))
        return;
    sync_bells(vp);
    kick(vp, index);
}

static void queue_field_write(struct virtio_pci *vp, unsigned offset, uint32_t value)
{
    struct virtqueue *vq = selected(vp);

    if (!vq)
        return;
    if (offset == VIRTIO_PCI_COMMON_Q_MSIX) {
        vq->st.msix_vector = acceptable_vector(vp, value);
        return;
    }
    if (vq->st.enabled)
        return; /* §4.1.4.3.2: what describes the queue is written before it is enabled */
    switch (offset) {
    case VIRTIO_PCI_COMMON_Q_SIZE:
        vq->st.size = (uint16_t)value; /* checked when the queue is enabled */
        break;
    case VIRTIO_PCI_COMMON_Q_ENABLE:
        queue_enable_write(vp, value);
        break;
    case VIRTIO_PCI_COMMON_Q_DESCLO:
        set_low(&vq->st.desc, value);
        break;
    case VIRTIO_PCI_COMMON_Q_DESCHI:
        set_high(&vq->st.desc, value);
        break;
    case VIRTIO_PCI_COMMON_Q_AVAILLO:
        set_low(&vq->st.driver, value);
        break;
    case VIRTIO_PCI_COMMON_Q_AVAILHI:
        set_high(&vq->st.driver, value);
        break;
    case VIRTIO_PCI_COMMON_Q_USEDLO:
        set_low(&vq->st.device, value);
        break;
    case VIRTIO_PCI_COMMON_Q_USEDHI:
        set_high(&vq->st.device, value);
        break;
    }
}

static void forget_driver(struct virtio_pci *vp)
{
    vp->regs = (struct virtio_pci_regs){0};
    vp->kicks = 0;
}

static void status_write(struct virtio_pci *vp, uint8_t status)
{
    struct virtio_device *vdev = vp->vdev;
    bool was_ok = vdev->status & VIRTIO_CONFIG_S_DRIVER_OK;

    virtio_set_status(vdev, status);
    if (status == 0)
        forget_driver(vp);
    sync_bells(vp);
    if (was_ok || !(vdev->status & VIRTIO_CONFIG_S_DRIVER_OK))
        return;
    for (unsigned i = 0; i < vdev->n_queues; i++)
        if (vdev->queues[i].st.enabled)
            kick(vp, i);
}

static void common_write(struct virtio_pci *vp, unsigned offset, uint32_t value)
{
    switch (offset) {
    case VIRTIO_PCI_COMMON_DFSELECT:
        vp->regs.device_feature_select = value;
        break;
    case VIRTIO_PCI_COMMON_GFSELECT:
        vp->regs.driver_feature_select = value;
        break;
    case VIRTIO_PCI_COMMON_GF:
        virtio_set_driver_features(vp->vdev, vp->regs.driver_feature_select, value);
        break;
    case VIRTIO_PCI_COMMON_MSIX:
        vp->vdev->config_msix_vector = acceptable_vector(vp, value);
        break;
    case VIRTIO_PCI_COMMON_STATUS:
        status_write(vp, (uint8_t)value);
        break;
    case VIRTIO_PCI_COMMON_Q_SELECT:
        vp->regs.queue_select = (uint16_t)value;
        break;
    default: /* of a queue, or read-only */
        queue_field_write(vp, offset, value);
        break;
    }
}

/* ---- the BAR ---- */

static uint64_t nothing(unsigned size)
{
    return size >= 8 ? UINT64_MAX : (1ull << (8 * size)) - 1;
}

static bool in_config(const struct virtio_class *class, uint64_t offset, unsigned size)
{
    return class->config_size >= size && offset <= class->config_size - size;
}

static uint64_t config_read(struct virtio_pci *vp, uint64_t offset, unsigned size)
{
    const struct virtio_class *class = vp->vdev->class;
    uint64_t bytes = 0;

    if (!class->config_read || !in_config(class, offset, size))
        return nothing(size);
    class->config_read(vp->vdev, offset, &bytes, size);
    return le64toh(bytes);
}

static void config_write(struct virtio_pci *vp, uint64_t offset, unsigned size, uint64_t value)
{
    const struct virtio_class *class = vp->vdev->class;
    uint64_t bytes = htole64(value);

    if (class->config_write && in_config(class, offset, size))
        class->config_write(vp->vdev, offset, &bytes, size);
}

static uint64_t bar_read(void *opaque, uint64_t offset, unsigned size)
{
    struct virtio_pci *vp = opaque;
    uint64_t in_part = offset % PART_BYTES;
    uint64_t value;

    switch (offset - in_part) {
    case COMMON_AT:
        return is_common_field(in_part, size) ? common_read(vp, (unsigned)in_part) : nothing(size);
    case ISR_AT:
        if (in_part >= ISR_BYTES)
            break;
        value = vp->regs.isr;
        vp->regs.isr = 0; /* §4.1.4.5.1: reset by the read */
        return value;
    case CONFIG_AT:
        return config_read(vp, in_part, size);
    case NOTIFY_AT:
        return 0; /* nothing is told here */
    }
    return nothing(size);
}

static void bar_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct virtio_pci *vp = opaque;
    uint64_t in_part = offset % PART_BYTES;

    switch (offset - in_part) {
    case COMMON_AT:
        if (is_common_field(in_part, size))
            common_write(vp, (unsigned)in_part, (uint32_t)value);
        break;
    case CONFIG_AT:
        config_write(vp, in_part, size, value);
        break;
    case NOTIFY_AT:
        /* §4.1.5.2: the address says which queue; the value, its index, says the same. */
        if (in_part % NOTIFY_MULTIPLIER == 0 && in_part / NOTIFY_MULTIPLIER < vp->vdev->n_queues)
            kick(vp, (unsigned)(in_part / NOTIFY_MULTIPLIER));
        break;
    }
}

static const struct bus_ops bar_ops = {.read = bar_read, .write = bar_write};

/* ---- the PCI configuration access capability (§4.1.4.9) ---- */

struct window {
    uint8_t bar;
    uint32_t offset, length;
};

/* What the driver set; false when it is no access that §4.1.4.9.2 allows. */
static bool get_window(const struct virtio_pci *vp, struct window *w)
{
    unsigned cap = vp->cfg_cap;

    w->bar = (uint8_t)pci_function_config(vp->fn, cap + VIRTIO_PCI_CAP_BAR);
    w->offset = pci_function_config(vp->fn, cap + VIRTIO_PCI_CAP_OFFSET);
    w->length = pci_function_config(vp->fn, cap + VIRTIO_PCI_CAP_LENGTH);
    return (w->length == 1 || w->length == 2 || w->length == 4) && w->offset % w->length == 0;
}

static bool touches_data(const struct virtio_pci *vp, unsigned offset)
{
    unsigned data = vp->cfg_cap + offsetof(struct virtio_pci_cfg_cap, pci_cfg_data);

    return vp->cfg_cap != 0 && offset >= data && offset < data + 4;
}

static uint32_t cap_read(void *opaque, unsigned offset, unsigned size, uint32_t value)
{
    struct virtio_pci *vp = opaque;
    struct window w;

    (void)size;
    if (!touches_data(vp, offset))
        return value;
    if (!get_window(vp, &w))
        return UINT32_MAX;
    return (uint32_t)pci_function_bar_read(vp->fn, w.bar, w.offset, w.length) >>
           (8 * (offset & 3));
}

static void cap_write(void *opaque, unsigned offset, unsigned size, uint32_t value)
{
    struct virtio_pci *vp = opaque;
    unsigned data = vp->cfg_cap + offsetof(struct virtio_pci_cfg_cap, pci_cfg_data);
    struct window w;

    (void)size;
    (void)value; /* stored already, beside what earlier and narrower writes left */
    if (touches_data(vp, offset) && get_window(vp, &w))
        pci_function_bar_write(vp->fn, w.bar, w.offset, w.length,
                               pci_function_config(vp->fn, data));
}

/* ---- the device ---- */

static void vp_reset(struct device *dev)
{
    struct virtio_pci *vp = from_device(dev);

    virtio_reset(vp->vdev);
    forget_driver(vp);
    pci_function_reset(vp->fn);
    sync_bells(vp);
}

static void vp_pause(struct device *dev)
{
    virtio_pause(from_device(dev)->vdev);
}

static bool vp_busy(const struct device *dev)
{
    const struct virtio_pci *vp =
        (const struct virtio_pci *)((const char *)dev - offsetof(struct virtio_pci, dev));

    return virtio_busy(vp->vdev);
}

static void vp_resume(struct device *dev)
{
    virtio_resume(from_device(dev)->vdev);
}

static void virtio_get(void *object, void *to)
{
    struct virtio_pci *vp = object;

    vp->inner.get(vp->inner.object, to);
}

/* The device's own check, and that each vector is one that the driver could have set. */
static int virtio_check(void *object, const void *from)
{
    struct virtio_pci *vp = object;
    const struct virtio_state *state = from;
    int err = vp->inner.check(vp->inner.object, from);
    bool good = acceptable_vector(vp, state->config_msix_vector) == state->config_msix_vector;

    if (err)
        return err;
    for (unsigned i = 0; i < vp->vdev->n_queues; i++) {
        uint16_t vector = state->queues[i].msix_vector;

        good = good && acceptable_vector(vp, vector) == vector;
    }
    if (good)
        return 0;
    log_error("%s: saved state: an interrupt vector that the device does not have", vp->dev.id);
    return -EINVAL;
}

static void virtio_set(void *object, const void *from)
{
    struct virtio_pci *vp = object;

    vp->inner.set(vp->inner.object, from);
}

static void regs_get(void *object, void *to)
{
    *(struct virtio_pci_regs *)to = ((const struct virtio_pci *)object)->regs;
}

static int regs_check(void *object, const void *from)
{
    const struct virtio_pci *vp = object;
    const struct virtio_pci_regs *regs = from;

    if ((regs->isr & ~(ISR_QUEUE | ISR_CONFIG)) == 0)
        return 0;
    log_error("%s: saved state: an impossible interrupt status", vp->dev.id);
    return -EINVAL;
}

/* The last part: everything that doorbells depend on is set. The queues are kicked by resume. */
static void regs_set(void *object, const void *from)
{
    struct virtio_pci *vp = object;

    vp->regs = *(const struct virtio_pci_regs *)from;
    vp->kicks = 0;
    sync_bells(vp);
}

static unsigned vp_state(struct device *dev, struct state_part *parts)
{
    struct virtio_pci *vp = from_device(dev);
    unsigned n;

    pci_function_state(vp->fn, &parts[0]);
    n = 1 + virtio_state_parts(vp->vdev, &parts[1]);
    vp->inner = parts[1];
    parts[1] = (struct state_part){
        .desc = vp->inner.desc,
        .object = vp,
        .get = virtio_get,
        .check = virtio_check,
        .set = virtio_set,
    };
    parts[n] = (struct state_part){
        .desc = &regs_desc,
        .object = vp,
        .get = regs_get,
        .check = regs_check,
        .set = regs_set,
    };
    return n + 1;
}

static bool is_drained(void *arg)
{
    const struct virtio_pci *vp = arg;

    if (vp->call_pending)
        return false;
    for (unsigned i = 0; i < vp->vdev->n_queues; i++)
        if (!loop_event_idle(&vp->bells[i].event))
            return false;
    return true;
}

/* No vCPU runs any more; the fields are this thread's alone. */
static void vp_destroy(struct device *dev)
{
    struct virtio_pci *vp = from_device(dev);
    int err;

    device_lock(vp->env);
    vp->mapped = false;
    vp->closing = true;
    sync_bells(vp);
    device_unlock(vp->env);
    for (unsigned i = 0; i < vp->vdev->n_queues; i++)
        if (vp->bells[i].watched)
            loop_event_remove(&vp->bells[i].event);
    err = loop_run_until(vp->env->loop, is_drained, vp, 0);
    device_lock(vp->env);
    pci_function_destroy(vp->fn);
    device_unlock(vp->env);
    for (unsigned i = 0; i < vp->vdev->n_queues; i++)
        if (vp->bells[i].fd >= 0)
            close(vp->bells[i].fd);
    vp->vdev->class->destroy(vp->vdev);
    /* A loop that broke may still hold the watches; then the struct stays until the exit. */
    if (!err)
        free(vp);
}

static const struct device_ops vp_ops = {
    .type = "virtio-pci",
    .reset = vp_reset,
    .pause = vp_pause,
    .busy = vp_busy,
    .resume = vp_resume,
    .state = vp_state,
    .destroy = vp_destroy,
};

/* ---- creation ---- */

static uint32_t class_code(uint16_t device_id)
{
    switch (device_id) {
    case VIRTIO_ID_NET:
        return 0x020000; /* Ethernet controller */
    case VIRTIO_ID_BLOCK:
        return 0x018000; /* mass storage, other */
    case VIRTIO_ID_CONSOLE:
        return 0x078000; /* communication, other */
    }
    return 0x00FF00; /* none of the classes */
}

static int add_cap(struct virtio_pci *vp, uint8_t type, uint32_t at, uint32_t length)
{
    struct virtio_pci_notify_cap cap = {
        .cap = {
            .cap_len = sizeof(struct virtio_pci_cap),
            .cfg_type = type,
            .bar = BAR_INDEX,
            .offset = htole32(at),
            .length = htole32(length),
        },
        .notify_off_multiplier = htole32(NOTIFY_MULTIPLIER),
    };

    if (type == VIRTIO_PCI_CAP_NOTIFY_CFG)
        cap.cap.cap_len = sizeof(cap);
    return pci_function_add_cap(vp->fn, 9 /* vendor specific */, &cap.cap.cap_len,
                                cap.cap.cap_len - 2u, NULL);
}

static int add_cfg_cap(struct virtio_pci *vp)
{
    struct virtio_pci_cfg_cap cap = {
        .cap = {.cap_len = sizeof(cap), .cfg_type = VIRTIO_PCI_CAP_PCI_CFG},
    };
    struct virtio_pci_cfg_cap writable = {
        .cap = {.bar = 0xFF, .offset = UINT32_MAX, .length = UINT32_MAX},
        .pci_cfg_data = {0xFF, 0xFF, 0xFF, 0xFF},
    };
    int at = pci_function_add_cap(vp->fn, 9, &cap.cap.cap_len, sizeof(cap) - 2,
                                  &writable.cap.cap_len);

    if (at < 0)
        return at;
    vp->cfg_cap = (unsigned)at;
    return 0;
}

static int add_caps(struct virtio_pci *vp)
{
    const struct virtio_class *class = vp->vdev->class;
    int err = add_cap(vp, VIRTIO_PCI_CAP_COMMON_CFG, COMMON_AT, COMMON_BYTES);

    if (err >= 0)
        err = add_cap(vp, VIRTIO_PCI_CAP_NOTIFY_CFG, NOTIFY_AT,
                      vp->vdev->n_queues * NOTIFY_MULTIPLIER);
    if (err >= 0)
        err = add_cap(vp, VIRTIO_PCI_CAP_ISR_CFG, ISR_AT, ISR_BYTES);
    /* §4.1.4.6.1: only for a device that has a configuration of its own. */
    if (err >= 0 && class->config_size > 0)
        err = add_cap(vp, VIRTIO_PCI_CAP_DEVICE_CFG, CONFIG_AT, (uint32_t)class->config_size);
    if (err >= 0)
        err = add_cfg_cap(vp);
    return err < 0 ? err : 0;
}

static int create_function(struct virtio_pci *vp, struct pci_bus *pci)
{
    uint16_t type = vp->vdev->class->device_id;
    const struct pci_function_config config = {
        .name = vp->dev.id,
        .vendor_id = VIRTIO_VENDOR_ID,
        .device_id = (uint16_t)(VIRTIO_DEVICE_ID_BASE + type),
        .subsystem_vendor_id = VIRTIO_VENDOR_ID,
        .subsystem_id = (uint16_t)(VIRTIO_SUBSYSTEM_ID_BASE + type),
        .revision = VIRTIO_REVISION,
        .class_code = class_code(type),
        .bars[BAR_INDEX] = {
            .size = BAR_BYTES,
            .ops = &bar_ops,
            .opaque = vp,
            .mapped = bar_mapped,
        },
        .n_msix = n_vectors(vp),
        .msix_bar = BAR_INDEX,
        .msix_table_offset = MSIX_TABLE_AT,
        .msix_pba_offset = MSIX_PBA_AT,
        .cap_read = cap_read,
        .cap_write = cap_write,
        .opaque = vp,
    };

    return pci_function_create(&vp->fn, pci, &config);
}

int virtio_pci_create(struct device **out, struct virtio_device *vdev, struct pci_bus *pci)
{
    struct virtio_pci *vp = calloc(1, sizeof(*vp));
    int err;

    assert(vdev->class->config_size <= PART_BYTES);
    if (!vp)
        return -ENOMEM;
    vp->dev.ops = &vp_ops;
    snprintf(vp->dev.id, sizeof(vp->dev.id), "%s", vdev->id);
    vp->env = vdev->env;
    vp->vdev = vdev;
    vp->call.run = handle_on_loop;
    for (unsigned i = 0; i < VIRTIO_MAX_QUEUES; i++) {
        vp->bells[i].event.fired = bell_rang;
        vp->bells[i].vp = vp;
        vp->bells[i].fd = -1;
    }
    err = create_function(vp, pci);
    if (err)
        goto free_vp;
    err = add_caps(vp);
    if (err)
        goto destroy_function;
    virtio_attach(vdev, &transport_ops, vp);
    *out = &vp->dev;
    return 0;

destroy_function:
    pci_function_destroy(vp->fn);
free_vp:
    free(vp);
    return err;
}
