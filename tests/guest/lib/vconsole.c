/*
 * A driver of virtio-console, port 0: bytes in, bytes out, and a sink for print().
 *
 * Does not negotiate multiple ports. Thread: one processor. Text: virtio 1.2, 5.3.
 */
#include "vconsole.h"

#include <stddef.h>

#include "cpu.h"
#include "memory.h"
#include "pci.h"
#include "timing.h"

#define LIMIT      (60 * SECOND)
#define RX_BUFFERS 16
#define LINE_SIZE  4096
#define F_SIZE     (1ull << 0)

static struct virtio_device device;
static struct virtqueue receive, transmit;
static uint8_t *rx_buffers;
static char *line;
static uint32_t line_fill;

bool vconsole_open(void)
{
    if (!virtio_open(&device, VIRTIO_CONSOLE, 0))
        return false;
    rx_buffers = memory_alloc(RX_BUFFERS * VCONSOLE_RX_SIZE);
    line = memory_alloc(LINE_SIZE);
    return true;
}

const struct virtio_device *vconsole_device(void)
{
    return &device;
}

static void give_index(unsigned index)
{
    struct buffer buffer = { rx_buffers + index * VCONSOLE_RX_SIZE, VCONSOLE_RX_SIZE, true };

    virtqueue_add(&receive, &buffer, 1, (void *)(uintptr_t)(index + 1));
}

bool vconsole_start(uint32_t vector)
{
    if (!virtio_negotiate(&device, F_SIZE | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC))
        return false;
    if (vector != 0) {
        pci_msix_enable(&device.pci, true, false);
        pci_msix_route(&device.pci, 1, cpu_this()->apic_id, vector);
    }
    if (!virtio_queue_setup(&device, &receive, 0, 0, vector != 0 ? 1 : VIRTIO_NO_VECTOR) ||
        !virtio_queue_setup(&device, &transmit, 1, 0, VIRTIO_NO_VECTOR))
        return false;
    virtio_driver_ok(&device);
    for (unsigned i = 0; i < RX_BUFFERS; i++)
        give_index(i);
    virtqueue_want_interrupt(&receive, vector != 0);
    virtqueue_kick(&receive);
    return true;
}

bool vconsole_write(const void *data, uint32_t length)
{
    struct buffer buffer = { data, length, false };

    return virtqueue_request(&transmit, &buffer, 1, LIMIT) >= 0;
}

void vconsole_sink(char c)
{
    line[line_fill++] = c;
    if (c == '\n' || line_fill == LINE_SIZE) {
        vconsole_write(line, line_fill);
        line_fill = 0;
    }
}

const uint8_t *vconsole_take(uint32_t *length, uint64_t limit_ns)
{
    void *cookie;

    if (!virtqueue_wait(&receive, &cookie, length, limit_ns))
        return NULL;
    uintptr_t index = (uintptr_t)cookie - 1;
    if (index >= RX_BUFFERS || *length == 0 || *length > VCONSOLE_RX_SIZE)
        return NULL;
    return rx_buffers + index * VCONSOLE_RX_SIZE;
}

void vconsole_give(const uint8_t *chunk)
{
    give_index((unsigned)((chunk - rx_buffers) / VCONSOLE_RX_SIZE));
    virtqueue_kick(&receive);
    virtqueue_want_interrupt(&receive, true);
}
