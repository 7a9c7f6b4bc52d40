/*
 * cpus: the processors that ACPI lists, started, compared with CPUID, and sending each other
 * interrupts.
 *
 * `cpus=N` is how many there must be; `x2apic` uses the x2APIC throughout. CPUID is taken at CPL 0,
 * where every KVM answers with what the VMM has set; what CPL 3 sees is compared and, where the
 * host runs CPL 3 directly with its own CPUID, reported as skipped.
 * Texts: Intel SDM volume 2A, CPUID 1, 4, 0xB, 0x1F; AMD APM volume 3, E.4 (0x80000008,
 * 0x8000001E); ACPI 6.5, 5.2.12.
 */
#include <stddef.h>

#include "acpi.h"
#include "apic.h"
#include "boot.h"
#include "cpu.h"
#include "io.h"
#include "print.h"
#include "smp.h"
#include "timing.h"
#include "verdict.h"

#define START_LIMIT (10 * SECOND)
#define WORK_LIMIT  (5 * SECOND)
#define PING_VECTOR 0x50
#define PONG_VECTOR 0x51
#define CAST_VECTOR 0x52
#define PING_ROUNDS 50
#define LEVELS      4

#define LEVEL_INVALID 0

/* What one processor finds about itself. */
struct report {
    uint32_t lapic;
    struct cpuid_result leaf0, leaf1, leaf4, extended_max, leaf80000008, leaf8000001e;
    struct cpuid_result leafb[LEVELS];
    struct cpuid_result leaf1f[LEVELS];
    struct cpuid_result native1;
    uint64_t tsc;
};

static uint32_t madt_ids[MAX_CPUS];
static uint32_t madt_count;
static struct report reports[MAX_CPUS];
static uint32_t reported;

static void take_report(void *argument)
{
    struct report *report = argument;

    report->lapic = lapic_id();
    report->leaf0 = cpuid(0, 0);
    report->leaf1 = cpuid(1, 0);
    report->native1 = cpuid_native(1, 0);
    report->extended_max = cpuid(0x80000000, 0);
    if (report->leaf0.eax >= 4)
        report->leaf4 = cpuid(4, 0);
    for (uint32_t level = 0; level < LEVELS; level++) {
        if (report->leaf0.eax >= 0xB)
            report->leafb[level] = cpuid(0xB, level);
        if (report->leaf0.eax >= 0x1F)
            report->leaf1f[level] = cpuid(0x1F, level);
    }
    if (report->extended_max.eax >= 0x80000008)
        report->leaf80000008 = cpuid(0x80000008, 0);
    if (report->extended_max.eax >= 0x8000001E)
        report->leaf8000001e = cpuid(0x8000001E, 0);
    report->tsc = rdtsc();
}

static void start_all(void)
{
    uint32_t self = cpu_this()->apic_id;
    uint32_t missing = 0;

    take_report(&reports[0]);
    reported = 1;
    for (uint32_t i = 0; i < madt_count; i++) {
        if (madt_ids[i] == self)
            continue;
        uint64_t begin = now_ns();
        uint32_t index = smp_start(madt_ids[i], START_LIMIT);
        if (index == 0) {
            not_ok("smp-start", "the processor with APIC id %u does not come up", madt_ids[i]);
            missing++;
            continue;
        }
        print("cpu %u: APIC id %u, up in %lu us\n", index, cpu_at(index)->apic_id,
              (now_ns() - begin) / 1000);
        if (cpu_at(index)->apic_id != madt_ids[i]) {
            not_ok("smp-start", "APIC id %u was started, %u came up", madt_ids[i],
                   cpu_at(index)->apic_id);
            missing++;
        }
        smp_run(index, take_report, &reports[index]);
        if (!smp_wait(index, WORK_LIMIT))
            not_ok("smp-work", "processor %u does not answer", index);
        else
            reported++;
    }
    if (missing == 0)
        ok("smp-start");
}

static bool madt_has(uint32_t apic_id)
{
    for (uint32_t i = 0; i < madt_count; i++) {
        if (madt_ids[i] == apic_id)
            return true;
    }
    return false;
}

static void check_ids(void)
{
    for (uint32_t i = 0; i < reported; i++) {
        const struct report *r = &reports[i];
        if (!madt_has(r->lapic)) {
            not_ok("apic-ids", "processor %u has APIC id %u, which no MADT entry has", i,
                   r->lapic);
            return;
        }
        if (r->leaf1.ebx >> 24 != (r->lapic & 0xFF)) {
            not_ok("apic-ids", "processor %u: CPUID 1 says %u, its APIC %u", i,
                   r->leaf1.ebx >> 24, r->lapic);
            return;
        }
    }
    ok("apic-ids");
}

/* Logical processors by CPUID 1: at least as many as there are, when HTT is set. */
static void check_leaf1(void)
{
    const struct report *r = &reports[0];
    uint32_t logical = r->leaf1.ebx >> 16 & 0xFF;
    bool htt = (r->leaf1.edx >> 28 & 1) != 0;

    if (madt_count == 1)
        check(!htt || logical >= 1, "cpuid-1", "HTT with %u logical processors", logical);
    else
        check(htt && logical >= 2, "cpuid-1", "HTT %d, %u logical processors, %u by the MADT",
              htt, logical, madt_count);
    check((r->leaf1.ecx >> 31 & 1) != 0, "cpuid-hypervisor-bit", "CPUID 1 ECX is %08x",
          r->leaf1.ecx);
    check((r->leaf1.ecx >> 21 & 1) != 0, "cpuid-x2apic", "CPUID 1 ECX is %08x", r->leaf1.ecx);
}

/* Leaves 0xB and 0x1F: levels in order, the id in EDX, a last level that takes all processors. */
static void check_levels(const char *name, uint32_t leaf, const struct cpuid_result *all_levels,
                         size_t stride)
{
    uint32_t widest = 0;

    for (uint32_t i = 0; i < reported; i++) {
        const struct cpuid_result *levels =
            (const void *)((const char *)all_levels + i * stride);
        uint32_t shift = 0;
        for (uint32_t level = 0; level < LEVELS; level++) {
            const struct cpuid_result *l = &levels[level];
            if ((l->ecx >> 8 & 0xFF) == LEVEL_INVALID)
                break;
            if (l->edx != reports[i].lapic || (l->eax & 0x1F) < shift || l->ebx == 0 ||
                (l->ecx & 0xFF) != level) {
                not_ok(name, "processor %u leaf %x level %u: %08x %08x %08x %08x, APIC id %u", i,
                       leaf, level, l->eax, l->ebx, l->ecx, l->edx, reports[i].lapic);
                return;
            }
            shift = l->eax & 0x1F;
        }
        widest = shift > widest ? shift : widest;
    }
    uint32_t package = reports[0].lapic >> widest;
    uint32_t inside = 0;
    for (uint32_t i = 0; i < reported; i++)
        inside += reports[i].lapic >> widest == package;
    const struct cpuid_result *last = all_levels;
    for (uint32_t level = 0; level < LEVELS && (all_levels[level].ecx >> 8 & 0xFF) != 0; level++)
        last = &all_levels[level];
    check((last->ebx & 0xFFFF) == inside, name,
          "leaf %x counts %u processors in the package, %u are in it", leaf, last->ebx & 0xFFFF,
          inside);
}

static void check_topology(void)
{
    const struct report *r = &reports[0];

    if (r->leaf0.eax < 0xB || (r->leafb[0].ecx >> 8 & 0xFF) == LEVEL_INVALID)
        not_ok("cpuid-b", "leaf 0xB is not there (largest leaf %x, level 0 type %u)",
               r->leaf0.eax, r->leafb[0].ecx >> 8 & 0xFF);
    else
        check_levels("cpuid-b", 0xB, r->leafb, sizeof(*r));
    if (r->leaf0.eax < 0x1F || (r->leaf1f[0].ecx >> 8 & 0xFF) == LEVEL_INVALID)
        print("note: leaf 0x1F is not offered (largest leaf %x)\n", r->leaf0.eax);
    else
        check_levels("cpuid-1f", 0x1F, r->leaf1f, sizeof(*r));
}

static bool is_amd(void)
{
    return reports[0].leaf0.ecx == 0x444D4163; /* "cAMD" */
}

static void check_vendor_leaves(void)
{
    const struct report *r = &reports[0];

    if (!is_amd()) {
        uint32_t cores = (r->leaf4.eax >> 26) + 1;
        uint32_t type = r->leaf4.eax & 0x1F;
        if (r->leaf0.eax < 4 || type == 0)
            not_ok("cpuid-4", "leaf 4 is not there");
        else
            check(cores >= madt_count, "cpuid-4", "%u cores, %u processors by the MADT", cores,
                  madt_count);
        return;
    }
    if (r->extended_max.eax < 0x8000001E) {
        print("note: leaf 0x8000001E is not offered (largest %x)\n", r->extended_max.eax);
        return;
    }
    for (uint32_t i = 0; i < reported; i++) {
        if (reports[i].leaf8000001e.eax != reports[i].lapic) {
            not_ok("cpuid-8000001e", "processor %u: APIC id %u in it, %u in the APIC", i,
                   reports[i].leaf8000001e.eax, reports[i].lapic);
            return;
        }
    }
    ok("cpuid-8000001e");
    uint32_t threads = (r->leaf80000008.ecx & 0xFF) + 1;
    check(threads >= madt_count, "cpuid-80000008", "%u threads, %u by the MADT", threads,
          madt_count);
}

/* Where KVM emulates kernel code, CPUID at CPL 3 is the host's own: nothing of Ferry's is seen. */
static void check_native(void)
{
    if (cpu_kernel_emulated())
        return;
    for (uint32_t i = 0; i < reported; i++) {
        uint32_t native = reports[i].native1.ebx >> 24;
        if (native == (reports[i].lapic & 0xFF))
            continue;
        not_ok("cpuid-cpl3", "processor %u: APIC id %u, its APIC %u", i, native, reports[i].lapic);
        return;
    }
    ok("cpuid-cpl3");
}

/* At CPL 0 on the processor that was pinged. */
static void answer_ping(uint32_t vector)
{
    (void)vector;
    lapic_send(cpu_at(0)->apic_id, ICR_ASSERT | PONG_VECTOR);
}

static bool ping(uint32_t index)
{
    uint32_t before = irq_count(PONG_VECTOR);
    struct deadline deadline = deadline_in(WORK_LIMIT);

    lapic_send(cpu_at(index)->apic_id, ICR_ASSERT | PING_VECTOR);
    while (irq_count(PONG_VECTOR) == before) {
        if (deadline_over(&deadline))
            return false;
        cpu_pause();
    }
    return true;
}

static void check_ipi(void)
{
    irq_set_handler(PING_VECTOR, answer_ping);
    for (uint32_t index = 1; index < smp_count(); index++) {
        uint64_t begin = now_ns();
        for (uint32_t i = 0; i < PING_ROUNDS; i++) {
            if (!ping(index)) {
                not_ok("ipi", "processor %u does not answer ping %u", index, i);
                return;
            }
        }
        if (index == 1)
            cost("ipi-round-trip", (now_ns() - begin) / PING_ROUNDS);
    }
    ok("ipi");
    struct deadline deadline = deadline_in(WORK_LIMIT);
    lapic_send(0, ICR_ALL_BUT_SELF | ICR_ASSERT | CAST_VECTOR);
    while (irq_count(CAST_VECTOR) < smp_count() - 1 && !deadline_over(&deadline))
        cpu_pause();
    check(irq_count(CAST_VECTOR) == smp_count() - 1, "ipi-broadcast", "%u of %u took it",
          irq_count(CAST_VECTOR), smp_count() - 1);
}

static void read_tsc(void *argument)
{
    *(volatile uint64_t *)argument = rdtsc();
}

/* A processor's TSC, read between two reads of the first's, lies between them. */
static void check_tsc(void)
{
    for (uint32_t index = 1; index < smp_count(); index++) {
        uint64_t there = 0;
        uint64_t before = rdtsc();
        smp_run(index, read_tsc, &there);
        if (!smp_wait(index, WORK_LIMIT)) {
            not_ok("tsc-order", "processor %u does not answer", index);
            return;
        }
        uint64_t after = rdtsc();
        if (there < before || there > after) {
            not_ok("tsc-order", "processor %u read %lu between %lu and %lu", index, there, before,
                   after);
            return;
        }
    }
    ok("tsc-order");
}

int main(const struct boot_info *info)
{
    uint64_t wanted = arg_number("cpus", 0);

    (void)info;
    madt_count = acpi_processors(madt_ids, MAX_CPUS);
    if (madt_count == 0) {
        not_ok("madt", "no processors listed");
        return 0;
    }
    if (wanted != 0)
        check(madt_count == wanted, "madt", "%u processors listed, want %lu", madt_count, wanted);
    check(madt_has(cpu_this()->apic_id), "madt-boot", "the first processor's id %u is not listed",
          cpu_this()->apic_id);
    if (arg_present("x2apic"))
        check(lapic_is_x2apic(), "x2apic", "CPUID does not offer it");
    irq_enable();
    start_all();
    check_ids();
    check_leaf1();
    check_topology();
    check_vendor_leaves();
    check_native();
    if (smp_count() > 1) {
        check_ipi();
        check_tsc();
    }
    return 0;
}
