/*
 * Attacks on every queue of every virtio device there is, by rings from chance: what the device
 * classes make of chains that the ring's rules allow and their own do not.
 *
 * The virtio-console has a mode of its own: the machine then has no other console, so that what is
 * to be printed waits until the device is back.
 * Text: virtio 1.2, 2.7.
 */
#include <stddef.h>

#include "boot.h"
#include "hostile.h"
#include "io.h"
#include "memory.h"
#include "print.h"
#include "timing.h"
#include "vconsole.h"
#include "verdict.h"

#define QUEUES    3
#define AREA      (64 * KIB)
#define KEPT_SIZE (16 * KIB)

static struct virtqueue queues[QUEUES];
static uint8_t *area; /* what devices may write to */

static void put(struct virtqueue *queue, uint16_t i)
{
    static const uint32_t lengths[] = { 0, 1, 4, 12, 13, 64, 512, 1514, 4096, 16384 };
    uint64_t address = (uintptr_t)area + chance() % (AREA / 2);
    uint32_t length = lengths[chance() % (sizeof(lengths) / sizeof(*lengths))];
    uint16_t flags = (uint16_t)(chance() & 7);
    uint64_t turn = chance() % 16;

    if (turn == 0)
        address = chance() | 1ull << 40;
    else if (turn == 1)
        length = (uint32_t)chance() | 0x80000000;
    else if (turn == 2)
        address = 0xD0000000;
    if (chance() % 4 != 0)
        flags &= (uint16_t)~DESC_INDIRECT;
    queue->desc[i].address = address;
    queue->desc[i].length = length;
    queue->desc[i].flags = flags;
    queue->desc[i].next = (uint16_t)(chance() % 12);
}

/* Chains of one and two good pieces, so that some get past the first look. */
static void put_plain(struct virtqueue *queue, uint16_t i, bool device_writes)
{
    queue->desc[i].address = (uintptr_t)area + chance() % (AREA / 2);
    queue->desc[i].length = (uint32_t)(chance() % 2048);
    queue->desc[i].flags = device_writes ? DESC_WRITE : 0;
    if (chance() % 2 == 0 && i < 8) {
        queue->desc[i].flags |= DESC_NEXT;
        queue->desc[i].next = i + 1;
    }
}

static void scribble_queue(struct virtqueue *queue)
{
    bool device_writes = chance() % 2 == 0;
    bool plain = chance() % 2 == 0;
    uint16_t index = queue->avail->index;

    for (uint16_t i = 0; i < 10; i++) {
        if (plain)
            put_plain(queue, i, device_writes);
        else
            put(queue, i);
    }
    for (unsigned i = 0; i < 4; i++)
        queue->avail->ring[index++ % queue->size] = (uint16_t)(chance() % (plain ? 9 : 11));
    compiler_barrier();
    queue->avail->index = chance() % 32 == 0 ? (uint16_t)chance() : index;
    store_load_barrier();
    virtqueue_notify(queue);
}

static bool start_queues(struct virtio_device *device, unsigned *count)
{
    *count = 0;
    if (!virtio_negotiate(device, chance()))
        return false;
    for (uint16_t i = 0; i < QUEUES; i++) {
        if (virtio_queue_max(device, i) == 0)
            break;
        if (!virtio_queue_setup(device, &queues[i], i, 0, VIRTIO_NO_VECTOR))
            return false;
        ++*count;
    }
    virtio_driver_ok(device);
    return *count > 0;
}

/* Rounds of rubbish in all queues of device; false, told of, when it does not come back. */
static bool torment(struct virtio_device *device, const char *name)
{
    uint64_t rounds = arg_number("rounds", 100);

    for (uint64_t round = 0; round < rounds; round++) {
        unsigned count;
        if (!start_queues(device, &count)) {
            not_ok(name, "it does not start in round %lu (status %02x)", round,
                   virtio_status(device));
            return false;
        }
        for (uint32_t at = 0; at < AREA; at += 8)
            *(uint64_t *)(void *)(area + at) = round % 2 == 0 ? 0 : chance() & chance();
        for (unsigned step = 0; step < 6; step++)
            scribble_queue(&queues[chance() % count]);
        if (round % 4 == 0)
            delay_ns(MILLISECOND);
        if (!virtio_reset(device)) {
            not_ok(name, "its status does not return to 0 in round %lu", round);
            return false;
        }
    }
    return true;
}

void attack_queues(void)
{
    static const struct {
        const char *name;
        uint16_t type;
        unsigned first; /* the witness, the first virtio-rng, is spared */
    } kinds[] = {
        { "queues-net", VIRTIO_NET, 0 },
        { "queues-blk", VIRTIO_BLK, 0 },
        { "queues-rng", VIRTIO_RNG, 1 },
    };
    static struct virtio_device device;

    area = memory_alloc(AREA);
    for (unsigned kind = 0; kind < sizeof(kinds) / sizeof(*kinds); kind++) {
        for (unsigned n = kinds[kind].first; virtio_open(&device, kinds[kind].type, n); n++) {
            if (torment(&device, kinds[kind].name))
                attack_end(kinds[kind].name, MAY_BREAK);
        }
    }
}

static char kept[KEPT_SIZE];
static uint32_t kept_length;

static void keep(char c)
{
    if (kept_length < KEPT_SIZE)
        kept[kept_length++] = c;
}

void attack_console(void)
{
    static struct virtio_device device;

    print_set_sink(keep);
    area = memory_alloc(AREA);
    if (!virtio_open(&device, VIRTIO_CONSOLE, 0) || !vconsole_open())
        return; /* and there is nobody to tell: no verdict comes */
    if (torment(&device, "queues-console"))
        attack_end("queues-console", MAY_BREAK);
    if (!vconsole_start(0))
        return;
    vconsole_write("\n", 1);
    vconsole_write(kept, kept_length);
    print_set_sink(vconsole_sink);
    ok("console-back");
}
