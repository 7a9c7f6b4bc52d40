/*
 * A virtio-net card that is polled, with the offloads of TCP over IPv4.
 *
 * One pair of queues, split rings, no control queue, no interrupts. Received frames stay in their
 * buffers until they are given back; what is sent stays where it is but for its headers.
 * Thread: the first processor. Text: virtio 1.2, 5.1.6.
 */
#include "tcp.h"

#include <stddef.h>

#include "io.h"
#include "memory.h"
#include "pci.h"
#include "verdict.h"
#include "virtio.h"

#define PLAIN_SIZE 2048u
#define LARGE_SIZE 69632u /* 64 KiB and headers, in pages */
#define HEADER     ((uint32_t)sizeof(struct net_header))
#define CONFIG_MTU 10

static struct virtio_device nic;
static struct virtqueue receive, transmit;
static uint8_t *buffers;
static uint32_t buffer_size;
static uint8_t *heads;
static uint16_t free_heads[VIRTQUEUE_MAX_SIZE], n_free_heads;

uint8_t nic_mac[6];

bool nic_has(uint64_t features)
{
    return (nic.features & features) == features;
}

uint32_t nic_mtu(uint32_t fallback)
{
    return nic_has(F_MTU) ? mmio_read16(nic.config + CONFIG_MTU) : fallback;
}

static void give(unsigned index)
{
    struct buffer buffer = { buffers + (size_t)index * buffer_size, buffer_size, true };

    virtqueue_add(&receive, &buffer, 1, (void *)(uintptr_t)(index + 1));
}

bool nic_start(uint64_t features, uint32_t size)
{
    if (!virtio_open(&nic, VIRTIO_NET, 0) || !virtio_negotiate(&nic, features | F_MAC))
        return false;
    /* MSI-X without vectors: no interrupt, not even by INTx. */
    pci_msix_enable(&nic.pci, true, false);
    if (!virtio_queue_setup(&nic, &receive, 0, 0, VIRTIO_NO_VECTOR) ||
        !virtio_queue_setup(&nic, &transmit, 1, 0, VIRTIO_NO_VECTOR))
        return false;
    virtio_driver_ok(&nic);
    buffer_size = nic_has(F_MRG_RXBUF) ? size : nic_has(F_GUEST_TSO4) ? LARGE_SIZE : PLAIN_SIZE;
    buffers = memory_alloc((uint64_t)receive.size * buffer_size);
    heads = memory_alloc((uint64_t)transmit.size * NIC_HEAD_MAX);
    for (n_free_heads = 0; n_free_heads < transmit.size; n_free_heads++)
        free_heads[n_free_heads] = n_free_heads;
    for (unsigned i = 0; i < receive.size; i++)
        give(i);
    virtqueue_want_interrupt(&receive, false);
    virtqueue_want_interrupt(&transmit, false);
    virtqueue_kick(&receive);
    for (unsigned i = 0; i < 6; i++)
        nic_mac[i] = mmio_read8(nic.config + i);
    return true;
}

static void reclaim(void)
{
    void *cookie;

    while (virtqueue_take(&transmit, &cookie, NULL))
        free_heads[n_free_heads++] = (uint16_t)((uintptr_t)cookie - 1);
}

void nic_send(const struct net_header *offload, const void *head, uint32_t head_length,
              const void *bytes, uint32_t length)
{
    reclaim();
    while (n_free_heads == 0 || transmit.free_count < 2) {
        virtqueue_kick(&transmit);
        cpu_pause();
        reclaim();
    }
    uint16_t index = free_heads[--n_free_heads];
    uint8_t *copy = heads + (size_t)index * NIC_HEAD_MAX;
    memcpy(copy, offload, HEADER);
    memcpy(copy + HEADER, head, head_length);
    struct buffer chain[2] = { { copy, HEADER + head_length, false }, { bytes, length, false } };
    virtqueue_add(&transmit, chain, length > 0 ? 2 : 1, (void *)(uintptr_t)(index + 1));
}

/* One used buffer as the next piece. */
static bool take_piece(struct nic_frame *frame)
{
    void *cookie;
    uint32_t length;

    if (!virtqueue_take(&receive, &cookie, &length))
        return false;
    unsigned index = (unsigned)(uintptr_t)cookie - 1;
    unsigned skip = frame->pieces == 0 ? HEADER : 0;
    if (index >= receive.size || length > buffer_size || length < skip ||
        frame->pieces == NIC_PIECES) {
        not_ok("receive", "buffer %u came back with %u bytes of %u", index, length, buffer_size);
        verdict();
    }
    const uint8_t *bytes = buffers + (size_t)index * buffer_size;
    if (frame->pieces == 0)
        memcpy(&frame->header, bytes, HEADER);
    frame->buffer[frame->pieces] = (uint16_t)index;
    frame->piece[frame->pieces++] = (struct nic_piece){ bytes + skip, length - skip };
    frame->length += length - skip;
    return true;
}

bool nic_receive(struct nic_frame *frame)
{
    frame->pieces = 0;
    frame->length = 0;
    if (!take_piece(frame))
        return false;
    while (nic_has(F_MRG_RXBUF) && frame->pieces < frame->header.buffers) {
        if (!take_piece(frame))
            cpu_pause();
    }
    return true;
}

void nic_give_back(const struct nic_frame *frame)
{
    for (unsigned i = 0; i < frame->pieces; i++)
        give(frame->buffer[i]);
}

void nic_flush(void)
{
    if (transmit.avail->index != transmit.avail_kicked)
        virtqueue_kick(&transmit);
    if (receive.avail->index != receive.avail_kicked)
        virtqueue_kick(&receive);
    /* The event index ages: said anew, it stays behind. */
    virtqueue_want_interrupt(&receive, false);
    virtqueue_want_interrupt(&transmit, false);
}
