/* Shared between vmm/cmd_receive*.c; see vmm/cmd.h. */
#ifndef FERRY_CMD_RECEIVE_INTERNAL_H
#define FERRY_CMD_RECEIVE_INTERNAL_H

#include <stdbool.h>

#include "migration/target.h"
#include "vmm/cmd.h"
#include "vmm/machine.h"
#include "vmm/process.h"
#include "vmm/util/state.h"

/* One attempt of one source. */
struct visit {
    const struct receive_options *wanted;
    const struct state_buffer *processor; /* borrowed: this host's */
    struct target *target;   /* owns, as all of the rest but process_name */
    struct snapshot hello;
    int memory_fd;           /* -1: none */
    struct machine_config config;
    char process_name[32];   /* until the guest's own name is free */
    struct process *process; /* NULL: made when a guest is there */
    struct machine *machine;
};

/* Where guests may come. */
struct door {
    struct link_address address;
    int fd; /* owns; -1: closed, a guest has come */
    struct link_terms terms;
    struct tls_identity *identity; /* owns; NULL: not by TLS */
    struct state_buffer processor; /* owns: what a vCPU is here */
};

/* 0; -EINVAL, with a text that says why, of the caller's; -ENOENT and the like: logged, text empty or TLS's
 * reason. */
int receive_open(struct door *door, const char *address, const char *from, const char *tls,
                 char why[TLS_REASON_MAX]);
void receive_close(struct door *door);

/* What the source says its guest is, once `hello` was read: the machine is built, and takes the guest. As
 * machine_arrive(); -EALREADY: it could run here, and no more was asked; -EINVAL: it could not. */
int receive_guest(struct visit *visit);
/* Frees all but the process, and the machine in it. */
void receive_end_visit(struct visit *visit);

/* Has the control socket say where a guest comes, and waits for it. */
enum exit_status receive_by_order(const struct receive_options *wanted);

#endif
