/*
 * virtio-net: queues on one side, a port on the other.
 *
 * Receiving: the frame is copied once, from the peer's memory into the driver's buffers, over
 * several of them if the driver merges. A frame for which there are not enough buffers is refused
 * and its sender told when there are more; kicks of the receive queue are wanted only meanwhile.
 * The interrupt waits for the peer's flush().
 *
 * Transmitting: a batch of frames goes to the peer as they lie in guest memory. The device lock is
 * not held while the peer has them, because the peer may answer at once, into deliver(), and may take
 * its time (system calls). In that window a vCPU may reset the device: `sending` keeps the reset from
 * being complete (§2.4.1), and the generation tells afterwards. Frames the peer refuses go back into
 * the queue, which then rests until the peer's ready(). A driver that never stops sending is
 * interrupted every TX_BUDGET frames for the loop's other work.
 *
 * The peer is told what the driver wants to receive by a call of the loop's, since what changes it
 * happens under the device lock, a reset even on a vCPU's thread.
 *
 * Headers of frames from the driver are not read: no feature was offered that gives them a
 * meaning. Of the guest only lengths are trusted after they were checked; the engine has checked
 * every address. Nothing is allocated after creation.
 *
 * Threads: the device lock guards all but `port`, which is the loop thread's alone.
 *
 * Texts: virtio 1.2 §5.1.
 */
#include "devices/virtio/net.h"

#include <endian.h>
#include <errno.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_net.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "devices/virtio/net_filter.h"

/* §5.1.2, without VIRTIO_NET_F_MQ. */
enum { RX, TX, CTRL, N_QUEUES };

#define QUEUE_SIZE 256
#define CTRL_QUEUE_SIZE 64

#define TX_BUDGET 256u   /* frames sent before the loop has its turn */
#define RX_BYTES (256u << 10) /* copied under one taking of the lock, about */
#define CTRL_BUDGET 64u  /* commands, likewise */

#define ETHER_HEADER 14u
#define VLAN_TAG 4u

/* §5.1.6: with VIRTIO_F_VERSION_1 the header always has num_buffers. */
#define HEADER sizeof(struct virtio_net_hdr_v1)
_Static_assert(HEADER == 12, "virtio 1.2 §5.1.6");
#define NUM_BUFFERS_AT offsetof(struct virtio_net_hdr_v1, num_buffers)

/* §5.1.4, as far as features offered make it exist. Little-endian. */
struct config_space {
    uint8_t mac[6];
    uint16_t status;
    uint16_t max_virtqueue_pairs;
    uint16_t mtu;
} __attribute__((packed));
_Static_assert(sizeof(struct config_space) == 12, "virtio 1.2 §5.1.4");

/* Chains that were taken from a transmit queue, in its order, with room for their pieces. */
struct sending {
    struct virtqueue_chain pool;      /* all the room there is; owned */
    struct {
        uint16_t head;
        int frame;                    /* its place in frames; -1: the chain holds none */
    } chains[NET_BATCH];
    unsigned n_chains;
    struct net_frame frames[NET_BATCH];
    unsigned n_frames;
};
/* The next chain must find room, however long it is. */
#define POOL_PIECES (2 * VIRTQUEUE_MAX_PIECES)

struct virtio_net {
    struct virtio_device vdev;
    struct net_port port;
    uint8_t mac[6];                /* as created */
    uint16_t mtu;                  /* 0: not offered */
    bool link_up;
    struct net_receive_filter filter;
    struct sending batch;          /* what is being transmitted */
    struct virtqueue_chain taken;  /* the chain being received into, or a command */
    struct loop_call tell;         /* the peer is to be told the filter */
    bool sending;                  /* the lock may be dropped for the peer's sake */
    bool blocked;                  /* the peer refused a frame and will say when it has room */
    bool starved;                  /* a frame of the peer's was refused */
    struct loop_timer more;        /* work was left for the loop's next round */
    struct virtio_net_counters counters;
};

static struct virtio_net *net_of(struct virtio_device *vdev)
{
    return (struct virtio_net *)((char *)vdev - offsetof(struct virtio_net, vdev));
}

static struct virtio_net *net_of_port(struct net_port *port)
{
    return (struct virtio_net *)((char *)port - offsetof(struct virtio_net, port));
}

/* ---- features and configuration ---- */

static uint64_t features(struct virtio_device *vdev)
{
    uint64_t bits = 1ull << VIRTIO_NET_F_MAC | 1ull << VIRTIO_NET_F_STATUS |
                    1ull << VIRTIO_NET_F_MRG_RXBUF | 1ull << VIRTIO_NET_F_CTRL_VQ |
                    1ull << VIRTIO_NET_F_CTRL_RX | 1ull << VIRTIO_NET_F_CTRL_RX_EXTRA |
                    1ull << VIRTIO_NET_F_CTRL_MAC_ADDR;

    if (net_of(vdev)->mtu)
        bits |= 1ull << VIRTIO_NET_F_MTU;
    return bits;
}

static void config_read(struct virtio_device *vdev, size_t offset, void *to, size_t size)
{
    const struct virtio_net *net = net_of(vdev);
    struct config_space config = {
        .status = htole16(net->link_up ? VIRTIO_NET_S_LINK_UP : 0),
        .max_virtqueue_pairs = htole16(1),
        .mtu = htole16(net->mtu),
    };

    memcpy(config.mac, net->filter.mac, 6);
    memcpy(to, (const uint8_t *)&config + offset, size);
}

void virtio_net_set_link(struct virtio_device *vdev, bool up)
{
    struct virtio_net *net = net_of(vdev);

    if (net->link_up == up)
        return;
    net->link_up = up;
    virtio_config_changed(vdev);
}

/* ---- receiving ---- */

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

/* Where num_buffers stands, in the first of a frame's chains, for when it is known. */
struct num_buffers {
    struct byte_at low, high;
};

/* §5.1.6.4: a header of zeros says: nothing is offloaded. */
static struct num_buffers write_header(const struct virtqueue_chain *chain)
{
    struct virtio_net_hdr_v1 header = {0};

    virtqueue_write(chain, 0, &header, sizeof(header));
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
static enum placing take_buffer(struct virtio_net *net, bool first, size_t whole)
{
    struct virtqueue *vq = &net->vdev.queues[RX];
    int got = virtqueue_pop(vq, &net->taken);

    /* Kicks are wanted from here on, unless buffers came while this was being said. */
    if (got == 0 && virtqueue_enable_kicks(vq))
        got = virtqueue_pop(vq, &net->taken);
    if (got == 0)
        return NO_BUFFERS;
    if (got < 0)
        virtio_device_broken(&net->vdev, "its receive queue is corrupt");
    else if (net->taken.writable_bytes < (first ? HEADER : 1))
        virtio_device_broken(&net->vdev, "a receive buffer has no room for a header");
    else if (!virtio_has(&net->vdev, VIRTIO_NET_F_MRG_RXBUF) && net->taken.writable_bytes < whole)
        return DOES_NOT_FIT;
    else
        return PLACED;
    return BROKEN;
}

/* Puts a frame into as many chains as it takes. Unless PLACED, none of them was used. */
static enum placing place_frame(struct virtio_net *net, const struct net_frame *frame)
{
    struct virtqueue *vq = &net->vdev.queues[RX];
    struct frame_reader reader = {.iov = frame->iov, .left = frame->length};
    struct num_buffers num_buffers = {0};
    enum placing placing;
    uint16_t count = 0;

    do {
        uint32_t used;

        placing = take_buffer(net, count == 0, HEADER + frame->length);
        if (placing != PLACED)
            break;
        if (count == 0)
            num_buffers = write_header(&net->taken);
        used = fill_chain(net, &reader, count == 0 ? HEADER : 0);
        virtqueue_fill(vq, net->taken.head, used, count++);
    } while (reader.left > 0);

    if (placing == PLACED) {
        write_num_buffers(net, &num_buffers, count);
        virtqueue_flush(vq, count);
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

/* Whether the driver agreed to frames of that length. §5.1.4.1: "The device MUST NOT pass received
 * packets that exceed mtu (plus low level ethernet header length)". */
static bool too_long(const struct virtio_net *net, size_t length)
{
    return virtio_has(&net->vdev, VIRTIO_NET_F_MTU) &&
           length > net->mtu + ETHER_HEADER + VLAN_TAG;
}

static bool is_wanted(const struct virtio_net *net, const struct net_frame *frame)
{
    struct frame_reader reader = {.iov = frame->iov, .left = frame->length};
    uint8_t to[6];

    /* Who cannot set the filter up is not filtered. */
    if (!virtio_has(&net->vdev, VIRTIO_NET_F_CTRL_RX))
        return true;
    read_frame(&reader, to, sizeof(to));
    return net_receive_filter_wants(&net->filter, to);
}

static void notify_receiver(struct virtio_net *net)
{
    if (virtio_device_live(&net->vdev))
        virtio_queue_notify(&net->vdev, &net->vdev.queues[RX]);
}

/* The frame stays with its sender until feed(). */
static bool refuse(struct virtio_net *net)
{
    net->starved = true;
    /* The driver makes room only when it knows of what it has. */
    notify_receiver(net);
    return false;
}

/* Counts what cannot be a frame for this card: its sender should not have sent it. */
static bool malformed(struct virtio_net *net, const struct net_frame *frame)
{
    if (frame->length >= NET_FRAME_MIN && frame->length <= NET_FRAME_MAX && !frame->needs_csum &&
        !frame->gso_type)
        return false;
    net->counters.malformed++;
    return true;
}

/* Whether the frame was taken, be it to be dropped. */
static bool receive(struct virtio_net *net, const struct net_frame *frame)
{
    struct virtio_device *vdev = &net->vdev;

    if (malformed(net, frame))
        return true;
    if (vdev->paused)
        return refuse(net);
    if (!virtio_device_live(vdev) || !vdev->queues[RX].st.enabled || !net->link_up) {
        net->counters.not_ready++;
        return true;
    }
    if (!is_wanted(net, frame)) {
        net->counters.filtered++;
        return true;
    }
    if (too_long(net, frame->length)) {
        net->counters.too_long++;
        return true;
    }
    virtqueue_disable_kicks(&vdev->queues[RX]);
    switch (place_frame(net, frame)) {
    case PLACED:
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

static unsigned port_deliver(struct net_port *port, const struct net_frame *frames, unsigned n)
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
    device_unlock(net->vdev.env);
    return taken;
}

static void port_flush(struct net_port *port)
{
    struct virtio_net *net = net_of_port(port);

    device_lock(net->vdev.env);
    notify_receiver(net);
    device_unlock(net->vdev.env);
}

/* Has the peer try again, with the lock let go meanwhile. */
static void feed(struct virtio_net *net)
{
    if (!net->starved)
        return;
    net->starved = false;
    device_unlock(net->vdev.env);
    net_port_ready(&net->port);
    device_lock(net->vdev.env);
}

/* ---- transmitting ---- */

/* The frame in a chain, behind its header: false when there is none. */
static bool find_frame(struct virtqueue_chain *chain, struct net_frame *frame)
{
    size_t skip = HEADER;
    unsigned i = 0;

    if (chain->readable_bytes < HEADER + NET_FRAME_MIN ||
        chain->readable_bytes > HEADER + NET_FRAME_MAX)
        return false;
    while (skip >= chain->iov[i].iov_len)
        skip -= chain->iov[i++].iov_len;
    chain->iov[i].iov_base = (uint8_t *)chain->iov[i].iov_base + skip;
    chain->iov[i].iov_len -= skip;
    *frame = (struct net_frame){
        .iov = &chain->iov[i],
        .iovcnt = chain->n_readable - i,
        .length = chain->readable_bytes - HEADER,
    };
    return true;
}

static void add_chain(struct virtio_net *net, struct virtqueue_chain *chain)
{
    struct sending *batch = &net->batch;
    int frame = -1;

    if (find_frame(chain, &batch->frames[batch->n_frames])) {
        frame = (int)batch->n_frames++;
    } else {
        net->counters.malformed++;
        log_guest(&net->vdev.log_rate,
                  "%s: the guest sent a buffer of %llu bytes, which is no frame", net->vdev.id,
                  (unsigned long long)chain->readable_bytes);
    }
    batch->chains[batch->n_chains].head = chain->head;
    batch->chains[batch->n_chains++].frame = frame;
}

/* Takes what waits in the queue, as far as there is room in the batch and `limit` allows. */
static void collect(struct virtio_net *net, unsigned limit)
{
    struct virtqueue *vq = &net->vdev.queues[TX];
    struct sending *batch = &net->batch;
    unsigned pieces = 0;

    batch->n_chains = 0;
    batch->n_frames = 0;
    while (batch->n_chains < limit && pieces + VIRTQUEUE_MAX_PIECES <= POOL_PIECES) {
        struct virtqueue_chain chain = {
            .iov = batch->pool.iov + pieces,
            .gpa = batch->pool.gpa + pieces,
            .capacity = POOL_PIECES - pieces,
        };
        int got = virtqueue_pop(vq, &chain);

        if (got == 0 && batch->n_chains == 0 && virtqueue_enable_kicks(vq)) {
            virtqueue_disable_kicks(vq);
            got = virtqueue_pop(vq, &chain);
        }
        if (got < 0)
            virtio_device_broken(&net->vdev, "its transmit queue is corrupt");
        if (got <= 0)
            return;
        pieces += chain.n_readable + chain.n_writable;
        add_chain(net, &chain);
    }
}

/* Returns the buffers of the first `taken` frames, and puts those of the others back. */
static void settle(struct virtio_net *net, unsigned taken)
{
    struct virtqueue *vq = &net->vdev.queues[TX];
    struct sending *batch = &net->batch;
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

/* Sends the batch, with the lock let go meanwhile; false when the queue is not to be looked at any
 * more. */
static bool send_batch(struct virtio_net *net)
{
    struct virtio_device *vdev = &net->vdev;
    struct sending *batch = &net->batch;
    uint32_t generation = vdev->generation;
    unsigned taken = batch->n_frames;

    if (batch->n_frames > 0 && net->link_up && virtio_device_live(vdev)) {
        device_unlock(vdev->env);
        taken = net_port_send(&net->port, batch->frames, batch->n_frames);
        device_lock(vdev->env);
        /* Reset, or broken by what came in: the chains are not this queue's any more. */
        if (vdev->generation != generation || !virtio_device_live(vdev))
            return false;
    }
    settle(net, taken);
    return !net->blocked && virtio_device_live(vdev);
}

/* What is left is done after the loop looked at everything else. */
static void leave_for_later(struct virtio_net *net)
{
    loop_timer_set(net->vdev.env->loop, &net->more, 0);
}

static void transmit(struct virtio_net *net)
{
    struct virtqueue *vq = &net->vdev.queues[TX];
    unsigned budget = TX_BUDGET;
    bool more;

    if (net->sending || net->blocked)
        return;
    net->sending = true;
    virtqueue_disable_kicks(vq);
    do {
        collect(net, budget < NET_BATCH ? budget : NET_BATCH);
        budget -= net->batch.n_chains;
        more = net->batch.n_chains > 0 && send_batch(net);
    } while (more && budget > 0);
    if (more)
        leave_for_later(net);
    virtio_queue_notify(&net->vdev, vq);
    net->sending = false;
    device_unlock(net->vdev.env);
    net_port_flush(&net->port);
    device_lock(net->vdev.env);
}

static void port_ready(struct net_port *port)
{
    struct virtio_net *net = net_of_port(port);

    device_lock(net->vdev.env);
    net->blocked = false;
    virtio_queue_kicked(&net->vdev, TX);
    device_unlock(net->vdev.env);
}

/* ---- telling the peer what is wanted ---- */

static void tell_filter(struct virtio_net *net)
{
    struct net_receive_filter filter;

    device_lock(net->vdev.env);
    filter = net->filter;
    /* Who cannot set the filter up is not filtered. */
    if (!virtio_has(&net->vdev, VIRTIO_NET_F_CTRL_RX))
        filter.promiscuous = filter.allmulti = true;
    device_unlock(net->vdev.env);
    net_port_tell_filter(&net->port, &filter);
}

static void on_tell(struct loop_call *call)
{
    tell_filter((struct virtio_net *)((char *)call - offsetof(struct virtio_net, tell)));
}

/* With the device lock held, on any thread. */
static void filter_changed(struct virtio_net *net)
{
    loop_call(net->vdev.env->loop, &net->tell);
}

static void port_plugged(struct net_port *port)
{
    tell_filter(net_of_port(port));
}

static const struct net_port_ops port_ops = {
    .deliver = port_deliver,
    .flush = port_flush,
    .ready = port_ready,
    .plugged = port_plugged,
};

/* ---- commands (§5.1.6.5) ---- */

static uint8_t set_mode(struct virtio_net *net, const struct virtqueue_chain *chain, uint8_t mode)
{
    bool *const modes[] = {
        [VIRTIO_NET_CTRL_RX_PROMISC] = &net->filter.promiscuous,
        [VIRTIO_NET_CTRL_RX_ALLMULTI] = &net->filter.allmulti,
        [VIRTIO_NET_CTRL_RX_ALLUNI] = &net->filter.alluni,
        [VIRTIO_NET_CTRL_RX_NOMULTI] = &net->filter.nomulti,
        [VIRTIO_NET_CTRL_RX_NOUNI] = &net->filter.nouni,
        [VIRTIO_NET_CTRL_RX_NOBCAST] = &net->filter.nobcast,
    };
    unsigned feature =
        mode <= VIRTIO_NET_CTRL_RX_ALLMULTI ? VIRTIO_NET_F_CTRL_RX : VIRTIO_NET_F_CTRL_RX_EXTRA;
    uint8_t on;

    if (mode >= sizeof(modes) / sizeof(modes[0]) || !virtio_has(&net->vdev, feature) ||
        virtqueue_read(chain, sizeof(struct virtio_net_ctrl_hdr), &on, 1) != 1)
        return VIRTIO_NET_ERR;
    *modes[mode] = on != 0;
    filter_changed(net);
    return VIRTIO_NET_OK;
}

static uint8_t set_mac(struct virtio_net *net, const struct virtqueue_chain *chain)
{
    uint8_t mac[6];

    if (!virtio_has(&net->vdev, VIRTIO_NET_F_CTRL_MAC_ADDR) ||
        virtqueue_read(chain, sizeof(struct virtio_net_ctrl_hdr), mac, 6) != 6 ||
        net_mac_is_group(mac))
        return VIRTIO_NET_ERR;
    memcpy(net->filter.mac, mac, 6);
    filter_changed(net);
    return VIRTIO_NET_OK;
}

/* Reads one of the two tables from byte *at of the command, and moves *at behind it. */
static bool read_table(const struct virtqueue_chain *chain, uint64_t *at,
                       struct net_filter_table *table)
{
    uint32_t entries, kept;

    if (virtqueue_read(chain, *at, &entries, sizeof(entries)) != sizeof(entries))
        return false;
    *at += sizeof(entries);
    table->entries = le32toh(entries);
    if (table->entries * 6ull > chain->readable_bytes - *at)
        return false;
    kept = table->entries < NET_FILTER_TABLE ? table->entries : NET_FILTER_TABLE;
    virtqueue_read(chain, *at, table->macs, kept * 6u);
    *at += table->entries * 6ull;
    return true;
}

static uint8_t set_tables(struct virtio_net *net, const struct virtqueue_chain *chain)
{
    struct net_filter_table unicast = {0}, multicast = {0};
    uint64_t at = sizeof(struct virtio_net_ctrl_hdr);

    if (!virtio_has(&net->vdev, VIRTIO_NET_F_CTRL_RX) || !read_table(chain, &at, &unicast) ||
        !read_table(chain, &at, &multicast))
        return VIRTIO_NET_ERR;
    net->filter.unicast = unicast;
    net->filter.multicast = multicast;
    filter_changed(net);
    return VIRTIO_NET_OK;
}

static uint8_t carry_out(struct virtio_net *net, const struct virtqueue_chain *chain)
{
    struct virtio_net_ctrl_hdr command;

    if (virtqueue_read(chain, 0, &command, sizeof(command)) != sizeof(command))
        return VIRTIO_NET_ERR;
    switch (command.class) {
    case VIRTIO_NET_CTRL_RX:
        return set_mode(net, chain, command.cmd);
    case VIRTIO_NET_CTRL_MAC:
        if (command.cmd == VIRTIO_NET_CTRL_MAC_TABLE_SET)
            return set_tables(net, chain);
        if (command.cmd == VIRTIO_NET_CTRL_MAC_ADDR_SET)
            return set_mac(net, chain);
        return VIRTIO_NET_ERR;
    default:
        return VIRTIO_NET_ERR;
    }
}

static void control(struct virtio_net *net)
{
    struct virtqueue *vq = &net->vdev.queues[CTRL];
    unsigned budget = CTRL_BUDGET;
    int got = 0;

    /* Without the feature this queue does not exist (§5.1.2). */
    if (!virtio_has(&net->vdev, VIRTIO_NET_F_CTRL_VQ))
        return;
    while (budget-- > 0 && (got = virtqueue_pop(vq, &net->taken)) > 0) {
        uint8_t ack;

        if (net->taken.writable_bytes < sizeof(ack)) {
            virtio_device_broken(&net->vdev, "a command has no room for its answer");
            return;
        }
        ack = carry_out(net, &net->taken);
        virtqueue_write(&net->taken, 0, &ack, sizeof(ack));
        virtqueue_push(vq, &net->taken, sizeof(ack));
    }
    if (got < 0)
        virtio_device_broken(&net->vdev, "its control queue is corrupt");
    else if (got > 0)
        leave_for_later(net);
    virtio_queue_notify(&net->vdev, vq);
}

/* ---- life ---- */

static void kicked(struct virtio_device *vdev, unsigned index)
{
    struct virtio_net *net = net_of(vdev);

    switch (index) {
    case RX:
        notify_receiver(net); /* of what came just before a pause */
        feed(net);
        break;
    case TX:
        transmit(net);
        /* After a reset the driver may never kick the receive queue: it need not (its buffers are
         * found), but a peer that was refused before still waits. */
        if (net->starved && virtqueue_pending(&vdev->queues[RX]))
            feed(net);
        break;
    case CTRL:
        control(net);
        break;
    }
}

static void on_more(struct loop_timer *timer)
{
    struct virtio_net *net =
        (struct virtio_net *)((char *)timer - offsetof(struct virtio_net, more));

    device_lock(net->vdev.env);
    virtio_queue_kicked(&net->vdev, CTRL);
    virtio_queue_kicked(&net->vdev, TX);
    device_unlock(net->vdev.env);
}

/* A vCPU's thread may be here while the loop's is with the peer. `starved` stays: the peer's frame
 * is still to be asked for. So does `blocked`, for the peer will say when it has room. */
static void reset(struct virtio_device *vdev)
{
    struct virtio_net *net = net_of(vdev);

    net_filter_reset(&net->filter, net->mac);
    filter_changed(net);
}

/* Features are final: who cannot set the filter up is told of as wanting everything. */
static void start(struct virtio_device *vdev)
{
    filter_changed(net_of(vdev));
}

static bool busy(const struct virtio_device *vdev)
{
    return net_of((struct virtio_device *)vdev)->sending;
}

static void state_get(void *object, void *to)
{
    const struct virtio_net *net = object;

    *(struct net_receive_filter *)to = net->filter;
}

static int state_check(void *object, const void *from)
{
    const struct virtio_net *net = object;

    if (net_filter_check(from) == 0)
        return 0;
    log_error("%s: saved state: the card's address is a group's", net->vdev.id);
    return -EINVAL;
}

static void state_set(void *object, const void *from)
{
    struct virtio_net *net = object;

    net->filter = *(const struct net_receive_filter *)from;
    filter_changed(net);
}

static bool state(struct virtio_device *vdev, struct state_part *part)
{
    *part = (struct state_part){
        .desc = &net_filter_state_desc,
        .object = net_of(vdev),
        .get = state_get,
        .check = state_check,
        .set = state_set,
    };
    return true;
}

static void destroy(struct virtio_device *vdev)
{
    struct virtio_net *net = net_of(vdev);

    net_port_disconnect(&net->port);
    loop_timer_cancel(&net->more);
    loop_call_cancel(net->vdev.env->loop, &net->tell);
    virtqueue_chain_fini(&net->batch.pool);
    virtqueue_chain_fini(&net->taken);
    virtio_device_fini(vdev);
    free(net);
}

static const struct virtio_class net_class = {
    .name = "virtio-net",
    .device_id = VIRTIO_ID_NET,
    .features = features,
    .config_size = sizeof(struct config_space),
    .config_read = config_read,
    .start = start,
    .kicked = kicked,
    .reset = reset,
    .busy = busy,
    .state = state,
    .destroy = destroy,
};

static int check_options(const char *id, const struct virtio_net_options *options)
{
    if (net_mac_is_group(options->mac)) {
        log_error("%s: the card's address must not be a group's (its first byte must be even)", id);
        return -EINVAL;
    }
    if (options->mtu &&
        (options->mtu < VIRTIO_NET_MIN_MTU || options->mtu > VIRTIO_NET_MAX_MTU)) {
        log_error("%s: an MTU of %u is outside %u to %u", id, options->mtu, VIRTIO_NET_MIN_MTU,
                  VIRTIO_NET_MAX_MTU);
        return -EINVAL;
    }
    return 0;
}

int virtio_net_create(struct virtio_device **out, const struct device_env *env, const char *id,
                      const struct virtio_net_options *options, struct net_port **port)
{
    static const uint16_t sizes[N_QUEUES] = {QUEUE_SIZE, QUEUE_SIZE, CTRL_QUEUE_SIZE};
    struct virtio_net *net;
    int error = check_options(id, options);

    if (error)
        return error;
    net = calloc(1, sizeof(*net));
    if (!net)
        return -ENOMEM;
    error = virtio_device_init(&net->vdev, &net_class, env, id, N_QUEUES, sizes);
    if (!error)
        error = virtqueue_chain_init(&net->batch.pool, POOL_PIECES);
    if (!error)
        error = virtqueue_chain_init(&net->taken, VIRTQUEUE_MAX_PIECES);
    if (error) {
        destroy(&net->vdev);
        return error;
    }
    memcpy(net->mac, options->mac, 6);
    net->mtu = options->mtu;
    net->link_up = true;
    net->port = (struct net_port){.ops = &port_ops, .name = net->vdev.id};
    net->more.expired = on_more;
    net->tell.run = on_tell;
    net_filter_reset(&net->filter, net->mac);
    *out = &net->vdev;
    *port = &net->port;
    return 0;
}

void virtio_net_get_counters(const struct virtio_device *vdev, struct virtio_net_counters *counters)
{
    *counters = net_of((struct virtio_device *)vdev)->counters;
}
