/*
 * The event loop against the real kernel: operations, eventfd watches, timers, calls from other
 * threads, hooks, stopping, and destruction with operations pending. Waits on events, never on
 * time; a deadline only turns a hang into a failure.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm/util/loop.h"

#define DEADLINE_NS 20000000000ull

static struct loop *loop;

static void make_loop(void)
{
    cr_assert_eq(loop_create(&loop, 32), 0);
}

static void drop_loop(void)
{
    loop_destroy(loop);
}

TestSuite(loop, .init = make_loop, .fini = drop_loop, .timeout = 60);

struct counted_op {
    struct loop_op op;
    int runs, result;
};

static void count_done(struct loop_op *op, int result)
{
    struct counted_op *c = (struct counted_op *)op;

    c->runs++;
    c->result = result;
}

static bool op_finished(void *arg)
{
    return !((struct counted_op *)arg)->op.pending;
}

static void wait_op(struct counted_op *c)
{
    cr_assert_eq(loop_run_until(loop, op_finished, c, DEADLINE_NS), 0);
}

static int temp_file(void)
{
    int fd = memfd_create("test", MFD_CLOEXEC);

    cr_assert_geq(fd, 0);
    return fd;
}

Test(loop, an_operation_finishes_on_the_loop_and_not_inside_its_start)
{
    int fd = temp_file();
    struct counted_op w = {.op.done = count_done};

    loop_write(loop, &w.op, fd, "hello", 5, 0);
    cr_assert(w.op.pending);
    cr_assert_eq(w.runs, 0);
    wait_op(&w);
    cr_assert_eq(w.runs, 1);
    cr_assert_eq(w.result, 5);
    close(fd);
}

Test(loop, vectors_are_written_and_read_at_their_offset)
{
    int fd = temp_file();
    char a[4] = "abc", b[4] = "def", c[3] = {0}, d[3] = {0};
    struct iovec out[2] = {{a, 3}, {b, 3}}, in[2] = {{c, 2}, {d, 3}};
    struct counted_op op = {.op.done = count_done};

    loop_writev(loop, &op.op, fd, out, 2, 100);
    wait_op(&op);
    cr_assert_eq(op.result, 6);
    loop_readv(loop, &op.op, fd, in, 2, 101);
    wait_op(&op);
    cr_assert_eq(op.result, 5);
    cr_assert_arr_eq(c, "bc", 2);
    cr_assert_arr_eq(d, "def", 3);
    close(fd);
}

Test(loop, reading_past_the_end_gives_zero_and_a_bad_descriptor_its_error)
{
    int fd = temp_file();
    char buf[8];
    struct counted_op op = {.op.done = count_done};

    loop_read(loop, &op.op, fd, buf, sizeof(buf), 1000);
    wait_op(&op);
    cr_assert_eq(op.result, 0);
    loop_read(loop, &op.op, -1, buf, sizeof(buf), 0);
    wait_op(&op);
    cr_assert_eq(op.result, -EBADF);
    close(fd);
}

Test(loop, a_file_is_extended_by_fallocate_and_synchronised)
{
    int fd = temp_file();
    struct counted_op op = {.op.done = count_done};

    loop_fallocate(loop, &op.op, fd, 0, 0, 8192);
    wait_op(&op);
    cr_assert_eq(op.result, 0);
    cr_assert_eq(lseek(fd, 0, SEEK_END), 8192);
    loop_fdatasync(loop, &op.op, fd);
    wait_op(&op);
    cr_assert_eq(op.result, 0);
    close(fd);
}

Test(loop, more_operations_than_slots_all_finish)
{
    enum { N = 1000 };
    int fd = temp_file();
    struct counted_op *ops = calloc(N, sizeof(*ops));
    char byte = 'x';

    for (int i = 0; i < N; i++) {
        ops[i].op.done = count_done;
        loop_write(loop, &ops[i].op, fd, &byte, 1, (uint64_t)i);
    }
    for (int i = 0; i < N; i++)
        wait_op(&ops[i]);
    for (int i = 0; i < N; i++) {
        cr_assert_eq(ops[i].runs, 1);
        cr_assert_eq(ops[i].result, 1);
    }
    free(ops);
    close(fd);
}

Test(loop, more_waits_than_the_completion_queue_holds_all_finish)
{
    enum { N = 500 };
    struct counted_op *ops = calloc(N, sizeof(*ops));
    int pipes[2];

    cr_assert_eq(pipe2(pipes, O_CLOEXEC), 0);
    for (int i = 0; i < N; i++) {
        ops[i].op.done = count_done;
        loop_poll(loop, &ops[i].op, pipes[0], POLLIN);
    }
    cr_assert_eq(write(pipes[1], "x", 1), 1);
    for (int i = 0; i < N; i++) {
        wait_op(&ops[i]);
        cr_assert_eq(ops[i].runs, 1);
        cr_assert(ops[i].result & POLLIN);
    }
    free(ops);
    close(pipes[0]);
    close(pipes[1]);
}

Test(loop, a_stream_is_read_from_where_it_stands)
{
    int pipes[2];
    char buf[4];
    struct counted_op op = {.op.done = count_done};

    cr_assert_eq(pipe2(pipes, O_CLOEXEC), 0);
    loop_read(loop, &op.op, pipes[0], buf, sizeof(buf), LOOP_STREAM);
    cr_assert_eq(write(pipes[1], "abcdef", 6), 6);
    wait_op(&op);
    cr_assert_eq(op.result, 4);
    loop_read(loop, &op.op, pipes[0], buf, sizeof(buf), LOOP_STREAM);
    wait_op(&op);
    cr_assert_eq(op.result, 2);
    cr_assert_arr_eq(buf, "ef", 2);
    close(pipes[0]);
    close(pipes[1]);
}

Test(loop, a_cancelled_wait_ends_with_ECANCELED)
{
    int pipes[2];
    struct counted_op op = {.op.done = count_done};

    cr_assert_eq(pipe2(pipes, O_CLOEXEC), 0);
    loop_cancel(loop, &op.op); /* not pending: nothing happens */
    loop_poll(loop, &op.op, pipes[0], POLLIN);
    loop_cancel(loop, &op.op);
    wait_op(&op);
    cr_assert_eq(op.runs, 1);
    cr_assert_eq(op.result, -ECANCELED);
    close(pipes[0]);
    close(pipes[1]);
}

static bool never(void *arg)
{
    (void)arg;
    return false;
}

Test(loop, a_run_with_a_deadline_times_out)
{
    cr_assert_eq(loop_run_until(loop, never, NULL, 1000000), -ETIMEDOUT);
}

/* ---- events ---- */

struct counted_event {
    struct loop_event event;
    int runs;
};

static void count_fired(struct loop_event *event)
{
    ((struct counted_event *)event)->runs++;
}

static bool event_ran(void *arg)
{
    return ((struct counted_event *)arg)->runs > 0;
}

static bool event_idle(void *arg)
{
    return loop_event_idle(&((struct counted_event *)arg)->event);
}

static void kick(int fd)
{
    uint64_t one = 1;

    cr_assert_eq(write(fd, &one, sizeof(one)), (ssize_t)sizeof(one));
}

Test(loop, an_event_fires_for_every_later_write_and_for_one_made_before)
{
    struct counted_event e = {.event.fired = count_fired};
    int fd = eventfd(0, EFD_CLOEXEC);

    kick(fd);
    loop_event_add(loop, &e.event, fd);
    for (int i = 0; i < 100; i++) {
        cr_assert_eq(loop_run_until(loop, event_ran, &e, DEADLINE_NS), 0);
        e.runs = 0;
        kick(fd);
    }
    cr_assert_eq(loop_run_until(loop, event_ran, &e, DEADLINE_NS), 0);
    loop_event_remove(&e.event);
    cr_assert_eq(loop_run_until(loop, event_idle, &e, DEADLINE_NS), 0);
    close(fd);
}

Test(loop, writes_made_together_fire_once)
{
    struct counted_event e = {.event.fired = count_fired};
    int fd = eventfd(0, EFD_CLOEXEC);

    loop_event_add(loop, &e.event, fd);
    for (int i = 0; i < 50; i++)
        kick(fd);
    cr_assert_eq(loop_run_until(loop, event_ran, &e, DEADLINE_NS), 0);
    cr_assert_eq(loop_run_until(loop, never, NULL, 1000000), -ETIMEDOUT);
    cr_assert_eq(e.runs, 1);
    loop_event_remove(&e.event);
    close(fd);
    cr_assert_eq(loop_run_until(loop, event_idle, &e, DEADLINE_NS), 0);
}

Test(loop, a_removed_event_is_silent_even_for_a_write_made_before_its_removal)
{
    struct counted_event e = {.event.fired = count_fired};
    int fd = eventfd(0, EFD_CLOEXEC);

    loop_event_add(loop, &e.event, fd);
    cr_assert_eq(loop_run_until(loop, never, NULL, 1000000), -ETIMEDOUT);
    kick(fd);
    loop_event_remove(&e.event);
    kick(fd);
    cr_assert_eq(loop_run_until(loop, event_idle, &e, DEADLINE_NS), 0);
    cr_assert_eq(e.runs, 0);
    close(fd);
}

Test(loop, an_event_added_again_before_it_was_idle_fires_again)
{
    struct counted_event e = {.event.fired = count_fired};
    int fd = eventfd(0, EFD_CLOEXEC);

    loop_event_add(loop, &e.event, fd);
    kick(fd);
    cr_assert_eq(loop_run_until(loop, event_ran, &e, DEADLINE_NS), 0);
    loop_event_remove(&e.event);
    loop_event_add(loop, &e.event, fd);
    cr_assert_eq(loop_run_until(loop, never, NULL, 1000000), -ETIMEDOUT);
    e.runs = 0;
    kick(fd);
    cr_assert_eq(loop_run_until(loop, event_ran, &e, DEADLINE_NS), 0);
    loop_event_remove(&e.event);
    cr_assert_eq(loop_run_until(loop, event_idle, &e, DEADLINE_NS), 0);
    close(fd);
}

Test(loop, removal_empties_the_counter_so_that_a_new_watch_starts_silent)
{
    struct counted_event e = {.event.fired = count_fired};
    int fd = eventfd(0, EFD_CLOEXEC);

    loop_event_add(loop, &e.event, fd);
    kick(fd);
    cr_assert_eq(loop_run_until(loop, event_ran, &e, DEADLINE_NS), 0);
    loop_event_remove(&e.event);
    cr_assert_eq(loop_run_until(loop, event_idle, &e, DEADLINE_NS), 0);
    e.runs = 0;
    loop_event_add(loop, &e.event, fd);
    cr_assert_eq(loop_run_until(loop, never, NULL, 1000000), -ETIMEDOUT);
    cr_assert_eq(e.runs, 0);
    loop_event_remove(&e.event);
    cr_assert_eq(loop_run_until(loop, event_idle, &e, DEADLINE_NS), 0);
    close(fd);
}

/* ---- timers ---- */

static int order[8], n_order;

struct numbered_timer {
    struct loop_timer timer;
    int number;
};

static void note_timer(struct loop_timer *timer)
{
    cr_assert(!timer->armed);
    order[n_order++] = ((struct numbered_timer *)timer)->number;
}

static bool some_ran(void *arg)
{
    return n_order >= *(int *)arg;
}

Test(loop, timers_expire_in_the_order_of_their_moments)
{
    struct numbered_timer t[3] = {
        {{.expired = note_timer}, 0}, {{.expired = note_timer}, 1}, {{.expired = note_timer}, 2}};
    uint64_t now = loop_now_ns();
    int want = 3;

    loop_timer_set(loop, &t[0].timer, now + 3000000);
    loop_timer_set(loop, &t[1].timer, now + 1000000);
    loop_timer_set(loop, &t[2].timer, now + 2000000);
    cr_assert_eq(loop_run_until(loop, some_ran, &want, DEADLINE_NS), 0);
    cr_assert_arr_eq(order, ((int[]){1, 2, 0}), sizeof(int[3]));
    cr_assert_geq(loop_now_ns(), now + 3000000);
}

Test(loop, a_timer_set_again_moves_and_a_cancelled_one_is_silent)
{
    struct numbered_timer t[3] = {
        {{.expired = note_timer}, 0}, {{.expired = note_timer}, 1}, {{.expired = note_timer}, 2}};
    uint64_t now = loop_now_ns();
    int want = 2;

    loop_timer_set(loop, &t[0].timer, now);
    loop_timer_set(loop, &t[1].timer, now);
    loop_timer_set(loop, &t[2].timer, now + 1000000);
    loop_timer_set(loop, &t[0].timer, now + 2000000);
    loop_timer_cancel(&t[1].timer);
    loop_timer_cancel(&t[1].timer);
    cr_assert_eq(loop_run_until(loop, some_ran, &want, DEADLINE_NS), 0);
    cr_assert_eq(n_order, 2);
    cr_assert_arr_eq(order, ((int[]){2, 0}), sizeof(int[2]));
    cr_assert(!t[1].timer.armed);
}

static unsigned again_runs;

static void set_again(struct loop_timer *timer)
{
    again_runs++;
    loop_timer_set(loop, timer, 0);
}

Test(loop, a_timer_that_is_always_due_leaves_room_for_operations)
{
    struct loop_timer t = {.expired = set_again};
    int fd = temp_file();
    struct counted_op w = {.op.done = count_done};

    loop_timer_set(loop, &t, 0);
    loop_write(loop, &w.op, fd, "x", 1, 0);
    wait_op(&w);
    cr_assert_eq(w.result, 1);
    cr_assert_gt(again_runs, 0);
    loop_timer_cancel(&t);
    close(fd);
}

/* ---- calls ---- */

struct counted_call {
    struct loop_call call;
    int seen, runs;
    int payload; /* written before loop_call(), read by run: no atomics, loop_call() orders it */
};

static void note_call(struct loop_call *call)
{
    struct counted_call *c = (struct counted_call *)call;

    c->runs++;
    c->seen = c->payload;
}

static bool call_ran(void *arg)
{
    return ((struct counted_call *)arg)->runs > 0;
}

Test(loop, a_call_queued_twice_runs_once)
{
    struct counted_call c = {.call.run = note_call, .payload = 7};

    loop_call(loop, &c.call);
    loop_call(loop, &c.call);
    cr_assert_eq(c.runs, 0);
    cr_assert_eq(loop_run_until(loop, call_ran, &c, DEADLINE_NS), 0);
    cr_assert_eq(loop_run_until(loop, never, NULL, 1000000), -ETIMEDOUT);
    cr_assert_eq(c.runs, 1);
    cr_assert_eq(c.seen, 7);
}

static void note_order(struct loop_call *call)
{
    order[n_order++] = ((struct counted_call *)call)->payload;
}

Test(loop, calls_run_in_the_order_they_were_made)
{
    struct counted_call c[3];
    int want = 3;

    for (int i = 0; i < 3; i++) {
        c[i] = (struct counted_call){.call.run = note_order, .payload = i};
        loop_call(loop, &c[i].call);
    }
    cr_assert_eq(loop_run_until(loop, some_ran, &want, DEADLINE_NS), 0);
    cr_assert_arr_eq(order, ((int[]){0, 1, 2}), sizeof(int[3]));
}

Test(loop, a_call_taken_back_does_not_run_and_the_others_do)
{
    for (int taken = 0; taken < 3; taken++) {
        struct counted_call c[3];
        int want = 2;

        n_order = 0;
        for (int i = 0; i < 3; i++) {
            c[i] = (struct counted_call){.call.run = note_order, .payload = i};
            loop_call(loop, &c[i].call);
        }
        loop_call_cancel(loop, &c[taken].call);
        cr_assert(!atomic_load(&c[taken].call.queued));
        cr_assert_eq(loop_run_until(loop, some_ran, &want, DEADLINE_NS), 0);
        cr_assert_eq(loop_run_until(loop, never, NULL, 1000000), -ETIMEDOUT);
        cr_assert_eq(n_order, 2);
        cr_assert_eq(order[0], taken == 0 ? 1 : 0);
        cr_assert_eq(order[1], taken == 2 ? 1 : 2);
    }
}

static struct counted_call cancelled_call = {.call.run = note_order, .payload = 9};

static void cancel_the_next(struct loop_call *call)
{
    loop_call_cancel(loop, &cancelled_call.call);
    note_order(call);
}

Test(loop, a_call_may_take_back_the_one_after_it)
{
    struct counted_call first = {.call.run = cancel_the_next, .payload = 1};
    struct counted_call last = {.call.run = note_order, .payload = 2};
    int want = 2;

    loop_call(loop, &first.call);
    loop_call(loop, &cancelled_call.call);
    loop_call(loop, &last.call);
    cr_assert_eq(loop_run_until(loop, some_ran, &want, DEADLINE_NS), 0);
    cr_assert_eq(n_order, 2);
    cr_assert_arr_eq(order, ((int[]){1, 2}), sizeof(int[2]));
}

Test(loop, taking_back_a_call_that_is_not_queued_does_nothing)
{
    struct counted_call c = {.call.run = note_order, .payload = 1};
    int want = 1;

    loop_call_cancel(loop, &c.call);
    loop_call(loop, &c.call);
    cr_assert_eq(loop_run_until(loop, some_ran, &want, DEADLINE_NS), 0);
}

#define PING_PONGS 20000

struct ping_pong {
    struct loop_call call;
    atomic_int answered;
    int asked, n;
};

static void answer(struct loop_call *call)
{
    struct ping_pong *p = (struct ping_pong *)call;

    p->n++;
    atomic_store(&p->answered, p->asked);
    if (p->n == PING_PONGS)
        loop_stop(loop);
}

/* Asks again at once when answered, which is just when the loop goes to sleep. */
static void *ask(void *arg)
{
    struct ping_pong *p = arg;

    for (int i = 1; i <= PING_PONGS; i++) {
        p->asked = i;
        loop_call(loop, &p->call);
        while (atomic_load(&p->answered) != i)
            sched_yield();
    }
    return NULL;
}

Test(loop, no_call_is_lost_to_a_loop_that_falls_asleep)
{
    struct ping_pong p = {.call.run = answer};
    pthread_t thread;

    cr_assert_eq(pthread_create(&thread, NULL, ask, &p), 0);
    cr_assert_eq(loop_run(loop), 0);
    cr_assert_eq(pthread_join(thread, NULL), 0);
    cr_assert_eq(p.n, PING_PONGS);
}

#define CALLERS 3
#define CALLS_EACH 5000

static struct counted_call shared_calls[CALLERS][8];
static atomic_int callers_left = CALLERS;
static struct loop_call last_call;

static void *call_many(void *arg)
{
    struct counted_call *mine = arg;

    for (int i = 0; i < CALLS_EACH; i++)
        loop_call(loop, &mine[i % 8].call);
    if (atomic_fetch_sub(&callers_left, 1) == 1)
        loop_call(loop, &last_call);
    return NULL;
}

static void stop_by_call(struct loop_call *call)
{
    (void)call;
    loop_stop(loop);
}

static void count_call(struct loop_call *call)
{
    ((struct counted_call *)call)->runs++;
}

Test(loop, calls_of_several_threads_each_run_after_they_were_made)
{
    pthread_t threads[CALLERS];

    last_call.run = stop_by_call;
    for (int t = 0; t < CALLERS; t++) {
        for (int i = 0; i < 8; i++)
            shared_calls[t][i].call.run = count_call;
        cr_assert_eq(pthread_create(&threads[t], NULL, call_many, shared_calls[t]), 0);
    }
    cr_assert_eq(loop_run(loop), 0);
    for (int t = 0; t < CALLERS; t++) {
        cr_assert_eq(pthread_join(threads[t], NULL), 0);
        for (int i = 0; i < 8; i++) {
            cr_assert_geq(shared_calls[t][i].runs, 1);
            cr_assert_leq(shared_calls[t][i].runs, CALLS_EACH / 8);
            cr_assert(!atomic_load(&shared_calls[t][i].call.queued));
        }
    }
}

/* ---- hooks ---- */

struct starting_hook {
    struct loop_hook hook;
    struct counted_op *op;
    int fd, runs;
};

static void start_from_hook(struct loop_hook *hook)
{
    struct starting_hook *h = (struct starting_hook *)hook;

    if (h->runs++ == 0)
        loop_write(loop, &h->op->op, h->fd, "x", 1, 0);
}

static bool op_ran(void *arg)
{
    return ((struct counted_op *)arg)->runs > 0;
}

Test(loop, what_a_hook_starts_before_the_sleep_is_carried_out)
{
    struct counted_op w = {.op.done = count_done};
    struct starting_hook h = {.hook.prepare = start_from_hook, .op = &w, .fd = temp_file()};
    int runs;

    loop_hook_add(loop, &h.hook);
    cr_assert_eq(loop_run_until(loop, op_ran, &w, DEADLINE_NS), 0);
    cr_assert_eq(w.result, 1);
    loop_hook_remove(loop, &h.hook);
    runs = h.runs;
    cr_assert_eq(loop_run_until(loop, never, NULL, 1000000), -ETIMEDOUT);
    cr_assert_eq(h.runs, runs);
    close(h.fd);
}

struct call_hook {
    struct loop_hook hook;
    struct counted_call *call;
};

static void call_from_hook(struct loop_hook *hook)
{
    struct call_hook *h = (struct call_hook *)hook;

    if (!h->call->runs)
        loop_call(loop, &h->call->call);
}

Test(loop, a_call_made_by_a_hook_runs_without_anything_else_waking_the_loop)
{
    struct counted_call c = {.call.run = note_call};
    struct call_hook h = {{.prepare = call_from_hook}, &c};

    loop_hook_add(loop, &h.hook);
    cr_assert_eq(loop_run_until(loop, call_ran, &c, DEADLINE_NS), 0);
    loop_hook_remove(loop, &h.hook);
    cr_assert_eq(c.runs, 1);
}

struct working_hook {
    struct loop_hook hook;
    bool worked;
};

static void work_in_hook(struct loop_hook *hook)
{
    ((struct working_hook *)hook)->worked = true;
}

static bool has_worked(void *arg)
{
    return ((struct working_hook *)arg)->worked;
}

Test(loop, who_waits_for_what_a_hook_does_does_not_sleep_first)
{
    struct working_hook h = {.hook.prepare = work_in_hook};

    loop_hook_add(loop, &h.hook);
    /* Nothing would wake it: no operation, no timer, no deadline. */
    cr_assert_eq(loop_run_until(loop, has_worked, &h, 0), 0);
    loop_hook_remove(loop, &h.hook);
}

static void remove_both(struct loop_hook *hook)
{
    struct starting_hook *h = (struct starting_hook *)hook;

    h->runs++;
    for (int i = 0; i < 2; i++)
        loop_hook_remove(loop, &(h - h->fd)[i].hook);
}

Test(loop, a_hook_may_remove_itself_and_the_next)
{
    struct starting_hook h[2] = {{.hook.prepare = remove_both, .fd = 0},
                                 {.hook.prepare = remove_both, .fd = 1}};

    loop_hook_add(loop, &h[0].hook);
    loop_hook_add(loop, &h[1].hook);
    cr_assert_eq(loop_run_until(loop, never, NULL, 1000000), -ETIMEDOUT);
    cr_assert_eq(h[0].runs + h[1].runs, 1);
}

/* ---- polling ---- */

#define HOUR_NS 3600000000000ull

/* A source of work with a flag that says whether it is to tell, as a driver and its queue have. */
struct source {
    struct loop_poller poller;
    struct loop_event event;
    int fd;
    atomic_int there;   /* pieces of work */
    atomic_bool tell;   /* whether its bell is to be rung for the next */
    int done, polls, on, off;
};

static bool do_work(struct source *s)
{
    int n = atomic_exchange(&s->there, 0);

    s->done += n;
    return n > 0;
}

static bool source_poll(struct loop_poller *poller)
{
    struct source *s = (struct source *)poller;

    s->polls++;
    return do_work(s);
}

static bool source_polled(struct loop_poller *poller, bool on)
{
    struct source *s = (struct source *)poller;

    s->on += on;
    s->off += !on;
    atomic_store(&s->tell, !on);
    return !on && do_work(s);
}

static void source_rang(struct loop_event *event)
{
    do_work((struct source *)((char *)event - offsetof(struct source, event)));
}

static void source_init(struct source *s)
{
    *s = (struct source){
        .poller = {.poll = source_poll, .polled = source_polled},
        .event.fired = source_rang,
        .fd = eventfd(0, EFD_CLOEXEC),
        .tell = true,
    };
    loop_event_add(loop, &s->event, s->fd);
    loop_poller_add(loop, &s->poller);
}

static void source_fini(struct source *s)
{
    loop_poller_remove(loop, &s->poller);
    loop_event_remove(&s->event);
    (void)loop_run_until(loop, never, NULL, 1);
}

/* Adds work, and tells only if that is asked for. */
static void source_add(struct source *s)
{
    atomic_fetch_add(&s->there, 1);
    if (atomic_load(&s->tell))
        kick(s->fd);
}

static bool all_is_done(void *arg)
{
    const struct source *s = arg;

    return s->done > 0 && atomic_load(&s->there) == 0;
}

Test(loop, without_polling_nobody_is_asked)
{
    struct source s;

    source_init(&s);
    source_add(&s);
    cr_assert_eq(loop_run_until(loop, all_is_done, &s, DEADLINE_NS), 0);
    cr_assert_eq(loop_run_until(loop, never, NULL, 1000000), -ETIMEDOUT);
    cr_assert_eq(s.polls + s.on + s.off, 0);
    source_fini(&s);
}

Test(loop, a_loop_that_nothing_happened_to_does_not_poll)
{
    struct source s;

    source_init(&s);
    cr_assert_eq(loop_run_until(loop, never, NULL, 1000000), -ETIMEDOUT); /* what came before */
    loop_set_polling(loop, HOUR_NS);
    cr_assert_eq(loop_run_until(loop, never, NULL, 1000000), -ETIMEDOUT);
    cr_assert_eq(s.polls, 0);
    source_fini(&s);
}

static bool was_polled_often(void *arg)
{
    return ((struct source *)arg)->polls > 100;
}

Test(loop, while_it_polls_work_is_done_that_nobody_tells_of)
{
    struct source s;

    source_init(&s);
    loop_set_polling(loop, HOUR_NS);
    source_add(&s);
    cr_assert_eq(loop_run_until(loop, all_is_done, &s, DEADLINE_NS), 0);
    cr_assert_eq(loop_run_until(loop, never, NULL, 1000000), -ETIMEDOUT);
    cr_assert(was_polled_often(&s));
    cr_assert_not(atomic_load(&s.tell));
    for (int i = 2; i < 10; i++) {
        source_add(&s);
        cr_assert_eq(loop_run_until(loop, all_is_done, &s, DEADLINE_NS), 0);
        cr_assert_eq(s.done, i);
    }
    cr_assert_eq(s.on, 1);
    cr_assert_eq(s.off, 0);
    source_fini(&s);
}

Test(loop, who_comes_while_it_polls_is_polled)
{
    struct source first, second;

    source_init(&first);
    loop_set_polling(loop, HOUR_NS);
    source_add(&first);
    cr_assert_eq(loop_run_until(loop, was_polled_often, &first, DEADLINE_NS), 0);
    source_init(&second);
    cr_assert_not(atomic_load(&second.tell));
    source_add(&second);
    cr_assert_eq(loop_run_until(loop, all_is_done, &second, DEADLINE_NS), 0);
    source_fini(&second);
    source_fini(&first);
}

static bool is_asleep(void *arg)
{
    return ((struct source *)arg)->off > 0;
}

Test(loop, when_polling_ends_bells_are_wanted_again)
{
    struct source s;

    source_init(&s);
    loop_set_polling(loop, 1);
    source_add(&s);
    cr_assert_eq(loop_run_until(loop, is_asleep, &s, DEADLINE_NS), 0);
    cr_assert(atomic_load(&s.tell));
    cr_assert_eq(s.on, 1);
    source_add(&s);
    cr_assert_eq(loop_run_until(loop, all_is_done, &s, DEADLINE_NS), 0);
    cr_assert_eq(s.done, 2);
    source_fini(&s);
}

/* Work that comes at the last moment: its owner saw that it need not tell. */
static bool polled_too_late(struct loop_poller *poller, bool on)
{
    struct source *s = (struct source *)poller;

    if (!on && s->off == 0)
        atomic_fetch_add(&s->there, 1);
    return source_polled(poller, on);
}

static bool two_are_done(void *arg)
{
    return ((struct source *)arg)->done == 2;
}

Test(loop, work_that_came_before_it_could_be_told_of_is_done_before_the_sleep)
{
    struct source s;

    source_init(&s);
    s.poller.polled = polled_too_late;
    loop_set_polling(loop, 1);
    source_add(&s);
    cr_assert_eq(loop_run_until(loop, two_are_done, &s, DEADLINE_NS), 0);
    source_fini(&s);
}

Test(loop, polling_switched_off_loses_nothing)
{
    struct source s;

    source_init(&s);
    loop_set_polling(loop, HOUR_NS);
    source_add(&s);
    cr_assert_eq(loop_run_until(loop, was_polled_often, &s, DEADLINE_NS), 0);
    s.poller.polled = polled_too_late;
    loop_set_polling(loop, 0);
    cr_assert_eq(loop_run_until(loop, two_are_done, &s, DEADLINE_NS), 0);
    cr_assert(atomic_load(&s.tell));
    source_fini(&s);
}

static void *call_from_outside(void *arg)
{
    loop_call(loop, arg);
    return NULL;
}

Test(loop, a_loop_that_polls_heeds_operations_timers_calls_and_stops)
{
    struct counted_call c = {.call.run = note_call};
    struct counted_call stop = {.call.run = stop_by_call};
    struct counted_op op = {.op.done = count_done};
    struct numbered_timer t = {{.expired = note_timer}, 3};
    struct source s;
    int fd = temp_file();
    pthread_t thread;

    source_init(&s);
    loop_set_polling(loop, HOUR_NS);
    source_add(&s);
    cr_assert_eq(loop_run_until(loop, was_polled_often, &s, DEADLINE_NS), 0);
    loop_write(loop, &op.op, fd, "x", 1, 0);
    wait_op(&op);
    loop_timer_set(loop, &t.timer, loop_now_ns() + 1000);
    while (t.timer.armed)
        cr_assert_eq(loop_run_until(loop, never, NULL, 100000), -ETIMEDOUT);
    cr_assert_eq(pthread_create(&thread, NULL, call_from_outside, &c.call), 0);
    cr_assert_eq(loop_run_until(loop, call_ran, &c, DEADLINE_NS), 0);
    cr_assert_eq(pthread_join(thread, NULL), 0);
    cr_assert_eq(pthread_create(&thread, NULL, call_from_outside, &stop.call), 0);
    cr_assert_eq(loop_run(loop), 0);
    cr_assert_eq(pthread_join(thread, NULL), 0);
    cr_assert_eq(s.off, 0, "it polls still");
    source_fini(&s);
    close(fd);
}

#define PIECES 20000

/* Adds one after the other, each as soon as the one before is done. */
static void *add_pieces(void *arg)
{
    struct source *s = arg;

    for (int i = 0; i < PIECES; i++) {
        source_add(s);
        while (atomic_load(&s->there) > 0)
            sched_yield();
    }
    loop_stop(loop);
    return NULL;
}

Test(loop, no_work_is_lost_between_polling_and_sleep)
{
    struct source s;
    pthread_t thread;

    source_init(&s);
    loop_set_polling(loop, 2000);
    cr_assert_eq(pthread_create(&thread, NULL, add_pieces, &s), 0);
    cr_assert_eq(loop_run(loop), 0);
    cr_assert_eq(pthread_join(thread, NULL), 0);
    cr_assert_eq(s.done, PIECES);
    source_fini(&s);
}

/* ---- stopping and the end ---- */

static void on_signal(int number)
{
    (void)number;
    loop_stop(loop);
}

static void *send_signal(void *arg)
{
    pthread_kill(*(pthread_t *)arg, SIGUSR1);
    return NULL;
}

Test(loop, a_signal_handler_stops_it)
{
    struct sigaction action = {.sa_handler = on_signal};
    pthread_t self = pthread_self(), thread;

    cr_assert_eq(sigaction(SIGUSR1, &action, NULL), 0);
    cr_assert_eq(pthread_create(&thread, NULL, send_signal, &self), 0);
    cr_assert_eq(loop_run(loop), 0);
    cr_assert_eq(pthread_join(thread, NULL), 0);
}

Test(loop, a_stop_before_the_run_ends_that_run_only)
{
    struct counted_call c = {.call.run = stop_by_call};

    loop_stop(loop);
    cr_assert_eq(loop_run(loop), 0);
    loop_call(loop, &c.call);
    cr_assert_eq(loop_run(loop), 0);
    cr_assert(!atomic_load(&c.call.queued));
}

Test(loop, destruction_takes_pending_operations_back_without_finishing_them)
{
    struct loop *own;
    struct counted_op r = {.op.done = count_done}, p = {.op.done = count_done};
    struct counted_event e = {.event.fired = count_fired};
    struct numbered_timer t = {{.expired = note_timer}, 0};
    int pipes[2], fd = eventfd(0, EFD_CLOEXEC);
    char buf[4] = "...";

    cr_assert_eq(loop_create(&own, 8), 0);
    cr_assert_eq(pipe2(pipes, O_CLOEXEC), 0);
    loop_read(own, &r.op, pipes[0], buf, sizeof(buf), LOOP_STREAM);
    loop_poll(own, &p.op, pipes[0], POLLIN);
    loop_event_add(own, &e.event, fd);
    loop_timer_set(own, &t.timer, loop_now_ns() + DEADLINE_NS);
    loop_destroy(own);
    cr_assert(!r.op.pending);
    cr_assert(!p.op.pending);
    cr_assert(loop_event_idle(&e.event));
    cr_assert_eq(r.runs + p.runs + e.runs + n_order, 0);
    cr_assert_eq(write(pipes[1], "abc", 3), 3);
    cr_assert_str_eq(buf, "...");
    close(pipes[0]);
    close(pipes[1]);
    close(fd);
}
