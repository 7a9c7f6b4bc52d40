/*
 * Pre-copy: which pages are sent, and how they become sections.
 *
 * A page is sent from a copy, because the guest may write it while its checksum is taken. Before
 * that its bit in the dirty log is cleared, in chunks, so that whatever is written after the copy is
 * logged: no write is ever missed. Pages that the memfd has no room for are not even read; and for a
 * chunk that has none but such the log is not begun: to protect what is not there takes KVM 5 ms a GiB,
 * and the file tells as well that it was touched, since it has a page before anybody can write it. Does
 * not decide when memory was gone through often enough (source_rounds.c).
 *
 * Threads: one for each lane, with chunks of its own; so no word of the bits, and no chunk's count of
 * them, is two threads'. `lock` guards `status` and the budget; a leaf.
 * Text: the kernel's Documentation/virt/kvm/api.rst §4.117 KVM_CLEAR_DIRTY_LOG.
 */
#include <endian.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "migration/source_internal.h"
#include "vmm/util/loop.h"

#define CHUNK SOURCE_CHUNK
#define CHUNK_WORDS (CHUNK / SOURCE_WORD_BITS)
/* Of a chunk with fewer pages to send it is asked for each alone whether it is there: SEEK_HOLE passes
 * every page up to the next hole, 50 ns each, and the guest stands still for the last of this. */
#define MANY_PAGES 64u
#define FEW_PAGES (MANY_PAGES - 1) /* of a chunk that was touched for the first time: most are holes */

/* ---- the bits ---- */

static int make_bits(struct region_bits *bits, const struct memory_region *region)
{
    bits->pages = region->size / PAGES_SIZE;
    bits->words = (bits->pages + SOURCE_WORD_BITS - 1) / SOURCE_WORD_BITS;
    bits->todo = calloc(bits->words, sizeof(uint64_t));
    bits->fresh = calloc(bits->words, sizeof(uint64_t));
    bits->there = calloc(bits->words, sizeof(uint64_t));
    bits->chunks = (bits->pages + CHUNK - 1) / CHUNK;
    bits->left = calloc(bits->chunks, sizeof(uint16_t));
    bits->untouched = calloc(bits->chunks, sizeof(bool));
    return bits->todo && bits->fresh && bits->there && bits->left && bits->untouched ? 0 : -ENOMEM;
}

/* Pages of a chunk; the last may have fewer. */
static uint64_t chunk_pages(const struct region_bits *bits, uint64_t chunk)
{
    uint64_t rest = bits->pages - chunk * CHUNK;

    return rest < CHUNK ? rest : CHUNK;
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
        for (uint64_t c = 0; c < bits->chunks; c++)
            bits->left[c] = (uint16_t)chunk_pages(bits, c);
    }
    return err;
}

void source_free_bits(struct source *s)
{
    for (unsigned i = 0; i < MEMORY_MAX_REGIONS; i++) {
        free(s->regions[i].todo);
        free(s->regions[i].fresh);
        free(s->regions[i].there);
        free(s->regions[i].left);
        free(s->regions[i].untouched);
    }
}

/* The page at or behind `page` that the memfd has now, or a later one if there is none in the region.
 * -EINVAL: it is a file without holes. */
static int64_t next_data(const struct source *s, unsigned region, uint64_t page)
{
    const struct memory_region *regions;
    off_t base, data;

    (void)memory_regions(s->mem, &regions);
    base = (off_t)regions[region].file_offset;
    data = lseek(memory_fd(s->mem), base + (off_t)(page * PAGES_SIZE), SEEK_DATA);
    if (data < 0)
        return errno == ENXIO ? INT64_MAX : -EINVAL;
    return (data - base) / (int64_t)PAGES_SIZE;
}

static bool any_bit(const uint64_t *words, uint64_t n)
{
    uint64_t any = 0;

    for (uint64_t i = 0; i < n; i++)
        any |= words[i];
    return any != 0;
}

/* Adds what was gathered before, and not sent yet, to a chunk of `gathered`; how many bits it has. The
 * guest stands still for the last of this: a chunk of which nothing was written costs a look. */
static unsigned merge_chunk(const struct region_bits *bits, uint64_t *gathered, uint64_t chunk)
{
    uint64_t first = chunk * CHUNK_WORDS, rest = bits->words - first;
    uint64_t n = rest < CHUNK_WORDS ? rest : CHUNK_WORDS;
    unsigned pages = 0;

    if (bits->left[chunk] == 0 && !any_bit(gathered + first, n))
        return 0;
    for (uint64_t w = first; w < first + n; w++) {
        gathered[w] |= bits->todo[w];
        pages += (unsigned)__builtin_popcountll(gathered[w]);
    }
    return pages;
}

/* Of a chunk that was untouched: if the file has anything of it now, all of it is to be looked at, for
 * the log did not begin. How many bits count as set. *data is the first page that the file has behind
 * the chunks before. */
static unsigned look_again(const struct source *s, unsigned region, uint64_t chunk,
                           uint64_t *gathered, int64_t *data)
{
    const struct region_bits *bits = &s->regions[region];
    const uint64_t first = chunk * CHUNK, pages = chunk_pages(bits, chunk);
    uint64_t *words = gathered + first / SOURCE_WORD_BITS;

    if (*data <= (int64_t)first)
        *data = next_data(s, region, first);
    bits->untouched[chunk] = *data >= (int64_t)(first + pages);
    memset(words, bits->untouched[chunk] ? 0 : 0xFF,
           (pages + SOURCE_WORD_BITS - 1) / SOURCE_WORD_BITS * sizeof(*words));
    if (!bits->untouched[chunk] && pages % SOURCE_WORD_BITS)
        words[pages / SOURCE_WORD_BITS] = (1ull << pages % SOURCE_WORD_BITS) - 1;
    return bits->untouched[chunk] ? 0 : FEW_PAGES;
}

int64_t source_collect(struct source *s)
{
    uint64_t pages = 0;

    for (unsigned r = 0; r < s->n_regions; r++) {
        struct region_bits *bits = &s->regions[r];
        uint64_t *gathered = bits->fresh;
        int64_t data = 0;
        int err = s->ops->log_get(s->opaque, r, gathered);

        if (err)
            return err;
        memory_dirty_harvest(s->mem, r, gathered);
        if (bits->pages % SOURCE_WORD_BITS)
            gathered[bits->words - 1] &= (1ull << bits->pages % SOURCE_WORD_BITS) - 1;
        for (uint64_t c = 0; c < bits->chunks; c++) {
            bits->left[c] = (uint16_t)(bits->untouched[c] ? look_again(s, r, c, gathered, &data)
                                                          : merge_chunk(bits, gathered, c));
            pages += bits->left[c];
        }
        bits->fresh = bits->todo;
        bits->todo = gathered;
    }
    return (int64_t)pages;
}

/* ---- pages ---- */

static void count(struct lane *lane, uint64_t bytes, uint64_t pages)
{
    struct source_status *status = &lane->source->status;
    uint64_t done = (pages + lane->zero_pages) * PAGES_SIZE;

    pthread_mutex_lock(&lane->source->lock);
    status->sent_bytes += bytes;
    status->pages += pages;
    status->zero_pages += lane->zero_pages;
    status->remaining_bytes -= done < status->remaining_bytes ? done : status->remaining_bytes;
    pthread_mutex_unlock(&lane->source->lock);
    lane->zero_pages = 0;
}

/* When the next bytes may go: the limit is kept to over the time since it was last reached, by all
 * lanes together. */
static uint64_t when_due(struct source *s, uint64_t bytes)
{
    uint64_t now = loop_now_ns(), due;

    pthread_mutex_lock(&s->lock);
    s->budget_bytes += bytes;
    due = s->budget_from_ns + (uint64_t)((double)s->budget_bytes * SOURCE_NS_PER_S /
                                         (double)s->config.bandwidth);
    if (due < now && now - due > SOURCE_NS_PER_S / 10) { /* what was not used is not saved up */
        s->budget_from_ns = now;
        s->budget_bytes = 0;
    }
    pthread_mutex_unlock(&s->lock);
    return due;
}

static int keep_limit(struct lane *lane, uint64_t bytes)
{
    struct source *s = lane->source;

    if (s->config.bandwidth == 0 || s->stopped)
        return 0;
    return source_wait_until(lane, when_due(s, bytes));
}

/* The bytes that are sent: compressed, where that makes them fewer. */
static struct iovec pack(struct lane *lane, enum stream_kind *kind)
{
    struct batch *b = &lane->batch;
    uint64_t data = (uint64_t)b->n_pages * PAGES_SIZE;
    size_t packed = 0;

    if (lane->compressor && data > 0)
        packed = compressor_pack(lane->compressor, b->bytes, data, b->packed, data - 1);
    *kind = packed ? STREAM_PACKED : STREAM_PAGES;
    b->head.method = htole32(packed ? lane->source->config.compress : COMPRESS_NONE);
    return packed ? (struct iovec){b->packed, packed} : (struct iovec){b->bytes, data};
}

static int send_batch(struct lane *lane)
{
    struct batch *b = &lane->batch;
    uint64_t table = sizeof(b->head) + b->n_runs * sizeof(b->runs[0]);
    struct iovec pieces[2] = {{&b->head, table}};
    enum stream_kind kind;
    uint64_t bytes;
    uint32_t crc;
    int err;

    if (b->n_runs == 0)
        return 0;
    b->head.n_runs = htole32(b->n_runs);
    pieces[1] = pack(lane, &kind);
    crc = stream_crc(stream_crc(0, &b->head, table), pieces[1].iov_base, pieces[1].iov_len);
    bytes = STREAM_HEAD_BYTES + table + pieces[1].iov_len;
    err = link_send_pieces(lane->link, kind, pieces, crc);
    if (err)
        return lane->index > 0 ? err : source_lost(lane->source, err);
    count(lane, bytes, b->n_pages);
    b->n_runs = b->n_pages = 0;
    if (atomic_load_explicit(&lane->source->lane_failed, memory_order_relaxed))
        return -ECONNABORTED;
    err = keep_limit(lane, bytes);
    return err || lane->index > 0 ? err : source_look_for_abort(lane->source);
}

/* Adds a page to the last run, or begins one. */
static int add_to_run(struct lane *lane, gpa_t gpa, uint32_t flags)
{
    struct batch *b = &lane->batch;
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

        err = send_batch(lane);
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
static int skip_page(struct lane *lane, struct region_bits *bits, gpa_t gpa, uint64_t page)
{
    lane->zero_pages++;
    if (!test_bit(bits->there, page))
        return 0;
    bits->there[page / SOURCE_WORD_BITS] &= ~(1ull << page % SOURCE_WORD_BITS);
    return add_to_run(lane, gpa, PAGES_ZERO);
}

static int send_page(struct lane *lane, unsigned region, uint64_t page)
{
    struct source *s = lane->source;
    const struct memory_region *regions;
    struct region_bits *bits = &s->regions[region];
    struct batch *b = &lane->batch;
    uint8_t *copy;
    gpa_t gpa;
    int err;

    (void)memory_regions(s->mem, &regions);
    gpa = regions[region].base + page * PAGES_SIZE;
    copy = b->bytes + (uint64_t)b->n_pages * PAGES_SIZE;
    memcpy(copy, regions[region].host + page * PAGES_SIZE, PAGES_SIZE);
    if (is_zero(copy))
        return skip_page(lane, bits, gpa, page);
    bits->there[page / SOURCE_WORD_BITS] |= 1ull << page % SOURCE_WORD_BITS;
    b->n_pages++;
    err = add_to_run(lane, gpa, 0);
    return !err && b->n_pages == PAGES_BATCH ? send_batch(lane) : err;
}

/*
 * Whether the memfd has no such page: then *until is the first that it may have, at most `last`. Of
 * what is a hole nothing is remembered, for it may be filled at any time; of what is there, that.
 */
static bool in_hole(struct lane *lane, unsigned region, uint64_t page, uint64_t last,
                    uint64_t *until)
{
    const struct source *s = lane->source;
    const struct memory_region *regions;
    int64_t data;
    off_t base, hole = -1;

    if (page < lane->data_until[region])
        return false;
    data = next_data(s, region, page);
    if (data < 0)
        return false;
    *until = (uint64_t)data < last ? (uint64_t)data : last;
    if (*until > page)
        return true;
    (void)memory_regions(s->mem, &regions);
    base = (off_t)regions[region].file_offset;
    if (s->regions[region].left[page / CHUNK] >= MANY_PAGES)
        hole = lseek(memory_fd(s->mem), base + (off_t)(page * PAGES_SIZE), SEEK_HOLE);
    lane->data_until[region] = hole < 0 ? page + 1 : (uint64_t)(hole - base) / PAGES_SIZE;
    return false;
}

/* Whether a word's pages are holes that the destination need not be told of: then they are counted. */
static bool skip_word(struct lane *lane, const struct region_bits *bits, uint64_t page,
                      uint64_t hole_until)
{
    uint64_t word = page / SOURCE_WORD_BITS;

    if (page % SOURCE_WORD_BITS || page + SOURCE_WORD_BITS > hole_until || bits->there[word])
        return false;
    lane->zero_pages += (uint64_t)__builtin_popcountll(bits->todo[word]);
    return true;
}

static int send_chunk(struct lane *lane, unsigned region, uint64_t first, uint64_t last)
{
    struct source *s = lane->source;
    struct region_bits *bits = &s->regions[region];
    const struct memory_region *regions;
    uint64_t hole_until = first;
    int err = 0;

    (void)memory_regions(s->mem, &regions);
    for (uint64_t page = first; !err && page < last; page++) {
        if (bits->todo[page / SOURCE_WORD_BITS] == 0 || skip_word(lane, bits, page, hole_until)) {
            page |= SOURCE_WORD_BITS - 1;
            continue;
        }
        if (!test_bit(bits->todo, page))
            continue;
        if (page < hole_until || in_hole(lane, region, page, last, &hole_until))
            err = skip_page(lane, bits, regions[region].base + page * PAGES_SIZE, page);
        else
            err = send_page(lane, region, page);
    }
    return err;
}

/* Whether a chunk that the destination has nothing of is nothing here either. What is found behind it
 * holds for the chunks that follow: they are looked at again when the round is over. */
static bool is_untouched(struct lane *lane, unsigned region, uint64_t first, uint64_t n)
{
    const struct region_bits *bits = &lane->source->regions[region];
    uint64_t *from = &lane->data_from[region];
    int64_t data;

    if (any_bit(bits->there + first / SOURCE_WORD_BITS,
                (n + SOURCE_WORD_BITS - 1) / SOURCE_WORD_BITS))
        return false;
    if (*from <= first) {
        data = next_data(lane->source, region, first);
        *from = data < 0 ? first : (uint64_t)data;
    }
    return *from >= first + n;
}

static int do_chunk(struct lane *lane, unsigned region, uint64_t chunk)
{
    struct source *s = lane->source;
    struct region_bits *bits = &s->regions[region];
    uint64_t first = chunk * CHUNK, n = chunk_pages(bits, chunk);
    uint64_t *words = bits->todo + first / SOURCE_WORD_BITS;
    uint64_t n_words = (n + SOURCE_WORD_BITS - 1) / SOURCE_WORD_BITS;
    int err = 0;

    if (bits->left[chunk] == 0)
        return 0;
    bits->untouched[chunk] = is_untouched(lane, region, first, n);
    if (bits->untouched[chunk])
        lane->zero_pages += n;
    else if (!s->stopped)
        err = s->ops->log_clear(s->opaque, region, first, n, words);
    if (!err && !bits->untouched[chunk])
        err = send_chunk(lane, region, first, first + n);
    memset(words, 0, n_words * sizeof(*words));
    bits->left[chunk] = 0;
    return err;
}

/*
 * The chunks that are the lane's: they are dealt out by their number, always in the same way, so that
 * a page that is sent again goes by the same connection and arrives after what it was before.
 */
static int send_share(struct lane *lane)
{
    struct source *s = lane->source;
    uint64_t number = 0;
    int err = 0;

    for (unsigned r = 0; !err && r < s->n_regions; r++) {
        lane->data_until[r] = lane->data_from[r] = 0;
        for (uint64_t c = 0; !err && c < s->regions[r].chunks; c++)
            if (number++ % s->n_lanes == lane->index)
                err = do_chunk(lane, r, c);
    }
    if (!err)
        err = send_batch(lane);
    if (!err)
        count(lane, 0, 0); /* pages that were zero to the end */
    return err;
}

int source_send_todo(struct source *s)
{
    return source_run_lanes(s, send_share);
}
