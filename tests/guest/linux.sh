#!/bin/bash
# Builds the small Linux of linux.config from Debian's package of the kernel's source, in build/cache or
# $FERRY_CACHE; prints where it is. Does nothing when it is there already.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../lab/lib.sh"

usage() {
    cat <<END
Usage: tests/guest/linux.sh [--have]
Build the small Linux that boots where KVM emulates kernel code, and print its path.

  --have   only print it, with status 1 if it is not built
END
}

# What a timer interrupt costs such a guest is milliseconds: 25 a second are enough. Kconfig.hz offers
# no less than 100.
readonly HZ=25
# Memory's descriptors are initialised for whole sections, of 128 MiB; with these, of 16.
readonly SECTION_BITS=24
package=linux-source-6.1
config=$ROOT/tests/guest/linux.config

# Parts of the source that are large, not compiled, and not read by Kconfig.
unused=(drivers/gpu drivers/net/ethernet drivers/net/wireless drivers/media drivers/staging
    drivers/infiniband drivers/scsi drivers/usb drivers/iio drivers/mtd sound fs/xfs fs/btrfs net/mac80211)
exclude=(--exclude='*/tools/testing' --exclude='*/Documentation/*.rst' --exclude='*.dts' --exclude='*.dtsi')
for arch in alpha arc arm arm64 csky hexagon ia64 loongarch m68k microblaze mips nios2 openrisc parisc \
    powerpc riscv s390 sh sparc xtensa; do unused+=("arch/$arch"); done
for folder in "${unused[@]}"; do exclude+=(--exclude="linux-source-*/$folder/*.[chS]"); done

have() { [[ -e $image ]]; }

# source_unpack FOLDER: downloads the package and unpacks what the build reads of it.
source_unpack() {
    "$LAB_DIR/fetch.sh" --package "$package" "$1/package"
    tar -x -J -f "$1/package/usr/src/$package.tar.xz" -C "$1" "${exclude[@]}"
    rm -rf "$1/package"
}

build() {
    local work log=$CACHE/linux/build.log
    work=$(mktemp -d "$CACHE/linux/work.XXXXXX")
    # shellcheck disable=SC2064 # the folder of now
    trap "rm -rf '$work'" EXIT
    source_unpack "$work"
    cd "$work/$package"
    sed -i "s/default 100 if HZ_100/default $HZ if HZ_100/" kernel/Kconfig.hz
    sed -i "s/define SECTION_SIZE_BITS\t27\b/define SECTION_SIZE_BITS\t$SECTION_BITS/" \
        arch/x86/include/asm/sparsemem.h
    say "building the small Linux: some minutes, once; $log tells how far it is"
    export KBUILD_BUILD_TIMESTAMP=1970-01-01 KBUILD_BUILD_USER=ferry KBUILD_BUILD_HOST=ferry
    if ! { make -s KCONFIG_ALLCONFIG="$config" allnoconfig && nice make -j2 vmlinux; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        die "the kernel does not build; $log has it all"
    fi
    strip --strip-all -o "$work/vmlinux" vmlinux
    mv "$work/vmlinux" "$image"
}

case ${1-} in
    '' | --have) ;;
    -h | --help) usage; exit ;;
    *) die "unknown argument '$1'; see --help" 2 ;;
esac
need gcc build-essential make build-essential flex flex bison bison bc bc xz xz-utils
image=$CACHE/linux/vmlinux-$(cat "$config" "${BASH_SOURCE[0]}" | sha256sum | cut -c 1-16)
if ! have; then
    [[ ${1-} != --have ]] || exit 1
    mkdir -p "$CACHE/linux"
    exec 8>"$CACHE/linux/lock"
    flock 8
    have || build
fi
echo "$image"
