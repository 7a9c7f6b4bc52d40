/*
 * What of a guest's frames reaches libslirp.
 *
 * The library parses what it gets, in the process of the monitor. So it gets only what it has a
 * use for (ARP, IPv4, IPv6), in frames whose lengths agree with each other; and nothing that would
 * open one more socket once there are too many.
 */
#ifndef FERRY_NET_NAT_GUARD_H
#define FERRY_NET_NAT_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum nat_verdict {
    NAT_PASS,
    NAT_IGNORE,    /* of no concern here: another protocol; not the guest's mistake */
    NAT_MALFORMED, /* its lengths contradict each other */
};

struct nat_frame_kind {
    size_t length;     /* of the frame, without what pads it */
    bool fragment;     /* an IPv4 datagram's part: it will be kept for a while */
    bool opens_flow;   /* may make the library open a socket */
};

/* frame: bytes that nobody else writes to. *kind holds with NAT_PASS only. */
enum nat_verdict nat_guard_check(const uint8_t *frame, size_t length, struct nat_frame_kind *kind);

#endif
