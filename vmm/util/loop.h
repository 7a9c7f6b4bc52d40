/*
 * The event loop: all waiting and all host I/O of the process, on one io_uring (liburing).
 *
 * One thread, the one that created the loop, runs it; every function but loop_call() and
 * loop_stop() is for that thread alone. Completions are delivered as callbacks on it. Nothing here
 * blocks but loop_run() and loop_run_until(). Submissions gather until the loop next sleeps, so a
 * batch of requests costs one system call.
 *
 * An operation is a struct owned by the caller, embedded in whatever it is about: it must stay in
 * place from its start until its `done` ran. The buffers it names likewise.
 */
#ifndef FERRY_UTIL_LOOP_H
#define FERRY_UTIL_LOOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct loop;

/* One asynchronous operation. `done` gets what the system call would return: >= 0 or -errno.
 * Starting one that is pending is a mistake of the caller's. Zero-initialised is idle. */
struct loop_op {
    void (*done)(struct loop_op *op, int result); /* set by the caller before the start */
    bool pending;                                 /* read-only: started, and `done` has not run */
    /* internal: for an operation that the kernel had no memory for */
    int refusal;
    struct loop_op *next;
};

/*
 * entries: submission slots (a hint; a full queue is flushed, never lost). Errors, logged: of
 * io_uring_setup(2), notably -EPERM and -ENOSYS where io_uring is forbidden.
 */
int loop_create(struct loop **out, unsigned entries);
/*
 * What is still pending is cancelled and waited for, without running its `done`; so every struct
 * and buffer that was handed to the loop must still be there. NULL is fine.
 */
void loop_destroy(struct loop *loop);

/* Runs until loop_stop(), one that came before the call included; returns 0, or a negative errno
 * if the ring broke (logged). */
int loop_run(struct loop *loop);
/* Runs until `ready(arg)` is true (tested first, and after each batch) or deadline_ns from now
 * passed (-ETIMEDOUT; 0: no deadline). loop_stop() does not end it, but the next loop_run(). For
 * draining and for tests. May not be called from a callback. */
int loop_run_until(struct loop *loop, bool (*ready)(void *arg), void *arg, uint64_t deadline_ns);
/* Any thread, and async-signal-safe. */
void loop_stop(struct loop *loop);

/* ---- operations: start one; `done` runs later, never inside the call ---- */
void loop_read(struct loop *loop, struct loop_op *op, int fd, void *buf, size_t len, uint64_t off);
void loop_write(struct loop *loop, struct loop_op *op, int fd, const void *buf, size_t len,
                uint64_t off);
void loop_readv(struct loop *loop, struct loop_op *op, int fd, const struct iovec *iov, unsigned n,
                uint64_t off);
void loop_writev(struct loop *loop, struct loop_op *op, int fd, const struct iovec *iov,
                 unsigned n, uint64_t off);
/* Offset for streams (pipes, terminals, sockets): the file's own position. */
#define LOOP_STREAM UINT64_MAX
void loop_fdatasync(struct loop *loop, struct loop_op *op, int fd);
void loop_fallocate(struct loop *loop, struct loop_op *op, int fd, int mode, uint64_t off,
                    uint64_t len);
/* poll(2) events, once; result is the revents mask. */
void loop_poll(struct loop *loop, struct loop_op *op, int fd, unsigned events);
/* Asks for a pending operation to end early; its `done` still runs, with -ECANCELED, -EINTR or its
 * own result. No effect on one that is not pending. */
void loop_cancel(struct loop *loop, struct loop_op *op);

/* ---- an eventfd that others write: `fired` runs once for any number of writes ---- */
struct loop_event {
    void (*fired)(struct loop_event *event); /* set by the caller */
    /* internal: */
    struct loop_op op;
    struct loop *loop;
    int fd;
    bool removed;
};
/*
 * fd is borrowed; must be an eventfd that nobody else reads. The struct is zero-initialised but
 * for `fired`. Stays armed until removed; the counter is left to grow, so that a kick costs neither
 * a read nor a new operation. `fired` may run once too often, never too seldom. An event that was
 * removed may be added again at once, idle or not.
 */
void loop_event_add(struct loop *loop, struct loop_event *event, int fd);
/* After this `fired` no longer runs, and what was written before is forgotten: fd may be closed.
 * The struct may be freed when loop_event_idle() is true. */
void loop_event_remove(struct loop_event *event);
bool loop_event_idle(const struct loop_event *event);

/* ---- timers: one shot ---- */
struct loop_timer {
    void (*expired)(struct loop_timer *timer); /* set by the caller */
    /* internal: */
    struct loop *loop;
    struct loop_timer *next;
    uint64_t at_ns;
    bool armed;
};
/* Re-arming moves it. at_ns: absolute, of loop_now_ns(). A struct may be freed when not armed. */
void loop_timer_set(struct loop *loop, struct loop_timer *timer, uint64_t at_ns);
void loop_timer_cancel(struct loop_timer *timer);
/* CLOCK_MONOTONIC in nanoseconds. Any thread. */
uint64_t loop_now_ns(void);

/* ---- work handed over from another thread ---- */
struct loop_call {
    void (*run)(struct loop_call *call); /* set by the caller; runs on the loop's thread */
    /* internal: */
    struct loop_call *_Atomic next;
    _Atomic bool queued;
};
/*
 * Any thread, wait-free but for one eventfd write when the loop may sleep. A call that is queued
 * already is not queued twice: it will run after this moment, once. What the caller wrote before
 * is seen by `run` (release/acquire). The struct must outlive the run.
 */
void loop_call(struct loop *loop, struct loop_call *call);
/* Takes back a call that may be queued: it does not run any more, and the struct may be freed. The
 * caller sees to it that no other thread queues it meanwhile. */
void loop_call_cancel(struct loop *loop, struct loop_call *call);

/* ---- a hook run on the loop's thread each time just before it would sleep ---- */
struct loop_hook {
    void (*prepare)(struct loop_hook *hook); /* may start operations and timers */
    struct loop_hook *next;                  /* internal */
};
void loop_hook_add(struct loop *loop, struct loop_hook *hook);
void loop_hook_remove(struct loop *loop, struct loop_hook *hook);

/* ---- polling: who can see its work without being told ---- */
struct loop_poller {
    /* Does what work there is; whether there was any. Not true for what cannot go on now. */
    bool (*poll)(struct loop_poller *poller);
    /* on: it will be polled, and need not be told of work. Off: it is to be told again from now on.
     * Work that came before that could be known is to be done now, and true returned. */
    bool (*polled)(struct loop_poller *poller, bool on);
    struct loop_poller *next; /* internal */
};
/* A poller may be added and removed at any time, but not by pollers' callbacks; `polled` may run at once. */
void loop_poller_add(struct loop *loop, struct loop_poller *poller);
void loop_poller_remove(struct loop *loop, struct loop_poller *poller);
/* For how long after the last work, a completion or a poller's, the loop looks for more before it
 * sleeps. 0, as at first: not at all, and pollers are never called. */
void loop_set_polling(struct loop *loop, uint64_t ns);

#endif
