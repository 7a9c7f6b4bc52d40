/*
 * A fake port. One thread.
 */
#include "tests/unit/fake_port.h"

#include <string.h>

#include "net/receive_filter.h"

static unsigned deliver(struct net_port *port, const struct net_frame *frames, unsigned n)
{
    struct fake_port *fake = (struct fake_port *)port;
    unsigned taken = 0;

    for (; taken < n && fake->room > 0; taken++, fake->room--) {
        struct fake_frame *to = &fake->frames[fake->n % FAKE_FRAMES];
        size_t at = 0;

        for (unsigned i = 0; i < frames[taken].iovcnt && at < FAKE_KEPT; i++) {
            const struct iovec *piece = &frames[taken].iov[i];
            size_t run = piece->iov_len < FAKE_KEPT - at ? piece->iov_len : FAKE_KEPT - at;

            memcpy(to->bytes + at, piece->iov_base, run);
            at += run;
        }
        to->meta = frames[taken];
        fake->n++;
    }
    if (taken && fake->on_deliver)
        fake->on_deliver(fake);
    return taken;
}

static void flush(struct net_port *port)
{
    ((struct fake_port *)port)->flushes++;
}

static const struct net_port_ops ops = {.deliver = deliver, .flush = flush};

void fake_port_init(struct fake_port *port, const char *name)
{
    memset(port, 0, sizeof(*port));
    port->port.ops = &ops;
    port->port.name = name;
    port->port.accepts = UINT32_MAX;
    port->room = UINT32_MAX;
}

void fake_port_clear(struct fake_port *port)
{
    port->n = port->flushes = 0;
}

void fake_port_say_mac(struct fake_port *port, const uint8_t mac[6])
{
    struct net_receive_filter filter = {0};

    memcpy(filter.mac, mac, 6);
    net_port_tell_filter(&port->port, &filter);
}

void fake_port_send(struct fake_port *port, const void *bytes, size_t length)
{
    struct iovec piece = {(void *)bytes, length};
    struct net_frame frame = {.iov = &piece, .iovcnt = 1, .length = length};

    net_port_send(&port->port, &frame, 1);
    net_port_flush(&port->port);
}
