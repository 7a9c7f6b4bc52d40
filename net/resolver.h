/*
 * The name servers that the host uses.
 */
#ifndef FERRY_NET_RESOLVER_H
#define FERRY_NET_RESOLVER_H

#include <netinet/in.h>

/* Those that a guest can reach as well: none on the host's loopback. At most `max`; returns how
 * many. Reads a small file; any thread. */
unsigned resolver_servers(struct in_addr *servers, unsigned max);

#endif
