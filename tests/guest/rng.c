/*
 * rng: a driver of virtio-rng that asks for bytes in many sizes and looks whether they are random.
 *
 * The look is rough: it finds a device that gives zeros, a constant, the same block twice or half
 * of a buffer, not a weak generator. `ms=N` is the length of the measurement; 0: none.
 * Text: virtio 1.2, 5.4.
 */
#include <stddef.h>

#include "boot.h"
#include "io.h"
#include "memory.h"
#include "pci.h"
#include "print.h"
#include "timing.h"
#include "verdict.h"
#include "virtio.h"

#define LIMIT   (10 * SECOND)
#define LARGE   65536
#define PIECES  8
#define CANARY  0xA5

static struct virtio_device device;
static struct virtqueue queue;
static uint8_t *large, *again;

/* Fills length bytes in as many requests as it takes; false when one gives nothing or too much. */
static bool gather(uint8_t *to, uint32_t length)
{
    uint32_t done = 0;

    while (done < length) {
        struct buffer buffer = { to + done, length - done, true };
        int64_t used = virtqueue_request(&queue, &buffer, 1, LIMIT);
        if (used <= 0 || used > length - done)
            return false;
        done += (uint32_t)used;
    }
    return true;
}

static void check_sizes(void)
{
    static const uint32_t sizes[] = { 1, 2, 7, 64, 511, 4096, 65535, LARGE };

    for (unsigned i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        uint32_t size = sizes[i];
        memset(large, CANARY, LARGE + PAGE_SIZE);
        struct buffer buffer = { large, size, true };
        int64_t used = virtqueue_request(&queue, &buffer, 1, LIMIT);
        if (used < 1 || used > size) {
            not_ok("sizes", "%u bytes asked, used length %ld", size, used);
            return;
        }
        for (uint32_t at = size; at < size + 64; at++) {
            if (large[at] != CANARY) {
                not_ok("sizes", "%u bytes asked, byte %u written", size, at);
                return;
            }
        }
    }
    ok("sizes");
}

/* In 64 KiB every byte value comes about 256 times. */
static void check_random(void)
{
    static uint32_t counts[256];
    uint32_t least = LARGE, most = 0;

    if (!gather(large, LARGE) || !gather(again, LARGE)) {
        not_ok("random", "64 KiB cannot be had");
        return;
    }
    check(memcmp(large, again, LARGE) != 0, "random-differs", "the same 64 KiB twice");
    for (uint32_t i = 0; i < LARGE; i++)
        counts[large[i]]++;
    for (unsigned i = 0; i < 256; i++) {
        least = counts[i] < least ? counts[i] : least;
        most = counts[i] > most ? counts[i] : most;
    }
    check(least > 128 && most < 512, "random", "byte values come %u to %u times in 65536", least,
          most);
}

static void check_chain(void)
{
    struct buffer chain[PIECES];
    uint32_t total = 0;

    memset(large, 0, LARGE);
    for (unsigned i = 0; i < PIECES; i++) {
        chain[i] = (struct buffer){ large + i * PAGE_SIZE, i + 1, true };
        total += i + 1;
    }
    int64_t used = virtqueue_request(&queue, chain, PIECES, LIMIT);
    bool outside = false;
    for (unsigned i = 0; i < PIECES; i++)
        outside |= large[i * PAGE_SIZE + i + 1] != 0;
    check(used >= 1 && used <= total && !outside, "chain", "used length %ld of %u%s", used, total,
          outside ? ", bytes outside written" : "");
}

/* As many buffers as the queue takes, all at once; each comes back once. */
static void check_depth(void)
{
    static uint8_t seen[VIRTQUEUE_MAX_SIZE];
    unsigned added = 0;
    void *cookie;

    for (; added < queue.size; added++) {
        struct buffer buffer = { large + added * 32, 32, true };
        if (!virtqueue_add(&queue, &buffer, 1, (void *)(uintptr_t)(added + 1)))
            break;
    }
    virtqueue_kick(&queue);
    for (unsigned i = 0; i < added; i++) {
        if (!virtqueue_wait(&queue, &cookie, NULL, LIMIT)) {
            not_ok("depth", "%u of %u buffers came back", i, added);
            return;
        }
        uintptr_t number = (uintptr_t)cookie;
        if (number == 0 || number > added || seen[number - 1]++ != 0) {
            not_ok("depth", "buffer %lu came back twice or never went out", number);
            return;
        }
    }
    check(added == queue.size, "depth", "the ring of %u took %u", queue.size, added);
}

static void measure(uint64_t length)
{
    struct deadline end = deadline_in(length);
    uint64_t begin = now_ns();
    uint64_t bytes = 0;
    uint64_t requests = 0;

    while (!deadline_over(&end)) {
        struct buffer buffer = { large, PAGE_SIZE, true };
        int64_t used = virtqueue_request(&queue, &buffer, 1, LIMIT);
        if (used <= 0) {
            not_ok("measure", "used length %ld", used);
            return;
        }
        bytes += (uint64_t)used;
        requests++;
    }
    cost("rng-4k", (now_ns() - begin) / requests);
    print("rate rng %lu bytes per second\n", bytes * 1000 / ((now_ns() - begin) / 1000000));
}

static bool start(uint64_t features)
{
    if (!virtio_negotiate(&device, features) ||
        !virtio_queue_setup(&device, &queue, 0, 0, VIRTIO_NO_VECTOR))
        return false;
    virtio_driver_ok(&device);
    return true;
}

int main(const struct boot_info *info)
{
    static const uint64_t features[] = { 0, VIRTIO_F_INDIRECT_DESC,
                                         VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX };

    (void)info;
    pci_init();
    large = memory_alloc(LARGE + PAGE_SIZE);
    again = memory_alloc(LARGE);
    if (!check(virtio_open(&device, VIRTIO_RNG, 0), "open", "no virtio-rng"))
        return 0;
    for (unsigned i = 0; i < sizeof(features) / sizeof(*features); i++) {
        print("note: features %lx\n", features[i]);
        if (!check(start(features[i]), "start", "the device does not start"))
            return 0;
        check_sizes();
        check_chain();
    }
    check_random();
    check_depth();
    if (arg_number("ms", 100) > 0)
        measure(arg_number("ms", 100) * MILLISECOND);
    check(virtio_reset(&device), "reset", "the status does not return to 0");
    return 0;
}
