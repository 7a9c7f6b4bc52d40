/*
 * Memory that goes by several connections, or compressed: all of it arrives, and a fault on any of
 * them leaves one guest.
 */
#include <criterion/criterion.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/unit/migration_rig.h"
#include "tests/unit/xorshift.h"
#include "vmm/util/log.h"

static void quiet(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
}

static void begin(void)
{
    log_set_sink(quiet);
}

TestSuite(migration_lanes, .init = begin);

static struct guest *new_guest_by(unsigned streams, enum compress_method method)
{
    struct guest *g = new_guest();

    g->config.streams = streams;
    g->config.compress = method;
    return g;
}

static void expect_arrival(struct guest *g, struct result *r)
{
    cr_expect_eq(r->source, 0, "%s", strerror(-r->source));
    cr_expect_eq(r->target, RUNS);
    cr_expect(same_memory(g, r));
    end_result(r);
    destroy_guest(g);
}

/* ---- several connections ---- */

Test(migration_lanes, bring_memory_by_each_of_several_connections)
{
    struct guest *g = new_guest_by(2, COMPRESS_NONE);
    struct result r = migrate(g, &sound, false, false);

    cr_expect_geq(r.further_passed[0], 6 * PAGE, "half of the pages");
    cr_expect_lt(r.passed[0], 8 * PAGE);
    cr_expect_eq(r.status.pages, 12);
    cr_expect_geq(r.status.zero_pages, SIZE / PAGE - 12);
    expect_arrival(g, &r);
}

Test(migration_lanes, may_be_more_than_there_is_to_carry)
{
    struct guest *g = new_guest_by(PAGES_MAX_STREAMS, COMPRESS_NONE);
    struct result r = migrate(g, &sound, false, false);

    cr_expect_lt(r.further_passed[PAGES_MAX_STREAMS - 2], PAGE);
    expect_arrival(g, &r);
}

Test(migration_lanes, bring_the_last_of_what_is_written_meanwhile)
{
    struct guest *g = new_guest_by(2, COMPRESS_NONE);
    struct result r;

    g->config.downtime_ns = 3000001; /* nothing may be left: until it writes no more */
    g->config.timeout_ns = UINT64_MAX;
    g->writes = 40 * 600;
    g->batch = 600;
    r = migrate(g, &sound, false, false);
    cr_expect_geq(r.status.rounds, 40);
    expect_arrival(g, &r);
}

Test(migration_lanes, keep_to_the_limit_of_the_rate_together)
{
    struct guest *g = new_guest_by(2, COMPRESS_NONE);
    struct result r;

    for (unsigned page = 0; page < 200; page++)
        guest_write(g, page, 1);
    g->config.bandwidth = 8 * MIB;
    r = migrate(g, &sound, false, false);
    cr_expect_geq(r.status.elapsed_ns, 200 * PAGE * 1000000000ull / (8 * MIB),
                  "%llu ns for 200 pages", (unsigned long long)r.status.elapsed_ns);
    expect_arrival(g, &r);
}

Test(migration_lanes, end_together_when_it_is_cancelled)
{
    struct guest *g = new_guest_by(3, COMPRESS_NONE);
    struct result r = migrate(g, &sound, true, false);

    cr_expect_eq(r.source, -ECANCELED);
    cr_expect_eq(r.target, GAVE_UP);
    cr_expect_not(g->logging);
    end_result(&r);
    destroy_guest(g);
}

/* One connection beside the first has the fault; the guest runs where it was, with no doubt. */
static void expect_one_guest(struct guest *g, uint64_t at)
{
    struct result r = migrate(g, &sound, false, false);

    cr_expect_neq(r.source, 0, "it went, without byte %llu", (unsigned long long)at);
    cr_expect_neq(r.source, -EINPROGRESS, "in doubt: byte %llu", (unsigned long long)at);
    cr_expect_eq(r.target, GAVE_UP, "it came, without byte %llu", (unsigned long long)at);
    cr_expect_not(g->logging);
    end_result(&r);
}

static void try_faults(enum fault fault, enum compress_method method)
{
    struct guest *g = new_guest_by(2, method);
    struct result whole = migrate(g, &sound, false, false);
    uint64_t length = whole.further_passed[0];

    cr_assert_eq(whole.source, 0);
    end_result(&whole);
    g->further.fault = fault;
    for (uint64_t at = 0; at < length; at += length - at > 300 && at > 300 ? 1021 : 11) {
        g->further.at[0] = at;
        expect_one_guest(g, at);
    }
    destroy_guest(g);
}

Test(migration_lanes, never_lose_a_guest_when_one_is_cut_off)
{
    try_faults(CUT, COMPRESS_NONE);
}

Test(migration_lanes, never_lose_a_guest_when_one_is_spoilt)
{
    try_faults(SPOIL, COMPRESS_NONE);
}

Test(migration_lanes, never_lose_a_guest_when_what_is_compressed_is_spoilt)
{
    try_faults(SPOIL, COMPRESS_LZ4);
}

/* ---- who belongs to it ---- */

/* A stranger who was there before the first of the guest's. */
static void knock(struct guest *g, bool with_header, uint32_t index)
{
    struct wire_join join = {.index = htole32(index), .token = "not the token"};
    struct link *link;

    cr_assert_eq(link_create(&link, rig_knock(g), "the target"), 0);
    if (with_header)
        cr_assert_eq(link_send_header(link), 0);
    cr_assert_eq(link_send(link, STREAM_JOIN, "", &join, sizeof(join)), 0);
    link_destroy(link);
}

Test(migration_lanes, are_not_taken_from_a_stranger)
{
    struct guest *g = new_guest_by(2, COMPRESS_NONE);
    struct result r;

    knock(g, true, 1);
    knock(g, true, 7);
    knock(g, false, 1);
    r = migrate(g, &sound, false, false);
    expect_arrival(g, &r);
}

/* ---- compression ---- */

static void try_method(enum compress_method method, unsigned streams)
{
    struct guest *g = new_guest_by(streams, method);
    struct result r = migrate(g, &sound, false, false);

    cr_expect_lt(r.passed[0], 3 * PAGE, "%llu bytes", (unsigned long long)r.passed[0]);
    cr_expect_eq(r.status.pages, 12);
    expect_arrival(g, &r);
}

Test(migration_lanes, bring_memory_compressed_by_zstd)
{
    try_method(COMPRESS_ZSTD, 1);
}

Test(migration_lanes, bring_memory_compressed_by_lz4)
{
    try_method(COMPRESS_LZ4, 1);
}

Test(migration_lanes, bring_memory_compressed_by_several_connections)
{
    try_method(COMPRESS_ZSTD, 3);
}

Test(migration_lanes, bring_what_cannot_be_compressed_as_it_is)
{
    struct guest *g = new_guest_by(1, COMPRESS_ZSTD);
    const struct memory_region *regions;
    uint64_t x = XORSHIFT_SEED;
    struct result r;

    (void)memory_regions(g->mem, &regions);
    for (uint64_t i = 0; i < 64 * PAGE / 8; i++) {
        xorshift(&x);
        memcpy(regions[0].host + i * 8, &x, 8);
    }
    r = migrate(g, &sound, false, false);
    cr_expect_geq(r.passed[0], 64 * PAGE);
    expect_arrival(g, &r);
}

Test(migration_lanes, know_the_names_of_their_methods)
{
    enum compress_method method;

    for (unsigned i = 0; i < COMPRESS_METHODS; i++) {
        cr_assert_eq(compress_find(&method, compress_name((enum compress_method)i)), 0);
        cr_expect_eq((unsigned)method, i);
    }
    cr_expect_eq(compress_find(&method, "gzip"), -EINVAL);
}

/* ---- what a source may say ---- */

static int hear_hello(struct target **t, struct link *source, const struct wire_transfer *transfer,
                      uint64_t length)
{
    struct snapshot hello = {0};
    int fd, err;

    cr_assert_eq(link_send_header(source), 0);
    cr_assert_eq(link_send(source, STREAM_TRANSFER, "", transfer, length), 0);
    cr_assert_eq(link_send(source, STREAM_END, "", "", 0), 0);
    err = target_hello(*t, &hello, &fd);
    snapshot_fini(&hello);
    return err;
}

static void new_pair(struct link **source, struct target **t)
{
    struct link *far;
    int pair[2];

    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    cr_assert_eq(link_create(source, pair[0], "near"), 0);
    cr_assert_eq(link_create(&far, pair[1], "far"), 0);
    cr_assert_eq(target_create(t, far), 0);
}

static int announce(uint32_t streams, uint32_t method, uint64_t length)
{
    const struct wire_transfer transfer = {.streams = htole32(streams), .method = htole32(method)};
    struct link *source;
    struct target *t;
    int err;

    new_pair(&source, &t);
    err = hear_hello(&t, source, &transfer, length);
    target_destroy(t);
    link_destroy(source);
    return err;
}

Test(migration_lanes, are_refused_when_they_are_too_many_or_of_an_unknown_method)
{
    cr_expect_eq(announce(PAGES_MAX_STREAMS, COMPRESS_LZ4, sizeof(struct wire_transfer)), 0);
    cr_expect_eq(announce(PAGES_MAX_STREAMS + 1, 0, sizeof(struct wire_transfer)), -EOPNOTSUPP);
    cr_expect_eq(announce(0, 0, sizeof(struct wire_transfer)), -EOPNOTSUPP);
    cr_expect_eq(announce(1, COMPRESS_METHODS, sizeof(struct wire_transfer)), -EOPNOTSUPP);
    cr_expect_eq(announce(1, 0, sizeof(struct wire_transfer) - 1), -EBADMSG);
}

/* What a section says of one run, and bytes that are LZ4's of 4096 zeroes but for what is changed. */
struct claim {
    uint32_t method, pages;
    int longer; /* bytes more than LZ4 made, or fewer */
    bool garbled;
};

static int receive_packed(struct claim claim)
{
    static const uint8_t page[PAGE];
    const struct wire_transfer transfer = {.streams = htole32(1), .method = htole32(COMPRESS_LZ4)};
    struct {
        struct wire_pages head;
        struct wire_run run;
        uint8_t bytes[PAGE];
    } section = {{htole32(1), htole32(claim.method)}, {0, htole32(claim.pages), 0}, {0}};
    struct guest_memory *mem = new_memory();
    struct snapshot state = {0};
    struct compressor *packer;
    struct link *source;
    struct target *t;
    size_t n;
    int err;

    new_pair(&source, &t);
    cr_assert_eq(hear_hello(&t, source, &transfer, sizeof(transfer)), 0);
    cr_assert_eq(compressor_create(&packer, COMPRESS_LZ4), 0);
    n = compressor_pack(packer, page, sizeof(page), section.bytes, sizeof(section.bytes));
    cr_assert_gt(n, 8);
    if (claim.garbled)
        memset(section.bytes, 0xFF, n);
    cr_assert_eq(link_send(source, STREAM_PACKED, "", &section,
                           sizeof(section.head) + sizeof(section.run) + n + (size_t)claim.longer),
                 0);
    link_destroy(source);
    err = target_receive(t, mem, &state);
    compressor_destroy(packer);
    target_destroy(t);
    memory_destroy(mem);
    return err;
}

Test(migration_lanes, refuse_compressed_pages_that_are_not_what_they_say)
{
    cr_expect_eq(receive_packed((struct claim){.method = COMPRESS_LZ4, .pages = 1}), -ECONNRESET,
                 "taken; then the source is gone");
    cr_expect_eq(receive_packed((struct claim){.method = COMPRESS_LZ4, .pages = 2}), -EBADMSG);
    cr_expect_eq(receive_packed((struct claim){.method = COMPRESS_LZ4, .pages = 65}), -EBADMSG);
    cr_expect_eq(receive_packed((struct claim){.method = COMPRESS_LZ4, .pages = 1025}), -EINVAL);
    cr_expect_eq(receive_packed((struct claim){.method = COMPRESS_ZSTD, .pages = 1}), -EBADMSG);
    cr_expect_eq(receive_packed((struct claim){.method = COMPRESS_LZ4, .pages = 1, .longer = 1}),
                 -EBADMSG);
    cr_expect_eq(receive_packed((struct claim){.method = COMPRESS_LZ4, .pages = 1, .longer = -1}),
                 -EBADMSG);
    cr_expect_eq(receive_packed((struct claim){.method = COMPRESS_LZ4, .pages = 1, .garbled = true}),
                 -EBADMSG);
}

/* ---- the end of a connection that has nothing to send ---- */

struct links {
    struct link *first, *further;
    int first_peer, further_peer;
};

static void make_link(struct link **link, int *peer)
{
    int pair[2];

    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    cr_assert_eq(link_create(link, pair[0], "a test"), 0);
    *peer = pair[1];
}

static struct links make_links(void)
{
    struct links l;

    make_link(&l.first, &l.first_peer);
    make_link(&l.further, &l.further_peer);
    cr_assert_eq(link_watch(l.first, l.further), 0);
    return l;
}

static void end_links(struct links *l)
{
    link_destroy(l->first);
    link_destroy(l->further);
    close(l->first_peer);
}

Test(migration_lanes, its_end_is_noticed_by_the_first_one_while_that_waits)
{
    struct links l = make_links();

    close(l.further_peer);
    cr_expect_eq(link_await(l.first, UINT32_MAX), -ECONNRESET);
    end_links(&l);
}

Test(migration_lanes, what_the_first_one_has_to_say_goes_before_the_end_of_another)
{
    struct links l = make_links();

    cr_assert_eq(write(l.first_peer, "x", 1), 1);
    close(l.further_peer);
    cr_expect_eq(link_await(l.first, UINT32_MAX), 0);
    end_links(&l);
}

Test(migration_lanes, one_that_has_carried_all_may_end)
{
    struct links l = make_links();

    close(l.further_peer);
    link_unwatch(l.first);
    cr_expect_eq(link_await(l.first, 1), -ETIMEDOUT);
    end_links(&l);
}

Test(migration_lanes, no_more_are_watched_than_there_can_be)
{
    struct links l = make_links();

    for (unsigned i = 1; i < LINK_MAX_WATCHED; i++)
        cr_assert_eq(link_watch(l.first, l.further), 0);
    cr_expect_eq(link_watch(l.first, l.further), -ENOSPC);
    close(l.further_peer);
    end_links(&l);
}
