/*
 * Flows: the fields of a frame's headers that rules look at, as one fixed block of 64 bytes.
 *
 * A key and a mask have the same layout, so that matching is AND and comparison of eight words. Any
 * thread; no state.
 */
#ifndef FERRY_NET_FLOW_H
#define FERRY_NET_FLOW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define FLOW_WORDS 8

/* Part of a packet that was cut in pieces (IPv4 §3.2, IPv6 §4.5). Only the first has ports. */
enum flow_fragment { FLOW_WHOLE, FLOW_FIRST_FRAGMENT, FLOW_LATER_FRAGMENT };

/* Two words. Keys are written, masked and compared by these: see flow_mac() for why alike. */
typedef uint64_t flow_pair __attribute__((vector_size(16)));
#define FLOW_PAIRS (FLOW_WORDS / 2)

/* What a frame is about. Numbers are in the host's order, addresses in the wire's. What a frame
 * does not have is zero. The order of the fields makes three stages, see FLOW_STAGE_. */
struct flow_key {
    union {
        struct {
            uint16_t in_port;   /* number of the port that it came in by */
            uint16_t vlan;      /* the VLAN that it was sorted into: 0..4094 */
            uint16_t ethertype; /* behind all tags; below 0x600 it is a length (802.3) */
            uint8_t proto;      /* of IP */
            uint8_t fragment;   /* enum flow_fragment */
            uint8_t dst_mac[6], zero1[2];
            uint8_t src_mac[6], zero2[2];
            uint8_t src[16];    /* IPv6; or IPv4 or ARP's sender in the first four bytes */
            uint8_t dst[16];    /* likewise, or ARP's target */
            uint16_t src_port;  /* TCP, UDP, SCTP; ICMP: type */
            uint16_t dst_port;  /* ICMP: code */
            uint8_t tcp_flags;  /* RFC 9293 §3.1: CWR, ECE, URG, ACK, PSH, RST, SYN, FIN */
            uint8_t zero3[3];
        };
        uint64_t words[FLOW_WORDS];
        flow_pair pairs[FLOW_PAIRS];
    };
};
_Static_assert(sizeof(struct flow_key) == FLOW_WORDS * 8, "no padding: it is compared as words");

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "flow_read() puts words together");

/* An address as the low 48 bits of a word. By two loads, not by bytes put together in memory: a
 * processor that loads what several stores have just written waits for them. */
static inline uint64_t flow_mac(const uint8_t mac[6])
{
    uint32_t low;
    uint16_t high;

    memcpy(&low, mac, 4);
    memcpy(&high, mac + 4, 2);
    return low | (uint64_t)high << 32;
}

/* Words before which a stage ends: link layer, addresses, ports. */
#define FLOW_STAGES 3
extern const uint8_t flow_stage_end[FLOW_STAGES];

enum flow_result {
    FLOW_OK,
    FLOW_TOO_DEEP,  /* the headers go on beyond the bytes at hand */
    FLOW_MALFORMED, /* a header's length is wrong, or a fragment hides ports (RFC 1858 §2, §3) */
};

/*
 * Makes the key of a frame. `macs`: destination and source address. `at`: the bytes from the
 * ethertype on, of which `length` are at hand and `whole` are in the frame. Tags in there are
 * passed over, one of them at most, and looked behind. On any result the key has what was read
 * before.
 */
enum flow_result flow_read(struct flow_key *key, uint16_t in_port, uint16_t vlan,
                           const uint8_t macs[12], const uint8_t *at, size_t length,
                           size_t whole);

static inline bool flow_is_zero(flow_pair pair)
{
    return (pair[0] | pair[1]) == 0;
}

static inline bool flow_equal(const struct flow_key *a, const struct flow_key *b)
{
    flow_pair difference = (a->pairs[0] ^ b->pairs[0]) | (a->pairs[1] ^ b->pairs[1]) |
                           (a->pairs[2] ^ b->pairs[2]) | (a->pairs[3] ^ b->pairs[3]);

    return flow_is_zero(difference);
}

static inline void flow_mask(struct flow_key *to, const struct flow_key *key,
                             const struct flow_key *mask)
{
    for (unsigned i = 0; i < FLOW_PAIRS; i++)
        to->pairs[i] = key->pairs[i] & mask->pairs[i];
}

static inline void flow_add_mask(struct flow_key *to, const struct flow_key *mask)
{
    for (unsigned i = 0; i < FLOW_PAIRS; i++)
        to->pairs[i] |= mask->pairs[i];
}

/* Secrets of a hash, drawn once for each table, so that who sends cannot aim at a chain. */
struct flow_seed {
    uint64_t words[FLOW_WORDS + 2];
};
void flow_seed_init(struct flow_seed *seed);

/* The halves of a 128-bit product folded: every bit of both factors reaches the middle ones. */
static inline uint64_t flow_fold(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;

    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* A keyed hash of the first n words. */
static inline uint64_t flow_hash_words(const struct flow_key *key, unsigned n,
                                       const struct flow_seed *seed)
{
    uint64_t hash = seed->words[FLOW_WORDS];
    unsigned i;

    for (i = 0; i + 1 < n; i += 2)
        hash += flow_fold(key->words[i] ^ seed->words[i], key->words[i + 1] ^ seed->words[i + 1]);
    if (i < n)
        hash += flow_fold(key->words[i] ^ seed->words[i], seed->words[i + 1]);
    return flow_fold(hash, seed->words[FLOW_WORDS + 1]);
}

static inline uint64_t flow_hash(const struct flow_key *key, const struct flow_seed *seed)
{
    uint64_t hash = seed->words[FLOW_WORDS];

    hash += flow_fold(key->words[0] ^ seed->words[0], key->words[1] ^ seed->words[1]);
    hash += flow_fold(key->words[2] ^ seed->words[2], key->words[3] ^ seed->words[3]);
    hash += flow_fold(key->words[4] ^ seed->words[4], key->words[5] ^ seed->words[5]);
    hash += flow_fold(key->words[6] ^ seed->words[6], key->words[7] ^ seed->words[7]);
    return flow_fold(hash, seed->words[FLOW_WORDS + 1]);
}

#endif
