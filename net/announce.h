/*
 * Announcing a guest that has just come here: frames sent for it, so that switches and neighbours
 * send to it here from now on.
 *
 * RARP for each of its MAC addresses, a gratuitous ARP or an unsolicited neighbour advertisement for
 * each IP address that it was seen to use, each in its VLAN; five times within a second, should some
 * be lost. All on the loop's thread of the wire.
 */
#ifndef FERRY_NET_ANNOUNCE_H
#define FERRY_NET_ANNOUNCE_H

#include <stddef.h>
#include <stdint.h>

#include "net/switch.h"

#define ANNOUNCE_FRAME_MAX 96 /* bytes */
#define ANNOUNCE_TIMES 5

struct announcer;
struct loop;
struct net_port;

/*
 * Begins at once. port: the guest's end of its wire, borrowed as long as the announcer lives; mac: of
 * its card. addresses are copied. ask(opaque), each time after the frames: the guest is to announce
 * itself, too. -ENOMEM.
 */
int announcer_create(struct announcer **out, struct loop *loop, struct net_port *port,
                     const uint8_t mac[6], const struct switch_address *addresses, unsigned n,
                     void (*ask)(void *opaque), void *opaque);
/* NULL is fine. */
void announcer_destroy(struct announcer *announcer);

/* When the announcement of that number, 0 to ANNOUNCE_TIMES - 1, is due: ns after the first. */
uint64_t announce_delay(unsigned number);

/* The frames themselves; the bytes of each are returned. */
size_t announce_rarp(uint8_t frame[ANNOUNCE_FRAME_MAX], const uint8_t mac[6], uint16_t vlan);
size_t announce_address(uint8_t frame[ANNOUNCE_FRAME_MAX], const struct switch_address *address);

#endif
