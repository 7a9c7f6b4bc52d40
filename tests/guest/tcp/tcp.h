/*
 * The parts of the payload tcp: a virtio-net card with offloads (nic.c), ARP, IPv4 and pings
 * (ip.c), connections (connection.c). Addresses of IPv4 stay as they are on the wire.
 */
#ifndef GUEST_TCP_H
#define GUEST_TCP_H

#include <stdbool.h>
#include <stdint.h>

#include "packet.h"

/* ---- nic.c ---- */

#define NIC_PIECES   48  /* that a frame may come in */
#define NIC_HEAD_MAX 128 /* of a frame that is sent: its headers */

struct nic_piece {
    const uint8_t *bytes;
    uint32_t length;
};

/* One that was received: in pieces from the Ethernet header on, all headers in the first. */
struct nic_frame {
    struct net_header header;
    struct nic_piece piece[NIC_PIECES];
    unsigned pieces;
    uint32_t length;
    uint16_t buffer[NIC_PIECES]; /* nic.c's */
};

extern uint8_t nic_mac[6];

/* Starts the first card with what it offers of `features`; mergeable buffers have `size` bytes
 * each. False when it does not start. */
bool nic_start(uint64_t features, uint32_t size);
bool nic_has(uint64_t features);
/* The card's MTU, or `fallback` when it tells none. */
uint32_t nic_mtu(uint32_t fallback);
/* Queues a frame: `head`, which is copied, and `bytes`, which must stay. Waits for room. */
void nic_send(const struct net_header *offload, const void *head, uint32_t head_length,
              const void *bytes, uint32_t length);
/* The next one received, until it is given back; false when there is none. */
bool nic_receive(struct nic_frame *frame);
void nic_give_back(const struct nic_frame *frame);
/* Tells the device of what was queued and given back. */
void nic_flush(void);

/* ---- ip.c ---- */

/* RFC 1071: the sum of the bytes so far in `sum`, and its complement as it stands in a header. All
 * pieces but the last must be of an even length. */
uint64_t ip_sum(const void *bytes, uint32_t length, uint64_t sum);
uint16_t ip_fold(uint64_t sum);
/* TCP's pseudo header, for `length` bytes of TCP. */
uint64_t ip_pseudo_sum(uint32_t from, uint32_t to, uint32_t length);

/* "10.0.2.15" of the command line; `fallback` without that word. */
uint32_t ip_argument(const char *name, uint32_t fallback);
void ip_start(uint32_t address, uint32_t gateway);
uint32_t ip_address(void);
/* Finds the station behind which `address` is: the gateway if there is one. False: no answer. */
bool ip_resolve(uint32_t address, uint8_t *mac);
/* Puts Ethernet's and IP's headers for `length` bytes of TCP. */
void ip_put(struct ether *ether, const uint8_t *mac, uint32_t to, uint32_t length);
/* Takes in `budget` frames at most: answers ARP and pings, hands TCP on. True if any came. */
bool ip_poll(unsigned budget);

/* ---- connection.c ---- */

#define REQUEST_SIZE 16
#define PATTERN_PERIOD 65521u /* a prime, so that what lands in a wrong place is found out */

/* One connection; what it sends is a request and then the pattern, what it receives is not kept. */
struct connection {
    enum { CLOSED, ASKED, OPEN } state;
    bool reset, peer_ended; /* by the peer */
    bool refused;           /* never opened */
    uint16_t local, remote;
    uint32_t address;
    uint8_t mac[6];
    uint8_t request[REQUEST_SIZE];
    /* Positions in the streams: 0 is SYN, 1 the first byte, behind the last FIN. */
    uint32_t first_sent, first_received; /* sequence numbers of the positions 0 */
    uint64_t acknowledged, next, highest;
    uint64_t queued;        /* the position behind what may be sent, FIN not counted */
    bool ending;            /* FIN follows */
    uint64_t received;      /* the next position expected */
    uint64_t fin_at;        /* the position of the peer's FIN, or 0 */
    struct {
        uint64_t from, to;
    } range[8];             /* received out of order */
    unsigned ranges;
    uint64_t window, largest_window;
    bool scaled;            /* windows are, the peer's by `shift` */
    unsigned shift;
    uint32_t mss;
    uint64_t congestion, threshold, recover;
    unsigned duplicates;
    bool owes;              /* an acknowledgement */
    uint64_t timer_ns, timeout_ns; /* timer_ns of 0: nothing waits for an acknowledgement */
    bool verify;            /* what comes must be the pattern */
    uint64_t wrong;         /* bytes that were not */
    uint8_t reply[REQUEST_SIZE]; /* the first bytes received */
    uint64_t progress_ns, longest_gap_ns; /* when anything new was acknowledged or received */
    uint64_t retransmitted; /* times */
};

/* Receives so many bytes ahead, in packets of so many bytes of IP. */
void connection_start(uint32_t window, uint32_t mtu);
/* Begins to open; the request is sent as soon as it is open. */
void connection_open(struct connection *c, uint32_t address, const uint8_t *mac, uint16_t port,
                     const void *request);
/* So many bytes of the pattern more may be sent. */
void connection_queue(struct connection *c, uint64_t bytes);
void connection_end(struct connection *c);
/* Ends it at once, by RST. */
void connection_abort(struct connection *c);
/* Bytes that came, and those of the pattern that the peer acknowledged. */
uint64_t connection_received(const struct connection *c);
uint64_t connection_acknowledged(const struct connection *c);
/* All was sent and acknowledged, FIN, too, and the peer's FIN was received. */
bool connection_done(const struct connection *c);
/* Takes in what came, sends what may be sent. False when it was reset. */
bool connection_poll(struct connection *c);
/* From ip.c: a segment, its IP header in the first piece. */
void connection_input(const struct nic_frame *frame);

#endif
