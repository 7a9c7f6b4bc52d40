/*
 * A debugger for the native tests' guest: has a child run by single steps across a system call, and
 * into a breakpoint instruction; and another one, while the child's debug registers are set. Prints a
 * line for each thing that was not as expected, then debugged=good or debugged=bad.
 *
 * Does without a C library, so that it takes no more than a page of the guest's initramfs, and does
 * not wait for the hardware breakpoint to hit, which it does not on every host. One thread; no locks.
 * Texts: ptrace(2); System V ABI for AMD64 §A.2.1 (system calls); Intel SDM volume 3B §17.2 (debug
 * registers), §17.3.1.4 (single-step).
 */
#include <asm/unistd.h>
#include <linux/ptrace.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/user.h>

#define FLAG_TF 0x100u
#define FLAG_IF 0x200u
#define DR7_LOCAL_0 1 /* breakpoint 0, on execution */
#define DEBUG_REGISTER(n) ((long)(offsetof(struct user, u_debugreg) + 8 * (n)))
#define STOPPED_BY(signal) ((signal) << 8 | 0x7F) /* as wait4(2) has it */
#define EXITED_WITH(status) ((status) << 8)

/* What the child runs: its number into RBX, a breakpoint, exit(7). */
extern const char child[], child_call[], child_called[], child_trap[], child_trapped[];
__asm__("child: mov %eax, %eax\n"
        "child_call: syscall\n"
        "child_called: mov %rax, %rbx\n"
        "child_trap: int3\n"
        "child_trapped: mov $60, %eax\n"
        "mov $7, %edi\n"
        "syscall\n"
        ".globl _start\n"
        "_start: and $-16, %rsp\n"
        "call debug\n");
_Static_assert(__NR_exit == 60, "in the child's code");

void debug(void);

static bool good = true;

static long call(long number, long a, long b, long c, long d)
{
    register long fourth __asm__("r10") = d;
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth)
                     : "rcx", "r11", "memory");
    return result;
}

static void print(const char *text)
{
    long n = 0;

    while (text[n])
        n++;
    call(__NR_write, 1, (long)text, n, 0);
}

static void print_number(uint64_t value)
{
    char text[] = "0x0000000000000000";

    for (unsigned i = 0; i < 16; i++)
        text[17 - i] = "0123456789abcdef"[value >> 4 * i & 15];
    print(text);
}

static void expect(const char *what, uint64_t seen, uint64_t expected)
{
    if (seen == expected)
        return;
    good = false;
    print(what);
    print(": ");
    print_number(seen);
    print(", not ");
    print_number(expected);
    print("\n");
}

static int status_of(long pid)
{
    int status = -1;

    call(__NR_wait4, pid, (long)&status, 0, 0);
    return status;
}

static struct user_regs_struct registers_of(long pid)
{
    struct user_regs_struct regs = {0};

    expect("reading registers", (uint64_t)call(__NR_ptrace, PTRACE_GETREGS, pid, 0, (long)&regs), 0);
    return regs;
}

static long start_child(void)
{
    long pid = call(__NR_fork, 0, 0, 0, 0);

    if (pid != 0)
        return pid;
    call(__NR_ptrace, PTRACE_TRACEME, 0, 0, 0);
    call(__NR_kill, call(__NR_getpid, 0, 0, 0, 0), SIGSTOP, 0, 0);
    call(__NR_exit, 1, 0, 0, 0);
    return -1;
}

/* The child is to make the system call getpid. */
static void send_child(long pid)
{
    struct user_regs_struct regs = registers_of(pid);

    regs.rip = (uint64_t)child;
    regs.rax = __NR_getpid;
    regs.orig_rax = UINT64_MAX; /* no system call is to be started again */
    expect("writing registers", (uint64_t)call(__NR_ptrace, PTRACE_SETREGS, pid, 0, (long)&regs), 0);
}

static void poke(long pid, unsigned number, long value)
{
    expect("writing a debug register",
           (uint64_t)call(__NR_ptrace, PTRACE_POKEUSR, pid, DEBUG_REGISTER(number), value), 0);
}

static void step(long pid, const char *to)
{
    struct user_regs_struct regs;

    call(__NR_ptrace, PTRACE_SINGLESTEP, pid, 0, 0);
    expect("a step's status", (uint64_t)status_of(pid), STOPPED_BY(SIGTRAP));
    regs = registers_of(pid);
    expect("a step's end", regs.rip, (uint64_t)to);
    expect("the flags of trap and interrupts", regs.eflags & (FLAG_TF | FLAG_IF), FLAG_IF);
}

static void debug_child(long breakpoint)
{
    long pid = start_child();
    uint64_t kept = 0;

    expect("the child's start", (uint64_t)status_of(pid), STOPPED_BY(SIGSTOP));
    send_child(pid);
    poke(pid, 0, (long)child_trapped);
    poke(pid, 7, breakpoint);
    step(pid, child_call);
    step(pid, child_called);
    step(pid, child_trap);
    expect("what getpid gave", registers_of(pid).rbx, (uint64_t)pid);
    call(__NR_ptrace, PTRACE_PEEKUSR, pid, DEBUG_REGISTER(0), (long)&kept);
    expect("debug register 0", kept, (uint64_t)child_trapped);
    poke(pid, 7, 0);
    call(__NR_ptrace, PTRACE_CONT, pid, 0, 0);
    expect("the breakpoint's status", (uint64_t)status_of(pid), STOPPED_BY(SIGTRAP));
    expect("the breakpoint's place", registers_of(pid).rip, (uint64_t)child_trapped);
    call(__NR_ptrace, PTRACE_CONT, pid, 0, 0);
    expect("the child's end", (uint64_t)status_of(pid), EXITED_WITH(7));
}

void debug(void)
{
    debug_child(0);
    debug_child(DR7_LOCAL_0);
    print(good ? "debugged=good\n" : "debugged=bad\n");
    call(__NR_exit, !good, 0, 0, 0);
}
