/*
 * Pages that arrive.
 *
 * They are read straight into guest memory, whose ranges are checked before; their checksum is taken
 * then. That memory is nobody's until the source gives the guest away, so a damaged page harms
 * nothing. Threads: that of the step (target.h).
 */
#include <endian.h>
#include <errno.h>

#include "migration/pages.h"
#include "migration/target_internal.h"
#include "vmm/util/log.h"

/* Runs that are the guest's, and whose bytes are just those that follow. */
static int check_runs(struct target *t, struct guest_memory *mem, const struct wire_run *runs,
                      uint32_t n, uint64_t bytes)
{
    uint64_t wanted = 0;

    for (uint32_t i = 0; i < n; i++) {
        uint64_t gpa = le64toh(runs[i].gpa);
        uint64_t length = (uint64_t)le32toh(runs[i].pages) * PAGES_SIZE;

        if (length == 0 || gpa % PAGES_SIZE != 0 || !memory_at(mem, gpa, length)) {
            log_error("%s: pages at %#llx, which is not the guest's memory",
                      link_reader(t->link)->name, (unsigned long long)gpa);
            return -EINVAL;
        }
        if (!(le32toh(runs[i].flags) & PAGES_ZERO))
            wanted += length;
    }
    return wanted == bytes ? 0 : target_damaged(t, "pages of another length than they say");
}

static int fill_runs(struct target *t, struct guest_memory *mem, const struct wire_run *runs,
                     uint32_t n, uint32_t *crc)
{
    const struct stream_reader *reader = link_reader(t->link);
    int err = 0;

    for (uint32_t i = 0; !err && i < n; i++) {
        uint64_t gpa = le64toh(runs[i].gpa);
        uint64_t length = (uint64_t)le32toh(runs[i].pages) * PAGES_SIZE;
        void *host = memory_at(mem, gpa, length);

        if (le32toh(runs[i].flags) & PAGES_ZERO) {
            err = memory_zero(mem, gpa, length);
            continue;
        }
        err = reader->fill(reader, host, length);
        if (err)
            break;
        *crc = stream_crc(*crc, host, length);
        memory_mark_dirty(mem, gpa, length);
    }
    return err;
}

int target_take_pages(struct target *t, struct guest_memory *mem,
                      const struct stream_section *section, uint32_t wanted_crc)
{
    const struct stream_reader *reader = link_reader(t->link);
    struct wire_run runs[PAGES_RUNS];
    struct wire_pages head;
    uint64_t table;
    uint32_t n, crc;
    int err;

    if (!mem)
        return target_damaged(t, "pages came, though memory was handed over");
    if (section->length < sizeof(head))
        return target_damaged(t, "pages without a table");
    err = reader->fill(reader, &head, sizeof(head));
    if (err)
        return err;
    n = le32toh(head.n_runs);
    table = sizeof(head) + n * sizeof(runs[0]);
    if (n > PAGES_RUNS || section->length < table)
        return target_damaged(t, "pages in more runs than are expected");
    err = reader->fill(reader, runs, n * sizeof(runs[0]));
    if (!err)
        err = check_runs(t, mem, runs, n, section->length - table);
    if (err)
        return err;
    crc = stream_crc(stream_crc(0, &head, sizeof(head)), runs, n * sizeof(runs[0]));
    err = fill_runs(t, mem, runs, n, &crc);
    atomic_fetch_add_explicit(&t->received_bytes, section->length, memory_order_relaxed);
    return !err && crc != wanted_crc ? target_damaged(t, "pages are damaged: their checksum does not match")
                                     : err;
}
