/*
 * Connections of TCP between a guest and libslirp that are over, and that the library still keeps.
 *
 * Who ends a connection first keeps it in TIME-WAIT, the library for ten seconds: with a host socket,
 * with buffers of a quarter of a MiB, and in a list that it walks for each frame that opens a
 * connection and each time it is asked what to wait for. The state is there for what a network still
 * carries of the connection, and between library and guest there is none. So a connection that both
 * sides have ended is found here, by the frames, and the library let go of it by a reset of the
 * guest's name.
 *
 * Event loop's thread.
 */
#ifndef FERRY_NET_NAT_ENDS_H
#define FERRY_NET_NAT_ENDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NAT_ENDS_BUCKETS 256u
/* The guest's address and the peer's, of IPv4 the first bytes of each, and their ports. */
#define NAT_FLOW_KEY 36u
#define NAT_FLOW_ETHER 14u
#define NAT_RESET_MAX 74u /* bytes of a reset: Ethernet, IPv6, TCP */

/* A connection, embedded in what stands for its socket; all zero: none. */
struct nat_flow {
    struct nat_flow *next;      /* of the same bucket */
    struct nat_flow *next_over; /* of those that are over */
    int fd;
    bool known, over;
    bool ipv6;
    bool library_ended, acknowledged, guest_ended; /* its FIN was sent; the guest has it; the guest's */
    uint32_t library_end, guest_end; /* the sequence numbers behind the FINs */
    uint8_t key[NAT_FLOW_KEY];
    uint8_t ether[NAT_FLOW_ETHER];   /* the header of frames from the guest */
};

struct nat_ends {
    struct nat_flow *buckets[NAT_ENDS_BUCKETS]; /* borrowed */
    struct nat_flow *over;                      /* borrowed */
    unsigned ending;                            /* of which a side has ended */
};

/*
 * A connection begins, whose socket is fd: by the frame with its SYN, which the guest sent or the
 * library. `flow` is borrowed until nat_ends_forget(). False, and nothing happened: the frame is no
 * such SYN.
 */
bool nat_ends_open(struct nat_ends *ends, struct nat_flow *flow, int fd, const uint8_t *frame,
                   size_t length, bool from_guest);
/* The socket is about to be closed. */
void nat_ends_forget(struct nat_ends *ends, struct nat_flow *flow);

/* A frame passes, before whom it is for has seen it; any bytes, of no more than `length`. */
void nat_ends_see(struct nat_ends *ends, const uint8_t *frame, size_t length, bool from_guest);

/* The next connection that both sides have ended, once; NULL: there is no other. */
struct nat_flow *nat_ends_next(struct nat_ends *ends);
/* Whether all that the guest sent has left the library: its host socket was told of the end. */
bool nat_ends_is_drained(const struct nat_flow *flow);
/* Makes the guest's reset of a connection that is over. Returns its length. */
size_t nat_ends_reset(const struct nat_flow *flow, uint8_t frame[NAT_RESET_MAX]);

#endif
