/*
 * Keeps KVM's static branches as they are while the lab runs, by two guests of one CPU each that never
 * run. The lab's init starts it before anything else uses KVM.
 *
 * Linux patches its own code (text_poke_bp) when the first guest is there, in the middle of schedule(),
 * and when a CPU has no LAPIC in the kernel or one that is off; and back again after it. QEMU 7.2 writes
 * such code in two steps: it drops what it has translated from there, then stores. Another CPU that comes
 * by in between translates the old bytes once more, for good: where a breakpoint was for a moment, it now
 * takes that breakpoint forever, and with it the lab stands still. The busier the machine, the longer is
 * "in between": one in some fifty starts of a guest with two CPUs ended so.
 *
 * One thread; `hold` ends only with the lab. Says `held` when it has what it wants.
 *
 * Texts: Linux Documentation/virt/kvm/api.rst, 4.2 (KVM_CREATE_VM), 4.7 (KVM_CREATE_VCPU), 4.24
 * (KVM_CREATE_IRQCHIP); Linux Documentation/staging/static-keys.rst.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* A guest with one CPU: with the interrupt controllers in the kernel, the LAPIC as after a reset, off. */
static int guest_create(int kvm, bool irqchip)
{
    int guest = ioctl(kvm, KVM_CREATE_VM, 0);

    if (guest < 0)
        return -errno;
    if (irqchip && ioctl(guest, KVM_CREATE_IRQCHIP, 0) < 0)
        return -errno;
    if (ioctl(guest, KVM_CREATE_VCPU, 0) < 0)
        return -errno;
    return 0;
}

int main(void)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    int error = kvm < 0 ? -errno : guest_create(kvm, false);

    if (!error)
        error = guest_create(kvm, true);
    if (error) {
        fprintf(stderr, "hold: %s\n", strerror(-error));
        return 1;
    }
    puts("held");
    fflush(stdout);
    for (;;)
        pause();
}
