/*
 * Guest memory: RAM in a file (memory_file.h), reached only by checked guest physical addresses.
 *
 * Knows nothing of KVM (vm.c tells KVM of the regions), so tests and fuzz targets use the real
 * thing. A gpa_t never mixes with a pointer: memory_at() is the one translation, and everything
 * else stands on it. Every write of ours goes through memory_write(), memory_fill() or is followed
 * by memory_mark_dirty(), because KVM logs the guest's own writes only.
 *
 * Threads: after creation the layout is constant and any thread may translate. The contents are
 * shared with the running guest: read a guest-owned field once, into a local, then use the local.
 */
#ifndef FERRY_MEMORY_H
#define FERRY_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint64_t gpa_t;

#define KIB (1ull << 10)
#define MIB (1ull << 20)
#define GIB (1ull << 30)

#define MEMORY_MAX_REGIONS 2

struct memory_region {
    gpa_t base;
    uint64_t size;        /* bytes */
    uint64_t file_offset; /* of base in the file */
    uint8_t *host;        /* borrowed from the mapping, for as long as the memory lives */
};

struct memory_config {
    uint64_t size;      /* bytes; a multiple of the page size used */
    uint64_t hole_base; /* RAM below the hole ends here at the latest ... */
    uint64_t hole_end;  /* ... and what does not fit goes on from here. 0, 0: no hole */
    uint64_t hugepage;  /* 0, or the huge page size in bytes (2 MiB or 1 GiB) */
    bool prealloc;      /* touch every page at creation */
};

struct guest_memory;

/*
 * Errors, each logged: -EINVAL (size or alignment), -ENOMEM (the host has not as much, or as many
 * huge pages), others of memory_file_open(), mmap(2). *out is owned by the caller.
 */
int memory_create(struct guest_memory **out, const struct memory_config *config);
/* The memory that another process handed over: its file, which is taken over, also on error. Both
 * processes then see the same bytes. -EINVAL: it is not of that size, or could shrink; logged. */
int memory_adopt(struct guest_memory **out, const struct memory_config *config, int fd);
void memory_destroy(struct guest_memory *mem);

/* Whether the kernel is asked to lend huge pages, as at creation, or to keep from it. Any thread. */
void memory_ask_huge_pages(struct guest_memory *mem, bool on);

uint64_t memory_size(const struct guest_memory *mem);
int memory_fd(const struct guest_memory *mem); /* borrowed */
unsigned memory_regions(const struct guest_memory *mem, const struct memory_region **regions);

/*
 * The one translation: a pointer to length bytes at gpa, or NULL when any of them is not RAM (the
 * range wraps, leaves a region, or spans two). length 0 asks for gpa itself to be RAM.
 */
void *memory_at(const struct guest_memory *mem, gpa_t gpa, uint64_t length);

/* Copies; 0, or -EFAULT with nothing copied. A range that spans two regions is refused. */
int memory_read(const struct guest_memory *mem, gpa_t gpa, void *to, uint64_t length);
int memory_write(struct guest_memory *mem, gpa_t gpa, const void *from, uint64_t length);
int memory_fill(struct guest_memory *mem, gpa_t gpa, uint8_t byte, uint64_t length);
/*
 * memory_write() for whole pages that were most likely never touched: by pwrite(2) to the memfd, where
 * that is cheaper than a fault that clears each page before it is written.
 */
int memory_write_pages(struct guest_memory *mem, gpa_t gpa, const void *from, uint64_t length);
/*
 * Makes a range read as zero, as memory_fill() does, but gives whole pages back to the host instead
 * of writing them, where there are many: a kernel's cleared data cost nothing until it uses them.
 */
int memory_zero(struct guest_memory *mem, gpa_t gpa, uint64_t length);

/*
 * Says that the process wrote length bytes at gpa through a pointer of memory_at(). Call after the
 * write. Any thread; bits are set with release order, so that who reads the bitmap with acquire
 * order sees the bytes. Costs one load while nobody tracks.
 */
void memory_mark_dirty(struct guest_memory *mem, gpa_t gpa, uint64_t length);

/*
 * Dirty tracking of our own writes, one bit a 4 KiB page, for migration. start clears; harvest
 * moves region index's bits into bitmap (size/4096 bits, ORed in) and clears them.
 */
int memory_dirty_start(struct guest_memory *mem);
void memory_dirty_stop(struct guest_memory *mem);
void memory_dirty_harvest(struct guest_memory *mem, unsigned region, uint64_t *bitmap);

/* Gives all pages back to the host; they read as zero again. The guest must not run. */
int memory_clear(struct guest_memory *mem);

#endif
