/*
 * TLS for a connection: both sides show certificates of one authority (x509).
 *
 * Knows sockets that do not block, and neither waits nor polls: link.c does. An identity may be used
 * by many sessions, each on any one thread at a time.
 */
#ifndef FERRY_MIGRATION_TLS_H
#define FERRY_MIGRATION_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define TLS_REASON_MAX 200
#define TLS_FOLDER "/etc/ferry/tls"

struct tls_identity;

/*
 * Reads ca-cert.pem and, where it is there, ca-crl.pem of the folder (NULL: TLS_FOLDER), and
 * server-cert.pem and server-key.pem, or client-cert.pem and client-key.pem. Logged, and told in
 * `reason` if that is not NULL: -ENOENT, -EACCES (a file), -EINVAL (what is in it), of tls_api_load().
 */
int tls_identity_create(struct tls_identity **out, const char *folder, bool server,
                        char reason[TLS_REASON_MAX]);
void tls_identity_destroy(struct tls_identity *identity);

struct tls;

/* A session on a connected socket; identity and fd are borrowed. host: what the other's certificate
 * must be for; NULL: anything of the authority. -ENOMEM, -EPROTO. */
int tls_create(struct tls **out, const struct tls_identity *identity, int fd, const char *host);
void tls_destroy(struct tls *tls);

/*
 * 0, or -EAGAIN: call again when the socket is ready as tls_wants_write() says. Others have a reason:
 * -EKEYREJECTED (one of the two does not take the other's certificate), -EPROTO (it is not TLS that the
 * other speaks), -ECONNRESET.
 */
int tls_handshake(struct tls *tls);
bool tls_wants_write(const struct tls *tls);
/* Bytes, 0 (receiving: the end), or an error as above. */
ssize_t tls_send(struct tls *tls, const void *data, size_t length);
ssize_t tls_receive(struct tls *tls, void *data, size_t length);
/* Whether something came that was not received, an end or an error included. */
bool tls_readable(struct tls *tls);
/* What the last error was, or "". Borrowed. */
const char *tls_reason(const struct tls *tls);

#endif
