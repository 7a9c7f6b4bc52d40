/*
 * A thread with an event loop: runs the loop until there is work from outside, does it, goes on.
 *
 * Knows nothing of what the loop is for. `lock` guards the work and its state; the caller sleeps on
 * `changed` until its work is done. The thread itself sleeps in its loop only.
 */
#include "vmm/util/loop_thread.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/util/log.h"
#include "vmm/util/loop.h"

enum state { STARTING, IDLE, WORK, DONE, ENDING };

struct loop_thread {
    pthread_t thread;
    unsigned entries;
    struct loop *loop; /* owned by the thread; set before IDLE */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    enum state state;
    int (*work)(void *arg);
    void *arg;
    int result;
};

/* ---- the thread ---- */

static void set_state(struct loop_thread *t, enum state state)
{
    pthread_mutex_lock(&t->lock);
    t->state = state;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
}

static enum state get_state(struct loop_thread *t)
{
    enum state state;

    pthread_mutex_lock(&t->lock);
    state = t->state;
    pthread_mutex_unlock(&t->lock);
    return state;
}

static void *thread_main(void *arg)
{
    struct loop_thread *t = arg;
    bool broken = false;
    enum state state;

    t->result = loop_create(&t->loop, t->entries);
    set_state(t, t->result ? DONE : IDLE);
    if (t->result)
        return NULL;
    while ((state = get_state(t)) != ENDING) {
        if (state == WORK) {
            t->result = t->work(t->arg);
            set_state(t, DONE);
        }
        /* A loop that broke is told about once; then the thread only waits for its end. */
        if (!broken) {
            broken = loop_run(t->loop) != 0;
            continue;
        }
        pthread_mutex_lock(&t->lock);
        while (t->state != WORK && t->state != ENDING)
            pthread_cond_wait(&t->changed, &t->lock);
        pthread_mutex_unlock(&t->lock);
    }
    loop_destroy(t->loop);
    return NULL;
}

/* ---- the others ---- */

/* Tells the thread to leave its loop and look at the state. Under the lock, because a thread that sees
 * the end destroys the loop, which must have been stopped by then. */
static void order(struct loop_thread *t, enum state state)
{
    pthread_mutex_lock(&t->lock);
    t->state = state;
    pthread_cond_broadcast(&t->changed);
    loop_stop(t->loop);
    pthread_mutex_unlock(&t->lock);
}

/* Waits until the thread is no longer in that state; returns the new one. */
static enum state await_other(struct loop_thread *t, enum state state)
{
    pthread_mutex_lock(&t->lock);
    while (t->state == state)
        pthread_cond_wait(&t->changed, &t->lock);
    state = t->state;
    pthread_mutex_unlock(&t->lock);
    return state;
}

static void free_thread(struct loop_thread *t)
{
    pthread_cond_destroy(&t->changed);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

int loop_thread_create(struct loop_thread **out, const char *name, unsigned entries)
{
    struct loop_thread *t = calloc(1, sizeof(*t));
    char short_name[16];
    int err;

    if (!t)
        return -ENOMEM;
    t->entries = entries;
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->changed, NULL);
    err = pthread_create(&t->thread, NULL, thread_main, t);
    if (err) {
        log_error("%s: no thread: %s", name, strerror(err));
        free_thread(t);
        return -err;
    }
    snprintf(short_name, sizeof(short_name), "%s", name);
    (void)pthread_setname_np(t->thread, short_name);
    if (await_other(t, STARTING) == DONE) {
        err = t->result;
        pthread_join(t->thread, NULL);
        free_thread(t);
        return err;
    }
    *out = t;
    return 0;
}

void loop_thread_destroy(struct loop_thread *t)
{
    if (!t)
        return;
    order(t, ENDING);
    pthread_join(t->thread, NULL);
    free_thread(t);
}

struct loop *loop_thread_loop(struct loop_thread *t)
{
    return t->loop;
}

int loop_thread_call(struct loop_thread *t, int (*work)(void *arg), void *arg)
{
    int result;

    if (!t)
        return work(arg);
    t->work = work;
    t->arg = arg;
    order(t, WORK);
    (void)await_other(t, WORK);
    result = t->result;
    set_state(t, IDLE);
    return result;
}
