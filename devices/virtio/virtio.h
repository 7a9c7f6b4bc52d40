/*
 * Between virtio device classes and transports (virtio 1.2 §2, §4).
 *
 * A class (net, block, ...) is a struct virtio_class: what it is, its features, its configuration
 * space, what to do when a queue is kicked. It sees validated chains and knows no transport. A
 * transport (virtio_pci.c) drives a struct virtio_device through virtio.c: status, features, queue
 * set-up; and is told about interrupts through struct virtio_transport_ops. Neither includes the
 * other.
 *
 * Threads: class and transport callbacks run with the device lock held: those that a register
 * access causes on a vCPU thread, `kicked` on the event loop's thread always.
 */
#ifndef FERRY_VIRTIO_H
#define FERRY_VIRTIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "devices/virtio/virtqueue.h"
#include "vmm/device.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define VIRTIO_MAX_QUEUES 64

struct virtio_device;

struct virtio_class {
    const char *name;   /* "virtio-blk" */
    uint16_t device_id; /* §5 */
    /* The class's own features, constant from virtio_attach() on; virtio.c adds VERSION_1,
     * EVENT_IDX, INDIRECT_DESC. May be NULL: none. */
    uint64_t (*features)(struct virtio_device *vdev);
    /* Device configuration (§2.5), `offset + size` within config_size; little-endian bytes.
     * Both may be NULL: no space, read-only. */
    size_t config_size;
    void (*config_read)(struct virtio_device *vdev, size_t offset, void *to, size_t size);
    void (*config_write)(struct virtio_device *vdev, size_t offset, const void *from, size_t size);
    /* DRIVER_OK was set: features are final, queues enabled so far are usable. Also called when a
     * state with DRIVER_OK was loaded, before the class's own state is set. May be NULL. */
    void (*start)(struct virtio_device *vdev);
    /* Loop thread: the driver kicked queue `index`, or the device was resumed. The queue is enabled
     * and the device is neither broken nor paused. */
    void (*kicked)(struct virtio_device *vdev, unsigned index);
    /*
     * The driver reset the device (vCPU thread) or the machine resets it. Forget everything about
     * the queues; the results of requests in flight must be dropped when they come (see
     * `generation` below), and until busy() is false again the device's status reads non-zero
     * (§2.4.1): the transport asks busy().
     */
    void (*reset)(struct virtio_device *vdev);
    void (*pause)(struct virtio_device *vdev);      /* may be NULL */
    bool (*busy)(const struct virtio_device *vdev); /* may be NULL: never */
    void (*resume)(struct virtio_device *vdev);     /* may be NULL; queues get kicked after it */
    /* Fills one state_part for what the class itself keeps; false when it keeps nothing. Set runs
     * last. May be NULL: nothing. */
    bool (*state)(struct virtio_device *vdev, struct state_part *part);
    /* Frees the class's struct (which embeds the virtio_device). */
    void (*destroy)(struct virtio_device *vdev);
};

struct virtio_transport_ops {
    /* The queue has used buffers the driver wants to hear of. */
    void (*queue_interrupt)(void *transport, unsigned index);
    /* The configuration changed, or the device needs a reset. */
    void (*config_interrupt)(void *transport);
};

/* What the driver negotiated; what migrates beside the queues. */
struct virtio_state {
    uint8_t status;           /* §2.1 */
    uint64_t driver_features;
    uint32_t config_generation;
    uint16_t config_msix_vector;
    uint8_t n_queues;         /* checked against the class at load */
    struct virtqueue_state queues[VIRTIO_MAX_QUEUES];
};
extern const struct state_desc virtio_state_desc;

/* The head of every class's struct. */
struct virtio_device {
    const struct virtio_class *class;
    const struct device_env *env; /* borrowed */
    char id[32];                  /* as struct device */
    unsigned n_queues;
    struct virtqueue *queues;     /* owns */
    uint8_t status;
    uint64_t withheld;            /* features that are not to be offered, set before virtio_attach() */
    uint64_t offered;             /* features; see virtio_offered() */
    uint64_t negotiated;          /* what the driver chose; final with FEATURES_OK, 0 before */
    uint64_t driver_features;     /* what it wrote so far */
    uint32_t config_generation;
    uint16_t config_msix_vector;  /* kept here for the transport; VIRTIO_MSI_NO_VECTOR: none */
    /* Counts resets. A request in flight remembers it, and is dropped when it differs. */
    uint32_t generation;
    bool paused;
    struct log_rate log_rate;
    const struct virtio_transport_ops *transport_ops;
    void *transport;              /* borrowed */
};

/* ---- for classes ---- */

/* queue_sizes: what each queue offers, a power of two up to VIRTQUEUE_MAX_SIZE. 0 or -ENOMEM. */
int virtio_device_init(struct virtio_device *vdev, const struct virtio_class *class,
                       const struct device_env *env, const char *id, unsigned n_queues,
                       const uint16_t *queue_sizes);
void virtio_device_fini(struct virtio_device *vdev);

static inline bool virtio_has(const struct virtio_device *vdev, unsigned feature_bit)
{
    return vdev->negotiated >> feature_bit & 1;
}

/* Interrupts the driver if it wants to hear of what was pushed. Call once after a batch. */
void virtio_queue_notify(struct virtio_device *vdev, struct virtqueue *vq);
/* The configuration space changed: raises its generation, interrupts (§2.5, §4.1.4.3.1). */
void virtio_config_changed(struct virtio_device *vdev);
/* What the driver did is beyond repair (`why`: for the log, which names the device): sets
 * DEVICE_NEEDS_RESET (§2.1.2), interrupts; queues are ignored until reset. */
void virtio_device_broken(struct virtio_device *vdev, const char *why);
/* Whether DRIVER_OK is set, nothing is broken and nothing paused. */
bool virtio_device_live(const struct virtio_device *vdev);

/* ---- for transports ---- */

/* Called once, before the guest runs. `transport` is borrowed, and passed to ops. */
void virtio_attach(struct virtio_device *vdev, const struct virtio_transport_ops *ops,
                   void *transport);

/* The class's features and those of the engine, without those withheld; refreshes vdev->offered. */
uint64_t virtio_offered(struct virtio_device *vdev);

/*
 * The driver writes the status (§2.1): 0 resets; bits only add up; FEATURES_OK is refused, and then
 * reads as 0, when the driver chose what is not offered or left VERSION_1 out (§2.2.2, §6.2);
 * DRIVER_OK is refused without FEATURES_OK. Reading gives non-zero while a reset lasts.
 */
void virtio_set_status(struct virtio_device *vdev, uint8_t status);
uint8_t virtio_get_status(const struct virtio_device *vdev);
void virtio_set_driver_features(struct virtio_device *vdev, unsigned word, uint32_t bits);
/* Enables queue `index` as its st says. An invalid set-up breaks the device. */
void virtio_queue_enable(struct virtio_device *vdev, unsigned index);
/* Loop thread: a kick arrived. Checks that the queue is live, then class->kicked(). */
void virtio_queue_kicked(struct virtio_device *vdev, unsigned index);
void virtio_reset(struct virtio_device *vdev);

/* Of struct device_ops, for the transport's own; resume kicks every queue that is live. */
void virtio_pause(struct virtio_device *vdev);
bool virtio_busy(const struct virtio_device *vdev);
void virtio_resume(struct virtio_device *vdev);
/* Fills up to two parts, the device's and the class's; returns how many. After set the queues are
 * enabled as they were; the transport then sets up its own side. */
unsigned virtio_state_parts(struct virtio_device *vdev, struct state_part *parts);

/*
 * Puts a class on PCI: adds a function to the bus and returns the device that the machine then
 * owns; destroying it destroys the class. On error vdev stays the caller's.
 */
struct pci_bus;
int virtio_pci_create(struct device **out, struct virtio_device *vdev, struct pci_bus *pci);

#endif
