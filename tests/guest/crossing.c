/*
 * crossing: two virtio-net cards of this guest in one switch; frames go from each to the other, one at
 * a time, and each must arrive whole. What a crossing costs, and how many of them the device wanted to
 * be notified of, is said for each kind of queue.
 *
 * Parameters: `rounds=N`: there and back so often for each kind. `pause=N`: between frames, up to so
 * many nanoseconds, so that the switch's thread is found awake, asleep and on its way to sleep.
 * `polled`: the switch polls, and so hardly ever wants to be notified.
 * Polls. Texts: virtio 1.2, 2.7.10, 2.8.10 (notifications), 5.1.6.
 */
#include <stddef.h>

#include "boot.h"
#include "cpu.h"
#include "io.h"
#include "memory.h"
#include "pci.h"
#include "print.h"
#include "timing.h"
#include "verdict.h"
#include "virtio.h"

#define LIMIT   (10 * SECOND)
#define BUFFERS 16
#define BUFFER  2048
#define HEADER  12 /* virtio 1.2, 5.1.6 */
#define LENGTH  64
#define CARDS   2

#define F_MAC (1ull << 5)
#define ETHER_EXPERIMENT 0xB588 /* 0x88B5, as it lies in memory */

struct card {
    struct virtio_device device;
    struct virtqueue receive, transmit;
    uint8_t mac[6];
    uint8_t *rx_memory, *tx_memory;
    unsigned notified;
};
static struct card cards[CARDS];

static void give_buffer(struct card *card, unsigned index)
{
    struct buffer buffer = { card->rx_memory + index * BUFFER, BUFFER, true };

    virtqueue_add(&card->receive, &buffer, 1, (void *)(uintptr_t)(index + 1));
}

static bool start(struct card *card, unsigned nth, uint64_t features)
{
    if (!virtio_open(&card->device, VIRTIO_NET, nth) ||
        !virtio_negotiate(&card->device, features | F_MAC) ||
        !virtio_queue_setup(&card->device, &card->receive, 0, 0, VIRTIO_NO_VECTOR) ||
        !virtio_queue_setup(&card->device, &card->transmit, 1, 0, VIRTIO_NO_VECTOR))
        return false;
    virtio_driver_ok(&card->device);
    for (unsigned i = 0; i < BUFFERS; i++)
        give_buffer(card, i);
    virtqueue_kick(&card->receive);
    for (unsigned i = 0; i < 6; i++)
        card->mac[i] = mmio_read8(card->device.config + i);
    card->notified = 0;
    return true;
}

/* Sends a frame that bears the number. */
static bool send(struct card *from, const struct card *to, uint32_t number)
{
    uint8_t *frame = from->tx_memory + HEADER;
    struct buffer buffer = { from->tx_memory, HEADER + LENGTH, false };

    memset(from->tx_memory, 0, HEADER + LENGTH);
    memcpy(frame, to->mac, 6);
    memcpy(frame + 6, from->mac, 6);
    *(uint16_t *)(frame + 12) = ETHER_EXPERIMENT;
    for (unsigned i = 16; i < LENGTH; i += 4)
        *(uint32_t *)(frame + i) = number + i;
    if (!virtqueue_add(&from->transmit, &buffer, 1, NULL))
        return false;
    from->notified += virtqueue_kick(&from->transmit);
    return true;
}

/* Whether the next frame that comes is the one with the number. */
static bool receive(struct card *to, uint32_t number)
{
    uint32_t length;
    void *cookie;

    if (!virtqueue_wait(&to->receive, &cookie, &length, LIMIT))
        return false;
    unsigned index = (unsigned)(uintptr_t)cookie - 1;
    const uint8_t *frame = to->rx_memory + index * BUFFER + HEADER;
    bool good = length == HEADER + LENGTH;
    for (unsigned i = 16; i < LENGTH; i += 4)
        good = good && *(const uint32_t *)(frame + i) == number + i;
    give_buffer(to, index);
    virtqueue_kick(&to->receive);
    return good;
}

static bool cross(struct card *from, struct card *to, uint32_t number)
{
    void *cookie;

    return send(from, to, number) && receive(to, number) &&
           virtqueue_wait(&from->transmit, &cookie, NULL, LIMIT);
}

/* 0 to limit - 1, from the round's number: the same in each run. */
static uint64_t some_of(uint64_t limit, uint32_t number)
{
    return (number * 2654435761u >> 8) % limit;
}

static void run(const char *kind, uint64_t features)
{
    uint64_t rounds = arg_number("rounds", 1000), pause = arg_number("pause", 0);

    for (unsigned i = 0; i < CARDS; i++) {
        if (!check(start(&cards[i], i, features), kind, "card %u does not start", i))
            return;
    }
    /* The first come when the switch is asleep, and its thread may be slow to wake. */
    check(cross(&cards[0], &cards[1], 1) && cross(&cards[1], &cards[0], 2), kind, "no frame comes");
    cards[0].notified = cards[1].notified = 0;
    uint64_t begin = now_ns();
    for (uint32_t i = 0; i < rounds; i++) {
        struct card *from = &cards[i & 1], *to = &cards[~i & 1];

        if (pause > 0)
            delay_ns(some_of(pause, i));
        if (!cross(from, to, i * 3)) {
            not_ok(kind, "frame %u of %lu does not come, or not whole", i, rounds);
            return;
        }
    }
    uint64_t each = (now_ns() - begin) / rounds;
    unsigned notified = cards[0].notified + cards[1].notified;
    if (arg_present("polled"))
        check(notified < rounds / 2, kind, "%u of %lu frames were notified of", notified, rounds);
    else
        ok(kind);
    print("notified %s %u of %lu\n", kind, notified, rounds);
    if (pause == 0)
        cost(kind, each);
}

int main(const struct boot_info *info)
{
    (void)info;
    pci_init();
    for (unsigned i = 0; i < CARDS; i++) {
        cards[i].rx_memory = memory_alloc(BUFFERS * BUFFER);
        cards[i].tx_memory = memory_alloc(PAGE_SIZE);
    }
    run("crossing", 0);
    run("crossing-event-index", VIRTIO_F_EVENT_IDX);
    run("crossing-packed", VIRTIO_F_RING_PACKED);
    run("crossing-packed-event-index", VIRTIO_F_RING_PACKED | VIRTIO_F_EVENT_IDX);
    return 0;
}
