/*
 * Both sides of a migration in one process, with a wire between them that a test can cut or spoil at
 * any byte. Whatever happens to it, the guest runs on one side at most, and is lost on none.
 */
#include <criterion/criterion.h>
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "migration/pages.h"
#include "migration/source.h"
#include "migration/target.h"
#include "vmm/util/log.h"

#define PAGE 4096ull
#define SIZE (8 * MIB)
#define NO_FAULT UINT64_MAX
#define STATE "registers of the guest"

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

static struct guest_memory *new_memory(void)
{
    const struct memory_config config = {.size = SIZE, .hole_base = 4 * MIB, .hole_end = 16 * MIB};
    struct guest_memory *made;

    cr_assert_eq(memory_create(&made, &config), 0);
    return made;
}

/* ---- a guest whose log is kept by hand ---- */

struct guest {
    struct guest_memory *mem;
    struct source_config config;
    uint64_t dirty[2][SIZE / PAGE / 64];
    bool logging;
    bool own_write;  /* of a device, when the log is read first */
    unsigned writes; /* pages that it still writes, one batch each time the log is read */
    unsigned batch;
    unsigned throttle, most_throttle;
    unsigned cleared;
    struct source *source; /* to be cancelled at the first look into the log, or NULL */
    struct snapshot hello, state;
};

static void guest_write(struct guest *g, unsigned page, uint8_t byte)
{
    const struct memory_region *regions;

    (void)memory_regions(g->mem, &regions);
    memset(regions[page % 2].host + page / 2 * PAGE, byte, PAGE);
    g->dirty[page % 2][page / 2 / 64] |= 1ull << page / 2 % 64;
}

static int log_start(void *opaque)
{
    ((struct guest *)opaque)->logging = true;
    return 0;
}

static void log_stop(void *opaque)
{
    ((struct guest *)opaque)->logging = false;
}

static int log_get(void *opaque, unsigned region, uint64_t *bitmap)
{
    struct guest *g = opaque;

    for (unsigned i = 0; region == 0 && i < g->batch && g->writes > 0; i++, g->writes--)
        guest_write(g, i * 3, (uint8_t)(g->writes + 1));
    memcpy(bitmap, g->dirty[region], sizeof(g->dirty[region]) / 2);
    if (region == 0 && g->own_write)
        cr_assert_eq(memory_fill(g->mem, 17 * MIB, 0x55, 100), 0);
    g->own_write = false;
    if (g->source)
        (void)source_cancel(g->source);
    return 0;
}

static int log_clear(void *opaque, unsigned region, uint64_t first, uint64_t pages,
                     const uint64_t *bits)
{
    struct guest *g = opaque;

    for (uint64_t i = 0; i < (pages + 63) / 64; i++)
        g->dirty[region][first / 64 + i] &= ~bits[i];
    g->cleared++;
    return 0;
}

static void throttle(void *opaque, unsigned percent)
{
    struct guest *g = opaque;

    g->throttle = percent;
    if (percent > g->most_throttle)
        g->most_throttle = percent;
}

static const struct source_ops ops = {log_start, log_stop, log_get, log_clear, throttle};

static struct guest *new_guest(void)
{
    struct guest *g = calloc(1, sizeof(*g));

    cr_assert_not_null(g);
    g->mem = new_memory();
    g->config = (struct source_config){.downtime_ns = UINT64_MAX, .timeout_ns = UINT64_MAX};
    cr_assert_eq(snapshot_add(&g->hello, STREAM_HELLO, "", "{}", 2), 0);
    cr_assert_eq(snapshot_add(&g->state, STREAM_DEVICE, "com1", STATE, sizeof(STATE)), 0);
    for (unsigned page = 0; page < 12; page++)
        guest_write(g, page * 5, (uint8_t)(page + 1));
    return g;
}

static void destroy_guest(struct guest *g)
{
    snapshot_fini(&g->hello);
    snapshot_fini(&g->state);
    memory_destroy(g->mem);
    free(g);
}

/* ---- the wire ---- */

enum fault { CUT, SPOIL };

struct wire {
    int ends[2];      /* the pump's */
    uint64_t at[2];   /* bytes of each direction, 0: from the source, before the fault */
    enum fault fault;
    uint64_t passed[2];
};

static bool pass(struct wire *w, unsigned from)
{
    uint8_t buffer[16384];
    ssize_t n = read(w->ends[from], buffer, sizeof(buffer));
    uint64_t begin_at = w->passed[from];

    if (n <= 0)
        return false;
    if (w->at[from] != NO_FAULT && begin_at + (uint64_t)n > w->at[from]) {
        uint64_t at = w->at[from] - begin_at;

        if (w->fault == CUT) {
            (void)!write(w->ends[!from], buffer, at);
            return false;
        }
        buffer[at] ^= 0x20;
        w->at[from] = NO_FAULT;
    }
    w->passed[from] += (uint64_t)n;
    for (ssize_t done = 0, m; done < n; done += m) {
        m = write(w->ends[!from], buffer + done, (size_t)(n - done));
        if (m <= 0)
            return false;
    }
    return true;
}

static void *pump(void *arg)
{
    struct wire *w = arg;
    bool open = true;

    while (open) {
        struct pollfd fds[2] = {{.fd = w->ends[0], .events = POLLIN},
                                {.fd = w->ends[1], .events = POLLIN}};

        if (poll(fds, 2, -1) < 0)
            break;
        for (unsigned i = 0; open && i < 2; i++)
            if (fds[i].revents)
                open = pass(w, i);
    }
    close(w->ends[0]);
    close(w->ends[1]);
    return NULL;
}

/* ---- the two sides ---- */

enum verdict { GAVE_UP, DOUBT, RUNS };

struct arrival {
    struct link *link;
    struct guest_memory *mem;
    struct snapshot state;
    bool refuse_disks; /* after the right to run came */
    enum verdict verdict;
};

static enum verdict arrive(struct arrival *a, struct target *t)
{
    struct snapshot hello = {0};
    int fd, err = target_hello(t, &hello, &fd);

    snapshot_fini(&hello);
    if (!err)
        err = target_report(t, "[]");
    if (!err)
        err = target_receive(t, a->mem, &a->state);
    if (err) {
        if (err != -ECONNRESET)
            target_refuse(t, "damaged");
        return GAVE_UP;
    }
    err = target_ready(t);
    if (err)
        return err == -ECANCELED ? GAVE_UP : DOUBT;
    if (a->refuse_disks) {
        target_refuse(t, "a disk was taken");
        return GAVE_UP;
    }
    (void)target_running(t, "{\"downtime_ns\":5}");
    return RUNS;
}

static void *arrive_main(void *arg)
{
    struct arrival *a = arg;
    struct target *t;

    cr_assert_eq(target_create(&t, a->link), 0);
    a->verdict = arrive(a, t);
    target_destroy(t);
    return NULL;
}

/* The source's part, as the machine does it. */
static int leave(struct guest *g, struct source *s, bool cancel)
{
    char *report = NULL;
    int err = source_introduce(s, &g->hello, &report);

    free(report);
    if (cancel)
        g->source = s;
    if (!err)
        err = source_copy(s);
    g->source = NULL;
    if (err)
        return err;
    source_stopping(s);
    err = source_finish(s, &g->state, false);
    return err ? err : source_hand_over(s);
}

struct result {
    int source;
    enum verdict target;
    struct source_status status;
    uint64_t passed[2];
    struct arrival arrival; /* its memory and state, to be freed */
};

static struct result migrate(struct guest *g, const struct wire *faults, bool cancel,
                             bool refuse_disks)
{
    struct wire wire = *faults;
    struct result r = {.arrival = {.mem = new_memory(), .refuse_disks = refuse_disks}};
    pthread_t pump_thread, target_thread;
    int near[2], far[2];
    struct source *s;
    struct link *link;

    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, near), 0);
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, far), 0);
    wire.ends[0] = near[1];
    wire.ends[1] = far[0];
    cr_assert_eq(link_create(&link, near[0], "the target"), 0);
    cr_assert_eq(link_create(&r.arrival.link, far[1], "the source"), 0);
    cr_assert_eq(source_create(&s, link, g->mem, &ops, g, &g->config), 0);
    cr_assert_eq(pthread_create(&pump_thread, NULL, pump, &wire), 0);
    cr_assert_eq(pthread_create(&target_thread, NULL, arrive_main, &r.arrival), 0);
    r.source = leave(g, s, cancel);
    source_get_status(s, &r.status);
    source_destroy(s);
    pthread_join(target_thread, NULL);
    pthread_join(pump_thread, NULL);
    r.target = r.arrival.verdict;
    memcpy(r.passed, wire.passed, sizeof(r.passed));
    return r;
}

static const struct wire sound = {.at = {NO_FAULT, NO_FAULT}};

static bool same_memory(const struct guest *g, const struct result *r)
{
    const struct memory_region *ours, *theirs;
    unsigned n = memory_regions(g->mem, &ours);
    bool same = true;

    (void)memory_regions(r->arrival.mem, &theirs);
    for (unsigned i = 0; i < n; i++)
        same = same && memcmp(ours[i].host, theirs[i].host, ours[i].size) == 0;
    return same;
}

static void end_result(struct result *r)
{
    snapshot_fini(&r->arrival.state);
    memory_destroy(r->arrival.mem);
}

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
    static const struct source_ops clearing = {log_start, log_stop, clear_page, log_clear, throttle};
    struct guest *g = new_guest();
    struct arrival a = {.mem = new_memory()};
    struct result r = {0};
    struct source *s;
    struct link *link;
    pthread_t thread;
    int pair[2];

    g->writes = 1;
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
    struct link_address address;
    int listen_fd, stranger, friend;
    struct link *link;
    char byte;

    cr_assert_eq(link_parse(&address, "tcp:127.0.0.1:0"), 0);
    cr_assert_eq(link_listen(&address, &listen_fd), 0);
    stranger = connect_from("127.0.0.2", link_port(listen_fd));
    friend = connect_from("127.0.0.3", link_port(listen_fd));
    cr_assert_eq(link_accept(&link, listen_fd, "127.0.0.3"), 0);
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
                                        "tcp:h:70000", "tcp:::1:1", "unix:", "udp:h:1"};
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
        for (size_t at = 0; at < 3; at++)
            cr_assert_eq(stream_crc((uint32_t)length * 77, bytes + at, length),
                         (uint32_t)crc32((uLong)length * 77, bytes + at, (uInt)length));
    cr_expect_eq(stream_crc(0, bytes, sizeof(bytes)), (uint32_t)crc32(0, bytes, sizeof(bytes)));
}
