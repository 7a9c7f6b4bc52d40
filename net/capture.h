/*
 * Captures: writes frames to a file or pipe as pcapng, through the event loop.
 *
 * Frames are put into one of two buffers while the other is being written; when both are full,
 * frames are left out and counted. So nobody waits for a disk. Loop's thread; no locks.
 */
#ifndef FERRY_NET_CAPTURE_H
#define FERRY_NET_CAPTURE_H

#include <stdbool.h>
#include <stdint.h>

#include "net/port.h"

struct capture;
struct loop;

/* fd: owned by the capture from now on, unless this fails. snap_length: bytes of a frame that are
 * kept; 0: all. 0 or -ENOMEM, not logged. */
int capture_create(struct capture **out, struct loop *loop, int fd, unsigned snap_length);
/* Ends it at once, with what is not written yet lost. Waits for what the kernel has in hand.
 * NULL is fine. Not from a callback of the loop. */
void capture_destroy(struct capture *capture);
/* Writes what is there, closes the file, frees the capture, then calls stopped(arg, error) if it is
 * not NULL; never before it returns. */
void capture_finish(struct capture *capture, void (*stopped)(void *arg, int error), void *arg);

/* The number of the interface of that name, which is made when it is new. */
uint16_t capture_interface(struct capture *capture, const char *name);

/* At most NET_BATCH frames that the interface saw now. in: into the switch. Returns how many were
 * kept. Starts no write: capture_flush() does. */
unsigned capture_frames(struct capture *capture, uint16_t interface, bool in,
                        const struct net_frame *frames, unsigned n);

/* The first error of writing, or 0: after it nothing is kept any more. */
int capture_error(const struct capture *capture);

#endif
