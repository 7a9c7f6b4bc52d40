/*
 * virtio-net, receiving: frames from the port into the driver's buffers.
 *
 * A frame is copied once, from the peer's memory into the driver's buffers, over several of them if
 * the driver merges. Which receive queue it goes to is said by the RSS table, or by the queue that
 * the flow's other direction was sent by. A frame for which there are not enough buffers is refused,
 * and its sender told when there are more; kicks of the receive queue are wanted only meanwhile.
 * The interrupt waits for the peer's flush().
 *
 * A frame's metadata were checked by who sent it; here is seen to it only that the driver gets none
 * which it did not agree to. Of the guest only lengths are trusted after they were checked; the
 * engine has checked every address.
 *
 * A peer that reads frames by a system call may borrow the buffers instead (net_rx_lend()), so that
 * nothing is copied here: a tap does, for large segments. That is possible where all frames go to one
 * queue. The lock is not held while they are lent; until they are back, a reset is not complete, and the
 * generation tells then whether they are still this driver's.
 *
 * Threads: the loop's, with the device lock taken here.
 *
 * Texts: virtio 1.2 §5.1.6.3, §5.1.6.4, §5.1.6.5.
 */
#include <endian.h>
#include <linux/virtio_config.h>
#include <string.h>

#include "devices/virtio/net_internal.h"

#define RX_BYTES (256u << 10) /* copied under one taking of the lock, about */

#define ETHER_HEADER 14u
#define VLAN_TAG 4u
#define ETHER_TYPE 12u
#define TYPE_VLAN 0x8100u
#define NUM_BUFFERS_AT offsetof(struct virtio_net_hdr_v1, num_buffers)

/* The bytes of a frame, taken one run after the other. */
struct frame_reader {
    const struct iovec *iov;
    size_t offset; /* in *iov */
    size_t left;   /* of the frame */
};

static void read_frame(struct frame_reader *reader, uint8_t *to, size_t length)
{
    reader->left -= length;
    while (length > 0) {
        size_t run = reader->iov->iov_len - reader->offset;

        if (run > length)
            run = length;
        /* Both sides are the guest's memory when a frame of its own comes back to it, and it may
         * have laid one over the other. */
        memmove(to, (const uint8_t *)reader->iov->iov_base + reader->offset, run);
        to += run;
        length -= run;
        reader->offset += run;
        if (reader->offset == reader->iov->iov_len) {
            reader->iov++;
            reader->offset = 0;
        }
    }
}

/* A byte of a chain's writable part. */
struct byte_at {
    uint8_t *host;
    gpa_t gpa;
};

static struct byte_at find_byte(const struct virtqueue_chain *chain, size_t offset)
{
    unsigned i = chain->n_readable;

    while (offset >= chain->iov[i].iov_len)
        offset -= chain->iov[i++].iov_len;
    return (struct byte_at){(uint8_t *)chain->iov[i].iov_base + offset, chain->gpa[i] + offset};
}

/* Fills a chain with the frame's next bytes, behind `skip` bytes that are filled already; marks all
 * of it dirty. Returns how many bytes of the chain are in use. */
static uint32_t fill_chain(struct virtio_net *net, struct frame_reader *reader, size_t skip)
{
    const struct virtqueue_chain *chain = &net->taken;
    size_t used = 0;

    for (unsigned i = 0; i < chain->n_writable && (reader->left > 0 || skip > 0); i++) {
        const struct iovec *piece = &chain->iov[chain->n_readable + i];
        size_t start = skip < piece->iov_len ? skip : piece->iov_len;
        size_t length = piece->iov_len - start;

        if (length > reader->left)
            length = reader->left;
        read_frame(reader, (uint8_t *)piece->iov_base + start, length);
        memory_mark_dirty(net->vdev.env->mem, chain->gpa[chain->n_readable + i], start + length);
        skip -= start;
        used += start + length;
    }
    return (uint32_t)used;
}

/* What is looked at of a frame before it is placed, copied once. */
struct start {
    uint8_t bytes[NET_FLOW_BYTES];
    size_t length;
};

static void read_start(const struct net_frame *frame, struct start *start, size_t length)
{
    struct frame_reader reader = {.iov = frame->iov, .left = frame->length};

    start->length = length < frame->length ? length : frame->length;
    read_frame(&reader, start->bytes, start->length);
}

/* ---- which queue ---- */

/* Where a frame goes, and what the driver is told of its hash. */
struct route {
    unsigned pair;
    uint32_t hash;
    uint16_t report;
};

static bool needs_flow(const struct virtio_net *net)
{
    return net_active_pairs(net) > 1 || net->state.rss ||
           (virtio_has(&net->vdev, VIRTIO_NET_F_HASH_REPORT) && net->state.hash_types);
}

static void choose(struct virtio_net *net, const struct start *start, struct route *route)
{
    const struct net_state *state = &net->state;
    struct net_flow flow;
    uint32_t symmetric;

    *route = (struct route){0};
    if (!needs_flow(net))
        return;
    net_flow_find(&flow, start->bytes, start->length);
    route->hash = net_hasher_hash(&net->hasher, state->hash_types, &flow, &route->report);
    if (state->rss) {
        /* §5.1.6.5.6.3: by the table, or to the queue for what has no hash. */
        route->pair = route->report == VIRTIO_NET_HASH_REPORT_NONE
                          ? state->unclassified
                          : state->table[route->hash & state->table_mask];
        return;
    }
    /* §5.1.6.5.5.2: never beyond the pairs in use. */
    symmetric = net_flow_symmetric(&flow);
    route->pair = net->flows[symmetric % NET_FLOWS];
    route->pair = route->pair > 0 ? route->pair - 1 : symmetric >> 16;
    route->pair %= net_active_pairs(net);
}

/* ---- placing ---- */

/* Where num_buffers stands, in the first of a frame's chains, for when it is known. */
struct num_buffers {
    struct byte_at low, high;
};

/* §5.1.6.4: what the frame's sender left to do. Without an offload all is 0. */
static struct num_buffers write_header(struct virtio_net *net, const struct virtqueue_chain *chain,
                                       const struct net_frame *frame, const struct route *route)
{
    struct virtio_net_hdr_v1_hash header = {
        .hash_value = htole32(route->hash),
        .hash_report = htole16(route->report),
    };

    if (frame->needs_csum) {
        header.hdr.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        header.hdr.csum_start = htole16(frame->csum_start);
        header.hdr.csum_offset = htole16(frame->csum_offset);
    } else if (frame->csum_valid && (net_accepted(net) & NET_OFFLOAD_CSUM)) {
        header.hdr.flags = VIRTIO_NET_HDR_F_DATA_VALID;
    }
    if (frame->gso_type) {
        header.hdr.gso_type = frame->gso_type;
        header.hdr.gso_size = htole16(frame->gso_size);
        header.hdr.hdr_len = htole16(frame->hdr_len);
    }
    virtqueue_write(chain, 0, &header, net_header_bytes(net));
    return (struct num_buffers){
        find_byte(chain, NUM_BUFFERS_AT),
        find_byte(chain, NUM_BUFFERS_AT + 1),
    };
}

static void write_num_buffers(struct virtio_net *net, const struct num_buffers *at, uint16_t count)
{
    *at->low.host = (uint8_t)count;
    *at->high.host = (uint8_t)(count >> 8);
    memory_mark_dirty(net->vdev.env->mem, at->low.gpa, 1);
    memory_mark_dirty(net->vdev.env->mem, at->high.gpa, 1);
}

enum placing { PLACED, NO_BUFFERS, DOES_NOT_FIT, BROKEN };

/* Takes the queue's next chain and checks that it can hold what it must. */
static enum placing take_buffer(struct virtio_net *net, struct virtqueue *vq, bool first,
                                size_t whole)
{
    int got = virtqueue_pop(vq, &net->taken);

    /* Kicks are wanted from here on, unless buffers came while this was being said. */
    if (got == 0 && virtqueue_enable_kicks(vq))
        got = virtqueue_pop(vq, &net->taken);
    if (got == 0)
        return NO_BUFFERS;
    if (got < 0)
        virtio_device_broken(&net->vdev, "its receive queue is corrupt");
    else if (net->taken.n_readable > 0) /* which would take time and hold nothing */
        virtio_device_broken(&net->vdev, "a receive buffer has something to be read");
    else if (net->taken.writable_bytes < (first ? net_header_bytes(net) : 1))
        virtio_device_broken(&net->vdev, "a receive buffer has no room for a header");
    else if (!virtio_has(&net->vdev, VIRTIO_NET_F_MRG_RXBUF) && net->taken.writable_bytes < whole)
        return DOES_NOT_FIT;
    else
        return PLACED;
    return BROKEN;
}

/* Puts a frame into as many chains as it takes. Unless PLACED, none of them was used. */
static enum placing place_frame(struct virtio_net *net, const struct net_frame *frame,
                                const struct route *route)
{
    struct virtqueue *vq = net_rx_queue(net, route->pair);
    size_t head = net_header_bytes(net);
    struct frame_reader reader = {.iov = frame->iov, .left = frame->length};
    struct num_buffers num_buffers = {0};
    enum placing placing;
    uint16_t count = 0;

    do {
        uint32_t used;

        placing = take_buffer(net, vq, count == 0, head + frame->length);
        if (placing != PLACED)
            break;
        if (count == 0)
            num_buffers = write_header(net, &net->taken, frame, route);
        used = fill_chain(net, &reader, count == 0 ? head : 0);
        virtqueue_fill(vq, net->taken.head, used, count++);
    } while (reader.left > 0);

    if (placing == PLACED) {
        write_num_buffers(net, &num_buffers, count);
        virtqueue_flush(vq, count);
        net->received |= 1u << route->pair;
        return PLACED;
    }
    if (placing == DOES_NOT_FIT)
        count++; /* the one that was too short */
    /* With all of the ring's buffers it is still too long: waiting would not help. */
    if (placing == NO_BUFFERS && count >= vq->st.size)
        placing = DOES_NOT_FIT;
    while (count-- > 0)
        virtqueue_unpop(vq);
    return placing;
}

/* ---- whether ---- */

/* Whether the driver agreed to frames of that length. §5.1.4.1: "The device MUST NOT pass received
 * packets that exceed mtu (plus low level ethernet header length) size with gso_type NONE or ECN". */
static bool too_long(const struct virtio_net *net, const struct net_frame *frame)
{
    return virtio_has(&net->vdev, VIRTIO_NET_F_MTU) && !frame->gso_type &&
           frame->length > net->mtu + ETHER_HEADER + VLAN_TAG;
}

static bool is_wanted(const struct virtio_net *net, const struct start *start)
{
    const struct net_state *state = &net->state;
    unsigned vid;

    /* Who cannot set the filter up is not filtered. */
    if (virtio_has(&net->vdev, VIRTIO_NET_F_CTRL_RX) &&
        !net_receive_filter_wants(&state->filter, start->bytes))
        return false;
    if (!virtio_has(&net->vdev, VIRTIO_NET_F_CTRL_VLAN) || state->filter.promiscuous ||
        start->length < ETHER_HEADER + VLAN_TAG ||
        (start->bytes[ETHER_TYPE] << 8 | start->bytes[ETHER_TYPE + 1]) != TYPE_VLAN)
        return true;
    /* §5.1.6.5.3: a tag that is not in the table is not wanted. One of priority alone, VID 0, is
     * none (IEEE 802.1Q §9.6). */
    vid = (start->bytes[ETHER_HEADER] << 8 | start->bytes[ETHER_HEADER + 1]) & 0xFFFu;
    return vid == 0 || (state->vlans[vid / 64] >> vid % 64 & 1);
}

void net_rx_notify(struct virtio_net *net)
{
    uint32_t pairs = net->received;

    if (!virtio_device_live(&net->vdev))
        return;
    net->received = 0;
    for (unsigned i = 0; pairs >> i; i++) {
        if (pairs >> i & 1)
            virtio_queue_notify(&net->vdev, net_rx_queue(net, i));
    }
}

/* The frame stays with its sender until net_rx_feed(). */
static bool refuse(struct virtio_net *net)
{
    net->starved = true;
    /* The driver makes room only when it knows of what it has. */
    net_rx_notify(net);
    return false;
}

/* Counts what cannot be a frame for this card: its sender should not have sent it, or did so while
 * the driver switched an offload off. */
static bool malformed(struct virtio_net *net, const struct net_frame *frame)
{
    if (frame->length >= NET_FRAME_MIN && frame->length <= NET_FRAME_MAX &&
        ((!frame->needs_csum && !frame->gso_type) ||
         (net_offload_needs(frame) & ~net_accepted(net)) == 0))
        return false;
    net->counters.malformed++;
    return true;
}

/* Whether the frame was taken, be it to be dropped. */
static bool place(struct virtio_net *net, const struct net_frame *frame)
{
    struct start start;
    struct route route;

    read_start(frame, &start, needs_flow(net) ? NET_FLOW_BYTES : ETHER_HEADER + VLAN_TAG);
    if (!is_wanted(net, &start)) {
        net->counters.filtered++;
        return true;
    }
    choose(net, &start, &route);
    if (!net_rx_queue(net, route.pair)->st.enabled) {
        net->counters.not_ready++;
        return true;
    }
    virtqueue_disable_kicks(net_rx_queue(net, route.pair));
    switch (place_frame(net, frame, &route)) {
    case PLACED:
        net->counters.rx_frames++;
        net->counters.rx_bytes += frame->length;
        return true;
    case NO_BUFFERS:
        return refuse(net);
    case DOES_NOT_FIT:
        net->counters.too_long++;
        return true;
    case BROKEN:
        net->counters.not_ready++;
        return true;
    }
    return true;
}

/* Whether the frame is somebody else's affair: taken by him, or not wanted. */
static bool divert(struct virtio_net *net, const struct net_frame *frame)
{
    struct start start;

    if (!net->divert)
        return false;
    if (malformed(net, frame))
        return true;
    read_start(frame, &start, ETHER_HEADER + VLAN_TAG);
    if (is_wanted(net, &start))
        net->divert(net->divert_opaque, frame);
    else
        net->counters.filtered++;
    return true;
}

static bool receive(struct virtio_net *net, const struct net_frame *frame)
{
    struct virtio_device *vdev = &net->vdev;

    if (vdev->paused || net->divert_always)
        return divert(net, frame) || refuse(net);
    if (!virtio_device_live(vdev) || !net->link_up) {
        net->counters.not_ready++;
        return true;
    }
    if (malformed(net, frame))
        return true;
    if (too_long(net, frame)) {
        net->counters.too_long++;
        return true;
    }
    return place(net, frame);
}

unsigned net_rx_deliver(struct net_port *port, const struct net_frame *frames, unsigned n)
{
    struct virtio_net *net = net_of_port(port);
    size_t copied = 0;
    unsigned taken = 0;

    device_lock(net->vdev.env);
    while (taken < n && receive(net, &frames[taken])) {
        copied += frames[taken++].length;
        if (copied < RX_BYTES)
            continue;
        /* A vCPU that wants a register does not wait for megabytes. */
        device_unlock(net->vdev.env);
        device_lock(net->vdev.env);
        copied = 0;
    }
    if (taken > 0 && !net->vdev.paused && !net->divert_always)
        net_note_traffic(net);
    device_unlock(net->vdev.env);
    return taken;
}

/* ---- buffers that the peer fills ---- */

/* Puts back the last n chains that were lent. */
static void take_back(struct virtio_net *net, unsigned n)
{
    while (n-- > 0)
        virtqueue_unpop(net_rx_queue(net, 0));
}

/* Takes the queue's chains until they have room for any frame. */
static bool take_chains(struct virtio_net *net)
{
    size_t need = net_header_bytes(net) + NET_FRAME_MAX, room = 0;
    struct virtqueue_chain *pool = &net->batch.pool;
    struct net_lent *lent = &net->lent;
    unsigned pieces = 0;

    /* The next chain must find room in the pool, however long it is. */
    for (lent->n = 0; room < need; lent->n++) {
        struct virtqueue_chain *chain = &lent->chains[lent->n];
        int got = 0;

        *chain = (struct virtqueue_chain){
            .iov = pool->iov + pieces, .gpa = pool->gpa + pieces, .capacity = VIRTQUEUE_MAX_PIECES};
        if (lent->n < NET_LOAN_CHAINS && pieces < NET_LOAN_PIECES)
            got = virtqueue_pop(net_rx_queue(net, 0), chain);
        if (got < 0)
            virtio_device_broken(&net->vdev, "its receive queue is corrupt");
        /* What is wrong with a buffer is said when a frame is to be put there. */
        if (got > 0 && (chain->n_readable > 0 ||
                        chain->writable_bytes < (lent->n == 0 ? net_header_bytes(net) : 1)))
            take_back(net, 1);
        else if (got > 0 && pieces + chain->n_readable + chain->n_writable > NET_LOAN_PIECES)
            take_back(net, 1);
        else if (got > 0) {
            pieces += chain->n_readable + chain->n_writable;
            room += chain->writable_bytes;
            continue;
        }
        take_back(net, got < 0 ? 0 : lent->n);
        return false;
    }
    return true;
}

/* The chains' places behind the header. */
static void list_places(const struct virtio_net *net, struct net_loan *loan)
{
    size_t skip = net_header_bytes(net);

    loan->n = 0;
    for (unsigned i = 0; i < net->lent.n; i++) {
        const struct virtqueue_chain *chain = &net->lent.chains[i];

        for (unsigned k = 0; k < chain->n_writable; k++) {
            struct iovec piece = chain->iov[chain->n_readable + k];
            size_t start = skip < piece.iov_len ? skip : piece.iov_len;

            skip -= start;
            if (piece.iov_len > start)
                loan->iov[loan->n++] = (struct iovec){(uint8_t *)piece.iov_base + start,
                                                      piece.iov_len - start};
        }
    }
}

bool net_rx_lend(struct net_port *port, struct net_loan *loan)
{
    struct virtio_net *net = net_of_port(port);
    bool lent = false;

    device_lock(net->vdev.env);
    /* The pool is that of frames being sent. Without merging, one buffer holds a frame: none is so large
     * that it would be worth it. */
    if (virtio_device_live(&net->vdev) && net->link_up && !net->sending && !needs_flow(net) &&
        virtio_has(&net->vdev, VIRTIO_NET_F_MRG_RXBUF) && net_rx_queue(net, 0)->st.enabled) {
        virtqueue_disable_kicks(net_rx_queue(net, 0));
        lent = take_chains(net);
    }
    net->lent.is = lent;
    net->lent.generation = net->vdev.generation;
    if (lent)
        list_places(net, loan);
    device_unlock(net->vdev.env);
    return lent;
}

/* The beginning of what was put there. */
static void read_lent_start(const struct virtio_net *net, size_t length, struct start *start)
{
    const struct virtqueue_chain *chains = net->lent.chains;
    size_t skip = net_header_bytes(net);

    *start = (struct start){.length = ETHER_HEADER + VLAN_TAG};
    if (start->length > length)
        start->length = length;
    for (size_t i = 0; i < start->length; i++) {
        while (skip + i >= chains->writable_bytes) {
            skip -= chains->writable_bytes;
            chains++;
        }
        start->bytes[i] = *find_byte(chains, skip + i).host;
    }
}

/* Returns a chain of which the first bytes were written, and marks these. */
static void use_chain(struct virtio_net *net, unsigned i, size_t bytes)
{
    const struct virtqueue_chain *chain = &net->lent.chains[i];
    size_t left = bytes;

    for (unsigned k = chain->n_readable; left > 0; k++) {
        size_t run = chain->iov[k].iov_len < left ? chain->iov[k].iov_len : left;

        memory_mark_dirty(net->vdev.env->mem, chain->gpa[k], run);
        left -= run;
    }
    virtqueue_fill(net_rx_queue(net, 0), chain->head, (uint32_t)bytes, (uint16_t)i);
}

/* Hands the driver the frame that lies in the chains; those behind it go back. */
static void use_chains(struct virtio_net *net, const struct net_frame *frame)
{
    static const struct route route = {0};
    struct num_buffers num_buffers = write_header(net, &net->lent.chains[0], frame, &route);
    size_t left = net_header_bytes(net) + frame->length;
    unsigned used = 0;

    for (size_t room = 0; room < left; used++)
        room += net->lent.chains[used].writable_bytes;
    take_back(net, net->lent.n - used);
    for (unsigned i = 0; i < used; i++) {
        size_t bytes = net->lent.chains[i].writable_bytes;

        bytes = bytes < left ? bytes : left;
        use_chain(net, i, bytes);
        left -= bytes;
    }
    write_num_buffers(net, &num_buffers, (uint16_t)used);
    virtqueue_flush(net_rx_queue(net, 0), (uint16_t)used);
    net->received |= 1;
}

/* Whether the frame is one for the driver; counted if not. */
static bool is_good(struct virtio_net *net, const struct net_frame *frame)
{
    struct start start;

    if (malformed(net, frame))
        return false;
    if (too_long(net, frame)) {
        net->counters.too_long++;
        return false;
    }
    read_lent_start(net, frame->length, &start);
    if (is_wanted(net, &start))
        return true;
    net->counters.filtered++;
    return false;
}

bool net_rx_return(struct net_port *port, const struct net_frame *frame)
{
    struct virtio_net *net = net_of_port(port);

    device_lock(net->vdev.env);
    net->lent.is = false;
    /* Reset meanwhile: the chains are not this queue's any more. Broken: nothing is returned. */
    if (net->lent.generation != net->vdev.generation ||
        (net->vdev.status & VIRTIO_CONFIG_S_NEEDS_RESET))
        net->counters.not_ready += frame != NULL;
    else if (frame && is_good(net, frame)) {
        use_chains(net, frame);
        net->counters.rx_frames++;
        net->counters.rx_bytes += frame->length;
    } else
        take_back(net, net->lent.n);
    device_unlock(net->vdev.env);
    return frame != NULL;
}

void net_rx_flush(struct net_port *port)
{
    struct virtio_net *net = net_of_port(port);

    device_lock(net->vdev.env);
    net_rx_notify(net);
    device_unlock(net->vdev.env);
}

void net_rx_feed(struct virtio_net *net)
{
    if (!net->starved)
        return;
    net->starved = false;
    device_unlock(net->vdev.env);
    net_port_ready(&net->port);
    device_lock(net->vdev.env);
}
