/*
 * Trains: frames of a batch that follow each other from one station to another. Their first 16
 * bytes are the same, so that the link layer, the addresses and the receiver are decided upon once;
 * each one's own is what rules say of it, by an exact match for most. They leave as they came, but
 * that their headers are copies.
 *
 * What is not as simple as that is not for here but for switch_path.c: frames in several pieces,
 * tags, ARP and ICMPv6 (which tell addresses), limits, mirrors; when there are rules, fragments, IPv6
 * and whatever they do more than allow and deny. The train ends before such a frame; so the two must
 * decide alike, to which a test holds them with random batches (tests/unit/test_net_switch_train.c).
 *
 * Loop thread; no locks. Nothing is allocated.
 *
 * Texts: IEEE 802.1Q-2018 §8.6, RFC 791 §3.1.
 */
#include <string.h>

#include "net/switch_batch.h"

/* What of a frame is looked at is in these: more would be fetched twice, now and with the rest. */
#define HEAD 64u
#define ETHERTYPE_IPV6 0x86DD
#define NEXT_HEADER 20u /* of an IPv6 frame without a tag: where it says what follows */
#define PROTO_ICMP6 58
_Static_assert(FLOW_RAW_BYTES <= HEAD && LINK_BYTES <= HEAD, "what is looked at is copied");

struct train {
    struct switch_port *to;
    const struct packet *first;
    bool ipv6;
    struct flow_cache_likeness common; /* for the rules */
    unsigned n, n_runs;
    uint32_t bytes; /* of the n frames */
};

static inline size_t head_of(const struct net_frame *frame)
{
    return frame->length < HEAD ? frame->length : HEAD;
}

/* Copies the beginning of a frame, if it may be one of a train, and builds it as it would go. */
static inline bool build(struct batch *batch, unsigned i)
{
    const struct net_frame *in = &batch->frames[i];
    const struct iovec *whole = in->iov;
    struct net_frame *out = &batch->sent[i];
    struct iovec *pieces = &batch->pool[2 * i];
    size_t length = in->length, head = length < HEAD ? length : HEAD;
    uint8_t *from = whole->iov_base;

    if (in->iovcnt != 1 || whole->iov_len != length ||
        length - LINK_BYTES > NET_FRAME_MAX - LINK_BYTES ||
        (in->needs_csum && in->csum_start < PATH_ADDRESSES + 2))
        return false;
    switch_copy_header(batch->headers[i], from, head);
    *out = *in;
    out->iov = pieces;
    out->iovcnt = length > HEAD ? 2 : 1;
    pieces[0] = (struct iovec){batch->headers[i], head};
    pieces[1] = (struct iovec){from + head, length - head};
    return true;
}

/* Whether frames leave the port as they came in, with nothing to do for each of them. */
static bool is_simple(const struct switch_port *to, unsigned vlan)
{
    return to->kind != SWITCH_PORT_MIRROR && !to->vlan.priority_tags && !to->out.rate &&
           !to->mirror_out && to->vlan.untagged_out == vlan;
}

/*
 * Notes by what the rules are to be asked about frame i, before which there are `bytes`: it goes on
 * with the run before *next, or begins that. False: by more than is noted here.
 */
static inline bool add_to_run(const struct net_switch *sw, struct batch *batch,
                              const struct train *train, unsigned i, uint32_t bytes,
                              struct flow_cache_like **next)
{
    struct flow_cache_like *run = *next;
    flow_pair middle[2];

    if (batch->frames[i].length < FLOW_RAW_BYTES ||
        !flow_cache_read_like(sw->cache, batch->headers[i], middle))
        return false;
    if (i > 0 && flow_cache_is_alike(middle, run[-1].middle))
        return true;
    flow_cache_probe_like(sw->cache, &train->common, middle, run);
    run->bytes = bytes;
    run->first = i;
    ++*next;
    return true;
}

/* ICMPv6 tells addresses, which is no affair of a train's. */
static inline bool may_be_icmp6(const struct train *train, const uint8_t *header)
{
    return train->ipv6 && header[NEXT_HEADER] == PROTO_ICMP6;
}

/* Decides upon the first frame for all: false when it does not begin a train. */
static bool start(struct net_switch *sw, struct batch *batch, struct train *train)
{
    static const uint8_t ipv4[] = {0x08, 0x00, 0x45}; /* and no options */
    const struct switch_port *from = batch->from;
    struct packet *packet = &batch->packets[0];
    const uint8_t *header = batch->headers[0];
    struct flow_cache_like *run = batch->runs;
    unsigned link = NO_LINK;

    if (from->mirror_in || from->in.rate || !build(batch, 0))
        return false;
    packet->header = (uint16_t)head_of(&batch->frames[0]);
    train->ipv6 = get16(header + PATH_ADDRESSES) == ETHERTYPE_IPV6;
    if (switch_look_at_link(batch, 0, &link) != PATH_GO || (link == NO_LINK && !train->ipv6) ||
        may_be_icmp6(train, header) ||
        !path_may_send_from(from, header + 6, packet->vlan) ||
        flow_mac(header) == flow_mac(header + 6) || /* what it learns would be its receiver */
        switch_find_receiver(sw, batch, packet, header) != PATH_GO || packet->to == TO_MANY)
        return false;
    train->first = packet;
    train->to = sw->ports[packet->to];
    if (!is_simple(train->to, packet->vlan))
        return false;
    if (!sw->classifier)
        return true;
    flow_cache_liken(sw->cache, header, from->number, packet->vlan, &train->common);
    return memcmp(header + PATH_ADDRESSES, ipv4, sizeof(ipv4)) == 0 &&
           add_to_run(sw, batch, train, 0, 0, &run);
}

/* Builds frames as far as the train goes, and finds the runs in it for the rules. */
static inline void build_all(const struct net_switch *sw, struct batch *batch,
                             struct train *train, bool rules)
{
    struct flow_cache_like *next = batch->runs + 1;
    uint32_t bytes = (uint32_t)batch->frames[0].length;
    unsigned i, n = batch->n;

    for (i = 1; i < n; i++) {
        if (i + 4 < n)
            __builtin_prefetch(batch->frames[i + 4].iov->iov_base);
        if (!build(batch, i) || !switch_is_same_link(batch->headers[0], batch->headers[i]) ||
            may_be_icmp6(train, batch->headers[i]) ||
            (rules && !add_to_run(sw, batch, train, i, bytes, &next)))
            break;
        bytes += (uint32_t)batch->frames[i].length; /* NET_FRAME_MAX at most */
    }
    train->n = next->first = i;
    train->bytes = next->bytes = bytes;
    train->n_runs = (unsigned)(next - batch->runs);
}

/* Without an exact match. */
__attribute__((noinline))
static uint32_t find_rule(struct net_switch *sw, struct batch *batch, const struct train *train,
                          const struct flow_cache_like *run)
{
    const struct net_frame *frame = &batch->frames[run->first];
    const uint8_t *header = batch->headers[run->first];
    struct flow_cache_probe whole;
    struct flow_key key;

    flow_cache_probe_of(&train->common, run, &whole);
    /* All that is read of this kind is at hand. */
    (void)flow_read(&key, batch->from->number, train->first->vlan, header, header + PATH_ADDRESSES,
                    head_of(frame) - PATH_ADDRESSES, frame->length - PATH_ADDRESSES);
    return flow_cache_find_further(sw->cache, &key, &whole);
}

/* The rule for a run, or NULL. *hit: by an exact match. */
static inline struct switch_rule *ask(struct net_switch *sw, struct batch *batch,
                                      const struct train *train, const struct flow_cache_like *run,
                                      bool *hit)
{
    const struct flow_cache_exact *match =
        flow_cache_match_like(sw->cache, &train->common, run);
    uint32_t index = match ? match->answer : find_rule(sw, batch, train, run);

    *hit = match;
    return index == CLASSIFIER_NONE ? NULL : sw->rules[index];
}

/*
 * Asks the rules about each run, and leaves the frames that go. The train ends before a run with
 * which more is to be done. Returns how many frames go.
 */
static unsigned ask_all(struct net_switch *sw, struct batch *batch, struct train *train)
{
    unsigned goes = 0, hits = 0;

    for (unsigned k = 0; k < train->n_runs; k++) {
        const struct flow_cache_like *run = &batch->runs[k];
        unsigned frames = run[1].first - run->first;
        bool hit;
        struct switch_rule *rule = ask(sw, batch, train, run, &hit);

        if (rule && !rule->plain && !rule->rule.action.deny) {
            train->n = run->first;
            train->bytes = run->bytes;
            break;
        }
        hits += frames - !hit;
        if (rule) {
            rule->frames += frames;
            rule->bytes += run[1].bytes - run->bytes;
            if (!rule->plain)
                continue;
        }
        if (goes != run->first)
            memmove(&batch->sent[goes], &batch->sent[run->first], frames * sizeof(batch->sent[0]));
        goes += frames;
    }
    flow_cache_hits(sw->cache, hits);
    return goes;
}

unsigned switch_train(struct net_switch *sw, struct batch *batch)
{
    struct switch_counters *counters = &batch->from->counters;
    struct train train;
    unsigned gone;

    if (!start(sw, batch, &train))
        return 0;
    if (sw->classifier) {
        build_all(sw, batch, &train, true);
        gone = ask_all(sw, batch, &train);
    } else {
        build_all(sw, batch, &train, false);
        gone = train.n;
    }
    counters->in_bytes += train.bytes;
    counters->dropped[SWITCH_DROP_DENIED] += train.n - gone;
    if (gone > 0 && batch->from->learns)
        switch_learn(sw, batch, train.first, batch->headers[0] + 6);
    switch_send_built(sw, batch, train.to, gone);
    return train.n;
}
