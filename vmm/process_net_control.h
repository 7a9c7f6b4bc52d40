/*
 * What a process answers about its switches, on its control socket.
 */
#ifndef FERRY_PROCESS_NET_CONTROL_H
#define FERRY_PROCESS_NET_CONTROL_H

#include "vmm/control.h"

/* About the process. */
extern const struct control_route process_net_list_routes[];
/* About a struct process_switch, which the other finds (struct control_table.pick). */
extern const struct control_route process_net_routes[];
int process_net_pick(void *opaque, const json_t *body, void **object, json_t **reply);

#endif
