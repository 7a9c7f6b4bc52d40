#!/bin/bash
# Measures what a guest's TCP stream sees of a migration: the payload tcp sends over a bridge to
# tests/net/server.c while it moves to another process, first by a copy of its memory, then by handing it
# over. Prints a Markdown table of what came in each second, and the longest time in which nothing was
# acknowledged; asserts nothing. In namespaces of this script's own.
set -uo pipefail

seconds=8
arguments=("$@")
subject='moving guests'
# shellcheck source=tests/bench/apart.sh
. "$(dirname "${BASH_SOURCE[0]}")/apart.sh"
mkfifo "$work/never"

# pause SECONDS
pause() { read -r -t "$1" _ <>"$work/never"; }

# received: bytes that came over the bridge, to this side.
received() { echo $(($(<"/sys/class/net/br0/statistics/rx_bytes"))); }

# go FROM TO ADDRESS: what `ferry migrate` says goes to $work/said.
go() {
    timeout 60 "$ferry" receive -v --once --name "$2" "$3" </dev/null >"$work/$2" 2>"$work/$2.err" &
    until read -r _ <"$work/$2.err"; do pause 0.02; done 2>/dev/null
    "$ferry" migrate "$1" "$3" >>"$work/said" 2>&1 || kill $!
}

ip link set lo up
ip link add br0 address 02:00:00:00:00:01 type bridge
ip addr add 10.6.0.1/24 dev br0
ip link set br0 up
exec 3< <(exec "$server" $port)
read -r _ <&3
"$ferry" run -k "$tcp" -m 256M --name stay -n bridge,br=br0 \
    -a "address=10.6.0.2 gateway=10.6.0.1 port=$port send=$((seconds * 1000 + 9000)) gaps limit=20" \
    </dev/null >"$work/stay" 2>"$work/stay.err" &
guest=$!
until grep -qs '^begin' "$work/stay"; do
    kill -0 $guest 2>/dev/null || { cat "$work/stay.err"; exit; }
    pause 0.02
done

(
    pause 2.5
    go stay copied "tcp:127.0.0.1:4444"
    pause 2
    go copied handed "unix:$work/link"
) &
mover=$!

echo "| second | MiB/s, TCP from the guest |"
echo "| ---: | ---: |"
before=$(received) then=${EPOCHREALTIME/./}
for ((i = 1; i <= seconds; i++)); do
    pause 1
    now=$(received) at=${EPOCHREALTIME/./}
    echo "| $i | $(((now - before) * 1000000 / (at - then) / 1048576)) |"
    before=$now then=$at
done
wait $guest $mover
for ((left = 600; left > 0; left--)); do
    ! grep -qs '^verdict' "$work/stay" "$work/copied" "$work/handed" || break
    pause 0.05
done
echo
echo "It moved by a copy of its memory in the third second, and 2 s after that by handing it over:"
echo
sed 's/^/    /' "$work/said"
echo
cat "$work/stay" "$work/copied" "$work/handed" 2>/dev/null |
    awk '$1 == "cost" && $2 == "tcp-send-gap" { printf "The longest time in which nothing arrived: %.1f ms.\n", $3 / 1e6 }'
