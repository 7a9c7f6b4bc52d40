/*
 * Mirrors see what they are asked for and only that; captures are files that readers understand;
 * addresses that guests use are known.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/unit/packets.h"
#include "tests/unit/switch_rig.h"
#include "vmm/util/loop.h"

TestSuite(net_switch_mirror, .init = rig_init, .fini = rig_fini, .timeout = 20);

#define MIRROR 5 /* the port of the mirrors here */

static void add_three_and_mirror(void)
{
    for (unsigned i = 0; i < 3; i++)
        rig_add_guest(i, NULL);
    rig_add(MIRROR, SWITCH_PORT_MIRROR, NULL);
}

static void mirror(const char *text)
{
    struct switch_mirror_config config;

    cr_assert_eq(switch_mirror_parse("mirror", text, &config), 0, "%s", rig_said);
    cr_assert_eq(switch_mirror_add(rig_switch, &config), 0, "%s", rig_said);
}

/* p0 to p1, p1 to p2, p2 to p0. */
static void send_round(void)
{
    for (unsigned i = 0; i < 3; i++)
        rig_send_to(i, rig_mac((i + 1) % 3));
}

/* Whether the mirror has n frames, from these senders. */
static void expect_from(unsigned n, const unsigned *senders)
{
    cr_assert_eq(rig_fakes[MIRROR].n, n, "%u frames", rig_fakes[MIRROR].n);
    for (unsigned i = 0; i < n; i++)
        cr_assert_arr_eq(rig_fakes[MIRROR].frames[i].bytes + 6, rig_mac(senders[i]), 6);
}

Test(net_switch_mirror, what_a_port_sends_is_mirrored)
{
    add_three_and_mirror();
    mirror("m,from=p1,direction=in,to=p5");
    send_round();
    expect_from(1, (unsigned[]){1});
    cr_assert_eq(rig_fakes[MIRROR].flushes, 1);
    cr_assert_eq(rig_fakes[2].n, 1);
}

Test(net_switch_mirror, what_a_port_is_sent_is_mirrored)
{
    add_three_and_mirror();
    mirror("m,from=p1,direction=out,to=p5");
    send_round();
    expect_from(1, (unsigned[]){0});
}

Test(net_switch_mirror, both_directions_are_mirrored)
{
    add_three_and_mirror();
    mirror("m,from=p1,to=p5");
    send_round();
    expect_from(2, (unsigned[]){0, 1});
}

Test(net_switch_mirror, a_frame_between_two_mirrored_ports_is_seen_once)
{
    add_three_and_mirror();
    mirror("m,from=p0+p1+p2,direction=both,to=p5");
    send_round();
    rig_send_to(0, rig_broadcast);
    expect_from(4, (unsigned[]){0, 1, 2, 0});
}

Test(net_switch_mirror, all_ports_are_meant_when_none_is_named)
{
    add_three_and_mirror();
    mirror("m,to=p5");
    send_round();
    expect_from(3, (unsigned[]){0, 1, 2});
}

Test(net_switch_mirror, what_was_dropped_is_seen_as_it_came)
{
    add_three_and_mirror();
    mirror("m,from=p0,to=p5");
    rig_send_raw(0, rig_mac(66), rig_mac(1));
    expect_from(1, (unsigned[]){66});
    cr_assert_eq(rig_dropped(0, SWITCH_DROP_SPOOFED), 1);
}

Test(net_switch_mirror, a_mirror_of_a_vlan_sees_that_vlan_and_its_tags_as_at_the_port)
{
    rig_add_guest(0, "vlan=10");
    rig_add_guest(1, "vlan=20");
    rig_add_guest(2, "trunk=10+20");
    rig_add(MIRROR, SWITCH_PORT_MIRROR, NULL);
    mirror("m,from=p2,direction=out,vlan=20,to=p5");
    rig_send_to(0, rig_broadcast);
    rig_send_to(1, rig_broadcast);
    expect_from(1, (unsigned[]){1});
    cr_assert_eq(get32(rig_fakes[MIRROR].frames[0].bytes + 12), 0x81000014);
    cr_assert_eq(rig_fakes[2].n, 2);
}

Test(net_switch_mirror, a_mirror_port_sends_nothing_and_gets_nothing_else)
{
    add_three_and_mirror();
    rig_send_raw(MIRROR, rig_mac(50), rig_mac(0));
    rig_send_to(0, rig_broadcast);
    rig_send_to(0, rig_mac(99));
    cr_assert_eq(rig_fakes[0].n, 0);
    cr_assert_eq(rig_fakes[MIRROR].n, 0);
    cr_assert_eq(rig_dropped(MIRROR, SWITCH_DROP_MIRROR), 1);
}

Test(net_switch_mirror, a_full_mirror_port_loses_copies_and_nobody_elses_frames)
{
    add_three_and_mirror();
    mirror("m,to=p5");
    rig_fakes[MIRROR].room = 1;
    for (unsigned i = 0; i < 5; i++)
        rig_send_to(0, rig_mac(1));
    cr_assert_eq(rig_fakes[1].n, 5);
    cr_assert_eq(rig_fakes[MIRROR].n, 1);
    cr_assert_eq(rig_dropped(MIRROR, SWITCH_DROP_FULL), 4);
}

Test(net_switch_mirror, mirrors_come_and_go_and_follow_their_ports)
{
    struct switch_mirror_config config;

    add_three_and_mirror();
    mirror("m,from=p0+p9,to=p5");
    cr_assert_eq(switch_mirror_parse("mirror", "m,to=p5", &config), 0);
    cr_assert_eq(switch_mirror_add(rig_switch, &config), -EEXIST);
    switch_port_remove(rig_ports[MIRROR]);
    rig_send_to(0, rig_mac(1));
    rig_add(MIRROR, SWITCH_PORT_MIRROR, NULL);
    rig_send_to(0, rig_mac(1));
    expect_from(1, (unsigned[]){0});
    rig_add_guest(9, NULL);
    rig_send_to(9, rig_mac(1));
    expect_from(2, (unsigned[]){0, 9});
    cr_assert_eq(switch_mirror_remove(rig_switch, "m"), 0);
    cr_assert_eq(switch_mirror_remove(rig_switch, "m"), -ENOENT);
    rig_send_to(0, rig_mac(1));
    cr_assert_eq(rig_fakes[MIRROR].n, 2);
}

Test(net_switch_mirror, settings_of_a_mirror_that_make_no_sense_are_refused)
{
    static const char *const wrong[] = {
        "", "m", "to=p5", "m,to=", "m,to=a b", "m,to=p5,from=a++b", "m,to=p5,direction=up",
        "m,to=p5,vlan=4095",
    };
    struct switch_mirror_config config;

    for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        cr_assert_eq(switch_mirror_parse("mirror", wrong[i], &config), -EINVAL, "%s", wrong[i]);
}

/* ---- captures ---- */

#define FILE_MAX 4096

static uint8_t file[FILE_MAX];
static size_t file_length;
static int keep_fd = -1;

static bool stopped;
static int stop_error;

static void on_stopped(void *arg, int error)
{
    (void)arg;
    stopped = true;
    stop_error = error;
}

static bool is_stopped(void *arg)
{
    (void)arg;
    return stopped;
}

static void start_capture(const char *name, int fd, unsigned snap_length)
{
    struct switch_capture_config config = {.fd = fd, .snap_length = snap_length};

    snprintf(config.name, sizeof(config.name), "%s", name);
    snprintf(config.from.ports[0], NET_NAME_MAX, "p0");
    snprintf(config.from.ports[1], NET_NAME_MAX, "p1");
    config.from.n_ports = 2;
    cr_assert_eq(switch_capture_start(rig_switch, &config), 0, "%s", rig_said);
}

static void stop_capture(void)
{
    cr_assert_eq(switch_capture_stop(rig_switch, "c", on_stopped, NULL), 0);
    cr_assert_eq(loop_run_until(rig_loop, is_stopped, NULL, 10 * RIG_SECOND), 0);
}

static void start_file(unsigned snap_length)
{
    int fd = memfd_create("capture", MFD_CLOEXEC);

    cr_assert_geq(fd, 0);
    keep_fd = dup(fd);
    start_capture("c", fd, snap_length);
}

static void read_file(void)
{
    ssize_t n = pread(keep_fd, file, sizeof(file), 0);

    cr_assert_geq(n, 0);
    file_length = (size_t)n;
    close(keep_fd);
}

static uint32_t host32(size_t at)
{
    uint32_t value;

    cr_assert_leq(at + 4, file_length);
    memcpy(&value, file + at, 4);
    return value;
}

/* The block number n (of any kind): where it starts; checks that all before it are well formed. */
static size_t block(unsigned n)
{
    size_t at = 0;

    while (n-- > 0) {
        uint32_t length = host32(at + 4);

        cr_assert_eq(length % 4, 0);
        cr_assert_eq(host32(at + length - 4), length, "the lengths of a block differ");
        at += length;
    }
    return at;
}

Test(net_switch_mirror, a_capture_is_pcapng_with_the_names_of_ports)
{
    uint32_t type, length;
    size_t at;

    for (unsigned i = 0; i < 3; i++)
        rig_add_guest(i, NULL);
    start_file(0);
    rig_send_to(0, rig_mac(1));
    rig_send_to(2, rig_mac(1));
    stop_capture();
    cr_assert_eq(stop_error, 0);
    read_file();
    cr_assert_eq(host32(0), 0x0A0D0D0A);
    cr_assert_eq(host32(8), 0x1A2B3C4D);
    /* Two interfaces, nanoseconds. */
    for (unsigned i = 0; i < 2; i++) {
        at = block(1 + i);
        cr_assert_eq(host32(at), 1);
        cr_assert_eq(host32(at + 8), 1); /* Ethernet */
        cr_assert_eq(host32(at + 16), 2 | 2 << 16);
        cr_assert_arr_eq(file + at + 20, i ? "p1" : "p0", 3);
        cr_assert_eq(host32(at + 24), 9 | 1 << 16);
        cr_assert_eq(file[at + 28], 9);
    }
    /* From p0 in; from p2 out by p1. */
    for (unsigned i = 0; i < 2; i++) {
        at = block(3 + i);
        cr_assert_eq(host32(at), 6);
        cr_assert_eq(host32(at + 8), i);
        cr_assert_eq(host32(at + 20), RIG_LENGTH);
        cr_assert_eq(host32(at + 24), RIG_LENGTH);
        cr_assert_arr_eq(file + at + 28, rig_mac(1), 6);
        cr_assert_arr_eq(file + at + 34, rig_mac(i ? 2 : 0), 6);
        cr_assert_eq(host32(at + 28 + RIG_LENGTH), 2 | 4 << 16);
        cr_assert_eq(host32(at + 32 + RIG_LENGTH), i ? 2 : 1);
    }
    /* Statistics of the interfaces, then the end. */
    type = host32(block(5));
    length = (uint32_t)block(7);
    cr_assert_eq(type, 5);
    cr_assert_eq(length, file_length);
}

Test(net_switch_mirror, a_capture_keeps_no_more_of_a_frame_than_asked)
{
    size_t at;

    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    start_file(18);
    rig_send_to(0, rig_mac(1));
    stop_capture();
    read_file();
    at = block(3);
    cr_assert_eq(host32(at + 4), 28 + 20 + 16);
    cr_assert_eq(host32(at + 20), 18);
    cr_assert_eq(host32(at + 24), RIG_LENGTH);
}

static void find_mirror(void *arg, const struct switch_mirror_info *info)
{
    *(struct switch_mirror_info *)arg = *info;
}

Test(net_switch_mirror, a_capture_whose_reader_stops_loses_frames_and_holds_up_nobody)
{
    struct switch_mirror_info info = {0};
    int fds[2];

    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    cr_assert_eq(pipe2(fds, O_CLOEXEC), 0);
    start_capture("c", fds[1], 0);
    for (unsigned i = 0; i < 10000; i++)
        rig_send_to(0, rig_mac(1));
    cr_assert_eq(rig_fakes[1].n, 10000);
    switch_mirrors_walk(rig_switch, find_mirror, &info);
    cr_assert_eq(info.frames, 10000);
    cr_assert(info.dropped > 1000 && info.dropped < 9000);
}

Test(net_switch_mirror, a_capture_that_cannot_be_written_ends_with_its_error)
{
    int fds[2];

    rig_add_guest(0, NULL);
    rig_add_guest(1, NULL);
    signal(SIGPIPE, SIG_IGN); /* as Ferry has it */
    cr_assert_eq(pipe2(fds, O_CLOEXEC), 0);
    close(fds[0]);
    start_capture("c", fds[1], 0);
    rig_send_to(0, rig_mac(1));
    stop_capture();
    cr_assert_eq(stop_error, -EPIPE);
    cr_assert_eq(rig_fakes[1].n, 1);
    cr_assert_eq(switch_capture_stop(rig_switch, "c", NULL, NULL), -ENOENT);
}

/* ---- addresses in use ---- */

static void say_arp(unsigned from, unsigned mac, uint32_t sender)
{
    struct packet p;

    make_arp_request(&p, rig_mac(mac), sender, 0x0A0000FE);
    memcpy(p.bytes + 6, rig_mac(from), 6);
    fake_port_send(&rig_fakes[from], p.bytes, p.length);
}

static unsigned addresses(unsigned port, struct switch_address list[SWITCH_ADDRESSES_MAX])
{
    return switch_port_addresses(rig_ports[port], list, SWITCH_ADDRESSES_MAX);
}

Test(net_switch_mirror, the_addresses_that_a_guest_says_are_known_the_last_first)
{
    struct switch_address list[SWITCH_ADDRESSES_MAX];

    rig_add_guest(0, NULL);
    say_arp(0, 0, 0x0A000001);
    say_arp(0, 0, 0x0A000002);
    say_arp(0, 0, 0x0A000001);
    say_arp(0, 0, 0);          /* a probe: not its own yet */
    say_arp(0, 9, 0x0A000009); /* of somebody else */
    cr_assert_eq(addresses(0, list), 2);
    cr_assert_eq(list[0].family, 4);
    cr_assert_eq(get32(list[0].bytes), 0x0A000001);
    cr_assert_eq(get32(list[1].bytes), 0x0A000002);
    cr_assert_arr_eq(list[0].mac, rig_mac(0), 6);
}

Test(net_switch_mirror, no_more_addresses_are_kept_than_there_is_room_for)
{
    struct switch_address list[SWITCH_ADDRESSES_MAX];

    rig_add_guest(0, NULL);
    for (unsigned i = 1; i <= 100; i++)
        say_arp(0, 0, 0x0A000000 + i);
    cr_assert_eq(addresses(0, list), SWITCH_ADDRESSES_MAX);
    cr_assert_eq(get32(list[0].bytes), 0x0A000064);
    cr_assert_eq(get32(list[SWITCH_ADDRESSES_MAX - 1].bytes),
                 0x0A000064 - SWITCH_ADDRESSES_MAX + 1);
}

Test(net_switch_mirror, what_a_guest_says_from_a_spoofed_address_is_not_believed)
{
    struct switch_address list[SWITCH_ADDRESSES_MAX];
    struct packet p;

    rig_add_guest(0, NULL);
    make_arp_request(&p, rig_mac(50), 0x0A000001, 0x0A0000FE);
    fake_port_send(&rig_fakes[0], p.bytes, p.length);
    cr_assert_eq(addresses(0, list), 0);
}

/* Neighbour discovery from a source about a target; type 135 or 136. */
static void say_neighbour_from(unsigned type, const uint8_t source[16],
                               const uint8_t target[16], unsigned tag, unsigned hops)
{
    uint8_t bytes[14 + 4 + 40 + 24] = {0};
    size_t at = 12;

    memcpy(bytes, rig_broadcast, 6);
    memcpy(bytes + 6, rig_mac(0), 6);
    if (tag) {
        put32(bytes + at, 0x81000000 | tag);
        at += 4;
    }
    put16(bytes + at, 0x86DD);
    at += 2;
    bytes[at] = 0x60;
    bytes[at + 6] = 58;
    bytes[at + 7] = (uint8_t)hops;
    memcpy(bytes + at + 8, source, 16);
    bytes[at + 40] = (uint8_t)type;
    memcpy(bytes + at + 48, target, 16);
    fake_port_send(&rig_fakes[0], bytes, at + 64);
}

static void say_neighbour(unsigned type, const uint8_t source[16], const uint8_t target[16],
                          unsigned tag)
{
    say_neighbour_from(type, source, target, tag, 255);
}

Test(net_switch_mirror, ipv6_addresses_are_known_by_their_vlan)
{
    static const uint8_t a[16] = {0xFE, 0x80, [15] = 1}, b[16] = {0x20, 1, [15] = 2}, none[16];
    struct switch_address list[SWITCH_ADDRESSES_MAX];

    rig_add_guest(0, "trunk=10,native=1");
    say_neighbour(135, a, b, 10);    /* a asks for b */
    say_neighbour(135, none, b, 0);  /* b is being taken */
    say_neighbour(136, a, b, 10);    /* b is told of */
    say_neighbour(134, a, b, 0);     /* neither */
    say_neighbour_from(136, b, a, 10, 254); /* through a router, which cannot be */
    cr_assert_eq(addresses(0, list), 3);
    cr_assert_arr_eq(list[0].bytes, b, 16);
    cr_assert_eq(list[0].vlan, 10);
    cr_assert_arr_eq(list[1].bytes, b, 16);
    cr_assert_eq(list[1].vlan, 0);
    cr_assert_arr_eq(list[2].bytes, a, 16);
    cr_assert_eq(list[2].family, 6);
}

Test(net_switch_mirror, an_unplugged_guest_is_forgotten)
{
    struct switch_address list[SWITCH_ADDRESSES_MAX];

    rig_add_guest(0, NULL);
    say_arp(0, 0, 0x0A000001);
    net_port_disconnect(&rig_fakes[0].port);
    cr_assert_eq(addresses(0, list), 0);
}

/* ---- looking in ---- */

struct seen {
    unsigned registered, learnt;
};

static void count_entry(void *arg, const struct switch_fdb_entry *entry)
{
    struct seen *seen = arg;

    if (entry->registered) {
        seen->registered++;
        return;
    }
    seen->learnt++;
    cr_assert_eq(entry->vlan, 20);
    cr_assert_eq(entry->age_s, 7);
    cr_assert_arr_eq(entry->mac, rig_mac(90), 6);
    cr_assert_eq(entry->port, rig_ports[1]);
}

Test(net_switch_mirror, the_fdb_tells_where_addresses_are_and_since_when)
{
    struct seen seen = {0};

    rig_add_guest(0, "vlan=20");
    rig_add_guest(1, "vlan=20,learn=on");
    rig_send_raw(1, rig_mac(90), rig_mac(0));
    rig_now += 7 * RIG_SECOND;
    switch_fdb_walk(rig_switch, count_entry, &seen);
    cr_assert_eq(seen.registered, 2);
    cr_assert_eq(seen.learnt, 1);
    rig_now += SWITCH_AGE_DEFAULT * RIG_SECOND;
    seen = (struct seen){0};
    switch_fdb_walk(rig_switch, count_entry, &seen);
    cr_assert_eq(seen.learnt, 0);
}

Test(net_switch_mirror, every_reason_for_a_drop_has_a_name)
{
    for (unsigned i = 0; i < SWITCH_DROPS; i++) {
        const char *name = switch_drop_name((enum switch_drop)i);

        cr_assert_not_null(name);
        for (unsigned k = 0; k < i; k++)
            cr_assert_str_neq(name, switch_drop_name((enum switch_drop)k));
    }
}
