/*
 * The forwards of a user-mode NAT: ports of the host that the library listens at.
 *
 * They are bound when the NAT is made; or later, and let go again, for a guest that moves between two
 * processes of one host: only one of them can have a port. Event loop's thread.
 */
#ifndef FERRY_NET_NAT_FORWARDS_H
#define FERRY_NET_NAT_FORWARDS_H

#include <stdbool.h>
#include <stdint.h>

#include "net/nat.h"
#include "net/slirp_api.h"
#include "vmm/util/loop.h"

struct nat_forwards {
    const char *name;            /* borrowed: of the port, for messages */
    struct loop *loop;           /* borrowed */
    const struct slirp_api *api; /* borrowed */
    Slirp *slirp;                /* borrowed */
    struct {
        struct net_forward forward;
        bool bound;
    } each[NAT_MAX_FORWARDS];
    unsigned n, n_bound;
    int listeners[NAT_MAX_FORWARDS]; /* borrowed: the TCP sockets of those that are bound */
    unsigned n_listeners;
    struct loop_timer retry;
    uint64_t since_ns; /* of the first try to claim them */
    bool told;         /* that one is waited for */
    /* What the library wants to wait for may have changed. */
    void (*changed)(struct nat_forwards *forwards);
};

/* Zero-initialised but for name, loop, api, slirp and changed, which the caller sets. The forwards are
 * copied. */
void nat_forwards_init(struct nat_forwards *forwards, const struct net_forward *each, unsigned n);
/* Gives up what is tried still. The library closes its sockets. */
void nat_forwards_fini(struct nat_forwards *forwards);

/* Binds all. The error of the first that cannot be, logged. */
int nat_forwards_bind(struct nat_forwards *forwards);
/* Binds those that are not, and tries again for ten seconds where one is in use. What cannot be had is
 * logged: a guest runs without it. */
void nat_forwards_claim(struct nat_forwards *forwards);
/* Lets all ports go. TCP's are free at once, UDP's when the loop next sleeps. */
void nat_forwards_release(struct nat_forwards *forwards);

/* Whether the socket is that of a forward by TCP. */
bool nat_forwards_listen_at(const struct nat_forwards *forwards, int fd);

#endif
