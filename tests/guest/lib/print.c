/*
 * Text on COM1, polled.
 *
 * Sends what fits the transmit FIFO for each time the line status says that it is empty. Does not
 * use interrupts and gives up on a UART that never empties only when the run's deadline ends it.
 * Thread: one processor at a time. Text: PC16550D data sheet, 8.4 (FCR), 8.5 (LSR).
 */
#include "print.h"

#include <stdbool.h>

#include "io.h"

#define UART_DATA 0
#define UART_FCR  2
#define UART_LSR  5
#define LSR_THRE  0x20
#define FIFO_SIZE 16

static unsigned fifo_room;
static unsigned fifo_size = 1;

void print_init(void)
{
    out8(COM1 + UART_FCR, 0x01);
    fifo_size = FIFO_SIZE;
    fifo_room = 0;
}

static void uart_put(char c)
{
    if (fifo_room == 0) {
        while ((in8(COM1 + UART_LSR) & LSR_THRE) == 0)
            cpu_pause();
        fifo_room = fifo_size;
    }
    fifo_room--;
    out8(COM1 + UART_DATA, (uint8_t)c);
}

static void (*print_sink)(char c) = uart_put;

void print_set_sink(void (*sink)(char c))
{
    print_sink = sink;
}

static void put(char c)
{
    print_sink(c);
}

void print_bytes(const void *data, uint64_t length)
{
    const char *bytes = data;

    for (uint64_t i = 0; i < length; i++)
        put(bytes[i]);
}

struct spec {
    unsigned width;
    char pad;
    bool is_long;
};

static void put_number(uint64_t value, unsigned base, bool negative, const struct spec *spec)
{
    char digits[24];
    unsigned count = 0;

    do {
        digits[count++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value != 0);
    if (negative)
        digits[count++] = '-';
    for (unsigned i = count; i < spec->width; i++)
        put(spec->pad);
    while (count > 0)
        put(digits[--count]);
}

static void put_string(const char *text, const struct spec *spec)
{
    unsigned length = 0;

    for (; text[length] != '\0'; length++)
        put(text[length]);
    for (; length < spec->width; length++)
        put(' ');
}

static const char *parse_spec(const char *format, struct spec *spec)
{
    *spec = (struct spec){ .pad = ' ' };
    if (*format == '0') {
        spec->pad = '0';
        format++;
    }
    while (*format >= '0' && *format <= '9')
        spec->width = spec->width * 10 + (unsigned)(*format++ - '0');
    while (*format == 'l') {
        spec->is_long = true;
        format++;
    }
    return format;
}

static uint64_t take_unsigned(va_list *list, const struct spec *spec)
{
    return spec->is_long ? va_arg(*list, unsigned long) : va_arg(*list, unsigned);
}

static void put_conversion(char conversion, const struct spec *spec, va_list *list)
{
    switch (conversion) {
    case 'c':
        put((char)va_arg(*list, int));
        break;
    case 's':
        put_string(va_arg(*list, const char *), spec);
        break;
    case 'd': {
        int64_t value = spec->is_long ? va_arg(*list, long) : va_arg(*list, int);
        put_number(value < 0 ? 0 - (uint64_t)value : (uint64_t)value, 10, value < 0, spec);
        break;
    }
    case 'u':
        put_number(take_unsigned(list, spec), 10, false, spec);
        break;
    case 'x':
        put_number(take_unsigned(list, spec), 16, false, spec);
        break;
    default:
        put(conversion);
        break;
    }
}

void print_list(const char *format, va_list list)
{
    va_list rest;

    va_copy(rest, list);
    for (; *format != '\0'; format++) {
        if (*format != '%') {
            put(*format);
            continue;
        }
        struct spec spec;
        format = parse_spec(format + 1, &spec);
        put_conversion(*format, &spec, &rest);
    }
    va_end(rest);
}

void print(const char *format, ...)
{
    va_list list;

    va_start(list, format);
    print_list(format, list);
    va_end(list);
}
