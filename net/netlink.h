/*
 * Netlink: messages to the kernel's network configuration, and its answers.
 *
 * What libmnl does for others takes a page here, and spares each start of the program a library.
 * Blocking, but only on the kernel, which answers within the call. Any thread; a socket belongs to
 * one at a time.
 */
#ifndef FERRY_NET_NETLINK_H
#define FERRY_NET_NETLINK_H

#include <linux/netlink.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NETLINK_ROOM 65536u

struct netlink {
    int fd; /* owns */
    uint32_t sequence;
    char reason[160]; /* what the kernel had to say of the last request that failed, or "" */
};

/* protocol: NETLINK_ROUTE and so on. 0 or -errno, not logged. */
int netlink_open(struct netlink *nl, int protocol);
/* Also one that never opened, when its fd is -1. */
void netlink_close(struct netlink *nl);

/* ---- composing: one message, or several in a row ---- */

struct netlink_request {
    _Alignas(8) uint8_t bytes[NETLINK_ROOM];
    size_t length;
    size_t start;  /* of the message being composed */
    bool overflow; /* it would not fit; sending it is refused with -EMSGSIZE */
};

void netlink_clear(struct netlink_request *request);
/* Begins a message: its type, NLM_F_ flags, and the family's fixed header. */
void netlink_begin(struct netlink_request *request, uint16_t type, uint16_t flags,
                   const void *head, size_t head_size);
void netlink_put(struct netlink_request *request, uint16_t type, const void *data, size_t size);
void netlink_put_u32(struct netlink_request *request, uint16_t type, uint32_t value);
/* In network byte order, as nf_tables wants numbers. */
void netlink_put_be32(struct netlink_request *request, uint16_t type, uint32_t value);
void netlink_put_text(struct netlink_request *request, uint16_t type, const char *text);
/* Returns where the nest began, for netlink_end(). */
size_t netlink_nest(struct netlink_request *request, uint16_t type);
void netlink_end(struct netlink_request *request, size_t nest);

/* ---- sending ---- */

/* Sends all of it; each message but a batch's ends asks for an acknowledgement by itself
 * (NLM_F_ACK). 0, or the first error: -errno of the kernel; nl->reason has its words. */
int netlink_send(struct netlink *nl, struct netlink_request *request);

/* Sends one message and gives each answer to `each`, until one of those returns other than 0, which
 * is then the result. 0 or -errno. */
int netlink_query(struct netlink *nl, struct netlink_request *request,
                  int (*each)(void *arg, const struct nlmsghdr *message), void *arg);

/* ---- reading an answer ---- */

/* The attribute of that type behind a fixed header of head_size bytes, of at least min bytes of
 * content; NULL when there is none. */
const struct nlattr *netlink_find(const struct nlmsghdr *message, size_t head_size, uint16_t type,
                                  size_t min);
/* The same within a nest. */
const struct nlattr *netlink_find_in(const struct nlattr *nest, uint16_t type, size_t min);
const void *netlink_data(const struct nlattr *attr);
size_t netlink_size(const struct nlattr *attr);
/* Copies a text and ends it; "" for NULL. */
void netlink_copy_text(const struct nlattr *attr, char *to, size_t size);

#endif
