/*
 * A fake port: what is plugged into a switch or a NIC in tests. Keeps what it gets.
 */
#ifndef FERRY_TEST_FAKE_PORT_H
#define FERRY_TEST_FAKE_PORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "net/port.h"

#define FAKE_FRAMES 128
#define FAKE_KEPT 2048 /* bytes kept of a frame */

struct fake_frame {
    uint8_t bytes[FAKE_KEPT];
    struct net_frame meta; /* its pieces are gone */
};

struct fake_port {
    struct net_port port;
    unsigned room;      /* frames that are still taken */
    unsigned n;         /* frames taken */
    unsigned flushes;
    struct fake_frame frames[FAKE_FRAMES];
    void (*on_deliver)(struct fake_port *port); /* after frames were taken; may be NULL */
    void *arg;
};

/* Forgets all and starts with room for all. Takes all offloads. */
void fake_port_init(struct fake_port *port, const char *name);
/* Forgets what it got. */
void fake_port_clear(struct fake_port *port);
/* Says that it wants the frames to that address. */
void fake_port_say_mac(struct fake_port *port, const uint8_t mac[6]);
/* Sends one frame of one piece, and ends the run. */
void fake_port_send(struct fake_port *port, const void *bytes, size_t length);

#endif
