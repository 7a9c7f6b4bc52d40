/*
 * Flows: reads the fields that rules look at out of a frame's headers.
 *
 * Reads nothing but the bytes that it is given, which are a copy and do not change; keeps no state of
 * connections and puts no fragments together. Any thread; no locks.
 *
 * Texts: IEEE 802.1Q-2018 §9, RFC 826, RFC 791 §3.1, RFC 8200 §4, RFC 9293 §3.1, RFC 768, RFC 9260 §3,
 * RFC 792, RFC 4443 §2.1; RFC 1858 and RFC 3128 on fragments that are made to pass filters.
 */
#include "net/flow.h"

#include <string.h>
#include <sys/random.h>
#include <time.h>

#define ETHERTYPE_IPV4 0x0800
#define ETHERTYPE_ARP 0x0806
#define ETHERTYPE_IPV6 0x86DD
#define ETHERTYPE_TAG 0x8100
#define ETHERTYPE_SERVICE_TAG 0x88A8

#define PROTO_ICMP 1
#define PROTO_TCP 6
#define PROTO_UDP 17
#define PROTO_ICMP6 58
#define PROTO_SCTP 132
/* RFC 8200 §4: headers that have another behind them. */
#define PROTO_HOP_BY_HOP 0
#define PROTO_ROUTING 43
#define PROTO_FRAGMENT 44
#define PROTO_AUTHENTICATION 51
#define PROTO_DESTINATION 60

#define EXTENSION_HEADERS_MAX 8u

const uint8_t flow_stage_end[FLOW_STAGES] = {
    offsetof(struct flow_key, src) / 8,
    offsetof(struct flow_key, src_port) / 8,
    FLOW_WORDS,
};

/* The bytes still to be read. */
struct rest {
    const uint8_t *at;
    size_t length; /* at hand */
    size_t whole;  /* in the frame */
};

static uint16_t get16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

/* Whether n bytes are at hand; if not, why. */
static enum flow_result has(const struct rest *rest, size_t n)
{
    if (n <= rest->length)
        return FLOW_OK;
    return n <= rest->whole ? FLOW_TOO_DEEP : FLOW_MALFORMED;
}

static void skip(struct rest *rest, size_t n)
{
    rest->at += n;
    rest->length -= n;
    rest->whole -= n;
}

static bool has_ports(uint8_t proto)
{
    return proto == PROTO_TCP || proto == PROTO_UDP || proto == PROTO_SCTP;
}

static enum flow_result read_transport(struct flow_key *key, const struct rest *rest)
{
    enum flow_result result = FLOW_OK;

    if (has_ports(key->proto)) {
        result = has(rest, 4);
        if (result != FLOW_OK)
            return result;
        key->src_port = get16(rest->at);
        key->dst_port = get16(rest->at + 2);
        if (key->proto == PROTO_TCP) {
            result = has(rest, 14);
            if (result != FLOW_OK)
                return result;
            key->tcp_flags = rest->at[13];
        }
    } else if (key->proto == PROTO_ICMP || key->proto == PROTO_ICMP6) {
        result = has(rest, 2);
        if (result != FLOW_OK)
            return result;
        key->src_port = rest->at[0];
        key->dst_port = rest->at[1];
    }
    return result;
}

/* A piece that starts at `offset`, in units of 8 bytes. RFC 1858 §3.2.2: one with a TCP header's
 * flags, but not its ports, is made to overwrite the first one's. */
static enum flow_result read_later_fragment(struct flow_key *key, unsigned offset)
{
    key->fragment = FLOW_LATER_FRAGMENT;
    return offset == 1 && key->proto == PROTO_TCP ? FLOW_MALFORMED : FLOW_OK;
}

/* RFC 791 §3.1. */
static enum flow_result read_ipv4(struct flow_key *key, struct rest *rest)
{
    enum flow_result result = has(rest, 20);
    unsigned header, offset;
    bool more;

    if (result != FLOW_OK)
        return result;
    header = (rest->at[0] & 15) * 4u;
    if (rest->at[0] >> 4 != 4 || header < 20)
        return FLOW_MALFORMED;
    key->proto = rest->at[9];
    memcpy(key->src, rest->at + 12, 4);
    memcpy(key->dst, rest->at + 16, 4);
    offset = get16(rest->at + 6) & 0x1FFF;
    more = rest->at[6] & 0x20;
    if (offset > 0)
        return read_later_fragment(key, offset);
    if (more)
        key->fragment = FLOW_FIRST_FRAGMENT;
    result = has(rest, header);
    if (result != FLOW_OK)
        return result;
    skip(rest, header);
    return read_transport(key, rest);
}

static bool is_extension(uint8_t proto)
{
    return proto == PROTO_HOP_BY_HOP || proto == PROTO_ROUTING || proto == PROTO_FRAGMENT ||
           proto == PROTO_AUTHENTICATION || proto == PROTO_DESTINATION;
}

/* RFC 8200 §4.2, §4.5; RFC 4302 §2.2: its length counts words of 4 bytes, less 2. */
static size_t extension_length(uint8_t proto, uint8_t length)
{
    if (proto == PROTO_FRAGMENT)
        return 8;
    return proto == PROTO_AUTHENTICATION ? (length + 2u) * 4 : (length + 1u) * 8;
}

/* Goes through the headers before the payload's. A later fragment has only those before the cut. */
static enum flow_result read_extensions(struct flow_key *key, struct rest *rest)
{
    for (unsigned n = 0; is_extension(key->proto); n++) {
        enum flow_result result = has(rest, 8);
        uint8_t proto = key->proto;
        unsigned offset;

        if (n >= EXTENSION_HEADERS_MAX)
            return FLOW_TOO_DEEP;
        if (result != FLOW_OK)
            return result;
        key->proto = rest->at[0];
        if (proto == PROTO_FRAGMENT) {
            offset = get16(rest->at + 2) >> 3;
            if (offset > 0)
                return read_later_fragment(key, offset);
            if (rest->at[3] & 1)
                key->fragment = FLOW_FIRST_FRAGMENT;
        }
        result = has(rest, extension_length(proto, rest->at[1]));
        if (result != FLOW_OK)
            return result;
        skip(rest, extension_length(proto, rest->at[1]));
    }
    return read_transport(key, rest);
}

static enum flow_result read_ipv6(struct flow_key *key, struct rest *rest)
{
    enum flow_result result = has(rest, 40);

    if (result != FLOW_OK)
        return result;
    if (rest->at[0] >> 4 != 6)
        return FLOW_MALFORMED;
    key->proto = rest->at[6];
    memcpy(key->src, rest->at + 8, 16);
    memcpy(key->dst, rest->at + 24, 16);
    skip(rest, 40);
    return read_extensions(key, rest);
}

/* RFC 826: of Ethernet and IPv4, the only kind there is; others have no fields that rules know. */
static enum flow_result read_arp(struct flow_key *key, const struct rest *rest)
{
    static const uint8_t ethernet_ipv4[] = {0, 1, 8, 0, 6, 4};
    enum flow_result result = has(rest, 28);

    if (result != FLOW_OK)
        return result;
    if (memcmp(rest->at, ethernet_ipv4, sizeof(ethernet_ipv4)) != 0)
        return FLOW_OK;
    memcpy(key->src, rest->at + 14, 4);
    memcpy(key->dst, rest->at + 24, 4);
    return FLOW_OK;
}

static bool is_tag(uint16_t ethertype)
{
    return ethertype == ETHERTYPE_TAG || ethertype == ETHERTYPE_SERVICE_TAG;
}

enum flow_result flow_read(struct flow_key *key, const uint8_t macs[12], const uint8_t *at,
                           size_t length, size_t whole)
{
    struct rest rest = {at, length, whole};
    enum flow_result result = has(&rest, 2);

    memcpy(key->dst_mac, macs, 6);
    memcpy(key->src_mac, macs + 6, 6);
    if (result != FLOW_OK)
        return result;
    key->ethertype = get16(rest.at);
    if (is_tag(key->ethertype)) {
        result = has(&rest, 6);
        if (result != FLOW_OK)
            return result;
        skip(&rest, 4);
        key->ethertype = get16(rest.at);
    }
    skip(&rest, 2);
    if (key->ethertype == ETHERTYPE_IPV4)
        return read_ipv4(key, &rest);
    if (key->ethertype == ETHERTYPE_IPV6)
        return read_ipv6(key, &rest);
    if (key->ethertype == ETHERTYPE_ARP)
        return read_arp(key, &rest);
    return FLOW_OK;
}

void flow_seed_init(struct flow_seed *seed)
{
    struct timespec now;

    if (getrandom(seed, sizeof(*seed), GRND_NONBLOCK) == sizeof(*seed))
        return;
    /* Before the kernel has gathered randomness: something that differs, at least. */
    clock_gettime(CLOCK_MONOTONIC, &now);
    for (unsigned i = 0; i < FLOW_WORDS + 2; i++)
        seed->words[i] = flow_fold((uint64_t)now.tv_nsec + i, 0x9E3779B97F4A7C15u ^ (uintptr_t)seed);
}
