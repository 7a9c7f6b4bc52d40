# A stock guest saved to a file and restored from it, in the middle of its work.
# lab: --smp 2
# shellcheck shell=sh disable=SC2016,SC2034,SC2086,SC2154,SC2164 # the harness's variables, the guests' commands

# Memory, disk, clock, timers, network and both CPUs are used before and after; until the host writes
# a word to the second disk.
work='
    net-up
    head -c 20000000 /dev/urandom >/tmp/file
    before=$(sha256sum </tmp/file)
    dd if=/tmp/file of=/dev/vda bs=1M count=8 oflag=direct 2>/dev/null
    (while :; do :; done) & spin=$!
    genid() { dd if=/dev/mem bs=4096 skip=223 count=1 2>/dev/null | head -c 16 | od -An -tx1 | tr -d " "; }
    told() { awk "/ACPI:Ged/ { n += \$2 + \$3 } END { print n + 0 }" /proc/interrupts; }
    genid=$(genid) told=$(told)
    [ -d /sys/bus/acpi/devices/FRRY0001:00 ] && echo genid=described
    echo working
    until [ "$(dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | head -c 3)" = end ]; do usleep 100000; done
    kill $spin
    [ "$before" = "$(sha256sum </tmp/file)" ] && echo memory=same
    [ "$(head -c 8388608 /tmp/file | sha256sum)" = "$(head -c 8388608 /dev/vda | sha256sum)" ] && echo disk=same
    ping -c 2 10.0.2.2 && echo network=works
    dmesg | grep -E "WARNING: CPU|BUG: |soft lockup|clocksource.*unstable" && echo kernel=complains
    [ "$genid" != "$(genid)" ] && echo genid=changed
    [ $(told) = $((told + 1)) ] && echo genid=told
    echo cpus=$(grep -c ^processor /proc/cpuinfo)'

test_guest_is_saved_and_restored_in_the_middle_of_its_work() {
    truncate -s 16M disk
    truncate -s 4096 word
    guest_start "$work" --name web --cpus 2 --disk disk --disk word --net nat
    wait_for '^working' console
    ferry save web file
    guest_end
    [ $STATUS = 0 ]
    has '^genid=described'
    lacks '^memory='
    lacks '^genid=changed'
    ferry restore file </dev/null >console 2>ferry &
    FERRY=$!
    echo end | dd of=word conv=notrunc
    guest_end
    cat ferry
    [ $STATUS = 0 ]
    has '^memory=same'
    has '^disk=same'
    has '^network=works'
    has '^cpus=2'
    has '^genid=changed'
    has '^genid=told'
    lacks '^kernel=complains'
}
