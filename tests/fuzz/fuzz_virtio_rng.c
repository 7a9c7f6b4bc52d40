/* virtio-rng under a hostile guest. */
#include "devices/virtio/rng.h"
#include "tests/fuzz/virtio_guest.h"

static struct fuzz_guest guest;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    struct virtio_device *vdev;

    if (!guest.env.mem)
        fuzz_guest_init(&guest);
    FUZZ_CHECK(virtio_rng_create(&vdev, &guest.env, "rng0") == 0);
    fuzz_guest_attach(&guest, vdev);
    fuzz_guest_run(&guest, &in);
    fuzz_guest_detach(&guest);
    return 0;
}
