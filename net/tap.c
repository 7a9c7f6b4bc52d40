/*
 * A tap's port: reading and writing frames in batches.
 *
 * To the kernel: each deliver() is one batch of writes, one system call (io_batch.h), out of the
 * sender's memory. Nothing is held back: what the device does not take is dropped and counted.
 *
 * From the kernel: a poll per queue on the loop's ring says when there is something; then frames are
 * read in batches, as many at a time as came last and some more, until there are no more or others
 * shall have their turn. Large segments, of which more come where one came, are read one by one straight
 * into the memory of a peer that lends it. What the peer refuses waits here, and with it the device's own queue, which
 * drops when it is full, as a wire's receiver would.
 *
 * Does not open devices (tap_device.c), and knows nothing of what else is made on the host for them.
 * Loop's thread; no locks. Text: virtio 1.2 §5.1.6, whose header IFF_VNET_HDR has.
 */
#include "net/tap.h"

#include <errno.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "net/io_batch.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define HEADER sizeof(struct virtio_net_hdr)
_Static_assert(HEADER == 10, "the default of TUNSETVNETHDRSZ");

/* Frames read at a time, and the room for each, of which only what is used is ever touched. */
#define READS 32u
#define READ_ROOM 69632u
_Static_assert(READ_ROOM >= NET_FRAME_MAX + HEADER, "the longest frame");
/* From this length on a copy costs more than the peer's looking for that much memory of its own. */
#define DIRECT_MIN 32768u
/* Batches read before others have their turn. */
#define READ_ROUNDS 8u
/* Pieces of memory in a batch of writes. */
#define PIECES 1024u
/* What tells one flow from another: of IPv4 without options, addresses and ports. Bytes before and
 * behind differ within a flow (identification, checksum, sequence numbers). */
#define FLOW_SKIP 26u
#define FLOW_BYTES 38u

struct tap_queue {
    struct tap *tap;
    unsigned index;
    struct loop_op poll;
    unsigned expect; /* frames, next time */
    bool idle;       /* it may have something, and no poll will tell */
    bool large;      /* what came last was at least DIRECT_MIN long */
};

struct tap {
    struct net_port port;
    struct loop *loop;
    struct tap_device device;
    struct tap_hooks hooks;
    struct tap_queue queues[TAP_MAX_QUEUES];
    struct io_batch *batch;
    uint32_t offloads; /* what the kernel was told that the peer accepts */
    bool closing;
    struct tap_counters counters;
    struct log_rate log_rate;

    /* Read and not yet delivered: frames[held] to frames[n_read - 1]. */
    unsigned held, n_read;
    uint8_t *room; /* owns: READS times READ_ROOM */
    struct iovec read_iov[READS];
    struct iovec frame_iov[READS];
    struct net_frame frames[READS];
    struct net_loan loan;

    /* While a batch is written. */
    struct virtio_net_hdr headers[NET_BATCH];
    struct iovec pieces[PIECES];
};

static struct tap *tap_of(struct net_port *port)
{
    return (struct tap *)((char *)port - offsetof(struct tap, port));
}

/* ---- to the kernel ---- */

static struct virtio_net_hdr header_of(const struct net_frame *frame)
{
    struct virtio_net_hdr header = {
        .gso_type = frame->gso_type,
        .gso_size = frame->gso_size,
        .hdr_len = frame->hdr_len,
    };

    if (frame->needs_csum) {
        header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        header.csum_start = frame->csum_start;
        header.csum_offset = frame->csum_offset;
    } else if (frame->csum_valid) {
        header.flags = VIRTIO_NET_HDR_F_DATA_VALID;
    }
    return header;
}

static void count_refusal(struct tap *tap, int result)
{
    if (result == -EAGAIN) {
        tap->counters.full++;
        return;
    }
    tap->counters.refused++;
    if (result == -EIO || result == -ENETDOWN)
        log_guest(&tap->log_rate, "%s: %s is down, and drops what the guest sends ('ip link set %s "
                  "up')", tap->port.name, tap->device.name, tap->device.name);
    else
        log_guest(&tap->log_rate, "%s: %s refuses a frame: %s", tap->port.name, tap->device.name,
                  strerror(-result));
}

static void write_batch(struct tap *tap, unsigned n)
{
    int results[NET_BATCH];

    if (n == 0)
        return;
    io_batch_run(tap->batch, results);
    for (unsigned i = 0; i < n; i++) {
        if (results[i] < 0)
            count_refusal(tap, results[i]);
    }
}

/* Whether the frame is one for the kernel. */
static bool check_frame(struct tap *tap, const struct net_frame *frame)
{
    if (frame->length >= NET_FRAME_MIN && frame->length <= NET_FRAME_MAX &&
        frame->iovcnt < PIECES)
        return true;
    tap->counters.malformed++;
    return false;
}

/* Frames of one flow must keep their order, so go by one queue. The kernel then gives back by the
 * same queue what belongs to that flow. */
static int write_fd(const struct tap *tap, const struct net_frame *frame)
{
    size_t left = FLOW_BYTES;
    uint32_t hash = 0x811C9DC5u; /* FNV-1a, 32 bits */

    if (tap->device.n_queues == 1)
        return tap->device.fds[0];
    for (unsigned i = 0; i < frame->iovcnt && left > 0; i++) {
        const uint8_t *bytes = frame->iov[i].iov_base;

        for (size_t at = 0; at < frame->iov[i].iov_len && left > 0; at++, left--)
            hash = left <= FLOW_BYTES - FLOW_SKIP ? (hash ^ bytes[at]) * 0x01000193u : hash;
    }
    return tap->device.fds[hash % tap->device.n_queues];
}

static unsigned port_deliver(struct net_port *port, const struct net_frame *frames, unsigned n)
{
    struct tap *tap = tap_of(port);
    unsigned used = 0, queued = 0;

    for (unsigned i = 0; i < n; i++) {
        const struct net_frame *frame = &frames[i];

        if (!check_frame(tap, frame) ||
            (tap->hooks.intercept && tap->hooks.intercept(tap->hooks.arg, frame)))
            continue;
        if (used + 1 + frame->iovcnt > PIECES) {
            write_batch(tap, queued);
            used = queued = 0;
        }
        tap->headers[queued] = header_of(frame);
        tap->pieces[used] = (struct iovec){&tap->headers[queued], HEADER};
        memcpy(&tap->pieces[used + 1], frame->iov, frame->iovcnt * sizeof(frame->iov[0]));
        io_batch_write(tap->batch, write_fd(tap, frame), &tap->pieces[used], frame->iovcnt + 1);
        used += frame->iovcnt + 1;
        queued++;
    }
    write_batch(tap, queued);
    return n;
}

/* ---- from the kernel ---- */

/* Has the kernel leave undone what the peer accepts, which may change with its driver. */
static void follow_peer(struct tap *tap)
{
    uint32_t accepted = tap->port.peer ? net_port_accepts(tap->port.peer) : 0;

    if (accepted == tap->offloads)
        return;
    (void)tap_device_set_offloads(&tap->device, accepted);
    tap->offloads = accepted;
}

/* Makes a frame without pieces of what was read, its header included. False: it is none. */
static bool make_frame(const struct virtio_net_hdr *header, size_t length, struct net_frame *frame)
{
    if (length < HEADER + NET_FRAME_MIN || length > HEADER + NET_FRAME_MAX)
        return false;
    *frame = (struct net_frame){
        .length = length - HEADER,
        .needs_csum = header->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM,
        .csum_valid = header->flags & VIRTIO_NET_HDR_F_DATA_VALID,
        .gso_type = header->gso_type,
        .csum_start = header->csum_start,
        .csum_offset = header->csum_offset,
        .gso_size = header->gso_size,
        .hdr_len = header->hdr_len,
    };
    return true;
}

/* The same of what was read into slot i. */
static bool read_frame(struct tap *tap, unsigned i, size_t length, struct net_frame *frame)
{
    struct virtio_net_hdr header;

    memcpy(&header, tap->read_iov[i].iov_base, HEADER);
    if (!make_frame(&header, length, frame))
        return false;
    tap->frame_iov[i] =
        (struct iovec){(uint8_t *)tap->read_iov[i].iov_base + HEADER, length - HEADER};
    frame->iov = &tap->frame_iov[i];
    frame->iovcnt = 1;
    return true;
}

enum reading { MORE, EMPTY, GONE };

/* Fills tap->frames. */
static enum reading read_batch(struct tap *tap, struct tap_queue *queue)
{
    int fd = tap->device.fds[queue->index];
    unsigned asked = queue->expect, got = 0;
    enum reading reading = MORE;
    int results[READS];

    for (unsigned i = 0; i < asked; i++)
        io_batch_read(tap->batch, fd, &tap->read_iov[i], 1);
    io_batch_run(tap->batch, results);
    tap->held = tap->n_read = 0;
    for (unsigned i = 0; i < asked; i++) {
        if (results[i] == -EBADFD || results[i] == -ENODEV)
            reading = GONE;
        else if (results[i] <= 0 && reading == MORE)
            reading = EMPTY;
        else if (results[i] > 0 && ++got)
            tap->n_read += read_frame(tap, i, (size_t)results[i], &tap->frames[tap->n_read]);
    }
    /* One more than came is enough to see that there is no more. */
    queue->expect = got == asked ? 2 * asked : got + 1;
    if (queue->expect > READS)
        queue->expect = READS;
    if (tap->n_read > 0)
        queue->large = tap->frames[tap->n_read - 1].length >= DIRECT_MIN;
    return reading;
}

/* Reads a frame into the peer's memory, if that lends it, and hands it over. */
static enum reading read_direct(struct tap *tap, struct tap_queue *queue)
{
    struct iovec pieces[1 + NET_LOAN_PIECES];
    struct virtio_net_hdr header;
    struct net_frame frame;
    ssize_t length;
    int err;

    queue->large = net_port_borrow(&tap->port, &tap->loan);
    if (!queue->large)
        return MORE;
    pieces[0] = (struct iovec){&header, HEADER};
    memcpy(&pieces[1], tap->loan.iov, tap->loan.n * sizeof(pieces[0]));
    length = readv(tap->device.fds[queue->index], pieces, (int)tap->loan.n + 1);
    err = errno;
    if (length <= 0 || !make_frame(&header, (size_t)length, &frame)) {
        net_port_return(&tap->port, NULL);
        if (length >= 0)
            return MORE;
        return err == EBADFD || err == ENODEV ? GONE : EMPTY;
    }
    tap->counters.direct++;
    queue->large = frame.length >= DIRECT_MIN;
    net_port_return(&tap->port, &frame);
    return MORE;
}

/* As many as a batch has. */
static enum reading read_large(struct tap *tap, struct tap_queue *queue)
{
    enum reading reading = MORE;

    for (unsigned i = 0; i < READS && reading == MORE && queue->large; i++)
        reading = read_direct(tap, queue);
    return reading;
}

/* Whether the peer took all that was read. */
static bool pass_on(struct tap *tap)
{
    if (tap->held < tap->n_read)
        tap->held += net_port_send(&tap->port, &tap->frames[tap->held], tap->n_read - tap->held);
    return tap->held == tap->n_read;
}

static void watch(struct tap_queue *queue)
{
    queue->idle = false;
    loop_poll(queue->tap->loop, &queue->poll, queue->tap->device.fds[queue->index], POLLIN);
}

static void drain(struct tap_queue *queue)
{
    struct tap *tap = queue->tap;
    enum reading reading = MORE;

    queue->idle = true;
    follow_peer(tap);
    for (unsigned round = 0; reading == MORE && round < READ_ROUNDS; round++) {
        reading = queue->large ? read_large(tap, queue) : read_batch(tap, queue);
        if (!pass_on(tap))
            return; /* until port_ready() */
    }
    if (reading != GONE) {
        watch(queue);
        return;
    }
    log_warn("%s: %s is gone", tap->port.name, tap->device.name);
}

static void poll_done(struct loop_op *op, int result)
{
    struct tap_queue *queue = (struct tap_queue *)((char *)op - offsetof(struct tap_queue, poll));
    struct tap *tap = queue->tap;

    if (tap->closing || result == -ECANCELED)
        return;
    /* What is held has the buffers; the queue waits for it. */
    if (tap->held < tap->n_read) {
        queue->idle = true;
        return;
    }
    drain(queue);
    net_port_flush(&tap->port);
}

static void port_ready(struct net_port *port)
{
    struct tap *tap = tap_of(port);

    if (tap->closing || tap->held == tap->n_read)
        return;
    if (pass_on(tap)) {
        for (unsigned i = 0; i < tap->device.n_queues && tap->held == tap->n_read; i++) {
            if (tap->queues[i].idle)
                drain(&tap->queues[i]);
        }
    }
    net_port_flush(port);
}

static void port_filter_changed(struct net_port *port, const struct net_receive_filter *filter)
{
    struct tap *tap = tap_of(port);

    if (tap->hooks.filter_changed)
        tap->hooks.filter_changed(tap->hooks.arg, filter);
}

static const struct net_port_ops port_ops = {
    .deliver = port_deliver,
    .ready = port_ready,
    .filter_changed = port_filter_changed,
};

/* ---- life ---- */

static void start_reading(struct tap *tap)
{
    for (unsigned i = 0; i < READS; i++)
        tap->read_iov[i] = (struct iovec){tap->room + i * READ_ROOM, READ_ROOM};
    for (unsigned i = 0; i < tap->device.n_queues; i++) {
        tap->queues[i] = (struct tap_queue){
            .tap = tap, .index = i, .poll.done = poll_done, .expect = 1};
        watch(&tap->queues[i]);
    }
}

int tap_create(struct tap **out, struct loop *loop, const char *name,
               const struct tap_device *device, const struct tap_hooks *hooks)
{
    struct tap *tap = calloc(1, sizeof(*tap));
    int err = -ENOMEM;

    if (!tap)
        goto fail;
    tap->room = malloc((size_t)READS * READ_ROOM);
    if (!tap->room)
        goto free_tap;
    err = io_batch_create(&tap->batch, NET_BATCH);
    if (err)
        goto free_tap;
    tap->port = (struct net_port){.ops = &port_ops, .name = name};
    tap->loop = loop;
    tap->device = *device;
    if (hooks)
        tap->hooks = *hooks;
    atomic_store_explicit(&tap->port.accepts, tap_device_offloads(device), memory_order_relaxed);
    tap->offloads = tap_device_set_offloads(device, 0);
    start_reading(tap);
    *out = tap;
    return 0;

free_tap:
    free(tap->room);
    free(tap);
fail:
    log_error("%s: cannot set up the tap's port: %s", name, strerror(-err));
    return err;
}

static bool is_idle(void *arg)
{
    const struct tap *tap = arg;
    bool pending = false;

    for (unsigned i = 0; i < tap->device.n_queues; i++)
        pending |= tap->queues[i].poll.pending;
    return !pending;
}

void tap_destroy(struct tap *tap)
{
    if (!tap)
        return;
    tap->closing = true;
    log_debug("%s: %llu frames were read straight into the guest's memory", tap->port.name,
              (unsigned long long)tap->counters.direct);
    net_port_disconnect(&tap->port);
    for (unsigned i = 0; i < tap->device.n_queues; i++)
        loop_cancel(tap->loop, &tap->queues[i].poll);
    (void)loop_run_until(tap->loop, is_idle, tap, 0);
    io_batch_destroy(tap->batch);
    tap_device_close(&tap->device);
    free(tap->room);
    free(tap);
}

struct net_port *tap_port(struct tap *tap)
{
    return &tap->port;
}

const struct tap_device *tap_device(const struct tap *tap)
{
    return &tap->device;
}

void tap_get_counters(const struct tap *tap, struct tap_counters *counters)
{
    *counters = tap->counters;
}
