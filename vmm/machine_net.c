/*
 * The options of a network card: defaults, and which features each switch takes away.
 *
 * Plain data; builds nothing. Any thread.
 *
 * Texts: virtio 1.2 §5.1.3.1 (which feature presumes which).
 */
#include "vmm/machine_net.h"

#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <linux/virtio_ring.h>

#define BIT(n) (1ull << (n))
/* Younger than some headers of the kernel's: VIRTIO_NET_F_GUEST_USO4, _GUEST_USO6, _HOST_USO. */
#define USO_BITS (BIT(54) | BIT(55) | BIT(56))
#define ECN_BITS (BIT(VIRTIO_NET_F_HOST_ECN) | BIT(VIRTIO_NET_F_GUEST_ECN))
#define TSO_BITS                                                                                   \
    (BIT(VIRTIO_NET_F_HOST_TSO4) | BIT(VIRTIO_NET_F_HOST_TSO6) | BIT(VIRTIO_NET_F_GUEST_TSO4) |    \
     BIT(VIRTIO_NET_F_GUEST_TSO6) | ECN_BITS)
#define CSUM_BITS (BIT(VIRTIO_NET_F_CSUM) | BIT(VIRTIO_NET_F_GUEST_CSUM) | TSO_BITS | USO_BITS)
#define RSS_BITS (BIT(VIRTIO_NET_F_RSS) | BIT(VIRTIO_NET_F_HASH_REPORT))
#define MQ_BITS (BIT(VIRTIO_NET_F_MQ) | RSS_BITS)
#define ANNOUNCE_BITS BIT(VIRTIO_NET_F_GUEST_ANNOUNCE)
#define CTRL_BITS                                                                                  \
    (BIT(VIRTIO_NET_F_CTRL_VQ) | BIT(VIRTIO_NET_F_CTRL_RX) | BIT(VIRTIO_NET_F_CTRL_VLAN) |         \
     BIT(VIRTIO_NET_F_CTRL_RX_EXTRA) | BIT(VIRTIO_NET_F_CTRL_MAC_ADDR) |                           \
     BIT(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) | MQ_BITS | ANNOUNCE_BITS)

/* Each with all that presumes it. */
static const struct {
    size_t offset;
    uint64_t bits;
} switches[] = {
#define SWITCH(name_, bits_) {offsetof(struct net_card_options, name_), bits_}
    SWITCH(csum, CSUM_BITS),
    SWITCH(tso, TSO_BITS),
    SWITCH(uso, USO_BITS),
    SWITCH(ecn, ECN_BITS),
    SWITCH(mrg_rxbuf, BIT(VIRTIO_NET_F_MRG_RXBUF)),
    SWITCH(ctrl_vq, CTRL_BITS),
    SWITCH(mq, MQ_BITS),
    SWITCH(rss, RSS_BITS),
    SWITCH(announce, ANNOUNCE_BITS),
    SWITCH(event_idx, BIT(VIRTIO_RING_F_EVENT_IDX)),
    SWITCH(indirect, BIT(VIRTIO_RING_F_INDIRECT_DESC)),
    SWITCH(packed, BIT(VIRTIO_F_RING_PACKED)),
#undef SWITCH
};
#define N_SWITCHES (sizeof(switches) / sizeof(switches[0]))

static bool *switch_of(const struct net_card_options *card, unsigned i)
{
    return (bool *)((char *)card + switches[i].offset);
}

void net_card_init(struct net_card_options *card)
{
    *card = (struct net_card_options){.queues = 1};
    for (unsigned i = 0; i < N_SWITCHES; i++)
        *switch_of(card, i) = true;
}

void net_card_apply(const struct net_card_options *card, struct virtio_net_options *to)
{
    to->pairs = card->queues;
    to->mtu = (uint16_t)card->mtu;
    to->withheld = 0;
    for (unsigned i = 0; i < N_SWITCHES; i++)
        to->withheld |= *switch_of(card, i) ? 0 : switches[i].bits;
}
