/* virtio-console under a hostile guest, and a terminal that reads, types and changes its size. */
#include "devices/chardev.h"
#include "devices/virtio/console.h"
#include "tests/fuzz/virtio_guest.h"

static struct fuzz_guest guest;
static struct chardev *chardev;

static void use_terminal(struct fuzz_guest *g, struct fuzz_input *in)
{
    static const uint8_t typed[300] = "what somebody types";
    uint8_t what = (uint8_t)fuzz_take(in, 1);
    uint8_t read[4096];

    device_lock(&g->env);
    switch (what % 3) {
    case 0:
        (void)chardev_memory_take(chardev, read, 16u * what);
        break;
    case 1: {
        size_t n = what;
        size_t took = chardev_memory_feed(chardev, typed, n);

        FUZZ_CHECK(took <= n);
        break;
    }
    case 2:
        chardev_memory_resize(chardev, (unsigned)fuzz_take(in, 3), (unsigned)fuzz_take(in, 3));
        break;
    }
    device_unlock(&g->env);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    struct virtio_device *vdev;

    if (!guest.env.mem)
        fuzz_guest_init(&guest);
    FUZZ_CHECK(chardev_memory_create(&chardev) == 0);
    FUZZ_CHECK(virtio_console_create(&vdev, &guest.env, "console0", chardev) == 0);
    guest.outside = use_terminal;
    fuzz_guest_attach(&guest, vdev);
    fuzz_guest_run(&guest, &in);
    fuzz_guest_detach(&guest);
    chardev_destroy(chardev);
    return 0;
}
