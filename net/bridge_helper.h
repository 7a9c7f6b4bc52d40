/*
 * qemu-bridge-helper: a small privileged program that makes a tap on a bridge for who may not, if
 * the host's owner allowed it for that bridge (/etc/qemu/bridge.conf).
 */
#ifndef FERRY_NET_BRIDGE_HELPER_H
#define FERRY_NET_BRIDGE_HELPER_H

/* The tap's descriptor. -ENOENT, not logged: it is not installed. -EPERM and others, logged: it
 * failed, and said why on standard error. Blocks for as long as it runs, which is milliseconds. */
int bridge_helper_open(const char *who, const char *bridge);

#endif
