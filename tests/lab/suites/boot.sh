# Debian's stock kernel from start to end: CPUs, firmware, and every way a guest ends.
# lab: --smp 2
# guest: cpus
# shellcheck shell=sh disable=SC2016,SC2034,SC2086,SC2154,SC2164 # the harness's variables, the guests' commands

# What a kernel says when firmware or hardware is not as it should be.
complaints='ACPI.*(Error|Warning|Exception|BIOS Bug)|\[Firmware (Bug|Warn)|WARNING: CPU|BUG:|Oops:|Call Trace|pci .*(can.t|failed|conflict|no compatible|error)|rcu.*stall|unchecked MSR|spurious'

# Two guests, booted once for all tests that only read what they said.
report='dmesg -r | sed s/^/dmesg:/; echo cpus=$(nproc); echo mem=$(grep MemTotal /proc/meminfo); cat /proc/cpuinfo; cat /proc/interrupts; echo loadflags=$(od -An -tu1 -j 529 -N 1 /sys/kernel/boot_params/data | tr -d " "); grep " _text$" /proc/kallsyms; cat /sys/devices/system/clocksource/clocksource0/current_clocksource'

booted() {
    if [ ! -d "/run/booted-$1" ]; then
        mkdir "/run/booted-$1"
        cd "/run/booted-$1"
        DECOMPRESS=$2 guest_start "$report" --cpus "$1" --memory 512M
        guest_end
        echo "$STATUS" >status
        cd "$T"
    fi
    cp "/run/booted-$1/console" "/run/booted-$1/ferry" .
    [ "$(cat "/run/booted-$1/status")" = 0 ]
}

test_stock_kernel_boots_with_one_cpu() {
    booted 1 host
    [ "$(value cpus)" = 1 ]
    has 'guest: status 0'
}

test_stock_kernel_boots_with_two_cpus_and_unpacks_itself() {
    booted 2 guest
    [ "$(value cpus)" = 2 ]
    has 'guest: status 0'
}

# Bit 1 of loadflags is how who unpacks a kernel says that he moved it.
test_kernel_unpacked_by_the_host_runs_at_a_random_address() {
    booted 1 host
    [ $(($(value loadflags) & 2)) = 2 ]
    has '^ffffffff[89a-f][0-9a-f]{7} T _text'
}

test_kernel_with_one_cpu_complains_of_nothing() {
    booted 1 host
    has '^dmesg:.*Linux version'
    lacks "^dmesg:.*($complaints)"
}

test_kernel_with_two_cpus_complains_of_nothing() {
    booted 2 guest
    has '^dmesg:.*Linux version'
    lacks "^dmesg:.*($complaints)"
}

# A KVM that emulates kernel code shows the host's CPUID at CPL 3, so it is here that this is seen.
test_payload_guest_finds_its_processors_at_CPL_3_too() {
    ferry run -k /opt/guest/cpus.elf -a 'cpus=2' -c 2 </dev/null >console
    has '^ok cpuid-cpl3'
    lacks '^not ok'
}

test_kernel_finds_a_16550A() {
    booted 1 host
    has '^dmesg:.*ttyS0.*is a 16550A'
}

test_kernel_knows_that_it_runs_on_kvm() {
    booted 1 host
    has '^dmesg:.*Hypervisor detected: KVM'
    has '^kvm-clock|^tsc'
}

test_kernel_finds_the_power_button_and_the_panic_device() {
    booted 1 host
    has '^dmesg:.*Power Button'
    guest 'ls /sys/bus/acpi/devices /sys/module | grep -i -e QEMU0001 -e pvpanic_mmio'
    has QEMU0001
    has pvpanic_mmio
}

test_kernel_ends_by_poweroff_with_status_0() {
    guest_start 'echo up; sync; poweroff -f'
    guest_end
    has '^up'
    [ $STATUS = 0 ]
}

test_failed_command_in_the_guest_is_none_of_ours() {
    guest 'false'
    has 'guest: status 1'
}

test_panic_ends_with_the_status_of_a_crash() {
    guest_start 'echo c >/proc/sysrq-trigger'
    guest_end
    has 'sysrq triggered crash'
    [ $STATUS = $CRASHED ]
}

test_panic_without_the_panic_device_ends_with_the_status_of_a_crash_by_triple_fault() {
    APPEND='ferry.modules=virtio_pci reboot=t panic=-1' guest_start 'echo c >/proc/sysrq-trigger'
    guest_end
    [ $STATUS = $CRASHED ]
}

# The first start leaves a word on the disk, the second finds it.
once='
    read -r was </dev/vda
    echo was=$was
    [ "$was" != again ] || poweroff -f
    echo again >/dev/vda
    sync
    reboot -f'

test_reboot_starts_the_guest_again() {
    truncate -s 1M disk
    guest "$once" --disk disk
    [ "$(value was)" = again ]
    [ "$(grep -c -a 'guest: user space' console)" = 2 ]
}

test_reboot_by_the_keyboard_controller_starts_the_guest_again() {
    truncate -s 1M disk
    APPEND=reboot=k guest "$once" --disk disk
    [ "$(grep -c -a 'guest: user space' console)" = 2 ]
}

test_no_reboot_ends_the_guest_instead() {
    guest 'reboot -f' --no-reboot
    [ "$(grep -c -a 'guest: user space' console)" = 1 ]
}

test_SIGTERM_presses_the_power_button() {
    guest_start '
        mkdir -p /etc/acpi/PWRF
        cat >/etc/acpi/PWRF/00000080 <<EOF
#!/bin/sh
echo pressed >/dev/console
poweroff -f
EOF
        chmod 755 /etc/acpi/PWRF/00000080
        acpid -f &
        while kill -0 $! && ! ls -l /proc/$!/fd | grep -q /dev/input/event; do usleep 10000; done
        echo listening
        wait'
    wait_for listening console
    kill -TERM $FERRY
    guest_end
    has '^pressed'
    [ $STATUS = 0 ]
}

test_guest_that_ignores_the_power_button_is_ended_after_the_grace_period() {
    guest_start 'echo deaf; sleep 100' --grace 2
    wait_for deaf console
    kill -TERM $FERRY
    guest_end
    [ $STATUS = $TERMINATED ]
}
