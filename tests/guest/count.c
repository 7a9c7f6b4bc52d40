/*
 * count: answers numbered packets, each of which must come once, and keeps what they say in memory.
 *
 * `address=A` (a number, the first octet highest) is the guest's, `bytes=N` the memory. Whoever sends UDP
 * to it, to any port, gets each packet back. A packet begins with the word MARK and its number, from
 * 1 on; number 0 ends the guest with a verdict, and says in a third word how many there were. Each
 * packet fills a page with a pattern of its number; what the page held before is compared first. So
 * packets that were lost, came twice or late are found, and memory that is not the latest.
 * Answers ARP. Knows no fragments, no options in IPv4, and verifies no checksums: swapping both ends of
 * a packet changes none.
 * Texts: virtio 1.2, 5.1; RFC 826 (ARP), 791 (IPv4), 768 (UDP).
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

#define LIMIT      (5 * SECOND)
#define RX_BUFFERS 256
#define RX_SIZE    2048
#define HEADER     12 /* struct virtio_net_hdr_v1; virtio 1.2, 5.1.6 */
#define WORDS      (PAGE_SIZE / 8)
#define FACTOR     0x9E3779B97F4A7C15ull

#define MARK       0x434F554Eu

/* Where the fields are in a frame, in bytes. */
#define AT_TO      0
#define AT_FROM    6
#define AT_TYPE    12
#define AT_ARP     14
#define AT_IP      14
#define AT_UDP     34
#define AT_DATA    42
#define FRAME_MIN  (AT_DATA + 12)

static struct virtio_device nic;
static struct virtqueue receive, transmit;
static uint8_t *rx_memory, *tx_frame;
static uint8_t mac[6], address[4];
static uint64_t *area, *held; /* pages, and the number that each holds */
static uint64_t n_pages;
static uint8_t *seen;         /* a bit for each number */
static uint64_t max_number, came, twice, late, bad, highest;

static uint32_t get32(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static uint16_t get16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

/* ---- the device ---- */

static void give_buffer(unsigned index)
{
    struct buffer buffer = { rx_memory + index * RX_SIZE, RX_SIZE, true };

    virtqueue_add(&receive, &buffer, 1, (void *)(uintptr_t)(index + 1));
}

static bool start(void)
{
    if (!virtio_negotiate(&nic, F_STATUS) || !virtio_queue_setup(&nic, &receive, 0, 0, VIRTIO_NO_VECTOR) ||
        !virtio_queue_setup(&nic, &transmit, 1, 0, VIRTIO_NO_VECTOR))
        return false;
    virtio_driver_ok(&nic);
    for (unsigned i = 0; i < RX_BUFFERS && i < receive.size; i++)
        give_buffer(i);
    virtqueue_want_interrupt(&receive, false);
    virtqueue_kick(&receive);
    for (unsigned i = 0; i < 6; i++)
        mac[i] = mmio_read8(nic.config + i);
    return true;
}

static void send(const uint8_t *frame, uint32_t length)
{
    struct buffer buffer = { tx_frame, HEADER + length, false };

    memset(tx_frame, 0, HEADER);
    memcpy(tx_frame + HEADER, frame, length);
    if (virtqueue_request(&transmit, &buffer, 1, LIMIT) < 0)
        not_ok("sent", "the card takes no frame");
}

/* ---- the protocols ---- */

static void swap(uint8_t *a, uint8_t *b, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        uint8_t byte = a[i];

        a[i] = b[i];
        b[i] = byte;
    }
}

static void answer_arp(uint8_t *frame)
{
    uint8_t *arp = frame + AT_ARP;

    if (get16(arp + 6) != 1 || get32(arp + 24) != get32(address))
        return;
    arp[7] = 2; /* a reply: both ends change places, and the target is known */
    memcpy(arp + 18, arp + 8, 10);
    memcpy(arp + 8, mac, 6);
    memcpy(arp + 14, address, 4);
    memcpy(frame + AT_TO, frame + AT_FROM, 6);
    memcpy(frame + AT_FROM, mac, 6);
    send(frame, 60);
}

static uint64_t word_of(uint64_t number, uint64_t i)
{
    return number == 0 ? 0 : number * FACTOR + i;
}

static void fill_page(uint64_t number)
{
    uint64_t page = number % n_pages, *words = area + page * WORDS;
    bool good = true;

    for (uint64_t i = 0; i < WORDS; i++) {
        good = good && words[i] == word_of(held[page], i);
        words[i] = word_of(number, i);
    }
    bad += !good;
    held[page] = number;
}

static void count(uint64_t number)
{
    if (number >= max_number)
        return;
    if (seen[number / 8] >> number % 8 & 1) {
        twice++;
        return;
    }
    seen[number / 8] |= (uint8_t)(1u << number % 8);
    came++;
    late += number < highest;
    highest = number > highest ? number : highest;
    fill_page(number);
}

/* Whether it is the last one; *total says of how many. */
static bool take_packet(uint8_t *frame, uint32_t length, uint64_t *total)
{
    uint64_t number;

    if (length < FRAME_MIN || frame[AT_IP] != 0x45 || frame[AT_IP + 9] != IP_UDP ||
        get32(frame + AT_IP + 16) != get32(address) || get32(frame + AT_DATA) != MARK)
        return false;
    number = get32(frame + AT_DATA + 4);
    *total = get32(frame + AT_DATA + 8);
    if (number > 0)
        count(number);
    memcpy(frame + AT_TO, frame + AT_FROM, 6);
    memcpy(frame + AT_FROM, mac, 6);
    swap(frame + AT_IP + 12, frame + AT_IP + 16, 4);
    swap(frame + AT_UDP, frame + AT_UDP + 2, 2);
    send(frame, length);
    return number == 0;
}

static bool take_frame(uint64_t *total)
{
    uint32_t length;
    uint8_t *frame;
    unsigned index;
    void *cookie;
    bool last = false;

    if (!virtqueue_take(&receive, &cookie, &length)) {
        cpu_pause();
        return false;
    }
    index = (unsigned)(uintptr_t)cookie - 1;
    frame = rx_memory + index * RX_SIZE + HEADER;
    length = length > HEADER ? length - HEADER : 0;
    if (length >= 42 && get16(frame + AT_TYPE) == ETHER_ARP)
        answer_arp(frame);
    else if (length >= FRAME_MIN && get16(frame + AT_TYPE) == ETHER_IPV4)
        last = take_packet(frame, length, total);
    give_buffer(index);
    virtqueue_kick(&receive);
    return last;
}

int main(const struct boot_info *info)
{
    uint64_t own = arg_number("address", 0x0A060002), total = 0;

    (void)info;
    for (unsigned i = 0; i < 4; i++)
        address[i] = (uint8_t)(own >> (24 - 8 * i));
    n_pages = arg_number("bytes", 8 * 1024 * 1024) / PAGE_SIZE;
    max_number = arg_number("packets", 4 * 1024 * 1024);
    area = memory_alloc(n_pages * PAGE_SIZE);
    held = memory_alloc(n_pages * sizeof(*held));
    seen = memory_alloc(max_number / 8 + 1);
    rx_memory = memory_alloc(RX_BUFFERS * RX_SIZE);
    tx_frame = memory_alloc(2 * PAGE_SIZE);
    pci_init();
    if (!check(virtio_open(&nic, VIRTIO_NET, 0) && start(), "start", "the card does not start"))
        return 0;
    print("counting\n");
    while (!take_frame(&total))
        ;
    check(came == total, "none-lost", "%lu of %lu came", came, total);
    check(twice == 0, "none-twice", "%lu came twice", twice);
    check(bad == 0, "memory", "%lu pages were not what was written", bad);
    print("note: %lu packets, %lu out of order\n", came, late);
    return 0;
}
