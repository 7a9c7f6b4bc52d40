/*
 * Ports: where Ethernet frames enter and leave. A NIC of a guest and a backend such as user-mode
 * NAT are each one end of a wire; the switch will be what many of them plug into.
 *
 * Threads: all of it on the event loop's thread. No allocation on the way of a frame.
 */
#ifndef FERRY_NET_PORT_H
#define FERRY_NET_PORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct net_port;

/* The longest frame without offloads: 65535 bytes of IP in an Ethernet header with one tag. */
#define NET_FRAME_MAX (65535 + 14 + 4)
#define NET_FRAME_MIN 14

/*
 * A frame in flight, without preamble and FCS, whole, in pieces of memory that the sender owns and
 * that are valid during the call only. The contents may change under the receiver when they are
 * guest memory: read a byte once, or copy first.
 */
struct net_frame {
    const struct iovec *iov;
    unsigned iovcnt;
    size_t length; /* sum of the pieces: NET_FRAME_MIN..NET_FRAME_MAX */
    /* Offload metadata as struct virtio_net_hdr fields (virtio 1.2 §5.1.6); 0: plain frame. */
    bool needs_csum;
    uint16_t csum_start, csum_offset;
    uint8_t gso_type;
    uint16_t gso_size, hdr_len;
};

struct net_port_ops {
    /*
     * A frame arrives at this end from its peer. 0: taken (copied). -EAGAIN: no room; the peer
     * drops it, counts it, or holds it back until ready() is called on it. -EINVAL: malformed.
     * Never blocks. The frame stays the caller's. Called with no lock held, so that it may take
     * the device lock; and while it runs, it does not send on the same wire but for an answer
     * whose receipt sends nothing.
     */
    int (*deliver)(struct net_port *port, const struct net_frame *frame);
    /* The peer has, for now, delivered all that it had: time for what is worth doing once a batch,
     * such as an interrupt. A receiver may count on it after each run of deliver(). May be NULL. */
    void (*flush)(struct net_port *port);
    /* The peer, having refused a frame with -EAGAIN, has room again. May be NULL. */
    void (*ready)(struct net_port *port);
};

struct net_port_counters {
    uint64_t frames, bytes, dropped;
};

/* The head of every port's struct. One end; `peer` is what it is plugged into. */
struct net_port {
    const struct net_port_ops *ops;
    struct net_port *peer;             /* borrowed; NULL: unplugged */
    const char *name;                  /* for messages */
    struct net_port_counters sent;     /* from this end to its peer */
};

/* Plugs two unplugged ends together; unplugs either end of a wire, whose peer then gets ready(), for
 * nobody else would let it go on. */
void net_port_connect(struct net_port *a, struct net_port *b);
void net_port_disconnect(struct net_port *port);

/* Sends to the peer, counting. Result as deliver(); 0 and counted as dropped when unplugged. A frame
 * refused with -EAGAIN is not counted: it is dropped or sent again as the caller likes. */
int net_port_send(struct net_port *port, const struct net_frame *frame);
/* Ends a run of net_port_send(). Not to be forgotten: the receiver may wait for it. */
void net_port_flush(struct net_port *port);
/* Counts a frame as dropped that was not sent, or was refused with -EAGAIN. */
void net_port_drop(struct net_port *port);
/* Tells the peer that this end has room again. */
void net_port_ready(struct net_port *port);

/* Copies the frame's bytes into buf of at least frame->length bytes. */
void net_frame_copy(const struct net_frame *frame, void *buf);

#endif
