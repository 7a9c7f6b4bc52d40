/*
 * The spacing of timer interrupts; see the header for why.
 *
 * A guest sets the next deadline at the end of the last one's interrupt. How long that took is what
 * lies between: the emulated handler, and the time that other processes had the processor. What comes
 * after, Linux's soft interrupts and its leave, takes about as long again and is not seen. The
 * next deadline leaves at least eleven times as much for everything else, so that ticks take a sixth
 * of a vCPU, however busy the host is. Linux takes a late tick for several. What the guest
 * wants later than that is set as it wants it: sleeping guests sleep as long, and one that
 * has 25 ticks a second or fewer is not touched on an idle host.
 *
 * Only deadlines of the TSC are seen, by KVM's filter of MSRs; the other modes of the local APIC's timer
 * stay KVM's alone. The guest reads back what was set. The vCPU's thread; no locks. Texts: Intel SDM
 * volume 3A §10.5.4.1 (TSC-deadline mode); the kernel's Documentation/virt/kvm/api.rst §5
 * KVM_EXIT_X86_WRMSR.
 */
#include "vmm/x86/tick.h"

#include "vmm/x86/syscall.h"

#define MSR_TSC 0x10u
#define REST 11u       /* times what the interrupt took */
#define LONGEST_MS 60u /* of rest, however busy the host is */
#define IDLE_MS 500u   /* after so long, the guest did not handle an interrupt but slept */

void x86_tick_init(struct x86_tick *tick, uint32_t khz)
{
    *tick = (struct x86_tick){.longest = (uint64_t)khz * LONGEST_MS};
}

uint64_t x86_tick_space(struct x86_tick *tick, uint64_t wanted, uint64_t now)
{
    uint64_t took = now - tick->due;

    if (tick->due != 0 && now >= tick->due) {
        uint64_t rest = took < tick->longest / REST ? took * REST : tick->longest;

        tick->earliest = took < tick->longest / LONGEST_MS * IDLE_MS ? now + rest : now;
    }
    tick->due = wanted == 0 ? 0 : wanted > tick->earliest ? wanted : tick->earliest;
    return tick->due;
}

int x86_tick_set(struct x86_tick *tick, int vcpu_fd, uint64_t wanted, uint64_t now)
{
    return x86_msr_write(vcpu_fd, X86_MSR_TSC_DEADLINE, x86_tick_space(tick, wanted, now));
}

int x86_tick_msr_exit(struct x86_tick *tick, int vcpu_fd, struct kvm_run *run)
{
    uint64_t deadline = run->msr.data, now;

    if (x86_msr_read(vcpu_fd, MSR_TSC, &now) == 0)
        deadline = x86_tick_space(tick, deadline, now);
    run->msr.error = x86_msr_write(vcpu_fd, X86_MSR_TSC_DEADLINE, deadline) < 0;
    return 0;
}
