/*
 * The guest's memory map, as the three boot protocols hand it over.
 *
 * Made from the regions of guest memory, the platform map and the place of the ACPI tables alone. As
 * few entries as can be: Linux looks through all of them for each entry of its page tables, which took a
 * KVM that emulates it a second.
 * The thread that starts and resets the machine; no lock.
 *
 * Text: ACPI 6.4 §15 "System Address Map Interfaces".
 */
#include "firmware/x86/x86_internal.h"

#include <assert.h>

static void add(struct memmap *map, gpa_t start, gpa_t end, enum memmap_type type)
{
    if (start >= end)
        return;
    assert(map->n < MEMMAP_MAX);
    map->entry[map->n++] = (struct memmap_entry){start, end - start, type};
}

/* One kind of memory, but for the tables in it. */
static void add_around(struct memmap *map, gpa_t start, gpa_t end, enum memmap_type type,
                       const struct firmware_tables *tables)
{
    gpa_t from = tables->base, to = tables->base + tables->size;

    if (tables->size == 0 || to <= start || from >= end) {
        add(map, start, end, type);
        return;
    }
    add(map, start, from, type);
    add(map, from, to, MEMMAP_ACPI);
    add(map, to, end, type);
}

static gpa_t min_gpa(gpa_t a, gpa_t b)
{
    return a < b ? a : b;
}

void memmap_build(const struct guest_memory *mem, const struct firmware_tables *tables,
                  struct memmap *out)
{
    const struct memory_region *regions;
    unsigned n = memory_regions(mem, &regions);
    gpa_t low_end = regions[0].size;

    out->n = 0;
    add(out, 0, min_gpa(low_end, PLATFORM_EBDA_BASE), MEMMAP_RAM);
    /* What PCs have there, and what is to be left alone: the generation ID and, as far as they fit,
     * the tables. */
    add(out, PLATFORM_EBDA_BASE, PLATFORM_TABLES_END, MEMMAP_RESERVED);
    add_around(out, PLATFORM_TABLES_END, low_end, MEMMAP_RAM, tables);
    /* PCI Firmware 3.3 §4.1.2: the ECAM must be reserved. The interrupt controllers follow, and KVM's
     * own pages. */
    add(out, PLATFORM_ECAM_BASE, PLATFORM_HOLE_END, MEMMAP_RESERVED);
    for (unsigned i = 1; i < n; i++)
        add(out, regions[i].base, regions[i].base + regions[i].size, MEMMAP_RAM);
}
