/*
 * Whatever happens to the wire between the two sides of a migration: the guest runs on one side at
 * most, and is lost on none.
 */
#include <criterion/criterion.h>
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "tests/unit/migration_rig.h"
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

TestSuite(migration, .init = begin);

/* ---- what arrives ---- */

Test(migration, brings_memory_and_state)
{
    struct guest *g = new_guest();
    struct result r = migrate(g, &sound, false, false);
    const struct snapshot_section *device = snapshot_find(&r.arrival.state, STREAM_DEVICE, "com1");

    cr_expect_eq(r.source, 0);
    cr_expect_eq(r.target, RUNS);
    cr_expect(same_memory(g, &r));
    cr_assert_not_null(device);
    cr_expect_str_eq(device->payload, STATE);
    cr_expect_eq(r.status.phase, SOURCE_COMPLETED);
    cr_expect_eq(r.status.peer_downtime_ns, 5);
    cr_expect_not(g->logging, "the log is given up");
    end_result(&r);
    destroy_guest(g);
}

Test(migration, sends_again_what_was_written_meanwhile)
{
    struct guest *g = new_guest();
    struct result r;

    g->config.downtime_ns = 0; /* never small enough: to the timeout */
    g->config.timeout_ns = 0;
    g->writes = 40;
    g->batch = 20;
    r = migrate(g, &sound, false, false);
    cr_expect_eq(r.source, 0);
    cr_expect(same_memory(g, &r));
    cr_expect_eq(r.status.pages, 12 + 20);
    end_result(&r);
    destroy_guest(g);
}

Test(migration, brings_our_own_writes_too)
{
    struct guest *g = new_guest();
    struct result r;

    cr_assert_eq(memory_fill(g->mem, 18 * MIB, 0x44, 100), 0, "logged by nobody, before the start");
    g->own_write = true;
    r = migrate(g, &sound, false, false);
    cr_expect_eq(r.source, 0);
    cr_expect(same_memory(g, &r));
    end_result(&r);
    destroy_guest(g);
}

Test(migration, neither_sends_nor_touches_pages_that_never_were)
{
    struct guest *g = new_guest();
    struct stat before, after, there;
    struct result r;

    cr_assert_eq(fstat(memory_fd(g->mem), &before), 0);
    r = migrate(g, &sound, false, false);
    cr_assert_eq(fstat(memory_fd(g->mem), &after), 0);
    cr_assert_eq(fstat(memory_fd(r.arrival.mem), &there), 0);
    cr_expect_eq(before.st_blocks, after.st_blocks);
    cr_expect_eq(r.status.pages, 12);
    cr_expect_geq(r.status.zero_pages, SIZE / PAGE - 12);
    cr_expect_lt(r.passed[0], 14 * PAGE);
    cr_expect_leq(there.st_blocks, before.st_blocks);
    end_result(&r);
    destroy_guest(g);
}

/* The log's first reading comes when page 0 was sent as it was before. */
static int clear_page(void *opaque, unsigned region, uint64_t *bitmap)
{
    struct guest *g = opaque;

    if (region == 0 && g->writes-- == 1)
        guest_write(g, 0, 0);
    memcpy(bitmap, g->dirty[region], sizeof(g->dirty[region]) / 2);
    return 0;
}

Test(migration, tells_of_pages_that_became_zero)
{
    struct source_ops clearing = rig_ops;
    struct guest *g = new_guest();
    struct arrival a = {.mem = new_memory(), .door_fd = -1};
    struct result r = {0};
    struct source *s;
    struct link *link;
    pthread_t thread;
    int pair[2];

    g->writes = 1;
    clearing.log_get = clear_page;
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    cr_assert_eq(link_create(&link, pair[0], "the target"), 0);
    cr_assert_eq(link_create(&a.link, pair[1], "the source"), 0);
    cr_assert_eq(source_create(&s, link, g->mem, &clearing, g, &g->config), 0);
    cr_assert_eq(pthread_create(&thread, NULL, arrive_main, &a), 0);
    cr_expect_eq(leave(g, s, false), 0);
    pthread_join(thread, NULL);
    source_destroy(s);
    r.arrival = a;
    cr_expect(same_memory(g, &r));
    end_result(&r);
    destroy_guest(g);
}

Test(migration, slows_a_guest_that_writes_as_fast_as_it_is_sent)
{
    struct guest *g = new_guest();
    struct result r;

    g->config.downtime_ns = 3100000; /* less than the estimate's fixed part and a batch */
    g->config.timeout_ns = UINT64_MAX;
    g->config.throttle_max = 50;
    g->writes = 8 * 600; /* rounds of as many pages, then none */
    g->batch = 600;
    r = migrate(g, &sound, false, false);
    cr_expect_eq(r.source, 0);
    cr_expect_eq(g->most_throttle, 50);
    cr_expect_eq(g->throttle, 0, "and lets it go in the end");
    cr_expect(same_memory(g, &r));
    end_result(&r);
    destroy_guest(g);
}

/* ---- what does not happen ---- */

Test(migration, gives_up_at_the_timeout_if_asked_to)
{
    struct guest *g = new_guest();
    struct result r;

    g->config.downtime_ns = 0;
    g->config.timeout_ns = 0;
    g->config.give_up = true;
    r = migrate(g, &sound, false, false);
    cr_expect_eq(r.source, -ETIMEDOUT);
    cr_expect_eq(r.target, GAVE_UP);
    cr_expect_eq(r.status.phase, SOURCE_FAILED);
    end_result(&r);
    destroy_guest(g);
}

Test(migration, stays_when_it_is_cancelled)
{
    struct guest *g = new_guest();
    struct result r = migrate(g, &sound, true, false);

    cr_expect_eq(r.source, -ECANCELED);
    cr_expect_eq(r.target, GAVE_UP);
    cr_expect_not(g->logging);
    end_result(&r);
    destroy_guest(g);
}

Test(migration, comes_back_when_a_disk_cannot_be_taken)
{
    struct guest *g = new_guest();
    struct result r = migrate(g, &sound, false, true);

    cr_expect_eq(r.source, -EREMOTEIO);
    cr_expect_eq(r.target, GAVE_UP);
    end_result(&r);
    destroy_guest(g);
}

/* One runs, or nobody does and one of them knows that it has to ask. */
static void expect_one_guest(struct guest *g, const struct wire *faults, uint64_t at, unsigned from)
{
    struct result r = migrate(g, faults, false, false);
    bool here = r.source != 0 && r.source != -EINPROGRESS, there = r.target == RUNS;

    cr_expect_not(here && there, "two guests: byte %llu of %u", (unsigned long long)at, from);
    if (!here && !there)
        cr_expect(r.source == -EINPROGRESS, "no guest: byte %llu of %u", (unsigned long long)at,
                  from);
    if (r.source == 0)
        cr_expect(there, "nobody has it: byte %llu of %u", (unsigned long long)at, from);
    if (there)
        cr_expect(same_memory(g, &r), "another memory: byte %llu of %u", (unsigned long long)at,
                  from);
    cr_expect_not(g->logging && here);
    end_result(&r);
}

/* At each byte of the words that matter, and at many between. */
static void try_faults(enum fault fault, unsigned from)
{
    struct guest *g = new_guest();
    struct result whole = migrate(g, &sound, false, false);
    uint64_t length = whole.passed[from], at = 0;

    cr_assert_eq(whole.source, 0);
    end_result(&whole);
    while (at < length) {
        struct wire faults = {.at = {NO_FAULT, NO_FAULT}, .fault = fault};

        faults.at[from] = at;
        expect_one_guest(g, &faults, at, from);
        at += length - at > 400 && at > 300 ? 311 : 7;
    }
    destroy_guest(g);
}

Test(migration, never_doubles_a_guest_when_its_words_are_cut_off)
{
    try_faults(CUT, 0);
}

Test(migration, never_doubles_a_guest_when_the_answers_are_cut_off)
{
    try_faults(CUT, 1);
}

Test(migration, never_doubles_a_guest_when_its_words_are_spoilt)
{
    try_faults(SPOIL, 0);
}

Test(migration, never_doubles_a_guest_when_the_answers_are_spoilt)
{
    try_faults(SPOIL, 1);
}

/* ---- a destination that says no before it has heard all ---- */

Test(migration, hears_why_it_is_refused_by_one_who_does_not_listen_to_the_end)
{
    struct guest *g = new_guest();
    struct link *near, *far;
    char *report = NULL;
    struct source *s;
    int pair[2];

    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    cr_assert_eq(link_create(&near, pair[0], "the target"), 0);
    cr_assert_eq(link_create(&far, pair[1], "the source"), 0);
    cr_assert_eq(link_send_header(far), 0);
    cr_assert_eq(link_send(far, STREAM_ABORT, "", "no room", 7), 0);
    link_destroy(far);
    cr_assert_eq(source_create(&s, near, g->mem, &rig_ops, g, &g->config), 0);
    cr_expect_eq(source_introduce(s, &g->hello, &report), -EREMOTEIO);
    cr_expect_str_eq(source_reason(s), "no room");
    source_destroy(s);
    destroy_guest(g);
}

/* ---- pages that are not the guest's ---- */

static int receive_run(uint64_t gpa, uint32_t pages, uint32_t flags, uint32_t bytes)
{
    struct {
        struct wire_pages head;
        struct wire_run run;
        uint8_t bytes[2 * PAGE];
    } section = {{htole32(1), 0}, {htole64(gpa), htole32(pages), htole32(flags)}, {0}};
    struct guest_memory *mem = new_memory();
    struct snapshot state = {0};
    struct link *near, *far;
    struct target *t;
    int pair[2], err;

    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    cr_assert_eq(link_create(&near, pair[0], "near"), 0);
    cr_assert_eq(link_create(&far, pair[1], "far"), 0);
    cr_assert_eq(target_create(&t, far), 0);
    cr_assert_eq(link_send(near, STREAM_PAGES, "", &section, 8 + 16 + bytes), 0);
    link_destroy(near);
    err = target_receive(t, mem, &state);
    target_destroy(t);
    snapshot_fini(&state);
    memory_destroy(mem);
    return err;
}

Test(migration, refuses_pages_outside_of_memory)
{
    cr_expect_eq(receive_run(0, 1, 0, PAGE), -ECONNRESET, "taken; then the source is gone");
    cr_expect_eq(receive_run(4 * MIB, 1, 0, PAGE), -EINVAL);
    cr_expect_eq(receive_run(4 * MIB - PAGE, 2, 0, 2 * PAGE), -EINVAL);
    cr_expect_eq(receive_run(UINT64_MAX - PAGE + 1, 1, 0, PAGE), -EINVAL);
    cr_expect_eq(receive_run(100, 1, 0, PAGE), -EINVAL);
    cr_expect_eq(receive_run(0, 0, 0, PAGE), -EINVAL);
    cr_expect_eq(receive_run(0, 0x100000, PAGES_ZERO, 0), -EINVAL);
}

Test(migration, refuses_pages_of_another_length)
{
    cr_expect_eq(receive_run(0, 1, 0, 2 * PAGE), -EBADMSG);
    cr_expect_eq(receive_run(0, 2, 0, PAGE), -EBADMSG);
    cr_expect_eq(receive_run(0, 1, PAGES_ZERO, PAGE), -EBADMSG);
}

/* ---- addresses and checksums ---- */

Test(migration, reads_addresses)
{
    struct link_address a;

    cr_expect_eq(link_parse(&a, "tcp:hostb:4444"), 0);
    cr_expect_str_eq(a.host, "hostb");
    cr_expect_str_eq(a.port, "4444");
    cr_expect_eq(link_parse(&a, "tcp:[::1]:1"), 0);
    cr_expect_str_eq(a.host, "::1");
    cr_expect_eq(link_parse(&a, "tcp::4444"), 0);
    cr_expect_str_eq(a.host, "");
    cr_expect_eq(link_parse(&a, "unix:/run/x y"), 0);
    cr_expect_str_eq(a.path, "/run/x y");
    cr_expect(a.is_unix);
    cr_expect_eq(link_parse(&a, "tls:hostb:4444"), 0);
    cr_expect_str_eq(a.host, "hostb");
    cr_expect(a.is_tls && !a.is_unix);
}

Test(migration, names_the_file_of_a_certificate_that_is_missing)
{
    char reason[TLS_REASON_MAX] = "";
    struct tls_identity *identity;

    cr_expect_eq(tls_identity_create(&identity, "/nowhere", true, reason), -ENOENT);
    cr_expect_str_eq(reason, "/nowhere/ca-cert.pem: No such file or directory; --tls names the folder of certificates");
}

/* A connection to the port from that address of this host. */
static int connect_from(const char *from, unsigned port)
{
    struct sockaddr_in us = {.sin_family = AF_INET},
                       them = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    cr_assert_eq(inet_pton(AF_INET, from, &us.sin_addr), 1);
    cr_assert_eq(bind(fd, (struct sockaddr *)&us, sizeof(us)), 0);
    cr_assert_eq(connect(fd, (struct sockaddr *)&them, sizeof(them)), 0);
    return fd;
}

Test(migration, takes_a_guest_of_the_host_that_was_named_and_of_no_other)
{
    struct link_terms terms = {.from = "127.0.0.3", .cancel_fd = -1};
    struct link_address address;
    int listen_fd, stranger, friend;
    struct link *link;
    char byte;

    cr_assert_eq(link_parse(&address, "tcp:127.0.0.1:0"), 0);
    cr_assert_eq(link_listen(&address, &listen_fd), 0);
    stranger = connect_from("127.0.0.2", link_port(listen_fd));
    friend = connect_from("127.0.0.3", link_port(listen_fd));
    cr_assert_eq(link_accept(&link, listen_fd, &terms), 0);
    cr_expect_eq(read(stranger, &byte, 1), 0, "hung up on");
    cr_expect_eq(write(friend, "x", 1), 1);
    cr_assert_eq(link_reader(link)->fill(link_reader(link), &byte, 1), 0);
    cr_expect_eq(byte, 'x');
    link_destroy(link);
    link_unlisten(&address, listen_fd);
    close(stranger);
    close(friend);
}

Test(migration, refuses_what_is_no_address)
{
    static const char *const wrong[] = {"", "hostb:1", "tcp:", "tcp:hostb", "tcp:h:", "tcp:h:x",
                                        "tcp:h:70000", "tcp:::1:1", "unix:", "udp:h:1", "tls:h", "tls:"};
    struct link_address a;

    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        cr_expect_eq(link_parse(&a, wrong[i]), -EINVAL, "%s", wrong[i]);
}

Test(migration, computes_the_checksum_that_zlib_does)
{
    static uint8_t bytes[3000];

    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 131 ^ i >> 3);
    for (size_t length = 0; length < 700; length++)
        for (size_t at = 0; at < 3; at++) {
            const uint32_t before = (uint32_t)length * 77;
            const uint32_t wanted = (uint32_t)crc32(before, bytes + at, (uInt)length);

            cr_assert_eq(stream_crc(before, bytes + at, length), wanted);
            for (unsigned way = STREAM_CRC_WIDE; way <= STREAM_CRC_TABLE; way++)
                cr_assert_eq(stream_crc_from(way, before, bytes + at, length), wanted,
                             "%zu bytes by way %u", length, way);
        }
    cr_expect_eq(stream_crc(0, bytes, sizeof(bytes)), (uint32_t)crc32(0, bytes, sizeof(bytes)));
}
