/*
 * console: passes bytes through virtio-console and prints its verdict there.
 *
 * `echo=N` sends N bytes of input back between the lines "echo begin" and "echo end", `count=N`
 * takes N bytes and prints `cksum SUM N` as cksum(1) does, `send=N` sends N bytes of the pattern
 * of the payload uart. `no-interrupts` polls; else the receive queue interrupts by MSI-X.
 */
#include <stddef.h>

#include "boot.h"
#include "checksum.h"
#include "cpu.h"
#include "io.h"
#include "memory.h"
#include "pci.h"
#include "print.h"
#include "timing.h"
#include "vconsole.h"
#include "verdict.h"

#define LIMIT      (60 * SECOND)
#define SEND_SIZE  4096
#define RX_VECTOR  0x71
#define F_SIZE     (1ull << 0)

/* Takes total bytes, sends them back if echo; the sum of them. */
static struct checksum take_total(uint64_t total, bool echo)
{
    struct checksum sum = { 0 };

    while (sum.length < total) {
        uint32_t length;
        const uint8_t *chunk = vconsole_take(&length, LIMIT);
        if (chunk == NULL)
            break;
        checksum_update(&sum, chunk, length);
        if (echo && !vconsole_write(chunk, length))
            break;
        vconsole_give(chunk);
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
    uint8_t *chunk = memory_alloc(SEND_SIZE);

    print("send begin\n");
    while (done < total) {
        uint64_t count = total - done < SEND_SIZE ? total - done : SEND_SIZE;
        for (uint64_t i = 0; i < count; i++)
            chunk[i] = (uint8_t)((done + i) * 7 + (done + i) / 256);
        if (!vconsole_write(chunk, (uint32_t)count))
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
    if (!check(vconsole_open(), "open", "no virtio-console"))
        return 0;
    if (!check(vconsole_start(interrupts ? RX_VECTOR : 0), "start", "the device does not start"))
        return 0;
    if (interrupts)
        irq_enable();
    print_set_sink(vconsole_sink);
    ok("output");
    const struct virtio_device *device = vconsole_device();
    if ((device->features & F_SIZE) != 0)
        print("size %u columns %u rows\n", mmio_read16(device->config),
              mmio_read16(device->config + 2));
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
