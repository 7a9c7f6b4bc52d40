/*
 * A thread that runs an event loop of its own, and takes work from another thread.
 *
 * A switch has one, so that frames do not wait for disks and consoles, nor these for frames.
 */
#ifndef FERRY_UTIL_LOOP_THREAD_H
#define FERRY_UTIL_LOOP_THREAD_H

struct loop;
struct loop_thread;

/* name: up to 15 bytes are what ps(1) and top(1) show. entries: as loop_create(). Errors of
 * loop_create() and of pthread_create(3), logged. */
int loop_thread_create(struct loop_thread **out, const char *name, unsigned entries);
/* Nothing may be pending on the loop that is still needed. NULL is fine. */
void loop_thread_destroy(struct loop_thread *thread);

/* Lives as long as the thread. Its functions are for the thread alone, as loop.h says. */
struct loop *loop_thread_loop(struct loop_thread *thread);

/*
 * Runs work(arg) on the thread, outside of any callback of its loop, and waits for it; returns what
 * it returned. It may run the loop (loop_run_until()). thread NULL: runs it at once, here. One
 * caller at a time; not from the thread itself, and with no lock held that the thread may take.
 */
int loop_thread_call(struct loop_thread *thread, int (*work)(void *arg), void *arg);

#endif
