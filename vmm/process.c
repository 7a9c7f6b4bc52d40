/*
 * The process: loop, signals and control socket, and the guests that share them.
 *
 * Does not build guests (machine.c) and does not know what they are made of. Main thread, which is
 * the event loop's; no locks: what other threads raise goes by the machine's own event lock.
 *
 * A guest's reset, save and migration take the loop for as long as they wait for something. So that
 * no guest has to wait for another's, whoever waits (process_wait()) serves the others meanwhile; a
 * guest that is being served already is passed over, which bounds the depth of it.
 */
#include "vmm/process.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "net/made.h"
#include "vmm/control.h"
#include "vmm/machine_internal.h"
#include "vmm/process_control.h"
#include "vmm/process_internal.h"
#include "vmm/process_net.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define LOOP_ENTRIES 128

/* ---- signals ---- */

/* The first asks the guests by the power button, the second does not ask. */
void process_ask_to_end(struct process *p, int number)
{
    bool again = p->asked_to_end;

    p->asked_to_end = true;
    if (p->signal_number == 0)
        p->signal_number = number;
    for (unsigned i = 0; i < p->n_guests; i++) {
        if (again)
            machine_kill(p->guests[i]);
        else
            machine_ask_to_end(p->guests[i], number);
    }
}

static void handle_signal(struct process *p, int number)
{
    if (p->signal_number == 0)
        log_info("%s: pressing the power button", strsignal(number));
    process_ask_to_end(p, number);
}

static void signal_readable(struct loop_op *op, int result)
{
    struct process *p = (struct process *)((char *)op - offsetof(struct process, signal_op));
    struct signalfd_siginfo info;

    if (result == -ECANCELED)
        return;
    while (read(p->signal_fd, &info, sizeof(info)) == sizeof(info))
        handle_signal(p, (int)info.ssi_signo);
    loop_poll(p->loop, &p->signal_op, p->signal_fd, POLLIN);
}

/* Before any thread exists, so that all inherit the mask. */
static int watch_signals(struct process *p)
{
    sigset_t set;

    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is an error of who writes it, and no more */
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    p->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (p->signal_fd < 0) {
        int err = -errno;
        log_error("signalfd: %s", strerror(-err));
        return err;
    }
    p->signal_op.done = signal_readable;
    loop_poll(p->loop, &p->signal_op, p->signal_fd, POLLIN);
    return 0;
}

static bool signal_op_idle(void *arg)
{
    return !((struct process *)arg)->signal_op.pending;
}

static void forget_signals(struct process *p)
{
    if (p->signal_fd < 0)
        return;
    loop_cancel(p->loop, &p->signal_op);
    (void)loop_run_until(p->loop, signal_op_idle, p, 0);
    close(p->signal_fd);
}

/* ---- life ---- */

int process_create(struct process **out, const char *name)
{
    struct process *p = calloc(1, sizeof(*p));
    int err;

    if (!p)
        return -ENOMEM;
    p->name = name;
    p->signal_fd = -1;
    made_sweep();
    err = loop_create(&p->loop, LOOP_ENTRIES) ? -EOPNOTSUPP : watch_signals(p);
    if (!err)
        err = control_create(&p->control, p->loop, name, process_tables, p);
    if (err)
        process_destroy(p);
    else
        *out = p;
    return err;
}

void process_destroy(struct process *p)
{
    if (!p)
        return;
    control_hide(p->control);
    for (unsigned i = 0; i < p->n_guests; i++)
        p->guests[i]->in_service = true; /* whatever they raised comes too late */
    /* Guests first: they answer who waits for them. */
    while (p->n_guests > 0)
        machine_destroy(p->guests[p->n_guests - 1]);
    process_answer_order(p, -ECANCELED, json_string("the process ends"));
    control_answer(p->control, &p->more, -ECANCELED, json_string("the lab ends"));
    control_answer(p->control, p, 0, NULL); /* whoever waits for all guests to end */
    control_destroy(p->control);
    p->control = NULL;
    while (p->switches) {
        struct process_switch *next = p->switches->next;

        process_switch_destroy(p->switches);
        p->switches = next;
    }
    if (p->loop)
        forget_signals(p);
    loop_destroy(p->loop);
    json_decref(p->order.body);
    json_decref(p->more.body);
    free(p);
}

const char *process_name(const struct process *p)
{
    return p->name;
}

void process_claim_name(struct process *p, const char *name)
{
    p->name = name;
    control_claim(p->control, name);
}

struct loop *process_loop(struct process *p)
{
    return p->loop;
}

struct control *process_control(struct process *p)
{
    return p->control;
}

/* ---- guests ---- */

/* One that has ended, and comes again. */
static void forget_past(struct process *p, const char *name)
{
    for (unsigned i = 0; i < p->n_past; i++) {
        if (strcmp(p->past[i].name, name) != 0)
            continue;
        p->n_past--;
        memmove(&p->past[i], &p->past[i + 1], (p->n_past - i) * sizeof(p->past[0]));
        return;
    }
}

int process_add_guest(struct process *p, struct machine *m)
{
    if (p->n_guests == PROCESS_MAX_GUESTS) {
        log_error("more than %u guests in a process", PROCESS_MAX_GUESTS);
        return -ENOSPC;
    }
    forget_past(p, m->config->name);
    p->guests[p->n_guests++] = m;
    return 0;
}

void process_remove_guest(struct process *p, struct machine *m)
{
    for (unsigned i = 0; i < p->n_guests; i++) {
        if (p->guests[i] != m)
            continue;
        p->n_guests--;
        memmove(&p->guests[i], &p->guests[i + 1], (p->n_guests - i) * sizeof(p->guests[0]));
        return;
    }
}

unsigned process_guests(const struct process *p)
{
    return p->n_guests;
}

struct machine *process_guest(const struct process *p, unsigned index)
{
    return index < p->n_guests ? p->guests[index] : NULL;
}

bool process_past_guest(const struct process *p, unsigned index, const char **name,
                        const char **how)
{
    if (index >= p->n_past)
        return false;
    *name = p->past[index].name;
    *how = p->past[index].how;
    return true;
}

struct machine *process_find_guest(const struct process *p, const char *name)
{
    for (unsigned i = 0; i < p->n_guests; i++)
        if (strcmp(p->guests[i]->config->name, name) == 0)
            return p->guests[i];
    return NULL;
}

/* ---- running ---- */

/* Acts on what the guests raised. */
static void serve(struct process *p)
{
    for (unsigned i = 0; i < p->n_guests; i++) {
        struct machine *m = p->guests[i];

        if (m->in_service)
            continue;
        m->in_service = true;
        machine_serve(m);
        m->in_service = false;
    }
}

static void note_end(struct process *p, const struct machine *m)
{
    if (p->n_past == PROCESS_MAX_GUESTS)
        return;
    snprintf(p->past[p->n_past].name, sizeof(p->past[0].name), "%s", m->config->name);
    p->past[p->n_past++].how = machine_outcome_text(m->outcome);
}

/* Tells of those that have ended since; how many still run. */
static unsigned take_ended(struct process *p, void (*ended)(void *arg, struct machine *machine),
                           void *arg)
{
    unsigned running = 0, i = 0;

    while (i < p->n_guests) {
        struct machine *m = p->guests[i];

        if (!m->ended) {
            running++;
        } else if (!m->told) {
            m->told = true;
            machine_halt(m);
            note_end(p, m);
            if (ended)
                ended(arg, m);
        }
        if (i < p->n_guests && p->guests[i] == m)
            i++;
    }
    return running;
}

/* Takes on what lab.up asked for. */
static void take_more(struct process *p)
{
    json_t *body = p->more.body, *reply = NULL;
    int err;

    p->more.body = NULL;
    err = p->more.take(p->more.arg, body, &reply);
    json_decref(body);
    control_answer(p->control, &p->more, err, reply);
}

int process_run(struct process *p, void (*ended)(void *arg, struct machine *machine), void *arg)
{
    int err = 0;

    for (unsigned i = 0; i < p->n_guests; i++)
        machine_start(p->guests[i]);
    while (!err) {
        unsigned running = take_ended(p, ended, arg);

        if (p->more.body && !p->asked_to_end) {
            take_more(p);
            running = take_ended(p, ended, arg);
        }
        if (running == 0)
            break;
        err = loop_run(p->loop);
        if (!err)
            serve(p);
    }
    return err;
}

void process_set_more(struct process *p,
                      int (*take)(void *arg, const json_t *body, json_t **reply), void *arg)
{
    p->more.loop = p->loop;
    p->more.take = take;
    p->more.arg = arg;
}

struct waiting {
    struct process *p;
    bool (*ready)(void *arg);
    void *arg;
};

static bool ready_or_serve(void *arg)
{
    struct waiting *w = arg;

    if (w->ready(w->arg))
        return true;
    serve(w->p);
    return w->ready(w->arg);
}

int process_wait(struct process *p, bool (*ready)(void *arg), void *arg, uint64_t deadline_ns)
{
    struct waiting w = {.p = p, .ready = ready, .arg = arg};

    return loop_run_until(p->loop, ready_or_serve, &w, deadline_ns);
}

/* ---- what takes long ---- */

/* The working thread's until the call it queues has run: only then nobody but it holds the struct. */
struct work {
    struct loop *loop;
    const bool *ended;
    int (*work)(void *arg);
    void (*cancel)(void *arg);
    void *arg;
    int result;
    bool cancelled;
    struct loop_call finished_call;
    bool finished; /* the loop's thread's */
};

static void work_finished(struct loop_call *call)
{
    ((struct work *)((char *)call - offsetof(struct work, finished_call)))->finished = true;
}

static void *work_main(void *arg)
{
    struct work *w = arg;

    w->result = w->work(w->arg);
    loop_call(w->loop, &w->finished_call);
    return NULL;
}

static bool is_finished(void *arg)
{
    struct work *w = arg;

    if (*w->ended && w->cancel && !w->cancelled) {
        w->cancelled = true;
        w->cancel(w->arg);
    }
    return w->finished;
}

int process_work(struct process *p, const bool *ended, int (*work)(void *arg),
                 void (*cancel)(void *arg), void *arg)
{
    struct work w = {.loop = p->loop, .ended = ended, .work = work, .cancel = cancel, .arg = arg,
                     .finished_call.run = work_finished};
    pthread_t thread;
    int err = pthread_create(&thread, NULL, work_main, &w);

    if (err) {
        log_error("no thread for what takes long: %s", strerror(err));
        return -err;
    }
    err = process_wait(p, is_finished, &w, 0);
    if (err && cancel && !w.cancelled)
        cancel(arg);
    pthread_join(thread, NULL);
    loop_call_cancel(p->loop, &w.finished_call);
    /* Without the loop, too, what was done counts: a guest that was handed over is not ours. */
    return w.result;
}

/* ---- a guest that is asked for ---- */

static bool has_order(void *arg)
{
    const struct process *p = arg;

    return p->order.body || p->asked_to_end;
}

int process_await_order(struct process *p, json_t **body, int *signal_number)
{
    int err;

    p->order.loop = p->loop;
    p->order.taken = true;
    err = process_wait(p, has_order, p, 0);
    p->order.taken = false;
    *body = p->order.body;
    p->order.body = NULL;
    *signal_number = p->signal_number;
    if (!err && p->asked_to_end)
        err = -ECANCELED;
    if (!err)
        return 0;
    json_decref(*body);
    *body = NULL;
    return err;
}

void process_answer_order(struct process *p, int error, json_t *reply)
{
    control_answer(p->control, &p->order, error, reply);
}

const bool *process_ending(const struct process *p)
{
    return &p->asked_to_end;
}
