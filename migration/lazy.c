/*
 * Memory out of a file at first touch, by userfaultfd.
 *
 * Why not a private mapping of the file: guest memory is a file of its own, shared, so that it can be
 * handed to another process, and whose holes are the pages never touched; saving, migrating and
 * giving back count on that. And a mapping would hand the guest whatever the disk gives, damaged or
 * not. Here a block is compared with its checksum before anybody sees a byte of it. What is paid for
 * that is a wake-up of a thread for each block that is touched before its turn.
 *
 * Not all of memory is watched, only where the file has pages: what was zero stays a hole, and costs
 * what it costs otherwise. Huge pages are not asked for meanwhile: the kernel's khugepaged, before
 * Linux 6.4, fills what is missing in one with zeros.
 *
 * Threads: one of its own does everything after lazy_start(); what it leaves, `result`, is read by who
 * has seen `done_fd`. No locks. Texts: userfaultfd(2), ioctl_userfaultfd(2), the kernel's
 * Documentation/admin-guide/mm/userfaultfd.rst.
 */
#include "migration/lazy.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define PAGE 4096ull
#define BLOCK_PAGES (SNAPSHOT_BLOCK / PAGE)
#define MAX_RANGES 1024u /* that are watched: each is a mapping of its own to the kernel */
#define FAULTS 16u       /* that are read at once */
/* What the guest does first is not to wait for what it may do later: for so long after the start,
 * nothing is brought unasked, unless it asks for nothing for a while. */
#define HEAD_START_NS 1000000000ull
#define QUIET_MS 20

#ifndef USERFAULTFD_IOC_NEW /* Linux 6.1, linux/userfaultfd.h */
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

/* A region of guest memory. */
struct area {
    uint8_t *host; /* borrowed */
    gpa_t base;
    uint64_t pages, blocks;
    uint64_t offset;  /* in the file, of its first page */
    uint8_t *bitmap;  /* owns: the page is in the file */
    uint8_t *sums;    /* owns: 4 bytes for each block */
    uint8_t *pending; /* owns: a byte for each block: it is to be brought */
};

struct lazy {
    struct guest_memory *mem; /* borrowed */
    int fd;                   /* owns: the file */
    char *name;               /* owns */
    int uffd;                 /* owns */
    int stop_fd, done_fd;     /* owns: eventfds, each written once */
    void (*lost)(void *opaque);
    void *opaque;
    struct area areas[MEMORY_MAX_REGIONS];
    unsigned n_areas;
    unsigned at_area; /* what is brought next, if nobody asks for another */
    uint64_t at_block;
    bool started;
    pthread_t thread;
    uint8_t *block; /* owns: SNAPSHOT_BLOCK bytes */
    atomic_int result; /* the thread's, until done_fd is written */
};

/* ---- what the host lets us do ---- */

/* userfaultfd(2): a process without CAP_SYS_PTRACE may watch the kernel's own accesses, which KVM's are,
 * if vm.unprivileged_userfaultfd says so, or if it may open the device. */
static int open_userfaultfd(void)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

    if (fd < 0 && errno == EPERM) {
        int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

        fd = device < 0 ? -1 : ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
        if (device >= 0)
            close(device);
        else
            errno = EPERM;
    }
    return fd < 0 ? -errno : fd;
}

static int refuse(int err)
{
    if (err == -EPERM || err == -EACCES)
        log_error("memory cannot be taken from the file bit by bit: this host does not let you; "
                  "allow it by 'sysctl vm.unprivileged_userfaultfd=1' or by the right to open "
                  "/dev/userfaultfd, or leave --lazy out");
    else
        log_error("memory cannot be taken from the file bit by bit: the host's kernel has no "
                  "userfaultfd for shared memory (%s); leave --lazy out", strerror(-err));
    return -EOPNOTSUPP;
}

static int prepare_host(struct lazy *lazy)
{
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM};

    lazy->uffd = open_userfaultfd();
    if (lazy->uffd < 0)
        return refuse(lazy->uffd);
    if (ioctl(lazy->uffd, UFFDIO_API, &api) < 0)
        return refuse(-errno);
    return 0;
}

/* ---- what is in the file ---- */

static bool in_file(const struct area *area, uint64_t page)
{
    return area->bitmap[page / 8] >> (page % 8) & 1;
}

static int copy_of(uint8_t **to, const void *from, uint64_t bytes)
{
    *to = malloc(bytes);
    if (!*to)
        return -ENOMEM;
    memcpy(*to, from, bytes);
    return 0;
}

static int make_area(struct area *area, const struct memory_region *region,
                     const struct snapshot_image *image)
{
    int err = copy_of(&area->bitmap, image->bitmap, image->bitmap_bytes);

    if (!err)
        err = copy_of(&area->sums, image->sums, image->blocks * sizeof(uint32_t));
    if (err)
        return err;
    area->host = region->host;
    area->base = region->base;
    area->pages = region->size / PAGE;
    area->blocks = image->blocks;
    area->offset = image->offset;
    area->pending = calloc(area->blocks, 1);
    if (!area->pending)
        return -ENOMEM;
    for (uint64_t page = 0; page < area->pages; page++)
        if (in_file(area, page))
            area->pending[page / BLOCK_PAGES] = 1;
    return 0;
}

static int make_areas(struct lazy *lazy, const struct snapshot *snapshot,
                      const struct stream_reader *reader)
{
    const struct memory_region *regions;
    unsigned n = memory_regions(lazy->mem, &regions);
    int err = 0;

    for (unsigned i = 0; !err && i < n; i++) {
        struct snapshot_image image;

        err = snapshot_find_image(snapshot, reader, &regions[i], i, &image);
        if (!err)
            err = make_area(&lazy->areas[lazy->n_areas++], &regions[i], &image);
    }
    return err;
}

/* ---- what is watched ---- */

static int watch(struct lazy *lazy, uint8_t *from, uint64_t bytes)
{
    struct uffdio_register range = {.range = {(uintptr_t)from, bytes},
                                    .mode = UFFDIO_REGISTER_MODE_MISSING};
    const uint64_t needed = 1ull << _UFFDIO_COPY | 1ull << _UFFDIO_ZEROPAGE | 1ull << _UFFDIO_WAKE;

    if (ioctl(lazy->uffd, UFFDIO_REGISTER, &range) < 0)
        return refuse(-errno);
    return (range.ioctls & needed) == needed ? 0 : refuse(-ENOTSUP);
}

/* The blocks [*from, *to) at or behind *from that are to be brought, with gaps of less than `gap`
 * blocks among them; false: there are none. */
static bool next_range(const struct area *area, uint64_t gap, uint64_t *from, uint64_t *to)
{
    uint64_t end;

    while (*from < area->blocks && !area->pending[*from])
        ++*from;
    if (*from == area->blocks)
        return false;
    *to = end = *from + 1;
    while (end < area->blocks && end - *to < gap)
        if (area->pending[end++])
            *to = end;
    return true;
}

static unsigned count_ranges(const struct area *area, uint64_t gap)
{
    uint64_t from = 0, to;
    unsigned n = 0;

    for (; next_range(area, gap, &from, &to); from = to)
        n++;
    return n;
}

static int watch_area(struct lazy *lazy, struct area *area)
{
    uint64_t gap = 1, from = 0, to;
    int err = 0;

    while (count_ranges(area, gap) > MAX_RANGES)
        gap *= 2;
    for (; !err && next_range(area, gap, &from, &to); from = to) {
        uint64_t end = to * BLOCK_PAGES < area->pages ? to * BLOCK_PAGES : area->pages;

        err = watch(lazy, area->host + from * SNAPSHOT_BLOCK,
                    (end - from * BLOCK_PAGES) * PAGE);
    }
    return err;
}

static void watch_nothing(struct lazy *lazy)
{
    for (unsigned i = 0; i < lazy->n_areas; i++) {
        struct uffdio_range all = {(uintptr_t)lazy->areas[i].host, lazy->areas[i].pages * PAGE};

        (void)ioctl(lazy->uffd, UFFDIO_UNREGISTER, &all);
    }
}

/* ---- bringing ---- */

static int read_block(struct lazy *lazy, uint64_t offset, uint64_t length)
{
    uint8_t *at = lazy->block;

    while (length > 0) {
        ssize_t n = pread(lazy->fd, at, length, (off_t)offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -ENODATA;
        at += n;
        offset += (uint64_t)n;
        length -= (uint64_t)n;
    }
    return 0;
}

/* The pages of a block that are in the file, to their places in lazy->block. */
static int load_block(struct lazy *lazy, const struct area *area, uint64_t first, uint64_t end)
{
    uint64_t block = first / BLOCK_PAGES;
    uint32_t crc = 0, wanted;
    int err = read_block(lazy, area->offset + first * PAGE, (end - first) * PAGE);

    for (uint64_t page = first; !err && page < end; page++)
        if (in_file(area, page))
            crc = stream_crc(crc, lazy->block + (page - first) * PAGE, PAGE);
    memcpy(&wanted, area->sums + block * sizeof(wanted), sizeof(wanted));
    if (!err && crc != le32toh(wanted))
        err = -EBADMSG;
    if (err)
        log_error("%s: the guest's memory at %#llx, at byte %llu of the file, %s: the guest ends "
                  "here; the file is as it was", lazy->name,
                  (unsigned long long)(area->base + first * PAGE),
                  (unsigned long long)(area->offset + first * PAGE),
                  err == -EBADMSG   ? "is damaged: its checksum does not match"
                  : err == -ENODATA ? "is cut off"
                                    : strerror(-err));
    return err;
}

static void wake(struct lazy *lazy, uint8_t *at, uint64_t bytes)
{
    struct uffdio_range range = {(uintptr_t)at, bytes};

    (void)ioctl(lazy->uffd, UFFDIO_WAKE, &range);
}

/* Puts pages in their place, and wakes who sleeps for them. One that is there already stays. */
static int place(struct lazy *lazy, uint8_t *to, const uint8_t *from, uint64_t bytes)
{
    while (bytes > 0) {
        struct uffdio_copy copy = {
            .dst = (uintptr_t)to, .src = (uintptr_t)from, .len = bytes};
        uint64_t done = 0;

        if (ioctl(lazy->uffd, UFFDIO_COPY, &copy) == 0) {
            done = bytes;
        } else if (errno == EEXIST) {
            wake(lazy, to, PAGE);
            done = PAGE;
        } else if (errno != EAGAIN) {
            int err = -errno;
            log_error("memory: a page of the guest cannot be made: %s", strerror(-err));
            return err;
        } else if (copy.copy > 0) {
            done = (uint64_t)copy.copy;
        }
        to += done;
        from += done;
        bytes -= done;
    }
    return 0;
}

static int bring_block(struct lazy *lazy, struct area *area, uint64_t block)
{
    uint64_t first = block * BLOCK_PAGES, end = first + BLOCK_PAGES, page = first;
    int err;

    if (!area->pending[block])
        return 0;
    if (end > area->pages)
        end = area->pages;
    err = load_block(lazy, area, first, end);
    while (!err && page < end) {
        uint64_t to = page;

        while (to < end && in_file(area, to))
            to++;
        if (to > page)
            err = place(lazy, area->host + page * PAGE, lazy->block + (page - first) * PAGE,
                        (to - page) * PAGE);
        page = to + 1;
    }
    area->pending[block] = 0;
    return err;
}

/* A page that was zero when the guest was saved, in a range that is watched for its neighbours'
 * sake. One that is there by now is not touched. */
static void place_zero(struct lazy *lazy, uint8_t *page)
{
    struct uffdio_zeropage zero = {.range = {(uintptr_t)page, PAGE}};

    while (ioctl(lazy->uffd, UFFDIO_ZEROPAGE, &zero) < 0 && errno == EAGAIN)
        ;
    wake(lazy, page, PAGE);
}

static int serve(struct lazy *lazy, uint64_t address)
{
    for (unsigned i = 0; i < lazy->n_areas; i++) {
        struct area *area = &lazy->areas[i];
        uint64_t page = (address - (uintptr_t)area->host) / PAGE;
        int err;

        if (address < (uintptr_t)area->host || page >= area->pages)
            continue;
        err = bring_block(lazy, area, page / BLOCK_PAGES);
        if (!err && !in_file(area, page))
            place_zero(lazy, area->host + page * PAGE);
        else if (!err)
            wake(lazy, area->host + page * PAGE, PAGE);
        return err;
    }
    return 0;
}

/* ---- the thread ---- */

static int serve_faults(struct lazy *lazy)
{
    struct uffd_msg faults[FAULTS];
    ssize_t n = read(lazy->uffd, faults, sizeof(faults));
    int err = 0;

    for (ssize_t i = 0; !err && i < n / (ssize_t)sizeof(faults[0]); i++)
        if (faults[i].event == UFFD_EVENT_PAGEFAULT)
            err = serve(lazy, faults[i].arg.pagefault.address);
    return err;
}

/* 1: there is nothing left to bring. */
static int bring_next(struct lazy *lazy)
{
    while (lazy->at_area < lazy->n_areas) {
        struct area *area = &lazy->areas[lazy->at_area];

        while (lazy->at_block < area->blocks && !area->pending[lazy->at_block])
            lazy->at_block++;
        if (lazy->at_block < area->blocks)
            return bring_block(lazy, area, lazy->at_block);
        lazy->at_area++;
        lazy->at_block = 0;
    }
    return 1;
}

/* Who asks comes first; a block at a time else. */
static void *lazy_main(void *arg)
{
    uint64_t head_start_ends = loop_now_ns() + HEAD_START_NS;
    int patience = QUIET_MS;
    struct lazy *lazy = arg;
    struct pollfd fds[2] = {{.fd = lazy->uffd, .events = POLLIN},
                            {.fd = lazy->stop_fd, .events = POLLIN}};
    int err = 0;

    while (err == 0) {
        if (poll(fds, 2, patience) < 0 && errno != EINTR)
            err = -errno;
        else if (fds[1].revents & POLLIN)
            err = 1; /* what is missing is to be zero */
        else if (fds[0].revents & POLLIN)
            err = serve_faults(lazy);
        else
            err = bring_next(lazy);
        if (!(fds[0].revents & POLLIN) || loop_now_ns() > head_start_ends)
            patience = 0;
    }
    if (err == 1 && !(fds[1].revents & POLLIN))
        log_info("%s: the guest's memory is here: the file is not needed any more", lazy->name);
    if (err == 1) {
        watch_nothing(lazy); /* wakes who asked just now, too: what is missing is zero */
        memory_ask_huge_pages(lazy->mem, true);
        err = 0;
    }
    atomic_store_explicit(&lazy->result, err, memory_order_release);
    (void)eventfd_write(lazy->done_fd, 1);
    if (err)
        lazy->lost(lazy->opaque);
    return NULL;
}

/* ---- from outside ---- */

int lazy_start(struct lazy **out, const struct snapshot *snapshot,
               const struct stream_reader *reader, struct guest_memory *mem,
               void (*lost)(void *opaque), void *opaque)
{
    struct lazy *lazy = calloc(1, sizeof(*lazy));
    int err = 0;

    if (!lazy)
        return -ENOMEM;
    lazy->mem = mem;
    lazy->lost = lost;
    lazy->opaque = opaque;
    lazy->uffd = -1;
    lazy->fd = fcntl(reader->fd, F_DUPFD_CLOEXEC, 0);
    lazy->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    lazy->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    lazy->name = strdup(reader->name);
    lazy->block = aligned_alloc(PAGE, SNAPSHOT_BLOCK);
    if (lazy->fd < 0 || lazy->stop_fd < 0 || lazy->done_fd < 0 || !lazy->name || !lazy->block)
        err = -ENOMEM;
    if (!err)
        err = make_areas(lazy, snapshot, reader);
    if (!err)
        err = prepare_host(lazy);
    if (!err)
        memory_ask_huge_pages(mem, false);
    for (unsigned i = 0; !err && i < lazy->n_areas; i++)
        err = watch_area(lazy, &lazy->areas[i]);
    if (!err)
        err = -pthread_create(&lazy->thread, NULL, lazy_main, lazy);
    if (err) {
        lazy_destroy(lazy);
        return err;
    }
    lazy->started = true;
    *out = lazy;
    return 0;
}

int lazy_wait(const struct lazy *lazy, int cancel_fd)
{
    struct pollfd fds[2] = {{.fd = lazy->done_fd, .events = POLLIN},
                            {.fd = cancel_fd, .events = POLLIN}};

    while (!(fds[0].revents & POLLIN)) {
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            return -errno;
        if (!(fds[0].revents & POLLIN) && (fds[1].revents & POLLIN))
            return -ECANCELED;
    }
    return atomic_load_explicit(&lazy->result, memory_order_acquire);
}

void lazy_stop(struct lazy *lazy)
{
    if (!lazy || !lazy->started)
        return;
    (void)eventfd_write(lazy->stop_fd, 1);
    pthread_join(lazy->thread, NULL);
    lazy->started = false;
}

void lazy_destroy(struct lazy *lazy)
{
    if (!lazy)
        return;
    lazy_stop(lazy);
    for (unsigned i = 0; i < lazy->n_areas; i++) {
        free(lazy->areas[i].bitmap);
        free(lazy->areas[i].sums);
        free(lazy->areas[i].pending);
    }
    if (lazy->uffd >= 0)
        close(lazy->uffd); /* nothing is watched from here on */
    if (lazy->stop_fd >= 0)
        close(lazy->stop_fd);
    if (lazy->done_fd >= 0)
        close(lazy->done_fd);
    if (lazy->fd >= 0)
        close(lazy->fd);
    free(lazy->block);
    free(lazy->name);
    free(lazy);
}
