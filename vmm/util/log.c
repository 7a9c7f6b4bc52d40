/*
 * Messages to the person at the terminal: formatting, the level filter, the guest's rate limit.
 *
 * Does not write to files or to syslog. Any thread may log: a line is built on the caller's stack
 * and written by one write(2), so lines do not mix; there is no lock.
 */
#include "vmm/util/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000ull

/* Set once at start, before other threads exist, except raw_terminal; relaxed order is enough. */
static _Atomic int max_level = LOG_LEVEL_WARN;
static _Atomic bool raw_terminal;
static void (*line_sink)(enum log_level level, const char *line);
static _Thread_local char *diverted_to;
static _Thread_local size_t diverted_size;

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&max_level, (int)level, memory_order_relaxed);
}

void log_divert_errors(char *to, size_t size)
{
    diverted_to = to;
    diverted_size = size;
}

void log_set_sink(void (*sink)(enum log_level level, const char *line))
{
    line_sink = sink;
}

void log_set_raw_terminal(bool raw)
{
    atomic_store_explicit(&raw_terminal, raw, memory_order_relaxed);
}

static void write_line(enum log_level level, const char *text)
{
    char line[1100];
    const char *end = atomic_load_explicit(&raw_terminal, memory_order_relaxed) ? "\r\n" : "\n";
    const char *kind = level == LOG_LEVEL_WARN ? "warning: " : "";
    int len;

    if (line_sink) {
        line_sink(level, text);
        return;
    }
    len = snprintf(line, sizeof(line), "ferry: %s%s%s", kind, text, end);
    if (len > 0 && write(STDERR_FILENO, line, (size_t)len) < 0)
        return; /* standard error is gone: there is nobody left to tell */
}

/* What guests, peers and files are called, or say of themselves, does not steer the terminal. */
static void defuse(char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < ' ' || *text == 0x7F)
            *text = '?';
}

static void log_va(enum log_level level, const char *format, va_list args)
{
    char text[1024];

    if ((int)level > atomic_load_explicit(&max_level, memory_order_relaxed))
        return;
    vsnprintf(text, sizeof(text), format, args);
    defuse(text);
    if (diverted_to && level == LOG_LEVEL_ERROR)
        snprintf(diverted_to, diverted_size, "%s", text);
    else
        write_line(level, text);
}

#define DEFINE_LOG(name, level)                                                                    \
    void name(const char *format, ...)                                                             \
    {                                                                                              \
        va_list args;                                                                              \
        va_start(args, format);                                                                    \
        log_va(level, format, args);                                                               \
        va_end(args);                                                                              \
    }

DEFINE_LOG(log_error, LOG_LEVEL_ERROR)
DEFINE_LOG(log_warn, LOG_LEVEL_WARN)
DEFINE_LOG(log_info, LOG_LEVEL_INFO)
DEFINE_LOG(log_debug, LOG_LEVEL_DEBUG)

static bool rate_take(struct log_rate *rate)
{
    struct timespec now;
    uint64_t now_ns, seconds;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    now_ns = (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
    seconds = (now_ns - rate->refilled_ns) / NS_PER_S;
    if (seconds > 0) {
        rate->spent -= rate->spent < seconds ? rate->spent : seconds;
        rate->refilled_ns = now_ns;
    }
    if (rate->spent >= LOG_RATE_BURST) {
        rate->dropped++;
        return false;
    }
    rate->spent++;
    return true;
}

void log_guest(struct log_rate *rate, const char *format, ...)
{
    char text[960];
    va_list args;

    if (!rate_take(rate))
        return;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (rate->dropped > 0)
        log_warn("%s (%llu like messages dropped)", text, (unsigned long long)rate->dropped);
    else
        log_warn("%s", text);
    rate->dropped = 0;
}
