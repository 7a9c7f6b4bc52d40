/* Shared among vmm/process*.c; see vmm/process.h. */
#ifndef FERRY_PROCESS_INTERNAL_H
#define FERRY_PROCESS_INTERNAL_H

#include "vmm/control.h"
#include "vmm/process.h"
#include "vmm/util/loop.h"

struct process_switch;

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
};

#endif
