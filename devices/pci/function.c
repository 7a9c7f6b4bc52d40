/*
 * A PCI function: its configuration space, capabilities, BARs and state.
 *
 * Does not know what the function does: accesses to its BARs and to its own capabilities go to the
 * operations it was created with. MSI-X is in msix.c, the bus in pci.c. Runs with the device lock
 * held, which guards everything here.
 *
 * A guest's write is one rule for every byte: bits of the mask `writable` are taken over, the rest
 * stays; registers with consequences are looked at afterwards. Loading state is the same rule.
 * Texts: PCI Local Bus 3.0 §6.1, §6.2, §6.7; PCI Express Base 5.0 §7.5.1, §7.5.3.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "devices/pci/pci_internal.h"

#define CLASS_BRIDGE 0x06
#define FIRST_CAP 0x40
#define PCIE_CAP_BYTES 60   /* PCI Express Base 5.0 §7.5.3: version 2 of the structure */
#define MSIX_CAP_BYTES 12

static const struct state_field saved_fields[] = {
    STATE_ARRAY(STATE_U8, struct pci_function_saved, space),
    STATE_ARRAY(STATE_U32, struct pci_function_saved, msix_table),
    STATE_ARRAY(STATE_U64, struct pci_function_saved, msix_pending),
};
static const struct state_desc saved_desc =
    STATE_DESC("pci-function", 1, struct pci_function_saved, saved_fields);

static void put16(uint8_t *at, uint16_t value)
{
    at[0] = (uint8_t)value;
    at[1] = (uint8_t)(value >> 8);
}

static void put32(uint8_t *at, uint32_t value)
{
    put16(at, (uint16_t)value);
    put16(at + 2, (uint16_t)(value >> 16));
}

static uint32_t get32(const uint8_t *at)
{
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* ---- BARs ---- */

/* Which part of the BAR an offset is in. */
enum bar_part { PART_DEVICE, PART_TABLE, PART_PBA };

static enum bar_part part_of(const struct bar *bar, uint64_t *offset)
{
    const struct pci_function_config *config = &bar->fn->config;
    uint64_t table_bytes = (uint64_t)config->n_msix * PCI_MSIX_ENTRY_SIZE;
    uint64_t pba_bytes = ((uint64_t)config->n_msix + 63) / 64 * 8;

    if (config->n_msix == 0 || bar != &bar->fn->bars[config->msix_bar])
        return PART_DEVICE;
    if (*offset >= config->msix_table_offset &&
        *offset - config->msix_table_offset < table_bytes) {
        *offset -= config->msix_table_offset;
        return PART_TABLE;
    }
    if (*offset >= config->msix_pba_offset && *offset - config->msix_pba_offset < pba_bytes) {
        *offset -= config->msix_pba_offset;
        return PART_PBA;
    }
    return PART_DEVICE;
}

static uint64_t bar_read(void *opaque, uint64_t offset, unsigned size)
{
    struct bar *bar = opaque;

    switch (part_of(bar, &offset)) {
    case PART_TABLE:
        return msix_table_read(bar->fn, (uint32_t)offset, size);
    case PART_PBA:
        return msix_pba_read(bar->fn, (uint32_t)offset, size);
    case PART_DEVICE:
        break;
    }
    return bar->config.ops->read(bar->config.opaque, offset, size);
}

static void bar_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct bar *bar = opaque;

    switch (part_of(bar, &offset)) {
    case PART_TABLE:
        msix_table_write(bar->fn, (uint32_t)offset, size, value);
        return;
    case PART_PBA:
        return; /* §6.8.2.10: read-only */
    case PART_DEVICE:
        break;
    }
    bar->config.ops->write(bar->config.opaque, offset, size, value);
}

static const struct bus_ops bar_ops = {.read = bar_read, .write = bar_write};

static bool bar_holds(const struct pci_function *fn, unsigned index, uint64_t offset,
                      unsigned size)
{
    uint64_t bytes = index < PCI_BARS ? fn->bars[index].config.size : 0;

    return bytes >= size && offset <= bytes - size;
}

uint64_t pci_function_bar_read(struct pci_function *fn, unsigned bar, uint64_t offset,
                               unsigned size)
{
    if (!bar_holds(fn, bar, offset, size))
        return access_mask(size);
    return bar_read(&fn->bars[bar], offset, size) & access_mask(size);
}

void pci_function_bar_write(struct pci_function *fn, unsigned bar, uint64_t offset, unsigned size,
                            uint64_t value)
{
    if (bar_holds(fn, bar, offset, size))
        bar_write(&fn->bars[bar], offset, size, value & access_mask(size));
}

/* Places a BAR in the bus's window, aligned to its size. */
static int place_bar(struct pci_function *fn, unsigned index)
{
    struct pci_bus *bus = fn->bus;
    struct bar *bar = &fn->bars[index];
    uint64_t size = bar->config.size;
    uint64_t end = bus->config.mmio32.base + bus->config.mmio32.size;
    uint64_t base = (bus->next_bar + size - 1) & ~(size - 1);
    unsigned at = PCI_BASE_ADDRESS_0 + 4 * index;

    if (base > end || end - base < size) {
        log_error("%s: no room for a BAR of %llu KiB in the PCI memory window; use fewer devices",
                  fn->name, (unsigned long long)(size / KIB));
        return -ENOSPC;
    }
    bus->next_bar = base + size;
    bar->home = (uint32_t)base;
    put32(&fn->space[at], bar->home);
    /* §6.2.5.1: the address bits below the size read as 0 whatever is written. */
    put32(&fn->writable[at], (uint32_t)~(size - 1) & PCI_BASE_ADDRESS_MEM_MASK);
    return 0;
}

static int init_bars(struct pci_function *fn)
{
    for (unsigned i = 0; i < PCI_BARS; i++) {
        struct bar *bar = &fn->bars[i];
        int err;

        bar->fn = fn;
        bar->config = fn->config.bars[i];
        if (bar->config.size == 0)
            continue;
        assert(bar->config.size >= 4 * KIB && (bar->config.size & (bar->config.size - 1)) == 0);
        err = place_bar(fn, i);
        if (err)
            return err;
    }
    return 0;
}

/* ---- mapping: which BARs of the bus answer, and where ---- */

static bool overlaps_granted(const struct pci_bus *bus, uint64_t base, uint64_t size)
{
    for (unsigned s = 0; s < PCI_SLOTS; s++) {
        const struct pci_function *fn = bus->slots[s];

        for (unsigned i = 0; fn && i < PCI_BARS; i++) {
            const struct bar *bar = &fn->bars[i];

            if (bar->granted && base < bar->wanted + bar->config.size &&
                bar->wanted < base + size)
                return true;
        }
    }
    return false;
}

/* Whether the guest wants the BAR to answer, at an address that the host bridge forwards: what is
 * outside of its window (RAM, the platform's chips) is never the BAR's. */
static bool bar_wanted(const struct bar *bar)
{
    const struct pci_window *window = &bar->fn->bus->config.mmio32;
    uint64_t base = bar->wanted;

    if (bar->config.size == 0 || !(bar->fn->space[PCI_COMMAND] & PCI_COMMAND_MEMORY))
        return false;
    return base >= window->base && bar->config.size <= window->size &&
           base - window->base <= window->size - bar->config.size;
}

static void grant_bars(struct pci_function *fn)
{
    for (unsigned i = 0; i < PCI_BARS; i++) {
        struct bar *bar = &fn->bars[i];

        bar->wanted = get32(&fn->space[PCI_BASE_ADDRESS_0 + 4 * i]) & PCI_BASE_ADDRESS_MEM_MASK;
        bar->granted = bar_wanted(bar) &&
                       !overlaps_granted(fn->bus, bar->wanted, bar->config.size);
    }
}

static void unmap_bar(struct bar *bar)
{
    bus_remove(bar->fn->bus->env->mmio, &bar->region);
    bar->mapped = false;
    if (bar->config.mapped)
        bar->config.mapped(bar->config.opaque, bar->region.base, false);
}

static void unmap_moved(struct pci_function *fn)
{
    for (unsigned i = 0; i < PCI_BARS; i++) {
        struct bar *bar = &fn->bars[i];

        if (bar->mapped && !(bar->granted && bar->wanted == bar->region.base))
            unmap_bar(bar);
    }
}

static void map_granted(struct pci_function *fn)
{
    for (unsigned i = 0; i < PCI_BARS; i++) {
        struct bar *bar = &fn->bars[i];

        if (bar->mapped || !bar->granted)
            continue;
        bar->region = (struct bus_region){
            .name = fn->name,
            .base = bar->wanted,
            .size = bar->config.size,
            .ops = &bar_ops,
            .opaque = bar,
        };
        /* Refused where a chip of the platform's stands in the window: the chip wins. */
        if (bus_add(fn->bus->env->mmio, &bar->region) != 0)
            continue;
        bar->mapped = true;
        if (bar->config.mapped)
            bar->config.mapped(bar->config.opaque, bar->wanted, true);
    }
}

void bus_remap(struct pci_bus *bus)
{
    /* Which of two overlapping BARs answers follows from the registers alone (the one in the lower
     * slot), never from the order of writes: so a restored machine maps what the saved one did. */
    for (unsigned s = 0; s < PCI_SLOTS; s++)
        for (unsigned i = 0; bus->slots[s] && i < PCI_BARS; i++)
            bus->slots[s]->bars[i].granted = false;
    for (unsigned s = 0; s < PCI_SLOTS; s++)
        if (bus->slots[s])
            grant_bars(bus->slots[s]);
    for (unsigned s = 0; s < PCI_SLOTS; s++)
        if (bus->slots[s])
            unmap_moved(bus->slots[s]);
    for (unsigned s = 0; s < PCI_SLOTS; s++)
        if (bus->slots[s])
            map_granted(bus->slots[s]);
}

/* ---- capabilities ---- */

/* `body` stands behind the two bytes of id and link. Returns the offset or -ENOSPC. */
static int add_cap(struct pci_function *fn, uint8_t id, const void *body, unsigned length,
                   const void *writable)
{
    unsigned at = fn->free_at;
    unsigned total = 2 + length;

    if (total > CONFIG_STORED - at) {
        log_error("%s: its capabilities do not fit the PCI configuration space", fn->name);
        return -ENOSPC;
    }
    fn->space[at] = id;
    memcpy(&fn->space[at + 2], body, length);
    if (writable)
        memcpy(&fn->writable[at + 2], writable, length);
    if (fn->last_cap)
        fn->space[fn->last_cap + PCI_CAP_LIST_NEXT] = (uint8_t)at;
    else
        fn->space[PCI_CAPABILITY_LIST] = (uint8_t)at;
    fn->space[PCI_STATUS] |= PCI_STATUS_CAP_LIST;
    fn->last_cap = (uint8_t)at;
    fn->free_at = (at + total + 3) & ~3u;
    memcpy(fn->initial, fn->space, sizeof(fn->initial));
    return (int)at;
}

int pci_function_add_cap(struct pci_function *fn, uint8_t id, const void *body, unsigned length,
                         const void *writable)
{
    int at = add_cap(fn, id, body, length, writable);

    if (at < 0)
        return at;
    assert(fn->n_own_caps < MAX_OWN_CAPS);
    fn->own_caps[fn->n_own_caps++] =
        (struct own_cap){.offset = (uint8_t)at, .length = (uint8_t)(2 + length)};
    return at;
}

/* PCI Express Base 5.0 §7.5.3: an endpoint integrated in the root complex, which has no link. It
 * tells Linux that the configuration space has its 4 KiB. */
static int add_pcie_cap(struct pci_function *fn)
{
    uint8_t cap[PCIE_CAP_BYTES] = {0};
    uint8_t writable[PCIE_CAP_BYTES] = {0};
    int at;

    put16(&cap[PCI_EXP_FLAGS], 2 | PCI_EXP_TYPE_RC_END << 4);
    put32(&cap[PCI_EXP_DEVCAP], PCI_EXP_DEVCAP_RBER); /* §7.5.3.3: must be set */
    /* §7.5.3.4: what power-on leaves there, and what software may set without effect here. */
    put16(&cap[PCI_EXP_DEVCTL],
          PCI_EXP_DEVCTL_RELAX_EN | PCI_EXP_DEVCTL_NOSNOOP_EN | PCI_EXP_DEVCTL_READRQ_512B);
    put16(&writable[PCI_EXP_DEVCTL],
          PCI_EXP_DEVCTL_CERE | PCI_EXP_DEVCTL_NFERE | PCI_EXP_DEVCTL_FERE | PCI_EXP_DEVCTL_URRE |
              PCI_EXP_DEVCTL_RELAX_EN | PCI_EXP_DEVCTL_NOSNOOP_EN | PCI_EXP_DEVCTL_READRQ);
    at = add_cap(fn, PCI_CAP_ID_EXP, cap + 2, sizeof(cap) - 2, writable + 2);
    return at < 0 ? at : 0;
}

static int add_msix_cap(struct pci_function *fn)
{
    const struct pci_function_config *config = &fn->config;
    uint8_t cap[MSIX_CAP_BYTES] = {0};
    uint8_t writable[MSIX_CAP_BYTES] = {0};
    int at;

    put16(&cap[PCI_MSIX_FLAGS], (uint16_t)(config->n_msix - 1));
    put32(&cap[PCI_MSIX_TABLE], config->msix_table_offset | config->msix_bar);
    put32(&cap[PCI_MSIX_PBA], config->msix_pba_offset | config->msix_bar);
    put16(&writable[PCI_MSIX_FLAGS], PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
    at = add_cap(fn, PCI_CAP_ID_MSIX, cap + 2, sizeof(cap) - 2, writable + 2);
    if (at < 0)
        return at;
    fn->msix_cap = (uint8_t)at;
    return 0;
}

/* ---- the configuration space ---- */

static void init_header(struct pci_function *fn)
{
    const struct pci_function_config *config = &fn->config;
    uint8_t *space = fn->space;

    put16(&space[PCI_VENDOR_ID], config->vendor_id);
    put16(&space[PCI_DEVICE_ID], config->device_id);
    put32(&space[PCI_CLASS_REVISION], config->class_code << 8 | config->revision);
    put16(&space[PCI_SUBSYSTEM_VENDOR_ID], config->subsystem_vendor_id);
    put16(&space[PCI_SUBSYSTEM_ID], config->subsystem_id);
    /* Ferry has placed the BARs, as firmware does, and so lets them answer from the start. */
    put16(&space[PCI_COMMAND], PCI_COMMAND_MEMORY);
    /* Bus mastering can be switched, but what a device does is not held back by it: a driver that
     * clears it has stopped the device before. There is no port I/O and no INTx to switch. */
    put16(&fn->writable[PCI_COMMAND],
          PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_PARITY | PCI_COMMAND_SERR |
              PCI_COMMAND_INTX_DISABLE);
    fn->writable[PCI_CACHE_LINE_SIZE] = 0xFF; /* PCI Express Base 5.0 §7.5.1.1.7: no effect */
    fn->writable[PCI_INTERRUPT_LINE] = 0xFF;  /* §6.2.4: software's own note */
}

uint32_t pci_function_config(const struct pci_function *fn, unsigned offset)
{
    assert(offset % 4 == 0 && offset < CONFIG_STORED);
    return get32(&fn->space[offset]);
}

static bool in_range(unsigned offset, unsigned size, unsigned start, unsigned length)
{
    return offset < start + length && start < offset + size;
}

static bool in_own_cap(const struct pci_function *fn, unsigned offset, unsigned size)
{
    for (unsigned i = 0; i < fn->n_own_caps; i++)
        if (in_range(offset, size, fn->own_caps[i].offset, fn->own_caps[i].length))
            return true;
    return false;
}

uint32_t function_config_read(struct pci_function *fn, unsigned offset, unsigned size)
{
    uint32_t value;

    if (offset >= CONFIG_STORED)
        return 0; /* PCI Express Base 5.0 §7.6.2: an empty list of extended capabilities */
    value = get32(&fn->space[offset & ~3u]) >> (8 * (offset & 3)) & (uint32_t)access_mask(size);
    if (fn->config.cap_read && in_own_cap(fn, offset, size))
        value = fn->config.cap_read(fn->config.opaque, offset, size, value);
    return value;
}

void function_config_write(struct pci_function *fn, unsigned offset, unsigned size,
                           uint32_t value)
{
    if (offset >= CONFIG_STORED)
        return;
    for (unsigned i = 0; i < size; i++) {
        uint8_t mask = fn->writable[offset + i];
        uint8_t byte = (uint8_t)(value >> (8 * i));

        fn->space[offset + i] = (uint8_t)((fn->space[offset + i] & ~mask) | (byte & mask));
    }
    if (in_range(offset, size, PCI_COMMAND, 2) ||
        in_range(offset, size, PCI_BASE_ADDRESS_0, 4 * PCI_BARS))
        bus_remap(fn->bus);
    if (fn->msix_cap && in_range(offset, size, fn->msix_cap + PCI_MSIX_FLAGS, 2))
        msix_control_changed(fn);
    if (fn->config.cap_write && in_own_cap(fn, offset, size))
        fn->config.cap_write(fn->config.opaque, offset, size, value);
}

/* ---- life ---- */

static int take_slot(struct pci_bus *bus, struct pci_function *fn)
{
    for (unsigned s = 0; s < PCI_SLOTS; s++) {
        if (bus->slots[s])
            continue;
        fn->slot = s;
        bus->slots[s] = fn;
        return 0;
    }
    log_error("%s: all %u slots of the PCI bus are taken; use fewer devices", fn->name, PCI_SLOTS);
    return -ENOSPC;
}

int pci_function_create(struct pci_function **out, struct pci_bus *bus,
                        const struct pci_function_config *config)
{
    struct pci_function *fn = calloc(1, sizeof(*fn));
    int err;

    assert(config->n_msix <= PCI_MSIX_MAX && config->msix_bar < PCI_BARS);
    if (!fn)
        return -ENOMEM;
    fn->bus = bus;
    fn->config = *config;
    fn->free_at = FIRST_CAP;
    snprintf(fn->name, sizeof(fn->name), "%s", config->name);
    fn->config.name = fn->name;
    msix_init(fn);
    init_header(fn);
    err = init_bars(fn);
    if (!err && config->class_code >> 16 != CLASS_BRIDGE)
        err = add_pcie_cap(fn);
    if (!err && config->n_msix > 0)
        err = add_msix_cap(fn);
    if (!err)
        err = take_slot(bus, fn);
    if (err) {
        free(fn);
        return err;
    }
    memcpy(fn->initial, fn->space, sizeof(fn->initial));
    bus_remap(bus);
    *out = fn;
    return 0;
}

void pci_function_destroy(struct pci_function *fn)
{
    if (!fn)
        return;
    for (unsigned i = 0; i < PCI_BARS; i++)
        if (fn->bars[i].mapped)
            unmap_bar(&fn->bars[i]);
    fn->bus->slots[fn->slot] = NULL;
    msix_fini(fn);
    free(fn);
}

void pci_function_reset(struct pci_function *fn)
{
    memcpy(fn->space, fn->initial, sizeof(fn->space));
    msix_reset(fn);
    bus_remap(fn->bus);
}

unsigned pci_function_slot(const struct pci_function *fn)
{
    return fn->slot;
}

/* ---- state ---- */

static void saved_get(void *object, void *to)
{
    const struct pci_function *fn = object;
    struct pci_function_saved *saved = to;

    memcpy(saved->space, fn->space, sizeof(saved->space));
    msix_save(fn, saved);
}

static int saved_check(void *object, const void *from)
{
    const struct pci_function *fn = object;
    const struct pci_function_saved *saved = from;

    /* What the guest cannot write says what the function is: it must be the same function. */
    for (unsigned i = 0; i < CONFIG_STORED; i++) {
        if (((saved->space[i] ^ fn->initial[i]) & ~fn->writable[i]) == 0)
            continue;
        log_error("%s: saved state: another PCI function, at byte %#x of its configuration space",
                  fn->name, i);
        return -EINVAL;
    }
    if (msix_check(fn, saved) != 0) {
        log_error("%s: saved state: an impossible MSI-X table", fn->name);
        return -EINVAL;
    }
    return 0;
}

static void saved_set(void *object, const void *from)
{
    struct pci_function *fn = object;
    const struct pci_function_saved *saved = from;

    memcpy(fn->space, saved->space, sizeof(fn->space));
    msix_load(fn, saved);
    bus_remap(fn->bus);
}

void pci_function_state(struct pci_function *fn, struct state_part *part)
{
    *part = (struct state_part){
        .desc = &saved_desc,
        .object = fn,
        .get = saved_get,
        .check = saved_check,
        .set = saved_set,
    };
}
