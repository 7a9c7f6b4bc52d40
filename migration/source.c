/*
 * Pre-copy: the steps of the side that a guest leaves.
 *
 * A page is sent from a copy, because the guest may write it while its checksum is taken. Before
 * that its bit in the dirty log is cleared, in chunks, so that whatever is written after the copy is
 * logged: no write is ever missed. Pages that the memfd has no room for are not even read.
 *
 * Threads: see the header. `lock` guards `status` and `given_away`; a leaf.
 * Text: the kernel's Documentation/virt/kvm/api.rst §4.8 KVM_GET_DIRTY_LOG, §4.117
 * KVM_CLEAR_DIRTY_LOG.
 */
#include "migration/source.h"

#include <endian.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "migration/pages.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define NS_PER_S 1000000000ull
#define CHUNK 1024u /* pages that are cleared at once in the log */
#define WORD_BITS 64u
#define MAX_ROUNDS 1000u
/* What stopping and resuming takes beside the memory, as far as one can tell before. */
#define FIXED_NS 3000000ull
#define FIRST_RATE (200ull << 20)  /* bytes a second, until one was measured */
#define RATE_MIN_BYTES (1ull << 20) /* a round of fewer bytes tells no rate */
#define THROTTLE_FIRST 20u
#define THROTTLE_STEP 10u
#define BATCH_BYTES (PAGES_BATCH * PAGES_SIZE)

/* One region's pages, a bit each. */
struct region_bits {
    uint64_t *todo;  /* owns: to be sent */
    uint64_t *fresh; /* owns: for what the log says */
    uint64_t *there; /* owns: the destination's page is not zero */
    uint64_t pages, words;
    uint64_t data_until; /* page: none of the memfd's holes is before it, in this round */
};

/* The section that is being filled. */
struct batch {
    struct wire_pages head;
    struct wire_run runs[PAGES_RUNS];
    unsigned n_runs, n_pages;
    uint8_t *bytes; /* owns: BATCH_BYTES */
};

struct source {
    struct link *link; /* owns */
    struct guest_memory *mem;
    const struct source_ops *ops;
    void *opaque;
    struct source_config config;
    struct region_bits regions[MEMORY_MAX_REGIONS];
    unsigned n_regions;
    struct batch batch;
    bool logging;
    bool stopped;   /* no limit to the rate any more */
    uint64_t begun_ns, stopping_ns;
    uint64_t zero_pages; /* as in status, which follows it */
    uint64_t budget_from_ns, budget_bytes; /* for the limit to the rate */
    char *reason;   /* owns */
    pthread_mutex_t lock;
    struct source_status status;
    bool given_away, cancelled;
};

/* ---- creation ---- */

static int make_bits(struct region_bits *bits, const struct memory_region *region)
{
    bits->pages = region->size / PAGES_SIZE;
    bits->words = (bits->pages + WORD_BITS - 1) / WORD_BITS;
    bits->todo = calloc(bits->words, sizeof(uint64_t));
    bits->fresh = calloc(bits->words, sizeof(uint64_t));
    bits->there = calloc(bits->words, sizeof(uint64_t));
    return bits->todo && bits->fresh && bits->there ? 0 : -ENOMEM;
}

int source_create(struct source **out, struct link *link, struct guest_memory *mem,
                  const struct source_ops *ops, void *opaque, const struct source_config *config)
{
    struct source *s = calloc(1, sizeof(*s));

    if (!s) {
        link_destroy(link);
        return -ENOMEM;
    }
    s->link = link;
    s->mem = mem;
    s->ops = ops;
    s->opaque = opaque;
    s->config = *config;
    s->begun_ns = loop_now_ns();
    s->status.rate = FIRST_RATE;
    s->status.shared = config->share_memory && link_is_unix(link);
    pthread_mutex_init(&s->lock, NULL);
    s->batch.bytes = malloc(BATCH_BYTES);
    if (!s->batch.bytes) {
        source_destroy(s);
        return -ENOMEM;
    }
    *out = s;
    return 0;
}

static void stop_logging(struct source *s)
{
    if (!s->logging)
        return;
    s->ops->throttle(s->opaque, 0);
    s->ops->log_stop(s->opaque);
    memory_dirty_stop(s->mem);
    s->logging = false;
}

void source_destroy(struct source *s)
{
    if (!s)
        return;
    stop_logging(s);
    for (unsigned i = 0; i < MEMORY_MAX_REGIONS; i++) {
        free(s->regions[i].todo);
        free(s->regions[i].fresh);
        free(s->regions[i].there);
    }
    free(s->batch.bytes);
    free(s->reason);
    link_destroy(s->link);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

/* ---- what is told ---- */

static void set_phase(struct source *s, enum source_phase phase)
{
    pthread_mutex_lock(&s->lock);
    s->status.phase = phase;
    pthread_mutex_unlock(&s->lock);
}

void source_get_status(struct source *s, struct source_status *status)
{
    pthread_mutex_lock(&s->lock);
    *status = s->status;
    if (status->phase <= SOURCE_HANDING_OVER)
        status->elapsed_ns = loop_now_ns() - s->begun_ns;
    pthread_mutex_unlock(&s->lock);
}

const char *source_reason(const struct source *s)
{
    return s->reason;
}

int source_cancel(struct source *s)
{
    int err = 0;

    pthread_mutex_lock(&s->lock);
    if (s->given_away)
        err = -EALREADY;
    else
        s->cancelled = true;
    pthread_mutex_unlock(&s->lock);
    if (!err)
        link_cancel(s->link);
    return err;
}

/* A step ended with err: notes what that means for the guest, and passes it on. */
static int ended(struct source *s, int err)
{
    if (!err)
        return 0;
    stop_logging(s);
    pthread_mutex_lock(&s->lock);
    s->status.elapsed_ns = loop_now_ns() - s->begun_ns;
    s->status.phase = err == -EINPROGRESS ? SOURCE_IN_DOUBT : SOURCE_FAILED;
    if (s->cancelled && err != -EINPROGRESS)
        err = -ECANCELED;
    pthread_mutex_unlock(&s->lock);
    return err;
}

/* ---- what the destination says ---- */

static int heard_abort(struct source *s, char *why)
{
    log_error("the destination gave up: %s", why);
    free(s->reason);
    s->reason = why;
    return -EREMOTEIO;
}

/* The next section from there, which must be of that kind; its payload is the caller's. */
static int expect(struct source *s, enum stream_kind kind, char **payload)
{
    struct stream_section section;
    void *bytes;
    int err = stream_read_section(link_reader(s->link), &section, &bytes);

    if (err)
        return err;
    if (section.kind == (uint32_t)kind) {
        *payload = bytes;
        return 0;
    }
    if (section.kind == STREAM_ABORT)
        return heard_abort(s, bytes);
    free(bytes);
    log_error("the destination sent section %u, and %u was expected", section.kind, kind);
    return -EBADMSG;
}

/* It says nothing while pages come but that it gives up, or it hangs up. */
static int look_for_abort(struct source *s)
{
    char *payload;
    int err;

    if (!link_readable(s->link))
        return 0;
    err = expect(s, STREAM_ABORT, &payload);
    return err ? err : heard_abort(s, payload);
}

/* Sending failed: perhaps it said why before it hung up. */
static int lost(struct source *s, int err)
{
    int why;

    if (err == -ECANCELED)
        return err;
    why = look_for_abort(s);
    if (why == -EREMOTEIO)
        return why;
    if (!why)
        log_error("the connection to the destination is lost: %s", strerror(-err));
    return err;
}

int source_introduce(struct source *s, const struct snapshot *hello, char **report)
{
    int err = link_send_header(s->link);

    for (unsigned i = 0; !err && i < hello->n_sections; i++) {
        const struct snapshot_section *section = &hello->sections[i];

        err = link_send(s->link, (enum stream_kind)section->head.kind, section->head.id,
                        section->payload, section->head.length);
    }
    if (!err && s->status.shared)
        err = link_send_fd(s->link, STREAM_MEMFD, memory_fd(s->mem));
    if (!err)
        err = link_send(s->link, STREAM_END, "", "", 0);
    if (err)
        return ended(s, lost(s, err));
    err = stream_read_header(link_reader(s->link));
    if (!err)
        err = expect(s, STREAM_REPORT, report);
    return ended(s, err);
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
    due = s->budget_from_ns + (uint64_t)((double)s->budget_bytes * NS_PER_S /
                                         (double)s->config.bandwidth);
    if (due > now)
        return link_wait(s->link, due - now);
    if (now - due > NS_PER_S / 10) { /* what was not used is not saved up */
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
        return lost(s, err);
    count(s, STREAM_HEAD_BYTES + table + data, b->n_pages);
    b->n_runs = b->n_pages = 0;
    err = keep_limit(s, STREAM_HEAD_BYTES + table + data);
    return err ? err : look_for_abort(s);
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
    return bits[at / WORD_BITS] >> (at % WORD_BITS) & 1;
}

/* A page that reads as zero is told of only when the destination has another there. */
static int skip_page(struct source *s, struct region_bits *bits, gpa_t gpa, uint64_t page)
{
    s->zero_pages++;
    if (!test_bit(bits->there, page))
        return 0;
    bits->there[page / WORD_BITS] &= ~(1ull << page % WORD_BITS);
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
    bits->there[page / WORD_BITS] |= 1ull << page % WORD_BITS;
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
        if (bits->todo[page / WORD_BITS] == 0) {
            page |= WORD_BITS - 1;
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

/* Sends what is to be sent. The log is cleared first, and only then a page is read: also to see that
 * it was never touched. */
static int send_todo(struct source *s)
{
    int err = 0;

    for (unsigned r = 0; !err && r < s->n_regions; r++) {
        struct region_bits *bits = &s->regions[r];

        bits->data_until = 0;
        for (uint64_t first = 0; !err && first < bits->pages; first += CHUNK) {
            uint64_t n = bits->pages - first < CHUNK ? bits->pages - first : CHUNK;
            const uint64_t *words = bits->todo + first / WORD_BITS;

            if (!any_bit(words, (n + WORD_BITS - 1) / WORD_BITS))
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

/* Adds to what is to be sent what was written since it was cleared, by the guest and by us. How many
 * pages that makes, or an error. */
static int64_t collect(struct source *s)
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
            collected[w] |= bits->todo[w]; /* what was collected before, and not sent yet */
            pages += (uint64_t)__builtin_popcountll(collected[w]);
        }
        bits->fresh = bits->todo;
        bits->todo = collected;
    }
    return (int64_t)pages;
}

/* ---- rounds ---- */

static int start_logging(struct source *s)
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
        if (bits->pages % WORD_BITS)
            bits->todo[bits->words - 1] = (1ull << bits->pages % WORD_BITS) - 1;
    }
    if (!err)
        err = memory_dirty_start(s->mem);
    if (err)
        return err;
    s->logging = true;
    return s->ops->log_start(s->opaque);
}

/* The figures of a round that took from begun_ns and left `pages`. */
static void measure(struct source *s, uint64_t begun_ns, uint64_t bytes, uint64_t pages)
{
    uint64_t ns = loop_now_ns() - begun_ns;

    if (ns == 0)
        ns = 1;
    pthread_mutex_lock(&s->lock);
    if (bytes >= RATE_MIN_BYTES)
        s->status.rate = (uint64_t)((double)bytes * NS_PER_S / (double)ns);
    s->status.dirty_rate = (uint64_t)((double)pages * PAGES_SIZE * NS_PER_S / (double)ns);
    s->status.remaining_bytes = pages * PAGES_SIZE;
    s->status.zero_pages = s->zero_pages;
    if (s->status.rate == 0)
        s->status.rate = 1;
    s->status.estimate_ns = FIXED_NS + (uint64_t)((double)pages * PAGES_SIZE * NS_PER_S /
                                                  (double)s->status.rate);
    pthread_mutex_unlock(&s->lock);
}

/* A guest that leaves as much to do as before is slowed, a step a round. */
static void slow_down(struct source *s, uint64_t before, uint64_t after)
{
    unsigned percent = s->status.throttle;

    if (s->config.throttle_max == 0 || s->status.rounds < 2 || after * 10 < before * 7)
        return;
    percent = percent ? percent + THROTTLE_STEP : THROTTLE_FIRST;
    if (percent > s->config.throttle_max)
        percent = s->config.throttle_max;
    if (percent == s->status.throttle)
        return;
    pthread_mutex_lock(&s->lock);
    s->status.throttle = percent;
    pthread_mutex_unlock(&s->lock);
    s->ops->throttle(s->opaque, percent);
}

/* One round; the pages that are left after it, or an error. */
static int64_t run_round(struct source *s)
{
    uint64_t begun = loop_now_ns(), sent = s->status.sent_bytes;
    int64_t left;
    int err = send_todo(s);

    if (err)
        return err;
    left = collect(s);
    if (left < 0)
        return left;
    pthread_mutex_lock(&s->lock);
    s->status.rounds++;
    pthread_mutex_unlock(&s->lock);
    measure(s, begun, s->status.sent_bytes - sent, (uint64_t)left);
    return left;
}

static int copy_rounds(struct source *s)
{
    uint64_t before = memory_size(s->mem) / PAGES_SIZE;

    s->budget_from_ns = loop_now_ns();
    for (;;) {
        int64_t left = run_round(s);

        if (left < 0)
            return (int)left;
        if (s->status.estimate_ns <= s->config.downtime_ns)
            return 0;
        if (loop_now_ns() - s->begun_ns >= s->config.timeout_ns || s->status.rounds >= MAX_ROUNDS)
            return s->config.give_up ? -ETIMEDOUT : 0;
        slow_down(s, before, (uint64_t)left);
        before = (uint64_t)left;
    }
}

int source_copy(struct source *s)
{
    int err;

    set_phase(s, SOURCE_COPYING);
    if (s->status.shared)
        return 0;
    pthread_mutex_lock(&s->lock);
    s->status.remaining_bytes = memory_size(s->mem);
    pthread_mutex_unlock(&s->lock);
    err = start_logging(s);
    if (!err)
        err = copy_rounds(s);
    if (err == -ETIMEDOUT && s->config.give_up)
        link_abort(s->link, "the guest writes its memory faster than it can be sent");
    return ended(s, err);
}

/* ---- the end ---- */

void source_stopping(struct source *s)
{
    s->stopping_ns = loop_now_ns();
    s->stopped = true;
    set_phase(s, SOURCE_STOPPED);
}

static int send_rest(struct source *s, const struct snapshot *state, bool paused)
{
    const uint8_t word = paused;
    int64_t left;
    int err = link_send(s->link, STREAM_STOPPED, "", &word, sizeof(word));

    if (err)
        return lost(s, err);
    if (!s->status.shared) {
        left = collect(s);
        err = left < 0 ? (int)left : send_todo(s);
    }
    for (unsigned i = 0; !err && i < state->n_sections; i++) {
        const struct snapshot_section *section = &state->sections[i];

        err = link_send(s->link, (enum stream_kind)section->head.kind, section->head.id,
                        section->payload, section->head.length);
        if (err)
            err = lost(s, err);
    }
    if (!err)
        err = link_send(s->link, STREAM_END, "", "", 0);
    return err;
}

int source_finish(struct source *s, const struct snapshot *state, bool paused)
{
    char *payload;
    int err = send_rest(s, state, paused);

    if (!err) {
        err = expect(s, STREAM_READY, &payload);
        if (!err)
            free(payload);
        else if (err == -ECANCELED)
            link_abort(s->link, "the migration was cancelled");
    }
    return ended(s, err);
}

/* From here on a cancellation comes too late; or it came before. */
static int give_away(struct source *s)
{
    int err = 0;

    pthread_mutex_lock(&s->lock);
    if (s->cancelled)
        err = -ECANCELED;
    else
        s->given_away = true;
    pthread_mutex_unlock(&s->lock);
    return err;
}

/* The one figure of STREAM_RUNNING's JSON; any other text gives 0. */
static unsigned long long number_in(const char *json)
{
    unsigned long long value;

    return sscanf(json, "{\"downtime_ns\":%llu}", &value) == 1 ? value : 0;
}

int source_hand_over(struct source *s)
{
    char *payload;
    uint64_t sent;
    int err = look_for_abort(s);

    if (err)
        return ended(s, err);
    err = give_away(s);
    if (err) {
        link_abort(s->link, "the migration was cancelled");
        return ended(s, err);
    }
    set_phase(s, SOURCE_HANDING_OVER);
    sent = link_sent(s->link);
    err = link_send(s->link, STREAM_GO, "", "", 0);
    if (err && link_sent(s->link) == sent)
        return ended(s, lost(s, err)); /* not a byte of it has left */
    if (!err)
        err = expect(s, STREAM_RUNNING, &payload);
    /* Only its own word that it did not take the guest makes it sure that it does not run. */
    if (err)
        return ended(s, err == -EREMOTEIO ? err : -EINPROGRESS);
    pthread_mutex_lock(&s->lock);
    s->status.peer_downtime_ns = (uint64_t)number_in(payload);
    free(payload);
    s->status.downtime_ns = loop_now_ns() - s->stopping_ns;
    s->status.elapsed_ns = loop_now_ns() - s->begun_ns;
    s->status.phase = SOURCE_COMPLETED;
    pthread_mutex_unlock(&s->lock);
    return 0;
}
