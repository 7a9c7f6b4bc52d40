/*
 * The state of a network card's receive filter (net/receive_filter.h) as it migrates.
 */
#ifndef FERRY_VIRTIO_NET_FILTER_H
#define FERRY_VIRTIO_NET_FILTER_H

#include "net/receive_filter.h"
#include "vmm/util/state.h"

/* Of a struct net_receive_filter, but for its VLANs. */
extern const struct state_desc net_filter_state_desc;

/* As after power-on: own address and broadcast, nothing else. */
void net_filter_reset(struct net_receive_filter *filter, const uint8_t mac[6]);
/* Whether a state that was read is one: 0 or -EINVAL, not logged. */
int net_filter_check(const struct net_receive_filter *filter);

#endif
