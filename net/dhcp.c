/*
 * The DHCP server's messages: reading a client's, deciding, writing the answer.
 *
 * A station is known by its MAC and not by a client identifier (RFC 2131 §2 would have the latter
 * first): a guest's MAC is given by its owner and stays, while guests made from one image tell the
 * same identifier. An address is not probed before it is offered (§2.2, a SHOULD): nobody else gives
 * out addresses on a network of Ferry's own. No relays (giaddr): there is nothing between, so each
 * station speaks for itself, by frames from the MAC that its message names. Checksums of what comes
 * are not checked: the frames come from memory, and may not have theirs yet.
 *
 * No state but the leases. Texts: RFC 2131, RFC 2132, RFC 3396 (not done: no option here is long
 * enough to be split), RFC 768, RFC 791.
 */
#include "net/dhcp.h"

#include <arpa/inet.h>
#include <net/ethernet.h>
#include <string.h>

#include "vmm/util/log.h"

#define SERVER_PORT 67u
#define CLIENT_PORT 68u
#define COOKIE 0x63825363u
#define BOOTREQUEST 1u
#define BOOTREPLY 2u
#define ETHERNET 1u
#define BROADCAST_FLAG 0x8000u
/* How long an address is kept for who was offered it. */
#define OFFER_SECONDS 60u
/* BOOTP clients want as much (RFC 951 §3). */
#define MESSAGE_MIN 300u

enum message_type {
    DISCOVER = 1,
    OFFER,
    REQUEST,
    DECLINE,
    ACK,
    NAK,
    RELEASE,
    INFORM,
};

/* RFC 2132. */
enum option {
    OPT_PAD = 0,
    OPT_MASK = 1,
    OPT_ROUTER = 3,
    OPT_DNS = 6,
    OPT_DOMAIN = 15,
    OPT_MTU = 26,
    OPT_BROADCAST = 28,
    OPT_ADDRESS = 50,
    OPT_LEASE = 51,
    OPT_OVERLOAD = 52,
    OPT_TYPE = 53,
    OPT_SERVER = 54,
    OPT_WANTED = 55,
    OPT_T1 = 58,
    OPT_T2 = 59,
    OPT_END = 255,
};

/* RFC 2131 §2, figure 1. */
struct message {
    uint8_t op, htype, hlen, hops;
    uint32_t xid;
    uint16_t secs, flags;
    uint32_t ciaddr, yiaddr, siaddr, giaddr;
    uint8_t chaddr[16], sname[64], file[128];
    uint32_t cookie;
} __attribute__((packed));
_Static_assert(sizeof(struct message) == 240, "RFC 2131 §2");

struct headers {
    struct ether_header ether;
    uint8_t version_length, service;
    uint16_t length, id, fragment;
    uint8_t ttl, protocol;
    uint16_t checksum;
    uint32_t from, to;
    uint16_t from_port, to_port, udp_length, udp_checksum;
} __attribute__((packed));
_Static_assert(sizeof(struct headers) == 42, "RFC 791 §3.1, RFC 768");
#define IP_LENGTH 20u
#define UDP_LENGTH 8u

/* What a client said. Addresses as on the wire; 0: not said. */
struct request {
    struct message message;
    uint8_t type;
    uint32_t address, server;
    const uint8_t *wanted; /* the options it asks for; NULL: not said */
    size_t n_wanted;
};

/* ---- reading ---- */

/* The UDP payload in an unfragmented IPv4 packet to the server's port; NULL when it is none. */
static const uint8_t *find_payload(const uint8_t *frame, size_t length, size_t *payload_length)
{
    const uint8_t *ip = frame + ETHER_HDR_LEN, *udp;
    size_t left, header, udp_length;

    if (length < sizeof(struct headers) || frame[12] != 0x08 || frame[13] != 0x00)
        return NULL;
    left = length - ETHER_HDR_LEN;
    header = (size_t)(ip[0] & 0xF) * 4;
    if (ip[0] >> 4 != 4 || header < IP_LENGTH || header + UDP_LENGTH > left ||
        ip[9] != IPPROTO_UDP || (ip[6] & 0x3F) != 0 || ip[7] != 0)
        return NULL;
    udp = ip + header;
    udp_length = (size_t)udp[4] << 8 | udp[5];
    if (udp[2] != 0 || udp[3] != SERVER_PORT || udp_length < UDP_LENGTH ||
        udp_length > left - header)
        return NULL;
    *payload_length = udp_length - UDP_LENGTH;
    return udp + UDP_LENGTH;
}

bool dhcp_is_request(const uint8_t *frame, size_t length)
{
    const uint8_t *ip = frame + ETHER_HDR_LEN;
    size_t header;

    if (length < sizeof(struct headers) || frame[12] != 0x08 || frame[13] != 0x00 ||
        ip[9] != IPPROTO_UDP)
        return false;
    header = (size_t)(ip[0] & 0xF) * 4;
    return ETHER_HDR_LEN + header + 4 <= length && ip[header + 2] == 0 &&
           ip[header + 3] == SERVER_PORT;
}

static uint32_t address_in(const uint8_t *value, size_t length)
{
    uint32_t address = 0;

    if (length == sizeof(address))
        memcpy(&address, value, sizeof(address));
    return address;
}

/* The options in one field. Returns the overload that was said (RFC 2132 §9.3), or 0. */
static unsigned read_options(struct request *request, const uint8_t *at, size_t left)
{
    unsigned overload = 0;

    while (left > 0 && *at != OPT_END) {
        size_t length;

        if (*at == OPT_PAD) {
            at++;
            left--;
            continue;
        }
        if (left < 2 || (size_t)at[1] + 2 > left)
            break;
        length = at[1];
        if (*at == OPT_TYPE && length == 1)
            request->type = at[2];
        else if (*at == OPT_ADDRESS)
            request->address = address_in(at + 2, length);
        else if (*at == OPT_SERVER)
            request->server = address_in(at + 2, length);
        else if (*at == OPT_OVERLOAD && length == 1)
            overload = at[2];
        else if (*at == OPT_WANTED) {
            request->wanted = at + 2;
            request->n_wanted = length;
        }
        at += length + 2;
        left -= length + 2;
    }
    return overload;
}

/* `sender`: from whose address the frame came. */
static bool read_request(struct request *request, const uint8_t *sender, const uint8_t *payload,
                         size_t length)
{
    const struct message *m = &request->message;
    unsigned overload;

    *request = (struct request){0};
    if (length < sizeof(*m))
        return false;
    memcpy(&request->message, payload, sizeof(*m));
    if (m->op != BOOTREQUEST || m->htype != ETHERNET || m->hlen != 6 ||
        m->cookie != htonl(COOKIE) || m->giaddr != 0 || m->chaddr[0] & 1 ||
        memcmp(m->chaddr, sender, ETH_ALEN) != 0)
        return false;
    overload = read_options(request, payload + sizeof(*m), length - sizeof(*m));
    if (overload & 1)
        (void)read_options(request, m->file, sizeof(m->file));
    if (overload & 2)
        (void)read_options(request, m->sname, sizeof(m->sname));
    return request->type != 0;
}

/* ---- writing ---- */

struct answer {
    uint8_t *at;
    const struct request *request;
};

static void put(struct answer *answer, uint8_t code, const void *value, size_t length)
{
    *answer->at++ = code;
    *answer->at++ = (uint8_t)length;
    memcpy(answer->at, value, length);
    answer->at += length;
}

static void put_u32(struct answer *answer, uint8_t code, uint32_t value)
{
    value = htonl(value);
    put(answer, code, &value, sizeof(value));
}

static bool is_wanted(const struct request *request, uint8_t code)
{
    return !request->wanted || memchr(request->wanted, code, request->n_wanted);
}

/* What the client asked for, as far as there is something to tell; the mask in any case. */
static void put_network(struct answer *answer, const struct dhcp_config *config)
{
    uint32_t hosts = UINT32_MAX >> config->prefix, mask = ~hosts;
    uint16_t mtu = htons(config->mtu);

    put_u32(answer, OPT_MASK, mask);
    if (is_wanted(answer->request, OPT_BROADCAST))
        put_u32(answer, OPT_BROADCAST, ntohl(config->address.s_addr) | hosts);
    if (config->router.s_addr != INADDR_ANY && is_wanted(answer->request, OPT_ROUTER))
        put(answer, OPT_ROUTER, &config->router, 4);
    if (config->n_dns > 0 && is_wanted(answer->request, OPT_DNS))
        put(answer, OPT_DNS, config->dns, config->n_dns * sizeof(config->dns[0]));
    if (config->domain && is_wanted(answer->request, OPT_DOMAIN))
        put(answer, OPT_DOMAIN, config->domain, strlen(config->domain));
    if (config->mtu && is_wanted(answer->request, OPT_MTU))
        put(answer, OPT_MTU, &mtu, sizeof(mtu));
}

static uint16_t checksum(const void *data, size_t length, uint32_t sum)
{
    const uint8_t *bytes = data;

    for (size_t i = 0; i < length; i++)
        sum += i % 2 ? bytes[i] : (uint32_t)bytes[i] << 8;
    while (sum >> 16)
        sum = (sum & 0xFFFF) + (sum >> 16);
    return htons((uint16_t)~sum);
}

/* RFC 2131 §4.1: to the address that the client has, or is to have, or to all. */
static void choose_receiver(const struct request *request, uint8_t type, uint32_t yiaddr,
                            struct headers *h)
{
    const struct message *m = &request->message;
    bool all = type == NAK || (!m->ciaddr && (m->flags & htons(BROADCAST_FLAG))) ||
               (!m->ciaddr && !yiaddr);

    h->to = all ? INADDR_BROADCAST : m->ciaddr ? m->ciaddr : yiaddr;
    if (all)
        memset(h->ether.ether_dhost, 0xFF, ETH_ALEN);
    else
        memcpy(h->ether.ether_dhost, m->chaddr, ETH_ALEN);
}

/* Puts the headers before a message of that length. */
static size_t wrap(const struct dhcp_server *server, const struct request *request, uint8_t type,
                   uint8_t *frame, size_t length)
{
    const struct message *m = (const struct message *)(frame + sizeof(struct headers));
    struct headers h = {
        .version_length = 0x45,
        .length = htons((uint16_t)(IP_LENGTH + UDP_LENGTH + length)),
        .ttl = 64,
        .protocol = IPPROTO_UDP,
        .from = server->config.address.s_addr,
        .from_port = htons(SERVER_PORT),
        .to_port = htons(CLIENT_PORT),
        .udp_length = htons((uint16_t)(UDP_LENGTH + length)),
    };
    uint16_t sum;

    memcpy(h.ether.ether_shost, server->config.mac, ETH_ALEN);
    h.ether.ether_type = htons(ETHERTYPE_IP);
    choose_receiver(request, type, m->yiaddr, &h);
    memcpy(frame, &h, sizeof(h));
    h.checksum = checksum(frame + ETHER_HDR_LEN, IP_LENGTH, 0);
    /* RFC 768: the pseudo header has the addresses, the protocol and the length. */
    sum = checksum(frame + sizeof(h) - UDP_LENGTH - 8, 8 + UDP_LENGTH + length,
                   (uint32_t)(IPPROTO_UDP + UDP_LENGTH + length));
    h.udp_checksum = sum ? sum : 0xFFFF;
    memcpy(frame, &h, sizeof(h));
    return sizeof(h) + length;
}

/* An answer of that type; address: the client's, or INADDR_ANY. */
static size_t write_answer(const struct dhcp_server *server, const struct request *request,
                           uint8_t type, struct in_addr address, uint8_t *frame)
{
    uint8_t *payload = frame + sizeof(struct headers);
    struct answer answer = {payload + sizeof(struct message), request};
    struct message m = {
        .op = BOOTREPLY,
        .htype = ETHERNET,
        .hlen = 6,
        .xid = request->message.xid,
        .flags = request->message.flags,
        .ciaddr = type == ACK ? request->message.ciaddr : 0,
        .yiaddr = address.s_addr,
        .cookie = htonl(COOKIE),
    };
    size_t length;

    memset(frame, 0, DHCP_FRAME_MAX);
    memcpy(m.chaddr, request->message.chaddr, sizeof(m.chaddr));
    memcpy(payload, &m, sizeof(m));
    put(&answer, OPT_TYPE, &type, 1);
    put(&answer, OPT_SERVER, &server->config.address, 4);
    if (address.s_addr != INADDR_ANY) {
        put_u32(&answer, OPT_LEASE, server->config.lease);
        put_u32(&answer, OPT_T1, server->config.lease / 2);
        put_u32(&answer, OPT_T2, server->config.lease / 8 * 7);
    }
    if (type != NAK)
        put_network(&answer, &server->config);
    *answer.at++ = OPT_END;
    length = (size_t)(answer.at - payload);
    return wrap(server, request, type, frame, length < MESSAGE_MIN ? MESSAGE_MIN : length);
}

/* ---- deciding: RFC 2131 §4.3 ---- */

static const struct in_addr nowhere = {INADDR_ANY};

static size_t discover(struct dhcp_server *server, const struct request *request, uint64_t now,
                       uint8_t *frame)
{
    struct in_addr address =
        dhcp_leases_offer(server->leases, request->message.chaddr,
                          (struct in_addr){request->address}, now, now + OFFER_SECONDS);

    if (address.s_addr == INADDR_ANY) {
        if (server->full++ == 0)
            log_warn("%s: no address is left to give out", server->config.name);
        return 0;
    }
    return write_answer(server, request, OFFER, address, frame);
}

static size_t grant(struct dhcp_server *server, const struct request *request, uint64_t now,
                    struct in_addr address, uint8_t *frame)
{
    dhcp_leases_extend(server->leases, request->message.chaddr, now + server->config.lease);
    if (dhcp_leases_is_new(server->leases, request->message.chaddr) && server->bound)
        server->bound(server, request->message.chaddr, address);
    return write_answer(server, request, ACK, address, frame);
}

static size_t handle_request(struct dhcp_server *server, const struct request *request,
                             uint64_t now, uint8_t *frame)
{
    const struct message *m = &request->message;
    struct in_addr has = dhcp_leases_find(server->leases, m->chaddr);
    struct in_addr wish = {m->ciaddr ? m->ciaddr : request->address};

    /* §4.3.2, SELECTING: the client took another server's offer. */
    if (request->server && request->server != server->config.address.s_addr)
        return 0;
    /* INIT-REBOOT of somebody unknown: "the server MUST remain silent". */
    if (!request->server && !m->ciaddr && has.s_addr == INADDR_ANY)
        return 0;
    /* RENEWING by somebody whose lease was lost, as with the file: granted while nobody has it. */
    if (m->ciaddr && has.s_addr == INADDR_ANY)
        has = dhcp_leases_offer(server->leases, m->chaddr, wish, now, now + OFFER_SECONDS);
    if (has.s_addr == INADDR_ANY || has.s_addr != wish.s_addr)
        return write_answer(server, request, NAK, nowhere, frame);
    return grant(server, request, now, has, frame);
}

size_t dhcp_answer(struct dhcp_server *server, const uint8_t *frame, size_t length, uint64_t now,
                   uint8_t *answer)
{
    struct request request;
    size_t payload_length;
    const uint8_t *payload = find_payload(frame, length, &payload_length);

    if (!payload || !read_request(&request, frame + ETH_ALEN, payload, payload_length))
        return 0;
    switch (request.type) {
    case DISCOVER:
        return discover(server, &request, now, answer);
    case REQUEST:
        return handle_request(server, &request, now, answer);
    case DECLINE:
        log_guest(&server->log_rate, "%s: a guest found the address it was given in use",
                  server->config.name);
        dhcp_leases_decline(server->leases, request.message.chaddr, now + server->config.lease);
        return 0;
    case RELEASE: /* the binding stays, for when it comes back */
        dhcp_leases_extend(server->leases, request.message.chaddr, now);
        return 0;
    case INFORM:
        return request.message.ciaddr ? write_answer(server, &request, ACK, nowhere, answer) : 0;
    default:
        return 0;
    }
}
