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

#define FLOW_WORDS 8

/* Part of a packet that was cut in pieces (IPv4 §3.2, IPv6 §4.5). Only the first has ports. */
enum flow_fragment { FLOW_WHOLE, FLOW_FIRST_FRAGMENT, FLOW_LATER_FRAGMENT };

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
    };
};
_Static_assert(sizeof(struct flow_key) == FLOW_WORDS * 8, "no padding: it is compared as words");

/* Words before which a stage ends: link layer, addresses, ports. */
#define FLOW_STAGES 3
extern const uint8_t flow_stage_end[FLOW_STAGES];

enum flow_result {
    FLOW_OK,
    FLOW_TOO_DEEP,  /* the headers go on beyond the bytes at hand */
    FLOW_MALFORMED, /* a header's length is wrong, or a fragment hides ports (RFC 1858 §2, §3) */
};

/*
 * Reads the fields behind the link-layer header into a key whose in_port and vlan are set and whose
 * other fields are zero. `macs`: destination and source address. `at`: the bytes from the ethertype
 * on, of which `length` are at hand and `whole` are in the frame. Tags in there are passed over, one
 * of them at most, and looked behind. On any result the key has what was read before.
 */
enum flow_result flow_read(struct flow_key *key, const uint8_t macs[12], const uint8_t *at,
                           size_t length, size_t whole);

static inline bool flow_equal(const struct flow_key *a, const struct flow_key *b)
{
    uint64_t difference = 0;

    for (unsigned i = 0; i < FLOW_WORDS; i++)
        difference |= a->words[i] ^ b->words[i];
    return difference == 0;
}

static inline void flow_mask(struct flow_key *to, const struct flow_key *key,
                             const struct flow_key *mask)
{
    for (unsigned i = 0; i < FLOW_WORDS; i++)
        to->words[i] = key->words[i] & mask->words[i];
}

static inline void flow_add_mask(struct flow_key *to, const struct flow_key *mask)
{
    for (unsigned i = 0; i < FLOW_WORDS; i++)
        to->words[i] |= mask->words[i];
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
    return flow_hash_words(key, FLOW_WORDS, seed);
}

#endif
