/*
 * GnuTLS, loaded when the first address with tls: is used and not before.
 *
 * Linked in the ordinary way it would bring itself and eight further libraries into every run of the
 * program (tls_api.c has figures).
 */
#ifndef FERRY_MIGRATION_TLS_API_H
#define FERRY_MIGRATION_TLS_API_H

#include <gnutls/gnutls.h>
#include <gnutls/x509.h>

#define TLS_SONAME "libgnutls.so.30"

/* Each function of the library that Ferry calls. */
#define TLS_API(X)                                                                                 \
    X(gnutls_certificate_allocate_credentials)                                                     \
    X(gnutls_certificate_free_credentials)                                                         \
    X(gnutls_certificate_set_x509_trust_file)                                                      \
    X(gnutls_certificate_set_x509_key_file)                                                        \
    X(gnutls_certificate_set_x509_crl_file)                                                        \
    X(gnutls_init)                                                                                 \
    X(gnutls_deinit)                                                                               \
    X(gnutls_priority_set_direct)                                                                  \
    X(gnutls_credentials_set)                                                                      \
    X(gnutls_certificate_server_set_request)                                                       \
    X(gnutls_session_set_verify_cert2)                                                             \
    X(gnutls_session_get_verify_cert_status)                                                       \
    X(gnutls_certificate_verification_status_print)                                                \
    X(gnutls_transport_set_int2)                                                                   \
    X(gnutls_handshake)                                                                            \
    X(gnutls_record_send)                                                                          \
    X(gnutls_record_recv)                                                                          \
    X(gnutls_record_get_direction)                                                                 \
    X(gnutls_alert_get)                                                                            \
    X(gnutls_alert_get_name)                                                                       \
    X(gnutls_alert_send_appropriate)                                                               \
    X(gnutls_error_is_fatal)                                                                       \
    X(gnutls_strerror)

struct tls_api {
#define TLS_API_MEMBER(name) __typeof__(&name) name;
    TLS_API(TLS_API_MEMBER)
#undef TLS_API_MEMBER
    void (*free_text)(void *text); /* frees what the library returned */
};

/* Loads the library and finds the functions; it stays loaded. 0; -ENOENT when it is not installed,
 * -ENOEXEC when it lacks a function; logged. Any thread. */
int tls_api_load(struct tls_api *api);

#endif
