/*
 * The repair of SYSCALL; see the header for what is wrong with it.
 *
 * Where the handler is, the IDT says at the moment when LSTAR is written, and again whenever this
 * code runs: a guest that moves it afterwards is followed at its next exit to here. The
 * breakpoint belongs to KVM's debugging interface, so the guest's own debug registers stay as they
 * are, and its own breakpoints hit. What a user's program could forge, a jump to LSTAR's address,
 * gains it nothing: RCX must stand behind a SYSCALL instruction, and R11 is believed only where a
 * user may set a flag anyway. The others are taken from the fault's frame, where SFMASK has cleared
 * some: then IOPL is 0, and IF is set, as it is in a user's code but for a kernel's that runs it with
 * interrupts off. SYSCALL from 32-bit code needs no repair: KVM emulates it wholly.
 *
 * The vCPU's thread; no locks. Texts: Intel SDM volume 2B, SYSCALL; volume 3A §6.14 (frames);
 * the kernel's Documentation/virt/kvm/api.rst §4.87 KVM_SET_GUEST_DEBUG.
 */
#include "vmm/x86/syscall.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vmm/util/log.h"
#include "vmm/x86/emulate.h"

#define MSR_STAR X86_SYSCALL_MSRS
#define MSR_LSTAR 0xC0000082u
#define MSR_SFMASK 0xC0000084u
#define EFER_SCE 1ull
#define FLAG_ID (1ull << 21)
#define USER_FLAGS                                                                                 \
    (X86_FLAG_CF | X86_FLAG_PF | X86_FLAG_AF | X86_FLAG_ZF | X86_FLAG_SF | X86_FLAG_TF |           \
     X86_FLAG_DF | X86_FLAG_OF | X86_FLAG_NT | X86_FLAG_AC | FLAG_ID)

#define GATE_PRESENT (1ull << 47)
#define CODE64 11
#define DATA 3

/* What a fault with an error code pushes. */
struct frame {
    uint64_t error, rip, cs, rflags, rsp, ss;
};

static int fail(const char *what)
{
    int err = -errno;

    log_error("vCPU: %s: %s", what, strerror(-err));
    return err;
}

int x86_msr_read(int vcpu_fd, uint32_t index, uint64_t *value)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry;
    } one = {.head.nmsrs = 1, .entry.index = index};

    if (ioctl(vcpu_fd, KVM_GET_MSRS, &one) != 1)
        return -EIO;
    *value = one.entry.data;
    return 0;
}

int x86_msr_write(int vcpu_fd, uint32_t index, uint64_t value)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry;
    } one = {.head.nmsrs = 1, .entry = {.index = index, .data = value}};

    return ioctl(vcpu_fd, KVM_SET_MSRS, &one) == 1 ? 0 : -EIO;
}

uint64_t x86_gate_target(struct x86_emu *emu, unsigned vector)
{
    uint64_t gate[2];

    if (!(emu->sregs.efer & X86_EFER_LMA) || emu->sregs.idt.limit < vector * 16 + 15 ||
        x86_emu_read(emu, emu->sregs.idt.base + vector * 16, gate, sizeof(gate),
                     X86_READ | X86_SYSTEM) != X86_EMU_DONE ||
        !(gate[0] & GATE_PRESENT))
        return 0;
    return (gate[0] & 0xFFFF) | (gate[0] >> 32 & 0xFFFF0000) | gate[1] << 32;
}

void x86_syscall_follow(struct x86_syscall *s, struct x86_emu *emu)
{
    s->handler = s->lstar ? x86_gate_target(emu, X86_VECTOR_PF) : 0;
}

int x86_syscall_refresh(struct x86_syscall *s, int vcpu_fd, struct x86_emu *emu)
{
    if (x86_msr_read(vcpu_fd, MSR_STAR, &s->star) < 0 ||
        x86_msr_read(vcpu_fd, MSR_LSTAR, &s->lstar) < 0 ||
        x86_msr_read(vcpu_fd, MSR_SFMASK, &s->sfmask) < 0)
        return fail("cannot read SYSCALL's MSRs");
    x86_syscall_follow(s, emu);
    return 0;
}

int x86_syscall_msr_exit(struct x86_syscall *s, int vcpu_fd, struct x86_emu *emu,
                         struct kvm_run *run)
{
    uint32_t index = run->msr.index;

    if (index != MSR_STAR && index != MSR_LSTAR && index != MSR_SFMASK)
        return -ENOSYS;
    run->msr.error = x86_msr_write(vcpu_fd, index, run->msr.data) < 0; /* 1: #GP into the guest */
    return x86_syscall_refresh(s, vcpu_fd, emu);
}

/* ---- the entry ---- */

/* Whether the frame is of a fetch from LSTAR by 64-bit user code that a SYSCALL has sent there. */
static bool is_syscall(const struct x86_syscall *s, struct x86_emu *emu, const struct frame *frame)
{
    const uint64_t must = X86_PF_USER, may = X86_PF_PRESENT | X86_PF_USER | X86_PF_FETCH;
    uint8_t before[2];

    if (!s->lstar || !(emu->sregs.efer & EFER_SCE) || frame->rip != s->lstar ||
        emu->sregs.cr2 != s->lstar || (frame->cs & 3) != 3 || (frame->error & ~may) ||
        (frame->error & must) != must)
        return false;
    return x86_emu_read(emu, emu->regs.rcx - 2, before, sizeof(before), X86_READ | X86_AS_USER) ==
               X86_EMU_DONE &&
           before[0] == 0x0F && before[1] == 0x05;
}

static struct kvm_segment flat(uint16_t selector, uint8_t type)
{
    return (struct kvm_segment){
        .limit = UINT32_MAX, .selector = selector, .type = type, .present = 1, .s = 1, .g = 1,
        .l = type == CODE64, .db = type != CODE64};
}

/* The user's flags, as SYSCALL puts them into R11. The frame has those that it leaves to the kernel. */
static uint64_t flags_of(const struct x86_syscall *s, const struct x86_emu *emu,
                         const struct frame *frame)
{
    uint64_t others = frame->rflags & ~(USER_FLAGS | X86_FLAG_RF);

    return (emu->regs.r11 & USER_FLAGS) | others | (s->sfmask & X86_FLAG_IF);
}

bool x86_syscall_repair(const struct x86_syscall *s, struct x86_emu *emu)
{
    uint16_t selector = (uint16_t)(s->star >> 32);
    struct frame frame;

    if (x86_emu_read(emu, emu->regs.rsp, &frame, sizeof(frame), X86_READ | X86_SYSTEM) !=
            X86_EMU_DONE ||
        !is_syscall(s, emu, &frame))
        return false;
    emu->regs.r11 = flags_of(s, emu, &frame);
    emu->regs.rflags = (emu->regs.r11 & ~s->sfmask) | 2;
    emu->regs.rip = s->lstar;
    emu->regs.rsp = frame.rsp;
    emu->sregs.cs = flat(selector & 0xFFFC, CODE64);
    emu->sregs.ss = flat((uint16_t)(selector + 8), DATA);
    emu->sregs_changed = true;
    return true;
}
