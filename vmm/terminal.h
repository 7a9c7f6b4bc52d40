/*
 * The controlling terminal: raw mode while the guest has the keyboard, the old modes back on every
 * way out.
 *
 * One terminal a process, hence no object. Raw mode is entered only while our process group is in
 * the foreground, so that a guest started with & or under timeout(1) leaves the shell's terminal
 * alone. Whoever opened it restores it by terminal_close(); exit(3) does; so do the signals that
 * end a process, as far as they had their default action when terminal_open() was called; SIGTSTP
 * gives the modes back for as long as the process is stopped.
 */
#ifndef FERRY_TERMINAL_H
#define FERRY_TERMINAL_H

#include <stdbool.h>

/*
 * Remembers the modes of the terminal fd (borrowed until terminal_close()) and enters raw mode if
 * in the foreground. SIGTTOU and SIGTTIN are ignored from then on. Main thread, before others
 * exist. 0, -ENOTTY, -EBUSY (one is open), of tcgetattr(3) and sigaction(2).
 */
int terminal_open(int fd);
/* Restores and forgets. Fine when none is open. */
void terminal_close(void);

/* Whether the terminal is ours to read: our process group is in the foreground. Enters raw mode if
 * it was left meanwhile. False when none is open. Any thread, and async-signal-safe. */
bool terminal_claim(void);

/* Gives the modes back, if raw mode is on and the terminal is ours. Any thread, and
 * async-signal-safe. */
void terminal_restore(void);

/* An eventfd, owned by this module, that is written when the terminal's size changed and when the
 * process was continued after a stop. -1 when no terminal is open. */
int terminal_event_fd(void);

/* 0, -ENOTTY: fd is no terminal, or does not know its size. Any thread. */
int terminal_size(int fd, unsigned *columns, unsigned *rows);

#endif
