/*
 * A port whose other end is in another process: Ethernet frames on a stream socket, each behind its
 * length in 32 bits, big-endian. QEMU's -netdev stream, passt and another ferry speak it.
 *
 * Frames cross whole and plain: offloads are done in software before they leave.
 */
#ifndef FERRY_NET_STREAM_PORT_H
#define FERRY_NET_STREAM_PORT_H

#include <stdbool.h>
#include <stdint.h>

struct loop;
struct net_port;
struct stream_port;

/* Pointers are borrowed during stream_port_create(), but for name: as long as the port lives. One of
 * path, address and fd. */
struct stream_config {
    const char *name;    /* for messages: "net0" */
    const char *path;    /* of a unix socket, or NULL */
    const char *address; /* HOST:PORT, or NULL; a name is looked up once, at the start */
    int fd;              /* a connected socket, or -1; taken over on success */
    bool server;         /* listens, and serves one peer after the other; else connects */
    unsigned reconnect;  /* seconds between attempts to connect */
};

struct stream_counters {
    uint64_t unconnected; /* frames for a peer that was not there */
    uint64_t malformed;   /* from the peer: too short, or longer than any frame */
};

/* Errors, logged: -EADDRINUSE and others of bind(2) and socket(2); -EHOSTUNREACH: the name is
 * unknown; those of made.h; -ENOMEM. That nobody listens yet is none. Loop's thread. */
int stream_port_create(struct stream_port **out, struct loop *loop,
                       const struct stream_config *config);
/* Unplugs, closes, and removes the socket's name. Not from a callback of the loop. NULL is fine. */
void stream_port_destroy(struct stream_port *stream);

struct net_port *stream_port(struct stream_port *stream);
bool stream_port_connected(const struct stream_port *stream);
void stream_port_get_counters(const struct stream_port *stream, struct stream_counters *counters);

#endif
