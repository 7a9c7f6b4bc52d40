/*
 * Guest memory in a file of its own: creation, translation, copies, the process's own dirty bitmap.
 *
 * Does not register memory with KVM and does not know who uses it. The region table is constant
 * after creation; the dirty bitmap is shared by every thread that writes guest memory and by the
 * migration thread, as atomics. No lock.
 */
#include "vmm/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm/memory_file.h"
#include "vmm/util/log.h"

#define PAGE_SHIFT 12
#define PAGE_SIZE (1ull << PAGE_SHIFT)
#define BITS_PER_WORD 64
/* The start of memory, where PCs keep small things far apart (tables, trampolines, the command line),
 * and all that a tiny guest has: a huge page for each would cost it time and memory. */
#define SMALL_PAGES (16 * MIB)

typedef _Atomic uint64_t dirty_word;

struct guest_memory {
    uint64_t size;
    uint64_t page;       /* bytes: what the memory is made of, and can be given back in */
    bool prealloc;       /* pages stay where they are */
    struct memory_file file; /* owns */
    uint8_t *host;       /* owns the mapping of the whole file */
    unsigned n_regions;
    struct memory_region regions[MEMORY_MAX_REGIONS];
    dirty_word *dirty[MEMORY_MAX_REGIONS]; /* owns; allocated by the first memory_dirty_start() */
    /* Writers test it relaxed: tracking starts while the guest's I/O is paused or before the first
     * harvest of full copies, so a write that just misses the flag is still copied afterwards. */
    atomic_bool tracking;
};

static int check_config(const struct memory_config *config)
{
    uint64_t unit = config->hugepage ? config->hugepage : PAGE_SIZE;

    if (config->size == 0 || config->size % unit != 0) {
        log_error("memory: a size of %llu bytes is not a positive multiple of the %llu-byte page",
                  (unsigned long long)config->size, (unsigned long long)unit);
        return -EINVAL;
    }
    if (config->hole_base % unit != 0 || config->hole_end % unit != 0 ||
        config->hole_end < config->hole_base) {
        log_error("memory: the hole %#llx-%#llx is not aligned to the page",
                  (unsigned long long)config->hole_base, (unsigned long long)config->hole_end);
        return -EINVAL;
    }
    return 0;
}

static int open_file(struct guest_memory *mem, const struct memory_config *config)
{
    int err = memory_file_open(&mem->file, config->size, config->hugepage);

    if (err)
        log_error("memory: cannot make a file of %llu MiB%s: %s",
                  (unsigned long long)(config->size / MIB),
                  config->hugepage ? " of huge pages" : "", strerror(-err));
    return err;
}

/* A file that can shrink would be a SIGBUS to come. */
static int check_adopted(const struct guest_memory *mem)
{
    if (memory_file_is_sound(mem->file.fd, mem->size))
        return 0;
    log_error("memory: what was handed over is not this guest's memory");
    return -EINVAL;
}

static int map_file(struct guest_memory *mem, const struct memory_config *config)
{
    int flags = MAP_SHARED | MAP_NORESERVE;

    /* Huge pages are reserved at mmap, so that a shortage is told here and not by SIGBUS. */
    if (config->hugepage)
        flags = MAP_SHARED;
    if (config->prealloc)
        flags |= MAP_POPULATE;
    mem->host = mmap(NULL, config->size, PROT_READ | PROT_WRITE, flags, mem->file.fd, 0);
    if (mem->host == MAP_FAILED) {
        int err = -errno;
        mem->host = NULL;
        if (config->hugepage)
            log_error("memory: the host has too few free huge pages of %llu MiB for %llu MiB: %s; "
                      "reserve some through /sys/kernel/mm/hugepages",
                      (unsigned long long)(config->hugepage / MIB),
                      (unsigned long long)(config->size / MIB), strerror(-err));
        else
            log_error("memory: cannot map %llu MiB: %s; try a smaller --memory",
                      (unsigned long long)(config->size / MIB), strerror(-err));
        return err;
    }
    /* Guest RAM in a core dump helps nobody and costs the disk. */
    (void)madvise(mem->host, config->size, MADV_DONTDUMP);
    memory_ask_huge_pages(mem, true);
    return 0;
}

/* The request for huge pages: see memory_file.h. */
void memory_ask_huge_pages(struct guest_memory *mem, bool on)
{
    if (mem->page == PAGE_SIZE && mem->size > SMALL_PAGES)
        (void)madvise(mem->host + SMALL_PAGES, mem->size - SMALL_PAGES,
                      on ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
}

static void add_region(struct guest_memory *mem, gpa_t base, uint64_t size, uint64_t file_offset)
{
    mem->regions[mem->n_regions++] = (struct memory_region){
        .base = base,
        .size = size,
        .file_offset = file_offset,
        .host = mem->host + file_offset,
    };
}

/* fd: of memory that is there already, taken over, or -1. */
static int create(struct guest_memory **out, const struct memory_config *config, int fd)
{
    struct guest_memory *mem = calloc(1, sizeof(*mem));
    uint64_t low = config->size;
    int err;

    if (!mem) {
        if (fd >= 0)
            close(fd);
        return -ENOMEM;
    }
    mem->file = (struct memory_file)MEMORY_FILE_NONE;
    mem->file.fd = fd;
    mem->size = config->size;
    mem->page = config->hugepage ? config->hugepage : PAGE_SIZE;
    mem->prealloc = config->prealloc;
    err = check_config(config);
    if (!err)
        err = fd < 0 ? open_file(mem, config) : check_adopted(mem);
    if (!err)
        err = map_file(mem, config);
    if (err) {
        memory_destroy(mem);
        return err;
    }
    if (config->hole_end > config->hole_base && low > config->hole_base)
        low = config->hole_base;
    add_region(mem, 0, low, 0);
    if (config->size > low)
        add_region(mem, config->hole_end, config->size - low, low);
    *out = mem;
    return 0;
}

int memory_create(struct guest_memory **out, const struct memory_config *config)
{
    return create(out, config, -1);
}

int memory_adopt(struct guest_memory **out, const struct memory_config *config, int fd)
{
    return create(out, config, fd);
}

void memory_destroy(struct guest_memory *mem)
{
    if (!mem)
        return;
    for (unsigned i = 0; i < MEMORY_MAX_REGIONS; i++)
        free(mem->dirty[i]);
    if (mem->host)
        munmap(mem->host, mem->size);
    memory_file_close(&mem->file);
    free(mem);
}

uint64_t memory_size(const struct guest_memory *mem)
{
    return mem->size;
}

int memory_fd(const struct guest_memory *mem)
{
    return mem->file.fd;
}

unsigned memory_regions(const struct guest_memory *mem, const struct memory_region **regions)
{
    *regions = mem->regions;
    return mem->n_regions;
}

/* The region that holds all of [gpa, gpa + length), and the offset therein. */
static int find_region(const struct guest_memory *mem, gpa_t gpa, uint64_t length, uint64_t *offset)
{
    for (unsigned i = 0; i < mem->n_regions; i++) {
        const struct memory_region *r = &mem->regions[i];
        uint64_t off = gpa - r->base;

        /* In this order nothing can wrap: off is inside before it is subtracted. */
        if (gpa < r->base || off >= r->size)
            continue;
        if (length > r->size - off)
            return -EFAULT;
        *offset = off;
        return (int)i;
    }
    return -EFAULT;
}

void *memory_at(const struct guest_memory *mem, gpa_t gpa, uint64_t length)
{
    uint64_t offset;
    int i = find_region(mem, gpa, length, &offset);

    return i < 0 ? NULL : mem->regions[i].host + offset;
}

int memory_read(const struct guest_memory *mem, gpa_t gpa, void *to, uint64_t length)
{
    const void *from = memory_at(mem, gpa, length);

    if (!from)
        return -EFAULT;
    memcpy(to, from, length);
    return 0;
}

int memory_write(struct guest_memory *mem, gpa_t gpa, const void *from, uint64_t length)
{
    void *to = memory_at(mem, gpa, length);

    if (!to)
        return -EFAULT;
    memcpy(to, from, length);
    memory_mark_dirty(mem, gpa, length);
    return 0;
}

/*
 * Measured, 1 GiB from a socket into fresh memory: 1.4 s of CPU through the mapping, 0.9 s by pwrite().
 * Where the host lends huge pages, small ones are what there is then; khugepaged makes huge ones of
 * them by and by. (Through the mapping they would be huge at once, but 2 MiB are cleared for each
 * before they are filled, and the whole took three times as long here.) Those of hugetlbfs cannot be
 * written to, and memory that is there already need not be asked for.
 */
static bool writes_by_file(const struct guest_memory *mem)
{
    return mem->page == PAGE_SIZE && !mem->prealloc;
}

int memory_write_pages(struct guest_memory *mem, gpa_t gpa, const void *from, uint64_t length)
{
    uint64_t offset, done = 0;
    int i = find_region(mem, gpa, length, &offset);

    if (i < 0)
        return -EFAULT;
    while (done < length && writes_by_file(mem)) {
        ssize_t n = pwrite(mem->file.fd, (const uint8_t *)from + done, length - done,
                           (off_t)(mem->regions[i].file_offset + offset + done));

        if (n <= 0)
            break; /* the mapping does it, or tells by its fault what is the matter */
        done += (uint64_t)n;
    }
    memcpy(mem->regions[i].host + offset + done, (const uint8_t *)from + done, length - done);
    memory_mark_dirty(mem, gpa, length);
    return 0;
}

int memory_fill(struct guest_memory *mem, gpa_t gpa, uint8_t byte, uint64_t length)
{
    void *to = memory_at(mem, gpa, length);

    if (!to)
        return -EFAULT;
    memset(to, byte, length);
    memory_mark_dirty(mem, gpa, length);
    return 0;
}

/* Below this, writing zeroes is cheaper than a system call and the faults to come. */
#define ZERO_BY_HOLE_MIN (64 * KIB)

/* Gives back the pages of [start, end) of the file; false when that was not worth it or not done. */
static bool punch_pages(struct guest_memory *mem, uint64_t start, uint64_t end)
{
    if (mem->prealloc || end < start || end - start < ZERO_BY_HOLE_MIN)
        return false;
    return fallocate(mem->file.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)start,
                     (off_t)(end - start)) == 0;
}

int memory_zero(struct guest_memory *mem, gpa_t gpa, uint64_t length)
{
    uint64_t offset, start, end; /* in the file */
    int i = find_region(mem, gpa, length, &offset);

    if (i < 0)
        return -EFAULT;
    offset += mem->regions[i].file_offset;
    start = (offset + mem->page - 1) & ~(mem->page - 1);
    end = (offset + length) & ~(mem->page - 1);
    if (!punch_pages(mem, start, end))
        start = end = offset;
    memset(mem->host + offset, 0, start - offset);
    memset(mem->host + end, 0, offset + length - end);
    memory_mark_dirty(mem, gpa, length);
    return 0;
}

void memory_mark_dirty(struct guest_memory *mem, gpa_t gpa, uint64_t length)
{
    uint64_t offset;
    int i;

    if (!atomic_load_explicit(&mem->tracking, memory_order_relaxed) || length == 0)
        return;
    i = find_region(mem, gpa, length, &offset);
    if (i < 0)
        return;
    for (uint64_t page = offset >> PAGE_SHIFT; page <= (offset + length - 1) >> PAGE_SHIFT; page++)
        /* Release: orders the bytes written before against the harvest's acquire exchange. */
        atomic_fetch_or_explicit(&mem->dirty[i][page / BITS_PER_WORD],
                                 1ull << (page % BITS_PER_WORD), memory_order_release);
}

static uint64_t region_words(const struct memory_region *r)
{
    uint64_t pages = r->size >> PAGE_SHIFT;

    return (pages + BITS_PER_WORD - 1) / BITS_PER_WORD;
}

int memory_dirty_start(struct guest_memory *mem)
{
    for (unsigned i = 0; i < mem->n_regions; i++) {
        uint64_t words = region_words(&mem->regions[i]);

        if (!mem->dirty[i])
            mem->dirty[i] = calloc(words, sizeof(dirty_word));
        if (!mem->dirty[i])
            return -ENOMEM;
        for (uint64_t w = 0; w < words; w++)
            atomic_store_explicit(&mem->dirty[i][w], 0, memory_order_relaxed);
    }
    atomic_store_explicit(&mem->tracking, true, memory_order_seq_cst);
    return 0;
}

void memory_dirty_stop(struct guest_memory *mem)
{
    /* The bitmaps stay allocated: a writer may have passed the flag's test just now. */
    atomic_store_explicit(&mem->tracking, false, memory_order_seq_cst);
}

void memory_dirty_harvest(struct guest_memory *mem, unsigned region, uint64_t *bitmap)
{
    uint64_t words;

    if (region >= mem->n_regions || !mem->dirty[region])
        return;
    words = region_words(&mem->regions[region]);
    for (uint64_t w = 0; w < words; w++)
        if (atomic_load_explicit(&mem->dirty[region][w], memory_order_relaxed))
            bitmap[w] |= atomic_exchange_explicit(&mem->dirty[region][w], 0, memory_order_acquire);
}

int memory_clear(struct guest_memory *mem)
{
    if (fallocate(mem->file.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)mem->size) < 0)
        return -errno;
    for (unsigned i = 0; i < mem->n_regions; i++)
        memory_mark_dirty(mem, mem->regions[i].base, mem->regions[i].size);
    return 0;
}
