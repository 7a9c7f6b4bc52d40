/*
 * The device that is attacked, and the one that is not.
 *
 * Keeps to the rules itself, but for victim_put() and victim_post(), which write what they are
 * given. Thread: the first processor.
 */
#include "hostile.h"

#include <stddef.h>

#include "boot.h"
#include "io.h"
#include "memory.h"
#include "timing.h"
#include "verdict.h"

#define LIMIT        (30 * SECOND)
#define SETTLE       (20 * MILLISECOND)
#define TYPE_READ    0
#define STATUS_NONE  0xEE
#define WITNESS_SIZE 64

struct victim victim;
uint64_t ram_end;

static struct virtio_device witness;
static struct virtqueue witness_queue;
static uint8_t witness_data[WITNESS_SIZE];
static uint64_t chance_state;

uint64_t chance(void)
{
    if (chance_state == 0)
        chance_state = arg_number("seed", 0) * 2 + 88172645463325253ul;
    chance_state ^= chance_state << 13;
    chance_state ^= chance_state >> 7;
    chance_state ^= chance_state << 17;
    return chance_state;
}

static uint64_t find_ram_end(void)
{
    const struct boot_info *info = boot_get();
    uint64_t end = 0;

    for (uint32_t i = 0; i < info->regions; i++) {
        const struct memory_range *range = &info->region[i];
        if (range->type == MEMORY_TYPE_RAM && range->base < 4 * GIB &&
            range->base + range->size > end)
            end = range->base + range->size;
    }
    return end;
}

bool victim_open(void)
{
    ram_end = find_ram_end();
    if (!virtio_open(&victim.device, VIRTIO_BLK, 0)) {
        not_ok("victim", "no virtio-blk");
        return false;
    }
    if (!virtio_open(&witness, VIRTIO_RNG, 0) || !virtio_negotiate(&witness, 0) ||
        !virtio_queue_setup(&witness, &witness_queue, 0, 0, VIRTIO_NO_VECTOR)) {
        not_ok("witness", "no virtio-rng, or it does not start");
        return false;
    }
    virtio_driver_ok(&witness);
    victim.header = memory_alloc(PAGE_SIZE);
    victim.data = memory_alloc(VICTIM_DATA);
    victim.status = memory_alloc(PAGE_SIZE);
    return true;
}

bool victim_prepare(uint64_t features)
{
    /* The rings here are split ones. */
    return virtio_negotiate(&victim.device, features & ~VIRTIO_F_RING_PACKED);
}

bool victim_start(uint64_t features)
{
    if (!victim_prepare(features) ||
        !virtio_queue_setup(&victim.device, &victim.queue, 0, 0, VIRTIO_NO_VECTOR))
        return false;
    virtio_driver_ok(&victim.device);
    return true;
}

bool victim_works(void)
{
    const struct buffer chain[] = { { victim.header, sizeof(*victim.header), false },
                                    { victim.data, VICTIM_SECTOR, true },
                                    { victim.status, 1, true } };

    *victim.header = (struct victim_header){ .type = TYPE_READ };
    *victim.status = STATUS_NONE;
    return virtqueue_request(&victim.queue, chain, 3, LIMIT) == VICTIM_SECTOR + 1 &&
           *(volatile uint8_t *)victim.status == 0;
}

bool witness_works(void)
{
    struct buffer buffer = { witness_data, WITNESS_SIZE, true };

    return virtqueue_request(&witness_queue, &buffer, 1, LIMIT) > 0;
}

void victim_put(uint16_t i, uint64_t address, uint32_t length, uint16_t flags, uint16_t next)
{
    volatile struct vring_desc *desc = &victim.queue.desc[i];

    desc->address = address;
    desc->length = length;
    desc->flags = flags;
    desc->next = next;
}

void victim_post(uint16_t head)
{
    struct virtqueue *queue = &victim.queue;
    uint16_t index = queue->avail->index;

    queue->avail->ring[index % queue->size] = head;
    compiler_barrier();
    queue->avail->index = index + 1;
    store_load_barrier();
    virtqueue_notify(queue);
}

void victim_put_request(uint16_t at)
{
    *victim.header = (struct victim_header){ .type = TYPE_READ };
    *victim.status = STATUS_NONE;
    victim_put(at, (uintptr_t)victim.header, sizeof(*victim.header), DESC_NEXT, at + 1);
    victim_put(at + 1, (uintptr_t)victim.data, VICTIM_SECTOR, DESC_NEXT | DESC_WRITE, at + 2);
    victim_put(at + 2, (uintptr_t)victim.status, 1, DESC_WRITE, 0);
}

static bool needs_reset(void)
{
    return (virtio_status(&victim.device) & VIRTIO_NEEDS_RESET) != 0;
}

/* Until the device says that it is broken, or for as long as may be. */
static bool wait_broken(uint64_t limit_ns)
{
    struct deadline deadline = deadline_in(limit_ns);

    while (!needs_reset()) {
        if (deadline_over(&deadline))
            return false;
        delay_ns(MILLISECOND / 10);
    }
    return true;
}

void attack_end(const char *name, enum outcome expected)
{
    bool broken = wait_broken(expected == MUST_BREAK ? LIMIT : SETTLE);

    if (expected == MUST_BREAK && !broken)
        not_ok(name, "DEVICE_NEEDS_RESET does not come (status %02x)",
               virtio_status(&victim.device));
    else if (expected == MUST_WORK && broken)
        not_ok(name, "the device wants a reset");
    else if (!victim_start(VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX))
        not_ok(name, "the device does not start again (status %02x)",
               virtio_status(&victim.device));
    else if (!victim_works())
        not_ok(name, "the device does not answer after a reset (status %02x)",
               virtio_status(&victim.device));
    else
        check(witness_works(), name, "the other device does not answer");
}
