/*
 * The host's packet filter: what of a guest network's packets it forwards, and how it translates
 * them. By nf_tables, without a library.
 *
 * Everything is in a table that belongs to a netlink socket (NFT_TABLE_F_OWNER): nobody else can
 * change or flush it, and the kernel removes it when the socket is closed, however its process ends.
 */
#ifndef FERRY_NET_NFT_H
#define FERRY_NET_NFT_H

#include <net/if.h>
#include <netinet/in.h>
#include <stdbool.h>

#include "net/forward.h"
#include "net/netlink.h"

/*
 * Nothing that comes from the link is routed anywhere, and nothing is routed to it, whatever the
 * host forwards otherwise. `nl` is opened and owns the table until netlink_close(). Errors, logged by
 * one line that begins with `who`: -EPERM; -EPROTONOSUPPORT, -EOPNOTSUPP: no nf_tables.
 */
int nft_isolate(struct netlink *nl, const char *who, const char *link);

struct nft_nat {
    const char *link;       /* the network's, on this host */
    struct in_addr network;
    unsigned prefix;
    struct in_addr guest;   /* of forwards that name none */
    const struct net_forward *forwards;
    unsigned n_forwards;
    /* Links at which packets are forwarded only for guests of Ferry: what arrives there and is not
     * for a link whose name begins with "ferry" is dropped. */
    char (*guarded)[IFNAMSIZ];
    unsigned n_guarded;
};

/*
 * Packets from the network go out under the host's addresses, forwards lead into it, and nothing
 * else does. The rest as above.
 */
int nft_masquerade(struct netlink *nl, const char *who, const struct nft_nat *nat);

#endif
