# Functions that the lab's scripts share: where things are kept, kernels, modules, cpio archives.
# Sourced by bash scripts beside it; runs nothing by itself.
# shellcheck shell=bash

LAB_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$LAB_DIR/../.." && pwd)
BUILD=${BUILD:-build}
[[ $BUILD == /* ]] || BUILD=$ROOT/$BUILD
CACHE=${FERRY_CACHE:-$BUILD/cache}
export BUILD FERRY_CACHE=$CACHE

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$1"; exit "${2:-1}"; }

# need PROGRAM PACKAGE...: ends unless every program is installed.
need() {
    while (($# > 1)); do
        command -v "$1" >/dev/null || [[ -x /sbin/$1 || -x /usr/sbin/$1 ]] ||
            die "$1 is not installed: run 'make deps', or install the package $2"
        shift 2
    done
}

# What fetch.sh leaves behind.
BUSYBOX=$CACHE/busybox/busybox
kernel_version() { readlink "$CACHE/kernel/current"; }
kernel_image()   { echo "$CACHE/kernel/$(kernel_version)/vmlinuz"; }
kernel_modules() { echo "$CACHE/kernel/$(kernel_version)/lib/modules/$(kernel_version)"; }

# le32 FILE OFFSET: the 32-bit little-endian number there.
le32() { od -An -tu4 -j "$2" -N 4 "$1" | tr -d ' '; }

# kernel_unpack BZIMAGE OUTPUT: the ELF inside, found by the fields setup_sects, payload_offset and
# payload_length (Linux Documentation/x86/boot.rst, "The Real-Mode Kernel Header"). All compressors
# but gzip have the unpacked length as four bytes of their own at the end.
kernel_unpack() {
    local setup start length magic tail=4 unpack
    setup=$(od -An -tu1 -j 497 -N 1 "$1" | tr -d ' ')
    ((setup)) || setup=4
    start=$(((setup + 1) * 512 + $(le32 "$1" 584)))
    length=$(le32 "$1" 588)
    magic=$(od -An -tx1 -j "$start" -N 4 "$1" | tr -d ' ')
    case $magic in
        1f8b*)    unpack='gzip -dc' tail=0 ;;
        02214c18) unpack='lz4 -dc' ;;
        28b52ffd) unpack='zstd -dc' ;;
        fd377a58) unpack='xz -dc' ;;
        *)        return 1 ;;
    esac
    command -v "${unpack%% *}" >/dev/null || return 1
    head -c $((start + length - tail)) "$1" | tail -c "+$((start + 1))" | $unpack >"$2.new" 2>/dev/null &&
        mv "$2.new" "$2"
}

# module_closure NAME...: the files of these modules and of all they depend on, relative to the
# folder of modules. Names that are built into the kernel print nothing.
module_closure() {
    local dir
    dir=$(kernel_modules)
    awk -v wanted="$*" '
        function base(path) { sub(/.*\//, "", path); sub(/\.ko$/, "", path); gsub(/-/, "_", path); return path }
        function take(file,   i, n, parts) {
            if (taken[file]++) return
            n = split(deps[file], parts, " ")
            for (i = 1; i <= n; i++) take(parts[i])
            print file
        }
        FILENAME ~ /builtin$/ { builtin[base($1)] = 1; next }
        { file = $1; sub(/:$/, "", file); byname[base(file)] = file; $1 = ""; deps[file] = $0 }
        END {
            n = split(wanted, names, " ")
            for (i = 1; i <= n; i++) {
                name = base(names[i])
                if (name in byname) take(byname[name])
                else if (!(name in builtin)) { print "no module " names[i] > "/dev/stderr"; exit 1 }
            }
        }' "$dir/modules.builtin" "$dir/modules.dep"
}

# tree_busybox ROOT: a folder tree with BusyBox and a link for each of its applets.
tree_busybox() {
    local applet
    mkdir -p "$1"/{dev,proc,sys,run,tmp,root,mnt,etc,var/log} "$1"/usr/{bin,lib,lib64}
    ln -s bin "$1/usr/sbin"
    ln -s ../run "$1/var/run"
    for applet in bin sbin lib lib64; do ln -s "usr/$applet" "$1/$applet"; done
    cp "$BUSYBOX" "$1/usr/bin/busybox"
    for applet in $("$BUSYBOX" --list); do
        [[ $applet == busybox ]] || ln -s busybox "$1/usr/bin/$applet"
    done
    echo 'root::0:0:root:/root:/bin/sh' >"$1/etc/passwd"
    echo 'root:x:0:' >"$1/etc/group"
}

# tree_modules ROOT NAME...: these modules, with what they depend on, and an index for modprobe.
tree_modules() {
    local root=$1 from to file files
    shift
    from=$(kernel_modules)
    to=$root/usr/lib/modules/$(kernel_version)
    files=$(module_closure "$@")
    for file in $files; do
        mkdir -p "$to/${file%/*}"
        cp "$from/$file" "$to/$file"
    done
    cp "$from"/modules.builtin "$to/"
    "$BUSYBOX" depmod -b "$root/usr" "$(kernel_version)"
}

# libraries PROGRAM: the shared libraries it needs, a line each: the file here, and its path in a
# tree, where /lib and /lib64 are links into /usr.
libraries() {
    local library
    for library in $({ ldd "$1"; libraries_opened "$1"; } 2>/dev/null | grep -o '/[^ ]*' | sort -u); do
        printf '%s %s\n' "$(realpath "$library")" "/usr${library#/usr}"
    done
}

# libraries_opened PROGRAM: the shared libraries that it names, to load while it runs, and what they
# need in turn.
libraries_opened() {
    local name file
    for name in $(grep -aoE 'lib[A-Za-z0-9_+-]+\.so\.[0-9]+' "$1" | sort -u); do
        file=$(/sbin/ldconfig -p | awk -v name="$name" '$1 == name && /x86-64/ { print $NF; exit }')
        [[ -z $file ]] || { echo "$file"; ldd "$file"; }
    done
}

# tree_strip ROOT: leaves out the modules' debugging sections and signatures: quicker to load.
tree_strip() {
    ! command -v strip >/dev/null || find "$1/usr/lib/modules" -name '*.ko' -exec strip --strip-debug {} +
}

# tree_pack TREE OUTPUT: an initramfs of the tree, links followed if the third argument is -L.
tree_pack() {
    local follow=("${@:3}")
    (cd "$1" && find "${follow[@]}" . -mindepth 1 | LC_ALL=C sort |
        cpio --quiet --create --format=newc --owner=+0:+0 --reproducible "${follow[@]}") >"$2.new" &&
        mv "$2.new" "$2"
}

# image_key FILE...: a name for what is made of these files, the kernel and BusyBox.
image_key() {
    { kernel_version; cat "$BUSYBOX" "$@"; } | sha256sum | cut -c 1-16
}
