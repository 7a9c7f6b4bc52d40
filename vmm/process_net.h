/*
 * The switches of a process. Each runs on a thread with a loop of its own, and so do the NICs and the
 * uplink that are plugged into it.
 */
#ifndef FERRY_PROCESS_NET_H
#define FERRY_PROCESS_NET_H

#include "net/switch.h"
#include "vmm/lab_switch.h"

struct loop_thread;
struct process;
struct uplink;

struct process_switch {
    struct process_switch *next; /* in order of coming */
    struct process *process;     /* borrowed */
    char name[NET_NAME_MAX];
    char *text;                  /* owned: struct switch_options has it; or NULL */
    struct loop_thread *thread;
    struct net_switch *sw;       /* the thread's, as is the uplink */
    struct uplink *uplink;       /* or NULL */
    char mode[32];               /* the uplink's, as a person writes it */
};

/*
 * Makes the switch with its thread, uplink, rules and mirrors. Main thread. Errors, logged: -EEXIST,
 * those of loop_thread_create(), switch_create() and uplink_create().
 */
int process_add_switch(struct process *process, const struct switch_options *options);
/* Takes down one into which nothing is plugged. */
void process_remove_switch(struct process *process, const char *name);
/* NULL: there is none of that name. NULL for name: the first. */
struct process_switch *process_find_switch(const struct process *process, const char *name);
/* Nothing of a guest is plugged in any more. NULL is fine. */
void process_switch_destroy(struct process_switch *ps);

#endif
