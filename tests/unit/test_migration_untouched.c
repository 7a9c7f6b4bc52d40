/*
 * Chunks of memory that were never touched: the log is not begun for them, and what is written there for
 * the first time while the guest is on its way arrives all the same. The log is as KVM's: each page is in
 * it at first, and until it is cleared.
 */
#include <criterion/criterion.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>

#include "tests/unit/migration_rig.h"

#define CHUNK 1024u /* pages; migration/source_internal.h */
#define CHUNKS 4u

struct log {
    struct guest *guest;
    uint64_t bits[CHUNKS * CHUNK / 64];
    unsigned cleared;         /* chunks, a bit each */
    unsigned reads;
    unsigned writes[2];       /* pages that the guest writes just before the log is read; 0: none */
};

static struct guest_memory *memory_of_chunks(void)
{
    const struct memory_config config = {.size = CHUNKS * CHUNK * PAGE};
    struct guest_memory *made;

    cr_assert_eq(memory_create(&made, &config), 0);
    return made;
}

static void write_page(struct log *log, unsigned page)
{
    const struct memory_region *regions;

    (void)memory_regions(log->guest->mem, &regions);
    memset(regions[0].host + page * PAGE, 0x5A, PAGE);
    log->bits[page / 64] |= 1ull << page % 64;
}

static int log_start(void *opaque)
{
    memset(((struct log *)opaque)->bits, 0xFF, sizeof(((struct log *)opaque)->bits));
    return 0;
}

static void log_stop(void *opaque)
{
    (void)opaque;
}

static int log_get(void *opaque, unsigned region, uint64_t *bitmap)
{
    struct log *log = opaque;

    cr_assert_eq(region, 0);
    cr_assert_lt(log->reads, 2);
    if (log->writes[log->reads])
        write_page(log, log->writes[log->reads]);
    log->reads++;
    memcpy(bitmap, log->bits, sizeof(log->bits));
    return 0;
}

static int log_clear(void *opaque, unsigned region, uint64_t first, uint64_t pages,
                     const uint64_t *bits)
{
    struct log *log = opaque;

    (void)region;
    cr_assert_eq(pages, CHUNK);
    log->cleared |= 1u << first / CHUNK;
    for (unsigned i = 0; i < CHUNK / 64; i++)
        log->bits[first / 64 + i] &= ~bits[i];
    return 0;
}

static void throttle(void *opaque, unsigned percent)
{
    (void)opaque;
    (void)percent;
}

static const struct source_ops ops = {
    .log_start = log_start,
    .log_stop = log_stop,
    .log_get = log_get,
    .log_clear = log_clear,
    .throttle = throttle,
};

/* The guest, whose page 1 is written, moves. */
static struct result move(struct log *log)
{
    struct result r = {.arrival = {.mem = memory_of_chunks(), .door_fd = -1}};
    struct guest *g = new_guest();
    pthread_t thread;
    struct source *s;
    struct link *link;
    int pair[2];

    memory_destroy(g->mem);
    g->mem = memory_of_chunks();
    log->guest = g;
    write_page(log, 1);
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    cr_assert_eq(link_create(&link, pair[0], "the target"), 0);
    cr_assert_eq(link_create(&r.arrival.link, pair[1], "the source"), 0);
    cr_assert_eq(source_create(&s, link, g->mem, &ops, log, &g->config), 0);
    cr_assert_eq(pthread_create(&thread, NULL, arrive_main, &r.arrival), 0);
    r.source = leave(g, s, false);
    pthread_join(thread, NULL);
    source_get_status(s, &r.status);
    source_destroy(s);
    cr_expect_eq(r.source, 0);
    cr_expect(same_memory(g, &r));
    destroy_guest(g);
    return r;
}

Test(migration_untouched, the_log_is_not_begun_for_what_was_never_touched)
{
    struct log log = {0};
    struct result r = move(&log);

    cr_expect_eq(log.cleared, 1);
    cr_expect_eq(r.status.pages, 1);
    cr_expect_eq(r.status.zero_pages, CHUNKS * CHUNK - 1);
    end_result(&r);
}

Test(migration_untouched, what_is_touched_while_the_guest_runs_arrives)
{
    struct log log = {.writes = {2 * CHUNK + 7, 0}};
    struct result r = move(&log);

    cr_expect_eq(r.status.pages, 2);
    end_result(&r);
}

Test(migration_untouched, what_is_touched_at_last_arrives_and_nothing_else_is_read)
{
    struct log log = {.writes = {0, CHUNKS * CHUNK - 1}};
    struct result r = move(&log);

    cr_expect_eq(r.status.pages, 2);
    cr_expect_eq(log.cleared, 1);
    end_result(&r);
}
