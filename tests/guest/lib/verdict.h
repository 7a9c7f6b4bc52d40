/*
 * What a payload found out, in lines that the runner reads, and the ways to end a machine.
 *
 *   ok NAME
 *   not ok NAME: why
 *   skipped NAME: why
 *   cost NAME NS            (a measurement)
 *   verdict: N passed, N failed, N skipped
 */
#ifndef GUEST_VERDICT_H
#define GUEST_VERDICT_H

#include <stdbool.h>
#include <stdint.h>

void ok(const char *name);
void not_ok(const char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));
void skipped(const char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* ok when condition holds, else not ok with the reason; returns condition. */
bool check(bool condition, const char *name, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void cost(const char *name, uint64_t nanoseconds);

/* Prints the verdict and powers off. */
_Noreturn void verdict(void);

/* By the ACPI sleep control register, then, should that do nothing, by the reset register. */
_Noreturn void power_off(void);
/* With a null IDT, at CPL 0. */
_Noreturn void triple_fault(void);

#endif
