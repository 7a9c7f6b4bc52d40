/*
 * The process: what the guests in it share. The event loop, the signals, the control socket.
 *
 * `ferry run` has one guest in a process, `ferry up` several. A guest that ends or crashes leaves
 * the others alone. Part of the composition root. The main thread, which is the event loop's.
 */
#ifndef FERRY_PROCESS_H
#define FERRY_PROCESS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define PROCESS_MAX_GUESTS 64

struct control;
struct loop;
struct machine;
struct process;

/*
 * Makes the loop, takes the signals that end programs (SIGTERM, SIGINT, SIGHUP) and the name, under
 * which the control socket is found; name is borrowed for the process's life. To be called before
 * any other thread exists. Errors, logged: -EOPNOTSUPP when io_uring is missing, those of
 * control_create().
 */
int process_create(struct process **out, const char *name);

/* Takes all down, the guests that are still there too. NULL is fine. */
void process_destroy(struct process *process);

const char *process_name(const struct process *process);
/* The name by which the process is found becomes another, as soon as no other process has it. */
void process_claim_name(struct process *process, const char *name);
struct loop *process_loop(struct process *process);
/* NULL: there is no folder for its socket. */
struct control *process_control(struct process *process);

/* ---- guests; machine_create() adds, machine_destroy() removes ---- */

/* -ENOSPC (logged): there are PROCESS_MAX_GUESTS. */
int process_add_guest(struct process *process, struct machine *machine);
void process_remove_guest(struct process *process, struct machine *machine);
unsigned process_guests(const struct process *process);
struct machine *process_guest(const struct process *process, unsigned index);
/* Those that have ended: false when there is no such one. *how is "crashed" and the like. */
bool process_past_guest(const struct process *process, unsigned index, const char **name,
                        const char **how);
/* The guest of that name, or NULL. */
struct machine *process_find_guest(const struct process *process, const char *name);

/*
 * Lets the guests run until each has ended; `ended` (may be NULL) is told of each once, outside of
 * any callback of the loop, and may destroy the machine. 0; or a negative errno, logged, when the
 * loop failed.
 */
int process_run(struct process *process, void (*ended)(void *arg, struct machine *machine),
                void *arg);

/*
 * Runs the loop until ready(arg), as loop_run_until() does, and meanwhile serves the guests for
 * which nobody waits yet: while one is being saved, another may reset. Not from a callback.
 */
int process_wait(struct process *process, bool (*ready)(void *arg), void *arg,
                 uint64_t deadline_ns);

/*
 * Does work that blocks on a thread of its own, and serves the loop meanwhile. When *ended becomes true
 * during it, `cancel` (may be NULL) is called once, and is to let it end soon. The work's result, or a
 * negative errno, logged. Not from a callback.
 */
int process_work(struct process *process, const bool *ended, int (*work)(void *arg),
                 void (*cancel)(void *arg), void *arg);

/*
 * Waits until the control socket is asked for vm.receive-migration: *body, owned by the caller, is what
 * was said. Then it is answered once, as by control_answer(). -ECANCELED: the process is to end; the
 * signal that said so, or 0, is in *signal_number.
 */
int process_await_order(struct process *process, json_t **body, int *signal_number);
void process_answer_order(struct process *process, int error, json_t *reply);
/* Whether a signal or the control socket has asked for the end; borrowed, for process_work(). */
const bool *process_ending(const struct process *process);

/*
 * Says what the process does when its control socket is asked for lab.up: process_run() calls take(),
 * outside of any callback, which may add guests and start them; `body` is what was said, borrowed, and
 * the result and *reply are answered as a handler's (control.h).
 */
void process_set_more(struct process *process,
                      int (*take)(void *arg, const json_t *body, json_t **reply), void *arg);

/* As a first and a second signal: every guest is asked to power off, then ended. number: what
 * asked, or 0. */
void process_ask_to_end(struct process *process, int number);

#endif
