/* Unit tests of threads that run an event loop. */
#include "vmm/util/loop_thread.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "vmm/util/loop.h"

static struct loop_thread *thread;

static void create(void)
{
    cr_assert_eq(loop_thread_create(&thread, "a-name-longer-than-fifteen", 8), 0);
}

static void destroy(void)
{
    loop_thread_destroy(thread);
}

TestSuite(loop_thread, .init = create, .fini = destroy);

static int get_self(void *arg)
{
    *(pthread_t *)arg = pthread_self();
    return -EBUSY;
}

Test(loop_thread, runs_work_on_a_thread_of_its_own_and_returns_its_result)
{
    pthread_t self = pthread_self();

    cr_assert_eq(loop_thread_call(thread, get_self, &self), -EBUSY);
    cr_assert(!pthread_equal(self, pthread_self()));
}

Test(loop_thread, without_a_thread_work_runs_here)
{
    pthread_t self;

    cr_assert_eq(loop_thread_call(NULL, get_self, &self), -EBUSY);
    cr_assert(pthread_equal(self, pthread_self()));
}

static int get_name(void *arg)
{
    return pthread_getname_np(pthread_self(), arg, 16);
}

Test(loop_thread, has_as_much_of_its_name_as_fits)
{
    char name[16] = "";

    cr_assert_eq(loop_thread_call(thread, get_name, name), 0);
    cr_assert_str_eq(name, "a-name-longer-t");
}

struct work {
    struct loop *loop;
    struct loop_timer timer;
    atomic_int expired;
};

static void expired(struct loop_timer *timer)
{
    atomic_fetch_add(&((struct work *)((char *)timer - offsetof(struct work, timer)))->expired, 1);
}

static bool has_expired(void *arg)
{
    return atomic_load(&((struct work *)arg)->expired) > 0;
}

static int run_the_loop(void *arg)
{
    struct work *work = arg;

    loop_timer_set(work->loop, &work->timer, 0);
    return loop_run_until(work->loop, has_expired, work, 0);
}

Test(loop_thread, work_may_run_the_loop)
{
    struct work work = {.loop = loop_thread_loop(thread), .timer.expired = expired};

    cr_assert_eq(loop_thread_call(thread, run_the_loop, &work), 0);
    cr_assert_eq(atomic_load(&work.expired), 1);
}

struct bell {
    struct loop_event event;
    struct loop *loop;
    int fd, answer_fd;
};

static void rang(struct loop_event *event)
{
    struct bell *bell = (struct bell *)((char *)event - offsetof(struct bell, event));

    cr_assert_eq(eventfd_write(bell->answer_fd, 1), 0);
}

static int watch(void *arg)
{
    struct bell *bell = arg;

    bell->event.fired = rang;
    loop_event_add(bell->loop, &bell->event, bell->fd);
    return 0;
}

static bool is_unwatched(void *arg)
{
    return loop_event_idle(&((struct bell *)arg)->event);
}

/* The struct is the test's, and goes with it: nothing of it may be under way then. */
static int unwatch(void *arg)
{
    struct bell *bell = arg;

    loop_event_remove(&bell->event);
    return loop_run_until(bell->loop, is_unwatched, bell, 0);
}

Test(loop_thread, its_loop_runs_between_calls)
{
    struct bell bell = {.loop = loop_thread_loop(thread), .fd = eventfd(0, EFD_NONBLOCK),
                        .answer_fd = eventfd(0, 0)};
    eventfd_t count;

    loop_thread_call(thread, watch, &bell);
    cr_assert_eq(eventfd_write(bell.fd, 1), 0);
    cr_assert_eq(eventfd_read(bell.answer_fd, &count), 0); /* waits for the other thread */
    cr_assert_geq(count, 1);
    cr_assert_eq(loop_thread_call(thread, unwatch, &bell), 0);
    close(bell.fd);
    close(bell.answer_fd);
}

static int add_one(void *arg)
{
    return ++*(int *)arg;
}

Test(loop_thread, calls_run_one_after_the_other)
{
    int sum = 0;

    for (int i = 1; i <= 1000; i++)
        cr_assert_eq(loop_thread_call(thread, add_one, &sum), i);
}
