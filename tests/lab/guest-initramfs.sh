#!/bin/bash
# Makes the initramfs that test guests boot: BusyBox, the virtio modules of Debian's cloud kernel and
# the scripts in guest/. Made once for the same contents.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<EOF
Usage: tests/lab/guest-initramfs.sh [--put FILE:PATH]... [OUTPUT]
Make the guests' initramfs and print where it is, or write it to OUTPUT.

  --put FILE:PATH   add a file with its permissions, a program with its shared libraries
EOF
}

copy() {
    mkdir -p "$tree${2%/*}"
    cp "$1" "$tree$2"
}

modules=(virtio_pci virtio_blk virtio_console virtio_net virtio-rng virtio_balloon
    button evdev pvpanic-mmio 8021q)
puts=()
output=
while (($#)); do
    case $1 in
        --put) [[ ${2-} == *:/* ]] || die "--put takes FILE:/PATH" 2; puts+=("$2"); shift ;;
        -h | --help) usage; exit ;;
        -*) die "unknown option '$1'; see --help" 2 ;;
        *) output=$1 ;;
    esac
    shift
done
need cpio cpio
"$LAB_DIR/fetch.sh"

sources=("$LAB_DIR"/guest/* "$LAB_DIR/lib.sh" "${BASH_SOURCE[0]}")
image=$CACHE/images/guest-$(image_key "${sources[@]}" "${puts[@]%%:*}" <(echo "${puts[@]}")).cpio
if [[ ! -e $image ]]; then
    mkdir -p "$CACHE/images"
    tree=$(mktemp -d "$CACHE/images/tree.XXXXXX")
    trap 'rm -rf "$tree"' EXIT
    tree_busybox "$tree"
    tree_modules "$tree" "${modules[@]}"
    mkdir -p "$tree/usr/share"
    install -m 755 "$LAB_DIR/guest/init" "$tree/init"
    install -m 755 "$LAB_DIR/guest/net-up" "$tree/usr/bin/net-up"
    install -m 755 "$LAB_DIR/guest/udhcpc" "$tree/usr/share/udhcpc"
    for item in "${puts[@]}"; do
        copy "${item%%:*}" "${item#*:}"
        while read -r file path; do copy "$file" "$path"; done < <(libraries "${item%%:*}")
    done
    tree_pack "$tree" "$image"
fi
if [[ $output ]]; then cp "$image" "$output"; else echo "$image"; fi
