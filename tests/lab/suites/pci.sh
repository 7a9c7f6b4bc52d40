# The PCI bus as Linux finds it: configuration space, BARs, MSI-X, drivers that come and go.
# lab: --smp 2
# shellcheck shell=sh disable=SC2016,SC2034,SC2086,SC2154,SC2164 # the harness's variables, the guests' commands

# In the guest: the PCI device behind a virtio disk, and a disk's checksum read past the cache.
tools='
    pci_of() { basename $(dirname $(readlink -f /sys/class/$1/device)); }
    read_disk() { dd if=/dev/vda bs=64k iflag=direct 2>/dev/null | sha256sum | cut -c 1-64; }
    wait_file() { n=0; until [ -e $1 ]; do n=$((n + 1)); [ $n -lt 4000 ] || return 1; usleep 25000; done; }'

disk() {
    seq 1 1000000 | head -c 4194304 >image
    truncate -s 1M second
}

test_functions_show_all_of_their_configuration_space() {
    disk
    guest 'for d in /sys/bus/pci/devices/*; do
            echo config=$(basename $d) $(cat $d/vendor $d/device $d/class) \
                $(wc -c <$d/config) $(stat -c %s $d/config)
        done
        dmesg -r | grep -i pci | sed s/^/dmesg:/' --disk image --disk second
    has '^config=0000:00:00.0 0x1b36 0x0008 0x060000 4096 4096'
    has '^config=0000:00:01.0 0x1af4 0x1042 0x018000 4096 4096'
    has '^config=0000:00:02.0 0x1af4 0x1042 0x018000 4096 4096'
    has '^config=.* 0x1af4 0x1044 .* 4096 4096'
    has '^dmesg:.*PCI host bridge to bus 0000:00'
    lacks '^dmesg:.*(can.t|failed|conflict|error|invalid|bogus|BIOS|not claimed)'
}

test_each_queue_has_its_own_vector() {
    disk
    guest "$tools"'
        read_disk >/dev/null
        grep virtio /proc/interrupts' --disk image --cpus 2
    has 'PCI-MSI.*virtio[0-9]-config'
    has 'PCI-MSI.*virtio[0-9]-req.0'
    has 'PCI-MSI.*virtio[0-9]-input'
    lacks 'IO-APIC.*virtio'
}

test_a_driver_leaves_and_comes_back() {
    disk
    guest "$tools"'
        dev=$(pci_of block/vda)
        for i in 1 2 3 4 5; do
            read_disk >/dev/null
            echo $dev >/sys/bus/pci/drivers/virtio-pci/unbind
            [ ! -e /sys/block/vda ] || echo still there
            echo $dev >/sys/bus/pci/drivers/virtio-pci/bind
            wait_file /sys/block/vda
        done
        echo sum=$(read_disk)' --disk image
    lacks 'still there'
    [ "$(value sum)" = "$(sum image)" ]
}

test_a_function_is_removed_and_found_again() {
    disk
    guest "$tools"'
        dev=$(pci_of block/vda)
        for i in 1 2 3; do
            echo 1 >/sys/bus/pci/devices/$dev/remove
            echo 1 >/sys/bus/pci/rescan
            wait_file /sys/block/vda
        done
        echo sum=$(read_disk)
        dmesg | grep -i -E "pci.*(fail|can.t|no space)"' --disk image
    [ "$(value sum)" = "$(sum image)" ]
    lacks 'pci .*(failed|no space|can.t)'
}

test_bars_are_placed_anew() {
    disk
    guest "$tools"'
        old=$(cut -d " " -f 1 /sys/bus/pci/devices/$(pci_of block/vda)/resource | head -n 1)
        echo old=$old
        # With all gone, the guest gives the BARs out in the order of rescan.
        for d in /sys/bus/pci/devices/0000:00:*; do
            [ $(cat $d/class) = 0x060000 ] || echo 1 >$d/remove
        done
        echo 1 >/sys/bus/pci/rescan
        wait_file /sys/block/vda
        echo new=$(cut -d " " -f 1 /sys/bus/pci/devices/$(pci_of block/vda)/resource | head -n 1)
        echo sum=$(read_disk)' --disk image --disk second
    has '^old=0x00000000c'
    has '^new=0x00000000c'
    [ "$(value sum)" = "$(sum image)" ]
}

test_interrupts_move_between_cpus_under_load() {
    disk
    guest "$tools"'
        irq=$(sed -n "s/^ *\([0-9]*\):.*virtio[0-9]-req.0.*/\1/p" /proc/interrupts)
        echo irq=$irq
        (for i in 1 2 3 4 5 6 7 8; do echo sum$i=$(read_disk); done) &
        while kill -0 $! 2>/dev/null; do
            echo 1 >/proc/irq/$irq/smp_affinity
            usleep 5000
            echo 2 >/proc/irq/$irq/smp_affinity
            usleep 5000
        done
        wait
        grep virtio[0-9]-req.0 /proc/interrupts' --disk image --cpus 2
    for i in 1 2 3 4 5 6 7 8; do
        [ "$(value sum$i)" = "$(sum image)" ]
    done
}

test_a_reset_in_the_middle_of_reading_loses_no_later_request() {
    disk
    guest "$tools"'
        dev=$(pci_of block/vda)
        for i in 1 2 3 4; do
            read_disk >/dev/null &
            usleep 3000
            echo $dev >/sys/bus/pci/drivers/virtio-pci/unbind
            wait
            echo $dev >/sys/bus/pci/drivers/virtio-pci/bind
            wait_file /sys/block/vda
        done
        echo sum=$(read_disk)' --disk image
    [ "$(value sum)" = "$(sum image)" ]
}
