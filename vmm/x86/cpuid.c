/*
 * The CPUID that a guest sees: what KVM supports, and the topology of this VM.
 *
 * Does not invent features: a bit that KVM does not report is not set, except those that KVM leaves
 * to the VMM (hypervisor present, x2APIC, TSC deadline). No state; any thread.
 * Texts: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E; the kernel's
 * Documentation/virt/kvm/x86/cpuid.rst and api.rst §4.46 KVM_GET_SUPPORTED_CPUID.
 */
#include <asm/kvm_para.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vmm/util/log.h"
#include "vmm/x86/x86.h"

#define LEAF_KVM 0x40000000u
#define LEAF_KVM_FEATURES 0x40000001u
#define LEAF_KVM_TIMING 0x40000010u /* EAX: TSC kHz, EBX: APIC timer kHz; as VMware defined it */
#define APIC_BUS_KHZ 1000000u       /* KVM's APIC timer counts nanoseconds */

#define ECX1_X2APIC (1u << 21)
#define ECX1_TSC_DEADLINE (1u << 24)
#define ECX1_HYPERVISOR (1u << 31)
#define ECX1_OSXSAVE (1u << 27) /* as the guest's CR4 has it */
#define ECX7_OSPKE (1u << 4)    /* likewise */
#define EDX1_HTT (1u << 28)

#define HIDDEN                                                                                     \
    (1u << KVM_FEATURE_PV_UNHALT | 1u << KVM_FEATURE_PV_TLB_FLUSH |                                \
     1u << KVM_FEATURE_PV_SEND_IPI | 1u << KVM_FEATURE_PV_SCHED_YIELD)

/* Leaf 0xB and 0x1F, ECX bits 15:8. */
#define LEVEL_SMT 1u
#define LEVEL_CORE 2u

int x86_cpuid_supported(int kvm_fd, struct x86_cpuid *cpuid)
{
    memset(cpuid, 0, sizeof(*cpuid));
    cpuid->head.nent = sizeof(cpuid->entries) / sizeof(cpuid->entries[0]);
    if (ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, &cpuid->head) < 0) {
        int err = -errno;
        log_error("CPUID: KVM_GET_SUPPORTED_CPUID: %s", strerror(-err));
        return err;
    }
    return 0;
}

static struct kvm_cpuid_entry2 *find(struct x86_cpuid *cpuid, uint32_t function, uint32_t index)
{
    for (uint32_t i = 0; i < cpuid->head.nent; i++) {
        struct kvm_cpuid_entry2 *e = &cpuid->entries[i];

        if (e->function == function &&
            (e->index == index || !(e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX)))
            return e;
    }
    return NULL;
}

static struct kvm_cpuid_entry2 *find_or_add(struct x86_cpuid *cpuid, uint32_t function,
                                            uint32_t index, uint32_t flags)
{
    struct kvm_cpuid_entry2 *e = find(cpuid, function, index);

    if (e)
        return e;
    if (cpuid->head.nent >= sizeof(cpuid->entries) / sizeof(cpuid->entries[0]))
        return NULL;
    e = &cpuid->entries[cpuid->head.nent++];
    *e = (struct kvm_cpuid_entry2){.function = function, .index = index, .flags = flags};
    return e;
}

static void remove_leaf(struct x86_cpuid *cpuid, uint32_t function)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < cpuid->head.nent; i++)
        if (cpuid->entries[i].function != function)
            cpuid->entries[kept++] = cpuid->entries[i];
    cpuid->head.nent = kept;
}

/* Bits that an id below `count` needs. */
static unsigned id_bits(unsigned count)
{
    unsigned bits = 0;

    while ((1u << bits) < count)
        bits++;
    return bits;
}

static void set_leaf_1(struct x86_cpuid *cpuid, const struct x86_topology *t)
{
    struct kvm_cpuid_entry2 *e = find(cpuid, 1, 0);
    unsigned logical = 1u << id_bits(t->count);

    if (!e)
        return;
    if (logical > 255)
        logical = 255; /* eight bits; leaf 0xB tells the truth */
    /* EBX: initial APIC id in 31:24, ids reserved for logical processors in 23:16. */
    e->ebx = (e->ebx & 0x0000FFFFu) | (t->index & 0xFF) << 24 | logical << 16;
    e->ecx |= ECX1_HYPERVISOR | ECX1_X2APIC;
    if (t->tsc_deadline)
        e->ecx |= ECX1_TSC_DEADLINE;
    e->edx &= ~EDX1_HTT;
    if (t->count > 1)
        e->edx |= EDX1_HTT;
}

/* Caches: levels 1 and 2 belong to a core, level 3 to the package. Intel's leaf 4 and AMD's
 * 0x8000001D share the layout of EAX: type 4:0, level 7:5, sharing threads - 1 in 25:14. */
static void set_caches(struct x86_cpuid *cpuid, const struct x86_topology *t)
{
    unsigned cores = t->count > 64 ? 63 : (1u << id_bits(t->count)) - 1;
    unsigned sharing = (1u << id_bits(t->count)) - 1;

    for (uint32_t i = 0; i < cpuid->head.nent; i++) {
        struct kvm_cpuid_entry2 *e = &cpuid->entries[i];
        unsigned level = e->eax >> 5 & 7;

        if ((e->function != 4 && e->function != 0x8000001Du) || (e->eax & 0x1F) == 0)
            continue;
        e->eax &= ~(0xFFFu << 14);
        if (level >= 3)
            e->eax |= (sharing & 0xFFF) << 14;
        if (e->function == 4) /* addressable core ids in the package - 1 in 31:26 */
            e->eax = (e->eax & ~(0x3Fu << 26)) | (cores & 0x3F) << 26;
    }
}

/* Leaves 0xB and 0x1F (extended topology): a level of one thread, then one of all cores. */
static int set_extended_topology(struct x86_cpuid *cpuid, const struct x86_topology *t,
                                 uint32_t leaf)
{
    const uint32_t flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

    remove_leaf(cpuid, leaf);
    for (uint32_t level = 0; level < 3; level++) {
        struct kvm_cpuid_entry2 *e = find_or_add(cpuid, leaf, level, flags);

        if (!e)
            return -E2BIG;
        e->edx = t->index;
        e->ecx = level;
        if (level == 0) {
            e->ebx = 1;
            e->ecx |= LEVEL_SMT << 8;
        } else if (level == 1) {
            e->eax = id_bits(t->count);
            e->ebx = t->count;
            e->ecx |= LEVEL_CORE << 8;
        }
    }
    return 0;
}

/* AMD: core count and the width of the id (0x80000008 ECX), node and core ids (0x8000001E). */
static void set_amd_topology(struct x86_cpuid *cpuid, const struct x86_topology *t)
{
    struct kvm_cpuid_entry2 *size = find(cpuid, 0x80000008u, 0);
    struct kvm_cpuid_entry2 *ids = find(cpuid, 0x8000001Eu, 0);
    struct kvm_cpuid_entry2 *vendor = find(cpuid, 0, 0);
    bool is_amd = vendor && (vendor->ecx == 0x444D4163u || vendor->ecx == 0x656E6975u);

    if (!is_amd)
        return;
    if (size)
        size->ecx = (size->ecx & ~0xF0FFu) | id_bits(t->count) << 12 |
                    ((t->count > 256 ? 256 : t->count) - 1);
    if (ids) {
        ids->eax = t->index;
        ids->ebx = t->index & 0xFF; /* a thread a core: 15:8 is 0 */
        ids->ecx = 0;
    }
}

static int set_timing(struct x86_cpuid *cpuid, const struct x86_topology *t)
{
    struct kvm_cpuid_entry2 *base = find(cpuid, LEAF_KVM, 0);
    struct kvm_cpuid_entry2 *timing;

    if (!base || t->tsc_khz == 0)
        return 0;
    timing = find_or_add(cpuid, LEAF_KVM_TIMING, 0, 0);
    if (!timing)
        return -E2BIG;
    timing->eax = t->tsc_khz;
    timing->ebx = APIC_BUS_KHZ;
    base = find(cpuid, LEAF_KVM, 0);
    if (base->eax < LEAF_KVM_TIMING)
        base->eax = LEAF_KVM_TIMING;
    return 0;
}

/*
 * Hypercalls that take the place of an interrupt. KVM may patch VMCALL and have it carried out anew for
 * ever, where it emulates it. And a vCPU that is not within KVM is preempted to the guest, which then
 * leaves it to KVM to drop its translations; one that is being interpreted would go on with them.
 */
static void leave_interrupts_to_the_apic(struct x86_cpuid *cpuid)
{
    struct kvm_cpuid_entry2 *e = find(cpuid, LEAF_KVM_FEATURES, 0);

    if (e)
        e->eax &= ~HIDDEN;
}

int x86_cpuid_add_hidden(int kvm_fd, struct x86_cpuid *here)
{
    struct x86_cpuid *all = malloc(sizeof(*all));
    struct kvm_cpuid_entry2 *e = find(here, LEAF_KVM_FEATURES, 0), *whole;
    int err = all ? x86_cpuid_supported(kvm_fd, all) : -ENOMEM;

    whole = err ? NULL : find(all, LEAF_KVM_FEATURES, 0);
    if (e && whole)
        e->eax |= whole->eax & HIDDEN;
    free(all);
    return err;
}

bool x86_cpuid_flushes(struct x86_cpuid *saved)
{
    struct kvm_cpuid_entry2 *e = find(saved, LEAF_KVM_FEATURES, 0);

    return e && e->eax & 1u << KVM_FEATURE_PV_TLB_FLUSH;
}

int x86_cpuid_set_topology(struct x86_cpuid *cpuid, const struct x86_topology *topology)
{
    struct kvm_cpuid_entry2 *basic = find(cpuid, 0, 0);
    int err = 0;

    set_leaf_1(cpuid, topology);
    set_caches(cpuid, topology);
    set_amd_topology(cpuid, topology);
    if (topology->emulated)
        leave_interrupts_to_the_apic(cpuid);
    if (basic && basic->eax >= 0xB)
        err = set_extended_topology(cpuid, topology, 0xB);
    if (!err && basic && basic->eax >= 0x1F)
        err = set_extended_topology(cpuid, topology, 0x1F);
    if (!err)
        err = set_timing(cpuid, topology);
    if (err)
        log_error("CPUID: KVM reports too many leaves (%u)", cpuid->head.nent);
    return err;
}

/* ---- saving ---- */

static const struct state_field entry_fields[] = {
    STATE_FIELD(STATE_U32, struct kvm_cpuid_entry2, function),
    STATE_FIELD(STATE_U32, struct kvm_cpuid_entry2, index),
    STATE_FIELD(STATE_U32, struct kvm_cpuid_entry2, flags),
    STATE_FIELD(STATE_U32, struct kvm_cpuid_entry2, eax),
    STATE_FIELD(STATE_U32, struct kvm_cpuid_entry2, ebx),
    STATE_FIELD(STATE_U32, struct kvm_cpuid_entry2, ecx),
    STATE_FIELD(STATE_U32, struct kvm_cpuid_entry2, edx),
};
static const struct state_desc entry_desc =
    STATE_DESC("cpuid-entry", 1, struct kvm_cpuid_entry2, entry_fields);

static const struct state_field cpuid_fields[] = {
    STATE_FIELD(STATE_U32, struct x86_cpuid, head.nent),
    STATE_SUB_ARRAY(struct x86_cpuid, entries, &entry_desc),
};
const struct state_desc x86_cpuid_desc = STATE_DESC("x86-cpuid", 1, struct x86_cpuid, cpuid_fields);

/* The words that are sets of features; `own` are those that are the VMM's to set. */
static const struct feature_word {
    uint32_t function, index;
    size_t reg; /* in struct kvm_cpuid_entry2 */
    const char *name;
    uint32_t own;
} feature_words[] = {
    {1, 0, offsetof(struct kvm_cpuid_entry2, ecx), "1.ECX",
     ECX1_X2APIC | ECX1_TSC_DEADLINE | ECX1_HYPERVISOR | ECX1_OSXSAVE},
    {1, 0, offsetof(struct kvm_cpuid_entry2, edx), "1.EDX", EDX1_HTT},
    {7, 0, offsetof(struct kvm_cpuid_entry2, ebx), "7.EBX", 0},
    {7, 0, offsetof(struct kvm_cpuid_entry2, ecx), "7.ECX", ECX7_OSPKE},
    {7, 0, offsetof(struct kvm_cpuid_entry2, edx), "7.EDX", 0},
    {7, 1, offsetof(struct kvm_cpuid_entry2, eax), "7.1.EAX", 0},
    {0xD, 0, offsetof(struct kvm_cpuid_entry2, eax), "0xD.EAX", 0},
    {0xD, 1, offsetof(struct kvm_cpuid_entry2, eax), "0xD.1.EAX", 0},
    {0x40000001, 0, offsetof(struct kvm_cpuid_entry2, eax), "0x40000001.EAX", 0},
    {0x80000001, 0, offsetof(struct kvm_cpuid_entry2, ecx), "0x80000001.ECX", 0},
    {0x80000001, 0, offsetof(struct kvm_cpuid_entry2, edx), "0x80000001.EDX", 0},
    {0x80000008, 0, offsetof(struct kvm_cpuid_entry2, ebx), "0x80000008.EBX", 0},
};

static uint32_t word_of(const struct x86_cpuid *cpuid, const struct feature_word *word)
{
    uint32_t value;

    for (uint32_t i = 0; i < cpuid->head.nent; i++) {
        const struct kvm_cpuid_entry2 *e = &cpuid->entries[i];

        if (e->function != word->function || e->index != word->index)
            continue;
        memcpy(&value, (const char *)e + word->reg, sizeof(value));
        return value;
    }
    return 0;
}

int x86_cpuid_compare(const struct x86_cpuid *saved, const struct x86_cpuid *here, char *missing,
                      size_t size)
{
    size_t at = 0;

    *missing = '\0';
    if (saved->head.nent > sizeof(saved->entries) / sizeof(saved->entries[0])) {
        log_error("CPUID: a table of %u leaves, and at most %zu are expected", saved->head.nent,
                  sizeof(saved->entries) / sizeof(saved->entries[0]));
        return -EINVAL;
    }
    for (size_t i = 0; i < sizeof(feature_words) / sizeof(feature_words[0]); i++) {
        const struct feature_word *word = &feature_words[i];
        uint32_t bits = word_of(saved, word) & ~word_of(here, word) & ~word->own;

        if (bits && at < size)
            at += (size_t)snprintf(missing + at, size - at, "%s%s bits %#x", at ? ", " : "",
                                   word->name, bits);
    }
    return 0;
}

int x86_cpuid_check(const struct x86_cpuid *saved, const struct x86_cpuid *here)
{
    char missing[X86_CPUID_MISSING_MAX];
    int err = x86_cpuid_compare(saved, here, missing, sizeof(missing));

    if (err || !*missing)
        return err;
    log_error("CPUID: the guest uses a processor with features that this host lacks: %s", missing);
    return -EINVAL;
}
