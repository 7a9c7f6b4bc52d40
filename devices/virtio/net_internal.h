/*
 * Between the parts of virtio-net: net.c (life, features, state), net_rx.c, net_tx.c, net_ctrl.c.
 *
 * The device lock guards all of it but `port`, which is the loop thread's alone.
 */
#ifndef FERRY_VIRTIO_NET_INTERNAL_H
#define FERRY_VIRTIO_NET_INTERNAL_H

#include <linux/virtio_net.h>
#include <stddef.h>

#include "devices/virtio/net.h"
#include "devices/virtio/net_state.h"
#include "net/offload.h"
#include "net/receive_filter.h"

/* Of the headers that this takes, some lack it (it is younger than Linux 6.1). */
#ifndef VIRTIO_NET_F_GUEST_USO4
#define VIRTIO_NET_F_GUEST_USO4 54
#define VIRTIO_NET_F_GUEST_USO6 55
#define VIRTIO_NET_F_HOST_USO 56
#endif

#define NET_BIT(feature) (1ull << (feature))

/* §5.1.6.5.8: what VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET switches. */
#define VIRTIO_NET_GUEST_OFFLOADS                                                                  \
    (NET_BIT(VIRTIO_NET_F_GUEST_CSUM) | NET_BIT(VIRTIO_NET_F_GUEST_TSO4) |                         \
     NET_BIT(VIRTIO_NET_F_GUEST_TSO6) | NET_BIT(VIRTIO_NET_F_GUEST_ECN) |                          \
     NET_BIT(VIRTIO_NET_F_GUEST_USO4) | NET_BIT(VIRTIO_NET_F_GUEST_USO6))

/* §5.1.6: with VIRTIO_F_VERSION_1 the header always has num_buffers; with HASH_REPORT, more. */
#define NET_HEADER_MAX sizeof(struct virtio_net_hdr_v1_hash)
_Static_assert(sizeof(struct virtio_net_hdr_v1) == 12, "virtio 1.2 §5.1.6");
_Static_assert(NET_HEADER_MAX == 20, "virtio 1.2 §5.1.6");

/* Flows whose queue is remembered; a power of two. */
#define NET_FLOWS 1024u

/* Chains that were taken from a transmit queue, in its order, with room for their pieces. */
struct net_sending {
    struct virtqueue_chain pool;      /* all the room there is; owned */
    struct {
        uint16_t head;
        int frame;                    /* its place in frames; -1: the chain holds none */
    } chains[NET_BATCH];
    unsigned n_chains;
    struct net_frame frames[NET_BATCH];
    unsigned n_frames;
    unsigned cost;                    /* of all chains, of the budget */
    uint8_t headers[NET_BATCH][NET_HEADERS_MAX]; /* of frames that are to be cut */
};
/* Receive buffers that are lent to the peer (net_port_borrow()); their pieces are in net_sending's pool. */
#define NET_LOAN_CHAINS 64u
struct net_lent {
    bool is;
    uint32_t generation;              /* of the device, when they were */
    unsigned n;
    struct virtqueue_chain chains[NET_LOAN_CHAINS];
};
/* The next chain must find room, however long it is. */
#define NET_POOL_PIECES (2 * (VIRTQUEUE_MAX_PIECES + 1))

struct virtio_net {
    struct virtio_device vdev;
    struct net_port port;
    uint8_t mac[6];                /* as created */
    uint16_t mtu;                  /* 0: not offered */
    uint32_t speed;                /* Mbit/s */
    unsigned max_pairs;
    bool link_up;
    bool restored;                 /* a running driver's state was loaded: it is somewhere else now */
    struct net_state state;
    struct net_hasher hasher;      /* for state.key */
    uint8_t flows[NET_FLOWS];      /* by net_flow_symmetric(): the pair it was sent by, plus 1 */
    struct net_sending batch;      /* what is being transmitted */
    struct virtqueue_chain taken;  /* the chain being received into, or a command */
    struct net_lent lent;
    struct loop_call tell;         /* the peer is to be told the filter */
    bool sending;                  /* the lock may be dropped for the peer's sake */
    bool blocked;                  /* the peer refused a frame and will say when it has room */
    bool starved;                  /* a frame of the peer's was refused */
    uint32_t received;             /* bit i: pair i got frames since the last flush */
    struct loop_timer more;        /* work was left for the loop's next round */
    struct loop_poller poller;
    bool polled;                   /* transmit queues are looked at without being kicked */
    struct virtio_net_counters counters;
    struct virtio_net_traffic traffic;
    /* Where frames go while the card is paused; NULL: they are refused. */
    void (*divert)(void *opaque, const struct net_frame *frame);
    void *divert_opaque;
    bool divert_always; /* ... and also when it runs */
};

_Static_assert(VIRTIO_NET_MAX_PAIRS * 2 + 1 <= VIRTIO_MAX_QUEUES, "queues for all pairs");
_Static_assert(VIRTIO_NET_MAX_PAIRS <= 32, "a bit for each pair");

static inline struct virtio_net *net_of(struct virtio_device *vdev)
{
    return (struct virtio_net *)((char *)vdev - offsetof(struct virtio_net, vdev));
}

static inline struct virtio_net *net_of_port(struct net_port *port)
{
    return (struct virtio_net *)((char *)port - offsetof(struct virtio_net, port));
}

/* §5.1.2: receiveq1, transmitq1, receiveq2, ... */
static inline struct virtqueue *net_rx_queue(struct virtio_net *net, unsigned pair)
{
    return &net->vdev.queues[pair * 2];
}

static inline struct virtqueue *net_tx_queue(struct virtio_net *net, unsigned pair)
{
    return &net->vdev.queues[pair * 2 + 1];
}

/* The pairs that exist for this driver, and those it has switched on. */
static inline unsigned net_pairs(const struct virtio_net *net)
{
    bool many = virtio_has(&net->vdev, VIRTIO_NET_F_MQ) || virtio_has(&net->vdev, VIRTIO_NET_F_RSS);

    return many ? net->max_pairs : 1;
}

static inline unsigned net_active_pairs(const struct virtio_net *net)
{
    return net->state.pairs ? net->state.pairs : 1;
}

static inline size_t net_header_bytes(const struct virtio_net *net)
{
    return virtio_has(&net->vdev, VIRTIO_NET_F_HASH_REPORT)
               ? sizeof(struct virtio_net_hdr_v1_hash)
               : sizeof(struct virtio_net_hdr_v1);
}

/* ---- net.c ---- */

/* What the driver lets the card give it, as NET_OFFLOAD_ bits. */
uint32_t net_accepted(const struct virtio_net *net);
/* The driver changed what it accepts, or what it wants to hear: the peer is to know. Any thread. */
void net_offloads_changed(struct virtio_net *net);
void net_filter_changed(struct virtio_net *net);
/* Frames have just passed, either way. */
void net_note_traffic(struct virtio_net *net);
/* What is left is done after the loop looked at everything else. */
void net_leave_for_later(struct virtio_net *net);

/* ---- net_rx.c ---- */

unsigned net_rx_deliver(struct net_port *port, const struct net_frame *frames, unsigned n);
void net_rx_flush(struct net_port *port);
bool net_rx_lend(struct net_port *port, struct net_loan *loan);
bool net_rx_return(struct net_port *port, const struct net_frame *frame);
/* Interrupts the driver about what it received. */
void net_rx_notify(struct virtio_net *net);
/* Has the peer try again what was refused, with the lock let go meanwhile. */
void net_rx_feed(struct virtio_net *net);

/* ---- net_tx.c ---- */

void net_tx_run(struct virtio_net *net, unsigned pair);
void net_tx_ready(struct net_port *port);
/* Of struct loop_poller, for the transmit queues. */
bool net_tx_poll(struct loop_poller *poller);
bool net_tx_polled(struct loop_poller *poller, bool on);

/* ---- net_ctrl.c ---- */

void net_ctrl_run(struct virtio_net *net, struct virtqueue *vq);

#endif
