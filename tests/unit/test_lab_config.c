/*
 * Labs' files: what they say, and the one line that each mistake gets, with file, line and key.
 *
 * No files but those in memory, no KVM. One thread a test.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "vmm/lab_config.h"
#include "vmm/lab_yaml.h"
#include "vmm/util/log.h"

static char last_line[1024];
static unsigned lines;
static struct lab_config lab;

static void remember(enum log_level level, const char *line)
{
    (void)level;
    lines++;
    snprintf(last_line, sizeof(last_line), "%s", line);
}

static void set_up(void)
{
    log_set_sink(remember);
}

static void tear_down(void)
{
    lab_config_fini(&lab);
}

TestSuite(lab_config, .init = set_up, .fini = tear_down);

static void takes(const char *text)
{
    cr_assert_eq(lab_config_parse(&lab, "dir/two.yaml", text, strlen(text)), 0, "%s", last_line);
    cr_assert_eq(lines, 0, "%s", last_line);
}

static void refuses(const char *text, const char *line)
{
    cr_assert_eq(lab_config_parse(&lab, "two.yaml", text, strlen(text)), -EINVAL, "%s", text);
    cr_assert_eq(lines, 1);
    cr_assert_str_eq(last_line, line);
    cr_assert_null(lab.guests);
    lines = 0;
}

#define GUEST "guests:\n  web:\n    kernel: vmlinuz\n"

Test(lab_config, a_lab_is_named_after_its_file)
{
    takes(GUEST);
    cr_assert_str_eq(lab.name, "two");
    cr_assert_eq(lab.n_guests, 1);
    cr_assert_str_eq(lab.guests[0].name, "web");
    cr_assert_str_eq(lab.guests[0].kernel, "vmlinuz");
}

Test(lab_config, a_lab_may_say_its_name_and_say_it_last)
{
    takes(GUEST "name: mine\n");
    cr_assert_str_eq(lab.name, "mine");
    cr_assert_str_eq(lab.guests[0].lab, "mine");
}

Test(lab_config, a_guest_has_the_defaults_of_run_and_its_console_on_a_socket)
{
    takes(GUEST);
    cr_assert_eq(lab.guests[0].cpus, 1);
    cr_assert_eq(lab.guests[0].memory.size, 512 * MIB);
    cr_assert_str_eq(lab.guests[0].append, "console=ttyS0");
    cr_assert(lab.guests[0].console_socket);
}

Test(lab_config, the_keys_of_a_guest_are_the_options_of_run)
{
    takes(GUEST "    initrd: initrd.img\n    append: quiet splash\n    cpus: 4\n    memory: 64M\n"
                "    console: virtio\n    decompress: host\n    no-reboot: true\n    grace: 5\n");
    cr_assert_str_eq(lab.guests[0].initrd, "initrd.img");
    cr_assert_str_eq(lab.guests[0].append, "quiet splash");
    cr_assert_eq(lab.guests[0].cpus, 4);
    cr_assert_eq(lab.guests[0].memory.size, 64 * MIB);
    cr_assert_eq(lab.guests[0].console, CONSOLE_VIRTIO);
    cr_assert_eq(lab.guests[0].decompress, DECOMPRESS_HOST);
    cr_assert(lab.guests[0].no_reboot);
    cr_assert_eq(lab.guests[0].grace_s, 5);
}

Test(lab_config, a_disk_is_a_text_or_a_mapping)
{
    takes(GUEST "    disks:\n      - a,,b.img,readonly=on\n      - path: c,d.img\n"
                "        serial: data1\n        direct: yes\n");
    cr_assert_eq(lab.guests[0].n_disks, 2);
    cr_assert_str_eq(lab.guests[0].disks[0].path, "a,b.img");
    cr_assert(lab.guests[0].disks[0].readonly);
    cr_assert_str_eq(lab.guests[0].disks[1].path, "c,d.img");
    cr_assert_str_eq(lab.guests[0].disks[1].serial, "data1");
    cr_assert(lab.guests[0].disks[1].direct);
}

Test(lab_config, one_disk_needs_no_list_and_an_empty_list_is_none)
{
    takes(GUEST "    disk: a.img\n    nets:\n");
    cr_assert_eq(lab.guests[0].n_disks, 1);
    cr_assert_eq(lab.guests[0].n_nets, 0);
}

Test(lab_config, a_key_that_may_come_more_than_once_takes_a_list)
{
    takes(GUEST "    nets:\n      - kind: nat\n        forward: [\"tcp:2222-:22\", \"tcp:8080-:80\"]\n");
    cr_assert_eq(lab.guests[0].nets[0].uplink.n_forwards, 2);
}

Test(lab_config, memory_may_be_a_mapping)
{
    takes(GUEST "    memory: {size: 64M, hugepages: 2M}\n");
    cr_assert_eq(lab.guests[0].memory.hugepages, 2 * MIB);
}

Test(lab_config, guests_of_two_labs_have_different_addresses)
{
    uint8_t mac[6];

    takes(GUEST "    nets: nat\n");
    memcpy(mac, lab.guests[0].nets[0].mac.bytes, 6);
    lab_config_fini(&lab);
    takes("name: other\n" GUEST "    nets: nat\n");
    cr_assert_arr_neq(mac, lab.guests[0].nets[0].mac.bytes, 6);
}

Test(lab_config, an_alias_stands_for_what_it_names)
{
    takes("guests:\n  a: &like\n    kernel: k\n    cpus: 3\n  b: *like\n");
    cr_assert_eq(lab.guests[1].cpus, 3);
    cr_assert_str_eq(lab.guests[1].name, "b");
}

Test(lab_config, what_is_no_yaml_is_refused_by_its_line)
{
    refuses("guests:\n  web: [\n", "two.yaml:3: this is no YAML: did not find expected node content "
                                   "while parsing a flow node");
}

Test(lab_config, an_empty_file_is_refused)
{
    refuses("# nothing\n", "two.yaml: nothing is in it");
}

Test(lab_config, a_lab_without_guests_is_refused)
{
    refuses("name: x\n", "two.yaml:1: there are no guests: the key guests was expected");
    refuses("guests: {}\n", "two.yaml:1: there are no guests: the key guests was expected");
}

Test(lab_config, an_unknown_key_is_named)
{
    refuses(GUEST "gests:\n",
            "two.yaml:4: gests: unknown key: name, switches or guests was expected");
    refuses(GUEST "    cpu: 2\n",
            "two.yaml:4: guests.web.cpu: unknown key: an option of 'ferry run' was expected, such as "
            "kernel, initrd, append, cpus, memory, disks or nets");
    refuses(GUEST "    disks:\n      - path: a\n        ro: on\n",
            "two.yaml:6: guests.web.disks[0].ro: unknown key 'ro': one of path, readonly, direct, "
            "serial, event_idx, indirect, packed was expected");
}

Test(lab_config, options_that_a_file_does_not_have_are_unknown)
{
    refuses(GUEST "    name: x\n",
            "two.yaml:4: guests.web.name: unknown key: an option of 'ferry run' was expected, such as "
            "kernel, initrd, append, cpus, memory, disks or nets");
    refuses(GUEST "    verbose: on\n",
            "two.yaml:4: guests.web.verbose: unknown key: an option of 'ferry run' was expected, such "
            "as kernel, initrd, append, cpus, memory, disks or nets");
}

Test(lab_config, a_wrong_value_is_told_with_line_and_key)
{
    refuses(GUEST "\n    cpus: none\n",
            "two.yaml:5: guests.web.cpus: 'none' is not valid: a number from 1 to 4096 was expected");
    refuses(GUEST "    memory:\n      size: 64M\n      hugepages: 3M\n",
            "two.yaml:6: guests.web.memory.hugepages: hugepages='3M' is not valid: 2M or 1G was "
            "expected");
    refuses(GUEST "    disks:\n      - a.img\n      - b.img,readonly=maybe\n",
            "two.yaml:6: guests.web.disks[1]: readonly='maybe' is not valid: on or off was expected");
}

Test(lab_config, a_value_of_another_shape_is_refused)
{
    refuses(GUEST "    cpus: [1, 2]\n",
            "two.yaml:4: guests.web.cpus: one value was expected, not a list");
    refuses(GUEST "    initrd: {a: b}\n",
            "two.yaml:4: guests.web.initrd: one value was expected, not a mapping");
    refuses("guests: web\n",
            "two.yaml:1: guests: a mapping was expected: KEY: VALUE, line by line");
    refuses("- guests\n", "two.yaml:1: a mapping was expected: KEY: VALUE, line by line");
}

Test(lab_config, a_key_that_comes_twice_is_refused)
{
    refuses(GUEST "  web:\n    kernel: b\n", "two.yaml:4: guests.web: the key was given twice");
    refuses(GUEST "    cpus: 1\n    cpus: 2\n",
            "two.yaml:5: guests.web.cpus: the key was given twice");
}

Test(lab_config, a_guest_without_a_kernel_is_refused)
{
    refuses("guests:\n  web:\n    cpus: 2\n", "two.yaml:2: guests.web: the key kernel is missing");
}

Test(lab_config, a_name_that_no_socket_can_have_is_refused)
{
    refuses("guests:\n  \"a/b\": {kernel: k}\n",
            "two.yaml:2: guests.a/b: a guest's name has letters, digits, '.', '_' or '-', '.' and '-' "
            "not first, and at most 64 of them");
    refuses("name: .x\n" GUEST,
            "two.yaml:1: name: a lab's name has letters, digits, '.', '_' or '-', '.' and '-' not "
            "first, and at most 64 of them");
}

Test(lab_config, two_guests_with_one_address_are_refused)
{
    refuses("guests:\n  a:\n    kernel: k\n    nets: nat,mac=02:00:00:00:00:01\n"
            "  b:\n    kernel: k\n    nets: nat,mac=02:00:00:00:00:01\n",
            "two.yaml:5: guests.b: a network card has the mac= of another guest's");
}

Test(lab_config, more_memory_than_the_host_has_is_refused)
{
    const char *text = GUEST "    memory: 4096T\n";

    cr_assert_eq(lab_config_parse(&lab, "two.yaml", text, strlen(text)), -EINVAL);
    cr_assert_eq(strncmp(last_line, "two.yaml:2: guests.web: '4096T' is not valid: at most ", 54), 0,
                 "%s", last_line);
}

Test(lab_config, a_nul_in_a_value_is_refused)
{
    refuses(GUEST "    append: \"a\\0b\"\n",
            "two.yaml:4: guests.web.append: a NUL byte is in it");
}

Test(lab_config, a_guest_too_many_is_refused)
{
    char text[8192] = "guests:\n";
    size_t n = strlen(text);

    for (unsigned i = 0; i <= PROCESS_MAX_GUESTS; i++)
        n += (size_t)snprintf(text + n, sizeof(text) - n, "  g%u: {kernel: k}\n", i);
    refuses(text, "two.yaml:66: guests.g64: this guest is one too many");
}

Test(lab_config, a_file_that_is_not_there_is_named)
{
    cr_assert_eq(lab_config_read(&lab, "/nowhere/lab.yaml"), -ENOENT);
    cr_assert_str_eq(last_line, "cannot read /nowhere/lab.yaml: No such file or directory");
}

/* ---- switches ---- */

Test(lab_config, a_switch_has_an_uplink_whose_keys_stand_beside_it)
{
    takes("switches:\n  lab0:\n    uplink: nat\n    subnet: 10.9.0.0/24\n    trunk: 10-20\n"
          "    forward: [\"tcp:2222-:22\", \"udp:53-:53\"]\n    fdb-max: 100\n" GUEST);
    cr_assert_eq(lab.n_switches, 1);
    cr_assert_str_eq(lab.switches[0].name, "lab0");
    cr_assert(lab.switches[0].has_uplink);
    cr_assert_eq(lab.switches[0].uplink.prefix, 24);
    cr_assert_eq(lab.switches[0].uplink.n_forwards, 2);
    cr_assert(vlan_set_has(&lab.switches[0].uplink_port.vlan.trunk, 15));
    cr_assert_eq(lab.switches[0].fdb_max, 100);
}

Test(lab_config, an_uplink_may_be_one_text)
{
    takes("switches: {lab0: {uplink: \"nat,subnet=10.9.0.0/24\"}}\n" GUEST);
    cr_assert_eq(lab.switches[0].uplink.prefix, 24);
}

Test(lab_config, a_switch_polls_for_as_long_as_it_is_told_to)
{
    takes("switches:\n  a: {poll: 50us}\n  b: {poll: 2ms}\n  c: {poll: 0}\n  d: {}\n" GUEST);
    cr_assert_eq(lab.switches[0].poll_ns, 50000);
    cr_assert_eq(lab.switches[1].poll_ns, 2000000);
    cr_assert_eq(lab.switches[2].poll_ns, 0);
    cr_assert_eq(lab.switches[3].poll_ns, 0);
}

Test(lab_config, a_time_to_poll_has_a_unit_and_a_limit)
{
    static const char *const wrong[] = {"50", "us", "1s", "101ms", "100001us", "1234567us", "-1us"};

    for (unsigned i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
        char text[200], message[200];

        snprintf(text, sizeof(text), "switches:\n  a:\n    poll: %s\n" GUEST, wrong[i]);
        snprintf(message, sizeof(message),
                 "two.yaml:3: switches.a.poll: poll='%s' is not valid: a time such as 50us or 1ms, up "
                 "to 100ms, was expected", wrong[i]);
        refuses(text, message);
    }
}

Test(lab_config, a_switch_may_be_empty)
{
    takes("switches:\n  lab0:\n" GUEST "    nets: switch=lab0\n");
    cr_assert(!lab.switches[0].has_uplink);
    cr_assert_str_eq(lab.guests[0].nets[0].switch_name, "lab0");
}

Test(lab_config, a_port_is_named_after_its_guest_and_has_the_cards_address)
{
    takes("switches: {lab0: }\n" GUEST "    nets:\n      - switch: lab0\n        vlan: 10\n"
          "      - {switch: lab0, port: other, monitor: on}\n");
    cr_assert_str_eq(lab.guests[0].nets[0].port.name, "web0");
    cr_assert_eq(lab.guests[0].nets[0].port.vlan.vlan, 10);
    cr_assert_arr_eq(lab.guests[0].nets[0].port.mac.bytes, lab.guests[0].nets[0].mac.bytes, 6);
    cr_assert_str_eq(lab.guests[0].nets[1].port.name, "other");
    cr_assert_eq(lab.guests[0].nets[1].port.kind, SWITCH_PORT_MIRROR);
}

#define WEB_IN_LAB0 GUEST "    nets:\n      - {switch: lab0, port: web0}\n"

/* Takes it, but not without a word. */
static void warns(const char *text, const char *line)
{
    cr_assert_eq(lab_config_parse(&lab, "two.yaml", text, strlen(text)), 0, "%s", last_line);
    cr_assert_eq(lines, 1);
    cr_assert_str_eq(last_line, line);
    lab_config_fini(&lab);
    lines = 0;
}

Test(lab_config, a_rule_or_mirror_with_a_port_that_no_guest_has_is_warned_of)
{
    warns("switches:\n  lab0:\n    rules:\n      - in=web0,action=deny\n      - in=wbe0,action=deny\n"
          WEB_IN_LAB0,
          "two.yaml:5: switches.lab0.rules[1]: no guest of this file has a port 'wbe0' in the switch "
          "'lab0'");
    warns("switches:\n  lab0:\n    rules: [\"action=redirect:web1\"]\n" WEB_IN_LAB0,
          "two.yaml:3: switches.lab0.rules[0]: no guest of this file has a port 'web1' in the switch "
          "'lab0'");
    warns("switches:\n  lab0:\n    mirrors:\n      - {name: all, to: ids0}\n" WEB_IN_LAB0,
          "two.yaml:4: switches.lab0.mirrors[0]: no guest of this file has a port 'ids0' in the "
          "switch 'lab0'");
    warns("switches:\n  lab1:\n    rules: [\"in=web0,action=deny\"]\n  lab0:\n" WEB_IN_LAB0,
          "two.yaml:3: switches.lab1.rules[0]: no guest of this file has a port 'web0' in the switch "
          "'lab1'");
}

Test(lab_config, the_uplinks_port_and_those_of_guests_are_known_to_rules)
{
    takes("switches:\n  lab0:\n    uplink: nat\n    rules: [\"in=uplink,action=redirect:web0\"]\n"
          WEB_IN_LAB0);
}

Test(lab_config, the_place_of_a_guest_is_kept_for_what_is_wrong_with_its_files)
{
    takes(GUEST "  db:\n    kernel: vmlinuz\n");
    cr_assert_str_eq(lab.places[0], "dir/two.yaml:2: guests.web");
    cr_assert_str_eq(lab.places[1], "dir/two.yaml:4: guests.db");
}

Test(lab_config, rules_and_mirrors_are_texts_or_mappings)
{
    takes("switches:\n  lab0:\n    rules:\n      - 200,in=web0,proto=tcp,dport=25,action=deny\n"
          "      - {in: web0, type: arp, action: allow}\n"
          "    mirrors:\n      - all,direction=in,to=ids0\n      - {name: two, from: web0, to: ids0}\n"
          WEB_IN_LAB0 "      - {switch: lab0, port: ids0}\n");
    cr_assert_eq(lab.switches[0].n_rules, 2);
    cr_assert_eq(lab.switches[0].rules[0].priority, 200);
    cr_assert_eq(lab.switches[0].rules[0].dport.first, 25);
    cr_assert_eq(lab.switches[0].rules[1].priority, RULE_PRIORITY_DEFAULT);
    cr_assert_eq(lab.switches[0].n_mirrors, 2);
    cr_assert_str_eq(lab.switches[0].mirrors[1].name, "two");
}

Test(lab_config, a_switch_that_is_not_described_is_refused)
{
    refuses("switches: {lab0: }\n" GUEST "    nets:\n      - switch=lab1\n",
            "two.yaml:6: guests.web.nets[0]: switch='lab1' is not valid: a switch of this file was "
            "expected");
}

Test(lab_config, a_mistake_in_a_switch_is_told_with_line_and_key)
{
    refuses("switches:\n  lab0:\n    uplink: nat\n    subnet: here\n" GUEST,
            "two.yaml:4: switches.lab0.subnet: subnet='here' is not valid: a network such as "
            "192.168.76.0/24, of 8 to 27 bits, was expected");
    refuses("switches:\n  lab0:\n    vlan: 3\n" GUEST,
            "two.yaml:2: switches.lab0: vlan= does not go without uplink=");
    refuses("switches:\n  lab0:\n    rules:\n      - action=deny\n      - type=ipx,action=deny\n" GUEST,
            "two.yaml:5: switches.lab0.rules[1]: type='ipx' is not valid: ip, ip6, arp or an "
            "ethertype such as 0x88cc was expected");
}
