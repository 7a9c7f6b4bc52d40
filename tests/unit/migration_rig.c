/*
 * The two sides of a migration in one process: see the header. Threads: the test's, one of the
 * destination, one for each wire.
 */
#include "tests/unit/migration_rig.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct guest_memory *new_memory(void)
{
    const struct memory_config config = {.size = SIZE, .hole_base = 4 * MIB, .hole_end = 16 * MIB};
    struct guest_memory *made;

    cr_assert_eq(memory_create(&made, &config), 0);
    return made;
}

/* ---- a guest whose log is kept by hand ---- */

void guest_write(struct guest *g, unsigned page, uint8_t byte)
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
    return 0;
}

static void throttle(void *opaque, unsigned percent)
{
    struct guest *g = opaque;

    g->throttle = percent;
    if (percent > g->most_throttle)
        g->most_throttle = percent;
}

/* ---- further connections ---- */

static int listen_somewhere(void)
{
    const struct sockaddr_un any = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    cr_assert_eq(bind(fd, (const struct sockaddr *)&any, sizeof(any.sun_family)), 0);
    cr_assert_eq(listen(fd, RIG_WIRES + 1), 0);
    return fd;
}

int rig_knock(const struct guest *g)
{
    struct sockaddr_un at;
    socklen_t length = sizeof(at);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    cr_assert_eq(getsockname(g->door_fd, (struct sockaddr *)&at, &length), 0);
    cr_assert_eq(connect(fd, (struct sockaddr *)&at, length), 0);
    return fd;
}

static void *pump(void *arg);

static int connect_further(void *opaque, struct link **out)
{
    struct guest *g = opaque;
    struct wire *w = &g->wires[g->n_wires];
    int near[2];

    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, near), 0);
    *w = g->further;
    w->ends[0] = near[1];
    w->ends[1] = rig_knock(g);
    cr_assert_eq(pthread_create(&g->pumps[g->n_wires++], NULL, pump, w), 0);
    return link_create(out, near[0], "the target");
}

const struct source_ops rig_ops = {
    .log_start = log_start,
    .log_stop = log_stop,
    .log_get = log_get,
    .log_clear = log_clear,
    .throttle = throttle,
    .connect = connect_further,
};

struct guest *new_guest(void)
{
    struct guest *g = calloc(1, sizeof(*g));

    cr_assert_not_null(g);
    g->door_fd = listen_somewhere();
    g->further = sound;
    g->wires = calloc(RIG_WIRES, sizeof(*g->wires));
    g->pumps = calloc(RIG_WIRES, sizeof(*g->pumps));
    g->mem = new_memory();
    g->config = (struct source_config){.downtime_ns = UINT64_MAX, .timeout_ns = UINT64_MAX};
    cr_assert_eq(snapshot_add(&g->hello, STREAM_HELLO, "", "{}", 2), 0);
    cr_assert_eq(snapshot_add(&g->state, STREAM_DEVICE, "com1", STATE, sizeof(STATE)), 0);
    for (unsigned page = 0; page < 12; page++)
        guest_write(g, page * 5, (uint8_t)(page + 1));
    return g;
}

void destroy_guest(struct guest *g)
{
    snapshot_fini(&g->hello);
    snapshot_fini(&g->state);
    memory_destroy(g->mem);
    close(g->door_fd);
    free(g->wires);
    free(g->pumps);
    free(g);
}

/* ---- the wire ---- */

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
            (void)!send(w->ends[!from], buffer, at, MSG_NOSIGNAL);
            return false;
        }
        buffer[at] ^= 0x20;
        w->at[from] = NO_FAULT;
    }
    w->passed[from] += (uint64_t)n;
    for (ssize_t done = 0, m; done < n; done += m) {
        m = send(w->ends[!from], buffer + done, (size_t)(n - done), MSG_NOSIGNAL);
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

void *arrive_main(void *arg)
{
    struct link_terms terms = {.cancel_fd = -1};
    struct arrival *a = arg;
    struct target *t;

    cr_assert_eq(target_create(&t, a->link), 0);
    target_set_door(t, a->door_fd, &terms);
    a->verdict = arrive(a, t);
    target_destroy(t);
    return NULL;
}

/* The source's part, as the machine does it. */
int leave(struct guest *g, struct source *s, bool cancel)
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

struct result migrate(struct guest *g, const struct wire *faults, bool cancel,
                             bool refuse_disks)
{
    struct wire wire = *faults;
    struct result r = {.arrival = {.mem = new_memory(), .door_fd = g->door_fd, .refuse_disks = refuse_disks}};
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
    cr_assert_eq(source_create(&s, link, g->mem, &rig_ops, g, &g->config), 0);
    cr_assert_eq(pthread_create(&pump_thread, NULL, pump, &wire), 0);
    cr_assert_eq(pthread_create(&target_thread, NULL, arrive_main, &r.arrival), 0);
    r.source = leave(g, s, cancel);
    source_get_status(s, &r.status);
    source_destroy(s);
    pthread_join(target_thread, NULL);
    pthread_join(pump_thread, NULL);
    for (unsigned i = 0; i < g->n_wires; i++) {
        pthread_join(g->pumps[i], NULL);
        r.further_passed[i] = g->wires[i].passed[0];
    }
    g->n_wires = 0;
    r.target = r.arrival.verdict;
    memcpy(r.passed, wire.passed, sizeof(r.passed));
    return r;
}

bool same_memory(const struct guest *g, const struct result *r)
{
    const struct memory_region *ours, *theirs;
    unsigned n = memory_regions(g->mem, &ours);
    bool same = true;

    (void)memory_regions(r->arrival.mem, &theirs);
    for (unsigned i = 0; i < n; i++)
        same = same && memcmp(ours[i].host, theirs[i].host, ours[i].size) == 0;
    return same;
}

void end_result(struct result *r)
{
    snapshot_fini(&r->arrival.state);
    memory_destroy(r->arrival.mem);
}

