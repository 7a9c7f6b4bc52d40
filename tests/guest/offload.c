/*
 * offload: two virtio-net cards of this guest on one wire or switch; the first sends what it leaves
 * to the device to finish, and the second looks at what arrives, whole or finished, according to what
 * each of them agreed on. Then several queues, by flow and by table.
 *
 * Parameters: `without=NAME`: a feature that the cards must not offer (csum, tso, uso, ecn,
 * mrg_rxbuf, ctrl_vq, mq, rss, announce, event_idx, indirect, packed); what takes it is left out.
 * Polls; has no more of IP and TCP than headers.
 * Texts: virtio 1.2, 5.1.6; RFC 791, 8200, 9293, 768.
 */
#include <stddef.h>

#include "boot.h"
#include "cpu.h"
#include "io.h"
#include "memory.h"
#include "packet.h"
#include "pci.h"
#include "print.h"
#include "timing.h"
#include "verdict.h"
#include "virtio.h"

#define LIMIT      (10 * SECOND)
#define BUFFERS    128
#define BUFFER     2048
#define FRAME_MAX  65536
#define PAIRS      2

#define HOST_ALL  (F_CSUM | F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_USO)
#define GUEST_ALL (F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_USO4 | F_GUEST_USO6)

#define CTRL_MQ       4
#define CTRL_OFFLOADS 5

/* One kind of frame: what is under the payload. */
struct kind {
    const char *name;
    uint64_t host, guest; /* features that leave its cutting to the device, or take it whole */
    uint8_t gso_type;
    bool v6, udp;
};

static const struct kind kinds[] = {
    { "tcp4", F_HOST_TSO4, F_GUEST_TSO4, GSO_TCP4, false, false },
    { "tcp6", F_HOST_TSO6, F_GUEST_TSO6, GSO_TCP6, true, false },
    { "udp4", F_HOST_USO, F_GUEST_USO4, GSO_UDP, false, true },
    { "udp6", F_HOST_USO, F_GUEST_USO6, GSO_UDP, true, true },
};
#define KINDS (sizeof(kinds) / sizeof(*kinds))

struct card {
    struct virtio_device device;
    struct virtqueue rx[PAIRS], tx[PAIRS], ctrl;
    uint8_t mac[6];
    uint8_t *buffers;
};

static struct card a, b;
static uint8_t *sent;     /* header and frame */
static uint8_t *got;      /* header and frame, as they came */
static uint8_t *command_memory;
static uint32_t got_pair;

/* ---- cards ---- */

static void give(struct card *card, unsigned pair, unsigned index)
{
    struct buffer buffer = { card->buffers + (pair * BUFFERS + index) * BUFFER, BUFFER, true };

    virtqueue_add(&card->rx[pair], &buffer, 1, (void *)(uintptr_t)(index + 1));
}

static bool start_card(struct card *card, uint64_t features, unsigned pairs)
{
    bool many = pairs > 1;

    if (!virtio_negotiate(&card->device, features))
        return false;
    for (unsigned i = 0; i < pairs; i++) {
        if (!virtio_queue_setup(&card->device, &card->rx[i], (uint16_t)(i * 2), 0,
                                VIRTIO_NO_VECTOR) ||
            !virtio_queue_setup(&card->device, &card->tx[i], (uint16_t)(i * 2 + 1), 0,
                                VIRTIO_NO_VECTOR))
            return false;
    }
    if ((card->device.features & F_CTRL_VQ) != 0 &&
        !virtio_queue_setup(&card->device, &card->ctrl, many ? PAIRS * 2 : 2, 0, VIRTIO_NO_VECTOR))
        return false;
    virtio_driver_ok(&card->device);
    for (unsigned i = 0; i < pairs; i++) {
        for (unsigned k = 0; k < BUFFERS; k++)
            give(card, i, k);
        virtqueue_kick(&card->rx[i]);
    }
    for (unsigned i = 0; i < 6; i++)
        card->mac[i] = mmio_read8(card->device.config + i);
    return true;
}

static bool command(struct card *card, uint8_t class, uint8_t cmd, const void *data,
                    uint32_t length)
{
    const struct buffer buffers[] = {
        { command_memory, 2, false },
        { command_memory + 16, length, false },
        { command_memory + 8, 1, true },
    };

    command_memory[0] = class;
    command_memory[1] = cmd;
    command_memory[8] = 0xEE;
    memcpy(command_memory + 16, data, length);
    return virtqueue_request(&card->ctrl, buffers, 3, LIMIT) >= 0 && command_memory[8] == 0;
}

/* ---- frames ---- */

static void put16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static uint32_t get16(const uint8_t *at)
{
    return (uint32_t)at[0] << 8 | at[1];
}

static uint32_t sum(uint32_t so_far, const uint8_t *at, uint32_t length)
{
    for (uint32_t i = 0; i < length; i++)
        so_far += (i & 1) == 0 ? (uint32_t)at[i] << 8 : at[i];
    while (so_far >> 16 != 0)
        so_far = (so_far & 0xFFFF) + (so_far >> 16);
    return so_far;
}

static uint32_t l4_of(const struct kind *kind)
{
    return kind->v6 ? 14 + 40 : 14 + 20;
}

static uint32_t headers_of(const struct kind *kind)
{
    return l4_of(kind) + (kind->udp ? 8 : 20);
}

static uint32_t pseudo(const struct kind *kind, const uint8_t *frame, uint32_t l4_length)
{
    uint32_t addresses = kind->v6 ? sum(0, frame + 22, 32) : sum(0, frame + 26, 8);
    const uint8_t rest[4] = { 0, kind->udp ? 17 : 6, (uint8_t)(l4_length >> 8),
                              (uint8_t)l4_length };

    return sum(addresses, rest, 4);
}

static uint8_t pattern(uint32_t at)
{
    return (uint8_t)(at * 7 + (at >> 8) * 3);
}

/* Builds a frame from card a to b whose checksum, and cutting if gso_size is not 0, are the device's. */
static uint32_t build(const struct kind *kind, uint32_t payload, uint16_t gso_size)
{
    struct net_header *header = (struct net_header *)sent;
    uint8_t *frame = sent + sizeof(*header);
    uint32_t l4 = l4_of(kind), end = headers_of(kind);

    memset(sent, 0, sizeof(*header) + end);
    header->flags = HEADER_NEEDS_CSUM;
    header->gso_type = gso_size != 0 ? kind->gso_type : 0;
    header->gso_size = gso_size;
    header->checksum_start = (uint16_t)l4;
    header->checksum_offset = kind->udp ? 6 : 16;
    memcpy(frame, b.mac, 6);
    memcpy(frame + 6, a.mac, 6);
    put16(frame + 12, kind->v6 ? 0x86DD : 0x0800);
    frame[14] = kind->v6 ? 0x60 : 0x45;
    frame[kind->v6 ? 20 : 23] = kind->udp ? 17 : 6;
    frame[kind->v6 ? 21 : 22] = 64;
    frame[kind->v6 ? 22 : 26] = 10;
    frame[kind->v6 ? 38 : 30] = 11;
    put16(frame + (kind->v6 ? 18 : 16), kind->v6 ? end + payload - 54 : end + payload - 14);
    put16(frame + l4, 1000);
    put16(frame + l4 + 2, 2000);
    if (kind->udp)
        put16(frame + l4 + 4, 8 + payload);
    else
        frame[l4 + 12] = 0x50;
    put16(frame + l4 + header->checksum_offset, pseudo(kind, frame, end + payload - l4));
    if (!kind->v6)
        put16(frame + 24, sum(0, frame + 14, 20) ^ 0xFFFF);
    for (uint32_t i = 0; i < payload; i++)
        frame[end + i] = pattern(i);
    return (uint32_t)sizeof(*header) + end + payload;
}

static bool send(struct card *card, unsigned pair, uint32_t length)
{
    const struct buffer buffers[] = {
        { sent, 100, false }, { sent + 100, length - 100, false },
    };

    return virtqueue_request(&card->tx[pair], buffers, 2, LIMIT) >= 0;
}

/* The next chain of any of card b's receive queues, into `got` from byte `at` on. */
static uint32_t next_buffer(unsigned pairs, uint32_t at, const struct deadline *deadline)
{
    uint32_t length;
    void *cookie;

    for (;;) {
        for (unsigned i = 0; i < pairs; i++) {
            if (!virtqueue_take(&b.rx[i], &cookie, &length))
                continue;
            unsigned index = (unsigned)(uintptr_t)cookie - 1;
            if (index >= BUFFERS || length > BUFFER || at + length > FRAME_MAX + 64)
                return 0;
            memcpy(got + at, b.buffers + (i * BUFFERS + index) * BUFFER, length);
            give(&b, i, index);
            virtqueue_kick(&b.rx[i]);
            got_pair = i;
            return length;
        }
        if (deadline_over(deadline))
            return 0;
        cpu_pause();
    }
}

/* The next frame that card a sent; its length with the header, or 0. */
static uint32_t receive(unsigned pairs)
{
    struct deadline deadline = deadline_in(LIMIT);

    for (;;) {
        uint32_t total = next_buffer(pairs, 0, &deadline);
        uint32_t left = ((const struct net_header *)got)->buffers;
        if (total == 0)
            return 0;
        while (left-- > 1) {
            uint32_t length = next_buffer(pairs, total, &deadline);
            if (length == 0)
                return 0;
            total += length;
        }
        if (memcmp(got + sizeof(struct net_header) + 6, a.mac, 6) == 0)
            return total;
    }
}

/* ---- what arrives ---- */

static const struct net_header *got_header(void)
{
    return (const struct net_header *)got;
}

/* Whether the checksum is right, or left to be done and begun rightly. */
static bool checksum_is_right(const struct kind *kind, uint32_t length, bool left_to_do)
{
    const uint8_t *frame = got + sizeof(struct net_header);
    uint32_t l4 = l4_of(kind);
    uint32_t start = pseudo(kind, frame, length - l4);

    if (!kind->v6 && sum(0, frame + 14, 20) != 0xFFFF)
        return false;
    if (left_to_do)
        return (got_header()->flags & HEADER_NEEDS_CSUM) != 0 &&
               got_header()->checksum_start == l4 &&
               get16(frame + l4 + got_header()->checksum_offset) == start;
    return got_header()->flags == 0 && sum(start, frame + l4, length - l4) == 0xFFFF;
}

static bool payload_is_right(const struct kind *kind, uint32_t length, uint32_t from)
{
    const uint8_t *data = got + sizeof(struct net_header) + headers_of(kind);

    for (uint32_t i = 0; i < length - headers_of(kind); i++) {
        if (data[i] != pattern(from + i))
            return false;
    }
    return true;
}

/* A large frame that must arrive as it was sent. */
static bool crosses_whole(const struct kind *kind)
{
    uint32_t length = build(kind, 30000, 1400);

    if (!send(&a, 0, length) || receive(1) != length)
        return false;
    length -= (uint32_t)sizeof(struct net_header);
    return got_header()->gso_type == kind->gso_type && got_header()->gso_size == 1400 &&
           checksum_is_right(kind, length, true) && payload_is_right(kind, length, 0);
}

/* One that must arrive in pieces, their checksums done or left to do. */
static bool crosses_cut(const struct kind *kind, bool left_to_do)
{
    uint32_t at = 0;

    if (!send(&a, 0, build(kind, 30000, 1400)))
        return false;
    while (at < 30000) {
        uint32_t payload = 30000 - at < 1400 ? 30000 - at : 1400;
        uint32_t length = headers_of(kind) + payload;
        if (receive(1) != length + sizeof(struct net_header) || got_header()->gso_type != 0 ||
            !checksum_is_right(kind, length, left_to_do) || !payload_is_right(kind, length, at))
            return false;
        at += payload;
    }
    return true;
}

/* One that needs no cutting. */
static bool crosses_short(const struct kind *kind, bool left_to_do)
{
    uint32_t length = build(kind, 1000, 0);

    if (!send(&a, 0, length) || receive(1) != length)
        return false;
    length -= (uint32_t)sizeof(struct net_header);
    return checksum_is_right(kind, length, left_to_do) && payload_is_right(kind, length, 0);
}

static bool both_start(uint64_t from, uint64_t to)
{
    return check(start_card(&a, from, 1) && start_card(&b, to, 1), "start",
                 "a card does not start");
}

/* All kinds of frames between cards whose rings have these features. */
static void check_kinds(const char *name, uint64_t from, uint64_t to, uint64_t offered)
{
    print("note: %s\n", name);
    for (unsigned i = 0; i < KINDS; i++) {
        const struct kind *kind = &kinds[i];
        uint64_t host = F_CSUM | kind->host;

        if ((offered & F_CSUM) == 0)
            return;
        if (!both_start(from | host, to | GUEST_ALL | F_MRG_RXBUF))
            return;
        check(crosses_short(kind, true), "checksum-left", "%s", kind->name);
        if ((offered & kind->host) != 0 && (offered & kind->guest) != 0 &&
            (offered & F_MRG_RXBUF) != 0)
            check(crosses_whole(kind), "whole", "%s", kind->name);
        if (!both_start(from | host, to))
            return;
        check(crosses_short(kind, false), "checksum-done", "%s", kind->name);
        if ((offered & kind->host) != 0)
            check(crosses_cut(kind, false), "cut", "%s", kind->name);
        if ((offered & kind->host) != 0 && both_start(from | host, to | F_GUEST_CSUM))
            check(crosses_cut(kind, true), "cut-checksum-left", "%s", kind->name);
    }
}

static void check_switched_off(uint64_t offered)
{
    uint64_t csum = F_GUEST_CSUM, all = GUEST_ALL & offered;

    if (!both_start(HOST_ALL, GUEST_ALL | F_MRG_RXBUF | F_CTRL_VQ | F_GUEST_OFFLOADS))
        return;
    check(crosses_whole(&kinds[0]), "offloads-on", "not whole");
    check(command(&b, CTRL_OFFLOADS, 0, &csum, 8) && crosses_cut(&kinds[0], true), "offloads-off",
          "not cut");
    check(command(&b, CTRL_OFFLOADS, 0, &all, 8) && crosses_whole(&kinds[0]), "offloads-on-again",
          "not whole");
}

/* ---- several queues ---- */

/* The reverse of the flow that build() makes, from card b's pair. */
static bool answer_from(unsigned pair)
{
    uint32_t length = build(&kinds[0], 100, 0);
    uint8_t *frame = sent + sizeof(struct net_header);

    memcpy(frame, a.mac, 6);
    memcpy(frame + 6, b.mac, 6);
    frame[26] = 11;
    frame[30] = 10;
    put16(frame + 34, 2000);
    put16(frame + 36, 1000);
    return send(&b, pair, length);
}

static bool arrives_at(unsigned pair)
{
    return send(&a, 0, build(&kinds[0], 100, 0)) && receive(PAIRS) != 0 && got_pair == pair;
}

static void check_queues(uint64_t ring)
{
    uint16_t pairs = PAIRS;

    if (!check(start_card(&a, F_CSUM, 1) &&
               start_card(&b, F_CSUM | F_CTRL_VQ | F_MQ | ring, PAIRS), "start-pairs",
               "a card does not start"))
        return;
    check(arrives_at(0), "first-pair", "at first it is not the first pair");
    if (!check(command(&b, CTRL_MQ, 0, &pairs, 2), "pairs", "the command fails"))
        return;
    for (unsigned i = 0; i < 6; i++) {
        unsigned pair = (i + 1) % PAIRS;
        if (!check(answer_from(pair) && arrives_at(pair), "pair-of-flow", "pair %u, not %u",
                   got_pair, pair))
            return;
    }
}

static void check_table(void)
{
    struct {
        uint32_t types;
        uint16_t mask, unclassified, table[4], senders;
        uint8_t key_length, key[40];
    } __attribute__((packed)) rss = { .types = 0x3F, .mask = 3, .senders = 1, .key_length = 40 };

    for (unsigned i = 0; i < 40; i++)
        rss.key[i] = (uint8_t)(i * 11 + 1);
    if (!check(start_card(&a, F_CSUM, 1) &&
               start_card(&b, F_CTRL_VQ | F_MQ | F_RSS, PAIRS), "start-rss",
               "a card does not start"))
        return;
    for (unsigned pair = PAIRS; pair-- > 0;) {
        for (unsigned i = 0; i < 4; i++)
            rss.table[i] = (uint16_t)pair;
        check(command(&b, CTRL_MQ, 1, &rss, sizeof(rss)) && arrives_at(pair), "pair-of-table",
              "pair %u, not %u", got_pair, pair);
    }
}

/* ---- all ---- */

static uint64_t bits_of(const char *name)
{
    static const struct {
        const char *name;
        uint64_t bits;
    } rows[] = {
        { "csum", HOST_ALL | GUEST_ALL },
        { "tso", F_HOST_TSO4 | F_HOST_TSO6 | F_GUEST_TSO4 | F_GUEST_TSO6 },
        { "uso", F_HOST_USO | F_GUEST_USO4 | F_GUEST_USO6 },
        { "ecn", F_HOST_ECN | F_GUEST_ECN },
        { "mrg_rxbuf", F_MRG_RXBUF },
        { "ctrl_vq", F_CTRL_VQ | F_CTRL_RX | F_MQ | F_RSS | F_ANNOUNCE | F_GUEST_OFFLOADS },
        { "mq", F_MQ | F_RSS },
        { "rss", F_RSS },
        { "announce", F_ANNOUNCE },
        { "event_idx", VIRTIO_F_EVENT_IDX },
        { "indirect", VIRTIO_F_INDIRECT_DESC },
        { "packed", VIRTIO_F_RING_PACKED },
    };

    for (unsigned i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        if (text_equal(name, rows[i].name))
            return rows[i].bits;
    }
    return 0;
}

static uint64_t check_offered(void)
{
    uint64_t offered = virtio_offered(&a.device) & virtio_offered(&b.device);
    char without[16];

    if (!arg_text("without", without, sizeof(without)))
        return offered;
    check(bits_of(without) != 0 &&
          ((virtio_offered(&a.device) | virtio_offered(&b.device)) & bits_of(without)) == 0,
          "without", "%s is offered", without);
    return offered;
}

int main(const struct boot_info *info)
{
    const uint64_t packed = VIRTIO_F_RING_PACKED;
    const uint64_t better = VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC;

    (void)info;
    pci_init();
    sent = memory_alloc(FRAME_MAX + 64);
    got = memory_alloc(FRAME_MAX + 4096);
    command_memory = memory_alloc(PAGE_SIZE);
    a.buffers = memory_alloc(BUFFERS * BUFFER);
    b.buffers = memory_alloc(PAIRS * BUFFERS * BUFFER);
    if (!check(virtio_open(&a.device, VIRTIO_NET, 0) && virtio_open(&b.device, VIRTIO_NET, 1),
               "open", "there are no two cards"))
        return 0;
    uint64_t offered = check_offered();
    check_kinds("packed to split", (packed | better) & offered, better & offered, offered);
    if (!arg_present("without")) {
        check_kinds("split to split", 0, 0, offered);
        check_kinds("split to packed", better, packed, offered);
    }
    if ((offered & F_GUEST_OFFLOADS) != 0 && (offered & F_HOST_TSO4) != 0 &&
        (offered & F_MRG_RXBUF) != 0)
        check_switched_off(offered);
    if ((offered & F_MQ) != 0) {
        check_queues(0);
        check_queues(packed & offered);
    }
    if ((offered & F_RSS) != 0)
        check_table();
    return 0;
}
