# virtio-blk: a guest's root on a disk, and what reaches the image.
# lab: --disk @scratch --put @root:/root/root.img --modules loop
# put: e2fsck
# shellcheck shell=sh disable=SC2016,SC2034,SC2086,SC2154,SC2164 # the harness's variables, the guests' commands

# A real filesystem, on which O_DIRECT works; the lab's own is memory.
on_disk() {
    if ! grep -q " /scratch " /proc/mounts; then
        mkdir -p /scratch
        mount -t ext4 /dev/vda /scratch
    fi
    rm -rf /scratch/*
}

test_root_on_a_disk_is_written_and_clean_after_poweroff() {
    cp /root/root.img .
    ferry run --kernel $KERNEL --initrd $INITRD --decompress host --disk root.img \
        --append 'console=ttyS0 quiet root=/dev/vda ferry_sh="mount; seq 1 100000 | sha256sum; seq 1 100000 >/root/numbers; mkdir /root/many; for i in $(seq 200); do echo $i >/root/many/$i; done"' \
        </dev/null >console 2>ferry
    has '/dev/vda on / type ext4'
    has 'guest: status 0'
    /opt/bin/e2fsck -fn root.img
    mkdir -p /mnt
    mount -o loop root.img /mnt
    seq 1 100000 | cmp - /mnt/root/numbers
    [ "$(ls /mnt/root/many | wc -l)" = 200 ]
    umount /mnt
}

# A disk is written by the guest from end to end, found by the host, and read by the guest.
whole_disk='
    dd if=/dev/zero bs=1M count=16 2>/dev/null | tr "\000" "\252" >/dev/vda
    sync
    seq 1 1000000 | head -c 4194304 >/tmp/data
    dd if=/tmp/data of=/dev/vda bs=4k seek=256 conv=notrunc oflag=direct 2>/dev/null
    echo sum=$(dd if=/dev/vda bs=64k iflag=direct 2>/dev/null | sha256sum | cut -c 1-64)
    echo size=$(blockdev --getsize64 /dev/vda)'

written_and_read() {
    truncate -s 16M "$1"
    guest "$whole_disk" --disk "$1${2-}"
    [ "$(value size)" = 16777216 ]
    [ "$(value sum)" = "$(sum "$1")" ]
    seq 1 1000000 | head -c 4194304 >data
    dd if="$1" bs=1M skip=1 count=4 2>/dev/null | cmp - data
}

test_what_the_guest_writes_is_in_the_image() {
    written_and_read image
}

test_disk_with_O_DIRECT_holds_the_same() {
    on_disk
    written_and_read /scratch/image ,direct=on
}

test_many_readers_and_writers_at_once_see_their_own_data() {
    on_disk
    truncate -s 4M /scratch/image
    guest 'for i in $(seq 0 7); do
            (seq $((1000 + i)) 1000000 | head -c 524288 >/tmp/in$i
            dd if=/tmp/in$i of=/dev/vda bs=4k seek=$((i * 128)) oflag=direct conv=notrunc 2>/dev/null
            dd if=/dev/vda bs=4k skip=$((i * 128)) count=128 iflag=direct 2>/dev/null |
                cmp - /tmp/in$i && echo same) &
        done; wait' --disk /scratch/image --cpus 2
    [ "$(grep -a -c '^same' console)" = 8 ]
    for i in $(seq 0 7); do
        seq $((1000 + i)) 1000000 | head -c 524288 >expected
        dd if=/scratch/image bs=512k skip=$i count=1 2>/dev/null | cmp - expected
    done
}

test_readonly_disk_is_not_written() {
    seq 1 100000 | head -c 262144 >image
    before=$(sum image)
    guest 'echo ro=$(cat /sys/block/vda/ro); echo spoilt 2>/dev/null >/dev/vda || echo refused' \
        --disk image,readonly=on
    [ "$(value ro)" = 1 ]
    has '^refused'
    [ "$(sum "image")" = "$before" ]
}

test_discarded_blocks_are_given_back_to_the_host() {
    on_disk
    dd if=/dev/urandom of=/scratch/image bs=1M count=8 2>/dev/null
    sync
    before=$(du -k /scratch/image | cut -f 1)
    guest 'cat /sys/block/vda/queue/discard_max_bytes; blkdiscard -o 1048576 -l 4194304 /dev/vda && echo done' \
        --disk /scratch/image
    has '^done'
    sync
    [ "$(du -k /scratch/image | cut -f 1)" -le $((before - 4096)) ]
    [ "$(wc -c </scratch/image)" = 8388608 ]
}

test_write_zeroes_reach_the_image() {
    on_disk
    tr '\000' '\252' </dev/zero | head -c 8388608 >/scratch/image
    guest 'echo max=$(cat /sys/block/vda/queue/write_zeroes_max_bytes)
        blkdiscard.util-linux --zeroout -o 1048576 -l 2097152 /dev/vda && echo done' --disk /scratch/image
    [ "$(value max)" -gt 0 ]
    has '^done'
    [ "$(tr -d '\000' </scratch/image | wc -c)" = 6291456 ]
    dd if=/scratch/image bs=1M skip=1 count=2 2>/dev/null | tr -d '\000' | cmp - /dev/null
}

test_serial_number_and_two_disks_are_told_apart() {
    truncate -s 4M one
    truncate -s 8M two
    guest 'echo $(cat /sys/block/vda/serial) $(cat /sys/block/vda/size)
        echo $(cat /sys/block/vdb/serial) $(cat /sys/block/vdb/size)' \
        --disk one,serial=first --disk two,serial=second
    has '^first 8192'
    has '^second 16384'
}

test_disk_in_use_by_another_ferry_is_refused() {
    truncate -s 4M image
    guest_start 'echo up; sleep 100' --disk image
    wait_for '^up' console
    status=0
    ferry run -k $KERNEL -i $INITRD -d image </dev/null >console2 2>second || status=$?
    [ $status = 2 ]
    [ "$(wc -l <second)" = 1 ]
    has image second
}
