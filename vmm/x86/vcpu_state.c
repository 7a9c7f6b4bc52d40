/*
 * A vCPU's registers as sets that KVM gives and takes whole, by one table; and its MSRs.
 *
 * Does not know what the values are for: power-on, a saved guest. No state of its own; see the
 * header for the thread. Text: the kernel's Documentation/virt/kvm/api.rst.
 */
#include "vmm/x86/vcpu_state.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vmm/util/log.h"

struct register_set {
    const char *name;
    unsigned long get, set;
    size_t offset;
    bool by_xsave; /* only a processor with XSAVE has them */
};

#define SET(name_, what, field, by_xsave_)                                                         \
    {(name_), KVM_GET_##what, KVM_SET_##what, offsetof(struct x86_vcpu_state, field), (by_xsave_)}

/* In the order in which they are written: the APIC base (sregs) before the APIC, and the events
 * after everything that may change them. The MSRs follow, the timer's deadline after the APIC. */
static const struct register_set register_sets[] = {
    SET("registers", REGS, regs, false),
    SET("FPU state", FPU, fpu, false),
    SET("extended FPU state", XSAVE, xsave, true),
    SET("XCRs", XCRS, xcrs, true),
    SET("system registers", SREGS, sregs, false),
    SET("debug registers", DEBUGREGS, debugregs, false),
    SET("local APIC", LAPIC, lapic, false),
    SET("start-up state", MP_STATE, mp_state, false),
    SET("events", VCPU_EVENTS, events, false),
};
#define N_REGISTER_SETS (sizeof(register_sets) / sizeof(register_sets[0]))

static const struct state_field msr_fields[] = {
    STATE_FIELD(STATE_U32, struct kvm_msr_entry, index),
    STATE_FIELD(STATE_U64, struct kvm_msr_entry, data),
};
static const struct state_desc msr_desc = STATE_DESC("msr", 1, struct kvm_msr_entry, msr_fields);

#define BYTES(f)                                                                                   \
    {.name = #f, .type = STATE_U8, .offset = offsetof(struct x86_vcpu_state, f),                   \
     .count = sizeof(((struct x86_vcpu_state *)0)->f), .stride = 1, .since = 1}

static const struct state_field state_fields[] = {
    BYTES(regs),
    BYTES(fpu),
    BYTES(xsave),
    BYTES(xcrs),
    BYTES(sregs),
    BYTES(debugregs),
    BYTES(lapic),
    BYTES(mp_state),
    BYTES(events),
    STATE_FIELD(STATE_U32, struct x86_vcpu_state, tsc_khz),
    STATE_FIELD(STATE_U32, struct x86_vcpu_state, n_msrs),
    STATE_SUB_ARRAY(struct x86_vcpu_state, msrs, &msr_desc),
};
const struct state_desc x86_vcpu_state_desc =
    STATE_DESC("x86-vcpu", 1, struct x86_vcpu_state, state_fields);

struct msr_list {
    struct kvm_msrs head; /* head.nmsrs of: */
    struct kvm_msr_entry entries[X86_MAX_MSRS];
};

static int fail(const char *action, const char *what)
{
    int err = -errno;

    log_error("vCPU: cannot %s its %s: %s", action, what, strerror(-err));
    return err;
}

static bool has_xsave(int kvm_fd)
{
    return ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_XCRS) > 0;
}

static int list_msrs(int kvm_fd, struct msr_list *list)
{
    struct {
        struct kvm_msr_list head;
        uint32_t indices[X86_MAX_MSRS];
    } known = {.head.nmsrs = X86_MAX_MSRS};

    list->head.nmsrs = 0;
    if (ioctl(kvm_fd, KVM_GET_MSR_INDEX_LIST, &known) < 0)
        return fail("list", "MSRs");
    list->head = (struct kvm_msrs){.nmsrs = known.head.nmsrs};
    for (uint32_t i = 0; i < known.head.nmsrs; i++)
        list->entries[i] = (struct kvm_msr_entry){.index = known.indices[i]};
    return 0;
}

/* One that KVM lists but refuses to read is taken off the list. */
static int read_msrs(int vcpu_fd, struct msr_list *list)
{
    for (;;) {
        int got = ioctl(vcpu_fd, KVM_GET_MSRS, list);

        if (got < 0)
            return fail("read", "MSRs");
        if ((uint32_t)got >= list->head.nmsrs)
            return 0;
        list->head.nmsrs--;
        memmove(&list->entries[got], &list->entries[got + 1],
                (list->head.nmsrs - (uint32_t)got) * sizeof(list->entries[0]));
    }
}

static const struct state_field msrs_fields[] = {
    STATE_FIELD(STATE_U32, struct x86_msrs, n),
    STATE_SUB_ARRAY(struct x86_msrs, entries, &msr_desc),
};
const struct state_desc x86_msrs_desc = STATE_DESC("x86-msrs", 1, struct x86_msrs, msrs_fields);

int x86_msrs_read(int kvm_fd, int vcpu_fd, struct x86_msrs *msrs)
{
    struct msr_list *list = malloc(sizeof(*list));
    int err = list ? list_msrs(kvm_fd, list) : -ENOMEM;

    memset(msrs, 0, sizeof(*msrs));
    if (!err)
        err = read_msrs(vcpu_fd, list);
    for (uint32_t i = 0; !err && i < list->head.nmsrs; i++)
        if (list->entries[i].data != 0)
            msrs->entries[msrs->n++] = list->entries[i];
    free(list);
    return err;
}

static bool has_msr(const struct msr_list *list, uint32_t index)
{
    for (uint32_t i = 0; i < list->head.nmsrs; i++)
        if (list->entries[i].index == index)
            return true;
    return false;
}

int x86_msrs_compare(int kvm_fd, const struct x86_msrs *there, char *missing, size_t size)
{
    struct msr_list *list = malloc(sizeof(*list));
    int err = list ? list_msrs(kvm_fd, list) : -ENOMEM;

    for (uint32_t i = 0; !err && i < there->n && i < X86_MAX_MSRS; i++) {
        size_t at = strlen(missing);

        if (!has_msr(list, there->entries[i].index))
            snprintf(missing + at, size - at, "%sMSR %#x", at ? ", " : "", there->entries[i].index);
    }
    free(list);
    return err;
}

/* One that reads but does not take its own value back is skipped: it is not the guest's to set. */
static int write_msrs(int vcpu_fd, const struct x86_vcpu_state *state, struct msr_list *list)
{
    uint32_t at = 0;

    while (at < state->n_msrs) {
        int done;

        list->head = (struct kvm_msrs){.nmsrs = state->n_msrs - at};
        memcpy(list->entries, &state->msrs[at], list->head.nmsrs * sizeof(list->entries[0]));
        done = ioctl(vcpu_fd, KVM_SET_MSRS, list);
        if (done < 0)
            return fail("write", "MSRs");
        at += (uint32_t)done + 1;
    }
    return 0;
}

int x86_vcpu_state_read(int kvm_fd, int vcpu_fd, struct x86_vcpu_state *state)
{
    bool xsave = has_xsave(kvm_fd);
    struct msr_list *list;
    int khz, err;

    memset(state, 0, sizeof(*state));
    for (size_t i = 0; i < N_REGISTER_SETS; i++)
        if ((xsave || !register_sets[i].by_xsave) &&
            ioctl(vcpu_fd, register_sets[i].get, (char *)state + register_sets[i].offset) < 0)
            return fail("read", register_sets[i].name);
    khz = ioctl(vcpu_fd, KVM_GET_TSC_KHZ, 0);
    state->tsc_khz = khz > 0 ? (uint32_t)khz : 0;
    list = malloc(sizeof(*list));
    if (!list)
        return -ENOMEM;
    err = list_msrs(kvm_fd, list);
    if (!err)
        err = read_msrs(vcpu_fd, list);
    if (!err) {
        state->n_msrs = list->head.nmsrs;
        memcpy(state->msrs, list->entries, list->head.nmsrs * sizeof(list->entries[0]));
    }
    free(list);
    return err;
}

int x86_vcpu_state_write(int kvm_fd, int vcpu_fd, const struct x86_vcpu_state *state)
{
    bool xsave = has_xsave(kvm_fd);
    struct msr_list *list;
    int err;

    if (state->n_msrs > X86_MAX_MSRS) {
        log_error("vCPU: a state with %u MSRs, and at most %u are expected", state->n_msrs,
                  X86_MAX_MSRS);
        return -EINVAL;
    }
    for (size_t i = 0; i < N_REGISTER_SETS; i++)
        if ((xsave || !register_sets[i].by_xsave) &&
            ioctl(vcpu_fd, register_sets[i].set, (char *)state + register_sets[i].offset) < 0)
            return fail("write", register_sets[i].name);
    list = malloc(sizeof(*list));
    if (!list)
        return -ENOMEM;
    err = write_msrs(vcpu_fd, state, list);
    free(list);
    return err;
}
