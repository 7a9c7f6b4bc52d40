/*
 * console: a driver of virtio-console; prints its verdict there, and passes bytes through it.
 *
 * `echo=N` sends N bytes of input back between the lines "echo begin" and "echo end", `count=N`
 * takes N bytes and prints `cksum SUM N` as cksum(1) does, `send=N` sends N bytes of the pattern
 * of the payload uart. `no-interrupts` polls; else the receive queue interrupts by MSI-X.
 * Text: virtio 1.2, 5.3.
 */
#include <stddef.h>

#include "apic.h"
#include "boot.h"
#include "checksum.h"
#include "cpu.h"
#include "io.h"
#include "memory.h"
#include "pci.h"
#include "print.h"
#include "timing.h"
#include "verdict.h"
#include "virtio.h"

#define LIMIT      (60 * SECOND)
#define RX_BUFFERS 16
#define RX_SIZE    1024
#define TX_SIZE    4096
#define RX_VECTOR  0x71
#define F_SIZE     (1ull << 0)

static struct virtio_device device;
static struct virtqueue receive, transmit;
static uint8_t *rx_buffers;
static char *tx_buffer;
static uint32_t tx_fill;

static bool transmit_bytes(const void *data, uint32_t length)
{
    struct buffer buffer = { data, length, false };

    return virtqueue_request(&transmit, &buffer, 1, LIMIT) >= 0;
}

/* The sink of print(): by the line. */
static void sink(char c)
{
    tx_buffer[tx_fill++] = c;
    if (c == '\n' || tx_fill == TX_SIZE) {
        transmit_bytes(tx_buffer, tx_fill);
        tx_fill = 0;
    }
}

static void give_buffer(unsigned index)
{
    struct buffer buffer = { rx_buffers + index * RX_SIZE, RX_SIZE, true };

    virtqueue_add(&receive, &buffer, 1, (void *)(uintptr_t)(index + 1));
}

static bool start(bool interrupts)
{
    if (!virtio_negotiate(&device, F_SIZE | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC))
        return false;
    if (interrupts) {
        pci_msix_enable(&device.pci, true, false);
        pci_msix_route(&device.pci, 1, cpu_this()->apic_id, RX_VECTOR);
    }
    if (!virtio_queue_setup(&device, &receive, 0, 0, interrupts ? 1 : VIRTIO_NO_VECTOR) ||
        !virtio_queue_setup(&device, &transmit, 1, 0, VIRTIO_NO_VECTOR))
        return false;
    virtio_driver_ok(&device);
    for (unsigned i = 0; i < RX_BUFFERS; i++)
        give_buffer(i);
    virtqueue_want_interrupt(&receive, interrupts);
    virtqueue_kick(&receive);
    return true;
}

/* The next chunk of input: its length, 0 after a time with none. *index is given back later. */
static uint32_t take_input(unsigned *index)
{
    uint32_t length;
    void *cookie;

    if (!virtqueue_wait(&receive, &cookie, &length, LIMIT))
        return 0;
    *index = (unsigned)(uintptr_t)cookie - 1;
    return length;
}

/* Takes total bytes, sends them back if echo; the sum of them. */
static struct checksum take_total(uint64_t total, bool echo)
{
    struct checksum sum = { 0 };

    while (sum.length < total) {
        unsigned index;
        uint32_t length = take_input(&index);
        if (length == 0 || index >= RX_BUFFERS || length > RX_SIZE)
            break;
        const uint8_t *data = rx_buffers + index * RX_SIZE;
        checksum_update(&sum, data, length);
        if (echo && !transmit_bytes(data, length))
            break;
        give_buffer(index);
        virtqueue_kick(&receive);
        virtqueue_want_interrupt(&receive, true);
    }
    return sum;
}

static void count_input(uint64_t total)
{
    uint64_t begin = now_ns();
    struct checksum sum = take_total(total, false);

    print("cksum %u %lu\n", checksum_final(&sum), sum.length);
    cost("console-in-kib", (now_ns() - begin) * 1024 / total);
    check(sum.length == total, "count", "%lu of %lu bytes came", sum.length, total);
}

static void echo_input(uint64_t total)
{
    print("echo begin\n");
    struct checksum sum = take_total(total, true);
    print("echo end\n");
    check(sum.length == total, "echo", "%lu of %lu bytes came", sum.length, total);
}

static void send_pattern(uint64_t total)
{
    uint64_t done = 0;
    uint8_t *chunk = memory_alloc(TX_SIZE);

    print("send begin\n");
    while (done < total) {
        uint64_t count = total - done < TX_SIZE ? total - done : TX_SIZE;
        for (uint64_t i = 0; i < count; i++)
            chunk[i] = (uint8_t)((done + i) * 7 + (done + i) / 256);
        if (!transmit_bytes(chunk, (uint32_t)count))
            break;
        done += count;
    }
    print("send end\n");
    check(done == total, "send", "%lu of %lu bytes went", done, total);
}

int main(const struct boot_info *info)
{
    bool interrupts = !arg_present("no-interrupts");

    (void)info;
    pci_init();
    rx_buffers = memory_alloc(RX_BUFFERS * RX_SIZE);
    tx_buffer = memory_alloc(TX_SIZE);
    if (!check(virtio_open(&device, VIRTIO_CONSOLE, 0), "open", "no virtio-console"))
        return 0;
    if (!check(start(interrupts), "start", "the device does not start"))
        return 0;
    if (interrupts)
        irq_enable();
    print_set_sink(sink);
    ok("output");
    if ((device.features & F_SIZE) != 0)
        print("size %u columns %u rows\n", mmio_read16(device.config),
              mmio_read16(device.config + 2));
    if (arg_number("send", 0) > 0)
        send_pattern(arg_number("send", 0));
    if (arg_number("count", 0) > 0)
        count_input(arg_number("count", 0));
    if (arg_number("echo", 0) > 0)
        echo_input(arg_number("echo", 0));
    if (interrupts && (arg_present("count") || arg_present("echo")))
        check(irq_count(RX_VECTOR) > 0, "interrupts", "none came");
    return 0;
}
