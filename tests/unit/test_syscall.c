/*
 * SYSCALL, page faults and breakpoints of a guest with user code, on this host's own KVM, where it
 * emulates kernel code; skipped elsewhere, where none of the help that is tested here runs.
 *
 * The guest: a kernel at KERNEL, in supervisor's pages, and a user at USER, the same memory as a
 * user's. What it does it tells by 4-byte writes to a port of each vCPU's own.
 */
#include <cpuid.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "vmm/bus.h"
#include "vmm/probe.h"
#include "vmm/vcpu.h"
#include "vmm/vm.h"
#include "vmm/x86/emulate.h"
#include "vmm/x86/x86.h"

#define USER 0x40000000ull
#define KERNEL 0x80000000ull
#define ABSENT (USER + 2 * MIB)
#define IDT 0x2000u /* offsets into memory */
#define GDT 0x3000u
#define TSS 0x4000u /* 256 bytes a vCPU */
#define CODE 0x10000u
#define STACKS 0x20000u /* 64 KiB a vCPU: the kernel's half, then the user's */
#define TABLES 0x100000u
#define PORT 0x600
#define HYGON_EBX 0x6F677948u /* "Hygo" */
#define VCPUS_MAX 2u
#define REPORTS_MAX 32u
#define USER_FLAGS 0x240ED7u /* as the kernel is to see them: with interrupts on, and bit 1 */

extern const uint8_t guest_code[], guest_entered[], guest_page_fault[], guest_debug[],
    guest_code_end[];

/*
 * From the start: R15 the port, R14 the kernel's stack, R13 the user's, R12 not 0 when the user is to
 * try 32-bit code as well. The first instruction of the page-fault handler is one that Ferry leaves to KVM.
 */
__asm__(".pushsection .rodata\n"
        ".globl guest_code, guest_entered, guest_page_fault, guest_debug, guest_code_end\n"
        ".macro report value\n"
        "  mov \\value, %eax; mov %r15d, %edx; out %eax, (%dx)\n"
        ".endm\n"
        ".macro set_msr index, target\n"
        "  lea \\target(%rip), %rax; mov %rax, %rdx; shr $32, %rdx; mov $\\index, %ecx; wrmsr\n"
        ".endm\n"
        ".macro enter selector, target, stack\n" /* user code */
        "  push $0x2B; push \\stack; push $2; push $\\selector\n"
        "  lea \\target(%rip), %rax; sub $0x40000000, %rax; push %rax; iretq\n"
        ".endm\n"
        "guest_code:\n"
        "  mov $0xC0000081, %ecx; xor %eax, %eax; mov $0x00230010, %edx; wrmsr\n"
        "  mov $0xC0000084, %ecx; mov $0x700, %eax; xor %edx, %edx; wrmsr\n"
        "  set_msr 0xC0000082, entry_first\n"
        "  set_msr 0xC0000083, entry_compat\n"
        "  enter 0x33, user, %r13\n"
        "user:\n"
        "  xor %r9d, %r9d\n"
        "  push $0x240CD5; popfq\n" /* what a user may set but TF, and NT: IRETQ faults */
        "  syscall\n"
        "guest_entered:\n"
        "  syscall\n"
        "  mov $0x40200000, %ebx; mov (%rbx), %eax\n"
        "  mov $1, %r9d\n"
        "  syscall\n"
        "  ud2\n"
        "entry_first:\n" /* moves LSTAR, and returns */
        "  mov %rsp, %rbp; mov %r14, %rsp; push $0x2B; push %rbp; push %r11; push $0x33; push %rcx\n"
        "  mov %ecx, %ebx\n"
        "  report $0xE1\n"
        "  report %ebx\n"
        "  report %r11d\n"
        "  set_msr 0xC0000082, entry_second\n"
        "  iretq\n"
        "entry_second:\n"
        "  mov %rsp, %rbp; mov %r14, %rsp; push $0x2B; push %rbp; push %r11; push $0x33; push %rcx\n"
        "  mov %cs, %ebx\n"
        "  report $0xE2\n"
        "  report %ebx\n"
        "  test %r9d, %r9d; jnz 1f\n"
        "  iretq\n"
        "1: test %r12d, %r12d; jz breakpoint\n"
        "  enter 0x23, user_compat, %r13\n"
        ".code32\n"
        "user_compat:\n"
        "  syscall\n"
        "  ud2\n"
        ".code64\n"
        "entry_compat:\n"
        "  mov %r14, %rsp\n"
        "  report $0x32\n"
        "breakpoint:\n" /* the guest's own: DR0 on execution, enabled locally */
        "  mov %r14, %rsp\n"
        "  lea 2f(%rip), %rax; mov %rax, %dr0; mov $0x401, %eax; mov %rax, %dr7\n"
        "2: nop\n"
        "  report $0xD0\n"
        "3: hlt; jmp 3b\n"
        "guest_page_fault:\n"
        "  mov %cr2, %rbx\n"
        "  report $0xF0\n"
        "  pop %rsi\n"
        "  report %esi\n"
        "  report %ebx\n"
        "  addq $2, (%rsp)\n"
        "  iretq\n"
        "guest_debug:\n"
        "  mov %dr6, %rbx; and $0xF, %ebx; xor %eax, %eax; mov %rax, %dr7\n"
        "  report $0xDB\n"
        "  report %ebx\n"
        "  iretq\n"
        "guest_code_end:\n"
        ".popsection\n");

struct log {
    uint32_t reports[REPORTS_MAX];
    unsigned n;
};

static struct guest_memory *mem;
static struct vm *vm;
static struct bus *pio, *mmio;
static struct vcpus *vcpus;
static pthread_mutex_t device_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct log logs[VCPUS_MAX];
static bool failed;

static uint64_t on_read(void *opaque, uint64_t offset, unsigned size)
{
    (void)opaque;
    (void)offset;
    (void)size;
    return 0;
}

static void on_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct log *log = &logs[offset / 4 % VCPUS_MAX];

    (void)opaque;
    (void)size;
    pthread_mutex_lock(&mutex);
    if (log->n < REPORTS_MAX)
        log->reports[log->n++] = (uint32_t)value;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

static void on_failure(void *opaque, enum vcpu_failure failure, const char *detail)
{
    (void)opaque;
    (void)failure;
    (void)detail;
    pthread_mutex_lock(&mutex);
    failed = true;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

static const struct bus_ops ops = {on_read, on_write};
static const struct bus_region ports = {"reports", PORT, 4 * VCPUS_MAX, &ops, NULL};

static void put(unsigned at, uint64_t value)
{
    cr_assert_eq(memory_write(mem, at, &value, sizeof(value)), 0);
}

static void put_gate(unsigned vector, const uint8_t *target)
{
    uint64_t at = KERNEL + CODE + (uint64_t)(target - guest_code);

    put(IDT + vector * 16, (at & 0xFFFF) | 0x10u << 16 | 0x8E00ull << 32 | (at >> 16 & 0xFFFF) << 48);
    put(IDT + vector * 16 + 8, at >> 32);
}

static void fill_memory(void)
{
    put(TABLES, (TABLES + 0x1000) | 7);
    put(TABLES + 0x1000 + 8, (TABLES + 0x2000) | 7);  /* 1 GiB: the user's */
    put(TABLES + 0x1000 + 16, (TABLES + 0x3000) | 7); /* 2 GiB: the supervisor's */
    put(TABLES + 0x2000, 0x87);
    put(TABLES + 0x3000, 0x83);
    put(GDT + 0x10, 0x00AF9B000000FFFF);
    put(GDT + 0x18, 0x00CF93000000FFFF);
    put(GDT + 0x20, 0x00CFFB000000FFFF);
    put(GDT + 0x28, 0x00CFF3000000FFFF);
    put(GDT + 0x30, 0x00AFFB000000FFFF);
    put_gate(X86_VECTOR_DB, guest_debug);
    put_gate(X86_VECTOR_PF, guest_page_fault);
    for (unsigned i = 0; i < VCPUS_MAX; i++)
        put(TSS + i * 256 + 4, KERNEL + STACKS + i * 0x10000 + 0x8000);
    cr_assert_eq(memory_write(mem, CODE, guest_code, (uint64_t)(guest_code_end - guest_code)), 0);
}

static struct kvm_segment flat(uint16_t selector, uint8_t type)
{
    return (struct kvm_segment){.limit = UINT32_MAX, .selector = selector, .type = type, .present = 1,
                                .s = 1, .g = 1, .l = type == 11, .db = type != 11};
}

static void enter(unsigned index, bool compat)
{
    int fd = vcpu_fd(vcpus_get(vcpus, index));
    struct kvm_mp_state runnable = {.mp_state = KVM_MP_STATE_RUNNABLE};
    const uint64_t stack = STACKS + index * 0x10000;
    struct kvm_regs regs = {.rip = KERNEL + CODE, .rsp = KERNEL + stack + 0x8000, .rflags = 2,
                            .r12 = compat, .r13 = USER + stack + 0xF000,
                            .r14 = KERNEL + stack + 0x8000, .r15 = PORT + 4 * index};
    struct kvm_sregs s;

    cr_assert_eq(ioctl(fd, KVM_GET_SREGS, &s), 0);
    s.cr0 = X86_CR0_PG | X86_CR0_WP | X86_CR0_PE | 1 << 4;
    s.cr3 = TABLES;
    s.cr4 = X86_CR4_PAE;
    s.efer = X86_EFER_LMA | 1 << 8 | X86_EFER_NXE | 1;
    s.cs = flat(0x10, 11);
    s.ss = s.ds = s.es = s.fs = s.gs = flat(0x18, 3);
    s.gdt = (struct kvm_dtable){.base = KERNEL + GDT, .limit = 0x4F};
    s.idt = (struct kvm_dtable){.base = KERNEL + IDT, .limit = 0xFFF};
    s.tr = (struct kvm_segment){.base = KERNEL + TSS + index * 256, .limit = 0x67, .selector = 0x40,
                                .type = 11, .present = 1};
    cr_assert_eq(ioctl(fd, KVM_SET_SREGS, &s), 0);
    cr_assert_eq(ioctl(fd, KVM_SET_REGS, &regs), 0);
    cr_assert_eq(ioctl(fd, KVM_SET_MP_STATE, &runnable), 0);
}

/* Only AMD's processors, and their like, have SYSCALL in 32-bit code. */
static bool has_compat_syscall(void)
{
    unsigned a, b, c, d;

    return __get_cpuid(0, &a, &b, &c, &d) && (b == signature_AMD_ebx || b == HYGON_EBX);
}

/* Skips the test where there is nothing to repair. */
static void need_help(void)
{
    struct kvm_traits traits = {0};
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

    if (fd < 0)
        cr_skip("no /dev/kvm on this host: %s", strerror(errno));
    cr_assert_eq(kvm_probe(fd, &traits), 0);
    close(fd);
    if (!traits.emulates_kernel)
        cr_skip("this host's KVM runs kernel code natively: it needs no help");
}

static void start(unsigned count, bool compat)
{
    const struct memory_config memory = {.size = 2 * MIB};
    struct vcpus_config config = {.count = count, .lock = &device_mutex, .failed = on_failure};

    need_help();
    cr_assert_eq(memory_create(&mem, &memory), 0);
    cr_assert_eq(vm_create(&vm, mem, true), 0);
    cr_assert_eq(bus_create(&pio, "pio"), 0);
    cr_assert_eq(bus_create(&mmio, "mmio"), 0);
    cr_assert_eq(bus_add(pio, &ports), 0);
    config.vm = vm;
    config.pio = pio;
    config.mmio = mmio;
    config.assist = mem;
    cr_assert_eq(vcpus_create(&vcpus, &config), 0);
    fill_memory();
    for (unsigned i = 0; i < count; i++)
        enter(i, compat);
    vcpus_resume(vcpus);
}

static void stop(void)
{
    vcpus_destroy(vcpus);
    vm_destroy(vm);
    bus_destroy(pio);
    bus_destroy(mmio);
    memory_destroy(mem);
}

/* Waits for n reports of a vCPU, which are to be these. */
static void expect(unsigned index, const uint32_t *reports, unsigned n)
{
    struct log *log = &logs[index];

    pthread_mutex_lock(&mutex);
    while (log->n < n && !failed)
        pthread_cond_wait(&changed, &mutex);
    pthread_mutex_unlock(&mutex);
    for (unsigned i = 0; i < n && i < log->n; i++)
        cr_expect_eq(log->reports[i], reports[i], "vCPU %u: report %u is %#x, and not %#x", index, i,
                     log->reports[i], reports[i]);
    cr_expect_geq(log->n, n, "vCPU %u ends after %u reports", index, log->n);
}

static uint32_t return_address(void)
{
    return (uint32_t)(USER + CODE + (uint64_t)(guest_entered - guest_code));
}

#define EXPECT(index, ...)                                                                         \
    expect((index), (const uint32_t[]){__VA_ARGS__},                                               \
           sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))

Test(syscall, enters_the_kernel_where_lstar_says_and_follows_it, .timeout = 60)
{
    start(1, false);
    EXPECT(0, 0xE1, return_address(), USER_FLAGS, 0xE2, 0x10);
    stop();
}

Test(syscall, leaves_a_page_fault_of_the_users_to_the_guest, .timeout = 60)
{
    start(1, false);
    EXPECT(0, 0xE1, return_address(), USER_FLAGS, 0xE2, 0x10, 0xF0, X86_PF_USER,
           (uint32_t)ABSENT, 0xE2, 0x10);
    stop();
}

Test(syscall, leaves_the_guests_own_breakpoints, .timeout = 60)
{
    start(1, false);
    EXPECT(0, 0xE1, return_address(), USER_FLAGS, 0xE2, 0x10, 0xF0, X86_PF_USER,
           (uint32_t)ABSENT, 0xE2, 0x10, 0xDB, 1, 0xD0);
    stop();
}

Test(syscall, of_32_bit_code_enters_where_cstar_says, .timeout = 60)
{
    if (!has_compat_syscall())
        cr_skip("this processor has no SYSCALL in 32-bit code");
    start(1, true);
    EXPECT(0, 0xE1, return_address(), USER_FLAGS, 0xE2, 0x10, 0xF0, X86_PF_USER,
           (uint32_t)ABSENT, 0xE2, 0x10, 0x32, 0xDB, 1, 0xD0);
    stop();
}

Test(syscall, is_repaired_on_each_vcpu, .timeout = 60)
{
    start(2, false);
    for (unsigned i = 0; i < 2; i++)
        EXPECT(i, 0xE1, return_address(), USER_FLAGS, 0xE2, 0x10, 0xF0, X86_PF_USER,
               (uint32_t)ABSENT, 0xE2, 0x10, 0xDB, 1, 0xD0);
    stop();
}
