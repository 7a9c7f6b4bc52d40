/*
 * The virtio device between class and transport: status, feature negotiation, queue life cycle,
 * notifications, state (virtio 1.2 §2.1, §2.2, §2.4, §3.1).
 *
 * Does not know PCI or any class, does not walk rings (virtqueue.c does) and starts no I/O. All of
 * it runs with the device lock held, which guards the struct: on a vCPU's thread for what register
 * accesses cause, on the event loop's for kicks, pause, resume and state.
 */
#include "devices/virtio/virtio.h"

#include <assert.h>
#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <stdio.h>
#include <stdlib.h>

#define ENGINE_FEATURES                                                                            \
    (1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_EVENT_IDX |                                \
     1ull << VIRTIO_RING_F_INDIRECT_DESC | 1ull << VIRTIO_F_RING_PACKED)

/* §2.1: what a driver may write. DEVICE_NEEDS_RESET is the device's own. */
#define DRIVER_STATUS                                                                              \
    (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK |          \
     VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_FAILED)

static const struct state_field device_fields[] = {
    STATE_FIELD(STATE_U8, struct virtio_state, status),
    STATE_FIELD(STATE_U64, struct virtio_state, driver_features),
    STATE_FIELD(STATE_U32, struct virtio_state, config_generation),
    STATE_FIELD(STATE_U16, struct virtio_state, config_msix_vector),
    STATE_FIELD(STATE_U8, struct virtio_state, n_queues),
    STATE_SUB_ARRAY(struct virtio_state, queues, &virtqueue_state_desc),
};
const struct state_desc virtio_state_desc =
    STATE_DESC("virtio", 1, struct virtio_state, device_fields);

/* ---- creation ---- */

int virtio_device_init(struct virtio_device *vdev, const struct virtio_class *class,
                       const struct device_env *env, const char *id, unsigned n_queues,
                       const uint16_t *queue_sizes)
{
    assert(n_queues > 0 && n_queues <= VIRTIO_MAX_QUEUES);
    *vdev = (struct virtio_device){
        .class = class,
        .env = env,
        .n_queues = n_queues,
        .config_msix_vector = VIRTIO_MSI_NO_VECTOR,
    };
    snprintf(vdev->id, sizeof(vdev->id), "%s", id);
    vdev->queues = calloc(n_queues, sizeof(*vdev->queues));
    if (!vdev->queues)
        return -ENOMEM;
    for (unsigned i = 0; i < n_queues; i++) {
        assert(queue_sizes[i] > 0 && queue_sizes[i] <= VIRTQUEUE_MAX_SIZE);
        assert((queue_sizes[i] & (queue_sizes[i] - 1)) == 0);
        virtqueue_init(&vdev->queues[i], env->mem, queue_sizes[i]);
    }
    return 0;
}

void virtio_device_fini(struct virtio_device *vdev)
{
    for (unsigned i = 0; vdev->queues && i < vdev->n_queues; i++)
        virtqueue_fini(&vdev->queues[i]);
    free(vdev->queues);
    vdev->queues = NULL;
    vdev->n_queues = 0;
}

void virtio_attach(struct virtio_device *vdev, const struct virtio_transport_ops *ops,
                   void *transport)
{
    vdev->transport_ops = ops;
    vdev->transport = transport;
    virtio_offered(vdev);
}

/* ---- for classes ---- */

bool virtio_device_live(const struct virtio_device *vdev)
{
    return (vdev->status & VIRTIO_CONFIG_S_DRIVER_OK) &&
           !(vdev->status & VIRTIO_CONFIG_S_NEEDS_RESET) && !vdev->paused;
}

void virtio_queue_notify(struct virtio_device *vdev, struct virtqueue *vq)
{
    /* §2.1.2: no used buffer notification before DRIVER_OK. */
    if (!(vdev->status & VIRTIO_CONFIG_S_DRIVER_OK) || !vdev->transport_ops)
        return;
    if (virtqueue_wants_interrupt(vq))
        vdev->transport_ops->queue_interrupt(vdev->transport, (unsigned)(vq - vdev->queues));
}

static void config_interrupt(struct virtio_device *vdev)
{
    if ((vdev->status & VIRTIO_CONFIG_S_DRIVER_OK) && vdev->transport_ops)
        vdev->transport_ops->config_interrupt(vdev->transport);
}

void virtio_config_changed(struct virtio_device *vdev)
{
    vdev->config_generation++; /* §4.1.4.3.1; the transport shows its low byte */
    config_interrupt(vdev);
}

void virtio_device_broken(struct virtio_device *vdev, const char *why)
{
    if (vdev->status & VIRTIO_CONFIG_S_NEEDS_RESET)
        return;
    log_guest(&vdev->log_rate, "%s: the guest's driver broke the device: %s; it stays silent until"
              " the driver resets it", vdev->id, why);
    vdev->status |= VIRTIO_CONFIG_S_NEEDS_RESET;
    /* §2.1.2: after DRIVER_OK the driver must be told by a configuration change notification. */
    config_interrupt(vdev);
}

/* ---- status and features ---- */

uint64_t virtio_offered(struct virtio_device *vdev)
{
    uint64_t own = vdev->class->features ? vdev->class->features(vdev) : 0;

    vdev->offered = (own | ENGINE_FEATURES) & ~vdev->withheld;
    return vdev->offered;
}

void virtio_set_driver_features(struct virtio_device *vdev, unsigned word, uint32_t bits)
{
    unsigned shift = word * 32;

    /* §2.2.1, §3.1.1 step 6: nothing is accepted after FEATURES_OK. */
    if (word > 1 || (vdev->status & VIRTIO_CONFIG_S_FEATURES_OK))
        return;
    vdev->driver_features &= ~(0xFFFFFFFFull << shift);
    vdev->driver_features |= (uint64_t)bits << shift;
}

/* §2.2.2: refused when a bit was not offered; §6.2: or without VERSION_1, for want of a legacy
 * interface. */
static bool features_acceptable(struct virtio_device *vdev, uint64_t features)
{
    return (features & ~virtio_offered(vdev)) == 0 && (features >> VIRTIO_F_VERSION_1 & 1);
}

void virtio_reset(struct virtio_device *vdev)
{
    vdev->status = 0;
    vdev->negotiated = 0;
    vdev->driver_features = 0;
    vdev->config_msix_vector = VIRTIO_MSI_NO_VECTOR;
    vdev->generation++;
    for (unsigned i = 0; i < vdev->n_queues; i++)
        virtqueue_reset(&vdev->queues[i]);
    vdev->class->reset(vdev);
}

void virtio_set_status(struct virtio_device *vdev, uint8_t status)
{
    uint8_t added = status & DRIVER_STATUS & ~vdev->status;

    if (status == 0) {
        virtio_reset(vdev);
        return;
    }
    /* §2.1.1: the driver must not clear bits; if it tries, they stay. */
    if (added & VIRTIO_CONFIG_S_FEATURES_OK) {
        if (features_acceptable(vdev, vdev->driver_features))
            vdev->negotiated = vdev->driver_features;
        else
            added &= (uint8_t)~VIRTIO_CONFIG_S_FEATURES_OK;
    }
    vdev->status |= added & (uint8_t)~VIRTIO_CONFIG_S_DRIVER_OK;
    if (!(added & VIRTIO_CONFIG_S_DRIVER_OK) || !(vdev->status & VIRTIO_CONFIG_S_FEATURES_OK))
        return;
    vdev->status |= VIRTIO_CONFIG_S_DRIVER_OK;
    if (vdev->class->start)
        vdev->class->start(vdev);
    if (vdev->status & VIRTIO_CONFIG_S_NEEDS_RESET)
        config_interrupt(vdev); /* broken before there was anybody to tell */
}

uint8_t virtio_get_status(const struct virtio_device *vdev)
{
    /* §2.4.1: a reset is complete when the status reads 0; what was in flight may still write to
     * the driver's buffers until then. */
    if (vdev->status == 0 && virtio_busy(vdev))
        return VIRTIO_CONFIG_S_ACKNOWLEDGE;
    return vdev->status;
}

/* ---- queues ---- */

static int enable_queue(struct virtio_device *vdev, struct virtqueue *vq)
{
    bool event_idx = virtio_has(vdev, VIRTIO_RING_F_EVENT_IDX);
    bool indirect = virtio_has(vdev, VIRTIO_RING_F_INDIRECT_DESC);

    if (virtio_has(vdev, VIRTIO_F_RING_PACKED))
        return virtqueue_enable_packed(vq, event_idx, indirect);
    return virtqueue_enable(vq, event_idx, indirect);
}

void virtio_queue_enable(struct virtio_device *vdev, unsigned index)
{
    struct virtqueue *vq = &vdev->queues[index];

    if (vq->st.enabled)
        return;
    if (!(vdev->status & VIRTIO_CONFIG_S_FEATURES_OK)) {
        virtio_device_broken(vdev, "it enabled a queue before the features were agreed");
        return;
    }
    if (enable_queue(vdev, vq) != 0)
        virtio_device_broken(vdev, "it enabled a queue of impossible size or addresses");
}

void virtio_queue_kicked(struct virtio_device *vdev, unsigned index)
{
    if (index < vdev->n_queues && virtio_device_live(vdev) && vdev->queues[index].st.enabled)
        vdev->class->kicked(vdev, index);
}

/* ---- pause, resume, state ---- */

void virtio_pause(struct virtio_device *vdev)
{
    vdev->paused = true;
    if (vdev->class->pause)
        vdev->class->pause(vdev);
}

bool virtio_busy(const struct virtio_device *vdev)
{
    return vdev->class->busy && vdev->class->busy(vdev);
}

void virtio_resume(struct virtio_device *vdev)
{
    vdev->paused = false;
    if (vdev->class->resume)
        vdev->class->resume(vdev);
    /* Kicks that came meanwhile were not counted: look at every queue. */
    for (unsigned i = 0; i < vdev->n_queues; i++)
        virtio_queue_kicked(vdev, i);
}

static void state_get(void *object, void *to)
{
    const struct virtio_device *vdev = object;
    struct virtio_state *state = to;

    state->status = vdev->status;
    state->driver_features = vdev->driver_features;
    state->config_generation = vdev->config_generation;
    state->config_msix_vector = vdev->config_msix_vector;
    state->n_queues = (uint8_t)vdev->n_queues;
    for (unsigned i = 0; i < vdev->n_queues; i++)
        state->queues[i] = vdev->queues[i].st;
}

static int refuse(const struct virtio_device *vdev, const char *what)
{
    log_error("%s: saved state: %s", vdev->id, what);
    return -EINVAL;
}

static int check_status(struct virtio_device *vdev, const struct virtio_state *state)
{
    uint8_t status = state->status;

    if (status & (uint8_t)~(DRIVER_STATUS | VIRTIO_CONFIG_S_NEEDS_RESET))
        return refuse(vdev, "the status has bits that do not exist");
    if ((status & VIRTIO_CONFIG_S_DRIVER_OK) && !(status & VIRTIO_CONFIG_S_FEATURES_OK))
        return refuse(vdev, "the driver is ready without agreed features");
    if ((status & VIRTIO_CONFIG_S_FEATURES_OK) &&
        !features_acceptable(vdev, state->driver_features))
        return refuse(vdev, "the driver uses features that this device does not offer");
    return 0;
}

static int state_check(void *object, const void *from)
{
    struct virtio_device *vdev = object;
    const struct virtio_state *state = from;
    bool packed = state->driver_features >> VIRTIO_F_RING_PACKED & 1;
    int err = check_status(vdev, state);

    if (err)
        return err;
    if (state->n_queues != vdev->n_queues)
        return refuse(vdev, "the number of queues is another");
    for (unsigned i = 0; i < vdev->n_queues; i++) {
        const struct virtqueue_state *st = &state->queues[i];

        if (!st->enabled)
            continue; /* what the driver wrote so far is checked when it enables the queue */
        if (!(state->status & VIRTIO_CONFIG_S_FEATURES_OK))
            return refuse(vdev, "a queue is enabled before the features were agreed");
        if (virtqueue_check(&vdev->queues[i], st, packed) != 0)
            return refuse(vdev, "a queue has an impossible size, address or index");
    }
    return 0;
}

static void state_set(void *object, const void *from)
{
    struct virtio_device *vdev = object;
    const struct virtio_state *state = from;

    virtio_reset(vdev);
    vdev->status = state->status;
    vdev->driver_features = state->driver_features;
    if (state->status & VIRTIO_CONFIG_S_FEATURES_OK)
        vdev->negotiated = state->driver_features;
    vdev->config_generation = state->config_generation;
    vdev->config_msix_vector = state->config_msix_vector;
    for (unsigned i = 0; i < vdev->n_queues; i++) {
        struct virtqueue *vq = &vdev->queues[i];

        vq->st = state->queues[i];
        if (vq->st.enabled)
            (void)enable_queue(vdev, vq); /* checked */
    }
    if ((vdev->status & VIRTIO_CONFIG_S_DRIVER_OK) && vdev->class->start)
        vdev->class->start(vdev);
}

unsigned virtio_state_parts(struct virtio_device *vdev, struct state_part *parts)
{
    parts[0] = (struct state_part){
        .desc = &virtio_state_desc,
        .object = vdev,
        .get = state_get,
        .check = state_check,
        .set = state_set,
    };
    return vdev->class->state && vdev->class->state(vdev, &parts[1]) ? 2 : 1;
}
