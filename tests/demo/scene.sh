#!/bin/sh
# What the demo shows on a KVM host; for BusyBox's shell, as the lab has no other.
# scene.sh FERRY KERNEL INITRD BUSYBOX [COLOUR [FERRY-OPTIONS [KERNEL-OPTIONS]]]
ferry=$1 kernel=$2 initrd=$3 busybox=$4 options=$6 kernel_options=$7

bold='' green='' dim='' plain=''
if [ "$5" ]; then
    bold=$(printf '\033[1m') green=$(printf '\033[32m') dim=$(printf '\033[2m') plain=$(printf '\033[0m')
fi
work=$(mktemp -d) || exit 1
server=''

cleanup() {
    trap - EXIT
    [ ! "$server" ] || kill "$server" 2>/dev/null
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { echo "  $dim$1$plain $2"; }

# free_port FIRST: a TCP port on which nobody listens or talks here.
free_port() {
    port=$1
    while grep -q -i ":$(printf %04x "$port") " /proc/net/tcp; do port=$((port + 1)); done
    echo "$port"
}

now() { cut -d ' ' -f 1 /proc/uptime; }
seconds_since() { now | awk -v from="$1" '{ printf "%.2f", $1 - from }'; }

# guest_line LINE: shows what the guest said, and does the host's part when it is time.
guest_line() {
    case $1 in
        'guest: user space'*)
            seconds_since "$started" >"$work/boot"
            say guest "${bold}user space$plain, $(cat "$work/boot") s after ferry was started" ;;
        serving)
            page=$("$busybox" wget -q -O - "http://127.0.0.1:$forward/") && echo seen >"$work/fetched"
            say host "page from http://127.0.0.1:$forward/: $green${page:-none}$plain"
            echo go >&3 ;;
        'page from '*) say guest "${1%%: *}: $green${1#*: }$plain" && echo seen >"$work/page" ;;
        lease*) say guest "DHCP $1" ;;
        'guest: status 0' | '') ;;
        *) say guest "$1" ;;
    esac
}

# The host's page.
mkdir "$work/www"
echo 'Hello from the host.' >"$work/www/index.html"
port=$(free_port 8000)
"$busybox" httpd -f -p "127.0.0.1:$port" -h "$work/www" &
server=$!

forward=$(free_port 8080)
net=nat,forward=tcp:127.0.0.1:$forward-:80
append="console=ttyS0 quiet demo_port=$port ferry.run=/usr/bin/demo${kernel_options:+ $kernel_options}"
echo
echo "${bold}\$ ferry run --kernel ${kernel##*/} --initrd ${initrd##*/} --net $net${options:+ $options} \\"
echo "      --append '$append'$plain"
mkfifo "$work/input"
exec 3<>"$work/input"
started=$(now)
{
    # shellcheck disable=SC2086 # options are words
    "$busybox" timeout 600 "$ferry" run --kernel "$kernel" --initrd "$initrd" --net "$net" $options \
        --append "$append" <&3 2>&1
    echo $? >"$work/status"
} | while read -r line; do guest_line "$(echo "$line" | tr -d '\r')"; done

echo
status=$(cat "$work/status")
if [ "$status" = 0 ] && [ -e "$work/page" ] && [ -e "$work/fetched" ]; then
    echo "${green}The guest booted in $(cat "$work/boot") s, was reached both ways and powered off.$plain"
    exit 0
fi
echo "The demo failed: ferry ended with status $status."
exit 1
