/*
 * NAT by passt(1), another process without privilege, where it is installed: it is started here and
 * ends with its socket.
 */
#ifndef FERRY_NET_PASST_H
#define FERRY_NET_PASST_H

#include <netinet/in.h>
#include <stdbool.h>

#include "net/forward.h"

struct loop;
struct net_port;
struct passt;

/* Pointers are borrowed during passt_create(), but for name: as long as it lives. */
struct passt_config {
    const char *name;       /* of the port, for messages: "net0" */
    struct in_addr network; /* INADDR_ANY: the guest gets the host's own address */
    unsigned prefix;
    struct in_addr dns;     /* INADDR_ANY: the host's */
    bool ipv6;
    unsigned mtu;           /* 0: passt's default */
    const struct net_forward *forwards;
    unsigned n_forwards;
};

/* Errors, logged: -ENOENT: passt is not installed; -EINVAL: a forward that it cannot do; those of
 * posix_spawn(3) and socketpair(2). Loop's thread. */
int passt_create(struct passt **out, struct loop *loop, const struct passt_config *config);
/* Ends it. Not from a callback of the loop. NULL is fine. */
void passt_destroy(struct passt *passt);

const struct stream_port *passt_stream(const struct passt *passt);
struct net_port *passt_port(struct passt *passt);

#endif
