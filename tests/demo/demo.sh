#!/bin/bash
# The demo: boots Debian's cloud kernel with BusyBox and NAT by `ferry run`, and shows what the guest's
# network does. On a host whose KVM emulates kernel code the tests' small kernel takes its place when it
# has been built, for speed; on one that has no KVM, all of it happens in the lab. What is shown stands in
# scene.sh, the guest's part in guest.sh.
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
code=$(kernel_code)
if [[ $code == none ]]; then
    echo "This host has no KVM that can be used ('ferry doctor' says why): so all of this is in the lab, a KVM"
    echo "host under QEMU's software emulation, which is many times slower."
    exec "$LAB_DIR/lab" run --timeout 300 --put "$ferry" --put "$kernel:/root/vmlinuz" \
        --put "$initrd:/root/initrd" --put "$here/scene.sh:/root/scene.sh" -- \
        sh /root/scene.sh ferry vmlinuz initrd busybox "$colour"
fi
scene=("$BUSYBOX" sh "$here/scene.sh" "$ferry")
if [[ $code == emulated ]] && small=$("$ROOT/tests/guest/linux.sh" --have); then
    echo "This host's KVM emulates kernel code: so the small kernel of 'make linux' takes Debian's place."
    exec "${scene[@]}" "$small" "$("$ROOT/tests/linux/initramfs.sh" --demo)" "$BUSYBOX" "$colour" \
        '--memory 64M --console virtio' 'console=hvc0 ip=dhcp'
fi
[[ $code == native ]] ||
    echo "This host's KVM emulates kernel code, which Ferry interprets: the boot takes some seconds."
exec "${scene[@]}" "$kernel" "$initrd" "$BUSYBOX" "$colour"
