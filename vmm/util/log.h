/*
 * Messages to the person at the terminal.
 *
 * One line a message, on standard error, prefixed "ferry: "; a control character in it is shown as '?'.
 * Errors are written once, by the place that knows the cause, in the form: what failed, on what, why,
 * what to try. Any thread may call.
 */
#ifndef FERRY_UTIL_LOG_H
#define FERRY_UTIL_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* Messages above this level are dropped. The default is LOG_LEVEL_WARN. */
void log_set_level(enum log_level level);

/* Receives each finished line, without a newline; for tests. NULL restores standard error. */
void log_set_sink(void (*sink)(enum log_level level, const char *line));

/* While true, lines end in CR LF, because the terminal is in raw mode. */
void log_set_raw_terminal(bool raw);

/* From now on this thread's errors go into a text instead, of which the last stays; NULL ends that. For
 * answers to somebody who is elsewhere. */
void log_divert_errors(char *to, size_t size);

void log_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_debug(const char *format, ...) __attribute__((format(printf, 1, 2)));

/*
 * A budget for messages that a guest can provoke: at most LOG_RATE_BURST lines, refilled one a
 * second; what is dropped is counted and the count is told with the next line that passes.
 * Zero-initialised is full. Not shared between threads without the caller's lock.
 */
#define LOG_RATE_BURST 8
struct log_rate {
    uint64_t spent;
    uint64_t dropped;
    uint64_t refilled_ns;
};

/* A warning about what the guest did, within the budget. */
void log_guest(struct log_rate *rate, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
