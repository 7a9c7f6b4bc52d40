/*
 * virtio-rng (virtio 1.2 §5.4): fills the driver's buffers from getrandom(2).
 *
 * Keeps no pool of its own and never waits: a request gets at most REQUEST_BYTES, a turn serves at
 * most TURN_REQUESTS, and what is left has its turn after the loop's other work, so a guest that
 * asks without end takes a share of the loop only. Runs on the event loop's thread with the device
 * lock held; a reset, on a vCPU's thread, has nothing to forget.
 */
#include "devices/virtio/rng.h"

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/random.h>

#define RNG_DEVICE_ID 4 /* §5.4.1 */
#define QUEUE_SIZE 64
#define REQUEST_BYTES 4096u
#define TURN_REQUESTS 16
/* The host's own pool is not seeded yet: moments after its boot. */
#define RETRY_NS 100000000ull

struct virtio_rng {
    struct virtio_device vdev;    /* first: the class gets this */
    struct virtqueue_chain chain; /* owns */
    struct loop_call again;
    struct loop_timer retry;
};
_Static_assert(offsetof(struct virtio_rng, vdev) == 0, "the class casts");

/* Fills the chain's first bytes; how many, or -EAGAIN. */
static int fill(const struct virtqueue_chain *chain)
{
    uint32_t done = 0;

    for (unsigned i = 0; i < chain->n_writable && done < REQUEST_BYTES; i++) {
        const struct iovec *iov = &chain->iov[chain->n_readable + i];
        size_t n = iov->iov_len < REQUEST_BYTES - done ? iov->iov_len : REQUEST_BYTES - done;
        ssize_t got = getrandom(iov->iov_base, n, GRND_NONBLOCK);

        if (got < 0)
            return done > 0 ? (int)done : -EAGAIN;
        done += (uint32_t)got;
        if ((size_t)got < n) /* a signal; fewer bytes are an answer, too */
            break;
    }
    return (int)done;
}

static void rng_kicked(struct virtio_device *vdev, unsigned index)
{
    struct virtio_rng *rng = (struct virtio_rng *)vdev;
    struct virtqueue *vq = &vdev->queues[index];
    unsigned served;
    int got = 1;

    for (served = 0; served < TURN_REQUESTS; served++) {
        int n;

        got = virtqueue_pop(vq, &rng->chain);
        if (got <= 0)
            break;
        n = fill(&rng->chain);
        if (n < 0) {
            virtqueue_unpop(vq);
            loop_timer_set(vdev->env->loop, &rng->retry, loop_now_ns() + RETRY_NS);
            break;
        }
        virtqueue_push(vq, &rng->chain, (uint32_t)n);
    }
    if (served > 0)
        virtio_queue_notify(vdev, vq);
    if (got < 0)
        virtio_device_broken(vdev, "a request's descriptors are malformed");
    if (served == TURN_REQUESTS)
        loop_call(vdev->env->loop, &rng->again);
}

static void serve(struct virtio_rng *rng)
{
    device_lock(rng->vdev.env);
    virtio_queue_kicked(&rng->vdev, 0);
    device_unlock(rng->vdev.env);
}

static void run_again(struct loop_call *call)
{
    serve((struct virtio_rng *)((char *)call - offsetof(struct virtio_rng, again)));
}

static void run_retry(struct loop_timer *timer)
{
    serve((struct virtio_rng *)((char *)timer - offsetof(struct virtio_rng, retry)));
}

/* A turn that is still to come finds no queue. */
static void rng_reset(struct virtio_device *vdev)
{
    (void)vdev;
}

static bool is_idle(void *arg)
{
    return !atomic_load(&((struct virtio_rng *)arg)->again.queued);
}

static void rng_destroy(struct virtio_device *vdev)
{
    struct virtio_rng *rng = (struct virtio_rng *)vdev;

    device_lock(vdev->env);
    virtio_reset(vdev); /* so that the turn that is awaited here makes no other */
    device_unlock(vdev->env);
    loop_timer_cancel(&rng->retry);
    (void)loop_run_until(vdev->env->loop, is_idle, rng, 0);
    virtqueue_chain_fini(&rng->chain);
    virtio_device_fini(vdev);
    free(rng);
}

static const struct virtio_class rng_class = {
    .name = "virtio-rng",
    .device_id = RNG_DEVICE_ID,
    .kicked = rng_kicked,
    .reset = rng_reset,
    .destroy = rng_destroy,
};

int virtio_rng_create(struct virtio_device **out, const struct device_env *env, const char *id)
{
    static const uint16_t sizes[] = {QUEUE_SIZE};
    struct virtio_rng *rng = calloc(1, sizeof(*rng));
    int err;

    if (!rng)
        return -ENOMEM;
    err = virtqueue_chain_init(&rng->chain, VIRTQUEUE_MAX_PIECES);
    if (!err)
        err = virtio_device_init(&rng->vdev, &rng_class, env, id, 1, sizes);
    if (err) {
        virtqueue_chain_fini(&rng->chain);
        free(rng);
        return err;
    }
    rng->again.run = run_again;
    rng->retry.expired = run_retry;
    *out = &rng->vdev;
    return 0;
}
