/*
 * stations: cards of one guest in one switch, of which the first two have stations behind them
 * (`learn=on`), the third sends, and the last two ask for all frames, of whom one alone may
 * (`promisc=on`). Who gets a frame for a station's address is looked at: after the station spoke,
 * after it spoke behind the other card, and when it has been silent for too long.
 *
 * Takes a switch with a short `fdb-age`. That somebody does not get a frame is known when he gets the one
 * sent after it. Polls. Texts: virtio 1.2, 5.1.6.5.1 (receive modes); IEEE 802.1Q, 8.7 (learning).
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

#define LIMIT   (30 * SECOND)
#define PAUSE   (50 * MILLISECOND) /* between two looks at whether something has changed */
#define BUFFERS 16
#define BUFFER  2048
#define HEADER  12 /* virtio 1.2, 5.1.6 */
#define LENGTH  60

#define F_MAC     (1ull << 5)
#define F_CTRL_VQ (1ull << 17)
#define F_CTRL_RX (1ull << 18)
#define ETHER_EXPERIMENT 0xB588 /* 0x88B5, as it lies in memory */
#define CTRL_RX 0 /* and its command 0: promiscuous mode */

enum { LEFT, RIGHT, SENDER, CURIOUS, LISTENER, CARDS };
#define BIT(card) (1u << (card))

struct card {
    struct virtio_device device;
    struct virtqueue receive, transmit, ctrl;
    uint8_t mac[6];
    uint8_t *rx_memory, *tx_memory;
};
static struct card cards[CARDS];
static uint32_t last; /* the number of the frame that was sent last */

static const uint8_t everybody[6] = { 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF };
static const uint8_t station[6] = { 2, 0, 0, 0, 0, 0x77 };
static const uint8_t nobody[6] = { 2, 0, 0, 0, 0, 0x78 };

static void give_buffer(struct card *card, unsigned index)
{
    struct buffer buffer = { card->rx_memory + index * BUFFER, BUFFER, true };

    virtqueue_add(&card->receive, &buffer, 1, (void *)(uintptr_t)(index + 1));
    virtqueue_kick(&card->receive);
}

/* Who cannot set a filter up hears all that the switch sends. */
static bool start(struct card *card, unsigned nth)
{
    bool filters = nth == CURIOUS || nth == LISTENER;

    card->rx_memory = memory_alloc(BUFFERS * BUFFER);
    card->tx_memory = memory_alloc(PAGE_SIZE);
    if (!virtio_open(&card->device, VIRTIO_NET, nth) ||
        !virtio_negotiate(&card->device, F_MAC | (filters ? F_CTRL_VQ | F_CTRL_RX : 0)) ||
        !virtio_queue_setup(&card->device, &card->receive, 0, 0, VIRTIO_NO_VECTOR) ||
        !virtio_queue_setup(&card->device, &card->transmit, 1, 0, VIRTIO_NO_VECTOR) ||
        (filters && !virtio_queue_setup(&card->device, &card->ctrl, 2, 0, VIRTIO_NO_VECTOR)))
        return false;
    virtio_driver_ok(&card->device);
    for (unsigned i = 0; i < BUFFERS; i++)
        give_buffer(card, i);
    for (unsigned i = 0; i < 6; i++)
        card->mac[i] = mmio_read8(card->device.config + i);
    return true;
}

static bool ask_for_all(struct card *card)
{
    uint8_t *command = card->tx_memory;
    const struct buffer buffers[] = { { command, 3, false }, { command + 8, 1, true } };

    command[0] = CTRL_RX;
    command[1] = 0;
    command[2] = 1;
    command[8] = 0xEE;
    return virtqueue_request(&card->ctrl, buffers, 2, LIMIT) >= 0 && command[8] == 0;
}

/* A frame with the next number. */
static bool send(struct card *from, const uint8_t *source, const uint8_t *to)
{
    uint8_t *frame = from->tx_memory + HEADER;
    const struct buffer buffer = { from->tx_memory, HEADER + LENGTH, false };

    memset(from->tx_memory, 0, HEADER + LENGTH);
    memcpy(frame, to, 6);
    memcpy(frame + 6, source, 6);
    *(uint16_t *)(frame + 12) = ETHER_EXPERIMENT;
    *(uint32_t *)(frame + 16) = ++last;
    return virtqueue_request(&from->transmit, &buffer, 1, LIMIT) >= 0;
}

/* The number of the next frame that comes; 0: none does. */
static uint32_t receive(struct card *card)
{
    uint32_t length, number;
    void *cookie;

    if (!virtqueue_wait(&card->receive, &cookie, &length, LIMIT))
        return 0;
    unsigned index = (unsigned)(uintptr_t)cookie - 1;
    number = *(uint32_t *)(card->rx_memory + index * BUFFER + HEADER + 16);
    give_buffer(card, index);
    return number;
}

/* A station behind the card says something, and the sender hears it. */
static bool speak(struct card *card)
{
    if (!send(card, station, everybody))
        return false;
    for (uint32_t number = 0; number != last;) {
        number = receive(&cards[SENDER]);
        if (number == 0)
            return false;
    }
    return true;
}

/* Bits of the cards that get a frame from the sender to that address; 0xFF: one is deaf. */
static unsigned who_gets(const uint8_t *to)
{
    const uint8_t *own = cards[SENDER].mac;
    unsigned got = 0;

    if (!send(&cards[SENDER], own, to) || !send(&cards[SENDER], own, everybody))
        return 0xFF;
    for (unsigned i = 0; i < CARDS; i++) {
        uint32_t number = 0;

        while (i != SENDER && number != last) {
            number = receive(&cards[i]);
            if (number == 0)
                return 0xFF;
            if (number == last - 1)
                got |= BIT(i);
        }
    }
    return got;
}

/* Until it is these cards that get what is sent to that address; each time after the station has spoken
 * behind `behind`, if that is one. */
static void expect(const char *name, struct card *behind, const uint8_t *to, unsigned want)
{
    struct deadline deadline = deadline_in(LIMIT);
    unsigned got = ~want;

    while (got != want && !deadline_over(&deadline)) {
        if (behind && !speak(behind)) {
            not_ok(name, "the station is not heard");
            return;
        }
        got = who_gets(to);
        if (got != want)
            delay_ns(PAUSE);
    }
    check(got == want, name, "cards %x get it, and not %x", got, want);
}

int main(const struct boot_info *info)
{
    (void)info;
    pci_init();
    for (unsigned i = 0; i < CARDS; i++) {
        if (!check(start(&cards[i], i), "start", "card %u does not start", i))
            return 0;
    }
    /* Who may not asks first: when the other is heard, both are. */
    check(ask_for_all(&cards[CURIOUS]) && ask_for_all(&cards[LISTENER]), "ask", "a card refuses");
    expect("promiscuous", NULL, nobody, BIT(LISTENER));
    expect("registered", NULL, cards[LEFT].mac, BIT(LEFT) | BIT(LISTENER));
    expect("learnt", &cards[LEFT], station, BIT(LEFT) | BIT(LISTENER));
    expect("moved", &cards[RIGHT], station, BIT(RIGHT) | BIT(LISTENER));
    expect("moved-back", &cards[LEFT], station, BIT(LEFT) | BIT(LISTENER));
    expect("aged", NULL, station, BIT(LISTENER));
    return 0;
}
