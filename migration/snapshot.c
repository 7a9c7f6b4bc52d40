/*
 * A guest in a file: sections, and memory as a sparse image behind them.
 *
 * Zero pages are not written and pages never touched not even read: the memfd knows its holes. Does
 * not know devices. Blocking file I/O, on a thread of its own or before the guest runs; no locks.
 */
#include "migration/snapshot.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "vmm/util/log.h"

#define PAGE 4096ull

/* On the wire: the payload of STREAM_MEMORY, followed by a bit for each page, lowest first: whether
 * the page is in the image. Frozen with version 1. */
struct wire_memory {
    uint64_t base;
    uint64_t size;
    uint64_t image_offset; /* in the file, of the page at base; a multiple of 4096 */
    uint32_t image_crc;    /* over the pages that are in the image, in their order */
    uint32_t reserved;     /* 0 */
} __attribute__((packed));
_Static_assert(sizeof(struct wire_memory) == 32, "docs/STREAM.md: memory");

/* On the wire: the payload of STREAM_SUMS, followed by a checksum for each block of the region: of its
 * pages that are in the image, in their order. */
struct wire_sums {
    uint64_t block; /* bytes that each covers */
} __attribute__((packed));
_Static_assert(sizeof(struct wire_sums) == 8, "docs/STREAM.md: sums");

void snapshot_fini(struct snapshot *snapshot)
{
    for (unsigned i = 0; i < snapshot->n_sections; i++)
        free(snapshot->sections[i].payload);
    free(snapshot->sections);
    *snapshot = (struct snapshot){0};
}

/* Takes the payload over, also on error. */
static int append(struct snapshot *snapshot, const struct stream_section *head, void *payload)
{
    struct snapshot_section *grown = realloc(
        snapshot->sections, (snapshot->n_sections + 1) * sizeof(*snapshot->sections));

    if (!grown) {
        free(payload);
        return -ENOMEM;
    }
    snapshot->sections = grown;
    grown[snapshot->n_sections++] = (struct snapshot_section){*head, payload};
    return 0;
}

int snapshot_add(struct snapshot *snapshot, enum stream_kind kind, const char *id,
                 const void *payload, uint64_t length)
{
    struct stream_section head = {.kind = kind, .length = length};
    uint8_t *copy;

    if (strlen(id) >= sizeof(head.id))
        return -EINVAL;
    memcpy(head.id, id, strlen(id));
    copy = malloc(length + 1);
    if (!copy)
        return -ENOMEM;
    if (length > 0)
        memcpy(copy, payload, length);
    copy[length] = '\0';
    return append(snapshot, &head, copy);
}

const struct snapshot_section *snapshot_find(const struct snapshot *snapshot,
                                             enum stream_kind kind, const char *id)
{
    for (unsigned i = 0; i < snapshot->n_sections; i++) {
        const struct snapshot_section *s = &snapshot->sections[i];

        if (s->head.kind == (uint32_t)kind && (!id || strcmp(s->head.id, id) == 0))
            return s;
    }
    return NULL;
}

/* ---- writing: memory ---- */

/* Pages that a checksum of STREAM_SUMS covers. */
#define BLOCK_PAGES (SNAPSHOT_BLOCK / PAGE)

/* A region of RAM on its way into the file. */
struct image {
    const struct memory_region *region;
    uint64_t offset;  /* of the image in the file */
    uint8_t *payload; /* owns: struct wire_memory and the bitmap */
    uint64_t payload_bytes;
    uint32_t *crcs;   /* owns: of each page that is in the image */
    uint8_t *sums;    /* owns: struct wire_sums, and behind it the blocks' */
    uint64_t sums_bytes;
};

struct snapshot_writer {
    const struct guest_memory *mem; /* borrowed */
    int folder_fd;                  /* owns: where it is to lie */
    int fd;                         /* owns: of a file without a name, or with: */
    char temporary[PATH_MAX];       /* "": it has none */
    char path[PATH_MAX];            /* the name that it is to have */
    struct image images[MEMORY_MAX_REGIONS];
    unsigned n_images;
    uint64_t written; /* pages, those counted that were written again */
    uLong by_pages[BLOCK_PAGES + 1]; /* crc32_combine_gen() of so many pages */
    uint8_t block[SNAPSHOT_BLOCK]; /* a copy: the guest may write while checksums are taken */
};

static uint64_t bitmap_bytes(uint64_t size)
{
    return (size / PAGE + 7) / 8;
}

static uint64_t blocks_of(uint64_t size)
{
    return (size + SNAPSHOT_BLOCK - 1) / SNAPSHOT_BLOCK;
}

static bool is_zero(const uint8_t *page)
{
    return page[0] == 0 && memcmp(page, page + 1, PAGE - 1) == 0;
}

static bool in_image(const uint8_t *bitmap, uint64_t page)
{
    return bitmap[page / 8] >> (page % 8) & 1;
}

static uint8_t *bitmap_of(const struct image *image)
{
    return image->payload + sizeof(struct wire_memory);
}

static uint32_t *sums_of(const struct image *image)
{
    return (uint32_t *)(image->sums + sizeof(struct wire_sums));
}

static int write_at(int fd, const void *data, uint64_t length, uint64_t offset)
{
    const uint8_t *at = data;

    while (length > 0) {
        ssize_t n = pwrite(fd, at, length, (off_t)offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        at += n;
        offset += (uint64_t)n;
        length -= (uint64_t)n;
    }
    return 0;
}

/* A page that was written and is zero now leaves a hole; zeros, where there can be none. */
static int drop_page(struct snapshot_writer *w, struct image *image, uint64_t page)
{
    static const uint8_t zeros[PAGE];
    uint64_t at = image->offset + page * PAGE;

    bitmap_of(image)[page / 8] &= (uint8_t)~(1u << (page % 8));
    if (fallocate(w->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, PAGE) == 0)
        return 0;
    return write_at(w->fd, zeros, PAGE, at);
}

/* The checksum of the pages of a block that are in the image, by those of each. */
static void sum_block(struct snapshot_writer *w, struct image *image, uint64_t block)
{
    uint64_t first = block * BLOCK_PAGES, end = image->region->size / PAGE;
    uLong sum = 0;

    if (end > first + BLOCK_PAGES)
        end = first + BLOCK_PAGES;
    for (uint64_t page = first; page < end; page++)
        if (in_image(bitmap_of(image), page))
            sum = crc32_combine_op(sum, image->crcs[page], w->by_pages[1]);
    sums_of(image)[block] = htole32((uint32_t)sum);
}

/* Of a block that begins at page `first`, those pages whose bits are set. */
static int put_block(struct snapshot_writer *w, struct image *image, uint64_t first, uint32_t bits)
{
    uint8_t *bitmap = bitmap_of(image);
    unsigned from = 0;
    int err = 0;

    for (unsigned i = 0; !err && i < BLOCK_PAGES; i++) {
        uint8_t *copy = w->block + i * PAGE;

        if (!(bits >> i & 1))
            continue;
        memcpy(copy, image->region->host + (first + i) * PAGE, PAGE);
        if (is_zero(copy)) {
            bits &= ~(1u << i);
            if (in_image(bitmap, first + i))
                err = drop_page(w, image, first + i);
            continue;
        }
        image->crcs[first + i] = stream_crc(0, copy, PAGE);
        bitmap[(first + i) / 8] |= (uint8_t)(1u << ((first + i) % 8));
        w->written++;
    }
    while (!err && bits >> from) {
        unsigned to;

        from += (unsigned)__builtin_ctz(bits >> from);
        for (to = from; to < BLOCK_PAGES && (bits >> to & 1); to++)
            ;
        err = write_at(w->fd, w->block + from * PAGE, (to - from) * PAGE,
                       image->offset + (first + from) * PAGE);
        from = to;
    }
    sum_block(w, image, first / BLOCK_PAGES);
    return err;
}

static bool test_bit(const uint64_t *bits, uint64_t at)
{
    return bits[at / 64] >> (at % 64) & 1;
}

/* Those of [from, to) whose bits are set; the memfd has them all. */
static int put_pages(struct snapshot_writer *w, struct image *image, uint64_t from, uint64_t to,
                     const uint64_t *bits)
{
    int err = 0;

    for (uint64_t block = from / BLOCK_PAGES; !err && block * BLOCK_PAGES < to; block++) {
        uint64_t first = block * BLOCK_PAGES;
        uint32_t wanted = 0;

        for (unsigned i = 0; i < BLOCK_PAGES; i++)
            if (first + i >= from && first + i < to && (!bits || test_bit(bits, first + i)))
                wanted |= 1u << i;
        if (wanted)
            err = put_block(w, image, first, wanted);
    }
    return err;
}

int snapshot_writer_put(struct snapshot_writer *w, unsigned region, uint64_t first, uint64_t pages,
                        const uint64_t *bits)
{
    struct image *image = &w->images[region];
    off_t base = (off_t)image->region->file_offset;
    off_t at = base + (off_t)(first * PAGE), end = at + (off_t)(pages * PAGE);

    while (at < end) {
        off_t data = lseek(memory_fd(w->mem), at, SEEK_DATA);
        off_t hole = data < 0 ? -1 : lseek(memory_fd(w->mem), data, SEEK_HOLE);
        int err;

        if (data < 0 && errno == ENXIO)
            break; /* nothing but a hole to the end */
        if (data < 0 || hole < 0)
            return -errno;
        if (data >= end)
            break;
        if (hole > end)
            hole = end;
        err = put_pages(w, image, (uint64_t)(data - base) / PAGE, (uint64_t)(hole - base) / PAGE,
                        bits);
        if (err)
            return err;
        at = hole;
    }
    return 0;
}

/* ---- writing: the file ---- */

static int make_image(struct image *image, const struct memory_region *region, uint64_t offset)
{
    struct wire_sums sums = {.block = htole64(SNAPSHOT_BLOCK)};

    image->region = region;
    image->offset = offset;
    image->payload_bytes = sizeof(struct wire_memory) + bitmap_bytes(region->size);
    image->payload = calloc(1, image->payload_bytes);
    image->crcs = calloc(region->size / PAGE, sizeof(*image->crcs));
    image->sums_bytes = sizeof(sums) + blocks_of(region->size) * sizeof(uint32_t);
    image->sums = calloc(1, image->sums_bytes);
    if (!image->payload || !image->crcs || !image->sums)
        return -ENOMEM;
    memcpy(image->sums, &sums, sizeof(sums));
    return 0;
}

/* What stands before the images: all sections, those that are added here included. */
static uint64_t head_bytes(const struct guest_memory *mem, uint64_t given)
{
    const struct memory_region *regions;
    unsigned n = memory_regions(mem, &regions);
    uint64_t bytes = STREAM_HEADER_BYTES + given + STREAM_HEAD_BYTES;

    for (unsigned i = 0; i < n; i++)
        bytes += STREAM_HEAD_BYTES + sizeof(struct wire_memory) + bitmap_bytes(regions[i].size) +
                 STREAM_HEAD_BYTES + sizeof(struct wire_sums) +
                 blocks_of(regions[i].size) * sizeof(uint32_t);
    return bytes;
}

static int make_images(struct snapshot_writer *w, uint64_t state_bytes)
{
    const struct memory_region *regions;
    uint64_t offset = (head_bytes(w->mem, state_bytes) + PAGE - 1) / PAGE * PAGE;
    int err = 0;

    w->n_images = memory_regions(w->mem, &regions);
    for (unsigned i = 0; !err && i < w->n_images; i++) {
        err = make_image(&w->images[i], &regions[i], offset);
        offset += regions[i].size;
    }
    for (unsigned i = 0; i <= BLOCK_PAGES; i++)
        w->by_pages[i] = crc32_combine_gen((z_off_t)(i * PAGE));
    return err;
}

/* The folder that a path lies in. */
static int open_folder(const char *path, int flags)
{
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/');
    int fd;

    snprintf(folder, sizeof(folder), "%.*s", slash ? (int)(slash - path + 1) : 1,
             slash ? path : ".");
    fd = open(folder, flags | O_CLOEXEC, 0600);
    return fd < 0 ? -errno : fd;
}

/* Without a name, where the file system can do that: then nothing is left of a process that is
 * killed. */
static int open_temporary(struct snapshot_writer *w)
{
    int len = snprintf(w->temporary, sizeof(w->temporary), "%s.XXXXXX", w->path);

    if (len < 0 || (size_t)len >= sizeof(w->temporary))
        return -ENAMETOOLONG;
    w->fd = open_folder(w->path, O_TMPFILE | O_RDWR);
    if (w->fd >= 0) {
        w->temporary[0] = '\0';
        return 0;
    }
    w->fd = mkostemp(w->temporary, O_CLOEXEC);
    if (w->fd >= 0)
        return 0;
    w->temporary[0] = '\0';
    return -errno;
}

/* A former file is replaced by rename(), which would replace a device or a fifo, too, and a disk: so
 * only a saved guest is, or an empty file. */
static int check_place(const char *path)
{
    char magic[sizeof(STREAM_MAGIC) - 1];
    struct stat now;
    ssize_t n;
    int fd;

    if (stat(path, &now) < 0)
        return errno == ENOENT ? 0 : -errno;
    if (!S_ISREG(now.st_mode))
        return S_ISDIR(now.st_mode) ? -EISDIR : -EEXIST;
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    n = read(fd, magic, sizeof(magic));
    close(fd);
    return n == 0 || (n == (ssize_t)sizeof(magic) && memcmp(magic, STREAM_MAGIC, sizeof(magic)) == 0)
               ? 0 : -EEXIST;
}

int snapshot_writer_create(struct snapshot_writer **out, const char *path,
                           const struct guest_memory *mem, uint64_t state_bytes)
{
    struct snapshot_writer *w = calloc(1, sizeof(*w));
    int len, err = 0;

    if (!w)
        return -ENOMEM;
    w->fd = w->folder_fd = -1;
    w->mem = mem;
    len = snprintf(w->path, sizeof(w->path), "%s", path);
    if (len < 0 || (size_t)len >= sizeof(w->path))
        err = -ENAMETOOLONG;
    if (!err)
        err = check_place(path);
    if (!err)
        err = make_images(w, state_bytes);
    if (!err)
        err = w->folder_fd = open_folder(path, O_RDONLY | O_DIRECTORY);
    if (err >= 0)
        err = open_temporary(w);
    if (err) {
        log_error("cannot save to %s: %s", path, strerror(-err));
        snapshot_writer_destroy(w);
        return err;
    }
    *out = w;
    return 0;
}

void snapshot_writer_destroy(struct snapshot_writer *w)
{
    if (!w)
        return;
    for (unsigned i = 0; i < MEMORY_MAX_REGIONS; i++) {
        free(w->images[i].payload);
        free(w->images[i].crcs);
        free(w->images[i].sums);
    }
    if (w->temporary[0])
        (void)unlink(w->temporary);
    if (w->fd >= 0)
        close(w->fd);
    if (w->folder_fd >= 0)
        close(w->folder_fd);
    free(w);
}

/* Gives its memory section the last figures: the checksum of all blocks, as of one piece. */
static void finish_payload(const struct snapshot_writer *w, const struct image *image)
{
    uint64_t n = blocks_of(image->region->size);
    struct wire_memory wire = {
        .base = htole64(image->region->base),
        .size = htole64(image->region->size),
        .image_offset = htole64(image->offset),
    };
    uLong crc = 0;

    for (uint64_t block = 0; block < n; block++) {
        const uint8_t *bits = bitmap_of(image) + block * (BLOCK_PAGES / 8);
        uint64_t left = bitmap_bytes(image->region->size) - block * (BLOCK_PAGES / 8);
        unsigned pages = (unsigned)__builtin_popcount(bits[0]);

        if (left > 1)
            pages += (unsigned)__builtin_popcount(bits[1]);
        if (pages > 0)
            crc = crc32_combine_op(crc, le32toh(sums_of(image)[block]), w->by_pages[pages]);
    }
    wire.image_crc = htole32((uint32_t)crc);
    memcpy(image->payload, &wire, sizeof(wire));
}
_Static_assert(BLOCK_PAGES == 16, "two bytes of the bitmap");

/* Memory and sums of a region. */
static int write_region(const struct snapshot_writer *w, unsigned index)
{
    const struct image *image = &w->images[index];
    char id[STREAM_ID_MAX];
    int err;

    finish_payload(w, image);
    snprintf(id, sizeof(id), "%u", index);
    err = stream_write_section(w->fd, STREAM_MEMORY, id, image->payload, image->payload_bytes);
    return err ? err : stream_write_section(w->fd, STREAM_SUMS, id, image->sums, image->sums_bytes);
}

static int write_sections(const struct snapshot_writer *w, const struct snapshot *snapshot)
{
    int err = lseek(w->fd, 0, SEEK_SET) < 0 ? -errno : stream_write_header(w->fd);

    for (unsigned i = 0; !err && i < snapshot->n_sections; i++) {
        const struct snapshot_section *s = &snapshot->sections[i];

        err = stream_write_section(w->fd, (enum stream_kind)s->head.kind, s->head.id, s->payload,
                                   s->head.length);
    }
    for (unsigned i = 0; !err && i < w->n_images; i++)
        err = write_region(w, i);
    return err ? err : stream_write_section(w->fd, STREAM_END, "", "", 0);
}

uint64_t snapshot_bytes(const struct snapshot *snapshot)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < snapshot->n_sections; i++)
        bytes += STREAM_HEAD_BYTES + snapshot->sections[i].head.length;
    return bytes;
}

static uint64_t pages_in(const struct snapshot_writer *w)
{
    uint64_t pages = 0;

    for (unsigned i = 0; i < w->n_images; i++)
        for (uint64_t b = 0; b < bitmap_bytes(w->images[i].region->size); b++)
            pages += (uint64_t)__builtin_popcount(bitmap_of(&w->images[i])[b]);
    return pages;
}

uint64_t snapshot_writer_written(const struct snapshot_writer *w)
{
    return w->written;
}

int snapshot_writer_sync(struct snapshot_writer *w)
{
    return fdatasync(w->fd) < 0 ? -errno : 0;
}

/* A name beside the one that it is to have, which nobody has. */
static int name_temporary(struct snapshot_writer *w)
{
    char self[40];
    int fd;

    if (w->temporary[0])
        return 0;
    snprintf(self, sizeof(self), "/proc/self/fd/%d", w->fd);
    for (unsigned i = 0; i < 100; i++) {
        snprintf(w->temporary, sizeof(w->temporary), "%.*s.XXXXXX", PATH_MAX - 8, w->path);
        fd = mkostemp(w->temporary, O_CLOEXEC);
        if (fd < 0)
            break;
        close(fd);
        (void)unlink(w->temporary);
        if (linkat(AT_FDCWD, self, AT_FDCWD, w->temporary, AT_SYMLINK_FOLLOW) == 0)
            return 0;
        if (errno != EEXIST)
            break;
    }
    fd = -errno;
    w->temporary[0] = '\0';
    return fd;
}

static int publish(struct snapshot_writer *w)
{
    int err = name_temporary(w);

    if (!err && rename(w->temporary, w->path) < 0)
        err = -errno;
    if (err)
        return err;
    w->temporary[0] = '\0';
    /* The folder's entry must be on the disk, too, before the guest may end; it runs on otherwise, and not
     * from the file as well. */
    if (fsync(w->folder_fd) < 0) {
        err = -errno;
        (void)unlink(w->path);
    }
    return err;
}

int snapshot_writer_finish(struct snapshot_writer *w, const struct snapshot *snapshot,
                           struct snapshot_summary *summary)
{
    const struct image *last = &w->images[w->n_images - 1];
    uint64_t length = last->offset + last->region->size;
    int err = 0;

    if (head_bytes(w->mem, snapshot_bytes(snapshot)) > w->images[0].offset)
        err = -EFBIG;
    if (!err)
        err = write_sections(w, snapshot);
    /* The image's last pages may be a hole: the file's length says that they belong to it. */
    if (!err && (ftruncate(w->fd, (off_t)length) < 0 || fsync(w->fd) < 0))
        err = -errno;
    if (!err)
        err = publish(w);
    if (err)
        log_error("cannot save to %s: %s", w->path, strerror(-err));
    summary->pages = pages_in(w);
    summary->skipped = memory_size(w->mem) / PAGE - summary->pages;
    summary->written = w->written;
    return err;
}

int snapshot_write(const struct snapshot *snapshot, const struct guest_memory *mem,
                   const char *path, struct snapshot_summary *summary)
{
    struct snapshot_writer *w;
    const struct memory_region *regions;
    unsigned n = memory_regions(mem, &regions);
    int err = snapshot_writer_create(&w, path, mem, snapshot_bytes(snapshot));

    *summary = (struct snapshot_summary){0};
    if (err)
        return err;
    for (unsigned i = 0; !err && i < n; i++)
        err = snapshot_writer_put(w, i, 0, regions[i].size / PAGE, NULL);
    if (err)
        log_error("cannot save to %s: %s", path, strerror(-err));
    else
        err = snapshot_writer_finish(w, snapshot, summary);
    snapshot_writer_destroy(w);
    return err;
}

/* ---- reading ---- */

static bool kind_known(uint32_t kind)
{
    return kind >= STREAM_CONFIG && kind <= STREAM_SUMS;
}

int snapshot_read(struct snapshot *snapshot, const struct stream_reader *reader)
{
    int err = stream_read_header(reader);

    while (!err) {
        struct stream_section head;
        void *payload;

        err = stream_read_section(reader, &head, &payload);
        if (err)
            break;
        if (head.kind == STREAM_END) {
            free(payload);
            return 0;
        }
        if (kind_known(head.kind)) {
            err = append(snapshot, &head, payload);
            continue;
        }
        free(payload);
        if (head.flags & STREAM_OPTIONAL)
            continue;
        log_error("%s: section %u '%s' is not known to this ferry, and the guest needs it",
                  reader->name, head.kind, head.id);
        err = -EOPNOTSUPP;
    }
    return err;
}

static int damaged(const struct stream_reader *reader, const char *what)
{
    log_error("%s: %s", reader->name, what);
    return -EBADMSG;
}

static int read_at(const struct stream_reader *reader, void *data, uint64_t length,
                   uint64_t offset)
{
    uint8_t *at = data;

    while (length > 0) {
        ssize_t n = pread(reader->fd, at, length, (off_t)offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            int err = n < 0 ? -errno : -ENODATA;
            log_error("%s: the guest's memory cannot be read: %s", reader->name,
                      n < 0 ? strerror(-err) : "the file is truncated");
            return err;
        }
        at += n;
        offset += (uint64_t)n;
        length -= (uint64_t)n;
    }
    return 0;
}

static int read_image(const struct stream_reader *reader, const struct wire_memory *wire,
                      const uint8_t *bitmap, struct guest_memory *mem)
{
    uint64_t base = le64toh(wire->base), pages = le64toh(wire->size) / PAGE;
    uint8_t *host = memory_at(mem, base, le64toh(wire->size));
    uint64_t offset = le64toh(wire->image_offset);
    uint32_t crc = 0;

    for (uint64_t page = 0; page < pages;) {
        uint64_t end = page;
        int err;

        while (end < pages && in_image(bitmap, end))
            end++;
        if (end == page) {
            page++;
            continue;
        }
        err = read_at(reader, host + page * PAGE, (end - page) * PAGE, offset + page * PAGE);
        if (err)
            return err;
        crc = stream_crc(crc, host + page * PAGE, (end - page) * PAGE);
        page = end;
    }
    memory_mark_dirty(mem, base, le64toh(wire->size));
    if (crc != le32toh(wire->image_crc))
        return damaged(reader, "the guest's memory is damaged: its checksum does not match");
    return 0;
}

/* The section of one region, checked against the memory that is to be filled. */
static int check_image(const struct stream_reader *reader, const struct snapshot_section *section,
                       const struct memory_region *region, struct wire_memory *wire)
{
    if (!section)
        return damaged(reader, "a region of the guest's memory is missing");
    if (section->head.length != sizeof(*wire) + bitmap_bytes(region->size))
        return damaged(reader, "a region of the guest's memory has another size");
    memcpy(wire, section->payload, sizeof(*wire));
    if (le64toh(wire->base) != region->base || le64toh(wire->size) != region->size) {
        log_error("%s: its memory of %llu MiB at %#llx does not fit this machine", reader->name,
                  (unsigned long long)(le64toh(wire->size) / MIB),
                  (unsigned long long)le64toh(wire->base));
        return -EINVAL;
    }
    if (le64toh(wire->image_offset) > (uint64_t)INT64_MAX - region->size)
        return damaged(reader, "the place of the guest's memory is beyond any file");
    return 0;
}

/* *found is NULL when the file has no such section. */
static int find_image(const struct snapshot *snapshot, const struct stream_reader *reader,
                      const struct memory_region *region, unsigned index,
                      const struct snapshot_section **found, struct wire_memory *wire)
{
    char id[STREAM_ID_MAX];

    snprintf(id, sizeof(id), "%u", index);
    *found = snapshot_find(snapshot, STREAM_MEMORY, id);
    return check_image(reader, *found, region, wire);
}

int snapshot_read_memory(const struct snapshot *snapshot, const struct stream_reader *reader,
                         struct guest_memory *mem)
{
    const struct memory_region *regions;
    unsigned n = memory_regions(mem, &regions);

    for (unsigned i = 0; i < n; i++) {
        const struct snapshot_section *section;
        struct wire_memory wire;
        int err = find_image(snapshot, reader, &regions[i], i, &section, &wire);

        if (!err)
            err = read_image(reader, &wire, (const uint8_t *)section->payload + sizeof(wire), mem);
        if (err)
            return err;
    }
    return 0;
}

int snapshot_find_image(const struct snapshot *snapshot, const struct stream_reader *reader,
                        const struct memory_region *region, unsigned index,
                        struct snapshot_image *image)
{
    const struct snapshot_section *section, *sums;
    struct wire_memory wire;
    struct wire_sums head;
    char id[STREAM_ID_MAX];
    int err = find_image(snapshot, reader, region, index, &section, &wire);

    if (err)
        return err;
    *image = (struct snapshot_image){
        .offset = le64toh(wire.image_offset),
        .bitmap = (const uint8_t *)section->payload + sizeof(wire),
        .bitmap_bytes = bitmap_bytes(region->size),
        .blocks = blocks_of(region->size),
    };
    snprintf(id, sizeof(id), "%u", index);
    sums = snapshot_find(snapshot, STREAM_SUMS, id);
    if (!sums)
        return -ENOENT;
    if (sums->head.length < sizeof(head))
        return damaged(reader, "the checksums of the guest's memory are cut off");
    memcpy(&head, sums->payload, sizeof(head));
    if (le64toh(head.block) != SNAPSHOT_BLOCK)
        return -ENOENT; /* a later writer's */
    if (sums->head.length != sizeof(head) + image->blocks * sizeof(uint32_t))
        return damaged(reader, "the checksums of the guest's memory are cut off");
    image->sums = (const uint8_t *)sums->payload + sizeof(head);
    return 0;
}
