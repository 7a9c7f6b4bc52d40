/*
 * From a load plan to guest memory: kernel segments, then the initrd where they leave room.
 *
 * Does not know formats or addresses of the platform. File contents are read straight into guest
 * memory. The thread that starts and resets the machine; no lock.
 */
#include <errno.h>

#include "firmware/kernel_internal.h"
#include "vmm/util/log.h"

#define PAGE_SIZE 4096ull

static unsigned long long mib(uint64_t bytes)
{
    return (bytes + MIB - 1) / MIB;
}

void kernel_ranges_add(struct kernel_ranges *ranges, gpa_t start, gpa_t end)
{
    if (start >= end)
        return;
    /* Whole pages: kernels give back the initrd's memory by pages. */
    ranges->range[ranges->n].start = start & ~(PAGE_SIZE - 1);
    ranges->range[ranges->n].end = (end + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1);
    ranges->n++;
}

/* A range that [start, end) overlaps, or -1. */
static int ranges_find(const struct kernel_ranges *ranges, gpa_t start, gpa_t end)
{
    for (unsigned i = 0; i < ranges->n; i++)
        if (start < ranges->range[i].end && ranges->range[i].start < end)
            return (int)i;
    return -1;
}

int kernel_plan_check(const struct kernel_plan *plan, const struct kernel_source *source)
{
    const char *path = source->file->path;

    for (unsigned i = 0; i < plan->n_segments; i++) {
        const struct kernel_segment *s = &plan->segments[i];

        if (s->file_size > s->mem_size) {
            log_error("kernel %s: segment %u has %#llx bytes in the file, but %#llx in memory",
                      path, i, (unsigned long long)s->file_size, (unsigned long long)s->mem_size);
            return -EINVAL;
        }
        if (s->mem_size > UINT64_MAX - s->at) {
            log_error("kernel %s: segment %u at %#llx of %#llx bytes wraps", path, i,
                      (unsigned long long)s->at, (unsigned long long)s->mem_size);
            return -EINVAL;
        }
        if (s->file_size > 0 &&
            (s->offset > source->size || s->file_size > source->size - s->offset)) {
            log_error("kernel %s: truncated: it has %llu bytes%s, and segment %u is bytes %llu to "
                      "%llu", path, (unsigned long long)source->size,
                      source->bytes ? " when unpacked" : "", i, (unsigned long long)s->offset,
                      (unsigned long long)(s->offset + s->file_size));
            return -ENODATA;
        }
    }
    return 0;
}

/* Says why [at, at + size) cannot be had. */
static int no_memory(const struct kernel_source *source, const struct guest_memory *mem, gpa_t at,
                     uint64_t size)
{
    const struct memory_region *regions;
    unsigned n = memory_regions(mem, &regions);
    gpa_t end = at + size;
    bool above = end > regions[n - 1].base + regions[n - 1].size;

    log_error("kernel %s: needs memory up to %llu MiB (%#llx-%#llx), %s %llu MiB%s",
              source->file->path, mib(end), (unsigned long long)at, (unsigned long long)end,
              above ? "but the guest has" : "which is not memory in a guest of",
              mib(memory_size(mem)), above ? "; try a larger --memory" : "");
    return -ENOMEM;
}

static int check_room(const struct kernel_source *source, const struct guest_memory *mem,
                      const struct kernel_ranges *used, gpa_t at, uint64_t size)
{
    int i;

    if (!memory_at(mem, at, size))
        return no_memory(source, mem, at, size);
    i = ranges_find(used, at, at + size);
    if (i < 0)
        return 0;
    log_error("kernel %s: memory at %#llx-%#llx that it needs has the firmware's tables "
              "(%#llx-%#llx); try a larger --memory", source->file->path, (unsigned long long)at,
              (unsigned long long)(at + size), (unsigned long long)used->range[i].start,
              (unsigned long long)used->range[i].end);
    return -ENOMEM;
}

static int load_segment(const struct kernel_source *source, const struct kernel_segment *s,
                        struct guest_memory *mem)
{
    uint8_t *to = memory_at(mem, s->at, s->mem_size);
    int err = 0;

    if (!to)
        return -EFAULT;
    if (s->file_size > 0)
        err = kernel_source_read(source, to, s->file_size, s->offset);
    if (err)
        return err;
    memory_mark_dirty(mem, s->at, s->file_size);
    if (s->mem_size > s->file_size)
        err = memory_zero(mem, s->at + s->file_size, s->mem_size - s->file_size);
    return err;
}

int kernel_plan_load(const struct kernel_plan *plan, const struct kernel_source *source,
                     struct guest_memory *mem, struct kernel_ranges *used)
{
    int err = 0;

    /* All is checked before anything is written. */
    for (unsigned i = 0; i < plan->n_segments && !err; i++)
        err = check_room(source, mem, used, plan->segments[i].at, plan->segments[i].mem_size);
    if (!err && plan->room_size > 0)
        err = check_room(source, mem, used, plan->room_base, plan->room_size);
    for (unsigned i = 0; i < plan->n_segments && !err; i++)
        err = load_segment(source, &plan->segments[i], mem);
    if (err)
        return err;
    for (unsigned i = 0; i < plan->n_segments; i++)
        kernel_ranges_add(used, plan->segments[i].at,
                          plan->segments[i].at + plan->segments[i].mem_size);
    kernel_ranges_add(used, plan->room_base, plan->room_base + plan->room_size);
    return 0;
}

/* The highest page-aligned place for size bytes in the window, or 0. */
static gpa_t place(const struct guest_memory *mem, const struct kernel_ranges *used,
                   struct kernel_window window, uint64_t size)
{
    gpa_t end = window.end;

    /* Each round goes below a range, so there are no more rounds than ranges. */
    for (;;) {
        gpa_t at;
        int i;

        if (end < window.start || end - window.start < size)
            return 0;
        at = (end - size) & ~(PAGE_SIZE - 1);
        if (at < window.start)
            return 0;
        i = ranges_find(used, at, at + size);
        if (i < 0)
            return memory_at(mem, at, size) ? at : 0;
        end = used->range[i].start;
    }
}

int kernel_initrd_load(const struct kernel_image *image, struct guest_memory *mem,
                       const struct kernel_ranges *used, const struct kernel_window *windows,
                       unsigned n_windows, gpa_t *at)
{
    const struct kernel_file *initrd = &image->initrd;
    int err;

    *at = 0;
    if (initrd->fd < 0)
        return 0;
    for (unsigned i = 0; i < n_windows && *at == 0; i++)
        *at = place(mem, used, windows[i], initrd->size);
    if (*at == 0) {
        log_error("initrd %s: its %llu MiB do not fit beside the kernel in the guest's %llu MiB of "
                  "memory; try a larger --memory", initrd->path, mib(initrd->size),
                  mib(memory_size(mem)));
        return -ENOMEM;
    }
    err = kernel_file_read(initrd, memory_at(mem, *at, initrd->size), initrd->size, 0);
    if (err)
        return err;
    memory_mark_dirty(mem, *at, initrd->size);
    return 0;
}
