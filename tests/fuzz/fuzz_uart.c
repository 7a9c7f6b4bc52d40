/*
 * The UART driven by any sequence of register accesses, input, output, breaks, pauses, resets and
 * state carried over, beside a model that knows only this much: what the plain registers hold, which
 * bytes must leave, and that what comes in can be read in its order.
 *
 * Each operation is three bytes of the input: what, and two arguments.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "devices/chardev.h"
#include "devices/uart16550.h"
#include "tests/fuzz/fuzz.h"
#include "vmm/bus.h"
#include "vmm/device.h"
#include "vmm/intc.h"
#include "vmm/util/log.h"
#include "vmm/util/loop.h"

#define BASE 0x3F8
#define GSI 4
/* What takes long is done a few times an input. */
#define LOOP_RUNS 2
#define FLOODS 2

enum { DATA, IER, FCR, LCR, MCR, LSR, MSR, SCR };

struct model {
    uint8_t ier, lcr, mcr;
    uint8_t sent[CHARDEV_RING_BYTES]; /* a ring of what must leave */
    size_t start, used;
};

static struct {
    struct device_env env;
    struct intc intc;
    pthread_mutex_t lock;
    bool line;
} machine;

static struct chardev *chardev;
static struct device *uart;
static struct model model;
static unsigned loop_runs, floods;

static void drop_line(enum log_level level, const char *line)
{
    (void)level;
    (void)line;
}

static void set_line(struct intc *intc, uint32_t gsi, bool level)
{
    (void)intc;
    FUZZ_CHECK(gsi == GSI);
    machine.line = level;
}

static const struct intc_ops intc_ops = {.line = set_line};

static void set_up(void)
{
    if (machine.env.loop)
        return;
    log_set_sink(drop_line);
    machine.intc.ops = &intc_ops;
    pthread_mutex_init(&machine.lock, NULL);
    machine.env.intc = &machine.intc;
    machine.env.lock = &machine.lock;
    FUZZ_CHECK(bus_create(&machine.env.pio, "pio") == 0);
    FUZZ_CHECK(loop_create(&machine.env.loop, 8) == 0);
}

static void begin(void)
{
    struct uart16550_config config = {.id = "com1", .base = BASE, .gsi = GSI};

    machine.line = false;
    memset(&model, 0, sizeof(model));
    loop_runs = 0;
    floods = 0;
    FUZZ_CHECK(chardev_memory_create(&chardev) == 0);
    config.chardev = chardev;
    FUZZ_CHECK(uart16550_create(&uart, &machine.env, &config) == 0);
    device_lock(&machine.env);
}

static void finish(void)
{
    device_unlock(&machine.env);
    device_destroy(uart);
    chardev_destroy(chardev);
}

/* ---- what must be ---- */

static void check_line(void)
{
    if (!(model.mcr & 0x08) || model.ier == 0)
        FUZZ_CHECK(!machine.line);
}

static void model_send(uint8_t byte)
{
    if (model.used == CHARDEV_RING_BYTES)
        return;
    model.sent[(model.start + model.used) % CHARDEV_RING_BYTES] = byte;
    model.used++;
}

static void model_write(unsigned reg, uint8_t value)
{
    if (reg == DATA && !(model.lcr & 0x80) && !(model.mcr & 0x10))
        model_send(value);
    else if (reg == IER && !(model.lcr & 0x80))
        model.ier = value & 0x0F;
    else if (reg == LCR)
        model.lcr = value;
    else if (reg == MCR)
        model.mcr = value & 0x1F;
}

/* ---- operations ---- */

static void write_registers(unsigned reg, unsigned size, uint8_t value)
{
    if (reg + size > UART16550_PORTS)
        return;
    bus_write(machine.env.pio, BASE + reg, size, value * 0x0101010101010101ull);
    for (unsigned i = 0; i < size; i++)
        model_write(reg + i, value);
}

static void read_registers(unsigned reg, unsigned size)
{
    uint64_t value;

    if (reg + size > UART16550_PORTS)
        return;
    value = bus_read(machine.env.pio, BASE + reg, size);
    for (unsigned i = 0; i < size; i++, value >>= 8) {
        if (reg + i == LCR)
            FUZZ_CHECK((uint8_t)value == model.lcr);
        else if (reg + i == MCR)
            FUZZ_CHECK((uint8_t)value == model.mcr);
        else if (reg + i == IER && !(model.lcr & 0x80))
            FUZZ_CHECK((uint8_t)value == model.ier);
    }
}

static void take_output(size_t n)
{
    uint8_t bytes[CHARDEV_RING_BYTES];
    size_t taken = chardev_memory_take(chardev, bytes, n);

    FUZZ_CHECK(taken == (n < model.used ? n : model.used));
    for (size_t i = 0; i < taken; i++)
        FUZZ_CHECK(bytes[i] == model.sent[(model.start + i) % CHARDEV_RING_BYTES]);
    model.start = (model.start + taken) % CHARDEV_RING_BYTES;
    model.used -= taken;
}

/* As many bytes as the ring holds, to reach what happens when it is full. */
static void flood(unsigned count)
{
    if (count > 16 && floods++ >= FLOODS)
        return;
    for (unsigned i = 0; i < count; i++)
        write_registers(DATA, 1, (uint8_t)(i * 31));
}

static void feed(uint8_t seed, size_t n)
{
    uint8_t bytes[32];
    size_t given;

    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(seed + i);
    given = chardev_memory_feed(chardev, bytes, n);
    FUZZ_CHECK(given <= n && given <= 16);
    FUZZ_CHECK(given == 0 || !(model.mcr & 0x10));
}

/* With RTS on and outside loopback, what is fed into an empty receiver is what is read. */
static void echo(uint8_t seed)
{
    uint8_t bytes[16];
    size_t given;

    if (model.lcr & 0x80 || model.mcr & 0x10 || bus_read(machine.env.pio, BASE + LSR, 1) & 0x01)
        return;
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(seed ^ i);
    given = chardev_memory_feed(chardev, bytes, sizeof(bytes));
    for (size_t i = 0; i < given; i++) {
        FUZZ_CHECK(bus_read(machine.env.pio, BASE + LSR, 1) & 0x01);
        FUZZ_CHECK(bus_read(machine.env.pio, BASE + DATA, 1) == bytes[i]);
    }
    FUZZ_CHECK(!(bus_read(machine.env.pio, BASE + LSR, 1) & 0x01));
}

static bool never(void *arg)
{
    (void)arg;
    return false;
}

static void run_loop(void)
{
    if (loop_runs++ >= LOOP_RUNS)
        return;
    device_unlock(&machine.env);
    (void)loop_run_until(machine.env.loop, never, NULL, 100000);
    device_lock(&machine.env);
}

static void save_and_load(struct state_buffer *saved)
{
    struct state_reader in;

    FUZZ_CHECK(device_save(uart, saved) == 0);
    in = (struct state_reader){.data = saved->data, .length = saved->length};
    FUZZ_CHECK(device_load(uart, &in) == 0);
    FUZZ_CHECK(in.at == saved->length);
}

/* Out and in again. The first time may let a stalled transmitter go on; the second changes
 * nothing. */
static void carry_over(void)
{
    struct state_buffer first = {0}, second = {0}, third = {0};
    bool line;

    device_pause(uart);
    save_and_load(&first);
    line = machine.line;
    save_and_load(&second);
    FUZZ_CHECK(machine.line == line);
    FUZZ_CHECK(device_save(uart, &third) == 0);
    FUZZ_CHECK(second.length == third.length);
    FUZZ_CHECK(memcmp(second.data, third.data, second.length) == 0);
    device_resume(uart);
    state_buffer_fini(&first);
    state_buffer_fini(&second);
    state_buffer_fini(&third);
}

/* State with a byte changed: taken over or refused, and then the device goes on all the same. */
static void carry_rubbish(uint8_t at, uint8_t value)
{
    struct state_buffer saved = {0};
    struct state_reader in;

    device_pause(uart);
    FUZZ_CHECK(device_save(uart, &saved) == 0);
    saved.data[saved.length - 1 - at % saved.length] = value;
    in = (struct state_reader){.data = saved.data, .length = saved.length};
    if (device_load(uart, &in) == 0) {
        bus_write(machine.env.pio, BASE + LCR, 1, model.lcr & 0x7F);
        model.lcr &= 0x7F;
        model.ier = (uint8_t)bus_read(machine.env.pio, BASE + IER, 1);
        model.mcr = (uint8_t)bus_read(machine.env.pio, BASE + MCR, 1);
    }
    device_resume(uart);
    state_buffer_fini(&saved);
}

static void reset(void)
{
    device_reset(uart);
    model.ier = 0;
    model.lcr = 0;
    model.mcr = 0;
    FUZZ_CHECK(!machine.line);
}

static void operate(uint8_t what, uint8_t argument, uint8_t extra)
{
    static const unsigned sizes[4] = {1, 1, 2, 4};
    unsigned reg = what & 7, size = sizes[what >> 3 & 3];

    switch (what >> 5) {
    case 0:
    case 1:
        write_registers(reg, size, argument);
        break;
    case 2:
    case 3:
        read_registers(reg, size);
        break;
    case 4:
        feed(argument, what & 31);
        break;
    case 5:
        take_output((size_t)argument << (what & 15) & (CHARDEV_RING_BYTES - 1));
        break;
    case 6:
        echo(argument);
        break;
    default:
        switch (what & 7) {
        case 0:
            chardev_memory_break(chardev);
            break;
        case 1:
            run_loop();
            break;
        case 2:
            carry_over();
            break;
        case 3:
            carry_rubbish(argument, extra);
            break;
        case 4:
            reset();
            break;
        case 5:
            flood((unsigned)argument << 8);
            break;
        default:
            flood(16);
            break;
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    set_up();
    begin();
    for (size_t i = 0; i + 2 < size && i < 3 * 512; i += 3) {
        operate(data[i], data[i + 1], data[i + 2]);
        check_line();
    }
    take_output(CHARDEV_RING_BYTES);
    FUZZ_CHECK(model.used == 0);
    finish();
    return 0;
}
