/*
 * An address space of devices: regions in a sorted array, found by binary search.
 *
 * Does not lock, does not split accesses and does not know who called: vCPUs, the event loop and
 * tests enter alike, with the machine's device lock held, which guards everything here. A handler
 * may change the array while it runs; nothing of the array is used after a handler was entered.
 */
#include "vmm/bus.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/util/log.h"

#define FIRST_CAPACITY 16

struct bus {
    const char *name;                  /* borrowed */
    const struct bus_region **regions; /* owns the array, borrows the regions; by rising base */
    size_t count;
    size_t capacity;
};

int bus_create(struct bus **out, const char *name)
{
    struct bus *bus = calloc(1, sizeof(*bus));

    if (!bus)
        return -ENOMEM;
    bus->name = name;
    *out = bus;
    return 0;
}

void bus_destroy(struct bus *bus)
{
    if (!bus)
        return;
    free(bus->regions);
    free(bus);
}

static uint64_t last_of(const struct bus_region *region)
{
    return region->base + (region->size - 1);
}

/* How many regions begin at or below the address: the last of them is the only one to hold it. */
static size_t count_up_to(const struct bus *bus, uint64_t address)
{
    size_t low = 0;
    size_t high = bus->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (bus->regions[middle]->base <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int grow(struct bus *bus)
{
    size_t capacity = bus->capacity ? bus->capacity * 2 : FIRST_CAPACITY;
    const struct bus_region **regions;

    if (bus->count < bus->capacity)
        return 0;
    regions = realloc(bus->regions, capacity * sizeof(*regions));
    if (!regions)
        return -ENOMEM;
    bus->regions = regions;
    bus->capacity = capacity;
    return 0;
}

int bus_add(struct bus *bus, const struct bus_region *region)
{
    size_t at;
    int err;

    /* The last byte, not the end, is computed: a region may end with the address space. */
    if (region->size == 0 || last_of(region) < region->base)
        return -EINVAL;
    at = count_up_to(bus, region->base);
    if (at > 0 && last_of(bus->regions[at - 1]) >= region->base)
        return -EEXIST;
    if (at < bus->count && bus->regions[at]->base <= last_of(region))
        return -EEXIST;
    err = grow(bus);
    if (err)
        return err;
    memmove(&bus->regions[at + 1], &bus->regions[at],
            (bus->count - at) * sizeof(bus->regions[0]));
    bus->regions[at] = region;
    bus->count++;
    return 0;
}

void bus_remove(struct bus *bus, const struct bus_region *region)
{
    size_t i = 0;

    while (i < bus->count && bus->regions[i] != region)
        i++;
    if (i == bus->count)
        return;
    bus->count--;
    memmove(&bus->regions[i], &bus->regions[i + 1], (bus->count - i) * sizeof(bus->regions[0]));
}

/* The region that holds all `size` bytes at the address, or NULL. */
static const struct bus_region *find(const struct bus *bus, uint64_t address, unsigned size)
{
    const struct bus_region *region;
    size_t n = count_up_to(bus, address);

    if (n == 0 || (size != 1 && size != 2 && size != 4 && size != 8))
        return NULL;
    region = bus->regions[n - 1];
    if (region->size < size || address - region->base > region->size - size)
        return NULL;
    return region;
}

static uint64_t ones(unsigned size)
{
    return size >= 8 ? UINT64_MAX : (1ull << (8 * size)) - 1;
}

uint64_t bus_read(struct bus *bus, uint64_t address, unsigned size)
{
    const struct bus_region *region = find(bus, address, size);

    if (!region) {
        log_debug("%s: read of %u bytes at %#llx finds nothing", bus->name, size,
                  (unsigned long long)address);
        return ones(size);
    }
    return region->ops->read(region->opaque, address - region->base, size) & ones(size);
}

void bus_write(struct bus *bus, uint64_t address, unsigned size, uint64_t value)
{
    const struct bus_region *region = find(bus, address, size);

    if (!region) {
        log_debug("%s: write of %u bytes at %#llx finds nothing", bus->name, size,
                  (unsigned long long)address);
        return;
    }
    region->ops->write(region->opaque, address - region->base, size, value & ones(size));
}
