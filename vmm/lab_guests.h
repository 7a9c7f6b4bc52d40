/*
 * The guests of a running lab: each with its options, which live as long as it does. Main thread,
 * outside of the loop's callbacks.
 */
#ifndef FERRY_LAB_GUESTS_H
#define FERRY_LAB_GUESTS_H

#include <jansson.h>
#include <stddef.h>

#include "vmm/lab_config.h"

struct lab_guest;
struct machine;
struct process;

struct lab_guests {
    struct process *process; /* borrowed */
    struct lab_guest *list;  /* owned, the newest first */
};

/*
 * Makes those of the file's switches and guests, by their names, that are not there yet; a guest's
 * options are taken out of `config`. `started`: an array that the new ones' names are added to; they
 * run then. NULL: process_run() will start them. Errors as of process_add_switch() and
 * machine_create(), told in `why`; then nothing is made.
 */
int lab_guests_add(struct lab_guests *lab, struct lab_config *config, json_t *started, char *why,
                   size_t size);
/* Takes down one that has ended. */
void lab_guests_remove(struct lab_guests *lab, struct machine *machine);
/* Forgets the options of those that are still there, when the process has been taken down. */
void lab_guests_fini(struct lab_guests *lab);

#endif
