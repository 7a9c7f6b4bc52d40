/*
 * Ports: where Ethernet frames enter and leave. A NIC of a guest, a backend such as user-mode NAT, a
 * place on a switch are each one end of a wire. Frames cross it in batches.
 *
 * Threads: all of it on one event loop's thread, that of both ends; `accepts` may be written by any.
 * No allocation on the way of a frame.
 */
#ifndef FERRY_NET_PORT_H
#define FERRY_NET_PORT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct net_port;
struct net_receive_filter;

/* The longest frame without offloads: 65535 bytes of IP in an Ethernet header with one tag. */
#define NET_FRAME_MAX (65535 + 14 + 4)
#define NET_FRAME_MIN 14
/* Frames that cross a wire at a time, at most. */
#define NET_BATCH 64

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
    bool csum_valid; /* whoever sent it has checked the checksum (VIRTIO_NET_HDR_F_DATA_VALID) */
    uint8_t gso_type; /* enum net_gso */
    uint16_t csum_start, csum_offset;
    uint16_t gso_size, hdr_len;
};

/* How a frame is to be cut, as VIRTIO_NET_HDR_GSO_ values. */
enum net_gso {
    NET_GSO_NONE = 0,
    NET_GSO_TCP4 = 1,
    NET_GSO_TCP6 = 4,
    NET_GSO_UDP = 5,    /* datagrams of gso_size each, over either IP (VIRTIO_NET_HDR_GSO_UDP_L4) */
    NET_GSO_ECN = 0x80, /* with one for TCP: CWR may be set */
};

/* What a port can take in deliver(), as bits of `accepts`. */
enum net_offload {
    NET_OFFLOAD_CSUM = 1u << 0,    /* needs_csum; those below presume it */
    NET_OFFLOAD_TSO4 = 1u << 1,
    NET_OFFLOAD_TSO6 = 1u << 2,
    NET_OFFLOAD_TSO_ECN = 1u << 3, /* TSO of segments with CWR set; presumes one of the two */
    NET_OFFLOAD_USO4 = 1u << 4,
    NET_OFFLOAD_USO6 = 1u << 5,
};

/* Memory of a port's, lent to its peer for one frame; see net_port_borrow(). */
#define NET_LOAN_PIECES 256
struct net_loan {
    struct iovec iov[NET_LOAN_PIECES];
    unsigned n;
};

struct net_port_ops {
    /*
     * Frames arrive at this end from its peer, 1 to NET_BATCH of them. Returns how many were taken
     * (copied), from the first on; those after it found no room: the peer drops them, counts them,
     * or holds them back until ready() is called on it. A malformed one, or one that needs what
     * this end does not accept, counts as taken; the receiver counts it as dropped.
     * Never blocks. The frames stay the caller's. Called with no lock held, so that it may take
     * the device lock; and while it runs, it does not send on the same wire but for an answer
     * whose receipt sends nothing.
     */
    unsigned (*deliver)(struct net_port *port, const struct net_frame *frames, unsigned n);
    /*
     * Lends the places where the next frame would be put, for NET_FRAME_MAX bytes. Who put something
     * there, or did not, must say so by return_loan() before it does anything else with this end or
     * returns to the loop. False: there are none, or which ones depends on the frame. May be NULL.
     */
    bool (*lend)(struct net_port *port, struct net_loan *loan);
    /* `frame` was put there, its bytes from the first place on; as in deliver(), but without its
     * pieces. NULL: none was. Whether it was taken, for whatever end. */
    bool (*return_loan)(struct net_port *port, const struct net_frame *frame);
    /* The peer has, for now, delivered all that it had: time for what is worth doing once a run,
     * such as an interrupt. A receiver may count on it after each run of deliver(). May be NULL. */
    void (*flush)(struct net_port *port);
    /* The peer, having refused a frame, has room again. May be NULL. */
    void (*ready)(struct net_port *port);
    /* What the peer wants to receive from now on, so that nothing is to be learnt about a guest.
     * `filter` is borrowed during the call. May be NULL. */
    void (*filter_changed)(struct net_port *port, const struct net_receive_filter *filter);
    /* This end was plugged into a peer: time to tell it the filter. May be NULL. */
    void (*plugged)(struct net_port *port);
};

struct net_port_counters {
    uint64_t frames, bytes, dropped;
};

/* The head of every port's struct. One end; `peer` is what it is plugged into. */
struct net_port {
    const struct net_port_ops *ops;
    struct net_port *peer;             /* borrowed; NULL: unplugged */
    const char *name;                  /* for messages */
    /* NET_OFFLOAD_ bits, its owner's to set, at any time: a frame may arrive that was sent before. */
    _Atomic uint32_t accepts;
    struct net_port_counters sent;     /* from this end to its peer */
};

/* Plugs two unplugged ends together; unplugs either end of a wire, whose peer then gets ready(), for
 * nobody else would let it go on. */
void net_port_connect(struct net_port *a, struct net_port *b);
void net_port_disconnect(struct net_port *port);

/*
 * Sends n frames (NET_BATCH at most) to the peer and counts those that it took. Returns how many
 * those were, as deliver(); all of them, and counted as dropped, when unplugged. A refused frame is
 * not counted: it is dropped or sent again as the caller likes. For a peer that does not accept what
 * a frame needs, checksums are completed and segments cut (net/offload.h).
 */
unsigned net_port_send(struct net_port *port, const struct net_frame *frames, unsigned n);
/*
 * Borrows memory of the peer's, into which the caller puts a frame itself in place of sending it: what a
 * system call writes there needs no copy. The contents may change meanwhile as those of any guest memory.
 * Each loan is given back by net_port_return(), with the frame that was put there, which counts as sent,
 * or NULL; nothing else may happen on the wire before. False: the frame must be sent.
 */
bool net_port_borrow(struct net_port *port, struct net_loan *loan);
void net_port_return(struct net_port *port, const struct net_frame *frame);
/* Ends a run of net_port_send(). Not to be forgotten: the receiver may wait for it. */
void net_port_flush(struct net_port *port);
/* Counts n frames as dropped that were not sent, or were refused. */
void net_port_drop(struct net_port *port, unsigned n);
/* Tells the peer that this end has room again. */
void net_port_ready(struct net_port *port);
/* Tells the peer what this end wants to receive. */
void net_port_tell_filter(struct net_port *port, const struct net_receive_filter *filter);

static inline uint32_t net_port_accepts(const struct net_port *port)
{
    return atomic_load_explicit(&port->accepts, memory_order_relaxed);
}

/* Copies the frame's bytes into buf of at least frame->length bytes. */
void net_frame_copy(const struct net_frame *frame, void *buf);

#endif
