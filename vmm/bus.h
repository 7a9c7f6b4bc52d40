/*
 * An address space of devices: port I/O or MMIO. Finds the region an access falls into.
 *
 * Every function is called with the machine's device lock held (see vmm/device.h), so a handler
 * may add and remove regions, its own included. A handler gets sizes 1, 2, 4 or 8 and an offset
 * such that offset + size is within the region; an access that straddles a region's end is split
 * by nobody: it is answered as if nothing were there. Reads of nothing give all ones, writes to
 * nothing are dropped, as on a PC's bus.
 */
#ifndef FERRY_BUS_H
#define FERRY_BUS_H

#include <stdint.h>

struct bus;

struct bus_ops {
    uint64_t (*read)(void *opaque, uint64_t offset, unsigned size);
    void (*write)(void *opaque, uint64_t offset, unsigned size, uint64_t value);
};

struct bus_region {
    const char *name; /* for messages; borrowed */
    uint64_t base;
    uint64_t size;
    const struct bus_ops *ops;
    void *opaque;     /* borrowed; passed to ops */
};

int bus_create(struct bus **out, const char *name);
void bus_destroy(struct bus *bus); /* regions left are forgotten */

/* The region struct is borrowed until removed. -EEXIST when it overlaps another, -EINVAL when its
 * size is 0 or its end wraps, -ENOMEM. Not logged: the guest may provoke it by moving a BAR. */
int bus_add(struct bus *bus, const struct bus_region *region);
void bus_remove(struct bus *bus, const struct bus_region *region);

uint64_t bus_read(struct bus *bus, uint64_t address, unsigned size);
void bus_write(struct bus *bus, uint64_t address, unsigned size, uint64_t value);

#endif
