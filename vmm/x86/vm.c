/*
 * The x86 side of a VM: interrupt controllers (8259 pair, IOAPIC, PIT) in KVM, and their reset.
 *
 * Owned by the event loop's thread. Text: the kernel's Documentation/virt/kvm/api.rst.
 */
#include <errno.h>
#include <linux/kvm.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vmm/arch.h"
#include "vmm/util/log.h"
#include "vmm/x86/platform.h"

#define N_CHIPS 3 /* KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE, _IOAPIC */
#define PIC_LINES 16
#define CHIP_LINES 8 /* of one 8259 */

/* The chips' registers, as the KVM API lays them out. */
struct chips {
    struct kvm_irqchip irqchips[N_CHIPS];
    struct kvm_pit_state2 pit;
};

/* What KVM made, for resets. */
struct arch_vm {
    struct chips power_on;
};

/* What is saved. */
struct vm_state {
    struct chips chips;
    uint64_t clock_ns; /* of kvmclock */
};

static const struct state_field vm_fields[] = {
    {.name = "chips", .type = STATE_U8, .offset = offsetof(struct vm_state, chips),
     .count = sizeof(struct chips), .stride = 1, .since = 1},
    STATE_FIELD(STATE_U64, struct vm_state, clock_ns),
};
static const struct state_desc vm_desc = STATE_DESC("x86-vm", 1, struct vm_state, vm_fields);

/* clang-format off */
#define CAP(name) KVM_CAP_##name, "KVM_CAP_" #name
const struct arch_cap arch_caps[] = {
    {CAP(USER_MEMORY), "memory", NULL},
    {CAP(IRQCHIP), "interrupt controllers", NULL},
    {CAP(PIT2), "a timer", NULL},
    {CAP(IRQ_ROUTING), "interrupt routing", NULL},
    {CAP(IRQFD), "interrupts by eventfd", NULL},
    {CAP(IOEVENTFD), "notifications by eventfd", NULL},
    {CAP(IMMEDIATE_EXIT), "immediate exits", NULL},
    {CAP(EXT_CPUID), "control of CPUID", NULL},
    {CAP(MP_STATE), "processor start-up state", NULL},
    {CAP(VCPU_EVENTS), "the state of exceptions and interrupts", NULL},
    {CAP(DEBUGREGS), "debug registers", NULL},
    {CAP(X2APIC_API), "interrupts for CPUs from 256 on", "guests have at most 255 CPUs"},
    {CAP(TSC_DEADLINE_TIMER), "timer interrupts by TSC deadline",
     "guests use the local APIC's slower timer"},
    {0},
};
#undef CAP
/* clang-format on */

static int fail(const char *what)
{
    int err = -errno;

    log_error("cannot set up the VM: %s: %s", what, strerror(-err));
    return err;
}

static int create_chips(int kvm_fd, int vm_fd)
{
    struct kvm_pit_config pit = {0};
    uint64_t identity_map = PLATFORM_KVM_IDENTITY_MAP;
    struct kvm_enable_cap x2apic = {
        .cap = KVM_CAP_X2APIC_API,
        .args = {KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK},
    };

    if (ioctl(vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map) < 0)
        return fail("KVM_SET_IDENTITY_MAP_ADDR");
    if (ioctl(vm_fd, KVM_SET_TSS_ADDR, PLATFORM_KVM_TSS) < 0)
        return fail("KVM_SET_TSS_ADDR");
    if (ioctl(vm_fd, KVM_CREATE_IRQCHIP, 0) < 0)
        return fail("KVM_CREATE_IRQCHIP");
    if (ioctl(vm_fd, KVM_CREATE_PIT2, &pit) < 0)
        return fail("KVM_CREATE_PIT2");
    /* Without it, APIC ids end at 254: KVM then refuses more vCPUs by itself. */
    if (ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_X2APIC_API) > 0 &&
        ioctl(vm_fd, KVM_ENABLE_CAP, &x2apic) < 0)
        return fail("KVM_CAP_X2APIC_API");
    return 0;
}

static int read_chips(int vm_fd, struct chips *chips)
{
    memset(chips, 0, sizeof(*chips));
    for (unsigned i = 0; i < N_CHIPS; i++) {
        chips->irqchips[i].chip_id = i;
        if (ioctl(vm_fd, KVM_GET_IRQCHIP, &chips->irqchips[i]) < 0)
            return fail("KVM_GET_IRQCHIP");
    }
    if (ioctl(vm_fd, KVM_GET_PIT2, &chips->pit) < 0)
        return fail("KVM_GET_PIT2");
    return 0;
}

static int write_chips(int vm_fd, const struct chips *chips)
{
    for (unsigned i = 0; i < N_CHIPS; i++)
        if (ioctl(vm_fd, KVM_SET_IRQCHIP, &chips->irqchips[i]) < 0)
            return fail("KVM_SET_IRQCHIP");
    if (ioctl(vm_fd, KVM_SET_PIT2, &chips->pit) < 0)
        return fail("KVM_SET_PIT2");
    return 0;
}

int arch_vm_create(struct arch_vm **out, int kvm_fd, int vm_fd)
{
    struct arch_vm *avm;
    int err = create_chips(kvm_fd, vm_fd);

    if (err)
        return err;
    avm = calloc(1, sizeof(*avm));
    if (!avm)
        return -ENOMEM;
    err = read_chips(vm_fd, &avm->power_on);
    if (err) {
        free(avm);
        return err;
    }
    *out = avm;
    return 0;
}

void arch_vm_destroy(struct arch_vm *avm)
{
    free(avm);
}

int arch_vm_reset(struct arch_vm *avm, int vm_fd)
{
    return write_chips(vm_fd, &avm->power_on);
}

int arch_vm_save(int vm_fd, struct state_buffer *out)
{
    struct vm_state state = {0};
    struct kvm_clock_data clock = {0};
    int err = read_chips(vm_fd, &state.chips);

    if (err)
        return err;
    if (ioctl(vm_fd, KVM_GET_CLOCK, &clock) < 0)
        return fail("KVM_GET_CLOCK");
    state.clock_ns = clock.clock;
    return state_save(&vm_desc, &state, out);
}

int arch_vm_load(int vm_fd, struct state_reader *in)
{
    struct kvm_clock_data clock = {0};
    struct vm_state state;
    int err = state_load(&vm_desc, &state, in);

    for (unsigned i = 0; !err && i < N_CHIPS; i++)
        if (state.chips.irqchips[i].chip_id != i) {
            log_error("the VM's interrupt controllers stand in another order than expected");
            err = -EINVAL;
        }
    if (!err)
        err = write_chips(vm_fd, &state.chips);
    if (err)
        return err;
    clock.clock = state.clock_ns;
    return ioctl(vm_fd, KVM_SET_CLOCK, &clock) < 0 ? fail("KVM_SET_CLOCK") : 0;
}

static struct kvm_irq_routing_entry chip_route(unsigned gsi, unsigned chip, unsigned pin)
{
    return (struct kvm_irq_routing_entry){
        .gsi = gsi,
        .type = KVM_IRQ_ROUTING_IRQCHIP,
        .u.irqchip = {.irqchip = chip, .pin = pin},
    };
}

/* The routes KVM starts with, which stay in force until the first MSI: GSI n is IOAPIC pin n, and
 * below 16 a line of the 8259 pair as well. The MADT therefore has no interrupt source override. */
unsigned arch_irq_routes(struct kvm_irq_routing_entry *entries, unsigned max)
{
    unsigned n = 0;

    for (unsigned gsi = 0; gsi < PLATFORM_IOAPIC_PINS && n + 2 <= max; gsi++) {
        if (gsi < PIC_LINES)
            entries[n++] = chip_route(gsi, gsi < CHIP_LINES ? KVM_IRQCHIP_PIC_MASTER
                                                            : KVM_IRQCHIP_PIC_SLAVE,
                                      gsi % CHIP_LINES);
        entries[n++] = chip_route(gsi, KVM_IRQCHIP_IOAPIC, gsi);
    }
    return n;
}
