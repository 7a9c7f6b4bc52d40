/*
 * virtio-net: a network card, queues on one side, a port on the other. Features, configuration,
 * life and state; frames come and go in net_rx.c and net_tx.c, commands in net_ctrl.c.
 *
 * The peer is told what the driver wants to receive by a call of the loop's, since what changes it
 * happens under the device lock, a reset even on a vCPU's thread. Nothing is allocated after
 * creation.
 *
 * Threads: the device lock guards all but `port`, which is the loop thread's alone.
 *
 * Texts: virtio 1.2 §5.1.
 */
#include "devices/virtio/net.h"

#include <endian.h>
#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <stdlib.h>
#include <string.h>

#include "devices/virtio/net_internal.h"

#define QUEUE_SIZE 256
#define CTRL_QUEUE_SIZE 64

#define DUPLEX_FULL 1u /* §5.1.4 */

/* §5.1.4, as far as features offered make it exist. Little-endian. */
struct config_space {
    uint8_t mac[6];
    uint16_t status;
    uint16_t max_virtqueue_pairs;
    uint16_t mtu;
    uint32_t speed;
    uint8_t duplex;
    uint8_t rss_max_key_size;
    uint16_t rss_max_indirection_table_length;
    uint32_t supported_hash_types;
} __attribute__((packed));
_Static_assert(sizeof(struct config_space) == 24, "virtio 1.2 §5.1.4");

/* ---- features and configuration ---- */

/* Offered without conditions. Not VIRTIO_NET_F_GUEST_HDRLEN: it lets a device rely on the driver's word
 * for where headers end (§5.1.6.2.2), and here they are always read (net_offload_check()). */
#define BASE_FEATURES                                                                              \
    (NET_BIT(VIRTIO_NET_F_CSUM) | NET_BIT(VIRTIO_NET_F_GUEST_CSUM) |                               \
     NET_BIT(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) | NET_BIT(VIRTIO_NET_F_MAC) |                       \
     NET_BIT(VIRTIO_NET_F_GUEST_TSO4) | NET_BIT(VIRTIO_NET_F_GUEST_TSO6) |                         \
     NET_BIT(VIRTIO_NET_F_GUEST_ECN) | NET_BIT(VIRTIO_NET_F_HOST_TSO4) |                           \
     NET_BIT(VIRTIO_NET_F_HOST_TSO6) | NET_BIT(VIRTIO_NET_F_HOST_ECN) |                            \
     NET_BIT(VIRTIO_NET_F_MRG_RXBUF) | NET_BIT(VIRTIO_NET_F_STATUS) |                              \
     NET_BIT(VIRTIO_NET_F_CTRL_VQ) | NET_BIT(VIRTIO_NET_F_CTRL_RX) |                               \
     NET_BIT(VIRTIO_NET_F_CTRL_VLAN) | NET_BIT(VIRTIO_NET_F_CTRL_RX_EXTRA) |                       \
     NET_BIT(VIRTIO_NET_F_GUEST_ANNOUNCE) | NET_BIT(VIRTIO_NET_F_CTRL_MAC_ADDR) |                  \
     NET_BIT(VIRTIO_NET_F_GUEST_USO4) | NET_BIT(VIRTIO_NET_F_GUEST_USO6) |                         \
     NET_BIT(VIRTIO_NET_F_HOST_USO) | NET_BIT(VIRTIO_NET_F_SPEED_DUPLEX))
/* With more than one pair of queues. */
#define PAIRS_FEATURES                                                                             \
    (NET_BIT(VIRTIO_NET_F_MQ) | NET_BIT(VIRTIO_NET_F_RSS) | NET_BIT(VIRTIO_NET_F_HASH_REPORT))

static uint64_t features(struct virtio_device *vdev)
{
    const struct virtio_net *net = net_of(vdev);

    return BASE_FEATURES | (net->max_pairs > 1 ? PAIRS_FEATURES : 0) |
           (net->mtu ? NET_BIT(VIRTIO_NET_F_MTU) : 0);
}

static void config_read(struct virtio_device *vdev, size_t offset, void *to, size_t size)
{
    const struct virtio_net *net = net_of(vdev);
    struct config_space config = {
        .status = htole16((net->link_up ? VIRTIO_NET_S_LINK_UP : 0) |
                          (net->state.announce ? VIRTIO_NET_S_ANNOUNCE : 0)),
        .max_virtqueue_pairs = htole16((uint16_t)net->max_pairs),
        .mtu = htole16(net->mtu),
        .speed = htole32(net->speed),
        .duplex = DUPLEX_FULL,
        .rss_max_key_size = NET_RSS_KEY,
        .rss_max_indirection_table_length = htole16(NET_RSS_TABLE),
        .supported_hash_types = htole32(NET_RSS_TYPES),
    };

    memcpy(config.mac, net->state.filter.mac, 6);
    memcpy(to, (const uint8_t *)&config + offset, size);
}

void virtio_net_set_link(struct virtio_device *vdev, bool up)
{
    struct virtio_net *net = net_of(vdev);

    if (net->link_up == up)
        return;
    net->link_up = up;
    virtio_config_changed(vdev);
}

void virtio_net_announce(struct virtio_device *vdev)
{
    struct virtio_net *net = net_of(vdev);

    if (!(vdev->status & VIRTIO_CONFIG_S_DRIVER_OK) ||
        !virtio_has(vdev, VIRTIO_NET_F_GUEST_ANNOUNCE))
        return;
    net->state.announce = true;
    virtio_config_changed(vdev);
}

void virtio_net_take_own_mac(struct virtio_device *vdev)
{
    struct virtio_net *net = net_of(vdev);

    memcpy(net->state.filter.mac, net->mac, sizeof(net->mac));
    net_filter_changed(net);
    virtio_config_changed(vdev);
}

/* ---- what the driver wants ---- */

uint32_t net_accepted(const struct virtio_net *net)
{
    static const struct {
        unsigned feature;
        uint32_t offloads;
    } rows[] = {
        {VIRTIO_NET_F_GUEST_TSO4, NET_OFFLOAD_TSO4},
        {VIRTIO_NET_F_GUEST_TSO6, NET_OFFLOAD_TSO6},
        {VIRTIO_NET_F_GUEST_ECN, NET_OFFLOAD_TSO_ECN},
        {VIRTIO_NET_F_GUEST_USO4, NET_OFFLOAD_USO4},
        {VIRTIO_NET_F_GUEST_USO6, NET_OFFLOAD_USO6},
    };
    uint64_t on = net->state.guest_offloads;
    uint32_t bits = NET_OFFLOAD_CSUM;

    /* §5.1.3.1: the others presume this one. */
    if (!(on & NET_BIT(VIRTIO_NET_F_GUEST_CSUM)))
        return 0;
    for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        bits |= on & NET_BIT(rows[i].feature) ? rows[i].offloads : 0;
    return bits;
}

void net_offloads_changed(struct virtio_net *net)
{
    /* What was sent before is looked at once more when it arrives. */
    atomic_store_explicit(&net->port.accepts, net_accepted(net), memory_order_relaxed);
}

static void tell_filter(struct virtio_net *net)
{
    uint64_t vlans[NET_VLANS / 64];
    struct net_receive_filter filter;

    device_lock(net->vdev.env);
    filter = net->state.filter;
    memcpy(vlans, net->state.vlans, sizeof(vlans));
    filter.vlans = virtio_has(&net->vdev, VIRTIO_NET_F_CTRL_VLAN) ? vlans : NULL;
    /* Who cannot set the filter up is not filtered. */
    if (!virtio_has(&net->vdev, VIRTIO_NET_F_CTRL_RX))
        filter.promiscuous = filter.allmulti = true;
    device_unlock(net->vdev.env);
    net_port_tell_filter(&net->port, &filter);
}

static void on_tell(struct loop_call *call)
{
    tell_filter((struct virtio_net *)((char *)call - offsetof(struct virtio_net, tell)));
}

void net_filter_changed(struct virtio_net *net)
{
    loop_call(net->vdev.env->loop, &net->tell);
}

static void port_plugged(struct net_port *port)
{
    tell_filter(net_of_port(port));
}

static const struct net_port_ops port_ops = {
    .deliver = net_rx_deliver,
    .lend = net_rx_lend,
    .return_loan = net_rx_return,
    .flush = net_rx_flush,
    .ready = net_tx_ready,
    .plugged = port_plugged,
};

/* ---- life ---- */

/* §5.1.2: behind the pairs that exist, which are as many as were agreed on. */
static unsigned ctrl_index(const struct virtio_net *net)
{
    return net_pairs(net) * 2;
}

static void kicked_rx(struct virtio_net *net)
{
    net_rx_notify(net); /* of what came just before a pause */
    net_rx_feed(net);
}

static void kicked_tx(struct virtio_net *net, unsigned pair)
{
    net_tx_run(net, pair);
    /* After a reset the driver may never kick the receive queue: it need not (its buffers are
     * found), but a peer that was refused before still waits. */
    if (net->starved && virtqueue_pending(net_rx_queue(net, pair)))
        net_rx_feed(net);
}

static void kicked(struct virtio_device *vdev, unsigned index)
{
    struct virtio_net *net = net_of(vdev);

    /* Without the feature the control queue does not exist, nor do queues behind it (§5.1.2). */
    if (index == ctrl_index(net) && virtio_has(vdev, VIRTIO_NET_F_CTRL_VQ))
        net_ctrl_run(net, &vdev->queues[index]);
    else if (index < ctrl_index(net) && index % 2 == 0)
        kicked_rx(net);
    else if (index < ctrl_index(net))
        kicked_tx(net, index / 2);
}

void net_leave_for_later(struct virtio_net *net)
{
    loop_timer_set(net->vdev.env->loop, &net->more, 0);
}

static void on_more(struct loop_timer *timer)
{
    struct virtio_net *net =
        (struct virtio_net *)((char *)timer - offsetof(struct virtio_net, more));

    device_lock(net->vdev.env);
    virtio_queue_kicked(&net->vdev, ctrl_index(net));
    for (unsigned i = 0; i < net_pairs(net); i++)
        virtio_queue_kicked(&net->vdev, i * 2 + 1);
    device_unlock(net->vdev.env);
}

/* A vCPU's thread may be here while the loop's is with the peer. `starved` stays: the peer's frame
 * is still to be asked for. So does `blocked`, for the peer will say when it has room. */
static void reset(struct virtio_device *vdev)
{
    struct virtio_net *net = net_of(vdev);

    net_state_reset(&net->state, net->mac);
    memset(net->flows, 0, sizeof(net->flows));
    net->received = 0;
    net->restored = false;
    net_offloads_changed(net);
    net_filter_changed(net);
}

/* Features are final. §5.1.6.5.8.1: each offload that was agreed on is on. */
static void start(struct virtio_device *vdev)
{
    struct virtio_net *net = net_of(vdev);

    net->state.guest_offloads = vdev->negotiated & VIRTIO_NET_GUEST_OFFLOADS;
    net_offloads_changed(net);
    net_filter_changed(net);
}

static bool busy(const struct virtio_device *vdev)
{
    const struct virtio_net *net = net_of((struct virtio_device *)vdev);

    return net->sending || net->lent.is;
}

/* What was saved goes on somewhere else: those on the wire shall learn of it. */
static void resume(struct virtio_device *vdev)
{
    struct virtio_net *net = net_of(vdev);

    if (net->restored)
        virtio_net_announce(vdev);
    net->restored = false;
}

/* ---- on the move ---- */

void virtio_net_divert(struct virtio_device *vdev, bool always,
                       void (*take)(void *opaque, const struct net_frame *frame), void *opaque)
{
    struct virtio_net *net = net_of(vdev);

    net->divert = take;
    net->divert_opaque = opaque;
    net->divert_always = always && take;
    if (vdev->paused && take)
        net_rx_feed(net);
}

void net_note_traffic(struct virtio_net *net)
{
    net->traffic.last_ns = loop_now_ns();
    if (!net->traffic.first_ns)
        net->traffic.first_ns = net->traffic.last_ns;
}

void virtio_net_watch(struct virtio_device *vdev)
{
    net_of(vdev)->traffic.first_ns = 0;
}

void virtio_net_get_traffic(const struct virtio_device *vdev, struct virtio_net_traffic *traffic)
{
    *traffic = net_of((struct virtio_device *)vdev)->traffic;
}

/* ---- state ---- */

static void state_get(void *object, void *to)
{
    const struct virtio_net *net = object;

    *(struct net_state *)to = net->state;
}

static int state_check(void *object, const void *from)
{
    const struct virtio_net *net = object;
    const struct net_state *state = from;
    const char *wrong = net_state_check(state, net->max_pairs);

    if (!wrong && (state->guest_offloads & ~VIRTIO_NET_GUEST_OFFLOADS))
        wrong = "offloads are on that do not exist";
    if (!wrong)
        return 0;
    log_error("%s: saved state: %s", net->vdev.id, wrong);
    return -EINVAL;
}

static void state_set(void *object, const void *from)
{
    struct virtio_net *net = object;

    net->state = *(const struct net_state *)from;
    /* Damaged states shall not switch on what was not agreed on. */
    net->state.guest_offloads &= net->vdev.negotiated;
    if (net_active_pairs(net) > net_pairs(net))
        net->state.pairs = 1;
    net->state.rss = net->state.rss && virtio_has(&net->vdev, VIRTIO_NET_F_RSS);
    net_hasher_init(&net->hasher, net->state.key, net->state.key_length);
    net->restored = true;
    net_offloads_changed(net);
    net_filter_changed(net);
}

static bool state(struct virtio_device *vdev, struct state_part *part)
{
    *part = (struct state_part){
        .desc = &net_state_desc,
        .object = net_of(vdev),
        .get = state_get,
        .check = state_check,
        .set = state_set,
    };
    return true;
}

/* ---- creation ---- */

static void destroy(struct virtio_device *vdev)
{
    struct virtio_net *net = net_of(vdev);

    net_port_disconnect(&net->port);
    loop_poller_remove(net->vdev.env->loop, &net->poller);
    loop_timer_cancel(&net->more);
    loop_call_cancel(net->vdev.env->loop, &net->tell);
    virtqueue_chain_fini(&net->batch.pool);
    virtqueue_chain_fini(&net->taken);
    virtio_device_fini(vdev);
    free(net);
}

static const struct virtio_class net_class = {
    .name = "virtio-net",
    .device_id = VIRTIO_ID_NET,
    .features = features,
    .config_size = sizeof(struct config_space),
    .config_read = config_read,
    .start = start,
    .kicked = kicked,
    .reset = reset,
    .busy = busy,
    .resume = resume,
    .state = state,
    .destroy = destroy,
};

static int check_options(const char *id, const struct virtio_net_options *options)
{
    if (net_mac_is_group(options->mac)) {
        log_error("%s: the card's address must not be a group's (its first byte must be even)", id);
        return -EINVAL;
    }
    if (options->mtu &&
        (options->mtu < VIRTIO_NET_MIN_MTU || options->mtu > VIRTIO_NET_MAX_MTU)) {
        log_error("%s: an MTU of %u is outside %u to %u", id, options->mtu, VIRTIO_NET_MIN_MTU,
                  VIRTIO_NET_MAX_MTU);
        return -EINVAL;
    }
    if (options->pairs > VIRTIO_NET_MAX_PAIRS) {
        log_error("%s: %u pairs of queues are more than %u", id, options->pairs,
                  VIRTIO_NET_MAX_PAIRS);
        return -EINVAL;
    }
    return 0;
}

static int init_queues(struct virtio_net *net, const struct device_env *env, const char *id)
{
    uint16_t sizes[VIRTIO_NET_MAX_PAIRS * 2 + 1];
    unsigned n = net->max_pairs * 2;
    int error;

    for (unsigned i = 0; i < n; i++)
        sizes[i] = QUEUE_SIZE;
    sizes[n] = CTRL_QUEUE_SIZE;
    error = virtio_device_init(&net->vdev, &net_class, env, id, n + 1, sizes);
    if (!error)
        error = virtqueue_chain_init(&net->batch.pool, NET_POOL_PIECES);
    if (!error)
        error = virtqueue_chain_init(&net->taken, VIRTQUEUE_MAX_PIECES);
    return error;
}

int virtio_net_create(struct virtio_device **out, const struct device_env *env, const char *id,
                      const struct virtio_net_options *options, struct net_port **port)
{
    struct virtio_net *net;
    int error = check_options(id, options);

    if (error)
        return error;
    net = calloc(1, sizeof(*net));
    if (!net)
        return -ENOMEM;
    net->max_pairs = options->pairs ? options->pairs : 1;
    net->more.expired = on_more;
    net->poller.poll = net_tx_poll;
    net->poller.polled = net_tx_polled;
    net->tell.run = on_tell;
    error = init_queues(net, env, id);
    if (error) {
        destroy(&net->vdev);
        return error;
    }
    net->vdev.withheld = options->withheld;
    memcpy(net->mac, options->mac, 6);
    net->mtu = options->mtu;
    net->speed = options->speed ? options->speed : VIRTIO_NET_SPEED;
    net->link_up = true;
    net->port.ops = &port_ops;
    net->port.name = net->vdev.id;
    net_state_reset(&net->state, net->mac);
    loop_poller_add(env->loop, &net->poller);
    *out = &net->vdev;
    *port = &net->port;
    return 0;
}

void virtio_net_get_counters(const struct virtio_device *vdev, struct virtio_net_counters *counters)
{
    *counters = net_of((struct virtio_device *)vdev)->counters;
}
