/*
 * The first process of the guests whose boot is timed: says that user space is there, powers off.
 *
 * Linked statically; alone in its initramfs, so that the figure is the kernel's and the VMM's.
 */
#include <stdio.h>
#include <sys/reboot.h>
#include <unistd.h>

int main(void)
{
    puts("user space");
    fflush(stdout);
    sync();
    return reboot(RB_POWER_OFF);
}
