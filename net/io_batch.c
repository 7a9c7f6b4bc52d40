/*
 * Batches of reads and writes on a private io_uring.
 *
 * Not for descriptors that block: a request on one would wait, and the caller with it. The ring is
 * apart from the event loop's because its requests must be over when the call is: their buffers are
 * a guest's, lent for that long. Descriptors that know no RWF_NOWAIT, as taps of Linux before 6.4, are
 * read and written without the ring: there it waits for them even in non-blocking mode. One thread at
 * a time; no locks.
 *
 * Texts: io_uring_enter(2); io_uring_prep_readv(3); preadv2(2), RWF_NOWAIT.
 */
#include "net/io_batch.h"

#include <errno.h>
#include <liburing.h>
#include <stdint.h>
#include <stdlib.h>

struct operation {
    bool write;
    int fd;
    const struct iovec *iov;
    unsigned n;
};

struct io_batch {
    struct io_uring ring;
    unsigned max, count;
    bool plain; /* its descriptors know no RWF_NOWAIT */
    struct operation operations[];
};

int io_batch_create(struct io_batch **out, unsigned max)
{
    struct io_batch *batch = calloc(1, sizeof(*batch) + max * sizeof(batch->operations[0]));
    int err;

    if (!batch)
        return -ENOMEM;
    batch->max = max;
    err = io_uring_queue_init(max, &batch->ring, IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN);
    if (err) {
        free(batch);
        return err;
    }
    *out = batch;
    return 0;
}

void io_batch_destroy(struct io_batch *batch)
{
    if (!batch)
        return;
    io_uring_queue_exit(&batch->ring);
    free(batch);
}

static void add(struct io_batch *batch, bool write, int fd, const struct iovec *iov, unsigned n)
{
    if (batch->count < batch->max)
        batch->operations[batch->count++] = (struct operation){write, fd, iov, n};
}

void io_batch_read(struct io_batch *batch, int fd, const struct iovec *iov, unsigned n)
{
    add(batch, false, fd, iov, n);
}

void io_batch_write(struct io_batch *batch, int fd, const struct iovec *iov, unsigned n)
{
    add(batch, true, fd, iov, n);
}

static int run_one(const struct operation *operation)
{
    ssize_t result = operation->write ? writev(operation->fd, operation->iov, (int)operation->n)
                                      : readv(operation->fd, operation->iov, (int)operation->n);

    return result < 0 ? -errno : (int)result;
}

/* What the ring has not done, a system call each; a descriptor that had nothing to read is not asked
 * again. */
static void run_plain(const struct io_batch *batch, int *results)
{
    int empty = -1;

    for (unsigned i = 0; i < batch->count; i++) {
        const struct operation *operation = &batch->operations[i];

        if (results[i] != -EOPNOTSUPP)
            continue;
        results[i] = !operation->write && operation->fd == empty ? -EAGAIN : run_one(operation);
        if (!operation->write && results[i] == -EAGAIN)
            empty = operation->fd;
    }
}

static void submit(struct io_batch *batch)
{
    for (unsigned i = 0; i < batch->count; i++) {
        const struct operation *operation = &batch->operations[i];
        struct io_uring_sqe *sqe = io_uring_get_sqe(&batch->ring);

        if (operation->write)
            io_uring_prep_writev(sqe, operation->fd, operation->iov, operation->n, UINT64_MAX);
        else
            io_uring_prep_readv(sqe, operation->fd, operation->iov, operation->n, UINT64_MAX);
        /* Else the ring itself would wait for a descriptor that can say when it is ready. */
        sqe->rw_flags = RWF_NOWAIT;
        io_uring_sqe_set_data64(sqe, i);
    }
}

/* Takes the completions that are there. Returns how many. */
static unsigned collect(struct io_batch *batch, int *results)
{
    struct io_uring_cqe *cqe;
    unsigned head, taken = 0;

    io_uring_for_each_cqe(&batch->ring, head, cqe) {
        results[io_uring_cqe_get_data64(cqe)] = cqe->res;
        taken++;
    }
    io_uring_cq_advance(&batch->ring, taken);
    return taken;
}

/* A descriptor that knows no RWF_NOWAIT has -EOPNOTSUPP for a result. */
static void run_in_ring(struct io_batch *batch, int *results)
{
    unsigned left = batch->count;

    submit(batch);
    while (left > 0) {
        int result = io_uring_submit_and_wait(&batch->ring, left);

        if (result < 0 && result != -EINTR && result != -EAGAIN && result != -EBUSY)
            break; /* the ring is broken; what is left has no result */
        left -= collect(batch, results);
    }
    for (unsigned i = 0; i < batch->count; i++) {
        if (left > 0)
            results[i] = -EIO;
        batch->plain |= left > 0 || results[i] == -EOPNOTSUPP;
    }
}

void io_batch_run(struct io_batch *batch, int *results)
{
    for (unsigned i = 0; i < batch->count; i++)
        results[i] = -EOPNOTSUPP;
    if (batch->count > 1 && !batch->plain)
        run_in_ring(batch, results);
    run_plain(batch, results);
    batch->count = 0;
}
