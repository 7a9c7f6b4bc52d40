# Guests' memory: below and above the hole under 4 GiB, and huge pages.
# lab: --memory 6G
# shellcheck shell=sh disable=SC2016,SC2034,SC2086,SC2154,SC2164 # the harness's variables, the guests' commands

# The kernel keeps some for itself: its image and a page table entry a page, 1/64 and more.
total_is_about() {
    total=$(value total)
    [ "$total" -le $(($1 * 1024)) ]
    [ "$total" -ge $(($1 * 1024 * 95 / 100 - 65536)) ]
}

report='
    echo total=$(sed -n "s/^MemTotal: *\([0-9]*\) kB/\1/p" /proc/meminfo)
    dmesg | grep -i -e e820 -e "WARNING:" -e mtrr'

test_guest_of_512_MiB_has_them() {
    guest "$report" --memory 512M
    total_is_about 512
}

test_guest_of_3584_MiB_has_them_on_both_sides_of_the_hole() {
    guest "$report" --memory 3584M
    total_is_about 3584
    has 'BIOS-e820: \[mem 0x0000000100000000-0x000000011fffffff\] usable'
}

test_guest_of_5_GiB_has_them_and_they_hold_data() {
    guest "$report"'
        mkdir /big
        mount -t tmpfs -o size=4500M big /big
        head -c 25165824 /dev/urandom >/big/first
        echo first=$(sha256sum </big/first | cut -c 1-64)
        cp /big/first /big/second
        echo second=$(sha256sum </big/second | cut -c 1-64)' --memory 5G
    total_is_about 5120
    [ "$(value first)" = "$(value second)" ]
}

test_guest_of_one_MiB_more_than_lies_below_the_hole() {
    guest "$report" --memory 3073M
    total_is_about 3073
}

test_guest_on_huge_pages_takes_them_from_the_host() {
    echo 300 >/proc/sys/vm/nr_hugepages
    free=$(sed -n 's/^HugePages_Free: *//p' /proc/meminfo)
    [ "$free" -ge 256 ] || skip 'the lab has no huge pages to give'
    guest_start "$report
        sleep 1000" --memory 512M,hugepages=2M
    wait_for '^total=' console
    [ "$(sed -n 's/^HugePages_Free: *//p' /proc/meminfo)" -lt "$free" ]
    total_is_about 512
    kill -KILL $FERRY
}
