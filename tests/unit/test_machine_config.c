/*
 * The machine's configuration: what is filled in when nothing was said, and what only the whole
 * can tell to be wrong. What single options take is in test_options.c and tests/cli/.
 */
#include <criterion/criterion.h>
#include <arpa/inet.h>
#include <errno.h>
#include <linux/virtio_net.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vmm/machine_config.h"
#include "vmm/util/log.h"

static struct machine_config config;
static char last_line[1024];

static void remember(enum log_level level, const char *line)
{
    (void)level;
    snprintf(last_line, sizeof(last_line), "%s", line);
}

static void set_up(void)
{
    log_set_sink(remember);
    machine_config_init(&config);
    config.kernel = strdup("vmlinuz");
}

static void tear_down(void)
{
    machine_config_fini(&config);
}

TestSuite(machine_config, .init = set_up, .fini = tear_down);

Test(machine_config, defaults_are_those_of_the_help_page)
{
    cr_assert_eq(machine_config_finish(&config), 0);
    cr_assert_eq(config.cpus, 1);
    cr_assert_eq(config.memory.size, 512 * MIB);
    cr_assert_eq(config.grace_s, 30);
    cr_assert_eq(config.console, CONSOLE_SERIAL);
    cr_assert_eq(config.decompress, DECOMPRESS_AUTO);
    cr_assert_not(config.no_reboot);
}

Test(machine_config, a_guest_without_a_name_is_called_by_the_process)
{
    char expected[32];

    snprintf(expected, sizeof(expected), "ferry-%d", (int)getpid());
    cr_assert_eq(machine_config_finish(&config), 0);
    cr_assert_str_eq(config.name, expected);
}

Test(machine_config, a_kernel_must_be_given)
{
    free(config.kernel);
    config.kernel = NULL;
    cr_assert_eq(machine_config_finish(&config), -EINVAL);
    cr_assert_str_eq(last_line, "--kernel is missing: say which kernel to boot, as in --kernel vmlinuz");
}

Test(machine_config, a_kernel_is_told_where_its_console_is)
{
    cr_assert_eq(machine_config_finish(&config), 0);
    cr_assert_str_eq(config.append, "console=ttyS0");
}

Test(machine_config, a_kernel_is_told_of_a_virtio_console)
{
    config.console = CONSOLE_VIRTIO;
    cr_assert_eq(machine_config_finish(&config), 0);
    cr_assert_str_eq(config.append, "console=hvc0");
}

Test(machine_config, a_kernel_without_a_console_is_told_nothing)
{
    config.console = CONSOLE_OFF;
    cr_assert_eq(machine_config_finish(&config), 0);
    cr_assert_str_eq(config.append, "");
}

Test(machine_config, a_kernel_with_a_disk_and_no_initrd_has_its_root_there)
{
    cr_assert_eq(machine_config_add_disk(&config, "a.img"), 0);
    cr_assert_eq(machine_config_finish(&config), 0);
    cr_assert_str_eq(config.append, "console=ttyS0 root=/dev/vda rw");
}

Test(machine_config, a_root_on_a_disk_that_is_read_only_is_mounted_so)
{
    cr_assert_eq(machine_config_add_disk(&config, "a.img,readonly=on"), 0);
    cr_assert_eq(machine_config_finish(&config), 0);
    cr_assert_str_eq(config.append, "console=ttyS0 root=/dev/vda ro");
}

Test(machine_config, a_disk_offers_all_properties_of_queues_but_those_switched_off)
{
    cr_assert_eq(machine_config_add_disk(&config, "a.img"), 0);
    cr_assert_eq(machine_config_add_disk(&config, "b.img,packed=off,event_idx=off"), 0);
    cr_assert(config.disks[0].event_idx && config.disks[0].indirect && config.disks[0].packed);
    cr_assert_not(config.disks[1].event_idx);
    cr_assert(config.disks[1].indirect);
    cr_assert_not(config.disks[1].packed);
}

Test(machine_config, an_initrd_finds_the_root_by_itself)
{
    config.initrd = strdup("initrd.img");
    cr_assert_eq(machine_config_add_disk(&config, "a.img"), 0);
    cr_assert_eq(machine_config_finish(&config), 0);
    cr_assert_str_eq(config.append, "console=ttyS0");
}

Test(machine_config, a_command_line_that_was_given_stays_as_it_is)
{
    config.append = strdup("");
    cr_assert_eq(machine_config_add_disk(&config, "a.img"), 0);
    cr_assert_eq(machine_config_finish(&config), 0);
    cr_assert_str_eq(config.append, "");
}

Test(machine_config, addresses_of_cards_are_local_and_differ)
{
    config.name = strdup("web");
    cr_assert_eq(machine_config_add_net(&config, "nat"), 0);
    cr_assert_eq(machine_config_add_net(&config, "nat,subnet=10.0.3.0/24"), 0);
    cr_assert_eq(machine_config_finish(&config), 0);
    cr_assert_eq(config.nets[0].mac.bytes[0] & 3, 2, "not a local station's address");
    cr_assert_arr_neq(config.nets[0].mac.bytes, config.nets[1].mac.bytes, 6);
}

Test(machine_config, a_name_has_the_same_address_at_each_start)
{
    struct machine_config again;

    config.name = strdup("web");
    cr_assert_eq(machine_config_add_net(&config, "nat"), 0);
    cr_assert_eq(machine_config_finish(&config), 0);
    machine_config_init(&again);
    again.kernel = strdup("other");
    again.name = strdup("web");
    cr_assert_eq(machine_config_add_net(&again, "nat"), 0);
    cr_assert_eq(machine_config_finish(&again), 0);
    cr_assert_arr_eq(config.nets[0].mac.bytes, again.nets[0].mac.bytes, 6);
    machine_config_fini(&again);
}

Test(machine_config, one_address_on_two_cards_is_refused)
{
    cr_assert_eq(machine_config_add_net(&config, "nat,mac=02:00:00:00:00:01"), 0);
    cr_assert_eq(machine_config_add_net(&config, "nat,mac=02:00:00:00:00:01"), 0);
    cr_assert_eq(machine_config_finish(&config), -EINVAL);
    cr_assert_str_eq(last_line, "--net: two network cards have the same mac=");
}

Test(machine_config, what_nat_is_told_reaches_it)
{
    const struct uplink_config *nat = &config.nets[0].uplink;

    cr_assert_eq(machine_config_add_net(&config, "nat,subnet=192.168.76.0/24,dns=9.9.9.9,ipv6=off,"
                                                 "restricted=on,forward=udp:0.0.0.0:53-:5353"), 0);
    cr_assert_eq(machine_config_finish(&config), 0);
    cr_assert_eq(ntohl(nat->network.s_addr), 0xC0A84C00);
    cr_assert_eq(nat->prefix, 24);
    cr_assert_eq(ntohl(nat->dns.s_addr), 0x09090909);
    cr_assert_not(nat->ipv6);
    cr_assert(nat->restricted);
    cr_assert_eq(nat->n_forwards, 1);
    cr_assert(nat->forwards[0].udp);
    cr_assert_eq(nat->forwards[0].host_port, 53);
    cr_assert_eq(nat->forwards[0].guest_port, 5353);
}

Test(machine_config, takes_a_dirty_ring_of_a_power_of_two)
{
    static const char *const wrong[] = {"64M,dirty-ring=0", "64M,dirty-ring=512",
                                        "64M,dirty-ring=3000", "64M,dirty-ring=131072",
                                        "64M,dirty-ring=on"};

    cr_expect_eq(config.memory.dirty_ring, 0);
    cr_expect_eq(machine_config_add_memory(&config, "64M,dirty-ring=4096"), 0);
    cr_expect_eq(config.memory.dirty_ring, 4096);
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        cr_expect_eq(machine_config_add_memory(&config, wrong[i]), -EINVAL, "%s", wrong[i]);
}

Test(machine_config, the_last_size_of_memory_counts)
{
    cr_assert_eq(machine_config_add_memory(&config, "64M,prealloc=on"), 0);
    cr_assert_eq(machine_config_add_memory(&config, "1G"), 0);
    cr_assert_eq(config.memory.size, GIB);
    cr_assert_not(config.memory.prealloc);
}

Test(machine_config, a_name_that_is_no_file_name_is_refused)
{
    config.name = strdup("a/b");
    cr_assert_eq(machine_config_finish(&config), -EINVAL);
}

Test(machine_config, a_disk_too_many_is_refused)
{
    for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++)
        cr_assert_eq(machine_config_add_disk(&config, "a.img"), 0);
    cr_assert_eq(machine_config_add_disk(&config, "b.img"), -ENOSPC);
}

Test(machine_config, a_card_too_many_is_refused)
{
    for (unsigned i = 0; i < MACHINE_MAX_NETS; i++)
        cr_assert_eq(machine_config_add_net(&config, "nat"), 0);
    cr_assert_eq(machine_config_add_net(&config, "nat"), -ENOSPC);
}

/* ---- what a card offers ---- */

static struct virtio_net_options card_of(const char *text)
{
    struct virtio_net_options options = {0};

    cr_assert_eq(machine_config_add_net(&config, text), 0, "%s", last_line);
    net_card_apply(&config.nets[config.n_nets - 1].card, &options);
    return options;
}

Test(machine_config, a_card_offers_everything_by_one_pair_of_queues)
{
    struct virtio_net_options options = card_of("nat");

    cr_assert_eq(options.withheld, 0);
    cr_assert_eq(options.pairs, 1);
    cr_assert_eq(options.mtu, 0);
}

Test(machine_config, a_cards_mtu_is_its_uplinks_too)
{
    cr_assert_eq(card_of("nat,mtu=9000").mtu, 9000);
    cr_assert_eq(config.nets[0].uplink.mtu, 9000);
}

Test(machine_config, a_card_at_passt_tells_of_its_mtu)
{
    cr_assert_eq(card_of("nat,via=passt").mtu, 65520);
    cr_assert_eq(config.nets[0].uplink.mtu, 65520);
}

Test(machine_config, a_card_at_passt_tells_another_mtu_when_asked_to)
{
    cr_assert_eq(card_of("nat,via=passt,mtu=1500").mtu, 1500);
}

Test(machine_config, a_card_without_checksums_offers_no_segmentation)
{
    uint64_t withheld = card_of("nat,csum=off,queues=4").withheld;

    cr_assert(withheld & 1ull << VIRTIO_NET_F_CSUM);
    cr_assert(withheld & 1ull << VIRTIO_NET_F_HOST_TSO6);
    cr_assert(withheld & 1ull << VIRTIO_NET_F_GUEST_TSO4);
    cr_assert(!(withheld & 1ull << VIRTIO_NET_F_MQ));
}

Test(machine_config, a_card_without_a_control_queue_offers_nothing_that_takes_one)
{
    uint64_t withheld = card_of("nat,ctrl_vq=off").withheld;

    cr_assert(withheld & 1ull << VIRTIO_NET_F_CTRL_VQ);
    cr_assert(withheld & 1ull << VIRTIO_NET_F_MQ);
    cr_assert(withheld & 1ull << VIRTIO_NET_F_RSS);
    cr_assert(withheld & 1ull << VIRTIO_NET_F_GUEST_ANNOUNCE);
    cr_assert(!(withheld & 1ull << VIRTIO_NET_F_CSUM));
}

Test(machine_config, more_queues_than_there_can_be_are_refused)
{
    cr_assert_eq(machine_config_add_net(&config, "nat,queues=17"), -EINVAL);
}
