/*
 * uart: the 16550A as a driver finds it, and streams of bytes through it.
 *
 * Without a mode it probes: scratch register, interrupt enable bits, divisor latch, FIFO, modem
 * lines and data in loopback, overrun, trigger levels, interrupt identification.
 * `echo=N` sends N bytes of input back between the lines "echo begin" and "echo end";
 * `count=N` takes N bytes and prints `cksum SUM N` as cksum(1) does; `send=N` sends N bytes of a
 * pattern (byte i is i * 7 + i / 256) between "send begin" and "send end"; `string` uses string
 * I/O for all three where it can. `break` waits for a break, which is a zero byte with its bit.
 * Text: PC16550D (June 1995), 8.
 */
#include <stddef.h>

#include "boot.h"
#include "checksum.h"
#include "io.h"
#include "memory.h"
#include "print.h"
#include "timing.h"
#include "verdict.h"

#define DATA    (COM1 + 0)
#define DLL     (COM1 + 0)
#define DLM     (COM1 + 1)
#define IER     (COM1 + 1)
#define IIR     (COM1 + 2)
#define FCR     (COM1 + 2)
#define LCR     (COM1 + 3)
#define MCR     (COM1 + 4)
#define LSR     (COM1 + 5)
#define MSR     (COM1 + 6)
#define SCRATCH (COM1 + 7)

#define FCR_ENABLE     0x01
#define FCR_CLEAR_RX   0x02
#define FCR_CLEAR_TX   0x04
#define FCR_TRIGGER_4  0x40
#define FCR_TRIGGER_14 0xC0
#define LCR_8N1        0x03
#define LCR_DLAB       0x80
#define MCR_DTR        0x01
#define MCR_RTS        0x02
#define MCR_OUT1       0x04
#define MCR_OUT2       0x08
#define MCR_LOOP       0x10
#define LSR_DR         0x01
#define LSR_OE         0x02
#define LSR_BI         0x10
#define LSR_THRE       0x20
#define LSR_TEMT       0x40
#define IIR_NONE       0x01
#define IIR_THRE       0x02
#define IIR_DATA       0x04
#define IIR_LINE       0x06
#define IIR_TIMEOUT    0x0C
#define IIR_MASK       0x0F
#define FIFO           16
#define TRIGGER        14

#define LIMIT          (60 * SECOND)
#define ECHO_CHUNK     256

static void probe_registers(void)
{
    out8(SCRATCH, 0xAA);
    uint8_t first = in8(SCRATCH);
    out8(SCRATCH, 0x55);
    check(first == 0xAA && in8(SCRATCH) == 0x55, "scratch", "it does not keep what it was given");
    out8(IER, 0x0F);
    first = in8(IER);
    out8(IER, 0);
    check(first == 0x0F && in8(IER) == 0, "interrupt-enable", "0F reads as %02x", first);
    out8(LCR, LCR_DLAB | LCR_8N1);
    out8(DLL, 0x01);
    out8(DLM, 0x5A);
    uint8_t low = in8(DLL), high = in8(DLM);
    out8(DLM, 0);
    out8(LCR, LCR_8N1);
    check(low == 0x01 && high == 0x5A, "divisor", "5a01 reads as %02x%02x", high, low);
    check(in8(LCR) == LCR_8N1, "line-control", "03 reads as %02x", in8(LCR));
    out8(IER, 0);
}

static void probe_fifo(void)
{
    out8(FCR, 0);
    uint8_t without = in8(IIR) >> 6;
    out8(FCR, FCR_ENABLE);
    uint8_t with = in8(IIR) >> 6;
    print_init();
    check(without == 0, "fifo-off", "IIR bits 7:6 are %u", without);
    check(with == 3, "fifo-on", "IIR bits 7:6 are %u, a 16550A has 3", with);
    /* What a 16750 or a 16650V2 would answer differently. */
    out8(LCR, 0xBF);
    uint8_t extended = in8(IIR);
    out8(LCR, LCR_8N1);
    check(extended != 0, "no-extended-features", "a 16650 is seen");
    out8(LCR, LCR_8N1 | LCR_DLAB);
    out8(FCR, FCR_ENABLE | 0x20);
    uint8_t wide = in8(IIR) >> 5;
    out8(LCR, LCR_8N1);
    print_init();
    check(wide != 7, "fifo-not-64", "a 16750 is seen");
}

static void wait_sent(void)
{
    while ((in8(LSR) & (LSR_THRE | LSR_TEMT)) != (LSR_THRE | LSR_TEMT))
        cpu_pause();
}

static void probe_modem(void)
{
    uint8_t lines[4];
    static const uint8_t outputs[4] = { MCR_RTS, MCR_DTR, MCR_OUT1, MCR_OUT2 };
    static const uint8_t inputs[4] = { 0x10, 0x20, 0x40, 0x80 };

    wait_sent();
    for (unsigned i = 0; i < 4; i++) {
        out8(MCR, MCR_LOOP | outputs[i]);
        lines[i] = in8(MSR) & 0xF0;
    }
    out8(MCR, MCR_LOOP);
    in8(MSR);
    out8(MCR, MCR_LOOP | MCR_RTS | MCR_DTR);
    uint8_t delta = in8(MSR) & 0x0F;
    uint8_t cleared = in8(MSR) & 0x0F;
    out8(MCR, MCR_DTR | MCR_RTS);
    in8(MSR);
    for (unsigned i = 0; i < 4; i++) {
        if (lines[i] != inputs[i]) {
            not_ok("modem-loop", "MCR %02x gives MSR %02x, want %02x", outputs[i], lines[i],
                   inputs[i]);
            return;
        }
    }
    ok("modem-loop");
    check(delta == 0x03 && cleared == 0, "modem-delta", "delta bits %x, then %x", delta, cleared);
}

/* In loopback, bytes sent come back; nothing may be printed meanwhile. */
static void probe_loopback(void)
{
    uint8_t back[FIFO];
    bool ready = true;

    wait_sent();
    out8(FCR, FCR_ENABLE | FCR_CLEAR_RX | FCR_CLEAR_TX);
    out8(MCR, MCR_LOOP);
    for (unsigned i = 0; i < FIFO; i++) {
        wait_sent();
        out8(DATA, (uint8_t)(0xC0 + i));
    }
    wait_sent();
    uint8_t full = in8(LSR);
    for (unsigned i = 0; i < FIFO; i++) {
        ready = ready && (in8(LSR) & LSR_DR) != 0;
        back[i] = in8(DATA);
    }
    uint8_t empty = in8(LSR);
    out8(MCR, MCR_DTR | MCR_RTS);
    bool same = true;
    for (unsigned i = 0; i < FIFO; i++)
        same = same && back[i] == 0xC0 + i;
    check(same && ready, "loopback", "16 bytes do not come back as sent (first %02x)", back[0]);
    check((full & LSR_OE) == 0 && (empty & LSR_DR) == 0, "loopback-status",
          "LSR %02x when full, %02x when empty", full, empty);
}

static void probe_overrun(void)
{
    wait_sent();
    out8(FCR, FCR_ENABLE | FCR_CLEAR_RX | FCR_CLEAR_TX);
    out8(MCR, MCR_LOOP);
    for (unsigned i = 0; i < FIFO + 2; i++) {
        wait_sent();
        out8(DATA, (uint8_t)i);
    }
    wait_sent(); /* reading LSR clears the error, so one of these reads may have seen it */
    out8(IER, 0);
    uint8_t first = in8(DATA);
    out8(FCR, FCR_ENABLE | FCR_CLEAR_RX);
    uint8_t after = in8(LSR);
    out8(MCR, MCR_DTR | MCR_RTS);
    check(first == 0, "overrun-keeps-fifo", "the first byte became %02x", first);
    check((after & LSR_DR) == 0, "fifo-clear", "LSR %02x after the FIFO was cleared", after);
}

static uint8_t send_looped(uint8_t byte)
{
    wait_sent();
    out8(DATA, byte);
    wait_sent();
    return in8(IIR) & IIR_MASK;
}

/* IIR by priority: line status, data at the trigger level or after a timeout, transmitter. */
static void probe_interrupts(void)
{
    uint8_t three = 0;

    wait_sent();
    out8(FCR, FCR_ENABLE | FCR_CLEAR_RX | FCR_CLEAR_TX | FCR_TRIGGER_4);
    out8(MCR, MCR_LOOP);
    out8(IER, 0x01);
    uint8_t none = in8(IIR) & IIR_MASK;
    for (unsigned i = 0; i < 3; i++)
        three = send_looped((uint8_t)i);
    uint8_t four = send_looped(3);
    for (unsigned i = 0; i < 4; i++)
        in8(DATA);
    uint8_t drained = in8(IIR) & IIR_MASK;
    out8(IER, 0x02);
    uint8_t transmitter = in8(IIR) & IIR_MASK;
    uint8_t acknowledged = in8(IIR) & IIR_MASK;
    out8(IER, 0);
    out8(MCR, MCR_DTR | MCR_RTS);
    print_init();
    check(none == IIR_NONE, "iir-none", "%x with nothing to say", none);
    check(three == IIR_NONE || three == IIR_TIMEOUT, "iir-below-trigger", "%x with 3 of 4 bytes",
          three);
    check(four == IIR_DATA, "iir-trigger", "%x with 4 of 4 bytes", four);
    check(drained == IIR_NONE, "iir-drained", "%x after all was read", drained);
    check(transmitter == IIR_THRE, "iir-transmitter", "%x when enabled", transmitter);
    check(acknowledged == IIR_NONE, "iir-read-acknowledges", "%x at the second read",
          acknowledged);
}

static void send_string(const uint8_t *data, uint64_t length)
{
    while (length > 0) {
        uint64_t count = length < FIFO ? length : FIFO;
        while ((in8(LSR) & LSR_THRE) == 0)
            cpu_pause();
        length -= count;
        __asm__ volatile("rep outsb" : "+S"(data), "+c"(count) : "d"(DATA) : "memory");
    }
}

static void send_bytes(const uint8_t *data, uint64_t length)
{
    if (arg_present("string"))
        send_string(data, length);
    else
        print_bytes(data, length);
}

/* Up to length bytes that are there, 14 at a time where the FIFO says it has as many. */
static uint64_t take_string(uint8_t *data, uint64_t length)
{
    uint64_t count = TRIGGER;

    if (length < TRIGGER || (in8(IIR) & IIR_MASK) != IIR_DATA)
        return 0;
    __asm__ volatile("rep insb" : "+D"(data), "+c"(count) : "d"(DATA) : "memory");
    return TRIGGER;
}

/* Takes length bytes of input; false after a time with none. */
static bool take_bytes(uint8_t *data, uint64_t length)
{
    struct deadline deadline = deadline_in(LIMIT);
    bool string = arg_present("string");
    uint64_t done = 0;

    while (done < length) {
        uint64_t many = string ? take_string(data + done, length - done) : 0;
        done += many;
        if (many == 0 && (in8(LSR) & LSR_DR) != 0)
            data[done++] = in8(DATA);
        else if (many == 0 && deadline_over(&deadline))
            return false;
    }
    return true;
}

static void begin_input(void)
{
    out8(FCR, FCR_ENABLE | FCR_TRIGGER_14);
    out8(IER, arg_present("string") ? 0x01 : 0); /* IIR speaks only of what IER enables */
    out8(MCR, MCR_DTR | MCR_RTS);
}

static void count_input(uint64_t total)
{
    static uint8_t chunk[PAGE_SIZE];
    struct checksum sum = { 0 };

    begin_input();
    uint64_t begin = now_ns();
    while (sum.length < total) {
        uint64_t want = total - sum.length < sizeof(chunk) ? total - sum.length : sizeof(chunk);
        if (!take_bytes(chunk, want)) {
            not_ok("count", "input stops after about %lu bytes", sum.length);
            return;
        }
        checksum_update(&sum, chunk, want);
    }
    out8(IER, 0);
    print("cksum %u %lu\n", checksum_final(&sum), sum.length);
    cost("uart-in-byte", (now_ns() - begin) / total);
    ok("count");
}

static void echo_input(uint64_t total)
{
    static uint8_t chunk[ECHO_CHUNK];
    uint64_t done = 0;

    print("echo begin\n");
    begin_input();
    while (done < total) {
        uint64_t want = total - done < sizeof(chunk) ? total - done : sizeof(chunk);
        if (!take_bytes(chunk, want)) {
            out8(IER, 0);
            not_ok("echo", "input stops after about %lu bytes", done);
            return;
        }
        send_bytes(chunk, want);
        done += want;
    }
    out8(IER, 0);
    print("echo end\n");
    ok("echo");
}

static void send_pattern(uint64_t total)
{
    static uint8_t chunk[PAGE_SIZE];
    uint64_t done = 0;

    print("send begin\n");
    uint64_t begin = now_ns();
    while (done < total) {
        uint64_t count = total - done < sizeof(chunk) ? total - done : sizeof(chunk);
        for (uint64_t i = 0; i < count; i++)
            chunk[i] = (uint8_t)((done + i) * 7 + (done + i) / 256);
        send_bytes(chunk, count);
        done += count;
    }
    print("send end\n");
    cost("uart-out-byte", (now_ns() - begin) / total);
    ok("send");
}

static void await_break(void)
{
    struct deadline deadline = deadline_in(LIMIT);
    uint8_t state = 0;

    print("waiting for a break\n");
    while ((state & LSR_BI) == 0 && !deadline_over(&deadline))
        state = in8(LSR);
    check((state & LSR_BI) != 0 && in8(DATA) == 0, "break", "none came, or no zero with it");
}

int main(const struct boot_info *info)
{
    (void)info;
    if (arg_present("break")) {
        await_break();
        return 0;
    }
    if (arg_present("echo") || arg_present("count") || arg_present("send")) {
        if (arg_number("send", 0) > 0)
            send_pattern(arg_number("send", 0));
        if (arg_number("count", 0) > 0)
            count_input(arg_number("count", 0));
        if (arg_number("echo", 0) > 0)
            echo_input(arg_number("echo", 0));
        return 0;
    }
    probe_registers();
    probe_fifo();
    probe_modem();
    probe_loopback();
    probe_overrun();
    probe_interrupts();
    return 0;
}
