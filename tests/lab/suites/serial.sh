# The serial port and the virtio console as ways for bytes, and Ferry on a terminal.
# put: script grep
# shellcheck shell=sh disable=SC2016,SC2034,SC2086,SC2154,SC2164 # the harness's variables, the guests' commands

# The guest takes $size random bytes from its console, tells their checksum and sends them back.
echo_back='
    stty raw -echo
    echo take
    head -c $size >/tmp/taken
    echo
    echo sum=$(sha256sum </tmp/taken | cut -c 1-64)
    echo start-of-data
    cat /tmp/taken
    echo end-of-data'

# pass_bytes SIZE [OPTION]...: both ways through the guest's console.
pass_bytes() {
    size=$1
    shift
    # Without the byte 15, by which Linux knows a system request on a virtio console.
    head -c $((size + size / 8)) /dev/urandom | tr -d '\017' | head -c $size >sent
    mkfifo input
    INPUT=input guest_start "size=$size$echo_back" "$@"
    exec 5>input
    wait_for '^take' console
    cat sent >&5
    guest_end 1200
    exec 5>&-
    [ $STATUS = 0 ]
    [ "$(value sum)" = "$(sum "sent")" ]
    # What follows the line of the mark, as many bytes as were sent.
    start=$(/opt/bin/grep -a -b -o start-of-data console | cut -d : -f 1)
    tail -c +$((start + 1)) console | sed '1q' >mark
    tail -c +$((start + 1 + $(wc -c <mark))) console | head -c $size | cmp - sent
}

# Three exits to user space a byte there and back, each of them dear under emulation: a megabyte takes
# some ten minutes. `make check` is content with a part; PASTE=1048576 asks for the whole.
[ "${PASTE:-0}" -lt 500000 ] || LIMIT=1400
test_a_paste_passes_the_16550A_whole_in_both_directions() {
    pass_bytes ${PASTE:-65536}
}

test_a_megabyte_passes_the_virtio_console_whole_in_both_directions() {
    CONSOLE=hvc0 pass_bytes 1048576 --console virtio
}

test_virtio_console_shows_what_the_guest_writes() {
    CONSOLE=hvc0 guest 'tty; cat /sys/class/tty/console/active; echo hello' --console virtio
    has '^hvc0'
    has '^hello'
}

test_console_off_shows_nothing() {
    guest 'echo hello' --console off
    [ ! -s console ]
}

test_virtio_rng_gives_random_data() {
    guest 'cat /sys/class/misc/hw_random/rng_current
        head -c 4096 /dev/hwrng >/tmp/a; head -c 4096 /dev/hwrng >/tmp/b
        wc -c </tmp/a; cmp -s /tmp/a /tmp/b || echo differ
        echo distinct=$(od -An -v -tu1 -w1 /tmp/a | sort -u | wc -l)'
    has '^virtio_rng'
    has '^4096'
    has '^differ'
    [ "$(value distinct)" -gt 240 ]
}

test_empty_input_does_not_end_the_guest() {
    guest 'read -t 2 -r line; echo "still here"'
    has '^still here'
}

# terminal SECONDS COMMAND KEYS: runs the command on a terminal of its own, types the keys when the
# guest is up, and notes the terminal's settings before and after.
terminal() {
    cat >on-terminal <<EOF
stty -g >before
$1
printf '\nstatus=%s\n' "\$?"
stty -g >after
EOF
    mkfifo keys
    /opt/bin/script -q -e -c 'sh on-terminal' typescript <keys >console &
    SCRIPT=$!
    exec 6>keys
}

# terminal_end: waits for the end of what runs there, as guest_end does.
terminal_end() {
    (set +x; too_late 300 'the guest' $SCRIPT) >/dev/null 2>&1 &
    watchdog=$!
    wait $SCRIPT
    kill -9 $watchdog
}

typed() { printf "$1" >&6; }

test_terminal_is_raw_while_the_guest_runs_and_restored_after() {
    terminal "ferry run -k $KERNEL -i $INITRD --decompress host -a 'console=ttyS0 quiet'"
    wait_for '^/root #' console
    typed 'stty -g >/dev/null; echo gue''st; sleep 100\n'
    wait_for '^guest' console
    typed '\003'
    typed 'echo interrupted=$?\n'
    wait_for '^interrupted=130' console
    typed 'poweroff -f\n'
    terminal_end
    [ "$(value status)" = 0 ]
    cmp before after
}

test_ctrl_a_x_ends_the_guest_and_restores_the_terminal() {
    terminal "ferry run -k $KERNEL -i $INITRD --decompress host -a 'console=ttyS0 quiet'"
    wait_for '^/root #' console
    typed '\001x'
    terminal_end
    has '^status='
    cmp before after
}

test_ctrl_a_ctrl_a_sends_one() {
    terminal "ferry run -k $KERNEL -i $INITRD --decompress host -a 'console=ttyS0 quiet'"
    wait_for '^/root #' console
    typed 'stty -icanon -echo; echo re''ady; head -c 2 | od -An -tx1\n'
    wait_for '^ready' console
    typed '\001\001z'
    wait_for '^ 01 7a' console
    typed '\001x'
    terminal_end
}

test_SIGINT_and_SIGKILL_apart_every_signal_restores_the_terminal() {
    terminal "ferry run -k $KERNEL -i $INITRD --decompress host -a 'console=ttyS0 quiet' --grace 1"
    wait_for '^/root #' console
    kill -TERM "$(pidof ferry)"
    terminal_end
    [ "$(value status)" = $TERMINATED ]
    cmp before after
}
