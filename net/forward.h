/*
 * Port forwards: a port of the host that leads into the guest, as people write it:
 *
 *     tcp|udp:[HOSTADDR:]HOSTPORT-[GUESTADDR:]PORT
 *
 * Without a host address (or with an empty one: "tcp::2222-:22") the port is open to this host
 * alone, on 127.0.0.1; QEMU, whose notation this is, opens it to the whole network then. To do so
 * here, write 0.0.0.0. Without a guest address it is the one that DHCP gives to the first guest.
 */
#ifndef FERRY_NET_FORWARD_H
#define FERRY_NET_FORWARD_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Addresses in network byte order, ports in host's. */
struct net_forward {
    bool udp;
    struct in_addr host_addr;  /* 127.0.0.1 when none was given */
    uint16_t host_port;        /* 1..65535 */
    struct in_addr guest_addr; /* INADDR_ANY: the address that DHCP hands to the guest */
    uint16_t guest_port;       /* 1..65535 */
};

/* What net_forward_parse() takes, to complete "... was expected". */
#define NET_FORWARD_EXPECTS "tcp|udp:[HOSTADDR:]HOSTPORT-[GUESTADDR:]PORT, with addresses of IPv4,"

/* 0; -EINVAL, not logged, with *out as it was. Any thread. */
int net_forward_parse(struct net_forward *out, const char *text);

/* Writes it as net_forward_parse() reads it. */
#define NET_FORWARD_TEXT_MAX sizeof("tcp:255.255.255.255:65535-255.255.255.255:65535")
void net_forward_format(const struct net_forward *forward, char *to, size_t size);

#endif
