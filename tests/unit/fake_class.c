/* A virtio device class for tests; see the header. Owned by the test's thread. */
#include "tests/unit/fake_class.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct kept {
    uint32_t n;
};

static const struct state_field kept_fields[] = {STATE_FIELD(STATE_U32, struct kept, n)};
static const struct state_desc kept_desc = STATE_DESC("fake-class", 1, struct kept, kept_fields);

static struct fake_class *of(struct virtio_device *vdev)
{
    return (struct fake_class *)((char *)vdev - offsetof(struct fake_class, vdev));
}

static uint64_t features(struct virtio_device *vdev)
{
    return of(vdev)->own_features;
}

static void config_read(struct virtio_device *vdev, size_t offset, void *to, size_t size)
{
    cr_assert_leq(offset + size, FAKE_CLASS_CONFIG);
    memcpy(to, of(vdev)->config + offset, size);
}

static void config_write(struct virtio_device *vdev, size_t offset, const void *from, size_t size)
{
    cr_assert_leq(offset + size, FAKE_CLASS_CONFIG);
    memcpy(of(vdev)->config + offset, from, size);
}

static void start(struct virtio_device *vdev)
{
    of(vdev)->starts++;
    of(vdev)->started_ok = virtio_has(vdev, FAKE_CLASS_FEATURE_A);
}

static void kicked(struct virtio_device *vdev, unsigned index)
{
    struct fake_class *fc = of(vdev);
    struct virtqueue *vq = &vdev->queues[index];
    uint8_t bytes[256];
    int got = 0;

    fc->kicks[index]++;
    while (fc->echo && (got = virtqueue_pop(vq, &fc->chain)) == 1) {
        uint64_t n = virtqueue_read(&fc->chain, 0, bytes, sizeof(bytes));

        virtqueue_push(vq, &fc->chain, (uint32_t)virtqueue_write(&fc->chain, 0, bytes, n));
    }
    if (got < 0)
        virtio_device_broken(vdev, "a bad chain");
    virtio_queue_notify(vdev, vq);
}

static void reset(struct virtio_device *vdev)
{
    of(vdev)->resets++;
}

static void pause_class(struct virtio_device *vdev)
{
    of(vdev)->pauses++;
}

static bool busy(const struct virtio_device *vdev)
{
    return ((const struct fake_class *)((const char *)vdev - offsetof(struct fake_class, vdev)))
        ->busy;
}

static void resume(struct virtio_device *vdev)
{
    of(vdev)->resumes++;
}

static void kept_get(void *object, void *to)
{
    ((struct kept *)to)->n = ((struct fake_class *)object)->kept;
}

static int kept_check(void *object, const void *from)
{
    (void)object;
    return ((const struct kept *)from)->n > 1000 ? -EINVAL : 0;
}

static void kept_set(void *object, const void *from)
{
    ((struct fake_class *)object)->kept = ((const struct kept *)from)->n;
}

static bool state(struct virtio_device *vdev, struct state_part *part)
{
    *part = (struct state_part){.desc = &kept_desc, .object = of(vdev), .get = kept_get,
                                .check = kept_check, .set = kept_set};
    return true;
}

static void destroy(struct virtio_device *vdev)
{
    struct fake_class *fc = of(vdev);

    if (fc->destroyed)
        *fc->destroyed = true;
    fake_class_drop(fc);
}

static const struct virtio_class fake_class = {
    .name = "fake",
    .device_id = FAKE_CLASS_ID,
    .features = features,
    .config_size = FAKE_CLASS_CONFIG,
    .config_read = config_read,
    .config_write = config_write,
    .start = start,
    .kicked = kicked,
    .reset = reset,
    .pause = pause_class,
    .busy = busy,
    .resume = resume,
    .state = state,
    .destroy = destroy,
};

struct fake_class *fake_class_create(const struct device_env *env, const char *id)
{
    static const uint16_t sizes[FAKE_CLASS_QUEUES] = {
        FAKE_CLASS_SIZE, FAKE_CLASS_SIZE, FAKE_CLASS_SIZE};
    struct fake_class *fc = calloc(1, sizeof(*fc));

    cr_assert_not_null(fc);
    cr_assert_eq(virtio_device_init(&fc->vdev, &fake_class, env, id, FAKE_CLASS_QUEUES, sizes), 0);
    cr_assert_eq(virtqueue_chain_init(&fc->chain, 64), 0);
    fc->own_features = 1ull << FAKE_CLASS_FEATURE_A | 1ull << FAKE_CLASS_FEATURE_B;
    for (int i = 0; i < FAKE_CLASS_CONFIG; i++)
        fc->config[i] = (uint8_t)i;
    return fc;
}

void fake_class_drop(struct fake_class *fc)
{
    virtqueue_chain_fini(&fc->chain);
    virtio_device_fini(&fc->vdev);
    free(fc);
}
