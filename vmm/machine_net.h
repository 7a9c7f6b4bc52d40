/*
 * The options of a network card, the same on the command line and in files: rows for tables of
 * vmm/util/options.h, and what they mean to the device.
 */
#ifndef FERRY_MACHINE_NET_H
#define FERRY_MACHINE_NET_H

#include <stdbool.h>
#include <stddef.h>

#include "devices/virtio/net.h"
#include "vmm/util/options.h"

struct net_card_options {
    unsigned queues; /* pairs */
    unsigned mtu;    /* 0: not told to the guest */
    /* What is offered to the guest; some presume others, see net_card_apply(). */
    bool csum, tso, uso, ecn, mrg_rxbuf, ctrl_vq, mq, rss, announce, event_idx, indirect, packed;
};

#define NET_CARD_SWITCH(struct_, member, name_)                                                    \
    {.name = #name_, .parse = option_parse_bool, .offset = offsetof(struct_, member.name_)}
#define NET_CARD_KEYS(struct_, member)                                                             \
    {.name = "queues", .parse = option_parse_number, .offset = offsetof(struct_, member.queues),   \
     .min = 1, .max = VIRTIO_NET_MAX_PAIRS},                                                       \
    {.name = "mtu", .parse = option_parse_number, .offset = offsetof(struct_, member.mtu),         \
     .min = VIRTIO_NET_MIN_MTU, .max = VIRTIO_NET_MAX_MTU},                                        \
    NET_CARD_SWITCH(struct_, member, csum), NET_CARD_SWITCH(struct_, member, tso),                 \
    NET_CARD_SWITCH(struct_, member, uso), NET_CARD_SWITCH(struct_, member, ecn),                  \
    NET_CARD_SWITCH(struct_, member, mrg_rxbuf), NET_CARD_SWITCH(struct_, member, ctrl_vq),        \
    NET_CARD_SWITCH(struct_, member, mq), NET_CARD_SWITCH(struct_, member, rss),                   \
    NET_CARD_SWITCH(struct_, member, announce), NET_CARD_SWITCH(struct_, member, event_idx),       \
    NET_CARD_SWITCH(struct_, member, indirect), NET_CARD_SWITCH(struct_, member, packed)

/* One pair of queues, and everything offered. */
void net_card_init(struct net_card_options *card);
/* Fills in what the device wants to know, but for the address. */
void net_card_apply(const struct net_card_options *card, struct virtio_net_options *to);

#endif
