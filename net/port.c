/*
 * Ports: plugging two ends together, sending with counters, copying a frame out of its pieces.
 *
 * Knows no kind of port and queues nothing: what a refused frame means is its sender's affair.
 * Event loop's thread; no locks.
 */
#include "net/port.h"

#include <assert.h>
#include <string.h>

#include "net/offload.h"

void net_port_connect(struct net_port *a, struct net_port *b)
{
    assert(a != b && !a->peer && !b->peer);
    a->peer = b;
    b->peer = a;
    if (a->ops->plugged)
        a->ops->plugged(a);
    if (b->ops->plugged)
        b->ops->plugged(b);
}

void net_port_disconnect(struct net_port *port)
{
    struct net_port *peer = port->peer;

    if (!peer)
        return;
    port->peer = NULL;
    peer->peer = NULL;
    /* What it holds back for want of room may go now: nowhere. */
    if (peer->ops->ready)
        peer->ops->ready(peer);
}

/* Most frames need nothing. */
static uint32_t needs(const struct net_frame *frame)
{
    return frame->needs_csum || frame->gso_type ? net_offload_needs(frame) : 0;
}

unsigned net_port_send(struct net_port *port, const struct net_frame *frames, unsigned n)
{
    uint64_t bytes = 0;
    uint32_t accepts;
    unsigned taken;

    assert(n > 0 && n <= NET_BATCH);
    if (!port->peer) {
        port->sent.dropped += n;
        return n;
    }
    accepts = net_port_accepts(port->peer);
    for (unsigned i = 0; i < n; i++) {
        if (needs(&frames[i]) & ~accepts)
            return net_offload_send(port, frames, n);
        bytes += frames[i].length;
    }
    taken = port->peer->ops->deliver(port->peer, frames, n);
    assert(taken <= n);
    for (unsigned i = taken; i < n; i++)
        bytes -= frames[i].length;
    port->sent.frames += taken;
    port->sent.bytes += bytes;
    return taken;
}

bool net_port_borrow(struct net_port *port, struct net_loan *loan)
{
    return port->peer && port->peer->ops->lend && port->peer->ops->lend(port->peer, loan);
}

void net_port_return(struct net_port *port, const struct net_frame *frame)
{
    if (!port->peer->ops->return_loan(port->peer, frame) || !frame)
        return;
    port->sent.frames++;
    port->sent.bytes += frame->length;
}

void net_port_flush(struct net_port *port)
{
    if (port->peer && port->peer->ops->flush)
        port->peer->ops->flush(port->peer);
}

void net_port_drop(struct net_port *port, unsigned n)
{
    port->sent.dropped += n;
}

void net_port_ready(struct net_port *port)
{
    if (port->peer && port->peer->ops->ready)
        port->peer->ops->ready(port->peer);
}

void net_port_tell_filter(struct net_port *port, const struct net_receive_filter *filter)
{
    if (port->peer && port->peer->ops->filter_changed)
        port->peer->ops->filter_changed(port->peer, filter);
}

void net_frame_copy(const struct net_frame *frame, void *buf)
{
    uint8_t *to = buf;

    for (unsigned i = 0; i < frame->iovcnt; i++) {
        memcpy(to, frame->iov[i].iov_base, frame->iov[i].iov_len);
        to += frame->iov[i].iov_len;
    }
}
