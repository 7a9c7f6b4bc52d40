/*
 * Frames of any bytes, in any pieces, into a switch with ports of several modes and with rules that
 * change: nothing reads beyond a frame, no frame gets into a VLAN that its port may not reach, what
 * rules deny by the model does not arrive and what they allow does, and every frame is accounted
 * for.
 */
#include <string.h>

#include "net/flow.h"
#include "net/receive_filter.h"
#include "net/switch.h"
#include "tests/fuzz/fuzz.h"
#include "tests/rule_model.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define PORTS 5
#define HEADER_LOOKED_AT 128u

static const struct {
    const char *name, *settings;
    int kind;
} kinds[PORTS] = {
    {"p0", "vlan=10", SWITCH_PORT_GUEST},
    {"p1", "trunk=10-20,native=11,spoof=on", SWITCH_PORT_GUEST},
    {"p2", "vlan=12,vlan-mode=dot1q-tunnel,spoof=on,priority-tags=on", SWITCH_PORT_GUEST},
    {"p3", "trunk=all,learn=on", SWITCH_PORT_UPLINK},
    {"p4", "vlan=10,isolated=on,spoof=on,promisc=on", SWITCH_PORT_GUEST},
};

static const char *const rule_texts[] = {
    "9,proto=tcp,dport=22,action=deny",
    "8,src=10.0.0.0/8,proto=udp,sport=1000-2000,action=deny",
    "7,in=p1,type=arp,action=deny",
    "6,vlan=12,src-mac=02:00:00:00:00:00/ff:00:00:00:00:00,action=deny",
    "5,proto=tcp,flags=+syn-ack,dst=2001:db8::/32,action=deny",
    "4,fragment=later,action=deny",
    "3,proto=icmp6,icmp-type=134,action=deny",
    "2,type=0x88cc,action=deny",
};
#define RULES (sizeof(rule_texts) / sizeof(rule_texts[0]))

struct end {
    struct net_port port;
    unsigned got;
    uint8_t sum;
};

static struct rule rules[RULES];
static struct end ends[PORTS];
static struct switch_port *ports[PORTS];
static struct net_switch *sw;
static uint64_t now = 1000000000000u;

/* Reads all of each frame, as a receiver would. */
static unsigned deliver(struct net_port *port, const struct net_frame *frames, unsigned n)
{
    struct end *end = (struct end *)port;

    for (unsigned i = 0; i < n; i++) {
        size_t length = 0;

        for (unsigned k = 0; k < frames[i].iovcnt; k++) {
            const uint8_t *bytes = frames[i].iov[k].iov_base;

            for (size_t b = 0; b < frames[i].iov[k].iov_len; b++)
                end->sum += bytes[b];
            length += frames[i].iov[k].iov_len;
        }
        FUZZ_CHECK(length == frames[i].length);
        FUZZ_CHECK(length >= NET_FRAME_MIN && length <= NET_FRAME_MAX);
    }
    end->got += n;
    return n;
}

static const struct net_port_ops ops = {.deliver = deliver};

static uint64_t fuzz_now(void)
{
    return now;
}

static void quiet(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
}

static void add_port(unsigned i)
{
    struct net_receive_filter filter = {.mac = {2, 0, 0, 0, 0, (uint8_t)i}};
    struct switch_port_config config = {.kind = kinds[i].kind};

    memcpy(config.name, kinds[i].name, 3);
    FUZZ_CHECK(switch_port_config_update("fuzz", kinds[i].settings, &config) == 0);
    FUZZ_CHECK(switch_port_add(sw, &config, &ports[i]) == 0);
    ends[i] = (struct end){.port = {.ops = &ops, .name = "end", .accepts = UINT32_MAX}};
    net_port_connect(switch_port_end(ports[i]), &ends[i].port);
    net_port_tell_filter(&ends[i].port, &filter);
}

static void start(void)
{
    static struct loop *loop;
    const struct switch_config config = {
        .name = "fuzz", .fdb_max = 32, .flows_max = 64, .now_ns = fuzz_now,
    };

    log_set_sink(quiet);
    if (!loop)
        FUZZ_CHECK(loop_create(&loop, 8) == 0);
    FUZZ_CHECK(switch_create(&sw, loop, &config) == 0);
    for (unsigned i = 0; i < RULES; i++)
        FUZZ_CHECK(rule_parse("fuzz", rule_texts[i], &rules[i]) == 0);
    for (unsigned i = 0; i < PORTS; i++)
        add_port(i);
}

static uint64_t all_drops(void)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < PORTS; i++) {
        struct switch_port_info info;

        switch_port_get_info(ports[i], &info);
        for (unsigned d = 0; d < SWITCH_DROPS; d++)
            sum += info.counters.dropped[d];
    }
    return sum;
}

/* The VLAN that a frame is in that came by the port, and how long its tag is; -1: none. */
static int vlan_of(unsigned port, const uint8_t *frame, size_t size, size_t *tag)
{
    unsigned type = frame[12] << 8 | frame[13], vid = 0;
    bool tagged = (type == 0x8100 || type == 0x88A8) && size >= 18;

    *tag = 0;
    if (port == 2)
        return 12;
    if (tagged) {
        vid = (frame[14] << 8 | frame[15]) & 0xFFF;
        *tag = 4;
    }
    if (port == 0 || port == 4)
        return vid == 0 ? 10 : -1;
    if (port == 1 && vid == 0)
        vid = 11;
    return (port == 1 ? vid >= 10 && vid <= 20 : vid < 4095) ? (int)vid : -1;
}

static bool reaches(unsigned port, int vlan)
{
    static const int only[PORTS] = {10, -1, 12, -1, 10};

    return vlan >= 0 &&
           (only[port] == vlan || port == 3 || (port == 1 && vlan >= 10 && vlan <= 20));
}

/* What the rules say about a frame: 1 it is denied, 0 it is not, -1 they cannot tell. */
static int denied(unsigned n_rules, unsigned port, const uint8_t *frame, size_t size, int vlan,
                  size_t tag)
{
    size_t at_hand = size < HEADER_LOOKED_AT ? size : HEADER_LOOKED_AT;
    const struct rule *list[RULES];
    struct flow_key key;

    for (unsigned i = 0; i < n_rules; i++)
        list[i] = &rules[i];
    if (flow_read(&key, (uint16_t)port, (uint16_t)vlan, frame, frame + 12 + tag,
                  at_hand - 12 - tag, size - 12 - tag) != FLOW_OK)
        return -1;
    return model_find(list, n_rules, &key, kinds[port].name) != UINT32_MAX;
}

static void send(unsigned port, unsigned cut, unsigned n_rules, const uint8_t *data, size_t size)
{
    struct iovec pieces[3] = {{(void *)data, size}};
    struct net_frame frame = {.iov = pieces, .iovcnt = 1, .length = size};
    unsigned before[PORTS], got = 0;
    uint64_t drops = all_drops();
    size_t tag = 0;
    int vlan = size >= NET_FRAME_MIN ? vlan_of(port, data, size, &tag) : -1;
    int deny = vlan >= 0 ? denied(n_rules, port, data, size, vlan, tag) : -1;

    if (cut && cut < size) {
        pieces[0].iov_len = cut;
        pieces[1] = (struct iovec){(void *)(data + cut), 0};
        pieces[2] = (struct iovec){(void *)(data + cut), size - cut};
        frame.iovcnt = 3;
    }
    for (unsigned i = 0; i < PORTS; i++)
        before[i] = ends[i].got;
    FUZZ_CHECK(net_port_send(&ends[port].port, &frame, 1) == 1);
    net_port_flush(&ends[port].port);
    for (unsigned i = 0; i < PORTS; i++) {
        unsigned more = ends[i].got - before[i];

        FUZZ_CHECK(more <= 1 && (more == 0 || (i != port && reaches(i, vlan))));
        got += more;
    }
    FUZZ_CHECK(got == 0 || deny != 1);
    FUZZ_CHECK((got > 0) != (all_drops() > drops)); /* it went somewhere, or was counted once */
    FUZZ_CHECK(got > 0 || all_drops() == drops + 1);
    /* A broadcast from the uplink that is not denied reaches the trunk. */
    if (port == 3 && deny == 0 && memcmp(data, "\377\377\377\377\377\377", 6) == 0 &&
        !(data[6] & 1) && reaches(1, vlan) && size <= 1500)
        FUZZ_CHECK(ends[1].got == before[1] + 1);
}

/* Records of a head of 3 bytes and a frame. Each frame has memory of its own length. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    unsigned n_rules = 0;

    start();
    while (size >= 3) {
        unsigned length = data[1] | (data[0] & 8u) << 5, port = (data[0] & 7) % PORTS;

        if (data[0] & 0x80) {
            n_rules = (unsigned)(data[1] % (RULES + 1));
            FUZZ_CHECK(switch_rules_set(sw, rules, n_rules) == 0);
            now += data[2] * 1000000000ull;
            data += 3;
            size -= 3;
            continue;
        }
        if (length > size - 3)
            length = (unsigned)(size - 3);
        send(port, data[2], n_rules, data + 3, length);
        data += 3 + length;
        size -= 3 + length;
    }
    switch_destroy(sw);
    return 0;
}
