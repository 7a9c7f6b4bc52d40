/*
 * Frames that come late go after a guest: the words of both sides, and their order.
 */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "tests/unit/migration_rig.h"

#define LATE "a frame that came late"

struct late {
    struct link *link;
    struct guest_memory *mem;
    char heard[200]; /* what the destination got, in its order; M: that is settled, G: it may go on */
};

static unsigned late_left; /* frames that the source still has */

static size_t take_late(void *opaque, char id[STREAM_ID_MAX], void *to, size_t size)
{
    (void)opaque;
    (void)size;
    if (late_left == 0)
        return 0;
    late_left--;
    memcpy(id, "net1", 5);
    memcpy(to, LATE, sizeof(LATE));
    return sizeof(LATE);
}

/* One more comes while the guest is announced. */
static void settle_late(void *opaque)
{
    static unsigned times;

    (void)opaque;
    late_left += times++ == 0;
}

static void hear_frames(void *opaque, const char *nic, const void *records, size_t size)
{
    struct late *l = opaque;

    cr_expect_str_eq(nic, "net1");
    cr_expect_eq(size, sizeof(LATE));
    cr_expect_str_eq(records, LATE);
    strcat(l->heard, "f");
}

static void hear_settled(void *opaque)
{
    strcat(((struct late *)opaque)->heard, "M");
}

static char *tell_first(void *opaque, bool late)
{
    (void)late;
    return strchr(((struct late *)opaque)->heard, 'M') ? strdup("{\"net1\":{}}") : NULL;
}

static void *follow_main(void *arg)
{
    static const struct target_follow_ops follow = {hear_frames, hear_settled, tell_first};
    struct snapshot hello = {0}, state = {0};
    struct late *l = arg;
    struct target *t;
    int fd;

    cr_assert_eq(target_create(&t, l->link), 0);
    cr_assert_eq(target_hello(t, &hello, &fd), 0);
    cr_assert_eq(target_report(t, "[]"), 0);
    cr_assert_eq(target_receive(t, l->mem, &state), 0);
    cr_assert_eq(target_ready(t), 0);
    target_catch_up(t, &follow, l);
    strcat(l->heard, "G");
    cr_assert_eq(target_running(t, "{\"downtime_ns\":5,\"since_go_ns\":1}"), 0);
    target_follow(t, &follow, l);
    snapshot_fini(&hello);
    snapshot_fini(&state);
    target_destroy(t);
    return NULL;
}

Test(migration_frames, frames_that_came_late_follow_before_the_guest_is_announced_and_after)
{
    struct guest *g = new_guest();
    struct source_ops late_ops = rig_ops;
    struct late l = {.mem = new_memory()};
    struct source_status status;
    struct source *s;
    struct link *link;
    pthread_t thread;
    int pair[2];

    late_left = 2;
    late_ops.take_frames = take_late;
    late_ops.settle_frames = settle_late;
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    cr_assert_eq(link_create(&link, pair[0], "the target"), 0);
    cr_assert_eq(link_create(&l.link, pair[1], "the source"), 0);
    cr_assert_eq(source_create(&s, link, g->mem, &late_ops, g, &g->config), 0);
    cr_assert_eq(pthread_create(&thread, NULL, follow_main, &l), 0);
    cr_expect_eq(leave(g, s, false), 0);
    source_follow(s);
    pthread_join(thread, NULL);
    source_get_status(s, &status);
    cr_expect_str_eq(l.heard, "ffGfM");
    cr_expect_str_eq(source_traffic(s), "{\"net1\":{}}");
    cr_expect_eq(status.peer_downtime_ns, 5);
    cr_expect_gt(status.go_ns, 0);
    source_destroy(s);
    memory_destroy(l.mem);
    destroy_guest(g);
}
