/*
 * A DHCP client's messages, put together by hand, and a server's answers, taken apart: for tests.
 */
#ifndef FERRY_TESTS_DHCP_CLIENT_H
#define FERRY_TESTS_DHCP_CLIENT_H

#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>

#define DHCP_CLIENT_FRAME_MAX 1514

/* Addresses in network byte order; 0: left out. */
struct dhcp_client {
    uint8_t mac[6];
    uint32_t xid;
    uint16_t flags;     /* 0x8000: answer to all */
    uint32_t ciaddr, giaddr;
    uint8_t type;       /* 1 DISCOVER, 3 REQUEST, 4 DECLINE, 7 RELEASE, 8 INFORM */
    uint32_t address, server;
    const uint8_t *wanted;
    size_t n_wanted;
};

/* Writes the frame; its length. */
size_t dhcp_client_frame(const struct dhcp_client *client, uint8_t *frame);

struct dhcp_reply {
    uint8_t to[6];
    uint32_t ip_to, xid, yiaddr;
    uint8_t type;
    uint32_t server, lease, t1, t2, mask, broadcast, router; /* the numbers in host's order */
    uint32_t dns[4];
    unsigned n_dns;
    char domain[256];
    unsigned mtu;
};

/* 0, or -1: it is no well-formed answer of a server; its checksums are looked at, too. */
int dhcp_client_read(const uint8_t *frame, size_t length, struct dhcp_reply *reply);

#endif
