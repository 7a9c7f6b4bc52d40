#!/bin/bash
# Installs the Debian packages that building, testing and trying Ferry take, if any is missing; only
# that step takes root. `make deps`, `make demo`, `make check` and .ci/run come through here.
set -euo pipefail

packages=(
    # to build
    build-essential pkg-config
    libfdt-dev libglib2.0-dev libjansson-dev liblz4-dev liblzma-dev libslirp-dev libmicrohttpd-dev libgnutls28-dev libyaml-dev liburing-dev libzstd-dev zlib1g-dev
    # to test
    acpica-tools libcriterion-dev mandoc gnutls-bin
    # the network modes
    iproute2 nftables passt procps util-linux
    # the small Linux for hosts whose KVM emulates kernel code
    bc bison flex libelf-dev
    # the lab and the demo
    bsdutils busybox-static cpio e2fsprogs lz4 netcat-openbsd qemu-system-x86 tcpdump xz-utils zstd
)

usage() {
    cat <<EOF
Usage: tests/deps.sh [--list | --missing]
Install what Ferry's build and tests need of Debian's packages and what is not there yet.

  --list      print all packages, install nothing
  --missing   print the missing ones, install nothing
EOF
}

missing() {
    local package
    for package in "${packages[@]}"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
            printf '%s\n' "$package"
    done
}

case ${1-} in
    '') ;;
    --list) printf '%s\n' "${packages[@]}"; exit ;;
    --missing) missing; exit ;;
    -h | --help) usage; exit ;;
    *) usage >&2; exit 2 ;;
esac

command -v dpkg-query >/dev/null || {
    echo "deps.sh: this is not a Debian system; install by hand: ${packages[*]}" >&2
    exit 1
}
mapfile -t wanted < <(missing)
((${#wanted[@]})) || exit 0

as_root=()
if ((EUID)); then
    command -v sudo >/dev/null || {
        echo "deps.sh: as root, run: apt-get update && apt-get install ${wanted[*]}" >&2
        exit 1
    }
    as_root=(sudo)
fi
echo "deps.sh: installing ${wanted[*]}" >&2
"${as_root[@]}" apt-get -qq update
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends "${wanted[@]}" >&2
