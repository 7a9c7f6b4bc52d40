/*
 * Flows: reads the fields that rules look at out of a frame's headers.
 *
 * Reads nothing but the bytes that it is given, which are a copy and do not change; keeps no state
 * of connections and puts no fragments together. Any thread; no locks.
 *
 * Texts: IEEE 802.1Q-2018 §9, RFC 826, RFC 791 §3.1, RFC 8200 §4, RFC 9293 §3.1, RFC 768, RFC 9260
 * §3, RFC 792, RFC 4443 §2.1; RFC 1858 and RFC 3128 on fragments that are made to pass filters.
 */
#include "net/flow.h"

#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "net/bytes.h"

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

/* The bytes still to be read, and what was read out of those before. */
struct reader {
    const uint8_t *at;
    size_t length; /* at hand */
    size_t whole;  /* in the frame */
    uint16_t ethertype, src_port, dst_port;
    uint8_t proto, fragment, tcp_flags;
    uint64_t src[2], dst[2]; /* as in the key */
};

static uint64_t load32(const uint8_t *at)
{
    uint32_t value;

    memcpy(&value, at, sizeof(value));
    return value;
}

static uint64_t load64(const uint8_t *at)
{
    uint64_t value;

    memcpy(&value, at, sizeof(value));
    return value;
}

/* Whether n bytes are at hand; if not, why. */
static inline enum flow_result has(const struct reader *reader, size_t n)
{
    if (n <= reader->length)
        return FLOW_OK;
    return n <= reader->whole ? FLOW_TOO_DEEP : FLOW_MALFORMED;
}

static inline void skip(struct reader *reader, size_t n)
{
    reader->at += n;
    reader->length -= n;
    reader->whole -= n;
}

static inline enum flow_result read_transport(struct reader *reader)
{
    bool tcp = reader->proto == PROTO_TCP;
    enum flow_result result;

    if (tcp || reader->proto == PROTO_UDP || reader->proto == PROTO_SCTP) {
        result = has(reader, tcp ? 14 : 4);
        if (result != FLOW_OK)
            return result;
        reader->src_port = get16(reader->at);
        reader->dst_port = get16(reader->at + 2);
        reader->tcp_flags = tcp ? reader->at[13] : 0;
    } else if (reader->proto == PROTO_ICMP || reader->proto == PROTO_ICMP6) {
        result = has(reader, 2);
        if (result != FLOW_OK)
            return result;
        reader->src_port = reader->at[0];
        reader->dst_port = reader->at[1];
    }
    return FLOW_OK;
}

/* A piece that starts at `offset`, in units of 8 bytes. RFC 1858 §3.2.2: one with a TCP header's
 * flags, but not its ports, is made to overwrite the first one's. */
static enum flow_result read_later_fragment(struct reader *reader, unsigned offset)
{
    reader->fragment = FLOW_LATER_FRAGMENT;
    return offset == 1 && reader->proto == PROTO_TCP ? FLOW_MALFORMED : FLOW_OK;
}

/* RFC 791 §3.1. */
static inline enum flow_result read_ipv4(struct reader *reader)
{
    enum flow_result result = has(reader, 20);
    const uint8_t *at = reader->at;
    unsigned header, offset;

    if (result != FLOW_OK)
        return result;
    header = (at[0] & 15) * 4u;
    if (at[0] >> 4 != 4 || header < 20)
        return FLOW_MALFORMED;
    reader->proto = at[9];
    reader->src[0] = load32(at + 12);
    reader->dst[0] = load32(at + 16);
    offset = get16(at + 6) & 0x1FFF;
    if (offset > 0)
        return read_later_fragment(reader, offset);
    if (at[6] & 0x20) /* more fragments */
        reader->fragment = FLOW_FIRST_FRAGMENT;
    result = has(reader, header);
    if (result != FLOW_OK)
        return result;
    skip(reader, header);
    return read_transport(reader);
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
static enum flow_result read_extensions(struct reader *reader)
{
    for (unsigned n = 0; is_extension(reader->proto); n++) {
        enum flow_result result = has(reader, 8);
        uint8_t proto = reader->proto;
        unsigned offset;

        if (n >= EXTENSION_HEADERS_MAX)
            return FLOW_TOO_DEEP;
        if (result != FLOW_OK)
            return result;
        reader->proto = reader->at[0];
        if (proto == PROTO_FRAGMENT) {
            offset = get16(reader->at + 2) >> 3;
            if (offset > 0)
                return read_later_fragment(reader, offset);
            if (reader->at[3] & 1)
                reader->fragment = FLOW_FIRST_FRAGMENT;
        }
        result = has(reader, extension_length(proto, reader->at[1]));
        if (result != FLOW_OK)
            return result;
        skip(reader, extension_length(proto, reader->at[1]));
    }
    return read_transport(reader);
}

static enum flow_result read_ipv6(struct reader *reader)
{
    enum flow_result result = has(reader, 40);
    const uint8_t *at = reader->at;

    if (result != FLOW_OK)
        return result;
    if (at[0] >> 4 != 6)
        return FLOW_MALFORMED;
    reader->proto = at[6];
    reader->src[0] = load64(at + 8);
    reader->src[1] = load64(at + 16);
    reader->dst[0] = load64(at + 24);
    reader->dst[1] = load64(at + 32);
    skip(reader, 40);
    return read_extensions(reader);
}

/* RFC 826: of Ethernet and IPv4, the only kind there is; others have no fields that rules know. */
static enum flow_result read_arp(struct reader *reader)
{
    static const uint8_t ethernet_ipv4[] = {0, 1, 8, 0, 6, 4};
    enum flow_result result = has(reader, 28);

    if (result != FLOW_OK)
        return result;
    if (memcmp(reader->at, ethernet_ipv4, sizeof(ethernet_ipv4)) != 0)
        return FLOW_OK;
    reader->src[0] = load32(reader->at + 14);
    reader->dst[0] = load32(reader->at + 24);
    return FLOW_OK;
}

static bool is_tag(uint16_t ethertype)
{
    return ethertype == ETHERTYPE_TAG || ethertype == ETHERTYPE_SERVICE_TAG;
}

static inline enum flow_result read_payload(struct reader *reader)
{
    enum flow_result result = has(reader, 2);

    if (result != FLOW_OK)
        return result;
    reader->ethertype = get16(reader->at);
    if (is_tag(reader->ethertype)) {
        result = has(reader, 6);
        if (result != FLOW_OK)
            return result;
        skip(reader, 4);
        reader->ethertype = get16(reader->at);
    }
    skip(reader, 2);
    if (reader->ethertype == ETHERTYPE_IPV4)
        return read_ipv4(reader);
    if (reader->ethertype == ETHERTYPE_IPV6)
        return read_ipv6(reader);
    if (reader->ethertype == ETHERTYPE_ARP)
        return read_arp(reader);
    return FLOW_OK;
}

enum flow_result flow_read(struct flow_key *key, uint16_t in_port, uint16_t vlan,
                           const uint8_t macs[12], const uint8_t *at, size_t length,
                           size_t whole)
{
    struct reader reader = {.at = at, .length = length, .whole = whole};
    enum flow_result result = read_payload(&reader);

    key->pairs[0] = (flow_pair){
        in_port | (uint64_t)vlan << 16 | (uint64_t)reader.ethertype << 32 |
            (uint64_t)reader.proto << 48 | (uint64_t)reader.fragment << 56,
        flow_mac(macs),
    };
    key->pairs[1] = (flow_pair){flow_mac(macs + 6), reader.src[0]};
    key->pairs[2] = (flow_pair){reader.src[1], reader.dst[0]};
    key->pairs[3] = (flow_pair){
        reader.dst[1],
        reader.src_port | (uint64_t)reader.dst_port << 16 | (uint64_t)reader.tcp_flags << 32,
    };
    return result;
}

void flow_seed_init(struct flow_seed *seed)
{
    struct timespec now;

    if (getrandom(seed, sizeof(*seed), GRND_NONBLOCK) == sizeof(*seed))
        return;
    /* Before the kernel has gathered randomness: something that differs, at least. */
    clock_gettime(CLOCK_MONOTONIC, &now);
    for (unsigned i = 0; i < FLOW_WORDS + 2; i++)
        seed->words[i] = flow_fold((uint64_t)now.tv_nsec + i,
                                   0x9E3779B97F4A7C15u ^ (uintptr_t)seed);
}
