/*
 * The x86 side of a vCPU: CPUID at creation, power-on state kept for resets, entry into a kernel,
 * port I/O exits.
 *
 * The power-on state is what KVM itself made of a new vCPU, read back once; a reset writes it again,
 * as migration will write another. Called on the event loop's thread while the vCPU is parked, but
 * for arch_vcpu_exit(), which is the vCPU thread's. No lock.
 * Texts: Intel SDM volume 3A, §9.1 (state after reset), §2.2 (EFER), §2.5 (control registers),
 * §3.4.5 (descriptors); the kernel's Documentation/virt/kvm/api.rst.
 */
#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vmm/arch.h"
#include "vmm/util/log.h"
#include "vmm/vcpu.h"
#include "vmm/x86/x86.h"

#define CR0_PE (1ull << 0)
#define CR0_ET (1ull << 4)
#define CR0_PG (1ull << 31)
#define CR4_PAE (1ull << 5)
#define EFER_LME (1ull << 8)
#define EFER_LMA (1ull << 10)
#define RFLAGS_RESERVED 2ull

#define MSR_MISC_ENABLE 0x1A0u
#define MISC_ENABLE_FAST_STRINGS 1ull
#define MSR_MTRR_DEF_TYPE 0x2FFu
#define MTRR_ENABLED_WRITE_BACK (1ull << 11 | 6)

#define SEGMENT_CODE 11 /* execute, read, accessed */
#define SEGMENT_DATA 3  /* read, write, accessed */
#define SEGMENT_TSS_BUSY 11

#define MAX_MSRS 512

struct msr_list {
    struct kvm_msrs head; /* head.nmsrs of: */
    struct kvm_msr_entry entries[MAX_MSRS];
};

struct arch_vcpu {
    int fd; /* borrowed */
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_lapic_state lapic;
    struct kvm_mp_state mp_state;
    struct kvm_vcpu_events events;
    struct kvm_debugregs debugregs;
    struct kvm_xcrs xcrs;
    struct kvm_fpu fpu;
    bool has_xsave;
    struct msr_list *msrs; /* owns; head.nmsrs of them have values */
};

/* The register sets that are read and written whole, by one table. */
struct register_set {
    const char *name;
    unsigned long get, set;
    size_t offset;
    bool by_xsave; /* only a processor with XSAVE has them */
};

/* In the order in which they are written: the APIC base (sregs) before the APIC, and its events
 * after everything that may change them. */
static const struct register_set register_sets[] = {
    {"registers", KVM_GET_REGS, KVM_SET_REGS, offsetof(struct arch_vcpu, regs), false},
    {"FPU state", KVM_GET_FPU, KVM_SET_FPU, offsetof(struct arch_vcpu, fpu), false},
    {"XCRs", KVM_GET_XCRS, KVM_SET_XCRS, offsetof(struct arch_vcpu, xcrs), true},
    {"system registers", KVM_GET_SREGS, KVM_SET_SREGS, offsetof(struct arch_vcpu, sregs), false},
    {"debug registers", KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS,
     offsetof(struct arch_vcpu, debugregs), false},
    {"local APIC", KVM_GET_LAPIC, KVM_SET_LAPIC, offsetof(struct arch_vcpu, lapic), false},
    {"start-up state", KVM_GET_MP_STATE, KVM_SET_MP_STATE, offsetof(struct arch_vcpu, mp_state),
     false},
    {"events", KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, offsetof(struct arch_vcpu, events), false},
};
#define N_REGISTER_SETS (sizeof(register_sets) / sizeof(register_sets[0]))

static bool has_set(const struct arch_vcpu *acpu, const struct register_set *set)
{
    return acpu->has_xsave || !set->by_xsave;
}

static int fail(const char *action, const char *what)
{
    int err = -errno;

    log_error("vCPU: cannot %s its %s: %s", action, what, strerror(-err));
    return err;
}

static int set_cpuid(int kvm_fd, int vcpu_fd, unsigned index, unsigned count)
{
    struct x86_cpuid *cpuid = malloc(sizeof(*cpuid));
    int khz = ioctl(vcpu_fd, KVM_GET_TSC_KHZ, 0);
    struct x86_topology topology = {
        .index = index,
        .count = count,
        .tsc_khz = khz > 0 ? (uint32_t)khz : 0,
        .tsc_deadline = ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0,
    };
    int err;

    if (!cpuid)
        return -ENOMEM;
    err = x86_cpuid_supported(kvm_fd, cpuid);
    if (!err)
        err = x86_cpuid_set_topology(cpuid, &topology);
    if (!err && ioctl(vcpu_fd, KVM_SET_CPUID2, &cpuid->head) < 0)
        err = fail("set", "CPUID");
    free(cpuid);
    return err;
}

/* One MSR that need not exist: KVM then takes none of the list. */
static void set_optional_msr(int vcpu_fd, uint32_t index, uint64_t value)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry;
    } one = {.head.nmsrs = 1, .entry = {.index = index, .data = value}};

    if (ioctl(vcpu_fd, KVM_SET_MSRS, &one) != 1)
        log_debug("vCPU: the host's KVM has no MSR %#x", index);
}

/* Reads the MSRs that are listed; one that KVM lists but refuses to read is taken off. */
static int read_msrs(struct arch_vcpu *acpu)
{
    struct msr_list *list = acpu->msrs;

    for (;;) {
        int got = ioctl(acpu->fd, KVM_GET_MSRS, list);

        if (got < 0)
            return fail("read", "MSRs");
        if ((uint32_t)got >= list->head.nmsrs)
            return 0;
        list->head.nmsrs--;
        memmove(&list->entries[got], &list->entries[got + 1],
                (list->head.nmsrs - (uint32_t)got) * sizeof(list->entries[0]));
    }
}

static int list_msrs(struct arch_vcpu *acpu, int kvm_fd)
{
    struct {
        struct kvm_msr_list head;
        uint32_t indices[MAX_MSRS];
    } known = {.head.nmsrs = MAX_MSRS};

    if (ioctl(kvm_fd, KVM_GET_MSR_INDEX_LIST, &known) < 0)
        return fail("list", "MSRs");
    acpu->msrs = calloc(1, sizeof(*acpu->msrs));
    if (!acpu->msrs)
        return -ENOMEM;
    acpu->msrs->head.nmsrs = known.head.nmsrs;
    for (uint32_t i = 0; i < known.head.nmsrs; i++)
        acpu->msrs->entries[i].index = known.indices[i];
    return 0;
}

/* An MSR that reads but does not take its own value back is skipped: it is not the guest's to set. */
static int write_msrs(struct arch_vcpu *acpu)
{
    struct msr_list *list = acpu->msrs;
    struct msr_list rest;
    uint32_t at = 0;

    while (at < list->head.nmsrs) {
        int done;

        rest.head = (struct kvm_msrs){.nmsrs = list->head.nmsrs - at};
        memcpy(rest.entries, &list->entries[at], rest.head.nmsrs * sizeof(rest.entries[0]));
        done = ioctl(acpu->fd, KVM_SET_MSRS, &rest);
        if (done < 0)
            return fail("write", "MSRs");
        at += (uint32_t)done + 1;
    }
    return 0;
}

static int read_power_on_state(struct arch_vcpu *acpu, int kvm_fd)
{
    int err = list_msrs(acpu, kvm_fd);

    acpu->has_xsave = ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_XCRS) > 0;
    for (size_t i = 0; !err && i < N_REGISTER_SETS; i++)
        if (has_set(acpu, &register_sets[i]) &&
            ioctl(acpu->fd, register_sets[i].get, (char *)acpu + register_sets[i].offset) < 0)
            err = fail("read", register_sets[i].name);
    return err ? err : read_msrs(acpu);
}

int arch_vcpu_create(struct arch_vcpu **out, int kvm_fd, int vcpu_fd, unsigned index,
                     unsigned count)
{
    struct arch_vcpu *acpu;
    int err = set_cpuid(kvm_fd, vcpu_fd, index, count);

    if (err)
        return err;
    acpu = calloc(1, sizeof(*acpu));
    if (!acpu)
        return -ENOMEM;
    acpu->fd = vcpu_fd;
    /* As firmware leaves them: memory is write-back by default, string moves are fast. */
    set_optional_msr(vcpu_fd, MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRINGS);
    set_optional_msr(vcpu_fd, MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK);
    err = read_power_on_state(acpu, kvm_fd);
    if (err) {
        arch_vcpu_destroy(acpu);
        return err;
    }
    *out = acpu;
    return 0;
}

void arch_vcpu_destroy(struct arch_vcpu *acpu)
{
    if (!acpu)
        return;
    free(acpu->msrs);
    free(acpu);
}

int arch_vcpu_reset(struct arch_vcpu *acpu)
{
    for (size_t i = 0; i < N_REGISTER_SETS; i++)
        if (has_set(acpu, &register_sets[i]) &&
            ioctl(acpu->fd, register_sets[i].set, (char *)acpu + register_sets[i].offset) < 0)
            return fail("reset", register_sets[i].name);
    return write_msrs(acpu);
}

static struct kvm_segment flat_segment(uint16_t selector, uint8_t type, bool long_mode)
{
    bool code = type == SEGMENT_CODE;

    return (struct kvm_segment){
        .base = 0,
        .limit = 0xFFFFFFFF,
        .selector = selector,
        .type = type,
        .present = 1,
        .s = 1,
        .g = 1,
        .l = code && long_mode,
        .db = !(code && long_mode),
    };
}

int x86_vcpu_enter_at(int vcpu_fd, const struct x86_entry *entry)
{
    bool long_mode = entry->mode == X86_LONG64;
    struct kvm_regs regs = {
        .rip = entry->rip, .rax = entry->rax, .rbx = entry->rbx, .rsi = entry->rsi,
        .rflags = RFLAGS_RESERVED,
    };
    struct kvm_sregs sregs;

    if (ioctl(vcpu_fd, KVM_GET_SREGS, &sregs) < 0)
        return fail("read", "system registers");
    sregs.cs = flat_segment(entry->cs, SEGMENT_CODE, long_mode);
    sregs.ds = flat_segment(entry->ds, SEGMENT_DATA, long_mode);
    sregs.es = sregs.fs = sregs.gs = sregs.ss = sregs.ds;
    sregs.tr = (struct kvm_segment){
        .limit = 0x67, .selector = entry->tss, .type = SEGMENT_TSS_BUSY, .present = 1,
    };
    sregs.gdt.base = entry->gdt;
    sregs.gdt.limit = entry->gdt_limit;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    sregs.efer = 0;
    if (long_mode) {
        sregs.cr0 |= CR0_PG;
        sregs.cr3 = entry->cr3;
        sregs.cr4 = CR4_PAE;
        sregs.efer = EFER_LME | EFER_LMA;
    }
    if (ioctl(vcpu_fd, KVM_SET_SREGS, &sregs) < 0)
        return fail("set", "system registers");
    if (ioctl(vcpu_fd, KVM_SET_REGS, &regs) < 0)
        return fail("set", "registers");
    return 0;
}

/* api.rst §4.63: the guest's watchdogs are told. It fails for a guest without kvmclock: nothing is
 * lost. */
void arch_vcpu_resuming(int fd)
{
    (void)ioctl(fd, KVM_KVMCLOCK_CTRL, 0);
}

uint64_t arch_vcpu_ip(int fd)
{
    struct kvm_regs regs;

    return ioctl(fd, KVM_GET_REGS, &regs) < 0 ? 0 : regs.rip;
}

/* api.rst §5, KVM_EXIT_IO: `count` transfers of `size` bytes each, one after the other (INS, OUTS). */
static void handle_port_io(struct vcpu *vcpu, struct kvm_run *run)
{
    uint8_t *data = (uint8_t *)run + run->io.data_offset;

    for (uint32_t i = 0; i < run->io.count; i++)
        vcpu_bus(vcpu, VCPU_BUS_PIO, run->io.port, data + (size_t)i * run->io.size, run->io.size,
                 run->io.direction == KVM_EXIT_IO_OUT);
}

int arch_vcpu_exit(struct vcpu *vcpu, struct kvm_run *run)
{
    if (run->exit_reason != KVM_EXIT_IO)
        return -ENOSYS;
    handle_port_io(vcpu, run);
    return 0;
}
