/*
 * A DHCP server (RFC 2131) for one network of guests: a frame in, a frame out.
 *
 * It stands in the way of the frames instead of at a socket, so that no firewall of the host's and
 * no other server on it is concerned. No thread, no locks; one owner.
 */
#ifndef FERRY_NET_DHCP_H
#define FERRY_NET_DHCP_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "net/dhcp_leases.h"
#include "vmm/util/log.h"

#define DHCP_MAX_DNS 3u
#define DHCP_DOMAIN_MAX 200u
/* Room for any answer: what every client takes (RFC 2131 §2), in an Ethernet frame. */
#define DHCP_FRAME_MAX (14u + 576u)
/* No longer message from a client is looked at. */
#define DHCP_REQUEST_MAX 1514u

struct dhcp_config {
    const char *name;       /* for messages; borrowed */
    struct in_addr address; /* the server's */
    uint8_t mac[6];         /* likewise */
    unsigned prefix;
    struct in_addr router;  /* INADDR_ANY: none */
    struct in_addr dns[DHCP_MAX_DNS];
    unsigned n_dns;
    const char *domain;     /* or NULL; at most DHCP_DOMAIN_MAX bytes; borrowed */
    uint16_t mtu;           /* 0: not told */
    uint32_t lease;         /* seconds */
};

struct dhcp_server {
    struct dhcp_config config;
    struct dhcp_leases *leases; /* borrowed */
    /* A station has got an address that it did not have before: worth keeping. May be NULL. */
    void (*bound)(struct dhcp_server *server, const uint8_t mac[6], struct in_addr address);
    uint64_t full; /* messages left unanswered for want of an address */
    struct log_rate log_rate;
};

/* Whether the frame, of which `length` bytes are there, is for a DHCP server: IPv4, UDP, port 67. */
bool dhcp_is_request(const uint8_t *frame, size_t length);

/*
 * Answers one frame that is. Returns the answer's length, written to `answer` of DHCP_FRAME_MAX bytes,
 * or 0: none is due. frame: bytes that nobody else writes to. now: seconds.
 */
size_t dhcp_answer(struct dhcp_server *server, const uint8_t *frame, size_t length, uint64_t now,
                   uint8_t *answer);

#endif
