/*
 * Rounds of writing memory to a file, each of what the guest wrote during the one before.
 *
 * As in migration/source.c, a page's bit in the dirty log is cleared before the page is copied, so
 * that no write is missed. Nothing is sent and nobody waits at the other end: a guest that writes faster
 * than the disk takes it is not slowed, but stopped once a round leaves about as much as the one before. Each
 * round ends on the disk, so that the stopped guest need wait for its last pages only.
 *
 * Threads: whichever takes the step; no locks. Text: the kernel's Documentation/virt/kvm/api.rst §4.117
 * KVM_CLEAR_DIRTY_LOG.
 */
#include "migration/live_save.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define PAGE 4096ull
#define CHUNK 1024u /* pages that are cleared at once in the log, and written between two looks at cancel_fd */
#define WORD_BITS 64u
#define MAX_ROUNDS 30u
#define RATE_MIN_PAGES 256u  /* a round of fewer tells no rate */
#define FIRST_PAGE_NS 40000. /* 100 MB/s, until one was measured */
/* For the sections of state, which are not known while memory is written: a hole costs nothing. */
#define STATE_ROOM (64 * MIB)

struct region_bits {
    uint64_t *todo;  /* owns: to be written */
    uint64_t *fresh; /* owns: for what the log says */
    uint64_t pages, words;
};

struct live_save {
    struct snapshot_writer *writer; /* owns */
    char *path;                     /* owns */
    struct guest_memory *mem;
    const struct source_ops *ops;
    void *opaque;
    uint64_t downtime_ns;
    int cancel_fd;
    struct region_bits regions[MEMORY_MAX_REGIONS];
    unsigned n_regions;
    bool logging;
    unsigned rounds;
    double page_ns; /* that a page takes, as of the last round that tells */
};

static int make_bits(struct region_bits *bits, const struct memory_region *region)
{
    bits->pages = region->size / PAGE;
    bits->words = (bits->pages + WORD_BITS - 1) / WORD_BITS;
    bits->todo = calloc(bits->words, sizeof(uint64_t));
    bits->fresh = calloc(bits->words, sizeof(uint64_t));
    if (!bits->todo || !bits->fresh)
        return -ENOMEM;
    memset(bits->todo, 0xFF, bits->words * sizeof(uint64_t));
    return 0;
}

int live_save_create(struct live_save **out, struct guest_memory *mem, const struct source_ops *ops,
                     void *opaque, const struct live_save_config *config)
{
    struct live_save *s = calloc(1, sizeof(*s));
    const struct memory_region *regions;
    int err = 0;

    if (!s)
        return -ENOMEM;
    s->mem = mem;
    s->ops = ops;
    s->opaque = opaque;
    s->page_ns = FIRST_PAGE_NS;
    s->downtime_ns = config->downtime_ns;
    s->cancel_fd = config->cancel_fd;
    s->path = strdup(config->path);
    s->n_regions = memory_regions(mem, &regions);
    for (unsigned i = 0; !err && i < s->n_regions; i++)
        err = make_bits(&s->regions[i], &regions[i]);
    if (!err && !s->path)
        err = -ENOMEM;
    if (!err)
        err = snapshot_writer_create(&s->writer, config->path, mem, STATE_ROOM);
    if (err) {
        live_save_destroy(s);
        return err;
    }
    *out = s;
    return 0;
}

static void stop_logging(struct live_save *s)
{
    if (!s->logging)
        return;
    s->ops->log_stop(s->opaque);
    memory_dirty_stop(s->mem);
    s->logging = false;
}

void live_save_destroy(struct live_save *s)
{
    if (!s)
        return;
    stop_logging(s);
    snapshot_writer_destroy(s->writer);
    for (unsigned i = 0; i < MEMORY_MAX_REGIONS; i++) {
        free(s->regions[i].todo);
        free(s->regions[i].fresh);
    }
    free(s->path);
    free(s);
}

unsigned live_save_rounds(const struct live_save *s)
{
    return s->rounds;
}

static bool is_cancelled(const struct live_save *s)
{
    struct pollfd fd = {.fd = s->cancel_fd, .events = POLLIN};

    return poll(&fd, 1, 0) > 0;
}

static bool any_bit(const uint64_t *words, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if (words[i])
            return true;
    return false;
}

/* log: the guest runs, and what it writes from here on is to be told. */
static int write_chunk(struct live_save *s, unsigned region, uint64_t first, bool log)
{
    struct region_bits *bits = &s->regions[region];
    uint64_t n = bits->pages - first < CHUNK ? bits->pages - first : CHUNK;
    const uint64_t *words = bits->todo + first / WORD_BITS;
    int err = 0;

    if (!any_bit(words, (n + WORD_BITS - 1) / WORD_BITS))
        return 0;
    if (is_cancelled(s))
        return -ECANCELED;
    if (log)
        err = s->ops->log_clear(s->opaque, region, first, n, words);
    return err ? err : snapshot_writer_put(s->writer, region, first, n, bits->todo);
}

static int write_todo(struct live_save *s, bool log)
{
    int err = 0;

    for (unsigned r = 0; !err && r < s->n_regions; r++) {
        struct region_bits *bits = &s->regions[r];

        for (uint64_t first = 0; !err && first < bits->pages; first += CHUNK)
            err = write_chunk(s, r, first, log);
        memset(bits->todo, 0, bits->words * sizeof(uint64_t));
    }
    return err;
}

/* What was written since it was cleared, by the guest and by us, is to be written to the file. How many
 * pages that makes, or an error. */
static int64_t collect(struct live_save *s)
{
    uint64_t pages = 0;

    for (unsigned r = 0; r < s->n_regions; r++) {
        struct region_bits *bits = &s->regions[r];
        uint64_t *collected = bits->fresh;
        int err = s->ops->log_get(s->opaque, r, collected);

        if (err)
            return err;
        memory_dirty_harvest(s->mem, r, collected);
        if (bits->pages % WORD_BITS)
            collected[bits->words - 1] &= (1ull << bits->pages % WORD_BITS) - 1;
        for (uint64_t w = 0; w < bits->words; w++) {
            collected[w] |= bits->todo[w]; /* what was collected before, and not written yet */
            pages += (uint64_t)__builtin_popcountll(collected[w]);
        }
        bits->fresh = bits->todo;
        bits->todo = collected;
    }
    return (int64_t)pages;
}

/* Whether to stop the guest with so many pages left, after a round of `before` of which some were
 * written in ns: others were zero, or never touched. */
static bool is_enough(struct live_save *s, uint64_t before, uint64_t left, uint64_t written,
                      uint64_t ns)
{
    if (written >= RATE_MIN_PAGES)
        s->page_ns = (double)ns / (double)written;
    if ((double)left * s->page_ns <= (double)s->downtime_ns || s->rounds >= MAX_ROUNDS)
        return true;
    return s->rounds > 2 && left * 10 > before * 7;
}

static int copy_rounds(struct live_save *s)
{
    uint64_t before = memory_size(s->mem) / PAGE;

    for (;;) {
        uint64_t begun = loop_now_ns(), written = snapshot_writer_written(s->writer);
        int64_t left;
        int err = write_todo(s, true);

        if (!err)
            err = snapshot_writer_sync(s->writer);
        left = err ? err : collect(s);
        if (left < 0)
            return (int)left;
        s->rounds++;
        if (is_enough(s, before, (uint64_t)left, snapshot_writer_written(s->writer) - written,
                      loop_now_ns() - begun))
            return 0;
        before = (uint64_t)left;
    }
}

static int told(const struct live_save *s, int err)
{
    if (err && err != -ECANCELED)
        log_error("cannot save to %s: %s", s->path, strerror(-err));
    return err;
}

int live_save_copy(struct live_save *s)
{
    int err = memory_dirty_start(s->mem);

    if (!err) {
        s->logging = true;
        err = s->ops->log_start(s->opaque);
    }
    if (!err)
        err = copy_rounds(s);
    if (err)
        stop_logging(s);
    return told(s, err);
}

int live_save_finish(struct live_save *s, const struct snapshot *state,
                     struct snapshot_summary *summary)
{
    int64_t left = collect(s);
    int err = left < 0 ? (int)left : write_todo(s, false);

    stop_logging(s);
    if (!err && is_cancelled(s))
        err = -ECANCELED;
    return err ? told(s, err) : snapshot_writer_finish(s->writer, state, summary);
}
