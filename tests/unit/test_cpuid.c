/* What CPUID says of the topology, against tables made here: no KVM is asked. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "vmm/x86/x86.h"

static struct x86_cpuid cpuid;

static void add(uint32_t function, uint32_t index, uint32_t eax, uint32_t ebx, uint32_t ecx,
                uint32_t edx, uint32_t flags)
{
    cpuid.entries[cpuid.head.nent++] = (struct kvm_cpuid_entry2){
        .function = function, .index = index, .flags = flags,
        .eax = eax, .ebx = ebx, .ecx = ecx, .edx = edx};
}

static const struct kvm_cpuid_entry2 *get(uint32_t function, uint32_t index)
{
    const struct kvm_cpuid_entry2 *found = NULL;

    for (uint32_t i = 0; i < cpuid.head.nent; i++)
        if (cpuid.entries[i].function == function && cpuid.entries[i].index == index) {
            cr_assert_null(found, "leaf %#x.%u stands twice", function, index);
            found = &cpuid.entries[i];
        }
    cr_assert_not_null(found, "leaf %#x.%u is missing", function, index);
    return found;
}

/* "AuthenticAMD" and "GenuineIntel" as leaf 0 gives them. */
static void begin(bool amd)
{
    const uint32_t indexed = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

    memset(&cpuid, 0, sizeof(cpuid));
    if (amd)
        add(0, 0, 0x10, 0x68747541, 0x444D4163, 0x69746E65, 0);
    else
        add(0, 0, 0x1F, 0x756E6547, 0x6C65746E, 0x49656E69, 0);
    add(1, 0, 0x00A00F11, 0x07200800, 0x01000000, 0x178BFBFF, 0);
    if (!amd) {
        add(4, 0, 0xFC01C121, 0, 0, 0, indexed); /* level 1 data */
        add(4, 3, 0xFC07C163, 0, 0, 0, indexed); /* level 3 */
        add(4, 4, 0, 0, 0, 0, indexed);
    }
    add(0xB, 0, 1, 2, 0x100, 9, indexed);
    add(0xB, 1, 5, 32, 0x201, 9, indexed);
    add(0x40000000, 0, 0x40000001, 0x4B4D564B, 0x564B4D56, 0x4D, 0);
    if (amd) {
        add(0x80000008, 0, 0x3030, 0x10000005, 0x7001, 0, 0);
        add(0x8000001D, 0, 0x00004121, 0, 0, 0, indexed);
        add(0x8000001D, 3, 0x0003C163, 0, 0, 0, indexed);
        add(0x8000001E, 0, 9, 0x109, 1, 0, 0);
    }
}

static void set(unsigned index, unsigned count)
{
    const struct x86_topology t = {
        .index = index, .count = count, .tsc_khz = 2400000, .tsc_deadline = true};

    cr_assert_eq(x86_cpuid_set_topology(&cpuid, &t), 0);
}

Test(cpuid, gives_each_vcpu_its_apic_id_and_the_hypervisor_bit)
{
    begin(true);
    set(3, 4);
    cr_expect_eq(get(1, 0)->ebx >> 24, 3);
    cr_expect_eq(get(1, 0)->ebx >> 16 & 0xFF, 4);
    cr_expect_eq(get(1, 0)->ebx & 0xFFFF, 0x0800, "CLFLUSH size and brand stay");
    cr_expect(get(1, 0)->ecx & 1u << 31);
    cr_expect(get(1, 0)->ecx & 1u << 24);
    cr_expect(get(1, 0)->ecx & 1u << 21);
    cr_expect_eq(get(0xB, 0)->edx, 3);
    cr_expect_eq(get(0xB, 2)->edx, 3);
    cr_expect_eq(get(0x8000001E, 0)->eax, 3);
}

Test(cpuid, clears_the_multithreading_bit_of_a_single_vcpu)
{
    begin(true);
    set(0, 1);
    cr_expect_eq(get(1, 0)->edx & 1u << 28, 0);
    cr_expect_eq(get(0xB, 1)->ebx, 1);
    cr_expect_eq(get(0xB, 1)->eax, 0);
    cr_expect_eq(get(0x80000008, 0)->ecx & 0xFF, 0);
}

Test(cpuid, describes_one_package_of_cores_with_a_thread_each)
{
    begin(true);
    set(5, 6);
    cr_expect_eq(get(0xB, 0)->ebx, 1);
    cr_expect_eq(get(0xB, 0)->ecx, 0x100);
    cr_expect_eq(get(0xB, 1)->ebx, 6);
    cr_expect_eq(get(0xB, 1)->eax, 3, "six ids need three bits");
    cr_expect_eq(get(0xB, 1)->ecx, 0x201);
    cr_expect_eq(get(0xB, 2)->ecx, 2, "the level after the last is invalid");
    cr_expect_eq(get(0x80000008, 0)->ecx & 0xF0FF, 0x3005);
    cr_expect_eq(get(0x8000001E, 0)->ebx, 5);
    cr_expect_eq(get(0x8000001E, 0)->ecx, 0);
}

/* Of 0x40000001: kick, flush, send and yield are bits 7, 9, 11 and 13. */
Test(cpuid, hides_hypercalls_in_place_of_interrupts_where_kernel_code_is_emulated)
{
    const struct x86_topology t = {.count = 2, .emulated = true};

    begin(true);
    add(0x40000001, 0, 0x01007EFB, 0, 0, 0, 0);
    cr_expect(x86_cpuid_flushes(&cpuid));
    cr_assert_eq(x86_cpuid_set_topology(&cpuid, &t), 0);
    cr_expect_eq(get(0x40000001, 0)->eax, 0x0100547B);
    cr_expect_not(x86_cpuid_flushes(&cpuid));
}

Test(cpuid, leaves_hypercalls_elsewhere)
{
    begin(true);
    add(0x40000001, 0, 0x01007EFB, 0, 0, 0, 0);
    set(0, 2);
    cr_expect_eq(get(0x40000001, 0)->eax, 0x01007EFB);
}

Test(cpuid, shares_only_the_last_cache_level)
{
    begin(true);
    set(0, 4);
    cr_expect_eq(get(0x8000001D, 0)->eax >> 14 & 0xFFF, 0);
    cr_expect_eq(get(0x8000001D, 3)->eax >> 14 & 0xFFF, 3);
    begin(false);
    set(0, 4);
    cr_expect_eq(get(4, 0)->eax, 0x0C000121, "3 other core ids, shared by one");
    cr_expect_eq(get(4, 3)->eax, 0x0C00C163);
    cr_expect_eq(get(4, 4)->eax, 0, "the end of the list stays the end");
}

Test(cpuid, adds_leaf_1f_where_the_processor_has_it)
{
    begin(false);
    set(1, 2);
    cr_expect_eq(get(0x1F, 1)->ebx, 2);
    cr_expect_eq(get(0x1F, 1)->edx, 1);
}

Test(cpuid, tells_the_tsc_frequency_in_the_timing_leaf)
{
    begin(true);
    set(0, 1);
    cr_expect_eq(get(0x40000000, 0)->eax, 0x40000010);
    cr_expect_eq(get(0x40000010, 0)->eax, 2400000);
}

Test(cpuid, says_so_when_there_is_no_room_for_its_leaves)
{
    const struct x86_topology t = {.count = 1, .tsc_khz = 1};

    begin(true);
    while (cpuid.head.nent < sizeof(cpuid.entries) / sizeof(cpuid.entries[0]))
        add(0x80000100 + cpuid.head.nent, 0, 0, 0, 0, 0, 0);
    cr_assert_eq(x86_cpuid_set_topology(&cpuid, &t), -E2BIG);
}

Test(cpuid, names_every_word_of_features_that_is_missing)
{
    static struct x86_cpuid here;
    char missing[X86_CPUID_MISSING_MAX];

    add(1, 0, 0, 0, 1u << 23, 1u << 25, 0);
    add(7, 0, 0, 1u << 5, 0, 0, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
    here = cpuid;
    cr_assert_eq(x86_cpuid_compare(&cpuid, &here, missing, sizeof(missing)), 0);
    cr_expect_str_eq(missing, "");
    here.entries[0].ecx = 1u << 31; /* the hypervisor bit is the VMM's own */
    here.entries[1].ebx = 0;
    cr_assert_eq(x86_cpuid_compare(&cpuid, &here, missing, sizeof(missing)), 0);
    cr_expect_str_eq(missing, "1.ECX bits 0x800000, 7.EBX bits 0x20");
    cpuid.head.nent = 1000;
    cr_expect_eq(x86_cpuid_compare(&cpuid, &here, missing, sizeof(missing)), -EINVAL);
}
