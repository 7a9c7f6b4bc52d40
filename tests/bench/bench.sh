#!/bin/bash
# Measures Ferry beside QEMU in the same run, and prints Markdown tables: time to a payload guest's
# first output, memory beyond the guest's own, costs of exits, of a disk and of the switch, TCP in the
# network modes, and in the lab the time to user space. Asserts nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

BUILD=${BUILD:-build}
FERRY=$BUILD/ferry
GUESTS=$BUILD/guest
FIRST=$BUILD/tests/bench/first-output
WORK=$(mktemp -d "${TMPDIR:-/tmp}/ferry-bench.XXXXXX")
trap 'rm -rf "$WORK"' EXIT

usage() {
    cat <<EOF
Usage: tests/bench/bench.sh [OPTION]... [start] [memory] [costs] [switch] [modes] [saving] [migration] [moves] [lab]
Measure Ferry beside QEMU; all parts, or those that are named.

  --rounds N      runs of each program for start (default: $rounds) ...
  --lab-rounds N  ... and in the lab (default: $lab_rounds)
  --kernel FILE   the kernel whose boot is timed in the lab (default: Debian's cloud kernel)
EOF
}

rounds=20
lab_rounds=5
kernel=
parts=()
while (($#)); do
    case $1 in
        --rounds) rounds=$2; shift ;;
        --lab-rounds) lab_rounds=$2; shift ;;
        --kernel) kernel=$2; shift ;;
        start | memory | costs | switch | modes | saving | migration | moves | lab) parts+=("$1") ;;
        -h | --help) usage; exit ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done
((${#parts[@]})) || parts=(start memory costs switch modes saving migration moves lab)

# Both programs are given as little to do as they can be: no default devices, no configuration.
qemu=(qemu-system-x86_64 -enable-kvm -nodefaults -no-user-config -display none -serial stdio
    -no-reboot -m 512)
# QEMU 7.2 asks KVM for a feature that not every KVM has.
qemu_here=("${qemu[@]}" -cpu 'host,-arch-capabilities')

# table UNIT FILE: the lines of first-output, which are in microseconds, as a table whose first row
# the others are compared with.
table() {
    echo "| | minimum | median | maximum | median, against the first |"
    echo "| --- | ---: | ---: | ---: | ---: |"
    awk -F '\t' -v unit="$1" '
        function in_unit(us) { return unit == "s" ? sprintf("%.2f s", us / 1e6) : sprintf("%.1f ms", us / 1e3) }
        NR == 1 { first = $3 }
        { printf "| %s | %s | %s | %s | %.2f |\n", $1, in_unit($2), in_unit($3), in_unit($4), $3 / first }' "$2"
}

start() {
    echo "## From exec to a payload guest's first output"
    echo
    "$FIRST" --rounds "$rounds" --until hello \
        ferry "$FERRY" run -k "$GUESTS/hello.elf" ::: \
        'QEMU microvm' "${qemu_here[@]}" -M microvm -kernel "$GUESTS/hello.elf" >"$WORK/start"
    table ms "$WORK/start"
    echo
}

# beyond PID: what the process has in memory, in KiB as RSS and PSS, without the mapping of its
# guest's memory, which is a memfd in both programs.
beyond() {
    awk '/^[0-9a-f]+-[0-9a-f]+ / { guest = $6 ~ /memfd:/ }
         !guest && $1 == "Rss:" { rss += $2 }
         !guest && $1 == "Pss:" { pss += $2 }
         END { print rss, pss }' "/proc/$1/smaps"
}

# memory_of NAME COMMAND...: a row of the table; the guest runs on until it is killed.
memory_of() {
    local name=$1 pid line figures
    shift
    mkfifo "$WORK/fifo"
    "$@" </dev/null >"$WORK/fifo" 2>"$WORK/err" &
    pid=$!
    exec 3<"$WORK/fifo"
    rm "$WORK/fifo"
    while read -r -t 60 -u 3 line; do [[ $line != *status=spin* ]] || break; done
    figures=$(beyond $pid)
    kill -KILL $pid
    wait $pid 2>/dev/null || :
    exec 3<&-
    printf '| %s | %s KiB | %s KiB |\n' "$name" "${figures% *}" "${figures#* }"
}

memory() {
    local disk=$WORK/disk
    truncate -s 64M "$disk"
    echo "## Memory of the process beyond the guest's own"
    echo
    echo "One disk, one network card with NAT, a payload guest of 512 MiB that runs. RSS counts shared"
    echo "libraries wholly, PSS by share."
    echo
    echo "| | RSS | PSS |"
    echo "| --- | ---: | ---: |"
    memory_of ferry "$FERRY" run -k "$GUESTS/hello.elf" -a status=spin -d "$disk" -n nat
    memory_of 'QEMU microvm' "${qemu_here[@]}" -M microvm,memory-backend=ram \
        -object memory-backend-memfd,id=ram,size=512M -kernel "$GUESTS/hello.elf" \
        -append status=spin -drive "if=none,id=disk,format=raw,file=$disk" \
        -device virtio-blk-device,drive=disk -netdev user,id=net -device virtio-net-device,netdev=net
    echo
}

# cost_rows PREFIX FILE: the lines "cost NAME NANOSECONDS" of a payload, as rows. At a depth over 1
# the figure is the time from one completion to the next.
cost_rows() {
    awk -v prefix="$1" '$1 == "cost" && $3 > 0 {
        printf "| %s%s | %.1f µs | %d |\n", prefix, $2, $3 / 1000, 1e9 / $3 }' "$2"
}

costs() {
    local disk=$PWD/$BUILD/bench.disk
    echo "## What things cost a guest of Ferry"
    echo
    "$FERRY" doctor | sed -nE 's/^[a-z]+ +kernel code +(.*)/Kernel code: \1. A name with cpl0 is a cost in the kernel, others are at CPL 3./p'
    echo
    echo "| | each | a second |"
    echo "| --- | ---: | ---: |"
    "$FERRY" run -k "$GUESTS/exits.elf" -a '' >"$WORK/exits" || :
    cost_rows '' "$WORK/exits"
    # Real blocks: those of a sparse file cost nothing to read.
    dd if=/dev/urandom of="$disk" bs=1M count=64 status=none
    "$FERRY" run -k "$GUESTS/blk.elf" -a 'ms=1000' -d "$disk" >"$WORK/blk" || :
    cost_rows 'page cache: ' "$WORK/blk"
    if "$FERRY" run -k "$GUESTS/blk.elf" -a 'ms=1000' -d "$disk,direct=on" >"$WORK/direct" 2>/dev/null; then
        cost_rows 'O_DIRECT: ' "$WORK/direct"
    fi
    rm "$disk"
    echo
}

# The switch alone, between rings in memory; then with cards.
switch() {
    local time
    echo "## The switch alone, without KVM"
    echo
    echo "Processor time of one thread; frames of 64 bytes unless they are said to be larger. The goals:" \
        "64-byte-frame-1001-rules 30 ns, at most 50; new-flow 5000 ns; a million flows 1.2 times 256."
    echo
    echo "| | |"
    echo "| --- | ---: |"
    "$BUILD/tests/bench/switch" | sed -E 's/^([^ ]*) (.*)$/| \1 | \2 |/'
    echo
    echo "A frame of a guest that polls, from one of its cards to the other, when the switch polls, too, or not."
    echo
    echo "| | each | a second |"
    echo "| --- | ---: | ---: |"
    for time in 0 50us 1ms; do
        "$FERRY" run -k "$GUESTS/crossing.elf" -a 'rounds=5000' -s "lab0,poll=$time" -n switch=lab0 \
            -n switch=lab0 >"$WORK/crossing" || :
        cost_rows "poll=$time: " "$WORK/crossing"
    done
    echo
}

moves() {
    echo "## A guest's TCP stream across two migrations"
    echo
    echo "A payload guest that polls sends to a server on this host, over a bridge."
    echo
    tests/bench/moves.sh
    echo
}

modes() {
    echo "## TCP in the network modes"
    echo
    echo "One connection at a time, between a payload guest that polls and a server on this host, by the" \
        "median of three runs. In \`nat,via=kernel\` the server is beyond a router."
    echo
    tests/bench/modes.sh
    echo
}

# certificates: in $WORK/tls, for this host.
certificates() {
    local side dir=$WORK/tls
    mkdir "$dir"
    certtool --generate-privkey --key-type ecdsa --outfile "$dir/ca-key.pem"
    printf 'cn = bench\nca\ncert_signing_key\n' >"$dir/template"
    certtool --generate-self-signed --load-privkey "$dir/ca-key.pem" --template "$dir/template" \
        --outfile "$dir/ca-cert.pem"
    for side in server client; do
        certtool --generate-privkey --key-type ecdsa --outfile "$dir/$side-key.pem"
        printf 'cn = bench\ntls_www_%s\nsigning_key\nip_address = 127.0.0.1\n' $side >"$dir/template"
        certtool --generate-certificate --load-privkey "$dir/$side-key.pem" --template "$dir/template" \
            --load-ca-certificate "$dir/ca-cert.pem" --load-ca-privkey "$dir/ca-key.pem" \
            --outfile "$dir/$side-cert.pem"
    done
} 2>/dev/null

# migrated LABEL MEMORY WORDS ADDRESS [OPTION...]: a row: the payload migrate of so much memory goes
# there. What it says in the end is looked at: figures of a guest that was spoilt are none. The last
# downtime and time in all are in $downtime and $in_all, what the command took in $took (ms).
migrated() {
    local label=$1 guest receiver line begin tls=()
    [[ $4 != tls:* ]] || tls=(--tls "$WORK/tls")
    rm -f "$WORK"/m.*
    mkfifo "$WORK/m.out" "$WORK/m.said" "$WORK/m.in"
    "$FERRY" run -k "$GUESTS/migrate.elf" -m "$2" -a "$3" --name bench-migrate </dev/null >"$WORK/m.out" &
    guest=$!
    read -r -t 300 line <"$WORK/m.out"
    "$FERRY" receive -v --once --name bench-migrated "${tls[@]}" "$4" <>"$WORK/m.in" >"$WORK/m.verdict" 2>"$WORK/m.said" &
    receiver=$!
    exec 4<"$WORK/m.said"
    read -r -t 60 -u 4 line
    begin=${EPOCHREALTIME/./}
    "$FERRY" migrate --json "${tls[@]}" "${@:5}" bench-migrate "${4/%:0/:${line##* }}" >"$WORK/m.events"
    took=$(((${EPOCHREALTIME/./} - begin) / 1000))
    tail -n 1 "$WORK/m.events" >"$WORK/m.summary"
    wait $guest || :
    printf q 1<>"$WORK/m.in"
    wait $receiver || :
    exec 4<&-
    grep -q '^verdict: .* 0 failed' "$WORK/m.verdict" || label="$label (memory was spoilt)"
    perl -MJSON::PP -e '
        my $s = decode_json(<STDIN>);
        my $mib = $s->{sent_bytes} / 1048576;
        printf("| %s | %.0f ms | %.1f ms | %.1f ms | %d | %.0f MiB | %.0f MiB/s | %d %% |\n", $ARGV[0],
               $s->{elapsed_ms}, $s->{downtime_ms}, $s->{destination_downtime_ms}, $s->{rounds}, $mib,
               $mib * 1000 / $s->{elapsed_ms}, $s->{throttle})' "$label" <"$WORK/m.summary"
    read -r downtime in_all < <(perl -MJSON::PP -e '
        my $s = decode_json(<STDIN>);
        printf("%.2f %.0f\n", $s->{downtime_ms}, $s->{elapsed_ms})' <"$WORK/m.summary")
}

# rate FILE COMMAND...: what the command makes of the file's data, in MiB/s.
rate() {
    local bytes begin end
    bytes=$(($(stat -c '%b' "$1") * 512))
    begin=$(date +%s%N)
    "${@:2}" >/dev/null 2>&1 </dev/null
    end=$(date +%s%N)
    echo "$((bytes * 1000 / 1048576 * 1000000 / (end - begin))) MiB/s"
}

# written MEMORY WORDS FILE [OPTION...]: the payload migrate, saved to the file; how long that took, in seconds.
written() {
    local guest line begin
    mkfifo "$WORK/s.out"
    "$FERRY" run -k "$GUESTS/migrate.elf" -m "$1" -a "$2" --name bench-save </dev/null >"$WORK/s.out" &
    guest=$!
    exec 4<"$WORK/s.out"
    rm "$WORK/s.out"
    read -r -t 300 -u 4 line
    cat <&4 >/dev/null &
    begin=$(date +%s%N)
    "$FERRY" save "${@:4}" --json bench-save "$3" >"$WORK/s.said"
    awk -v ns="$(($(date +%s%N) - begin))" 'BEGIN { printf "%.2f s\n", ns / 1e9 }'
    wait $guest || :
    exec 4<&-
}

# Saving and going on, on this disk, beside dd(1) of as many bytes there.
saving() {
    local file=$PWD/$BUILD/bench.saved took
    export XDG_RUNTIME_DIR=$WORK
    echo "## Saving and restoring"
    echo
    took=$(written 4G 'bytes=1G hot=0 beat' "$file")
    echo "A guest of 4 GiB of which 1 GiB is written, to a disk and from its cache; dd the same bytes."
    echo
    echo "| | | |"
    echo "| --- | ---: | ---: |"
    echo "| ferry save | $took | |"
    rm "$file"
    took=$(written 4G 'bytes=1G hot=64M rate=100000000' "$file" --live)
    echo "| ferry save --live, while it writes 100 MB/s | $took | stopped for $(
        sed -n 's/.*"downtime_ms": \([0-9]*\).*/\1/p' "$WORK/s.said") ms |"
    rm "$file"
    written 4G 'bytes=1G hot=0 beat' "$file" >/dev/null
    echo "| dd, with fsync | | $(rate "$file" dd "if=$file" "of=$file.copy" bs=1M count=1024 skip=1 conv=fsync) |"
    rm "$file.copy"
    echo "| dd to nowhere | | $(rate "$file" dd "if=$file" of=/dev/null bs=1M count=1024 skip=1) |"
    echo
    echo "From exec to the guest's first output after it:"
    echo
    # Without control sockets: a name is taken until its process is gone, and that takes a while after a kill.
    XDG_RUNTIME_DIR=/dev/null "$FIRST" --rounds 5 --until beat 'ferry restore' "$FERRY" restore "$file" ::: \
        'ferry restore --lazy' "$FERRY" restore --lazy "$file" >"$WORK/restored"
    table ms "$WORK/restored"
    rm "$file"
    echo
}

# told MONITOR COMMAND: what QEMU's monitor at that socket answers.
told() { printf '%s\n' "$2" | timeout 10 nc -q 1 -U "$WORK/$1" 2>/dev/null | tr -d '\r'; }

# said FIELD: of the last `info migrate`, its number; 0: there is none.
said() { sed -n "s/^$1: \([0-9]*\).*/\1/p" "$WORK/q.info" | grep . || echo 0; }

# migrated_by_qemu LABEL MEMORY WORDS: the same for QEMU, with the goals that Ferry has by default.
migrated_by_qemu() {
    local label=$1 port=$((20000 + RANDOM % 10000)) source target i
    local run=("${qemu_here[@]}" -M microvm -m "$2" -kernel "$GUESTS/migrate.elf" -append "$3")
    rm -f "$WORK"/q.*
    "${run[@]}" -monitor "unix:$WORK/q.source,server,nowait" </dev/null >"$WORK/q.out" 2>"$WORK/q.log" &
    source=$!
    "${run[@]}" -monitor "unix:$WORK/q.target,server,nowait" -incoming "tcp:127.0.0.1:$port" \
        </dev/null >"$WORK/q.arrived" 2>>"$WORK/q.log" &
    target=$!
    for ((i = 0; i < 300; i++)); do
        ! grep -qs filled "$WORK/q.out" || break
        kill -0 $source 2>/dev/null || break
        read -r -t 0.2 <><(:) || :
    done
    for i in 'migrate_set_parameter max-bandwidth 100G' 'migrate_set_parameter downtime-limit 100' \
        'migrate_set_capability auto-converge on' "migrate -d tcp:127.0.0.1:$port"; do
        told q.source "$i" >/dev/null
    done
    for ((i = 0; i < 30; i++)); do
        told q.source 'info migrate' >"$WORK/q.info"
        ! grep -qE '^Migration status: (completed|failed)' "$WORK/q.info" || break
    done
    kill -KILL $source $target 2>/dev/null || :
    wait $source $target 2>/dev/null || :
    if grep -q '^Migration status: completed' "$WORK/q.info"; then
        printf '| QEMU: %s | %d ms | %d ms | | %d | %d MiB | %d MiB/s | %d %% |\n' "$label" "$(said 'total time')" \
            "$(said downtime)" "$(said 'dirty sync count')" $(($(said 'transferred ram') / 1024)) \
            $(($(said 'transferred ram') * 1000 / 1024 / $(said 'total time'))) \
            "$(said 'cpu throttle percentage')"
    else
        echo "| QEMU: $label | it did not, within a minute | | | | | | |"
    fi
}

migration() {
    local i size rate plain working downtime in_all took stops=() totals='' label
    local tcp=tcp:127.0.0.1:0
    export XDG_RUNTIME_DIR=$WORK
    echo "## Live migration, from process to process"
    echo
    plain=$("$BUILD/tests/bench/loopback" 1024)
    working=$("$BUILD/tests/bench/loopback" 1024 work)
    echo "$(nproc) CPUs for both processes and the guest. The loopback carries $plain MiB/s when nothing else is" \
        "done, and $working MiB/s when each piece is copied from memory, its checksum is taken by both sides," \
        "and it is put into memory that was never touched."
    echo
    echo "| guest | in all | stopped, by the source | by the destination | rounds | sent | rate | slowed by |"
    echo "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for size in 256M 1G 4G 8G; do
        for ((i = 0; i < 7; i++)); do
            migrated "idle, $size (the median stop of 7)" $size 'bytes=4M hot=0 rest' $tcp >"$WORK/row"
            printf '%s\t%s\t%s\n' "$downtime" "$in_all" "$(cat "$WORK/row")"
        done >"$WORK/rows"
        sort -n "$WORK/rows" | sed -n 4p >"$WORK/median"
        cut -f 3 "$WORK/median"
        stops+=("$(cut -f 1 "$WORK/median")")
        totals+=" $size $(cut -f 2 "$WORK/rows" | sort -n | sed -n 4p) ms,"
    done
    migrated '1 GiB, all written, idle' 1200M 'bytes=1G hot=0 rest' $tcp
    label="1 GiB took $in_all ms, which is $(awk "BEGIN { printf \"%.2f\", $in_all / 1024 * $working / 1000 }") times what the"
    label+=" loopback with that work takes, and $(awk "BEGIN { printf \"%.2f\", $in_all / 1024 * $plain / 1000 }") times what it alone takes."
    migrated_by_qemu '1 GiB, all written, idle' 1200M 'bytes=1G hot=0 rest'
    migrated 'the same, 2 connections' 1200M 'bytes=1G hot=0 rest' $tcp --streams 2
    migrated 'the same, lz4' 1200M 'bytes=1G hot=0 rest' $tcp --compress lz4
    migrated 'the same, zstd' 1200M 'bytes=1G hot=0 rest' $tcp --compress zstd
    migrated 'the same, zstd, 2 connections' 1200M 'bytes=1G hot=0 rest' $tcp --compress zstd --streams 2
    if command -v certtool >/dev/null; then
        certificates
        migrated 'the same, TLS' 1200M 'bytes=1G hot=0 rest' tls:127.0.0.1:0
    fi
    for rate in 10 100 500 2000; do
        migrated "1 GiB, writes $rate MB/s over 256 MiB" 1G "bytes=256M hot=256M rate=${rate}000000" $tcp
        migrated_by_qemu "1 GiB, writes $rate MB/s over 256 MiB" 1G "bytes=256M hot=256M rate=${rate}000000"
    done
    migrated 'the same, by dirty rings' 1G,dirty-ring=4096 "bytes=256M hot=256M rate=2000000000" $tcp
    for ((i = 0; i < 7; i++)); do
        migrated '4 GiB, memory handed over (the median of 7)' 4G 'bytes=1G hot=0 rest' "unix:$WORK/m.link" >"$WORK/row"
        printf '%s\t%s\t%s\n' "$in_all" "$took" "$(cat "$WORK/row")"
    done | sort -n | sed -n 4p >"$WORK/median"
    cut -f 3 "$WORK/median"
    label+=" Handing over 4 GiB took $(cut -f 1 "$WORK/median") ms, and the command $(cut -f 2 "$WORK/median") ms."
    echo
    echo "$label In all, by the median of 7, an idle guest took:${totals%,}. The downtime of an idle guest of 8 GiB is" \
        "$(awk "BEGIN { printf \"%.2f\", ${stops[3]} / ${stops[0]} }") times that of one of 256 MiB."
    echo
}

# The script that runs in the lab, with the figures for first-output and the command line.
in_lab() {
    cat <<EOF
set -e
first-output --rounds $lab_rounds --until 'user space' \\
    ferry ferry run -m 512M -k vmlinuz -i init.cpio -a 'console=ttyS0 quiet' ::: \\
    'QEMU microvm' ${qemu[*]} -cpu host -M microvm -kernel vmlinuz -initrd init.cpio \\
        -append 'console=ttyS0 quiet' ::: \\
    'QEMU q35' ${qemu[*]} -cpu host -M q35 -kernel vmlinuz -initrd init.cpio -append 'console=ttyS0 quiet'
EOF
}

lab() {
    local file puts=()
    mkdir "$WORK/initramfs"
    ${CC:-gcc} -O2 -static -o "$WORK/initramfs/init" tests/bench/init.c
    (cd "$WORK/initramfs" && echo init | cpio --quiet --create --format=newc) >"$WORK/init.cpio"
    in_lab >"$WORK/script"
    [[ $kernel ]] || kernel=$(tests/lab/fetch.sh --kernel)
    # QEMU's firmware, where it looks for it.
    for file in qemu/bios-microvm.bin qemu/qboot.rom qemu/linuxboot_dma.bin qemu/kvmvapic.bin \
        qemu/pvh.bin seabios/bios-256k.bin seabios/bios-microvm.bin; do
        [[ ! -e /usr/share/$file ]] || puts+=(--put "/usr/share/$file:/usr/share/$file")
    done
    echo "## From exec to user space, in the lab"
    echo
    echo "$(basename "$(dirname "$(realpath "$kernel")")"), \`quiet\`, an initramfs that holds nothing but a first" \
        "process; all times are those of an emulated processor."
    echo
    tests/lab/lab run --put "$FERRY" --put "$FIRST" --put "$(command -v qemu-system-x86_64)" \
        "${puts[@]}" --put "$kernel:/root/vmlinuz" --put "$WORK/init.cpio:/root/init.cpio" \
        --memory 3G --script "$WORK/script" | tr -d '\r' >"$WORK/lab"
    table s "$WORK/lab"
    echo
}

echo "# Ferry $(cat VERSION) beside $(qemu-system-x86_64 --version | head -1)"
echo
for part in "${parts[@]}"; do $part; done
