/* Shared among vmm/process*.c; see vmm/process.h. */
#ifndef FERRY_PROCESS_INTERNAL_H
#define FERRY_PROCESS_INTERNAL_H

#include <jansson.h>

#include "vmm/control.h"
#include "vmm/process.h"
#include "vmm/util/loop.h"

struct process_switch;

/* What vm.receive-migration asks of a process that waits for a guest. */
struct process_order {
    bool taken;   /* the process can be asked */
    json_t *body; /* owns: asked for, and not taken yet */
    struct loop *loop; /* borrowed */
};

/* What lab.up asks of a lab's process: to take on what its file has more. */
struct process_more {
    int (*take)(void *arg, const json_t *body, json_t **reply); /* NULL: it is no lab */
    void *arg;
    json_t *body;      /* owns: asked for, and not taken yet */
    struct loop *loop; /* borrowed */
};

struct process {
    const char *name; /* borrowed */
    struct loop *loop;
    int signal_fd;
    struct loop_op signal_op;
    int signal_number;       /* the first that asked for the end, or 0 */
    bool asked_to_end;
    struct control *control; /* NULL: there is no folder for its socket */
    struct process_switch *switches;
    struct machine *guests[PROCESS_MAX_GUESTS];
    unsigned n_guests;
    struct {
        char name[CONTROL_NAME_MAX + 1];
        const char *how;
    } past[PROCESS_MAX_GUESTS]; /* those that have ended */
    unsigned n_past;
    struct process_order order;
    struct process_more more;
};

#endif
