#!/bin/bash
# Measures the network modes beside QEMU's: throughput both ways, connections and round trips of TCP
# between the payload tcp and tests/net/server.c, in network namespaces of this script's own. Each mode
# runs once a round; a figure is the median of the rounds. Prints a Markdown table, and one of how far
# Ferry is ahead of its peers: the medians of the rounds' ratios, so that what else the machine does
# counts for both. Asserts nothing.
#
#     third (10.8.0.2, a server) ---- v0 (10.8.0.1) this namespace, "the host", a server ---- the guest
set -uo pipefail

rounds=5
ms=300
only=()

usage() {
    cat <<'END'
Usage: tests/bench/modes.sh [--rounds N] [--ms N] [PATTERN...]
Measure the network modes beside QEMU's; with patterns (as in case), only the rows that match one.

  --rounds N   runs of each mode [5]
  --ms N       for each figure of a run [300]
END
}

arguments=("$@")
while (($#)); do
    case $1 in
        --rounds) rounds=$2; shift ;;
        --ms) ms=$2; shift ;;
        -h | --help) usage; exit ;;
        -*) usage >&2; exit 2 ;;
        *) only+=("$1") ;;
    esac
    shift
done

subject='the network modes'
# shellcheck source=tests/bench/apart.sh
. "$(dirname "${BASH_SOURCE[0]}")/apart.sh"
# passt gives up its rights before it looks for a socket.
chmod 777 "$work"
export XDG_STATE_HOME=$work/state

# The host, the world outside, two taps, and the servers, which end with this process.
set_up() {
    local line
    mkdir -p /run/netns
    ip link set lo up
    ip netns add third
    ip link add v0 type veth peer name v1 netns third
    ip addr add 10.8.0.1/24 dev v0
    ip link set v0 up
    ip route add default via 10.8.0.2
    ip -n third addr add 10.8.0.2/24 dev v1
    ip -n third link set v1 up
    ip tuntap add tap0 mode tap vnet_hdr
    ip addr add 10.5.0.1/24 dev tap0
    ip link set tap0 up
    exec 3< <(exec "$server" $port) 4< <(exec ip netns exec third "$server" $port)
    read -r line <&3 && read -r line <&4
}

# figures: the costs that a payload printed, as "RTT CONNECTION SEND RECEIVE": microseconds and
# Gbit/s; nothing if any is missing.
figures() {
    awk '$1 == "cost" { ns[$2] = $3 }
         END { if (ns["tcp-rtt"] && ns["tcp-connection"] && ns["tcp-send-mib"] && ns["tcp-receive-mib"])
                   printf "%.1f %.1f %.2f %.2f\n", ns["tcp-rtt"] / 1e3, ns["tcp-connection"] / 1e3,
                       8388608 / ns["tcp-send-mib"], 8388608 / ns["tcp-receive-mib"] }'
}

# What the payload is told: its own address, the gateway, the server.
append() {
    echo "address=$1 gateway=$2 ${3:+to=$3} port=$port rtt=$ms connections=$ms send=$ms receive=$ms ${4-}"
}

by_ferry() {
    timeout 60 "$ferry" run -k "$tcp" -m 64M -n "$1" -a "$2" </dev/null 2>"$work/err"
}

# QEMU 7.2 asks KVM for a feature that not every KVM has. Its window for cards is where the payload
# expects it; the ECAM has to be told.
by_qemu() {
    timeout 60 qemu-system-x86_64 -enable-kvm -nodefaults -no-user-config -display none -serial stdio \
        -no-reboot -m 64 -cpu host,-arch-capabilities -M microvm,pcie=on -kernel "$tcp" \
        -device isa-debug-exit,iobase=0xf4,iosize=4 -append "$2 ecam=0xe0000000 exit-port=0xf4" \
        -netdev "$1" -device virtio-net-pci,netdev=n,disable-legacy=on,romfile= </dev/null 2>"$work/err"
}

# As nat,via=kernel: a table and forwarding at two links, for as long as this runs.
by_qemu_and_nft() {
    local link
    nft -f - <<'END' || return
table ip bench {
    chain out {
        type nat hook postrouting priority srcnat
        ip saddr 10.5.0.0/24 oifname "v0" masquerade
    }
}
END
    for link in tap0 v0; do echo 1 >/proc/sys/net/ipv4/conf/$link/forwarding; done
    by_qemu tap,id=n,ifname=tap0,script=no,downscript=no "$1"
    for link in tap0 v0; do echo 0 >/proc/sys/net/ipv4/conf/$link/forwarding; done
    nft delete table ip bench
}

# passt does not always notice that QEMU went.
by_qemu_and_passt() {
    local passt
    passt --quiet --foreground --one-off --socket "$work/passt" 2>"$work/passt.err" &
    passt=$!
    until [[ -S $work/passt ]]; do
        kill -0 $passt 2>/dev/null || return
        read -r -t 0.02 <>"$work/never"
    done
    by_qemu "stream,id=n,server=off,addr.type=unix,addr.path=$work/passt" "$1"
    kill -KILL $passt 2>/dev/null
    wait $passt 2>/dev/null
    rm -f "$work/passt"
}
mkfifo "$work/never"

names=('nat' 'QEMU, user' 'nat,via=passt' 'QEMU, stream to passt' 'tap' 'QEMU, tap' 'hostonly'
    'nat,via=kernel' 'QEMU, tap behind nft')

measure() {
    case $1 in
        'nat') by_ferry nat "$(append 10.0.2.15 10.0.2.2)" ;;
        'QEMU, user') by_qemu user,id=n "$(append 10.0.2.15 10.0.2.2)" ;;
        # passt has the guest use the host's address, and a link of 64 KiB, as it tells by DHCP.
        'nat,via=passt') by_ferry nat,via=passt "$(append 10.8.0.1 10.8.0.2 '' mtu=65520)" ;;
        'QEMU, stream to passt') by_qemu_and_passt "$(append 10.8.0.1 10.8.0.2 '' mtu=65520)" ;;
        'tap') by_ferry tap,if=tap0 "$(append 10.5.0.2 10.5.0.1)" ;;
        'QEMU, tap') by_qemu tap,id=n,ifname=tap0,script=no,downscript=no "$(append 10.5.0.2 10.5.0.1)" ;;
        'hostonly') by_ferry hostonly,router=192.168.160.1 "$(append 192.168.160.16 192.168.160.1)" ;;
        'nat,via=kernel')
            by_ferry nat,via=kernel,subnet=10.9.0.0/24 "$(append 10.9.0.16 10.9.0.1 10.8.0.2)" ;;
        'QEMU, tap behind nft') by_qemu_and_nft "$(append 10.5.0.2 10.5.0.1 10.8.0.2)" ;;
    esac | figures
}

# can NAME: what a row takes is there.
can() {
    local pattern
    [[ $1 != QEMU* ]] || command -v qemu-system-x86_64 >/dev/null || return
    [[ $1 != *passt ]] || command -v passt >/dev/null || return
    [[ $1 != *nft ]] || command -v nft >/dev/null || return
    ((${#only[@]} == 0)) && return
    for pattern in "${only[@]}"; do
        # shellcheck disable=SC2053 # a pattern on purpose
        [[ $1 == $pattern ]] && return
    done
    return 1
}

median() { sort -g | awk '{ at[NR] = $1 } END { if (NR) print at[int((NR + 1) / 2)] }'; }

# column FILE N: the median of the rounds that came to an end.
column() { awk -v n="$2" 'NF > 1 { print $n }' "$1" | median; }

# ahead OURS THEIRS N: the median of the rounds' ratios; above 1, ours is ahead.
ahead() {
    paste -d ' ' "$1" "$2" | awk -v n="$3" 'NF == 8 { print (n > 2 ? $n / $(n + 4) : $(n + 4) / $n) }' | median
}

# versus NAME PEER: a row of ratios, when both were measured.
versus() {
    local i ours='' theirs='' ratios
    for i in "${!names[@]}"; do
        [[ ${names[i]} != "$1" ]] || ours=$work/row$i
        [[ ${names[i]} != "$2" ]] || theirs=$work/row$i
    done
    [[ -s $ours && -s $theirs ]] || return 0
    mapfile -t ratios < <(for i in 3 4 2 1; do ahead "$ours" "$theirs" $i; done)
    ((${#ratios[@]} == 4)) && printf '| %s beside %s | %.2f | %.2f | %.2f | %.2f |\n' "$1" "$2" "${ratios[@]}"
}

set_up || exit
for ((round = 0; round < rounds; round++)); do
    for i in "${!names[@]}"; do
        can "${names[i]}" || continue
        line=$(measure "${names[i]}")
        echo "${line:--}" >>"$work/row$i"
    done
done
echo '| | to the host, Gbit/s | from the host, Gbit/s | a connection, µs | a round trip, µs |'
echo '| --- | ---: | ---: | ---: | ---: |'
for i in "${!names[@]}"; do
    can "${names[i]}" || continue
    runs=$(grep -cv '^-' "$work/row$i")
    note=
    ((runs == rounds)) || note=" ($runs of $rounds runs)"
    if ((runs > 0)); then
        printf '| %s%s | %.1f | %.1f | %.0f | %.0f |\n' "${names[i]}" "$note" "$(column "$work/row$i" 3)" \
            "$(column "$work/row$i" 4)" "$(column "$work/row$i" 2)" "$(column "$work/row$i" 1)"
    else
        printf '| %s | none: %s ||||\n' "${names[i]}" "$(tail -n 1 "$work/err")"
    fi
done
echo
echo 'Ahead by (above 1: Ferry is):'
echo
echo '| | to the host | from the host | a connection | a round trip |'
echo '| --- | ---: | ---: | ---: | ---: |'
versus 'nat' 'QEMU, user'
versus 'nat' 'QEMU, stream to passt'
versus 'nat,via=passt' 'QEMU, stream to passt'
versus 'tap' 'QEMU, tap'
versus 'hostonly' 'QEMU, tap'
versus 'nat,via=kernel' 'QEMU, tap behind nft'
exit 0
