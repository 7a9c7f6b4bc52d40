# Two stock guests on Ferry's switches, in one process and in two that a stream joins: VLANs and a trunk,
# a rule, somebody else's address, large frames, files by TCP both ways. With more guests, and mirrors,
# queues and features: tests/lab/several, apart from `make check`.
# lab: --smp 2
# shellcheck shell=sh disable=SC2016,SC2030,SC2031,SC2034,SC2086,SC2154,SC2164 # the harness's variables, the guests' commands

A=52:54:00:00:01:0a
B=52:54:00:00:01:0b

# a is in VLAN 10; b is in 10 and in 20 by a trunk, and has an address more in 20 that a looks for in 10.
scripts() {
    script a "B=$B" <<'END'
up eth0 10.1.0.1/24
serve
await go
reach 10.1.0.2
reach -W 10 -s 8972 10.1.0.2
echo large=reached
echo got=$(fetch 10.1.0.2)
echo in_vlan_20=$(answers -c 2 -W 1 10.1.0.3)
nc.openbsd -z -w 4 10.1.0.2 81 || echo port81=denied
own=$(cat /sys/class/net/eth0/address)
ip link set eth0 address $B
echo with_the_address_of_b=$(answers -c 2 -W 1 10.1.0.2)
ip link set eth0 address $own
reach 10.1.0.2
echo with_its_own_address=reached
finish
END
    script b <<'END'
ip link set eth0 up
modprobe 8021q
for vlan in 10 20; do ip link add link eth0 name eth0.$vlan type vlan id $vlan; done
up eth0.10 10.1.0.2/24
up eth0.20 10.1.0.3/32
for interface in all eth0.10 eth0.20; do echo 1 >/proc/sys/net/ipv4/conf/$interface/arp_ignore; done
serve
httpd -p 81 -h www
await go
echo got=$(fetch 10.1.0.1)
finish
END
    initrd_with a b
}

guest_a() { guest_of a 1 initrd "lab0, vlan: 10, mtu: 9000, mac: \"$A\""; }
guest_b() { guest_of b 1 initrd "$1, trunk: 10+20, mtu: 9000, mac: \"$B\""; }

port81_is_denied='rules: ["200,src=10.1.0.1,proto=tcp,dport=81,action=deny"]'

they_meet() {
    tell go
    for guest in a b; do wait_guest $guest 'done'; done
    said a port81=denied
}

all_is_well() {
    tell end
    labs_end a b
    said a large=reached
    [ "$(told a got)" = "$(told b sent)" ]
    [ "$(told b got)" = "$(told a sent)" ]
    said a in_vlan_20=0
    said a with_the_address_of_b=0
    said a with_its_own_address=reached
}

test_stock_guests_of_one_process_meet_as_vlans_rules_and_addresses_allow() {
    scripts
    {
        echo "switches: {lab0: {$port81_is_denied}}"
        echo 'guests:'
        guest_a
        guest_b lab0
    } >one.yaml
    lab_start one.yaml
    they_meet
    counted lab0 a0 denied
    counted lab0 a0 conflicts
    all_is_well
}

# b is in the other process, whose switch has the rule.
test_stock_guests_of_two_processes_meet_as_vlans_rules_and_addresses_allow() {
    scripts
    {
        echo 'switches: {lab0: {uplink: stream, path: wire, server: on, trunk: 10+20}}'
        echo 'guests:'
        guest_a
    } >one.yaml
    {
        echo "switches: {lab1: {uplink: stream, path: wire, trunk: 10+20, $port81_is_denied}}"
        echo 'guests:'
        guest_b lab1
    } >two.yaml
    lab_start one.yaml
    lab_start two.yaml
    they_meet
    counted lab1 uplink denied
    all_is_well
}
