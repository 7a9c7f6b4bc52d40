/*
 * Ports: plugging two ends together, sending with counters, copying a frame out of its pieces.
 *
 * Knows no kind of port and queues nothing: what a refused frame means is its sender's affair.
 * Event loop's thread; no locks.
 */
#include "net/port.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

void net_port_connect(struct net_port *a, struct net_port *b)
{
    assert(a != b && !a->peer && !b->peer);
    a->peer = b;
    b->peer = a;
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

int net_port_send(struct net_port *port, const struct net_frame *frame)
{
    int result;

    if (!port->peer) {
        port->sent.dropped++;
        return 0;
    }
    result = port->peer->ops->deliver(port->peer, frame);
    if (result == 0) {
        port->sent.frames++;
        port->sent.bytes += frame->length;
    } else if (result != -EAGAIN) {
        port->sent.dropped++;
    }
    return result;
}

void net_port_flush(struct net_port *port)
{
    if (port->peer && port->peer->ops->flush)
        port->peer->ops->flush(port->peer);
}

void net_port_drop(struct net_port *port)
{
    port->sent.dropped++;
}

void net_port_ready(struct net_port *port)
{
    if (port->peer && port->peer->ops->ready)
        port->peer->ops->ready(port->peer);
}

void net_frame_copy(const struct net_frame *frame, void *buf)
{
    uint8_t *to = buf;

    for (unsigned i = 0; i < frame->iovcnt; i++) {
        memcpy(to, frame->iov[i].iov_base, frame->iov[i].iov_len);
        to += frame->iov[i].iov_len;
    }
}
