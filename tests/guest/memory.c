/*
 * memory: walks all RAM of the PVH memory map above its own image.
 *
 * Two patterns: one word for each page that holds the page's own address, written everywhere
 * before any is read, so that two addresses that reach the same memory betray each other; then,
 * for each page, every word written and read back (`full` on the command line; every 64th page
 * without it). `step=N` visits every Nth page only. `bytes=N` is the amount of RAM that the map must add up to; `hole` says that there
 * must be RAM above 4 GiB.
 */
#include "memory.h"

#include "boot.h"
#include "io.h"
#include "print.h"
#include "timing.h"
#include "verdict.h"

#define MARK 0x9E3779B97F4A7C15ull

static uint64_t first_bad;
static uint64_t bad_pages;

static void note_bad(uint64_t at)
{
    if (bad_pages++ == 0)
        first_bad = at;
}

static uint64_t mark_of(uint64_t at)
{
    return at * MARK ^ MARK;
}

static void write_mark(uint64_t at)
{
    *(volatile uint64_t *)(uintptr_t)at = mark_of(at);
    *(volatile uint64_t *)(uintptr_t)(at + PAGE_SIZE - 8) = ~mark_of(at);
}

static void read_mark(uint64_t at)
{
    if (*(volatile uint64_t *)(uintptr_t)at != mark_of(at) ||
        *(volatile uint64_t *)(uintptr_t)(at + PAGE_SIZE - 8) != ~mark_of(at))
        note_bad(at);
}

static void fill_page(uint64_t at)
{
    volatile uint64_t *words = (volatile uint64_t *)(uintptr_t)at;

    for (uint64_t i = 0; i < PAGE_SIZE / 8; i++)
        words[i] = mark_of(at + 8 * i);
    for (uint64_t i = 0; i < PAGE_SIZE / 8; i++) {
        if (words[i] != mark_of(at + 8 * i)) {
            note_bad(at);
            return;
        }
    }
}

/* Calls visit for every step-th page of RAM that is free to be overwritten; returns how many. */
static uint64_t walk(const struct boot_info *info, uint64_t step, void (*visit)(uint64_t at))
{
    uint64_t pages = 0;

    for (uint32_t i = 0; i < info->regions; i++) {
        const struct memory_range *range = &info->region[i];
        uint64_t at = range->base;
        if (range->type != MEMORY_TYPE_RAM || range->base + range->size <= memory_free_base())
            continue;
        if (at < memory_free_base())
            at = memory_free_base();
        for (; at + PAGE_SIZE <= range->base + range->size; at += step * PAGE_SIZE) {
            visit(at);
            pages++;
        }
    }
    return pages;
}

static uint64_t count_ram(const struct boot_info *info, uint64_t from)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < info->regions; i++) {
        if (info->region[i].type == MEMORY_TYPE_RAM && info->region[i].base >= from)
            bytes += info->region[i].size;
    }
    return bytes;
}

static void check_overlap(const struct boot_info *info)
{
    for (uint32_t i = 0; i < info->regions; i++) {
        for (uint32_t j = i + 1; j < info->regions; j++) {
            const struct memory_range *a = &info->region[i];
            const struct memory_range *b = &info->region[j];
            if (a->base < b->base + b->size && b->base < a->base + a->size) {
                not_ok("map-overlap", "regions %u and %u", i, j);
                return;
            }
        }
    }
    ok("map-overlap");
}

static void check_hole(const struct boot_info *info)
{
    for (uint32_t i = 0; i < info->regions; i++) {
        const struct memory_range *range = &info->region[i];
        if (range->type == MEMORY_TYPE_RAM && range->base < 4 * GIB &&
            range->base + range->size > 3 * GIB) {
            not_ok("map-hole", "RAM at %lx, %lx bytes, reaches into the MMIO hole", range->base,
                   range->size);
            return;
        }
    }
    ok("map-hole");
}

static void check_pattern(const char *name, uint64_t pages)
{
    check(bad_pages == 0, name, "%lu bad pages, the first at %lx", bad_pages, first_bad);
    print("note: %s covered %lu pages\n", name, pages);
    bad_pages = 0;
}

int main(const struct boot_info *info)
{
    uint64_t bytes = arg_number("bytes", 0);
    uint64_t total = count_ram(info, 0);

    for (uint32_t i = 0; i < info->regions; i++)
        print("region %016lx %016lx type %u\n", info->region[i].base, info->region[i].size,
              info->region[i].type);
    check_overlap(info);
    check_hole(info);
    /* Up to 1 MiB may be kept back for tables and the ISA hole below 1 MiB. */
    if (bytes != 0)
        check(total <= bytes && total + MIB >= bytes, "map-size", "%lu bytes of RAM, want %lu",
              total, bytes);
    if (arg_present("hole"))
        check(count_ram(info, 4 * GIB) > 0, "map-high", "no RAM above 4 GiB");
    uint64_t begin = now_ns();
    uint64_t step = arg_number("step", 1);
    uint64_t pages = walk(info, step, write_mark);
    walk(info, step, read_mark);
    check_pattern("marks", pages);
    pages = walk(info, arg_present("full") ? step : 64 * step, fill_page);
    check_pattern("words", pages);
    print("bytes %lu in %lu ms\n", total, (now_ns() - begin) / MILLISECOND);
    return 0;
}
