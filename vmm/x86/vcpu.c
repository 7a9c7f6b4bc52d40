/*
 * The x86 side of a vCPU: CPUID at creation, power-on state kept for resets, entry into a kernel,
 * port I/O exits.
 *
 * The power-on state is what KVM itself made of a new vCPU, read back once; a reset writes it again,
 * as a restore writes another. Called on the event loop's thread while the vCPU is parked, but
 * for arch_vcpu_exit(), which is the vCPU thread's. No lock.
 * Texts: Intel SDM volume 3A, §9.1 (state after reset), §2.2 (EFER), §2.5 (control registers),
 * §3.4.5 (descriptors); the kernel's Documentation/virt/kvm/api.rst.
 */
#include <errno.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vmm/arch.h"
#include "vmm/util/log.h"
#include "vmm/vcpu.h"
#include "vmm/x86/assist.h"
#include "vmm/x86/tables.h"
#include "vmm/x86/vcpu_state.h"
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

struct arch_vcpu {
    int kvm_fd; /* borrowed */
    int fd;     /* borrowed */
    struct x86_assist *assist; /* owns; NULL where KVM needs none */
    struct x86_vcpu_state power_on;
};

static int fail(const char *action, const char *what)
{
    int err = -errno;

    log_error("vCPU: cannot %s its %s: %s", action, what, strerror(-err));
    return err;
}

static int set_cpuid(int kvm_fd, int vcpu_fd, unsigned index, unsigned count, bool emulated)
{
    struct x86_cpuid *cpuid = malloc(sizeof(*cpuid));
    int khz = ioctl(vcpu_fd, KVM_GET_TSC_KHZ, 0);
    struct x86_topology topology = {
        .index = index,
        .count = count,
        .tsc_khz = khz > 0 ? (uint32_t)khz : 0,
        .tsc_deadline = ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0,
        .emulated = emulated,
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

int arch_vcpu_create(struct arch_vcpu **out, int kvm_fd, int vcpu_fd, unsigned index,
                     unsigned count, const struct arch_assist *assist)
{
    struct arch_vcpu *acpu;
    int err = set_cpuid(kvm_fd, vcpu_fd, index, count, assist != NULL);

    if (err)
        return err;
    acpu = calloc(1, sizeof(*acpu));
    if (!acpu)
        return -ENOMEM;
    acpu->kvm_fd = kvm_fd;
    acpu->fd = vcpu_fd;
    /* As firmware leaves them: memory is write-back by default, string moves are fast. */
    set_optional_msr(vcpu_fd, MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRINGS);
    set_optional_msr(vcpu_fd, MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK);
    err = x86_vcpu_state_read(kvm_fd, vcpu_fd, &acpu->power_on);
    if (!err && assist)
        err = x86_assist_create(
            &acpu->assist, &(struct x86_assist_config){.vcpu_fd = vcpu_fd, .index = index,
                                                       .mem = assist->mem,
                                                       .tables = assist->tables,
                                                       .run = assist->run});
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
    x86_assist_destroy(acpu->assist);
    free(acpu);
}

static int write_state(struct arch_vcpu *acpu, const struct x86_vcpu_state *state)
{
    int err = x86_vcpu_state_write(acpu->kvm_fd, acpu->fd, state);

    return !err && acpu->assist ? x86_assist_refresh(acpu->assist) : err;
}

int arch_vcpu_reset(struct arch_vcpu *acpu)
{
    return write_state(acpu, &acpu->power_on);
}

/* ---- saving ---- */

/* What the guest sees, which on a KVM without hardware support is more than what was set. */
static int read_cpuid(struct arch_vcpu *acpu, struct x86_cpuid *cpuid)
{
    memset(cpuid, 0, sizeof(*cpuid));
    cpuid->head.nent = sizeof(cpuid->entries) / sizeof(cpuid->entries[0]);
    return ioctl(acpu->fd, KVM_GET_CPUID2, &cpuid->head) < 0 ? fail("read", "CPUID") : 0;
}

int arch_vcpu_save(struct arch_vcpu *acpu, struct state_buffer *out)
{
    struct x86_vcpu_state *state = malloc(sizeof(*state));
    struct x86_cpuid *cpuid = malloc(sizeof(*cpuid));
    int err = state && cpuid ? 0 : -ENOMEM;

    if (!err)
        err = x86_vcpu_state_read(acpu->kvm_fd, acpu->fd, state);
    if (!err)
        err = read_cpuid(acpu, cpuid);
    if (!err)
        err = state_save(&x86_cpuid_desc, cpuid, out);
    if (!err)
        err = state_save(&x86_vcpu_state_desc, state, out);
    free(cpuid);
    free(state);
    return err;
}

static bool tsc_is_near(uint32_t khz, uint32_t here)
{
    uint32_t tolerance = here / 4000; /* 250 ppm, as Linux tolerates */

    return khz == 0 || here == 0 || (khz <= here + tolerance && khz + tolerance >= here);
}

/* The guest keeps the frequency it has measured: by KVM's scaling where the host's own differs. */
static int check_tsc(struct arch_vcpu *acpu, uint32_t khz)
{
    uint32_t here = acpu->power_on.tsc_khz;

    if (tsc_is_near(khz, here))
        return 0;
    if (ioctl(acpu->fd, KVM_SET_TSC_KHZ, (unsigned long)khz) == 0)
        return 0;
    log_error("vCPU: the guest's TSC runs at %u kHz, this host's at %u kHz, and its KVM cannot "
              "scale it", khz, here);
    return -EINVAL;
}

static int load_cpuid(struct arch_vcpu *acpu, struct state_reader *in)
{
    struct x86_cpuid *saved = malloc(sizeof(*saved));
    struct x86_cpuid *here = malloc(sizeof(*here));
    int err = saved && here ? state_load(&x86_cpuid_desc, saved, in) : -ENOMEM;

    if (!err)
        err = read_cpuid(acpu, here);
    if (!err && acpu->assist)
        err = x86_cpuid_add_hidden(acpu->kvm_fd, here);
    if (!err)
        err = x86_cpuid_check(saved, here);
    if (!err && acpu->assist && x86_cpuid_flushes(saved))
        x86_assist_leave_to_kvm(acpu->assist);
    if (!err && ioctl(acpu->fd, KVM_SET_CPUID2, &saved->head) < 0)
        err = fail("set", "CPUID");
    free(here);
    free(saved);
    return err;
}

int arch_vcpu_load(struct arch_vcpu *acpu, struct state_reader *in)
{
    struct x86_vcpu_state *state = malloc(sizeof(*state));
    int err = state ? load_cpuid(acpu, in) : -ENOMEM;

    if (!err)
        err = state_load(&x86_vcpu_state_desc, state, in);
    if (!err)
        err = check_tsc(acpu, state->tsc_khz);
    if (!err)
        err = write_state(acpu, state);
    free(state);
    return err;
}

/* ---- before a migration ---- */

/* Beside CPUID. */
struct processor {
    uint32_t tsc_khz;
};

static const struct state_field processor_fields[] = {
    STATE_FIELD(STATE_U32, struct processor, tsc_khz),
};
static const struct state_desc processor_desc =
    STATE_DESC("x86-processor", 1, struct processor, processor_fields);

/* Behind the others: whoever does not know it does not read on. */
static int describe_msrs(struct arch_vcpu *acpu, struct state_buffer *out)
{
    struct x86_msrs *msrs = malloc(sizeof(*msrs));
    int err = msrs ? x86_msrs_read(acpu->kvm_fd, acpu->fd, msrs) : -ENOMEM;

    if (!err)
        err = state_save(&x86_msrs_desc, msrs, out);
    free(msrs);
    return err;
}

int arch_vcpu_describe(struct arch_vcpu *acpu, struct state_buffer *out)
{
    struct x86_cpuid *cpuid = malloc(sizeof(*cpuid));
    int khz = ioctl(acpu->fd, KVM_GET_TSC_KHZ, 0);
    struct processor processor = {.tsc_khz = khz > 0 ? (uint32_t)khz : 0};
    int err = cpuid ? read_cpuid(acpu, cpuid) : -ENOMEM;

    if (!err)
        err = state_save(&x86_cpuid_desc, cpuid, out);
    free(cpuid);
    if (!err)
        err = state_save(&processor_desc, &processor, out);
    return err ? err : describe_msrs(acpu, out);
}

static int compare_cpuid(struct state_reader *there, struct state_reader *here, char *missing,
                         size_t size)
{
    struct x86_cpuid *wanted = malloc(sizeof(*wanted));
    struct x86_cpuid *offered = malloc(sizeof(*offered));
    int err = wanted && offered ? state_load(&x86_cpuid_desc, wanted, there) : -ENOMEM;

    if (!err)
        err = state_load(&x86_cpuid_desc, offered, here);
    if (!err)
        err = x86_cpuid_compare(wanted, offered, missing, size);
    free(offered);
    free(wanted);
    return err;
}

/* api.rst §4.55: without scaling KVM gives a guest more than the host's frequency by keeping its clock
 * up with that, but not less. */
static int compare_tsc(int kvm_fd, struct state_reader *there, struct state_reader *here,
                       char *missing, size_t size)
{
    struct processor wanted, offered;
    size_t at = strlen(missing);
    int err = state_load(&processor_desc, &wanted, there);

    if (!err)
        err = state_load(&processor_desc, &offered, here);
    if (err || tsc_is_near(wanted.tsc_khz, offered.tsc_khz) || wanted.tsc_khz > offered.tsc_khz ||
        ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL) > 0)
        return err;
    log_error("vCPU: the guest's TSC runs at %u kHz, this host's at %u kHz, and its KVM cannot "
              "scale it", wanted.tsc_khz, offered.tsc_khz);
    snprintf(missing + at, size - at, "%sa TSC of %u kHz", at ? ", " : "", wanted.tsc_khz);
    return 0;
}

/* A source of the first version says nothing of them. */
static int compare_msrs(int kvm_fd, struct state_reader *in, char *missing, size_t size)
{
    struct x86_msrs *there;
    int err;

    if (in->at >= in->length)
        return 0;
    there = malloc(sizeof(*there));
    err = there ? state_load(&x86_msrs_desc, there, in) : -ENOMEM;
    if (!err)
        err = x86_msrs_compare(kvm_fd, there, missing, size);
    free(there);
    return err;
}

int arch_processor_compare(int kvm_fd, struct state_reader *there, struct state_reader *here,
                           char *missing, size_t size)
{
    int err = compare_cpuid(there, here, missing, size);

    if (!err)
        err = compare_tsc(kvm_fd, there, here, missing, size);
    return err ? err : compare_msrs(kvm_fd, there, missing, size);
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

int arch_vcpu_exit(struct arch_vcpu *acpu, struct vcpu *vcpu, struct kvm_run *run)
{
    if (run->exit_reason == KVM_EXIT_IO) {
        handle_port_io(vcpu, run);
        return 0;
    }
    return acpu->assist ? x86_assist_exit(acpu->assist, run) : -ENOSYS;
}

int arch_vcpu_enter(struct arch_vcpu *acpu)
{
    return acpu->assist ? x86_assist_enter(acpu->assist) : 0;
}

int arch_vcpu_park(struct arch_vcpu *acpu)
{
    return acpu->assist ? x86_assist_park(acpu->assist) : 0;
}

int arch_vm_assist(struct x86_tables **out, int kvm_fd, int vm_fd, struct guest_memory *mem)
{
    return x86_assist_prepare(out, kvm_fd, vm_fd, mem);
}

void arch_vm_assist_end(struct x86_tables *tables)
{
    x86_tables_destroy(tables);
}
