/*
 * Reads and writes the notation of a port forward.
 *
 * IPv4 only: libslirp joins no IPv6 port of the host to an IPv4 guest. Opens nothing. The text may
 * come from anywhere and is not trusted. Any thread; no state.
 */
#include "net/forward.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define PORT_MAX 65535u

/* The decimal number that text is all of; 0, which is no port, when it is none. */
static uint16_t parse_port(const char *text, size_t length)
{
    unsigned port = 0;

    if (length == 0 || length > strlen("65535"))
        return 0;
    for (size_t i = 0; i < length; i++) {
        if (text[i] < '0' || text[i] > '9')
            return 0;
        port = port * 10 + (unsigned)(text[i] - '0');
    }
    return port <= PORT_MAX ? (uint16_t)port : 0;
}

/* "[ADDRESS:]PORT" of `length` bytes. *address stays as it is when there is none. */
static int parse_endpoint(const char *text, size_t length, struct in_addr *address, uint16_t *port)
{
    const char *colon = memchr(text, ':', length);
    size_t host = colon ? (size_t)(colon - text) : 0;
    char copy[INET_ADDRSTRLEN];

    if (colon) {
        if (host >= sizeof(copy))
            return -EINVAL;
        memcpy(copy, text, host);
        copy[host] = '\0';
        if (host > 0 && inet_pton(AF_INET, copy, address) != 1)
            return -EINVAL;
        text = colon + 1;
        length -= host + 1;
    }
    *port = parse_port(text, length);
    return *port ? 0 : -EINVAL;
}

int net_forward_parse(struct net_forward *out, const char *text)
{
    struct net_forward forward = {.host_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const char *host, *dash;

    if (strncmp(text, "udp:", 4) == 0)
        forward.udp = true;
    else if (strncmp(text, "tcp:", 4) != 0)
        return -EINVAL;
    host = text + 4;
    dash = strchr(host, '-');
    if (!dash ||
        parse_endpoint(host, (size_t)(dash - host), &forward.host_addr, &forward.host_port) < 0 ||
        parse_endpoint(dash + 1, strlen(dash + 1), &forward.guest_addr, &forward.guest_port) < 0)
        return -EINVAL;
    *out = forward;
    return 0;
}

void net_forward_format(const struct net_forward *forward, char *to, size_t size)
{
    char host[INET_ADDRSTRLEN], guest[INET_ADDRSTRLEN] = "";

    inet_ntop(AF_INET, &forward->host_addr, host, sizeof(host));
    if (forward->guest_addr.s_addr != htonl(INADDR_ANY))
        inet_ntop(AF_INET, &forward->guest_addr, guest, sizeof(guest));
    snprintf(to, size, "%s:%s:%u-%s:%u", forward->udp ? "udp" : "tcp", host, forward->host_port,
             guest, forward->guest_port);
}
