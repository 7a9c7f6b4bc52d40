#!/bin/bash
# Makes the initramfs of the native tests' guest: BusyBox and the few links to it that the tests use, and
# a small debugger; or with --demo that of the demo. Small on purpose: unpacking is the work of an
# emulated kernel. Made once.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../lab/lib.sh"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
demo=$here/../demo
init=$here/init
case ${1-} in
    '') ;;
    --demo) init=$demo/init ;;
    *) die "unknown argument '$1'" 2 ;;
esac
need cpio cpio gcc build-essential
"$LAB_DIR/fetch.sh"
image=$CACHE/images/linux-$(image_key "$init" "$demo/guest.sh" "$demo/net-up" "$here/debugger.c" "${BASH_SOURCE[0]}").cpio
if [[ ! -e $image ]]; then
    mkdir -p "$CACHE/images"
    tree=$(mktemp -d "$CACHE/images/tree.XXXXXX")
    trap 'rm -rf "$tree"' EXIT
    mkdir -p "$tree"/{bin,dev,proc,tmp}
    cp "$BUSYBOX" "$tree/bin/busybox"
    for applet in cat cut grep head httpd ifconfig mkdir mknod mount ping poweroff sh sha256sum stty tail \
        uname wget; do
        ln -s busybox "$tree/bin/$applet"
    done
    install -m 755 "$init" "$tree/init"
    if [[ $init == "$demo/init" ]]; then
        install -m 755 "$demo/guest.sh" "$tree/bin/demo"
        install -m 755 "$demo/net-up" "$tree/bin/net-up"
    else
        gcc -std=gnu17 -O2 -Wall -Wextra -Werror -ffreestanding -fno-stack-protector \
            -fcf-protection=none -fno-asynchronous-unwind-tables -no-pie -fno-pie -static -nostdlib \
            -Wl,--build-id=none,-z,noseparate-code,-n,-s,--no-warn-rwx-segments \
            -o "$tree/bin/debugger" "$here/debugger.c"
    fi
    tree_pack "$tree" "$image"
fi
echo "$image"
