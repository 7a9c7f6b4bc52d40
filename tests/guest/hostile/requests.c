/*
 * Attacks by well-formed chains with absurd contents: block requests and network frames.
 * Text: virtio 1.2, 5.1.6, 5.2.6.
 */
#include <stddef.h>

#include "hostile.h"
#include "boot.h"
#include "io.h"
#include "memory.h"
#include "print.h"
#include "timing.h"
#include "verdict.h"

#define LIMIT  (30 * SECOND)
#define SETTLE (20 * MILLISECOND)

/* ---- block requests ---- */

#define F_DISCARD (1ull << 13)
#define F_ZEROES  (1ull << 14)

enum { READ = 0, WRITE = 1, FLUSH = 4, GET_ID = 8, DISCARD = 11, ZEROES = 13, ERASE = 14 };

static void post_request(uint32_t type, uint64_t sector, uint32_t length, bool device_writes)
{
    const struct buffer chain[] = { { victim.header, sizeof(*victim.header), false },
                                    { victim.data, length, device_writes },
                                    { victim.status, 1, true } };

    *victim.header = (struct victim_header){ .type = type, .sector = sector };
    virtqueue_add(&victim.queue, chain, 3, NULL);
    virtqueue_kick(&victim.queue);
}

/* Every request is answered, or the device says that it is broken. */
static void collect(const char *name, unsigned count)
{
    struct deadline deadline = deadline_in(LIMIT);
    void *cookie;

    for (unsigned seen = 0; seen < count;) {
        if (virtqueue_take(&victim.queue, &cookie, NULL)) {
            seen++;
        } else if ((virtio_status(&victim.device) & VIRTIO_NEEDS_RESET) != 0) {
            break;
        } else if (deadline_over(&deadline)) {
            not_ok(name, "%u of %u requests were answered, and no reset is asked for", seen,
                   count);
            break;
        }
    }
}

static void attack_request(const char *name, uint32_t type, uint64_t sector, uint32_t length,
                           bool device_writes)
{
    victim_start(0);
    post_request(type, sector, length, device_writes);
    collect(name, 1);
    attack_end(name, MAY_BREAK);
}

static void attack_requests(void)
{
    attack_request("read-sector-max", READ, ~0ull, 512, true);
    attack_request("read-sector-wraps", READ, 1ull << 55, 512, true);
    attack_request("read-sector-byte-wraps", READ, ~0ull / 512, 4096, true);
    attack_request("read-length-1", READ, 0, 1, true);
    attack_request("read-length-513", READ, 0, 513, true);
    attack_request("read-into-readable", READ, 0, 512, false);
    attack_request("write-from-writable", WRITE, 8, 512, true);
    attack_request("write-length-7", WRITE, 8, 7, false);
    attack_request("write-past-end", WRITE, ~0ull - 1, 4096, false);
    attack_request("flush-with-data", FLUSH, 0, 512, false);
    attack_request("flush-sector", FLUSH, ~0ull, 512, true);
    attack_request("id-length-1", GET_ID, 0, 1, true);
    attack_request("id-length-21", GET_ID, 0, 21, true);
    attack_request("id-length-4096", GET_ID, 0, 4096, true);
    attack_request("id-readable", GET_ID, 0, 20, false);
    attack_request("type-max", 0xFFFFFFFF, 0, 512, true);
    attack_request("type-secure-erase", ERASE, 0, 16, false);
}

/* Discard and write-zeroes with segments from chance and of wrong lengths. */
static void attack_segments(void)
{
    static const uint32_t lengths[] = { 0, 1, 8, 15, 16, 17, 32, 256, 272, 4096, 65536 };

    for (uint32_t type = DISCARD; type <= ZEROES; type += 2) {
        victim_start(F_DISCARD | F_ZEROES);
        for (unsigned i = 0; i < sizeof(lengths) / sizeof(*lengths); i++) {
            for (uint32_t at = 0; at < 4096; at += 8) {
                uint64_t value = chance() % 3 == 0 ? ~0ull : chance();
                memcpy(victim.data + at, &value, 8);
            }
            post_request(type, chance(), lengths[i], false);
        }
        collect("segments", sizeof(lengths) / sizeof(*lengths));
        attack_end(type == DISCARD ? "discard-segments" : "zeroes-segments", MAY_BREAK);
    }
}

/* Chains that lack a part, or cut it anywhere. */
static void attack_shapes(void)
{
    for (uint32_t header = 0; header <= 17; header++) {
        for (uint32_t status = 0; status < 2; status++) {
            victim_start(0);
            *victim.header = (struct victim_header){ 0 };
            victim_put(0, (uintptr_t)victim.header, header, status != 0 ? DESC_NEXT : 0, 1);
            victim_put(1, (uintptr_t)victim.status, 1, DESC_WRITE, 0);
            victim_post(0);
            delay_ns(MILLISECOND);
        }
    }
    attack_end("request-shapes", MAY_BREAK);
    victim_start(0);
    victim_put(0, (uintptr_t)victim.data, 512, DESC_WRITE, 0);
    victim_post(0);
    attack_end("request-only-writable", MAY_BREAK);
    /* 255 times 16 MiB of the same memory, read: never more than the disk can hold. */
    victim_start(0);
    *victim.header = (struct victim_header){ .type = WRITE };
    victim_put(0, (uintptr_t)victim.header, 16, DESC_NEXT, 1);
    for (uint16_t i = 1; i + 1 < victim.queue.size; i++)
        victim_put(i, 16 * MIB, 16 * MIB, DESC_NEXT, i + 1);
    victim_put(victim.queue.size - 1, (uintptr_t)victim.status, 1, DESC_WRITE, 0);
    victim_post(0);
    attack_end("request-4g-of-data", MAY_BREAK);
}

static void attack_random_requests(void)
{
    static const uint32_t types[] = { READ, WRITE, FLUSH, GET_ID, DISCARD, ZEROES, ERASE };

    for (unsigned round = 0; round < 20; round++) {
        victim_start(chance());
        unsigned posted = 0;
        for (; posted < 50; posted++) {
            uint32_t type = types[chance() % (sizeof(types) / sizeof(*types))];
            uint64_t sector = chance() >> chance() % 64;
            post_request(type, sector, (uint32_t)(chance() % 8192), chance() % 2 == 0);
        }
        collect("random-requests", posted);
    }
    attack_end("random-requests", MAY_BREAK);
}

void attack_blk(void)
{
    attack_requests();
    attack_segments();
    attack_shapes();
    attack_random_requests();
}

/* ---- network frames ---- */

#define NET_HEADER 12
#define RX_COUNT   16
#define RX_SIZE    2048
#define TX_MAX     (80 * KIB)
#define ARP_LENGTH 42

static struct virtio_device nic;
static struct virtqueue receive, transmit;
static uint8_t *rx_memory, *tx_memory;

static bool start_nic(uint32_t rx_size)
{
    if (!virtio_negotiate(&nic, 0) ||
        !virtio_queue_setup(&nic, &receive, 0, 0, VIRTIO_NO_VECTOR) ||
        !virtio_queue_setup(&nic, &transmit, 1, 0, VIRTIO_NO_VECTOR))
        return false;
    virtio_driver_ok(&nic);
    for (unsigned i = 0; i < RX_COUNT; i++) {
        struct buffer buffer = { rx_memory + i * RX_SIZE, rx_size, true };
        virtqueue_add(&receive, &buffer, 1, NULL);
    }
    virtqueue_kick(&receive);
    return true;
}

/* An ARP request for the gateway, behind an empty header. */
static void put_arp(void)
{
    static const uint8_t frame[ARP_LENGTH] = {
        0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x52, 0x54, 0, 0x46, 0x45, 0x52, 0x08, 0x06,
        0, 1, 8, 0, 6, 4, 0, 1, 0x52, 0x54, 0, 0x46, 0x45, 0x52, 10, 0, 2, 15,
        0, 0, 0, 0, 0, 0, 10, 0, 2, 2,
    };

    memset(tx_memory, 0, NET_HEADER);
    memcpy(tx_memory + NET_HEADER, frame, sizeof(frame));
}

/* The NIC comes back by a reset, and the gateway answers it. */
static void nic_end(const char *name)
{
    struct buffer request = { tx_memory, NET_HEADER + ARP_LENGTH, false };
    uint32_t length = 0;
    void *cookie;

    delay_ns(SETTLE);
    if (!start_nic(RX_SIZE)) {
        not_ok(name, "the NIC does not start again");
        return;
    }
    put_arp();
    if (virtqueue_request(&transmit, &request, 1, LIMIT) < 0) {
        not_ok(name, "the NIC takes no frame after a reset");
        return;
    }
    bool answered = virtqueue_wait(&receive, &cookie, &length, LIMIT);
    check(answered && length >= NET_HEADER + ARP_LENGTH && witness_works(), name,
          "the gateway does not answer (%u bytes), or the other device does not", length);
}

static void send_length(uint32_t length)
{
    struct buffer buffer = { tx_memory, length, false };

    virtqueue_request(&transmit, &buffer, 1, 100 * MILLISECOND);
    if ((virtio_status(&nic) & VIRTIO_NEEDS_RESET) != 0)
        start_nic(RX_SIZE);
}

static void attack_frame_lengths(void)
{
    static const uint32_t lengths[] = { 1513, 1514, 1515, 1526, 1527, 2048, 4096, 9000, 9014,
                                        16384, 32768, 65535, 65536, 65547, 65548, 65549, 65550,
                                        65562, 66000, 70000, 80000 };

    put_arp();
    start_nic(RX_SIZE);
    for (uint32_t length = 0; length < 80; length++)
        send_length(length);
    for (unsigned i = 0; i < sizeof(lengths) / sizeof(*lengths); i++)
        send_length(lengths[i]);
    nic_end("frame-lengths");
}

static void attack_frame_pieces(void)
{
    static struct buffer pieces[256];

    start_nic(RX_SIZE);
    put_arp();
    for (unsigned i = 0; i < 256; i++)
        pieces[i] = (struct buffer){ tx_memory + i, 1, false };
    virtqueue_request(&transmit, pieces, 128, SETTLE);
    virtqueue_request(&transmit, pieces, 255, SETTLE);
    struct buffer huge[4] = { { tx_memory, TX_MAX, false }, { tx_memory, TX_MAX, false },
                              { tx_memory, TX_MAX, false }, { tx_memory, TX_MAX, false } };
    virtqueue_request(&transmit, huge, 4, SETTLE);
    nic_end("frame-pieces");
}

static void attack_headers(void)
{
    for (unsigned round = 0; round < 100; round++) {
        if (!start_nic(RX_SIZE))
            break;
        put_arp();
        for (unsigned i = 0; i < NET_HEADER; i++)
            tx_memory[i] = (uint8_t)(chance() % 4 == 0 ? 0xFF : chance());
        send_length(NET_HEADER + ARP_LENGTH + (uint32_t)(chance() % 1500));
    }
    nic_end("frame-headers");
}

static void attack_contents(void)
{
    start_nic(RX_SIZE);
    for (unsigned round = 0; round < 300; round++) {
        put_arp();
        for (unsigned i = 0; i < 4; i++)
            tx_memory[NET_HEADER + chance() % 64] = (uint8_t)chance();
        /* Half as IPv4 packets with lengths and protocols from chance. */
        if (round % 2 == 0) {
            tx_memory[NET_HEADER + 12] = 0x08;
            tx_memory[NET_HEADER + 13] = 0x00;
            tx_memory[NET_HEADER + 14] = (uint8_t)(0x40 | chance() % 16);
        }
        send_length(NET_HEADER + 14 + (uint32_t)(chance() % 1500));
    }
    nic_end("frame-contents");
}

static void attack_receive(void)
{
    static const uint32_t sizes[] = { 0, 1, 11, 12, 13, 26, 53, 54 };

    for (unsigned i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        start_nic(sizes[i]);
        put_arp();
        send_length(NET_HEADER + ARP_LENGTH);
        send_length(NET_HEADER + ARP_LENGTH);
        delay_ns(SETTLE);
    }
    nic_end("receive-small");
    start_nic(RX_SIZE);
    for (uint16_t i = 0; i < receive.size; i++) {
        receive.desc[i].flags = (uint16_t)(chance() & 7);
        receive.desc[i].next = (uint16_t)chance();
        receive.desc[i].address = chance() % 2 == 0 ? 0xD0000000 : chance() | 1ull << 40;
    }
    put_arp();
    send_length(NET_HEADER + ARP_LENGTH);
    nic_end("receive-rubbish");
    start_nic(RX_SIZE);
    struct buffer readable = { rx_memory, RX_SIZE, false };
    for (unsigned i = 0; i < 8; i++)
        virtqueue_add(&receive, &readable, 1, NULL);
    struct buffer writable = { tx_memory, 64, true };
    virtqueue_request(&transmit, &writable, 1, SETTLE);
    nic_end("directions-swapped");
}

void attack_net(void)
{
    if (!virtio_open(&nic, VIRTIO_NET, 0)) {
        not_ok("net", "no virtio-net");
        return;
    }
    rx_memory = memory_alloc(RX_COUNT * RX_SIZE);
    tx_memory = memory_alloc(TX_MAX + PAGE_SIZE);
    attack_frame_lengths();
    attack_frame_pieces();
    attack_headers();
    attack_contents();
    attack_receive();
}
