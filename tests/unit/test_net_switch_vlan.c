/*
 * VLANs of the switch: every mode of port against every other, with each kind of tag; priorities;
 * what putting a tag in or out does to the rest of a frame.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "net/vlan.h"
#include "tests/unit/packets.h"
#include "tests/unit/switch_rig.h"

TestSuite(net_switch_vlan, .init = rig_init, .fini = rig_fini, .timeout = 20);

/* ---- frames by their tags ---- */

#define NO_TAG 0u
#define TAG(tpid, tci) ((unsigned)(tpid) << 16 | (tci))
#define C(tci) TAG(0x8100, tci)
#define S(tci) TAG(0x88A8, tci)

#define PAYLOAD 46

/* A frame with up to two tags; returns its length. */
static size_t make(uint8_t *bytes, unsigned outer, unsigned inner)
{
    unsigned tags[] = {outer, inner};
    size_t at = 12;

    memcpy(bytes, rig_broadcast, 6);
    memcpy(bytes + 6, rig_mac(0), 6);
    for (unsigned i = 0; i < 2; i++) {
        if (tags[i] == NO_TAG)
            continue;
        put32(bytes + at, tags[i]);
        at += 4;
    }
    put16(bytes + at, 0x88B5);
    for (unsigned i = 0; i < PAYLOAD; i++)
        bytes[at + 2 + i] = (uint8_t)(i + 1);
    return at + 2 + PAYLOAD;
}

static void send_tagged(unsigned outer, unsigned inner)
{
    uint8_t bytes[100];
    size_t length = make(bytes, outer, inner);

    fake_port_send(&rig_fakes[0], bytes, length);
}

/* The last frame that port 1 got is that one, wholly. */
static void expect(unsigned outer, unsigned inner, const char *what)
{
    const struct fake_frame *frame = &rig_fakes[1].frames[0];
    uint8_t bytes[100];
    size_t length = make(bytes, outer, inner);

    cr_assert_eq(rig_fakes[1].n, 1, "%s: did not arrive", what);
    cr_assert_eq(frame->meta.length, length, "%s: %zu bytes", what, frame->meta.length);
    cr_assert_arr_eq(frame->bytes, bytes, length, "%s", what);
}

static void expect_nothing(const char *what)
{
    cr_assert_eq(rig_fakes[1].n, 0, "%s: arrived", what);
}

/* ---- every mode against every other ---- */

static const char *const modes[] = {
    "vlan=10",                                         /* access */
    "trunk=10-20",
    "trunk=10-20,native=10,vlan-mode=native-tagged",
    "trunk=10-20,native=10",                           /* native-untagged */
    "vlan=10,vlan-mode=dot1q-tunnel",
};
enum { ACCESS, TRUNK, NATIVE_TAGGED, NATIVE_UNTAGGED, TUNNEL, MODES };

/* In VLAN 10, with what priority and kind of tag, after it came in by a mode; the rest is
 * payload. */
struct inside {
    bool admitted;
    unsigned vlan, priority, tpid, inner;
};

/* By the table of docs/SWITCH.md. */
static struct inside come_in(unsigned mode, unsigned tag)
{
    unsigned tpid = tag >> 16, vid = tag & 0xFFF, priority = tag & 0xF000;

    if (mode == TUNNEL)
        return (struct inside){true, 10, priority, 0x88A8, tag};
    tpid = tag == NO_TAG ? 0x8100 : tpid;
    if (mode == ACCESS)
        return (struct inside){vid == 0, 10, priority, tpid, NO_TAG};
    if (vid == 0 && mode != TRUNK)
        vid = 10;
    return (struct inside){vid >= 10 && vid <= 20, vid, priority, tpid, NO_TAG};
}

static void expect_out(unsigned mode, const struct inside *inside, const char *what)
{
    unsigned tag = TAG(inside->tpid, inside->priority | inside->vlan);
    bool one = mode == ACCESS || mode == TUNNEL;

    if (!inside->admitted || (one && inside->vlan != 10))
        expect_nothing(what);
    else if (one || (mode == NATIVE_UNTAGGED && inside->vlan == 10 && inside->inner == NO_TAG))
        expect(inside->inner, NO_TAG, what);
    else
        expect(tag, inside->inner, what);
}

Test(net_switch_vlan, every_mode_talks_to_every_other_as_the_table_says)
{
    static const unsigned tags[] = {
        NO_TAG, C(10), C(0xA00A), C(15), C(21), C(9), C(4095), C(0x6000), S(10), S(0xF00F), S(21),
    };
    char what[160];

    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    for (unsigned from = 0; from < MODES; from++) {
        for (unsigned to = 0; to < MODES; to++) {
            struct switch_port_config config = *switch_port_settings(rig_ports[0]);

            cr_assert_eq(switch_port_config_update("in", modes[from], &config), 0);
            cr_assert_eq(switch_port_configure(rig_ports[0], &config), 0);
            config = *switch_port_settings(rig_ports[1]);
            cr_assert_eq(switch_port_config_update("out", modes[to], &config), 0);
            cr_assert_eq(switch_port_configure(rig_ports[1], &config), 0);
            for (unsigned i = 0; i < sizeof(tags) / sizeof(tags[0]); i++) {
                struct inside inside = come_in(from, tags[i]);

                snprintf(what, sizeof(what), "%s to %s, tag %08x", modes[from], modes[to], tags[i]);
                fake_port_clear(&rig_fakes[1]);
                send_tagged(tags[i], NO_TAG);
                expect_out(to, &inside, what);
            }
        }
    }
}

Test(net_switch_vlan, a_port_without_settings_takes_no_tags)
{
    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    send_tagged(C(10), NO_TAG);
    expect_nothing("tagged");
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_VLAN), 1);
    send_tagged(C(0x6000), NO_TAG); /* of VLAN 0: a priority */
    expect(NO_TAG, NO_TAG, "priority tag");
}

Test(net_switch_vlan, an_uplink_without_settings_carries_all_vlans)
{
    rig_add_uplink(0, NULL);
    rig_add_uplink(2, NULL);
    rig_add_guest(1, "vlan=4094");
    send_tagged(C(4094), NO_TAG);
    expect(NO_TAG, NO_TAG, "VLAN 4094");
}

Test(net_switch_vlan, a_native_port_without_a_list_carries_all_vlans_but_0)
{
    rig_add_guest(0, "trunk=all");
    rig_add_guest(1, "native=5");
    send_tagged(NO_TAG, NO_TAG);
    expect_nothing("VLAN 0");
    send_tagged(C(9), NO_TAG);
    expect(C(9), NO_TAG, "VLAN 9");
}

Test(net_switch_vlan, a_tunnel_takes_tagged_frames_whole_and_gives_them_back)
{
    rig_add_guest(0, modes[TUNNEL]);
    rig_add_guest(1, modes[TRUNK]);
    send_tagged(C(0x2005), C(7));
    cr_assert_eq(rig_fakes[1].n, 1);
    /* The outer tag has the customer's priority. */
    cr_assert_eq(get32(rig_fakes[1].frames[0].bytes + 12), S(0x200A));
    cr_assert_eq(get32(rig_fakes[1].frames[0].bytes + 16), C(0x2005));
    cr_assert_eq(get32(rig_fakes[1].frames[0].bytes + 20), C(7));
}

Test(net_switch_vlan, a_service_tag_comes_off_at_the_tunnel)
{
    rig_add_guest(0, modes[TRUNK]);
    rig_add_guest(1, modes[TUNNEL]);
    send_tagged(S(10), C(0x2005));
    expect(C(0x2005), NO_TAG, "customer's frame");
}

Test(net_switch_vlan, a_priority_may_be_kept_by_a_tag_of_vlan_0)
{
    rig_add_guest(0, modes[TRUNK]);
    rig_add_guest(1, "vlan=10,priority-tags=on");
    send_tagged(C(0xA00A), NO_TAG);
    expect(C(0xA000), NO_TAG, "with a priority");
    fake_port_clear(&rig_fakes[1]);
    send_tagged(C(10), NO_TAG);
    expect(NO_TAG, NO_TAG, "without one");
}

Test(net_switch_vlan, a_priority_survives_from_an_access_port_to_a_trunk)
{
    rig_add_guest(0, "vlan=10");
    rig_add_guest(1, "trunk=10");
    send_tagged(C(0xE000), NO_TAG);
    expect(C(0xE00A), NO_TAG, "priority 7");
}

/* Behind a priority tag, which is none of a VLAN's, a guest may have one of any VLAN's. */
Test(net_switch_vlan, a_tag_behind_a_priority_tag_does_not_become_the_frames_own_at_a_trunk)
{
    rig_add_guest(0, NULL);
    rig_add_uplink(1, NULL);
    send_tagged(C(0), C(20));
    expect(C(0), C(20), "from VLAN 0 to an uplink");
}

Test(net_switch_vlan, a_tag_behind_a_priority_tag_does_not_become_the_frames_own_at_a_native_port)
{
    rig_add_guest(0, "vlan=10");
    rig_add_guest(1, modes[NATIVE_UNTAGGED]);
    send_tagged(C(0xE000), S(20));
    expect(C(0xE00A), S(20), "from VLAN 10, where it is native");
}

Test(net_switch_vlan, a_tag_behind_another_stays_payload_at_an_access_port)
{
    rig_add_guest(0, modes[TRUNK]);
    rig_add_guest(1, "vlan=10");
    send_tagged(C(10), C(20));
    expect(C(20), NO_TAG, "with what was in it");
}

Test(net_switch_vlan, a_tag_without_room_for_it_is_malformed)
{
    uint8_t bytes[100];

    rig_add_guest(0, modes[TRUNK]);
    rig_add_guest(1, modes[TRUNK]);
    make(bytes, C(10), NO_TAG);
    fake_port_send(&rig_fakes[0], bytes, 16);
    fake_port_send(&rig_fakes[0], bytes, 17);
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_MALFORMED), 2);
    fake_port_send(&rig_fakes[0], bytes, 18);
    cr_assert_eq(rig_fakes[1].n, 1);
}

Test(net_switch_vlan, a_frame_too_long_with_its_tag_is_dropped_and_counted)
{
    uint8_t *bytes = calloc(1, NET_FRAME_MAX);

    rig_add_guest(0, "vlan=10");
    rig_add_guest(1, "trunk=10");
    make(bytes, NO_TAG, NO_TAG);
    fake_port_send(&rig_fakes[0], bytes, NET_FRAME_MAX - 3);
    cr_assert_eq(rig_fakes[1].n, 0);
    cr_assert_eq(rig_dropped(1, SWITCH_DROP_TOO_LONG), 1);
    fake_port_send(&rig_fakes[0], bytes, NET_FRAME_MAX - 4);
    cr_assert_eq(rig_fakes[1].frames[0].meta.length, NET_FRAME_MAX);
    free(bytes);
}

/* ---- offloads ---- */

static void send_meta(unsigned outer, uint16_t csum_start)
{
    uint8_t bytes[100];
    size_t length = make(bytes, outer, NO_TAG);
    struct iovec piece = {bytes, length};
    struct net_frame frame = {
        .iov = &piece, .iovcnt = 1, .length = length, .needs_csum = true,
        .csum_start = csum_start, .csum_offset = 16, .hdr_len = 54,
    };

    net_port_send(&rig_fakes[0].port, &frame, 1);
}

Test(net_switch_vlan, where_a_checksum_starts_moves_with_the_tag)
{
    rig_add_guest(0, "trunk=10-20,native=10");
    rig_add_guest(1, "vlan=10");
    rig_add_guest(2, "trunk=10");
    send_meta(NO_TAG, 34);
    cr_assert_eq(rig_fakes[1].frames[0].meta.csum_start, 34);
    cr_assert_eq(rig_fakes[2].frames[0].meta.csum_start, 38);
    cr_assert_eq(rig_fakes[2].frames[0].meta.hdr_len, 58);
    cr_assert_eq(rig_fakes[2].frames[0].meta.csum_offset, 16);
    send_meta(C(10), 38);
    cr_assert_eq(rig_fakes[1].frames[1].meta.csum_start, 34);
    cr_assert_eq(rig_fakes[1].frames[1].meta.hdr_len, 50);
    cr_assert_eq(rig_fakes[2].frames[1].meta.csum_start, 38);
}

Test(net_switch_vlan, a_checksum_that_starts_within_the_link_layer_is_malformed)
{
    rig_add_guest(0, "trunk=10");
    rig_add_guest(1, "vlan=10");
    send_meta(C(10), 17);
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_MALFORMED), 1);
    send_meta(C(10), 18);
    cr_assert_eq(rig_fakes[1].n, 1);
}

/* ---- sets ---- */

static const struct option_key key = {.name = "trunk"};

Test(net_switch_vlan, a_set_is_written_as_it_was_read)
{
    static const char *const texts[] = {"0", "10-20", "1+3+5-7", "0-4094", "4094"};
    struct vlan_set set;
    char text[100];

    for (unsigned i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        cr_assert_eq(vlan_parse_set(&key, texts[i], &set), 0);
        vlan_format_set(&set, text, sizeof(text));
        cr_assert_str_eq(text, texts[i]);
    }
    cr_assert_eq(vlan_parse_set(&key, "all", &set), 0);
    vlan_format_set(&set, text, sizeof(text));
    cr_assert_str_eq(text, "0-4094");
    cr_assert_eq(vlan_parse_set(&key, "1,3", &set), 0);
}

Test(net_switch_vlan, a_set_that_is_none_is_refused)
{
    static const char *const texts[] = {"", "-", "1-", "-1", "4095", "20-10", "1++2", "1+", "a",
                                        "99999999999", "1 2"};
    struct vlan_set set;

    for (unsigned i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        cr_assert_eq(vlan_parse_set(&key, texts[i], &set), -EINVAL, "%s", texts[i]);
}
