/*
 * echo: answers who asks for its address, and sends every datagram back, until it reads a character
 * from COM1. It has 10.0.2.15, which NAT's forwards lead to, and asks nobody for it.
 *
 * Polls. Knows no fragments and no options in IPv4; checksums stay as they are, since two addresses and
 * two ports that change places add up to the same.
 * Texts: virtio 1.2, 5.1; RFC 826 (ARP), 791 (IPv4), 768 (UDP).
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

#define LIMIT       (30 * SECOND)
#define F_MAC       (1ull << 5)
#define HEADER      12 /* of virtio-net: zeros */
#define RX_BUFFERS  16
#define RX_SIZE     2048
#define LINE_STATUS (COM1 + 5)
#define DATA_READY  1

/* Offsets in a frame. */
#define AT_TYPE     12
#define AT_NET      14
#define ARP_SIZE    28
#define ARP_ASK     1
#define ARP_ANSWER  2
#define IP_SIZE     20
#define UDP_SIZE    8
#define IP_UDP      17

static const uint8_t own_address[4] = { 10, 0, 2, 15 };
static struct virtio_device nic;
static struct virtqueue receive, transmit;
static uint8_t mac[6];
static uint8_t *rx_memory, *tx_frame;
static uint64_t echoed;

static void give_buffer(unsigned index)
{
    const struct buffer buffer = { rx_memory + index * RX_SIZE, RX_SIZE, true };

    virtqueue_add(&receive, &buffer, 1, (void *)(uintptr_t)index);
}

static bool start(void)
{
    if (!virtio_negotiate(&nic, F_MAC) ||
        !virtio_queue_setup(&nic, &receive, 0, RX_BUFFERS, VIRTIO_NO_VECTOR) ||
        !virtio_queue_setup(&nic, &transmit, 1, 0, VIRTIO_NO_VECTOR))
        return false;
    rx_memory = memory_alloc(RX_BUFFERS * RX_SIZE);
    tx_frame = memory_alloc(PAGE_SIZE);
    virtio_driver_ok(&nic);
    for (unsigned i = 0; i < RX_BUFFERS; i++)
        give_buffer(i);
    virtqueue_kick(&receive);
    for (unsigned i = 0; i < sizeof(mac); i++)
        mac[i] = mmio_read8(nic.config + i);
    return true;
}

static uint16_t get16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

static bool same(const uint8_t *a, const uint8_t *b, unsigned n)
{
    while (n > 0 && *a == *b)
        n--, a++, b++;
    return n == 0;
}

static void swap(uint8_t *a, uint8_t *b, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        uint8_t byte = a[i];

        a[i] = b[i];
        b[i] = byte;
    }
}

/* The frame goes back to who sent it. */
static void send_back(uint8_t *frame, uint32_t length)
{
    const struct buffer buffer = { tx_frame, HEADER + length, false };

    memcpy(frame, frame + 6, 6);
    memcpy(frame + 6, mac, 6);
    check(virtqueue_request(&transmit, &buffer, 1, LIMIT) >= 0, "send", "the frame is not taken");
}

static void answer_arp(uint8_t *frame, uint32_t length)
{
    uint8_t *arp = frame + AT_NET;

    if (length < AT_NET + ARP_SIZE || get16(arp + 6) != ARP_ASK || !same(arp + 24, own_address, 4))
        return;
    arp[7] = ARP_ANSWER;
    swap(arp + 14, arp + 24, 4);
    memcpy(arp + 18, arp + 8, 6);
    memcpy(arp + 8, mac, 6);
    send_back(frame, AT_NET + ARP_SIZE);
}

static void answer_udp(uint8_t *frame, uint32_t length)
{
    uint8_t *ip = frame + AT_NET, *udp = ip + IP_SIZE;

    if (length < AT_NET + IP_SIZE + UDP_SIZE || ip[0] != 0x45 || ip[9] != IP_UDP ||
        !same(ip + 16, own_address, 4) || get16(ip + 2) > length - AT_NET)
        return;
    swap(ip + 12, ip + 16, 4);
    swap(udp, udp + 2, 2);
    send_back(frame, AT_NET + get16(ip + 2));
    echoed++;
}

static void take(unsigned index, uint32_t length)
{
    uint8_t *frame = tx_frame + HEADER;
    uint16_t type;

    if (index >= RX_BUFFERS || length > RX_SIZE || length < HEADER + AT_NET) {
        not_ok("receive", "buffer %u came back with %u bytes", index, length);
        return;
    }
    memset(tx_frame, 0, HEADER);
    memcpy(frame, rx_memory + index * RX_SIZE + HEADER, length - HEADER);
    give_buffer(index);
    virtqueue_kick(&receive);
    type = get16(frame + AT_TYPE);
    if (type == 0x0806)
        answer_arp(frame, length - HEADER);
    else if (type == 0x0800)
        answer_udp(frame, length - HEADER);
}

int main(const struct boot_info *info)
{
    uint32_t length;
    void *index;

    (void)info;
    pci_init();
    if (!check(virtio_open(&nic, VIRTIO_NET, 0) && start(), "start", "the card does not start"))
        return 0;
    print("ready\n");
    while ((in8(LINE_STATUS) & DATA_READY) == 0) {
        if (virtqueue_take(&receive, &index, &length))
            take((unsigned)(uintptr_t)index, length);
        else
            delay_ns(MILLISECOND / 10);
    }
    check(echoed > 0, "echo", "nobody sent a datagram");
    print("note: %lu datagrams\n", echoed);
    return 0;
}
