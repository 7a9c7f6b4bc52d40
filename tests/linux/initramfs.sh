#!/bin/bash
# Makes the initramfs of the native tests' guest: BusyBox, the few links to it that the tests use, a
# file to fetch. Small on purpose: unpacking is the work of an emulated kernel. Made once.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../lab/lib.sh"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
need cpio cpio
"$LAB_DIR/fetch.sh"
image=$CACHE/images/linux-$(image_key "$here/init" "${BASH_SOURCE[0]}").cpio
if [[ ! -e $image ]]; then
    mkdir -p "$CACHE/images"
    tree=$(mktemp -d "$CACHE/images/tree.XXXXXX")
    trap 'rm -rf "$tree"' EXIT
    mkdir -p "$tree"/{bin,dev,proc,tmp,www}
    cp "$BUSYBOX" "$tree/bin/busybox"
    for applet in cat cut grep httpd ifconfig mount poweroff sh sha256sum wget; do
        ln -s busybox "$tree/bin/$applet"
    done
    head -c 200000 "$BUSYBOX" >"$tree/www/file"
    install -m 755 "$here/init" "$tree/init"
    tree_pack "$tree" "$image"
fi
echo "$image"
