/*
 * The event loop on one io_uring: operations, eventfd watches, timers, calls from other threads.
 *
 * Does not retry short transfers and does not interpret results; that is the starter's part. Owned
 * by the thread that created it; there is no lock. Other threads reach three fields, all atomic:
 * `calls`, `asleep` and `stop`. The fence between a caller and a loop about to sleep is told at
 * loop_call().
 *
 * Texts: io_uring_setup(2), io_uring_enter(2), io_uring_prep_poll_multishot(3), eventfd(2).
 */
#include "vmm/util/loop.h"

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "vmm/util/log.h"

#define NS_PER_S 1000000000ull
/* What the kernel transfers at most in one call, whatever is asked (MAX_RW_COUNT). */
#define TRANSFER_MAX 0x7ffff000u
/* How long loop_destroy() waits for operations that the kernel cannot cancel. */
#define DRAIN_DEADLINE_NS (10 * NS_PER_S)

struct loop {
    struct io_uring ring;
    unsigned inflight;        /* operations handed to the ring whose last completion is to come */
    struct loop_op *refused;  /* borrowed; operations that never reached the ring */
    struct loop_timer *timers; /* borrowed; sorted by at_ns */
    struct loop_hook *hooks;   /* borrowed */
    struct loop_hook *next_hook; /* while hooks run: the one after the current */
    struct loop_poller *pollers; /* borrowed */
    uint64_t poll_ns;          /* how long to poll; 0: never */
    uint64_t poll_end_ns;      /* when polling ends */
    bool polled;               /* pollers were told that they are */
    bool worked;               /* since poll_end_ns was set */
    int wake_fd;               /* owns: eventfd */
    struct loop_event wake;
    struct loop_call *_Atomic calls; /* newest first */
    struct loop_call *due;     /* the loop thread's: taken from there, the oldest first */
    atomic_bool asleep;        /* the loop may be sleeping: who adds a call must wake it */
    atomic_bool stop;
};

uint64_t loop_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

/* ---- creation ---- */

static void log_refusal(int err)
{
    if (err == -EPERM)
        log_error("io_uring is forbidden on this host: set kernel.io_uring_disabled to 0 (sysctl), "
                  "or allow io_uring in the container's seccomp profile");
    else if (err == -ENOSYS)
        log_error("the kernel has no io_uring: ferry needs Linux 6.1 or newer, with "
                  "CONFIG_IO_URING");
    else if (err == -ENOMEM)
        log_error("io_uring: no memory for its rings: %s; raise the limit on locked memory "
                  "(ulimit -l)", strerror(-err));
    else
        log_error("io_uring: cannot set up its rings: %s", strerror(-err));
}

static int setup_ring(struct io_uring *ring, unsigned entries)
{
    /* With the first, the kernel hands over completions only when asked, without interrupting the
     * thread or taking its locks for others, and a flag says when there are some to ask for; the rest
     * are what older or patched kernels take. */
    static const unsigned tries[] = {
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
            IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
        0,
    };
    int err = -EINVAL;

    for (size_t i = 0; i < sizeof(tries) / sizeof(tries[0]) && err == -EINVAL; i++)
        err = io_uring_queue_init(entries, ring, tries[i]);
    if (err) {
        log_refusal(err);
        return err;
    }
    if (!(ring->features & IORING_FEAT_EXT_ARG) || !(ring->features & IORING_FEAT_NODROP)) {
        log_error("io_uring of this kernel is too old: ferry needs Linux 6.1 or newer");
        io_uring_queue_exit(ring);
        return -ENOSYS;
    }
    /* Spares each system call the look-up of the ring's file; nothing is lost where it fails. */
    (void)io_uring_register_ring_fd(ring);
    return 0;
}

/* Waking up is all it is for. */
static void wake_fired(struct loop_event *event)
{
    (void)event;
}

int loop_create(struct loop **out, unsigned entries)
{
    struct loop *loop = calloc(1, sizeof(*loop));
    int err;

    if (!loop)
        return -ENOMEM;
    loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (loop->wake_fd < 0) {
        err = -errno;
        log_error("event loop: cannot make an eventfd: %s", strerror(-err));
        goto free_loop;
    }
    err = setup_ring(&loop->ring, entries);
    if (err)
        goto close_wake;
    loop->wake.fired = wake_fired;
    loop_event_add(loop, &loop->wake, loop->wake_fd);
    *out = loop;
    return 0;

close_wake:
    close(loop->wake_fd);
free_loop:
    free(loop);
    return err;
}

/* ---- starting operations ---- */

/* A free submission slot; NULL when the kernel, out of memory, takes none of those that wait. */
static struct io_uring_sqe *take_sqe(struct loop *loop)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&loop->ring);

    if (!sqe) {
        (void)io_uring_submit(&loop->ring);
        sqe = io_uring_get_sqe(&loop->ring);
    }
    return sqe;
}

/* The slot for an operation that starts; NULL when it is refused, which `done` will tell. */
static struct io_uring_sqe *start(struct loop *loop, struct loop_op *op)
{
    struct io_uring_sqe *sqe = take_sqe(loop);

    assert(!op->pending);
    op->pending = true;
    if (sqe) {
        loop->inflight++;
        return sqe;
    }
    op->refusal = -EAGAIN;
    op->next = loop->refused;
    loop->refused = op;
    return NULL;
}

static unsigned clamp_length(size_t len)
{
    return len > TRANSFER_MAX ? TRANSFER_MAX : (unsigned)len;
}

void loop_read(struct loop *loop, struct loop_op *op, int fd, void *buf, size_t len, uint64_t off)
{
    struct io_uring_sqe *sqe = start(loop, op);

    if (!sqe)
        return;
    io_uring_prep_read(sqe, fd, buf, clamp_length(len), off);
    io_uring_sqe_set_data(sqe, op);
}

void loop_write(struct loop *loop, struct loop_op *op, int fd, const void *buf, size_t len,
                uint64_t off)
{
    struct io_uring_sqe *sqe = start(loop, op);

    if (!sqe)
        return;
    io_uring_prep_write(sqe, fd, buf, clamp_length(len), off);
    io_uring_sqe_set_data(sqe, op);
}

void loop_readv(struct loop *loop, struct loop_op *op, int fd, const struct iovec *iov, unsigned n,
                uint64_t off)
{
    struct io_uring_sqe *sqe = start(loop, op);

    if (!sqe)
        return;
    io_uring_prep_readv(sqe, fd, iov, n, off);
    io_uring_sqe_set_data(sqe, op);
}

void loop_writev(struct loop *loop, struct loop_op *op, int fd, const struct iovec *iov,
                 unsigned n, uint64_t off)
{
    struct io_uring_sqe *sqe = start(loop, op);

    if (!sqe)
        return;
    io_uring_prep_writev(sqe, fd, iov, n, off);
    io_uring_sqe_set_data(sqe, op);
}

void loop_fdatasync(struct loop *loop, struct loop_op *op, int fd)
{
    struct io_uring_sqe *sqe = start(loop, op);

    if (!sqe)
        return;
    io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
    io_uring_sqe_set_data(sqe, op);
}

void loop_fallocate(struct loop *loop, struct loop_op *op, int fd, int mode, uint64_t off,
                    uint64_t len)
{
    struct io_uring_sqe *sqe = start(loop, op);

    if (!sqe)
        return;
    io_uring_prep_fallocate(sqe, fd, mode, (off_t)off, (off_t)len);
    io_uring_sqe_set_data(sqe, op);
}

void loop_poll(struct loop *loop, struct loop_op *op, int fd, unsigned events)
{
    struct io_uring_sqe *sqe = start(loop, op);

    if (!sqe)
        return;
    io_uring_prep_poll_add(sqe, fd, events);
    io_uring_sqe_set_data(sqe, op);
}

void loop_cancel(struct loop *loop, struct loop_op *op)
{
    struct io_uring_sqe *sqe;

    if (!op->pending)
        return;
    sqe = take_sqe(loop);
    if (!sqe)
        return;
    io_uring_prep_cancel(sqe, op, 0);
    io_uring_sqe_set_data(sqe, NULL);
}

/* ---- eventfd watches ---- */

static void event_arm(struct loop_event *event);

/* A completion of the multishot poll; it is the last one when the operation is no longer pending:
 * after a cancel, or when the completion queue overflowed. */
static void event_done(struct loop_op *op, int result)
{
    struct loop_event *event =
        (struct loop_event *)((char *)op - offsetof(struct loop_event, op));

    if (event->removed)
        return;
    /* Cancelled, yet not removed: it was added again in between, and is armed anew. So is one that
     * the kernel had no memory for. */
    if (result < 0 && result != -ECANCELED && result != -EAGAIN) {
        log_error("event loop: an eventfd cannot be watched: %s", strerror(-result));
        return;
    }
    if (!op->pending)
        event_arm(event);
    if (result >= 0)
        event->fired(event);
}

static void event_arm(struct loop_event *event)
{
    struct io_uring_sqe *sqe = start(event->loop, &event->op);

    if (!sqe)
        return;
    /* Multishot: one completion for each wake-up by a writer, and one at once if the counter is
     * not zero. So nothing has to be read, and nothing armed again. */
    io_uring_prep_poll_multishot(sqe, event->fd, POLLIN);
    io_uring_sqe_set_data(sqe, &event->op);
}

void loop_event_add(struct loop *loop, struct loop_event *event, int fd)
{
    event->loop = loop;
    event->fd = fd;
    event->removed = false;
    event->op.done = event_done;
    if (!event->op.pending)
        event_arm(event);
}

void loop_event_remove(struct loop_event *event)
{
    uint64_t count;
    struct iovec iov = {&count, sizeof(count)};

    if (!event->loop || event->removed)
        return;
    event->removed = true;
    loop_cancel(event->loop, &event->op);
    /* Empties the counter, without waiting when it is zero, also where fd is not non-blocking. */
    (void)preadv2(event->fd, &iov, 1, -1, RWF_NOWAIT);
}

bool loop_event_idle(const struct loop_event *event)
{
    return !event->op.pending;
}

/* ---- timers ---- */

void loop_timer_set(struct loop *loop, struct loop_timer *timer, uint64_t at_ns)
{
    struct loop_timer **at = &loop->timers;

    loop_timer_cancel(timer);
    while (*at && (*at)->at_ns <= at_ns)
        at = &(*at)->next;
    timer->loop = loop;
    timer->at_ns = at_ns;
    timer->armed = true;
    timer->next = *at;
    *at = timer;
}

void loop_timer_cancel(struct loop_timer *timer)
{
    struct loop_timer **at;

    if (!timer->armed)
        return;
    at = &timer->loop->timers;
    while (*at != timer)
        at = &(*at)->next;
    *at = timer->next;
    timer->armed = false;
}

/* Runs what is due; not more often than timers are due now, so that one which sets itself again to
 * a moment in the past does not keep the loop from everything else. */
static void expire_timers(struct loop *loop)
{
    unsigned due = 0;
    uint64_t now;

    if (!loop->timers)
        return;
    now = loop_now_ns();
    for (struct loop_timer *t = loop->timers; t && t->at_ns <= now; t = t->next)
        due++;
    while (due-- && loop->timers && loop->timers->at_ns <= now) {
        struct loop_timer *timer = loop->timers;

        loop->timers = timer->next;
        timer->armed = false;
        timer->expired(timer);
    }
}

/* ---- other threads ---- */

static void wake(struct loop *loop)
{
    uint64_t one = 1;

    /* Fails only when the counter is at its end, and then the loop is awake or waking. */
    (void)!write(loop->wake_fd, &one, sizeof(one));
}

void loop_stop(struct loop *loop)
{
    int saved = errno; /* may run in a signal handler */

    atomic_store(&loop->stop, true);
    wake(loop);
    errno = saved;
}

void loop_call(struct loop *loop, struct loop_call *call)
{
    struct loop_call *head;

    /* Release: pairs with the exchange of run_calls(), so that what the caller wrote is seen by `run`
     * even when the call stands in the queue already. */
    if (atomic_exchange_explicit(&call->queued, true, memory_order_acq_rel))
        return;
    head = atomic_load_explicit(&loop->calls, memory_order_relaxed);
    do
        atomic_store_explicit(&call->next, head, memory_order_relaxed);
    while (!atomic_compare_exchange_weak(&loop->calls, &head, call));
    /* Sequentially consistent, as in may_sleep(): either this sees the loop asleep, or the loop
     * sees the call before it sleeps. The exchange lets one caller of many write. */
    if (atomic_load(&loop->asleep) && atomic_exchange(&loop->asleep, false))
        wake(loop);
}

/* Moves what was handed over to the end of what is due. */
static void take_calls(struct loop *loop)
{
    struct loop_call *call = atomic_exchange(&loop->calls, NULL);
    struct loop_call *oldest = NULL;
    struct loop_call *last = loop->due;

    while (call) {
        struct loop_call *next = atomic_load_explicit(&call->next, memory_order_relaxed);

        atomic_store_explicit(&call->next, oldest, memory_order_relaxed);
        oldest = call;
        call = next;
    }
    if (!last) {
        loop->due = oldest;
        return;
    }
    while ((call = atomic_load_explicit(&last->next, memory_order_relaxed)))
        last = call;
    atomic_store_explicit(&last->next, oldest, memory_order_relaxed);
}

static void run_calls(struct loop *loop)
{
    take_calls(loop);
    while (loop->due) {
        struct loop_call *call = loop->due;

        /* Read before `queued` falls: from then on the struct may be queued again. */
        loop->due = atomic_load_explicit(&call->next, memory_order_relaxed);
        (void)atomic_exchange_explicit(&call->queued, false, memory_order_acq_rel);
        call->run(call);
    }
}

void loop_call_cancel(struct loop *loop, struct loop_call *call)
{
    struct loop_call *before;

    take_calls(loop);
    before = loop->due;
    if (before == call)
        loop->due = atomic_load_explicit(&call->next, memory_order_relaxed);
    while (before && before != call) {
        struct loop_call *next = atomic_load_explicit(&before->next, memory_order_relaxed);

        if (next == call)
            atomic_store_explicit(&before->next,
                                  atomic_load_explicit(&call->next, memory_order_relaxed),
                                  memory_order_relaxed);
        before = next;
    }
    atomic_store(&call->queued, false);
}

/* ---- hooks ---- */

void loop_hook_add(struct loop *loop, struct loop_hook *hook)
{
    hook->next = loop->hooks;
    loop->hooks = hook;
}

void loop_hook_remove(struct loop *loop, struct loop_hook *hook)
{
    struct loop_hook **at = &loop->hooks;

    while (*at && *at != hook)
        at = &(*at)->next;
    if (!*at)
        return;
    *at = hook->next;
    if (loop->next_hook == hook)
        loop->next_hook = hook->next;
}

static void run_hooks(struct loop *loop)
{
    struct loop_hook *hook = loop->hooks;

    while (hook) {
        loop->next_hook = hook->next;
        hook->prepare(hook);
        hook = loop->next_hook;
    }
}

/* ---- polling ---- */

void loop_poller_add(struct loop *loop, struct loop_poller *poller)
{
    poller->next = loop->pollers;
    loop->pollers = poller;
    if (loop->polled)
        (void)poller->polled(poller, true);
}

void loop_poller_remove(struct loop *loop, struct loop_poller *poller)
{
    struct loop_poller **at = &loop->pollers;

    while (*at && *at != poller)
        at = &(*at)->next;
    if (*at)
        *at = poller->next;
}

void loop_set_polling(struct loop *loop, uint64_t ns)
{
    loop->poll_ns = ns;
}

/* Tells all pollers; whether one of them had work. */
static bool tell_pollers(struct loop *loop, bool on)
{
    bool work = false;

    for (struct loop_poller *poller = loop->pollers; poller; poller = poller->next)
        work |= poller->polled(poller, on);
    loop->polled = on;
    return work;
}

static bool ask_pollers(struct loop *loop)
{
    bool work = false;

    for (struct loop_poller *poller = loop->pollers; poller; poller = poller->next)
        work |= poller->poll(poller);
    return work;
}

/* Whether the kernel is to be asked: something is to be submitted, or completions to be fetched. */
static bool must_enter(const struct loop *loop)
{
    return io_uring_sq_ready(&loop->ring) ||
           (IO_URING_READ_ONCE(*loop->ring.sq.kflags) &
            (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW));
}

/* Whether a batch would find something to do, but for what pollers know. */
static bool something_waits(const struct loop *loop, uint64_t now_ns, uint64_t until_ns,
                            bool heed_stop)
{
    if (io_uring_cq_ready(&loop->ring) || must_enter(loop))
        return true;
    if (loop->refused || loop->due || atomic_load_explicit(&loop->calls, memory_order_relaxed) ||
        (heed_stop && atomic_load_explicit(&loop->stop, memory_order_relaxed)))
        return true;
    return (loop->timers && loop->timers->at_ns <= now_ns) || (until_ns && until_ns <= now_ns);
}

/* Leaves the processor to its other thread, if it has one, for a moment. */
static void rest(void)
{
#ifdef __x86_64__
    __builtin_ia32_pause();
#endif
}

/* Looks for work until polling ends; whether there is or was some. If not, whoever has some later
 * will wake the loop: that was asked for before the last look. */
static bool poll_for_work(struct loop *loop, uint64_t until_ns, bool heed_stop)
{
    uint64_t now_ns;

    if (!loop->polled && (!loop->poll_ns || !loop->worked))
        return false;
    now_ns = loop_now_ns();
    if (loop->worked) {
        loop->worked = false;
        loop->poll_end_ns = now_ns + loop->poll_ns;
        if (!loop->polled)
            (void)tell_pollers(loop, true);
    }
    do {
        if (ask_pollers(loop)) {
            loop->worked = true;
            return true;
        }
        if (something_waits(loop, now_ns, until_ns, heed_stop))
            return true;
        rest();
        now_ns = loop_now_ns();
    } while (loop->poll_ns && now_ns < loop->poll_end_ns);
    loop->worked = tell_pollers(loop, false);
    return loop->worked;
}

/* ---- running ---- */

static void finish_refused(struct loop *loop)
{
    struct loop_op *op = loop->refused;

    loop->refused = NULL;
    while (op) {
        struct loop_op *next = op->next;

        op->pending = false;
        op->done(op, op->refusal);
        op = next;
    }
}

/* Takes one completion; false when none waits. */
static bool take_cqe(struct loop *loop, struct loop_op **op, int *result)
{
    struct io_uring_cqe *cqe;
    bool last;

    if (io_uring_peek_cqe(&loop->ring, &cqe) < 0)
        return false;
    *op = io_uring_cqe_get_data(cqe);
    *result = cqe->res;
    last = !(cqe->flags & IORING_CQE_F_MORE);
    /* Given back before the callback, which may start operations that complete at once. */
    io_uring_cqe_seen(&loop->ring, cqe);
    if (*op && last) {
        (*op)->pending = false;
        loop->inflight--;
    }
    return true;
}

/* Those that wait now, and no more: timers and calls have their turn, too. */
static void finish_completed(struct loop *loop)
{
    unsigned ready = io_uring_cq_ready(&loop->ring);
    struct loop_op *op;
    int result;

    if (ready)
        loop->worked = true;
    while (ready-- && take_cqe(loop, &op, &result))
        if (op)
            op->done(op, result);
}

/* Whether there is nothing to do but to wait; the flag is up then. */
static bool may_sleep(struct loop *loop, bool heed_stop)
{
    if (loop->refused)
        return false;
    atomic_store(&loop->asleep, true);
    if (!atomic_load(&loop->calls) && !loop->due && !(heed_stop && atomic_load(&loop->stop)))
        return true;
    atomic_store(&loop->asleep, false);
    return false;
}

/* Submits what has gathered and waits for a completion until `until_ns` (0: without end). */
static int wait_until(struct loop *loop, uint64_t until_ns)
{
    struct __kernel_timespec left;
    struct io_uring_cqe *cqe;
    uint64_t now;

    if (!until_ns)
        return io_uring_submit_and_wait(&loop->ring, 1);
    now = loop_now_ns();
    if (until_ns <= now)
        return io_uring_submit_and_get_events(&loop->ring);
    left.tv_sec = (long long)((until_ns - now) / NS_PER_S);
    left.tv_nsec = (long long)((until_ns - now) % NS_PER_S);
    return io_uring_submit_and_wait_timeout(&loop->ring, &cqe, 1, &left, NULL);
}

static int check_wait(int result)
{
    switch (result) {
    case -ETIME:  /* the next timer is due */
    case -EINTR:  /* a signal; its handler may have stopped the loop */
    case -EAGAIN: /* the kernel is short of memory: what is left goes with the next try */
    case -EBUSY:  /* the completion queue is full: it is emptied now */
        return 0;
    case -EBADR:
        log_error("io_uring: the kernel ran out of memory and lost completions");
        return result;
    default:
        if (result >= 0)
            return 0;
        log_error("io_uring: waiting failed: %s", strerror(-result));
        return result;
    }
}

static uint64_t earlier(uint64_t a_ns, uint64_t b_ns)
{
    if (!a_ns || !b_ns)
        return a_ns ? a_ns : b_ns;
    return a_ns < b_ns ? a_ns : b_ns;
}

/* One batch, after the hooks: a wait (no longer than until_ns, 0: as long as it takes),
 * completions, timers, calls. */
static int run_batch(struct loop *loop, uint64_t until_ns, bool heed_stop)
{
    int result;

    if (!poll_for_work(loop, until_ns, heed_stop) && may_sleep(loop, heed_stop)) {
        if (loop->timers) /* a timer set to 0 is due, not absent */
            until_ns = earlier(until_ns, loop->timers->at_ns ? loop->timers->at_ns : 1);
        result = wait_until(loop, until_ns);
        atomic_store_explicit(&loop->asleep, false, memory_order_relaxed);
    } else {
        result = loop->polled && !must_enter(loop) ? 0
                                                   : io_uring_submit_and_get_events(&loop->ring);
    }
    result = check_wait(result);
    if (result < 0)
        return result;
    finish_refused(loop);
    finish_completed(loop);
    expire_timers(loop);
    run_calls(loop);
    return 0;
}

int loop_run(struct loop *loop)
{
    int err = 0;

    while (!err && !atomic_load(&loop->stop)) {
        run_hooks(loop);
        err = run_batch(loop, 0, true);
    }
    atomic_store(&loop->stop, false);
    return err;
}

int loop_run_until(struct loop *loop, bool (*ready)(void *arg), void *arg, uint64_t deadline_ns)
{
    uint64_t until_ns = deadline_ns ? loop_now_ns() + deadline_ns : 0;

    while (!ready(arg)) {
        int err;

        if (until_ns && loop_now_ns() >= until_ns)
            return -ETIMEDOUT;
        run_hooks(loop);
        if (ready(arg)) /* a hook works, too: it may have done what is waited for */
            return 0;
        err = run_batch(loop, until_ns, false);
        if (err)
            return err;
    }
    return 0;
}

/* ---- the end ---- */

/* Cancels all and takes every operation's last completion: after that the kernel writes into no
 * buffer of theirs. */
static void drain(struct loop *loop)
{
    uint64_t until_ns = loop_now_ns() + DRAIN_DEADLINE_NS;
    struct io_uring_sqe *sqe = take_sqe(loop);
    struct loop_op *op;
    int result;

    if (sqe) {
        io_uring_prep_cancel(sqe, NULL, IORING_ASYNC_CANCEL_ALL | IORING_ASYNC_CANCEL_ANY);
        io_uring_sqe_set_data(sqe, NULL);
    }
    while (loop->inflight) {
        if (check_wait(wait_until(loop, until_ns)) < 0)
            break;
        while (take_cqe(loop, &op, &result))
            continue;
        if (loop->inflight && loop_now_ns() >= until_ns) {
            log_warn("event loop: %u operations could not be cancelled", loop->inflight);
            break;
        }
    }
}

void loop_destroy(struct loop *loop)
{
    if (!loop)
        return;
    loop_event_remove(&loop->wake);
    drain(loop);
    io_uring_queue_exit(&loop->ring);
    close(loop->wake_fd);
    free(loop);
}
