#!/bin/bash
# The demo: boots Debian's cloud kernel with BusyBox and NAT by `ferry run`, and shows what the guest's
# network does. On a host whose KVM cannot run it at a bearable speed, or that has none, the same
# happens in the lab. What is shown stands in scene.sh, the guest's part in guest.sh.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../lab/lib.sh"

ferry=$BUILD/ferry
here=$ROOT/tests/demo

# kernel_code: how this host's KVM runs a guest's kernel code: native, emulated or none.
kernel_code() {
    local found
    found=$("$ferry" doctor --json 2>/dev/null | sed -n 's/.*"kernel_code": *"\([a-z]*\)".*/\1/p') || true
    echo "${found:-none}"
}

case ${1-} in
    '') ;;
    -h | --help) echo "Usage: tests/demo/demo.sh    (after make; 'make demo' does both)"; exit ;;
    *) die "unknown argument '$1'" 2 ;;
esac
[[ -x $ferry ]] || die "there is no $ferry: run 'make demo', which builds it"
colour=
if [[ -t 1 && ! ${NO_COLOR-} && ${TERM-dumb} != dumb ]]; then colour=yes; fi
"$LAB_DIR/fetch.sh"
kernel=$(kernel_image)
initrd=$("$LAB_DIR/guest-initramfs.sh" --put "$here/guest.sh:/usr/bin/demo")

echo "Debian's kernel $(kernel_version), BusyBox and user-mode NAT, by ferry run."
case $(kernel_code) in
    native)
        exec "$BUSYBOX" sh "$here/scene.sh" "$ferry" "$kernel" "$initrd" "$BUSYBOX" "$colour" ;;
    emulated)
        if small=$("$ROOT/tests/guest/linux.sh" --have); then
            echo "This host's KVM emulates kernel code: so the small kernel of 'make linux' takes Debian's place."
            exec "$BUSYBOX" sh "$here/scene.sh" "$ferry" "$small" \
                "$("$ROOT/tests/linux/initramfs.sh" --demo)" "$BUSYBOX" "$colour" '--memory 64M --console virtio' \
                'console=hvc0 ip=dhcp'
        fi
        echo "This host's KVM emulates kernel code, by which Debian's kernel takes minutes to boot ('make"
        echo "linux' builds one that takes seconds, and the demo then uses it): so all of this" ;;
    *)
        echo "This host has no KVM that can be used ('ferry doctor' says why): so all of this" ;;
esac
echo "is in the lab, a KVM host under QEMU's software emulation, which is many times slower."
exec "$LAB_DIR/lab" run --timeout 300 --put "$ferry" --put "$kernel:/root/vmlinuz" \
    --put "$initrd:/root/initrd" --put "$here/scene.sh:/root/scene.sh" -- \
    sh /root/scene.sh ferry vmlinuz initrd busybox "$colour"
