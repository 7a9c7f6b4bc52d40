/*
 * virtio-net, transmitting: frames from the driver's buffers to the port.
 *
 * A batch of frames goes to the peer as they lie in guest memory, but for the headers of those that
 * are to be cut: these are copied and checked, and the copy goes. The device lock is not held while
 * the peer has them, because the peer may answer at once, into deliver(), and may take its time
 * (system calls). In that window a vCPU may reset the device: `sending` keeps the reset from being
 * complete (§2.4.1), and the generation tells afterwards. Frames the peer refuses go back into the
 * queue, and all queues rest until the peer's ready(). A driver that never stops sending is
 * interrupted every TX_BUDGET frames, or sooner by those to be cut very small, for the loop's other
 * work.
 *
 * While the loop polls (loop_set_polling()), kicks are not wanted and the queues are looked at without
 * them. Before it sleeps they are asked for again, and the queues looked at once more: the driver
 * that did not see the wish is seen by that look (§2.7.10, §2.8.10).
 *
 * Headers of the driver's are read only if it may leave checksums to the card. Nothing is allocated.
 *
 * Threads: the loop's, with the device lock held by the caller.
 *
 * Texts: virtio 1.2 §5.1.6.2.
 */
#include <endian.h>
#include <string.h>

#include "devices/virtio/net_internal.h"

#define TX_BUDGET (256u * FRAME_COST) /* of frames sent before the loop has its turn */
/* As many segments as the longest frame is cut into on an Ethernet; one that is cut smaller costs
 * more, by its segments, as somebody may have to make these, and for each receiver. */
#define FRAME_COST 48u

/* ---- metadata ---- */

/* What the driver agreed to leave to the card; all of it presumes the checksum (§5.1.3.1). */
static uint32_t offloads_of_driver(const struct virtio_net *net)
{
    static const struct {
        unsigned feature;
        uint32_t offloads;
    } rows[] = {
        {VIRTIO_NET_F_HOST_TSO4, NET_OFFLOAD_TSO4},
        {VIRTIO_NET_F_HOST_TSO6, NET_OFFLOAD_TSO6},
        {VIRTIO_NET_F_HOST_ECN, NET_OFFLOAD_TSO_ECN},
        {VIRTIO_NET_F_HOST_USO, NET_OFFLOAD_USO4 | NET_OFFLOAD_USO6},
    };
    uint32_t bits = NET_OFFLOAD_CSUM;

    if (!virtio_has(&net->vdev, VIRTIO_NET_F_CSUM))
        return 0;
    for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        bits |= virtio_has(&net->vdev, rows[i].feature) ? rows[i].offloads : 0;
    return bits;
}

/* Puts the copy of the headers in the place of the frame's own. There is room for one piece before
 * the frame's first. */
static void replace_headers(struct net_frame *frame, struct iovec *iov, uint8_t *headers,
                            size_t length)
{
    size_t left = length;

    while (left > 0 && left >= iov->iov_len) {
        left -= iov->iov_len;
        iov++;
        frame->iovcnt--;
    }
    if (left > 0) {
        iov->iov_base = (uint8_t *)iov->iov_base + left;
        iov->iov_len -= left;
    }
    *--iov = (struct iovec){headers, length};
    frame->iov = iov;
    frame->iovcnt++;
}

/* Reads what the driver's header asks for. false: it is nonsense, or was not agreed to. */
static bool read_metadata(struct virtio_net *net, const struct virtio_net_hdr_v1 *header,
                          struct net_frame *frame, struct iovec *iov)
{
    uint32_t agreed = offloads_of_driver(net);
    uint8_t *headers = net->batch.headers[net->batch.n_frames];
    size_t length;

    /* §5.1.6.2.2: without the feature the fields have no meaning. */
    if (!agreed || (!(header->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) && !header->gso_type))
        return true;
    frame->needs_csum = header->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM;
    frame->csum_start = le16toh(header->csum_start);
    frame->csum_offset = le16toh(header->csum_offset);
    frame->gso_type = header->gso_type;
    frame->gso_size = le16toh(header->gso_size);
    if ((net_offload_needs(frame) & ~agreed) || net_offload_check(frame, headers, &length) != 0)
        return false;
    if (length > 0)
        replace_headers(frame, iov, headers, length);
    return true;
}

/* ---- frames ---- */

/* The frame in a chain, behind its header: false when there is none. */
static bool find_frame(struct virtio_net *net, struct virtqueue_chain *chain,
                       struct net_frame *frame)
{
    size_t skip = net_header_bytes(net);
    struct virtio_net_hdr_v1 header;
    unsigned i = 0;

    if (chain->readable_bytes < skip + NET_FRAME_MIN ||
        chain->readable_bytes > skip + NET_FRAME_MAX)
        return false;
    virtqueue_read(chain, 0, &header, sizeof(header));
    *frame = (struct net_frame){.length = chain->readable_bytes - skip};
    while (skip >= chain->iov[i].iov_len)
        skip -= chain->iov[i++].iov_len;
    chain->iov[i].iov_base = (uint8_t *)chain->iov[i].iov_base + skip;
    chain->iov[i].iov_len -= skip;
    frame->iov = &chain->iov[i];
    frame->iovcnt = chain->n_readable - i;
    return read_metadata(net, &header, frame, &chain->iov[i]);
}

/* §5.1.6.5.5: what comes for this flow shall be received by the same pair. */
static void learn_flow(struct virtio_net *net, const struct net_frame *frame, unsigned pair)
{
    uint8_t start[NET_FLOW_BYTES];
    struct net_flow flow;
    size_t length = 0;

    for (unsigned i = 0; i < frame->iovcnt && length < sizeof(start); i++) {
        size_t run = frame->iov[i].iov_len;

        if (run > sizeof(start) - length)
            run = sizeof(start) - length;
        memcpy(start + length, frame->iov[i].iov_base, run);
        length += run;
    }
    net_flow_find(&flow, start, length);
    if (flow.addresses > 0)
        net->flows[net_flow_symmetric(&flow) % NET_FLOWS] = (uint8_t)(pair + 1);
}

static unsigned cost_of(const struct net_frame *frame)
{
    size_t segments = frame->gso_type ? frame->length / frame->gso_size : 1;

    return segments > FRAME_COST ? (unsigned)segments : FRAME_COST;
}

static void add_chain(struct virtio_net *net, struct virtqueue_chain *chain, unsigned pair)
{
    struct net_sending *batch = &net->batch;
    struct net_frame *frame = &batch->frames[batch->n_frames];
    int place = -1;

    if (find_frame(net, chain, frame)) {
        place = (int)batch->n_frames++;
        batch->cost += cost_of(frame);
        if (net_active_pairs(net) > 1 && !net->state.rss)
            learn_flow(net, frame, pair);
    } else {
        batch->cost += FRAME_COST;
        net->counters.malformed++;
        log_guest(&net->vdev.log_rate,
                  "%s: the guest sent a buffer of %llu bytes, which is no frame", net->vdev.id,
                  (unsigned long long)chain->readable_bytes);
    }
    batch->chains[batch->n_chains].head = chain->head;
    batch->chains[batch->n_chains++].frame = place;
}

/* ---- batches ---- */

/* Takes what waits in the queue, as far as there is room in the batch and `budget` is left. */
static void collect(struct virtio_net *net, unsigned pair, unsigned budget)
{
    struct virtqueue *vq = net_tx_queue(net, pair);
    struct net_sending *batch = &net->batch;
    unsigned pieces = 1; /* before each chain one is left for a copy of its headers */

    batch->n_chains = 0;
    batch->n_frames = 0;
    batch->cost = 0;
    while (batch->n_chains < NET_BATCH && batch->cost < budget &&
           pieces + VIRTQUEUE_MAX_PIECES <= NET_POOL_PIECES) {
        struct virtqueue_chain chain = {
            .iov = batch->pool.iov + pieces,
            .gpa = batch->pool.gpa + pieces,
            .capacity = NET_POOL_PIECES - pieces,
        };
        int got = virtqueue_pop(vq, &chain);

        if (got == 0 && batch->n_chains == 0 && !net->polled && virtqueue_enable_kicks(vq)) {
            virtqueue_disable_kicks(vq);
            got = virtqueue_pop(vq, &chain);
        }
        if (got < 0)
            virtio_device_broken(&net->vdev, "its transmit queue is corrupt");
        if (got <= 0)
            return;
        pieces += chain.n_readable + chain.n_writable + 1;
        add_chain(net, &chain, pair);
    }
}

/* Returns the buffers of the first `taken` frames, and puts those of the others back. */
static void settle(struct virtio_net *net, struct virtqueue *vq, unsigned taken)
{
    struct net_sending *batch = &net->batch;
    uint16_t done = 0;

    while (done < batch->n_chains && batch->chains[done].frame < (int)taken) {
        virtqueue_fill(vq, batch->chains[done].head, 0, done);
        done++;
    }
    if (done > 0)
        virtqueue_flush(vq, done);
    for (unsigned i = done; i < batch->n_chains; i++)
        virtqueue_unpop(vq);
    net->blocked = done < batch->n_chains;
}

static void count_taken(struct virtio_net *net, unsigned taken)
{
    net->counters.tx_frames += taken;
    for (unsigned i = 0; i < taken; i++)
        net->counters.tx_bytes += net->batch.frames[i].length;
}

/* Sends the batch, with the lock let go meanwhile; false when the queue is not to be looked at any
 * more. */
static bool send_batch(struct virtio_net *net, struct virtqueue *vq)
{
    struct virtio_device *vdev = &net->vdev;
    struct net_sending *batch = &net->batch;
    uint32_t generation = vdev->generation;
    unsigned taken = batch->n_frames;

    if (batch->n_frames > 0 && net->link_up && virtio_device_live(vdev)) {
        device_unlock(vdev->env);
        taken = net_port_send(&net->port, batch->frames, batch->n_frames);
        device_lock(vdev->env);
        net_note_traffic(net);
        count_taken(net, taken);
        /* Reset, or broken by what came in: the chains are not this queue's any more. */
        if (vdev->generation != generation || !virtio_device_live(vdev))
            return false;
    }
    settle(net, vq, taken);
    return !net->blocked && virtio_device_live(vdev);
}

void net_tx_run(struct virtio_net *net, unsigned pair)
{
    struct virtqueue *vq = net_tx_queue(net, pair);
    unsigned budget = TX_BUDGET;
    bool more;

    if (net->sending)
        net_leave_for_later(net);
    if (net->sending || net->blocked)
        return;
    net->sending = true;
    virtqueue_disable_kicks(vq);
    do {
        collect(net, pair, budget);
        budget -= net->batch.cost < budget ? net->batch.cost : budget;
        more = net->batch.n_chains > 0 && send_batch(net, vq);
    } while (more && budget > 0);
    if (more)
        net_leave_for_later(net);
    virtio_queue_notify(&net->vdev, vq);
    net->sending = false;
    device_unlock(net->vdev.env);
    net_port_flush(&net->port);
    device_lock(net->vdev.env);
}

void net_tx_ready(struct net_port *port)
{
    struct virtio_net *net = net_of_port(port);

    device_lock(net->vdev.env);
    net->blocked = false;
    for (unsigned i = 0; i < net_pairs(net); i++)
        virtio_queue_kicked(&net->vdev, i * 2 + 1);
    device_unlock(net->vdev.env);
}

/* ---- polling ---- */

static struct virtio_net *net_of_poller(struct loop_poller *poller)
{
    return (struct virtio_net *)((char *)poller - offsetof(struct virtio_net, poller));
}

/* Whether there is something in the queue that can be sent now. */
static bool may_send(struct virtio_net *net, unsigned pair)
{
    return !net->blocked && !net->sending && virtqueue_pending(net_tx_queue(net, pair));
}

/* The driver's frames that it need not kick for. With the lock held. */
static bool send_pending(struct virtio_net *net)
{
    bool work = false;

    for (unsigned i = 0; virtio_device_live(&net->vdev) && i < net_pairs(net); i++) {
        if (!may_send(net, i))
            continue;
        virtio_queue_kicked(&net->vdev, i * 2 + 1);
        work = true;
    }
    return work;
}

bool net_tx_poll(struct loop_poller *poller)
{
    struct virtio_net *net = net_of_poller(poller);
    bool work;

    /* A vCPU that is in there is not to wait for who only looks. */
    if (!device_trylock(net->vdev.env))
        return false;
    work = send_pending(net);
    device_unlock(net->vdev.env);
    return work;
}

bool net_tx_polled(struct loop_poller *poller, bool on)
{
    struct virtio_net *net = net_of_poller(poller);
    bool work = false;

    device_lock(net->vdev.env);
    net->polled = on;
    /* One that is paused asks for kicks when it goes on: all its queues are kicked then. */
    for (unsigned i = 0; virtio_device_live(&net->vdev) && i < net_pairs(net); i++) {
        if (on)
            virtqueue_mute_kicks(net_tx_queue(net, i));
        else
            (void)virtqueue_enable_kicks(net_tx_queue(net, i));
    }
    if (!on)
        work = send_pending(net);
    device_unlock(net->vdev.env);
    return work;
}
