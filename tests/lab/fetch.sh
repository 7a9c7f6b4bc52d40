#!/bin/bash
# Gets what the lab and the demo boot from Debian's packages: the cloud kernel with its modules, and
# BusyBox. They are unpacked in build/cache, or in $FERRY_CACHE; nothing is installed. Does nothing
# when they are there already.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<EOF
Usage: tests/lab/fetch.sh [--update] [--kernel]
       tests/lab/fetch.sh --package NAME FOLDER
Download Debian's cloud kernel and BusyBox, and unpack them in $CACHE.

  --update   look for a newer kernel even if one is there
  --kernel   print where the kernel is
  --package  download another package, and unpack it in that folder
  --help     show this help

Environment: FERRY_CACHE names another folder, to be shared by several checkouts.
EOF
}

apt=(apt-get -qq)
((EUID)) || apt+=(-o APT::Sandbox::User=root)

# apt_lists: asks Debian for its current lists of packages; the one step that takes root.
apt_lists() {
    say "getting Debian's lists of packages (apt-get update)"
    if ((EUID)); then
        command -v sudo >/dev/null || die "'apt-get update' needs root: run it and try again"
        sudo apt-get -qq update >&2
    else
        apt-get -qq update >&2
    fi
}

# download PACKAGE: into the current folder; once more with new lists, since old ones name packages
# that are no longer there.
download() { "${apt[@]}" download "$1" || { apt_lists && "${apt[@]}" download "$1"; }; }

# package_unpack PACKAGE FOLDER: downloads the package and unpacks it there.
package_unpack() {
    local work
    work=$(mktemp -d "$CACHE/fetch.XXXXXX")
    say "downloading $1"
    if ! (cd "$work" && download "$1") >&2; then
        rm -rf "$work"
        die "cannot download the Debian package $1"
    fi
    mkdir -p "$2"
    dpkg -x "$work"/*.deb "$2"
    rm -rf "$work"
}

# kernel_name: the cloud kernel's package of today.
kernel_name() {
    apt-cache depends linux-image-cloud-amd64 2>/dev/null |
        sed -n 's/^ *Depends: *\(linux-image-[0-9].*-cloud-amd64\)$/\1/p' | head -n 1
}

fetch_kernel() {
    local package version folder
    package=$(kernel_name)
    [[ $package ]] || { apt_lists; package=$(kernel_name); }
    [[ $package ]] || die "Debian's lists name no package for linux-image-cloud-amd64"
    version=${package#linux-image-}
    folder=$CACHE/kernel/$version
    if [[ ! -e $folder/vmlinuz ]]; then
        rm -rf "$folder.new"
        package_unpack "$package" "$folder.new"
        "$BUSYBOX" depmod -b "$folder.new" "$version"
        rm -rf "$folder" "$folder.new/usr"
        mv "$folder.new/boot/vmlinuz-$version" "$folder.new/vmlinuz"
        mv "$folder.new/boot/config-$version" "$folder.new/config"
        mv "$folder.new" "$folder"
    fi
    ln -sfn "$version" "$CACHE/kernel/current"
}

fetch_busybox() {
    local work=$CACHE/busybox.new
    rm -rf "$work"
    package_unpack busybox-static "$work/package"
    mkdir -p "$CACHE/busybox"
    mv "$work/package/bin/busybox" "$BUSYBOX"
    rm -rf "$work"
}

update=
kernel=
while (($#)); do
    case $1 in
        --update) update=yes ;;
        --kernel) kernel=yes ;;
        --package)
            (($# == 3)) || die "--package takes a name and a folder" 2
            need apt-get apt dpkg dpkg
            mkdir -p "$CACHE"
            package_unpack "$2" "$3"
            exit ;;
        -h | --help) usage; exit ;;
        *) die "unknown option '$1'; see --help" 2 ;;
    esac
    shift
done

if [[ $update || ! -x $BUSYBOX || ! -e $CACHE/kernel/current/vmlinuz ]]; then
    need apt-get apt dpkg dpkg flock util-linux
    mkdir -p "$CACHE/kernel"
    exec 9>"$CACHE/lock"
    flock 9
    [[ -x $BUSYBOX ]] || fetch_busybox
    if [[ $update || ! -e $CACHE/kernel/current/vmlinuz ]]; then fetch_kernel; fi
fi
[[ ! $kernel ]] || kernel_image
