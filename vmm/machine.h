/*
 * The machine: one guest and all that is built for it, started, watched and taken down.
 *
 * Composition root: this module and its architecture's part (vmm/x86/machine.c) are the only ones
 * that name concrete devices. One thread, the main thread, which is the event loop's (process.h).
 */
#ifndef FERRY_MACHINE_H
#define FERRY_MACHINE_H

#include "vmm/machine_config.h"

struct machine;
struct process;
struct snapshot;
struct stream_reader;

/* How a guest came to its end. */
enum machine_outcome {
    MACHINE_POWERED_OFF,  /* by itself, or obeying the power button */
    MACHINE_WAS_RESET,    /* by itself, with --no-reboot */
    MACHINE_CRASHED,      /* triple fault, panic device, or KVM gave up on it; logged */
    MACHINE_QUIT,         /* the person typed Ctrl-a x */
    MACHINE_SAVED,        /* to a file, from which it can be restored */
    MACHINE_MIGRATED,     /* it runs in another process */
    MACHINE_KILLED,       /* still up when the grace period after a signal was over, or at the second */
    MACHINE_FAILED,       /* the host failed it; logged */
};

/*
 * Builds the machine in a process and loads the kernel; nothing runs yet. config is borrowed for the
 * machine's life, and so is the process. Errors, logged: -EOPNOTSUPP when the host cannot run guests (no
 * KVM, no right to it, a capability or io_uring is missing); any other is about the options or the files
 * they name.
 */
int machine_create(struct machine **out, struct process *process,
                   const struct machine_config *config);

/*
 * Builds the machine that was saved, as it stood; nothing runs yet. config is what the snapshot's
 * section says, borrowed for the machine's life; snapshot and reader are borrowed for the call.
 * lazily: its memory is read from the file when it is touched, and the rest in the background.
 * fresh_macs: its NICs have the addresses of config, not those of the snapshot.
 * Errors as above; a file that does not fit or is damaged is of the second kind.
 */
int machine_restore(struct machine **out, struct process *process,
                    const struct machine_config *config, const struct snapshot *snapshot,
                    const struct stream_reader *reader, bool lazily,
                    bool fresh_macs);

/*
 * Builds the machine of a guest that comes from another process; its memory is memory_fd, taken over,
 * or, when that is -1, empty. Its disks are not locked yet, its devices paused. Errors as above.
 */
int machine_create_incoming(struct machine **out, struct process *process,
                            const struct machine_config *config, int memory_fd);

const char *machine_name(const struct machine *machine);
/* "powered off" */
const char *machine_outcome_text(enum machine_outcome outcome);

/* How a guest that has ended did, and in *signal_number (may be NULL) what signal
 * asked for it, or 0. */
enum machine_outcome machine_outcome(const struct machine *machine, int *signal_number);

/* Takes all down, in the reverse order of building. NULL is fine. */
void machine_destroy(struct machine *machine);

#endif
