/*
 * A switch with fake ports plugged into it, for tests: one at a time, with a clock that stands
 * still.
 */
#ifndef FERRY_TEST_SWITCH_RIG_H
#define FERRY_TEST_SWITCH_RIG_H

#include "net/switch.h"
#include "tests/unit/fake_port.h"

#define RIG_PORTS 24
#define RIG_SECOND 1000000000ull
#define RIG_LENGTH 60 /* of the frames that are sent by these */

extern struct loop *rig_loop;
extern struct net_switch *rig_switch;
extern struct fake_port *rig_fakes;               /* plugged into rig_ports[] */
extern struct switch_port *rig_ports[RIG_PORTS];
extern uint64_t rig_now;                          /* the switch's clock */
extern const uint8_t rig_broadcast[6];
extern char rig_said[400];                        /* the last message */

/* A switch that learns 16 addresses at most. */
void rig_init(void);
void rig_fini(void);

/* The address 02:00:00:00:00:i. */
const uint8_t *rig_mac(unsigned i);

/* Adds port i, named "pI", with settings as a person writes them or NULL; plugs a fake in. A
 * guest's has the address rig_mac(i). */
void rig_add(unsigned i, int kind, const char *settings);
void rig_add_guest(unsigned i, const char *settings);
void rig_add_uplink(unsigned i, const char *settings);

/* Sends, by port `from`, a frame of a type that nobody knows; the second from rig_mac(from). */
void rig_send_raw(unsigned from, const uint8_t src[6], const uint8_t dst[6]);
void rig_send_to(unsigned from, const uint8_t dst[6]);

struct switch_port_info rig_info(unsigned port);
uint64_t rig_dropped(unsigned port, enum switch_drop why);
/* Of all ports and reasons. */
uint64_t rig_dropped_all(void);

/* Replaces the rules; texts end with NULL. */
void rig_rules(const char *const *texts);

#endif
