/*
 * A 16550A UART on a character stream.
 *
 * Models the registers, the receiver's FIFO and the interrupt; not the line: no baud rate, no
 * parity, and words have eight bits whatever LCR says. The transmitter's FIFO is the stream's ring:
 * a byte leaves with the write, and the transmitter is empty for as long as the ring could take a
 * FIFO of bytes more. A guest that heeds THRE loses nothing and needs no exit more than on a chip.
 *
 * The receiver is filled in bursts of a FIFO. When the guest has emptied one that was full, the next
 * comes after a rest of a quarter of the time that took it, for two reasons: an interrupt handler
 * that reads until there is no more must come to its end, and a guest that takes a long input with
 * one CPU needs some time for the program that wants it.
 *
 * Registers are entered by vCPU threads, the stream's callbacks, the timer and the call by the event
 * loop's thread; all with the device lock held.
 *
 * Text: National Semiconductor PC16550D data sheet (June 1995), §8 "Registers" and its table II.
 * Where it matters the driver of Linux, drivers/tty/serial/8250, decides between readings.
 */
#include "devices/uart16550.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/bus.h"
#include "vmm/intc.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define FIFO_BYTES 16

/* Offsets; the first two are the divisor latch while LCR_DLAB is set. */
enum {
    REG_DATA = 0, /* RBR when read, THR when written */
    REG_IER = 1,
    REG_IIR = 2, /* FCR when written */
    REG_LCR = 3,
    REG_MCR = 4,
    REG_LSR = 5,
    REG_MSR = 6,
    REG_SCR = 7,
};

#define IER_RX 0x01
#define IER_TX 0x02
#define IER_LINE 0x04
#define IER_MODEM 0x08
#define IER_ALL 0x0F

/* §8.6, table IV: in order of priority. */
#define IIR_NONE 0x01
#define IIR_LINE 0x06
#define IIR_RX 0x04
#define IIR_RX_TIMEOUT 0x0C
#define IIR_TX 0x02
#define IIR_MODEM 0x00
#define IIR_FIFOS 0xC0

#define FCR_ENABLE 0x01
#define FCR_CLEAR_RX 0x02
#define FCR_TRIGGER_SHIFT 6

#define LCR_DLAB 0x80

#define MCR_DTR 0x01
#define MCR_RTS 0x02
#define MCR_OUT1 0x04
#define MCR_OUT2 0x08
#define MCR_LOOP 0x10
#define MCR_ALL 0x1F

#define LSR_DATA 0x01
#define LSR_OVERRUN 0x02
#define LSR_FRAMING 0x08
#define LSR_BREAK 0x10
#define LSR_TX_EMPTY 0x60 /* THRE and TEMT */
#define LSR_FIFO_ERROR 0x80
#define LSR_OF_BYTE (0x04 | LSR_FRAMING | LSR_BREAK) /* what belongs to one received byte */

#define MSR_DELTAS 0x0F
#define MSR_CTS 0x10
#define MSR_DSR 0x20
#define MSR_RING 0x40
#define MSR_DCD 0x80
#define MSR_LINES_ON (MSR_CTS | MSR_DSR | MSR_DCD) /* the far end is there, and always ready */

#define DIVISOR_9600 12

#define REST_MIN_NS 50000ull
#define REST_MAX_NS 2000000ull

/* What migrates. */
struct uart_state {
    uint8_t ier, lcr, mcr, msr, scr;
    uint8_t divisor[2]; /* DLL, DLM */
    bool fifos;         /* FCR bit 0 */
    uint8_t trigger;    /* FCR bits 7:6 */
    bool overrun;
    bool tx_pending;    /* the transmitter's interrupt: empty, and the guest was not told */
    bool tx_stalled;    /* not empty: the ring is full; `writable` makes it empty */
    uint8_t rx_count;
    uint8_t rx[FIFO_BYTES];        /* oldest first */
    uint8_t rx_errors[FIFO_BYTES]; /* LSR_OF_BYTE bits of each */
};

struct uart {
    struct device dev; /* first */
    const struct device_env *env;
    struct bus_region region;
    uint32_t gsi;
    struct chardev *chardev;
    struct chardev_front front;
    struct uart_state s;
    bool line;        /* level of the interrupt line */
    bool paused;
    bool polling;     /* the guest reads LSR again and again for input */
    bool polled_once; /* the last access found LSR without input and with an empty transmitter */
    size_t accepted;  /* input that the stream may still give */
    bool resting;     /* the rest after a full FIFO is not over */
    uint64_t filled_ns, emptied_ns; /* of that FIFO */
    struct loop_call rest_call;
    struct loop_timer rest_timer;
};

#define CONTAINER(ptr, member) ((struct uart *)((char *)(ptr) - offsetof(struct uart, member)))

/* ---- interrupts ---- */

static const uint8_t triggers[4] = {1, 4, 8, 14}; /* §8.4 */

static uint8_t line_errors(const struct uart_state *s)
{
    uint8_t errors = s->overrun ? LSR_OVERRUN : 0;

    return s->rx_count > 0 ? errors | s->rx_errors[0] : errors;
}

/* The pending interrupt of the highest priority, §8.6. */
static uint8_t interrupt_cause(const struct uart_state *s)
{
    if (s->ier & IER_LINE && line_errors(s))
        return IIR_LINE;
    if (s->ier & IER_RX && s->rx_count > 0) {
        /* No line, hence no waiting for more: a FIFO below its trigger has timed out at once. */
        return s->fifos && s->rx_count < triggers[s->trigger] ? IIR_RX_TIMEOUT : IIR_RX;
    }
    if (s->ier & IER_TX && s->tx_pending)
        return IIR_TX;
    if (s->ier & IER_MODEM && s->msr & MSR_DELTAS)
        return IIR_MODEM;
    return IIR_NONE;
}

/* On a PC, OUT2 gates the chip's interrupt output to the line. */
static void update_line(struct uart *uart)
{
    bool level = uart->s.mcr & MCR_OUT2 && interrupt_cause(&uart->s) != IIR_NONE;

    if (level == uart->line)
        return;
    uart->line = level;
    intc_line(uart->env->intc, uart->gsi, level);
}

/* ---- receiver ---- */

static unsigned rx_depth(const struct uart_state *s)
{
    return s->fifos ? FIFO_BYTES : 1;
}

/* Whether the far end may send. */
static bool rx_open(const struct uart *uart)
{
    if (uart->paused || uart->s.mcr & MCR_LOOP)
        return false;
    return uart->s.mcr & MCR_RTS || uart->polling;
}

static void rx_accept(struct uart *uart)
{
    size_t room = rx_depth(&uart->s) - uart->s.rx_count;
    size_t accepted = rx_open(uart) && !uart->resting ? room : 0;

    if (accepted == uart->accepted)
        return;
    uart->accepted = accepted;
    chardev_accept(uart->chardev, accepted);
}

/* A full receiver loses the new byte, one without FIFO the old (§8.3, OE). */
static void rx_put(struct uart_state *s, uint8_t byte, uint8_t errors)
{
    if (s->rx_count == rx_depth(s)) {
        s->overrun = true;
        if (s->fifos)
            return;
        s->rx_count = 0;
    }
    s->rx[s->rx_count] = byte;
    s->rx_errors[s->rx_count] = errors;
    s->rx_count++;
}

static uint8_t rx_take(struct uart_state *s)
{
    uint8_t byte = s->rx[0];

    s->rx_count--;
    memmove(s->rx, s->rx + 1, s->rx_count);
    memmove(s->rx_errors, s->rx_errors + 1, s->rx_count);
    return byte;
}

/* The guest emptied the receiver: the next bytes, or a rest first. */
static void rx_emptied(struct uart *uart)
{
    if (uart->accepted > 0 || uart->resting || !rx_open(uart)) {
        rx_accept(uart);
        return;
    }
    uart->resting = true;
    uart->emptied_ns = loop_now_ns();
    loop_call(uart->env->loop, &uart->rest_call);
}

/* Loop's thread: timers are its own. */
static void rest_begin(struct loop_call *call)
{
    struct uart *uart = CONTAINER(call, rest_call);
    uint64_t rest;

    device_lock(uart->env);
    rest = (uart->emptied_ns - uart->filled_ns) / 4;
    if (rest < REST_MIN_NS)
        rest = REST_MIN_NS;
    if (rest > REST_MAX_NS)
        rest = REST_MAX_NS;
    loop_timer_set(uart->env->loop, &uart->rest_timer, uart->emptied_ns + rest);
    device_unlock(uart->env);
}

static void rest_end(struct loop_timer *timer)
{
    struct uart *uart = CONTAINER(timer, rest_timer);

    device_lock(uart->env);
    uart->resting = false;
    rx_accept(uart);
    device_unlock(uart->env);
}

static void front_input(struct chardev_front *front, const uint8_t *bytes, size_t n)
{
    struct uart *uart = CONTAINER(front, front);

    for (size_t i = 0; i < n; i++)
        rx_put(&uart->s, bytes[i], 0);
    uart->accepted -= n;
    if (uart->accepted == 0)
        uart->filled_ns = loop_now_ns();
    update_line(uart);
}

/* A break is received as a zero byte with its bit, §8.3 (BI); FE comes with it. */
static void front_break(struct chardev_front *front)
{
    struct uart *uart = CONTAINER(front, front);

    if (uart->paused || uart->s.mcr & MCR_LOOP)
        return;
    rx_put(&uart->s, 0, LSR_BREAK | LSR_FRAMING);
    rx_accept(uart);
    update_line(uart);
}

/* ---- transmitter ---- */

/* Looks whether the transmitter is empty, which is when its interrupt becomes pending. */
static void tx_look(struct uart *uart)
{
    bool empty = uart->s.mcr & MCR_LOOP || chardev_has_room(uart->chardev, FIFO_BYTES);

    uart->s.tx_stalled = !empty;
    uart->s.tx_pending = empty;
}

static void front_writable(struct chardev_front *front)
{
    struct uart *uart = CONTAINER(front, front);

    if (!uart->s.tx_stalled)
        return;
    tx_look(uart);
    update_line(uart);
}

static void write_data(struct uart *uart, uint8_t byte)
{
    if (uart->s.mcr & MCR_LOOP) /* §8.7: what is transmitted is received at once */
        rx_put(&uart->s, byte, 0);
    else /* one that the ring does not take was written against THRE: lost, as on the chip */
        (void)chardev_write(uart->chardev, &byte, 1);
    tx_look(uart);
}

/* ---- registers ---- */

static uint8_t read_data(struct uart *uart)
{
    uint8_t byte;

    if (uart->s.rx_count == 0)
        return 0;
    byte = rx_take(&uart->s);
    if (uart->s.rx_count == 0)
        rx_emptied(uart);
    return byte;
}

/* Reading IIR ends the transmitter's interrupt if that is what it shows, §8.6. */
static uint8_t read_iir(struct uart *uart)
{
    uint8_t cause = interrupt_cause(&uart->s);

    if (cause == IIR_TX)
        uart->s.tx_pending = false;
    return uart->s.fifos ? cause | IIR_FIFOS : cause;
}

/* Input that was held back is for a guest that polls, too: one that looks twice in a row, with
 * nothing to wait for but input. */
static void notice_polling(struct uart *uart, uint8_t lsr)
{
    bool idle = (lsr & (LSR_DATA | LSR_TX_EMPTY)) == LSR_TX_EMPTY;

    if (idle && uart->polled_once && !uart->polling) {
        uart->polling = true;
        rx_accept(uart);
    }
    uart->polled_once = idle;
}

static uint8_t read_lsr(struct uart *uart)
{
    struct uart_state *s = &uart->s;
    uint8_t lsr = line_errors(s);

    if (s->rx_count > 0)
        lsr |= LSR_DATA;
    for (unsigned i = 0; s->fifos && i < s->rx_count; i++)
        if (s->rx_errors[i])
            lsr |= LSR_FIFO_ERROR;
    if (!s->tx_stalled)
        lsr |= LSR_TX_EMPTY;
    /* §8.3: reading clears the error bits. */
    s->overrun = false;
    s->rx_errors[0] = 0;
    notice_polling(uart, lsr);
    return lsr;
}

static uint8_t read_msr(struct uart *uart)
{
    uint8_t msr = uart->s.msr;

    uart->s.msr &= (uint8_t)~MSR_DELTAS;
    return msr;
}

static uint8_t read_register(struct uart *uart, unsigned reg)
{
    struct uart_state *s = &uart->s;

    if (reg <= 1 && s->lcr & LCR_DLAB)
        return s->divisor[reg];
    switch (reg) {
    case REG_DATA:
        return read_data(uart);
    case REG_IER:
        return s->ier;
    case REG_IIR:
        return read_iir(uart);
    case REG_LCR:
        return s->lcr;
    case REG_MCR:
        return s->mcr;
    case REG_LSR:
        return read_lsr(uart);
    case REG_MSR:
        return read_msr(uart);
    default:
        return s->scr;
    }
}

/* §8.5: enabling the transmitter's interrupt while it is empty raises it, every time. Linux's
 * driver tests for that. */
static void write_ier(struct uart *uart, uint8_t value)
{
    bool tx_on = value & IER_TX && !(uart->s.ier & IER_TX);

    uart->s.ier = value & IER_ALL;
    if (tx_on)
        tx_look(uart);
}

/* §8.4. The transmitter's FIFO has always left already. */
static void write_fcr(struct uart *uart, uint8_t value)
{
    struct uart_state *s = &uart->s;
    bool enable = value & FCR_ENABLE;

    /* Without bit 0 the others are not programmed; a change of it clears. */
    if (enable != s->fifos || (enable && value & FCR_CLEAR_RX))
        s->rx_count = 0;
    s->fifos = enable;
    s->trigger = enable ? value >> FCR_TRIGGER_SHIFT : 0;
    rx_accept(uart);
}

/* The modem lines as the chip sees them: its own outputs in loopback (§8.7), else the far end's. */
static uint8_t modem_lines(uint8_t mcr)
{
    if (!(mcr & MCR_LOOP))
        return MSR_LINES_ON;
    return (mcr & MCR_RTS ? MSR_CTS : 0) | (mcr & MCR_DTR ? MSR_DSR : 0) |
           (mcr & MCR_OUT1 ? MSR_RING : 0) | (mcr & MCR_OUT2 ? MSR_DCD : 0);
}

/* §8.8: each line's change is remembered, the ring indicator's only when it ends. */
static void update_msr(struct uart_state *s)
{
    uint8_t lines = modem_lines(s->mcr);
    uint8_t changed = (lines ^ s->msr) & (uint8_t)~MSR_DELTAS;

    if (lines & MSR_RING)
        changed &= (uint8_t)~MSR_RING;
    s->msr = lines | (s->msr & MSR_DELTAS) | changed >> 4;
}

static void write_mcr(struct uart *uart, uint8_t value)
{
    struct uart_state *s = &uart->s;
    bool turned = (value ^ s->mcr) & MCR_LOOP;

    s->mcr = value & MCR_ALL;
    uart->polling = false;
    update_msr(s);
    if (turned)
        tx_look(uart);
    rx_accept(uart);
}

static void write_register(struct uart *uart, unsigned reg, uint8_t value)
{
    struct uart_state *s = &uart->s;

    if (reg <= 1 && s->lcr & LCR_DLAB) {
        s->divisor[reg] = value;
        return;
    }
    switch (reg) {
    case REG_DATA:
        write_data(uart, value);
        return;
    case REG_IER:
        write_ier(uart, value);
        return;
    case REG_IIR:
        write_fcr(uart, value);
        return;
    case REG_LCR:
        s->lcr = value;
        return;
    case REG_MCR:
        write_mcr(uart, value);
        return;
    case REG_SCR:
        s->scr = value;
        return;
    default: /* LSR and MSR: for factory tests, §8.3 */
        return;
    }
}

/* An access wider than a byte is as many in a row, as on an eight-bit bus. */
static uint64_t uart_read(void *opaque, uint64_t offset, unsigned size)
{
    struct uart *uart = opaque;
    uint64_t value = 0;

    for (unsigned i = 0; i < size; i++) {
        if (offset + i != REG_LSR)
            uart->polled_once = false;
        value |= (uint64_t)read_register(uart, (unsigned)offset + i) << (8 * i);
    }
    update_line(uart);
    return value;
}

static void uart_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct uart *uart = opaque;

    uart->polled_once = false;
    for (unsigned i = 0; i < size; i++)
        write_register(uart, (unsigned)offset + i, (uint8_t)(value >> (8 * i)));
    update_line(uart);
}

static const struct bus_ops uart_bus_ops = {.read = uart_read, .write = uart_write};

/* ---- device ---- */

static void uart_reset(struct device *dev)
{
    struct uart *uart = (struct uart *)dev;

    uart->s = (struct uart_state){
        .msr = MSR_LINES_ON,
        .divisor = {DIVISOR_9600, 0},
    };
    uart->polling = false;
    uart->polled_once = false;
    tx_look(uart);
    rx_accept(uart);
    update_line(uart);
}

static void uart_pause(struct device *dev)
{
    struct uart *uart = (struct uart *)dev;

    uart->paused = true;
    rx_accept(uart);
}

static bool uart_busy(const struct device *dev)
{
    (void)dev;
    return false;
}

static void uart_resume(struct device *dev)
{
    struct uart *uart = (struct uart *)dev;

    uart->paused = false;
    rx_accept(uart);
}

static const struct state_field uart_fields[] = {
    STATE_FIELD(STATE_U8, struct uart_state, ier),
    STATE_FIELD(STATE_U8, struct uart_state, lcr),
    STATE_FIELD(STATE_U8, struct uart_state, mcr),
    STATE_FIELD(STATE_U8, struct uart_state, msr),
    STATE_FIELD(STATE_U8, struct uart_state, scr),
    STATE_ARRAY(STATE_U8, struct uart_state, divisor),
    STATE_FIELD(STATE_BOOL, struct uart_state, fifos),
    STATE_FIELD(STATE_U8, struct uart_state, trigger),
    STATE_FIELD(STATE_BOOL, struct uart_state, overrun),
    STATE_FIELD(STATE_BOOL, struct uart_state, tx_pending),
    STATE_FIELD(STATE_BOOL, struct uart_state, tx_stalled),
    STATE_FIELD(STATE_U8, struct uart_state, rx_count),
    STATE_ARRAY(STATE_U8, struct uart_state, rx),
    STATE_ARRAY(STATE_U8, struct uart_state, rx_errors),
};
static const struct state_desc uart_desc =
    STATE_DESC("uart16550a", 1, struct uart_state, uart_fields);

static void uart_get(void *object, void *state)
{
    struct uart_state *to = state;

    *to = ((struct uart *)object)->s;
    memset(to->rx + to->rx_count, 0, FIFO_BYTES - to->rx_count);
    memset(to->rx_errors + to->rx_count, 0, FIFO_BYTES - to->rx_count);
}

static const char *uart_flaw(const struct uart_state *s)
{
    if (s->ier & ~IER_ALL || s->mcr & ~MCR_ALL || s->trigger > 3)
        return "reserved bits are set";
    if ((s->msr & (uint8_t)~MSR_DELTAS) != modem_lines(s->mcr))
        return "the modem status is not that of the lines";
    if (s->rx_count > rx_depth(s))
        return "the receiver holds more than it can";
    for (unsigned i = 0; i < FIFO_BYTES; i++)
        if (s->rx_errors[i] & ~LSR_OF_BYTE)
            return "a received byte has an error that there is not";
    return NULL;
}

static int uart_check(void *object, const void *state)
{
    const char *flaw = uart_flaw(state);

    if (!flaw)
        return 0;
    log_error("%s: %s", ((struct uart *)object)->dev.id, flaw);
    return -EINVAL;
}

/* The ring here has its own room: a transmitter that was stalled may be empty now. */
static void uart_set(void *object, const void *state)
{
    struct uart *uart = object;

    uart->s = *(const struct uart_state *)state;
    uart->polling = false;
    uart->polled_once = false;
    if (uart->s.tx_stalled)
        tx_look(uart);
    rx_accept(uart);
    update_line(uart);
}

static unsigned uart_parts(struct device *dev, struct state_part *parts)
{
    parts[0] = (struct state_part){&uart_desc, dev, uart_get, uart_check, uart_set};
    return 1;
}

static bool rest_idle(void *arg)
{
    struct uart *uart = arg;

    return !atomic_load(&uart->rest_call.queued);
}

static void uart_destroy(struct device *dev)
{
    struct uart *uart = (struct uart *)dev;

    device_lock(uart->env);
    bus_remove(uart->env->pio, &uart->region);
    chardev_attach(uart->chardev, NULL);
    device_unlock(uart->env);
    (void)loop_run_until(uart->env->loop, rest_idle, uart, 0);
    loop_timer_cancel(&uart->rest_timer);
    free(uart);
}

static const struct device_ops uart_ops = {
    .type = "uart16550a",
    .reset = uart_reset,
    .pause = uart_pause,
    .busy = uart_busy,
    .resume = uart_resume,
    .state = uart_parts,
    .destroy = uart_destroy,
};

static void uart_init(struct uart *uart, const struct device_env *env,
                      const struct uart16550_config *config)
{
    uart->dev.ops = &uart_ops;
    snprintf(uart->dev.id, sizeof(uart->dev.id), "%s", config->id);
    uart->env = env;
    uart->region =
        (struct bus_region){uart->dev.id, config->base, UART16550_PORTS, &uart_bus_ops, uart};
    uart->gsi = config->gsi;
    uart->chardev = config->chardev;
    uart->front = (struct chardev_front){
        .writable = front_writable, .input = front_input, .send_break = front_break};
    uart->rest_call.run = rest_begin;
    uart->rest_timer.expired = rest_end;
}

int uart16550_create(struct device **out, const struct device_env *env,
                     const struct uart16550_config *config)
{
    struct uart *uart = calloc(1, sizeof(*uart));
    int err;

    if (!uart)
        return -ENOMEM;
    uart_init(uart, env, config);
    device_lock(env);
    err = bus_add(env->pio, &uart->region);
    if (!err) {
        chardev_attach(uart->chardev, &uart->front);
        uart_reset(&uart->dev);
    }
    device_unlock(env);
    if (err) {
        free(uart);
        return err;
    }
    *out = &uart->dev;
    return 0;
}
