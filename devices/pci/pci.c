/*
 * The PCI Express root bus and its host bridge: configuration accesses by ECAM and by mechanism #1.
 *
 * Does not know what the functions are (function.c) and has no bridges behind it: bus 0 alone, one
 * function a slot. Runs with the device lock held, which guards everything here.
 * Texts: PCI Local Bus 3.0 §3.2.2.3.2 (mechanism #1), PCI Express Base 5.0 §7.2.2 (ECAM).
 */
#include "devices/pci/pci.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "devices/pci/pci_internal.h"

/* Host bridge: the id that virtual machines use for a bridge without registers of its own. */
#define BRIDGE_VENDOR_ID 0x1B36
#define BRIDGE_DEVICE_ID 0x0008
#define BRIDGE_CLASS 0x060000

/* PCI Express Base 5.0 §7.2.2, table 7-1: how an address in the ECAM is made up. */
#define ECAM_BUS_BYTES 0x100000ull
#define ECAM_SLOT_SHIFT 15
#define ECAM_FUNCTION_SHIFT 12

/* Mechanism #1: CONFIG_ADDRESS, then CONFIG_DATA. */
#define PORT_DATA 4
#define PORT_BYTES 8
#define ADDRESS_ENABLE 0x80000000u
#define ADDRESS_WRITABLE 0x80FFFFFCu /* the rest is reserved and reads as 0 */

struct pci_bus_saved {
    uint32_t config_address;
};

static const struct state_field bus_fields[] = {
    STATE_FIELD(STATE_U32, struct pci_bus_saved, config_address),
};
static const struct state_desc bus_desc =
    STATE_DESC("pci-bus", 1, struct pci_bus_saved, bus_fields);

/* ---- accesses by slot, function and register ---- */

static struct pci_function *find(struct pci_bus *bus, unsigned slot, unsigned function)
{
    return function == 0 ? bus->slots[slot % PCI_SLOTS] : NULL;
}

/* Registers are 32 bits wide; an access may be narrower but not reach over. */
static bool in_one_word(unsigned offset, unsigned size)
{
    return (offset & 3) + size <= 4;
}

static uint64_t ecam_read(void *opaque, uint64_t offset, unsigned size)
{
    struct pci_bus *bus = opaque;
    unsigned reg = offset % PCI_CONFIG_BYTES;
    struct pci_function *fn = find(bus, (unsigned)(offset >> ECAM_SLOT_SHIFT),
                                   offset >> ECAM_FUNCTION_SHIFT & 7);

    if (!fn)
        return access_mask(size); /* §7.2.2: no such function */
    if (size == 8 && reg % 8 == 0)
        return function_config_read(fn, reg, 4) |
               (uint64_t)function_config_read(fn, reg + 4, 4) << 32;
    return in_one_word(reg, size) ? function_config_read(fn, reg, size) : access_mask(size);
}

static void ecam_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_bus *bus = opaque;
    unsigned reg = offset % PCI_CONFIG_BYTES;
    struct pci_function *fn = find(bus, (unsigned)(offset >> ECAM_SLOT_SHIFT),
                                   offset >> ECAM_FUNCTION_SHIFT & 7);

    if (!fn)
        return;
    if (size == 8 && reg % 8 == 0) {
        function_config_write(fn, reg, 4, (uint32_t)value);
        function_config_write(fn, reg + 4, 4, (uint32_t)(value >> 32));
    } else if (in_one_word(reg, size)) {
        function_config_write(fn, reg, size, (uint32_t)value);
    }
}

static const struct bus_ops ecam_ops = {.read = ecam_read, .write = ecam_write};

/* What CONFIG_ADDRESS points to; NULL when it is not enabled, or to nothing. */
static struct pci_function *addressed(struct pci_bus *bus)
{
    uint32_t address = bus->config_address;

    if (!(address & ADDRESS_ENABLE) || (address >> 16 & 0xFF) != 0)
        return NULL;
    return find(bus, address >> 11 & 31, address >> 8 & 7);
}

/* An access to CONFIG_DATA lies in one register: the region ends where the register does. */
static uint64_t port_read(void *opaque, uint64_t offset, unsigned size)
{
    struct pci_bus *bus = opaque;
    struct pci_function *fn;

    /* Only a 32-bit access reaches CONFIG_ADDRESS; narrower ones are for other chips' ports. */
    if (offset < PORT_DATA)
        return offset == 0 && size == 4 ? bus->config_address : access_mask(size);
    fn = addressed(bus);
    if (!fn)
        return access_mask(size);
    return function_config_read(fn, (bus->config_address & 0xFC) + (unsigned)(offset & 3), size);
}

static void port_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_bus *bus = opaque;
    struct pci_function *fn;

    if (offset < PORT_DATA) {
        if (offset == 0 && size == 4)
            bus->config_address = (uint32_t)value & ADDRESS_WRITABLE;
        return;
    }
    fn = addressed(bus);
    if (fn)
        function_config_write(fn, (bus->config_address & 0xFC) + (unsigned)(offset & 3), size,
                              (uint32_t)value);
}

static const struct bus_ops port_ops = {.read = port_read, .write = port_write};

/* ---- the host bridge as a device ---- */

static struct pci_bus *from_device(struct device *dev)
{
    return (struct pci_bus *)((char *)dev - offsetof(struct pci_bus, dev));
}

static void bridge_reset(struct device *dev)
{
    struct pci_bus *bus = from_device(dev);

    bus->config_address = 0;
    pci_function_reset(bus->slots[0]);
}

static void saved_get(void *object, void *to)
{
    ((struct pci_bus_saved *)to)->config_address = ((struct pci_bus *)object)->config_address;
}

static int saved_check(void *object, const void *from)
{
    const struct pci_bus *bus = object;
    const struct pci_bus_saved *saved = from;

    if ((saved->config_address & ~ADDRESS_WRITABLE) == 0)
        return 0;
    log_error("%s: saved state: an impossible configuration address", bus->dev.id);
    return -EINVAL;
}

static void saved_set(void *object, const void *from)
{
    ((struct pci_bus *)object)->config_address =
        ((const struct pci_bus_saved *)from)->config_address;
}

static unsigned bridge_state(struct device *dev, struct state_part *parts)
{
    struct pci_bus *bus = from_device(dev);

    parts[0] = (struct state_part){
        .desc = &bus_desc,
        .object = bus,
        .get = saved_get,
        .check = saved_check,
        .set = saved_set,
    };
    pci_function_state(bus->slots[0], &parts[1]);
    return 2;
}

static void bridge_destroy(struct device *dev)
{
    struct pci_bus *bus = from_device(dev);

    for (unsigned s = 1; s < PCI_SLOTS; s++)
        assert(!bus->slots[s]); /* the machine destroys its devices before their bus */
    pci_function_destroy(bus->slots[0]);
    if (bus->port_added)
        bus_remove(bus->env->pio, &bus->port_region);
    if (bus->ecam_added)
        bus_remove(bus->env->mmio, &bus->ecam_region);
    free(bus);
}

static const struct device_ops bridge_ops = {
    .type = "pci-host-bridge",
    .reset = bridge_reset,
    .state = bridge_state,
    .destroy = bridge_destroy,
};

static int add_regions(struct pci_bus *bus)
{
    int err;

    bus->ecam_region = (struct bus_region){
        .name = "pci-ecam",
        .base = bus->config.ecam.base,
        .size = ECAM_BUS_BYTES,
        .ops = &ecam_ops,
        .opaque = bus,
    };
    err = bus_add(bus->env->mmio, &bus->ecam_region);
    if (err)
        return err;
    bus->ecam_added = true;
    if (bus->config.config_port == 0)
        return 0;
    bus->port_region = (struct bus_region){
        .name = "pci-config",
        .base = bus->config.config_port,
        .size = PORT_BYTES,
        .ops = &port_ops,
        .opaque = bus,
    };
    err = bus_add(bus->env->pio, &bus->port_region);
    bus->port_added = err == 0;
    return err;
}

int pci_bus_create(struct device **out, struct pci_bus **out_bus, const struct device_env *env,
                   const struct pci_bus_config *config)
{
    const struct pci_function_config bridge = {
        .name = "pci-host-bridge",
        .vendor_id = BRIDGE_VENDOR_ID,
        .device_id = BRIDGE_DEVICE_ID,
        .class_code = BRIDGE_CLASS,
    };
    struct pci_bus *bus = calloc(1, sizeof(*bus));
    struct pci_function *fn;
    int err;

    if (!bus)
        return -ENOMEM;
    bus->dev.ops = &bridge_ops;
    snprintf(bus->dev.id, sizeof(bus->dev.id), "pci");
    bus->env = env;
    bus->config = *config;
    bus->next_bar = config->mmio32.base;
    err = pci_function_create(&fn, bus, &bridge); /* the first slot: 0 */
    if (err)
        goto free_bus;
    err = add_regions(bus);
    if (err) {
        log_error("pci: its windows collide with another device's: %d", err);
        goto destroy_bridge;
    }
    *out = &bus->dev;
    *out_bus = bus;
    return 0;

destroy_bridge:
    pci_function_destroy(fn);
    if (bus->ecam_added)
        bus_remove(env->mmio, &bus->ecam_region);
free_bus:
    free(bus);
    return err;
}
