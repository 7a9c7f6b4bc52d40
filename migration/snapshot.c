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

/* ---- writing ---- */

/* A region of RAM on its way into the file. */
struct image {
    const struct memory_region *region;
    uint64_t offset;  /* of the image in the file */
    uint8_t *payload; /* owns: struct wire_memory and the bitmap */
    uint64_t payload_bytes;
    uint32_t crc;
};

static uint64_t bitmap_bytes(uint64_t size)
{
    return (size / PAGE + 7) / 8;
}

static bool is_zero(const uint8_t *page)
{
    return page[0] == 0 && memcmp(page, page + 1, PAGE - 1) == 0;
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

/* Writes the pages of [from, to) that are not zero, runs of them at a time. */
static int write_pages(int fd, struct image *image, uint64_t from, uint64_t to,
                       struct snapshot_summary *summary)
{
    uint8_t *bitmap = image->payload + sizeof(struct wire_memory);
    const uint8_t *host = image->region->host;

    while (from < to) {
        uint64_t end = from;
        int err;

        while (end < to && !is_zero(host + end)) {
            bitmap[end / PAGE / 8] |= (uint8_t)(1u << (end / PAGE % 8));
            end += PAGE;
        }
        if (end == from) {
            from += PAGE;
            continue;
        }
        image->crc = stream_crc(image->crc, host + from, end - from);
        err = write_at(fd, host + from, end - from, image->offset + from);
        if (err)
            return err;
        summary->pages += (end - from) / PAGE;
        from = end;
    }
    return 0;
}

/* The parts of the region that were ever touched; memfd's holes are the rest. */
static int write_image(int fd, const struct guest_memory *mem, struct image *image,
                       struct snapshot_summary *summary)
{
    off_t begin = (off_t)image->region->file_offset;
    off_t end = begin + (off_t)image->region->size;
    off_t at = begin;

    while (at < end) {
        off_t data = lseek(memory_fd(mem), at, SEEK_DATA);
        off_t hole = data < 0 ? -1 : lseek(memory_fd(mem), data, SEEK_HOLE);
        int err;

        if (data < 0 && errno == ENXIO)
            break; /* nothing but a hole to the end */
        if (data < 0 || hole < 0)
            return -errno;
        if (data >= end)
            break;
        if (hole > end)
            hole = end;
        err = write_pages(fd, image, (uint64_t)(data - begin), (uint64_t)(hole - begin), summary);
        if (err)
            return err;
        at = hole;
    }
    return 0;
}

static int make_image(struct image *image, const struct memory_region *region, uint64_t offset)
{
    image->region = region;
    image->offset = offset;
    image->payload_bytes = sizeof(struct wire_memory) + bitmap_bytes(region->size);
    image->payload = calloc(1, image->payload_bytes);
    return image->payload ? 0 : -ENOMEM;
}

static void finish_payload(struct image *image)
{
    struct wire_memory wire = {
        .base = htole64(image->region->base),
        .size = htole64(image->region->size),
        .image_offset = htole64(image->offset),
        .image_crc = htole32(image->crc),
    };

    memcpy(image->payload, &wire, sizeof(wire));
}

/* Sections, from the file's beginning. The memory's have their final length, so that the first call
 * tells where the images can begin, and the second writes what they then are. */
static int write_sections(int fd, const struct snapshot *snapshot, struct image *images,
                          unsigned n_images)
{
    int err = lseek(fd, 0, SEEK_SET) < 0 ? -errno : stream_write_header(fd);

    for (unsigned i = 0; !err && i < snapshot->n_sections; i++) {
        const struct snapshot_section *s = &snapshot->sections[i];

        err = stream_write_section(fd, (enum stream_kind)s->head.kind, s->head.id, s->payload,
                                   s->head.length);
    }
    for (unsigned i = 0; !err && i < n_images; i++) {
        char id[STREAM_ID_MAX];

        finish_payload(&images[i]);
        snprintf(id, sizeof(id), "%u", i);
        err = stream_write_section(fd, STREAM_MEMORY, id, images[i].payload,
                                   images[i].payload_bytes);
    }
    return err ? err : stream_write_section(fd, STREAM_END, "", "", 0);
}

static int write_file(int fd, const struct snapshot *snapshot, const struct guest_memory *mem,
                      struct snapshot_summary *summary)
{
    struct image images[MEMORY_MAX_REGIONS] = {0};
    const struct memory_region *regions;
    unsigned n = memory_regions(mem, &regions);
    uint64_t offset, total = 0;
    int err = 0;

    for (unsigned i = 0; !err && i < n; i++)
        err = make_image(&images[i], &regions[i], 0);
    if (!err)
        err = write_sections(fd, snapshot, images, n);
    offset = err ? 0 : ((uint64_t)lseek(fd, 0, SEEK_CUR) + PAGE - 1) / PAGE * PAGE;
    for (unsigned i = 0; !err && i < n; i++) {
        images[i].offset = offset + total;
        total += regions[i].size;
        err = write_image(fd, mem, &images[i], summary);
    }
    if (!err)
        err = write_sections(fd, snapshot, images, n);
    /* The image's last pages may be a hole: the file's length says that they belong to it. */
    if (!err && (ftruncate(fd, (off_t)(offset + total)) < 0 || fsync(fd) < 0))
        err = -errno;
    summary->skipped = total / PAGE - summary->pages;
    for (unsigned i = 0; i < n; i++)
        free(images[i].payload);
    return err;
}

/* The folder's entry must be on the disk, too, before the guest may end. */
static int sync_folder(const char *path)
{
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/');
    int fd, err = 0;

    snprintf(folder, sizeof(folder), "%.*s", slash ? (int)(slash - path + 1) : 1,
             slash ? path : ".");
    fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (fsync(fd) < 0)
        err = -errno;
    close(fd);
    return err;
}

int snapshot_write(const struct snapshot *snapshot, const struct guest_memory *mem,
                   const char *path, struct snapshot_summary *summary)
{
    char temporary[PATH_MAX];
    int fd, err, len = snprintf(temporary, sizeof(temporary), "%s.XXXXXX", path);

    *summary = (struct snapshot_summary){0};
    if (len < 0 || (size_t)len >= sizeof(temporary)) {
        err = -ENAMETOOLONG;
        goto tell;
    }
    fd = mkostemp(temporary, O_CLOEXEC);
    if (fd < 0) {
        err = -errno;
        goto tell;
    }
    err = write_file(fd, snapshot, mem, summary);
    close(fd);
    if (!err && rename(temporary, path) < 0)
        err = -errno;
    if (!err)
        err = sync_folder(path);
    else
        (void)unlink(temporary);
tell:
    if (err)
        log_error("cannot save to %s: %s", path, strerror(-err));
    return err;
}

/* ---- reading ---- */

static bool kind_known(uint32_t kind)
{
    return kind >= STREAM_CONFIG && kind <= STREAM_END;
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

static bool in_image(const uint8_t *bitmap, uint64_t page)
{
    return bitmap[page / 8] >> (page % 8) & 1;
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

int snapshot_read_memory(const struct snapshot *snapshot, const struct stream_reader *reader,
                         struct guest_memory *mem)
{
    const struct memory_region *regions;
    unsigned n = memory_regions(mem, &regions);

    for (unsigned i = 0; i < n; i++) {
        const struct snapshot_section *section;
        struct wire_memory wire;
        char id[STREAM_ID_MAX];
        int err;

        snprintf(id, sizeof(id), "%u", i);
        section = snapshot_find(snapshot, STREAM_MEMORY, id);
        err = check_image(reader, section, &regions[i], &wire);
        if (!err)
            err = read_image(reader, &wire, (const uint8_t *)section->payload + sizeof(wire), mem);
        if (err)
            return err;
    }
    return 0;
}
