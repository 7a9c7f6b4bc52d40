/*
 * A switch with fake ports. One thread; one rig in a process, as Criterion gives each test its own.
 */
#include "tests/unit/switch_rig.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/packets.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

struct loop *rig_loop;
struct net_switch *rig_switch;
struct fake_port *rig_fakes;
struct switch_port *rig_ports[RIG_PORTS];
uint64_t rig_now;
const uint8_t rig_broadcast[6] = {0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};
char rig_said[400];

static uint64_t fake_now(void)
{
    return rig_now;
}

static void keep(enum log_level level, const char *line)
{
    (void)level;
    snprintf(rig_said, sizeof(rig_said), "%s", line);
}

void rig_init(void)
{
    const struct switch_config config = {.name = "lab0", .fdb_max = 16, .now_ns = fake_now};

    rig_now = 1000 * RIG_SECOND;
    log_set_sink(keep);
    cr_assert_eq(loop_create(&rig_loop, 8), 0);
    cr_assert_eq(switch_create(&rig_switch, rig_loop, &config), 0);
    rig_fakes = calloc(RIG_PORTS, sizeof(*rig_fakes));
    cr_assert_not_null(rig_fakes);
}

void rig_fini(void)
{
    switch_destroy(rig_switch);
    loop_destroy(rig_loop);
    free(rig_fakes);
}

const uint8_t *rig_mac(unsigned i)
{
    static uint8_t macs[256][6];

    memcpy(macs[i], (uint8_t[6]){0x02, 0, 0, 0, 0, (uint8_t)i}, 6);
    return macs[i];
}

void rig_add(unsigned i, int kind, const char *settings)
{
    struct switch_port_config config = {.kind = kind};

    snprintf(config.name, sizeof(config.name), "p%u", i);
    if (settings)
        cr_assert_eq(switch_port_config_update("test", settings, &config), 0, "%s", rig_said);
    cr_assert_eq(switch_port_add(rig_switch, &config, &rig_ports[i]), 0, "%s", rig_said);
    fake_port_init(&rig_fakes[i], "fake");
    net_port_connect(switch_port_end(rig_ports[i]), &rig_fakes[i].port);
}

void rig_add_guest(unsigned i, const char *settings)
{
    rig_add(i, SWITCH_PORT_GUEST, settings);
    fake_port_say_mac(&rig_fakes[i], rig_mac(i));
}

void rig_add_uplink(unsigned i, const char *settings)
{
    rig_add(i, SWITCH_PORT_UPLINK, settings);
}

void rig_send_raw(unsigned from, const uint8_t src[6], const uint8_t dst[6])
{
    uint8_t bytes[RIG_LENGTH] = {0};

    memcpy(bytes, dst, 6);
    memcpy(bytes + 6, src, 6);
    put16(bytes + 12, 0x88B5);
    bytes[14] = 0x5A;
    fake_port_send(&rig_fakes[from], bytes, sizeof(bytes));
}

void rig_send_to(unsigned from, const uint8_t dst[6])
{
    rig_send_raw(from, rig_mac(from), dst);
}

struct switch_port_info rig_info(unsigned port)
{
    struct switch_port_info info;

    switch_port_get_info(rig_ports[port], &info);
    return info;
}

uint64_t rig_dropped(unsigned port, enum switch_drop why)
{
    return rig_info(port).counters.dropped[why];
}

uint64_t rig_dropped_all(void)
{
    const struct switch_port *port = NULL;
    uint64_t n = 0;

    while ((port = switch_port_next(rig_switch, port)) != NULL) {
        struct switch_port_info info;

        switch_port_get_info(port, &info);
        for (unsigned i = 0; i < SWITCH_DROPS; i++)
            n += info.counters.dropped[i];
    }
    return n;
}

void rig_rules(const char *const *texts)
{
    static struct rule rules[32];
    unsigned n = 0;

    for (; texts[n]; n++)
        cr_assert_eq(rule_parse("rule", texts[n], &rules[n]), 0, "%s", rig_said);
    cr_assert_eq(switch_rules_set(rig_switch, rules, n), 0, "%s", rig_said);
}
