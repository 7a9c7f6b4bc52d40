#!/bin/bash
# Makes an ext4 disk image with BusyBox and an /sbin/init, for guests whose root is a disk. Needs no
# root: mkfs.ext4 fills the image from a folder.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case ${1--} in
    -*)
        echo 'Usage: tests/lab/guest-disk.sh OUTPUT [SIZE]    (SIZE as mkfs.ext4 takes it; default: 64M)'
        [[ ${1-} == --help ]] && exit
        exit 2 ;;
esac
need mkfs.ext4 e2fsprogs
"$LAB_DIR/fetch.sh"
tree=$(mktemp -d "${TMPDIR:-/tmp}/guest-disk.XXXXXX")
trap 'rm -rf "$tree"' EXIT
tree_busybox "$tree"
install -m 755 "$LAB_DIR/guest/disk-init" "$tree/usr/bin/init.new"
mv "$tree/usr/bin/init.new" "$tree/usr/bin/init"
rm -f "$1"
PATH=$PATH:/sbin:/usr/sbin mkfs.ext4 -q -F -E root_owner=0:0 -d "$tree" "$1" "${2:-64M}" >/dev/null
