/*
 * segment: a station on a network segment, one of several guests in a switch.
 *
 * `role=answer id=N`: answers what is asked of station N, until it is told to end. With `alone`, frames
 * for other stations must not come by, and no tags; with `loud`, it answers to everybody.
 * `role=ask first=N count=N step=N rounds=N`: asks the stations N, N + step, ...; `tagged`: each in the
 * VLAN of its number. `flood=N`: between rounds, that many frames to everybody, which nobody answers.
 * `role=deaf`: gives its receive queue buffers, never looks at them, and halts.
 * `role=idle`: halts.
 *
 * Who asks polls; who answers halts between frames, so that many may share a host's processor.
 * Texts: virtio 1.2, 5.1; IEEE 802.1Q, 9.6 (tags); IEEE 802, 9.2.3 (ethertypes for experiments).
 */
#include <stddef.h>

#include "apic.h"
#include "boot.h"
#include "cpu.h"
#include "io.h"
#include "memory.h"
#include "pci.h"
#include "print.h"
#include "timing.h"
#include "verdict.h"
#include "virtio.h"

#define LIMIT      (30 * SECOND)
#define RETRY      (200 * MILLISECOND)
#define RX_BUFFERS 64
#define RX_SIZE    2048
#define RX_VECTOR  0x73
#define HEADER     12 /* virtio 1.2, 5.1.6 */
#define FRAME_MAX  1514

#define F_MAC (1ull << 5)

#define ETHER_TAG        0x8100
#define ETHER_EXPERIMENT 0x88B5

enum kind { ASK = 1, ANSWER, END, BYE, NOISE };

struct message {
    uint32_t magic;
    uint16_t kind;
    uint16_t id;
    uint32_t sequence;
    uint16_t length; /* of the bytes behind */
    uint8_t bytes[];
} __attribute__((packed));
#define MAGIC 0x46455252

static struct virtio_device nic;
static struct virtqueue receive, transmit;
static uint8_t mac[6];
static uint8_t *rx_memory, *tx_memory;
static volatile uint64_t arrived;

/* The last one received. */
static uint8_t frame[RX_SIZE];
static uint32_t frame_length;

static uint16_t swap16(uint16_t value)
{
    return __builtin_bswap16(value);
}

static void rx_interrupt(uint32_t vector)
{
    (void)vector;
    arrived = 1;
}

/* ---- the device ---- */

static void give_buffer(unsigned index)
{
    struct buffer buffer = { rx_memory + index * RX_SIZE, RX_SIZE, true };

    virtqueue_add(&receive, &buffer, 1, (void *)(uintptr_t)(index + 1));
}

static bool start(void)
{
    if (!virtio_open(&nic, VIRTIO_NET, 0) || !virtio_negotiate(&nic, F_MAC))
        return false;
    pci_msix_enable(&nic.pci, true, false);
    pci_msix_route(&nic.pci, 1, cpu_this()->apic_id, RX_VECTOR);
    irq_set_handler(RX_VECTOR, rx_interrupt);
    if (!virtio_queue_setup(&nic, &receive, 0, 0, 1) ||
        !virtio_queue_setup(&nic, &transmit, 1, 0, VIRTIO_NO_VECTOR))
        return false;
    virtio_driver_ok(&nic);
    for (unsigned i = 0; i < RX_BUFFERS; i++)
        give_buffer(i);
    virtqueue_want_interrupt(&receive, true);
    virtqueue_kick(&receive);
    for (unsigned i = 0; i < 6; i++)
        mac[i] = mmio_read8(nic.config + i);
    return true;
}

static bool take_frame(void)
{
    uint32_t length;
    void *cookie;

    if (!virtqueue_take(&receive, &cookie, &length))
        return false;
    unsigned index = (unsigned)(uintptr_t)cookie - 1;
    frame_length = length > HEADER ? length - HEADER : 0;
    memcpy(frame, rx_memory + index * RX_SIZE + HEADER, frame_length);
    give_buffer(index);
    virtqueue_kick(&receive);
    return true;
}

/* ---- frames ---- */

/* The message in the last frame, and the VLAN of its tag, or 0; NULL when it is none of ours. */
static const struct message *find_message(uint16_t *vlan)
{
    uint32_t at = 12;

    *vlan = 0;
    if (frame_length < 14 + sizeof(struct message))
        return NULL;
    if (swap16(*(uint16_t *)(frame + at)) == ETHER_TAG) {
        *vlan = swap16(*(uint16_t *)(frame + at + 2)) & 0xFFF;
        at += 4;
    }
    const struct message *message = (const struct message *)(frame + at + 2);
    if (swap16(*(uint16_t *)(frame + at)) != ETHER_EXPERIMENT || message->magic != MAGIC ||
        at + 2 + sizeof(*message) + message->length > frame_length)
        return NULL;
    return message;
}

static bool send_message(const uint8_t *to, uint16_t vlan, const struct message *head)
{
    uint8_t *at = tx_memory + HEADER;

    memset(tx_memory, 0, HEADER + 64);
    memcpy(at, to, 6);
    memcpy(at + 6, mac, 6);
    at += 12;
    if (vlan != 0) {
        *(uint16_t *)at = swap16(ETHER_TAG);
        *(uint16_t *)(at + 2) = swap16(vlan);
        at += 4;
    }
    *(uint16_t *)at = swap16(ETHER_EXPERIMENT);
    struct message *message = (struct message *)(at + 2);
    *message = *head;
    for (uint32_t i = 0; i < head->length; i++)
        message->bytes[i] = (uint8_t)(i * 7 + head->sequence + head->id);
    uint32_t length = (uint32_t)((uint8_t *)message - tx_memory) + (uint32_t)sizeof(*message) +
                      head->length;
    struct buffer buffer = { tx_memory, length < HEADER + 60 ? HEADER + 60 : length, false };
    return virtqueue_request(&transmit, &buffer, 1, LIMIT) >= 0;
}

static bool is_whole(const struct message *message)
{
    for (uint32_t i = 0; i < message->length; i++)
        if (message->bytes[i] != (uint8_t)(i * 7 + message->sequence + message->id))
            return false;
    return true;
}

static const uint8_t everybody[6] = { 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF };

/* ---- answering ---- */

static uint32_t foreign, tagged, damaged, answered;

/* True when it was the end. */
static bool answer(uint16_t id)
{
    uint16_t vlan;
    const struct message *message = find_message(&vlan);

    if (message == NULL)
        return false;
    if (vlan != 0)
        tagged++;
    if (message->id != id)
        foreign++;
    if (message->id != id || (message->kind != ASK && message->kind != END))
        return false;
    if (!is_whole(message))
        damaged++;
    struct message reply = *message;
    uint8_t to[6];
    memcpy(to, arg_present("loud") ? everybody : frame + 6, 6);
    reply.kind = message->kind == ASK ? ANSWER : BYE;
    answered++;
    send_message(to, 0, &reply);
    return reply.kind == BYE;
}

static void answer_all(void)
{
    uint16_t id = (uint16_t)arg_number("id", 1);

    for (;;) {
        while (take_frame()) {
            if (!answer(id))
                continue;
            check(answered > 1, "answered", "%u frames", answered);
            check(damaged == 0, "whole", "%u frames were damaged", damaged);
            if (arg_present("alone")) {
                check(foreign == 0, "alone", "%u frames were for others", foreign);
                check(tagged == 0, "untagged", "%u frames had a tag", tagged);
            }
            return;
        }
        arrived = 0;
        virtqueue_want_interrupt(&receive, true);
        if (receive.used->index == receive.used_seen)
            irq_halt(&arrived);
    }
}

/* ---- asking ---- */

#define MAX_STATIONS 64

static uint8_t stations[MAX_STATIONS][6]; /* of zeros: not heard of yet */

static bool is_known(const uint8_t *station)
{
    static const uint8_t nobody[6];

    return memcmp(station, nobody, 6) != 0;
}

/* Sends the message until its answer comes. */
static bool ask(unsigned index, const struct message *head)
{
    uint16_t vlan = arg_present("tagged") ? head->id : 0, got;
    uint16_t want = head->kind == ASK ? ANSWER : BYE;
    struct deadline limit = deadline_in(LIMIT);

    while (!deadline_over(&limit)) {
        struct deadline retry = deadline_in(RETRY);
        const uint8_t *to = is_known(stations[index]) ? stations[index] : everybody;

        if (!send_message(to, vlan, head))
            return false;
        while (!deadline_over(&retry)) {
            if (!take_frame()) {
                cpu_pause();
                continue;
            }
            const struct message *message = find_message(&got);
            if (message == NULL || message->kind != want || message->id != head->id ||
                message->sequence != head->sequence)
                continue;
            memcpy(stations[index], frame + 6, 6);
            return got == vlan && message->length == head->length && is_whole(message);
        }
    }
    return false;
}

static void make_noise(uint64_t frames)
{
    struct message noise = { .magic = MAGIC, .kind = NOISE, .length = 1000 };

    for (uint64_t i = 0; i < frames; i++)
        send_message(everybody, 0, &noise);
}

static void ask_all(void)
{
    static const uint16_t lengths[] = { 0, 1, 100, 1400, 1480 };
    uint64_t first = arg_number("first", 1), count = arg_number("count", 1);
    uint64_t step = arg_number("step", 1), rounds = arg_number("rounds", 10);
    uint64_t begin = now_ns();

    if (count > MAX_STATIONS)
        count = MAX_STATIONS;
    for (uint64_t round = 0; round < rounds; round++) {
        for (unsigned i = 0; i < count; i++) {
            struct message message = { .magic = MAGIC, .kind = ASK };
            message.id = (uint16_t)(first + i * step);
            message.sequence = (uint32_t)round;
            message.length = lengths[(round + i) % (sizeof(lengths) / sizeof(*lengths))];
            if (!ask(i, &message)) {
                not_ok("answers", "round %lu: none from station %u, or a wrong one", round,
                       message.id);
                return;
            }
        }
        make_noise(arg_number("flood", 0));
    }
    ok("answers");
    if (rounds > 0 && count > 0)
        cost("segment-ask", (now_ns() - begin) / (rounds * count));
    for (unsigned i = 0; i < count; i++) {
        struct message message = { .magic = MAGIC, .kind = END, .sequence = 0xFFFF };
        message.id = (uint16_t)(first + i * step);
        check(ask(i, &message), "end", "station %u does not end", message.id);
    }
}

_Noreturn static void halt(void)
{
    static volatile uint64_t never;

    for (;;)
        irq_halt(&never);
}

int main(const struct boot_info *info)
{
    char role[16] = "";

    (void)info;
    arg_text("role", role, sizeof(role));
    pci_init();
    rx_memory = memory_alloc(RX_BUFFERS * RX_SIZE);
    tx_memory = memory_alloc(PAGE_SIZE);
    if (!check(start(), "start", "the device does not start"))
        return 0;
    print("role %s\n", role);
    if (text_equal(role, "answer"))
        answer_all();
    else if (text_equal(role, "ask"))
        ask_all();
    else
        halt();
    return 0;
}
