/*
 * What a process answers on its control socket.
 */
#ifndef FERRY_PROCESS_CONTROL_H
#define FERRY_PROCESS_CONTROL_H

#include "vmm/control.h"

/* All routes; their object is a struct process. */
extern const struct control_table process_tables[];

#endif
