/*
 * virtio-net, the control queue: the driver's commands.
 *
 * Each is read from the chain once, checked whole, and then carried out whole or not at all. What
 * was not agreed on is refused. Nothing is allocated.
 *
 * Threads: the loop's, with the device lock held by the caller.
 *
 * Texts: virtio 1.2 §5.1.6.5.
 */
#include <endian.h>
#include <string.h>

#include "devices/virtio/net_internal.h"

#define CTRL_BUDGET 64u /* commands before the loop has its turn */

#define DATA_AT sizeof(struct virtio_net_ctrl_hdr)

/* Reads the command's data from byte `at` on: false when there is less of it. */
static bool read_data(const struct virtqueue_chain *chain, uint64_t at, void *to, uint64_t length)
{
    return virtqueue_read(chain, DATA_AT + at, to, length) == length;
}

static bool read_u16(const struct virtqueue_chain *chain, uint64_t at, uint16_t *value)
{
    bool there = read_data(chain, at, value, sizeof(*value));

    *value = le16toh(*value);
    return there;
}

/* ---- receive modes (§5.1.6.5.1) ---- */

static bool set_mode(struct virtio_net *net, const struct virtqueue_chain *chain, uint8_t mode)
{
    struct net_receive_filter *filter = &net->state.filter;
    bool *const modes[] = {
        [VIRTIO_NET_CTRL_RX_PROMISC] = &filter->promiscuous,
        [VIRTIO_NET_CTRL_RX_ALLMULTI] = &filter->allmulti,
        [VIRTIO_NET_CTRL_RX_ALLUNI] = &filter->alluni,
        [VIRTIO_NET_CTRL_RX_NOMULTI] = &filter->nomulti,
        [VIRTIO_NET_CTRL_RX_NOUNI] = &filter->nouni,
        [VIRTIO_NET_CTRL_RX_NOBCAST] = &filter->nobcast,
    };
    unsigned feature =
        mode <= VIRTIO_NET_CTRL_RX_ALLMULTI ? VIRTIO_NET_F_CTRL_RX : VIRTIO_NET_F_CTRL_RX_EXTRA;
    uint8_t on;

    if (mode >= sizeof(modes) / sizeof(modes[0]) || !virtio_has(&net->vdev, feature) ||
        !read_data(chain, 0, &on, 1))
        return false;
    *modes[mode] = on != 0;
    net_filter_changed(net);
    return true;
}

/* ---- addresses (§5.1.6.5.2) ---- */

static bool set_mac(struct virtio_net *net, const struct virtqueue_chain *chain)
{
    uint8_t mac[6];

    if (!virtio_has(&net->vdev, VIRTIO_NET_F_CTRL_MAC_ADDR) || !read_data(chain, 0, mac, 6) ||
        net_mac_is_group(mac))
        return false;
    memcpy(net->state.filter.mac, mac, 6);
    net_filter_changed(net);
    return true;
}

/* Reads one of the two tables from byte *at of the data, and moves *at behind it. */
static bool read_table(const struct virtqueue_chain *chain, uint64_t *at,
                       struct net_filter_table *table)
{
    uint32_t entries, kept;

    if (!read_data(chain, *at, &entries, sizeof(entries)))
        return false;
    *at += sizeof(entries);
    table->entries = le32toh(entries);
    if (table->entries * 6ull > chain->readable_bytes - DATA_AT - *at)
        return false;
    kept = table->entries < NET_FILTER_TABLE ? table->entries : NET_FILTER_TABLE;
    read_data(chain, *at, table->macs, kept * 6u);
    *at += table->entries * 6ull;
    return true;
}

static bool set_tables(struct virtio_net *net, const struct virtqueue_chain *chain)
{
    struct net_filter_table unicast = {0}, multicast = {0};
    uint64_t at = 0;

    if (!virtio_has(&net->vdev, VIRTIO_NET_F_CTRL_RX) || !read_table(chain, &at, &unicast) ||
        !read_table(chain, &at, &multicast))
        return false;
    net->state.filter.unicast = unicast;
    net->state.filter.multicast = multicast;
    net_filter_changed(net);
    return true;
}

static bool command_mac(struct virtio_net *net, const struct virtqueue_chain *chain, uint8_t cmd)
{
    switch (cmd) {
    case VIRTIO_NET_CTRL_MAC_TABLE_SET:
        return set_tables(net, chain);
    case VIRTIO_NET_CTRL_MAC_ADDR_SET:
        return set_mac(net, chain);
    default:
        return false;
    }
}

/* ---- VLANs (§5.1.6.5.3) ---- */

static bool command_vlan(struct virtio_net *net, const struct virtqueue_chain *chain, uint8_t cmd)
{
    uint64_t bit;
    uint16_t vid;

    if (!virtio_has(&net->vdev, VIRTIO_NET_F_CTRL_VLAN) || !read_u16(chain, 0, &vid) ||
        vid >= NET_VLANS || cmd > VIRTIO_NET_CTRL_VLAN_DEL)
        return false;
    bit = 1ull << vid % 64;
    if (cmd == VIRTIO_NET_CTRL_VLAN_ADD)
        net->state.vlans[vid / 64] |= bit;
    else
        net->state.vlans[vid / 64] &= ~bit;
    net_filter_changed(net);
    return true;
}

/* ---- announcing (§5.1.6.5.4) ---- */

static bool command_announce(struct virtio_net *net, uint8_t cmd)
{
    if (!virtio_has(&net->vdev, VIRTIO_NET_F_GUEST_ANNOUNCE) ||
        cmd != VIRTIO_NET_CTRL_ANNOUNCE_ACK)
        return false;
    /* "The device MUST clear the VIRTIO_NET_S_ANNOUNCE bit in status upon receipt [...] before
     * marking the buffer as used": that comes after this. */
    net->state.announce = false;
    return true;
}

/* ---- several queues (§5.1.6.5.5, §5.1.6.5.6) ---- */

static bool set_pairs(struct virtio_net *net, const struct virtqueue_chain *chain)
{
    uint16_t pairs;

    if (!virtio_has(&net->vdev, VIRTIO_NET_F_MQ) || !read_u16(chain, 0, &pairs) ||
        pairs < VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MIN || pairs > net->max_pairs)
        return false;
    net->state.pairs = pairs;
    net->state.rss = false; /* the last command decides */
    return true;
}

/* Reads a key and its length from byte `at` of the data. */
static bool read_key(const struct virtqueue_chain *chain, uint64_t at, struct net_state *state)
{
    memset(state->key, 0, sizeof(state->key));
    return read_data(chain, at, &state->key_length, 1) && state->key_length <= NET_RSS_KEY &&
           read_data(chain, at + 1, state->key, state->key_length);
}

static bool read_types(const struct virtqueue_chain *chain, struct net_state *state)
{
    if (!read_data(chain, 0, &state->hash_types, sizeof(state->hash_types)))
        return false;
    state->hash_types = le32toh(state->hash_types);
    return (state->hash_types & ~NET_RSS_TYPES) == 0;
}

static void hash_by(struct virtio_net *net, const struct net_state *state)
{
    net->state = *state;
    net_hasher_init(&net->hasher, state->key, state->key_length);
}

/* struct virtio_net_hash_config: types, four reserved words, the key. */
static bool set_hash(struct virtio_net *net, const struct virtqueue_chain *chain)
{
    struct net_state state = net->state;

    if (!virtio_has(&net->vdev, VIRTIO_NET_F_HASH_REPORT) || !read_types(chain, &state) ||
        !read_key(chain, 12, &state))
        return false;
    hash_by(net, &state);
    return true;
}

/* struct virtio_net_rss_config: types, mask, queue of the unclassified, table, max_tx_vq, key. */
static bool set_rss(struct virtio_net *net, const struct virtqueue_chain *chain)
{
    struct net_state state = net->state;
    uint64_t at = 8;
    uint16_t senders;

    if (!virtio_has(&net->vdev, VIRTIO_NET_F_RSS) || !read_types(chain, &state) ||
        !read_u16(chain, 4, &state.table_mask) || !read_u16(chain, 6, &state.unclassified) ||
        state.table_mask >= NET_RSS_TABLE)
        return false;
    memset(state.table, 0, sizeof(state.table));
    for (unsigned i = 0; i <= state.table_mask; i++, at += 2) {
        if (!read_u16(chain, at, &state.table[i]))
            return false;
    }
    if (!read_u16(chain, at, &senders) || senders < 1 || senders > net->max_pairs ||
        !read_key(chain, at + 2, &state) || net_state_check(&state, net->max_pairs))
        return false;
    state.pairs = senders;
    state.rss = true;
    hash_by(net, &state);
    return true;
}

static bool command_mq(struct virtio_net *net, const struct virtqueue_chain *chain, uint8_t cmd)
{
    switch (cmd) {
    case VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET:
        return set_pairs(net, chain);
    case VIRTIO_NET_CTRL_MQ_RSS_CONFIG:
        return set_rss(net, chain);
    case VIRTIO_NET_CTRL_MQ_HASH_CONFIG:
        return set_hash(net, chain);
    default:
        return false;
    }
}

/* ---- offloads (§5.1.6.5.8) ---- */

static bool command_offloads(struct virtio_net *net, const struct virtqueue_chain *chain,
                             uint8_t cmd)
{
    uint64_t wanted;

    if (!virtio_has(&net->vdev, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) ||
        cmd != VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET || !read_data(chain, 0, &wanted, sizeof(wanted)))
        return false;
    wanted = le64toh(wanted);
    if (wanted & ~(VIRTIO_NET_GUEST_OFFLOADS & net->vdev.negotiated))
        return false;
    net->state.guest_offloads = wanted;
    net_offloads_changed(net);
    return true;
}

/* ---- the queue ---- */

static bool carry_out(struct virtio_net *net, const struct virtqueue_chain *chain)
{
    struct virtio_net_ctrl_hdr command;

    if (virtqueue_read(chain, 0, &command, sizeof(command)) != sizeof(command))
        return false;
    switch (command.class) {
    case VIRTIO_NET_CTRL_RX:
        return set_mode(net, chain, command.cmd);
    case VIRTIO_NET_CTRL_MAC:
        return command_mac(net, chain, command.cmd);
    case VIRTIO_NET_CTRL_VLAN:
        return command_vlan(net, chain, command.cmd);
    case VIRTIO_NET_CTRL_ANNOUNCE:
        return command_announce(net, command.cmd);
    case VIRTIO_NET_CTRL_MQ:
        return command_mq(net, chain, command.cmd);
    case VIRTIO_NET_CTRL_GUEST_OFFLOADS:
        return command_offloads(net, chain, command.cmd);
    default:
        return false;
    }
}

void net_ctrl_run(struct virtio_net *net, struct virtqueue *vq)
{
    unsigned budget = CTRL_BUDGET;
    int got = 0;

    while (budget-- > 0 && (got = virtqueue_pop(vq, &net->taken)) > 0) {
        uint8_t ack;

        if (net->taken.writable_bytes < sizeof(ack)) {
            virtio_device_broken(&net->vdev, "a command has no room for its answer");
            return;
        }
        ack = carry_out(net, &net->taken) ? VIRTIO_NET_OK : VIRTIO_NET_ERR;
        virtqueue_write(&net->taken, 0, &ack, sizeof(ack));
        virtqueue_push(vq, &net->taken, sizeof(ack));
    }
    if (got < 0)
        virtio_device_broken(&net->vdev, "its control queue is corrupt");
    else if (got > 0)
        net_leave_for_later(net);
    virtio_queue_notify(&net->vdev, vq);
}
