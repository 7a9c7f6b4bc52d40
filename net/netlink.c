/*
 * Netlink sockets: composing messages, sending them, reading what comes back.
 *
 * Knows neither links nor tables (rtnl.c, nft.c), and receives no notifications. The kernel works on
 * a request within sendmsg(2), so that its answers are there when that returns; only a dump goes on
 * while it is read. No state but the socket's; no locks.
 *
 * Texts: RFC 3549; Linux Documentation/userspace-api/netlink/intro.rst; netlink(7).
 */
#include "net/netlink.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define ANSWER_ROOM 65536u

int netlink_open(struct netlink *nl, int protocol)
{
    const struct sockaddr_nl any = {.nl_family = AF_NETLINK};
    int on = 1, err;

    *nl = (struct netlink){.fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol)};
    if (nl->fd < 0)
        return -errno;
    if (bind(nl->fd, (const struct sockaddr *)&any, sizeof(any)) < 0) {
        err = -errno;
        netlink_close(nl);
        return err;
    }
    /* Errors in words, without the request they answer. Not all kernels have both. */
    (void)setsockopt(nl->fd, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof(on));
    (void)setsockopt(nl->fd, SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof(on));
    return 0;
}

void netlink_close(struct netlink *nl)
{
    if (nl->fd >= 0)
        close(nl->fd);
    nl->fd = -1;
}

/* ---- composing ---- */

void netlink_clear(struct netlink_request *request)
{
    request->length = 0;
    request->start = 0;
    request->overflow = false;
}

/* Room for size bytes and what aligns them, zeroed; NULL when there is none. */
static void *extend(struct netlink_request *request, size_t size)
{
    size_t whole = NLMSG_ALIGN(size);
    uint8_t *at = request->bytes + request->length;

    if (size > NETLINK_ROOM || whole > NETLINK_ROOM - request->length) {
        request->overflow = true;
        return NULL;
    }
    memset(at, 0, whole);
    request->length += whole;
    return at;
}

static void set_message_length(struct netlink_request *request)
{
    uint32_t length = (uint32_t)(request->length - request->start);

    memcpy(request->bytes + request->start + offsetof(struct nlmsghdr, nlmsg_len), &length,
           sizeof(length));
}

void netlink_begin(struct netlink_request *request, uint16_t type, uint16_t flags,
                   const void *head, size_t head_size)
{
    const struct nlmsghdr header = {.nlmsg_type = type,
                                    .nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags)};
    size_t start = request->length;
    uint8_t *at = extend(request, NLMSG_HDRLEN + head_size);

    if (!at)
        return;
    memcpy(at, &header, sizeof(header));
    memcpy(at + NLMSG_HDRLEN, head, head_size);
    request->start = start;
    set_message_length(request);
}

void netlink_put(struct netlink_request *request, uint16_t type, const void *data, size_t size)
{
    const struct nlattr attr = {.nla_type = type, .nla_len = (uint16_t)(NLA_HDRLEN + size)};
    uint8_t *at = extend(request, NLA_HDRLEN + size);

    if (!at)
        return;
    memcpy(at, &attr, sizeof(attr));
    if (size > 0)
        memcpy(at + NLA_HDRLEN, data, size);
    set_message_length(request);
}

void netlink_put_u32(struct netlink_request *request, uint16_t type, uint32_t value)
{
    netlink_put(request, type, &value, sizeof(value));
}

void netlink_put_be32(struct netlink_request *request, uint16_t type, uint32_t value)
{
    netlink_put_u32(request, type, htonl(value));
}

void netlink_put_text(struct netlink_request *request, uint16_t type, const char *text)
{
    netlink_put(request, type, text, strlen(text) + 1);
}

size_t netlink_nest(struct netlink_request *request, uint16_t type)
{
    size_t nest = request->length;

    netlink_put(request, type | NLA_F_NESTED, NULL, 0);
    return nest;
}

void netlink_end(struct netlink_request *request, size_t nest)
{
    uint16_t length = (uint16_t)(request->length - nest);

    if (!request->overflow)
        memcpy(request->bytes + nest + offsetof(struct nlattr, nla_len), &length, sizeof(length));
}

/* ---- sending ---- */

/* Numbers the messages; returns how many ask for an acknowledgement. */
static unsigned number_messages(struct netlink *nl, struct netlink_request *request)
{
    unsigned acks = 0;

    for (size_t at = 0; at < request->length;) {
        struct nlmsghdr *header = (struct nlmsghdr *)(request->bytes + at);

        header->nlmsg_seq = ++nl->sequence;
        if (header->nlmsg_flags & NLM_F_ACK)
            acks++;
        at += NLMSG_ALIGN(header->nlmsg_len);
    }
    return acks;
}

static int transmit(struct netlink *nl, const struct netlink_request *request)
{
    const struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    ssize_t sent;

    nl->reason[0] = '\0';
    if (request->overflow)
        return -EMSGSIZE;
    do {
        sent = sendto(nl->fd, request->bytes, request->length, 0,
                      (const struct sockaddr *)&kernel, sizeof(kernel));
    } while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : 0;
}

/* One datagram: its length, 0 when there is none and flags forbid to wait, or -errno. */
static ssize_t receive(struct netlink *nl, void *to, int flags)
{
    struct sockaddr_nl from = {0};
    socklen_t from_size = sizeof(from);
    ssize_t got;

    do {
        got = recvfrom(nl->fd, to, ANSWER_ROOM, flags, (struct sockaddr *)&from, &from_size);
    } while ((got < 0 && errno == EINTR) || (got >= 0 && from.nl_pid != 0));
    if (got < 0)
        return errno == EAGAIN ? 0 : -errno;
    return got;
}

/* The words of an error, behind the header of the request that it answers (NETLINK_CAP_ACK). */
static void note_reason(struct netlink *nl, const struct nlmsghdr *message)
{
    if (message->nlmsg_flags & NLM_F_ACK_TLVS)
        netlink_copy_text(netlink_find(message, sizeof(struct nlmsgerr), NLMSGERR_ATTR_MSG, 1),
                          nl->reason, sizeof(nl->reason));
}

/* The error in an acknowledgement. */
static int error_of(const struct nlmsghdr *message)
{
    const struct nlmsgerr *error = NLMSG_DATA(message);

    return message->nlmsg_len < NLMSG_LENGTH(sizeof(error->error)) ? -EBADMSG : error->error;
}

struct answers {
    int (*each)(void *arg, const struct nlmsghdr *message);
    void *arg;
    int verdict;
};

int netlink_send(struct netlink *nl, struct netlink_request *request)
{
    _Alignas(8) uint8_t answer[ANSWER_ROOM];
    unsigned acks = number_messages(nl, request);
    int result = transmit(nl, request);
    ssize_t got;

    if (result)
        return result;
    while ((got = receive(nl, answer, MSG_DONTWAIT)) > 0) {
        int left = (int)got;

        for (struct nlmsghdr *m = (struct nlmsghdr *)answer; NLMSG_OK(m, left);
             m = NLMSG_NEXT(m, left)) {
            int error = m->nlmsg_type == NLMSG_ERROR ? error_of(m) : 0;

            acks -= m->nlmsg_type == NLMSG_ERROR && acks > 0;
            if (error && !result) {
                result = error;
                note_reason(nl, m);
            }
        }
    }
    if (got < 0 && !result)
        result = (int)got;
    return !result && acks > 0 ? -ETIMEDOUT : result;
}

/* Takes a datagram's messages. 1: that was the last; 0: more will come; or -errno. */
static int take_answers(struct netlink *nl, struct nlmsghdr *m, int left, struct answers *answers)
{
    for (; NLMSG_OK(m, left); m = NLMSG_NEXT(m, left)) {
        if (m->nlmsg_seq != nl->sequence)
            continue;
        if (m->nlmsg_type == NLMSG_DONE)
            return 1;
        if (m->nlmsg_type == NLMSG_ERROR) {
            note_reason(nl, m);
            return error_of(m);
        }
        /* A dump is read to its end in any case: until then there can be no other. */
        if (!answers->verdict)
            answers->verdict = answers->each(answers->arg, m);
        if (!(m->nlmsg_flags & NLM_F_MULTI))
            return 1;
    }
    return 0;
}

int netlink_query(struct netlink *nl, struct netlink_request *request,
                  int (*each)(void *arg, const struct nlmsghdr *message), void *arg)
{
    _Alignas(8) uint8_t answer[ANSWER_ROOM];
    struct answers answers = {.each = each, .arg = arg};
    int result;

    (void)number_messages(nl, request);
    result = transmit(nl, request);
    while (!result) {
        ssize_t got = receive(nl, answer, 0);

        if (got <= 0)
            return got < 0 ? (int)got : -ENODATA;
        result = take_answers(nl, (struct nlmsghdr *)answer, (int)got, &answers);
    }
    return result < 0 ? result : answers.verdict;
}

/* ---- reading ---- */

static const struct nlattr *find(const uint8_t *at, size_t left, uint16_t type, size_t min)
{
    while (left >= NLA_HDRLEN) {
        const struct nlattr *attr = (const struct nlattr *)at;
        size_t whole = NLA_ALIGN(attr->nla_len);

        if (attr->nla_len < NLA_HDRLEN || attr->nla_len > left)
            return NULL;
        if ((attr->nla_type & NLA_TYPE_MASK) == type && netlink_size(attr) >= min)
            return attr;
        if (whole >= left)
            return NULL;
        at += whole;
        left -= whole;
    }
    return NULL;
}

const struct nlattr *netlink_find(const struct nlmsghdr *message, size_t head_size, uint16_t type,
                                  size_t min)
{
    size_t skip = NLMSG_HDRLEN + NLMSG_ALIGN(head_size);

    if (message->nlmsg_len < skip)
        return NULL;
    return find((const uint8_t *)message + skip, message->nlmsg_len - skip, type, min);
}

const struct nlattr *netlink_find_in(const struct nlattr *nest, uint16_t type, size_t min)
{
    return nest ? find(netlink_data(nest), netlink_size(nest), type, min) : NULL;
}

const void *netlink_data(const struct nlattr *attr)
{
    return (const uint8_t *)attr + NLA_HDRLEN;
}

size_t netlink_size(const struct nlattr *attr)
{
    return attr->nla_len - NLA_HDRLEN;
}

void netlink_copy_text(const struct nlattr *attr, char *to, size_t size)
{
    int length = attr ? (int)netlink_size(attr) : 0;

    snprintf(to, size, "%.*s", length, attr ? (const char *)netlink_data(attr) : "");
}
