/*
 * Several reads or writes by one system call: an io_uring of its own, used without waiting.
 *
 * For descriptors in non-blocking mode, whose reads and writes end at once: then all of a batch is
 * done when io_batch_run() returns, and buffers need to be there no longer than that.
 */
#ifndef FERRY_NET_IO_BATCH_H
#define FERRY_NET_IO_BATCH_H

#include <stdbool.h>
#include <sys/uio.h>

struct io_batch;

/* max: operations in a batch, at most. 0 or -errno, not logged. */
int io_batch_create(struct io_batch **out, unsigned max);
void io_batch_destroy(struct io_batch *batch);

/* Adds one; at most max since the last run. iov is borrowed until the run ended. */
void io_batch_read(struct io_batch *batch, int fd, const struct iovec *iov, unsigned n);
void io_batch_write(struct io_batch *batch, int fd, const struct iovec *iov, unsigned n);

/* Runs what was added, in that order; results[i] is what readv(2) or writev(2) of the i-th returns,
 * or -errno. One alone goes without the ring. */
void io_batch_run(struct io_batch *batch, int *results);

#endif
