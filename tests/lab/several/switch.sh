# Stock guests on Ferry's switches, in one process and in two that a stream joins: VLANs and trunks, rules,
# mirrors, addresses of others, large frames, several queues, and cards that lack one feature each.
#
# Not a part of `make check`. With several guests at a time a lab under QEMU 7.2 dies now and then: its kernel
# was seen with a guest's GS base or at a guest's RIP after an exit, and ended by double faults, or stood still.
# So went one of the first four labs, and three of seven without hold.c. With one CPU (--smp 1) none was done
# within minutes. To run it: tests/lab/run-tests --suites tests/lab/several
# lab: --smp 2
# put: tcpdump
# shellcheck shell=sh disable=SC2016,SC2030,SC2031,SC2034,SC2086,SC2154,SC2164 # the harness's variables, the guests' commands

# a and b are in VLAN 10, b by a trunk, which carries 20 as well. c is in 20. d has cards in both, and is up to
# no good. w watches: what a sends, and VLAN 20.
A=52:54:00:00:01:0a
B=52:54:00:00:01:0b
C=52:54:00:00:01:0c
D=52:54:00:00:01:d
W=52:54:00:00:01:e
BAD=52:54:00:00:01:ff

script_a() {
    script a <<'END'
up eth0 10.1.0.1/24
echo mtu=$(cat /sys/class/net/eth0/mtu)
serve
await go
reach 10.1.0.2
reach -W 10 -s 8972 10.1.0.2
echo large=reached
echo other=$(answers -c 2 -W 1 10.1.0.3)
echo got=$(fetch 10.1.0.2)
nc.openbsd -z -w 20 10.1.0.2 80 && echo port80=open
nc.openbsd -z -w 4 10.1.0.2 81 || echo port81=denied

used() { awk -v name="-input\\.$1\$" '$NF ~ name { n = $2 + $3 } END { exit n < 20 }' /proc/interrupts; }
echo queues=$(ls /sys/class/net/eth0/queues)
until used 0 && used 1; do
    for cpu in 1 2; do taskset $cpu wget -q -O /dev/null http://10.1.0.2/file; done
done
echo used=both
finish
END
}

# Whoever asks for the page `ask` is told what a has, by b.
script_b() {
    script b <<'END'
ip link set eth0 up
modprobe 8021q
for vlan in 10 20; do
    ip link add link eth0 name eth0.$vlan type vlan id $vlan
    up eth0.$vlan 10.$((vlan / 10)).0.2/24
done
ip address add 10.3.0.2/24 dev eth0.10
serve
httpd -p 81 -h www
echo word >www/word
{ echo "$(sed '/^finish()/q' $0)"; echo 'printf "Content-Type: text/plain\r\n\r\n"; cd /tmp; fetch 10.1.0.1'; } >www/cgi-bin/ask
chmod 755 www/cgi-bin/ask
await go
echo got=$(fetch 10.1.0.1)
finish
END
}

script_c() {
    script c <<'END'
up eth0 10.2.0.3/24
ip address add 10.1.0.3/24 dev eth0 noprefixroute
await go
reach 10.2.0.2
echo port81=$(wget -q -O - http://10.2.0.2:81/word)
finish
END
}

# Its cards: one whose address may change, in VLAN 10; one whose may not; and one in VLAN 20.
script_d() {
    script d "A=$A" "BAD=$BAD" <<'END'
echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore
up eth0 10.1.0.4/24
up eth1 10.3.0.4/24
up eth2 10.2.0.5/24
await go
reach 10.1.0.2
reach 10.3.0.2
reach 10.2.0.3
echo denied=$(answers -c 2 -W 1 10.1.0.1)
move() { ip link set $1 address $2; }
# Stations that know the address before are told of this one.
reach_anew() { until arping -q -c 1 -U -I $1 ${2%.*}.4; ping -c 1 -W 1 $2 >/dev/null; do usleep 100000; done; }

move eth0 $A
echo with_the_address_of_a=$(answers -c 2 -W 1 10.1.0.2)
echo asked=$(wget -q -O - http://10.2.0.2/cgi-bin/ask)
move eth0 ${BAD%ff}fe
reach_anew eth0 10.1.0.2
echo with_a_new_address=reached

own=$(cat /sys/class/net/eth1/address)
move eth1 $BAD
echo with_a_forbidden_address=$(answers -c 2 -W 1 10.3.0.2)
move eth1 $own
reach_anew eth1 10.3.0.2
echo with_its_own_address=reached

echo marked=$(answers -c 3 -s 99 10.2.0.3)
finish
END
}

# Says how often it saw what it should see, and all that it should not.
script_w() {
    script w "A=$A" "B=$B" "C=$C" "D=$D" <<'END'
for i in 0 1; do
    ip link set eth$i up
    /opt/bin/tcpdump -Z root -i eth$i -Q in --immediate-mode -n -e -t -l >seen$i 2>log$i &
    until grep -q 'listening on' log$i; do usleep 50000; done
done
echo listening
await go
ip address add 10.1.0.9/24 dev eth0
echo talks=$(answers -c 2 -W 1 10.1.0.1)
saw() { echo $2=$(grep -c -e "$3" seen$1); }
echo done
await end
left=300
until [ $(grep -c 'length 107$' seen1) -ge 6 ] || [ $left = 0 ]; do left=$((left - 1)); usleep 100000; done
saw 0 large 'length 9014: 10.1.0.1 > 10.1.0.2: ICMP echo request'
saw 0 port81 '10.1.0.1.* > 10.1.0.2.81: Flags \[S\]'
saw 0 http '10.1.0.1.* > 10.1.0.2.80: Flags'
saw 1 asked '10.2.0.5 > 10.2.0.3: ICMP echo request.*length 107$'
saw 1 answered '10.2.0.3 > 10.2.0.5: ICMP echo reply.*length 107$'
grep -v "^$A > " seen0 | sed 's/^/stray: /'
grep -E '10\.1\.0\.[^1][^>]* > |10\.[23]\.0\.[0-9.]* >' seen0 | sed 's/^/stray: /'
grep -v -E "^($B|$C|${D}2) > " seen1 | sed 's/^/stray: /'
grep '10\.[13]\.0\.' seen1 | sed 's/^/stray: /'
echo watched
END
}

# initrds NAME...: of guests with these scripts, and that of w, which has tcpdump.
initrds() {
    initrd_with "$@"
    { cat initrd; with_tcpdump; } >initrd.w
}

with_tcpdump() (
    cd /
    {
        printf '%s\n' opt opt/bin opt/bin/tcpdump
        /lib64/ld-linux-x86-64.so.2 --list /opt/bin/tcpdump | grep -o '/lib/[^ ]*' | sed 's|^|usr|'
    } | cpio -o -H newc 2>/dev/null
)

guest_a() { guest_of a 2 initrd "lab0, vlan: 10, mtu: 9000, queues: 2, mac: \"$A\""; }
guest_b() { guest_of b 2 initrd "$1, trunk: 10+20, mtu: 9000, queues: 2, mac: \"$B\""; }
guest_c() { guest_of c 1 initrd "$1, vlan: 20, mac: \"$C\""; }
guest_d() {
    guest_of d 1 initrd "lab0, vlan: 10, mac: \"${D}0\"" "lab0, vlan: 10, mac-change: off, mac: \"${D}1\"" \
        "lab0, vlan: 20, mac: \"${D}2\""
}
guest_w() { guest_of w 1 initrd.w "lab0, monitor: on, mac: \"${W}0\"" "lab0, monitor: on, mac: \"${W}1\""; }

mirrors='mirrors: ["a,from=a0,direction=in,to=w0", "twenty,direction=both,vlan=20,to=w1"]'
d_is_denied='"300,in=d0,type=ip,dst=10.1.0.1,action=deny"'

# all_meet: lets the guests go, and waits until each has done its part.
all_meet() {
    wait_guest w listening
    tell go
    for guest in w c a b d; do wait_guest $guest 'done'; done
}

carried_files_both_ways() {
    [ "$(told a got)" = "$(told b sent)" ]
    [ "$(told b got)" = "$(told a sent)" ]
    said a mtu=9000
    said a large=reached
}

used_several_queues() {
    said a 'queues=rx-0 rx-1 tx-0 tx-1'
    said a used=both
}

were_kept_apart() {
    said a other=0
    said a port80=open
    said a port81=denied
    said c port81=word
    said d denied=0
}

could_not_take_addresses() {
    said d with_the_address_of_a=0
    [ "$(told d asked)" = "$(told a sent)" ]
    said d with_a_new_address=reached
    said d with_a_forbidden_address=0
    said d with_its_own_address=reached
}

were_watched() {
    said w talks=0
    [ "$(told w large)" -gt 0 ]
    [ "$(told w port81)" -gt 0 ]
    [ "$(told w http)" -gt 0 ]
    said d marked=3
    said w asked=3
    said w answered=3
    said w watched
    lacks '^stray:' w.console
}

all_is_well() {
    carried_files_both_ways
    used_several_queues
    were_kept_apart
    could_not_take_addresses
    were_watched
}

scripts() {
    for guest in a b c d w; do script_$guest; done
    initrds a b c d w
}

test_guests_of_one_process_meet_as_vlans_rules_and_addresses_allow_and_mirrors_see_it() {
    scripts
    {
        echo "switches: {lab0: {$mirrors, rules: [\"200,in=a0,proto=tcp,dport=81,action=deny\", $d_is_denied]}}"
        echo 'guests:'
        guest_a
        guest_b lab0
        guest_c lab0
        guest_d
        guest_w
    } >one.yaml
    lab_start one.yaml
    all_meet
    counted lab0 a0 denied
    counted lab0 d0 denied
    counted lab0 d0 spoofed
    counted lab0 d0 conflicts
    counted lab0 d1 spoofed
    counted lab0 w0 mirror
    tell end
    labs_end a b c d w
    all_is_well
}

# b and c are in the other process, which has the rule for b's port.
test_guests_of_two_processes_meet_as_vlans_rules_and_addresses_allow_and_mirrors_see_it() {
    scripts
    {
        echo "switches: {lab0: {uplink: stream, path: wire, server: on, trunk: 10+20, $mirrors, rules: [$d_is_denied]}}"
        echo 'guests:'
        guest_a
        guest_d
        guest_w
    } >one.yaml
    {
        echo 'switches: {lab1: {uplink: stream, path: wire, trunk: 10+20,'
        echo '    rules: ["200,src=10.1.0.1,proto=tcp,dport=81,action=deny"]}}'
        echo 'guests:'
        guest_b lab1
        guest_c lab1
    } >two.yaml
    lab_start one.yaml
    lab_start two.yaml
    all_meet
    counted lab0 d0 denied
    counted lab0 d0 spoofed
    counted lab0 d1 spoofed
    counted lab0 w0 mirror
    counted lab1 uplink denied
    tell end
    labs_end a b c d w
    all_is_well
}

# ---- features ----

# What the cards of a and of b lack, each of them in a VLAN of its own with the one that is beside it here.
lacking='none rss
csum announce
tso event_idx
uso indirect
ecn packed
mrg_rxbuf csum,mrg_rxbuf,ctrl_vq,event_idx,indirect,packed
ctrl_vq event_idx,indirect,packed
mq none'

all_features='csum tso uso ecn mrg_rxbuf ctrl_vq mq rss announce event_idx indirect packed'

# bits FEATURE: of virtio 1.2 §5.1.3 and §6, with those that presume them. Linux 6.1 knows none of USO's.
bits() {
    case $1 in
        csum) echo 0 1 7 8 11 12 ;;
        tso) echo 7 8 11 12 ;;
        ecn) echo 9 13 ;;
        mrg_rxbuf) echo 15 ;;
        ctrl_vq) echo 17 18 19 21 22 23 60 ;;
        mq) echo 22 ;;
        rss) echo 60 ;;
        announce) echo 21 ;;
        event_idx) echo 29 ;;
        indirect) echo 28 ;;
        packed) echo 34 ;;
    esac
}

# features_script NAME NUMBER OTHER: fetches a file from the other by each pair of cards.
features_script() {
    script $1 "host=$2 other=$3" <<'END'
serve 300000
for i in 0 1 2 3 4 5 6 7; do
    up eth$i 10.$i.0.$host/24
    echo features$i=$(cat /sys/class/net/eth$i/device/features)
done
await go
for i in 0 1 2 3 4 5 6 7; do
    reach 10.$i.0.$other
    reach -W 10 -s 8972 10.$i.0.$other
    echo large$i=reached
    echo got$i=$(fetch 10.$i.0.$other)
done
finish
END
}

# column NUMBER: what a's cards lack, or what b's do.
column() { echo "$lacking" | cut -d ' ' -f $1; }

# cards GUEST COLUMN: the guest in the lab's file.
cards() {
    guest=$1 column=$2 vlan=0
    set --
    for features in $(column $column); do
        vlan=$((vlan + 1))
        off=$(echo ",$features" | sed -e 's/,none//' -e 's/,\([a-z_]*\)/, \1: off/g')
        set -- "$@" "lab0, vlan: $vlan, mtu: 9000, queues: 2$off"
    done
    guest_of $guest 1 initrd "$@"
}

# bits_are GUEST CARD FEATURE VALUE: those of the feature, as the guest's driver negotiated them.
bits_are() {
    for bit in $(bits $3); do
        [ "$(told $1 features$2 | cut -c $((bit + 1)))" = $4 ] || { echo "$1 card $2: $3, bit $bit is not $4"; return 1; }
    done
}

# negotiated GUEST COLUMN: what a card lacks its driver has not; one that lacks none has all.
negotiated() {
    card=0
    for features in $(column $2); do
        if [ $features = none ]; then
            for feature in $all_features; do bits_are $1 $card $feature 1; done
        else
            for feature in $(echo $features | tr , ' '); do bits_are $1 $card $feature 0; done
        fi
        card=$((card + 1))
    done
}

test_cards_that_lack_one_feature_each_carry_files_both_ways() {
    features_script a 1 2
    features_script b 2 1
    initrds a b
    {
        echo 'switches: {lab0: {}}'
        echo 'guests:'
        cards a 1
        cards b 2
    } >one.yaml
    lab_start one.yaml
    tell go
    for guest in a b; do wait_guest $guest 'done'; done
    tell end
    labs_end a b
    negotiated a 1
    negotiated b 2
    for card in 0 1 2 3 4 5 6 7; do
        said a large$card=reached
        said b large$card=reached
        [ "$(told a got$card)" = "$(told b sent)" ]
        [ "$(told b got$card)" = "$(told a sent)" ]
    done
}
