# Stock guests that move between two hosts, which an Ethernet joins, while they send by TCP.
# lab: --smp 2 --memory 1G --modules bridge
# put: tcpdump
# peer
# shellcheck shell=sh disable=SC2016,SC2034,SC2086,SC2154,SC2164 # the harness's variables, the guests' commands

MAC=52:54:00:77:00:09
ALL=ff:ff:ff:ff:ff:ff

# What the guest sends before it is told to end: numbered pieces. Both sides can make it, and none keeps it.
pieces='
    stream() {
        i=0
        while [ $i != ${1:-x} ] && ! [ -e /tmp/stop ]; do
            i=$((i + 1))
            echo piece $i
            cat /tmp/piece
            [ $1 ] || { echo $i >/tmp/sent; cat /tmp/piece >/tmp/touched; usleep 50000; }
        done
    }'

# With $vlan it has an address there, too. Sends to the first host until somebody connects to it, and says what it sent.
work="
$pieces"'
    ip link set eth0 up
    ip address add 10.77.0.9/24 dev eth0
    if [ $vlan ]; then
        modprobe 8021q
        ip link add link eth0 name eth0.$vlan type vlan id $vlan
        ip link set eth0.$vlan up
        ip address add 10.77.$vlan.9/24 dev eth0.$vlan
        arping -q -c 1 -U -I eth0.$vlan 10.77.$vlan.9
    fi
    head -c 30000 /dev/urandom >/tmp/piece
    (nc -l -p 7001 >/dev/null; touch /tmp/stop) &
    echo working
    stream | nc 10.77.0.1 7000
    rm /tmp/stop
    echo sum=$(stream $(cat /tmp/sent) | sha256sum | cut -c 1-64)
    dmesg | grep -E "WARNING: CPU|BUG: |soft lockup|clocksource.*unstable" && echo kernel=complains
    echo cpus=$(grep -c ^processor /proc/cpuinfo)'

# grows: waits until more has come from the guest.
grows() {
    set +x
    before=$(wc -c <got) left=6000
    until [ "$(wc -c <got)" -gt $((before + 150000)) ]; do
        [ "$left" -gt 0 ] || { set -x; echo "nothing more than $before bytes came"; return 1; }
        left=$((left - 1))
        usleep 50000
    done
    set -x
}

# connection: the ends of the one that the guest sends by.
connection() { netstat -t -n | awk '$4 ~ /:7000$/ { print $4, $5, $6 }'; }

# behind CARD: the bridge has learnt that the guest is there. An entry of the kernel's table has 16 bytes,
# the address and the port's number first.
behind() {
    entry="$(echo $MAC | tr : ' ') $(printf '%02x' "$(cat "/sys/class/net/$1/brport/port_no")")"
    hexdump -v -e '16/1 "%02x " "\n"' /sys/class/net/br0/brforward | grep "^$entry 00"
}

# seen_after LINE PATTERN: waits until a frame like it was seen, after so many others.
seen_after() {
    set +x
    left=6000
    until tail -n "+$(($1 + 1))" seen | grep -q -e "$2"; do
        [ "$left" -gt 0 ] || { set -x; echo "no '$2' was seen"; tail -n 30 seen; return 1; }
        left=$((left - 1))
        usleep 50000
    done
    set -x
}

# announced LINE: the announcements after that line of what was seen: Ferry's by RARP, and by ARP what the
# guest sent, because it was asked to.
announced() {
    seen_after "$1" "$MAC > $ALL, ethertype Reverse ARP .* who-is $MAC tell $MAC"
    seen_after "$1" "$MAC > $ALL, ethertype ARP .*, length 42: Request who-has 10.77.0.9 tell 10.77.0.9"
    [ ! "$VLAN" ] || seen_after "$1" "$MAC > $ALL, ethertype 802.1Q .* vlan $VLAN,.* who-is $MAC tell $MAC"
    [ ! "$VLAN" ] || seen_after "$1" "$MAC > $ALL, ethertype 802.1Q .* vlan $VLAN,.* who-has 10.77.$VLAN.9 .*tell 10.77.$VLAN.9"
}

# receive CONSOLE PORT: what a host does to have the guest.
receive() {
    echo "ferry receive -v --once $SWITCH --name web tcp::$2 </dev/null >$1 2>$1.log & FERRY=\$!
        left=6000
        until grep -q 'on port' $1.log; do left=\$((left - 1)); [ \$left -gt 0 ]; usleep 50000; done"
}

# goes: from the first host to the second, in the middle of one transfer.
goes() {
    peer "cp /root/initrd initrd; $(receive there 4444)"
    wait_for '^working' console
    grows
    behind $1
    same=$(connection)
    lines=$(wc -l <seen)
    ferry migrate web tcp:second:4444
    guest_end
    [ $STATUS = 0 ]
    announced "$lines"
    grows
    behind eth0
    [ "$(connection)" = "$same" ]
}

# returns: and back.
returns() {
    eval "$(receive back 4445)"
    lines=$(wc -l <seen)
    peer 'ferry migrate web tcp:first:4445'
    announced "$lines"
    grows
    behind $1
    [ "$(connection)" = "$same" ]
}

# goes_and_returns CPUS CARD
goes_and_returns() {
    peer_wait
    bridge_up
    /opt/bin/tcpdump -Z root -i br0 -n -e -l 'arp or rarp or vlan' >seen 2>seen.log &
    sleep 100000 | nc -l -p 7000 >got &
    guest_start "vlan=$VLAN$work" --name web --cpus "$1" --memory 128M $SWITCH --net "$2,mac=$MAC"
    goes ferry0
    returns ferry0
    until nc 10.77.0.9 7001 </dev/null; do usleep 500000; done
    guest_end
    cat back.log
    [ $STATUS = 0 ]
    has "^sum=$(sum got)" back
    has "^cpus=$1" back
    lacks '^kernel=complains' back
}

test_guest_with_1_cpu_moves_to_another_host_and_back_while_it_sends_by_tcp() {
    VLAN='' SWITCH=''
    goes_and_returns 1 bridge,br=br0
}

# Both hosts have a switch of Ferry's, of which the bridge is the uplink.
test_guest_with_2_cpus_and_a_vlan_moves_to_another_host_and_back_while_it_sends_by_tcp() {
    VLAN=5 SWITCH='--switch lan,uplink=bridge,br=br0,trunk=5,native=1'
    goes_and_returns 2 switch=lan,trunk=5,native=1
}
