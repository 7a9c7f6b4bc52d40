/*
 * The 16550A by its registers, as a guest drives it: what Linux's 8250 driver tries to find out
 * about it, interrupts, FIFO, loopback, back-pressure both ways, state. The back end is a test's
 * memory, which takes and gives when it is told to.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "devices/chardev.h"
#include "devices/uart16550.h"
#include "tests/unit/fake_env.h"

#define BASE 0x3F8
#define GSI 4
#define PASTE (1024 * 1024)

enum { DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR, FCR = IIR, DLL = DATA, DLM = IER };

static struct fake_env fake;
static struct chardev *chardev;
static struct device *uart;

static void make_uart(void)
{
    fake_env_init(&fake, MIB);
    cr_assert_eq(chardev_memory_create(&chardev), 0);
    cr_assert_eq(uart16550_create(&uart, &fake.env,
                                  &(struct uart16550_config){.id = "com1",
                                                             .base = BASE,
                                                             .gsi = GSI,
                                                             .chardev = chardev}),
                 0);
}

static void drop_uart(void)
{
    device_destroy(uart);
    chardev_destroy(chardev);
    fake_env_fini(&fake);
}

TestSuite(uart16550, .init = make_uart, .fini = drop_uart, .timeout = 120);

static uint8_t in(unsigned reg)
{
    return (uint8_t)fake_pio_read(&fake, (uint16_t)(BASE + reg), 1);
}

static void out(unsigned reg, uint8_t value)
{
    fake_pio_write(&fake, (uint16_t)(BASE + reg), 1, value);
}

static size_t feed(const void *bytes, size_t n)
{
    size_t given;

    device_lock(&fake.env);
    given = chardev_memory_feed(chardev, bytes, n);
    device_unlock(&fake.env);
    return given;
}

static size_t take(void *bytes, size_t n)
{
    size_t taken;

    device_lock(&fake.env);
    taken = chardev_memory_take(chardev, bytes, n);
    device_unlock(&fake.env);
    return taken;
}

static void send_break(void)
{
    device_lock(&fake.env);
    chardev_memory_break(chardev);
    device_unlock(&fake.env);
}

static bool line(void)
{
    return fake.lines[GSI].level;
}

/* As Linux's driver leaves the port when it is open: FIFO trigger of 8, DTR, RTS, OUT2. */
static void open_port(uint8_t ier)
{
    out(FCR, 0x81);
    out(LCR, 0x03);
    out(MCR, 0x0B);
    out(IER, ier);
}

static uint8_t pattern(size_t i)
{
    return (uint8_t)(i * 7 + (i >> 8) * 13 + (i >> 16));
}

/* ---- what Linux's driver looks for ---- */

/* drivers/tty/serial/8250/8250_port.c, autoconfig(): IER is there and has four bits, loopback
 * turns outputs into inputs, the FIFO says 16550A. */
Test(uart16550, linux_finds_a_port_with_an_interrupt_enable_register_of_four_bits)
{
    out(IER, 0);
    cr_assert_eq(in(IER), 0x00);
    out(IER, 0xFF);
    cr_assert_eq(in(IER), 0x0F);
    out(IER, 0);
}

Test(uart16550, linux_finds_its_loopback)
{
    out(MCR, 0x1A); /* LOOP, OUT2, RTS */
    cr_assert_eq(in(MSR) & 0xF0, 0x90);
}

Test(uart16550, linux_finds_a_16550a)
{
    out(FCR, 0x01);
    cr_assert_eq(in(IIR) >> 6, 3);
}

/* autoconfig_16550a(): none of the chips that came after. */
Test(uart16550, linux_finds_nothing_newer_than_a_16550a)
{
    out(FCR, 0x01);
    out(LCR, 0x80);
    cr_assert_neq(in(IIR), 0x00, "looks like an enhanced feature register");
    out(LCR, 0xBF);
    cr_assert_neq(in(IIR), 0x00, "looks like an enhanced feature register");
    out(LCR, 0x00);
    out(FCR, 0x21);
    cr_assert_eq(in(IIR) >> 5, 6, "looks like a 16750");
    out(LCR, 0x80);
    out(FCR, 0x21);
    cr_assert_eq(in(IIR) >> 5, 6, "looks like a 16750");
    out(LCR, 0x00);
    out(IER, 0x40);
    cr_assert_eq(in(IER), 0x00, "looks like an XScale's");
}

/* The bank switch of a National SuperIO would show the loopback bit at IIR's place. */
Test(uart16550, linux_finds_no_second_bank)
{
    out(FCR, 0x01);
    out(LCR, 0xE0);
    cr_assert_eq(in(IIR) & 0x10, 0x00);
    out(LCR, 0x00);
    out(MCR, 0x10);
    out(LCR, 0xE0);
    cr_assert_eq(in(IIR) & 0x10, 0x00);
}

/* size_fifo() */
Test(uart16550, linux_counts_sixteen_bytes_in_the_fifo)
{
    unsigned count = 0;

    out(FCR, 0x07);
    out(MCR, 0x10);
    for (unsigned i = 0; i < 256; i++)
        out(DATA, (uint8_t)i);
    while (in(LSR) & 0x01) {
        cr_assert_eq(in(DATA), count);
        count++;
    }
    cr_assert_eq(count, 16);
}

/* serial8250_do_startup(): the safety check, then whether THRE's interrupt comes again each time it
 * is enabled (else UART_BUG_THRE), then whether it comes at all (else UART_BUG_TXEN). */
Test(uart16550, linux_engages_none_of_its_workarounds)
{
    cr_assert_neq(in(LSR), 0xFF);
    for (int i = 0; i < 2; i++) {
        out(IER, 0x02);
        cr_assert_eq(in(IIR) & 0x0F, 0x02);
        out(IER, 0x00);
    }
    out(IER, 0x02);
    cr_assert_eq(in(LSR) & 0x40, 0x40);
    cr_assert_eq(in(IIR) & 0x01, 0x00);
    out(IER, 0x00);
}

/* ---- registers ---- */

Test(uart16550, a_divisor_that_was_never_set_is_not_zero)
{
    out(LCR, 0x80);
    cr_assert_neq(in(DLL) | in(DLM) << 8, 0);
}

Test(uart16550, the_divisor_is_behind_dlab_and_does_not_touch_data_and_ier)
{
    char byte;

    out(IER, 0x05);
    out(LCR, 0x83);
    out(DLL, 0x34);
    out(DLM, 0x12);
    cr_assert_eq(in(DLL), 0x34);
    cr_assert_eq(in(DLM), 0x12);
    out(LCR, 0x03);
    cr_assert_eq(in(IER), 0x05);
    cr_assert_eq(take(&byte, 1), 0);
}

Test(uart16550, lcr_and_scratch_keep_all_bits_and_mcr_five)
{
    out(LCR, 0x7F);
    out(SCR, 0xA5);
    out(MCR, 0xFF);
    cr_assert_eq(in(LCR), 0x7F);
    cr_assert_eq(in(SCR), 0xA5);
    cr_assert_eq(in(MCR), 0x1F);
}

Test(uart16550, line_and_modem_status_cannot_be_written)
{
    uint8_t lsr = in(LSR), msr = in(MSR);

    out(LSR, 0xFF);
    out(MSR, 0xFF);
    cr_assert_eq(in(LSR), lsr);
    cr_assert_eq(in(MSR), msr);
}

Test(uart16550, an_access_of_two_bytes_is_two_registers)
{
    fake_pio_write(&fake, BASE + LCR, 2, 0x0B03);
    cr_assert_eq(in(LCR), 0x03);
    cr_assert_eq(in(MCR), 0x0B);
    cr_assert_eq(fake_pio_read(&fake, BASE + LCR, 2), 0x0B03);
}

Test(uart16550, without_fifos_the_other_bits_of_fcr_do_nothing)
{
    out(MCR, 0x10);
    out(DATA, 'a');
    out(FCR, 0xC2);
    cr_assert_eq(in(IIR) & 0xC0, 0x00);
    cr_assert_eq(in(LSR) & 0x01, 0x01);
}

Test(uart16550, switching_the_fifos_on_or_off_empties_them)
{
    out(MCR, 0x10);
    out(DATA, 'a');
    out(FCR, 0x01);
    cr_assert_eq(in(LSR) & 0x01, 0x00);
    out(DATA, 'b');
    out(FCR, 0x01);
    cr_assert_eq(in(LSR) & 0x01, 0x01);
    out(FCR, 0x00);
    cr_assert_eq(in(LSR) & 0x01, 0x00);
}

Test(uart16550, reset_brings_back_the_first_state)
{
    open_port(0x0F);
    out(SCR, 0x77);
    cr_assert_eq(feed("abc", 3), 3);
    cr_assert(line());
    device_lock(&fake.env);
    device_reset(uart);
    device_unlock(&fake.env);
    cr_assert_not(line());
    cr_assert_eq(in(IER), 0x00);
    cr_assert_eq(in(LCR), 0x00);
    cr_assert_eq(in(MCR), 0x00);
    cr_assert_eq(in(SCR), 0x00);
    cr_assert_eq(in(IIR), 0x01);
    cr_assert_eq(in(LSR), 0x60);
    cr_assert_eq(in(MSR), 0xB0);
    cr_assert_eq(feed("abc", 3), 0);
}

/* ---- loopback ---- */

Test(uart16550, loopback_returns_data_and_sends_none)
{
    char byte;

    out(FCR, 0x01);
    out(MCR, 0x10);
    out(DATA, 'x');
    out(DATA, 'y');
    cr_assert_eq(in(DATA), 'x');
    cr_assert_eq(in(DATA), 'y');
    cr_assert_eq(in(LSR) & 0x01, 0x00);
    cr_assert_eq(take(&byte, 1), 0);
}

Test(uart16550, loopback_maps_each_output_to_its_input)
{
    static const struct {
        uint8_t mcr, msr;
    } pairs[] = {{0x11, 0x20}, {0x12, 0x10}, {0x14, 0x40}, {0x18, 0x80}, {0x10, 0x00}};

    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        out(MCR, pairs[i].mcr);
        cr_assert_eq(in(MSR) & 0xF0, pairs[i].msr);
    }
}

Test(uart16550, modem_changes_are_remembered_until_read_and_ring_counts_when_it_ends)
{
    out(MCR, 0x10); /* the far end's lines go: CTS, DSR, DCD change */
    cr_assert_eq(in(MSR), 0x0B);
    cr_assert_eq(in(MSR), 0x00);
    out(MCR, 0x14);
    cr_assert_eq(in(MSR), 0x40);
    out(MCR, 0x10);
    cr_assert_eq(in(MSR), 0x04);
    out(MCR, 0x12);
    out(MCR, 0x10);
    cr_assert_eq(in(MSR), 0x01);
}

Test(uart16550, in_loopback_the_far_end_is_not_heard)
{
    open_port(0x00);
    out(MCR, 0x1B);
    cr_assert_eq(feed("abc", 3), 0);
    send_break();
    cr_assert_eq(in(LSR) & 0x01, 0x00);
    out(MCR, 0x0B);
    cr_assert_eq(feed("abc", 3), 3);
}

Test(uart16550, a_full_fifo_loses_the_newest_byte_and_reports_an_overrun_once)
{
    out(FCR, 0x01);
    out(MCR, 0x10);
    for (int i = 0; i < 17; i++)
        out(DATA, (uint8_t)i);
    cr_assert_eq(in(LSR) & 0x03, 0x03);
    cr_assert_eq(in(LSR) & 0x03, 0x01);
    for (int i = 0; i < 16; i++)
        cr_assert_eq(in(DATA), i);
    cr_assert_eq(in(LSR) & 0x01, 0x00);
}

Test(uart16550, without_fifo_the_newest_byte_replaces_the_older)
{
    out(MCR, 0x10);
    out(DATA, 'a');
    out(DATA, 'b');
    cr_assert_eq(in(LSR) & 0x03, 0x03);
    cr_assert_eq(in(DATA), 'b');
    cr_assert_eq(in(LSR) & 0x03, 0x00);
}

/* ---- interrupts ---- */

Test(uart16550, without_out2_no_interrupt_leaves_the_chip)
{
    open_port(0x01);
    out(MCR, 0x03);
    cr_assert_eq(feed("a", 1), 1);
    cr_assert_eq(in(IIR) & 0x01, 0x00);
    cr_assert_not(line());
    out(MCR, 0x0B);
    cr_assert(line());
}

Test(uart16550, causes_come_in_order_of_priority)
{
    open_port(0x0F);
    out(MCR, 0x10);
    out(MCR, 0x0B); /* modem lines changed */
    cr_assert_eq(feed("12345678", 8), 8);
    send_break();
    for (int i = 0; i < 8; i++) /* the break's error shows when its byte is on top */
        in(DATA);
    cr_assert_eq(in(IIR) & 0x0F, 0x06);
    cr_assert_eq(in(LSR) & 0x1F, 0x19);
    cr_assert_eq(in(IIR) & 0x0F, 0x0C);
    cr_assert_eq(in(DATA), 0x00);
    cr_assert_eq(in(IIR) & 0x0F, 0x02);
    cr_assert_eq(in(IIR) & 0x0F, 0x00);
    in(MSR);
    cr_assert_eq(in(IIR) & 0x0F, 0x01);
    cr_assert_not(line());
}

Test(uart16550, each_trigger_level_makes_a_timeout_into_received_data)
{
    static const unsigned levels[4] = {1, 4, 8, 14};

    for (unsigned i = 0; i < 4; i++) {
        open_port(0x01);
        out(FCR, (uint8_t)(i << 6 | 0x03));
        for (unsigned n = 1; n <= 16; n++) {
            cr_assert_eq(feed("x", 1), 1);
            cr_assert_eq(in(IIR), n < levels[i] ? 0xCC : 0xC4, "level %u, byte %u", levels[i], n);
            cr_assert(line());
        }
    }
}

Test(uart16550, received_data_interrupts_until_the_last_byte_is_read)
{
    open_port(0x01);
    cr_assert_eq(feed("ab", 2), 2);
    cr_assert(line());
    in(DATA);
    cr_assert(line());
    in(DATA);
    cr_assert_not(line());
    cr_assert_eq(in(IIR), 0xC1);
}

Test(uart16550, an_empty_transmitter_interrupts_once_for_each_byte_and_each_enabling)
{
    open_port(0x02);
    cr_assert(line());
    cr_assert_eq(in(IIR), 0xC2);
    cr_assert_not(line());
    cr_assert_eq(in(IIR), 0xC1);
    out(DATA, 'a');
    cr_assert(line());
    cr_assert_eq(in(IIR), 0xC2);
    out(IER, 0x02);
    cr_assert_not(line());
    out(IER, 0x00);
    out(IER, 0x02);
    cr_assert(line());
}

Test(uart16550, reading_a_cause_of_higher_priority_leaves_the_transmitters_pending)
{
    open_port(0x03);
    cr_assert_eq(feed("a", 1), 1);
    cr_assert_eq(in(IIR) & 0x0F, 0x0C);
    in(DATA);
    cr_assert_eq(in(IIR) & 0x0F, 0x02);
}

Test(uart16550, a_break_is_a_zero_byte_with_its_bit)
{
    open_port(0x04);
    send_break();
    cr_assert(line());
    cr_assert_eq(in(IIR), 0xC6);
    cr_assert_eq(in(LSR), 0xF9); /* FIFO error, empty transmitter, BI, FE, data */
    cr_assert_not(line());
    cr_assert_eq(in(LSR), 0x61);
    cr_assert_eq(in(DATA), 0x00);
}

Test(uart16550, an_error_below_the_top_of_the_fifo_shows_in_bit_seven_alone)
{
    open_port(0x00);
    cr_assert_eq(feed("a", 1), 1);
    send_break();
    cr_assert_eq(in(LSR), 0xE1);
    in(DATA);
    cr_assert_eq(in(LSR), 0xF9);
}

/* ---- sending ---- */

Test(uart16550, output_leaves_with_the_write)
{
    char text[8] = {0};

    out(DATA, 'o');
    out(DATA, 'k');
    cr_assert_eq(take(text, sizeof(text)), 2);
    cr_assert_str_eq(text, "ok");
    cr_assert_eq(in(LSR), 0x60);
}

/* Fills the ring as a guest does that heeds THRE; returns how many bytes that took. */
static size_t fill_ring(size_t from)
{
    size_t n = 0;

    while (in(LSR) & 0x20)
        for (int i = 0; i < 16; i++)
            out(DATA, pattern(from + n++));
    return n;
}

Test(uart16550, a_full_ring_withholds_thre_and_its_interrupt_until_there_is_room)
{
    uint8_t *bytes = malloc(CHARDEV_RING_BYTES);

    open_port(0x02);
    cr_assert_eq(fill_ring(0), CHARDEV_RING_BYTES);
    cr_assert_eq(in(LSR), 0x00);
    cr_assert_eq(in(IIR), 0xC1);
    out(IER, 0x00);
    out(IER, 0x02);
    cr_assert_not(line());
    cr_assert_eq(take(bytes, 100), 100);
    cr_assert_not(line());
    cr_assert_eq(take(bytes, CHARDEV_RING_BYTES / 2), CHARDEV_RING_BYTES / 2);
    cr_assert(line());
    cr_assert_eq(in(IIR), 0xC2);
    cr_assert_eq(in(LSR), 0x60);
    free(bytes);
}

Test(uart16550, a_guest_that_ignores_thre_loses_bytes_and_nothing_else)
{
    uint8_t *bytes = malloc(CHARDEV_RING_BYTES);

    open_port(0x00);
    for (size_t i = 0; i < CHARDEV_RING_BYTES + 100; i++)
        out(DATA, pattern(i));
    cr_assert_eq(take(bytes, CHARDEV_RING_BYTES), CHARDEV_RING_BYTES);
    for (size_t i = 0; i < CHARDEV_RING_BYTES; i++)
        cr_assert_eq(bytes[i], pattern(i));
    cr_assert_eq(in(LSR), 0x60);
    out(DATA, 'z');
    cr_assert_eq(take(bytes, 2), 1);
    cr_assert_eq(bytes[0], 'z');
    free(bytes);
}

Test(uart16550, a_megabyte_goes_out_whole_through_a_slow_back_end)
{
    uint8_t *bytes = malloc(CHARDEV_RING_BYTES);
    size_t sent = 0, got = 0;

    open_port(0x00);
    while (got < PASTE) {
        size_t n;

        if (sent < PASTE)
            sent += fill_ring(sent);
        n = take(bytes, 40000);
        cr_assert_gt(n, 0);
        for (size_t i = 0; i < n; i++)
            cr_assert_eq(bytes[i], pattern(got + i));
        got += n;
    }
    free(bytes);
}

/* ---- receiving ---- */

Test(uart16550, input_waits_for_rts)
{
    out(FCR, 0x01);
    out(IER, 0x01);
    out(MCR, 0x09); /* DTR, OUT2 */
    cr_assert_eq(feed("abc", 3), 0);
    out(MCR, 0x0B);
    cr_assert_eq(feed("abc", 3), 3);
    out(MCR, 0x09);
    cr_assert_eq(feed("def", 3), 0);
    cr_assert_eq(in(DATA), 'a');
}

Test(uart16550, a_guest_that_polls_needs_no_rts)
{
    out(FCR, 0x01);
    in(LSR);
    cr_assert_eq(feed("abc", 3), 0);
    in(LSR);
    cr_assert_eq(feed("abc", 3), 3);
    cr_assert_eq(in(LSR) & 0x01, 0x01);
}

Test(uart16550, a_guest_that_sends_bytes_and_looks_between_does_not_poll)
{
    out(FCR, 0x01);
    for (int i = 0; i < 10; i++) {
        in(LSR);
        out(DATA, 'x');
    }
    cr_assert_eq(feed("abc", 3), 0);
}

Test(uart16550, a_guest_that_looks_at_other_registers_between_does_not_poll)
{
    for (int i = 0; i < 10; i++) {
        in(LSR);
        in(IIR);
    }
    cr_assert_eq(feed("abc", 3), 0);
}

Test(uart16550, the_fifo_takes_sixteen_bytes_and_the_receiver_without_it_one)
{
    open_port(0x00);
    cr_assert_eq(feed("0123456789abcdefghij", 20), 16);
    out(FCR, 0x00);
    cr_assert_eq(feed("0123456789abcdefghij", 20), 1);
    cr_assert_eq(in(DATA), '0');
}

Test(uart16550, clearing_the_fifo_makes_room)
{
    open_port(0x00);
    cr_assert_eq(feed("0123456789abcdef", 16), 16);
    out(FCR, 0x83);
    cr_assert_eq(in(LSR) & 0x01, 0x00);
    cr_assert_eq(feed("0123456789abcdef", 16), 16);
}

static bool accepts(void *arg)
{
    return feed(arg, 1) == 1;
}

Test(uart16550, after_a_full_fifo_the_next_burst_comes_later_and_with_an_edge_of_its_own)
{
    open_port(0x01);
    cr_assert_eq(feed("0123456789abcdef", 16), 16);
    for (int i = 0; i < 16; i++)
        in(DATA);
    cr_assert_not(line());
    cr_assert_eq(feed("g", 1), 0);
    out(MCR, 0x0B);
    out(FCR, 0x83);
    cr_assert_eq(feed("g", 1), 0);
    fake_env_wait(&fake, accepts, "g");
    cr_assert_eq(in(DATA), 'g');
    cr_assert_eq(fake.lines[GSI].rises, 2);
}

Test(uart16550, what_does_not_fill_the_fifo_is_followed_at_once)
{
    open_port(0x01);
    for (int i = 0; i < 100; i++) {
        cr_assert_eq(feed("k", 1), 1);
        cr_assert_eq(in(DATA), 'k');
    }
}

struct paste {
    const uint8_t *bytes;
    size_t given;
};

static bool give(void *arg)
{
    struct paste *paste = arg;
    size_t n = feed(paste->bytes + paste->given, PASTE - paste->given);

    paste->given += n;
    return n > 0;
}

Test(uart16550, a_megabyte_comes_in_whole_by_interrupts)
{
    struct paste paste = {.given = 0};
    uint8_t *bytes = malloc(PASTE);
    size_t got = 0;

    for (size_t i = 0; i < PASTE; i++)
        bytes[i] = pattern(i);
    paste.bytes = bytes;
    open_port(0x05);
    while (got < PASTE) {
        fake_env_wait(&fake, give, &paste);
        cr_assert(line());
        while (!(in(IIR) & 0x01)) { /* as Linux's handler: until no cause is left */
            cr_assert_eq(in(LSR) & 0x9E, 0x00);
            while (in(LSR) & 0x01)
                cr_assert_eq(in(DATA), pattern(got++));
        }
        cr_assert_not(line());
    }
    cr_assert_eq(got, PASTE);
    free(bytes);
}

Test(uart16550, a_paused_port_takes_nothing_and_a_resumed_one_goes_on)
{
    open_port(0x01);
    device_lock(&fake.env);
    device_pause(uart);
    device_unlock(&fake.env);
    cr_assert_eq(feed("a", 1), 0);
    send_break();
    cr_assert_not(line());
    device_lock(&fake.env);
    cr_assert_not(device_busy(uart));
    device_resume(uart);
    device_unlock(&fake.env);
    cr_assert_eq(feed("a", 1), 1);
}

/* ---- state ---- */

static void pause_port(void)
{
    device_lock(&fake.env);
    device_pause(uart);
    device_unlock(&fake.env);
}

static void resume_port(void)
{
    device_lock(&fake.env);
    device_resume(uart);
    device_unlock(&fake.env);
}

static void reset_port(void)
{
    device_lock(&fake.env);
    device_reset(uart);
    device_unlock(&fake.env);
}

Test(uart16550, state_comes_back_with_registers_fifo_and_interrupt)
{
    struct state_buffer saved = {0}, again = {0};

    open_port(0x0D);
    out(SCR, 0x5A);
    out(LCR, 0x83);
    out(DLL, 0x01);
    out(LCR, 0x03);
    cr_assert_eq(feed("hello", 5), 5);
    send_break();
    pause_port();
    fake_save(&fake, uart, &saved);
    reset_port();
    cr_assert_not(line());
    cr_assert_eq(fake_load(&fake, uart, &saved), 0);
    cr_assert(line());
    fake_save(&fake, uart, &again);
    cr_assert_eq(saved.length, again.length);
    cr_assert_eq(memcmp(saved.data, again.data, saved.length), 0);
    resume_port();
    cr_assert_eq(in(IER), 0x0D);
    cr_assert_eq(in(MCR), 0x0B);
    cr_assert_eq(in(SCR), 0x5A);
    cr_assert_eq(in(IIR), 0xCC);
    for (int i = 0; i < 5; i++)
        cr_assert_eq(in(DATA), "hello"[i]);
    cr_assert_eq(in(LSR), 0xF9);
    in(DATA);
    out(LCR, 0x80);
    cr_assert_eq(in(DLL), 0x01);
    out(LCR, 0x03);
    cr_assert_eq(feed("0123456789abcdefg", 17), 16);
    state_buffer_fini(&saved);
    state_buffer_fini(&again);
}

Test(uart16550, a_transmitter_that_was_stalled_goes_on_where_there_is_room)
{
    struct state_buffer saved = {0};
    uint8_t *bytes = malloc(CHARDEV_RING_BYTES);

    open_port(0x02);
    fill_ring(0);
    cr_assert_not(line());
    pause_port();
    fake_save(&fake, uart, &saved);
    reset_port();
    take(bytes, CHARDEV_RING_BYTES);
    cr_assert_eq(fake_load(&fake, uart, &saved), 0);
    resume_port();
    cr_assert(line());
    cr_assert_eq(in(LSR), 0x60);
    state_buffer_fini(&saved);
    free(bytes);
}

/* The record's payload in the order of its table: ier lcr mcr msr scr dll dlm fifos trigger overrun
 * tx_pending tx_stalled rx_count rx[16] rx_errors[16]. */
#define PAYLOAD_BYTES (13 + 32)
enum { AT_IER = 0, AT_MCR = 2, AT_MSR = 3, AT_FIFOS = 7, AT_TRIGGER = 8, AT_COUNT = 12 };

static int load_changed(unsigned at, uint8_t value)
{
    struct state_buffer saved = {0};
    int result;

    open_port(0x01);
    pause_port();
    fake_save(&fake, uart, &saved);
    saved.data[saved.length - PAYLOAD_BYTES + at] = value;
    result = fake_load(&fake, uart, &saved);
    state_buffer_fini(&saved);
    return result;
}

Test(uart16550, state_with_what_cannot_be_is_refused_and_changes_nothing)
{
    cr_assert_eq(load_changed(AT_IER, 0x05), 0);
    cr_assert_eq(in(IER), 0x05);
    cr_assert_eq(load_changed(AT_IER, 0x11), -EINVAL);
    cr_assert_eq(load_changed(AT_MCR, 0x2B), -EINVAL);
    cr_assert_eq(load_changed(AT_MSR, 0xF0), -EINVAL);
    cr_assert_eq(load_changed(AT_TRIGGER, 4), -EINVAL);
    cr_assert_eq(load_changed(AT_COUNT, 17), -EINVAL);
    cr_assert_eq(load_changed(AT_FIFOS, 2), -EBADMSG);
    cr_assert_eq(load_changed(PAYLOAD_BYTES - 1, 0x20), -EINVAL);
    cr_assert_eq(in(IER), 0x01);
    cr_assert_eq(in(LSR), 0x60);
}

Test(uart16550, a_receiver_without_fifo_with_two_bytes_is_refused)
{
    struct state_buffer saved = {0};

    pause_port();
    fake_save(&fake, uart, &saved);
    saved.data[saved.length - PAYLOAD_BYTES + AT_COUNT] = 2;
    cr_assert_eq(fake_load(&fake, uart, &saved), -EINVAL);
    state_buffer_fini(&saved);
}

Test(uart16550, ports_that_are_taken_are_refused)
{
    struct device *second = NULL;
    struct chardev *nothing;

    cr_assert_eq(chardev_null_create(&nothing), 0);
    cr_assert_eq(uart16550_create(&second, &fake.env,
                                  &(struct uart16550_config){.id = "com2",
                                                             .base = BASE + 4,
                                                             .gsi = 3,
                                                             .chardev = nothing}),
                 -EEXIST);
    cr_assert_null(second);
    chardev_destroy(nothing);
}
