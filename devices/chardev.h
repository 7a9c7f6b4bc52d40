/*
 * A stream of bytes between a device (a UART, virtio-console: the front end) and where its bytes
 * come from and go to (the back end: the terminal, pipes, nothing, a test's memory).
 *
 * Output: bytes go into a bounded ring, which the event loop empties. No call blocks and no byte
 * is lost: a full ring takes less than it was given, and says later that there is room again, so
 * that the guest is made to wait by what its hardware has for that. Input: the front end says how
 * many bytes it can take, and gets no more than that; what is left stays in the pipe or terminal.
 *
 * Threads: with the device lock held (vmm/device.h), any thread, unless a function's comment says
 * otherwise. The callbacks of the front end come on the event loop's thread with the lock held, and
 * never from inside a call of the front end's.
 */
#ifndef FERRY_CHARDEV_H
#define FERRY_CHARDEV_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct chardev;
struct loop;

/* Bytes of output that wait for the back end at most. */
#define CHARDEV_RING_BYTES 65536

/* Embedded in the device; the functions are set before chardev_attach(). */
struct chardev_front {
    /* There is room again (at least half the ring), after chardev_write() took less than it was
     * given or chardev_has_room() said no. Once for any number of such calls. */
    void (*writable)(struct chardev_front *front);
    /* n bytes of input, 1 <= n <= what the front end said it accepts; that is then n less. The
     * front end may call any function of this header. */
    void (*input)(struct chardev_front *front, const uint8_t *bytes, size_t n);
    /* The person asked for a break signal (Ctrl-a b). May be NULL. */
    void (*send_break)(struct chardev_front *front);
    /* The terminal's size changed: see chardev_size(). May be NULL. */
    void (*resized)(struct chardev_front *front);
};

/* ---- for front ends ---- */

/* front is borrowed until another, or NULL, is attached. One at a time. The new one accepts no
 * input yet. Without a front end input stays where it is. Lock held, or before the guest runs. */
void chardev_attach(struct chardev *chardev, struct chardev_front *front);

/* Takes as many bytes as there is room for, and returns how many; the rest is the caller's. A back
 * end that is gone (a closed pipe) takes all and drops it. */
size_t chardev_write(struct chardev *chardev, const void *bytes, size_t n);

/* Whether n bytes (at most half the ring) could be written now; if not, `writable` will come. */
bool chardev_has_room(struct chardev *chardev, size_t n);

/* The front end can take n bytes in total from now on, whatever it said before; 0: none. Input does
 * not come inside this call but soon after, from the loop. */
void chardev_accept(struct chardev *chardev, size_t n);

/* The size of the terminal behind it. 0, or -ENOTTY: there is none. */
int chardev_size(struct chardev *chardev, unsigned *columns, unsigned *rows);

/* ---- for who owns it: the loop's thread, lock not held ---- */

/* Runs the loop until all output has left; what a device writes meanwhile included. 0, or
 * -ETIMEDOUT after deadline_ns (0: none), or what loop_run_until() gave. NULL is fine. */
int chardev_drain(struct chardev *chardev, uint64_t deadline_ns);

/* The front end is gone or detached. Output that has not left is lost: drain first. A terminal gets
 * its modes back. Runs the loop to end what is in flight. NULL is fine. */
void chardev_destroy(struct chardev *chardev);

/* ---- back ends; *out is owned by the caller; lock is the device lock, borrowed ---- */

/* Output vanishes, input never comes. 0 or -ENOMEM. */
int chardev_null_create(struct chardev **out);

struct chardev_stdio_config {
    int in_fd;  /* borrowed; -1: no input */
    int out_fd; /* borrowed; -1: output is dropped */
    /* The person typed Ctrl-a x. Loop's thread, lock not held. May be NULL. */
    void (*quit)(void *arg);
    void *arg;
};
/*
 * Descriptors of any kind: terminals, pipes, files. When in_fd is a terminal, it is put into raw
 * mode (vmm/terminal.h) and Ctrl-a begins a command: x ends the guest, b sends a break, h helps,
 * Ctrl-a sends one Ctrl-a, anything else is sent as typed, after the Ctrl-a. The end of the input
 * is quiet; output that nobody can read any more is dropped (SIGPIPE must be ignored). Both
 * descriptors keep their O_NONBLOCK flag as it is. One with a terminal at a time. 0, -ENOMEM, of
 * eventfd(2), -EBUSY (another has the terminal).
 */
int chardev_stdio_create(struct chardev **out, struct loop *loop, pthread_mutex_t *lock,
                         const struct chardev_stdio_config *config);

/*
 * A listening stream socket (SOCK_NONBLOCK, taken over on success): up to 8 come and go, see the last
 * CHARDEV_RING_BYTES of output and what follows, and type. Output is never held up for want of a
 * reader. 0 or -ENOMEM.
 */
int chardev_socket_create(struct chardev **out, struct loop *loop, pthread_mutex_t *lock,
                          int listen_fd);

/* Copies the last bytes of the output, CHARDEV_RING_BYTES at most, and returns how many there were. Of a
 * back end that chardev_socket_create() made, drained. Loop's thread, lock not held. */
size_t chardev_socket_last(struct chardev *chardev, uint8_t bytes[CHARDEV_RING_BYTES]);

/* What Ctrl-a b does, for who types elsewhere. -ENOTTY: whatever is connected knows no break. Loop's
 * thread, with the device lock. */
int chardev_break(struct chardev *chardev);

/* For tests: nothing happens by itself, so that a test can be as slow a back end as it likes. */
int chardev_memory_create(struct chardev **out);
/* Takes up to n bytes of output away, returns how many. Calls `writable` when it is due. */
size_t chardev_memory_take(struct chardev *chardev, void *bytes, size_t n);
/* Gives input, as much as the front end accepts; returns how much that was. */
size_t chardev_memory_feed(struct chardev *chardev, const void *bytes, size_t n);
/* What Ctrl-a b does. */
void chardev_memory_break(struct chardev *chardev);
/* What chardev_size() says from now on; tells the front end. 0, 0: no terminal. */
void chardev_memory_resize(struct chardev *chardev, unsigned columns, unsigned rows);

#endif
