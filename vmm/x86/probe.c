/*
 * The throw-away guest that tells whether this host's KVM emulates kernel code.
 *
 * One vCPU in 64-bit mode at CPL 0, without interrupts or devices, counts a register down and
 * halts. KVM's count of the instructions that it emulates grows by all of them, or it does not. Where
 * KVM does not count, time tells: the quickest of several rounds, for the host may do something else
 * meanwhile. The loop runs with few turns and with many; the difference, what an instruction takes, is
 * free of what entering and leaving the guest costs. Where KVM emulates, a few instructions more tell
 * what its emulator rejects, and whether SYSCALL from user code gets to the kernel.
 *
 * Does not cache (vmm/probe.c). Any thread; no locks.
 * Texts: KVM's api.rst §4.35 (memory), §4.12 (registers); Intel SDM volume 3, §4.5 (page tables), §10.8.5
 * (entering 64-bit mode); volume 2, CPUID; AMD APM volume 3, appendix E (CPUID).
 */
#include "vmm/probe.h"

#include <cpuid.h>
#include <errno.h>
#include <linux/kvm.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "vmm/x86/count.h"

/* Guest memory: a page each for PML4, PDPT, PD (which maps the first 2 MiB) and the code. */
#define PAGE_SIZE 4096u
#define PML4_AT 0x0000u
#define PDPT_AT 0x1000u
#define PD_AT 0x2000u
#define CODE_AT 0x3000u
#define MEMORY_SIZE 0x4000u

#define PTE_PRESENT_WRITABLE 0x7u /* a user's too: SYSCALL is tried from there */
#define PDE_LARGE 0x80u
#define CR0_PE_NE_PG 0x80000021u
#define CR4_PAE 0x20u
#define EFER_LME_LMA 0x500u
#define EFER_SCE 1u
#define MSR_STAR 0xC0000081u
#define MSR_LSTAR 0xC0000082u
#define RFLAGS_FIXED 0x2u

/* loop: dec ecx; jnz loop; hlt */
static const uint8_t code[] = {0xFF, 0xC9, 0x75, 0xFC, 0xF4};
#define INSTRUCTIONS_A_TURN 2

/* To tell an emulator, and then, once it is known that there is none, to tell the speed. */
#define FEW_TURNS 1u
#define MANY_TURNS 8001u
#define ROUNDS 8
#define NATIVE_TURNS 100001u
/*
 * Emulators seen take some 500 ns an instruction, processors less than 1, and a processor that is
 * emulated itself (QEMU's TCG) some 3.
 */
#define EMULATED_FROM_PS 50000u

struct probe_vm {
    int vm_fd, vcpu_fd;
    uint8_t *memory;
    struct kvm_run *run;
    size_t run_size;
};

static int fill_memory(struct probe_vm *vm)
{
    struct kvm_userspace_memory_region slot = {.memory_size = MEMORY_SIZE};
    uint64_t *memory;

    vm->memory = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (vm->memory == MAP_FAILED)
        return -errno;
    memory = (uint64_t *)vm->memory;
    memory[PML4_AT / 8] = PDPT_AT | PTE_PRESENT_WRITABLE;
    memory[PDPT_AT / 8] = PD_AT | PTE_PRESENT_WRITABLE;
    memory[PD_AT / 8] = PDE_LARGE | PTE_PRESENT_WRITABLE;
    memcpy(vm->memory + CODE_AT, code, sizeof(code));
    slot.userspace_addr = (uintptr_t)vm->memory;
    return ioctl(vm->vm_fd, KVM_SET_USER_MEMORY_REGION, &slot) < 0 ? -errno : 0;
}

static int set_long_mode(struct probe_vm *vm)
{
    struct kvm_segment data = {
        .limit = UINT32_MAX, .selector = 0x10, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
    struct kvm_segment text = {
        .limit = UINT32_MAX, .selector = 0x08, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
    struct kvm_sregs sregs;

    if (ioctl(vm->vcpu_fd, KVM_GET_SREGS, &sregs) < 0)
        return -errno;
    sregs.cs = text;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
    sregs.cr0 = CR0_PE_NE_PG;
    sregs.cr3 = PML4_AT;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME_LMA;
    return ioctl(vm->vcpu_fd, KVM_SET_SREGS, &sregs) < 0 ? -errno : 0;
}

/* KVM_SET_SREGS wants a CPU that has long mode, so the vCPU gets all that KVM offers. */
static int set_cpuid(int kvm_fd, struct probe_vm *vm)
{
    struct {
        struct kvm_cpuid2 head;
        struct kvm_cpuid_entry2 entries[256];
    } cpuid = {.head.nent = 256};

    if (ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, &cpuid) < 0 ||
        ioctl(vm->vcpu_fd, KVM_SET_CPUID2, &cpuid) < 0)
        return -errno;
    return 0;
}

static int create(struct probe_vm *vm, int kvm_fd)
{
    int error, run_size;

    do /* a pending signal interrupts the making of a VM */
        vm->vm_fd = ioctl(kvm_fd, KVM_CREATE_VM, 0);
    while (vm->vm_fd < 0 && errno == EINTR);
    if (vm->vm_fd < 0)
        return -errno;
    error = fill_memory(vm);
    if (error < 0)
        return error;
    vm->vcpu_fd = ioctl(vm->vm_fd, KVM_CREATE_VCPU, 0);
    run_size = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (vm->vcpu_fd < 0 || run_size < 0)
        return -errno;
    vm->run_size = (size_t)run_size;
    vm->run = mmap(NULL, vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu_fd, 0);
    if (vm->run == MAP_FAILED)
        return -errno;
    error = set_cpuid(kvm_fd, vm);
    return error < 0 ? error : set_long_mode(vm);
}

static void destroy(struct probe_vm *vm)
{
    if (vm->run != MAP_FAILED)
        munmap(vm->run, vm->run_size);
    if (vm->vcpu_fd >= 0)
        close(vm->vcpu_fd);
    if (vm->vm_fd >= 0)
        close(vm->vm_fd);
    if (vm->memory != MAP_FAILED)
        munmap(vm->memory, MEMORY_SIZE);
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Runs the loop once to its end; *ns is lowered to what that took, if it took less. */
static int run_loop(struct probe_vm *vm, uint64_t turns, uint64_t *ns)
{
    struct kvm_regs regs = {.rip = CODE_AT, .rflags = RFLAGS_FIXED, .rcx = turns};
    uint64_t begin, took;
    int result;

    if (ioctl(vm->vcpu_fd, KVM_SET_REGS, &regs) < 0)
        return -errno;
    begin = now_ns();
    do
        result = ioctl(vm->vcpu_fd, KVM_RUN, 0);
    while (result < 0 && errno == EINTR);
    took = now_ns() - begin;
    if (result < 0)
        return -errno;
    if (vm->run->exit_reason != KVM_EXIT_HLT)
        return -EIO;
    if (took < *ns)
        *ns = took;
    return 0;
}

/* ---- what an emulating KVM leaves undone ---- */

/* Each as kernels have it; RDI points to memory. */
static const uint8_t tried[KVM_PROBE_INSTRUCTIONS][6] = {
    {0x48, 0x0F, 0xC7, 0x0F, 0xF4},       /* cmpxchg16b */
    {0x48, 0x0F, 0xAE, 0x27, 0xF4},       /* xsave64 */
    {0x0F, 0xAE, 0x1F, 0xF4},             /* stmxcsr */
    {0x9B, 0xF4},                         /* fwait */
    {0xF3, 0x48, 0x0F, 0xB8, 0xC1, 0xF4}, /* popcnt */
    {0x0F, 0x03, 0xC1, 0xF4},             /* lsl */
    {0x0F, 0x01, 0xCA, 0xF4},             /* clac */
    {0x0F, 0x01, 0xF9, 0xF4},             /* rdtscp */
};

/* Runs the bytes at CPL 0 or 3 up to their HLT; the reason of the exit, or a negative errno. */
static int run_bytes(struct probe_vm *vm, const uint8_t *bytes, size_t n, bool user)
{
    struct kvm_regs regs = {.rip = CODE_AT, .rflags = RFLAGS_FIXED, .rdi = CODE_AT + 0x800};
    struct kvm_vcpu_events events = {0};
    struct kvm_sregs sregs;
    int error = set_long_mode(vm), result;

    memcpy(vm->memory + CODE_AT, bytes, n);
    if (error < 0)
        return error;
    if (ioctl(vm->vcpu_fd, KVM_GET_SREGS, &sregs) < 0)
        return -errno;
    if (user) {
        sregs.cs.selector |= 3;
        sregs.ss.selector |= 3;
        sregs.cs.dpl = sregs.ss.dpl = 3;
        sregs.efer |= EFER_SCE;
    }
    /* What the run before it raised is withdrawn. */
    if (ioctl(vm->vcpu_fd, KVM_SET_SREGS, &sregs) < 0 ||
        ioctl(vm->vcpu_fd, KVM_SET_REGS, &regs) < 0 ||
        ioctl(vm->vcpu_fd, KVM_SET_VCPU_EVENTS, &events) < 0)
        return -errno;
    do
        result = ioctl(vm->vcpu_fd, KVM_RUN, 0);
    while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : (int)vm->run->exit_reason;
}

/* A whole SYSCALL ends at the HLT to which LSTAR points, which only a kernel may execute. */
static int probe_syscall(struct probe_vm *vm, bool *half)
{
    static const uint8_t code_of_user[] = {0x0F, 0x05, 0xF4};
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entries[2];
    } msrs = {.head.nmsrs = 2,
              .entries = {{.index = MSR_STAR, .data = 0x08ull << 32},
                          {.index = MSR_LSTAR, .data = CODE_AT + 2}}};
    int reason = -EIO;

    if (ioctl(vm->vcpu_fd, KVM_SET_MSRS, &msrs) == 2)
        reason = run_bytes(vm, code_of_user, sizeof(code_of_user), true);
    *half = reason != KVM_EXIT_HLT;
    return reason < 0 ? reason : 0;
}

static int probe_gaps(struct probe_vm *vm, struct kvm_traits *out)
{
    for (unsigned i = 0; i < KVM_PROBE_INSTRUCTIONS; i++) {
        int reason = run_bytes(vm, tried[i], sizeof(tried[i]), false);

        if (reason < 0)
            return reason;
        out->rejected += reason == KVM_EXIT_INTERNAL_ERROR;
    }
    return probe_syscall(vm, &out->half_syscall);
}

/* What an instruction took, from the times of FEW_TURNS and of `turns`. */
static uint64_t picoseconds(uint64_t few_ns, uint64_t many_ns, uint64_t turns)
{
    uint64_t instructions = (turns - FEW_TURNS) * INSTRUCTIONS_A_TURN;
    uint64_t ps = many_ns > few_ns ? (many_ns - few_ns) * 1000 / instructions : 0;

    return ps > UINT32_MAX ? UINT32_MAX : ps;
}

/* By time alone. What a busy host does meanwhile adds to it: one quick round tells a processor. */
static int judge_by_time(struct probe_vm *vm, uint64_t *few_ns, uint64_t *many_ns, bool *emulates)
{
    int error = 0;

    *emulates = true;
    for (unsigned i = 0; error == 0 && *emulates && i < ROUNDS; i++) {
        error = run_loop(vm, FEW_TURNS, few_ns);
        if (error == 0)
            error = run_loop(vm, MANY_TURNS, many_ns);
        *emulates = picoseconds(0, *many_ns, MANY_TURNS) >= EMULATED_FROM_PS;
    }
    return error;
}

static int judge_by_count(struct probe_vm *vm, const struct x86_count *count, uint64_t *few_ns,
                          uint64_t *many_ns, bool *emulates)
{
    uint64_t before;
    int error = run_loop(vm, FEW_TURNS, few_ns);

    before = x86_count_read(count);
    if (error == 0)
        error = run_loop(vm, MANY_TURNS, many_ns);
    *emulates = x86_count_read(count) - before >= MANY_TURNS * INSTRUCTIONS_A_TURN;
    return error;
}

int kvm_probe_measure(int kvm_fd, struct kvm_traits *out)
{
    struct probe_vm vm = {
        .vm_fd = -1, .vcpu_fd = -1, .memory = MAP_FAILED, .run = MAP_FAILED};
    struct x86_count count = X86_COUNT_NONE;
    uint64_t few_ns = UINT64_MAX, many_ns = UINT64_MAX, native_ns = UINT64_MAX, ps;
    bool emulates = false;
    int error = create(&vm, kvm_fd);

    if (error == 0 && x86_count_open(&count, vm.vcpu_fd) == 0)
        error = judge_by_count(&vm, &count, &few_ns, &many_ns, &emulates);
    else if (error == 0)
        error = judge_by_time(&vm, &few_ns, &many_ns, &emulates);
    ps = picoseconds(few_ns, many_ns, MANY_TURNS);
    if (error == 0 && !emulates) {
        error = run_loop(&vm, NATIVE_TURNS, &native_ns);
        ps = picoseconds(few_ns, native_ns, NATIVE_TURNS);
    }
    *out = (struct kvm_traits){.instruction_ps = (uint32_t)ps, .emulates_kernel = emulates};
    if (error == 0 && out->emulates_kernel)
        error = probe_gaps(&vm, out);
    x86_count_close(&count);
    destroy(&vm);
    return error;
}

#define CPUID_1_ECX_VMX (1u << 5)
#define CPUID_1_ECX_HYPERVISOR (1u << 31)
#define CPUID_80000001_ECX_SVM (1u << 2)

static uint32_t cpuid_ecx(uint32_t leaf)
{
    uint32_t eax, ebx, ecx, edx;

    return __get_cpuid(leaf, &eax, &ebx, &ecx, &edx) ? ecx : 0;
}

const char *cpu_virtualization(void)
{
    if (cpuid_ecx(1) & CPUID_1_ECX_VMX)
        return "VT-x";
    return cpuid_ecx(0x80000001) & CPUID_80000001_ECX_SVM ? "SVM" : NULL;
}

bool cpu_is_virtual(void)
{
    return cpuid_ecx(1) & CPUID_1_ECX_HYPERVISOR;
}
