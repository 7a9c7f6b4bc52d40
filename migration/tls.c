/*
 * TLS 1.3 by GnuTLS, which is loaded by the first identity.
 *
 * Both sides must show a certificate that the authority of this side's folder signed, for its purpose
 * (server or client), not expired nor revoked. Files have the names that libvirt and QEMU use. Does not
 * wait for the socket. Threads: see the header; no locks.
 * Texts: RFC 8446 (TLS 1.3), RFC 5280 §6 (validation), RFC 6125 (names).
 */
#include "migration/tls.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "migration/tls_api.h"
#include "vmm/util/log.h"

#define PRIORITY "NORMAL:-VERS-ALL:+VERS-TLS1.3"
#define PATH_BYTES 4096

struct tls_identity {
    struct tls_api api;
    gnutls_certificate_credentials_t credentials; /* owns */
    bool server;
};

struct tls {
    const struct tls_identity *identity; /* borrowed */
    const struct tls_api *api;           /* the identity's */
    gnutls_session_t session;            /* owns */
    int fd;                              /* borrowed */
    char *host;                          /* owns; NULL: any */
    gnutls_typed_vdata_st asked[2];      /* of the other's certificate, for as long as the session */
    bool has_peeked;
    unsigned char peeked; /* received to see whether there is something */
    char reason[TLS_REASON_MAX];
};

/* ---- identities ---- */

static int refuse(char *reason, int err, const char *path, const char *why)
{
    log_error("%s: %s", path, why);
    if (reason)
        snprintf(reason, TLS_REASON_MAX, "%.120s: %.70s", path, why);
    return err;
}

/* Whether the file can be read, said before the library says it less clearly. */
static int look(const char *folder, const char *name, char *path, char *reason)
{
    int fd, err;

    if (snprintf(path, PATH_BYTES, "%s/%s", folder, name) >= PATH_BYTES)
        return refuse(reason, -ENAMETOOLONG, folder, strerror(ENAMETOOLONG));
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        close(fd);
        return 0;
    }
    err = -errno;
    return refuse(reason, err, path, err == -ENOENT
                  ? "No such file or directory; --tls names the folder of certificates" : strerror(-err));
}

static int read_authority(struct tls_identity *id, const char *folder, char *reason)
{
    const struct tls_api *api = &id->api;
    char path[PATH_BYTES], revoked[PATH_BYTES];
    int n, err = look(folder, "ca-cert.pem", path, reason);

    if (err)
        return err;
    n = api->gnutls_certificate_set_x509_trust_file(id->credentials, path, GNUTLS_X509_FMT_PEM);
    if (n <= 0)
        return refuse(reason, -EINVAL, path,
                      n < 0 ? api->gnutls_strerror(n) : "there is no certificate in it");
    if (snprintf(revoked, sizeof(revoked), "%s/ca-crl.pem", folder) >= (int)sizeof(revoked) ||
        access(revoked, F_OK) < 0)
        return 0;
    n = api->gnutls_certificate_set_x509_crl_file(id->credentials, revoked, GNUTLS_X509_FMT_PEM);
    return n < 0 ? refuse(reason, -EINVAL, revoked, api->gnutls_strerror(n)) : 0;
}

static int read_own(struct tls_identity *id, const char *folder, char *reason)
{
    const struct tls_api *api = &id->api;
    char cert[PATH_BYTES], key[PATH_BYTES];
    int n, err = look(folder, id->server ? "server-cert.pem" : "client-cert.pem", cert, reason);

    if (!err)
        err = look(folder, id->server ? "server-key.pem" : "client-key.pem", key, reason);
    if (err)
        return err;
    n = api->gnutls_certificate_set_x509_key_file(id->credentials, cert, key, GNUTLS_X509_FMT_PEM);
    return n < 0 ? refuse(reason, -EINVAL, cert, api->gnutls_strerror(n)) : 0;
}

int tls_identity_create(struct tls_identity **out, const char *folder, bool server,
                        char reason[TLS_REASON_MAX])
{
    struct tls_identity *id = calloc(1, sizeof(*id));
    int err;

    if (!id)
        return -ENOMEM;
    id->server = server;
    if (!folder)
        folder = TLS_FOLDER;
    err = tls_api_load(&id->api);
    if (err)
        refuse(reason, err, TLS_SONAME, "it cannot be loaded");
    else if (id->api.gnutls_certificate_allocate_credentials(&id->credentials) < 0)
        err = -ENOMEM;
    if (!err)
        err = read_authority(id, folder, reason);
    if (!err)
        err = read_own(id, folder, reason);
    if (err) {
        tls_identity_destroy(id);
        return err;
    }
    *out = id;
    return 0;
}

void tls_identity_destroy(struct tls_identity *id)
{
    if (!id)
        return;
    if (id->credentials)
        id->api.gnutls_certificate_free_credentials(id->credentials);
    free(id);
}

/* ---- sessions ---- */

/* What the other's certificate must be good for. */
static void ask_for(struct tls *tls)
{
    const char *purpose = tls->identity->server ? GNUTLS_KP_TLS_WWW_CLIENT
                                                : GNUTLS_KP_TLS_WWW_SERVER;

    tls->asked[0] = (gnutls_typed_vdata_st){.type = GNUTLS_DT_KEY_PURPOSE_OID,
                                            .data = (unsigned char *)(uintptr_t)purpose};
    tls->asked[1] = (gnutls_typed_vdata_st){.type = GNUTLS_DT_DNS_HOSTNAME,
                                            .data = (unsigned char *)tls->host};
    tls->api->gnutls_session_set_verify_cert2(tls->session, tls->asked, tls->host ? 2 : 1, 0);
}

static int set_up(struct tls *tls, int fd)
{
    const struct tls_api *api = tls->api;
    unsigned flags = tls->identity->server ? GNUTLS_SERVER | GNUTLS_NO_TICKETS : GNUTLS_CLIENT;

    if (api->gnutls_init(&tls->session, flags | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL) < 0) {
        tls->session = NULL;
        return -ENOMEM;
    }
    if (api->gnutls_priority_set_direct(tls->session, PRIORITY, NULL) < 0 ||
        api->gnutls_credentials_set(tls->session, GNUTLS_CRD_CERTIFICATE,
                                    tls->identity->credentials) < 0)
        return -EPROTO;
    if (tls->identity->server)
        api->gnutls_certificate_server_set_request(tls->session, GNUTLS_CERT_REQUIRE);
    ask_for(tls);
    api->gnutls_transport_set_int2(tls->session, fd, fd);
    return 0;
}

int tls_create(struct tls **out, const struct tls_identity *identity, int fd, const char *host)
{
    struct tls *tls = calloc(1, sizeof(*tls));
    int err;

    if (!tls)
        return -ENOMEM;
    tls->identity = identity;
    tls->api = &identity->api;
    tls->fd = fd;
    tls->host = host ? strdup(host) : NULL;
    err = host && !tls->host ? -ENOMEM : set_up(tls, fd);
    if (err) {
        tls_destroy(tls);
        return err;
    }
    *out = tls;
    return 0;
}

void tls_destroy(struct tls *tls)
{
    if (!tls)
        return;
    if (tls->session)
        tls->api->gnutls_deinit(tls->session);
    free(tls->host);
    free(tls);
}

/* ---- errors ---- */

static int say(struct tls *tls, int err, const char *what, const char *detail)
{
    snprintf(tls->reason, sizeof(tls->reason), "%s%s", what, detail);
    return err;
}

/* The library's sentence names what is wrong with the certificate: expired, another name, ... */
static int say_why_not(struct tls *tls)
{
    unsigned status = tls->api->gnutls_session_get_verify_cert_status(tls->session);
    gnutls_datum_t text = {0};

    if (tls->api->gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text,
                                                               0) < 0)
        return say(tls, -EKEYREJECTED, "its certificate is not good", "");
    while (text.size > 0 && text.data[text.size - 1] == ' ')
        text.data[--text.size] = '\0';
    (void)say(tls, -EKEYREJECTED, "its certificate is not good: ", (const char *)text.data);
    tls->api->free_text(text.data);
    return -EKEYREJECTED;
}

/* What an error of the library means for us. */
static int translate(struct tls *tls, ssize_t n)
{
    const struct tls_api *api = tls->api;

    switch (n) {
    case GNUTLS_E_AGAIN:
        return -EAGAIN;
    case GNUTLS_E_INTERRUPTED:
        return -EINTR;
    case GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR:
        return say_why_not(tls);
    case GNUTLS_E_NO_CERTIFICATE_FOUND:
    case GNUTLS_E_CERTIFICATE_REQUIRED:
        return say(tls, -EKEYREJECTED, "it has no certificate", "");
    case GNUTLS_E_FATAL_ALERT_RECEIVED:
        return say(tls, -EKEYREJECTED, "it does not take this side's certificate: ",
                   api->gnutls_alert_get_name(api->gnutls_alert_get(tls->session)));
    case GNUTLS_E_UNSUPPORTED_VERSION_PACKET:
    case GNUTLS_E_UNEXPECTED_PACKET:
    case GNUTLS_E_UNEXPECTED_PACKET_LENGTH:
    case GNUTLS_E_RECORD_OVERFLOW:
        return say(tls, -EPROTO, "it does not speak TLS", "");
    case GNUTLS_E_PREMATURE_TERMINATION:
    case GNUTLS_E_PULL_ERROR:
    case GNUTLS_E_PUSH_ERROR:
        return say(tls, -ECONNRESET, "the connection is lost", "");
    default:
        return say(tls, -EPROTO, "TLS: ", api->gnutls_strerror((int)n));
    }
}

const char *tls_reason(const struct tls *tls)
{
    return tls->reason;
}

/* ---- what goes through ---- */

/* To one who does not speak it the library says nothing: an alert of ours, so that it can be told what
 * is spoken here. RFC 8446 §6: fatal, protocol_version. */
static void tell_version(const struct tls *tls)
{
    static const unsigned char alert[] = {21, 3, 1, 0, 2, 2, 70};

    (void)send(tls->fd, alert, sizeof(alert), MSG_NOSIGNAL | MSG_DONTWAIT);
}

int tls_handshake(struct tls *tls)
{
    int err, n;

    do
        n = tls->api->gnutls_handshake(tls->session);
    while (n < 0 && n != GNUTLS_E_AGAIN && !tls->api->gnutls_error_is_fatal(n));
    if (n == GNUTLS_E_SUCCESS)
        return 0;
    err = translate(tls, n);
    if (err == -ECONNRESET) /* whoever speaks it says why before it goes */
        err = say(tls, -EPROTO, "it hung up: perhaps it does not speak TLS", "");
    if (err == -EPROTO && tls->identity->server)
        tell_version(tls);
    else if (err != -EAGAIN)
        (void)tls->api->gnutls_alert_send_appropriate(tls->session, n);
    return err;
}

bool tls_wants_write(const struct tls *tls)
{
    return tls->api->gnutls_record_get_direction(tls->session) == 1;
}

ssize_t tls_send(struct tls *tls, const void *data, size_t length)
{
    ssize_t n = tls->api->gnutls_record_send(tls->session, data, length);

    return n >= 0 ? n : translate(tls, n);
}

static ssize_t receive(struct tls *tls, void *data, size_t length)
{
    ssize_t n = tls->api->gnutls_record_recv(tls->session, data, length);

    return n >= 0 ? n : translate(tls, n);
}

ssize_t tls_receive(struct tls *tls, void *data, size_t length)
{
    if (length == 0)
        return 0;
    if (!tls->has_peeked)
        return receive(tls, data, length);
    *(unsigned char *)data = tls->peeked;
    tls->has_peeked = false;
    return 1;
}

bool tls_readable(struct tls *tls)
{
    ssize_t n;

    if (tls->has_peeked)
        return true;
    n = receive(tls, &tls->peeked, 1);
    tls->has_peeked = n == 1;
    return n != -EAGAIN && n != -EINTR;
}
