#!/bin/sh
# Runs tests in the lab: harness.sh [TEST]... calls each function test_TEST of /lab/suite and prints
# 'ok NAME', 'not ok NAME' with the end of what it printed, or 'skipped NAME: reason'.
#
# A test fails when any of its commands does (it runs under `set -e`, traced into its log), or after
# $LIMIT seconds, and may use what stands below. Each has an empty folder of its own, and the guests it
# leaves are killed.
# shellcheck disable=SC2034,SC2086 # variables for the tests; numbers

KERNEL=/root/vmlinuz
INITRD=/root/initrd
# What `ferry run` ends with.
CRASHED=4
TERMINATED=143
# Seconds that one test may take; a suite may set it.
LIMIT=600

# skip REASON: ends the test, which was not run.
skip() { echo "$1" >"$T/skipped"; exit 77; }

# wait_for PATTERN FILE [SECONDS]: waits until the file has a line like it.
wait_for() {
    set +x
    left=$((${3:-300} * 20))
    until grep -q -a -e "$1" "$2"; do
        [ "$left" -gt 0 ] || { set -x; echo "no '$1' came"; return 1; }
        left=$((left - 1))
        usleep 50000
    done
    set -x
}

# guest_start COMMANDS [OPTION]...: boots Debian's kernel in ferry, in the background, to run the
# commands; its console goes to ./console, Ferry's own words to ./ferry, its input is $INPUT.
# $APPEND goes to the kernel's command line, $DECOMPRESS says who unpacks the kernel, $CONSOLE the
# kernel's console.
guest_start() {
    printf '#!/bin/sh\n%s\n' "$1" >commands
    shift
    chmod 755 commands
    echo commands | cpio -o -H newc 2>/dev/null | cat "$INITRD" - >initrd
    ferry run --kernel "$KERNEL" --initrd initrd --decompress "${DECOMPRESS:-host}" \
        --append "console=${CONSOLE:-ttyS0} quiet ${APPEND-} ferry.run=/commands" "$@" \
        <"${INPUT:-/dev/null}" >console 2>ferry &
    FERRY=$!
}

# ferries_state: what all that run do: their threads, and for a second the ways out of their guests, by which
# one sees whether a guest that is late waits, spins or has lost an interrupt.
ferries_state() {
    tracing=/sys/kernel/debug/tracing
    for task in $(pidof ferry | tr ' ' '\n' | sed 's|.*|/proc/&/task/*|'); do
        echo "$(cat $task/comm): $(sed 's/.*) //' $task/stat | cut -d ' ' -f 1,12,13) in $(cat $task/wchan)"
    done
    echo >$tracing/trace
    echo 1 >$tracing/events/kvm/kvm_exit/enable
    sleep 1
    echo 0 >$tracing/events/kvm/kvm_exit/enable
    echo "$(grep -c kvm_exit: $tracing/trace) exits in a second, the last of them:"
    tail -n 12 $tracing/trace | sed -e 's/.*kvm_exit: //' -e 's/ info2 .*//'
}

# too_late SECONDS WHAT PROCESS: kills it after so long, when the state of all is in the file `state`.
too_late() {
    sleep "$1"
    { echo "$2 took more than $1 s"; ferries_state; } >"$T/state" 2>&1 || true
    kill -9 "$3"
}

# guest_end [SECONDS]: waits for the guest's end, for five minutes by default, as the machine under the
# lab may be busy; sets STATUS.
guest_end() {
    (set +x; too_late "${1:-300}" 'the guest' $FERRY) >/dev/null 2>&1 &
    watchdog=$!
    STATUS=0
    wait $FERRY || STATUS=$?
    kill -9 $watchdog 2>/dev/null || true
}

# guest COMMANDS [OPTION]...: both of them, for a guest that powers off.
guest() {
    guest_start "$@"
    guest_end
    cat ferry
    [ $STATUS = 0 ]
}

# has PATTERN [FILE], lacks PATTERN [FILE]: whether a line of the console, or the file, is like it.
has() { grep -a -q -E -e "$1" "${2:-console}" || { echo "no line like: $1"; return 1; }; }
lacks() { ! grep -a -E -e "$1" "${2:-console}" || { echo "there is a line like: $1"; return 1; }; }

# sum FILE: its checksum.
sum() { sha256sum "$1" | cut -d ' ' -f 1; }

# value KEY: what the guest's console says after 'KEY='.
value() { tr -d '\r' <console | sed -n "s/^$1=//p" | tail -n 1; }

# leftovers: kills what the test has left running, and forgets what guests that ended have said.
leftovers() {
    # shellcheck disable=SC2046
    kill -9 $(pidof ferry httpd nc nc.openbsd tcpdump) 2>/dev/null
    rm -rf /run/ferry
}

# indented: what comes in, with no byte that a terminal or a reader of lines could stumble over.
indented() { tr -d '\r' | cat -v | awk '{ print "    " $0 }'; }

# excerpt: the last lines of what comes in, and before them those with which a kernel began to complain.
excerpt() {
    awk '{ line[NR] = $0 }
        !first && /BUG:|Oops|panic|general protection|WARNING:|Call Trace/ { first = NR }
        END {
            tail = NR > 30 ? NR - 29 : 1
            for (i = first; first && i < tail && i < first + 25; i++) print line[i]
            if (first && i < tail) print "    ..."
            for (i = tail; i <= NR; i++) print line[i]
        }'
}

report_failure() {
    echo "not ok $1"
    tail -n 25 "$T/log" | indented
    for file in ferry console state; do
        [ -s "$T/$file" ] || continue
        echo "    --- $file:"
        indented <"$T/$file" | excerpt
    done
}

run_test() {
    T=/run/test
    rm -rf $T
    mkdir -p $T
    cd $T || exit 1
    (
        set -eux
        "test_$1"
    ) >"$T/log" 2>&1 </dev/null &
    running=$!
    too_late $LIMIT 'the test' $running >/dev/null 2>&1 &
    limit=$!
    status=0
    wait $running 2>/dev/null || status=$?
    kill -9 $limit 2>/dev/null
    name="lab: $(echo "$1" | tr _ ' ')"
    if [ -e $T/skipped ]; then
        echo "skipped $name: $(cat $T/skipped)"
    elif [ $status = 0 ]; then
        echo "ok $name"
    else
        report_failure "$name"
    fi
    leftovers
    cd /
}

# ---- several guests, by `ferry up` ----

# The guests' scripts begin with it. All read the disk `word`, by which the host lets them go on.
GUEST_WORDS='#!/bin/sh
word() { dd if=/dev/vda bs=512 count=1 iflag=direct 2>/dev/null | head -c 3; }
await() { until [ "$(word)" = $1 ]; do usleep 200000; done; }
reach() { until ping -c 1 -W 1 "$@" >/dev/null; do usleep 100000; done; }
answers() { ping "$@" | sed -n "s/.* \([0-9]*\) packets received.*/\1/p"; }
fetch() { until wget -q -O got http://$1/file; do usleep 500000; done; sha256sum <got | cut -c 1-64; }
up() { ip address add $2 dev $1; ip link set $1 up; }
serve() {
    mkdir -p www/cgi-bin
    head -c ${1:-1000000} /dev/urandom >www/file
    echo sent=$(sha256sum <www/file | cut -c 1-64)
    httpd -p 80 -h www
}
finish() { echo done; await end; }
'

# script NAME VARIABLE...: a guest's script is what comes in, with the variables before it.
script() {
    name=$1
    shift
    { printf '%s\n' "$GUEST_WORDS" "$@"; cat; } >"$name"
    chmod 755 "$name"
}

# initrd_with NAME...: the guests' initrd, with these scripts, as ./initrd; and the disk `word`.
initrd_with() {
    printf '%s\n' "$@" | cpio -o -H newc 2>/dev/null | cat "$INITRD" - >initrd
    truncate -s 4096 word
}

# guest_of NAME CPUS INITRD NET...: its lines of a lab's file.
guest_of() {
    cat <<END
  $1:
    kernel: $KERNEL
    initrd: $3
    decompress: host
    memory: 192M
    cpus: $2
    append: console=ttyS0 quiet ferry.run=/$1
    disks: [{path: word, readonly: on}]
    nets:
END
    shift 3
    printf '      - {switch: %s}\n' "$@"
}

# lab_start FILE: in the background; its process is added to $labs.
lab_start() {
    ferry up $1 </dev/null >${1%.yaml}.ferry 2>&1 &
    labs="${labs-} $!"
}

# tell WORD: all guests.
tell() { echo "$1" | dd of=word conv=notrunc 2>/dev/null; }

# wait_guest NAME LINE: until its console has the line.
wait_guest() {
    set +x
    left=3000
    until { ferry console --dump $1 2>&1 | tr -d '\r'; } >$1.console && grep -q -x -e "$2" $1.console; do
        [ $left -gt 0 ] || { set -x; echo "$1 does not say '$2'"; tail -n 20 $1.console; return 1; }
        left=$((left - 1))
        usleep 100000
    done
    set -x
}

# labs_end GUEST...: until all have ended well; what they said goes to files GUEST.console.
labs_end() {
    for FERRY in $labs; do
        guest_end
        [ $STATUS = 0 ]
    done
    for guest; do ferry console --dump $guest | tr -d '\r' >$guest.console; done
}

# said GUEST LINE
said() { grep -q -x -e "$2" $1.console || { echo "$1 does not say '$2':"; tail -n 20 $1.console; return 1; }; }

# told GUEST KEY: what it said of it.
told() { sed -n "s/^$2=//p" $1.console; }

# counted SWITCH PORT KEY: that of the port, from the switch's JSON, in which a port's keys follow its name.
counted() {
    n=$(ferry net $1 --json | awk -v port="\"$2\"," -v key="\"$3\":" '
        $1 == "\"name\":" { inside = $2 == port } inside && $1 == key { print $2 + 0; exit }')
    [ "${n:-0}" -gt 0 ] || { ferry net $1; return 1; }
}

# ---- two hosts ----

# bridge_up: the lab's Ethernet becomes a port of the bridge br0, which has its addresses, once.
bridge_up() {
    [ ! -e /sys/class/net/br0 ] || return 0
    address=$(ip -o -4 address show dev eth0 | awk '{ print $4 }')
    mac=$(cat /sys/class/net/eth0/address)
    ip link add br0 type bridge
    ip link set br0 address "$mac"
    ip address flush dev eth0
    ip link set eth0 master br0
    ip link set br0 up
    ip address add "$address" dev br0
}

# serve: does what the other lab's tests ask for, by peer().
serve() {
    bridge_up
    mkdir -p /run/www/cgi-bin /run/test
    cat >/run/www/cgi-bin/run <<'END'
#!/bin/sh
export PATH=/usr/sbin:/usr/bin HOME=/root
printf 'Content-Type: text/plain\r\n\r\n'
cd /run/test
head -c "$CONTENT_LENGTH" >/run/asked.$$
sh -eu /run/asked.$$ 2>&1
echo "status $?"
END
    chmod 755 /run/www/cgi-bin/run
    exec httpd -f -p 8080 -h /run/www
}

# peer COMMANDS: runs them on the second host, in a folder that is as this one is named. What stays in
# the background there writes to files.
peer() {
    wget -q -O peer.out --post-data "$1" http://second:8080/cgi-bin/run || return 1
    sed '$d' peer.out
    [ "$(tail -n 1 peer.out)" = 'status 0' ]
}

# peer_wait: until the second host is there, for four minutes at most; it has nothing left of a test before.
peer_wait() {
    deadline=$(($(date +%s) + 240))
    until peer 'kill -9 $(pidof ferry) 2>/dev/null || true; rm -rf /run/test/*' 2>/dev/null; do
        [ "$(date +%s)" -lt $deadline ] || { echo 'the second host does not answer'; return 1; }
        usleep 100000
    done
}

exec 2>&1
[ "$1" != --serve ] || serve
. /lab/suite
for test; do run_test "$test"; done
