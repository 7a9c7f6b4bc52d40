/*
 * Attacks by registers: notifications at every address, resets in the middle of requests, the
 * MSI-X table, BARs on top of other things, every byte of configuration space, every port.
 * Texts: virtio 1.2, 2.4.1, 4.1.4, 4.1.5; PCI 3.0, 6.2.5, 6.8.2; PCI Express 4.0, 7.2.2.
 */
#include <stddef.h>

#include "apic.h"
#include "boot.h"
#include "cpu.h"
#include "hostile.h"
#include "io.h"
#include "memory.h"
#include "print.h"
#include "timing.h"
#include "verdict.h"

#define QUIET       (20 * MILLISECOND)
#define LIMIT       (30 * SECOND)
#define CANARY      0x5C
#define REQUESTS    32
#define BAR_SIZE    0x8000
#define MSIX_VECTOR 0x80

/* ---- notifications ---- */

void attack_notify(void)
{
    const struct virtio_device *device = &victim.device;

    victim_start(0);
    for (uint32_t at = 0; at < device->notify_length && at < 4096; at++) {
        mmio_write16(device->notify + at, (uint16_t)at);
        if (at % 4 == 0) {
            mmio_write32(device->notify + at, (uint32_t)chance());
            mmio_write8(device->notify + at, (uint8_t)chance());
        }
        if (at % 8 == 0)
            mmio_write64(device->notify + at, chance());
    }
    attack_end("notify-everywhere", MUST_WORK);
    victim_start(0);
    for (uint32_t value = 0; value < 0x10000; value += 37)
        mmio_write16(victim.queue.notify, (uint16_t)value);
    attack_end("notify-any-index", MUST_WORK);
    victim_start(0);
    for (uint32_t at = 0; at < device->notify_length && at < 4096; at++)
        mmio_read8(device->notify + at);
    attack_end("notify-read", MUST_WORK);
}

/* ---- resets ---- */

static bool canary_intact(uint64_t from, uint64_t to)
{
    for (uint64_t i = from; i < to; i++) {
        if (victim.data[i] != CANARY)
            return false;
    }
    return true;
}

/* Requests in flight, reset, and no byte may be written once the reset reads back as done. */
static void attack_reset_in_flight(void)
{
    for (unsigned round = 0; round < 50; round++) {
        victim_start(VIRTIO_F_EVENT_IDX);
        *victim.header = (struct victim_header){ 0 };
        for (uint16_t i = 0; i < REQUESTS; i++) {
            uint16_t at = (uint16_t)(i * 3);
            victim_put_request(at);
            victim_put(at + 1, (uintptr_t)victim.data + i * 2048u, 2048, DESC_NEXT | DESC_WRITE,
                       at + 2);
            victim_post(at);
        }
        if (!virtio_reset(&victim.device)) {
            not_ok("reset-in-flight", "the status does not return to 0 in round %u", round);
            return;
        }
        memset(victim.data, CANARY, VICTIM_DATA);
        delay_ns(MILLISECOND * (round % 3));
        if (!canary_intact(0, VICTIM_DATA)) {
            not_ok("reset-in-flight", "the device writes after its reset in round %u", round);
            return;
        }
    }
    delay_ns(QUIET);
    check(canary_intact(0, VICTIM_DATA), "reset-silences", "the device writes after its reset");
    attack_end("reset-in-flight", MAY_BREAK);
}

void attack_reset(void)
{
    attack_reset_in_flight();
    for (unsigned i = 0; i < 200; i++)
        virtio_set_status(&victim.device, 0);
    attack_end("reset-often", MAY_BREAK);
    victim_start(0);
    victim_post(0xFFFF);
    virtio_set_status(&victim.device, 0);
    victim_post(0);
    attack_end("reset-broken", MAY_BREAK);
}

/* ---- MSI-X ---- */

static bool request_interrupts(uint32_t before, uint32_t wanted)
{
    struct deadline deadline = deadline_in(LIMIT);

    while (irq_count(MSIX_VECTOR) - before < wanted) {
        if (deadline_over(&deadline))
            return false;
        cpu_pause();
    }
    return true;
}

/* The victim live with interrupts of its queue by table entry 1. */
static bool start_interrupts(void)
{
    const struct pci_device *pci = &victim.device.pci;

    pci_msix_enable(pci, true, false);
    pci_msix_route(pci, 1, cpu_this()->apic_id, MSIX_VECTOR);
    if (!victim_prepare(0) || !virtio_queue_setup(&victim.device, &victim.queue, 0, 0, 1))
        return false;
    virtio_driver_ok(&victim.device);
    return true;
}

/* 6.8.3.4: while masked, an interrupt waits in the PBA; unmasking sends it, once. */
static void check_pending(const char *name, bool by_function)
{
    const struct pci_device *pci = &victim.device.pci;

    if (!start_interrupts()) {
        not_ok(name, "the device does not start");
        return;
    }
    uint32_t before = irq_count(MSIX_VECTOR);
    if (by_function)
        pci_msix_enable(pci, true, true);
    else
        pci_msix_mask(pci, 1, true);
    bool works = victim_works();
    delay_ns(QUIET);
    uint32_t masked = irq_count(MSIX_VECTOR) - before;
    uint32_t pending = mmio_read32(pci->msix_pba);
    if (by_function)
        pci_msix_enable(pci, true, false);
    else
        pci_msix_mask(pci, 1, false);
    bool came = request_interrupts(before, 1);
    check(works && masked == 0 && came && (pending & 2) != 0, name,
          "works %d, %u interrupts while masked, PBA %x, came after %d", works, masked, pending,
          came);
    check((mmio_read32(pci->msix_pba) & 2) == 0, "msix-pending-clears", "PBA %x afterwards",
          mmio_read32(pci->msix_pba));
}

/* Data for fixed and lowest-priority delivery only: INIT, SMI and NMI would end this guest. */
static uint32_t rubbish_data(void)
{
    uint32_t data = (uint32_t)chance() & 0xFFFFF8FF;

    if ((data & 0xFF) >= 16 && (data & 0xFF) < 32)
        data |= 0x80; /* these vectors are exceptions */
    return data;
}

static void scribble_table(void)
{
    const struct pci_device *pci = &victim.device.pci;
    static const uint64_t addresses[] = { 0xFEE00000, 0xFEE01000, 0xFEEFF00C, 0xFEC00000,
                                          0x100000, 0, 0xFFFFFFFFFFFFFFFC, 0x1FEE00000,
                                          0xFEE00003 };
    uint32_t entry = (uint32_t)(chance() % pci->msix_entries);
    uint64_t at = pci->msix_table + entry * 16ul;
    uint64_t address = addresses[chance() % (sizeof(addresses) / sizeof(*addresses))];

    mmio_write32(at, (uint32_t)address);
    mmio_write32(at + 4, (uint32_t)(address >> 32));
    mmio_write32(at + 8, rubbish_data());
    mmio_write32(at + 12, (uint32_t)chance());
    if (chance() % 4 == 0)
        pci_msix_enable(pci, chance() % 2, chance() % 2);
}

static void attack_table_rubbish(void)
{
    for (unsigned i = 0; i < 500; i++) {
        scribble_table();
        if (i % 10 != 0)
            continue;
        victim_put_request(0);
        victim_post(0);
    }
    const struct pci_device *pci = &victim.device.pci;
    for (uint64_t at = 0; at < 0x1000; at += 3) {
        mmio_read64(pci->msix_table + at);
        mmio_write8(pci->msix_table + at, 0);
        mmio_write16(pci->msix_table + at, 0);
    }
    for (uint64_t at = 0; at < 64; at++) {
        mmio_write32(pci->msix_pba + at, 0xFFFFFFFF);
        mmio_read64(pci->msix_pba + at);
    }
    /* Every entry back to something harmless before interrupts are looked at again. */
    for (uint32_t entry = 0; entry < pci->msix_entries; entry++)
        pci_msix_route(pci, entry, cpu_this()->apic_id, MSIX_VECTOR + 1);
    attack_end("msix-rubbish", MAY_BREAK);
}

static void check_vectors(void)
{
    static const uint16_t vectors[] = { 0x7FF, 0x800, 0x1000, 0xFFFE };
    uint64_t common = victim.device.common;

    victim_prepare(0);
    mmio_write16(common + COMMON_QUEUE_SELECT, 0);
    for (unsigned i = 0; i < sizeof(vectors) / sizeof(*vectors); i++) {
        mmio_write16(common + COMMON_QUEUE_VECTOR, vectors[i]);
        mmio_write16(common + COMMON_CONFIG_VECTOR, vectors[i]);
        uint16_t queue = mmio_read16(common + COMMON_QUEUE_VECTOR);
        uint16_t config = mmio_read16(common + COMMON_CONFIG_VECTOR);
        if (queue != VIRTIO_NO_VECTOR || config != VIRTIO_NO_VECTOR) {
            not_ok("msix-vector-refused", "%x reads back as %x and %x", vectors[i], queue,
                   config);
            return;
        }
    }
    ok("msix-vector-refused");
}

/* 2.1.2: a device that needs a reset after DRIVER_OK says so by a configuration interrupt. */
static void check_broken_interrupt(void)
{
    if (!start_interrupts()) {
        not_ok("msix-broken", "the device does not start");
        return;
    }
    pci_msix_route(&victim.device.pci, 0, cpu_this()->apic_id, MSIX_VECTOR);
    mmio_write16(victim.device.common + COMMON_CONFIG_VECTOR, 0);
    uint32_t before = irq_count(MSIX_VECTOR);
    victim_post(0xFFFF);
    check(request_interrupts(before, 1), "msix-broken", "no configuration interrupt");
    attack_end("msix-broken-recovers", MUST_BREAK);
}

void attack_msix(void)
{
    if (victim.device.pci.msix_cap == 0) {
        not_ok("msix", "no MSI-X capability");
        return;
    }
    irq_enable();
    check_pending("msix-pending-entry", false);
    check_pending("msix-pending-function", true);
    check_vectors();
    check_broken_interrupt();
    start_interrupts();
    attack_table_rubbish();
    check_pending("msix-after-rubbish", false);
    irq_disable();
    pci_msix_enable(&victim.device.pci, false, false);
}

/* ---- BARs ---- */

/* By the ports: the window (ECAM) may lie under a BAR while an attack lasts. */
static uint32_t port_read(uint8_t slot, uint16_t offset, unsigned size)
{
    return pci_read_by(PCI_ACCESS_PORTS, slot, offset, size);
}

static void port_write(uint8_t slot, uint16_t offset, unsigned size, uint32_t value)
{
    pci_write_by(PCI_ACCESS_PORTS, slot, offset, size, value);
}

static void attack_bar(const char *name, uint64_t place)
{
    const struct pci_device *pci = &victim.device.pci;
    uint64_t home = pci->bar[0];

    victim_start(0);
    victim_put_request(0);
    port_write(pci->slot, PCI_BAR0, 4, (uint32_t)place);
    for (uint64_t at = 0; at < BAR_SIZE; at += 0x400) {
        mmio_read32(place + at);
        mmio_read32(home + at);
    }
    port_write(pci->slot, PCI_BAR0, 4, (uint32_t)home);
    victim_post(0);
    attack_end(name, MAY_BREAK);
}

static uint64_t other_bar(void)
{
    struct pci_device other;

    for (uint8_t slot = 0; slot < PCI_SLOTS; slot++) {
        if (slot != victim.device.pci.slot && pci_open(&other, slot) && other.bar[0] != 0)
            return other.bar[0];
    }
    return 0xD0000000;
}

static void attack_decoding(void)
{
    const struct pci_device *pci = &victim.device.pci;
    uint32_t command = port_read(pci->slot, PCI_COMMAND, 2);

    victim_start(0);
    port_write(pci->slot, PCI_COMMAND, 2, command & ~PCI_COMMAND_MEMORY);
    uint32_t off = mmio_read32(victim.device.common + COMMON_QUEUE_SELECT);
    mmio_write32(victim.device.common, 0);
    virtqueue_notify(&victim.queue);
    port_write(pci->slot, PCI_COMMAND, 2, command);
    check(off == 0xFFFFFFFF, "decoding-off", "the BAR answers %08x while decoding is off", off);
    attack_end("decoding-back-on", MAY_BREAK);
    victim_start(0);
    for (unsigned i = 0; i < 500; i++) {
        port_write(pci->slot, PCI_COMMAND, 2, (uint32_t)(chance() & 0xFFFF));
        virtqueue_notify(&victim.queue);
    }
    port_write(pci->slot, PCI_COMMAND, 2, command);
    attack_end("command-random", MAY_BREAK);
}

void attack_bars(void)
{
    uint8_t slot = victim.device.pci.slot;

    attack_bar("bar-on-itself", victim.device.pci.bar[0]);
    attack_bar("bar-on-another", other_bar());
    attack_bar("bar-half-on-another", other_bar() + BAR_SIZE / 2);
    attack_bar("bar-on-ram", 0x100000);
    attack_bar("bar-at-zero", 0);
    attack_bar("bar-on-ecam", pci_ecam_base());
    attack_bar("bar-on-ioapic", 0xFEC00000);
    attack_bar("bar-on-lapic", 0xFEE00000);
    attack_bar("bar-at-4g", 0xFFFF8000);
    for (unsigned i = 0; i < 300; i++)
        port_write(slot, PCI_BAR0, 4, (uint32_t)chance() | 0xC0000000);
    port_write(slot, PCI_BAR0, 4, (uint32_t)victim.device.pci.bar[0]);
    attack_end("bar-random", MAY_BREAK);
    attack_decoding();
}

/* ---- configuration space ---- */

static void read_everywhere(enum pci_access access, uint8_t slot, uint16_t end)
{
    /* All of the header and the capabilities; behind them steps that meet every alignment. */
    for (uint16_t at = 0; at < end; at = (uint16_t)(at + (at < 256 ? 1 : 7))) {
        pci_read_by(access, slot, at, 1);
        if (access == PCI_ACCESS_ECAM || at % 2 == 0)
            pci_read_by(access, slot, at, 2);
        if (access == PCI_ACCESS_ECAM || at % 4 == 0)
            pci_read_by(access, slot, at, 4);
    }
}

struct saved_function {
    uint32_t command;
    uint32_t bars[6];
};

static void save_function(uint8_t slot, struct saved_function *saved)
{
    saved->command = port_read(slot, PCI_COMMAND, 2);
    for (unsigned i = 0; i < 6; i++)
        saved->bars[i] = port_read(slot, (uint16_t)(PCI_BAR0 + 4 * i), 4);
}

static void restore_function(uint8_t slot, const struct saved_function *saved)
{
    for (unsigned i = 0; i < 6; i++)
        port_write(slot, (uint16_t)(PCI_BAR0 + 4 * i), 4, saved->bars[i]);
    port_write(slot, PCI_COMMAND, 2, saved->command);
}

static void write_everywhere(enum pci_access access, uint8_t slot, uint16_t end)
{
    static const unsigned sizes[] = { 1, 2, 4 };
    struct saved_function saved;
    uint32_t id = port_read(slot, PCI_VENDOR_ID, 4);

    save_function(slot, &saved);
    for (uint16_t at = 0; at < end; at = (uint16_t)(at + (at < 256 ? 1 : 3))) {
        unsigned size = sizes[chance() % 3];
        if (access == PCI_ACCESS_PORTS && at % size != 0)
            size = 1;
        pci_write_by(access, slot, at, size, (uint32_t)chance());
    }
    restore_function(slot, &saved);
    if (port_read(slot, PCI_VENDOR_ID, 4) != id)
        not_ok("config-id", "slot %u: the id %08x changed to %08x", slot, id,
               port_read(slot, PCI_VENDOR_ID, 4));
}

static void attack_mechanism_1(void)
{
    for (unsigned i = 0; i < 2000; i++) {
        out32(0xCF8, (uint32_t)chance());
        in32((uint16_t)(0xCFC + chance() % 4));
        in16((uint16_t)(0xCFC + chance() % 4));
        in8((uint16_t)(0xCFC + chance() % 4));
    }
    for (uint16_t port = 0xCF8; port < 0xD00; port++) {
        out8(port, port == 0xCF9 ? 0 : 0xFF); /* 0xCF9 resets on a PC when bit 2 is set */
        in8(port);
        in16(port);
        in32(port);
    }
    out32(0xCF8, 0);
    attack_end("config-mechanism-1", MAY_BREAK);
}

/* All registers behind the victim's BAR, read in every size and written from chance. */
static void attack_bar_contents(void)
{
    uint64_t base = victim.device.pci.bar[0];

    victim_start(0);
    for (uint64_t at = 0; at + 16 < BAR_SIZE; at += 1 + chance() % 8) {
        mmio_read8(base + at);
        mmio_read16(base + at);
        mmio_read32(base + at);
        mmio_read64(base + at);
    }
    attack_end("bar-read-everywhere", MAY_BREAK);
    victim_start(0);
    for (unsigned i = 0; i < 4000; i++) {
        uint64_t at = base + chance() % 0x4000; /* the MSI-X table has an attack of its own */
        switch (chance() % 4) {
        case 0:
            mmio_write8(at, (uint8_t)chance());
            break;
        case 1:
            mmio_write16(at, (uint16_t)chance());
            break;
        case 2:
            mmio_write32(at, (uint32_t)chance());
            break;
        default:
            mmio_write64(at, chance());
            break;
        }
    }
    attack_end("bar-write-random", MAY_BREAK);
    victim_start(0);
    for (uint32_t at = 0; at < 0x60; at++) {
        mmio_write8(victim.device.common + at, (uint8_t)chance());
        if (victim.device.config != 0)
            mmio_write32(victim.device.config + at, (uint32_t)chance());
    }
    attack_end("device-config-write", MAY_BREAK);
}

void attack_config(void)
{
    for (uint8_t slot = 0; slot < PCI_SLOTS; slot++) {
        if (port_read(slot, PCI_VENDOR_ID, 2) == 0xFFFF)
            continue;
        if (pci_ecam_base() != 0)
            read_everywhere(PCI_ACCESS_ECAM, slot, 4096);
        read_everywhere(PCI_ACCESS_PORTS, slot, 256);
        if (pci_ecam_base() != 0)
            write_everywhere(PCI_ACCESS_ECAM, slot, 4096);
        write_everywhere(PCI_ACCESS_PORTS, slot, 256);
    }
    attack_end("config-everywhere", MAY_BREAK);
    for (unsigned i = 0; i < 4000 && pci_ecam_base() != 0; i++)
        mmio_read64(pci_ecam_base() + chance() % MIB);
    attack_end("config-random-reads", MAY_BREAK);
    attack_mechanism_1();
    attack_bar_contents();
}

/* ---- ports ---- */

struct port_range {
    uint16_t first, last;
};

/* What ends or resets the machine, stops its console, or belongs to the kernel's own chips. */
static const struct port_range kept_from_writes[] = {
    { 0x20, 0x21 },   { 0x40, 0x43 },   { 0x60, 0x64 },   { 0x92, 0x92 },   { 0xA0, 0xA1 },
    { 0xF4, 0xF4 },   { 0x3F8, 0x3FF }, { 0x4D0, 0x4D1 }, { 0x505, 0x505 }, { 0x600, 0x602 },
    { 0xCF8, 0xCFF },
};

static bool may_write(uint32_t port, uint32_t size)
{
    for (unsigned i = 0; i < sizeof(kept_from_writes) / sizeof(*kept_from_writes); i++) {
        if (port <= kept_from_writes[i].last && port + size > kept_from_writes[i].first)
            return false;
    }
    return true;
}

#define SWEEP 256

static uint8_t writable[0x10000];

/*
 * SWEEP ports from the one in argument, read and written. At CPL 0, where a port costs half as much
 * on a host that emulates it, but every instruction beside it counts.
 */
static uint64_t sweep_cpl0(void *argument, uint64_t *return_frame)
{
    uint32_t port = (uint32_t)(uintptr_t)argument;

    (void)return_frame;
    for (uint32_t end = port + SWEEP; port < end; port++) {
        if (writable[port] == 0)
            continue;
        in8((uint16_t)port);
        out8((uint16_t)port, 0xFF);
    }
    return 0;
}

/* Wider than a port, so that some lie half in a device. */
static void sweep_wide(uint16_t port)
{
    in16(port);
    in32(port);
    if (!may_write(port, 4))
        return;
    out16(port, 0xA5A5);
    out32(port, 0xFFFFFFFF);
}

void attack_ports(void)
{
    victim_start(0);
    for (uint32_t port = 0; port < sizeof(writable); port++)
        writable[port] = may_write(port, 1);
    for (uint64_t port = 0; port < sizeof(writable); port += SWEEP)
        cpl0_call(sweep_cpl0, (void *)port);
    for (uint32_t port = 0; port < 0xFFFD; port += 13)
        sweep_wide((uint16_t)port);
    for (uint32_t port = 0; port < 0x700; port++) {
        if (!may_write(port, 1) && (port < COM1 - 3 || port > COM1 + 7))
            sweep_wide((uint16_t)port);
    }
    attack_end("ports", MUST_WORK);
}
