# A stock guest that moves from process to process on one host, in the middle of its work.
# lab: --smp 2
# shellcheck shell=sh disable=SC2016,SC2034,SC2086,SC2154,SC2164 # the harness's variables, the guests' commands

# Memory, disk, clock, timers, network and both CPUs are used before and after; until the host writes
# a word to the second disk.
work='
    net-up
    head -c 20000000 /dev/urandom >/tmp/file
    before=$(sha256sum </tmp/file)
    dd if=/tmp/file of=/dev/vda bs=1M count=8 oflag=direct 2>/dev/null
    (while :; do head -c 1000000 /dev/urandom >/tmp/spin; done) & spin=$!
    echo working
    until [ "$(dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | head -c 3)" = end ]; do usleep 100000; done
    kill $spin
    [ "$before" = "$(sha256sum </tmp/file)" ] && echo memory=same
    [ "$(head -c 8388608 /tmp/file | sha256sum)" = "$(head -c 8388608 /dev/vda | sha256sum)" ] && echo disk=same
    ping -c 2 10.0.2.2 && echo network=works
    dmesg | grep -E "WARNING: CPU|BUG: |soft lockup|clocksource.*unstable" && echo kernel=complains
    echo cpus=$(grep -c ^processor /proc/cpuinfo)'

# go FROM TO OPTION...: the guest FROM goes into a new process, as TO, whose console is the file TO.
go() {
    from=$1 to=$2
    shift 2
    ferry receive -v --once --name "$to" "unix:$PWD/$to.link" </dev/null >"$to" 2>"$to.log" &
    receiver=$!
    wait_for 'waiting for a guest' "$to.log"
    ferry migrate "$@" "$from" "unix:$PWD/$to.link" || { cat "$to.log"; return 1; }
    guest_end
    [ $STATUS = 0 ]
    FERRY=$receiver
}

test_guest_moves_twice_in_the_middle_of_its_work() {
    truncate -s 16M disk
    truncate -s 4096 word
    guest_start "$work" --name web --cpus 2 --disk disk --disk word --net nat
    wait_for '^working' console
    go web web2 --copy
    lacks '^memory='
    go web2 web3
    lacks '^memory=' web2
    echo end | dd of=word conv=notrunc
    guest_end
    cat web3.log
    [ $STATUS = 0 ]
    has '^memory=same' web3
    has '^disk=same' web3
    has '^network=works' web3
    has '^cpus=2' web3
    lacks '^kernel=complains' web3
}
