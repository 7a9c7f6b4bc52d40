/*
 * vCPU threads on the host's own KVM: exits reach the busses, parking leaves whole instructions,
 * reset begins anew. Skipped, with the reason, where there is no /dev/kvm.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "vmm/arch.h"
#include "vmm/bus.h"
#include "vmm/memory.h"
#include "vmm/util/state.h"
#include "vmm/vcpu.h"
#include "vmm/vm.h"
#include "vmm/x86/x86.h"

#define ENTRY 0x1000
#define PORT 0x3F8
#define PORTS 8

static struct guest_memory *mem;
static struct vm *vm;
static struct bus *pio, *mmio;
static struct vcpus *vcpus;
static pthread_mutex_t device_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static unsigned writes;
static uint64_t last_value, last_offset;
static unsigned last_size;
static int failures;
static enum vcpu_failure last_failure;

static uint64_t on_read(void *opaque, uint64_t offset, unsigned size)
{
    (void)opaque;
    return 0xA0 + offset + size;
}

static void on_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    (void)opaque;
    pthread_mutex_lock(&mutex);
    writes++;
    last_value = value;
    last_offset = offset;
    last_size = size;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

static const struct bus_ops ops = {on_read, on_write};
static const struct bus_region ports = {"test ports", PORT, PORTS, &ops, NULL};
static const struct bus_region window = {"test window", 0xC0000000, 4096, &ops, NULL};

static void on_failure(void *opaque, enum vcpu_failure failure, const char *detail)
{
    (void)opaque;
    (void)detail;
    pthread_mutex_lock(&mutex);
    failures++;
    last_failure = failure;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

static void wait_writes(unsigned n)
{
    pthread_mutex_lock(&mutex);
    while (writes < n)
        pthread_cond_wait(&changed, &mutex);
    pthread_mutex_unlock(&mutex);
}

static void wait_failure(int n)
{
    pthread_mutex_lock(&mutex);
    while (failures < n)
        pthread_cond_wait(&changed, &mutex);
    pthread_mutex_unlock(&mutex);
}

static void start(const void *code, size_t n)
{
    const struct memory_config memory = {.size = 2 * MIB};
    const struct x86_entry entry = {.mode = X86_PROTECTED32, .rip = ENTRY, .cs = 16, .ds = 24};
    struct vcpus_config config = {.count = 1, .lock = &device_mutex, .failed = on_failure};

    if (access("/dev/kvm", R_OK | W_OK) != 0)
        cr_skip("no /dev/kvm on this host: %s", strerror(errno));
    cr_assert_eq(memory_create(&mem, &memory), 0);
    cr_assert_eq(vm_create(&vm, mem, false), 0);
    cr_assert_eq(bus_create(&pio, "pio"), 0);
    cr_assert_eq(bus_create(&mmio, "mmio"), 0);
    cr_assert_eq(bus_add(pio, &ports), 0);
    cr_assert_eq(bus_add(mmio, &window), 0);
    config.vm = vm;
    config.pio = pio;
    config.mmio = mmio;
    cr_assert_eq(vcpus_create(&vcpus, &config), 0);
    cr_assert_eq(memory_write(mem, ENTRY, code, n), 0);
    cr_assert_eq(x86_vcpu_enter_at(vcpu_fd(vcpus_get(vcpus, 0)), &entry), 0);
}

static void stop(void)
{
    vcpus_destroy(vcpus);
    vm_destroy(vm);
    bus_destroy(pio);
    bus_destroy(mmio);
    memory_destroy(mem);
}

static struct kvm_regs registers(void)
{
    struct kvm_regs regs;

    cr_assert_eq(ioctl(vcpu_fd(vcpus_get(vcpus, 0)), KVM_GET_REGS, &regs), 0);
    return regs;
}

/* mov dx, 0x3fa; mov al, 0x55; out dx, al; ud2 (with no IDT: a triple fault) */
static const unsigned char out_code[] = {0x66, 0xBA, 0xFA, 0x03, 0xB0, 0x55, 0xEE, 0x0F, 0x0B};

Test(vcpu, carries_port_writes_to_the_bus_and_reports_a_triple_fault, .timeout = 30)
{
    start(out_code, sizeof(out_code));
    vcpus_resume(vcpus);
    wait_failure(1);
    cr_expect_eq(writes, 1);
    cr_expect_eq(last_offset, 2);
    cr_expect_eq(last_size, 1);
    cr_expect_eq(last_value, 0x55);
    cr_expect_eq(last_failure, VCPU_TRIPLE_FAULT);
    stop();
}

/* mov eax, [0xc0000004]; mov [0xc0000010], ax; jmp . */
static const unsigned char mmio_code[] = {0xA1, 0x04, 0x00, 0x00, 0xC0, 0x66, 0xA3,
                                          0x10, 0x00, 0x00, 0xC0, 0xEB, 0xFE};

Test(vcpu, carries_mmio_both_ways, .timeout = 30)
{
    start(mmio_code, sizeof(mmio_code));
    vcpus_resume(vcpus);
    wait_writes(1);
    vcpus_park(vcpus);
    cr_expect_eq(last_value, 0xA0 + 4 + 4);
    cr_expect_eq(last_size, 2);
    cr_expect_eq(last_offset, 0x10);
    cr_expect_eq(registers().rip, ENTRY + 11, "the write is complete when the vCPU is parked");
    stop();
}

/* l: in al, dx; inc ebx; mov edx, 0x3f8; out dx, al; jmp l */
static const unsigned char loop_code[] = {0xBA, 0xF8, 0x03, 0x00, 0x00, 0xEC,
                                          0x43, 0xEE, 0xEB, 0xF6};

Test(vcpu, parks_between_instructions_and_goes_on_from_there, .timeout = 60)
{
    unsigned before = 0;

    start(loop_code, sizeof(loop_code));
    for (int i = 0; i < 50; i++) {
        vcpus_resume(vcpus);
        wait_writes(before + 3);
        vcpus_park(vcpus);
        before = writes;
        /* The OUT after the INC may be still to come, but no exit is half done. */
        cr_assert(registers().rbx == writes || registers().rbx == writes + 1, "%llu, %u",
                  registers().rbx, writes);
        cr_assert(registers().rip >= ENTRY && registers().rip < ENTRY + sizeof(loop_code));
    }
    stop();
}

Test(vcpu, parks_one_that_makes_no_exits, .timeout = 30)
{
    static const unsigned char spin[] = {0xEB, 0xFE};

    start(spin, sizeof(spin));
    for (int i = 0; i < 50; i++) {
        vcpus_resume(vcpus);
        vcpus_park(vcpus);
        cr_assert_eq(registers().rip, ENTRY);
    }
    stop();
}

Test(vcpu, runs_again_from_power_on_after_a_reset, .timeout = 30)
{
    const struct x86_entry entry = {.mode = X86_PROTECTED32, .rip = ENTRY, .cs = 16, .ds = 24};

    start(out_code, sizeof(out_code));
    for (int i = 1; i <= 3; i++) {
        vcpus_resume(vcpus);
        wait_failure(i);
        vcpus_park(vcpus);
        cr_assert_eq(writes, i);
        cr_assert_eq(vm_reset(vm), 0);
        cr_assert_eq(vcpus_reset(vcpus), 0);
        cr_assert_eq(registers().rip, 0xFFF0, "as Intel's SDM volume 3A §9.1.4 has it");
        cr_assert_eq(x86_vcpu_enter_at(vcpu_fd(vcpus_get(vcpus, 0)), &entry), 0);
    }
    stop();
}

Test(vcpu, refuses_more_than_kvm_allows, .timeout = 30)
{
    struct vcpus_config config = {.lock = &device_mutex, .failed = on_failure};
    struct vcpus *none = NULL;

    start(out_code, sizeof(out_code));
    config.vm = vm;
    config.count = vm_max_vcpus(vm) + 1;
    cr_expect_eq(vcpus_create(&none, &config), -EINVAL);
    config.count = 0;
    cr_expect_eq(vcpus_create(&none, &config), -EINVAL);
    stop();
}

/* ---- before a migration ---- */

/* What this host is said to lack of what `there` describes. */
static const char *lacks(const struct state_buffer *there, const struct state_buffer *here)
{
    static char missing[1024];
    struct state_reader from = {.data = there->data, .length = there->length};
    struct state_reader to = {.data = here->data, .length = here->length};

    missing[0] = '\0';
    cr_assert_eq(arch_processor_compare(vm_kvm_fd(vm), &from, &to, missing, sizeof(missing)), 0);
    return missing;
}

/* The record of the TSC: its name, a version, a length, the frequency (vmm/util/state.h). */
static uint8_t *tsc_of(struct state_buffer *processor)
{
    static const char name[] = "x86-processor";
    uint8_t *record = memmem(processor->data, processor->length, name, strlen(name));

    cr_assert_not_null(record);
    return record + strlen(name) + 2 + 4;
}

Test(vcpu, finds_that_a_host_lacks_nothing_of_its_own_processor, .timeout = 30)
{
    struct state_buffer own = {0};

    start(out_code, sizeof(out_code));
    cr_assert_eq(vcpu_describe(vcpus_get(vcpus, 0), &own), 0);
    cr_expect_str_eq(lacks(&own, &own), "");
    state_buffer_fini(&own);
    stop();
}

Test(vcpu, lacks_a_slower_tsc_where_kvm_cannot_scale_it, .timeout = 30)
{
    struct state_buffer own = {0}, guest = {0};
    uint32_t khz;

    start(out_code, sizeof(out_code));
    cr_assert_eq(vcpu_describe(vcpus_get(vcpus, 0), &own), 0);
    cr_assert_eq(vcpu_describe(vcpus_get(vcpus, 0), &guest), 0);
    memcpy(&khz, tsc_of(&guest), sizeof(khz));
    khz += khz / 2;
    memcpy(tsc_of(&guest), &khz, sizeof(khz));
    cr_expect_str_eq(lacks(&guest, &own), "", "KVM keeps up with a faster one");
    khz /= 3;
    memcpy(tsc_of(&guest), &khz, sizeof(khz));
    if (kvm_capability(vm_kvm_fd(vm), KVM_CAP_TSC_CONTROL) > 0)
        cr_expect_str_eq(lacks(&guest, &own), "");
    else
        cr_expect(strncmp(lacks(&guest, &own), "a TSC of ", 9) == 0);
    state_buffer_fini(&guest);
    state_buffer_fini(&own);
    stop();
}

Test(vcpu, refuses_to_compare_what_is_no_processor, .timeout = 30)
{
    const struct state_buffer nothing = {0};
    struct state_reader there = {.data = nothing.data, .length = 0}, here = {0};
    struct state_buffer own = {0};
    char missing[64] = "";

    start(out_code, sizeof(out_code));
    cr_assert_eq(vcpu_describe(vcpus_get(vcpus, 0), &own), 0);
    here = (struct state_reader){.data = own.data, .length = own.length};
    cr_expect_eq(arch_processor_compare(vm_kvm_fd(vm), &there, &here, missing, sizeof(missing)),
                 -ENODATA);
    there = (struct state_reader){.data = own.data, .length = own.length};
    here = (struct state_reader){0};
    cr_expect_eq(arch_processor_compare(vm_kvm_fd(vm), &there, &here, missing, sizeof(missing)),
                 -ENODATA);
    state_buffer_fini(&own);
    stop();
}
