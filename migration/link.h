/*
 * A connection between two processes that hand a guest over: sections of the stream, both ways.
 *
 * tcp:HOST:PORT (an IPv6 host in brackets), tls:HOST:PORT or unix:PATH. Every call blocks, at most for the link's
 * patience, and ends early with -ECANCELED once link_cancel() was called. One thread sends and one
 * receives at a time; link_cancel() may be called by any. Sockets never raise SIGPIPE.
 */
#ifndef FERRY_MIGRATION_LINK_H
#define FERRY_MIGRATION_LINK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "migration/stream.h"
#include "migration/tls.h"

struct link;

#define LINK_PATIENCE_MS 30000 /* for the peer to take or send something */
#define LINK_TEXT_MAX 256      /* bytes of an address, NUL included */

/* What "tcp:HOST:PORT", "tls:HOST:PORT" or "unix:PATH" names. */
struct link_address {
    bool is_unix, is_tls;
    char host[LINK_TEXT_MAX]; /* tcp, tls; empty: every address of this host */
    char port[16];            /* tcp, tls */
    char path[108];           /* unix: what a socket's address can hold */
};
/* -EINVAL: none of them; not logged. */
int link_parse(struct link_address *address, const char *text);

/* A listening socket, owned by the caller. The path of a unix socket that nobody listens on is taken
 * over. Errors of socket(2), bind(2) and getaddrinfo(3) (-EADDRNOTAVAIL); logged with the address. */
int link_listen(const struct link_address *address, int *fd);
/* Closes it; a unix socket's path is free again. */
void link_unlisten(const struct link_address *address, int fd);
/* The port that a listening tcp socket has: for a port 0 that was asked for. */
unsigned link_port(int fd);

/* Whom to connect to, or to take in. All borrowed. */
struct link_terms {
    /* Accepting: the host that it must be, by a name or address that is looked up anew for each; with
     * TLS its certificate must be for that, too. NULL: any. */
    const char *from;
    const struct tls_identity *identity; /* for tls:, else NULL */
    int cancel_fd;                       /* ends connecting or accepting when it becomes readable; -1: never */
    char reason[TLS_REASON_MAX];         /* filled with why TLS failed, else empty */
};

/* Waits without limit for a peer. Others than terms allow are hung up on, and told in the log. The
 * link is the caller's. -ECANCELED. */
int link_accept(struct link **out, int listen_fd, struct link_terms *terms);
/* The same for a further connection of the one who came by `link`: until deadline_ns (-ETIMEDOUT);
 * -ECANCELED, -ECONNRESET: that link was cancelled, or its peer hung up. */
int link_accept_beside(struct link **out, struct link *link, int listen_fd,
                       struct link_terms *terms, uint64_t deadline_ns);
/* Errors as of connect(2) and tls_handshake(), -ETIMEDOUT; logged with the address. -ECANCELED. */
int link_connect(struct link **out, const struct link_address *address, struct link_terms *terms);
/* Takes over fd, a connected stream socket, also on error. */
int link_create(struct link **out, int fd, const char *name);
void link_destroy(struct link *link);

/* Whether descriptors can be sent along. */
bool link_is_unix(const struct link *link);
void link_cancel(struct link *link);
/*
 * While this link waits, the end of another counts as its own (-ECONNRESET): of one that only sends, which
 * does not see it by itself when it has nothing to send. `other` is borrowed until link_unwatch(). -ENOSPC.
 */
#define LINK_MAX_WATCHED 15
int link_watch(struct link *link, const struct link *other);
void link_unwatch(struct link *link);
/* A cancellation counts no more. */
void link_rearm(struct link *link);
/* For the peer to send something, instead of LINK_PATIENCE_MS; 0: without end. */
void link_set_patience(struct link *link, unsigned ms);
/* Sleeps; -ECANCELED when that ended it. */
int link_wait(struct link *link, uint64_t ns);
/* Sleeps until something came that was not read, the peer's end included: 0. Errors: -ETIMEDOUT after
 * ns, -ECANCELED. */
int link_await(struct link *link, uint64_t ns);

/* Puts TLS upon it, before anything was sent; cancel_fd beside its own (-1: none). host: as with
 * tls_create(). Errors as of tls_handshake(), -ETIMEDOUT, -ECANCELED, with the reason in `reason`. */
int link_secure(struct link *link, const struct tls_identity *identity, const char *host,
                int cancel_fd, char reason[TLS_REASON_MAX]);

/* ---- sending: 0, or not logged: -EPIPE, -ECONNRESET (it is gone), -ETIMEDOUT, -ECANCELED ---- */
int link_send_header(struct link *link);
int link_send(struct link *link, enum stream_kind kind, const char *id, const void *payload,
              uint64_t length);
/* A section whose payload is in two pieces, with their checksum. */
int link_send_pieces(struct link *link, enum stream_kind kind, const struct iovec pieces[2],
                     uint32_t crc);
/* A section with an empty payload and a descriptor. */
int link_send_fd(struct link *link, enum stream_kind kind, int fd);
/* Bytes that the kernel took so far: whether a message that failed may have left in part. */
uint64_t link_sent(const struct link *link);
/* Says why this side gives up, and waits a moment for the peer to have heard it. */
void link_abort(struct link *link, const char *why);

/* ---- receiving: by the functions of stream.h; -ECONNRESET when the peer is gone ---- */
const struct stream_reader *link_reader(struct link *link);
/* Whether something came that was not read, the peer's end included. */
bool link_readable(struct link *link);
/* The descriptor that came with what was read last, now owned by the caller; or -1. */
int link_take_fd(struct link *link);

#endif
