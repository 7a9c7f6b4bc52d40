/*
 * The way of a frame through the switch. docs/SWITCH.md tells it in words.
 *
 * Frames come in batches. First each one's header is copied: all decisions are about the copy, and
 * it is the copy that goes on, so that a guest which changes its memory meanwhile deceives nobody.
 * What is behind the header goes from the sender's memory into the receiver's. Then each frame is
 * decided upon, and frames with the same receiver make a batch of their own, in order. Tags are put
 * in and taken out by a piece of 12 or 16 bytes before the rest of the header, never by moving the
 * frame. Frames at the beginning of a batch that are all alike have a shorter way (switch_train.c).
 *
 * A peer may answer while it is being delivered to (NAT does): that comes back in here, so each
 * depth has a batch of its own. Decisions that do not change anything have functions of their own,
 * which the trace uses, too.
 *
 * Loop thread; no locks. Nothing is allocated.
 *
 * Texts: IEEE 802.1Q-2018 §8.6 (forwarding), §8.8 (the FDB), §9 (tags); RFC 826; RFC 4861 §4.3,
 * §4.4.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "net/switch_batch.h"
#include "vmm/util/log.h"

#define ADDRESSES PATH_ADDRESSES
#define TAG PATH_TAG
#define ETHERTYPE_ARP 0x0806
#define ETHERTYPE_IPV6 0x86DD

#define HEADER_MAX PATH_HEADER_MAX

/* Keeps what is done once a batch, or seldom, out of the loops over its frames, which are then few
 * enough instructions for their values to stay in registers. */
#define NOT_INLINE __attribute__((noinline))

static uint64_t batch_now(const struct net_switch *sw, struct batch *batch)
{
    if (!batch->now_ns)
        batch->now_ns = sw->now_ns();
    return batch->now_ns;
}

static uint32_t batch_now_s(const struct net_switch *sw, struct batch *batch)
{
    return (uint32_t)(batch_now(sw, batch) / 1000000000u);
}

/* ---- learning ---- */

static bool is_old(const struct mac_entry *entry, const void *arg)
{
    const struct net_switch *sw = arg;

    if (switch_now_s(sw) - entry->stamp <= sw->fdb_age_s)
        return false;
    sw->ports[entry->port]->learnt--;
    return true;
}

/* Whether there is room for one more address behind the port; forgets old ones, once a second at
 * most. A guest that bridges may fill a quarter of the table. */
static bool has_room(struct net_switch *sw, const struct switch_port *port, uint32_t now_s)
{
    unsigned most = port->kind == SWITCH_PORT_UPLINK ? sw->fdb_max : (sw->fdb_max + 3) / 4;

    if ((sw->fdb.used >= sw->fdb_max || port->learnt >= most) && sw->fdb_purged_s != now_s) {
        sw->fdb_purged_s = now_s;
        mac_table_purge(&sw->fdb, is_old, sw);
    }
    return sw->fdb.used < sw->fdb_max && port->learnt < most;
}

/* 802.1Q §8.7. An address that a NIC has registered is not learnt. */
void switch_learn(struct net_switch *sw, struct batch *batch, const struct packet *packet,
                  const uint8_t mac[6])
{
    struct switch_port *port = batch->from;
    uint32_t now_s = batch_now_s(sw, batch);
    unsigned vlan = packet->vlan;
    uint64_t key = mac_key(mac, vlan);
    struct mac_entry *entry = mac_table_find(&sw->fdb, key);

    if (entry && entry->port == port->number) {
        entry->stamp = now_s;
        return;
    }
    if (path_find_station(sw, mac, vlan))
        return;
    if (entry) { /* it has moved */
        sw->ports[entry->port]->learnt--;
        entry->port = port->number;
        entry->stamp = now_s;
        port->learnt++;
        return;
    }
    if (!has_room(sw, port, now_s)) {
        port->counters.not_learnt++;
        return;
    }
    mac_table_add(&sw->fdb, key, port->number, now_s);
    port->learnt++;
}

bool switch_port_add_learnt(struct switch_port *port, const uint8_t mac[6], unsigned vlan,
                            unsigned age_s)
{
    struct net_switch *sw = port->sw;
    uint32_t now_s = switch_now_s(sw);
    uint64_t key = mac_key(mac, vlan);

    if (!port->learns || net_mac_is_group(mac) || vlan > VLAN_MAX || age_s > sw->fdb_age_s ||
        age_s > now_s || !vlan_carries(&port->vlan, vlan) || mac_table_find(&sw->fdb, key) ||
        path_find_station(sw, mac, vlan) || !has_room(sw, port, now_s))
        return false;
    mac_table_add(&sw->fdb, key, port->number, now_s - age_s);
    port->learnt++;
    return true;
}

/* ---- addresses that a guest uses ---- */

static bool is_same(const struct switch_address *a, const struct switch_address *b)
{
    return memcmp(a->mac, b->mac, 6) == 0 && a->vlan == b->vlan && a->family == b->family &&
           memcmp(a->bytes, b->bytes, 16) == 0;
}

/* Puts it first; the one that was used longest ago falls out. */
static void note_address(struct switch_port *port, const struct switch_address *address)
{
    struct switch_address *list = port->addresses;
    unsigned i = 0;

    while (i < port->n_addresses && !is_same(&list[i], address))
        i++;
    if (i == port->n_addresses && i < SWITCH_ADDRESSES_MAX)
        port->n_addresses++;
    if (i == SWITCH_ADDRESSES_MAX)
        i--;
    memmove(list + 1, list, i * sizeof(*list));
    list[0] = *address;
}

/* RFC 826: the sender of a request or reply, from the address that it says. */
static void note_arp(struct switch_port *port, const uint8_t *mac, const uint8_t *arp,
                     struct switch_address *address)
{
    static const uint8_t ethernet_ipv4[] = {0, 1, 8, 0, 6, 4}, none[4];

    if (memcmp(arp, ethernet_ipv4, sizeof(ethernet_ipv4)) != 0 || memcmp(arp + 8, mac, 6) != 0 ||
        memcmp(arp + 14, none, 4) == 0)
        return;
    address->family = 4;
    memcpy(address->bytes, arp + 14, 4);
    note_address(port, address);
}

/* RFC 4861 §4.3, §4.4: a neighbour solicitation is from its source, or about an address that is
 * being taken (RFC 4862 §5.4); an advertisement is about its target. */
static void note_neighbour(struct switch_port *port, const uint8_t *ip,
                           struct switch_address *address)
{
    static const uint8_t none[16];
    const uint8_t *source = ip + 8, *icmp = ip + 40, *target = icmp + 8;
    bool solicitation = icmp[0] == 135 && icmp[1] == 0;

    if (!solicitation && !(icmp[0] == 136 && icmp[1] == 0))
        return;
    if (ip[7] != 255) /* §7.1.1: it has not been routed */
        return;
    address->family = 6;
    memcpy(address->bytes, solicitation && memcmp(source, none, 16) != 0 ? source : target, 16);
    if (address->bytes[0] != 0xFF && memcmp(address->bytes, none, 16) != 0)
        note_address(port, address);
}

NOT_INLINE
static void note_addresses(struct switch_port *port, const struct packet *packet,
                           const uint8_t *header)
{
    size_t at = ADDRESSES + (packet->tag.tagged ? TAG : 0) + 2;
    uint16_t type = get16(header + at - 2);
    struct switch_address address = {.vlan = packet->tag.tci & 0xFFF};

    memcpy(address.mac, header + 6, 6);
    if (type == ETHERTYPE_ARP && packet->header >= at + 28)
        note_arp(port, header + 6, header + at, &address);
    else if (type == ETHERTYPE_IPV6 && packet->header >= at + 40 + 24 && header[at + 6] == 58)
        note_neighbour(port, header + at, &address);
}

static inline bool may_tell_addresses(const struct packet *packet, const uint8_t *header)
{
    uint16_t type = get16(header + ADDRESSES + (packet->tag.tagged ? TAG : 0));

    return type == ETHERTYPE_ARP || type == ETHERTYPE_IPV6;
}

/* ---- deciding ---- */

/* Copies the beginning of a frame that lies in pieces, and remembers where the rest is. */
NOT_INLINE
static void copy_pieces(struct packet *packet, uint8_t *to, const struct net_frame *frame)
{
    size_t want = frame->length < HEADER_MAX ? frame->length : HEADER_MAX, got = 0;

    for (unsigned i = 0; i < frame->iovcnt; i++) {
        const struct iovec *piece = &frame->iov[i];
        size_t run = piece->iov_len < want - got ? piece->iov_len : want - got;

        memcpy(to + got, piece->iov_base, run);
        got += run;
        if (got == want) {
            packet->rest_piece = (uint16_t)i;
            packet->rest_offset = (uint32_t)run;
            break;
        }
    }
    packet->header = (uint16_t)got; /* less, of a sender that does not know its own frame */
}

static inline void copy_header(struct packet *packet, uint8_t *to, const struct net_frame *frame)
{
    size_t want = frame->length < HEADER_MAX ? frame->length : HEADER_MAX;

    if (frame->iov->iov_len < want) {
        copy_pieces(packet, to, frame);
        return;
    }
    switch_copy_header(to, frame->iov->iov_base, want);
    packet->header = (uint16_t)want;
    packet->rest_piece = 0;
    packet->rest_offset = (uint32_t)want;
}

/* Reads what rules look at. */
static enum flow_result read_flow(const struct batch *batch, unsigned i, struct flow_key *key)
{
    const struct packet *packet = &batch->packets[i];
    size_t skip = ADDRESSES + (packet->tag.tagged ? TAG : 0);
    const uint8_t *header = batch->headers[i];

    return flow_read(key, batch->from->number, packet->vlan, header, header + skip,
                     packet->header - skip, batch->frames[i].length - skip);
}

static inline int probe_rules(const struct net_switch *sw, struct batch *batch, unsigned i)
{
    const struct packet *packet = &batch->packets[i];
    const struct flow_key *mask = NULL;
    enum flow_result result;
    struct flow_key key;

    if (batch->link[i] != NO_LINK || !packet->tag.tagged)
        mask = flow_cache_raw_mask(sw->cache, batch->headers[i], packet->header);
    if (mask) {
        flow_cache_probe_raw(sw->cache, mask, batch->headers[i], batch->from->number,
                             packet->vlan, &batch->probes[i]);
        return PATH_GO;
    }
    result = read_flow(batch, i, &key);
    if (result != FLOW_OK && sw->looks_inside)
        return result == FLOW_TOO_DEEP ? SWITCH_DROP_UNREADABLE : SWITCH_DROP_MALFORMED;
    flow_cache_probe(sw->cache, &key, &batch->probes[i]);
    return PATH_GO;
}

/* Without an exact match: the key is read once more. */
NOT_INLINE
static uint32_t find_rule(struct net_switch *sw, struct batch *batch, unsigned i)
{
    struct flow_key key;

    read_flow(batch, i, &key);
    return flow_cache_find_further(sw->cache, &key, &batch->probes[i]);
}

/* Asks the rules: the port to which they redirect, TO_MANY when they do not, TO_NONE with *drop. */
static inline unsigned ask_rules(struct net_switch *sw, struct batch *batch, unsigned i,
                                 int *drop)
{
    const struct flow_cache_exact *match = flow_cache_match(sw->cache, &batch->probes[i]);
    struct packet *packet = &batch->packets[i];
    struct switch_rule *rule;
    uint32_t index;

    if (match)
        flow_cache_hits(sw->cache, 1);
    index = match ? match->answer : find_rule(sw, batch, i);
    if (index == CLASSIFIER_NONE)
        return TO_MANY;
    rule = sw->rules[index];
    rule->frames++;
    rule->bytes += batch->frames[i].length;
    if (rule->plain)
        return TO_MANY;
    *drop = SWITCH_DROP_DENIED;
    if (rule->rule.action.deny)
        return TO_NONE;
    if (rule->rule.action.set_vlan)
        packet->vlan = rule->rule.action.vlan;
    packet->rule_mirror = (int16_t)rule->mirror;
    batch->rule_mirrors |= rule->mirror >= 0;
    if (!rule->rule.action.redirect[0])
        return TO_MANY;
    *drop = SWITCH_DROP_NO_PORT;
    return rule->redirect >= 0 ? (unsigned)rule->redirect : TO_NONE;
}

/* The frame goes to a port, if it may. */
static int go_to(const struct net_switch *sw, struct packet *packet,
                 const struct switch_port *from, const struct switch_port *to)
{
    int drop = path_between(from, to);

    if (drop != PATH_GO)
        return drop;
    if (sw->n_promiscuous) {
        packet->to = TO_MANY;
        packet->set = PATH_KNOWN;
        packet->known = to->number;
    } else {
        packet->to = to->number;
    }
    return PATH_GO;
}

int switch_find_receiver(struct net_switch *sw, struct batch *batch, struct packet *packet,
                         const uint8_t *mac)
{
    struct switch_port *to;

    packet->to = TO_MANY;
    packet->set = PATH_GROUP;
    if (net_mac_is_group(mac))
        return PATH_GO;
    to = path_find_station(sw, mac, packet->vlan);
    if (!to && sw->fdb.used)
        to = path_find_learnt(sw, mac, packet->vlan, batch_now_s(sw, batch));
    if (to)
        return go_to(sw, packet, batch->from, to);
    packet->set = PATH_UNKNOWN;
    if (sw->only_flood && !sw->n_promiscuous) {
        if (!vlan_carries(&sw->only_flood->vlan, packet->vlan) ||
            path_between(batch->from, sw->only_flood) != PATH_GO)
            return SWITCH_DROP_UNKNOWN;
        packet->to = sw->only_flood->number;
    }
    return PATH_GO;
}

/* Where the rules send it: to a port, whatever its address. */
NOT_INLINE
static int redirect(const struct net_switch *sw, struct packet *packet,
                    const struct switch_port *from, unsigned number)
{
    const struct switch_port *to = sw->ports[number];
    int drop = path_between(from, to);

    if (drop == SWITCH_DROP_ISOLATED) /* whoever wrote the rule wants it so */
        drop = PATH_GO;
    if (drop == PATH_GO && to->kind != SWITCH_PORT_MIRROR &&
        !vlan_carries(&to->vlan, packet->vlan))
        drop = SWITCH_DROP_VLAN;
    packet->to = (uint16_t)number;
    return drop;
}

/* What rules say goes first. `like`: addresses and VLAN are as in batch->before. */
static inline int route(struct net_switch *sw, struct batch *batch, unsigned i, bool like)
{
    struct likeness *before = &batch->before;
    struct packet *packet = &batch->packets[i];
    struct switch_port *from = batch->from;
    const uint8_t *header = batch->headers[i];
    uint16_t admitted = packet->vlan;
    unsigned to = TO_MANY;
    int drop = PATH_GO;

    if (sw->classifier)
        to = ask_rules(sw, batch, i, &drop);
    if (to == TO_NONE)
        return drop;
    if (like && to == TO_MANY && packet->vlan == before->vlan) {
        packet->to = before->packet->to;
        packet->set = before->packet->set;
        packet->known = before->packet->known;
        return PATH_GO;
    }
    if (from->learns)
        switch_learn(sw, batch, packet, header + 6);
    if (to != TO_MANY)
        return redirect(sw, packet, from, to);
    drop = switch_find_receiver(sw, batch, packet, header);
    *before = (struct likeness){
        .is = drop == PATH_GO,
        .link = batch->link[i],
        .admitted = admitted,
        .vlan = packet->vlan,
        .dst = flow_mac(header),
        .src = flow_mac(header + 6),
        .packet = packet,
    };
    return drop;
}

/* The frame's tag, and the VLAN into which it is sorted. */
static inline int sort_into_vlan(struct packet *packet, const struct switch_port *from,
                                 const struct net_frame *frame, const uint8_t *header)
{
    int vlan, result = path_read_tag(from, header, packet->header, &packet->tag);

    if (result != PATH_GO)
        return result;
    if (frame->needs_csum && frame->csum_start < ADDRESSES + 2 + (packet->tag.tagged ? TAG : 0))
        return SWITCH_DROP_MALFORMED;
    vlan = vlan_admit(&from->vlan, packet->tag.tci & 0xFFF);
    if (vlan == VLAN_REFUSED)
        return SWITCH_DROP_VLAN;
    packet->vlan = (uint16_t)vlan;
    return PATH_GO;
}

static inline bool is_like(const struct likeness *before, const struct packet *packet,
                           const uint8_t *header)
{
    return before->is && packet->vlan == before->admitted && flow_mac(header) == before->dst &&
           flow_mac(header + 6) == before->src;
}

int switch_look_at_link(struct batch *batch, unsigned i, unsigned *link)
{
    struct packet *packet = &batch->packets[i];
    const uint8_t *header = batch->headers[i];
    int result = sort_into_vlan(packet, batch->from, &batch->frames[i], header);
    uint16_t type = get16(header + ADDRESSES);

    if (result == PATH_GO)
        result = path_check_addresses(header);
    if (result != PATH_GO || packet->header < LINK_BYTES || type == VLAN_TPID_CUSTOMER ||
        type == VLAN_TPID_SERVICE || type == ETHERTYPE_ARP || type == ETHERTYPE_IPV6)
        return result;
    *link = i;
    batch->link[i] = (uint8_t)i;
    return PATH_GO;
}

/* The first look: PATH_GO or why the frame is dropped. */
static inline int look_at(struct net_switch *sw, struct batch *batch, unsigned i, unsigned *link)
{
    const struct net_frame *frame = &batch->frames[i];
    struct packet *packet = &batch->packets[i];
    uint8_t *header = batch->headers[i];
    int result = PATH_GO;

    packet->vlan = NO_VLAN;
    packet->rule_mirror = -1;
    packet->mirrored = 0;
    packet->header = 0;
    batch->link[i] = NO_LINK;
    if (frame->length < NET_FRAME_MIN || frame->length > NET_FRAME_MAX ||
        frame->iovcnt > PIECES_MAX)
        return SWITCH_DROP_MALFORMED;
    copy_header(packet, header, frame);
    if (packet->header < NET_FRAME_MIN)
        return SWITCH_DROP_MALFORMED;
    if (*link != NO_LINK && packet->header >= LINK_BYTES &&
        (!frame->needs_csum || frame->csum_start >= ADDRESSES + 2) &&
        switch_is_same_link(header, batch->headers[*link])) {
        packet->tag = batch->packets[*link].tag;
        packet->vlan = batch->packets[*link].vlan;
        batch->link[i] = (uint8_t)*link;
    } else {
        result = switch_look_at_link(batch, i, link);
    }
    if (result == PATH_GO && sw->classifier)
        result = probe_rules(sw, batch, i);
    return result;
}

/* All of a frame's further decisions but who, of many, gets it: PATH_GO or why it is dropped. */
static inline int decide(struct net_switch *sw, struct batch *batch, unsigned i)
{
    struct packet *packet = &batch->packets[i];
    const struct likeness *before = &batch->before;
    const uint8_t *header = batch->headers[i];
    struct switch_port *from = batch->from;
    uint8_t link = batch->link[i];
    bool like = link != NO_LINK && link == before->link ? before->is
                                                        : is_like(before, packet, header);

    if (from->in.rate && !token_bucket_take(&from->in, batch->frames[i].length))
        return SWITCH_DROP_RATE_IN;
    if (!like && !path_may_send_from(from, header + 6, packet->vlan))
        return SWITCH_DROP_SPOOFED;
    if (link == NO_LINK && from->kind == SWITCH_PORT_GUEST && may_tell_addresses(packet, header))
        note_addresses(from, packet, header);
    return route(sw, batch, i, like);
}

/* The share of a port, which is a new one when it has none in this batch. */
NOT_INLINE
static struct share *find_share(struct batch *batch, struct switch_port *to)
{
    struct share *share;

    if (to->slot < batch->n_shares && batch->shares[to->slot].to == to)
        return &batch->shares[to->slot];
    to->slot = (uint8_t)batch->n_shares;
    share = &batch->shares[batch->n_shares++];
    *share = (struct share){to, NET_BATCH, NET_BATCH};
    return share;
}

/* Puts a frame behind the others that go to the same port. `share`: that of the frame before. */
static inline struct share *add_to_share(struct net_switch *sw, struct batch *batch, unsigned i,
                                         struct share *share)
{
    struct packet *packet = &batch->packets[i];

    packet->next = NET_BATCH;
    if (packet->to == TO_MANY) {
        packet->isolated = packet->sent = false;
        batch->many[batch->n_many++] = (uint8_t)i;
        return share;
    }
    if (!share || share->to->number != packet->to)
        share = find_share(batch, sw->ports[packet->to]);
    if (share->first == NET_BATCH)
        share->first = (uint8_t)i;
    else
        batch->packets[share->last].next = (uint8_t)i;
    share->last = (uint8_t)i;
    return share;
}

static void start_sending(struct net_switch *sw, struct batch *batch, struct sending *sending,
                          struct switch_port *to)
{
    *sending = (struct sending){
        .to = to,
        .plain = to->kind != SWITCH_PORT_MIRROR && !to->vlan.priority_tags && !to->out.rate,
    };
    if (to->out.rate)
        token_bucket_fill(&to->out, batch_now(sw, batch));
}

/* Whether a frame leaves as it came, with what is behind its header in one piece or none. */
static inline bool is_plain(const struct batch *batch, const struct sending *sending, unsigned i)
{
    const struct packet *packet = &batch->packets[i];

    return sending->plain && batch->frames[i].iovcnt == 1 && !packet->tag.tagged &&
           !packet->tag.covers && packet->vlan == sending->to->vlan.untagged_out;
}

/* Adds one that is_plain(). */
static inline void add_plain(struct batch *batch, struct sending *sending, unsigned i)
{
    const struct net_frame *in = &batch->frames[i];
    struct net_frame *out = &batch->sent[sending->n];
    struct iovec *pieces = &batch->pool[sending->pieces];
    size_t header = batch->packets[i].header;

    *out = *in;
    out->iov = pieces;
    pieces[0] = (struct iovec){batch->headers[i], header};
    if (in->length > header) {
        pieces[1] = (struct iovec){(uint8_t *)in->iov->iov_base + header, in->length - header};
        sending->pieces++;
        out->iovcnt = 2;
    }
    sending->pieces++;
    batch->sent_packet[sending->n++] = (uint8_t)i;
}

NOT_INLINE
static void look_at_all(struct net_switch *sw, struct batch *batch)
{
    unsigned link = NO_LINK;
    uint64_t bytes = 0;

    for (unsigned i = 0; i < batch->n; i++) {
        if (i + 4 < batch->n)
            __builtin_prefetch(batch->frames[i + 4].iov->iov_base);
        bytes += batch->frames[i].length;
        batch->early[i] = (int16_t)look_at(sw, batch, i, &link);
    }
    batch->from->counters.in_bytes += bytes;
}

NOT_INLINE
static void decide_all(struct net_switch *sw, struct batch *batch)
{
    struct switch_port *from = batch->from;
    struct share *share = NULL;

    if (from->in.rate)
        token_bucket_fill(&from->in, batch_now(sw, batch));
    for (unsigned i = 0; i < batch->n; i++) {
        int drop = batch->early[i];

        if (drop == PATH_GO)
            drop = decide(sw, batch, i);
        if (drop != PATH_GO) {
            batch->packets[i].to = TO_NONE;
            from->counters.dropped[drop]++;
            continue;
        }
        share = add_to_share(sw, batch, i, share);
    }
}

/* ---- sending ---- */

/* Adds the pieces behind the copied header. Returns how many. */
static unsigned add_rest(const struct packet *packet, const struct net_frame *in,
                         struct iovec *pieces)
{
    const struct iovec *rest = &in->iov[packet->rest_piece];
    unsigned left = in->iovcnt - packet->rest_piece, n = 0;

    if (rest->iov_len > packet->rest_offset)
        pieces[n++] = (struct iovec){(uint8_t *)rest->iov_base + packet->rest_offset,
                                     rest->iov_len - packet->rest_offset};
    for (unsigned k = 1; k < left; k++)
        pieces[n++] = rest[k];
    return n;
}

/* Makes the frame with another tag, or without its own. Returns the number of pieces; 0: it
 * would be too long. */
NOT_INLINE
static unsigned change_tag(struct batch *batch, unsigned i, struct path_form form,
                           struct net_frame *out, struct iovec *pieces)
{
    struct packet *packet = &batch->packets[i];
    const struct net_frame *in = &batch->frames[i];
    uint8_t *header = batch->headers[i], *prefix = packet->prefix;
    size_t strip = packet->tag.tagged ? TAG : 0, push = form.tagged ? TAG : 0;

    out->length = in->length - strip + push;
    if (out->length > NET_FRAME_MAX)
        return 0;
    if (in->needs_csum) {
        if (in->csum_start > UINT16_MAX - TAG)
            return 0;
        out->csum_start = (uint16_t)(in->csum_start - strip + push);
    }
    if (in->hdr_len > strip && in->hdr_len <= UINT16_MAX - TAG)
        out->hdr_len = (uint16_t)(in->hdr_len - strip + push);
    memcpy(prefix, header, ADDRESSES);
    prefix[12] = (uint8_t)(packet->tag.tpid >> 8);
    prefix[13] = (uint8_t)packet->tag.tpid;
    prefix[14] = (uint8_t)(form.tci >> 8);
    prefix[15] = (uint8_t)form.tci;
    pieces[0] = (struct iovec){prefix, ADDRESSES + push};
    pieces[1] = (struct iovec){header + ADDRESSES + strip, packet->header - ADDRESSES - strip};
    return 2;
}

/*
 * Makes, in *out, the frame as it leaves in that form; its pieces go to `pieces`, which has room
 * for two more than the frame has. Returns how many they are, or 0: with its tag it is too long.
 */
static inline unsigned make_frame(struct batch *batch, unsigned i, struct path_form form,
                                  struct net_frame *out, struct iovec *pieces)
{
    const struct packet *packet = &batch->packets[i];
    const struct net_frame *in = &batch->frames[i];
    unsigned n = 1;

    *out = *in;
    pieces[0] = (struct iovec){batch->headers[i], packet->header};
    if (form.tagged != packet->tag.tagged || form.tci != packet->tag.tci)
        n = change_tag(batch, i, form, out, pieces);
    if (n > 0 && in->length > packet->header)
        n += add_rest(packet, in, pieces + n);
    out->iov = pieces;
    out->iovcnt = n;
    return n;
}

static bool mirror_takes(const struct switch_mirror *mirror, const struct packet *packet)
{
    return !mirror->from.vlans_given ||
           (packet->vlan != NO_VLAN && vlan_set_has(&mirror->from.vlans, packet->vlan));
}

/* Gives what a port was just sent to the mirrors that want it and do not have it yet. */
static void mirror_sent(struct net_switch *sw, struct batch *batch, const struct switch_port *to,
                        unsigned n)
{
    struct net_frame frames[NET_BATCH];

    for (uint32_t left = to->mirror_out; left; left &= left - 1) {
        unsigned m = (unsigned)__builtin_ctz(left), count = 0;

        for (unsigned i = 0; i < n; i++) {
            struct packet *packet = &batch->packets[batch->sent_packet[i]];

            if (packet->mirrored & 1u << m || !mirror_takes(&sw->mirrors[m], packet))
                continue;
            packet->mirrored |= 1u << m;
            frames[count++] = batch->sent[i];
        }
        if (count)
            switch_mirror_frames(sw, &sw->mirrors[m], to, false, frames, count);
    }
}

void switch_send_built(struct net_switch *sw, struct batch *batch, struct switch_port *to,
                       unsigned n)
{
    unsigned taken;

    if (n == 0)
        return;
    if (!to->end.peer || to->dead) {
        to->counters.dropped[SWITCH_DROP_UNPLUGGED] += n;
        return;
    }
    if (!to->dirty) {
        to->dirty = true;
        sw->dirty[sw->n_dirty++] = to->number;
    }
    taken = net_port_send(&to->end, batch->sent, n);
    to->counters.dropped[SWITCH_DROP_FULL] += n - taken;
    if (to->mirror_out)
        mirror_sent(sw, batch, to, taken);
}

static void flush_sending(struct net_switch *sw, struct batch *batch, struct sending *sending)
{
    switch_send_built(sw, batch, sending->to, sending->n);
    sending->n = sending->pieces = 0;
}

static inline void add_frame(struct net_switch *sw, struct batch *batch, struct sending *sending,
                             unsigned i)
{
    struct packet *packet = &batch->packets[i];
    struct switch_port *to = sending->to;
    struct net_frame *out;
    unsigned pieces;

    if (sending->pieces + batch->frames[i].iovcnt + 2 > POOL)
        flush_sending(sw, batch, sending);
    if (is_plain(batch, sending, i)) {
        add_plain(batch, sending, i);
        return;
    }
    out = &batch->sent[sending->n];
    pieces = make_frame(batch, i, path_form(to, &packet->tag, packet->vlan), out,
                        &batch->pool[sending->pieces]);
    if (pieces == 0) {
        to->counters.dropped[SWITCH_DROP_TOO_LONG]++;
        return;
    }
    if (to->out.rate && !token_bucket_take(&to->out, out->length)) {
        to->counters.dropped[SWITCH_DROP_RATE_OUT]++;
        return;
    }
    batch->sent_packet[sending->n++] = (uint8_t)i;
    sending->pieces += pieces;
}

NOT_INLINE
static void send_shares(struct net_switch *sw, struct batch *batch)
{
    for (unsigned s = 0; s < batch->n_shares; s++) {
        const struct share *share = &batch->shares[s];
        struct sending sending;

        start_sending(sw, batch, &sending, share->to);
        for (unsigned i = share->first; i < NET_BATCH; i = batch->packets[i].next)
            add_frame(sw, batch, &sending, i);
        flush_sending(sw, batch, &sending);
    }
}

/* Whether one of the frames for many is for this port. */
static bool is_for(struct batch *batch, struct packet *packet, const struct switch_port *to)
{
    int between;

    if (!(packet->set == PATH_KNOWN && packet->known == to->number) &&
        !path_wants(to, packet->set, packet->vlan))
        return false;
    between = path_between(batch->from, to);
    if (between == SWITCH_DROP_ISOLATED)
        packet->isolated = true;
    packet->sent |= between == PATH_GO;
    return between == PATH_GO;
}

NOT_INLINE
static void send_many(struct net_switch *sw, struct batch *batch)
{
    for (unsigned p = 0; p < sw->ports_end; p++) {
        struct switch_port *to = sw->ports[p];
        struct sending sending;

        if (!to || to->dead)
            continue;
        start_sending(sw, batch, &sending, to);
        for (unsigned k = 0; k < batch->n_many; k++) {
            if (is_for(batch, &batch->packets[batch->many[k]], to))
                add_frame(sw, batch, &sending, batch->many[k]);
        }
        flush_sending(sw, batch, &sending);
    }
    for (unsigned k = 0; k < batch->n_many; k++) {
        const struct packet *packet = &batch->packets[batch->many[k]];
        enum switch_drop why = packet->set == PATH_UNKNOWN ? SWITCH_DROP_UNKNOWN
                               : packet->isolated          ? SWITCH_DROP_ISOLATED
                                                           : SWITCH_DROP_NOWHERE;

        if (!packet->sent)
            batch->from->counters.dropped[why]++;
    }
}

/* ---- mirrors of what came in ---- */

/* Makes the frame as it came. */
static void make_as_came(struct batch *batch, unsigned i, unsigned n, unsigned *pieces)
{
    const struct packet_tag *tag = &batch->packets[i].tag;

    *pieces += make_frame(batch, i, (struct path_form){tag->tagged, tag->tci}, &batch->sent[n],
                          &batch->pool[*pieces]);
}

static void mirror_came(struct net_switch *sw, struct batch *batch, unsigned m)
{
    struct switch_mirror *mirror = &sw->mirrors[m];
    unsigned n = 0, pieces = 0;

    for (unsigned i = 0; i < batch->n; i++) {
        struct packet *packet = &batch->packets[i];

        if (packet->header < NET_FRAME_MIN || !mirror_takes(mirror, packet))
            continue;
        if (pieces + batch->frames[i].iovcnt + 2 > POOL) {
            switch_mirror_frames(sw, mirror, batch->from, true, batch->sent, n);
            n = pieces = 0;
        }
        packet->mirrored |= 1u << m;
        make_as_came(batch, i, n++, &pieces);
    }
    if (n)
        switch_mirror_frames(sw, mirror, batch->from, true, batch->sent, n);
}

/* The copies that rules ask for. */
static void mirror_by_rules(struct net_switch *sw, struct batch *batch)
{
    for (unsigned i = 0; i < batch->n; i++) {
        const struct packet *packet = &batch->packets[i];
        struct sending sending;
        unsigned pieces = 0;

        if (packet->rule_mirror < 0)
            continue;
        start_sending(sw, batch, &sending, sw->ports[packet->rule_mirror]);
        make_as_came(batch, i, 0, &pieces);
        batch->sent_packet[0] = (uint8_t)i;
        switch_send_built(sw, batch, sending.to, 1);
    }
}

NOT_INLINE
static void mirror_all(struct net_switch *sw, struct batch *batch)
{
    for (uint32_t left = batch->from->mirror_in; left; left &= left - 1)
        mirror_came(sw, batch, (unsigned)__builtin_ctz(left));
    if (batch->rule_mirrors)
        mirror_by_rules(sw, batch);
}

/* ---- the port's end ---- */

static void drop_all(struct switch_port *port, const struct net_frame *frames, unsigned n,
                     enum switch_drop why)
{
    port->counters.dropped[why] += n;
    for (unsigned i = 0; i < n; i++)
        port->counters.in_bytes += frames[i].length;
}

static void forward(struct net_switch *sw, struct batch *batch)
{
    look_at_all(sw, batch);
    decide_all(sw, batch);
    if (batch->from->mirror_in || batch->rule_mirrors)
        mirror_all(sw, batch);
    send_shares(sw, batch);
    if (batch->n_many)
        send_many(sw, batch);
}

static unsigned end_deliver(struct net_port *end, const struct net_frame *frames, unsigned n)
{
    struct switch_port *port = switch_port_of(end);
    struct net_switch *sw = port->sw;
    struct batch *batch;
    unsigned done;

    assert(n > 0 && n <= NET_BATCH);
    port->counters.in_frames += n;
    if (port->kind == SWITCH_PORT_MIRROR || sw->depth == SWITCH_DEPTH_MAX) {
        drop_all(port, frames, n,
                 port->kind == SWITCH_PORT_MIRROR ? SWITCH_DROP_MIRROR : SWITCH_DROP_NESTED);
        return n;
    }
    batch = &sw->batches[sw->depth++];
    batch->from = port;
    batch->frames = frames;
    batch->n = n;
    batch->n_shares = batch->n_many = 0;
    batch->now_ns = 0;
    batch->before.is = batch->rule_mirrors = false;
    done = switch_train(sw, batch);
    batch->frames += done;
    batch->n -= done;
    if (batch->n)
        forward(sw, batch);
    sw->depth--;
    if (sw->graves && sw->depth == 0)
        switch_bury(sw);
    return n;
}

/* The end of one sender's run is a good time for all that was sent to. */
static void end_flush(struct net_port *end)
{
    struct net_switch *sw = switch_port_of(end)->sw;

    while (sw->n_dirty) {
        struct switch_port *port = sw->ports[sw->dirty[--sw->n_dirty]];

        port->dirty = false;
        net_port_flush(&port->end);
    }
}

/* Was plugged in or out, as the peer is there or not. */
static void end_plugged(struct net_port *end)
{
    switch_port_plugged(switch_port_of(end));
}

/* Also what an end gets whose peer is gone. Nothing was held back, so room is no news. */
static void end_ready(struct net_port *end)
{
    if (!end->peer)
        switch_port_plugged(switch_port_of(end));
}

static void end_filter_changed(struct net_port *end, const struct net_receive_filter *filter)
{
    switch_port_filter(switch_port_of(end), filter);
}

const struct net_port_ops switch_port_ops = {
    .deliver = end_deliver,
    .flush = end_flush,
    .ready = end_ready,
    .filter_changed = end_filter_changed,
    .plugged = end_plugged,
};

int switch_batches_create(struct net_switch *sw)
{
    sw->batches = aligned_alloc(64, SWITCH_DEPTH_MAX * sizeof(*sw->batches));
    if (!sw->batches)
        return -ENOMEM;
    /* Probes are compared with the one before, whatever that is. */
    for (unsigned i = 0; i < SWITCH_DEPTH_MAX; i++)
        memset(sw->batches[i].probes, 0, sizeof(sw->batches[i].probes));
    return 0;
}
