/*
 * Text on COM1, polled. One processor prints at a time.
 */
#ifndef GUEST_PRINT_H
#define GUEST_PRINT_H

#include <stdarg.h>
#include <stdint.h>

#define COM1 0x3F8

/* Sets the FIFO on, so that 16 bytes go out for one look at the line status. */
void print_init(void);

/* Sends all text elsewhere, a character at a time. */
void print_set_sink(void (*sink)(char c));

/* %c %s %d %u %x %%, with l for 64 bits, a width and a leading 0. No newline is added. */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
void print_list(const char *format, va_list list) __attribute__((format(printf, 1, 0)));
void print_bytes(const void *data, uint64_t length);

#endif
