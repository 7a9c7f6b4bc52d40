/*
 * Pre-copy: which pages are sent, and how they become sections.
 *
 * A page is sent from a copy, because the guest may write it while its checksum is taken. Before
 * that its bit in the dirty log is cleared, in chunks, so that whatever is written after the copy is
 * logged: no write is ever missed. Pages that the memfd has no room for are not even read. Does not
 * decide when memory was gone through often enough (source_rounds.c).
 *
 * Threads: that of the step (source.h). `lock` guards `status`; a leaf.
 * Text: the kernel's Documentation/virt/kvm/api.rst §4.117 KVM_CLEAR_DIRTY_LOG.
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "migration/source_internal.h"
#include "vmm/util/loop.h"

#define CHUNK 1024u /* pages that are cleared at once in the log */

/* ---- the bits ---- */

static int make_bits(struct region_bits *bits, const struct memory_region *region)
{
    bits->pages = region->size / PAGES_SIZE;
    bits->words = (bits->pages + SOURCE_WORD_BITS - 1) / SOURCE_WORD_BITS;
    bits->todo = calloc(bits->words, sizeof(uint64_t));
    bits->fresh = calloc(bits->words, sizeof(uint64_t));
    bits->there = calloc(bits->words, sizeof(uint64_t));
    return bits->todo && bits->fresh && bits->there ? 0 : -ENOMEM;
}

int source_mark_all(struct source *s)
{
    const struct memory_region *regions;
    int err = 0;

    s->n_regions = memory_regions(s->mem, &regions);
    for (unsigned i = 0; !err && i < s->n_regions; i++) {
        struct region_bits *bits = &s->regions[i];

        err = make_bits(bits, &regions[i]);
        if (err)
            break;
        memset(bits->todo, 0xFF, bits->words * sizeof(uint64_t));
        if (bits->pages % SOURCE_WORD_BITS)
            bits->todo[bits->words - 1] = (1ull << bits->pages % SOURCE_WORD_BITS) - 1;
    }
    return err;
}

void source_free_bits(struct source *s)
{
    for (unsigned i = 0; i < MEMORY_MAX_REGIONS; i++) {
        free(s->regions[i].todo);
        free(s->regions[i].fresh);
        free(s->regions[i].there);
    }
}

int64_t source_collect(struct source *s)
{
    uint64_t pages = 0;

    for (unsigned r = 0; r < s->n_regions; r++) {
        struct region_bits *bits = &s->regions[r];
        uint64_t *gathered = bits->fresh;
        int err = s->ops->log_get(s->opaque, r, gathered);

        if (err)
            return err;
        memory_dirty_harvest(s->mem, r, gathered);
        if (bits->pages % SOURCE_WORD_BITS)
            gathered[bits->words - 1] &= (1ull << bits->pages % SOURCE_WORD_BITS) - 1;
        for (uint64_t w = 0; w < bits->words; w++) {
            gathered[w] |= bits->todo[w]; /* what was gathered before, and not sent yet */
            pages += (uint64_t)__builtin_popcountll(gathered[w]);
        }
        bits->fresh = bits->todo;
        bits->todo = gathered;
    }
    return (int64_t)pages;
}

/* ---- pages ---- */

static void count(struct source *s, uint64_t bytes, uint64_t pages)
{
    pthread_mutex_lock(&s->lock);
    s->status.sent_bytes += bytes;
    s->status.pages += pages;
    s->status.zero_pages = s->zero_pages;
    s->status.remaining_bytes -= pages * PAGES_SIZE < s->status.remaining_bytes
                                     ? pages * PAGES_SIZE
                                     : s->status.remaining_bytes;
    pthread_mutex_unlock(&s->lock);
}

/* Keeps to the limit, over the time since it was last kept to. */
static int keep_limit(struct source *s, uint64_t bytes)
{
    uint64_t now, due;

    if (s->config.bandwidth == 0 || s->stopped)
        return 0;
    s->budget_bytes += bytes;
    now = loop_now_ns();
    due = s->budget_from_ns + (uint64_t)((double)s->budget_bytes * SOURCE_NS_PER_S /
                                         (double)s->config.bandwidth);
    if (due > now)
        return link_wait(s->link, due - now);
    if (now - due > SOURCE_NS_PER_S / 10) { /* what was not used is not saved up */
        s->budget_from_ns = now;
        s->budget_bytes = 0;
    }
    return 0;
}

static int send_batch(struct source *s)
{
    struct batch *b = &s->batch;
    uint64_t data = (uint64_t)b->n_pages * PAGES_SIZE;
    uint64_t table = sizeof(b->head) + b->n_runs * sizeof(b->runs[0]);
    struct iovec pieces[2] = {{&b->head, table}, {b->bytes, data}};
    uint32_t crc;
    int err;

    if (b->n_runs == 0)
        return 0;
    b->head.n_runs = htole32(b->n_runs);
    crc = stream_crc(stream_crc(0, &b->head, table), b->bytes, data);
    err = link_send_pieces(s->link, STREAM_PAGES, pieces, crc);
    if (err)
        return source_lost(s, err);
    count(s, STREAM_HEAD_BYTES + table + data, b->n_pages);
    b->n_runs = b->n_pages = 0;
    err = keep_limit(s, STREAM_HEAD_BYTES + table + data);
    return err ? err : source_look_for_abort(s);
}

/* Adds a page to the last run, or begins one. */
static int add_to_run(struct source *s, gpa_t gpa, uint32_t flags)
{
    struct batch *b = &s->batch;
    struct wire_run *last = b->n_runs > 0 ? &b->runs[b->n_runs - 1] : NULL;
    int err;

    if (last && le32toh(last->flags) == flags &&
        le64toh(last->gpa) + (uint64_t)le32toh(last->pages) * PAGES_SIZE == gpa) {
        last->pages = htole32(le32toh(last->pages) + 1);
        return 0;
    }
    if (b->n_runs == PAGES_RUNS) {
        /* The page's bytes, if any, are the last in the buffer already: they go to the front. */
        bool has_bytes = !(flags & PAGES_ZERO);

        b->n_pages -= has_bytes;
        const uint8_t *page = b->bytes + (uint64_t)b->n_pages * PAGES_SIZE;

        err = send_batch(s);
        if (err)
            return err;
        if (has_bytes) {
            memmove(b->bytes, page, PAGES_SIZE);
            b->n_pages = 1;
        }
    }
    b->runs[b->n_runs++] = (struct wire_run){htole64(gpa), htole32(1), htole32(flags)};
    return 0;
}

static bool is_zero(const uint8_t *page)
{
    return page[0] == 0 && memcmp(page, page + 1, PAGES_SIZE - 1) == 0;
}

static bool test_bit(const uint64_t *bits, uint64_t at)
{
    return bits[at / SOURCE_WORD_BITS] >> (at % SOURCE_WORD_BITS) & 1;
}

/* A page that reads as zero is told of only when the destination has another there. */
static int skip_page(struct source *s, struct region_bits *bits, gpa_t gpa, uint64_t page)
{
    s->zero_pages++;
    if (!test_bit(bits->there, page))
        return 0;
    bits->there[page / SOURCE_WORD_BITS] &= ~(1ull << page % SOURCE_WORD_BITS);
    return add_to_run(s, gpa, PAGES_ZERO);
}

static int send_page(struct source *s, unsigned region, uint64_t page)
{
    const struct memory_region *regions;
    struct region_bits *bits = &s->regions[region];
    struct batch *b = &s->batch;
    uint8_t *copy;
    gpa_t gpa;
    int err;

    (void)memory_regions(s->mem, &regions);
    gpa = regions[region].base + page * PAGES_SIZE;
    copy = b->bytes + (uint64_t)b->n_pages * PAGES_SIZE;
    memcpy(copy, regions[region].host + page * PAGES_SIZE, PAGES_SIZE);
    if (is_zero(copy))
        return skip_page(s, bits, gpa, page);
    bits->there[page / SOURCE_WORD_BITS] |= 1ull << page % SOURCE_WORD_BITS;
    b->n_pages++;
    err = add_to_run(s, gpa, 0);
    return !err && b->n_pages == PAGES_BATCH ? send_batch(s) : err;
}

/*
 * Whether the memfd has no such page: then *until is the first that it may have, at most `last`. Of
 * what is a hole nothing is remembered, for it may be filled at any time; of what is there, that.
 */
static bool in_hole(struct source *s, unsigned region, uint64_t page, uint64_t last,
                    uint64_t *until)
{
    const struct memory_region *regions;
    struct region_bits *bits = &s->regions[region];
    off_t base, data, hole;

    if (page < bits->data_until)
        return false;
    (void)memory_regions(s->mem, &regions);
    base = (off_t)regions[region].file_offset;
    data = lseek(memory_fd(s->mem), base + (off_t)(page * PAGES_SIZE), SEEK_DATA);
    if (data < 0 && errno != ENXIO)
        return false; /* a file without holes */
    *until = data < 0 ? last : (uint64_t)(data - base) / PAGES_SIZE;
    if (*until > last)
        *until = last;
    if (*until > page)
        return true;
    hole = lseek(memory_fd(s->mem), data, SEEK_HOLE);
    bits->data_until = hole < 0 ? page + 1 : (uint64_t)(hole - base) / PAGES_SIZE;
    return false;
}

static int send_chunk(struct source *s, unsigned region, uint64_t first, uint64_t last)
{
    struct region_bits *bits = &s->regions[region];
    const struct memory_region *regions;
    uint64_t hole_until = first;
    int err = 0;

    (void)memory_regions(s->mem, &regions);
    for (uint64_t page = first; !err && page < last; page++) {
        if (bits->todo[page / SOURCE_WORD_BITS] == 0) {
            page |= SOURCE_WORD_BITS - 1;
            continue;
        }
        if (!test_bit(bits->todo, page))
            continue;
        if (page < hole_until || in_hole(s, region, page, last, &hole_until))
            err = skip_page(s, bits, regions[region].base + page * PAGES_SIZE, page);
        else
            err = send_page(s, region, page);
    }
    return err;
}

static bool any_bit(const uint64_t *words, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if (words[i])
            return true;
    return false;
}

int source_send_todo(struct source *s)
{
    int err = 0;

    for (unsigned r = 0; !err && r < s->n_regions; r++) {
        struct region_bits *bits = &s->regions[r];

        bits->data_until = 0;
        for (uint64_t first = 0; !err && first < bits->pages; first += CHUNK) {
            uint64_t n = bits->pages - first < CHUNK ? bits->pages - first : CHUNK;
            const uint64_t *words = bits->todo + first / SOURCE_WORD_BITS;

            if (!any_bit(words, (n + SOURCE_WORD_BITS - 1) / SOURCE_WORD_BITS))
                continue;
            if (!s->stopped)
                err = s->ops->log_clear(s->opaque, r, first, n, words);
            if (!err)
                err = send_chunk(s, r, first, first + n);
        }
        memset(bits->todo, 0, bits->words * sizeof(uint64_t));
    }
    return err ? err : send_batch(s);
}
