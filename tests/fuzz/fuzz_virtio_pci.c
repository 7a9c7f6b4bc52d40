/*
 * Every virtio device class on PCI, driven by any sequence of what a hostile driver can do: register
 * accesses, rings and descriptors in a small memory, kicks, resets at any moment; with pauses, saves
 * and loads in between. The disk is a memory file, the card's peer sends back what it gets.
 *
 * Nothing may crash, state must survive its round trip, and after a reset a device must come up for
 * a proper driver and serve it; the input says which, for the time that all would take.
 */
#include <linux/pci_regs.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "devices/chardev.h"
#include "devices/virtio/blk.h"
#include "devices/virtio/console.h"
#include "devices/virtio/net.h"
#include "devices/virtio/rng.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/machine.h"

#define MEMORY_SIZE 0x40000u
#define DISK_BYTES 0x20000
#define RING_SIZE 8u
#define DATA_AT 0x1000u
#define MAX_OPS 400
#define MAX_ROUND_TRIPS 2 /* an input: each takes as long as hundreds of accesses */

enum { RNG, CONSOLE, BLK, NET, UNITS };

/* A device, as found on the bus: slot and BAR follow from the order of creation. */
struct unit {
    struct virtio_device *vdev;
    struct device *dev;
    unsigned slot;
};

static struct fuzz_machine m;
static struct unit units[UNITS];
static struct chardev *chardev;
static struct net_port *card;
static unsigned round_trips; /* of this input */

/* ---- the card's peer: sends every frame back ---- */

static unsigned peer_deliver(struct net_port *port, const struct net_frame *frames, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        size_t total = 0;

        FUZZ_CHECK(frames[i].length >= NET_FRAME_MIN && frames[i].length <= NET_FRAME_MAX);
        for (unsigned k = 0; k < frames[i].iovcnt; k++)
            total += frames[i].iov[k].iov_len;
        FUZZ_CHECK(total == frames[i].length);
    }
    (void)net_port_send(port, frames, n);
    return n;
}

static void peer_flush(struct net_port *port)
{
    net_port_flush(port);
}

static const struct net_port_ops peer_ops = {.deliver = peer_deliver, .flush = peer_flush};
static struct net_port peer = {.ops = &peer_ops, .name = "peer"};

/* ---- creation ---- */

static void make_disk(struct virtio_device **out)
{
    int fd = memfd_create("disk", MFD_CLOEXEC);
    char path[64];
    struct virtio_blk_config config = {.path = path, .n_queues = 2};

    FUZZ_CHECK(fd >= 0 && ftruncate(fd, DISK_BYTES) == 0);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    FUZZ_CHECK(virtio_blk_create(out, &m.env, "disk0", &config) == 0);
}

static void set_up(void)
{
    struct virtio_net_options net = {.mac = {2, 0, 0, 0, 0, 1}, .mtu = 1500};

    if (m.bridge)
        return;
    fuzz_machine_init(&m, MEMORY_SIZE);
    FUZZ_CHECK(chardev_memory_create(&chardev) == 0);
    FUZZ_CHECK(virtio_rng_create(&units[RNG].vdev, &m.env, "rng0") == 0);
    FUZZ_CHECK(virtio_console_create(&units[CONSOLE].vdev, &m.env, "console0", chardev) == 0);
    make_disk(&units[BLK].vdev);
    FUZZ_CHECK(virtio_net_create(&units[NET].vdev, &m.env, "net0", &net, &card) == 0);
    net_port_connect(card, &peer);
    for (unsigned i = 0; i < UNITS; i++) {
        FUZZ_CHECK(virtio_pci_create(&units[i].dev, units[i].vdev, m.pci) == 0);
        units[i].slot = i + 1;
    }
}

/* ---- a driver ---- */

static uint64_t bar_of(const struct unit *u)
{
    return fuzz_config_read(&m, u->slot, PCI_BASE_ADDRESS_0, 4) & ~0xFull;
}

static void put(const struct unit *u, unsigned offset, unsigned size, uint32_t value)
{
    fuzz_mmio_write(&m, bar_of(u) + offset, size, value);
}

static uint32_t get(const struct unit *u, unsigned offset, unsigned size)
{
    return (uint32_t)fuzz_mmio_read(&m, bar_of(u) + offset, size);
}

/* Each unit's queue has a page: descriptors, then rings. */
static gpa_t ring_of(const struct unit *u, unsigned queue)
{
    return 0x10000u + (u->slot - 1) * 0x4000u + (queue & 3) * 0x1000u;
}

static void enable_queue(const struct unit *u, unsigned queue)
{
    gpa_t ring = ring_of(u, queue);

    put(u, VIRTIO_PCI_COMMON_Q_SELECT, 2, queue);
    put(u, VIRTIO_PCI_COMMON_Q_SIZE, 2, RING_SIZE);
    put(u, VIRTIO_PCI_COMMON_Q_MSIX, 2, queue + 1);
    put(u, VIRTIO_PCI_COMMON_Q_DESCLO, 4, (uint32_t)ring);
    put(u, VIRTIO_PCI_COMMON_Q_DESCHI, 4, 0);
    put(u, VIRTIO_PCI_COMMON_Q_AVAILLO, 4, (uint32_t)ring + 0x200);
    put(u, VIRTIO_PCI_COMMON_Q_AVAILHI, 4, 0);
    put(u, VIRTIO_PCI_COMMON_Q_USEDLO, 4, (uint32_t)ring + 0x400);
    put(u, VIRTIO_PCI_COMMON_Q_USEDHI, 4, 0);
    put(u, VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
}

/* Resets, clears the rings, negotiates those of `wanted` that are offered, goes to DRIVER_OK. */
static void bring_up(const struct unit *u, uint64_t wanted)
{
    uint32_t n_queues = get(u, VIRTIO_PCI_COMMON_NUMQ, 2);

    put(u, VIRTIO_PCI_COMMON_STATUS, 1, 0);
    put(u, VIRTIO_PCI_COMMON_STATUS, 1, 3);
    for (unsigned word = 0; word < 2; word++) {
        put(u, VIRTIO_PCI_COMMON_DFSELECT, 4, word);
        put(u, VIRTIO_PCI_COMMON_GFSELECT, 4, word);
        put(u, VIRTIO_PCI_COMMON_GF, 4,
            get(u, VIRTIO_PCI_COMMON_DF, 4) & (uint32_t)(wanted >> (32 * word)));
    }
    put(u, VIRTIO_PCI_COMMON_STATUS, 1, 11);
    for (unsigned i = 0; i < n_queues && i < 4; i++) {
        FUZZ_CHECK(memory_fill(m.env.mem, ring_of(u, i) + 0x200, 0, 0x300) == 0);
        enable_queue(u, i);
    }
    put(u, VIRTIO_PCI_COMMON_STATUS, 1, 15);
}

static void write_descriptor(const struct unit *u, unsigned queue, unsigned index,
                             const struct vring_desc *d)
{
    FUZZ_CHECK(memory_write(m.env.mem, ring_of(u, queue) + 16 * index, d, sizeof(*d)) == 0);
}

static void publish(const struct unit *u, unsigned queue, uint16_t head)
{
    gpa_t avail = ring_of(u, queue) + 0x200;
    uint16_t idx;

    FUZZ_CHECK(memory_read(m.env.mem, avail + 2, &idx, 2) == 0);
    FUZZ_CHECK(memory_write(m.env.mem, avail + 4 + 2 * (idx % RING_SIZE), &head, 2) == 0);
    idx++;
    FUZZ_CHECK(memory_write(m.env.mem, avail + 2, &idx, 2) == 0);
}

static void kick(const struct unit *u, unsigned queue)
{
    put(u, 0x3000 + 4 * queue, 2, queue);
}

/* ---- operations ---- */

/* A whole request of up to three descriptors, each of a length and place of the input's; the first
 * bytes of its data, too, so that the class's header means something. */
static void add_request(const struct unit *u, unsigned queue, struct fuzz_input *in)
{
    unsigned n = 1 + fuzz_u8(in) % 3;
    unsigned first = fuzz_u8(in) % RING_SIZE;
    uint8_t header[16];

    for (unsigned i = 0; i < sizeof(header); i++)
        header[i] = fuzz_u8(in);
    for (unsigned i = 0; i < n; i++) {
        uint8_t how = fuzz_u8(in);
        struct vring_desc d = {
            .addr = DATA_AT + 0x800u * i,
            .len = (how & 2) ? fuzz_u16(in) : how & 4 ? 512 : 16,
            .flags = (uint16_t)((how & 1 ? VRING_DESC_F_WRITE : 0) |
                                (i + 1 < n ? VRING_DESC_F_NEXT : 0) |
                                (how >= 0xF8 ? VRING_DESC_F_INDIRECT : 0)),
            .next = (uint16_t)((first + i + 1) % RING_SIZE),
        };

        write_descriptor(u, queue, (first + i) % RING_SIZE, &d);
    }
    FUZZ_CHECK(memory_write(m.env.mem, DATA_AT, header, sizeof(header)) == 0);
    publish(u, queue, (uint16_t)first);
    kick(u, queue);
}

static void touch_stream(struct fuzz_input *in)
{
    uint8_t bytes[256] = {0};
    size_t n = fuzz_u8(in);

    device_lock(&m.env);
    if (n & 1)
        (void)chardev_memory_feed(chardev, bytes, n);
    else
        (void)chardev_memory_take(chardev, bytes, n);
    if (n > 250)
        chardev_memory_resize(chardev, n, n);
    device_unlock(&m.env);
}

static void send_frame(struct fuzz_input *in)
{
    static uint8_t bytes[1600];
    size_t length = NET_FRAME_MIN + fuzz_u16(in) % (sizeof(bytes) - NET_FRAME_MIN);
    struct iovec iov = {.iov_base = bytes, .iov_len = length};
    struct net_frame frame = {.iov = &iov, .iovcnt = 1, .length = length};

    bytes[0] = fuzz_u8(in);
    (void)net_port_send(&peer, &frame, 1);
    net_port_flush(&peer);
}

static void operate(struct fuzz_input *in)
{
    uint8_t op = fuzz_u8(in);
    const struct unit *u = &units[op >> 4 & 3];
    unsigned size = 1u << (op >> 6);
    unsigned queue = op >> 6;
    uint16_t a;

    switch (op & 15) {
    case 0:
        a = fuzz_u16(in);
        fuzz_mmio_write(&m, bar_of(u) + (a & 0x7FFF), size, fuzz_u32(in));
        break;
    case 1:
        fuzz_mmio_read(&m, bar_of(u) + (fuzz_u16(in) & 0x7FFF), size);
        break;
    case 2: /* the common configuration, by proper widths often */
        a = fuzz_u8(in) % 64;
        fuzz_mmio_write(&m, bar_of(u) + a, size, fuzz_u16(in));
        break;
    case 3: /* the class's own configuration */
        a = fuzz_u8(in);
        fuzz_mmio_write(&m, bar_of(u) + 0x2000 + a, size, fuzz_u32(in));
        fuzz_mmio_read(&m, bar_of(u) + 0x2000 + a, size);
        break;
    case 4:
        a = fuzz_u8(in);
        fuzz_config_write(&m, u->slot, a & ~3u, 4, fuzz_u32(in));
        fuzz_config_read(&m, u->slot, a & ~3u, 4);
        break;
    case 5:
        bring_up(u, fuzz_u32(in) | 1ull << VIRTIO_F_VERSION_1 | 1ull << (32 + queue));
        break;
    case 6: { /* the guest's memory, around rings and data */
        uint32_t value;

        a = fuzz_u16(in);
        value = fuzz_u32(in);
        FUZZ_CHECK(memory_write(m.env.mem, 4u * (a % (MEMORY_SIZE / 4)), &value, 4) == 0);
        break;
    }
    case 7:
    case 8:
    case 9:
        add_request(u, queue, in);
        break;
    case 10:
        publish(u, queue, fuzz_u8(in));
        kick(u, queue);
        break;
    case 11:
        fuzz_settle(&m);
        break;
    case 12:
        fuzz_reset(&m, u->dev);
        break;
    case 13:
        if (++round_trips > MAX_ROUND_TRIPS)
            break;
        a = fuzz_u16(in);
        fuzz_round_trip(&m, u->dev, queue > 0, a, fuzz_u8(in));
        break;
    case 14:
        touch_stream(in);
        break;
    case 15:
        send_frame(in);
        break;
    }
}

/* ---- the end: a proper driver ---- */

static uint16_t used_idx(const struct unit *u, unsigned queue)
{
    uint16_t idx;

    FUZZ_CHECK(memory_read(m.env.mem, ring_of(u, queue) + 0x402, &idx, 2) == 0);
    return idx;
}

static bool served(void *arg)
{
    const struct unit *u = arg;

    return used_idx(u, u == &units[CONSOLE] || u == &units[NET]) == 1;
}

/* Brings the unit up and has it serve one request of the simplest kind. */
static void check_health(struct unit *u)
{
    struct vring_desc d[2] = {
        {.addr = DATA_AT, .len = 64, .flags = 0, .next = 1},
        {.addr = DATA_AT + 0x800, .len = 513, .flags = VRING_DESC_F_WRITE},
    };
    /* Numbers come in the first queue; the console and the card send by their second. */
    unsigned queue = u == &units[CONSOLE] || u == &units[NET];

    fuzz_reset(&m, u->dev);
    bring_up(u, 1ull << VIRTIO_F_VERSION_1);
    FUZZ_CHECK(get(u, VIRTIO_PCI_COMMON_STATUS, 1) == 15);
    FUZZ_CHECK(memory_fill(m.env.mem, DATA_AT, 0, 64) == 0); /* a disk's read of sector 0 */
    if (u == &units[RNG])
        d[0].flags = VRING_DESC_F_WRITE;
    if (u == &units[BLK]) {
        d[0].len = 16;
        d[0].flags = VRING_DESC_F_NEXT;
    }
    write_descriptor(u, queue, 0, &d[0]);
    write_descriptor(u, queue, 1, &d[1]);
    publish(u, queue, 0);
    kick(u, queue);
    FUZZ_CHECK(loop_run_until(m.env.loop, served, u, 0) == 0);
    FUZZ_CHECK(get(u, VIRTIO_PCI_COMMON_STATUS, 1) == 15);
    fuzz_reset(&m, u->dev);
    FUZZ_CHECK(get(u, VIRTIO_PCI_COMMON_STATUS, 1) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {.data = data, .size = size};
    uint8_t bytes[4096];
    unsigned last;

    set_up();
    m.msi_limit = fuzz_u8(&in);
    round_trips = 0;
    last = m.msi_limit % UNITS;
    for (unsigned ops = 0; in.size > 0 && ops < MAX_OPS; ops++)
        operate(&in);
    for (unsigned i = 0; i < UNITS; i++)
        fuzz_reset(&m, units[i].dev); /* all, lest a moved BAR stands in another's way */
    device_lock(&m.env);
    while (chardev_memory_take(chardev, bytes, sizeof(bytes)) > 0)
        ;
    device_unlock(&m.env);
    check_health(&units[last]);
    FUZZ_CHECK(m.n_msis == 0);
    return 0;
}
