/*
 * Pages that arrive: a section is read into a buffer, checked wholly, then written into memory.
 *
 * Threads: that of the lane, of which each has buffers of its own. What several lanes write are
 * different pages, if the source is sound; if it is not, only its own guest's memory suffers.
 */
#include <endian.h>
#include <errno.h>

#include "migration/target_internal.h"
#include "vmm/util/log.h"

/* Runs that are the guest's; *bytes are those of the ones that are not zero. */
static int check_runs(struct target_lane *lane, const struct wire_run *runs, uint32_t n,
                      uint64_t *bytes)
{
    *bytes = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t gpa = le64toh(runs[i].gpa);
        uint64_t length = (uint64_t)le32toh(runs[i].pages) * PAGES_SIZE;

        if (length == 0 || gpa % PAGES_SIZE != 0 || !memory_at(lane->mem, gpa, length)) {
            log_error("%s: pages at %#llx, which is not the guest's memory",
                      link_reader(lane->link)->name, (unsigned long long)gpa);
            return -EINVAL;
        }
        if (!(le32toh(runs[i].flags) & PAGES_ZERO))
            *bytes += length;
    }
    return 0;
}

static int write_runs(struct guest_memory *mem, const struct wire_run *runs, uint32_t n,
                      const uint8_t *bytes)
{
    int err = 0;

    for (uint32_t i = 0; !err && i < n; i++) {
        uint64_t gpa = le64toh(runs[i].gpa);
        uint64_t length = (uint64_t)le32toh(runs[i].pages) * PAGES_SIZE;

        if (le32toh(runs[i].flags) & PAGES_ZERO) {
            err = memory_zero(mem, gpa, length);
            continue;
        }
        err = memory_write_pages(mem, gpa, bytes, length);
        bytes += length;
    }
    return err;
}

/* The bytes of the runs, from what came: *bytes is in one of the lane's buffers. */
static int unpack(struct target_lane *lane, uint64_t came, uint64_t wanted, const uint8_t **bytes)
{
    *bytes = lane->unpacked;
    if (compressor_unpack(lane->compressor, lane->bytes, came, lane->unpacked, wanted) < 0)
        return target_damaged(lane->target, "compressed pages are not what they say");
    return 0;
}

/* Reads the bytes that follow the table, and checks them with it. */
static int read_bytes(struct target_lane *lane, uint64_t length, uint32_t crc, uint32_t wanted_crc)
{
    const struct stream_reader *reader = link_reader(lane->link);
    int err = reader->fill(reader, lane->bytes, length);

    if (!err && stream_crc(crc, lane->bytes, length) != wanted_crc)
        err = target_damaged(lane->target, "pages are damaged: their checksum does not match");
    return err;
}

static int take_runs(struct target_lane *lane, const struct stream_section *section,
                     uint32_t wanted_crc, const struct wire_pages *head)
{
    const struct stream_reader *reader = link_reader(lane->link);
    const bool packed = section->kind == STREAM_PACKED;
    uint32_t n = le32toh(head->n_runs), crc;
    uint64_t table = sizeof(*head) + n * sizeof(struct wire_run), came, wanted;
    struct wire_run runs[PAGES_RUNS];
    const uint8_t *bytes;
    int err;

    if (n > PAGES_RUNS || section->length < table)
        return target_damaged(lane->target, "pages in more runs than are expected");
    err = reader->fill(reader, runs, n * sizeof(runs[0]));
    if (!err)
        err = check_runs(lane, runs, n, &wanted);
    if (err)
        return err;
    came = section->length - table;
    if (came > PAGES_BATCH_BYTES || wanted > PAGES_BATCH_BYTES || (!packed && came != wanted))
        return target_damaged(lane->target, "pages of another length than they say");
    crc = stream_crc(stream_crc(0, head, sizeof(*head)), runs, n * sizeof(runs[0]));
    err = read_bytes(lane, came, crc, wanted_crc);
    bytes = lane->bytes;
    if (!err && packed)
        err = unpack(lane, came, wanted, &bytes);
    return err ? err : write_runs(lane->mem, runs, n, bytes);
}

int target_take_pages(struct target_lane *lane, const struct stream_section *section,
                      uint32_t wanted_crc)
{
    const struct stream_reader *reader = link_reader(lane->link);
    struct target *t = lane->target;
    struct wire_pages head;
    int err;

    if (!lane->mem)
        return target_damaged(t, "pages came, though memory was handed over");
    if (section->length < sizeof(head))
        return target_damaged(t, "pages without a table");
    err = reader->fill(reader, &head, sizeof(head));
    if (err)
        return err;
    if (section->kind == STREAM_PACKED &&
        (t->method == COMPRESS_NONE || le32toh(head.method) != (uint32_t)t->method))
        return target_damaged(t, "pages compressed in another way than was said");
    err = take_runs(lane, section, wanted_crc, &head);
    atomic_fetch_add_explicit(&t->received_bytes, section->length, memory_order_relaxed);
    return err;
}
