/*
 * A batch of frames on its way through the switch, shared by switch_path.c (any frames) and
 * switch_train.c (those that are alike).
 */
#ifndef FERRY_NET_SWITCH_BATCH_H
#define FERRY_NET_SWITCH_BATCH_H

#include "net/switch_decide.h"
#include "net/switch_internal.h"

#define PIECES_MAX 1024u                   /* of a frame; a virtqueue's chain has no more */
#define POOL (PIECES_MAX + 3 * NET_BATCH)

#define TO_NONE 0xFFFF /* dropped */
#define TO_MANY 0xFFFE
#define NO_VLAN 0xFFFF
#define NO_LINK 0xFF
#define LINK_BYTES 16u /* addresses, ethertype and two more */

struct packet {
    struct packet_tag tag;
    uint16_t vlan;        /* NO_VLAN until it is known */
    uint16_t to;          /* number of a port, TO_NONE or TO_MANY */
    uint16_t known;       /* PATH_KNOWN: the port that has the address */
    uint16_t header;      /* bytes of it that were copied */
    uint32_t rest_offset; /* where the others begin: how far into which piece */
    uint16_t rest_piece;
    int16_t rule_mirror;  /* number of a port, or -1 */
    uint32_t mirrored;    /* bits of the mirrors that have it */
    uint8_t set;          /* of TO_MANY: enum path_set */
    uint8_t next;         /* with the same receiver */
    bool isolated;        /* TO_MANY: a port was left out because of that */
    bool sent;            /* TO_MANY: to one port at least */
    uint8_t prefix[PATH_ADDRESSES + PATH_TAG];
};
_Static_assert(sizeof(struct packet) == 48, "a batch is to fit into a first-level cache");

/* The frame before, when it went where its address says: most frames are like it. */
struct likeness {
    bool is;
    uint8_t link;
    uint16_t admitted, vlan; /* as it came, and as rules left it */
    uint64_t src, dst;
    const struct packet *packet;
};

/* Frames for one port, a list by `next`. */
struct share {
    struct switch_port *to;
    uint8_t first, last;
};

/* Frames being built for a port. */
struct sending {
    struct switch_port *to;
    bool plain;      /* frames without a tag go there as they came, if in that VLAN */
    unsigned n;      /* built */
    unsigned pieces; /* used of the pool */
};

struct batch {
    struct switch_port *from;
    const struct net_frame *frames;
    unsigned n, n_shares, n_many;
    uint64_t now_ns;                        /* 0: not asked yet */
    struct likeness before;
    uint8_t headers[NET_BATCH][PATH_HEADER_MAX] __attribute__((aligned(64)));
    struct packet packets[NET_BATCH];
    int16_t early[NET_BATCH];               /* PATH_GO, or why it is dropped at first sight */
    /* The first frame that begins with the same LINK_BYTES, if those are not tagged and do not tell
     * addresses: what the link layer says is then known. Or NO_LINK. */
    uint8_t link[NET_BATCH];
    struct flow_cache_probe probes[NET_BATCH]; /* if there are rules */
    /* Of a train, likewise: runs of frames that are the same flow; behind them, the end. Each with
     * the number of its first frame and the bytes of all before that. */
    struct flow_cache_like runs[NET_BATCH + 1];
    struct share shares[NET_BATCH];
    uint8_t many[NET_BATCH];
    bool rule_mirrors;                      /* rules want copies of some */
    /* being built for one port: */
    struct net_frame sent[NET_BATCH];
    uint8_t sent_packet[NET_BATCH];
    struct iovec pool[POOL];
};

/* ---- switch_train.c ---- */

/*
 * Sends what a batch begins with if that is a train: frames that need no decision of their own but
 * the rules'. Returns how many frames are dealt with; 0 when it begins otherwise.
 */
unsigned switch_train(struct net_switch *sw, struct batch *batch);

/* ---- switch_path.c, for the train ---- */

/* What the link layer says: PATH_GO, or why the frame is dropped. `link`: becomes this frame, if
 * others that begin with the same LINK_BYTES are like it. */
int switch_look_at_link(struct batch *batch, unsigned i, unsigned *link);
/* Finds the receiver by the address, into packet->to: PATH_GO, or why it is dropped. */
int switch_find_receiver(struct net_switch *sw, struct batch *batch, struct packet *packet,
                         const uint8_t *mac);
/* Notes, behind a port that learns, from which address it sends. */
void switch_learn(struct net_switch *sw, struct batch *batch, const struct packet *packet,
                  const uint8_t mac[6]);
/* Sends the n frames of batch->sent. */
void switch_send_built(struct net_switch *sw, struct batch *batch, struct switch_port *to,
                       unsigned n);

/*
 * memcpy() of 14 to PATH_HEADER_MAX bytes. The beginning is written last and in whole 16 bytes, as
 * it is read next; see flow_mac().
 */
static inline void switch_copy_header(uint8_t *to, const uint8_t *from, size_t length)
{
    if (length >= 64) {
        if (length > 64)
            memcpy(to + length - 64, from + length - 64, 64);
        memcpy(to, from, 64);
    } else if (length >= 48) {
        memcpy(to + length - 16, from + length - 16, 16);
        memcpy(to, from, 48);
    } else {
        memcpy(to, from, length);
    }
}

static inline bool switch_is_same_link(const uint8_t *a, const uint8_t *b)
{
    flow_pair x, y;

    memcpy(&x, a, LINK_BYTES);
    memcpy(&y, b, LINK_BYTES);
    return flow_is_zero(x ^ y);
}

#endif
