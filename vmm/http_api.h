/*
 * libmicrohttpd's functions, loaded when the first client connects.
 *
 * Not linked: libmicrohttpd brings GnuTLS and nine more libraries, which a guest that nobody asks
 * anything would pay for at each start, in time and in memory.
 */
#ifndef FERRY_HTTP_API_H
#define FERRY_HTTP_API_H

#include <microhttpd.h>

#define HTTP_SONAME "libmicrohttpd.so.12"

struct http_api {
    __typeof__(&MHD_start_daemon) start_daemon;
    __typeof__(&MHD_stop_daemon) stop_daemon;
    __typeof__(&MHD_add_connection) add_connection;
    __typeof__(&MHD_run) run;
    __typeof__(&MHD_get_timeout) get_timeout;
    __typeof__(&MHD_get_daemon_info) get_daemon_info;
    __typeof__(&MHD_get_connection_info) get_connection_info;
    __typeof__(&MHD_create_response_from_buffer) create_response;
    __typeof__(&MHD_add_response_header) add_header;
    __typeof__(&MHD_queue_response) queue_response;
    __typeof__(&MHD_destroy_response) destroy_response;
    __typeof__(&MHD_get_connection_values) get_values;
    __typeof__(&MHD_suspend_connection) suspend;
    __typeof__(&MHD_resume_connection) resume;
};

/* 0, or -ENOENT, logged with what to install. */
int http_api_load(struct http_api *api);

#endif
